//! What is written down as evidence: typed values, integers and strings only, no content.

use crate::awu::{Attribution, AwuId, CaptureLevel, Mechanism};
use crate::config::Unit;
use crate::decision::{PolicyResult, ReasonCode};
use crate::process::ProcessKey;
use crate::time::Now;

/// What sort of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A unit is about to be refused; its decision follows when the effect is known.
    Intent,
    /// Bytes left of a unit that was said to be stopped.
    Breach,
    /// A unit was decided.
    Decision,
    /// Amounts were set aside before it ran.
    Reservation,
    /// The unit ended, and the accounts were settled.
    Reconciliation,
    /// The unit never ran, and what was set aside is free again.
    Release,
    /// A set of policies came into force.
    PolicyLoaded,
    /// Others were refused; those before stay in force.
    PolicyRefused,
    /// A price table came into force.
    PriceLoaded,
    /// A principal is now observed or enforced.
    ModeChange,
    /// Bytes were lost.
    Gap,
    /// Authority was handed down.
    Grant,
    /// It was taken back.
    Revoke,
    /// A human approved a request.
    Approval,
    /// Somebody changed a budget by hand.
    Override,
}

impl RecordKind {
    /// The kind as records spell it.
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

/// One thing to write down. The parts that do not concern it are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Now,
    /// What sort.
    pub kind: RecordKind,
    /// Which unit.
    pub awu: Option<AwuId>,
    /// Who.
    pub who: Option<Who>,
    /// What was asked for.
    pub what: Option<What>,
    /// What the decision was made from.
    pub inputs: Option<Inputs>,
    /// The decision.
    pub decision: Option<Decided>,
    /// The accounts: one for each budget touched; one without a name where no budget applies.
    pub accounts: Vec<Accounted>,
    /// Anything else, as pairs of a name and a text.
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
            detail: Vec::new(),
        }
    }
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The principal, its team and so on, the grants it acts under, and the accountable human.
    pub attribution: Attribution,
    /// The process.
    pub process: Option<ProcessKey>,
    /// Its number, also where nothing else is known of it.
    pub pid: Option<u32>,
    /// Path of its executable.
    pub exe: Option<String>,
    /// The number of its user.
    pub uid: Option<u32>,
    /// Its user.
    pub user: Option<String>,
    /// Its systemd unit.
    pub systemd_unit: Option<String>,
    /// Its container.
    pub container_id: Option<String>,
    /// Its pod.
    pub pod_uid: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its cgroup.
    pub cgroup: Option<String>,
}

/// What was asked for.
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
    /// Server's name or address.
    pub server: Option<String>,
    /// API flavour.
    pub api: Option<&'static str>,
    /// How much was read when this was written.
    pub capture: CaptureLevel,
    /// How it was held.
    pub mechanism: Mechanism,
}

/// What the decision was made from, beside who and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Most input tokens the request can be.
    pub input_tokens: u64,
    /// Most output tokens it can cause.
    pub output_tokens: u64,
    /// Most it can cost, in nano-USD; absent where no price is known.
    pub nano_usd: Option<i64>,
    /// The same at its worst, where `nano_usd` is what such requests usually cost.
    pub worst_nano_usd: Option<i64>,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// The request was read to its end.
    pub complete: bool,
    /// Names of the content rules that matched.
    pub content: Vec<String>,
    /// The approval that was used.
    pub approval: Option<String>,
    /// Bytes of the request that had left before the decision.
    pub bytes_before_decision: u64,
    /// What stood in memory besides.
    pub seen: Seen,
    /// What was sent to the model, where somebody asked for it to be kept.
    pub texts: Texts,
}

/// What stood in memory when a decision was made: with the rest of its record and the configuration,
/// enough to make it again.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A refusal could still keep the request from running.
    pub preventable: bool,
    /// What had settled the matter before: another refusal on the connection, or the deadline.
    pub settled: Option<ReasonCode>,
    /// The request had not ended yet; it was refused for what no rest of it could change.
    pub early: bool,
    /// It asked for a stream.
    pub stream: bool,
    /// 95th percentile of the provider's last latencies.
    pub p95_latency_ms: Option<u64>,
    /// Too many of the last calls missed their latency target.
    pub slow: bool,
    /// The provider had failed the principal less than a minute ago.
    pub failed: bool,
    /// The rate limits that concern it, before it was counted.
    pub limits: Vec<Metered>,
    /// The budgets that it draws on, before anything was set aside.
    pub budgets: Vec<Had>,
}

/// What a rate limit had counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Its name.
    pub limit: String,
    /// How far its theoretical arrival time lay ahead, in nanoseconds.
    pub ahead_ns: u64,
    /// Requests that were running.
    pub running: u32,
}

/// What a budget had, in nano-USD or tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Had {
    /// Its name.
    pub budget: String,
    /// Of its period, adjustments included.
    pub allocated: i64,
    /// What could still be set aside.
    pub remaining: i64,
}

/// Texts of a request. `Debug` shows how many, never what they say.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// In the order of the request.
    pub texts: Vec<String>,
    /// Bytes beyond [`Texts::LIMIT`] that were left out.
    pub left_out_bytes: u64,
}

impl Texts {
    /// Most bytes that are kept of one request.
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

/// A decision, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The result.
    pub result: PolicyResult,
    /// The reason, unless allowed.
    pub reason: Option<ReasonCode>,
    /// The policy, grant, budget or limit that decided.
    pub policy: Option<String>,
    /// Every policy that matched.
    pub matched: Vec<String>,
    /// SHA-256 of the policies in force.
    pub policy_hash: [u8; 32],
    /// How often policies were loaded since the start.
    pub epoch: u64,
    /// The refusal kept the request from leaving.
    pub prevented: bool,
}

/// One account of one unit. Amounts are nano-USD or tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounted {
    /// The budget; absent where none applies.
    pub budget: Option<String>,
    /// Its period.
    pub period: Option<String>,
    /// What the amounts are.
    pub unit: Unit,
    /// Set aside before.
    pub reserved: i64,
    /// Used; absent while it is not known.
    pub actual: Option<i64>,
    /// What the budget has left after this.
    pub remaining: Option<i64>,
    /// The actual never became known: what was reserved is charged.
    pub incomplete: bool,
    /// SHA-256 of the price table.
    pub price_hash: [u8; 32],
    /// Number of the ledger's change.
    pub ledger_sequence: u64,
}
