//! The log written by an agent: durable first, published after.
//!
//! [`Log::append`] and [`Log::commit`] run on the caller's thread and touch only the write-ahead
//! log: a single write and a single `fdatasync` for all records appended since the last commit. The
//! log's own thread, woken by [`Log::tick`], writes tiles, bundles and checkpoints.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::files::{self, TileKind, Writer};
use crate::note::{Checkpoint, KeyType, NoteError, PublicKey, SecretKey, TreeHead};
use crate::publish::{self, Publisher};
use crate::read::{self, Directory, ReadError};
use crate::tree::{self, Edge, TILE_WIDTH};
use crate::wal::{self, RECORD_LIMIT, SEGMENT_BYTES, Wal};

/// Options of a log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Identity of a new log: a schema-less URL without spaces or `+`. An existing log keeps its
    /// identity.
    pub origin: String,
    /// File with the secret key for signatures: a mounted secret or systemd credential. `None`: the
    /// log's own key, created at the first start.
    pub key_file: Option<PathBuf>,
    /// Length of a write-ahead segment, in bytes; at least 1 MiB.
    pub segment_bytes: u32,
    /// Maximum time between two checkpoints while records come in, in milliseconds.
    pub checkpoint_ms: u64,
    /// Maximum of records between two checkpoints.
    pub checkpoint_records: u64,
}

impl Options {
    /// Returns the defaults for a log of identity `origin`.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            key_file: None,
            segment_bytes: SEGMENT_BYTES,
            checkpoint_ms: 1_000,
            checkpoint_records: 1_024,
        }
    }
}

/// Findings at the opening of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// There was no log before.
    pub created: bool,
    /// The log was closed properly the last time, or is new.
    pub clean: bool,
    /// Records in the log now.
    pub size: u64,
    /// Records covered by the last checkpoint.
    pub published: u64,
    /// Writes cut short by a crash: file and offset.
    pub torn: Vec<(String, usize)>,
    /// The log's public key.
    pub key: PublicKey,
}

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the log open.
    #[error("{0}: in use by another process")]
    InUse(PathBuf),
    /// The directory cannot be created or used.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file of the log is missing or damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log holds less than promised by a checkpoint. The agent does not sign the log again: a
    /// new signature would hide the loss.
    #[error(
        "{file}: the checkpoint covers {signed} records, the log has {present}: rollback refused"
    )]
    Rollback {
        /// The checkpoint.
        file: String,
        /// Records promised by the checkpoint.
        signed: u64,
        /// Records present in the log.
        present: u64,
    },
    /// The secret key cannot be used for the log.
    #[error("{path}: {source}")]
    Key {
        /// File of the key.
        path: PathBuf,
        /// Cause.
        source: NoteError,
    },
    /// The secret key belongs to another log.
    #[error("{path}: not the key of this log; the log says `{expected}`")]
    WrongKey {
        /// File of the key.
        path: PathBuf,
        /// The key of the last signature.
        expected: String,
    },
}

/// A record was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The length does not fit an entry bundle.
    #[error("a record has 1 to {RECORD_LIMIT} bytes, not {0}")]
    Length(usize),
    /// Too many bytes wait to become durable or to be published: the disk does not keep up, or
    /// refuses.
    #[error("the write-ahead buffer is full")]
    Full,
}

/// Records could not be made durable; the records still wait.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk refused.
    #[error("write-ahead log: {0}")]
    Io(#[from] io::Error),
    /// The publishing thread is gone.
    #[error("the publishing thread ended")]
    Ended,
}

/// Records are durable but tiles or checkpoints could not be written; the log tries again.
#[derive(Debug, thiserror::Error)]
#[error("tiles and checkpoints: {0}")]
pub struct PublishError(pub String);

/// Job of the publishing thread.
enum Job {
    /// Records, each preceded by its length as in a bundle.
    Records(Vec<u8>),
    Publish(Option<SyncSender<Result<Checkpoint, String>>>),
    Prune {
        below: u64,
        /// `None`: the next tick reports the result.
        done: Option<SyncSender<Result<u64, String>>>,
    },
    Rotate {
        key: Box<SecretKey>,
        number: usize,
        done: SyncSender<Result<(), String>>,
    },
}

/// Status of the publishing thread.
#[derive(Debug, Default)]
struct Status {
    /// Newest checkpoint published since the last look.
    fresh: Option<Checkpoint>,
    published: u64,
    pending_bytes: usize,
    error: Option<String>,
    /// First record kept after a prune, since the last look.
    pruned: Option<u64>,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    options: Options,
    wal: Wal,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    status: Arc<Mutex<Status>>,
    /// Number of records handed to the publishing thread; `asked`: records covered by the last
    /// request to publish.
    handed: u64,
    asked: u64,
    asked_unix_ms: u64,
    keys: usize,
    key_file: PathBuf,
    _lock: File,
}

impl Log {
    /// Opens the log in `directory`, or creates a log.
    ///
    /// Records left in the write-ahead log by a crash are published at once. A log with less than
    /// its signed records is refused.
    pub fn open(directory: &Path, options: Options) -> Result<(Self, Recovery), OpenError> {
        let lock = prepare(directory)?;
        let dir = Directory::new(directory);
        let created = is_empty_log(&dir)?;
        if options.key_file.is_some() {
            let path = directory.join(files::EXTERNAL);
            File::create(&path).map_err(|source| OpenError::Io { path, source })?;
        }
        if created {
            create(directory, &options)?;
        }
        let keys = dir.keys()?;
        let (key, key_file) = load_key(directory, &options, keys.last())?;
        let origin = key.public().name().to_owned();
        let checkpoint = dir.checkpoint()?;
        read::verify_checkpoint(&checkpoint, &keys).map_err(ReadError::note(files::CHECKPOINT))?;
        let (edge, bundle) = restore(&dir, &checkpoint.head)?;
        let published = edge.size();
        let mut tree =
            Publisher::new(directory, origin, vec![key], edge, bundle, dir.pruned(&keys)?);

        let list = dir.segments()?;
        let mut torn = Vec::new();
        recover(&dir, &list, &mut tree, &mut torn)?;
        let clean = list.is_empty();
        let failed = |source| OpenError::Io { path: directory.to_owned(), source };
        if !clean {
            remove_leftovers(directory, published).map_err(failed)?;
        }
        let size = tree.size();
        if size > published {
            tree.publish().map_err(failed)?;
        }
        let mut wal = Wal::new(directory, options.segment_bytes, list, size);
        wal.release(size).map_err(failed)?;

        let recovery = Recovery {
            created,
            clean,
            size,
            published,
            torn,
            key: keys.last().cloned().unwrap_or_else(|| unreachable!("a log has a key")),
        };
        let status = Arc::new(Mutex::new(Status { published: size, ..Status::default() }));
        let (jobs, inbox) = sync_channel(64);
        let shared = Arc::clone(&status);
        let thread = std::thread::Builder::new()
            .name("evidence".to_owned())
            .spawn(move || work(tree, &inbox, &shared))
            .map_err(failed)?;
        let log = Self {
            directory: directory.to_owned(),
            options,
            wal,
            jobs: Some(jobs),
            thread: Some(thread),
            status,
            handed: size,
            asked: size,
            asked_unix_ms: 0,
            keys: keys.len(),
            key_file,
            _lock: lock,
        };
        Ok((log, recovery))
    }

    /// Returns the directory of the log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the number of records appended so far, durable or not: the index of the next record.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.wal.next()
    }

    /// Returns the number of durable records.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.wal.durable()
    }

    /// Returns whether half of the buffer for records not yet durable is full: time for a
    /// [`Log::commit`].
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        !self.wal.has_room(wal::BUFFER_LIMIT / 2)
    }

    /// Appends a record and returns the index. The record is durable after the next
    /// [`Log::commit`].
    pub fn append(&mut self, record: &[u8]) -> Result<u64, AppendError> {
        if record.is_empty() || record.len() > RECORD_LIMIT {
            return Err(AppendError::Length(record.len()));
        }
        let pending = self.lock_status().pending_bytes;
        if !self.wal.has_room(record.len()) || pending > publish::PENDING_LIMIT {
            return Err(AppendError::Full);
        }
        Ok(self.wal.append(record))
    }

    /// Makes every appended record durable: a single write and a single `fdatasync`. Does nothing
    /// without waiting records.
    pub fn commit(&mut self) -> Result<(), CommitError> {
        let mut batch = Vec::new();
        let result = self.wal.commit(|record| {
            let len = u16::try_from(record.len()).unwrap_or(u16::MAX);
            batch.extend_from_slice(&len.to_be_bytes());
            batch.extend_from_slice(record);
        });
        if !batch.is_empty() {
            self.send(Job::Records(batch)).map_err(|()| CommitError::Ended)?;
            self.handed = self.wal.durable();
        }
        Ok(result?)
    }

    /// Lets checkpoints keep pace: asks for a checkpoint after enough records or time, and returns
    /// the newest checkpoint finished since the last call. Never waits for the disk.
    pub fn tick(&mut self, unix_ms: u64) -> Result<Option<Checkpoint>, PublishError> {
        let waiting = self.handed - self.asked;
        let due = unix_ms.saturating_sub(self.asked_unix_ms) >= self.options.checkpoint_ms;
        if waiting >= self.options.checkpoint_records || (waiting > 0 && due) {
            let jobs = self.jobs.as_ref();
            // A full queue means a delay in publishing; the next tick asks again.
            if jobs.is_some_and(|jobs| jobs.try_send(Job::Publish(None)).is_ok()) {
                self.asked = self.handed;
                self.asked_unix_ms = unix_ms;
            }
        }
        let (fresh, published, error) = {
            let mut status = self.lock_status();
            (status.fresh.take(), status.published, status.error.take())
        };
        if let Some(error) = error {
            self.asked = published;
            return Err(PublishError(error));
        }
        if fresh.is_some() {
            self.wal.release(published).map_err(|error| PublishError(error.to_string()))?;
        }
        Ok(fresh)
    }

    /// Makes all records durable, publishes the records and waits for the checkpoint.
    pub fn publish(&mut self) -> Result<Checkpoint, PublishError> {
        self.commit().map_err(|error| PublishError(error.to_string()))?;
        let (done, answer) = sync_channel(1);
        let ended = || PublishError(CommitError::Ended.to_string());
        self.send(Job::Publish(Some(done))).map_err(|()| ended())?;
        let checkpoint = answer.recv().map_err(|_| ended())?.map_err(PublishError)?;
        self.asked = self.handed;
        self.wal.release(checkpoint.head.size).map_err(|error| PublishError(error.to_string()))?;
        Ok(checkpoint)
    }

    /// Closes the log properly: no record is left in the write-ahead log.
    pub fn close(mut self) -> Result<Checkpoint, PublishError> {
        let checkpoint = self.publish()?;
        self.wal.close_segment();
        self.wal.release(checkpoint.head.size).map_err(|error| PublishError(error.to_string()))?;
        Ok(checkpoint)
    }

    /// Makes a new key, signed by the present key, and signs with the new key from now on.
    /// Checkpoints for witnesses carry both signatures until the next start. Returns the new public
    /// key.
    ///
    /// # Errors
    ///
    /// Also if the configuration gave the key: then the owner of the configuration changes the key.
    pub fn rotate_key(&mut self) -> Result<PublicKey, PublishError> {
        let failed = |error: &dyn std::fmt::Display| PublishError(error.to_string());
        if self.options.key_file.is_some() {
            return Err(PublishError("the key is given from outside; change it there".to_owned()));
        }
        let name = Directory::new(&self.directory)
            .keys()
            .map_err(|error| failed(&error))?
            .last()
            .map(|key| key.name().to_owned())
            .unwrap_or_default();
        let key = SecretKey::generate(&name, KeyType::Note).map_err(|error| failed(&error))?;
        let public = key.public().clone();
        // The new secret is kept beside the old secret until the statement about the change is
        // durable.
        let next = self.directory.join(files::NEXT_KEY);
        write_secret(&next, &key.to_text()).map_err(|error| failed(&error))?;
        self.introduce(key)?;
        fs::rename(&next, &self.key_file).map_err(|error| failed(&error))?;
        Ok(public)
    }

    /// Rotates as [`Log::rotate_key`], from a key given by the configuration to another given key.
    /// From now on the configuration has to name the new key.
    pub fn rotate_key_to(&mut self, file: &Path) -> Result<PublicKey, PublishError> {
        if self.options.key_file.is_none() {
            return Err(PublishError(
                "the key is the log's own; rotate it without a file".to_owned(),
            ));
        }
        let key = read_key(file).map_err(|error| PublishError(error.to_string()))?;
        let keys = Directory::new(&self.directory).keys();
        let keys = keys.map_err(|error| PublishError(error.to_string()))?;
        let name = keys.first().map(PublicKey::name).unwrap_or_default();
        if key.public().name() != name || keys.contains(key.public()) {
            let file = file.display();
            return Err(PublishError(format!("{file}: not a new key with the name `{name}`")));
        }
        let public = key.public().clone();
        self.introduce(key)?;
        Ok(public)
    }

    /// Has the present key and the new key sign the change.
    fn introduce(&mut self, key: SecretKey) -> Result<(), PublishError> {
        let (done, answer) = sync_channel(1);
        let ended = || PublishError(CommitError::Ended.to_string());
        let job = Job::Rotate { key: Box::new(key), number: self.keys, done };
        self.send(job).map_err(|()| ended())?;
        answer.recv().map_err(|_| ended())?.map_err(PublishError)?;
        self.keys += 1;
        Ok(())
    }

    /// Gives up the bytes of records below `below`, as far as whole published bundles go; returns
    /// the first index still kept. The hashes stay, and with the hashes every proof of the rest. A
    /// signed statement names the first record kept.
    pub fn prune(&mut self, below: u64) -> Result<u64, PublishError> {
        let (done, answer) = sync_channel(1);
        let ended = || PublishError(CommitError::Ended.to_string());
        self.send(Job::Prune { below, done: Some(done) }).map_err(|()| ended())?;
        answer.recv().map_err(|_| ended())?.map_err(PublishError)
    }

    /// Prunes as [`Log::prune`], without waiting: [`Log::pruned`] reports the result. False if the
    /// publishing thread has too much to do; ask again later.
    #[must_use]
    pub fn prune_later(&self, below: u64) -> bool {
        self.jobs.as_ref().is_some_and(|it| it.try_send(Job::Prune { below, done: None }).is_ok())
    }

    /// Returns the first record kept, if changed since the last call.
    #[must_use]
    pub fn pruned(&self) -> Option<u64> {
        self.lock_status().pruned.take()
    }

    /// Keeps an attachment durably under its SHA-256, and returns the SHA-256. An attachment holds
    /// bytes too long for a record; the record refers to the SHA-256.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<[u8; 32]> {
        if bytes.len() > files::BLOB_LIMIT {
            return Err(io::Error::other("longer than an attachment may be"));
        }
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        let name = files::blob(&digest);
        let known = files::read_limited(&self.directory.join(&name), files::BLOB_LIMIT);
        if !known.is_ok_and(|known| known.as_deref() == Some(bytes)) {
            let mut writer = Writer::new(&self.directory, "keep");
            writer.write(&name, bytes)?;
            writer.settle()?;
        }
        Ok(digest)
    }

    fn send(&self, job: Job) -> Result<(), ()> {
        self.jobs.as_ref().ok_or(())?.send(job).map_err(|_| ())
    }

    fn lock_status(&self) -> std::sync::MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    /// Waits for the publishing thread; the next start finds durable records not yet published.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

/// Runs the publishing thread.
fn work(mut publisher: Publisher, inbox: &Receiver<Job>, status: &Mutex<Status>) {
    let report = |publisher: &Publisher, result: Option<Result<Checkpoint, String>>| {
        let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
        status.published = publisher.published();
        status.pending_bytes = publisher.pending_bytes();
        match result {
            Some(Ok(checkpoint)) => status.fresh = Some(checkpoint),
            Some(Err(error)) => status.error = Some(error),
            None => {}
        }
    };
    while let Ok(job) = inbox.recv() {
        match job {
            Job::Records(batch) => {
                for record in files::split_bundle(&batch).unwrap_or_default() {
                    publisher.add(record);
                }
                report(&publisher, None);
            }
            Job::Publish(reply) => {
                let result = publisher.publish().map_err(|error| error.to_string());
                report(&publisher, Some(result.clone()));
                if let Some(reply) = reply {
                    // The caller may have gone; then the answer is not needed.
                    reply.send(result).unwrap_or_default();
                }
            }
            Job::Prune { below, done } => {
                let before = publisher.first();
                let result = publisher.prune(below).map_err(|error| error.to_string());
                match (done, result) {
                    (Some(done), result) => done.send(result).unwrap_or_default(),
                    (None, Ok(first)) if first == before => {}
                    (None, result) => note_pruned(status, result),
                }
            }
            Job::Rotate { key, number, done } => {
                let result = publisher.rotate(*key, number).map_err(|error| error.to_string());
                done.send(result).unwrap_or_default();
            }
        }
    }
}

fn note_pruned(status: &Mutex<Status>, result: Result<u64, String>) {
    let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
    match result {
        Ok(first) => status.pruned = Some(first),
        Err(error) => status.error = Some(error),
    }
}

/// Creates the folders and takes the lock.
fn prepare(directory: &Path) -> Result<File, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    for folder in ["", files::KEYS, files::WAL, files::TILE, files::TMP] {
        let path = directory.join(folder);
        let mode = if folder == files::KEYS { 0o700 } else { 0o750 };
        fs::DirBuilder::new().recursive(true).mode(mode).create(&path).map_err(failed(&path))?;
    }
    let lock = File::open(directory).map_err(failed(directory))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(directory.to_owned())),
        Err(errno) => return Err(failed(directory)(errno.into())),
    }
    let tmp = directory.join(files::TMP);
    for entry in fs::read_dir(&tmp).map_err(failed(&tmp))? {
        let path = entry.map_err(failed(&tmp))?.path();
        fs::remove_file(&path).map_err(failed(&path))?;
    }
    // An unwritable disk is better known now than at the first verdict.
    let probe = tmp.join("probe");
    fs::write(&probe, b"genops").and_then(|()| fs::remove_file(&probe)).map_err(failed(&probe))?;
    Ok(lock)
}

/// Returns whether no record was ever logged in the directory. A log without its checkpoint is not
/// empty.
fn is_empty_log(dir: &Directory) -> Result<bool, OpenError> {
    if dir.path().join(files::CHECKPOINT).exists() {
        return Ok(false);
    }
    let tile = dir.path().join(files::TILE);
    let mut entries =
        fs::read_dir(&tile).map_err(|source| OpenError::Io { path: tile.clone(), source })?;
    let unused = dir.path().join(files::SEGMENTS);
    Ok(entries.next().is_none() && (!unused.exists() || dir.segments()?.is_empty()))
}

/// Writes the files common to all logs: key, list of segments, empty checkpoint.
fn create(directory: &Path, options: &Options) -> Result<(), OpenError> {
    let path = directory.join(files::KEY);
    let failed = |source| OpenError::Io { path: directory.to_owned(), source };
    if options.key_file.is_none() && !path.exists() {
        let key = SecretKey::generate(&options.origin, KeyType::Note)
            .map_err(|source| OpenError::Key { path: path.clone(), source })?;
        write_secret(&path, &key.to_text()).map_err(failed)?;
    }
    let (key, _) = load_key(directory, options, None)?;
    let mut writer = Writer::new(directory, "log");
    let head =
        TreeHead { origin: key.public().name().to_owned(), size: 0, root: tree::empty_hash() };
    let vkey = format!("{}\n", key.public());
    let checkpoint = Checkpoint::sign(head, [&key]).note.to_string();
    writer
        .write(files::VKEY, vkey.as_bytes())
        .and_then(|()| writer.write(files::SEGMENTS, wal::format_list(&[]).as_bytes()))
        .and_then(|()| writer.settle())
        .and_then(|()| writer.write(files::CHECKPOINT, checkpoint.as_bytes()))
        .and_then(|()| writer.settle())
        .map_err(failed)
}

/// Writes a secret readable only by its owner, whole or not at all.
pub(crate) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Reads the secret key, required to be the log's key.
fn load_key(
    directory: &Path,
    options: &Options,
    expected: Option<&PublicKey>,
) -> Result<(SecretKey, PathBuf), OpenError> {
    let own = directory.join(files::KEY);
    // A rotation interrupted by a crash: the statement exists, the rename is missing.
    let next = directory.join(files::NEXT_KEY);
    let path = options.key_file.clone().unwrap_or(own);
    let mut found = read_key(&path)?;
    if let Some(expected) = expected
        && found.public() != expected
        && options.key_file.is_none()
        && next.exists()
    {
        let candidate = read_key(&next)?;
        if candidate.public() == expected {
            fs::rename(&next, &path)
                .map_err(|source| OpenError::Io { path: next.clone(), source })?;
            found = candidate;
        }
    }
    match expected {
        Some(expected) if found.public() != expected => {
            Err(OpenError::WrongKey { path, expected: expected.to_string() })
        }
        _ => Ok((found, path)),
    }
}

fn read_key(path: &Path) -> Result<SecretKey, OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    let text = zeroize::Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    let wrong = |source| OpenError::Key { path: path.to_owned(), source };
    let key = SecretKey::parse(&text).map_err(wrong)?;
    if key.public().key_type() != KeyType::Note {
        return Err(wrong(NoteError::Key("a witness key cannot sign a log")));
    }
    Ok(key)
}

/// Returns the right edge of the published tree, from the incomplete tiles, and the incomplete
/// bundle.
fn restore(dir: &Directory, head: &TreeHead) -> Result<(Edge, Vec<u8>), OpenError> {
    let size = head.size;
    let mut levels = Vec::new();
    for (level, width) in (0_u8..).zip(tree::partial_widths(size)) {
        let index = publish::tile_index(size, level);
        let hashes = match width {
            0 => Vec::new(),
            _ => dir.tile(TileKind::Hashes(level), index, width)?.as_chunks::<32>().0.to_vec(),
        };
        levels.push(hashes);
    }
    let tail = usize::try_from(size % TILE_WIDTH as u64).unwrap_or(0);
    let bundle = match tail {
        0 => Vec::new(),
        width => dir.tile(TileKind::Entries, size / TILE_WIDTH as u64, width)?,
    };
    let present = match files::split_bundle(&bundle) {
        Ok(records) => size - tail as u64 + records.len() as u64,
        Err(_) => size - tail as u64,
    };
    let rollback =
        OpenError::Rollback { file: files::CHECKPOINT.to_owned(), signed: size, present };
    if present != size {
        return Err(rollback);
    }
    let edge = Edge::restore(size, levels).filter(|edge| edge.root() == head.root);
    let what = "the tiles do not have the root that was signed";
    let edge = edge.ok_or_else(|| ReadError::damaged(files::CHECKPOINT, 0, what))?;
    Ok((edge, bundle))
}

/// Adds the records of the write-ahead log beyond the published tree.
fn recover(
    dir: &Directory,
    list: &[u64],
    publisher: &mut Publisher,
    torn: &mut Vec<(String, usize)>,
) -> Result<(), OpenError> {
    for first in list {
        let segment = dir.segment(*first)?;
        let scan = wal::scan(&segment.bytes)
            .map_err(|error| ReadError::damaged(&segment.name, error.offset, error.what))?;
        if scan.first != *first {
            return Err(ReadError::damaged(&segment.name, 16, "not the segment of its name").into());
        }
        if scan.first > publisher.size() {
            let what = format!("records {} to {} are missing", publisher.size(), scan.first - 1);
            return Err(ReadError::damaged(&segment.name, 16, what).into());
        }
        for (index, record) in (scan.first..).zip(&scan.records) {
            if index == publisher.size() {
                publisher.add(record);
            }
        }
        if let wal::Tail::Torn(at) = scan.tail {
            torn.push((segment.name, at));
        }
    }
    Ok(())
}

/// Removes incomplete tiles left by a crash, except the tiles of the published tree.
fn remove_leftovers(directory: &Path, published: u64) -> io::Result<()> {
    let keep = publish::partial_names(published);
    let mut folders = vec![directory.join(files::TILE)];
    while let Some(folder) = folders.pop() {
        let partial = folder.extension().is_some_and(|extension| extension == "p");
        let mut left = 0;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if partial {
                let path = entry.path();
                let name = path.strip_prefix(directory).map_err(io::Error::other)?;
                if keep.iter().any(|kept| name == Path::new(kept)) {
                    left += 1;
                } else {
                    fs::remove_file(&path)?;
                }
            }
        }
        if partial && left == 0 {
            fs::remove_dir(&folder)?;
        }
    }
    Ok(())
}
