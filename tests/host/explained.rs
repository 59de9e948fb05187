//! A socket sends what released plaintext explains, whichever way a program sends it.

use std::time::Duration;

use anyhow::ensure;
use genops_tests::agent::Agent;
use genops_tests::clients::{Finished, Stage, python, run, script};
use genops_tests::patience::scaled;
use serde_json::Value;

use crate::support::{can_run, int, text};

const ALLOWED: &str = "gpt-4o-mini";
/// As long as the other, so that records have the same lengths.
const REFUSED: &str = "gpt-4o-evil";

fn configuration(uninspectable: &str) -> String {
    format!(
        "mode: enforce\non_timeout: open\nuninspectable: {uninspectable}\nhold_deadline_ms: {}\n\
         principals: [{{name: anyone, match: {{exe: \"*\"}}, team: all, project: ways}}]\n\
         policies: [{{name: no-evil, denied_models: [\"*evil*\"]}}]",
        scaled(Duration::from_millis(500)).as_millis()
    )
}

/// Sends one request this way.
fn send(stage: &Stage, way: &str, model: &str) -> anyhow::Result<Finished> {
    let mut client = stage.command(python()?);
    run(client.arg(script("ways.py")).args([way, model]))?.succeeded()
}

/// The models of which a request arrived.
fn arrived(stage: &Stage) -> Vec<String> {
    stage.provider.log.requests().into_iter().filter_map(|it| it.model).collect()
}

/// What is said of a process's requests.
fn said(agent: &Agent, pid: u32, count: usize) -> anyhow::Result<Vec<Value>> {
    let of_process = |awu: &Value| int(awu, "process.pid") == Some(pid.into());
    agent.wait_for(count, scaled(Duration::from_secs(5)), of_process)
}

/// What the probes read is decided by what it says, however it reaches the socket.
#[test]
fn what_is_read_is_decided_however_it_is_sent() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(&configuration("block"))?;
    let stage = Stage::new()?;
    for way in ["pieces", "mapped", "rewrite"] {
        let allowed = send(&stage, way, ALLOWED)?;
        let units = said(&agent, allowed.pid, 1)?;
        let results: Vec<_> = units.iter().map(|it| text(it, "genops.policy.result")).collect();
        ensure!(results == [Some("ALLOWED")], "{way}: {units:#?}");
        let before = arrived(&stage);
        ensure!(before.last().map(String::as_str) == Some(ALLOWED), "{way}: {before:?}");
        let refused = send(&stage, way, REFUSED)?;
        let units = said(&agent, refused.pid, 1)?;
        let codes: Vec<_> = units.iter().map(|it| text(it, "genops.policy.reason_code")).collect();
        ensure!(codes == [Some("POLICY_DENY_MODEL")], "{way}: {units:#?}");
        ensure!(arrived(&stage) == before, "{way}: {:?}", arrived(&stage));
    }
    Ok(())
}

/// What nothing explains is a unit of its own, and ended where that is the rule, whatever timeouts say.
#[test]
fn what_nothing_explains_is_ended_where_that_is_the_rule() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(&configuration("block"))?;
    let stage = Stage::new()?;
    for way in ["bio", "early", "child"] {
        let client = send(&stage, way, REFUSED)?;
        let is_unexplained =
            |awu: &Value| text(awu, "gen_ai.operation.name") == Some("x_unexplained");
        let units = agent.wait_for(1, scaled(Duration::from_secs(5)), |awu| {
            is_unexplained(awu) && int(awu, "process.pid") == Some(client.pid.into())
        })?;
        let [unit] = units.as_slice() else { anyhow::bail!("{way}: {units:#?}") };
        ensure!(text(unit, "genops.policy.result") == Some("BLOCKED"), "{way}: {unit:#}");
        ensure!(
            text(unit, "genops.policy.reason_code") == Some("x_uninspectable"),
            "{way}: {unit:#}"
        );
        ensure!(text(unit, "genops.capture.reason").is_some(), "{way}: {unit:#}");
        ensure!(arrived(&stage).is_empty(), "{way}: {:?}", arrived(&stage));
    }
    Ok(())
}

/// With a warning it leaves after the deadline, and the connection goes on.
#[test]
fn what_nothing_explains_leaves_with_a_warning_where_that_is_the_rule() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(&configuration("warn"))?;
    let stage = Stage::new()?;
    let client = send(&stage, "bio", ALLOWED)?;
    let units = said(&agent, client.pid, 1)?;
    let unit = units.first().expect("one was waited for");
    ensure!(text(unit, "gen_ai.operation.name") == Some("x_unexplained"), "{unit:#}");
    ensure!(text(unit, "genops.policy.result") == Some("WARNING"), "{unit:#}");
    ensure!(arrived(&stage) == [ALLOWED], "{:?}", arrived(&stage));
    Ok(())
}
