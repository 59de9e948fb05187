//! The accounts: amounts reserved, spent and overrun in each period of each budget.
//!
//! Integers only. Every change is a [`Change`], applied and handed out at once, so that the stored
//! changes rebuild the same ledger: [`Ledger::restore`] reads a snapshot and the changes after the
//! snapshot. Reserved and spent together never exceed a limit; usage beyond the limit (an observed
//! call, a low estimate) is kept apart as overrun. A budget with a changed unit gets a new account,
//! because amounts of different units cannot be converted. The previous account is kept unchanged,
//! for calls still drawing on the account, and for a change back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::approval::Approval;
use crate::awu::AwuId;
use crate::config::Unit;
use crate::time::Window;

/// Key of the account of a budget in a period.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    /// Name of the budget.
    #[serde(rename = "b")]
    pub budget: String,
    /// Customer, feature or session, if the budget has a limit for each.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// First second of the period, since 1970 UTC.
    #[serde(rename = "s")]
    pub start_s: i64,
    /// Unit of the account. Absent in files of agents with a common account for all units; see
    /// [`Ledger::restore`].
    #[serde(rename = "u", default, skip_serializing_if = "is_usd")]
    pub unit: Unit,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_usd(unit: &Unit) -> bool {
    *unit == Unit::Usd
}

impl AccountKey {
    /// Returns the name of the account: `BUDGET`, or `BUDGET[PART]`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.part {
            Some(part) => format!("{}[{part}]", self.budget),
            None => self.budget.clone(),
        }
    }
}

/// Account of a budget in a period. Amounts are nano-USD, tokens or nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// First second after the period.
    pub end_s: i64,
    /// Name of the period.
    pub period: String,
    /// Unit of the amounts.
    pub unit: Unit,
    /// Last limit in force, without adjustments.
    pub limit: i64,
    /// Sum of manual adjustments.
    pub adjusted: i64,
    /// Reserved for calls that have not ended.
    pub reserved: i64,
    /// Used by ended calls, up to the reservations.
    pub spent: i64,
    /// Used beyond the reservations.
    pub overrun: i64,
}

impl Account {
    /// Returns the limit with adjustments.
    #[must_use]
    pub fn allocated(&self) -> i64 {
        self.limit.saturating_add(self.adjusted).max(0)
    }

    /// Returns the amount that can still be reserved.
    #[must_use]
    pub fn remaining(&self) -> i64 {
        let used = self.reserved.saturating_add(self.consumed());
        self.allocated().saturating_sub(used).max(0)
    }

    /// Returns the amount used.
    #[must_use]
    pub fn consumed(&self) -> i64 {
        self.spent.saturating_add(self.overrun)
    }
}

/// Amount requested by a call from a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Account.
    pub key: AccountKey,
    /// First second after the period.
    pub end_s: i64,
    /// Name of the period.
    pub period: String,
    /// Unit of `limit` and `amount`.
    pub unit: Unit,
    /// Limit of the budget.
    pub limit: i64,
    /// Amount requested.
    pub amount: i64,
}

/// Amount held by a call in a budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Account.
    #[serde(flatten)]
    pub key: AccountKey,
    /// Amount reserved.
    #[serde(rename = "c")]
    pub covered: i64,
    /// Amount requested beyond the remaining amount: only for calls that could not be stopped.
    #[serde(rename = "x", default, skip_serializing_if = "is_zero")]
    pub beyond: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(amount: &i64) -> bool {
    *amount == 0
}

/// Reason for refusing a reservation; nothing was reserved in any account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("budget `{budget}` has {remaining} left of {allocated}, {wanted} wanted")]
pub struct Shortfall {
    /// Name of the budget.
    pub budget: String,
    /// Amount left.
    pub remaining: i64,
    /// Amount allocated.
    pub allocated: i64,
    /// Amount requested.
    pub wanted: i64,
}

/// One change of the ledger, in the order of [`Entry::sequence`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Sequence number, dense from 1.
    #[serde(rename = "q")]
    pub sequence: u64,
    /// Time, in nanoseconds since 1970.
    #[serde(rename = "t")]
    pub unix_ns: u64,
    /// Change.
    #[serde(flatten)]
    pub change: Change,
}

/// Kind of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "snake_case")]
pub enum Change {
    /// A period of a budget began, or the limit changed.
    Opened {
        /// Account.
        #[serde(flatten)]
        key: AccountKey,
        /// First second after the period.
        end_s: i64,
        /// Name of the period.
        period: String,
        /// Unit of the limit.
        unit: Unit,
        /// The limit.
        limit: i64,
    },
    /// Amounts were reserved for a call.
    Reserved {
        /// The call.
        awu: AwuId,
        /// Reserved amounts by account.
        shares: Vec<Share>,
    },
    /// The call ended. `actual` has a value for each share, in order; `None`: not known, the whole
    /// reservation is charged.
    Settled {
        /// The call.
        awu: AwuId,
        /// Amounts used.
        actual: Option<Vec<i64>>,
    },
    /// The call never ran.
    Released {
        /// The call.
        awu: AwuId,
    },
    /// A human changed the allocation of a period.
    Adjusted {
        /// Account.
        #[serde(flatten)]
        key: AccountKey,
        /// Amount of the change.
        delta: i64,
        /// Author of the change.
        by: String,
        /// Reason for the change.
        why: String,
    },
    /// A human approved one request.
    Approved(Approval),
    /// An approval was used.
    ApprovalUsed {
        /// Identifier of the approval.
        id: String,
    },
}

/// A ledger file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The file does not begin with a whole snapshot.
    #[error("the ledger does not begin with a whole snapshot")]
    NoSnapshot,
    /// A line in the middle is damaged.
    #[error("line {line} of the ledger is damaged, and whole lines follow it")]
    Damaged {
        /// Line number, from 1.
        line: usize,
    },
    /// A line does not follow the previous line.
    #[error("line {line} of the ledger has number {found}, {expected} was due")]
    OutOfOrder {
        /// Line number, from 1.
        line: usize,
        /// Expected sequence number.
        expected: u64,
        /// Sequence number found.
        found: u64,
    },
}

/// A call closed by the ledger, with the settlement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Sequence number of the closing change.
    #[serde(rename = "q")]
    pub sequence: u64,
    /// The call.
    pub awu: AwuId,
    /// Amounts reserved for the call.
    pub shares: Vec<Share>,
    /// Settlement of a call that ran: the amount used of each share; `Some(None)`: not known.
    /// `None`: the reservation was released.
    pub settled: Option<Option<Vec<i64>>>,
}

/// Result of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The ledger.
    pub ledger: Ledger,
    /// Calls closed since the snapshot, and calls listed in the snapshot as closed without a record
    /// in evidence.
    pub closed: Vec<Closed>,
    /// Bytes at the end without a whole line: a write interrupted by a crash. Cut off the bytes
    /// before appending.
    pub torn_bytes: usize,
}

/// The accounts of every budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    sequence: u64,
    accounts: BTreeMap<AccountKey, Account>,
    open: BTreeMap<AwuId, Vec<Share>>,
    approvals: BTreeMap<String, Approval>,
    /// Usage before the moment is not known: see [`Ledger::unknown`].
    lost_unix_ns: Option<u64>,
}

/// A [`Ledger`] in the form of the snapshot.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u32,
    sequence: u64,
    lost_unix_ns: Option<u64>,
    accounts: Vec<(AccountKey, Account)>,
    open: Vec<(AwuId, Vec<Share>)>,
    approvals: Vec<Approval>,
    /// Closed calls that may lack a record in evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    closed: Vec<Closed>,
}

impl Ledger {
    /// Creates an empty ledger without any usage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a ledger after the loss of everything before `unix_ns`: periods begun by then count
    /// as used up, until the end of the period or a manual adjustment. Use the ledger after a
    /// [`RestoreError`]: the recorded spending is never less than the real spending. Sequence
    /// numbers continue from `last`, the last known change.
    #[must_use]
    pub fn unknown(unix_ns: u64, last: u64) -> Self {
        Self { sequence: last, lost_unix_ns: Some(unix_ns), ..Self::default() }
    }

    /// Returns the sequence number of the last change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns every account, by budget and period.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountKey, &Account)> {
        self.accounts.iter()
    }

    /// Returns an account.
    #[must_use]
    pub fn account(&self, key: &AccountKey) -> Option<&Account> {
        self.accounts.get(key)
    }

    /// Returns the accounts of a budget, for every part, period and unit.
    pub(crate) fn of_budget(&self, budget: &str) -> impl Iterator<Item = (&AccountKey, &Account)> {
        let (start_s, unit) = (i64::MIN, Unit::Usd);
        let first = AccountKey { budget: budget.to_owned(), part: None, start_s, unit };
        let budget = budget.to_owned();
        self.accounts.range(first..).take_while(move |(it, _)| it.budget == budget)
    }

    /// Returns the number of parts with an account in a period of a budget.
    pub(crate) fn parts(&self, budget: &str, unit: Unit, start_s: i64) -> usize {
        let of_period = |it: &AccountKey| it.unit == unit && it.start_s == start_s;
        self.of_budget(budget).filter(|(it, _)| it.part.is_some() && of_period(it)).count()
    }

    /// Returns the calls holding a reservation.
    pub fn open(&self) -> impl Iterator<Item = (AwuId, &[Share])> {
        self.open.iter().map(|(awu, shares)| (*awu, shares.as_slice()))
    }

    /// Returns the amounts reserved for a call; empty if the call holds no reservation.
    #[must_use]
    pub fn held(&self, awu: AwuId) -> &[Share] {
        self.open.get(&awu).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the unused approvals.
    pub fn approvals(&self) -> impl Iterator<Item = &Approval> {
        self.approvals.values()
    }

    /// Encodes the whole ledger as the first line of a file; the lines of later entries follow.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.snapshot_with(&[])
    }

    /// Encodes the whole ledger together with closed calls that may lack a record in evidence.
    #[must_use]
    pub fn snapshot_with(&self, closed: &[Closed]) -> Vec<u8> {
        let Self { sequence, accounts, open, approvals, lost_unix_ns } = self;
        let pairs = accounts.iter().map(|(key, account)| (key.clone(), account.clone()));
        let snapshot = Snapshot {
            version: 1,
            sequence: *sequence,
            lost_unix_ns: *lost_unix_ns,
            accounts: pairs.collect(),
            open: open.iter().map(|(awu, shares)| (*awu, shares.clone())).collect(),
            approvals: approvals.values().cloned().collect(),
            closed: closed.to_vec(),
        };
        line(&snapshot)
    }

    /// Reads a file: a snapshot's line and the lines of the entries since.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] if a line other than the last is damaged.
    pub fn restore(bytes: &[u8]) -> Result<Restored, RestoreError> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().and_then(read_line::<Snapshot>).ok_or(RestoreError::NoSnapshot)?;
        let Snapshot { version: _, sequence, lost_unix_ns, accounts, open, approvals, closed } =
            first;
        let accounts = accounts.into_iter().map(|(mut key, account)| {
            key.unit = account.unit;
            (key, account)
        });
        let approvals = approvals.into_iter().map(|it| (it.id.clone(), it)).collect();
        let (accounts, open) = (accounts.into_iter().collect(), open.into_iter().collect());
        let mut ledger = Self { sequence, accounts, open, approvals, lost_unix_ns };
        let mut open = std::mem::take(&mut ledger.open);
        for shares in open.values_mut() {
            ledger.complete_shares(shares);
        }
        ledger.open = open;
        let mut closed: Vec<Closed> = closed;
        for it in &mut closed {
            ledger.complete_shares(&mut it.shares);
        }
        let mut lines = lines.enumerate().peekable();
        while let Some((index, bytes)) = lines.next() {
            let line = index + 2;
            let Some(mut entry) = read_line::<Entry>(bytes) else {
                if lines.peek().is_some() {
                    return Err(RestoreError::Damaged { line });
                }
                return Ok(Restored { ledger, closed, torn_bytes: bytes.len() });
            };
            let expected = ledger.sequence + 1;
            if entry.sequence != expected {
                return Err(RestoreError::OutOfOrder { line, expected, found: entry.sequence });
            }
            ledger.complete(&mut entry.change);
            closed.extend(ledger.closed_by(&entry));
            ledger.apply(&entry);
        }
        Ok(Restored { ledger, closed, torn_bytes: 0 })
    }

    /// Adds the units missing from a change of an older file.
    fn complete(&self, change: &mut Change) {
        match change {
            Change::Opened { key, unit, .. } => key.unit = *unit,
            Change::Reserved { shares, .. } => self.complete_shares(shares),
            Change::Adjusted { key, .. } => self.complete_key(key),
            _ => {}
        }
    }

    fn complete_shares(&self, shares: &mut [Share]) {
        for share in shares {
            self.complete_key(&mut share.key);
        }
    }

    /// Completes a key without a unit: the key means the account of the same name and period, of
    /// any unit.
    fn complete_key(&self, key: &mut AccountKey) {
        let units = [key.unit, Unit::Tokens, Unit::ComputeSeconds];
        let mut units = units.into_iter();
        let known =
            |unit: &Unit| self.accounts.contains_key(&AccountKey { unit: *unit, ..key.clone() });
        let unit = units.find(known).unwrap_or(key.unit);
        key.unit = unit;
    }

    /// Reserves amounts for a call in every account demanded, or in none. The changes are appended
    /// to `log`.
    ///
    /// # Errors
    ///
    /// [`Shortfall`] with the first account lacking the amount.
    pub fn reserve(
        &mut self,
        unix_ns: u64,
        awu: AwuId,
        demands: &[Demand],
        log: &mut Vec<Entry>,
    ) -> Result<(), Shortfall> {
        for demand in demands {
            self.begin(unix_ns, demand, log);
        }
        for (index, demand) in demands.iter().enumerate() {
            self.suffices(demand, demands.get(..index).unwrap_or_default())?;
        }
        let share = |it: &Demand| Share { key: it.key.clone(), covered: it.amount, beyond: 0 };
        let shares = demands.iter().map(share).collect();
        self.commit(unix_ns, Change::Reserved { awu, shares }, log);
        Ok(())
    }

    /// Reserves amounts for a call that cannot be stopped: missing amounts are recorded as beyond.
    pub fn reserve_unchecked(
        &mut self,
        unix_ns: u64,
        awu: AwuId,
        demands: &[Demand],
        log: &mut Vec<Entry>,
    ) {
        let mut shares: Vec<Share> = Vec::with_capacity(demands.len());
        for demand in demands {
            self.begin(unix_ns, demand, log);
            let taken: i64 =
                shares.iter().filter(|it| it.key == demand.key).map(|it| it.covered).sum();
            let amount = demand.amount.max(0);
            let left = self.accounts.get(&demand.key).map_or(0, Account::remaining);
            let covered = amount.min(left.saturating_sub(taken).max(0));
            shares.push(Share { key: demand.key.clone(), covered, beyond: amount - covered });
        }
        self.commit(unix_ns, Change::Reserved { awu, shares }, log);
    }

    /// Settles an ended call: `actual` has the usage of each share, in order. `None`: not known,
    /// and the whole reservation is charged. A call without a reservation changes nothing.
    pub fn settle(
        &mut self,
        unix_ns: u64,
        awu: AwuId,
        actual: Option<Vec<i64>>,
        log: &mut Vec<Entry>,
    ) {
        if self.open.contains_key(&awu) {
            self.commit(unix_ns, Change::Settled { awu, actual }, log);
        }
    }

    /// Releases the reservation of a call that never ran.
    pub fn release(&mut self, unix_ns: u64, awu: AwuId, log: &mut Vec<Entry>) {
        if self.open.contains_key(&awu) {
            self.commit(unix_ns, Change::Released { awu }, log);
        }
    }

    /// Adjusts an account's allocation manually.
    pub fn adjust(&mut self, unix_ns: u64, at: &Demand, by: &str, why: &str, log: &mut Vec<Entry>) {
        self.begin(unix_ns, at, log);
        let Demand { key, amount: delta, .. } = at.clone();
        let (by, why) = (by.to_owned(), why.to_owned());
        self.commit(unix_ns, Change::Adjusted { key, delta, by, why }, log);
    }

    /// Stores an approval.
    pub fn approve(&mut self, unix_ns: u64, approval: Approval, log: &mut Vec<Entry>) {
        self.commit(unix_ns, Change::Approved(approval), log);
    }

    /// Uses up an approval. Returns false if no approval has the identifier.
    pub fn use_approval(&mut self, unix_ns: u64, id: &str, log: &mut Vec<Entry>) -> bool {
        let known = self.approvals.contains_key(id);
        if known {
            self.commit(unix_ns, Change::ApprovalUsed { id: id.to_owned() }, log);
        }
        known
    }

    /// Returns the account of a demand, existing or as opened by the demand.
    pub(crate) fn standing(&self, demand: &Demand) -> Account {
        let Demand { key, end_s, period, unit, limit, amount: _ } = demand;
        let mut probe = Self { lost_unix_ns: self.lost_unix_ns, ..Self::default() };
        if let Some(account) = self.accounts.get(key) {
            probe.accounts.insert(key.clone(), account.clone());
        }
        probe.open_account(key, *end_s, period, *unit, *limit);
        probe.accounts.remove(key).unwrap_or_default()
    }

    /// Gives the account of a demand the recorded amounts, for repeating a decision.
    pub(crate) fn recall(&mut self, demand: &Demand, allocated: i64, remaining: i64) {
        let Demand { key, end_s, period, unit, limit, amount: _ } = demand;
        self.open_account(key, *end_s, period, *unit, *limit);
        if let Some(account) = self.accounts.get_mut(key) {
            account.adjusted = allocated.saturating_sub(*limit);
            account.spent = allocated.saturating_sub(remaining);
        }
    }

    /// Returns the start of the period of a budget, or of a part, for a window of time. After a
    /// clock step back to before all accounts kept, the oldest period kept is returned, so that no
    /// amount is granted twice.
    #[must_use]
    pub fn place(&self, budget: &str, part: Option<&str>, unit: Unit, window: Window) -> i64 {
        let (budget_name, part) = (budget.to_owned(), part.map(str::to_owned));
        let key = AccountKey { budget: budget_name, part, start_s: window.start_s, unit };
        if self.accounts.contains_key(&key) {
            return window.start_s;
        }
        let starts = || self.of_budget(budget).map(|(it, _)| it.start_s);
        if starts().any(|it| it == window.start_s) {
            return window.start_s;
        }
        starts().min().filter(|oldest| window.start_s < *oldest).unwrap_or(window.start_s)
    }

    /// Opens the account, or records a new limit.
    fn begin(&mut self, unix_ns: u64, demand: &Demand, log: &mut Vec<Entry>) {
        let Demand { key, end_s, period, unit, limit, amount: _ } = demand;
        if self.accounts.get(key).is_some_and(|it| it.limit == *limit) {
            return;
        }
        let (key, period) = (key.clone(), period.clone());
        let (end_s, unit, limit) = (*end_s, *unit, *limit);
        self.commit(unix_ns, Change::Opened { key, end_s, period, unit, limit }, log);
    }

    fn suffices(&self, demand: &Demand, before: &[Demand]) -> Result<(), Shortfall> {
        let same = before.iter().filter(|it| it.key == demand.key).map(|it| it.amount);
        let taken = same.fold(0, i64::saturating_add);
        let account = self.accounts.get(&demand.key);
        let remaining = account.map_or(0, Account::remaining).saturating_sub(taken);
        if demand.amount >= 0 && demand.amount <= remaining && remaining > 0 {
            return Ok(());
        }
        Err(Shortfall {
            budget: demand.key.name(),
            remaining: remaining.max(0),
            allocated: account.map_or(0, Account::allocated),
            wanted: demand.amount,
        })
    }

    /// Applies a change and appends the change to the log: ledger and log cannot differ.
    fn commit(&mut self, unix_ns: u64, change: Change, log: &mut Vec<Entry>) {
        let entry = Entry { sequence: self.sequence + 1, unix_ns, change };
        self.apply(&entry);
        log.push(entry);
    }

    /// Returns the call closed by an entry about to be applied.
    fn closed_by(&self, entry: &Entry) -> Option<Closed> {
        let (awu, settled) = match &entry.change {
            Change::Settled { awu, actual } => (*awu, Some(actual.clone())),
            Change::Released { awu } => (*awu, None),
            _ => return None,
        };
        let shares = self.open.get(&awu)?.clone();
        Some(Closed { sequence: entry.sequence, awu, shares, settled })
    }

    /// Applies an entry.
    fn apply(&mut self, entry: &Entry) {
        self.sequence = entry.sequence;
        match &entry.change {
            Change::Opened { key, end_s, period, unit, limit } => {
                self.open_account(key, *end_s, period, *unit, *limit);
            }
            Change::Reserved { awu, shares } => {
                for share in shares {
                    if let Some(account) = self.accounts.get_mut(&share.key) {
                        account.reserved = account.reserved.saturating_add(share.covered);
                    }
                }
                self.open.insert(*awu, shares.clone());
            }
            Change::Settled { awu, actual } => self.apply_settled(*awu, actual.as_deref()),
            Change::Released { awu } => {
                for share in self.open.remove(awu).unwrap_or_default() {
                    if let Some(account) = self.accounts.get_mut(&share.key) {
                        account.reserved -= share.covered;
                    }
                }
            }
            Change::Adjusted { key, delta, by: _, why: _ } => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.adjusted = account.adjusted.saturating_add(*delta);
                }
            }
            Change::Approved(approval) => {
                let now = entry.unix_ns;
                self.approvals.retain(|_, it| it.expires_unix_ns > now);
                self.approvals.insert(approval.id.clone(), approval.clone());
            }
            Change::ApprovalUsed { id } => {
                self.approvals.remove(id);
            }
        }
    }

    fn apply_settled(&mut self, awu: AwuId, actual: Option<&[i64]>) {
        let shares = self.open.remove(&awu).unwrap_or_default();
        for (index, share) in shares.into_iter().enumerate() {
            let wanted = share.covered.saturating_add(share.beyond);
            let used = actual.and_then(|it| it.get(index)).map_or(wanted, |used| (*used).max(0));
            if let Some(account) = self.accounts.get_mut(&share.key) {
                account.reserved -= share.covered;
                account.spent = account.spent.saturating_add(used.min(share.covered));
                let over = used.saturating_sub(share.covered).max(0);
                account.overrun = account.overrun.saturating_add(over);
            }
        }
    }

    /// Opens the account of a new period, or sets the limit. A new period forgets settled accounts
    /// from before the previous period.
    fn open_account(&mut self, key: &AccountKey, end_s: i64, period: &str, unit: Unit, limit: i64) {
        if let Some(account) = self.accounts.get_mut(key) {
            account.limit = limit;
            return;
        }
        let starts = self.of_budget(&key.budget).map(|(it, _)| it.start_s);
        if let Some(previous) = starts.filter(|start_s| *start_s < key.start_s).max() {
            let open = &self.open;
            let held = |it: &AccountKey| open.values().flatten().any(|share| share.key == *it);
            self.accounts
                .retain(|it, _| it.budget != key.budget || it.start_s >= previous || held(it));
        }
        let lost = |unix_ns: u64| i128::from(key.start_s) * 1_000_000_000 <= i128::from(unix_ns);
        let spent = if self.lost_unix_ns.is_some_and(lost) { limit } else { 0 };
        let period = period.to_owned();
        let account = Account { end_s, period, unit, limit, spent, ..Account::default() };
        self.accounts.insert(key.clone(), account);
    }
}

impl Entry {
    /// Encodes the entry as a line to append to the ledger's file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        line(self)
    }
}

/// Encodes a value as a line: eight hexadecimal digits of the CRC-32C, a space, JSON, a line feed.
fn line(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("plain structs with string keys");
    let mut line = format!("{:08x} ", crc32c::crc32c(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    line
}

fn read_line<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let body = line.strip_suffix(b"\n")?;
    let (crc, json) = (body.get(..8)?, body.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if crc != crc32c::crc32c(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panic")]

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const LIMIT: i64 = 1_000;

    fn awu(number: u8) -> AwuId {
        AwuId { trace: [number; 16], span: [number; 8] }
    }

    fn demand(budget: &str, day: i64, amount: i64) -> Demand {
        let (start_s, unit) = (day * 86_400, Unit::Usd);
        let key = AccountKey { budget: budget.to_owned(), part: None, start_s, unit };
        let (end_s, period) = ((day + 1) * 86_400, format!("day {day}"));
        Demand { key, end_s, period, unit: Unit::Usd, limit: LIMIT, amount }
    }

    fn render(ledger: &Ledger) -> String {
        let mut text = String::new();
        for (key, it) in ledger.accounts() {
            let Account { reserved, spent, overrun, .. } = it;
            let left = it.remaining();
            let line = format!(
                "{} {}: reserved {reserved} spent {spent} overrun {overrun} left {left}\n",
                key.budget, it.period
            );
            text.push_str(&line);
        }
        text
    }

    #[track_caller]
    fn check(ledger: &Ledger, log: &[Entry], expected: &Expect) {
        expected.assert_eq(&render(ledger));
        let mut file = Ledger::new().snapshot();
        file.extend(log.iter().flat_map(Entry::encode));
        let restored = Ledger::restore(&file).unwrap();
        assert_eq!((&restored.ledger, restored.torn_bytes), (ledger, 0));
    }

    #[test]
    fn a_reservation_is_all_or_nothing_over_its_budgets() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        let all = [demand("team", 0, 600), demand("project", 0, 600)];
        ledger.reserve(1, awu(1), &all, &mut log).unwrap();
        let short = [demand("other", 0, 500), demand("team", 0, 500)];
        let error = ledger.reserve(1, awu(2), &short, &mut log).unwrap_err();
        expect!["budget `team` has 400 left of 1000, 500 wanted"].assert_eq(&error.to_string());
        let expected = expect![[r"
            other day 0: reserved 0 spent 0 overrun 0 left 1000
            project day 0: reserved 600 spent 0 overrun 0 left 400
            team day 0: reserved 600 spent 0 overrun 0 left 400
        "]];
        check(&ledger, &log, &expected);
    }

    #[test]
    fn a_call_is_settled_in_the_period_that_reserved_it() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        ledger.reserve(1, awu(1), &[demand("team", 0, 600)], &mut log).unwrap();
        ledger.reserve(2, awu(2), &[demand("team", 1, 900)], &mut log).unwrap();
        ledger.settle(3, awu(1), Some(vec![250]), &mut log);
        let expected = expect![[r"
            team day 0: reserved 0 spent 250 overrun 0 left 750
            team day 1: reserved 900 spent 0 overrun 0 left 100
        "]];
        check(&ledger, &log, &expected);
    }

    #[test]
    fn what_an_observed_call_uses_beyond_the_limit_is_overrun() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        ledger.reserve(1, awu(1), &[demand("team", 0, 900)], &mut log).unwrap();
        ledger.reserve_unchecked(1, awu(2), &[demand("team", 0, 300)], &mut log);
        ledger.settle(2, awu(2), Some(vec![250]), &mut log);
        let expected = expect![[r"
            team day 0: reserved 900 spent 100 overrun 150 left 0
        "]];
        check(&ledger, &log, &expected);
    }

    #[test]
    fn an_unknown_outcome_is_charged_in_full() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        ledger.reserve(1, awu(1), &[demand("team", 0, 600)], &mut log).unwrap();
        ledger.settle(2, awu(1), None, &mut log);
        let expected = expect![[r"
            team day 0: reserved 0 spent 600 overrun 0 left 400
        "]];
        check(&ledger, &log, &expected);
    }

    #[test]
    fn a_file_cut_anywhere_restores_the_changes_before_the_cut() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        ledger.reserve(1, awu(1), &[demand("team", 0, 600)], &mut log).unwrap();
        ledger.settle(2, awu(1), Some(vec![7]), &mut log);
        let snapshot = Ledger::new().snapshot();
        let mut file = snapshot.clone();
        file.extend(log.iter().flat_map(Entry::encode));
        for cut in 0..file.len() {
            let (head, _) = file.split_at(cut);
            match Ledger::restore(head) {
                Err(error) => {
                    assert_eq!((error, true), (RestoreError::NoSnapshot, cut < snapshot.len()));
                }
                Ok(restored) => assert!(head.len() - restored.torn_bytes >= snapshot.len()),
            }
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        ledger.reserve(1, awu(1), &[demand("team", 0, 600)], &mut log).unwrap();
        let snapshot = Ledger::new().snapshot();
        let mut file = snapshot.clone();
        file.extend(log.iter().flat_map(Entry::encode));
        *file.get_mut(snapshot.len() + 20).unwrap() ^= 1;
        let error = Ledger::restore(&file).unwrap_err();
        let expected = expect!["line 2 of the ledger is damaged, and whole lines follow it"];
        expected.assert_eq(&error.to_string());
    }

    #[test]
    fn a_lost_ledger_counts_running_periods_as_used_up_and_later_ones_not() {
        let (mut ledger, mut log) = (Ledger::unknown(1_000_000_000, 9), Vec::new());
        assert!(ledger.reserve(2, awu(1), &[demand("team", 0, 1)], &mut log).is_err());
        assert!(ledger.reserve(2, awu(1), &[demand("team", 1, 1)], &mut log).is_ok());
        let restored = Ledger::restore(&ledger.snapshot()).unwrap().ledger;
        assert_eq!(restored, ledger);
    }

    #[test]
    fn a_clock_that_steps_back_finds_the_periods_it_left() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        for day in 3..6 {
            let id = awu(u8::try_from(day).unwrap());
            ledger.reserve(1, id, &[demand("team", day, 10)], &mut log).unwrap();
            ledger.settle(1, id, Some(vec![10]), &mut log);
        }
        let day = |it: i64| {
            let unix_ns = u64::try_from(it * 86_400 + 60).unwrap() * 1_000_000_000;
            crate::time::Period::Day.at(unix_ns, &jiff::tz::TimeZone::UTC)
        };
        let placed: Vec<i64> =
            (2..7).map(|it| ledger.place("team", None, Unit::Usd, day(it)) / 86_400).collect();
        assert_eq!(placed, [4, 4, 4, 5, 6]);
    }

    #[test]
    fn amounts_of_one_unit_never_become_amounts_of_another() {
        let (mut ledger, mut log) = (Ledger::new(), Vec::new());
        let tokens = |amount: i64| {
            let mut it = demand("team", 0, amount);
            (it.unit, it.key.unit, it.limit) = (Unit::Tokens, Unit::Tokens, 70_000);
            it
        };
        ledger.reserve(1, awu(1), &[demand("team", 0, 300)], &mut log).unwrap();
        ledger.settle(2, awu(1), Some(vec![250]), &mut log);
        ledger.reserve(3, awu(2), &[demand("team", 0, 400)], &mut log).unwrap();
        ledger.reserve(4, awu(3), &[tokens(60_000)], &mut log).unwrap();
        // Open calls are settled in the account of the reservation.
        ledger.settle(5, awu(2), Some(vec![900]), &mut log);
        ledger.settle(6, awu(3), Some(vec![9_000]), &mut log);
        // Changing the unit to and fro gives nothing back.
        ledger.reserve(7, awu(4), &[demand("team", 0, 1)], &mut log).unwrap_err();
        let expected = expect![[r"
            team day 0: reserved 0 spent 650 overrun 500 left 0
            team day 0: reserved 0 spent 9000 overrun 0 left 61000
        "]];
        check(&ledger, &log, &expected);
        let restored = Ledger::restore(&ledger.snapshot()).unwrap().ledger;
        assert_eq!(restored, ledger);
    }

    /// Format of agents with a common account for all units.
    #[test]
    fn a_file_that_says_no_units_of_keys_is_read() {
        let change = |sequence: u64, change: &str| {
            let json = format!(r#"{{"q":{sequence},"t":1,{change}}}"#);
            format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
        };
        let awu_json = serde_json::to_string(&awu(1)).unwrap();
        let mut file = Ledger::new().snapshot();
        file.extend(change(1, r#""k":"opened","b":"gpu","s":0,"end_s":86400,"period":"day","unit":"tokens","limit":500"#));
        file.extend(change(
            2,
            &format!(r#""k":"reserved","awu":{awu_json},"shares":[{{"b":"gpu","s":0,"c":120}}]"#),
        ));
        let restored = Ledger::restore(&file).unwrap();
        assert_eq!(restored.torn_bytes, 0);
        let mut ledger = restored.ledger;
        let (key, account) = ledger.accounts().next().unwrap();
        assert_eq!((key.unit, account.unit, account.reserved), (Unit::Tokens, Unit::Tokens, 120));
        ledger.settle(2, awu(1), Some(vec![90]), &mut Vec::new());
        let again = Ledger::restore(&ledger.snapshot()).unwrap().ledger;
        let (_, account) = again.accounts().next().unwrap();
        assert_eq!((account.reserved, account.spent), (0, 90));
    }

    /// A random event of the ledger.
    #[derive(Clone, Debug)]
    enum Step {
        Reserve { call: u8, budgets: u8, amount: i64 },
        Settle { call: u8, used: Option<i64> },
        Release { call: u8 },
        NextPeriod,
        Restart { torn: usize },
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any::<u8>(), 1..4u8, 0..400i64)
                .prop_map(|(call, budgets, amount)| Step::Reserve { call, budgets, amount }),
            4 => (any::<u8>(), proptest::option::of(0..400i64))
                .prop_map(|(call, used)| Step::Settle { call, used }),
            2 => any::<u8>().prop_map(|call| Step::Release { call }),
            1 => Just(Step::NextPeriod),
            1 => (0..60usize).prop_map(|torn| Step::Restart { torn }),
            1 => Just(Step::Crash),
        ]
    }

    /// Expected spending, counted in the simplest way: budget and day to amount.
    type Spent = BTreeMap<(String, i64), i64>;

    #[derive(Default)]
    struct Model {
        open: BTreeMap<AwuId, Vec<Demand>>,
        spent: Spent,
        file: Vec<u8>,
        day: i64,
    }

    impl Model {
        fn charge(&mut self, call: AwuId, used: Option<i64>) {
            for it in self.open.remove(&call).unwrap_or_default() {
                let amount = used.unwrap_or(it.amount).min(it.amount);
                let key = (it.key.budget.clone(), it.key.start_s);
                *self.spent.entry(key).or_default() += amount;
            }
        }

        fn step(&mut self, ledger: &mut Ledger, step: &Step) {
            let mut log = Vec::new();
            match *step {
                Step::Reserve { call, budgets, amount } => {
                    let names = ["a", "b"].into_iter().enumerate();
                    let chosen = names.filter(|(index, _)| budgets & (1 << index) != 0);
                    let all: Vec<Demand> =
                        chosen.map(|(_, name)| demand(name, self.day, amount)).collect();
                    let fresh = !self.open.contains_key(&awu(call));
                    if fresh && ledger.reserve(1, awu(call), &all, &mut log).is_ok() {
                        self.open.insert(awu(call), all);
                    }
                }
                Step::Settle { call, used } => {
                    let count = self.open.get(&awu(call)).map_or(0, Vec::len);
                    ledger.settle(1, awu(call), used.map(|it| vec![it; count]), &mut log);
                    self.charge(awu(call), used);
                }
                Step::Release { call } => {
                    ledger.release(1, awu(call), &mut log);
                    self.open.remove(&awu(call));
                }
                Step::NextPeriod => self.day += 1,
                Step::Restart { torn } => {
                    // A write that never became durable, so nothing acted on the write.
                    let mut file = self.file.clone();
                    file.extend(vec![b'x'; torn]);
                    let restored = Ledger::restore(&file).unwrap();
                    assert_eq!(&restored.ledger, &*ledger);
                    assert_eq!(restored.torn_bytes, torn);
                    *ledger = restored.ledger;
                    self.file = ledger.snapshot();
                }
                Step::Crash => {
                    let calls: Vec<AwuId> = ledger.open().map(|(awu, _)| awu).collect();
                    for call in calls {
                        ledger.settle(1, call, None, &mut log);
                        self.charge(call, None);
                    }
                }
            }
            self.file.extend(log.iter().flat_map(Entry::encode));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reserved_and_spent_never_exceed_the_limit_and_nothing_is_lost(
            steps in proptest::collection::vec(step(), 1..120)
        ) {
            let mut ledger = Ledger::new();
            let mut model = Model { file: ledger.snapshot(), ..Model::default() };
            for step in steps {
                model.step(&mut ledger, &step);
                for (key, account) in ledger.accounts() {
                    prop_assert!(account.reserved >= 0);
                    prop_assert!(account.reserved + account.spent <= LIMIT);
                    let spent = model.spent.get(&(key.budget.clone(), key.start_s));
                    prop_assert_eq!(account.spent, spent.copied().unwrap_or(0));
                    let held = model.open.values().flatten().filter(|it| it.key == *key);
                    prop_assert_eq!(account.reserved, held.map(|it| it.amount).sum::<i64>());
                }
                prop_assert_eq!(ledger.open().count(), model.open.len());
                for (call, shares) in ledger.open() {
                    prop_assert_eq!(ledger.held(call), shares);
                }
                let free = (0..=u8::MAX).map(awu).find(|it| !model.open.contains_key(it));
                prop_assert!(free.is_none_or(|it| ledger.held(it).is_empty()));
            }
        }
    }
}
