//! Human approvals: single-use, expiring, and bound to what was asked for.
//!
//! An approval is for one request: the very one that was blocked, known by a keyed digest of all that it says. The
//! exception is an approval of one request of a kind, which says no more than who asks whom for which model.

use serde::{Deserialize, Serialize};

/// Longest time an approval may be valid, in nanoseconds: 15 minutes.
pub const LONGEST_NS: u64 = 15 * 60 * 1_000_000_000;

/// One approval of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its name, unique.
    pub id: String,
    /// What it is for, as the blocked unit's `genops.approval.request` says: a keyed digest of the request; of its
    /// kind, once an approval of a [`Scope::Kind`] was taken.
    pub request: String,
    /// Whether it is for that request, or for one of its kind.
    #[serde(default)]
    pub scope: Scope,
    /// The human who gave it.
    pub approver: String,
    /// Most the request may cost, in nano-USD.
    pub ceiling_nano_usd: i64,
    /// When it was given, in nanoseconds since 1970.
    pub given_unix_ns: u64,
    /// When it ends, in nanoseconds since 1970; at most [`LONGEST_NS`] later.
    pub expires_unix_ns: u64,
}

/// What an approval is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The very request that was blocked.
    #[default]
    Request,
    /// One request of the same principal, chain, operation, provider and model, whatever it says.
    Kind,
}

impl Scope {
    /// As evidence names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Kind => "kind",
        }
    }
}

/// A blocked request that a human may approve.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    /// People who may not: those of its chain, and whoever asks.
    pub(crate) involved: Vec<String>,
    /// The digest of its kind.
    pub(crate) kind: String,
    /// All of it was read, so that it can be known again.
    pub(crate) is_known: bool,
    /// Most that it may cost, in nano-USD; none where no price is known.
    pub(crate) worst_nano_usd: Option<i64>,
}

impl Waiting {
    /// Whether a name, as somebody has written it, is that of one of the people involved: without regard to case and
    /// blanks, also within a longer text such as `Alice <alice@example.com>`.
    pub(crate) fn involves(&self, name: &str) -> bool {
        let is_part = |it: char| it.is_whitespace() || "<>()[]\"',;:".contains(it);
        let parts: Vec<String> = name.split(is_part).map(alike).collect();
        let whole = alike(name);
        let mut people = self.involved.iter().map(|it| alike(it));
        people.any(|it| !it.is_empty() && (it == whole || parts.contains(&it)))
    }
}

/// A name as it is compared.
fn alike(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_the_same_however_the_name_is_written() {
        let involved = vec!["Dana@Example.org".to_owned(), "Joe  Public".to_owned()];
        let waiting = Waiting { involved, ..Waiting::default() };
        for own in [
            "dana@example.org",
            " DANA@EXAMPLE.ORG\t",
            "Dana <dana@example.org>",
            "mailto:dana@example.org",
            "joe public",
        ] {
            assert!(waiting.involves(own), "{own}");
        }
        for other in ["dan@example.org", "dana@example.org.uk", "jo public", "eve"] {
            assert!(!waiting.involves(other), "{other}");
        }
    }
}
