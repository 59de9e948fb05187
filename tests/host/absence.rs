//! What holds while no agent runs: a stop, a kill, another binary, a configuration that can't be read.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::support::{Unpinned, can_run, copy_of, has_bpf_files};

/// How long nobody runs each time.
const AWAY: Duration = Duration::from_millis(1_500);

/// An agent that refuses a program outright, with pins of its own.
fn refusing(name: &str, on_timeout: &str, more: &str) -> anyhow::Result<(Agent, PathBuf)> {
    let directory = format!("/sys/fs/bpf/genops-{name}-{}", std::process::id());
    let agent = Agent::start(&format!(
        "mode: enforce\non_timeout: {on_timeout}\nunmapped: block\nhold_deadline_ms: {}\n\
         pin_directory: {directory}\n{more}",
        scaled(Duration::from_millis(400)).as_millis()
    ))?;
    Ok((agent, PathBuf::from(directory)))
}

/// Says what went wrong in the file, which is a typo from here on; what it was.
fn spoil(agent: &Agent) -> anyhow::Result<String> {
    let before = std::fs::read_to_string(agent.config())?;
    std::fs::write(agent.config(), before.replacen("unmapped:", "unmaped:", 1))?;
    Ok(before)
}

/// A stop, a kill, another binary and a typo, one after the other.
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

/// The refused program goes on calling through all of that.
fn never_arrives(on_timeout: &str) -> anyhow::Result<()> {
    let (mut agent, directory) = refusing(on_timeout, on_timeout, "")?;
    let _unpinned = Unpinned(agent.config());
    let (stage, scratch) = (Stage::new()?, Scratch::new("again")?);
    let end = scratch.join("end");
    let mut client = stage.command(python()?);
    client.arg(script("again.py")).arg(&end).arg("gpt-4o-mini");
    let client = client.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(scaled(Duration::from_secs(2)));
    let befell = befall(&mut agent);
    std::fs::write(&end, "")?;
    let report = finish(client)?.report()?;
    befell?;
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
    never_arrives("open")
}

#[test]
fn what_is_refused_never_arrives_while_agents_come_and_go_and_timeouts_are_closed()
-> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    never_arrives("closed")
}

/// Where timeouts are open, a refusal ends a while after the agent's last heartbeat.
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

/// A program that was never seen before is refused at once where timeouts are closed, and not after a deadline.
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

/// Others could replace what lies there.
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
