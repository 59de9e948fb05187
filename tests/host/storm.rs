//! Thousands of requests from many processes at full speed, a tenth of them denied, while the agent
//! keeps running, or is killed, frozen and restarted.
//!
//! Each request asks for a different model, so that the client's report, the provider's log and the
//! agent's units can be compared request by request.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::client::Attempt;
use genops_tests::clients::Stage;
use genops_tests::patience::scaled;
use rustix::process::Signal;

use crate::compare::agree;
use crate::support::{can_run, int, text};

const PROCESSES: usize = 50;
const DENY_EVERY: usize = 10;
/// Number of storms.
const STORMS: usize = 3;
/// Long enough for two cores shared by all processes of the test.
const HOLD: Duration = Duration::from_secs(20);
/// Number of blows of each kind.
const ROUNDS: usize = 2;
/// Maximum hold of a request while the agent is killed and frozen.
const SHORT_HOLD: Duration = Duration::from_secs(1);
/// Time added to the hold by a client: a handshake, TCP's own timer, and fifty others on two cores.
const GRACE: Duration = Duration::from_secs(4);

/// Requests of a storm: ten thousand, or `GENOPS_STORM_REQUESTS`.
fn requests() -> anyhow::Result<usize> {
    match std::env::var("GENOPS_STORM_REQUESTS") {
        Ok(text) => text.parse().context("GENOPS_STORM_REQUESTS"),
        Err(_) => Ok(10_000),
    }
}

fn enforcing(on_timeout: &str, hold: Duration) -> String {
    format!(
        "mode: enforce\non_timeout: {on_timeout}\nhold_deadline_ms: {}\n\
         principals:\n  - {{name: crowd, match: {{exe: \"*/genops-tests\"}}, team: load, project: storm}}\n\
         policies:\n  - {{name: no-pro, denied_models: [\"*-pro\"], enforcement: block}}\n",
        scaled(hold).as_millis()
    )
}

/// Thread reading the report of a process: the report is longer than a pipe holds.
type Client = JoinHandle<std::io::Result<Output>>;

/// Starts the processes, each with an equal share of the requests.
fn unleash(stage: &Stage) -> anyhow::Result<Vec<Client>> {
    let each = requests()? / PROCESSES;
    let start = |_| {
        let mut client = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
        client.args(["client", "--address", &stage.provider.address.to_string(), "--root"]);
        client.arg(stage.root()).args(["--requests", &each.to_string()]);
        client.args(["--deny-every", &DENY_EVERY.to_string()]).stdin(Stdio::null());
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(std::thread::spawn(|| client.wait_with_output()))
    };
    (0..PROCESSES).map(start).collect()
}

/// Waits for the processes and returns the result of every request.
fn reports(clients: Vec<Client>) -> anyhow::Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for client in clients {
        let output = client.join().ok().context("a reading thread panicked")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "a client failed: {said}");
        attempts.extend(serde_json::from_slice::<Vec<Attempt>>(&output.stdout)?);
    }
    Ok(attempts)
}

fn models(attempts: &[Attempt], answered: bool) -> BTreeSet<String> {
    attempts.iter().filter(|it| it.answered == answered).map(|it| it.model.clone()).collect()
}

/// Fails unless every denied request is absent from the provider, every allowed request is present,
/// and each request has a single unit.
fn storm() -> anyhow::Result<()> {
    let stage = Stage::watching("-pro\"")?;
    let mut agent = Agent::start(&enforcing("closed", HOLD))?;
    let begun = Instant::now();
    let attempts = reports(unleash(&stage)?)?;
    eprintln!("  {} requests in {:.1} s", attempts.len(), begun.elapsed().as_secs_f64());
    let (answered, failed) = (models(&attempts, true), models(&attempts, false));
    let is_denied = |model: &String| model.ends_with("-pro");
    ensure!(
        failed.iter().all(is_denied),
        "allowed requests failed: {:?}",
        failed.iter().find(|it| !is_denied(it))
    );
    ensure!(!answered.iter().any(is_denied), "denied requests were answered");
    ensure!(failed.len() == attempts.len() / DENY_EVERY, "{} requests failed", failed.len());

    let arrived: Vec<_> =
        stage.provider.log.requests().into_iter().filter_map(|it| it.model).collect();
    ensure!(arrived.len() == answered.len(), "{} requests arrived", arrived.len());
    ensure!(
        arrived.into_iter().collect::<BTreeSet<_>>() == answered,
        "others arrived than were answered"
    );

    agent.wait_for(attempts.len(), Duration::from_secs(30), |awu| {
        text(awu, "gen_ai.request.model").is_some()
    })?;
    std::thread::sleep(Duration::from_millis(500));
    let mut units = BTreeMap::new();
    for awu in agent.awus() {
        let model =
            text(&awu, "gen_ai.request.model").context("a unit without its model")?.to_owned();
        let result = text(&awu, "genops.policy.result").context("a result")?.to_owned();
        ensure!(units.insert(model, result).is_none(), "a second unit: {awu:#}");
    }
    ensure!(units.len() == attempts.len(), "{} units of {} requests", units.len(), attempts.len());
    let wrong = units.iter().find(|(model, result)| is_denied(model) != (*result == "BLOCKED"));
    ensure!(wrong.is_none(), "decided wrongly: {wrong:?}");
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    agent.stop()?;
    agree(&agent.evidence(), &[stage.log_file()])
}

#[test]
fn of_ten_thousand_requests_the_denied_never_arrive_and_each_has_one_unit() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    (0..STORMS).try_for_each(|_| storm())
}

/// Pseudorandom numbers, the same for the same seed (`SplitMix64`).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % end
    }

    /// Takes the seed from `GENOPS_STORM_SEED`, or from the clock; prints the seed.
    fn new() -> anyhow::Result<Self> {
        let seed = match std::env::var("GENOPS_STORM_SEED") {
            Ok(text) => text.parse().context("GENOPS_STORM_SEED")?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos().into(),
        };
        eprintln!("  GENOPS_STORM_SEED={seed}");
        Ok(Self(seed))
    }
}

/// Disturbance of the agent.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// `SIGSTOP`, and later `SIGCONT`.
    Frozen,
    /// `kill -9`, and a restart.
    Killed,
    /// `SIGTERM`, and a restart.
    Stopped,
}

/// Returns each blow `ROUNDS` times, in a pseudorandom order.
fn blows(chance: &mut Chance) -> Vec<Blow> {
    let mut blows = [Blow::Frozen, Blow::Killed, Blow::Stopped].repeat(ROUNDS);
    for end in (2..=blows.len()).rev() {
        let other = usize::try_from(chance.below(end as u64)).unwrap_or(0);
        blows.swap(end - 1, other);
    }
    blows
}

/// Clients asking at full speed, again and again: without an agent, a set of clients is soon done.
struct Crowd<'a> {
    stage: &'a Stage,
    clients: Vec<Client>,
    attempts: Vec<Attempt>,
}

impl Crowd<'_> {
    /// Lets time pass, and starts the next clients when all clients are done.
    fn rage(&mut self, milliseconds: u64) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end {
            if self.clients.iter().all(JoinHandle::is_finished) {
                let done = std::mem::replace(&mut self.clients, unleash(self.stage)?);
                self.attempts.extend(reports(done)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Kills, freezes and restarts the agent in a storm, and returns the results of the requests.
fn harass(stage: &Stage, agent: &mut Agent) -> anyhow::Result<Vec<Attempt>> {
    let mut chance = Chance::new()?;
    let mut crowd = Crowd { stage, clients: unleash(stage)?, attempts: Vec::new() };
    for blow in blows(&mut chance) {
        crowd.rage(300 + chance.below(1_500))?;
        match blow {
            Blow::Frozen => {
                agent.signal(Signal::STOP)?;
                crowd.rage(chance.below(2_000))?;
                agent.signal(Signal::CONT)?;
                continue;
            }
            Blow::Killed => agent.kill()?,
            Blow::Stopped => drop(agent.stop()?),
        }
        crowd.rage(chance.below(500))?;
        agent.restart()?;
    }
    let Crowd { clients, mut attempts, .. } = crowd;
    attempts.extend(reports(clients)?);
    Ok(attempts)
}

#[test]
fn an_agent_that_dies_in_a_storm_hangs_nobody_and_invents_nothing() -> anyhow::Result<()> {
    death_in_a_storm("closed")
}

/// A request passing at the deadline is reported as passed.
#[test]
fn an_agent_that_dies_in_a_storm_and_lets_pass_invents_nothing() -> anyhow::Result<()> {
    death_in_a_storm("open")
}

fn death_in_a_storm(on_timeout: &str) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut agent = Agent::start(&enforcing(on_timeout, SHORT_HOLD))?;
    let attempts = harass(&stage, &mut agent)?;
    let longest = attempts.iter().map(|it| it.seconds).fold(0.0, f64::max);
    eprintln!("  {} requests, the longest took {longest:.2} s", attempts.len());
    ensure!(longest < scaled(SHORT_HOLD + GRACE).as_secs_f64(), "a request took {longest} s");

    let arrived = stage.provider.log.requests();
    let arrived: BTreeMap<_, _> =
        arrived.into_iter().filter_map(|it| Some((it.model?, it.connection))).collect();
    let connections = stage.provider.log.connections();
    let (mut decided, mut joined) = (BTreeMap::new(), 0);
    for awu in agent.awus() {
        let Some(model) = text(&awu, "gen_ai.request.model") else { continue };
        // A wrong join would name another connection's address.
        let port = int(&awu, "network.local.port");
        let request = arrived.get(model);
        let connection = request.and_then(|it| connections.get(*it));
        if let (Some(port), Some(connection)) = (port, connection) {
            ensure!(
                port == u64::from(connection.peer.port()),
                "it came from {}: {awu:#}",
                connection.peer
            );
        }
        joined += usize::from(port.is_some());
        if text(&awu, "genops.policy.result") == Some("BLOCKED") {
            ensure!(request.is_none(), "a blocked request arrived: {awu:#}");
        }
        *decided.entry(model.to_owned()).or_insert(0) += 1;
    }
    eprintln!("  {} units, {joined} of them with an address", decided.len());
    let twice: Vec<_> = decided.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(twice.is_empty(), "more than one unit: {twice:?}");
    agent.stop()?;
    evidence_is_sound(&agent)
}

/// Fails unless the evidence verifies and records a gap for the agent's absence.
fn evidence_is_sound(agent: &Agent) -> anyhow::Result<()> {
    let run = |command: &str| {
        let mut evidence = Command::new(program()?);
        Ok::<_, anyhow::Error>(evidence.args(["evidence", command]).arg(agent.evidence()).output()?)
    };
    let verified = run("verify")?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let shown = String::from_utf8(run("show")?.stdout)?;
    ensure!(shown.contains("gap"), "no gap is recorded");
    Ok(())
}
