//! A policy may have a process ended when a request is refused; no other process is ended.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::ensure;
use genops_tests::agent::Agent;
use genops_tests::clients::{Finished, Stage, finish, run};
use genops_tests::provider::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{assert_says, can_run};

/// Two models are refused; a process asking for a `-pro` model is ended as well.
const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
policies:
  - {name: fatal, denied_models: ["*-pro"], signal: kill}
  - {name: refused, denied_models: ["*-preview"]}
"#;

fn refused(
    agent: &Agent,
    process: &Finished,
    by: &str,
    signal: Option<&str>,
) -> anyhow::Result<()> {
    let awu = agent.only_awu_of(process.pid)?;
    assert_says(
        &awu,
        &[
            ("genops.policy.result", "BLOCKED".into()),
            ("genops.policy.name", by.into()),
            ("genops.enforcement.mechanism", "egress_hold".into()),
        ],
    );
    let sent = awu.get("genops.enforcement.signal").and_then(Value::as_str);
    ensure!(sent == signal, "{awu:#}");
    Ok(())
}

#[test]
fn only_a_process_that_is_refused_by_a_policy_with_a_signal_is_ended() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(ENFORCING)?;
    let (stage, elsewhere) = (Stage::new()?, Stage::new()?);
    let call = |stage: &Stage, model: &str| stage.python("openai", &["--model", model]);
    let bystander = call(&elsewhere, "gpt-4o-mini")?.spawn()?;
    let ended = run(&mut call(&stage, "o1-pro")?)?;
    let spared = run(&mut call(&stage, "o1-preview")?)?.succeeded()?;
    finish(bystander)?.succeeded()?;

    let signal = ended.output.status.signal();
    ensure!(signal == Some(Signal::KILL.as_raw()), "it ended with {}", ended.output.status);
    let report = spared.report()?;
    ensure!(report.get("ok") == Some(&Value::Bool(false)), "the call went through: {report}");
    refused(&agent, &ended, "fatal.denied_models", Some("KILL"))?;
    refused(&agent, &spared, "refused.denied_models", None)?;
    let arrived = stage.provider.log.connections().iter().any(Connection::has_request);
    ensure!(!arrived, "of a refused request something arrived");
    ensure!(elsewhere.provider.log.request_count() == 1, "the other's call did not arrive");
    let mut signals = agent.metrics()?;
    signals.retain(|(name, count)| name.starts_with("genops_agent_signals_total") && *count > 0.0);
    let sent = "genops_agent_signals_total{outcome=\"sent\"}";
    ensure!(signals == [(sent.to_owned(), 1.0)], "{signals:?}");
    Ok(())
}
