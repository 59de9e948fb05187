//! Human approvals: single-use, expiring, and bound to what was asked for.

use serde::{Deserialize, Serialize};

/// Longest time an approval may be valid, in nanoseconds: 15 minutes.
pub const LONGEST_NS: u64 = 15 * 60 * 1_000_000_000;

/// One approval of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its name, unique.
    pub id: String,
    /// What it is for, as the blocked unit's `genops.approval.request` says: a hash over principal,
    /// chain, operation, provider and model.
    pub request: String,
    /// The human who gave it.
    pub approver: String,
    /// Most the request may cost, in nano-USD.
    pub ceiling_nano_usd: i64,
    /// When it was given, in nanoseconds since 1970.
    pub given_unix_ns: u64,
    /// When it ends, in nanoseconds since 1970; at most [`LONGEST_NS`] later.
    pub expires_unix_ns: u64,
}
