//! The state behind the connections: who the processes are, the accounts, what calls did lately.
//!
//! What happens to a unit, from its request to its end. How it is decided is in [`super::decide`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use genops_protocols::{Call, Direction, Egress, Exchange, Hosts, Kind, Request};
use sha2::{Digest as _, Sha256};

use super::link::{Link, Opened, Refused, Running};
use super::{ConnId, Output};
use crate::approval::{Approval, LONGEST_NS};
use crate::awu::{Actual, Awu, AwuId, CaptureLevel, Outcome, Rung, Sla};
use crate::config::{Mode, Unit};
use crate::decision::{Decision, ReasonCode, Refusal};
use crate::ledger::{Demand, Entry, Ledger};
use crate::policy::Slice;
use crate::prices::Tokens;
use crate::principal::Identity;
use crate::process::{ProcessFacts, ProcessKey};
use crate::rate::Meters;
use crate::record::{Accounted, Decided, Record, RecordKind, What, Who};
use crate::settings::Settings;
use crate::sla::{self, Latencies};
use crate::telemetry::{has_output, operation_type};
use crate::time::Now;

/// How long a process is remembered after its end: what it sent may still be on its way.
const REMEMBER_NS: u64 = 10 * 1_000_000_000;

/// Most bytes of an unfinished request that are kept back: the sender may be waiting for room.
pub(super) const HOLD_BYTES: u64 = 64 * 1024;

/// Most blocked requests whose approval is still possible.
const PENDING_LIMIT: usize = 1_024;

/// Most principals whose provider failures are remembered.
const FAILURES_LIMIT: usize = 4_096;

/// A process as governance sees it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) facts: ProcessFacts,
    pub(super) identity: Identity,
    /// Its principal, and those that one is a sub-agent of.
    pub(super) lineage: Vec<String>,
    slice: OnceLock<Arc<Slice>>,
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
    processes: HashMap<ProcessKey, Arc<Subject>>,
    ended: VecDeque<(u64, ProcessKey)>,
    pub(super) meters: Meters,
    pub(super) latencies: Latencies,
    /// When a provider last failed a principal, by both names; monotonic.
    pub(super) failures: HashMap<(String, String), u64>,
    /// Who may not approve a blocked request: the people of its chain, and itself.
    pub(super) pending: BTreeMap<String, Vec<String>>,
    pub(super) outputs: VecDeque<Output>,
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
            failures: HashMap::new(),
            pending: BTreeMap::new(),
            outputs: VecDeque::new(),
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

    fn reclaimed(&self, share: &crate::ledger::Share) -> Accounted {
        let account = self.ledger.account(&share.key);
        Accounted {
            budget: Some(share.key.budget.clone()),
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
        self.put(Vec::new(), [policies, prices]);
    }

    /// Hands out changes of the ledger, then records.
    pub(super) fn put(&mut self, log: Vec<Entry>, records: impl IntoIterator<Item = Record>) {
        self.outputs.extend(log.into_iter().map(Output::Ledger));
        self.outputs.extend(records.into_iter().map(|it| Output::Record(Box::new(it))));
    }

    pub(super) fn reload(&mut self, now: Now, settings: Settings) {
        self.start(now);
        let before = self.settings.mode();
        self.settings = settings;
        self.epoch += 1;
        self.announce(now);
        if before != self.settings.mode() {
            let mut record = Record::new(now, RecordKind::ModeChange);
            let (from, to) = (before.name().to_owned(), self.settings.mode().name().to_owned());
            record.detail = vec![("from", from), ("to", to)];
            self.put(Vec::new(), [record]);
        }
        // Parents before children: a process starts after its parent.
        let mut keys: Vec<ProcessKey> = self.processes.keys().copied().collect();
        keys.sort_unstable_by_key(|it| (it.start_ns, it.pid));
        for key in keys {
            if let Some(subject) = self.processes.remove(&key) {
                self.process(subject.facts.clone());
            }
        }
    }

    pub(super) fn process(&mut self, facts: ProcessFacts) {
        let key = facts.key;
        let subject = self.subject_of(facts);
        let mapped = subject.identity.principal.is_some();
        self.processes.insert(key, Arc::new(subject));
        if mapped {
            self.adopt_children(key);
        }
    }

    /// Children that were told of before their parent take what it is.
    fn adopt_children(&mut self, parent: ProcessKey) {
        let of_parent =
            |it: &&Arc<Subject>| it.facts.parent == Some(parent) && it.identity.principal.is_none();
        let mut children: Vec<ProcessFacts> =
            self.processes.values().filter(of_parent).map(|it| it.facts.clone()).collect();
        children.sort_unstable_by_key(|it| it.key);
        for facts in children {
            self.process(facts);
        }
    }

    fn subject_of(&self, facts: ProcessFacts) -> Subject {
        let parent = facts.parent.and_then(|it| self.processes.get(&it));
        let inherited = parent.and_then(|it| it.identity.principal);
        let roster = &self.settings.0.roster;
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
        Arc::new(self.subject_of(facts))
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
        if request.call.kind == Kind::Inference && !known {
            self.open_unit(now, link, request);
        }
    }

    /// An exchange ended: its unit is settled and told.
    pub(super) fn exchange(&mut self, now: Now, link: &mut Link, exchange: Exchange) {
        let Exchange { call, response_complete } = exchange;
        if link.over.remove(&call.exchange) {
            return;
        }
        if let Some(running) = link.units.remove(&call.exchange) {
            self.finish(now, link, running, call, response_complete);
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
            let call = Call { exchange, kind: Kind::Inference, ..Call::default() };
            self.finish(now, link, running, call, false);
        }
    }

    /// After each turn: tells what was refused, and says how much more may leave.
    pub(super) fn settle_egress(&mut self, now: Now, link: &mut Link, egress: &Egress<'_>) {
        if link.rung() == Rung::None || link.closing {
            self.tell_refused(now, link, 0);
            return;
        }
        let mut to = egress.received;
        if let Some(open) = egress.open {
            let headless = open.call.method.is_none() && open.call.path.is_none();
            if headless || open.call.kind == Kind::Inference {
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

    /// Carries out a refusal of this turn: the connection is over. False: there was none.
    fn deny(&mut self, now: Now, link: &mut Link) -> bool {
        let Some(first) = link.refused.first().map(|it| it.opened.id) else { return false };
        let collateral = link.units.len() as u64;
        if !std::mem::replace(&mut link.denied, true) {
            self.outputs.push_back(Output::Deny { conn: link.id, awu: first, collateral });
        }
        self.tell_refused(now, link, collateral);
        true
    }

    fn tell_refused(&mut self, now: Now, link: &mut Link, collateral: u64) {
        for Refused { mut opened, refusal, call } in std::mem::take(&mut link.refused) {
            opened.enforcement.collateral = collateral;
            let awu = self.awu(now, link, opened, Outcome::Refused(refusal), call, false);
            self.outputs.push_back(Output::Awu(Box::new(awu)));
        }
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
            && open.call.kind == Kind::Inference
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
            let mut log = Vec::new();
            self.ledger.release(now.unix_ns, running.opened.id, &mut log);
            let mut record = Record::new(now, RecordKind::Release);
            record.awu = Some(running.opened.id);
            record.detail = vec![("reason", why.to_owned())];
            self.put(log, [record]);
        }
    }

    /// A unit that was permitted ended.
    fn finish(
        &mut self,
        now: Now,
        link: &Link,
        mut running: Running,
        call: Call,
        response_complete: bool,
    ) {
        for limit in &running.limits {
            self.meters.ended(limit);
        }
        if running.withheld {
            let refusal = Refusal::Block(ReasonCode::AccountingInvariantViolation);
            let outcome = Outcome::Refused(refusal);
            let awu = self.awu(now, link, running.opened, outcome, call, false);
            self.outputs.push_back(Output::Awu(Box::new(awu)));
            return;
        }
        running.sent |= call.status.is_some() || call.response_bytes > 0;
        let end_ns = call.end_at_ns.unwrap_or(now.mono_ns);
        let latency_ms = end_ns.saturating_sub(call.request_at_ns) / 1_000_000;
        self.note_outcome(now, &running, &call, response_complete, latency_ms);
        let cost = self.cost(now, &running, &call, response_complete);
        let Running { opened, permission, reservation, shares, sent, target, .. } = running;
        let outcome = if sent {
            let actual = self.settle(now, link, &opened, &reservation, &shares, &call, cost);
            Outcome::Executed(permission, reservation, actual)
        } else {
            self.release(now, link, &opened, &reservation, &call);
            Outcome::NotExecuted(permission, reservation)
        };
        let mut awu = self.awu(now, link, opened, outcome, call, response_complete);
        // What an assumed price gives is a bound for the accounts, not a cost.
        let priced = cost.filter(|_| !awu.grounds.price_assumed);
        awu.cost_nano_usd = priced.and_then(|it| it.nano_usd);
        let ran = awu.outcome.actual().is_some();
        awu.sla = target.filter(|_| ran).map(|it| Sla {
            tier: it.tier,
            target_ms: it.latency_ms,
            actual_ms: latency_ms,
        });
        self.outputs.push_back(Output::Awu(Box::new(awu)));
    }

    /// Remembers latency, cost and failures for later decisions.
    fn note_outcome(
        &mut self,
        now: Now,
        running: &Running,
        call: &Call,
        complete: bool,
        latency_ms: u64,
    ) {
        let principal = running.opened.attribution.principal.clone();
        let provider = call.provider.clone().unwrap_or_default();
        if !running.sent || !complete {
            return;
        }
        self.latencies.note(&format!("provider {provider}"), latency_ms);
        if let Some(target) = &running.target {
            let missed = u64::from(latency_ms > target.latency_ms);
            self.latencies.note(&target_key(target, &principal), missed);
        }
        let failed = call.status.is_some_and(|it| it >= 500);
        if failed && self.failures.len() < FAILURES_LIMIT {
            self.failures.insert((principal, provider), now.mono_ns);
        } else if !failed {
            self.failures.remove(&(principal, provider));
        }
    }

    /// What a call used, as far as its response says.
    fn cost(&mut self, now: Now, running: &Running, call: &Call, complete: bool) -> Option<Cost> {
        let usage = &call.usage;
        let reported = usage.input_tokens.is_some() || usage.output_tokens.is_some();
        if !reported {
            // The provider refused it, or failed: nothing was used.
            let rejected = call.status.is_some_and(|it| it >= 400) && complete;
            let nothing = Cost { tokens: 0, nano_usd: Some(0) };
            return rejected.then_some(nothing);
        }
        if !complete {
            return None;
        }
        let output = usage.output_tokens.or((!has_output(call)).then_some(0))?;
        let tokens = Tokens {
            input: usage.input_tokens?,
            output,
            cache_read: usage.cache_read_input_tokens.unwrap_or(0),
            cache_write: usage.cache_creation_input_tokens.unwrap_or(0),
            reasoning: usage.reasoning_output_tokens.unwrap_or(0),
            audio_input: usage.audio_input_tokens.unwrap_or(0),
            audio_output: usage.audio_output_tokens.unwrap_or(0),
        };
        let unix_s = now.unix_of(call.request_at_ns) / 1_000_000_000;
        let tier = call.service_tier.as_deref().or(call.params.service_tier.as_deref());
        let card = running.price.as_ref().and_then(|it| it.card(unix_s, tier));
        let nano_usd = card.map(|it| it.actual_nano_usd(&tokens));
        if let (Some(nano), false) = (nano_usd, running.opened.grounds.price_assumed) {
            let principal = &running.opened.attribution.principal;
            let model = call.request_model.as_deref().unwrap_or_default();
            self.latencies.note(&format!("cost {principal} {model}"), nano.unsigned_abs());
        }
        Some(Cost { tokens: tokens.input.saturating_add(tokens.output), nano_usd })
    }

    /// Settles the accounts of a unit that ran.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn settle(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        reservation: &crate::awu::Reservation,
        shares: &[Unit],
        call: &Call,
        cost: Option<Cost>,
    ) -> Actual {
        let used = |unit: Unit| cost.and_then(|it| it.in_unit(unit));
        let actuals: Option<Vec<i64>> = shares.iter().map(|unit| used(*unit)).collect();
        let known = used(reservation.unit);
        let accounts = self.accounts_of(opened.id);
        let mut log = Vec::new();
        self.ledger.settle(now.unix_ns, opened.id, actuals.clone(), &mut log);
        let mut record = Record::new(now, RecordKind::Reconciliation);
        self.fill(&mut record, link, opened, call);
        record.accounts = self.accounted(&accounts, reservation, |index, unit| {
            if accounts.is_empty() { used(unit) } else { actuals.as_ref()?.get(index).copied() }
        });
        self.put(log, [record]);
        Actual {
            amount: known.unwrap_or(reservation.amount),
            incomplete: known.is_none(),
            unix_ns: now.unix_ns,
        }
    }

    /// Frees what a unit that never ran had set aside.
    fn release(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        reservation: &crate::awu::Reservation,
        call: &Call,
    ) {
        let accounts = self.accounts_of(opened.id);
        let mut log = Vec::new();
        self.ledger.release(now.unix_ns, opened.id, &mut log);
        let mut record = Record::new(now, RecordKind::Release);
        self.fill(&mut record, link, opened, call);
        record.accounts = self.accounted(&accounts, reservation, |_, _| Some(0));
        self.put(log, [record]);
    }

    /// The shares that a unit holds.
    fn accounts_of(&self, awu: AwuId) -> Vec<crate::ledger::Share> {
        let own = self.ledger.open().find(|(it, _)| *it == awu);
        own.map(|(_, shares)| shares.to_vec()).unwrap_or_default()
    }

    /// The accounts of a record: one for each share, or one without a budget.
    pub(super) fn accounted(
        &self,
        shares: &[crate::ledger::Share],
        reservation: &crate::awu::Reservation,
        actual: impl Fn(usize, Unit) -> Option<i64>,
    ) -> Vec<Accounted> {
        let price_hash = self.settings.price_hash();
        let ledger_sequence = self.ledger.sequence();
        if shares.is_empty() {
            let actual = actual(0, reservation.unit);
            return vec![Accounted {
                budget: None,
                period: None,
                unit: reservation.unit,
                reserved: reservation.amount,
                actual,
                remaining: None,
                incomplete: actual.is_none(),
                price_hash,
                ledger_sequence,
            }];
        }
        let of_share = |(index, share): (usize, &crate::ledger::Share)| {
            let account = self.ledger.account(&share.key);
            let unit = account.map(|it| it.unit).unwrap_or_default();
            let actual = actual(index, unit);
            Accounted {
                budget: Some(share.key.budget.clone()),
                period: account.map(|it| it.period.clone()),
                unit,
                reserved: share.covered.saturating_add(share.beyond),
                actual,
                remaining: account.map(crate::ledger::Account::remaining),
                incomplete: actual.is_none(),
                price_hash,
                ledger_sequence,
            }
        };
        shares.iter().enumerate().map(of_share).collect()
    }

    /// Who and what of a record.
    pub(super) fn fill(&self, record: &mut Record, link: &Link, opened: &Opened, call: &Call) {
        let subject = self.subject(link);
        let facts = &subject.facts;
        record.awu = Some(opened.id);
        record.who = Some(Who {
            attribution: (*opened.attribution).clone(),
            process: link.process,
            pid: link.pid,
            exe: facts.exe.clone(),
            user: facts.user.clone(),
            systemd_unit: facts.systemd_unit.clone(),
            container_id: facts.container_id.clone(),
            pod_uid: facts.pod_uid.clone(),
            namespace: facts.namespace.clone(),
            cgroup: facts.cgroup.clone(),
        });
        record.what = Some(What {
            operation: call.operation.clone(),
            operation_type: operation_type(call),
            provider: call.provider.clone(),
            model: call.request_model.clone(),
            region: opened.region.clone(),
            server: call.server_address.clone(),
            api: call.api,
            capture: capture_of(call, opened.complete, true),
            rung: opened.enforcement.rung,
        });
    }

    /// Why a decision is as it is, in words, for its record.
    pub(super) fn explain(record: &mut Record, opened: &Opened) {
        let grounds = &opened.grounds;
        let reason = grounds.reason.iter().map(|it| ("reason", it.clone()));
        let request = grounds.approval_request.iter().map(|it| ("approval_request", it.clone()));
        record.detail.extend(reason.chain(request));
    }

    /// The decision of a record.
    pub(super) fn decided(&self, opened: &Opened, decision: &Decision) -> Decided {
        let grounds = &opened.grounds;
        Decided {
            result: decision.result(),
            reason: decision.reason().cloned(),
            policy: grounds.policy.clone(),
            matched: grounds.matched.clone(),
            policy_hash: grounds.policy_hash,
            epoch: self.epoch,
            prevented: matches!(decision, Decision::Refuse(_)),
        }
    }

    fn awu(
        &self,
        now: Now,
        link: &Link,
        opened: Opened,
        outcome: Outcome,
        call: Call,
        response_complete: bool,
    ) -> Awu {
        let Opened { id, attribution, grounds, enforcement, region, complete, .. } = opened;
        let refused = matches!(outcome, Outcome::Refused(_));
        let start_unix_ns = now.unix_of(call.request_at_ns);
        let end_unix_ns = call.end_at_ns.map_or(now.unix_ns, |at| now.unix_of(at));
        let exe = link.exe.clone();
        Awu {
            id,
            conn: link.name.clone(),
            capture: capture_of(&call, complete, refused || response_complete),
            call,
            response_complete,
            start_unix_ns,
            end_unix_ns: end_unix_ns.max(start_unix_ns),
            attribution,
            pid: link.pid,
            exe: exe.or_else(|| self.subject(link).facts.exe.clone()),
            outcome,
            grounds,
            enforcement,
            cost_nano_usd: None,
            region,
            sla: None,
        }
    }

    pub(super) fn approve(&mut self, now: Now, approval: Approval) -> Result<(), String> {
        self.start(now);
        let Approval { id, request, approver, given_unix_ns, expires_unix_ns, .. } = &approval;
        if *expires_unix_ns <= now.unix_ns {
            return Err(format!("the approval `{id}` has expired"));
        }
        if expires_unix_ns.saturating_sub(*given_unix_ns) > LONGEST_NS {
            return Err(format!("the approval `{id}` is valid for longer than 15 minutes"));
        }
        let involved = self
            .pending
            .get(request)
            .ok_or_else(|| format!("no blocked request waits for an approval of `{request}`"))?;
        if approver.trim().is_empty() || involved.contains(approver) {
            return Err(format!(
                "`{approver}` is part of the chain that asked; somebody else must approve"
            ));
        }
        if self.ledger.approvals().any(|it| it.id == *id) {
            return Err(format!("there is an approval `{id}` already"));
        }
        let mut record = Record::new(now, RecordKind::Approval);
        record.detail = vec![
            ("approval", id.clone()),
            ("request", request.clone()),
            ("approver", approver.clone()),
            ("ceiling_nano_usd", approval.ceiling_nano_usd.to_string()),
            ("expires_unix_ns", expires_unix_ns.to_string()),
        ];
        let mut log = Vec::new();
        self.ledger.approve(now.unix_ns, approval, &mut log);
        self.put(log, [record]);
        Ok(())
    }

    /// Notes a request that a human may approve, and who may not be that human.
    pub(super) fn await_approval(&mut self, request: String, involved: Vec<String>) {
        if self.pending.len() >= PENDING_LIMIT {
            self.pending.pop_first();
        }
        self.pending.insert(request, involved);
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
        let found = settings.0.budgets.iter().find(|it| it.name == budget);
        let Some(found) = found else { return Err(format!("there is no budget `{budget}`")) };
        let demand: Demand = found.demand(&self.ledger, now.unix_ns, delta);
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

    /// Refuses a unit: written down now, told at the end of the turn.
    pub(super) fn refuse(
        &mut self,
        now: Now,
        link: &mut Link,
        opened: Opened,
        refusal: Refusal,
        call: &Call,
        inputs: crate::record::Inputs,
    ) {
        let decision = Decision::Refuse(refusal.clone());
        let mut record = Record::new(now, RecordKind::Decision);
        self.fill(&mut record, link, &opened, call);
        record.inputs = Some(inputs);
        record.decision = Some(self.decided(&opened, &decision));
        Self::explain(&mut record, &opened);
        self.put(Vec::new(), [record]);
        link.over.insert(call.exchange);
        link.refused.push(Refused { opened, refusal, call: call.clone() });
    }
}

/// What a call used.
#[derive(Clone, Copy, Debug)]
struct Cost {
    tokens: u64,
    nano_usd: Option<i64>,
}

impl Cost {
    fn in_unit(self, unit: Unit) -> Option<i64> {
        match unit {
            Unit::Usd => self.nano_usd,
            Unit::Tokens => i64::try_from(self.tokens).ok(),
        }
    }
}

/// Under what name the misses of a target are counted.
pub(super) fn target_key(target: &sla::Target, principal: &str) -> String {
    format!("sla {} {principal}", target.tier)
}

/// Something of it was read that makes it an inference call.
fn is_readable(call: &Call) -> bool {
    call.api.is_some()
        || call.request_model.is_some()
        || call.response_model.is_some()
        || call.usage.input_tokens.is_some()
        || call.usage.output_tokens.is_some()
}

fn capture_of(call: &Call, request_complete: bool, response_complete: bool) -> CaptureLevel {
    let lost = call.missing_bytes > 0 || call.unreadable.is_some() || !call.request_seen;
    if lost || !request_complete || !response_complete {
        CaptureLevel::Partial
    } else {
        CaptureLevel::Full
    }
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
