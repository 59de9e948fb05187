//! Fuzzing with cargo-fuzz and a nightly compiler.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, ensure};

use crate::{setup, steps, workspace};

/// Fuzz the decoders from their committed corpus.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// A single target; without a name, all targets.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

impl Fuzz {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if let Some(reason) = unavailable() {
            anyhow::bail!("{reason}");
        }
        install()?;
        let mut targets = targets()?;
        if let Some(wanted) = &self.target {
            targets.retain(|target| target.name == *wanted);
            ensure!(!targets.is_empty(), "no fuzz target is named `{wanted}`");
        }
        build(&targets)?;
        run_all(targets, self.seconds, None).into_iter().collect()
    }
}

/// Fuzz target of a crate.
#[derive(Debug)]
pub(crate) struct Target {
    /// Name of the target's file.
    pub(crate) name: String,
    /// The `fuzz` directory.
    directory: PathBuf,
}

impl Target {
    /// Returns `cargo fuzz` with the common arguments of all commands. Without a sanitizer: the
    /// crates forbid `unsafe`, and fuzzing is several times faster.
    fn cargo_fuzz(&self, command: &str) -> Command {
        let mut fuzz = Command::new("cargo");
        fuzz.args(["+nightly", "fuzz", command, "--sanitizer", "none", "--fuzz-dir"]);
        fuzz.arg(&self.directory).arg("--target-dir").arg(workspace::target().join("fuzz"));
        fuzz.current_dir(&self.directory).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        fuzz
    }

    /// Runs the target from the committed seeds. New inputs are kept for the next run, but outside
    /// the tree.
    fn run(&self, seconds: u32, seed: Option<u32>) -> anyhow::Result<()> {
        let Self { name, directory } = self;
        let found = workspace::cache().join("fuzz").join(name);
        std::fs::create_dir_all(&found).with_context(|| format!("{}", found.display()))?;
        let mut fuzz = self.cargo_fuzz("run");
        fuzz.arg(name).arg(&found);
        let seeds = directory.join("seeds").join(name);
        if seeds.exists() {
            fuzz.arg(seeds);
        }
        fuzz.args(["--", &format!("-max_total_time={seconds}"), "-timeout=10", "-max_len=8192"]);
        fuzz.args(seed.map(|seed| format!("-seed={seed}")));
        fuzz.arg(format!("-artifact_prefix={}/", workspace::cache().join("fuzz").display()));
        steps::run(&format!("fuzz {name} for {seconds} s"), &mut fuzz)?;
        Ok(())
    }
}

/// Builds every target first, so a minute of fuzzing is a minute.
pub(crate) fn build(targets: &[Target]) -> anyhow::Result<()> {
    let mut built = Vec::new();
    for target in targets {
        if !built.contains(&&target.directory) {
            built.push(&target.directory);
            steps::run("build the fuzz targets", &mut target.cargo_fuzz("build"))?;
        }
    }
    Ok(())
}

/// Runs the targets for `seconds` each, two at a time. The same `seed` makes the same inputs.
pub(crate) fn run_all(
    targets: Vec<Target>,
    seconds: u32,
    seed: Option<u32>,
) -> Vec<anyhow::Result<()>> {
    let queue = Mutex::new(targets);
    let work = || {
        let mut results = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(target) = next else { return results };
            results.push(target.run(seconds, seed));
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut results = work();
        results.extend(other.join().unwrap_or_default());
        results
    })
}

/// Returns the reason if the machine cannot fuzz.
pub(crate) fn unavailable() -> Option<String> {
    let nightly = setup::works("rustup", &["run", "nightly", "rustc", "-V"]);
    (!nightly)
        .then(|| "fuzzing needs a nightly compiler: `rustup toolchain install nightly`".to_owned())
}

/// Installs cargo-fuzz if missing.
pub(crate) fn install() -> anyhow::Result<()> {
    if !setup::works("cargo", &["fuzz", "--version"]) {
        let mut install = workspace::cargo();
        install.args(["install", "--locked", "cargo-fuzz"]).env_remove("CARGO_TARGET_DIR");
        steps::run("build cargo-fuzz (about a minute)", &mut install)?;
    }
    Ok(())
}

/// Returns every target of every crate with a `fuzz` directory.
pub(crate) fn targets() -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(workspace::root())? {
        let directory = entry?.path().join("fuzz");
        let Ok(files) = std::fs::read_dir(directory.join("fuzz_targets")) else { continue };
        for file in files {
            let path = file?.path();
            let name =
                path.file_stem().and_then(|stem| stem.to_str()).context("a target's name")?;
            targets.push(Target { name: name.to_owned(), directory: directory.clone() });
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}
