//! The AI Workload Unit (spec §2): one inference exchange, whom it belongs to, what was decided
//! about it, and what became of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
pub enum Rung {
    /// A security hook that fails the send call.
    Lsm,
    /// Packets that stay in the send queue.
    EgressHold,
    /// The connection was refused.
    Connect,
    /// None: it was only observed.
    None,
}

impl Rung {
    /// The rung as telemetry spells it.
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
    Held(Rung),
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
    /// The grants it acts under, from its own to the root.
    pub chain: Vec<String>,
    /// The human who answers for it.
    pub accountable: Option<String>,
}

/// One finished unit: everything for its JSON line and its span.
#[derive(Clone, Debug, PartialEq)]
pub struct Awu {
    /// Trace and span.
    pub id: AwuId,
    /// When the request's first byte was seen, in nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// When the response's last byte was seen, or it was clear that none will come.
    pub end_unix_ns: u64,
    name: String,
    error: bool,
    attributes: Vec<crate::telemetry::Attribute>,
    events: Vec<crate::telemetry::Event>,
}

impl Awu {
    /// Name of the span: `{operation} {model}`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The span's status is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.error
    }

    /// Every attribute, in a fixed order, each name once.
    #[must_use]
    pub fn attributes(&self) -> Vec<crate::telemetry::Attribute> {
        self.attributes.clone()
    }

    /// The span's events, in the order they happened.
    #[must_use]
    pub fn events(&self) -> Vec<crate::telemetry::Event> {
        self.events.clone()
    }
}
