//! `genops-agent evidence ..`: work of an auditor on an evidence directory, offline, without a
//! running agent. Only [`upkeep`] writes into the directory.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use genops_evidence::note::PublicKey;
use genops_evidence::{Directory, TreeHead};

mod export;
pub(crate) mod filter;
pub(crate) mod outward;
mod prove;
mod replay;
pub(crate) mod ship;
mod show;
mod upkeep;
pub(crate) mod verify;
pub(crate) mod witness;

/// Default evidence directory.
const DIRECTORY: &str = "/var/lib/genops/evidence";

/// Verify, read and hand out evidence, offline.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that evidence is whole and true to its signatures.
    Verify(verify::Verify),
    /// List records.
    Show(show::Show),
    /// Write a proof that a record is in the log.
    Prove(prove::Prove),
    /// Hand out records, with proofs and a signed statement.
    Export(export::Export),
    /// Sign with a new key from here on.
    Rotate(upkeep::Rotate),
    /// Decide every recorded decision again, and compare.
    Replay(replay::Replay),
    /// Give up the bytes of old records.
    Prune(upkeep::Prune),
    /// Destroy the keys of days: content sealed or digested with the keys can't be read or matched
    /// any more.
    Forget(upkeep::Forget),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Verify(command) => command.run(),
            Self::Show(command) => command.run(),
            Self::Prove(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Rotate(command) => command.run(),
            Self::Replay(command) => command.run(),
            Self::Prune(command) => command.run(),
            Self::Forget(command) => command.run(),
        }
    }
}

/// Output format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The evidence directory.
#[derive(Clone, Debug, Args)]
pub(crate) struct At {
    /// Evidence directory.
    #[arg(value_name = "DIRECTORY", default_value = DIRECTORY)]
    directory: PathBuf,
}

impl At {
    /// Opens the directory; fails if the directory does not exist.
    pub(crate) fn open(&self) -> anyhow::Result<Directory> {
        let path = self.directory.display();
        ensure!(self.directory.is_dir(), "{path}: no such directory");
        Ok(Directory::new(&self.directory))
    }
}

/// Reads a public key from the text itself, or from the file named by the text.
pub(crate) fn read_key(text: &str) -> anyhow::Result<PublicKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let held = std::fs::read_to_string(text)
        .with_context(|| format!("`{text}` is neither a verifier key nor a readable file"))?;
    held.parse().with_context(|| text.to_owned())
}

/// Returns the newest checkpoint's head, if the signature is good.
pub(crate) fn trusted_head(directory: &Directory) -> anyhow::Result<TreeHead> {
    let place = directory.path().display();
    let checkpoint = directory.checkpoint().with_context(|| format!("{place}"))?;
    let keys = directory.keys().with_context(|| format!("{place}"))?;
    let signed = keys.iter().any(|key| checkpoint.note.verify(key).is_ok());
    ensure!(signed, "{place}/checkpoint: not signed by a key of this log");
    Ok(checkpoint.head)
}

/// Shows the progress of a long run on a terminal, after the first 2 seconds.
struct Progress {
    started: Instant,
    shown: Option<Instant>,
    what: &'static str,
    wanted: bool,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        let wanted = io::stderr().is_terminal();
        Self { started: Instant::now(), shown: None, what, wanted }
    }

    fn at(&mut self, done: u64, of: u64) {
        let now = Instant::now();
        let late = now.duration_since(self.started) > Duration::from_secs(2);
        let due = self.shown.is_none_or(|at| now.duration_since(at) > Duration::from_millis(200));
        if self.wanted && late && due {
            let share = done.saturating_mul(100) / of.max(1);
            // A closed standard error needs no message.
            write!(io::stderr(), "\r{}: {done} of {of} records ({share} %)", self.what)
                .unwrap_or_default();
            self.shown = Some(now);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            write!(io::stderr(), "\r\x1b[K").unwrap_or_default();
        }
    }
}

/// Writes a line to standard output; false if the reader is gone.
fn line(out: &mut impl io::Write, text: &str) -> anyhow::Result<bool> {
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("standard output"),
    }
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ` of nanoseconds since 1970.
pub(crate) fn time_text(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns))
        .map_or_else(|_| unix_ns.to_string(), |time| format!("{time:.3}"))
}

/// A path below the evidence directory, in the form of messages.
fn place(directory: &Path, file: &str) -> String {
    directory.join(file).display().to_string()
}

/// Returns the exit code of a search: 1 with a message if nothing was found.
fn matched(taken: u64, of: u64) -> ExitCode {
    if taken > 0 {
        return ExitCode::SUCCESS;
    }
    // Without a standard error only the exit code remains.
    writeln!(io::stderr(), "0 of {of} records match").unwrap_or_default();
    ExitCode::from(1)
}

/// Formats a cell by RFC 4180; a cell that a spreadsheet would take for a formula is disarmed.
pub(crate) fn csv_cell(cell: &str) -> String {
    let formula =
        cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && cell.parse::<i64>().is_err();
    let cell = if formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}
