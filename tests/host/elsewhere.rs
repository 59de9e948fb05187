//! `libssl` wherever the library is: another root, another version, a program started before the
//! agent.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{assert_says, can_run, int, text, which};

/// Copies a program with all required libraries below `root`, at the same paths.
fn copy_program(program: &Path, root: &Path) -> anyhow::Result<()> {
    let output = Command::new("ldd").arg(program).output()?;
    let listed = String::from_utf8(output.stdout)?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut copy = Command::new("cp");
    copy.args(["--dereference", "--parents"]).arg(program).args(libraries).arg(root);
    ensure!(copy.status()?.success(), "cannot copy {}", program.display());
    Ok(())
}

/// Runs curl in another root directory, entered by `enter`.
fn with_another_root(enter: &[&str]) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::shared("mode: observe")?;
    let root = Scratch::new("root")?;
    let curl = which("curl")?;
    copy_program(&curl, root.path())?;
    std::fs::create_dir_all(root.join("etc"))?;
    std::fs::create_dir_all(root.join("old"))?;
    std::fs::copy(stage.hosts(), root.join("etc/hosts"))?;
    std::fs::copy(stage.root(), root.join("root.pem"))?;
    std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files\n")?;
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let (program, arguments) = enter.split_first().context("a program")?;
    let mut client = stage.command(program);
    client.args(arguments).arg(root.path()).arg(&curl).args([
        "--silent",
        "--show-error",
        "--fail-with-body",
    ]);
    client.args(["--data-binary", &body.to_string(), "https://api.openai.com/v1/chat/completions"]);
    client.env("CURL_CA_BUNDLE", "/root.pem").env("SSL_CERT_FILE", "/root.pem");
    // The library is a file never seen by the agent. A program ending before the agent has opened
    // the file is not captured; here a program waiting for a silent server comes first.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut first = stage.command(program);
    first.args(arguments).arg(root.path()).arg(&curl).args(["--silent", "--max-time", "1"]);
    first.arg(format!("http://{}/", silent.local_addr()?));
    drop(run(&mut first)?);
    let finished = run(&mut client)?.succeeded()?;
    let awu = agent.only_awu_of(finished.pid)?;
    assert_says(
        &awu,
        &[("gen_ai.request.model", "gpt-4o-mini".into()), ("gen_ai.usage.output_tokens", 7.into())],
    );
    let exe = text(&awu, "process.executable.path").context("an executable")?;
    ensure!(exe.ends_with(curl.to_str().context("a path")?), "{exe}");
    Ok(())
}

#[test]
fn curl_in_a_changed_root_is_captured() -> anyhow::Result<()> {
    with_another_root(&["chroot"])
}

/// Changes the root as container runtimes do.
#[test]
fn curl_in_a_container_s_root_is_captured() -> anyhow::Result<()> {
    let enter =
        r#"cd "$1" && mount --bind . . && cd "$1" && pivot_root . old && shift && exec "$@""#;
    with_another_root(&["sh", "-c", enter, "sh"])
}

#[test]
fn openssl_1_1_is_captured() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::shared("mode: observe")?;
    let finished = run(stage.command(python()?).arg(script("openssl11.py")))?.succeeded()?;
    ensure!(finished.report()?.get("ok") == Some(&Value::Bool(true)), "{}", finished.report()?);
    let awu = agent.only_awu_of(finished.pid)?;
    assert_says(
        &awu,
        &[("gen_ai.request.model", "gpt-4o-mini".into()), ("gen_ai.usage.output_tokens", 7.into())],
    );
    Ok(())
}

#[test]
fn a_program_that_ran_before_the_agent_is_captured() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    Agent::end_shared();
    let stage = Stage::new()?;
    let pause = scaled(Duration::from_secs(4)).as_secs_f64().to_string();
    let client = stage.python("requests", &["--repeat", "2", "--pause", &pause])?.spawn()?;
    ensure!(
        stage.provider.log.wait_for_connections(1, Duration::from_secs(10)),
        "the client did not start"
    );
    std::thread::sleep(scaled(Duration::from_millis(300)));
    let agent = Agent::start("mode: observe")?;
    let finished = finish(client)?.succeeded()?;
    ensure!(stage.provider.log.connections().len() == 1, "the client did not keep its connection");
    let awu = agent.only_awu_of(finished.pid)?;
    ensure!(int(&awu, "gen_ai.usage.output_tokens") == Some(7), "{awu:#}");
    assert_says(
        &awu,
        &[
            ("gen_ai.provider.name", "openai".into()),
            ("gen_ai.request.model", "gpt-4o-mini".into()),
        ],
    );
    Ok(())
}

#[test]
fn a_crowd_of_short_lived_curls_is_attributed() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::shared("mode: observe")?;
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let exe = which("curl")?;
    for _ in 0..20 {
        let curl = run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?
            .succeeded()?;
        let awu = agent.only_awu_of(curl.pid)?;
        assert_says(&awu, &[("process.executable.path", exe.to_str().context("a path")?.into())]);
    }
    Ok(())
}

/// The kernel reports each start of a program, because nothing of an ended process is left to look
/// at.
#[test]
fn a_program_that_has_ended_before_the_agent_looks_is_named() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::start("mode: observe")?;
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let call =
        || run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?.succeeded();
    // The first call may find the library without probes.
    let first = call()?;
    agent.only_awu_of(first.pid)?;
    agent.signal(Signal::STOP)?;
    let unseen = call();
    agent.signal(Signal::CONT)?;
    let awu = agent.only_awu_of(unseen?.pid)?;
    let exe = which("curl")?;
    assert_says(&awu, &[("process.executable.path", exe.to_str().context("a path")?.into())]);
    Ok(())
}
