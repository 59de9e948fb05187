//! A budget for ten calls, and many more calls at the same time by real clients: ten arrive,
//! whatever happens to the agent.
//!
//! A call costs exactly the reservation: input is free, and each answer has the maximum number of
//! tokens. So exactly ten calls fit, also after calls have ended.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, finish, python, script};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{can_run, text};

/// Seven tokens of output at 100 USD for a million.
const NANO_USD_A_CALL: i64 = 700_000;
const LIMIT_CALLS: i64 = 10;
const LIMIT_NANO_USD: i64 = LIMIT_CALLS * NANO_USD_A_CALL;

const CONFIGURATION: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 3000
principals:
  - {name: assistant, match: {exe: "*/python3*"}, team: research, project: notes}
  - {name: shell, match: {exe: "*/curl"}, team: research, project: scripts}
budgets:
  - {name: ten-calls, team: research, unit: USD, limit: 0.007, period: total}
prices:
  overrides:
    - {model: gpt-4o-mini, input_per_million: 0, output_per_million: 100}
"#;

/// Calls of a burst, by client: 47 together.
const BURSTS: [(&str, &str); 2] = [("openai", "25"), ("requests", "12")];
const CURLS: usize = 10;
const CALLS: usize = 47;

/// Clients: two lasting Python programs, and as many `curl`s as a burst needs.
struct Clients<'a> {
    stage: &'a Stage,
    programs: Vec<(Child, BufReader<std::process::ChildStdout>)>,
    curls: Vec<Child>,
}

impl<'a> Clients<'a> {
    fn new(stage: &'a Stage) -> anyhow::Result<Self> {
        let mut programs = Vec::new();
        for (sdk, count) in BURSTS {
            let mut command = stage.command(python()?);
            command.arg(script("burst.py")).args([sdk, count, "--max-tokens", "7"]);
            let mut child = command.stdin(Stdio::piped()).spawn()?;
            let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
            output.read_line(&mut String::new())?;
            programs.push((child, output));
        }
        Ok(Self { stage, programs, curls: Vec::new() })
    }

    /// Starts all calls of a burst.
    fn begin(&mut self) -> anyhow::Result<()> {
        for (program, _) in &mut self.programs {
            program.stdin.as_mut().context("a pipe")?.write_all(b"\n")?;
        }
        let body = json!({
            "model": "gpt-4o-mini", "max_tokens": 7,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        });
        for _ in 0..CURLS {
            let url = "https://api.openai.com/v1/chat/completions";
            self.curls.push(self.stage.curl(url, &body).spawn()?);
        }
        Ok(())
    }

    /// Waits for the end of all calls; returns the numbers of answered and of failed calls.
    fn end(&mut self) -> anyhow::Result<(usize, usize)> {
        let (mut answered, mut failed) = (0, 0);
        for (_, output) in &mut self.programs {
            let mut line = String::new();
            output.read_line(&mut line)?;
            let outcomes: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            for (outcome, count) in outcomes.as_object().context("outcomes")? {
                let count = usize::try_from(count.as_u64().context("a count")?)?;
                *if outcome == "ok" { &mut answered } else { &mut failed } += count;
            }
        }
        for curl in std::mem::take(&mut self.curls) {
            let ok = finish(curl)?.output.status.success();
            *if ok { &mut answered } else { &mut failed } += 1;
        }
        ensure!(answered + failed == CALLS, "{answered} and {failed} of {CALLS} calls");
        Ok((answered, failed))
    }

    /// Stops all clients, or lets all go on.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let programs = self.programs.iter().map(|(it, _)| it);
        for child in programs.chain(&self.curls) {
            let pid = Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
            kill_process(pid, signal)?;
        }
        Ok(())
    }
}

impl Drop for Clients<'_> {
    fn drop(&mut self) {
        let programs = self.programs.iter_mut().map(|(it, _)| it);
        for child in programs.chain(&mut self.curls) {
            // The process has ended, or ends now.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

/// Account of the only budget, as reported by the agent, in nano-USD.
#[derive(Debug)]
struct Account {
    reserved: i64,
    consumed: i64,
    remaining: i64,
}

fn account() -> anyhow::Result<Option<Account>> {
    let said = Command::new(program()?).args(["budget", "--output", "json"]).output()?;
    ensure!(said.status.success(), "budget: {}", String::from_utf8_lossy(&said.stderr));
    let Some(line) = said.stdout.split(|it| *it == b'\n').find(|it| !it.is_empty()) else {
        return Ok(None);
    };
    let account: Value = serde_json::from_slice(line)?;
    let of = |key: &str| account.get(key).and_then(Value::as_i64).context(key.to_owned());
    let (reserved, consumed) = (of("reserved")?, of("consumed")?);
    ensure!(of("allocated")? == LIMIT_NANO_USD, "{account}");
    Ok(Some(Account { reserved, consumed, remaining: of("remaining")? }))
}

/// Returns the cost of `calls` calls, in nano-USD.
fn cost_of(calls: usize) -> anyhow::Result<i64> {
    Ok(i64::try_from(calls)? * NANO_USD_A_CALL)
}

/// Fails unless the log verifies: complete, with each account following from the previous account.
fn evidence_holds(agent: &Agent) -> anyhow::Result<()> {
    let verified =
        Command::new(program()?).args(["evidence", "verify"]).arg(agent.evidence()).output()?;
    let said = String::from_utf8_lossy(&verified.stdout);
    let why = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success(), "evidence verify: {said}{why}");
    Ok(())
}

#[test]
fn of_47_parallel_calls_a_budget_for_ten_lets_ten_through() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut clients = Clients::new(&stage)?;
    let mut agent = Agent::start(CONFIGURATION)?;
    clients.begin()?;
    let (answered, failed) = clients.end()?;
    let arrived = stage.provider.log.request_count();
    ensure!((answered, failed, arrived) == (10, 37, 10), "{answered}, {failed}, {arrived} arrived");

    let awus = agent.wait_for(CALLS, Duration::from_secs(5), |_| true)?;
    let of = |result: &str| {
        let of = |awu: &&Value| text(awu, "genops.policy.result") == Some(result);
        awus.iter().filter(of).collect::<Vec<_>>()
    };
    let (allowed, blocked) = (of("ALLOWED"), of("BLOCKED"));
    ensure!((allowed.len(), blocked.len()) == (10, 37), "{awus:#?}");
    for awu in allowed {
        let amounts = ["genops.accounting.reserved", "genops.accounting.actual"];
        ensure!(amounts.map(|it| awu.get(it)) == [Some(&json!(0.0007)); 2], "{awu:#}");
    }
    for awu in blocked {
        ensure!(text(awu, "genops.policy.reason_code") == Some("BUDGET_EXCEEDED"), "{awu:#}");
    }
    let Account { reserved, consumed, remaining } = account()?.context("an account")?;
    ensure!((reserved, consumed, remaining) == (0, LIMIT_NANO_USD, 0), "{reserved} {consumed}");
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    agent.stop()?;
    evidence_holds(&agent)
}

/// Number of kills, and longest time from the start of the burst to a kill, in milliseconds.
const ROUNDS: u64 = 10;
const SOON: u64 = 500;

/// Reads a number from the environment, for long runs by hand.
fn given(name: &'static str, otherwise: u64) -> anyhow::Result<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| text.parse().context(name))
}

/// The clients stand still while there is no agent. Requests sent before are held or released;
/// requests sent afterwards meet the next agent.
#[test]
fn of_parallel_calls_never_more_than_ten_arrive_although_the_agent_is_killed() -> anyhow::Result<()>
{
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut clients = Clients::new(&stage)?;
    let mut before = 0;
    let soon = given("GENOPS_BUDGET_KILL_MS", SOON)?;
    for round in 0..given("GENOPS_BUDGET_ROUNDS", ROUNDS)? {
        let mut agent = Agent::start(CONFIGURATION)?;
        clients.begin()?;
        let delay = Duration::from_millis(1 + random(soon));
        std::thread::sleep(delay);
        clients.signal(Signal::STOP)?;
        agent.kill()?;
        agent.restart()?;
        let arrived = |before: usize| stage.provider.log.request_count() - before;
        let (early, known) = (arrived(before), account()?);
        let charged = known.as_ref().map_or(0, |it| it.consumed + it.reserved);
        let place = format!("round {round}, killed after {delay:?}");
        ensure!(
            cost_of(early)? <= charged && charged <= LIMIT_NANO_USD,
            "{place}: {early} calls arrived, and the accounts say {known:?}"
        );
        clients.signal(Signal::CONT)?;
        clients.end()?;
        // Use up the rest of the budget.
        clients.begin()?;
        clients.end()?;
        let (late, known) = (arrived(before), account()?.context("an account")?);
        eprintln!("{place}: {early} calls arrived before and {} after", late - early);
        ensure!(
            late <= 10,
            "{place}: {late} calls arrived, and the accounts say {known:?}; allowed since: {:#?}",
            agent
                .awus()
                .iter()
                .filter(|it| text(it, "genops.policy.result") != Some("BLOCKED"))
                .collect::<Vec<_>>()
        );
        ensure!(
            (known.reserved, known.consumed, known.remaining) == (0, LIMIT_NANO_USD, 0),
            "{place}: {late} calls arrived, and the accounts say {known:?}"
        );
        agent.stop()?;
        evidence_holds(&agent).context(place)?;
        before += late;
    }
    Ok(())
}

/// Returns a random number below `limit`.
fn random(limit: u64) -> u64 {
    // Each `RandomState` has keys of its own, from the kernel.
    RandomState::new().hash_one(0) % limit
}
