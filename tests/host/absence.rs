//! Refusals while no agent runs, or another agent: after a stop or a kill, with another binary,
//! another layout, or an unreadable configuration.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::support::{Unpinned, can_run, copy_of, has_bpf_files};

/// Duration of each absence.
const AWAY: Duration = Duration::from_millis(1_500);

/// Returns the pin directory for the agent of a test.
fn place_of(name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/genops-{name}-{}", std::process::id()))
}

/// Starts an agent refusing every program outright, with separate pins.
fn refusing(name: &str, on_timeout: &str, more: &str) -> anyhow::Result<(Agent, PathBuf)> {
    let directory = place_of(name);
    let agent = Agent::start(&format!(
        "mode: enforce\non_timeout: {on_timeout}\nunmapped: block\nhold_deadline_ms: {}\n\
         pin_directory: {}\n{more}",
        scaled(Duration::from_millis(400)).as_millis(),
        directory.display()
    ))?;
    Ok((agent, directory))
}

/// Puts a typo into the configuration file, and returns the text before.
fn spoil(agent: &Agent) -> anyhow::Result<String> {
    let before = std::fs::read_to_string(agent.config())?;
    std::fs::write(agent.config(), before.replacen("unmapped:", "unmaped:", 1))?;
    Ok(before)
}

/// Events for an agent, one after another, while the refused program goes on.
type Fate<'a> = &'a dyn Fn(&mut Agent) -> anyhow::Result<()>;

/// A stop, a kill, and a kill with a typo in the configuration.
fn befall(agent: &mut Agent) -> anyhow::Result<()> {
    let away = || std::thread::sleep(scaled(AWAY));
    agent.stop()?;
    away();
    let said = agent.stderr();
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.contains("stay") && last.contains("`genops-agent unpin`"), "last line: {last}");
    agent.restart()?;
    agent.kill()?;
    away();
    agent.restart()?;
    agent.kill()?;
    let before = spoil(agent)?;
    away();
    agent.restart()?;
    let (status, ready) = agent.get("/readyz")?;
    ensure!(status == 200 && ready.contains("last good configuration"), "{status}: {ready}");
    let refused = agent.metrics()?.into_iter().find(|it| it.0.contains("configuration_refused"));
    ensure!(refused.is_some_and(|it| it.1 > 0.0), "no metric says so");
    std::fs::write(agent.config(), before)?;
    away();
    let (_, ready) = agent.get("/readyz")?;
    ensure!(!ready.contains("last good"), "{ready}");
    Ok(())
}

/// Copies the agent's program to a new file in another directory.
fn another_file(scratch: &Scratch, place: &str) -> anyhow::Result<PathBuf> {
    let place = scratch.join(place);
    std::fs::create_dir(&place)?;
    let copy = place.join("genops-agent");
    std::fs::copy(program()?, &copy)?;
    Ok(copy)
}

/// Restarts the agent from another file after a stop, at once and later; then from the first file
/// after a kill.
fn upgrade(agent: &mut Agent) -> anyhow::Result<()> {
    let away = || std::thread::sleep(scaled(AWAY));
    let scratch = Scratch::new("upgrade")?;
    for (place, wait) in [("at-once", false), ("later", true)] {
        let newer = another_file(&scratch, place)?;
        agent.stop()?;
        if wait {
            away();
        }
        agent.restart_as(&newer)?;
        away();
    }
    agent.kill()?;
    agent.restart_as(&program()?)?;
    away();
    Ok(())
}

/// Moves the pins to the number of another layout, as if left by an agent with other maps.
fn relabel(directory: &Path, layout: u32) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let is_layout = |name: &str| name.strip_prefix('v').is_some_and(|it| it.parse::<u32>().is_ok());
    let found: Vec<_> = entries
        .iter()
        .map(std::fs::DirEntry::path)
        .filter(|it| it.file_name().and_then(|it| it.to_str()).is_some_and(is_layout))
        .collect();
    let [kept] = found.as_slice() else { bail!("what is kept: {found:?}") };
    Ok(std::fs::rename(kept, directory.join(format!("v{layout}")))?)
}

/// Restarts the agent on pins of an older layout, after a stop and after a kill, and on pins of a
/// newer layout, after a stop.
fn change_layout(agent: &mut Agent, directory: &Path) -> anyhow::Result<()> {
    let away = || std::thread::sleep(scaled(AWAY));
    for (layout, stop) in [(1, true), (1, false), (1_000, true)] {
        if stop {
            agent.stop()?;
        } else {
            agent.kill()?;
        }
        relabel(directory, layout)?;
        away();
        agent.restart()?;
        away();
        ensure!(!directory.join(format!("v{layout}")).exists(), "layout {layout} is still there");
    }
    Ok(())
}

/// Fails if a call of the refused program arrives during `fate`, or if a call fails after `unpin`.
fn never_arrives(name: &str, on_timeout: &str, fate: Fate<'_>) -> anyhow::Result<()> {
    let (mut agent, directory) = refusing(name, on_timeout, "")?;
    let _unpinned = Unpinned(agent.config());
    let (stage, scratch) = (Stage::new()?, Scratch::new("again")?);
    let end = scratch.join("end");
    let mut client = stage.command(python()?);
    client.arg(script("again.py")).arg(&end).arg("gpt-4o-mini");
    let client = client.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(scaled(Duration::from_secs(2)));
    let befell = fate(&mut agent);
    std::fs::write(&end, "")?;
    let report = finish(client)?.report()?;
    befell?;
    eprintln!("  {report}");
    let made = report.get("made").and_then(Value::as_u64).context("made")?;
    ensure!(made > 50, "{report}");
    ensure!(
        report.get("answered") == Some(&Value::from(0)) && stage.provider.log.request_count() == 0,
        "{report}, {} arrived",
        stage.provider.log.request_count()
    );
    agent.stop()?;
    let unpin =
        Command::new(program()?).arg("unpin").arg("--directory").arg(&directory).status()?;
    ensure!(unpin.success(), "unpin: {unpin}");
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]});
    run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?.succeeded()?;
    Ok(())
}

#[test]
fn what_is_refused_never_arrives_while_agents_come_and_go_and_timeouts_are_open()
-> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    never_arrives("open", "open", &befall)
}

#[test]
fn what_is_refused_never_arrives_while_agents_come_and_go_and_timeouts_are_closed()
-> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    never_arrives("closed", "closed", &befall)
}

/// Checks refusals with other files of the agent, and with pins of other layouts.
fn never_arrives_while_agents_change(on_timeout: &str) -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let name = format!("change-{on_timeout}");
    let directory = place_of(&name);
    never_arrives(&name, on_timeout, &|agent| {
        upgrade(agent)?;
        change_layout(agent, &directory)
    })
}

#[test]
fn what_is_refused_never_arrives_while_agents_are_upgraded_and_timeouts_are_open()
-> anyhow::Result<()> {
    never_arrives_while_agents_change("open")
}

#[test]
fn what_is_refused_never_arrives_while_agents_are_upgraded_and_timeouts_are_closed()
-> anyhow::Result<()> {
    never_arrives_while_agents_change("closed")
}

/// With `on_timeout: open`, a refusal ends some time after the agent's last heartbeat.
#[test]
fn a_refusal_ends_after_the_agent_for_good() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let seconds = scaled(Duration::from_secs(4)).as_secs();
    let (mut agent, _) = refusing("ends", "open", &format!("pinned_for: {seconds}s\n"))?;
    let _unpinned = Unpinned(agent.config());
    let (stage, scratch) = (Stage::new()?, Scratch::new("ends")?);
    let end = scratch.join("end");
    let mut client = stage.command(python()?);
    client.arg(script("again.py")).arg(&end).arg("gpt-4o-mini");
    let client = client.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(scaled(Duration::from_secs(2)));
    agent.kill()?;
    std::thread::sleep(scaled(Duration::from_secs(2)));
    let early = stage.provider.log.request_count();
    std::thread::sleep(scaled(Duration::from_secs(4)));
    let late = stage.provider.log.request_count();
    std::fs::write(&end, "")?;
    let report = finish(client)?.report()?;
    ensure!(early == 0, "{early} arrived while it was in force: {report}");
    ensure!(late > 0, "it goes on after its time: {report}");
    Ok(())
}

/// With `on_timeout: closed` and no agent, a program never seen before is refused at once, and not
/// after a deadline.
#[test]
fn nobody_waits_for_an_agent_that_is_gone_and_timeouts_are_closed() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let directory = format!("/sys/fs/bpf/genops-gone-{}", std::process::id());
    let deadline = scaled(Duration::from_secs(8));
    let mut agent = Agent::start(&format!(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: {}\npin_directory: {directory}\n\
         policies: [{{name: no-nano, denied_models: [\"*-nano\"]}}]",
        deadline.as_millis()
    ))?;
    let _unpinned = Unpinned(agent.config());
    let (stage, scratch) = (Stage::new()?, Scratch::new("gone")?);
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]});
    let call = |program: &str| {
        let mut command = stage.command(program);
        command.args(["--silent", "--fail-with-body", "--max-time", "20"]);
        command.args(["--header", "Content-Type: application/json"]);
        command.args(["--data-binary", &body.to_string()]);
        command.arg("https://api.openai.com/v1/chat/completions");
        command
    };
    run(&mut call("curl"))?.succeeded()?;
    agent.kill()?;
    let newcomer = copy_of("curl", &scratch, "newcomer")?;
    let missed = run(&mut call(&newcomer))?;
    ensure!(!missed.output.status.success(), "it went through while nobody decided");
    ensure!(missed.took < deadline / 2, "it took {:?}", missed.took);
    ensure!(stage.provider.log.request_count() == 1, "it arrived");
    agent.restart()?;
    run(&mut call("curl"))?.succeeded()?;
    agent.stop()?;
    Ok(())
}

/// Other users could replace the pins in their own directory.
#[test]
fn a_place_that_is_somebody_elses_is_refused_with_what_to_do() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let place = format!("/sys/fs/bpf/genops-foreign-{}", std::process::id());
    std::fs::create_dir(&place)?;
    let outcome = (|| {
        std::os::unix::fs::chown(&place, Some(65_534), Some(65_534))?;
        let started = Agent::start(&format!("mode: enforce\npin_directory: {place}/mine"));
        let why = started.err().context("it started")?.to_string();
        ensure!(why.contains("belongs to user 65534, not to root"), "{why}");
        ensure!(why.contains("chown root:root"), "{why}");
        Ok(())
    })();
    std::fs::remove_dir(&place)?;
    outcome
}
