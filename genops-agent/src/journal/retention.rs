//! Retention of records: finds the records to give up; the journal gives them up.
//!
//! A separate thread that only reads the evidence directory. Whole bundles of 256 records go,
//! oldest first; the hashes of removed records stay, and with them every proof about the rest.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use genops_evidence::{Directory, ReadError, files};

use super::entry::Entry;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(30);

/// Records given up together.
const BUNDLE: u64 = genops_evidence::tree::TILE_WIDTH as u64;

/// Limits of the kept records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Age limit: older records go.
    pub(crate) age: Option<Duration>,
    /// Size limit of the directory: the oldest records go.
    pub(crate) bytes: Option<u64>,
}

impl Limits {
    fn any(self) -> bool {
        self.age.is_some() || self.bytes.is_some()
    }
}

/// Records to give up, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// First kept record at the time of the look.
    pub(crate) first: u64,
    /// Records below the index go.
    pub(crate) below: u64,
    /// The key of the configuration with the limit.
    pub(crate) why: &'static str,
}

/// The thread, seen from the journal. The thread ends after the drop of the keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    due: Receiver<Due>,
    _alive: Sender<()>,
}

impl Keeper {
    /// Starts looking, if there is a limit.
    pub(crate) fn start(directory: &Path, limits: Limits) -> std::io::Result<Option<Self>> {
        if !limits.any() {
            return Ok(None);
        }
        let (tell, due) = channel();
        let (alive, ended) = channel();
        let directory = directory.to_owned();
        std::thread::Builder::new()
            .name("retention".to_owned())
            .spawn(move || work(&directory, limits, &tell, &ended))?;
        Ok(Some(Self { due, _alive: alive }))
    }

    /// Records to give up; does not wait.
    pub(crate) fn due(&self) -> Option<Due> {
        self.due.try_iter().last()
    }
}

fn work(directory: &Path, limits: Limits, tell: &Sender<Due>, ended: &Receiver<()>) {
    let mut wait = Duration::from_secs(1);
    // The sender is never used: the loop ends when the sender is dropped.
    while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        wait = EVERY;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // An unreadable directory is reported elsewhere.
        let found = look(directory, limits, now).unwrap_or_default();
        if found.is_some_and(|due| tell.send(due).is_err()) {
            return;
        }
    }
}

/// Records to give up at `now`, since 1970.
pub(super) fn look(
    directory: &Path,
    limits: Limits,
    now: Duration,
) -> Result<Option<Due>, ReadError> {
    let log = Directory::new(directory);
    let first = log.first_kept()?;
    let whole = log.checkpoint()?.head.size / BUNDLE * BUNDLE;
    let old = match limits.age {
        Some(age) => older_than(&log, first, whole, now.saturating_sub(age))?,
        None => first,
    };
    let surplus = limits.bytes.map_or(first, |bytes| surplus(directory, first, whole, bytes));
    let why = if old >= surplus { "retention_days" } else { "max_bytes" };
    let below = old.max(surplus);
    Ok((below > first).then_some(Due { first, below, why }))
}

/// End of the bundles with only records from before `cutoff`.
fn older_than(log: &Directory, first: u64, whole: u64, cutoff: Duration) -> Result<u64, ReadError> {
    let cutoff_ns = u64::try_from(cutoff.as_nanos()).unwrap_or(u64::MAX);
    let mut below = first;
    while below < whole {
        let mut newest = 0;
        log.records(below, below + BUNDLE, |_, record| {
            if let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) {
                newest = newest.max(entry.t);
            }
        })?;
        if newest >= cutoff_ns {
            break;
        }
        below += BUNDLE;
    }
    Ok(below)
}

/// End of the bundles to give up, to leave at most `limit` bytes.
fn surplus(directory: &Path, first: u64, whole: u64, limit: u64) -> u64 {
    let mut bytes = size_of(directory);
    let mut below = first;
    while bytes > limit && below < whole {
        let kind = files::TileKind::Entries;
        let name = files::tile(kind, below / BUNDLE, genops_evidence::tree::TILE_WIDTH);
        let length = std::fs::metadata(directory.join(name)).map_or(0, |it| it.len());
        bytes = bytes.saturating_sub(length);
        below += BUNDLE;
    }
    below
}

/// Bytes of every file below a folder. Files vanishing meanwhile count nothing.
fn size_of(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(it) if it.is_dir() => open.push(entry.path()),
                Ok(it) => bytes += it.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use genops_governance::Now;

    use super::*;
    use crate::journal::entry::Kind;
    use crate::journal::{Journal, Opening};

    const DAY: Duration = Duration::from_hours(24);
    const START: Duration = Duration::from_secs(1_795_378_193);

    fn at(day: u32) -> Now {
        let unix_ns = u64::try_from((START + DAY * day).as_nanos()).unwrap();
        Now { mono_ns: 1_000_000, unix_ns }
    }

    /// A hundred records a day, for ten days.
    fn ten_days(folder: &Path) {
        let (mut journal, _) = Journal::open(folder, Opening::default(), at(0)).unwrap();
        for day in 0..10 {
            for _ in 0..100 {
                journal.event(at(day), Kind::Capability, &[("what", "x".repeat(500))]).unwrap();
            }
        }
        journal.close(at(10)).unwrap();
    }

    #[test]
    fn whole_bundles_of_old_records_may_go() {
        let folder = tempfile::tempdir().unwrap();
        ten_days(folder.path());
        let due = |age_days| {
            let limits = Limits { age: Some(DAY * age_days), bytes: None };
            look(folder.path(), limits, START + DAY * 10).unwrap()
        };
        let due_below = |below| Some(Due { first: 0, below, why: "retention_days" });
        assert_eq!([due(11), due(9), due(7)], [None, None, due_below(256)]);
        assert_eq!(due(1), due_below(768));
    }

    #[test]
    fn the_oldest_bundles_go_where_there_is_too_much() {
        let folder = tempfile::tempdir().unwrap();
        ten_days(folder.path());
        let size = size_of(folder.path());
        let bundle = std::fs::metadata(folder.path().join("tile/entries/000")).unwrap().len();
        let due = |bytes| {
            let limits = Limits { age: None, bytes: Some(bytes) };
            look(folder.path(), limits, START + DAY * 10).unwrap()
        };
        assert_eq!(due(size), None);
        let below = |bytes| due(bytes).map(|it| (it.below, it.why));
        assert_eq!(below(size - 1), Some((256, "max_bytes")));
        assert_eq!(below(size - bundle - 1), Some((512, "max_bytes")));
        // The newest, incomplete bundle stays.
        assert_eq!(below(1), Some((768, "max_bytes")));
    }
}
