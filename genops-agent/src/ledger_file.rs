//! The budgets' accounts on disk: a snapshot line, and a line for each change since.
//!
//! Opened, it is written anew from what it says, so that it does not grow for ever. After a crash the
//! last line may be half there; it is cut off. Anything else that is damaged costs the open periods:
//! what can't be read may all have been spent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use genops_governance::{Entry, Ledger};

/// Longest file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 30;

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct LedgerFile {
    file: File,
    /// Encoded changes that are not written yet.
    pending: Vec<u8>,
}

/// What became of the accounts of earlier runs.
#[derive(Debug)]
pub(crate) enum Restored {
    /// There were none, or all is as it was.
    Whole,
    /// A write that a crash interrupted was cut off.
    Torn { bytes: usize },
    /// They can't be read; budgets count as used up until their period ends or somebody adjusts them.
    Lost { why: String, kept_as: PathBuf },
}

impl LedgerFile {
    /// Reads the accounts in `directory` and goes on from there.
    pub(crate) fn open(directory: &Path, unix_ns: u64) -> io::Result<(Self, Ledger, Restored)> {
        fs::create_dir_all(directory)?;
        let path = directory.join("ledger");
        let (ledger, restored) = match read(&path)? {
            None => (Ledger::new(), Restored::Whole),
            Some(bytes) => match Ledger::restore(&bytes) {
                Ok(it) if it.torn_bytes == 0 => (it.ledger, Restored::Whole),
                Ok(it) => (it.ledger, Restored::Torn { bytes: it.torn_bytes }),
                Err(error) => {
                    let kept_as = directory.join(format!("ledger.damaged-{unix_ns}"));
                    fs::rename(&path, &kept_as)?;
                    (Ledger::unknown(unix_ns), Restored::Lost { why: error.to_string(), kept_as })
                }
            },
        };
        let file = begin(directory, &path, &ledger)?;
        Ok((Self { file, pending: Vec::new() }, ledger, restored))
    }

    /// Takes a change; it is durable after [`Self::sync`].
    pub(crate) fn append(&mut self, entry: &Entry) {
        self.pending.extend_from_slice(&entry.encode());
    }

    /// Makes every change durable that was taken.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        self.file.sync_data()
    }
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

/// Replaces the file by one with a snapshot alone: written beside it, made durable, renamed over it.
fn begin(directory: &Path, path: &Path, ledger: &Ledger) -> io::Result<File> {
    let beside = directory.join("ledger.new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(&ledger.snapshot())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("genops-ledger-{name}-{}", std::process::id()));
        // What an earlier run left, if anything.
        let _absent = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_directory_that_is_new_has_empty_accounts() {
        let directory = scratch("new");
        let (_, ledger, restored) = LedgerFile::open(&directory, 1).expect("writable");
        assert_eq!(ledger.accounts().count(), 0);
        assert!(matches!(restored, Restored::Whole));
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_damaged_file_is_kept_and_nothing_is_granted_from_it() {
        let directory = scratch("damaged");
        fs::create_dir_all(&directory).expect("writable");
        fs::write(directory.join("ledger"), b"not a ledger\nat all\n").expect("writable");
        let (_, _, restored) = LedgerFile::open(&directory, 7).expect("writable");
        let Restored::Lost { kept_as, .. } = restored else { panic!("{restored:?}") };
        assert_eq!(fs::read(kept_as).expect("kept"), b"not a ledger\nat all\n");
        fs::remove_dir_all(directory).expect("ours");
    }
}
