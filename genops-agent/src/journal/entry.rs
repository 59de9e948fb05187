//! The evidence record: compact JSON with a fixed order of keys, integers and strings only.
//!
//! Written once; a verifier hashes the stored bytes, so no record is ever made canonical again.
//! Amounts are nano-USD or tokens. A record has no plain text of a request or response.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Version of the record format.
pub(crate) const VERSION: u8 = 1;

/// Kind of a record.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A unit is about to be refused, up to a position; the decision follows after the effect is
    /// known.
    Intent,
    /// Bytes of a unit left although the decision says the unit was stopped.
    Breach,
    /// A unit was decided.
    Decision,
    /// Many alike units were decided within a second, with no further records.
    Folded,
    /// Amounts were reserved before the unit ran.
    Reservation,
    /// A unit that ran ended; the accounts were settled.
    Reconciliation,
    /// A unit never ran; the reserved amounts are free again.
    Release,
    /// A set of policies came into force.
    PolicyLoaded,
    /// A set of policies was refused; the set before stays in force.
    PolicyRefused,
    /// A price table came into force.
    PriceLoaded,
    /// A principal is now observed or enforced.
    ModeChange,
    /// A loss before this record: bytes, kernel events or records.
    Gap,
    /// An authority grant came into force.
    Grant,
    /// An authority grant was withdrawn.
    Revoke,
    /// A human approved a request.
    Approval,
    /// Somebody set a rule aside by hand.
    Override,
    /// A user set a rule aside by hand.
    AgentStart,
    /// The agent started; the record tells how the log had ended before.
    AgentStop,
    /// The log signs with another key from here on.
    KeyRotated,
    /// The mechanisms for stopping a call here, and the reasons for the missing mechanisms.
    Capability,
    /// A witness cosigned a checkpoint.
    Witnessed,
    /// No witness could be reached.
    WitnessUnreachable,
    /// Entries below a record are no longer kept.
    Retention,
    /// The text sent to a model, encrypted.
    Content,
    /// The keys of some days were destroyed.
    Forgotten,
    /// Copies could not be shipped, could be shipped again, or were refused.
    Shipping,
    /// The newest record of each principal: a place for a reader to begin.
    Heads,
    /// The balance of each budget at a start or a stop.
    Balances,
}

impl Kind {
    /// The kind as spelled in records.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Breach => "breach",
            Self::Decision => "decision",
            Self::Folded => "folded",
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
            Self::AgentStart => "agent_start",
            Self::AgentStop => "agent_stop",
            Self::KeyRotated => "key_rotated",
            Self::Capability => "capability",
            Self::Witnessed => "witnessed",
            Self::WitnessUnreachable => "witness_unreachable",
            Self::Retention => "retention",
            Self::Content => "content",
            Self::Forgotten => "forgotten",
            Self::Shipping => "shipping",
            Self::Heads => "heads",
            Self::Balances => "balances",
        }
    }
}

/// A text, borrowed from the record if without escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry<'a> {
    /// [`VERSION`].
    pub(crate) v: u8,
    /// Index in the log.
    pub(crate) seq: u64,
    /// Verdicts and events counted by the kernel, and events lost on the way; absent if the kernel
    /// was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kseq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drops: Option<u64>,
    /// Nanoseconds since 1970.
    pub(crate) t: u64,
    /// Nanoseconds of the monotonic clock.
    pub(crate) mono: u64,
    /// ID of the host's boot.
    #[serde(borrow)]
    pub(crate) boot: Text<'a>,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    /// The unit: trace and span ID.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) awu: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) who: Option<Who<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) what: Option<What<'a>>,
    #[serde(default, borrow, rename = "in", skip_serializing_if = "Option::is_none")]
    pub(crate) inputs: Option<Inputs<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) dec: Option<Decided<'a>>,
    /// Number of units decided alike; see [`Kind::Folded`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fold: Option<Count>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bud: Vec<Accounted<'a>>,
    /// Keyed digest of the text sent to the model: `hmac:`, the day of the key, the digest.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) dig: Option<Text<'a>>,
    /// The text sent to the model; see [`Kind::Content`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<Sealed<'a>>,
    /// Heads of the principals; see [`Kind::Heads`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) heads: Option<Heads<'a>>,
    /// The budgets' balances; see [`Kind::Balances`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) bal: Option<Balances<'a>>,
    /// Further details.
    #[serde(default, borrow, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) det: BTreeMap<Text<'a>, Text<'a>>,
    /// A text or list was too long for a record and was cut.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) cut: bool,
}

/// The caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who<'a> {
    /// Principal.
    #[serde(borrow)]
    pub(crate) prin: Text<'a>,
    /// Number of the record among the principal's records, from 1, and the index of the principal's
    /// record before: the numbers make an export of one principal provably complete. Absent if the
    /// user has made up more principals than are numbered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pseq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pprev: Option<u64>,
    /// A configured principal, not derived from the process.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) mapped: bool,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) team: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) proj: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Text<'a>>,
    /// Cost centre.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) cc: Option<Text<'a>>,
    /// Customer.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) cust: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) feat: Option<Text<'a>>,
    /// Session.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) sess: Option<Text<'a>>,
    /// Values claimed by the client, each with the source.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) said: Vec<Text<'a>>,
    /// The caller's chain of grants, from the caller's own grant to the root.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) chain: Vec<Text<'a>>,
    /// The accountable human: `h:` and a keyed digest (HMAC-SHA-256).
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) human: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// Start of the process, in nanoseconds since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start: Option<u64>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) exe: Option<Text<'a>>,
    /// Number of the user, if the name is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) ctr: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) ns: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) cg: Option<Text<'a>>,
}

/// The request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct What<'a> {
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) op: Option<Text<'a>>,
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Text<'a>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) prov: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<Text<'a>>,
    /// Name or address of the server.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<Text<'a>>,
    /// Part read at the time of the record: `full`, `partial`, `metadata`.
    #[serde(borrow)]
    pub(crate) conf: Text<'a>,
    /// Mechanism of the hold: `lsm`, `egress_hold`, `connect`, `none`.
    #[serde(borrow)]
    pub(crate) mechanism: Text<'a>,
}

/// Inputs of the decision, beside caller and request.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inputs<'a> {
    /// Most input tokens of the request.
    pub(crate) tok_in: u64,
    /// Most output tokens the request can cause.
    pub(crate) tok_out: u64,
    /// Highest cost of the request, in nano-USD; absent without a known price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<i64>,
    /// Highest cost in the worst case, if different.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) worst: Option<i64>,
    /// Longest duration, in nanoseconds, if a budget counts time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<i64>,
    /// Bytes of the request.
    pub(crate) bytes: u64,
    /// The request was read to its end.
    pub(crate) whole: bool,
    /// Names of the matching content rules, and of the grants' endpoint rules without a match.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) content: Vec<Text<'a>>,
    /// The approval used.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) appr: Option<Text<'a>>,
    /// Bytes of the request that left before the decision.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left: u64,
    /// A refusal could still keep the request from running.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) stop: bool,
    /// Reason code of an earlier outcome: another refusal on the connection, or the deadline.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Text<'a>>,
    /// The request was refused before its end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) early: bool,
    /// The request asked for a stream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) stream: bool,
    /// 95th percentile of the provider's last latencies, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p95: Option<u64>,
    /// Too many of the last calls missed their latency target.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) slow: bool,
    /// The provider had failed the principal just before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) failed: bool,
    /// The rate limits before the decision.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lim: Vec<Metered<'a>>,
    /// The budgets before the decision.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) had: Vec<Had<'a>>,
}

/// A rate limit: the name, the lead of the theoretical arrival time in nanoseconds, and the number
/// of running requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metered<'a>(#[serde(borrow)] pub(crate) Text<'a>, pub(crate) u64, pub(crate) u32);

/// A budget before the decision: the name, the amount of the period, and the remaining amount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Had<'a>(#[serde(borrow)] pub(crate) Text<'a>, pub(crate) i64, pub(crate) i64);

/// A part of the text sent to a model, encrypted with the key of a day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed<'a> {
    /// Day of the key, since 1970.
    pub(crate) day: u64,
    /// Number of the part, from 0, and number of parts.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    /// Bytes of text left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left: u64,
    /// Base64.
    #[serde(borrow)]
    pub(crate) data: Text<'a>,
}

/// A decision, with the grounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decided<'a> {
    /// `ALLOWED`, `BLOCKED`, `WARNING`, `RATE_LIMITED`.
    #[serde(borrow)]
    pub(crate) result: Text<'a>,
    /// The reason, unless allowed.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Text<'a>>,
    /// The deciding policy, grant, budget or limit.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<Text<'a>>,
    /// Every matching policy.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) matched: Vec<Text<'a>>,
    /// `sha256:` of the policies in force.
    #[serde(borrow)]
    pub(crate) bundle: Text<'a>,
    /// Number of policy loads since the start.
    pub(crate) epoch: u64,
    /// The refusal kept the request from leaving.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) prevented: bool,
}

/// Number of units counted by a record, with the times of the first and the last decision, in
/// nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) n: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// An account of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accounted<'a> {
    /// The budget; absent if none applies.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) period: Option<Text<'a>>,
    /// `nUSD`, `tokens` or `ns`.
    #[serde(borrow)]
    pub(crate) unit: Text<'a>,
    /// Reserved amount.
    pub(crate) res: i64,
    /// Used amount; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) act: Option<i64>,
    /// Amount left in the budget after the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rem: Option<i64>,
    /// The actual amount never became known: the reserved amount is charged.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) inc: bool,
    /// `sha256:` of the price table.
    #[serde(borrow)]
    pub(crate) price: Text<'a>,
    /// Number of the ledger's change.
    pub(crate) led: u64,
}

/// A part of the list of balances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Balances<'a> {
    /// Number of the part, from 0, and number of parts.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    /// Number of the ledger's last change.
    pub(crate) led: u64,
    #[serde(borrow)]
    pub(crate) list: Vec<Standing<'a>>,
}

/// A budget at a start or a stop: name, period, unit, and the amounts allocated, reserved and used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing<'a>(
    #[serde(borrow)] pub(crate) Text<'a>,
    #[serde(borrow)] pub(crate) Text<'a>,
    #[serde(borrow)] pub(crate) Text<'a>,
    pub(crate) i64,
    pub(crate) i64,
    pub(crate) i64,
);

/// A part of the list of principals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heads<'a> {
    /// Number of the part, from 0, and number of parts.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    #[serde(borrow)]
    pub(crate) list: Vec<Head<'a>>,
}

/// The newest record of a principal: name, number, index; and the user, if the principal is not
/// configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head<'a>(
    #[serde(borrow)] pub(crate) Text<'a>,
    pub(crate) u64,
    pub(crate) u64,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")] pub(crate) Option<Text<'a>>,
);

/// Reads `sha256:` and 64 hexadecimal digits.
pub(crate) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").filter(|it| it.len() == 64 && it.is_ascii())?;
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
