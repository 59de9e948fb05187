//! The measurements, part by part, each number beside its floor or goal.
//!
//! To add a part: a line in [`PARTS`], and a program that prints its numbers.

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{steps, workspace};

/// One part of the measurements.
struct Part {
    name: &'static str,
    run: fn(&[String]) -> anyhow::Result<()>,
}

/// Every part, in the order in which they run.
const PARTS: &[Part] = &[
    Part { name: "governance", run: |options| harness("genops-governance", "decide", options) },
    Part { name: "evidence", run: |options| harness("genops-evidence", "log", options) },
    Part { name: "calls", run: |options| workspace::run_tool("bench", options) },
];

/// What is to be measured, and how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Parts: governance (decisions, reservations, reloads), evidence (durable records, delay of a verdict, \
    verification), calls (latency, CPU time, memory and start-up; root). Without one, all of them.\n\n\
    Options follow the parts. `--tiny` shows that they work, in seconds.\n\n\
    Examples:\n  cargo xtask bench\n  cargo xtask bench governance\n  cargo xtask bench calls --requests 1500 --rounds 3"
)]
pub(crate) struct Bench {
    /// Names of parts, then options for them.
    #[arg(value_name = "PART", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let is_option = |it: &String| it.starts_with('-');
        let count = self.arguments.iter().position(is_option).unwrap_or(self.arguments.len());
        let (names, options) = self.arguments.split_at(count);
        for name in names {
            let known = PARTS.iter().map(|it| it.name).collect::<Vec<_>>().join(", ");
            let is_known = PARTS.iter().any(|it| it.name == name);
            ensure!(is_known, "`{name}` is no part of the measurements; there are {known}");
        }
        let wanted = |part: &&Part| names.is_empty() || names.iter().any(|it| it == part.name);
        PARTS.iter().filter(wanted).try_for_each(|part| (part.run)(options).context(part.name))
    }
}

/// Builds a package's benchmark and runs it on this terminal.
fn harness(package: &str, name: &str, options: &[String]) -> anyhow::Result<()> {
    let bench = |more: &[&str]| -> Command {
        let mut command = workspace::cargo();
        command.args(["bench", "--quiet", "--locked", "--package", package, "--bench", name]);
        command.args(more);
        command
    };
    steps::run(&format!("build the measurements of {package}"), &mut bench(&["--no-run"]))?;
    let mut run = bench(&["--"]);
    let status = run.args(options).status().context("cargo")?;
    ensure!(status.success(), "{package} ended with {status}");
    Ok(())
}
