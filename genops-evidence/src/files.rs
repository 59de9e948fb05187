//! Files of an evidence directory: their names, and writes with either the old file or the new file
//! left after a power cut.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::tree::TILE_WIDTH;

/// Newest signed tree head.
pub const CHECKPOINT: &str = "checkpoint";
/// Folder of the kept tree heads.
pub const CHECKPOINTS: &str = "checkpoints";
/// First public key of the log; successors are in [`ROTATIONS`].
pub const VKEY: &str = "log.vkey";
/// Folder of the statements about changed keys.
pub const ROTATIONS: &str = "rotations";
/// Signed statement about entries no longer kept.
pub const PRUNED: &str = "pruned";
/// Folder of tiles and entry bundles.
pub const TILE: &str = "tile";
/// Folder of the write-ahead segments.
pub const WAL: &str = "wal";
/// List of the write-ahead segments in use.
pub const SEGMENTS: &str = "wal/segments";
/// Folder of secrets.
pub const KEYS: &str = "keys";
/// The secret key of the log.
pub const KEY: &str = "keys/log.key";
/// The next secret key, while it is being introduced.
pub const NEXT_KEY: &str = "keys/next.key";
/// Marks a secret key given by the configuration; empty.
pub const EXTERNAL: &str = "keys/external";
/// Folder of files being written.
pub const TMP: &str = "tmp";
/// Folder of attachments, referred to by records by SHA-256.
pub const BLOB: &str = "blob";
/// Folder of the tree heads of a shipped copy. A copy has no `checkpoint` file, because no file of
/// a copy is written twice.
pub const HEADS: &str = "heads";

/// Interval of kept tree heads, in records.
pub const KEPT_EVERY: u64 = 1024;

/// Path of the tree head kept at `size`.
#[must_use]
pub fn kept_checkpoint(size: u64) -> String {
    format!("{CHECKPOINTS}/{size:015}")
}

/// Path of the `n`-th statement about a changed key, from 1.
#[must_use]
pub fn rotation(n: usize) -> String {
    format!("{ROTATIONS}/{n}")
}

/// Path of a write-ahead segment.
#[must_use]
pub fn segment(first_index: u64) -> String {
    format!("{WAL}/{first_index:020}")
}

/// Path of the tree head of a shipped copy at `size`.
#[must_use]
pub fn head(size: u64) -> String {
    format!("{HEADS}/{size:020}")
}

/// Path of the attachment with the SHA-256 `digest`.
#[must_use]
pub fn blob(digest: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{BLOB}/");
    for byte in digest {
        // Writing to a string cannot fail.
        write!(path, "{byte:02x}").unwrap_or_default();
    }
    path
}

/// Content of a tile file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TileKind {
    /// Records.
    Entries,
    /// Hashes of the given tile level.
    Hashes(u8),
}

/// Path of a tile; `width` below [`TILE_WIDTH`] names an incomplete tile.
#[must_use]
pub fn tile(kind: TileKind, index: u64, width: usize) -> String {
    let mut path = match kind {
        TileKind::Entries => format!("{TILE}/entries/"),
        TileKind::Hashes(level) => format!("{TILE}/{level}/"),
    };
    let digits = index.to_string();
    let digits = format!("{digits:0>width$}", width = digits.len().div_ceil(3) * 3);
    let groups: Vec<&str> =
        digits.as_bytes().chunks(3).filter_map(|group| str::from_utf8(group).ok()).collect();
    let last = groups.len().saturating_sub(1);
    for (at, group) in groups.into_iter().enumerate() {
        path.push_str(if at < last { "x" } else { "" });
        path.push_str(group);
        path.push_str(if at < last { "/" } else { "" });
    }
    if width < TILE_WIDTH {
        path.push_str(".p/");
        path.push_str(&width.to_string());
    }
    path
}

/// Returns the names of the unchangeable files gained by a log growing from `from` records to
/// `size`, in order of appearance: bundles, tiles, kept tree heads.
pub fn grown(from: u64, size: u64) -> impl Iterator<Item = String> {
    let width = TILE_WIDTH as u64;
    (from / width..size / width).flat_map(move |bundle| {
        let mut names = vec![tile(TileKind::Entries, bundle, TILE_WIDTH)];
        let (mut index, mut level) = (bundle, 0);
        loop {
            names.push(tile(TileKind::Hashes(level), index, TILE_WIDTH));
            if !(index + 1).is_multiple_of(width) || level >= 7 {
                break;
            }
            (index, level) = (index / width, level + 1);
        }
        let end = (bundle + 1) * width;
        names.extend(end.is_multiple_of(KEPT_EVERY).then(|| kept_checkpoint(end)));
        names
    })
}

/// Names of the incomplete tiles and the incomplete bundle of a tree of `size` records.
#[must_use]
pub fn partial(size: u64) -> Vec<String> {
    crate::publish::partial_names(size)
}

/// Reads a tile path, relative to the evidence directory: kind, index, width.
#[must_use]
pub fn parse_tile(path: &str) -> Option<(TileKind, u64, usize)> {
    let rest = path.strip_prefix(TILE)?.strip_prefix('/')?;
    let (kind, rest) = rest.split_once('/')?;
    let kind = match kind {
        "entries" => TileKind::Entries,
        level => TileKind::Hashes(level.parse().ok().filter(|level| *level < 64)?),
    };
    let (number, width) = match rest.split_once(".p/") {
        Some((number, width)) => (number, width.parse().ok()?),
        None => (rest, TILE_WIDTH),
    };
    let digits: String = number.split('/').map(|group| group.trim_start_matches('x')).collect();
    let index = digits.parse().ok()?;
    // Only the correct spelling counts.
    (tile(kind, index, width) == path).then_some((kind, index, width))
}

/// Writes files so that each appears whole or not at all, and remembers the folders still to be
/// made durable.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: PathBuf,
    /// Owner of the writer: two writers of a single directory must not share a file in `tmp`.
    whose: &'static str,
    touched: BTreeSet<PathBuf>,
    counter: u64,
}

impl Writer {
    pub(crate) fn new(directory: &Path, whose: &'static str) -> Self {
        Self { directory: directory.to_owned(), whose, touched: BTreeSet::new(), counter: 0 }
    }

    /// Writes `bytes` durably under `name`; the name is durable after [`Writer::settle`].
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.counter += 1;
        let temporary = self.directory.join(TMP).join(format!("{}-{}", self.whose, self.counter));
        let target = self.directory.join(name);
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        drop(file);
        if let Some(parent) = target.parent() {
            self.make_folder(parent)?;
            self.touched.insert(parent.to_owned());
        }
        fs::rename(&temporary, &target)
    }

    /// Removes a file, if present.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        let target = self.directory.join(name);
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a folder, if present and empty.
    pub(crate) fn remove_folder(&mut self, name: &str) {
        // A folder with content stays, until the next removal of a file in the folder.
        fs::remove_dir(self.directory.join(name)).unwrap_or_default();
    }

    /// Makes the names written since the last call durable.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        while let Some(folder) = self.touched.first() {
            File::open(folder)?.sync_all()?;
            self.touched.pop_first();
        }
        Ok(())
    }

    fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.make_folder(parent)?;
            self.touched.insert(parent.to_owned());
        }
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}

/// Reads a file of at most `limit` bytes; `None` without the file.
pub(crate) fn read_limited(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("longer than the {limit} bytes that it may have")));
    }
    Ok(Some(bytes))
}

/// Largest attachment, in bytes.
pub const BLOB_LIMIT: usize = 64 << 20;

/// Largest entry bundle: every record at its largest.
pub(crate) const BUNDLE_LIMIT: usize = TILE_WIDTH * (2 + crate::wal::RECORD_LIMIT);

/// Splits an entry bundle into records. `Err`: the offset of the cut.
pub(crate) fn split_bundle(bytes: &[u8]) -> Result<Vec<&[u8]>, usize> {
    let mut records = Vec::with_capacity(TILE_WIDTH);
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let (len, after) = rest.split_first_chunk::<2>().ok_or(at)?;
        let (record, after) =
            after.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or(at)?;
        records.push(record);
        rest = after;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_the_path_that_the_specification_gives() {
        assert_eq!(tile(TileKind::Hashes(0), 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile(TileKind::Hashes(2), 0, 17), "tile/2/000.p/17");
        assert_eq!(tile(TileKind::Entries, 1000, 256), "tile/entries/x001/000");
    }

    #[test]
    fn a_log_that_grows_gains_tiles_of_every_level() {
        let names: Vec<String> = grown(65_280, 65_792).collect();
        assert_eq!(
            names,
            [
                "tile/entries/255",
                "tile/0/255",
                "tile/1/000",
                "checkpoints/000000000065536",
                "tile/entries/256",
                "tile/0/256"
            ]
        );
    }

    #[test]
    fn only_the_right_spelling_of_a_path_is_read() {
        for (index, width) in [(0, 256), (5, 1), (999, 255), (1000, 256), (1_234_067, 3)] {
            for kind in [TileKind::Entries, TileKind::Hashes(0), TileKind::Hashes(7)] {
                assert_eq!(parse_tile(&tile(kind, index, width)), Some((kind, index, width)));
            }
        }
        for wrong in
            ["tile/0/1", "tile/00/001", "tile/0/x000/001", "tile/0/001.p/256", "tile/0/001.p/0x"]
        {
            assert_eq!(parse_tile(wrong), None, "{wrong}");
        }
    }
}
