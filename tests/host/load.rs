//! Many calls from many processes: each reported once, nothing lost.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, run};
use serde_json::Value;

use crate::support::{can_run, int};

const PROCESSES: usize = 20;
/// Requests per second of each process: 200 in total.
const RATE: usize = 10;

/// Duration of the load, in seconds: a minute, or `GENOPS_LOAD_SECONDS`.
fn seconds() -> anyhow::Result<usize> {
    match std::env::var("GENOPS_LOAD_SECONDS") {
        Ok(text) => text.parse().context("GENOPS_LOAD_SECONDS"),
        Err(_) => Ok(60),
    }
}

fn under_load(configuration: &str) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let each = seconds()? * RATE;
    let stage = Stage::new()?;
    let agent = Agent::start(configuration)?;
    let mut clients = Vec::new();
    for _ in 0..PROCESSES {
        let mut command = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
        command
            .args(["client", "--address", &stage.provider.address.to_string(), "--root"])
            .arg(stage.root());
        command.args([
            "--requests",
            &each.to_string(),
            "--rate",
            &RATE.to_string(),
            "--stream-every",
            "5",
        ]);
        clients.push(
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?,
        );
    }
    let mut pids = Vec::new();
    for client in clients {
        let pid = client.id();
        let output = client.wait_with_output()?;
        ensure!(
            output.status.success(),
            "a client failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        pids.push(pid);
    }
    let total = PROCESSES * each;
    ensure!(
        stage.provider.log.request_count() == total,
        "the provider saw {}",
        stage.provider.log.request_count()
    );
    let of_clients = |awu: &Value| {
        int(awu, "process.pid").is_some_and(|pid| pids.iter().any(|it| u64::from(*it) == pid))
    };
    let awus = agent.wait_for(total, Duration::from_secs(20), of_clients)?;
    std::thread::sleep(Duration::from_millis(500));
    let reported = agent.awus().into_iter().filter(of_clients).count();
    ensure!(reported == total, "{total} calls, {reported} reports");
    let mut seen: HashMap<(u64, u64), usize> = HashMap::new();
    for awu in &awus {
        ensure!(int(awu, "gen_ai.usage.output_tokens") == Some(7), "without its tokens: {awu:#}");
        let key =
            (int(awu, "process.pid").context("pid")?, int(awu, "exchange").context("exchange")?);
        *seen.entry(key).or_default() += 1;
    }
    ensure!(seen.len() == total, "{} different calls of {total}", seen.len());
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}

#[test]
fn two_hundred_calls_a_second_from_twenty_processes_are_each_reported_once() -> anyhow::Result<()> {
    under_load("mode: observe")
}

/// Five processes, each making calls one after another on a connection; every call is held until
/// the verdict.
#[test]
fn calls_that_are_held_are_each_reported_once_too() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::start("mode: enforce\non_timeout: closed\nhold_deadline_ms: 2000")?;
    let calls: Vec<_> = (0..5)
        .map(|_| {
            stage.python("openai", &["--repeat", "20"]).and_then(|mut command| Ok(command.spawn()?))
        })
        .collect::<anyhow::Result<_>>()?;
    for call in calls {
        let call = genops_tests::clients::finish(call)?.succeeded()?;
        let failed = String::from_utf8_lossy(&call.output.stdout)
            .lines()
            .filter(|line| line.contains("\"ok\": false"))
            .count();
        ensure!(
            failed == 0,
            "{failed} held calls failed: {}",
            String::from_utf8_lossy(&call.output.stdout)
        );
        let of_call = |awu: &Value| int(awu, "process.pid") == Some(call.pid.into());
        agent.wait_for(20, Duration::from_secs(5), of_call)?;
        ensure!(
            agent.awus().iter().filter(|awu| of_call(awu)).count() == 20,
            "more reports than calls"
        );
    }
    // No hold is left to delay the next call.
    drop(run(&mut stage.python("requests", &[])?)?.succeeded()?);
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}
