//! Takes checkpoints out of this host: asks witnesses to cosign them.
//!
//! A thread of its own that only reads the evidence directory; what it learns it hands to the
//! journal, which writes it down. Neither a slow witness nor a dead one delays a verdict.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Context as _;
use genops_evidence::note::PublicKey;
use genops_evidence::witness::{AddCheckpoint, Outcome, read_answer};
use genops_evidence::{Checkpoint, Directory};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, Request};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(30);

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Failed rounds after which it is written down that a witness cannot be reached, once.
const FAILURES: u32 = 3;

/// A witness, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WitnessAt {
    /// Prefix of its address, such as `https://witness.example.com/`.
    pub(crate) url: String,
    /// Its public key.
    pub(crate) key: PublicKey,
}

/// What is to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A witness cosigned this checkpoint.
    Cosigned { witness: String, checkpoint: Checkpoint },
    /// A witness could not be reached for some rounds.
    Unreachable { witness: String, why: String },
    /// A witness holds another history than this log, or a longer one: the log was rolled back or
    /// rewritten.
    RolledBack { witness: String, why: String },
}

/// The thread, seen from the journal. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Outward {
    news: Receiver<News>,
    _alive: Sender<()>,
}

impl Outward {
    /// Starts asking.
    pub(crate) fn start(directory: &Path, witnesses: Vec<WitnessAt>) -> anyhow::Result<Self> {
        let (tell, news) = channel();
        let (alive, ended) = channel();
        let directory = directory.to_owned();
        std::thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || work(&directory, &witnesses, &tell, &ended))
            .context("the thread that asks witnesses")?;
        Ok(Self { news, _alive: alive })
    }

    /// What is new; does not wait.
    pub(crate) fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

/// What is known of one witness.
#[derive(Debug, Default)]
struct Standing {
    /// Size that it cosigned last.
    cosigned: u64,
    failures: u32,
}

fn work(directory: &Path, witnesses: &[WitnessAt], tell: &Sender<News>, ended: &Receiver<()>) {
    let mut standings: Vec<Standing> = witnesses.iter().map(|_| Standing::default()).collect();
    let mut wait = Duration::from_millis(1500);
    // The sender is never used: this ends when it is dropped.
    while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        wait = EVERY;
        for (witness, standing) in witnesses.iter().zip(&mut standings) {
            let own = witnesses.len() as u64;
            let news = ask(directory, witness, standing, own);
            if news.is_some_and(|news| tell.send(news).is_err()) {
                return;
            }
        }
    }
}

/// Asks one witness to cosign the newest checkpoint. `own`: records about witnesses that a round
/// writes; a log that grew by those alone is not cosigned again.
fn ask(directory: &Path, witness: &WitnessAt, standing: &mut Standing, own: u64) -> Option<News> {
    let name = witness.key.name().to_owned();
    match submit(&Directory::new(directory), witness, standing.cosigned, own) {
        Ok(None) => None,
        Ok(Some(Outcome::Cosigned(checkpoint, _))) => {
            *standing = Standing { cosigned: checkpoint.head.size, failures: 0 };
            Some(News::Cosigned { witness: name, checkpoint })
        }
        Ok(Some(Outcome::Conflict(size))) => {
            let why = format!("it has cosigned {size} records, which this log does not have");
            Some(News::RolledBack { witness: name, why })
        }
        Ok(Some(Outcome::Refused(422, why))) => Some(News::RolledBack { witness: name, why }),
        Ok(Some(Outcome::Refused(status, why))) => {
            failed(standing, name, format!("{status}: {why}"))
        }
        Err(error) => failed(standing, name, format!("{error:#}")),
    }
}

fn failed(standing: &mut Standing, witness: String, why: String) -> Option<News> {
    standing.failures += 1;
    (standing.failures == FAILURES).then_some(News::Unreachable { witness, why })
}

/// One round with one witness; `None`: nothing new to cosign. A conflict that the log can answer is
/// answered at once.
pub(crate) fn submit(
    directory: &Directory,
    witness: &WitnessAt,
    cosigned: u64,
    own: u64,
) -> anyhow::Result<Option<Outcome>> {
    let checkpoint = directory.checkpoint()?;
    let size = checkpoint.head.size;
    if cosigned > 0 && size.saturating_sub(cosigned) <= own {
        return Ok(None);
    }
    let outcome = post(directory, witness, cosigned.min(size), checkpoint.clone())?;
    match outcome {
        Outcome::Conflict(old) if old <= size => {
            post(directory, witness, old, checkpoint).map(Some)
        }
        other => Ok(Some(other)),
    }
}

fn post(
    directory: &Directory,
    witness: &WitnessAt,
    old: u64,
    checkpoint: Checkpoint,
) -> anyhow::Result<Outcome> {
    let request = AddCheckpoint::new(directory, old, checkpoint)?;
    let url = format!("{}/add-checkpoint", witness.url.trim_end_matches('/'));
    let body = request.to_text().into_bytes().into();
    let asked = Request::builder().method("POST").uri(&url).body(body).context("its address")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { client(&url, PATIENCE)?.send_bytes(asked).await });
    let answer = answer.map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
    let status = answer.status().as_u16();
    Ok(read_answer(&request.checkpoint, &witness.key, status, answer.body()))
}

/// The client, with TLS only where the address wants it: the root certificates take memory.
pub(super) fn client(
    url: &str,
    patience: Duration,
) -> Result<Box<dyn HttpClient>, opentelemetry_http::HttpError> {
    if !url.starts_with("https://") {
        return Ok(Box::new(HyperClient::with_default_connector(patience, None)));
    }
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()?
        .https_only()
        .enable_http1()
        .build();
    Ok(Box::new(HyperClient::new(connector, patience, None)))
}

/// A folder in which a witness keeps its state, and its key beside it.
pub(crate) fn default_state() -> PathBuf {
    PathBuf::from("/var/lib/genops/witness")
}
