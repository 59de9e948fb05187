//! Turns durable records into tiles, entry bundles and signed checkpoints.
//!
//! All published files can be built again from the write-ahead log. The publisher runs on a thread
//! of its own (see [`crate::log`]), so its writes never delay a verdict.

use std::io;
use std::path::Path;

use crate::files::{self, TileKind, Writer};
use crate::note::{Checkpoint, SecretKey, TreeHead};
use crate::tree::{self, Edge, TILE_WIDTH};

/// Maximum of bytes waiting for publication; above, the log takes no more records.
pub(crate) const PENDING_LIMIT: usize = 32 << 20;

/// A file waiting to be written, in the required order of appearance.
#[derive(Debug)]
struct File {
    name: String,
    bytes: Vec<u8>,
}

/// The published half of a log.
#[derive(Debug)]
pub(crate) struct Publisher {
    origin: String,
    /// The first key signs everything; a second key is its predecessor.
    keys: Vec<SecretKey>,
    writer: Writer,
    edge: Edge,
    /// The incomplete entry bundle.
    bundle: Vec<u8>,
    pending: Vec<File>,
    pending_bytes: usize,
    /// Names of the incomplete tiles on disk.
    partial: Vec<String>,
    published: u64,
    /// First record with bytes kept.
    first: u64,
}

impl Publisher {
    /// Goes on from a published tree: its edge and its incomplete bundle.
    pub(crate) fn new(
        directory: &Path,
        origin: String,
        keys: Vec<SecretKey>,
        edge: Edge,
        bundle: Vec<u8>,
        first: u64,
    ) -> Self {
        let published = edge.size();
        let partial = partial_names(published);
        let writer = Writer::new(directory, "publish");
        let (pending, pending_bytes) = (Vec::new(), 0);
        Self {
            origin,
            keys,
            writer,
            edge,
            bundle,
            pending,
            pending_bytes,
            partial,
            published,
            first,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.edge.size()
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Returns the first record with bytes kept.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Adds a record already durable in the write-ahead log.
    pub(crate) fn add(&mut self, record: &[u8]) {
        let len = u16::try_from(record.len()).unwrap_or(u16::MAX);
        self.bundle.extend_from_slice(&len.to_be_bytes());
        self.bundle.extend_from_slice(record);
        let mut full = Vec::new();
        self.edge.push(tree::leaf_hash(record), |tile| full.push(tile));
        let size = self.edge.size();
        if size.is_multiple_of(TILE_WIDTH as u64) {
            let bytes = std::mem::take(&mut self.bundle);
            let index = size / TILE_WIDTH as u64 - 1;
            self.put(files::tile(TileKind::Entries, index, TILE_WIDTH), bytes);
        }
        for tile in full {
            let name = files::tile(TileKind::Hashes(tile.level), tile.index, TILE_WIDTH);
            self.put(name, tile.hashes.concat());
        }
        if size.is_multiple_of(files::KEPT_EVERY) {
            let note = self.sign().note.to_string();
            self.put(files::kept_checkpoint(size), note.into_bytes());
        }
    }

    fn put(&mut self, name: String, bytes: Vec<u8>) {
        self.pending_bytes += bytes.len();
        self.pending.push(File { name, bytes });
    }

    fn sign(&self) -> Checkpoint {
        let head = TreeHead {
            origin: self.origin.clone(),
            size: self.edge.size(),
            root: self.edge.root(),
        };
        Checkpoint::sign(head, self.keys.first())
    }

    /// Signs the checkpoint for witnesses, some of which may know only the key before the last
    /// change.
    fn sign_for_witnesses(&self, checkpoint: &Checkpoint) -> Checkpoint {
        Checkpoint::sign(checkpoint.head.clone(), &self.keys)
    }

    /// Writes tiles and bundles, then the checkpoint committing to the tiles, durably and in the
    /// given order. The returned checkpoint carries the signature of the key before the last change
    /// as well. After an error the next call goes on from the failed write.
    pub(crate) fn publish(&mut self) -> io::Result<Checkpoint> {
        while let Some(file) = self.pending.first() {
            self.writer.write(&file.name, &file.bytes)?;
            self.pending_bytes -= file.bytes.len();
            self.pending.remove(0);
        }
        let size = self.edge.size();
        let partial = partial_names(size);
        if !size.is_multiple_of(TILE_WIDTH as u64) {
            let name = files::tile(TileKind::Entries, size / TILE_WIDTH as u64, tail_width(size));
            self.writer.write(&name, &self.bundle)?;
        }
        let tiles = self.edge.partial_tiles().iter().enumerate();
        for (level, hashes) in tiles.filter(|(_, hashes)| !hashes.is_empty()) {
            let level = u8::try_from(level).map_err(io::Error::other)?;
            let index = tile_index(size, level);
            let name = files::tile(TileKind::Hashes(level), index, hashes.len());
            self.writer.write(&name, &hashes.concat())?;
        }
        self.writer.settle()?;
        let checkpoint = self.sign();
        self.writer.write(files::CHECKPOINT, checkpoint.note.to_string().as_bytes())?;
        self.writer.settle()?;
        for old in self.partial.iter().filter(|name| !partial.contains(name)) {
            self.writer.remove(old)?;
            if let Some((folder, _)) = old.rsplit_once('/') {
                self.writer.remove_folder(folder);
            }
        }
        self.partial = partial;
        self.published = size;
        Ok(self.sign_for_witnesses(&checkpoint))
    }

    /// Removes the bundles with all records below `below`, after a signed statement about the
    /// removal.
    pub(crate) fn prune(&mut self, below: u64) -> io::Result<u64> {
        let width = TILE_WIDTH as u64;
        let first = below.min(self.published) / width * width;
        let Some(key) = self.keys.first().filter(|_| first > self.first) else {
            return Ok(self.first);
        };
        let text = format!("{}/pruned\n{first}\n", self.origin);
        let signatures = vec![key.sign(&text, 0)];
        let note = crate::note::Note { text, signatures };
        self.writer.write(files::PRUNED, note.to_string().as_bytes())?;
        self.writer.settle()?;
        let old = std::mem::replace(&mut self.first, first);
        for bundle in old / width..first / width {
            self.writer.remove(&files::tile(TileKind::Entries, bundle, TILE_WIDTH))?;
        }
        Ok(first)
    }

    /// Signs with `key` from now on.
    pub(crate) fn rotate(&mut self, key: SecretKey, number: usize) -> io::Result<()> {
        let Some(old) = self.keys.first() else { return Ok(()) };
        let text = rotation_text(&self.origin, old, &key);
        let signatures = vec![old.sign(&text, 0), key.sign(&text, 0)];
        let note = crate::note::Note { text, signatures };
        self.writer.write(&files::rotation(number), note.to_string().as_bytes())?;
        self.writer.settle()?;
        self.keys.insert(0, key);
        self.keys.truncate(2);
        Ok(())
    }
}

/// Returns the statement for the signatures of both keys.
fn rotation_text(origin: &str, old: &SecretKey, new: &SecretKey) -> String {
    format!("{origin}/rotation\n{}\n{}\n", old.public(), new.public())
}

fn tail_width(size: u64) -> usize {
    usize::try_from(size % TILE_WIDTH as u64).unwrap_or(0)
}

/// Returns the index of the incomplete tile of `level` in a tree of `size` records.
pub(crate) fn tile_index(size: u64, level: u8) -> u64 {
    size.checked_shr(tree::TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0)
}

/// Returns the names of the incomplete tiles and the incomplete bundle of a tree of `size` records.
pub(crate) fn partial_names(size: u64) -> Vec<String> {
    let mut names = Vec::new();
    if tail_width(size) > 0 {
        names.push(files::tile(TileKind::Entries, size / TILE_WIDTH as u64, tail_width(size)));
    }
    for (level, width) in (0_u8..).zip(tree::partial_widths(size)) {
        if width > 0 {
            let index = tile_index(size, level);
            names.push(files::tile(TileKind::Hashes(level), index, width));
        }
    }
    names
}
