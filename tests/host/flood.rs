//! Refusals by the thousand: the agent counts them, and closes the provider to the refused user
//! alone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use genops_ebpf_common::{Hold, LAYOUT};
use genops_tests::agent::Agent;
use genops_tests::clients::{Finished, Stage, finish, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::evidence::{both_accept, evidence};
use crate::support::{Unpinned, can_run, copy_of, has_bpf_files, int, text};

/// Duration of the flood, in seconds: longer if everything is slower.
fn flood_s() -> u64 {
    scaled(Duration::from_secs(6)).as_secs()
}

/// A program without any allowed provider, beside allowed programs of the same user and another.
fn configuration(hammer: &str) -> String {
    format!(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: 20000\n\
         principals:\n\
         \x20 - {{name: hammer, match: {{exe: \"{hammer}\"}}, team: research, project: notes}}\n\
         \x20 - {{name: others, match: {{exe: \"*/python3*\"}}, team: research, project: calm}}\n\
         policies: [{{name: none, principal: hammer, allowed_providers: [anthropic]}}]"
    )
}

/// A client waiting for a line.
struct Calm(Child);

impl Calm {
    /// A client with a connection.
    fn start(command: Command) -> anyhow::Result<Self> {
        Self::ready(command, &["calm"])
    }

    /// A client that was refused once.
    fn refused(command: Command, seconds: u64) -> anyhow::Result<Self> {
        Self::ready(command, &["loop", &seconds.to_string()])
    }

    fn ready(mut command: Command, arguments: &[&str]) -> anyhow::Result<Self> {
        command.arg(script("flood.py")).args(arguments).stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        let out = child.stdout.as_mut().context("a pipe")?;
        BufReader::with_capacity(6, out).read_line(&mut line)?;
        if line != "ready\n" {
            let ended = finish(child)?;
            anyhow::bail!("`{line}`: {}", ended.stderr());
        }
        Ok(Self(child))
    }

    fn watch(&mut self, how_long: Duration) -> anyhow::Result<()> {
        let input = self.0.stdin.as_mut().context("a pipe")?;
        Ok(writeln!(input, "watch {}", how_long.as_secs_f64())?)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let input = self.0.stdin.as_mut().context("a pipe")?;
        Ok(writeln!(input)?)
    }

    fn finish(mut self) -> anyhow::Result<Finished> {
        drop(self.0.stdin.take());
        finish(self.0)?.succeeded()
    }
}

fn of_another_user(stage: &Stage) -> Command {
    let mut command = stage.command("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "/usr/bin/python3"]);
    command
}

/// Numbers of units and records of a process in the log.
fn written_of(records: &[Value], pid: u32) -> (u64, usize) {
    let of_process =
        |it: &&Value| it.pointer("/who/pid").and_then(Value::as_u64) == Some(pid.into());
    let all: Vec<&Value> = records.iter().filter(of_process).collect();
    let units = all.iter().map(|it| match text(it, "type") {
        Some("decision") => 1,
        Some("folded") => it.pointer("/fold/n").and_then(Value::as_u64).unwrap_or(0),
        _ => 0,
    });
    (units.sum(), all.len())
}

/// A connect: time in milliseconds, and result.
#[derive(Debug)]
struct Tried {
    at_ms: u64,
    said: String,
}

impl Tried {
    fn of(value: &Value) -> anyhow::Result<Self> {
        let at_ms = value.get(0).and_then(Value::as_u64).context("when")?;
        let said = value.get(1).and_then(Value::as_str).context("what")?;
        Ok(Self { at_ms, said: said.to_owned() })
    }

    /// All connects of a report. Fails if a call on the open connection did not pass.
    fn all(report: &Value) -> anyhow::Result<Vec<Self>> {
        let all = report.as_array().context("a list")?;
        let ended = all.iter().find(|it| it.get(2) != Some(&json!("passed")));
        ensure!(ended.is_none(), "what is connected goes on: {ended:?}");
        all.iter().map(Self::of).collect()
    }
}

/// Times of the refusals in a flood, in milliseconds.
struct Flood(Vec<u64>);

impl Flood {
    /// Times from a first time and the steps after.
    fn of(steps: impl Iterator<Item = u64>) -> Self {
        let later = |at: &mut u64, step| {
            *at += step;
            Some(*at)
        };
        Self(steps.scan(0, later).collect())
    }

    /// Whether the flood was above the rate during the whole span.
    fn lasts(&self, from_ms: u64, to_ms: u64) -> bool {
        let around = self.0.first().is_some_and(|it| *it <= from_ms)
            && self.0.last().is_some_and(|it| *it >= to_ms);
        let mut seconds = self.0.windows(101).filter_map(|it| Some((*it.first()?, *it.last()?)));
        around && seconds.all(|(first, last)| last < from_ms || first > to_ms || last - first < 800)
    }

    /// Whether the kernel has to refuse connects of the user: the flood lasts long enough for the
    /// agent.
    fn refuses(&self, at_ms: u64) -> bool {
        self.lasts(at_ms.saturating_sub(millis(scaled(Duration::from_secs(2)))), at_ms)
    }

    /// Whether the second after the flood is over, and time for the agent's backlog.
    fn is_over(&self, at_ms: u64) -> bool {
        let late = Duration::from_secs(1) + scaled(Duration::from_secs(1));
        self.0.last().is_none_or(|it| *it + millis(late) < at_ms)
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// First connects of new processes during the flood: of the same user, and of another.
fn newcomers(stage: &Stage) -> anyhow::Result<[Tried; 2]> {
    let once = |mut command: Command| {
        Tried::of(&run(command.arg(script("flood.py")).arg("once"))?.succeeded()?.report()?)
    };
    Ok([once(stage.command("/usr/bin/python3"))?, once(of_another_user(stage))?])
}

#[test]
fn a_flood_of_refusals_is_counted_and_keeps_nobody_but_its_user_from_connecting()
-> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("flood")?;
    let hammer = copy_of("/usr/bin/python3", &scratch, "hammer")?;
    let mut agent = Agent::start(&configuration(&hammer))?;
    let stage = Stage::new()?;
    let mut same_user = Calm::start(stage.command("/usr/bin/python3"))?;
    let mut other_user = Calm::start(of_another_user(&stage))?;

    let mut command = stage.command(&hammer);
    command.arg(script("flood.py")).args(["hammer", &flood_s().to_string()]);
    let child = command.spawn()?;
    let how_long = scaled(Duration::from_secs(5)) + Duration::from_secs(flood_s());
    same_user.watch(how_long)?;
    other_user.watch(how_long)?;
    std::thread::sleep(scaled(Duration::from_secs(4)));
    let [same_new, other_new] = newcomers(&stage)?;
    let flooded = finish(child)?.succeeded()?;
    let (same_user, other_user) = (same_user.finish()?, other_user.finish()?);

    let report = flooded.report()?;
    ensure!(text(&report, "first") == Some("ended"), "{report}");
    let refused = report.get("refused").and_then(Value::as_array).context("a list")?;
    let flood = Flood::of(refused.iter().filter_map(Value::as_u64));
    let others = Tried::all(&other_user.report()?)?;
    let kept = others.iter().find(|it| it.said != "passed");
    ensure!(kept.is_none() && other_new.said == "passed", "{kept:?} {other_new:?}");
    // There is no gap during the flood; afterwards, connects pass.
    let tried = Tried::all(&same_user.report()?)?;
    let too_many: Vec<&Tried> = tried.iter().filter(|it| flood.refuses(it.at_ms)).collect();
    ensure!(too_many.len() > 10, "no flood: {} of {tried:?}", flood.0.len());
    let gap = too_many.iter().find(|it| it.said != "EPERM");
    ensure!(gap.is_none(), "a gap at {gap:?} in {:?}", flood.0);
    let in_time = flood.refuses(same_new.at_ms);
    ensure!(!in_time || same_new.said == "EPERM", "{same_new:?} in {:?}", flood.0);
    let mut after = tried.iter().filter(|it| flood.is_over(it.at_ms)).peekable();
    ensure!(after.peek().is_some() && after.all(|it| it.said == "passed"), "{tried:?}");

    let of_calm = |awu: &Value| {
        int(awu, "process.pid") == Some(same_user.pid.into())
            && text(awu, "genops.policy.result") == Some("BLOCKED")
    };
    let kept = tried.iter().filter(|it| it.said == "EPERM").count();
    let units = agent.wait_for(kept, Duration::from_secs(5), of_calm)?;
    let reason = |it: &&Value| text(it, "genops.policy.reason_code") == Some("x_too_many_refusals");
    ensure!(units.iter().filter(reason).count() == kept, "{units:?}");

    let (lost, _) = (agent.losses()?, agent.stop()?);
    let records = written(&agent)?;
    both_accept(&agent.evidence())?;
    let (units, lines) = written_of(&records, flooded.pid);
    let connects = u64::try_from(flood.0.len())?;
    // The first call, and each connect.
    ensure!(units == connects + 1 || !lost.is_empty(), "{units} of {connects}: {lost:?}");
    let seconds = usize::try_from(flood_s())?;
    ensure!(lines <= 6 + 3 * seconds, "{lines} records of {connects} connects");
    Ok(())
}

/// All evidence records of an agent.
fn written(agent: &Agent) -> anyhow::Result<Vec<Value>> {
    let directory = agent.evidence();
    let shown = evidence(&["show", directory.to_str().context("a path")?, "--output", "json"])?;
    let lines = String::from_utf8(shown.stdout)?;
    Ok(lines.lines().filter_map(|it| serde_json::from_str(it).ok()).collect())
}

/// Connects of a process that connects in a loop, refused as often as said.
fn refused_in_loop(agent: &Agent, looped: &Finished) -> anyhow::Result<()> {
    let report = looped.report()?;
    ensure!(text(&report, "first") == Some("ended"), "{report}");
    let refused = report.get("refused").and_then(Value::as_u64).context("a number")?;
    let records = written(agent)?;
    both_accept(&agent.evidence())?;
    let (units, lines) = written_of(&records, looped.pid);
    ensure!(refused > 1_000 && units == refused + 1, "{units} of {refused} and the first call");
    let seconds = usize::try_from(flood_s())?;
    ensure!(lines <= 6 + 3 * seconds, "{lines} records of {refused} connects");
    Ok(())
}

#[test]
fn connects_in_a_loop_are_all_counted_and_take_no_room_from_others() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("flood")?;
    let hammer = copy_of("/usr/bin/python3", &scratch, "hammer")?;
    let mut agent = Agent::start(&configuration(&hammer))?;
    let stage = Stage::new()?;
    let mut other_user = Calm::start(of_another_user(&stage))?;
    let mut looping = Calm::refused(stage.command(&hammer), flood_s())?;
    other_user.watch(Duration::from_secs(flood_s()))?;
    looping.begin()?;
    let looped = looping.finish()?;
    let others = Tried::all(&other_user.finish()?.report()?)?;
    let kept = others.iter().find(|it| it.said != "passed");
    ensure!(kept.is_none() && others.len() > 10, "{kept:?}");
    let lost = agent.losses()?;
    ensure!(lost.is_empty(), "{lost:?}");
    agent.stop()?;
    refused_in_loop(&agent, &looped)
}

#[test]
fn connects_in_a_loop_while_no_agent_runs_are_counted_by_the_next() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let directory = format!("/sys/fs/bpf/genops-counts-{}", std::process::id());
    let scratch = Scratch::new("flood")?;
    let hammer = copy_of("/usr/bin/python3", &scratch, "hammer")?;
    let configuration = format!("{}\npin_directory: {directory}", configuration(&hammer));
    let mut agent = Agent::start(&configuration)?;
    let _unpinned = Unpinned(agent.config());
    let stage = Stage::new()?;
    let mut looping = Calm::refused(stage.command(&hammer), flood_s())?;
    agent.kill()?;
    looping.begin()?;
    std::thread::sleep(Duration::from_secs(flood_s()) / 2);
    agent.restart()?;
    std::thread::sleep(Duration::from_secs(flood_s()) / 4);
    // An agent that stops leaves nothing uncounted, and the next counts nothing twice.
    agent.stop()?;
    agent.restart()?;
    let looped = looping.finish()?;
    agent.stop()?;
    refused_in_loop(&agent, &looped)
}

#[test]
fn what_is_refused_now_and_then_has_its_own_records() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("flood")?;
    let hammer = copy_of("/usr/bin/python3", &scratch, "hammer")?;
    let mut agent = Agent::start(&configuration(&hammer))?;
    let stage = Stage::new()?;
    let mut command = stage.command(&hammer);
    command.arg(script("flood.py")).args(["hammer", "0.0001"]);
    let flooded = run(&mut command)?.succeeded()?;
    agent.stop()?;
    let records = written(&agent)?;
    ensure!(!records.iter().any(|it| text(it, "type") == Some("folded")), "{records:?}");
    ensure!(written_of(&records, flooded.pid).0 == 2, "{records:?}");
    Ok(())
}

/// Waiting writes known to the kernel programs.
fn holds(pins: &Path) -> anyhow::Result<usize> {
    let map = Map::HashMap(MapData::from_pin(pins.join("HOLDS"))?);
    Ok(HashMap::<MapData, u64, Hold>::try_from(map)?.keys().flatten().count())
}

/// TLS objects freed without a socket keep no place: the map of holds is common to all users.
#[test]
fn writes_into_memory_leave_no_holds() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let directory = format!("/sys/fs/bpf/genops-places-{}", std::process::id());
    let scratch = Scratch::new("places")?;
    let hammer = copy_of("/usr/bin/python3", &scratch, "hammer")?;
    let agent = Agent::start(&format!("{}\npin_directory: {directory}", configuration(&hammer)))?;
    let _unpinned = Unpinned(agent.config());
    let stage = Stage::new()?;
    let mut command = stage.command(&hammer);
    command.arg(script("flood.py")).args(["objects", "400"]);
    let begun = std::time::Instant::now();
    let writer = command.spawn()?;
    let pins = Path::new(&directory).join(format!("v{LAYOUT}/maps"));
    let mut most = 0;
    while begun.elapsed() < scaled(Duration::from_secs(4)) {
        most = most.max(holds(&pins)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    finish(writer)?.succeeded()?;
    let left = holds(&pins)?;
    ensure!(most > 0 && left < 20, "{left} of 400 holds, {most} at most");
    Ok(())
}
