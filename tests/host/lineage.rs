//! A process started by a principal's process acts for the principal, even after the processes in
//! between have ended.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_ebpf_common::LAYOUT;
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    PRINCIPAL, Unpinned, assert_says, can_run, copy_of, has_bpf_files, int, text,
};

const RESULT: &str = "genops.policy.result";
const FORKS: &str = "genops_agent_forks_total";
const PATIENCE: Duration = Duration::from_secs(20);
const SUPERVISED: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: supervisor, match: {exe: "*/supervisor"}, team: payments, project: refunds}
policies:
  - {name: small, principal: supervisor, denied_models: ["*-pro"]}
"#;

/// Shell script forking a subshell, with another fork in the subshell; the subshell ends.
const DETACHED: &str = r#"(setsid curl --silent --max-time 20 --data-binary "$1" \
    -H 'Content-Type: application/json' https://api.openai.com/v1/chat/completions &)"#;

/// Returns a shell running `first`, then [`DETACHED`], then `last`.
fn detached(stage: &Stage, shell: &str, [first, last]: [&str; 2], model: &str) -> Command {
    let messages = [json!({"role": "user", "content": "Hello"})];
    let body = json!({"model": model, "max_tokens": 9, "messages": messages});
    let mut command = stage.command(shell);
    command.args(["-c", &format!("{first}; {DETACHED}; {last}"), "sh", &body.to_string()]);
    command
}

/// Returns a shell starting `orphan.py` with `arguments`.
fn orphan(stage: &Stage, shell: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = stage.command(shell);
    command.args(["-c", r#""$@"; true"#, "sh"]).arg(python()?).arg(script("orphan.py"));
    command.args(arguments);
    Ok(command)
}

/// Waits for a unit of `model`.
fn unit(agent: &Agent, model: &str) -> anyhow::Result<Value> {
    let of_model = |awu: &Value| text(awu, "gen_ai.request.model") == Some(model);
    let found = agent.wait_for(1, scaled(PATIENCE), of_model)?;
    found.into_iter().next().with_context(|| format!("a unit of {model}"))
}

fn metric(agent: &Agent, name: &str) -> anyhow::Result<f64> {
    let found = agent.metrics()?.into_iter().find(|(it, _)| it == name);
    found.map(|(_, value)| value).with_context(|| format!("no {name}"))
}

#[test]
fn an_orphan_acts_for_the_one_that_started_its_line() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(SUPERVISED)?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("orphans")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    for (how, model, result) in [
        ("fork", "forked", "WARNING"),
        ("exec", "executed", "WARNING"),
        ("leader", "leaderless", "WARNING"),
        ("fork", "forked-pro", "BLOCKED"),
        ("exec", "executed-pro", "BLOCKED"),
    ] {
        let finished = run(&mut orphan(&stage, &supervisor, &[how, model])?)?;
        let awu = unit(&agent, model).with_context(|| finished.stderr())?;
        assert_says(&awu, &[(PRINCIPAL, "supervisor".into()), (RESULT, result.into())]);
        ensure!(int(&awu, "process.pid") != Some(finished.pid.into()), "the shell itself: {awu:#}");
    }
    // A stranger's orphan does not, though init is the parent of both.
    for how in ["fork", "exec"] {
        let model = format!("stranger-{how}-pro");
        run(&mut orphan(&stage, "sh", &[how, &model])?)?;
        let awu = unit(&agent, &model)?;
        ensure!(text(&awu, PRINCIPAL) != Some("supervisor"), "{awu:#}");
        ensure!(text(&awu, RESULT) != Some("BLOCKED"), "{awu:#}");
    }
    Ok(())
}

/// The agent is stopped meanwhile: a program begins, forks twice, and the process in between ends.
#[test]
fn what_is_forked_before_the_agent_has_looked_is_reported_and_known() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(SUPERVISED)?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("hasty")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    let before = metric(&agent, FORKS)?;
    for (shell, model) in [(supervisor.as_str(), "hasty-pro"), ("sh", "hasty-stranger-pro")] {
        agent.signal(Signal::STOP)?;
        let mut hasty = detached(&stage, shell, [":", "read line"], model);
        let mut hasty = hasty.stdin(Stdio::piped()).spawn()?;
        std::thread::sleep(scaled(Duration::from_secs(1)));
        agent.signal(Signal::CONT)?;
        let awu = unit(&agent, model);
        drop(hasty.stdin.take());
        finish(hasty)?;
        let (awu, is_own) = (awu?, shell == supervisor);
        ensure!((text(&awu, PRINCIPAL) == Some("supervisor")) == is_own, "{awu:#}");
        ensure!((text(&awu, RESULT) == Some("BLOCKED")) == is_own, "{awu:#}");
    }
    ensure!(metric(&agent, FORKS)? - before >= 4.0, "their forks were not reported");
    Ok(())
}

#[test]
fn what_is_older_than_the_agent_hands_down_as_well() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, scratch) = (Stage::new()?, Scratch::new("older")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    let mut older = detached(&stage, &supervisor, ["read line", ":"], "older-pro");
    let mut older = older.stdin(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(200));
    let agent = Agent::start(SUPERVISED)?;
    // The agent examines running processes beside its other work.
    std::thread::sleep(scaled(Duration::from_secs(1)));
    older.stdin.take().context("its input")?.write_all(b"go\n")?;
    finish(older)?;
    let awu = unit(&agent, "older-pro")?;
    assert_says(&awu, &[(PRINCIPAL, "supervisor".into()), (RESULT, "BLOCKED".into())]);
    Ok(())
}

/// The agent gets reports only of forks still to decide: not of processes known to belong to a
/// principal, and not of processes known to belong to none.
#[test]
fn forks_of_what_is_decided_are_not_reported() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(SUPERVISED)?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("forks")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    let script = scratch.join("forks.py");
    std::fs::write(
        &script,
        "import os, time\ntime.sleep(1)\nfor _ in range(500):\n    child = os.fork()\n    child or os._exit(0)\n    os.waitpid(child, 0)\n",
    )?;
    for shell in ["sh", &supervisor] {
        let before = metric(&agent, FORKS)?;
        let mut command = stage.command(shell);
        command.args(["-c", r#""$@"; true"#, "sh"]).arg(python()?).arg(&script);
        run(&mut command)?.succeeded()?;
        let reported = metric(&agent, FORKS)? - before;
        // The shell and its starter may fork before the agent has looked at them.
        ensure!(reported < 20.0, "{reported} of 500 forks below {shell} were reported");
    }
    Ok(())
}

/// The next agent has not seen the orphan's start, but the kernel has kept the lineage.
#[test]
fn an_orphan_is_known_to_the_next_agent() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let directory = format!("/sys/fs/bpf/genops-orphans-{}", std::process::id());
    let mut agent = Agent::start(&format!("{SUPERVISED}pin_directory: {directory}"))?;
    let _unpinned = Unpinned(agent.config());
    let (stage, scratch) = (Stage::new()?, Scratch::new("kept")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    let gate = scratch.join("gate");
    let told = gate.to_str().context("a path")?;
    let early = orphan(&stage, &supervisor, &["exec", "early-pro", told])?.spawn()?;
    let stranger = orphan(&stage, "sh", &["exec", "stranger-pro", told])?.spawn()?;
    std::thread::sleep(scaled(Duration::from_secs(2)));
    agent.kill()?;
    agent.restart()?;
    std::fs::write(&gate, "")?;
    for child in [early, stranger] {
        finish(child)?;
    }
    let awu = unit(&agent, "early-pro")?;
    assert_says(&awu, &[(PRINCIPAL, "supervisor".into()), (RESULT, "BLOCKED".into())]);
    let awu = unit(&agent, "stranger-pro")?;
    ensure!(text(&awu, PRINCIPAL) != Some("supervisor"), "{awu:#}");
    ensure!(
        Path::new(&directory).join(format!("v{LAYOUT}/maps/LINEAGES")).exists(),
        "nothing was pinned"
    );
    Ok(())
}
