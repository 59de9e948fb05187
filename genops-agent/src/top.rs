//! `top`: AWUs of the running agent, live in a terminal.
//!
//! Reads the AWUs from the agent's [socket](crate::control), sums by principal and model, and
//! draws. The few escape sequences needed are written by hand: a terminal library would be the
//! largest dependency of the smallest command.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::cli::{self, Failure};
use crate::control;
use crate::render::plain;

mod screen;

/// Most lines of the table; further principals and models are summed in a single line.
const ROW_LIMIT: usize = 1_000;

/// Calls remembered for the list of the latest calls.
const LATEST: usize = 16;

/// Lines read ahead of the drawing.
const QUEUE: usize = 1_024;

/// Interval between redraws.
const REDRAW: Duration = Duration::from_millis(500);

/// Show the calls seen by the running agent, live
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  genops-agent top\n  genops-agent top --seconds 10\n\n\
    q ends it. With --seconds, or where the output is no terminal, the totals are printed once at \
    the end.")]
pub(crate) struct Top {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = control::SOCKET)]
    socket: PathBuf,
    /// Collect for N seconds, print the totals, and end.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

impl Top {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { socket, seconds } = self;
        let lines = control::watch_lines(&socket).with_context(|| {
            format!("{}: no agent answers there; start `genops-agent run`", socket.display())
        });
        let lines = lines.map_err(Failure::run)?;
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let live = seconds.is_none() && io::stdout().is_terminal();
        let mut totals = Totals::new();
        if live {
            show(&receiver, &mut totals).map_err(Failure::run)
        } else {
            let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
            collect(&receiver, &mut totals, until);
            cli::print(|out| out.write_all(totals.draw(160, usize::MAX, false).as_bytes()))?;
            Ok(())
        }
    }
}

/// Adds up until the time or the agent ends.
fn collect(lines: &Receiver<String>, totals: &mut Totals, until: Option<Instant>) {
    loop {
        let left = until.map_or(REDRAW, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        match lines.recv_timeout(left) {
            Ok(line) => totals.add_line(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Draws until `q` or the end of the agent.
fn show(lines: &Receiver<String>, totals: &mut Totals) -> anyhow::Result<()> {
    let screen = screen::Screen::enter().context("terminal")?;
    loop {
        let until = Instant::now() + REDRAW;
        collect(lines, totals, Some(until));
        let ended = Instant::now() + REDRAW / 2 < until;
        let (width, height) = screen.size();
        screen.draw(&totals.draw(width, height, true))?;
        if screen.asked_to_end()? {
            return Ok(());
        }
        if ended {
            drop(screen);
            writeln!(io::stderr(), "the agent ended")?;
            return Ok(());
        }
    }
}

/// Sums over AWUs.
#[derive(Clone, Debug, Default)]
struct Sums {
    calls: u64,
    blocked: u64,
    warned: u64,
    errors: u64,
    input: u64,
    output: u64,
    usd: f64,
}

impl Sums {
    fn add(&mut self, awu: &Map<String, Value>) {
        let count = |key: &str| awu.get(key).and_then(Value::as_u64).unwrap_or(0);
        // An assumed cost does not count: an unknown price is replaced by the highest known price.
        let assumed = ["genops.accounting.incomplete", "genops.accounting.price_assumed"]
            .iter()
            .any(|key| awu.get(*key) == Some(&Value::Bool(true)));
        let cost = awu.get("genops.cost.total").filter(|_| !assumed);
        self.calls += 1;
        match awu.get("genops.policy.result").and_then(Value::as_str) {
            Some("BLOCKED" | "RATE_LIMITED") => self.blocked += 1,
            Some("WARNING") => self.warned += 1,
            _ => {}
        }
        self.errors += u64::from(awu.contains_key("error.type"));
        self.input += count("gen_ai.usage.input_tokens");
        self.output += count("gen_ai.usage.output_tokens");
        self.usd += cost.and_then(Value::as_f64).unwrap_or(0.0);
    }
}

/// Subject of a line of the table: principal, provider, model.
type Key = (String, String, String);

/// Totals since the start of `top`.
#[derive(Debug)]
struct Totals {
    since: Instant,
    all: Sums,
    rows: BTreeMap<Key, Sums>,
    /// Newest first.
    latest: std::collections::VecDeque<String>,
}

impl Totals {
    fn new() -> Self {
        let (all, rows, latest) = Default::default();
        Self { since: Instant::now(), all, rows, latest }
    }

    /// Adds a line of the agent; an empty line is a sign of life.
    fn add_line(&mut self, line: &str) {
        if let Ok(Value::Object(awu)) = serde_json::from_str(line) {
            self.add(&awu);
        }
    }

    fn add(&mut self, awu: &Map<String, Value>) {
        let text = |key: &str| awu.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let principal = text("genops.principal");
        let model = awu
            .get("gen_ai.request.model")
            .or_else(|| awu.get("gen_ai.response.model"))
            .and_then(Value::as_str);
        let model = model.unwrap_or("-").to_owned();
        let mut key: Key = (principal, text("gen_ai.provider.name"), model);
        if self.rows.len() >= ROW_LIMIT && !self.rows.contains_key(&key) {
            key = ("(others)".to_owned(), "-".to_owned(), "-".to_owned());
        }
        self.all.add(awu);
        let (principal, _, model) = &key;
        let decision = [text("genops.policy.result"), text("genops.policy.reason_code")];
        let decision = decision.join(" ").replace(" -", "");
        self.latest.push_front(format!("{decision:<40} {principal:<24} {model}"));
        self.latest.truncate(LATEST);
        self.rows.entry(key).or_default().add(awu);
    }

    /// Draws the screen as text, at most `width` by `height` characters.
    fn draw(&self, width: usize, height: usize, live: bool) -> String {
        let mut lines = vec![self.summary(), String::new(), head()];
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by(|(_, a), (_, b)| b.usd.total_cmp(&a.usd).then(b.calls.cmp(&a.calls)));
        let room = if live { height.saturating_sub(LATEST / 2 + 6) } else { usize::MAX };
        lines.extend(rows.iter().take(room.max(3)).map(|(key, sums)| row(key, sums)));
        if live {
            lines.push(String::new());
            lines.push("LATEST".to_owned());
            lines.extend(self.latest.iter().cloned());
        }
        let mut text = String::new();
        for line in lines.iter().take(height.saturating_sub(1)) {
            text.push_str(plain(line, width).trim_end());
            text.push('\n');
        }
        text
    }

    fn summary(&self) -> String {
        let Sums { calls, blocked, warned, errors, input, output, usd } = &self.all;
        let seconds = self.since.elapsed().as_secs();
        let mut line = format!("genops-agent top  {seconds} s  {calls} calls");
        for (count, what) in [(blocked, "blocked"), (warned, "warned"), (errors, "failed")] {
            if *count > 0 {
                write!(line, ", {count} {what}").expect("writing to a string does not fail");
            }
        }
        line + &format!("  {input} tokens in, {output} out  {usd:.4} USD  (q ends)")
    }
}

fn head() -> String {
    let numbers = ["CALLS", "DENIED", "WARN", "FAIL", "USD", "IN", "OUT"].map(str::to_owned);
    columns(["PRINCIPAL", "MODEL", "PROVIDER"], numbers)
}

fn row((principal, provider, model): &Key, sums: &Sums) -> String {
    let Sums { calls, blocked, warned, errors, input, output, usd } = sums;
    let counts = [calls, blocked, warned, errors, input, output].map(ToString::to_string);
    let [calls, blocked, warned, errors, input, output] = counts;
    let usd = format!("{usd:.4}");
    columns([principal, model, provider], [calls, blocked, warned, errors, usd, input, output])
}

/// Formats a line of the table: the most important columns fit 80 characters.
fn columns([principal, model, provider]: [&str; 3], numbers: [String; 7]) -> String {
    let [calls, blocked, warned, errors, usd, input, output] = numbers;
    let (principal, model, provider) =
        (plain(principal, 20), plain(model, 22), plain(provider, 16));
    format!(
        "{principal:<20} {model:<22} {calls:>6} {blocked:>6} {warned:>5} {errors:>5} {usd:>9} \
         {input:>11} {output:>10} {provider}"
    )
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn calls_are_added_up_by_principal_and_model() {
        let mut totals = Totals::new();
        for line in [
            r#"{"genops.principal":"refund-bot","gen_ai.provider.name":"openai","gen_ai.request.model":"gpt-4o-mini","gen_ai.usage.input_tokens":10,"gen_ai.usage.output_tokens":3,"genops.cost.total":0.25,"genops.policy.result":"ALLOWED"}"#,
            "",
            r#"{"genops.principal":"refund-bot","gen_ai.provider.name":"openai","gen_ai.request.model":"gpt-4o-mini","genops.policy.result":"BLOCKED","genops.policy.reason_code":"POLICY_DENY_MODEL"}"#,
            r#"{"gen_ai.provider.name":"anthropic","gen_ai.response.model":"claude\u001b[2J","error.type":"500","genops.policy.result":"WARNING"}"#,
            "not json",
        ] {
            totals.add_line(line);
        }
        let drawn = totals.draw(200, 100, false);
        let table: Vec<&str> = drawn.lines().skip(2).collect();
        expect![[r"
            PRINCIPAL            MODEL                   CALLS DENIED  WARN  FAIL       USD          IN        OUT PROVIDER
            refund-bot           gpt-4o-mini                 2      1     0     0    0.2500          10          3 openai
            -                    claude�[2J                  1      0     1     1    0.0000           0          0 anthropic"]].assert_eq(&table.join("\n"));
        assert!(!drawn.contains('\u{1b}'));
        assert!(drawn.starts_with("genops-agent top  0 s  3 calls, 1 blocked, 1 warned, 1 failed"));
    }

    #[test]
    fn the_screen_is_never_exceeded() {
        let mut totals = Totals::new();
        for n in 0..2_000 {
            totals.add_line(&format!(r#"{{"gen_ai.request.model":"m{n}"}}"#));
        }
        assert!(totals.rows.len() <= ROW_LIMIT + 1);
        let drawn = totals.draw(40, 20, true);
        assert!(drawn.lines().count() < 20);
        assert!(drawn.lines().all(|line| line.chars().count() <= 40));
    }
}
