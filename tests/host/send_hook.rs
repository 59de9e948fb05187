//! If BPF programs may be security hooks, the send call of a denied connection fails at once.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::provider::Connection;
use serde_json::Value;

use crate::denial::{BYSTANDER_REQUESTS, bystander};
use crate::support::{assert_says, can_run, text};

const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: assistant, match: {exe: "*/python3*"}, team: research, project: notes}
policies:
"#;
/// Longest time of the send call: there is no wait.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Whether the agent's doctor reports the hook as available; prints the reason if not.
#[expect(clippy::print_stdout, reason = "the test runner counts what is skipped by this line")]
fn has_send_hook() -> anyhow::Result<bool> {
    let output = Command::new(program()?).args(["doctor", "--output", "json"]).output()?;
    let findings: Value = serde_json::from_slice(&output.stdout)?;
    let mechanisms = findings.get("mechanisms").and_then(Value::as_array).context("mechanisms")?;
    let hook = mechanisms.iter().find(|it| text(it, "name") == Some("send hook"));
    let hook = hook.context("doctor says nothing of the send hook")?;
    let has = hook.get("available") == Some(&Value::Bool(true));
    if !has {
        println!("skipped: {}", text(hook, "note").unwrap_or_default());
    }
    ensure!(has == (text(&findings, "best_mechanism") == Some("lsm")), "{findings}");
    Ok(has)
}

/// Runs a client with a request refused by `policy`. Fails unless the send call ends as `send`, and
/// the unit names `mechanism`.
fn check(policy: &str, send: &str, mechanism: &str) -> anyhow::Result<()> {
    if !can_run() || !has_send_hook()? {
        return Ok(());
    }
    let agent = Agent::start(&format!("{ENFORCING}  - {policy}\n"))?;
    let (stage, elsewhere) = (Stage::new()?, Stage::new()?);
    let bystander = bystander(&elsewhere)?;
    let mut client = stage.command(python()?);
    client.arg(script("sends.py"));
    client.arg(scaled(Duration::from_millis(500)).as_secs_f64().to_string());
    let finished = run(&mut client)?.succeeded()?;

    let report = finished.report()?;
    for (call, expected) in [("send", send), ("again", "EPERM")] {
        let ended = report.get(call).with_context(|| format!("no {call}: {report}"))?;
        let took = ended.get("seconds").and_then(Value::as_f64).context("seconds")?;
        ensure!(text(ended, "outcome") == Some(expected), "{call} did not end so: {report}");
        ensure!(Duration::from_secs_f64(took) < scaled(AT_ONCE), "{call} took long: {report}");
    }
    let answer = report.get("answer").and_then(|it| text(it, "outcome"));
    ensure!(answer != Some("passed"), "an answer came: {report}");
    let awu = agent.only_awu_of(finished.pid)?;
    assert_says(
        &awu,
        &[
            ("genops.policy.result", "BLOCKED".into()),
            ("genops.enforcement.mechanism", mechanism.into()),
        ],
    );
    let connections = stage.provider.log.connections();
    ensure!(!connections.iter().any(Connection::has_request), "bytes arrived: {connections:?}");

    finish(bystander)?.succeeded()?;
    let of_bystander = elsewhere.provider.log.request_count();
    ensure!(of_bystander == BYSTANDER_REQUESTS, "{of_bystander} calls of the other arrived");
    Ok(())
}

/// If the provider is closed to the process, no call waits for a verdict.
#[test]
fn the_send_of_a_request_to_a_closed_provider_fails_at_once() -> anyhow::Result<()> {
    let policy = "{name: one, principal: assistant, allowed_providers: [anthropic]}";
    check(policy, "EPERM", "lsm")
}

/// The send of the request is held and has returned; later sends on the connection fail.
#[test]
fn a_send_after_a_denied_request_fails_at_once() -> anyhow::Result<()> {
    let policy = "{name: no-pro, principal: assistant, denied_models: [\"*-pro\"]}";
    check(policy, "passed", "egress_hold")
}
