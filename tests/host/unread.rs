//! Traffic read by no probe, providers closed to a process, and eBPF programs outliving the agent.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, python, run, script};
use genops_tests::patience::scaled;
use serde_json::{Value, json};

use crate::support::{Unpinned, assert_says, can_run, has_bpf_files, int, text};

/// Call by `gnutls-cli`, with a TLS library read by no probe.
const BY_GNUTLS: &str = r#"
body='{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}'
{ printf 'POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nConnection: close\r\n'
  printf 'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' ${#body} "$body"; sleep 1; } |
gnutls-cli --x509cafile "$SSL_CERT_FILE" --port 443 api.openai.com
"#;

fn gnutls(stage: &Stage) -> Command {
    let mut command = stage.command("sh");
    command.args(["-c", BY_GNUTLS]);
    command
}

fn is_of_gnutls(awu: &Value) -> bool {
    text(awu, "process.executable.path").is_some_and(|exe| exe.ends_with("/gnutls-cli"))
}

/// Makes the call under a configuration; returns the only unit, and the number of requests
/// received.
fn unread_call(configuration: &str) -> anyhow::Result<(Value, usize)> {
    let agent = Agent::start(configuration)?;
    let stage = Stage::new()?;
    // The connection may be ended: the exit status says nothing here.
    run(&mut gnutls(&stage))?;
    let mut units = agent.wait_for(1, scaled(Duration::from_secs(5)), is_of_gnutls)?;
    ensure!(units.len() == 1, "one connection was made: {units:#?}");
    Ok((units.pop().context("a unit")?, stage.provider.log.request_count()))
}

#[test]
fn a_connection_that_no_probe_reads_is_a_unit_with_its_bytes() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (unit, arrived) = unread_call("mode: observe")?;
    assert_says(
        &unit,
        &[
            ("gen_ai.provider.name", "openai".into()),
            ("server.address", "api.openai.com".into()),
            ("genops.capture.level", "metadata".into()),
            ("genops.policy.result", "WARNING".into()),
            ("genops.policy.reason_code", "x_uninspectable".into()),
            ("genops.compliance", "partial".into()),
        ],
    );
    // Request and handshake at least, and the answer.
    ensure!(int(&unit, "genops.network.sent_bytes") > Some(300), "{unit:#}");
    ensure!(int(&unit, "genops.network.received_bytes") > Some(300), "{unit:#}");
    ensure!(arrived == 1, "{arrived} requests arrived");
    Ok(())
}

#[test]
fn a_connection_that_no_probe_reads_is_ended_where_that_is_the_rule() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let rules = "mode: enforce\nuninspectable: block\non_timeout: closed\nhold_deadline_ms: 20000";
    let (unit, arrived) = unread_call(rules)?;
    assert_says(
        &unit,
        &[
            ("genops.capture.level", "metadata".into()),
            ("genops.policy.result", "BLOCKED".into()),
            ("genops.policy.reason_code", "x_uninspectable".into()),
            ("genops.enforcement.mechanism", "egress_hold".into()),
        ],
    );
    ensure!(arrived == 0, "{arrived} requests arrived");
    Ok(())
}

/// After the refusal of the first call, the kernel refuses the connection itself, and UDP as well.
#[test]
fn a_provider_that_is_closed_to_a_process_is_refused_at_connect() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: 20000\n\
         principals: [{name: assistant, match: {exe: \"*/python3*\"}, team: research, project: notes}]\n\
         policies: [{name: one, principal: assistant, allowed_providers: [anthropic]}]",
    )?;
    let stage = Stage::new()?;
    let mut client = stage.command(python()?);
    client.arg(script("closed.py"));
    let finished = run(&mut client)?.succeeded()?;
    let report = finished.report()?;
    let expected = json!({"calls": ["ended", "EPERM", "EPERM"], "udp": ["EPERM", "EPERM"]});
    ensure!(report == expected, "{report}");
    let of_process = |awu: &Value| int(awu, "process.pid") == Some(finished.pid.into());
    let units = agent.wait_for(5, scaled(Duration::from_secs(5)), of_process)?;
    let mechanisms: Vec<_> =
        units.iter().map(|it| text(it, "genops.enforcement.mechanism")).collect();
    let connect = Some("connect");
    // The first call is stopped by the best mechanism of the kernel.
    let [first, later @ ..] = mechanisms.as_slice() else { anyhow::bail!("no AWU") };
    ensure!(matches!(first, Some("egress_hold" | "lsm")), "{mechanisms:?}");
    ensure!(later == [connect, connect, connect, connect], "{mechanisms:?}");
    ensure!(stage.provider.log.request_count() == 0, "something arrived");
    Ok(())
}

/// The eBPF programs go on: a closed provider stays closed while nobody decides. The next agent
/// takes over the connections, decides about the next requests, and reports the missed calls.
#[test]
fn programs_outlive_the_agent_and_the_next_one_takes_them_over() -> anyhow::Result<()> {
    if !can_run() || !has_bpf_files() {
        return Ok(());
    }
    let directory = format!("/sys/fs/bpf/genops-test-{}", std::process::id());
    let mut agent = Agent::start(&format!(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: {}\npin_directory: {directory}\n\
         policies: [{{name: no-pro, denied_models: [\"*-pro\"]}}]",
        scaled(Duration::from_millis(500)).as_millis()
    ))?;
    let _unpinned = Unpinned(agent.config());
    let stage = Stage::new()?;
    let pause = scaled(Duration::from_secs(10)).as_secs_f64().to_string();
    let mut older = stage.python("openai", &["--repeat", "2", "--pause", &pause])?.spawn()?;
    stage.provider.log.wait_for_requests(1, scaled(Duration::from_secs(15)))?;
    agent.kill()?;
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let call = || stage.curl("https://api.openai.com/v1/chat/completions", &body);
    let missed = run(&mut call())?;
    ensure!(!missed.output.status.success(), "a call went through while nobody decided");
    ensure!(missed.took < scaled(Duration::from_secs(3)), "it took {:?}", missed.took);
    ensure!(stage.provider.log.request_count() == 1, "it arrived");
    agent.restart()?;
    run(&mut call())?.succeeded()?;
    ensure!(older.wait()?.success(), "the connection did not survive");
    let arrived = stage.provider.log.request_count();
    ensure!(
        arrived == 3,
        "two calls were allowed after the restart, {arrived} arrived in all: {:#?} {}",
        agent.awus(),
        agent.stderr()
    );
    let of_missed = |awu: &Value| int(awu, "process.pid") == Some(missed.pid.into());
    let told = agent.wait_for(1, scaled(Duration::from_secs(5)), of_missed)?;
    assert_says(
        told.first().context("a unit")?,
        &[
            ("genops.policy.result", "BLOCKED".into()),
            ("genops.policy.reason_code", "x_decision_timeout".into()),
        ],
    );
    agent.stop()?;
    Ok(())
}
