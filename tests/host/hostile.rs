//! Bad input: a clear error or a counted, marked unit; never a crash, a hang, or unbounded memory.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::provider::Behaviour;
use genops_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{assert_says, can_run, int};

/// Upper limit of the agent's resident memory, in KiB.
const MEMORY_LIMIT_KIB: u64 = 128 << 10;
const URL: &str = "https://api.openai.com/v1/chat/completions";

/// Makes two tests of each check: the enforcing tests share an agent, the observing tests another.
macro_rules! in_both_modes {
    ($($check:ident),* $(,)?) => {
        mod enforcing {
            $(#[test]
            fn $check() -> anyhow::Result<()> {
                super::$check("mode: enforce")
            })*
        }
        mod observing {
            $(#[test]
            fn $check() -> anyhow::Result<()> {
                super::$check("mode: observe")
            })*
        }
    };
}

in_both_modes!(
    a_response_that_is_no_http,
    a_response_shorter_than_it_says,
    a_response_longer_than_it_says,
    a_response_with_a_length_that_no_number_holds,
    a_response_that_is_a_gzip_bomb,
    a_response_of_a_hundred_megabytes,
    a_request_that_is_no_http,
    a_request_shorter_than_it_says,
    a_request_longer_than_it_says,
    a_request_with_two_lengths,
    a_request_of_a_hundred_megabytes,
);

fn question() -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]})
}

/// Fails unless the agent is alive, within the memory limit, and reports the next call as usual.
fn still_works(agent: &Agent) -> anyhow::Result<()> {
    let resident = agent.resident_kib()?;
    ensure!(resident < MEMORY_LIMIT_KIB, "the agent holds {resident} KiB");
    let stage = Stage::new()?;
    let call = run(&mut stage.curl(URL, &question()))?.succeeded()?;
    assert_says(&agent.only_awu_of(call.pid)?, &[("gen_ai.usage.output_tokens", 7.into())]);
    Ok(())
}

/// Answers a client's call with `bytes`. Fails unless the call has a single unit, whatever the
/// client does.
fn answered_with(mode: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    stage.provider.behave(Behaviour::Script { bytes, hang: false });
    let agent = Agent::shared(mode)?;
    let mut curl = stage.curl(URL, &question());
    let call = run(curl.args(["--compressed", "--output", "/dev/null"]))?;
    let awu = agent.only_awu_of(call.pid)?;
    assert_says(&awu, &[("gen_ai.request.model", "gpt-4o-mini".into())]);
    still_works(&agent)
}

/// Sends `bytes` from a client, not always reportable. Fails if the client hangs or the agent stops
/// working.
fn asked_with(mode: &str, bytes: &[u8]) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let base64 = openssl::base64::encode_block(bytes);
    let agent = Agent::shared(mode)?;
    let mut raw = stage.command(python()?);
    let call =
        run(raw.arg(script("raw.py")).args(["api.openai.com", &base64, "2"]))?.succeeded()?;
    ensure!(call.took < scaled(Duration::from_secs(8)), "the client hung for {:?}", call.took);
    still_works(&agent)
}

fn response(length: usize, body: &[u8], more: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let mut bytes = format!("{head}Content-Length: {length}\r\n{more}\r\n").into_bytes();
    bytes.extend(body);
    bytes
}

fn a_response_that_is_no_http(mode: &str) -> anyhow::Result<()> {
    answered_with(mode, b"HTTP/9.9 banana\r\n\xff\xfe: \0\r\n\r\nnothing".to_vec())
}

fn a_response_shorter_than_it_says(mode: &str) -> anyhow::Result<()> {
    answered_with(mode, response(5_000, br#"{"id":"chatcmpl-1","model":"gpt-4o"#, ""))
}

fn a_response_longer_than_it_says(mode: &str) -> anyhow::Result<()> {
    answered_with(mode, response(3, br#"{"id":"chatcmpl-1","model":"gpt-4o-mini"}"#, ""))
}

fn a_response_with_a_length_that_no_number_holds(mode: &str) -> anyhow::Result<()> {
    answered_with(
        mode,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n{}".to_vec(),
    )
}

fn a_response_that_is_a_gzip_bomb(mode: &str) -> anyhow::Result<()> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let mebibyte = vec![b' '; 1 << 20];
    for _ in 0..512 {
        encoder.write_all(&mebibyte)?;
    }
    let bomb = encoder.finish()?;
    answered_with(mode, response(bomb.len(), &bomb, "Content-Encoding: gzip\r\n"))
}

fn a_response_of_a_hundred_megabytes(mode: &str) -> anyhow::Result<()> {
    let body = vec![b'x'; 100_000_000];
    answered_with(mode, response(body.len(), &body, ""))
}

fn a_request_that_is_no_http(mode: &str) -> anyhow::Result<()> {
    asked_with(mode, b"\0\x01\x02 POST banana\r\n\r\n\r\nHTTP/1.1\r\n")
}

fn a_request_shorter_than_it_says(mode: &str) -> anyhow::Result<()> {
    asked_with(mode, b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: 100000\r\n\r\n{\"model\":")
}

fn a_request_longer_than_it_says(mode: &str) -> anyhow::Result<()> {
    asked_with(mode, b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: 2\r\n\r\n{}{}{}{}{}{}\r\n\r\n")
}

fn a_request_with_two_lengths(mode: &str) -> anyhow::Result<()> {
    asked_with(mode,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: 2\r\nContent-Length: 7\r\n\
          Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    )
}

fn a_request_of_a_hundred_megabytes(mode: &str) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let scratch = Scratch::new("body")?;
    let mut body =
        br#"{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": ""#.to_vec();
    body.resize(100_000_000, b'x');
    body.extend(br#""}]}"#);
    std::fs::write(scratch.join("body"), body)?;
    let agent = Agent::shared(mode)?;
    let mut curl = stage.command("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "25",
        "--header",
        "Expect:",
        "--output",
        "/dev/null",
    ]);
    curl.arg("--data-binary").arg(format!("@{}", scratch.join("body").display())).arg(URL);
    let call = run(&mut curl)?.succeeded()?;
    let awu = agent.only_awu_of(call.pid)?;
    // The answer's figures survive, however long the question.
    assert_says(
        &awu,
        &[("gen_ai.usage.output_tokens", 7.into()), ("gen_ai.request.model", "gpt-4o-mini".into())],
    );
    still_works(&agent)
}

#[test]
fn a_process_that_dies_in_the_middle_of_its_call() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    stage.provider.behave(Behaviour::Script {
        bytes: b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"id\":\"chatcmpl-1\"}\n\n".to_vec(),
        hang: true,
    });
    let agent = Agent::shared("mode: enforce")?;
    let mut client = stage.curl(URL, &question()).spawn()?;
    ensure!(stage.provider.log.wait_for_connections(1, Duration::from_secs(5)), "no connection");
    std::thread::sleep(scaled(Duration::from_millis(500)));
    client.kill()?;
    client.wait()?;
    let awu = agent.only_awu_of(client.id())?;
    ensure!(int(&awu, "gen_ai.usage.output_tokens").is_none(), "tokens were made up: {awu:#}");
    assert_says(&awu, &[("genops.accounting.incomplete", true.into())]);
    still_works(&agent)
}

#[test]
fn a_full_ring_is_counted_and_hurts_nobody() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::start("mode: observe\ncapture: {ring_bytes: 262144}")?;
    agent.signal(Signal::STOP)?;
    let mut client = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
    client
        .args(["client", "--address", &stage.provider.address.to_string(), "--root"])
        .arg(stage.root());
    let flood = client.args(["--requests", "3000"]).stdin(Stdio::null()).output();
    agent.signal(Signal::CONT)?;
    let flood = flood?;
    ensure!(
        flood.status.success(),
        "a client suffered: {}",
        String::from_utf8_lossy(&flood.stderr)
    );
    still_works(&agent)?;
    let losses = agent.losses()?;
    ensure!(
        losses.iter().any(|(name, _)| name.contains("ring_full")),
        "what was lost is not counted: {losses:?}"
    );
    Ok(())
}

/// Runs the agent on an invalid configuration; returns the exit code and the error message.
fn refused(command: &str, file: &str) -> anyhow::Result<(i32, String)> {
    let output =
        Command::new(program()?).args([command, "--config", file]).stdin(Stdio::null()).output()?;
    let code = output.status.code().context("an exit code")?;
    Ok((code, String::from_utf8(output.stderr)?))
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() -> anyhow::Result<()> {
    for command in ["check", "run"] {
        let (code, said) = refused(command, "/nonexistent/genops.yaml")?;
        assert_eq!(code, 2, "{said}");
        ensure!(said.contains("/nonexistent/genops.yaml"), "{said}");
    }
    Ok(())
}

#[test]
fn a_typo_in_a_policy_is_named_with_the_nearest_key() -> anyhow::Result<()> {
    let scratch = Scratch::new("typo")?;
    let file = scratch.join("config.yaml");
    std::fs::write(&file, "policies:\n  - {name: strict, alowed_models: [\"gpt-4o*\"]}\n")?;
    let path = file.to_str().context("a path")?;
    for command in ["check", "run"] {
        let (code, said) = refused(command, path)?;
        ensure!(code == 1 || code == 2, "exit code {code}: {said}");
        ensure!(said.contains("alowed_models") && said.contains("allowed_models"), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    }
    Ok(())
}
