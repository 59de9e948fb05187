//! Where things are, and how our children run cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::setup::{self, Toolchain};
use crate::steps;

/// The repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// What set-up installs for this checkout, and logs. Not under `target`, so that `cargo clean` keeps it.
pub(crate) fn cache() -> PathBuf {
    root().join(".cache")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The agent that [`build_release`] makes.
pub(crate) fn agent() -> PathBuf {
    target().join("release/genops-agent")
}

/// The cargo that started us, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A cargo that can build the kernel programs.
fn cargo_with(toolchain: &Toolchain) -> anyhow::Result<Command> {
    let mut command = cargo();
    command.env("GENOPS_BPF_TOOLCHAIN", &toolchain.name).env("PATH", path_with(&toolchain.path)?);
    command.env_remove("AYA_BUILD_SKIP");
    Ok(command)
}

/// `PATH` with further directories in front.
pub(crate) fn path_with(directories: &[PathBuf]) -> anyhow::Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(directories.iter().cloned().chain(std::env::split_paths(&path)))?)
}

/// Builds the agent with its kernel programs.
pub(crate) fn build_release(toolchain: &Toolchain) -> anyhow::Result<()> {
    let mut build = cargo_with(toolchain)?;
    build.args(["build", "--release", "--locked", "--package", "genops-agent"]);
    steps::run("build the agent (release)", &mut build)?;
    Ok(())
}

/// Builds the tests on this kernel, and the peers that they start; their program.
pub(crate) fn host_tests() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--locked", "--package", "genops-tests", "--test", "host", "--no-run"]);
    let output = steps::run("build the tests on this kernel", build.arg("--message-format=json"))?;
    let artifacts = output.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    let program = artifacts.filter(|it| it.target.name == "host").find_map(|it| it.executable);
    program.context("cargo built no tests named `host`")
}

/// A message of cargo's about something that it built.
#[derive(Debug, serde::Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Debug, serde::Deserialize)]
struct Target {
    name: String,
}

/// Sets up, builds, and runs a command of `genops-tests` on this terminal.
pub(crate) fn run_tool(name: &str, arguments: &[String]) -> anyhow::Result<()> {
    let toolchain = setup::toolchain()?;
    setup::clients()?;
    build_release(&toolchain)?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "genops-tests", "--bins"]);
    steps::run("build the peers (release)", &mut build)?;
    let program = target().join("release/genops-tests");
    let mut tool = Command::new(&program);
    tool.arg(name).args(arguments).env("GENOPS_AGENT", agent()).env("GENOPS_VENV", setup::venv());
    let status = tool.status().with_context(|| format!("{}", program.display()))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        uids.is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
    })
}
