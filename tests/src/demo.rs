//! The main job, shown on the host: real clients, an agent in enforce mode, and the evidence.

use std::io::{IsTerminal as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::agent::{Agent, Launch, program};
use crate::clients::{Finished, Stage, run};

/// Two principals, matched by executable. The agents of research may spend five cents a day, and
/// use no `-pro` model.
const CONFIGURATION: &str = r#"
environment: demo
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
principals:
  - {name: release-script, match: {exe: "*/curl"}, team: platform, project: releases}
  - {name: research-agent, match: {exe: "*/python3*"}, team: research, project: summaries, delegated_by: alice@example.com}
budgets:
  - {name: research-daily, team: research, unit: USD, limit: 0.05, period: day}
policies:
  - {name: no-pro-models, team: research, denied_models: ["*-pro"], enforcement: block}
"#;

/// Show the main job: an allowed call, a blocked call, a call over budget, and the evidence.
#[derive(Debug, clap::Args)]
pub struct Demo {}

/// Call of the demonstration.
struct Call {
    title: &'static str,
    client: Command,
    /// Word expected in the agent's line about the call.
    outcome: &'static str,
}

impl Demo {
    /// Runs the demonstration. Fails unless every outcome is as announced.
    pub fn run(&self) -> anyhow::Result<()> {
        let Self {} = self;
        let stage = Stage::new()?;
        say(&format!(
            "A local provider answers for api.openai.com and api.anthropic.com on {} (TLS, rustls).",
            stage.provider.address
        ))?;
        say("The agent starts in enforce mode. Its live table follows each call.")?;
        let mut agent =
            Agent::launch(CONFIGURATION, &Launch { readable: true, ..Launch::default() })?;
        say(&format!("Ready after {:.2} s.", agent.ready_after.as_secs_f64()))?;
        for call in calls(&stage)? {
            call.make(&stage, &agent)?;
        }
        let evidence = agent.evidence();
        let losses = agent.losses()?;
        ensure!(losses.is_empty(), "lost: {losses:?}");
        let (status, _) = agent.stop()?;
        ensure!(status.success(), "the agent ended with {status}: {}", agent.stderr());
        heading("Evidence")?;
        verify(&evidence)?;
        say("\nDone: allowed, blocked before a byte left, over budget, and the evidence is sound.")
    }
}

fn calls(stage: &Stage) -> anyhow::Result<Vec<Call>> {
    let question = json!({
        "model": "gpt-4o-mini", "max_tokens": 64,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    Ok(vec![
        Call {
            title: "curl, POST /v1/chat/completions, gpt-4o-mini",
            client: stage.curl("https://api.openai.com/v1/chat/completions", &question),
            outcome: "ALLOWED",
        },
        Call {
            title: "OpenAI SDK for Python, streamed, gpt-4o-mini",
            client: stage.python("openai", &["--stream"])?,
            outcome: "ALLOWED",
        },
        Call {
            title: "Anthropic SDK for Python, streamed, claude-haiku-4-5",
            client: stage.python("anthropic", &["--stream", "--model", "claude-haiku-4-5"])?,
            outcome: "ALLOWED",
        },
        Call {
            title: "OpenAI SDK, o1-pro: the policy denies it",
            client: stage.python("openai", &["--model", "o1-pro"])?,
            outcome: "BLOCKED",
        },
        Call {
            title: "OpenAI SDK, gpt-4.1 with up to 32,000 tokens of answer: more than the day's five cents",
            client: stage.python("openai", &["--model", "gpt-4.1", "--max-tokens", "32000"])?,
            outcome: "BLOCKED",
        },
    ])
}

impl Call {
    fn make(self, stage: &Stage, agent: &Agent) -> anyhow::Result<()> {
        let Self { title, mut client, outcome } = self;
        heading(title)?;
        let lines_before = agent.lines().len();
        let connections_before = stage.provider.log.connections().len();
        let finished = run(&mut client)?;
        let line = wait_for_line(agent, lines_before, outcome)?;
        ensure!(line.contains(outcome), "expected {outcome}, the agent said: {line}");
        say(&format!("  client: {}", said(&finished)?))?;
        let connections = stage.provider.log.connections();
        let sealed: u64 =
            connections.iter().skip(connections_before).map(|it| it.sealed_bytes).sum();
        let plain: u64 =
            connections.iter().skip(connections_before).map(|it| it.application_bytes).sum();
        say(&format!(
            "  provider: {plain} bytes of the request arrived ({sealed} on the wire after the handshake)"
        ))?;
        ensure!((outcome == "BLOCKED") == (plain == 0), "{plain} bytes reached the provider");
        Ok(())
    }
}

/// Waits up to 5 s for the agent's line about the latest call.
fn wait_for_line(agent: &Agent, after: usize, outcome: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let lines = agent.lines();
        if let Some(line) = lines.iter().skip(after).find(|line| line.contains(outcome)) {
            return Ok(line.clone());
        }
        ensure!(
            Instant::now() < deadline,
            "the agent reported no {outcome} call: {lines:?} {}",
            agent.stderr()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the client's answer or error, in one line.
fn said(finished: &Finished) -> anyhow::Result<String> {
    let report: Value = finished.report()?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(match (report.get("error"), report.pointer("/choices/0/message/content")) {
        (Some(Value::String(error)), _) => format!("error in {}: {error}", seconds(&report)),
        (_, Some(answer)) => text(answer),
        _ => {
            format!("{} ({})", report.get("answer").map(text).unwrap_or_default(), seconds(&report))
        }
    })
}

fn seconds(report: &Value) -> String {
    format!("{:.0} ms", report.get("seconds").and_then(Value::as_f64).unwrap_or_default() * 1e3)
}

fn verify(evidence: &std::path::Path) -> anyhow::Result<()> {
    let program = program()?;
    let mut verify = Command::new(&program);
    let output = verify.args(["evidence", "verify"]).arg(evidence).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        say(&format!("  {line}"))?;
    }
    ensure!(
        output.status.success(),
        "evidence verify: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn heading(text: &str) -> anyhow::Result<()> {
    let bold = std::io::stdout().is_terminal();
    say(&if bold { format!("\n\x1b[1m{text}\x1b[0m") } else { format!("\n{text}") })
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}
