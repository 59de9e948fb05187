//! Folding of alike decisions in a second: a single record with a count.
//!
//! Readable requests keep their own records. Contacts without a readable request (connects,
//! datagrams, refusals of whole connections, unexplained records) are alike if process, provider
//! (else address), operation, result and reason are equal. The first contact has its own records;
//! the agent counts the following ones, while each second has some. Under scarce disk space, all
//! refusals of a user fold alike.
//!
//! Reads no clock: records carry their time. Every table has a limit for each user and for all;
//! above the limit the agent distinguishes less, and counts everything.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use genops_governance::{
    AwuId, CaptureLevel, Decided, Now, PolicyResult, ProcessKey, ReasonCode, Record, RecordKind,
    User, What, Who,
};

/// Time counted in a single record.
const WINDOW_NS: u64 = 1_000_000_000;
/// Most distinguished kinds of a user, and of all.
const KEYS_OF_USER: usize = 64;
const KEYS: usize = 4_096;
/// Most refusals of a user, and of all, with a pending effect.
const WAITING_OF_USER: usize = 256;
const WAITING: usize = 4_096;
/// Most open connections of a user, and of all, counted as permitted.
const OPEN_OF_USER: usize = 4_096;
const OPEN: usize = 32_768;

/// Marks a refused unit with a request for approval: a human has to find the record.
const APPROVAL: &str = "approval_request";
/// Marks a decision after an intent.
const EFFECT: &str = "above_bytes";

/// Fields equal in alike contacts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// `None`: users above the limit.
    user: Option<Arc<User>>,
    /// `None`: processes, providers and addresses above the limit.
    between: Option<Between>,
    operation: Option<Arc<str>>,
    stopped: bool,
    reason: Option<ReasonCode>,
}

/// A process, and a provider, else an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Between {
    process: Option<ProcessKey>,
    pid: Option<u32>,
    place: Option<Arc<str>>,
}

impl Key {
    /// The key for the other processes and places of the user.
    fn of_user(&self) -> Self {
        Self { between: None, operation: None, ..self.clone() }
    }

    /// The key for the other users.
    fn of_all(&self) -> Self {
        Self { user: None, ..self.of_user() }
    }
}

/// Alike contacts of a second.
#[derive(Clone, Debug)]
struct Window {
    since_mono_ns: u64,
    counted: Option<Box<Folded>>,
}

/// Alike contacts, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folded {
    /// The process of all; absent for several processes.
    pub(crate) who: Option<Who>,
    /// The first contact; absent for several places.
    pub(crate) what: Option<What>,
    /// The decision of all; policies as of the first.
    pub(crate) decision: Decided,
    /// The user of all, without a process or place in common.
    pub(crate) user: Option<Arc<User>>,
    pub(crate) count: u64,
    pub(crate) first_unix_ns: u64,
    pub(crate) last_unix_ns: u64,
}

/// A line to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Record(Box<Record>),
    Folded(Box<Folded>),
}

/// Treatment of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Written unchanged.
    Written,
    /// Counted, or waiting.
    Folded,
    /// Written after other lines.
    After(Vec<Line>),
    /// Replaced by other lines.
    Instead(Vec<Line>),
}

/// Rules for folding, as of now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms<'a> {
    /// Fold nothing: a failing disk has to show.
    pub(crate) suspended: bool,
    /// User with folded readable refusals.
    pub(crate) squeezed: Option<&'a User>,
}

/// Units by number, with a limit for each user and for all.
#[derive(Debug)]
struct Bounded<V> {
    of: HashMap<AwuId, (Arc<User>, V)>,
    users: HashMap<Arc<User>, usize>,
    of_user: usize,
    of_all: usize,
}

impl<V> Bounded<V> {
    fn new(of_user: usize, of_all: usize) -> Self {
        Self { of: HashMap::new(), users: HashMap::new(), of_user, of_all }
    }

    fn has_room(&self, user: &User) -> bool {
        self.of.len() < self.of_all && self.users.get(user).is_none_or(|it| *it < self.of_user)
    }

    fn insert(&mut self, awu: AwuId, user: &Arc<User>, value: V) {
        if self.of.insert(awu, (Arc::clone(user), value)).is_none() {
            more(&mut self.users, user);
        }
    }

    fn remove(&mut self, awu: AwuId) -> Option<V> {
        let (user, value) = self.of.remove(&awu)?;
        fewer(&mut self.users, &user);
        Some(value)
    }
}

/// Contacts of the present seconds.
#[derive(Debug)]
pub(crate) struct Fold {
    windows: HashMap<Key, Window>,
    keys_of: HashMap<Arc<User>, usize>,
    /// Windows, by the time of the next look.
    due: VecDeque<(u64, Key)>,
    /// Unwritten intents with a pending effect.
    waiting: Bounded<Box<Record>>,
    /// Open units counted as permitted.
    open: Bounded<Key>,
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            windows: HashMap::new(),
            keys_of: HashMap::new(),
            due: VecDeque::new(),
            waiting: Bounded::new(WAITING_OF_USER, WAITING),
            open: Bounded::new(OPEN_OF_USER, OPEN),
        }
    }
}

impl Fold {
    /// Takes a record before writing.
    pub(crate) fn take(&mut self, record: &Record, terms: Terms<'_>) -> Taken {
        match (record.kind, record.awu) {
            (RecordKind::Intent, Some(awu)) => self.intent(awu, record, terms),
            (RecordKind::Decision, Some(awu)) => {
                let taken = self.decision(awu, record, terms);
                if matches!(taken, Taken::Written | Taken::After(_)) {
                    self.count_others(record);
                }
                taken
            }
            (RecordKind::Reservation, Some(awu)) if self.open.of.contains_key(&awu) => {
                Taken::Folded
            }
            (RecordKind::Reconciliation, Some(awu)) => match self.open.remove(awu) {
                Some(_) => Taken::Folded,
                None => Taken::Written,
            },
            (RecordKind::Release, Some(awu)) => self.release(awu, record),
            // The record is about the records before it.
            (RecordKind::Breach | RecordKind::PolicyLoaded, _) => match self.close_all() {
                none if none.is_empty() => Taken::Written,
                lines => Taken::After(lines),
            },
            _ => Taken::Written,
        }
    }

    /// Time of the next work for [`Self::close`].
    pub(crate) fn next_close(&self) -> Option<u64> {
        self.due.front().map(|(at, _)| *at)
    }

    /// Returns the counts of past seconds.
    pub(crate) fn close(&mut self, now: Now) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some((at, key)) = self.due.pop_front_if(|(at, _)| *at <= now.mono_ns) {
            let Some(window) = self.windows.get_mut(&key).filter(|it| ends(it) == at) else {
                continue;
            };
            match window.counted.take() {
                Some(folded) => {
                    lines.push(Line::Folded(folded));
                    // The first contact of the next second is in the count.
                    window.since_mono_ns = now.mono_ns;
                    self.due.push_back((now.mono_ns.saturating_add(WINDOW_NS), key));
                }
                None => self.forget(&key),
            }
        }
        lines
    }

    /// Returns all counts so far, and begins anew.
    pub(crate) fn close_all(&mut self) -> Vec<Line> {
        self.due.clear();
        self.keys_of.clear();
        let counted = self.windows.drain().filter_map(|(_, it)| it.counted);
        let mut lines: Vec<Box<Folded>> = counted.collect();
        lines.sort_by_key(|it| it.first_unix_ns);
        lines.into_iter().map(Line::Folded).collect()
    }

    /// Returns all counts at the end, and the intents without an effect.
    pub(crate) fn finish(&mut self) -> Vec<Line> {
        let mut lines = self.close_all();
        let mut waiting: Vec<Box<Record>> =
            self.waiting.of.drain().map(|(_, (_, record))| record).collect();
        self.waiting.users.clear();
        waiting.sort_by_key(|it| it.at.mono_ns);
        lines.extend(waiting.into_iter().map(Line::Record));
        lines
    }

    fn intent(&mut self, awu: AwuId, record: &Record, terms: Terms<'_>) -> Taken {
        let Some(key) = key_of(record, terms) else { return Taken::Written };
        let Some(user) = key.user.clone() else { return Taken::Written };
        if self.is_counted(&key, record.at) && self.waiting.has_room(&user) {
            self.waiting.insert(awu, &user, Box::new(record.clone()));
            return Taken::Folded;
        }
        Taken::Written
    }

    fn decision(&mut self, awu: AwuId, record: &Record, terms: Terms<'_>) -> Taken {
        let stopped = is_refusal(record);
        if let Some(intent) = self.waiting.remove(awu) {
            if !stopped {
                // Bytes have left: a unit with records of its own after all.
                return Taken::After(vec![Line::Record(intent)]);
            }
            let key =
                key_of(&intent, Terms { suspended: false, squeezed: owner(&intent).as_ref() });
            if let Some(key) = key {
                self.count(&key, record, record.times);
                return Taken::Folded;
            }
            return Taken::After(vec![Line::Record(intent)]);
        }
        if says(record, EFFECT) {
            return Taken::Written;
        }
        let Some(key) = key_of(record, terms) else { return Taken::Written };
        let Some(user) = key.user.clone() else { return Taken::Written };
        if !stopped && !self.open.has_room(&user) || !self.is_counted(&key, record.at) {
            return Taken::Written;
        }
        let key = self.count(&key, record, record.times);
        if !stopped {
            self.open.insert(awu, &user, key);
        }
        Taken::Folded
    }

    /// Records a permitted unit kept back, because evidence could not be written.
    fn release(&mut self, awu: AwuId, record: &Record) -> Taken {
        let Some(key) = self.open.remove(awu) else { return Taken::Written };
        if let Some(window) = self.windows.get_mut(&key)
            && let Some(folded) = &mut window.counted
        {
            folded.count = folded.count.saturating_sub(1);
            if folded.count == 0 {
                window.counted = None;
            }
        }
        let mut gap = Record { kind: RecordKind::Gap, accounts: Vec::new(), ..record.clone() };
        gap.awu = None;
        gap.detail.push(("contacts", "1".to_owned()));
        Taken::Instead(vec![Line::Record(Box::new(gap))])
    }

    /// Whether a contact is only counted, because an alike contact was written less than a second
    /// ago. Otherwise the contact is the first, and is written.
    fn is_counted(&mut self, key: &Key, at: Now) -> bool {
        let found = self.place_of(key);
        if self.windows.contains_key(&found) {
            return true;
        }
        self.begin(found, at.mono_ns);
        false
    }

    /// The place of the count: a count of its own; without room, a count shared with other contacts
    /// of the user, or with other users.
    fn place_of(&self, key: &Key) -> Key {
        let of_user = key.of_user();
        let room = |limit: usize| {
            let taken = key.user.as_ref().and_then(|it| self.keys_of.get(it)).copied();
            taken.unwrap_or(0) < limit && self.windows.len() < KEYS
        };
        if self.windows.contains_key(key) || room(KEYS_OF_USER) {
            key.clone()
        } else if self.windows.contains_key(&of_user) || room(2 * KEYS_OF_USER) {
            of_user
        } else {
            key.of_all()
        }
    }

    fn begin(&mut self, key: Key, at_mono_ns: u64) {
        if let Some(user) = &key.user {
            more(&mut self.keys_of, user);
        }
        let window = Window { since_mono_ns: at_mono_ns, counted: None };
        self.due.push_back((ends(&window), key.clone()));
        self.windows.insert(key, window);
    }

    fn forget(&mut self, key: &Key) {
        if self.windows.remove(key).is_some()
            && let Some(user) = &key.user
        {
            fewer(&mut self.keys_of, user);
        }
    }

    /// Counts the other contacts for which a written decision stands.
    fn count_others(&mut self, record: &Record) {
        let others = record.times.saturating_sub(1);
        let squeezed = owner(record);
        let key = key_of(record, Terms { suspended: false, squeezed: squeezed.as_ref() });
        if let Some(key) = key.filter(|_| others > 0) {
            self.count(&key, record, others);
        }
    }

    /// Counts a decision; returns the key of the count.
    fn count(&mut self, key: &Key, record: &Record, times: u64) -> Key {
        let key = self.place_of(key);
        if !self.windows.contains_key(&key) {
            self.begin(key.clone(), record.at.mono_ns);
        }
        let Some(window) = self.windows.get_mut(&key) else { return key };
        let at = record.at.unix_ns;
        match &mut window.counted {
            Some(folded) => {
                folded.count = folded.count.saturating_add(times);
                folded.first_unix_ns = folded.first_unix_ns.min(at);
                folded.last_unix_ns = folded.last_unix_ns.max(at);
            }
            none => *none = begun(&key, record, times).map(Box::new),
        }
        key
    }
}

/// A new count.
fn begun(key: &Key, record: &Record, count: u64) -> Option<Folded> {
    let alone = key.between.is_some();
    let at = record.at.unix_ns;
    Some(Folded {
        who: record.who.clone().filter(|_| alone),
        what: record.what.clone().filter(|_| alone),
        decision: record.decision.clone()?,
        user: key.user.clone().filter(|_| !alone),
        count,
        first_unix_ns: at,
        last_unix_ns: at,
    })
}

fn ends(window: &Window) -> u64 {
    window.since_mono_ns.saturating_add(WINDOW_NS)
}

fn is_stop(result: PolicyResult) -> bool {
    matches!(result, PolicyResult::Blocked | PolicyResult::RateLimited)
}

fn says(record: &Record, what: &str) -> bool {
    record.detail.iter().any(|(key, _)| *key == what)
}

/// Whether a record decides a refusal.
pub(crate) fn is_refusal(record: &Record) -> bool {
    record.kind == RecordKind::Decision
        && record.decision.as_ref().is_some_and(|it| is_stop(it.result))
}

/// The owner of a record's unit: a user in one place.
pub(crate) fn owner(record: &Record) -> Option<User> {
    record.who.as_ref().map(user_of)
}

fn user_of(who: &Who) -> User {
    User { uid: who.uid, place: who.pod_uid.clone().or_else(|| who.container_id.clone()) }
}

/// The kind of a record; `None` for a record never folded.
fn key_of(record: &Record, terms: Terms<'_>) -> Option<Key> {
    let (who, what) = (record.who.as_ref()?, record.what.as_ref()?);
    let user = user_of(who);
    let unread = what.capture == CaptureLevel::Metadata;
    let (stopped, reason) = match &record.decision {
        Some(it) => (is_stop(it.result), it.reason.clone()),
        None => (true, intended(record)),
    };
    let squeezed = stopped && terms.squeezed == Some(&user) && !says(record, APPROVAL);
    // A refused unit with bytes sent is in the accounts.
    let drawn = reason.as_ref() == Some(&ReasonCode::NOT_PREVENTED);
    if terms.suspended || drawn || !(unread || squeezed) {
        return None;
    }
    let place = what.provider.as_deref().or(what.server.as_deref());
    Some(Key {
        user: Some(Arc::new(user)),
        between: Some(Between { process: who.process, pid: who.pid, place: place.map(Arc::from) }),
        operation: what.operation.as_deref().map(Arc::from),
        stopped,
        reason,
    })
}

/// The reason code of an intent.
fn intended(record: &Record) -> Option<ReasonCode> {
    let said = record.detail.iter().find(|(key, _)| *key == "code");
    said.and_then(|(_, code)| ReasonCode::parse(code))
}

fn more<K: Eq + Hash + Clone>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => {
            counts.insert(key.clone(), 1);
        }
    }
}

fn fewer<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use genops_governance::{Attribution, Mechanism};

    use super::*;

    const SQUEEZED: User = User { uid: Some(1_007), place: None };

    fn at(ms: u64) -> Now {
        Now { mono_ns: ms * 1_000_000, unix_ns: 1_795_000_000_000_000_000 + ms * 1_000_000 }
    }

    fn awu(number: u32) -> AwuId {
        let mut id = AwuId { trace: [7; 16], span: [0; 8] };
        id.span.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
        id
    }

    /// A record of a unit without a readable request.
    fn contact(ms: u64, kind: RecordKind, number: u32, (uid, pid): (u32, u32)) -> Record {
        let who = Who {
            attribution: Attribution { principal: "fetcher".to_owned(), ..Attribution::default() },
            process: Some(ProcessKey { pid, start_ns: 5 }),
            pid: Some(pid),
            exe: None,
            uid: Some(uid),
            user: None,
            systemd_unit: None,
            container_id: None,
            pod_uid: None,
            namespace: None,
            cgroup: None,
        };
        let what = What {
            operation: None,
            operation_type: "inference",
            provider: Some("mistral".to_owned()),
            model: None,
            region: None,
            server: None,
            api: None,
            capture: CaptureLevel::Metadata,
            mechanism: Mechanism::Connect,
        };
        Record {
            at: at(ms),
            kind,
            awu: Some(awu(number)),
            who: Some(who),
            what: Some(what),
            inputs: None,
            decision: None,
            accounts: Vec::new(),
            times: 1,
            detail: Vec::new(),
        }
    }

    fn decided(mut record: Record, result: PolicyResult, reason: Option<ReasonCode>) -> Record {
        record.decision = Some(Decided {
            result,
            reason,
            policy: None,
            matched: Vec::new(),
            policy_hash: [3; 32],
            epoch: 1,
            prevented: is_stop(result),
        });
        record
    }

    /// Intent and decision of a refusal with a known effect.
    fn refusal(ms: u64, number: u32, whose: (u32, u32)) -> [Record; 2] {
        let mut intent = contact(ms, RecordKind::Intent, number, whose);
        intent.detail = vec![("code", "x_uninspectable".to_owned())];
        let decision = contact(ms, RecordKind::Decision, number, whose);
        let code = Some(ReasonCode::UNINSPECTABLE);
        let mut decision = decided(decision, PolicyResult::Blocked, code);
        decision.detail = vec![(EFFECT, "0".to_owned())];
        [intent, decision]
    }

    /// The lines written for the records.
    fn written(fold: &mut Fold, records: &[Record], terms: Terms<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        for record in records {
            match fold.take(record, terms) {
                Taken::Written => lines.push(record.kind.as_str().to_owned()),
                Taken::Folded => {}
                Taken::After(before) => {
                    lines.extend(told(&before));
                    lines.push(record.kind.as_str().to_owned());
                }
                Taken::Instead(others) => lines.extend(told(&others)),
            }
        }
        lines
    }

    fn told(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|line| match line {
                Line::Record(record) => record.kind.as_str().to_owned(),
                Line::Folded(it) => {
                    let ms = |ns: u64| ns / 1_000_000 % 1_000_000;
                    let (first, last) = (ms(it.first_unix_ns), ms(it.last_unix_ns));
                    let whose = if it.who.is_some() { "one" } else { "some" };
                    format!("{} {first} {last} {whose}", it.count)
                }
            })
            .collect()
    }

    fn counted(lines: &[Line]) -> u64 {
        let count = |line: &Line| match line {
            Line::Folded(it) => it.count,
            Line::Record(_) => 0,
        };
        lines.iter().map(count).sum()
    }

    #[test]
    fn the_first_has_its_records_and_others_of_each_second_one_together() {
        let mut fold = Fold::default();
        let mut all = Vec::new();
        for number in 0..250 {
            let ms = 10 + u64::from(number) * 10;
            all.extend(told(&fold.close(at(ms))));
            all.extend(written(&mut fold, &refusal(ms, number, (7, 70)), Terms::default()));
        }
        all.extend(told(&fold.close(at(4_000))));
        assert_eq!(
            all,
            ["intent", "decision", "99 20 1000 one", "100 1010 2000 one", "50 2010 2500 one"]
        );
        // A second without contacts ends the count.
        assert!(fold.close(at(5_000)).is_empty());
        assert_eq!(fold.next_close(), None);
        let next = written(&mut fold, &refusal(6_000, 900, (7, 70)), Terms::default());
        assert_eq!(next, ["intent", "decision"]);
    }

    #[test]
    fn a_refusal_stands_for_all_that_the_kernel_only_counted() {
        let mut fold = Fold::default();
        let times = |records: [Record; 2], times| records.map(|it| Record { times, ..it });
        // The first is written, and the others counted.
        let first = times(refusal(10, 1, (7, 70)), 5);
        assert_eq!(written(&mut fold, &first, Terms::default()), ["intent", "decision"]);
        let next = times(refusal(20, 2, (7, 70)), 30);
        assert!(written(&mut fold, &next, Terms::default()).is_empty());
        // The kernel has not written them, whatever happens to the disk.
        let suspended = Terms { suspended: true, squeezed: None };
        let failing = times(refusal(30, 3, (7, 70)), 8);
        assert_eq!(written(&mut fold, &failing, suspended), ["intent", "decision"]);
        assert_eq!(told(&fold.close(at(1_010))), ["41 10 30 one"]);
    }

    #[test]
    fn what_differs_in_process_place_result_or_reason_is_counted_apart() {
        let mut fold = Fold::default();
        let mut differing =
            vec![refusal(1, 1, (7, 70)), refusal(1, 2, (7, 71)), refusal(1, 3, (8, 70))];
        let mut elsewhere = refusal(1, 4, (7, 70));
        for record in &mut elsewhere {
            let what = record.what.as_mut().expect("said");
            (what.provider, what.server) = (None, Some("192.0.2.7".to_owned()));
        }
        let mut otherwise = refusal(1, 5, (7, 70));
        for record in &mut otherwise {
            record.detail.retain(|(key, _)| *key != "code");
            record.detail.push(("code", "x_connection_denied".to_owned()));
            if let Some(decision) = &mut record.decision {
                decision.reason = Some(ReasonCode::CONNECTION_DENIED);
            }
        }
        differing.extend([elsewhere, otherwise]);
        for records in &differing {
            assert_eq!(written(&mut fold, records, Terms::default()), ["intent", "decision"]);
        }
        for (number, records) in (100..).zip(&differing) {
            for record in records {
                let again = Record { awu: Some(awu(number)), ..record.clone() };
                assert_eq!(fold.take(&again, Terms::default()), Taken::Folded);
            }
        }
        assert_eq!(told(&fold.close(at(1_001))), ["1 1 1 one"; 5]);
    }

    #[test]
    fn what_was_read_and_what_draws_on_accounts_keeps_its_records() {
        let mut fold = Fold::default();
        for number in 0..9 {
            let mut records = refusal(number.into(), number, (7, 70));
            for record in &mut records {
                record.what.as_mut().expect("said").capture = CaptureLevel::Partial;
            }
            assert_eq!(written(&mut fold, &records, Terms::default()), ["intent", "decision"]);
        }
        written(&mut fold, &refusal(20, 20, (7, 70)), Terms::default());
        // Bytes have left after all: all records of the accounts are written.
        let [intent, mut decision] = refusal(21, 21, (7, 70));
        let said = decision.decision.as_mut().expect("decided");
        (said.result, said.reason) = (PolicyResult::Warning, Some(ReasonCode::NOT_PREVENTED));
        let reservation = contact(21, RecordKind::Reservation, 21, (7, 70));
        let end = contact(22, RecordKind::Reconciliation, 21, (7, 70));
        let all = [intent, decision, reservation, end];
        assert_eq!(
            written(&mut fold, &all, Terms::default()),
            ["intent", "decision", "reservation", "reconciliation"]
        );
    }

    /// The records of a released connection, except the end.
    fn pass(ms: u64, number: u32) -> [Record; 2] {
        let decision = contact(ms, RecordKind::Decision, number, (7, 70));
        let code = Some(ReasonCode::UNINSPECTABLE);
        let decision = decided(decision, PolicyResult::Warning, code);
        [decision, contact(ms, RecordKind::Reservation, number, (7, 70))]
    }

    #[test]
    fn what_was_counted_as_permitted_is_not_heard_of_again_unless_it_was_kept_back() {
        let mut fold = Fold::default();
        let first = written(&mut fold, &pass(1, 1), Terms::default());
        assert_eq!(first, ["decision", "reservation"]);
        for number in 2..6 {
            assert!(written(&mut fold, &pass(2, number), Terms::default()).is_empty());
        }
        let kept_back = contact(3, RecordKind::Release, 2, (7, 70));
        assert_eq!(written(&mut fold, &[kept_back], Terms::default()), ["gap"]);
        assert_eq!(told(&fold.close(at(1_002))), ["3 2 2 one"]);
        for number in 1..6 {
            let end = contact(9_000, RecordKind::Reconciliation, number, (7, 70));
            let told = written(&mut fold, &[end], Terms::default());
            assert_eq!(told.len(), usize::from(number < 3), "{number}");
        }
        assert!(fold.open.of.is_empty() && fold.open.users.is_empty());
    }

    #[test]
    fn while_evidence_cannot_be_written_nothing_is_folded() {
        let mut fold = Fold::default();
        let suspended = Terms { suspended: true, squeezed: Some(&SQUEEZED) };
        for number in 0..5 {
            assert_eq!(
                written(&mut fold, &pass(1, number), suspended),
                ["decision", "reservation"]
            );
        }
    }

    #[test]
    fn refusals_of_whoever_is_squeezed_are_counted_and_nobody_elses() {
        let mut fold = Fold::default();
        let squeezed = Terms { suspended: false, squeezed: Some(&SQUEEZED) };
        let mut lines = [0; 2];
        for number in 0..40 {
            for (of, uid) in lines.iter_mut().zip([1_007, 1_008]) {
                let mut records = refusal(5, number + 100 * uid, (uid, uid));
                for record in &mut records {
                    record.what.as_mut().expect("said").capture = CaptureLevel::Full;
                }
                *of += written(&mut fold, &records, squeezed).len();
            }
        }
        assert_eq!(lines, [2, 80]);
        // A refusal waiting for an approval has to be found.
        let mut asks = refusal(6, 1, (1_007, 1_007));
        for record in &mut asks {
            record.what.as_mut().expect("said").capture = CaptureLevel::Full;
            record.detail.push((APPROVAL, "ab12".to_owned()));
        }
        assert_eq!(written(&mut fold, &asks, squeezed), ["intent", "decision"]);
        assert_eq!(counted(&fold.close_all()), 39);
    }

    #[test]
    fn what_is_counted_is_written_before_other_policies_and_at_the_end() {
        let mut fold = Fold::default();
        for number in 0..4 {
            written(&mut fold, &refusal(1, number, (7, 70)), Terms::default());
        }
        let loaded = Record { awu: None, ..contact(2, RecordKind::PolicyLoaded, 0, (0, 0)) };
        let lines = written(&mut fold, &[loaded], Terms::default());
        assert_eq!(lines, ["3 1 1 one", "policy_loaded"]);
        let [intent, decision] = refusal(3, 10, (7, 70));
        assert_eq!(
            written(&mut fold, &[intent, decision], Terms::default()),
            ["intent", "decision"]
        );
        let [intent, _] = refusal(3, 11, (7, 70));
        assert!(written(&mut fold, &[intent], Terms::default()).is_empty());
        assert_eq!(told(&fold.finish()), ["intent"]);
    }

    #[test]
    fn however_many_processes_and_places_all_are_counted_in_a_bounded_number_of_records() {
        let mut fold = Fold::default();
        let mut records = 0;
        for number in 0..30_000 {
            let mut both = refusal(1, number, (7, number));
            for record in &mut both {
                let what = record.what.as_mut().expect("said");
                (what.provider, what.server) = (None, Some(format!("198.51.100.{number}")));
            }
            records += written(&mut fold, &both, Terms::default()).len() as u64;
        }
        let lines = fold.close(at(1_001));
        assert_eq!(records / 2 + counted(&lines), 30_000);
        assert!(records < 150 && lines.len() < 3, "{records} and {}", lines.len());
        // A refusal of another user is told apart.
        let of_other = written(&mut fold, &refusal(1_002, 40_000, (8, 80)), Terms::default());
        assert_eq!(of_other, ["intent", "decision"]);
    }

    #[test]
    fn however_many_users_there_are_the_tables_are_bounded() {
        let mut fold = Fold::default();
        for number in 0..20_000 {
            written(&mut fold, &refusal(1, number, (number, number)), Terms::default());
            let [intent, _] = refusal(1, 100_000 + number, (number, number));
            written(&mut fold, &[intent], Terms::default());
        }
        assert!(fold.windows.len() <= KEYS + 8, "{}", fold.windows.len());
        assert!(fold.waiting.of.len() <= WAITING, "{}", fold.waiting.of.len());
        fold.close(at(2_000));
        fold.close(at(4_000));
        fold.close(at(6_000));
        assert!(fold.windows.is_empty() && fold.keys_of.is_empty());
    }
}
