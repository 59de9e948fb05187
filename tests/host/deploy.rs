//! The agent works under the conditions set by the files of `deploy/`: in a file system with hardly
//! any writable place, and under a service manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, Launch, program};
use genops_tests::clients::{Stage, run};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::support::{assert_says, can_run};

/// Shell script making the root file system read-only, as `ProtectSystem=strict` does. The first
/// argument and the socket's directory stay writable, as with `StateDirectory=` and
/// `RuntimeDirectory=`. The other arguments then replace the shell.
const READ_ONLY: &str = r#"
set -e
mkdir -p /run/genops
for it in "$1" /run/genops; do mount --bind "$it" "$it"; done
mount -o remount,bind,ro /
shift
exec "$@"
"#;

fn deployed(file: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

#[test]
fn commands_reach_an_agent_that_can_write_nothing_but_its_directories() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    for (file, grants) in [
        ("genops-agent.service", ["StateDirectory=genops", "RuntimeDirectory=genops"]),
        ("kubernetes.yaml", ["mountPath: /var/lib/genops}", "mountPath: /run/genops}"]),
    ] {
        let text = deployed(file)?;
        ensure!(grants.iter().all(|it| text.contains(it)), "{file} does not grant {grants:?}");
    }
    let (stage, scratch) = (Stage::new()?, Scratch::new("deploy")?);
    let unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, "sh"];
    let mut wrapper: Vec<_> = unshare.map(Into::into).into();
    wrapper.push(scratch.path().into());
    let evidence_in = Some(scratch.join("evidence"));
    let launch = Launch { wrapper, evidence_in, ..Launch::default() };
    let budgets = "mode: enforce\nbudgets: [{name: daily, limit: 5, period: day}]\n";
    let agent = Agent::launch(budgets, &launch)?;
    let target = format!("/proc/{}/root/usr/genops-writable", agent.pid());
    ensure!(std::fs::write(&target, "").is_err(), "{target} can be written");

    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let curl =
        run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?.succeeded()?;
    assert_says(&agent.only_awu_of(curl.pid)?, &[("genops.budget.name", "daily".into())]);
    let said = Command::new(program()?).args(["budget", "--output", "json"]).output()?;
    let said_of: Value = serde_json::from_slice(&said.stdout)
        .with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())?;
    ensure!(said_of.to_string().contains("daily"), "{said_of:#}");
    Ok(())
}

/// Returns the messages of an agent to the service manager, until `wanted` has come `times` times.
fn heard(socket: &UnixDatagram, wanted: &str, times: usize) -> anyhow::Result<Vec<String>> {
    let end = Instant::now() + scaled(Duration::from_secs(20));
    let (mut lines, mut found) = (Vec::new(), 0);
    let mut buffer = vec![0; 4_096];
    while found < times {
        ensure!(Instant::now() < end, "{wanted} came {found} times: {lines:?}");
        let Ok(count) = socket.recv(&mut buffer) else { continue };
        let text = std::str::from_utf8(buffer.get(..count).unwrap_or_default())?;
        found += text.lines().filter(|it| *it == wanted).count();
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}

#[test]
fn the_service_manager_is_told_that_the_agent_decides_goes_on_and_ends() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let unit = deployed("genops-agent.service")?;
    ensure!(unit.contains("Type=notify\nWatchdogSec=30\n"), "the unit asks for it");
    let scratch = Scratch::new("notify")?;
    let path = scratch.join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let wrapper = ["env".into(), format!("NOTIFY_SOCKET={}", path.display())];
    let mut wrapper: Vec<_> = wrapper.into_iter().map(Into::into).collect();
    wrapper.push("WATCHDOG_USEC=1000000".into());
    let mut agent = Agent::launch("mode: observe", &Launch { wrapper, ..Launch::default() })?;
    heard(&socket, "READY=1", 1)?;
    let said = heard(&socket, "WATCHDOG=1", 3)?;
    ensure!(said.contains(&"STATUS=ready".to_owned()), "{said:?}");
    agent.stop()?;
    heard(&socket, "STOPPING=1", 1)?;
    Ok(())
}
