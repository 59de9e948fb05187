//! The agent dies or hangs while a request is held: the kernel applies `on_timeout`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, finish};
use genops_tests::patience::scaled;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::can_run;

/// Maximum hold in the kernel.
const HOLD: Duration = Duration::from_millis(1_500);
/// Time added to the hold by a client: TCP's own timer, and a busy machine.
const GRACE: Duration = Duration::from_secs(1);
/// Pause between the client's two calls.
const PAUSE: Duration = Duration::from_millis(1_500);

/// Event for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    Stopped,
}

/// Makes an allowed call, then another call while the agent cannot answer. Returns the client's
/// report and the number of requests received.
fn second_call(on_timeout: &str, fate: Fate) -> anyhow::Result<(Value, usize)> {
    let configuration = format!(
        "mode: enforce\non_timeout: {on_timeout}\nhold_deadline_ms: {}",
        scaled(HOLD).as_millis()
    );
    let mut agent = Agent::start(&configuration)?;
    let stage = Stage::new()?;
    let pause = scaled(PAUSE).as_secs_f64().to_string();
    let client = stage.python("openai", &["--repeat", "2", "--pause", &pause])?.spawn()?;
    let deadline = Instant::now() + scaled(Duration::from_secs(15));
    while stage.provider.log.request_count() == 0 {
        ensure!(Instant::now() < deadline, "the first call did not arrive");
        std::thread::sleep(Duration::from_millis(2));
    }
    // The first answer is on its way; the pause has not ended.
    std::thread::sleep(scaled(PAUSE / 2));
    agent.signal(Signal::STOP)?;
    if fate == Fate::Killed {
        std::thread::sleep(scaled(PAUSE / 2 + HOLD / 4));
        agent.kill()?;
    }
    let finished = finish(client)?;
    let report = finished.report()?;
    if fate == Fate::Stopped {
        agent.signal(Signal::CONT)?;
    }
    let first = String::from_utf8_lossy(&finished.output.stdout).lines().next().map(str::to_owned);
    let first: Value = serde_json::from_str(&first.context("a first report")?)?;
    ensure!(first.get("ok") == Some(&Value::Bool(true)), "the first call failed: {first}");
    Ok((report, stage.provider.log.request_count()))
}

fn seconds(report: &Value) -> anyhow::Result<Duration> {
    Ok(Duration::from_secs_f64(report.get("seconds").and_then(Value::as_f64).context("seconds")?))
}

#[test]
fn a_held_request_passes_when_the_agent_is_killed_and_timeouts_are_open() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (report, arrived) = second_call("open", Fate::Killed)?;
    ensure!(
        report.get("ok") == Some(&Value::Bool(true)) && arrived == 2,
        "{report}, {arrived} arrived"
    );
    let took = seconds(&report)?;
    ensure!(took > scaled(HOLD / 5), "it was not held: {took:?}");
    ensure!(took < scaled(HOLD + GRACE), "it was held for {took:?}");
    Ok(())
}

#[test]
fn a_held_request_fails_when_the_agent_is_killed_and_timeouts_are_closed() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (report, arrived) = second_call("closed", Fate::Killed)?;
    ensure!(
        report.get("ok") == Some(&Value::Bool(false)) && arrived == 1,
        "{report}, {arrived} arrived"
    );
    let took = seconds(&report)?;
    ensure!(took < scaled(HOLD + GRACE), "the client knew only after {took:?}");
    Ok(())
}

#[test]
fn a_held_request_passes_at_its_deadline_when_the_agent_hangs_and_timeouts_are_open()
-> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (report, arrived) = second_call("open", Fate::Stopped)?;
    ensure!(
        report.get("ok") == Some(&Value::Bool(true)) && arrived == 2,
        "{report}, {arrived} arrived"
    );
    let took = seconds(&report)?;
    ensure!(took > scaled(HOLD / 2) && took < scaled(HOLD + GRACE), "it was held for {took:?}");
    Ok(())
}
