//! Evidence records: typed values, integers and strings only, no content.

use crate::awu::{Attribution, AwuId, CaptureLevel, Mechanism};
use crate::config::Unit;
use crate::decision::{PolicyResult, ReasonCode};
use crate::process::ProcessKey;
use crate::time::Now;

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A unit is about to be refused; the decision follows when the effect is known.
    Intent,
    /// Bytes left of a unit recorded as stopped.
    Breach,
    /// A unit was decided.
    Decision,
    /// Amounts were reserved before the unit ran.
    Reservation,
    /// The unit ended, and the accounts were settled.
    Reconciliation,
    /// The unit never ran, and the reservation was released.
    Release,
    /// A set of policies came into force.
    PolicyLoaded,
    /// A new set of policies was refused; the previous policies stay in force.
    PolicyRefused,
    /// A price table came into force.
    PriceLoaded,
    /// The mode of a principal changed.
    ModeChange,
    /// Bytes were lost.
    Gap,
    /// Authority was granted.
    Grant,
    /// Authority was revoked.
    Revoke,
    /// A human approved a request.
    Approval,
    /// A human changed a budget.
    Override,
}

impl RecordKind {
    /// Returns the kind as spelled in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Breach => "breach",
            Self::Decision => "decision",
            Self::Reservation => "reservation",
            Self::Reconciliation => "reconciliation",
            Self::Release => "release",
            Self::PolicyLoaded => "policy_loaded",
            Self::PolicyRefused => "policy_refused",
            Self::PriceLoaded => "price_loaded",
            Self::ModeChange => "mode_change",
            Self::Gap => "gap",
            Self::Grant => "grant",
            Self::Revoke => "revoke",
            Self::Approval => "approval",
            Self::Override => "override",
        }
    }
}

/// An evidence record. Parts without relevance for the kind are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Time of the record.
    pub at: Now,
    /// Kind of the record.
    pub kind: RecordKind,
    /// Unit.
    pub awu: Option<AwuId>,
    /// Client of the request.
    pub who: Option<Who>,
    /// Request.
    pub what: Option<What>,
    /// Inputs of the decision.
    pub inputs: Option<Inputs>,
    /// The decision.
    pub decision: Option<Decided>,
    /// Accounts: an entry for each budget touched; an entry without a name if no budget applies.
    pub accounts: Vec<Accounted>,
    /// Number of contacts for which the record stands: above 1 only for refusals that the kernel
    /// has only counted.
    pub times: u64,
    /// Further details, as pairs of a name and a text.
    pub detail: Vec<(&'static str, String)>,
}

impl Record {
    pub(crate) fn new(at: Now, kind: RecordKind) -> Self {
        Self {
            at,
            kind,
            awu: None,
            who: None,
            what: None,
            inputs: None,
            decision: None,
            accounts: Vec::new(),
            times: 1,
            detail: Vec::new(),
        }
    }
}

/// Client of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Principal, team and further attributes, the grants of the principal, and the accountable
    /// human.
    pub attribution: Attribution,
    /// The process.
    pub process: Option<ProcessKey>,
    /// Pid of the process, also if nothing else is known of the process.
    pub pid: Option<u32>,
    /// Path of the executable.
    pub exe: Option<String>,
    /// Numeric user id.
    pub uid: Option<u32>,
    /// User name.
    pub user: Option<String>,
    /// systemd unit.
    pub systemd_unit: Option<String>,
    /// Container.
    pub container_id: Option<String>,
    /// Pod.
    pub pod_uid: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Cgroup.
    pub cgroup: Option<String>,
}

/// Request of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct What {
    /// `gen_ai.operation.name`.
    pub operation: Option<String>,
    /// `genops.operation.type`.
    pub operation_type: &'static str,
    /// `gen_ai.provider.name`.
    pub provider: Option<String>,
    /// `gen_ai.request.model`.
    pub model: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Name or address of the server.
    pub server: Option<String>,
    /// API flavour.
    pub api: Option<&'static str>,
    /// Amount read at the time of the record.
    pub capture: CaptureLevel,
    /// Mechanism of the hold.
    pub mechanism: Mechanism,
}

/// Inputs of a decision, beside client and request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Maximum input tokens of the request.
    pub input_tokens: u64,
    /// Maximum output tokens caused by the request.
    pub output_tokens: u64,
    /// Maximum cost, in nano-USD; absent if no price is known.
    pub nano_usd: Option<i64>,
    /// Worst-case cost, if `nano_usd` is the usual cost of similar requests.
    pub worst_nano_usd: Option<i64>,
    /// Maximum duration, in nanoseconds; absent if no budget counts durations.
    pub compute_ns: Option<i64>,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Whether the request was read to the end.
    pub complete: bool,
    /// Names of matching content rules, and of unfulfilled endpoint rules of grants.
    pub content: Vec<String>,
    /// Approval used.
    pub approval: Option<String>,
    /// Bytes of the request that left before the decision.
    pub bytes_before_decision: u64,
    /// State in memory used by the decision.
    pub seen: Seen,
    /// Text sent to the model, if the configuration asks for texts to be kept.
    pub texts: Texts,
}

/// State in memory at a decision: together with the rest of the record and the configuration,
/// enough to repeat the decision.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether a refusal could still keep the request from running.
    pub preventable: bool,
    /// Reason settled before the decision: another refusal on the connection, or the deadline.
    pub settled: Option<ReasonCode>,
    /// Whether the request was refused before the end, for a reason that no further byte could
    /// change.
    pub early: bool,
    /// Whether the request asked for a stream.
    pub stream: bool,
    /// 95th percentile of the provider's recent latencies.
    pub p95_latency_ms: Option<u64>,
    /// Whether too many of the recent calls missed the latency target.
    pub slow: bool,
    /// Whether the provider failed the principal less than a minute ago.
    pub failed: bool,
    /// Rate limits for the request, before the request was counted.
    pub limits: Vec<Metered>,
    /// Budgets drawn on, before the reservation.
    pub budgets: Vec<Had>,
}

/// State of a rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Name of the rate limit.
    pub limit: String,
    /// Distance of the theoretical arrival time in the future, in nanoseconds.
    pub ahead_ns: u64,
    /// Number of running requests.
    pub running: u32,
}

/// State of a budget, in nano-USD, tokens or nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Had {
    /// Name of the budget.
    pub budget: String,
    /// Amount allocated for the period, adjustments included.
    pub allocated: i64,
    /// Amount that could still be reserved.
    pub remaining: i64,
}

/// Texts of a request. `Debug` shows the number of texts, never the contents.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// Texts in the order of the request.
    pub texts: Vec<String>,
    /// Number of bytes left out beyond [`Texts::LIMIT`].
    pub left_out_bytes: u64,
}

impl Texts {
    /// Maximum number of bytes kept of a request.
    pub const LIMIT: usize = 256 << 10;

    pub(crate) fn of(all: &[&str]) -> Self {
        let mut kept = Self::default();
        let mut room = Self::LIMIT;
        for text in all {
            let part = text.get(..text.floor_char_boundary(room)).unwrap_or_default();
            kept.left_out_bytes += (text.len() - part.len()) as u64;
            room -= part.len();
            if !part.is_empty() {
                kept.texts.push(part.to_owned());
            }
        }
        kept
    }
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts").field("count", &self.texts.len()).finish_non_exhaustive()
    }
}

/// A decision with the grounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The result.
    pub result: PolicyResult,
    /// Reason code, unless allowed.
    pub reason: Option<ReasonCode>,
    /// Deciding policy, grant, budget or limit.
    pub policy: Option<String>,
    /// All matching policies.
    pub matched: Vec<String>,
    /// SHA-256 of the policies in force.
    pub policy_hash: [u8; 32],
    /// Number of policy loads since the start.
    pub epoch: u64,
    /// Whether the refusal kept the request from leaving.
    pub prevented: bool,
}

/// An account of a unit. Amounts are nano-USD, tokens or nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounted {
    /// Name of the budget; absent if none applies.
    pub budget: Option<String>,
    /// Period of the budget.
    pub period: Option<String>,
    /// Unit of the amounts.
    pub unit: Unit,
    /// Amount reserved before execution.
    pub reserved: i64,
    /// Amount used; absent while not known.
    pub actual: Option<i64>,
    /// Amount left in the budget after the record.
    pub remaining: Option<i64>,
    /// Whether the actual never became known: the reserved amount is charged.
    pub incomplete: bool,
    /// SHA-256 of the price table.
    pub price_hash: [u8; 32],
    /// Sequence number of the ledger's change.
    pub ledger_sequence: u64,
}
