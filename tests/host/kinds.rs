//! Every kind of client: nothing of a denied call arrives, and an allowed call at the same time is
//! answered.

use std::io::Write as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Asking, Finished, KINDS, Kind, MORE_KINDS, Stage, finish};
use genops_tests::patience::scaled;
use serde_json::Value;

use crate::support::{assert_says, can_run, int, text};

const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: anyone, match: {exe: "*"}, team: all, project: kinds}
policies:
  - {name: no-pro-models, denied_models: ["*-pro"], enforcement: block}
"#;
/// Longest time until a file has probes, on a busy machine.
const WARM_UP: Duration = Duration::from_secs(40);
/// Allowed calls beside each denied call.
const BESIDE: usize = 2;
const ALLOWED: Asking<'_> = Asking { model: "gpt-4o-mini", then: None };
const DENIED: Asking<'_> = Asking { model: "o1-pro", then: None };

fn spawn(command: anyhow::Result<Command>) -> anyhow::Result<Child> {
    Ok(command?.spawn()?)
}

/// Returns the time until the client's call failed.
fn failed_after(denied: &Finished) -> anyhow::Result<Duration> {
    let report = denied.report()?;
    let failed = report.get("ok").map_or(!denied.output.status.success(), |ok| *ok == false);
    ensure!(failed, "the denied call went through: {report}");
    let seconds = report.get("seconds").and_then(Value::as_f64).context("seconds")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Checks a denied call and `BESIDE` allowed calls of the same kind, at the same time.
fn denied_beside_allowed(agent: &Agent, (_, client): &Kind) -> anyhow::Result<()> {
    let (stage, elsewhere) = (Stage::with(true)?, Stage::with(true)?);
    let allowed: Vec<_> =
        (0..BESIDE).map(|_| spawn(client(&elsewhere, &ALLOWED))).collect::<anyhow::Result<_>>()?;
    let denied = finish(spawn(client(&stage, &DENIED))?)?;
    let allowed: Vec<_> = allowed
        .into_iter()
        .map(|child| finish(child)?.succeeded())
        .collect::<anyhow::Result<_>>()?;

    let took = failed_after(&denied)?;
    ensure!(took < scaled(Duration::from_secs(1)), "the client knew only after {took:?}");
    std::thread::sleep(scaled(Duration::from_millis(100)));
    // If the request follows the handshake at once, even the end of the handshake may be missing.
    let connections = stage.provider.log.connections();
    let arrived = connections.iter().find(|connection| connection.has_request());
    ensure!(arrived.is_none(), "of the denied request arrived {arrived:?}");
    ensure!(stage.provider.log.request_count() == 0, "the denied request arrived");
    let awu = agent.only_awu_of(denied.pid)?;
    assert_says(&awu, &[("genops.policy.result", "BLOCKED".into())]);
    let mechanism = text(&awu, "genops.enforcement.mechanism").unwrap_or_default();
    ensure!(
        ["lsm", "egress_hold", "connect"].contains(&mechanism),
        "denied by the mechanism `{mechanism}`: {awu:#}"
    );

    let answered = elsewhere.provider.log.request_count();
    ensure!(answered == BESIDE, "{answered} of {BESIDE} allowed calls arrived");
    for call in allowed {
        if let Ok(report) = call.report() {
            ensure!(
                report.get("error").is_none_or(Value::is_null),
                "an allowed call failed: {report}"
            );
        }
        let awu = agent.only_awu_of(call.pid)?;
        assert_says(&awu, &[("http.response.status_code", 200.into())]);
        let mechanism = text(&awu, "genops.enforcement.mechanism").unwrap_or_default();
        ensure!(mechanism != "none", "an allowed call was not held: {awu:#}");
    }
    Ok(())
}

fn only_the_denied_are_stopped(kinds: &[Kind]) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(ENFORCING)?;
    warm_up(&agent, kinds)?;
    let tried = kinds.iter().map(|kind| (kind.0, denied_beside_allowed(&agent, kind)));
    failures_of(kinds.len(), tried)?;
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}

#[test]
fn a_denied_call_of_each_kind_never_arrives_and_an_allowed_one_does() -> anyhow::Result<()> {
    only_the_denied_are_stopped(KINDS)
}

#[test]
fn a_denied_call_of_more_kinds_never_arrives_and_an_allowed_one_does() -> anyhow::Result<()> {
    only_the_denied_are_stopped(MORE_KINDS)
}

/// Calls with each kind until the capture is full: the agent may miss the first program to run a
/// file, or read the program from the middle of its call on, with another unit.
fn warm_up(agent: &Agent, kinds: &[Kind]) -> anyhow::Result<()> {
    let deadline = Instant::now() + scaled(WARM_UP);
    for (name, client) in kinds {
        loop {
            let stage = Stage::with(true)?;
            let finished = finish(spawn(client(&stage, &ALLOWED))?)?.succeeded()?;
            let of_process = |awu: &Value| int(awu, "process.pid") == Some(finished.pid.into());
            let awus = agent.wait_for(1, Duration::from_secs(5), of_process)?;
            let is_full = |awu: &Value| text(awu, "genops.capture.level") == Some("full");
            if awus.iter().all(is_full) {
                break;
            }
            ensure!(Instant::now() < deadline, "{name}: not captured after {WARM_UP:?}: {awus:#?}");
        }
    }
    Ok(())
}

/// Fails with all failures, not with the first.
fn failures_of(
    all: usize,
    results: impl Iterator<Item = (&'static str, anyhow::Result<()>)>,
) -> anyhow::Result<()> {
    let failed = results.filter_map(|(name, result)| Some(format!("{name}: {:#}", result.err()?)));
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{} of {all} kinds:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// Starts a client of each kind able to wait, and waits for the first call; the second call is to
/// be denied.
fn waiting() -> anyhow::Result<Vec<Waiting>> {
    let asking = Asking { model: "gpt-4o-mini", then: Some("o1-pro") };
    let all = KINDS.iter().chain(MORE_KINDS);
    let kinds = all.filter(|(name, _)| !name.starts_with("curl"));
    let clients = kinds.map(|&(name, client)| {
        let stage = Stage::with(true)?;
        let child = spawn(client(&stage, &asking)).context(name)?;
        Ok(Waiting { name, stage, child })
    });
    let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
    for Waiting { name, stage, .. } in &clients {
        stage.provider.log.wait_for_requests(1, Duration::from_mins(1)).context(*name)?;
    }
    Ok(clients)
}

/// Client between the two calls.
struct Waiting {
    name: &'static str,
    stage: Stage,
    child: Child,
}

impl Waiting {
    /// Lets the client go on. Fails unless the second call was denied on the connection of the
    /// first.
    fn goes_on_in_vain(self, agent: &Agent) -> anyhow::Result<()> {
        let Self { stage, mut child, .. } = self;
        child.stdin.take().context("a pipe")?.write_all(b"\n")?;
        let finished = finish(child)?;
        let took = failed_after(&finished)?;
        ensure!(took < scaled(Duration::from_secs(1)), "the client knew only after {took:?}");
        let connections = stage.provider.log.connections();
        ensure!(connections.len() == 1, "the client opened {} connections", connections.len());
        ensure!(stage.provider.log.request_count() == 1, "the denied request arrived");
        let awu = agent.only_awu_of(finished.pid)?;
        assert_says(&awu, &[("genops.policy.result", "BLOCKED".into())]);
        Ok(())
    }
}

fn all_are_denied(clients: Vec<Waiting>, agent: &Agent) -> anyhow::Result<()> {
    let all = clients.len();
    failures_of(all, clients.into_iter().map(|client| (client.name, client.goes_on_in_vain(agent))))
}

#[test]
fn a_connection_that_is_older_than_the_agent_is_governed_from_its_next_request()
-> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    Agent::end_shared();
    let clients = waiting()?;
    let agent = Agent::start(ENFORCING)?;
    all_are_denied(clients, &agent)
}

#[test]
fn an_open_connection_is_governed_after_a_restart_of_the_agent() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut first = Agent::start(ENFORCING)?;
    let clients = waiting()?;
    first.stop()?;
    let second = Agent::start(ENFORCING)?;
    all_are_denied(clients, &second)
}
