//! How a request is decided: the fixed order of steps, of which the first that fails decides.
//!
//! 1 identity, 2 grants, 3 policies, 4 approval, 5 rate and concurrency, 6 reservation; then the
//! warnings. Where a refusal can't be carried out (observe mode, nothing held, or everything has
//! left already) it is a warning with the same code, and what the call may use is still noted.

use std::sync::Arc;

use genops_protocols::{Call, OpenRequest, Request};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::core::{Core, Subject, aftermath, as_unit, failure_key, provider_key, target_key};
use super::estimate::Ask;
use super::link::{Link, Opened, Running};
use crate::approval::{Approval, Scope, Waiting};
use crate::awu::{AwuId, BudgetView, Grounds, Held, Mechanism, Reservation};
use crate::config::{Mode, Signal, Unit, UnknownModel, Unmapped};
use crate::decision::{Decision, Permission, ReasonCode, Refusal};
use crate::ledger::{Demand, Shortfall};
use crate::money;
use crate::policy::{Facts, Matched, Opinion, Policies, Severity};
use crate::rate::{Limit, Meter, Meters, Reached};
use crate::record::{Had, Inputs, Metered, Record, RecordKind, Seen, Texts};
use crate::settings::Settings;
use crate::sla;
use crate::telemetry::hex;
use crate::time::Now;

/// For how long a provider's failure makes the next call to it a warning.
const FAILURE_NS: u64 = 60 * 1_000_000_000;

/// Why a request is not simply allowed.
#[derive(Clone, Debug)]
pub(super) struct Objection {
    severity: Severity,
    pub(super) code: ReasonCode,
    pub(super) policy: Option<String>,
    reason: String,
    signal: Option<Signal>,
    /// Budgets that have not enough left.
    short: Vec<BudgetView>,
}

impl Objection {
    pub(super) fn block(code: ReasonCode, policy: Option<&str>, reason: impl Into<String>) -> Self {
        let (policy, reason) = (policy.map(str::to_owned), reason.into());
        Self { severity: Severity::Block, code, policy, reason, signal: None, short: Vec::new() }
    }

    fn of(matched: &Matched) -> Self {
        let reason = matched.reason.clone().unwrap_or_else(|| "a policy forbids it".to_owned());
        let (severity, code, signal) = (matched.severity, matched.code.clone(), matched.signal);
        let policy = Some(matched.id.clone());
        Self { severity, code, policy, reason, signal, short: Vec::new() }
    }

    pub(super) fn refusal(&self) -> Refusal {
        match self.severity {
            Severity::LimitRate => Refusal::LimitRate(self.code.clone()),
            Severity::Block | Severity::Warn => Refusal::Block(self.code.clone()),
        }
    }
}

/// Which mutating steps were done.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// In what it was counted.
    counted: Option<Vec<Meter>>,
    reserved: bool,
}

impl Core {
    /// Opens the unit of a request and decides it.
    pub(super) fn open_unit(
        &mut self,
        now: Now,
        link: &mut Link,
        request: &Request<'_>,
        call: &Call,
    ) {
        self.start(now);
        let subject = self.subject(link);
        let texts: Vec<&str> = request.texts().collect();
        let text_bytes = texts.iter().map(|it| it.len() as u64).sum::<u64>();
        let text_bytes = text_bytes.saturating_add(request.texts_dropped_bytes());
        let chars = texts.iter().map(|it| it.chars().count() as u64).sum::<u64>();
        let policies = self.settings.clone();
        let slice = self.slice(&subject);
        let content = policies.0.policies.content(slice, &texts);
        let unseen = request.texts_truncated() && Policies::looks_at_content(slice);
        let bytes = call.request_bytes.max(text_bytes);
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: is_whole(call, request.complete) && !unseen,
            inspectable: true,
            content,
            start: request.start,
            end: request.end,
            estimate: self.estimate(now, &subject, call, bytes, None),
            region: self.region(call),
            asked: (text_bytes, chars),
            texts: if self.keeps_texts { Texts::of(&texts) } else { Texts::default() },
            digest: request.digest,
        };
        self.decide(now, link, &subject, &ask, request.complete);
    }

    /// Opens a unit of which only the end was seen: nothing can be prevented any more.
    pub(super) fn open_late(&mut self, now: Now, link: &mut Link, call: &Call) -> Running {
        self.start(now);
        let subject = self.subject(link);
        let estimate = self.estimate(now, &subject, call, call.request_bytes, None);
        let region = self.region(call);
        let texts = Texts::default();
        let content = vec![];
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: false,
            inspectable: true,
            content,
            start: 0,
            end: 0,
            estimate,
            region,
            asked: (0, 0),
            texts,
            digest: None,
        };
        let id = self.issue();
        let seen = self.seen(now, &subject, &ask, false);
        let opinion = self.opinion(now, &subject, &ask, None);
        let mut done = Done::default();
        let objection = self.objection(now, id, &subject, &ask, &opinion, None, &mut done);
        self.permit(now, id, link, &subject, &ask, &opinion, objection, None, done, false, seen)
    }

    fn decide(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        complete: bool,
    ) {
        let id = self.issue();
        let mut seen = self.seen(now, subject, ask, link.can_prevent(ask.end));
        let after = aftermath(link).map(|code| (code, "nothing more of this connection may leave"));
        let differ = differing(ask.call)
            .filter(|_| seen.preventable && subject.identity.mode == Mode::Enforce);
        if let Some((code, why)) = after.or(differ) {
            seen.settled = Some(code.clone());
            let objection = Objection::block(code, None, why);
            let opened = self.opened(now, id, link, subject, ask, &objection, complete);
            let inputs = inputs(ask, 0, None, seen);
            self.refuse(now, link, subject, ask, opened, objection.refusal(), inputs);
            return;
        }
        let approval = self.approval_for(now, subject, ask);
        let opinion = self.opinion(now, subject, ask, approval.as_deref());
        let mut done = Done::default();
        let objection =
            self.objection(now, id, subject, ask, &opinion, approval.as_deref(), &mut done);
        let enforced = subject.identity.mode == Mode::Enforce && seen.preventable;
        match objection {
            Some(objection) if enforced => {
                for meter in done.counted.iter().flatten() {
                    self.meters.ended(meter);
                }
                let mut opened = self.opened(now, id, link, subject, ask, &objection, complete);
                opened.grounds.matched = opinion.matched();
                if objection.code == ReasonCode::APPROVAL_REQUIRED {
                    let request = self.await_human(subject, ask);
                    opened.grounds.approval_request = Some(request);
                }
                let left = opened.enforcement.bytes_before_decision;
                let inputs = inputs(ask, left, None, seen);
                self.refuse(now, link, subject, ask, opened, objection.refusal(), inputs);
            }
            objection => {
                let running = self.permit(
                    now, id, link, subject, ask, &opinion, objection, approval, done, complete,
                    seen,
                );
                link.units.insert(ask.call.exchange, running);
            }
        }
    }

    /// Steps 1 to 6. What was counted and reserved on the way is in `done`.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn objection(
        &mut self,
        now: Now,
        id: AwuId,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
        approval: Option<&str>,
        done: &mut Done,
    ) -> Option<Objection> {
        if let Some(objection) = self.standing(now, subject, ask, opinion, approval.is_some()) {
            return Some(objection);
        }
        match self.count(now, subject, ask) {
            Err(reached) => return Some(rate_objection(&reached)),
            Ok(counted) => done.counted = Some(counted),
        }
        let demands = self.demands(now, subject, ask);
        if let Some(objection) = unread_objection(ask, &demands) {
            return Some(objection);
        }
        if let Some(objection) = self.price_objection(ask, &demands) {
            return Some(objection);
        }
        let mut log = Vec::new();
        let reserved = self.ledger.reserve(now.unix_ns, id, &demands, &mut log);
        self.put(log, []);
        done.reserved = reserved.is_ok();
        let objection = reserved.err().map(|short| shortfall_objection(&short, &demands));
        objection.map(|mut it| {
            it.short = self.short_of(&demands);
            if is_unpriced(ask) {
                it.reason = format!("{} (x_price_unknown: {})", it.reason, unpriced(ask));
            }
            it
        })
    }

    /// Steps 1 to 4: nothing is counted.
    pub(super) fn standing(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
        approved: bool,
    ) -> Option<Objection> {
        if subject.nameless {
            let why = "nothing is known of the process that asks";
            return Some(Objection::block(ReasonCode::IDENTITY_UNRESOLVED, None, why));
        }
        let settings = &self.settings.0;
        let unmapped = subject.identity.principal.is_none();
        if unmapped && settings.unmapped == Unmapped::Block && settings.mode == Mode::Enforce {
            let why = "no configured principal matches the process";
            return Some(Objection::block(ReasonCode::UNMAPPED_PRINCIPAL, None, why));
        }
        let principal = subject.identity.principal.and_then(|it| settings.roster.get(it));
        if let Some(Err((code, link))) = principal.map(|it| it.chain.check(now.unix_ns)) {
            let why = format!("the grant `{link}` does not hold: {}", grant_fault(&code));
            return Some(Objection::block(code, Some(link), why));
        }
        if let Some((policy, error)) = &opinion.error {
            let why = format!("the policy can't be evaluated: {error}");
            return Some(Objection::block(ReasonCode::POLICY_ERROR, Some(policy), why));
        }
        if let Some(first) = opinion.refusals.first() {
            return Some(explained(first, ask));
        }
        if opinion.not_permitted {
            let why = "no policy permits it";
            return Some(Objection::block(ReasonCode::NO_AUTHORITY, None, why));
        }
        opinion.approvals.first().filter(|_| !approved).map(Objection::of)
    }

    /// Opens a unit that may run: with what was reserved, or noted where nothing can stop it.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn permit(
        &mut self,
        now: Now,
        id: AwuId,
        link: &Link,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
        objection: Option<Objection>,
        approval: Option<String>,
        mut done: Done,
        complete: bool,
        seen: Seen,
    ) -> Running {
        let mut log = Vec::new();
        let (demands, warning) =
            self.weigh(now, id, subject, ask, opinion, objection, &mut done, &mut log);
        if let Some(approval) = &approval {
            self.ledger.use_approval(now.unix_ns, approval, &mut log);
        }
        let reservation = self.reservation(now, ask, &demands);
        let permission = match &warning {
            None => Permission::Allow,
            Some(it) => Permission::Warn(it.code.clone()),
        };
        let empty = Objection::block(ReasonCode::NO_AUTHORITY, None, "");
        let grounds = warning.as_ref().unwrap_or(&empty);
        let mut opened = self.opened(now, id, link, subject, ask, grounds, complete);
        opened.grounds.matched = opinion.matched();
        opened.grounds.alerts = self.alerts(&demands, warning.as_ref());
        opened.grounds.approval.clone_from(&approval);
        let inputs = inputs(ask, opened.enforcement.bytes_before_decision, approval, seen);
        self.write_permit(now, link, &opened, &permission, &reservation, inputs, log, ask.call);
        let lineage = &subject.lineage;
        let model = ask.call.request_model.as_deref();
        Running {
            opened,
            permission,
            reservation,
            shares: demands.iter().map(|it| it.unit).collect(),
            sent: link.mechanism() == Mechanism::None || link.passed >= ask.end,
            withheld: false,
            price: ask.estimate.price.as_ref().map(|it| it.price.clone()),
            asked: ask.asked,
            limits: done.counted.unwrap_or_default(),
            target: sla::find(&self.settings.0.targets, lineage, model).cloned(),
        }
    }

    /// Counts and sets aside for a call that may run, as far as that was not done; what it draws on,
    /// and what speaks for a closer look at it.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn weigh(
        &mut self,
        now: Now,
        id: AwuId,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
        objection: Option<Objection>,
        done: &mut Done,
        log: &mut Vec<crate::ledger::Entry>,
    ) -> (Vec<Demand>, Option<Objection>) {
        if done.counted.is_none() {
            done.counted = Some(self.count_unchecked(now, subject, ask));
        }
        let demands = self.demands(now, subject, ask);
        if !done.reserved {
            self.ledger.reserve_unchecked(now.unix_ns, id, &demands, log);
        }
        let warning = objection.or_else(|| self.warning(now, subject, ask, opinion, &demands));
        (demands, warning)
    }

    /// What stands in memory that the decision will look at.
    fn seen(&self, now: Now, subject: &Subject, ask: &Ask<'_>, preventable: bool) -> Seen {
        let who = &subject.identity.attribution.principal;
        let settings = &self.settings.0;
        let provider = ask.call.provider.clone().unwrap_or_default();
        let p95_latency_ms = self.latencies.p95(&provider_key(&provider));
        let metered = |(_, meter): (&Limit, Meter)| {
            let (ahead_ns, running) = self.meters.reading(&meter, now.mono_ns);
            Metered { limit: meter.name(), ahead_ns, running }
        };
        let had = |demand: &Demand| {
            let account = self.ledger.standing(demand);
            let (allocated, remaining) = (account.allocated(), account.remaining());
            Had { budget: demand.key.name(), allocated, remaining }
        };
        let model = ask.call.request_model.as_deref();
        let target = sla::find(&settings.targets, &subject.lineage, model);
        Seen {
            preventable,
            settled: None,
            early: false,
            stream: ask.call.stream,
            p95_latency_ms,
            slow: target.is_some_and(|it| self.is_slow(it, who)),
            failed: self.has_failed(now, who, &provider),
            limits: self.limits(subject, ask).into_iter().map(metered).collect(),
            budgets: self.demands(now, subject, ask).iter().map(had).collect(),
        }
    }

    /// Too many of the last calls missed the target.
    fn is_slow(&self, target: &sla::Target, principal: &str) -> bool {
        self.latencies.p95(&target_key(target, principal)) == Some(1)
    }

    fn has_failed(&self, now: Now, principal: &str, provider: &str) -> bool {
        let failed = self.failures.get(&failure_key(principal, provider));
        failed.is_some_and(|at| now.mono_ns.saturating_sub(*at) < FAILURE_NS)
    }

    /// Ledger, decision, reservation: in the order in which they must be durable.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn write_permit(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        permission: &Permission,
        reservation: &Reservation,
        inputs: Inputs,
        log: Vec<crate::ledger::Entry>,
        call: &Call,
    ) {
        let mut decision = Record::new(now, RecordKind::Decision);
        self.fill(&mut decision, link, opened, call);
        decision.inputs = Some(inputs);
        let decided = self.decided(opened, &Decision::Permit(permission.clone()));
        decision.decision = Some(decided);
        Self::explain(&mut decision, opened);
        let mut reserved = Record::new(now, RecordKind::Reservation);
        self.fill(&mut reserved, link, opened, call);
        let shares = self.ledger.open().find(|(it, _)| *it == opened.id);
        let shares = shares.map(|(_, it)| it.to_vec()).unwrap_or_default();
        reserved.accounts = self.accounted(&shares, reservation, |_, _| None);
        for account in &mut reserved.accounts {
            account.incomplete = false;
        }
        self.put(log, [decision, reserved]);
    }

    /// What speaks for a closer look although it may run.
    pub(super) fn warning(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
        demands: &[Demand],
    ) -> Option<Objection> {
        if let Some(first) = opinion.warnings.first() {
            return Some(explained(first, ask));
        }
        if subject.identity.principal.is_none() {
            let why = "no configured principal matches the process";
            return Some(Objection::block(ReasonCode::UNMAPPED_PRINCIPAL, None, why));
        }
        let settings = &self.settings.0;
        let who = &subject.identity.attribution.principal;
        let model = ask.call.request_model.as_deref();
        let target = sla::find(&settings.targets, &subject.lineage, model);
        if let Some(target) = target.filter(|it| self.is_slow(it, who)) {
            let why = format!("of the last calls, too many took over {} ms", target.latency_ms);
            return Some(Objection::block(
                ReasonCode::SlaLatencyViolation,
                Some(&target.tier),
                why,
            ));
        }
        let provider = ask.call.provider.as_deref().unwrap_or_default();
        if self.has_failed(now, who, provider) {
            let why = "the provider failed less than a minute ago";
            return Some(Objection::block(ReasonCode::ProviderErrorUpstream, None, why));
        }
        let over = demands.iter().find_map(|it| self.threshold(it));
        over.or_else(|| {
            let known = ask.estimate.price.as_ref();
            let assumed = ask.inspectable && known.is_none_or(|it| it.assumed);
            assumed.then(|| Objection::block(ReasonCode::PRICE_UNKNOWN, None, unpriced(ask)))
        })
    }

    /// The budgets that have less left than is wanted of them.
    fn short_of(&self, demands: &[Demand]) -> Vec<BudgetView> {
        let views = self.views(demands);
        let is_short = |it: &BudgetView| {
            demands
                .iter()
                .any(|wanted| wanted.key.budget == it.name && wanted.amount > it.remaining)
        };
        views.into_iter().filter(is_short).collect()
    }

    /// The budgets of a request that may run which somebody should look at, as they stand now.
    fn alerts(&self, demands: &[Demand], warning: Option<&Objection>) -> Vec<BudgetView> {
        let is_due = |it: &&Demand| {
            let short = warning.iter().flat_map(|it| &it.short);
            self.threshold(it).is_some()
                || short.into_iter().any(|short| short.name == it.key.name())
        };
        let due: Vec<Demand> = demands.iter().filter(is_due).cloned().collect();
        self.views(&due)
    }

    fn threshold(&self, demand: &Demand) -> Option<Objection> {
        let budget = self.settings.0.budgets.iter().find(|it| it.name == demand.key.budget)?;
        let account = self.ledger.account(&demand.key)?;
        let allocated = account.allocated().max(1);
        let used = i128::from(allocated - account.remaining()) * 100 / i128::from(allocated);
        let reached = budget.thresholds.iter().rfind(|it| used >= i128::from(**it))?;
        let why = format!("over {reached} % of the budget is used or set aside");
        Some(Objection::block(ReasonCode::BUDGET_THRESHOLD, Some(&demand.key.name()), why))
    }

    /// More than [`super::core::HOLD_BYTES`] of an unfinished request are there. True: it is
    /// refused already, since nothing that is still to come could save it.
    pub(super) fn refuse_early(
        &mut self,
        now: Now,
        link: &mut Link,
        open: &OpenRequest<'_>,
    ) -> bool {
        let subject = self.subject(link);
        if link.over.contains(&open.exchange) {
            return true;
        }
        if subject.identity.mode != Mode::Enforce {
            return false;
        }
        let unit = Call { exchange: open.exchange, ..as_unit(open.call) };
        let call = &self.deciding(now, link, &unit);
        let unread = !is_readable_so_far(call);
        let content = self.matching(link, &subject, open);
        if call.request_model.is_none() && !unread && content.is_empty() {
            return false;
        }
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: !unread,
            inspectable: true,
            content,
            start: open.start,
            end: u64::MAX,
            estimate: self.estimate(now, &subject, call, open.body_bytes, Some(0)),
            region: self.region(call),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        };
        let opinion = self.opinion(now, &subject, &ask, Some(""));
        let mut seen = Seen { early: true, ..self.seen(now, &subject, &ask, true) };
        let differ = differing(call).map(|(code, why)| {
            seen.settled = Some(code.clone());
            Objection::block(code, None, why)
        });
        let objection = differ.or_else(|| self.early_objection(now, &subject, &ask, &opinion));
        let Some(objection) = objection else { return false };
        let id = self.issue();
        let mut opened = self.opened(now, id, link, &subject, &ask, &objection, false);
        opened.grounds.matched = opinion.matched();
        let left = opened.enforcement.bytes_before_decision;
        let inputs = inputs(&ask, left, None, seen);
        self.refuse(now, link, &subject, &ask, opened, objection.refusal(), inputs);
        true
    }

    /// What no rest of a request could change.
    pub(super) fn early_objection(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
        opinion: &Opinion,
    ) -> Option<Objection> {
        self.standing(now, subject, ask, opinion, true)
            .or_else(|| unread_objection(ask, &self.demands(now, subject, ask)))
    }

    /// Names of the content rules that the text seen so far matches. What was looked at before is not
    /// looked at again, but for as much of it as a match may begin in.
    fn matching(&self, link: &mut Link, subject: &Subject, open: &OpenRequest<'_>) -> Vec<String> {
        /// Bytes that a match may have begun before the text that is new.
        const OVERLAP: usize = 4 << 10;
        let slice = self.slice(subject);
        if !Policies::looks_at_content(slice) {
            return Vec::new();
        }
        let (exchange, before) = link.matched_to;
        let from = if exchange == open.exchange { before.saturating_sub(OVERLAP) } else { 0 };
        link.matched_to = (open.exchange, open.text_bytes());
        let texts: Vec<String> = open.texts_from(from);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.settings.0.policies.content(slice, &texts)
    }

    /// The call as it is decided: where several models may answer, with the one that is refused, else
    /// the dearest.
    pub(super) fn deciding(&mut self, now: Now, link: &Link, call: &Call) -> Call {
        let mut deciding = call.clone();
        if call.other_models.is_empty() {
            return deciding;
        }
        let subject = self.subject(link);
        let mut dearest = self.worst(now, &subject, call);
        for model in &call.other_models {
            let other = Call { request_model: Some(model.clone()), ..call.clone() };
            let refused = |core: &Self, call: &Call| core.refuses_model(now, &subject, call);
            let cost = self.worst(now, &subject, &other);
            if refused(self, &deciding) {
                break;
            }
            if refused(self, &other) || cost > dearest {
                dearest = cost;
                deciding = other;
            }
        }
        deciding
    }

    fn worst(&self, now: Now, subject: &Subject, call: &Call) -> i64 {
        let guess = self.estimate(now, subject, call, call.request_bytes, None);
        guess.worst_nano_usd.unwrap_or(i64::MAX)
    }

    fn refuses_model(&self, now: Now, subject: &Subject, call: &Call) -> bool {
        let ask = Ask {
            call,
            who: self.charged(subject, call),
            readable: true,
            inspectable: true,
            content: Vec::new(),
            start: 0,
            end: 0,
            estimate: self.estimate(now, subject, call, call.request_bytes, None),
            region: self.region(call),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        };
        !self.opinion(now, subject, &ask, None).refusals.is_empty()
    }

    /// Refuses a connection of which no request can be read.
    pub(super) fn refuse_opaque(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        objection: &Objection,
    ) {
        let id = self.issue();
        let seen = self.seen(now, subject, ask, true);
        let opened = self.opened(now, id, link, subject, ask, objection, false);
        let inputs = inputs(ask, 0, None, seen);
        self.refuse(now, link, subject, ask, opened, objection.refusal(), inputs);
    }

    /// Lets such a connection pass; nothing is counted or set aside for it.
    pub(super) fn permit_opaque(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        warning: Option<Objection>,
    ) {
        let id = self.issue();
        let seen = self.seen(now, subject, ask, link.can_prevent(u64::MAX));
        let done = Done { counted: Some(Vec::new()), reserved: true };
        let opinion = Opinion::default();
        let mut running =
            self.permit(now, id, link, subject, ask, &opinion, warning, None, done, false, seen);
        running.limits.clear();
        running.shares.clear();
        link.units.insert(ask.call.exchange, running);
    }

    /// The kernel's deadline stopped a request before it could be decided.
    pub(super) fn refuse_stopped(
        &mut self,
        now: Now,
        link: &mut Link,
        open: &OpenRequest<'_>,
        received: u64,
    ) {
        let subject = self.subject(link);
        let call = &Call { exchange: open.exchange, ..as_unit(open.call) };
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: false,
            inspectable: true,
            content: Vec::new(),
            start: open.start,
            end: received,
            estimate: self.estimate(now, &subject, call, open.body_bytes, None),
            region: self.region(call),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        };
        let settled = Some(ReasonCode::DECISION_TIMEOUT);
        let seen = Seen { settled, ..self.seen(now, &subject, &ask, false) };
        let why = "no decision came before the deadline, and the configuration refuses then";
        let objection = Objection::block(ReasonCode::DECISION_TIMEOUT, None, why);
        let id = self.issue();
        let opened = self.opened(now, id, link, &subject, &ask, &objection, false);
        let inputs = inputs(&ask, 0, None, seen);
        self.refuse(now, link, &subject, &ask, opened, objection.refusal(), inputs);
    }

    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn opened(
        &self,
        now: Now,
        id: AwuId,
        link: &Link,
        subject: &Subject,
        ask: &Ask<'_>,
        objection: &Objection,
        complete: bool,
    ) -> Opened {
        let settings = &self.settings;
        let said = !objection.reason.is_empty();
        Opened {
            id,
            attribution: Arc::clone(&ask.who),
            grounds: Grounds {
                policy: objection.policy.clone(),
                reason: said.then(|| objection.reason.clone()),
                signal: objection.signal,
                matched: Vec::new(),
                unix_ns: now.unix_ns,
                approval_request: None,
                approval: None,
                alerts: objection.short.clone(),
                price_assumed: ask.estimate.price.as_ref().is_some_and(|it| it.assumed),
                price_hash: settings.price_hash(),
                policy_hash: settings.policy_hash(),
            },
            enforcement: Held {
                mode: subject.identity.mode,
                mechanism: link.mechanism(),
                timed_out: link.stopped_by_deadline || (ask.end > 0 && link.passed >= ask.end),
                bytes_before_decision: link.left_of(ask.start, ask.end),
                collateral: 0,
            },
            region: ask.region.clone(),
            end: ask.end,
            complete,
        }
    }

    /// What the policies say.
    pub(super) fn opinion(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
        approval: Option<&str>,
    ) -> Opinion {
        let who = &ask.who;
        let call = ask.call;
        let provider = call.provider.as_deref().unwrap_or_default();
        let model = call.request_model.as_deref().unwrap_or_default().to_lowercase();
        let facts = Facts {
            provider,
            model: &model,
            operation: call.operation.as_deref().unwrap_or_default(),
            region: ask.region.as_deref().unwrap_or_default(),
            server: call.server_address.as_deref().unwrap_or_default(),
            environment: who.environment.as_deref().unwrap_or_default(),
            customer_id: who.customer_id.as_deref().unwrap_or_default(),
            feature: who.feature.as_deref().unwrap_or_default(),
            session_id: who.session_id.as_deref().unwrap_or_default(),
            est_nano_usd: ask.estimate.worst_nano_usd,
            est_tokens: ask.estimate.tokens(),
            max_output_tokens: ask.estimate.output_tokens,
            request_bytes: call.request_bytes,
            p95_latency_ms: self.latencies.p95(&provider_key(provider)).unwrap_or(0),
            stream: call.stream,
            readable: ask.readable,
            inspectable: ask.inspectable,
            approved: approval.is_some(),
            mapped: who.mapped,
            content: &ask.content,
            unix_s: now.unix_ns / 1_000_000_000,
        };
        self.settings.0.policies.evaluate(self.slice(subject), who, &subject.lineage, &facts)
    }

    /// The limits that concern a request, and what it counts in.
    pub(super) fn limits<'s>(
        &'s self,
        subject: &'s Subject,
        ask: &'s Ask<'_>,
    ) -> Vec<(&'s Limit, Meter)> {
        concerning(&self.settings, subject, ask)
            .map(|limit| (limit, self.meter(limit, ask)))
            .collect()
    }

    fn meter(&self, limit: &Limit, ask: &Ask<'_>) -> Meter {
        if limit.is_parted() && self.crowded.contains(&limit.name) {
            return Meters::others(limit);
        }
        self.meters.meter(limit, &ask.who)
    }

    fn count(&mut self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Result<Vec<Meter>, Reached> {
        let settings = self.settings.clone();
        let limits = concerning(&settings, subject, ask);
        let limits: Vec<(&Limit, Meter)> =
            limits.map(|limit| (limit, self.meter(limit, ask))).collect();
        self.meters.admit(&limits, now.mono_ns)?;
        Ok(limits.into_iter().map(|(_, meter)| meter).collect())
    }

    fn count_unchecked(&mut self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Vec<Meter> {
        let settings = self.settings.clone();
        let mut counted = Vec::new();
        for limit in concerning(&settings, subject, ask) {
            let meter = self.meter(limit, ask);
            self.meters.count(limit, &meter, now.mono_ns);
            counted.push(meter);
        }
        counted
    }

    /// Without a price nothing can be set aside in USD.
    fn price_objection(&self, ask: &Ask<'_>, demands: &[Demand]) -> Option<Objection> {
        let prices = &self.settings.0.prices;
        if ask.estimate.nano_usd.is_some() {
            return None;
        }
        if prices.unknown_model() == UnknownModel::Block {
            let why = "no price is known for the model, and the configuration refuses then";
            return Some(Objection::block(ReasonCode::PRICE_UNKNOWN, None, why));
        }
        let free = prices.free_without_price(ask.call.provider.as_deref());
        let in_usd = demands.iter().find(|it| it.unit == Unit::Usd).filter(|_| !free)?;
        let why = "no price is known for the model, so nothing can be set aside in USD";
        let code = ReasonCode::BudgetReservationFailed;
        Some(Objection::block(code, Some(&in_usd.key.name()), why))
    }

    /// An approval of this request, or of its kind, that is still good.
    fn approval_for(&self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Option<String> {
        let mut approvals = self.ledger.approvals().peekable();
        approvals.peek()?;
        let (request, kind) = (self.request_digest(subject, ask), kind_digest(subject, ask.call));
        let cost = ask.estimate.worst_nano_usd?;
        let good = |it: &&Approval| {
            let meant = match it.scope {
                Scope::Request => request.as_ref(),
                Scope::Kind => Some(&kind),
            };
            meant == Some(&it.request)
                && it.expires_unix_ns > now.unix_ns
                && it.ceiling_nano_usd >= cost
        };
        approvals.find(good).map(|it| it.id.clone())
    }

    /// Notes a request that a human may approve: under what name.
    fn await_human(&mut self, subject: &Subject, ask: &Ask<'_>) -> String {
        let (request, kind) = (self.request_digest(subject, ask), kind_digest(subject, ask.call));
        let waiting = Waiting {
            involved: involved(subject, &self.settings),
            kind: kind.clone(),
            is_known: request.is_some(),
            worst_nano_usd: ask.estimate.worst_nano_usd,
        };
        let request = request.unwrap_or(kind);
        self.await_approval(&subject.facts.owner(), &request, waiting);
        request
    }

    /// What a request is known again by: who asks whom, and all that it says. None where not all of it was read.
    fn request_digest(&self, subject: &Subject, ask: &Ask<'_>) -> Option<String> {
        let body = ask.digest.filter(|_| ask.readable)?;
        // Any length of key will do.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.approvals_key).ok()?;
        let Call { method, path, server_address, .. } = ask.call;
        let kind = kind_digest(subject, ask.call);
        for text in [Some(&kind), method.as_ref(), server_address.as_ref(), path.as_ref()] {
            let text = text.map_or("", String::as_str);
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        Some(hex(&mac.chain_update(body).finalize().into_bytes()))
    }
}

fn concerning<'s>(
    settings: &'s Settings,
    subject: &'s Subject,
    ask: &'s Ask<'_>,
) -> impl Iterator<Item = &'s Limit> {
    let provider = ask.call.provider.as_deref();
    let limits = settings.0.limits.iter();
    limits.filter(move |it| it.concerns(&ask.who, &subject.lineage, provider))
}

/// The request was read to its end, and nothing of it was lost.
fn is_whole(call: &Call, complete: bool) -> bool {
    complete && call.request_seen && call.missing_bytes == 0 && is_readable_so_far(call)
}

/// Nothing of it was lost, and it asks for something that is known.
fn is_readable_so_far(call: &Call) -> bool {
    let known = !call.unlisted || call.operation.as_deref() == Some(Call::COUNT_TOKENS);
    known && call.unreadable.is_none()
}

/// The names that it gives belong to two providers, or to two regions of one.
fn differing(call: &Call) -> Option<(ReasonCode, &'static str)> {
    let why = "the names that the request gives do not belong to one provider and region";
    call.other_provider.as_ref().map(|_| (ReasonCode::PROVIDERS_DIFFER, why))
}

/// What was not read whole may need any amount of a budget.
fn unread_objection(ask: &Ask<'_>, demands: &[Demand]) -> Option<Objection> {
    let first = demands.first().filter(|_| !ask.readable && ask.inspectable)?;
    let why = "it was not read whole, so what it may need of the budget is not known";
    let code = ReasonCode::BudgetReservationFailed;
    Some(Objection::block(code, Some(&first.key.name()), why))
}

/// What an approval of a kind of request is bound to: who asks whom, and for which model.
fn kind_digest(subject: &Subject, call: &Call) -> String {
    let who = &subject.identity.attribution;
    let mut hash = Sha256::new();
    let chain = who.chain.join("\n");
    let texts = [
        Some(&who.principal),
        Some(&chain),
        call.operation.as_ref(),
        call.provider.as_ref(),
        call.request_model.as_ref(),
    ];
    for text in texts {
        let text = text.map_or("", String::as_str);
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    let bytes: [u8; 32] = hash.finalize().into();
    hex(&bytes)
}

/// Everybody who may not approve what a principal asks for.
fn involved(subject: &Subject, settings: &Settings) -> Vec<String> {
    let mut names = subject.lineage.clone();
    names.extend(subject.facts.user.clone());
    let principal = subject.identity.principal.and_then(|it| settings.0.roster.get(it));
    names.extend(principal.into_iter().flat_map(|it| it.chain.people()));
    names
}

fn inputs(
    ask: &Ask<'_>,
    bytes_before_decision: u64,
    approval: Option<String>,
    seen: Seen,
) -> Inputs {
    Inputs {
        input_tokens: ask.estimate.input_tokens,
        output_tokens: ask.estimate.output_tokens,
        nano_usd: ask.estimate.nano_usd,
        worst_nano_usd: ask.estimate.worst_nano_usd.filter(|it| Some(*it) != ask.estimate.nano_usd),
        request_bytes: ask.call.request_bytes,
        complete: ask.readable,
        content: ask.content.clone(),
        approval,
        bytes_before_decision,
        seen,
        texts: ask.texts.clone(),
    }
}

fn grant_fault(code: &ReasonCode) -> &'static str {
    if *code == ReasonCode::AUTHORITY_REVOKED {
        "it was revoked"
    } else if *code == ReasonCode::DELEGATION_EXCEEDED {
        "the chain below it is longer than it permits"
    } else {
        "it has expired, or is not valid yet"
    }
}

/// A policy's reason, with what it was about.
fn explained(matched: &Matched, ask: &Ask<'_>) -> Objection {
    let mut objection = Objection::of(matched);
    let said = |it: &Option<String>| it.clone().unwrap_or_else(|| "not known".to_owned());
    let call = ask.call;
    let about = if matched.code == ReasonCode::PolicyDenyRegion {
        format!("the region is {}", said(&ask.region))
    } else if matched.code == ReasonCode::BudgetExceeded {
        let cost = ask.estimate.worst_nano_usd.map(money::format_usd);
        format!("this one may cost up to {} USD", said(&cost))
    } else {
        format!("it asks {} for {}", said(&call.provider), said(&call.request_model))
    };
    objection.reason = format!("{}; {about}", objection.reason);
    if matched.code == ReasonCode::BudgetExceeded && is_unpriced(ask) {
        objection.reason = format!("{} (x_price_unknown: {})", objection.reason, unpriced(ask));
    }
    objection
}

fn rate_objection(reached: &Reached) -> Objection {
    let Reached { code, limit, retry_after_ns } = reached;
    let again = retry_after_ns.map(|it| format!("; again in {} ms", it.div_ceil(1_000_000)));
    Objection {
        severity: Severity::LimitRate,
        code: code.clone(),
        policy: Some(limit.clone()),
        reason: format!("the limit `{limit}` is reached{}", again.unwrap_or_default()),
        signal: None,
        short: Vec::new(),
    }
}

/// The price that the estimate goes by is that of another model.
fn is_unpriced(ask: &Ask<'_>) -> bool {
    ask.estimate.price.as_ref().is_some_and(|it| it.assumed)
}

/// That no price is known, and what was taken instead.
fn unpriced(ask: &Ask<'_>) -> String {
    let family = ask.estimate.price.as_ref().map(|it| it.family.as_str());
    let model = ask.call.request_model.as_deref().unwrap_or_default();
    match family {
        Some("") => "no price is known for the model; the dearest of its provider was taken".into(),
        Some(family) => {
            format!("no price is known for `{model}`; the dearest of `{family}*` was taken")
        }
        None => "no price is known for the model".to_owned(),
    }
}

fn shortfall_objection(short: &Shortfall, demands: &[Demand]) -> Objection {
    let Shortfall { budget, remaining, allocated, wanted } = short;
    let unit = demands.iter().find(|it| it.key.name() == *budget).map(|it| it.unit);
    let unit = unit.unwrap_or_default();
    let amount = |it: i64| unit.in_words(it);
    let code = if *remaining == 0 {
        ReasonCode::BudgetExceeded
    } else {
        ReasonCode::BudgetReservationFailed
    };
    let why = format!(
        "of {} there are {} left, and this request may need {}",
        amount(*allocated),
        amount(*remaining),
        amount(*wanted)
    );
    Objection::block(code, Some(budget), why)
}
