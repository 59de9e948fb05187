//! The budgets' accounts on disk: a snapshot line, and a line for each later change.
//!
//! The agent rewrites the file as a snapshot at the start and after much growth, so that the file
//! does not grow for ever. A crash may leave half of the last line; the half line is cut off. Any
//! other damage, or a missing part, makes the open periods count as used up: unreadable accounts
//! may all have been spent. A file ending too early is detected by evidence, which names later
//! changes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use genops_evidence::Directory;
use genops_governance::{Closed, Entry, Ledger};

use crate::journal::entry;

/// Longest file read, in bytes.
const FILE_LIMIT: u64 = 1 << 30;

/// Bytes appended before the next rewrite.
const GROWTH_LIMIT: usize = 16 << 20;

/// Number of latest evidence records searched for a change of the accounts.
const RECORDS: u64 = 4_096;

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct LedgerFile {
    directory: PathBuf,
    file: File,
    /// Bytes behind the snapshot.
    grown: usize,
    /// Number of the last appended change.
    last: u64,
    /// Encoded changes not written yet.
    pending: Vec<u8>,
}

/// The accounts found at the start.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) ledger: Ledger,
    /// Calls closed in the accounts, without a closing record in evidence.
    pub(crate) closed: Vec<Closed>,
}

/// State of the accounts of earlier runs.
#[derive(Debug)]
pub(crate) enum Restored {
    /// No earlier accounts, or all accounts as before.
    Whole,
    /// A write interrupted by a crash was cut off.
    Torn { bytes: usize },
    /// The accounts can't be read; budgets count as used up until the end of their period or an
    /// adjustment.
    Lost { why: String, kept_as: Option<PathBuf> },
}

/// Returns the number of the last change of the accounts named in evidence; 0 if none is named. A
/// change is durable before its evidence.
pub(crate) fn last_in_evidence(directory: &Path) -> u64 {
    let directory = Directory::new(directory);
    let Ok(checkpoint) = directory.checkpoint() else { return 0 };
    let size = checkpoint.head.size;
    let mut last = 0;
    let mut note = |record: &[u8]| {
        let entry = serde_json::from_slice::<entry::Entry<'_>>(record);
        let changes = entry.iter().flat_map(|it| &it.bud).map(|it| it.led);
        last = changes.fold(last, u64::max);
    };
    // Opening the log reports unreadable records.
    let _published = directory.records(size.saturating_sub(RECORDS), size, |_, it| note(it));
    let _unpublished = directory.unpublished(size, |_, it| note(it));
    last
}

impl LedgerFile {
    /// Reads the accounts in `directory` and continues from there. `known`: the last change
    /// required to be present.
    ///
    /// Also returns calls closed in the accounts but not in evidence: an agent killed between the
    /// two writes leaves such calls.
    pub(crate) fn open(
        directory: &Path,
        known: u64,
        unix_ns: u64,
    ) -> io::Result<(Self, Accounts, Restored)> {
        fs::create_dir_all(directory)?;
        let path = directory.join("ledger");
        let bytes = read(&path)?;
        let (ledger, mut closed, restored) = match restore(bytes.as_deref(), known) {
            Ok(it) => it,
            Err(why) => {
                let damaged = bytes.map(|_| directory.join(format!("ledger.damaged-{unix_ns}")));
                if let Some(kept_as) = &damaged {
                    fs::rename(&path, kept_as)?;
                }
                (Ledger::unknown(unix_ns, known), vec![], Restored::Lost { why, kept_as: damaged })
            }
        };
        closed.retain(|it| it.sequence > known);
        let file = begin(directory, &ledger.snapshot_with(&closed))?;
        let directory = directory.to_owned();
        let new = Self { directory, file, grown: 0, last: ledger.sequence(), pending: Vec::new() };
        Ok((new, Accounts { ledger, closed }, restored))
    }

    /// Appends a change, durable after [`Self::sync`].
    pub(crate) fn append(&mut self, entry: &Entry) {
        self.pending.extend_from_slice(&entry.encode());
        self.last = entry.sequence;
    }

    /// Makes every appended change durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.pending)?;
        self.grown += self.pending.len();
        self.pending.clear();
        self.file.sync_data()
    }

    /// Rewrites a file grown beyond [`GROWTH_LIMIT`]. Does nothing while `ledger` is ahead of the
    /// appended changes: the snapshot would include changes still to be appended.
    pub(crate) fn renew(&mut self, ledger: &Ledger) -> io::Result<()> {
        let is_all = self.pending.is_empty() && self.last == ledger.sequence();
        if self.grown >= GROWTH_LIMIT && is_all {
            // Also after a failure: the next try, and the next message, come only after the same
            // growth again.
            self.grown = 0;
            self.file = begin(&self.directory, &ledger.snapshot())?;
        }
        Ok(())
    }
}

/// Restores the accounts, or gives the reason for an incomplete file.
fn restore(bytes: Option<&[u8]>, known: u64) -> Result<(Ledger, Vec<Closed>, Restored), String> {
    let (ledger, closed, torn) = match bytes.map(Ledger::restore) {
        None => (Ledger::new(), Vec::new(), 0),
        Some(Ok(it)) => (it.ledger, it.closed, it.torn_bytes),
        Some(Err(error)) => return Err(error.to_string()),
    };
    let last = ledger.sequence();
    if last < known {
        return Err(format!("they end with change {last}, and evidence names change {known}"));
    }
    let restored = if torn == 0 { Restored::Whole } else { Restored::Torn { bytes: torn } };
    Ok((ledger, closed, restored))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_LIMIT => {
            Err(io::Error::other(format!("{}: larger than {FILE_LIMIT} bytes", path.display())))
        }
        Ok(_) => fs::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file by a snapshot: written beside, made durable, then renamed over the old file.
fn begin(directory: &Path, snapshot: &[u8]) -> io::Result<File> {
    let beside = directory.join("ledger.new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(snapshot)?;
    file.sync_all()?;
    fs::rename(&beside, directory.join("ledger"))?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("genops-ledger-{name}-{}", std::process::id()));
        // Remove leftovers of an earlier run.
        let _absent = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_directory_that_is_new_has_empty_accounts() {
        let directory = scratch("new");
        let (_, Accounts { ledger, .. }, restored) =
            LedgerFile::open(&directory, 0, 1).expect("writable");
        assert_eq!(ledger.accounts().count(), 0);
        assert!(matches!(restored, Restored::Whole));
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_file_that_has_grown_is_written_anew_and_says_the_same() {
        let directory = scratch("grown");
        let (mut file, Accounts { mut ledger, .. }, _) =
            LedgerFile::open(&directory, 0, 1).expect("writable");
        let mut log = Vec::new();
        let (mut most, mut renewals) = (0, 0);
        for number in 0..300 {
            let id = format!("{number:0>60000}");
            let approval = genops_governance::Approval {
                id: id.clone(),
                request: String::new(),
                scope: genops_governance::Scope::Request,
                approver: String::new(),
                ceiling_nano_usd: 0,
                given_unix_ns: 1,
                expires_unix_ns: 2,
            };
            ledger.approve(1, approval, &mut log);
            assert!(ledger.use_approval(1, &id, &mut log));
            let later = log.pop().expect("it was used");
            log.drain(..).for_each(|entry| file.append(&entry));
            file.sync().expect("room");
            let before = file.grown;
            file.renew(&ledger).expect("room");
            assert_eq!(file.grown, before, "one change is still to come");
            file.append(&later);
            file.sync().expect("room");
            most = most.max(file.grown);
            file.renew(&ledger).expect("room");
            renewals += u32::from(file.grown == 0);
        }
        assert!(renewals > 0 && most < 2 * GROWTH_LIMIT, "{renewals} times, {most} bytes");
        drop(file);
        let (_, Accounts { ledger: again, .. }, restored) =
            LedgerFile::open(&directory, 0, 2).expect("readable");
        assert!(matches!(restored, Restored::Whole), "{restored:?}");
        assert_eq!(again, ledger);
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_damaged_file_is_kept_and_nothing_is_granted_from_it() {
        let directory = scratch("damaged");
        fs::create_dir_all(&directory).expect("writable");
        fs::write(directory.join("ledger"), b"not a ledger\nat all\n").expect("writable");
        let (_, _, restored) = LedgerFile::open(&directory, 0, 7).expect("writable");
        let Restored::Lost { kept_as: Some(kept_as), .. } = restored else {
            panic!("{restored:?}")
        };
        assert_eq!(fs::read(kept_as).expect("kept"), b"not a ledger\nat all\n");
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_file_that_ends_before_what_evidence_knows_is_lost_and_one_that_is_gone_too() {
        let directory = scratch("short");
        for (text, why) in [
            (Some(Ledger::new().snapshot()), "they end with change 0, and evidence names change 3"),
            (None, "they end with change 0, and evidence names change 3"),
        ] {
            fs::create_dir_all(&directory).expect("writable");
            if let Some(text) = text {
                fs::write(directory.join("ledger"), text).expect("writable");
            }
            let (_, Accounts { ledger, .. }, restored) =
                LedgerFile::open(&directory, 3, 7).expect("writable");
            let Restored::Lost { why: found, .. } = restored else { panic!("{restored:?}") };
            assert_eq!((found.as_str(), ledger), (why, Ledger::unknown(7, 3)));
            fs::remove_dir_all(&directory).expect("ours");
        }
    }
}
