//! Paths of the workspace, and the environment of cargo for child processes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::setup::{self, Toolchain};
use crate::steps;

/// Returns the repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Returns the directory for the checkout's installed tools and logs. Not under `target`, so
/// `cargo clean` keeps the directory.
pub(crate) fn cache() -> PathBuf {
    root().join(".cache")
}

/// Returns cargo's build directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Returns the path of the agent built by [`build_release`].
pub(crate) fn agent() -> PathBuf {
    target().join("release/genops-agent")
}

/// Returns the cargo running the program, set to the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns a cargo able to build the kernel programs.
fn cargo_with(toolchain: &Toolchain) -> anyhow::Result<Command> {
    let mut command = cargo();
    command.env("GENOPS_BPF_TOOLCHAIN", &toolchain.name).env("PATH", path_with(&toolchain.path)?);
    command.env_remove("AYA_BUILD_SKIP");
    Ok(command)
}

/// Returns `PATH` with further directories in front.
pub(crate) fn path_with(directories: &[PathBuf]) -> anyhow::Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(directories.iter().cloned().chain(std::env::split_paths(&path)))?)
}

/// Builds the agent with the kernel programs.
pub(crate) fn build_release(toolchain: &Toolchain) -> anyhow::Result<()> {
    let mut build = cargo_with(toolchain)?;
    build.args(["build", "--release", "--locked", "--package", "genops-agent"]);
    steps::run("build the agent (release)", &mut build)?;
    Ok(())
}

/// Builds the tests on this kernel and the peers started by the tests; returns the program.
pub(crate) fn host_tests() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--locked", "--package", "genops-tests", "--test", "host", "--no-run"]);
    let output = steps::run("build the tests on this kernel", build.arg("--message-format=json"))?;
    let artifacts = output.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    let program = artifacts.filter(|it| it.target.name == "host").find_map(|it| it.executable);
    program.context("cargo built no tests named `host`")
}

/// Cargo's message about a built artifact.
#[derive(Debug, serde::Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Debug, serde::Deserialize)]
struct Target {
    name: String,
}

/// Sets up and builds; returns a command of `genops-tests`, ready to run.
pub(crate) fn tool(name: &str, arguments: &[String]) -> anyhow::Result<Command> {
    let toolchain = setup::toolchain()?;
    setup::clients()?;
    build_release(&toolchain)?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "genops-tests", "--bins"]);
    steps::run("build the peers (release)", &mut build)?;
    let mut tool = Command::new(target().join("release/genops-tests"));
    tool.arg(name).args(arguments).env("GENOPS_AGENT", agent()).env("GENOPS_VENV", setup::venv());
    Ok(tool)
}

/// Sets up, builds, and runs a command of `genops-tests` on the current terminal.
pub(crate) fn run_tool(name: &str, arguments: &[String]) -> anyhow::Result<()> {
    let mut tool = tool(name, arguments)?;
    let status = tool.status().with_context(|| tool.get_program().display().to_string())?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

/// Returns true if the program runs as root.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        uids.is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
    })
}
