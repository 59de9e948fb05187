//! `evidence rotate`, `evidence prune` and `evidence forget`: an operator's upkeep of a log while
//! the agent is stopped. The log itself records each action.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use clap::Args;
use genops_governance::Now;

use super::filter::parse_time;
use super::{At, line, trusted_head};
use crate::journal::digest::{self, day_text};
use crate::journal::entry::{Entry, Kind};
use crate::journal::{Journal, Opening, sealed};

/// Sign with a new key from here on.
///
/// Both keys sign the change, so an owner of the old key can follow. The agent must not be running.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  genops-agent evidence rotate\n  \
    genops-agent evidence rotate --key-file old.key --to new.key   # keys that are given from outside")]
pub(crate) struct Rotate {
    #[command(flatten)]
    at: At,
    /// The present secret key, if given by the configuration (`evidence.key_file`).
    #[arg(long, value_name = "FILE", requires = "to")]
    key_file: Option<PathBuf>,
    /// The next key, with the same name; the configuration has to name the next key from then on.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    to: Option<PathBuf>,
}

impl Rotate {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut journal = open(&self.at, "rotate", self.key_file.clone())?;
        journal.rotate_key(now(), self.to.as_deref())?;
        journal.close(now())?;
        let directory = self.at.open()?;
        let key = directory.keys()?.last().map(ToString::to_string).unwrap_or_default();
        line(&mut std::io::stdout(), &key)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Give up the bytes of old records.
///
/// The hashes stay, so every proof about the rest still holds; a signed statement and a record name
/// the first record kept. The agent must not be running.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    at: At,
    /// Records from before the given time, as 2026-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: u64,
    /// The secret key, if given by the configuration (`evidence.key_file`).
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
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
                // The list of principals may not go before the records it stands for.
                if entry.is_ok_and(|entry| entry.t >= self.before && entry.kind != Kind::Heads) {
                    below = below.min(index);
                }
            })
            .with_context(place)?;
        let mut journal = open(&self.at, "prune", self.key_file.clone())?;
        let kept = journal.prune(now(), below)?;
        journal.close(now())?;
        line(&mut std::io::stdout(), &format!("records below {kept} are no longer kept"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Destroy the keys of days: texts sealed or digested with the keys can't be read or matched
/// any more.
///
/// The log stays unchanged and verifies; a record names the forgotten days. The agent must not be
/// running. Copies of the keys made elsewhere are not reached.
#[derive(Debug, Args)]
#[command(after_help = "Example: genops-agent evidence forget --before 2026-11-01")]
pub(crate) struct Forget {
    #[command(flatten)]
    pub(super) at: At,
    /// A day, as 2026-11-24; may be given more than once.
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub(super) day: Vec<u64>,
    /// Every day before the given day.
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub(super) before: Option<u64>,
    /// The secret key, if given by the configuration (`evidence.key_file`).
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

impl Forget {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        ensure!(!self.day.is_empty() || self.before.is_some(), "give --day or --before");
        let mut journal = open(&self.at, "forget", self.key_file.clone())?;
        let folder = self.at.directory.join(genops_evidence::files::KEYS);
        let mut forgotten = BTreeSet::new();
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let path = entry.with_context(|| folder.display().to_string())?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(day) = day_of(name) else { continue };
            if self.day.contains(&day) || self.before.is_some_and(|before| day < before) {
                destroy(&path).with_context(|| path.display().to_string())?;
                forgotten.insert(day_text(day));
            }
        }
        let days = forgotten.into_iter().collect::<Vec<_>>().join(" ");
        journal.event(now(), Kind::Forgotten, &[("days", days.clone())])?;
        journal.close(now())?;
        let told = if days.is_empty() { "no day has a key".to_owned() } else { days };
        line(&mut std::io::stdout(), &told)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Overwrites a key and removes the file. On a copy-on-write disk, or in a snapshot, the old bytes
/// may be left: then only destroying the medium helps.
fn destroy(path: &Path) -> std::io::Result<()> {
    let length = std::fs::metadata(path)?.len();
    let file = std::fs::File::options().write(true).open(path)?;
    std::os::unix::fs::FileExt::write_all_at(
        &file,
        &vec![b'0'; usize::try_from(length).unwrap_or(0)],
        0,
    )?;
    file.sync_all()?;
    std::fs::remove_file(path)?;
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

/// Returns the day in a key's name, since 1970.
fn day_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".key")?.split_once('-')?.1;
    let day = digits.parse().ok()?;
    [digest::key_name(day), sealed::key_name(day)].iter().any(|it| it == name).then_some(day)
}

fn parse_day(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a day like 2026-11-24");
    let unix_ns = parse_time(&format!("{text}T00:00:00Z")).map_err(|_| wrong())?;
    Ok(unix_ns / 86_400_000_000_000)
}

/// Opens the log for writing; a running agent prevents the opening.
fn open(at: &At, command: &str, key_file: Option<PathBuf>) -> anyhow::Result<Journal> {
    at.open()?;
    let detail = vec![("command", command.to_owned())];
    let opening = Opening { key_file, detail, ..Opening::default() };
    let (journal, _) = Journal::open(&at.directory, opening, now())?;
    Ok(journal)
}

/// Returns the wall-clock time; the commands need no monotonic time.
fn now() -> Now {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_ns: 0, unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

    use super::*;
    use crate::journal::check::Checker;

    fn checked(directory: &Path) -> (genops_evidence::Report, Checker) {
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
        Rotate { at: directory.clone(), key_file: None, to: None }.run().unwrap();
        Prune { at: directory, before: at(600).unix_ns, key_file: None }.run().unwrap();
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
