//! `why`: an ordinary user reads the reason of a refused call, and nothing about refusals of
//! others.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, run};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::support::{can_run, int, text};

/// Denies every `-pro` model.
const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: everybody, match: {exe: "*/curl"}, team: platform, project: scripts}
policies:
  - {name: no-pro-models, denied_models: ["*-pro"], enforcement: block}
"#;
const OWN: &str = "65533";
const OTHER: &str = "65534";

/// Runs a program as a user without privileges.
fn as_user(stage: &Stage, user: &str) -> Command {
    let mut command = stage.command("setpriv");
    command.args([&format!("--reuid={user}"), "--clear-groups"]);
    command
}

/// Makes a refused call as `user`; returns the process id.
fn refused(stage: &Stage, user: &str) -> anyhow::Result<u32> {
    let body = json!({"model": "o1-pro", "messages": [{"role": "user", "content": "Hello"}]});
    let mut command = as_user(stage, user);
    command.args(["curl", "--silent", "--max-time", "20"]);
    command.args(["--header", "Content-Type: application/json", "--data-binary"]);
    command.args([&body.to_string(), "https://api.openai.com/v1/chat/completions"]);
    let finished = run(&mut command)?;
    ensure!(!finished.output.status.success(), "the call went through");
    Ok(finished.pid)
}

/// Runs `why` as `user` until the command succeeds, for up to 10 s.
fn why(stage: &Stage, agent: &str, user: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let deadline = Instant::now() + scaled(Duration::from_secs(10));
    loop {
        let output = as_user(stage, user).arg(agent).arg("why").args(arguments).output()?;
        if output.status.success() || Instant::now() > deadline {
            return Ok(output);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_ordinary_user_reads_why_a_call_was_refused_and_nothing_of_others() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("why")?;
    let own_agent = scratch.join("genops-agent");
    std::fs::copy(program()?, &own_agent)?;
    let own_agent = own_agent.to_str().context("a path")?;
    let agent = Agent::start(ENFORCING)?;
    let stage = Stage::new()?;
    // The first call may find curl's library without probes.
    let warm = refused(&stage, OTHER)?;
    agent.only_awu_of(warm)?;
    let pid = refused(&stage, OWN)?;
    let awu = agent.only_awu_of(pid)?;

    let said = why(&stage, own_agent, OWN, &[])?;
    let shown = String::from_utf8(said.stdout)?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let lines: Vec<&str> = shown.lines().collect();
    let [verdict, mend, about] = lines.as_slice() else { anyhow::bail!("{shown}") };
    ensure!(verdict.starts_with("BLOCKED with POLICY_DENY_MODEL by `no-pro-models"), "{shown}");
    ensure!(mend.starts_with("To run, ask for a model"), "{shown}");
    let id = text(&awu, "trace_id").and_then(|it| it.get(..8)).context("an id")?;
    ensure!(about.ends_with(&format!("/curl, pid {pid}, id {id}")), "{shown}");

    let all = why(&stage, own_agent, OWN, &["--all", "--output", "json"])?;
    let all = String::from_utf8(all.stdout)?;
    let refusals: Vec<Value> = all.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let pids: Vec<Option<u64>> = refusals.iter().map(|it| int(it, "pid")).collect();
    ensure!(pids == [Some(u64::from(pid))], "{pids:?}");
    let of_other = as_user(&stage, OWN).args([own_agent, "why", &warm.to_string()]).output()?;
    ensure!(of_other.status.code() == Some(1), "{of_other:?}");
    ensure!(
        agent.stderr().contains("BLOCKED with POLICY_DENY_MODEL"),
        "no line of the log about the refusal"
    );
    Ok(())
}
