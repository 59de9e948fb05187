//! The AI Workload Unit (spec §2): one inference exchange, whom it belongs to, what was decided
//! about it, and what became of it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use genops_protocols::{Call, ClaimSource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Dimension, Mode, Signal, Unit};
use crate::decision::{Decision, Permission, Refusal};

/// Identity of a unit: the trace and span it is exported as. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AwuId {
    /// W3C trace id.
    pub trace: [u8; 16],
    /// W3C span id.
    pub span: [u8; 8],
}

impl fmt::Display for AwuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.trace {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-")?;
        for byte in self.span {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A text that is no unit's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 32 hexadecimal digits, a hyphen, and 16 more")]
pub struct NotAnId;

impl FromStr for AwuId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let (trace, span) = text.split_once('-').ok_or(NotAnId)?;
        let mut id = Self { trace: [0; 16], span: [0; 8] };
        unhex(trace, &mut id.trace)?;
        unhex(span, &mut id.span)?;
        Ok(id)
    }
}

fn unhex(text: &str, into: &mut [u8]) -> Result<(), NotAnId> {
    if text.len() != into.len() * 2 || !text.is_ascii() {
        return Err(NotAnId);
    }
    for (byte, pair) in into.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| NotAnId)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| NotAnId)?;
    }
    Ok(())
}

impl Serialize for AwuId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AwuId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How much of the exchange was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CaptureLevel {
    /// Request and response, every byte of both.
    Full,
    /// Some of it was lost or could not be read.
    Partial,
    /// Only that it took place.
    Metadata,
}

impl CaptureLevel {
    /// The level as telemetry spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Metadata => "metadata",
        }
    }
}

/// By which mechanism a request was held until the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// A security hook that fails the send call.
    Lsm,
    /// Packets that stay in the send queue.
    EgressHold,
    /// The connection was refused.
    Connect,
    /// None: it was only observed.
    None,
}

impl Mechanism {
    /// The mechanism as telemetry spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::EgressHold => "egress_hold",
            Self::Connect => "connect",
            Self::None => "none",
        }
    }
}

/// Whether egress of a connection is held by the kernel before it leaves the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldLevel {
    /// It is not: decisions come too late to prevent anything.
    None,
    /// It is, by this mechanism.
    Held(Mechanism),
}

/// Whom a unit belongs to. Fixed when the unit is opened (spec §2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// Name of the principal.
    pub principal: String,
    /// A configured principal, not one derived from the process.
    pub mapped: bool,
    /// `genops.team`.
    pub team: Option<String>,
    /// `genops.project`.
    pub project: Option<String>,
    /// `genops.environment`.
    pub environment: Option<String>,
    /// `genops.cost_center`.
    pub cost_center: Option<String>,
    /// `genops.customer_id`.
    pub customer_id: Option<String>,
    /// `genops.feature`.
    pub feature: Option<String>,
    /// `genops.session_id`.
    pub session_id: Option<String>,
    /// Which of these the request says itself, and where: `customer_id=header:x-customer`.
    pub said: Vec<String>,
    /// The grants it acts under, from its own to the root.
    pub chain: Vec<String>,
    /// The human who answers for it.
    pub accountable: Option<String>,
}

impl Attribution {
    /// The customer, feature or session.
    #[must_use]
    pub fn of(&self, dimension: Dimension) -> Option<&str> {
        match dimension {
            Dimension::CustomerId => self.customer_id.as_deref(),
            Dimension::Feature => self.feature.as_deref(),
            Dimension::SessionId => self.session_id.as_deref(),
        }
    }

    fn of_mut(&mut self, dimension: Dimension) -> &mut Option<String> {
        match dimension {
            Dimension::CustomerId => &mut self.customer_id,
            Dimension::Feature => &mut self.feature,
            Dimension::SessionId => &mut self.session_id,
        }
    }

    /// Takes the client's word for whom a request is for.
    pub(crate) fn take(&mut self, dimension: Dimension, source: &ClaimSource, value: &str) {
        self.said.push(format!("{}={source}", dimension.as_str()));
        *self.of_mut(dimension) = Some(value.to_owned());
    }

    /// What of it the configuration alone says: without the human who answers for it, and without
    /// what a request said itself.
    #[must_use]
    pub fn configured(&self) -> Self {
        let mut own = Self { accountable: None, said: Vec::new(), ..self.clone() };
        for dimension in Dimension::ALL {
            let begin = format!("{}=", dimension.as_str());
            if self.said.iter().any(|it| it.starts_with(&begin)) {
                *own.of_mut(dimension) = None;
            }
        }
        own
    }

    /// Whose part of a limit that holds for each by itself a request draws on.
    pub(crate) fn part(&self, dimension: Dimension) -> &str {
        self.of(dimension).unwrap_or(UNNAMED)
    }
}

/// The part of what says nobody: one among the others.
const UNNAMED: &str = "~unnamed";
/// The part of everybody beyond [`PARTS_LIMIT`].
pub(crate) const OTHERS: &str = "~others";
/// Most customers, features or sessions that one limit tells apart.
pub(crate) const PARTS_LIMIT: usize = 10_000;

/// What was set aside for a unit before it ran (spec §3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// What the amount is.
    pub unit: Unit,
    /// Nano-USD or tokens.
    pub amount: i64,
    /// Of the budgets of this unit that it draws on, the one with the least left.
    pub budget: Option<BudgetView>,
    /// The other budgets that it draws on, each in a unit of its own.
    pub others: Vec<BudgetView>,
    /// When.
    pub unix_ns: u64,
}

/// A budget as one unit saw it, in the budget's own unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// Its name.
    pub name: String,
    /// Its period.
    pub period: String,
    /// What the amounts are.
    pub unit: Unit,
    /// The limit, with adjustments.
    pub allocated: i64,
    /// Used by calls that ended.
    pub consumed: i64,
    /// Set aside for calls that have not ended.
    pub reserved: i64,
    /// Neither used nor set aside.
    pub remaining: i64,
}

/// What a unit used (spec §3.2), in its reservation's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actual {
    /// Nano-USD or tokens; what was reserved, where it is not known.
    pub amount: i64,
    /// It did not become known in full.
    pub incomplete: bool,
    /// What the amount goes by.
    pub basis: Basis,
    /// When it was clear.
    pub unix_ns: u64,
}

/// What an actual goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// What the provider says that was used, or what is counted exactly in the request.
    Reported,
    /// What was seen of the text, at so many bytes a token.
    Estimated,
    /// Nothing is known: all that was set aside.
    Reserved,
}

impl Basis {
    /// As telemetry spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Reserved => "reserved",
        }
    }
}

/// What became of a unit. A refused one has no accounts, and only one that ran has an actual:
/// what the specification forbids can't be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was stopped before it ran.
    Refused(Refusal),
    /// It was permitted, and its connection ended before any of it could run.
    NotExecuted(Permission, Reservation),
    /// It ran.
    Executed(Permission, Reservation, Actual),
}

impl Outcome {
    /// The decision.
    #[must_use]
    pub fn decision(&self) -> Decision {
        match self {
            Self::Refused(refusal) => Decision::Refuse(refusal.clone()),
            Self::NotExecuted(permission, _) | Self::Executed(permission, _, _) => {
                Decision::Permit(permission.clone())
            }
        }
    }

    /// What was set aside.
    #[must_use]
    pub fn reservation(&self) -> Option<&Reservation> {
        match self {
            Self::Refused(_) => None,
            Self::NotExecuted(_, reservation) | Self::Executed(_, reservation, _) => {
                Some(reservation)
            }
        }
    }

    /// What was used.
    #[must_use]
    pub fn actual(&self) -> Option<&Actual> {
        match self {
            Self::Refused(_) | Self::NotExecuted(_, _) => None,
            Self::Executed(_, _, actual) => Some(actual),
        }
    }
}

/// How a decision came about, beside its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// The policy, grant, budget or limit that decided.
    pub policy: Option<String>,
    /// Why, in words for the developer.
    pub reason: Option<String>,
    /// What that policy sends to a process that it refuses something; see [`Awu::signal`].
    pub signal: Option<Signal>,
    /// Every policy that matched.
    pub matched: Vec<String>,
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// What an approval would be for, where one is asked for.
    pub approval_request: Option<String>,
    /// The approval that was used.
    pub approval: Option<String>,
    /// Budgets that had too little left for it, or that are used up to a threshold.
    pub alerts: Vec<BudgetView>,
    /// No price is known for the model: the dearest of its provider's was taken.
    pub price_assumed: bool,
    /// SHA-256 of the price table.
    pub price_hash: [u8; 32],
    /// SHA-256 of the policies.
    pub policy_hash: [u8; 32],
}

/// How a decision was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The principal's mode at the decision.
    pub mode: Mode,
    /// By which mechanism the request was held.
    pub mechanism: Mechanism,
    /// The kernel's deadline came first, and let it pass or stopped it.
    pub timed_out: bool,
    /// Bytes of the request that had left before the decision.
    pub bytes_before_decision: u64,
    /// Other exchanges that ended with the connection, for a refusal.
    pub collateral: u64,
}

impl Held {
    /// The decision and the reservation were made before the request could leave as a whole.
    #[must_use]
    pub fn before_execution(&self) -> bool {
        self.mechanism != Mechanism::None && !self.timed_out
    }
}

/// The transport below a unit, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The client's end.
    pub local: Option<SocketAddr>,
    /// The server's end.
    pub remote: Option<SocketAddr>,
    /// Bytes that left on the connection; only where it is all that is known of the unit.
    pub sent_bytes: Option<u64>,
    /// Bytes that came, likewise.
    pub received_bytes: Option<u64>,
}

/// A latency target and how the call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sla {
    /// `genops.sla.tier`.
    pub tier: String,
    /// The target.
    pub target_ms: u64,
    /// What it took.
    pub actual_ms: u64,
}

/// One finished unit: everything for its JSON line and its span.
#[derive(Clone, Debug, PartialEq)]
pub struct Awu {
    /// Trace and span.
    pub id: AwuId,
    /// The connection's name.
    pub conn: String,
    /// The exchange, as far as it was read.
    pub call: Call,
    /// The response ended as its framing says.
    pub response_complete: bool,
    /// When the request's first byte was seen, in nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// When the response's last byte was seen, or it was clear that none will come.
    pub end_unix_ns: u64,
    /// Whom it belongs to.
    pub attribution: Arc<Attribution>,
    /// Number of the process.
    pub pid: Option<u32>,
    /// Path of its executable.
    pub exe: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why.
    pub grounds: Grounds,
    /// How.
    pub enforcement: Held,
    /// How much of it was read.
    pub capture: CaptureLevel,
    /// Why it could not be read, if nothing explains it.
    pub capture_reason: Option<&'static str>,
    /// Over which connection.
    pub network: Network,
    /// Cost in nano-USD, where a price and the usage are known.
    pub cost_nano_usd: Option<i64>,
    /// Where the model computes, as far as known.
    pub region: Option<String>,
    /// The latency target, for a call that ended.
    pub sla: Option<Sla>,
}

impl Awu {
    /// What its process is sent: only where the request was refused, by a policy that asks for it.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        self.grounds.signal.filter(|_| matches!(self.outcome, Outcome::Refused(_)))
    }
}
