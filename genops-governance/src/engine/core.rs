//! Engine state behind the connections: identities of processes, accounts, and recent outcomes of
//! calls.
//!
//! Covers a unit from the request to the end. The decision is in [`super::decide`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use genops_protocols::{Call, Direction, Egress, Exchange, Hosts, Kind, Request};
use sha2::{Digest as _, Sha256};

use super::effect::Stopped;
use super::link::{Link, Running};
use super::{ConnId, Output};
use crate::approval::{Approval, LONGEST_NS, Scope, Waiting};
use crate::authority::{Chain, Grants};
use crate::awu::{Attribution, AwuId, Mechanism};
use crate::config::{GrantConfig, Mode, Per, Unit};
use crate::decision::ReasonCode;
use crate::ledger::{Account, Closed, Demand, Entry, Ledger};
use crate::money;
use crate::policy::Slice;
use crate::principal::Identity;
use crate::process::{ProcessFacts, ProcessKey, User};
use crate::rate::Meters;
use crate::record::{Accounted, Record, RecordKind};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::sla::{self, Latencies};
use crate::time::{Now, Period};

/// Time a process is remembered after its end, because data sent before may still be in transit.
const REMEMBER_NS: u64 = 10 * 1_000_000_000;

/// Maximum bytes of an unfinished request held back: the sender may be waiting for room. A fresh
/// socket has about 40 KiB of room (`tcp_sndbuf_expand`, ten segments of an Ethernet, twice).
pub(super) const HOLD_BYTES: u64 = 24 * 1024;

/// Maximum length, in characters, of a recorded reason for refusing settings.
const REASON_LIMIT: usize = 2_048;

/// Maximum number of remembered provider failures.
const FAILURES_LIMIT: usize = 4_096;

/// Maximum number of blocked requests open to approval.
const PENDING_LIMIT: usize = 1_024;

/// Process from the governance view.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) facts: ProcessFacts,
    pub(super) identity: Identity,
    /// Principal of the process, followed by the principals above in the chain of sub-agents.
    pub(super) lineage: Vec<String>,
    pub(super) slice: OnceLock<Arc<Slice>>,
    /// Nothing is known of the process, not even a name.
    pub(super) nameless: bool,
}

/// State of the engine behind the connections.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) ledger: Ledger,
    entropy: [u8; 32],
    issued: u64,
    started: bool,
    pub(super) epoch: u64,
    pub(super) processes: HashMap<ProcessKey, Arc<Subject>>,
    ended: VecDeque<(u64, ProcessKey)>,
    pub(super) meters: Meters,
    pub(super) latencies: Latencies,
    /// Time of a provider's last failure for a principal, by both names; monotonic clock, in
    /// nanoseconds.
    pub(super) failures: Shared<u64>,
    /// Blocked requests open to approval by a human.
    pub(super) pending: Shared<Waiting>,
    /// Key of the digests for recognizing a repeated request.
    pub(super) approvals_key: [u8; 32],
    pub(super) outputs: VecDeque<Output>,
    /// Records of decisions carry the text sent to the model.
    pub(super) keeps_texts: bool,
    /// Units closed in the ledger and not recorded in the evidence.
    pub(super) unsaid: Vec<Closed>,
    /// The caller reads back the number of bytes sent on a refused connection.
    pub(super) awaits_effects: bool,
    /// Ended connections with the end not reported yet.
    pub(super) departed: BTreeMap<ConnId, Link>,
    /// Units recorded as stopped without a byte sent.
    pub(super) stopped: BTreeMap<ConnId, Vec<Stopped>>,
    /// For a repeated decision: limits and budgets with the maximum number of separate parts in
    /// use.
    pub(super) crowded: Vec<String>,
}

impl Core {
    pub(super) fn new(settings: Settings, ledger: Ledger, entropy: [u8; 32]) -> Self {
        Self {
            settings,
            ledger,
            entropy,
            issued: 0,
            started: false,
            epoch: 1,
            processes: HashMap::new(),
            ended: VecDeque::new(),
            meters: Meters::default(),
            latencies: Latencies::default(),
            failures: Shared::new(FAILURES_LIMIT),
            pending: Shared::new(PENDING_LIMIT),
            approvals_key: entropy,
            outputs: VecDeque::new(),
            keeps_texts: false,
            unsaid: Vec::new(),
            awaits_effects: false,
            departed: BTreeMap::new(),
            stopped: BTreeMap::new(),
            crowded: Vec::new(),
        }
    }

    pub(super) fn hosts(&self) -> Arc<Hosts> {
        self.settings.hosts()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Writes the initial records, as soon as a time is known.
    pub(super) fn start(&mut self, now: Now) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.announce(now, None);
        self.announce_grants(now, &Grants::default());
        for closed in std::mem::take(&mut self.unsaid) {
            let record = self.late(now, &closed);
            self.put(Vec::new(), [record]);
        }
        let open: Vec<(AwuId, Vec<crate::ledger::Share>)> =
            self.ledger.open().map(|(awu, shares)| (awu, shares.to_vec())).collect();
        for (awu, shares) in open {
            let mut log = Vec::new();
            self.ledger.settle(now.unix_ns, awu, None, &mut log);
            let mut record = Record::new(now, RecordKind::Reconciliation);
            record.awu = Some(awu);
            record.accounts = shares.iter().map(|it| self.reclaimed(it)).collect();
            self.put(log, [record]);
        }
    }

    /// Returns the record missing because the previous agent was killed before writing.
    fn late(&self, now: Now, closed: &Closed) -> Record {
        let Closed { sequence, awu, shares, settled } = closed;
        let kind = if settled.is_some() { RecordKind::Reconciliation } else { RecordKind::Release };
        let actual = |index: usize| match settled {
            None => Some(0),
            Some(actual) => actual.as_ref()?.get(index).copied(),
        };
        let mut record = Record::new(now, kind);
        record.awu = Some(*awu);
        record.accounts = shares.iter().map(|it| self.reclaimed(it)).collect();
        for (index, account) in record.accounts.iter_mut().enumerate() {
            account.actual = actual(index);
            account.incomplete = account.actual.is_none();
            account.ledger_sequence = *sequence;
        }
        let why = "the agent before was killed before it had written this down";
        record.detail = vec![("late", why.to_owned())];
        record
    }

    fn reclaimed(&self, share: &crate::ledger::Share) -> Accounted {
        let account = self.ledger.account(&share.key);
        Accounted {
            budget: Some(share.key.name()),
            period: account.map(|it| it.period.clone()),
            unit: account.map(|it| it.unit).unwrap_or_default(),
            reserved: share.covered.saturating_add(share.beyond),
            actual: None,
            remaining: account.map(Account::remaining),
            incomplete: true,
            price_hash: self.settings.price_hash(),
            ledger_sequence: self.ledger.sequence(),
        }
    }

    fn announce(&mut self, now: Now, before: Option<&Settings>) {
        let mut policies = Record::new(now, RecordKind::PolicyLoaded);
        policies.detail = vec![
            ("policies", self.settings.policy_count().to_string()),
            ("hash", crate::hex::hex(&self.settings.policy_hash())),
            ("epoch", self.epoch.to_string()),
            ("mode", self.settings.mode().name().to_owned()),
        ];
        let changed = self.changed_units(now, before);
        policies.detail.extend((!changed.is_empty()).then(|| ("units", changed.join("; "))));
        let mut prices = Record::new(now, RecordKind::PriceLoaded);
        prices.detail = vec![("hash", crate::hex::hex(&self.settings.price_hash()))];
        if let Some((file, sha256)) = self.settings.0.prices.file() {
            let of_file = [("file", file.to_owned()), ("file_sha256", sha256.to_owned())];
            prices.detail.extend(of_file);
        }
        self.put(Vec::new(), [policies, prices]);
    }

    /// Describes the budgets counting in another unit than in `before`, or than the accounts of a
    /// period still running.
    fn changed_units(&self, now: Now, before: Option<&Settings>) -> Vec<String> {
        let live =
            |account: &Account| i128::from(account.end_s) * 1_000_000_000 > i128::from(now.unix_ns);
        let mut changed = Vec::new();
        let settings = &self.settings.0;
        for budget in settings.budgets() {
            let accounts = self.ledger.of_budget(&budget.name).filter(|(_, it)| live(it));
            let units: BTreeSet<Unit> = accounts.map(|(key, _)| key.unit).collect();
            let known = before.and_then(|it| it.0.budgets().find(|it| it.name == budget.name));
            let known = known.map(|it| it.unit);
            let own = units.contains(&budget.unit);
            let from = known.or_else(|| units.first().copied().filter(|_| !own));
            if let Some(from) = from.filter(|it| *it != budget.unit) {
                let (from, to) = (from.as_str(), budget.unit.as_str());
                let how = if own { "goes on as it was" } else { "begins anew" };
                changed.push(format!("{}: {from} before, {to} now, {how}", budget.name));
            }
        }
        changed
    }

    /// Records the grants added and withdrawn since `before`.
    fn announce_grants(&mut self, now: Now, before: &Grants) {
        let settings = self.settings.clone();
        let grants = &settings.0.grants;
        let given = grants.given_since(before).map(|it| (RecordKind::Grant, it));
        let revoked = grants.revoked_since(before).map(|it| (RecordKind::Revoke, it));
        let records: Vec<Record> = given
            .chain(revoked)
            .map(|(kind, grant)| {
                let mut record = Record::new(now, kind);
                record.detail = granted(grant);
                record
            })
            .collect();
        self.put(Vec::new(), records);
    }

    /// Emits the changes of the ledger, then the records.
    pub(super) fn put(&mut self, log: Vec<Entry>, records: impl IntoIterator<Item = Record>) {
        self.outputs.extend(log.into_iter().map(Output::Ledger));
        self.outputs.extend(records.into_iter().map(|it| Output::Record(Box::new(it))));
    }

    /// See [`super::Engine::refused`].
    pub(super) fn refused(&mut self, now: Now, why: &str) {
        self.start(now);
        let mut record = Record::new(now, RecordKind::PolicyRefused);
        let reason = why.chars().take(REASON_LIMIT).collect();
        record.detail = vec![("reason", reason), ("epoch", self.epoch.to_string())];
        self.put(Vec::new(), [record]);
    }

    pub(super) fn reload(&mut self, now: Now, settings: Settings) {
        self.start(now);
        let before = self.settings.mode();
        let replaced = std::mem::replace(&mut self.settings, settings);
        self.epoch += 1;
        self.announce(now, Some(&replaced));
        self.announce_grants(now, &replaced.0.grants);
        if before != self.settings.mode() {
            let mut record = Record::new(now, RecordKind::ModeChange);
            let (from, to) = (before.name().to_owned(), self.settings.mode().name().to_owned());
            record.detail = vec![("from", from), ("to", to)];
            self.put(Vec::new(), [record]);
        }
        // Parents before children: a process starts after the parent.
        let mut subjects: Vec<Arc<Subject>> = self.processes.values().cloned().collect();
        subjects.sort_unstable_by_key(|it| (it.facts.key.start_ns, it.facts.key.pid));
        // The match of a process is found anew; an inherited principal is kept, because the parent
        // may be gone.
        self.processes.clear();
        for subject in subjects {
            let inherited = subject.identity.inherited;
            let before = subject.lineage.first().filter(|_| inherited).map(String::as_str);
            self.place(subject.facts.clone(), before);
        }
    }

    /// Registers a process. `started_by`: principal of an ancestor process, if seen at the start.
    pub(super) fn process(&mut self, facts: ProcessFacts, started_by: Option<&str>) {
        let key = facts.key;
        let before = self.principal(key).map(str::to_owned);
        let after = self.place(facts, before.as_deref().or(started_by));
        if after.is_some() && after != before {
            self.adopt_children(key);
        }
    }

    /// Registers a process and returns its current principal. `before`: principal before `execve`,
    /// or principal of the starting process.
    fn place(&mut self, facts: ProcessFacts, before: Option<&str>) -> Option<String> {
        let key = facts.key;
        let subject = self.subject_of(facts, before);
        let now = subject.lineage.first().cloned();
        self.processes.insert(key, Arc::new(subject));
        now
    }

    /// Gives the parent's principal to children registered before the parent.
    fn adopt_children(&mut self, parent: ProcessKey) {
        let of_parent =
            |it: &&Arc<Subject>| it.facts.parent == Some(parent) && it.identity.principal.is_none();
        let mut children: Vec<ProcessFacts> =
            self.processes.values().filter(of_parent).map(|it| it.facts.clone()).collect();
        children.sort_unstable_by_key(|it| it.key);
        for facts in children {
            self.process(facts, None);
        }
    }

    fn subject_of(&self, facts: ProcessFacts, before: Option<&str>) -> Subject {
        let roster = &self.settings.0.roster;
        let parent = facts.parent.and_then(|it| self.processes.get(&it));
        let parent = parent.filter(|it| it.facts.is_beside(&facts));
        let inherited = before.and_then(|it| roster.position(it));
        let inherited = inherited.or_else(|| parent?.identity.principal);
        let identity = roster.identify(&facts, inherited);
        let lineage = roster.lineage(identity.principal).map(|it| it.name.clone()).collect();
        let nameless = identity.attribution.project.is_none();
        Subject { facts, identity, lineage, slice: OnceLock::new(), nameless }
    }

    pub(super) fn process_exit(&mut self, now: Now, key: ProcessKey) {
        self.start(now);
        self.ended.push_back((now.mono_ns.saturating_add(REMEMBER_NS), key));
        self.tick(now);
    }

    pub(super) fn tick(&mut self, now: Now) {
        while let Some((at, key)) = self.ended.front().copied() {
            if at > now.mono_ns {
                break;
            }
            self.ended.pop_front();
            self.processes.remove(&key);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.ended.front().map(|(at, _)| *at)
    }

    pub(super) fn knows(&self, key: ProcessKey) -> bool {
        self.processes.contains_key(&key)
    }

    pub(super) fn facts(&self, key: ProcessKey) -> Option<&ProcessFacts> {
        self.processes.get(&key).map(|it| &it.facts)
    }

    pub(super) fn principal(&self, key: ProcessKey) -> Option<&str> {
        self.processes.get(&key)?.lineage.first().map(String::as_str)
    }

    pub(super) fn mode_of(&self, key: ProcessKey) -> Mode {
        self.processes.get(&key).map_or(self.settings.mode(), |it| it.identity.mode)
    }

    /// Returns the owner of a connection: the known process, or a process made from the
    /// connection's own data.
    pub(super) fn subject(&self, link: &Link) -> Arc<Subject> {
        if let Some(known) = link.process.and_then(|it| self.processes.get(&it)) {
            return Arc::clone(known);
        }
        let pid = link.pid.unwrap_or_default();
        let key = link.process.unwrap_or(ProcessKey { pid, start_ns: 0 });
        let comm = link.comm.clone().unwrap_or_default();
        let facts = ProcessFacts { exe: link.exe.clone(), ..ProcessFacts::bare(key, &comm) };
        Arc::new(self.subject_of(facts, None))
    }

    /// Returns the attribution of a request: the principal, with the customer, feature and session
    /// named by the request.
    pub(super) fn charged(&self, subject: &Subject, call: &Call) -> Arc<Attribution> {
        let principal = subject.identity.principal.and_then(|it| self.settings.0.roster.get(it));
        let said = principal.and_then(|it| it.attribute(call));
        said.map_or_else(|| Arc::clone(&subject.identity.attribution), Arc::new)
    }

    /// Returns the chain of grants of the subject's principal.
    pub(super) fn chain(&self, subject: &Subject) -> Option<&Chain> {
        let principal = subject.identity.principal?;
        self.settings.0.roster.get(principal).map(|it| &it.chain)
    }

    pub(super) fn slice<'s>(&self, subject: &'s Subject) -> &'s Arc<Slice> {
        let policies = &self.settings.0.policies;
        let who = &subject.identity.attribution;
        subject.slice.get_or_init(|| policies.slice(who, &subject.lineage))
    }

    /// Returns a new AWU identity: a hash of the entropy and a counter.
    pub(super) fn issue(&mut self) -> AwuId {
        let mut hash = Sha256::new();
        hash.update(self.entropy);
        hash.update(self.issued.to_be_bytes());
        self.issued += 1;
        let bytes: [u8; 32] = hash.finalize().into();
        let mut id = AwuId { trace: [0; 16], span: [0; 8] };
        let (trace, rest) = bytes.split_at(16);
        id.trace.copy_from_slice(trace);
        id.span.copy_from_slice(rest.split_at(8).0);
        id
    }

    pub(super) fn note_gap(
        &mut self,
        now: Now,
        conn: ConnId,
        direction: Direction,
        bytes: Option<u64>,
    ) {
        self.start(now);
        let direction = match direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        let mut record = Record::new(now, RecordKind::Gap);
        record.detail = vec![("conn", conn.0.to_string()), ("direction", direction.to_owned())];
        record.detail.extend(bytes.map(|it| ("bytes", it.to_string())));
        self.put(Vec::new(), [record]);
    }

    /// Decides a request, at the request's end or if no more can be read.
    pub(super) fn request(&mut self, now: Now, link: &mut Link, request: &Request<'_>) {
        let exchange = request.call.exchange;
        let known = link.over.contains(&exchange) || link.units.contains_key(&exchange);
        let unlisted = request.call.unlisted && self.enforces(link);
        if (request.call.kind == Kind::Inference || unlisted) && !known {
            let call = self.deciding(now, link, as_unit(request.call.clone()));
            self.open_unit(now, link, request, &call);
        }
    }

    /// Returns true if requests need digests, because a repeated request must be recognized.
    pub(super) fn wants_digests(&self) -> bool {
        self.settings.0.policies.has_approvals()
    }

    /// Returns true if any consumer needs the text of requests.
    pub(super) fn wants_texts(&self) -> bool {
        self.keeps_texts || self.settings.0.policies.has_content_rules()
    }

    /// Returns true if refusals on the connection are enforced.
    fn enforces(&self, link: &Link) -> bool {
        self.subject(link).identity.mode == Mode::Enforce
    }

    /// Settles and reports the unit of an ended exchange.
    pub(super) fn exchange(&mut self, now: Now, link: &mut Link, exchange: Exchange) {
        let Exchange { call, response_complete } = exchange;
        if link.over.remove(&call.exchange) {
            return self.answered_all_the_same(now, link, call, response_complete);
        }
        if let Some(running) = link.units.remove(&call.exchange) {
            self.finish(now, link, running, as_unit(call), response_complete);
        } else if call.kind == Kind::Inference && is_readable(&call) {
            // The request did not look like inference.
            let running = self.open_late(now, link, &call);
            self.finish(now, link, running, call, response_complete);
        }
    }

    /// Ends the units of an ended connection: the outcome of an exchange without an end from the
    /// decoder is unknown.
    pub(super) fn abandon(&mut self, now: Now, link: &mut Link) {
        self.tell_refused(now, link, 0);
        for (exchange, running) in std::mem::take(&mut link.units) {
            let unknown = Call { exchange, kind: Kind::Inference, ..Call::default() };
            let call = link.opaque.clone().unwrap_or(unknown);
            self.finish(now, link, running, call, false);
        }
    }

    /// Runs after each turn: reports the refused units and extends the released position.
    pub(super) fn settle_egress(&mut self, now: Now, link: &mut Link, egress: &Egress<'_>) {
        if link.mechanism() == Mechanism::None || link.closing {
            self.tell_refused(now, link, 0);
            return;
        }
        let mut to = egress.received;
        if let Some(open) = egress.open {
            let headless = open.call.method.is_none() && open.call.path.is_none();
            let unlisted = open.call.unlisted && self.enforces(link);
            if headless || unlisted || open.call.kind == Kind::Inference {
                to = open.start;
                if egress.received.saturating_sub(open.start) > HOLD_BYTES
                    && !link.denied
                    && !self.refuse_early(now, link, &open)
                {
                    to = egress.received;
                }
            }
        }
        if self.deny(now, link) || link.denied || to <= link.released {
            return;
        }
        link.released_before = std::mem::replace(&mut link.released, to);
        for running in link.units.values_mut().filter(|it| it.opened.end <= to) {
            running.sent = true;
        }
        self.outputs.push_back(Output::Release { conn: link.id, to });
    }

    /// Releases all egress of a connection, present and future.
    pub(super) fn let_go(&mut self, link: &mut Link) {
        link.released = u64::MAX;
        for running in link.units.values_mut() {
            running.sent = true;
        }
        if link.mechanism() != Mechanism::None {
            self.outputs.push_back(Output::Release { conn: link.id, to: u64::MAX });
        }
    }

    /// Enforces a refusal of the turn and ends the connection. Returns false if there was no
    /// refusal.
    pub(super) fn deny(&mut self, now: Now, link: &mut Link) -> bool {
        let Some(first) = link.refused.first().map(|it| it.opened.id) else { return false };
        let collateral = link.units.len() as u64;
        if !std::mem::replace(&mut link.denied, true) {
            self.outputs.push_back(Output::Deny { conn: link.id, awu: first, collateral });
        }
        self.tell_refused(now, link, collateral);
        true
    }

    pub(super) fn timed_out(
        &mut self,
        now: Now,
        link: &mut Link,
        egress: &Egress<'_>,
        to: u64,
        passed: bool,
    ) {
        self.start(now);
        if passed {
            link.passed = link.passed.max(to);
            link.released = link.released.max(to);
            for running in link.units.values_mut().filter(|it| it.opened.end <= to) {
                running.sent = true;
            }
            return;
        }
        link.stopped_by_deadline = true;
        if let Some(open) = egress.open
            && (open.call.kind == Kind::Inference || open.call.unlisted && self.enforces(link))
            && !link.denied
        {
            self.refuse_stopped(now, link, &open, egress.received);
            self.deny(now, link);
        }
    }

    /// See [`super::Engine::withhold`].
    pub(super) fn withhold(&mut self, now: Now, link: &mut Link) {
        link.denied = true;
        let kept = |it: &&mut Running| it.opened.end > link.released_before && !it.opened.under_way;
        let kept = link.units.values_mut().filter(kept);
        for running in kept.filter(|it| !it.withheld) {
            running.withheld = true;
            let why = "its evidence could not be made durable, so it was kept back";
            running.opened.grounds.reason = Some(why.to_owned());
            running.opened.grounds.policy = None;
            let accounts = self.accounts_of(running.opened.id);
            let mut log = Vec::new();
            self.ledger.release(now.unix_ns, running.opened.id, &mut log);
            let mut record = Record::new(now, RecordKind::Release);
            record.awu = Some(running.opened.id);
            record.accounts = self.accounted(&accounts, &running.reservation, |_, _| Some(0));
            record.detail = vec![("reason", why.to_owned())];
            self.put(log, [record]);
        }
    }

    pub(super) fn approve(
        &mut self,
        now: Now,
        mut approval: Approval,
        by: &[(&'static str, String)],
    ) -> Result<(), String> {
        self.start(now);
        let asked = approval.request.clone();
        let waiting = self
            .pending
            .get(&asked)
            .ok_or_else(|| format!("no blocked request waits for an approval of `{asked}`"))?;
        let kind = approval.scope == Scope::Kind;
        if !kind && !waiting.is_known {
            return Err(format!(
                "`{asked}` was not read whole, so it could not be known again; only `--kind` approves it"
            ));
        }
        if kind {
            approval.request.clone_from(&waiting.kind);
        }
        let Approval { id, request, approver, given_unix_ns, expires_unix_ns, .. } = &approval;
        if *expires_unix_ns <= now.unix_ns {
            return Err(format!("the approval `{id}` has expired"));
        }
        if expires_unix_ns.saturating_sub(*given_unix_ns) > LONGEST_NS {
            return Err(format!("the approval `{id}` is valid for longer than 15 minutes"));
        }
        if approver.trim().is_empty() || waiting.involves(approver) {
            return Err(format!(
                "`{approver}` is part of the chain that asked; somebody else must approve"
            ));
        }
        if let Some(worst) = waiting.worst_nano_usd.filter(|it| *it > approval.ceiling_nano_usd) {
            return Err(format!(
                "`{asked}` may cost up to {} USD, more than the approval covers",
                money::format_usd(worst)
            ));
        }
        let live = |it: &&Approval| it.request == *request && it.expires_unix_ns > now.unix_ns;
        if let Some(other) = self.ledger.approvals().find(live) {
            return Err(format!("`{}` approves it already, and was not used yet", other.id));
        }
        let mut record = Record::new(now, RecordKind::Approval);
        record.detail = vec![
            ("approval", id.clone()),
            ("request", request.clone()),
            ("scope", approval.scope.as_str().to_owned()),
            ("approver", approver.clone()),
            ("ceiling_nano_usd", approval.ceiling_nano_usd.to_string()),
            ("expires_unix_ns", expires_unix_ns.to_string()),
        ];
        record.detail.extend_from_slice(by);
        let mut log = Vec::new();
        self.ledger.approve(now.unix_ns, approval, &mut log);
        self.put(log, [record]);
        Ok(())
    }

    /// Notes a request open to approval by a human.
    pub(super) fn await_approval(&mut self, user: &User, request: &str, waiting: Waiting) {
        *self.pending.entry(user, request) = waiting;
    }

    pub(super) fn adjust(
        &mut self,
        now: Now,
        budget: &str,
        delta: i64,
        by: &str,
        why: &str,
    ) -> Result<(), String> {
        self.start(now);
        let settings = self.settings.clone();
        let named = |it: &'_ crate::budget::Budget| it.part_named(budget).is_some();
        let found = settings.0.budgets.iter().find(|it| named(it));
        let found = found.or_else(|| settings.0.grants.budget(budget));
        let Some(found) = found else { return Err(format!("there is no budget `{budget}`")) };
        let part = found.part_named(budget).flatten();
        let demand: Demand = found.demand(&self.ledger, now.unix_ns, delta, part);
        let mut log = Vec::new();
        self.ledger.adjust(now.unix_ns, &demand, by, why, &mut log);
        let mut record = Record::new(now, RecordKind::Override);
        record.detail = vec![
            ("budget", budget.to_owned()),
            ("period", demand.period.clone()),
            ("delta", delta.to_string()),
            ("unit", found.unit.as_str().to_owned()),
            ("by", by.to_owned()),
            ("why", why.to_owned()),
        ];
        self.put(log, [record]);
        Ok(())
    }
}

/// Returns the key of a provider's latencies.
pub(super) fn provider_key(provider: &str) -> String {
    format!("provider {provider}")
}

/// Returns the key of a provider's failures.
pub(super) fn failure_key(principal: &str, provider: &str) -> String {
    // No provider's name has a blank.
    format!("{provider} {principal}")
}

/// Returns the key of the misses of an SLA target.
pub(super) fn target_key(target: &sla::Target, principal: &str) -> String {
    format!("sla {} {principal}", target.tier)
}

/// Returns the call as a unit: a call neither known as inference nor known as harmless becomes a
/// unit with an unknown operation.
pub(super) fn as_unit(mut call: Call) -> Call {
    if call.kind != Kind::Inference && call.unlisted {
        call.kind = Kind::Inference;
        let operation = if call.counts_tokens { Call::COUNT_TOKENS } else { Call::UNKNOWN };
        call.operation = Some(operation.to_owned());
        call.request_model = call.request_model.or_else(|| call.unlisted_model.clone());
    }
    call
}

/// Returns true if a decoded field marks the call as inference.
fn is_readable(call: &Call) -> bool {
    call.api.is_some()
        || call.request_model.is_some()
        || call.response_model.is_some()
        || call.usage.input_tokens.is_some()
        || call.usage.output_tokens.is_some()
}

/// Returns the reason to refuse a request because of an earlier refusal on the connection.
pub(super) fn aftermath(link: &Link) -> Option<ReasonCode> {
    if link.stopped_by_deadline {
        Some(ReasonCode::DECISION_TIMEOUT)
    } else if link.denied || !link.refused.is_empty() {
        Some(ReasonCode::CONNECTION_DENIED)
    } else {
        None
    }
}

/// Describes a grant without naming persons; the persons are in the configuration named in
/// `policy_loaded`.
fn granted(grant: &GrantConfig) -> Vec<(&'static str, String)> {
    let GrantConfig { name, parent, not_before, expires, max_depth, budget, rate, purpose, .. } =
        grant;
    let budget = budget.as_ref().map(|it| {
        let period = it.period.unwrap_or(Period::Total).name();
        format!("{} {} {period}", it.limit, it.unit.as_str())
    });
    let depth = max_depth.map(|it| it.to_string());
    let requests = rate.as_ref().and_then(|it| {
        let per = it.per.unwrap_or(Per::Minute).name();
        Some(format!("{} {per}", it.requests?))
    });
    let concurrent = rate.as_ref().and_then(|it| it.concurrent).map(|it| it.to_string());
    let all = [
        ("grant", Some(name)),
        ("parent", parent.as_ref()),
        ("not_before", not_before.as_ref()),
        ("expires", expires.as_ref()),
        ("depth", depth.as_ref()),
        ("budget", budget.as_ref()),
        ("requests", requests.as_ref()),
        ("concurrent", concurrent.as_ref()),
        ("purpose", purpose.as_ref()),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?.clone()))).collect()
}
