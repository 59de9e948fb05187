//! Takes checkpoints out of the host: asks witnesses for cosignatures.
//!
//! Runs on a separate thread. The thread only reads the evidence directory, and hands the answers
//! of witnesses to the journal for recording. Neither a slow witness nor a dead witness delays a
//! verdict.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Context as _;
use genops_evidence::note::PublicKey;
use genops_evidence::witness::{AddCheckpoint, Outcome, read_answer};
use genops_evidence::{Checkpoint, Directory};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, Request};

/// Interval between two rounds.
const EVERY: Duration = Duration::from_secs(30);

/// Timeout of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of failed rounds before the journal records an unreachable witness, once.
const FAILURES: u32 = 3;

/// A witness named in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WitnessAt {
    /// Prefix of the witness's address, such as `https://witness.example.com/`.
    pub(crate) url: String,
    /// Public key of the witness.
    pub(crate) key: PublicKey,
}

/// An event for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A witness cosigned the checkpoint.
    Cosigned { witness: String, checkpoint: Checkpoint },
    /// A witness could not be reached for some rounds.
    Unreachable { witness: String, why: String },
    /// A witness holds another history of the log, or a longer one: the log was rolled back or
    /// rewritten.
    RolledBack { witness: String, why: String },
}

/// Handle of the thread, for the journal. Dropping the handle ends the thread.
#[derive(Debug)]
pub(crate) struct Outward {
    news: Receiver<News>,
    _alive: Sender<()>,
}

impl Outward {
    /// Starts the thread.
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

    /// Returns the next event; does not wait.
    pub(crate) fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

/// State of a witness, as far as known.
#[derive(Debug, Default)]
struct Standing {
    /// Size cosigned last by the witness.
    cosigned: u64,
    failures: u32,
}

fn work(directory: &Path, witnesses: &[WitnessAt], tell: &Sender<News>, ended: &Receiver<()>) {
    let mut standings: Vec<Standing> = witnesses.iter().map(|_| Standing::default()).collect();
    let mut wait = Duration::from_millis(1500);
    // The sender is never used: dropping the sender ends the loop.
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

/// Asks a witness to cosign the newest checkpoint. `own`: number of records about witnesses written
/// by a round; growth by only these records needs no new cosignature.
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

/// Runs a round with a witness; `None`: no new checkpoint to cosign. Resolves a conflict at once if
/// the log has the size named by the witness.
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

/// Returns the client, with TLS only for an `https` address: the root certificates take memory.
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

/// Returns the default folder of a witness, for state and key.
pub(crate) fn default_state() -> PathBuf {
    PathBuf::from("/var/lib/genops/witness")
}
