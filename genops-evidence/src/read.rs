//! Reads an evidence directory: records, tiles, keys. Trusts no file and verifies no content.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::files::{self, TileKind};
use crate::note::{Checkpoint, Note, NoteError, PublicKey};
use crate::tree::{self, Hash, Subtrees, TILE_WIDTH};
use crate::wal;

/// Maximum length of a small file, in bytes: keys, lists, notes.
const SMALL: usize = crate::note::NOTE_LIMIT;

/// An unusable file of the directory, with the place of the damage.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Error of the operating system.
    #[error("{file}: {source}")]
    Io {
        /// Relative to the evidence directory.
        file: String,
        /// Cause.
        source: io::Error,
    },
    /// The file is required and absent.
    #[error("{file}: missing, {why}")]
    Missing {
        /// Relative to the evidence directory.
        file: String,
        /// Reason for the requirement.
        why: &'static str,
    },
    /// The file differs from the bytes written.
    #[error("{file}, byte {offset}: {what}")]
    Damaged {
        /// Relative to the evidence directory.
        file: String,
        /// Offset in the file.
        offset: u64,
        /// Description of the damage.
        what: String,
    },
    /// A note, key or checkpoint in the file cannot be read or lacks the right signature.
    #[error("{file}: {source}")]
    Note {
        /// Relative to the evidence directory.
        file: String,
        /// Cause.
        source: NoteError,
    },
}

impl ReadError {
    /// Returns the file, relative to the evidence directory.
    #[must_use]
    pub fn file(&self) -> &str {
        match self {
            Self::Io { file, .. }
            | Self::Missing { file, .. }
            | Self::Damaged { file, .. }
            | Self::Note { file, .. } => file,
        }
    }

    /// Returns the description of the error, without the file's name.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::Io { source, .. } => source.to_string(),
            Self::Missing { why, .. } => format!("missing, {why}"),
            Self::Damaged { offset, what, .. } => format!("byte {offset}: {what}"),
            Self::Note { source, .. } => source.to_string(),
        }
    }

    pub(crate) fn damaged(file: &str, offset: usize, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset: offset as u64, what: what.into() }
    }

    pub(crate) fn note(file: &str) -> impl Fn(NoteError) -> Self {
        move |source| Self::Note { file: file.to_owned(), source }
    }
}

/// An evidence directory, opened for reading.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// A write-ahead segment, read whole.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

impl Directory {
    /// Names the directory; no file is read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file of at most `limit` bytes; `None` without the file.
    pub(crate) fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, ReadError> {
        files::read_limited(&self.path.join(name), limit)
            .map_err(|source| ReadError::Io { file: name.to_owned(), source })
    }

    pub(crate) fn read_required(
        &self,
        name: &str,
        limit: usize,
        why: &'static str,
    ) -> Result<Vec<u8>, ReadError> {
        let missing = || ReadError::Missing { file: name.to_owned(), why };
        self.read(name, limit)?.ok_or_else(missing)
    }

    /// Reads the newest checkpoint; signatures are not verified here.
    pub fn checkpoint(&self) -> Result<Checkpoint, ReadError> {
        let name = self.newest_head()?;
        self.checkpoint_in(&name, "every evidence directory has one")
    }

    /// Returns whether the directory is a shipped copy: a copy has `heads` instead of `checkpoint`.
    #[must_use]
    pub fn is_shipped(&self) -> bool {
        !self.path.join(files::CHECKPOINT).exists() && self.path.join(files::HEADS).is_dir()
    }

    /// Returns the sizes of the tree heads of a shipped copy, ascending.
    pub(crate) fn heads(&self) -> Result<Vec<u64>, ReadError> {
        let failed = |source| ReadError::Io { file: files::HEADS.to_owned(), source };
        let mut sizes = Vec::new();
        for entry in std::fs::read_dir(self.path.join(files::HEADS)).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let size: Option<u64> = name.to_str().and_then(|digits| digits.parse().ok());
            sizes.extend(size.filter(|size| name.to_str() == Some(&format!("{size:020}"))));
        }
        sizes.sort_unstable();
        Ok(sizes)
    }

    /// Returns the name of the file with the newest checkpoint.
    pub(crate) fn newest_head(&self) -> Result<String, ReadError> {
        let newest = if self.is_shipped() { self.heads()?.pop() } else { None };
        Ok(newest.map_or_else(|| files::CHECKPOINT.to_owned(), files::head))
    }

    /// Returns the names of the attachments: the claimed SHA-256 of each.
    #[must_use]
    pub fn blobs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path.join(files::BLOB)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|it| it.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Reads an attachment and checks the bytes against the name; `None`: absent.
    pub fn blob(&self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, ReadError> {
        let name = files::blob(digest);
        let bytes = self.read(&name, files::BLOB_LIMIT)?;
        match bytes {
            Some(bytes) if Sha256::digest(&bytes).as_slice() != digest => {
                Err(ReadError::damaged(&name, 0, "not what its name says"))
            }
            bytes => Ok(bytes),
        }
    }

    pub(crate) fn checkpoint_in(
        &self,
        name: &str,
        why: &'static str,
    ) -> Result<Checkpoint, ReadError> {
        let bytes = self.read_required(name, SMALL, why)?;
        let checkpoint = Checkpoint::parse(&bytes).map_err(ReadError::note(name))?;
        if checkpoint.note.to_string().as_bytes() != bytes {
            return Err(ReadError::damaged(name, 0, "not written as the format demands"));
        }
        Ok(checkpoint)
    }

    /// Returns the keys of the log in order of introduction; each key but the first is vouched for
    /// by its predecessor.
    pub fn keys(&self) -> Result<Vec<PublicKey>, ReadError> {
        let why = "without it nobody knows whose log this is";
        let bytes = self.read_required(files::VKEY, SMALL, why)?;
        let first: PublicKey = str::from_utf8(&bytes)
            .map_err(|_| NoteError::Key("not UTF-8"))
            .and_then(str::parse)
            .map_err(ReadError::note(files::VKEY))?;
        if bytes != format!("{first}\n").as_bytes() {
            return Err(ReadError::damaged(files::VKEY, 0, "more than one key, or no line end"));
        }
        let mut keys = vec![first];
        loop {
            let name = files::rotation(keys.len());
            let Some(bytes) = self.read(&name, SMALL)? else { return Ok(keys) };
            let note = Note::parse(&bytes).map_err(ReadError::note(&name))?;
            let key = read_rotation(&note, &keys).map_err(ReadError::note(&name))?;
            if note.to_string().as_bytes() != bytes {
                return Err(ReadError::damaged(&name, 0, "not written as the format demands"));
            }
            keys.push(key);
        }
    }

    /// Returns the index of the first record with bytes kept, from the signed statement.
    pub(crate) fn pruned(&self, keys: &[PublicKey]) -> Result<u64, ReadError> {
        let Some(bytes) = self.read(files::PRUNED, SMALL)? else { return Ok(0) };
        let fail = ReadError::note(files::PRUNED);
        let note = Note::parse(&bytes).map_err(&fail)?;
        verify_any(&note, keys).map_err(&fail)?;
        let origin = keys.first().map(PublicKey::name).unwrap_or_default();
        let index = note
            .text
            .strip_prefix(&format!("{origin}/pruned\n"))
            .and_then(|rest| rest.strip_suffix('\n'))
            .and_then(crate::note::parse_decimal)
            .ok_or_else(|| fail(NoteError::Malformed("not a statement about pruned entries")))?;
        if note.to_string().as_bytes() != bytes {
            return Err(ReadError::damaged(files::PRUNED, 0, "not written as the format demands"));
        }
        Ok(index)
    }

    /// Returns the first indices of the write-ahead segments in use.
    pub(crate) fn segments(&self) -> Result<Vec<u64>, ReadError> {
        if self.is_shipped() {
            return Ok(Vec::new());
        }
        let why = "it says whether the log was closed";
        let bytes = self.read_required(files::SEGMENTS, SMALL, why)?;
        let broken = || ReadError::damaged(files::SEGMENTS, 0, "not a list of segments");
        wal::parse_list(&bytes).ok_or_else(broken)
    }

    pub(crate) fn segment(&self, first: u64) -> Result<SegmentFile, ReadError> {
        let name = files::segment(first);
        let bytes = self.read_required(&name, wal::SEGMENT_LIMIT, "wal/segments lists it")?;
        Ok(SegmentFile { name, bytes })
    }

    /// Reads the bytes of a tile or bundle.
    pub(crate) fn tile(
        &self,
        kind: TileKind,
        index: u64,
        width: usize,
    ) -> Result<Vec<u8>, ReadError> {
        let name = files::tile(kind, index, width);
        let limit = match kind {
            TileKind::Entries => files::BUNDLE_LIMIT,
            TileKind::Hashes(_) => width * 32,
        };
        let bytes = self.read_required(&name, limit, "the checkpoint covers it")?;
        if matches!(kind, TileKind::Hashes(_)) && bytes.len() != width * 32 {
            let what = format!("{} hashes need {} bytes", width, width * 32);
            return Err(ReadError::damaged(&name, bytes.len(), what));
        }
        Ok(bytes)
    }

    /// Reads a bundle of at least `width` records. A running agent replaces an incomplete bundle by
    /// a longer bundle beginning with the same records (C2SP tlog-tiles, partial tiles).
    fn bundle(&self, index: u64, width: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = self.tile(TileKind::Entries, index, width);
        for longer in width + 1..=TILE_WIDTH {
            if !matches!(bytes, Err(ReadError::Missing { .. })) {
                break;
            }
            if let Ok(found) = self.tile(TileKind::Entries, index, longer) {
                bytes = Ok(found);
            }
        }
        bytes
    }

    /// Reads the record `index` of a log with `size` published records.
    pub fn record(&self, index: u64, size: u64) -> Result<Vec<u8>, ReadError> {
        let bundle = index / TILE_WIDTH as u64;
        let width = width_at(bundle, size);
        let name = files::tile(TileKind::Entries, bundle, width);
        let bytes = self.tile(TileKind::Entries, bundle, width)?;
        let records = files::split_bundle(&bytes)
            .map_err(|at| ReadError::damaged(&name, at, "cut in the middle of a record"))?;
        let at = usize::try_from(index % TILE_WIDTH as u64).unwrap_or(usize::MAX);
        let short = || ReadError::damaged(&name, bytes.len(), "fewer records than its name says");
        records.get(at).map(|record| record.to_vec()).ok_or_else(short)
    }

    /// Returns the index of the first record with bytes kept, from the log's signed statement.
    pub fn first_kept(&self) -> Result<u64, ReadError> {
        self.pruned(&self.keys()?)
    }

    /// Hands over the published records from index `from` on, with the index of each record; the
    /// bytes of record `from` have to be kept. Records given up meanwhile by a running agent are
    /// left out: then the index jumps.
    pub fn records(
        &self,
        from: u64,
        size: u64,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<(), ReadError> {
        let width = TILE_WIDTH as u64;
        for bundle in from / width..size.div_ceil(width) {
            let in_it = width_at(bundle, size);
            let name = files::tile(TileKind::Entries, bundle, in_it);
            let bytes = match self.bundle(bundle, in_it) {
                Err(ReadError::Missing { .. }) if (bundle + 1) * width <= self.first_kept()? => {
                    continue;
                }
                bytes => bytes?,
            };
            let records = files::split_bundle(&bytes)
                .map_err(|at| ReadError::damaged(&name, at, "cut in the middle of a record"))?;
            for (index, record) in (bundle * width..).zip(records) {
                if index >= from && index < size {
                    each(index, record);
                }
            }
        }
        Ok(())
    }

    /// Hands over the records of the write-ahead log from index `from` on: records not yet covered
    /// by a checkpoint.
    pub fn unpublished(
        &self,
        from: u64,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<(), ReadError> {
        let mut next = from;
        for first in self.segments()? {
            let segment = self.segment(first)?;
            let scan = wal::scan(&segment.bytes)
                .map_err(|error| ReadError::damaged(&segment.name, error.offset, error.what))?;
            for (index, record) in (scan.first..).zip(scan.records) {
                if index == next {
                    each(index, record);
                    next += 1;
                }
            }
        }
        Ok(())
    }

    /// Returns the hashes of a tree of `size` records, for proofs.
    #[must_use]
    pub fn tiles(&self, size: u64) -> Tiles<'_> {
        Tiles { directory: self, size, last: None }
    }
}

/// Returns the width of the bundle or level-0 tile `index` in a tree of `size` records.
pub(crate) fn width_at(index: u64, size: u64) -> usize {
    let before = index.saturating_mul(TILE_WIDTH as u64);
    usize::try_from(size.saturating_sub(before)).unwrap_or(usize::MAX).min(TILE_WIDTH)
}

/// Checks for a signature of any key in `keys` on the note.
pub(crate) fn verify_any<'k>(
    note: &Note,
    keys: &'k [PublicKey],
) -> Result<&'k PublicKey, NoteError> {
    let mut last = NoteError::NotSigned(keys.first().map_or("", PublicKey::name).to_owned());
    for key in keys.iter().rev() {
        match note.verify(key) {
            Ok(_) => return Ok(key),
            Err(error @ NoteError::WrongSignature(_)) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

/// Returns the new key of a rotation statement, if signed by the newest key so far and by the new
/// key.
fn read_rotation(note: &Note, keys: &[PublicKey]) -> Result<PublicKey, NoteError> {
    let malformed = NoteError::Malformed("not a statement about a changed key");
    let old = keys.last().ok_or_else(|| malformed.clone())?;
    let new: PublicKey = note
        .text
        .strip_prefix(&format!("{}/rotation\n{old}\n", old.name()))
        .and_then(|rest| rest.strip_suffix('\n'))
        .ok_or(malformed)?
        .parse()?;
    // Exactly the two signatures, in fixed order: otherwise lines could be exchanged unnoticed.
    match note.signatures.as_slice() {
        [by_old, by_new]
            if old.verify(&note.text, by_old)?.is_some()
                && new.verify(&note.text, by_new)?.is_some() =>
        {
            Ok(new)
        }
        _ => Err(NoteError::Malformed("not signed by the old key and then by the new one")),
    }
}

/// Checks signature and origin of a stored checkpoint: exactly one signature, of a key in `keys`.
pub(crate) fn verify_checkpoint(
    checkpoint: &Checkpoint,
    keys: &[PublicKey],
) -> Result<(), NoteError> {
    let key = verify_any(&checkpoint.note, keys)?;
    if key.name() != checkpoint.head.origin {
        return Err(NoteError::Checkpoint("the origin is not the name of the key"));
    }
    if checkpoint.note.signatures.len() != 1 {
        return Err(NoteError::Checkpoint("more than the one signature that a stored one has"));
    }
    Ok(())
}

/// Hashes of a published tree, read from its tiles.
#[derive(Debug)]
pub struct Tiles<'d> {
    directory: &'d Directory,
    size: u64,
    last: Option<(TileKind, u64, Vec<Hash>)>,
}

impl Subtrees for Tiles<'_> {
    type Error = ReadError;

    fn subtree(&mut self, level: u32, index: u64) -> Result<Hash, ReadError> {
        let tile_level = level / tree::TILE_HEIGHT;
        let within = level % tree::TILE_HEIGHT;
        let first = index << within;
        let tile = first / TILE_WIDTH as u64;
        let kind = TileKind::Hashes(u8::try_from(tile_level).unwrap_or(u8::MAX));
        let covered = self.size.checked_shr(tile_level * tree::TILE_HEIGHT).unwrap_or(0);
        let width = width_at(tile, covered);
        let cached = self.last.as_ref().is_some_and(|(k, t, _)| (*k, *t) == (kind, tile));
        if !cached {
            let bytes = self.directory.tile(kind, tile, width)?;
            self.last = Some((kind, tile, bytes.as_chunks::<32>().0.to_vec()));
        }
        let from = usize::try_from(first % TILE_WIDTH as u64).unwrap_or(0);
        let hashes = self.last.as_ref().and_then(|(_, _, it)| it.get(from..from + (1 << within)));
        let outside = || {
            let name = files::tile(kind, tile, width);
            ReadError::damaged(&name, from * 32, "the tree does not reach that far")
        };
        hashes.map(tree::subtree_root).ok_or_else(outside)
    }
}
