//! Takes copies of the log out of the host: to an S3 object store, or to a directory.
//!
//! Runs on a separate thread; the thread only reads the evidence directory. No file is ever
//! overwritten: a file is created under its own name, or an existing file has to be equal. So an
//! attacker with the host, and even with the host's credentials, cannot change the shipped files.
//! Bundles, tiles and kept tree heads never change; the newest tree head goes to `heads/<size>`.
//! `evidence verify` reads the copy.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_evidence::{Directory, files};
use http_body_util::BodyExt as _;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::client::{
    HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig};
use opentelemetry_http::{HttpClient, Request};
use serde::{Deserialize, Serialize};

use super::outward;
use crate::metrics::Metrics;

/// Maximum wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// Number of consecutive failures before the journal records the failure, once.
const FAILURES: u32 = 3;

/// Number of bytes per read in the comparison with an existing object.
const COMPARED_BYTES: u64 = 1 << 20;

/// Timeout of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Maximum wait for the last copies at the end.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// Destination of the copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A directory, such as a mounted share.
    Directory(PathBuf),
    /// A bucket, with a prefix for the names.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Prefix, without slashes around; may be empty.
        prefix: String,
    },
}

/// Settings of the shipping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ship {
    /// Destination.
    pub(crate) to: Destination,
    /// Address of the server; `None`: AWS.
    pub(crate) endpoint: Option<String>,
    /// Region of the bucket.
    pub(crate) region: Option<String>,
    /// Lines `access_key_id: ..`, `secret_access_key: ..` and perhaps `session_token: ..`; `None`:
    /// the environment variables `AWS_ACCESS_KEY_ID` and so on.
    pub(crate) credentials_file: Option<PathBuf>,
    /// Interval between two rounds.
    pub(crate) every: Duration,
}

/// An event for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Shipping failed for some rounds.
    Failed(String),
    /// Shipping goes on again.
    Resumed,
    /// The destination has another content under the name of a file of the log.
    Refused(String),
}

/// Handle of the thread, for the journal. Dropping the handle ends the thread.
#[derive(Debug)]
pub(crate) struct Shipper {
    news: Receiver<News>,
    metrics: Arc<Metrics>,
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Shipper {
    /// Starts shipping the files in `directory`; `state` remembers the progress.
    pub(crate) fn start(
        directory: &Path,
        state: &Path,
        ship: Ship,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (tell, news) = channel();
        let (alive, ended) = channel();
        let progress = Progress::load(state);
        metrics.shipped_records.set(progress.records);
        let mut round = Round {
            directory: Directory::new(directory),
            state: state.to_owned(),
            ship,
            progress,
            store: None,
            metrics: Arc::clone(metrics),
            ended,
        };
        let thread = std::thread::Builder::new()
            .name("ship".to_owned())
            .spawn(move || work(&mut round, &tell))
            .context("the thread that ships evidence")?;
        let metrics = Arc::clone(metrics);
        Ok(Self { news, metrics, alive: Some(alive), thread: Some(thread) })
    }

    /// Returns the next event; does not wait.
    pub(crate) fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// Returns the number of shipped records: all records below the index are in the copy.
    pub(crate) fn shipped(&self) -> u64 {
        self.metrics.shipped_records.get()
    }

    /// Ships the rest, for a few seconds at most; the next start goes on.
    pub(crate) fn finish(mut self) {
        drop(self.alive.take());
        let deadline = Instant::now() + LAST_PATIENCE;
        while self.thread.as_ref().is_some_and(|it| !it.is_finished()) && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Progress of the shipping, kept in the state file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Destination: another destination starts anew.
    #[serde(default)]
    place: String,
    /// Number of records with full bundles and tiles at the destination.
    #[serde(default)]
    records: u64,
    /// Size of the newest tree head at the destination.
    #[serde(default)]
    head: u64,
    /// Single files at the destination: keys, statements, attachments.
    #[serde(default)]
    singles: BTreeSet<String>,
}

impl Progress {
    /// Loads the state file; without a usable file, all files are compared again.
    fn load(state: &Path) -> Self {
        let text = std::fs::read(state).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn save(&self, state: &Path) -> anyhow::Result<()> {
        let context = || state.display().to_string();
        if let Some(folder) = state.parent() {
            std::fs::create_dir_all(folder).with_context(context)?;
        }
        let temporary = state.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(self)?).with_context(context)?;
        std::fs::rename(&temporary, state).with_context(context)
    }
}

/// The destination has another content under the name of a file of the log.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is there already and is not what this log has")]
struct Conflict(String);

struct Round {
    directory: Directory,
    state: PathBuf,
    ship: Ship,
    progress: Progress,
    store: Option<Box<dyn ObjectStore>>,
    metrics: Arc<Metrics>,
    ended: Receiver<()>,
}

fn work(round: &mut Round, tell: &Sender<News>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    let mut failures = 0_u32;
    let mut wait = Duration::from_millis(500);
    loop {
        let last = round.ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
        let news = match runtime.block_on(round.run()) {
            Ok(()) => {
                wait = round.ship.every;
                let before = std::mem::take(&mut failures);
                (before >= FAILURES).then_some(News::Resumed)
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                round.metrics.ship_failures.increment();
                // State in the store may be the cause: a connection, expired credentials.
                round.store = None;
                wait = back_off(failures);
                let refused = error.downcast_ref::<Conflict>().is_some();
                let why = format!("{error:#}");
                let due = failures == FAILURES || (refused && failures == 1);
                due.then_some(if refused { News::Refused(why) } else { News::Failed(why) })
            }
        };
        if last || news.is_some_and(|news| tell.send(news).is_err()) {
            return;
        }
    }
}

/// Returns the wait: a second, doubled with each failure.
fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT)
}

impl Round {
    /// Ships all new files.
    async fn run(&mut self) -> anyhow::Result<()> {
        let place = format!("{:?} {:?}", self.ship.to, self.ship.endpoint);
        if self.progress.place != place {
            self.progress = Progress { place, ..Progress::default() };
        }
        if self.store.is_none() {
            self.store = Some(open(&self.ship)?);
        }
        let size = self.directory.checkpoint()?.head.size;
        if size == self.progress.head {
            return Ok(());
        }
        let outcome = self.all(size).await;
        self.progress.save(&self.state)?;
        outcome
    }

    async fn all(&mut self, size: u64) -> anyhow::Result<()> {
        self.singles().await?;
        let width = genops_evidence::tree::TILE_WIDTH as u64;
        while self.progress.records + width <= size {
            let next = self.progress.records + width;
            for name in files::grown(self.progress.records, next) {
                self.put(&name, &name).await?;
            }
            self.progress.records = next;
            self.metrics.shipped_records.set(next);
            if next.is_multiple_of(width * 64) {
                self.progress.save(&self.state)?;
            }
            if self.ended.try_recv() == Err(TryRecvError::Disconnected) && size - next > width * 64
            {
                // Many records are left, and the agent stops: the next start goes on from here.
                return Ok(());
            }
        }
        // Publishing goes on meanwhile and removes incomplete tiles: then the next round ships the
        // head.
        let head = self.directory.path().join(files::CHECKPOINT);
        let note = std::fs::read(&head).with_context(|| head.display().to_string())?;
        let checkpoint = genops_evidence::Checkpoint::parse(&note)?;
        let size = checkpoint.head.size;
        for name in files::partial(size) {
            if !self.directory.path().join(&name).exists() {
                return Ok(());
            }
            self.put(&name, &name).await?;
        }
        self.create(&files::head(size), note).await?;
        self.progress.head = size;
        Ok(())
    }

    /// Ships keys, statements and attachments.
    async fn singles(&mut self) -> anyhow::Result<()> {
        let mut names = vec![files::VKEY.to_owned()];
        let keys = self.directory.keys()?.len();
        names.extend((1..keys).map(files::rotation));
        names.extend(self.directory.blobs().iter().map(|name| format!("{}/{name}", files::BLOB)));
        let first = self.directory.first_kept()?;
        if first > self.progress.records {
            // The records were given up before the first shipment; the statement tells.
            names.push(files::PRUNED.to_owned());
            self.hashes_below(first).await?;
        }
        for name in names {
            if !self.progress.singles.contains(&name) {
                self.put(&name, &name).await?;
                self.progress.singles.insert(name);
            }
        }
        Ok(())
    }

    /// Ships the hashes of records no longer kept.
    async fn hashes_below(&mut self, first: u64) -> anyhow::Result<()> {
        let entries = format!("{}/entries/", files::TILE);
        for name in files::grown(self.progress.records, first) {
            if !name.starts_with(&entries) {
                self.put(&name, &name).await?;
            }
        }
        self.progress.records = first;
        Ok(())
    }

    async fn put(&self, name: &str, to: &str) -> anyhow::Result<()> {
        let path = self.directory.path().join(name);
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        self.create(to, bytes).await
    }

    /// Creates an object; an existing object has to be equal.
    async fn create(&self, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let store = self.store.as_deref().context("no store")?;
        let key = Key::parse(name).with_context(|| name.to_owned())?;
        let payload = object_store::PutPayload::from(bytes.clone());
        match store.put_opts(&key, payload, PutMode::Create.into()).await {
            Ok(_) => {
                self.metrics.shipped_objects.increment();
                Ok(())
            }
            // An older statement about records given up before the first shipment is as good.
            Err(object_store::Error::AlreadyExists { .. }) if name == files::PRUNED => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                let same = same(store, &key, &bytes).await.with_context(|| name.to_owned())?;
                ensure!(same, Conflict(name.to_owned()));
                Ok(())
            }
            Err(error) => Err(error).with_context(|| name.to_owned()),
        }
    }
}

/// Returns whether an object holds exactly `bytes`.
async fn same(store: &dyn ObjectStore, key: &Key, bytes: &[u8]) -> anyhow::Result<bool> {
    let size = store.head(key).await?.size;
    if size != bytes.len() as u64 {
        return Ok(false);
    }
    let mut from = 0;
    while from < size {
        let to = (from + COMPARED_BYTES).min(size);
        let part = store.get_range(key, from..to).await?;
        let range = usize::try_from(from)?..usize::try_from(to)?;
        if bytes.get(range) != Some(&part[..]) {
            return Ok(false);
        }
        from = to;
    }
    Ok(true)
}

fn open(ship: &Ship) -> anyhow::Result<Box<dyn ObjectStore>> {
    match &ship.to {
        Destination::Directory(path) => {
            let place = || path.display().to_string();
            std::fs::create_dir_all(path).with_context(place)?;
            let store = LocalFileSystem::new_with_prefix(path).with_context(place)?;
            Ok(Box::new(store.with_fsync(true)))
        }
        Destination::S3 { bucket, prefix } => {
            let store = s3(ship, bucket)?;
            if prefix.is_empty() {
                return Ok(Box::new(store));
            }
            Ok(Box::new(PrefixStore::new(store, Key::parse(prefix)?)))
        }
    }
}

fn s3(ship: &Ship, bucket: &str) -> anyhow::Result<object_store::aws::AmazonS3> {
    let plain = ship.endpoint.as_ref().is_some_and(|it| it.starts_with("http://"));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_http_connector(Connector { secure: !plain })
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // The loop has its own back-off.
        .with_retry(RetryConfig {
            max_retries: 1,
            retry_timeout: PATIENCE,
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &ship.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(plain);
    }
    if let Some(region) = &ship.region {
        builder = builder.with_region(region);
    }
    if let Some(path) = &ship.credentials_file {
        let text = zeroize::Zeroizing::new(
            std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        );
        for (line, content) in (1..).zip(text.lines()) {
            let wrong =
                || format!("{}:{line}: not `access_key_id: ..` or the like", path.display());
            let (name, value) = content.split_once(':').with_context(wrong)?;
            builder = match name.trim() {
                "access_key_id" => builder.with_access_key_id(value.trim()),
                "secret_access_key" => builder.with_secret_access_key(value.trim()),
                "session_token" => builder.with_token(value.trim()),
                _ => anyhow::bail!(wrong()),
            };
        }
    }
    builder.build().with_context(|| format!("s3://{bucket}"))
}

/// Uses the agent's HTTP client for the object store.
#[derive(Debug)]
struct Connector {
    /// The store is reached by TLS.
    secure: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<object_store::client::HttpClient> {
        let client = |url| {
            let failed = |source| object_store::Error::Generic { store: "S3", source };
            outward::client(url, PATIENCE).map_err(failed)
        };
        // Credentials of a cloud machine come from an address without TLS.
        let plain = client("http://")?;
        let secure = if self.secure { Some(client("https://")?) } else { None };
        Ok(object_store::client::HttpClient::new(Client { plain, secure }))
    }
}

#[derive(Debug)]
struct Client {
    plain: Box<dyn HttpClient>,
    secure: Option<Box<dyn HttpClient>>,
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let secure = self.secure.as_ref().filter(|_| parts.uri.scheme_str() == Some("https"));
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let request = Request::from_parts(parts, body);
        let answer = secure.unwrap_or(&self.plain).send_bytes(request).await;
        let answer = answer.map_err(|error| HttpError::new_boxed(HttpErrorKind::Request, error))?;
        let (parts, body) = answer.into_parts();
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

#[cfg(test)]
mod tests;
