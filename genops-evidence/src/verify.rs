//! Verifies an evidence directory, file by file and byte by byte, without the agent.
//!
//! Every file has to belong to a log of the signed size, and to match the signed root: the tree is
//! built again from the records, and each tile, bundle and kept checkpoint is compared with the
//! tree. The content of the records is not inspected but handed to the caller.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::files::{self, KEPT_EVERY, TileKind};
use crate::note::{Checkpoint, NoteError, PublicKey, SecretKey, TreeHead};
use crate::publish;
use crate::read::{self, Directory, ReadError};
use crate::tree::{self, Edge, FullTile, Hash, Subtrees as _, TILE_WIDTH, leaf_hash};
use crate::wal;

/// Maximum of described problems; further problems are only counted.
const PROBLEM_LIMIT: usize = 1_000;

/// A single deviation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Relative to the evidence directory.
    pub file: String,
    /// Description of the deviation, with its place in the file.
    pub what: String,
}

/// Result of a verification.
#[derive(Debug, Default)]
pub struct Report {
    /// The newest signed tree head, if it could be read.
    pub head: Option<TreeHead>,
    /// Keys of the log, oldest first.
    pub keys: Vec<PublicKey>,
    /// Index of the first record with bytes kept.
    pub first: u64,
    /// Number of records read and hashed.
    pub records: u64,
    /// Number of records in the write-ahead log only, not yet covered by the checkpoint.
    pub unpublished: u64,
    /// Number of checked checkpoints, the newest included.
    pub checkpoints: u64,
    /// The log was not closed: a process uses the log, or a crash ended the process.
    pub open: bool,
    /// The directory is a shipped copy.
    pub shipped: bool,
    /// Attachments present, by SHA-256.
    pub blobs: Vec<[u8; 32]>,
    /// Remarks worth knowing, without a fault.
    pub notes: Vec<String>,
    /// Problems; at most a thousand are described.
    pub problems: Vec<Problem>,
    /// Number of problems.
    pub problem_count: usize,
}

impl Report {
    /// Adds a problem.
    pub fn problem(&mut self, file: &str, what: impl Into<String>) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEM_LIMIT {
            self.problems.push(Problem { file: file.to_owned(), what: what.into() });
        }
    }

    fn fault(&mut self, error: &ReadError) {
        self.problem(error.file(), error.what());
    }
}

/// A verification to run.
pub struct Verify<'a> {
    /// The evidence directory.
    pub directory: &'a Path,
    /// Key of the log, obtained elsewhere by the auditor; has to be a key of the log.
    pub key: Option<PublicKey>,
    /// Gets every record with bytes kept, in order.
    pub each: &'a mut dyn FnMut(u64, &[u8]),
    /// Gets, now and then, the numbers of records done and of all records.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

impl std::fmt::Debug for Verify<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verify").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Verify<'_> {
    /// Verifies the directory.
    #[must_use]
    pub fn run(self) -> Report {
        let mut report = Report::default();
        let dir = Directory::new(self.directory);
        let Some((keys, checkpoint)) = read_identity(&dir, self.key.as_ref(), &mut report) else {
            return report;
        };
        let size = checkpoint.head.size;
        let heads = read_heads(&dir, &keys, &mut report);
        report.head = Some(checkpoint.head.clone());
        report.checkpoints = 1;
        match dir.pruned(&keys) {
            Ok(first) if first <= size && first.is_multiple_of(TILE_WIDTH as u64) => {
                report.first = first;
            }
            Ok(first) => report.problem(
                files::PRUNED,
                format!("says that entries below {first} are gone, which no log of {size} can say"),
            ),
            Err(error) => report.fault(&error),
        }
        let ahead = read_ahead(&dir, size, &mut report);
        let mut walk = Walk {
            dir: &dir,
            keys: &keys,
            size,
            root: checkpoint.head.root,
            ahead,
            partial: heads.keys().flat_map(|size| publish::partial_names(*size)).collect(),
            heads,
            edge: Edge::default(),
            beyond: Vec::new(),
            report,
            each: self.each,
        };
        walk.bundles(self.progress);
        walk.finish(&checkpoint);
        let listed = walk.unpublished();
        walk.files(&listed);
        let Walk { mut report, .. } = walk;
        check_keys(&dir, &keys, &mut report);
        report.keys = keys;
        report
    }
}

/// Reads keys and checkpoint; the verification ends without both.
fn read_identity(
    dir: &Directory,
    pinned: Option<&PublicKey>,
    report: &mut Report,
) -> Option<(Vec<PublicKey>, Checkpoint)> {
    let keys = dir.keys().map_err(|error| report.fault(&error)).ok()?;
    if let Some(pinned) = pinned.filter(|pinned| !keys.contains(pinned)) {
        report.problem(files::VKEY, format!("not the log of the key `{pinned}`"));
    }
    report.shipped = dir.is_shipped();
    let name = dir.newest_head().map_err(|error| report.fault(&error)).ok()?;
    let checkpoint = dir.checkpoint().map_err(|error| report.fault(&error)).ok()?;
    if let Err(error) = read::verify_checkpoint(&checkpoint, &keys) {
        report.problem(&name, error.to_string());
        return None;
    }
    Some((keys, checkpoint))
}

/// Reads the tree heads of a shipped copy, by the sizes in the file names.
fn read_heads(
    dir: &Directory,
    keys: &[PublicKey],
    report: &mut Report,
) -> BTreeMap<u64, Checkpoint> {
    let mut heads = BTreeMap::new();
    let sizes = if report.shipped { dir.heads() } else { Ok(Vec::new()) };
    for size in sizes.unwrap_or_default() {
        let name = files::head(size);
        let head = dir.checkpoint_in(&name, "it was listed").and_then(|head| {
            read::verify_checkpoint(&head, keys).map_err(ReadError::note(&name))?;
            Ok(head)
        });
        match head {
            Ok(head) => drop(heads.insert(size, head)),
            Err(error) => report.fault(&error),
        }
    }
    heads
}

/// Content of the write-ahead log.
#[derive(Default)]
struct Ahead {
    /// Index of the first record in the write-ahead log.
    first: u64,
    /// Hash of each record from `first` on, and the number of its segment.
    hashes: Vec<(Hash, usize)>,
    /// Records covered by no checkpoint.
    unpublished: Vec<Vec<u8>>,
    segments: Vec<String>,
}

fn read_ahead(dir: &Directory, size: u64, report: &mut Report) -> Ahead {
    let mut ahead = Ahead::default();
    let mut whole = false;
    let list = match dir.segments() {
        Ok(list) => list,
        Err(error) => {
            report.fault(&error);
            return ahead;
        }
    };
    report.open = !list.is_empty();
    let follows = list.iter().skip(1).map(|first| Some(*first)).chain([None]);
    for (number, (&first, next)) in list.iter().zip(follows).enumerate() {
        let segment = match dir.segment(first) {
            Ok(segment) => segment,
            Err(error) => {
                report.fault(&error);
                continue;
            }
        };
        ahead.segments.push(segment.name.clone());
        match wal::scan(&segment.bytes) {
            Ok(scan) if scan.first == first => {
                if number == 0 {
                    ahead.first = first;
                }
                note_end(&segment.name, &scan, next, report);
                take(&mut ahead, &scan, size, report);
                whole = true;
            }
            Ok(_) => report.problem(&segment.name, "not the segment of its name"),
            Err(error) => report.problem(&segment.name, error.to_string()),
        }
    }
    // Signed records were durable before, and the newest segment goes on behind the signed records.
    let end = ahead.first + ahead.hashes.len() as u64;
    if let Some(newest) =
        ahead.segments.last().filter(|_| whole && (end < size || ahead.first > size))
    {
        let what = format!("ends with record {end}, though {size} are signed");
        report.problem(newest, what);
    }
    ahead
}

/// Notes or reports the end of a segment. A crash may cut the newest segment short. Each earlier
/// segment had ended with a whole batch at the start of the next segment, and the next segment goes
/// on from the end.
fn note_end(name: &str, scan: &wal::Scan<'_>, next: Option<u64>, report: &mut Report) {
    let end = scan.first + scan.records.len() as u64;
    match (scan.tail, next) {
        (wal::Tail::Torn(at), None) => report.notes.push(format!(
            "{name}: byte {at}: a write that a crash cut short; no checkpoint covers it"
        )),
        (wal::Tail::Torn(at), Some(_)) => {
            report.problem(name, format!("byte {at}: cut short, though a later segment was begun"));
        }
        (wal::Tail::Whole, Some(next)) if next != end => {
            let what = format!("ends before record {end}, and the next segment begins with {next}");
            report.problem(name, what);
        }
        (wal::Tail::Whole, _) => {}
    }
}

/// Adds a segment's records to the records of earlier segments.
fn take(ahead: &mut Ahead, scan: &wal::Scan<'_>, size: u64, report: &mut Report) {
    let number = ahead.segments.len() - 1;
    let name = ahead.segments.last().cloned().unwrap_or_default();
    let next = ahead.first + ahead.hashes.len() as u64;
    if scan.first > next {
        report.problem(&name, format!("records {next} to {} are missing", scan.first - 1));
        return;
    }
    for (index, record) in (scan.first..).zip(&scan.records) {
        let hash = leaf_hash(record);
        let at = usize::try_from(index - ahead.first).unwrap_or(usize::MAX);
        match ahead.hashes.get(at) {
            Some((known, _)) if *known != hash => {
                report.problem(&name, format!("record {index} is not what it was before"));
            }
            Some(_) => {}
            None => {
                ahead.hashes.push((hash, number));
                if index >= size {
                    ahead.unpublished.push(record.to_vec());
                }
            }
        }
    }
}

struct Walk<'w> {
    dir: &'w Directory,
    keys: &'w [PublicKey],
    size: u64,
    /// The signed root.
    root: Hash,
    ahead: Ahead,
    /// Tree heads of a shipped copy not yet reached by the walk.
    heads: BTreeMap<u64, Checkpoint>,
    /// Incomplete tiles belonging to `heads`.
    partial: HashSet<String>,
    edge: Edge,
    /// Full tiles beyond the checkpoint.
    beyond: Vec<FullTile>,
    report: Report,
    each: &'w mut dyn FnMut(u64, &[u8]),
}

impl Walk<'_> {
    /// Builds the tree from the records and compares every tile with the tree.
    fn bundles(&mut self, progress: &mut dyn FnMut(u64, u64)) {
        let bundles = self.size.div_ceil(TILE_WIDTH as u64);
        for bundle in 0..bundles {
            self.bundle(bundle);
            if bundle.is_multiple_of(64) {
                progress(bundle * TILE_WIDTH as u64, self.size);
            }
        }
        progress(self.size, self.size);
    }

    fn bundle(&mut self, bundle: u64) {
        let width = read::width_at(bundle, self.size);
        let from = bundle * TILE_WIDTH as u64;
        let tile = self.dir.tile(TileKind::Hashes(0), bundle, width);
        let tile = tile.map_err(|error| self.report.fault(&error)).unwrap_or_default();
        let hashes = tile.as_chunks::<32>().0;
        let name = files::tile(TileKind::Entries, bundle, width);
        if from < self.report.first {
            // The records are gone; the tile stands in for the records.
            for hash in hashes {
                self.push(*hash);
            }
            return;
        }
        let bytes = match self.dir.tile(TileKind::Entries, bundle, width) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.report.fault(&error);
                for hash in hashes {
                    self.push(*hash);
                }
                return;
            }
        };
        let records = files::split_bundle(&bytes).unwrap_or_else(|at| {
            self.report.problem(&name, format!("byte {at}: cut in the middle of a record"));
            Vec::new()
        });
        if records.len() != width {
            let what = format!("{} records, where {width} belong", records.len());
            self.report.problem(&name, what);
        }
        let mut offset = 0;
        let mut vouched = None;
        for (index, record) in (from..from + width as u64).zip(records) {
            let hash = leaf_hash(record);
            let at = usize::try_from(index - from).unwrap_or(0);
            if hashes.get(at).is_some_and(|expected| *expected != hash) {
                let tile = files::tile(TileKind::Hashes(0), bundle, width);
                if *vouched.get_or_insert_with(|| self.vouched(0, bundle, width)) {
                    let what = format!(
                        "byte {offset}: record {index} does not have the hash that {tile} says"
                    );
                    self.report.problem(&name, what);
                } else {
                    let what = format!("byte {}: not the hash of record {index}", at * 32);
                    self.report.problem(&tile, what);
                }
            }
            self.push(hash);
            (self.each)(index, record);
            self.report.records += 1;
            offset += 2 + record.len();
        }
    }

    /// Adds a record's hash to the tree, and compares completed tiles and tree heads.
    fn push(&mut self, hash: Hash) {
        let index = self.edge.size();
        let covered = index >= self.ahead.first;
        let at = usize::try_from(index.saturating_sub(self.ahead.first)).unwrap_or(usize::MAX);
        if let Some((written, segment)) = self.ahead.hashes.get(at).filter(|_| covered)
            && *written != hash
        {
            let name = self.ahead.segments.get(*segment).cloned().unwrap_or_default();
            self.report.problem(&name, format!("record {index} is not the one that was published"));
        }
        let mut full = Vec::new();
        self.edge.push(hash, |tile| full.push(tile));
        for tile in full {
            if tile.level > 0 || self.edge.size() <= self.report.first {
                self.compare(tile.level, tile.index, &tile.hashes);
            }
        }
        if self.edge.size().is_multiple_of(KEPT_EVERY) {
            self.kept();
        }
        if let Some(head) = self.heads.remove(&self.edge.size()) {
            self.shipped_head(&head.head);
        }
    }

    /// Compares a tree head of a shipped copy, and the incomplete tiles of the same size.
    fn shipped_head(&mut self, head: &TreeHead) {
        let size = self.edge.size();
        self.compare_head(&files::head(size), head);
        let partial = self.edge.partial_tiles().to_vec();
        for (level, hashes) in (0_u8..).zip(partial).filter(|(_, hashes)| !hashes.is_empty()) {
            self.compare(level, publish::tile_index(size, level), &hashes);
        }
        let bundle = size / TILE_WIDTH as u64;
        let width = read::width_at(bundle, size);
        if width == 0 || bundle * (TILE_WIDTH as u64) < self.report.first {
            return;
        }
        let name = files::tile(TileKind::Entries, bundle, width);
        match self.dir.tile(TileKind::Entries, bundle, width) {
            Ok(_)
                if self.hashes_of(&name, TileKind::Entries).as_ref()
                    == self.edge.partial_tiles().first() => {}
            Ok(_) => self.report.problem(&name, "not the records that were signed"),
            Err(error) => self.report.fault(&error),
        }
    }

    fn compare(&mut self, level: u8, index: u64, hashes: &[Hash]) {
        let kind = TileKind::Hashes(level);
        match self.dir.tile(kind, index, hashes.len()) {
            Ok(bytes) => {
                let found = bytes.as_chunks::<32>().0;
                if let Some(at) = hashes.iter().zip(found).position(|(one, other)| one != other) {
                    self.differs(level, index, hashes.len(), at);
                }
            }
            Err(error) => self.report.fault(&error),
        }
    }

    /// Reports a hash at `at` in a tile not matching the tile below: either tile was changed.
    fn differs(&mut self, level: u8, index: u64, width: usize, at: usize) {
        let name = files::tile(TileKind::Hashes(level), index, width);
        let itself = format!("byte {}: not the hash of what lies below it", at * 32);
        if level == 0 || !self.vouched(level, index, width) {
            return self.report.problem(&name, itself);
        }
        // The upper tile is the signed tile, unless the tile belongs to a smaller size and a copy
        // keeps the tile. If the lower tile is not the signed tile, the lower tile is named once.
        let below = index * TILE_WIDTH as u64 + at as u64;
        let said = self.dir.tiles(self.size).subtree(u32::from(level) * tree::TILE_HEIGHT, below);
        let kind = TileKind::Hashes(level - 1);
        let root = self.dir.tile(kind, below, TILE_WIDTH).map(|bytes| root_of(&bytes));
        if root.ok() == said.ok() {
            return self.report.problem(&name, itself);
        }
        let below = files::tile(kind, below, TILE_WIDTH);
        if !self.report.problems.iter().any(|it| it.file == below) {
            self.report
                .problem(&below, format!("its hashes do not have the root that {name} says"));
        }
    }

    /// Returns whether the signed root commits to the stored tile, by the tiles above.
    fn vouched(&self, level: u8, index: u64, width: usize) -> bool {
        let mut tiles = self.dir.tiles(self.size);
        let (mut level, mut index, mut width) = (u32::from(level), index, width);
        while width == TILE_WIDTH {
            let height = (level + 1) * tree::TILE_HEIGHT;
            let said = tiles.subtree(height, index).ok();
            let tile = self.dir.tile(
                TileKind::Hashes(u8::try_from(level).unwrap_or(u8::MAX)),
                index,
                width,
            );
            let root = tile.ok().map(|bytes| root_of(&bytes));
            if said.is_none() || root != said {
                return false;
            }
            (level, index) = (level + 1, index / TILE_WIDTH as u64);
            width = read::width_at(
                index,
                self.size.checked_shr(level * tree::TILE_HEIGHT).unwrap_or(0),
            );
        }
        // Together, the incomplete tiles have the signed root.
        tree::range_root(&mut tiles, 0, self.size).is_ok_and(|root| root == self.root)
    }

    /// Checks the checkpoint kept at the present size.
    fn kept(&mut self) {
        let name = files::kept_checkpoint(self.edge.size());
        let why = "a checkpoint is kept at every multiple of 1,024 records";
        let checked = self.dir.checkpoint_in(&name, why).and_then(|kept| {
            read::verify_checkpoint(&kept, self.keys).map_err(ReadError::note(&name))?;
            Ok(kept)
        });
        match checked {
            Ok(kept) => self.compare_head(&name, &kept.head),
            Err(error) => self.report.fault(&error),
        }
    }

    fn compare_head(&mut self, name: &str, head: &TreeHead) {
        self.report.checkpoints += 1;
        if head.size != self.edge.size() {
            let what = format!("covers {} records, not {}", head.size, self.edge.size());
            self.report.problem(name, what);
        } else if head.root != self.edge.root() {
            let what = "the records do not have the root that was signed";
            self.report.problem(name, what);
        }
    }

    /// Compares the right edge and the newest checkpoint.
    fn finish(&mut self, checkpoint: &Checkpoint) {
        self.report.checkpoints -= 1;
        if self.report.shipped {
            // Compared by the walk; the remaining heads were never reached.
            let beyond: Vec<u64> = std::mem::take(&mut self.heads).into_keys().collect();
            for size in beyond.into_iter().filter(|size| *size > 0) {
                let what = format!("covers {size} records, which are not there");
                self.report.problem(&files::head(size), what);
            }
            return;
        }
        self.compare_head(files::CHECKPOINT, &checkpoint.head);
        let partial = self.edge.partial_tiles().to_vec();
        for (level, hashes) in (0_u8..).zip(partial) {
            // Level 0 was compared record by record.
            if !hashes.is_empty() && level > 0 {
                self.compare(level, publish::tile_index(self.size, level), &hashes);
            }
        }
    }

    /// Adds the records covered by no checkpoint; returns the tiles allowed beside the published
    /// tiles, left by a crash between writing and signing.
    fn unpublished(&mut self) -> BTreeMap<(TileKind, u64), Vec<Hash>> {
        let mut beyond: BTreeMap<(TileKind, u64), Vec<Hash>> = BTreeMap::new();
        for record in std::mem::take(&mut self.ahead.unpublished) {
            let index = self.edge.size();
            self.edge.push(leaf_hash(&record), |tile| self.beyond.push(tile));
            (self.each)(index, &record);
            self.report.records += 1;
            self.report.unpublished += 1;
        }
        for tile in std::mem::take(&mut self.beyond) {
            beyond.insert((TileKind::Hashes(tile.level), tile.index), tile.hashes);
        }
        for (level, hashes) in (0_u8..).zip(self.edge.partial_tiles()) {
            let index = publish::tile_index(self.edge.size(), level);
            beyond.insert((TileKind::Hashes(level), index), hashes.clone());
        }
        beyond
    }

    /// Reports files not belonging to the log.
    fn files(&mut self, beyond: &BTreeMap<(TileKind, u64), Vec<Hash>>) {
        let mut names = Vec::new();
        if let Err(error) = list(self.dir.path(), "", &mut names) {
            self.report.problem(".", error.to_string());
        }
        names.sort();
        for name in names {
            if !self.belongs(&name, beyond) {
                self.report.problem(&name, "does not belong to this log");
            }
        }
    }

    fn belongs(&mut self, name: &str, beyond: &BTreeMap<(TileKind, u64), Vec<Hash>>) -> bool {
        let top = name.split('/').next().unwrap_or_default();
        match top {
            files::CHECKPOINT | files::WAL | files::TMP | files::KEYS if self.report.shipped => {
                false
            }
            files::CHECKPOINT | files::VKEY | files::PRUNED => name == top,
            files::BLOB => self.blob_belongs(name),
            files::HEADS => self.head_belongs(name),
            files::TMP => {
                self.report.notes.push(format!("{name}: left by a write that did not end"));
                true
            }
            files::KEYS => true,
            files::ROTATIONS => (1..self.keys.len()).any(|n| files::rotation(n) == name),
            files::WAL => name == files::SEGMENTS || self.segment_belongs(name),
            files::CHECKPOINTS => self.kept_belongs(name),
            files::TILE => self.tile_belongs(name, beyond),
            _ => false,
        }
    }

    /// Checks an attachment against the digest in its name.
    fn blob_belongs(&mut self, name: &str) -> bool {
        let Ok(Some(bytes)) = self.dir.read(name, files::BLOB_LIMIT) else { return false };
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let belongs = files::blob(&digest) == name;
        if belongs {
            self.report.blobs.push(digest);
        }
        belongs
    }

    fn head_belongs(&self, name: &str) -> bool {
        let size = name.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
        self.report.shipped
            && size.is_some_and(|size| files::head(size) == name && size <= self.size)
    }

    fn segment_belongs(&mut self, name: &str) -> bool {
        if self.ahead.segments.iter().any(|known| known == name) {
            return true;
        }
        // A crash between writing a segment and the list, or between the list and the removal of
        // the segment.
        let first = name.rsplit('/').next().and_then(|digits| digits.parse().ok());
        let Some(first) = first.filter(|first| files::segment(*first) == name) else {
            return false;
        };
        let left = self.dir.segment(first).ok().is_some_and(|segment| {
            let published = |(index, record): (u64, &&[u8])| {
                index < self.size
                    && self.dir.record(index, self.size).ok().as_deref() == Some(*record)
            };
            wal::scan(&segment.bytes)
                .is_ok_and(|scan| (scan.first..).zip(&scan.records).all(published))
        });
        if left {
            self.report.notes.push(format!("{name}: left by a crash; holds nothing of its own"));
        }
        left
    }

    fn kept_belongs(&mut self, name: &str) -> bool {
        let size = name.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
        let Some(size) = size.filter(|size| files::kept_checkpoint(*size) == name) else {
            return false;
        };
        if size <= self.size {
            return size.is_multiple_of(KEPT_EVERY) && size > 0;
        }
        // Signed just before a crash: the records are in the write-ahead log.
        let kept = self.dir.checkpoint_in(name, "it was listed");
        let signed = kept.is_ok_and(|kept| {
            kept.head.size == size && read::verify_checkpoint(&kept, self.keys).is_ok()
        });
        signed && self.report.open && size <= self.edge.size()
    }

    fn tile_belongs(&mut self, name: &str, beyond: &BTreeMap<(TileKind, u64), Vec<Hash>>) -> bool {
        let Some((kind, index, width)) = files::parse_tile(name) else { return false };
        let level = match kind {
            TileKind::Entries => 0,
            TileKind::Hashes(level) => level,
        };
        let covered = self.size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        if read::width_at(index, covered) == width {
            return kind != TileKind::Entries
                || (index + 1) * TILE_WIDTH as u64 > self.report.first
                || self.pruned_bundle(name, index);
        }
        // Tile of an older tree head of a shipped copy: compared by the walk.
        if self.report.shipped {
            return self.partial.contains(name);
        }
        // An incomplete tile of an older or newer size, left by a crash.
        let known = match beyond.get(&(TileKind::Hashes(level), index)) {
            Some(hashes) => hashes.clone(),
            None => match self.dir.tile(TileKind::Hashes(level), index, TILE_WIDTH) {
                Ok(bytes) => bytes.as_chunks::<32>().0.to_vec(),
                Err(_) => return false,
            },
        };
        let known = known.get(..width);
        let found = self.hashes_of(name, kind);
        let left = self.report.open && known.is_some() && found.as_deref() == known;
        if left {
            self.report.notes.push(format!("{name}: left by a crash; holds nothing of its own"));
        }
        left
    }

    /// Accepts a bundle below the first kept record, left in place by a crash.
    fn pruned_bundle(&mut self, name: &str, index: u64) -> bool {
        let known = self.dir.tile(TileKind::Hashes(0), index, TILE_WIDTH);
        let known = known.map(|bytes| bytes.as_chunks::<32>().0.to_vec()).ok();
        let found = self.hashes_of(name, TileKind::Entries);
        if known.is_some() && found == known {
            self.report.notes.push(format!("{name}: pruned, and not removed yet"));
            return true;
        }
        false
    }

    fn hashes_of(&self, name: &str, kind: TileKind) -> Option<Vec<Hash>> {
        let bytes = self.dir.read(name, files::BUNDLE_LIMIT).ok()??;
        match kind {
            TileKind::Entries => {
                Some(files::split_bundle(&bytes).ok()?.into_iter().map(leaf_hash).collect())
            }
            TileKind::Hashes(_) => {
                let (hashes, rest) = bytes.as_chunks::<32>();
                rest.is_empty().then(|| hashes.to_vec())
            }
        }
    }
}

/// Returns the root of a complete tile.
fn root_of(tile: &[u8]) -> Hash {
    tree::subtree_root(tile.as_chunks::<32>().0)
}

/// Lists every file below `folder`, relative to the evidence directory.
fn list(root: &Path, folder: &str, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let name = if folder.is_empty() { name.into_owned() } else { format!("{folder}/{name}") };
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

/// Checks the secrets, if present: an auditor's copy has none.
fn check_keys(dir: &Directory, keys: &[PublicKey], report: &mut Report) {
    let mut names = Vec::new();
    let folder = dir.path().join(files::KEYS);
    if !folder.is_dir() {
        return;
    }
    if let Err(error) = list(dir.path(), files::KEYS, &mut names) {
        // Unreadable for an auditor: no business of the auditor either.
        report.notes.push(format!("{}: not looked at: {error}", files::KEYS));
        return;
    }
    let external = names.iter().any(|name| name == files::EXTERNAL);
    if !external && !names.iter().any(|name| name == files::KEY) {
        report.problem(files::KEY, "missing, though the folder of the secrets is there");
    }
    for name in names {
        let bytes = match dir.read(&name, 1 << 16) {
            Ok(bytes) => zeroize::Zeroizing::new(bytes.unwrap_or_default()),
            Err(error) => {
                report.notes.push(format!("{name}: not looked at: {}", error.what()));
                continue;
            }
        };
        if let Err(what) = check_secret(&name, &bytes, keys) {
            report.problem(&name, what);
        }
    }
}

fn check_secret(name: &str, bytes: &[u8], keys: &[PublicKey]) -> Result<(), String> {
    if name == files::EXTERNAL {
        return if bytes.is_empty() { Ok(()) } else { Err("not empty".to_owned()) };
    }
    if name == files::KEY || name == files::NEXT_KEY {
        let key = str::from_utf8(bytes)
            .map_err(|_| NoteError::Key("not UTF-8"))
            .and_then(SecretKey::parse)
            .map_err(|error| error.to_string())?;
        if key.to_text().as_bytes() != bytes {
            return Err("not written as it should be".to_owned());
        }
        // A rotation interrupted by a crash leaves a next key without a voucher.
        let known = keys.contains(key.public()) || name == files::NEXT_KEY;
        return if known { Ok(()) } else { Err("not a key of this log".to_owned()) };
    }
    if Path::new(name).extension().is_some_and(|ending| ending == "new") {
        return Ok(());
    }
    crate::secret::parse(bytes).map(|_| ()).map_err(ToOwned::to_owned)
}
