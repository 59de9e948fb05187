//! Connections used in unusual ways: a denied request never arrives, an allowed request is held and
//! answered.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, python, run, script};
use genops_tests::patience::scaled;
use serde_json::Value;

use crate::support::{assert_says, can_run, text};

const ENFORCING: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: anyone, match: {exe: "*"}, team: all, project: usage}
policies:
  - {name: no-pro-models, denied_models: ["*-pro"], enforcement: block}
"#;

/// Checks a denied and an allowed call of `usage.py`.
fn check(way: &str) -> anyhow::Result<()> {
    check_through(&[], way)
}

/// Checks the same calls, with the client started by scripts of ours.
fn check_through(scripts: &[&str], way: &str) -> anyhow::Result<()> {
    check_under(ENFORCING, scripts, way)
}

fn check_under(configuration: &str, scripts: &[&str], way: &str) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::shared(configuration)?;
    for model in ["o1-pro", "gpt-4o-mini"] {
        let stage = Stage::new()?;
        let mut client = stage.command(python()?);
        for name in scripts {
            client.arg(script(name)).arg(python()?);
        }
        let finished = run(client.arg(script("usage.py")).args([way, model]))?.succeeded()?;
        let report = finished.report()?;
        let denied = model.ends_with("-pro");
        ensure!(report.get("ok") == Some(&Value::Bool(!denied)), "{model}: {report}");
        std::thread::sleep(scaled(Duration::from_millis(100)));
        let arrived = stage.provider.log.request_count();
        ensure!(arrived == usize::from(!denied), "{model}: {arrived} requests arrived");
        // Each stage has an address of its own.
        let peer = stage.provider.address.ip().to_string();
        let of_model = |awu: &Value| {
            text(awu, "gen_ai.request.model") == Some(model)
                && text(awu, "network.peer.address") == Some(&peer)
        };
        let awus = agent.wait_for(1, Duration::from_secs(5), of_model)?;
        let awu = awus.first().context("a unit")?;
        assert_says(
            awu,
            &[("genops.policy.result", if denied { "BLOCKED" } else { "ALLOWED" }.into())],
        );
        let mechanism = text(awu, "genops.enforcement.mechanism").unwrap_or_default();
        ensure!(!mechanism.is_empty() && mechanism != "none", "it was not held: {awu:#}");
    }
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}

/// Probes requiring an extra system call in the program would kill the program.
#[test]
fn a_program_with_a_seccomp_filter_runs_as_before() -> anyhow::Result<()> {
    check_through(&["confined.py"], "plain")
}

#[test]
fn a_request_whose_body_comes_later() -> anyhow::Result<()> {
    check("pieces")
}

#[test]
fn a_request_whose_head_comes_in_two_writes() -> anyhow::Result<()> {
    check("head-in-two")
}

#[test]
fn a_request_sent_by_another_thread_than_the_handshake() -> anyhow::Result<()> {
    check("other-thread")
}

#[test]
fn a_request_over_a_duplicate_of_the_descriptor() -> anyhow::Result<()> {
    check("duplicate")
}

#[test]
fn a_request_over_a_descriptor_that_was_another_connection() -> anyhow::Result<()> {
    check("reused")
}

#[test]
fn a_request_by_a_child_of_the_process_that_connected() -> anyhow::Result<()> {
    check("forked")
}

/// TCP sends the request when a timer fires, and no longer for the child's thread.
#[test]
fn a_request_by_a_child_that_leaves_when_the_child_no_longer_runs() -> anyhow::Result<()> {
    check("forked-later")
}

#[test]
fn a_request_of_a_mebibyte() -> anyhow::Result<()> {
    check("long-1")
}

/// The request is a single call of the TLS library, ending long after the verdict.
#[test]
fn a_request_of_ten_mebibytes() -> anyhow::Result<()> {
    let larger = "capture: {message_limit_bytes: 16777216, ring_bytes: 67108864}";
    check_under(&format!("{ENFORCING}{larger}\n"), &[], "long-10")
}

/// Bytes left out by the capture may name another model: a rule about models refuses the request,
/// whatever was read.
#[test]
fn a_request_of_sixteen_mebibytes_is_not_read_whole_and_refused() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(ENFORCING)?;
    let stage = Stage::new()?;
    let mut client = stage.command(python()?);
    let call = client.arg(script("usage.py")).args(["long-16", "gpt-4o-mini"]);
    let report = run(call)?.succeeded()?.report()?;
    ensure!(report.get("ok") == Some(&Value::Bool(false)), "{report}");
    let awus = agent.wait_for(1, Duration::from_secs(5), |_| true)?;
    let awu = awus.first().context("a unit")?;
    assert_says(awu, &[("genops.policy.result", "BLOCKED".into())]);
    let arrived = stage.provider.log.request_count();
    ensure!(arrived == 0, "{arrived} requests arrived");
    Ok(())
}

/// Streams beside the denied stream.
const OTHERS: usize = 4;

/// TLS has made a record of the denied bytes, so the connection ends, together with all other
/// streams.
#[test]
fn streams_beside_a_denied_one_are_counted() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(ENFORCING)?;
    let stage = Stage::paced(true, scaled(Duration::from_millis(500)))?;
    let mut client = stage.command(python()?);
    client.arg(script("streams.py")).args([&OTHERS.to_string(), "o1-pro"]);
    let finished = run(&mut client)?.succeeded()?;
    let report = finished.report()?;
    ensure!(
        report.get("ok") == Some(&Value::Bool(false)),
        "the denied call went through: {report}"
    );
    let failed = report.get("others").and_then(Value::as_array).context("others")?.len();
    ensure!(failed == OTHERS, "{failed} of {OTHERS} streams failed with it: {report}");
    let of_model =
        |model: &'static str| move |awu: &Value| text(awu, "gen_ai.request.model") == Some(model);
    let denied = agent.wait_for(1, Duration::from_secs(5), of_model("o1-pro"))?;
    let denied = denied.first().context("a unit")?;
    assert_says(denied, &[("genops.enforcement.collateral", OTHERS.into())]);
    let others = agent.wait_for(OTHERS, Duration::from_secs(5), of_model("gpt-4o-mini"))?;
    ensure!(others.len() == OTHERS, "{} units of {OTHERS} other streams", others.len());
    for other in others {
        ensure!(text(&other, "error.type").is_some(), "its end is not named: {other:#}");
    }
    Ok(())
}
