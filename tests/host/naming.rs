//! Identity of processes and of addresses: from facts written by the kernel alone, and from
//! nobody's own word.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, finish, python, run, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::support::{PRINCIPAL, can_run, copy_of, int, text};

const URL: &str = "https://api.openai.com/v1/chat/completions";

fn body(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
}

/// Returns the units of a process.
fn units(agent: &Agent, pid: u32, count: usize) -> anyhow::Result<Vec<Value>> {
    let of_process = |awu: &Value| int(awu, "process.pid") == Some(pid.into());
    agent.wait_for(count, scaled(Duration::from_secs(5)), of_process)
}

/// Ways to show another program under the path of a principal's program.
const SHOWN: [&str; 3] = [
    r#"mount --bind "$(command -v curl)" "$0""#,
    r#"mount -t tmpfs none "$(dirname "$0")" && cp "$(command -v curl)" "$0""#,
    r#"mkdir "$0.d" && cp "$(command -v curl)" "$0.d/clerk" && mount --bind "$0.d" "$(dirname "$0")""#,
];

#[test]
fn a_program_that_is_shown_under_a_principals_path_is_not_that_principal() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("clerk")?;
    let clerk = copy_of("curl", &scratch, "clerk")?;
    let agent = Agent::start(&format!(
        "mode: enforce\non_timeout: closed\nunmapped: block\nhold_deadline_ms: 20000\n\
         principals: [{{name: clerk, match: {{exe: {clerk}}}, team: desk, project: desk}}]"
    ))?;
    let stage = Stage::new()?;
    let call = |how: &str| -> anyhow::Result<_> {
        let mut command = stage.command("sh");
        let script = format!(r#"{how} && exec "$0" --silent --max-time 10 --data "$1" "$2""#);
        run(command.args(["-c", &script, &clerk, &body("gpt-4o-mini").to_string(), URL]))
    };
    let own = call("true")?.succeeded()?;
    let unit = units(&agent, own.pid, 1)?.pop().context("a unit")?;
    ensure!(text(&unit, PRINCIPAL) == Some("clerk"), "{unit:#}");
    for how in SHOWN {
        let shown = call(how)?;
        let unit = units(&agent, shown.pid, 1)?.pop().context("a unit")?;
        ensure!(text(&unit, PRINCIPAL) != Some("clerk"), "{how}: {unit:#}");
        ensure!(text(&unit, "genops.policy.result") == Some("BLOCKED"), "{how}: {unit:#}");
        ensure!(text(&unit, "process.executable.path") == Some(&clerk), "{how}: {unit:#}");
    }
    ensure!(stage.provider.log.request_count() == 1, "{:?}", stage.provider.log.requests());
    Ok(())
}

#[test]
fn whose_an_address_is_nobody_says_for_others() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let _agent = Agent::start(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: 20000\n\
         policies: [{name: none, denied_providers: [openai]}]",
    )?;
    let stage = Stage::new()?;
    let mut client = stage.command(python()?);
    client.arg(script("names.py")).arg("127.41.7.9");
    let report = run(&mut client)?.succeeded()?.report()?;
    let closed = json!({"provider": false, "nobody's": true});
    let expected = json!({
        "call": "ended", "before": closed, "after closing": closed, "after opening": closed,
    });
    ensure!(report == expected, "{report:#}");
    Ok(())
}

/// Returns a call by `gnutls-cli`; `name` is the option for the server name.
fn by_gnutls(stage: &Stage, name: &str) -> Command {
    let mut command = stage.command("sh");
    let script = r#"{ printf 'GET /v1/models HTTP/1.1\r\nHost: files.example.test\r\nConnection: close\r\n\r\n'; sleep 1; } |
                    gnutls-cli --insecure $0 --port 443 "$1""#;
    command.args(["-c", script, name, &address(stage).ip().to_string()]);
    command
}

fn address(stage: &Stage) -> SocketAddr {
    stage.provider.address
}

#[test]
fn a_handshake_without_a_confirmed_name_is_ended_where_that_is_the_rule() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent =
        Agent::start("mode: enforce\non_timeout: closed\nhold_deadline_ms: 20000\nunnamed: block")?;
    let stage = Stage::new()?;
    let is_unnamed = |awu: &Value| text(awu, "gen_ai.operation.name") == Some("x_unnamed");
    for (count, name) in (1..).zip(["--disable-sni", "--sni-hostname=files.example.test"]) {
        run(&mut by_gnutls(&stage, name))?;
        let units = agent.wait_for(count, scaled(Duration::from_secs(5)), is_unnamed)?;
        let unit = units.last().context("a unit")?;
        ensure!(text(unit, "genops.policy.result") == Some("BLOCKED"), "{name}: {unit:#}");
        ensure!(stage.provider.log.request_count() == 0, "{name}: it arrived");
    }
    // Plaintext read by probes is decided by its content.
    let url = format!("https://{}/v1/models", address(&stage));
    let mut read = stage.command("curl");
    run(read.args(["--silent", "--insecure", "--max-time", "10", &url]))?.succeeded()?;
    ensure!(agent.awus().iter().filter(|it| is_unnamed(it)).count() == 2, "{:#?}", agent.awus());
    Ok(())
}

/// Program giving a provider's name to TLS objects, at full speed.
const FLOOD: &str = "
import ssl, time
context, end = ssl.create_default_context(), time.monotonic() + 8
while time.monotonic() < end:
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='api.openai.com')
";

#[test]
fn one_users_flood_of_names_lets_nothing_of_others_pass_and_ends_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        "mode: enforce\non_timeout: open\nhold_deadline_ms: 2000\n\
         policies: [{name: no-pro, denied_models: [\"*-pro\"]}]",
    )?;
    let stage = Stage::new()?;
    // A first call, so that the libraries have probes.
    run(&mut stage.curl(URL, &body("gpt-4o-mini")))?.succeeded()?;
    let mut flood = stage.command("setpriv");
    flood.args(["--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", FLOOD]);
    let flood = flood.spawn()?;
    for _ in 0..5 {
        run(&mut stage.curl(URL, &body("gpt-4o-mini")))?.succeeded()?;
        let refused = run(&mut stage.curl(URL, &body("o1-pro")))?;
        ensure!(!refused.output.status.success(), "a refused call went through");
    }
    finish(flood)?.succeeded()?;
    let models: Vec<_> = stage.provider.log.requests().into_iter().map(|it| it.model).collect();
    let allowed = models.iter().filter(|it| it.as_deref() == Some("gpt-4o-mini")).count();
    ensure!((allowed, models.len()) == (6, 6), "{models:?} {}", agent.stderr());
    Ok(())
}
