//! A socket sends only bytes explained by released plaintext, in whichever way a program sends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Finished, Stage, python, run, script};
use genops_tests::patience::scaled;
use serde_json::Value;

use crate::support::{can_run, int, text};

const ALLOWED: &str = "gpt-4o-mini";
/// As long as `ALLOWED`, so that records have the same lengths.
const REFUSED: &str = "gpt-4o-evil";

fn configuration(uninspectable: &str) -> String {
    format!(
        "mode: enforce\non_timeout: open\nuninspectable: {uninspectable}\nhold_deadline_ms: {}\n\
         principals: [{{name: anyone, match: {{exe: \"*\"}}, team: all, project: ways}}]\n\
         policies: [{{name: no-evil, denied_models: [\"*evil*\"]}}]",
        scaled(Duration::from_millis(500)).as_millis()
    )
}

/// Sends a request in the given way.
fn send(stage: &Stage, way: &str, model: &str) -> anyhow::Result<Finished> {
    let mut client = stage.command(python()?);
    run(client.arg(script("ways.py")).args([way, model]))?.succeeded()
}

/// Returns the models of the requests received.
fn arrived(stage: &Stage) -> Vec<String> {
    stage.provider.log.requests().into_iter().filter_map(|it| it.model).collect()
}

/// Returns the units of a process.
fn said(agent: &Agent, pid: u32, count: usize) -> anyhow::Result<Vec<Value>> {
    let of_process = |awu: &Value| int(awu, "process.pid") == Some(pid.into());
    agent.wait_for(count, scaled(Duration::from_secs(5)), of_process)
}

/// Plaintext read by the probes is decided by content, on any way to the socket.
#[test]
fn what_is_read_is_decided_however_it_is_sent() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(&configuration("block"))?;
    let stage = Stage::new()?;
    for way in ["pieces", "mapped", "long", "rewrite"] {
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

/// A request in memory mapped from a file, with a page fault never served, delays neither the
/// requests of others nor the end of the agent.
#[test]
#[expect(clippy::print_stdout, reason = "a test says why it was skipped")]
fn a_page_that_never_comes_delays_nobody() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: there is no /dev/fuse");
        return Ok(());
    }
    let mut agent = Agent::start(&configuration("block"))?;
    let stage = Stage::new()?;
    let mut client = stage.command(python()?);
    client.arg(script("pages.py")).arg(stage.hosts().with_file_name("pages"));
    let mut waiting = client.stdin(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let out = waiting.stdout.take().context("its output")?;
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line.trim() == "writes", "the client could not begin: {line:?}");
    let deadline = scaled(Duration::from_millis(500));
    // Before, at and after its deadline.
    for _ in 0..6 {
        let begun = Instant::now();
        let other = send(&stage, "pieces", ALLOWED)?;
        let took = begun.elapsed();
        let units = said(&agent, other.pid, 1)?;
        let results: Vec<_> = units.iter().map(|it| text(it, "genops.policy.result")).collect();
        ensure!(results == [Some("ALLOWED")], "beside a page that never comes: {units:#?}");
        ensure!(took < deadline * 4, "it took {took:?} beside a page that never comes");
    }
    let begun = Instant::now();
    agent.stop()?;
    let took = begun.elapsed();
    drop(waiting.stdin.take());
    waiting.kill()?;
    waiting.wait()?;
    ensure!(took < scaled(Duration::from_secs(5)), "the agent took {took:?} to end");
    Ok(())
}

/// Unexplained bytes are a separate unit. With `uninspectable: block` the connection is ended,
/// whatever `on_timeout` says.
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

/// With `uninspectable: warn`, unexplained bytes leave after the deadline, and the connection goes
/// on.
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
