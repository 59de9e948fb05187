//! Measurements, part by part, each number beside the floor or goal.
//!
//! `--write` puts the printed numbers into `docs/benchmarks.md`, between the comments naming a
//! part. To add a part: a line in [`PARTS`], a program printing the numbers as Markdown, and a
//! section on the page.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::{steps, workspace};

/// Part of the measurements.
struct Part {
    name: &'static str,
    /// Builds the measuring program.
    program: fn(&[String]) -> anyhow::Result<Command>,
}

/// Every part, in order of execution.
const PARTS: &[Part] = &[
    Part { name: "governance", program: |options| harness("genops-governance", "decide", options) },
    Part { name: "evidence", program: |options| harness("genops-evidence", "log", options) },
    Part { name: "calls", program: |options| workspace::tool("bench", options) },
];
/// Page with the figures, below the repository's root.
const PAGE: &str = "docs/benchmarks.md";
/// Ends a section of the page.
const END: &str = "<!-- end -->";

/// Parts to measure, and options.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Parts: governance (decisions, reservations, reloads), evidence (durable records, delay of a verdict, \
    verification), calls (latency, CPU time, memory and start-up; root). Without one, all of them.\n\n\
    Options follow the parts. `--tiny` shows that they work, in seconds; `--write` replaces their figures in \
    docs/benchmarks.md. `calls --against PATH` alternates the agent with another one and tells what a request costs more.\n\n\
    Examples:\n  cargo xtask bench\n  cargo xtask bench governance --write\n  cargo xtask bench calls --requests 1500 --rounds 3\n  \
    cargo xtask bench calls --against ../before/target/release/genops-agent"
)]
pub(crate) struct Bench {
    /// Names of parts, then options for the parts.
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
        let (write, options): (Vec<_>, Vec<_>) =
            options.iter().cloned().partition(|option| option == "--write");
        let writes = !write.is_empty();
        for other in ["--tiny", "--against"] {
            let is_given = options.iter().any(|option| option.starts_with(other));
            ensure!(
                !writes || !is_given,
                "`--write` needs whole measurements: leave out `{other}`"
            );
        }
        let wanted = |part: &&Part| names.is_empty() || names.iter().any(|it| it == part.name);
        for part in PARTS.iter().filter(wanted) {
            let figures = shown((part.program)(&options)?).context(part.name)?;
            if writes {
                write_down(part.name, &options, &figures)?;
            }
        }
        Ok(())
    }
}

/// Runs a program, shows each line, and returns the whole output.
fn shown(mut program: Command) -> anyhow::Result<String> {
    let name = program.get_program().display().to_string();
    let mut child = program.stdout(Stdio::piped()).spawn().context(name.clone())?;
    let stdout = child.stdout.take().context("the output is a pipe")?;
    let mut output = String::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait()?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(output)
}

/// Replaces the figures of a part on the page, and states the command, machine, kernel and date.
fn write_down(part: &str, options: &[String], figures: &str) -> anyhow::Result<()> {
    let path = workspace::root().join(PAGE);
    let page = std::fs::read_to_string(&path).context(PAGE)?;
    let command = [&["cargo xtask bench".to_owned(), part.to_owned()], options].concat().join(" ");
    let day = said(Command::new("date").args(["--utc", "+%F"]))?;
    let release = said(Command::new("uname").arg("--kernel-release"))?;
    let kernel = release.split('-').next().unwrap_or_default();
    let machine = std::env::consts::ARCH;
    let cores = std::thread::available_parallelism()?;
    let figures = figures.trim();
    let section =
        format!("`{command}`, {day}, Linux {kernel} {machine}, {cores} cores:\n\n{figures}");
    std::fs::write(&path, replaced(&page, part, &section)?).context(PAGE)
}

/// Returns the page with another text between the comments of a part.
fn replaced(page: &str, part: &str, section: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- cargo xtask bench {part} -->");
    let (before, rest) =
        page.split_once(&begin).with_context(|| format!("{PAGE} has no line `{begin}`"))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{PAGE}: `{begin}` has no `{END}`"))?;
    Ok(format!("{before}{begin}\n{section}\n{END}{after}"))
}

/// Returns the first line printed by a command.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("cannot start a program")?;
    ensure!(output.status.success(), "{} failed", command.get_program().display());
    Ok(String::from_utf8(output.stdout)?.lines().next().unwrap_or_default().to_owned())
}

/// Builds a package's benchmark and returns the command for the benchmark.
fn harness(package: &str, name: &str, options: &[String]) -> anyhow::Result<Command> {
    let bench = |more: &[&str]| -> Command {
        let mut command = workspace::cargo();
        command.args(["bench", "--quiet", "--locked", "--package", package, "--bench", name]);
        command.args(more);
        command
    };
    steps::run(&format!("build the measurements of {package}"), &mut bench(&["--no-run"]))?;
    let mut run = bench(&["--"]);
    run.args(options);
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::{PAGE, PARTS, replaced};
    use crate::workspace;

    #[test]
    fn a_part_replaces_its_own_section() -> anyhow::Result<()> {
        let page = "A\n<!-- cargo xtask bench calls -->\nold\n<!-- end -->\nB\n";
        let expected = "A\n<!-- cargo xtask bench calls -->\nnew\n<!-- end -->\nB\n";
        assert_eq!(replaced(page, "calls", "new")?, expected);
        assert!(replaced(page, "evidence", "new").is_err());
        assert!(replaced("<!-- cargo xtask bench calls -->", "calls", "new").is_err());
        Ok(())
    }

    #[test]
    fn the_page_has_a_section_for_each_part() -> anyhow::Result<()> {
        let page = std::fs::read_to_string(workspace::root().join(PAGE))?;
        for part in PARTS {
            replaced(&page, part.name, "")?;
        }
        Ok(())
    }
}
