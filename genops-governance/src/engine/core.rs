//! The state behind the connections: who the processes are, the accounts, what calls did lately.
//!
//! What happens to a unit, from its request to its end. How it is decided is in [`super::decide`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use genops_protocols::{Call, Direction, Egress, Exchange, Hosts, Kind, Request};
use sha2::{Digest as _, Sha256};

use super::link::Link;
use super::{ConnId, Output};
use crate::approval::{Approval, LONGEST_NS, Scope, Waiting};
use crate::authority::Grants;
use crate::awu::{Attribution, AwuId, Mechanism};
use crate::config::{GrantConfig, Mode};
use crate::decision::ReasonCode;
use crate::ledger::{Closed, Demand, Entry, Ledger};
use crate::money;
use crate::policy::Slice;
use crate::principal::Identity;
use crate::process::{ProcessFacts, ProcessKey, User};
use crate::rate::Meters;
use crate::record::{Accounted, Record, RecordKind};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::sla::{self, Latencies};
use crate::time::Now;

/// How long a process is remembered after its end: what it sent may still be on its way.
const REMEMBER_NS: u64 = 10 * 1_000_000_000;

/// Most bytes of an unfinished request that are kept back: the sender may be waiting for room. A fresh
/// socket has some 40 KiB of it (`tcp_sndbuf_expand`, ten segments of an Ethernet, twice).
pub(super) const HOLD_BYTES: u64 = 24 * 1024;

/// Most characters of why settings were refused that are written down.
const REASON_LIMIT: usize = 2_048;

/// Most failures of providers that are remembered.
const FAILURES_LIMIT: usize = 4_096;

/// Most blocked requests whose approval is still possible.
const PENDING_LIMIT: usize = 1_024;

/// A process as governance sees it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) facts: ProcessFacts,
    pub(super) identity: Identity,
    /// Its principal, and those that one is a sub-agent of.
    pub(super) lineage: Vec<String>,
    pub(super) slice: OnceLock<Arc<Slice>>,
    /// Nothing is known of it, not even a name.
    pub(super) nameless: bool,
}

/// See the module.
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
    /// When a provider last failed a principal, by both names; monotonic.
    pub(super) failures: Shared<u64>,
    /// Blocked requests that a human may approve.
    pub(super) pending: Shared<Waiting>,
    /// What requests are known again by.
    pub(super) approvals_key: [u8; 32],
    pub(super) outputs: VecDeque<Output>,
    /// Records of decisions carry what was sent to the model.
    pub(super) keeps_texts: bool,
    /// What the ledger has closed and evidence does not say.
    pub(super) unsaid: Vec<Closed>,
    /// What left of a refused connection is read back and told.
    pub(super) awaits_effects: bool,
    /// Connections that have ended, and of which that is not told yet.
    pub(super) departed: BTreeMap<ConnId, Link>,
    /// Units of which is written down that nothing of them left.
    pub(super) stopped: BTreeMap<ConnId, Vec<AwuId>>,
    /// Limits whose parts had been as many as are told apart, for a decision that is made again.
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

    /// What must be said first, as soon as there is a time to say it at.
    pub(super) fn start(&mut self, now: Now) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.announce(now);
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

    /// What the agent before would have written down, had it not been killed just then.
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
            remaining: account.map(crate::ledger::Account::remaining),
            incomplete: true,
            price_hash: self.settings.price_hash(),
            ledger_sequence: self.ledger.sequence(),
        }
    }

    fn announce(&mut self, now: Now) {
        let mut policies = Record::new(now, RecordKind::PolicyLoaded);
        policies.detail = vec![
            ("policies", self.settings.policy_count().to_string()),
            ("hash", crate::telemetry::hex(&self.settings.policy_hash())),
            ("epoch", self.epoch.to_string()),
            ("mode", self.settings.mode().name().to_owned()),
        ];
        let mut prices = Record::new(now, RecordKind::PriceLoaded);
        prices.detail = vec![("hash", crate::telemetry::hex(&self.settings.price_hash()))];
        if let Some((file, sha256)) = self.settings.0.prices.file() {
            let of_file = [("file", file.to_owned()), ("file_sha256", sha256.to_owned())];
            prices.detail.extend(of_file);
        }
        self.put(Vec::new(), [policies, prices]);
    }

    /// Writes down which grants came into force and which were withdrawn, against those before.
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

    /// Hands out changes of the ledger, then records.
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
        self.announce(now);
        self.announce_grants(now, &replaced.0.grants);
        if before != self.settings.mode() {
            let mut record = Record::new(now, RecordKind::ModeChange);
            let (from, to) = (before.name().to_owned(), self.settings.mode().name().to_owned());
            record.detail = vec![("from", from), ("to", to)];
            self.put(Vec::new(), [record]);
        }
        // Parents before children: a process starts after its parent.
        let mut subjects: Vec<Arc<Subject>> = self.processes.values().cloned().collect();
        subjects.sort_unstable_by_key(|it| (it.facts.key.start_ns, it.facts.key.pid));
        // What a process matches is found anew; what it inherited from one that has gone is not.
        self.processes.clear();
        for subject in subjects {
            let inherited = subject.identity.inherited;
            let before = subject.lineage.first().filter(|_| inherited).map(String::as_str);
            self.place(subject.facts.clone(), before);
        }
    }

    /// `started_by`: the principal of a process above it, where that was seen as it was started.
    pub(super) fn process(&mut self, facts: ProcessFacts, started_by: Option<&str>) {
        let key = facts.key;
        let before = self.principal(key).map(str::to_owned);
        let after = self.place(facts, before.as_deref().or(started_by));
        if after.is_some() && after != before {
            self.adopt_children(key);
        }
    }

    /// `before`: the principal that it was as another program, or was started by. What it is now.
    fn place(&mut self, facts: ProcessFacts, before: Option<&str>) -> Option<String> {
        let key = facts.key;
        let subject = self.subject_of(facts, before);
        let now = subject.lineage.first().cloned();
        self.processes.insert(key, Arc::new(subject));
        now
    }

    /// Children that were told of before their parent take what it is.
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

    /// Whose a connection is: a known process, or what the connection itself says.
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

    /// Whom a request is charged to: the principal, and whom the request itself says it is for.
    pub(super) fn charged(&self, subject: &Subject, call: &Call) -> Arc<Attribution> {
        let principal = subject.identity.principal.and_then(|it| self.settings.0.roster.get(it));
        let said = principal.and_then(|it| it.attribute(call));
        said.map_or_else(|| Arc::clone(&subject.identity.attribution), Arc::new)
    }

    pub(super) fn slice<'s>(&self, subject: &'s Subject) -> &'s Arc<Slice> {
        let policies = &self.settings.0.policies;
        let who = &subject.identity.attribution;
        subject.slice.get_or_init(|| policies.slice(who, &subject.lineage))
    }

    /// A new identity: a hash of the entropy and a counter.
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

    /// A request ended, or no more of it can be read: it is decided.
    pub(super) fn request(&mut self, now: Now, link: &mut Link, request: &Request<'_>) {
        let exchange = request.call.exchange;
        let known = link.over.contains(&exchange) || link.units.contains_key(&exchange);
        let unlisted = request.call.unlisted && self.enforces(link);
        if (request.call.kind == Kind::Inference || unlisted) && !known {
            let call = self.deciding(now, link, &as_unit(request.call));
            self.open_unit(now, link, request, &call);
        }
    }

    /// Whether requests must be known again.
    pub(super) fn wants_digests(&self) -> bool {
        self.settings.0.policies.has_approvals()
    }

    /// Whether anybody looks at what requests say.
    pub(super) fn wants_texts(&self) -> bool {
        self.keeps_texts || self.settings.0.policies.has_content_rules()
    }

    /// Whether refusals of whoever asks on this connection are carried out.
    fn enforces(&self, link: &Link) -> bool {
        self.subject(link).identity.mode == Mode::Enforce
    }

    /// An exchange ended: its unit is settled and told.
    pub(super) fn exchange(&mut self, now: Now, link: &mut Link, exchange: Exchange) {
        let Exchange { call, response_complete } = exchange;
        if link.over.remove(&call.exchange) {
            return;
        }
        if let Some(running) = link.units.remove(&call.exchange) {
            self.finish(now, link, running, as_unit(&call), response_complete);
        } else if call.kind == Kind::Inference && is_readable(&call) {
            // Its request did not look like one.
            let running = self.open_late(now, link, &call);
            self.finish(now, link, running, call, response_complete);
        }
    }

    /// The connection ended: units whose exchange the decoder never ended have no known outcome.
    pub(super) fn abandon(&mut self, now: Now, link: &mut Link) {
        self.tell_refused(now, link, 0);
        for (exchange, running) in std::mem::take(&mut link.units) {
            let unknown = Call { exchange, kind: Kind::Inference, ..Call::default() };
            let call = link.opaque.clone().unwrap_or(unknown);
            self.finish(now, link, running, call, false);
        }
    }

    /// After each turn: tells what was refused, and says how much more may leave.
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

    /// Everything of a connection may leave, whatever comes.
    pub(super) fn let_go(&mut self, link: &mut Link) {
        link.released = u64::MAX;
        for running in link.units.values_mut() {
            running.sent = true;
        }
        if link.mechanism() != Mechanism::None {
            self.outputs.push_back(Output::Release { conn: link.id, to: u64::MAX });
        }
    }

    /// Carries out a refusal of this turn: the connection is over. False: there was none.
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
        let kept = link.units.values_mut().filter(|it| it.opened.end > link.released_before);
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

    /// Notes a request that a human may approve.
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

/// Under what name the latencies of a provider are remembered.
pub(super) fn provider_key(provider: &str) -> String {
    format!("provider {provider}")
}

/// Under what name a provider's failure is remembered.
pub(super) fn failure_key(principal: &str, provider: &str) -> String {
    // No provider's name has a blank.
    format!("{provider} {principal}")
}

/// Under what name the misses of a target are counted.
pub(super) fn target_key(target: &sla::Target, principal: &str) -> String {
    format!("sla {} {principal}", target.tier)
}

/// As a unit: what is neither inference nor known to be harmless is one of an operation that nobody
/// knows.
pub(super) fn as_unit(call: &Call) -> Call {
    let mut call = call.clone();
    if call.kind != Kind::Inference && call.unlisted {
        call.kind = Kind::Inference;
        let operation = if call.counts_tokens { Call::COUNT_TOKENS } else { Call::UNKNOWN };
        call.operation = Some(operation.to_owned());
        call.request_model = call.request_model.or_else(|| call.unlisted_model.clone());
    }
    call
}

/// Something of it was read that makes it an inference call.
fn is_readable(call: &Call) -> bool {
    call.api.is_some()
        || call.request_model.is_some()
        || call.response_model.is_some()
        || call.usage.input_tokens.is_some()
        || call.usage.output_tokens.is_some()
}

/// What is refused because something else was.
pub(super) fn aftermath(link: &Link) -> Option<ReasonCode> {
    if link.stopped_by_deadline {
        Some(ReasonCode::DECISION_TIMEOUT)
    } else if link.denied || !link.refused.is_empty() {
        Some(ReasonCode::CONNECTION_DENIED)
    } else {
        None
    }
}

/// A grant in words that name no person; those are in the configuration that `policy_loaded` names.
fn granted(grant: &GrantConfig) -> Vec<(&'static str, String)> {
    let GrantConfig { name, parent, not_before, expires, .. } = grant;
    let all = [
        ("grant", Some(name)),
        ("parent", parent.as_ref()),
        ("not_before", not_before.as_ref()),
        ("expires", expires.as_ref()),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?.clone()))).collect()
}
