//! The command line: subcommands and exit codes.
//!
//! Each subcommand is a struct with a `run` method in the module of its work. The present module
//! only lists the subcommands, and turns their results into exit codes: 0 done; 1 the checked thing
//! is not so; 2 wrong usage or unreadable input; 3 a run that could not start or go on.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::commands::{
    approve, budget, check, conformance, doctor, explain, policy, prices, report, run, unpin, why,
};
use crate::config::LoadError;
use crate::discovery::Inspect;
use crate::run::ReadMemory;
use crate::{evidence, guard, record, replay, top};

/// Governs the AI calls of a host's unmodified programs.
///
/// Reads each call inside the kernel, identifies the caller, decides before the first byte leaves
/// the host, and reports the call as OpenTelemetry and as evidence checkable offline.
#[derive(Debug, Parser)]
#[command(name = "genops-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Doctor(doctor::Doctor),
    Unpin(unpin::Unpin),
    Record(record::Record),
    Replay(replay::Replay),
    #[command(
        subcommand,
        after_help = "Example: genops-agent evidence verify /var/lib/genops/evidence"
    )]
    Evidence(evidence::Command),
    #[command(after_help = "Example: genops-agent witness --listen 0.0.0.0:8741 --log host.vkey")]
    Witness(evidence::witness::Serve),
    Conformance(conformance::Conformance),
    Top(top::Top),
    #[command(subcommand, after_help = "Example: genops-agent policy show --config agent.yaml")]
    Policy(policy::Policy),
    #[command(subcommand, after_help = "Example: genops-agent prices show gpt-4o-mini")]
    Prices(prices::Prices),
    Budget(budget::Budget),
    Approve(approve::Approve),
    Explain(explain::Explain),
    Why(why::Why),
    Report(Box<report::Report>),
    /// Apply the hold's deadline when the agent cannot; started by the agent
    #[command(hide = true)]
    Guard(guard::Guard),
    /// Look into files for places of probes; started by the agent
    #[command(hide = true)]
    Inspect(Inspect),
    /// Write memory of another process to the standard output; started by the agent
    #[command(hide = true)]
    ReadMemory(ReadMemory),
}

/// Format of a result that scripts may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// `--config FILE`, shared by most subcommands.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConfigFile {
    /// Configuration to use; without a file, observe with the defaults.
    #[arg(long = "config", value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

/// Runs the requested subcommand.
pub(crate) fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let done = match command {
        Command::Run(it) => it.run(),
        Command::Check(it) => it.run(),
        Command::Doctor(it) => it.run(),
        Command::Unpin(it) => it.run(),
        Command::Record(it) => it.run(),
        Command::Replay(it) => it.run(),
        Command::Evidence(it) => match it.run() {
            Ok(code) => return code,
            Err(error) => Err(Failure::unreadable(error)),
        },
        Command::Witness(it) => match it.run() {
            Ok(code) => return code,
            Err(error) => Err(Failure::run(error)),
        },
        Command::Conformance(it) => it.run(),
        Command::Top(it) => it.run(),
        Command::Policy(it) => it.run(),
        Command::Prices(it) => it.run(),
        Command::Budget(it) => it.run(),
        Command::Approve(it) => it.run(),
        Command::Explain(it) => it.run(),
        Command::Why(it) => it.run(),
        Command::Report(it) => it.run(),
        Command::Guard(it) => it.run().map_err(Failure::run),
        Command::Inspect(it) => it.run().map_err(Failure::run),
        Command::ReadMemory(it) => it.run().map_err(Failure::run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let said = match &failure.error {
                Some(error) => writeln!(io::stderr(), "error: {error:#}"),
                None => Ok(()),
            };
            // Without a standard error only the exit code remains.
            said.unwrap_or_default();
            ExitCode::from(failure.code)
        }
    }
}

/// An exit code other than 0, with its message.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Message for the standard error; `None`: all was said.
    error: Option<anyhow::Error>,
}

impl Failure {
    /// Exit code 1: the checked thing is not so, with the reason.
    pub(crate) fn not_so(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 1, error: Some(error.into()) }
    }

    /// Exit code 1: the checked thing is not so, and the output has the reason.
    pub(crate) fn not_so_as_said() -> Self {
        Self { code: 1, error: None }
    }

    /// Exit code 2: wrong usage, or unreadable input.
    pub(crate) fn unreadable(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 2, error: Some(error.into()) }
    }

    /// Exit code 3: a run that could not start or go on.
    pub(crate) fn run(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 3, error: Some(error.into()) }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable { .. } => Self::unreadable(error),
            LoadError::Invalid(_) => Self::not_so(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "exit code {}: {error:#}", self.code),
            None => write!(f, "exit code {}", self.code),
        }
    }
}

/// Writes to the standard output. A closed reader (`| head`) is not a failure.
pub(crate) fn print(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Printed, Failure> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(Printed::All),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Buffered bytes have no reader; another write at drop would fail again.
            let (_, _) = out.into_parts();
            Ok(Printed::ReaderGone)
        }
        Err(error) => Err(Failure::run(anyhow::Error::new(error).context("standard output"))),
    }
}

/// Result of printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    /// All output was written.
    All,
    /// The reader is gone.
    ReaderGone,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_does_and_shows_an_example() {
        for sub in Cli::command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_name();
            assert!(sub.get_about().is_some(), "`{name}` does not say what it does");
            for nested in sub.get_subcommands() {
                let under = nested.get_name();
                assert!(nested.get_about().is_some(), "`{name} {under}` does not say what it does");
            }
            let example = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&format!("genops-agent {name}")), "`{name}` has no example");
        }
    }
}
