//! `evidence rotate` and `evidence prune`: what an operator does with a log while the agent is
//! stopped. Both are written down in the log itself.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;
use genops_governance::Now;

use super::filter::parse_time;
use super::{At, line, trusted_head};
use crate::journal::entry::{Entry, Kind};
use crate::journal::{Journal, Opening};

/// Sign with a new key from here on.
///
/// Both keys sign the change, so whoever knows the old key can follow. The agent must not be running.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    at: At,
}

impl Rotate {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut journal = open(&self.at, "rotate")?;
        journal.rotate_key(now())?;
        journal.close(now())?;
        let directory = self.at.open()?;
        let key = directory.keys()?.last().map(ToString::to_string).unwrap_or_default();
        line(&mut std::io::stdout(), &key)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Give up the bytes of old records.
///
/// Their hashes stay, so every proof about the rest still holds; a signed statement and a record say
/// what is gone. The agent must not be running.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    at: At,
    /// Records from before this time, as 2026-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: u64,
}

impl Prune {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let place = || directory.path().display().to_string();
        let size = trusted_head(&directory)?.size;
        let first = directory.first_kept().with_context(place)?;
        let mut below = size;
        directory
            .records(first, size, |index, record| {
                let entry = serde_json::from_slice::<Entry<'_>>(record);
                // The list of principals may not go before what it stands for.
                if entry.is_ok_and(|entry| entry.t >= self.before && entry.kind != Kind::Heads) {
                    below = below.min(index);
                }
            })
            .with_context(place)?;
        let mut journal = open(&self.at, "prune")?;
        let kept = journal.prune(now(), below)?;
        journal.close(now())?;
        line(&mut std::io::stdout(), &format!("records below {kept} are no longer kept"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Opens the log for writing, which a running agent does not let happen.
fn open(at: &At, command: &str) -> anyhow::Result<Journal> {
    at.open()?;
    let detail = vec![("command", command.to_owned())];
    let opening = Opening { detail, ..Opening::default() };
    let (journal, _) = Journal::open(&at.directory, opening, now())?;
    Ok(journal)
}

/// The wall clock; nothing here needs the other.
fn now() -> Now {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_ns: 0, unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

    use super::*;
    use crate::journal::check::Checker;

    fn checked(directory: &std::path::Path) -> (genops_evidence::Report, Checker) {
        let mut checker = Checker::default();
        let report = genops_evidence::Verify {
            directory,
            key: None,
            each: &mut |index, record| checker.record(index, record),
            progress: &mut |_, _| {},
        }
        .run();
        checker.finish();
        (report, checker)
    }

    fn at(ms: u64) -> Now {
        Now { mono_ns: ms * 1_000_000, unix_ns: (1_795_378_193_000 + ms) * 1_000_000 }
    }

    #[test]
    fn a_log_with_a_new_key_and_without_its_old_records_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), Opening::default(), at(0)).unwrap();
        for ms in 0..700 {
            journal.event(at(ms), Kind::Capability, &[("what", "tls".to_owned())]).unwrap();
        }
        journal.close(at(700)).unwrap();
        let directory = At { directory: folder.path().to_owned() };
        Rotate { at: directory.clone() }.run().unwrap();
        Prune { at: directory, before: at(600).unix_ns }.run().unwrap();
        let (report, checker) = checked(folder.path());
        assert_eq!((report.problems, checker.findings), (vec![], vec![]));
        assert_eq!((report.keys.len(), report.first), (2, 512));
        let (journal, recovery) =
            Journal::open(folder.path(), Opening::default(), at(9_000)).unwrap();
        assert_eq!(recovery.key, report.keys[1]);
        journal.close(at(9_001)).unwrap();
        assert_eq!(checked(folder.path()).0.problems, []);
    }
}
