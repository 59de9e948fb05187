//! The configuration file: YAML schema, defaults, validation and the settled result.
//!
//! [`File`] mirrors the YAML, key for key. [`Config`] is settled: defaults filled in, every value
//! checked, referenced files read. Only [`Config`] leaves the module. The sections used for
//! decisions (principals, policies, budgets ..) have their shape and their checks in
//! `genops-governance`; the module adds the file, the line and the nearest known key to their
//! refusals. Secrets come from files or environment variables and are never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use genops_governance::{
    BudgetConfig, GrantConfig, HumanConfig, Mode, OnTimeout, PolicyConfig, PolicyText,
    PricesConfig, PrincipalConfig, ProviderConfig, RateLimitConfig, Sections, Settings, SlaConfig,
    TierConfig, Uninspectable, Unmapped, Unnamed,
};
use genops_protocols::Hosts;
use serde::Deserialize;
use serde_saphyr::Spanned;
use sha2::{Digest as _, Sha256};

mod absence;
mod evidence;
mod explain;
mod headers;
pub(crate) mod kept;
mod prices;
pub(crate) mod recipe;
mod watch;

pub(crate) use absence::PinDirectory;
use evidence::EvidenceFile;
pub(crate) use evidence::{Content, Evidence, OnFailure};
pub(crate) use headers::Headers;
use kept::{Sources, Texts};
pub(crate) use watch::{Watch, load as load_unless_emptied};

/// Longest configuration or policy file, in bytes.
const FILE_LIMIT: u64 = 8 << 20;

/// Warning if evidence can't hold the sections used for decisions.
const NO_RECIPE: &str = "the file spells something in a way that evidence can't keep, so recorded decisions can't be made again; quote its texts";

/// Most Cedar files taken from `policy_files`, directories included.
const POLICY_FILE_LIMIT: usize = 10_000;

/// Transport of the spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Protocol {
    /// Protocol buffers over HTTP/1.1, port 4318 by custom.
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
    /// gRPC, port 4317 by custom.
    #[serde(rename = "grpc")]
    Grpc,
}

/// Destination of the spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Otlp {
    /// `http://` or `https://`, host, port. For HTTP, the exporter appends `/v1/traces`.
    pub(crate) endpoint: String,
    /// Transport of the spans.
    pub(crate) protocol: Protocol,
    /// Headers of each request; may be secret.
    pub(crate) headers: Headers,
    /// Timeout of an export, retries included.
    pub(crate) timeout: Duration,
    /// Most spans in the queue; a span that finds the queue full is counted and dropped.
    pub(crate) queue: usize,
    /// Added to the resource attributes.
    pub(crate) resource: BTreeMap<String, String>,
}

/// Telemetry of the agent, and the destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Telemetry {
    /// Export of spans; `None`: no export.
    pub(crate) otlp: Option<Otlp>,
    /// Address of `/metrics`, `/healthz` and `/readyz`; `None`: no listener.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Socket for `genops-agent top`; `None`: no socket.
    pub(crate) socket: Option<PathBuf>,
    /// Socket for `genops-agent why`; `None`: no socket.
    pub(crate) user_socket: Option<PathBuf>,
}

/// Limits of the capture in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capture {
    /// Most bytes copied of a message; the rest is counted, usage figures are kept.
    pub(crate) message_limit_bytes: u64,
    /// Size of the kernel's ring buffer, in bytes: a power of two, at least a page.
    pub(crate) ring_bytes: u32,
    /// Priority of the deciding thread, as `setpriority(2)` counts: -20 (first) to 19.
    pub(crate) nice: i32,
}

impl Default for Capture {
    fn default() -> Self {
        Self { message_limit_bytes: 4 << 20, ring_bytes: 8 << 20, nice: -10 }
    }
}

/// Settled configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `genops.environment` if the principal sets none.
    pub(crate) environment: Option<String>,
    /// Whether refusals are carried out.
    pub(crate) mode: Mode,
    /// Verdict of the kernel if the agent's verdict came too late.
    pub(crate) on_timeout: OnTimeout,
    /// Maximum hold of egress in the kernel.
    pub(crate) hold_deadline: Duration,
    /// Directory on a BPF file system for programs and maps to outlive the agent.
    pub(crate) pin_directory: PinDirectory,
    /// Longest time that a refusal outlives the agent, if `on_timeout` is open.
    pub(crate) pinned_for: Duration,
    /// Telemetry of the agent, and the destinations.
    pub(crate) telemetry: Telemetry,
    /// Section `evidence`.
    pub(crate) evidence: Evidence,
    /// Limits of the capture in the kernel.
    pub(crate) capture: Capture,
    /// AI providers: built-in and configured.
    pub(crate) hosts: Arc<Hosts>,
    /// SHA-256 of the file and of each Cedar file named there; without a file, of nothing.
    pub(crate) hash: [u8; 32],
    /// Part of the configuration used for decisions, for evidence: see [`recipe::read`].
    pub(crate) recipe: Option<Vec<u8>>,
    /// Valid but probably unintended settings, a sentence each.
    pub(crate) warnings: Vec<String>,
    /// Gaps in the enforcement left by the configuration, a sentence each.
    pub(crate) left_open: Vec<String>,
    sections: Sections,
    settings: Settings,
    /// Text of the file itself and of the files named there.
    texts: Texts,
}

/// Reason for refusing a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file, or a file named there, could not be read.
    #[error("{path}: cannot be read: {reason}")]
    Unreadable {
        /// Path of the unreadable file.
        path: String,
        /// Error of the read.
        reason: String,
    },
    /// A value is not allowed; the message gives the place.
    #[error("{0}")]
    Invalid(String),
}

impl Default for Config {
    /// Observes the whole host, as without a file.
    fn default() -> Self {
        Self::parse(Path::new("(no file)"), "").expect("the defaults are valid: a test says so")
    }
}

impl Config {
    /// Reads and settles the file at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        let text = read(path)?;
        Self::parse(path, &text)
    }

    /// Loads the file of `--config FILE`, or the defaults without a file.
    pub(crate) fn load_or_default(path: Option<&Path>) -> Result<Self, LoadError> {
        path.map_or_else(|| Ok(Self::default()), Self::load)
    }

    /// Returns the compiled settings for the engine.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Tells whether refusals are carried out for any principal.
    pub(crate) fn enforces(&self) -> bool {
        enforces(&self.sections)
    }

    /// The sections used for decisions, as the file has them.
    pub(crate) fn sections(&self) -> &Sections {
        &self.sections
    }

    /// Returns the keys that differ in `next` and take effect at the next start only.
    pub(crate) fn wait_for_start(&self, next: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.evidence, &next.evidence);
        let differ = [
            ("telemetry", self.telemetry != next.telemetry),
            ("pin_directory", self.pin_directory != next.pin_directory),
            ("capture", self.capture != next.capture),
            ("evidence.directory", old.directory != new.directory),
            ("evidence.origin", old.origin != new.origin),
            ("evidence.key_file", old.key_file != new.key_file),
            ("evidence.witnesses", old.witnesses != new.witnesses),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// Settles `text`; `path` serves messages and relative paths of named files.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, LoadError> {
        Self::parse_from(path, text, Sources::default())
    }

    /// Does the work of [`Self::parse`], reading the named files from `sources`.
    fn parse_from(path: &Path, text: &str, sources: Sources) -> Result<Self, LoadError> {
        let place = path.display().to_string();
        let invalid = |(line, message): Refusal| match line {
            0 => LoadError::Invalid(format!("{place}: {message}")),
            line => LoadError::Invalid(format!("{place}:{line}: {message}")),
        };
        let file: File =
            explain::parse(text).map_err(|fault| invalid((fault.line, fault.message)))?;
        let lines = file.lines();
        let (own, mut sections) = file.split(path, &sources)?;
        sections.price_table = prices::table(path, &sections.prices, &sources)?;
        let Own {
            on_timeout,
            hold_deadline_ms,
            pin_directory,
            pinned_for,
            telemetry,
            evidence,
            capture,
        } = own;
        let pin_directory = absence::pin_directory(pin_directory).map_err(invalid)?;
        let pinned_for = absence::pinned_for(pinned_for).map_err(invalid)?;
        let mut warnings = Vec::new();
        let hold_deadline = hold_deadline(hold_deadline_ms.as_ref()).map_err(invalid)?;
        let telemetry = telemetry.settle(path, &mut warnings, &sources).map_err(invalid)?;
        let capture = capture.settle().map_err(invalid)?;
        let settings = Settings::compile(&sections).map_err(|error| {
            let of_cedar = |fault: &str| {
                sections.policy_files.iter().any(|file| fault.starts_with(&file.name))
            };
            LoadError::Invalid(lines.place(&place, text, &error.faults, of_cedar))
        })?;
        warnings.extend(oddities(&sections, on_timeout));
        let left_open = left_open(&sections, on_timeout);
        let evidence = evidence.settle(path, &sources).map_err(invalid)?;
        let recipe = recipe::write(text, &sections);
        if recipe.is_none() {
            warnings.push(NO_RECIPE.to_owned());
        }
        Ok(Self {
            environment: sections.environment.clone(),
            mode: sections.mode,
            on_timeout,
            hold_deadline,
            pin_directory,
            pinned_for,
            telemetry,
            evidence,
            capture,
            hosts: settings.hosts(),
            hash: hash(text, &sections),
            recipe,
            warnings,
            left_open,
            sections,
            settings,
            texts: sources.into_read(text),
        })
    }
}

/// Keys of the file outside governance.
#[derive(Debug)]
struct Own {
    on_timeout: OnTimeout,
    hold_deadline_ms: Option<Spanned<u64>>,
    pin_directory: Option<Spanned<String>>,
    pinned_for: Option<Spanned<String>>,
    telemetry: TelemetryFile,
    evidence: EvidenceFile,
    capture: CaptureFile,
}

impl File {
    /// Splits the file into the agent's own keys and the sections of governance; reads the Cedar
    /// files.
    fn split(self, path: &Path, sources: &Sources) -> Result<(Own, Sections), LoadError> {
        let Self {
            environment,
            mode,
            on_timeout,
            hold_deadline_ms,
            pin_directory,
            pinned_for,
            unmapped,
            uninspectable,
            unnamed,
            default_deny,
            require_authority,
            telemetry,
            evidence,
            capture,
            providers,
            principals,
            humans,
            grants,
            budgets,
            rate_limits,
            policies,
            policy_files,
            model_tiers,
            sla,
            prices,
        } = self;
        let sections = Sections {
            environment,
            mode,
            unmapped,
            uninspectable,
            unnamed,
            default_deny,
            require_authority,
            principals: values(principals),
            humans: values(humans),
            grants: values(grants),
            budgets: values(budgets),
            rate_limits: values(rate_limits),
            policies: values(policies),
            policy_files: policy_texts(path, &policy_files, sources)?,
            model_tiers: values(model_tiers),
            providers: values(providers),
            sla: values(sla),
            prices: prices.unwrap_or_default(),
            price_table: None,
        };
        let own = Own {
            on_timeout,
            hold_deadline_ms,
            pin_directory,
            pinned_for,
            telemetry,
            evidence,
            capture,
        };
        Ok((own, sections))
    }
}

/// The YAML file, key for key. An unknown key is an error: in a policy, most probably a typo.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    environment: Option<String>,
    mode: Mode,
    on_timeout: OnTimeout,
    hold_deadline_ms: Option<Spanned<u64>>,
    pin_directory: Option<Spanned<String>>,
    pinned_for: Option<Spanned<String>>,
    unmapped: Unmapped,
    uninspectable: Uninspectable,
    unnamed: Unnamed,
    default_deny: bool,
    require_authority: bool,
    #[serde(deserialize_with = "or_default")]
    telemetry: TelemetryFile,
    #[serde(deserialize_with = "or_default")]
    evidence: EvidenceFile,
    #[serde(deserialize_with = "or_default")]
    capture: CaptureFile,
    #[serde(deserialize_with = "or_default")]
    providers: List<ProviderConfig>,
    #[serde(deserialize_with = "or_default")]
    principals: List<PrincipalConfig>,
    #[serde(deserialize_with = "or_default")]
    humans: List<HumanConfig>,
    #[serde(deserialize_with = "or_default")]
    grants: List<GrantConfig>,
    #[serde(deserialize_with = "or_default")]
    budgets: List<BudgetConfig>,
    #[serde(deserialize_with = "or_default")]
    rate_limits: List<RateLimitConfig>,
    #[serde(deserialize_with = "or_default")]
    policies: List<PolicyConfig>,
    #[serde(deserialize_with = "or_default")]
    policy_files: Vec<Spanned<PathBuf>>,
    #[serde(deserialize_with = "or_default")]
    model_tiers: List<TierConfig>,
    #[serde(deserialize_with = "or_default")]
    sla: List<SlaConfig>,
    prices: Option<PricesConfig>,
}

type List<T> = Vec<Spanned<T>>;

/// Treats a key without a value as absent: commenting out all lines below a key leaves the bare
/// key.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn values<T>(list: List<T>) -> Vec<T> {
    list.into_iter().map(|entry| entry.value).collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TelemetryFile {
    otlp: Option<OtlpFile>,
    metrics_listen: Option<Spanned<String>>,
    socket: Option<PathBuf>,
    user_socket: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtlpFile {
    endpoint: Spanned<String>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    headers: BTreeMap<String, Spanned<headers::Given>>,
    headers_file: Option<Spanned<PathBuf>>,
    timeout_ms: Option<Spanned<u64>>,
    queue: Option<Spanned<u64>>,
    #[serde(default)]
    resource: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaptureFile {
    message_limit_bytes: Option<Spanned<u64>>,
    ring_bytes: Option<Spanned<u64>>,
    nice: Option<Spanned<i32>>,
}

/// A refusal and the line of its cause; 0: no particular line.
type Refusal = (u64, String);

/// Returns a number of the file if within the bounds, or the default.
fn bounded<T: Copy + PartialOrd + fmt::Display>(
    key: &str,
    given: Option<&Spanned<T>>,
    default: T,
    bounds: std::ops::RangeInclusive<T>,
) -> Result<T, Refusal> {
    let Some(given) = given else { return Ok(default) };
    if bounds.contains(&given.value) {
        return Ok(given.value);
    }
    let (least, most) = (bounds.start(), bounds.end());
    let message = format!("`{key}`: {} is not between {least} and {most}", given.value);
    Err((given.referenced.line(), message))
}

fn hold_deadline(given: Option<&Spanned<u64>>) -> Result<Duration, Refusal> {
    bounded("hold_deadline_ms", given, 250, 1..=60_000).map(Duration::from_millis)
}

impl CaptureFile {
    fn settle(self) -> Result<Capture, Refusal> {
        let Self { message_limit_bytes, ring_bytes, nice } = self;
        let default = Capture::default();
        let message_limit_bytes = bounded(
            "capture.message_limit_bytes",
            message_limit_bytes.as_ref(),
            default.message_limit_bytes,
            4_096..=1 << 30,
        )?;
        let key = "capture.ring_bytes";
        let ring = bounded(key, ring_bytes.as_ref(), default.ring_bytes.into(), 65_536..=1 << 30)?;
        let line = ring_bytes.as_ref().map_or(0, |given| given.referenced.line());
        if !ring.is_power_of_two() {
            let message = format!("`{key}`: {ring} is not a power of two, such as 8388608");
            return Err((line, message));
        }
        let ring_bytes = u32::try_from(ring).expect("bounded above by 2^30");
        let nice = bounded("capture.nice", nice.as_ref(), default.nice, -20..=19)?;
        Ok(Capture { message_limit_bytes, ring_bytes, nice })
    }
}

impl TelemetryFile {
    fn settle(
        self,
        path: &Path,
        warnings: &mut Vec<String>,
        sources: &Sources,
    ) -> Result<Telemetry, Refusal> {
        let Self { otlp, metrics_listen, socket, user_socket } = self;
        let metrics_listen = metrics_listen
            .map(|given| {
                given.value.parse().map_err(|_| {
                    let text = &given.value;
                    let message = format!(
                        "`telemetry.metrics_listen`: `{text}` is not an address and a port, such as 127.0.0.1:9464"
                    );
                    (given.referenced.line(), message)
                })
            })
            .transpose()?;
        let otlp = otlp.map(|otlp| otlp.settle(path, warnings, sources)).transpose()?;
        let or = |path: Option<PathBuf>, default: &str| match path {
            None => Some(PathBuf::from(default)),
            Some(path) => (!path.as_os_str().is_empty()).then_some(path),
        };
        let socket = or(socket, crate::control::SOCKET);
        let user_socket = or(user_socket, crate::user_socket::SOCKET);
        Ok(Telemetry { otlp, metrics_listen, socket, user_socket })
    }
}

impl OtlpFile {
    fn settle(
        self,
        path: &Path,
        warnings: &mut Vec<String>,
        sources: &Sources,
    ) -> Result<Otlp, Refusal> {
        let Self { endpoint, protocol, headers, headers_file, timeout_ms, queue, resource } = self;
        let line = endpoint.referenced.line();
        let endpoint = endpoint.value;
        let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with(['/', ':'])) {
            let message = format!(
                "`telemetry.otlp.endpoint`: `{endpoint}` is not a URL such as http://127.0.0.1:4318"
            );
            return Err((line, message));
        }
        let headers = headers::settle(path, headers, headers_file, sources)?;
        let local = rest.is_some_and(|rest| {
            ["127.", "localhost", "[::1]"].iter().any(|name| rest.starts_with(name))
        });
        if endpoint.starts_with("http://") && !local && headers.any_secret() {
            warnings.push(format!(
                "telemetry.otlp: headers go to {endpoint} unencrypted; use https://"
            ));
        }
        if let Some(name) = headers.literal_secret() {
            warnings.push(format!(
                "telemetry.otlp.headers: `{name}` stands in the file itself; move it to `headers_file` or write ${{NAME_OF_A_VARIABLE}}"
            ));
        }
        let key = "telemetry.otlp.timeout_ms";
        let timeout = bounded(key, timeout_ms.as_ref(), 10_000, 100..=300_000)?;
        let queue = bounded("telemetry.otlp.queue", queue.as_ref(), 2_048, 1..=1 << 20)?;
        Ok(Otlp {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            protocol,
            headers,
            timeout: Duration::from_millis(timeout),
            queue: usize::try_from(queue).expect("bounded above by 2^20"),
            resource,
        })
    }
}

/// Reads a text file of at most [`FILE_LIMIT`] bytes.
fn read(path: &Path) -> Result<String, LoadError> {
    use std::io::Read as _;

    let unreadable = |reason: &dyn fmt::Display| LoadError::Unreadable {
        path: path.display().to_string(),
        reason: reason.to_string(),
    };
    let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(unreadable(&format_args!("it is longer than {FILE_LIMIT} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(&format_args!("it is not UTF-8 text (byte {at})"))
    })
}

/// Reads the named Cedar files, in order; of a directory, the `*.cedar` files by name.
///
/// A relative path starts at the configuration's directory.
fn policy_texts(
    config: &Path,
    named: &[Spanned<PathBuf>],
    sources: &Sources,
) -> Result<Vec<PolicyText>, LoadError> {
    let base = config.parent().unwrap_or(Path::new(""));
    let mut texts = Vec::new();
    for named in named {
        for file in sources.cedar_files(base.join(&named.value))? {
            let text = sources.file(&file)?;
            texts.push(PolicyText { name: file.display().to_string(), text });
        }
        if texts.len() > POLICY_FILE_LIMIT {
            let place = format!("{}:{}", config.display(), named.referenced.line());
            let message = format!("`policy_files` names more than {POLICY_FILE_LIMIT} files");
            return Err(LoadError::Invalid(format!("{place}: {message}")));
        }
    }
    Ok(texts)
}

/// Returns the paths of policies and prices named in the file at `path`, if the file is readable.
fn named_paths(path: &Path) -> Vec<PathBuf> {
    let Some(file) = read(path).ok().and_then(|text| explain::parse::<File>(&text).ok()) else {
        return Vec::new();
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let prices = file.prices.and_then(|it| it.file).map(PathBuf::from);
    let signature = prices.as_ref().map(|it| it.with_added_extension("sig"));
    let policies = file.policy_files.into_iter().map(|it| it.value);
    policies.chain(prices).chain(signature).map(|it| base.join(it)).collect()
}

fn cedar_files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let unreadable = |error: std::io::Error| LoadError::Unreadable {
        path: directory.display().to_string(),
        reason: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "cedar") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Hashes the file, the Cedar files and the price hash. The hash covers names and lengths: two
/// different sets of files never give the same input.
fn hash(text: &str, sections: &Sections) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(text.as_bytes());
    for PolicyText { name, text } in &sections.policy_files {
        hasher.update(format!("\0{}:{name}\0{}:", name.len(), text.len()).as_bytes());
        hasher.update(text.as_bytes());
    }
    if let Some(prices) = &sections.price_table {
        hasher.update(format!("\0prices:{}", prices.sha256));
    }
    hasher.finalize().into()
}

fn enforces(sections: &Sections) -> bool {
    sections.mode == Mode::Enforce
        || sections.principals.iter().any(|it| it.mode == Some(Mode::Enforce))
}

/// Lists settings that are valid and still probably unintended.
fn oddities(sections: &Sections, on_timeout: OnTimeout) -> Vec<String> {
    let mut found = Vec::new();
    let enforcing = enforces(sections);
    let unmapped = sections.unmapped == Unmapped::Block && sections.mode == Mode::Enforce;
    let deciding = !sections.policies.is_empty()
        || !sections.policy_files.is_empty()
        || !sections.budgets.is_empty()
        || !sections.rate_limits.is_empty()
        || sections.grants.iter().any(|it| it.budget.is_some() || it.rate.is_some());
    let uninspectable = sections.uninspectable == Uninspectable::Block;
    let permitted_only = sections.default_deny || sections.require_authority;
    let granted = sections.principals.iter().any(|it| it.grant.is_some());
    let refusing = deciding || unmapped || uninspectable || permitted_only || granted;
    if enforcing && !refusing {
        found.push(
            "mode is enforce, but no policy, budget or rate limit says what to refuse".to_owned(),
        );
    }
    if sections.require_authority && !granted {
        found.push(
            "require_authority is true, and no principal has a `grant`: every request is refused; \
             give `principals[].grant` the name of one of `grants`"
                .to_owned(),
        );
    }
    found.extend(under_revoked(sections));
    if !enforcing && on_timeout == OnTimeout::Closed {
        found.push("on_timeout: closed has no effect while mode is observe".to_owned());
    }
    if !enforcing && deciding {
        found.push(
            "mode is observe: what the policies and budgets refuse is reported and not stopped"
                .to_owned(),
        );
    }
    found
}

/// Lists grants that hang below a revoked grant.
fn under_revoked(sections: &Sections) -> impl Iterator<Item = String> {
    let revoked = sections.grants.iter().filter(|it| it.revoked).map(|it| it.name.as_str());
    let revoked: BTreeSet<&str> = revoked.collect();
    let standing = sections.grants.iter().filter(|it| !it.revoked);
    standing.filter_map(move |it| {
        let parent = it.parent.as_deref().filter(|parent| revoked.contains(parent))?;
        let name = &it.name;
        Some(format!(
            "grant `{name}` hangs below `{parent}`, which is revoked: nothing runs under it"
        ))
    })
}

/// Lists principals with a `delegated_by` that no `humans` section confirms as human.
fn unproved(sections: &Sections) -> Vec<String> {
    if !sections.humans.is_empty() || sections.require_authority {
        return Vec::new();
    }
    let without = sections.principals.iter().filter(|it| it.grant.is_none());
    let named = without.filter_map(|it| Some((&it.name, it.delegated_by.as_ref()?)));
    let line = |(name, by): (&String, &String)| {
        format!("principal `{name}`: nothing says that `{by}` is a human; name them under `humans`")
    };
    named.map(line).collect()
}

/// Lists the gaps in the enforcement left by a configuration.
fn left_open(sections: &Sections, on_timeout: OnTimeout) -> Vec<String> {
    let mut open = unproved(sections);
    if !enforces(sections) {
        open.insert(0, "mode is observe: nothing is stopped".to_owned());
        return open;
    }
    if sections.mode == Mode::Observe {
        open.push("mode is observe for whoever is no principal in enforce mode".to_owned());
    }
    for it in sections.principals.iter().filter(|it| it.mode == Some(Mode::Observe)) {
        open.push(format!("principal `{}` is only observed", it.name));
    }
    if on_timeout == OnTimeout::Open {
        open.push("on_timeout: open lets a request pass that is not decided in time".to_owned());
    }
    if sections.uninspectable != Uninspectable::Block {
        open.push("uninspectable lets pass what can't be read".to_owned());
    }
    let bound = sections.policies.iter().any(|it| it.principal.is_some() || it.team.is_some());
    let permitted_only = sections.default_deny || sections.require_authority;
    if bound && sections.unmapped != Unmapped::Block && !permitted_only {
        open.push(
            "unmapped lets whoever is no principal pass the policies that name one: a copied program \
             is nobody's"
                .to_owned(),
        );
    }
    open
}

/// Lines of the entries of each list, for refusals after parsing.
#[derive(Debug)]
struct Lines(BTreeMap<&'static str, Vec<u64>>);

impl File {
    fn lines(&self) -> Lines {
        fn of<T>(list: &List<T>) -> Vec<u64> {
            list.iter().map(|entry| entry.referenced.line()).collect()
        }
        Lines(BTreeMap::from([
            ("principals", of(&self.principals)),
            ("humans", of(&self.humans)),
            ("grants", of(&self.grants)),
            ("budgets", of(&self.budgets)),
            ("rate_limits", of(&self.rate_limits)),
            ("policies", of(&self.policies)),
            ("model_tiers", of(&self.model_tiers)),
            ("providers", of(&self.providers)),
            ("sla", of(&self.sla)),
        ]))
    }
}

impl Lines {
    /// Joins the faults, each on a line of its own, with the line of the file if section and index
    /// are known.
    fn place(
        &self,
        file: &str,
        text: &str,
        faults: &[String],
        has_own_place: impl Fn(&str) -> bool,
    ) -> String {
        let placed = faults.iter().map(|fault| match self.line(text, fault) {
            Some(line) => format!("{file}:{line}: {fault}"),
            None if has_own_place(fault) => fault.clone(),
            None => format!("{file}: {fault}"),
        });
        placed.collect::<Vec<_>>().join("\n")
    }

    /// Reads `section[index]` at the start of a fault, and the first known key in backticks after
    /// `]`.
    fn line(&self, text: &str, fault: &str) -> Option<u64> {
        let (section, rest) = fault.split_once('[')?;
        let (index, rest) = rest.split_once(']')?;
        let lines = self.0.get(section)?;
        let index: usize = index.parse().ok()?;
        let line = *lines.get(index)?;
        let mut keys = rest.split('`').skip(1).step_by(2);
        let next = lines.get(index + 1).copied();
        // Of `budget.limit`, the key is `limit`.
        let found = keys.find_map(|key| {
            let last = key.rsplit('.').next().unwrap_or(key);
            explain::line_of_key(text, line, next, last)
        });
        Some(found.unwrap_or(line))
    }
}

#[cfg(test)]
mod tests;
