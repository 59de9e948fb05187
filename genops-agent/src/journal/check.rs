//! Consistency of a log's records: no gap in any counter, all records demanded by each unit's
//! phase, correct arithmetic of budgets, and known policies for all decisions.
//!
//! Takes records, returns problems. `genops_evidence::verify` checks separately whether the records
//! are the signed records. Memory grows with units, principals and budgets, not with records.

use std::collections::{HashMap, HashSet};

use genops_governance::ReasonCode;

use super::carried::Carried;
use super::entry::{self, Accounted, Decided, Entry, Kind, Text, VERSION};

/// A violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Index of the record.
    pub(crate) seq: u64,
    /// Description of the violation.
    pub(crate) what: String,
}

/// State of a unit.
#[derive(Clone, Debug, Default)]
struct Unit {
    result: Option<String>,
    prevented: bool,
    /// An intent announced the refusal.
    intended: bool,
    /// Budget, unit, amount.
    reserved: Option<Vec<(Option<String>, i64)>>,
    /// The reservation may exceed the budget: the unit could not be stopped.
    overdrawn: bool,
    /// Record with the beginning of the unit.
    since: u64,
}

/// Last amount in the log for one period of one budget.
#[derive(Clone, Copy, Debug)]
struct Balance {
    left: i64,
    ledger: u64,
}

/// A cosigned checkpoint in the log.
#[derive(Clone, Debug)]
pub(crate) struct Witnessed {
    /// Index of the record.
    pub(crate) seq: u64,
    /// The note.
    pub(crate) note: String,
}

/// Counts of the checked records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) decisions: u64,
    pub(crate) blocked: u64,
    pub(crate) units: u64,
    pub(crate) starts: u64,
    pub(crate) unclean: u64,
    pub(crate) gaps: u64,
    /// Units known only by number, and the records counting them. Included in the units, the
    /// decisions and the refusals.
    pub(crate) folded: u64,
    pub(crate) folded_records: u64,
    /// Units left open by an unclean stop.
    pub(crate) interrupted: u64,
    /// Units about to be refused, without a record of the result. Included in the gaps.
    pub(crate) undecided: u64,
    /// Units recorded as stopped, with bytes sent all the same. Not included in the refusals.
    pub(crate) breaches: u64,
    /// Units refused, and not kept back.
    pub(crate) not_prevented: u64,
    pub(crate) principals: u64,
    pub(crate) unnumbered: u64,
    /// Kernel events lost, as counted by the kernel.
    pub(crate) dropped: u64,
}

/// Reason code of a unit refused and not kept back.
const NOT_PREVENTED: &str = "x_not_prevented";

/// Most findings described; further findings are only counted.
const FINDING_LIMIT: usize = 1_000;

/// Checks records in order.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The agent before was killed, and the present agent has decided nothing yet.
    after_a_crash: bool,
    /// Index of the first record; earlier records cannot be looked up.
    first: Option<u64>,
    last: Option<(u64, Kind)>,
    /// Index of the last start.
    started: Option<u64>,
    /// Records were lost according to the log: the records of a unit may be among the lost.
    holes: bool,
    principals: HashMap<String, (u64, u64)>,
    open: HashMap<String, Unit>,
    /// Finished units, by a digest of the identity.
    done: HashSet<u64>,
    /// Stopped units; false: a breach was found since.
    stopped: HashMap<u64, bool>,
    /// Stopped units only counted, and without a known breach.
    stopped_folded: u64,
    balances: HashMap<(String, String, String), Balance>,
    carried: Carried,
    policies: HashSet<String>,
    prices: HashSet<String>,
    kernel: HashMap<String, (u64, u64)>,
    pub(crate) counts: Counts,
    /// Attachments named by records, by SHA-256.
    pub(crate) recipes: Vec<(u64, [u8; 32])>,
    pub(crate) witnessed: Vec<Witnessed>,
    /// Breaches: the record, and the description.
    pub(crate) breaches: Vec<Finding>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) finding_count: usize,
}

impl Checker {
    /// Checks the record with the given index.
    pub(crate) fn record(&mut self, index: u64, bytes: &[u8]) {
        let entry: Entry<'_> = match serde_json::from_slice(bytes) {
            Ok(entry) => entry,
            Err(error) => return self.find(index, format!("not a record: {error}")),
        };
        self.first.get_or_insert(index);
        if entry.v != VERSION {
            self.find(index, format!("version {} is not known", entry.v));
        }
        if entry.seq != index {
            self.find(index, format!("says that it is number {}", entry.seq));
        }
        self.order(&entry);
        self.principal(&entry);
        self.kernel(&entry);
        self.content(&entry);
        match entry.kind {
            Kind::Breach => self.breach(&entry),
            Kind::Content => {}
            Kind::Folded => self.folded(&entry),
            _ if entry.awu.is_some() => self.unit(&entry),
            _ => {}
        }
        self.last = Some((index, entry.kind));
    }

    /// Reports everything missing at the end.
    pub(crate) fn finish(&mut self) {
        self.counts.principals = self.principals.len() as u64;
        self.counts.dropped += self.kernel.values().map(|(_, lost)| lost).sum::<u64>();
        if self.last.is_some_and(|(_, kind)| kind == Kind::AgentStop) && !self.holes {
            self.unfinished("though the agent stopped in good order");
            self.undecided();
        }
        let undecided = self.open.values().filter(|unit| unit.intended && unit.result.is_none());
        self.counts.undecided = undecided.count() as u64;
        self.counts.gaps += self.counts.undecided;
    }

    fn find(&mut self, seq: u64, what: String) {
        self.finding_count += 1;
        if self.findings.len() < FINDING_LIMIT {
            self.findings.push(Finding { seq, what });
        }
    }

    fn find_all(&mut self, found: Vec<(u64, String)>) {
        for (seq, what) in found {
            self.find(seq, what);
        }
    }

    /// Checks starts and stops.
    fn order(&mut self, entry: &Entry<'_>) {
        let stopped = self.last.is_none_or(|(_, kind)| kind == Kind::AgentStop);
        let pruned = self.last.is_none() && entry.seq > 0;
        if self.last.is_none() && !pruned {
            self.carried.begin();
        }
        if entry.kind == Kind::AgentStart {
            self.counts.starts += 1;
            self.started = Some(entry.seq);
            let said = entry.det.iter().find(|(key, _)| key.as_str() == "end");
            let clean = said.is_some_and(|(_, end)| end.as_str() == "clean");
            if clean && !stopped {
                self.find(entry.seq, "says that the stop before it was clean; it was not".into());
            }
            if !stopped {
                self.counts.unclean += 1;
            }
            self.after_a_crash = !stopped;
            self.interrupted();
            // The kernel programs of the next agent count from zero.
            self.counts.dropped += self.kernel.drain().map(|(_, (_, lost))| lost).sum::<u64>();
            // The balances are read from the ledger at a start, and compared there.
            self.balances.clear();
            let open = self.open.values().filter(|unit| unit.overdrawn);
            let drawn = open.flat_map(|unit| unit.reserved.iter().flatten());
            self.carried.start(drawn.filter_map(|(name, _)| name.clone()).collect());
        } else if stopped && !pruned {
            self.find(entry.seq, "follows a stop, but is not a start".into());
        }
    }

    /// Counts units open at the end of an agent: a later settlement is possible, not certain.
    fn interrupted(&mut self) {
        self.counts.interrupted += self.open.len() as u64;
    }

    fn unfinished(&mut self, why: &str) {
        let mut open: Vec<(u64, String)> = self
            .open
            .iter()
            .filter(|(_, unit)| unit.reserved.is_some())
            .map(|(awu, unit)| (unit.since, awu.clone()))
            .collect();
        open.sort();
        for (since, awu) in open {
            self.find(since, format!("unit {awu} was neither reconciled nor released, {why}"));
        }
    }

    /// Reports refusals of the last run with no record of the effect before the end.
    fn undecided(&mut self) {
        let since = self.started.unwrap_or(0);
        let waits = |unit: &Unit| unit.intended && unit.result.is_none() && unit.since >= since;
        let mut open: Vec<(u64, String)> = self
            .open
            .iter()
            .filter(|(_, unit)| waits(unit))
            .map(|(awu, unit)| (unit.since, awu.clone()))
            .collect();
        open.sort();
        for (since, awu) in open {
            let what = format!(
                "unit {awu} was to be refused, and was not decided, though the agent stopped in good order"
            );
            self.find(since, what);
        }
    }

    /// Checks a breach: bytes of a stopped unit left, so the unit no longer counts as refused.
    fn breach(&mut self, entry: &Entry<'_>) {
        let Some(awu) = &entry.awu else {
            return self.find(entry.seq, "a breach that names no unit".into());
        };
        match self.stopped.get_mut(&digest(awu.as_str())) {
            Some(held) => {
                if std::mem::replace(held, false) {
                    self.counts.blocked = self.counts.blocked.saturating_sub(1);
                    self.counts.breaches += 1;
                }
                self.note_breach(entry, awu);
            }
            // The unit was among the units only counted.
            None if self.stopped_folded > 0 => {
                self.stopped_folded -= 1;
                self.stopped.insert(digest(awu.as_str()), false);
                self.counts.blocked = self.counts.blocked.saturating_sub(1);
                self.counts.breaches += 1;
                self.note_breach(entry, awu);
            }
            None if self.first == Some(0) && !self.holes => {
                let what = format!("a breach of unit {awu}, which was never said to be stopped");
                self.find(entry.seq, what);
            }
            None => {}
        }
    }

    fn note_breach(&mut self, entry: &Entry<'_>, awu: &Text<'_>) {
        let said = entry.det.iter().find(|(key, _)| key.as_str() == "above_bytes");
        let bytes = said.map_or("some", |(_, bytes)| bytes.as_str());
        let answered = entry.det.iter().any(|(key, _)| key.as_str() == "answered");
        let what = if answered {
            format!("unit {awu} was answered after it was said to be stopped")
        } else {
            format!("{bytes} bytes of unit {awu} left after it was said to be stopped")
        };
        if self.breaches.len() < FINDING_LIMIT {
            self.breaches.push(Finding { seq: entry.seq, what });
        }
    }

    /// Checks a count of units without own records.
    fn folded(&mut self, entry: &Entry<'_>) {
        let (Some(decided), Some(count)) = (&entry.dec, &entry.fold) else {
            return self
                .find(entry.seq, "counts units without saying how many, or their result".into());
        };
        if count.n == 0 || count.first > count.last {
            let what = format!("counts {} units from {} to {}", count.n, count.first, count.last);
            self.find(entry.seq, what);
        }
        if entry.awu.is_some() || !entry.bud.is_empty() {
            self.find(entry.seq, "counts units, and names one or its accounts".into());
        }
        let stopped = self.decided(entry.seq, decided);
        self.counts.units += count.n;
        self.counts.decisions += count.n;
        self.counts.folded += count.n;
        self.counts.folded_records += 1;
        if stopped {
            self.counts.blocked += count.n;
            self.stopped_folded += count.n;
        } else if decided.code.as_ref().is_some_and(|code| code.as_str() == NOT_PREVENTED) {
            self.find(
                entry.seq,
                "counts what was not prevented, whose accounts are touched".into(),
            );
        }
    }

    fn principal(&mut self, entry: &Entry<'_>) {
        let Some(who) = &entry.who else { return };
        let Some(number) = who.pseq else {
            self.counts.unnumbered += 1;
            return;
        };
        let before = self.principals.insert(who.prin.as_str().to_owned(), (number, entry.seq));
        let pruned = self.first.is_some_and(|first| first > 0);
        let fits = match (before, who.pprev) {
            (Some((count, index)), Some(said)) => number == count + 1 && said == index,
            (None, None) => number == 1,
            (None, Some(said)) => pruned && self.first.is_some_and(|first| said < first),
            (Some(_), None) => false,
        };
        if !fits {
            let (count, index) = before.map_or((0, None), |(count, index)| (count, Some(index)));
            self.find(
                entry.seq,
                format!(
                    "principal `{}`: number {number} after record {:?}; {} after record {index:?} \
                     was to be expected",
                    who.prin,
                    who.pprev,
                    count + 1
                ),
            );
        }
    }

    /// Checks that the kernel's counters never go back while an agent runs.
    fn kernel(&mut self, entry: &Entry<'_>) {
        let (Some(made), Some(lost)) = (entry.kseq, entry.drops) else { return };
        let before = self.kernel.get(entry.boot.as_str()).copied().unwrap_or_default();
        if made < before.0 || lost < before.1 {
            self.find(
                entry.seq,
                format!("the kernel's counters went back from {before:?} to ({made}, {lost})"),
            );
        }
        self.kernel.insert(entry.boot.as_str().to_owned(), (made, lost));
    }

    /// Checks the parts of a record not about a single unit.
    fn content(&mut self, entry: &Entry<'_>) {
        let hash = entry.det.iter().find(|(key, _)| key.as_str() == "hash");
        let hash = hash.map(|(_, hash)| {
            let digits = hash.as_str().trim_start_matches("sha256:");
            format!("sha256:{digits}")
        });
        match entry.kind {
            Kind::PolicyLoaded => {
                self.recipe(entry);
                self.policies.extend(hash);
                self.policies.extend(entry.dec.iter().map(|dec| dec.bundle.as_str().to_owned()));
                // Limits may have changed.
                self.balances.clear();
            }
            Kind::Heads => self.recipe(entry),
            Kind::Balances => {
                let wrong = self.carried.list(entry);
                self.find_all(wrong);
            }
            Kind::PriceLoaded => self.prices.extend(hash),
            Kind::Override | Kind::ModeChange => self.balances.clear(),
            Kind::Gap => {
                self.counts.gaps += 1;
                if entry.det.iter().any(|(key, _)| key.as_str() == "records") {
                    self.holes = true;
                    self.balances.clear();
                    self.carried.forget();
                }
            }
            Kind::Witnessed => {
                let note = entry.det.iter().find(|(key, _)| key.as_str() == "note");
                if let Some((_, note)) = note {
                    let note = note.as_str().to_owned();
                    self.witnessed.push(Witnessed { seq: entry.seq, note });
                }
            }
            _ => {}
        }
    }

    /// Notes the attachment named by a record: the configuration of the decisions from there on.
    fn recipe(&mut self, entry: &Entry<'_>) {
        let named = entry.det.iter().find(|(key, _)| key.as_str() == "config");
        let Some((_, named)) = named else { return };
        match entry::parse_sha256(named.as_str()) {
            Some(digest) => self.recipes.push((entry.seq, digest)),
            None => self.find(entry.seq, format!("`{named}` is no SHA-256")),
        }
    }

    fn unit(&mut self, entry: &Entry<'_>) {
        let Some(awu) = &entry.awu else { return };
        let awu = awu.as_str();
        if self.done.contains(&digest(awu)) {
            return self.find(entry.seq, format!("unit {awu} was already done"));
        }
        let mut unit = self.open.remove(awu).unwrap_or_else(|| {
            self.counts.units += 1;
            Unit { since: entry.seq, ..Unit::default() }
        });
        let done = match entry.kind {
            Kind::Decision => {
                self.after_a_crash = false;
                let wrong = self.carried.settled();
                self.find_all(wrong);
                self.decision(entry, &mut unit)
            }
            Kind::Intent => {
                if unit.intended || unit.result.is_some() {
                    self.find(
                        entry.seq,
                        "the unit was about to be refused, or decided, before".into(),
                    );
                }
                unit.intended = true;
                false
            }
            Kind::Reservation => self.reservation(entry, &mut unit),
            Kind::Reconciliation => self.reconciliation(entry, &mut unit),
            Kind::Release => self.release(entry, &mut unit),
            // A gap or an approval may name the unit concerned.
            _ => false,
        };
        if done {
            self.done.insert(digest(awu));
        } else {
            self.open.insert(awu.to_owned(), unit);
        }
    }

    fn decision(&mut self, entry: &Entry<'_>, unit: &mut Unit) -> bool {
        let Some(decided) = &entry.dec else {
            self.find(entry.seq, "a decision without its result".into());
            return false;
        };
        self.counts.decisions += 1;
        let result = decided.result.as_str();
        if unit.result.is_some() {
            self.find(entry.seq, "the unit was decided before; a decision is final".into());
        }
        let stopped = self.decided(entry.seq, decided);
        self.counts.blocked += u64::from(stopped);
        self.effect(entry, unit, stopped);
        unit.result = Some(result.to_owned());
        unit.prevented = stopped;
        // Stopped before any reservation: no more records follow.
        stopped && unit.reserved.is_none()
    }

    /// Checks the rules of all decisions; returns whether the decision is a refusal.
    fn decided(&mut self, seq: u64, decided: &Decided<'_>) -> bool {
        let result = decided.result.as_str();
        let stopped = match result {
            "ALLOWED" | "WARNING" => false,
            "BLOCKED" | "RATE_LIMITED" => true,
            other => {
                self.find(seq, format!("`{other}` is no result"));
                false
            }
        };
        match &decided.code {
            Some(_) if result == "ALLOWED" => {
                self.find(seq, "an allowed unit has a reason".into());
            }
            Some(code) if ReasonCode::parse(code.as_str()).is_none() => {
                self.find(seq, format!("`{code}` is no reason code"));
            }
            None if result != "ALLOWED" => {
                self.find(seq, format!("{result} without a reason"));
            }
            _ => {}
        }
        let whole = self.first == Some(0);
        if whole && !self.policies.contains(decided.bundle.as_str()) {
            let what = format!("the policies {} were never loaded", decided.bundle);
            self.find(seq, what);
        }
        stopped
    }

    /// Checks the effect: an announced refusal reports the bytes that left, and only zero bytes
    /// make a refusal.
    fn effect(&mut self, entry: &Entry<'_>, unit: &Unit, stopped: bool) {
        let said = entry.det.iter().find(|(key, _)| key.as_str() == "above_bytes");
        let code = entry.dec.as_ref().and_then(|dec| dec.code.as_ref());
        let not_prevented = code.is_some_and(|code| code.as_str() == NOT_PREVENTED);
        self.counts.not_prevented += u64::from(not_prevented);
        if unit.intended && stopped && said.is_none_or(|(_, bytes)| bytes.as_str() != "0") {
            let what = "refused, but it does not say that nothing left".to_owned();
            self.find(entry.seq, what);
        }
        if unit.intended && !stopped && !not_prevented {
            self.find(entry.seq, "about to be refused, and then permitted".into());
        }
        if not_prevented && !unit.intended && self.first == Some(0) && !self.holes {
            self.find(entry.seq, "not prevented, and nothing was about to be".into());
        }
        if stopped && let Some(awu) = &entry.awu {
            self.stopped.insert(digest(awu.as_str()), true);
        }
    }

    fn reservation(&mut self, entry: &Entry<'_>, unit: &mut Unit) -> bool {
        if unit.reserved.is_some() {
            self.find(entry.seq, "the unit was reserved for before".into());
        }
        unit.reserved = Some(amounts(&entry.bud));
        for account in by_budget(&entry.bud) {
            if account.res < 0 {
                self.find(entry.seq, format!("{} reserved", account.res));
            }
            let price = account.price.as_str();
            if self.first == Some(0) && !self.prices.is_empty() && !self.prices.contains(price) {
                self.find(entry.seq, format!("the prices {price} were never loaded"));
            }
            unit.overdrawn |= account.rem == Some(0);
            self.carried.draw(&account, account.res);
            let left = |before: i64| (before.saturating_sub(account.res).max(0), false);
            self.balance(entry.seq, &account, left);
        }
        false
    }

    fn reconciliation(&mut self, entry: &Entry<'_>, unit: &mut Unit) -> bool {
        self.closing(entry, unit);
        if unit.prevented {
            self.find(entry.seq, "a stopped unit was reconciled".into());
        }
        for account in by_budget(&entry.bud) {
            if account.act.is_none() && !account.inc {
                self.find(entry.seq, "neither an actual amount nor marked as incomplete".into());
            }
            let before = if unit.reserved.is_some() { account.res } else { 0 };
            self.carried.draw(&account, account.act.unwrap_or(account.res) - before);
            if self.after_a_crash && is_late(entry) {
                self.state(&account);
                continue;
            }
            let back = account.act.map_or(0, |used| account.res.saturating_sub(used));
            let overdrawn = unit.overdrawn;
            self.balance(entry.seq, &account, |before| back_to(before, back, overdrawn));
        }
        true
    }

    fn release(&mut self, entry: &Entry<'_>, unit: &mut Unit) -> bool {
        self.closing(entry, unit);
        for account in by_budget(&entry.bud) {
            if unit.reserved.is_some() {
                self.carried.draw(&account, -account.res);
            }
            if self.after_a_crash && is_late(entry) {
                self.state(&account);
                continue;
            }
            let (back, overdrawn) = (account.res, unit.overdrawn);
            self.balance(entry.seq, &account, |before| back_to(before, back, overdrawn));
        }
        true
    }

    /// Checks the rules of both ends of a reservation.
    fn closing(&mut self, entry: &Entry<'_>, unit: &Unit) {
        // Accounts become durable before evidence: after a crash between the two, the next agent
        // settles the unit, as a bound, before any decision.
        let bound = entry.bud.iter().all(|account| account.inc);
        let unwritten = self.after_a_crash && (bound || is_late(entry));
        let whole = self.first == Some(0) && !self.holes && !unwritten;
        match &unit.reserved {
            None if whole => self.find(entry.seq, "nothing was reserved for the unit".into()),
            // A record without amounts: the balances of the budgets are known again at their next
            // record.
            Some(reserved) if entry.bud.is_empty() => {
                let touched =
                    |name: &str| reserved.iter().any(|(budget, _)| budget.as_deref() == Some(name));
                self.balances.retain(|(name, _, _), _| !touched(name));
                if reserved.iter().any(|(name, _)| name.is_some()) {
                    self.carried.forget();
                }
            }
            Some(reserved) if *reserved != amounts(&entry.bud) => {
                let what = "other amounts than were reserved".to_owned();
                self.find(entry.seq, what);
            }
            _ => {}
        }
        if whole && unit.result.is_none() {
            self.find(entry.seq, "the unit was never decided".into());
        }
    }

    /// Takes a balance without a check.
    fn state(&mut self, account: &Accounted<'_>) {
        if let (Some(key), Some(left)) = (key_of(account), account.rem) {
            self.balances.insert(key, Balance { left, ledger: account.led });
        }
    }

    /// Compares a balance with the balance before. `expected` maps the balance before to the
    /// balance now, and tells whether a lower balance is right too: an overdrawn budget shows zero.
    fn balance(
        &mut self,
        seq: u64,
        account: &Accounted<'_>,
        expected: impl FnOnce(i64) -> (i64, bool),
    ) {
        let (Some(name), Some(left)) = (&account.name, account.rem) else { return };
        let Some(key) = key_of(account) else { return };
        let now = Balance { left, ledger: account.led };
        if let Some(before) = self.balances.insert(key, now) {
            if account.led <= before.ledger {
                let what = format!("budget `{name}`: ledger change {} again", account.led);
                self.find(seq, what);
            }
            let (expected, or_less) = expected(before.left);
            if left != expected && !(or_less && (0..=expected).contains(&left)) {
                let what = format!(
                    "budget `{name}`: {left} left, but {} before makes it {expected}",
                    before.left
                );
                self.find(seq, what);
            }
        }
    }
}

/// Whether the record is late: written by an agent for an earlier, killed agent.
fn is_late(entry: &Entry<'_>) -> bool {
    entry.det.iter().any(|(key, _)| key.as_str() == "late")
}

/// Budget, period and unit of an account.
pub(super) fn key_of(account: &Accounted<'_>) -> Option<(String, String, String)> {
    let name = account.name.as_ref()?.as_str().to_owned();
    let period = account.period.as_ref().map_or("", |period| period.as_str()).to_owned();
    Some((name, period, account.unit.as_str().to_owned()))
}

/// The balance after `back` was returned (or, negative, more used than reserved). An overdrawn
/// budget may have less: zero stands for anything below.
fn back_to(before: i64, back: i64, overdrawn: bool) -> (i64, bool) {
    (before.saturating_add(back).max(0), overdrawn || before == 0)
}

fn amounts(accounts: &[Accounted<'_>]) -> Vec<(Option<String>, i64)> {
    let name = |account: &Accounted<'_>| account.name.as_ref().map(|it| it.as_str().to_owned());
    let mut amounts: Vec<_> = accounts.iter().map(|account| (name(account), account.res)).collect();
    amounts.sort();
    amounts
}

/// The accounts, merged by budget and period.
fn by_budget<'a>(accounts: &[Accounted<'a>]) -> Vec<Accounted<'a>> {
    let mut merged: Vec<Accounted<'a>> = Vec::with_capacity(accounts.len());
    for account in accounts {
        let same = |other: &&mut Accounted<'_>| {
            (&other.name, &other.period, &other.unit)
                == (&account.name, &account.period, &account.unit)
        };
        match merged.iter_mut().find(same) {
            Some(known) => {
                known.res = known.res.saturating_add(account.res);
                known.act = match (known.act, account.act) {
                    (Some(one), Some(other)) => Some(one.saturating_add(other)),
                    _ => None,
                };
                known.rem = account.rem;
                known.inc |= account.inc;
            }
            None => merged.push(account.clone()),
        }
    }
    merged
}

/// 64 bits of a unit's identity; two of a million units collide in one of 37 million logs.
fn digest(awu: &str) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::new().hash_one(awu)
}
