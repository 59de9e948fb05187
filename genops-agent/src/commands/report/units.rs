//! Reads records into calls: caller, end and usage of each AWU.
//!
//! A call counts once, however many budgets the call drew on. A call belongs to the moment of its
//! decision.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use anyhow::Context as _;
use genops_evidence::Directory;

use crate::evidence::filter::{Span, Which};
use crate::journal::entry::{Accounted, Entry, Kind, Text};

/// Labels of a call in a report. Unknown labels are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    pub(super) principal: Option<String>,
    pub(super) team: Option<String>,
    pub(super) project: Option<String>,
    pub(super) cost_center: Option<String>,
    pub(super) customer: Option<String>,
    pub(super) feature: Option<String>,
    pub(super) user: Option<String>,
    pub(super) exe: Option<String>,
    pub(super) provider: Option<String>,
    pub(super) model: Option<String>,
}

/// State of a call, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// About to be refused; no outcome is recorded.
    #[default]
    Undecided,
    /// Permitted, and neither settled nor released.
    Open,
    Settled,
    /// Permitted; the connection ended before any part of the call could run.
    Released,
    Refused,
    /// Sent despite a recorded refusal.
    Breached,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Open => "open",
            Self::Settled => "settled",
            Self::Released => "released",
            Self::Refused => "refused",
            Self::Breached => "breached",
        }
    }
}

/// Basis of the amount of a settled call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Basis {
    /// The provider's count, at a known price.
    Reported,
    /// The text seen, or an assumed price.
    Estimated,
    /// The whole reservation, for lack of a known usage.
    Reserved,
    /// Not recorded.
    #[default]
    Unrecorded,
}

impl Basis {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Reserved => "reserved",
            Self::Unrecorded => "unknown",
        }
    }
}

/// A call. Amounts are nano-USD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) labels: Rc<Labels>,
    /// Nanoseconds since 1970.
    pub(super) at: u64,
    /// Index of the first record.
    pub(super) seq: u64,
    pub(super) id: Rc<str>,
    pub(super) state: State,
    pub(super) result: Option<Rc<str>>,
    pub(super) reason: Option<Rc<str>>,
    /// Amount of a reservation for the call: the worst case, or the usual cost of similar calls.
    pub(super) wanted: Option<i64>,
    pub(super) reserved: Option<i64>,
    /// Amount charged for the call.
    pub(super) actual: Option<i64>,
    pub(super) basis: Basis,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) cached: Option<u64>,
    /// The answering model, if different from the requested model.
    pub(super) answered: Option<Rc<str>>,
    /// Number of further calls of the same kind: contacts without a readable request are counted in
    /// a single record.
    pub(super) more: u64,
    /// No request of the call was read: actual and possible cost are unknown.
    unread: bool,
    /// Accepted by the filter.
    meant: bool,
}

impl Unit {
    /// Returns the number of calls represented by the unit.
    pub(super) fn times(&self) -> u64 {
        self.more.saturating_add(1)
    }
}

/// Content of a log for a report.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// In the order of their beginnings.
    pub(super) units: Vec<Unit>,
    /// Time of each gap, and the number of lost records; 0 if anything but records was lost.
    pub(super) gaps: Vec<(u64, u64)>,
    pub(super) origin: String,
    pub(super) records: u64,
    pub(super) unreadable: u64,
    /// First kept record: earlier records were given up.
    pub(super) first: u64,
    /// Times of the first and the last record.
    pub(super) times: Option<(u64, u64)>,
}

/// Reads the calls accepted by the filter.
pub(super) fn read(directory: &Directory, which: &Which, span: Span) -> anyhow::Result<Read> {
    let place = directory.path().display();
    let head = crate::evidence::trusted_head(directory)?;
    let first = directory.first_kept().with_context(|| format!("{place}"))?;
    let mut reader = Reader::new(which);
    reader.read.first = first;
    let mut each = |_: u64, record: &[u8]| reader.record(record);
    directory.records(first, head.size, &mut each).with_context(|| format!("{place}"))?;
    directory.unpublished(head.size, &mut each).with_context(|| format!("{place}"))?;
    let mut read = reader.read;
    read.origin = head.origin;
    read.units.retain(|unit| unit.meant && span.takes(unit.at));
    read.gaps.retain(|(at, _)| span.takes(*at));
    Ok(read)
}

struct Reader<'w> {
    which: &'w Which,
    read: Read,
    places: HashMap<Rc<str>, usize>,
    /// Indices of units with counted refusals.
    folded: Vec<usize>,
    labels: HashSet<Rc<Labels>>,
    words: HashSet<Rc<str>>,
}

impl<'w> Reader<'w> {
    fn new(which: &'w Which) -> Self {
        Self {
            which,
            read: Read::default(),
            places: HashMap::new(),
            folded: Vec::new(),
            labels: HashSet::new(),
            words: HashSet::new(),
        }
    }

    fn record(&mut self, record: &[u8]) {
        self.read.records += 1;
        let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else {
            self.read.unreadable += 1;
            return;
        };
        let (from, to) = self.read.times.unwrap_or((entry.t, entry.t));
        self.read.times = Some((from.min(entry.t), to.max(entry.t)));
        match entry.kind {
            Kind::Gap => {
                let lost = detail(&entry, "records").and_then(|it| it.parse().ok()).unwrap_or(0);
                self.read.gaps.push((entry.t, lost));
            }
            Kind::Intent
            | Kind::Breach
            | Kind::Decision
            | Kind::Reservation
            | Kind::Reconciliation
            | Kind::Release => self.unit(&entry),
            Kind::Folded => self.folded(&entry),
            _ => {}
        }
    }

    fn unit(&mut self, entry: &Entry<'_>) {
        let Some(awu) = &entry.awu else { return };
        if entry.kind == Kind::Breach && !self.places.contains_key(awu.as_str()) {
            return self.breach_of_fold(awu.as_str(), entry);
        }
        let index = self.index(awu.as_str(), entry);
        let labels = entry.who.is_some().then(|| self.labels_of(entry));
        let word = |it: Option<&Text<'_>>| it.map(|it| it.as_str().to_owned());
        let dec = entry.dec.as_ref();
        let result = self.word(word(dec.map(|dec| &dec.result)));
        let reason = self.word(word(dec.and_then(|dec| dec.code.as_ref())));
        let answered = self.word(detail(entry, "answered").map(str::to_owned));
        let meant = self.which.takes(entry);
        let unread = entry.what.as_ref().is_some_and(|what| what.conf.as_str() == "metadata");
        let Some(unit) = self.read.units.get_mut(index) else { return };
        unit.unread |= unread;
        match entry.kind {
            Kind::Decision => {
                unit.at = entry.t;
                unit.meant = meant;
                unit.labels = labels.unwrap_or_default();
                unit.state = ended_as(result.as_deref(), State::Open);
                (unit.result, unit.reason) = (result, reason);
                // The recorded cost of a request refused half-read covers the half alone: not used.
                let whole = entry.inputs.as_ref().filter(|inputs| !inputs.early);
                let cost = whole.and_then(|inputs| inputs.cost);
                unit.wanted = cost.filter(|_| !unit.unread);
            }
            Kind::Reservation => {
                let reserved = most(&entry.bud, |it| Some(it.res));
                unit.reserved = reserved.filter(|_| !unit.unread).or(unit.wanted);
            }
            Kind::Reconciliation => settle(unit, entry, answered),
            Kind::Release => unit.state = State::Released,
            Kind::Breach => unit.state = State::Breached,
            _ => {}
        }
    }

    /// Adds similar contacts without a readable request, counted in a single record. The cost of
    /// contacts let go is unknown.
    fn folded(&mut self, entry: &Entry<'_>) {
        let labels = self.labels_of(entry);
        let word = |it: &Text<'_>| it.as_str().to_owned();
        let dec = entry.dec.as_ref();
        let result = self.word(dec.map(|dec| word(&dec.result)));
        let reason = self.word(dec.and_then(|dec| dec.code.as_ref()).map(word));
        let more = entry.fold.as_ref().map_or(0, |it| it.n.saturating_sub(1));
        let (at, seq, meant) = (entry.t, entry.seq, self.which.takes(entry));
        let state = ended_as(result.as_deref(), State::Settled);
        let unit = Unit { labels, at, seq, state, result, reason, more, meant, ..Unit::default() };
        if state == State::Refused && entry.fold.as_ref().is_some_and(|it| it.n > 0) {
            self.folded.push(self.read.units.len());
        }
        self.read.units.push(unit);
    }

    /// Adds a breach of a unit without a refusal record of its own: the unit was among the counted
    /// refusals, and now leaves their count. The report uses the labels of the counted refusals,
    /// unless the labels differ: then the origin of the unit is unknown.
    fn breach_of_fold(&mut self, awu: &str, entry: &Entry<'_>) {
        let index = self.index(awu, entry);
        let units = &mut self.read.units;
        let known = |at: &usize| units.get(*at).map(|it| (Rc::clone(&it.labels), it.meant));
        let mut kinds = self.folded.iter().filter_map(known);
        let first = kinds.next();
        let alike = first.filter(|one| kinds.all(|it| it == *one));
        if let Some(&last) = self.folded.last()
            && let Some(counted) = units.get_mut(last)
        {
            if let Some(rest) = counted.more.checked_sub(1) {
                counted.more = rest;
            } else {
                counted.meant = false;
                self.folded.pop();
            }
        }
        let Some(unit) = units.get_mut(index) else { return };
        unit.state = State::Breached;
        if let Some((labels, meant)) = alike {
            (unit.labels, unit.meant) = (labels, meant);
        }
    }

    /// Returns the index of a record's unit, and adds the unit if new.
    fn index(&mut self, awu: &str, entry: &Entry<'_>) -> usize {
        if let Some(index) = self.places.get(awu) {
            return *index;
        }
        let id: Rc<str> = awu.into();
        let labels = self.labels_of(entry);
        let meant = self.which.takes(entry);
        let (at, seq, state) = (entry.t, entry.seq, State::Open);
        let state = if entry.kind == Kind::Intent { State::Undecided } else { state };
        let unit = Unit { labels, at, seq, state, meant, id: Rc::clone(&id), ..Unit::default() };
        self.read.units.push(unit);
        let index = self.read.units.len() - 1;
        self.places.insert(id, index);
        index
    }

    fn word(&mut self, text: Option<String>) -> Option<Rc<str>> {
        let word: Rc<str> = text?.into();
        Some(intern(&mut self.words, word))
    }

    fn labels_of(&mut self, entry: &Entry<'_>) -> Rc<Labels> {
        let (who, what) = (entry.who.as_ref(), entry.what.as_ref());
        let text = |it: Option<&Text<'_>>| it.map(|it| it.as_str().to_owned());
        let user = who.and_then(|who| {
            text(who.user.as_ref()).or_else(|| who.uid.map(|uid| format!("uid {uid}")))
        });
        let labels = Rc::new(Labels {
            principal: text(who.map(|who| &who.prin)),
            team: text(who.and_then(|who| who.team.as_ref())),
            project: text(who.and_then(|who| who.proj.as_ref())),
            cost_center: text(who.and_then(|who| who.cc.as_ref())),
            customer: text(who.and_then(|who| who.cust.as_ref())),
            feature: text(who.and_then(|who| who.feat.as_ref())),
            user,
            exe: text(who.and_then(|who| who.exe.as_ref())),
            provider: text(what.and_then(|what| what.prov.as_ref())),
            model: text(what.and_then(|what| what.model.as_ref())),
        });
        intern(&mut self.labels, labels)
    }
}

/// Returns the state of a refusal, or `otherwise`.
fn ended_as(result: Option<&str>, otherwise: State) -> State {
    match result {
        Some("BLOCKED" | "RATE_LIMITED") => State::Refused,
        _ => otherwise,
    }
}

/// Keeps a single copy of equal values.
fn intern<T: ?Sized + Eq + Hash>(known: &mut HashSet<Rc<T>>, value: Rc<T>) -> Rc<T> {
    if let Some(known) = known.get(&value) {
        return Rc::clone(known);
    }
    known.insert(Rc::clone(&value));
    value
}

/// Settles a call that ran: amount charged, and basis of the amount.
fn settle(unit: &mut Unit, entry: &Entry<'_>, answered: Option<Rc<str>>) {
    let number = |key: &str| detail(entry, key).and_then(|it| it.parse().ok());
    let incomplete = entry.bud.iter().any(|it| it.inc);
    let assumed = detail(entry, "price").is_some();
    unit.state = State::Settled;
    if !unit.unread {
        unit.reserved = unit.reserved.or_else(|| most(&entry.bud, |it| Some(it.res)));
    }
    unit.basis = match detail(entry, "basis") {
        Some("reported") if !assumed => Basis::Reported,
        Some("reported" | "estimated") => Basis::Estimated,
        Some("reserved") => Basis::Reserved,
        _ if incomplete => Basis::Reserved,
        _ => Basis::Unrecorded,
    };
    let cost = detail(entry, "cost").and_then(|it| it.parse().ok());
    let charged = || most(&entry.bud, |it| it.act.or_else(|| it.inc.then_some(it.res)));
    unit.actual = cost.or_else(charged).filter(|_| !unit.unread);
    (unit.input, unit.output, unit.cached) = (number("in"), number("out"), number("cached"));
    unit.answered = answered;
}

/// Returns the largest amount in nano-USD: a call drawing on several budgets counts as a single
/// amount.
fn most(accounts: &[Accounted<'_>], of: impl Fn(&Accounted<'_>) -> Option<i64>) -> Option<i64> {
    accounts.iter().filter(|it| it.unit.as_str() == "nUSD").filter_map(of).max()
}

fn detail<'e>(entry: &'e Entry<'_>, key: &str) -> Option<&'e str> {
    entry.det.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value.as_str())
}
