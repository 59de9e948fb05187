//! Helpers shared by all tests of the directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use genops_tests::agent::program;
use genops_tests::clients::Finished;
use genops_tests::provider::Request;
use genops_tests::scratch::Scratch;
use serde_json::Value;

/// Whether tests of the kernel can run; prints the reason if not.
#[expect(clippy::print_stdout, reason = "the test runner counts what is skipped by this line")]
pub(crate) fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: tests on this kernel need root");
    }
    root
}

/// A text attribute of a unit.
pub(crate) fn text<'a>(awu: &'a Value, key: &str) -> Option<&'a str> {
    awu.get(key).and_then(Value::as_str)
}

/// An integer attribute of a unit.
pub(crate) fn int(awu: &Value, key: &str) -> Option<u64> {
    awu.get(key).and_then(Value::as_u64)
}

/// Fails unless the unit has all expected attributes.
#[track_caller]
pub(crate) fn assert_says(awu: &Value, expected: &[(&str, Value)]) {
    let wrong: Vec<_> =
        expected.iter().filter(|(key, value)| awu.get(*key) != Some(value)).collect();
    assert!(wrong.is_empty(), "expected {wrong:?} of {awu:#}");
}

/// Returns the expected attributes of the unit of an answered call.
pub(crate) fn as_answered(
    request: &Request,
    finished: &Finished,
    exe: &Path,
) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let provider = if request.host == "api.anthropic.com" { "anthropic" } else { "openai" };
    let mut expected = vec![
        ("gen_ai.provider.name", provider.into()),
        ("server.address", request.host.clone().into()),
        ("gen_ai.request.model", request.model.clone().context("a model")?.into()),
        ("http.response.status_code", 200.into()),
        ("process.pid", finished.pid.into()),
        ("process.executable.path", exe.to_str().context("a path")?.into()),
        ("genops.policy.result", "ALLOWED".into()),
        ("genops.capture.level", "full".into()),
    ];
    let tokens = [
        ("gen_ai.usage.input_tokens", request.input_tokens),
        ("gen_ai.usage.output_tokens", request.output_tokens),
    ];
    expected.extend(tokens.into_iter().filter_map(|(key, count)| Some((key, count?.into()))));
    if request.stream {
        expected.push(("gen_ai.request.stream", true.into()));
    }
    Ok(expected)
}

/// Returns the file of a program on `PATH`.
pub(crate) fn which(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH")?;
    let found =
        std::env::split_paths(&path).map(|place| place.join(program)).find(|path| path.is_file());
    Ok(found.with_context(|| format!("{program} is not installed"))?.canonicalize()?)
}

/// Copies a program under another name, so that the copy is another principal.
pub(crate) fn copy_of(program: &str, scratch: &Scratch, name: &str) -> anyhow::Result<String> {
    let copy = scratch.join(name);
    std::fs::copy(which(program)?, &copy)?;
    Ok(copy.to_str().context("a path")?.to_owned())
}

/// Returns the only request to a provider.
pub(crate) fn only(requests: Vec<Request>) -> anyhow::Result<Request> {
    ensure!(requests.len() == 1, "one request was made, the provider saw {requests:#?}");
    requests.into_iter().next().context("one request")
}

/// Key of the principal in a unit.
pub(crate) const PRINCIPAL: &str = "genops.principal";

/// Configuration file of an agent. On drop, `unpin` removes the agent's programs from the kernel,
/// however the test ends.
pub(crate) struct Unpinned(pub(crate) PathBuf);

impl Drop for Unpinned {
    fn drop(&mut self) {
        let unpinned = program().and_then(|agent| {
            let mut unpin = Command::new(agent);
            Ok(unpin.args(["unpin", "--config"]).arg(&self.0).status()?)
        });
        if !unpinned.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("unpin: {unpinned:?}");
        }
    }
}

/// Whether a BPF file system is, or can be mounted, at the usual place; prints the reason if not.
#[expect(clippy::print_stdout, reason = "the test runner counts what is skipped by this line")]
pub(crate) fn has_bpf_files() -> bool {
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf"))
    };
    let mount = || {
        let mut mount = Command::new("mount");
        mount.args(["-t", "bpf", "bpf", "/sys/fs/bpf"]).status().is_ok_and(|it| it.success())
    };
    let has = mounted() || mount();
    if !has {
        println!("skipped: no BPF file system can be mounted");
    }
    has
}
