//! The evidence record: compact JSON with a fixed order of keys, integers and strings only.
//!
//! Written once; whoever verifies hashes the stored bytes, so nothing is ever made canonical again.
//! Amounts are nano-USD or tokens. No text of a request or response is in it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Version of this format.
pub(crate) const VERSION: u8 = 1;

/// What sort of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A unit is about to be refused, up to a position; its decision follows when the effect is known.
    Intent,
    /// Bytes left of a unit after its decision had said that it was stopped.
    Breach,
    /// A unit was decided.
    Decision,
    /// Amounts were set aside before it ran.
    Reservation,
    /// A unit that ran ended; the accounts were settled.
    Reconciliation,
    /// A unit never ran; what was set aside is free again.
    Release,
    /// A set of policies came into force.
    PolicyLoaded,
    /// Others were refused; those before stay in force.
    PolicyRefused,
    /// A price table came into force.
    PriceLoaded,
    /// A principal is now observed or enforced.
    ModeChange,
    /// Something is missing from here on back: bytes, kernel events or records.
    Gap,
    /// An authority grant came into force.
    Grant,
    /// An authority grant was withdrawn.
    Revoke,
    /// A human approved a request.
    Approval,
    /// Somebody set a rule aside by hand.
    Override,
    /// The agent started; says how the log had ended before.
    AgentStart,
    /// The agent stopped in good order.
    AgentStop,
    /// The log signs with another key from here on.
    KeyRotated,
    /// How a call can be stopped here, and why not otherwise.
    Capability,
    /// A witness cosigned a checkpoint.
    Witnessed,
    /// No witness could be reached.
    WitnessUnreachable,
    /// Entries below a record are no longer kept.
    Retention,
    /// What was sent to a model, encrypted.
    Content,
    /// The keys of some days were destroyed.
    Forgotten,
    /// Copies could not be shipped, or could again, or were refused.
    Shipping,
    /// The newest record of each principal: where a reader may begin.
    Heads,
    /// What each budget had at a start or a stop.
    Balances,
}

impl Kind {
    /// The kind as records spell it.
    pub(crate) fn as_str(self) -> &'static str {
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

/// A text, borrowed from the record where it has no escapes.
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

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry<'a> {
    /// [`VERSION`].
    pub(crate) v: u8,
    /// Its index in the log.
    pub(crate) seq: u64,
    /// Verdicts and events that the kernel had counted, and those that were lost on the way; absent
    /// where the kernel was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kseq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drops: Option<u64>,
    /// Nanoseconds since 1970.
    pub(crate) t: u64,
    /// Nanoseconds of the clock that never steps.
    pub(crate) mono: u64,
    /// Which boot of the host.
    #[serde(borrow)]
    pub(crate) boot: Text<'a>,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    /// The unit: trace and span id.
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
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bud: Vec<Accounted<'a>>,
    /// Keyed digest of what was sent to the model: `hmac:`, the day of the key, the digest.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) dig: Option<Text<'a>>,
    /// What was sent to the model; see [`Kind::Content`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<Sealed<'a>>,
    /// Heads of the principals; see [`Kind::Heads`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) heads: Option<Heads<'a>>,
    /// What budgets had; see [`Kind::Balances`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) bal: Option<Balances<'a>>,
    /// Anything else.
    #[serde(default, borrow, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) det: BTreeMap<Text<'a>, Text<'a>>,
    /// A text or list was too long for a record and was cut.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) cut: bool,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who<'a> {
    /// Principal.
    #[serde(borrow)]
    pub(crate) prin: Text<'a>,
    /// Number of this record among those of the principal, from 1, and the index of the one before
    /// it: what makes an export of one principal provably complete. Absent where its user has made up
    /// more principals than are numbered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pseq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pprev: Option<u64>,
    /// A configured principal, not one derived from the process.
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
    /// Which of the three are the client's word, and from where.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) said: Vec<Text<'a>>,
    /// The grants it acted under, from its own to the root.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) chain: Vec<Text<'a>>,
    /// The human who answers for it: `h:` and a keyed digest (HMAC-SHA-256).
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) human: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// When the process started, in nanoseconds since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start: Option<u64>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) exe: Option<Text<'a>>,
    /// Number of the user, where its name is not known.
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

/// What was asked for.
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
    /// How much was read when this was written: `full`, `partial`, `metadata`.
    #[serde(borrow)]
    pub(crate) conf: Text<'a>,
    /// How the request was held: `lsm`, `egress_hold`, `connect`, `none`.
    #[serde(borrow)]
    pub(crate) mechanism: Text<'a>,
}

/// What the decision was made from, beside who and what.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inputs<'a> {
    /// Most input tokens the request can be.
    pub(crate) tok_in: u64,
    /// Most output tokens it can cause.
    pub(crate) tok_out: u64,
    /// Most it can cost, in nano-USD; absent where no price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<i64>,
    /// The same at its worst, where that is another amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) worst: Option<i64>,
    /// Bytes of the request.
    pub(crate) bytes: u64,
    /// The request was read to its end.
    pub(crate) whole: bool,
    /// Names of the content rules that matched.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) content: Vec<Text<'a>>,
    /// The approval that was used.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) appr: Option<Text<'a>>,
    /// Bytes of the request that had left before the decision.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left: u64,
    /// A refusal could still keep it from running.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) stop: bool,
    /// The reason that had settled the matter before.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Text<'a>>,
    /// It was refused before it had ended.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) early: bool,
    /// It asked for a stream.
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
    /// What the rate limits had counted.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lim: Vec<Metered<'a>>,
    /// What the budgets had.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) had: Vec<Had<'a>>,
}

/// A rate limit: its name, how far its theoretical arrival time lay ahead in nanoseconds, how many
/// requests ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metered<'a>(#[serde(borrow)] pub(crate) Text<'a>, pub(crate) u64, pub(crate) u32);

/// A budget before the decision: its name, what its period was given, what was left of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Had<'a>(#[serde(borrow)] pub(crate) Text<'a>, pub(crate) i64, pub(crate) i64);

/// A part of what was sent to a model, encrypted with the key of a day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed<'a> {
    /// Day since 1970 whose key it is.
    pub(crate) day: u64,
    /// Which part, from 0, of how many.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    /// Bytes of the texts that were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left: u64,
    /// Base64.
    #[serde(borrow)]
    pub(crate) data: Text<'a>,
}

/// A decision, and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decided<'a> {
    /// `ALLOWED`, `BLOCKED`, `WARNING`, `RATE_LIMITED`.
    #[serde(borrow)]
    pub(crate) result: Text<'a>,
    /// The reason, unless allowed.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Text<'a>>,
    /// The policy, grant, budget or limit that decided.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<Text<'a>>,
    /// Every policy that matched.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub(crate) matched: Vec<Text<'a>>,
    /// `sha256:` of the policies in force.
    #[serde(borrow)]
    pub(crate) bundle: Text<'a>,
    /// How often policies were loaded since the start.
    pub(crate) epoch: u64,
    /// The refusal kept the request from leaving.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) prevented: bool,
}

/// One account of one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accounted<'a> {
    /// The budget; absent where none applies.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Text<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) period: Option<Text<'a>>,
    /// `nUSD` or `tokens`.
    #[serde(borrow)]
    pub(crate) unit: Text<'a>,
    /// Set aside before.
    pub(crate) res: i64,
    /// Used; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) act: Option<i64>,
    /// What the budget has left after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rem: Option<i64>,
    /// The actual never became known: what was reserved is charged.
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
    /// Which part, from 0, of how many.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    /// Number of the ledger's last change.
    pub(crate) led: u64,
    #[serde(borrow)]
    pub(crate) list: Vec<Standing<'a>>,
}

/// A budget at a start or a stop: its name, its period, the unit, what it was given, what is set aside,
/// what was used.
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
    /// Which part, from 0, of how many.
    pub(crate) part: u64,
    pub(crate) parts: u64,
    #[serde(borrow)]
    pub(crate) list: Vec<Head<'a>>,
}

/// The newest record of a principal: its name, its number, its index; and whose it is, where no
/// configuration names it.
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
