//! The section `evidence`: records, retention, witnesses and copies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{List, Refusal, Sources, bounded, or_default};
use crate::evidence::outward::WitnessAt;
use crate::evidence::ship::{Destination, Ship};
use crate::journal::retention::Limits;

/// systemd's variable for the credentials directory of a service, and the name of the agent's
/// credential.
const CREDENTIALS: (&str, &str) = ("CREDENTIALS_DIRECTORY", "genops-evidence-key");

/// Amount of prompt content in evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// No content.
    #[default]
    None,
    /// A keyed digest.
    Hash,
    /// All content, encrypted.
    Full,
}

/// Behavior of enforce mode if evidence cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFailure {
    /// Requests are refused: no decision without its evidence.
    #[default]
    Block,
    /// Requests are decided as before, and the loss is counted.
    Continue,
}

/// Settled section `evidence`.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// Directory of the log.
    pub(crate) directory: PathBuf,
    /// Amount of prompt content in evidence.
    pub(crate) content: Content,
    /// Behavior if evidence cannot be written.
    pub(crate) on_failure: OnFailure,
    /// Identity of a new log; `None`: made from the host.
    pub(crate) origin: Option<String>,
    /// Secret signing key given from outside; `None`: the log's own key.
    pub(crate) key_file: Option<PathBuf>,
    /// Whether a verdict waits for its evidence to be on disk. Otherwise the verdict is sent at
    /// once, and the next group commit writes the evidence a few milliseconds later.
    pub(crate) durable_before_release: bool,
    /// Length of a write-ahead segment, in bytes.
    pub(crate) segment_bytes: u32,
    /// Limits on the age and the size of the kept records.
    pub(crate) limits: Limits,
    /// Witnesses cosigning the checkpoints.
    pub(crate) witnesses: Vec<WitnessAt>,
    /// Destination of copies.
    pub(crate) ship: Option<Ship>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EvidenceFile {
    directory: Option<PathBuf>,
    content: Content,
    on_failure: OnFailure,
    origin: Option<String>,
    key_file: Option<PathBuf>,
    durable_before_release: Option<bool>,
    segment_bytes: Option<Spanned<u64>>,
    retention_days: Option<Spanned<u64>>,
    max_bytes: Option<Spanned<u64>>,
    #[serde(deserialize_with = "or_default")]
    witnesses: List<WitnessFile>,
    ship: Option<Spanned<ShipFile>>,
}

/// An entry of `evidence.witnesses`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WitnessFile {
    url: String,
    key: String,
}

/// `evidence.ship`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShipFile {
    to: String,
    endpoint: Option<String>,
    region: Option<String>,
    credentials_file: Option<PathBuf>,
    every_s: Option<Spanned<u64>>,
}

impl EvidenceFile {
    pub(super) fn settle(self, config: &Path, sources: &Sources) -> Result<Evidence, Refusal> {
        let Self {
            directory,
            content,
            on_failure,
            origin,
            key_file,
            durable_before_release,
            segment_bytes,
            retention_days,
            max_bytes,
            witnesses,
            ship,
        } = self;
        let witnesses = witnesses.into_iter().map(|witness| {
            let line = witness.referenced.line();
            witness.value.settle(config, sources).map_err(|message| (line, message))
        });
        let witnesses = witnesses.collect::<Result<_, _>>()?;
        let directory = directory.unwrap_or_else(|| "/var/lib/genops/evidence".into());
        let key_file = key_file.map(|file| beside(config, &file)).or_else(credential);
        let durable_before_release = durable_before_release.unwrap_or(true);
        let default = u64::from(genops_evidence::wal::SEGMENT_BYTES);
        let key = "evidence.segment_bytes";
        let bytes = bounded(key, segment_bytes.as_ref(), default, 1 << 20..=1 << 30)?;
        let line = ship.as_ref().map_or(0, |ship| ship.referenced.line());
        let ship = ship.map(|ship| ship.value.settle(config)).transpose();
        Ok(Evidence {
            directory,
            content,
            on_failure,
            origin,
            key_file,
            durable_before_release,
            segment_bytes: u32::try_from(bytes).expect("bounded above by 2^30"),
            limits: limits(retention_days.as_ref(), max_bytes.as_ref())?,
            witnesses,
            ship: ship.map_err(|(at, message)| (if at == 0 { line } else { at }, message))?,
        })
    }
}

/// Returns the key passed to the service by systemd, if present.
fn credential() -> Option<PathBuf> {
    let (variable, name) = CREDENTIALS;
    let path = Path::new(&std::env::var_os(variable)?).join(name);
    path.is_file().then_some(path)
}

/// Resolves a path relative to the directory of the configuration.
fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}

fn limits(days: Option<&Spanned<u64>>, bytes: Option<&Spanned<u64>>) -> Result<Limits, Refusal> {
    let within = |key, given: Option<&Spanned<u64>>, bounds| {
        given.map(|given| bounded(key, Some(given), 0, bounds)).transpose()
    };
    let age_days = within("evidence.retention_days", days, 1..=36_500)?;
    let bytes = within("evidence.max_bytes", bytes, 16 << 20..=1 << 50)?;
    Ok(Limits { age: age_days.map(|days| Duration::from_secs(days * 86_400)), bytes })
}

impl WitnessFile {
    /// Reads the key from the value itself, or from a file in the format printed by `witness`.
    fn settle(self, config: &Path, sources: &Sources) -> Result<WitnessAt, String> {
        let Self { url, key } = self;
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(format!(
                "`evidence.witnesses`: `url`: `{url}` is not a URL such as https://witness.example.com/"
            ));
        }
        let held = match key.parse() {
            Ok(key) => return Ok(WitnessAt { url, key }),
            Err(_) => sources.file(&beside(config, Path::new(&key))),
        };
        let held = held.ok().and_then(|held| held.trim().parse().ok());
        let key = held.ok_or_else(|| {
            format!(
                "`evidence.witnesses`: `key`: `{key}` is neither a verifier key nor a file with one"
            )
        })?;
        Ok(WitnessAt { url, key })
    }
}

impl ShipFile {
    fn settle(self, config: &Path) -> Result<Ship, Refusal> {
        let Self { to, endpoint, region, credentials_file, every_s } = self;
        let every_s = bounded("evidence.ship.every_s", every_s.as_ref(), 10, 1..=86_400)?;
        let refuse = |message: String| Err((0, format!("`evidence.ship`: {message}")));
        let destination = match to.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return refuse(format!(
                        "`to`: `{to}` names no bucket, as s3://bucket/prefix does"
                    ));
                }
                let prefix = prefix.trim_matches('/').to_owned();
                Destination::S3 { bucket: bucket.to_owned(), prefix }
            }
            None if to.starts_with('/') => Destination::Directory(to.into()),
            None => {
                let why = "is neither s3://bucket/prefix nor an absolute path";
                return refuse(format!("`to`: `{to}` {why}"));
            }
        };
        if let (Destination::Directory(_), Some(endpoint)) = (&destination, &endpoint) {
            return refuse(format!("`endpoint`: `{endpoint}` goes with s3://bucket/prefix only"));
        }
        let is_url = |it: &String| it.starts_with("http://") || it.starts_with("https://");
        if let Some(endpoint) = endpoint.as_ref().filter(|it| !is_url(it)) {
            return refuse(format!("`endpoint`: `{endpoint}` is not a URL"));
        }
        Ok(Ship {
            to: destination,
            endpoint,
            region,
            credentials_file: credentials_file.map(|file| beside(config, &file)),
            every: Duration::from_secs(every_s),
        })
    }
}
