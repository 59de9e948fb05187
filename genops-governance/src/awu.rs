//! The AI Workload Unit (spec §2): an inference exchange with attribution, decision and outcome.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use genops_protocols::{Call, ClaimSource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Dimension, Mode, Signal, Unit};
use crate::decision::{Decision, Permission, Refusal};
use crate::hex::hex;

/// Identity of a unit: the trace and span of the export. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AwuId {
    /// W3C trace id.
    pub trace: [u8; 16],
    /// W3C span id.
    pub span: [u8; 8],
}

impl fmt::Display for AwuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.trace))?;
        f.write_str("-")?;
        f.write_str(&hex(&self.span))
    }
}

/// Error for a text that is not the identity of a unit.
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

/// Amount read of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CaptureLevel {
    /// Request and response, every byte of both.
    Full,
    /// Some bytes were lost or could not be read.
    Partial,
    /// Only the fact of the exchange is known.
    Metadata,
}

impl CaptureLevel {
    /// Returns the level as spelled in telemetry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Metadata => "metadata",
        }
    }
}

/// Mechanism holding a request until the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// A security hook failing the send call.
    Lsm,
    /// Packets kept in the send queue.
    EgressHold,
    /// The connection was refused.
    Connect,
    /// No hold: the request was only observed.
    None,
}

impl Mechanism {
    /// Returns the mechanism as spelled in telemetry.
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

/// Whether the kernel holds the egress of a connection before the bytes leave the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldLevel {
    /// No hold: decisions come too late to prevent anything.
    None,
    /// Held by the mechanism.
    Held(Mechanism),
}

/// Attribution of a unit. Fixed when the unit is opened (spec §2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// Name of the principal.
    pub principal: String,
    /// Whether the principal is configured, not derived from the process.
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
    /// Values claimed by the request, each with the place: `customer_id=header:x-customer`.
    pub said: Vec<String>,
    /// Grants of the principal, from the principal's own grant to the root.
    pub chain: Vec<String>,
    /// Human accountable for the principal.
    pub accountable: Option<String>,
}

impl Attribution {
    /// Returns the customer, feature or session.
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

    /// Takes the client's claim for whom a request is made.
    pub(crate) fn take(&mut self, dimension: Dimension, source: &ClaimSource, value: &str) {
        self.said.push(format!("{}={source}", dimension.as_str()));
        *self.of_mut(dimension) = Some(value.to_owned());
    }

    /// Returns the part given by the configuration: without the accountable human, and without the
    /// values claimed by the request.
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

    /// Returns the part drawn on by a request in a limit with a count for each customer, feature or
    /// session.
    pub(crate) fn part(&self, dimension: Dimension) -> &str {
        self.of(dimension).unwrap_or(UNNAMED)
    }
}

/// Part for requests without a name: a part like any other.
const UNNAMED: &str = "~unnamed";
/// Part shared by all names beyond [`PARTS_LIMIT`].
pub(crate) const OTHERS: &str = "~others";
/// Maximum number of customers, features or sessions with a part of their own in a limit.
pub(crate) const PARTS_LIMIT: usize = 10_000;

/// Amount reserved for a unit before execution (spec §3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Unit of the amount.
    pub unit: Unit,
    /// Nano-USD, tokens or nanoseconds.
    pub amount: i64,
    /// Budget in the reservation's unit with the least left among the budgets drawn on.
    pub budget: Option<BudgetView>,
    /// Other budgets drawn on, each in a unit of the budget's own.
    pub others: Vec<BudgetView>,
    /// Time of the reservation, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// State of a budget at a unit's decision, in the budget's own unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// Name of the budget.
    pub name: String,
    /// Period of the budget.
    pub period: String,
    /// Unit of the amounts.
    pub unit: Unit,
    /// Limit, with adjustments.
    pub allocated: i64,
    /// Used by ended calls.
    pub consumed: i64,
    /// Reserved for calls that have not ended.
    pub reserved: i64,
    /// Neither used nor reserved.
    pub remaining: i64,
}

/// Actual usage of a unit (spec §3.2), in the reservation's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actual {
    /// Nano-USD, tokens or nanoseconds; the reserved amount if the usage is not known.
    pub amount: i64,
    /// Whether the usage never became known in full.
    pub incomplete: bool,
    /// Basis of the amount.
    pub basis: Basis,
    /// Time at which the usage was known, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// Basis of an actual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Usage reported by the provider, or counted or measured exactly.
    Reported,
    /// Text seen, at a fixed number of bytes for a token, or the time until the client left.
    Estimated,
    /// Nothing is known: the whole reservation.
    Reserved,
}

impl Basis {
    /// Returns the basis as spelled in telemetry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Reserved => "reserved",
        }
    }
}

/// Outcome of a unit. A refused unit has no accounts, and only an executed unit has an actual:
/// combinations forbidden by the specification cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The unit was stopped before execution.
    Refused(Refusal),
    /// The unit was permitted, and the connection ended before any part could run.
    NotExecuted(Permission, Reservation),
    /// The unit ran.
    Executed(Permission, Reservation, Actual),
}

impl Outcome {
    /// Returns the decision.
    #[must_use]
    pub fn decision(&self) -> Decision {
        match self {
            Self::Refused(refusal) => Decision::Refuse(refusal.clone()),
            Self::NotExecuted(permission, _) | Self::Executed(permission, _, _) => {
                Decision::Permit(permission.clone())
            }
        }
    }

    /// Returns the reservation.
    #[must_use]
    pub fn reservation(&self) -> Option<&Reservation> {
        match self {
            Self::Refused(_) => None,
            Self::NotExecuted(_, reservation) | Self::Executed(_, reservation, _) => {
                Some(reservation)
            }
        }
    }

    /// Returns the actual usage.
    #[must_use]
    pub fn actual(&self) -> Option<&Actual> {
        match self {
            Self::Refused(_) | Self::NotExecuted(_, _) => None,
            Self::Executed(_, _, actual) => Some(actual),
        }
    }
}

/// Grounds of a decision, beside the result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// Deciding policy, grant, budget or limit.
    pub policy: Option<String>,
    /// Reason, in words for the developer.
    pub reason: Option<String>,
    /// Signal sent by the policy to a process after a refusal; see [`Awu::signal`].
    pub signal: Option<Signal>,
    /// All matching policies.
    pub matched: Vec<String>,
    /// Time of the decision, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Request to approve, if the decision asks for an approval.
    pub approval_request: Option<String>,
    /// Approval used.
    pub approval: Option<String>,
    /// Budgets with too little left for the unit, or used up to a threshold.
    pub alerts: Vec<BudgetView>,
    /// Whether the highest price of the model's family or provider was assumed, because no price is
    /// known for the model.
    pub price_assumed: bool,
    /// SHA-256 of the price table.
    pub price_hash: [u8; 32],
    /// SHA-256 of the policies.
    pub policy_hash: [u8; 32],
}

/// Execution of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The principal's mode at the decision.
    pub mode: Mode,
    /// Mechanism holding the request.
    pub mechanism: Mechanism,
    /// Whether the kernel's deadline came first, and released or denied the request.
    pub timed_out: bool,
    /// Bytes of the request that left before the decision.
    pub bytes_before_decision: u64,
    /// Number of other exchanges ended with the connection by a refusal.
    pub collateral: u64,
}

impl Held {
    /// Returns whether the decision and the reservation came before the whole request could leave.
    #[must_use]
    pub fn before_execution(&self) -> bool {
        self.mechanism != Mechanism::None && !self.timed_out
    }
}

/// Transport of a unit, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Address of the client.
    pub local: Option<SocketAddr>,
    /// Address of the server.
    pub remote: Option<SocketAddr>,
    /// Bytes sent on the connection; only if nothing else is known of the unit.
    pub sent_bytes: Option<u64>,
    /// Bytes received on the connection; only if nothing else is known of the unit.
    pub received_bytes: Option<u64>,
}

/// A latency target and the measured latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sla {
    /// `genops.sla.tier`.
    pub tier: String,
    /// Target, in milliseconds.
    pub target_ms: u64,
    /// Measured latency, in milliseconds.
    pub actual_ms: u64,
}

/// A finished unit: all data for the JSON line and the span.
#[derive(Clone, Debug, PartialEq)]
pub struct Awu {
    /// Trace and span.
    pub id: AwuId,
    /// Name of the connection.
    pub conn: String,
    /// Exchange, as far as read.
    pub call: Call,
    /// Whether the response ended as given by the framing.
    pub response_complete: bool,
    /// Time of the request's first byte, in nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// Time of the response's last byte, or the time at which no further byte could come.
    pub end_unix_ns: u64,
    /// Attribution of the unit.
    pub attribution: Arc<Attribution>,
    /// Pid of the process.
    pub pid: Option<u32>,
    /// Path of the executable.
    pub exe: Option<String>,
    /// Outcome of the unit.
    pub outcome: Outcome,
    /// Grounds of the decision.
    pub grounds: Grounds,
    /// Execution of the decision.
    pub enforcement: Held,
    /// Amount read of the exchange.
    pub capture: CaptureLevel,
    /// Reason for not reading the exchange, if no plaintext explains the bytes.
    pub capture_reason: Option<&'static str>,
    /// Transport of the unit.
    pub network: Network,
    /// Cost in nano-USD, if a price and the usage are known.
    pub cost_nano_usd: Option<i64>,
    /// Duration in nanoseconds, if a price or a budget counts durations.
    pub compute_ns: Option<i64>,
    /// Region of the model's computation, as far as known.
    pub region: Option<String>,
    /// Latency target and latency of an ended call.
    pub sla: Option<Sla>,
}

impl Awu {
    /// Returns the signal for the process: only if the request was refused by a policy with a
    /// signal.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        self.grounds.signal.filter(|_| matches!(self.outcome, Outcome::Refused(_)))
    }
}
