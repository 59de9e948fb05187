//! Human approvals: single-use, expiring, and bound to a request.
//!
//! An approval is for a single request: the blocked request, recognized by a keyed digest of the
//! whole content. The exception is an approval of a request of a kind, identified by client,
//! provider and model without the content.

use serde::{Deserialize, Serialize};

/// Maximum validity of an approval, in nanoseconds: 15 minutes.
pub const LONGEST_NS: u64 = 15 * 60 * 1_000_000_000;

/// An approval of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Identifier, unique.
    pub id: String,
    /// Request to approve, from the blocked unit's `genops.approval.request`: a keyed digest of the
    /// request; after taking an approval of [`Scope::Kind`], the digest of the request's kind.
    pub request: String,
    /// Whether the approval is for the blocked request, or for a request of the same kind.
    #[serde(default)]
    pub scope: Scope,
    /// Name of the approving human.
    pub approver: String,
    /// Maximum cost of the request, in nano-USD.
    pub ceiling_nano_usd: i64,
    /// Start of the approval, in nanoseconds since 1970.
    pub given_unix_ns: u64,
    /// End of the approval, in nanoseconds since 1970; at most [`LONGEST_NS`] after the start.
    pub expires_unix_ns: u64,
}

/// Scope of an approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The blocked request only.
    #[default]
    Request,
    /// A request of the same principal, chain, operation, provider and model, with any content.
    Kind,
}

impl Scope {
    /// Returns the scope as named in evidence.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Kind => "kind",
        }
    }
}

/// A blocked request waiting for a human's approval.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    /// People who may not approve: the people of the principal's chain, and the asking user.
    pub(crate) involved: Vec<String>,
    /// Digest of the request's kind.
    pub(crate) kind: String,
    /// Whether the whole request was read, so that the request can be recognized.
    pub(crate) is_known: bool,
    /// Maximum cost of the request, in nano-USD; absent if no price is known.
    pub(crate) worst_nano_usd: Option<i64>,
}

impl Waiting {
    /// Returns whether a written name belongs to a person involved. The comparison ignores case and
    /// blanks, and finds names inside a longer text, for example `Alice <alice@example.com>`.
    pub(crate) fn involves(&self, name: &str) -> bool {
        let is_end = |it: char| "<>()[]\"',;:".contains(it);
        let words = name.split(|it: char| it.is_whitespace() || is_end(it));
        // Names may contain blanks.
        let parts: Vec<String> = name.split(is_end).chain(words).map(alike).collect();
        let whole = alike(name);
        let mut people = self.involved.iter().map(|it| alike(it));
        people.any(|it| !it.is_empty() && (it == whole || parts.contains(&it)))
    }
}

/// Normalizes a name for comparison.
pub(crate) fn alike(name: &str) -> String {
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
            "Joe Public <joe@example.net>",
            "ops: joe public, on call",
        ] {
            assert!(waiting.involves(own), "{own}");
        }
        for other in ["dan@example.org", "dana@example.org.uk", "jo public", "eve"] {
            assert!(!waiting.involves(other), "{other}");
        }
    }
}
