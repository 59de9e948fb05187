//! The agent works with exactly the capabilities granted by `deploy/`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, Launch};
use genops_tests::clients::{Stage, run};
use serde_json::{Value, json};

use crate::support::{assert_says, can_run, which};

/// Capabilities in a file of `deploy/`, in lower case without `cap_`.
fn granted(file: &str, starts: &str, separator: char) -> anyhow::Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(starts))
        .context(starts.to_owned())?;
    let names = line
        .trim_matches(['[', ']', ' '])
        .split(separator)
        .map(str::trim)
        .filter(|name| !name.is_empty());
    Ok(names.map(|name| name.trim_start_matches("CAP_").to_ascii_lowercase()).collect())
}

/// Returns the capabilities granted by the systemd unit.
pub(crate) fn of_the_unit() -> anyhow::Result<BTreeSet<String>> {
    granted("genops-agent.service", "CapabilityBoundingSet=", ' ')
}

#[test]
fn both_ways_to_deploy_grant_the_same() -> anyhow::Result<()> {
    assert_eq!(of_the_unit()?, granted("kubernetes.yaml", "add: ", ',')?);
    Ok(())
}

#[test]
fn nothing_in_deploy_is_privileged() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes.yaml"),
    )?;
    ensure!(!text.contains("privileged: true"), "the DaemonSet is privileged");
    for everything in ["setuid", "sys_module", "sys_rawio", "dac_override", "sys_boot"] {
        ensure!(!of_the_unit()?.contains(everything), "{everything} is not needed");
    }
    Ok(())
}

/// Returns options to start the agent through `setpriv` with exactly the given capabilities.
pub(crate) fn confined(capabilities: &BTreeSet<String>) -> Launch {
    let list = capabilities.iter().fold("-all".to_owned(), |list, name| format!("{list},+{name}"));
    // As in the unit: maps of kernels before 5.11 count as locked memory. If the limit can't be
    // raised, a later kernel does not mind.
    let wrapper = [
        "sh",
        "-c",
        "ulimit -l unlimited 2>/dev/null; exec \"$@\"",
        "sh",
        "setpriv",
        "--bounding-set",
        &list,
        "--inh-caps",
        "-all",
        "--no-new-privs",
        "--",
    ];
    Launch { wrapper: wrapper.iter().map(Into::into).collect(), ..Launch::default() }
}

#[test]
fn a_short_lived_curl_is_attributed_under_the_granted_capabilities() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::launch("mode: observe", &confined(&of_the_unit()?))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
    let held = u64::from_str_radix(bits.trim(), 16)?.count_ones() as usize;
    ensure!(held == of_the_unit()?.len(), "the agent holds {held} capabilities: {bits}");

    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let curl =
        run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?.succeeded()?;
    let awu = agent.only_awu_of(curl.pid)?;
    let exe = which("curl")?;
    assert_says(&awu, &[("process.executable.path", exe.to_str().context("a path")?.into())]);
    Ok(())
}

#[test]
fn a_call_is_denied_under_the_granted_capabilities() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let configuration = "mode: enforce\npolicies:\n  - {name: no-pro, denied_models: [\"*-pro\"], enforcement: block}";
    let agent = Agent::launch(configuration, &confined(&of_the_unit()?))?;
    let call = run(&mut stage.python("openai", &["--model", "o1-pro"])?)?;
    let report = call.report()?;
    ensure!(report.get("ok") == Some(&Value::Bool(false)), "the call went through: {report}");
    ensure!(stage.provider.log.request_count() == 0, "the request arrived");
    assert_says(&agent.only_awu_of(call.pid)?, &[("genops.policy.result", "BLOCKED".into())]);
    let allowed = run(&mut stage.python("openai", &[])?)?.succeeded()?.report()?;
    ensure!(allowed.get("ok") == Some(&Value::Bool(true)), "{allowed}");
    Ok(())
}
