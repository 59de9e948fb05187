//! The accounts: what was reserved, spent and overrun in each period of each budget.
//!
//! Integers only. Every change is a [`Change`] that is applied and handed out at once, so that
//! whoever writes the changes down can rebuild the same ledger: [`Ledger::restore`] reads a
//! snapshot and the changes after it. Reserved and spent together never exceed a limit; what was
//! used beyond it (an observed call, an estimate that fell short) is kept apart as overrun.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::awu::AwuId;
use crate::config::Unit;

/// One period of one budget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    /// The budget's name.
    #[serde(rename = "b")]
    pub budget: String,
    /// First second of the period, since 1970 UTC.
    #[serde(rename = "s")]
    pub start_s: i64,
}

/// What happened to one period of one budget. Amounts are nano-USD or tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// First second after the period.
    pub end_s: i64,
    /// Name of the period.
    pub period: String,
    /// What the amounts are.
    pub unit: Unit,
    /// The limit that held last, adjustments not included.
    pub limit: i64,
    /// Sum of the adjustments made by hand.
    pub adjusted: i64,
    /// Held for calls that have not ended.
    pub reserved: i64,
    /// Used by calls that ended, as far as it was reserved.
    pub spent: i64,
    /// Used beyond what was reserved.
    pub overrun: i64,
}

impl Account {
    /// The limit with adjustments.
    #[must_use]
    pub fn allocated(&self) -> i64 {
        self.limit.saturating_add(self.adjusted).max(0)
    }

    /// What can still be reserved.
    #[must_use]
    pub fn remaining(&self) -> i64 {
        let used = self.reserved.saturating_add(self.consumed());
        self.allocated().saturating_sub(used).max(0)
    }

    /// What was used.
    #[must_use]
    pub fn consumed(&self) -> i64 {
        self.spent.saturating_add(self.overrun)
    }
}

/// What one call wants of one budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Which account.
    pub key: AccountKey,
    /// First second after the period.
    pub end_s: i64,
    /// Name of the period.
    pub period: String,
    /// What `limit` and `amount` are.
    pub unit: Unit,
    /// The budget's limit.
    pub limit: i64,
    /// How much.
    pub amount: i64,
}

/// What one call holds of one budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Of which account.
    #[serde(flatten)]
    pub key: AccountKey,
    /// Reserved.
    #[serde(rename = "c")]
    pub covered: i64,
    /// Wanted and not there: only for calls that could not be stopped.
    #[serde(rename = "x", default, skip_serializing_if = "is_zero")]
    pub beyond: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(amount: &i64) -> bool {
    *amount == 0
}

/// Why a reservation was refused; nothing was reserved anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("budget `{budget}` has {remaining} left of {allocated}, {wanted} wanted")]
pub struct Shortfall {
    /// Which budget.
    pub budget: String,
    /// What it has left.
    pub remaining: i64,
    /// What it had at first.
    pub allocated: i64,
    /// What was wanted.
    pub wanted: i64,
}

/// One change of the ledger, in the order of [`Entry::sequence`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Dense, from 1.
    #[serde(rename = "q")]
    pub sequence: u64,
    /// When, in nanoseconds since 1970.
    #[serde(rename = "t")]
    pub unix_ns: u64,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "snake_case")]
pub enum Change {
    /// A period began for a budget, or its limit changed.
    Opened {
        /// Which account.
        #[serde(flatten)]
        key: AccountKey,
        /// First second after the period.
        end_s: i64,
        /// Name of the period.
        period: String,
        /// What the limit is.
        unit: Unit,
        /// The limit.
        limit: i64,
    },
    /// Amounts were set aside for a call.
    Reserved {
        /// The call.
        awu: AwuId,
        /// Of which accounts, how much.
        shares: Vec<Share>,
    },
    /// The call ended. `actual` per share, in its order; `None`: not known, all of it is charged.
    Settled {
        /// The call.
        awu: AwuId,
        /// What was used.
        actual: Option<Vec<i64>>,
    },
    /// The call never ran.
    Released {
        /// The call.
        awu: AwuId,
    },
    /// Somebody changed a period's allocation by hand.
    Adjusted {
        /// Which account.
        #[serde(flatten)]
        key: AccountKey,
        /// By how much.
        delta: i64,
        /// Who did it.
        by: String,
        /// Why.
        why: String,
    },
    /// A human approved one request.
    Approved(crate::approval::Approval),
    /// The approval was used.
    ApprovalUsed {
        /// Which.
        id: String,
    },
}

/// A ledger file that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The file does not begin with a whole snapshot.
    #[error("the ledger does not begin with a whole snapshot")]
    NoSnapshot,
    /// A line in the middle is damaged.
    #[error("line {line} of the ledger is damaged, and whole lines follow it")]
    Damaged {
        /// Which line, from 1.
        line: usize,
    },
    /// A line does not follow the one before.
    #[error("line {line} of the ledger has number {found}, {expected} was due")]
    OutOfOrder {
        /// Which line, from 1.
        line: usize,
        /// The number that was due.
        expected: u64,
        /// The number found.
        found: u64,
    },
}

/// What a restore found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The ledger.
    pub ledger: Ledger,
    /// Bytes at the end that were not a whole line: a write that a crash interrupted. Cut them
    /// off before appending.
    pub torn_bytes: usize,
}

/// The accounts of every budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    sequence: u64,
    accounts: BTreeMap<AccountKey, Account>,
    open: BTreeMap<AwuId, Vec<Share>>,
    approvals: BTreeMap<String, crate::approval::Approval>,
    /// Nothing of before is known: see [`Ledger::unknown`].
    distrusted: bool,
}

/// A [`Ledger`] as its snapshot writes it.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u32,
    sequence: u64,
    distrusted: bool,
    accounts: Vec<(AccountKey, Account)>,
    open: Vec<(AwuId, Vec<Share>)>,
    approvals: Vec<crate::approval::Approval>,
}

impl Ledger {
    /// An empty ledger: nothing was ever used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A ledger of which the past is lost: every period that begins is charged in full at once,
    /// until somebody adjusts it. What to run on after a [`RestoreError`] in enforce mode.
    #[must_use]
    pub fn unknown() -> Self {
        Self { distrusted: true, ..Self::default() }
    }

    /// Number of the last change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Every account, by budget and period.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountKey, &Account)> {
        self.accounts.iter()
    }

    /// One account.
    #[must_use]
    pub fn account(&self, key: &AccountKey) -> Option<&Account> {
        self.accounts.get(key)
    }

    /// The calls that hold a reservation.
    pub fn open(&self) -> impl Iterator<Item = (AwuId, &[Share])> {
        self.open.iter().map(|(awu, shares)| (*awu, shares.as_slice()))
    }

    /// The approvals that were given and not used.
    pub fn approvals(&self) -> impl Iterator<Item = &crate::approval::Approval> {
        self.approvals.values()
    }

    /// The whole ledger as the first line of a file; the lines of later entries follow it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let Self { sequence, accounts, open, approvals, distrusted } = self;
        let pairs = accounts.iter().map(|(key, account)| (key.clone(), account.clone()));
        let snapshot = Snapshot {
            version: 1,
            sequence: *sequence,
            distrusted: *distrusted,
            accounts: pairs.collect(),
            open: open.iter().map(|(awu, shares)| (*awu, shares.clone())).collect(),
            approvals: approvals.values().cloned().collect(),
        };
        line(&snapshot)
    }

    /// Reads a file: a snapshot's line and the lines of the entries since.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] where anything but the last line is damaged.
    pub fn restore(bytes: &[u8]) -> Result<Restored, RestoreError> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().and_then(read_line::<Snapshot>).ok_or(RestoreError::NoSnapshot)?;
        let Snapshot { version: _, sequence, distrusted, accounts, open, approvals } = first;
        let approvals = approvals.into_iter().map(|it| (it.id.clone(), it)).collect();
        let (accounts, open) = (accounts.into_iter().collect(), open.into_iter().collect());
        let mut ledger = Self { sequence, accounts, open, approvals, distrusted };
        let mut lines = lines.enumerate().peekable();
        while let Some((index, bytes)) = lines.next() {
            let line = index + 2;
            let Some(entry) = read_line::<Entry>(bytes) else {
                if lines.peek().is_some() {
                    return Err(RestoreError::Damaged { line });
                }
                return Ok(Restored { ledger, torn_bytes: bytes.len() });
            };
            let expected = ledger.sequence + 1;
            if entry.sequence != expected {
                return Err(RestoreError::OutOfOrder { line, expected, found: entry.sequence });
            }
            ledger.apply(&entry);
        }
        Ok(Restored { ledger, torn_bytes: 0 })
    }

    /// Does what an entry says.
    fn apply(&mut self, entry: &Entry) {
        self.sequence = entry.sequence;
    }
}

impl Entry {
    /// The entry as a line of the ledger's file, to be appended.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        line(self)
    }
}

/// A value as a line: eight hexadecimal digits of its CRC-32C, a space, JSON, a line feed.
fn line(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("plain structs with string keys");
    let mut line = format!("{:08x} ", crc32c(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    line
}

fn read_line<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let body = line.strip_suffix(b"\n")?;
    let (crc, json) = (body.get(..8)?, body.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if crc != crc32c(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// CRC-32C (Castagnoli), as RFC 3720 appendix B.4 gives its polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}
