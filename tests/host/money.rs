//! Checks that the cost of a call does not depend on the client, on the end of the transport, or on
//! the time.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::clients::{Stage, finish_within, node, python, script};
use genops_tests::patience::scaled;
use genops_tests::provider::Ending;
use serde_json::{Value, json};

use crate::books::Audited;
use crate::support::can_run;

const CHAT: &str = "https://api.openai.com/v1/chat/completions";
const LATE: Duration = Duration::from_millis(50);
/// Time that a client waits for bytes without receiving any. On a busy machine, the first bytes of
/// an answer are late too: a client giving up before would be charged the reservation.
const PATIENCE: Duration = Duration::from_secs(12);
/// Longest time for all calls of a client, on a busy machine.
const LONGEST: Duration = Duration::from_mins(2);
/// Text of the requests: long enough for a meaningful estimate by length.
const TEXT: &str = "Please tell me at length what you know of the small town by the river: who built its \
    bridge, what was carried over it, and why the mill above the weir was given up. I would like to read about \
    the families that lived there, the work they did in winter, and the letters that the miller's daughter wrote \
    to her brother at sea. If something of it is not known, say so, and do not make up what nobody wrote down. \
    Begin with the oldest source, and keep the names of places as the people of the valley say them today.";

/// Started clients.
#[derive(Default)]
struct Clients(Vec<(String, Child)>);

impl Clients {
    fn add(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        self.0.push((name.to_owned(), command.spawn()?));
        Ok(())
    }

    /// Starts calls of `money.py`, `together` at the same time.
    fn python(&mut self, stage: &Stage, together: usize, ways: &[&str]) -> anyhow::Result<()> {
        let mut command = stage.command(python()?);
        command.arg(script("money.py")).args(ways).args(["--text", TEXT]);
        command.args(["--together", &together.to_string()]);
        command.args(["--patience", &scaled(PATIENCE).as_secs_f64().to_string()]);
        self.add(&ways.join(" "), command)
    }

    /// Starts calls of `money.mjs`, `together` at the same time.
    fn node(&mut self, stage: &Stage, together: usize, ways: &[&str]) -> anyhow::Result<()> {
        let mut command = stage.command(node()?);
        command.arg(script("money.mjs")).arg(TEXT);
        command.arg(scaled(PATIENCE).as_millis().to_string());
        command.arg(together.to_string()).args(ways);
        self.add(&ways.join(" "), command)
    }

    /// Starts calls of a single `curl`, one after another.
    fn curl(
        &mut self,
        stage: &Stage,
        version: &str,
        stream: bool,
        count: usize,
    ) -> anyhow::Result<()> {
        let mut body = json!({
            "model": "gpt-4o-mini", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}],
        });
        if let Some(fields) = body.as_object_mut().filter(|_| stream) {
            fields.insert("stream".to_owned(), true.into());
            fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        let mut command = stage.curl(CHAT, &body);
        command.args(std::iter::repeat_n(CHAT, count - 1)).arg(version);
        // Limit for each call; `curl` cannot be told to wait so long for the next byte.
        let seconds = scaled(PATIENCE).as_secs().to_string();
        command.args(["--max-time", &seconds]);
        let answer = if stream { "stream" } else { "plain" };
        self.add(&format!("curl {version}, {answer}"), command)
    }

    /// Waits for all clients and returns the outcomes. Fails on a wrong outcome if all answers have
    /// an end (`all_end`).
    fn end(self, all_end: bool) -> anyhow::Result<String> {
        let mut outcomes_of_all = Vec::new();
        for (name, child) in self.0 {
            let finished = finish_within(child, LONGEST).with_context(|| name.clone())?;
            if name.starts_with("curl") {
                let status = finished.output.status;
                ensure!(status.success() || !all_end, "{name}: {status}: {}", finished.stderr());
                outcomes_of_all.push(format!("{name}: {status}"));
                continue;
            }
            let report = finished.succeeded()?.report()?;
            outcomes_of_all.push(report.to_string());
            let outcomes = report.as_object().into_iter().flatten();
            let wrong: Vec<(&String, &Value)> = outcomes
                .filter(|(outcome, _)| !outcome.ends_with(" ok") && !outcome.ends_with(" left"))
                .collect();
            ensure!(wrong.is_empty() || !all_end, "{name}: {wrong:?}");
        }
        Ok(outcomes_of_all.join("\n"))
    }
}

/// A call of each client in each way of ending a call.
const EACH_OPENAI: [&str; 10] = [
    "openai.plain:1",
    "openai.stream:1",
    "openai.unasked:1",
    "openai.raw:1",
    "openai.leave:1",
    "openai.responses:1",
    "openai-async.stream:1",
    "openai-async.leave:1",
    "httpx2.stream:1",
    "httpx2.leave:1",
];
const EACH_ANTHROPIC: [&str; 3] = ["anthropic.plain:1", "anthropic.stream:1", "anthropic.leave:1"];
const EACH_GENAI: [&str; 3] = ["genai.plain:1", "genai.stream:1", "genai.leave:1"];
const EACH_NODE: [&str; 6] = [
    "fetch.plain:1",
    "fetch.stream:1",
    "fetch.leave:1",
    "openai.plain:1",
    "openai.stream:1",
    "openai.leave:1",
];

/// Starts a call of each client in each way, to a provider ending answers as `ending` says.
fn each_client(ending: Ending) -> anyhow::Result<(Stage, Clients)> {
    let stage = Stage::with(true)?;
    stage.provider.end(ending);
    let mut clients = Clients::default();
    clients.python(&stage, EACH_OPENAI.len(), &EACH_OPENAI)?;
    clients.python(&stage, EACH_ANTHROPIC.len(), &EACH_ANTHROPIC)?;
    clients.python(&stage, EACH_GENAI.len(), &EACH_GENAI)?;
    clients.node(&stage, EACH_NODE.len(), &EACH_NODE)?;
    for version in ["--http1.1", "--http2"] {
        for stream in [false, true] {
            clients.curl(&stage, version, stream, 1)?;
        }
    }
    Ok((stage, clients))
}

#[test]
fn every_client_pays_what_the_provider_counted_however_late_an_answer_ends() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let audited = Audited::with_prices()?;
    let (late, late_calls) = each_client(Ending::Late(LATE))?;
    let (never, never_calls) = each_client(Ending::Never)?;
    late_calls.end(true)?;
    never_calls.end(false)?;
    let summary = audited.agrees_with(&[&late.provider, &never.provider])?;
    // Per ending: seven calls left by their clients, and a call without a request for usage.
    ensure!((summary.reported, summary.estimated) == (36, 16), "{summary:?}");
    Ok(())
}

#[test]
fn a_thousand_mixed_calls_cost_what_the_provider_counted() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let audited = Audited::with_prices()?;
    let stage = Stage::with(true)?;
    stage.provider.end(Ending::ByTurns(LATE));
    let mut clients = Clients::default();
    clients.python(
        &stage,
        24,
        &[
            "openai.plain:60",
            "openai.stream:80",
            "openai.unasked:60",
            "openai.raw:60",
            "openai.leave:80",
            "openai.responses:40",
            "openai-async.stream:70",
            "openai-async.leave:30",
            "httpx2.stream:30",
            "httpx2.leave:30",
        ],
    )?;
    clients.python(
        &stage,
        20,
        &[
            "anthropic.plain:30",
            "anthropic.stream:80",
            "anthropic.leave:60",
            "genai.plain:20",
            "genai.stream:40",
            "genai.leave:20",
        ],
    )?;
    clients.node(
        &stage,
        16,
        &[
            "fetch.plain:25",
            "fetch.stream:40",
            "fetch.leave:25",
            "openai.plain:15",
            "openai.stream:40",
            "openai.leave:25",
        ],
    )?;
    for version in ["--http1.1", "--http2"] {
        for stream in [false, true] {
            for _ in 0..5 {
                clients.curl(&stage, version, stream, 2)?;
            }
        }
    }
    let outcomes = clients.end(false)?;
    let summary = audited.agrees_with(&[&stage.provider]).with_context(|| outcomes.clone())?;
    ensure!((summary.reported, summary.estimated) == (670, 330), "{summary:?}\n{outcomes}");
    Ok(())
}
