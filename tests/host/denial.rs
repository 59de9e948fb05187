//! A denied call: nothing of the request arrives, the client knows at once, and nobody else
//! notices.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Finished, Stage, finish, run};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::privilege::{confined, of_the_unit};
use crate::support::{PRINCIPAL, assert_says, can_run};

/// Denies every `-pro` model, and gives research a tenth of a cent a day.
const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: shell, match: {exe: "*/curl"}, team: platform, project: scripts}
  - {name: assistant, match: {exe: "*/python3*"}, team: research, project: notes}
  - {name: peer, match: {exe: "*/genops-tests"}, team: platform, project: load}
budgets:
  - {name: research-daily, team: research, unit: USD, limit: 0.001, period: day}
policies:
  - {name: no-pro-models, denied_models: ["*-pro"], enforcement: block}
"#;

/// Runs a client. Fails unless the call is stopped for `reason_code` and another process is not
/// delayed.
fn check(
    client: impl FnOnce(&Stage) -> anyhow::Result<Command>,
    principal: &str,
    reason_code: &str,
) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::shared(ENFORCING)?;
    let stage = Stage::new()?;
    let elsewhere = Stage::new()?;
    let bystander = bystander(&elsewhere)?;
    ensure!(elsewhere.provider.log.wait_for_connections(1, Duration::from_secs(5)), "no bystander");

    let denied = run(&mut client(&stage)?)?;
    nothing_arrived(&stage)?;
    // Our scripts measure the call alone; `curl` has only its exit status.
    let took = if let Ok(report) = denied.report() {
        ensure!(report.get("ok") == Some(&Value::Bool(false)), "the call went through: {report}");
        Duration::from_secs_f64(report.get("seconds").and_then(Value::as_f64).context("seconds")?)
    } else {
        ensure!(!denied.output.status.success(), "the call went through");
        denied.took
    };
    ensure!(took < scaled(Duration::from_secs(1)), "the client knew only after {took:?}");
    let awu = agent.only_awu_of(denied.pid)?;
    let expected = [
        ("genops.policy.result", "BLOCKED"),
        ("genops.policy.reason_code", reason_code),
        ("genops.spec.version", "0.1.0"),
        (PRINCIPAL, principal),
    ];
    assert_says(&awu, &expected.map(|(key, value)| (key, value.into())));

    let report = finish(bystander)?.succeeded()?.report()?;
    let p99_us = report.get("p99_us").and_then(Value::as_f64).context("p99")?;
    ensure!(
        p99_us < scaled(Duration::from_millis(500)).as_secs_f64() * 1e6,
        "calls of another process took up to {p99_us} µs at the same time"
    );
    let of_bystander = elsewhere.provider.log.request_count();
    ensure!(
        of_bystander == BYSTANDER_REQUESTS,
        "{of_bystander} of {BYSTANDER_REQUESTS} calls of the other arrived"
    );
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}

/// Number of calls made by a [`bystander`].
pub(crate) const BYSTANDER_REQUESTS: usize = 100;

/// Starts another process making allowed calls all the while.
pub(crate) fn bystander(stage: &Stage) -> anyhow::Result<std::process::Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
    command
        .args(["client", "--address", &stage.provider.address.to_string(), "--root"])
        .arg(stage.root());
    command.args(["--requests", &BYSTANDER_REQUESTS.to_string(), "--rate", "50"]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Fails unless the handshake was completed and nothing came after.
fn nothing_arrived(stage: &Stage) -> anyhow::Result<()> {
    std::thread::sleep(scaled(Duration::from_millis(300)));
    let connections = stage.provider.log.connections();
    ensure!(!connections.is_empty(), "the client did not even connect");
    for connection in connections {
        ensure!(!connection.has_request(), "bytes of the request arrived: {connection:?}");
    }
    Ok(())
}

#[test]
fn a_denied_model_never_leaves_the_openai_sdk() -> anyhow::Result<()> {
    check(|stage| stage.python("openai", &["--model", "o1-pro"]), "assistant", "POLICY_DENY_MODEL")
}

#[test]
fn a_denied_model_never_leaves_a_streamed_call() -> anyhow::Result<()> {
    check(
        |stage| stage.python("openai", &["--model", "o1-pro", "--stream"]),
        "assistant",
        "POLICY_DENY_MODEL",
    )
}

#[test]
fn a_denied_model_never_leaves_requests() -> anyhow::Result<()> {
    check(
        |stage| stage.python("requests", &["--model", "o1-pro"]),
        "assistant",
        "POLICY_DENY_MODEL",
    )
}

#[test]
fn a_denied_model_never_leaves_an_event_loop() -> anyhow::Result<()> {
    check(|stage| stage.python("aiohttp", &["--model", "o1-pro"]), "assistant", "POLICY_DENY_MODEL")
}

#[test]
fn a_denied_model_never_leaves_curl() -> anyhow::Result<()> {
    let body = json!({"model": "o1-pro", "messages": [{"role": "user", "content": "Hello"}]});
    check(
        |stage| Ok(stage.curl("https://api.openai.com/v1/chat/completions", &body)),
        "shell",
        "POLICY_DENY_MODEL",
    )
}

#[test]
fn a_call_over_budget_never_leaves_the_anthropic_sdk() -> anyhow::Result<()> {
    let arguments = ["--model", "claude-sonnet-4-5", "--max-tokens", "8000"];
    check(|stage| stage.python("anthropic", &arguments), "assistant", "BUDGET_RESERVATION_FAILED")
}

/// Observing reports a denial as a warning, and refuses nothing.
#[test]
fn observing_only_warns() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(&ENFORCING.replace("mode: enforce", "mode: observe"))?;
    let stage = Stage::new()?;
    let call = run(&mut stage.python("openai", &["--model", "o1-pro"])?)?.succeeded()?;
    ensure!(call.report()?.get("ok") == Some(&Value::Bool(true)), "{}", call.report()?);
    let awu = agent.only_awu_of(call.pid)?;
    let expected =
        [("genops.policy.result", "WARNING"), ("genops.policy.reason_code", "POLICY_DENY_MODEL")];
    assert_says(&awu, &expected.map(|(key, value)| (key, value.into())));
    Ok(())
}

/// Checks that traffic other than AI calls is not held, and goes on even while the agent cannot
/// answer.
fn is_not_held(name: &str) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(ENFORCING)?;
    let stage = Stage::new()?;
    agent.signal(Signal::STOP)?;
    let address = format!("{name}:443:{}", stage.provider.address.ip());
    let mut curl = stage.command("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--resolve",
        &address,
        &format!("https://{name}/status"),
    ]);
    let fetched = run(&mut curl);
    agent.signal(Signal::CONT)?;
    let fetched = fetched?.succeeded()?;
    ensure!(fetched.took < scaled(Duration::from_millis(1_500)), "it took {:?}", fetched.took);
    ensure!(stage.provider.log.request_count() == 1, "the request did not arrive");
    Ok(())
}

#[test]
fn traffic_to_another_host_is_not_held() -> anyhow::Result<()> {
    is_not_held("files.example.test")
}

/// A local model server is known by name and port, not by the name alone.
#[test]
fn traffic_to_this_host_is_not_held() -> anyhow::Result<()> {
    is_not_held("localhost")
}

/// A container has a separate network namespace; the agent acts on the namespace from outside, with
/// no more capabilities than granted by `deploy/`.
#[test]
fn a_denied_call_in_another_network_namespace_ends_too() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::launch(ENFORCING, &confined(&of_the_unit()?))?;
    let stage = Stage::new()?;
    let scratch = Scratch::new("namespace")?;
    let (root, log) = (scratch.join("root.pem"), scratch.join("log"));
    // Another provider at the same address, in a network of its own.
    let mut provider = Command::new("unshare");
    provider.args([
        "--net",
        "sh",
        "-c",
        "ip link set lo up && exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_genops-tests"),
    ]);
    provider
        .args(["provider", "--listen", &stage.provider.address.to_string(), "--root"])
        .arg(&root);
    provider.arg("--log").arg(&log).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut provider = provider.spawn()?;
    let stdout = provider.stdout.take().context("a pipe")?;
    BufReader::new(stdout).read_line(&mut String::new())?;

    let call = |model: &str| -> anyhow::Result<Finished> {
        let inside = stage.python("openai", &["--model", model])?;
        let mut client = Command::new("nsenter");
        client.arg(format!("--net=/proc/{}/ns/net", provider.id())).arg("--");
        client.arg(inside.get_program()).args(inside.get_args());
        stage.equip(&mut client);
        run(client.env("SSL_CERT_FILE", &root))
    };
    let allowed = call("gpt-4o-mini")?.succeeded()?.report()?;
    let denied = call("o1-pro")?;
    drop(provider.stdin.take());
    provider.wait()?;
    ensure!(allowed.get("ok") == Some(&Value::Bool(true)), "{allowed}");
    let report = denied.report()?;
    ensure!(report.get("ok") == Some(&Value::Bool(false)), "the call went through: {report}");
    let seconds = report.get("seconds").and_then(Value::as_f64).context("seconds")?;
    ensure!(
        seconds < scaled(Duration::from_secs(1)).as_secs_f64(),
        "the client knew only after {seconds} s"
    );
    let log = std::fs::read_to_string(log)?;
    ensure!(log.contains("gpt-4o-mini") && !log.contains("o1-pro"), "{log}");
    assert_says(&agent.only_awu_of(denied.pid)?, &[("genops.policy.result", "BLOCKED".into())]);
    Ok(())
}
