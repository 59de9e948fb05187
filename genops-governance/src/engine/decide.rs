//! Decision on a request: a fixed order of steps; the first failing step decides.
//!
//! 1 identity, 2 grants, 3 policies, 4 approval, 5 rate and concurrency, 6 reservation; then the
//! warnings. If a refusal can't be enforced (observe mode, nothing held, or everything has left
//! already), the result is a warning with the same code, and the possible usage of the call is
//! still noted.

use std::sync::Arc;

use genops_protocols::{Call, OpenRequest, Request, Usage};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::core::{Core, Subject, aftermath, as_unit, failure_key, provider_key, target_key};
use super::estimate::Ask;
use super::link::{Link, Opened, Running};
use crate::approval::{Approval, Scope, Waiting};
use crate::awu::{AwuId, BudgetView, Grounds, Held, Mechanism, Reservation};
use crate::config::{Mode, Signal, Unit, UnknownModel, Unmapped};
use crate::decision::{Decision, Permission, ReasonCode, Refusal};
use crate::hex::hex;
use crate::ledger::{Demand, Shortfall};
use crate::money;
use crate::policy::{Facts, Matched, Opinion, Policies, Severity};
use crate::prices::Prices;
use crate::rate::{Limit, Meter, Meters, Reached};
use crate::record::{Had, Inputs, Metered, Record, RecordKind, Seen, Texts};
use crate::settings::Settings;
use crate::sla;
use crate::time::Now;

/// Time after a provider's failure during which the next call to the provider gets a warning.
const FAILURE_NS: u64 = 60 * 1_000_000_000;

/// Minimum sound per token, in milliseconds, for a model counting sound in tokens: Gemini has 32
/// tokens a second, `OpenAI` 10.
const SOUND_MS_PER_TOKEN: u64 = 31;

/// Reason against simply allowing a request.
#[derive(Clone, Debug)]
pub(super) struct Objection {
    severity: Severity,
    pub(super) code: ReasonCode,
    pub(super) policy: Option<String>,
    reason: String,
    signal: Option<Signal>,
    /// Budgets with too little left.
    short: Vec<BudgetView>,
}

impl Objection {
    pub(super) fn block(code: ReasonCode, policy: Option<&str>, reason: impl Into<String>) -> Self {
        let (policy, reason) = (policy.map(str::to_owned), reason.into());
        Self { severity: Severity::Block, code, policy, reason, signal: None, short: Vec::new() }
    }

    /// Adds the budgets with too little left.
    pub(super) fn short_of(self, short: Vec<BudgetView>) -> Self {
        Self { short, ..self }
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

/// Mutating steps done so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// Meters counting the request.
    counted: Option<Vec<Meter>>,
    reserved: bool,
}

impl Core {
    /// Opens the unit of a request and decides the request.
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
        let chars = chars.saturating_add(request.texts_dropped_chars());
        let policies = self.settings.clone();
        let slice = self.slice(&subject);
        let mut content = policies.0.policies.content(slice, &texts);
        content.extend(self.off_endpoints(&subject, call));
        let unseen = request.texts_truncated() && Policies::looks_at_content(slice);
        // The server's counts already state the usage of a request begun by the server.
        let told = if request.under_way { call.usage } else { Usage::default() };
        let sound = told.audio_input_ms.map(|ms| ms.div_ceil(SOUND_MS_PER_TOKEN));
        let output = told.output_tokens.or(sound.map(|_| 0));
        let counted = told.input_tokens.max(sound).unwrap_or(0);
        let bytes = call.request_bytes.max(text_bytes).max(counted);
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: is_whole(call, request.complete) && !unseen,
            inspectable: true,
            content,
            start: request.start,
            end: request.end,
            under_way: request.under_way,
            estimate: self.estimate(now, &subject, call, bytes, output),
            region: self.region(call),
            asked: (text_bytes, chars),
            texts: if self.keeps_texts { Texts::of(&texts) } else { Texts::default() },
            digest: request.digest,
        };
        self.decide(now, link, &subject, &ask, request.complete);
    }

    /// Opens a unit seen only at the end: nothing can be prevented any more.
    pub(super) fn open_late(&mut self, now: Now, link: &mut Link, call: &Call) -> Running {
        self.start(now);
        let subject = self.subject(link);
        let estimate = self.estimate(now, &subject, call, call.request_bytes, None);
        let region = self.region(call);
        let texts = Texts::default();
        let content = self.off_endpoints(&subject, call);
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: false,
            inspectable: true,
            content,
            start: 0,
            end: 0,
            under_way: false,
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
            self.turn_down(now, link, subject, ask, opened, objection.refusal(), inputs);
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
                self.turn_down(now, link, subject, ask, opened, objection.refusal(), inputs);
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

    /// Runs steps 1 to 6. `done` holds the counted meters and the reservation.
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

    /// Runs steps 1 to 4: nothing is counted.
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
        let is_granted = principal.is_some_and(|it| it.chain.is_granted());
        if settings.require_authority && !is_granted {
            let why = match principal {
                Some(it) => format!("`{}` acts under no grant", it.name),
                None => {
                    "no configured principal matches the process, so no grant is its".to_owned()
                }
            };
            return Some(Objection::block(ReasonCode::NO_AUTHORITY, None, why));
        }
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

    /// Opens a unit permitted to run: with the reservation, or with a noted amount if nothing can
    /// stop the call.
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
            worst_nano_usd: ask.estimate.worst_nano_usd,
            shares: demands.iter().map(|it| it.unit).collect(),
            sent: link.mechanism() == Mechanism::None || link.passed >= ask.end || ask.under_way,
            withheld: false,
            price: ask.estimate.price.as_ref().map(|it| it.price.clone()),
            asked: ask.asked,
            limits: done.counted.unwrap_or_default(),
            target: sla::find(&self.settings.0.targets, lineage, model).cloned(),
        }
    }

    /// Counts the call and sets the amount aside, unless already done. Returns the demanded budgets
    /// and the warning, if any.
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

    /// Returns the engine state consulted by the decision.
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

    /// Returns true if too many of the last calls missed the target.
    fn is_slow(&self, target: &sla::Target, principal: &str) -> bool {
        self.latencies.p95(&target_key(target, principal)) == Some(1)
    }

    fn has_failed(&self, now: Now, principal: &str, provider: &str) -> bool {
        let failed = self.failures.get(&failure_key(principal, provider));
        failed.is_some_and(|at| now.mono_ns.saturating_sub(*at) < FAILURE_NS)
    }

    /// Writes ledger, decision and reservation, in the order required for durability.
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
        let shares = self.ledger.held(opened.id);
        reserved.accounts = self.accounted(shares, reservation, |_, _| None);
        for account in &mut reserved.accounts {
            account.incomplete = false;
        }
        self.put(log, [decision, reserved]);
    }

    /// Returns the reason to warn about a permitted call.
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
            let provider = ask.call.provider.as_deref();
            (assumed && !is_by_time(provider, demands))
                .then(|| Objection::block(ReasonCode::PRICE_UNKNOWN, None, unpriced(ask)))
        })
    }

    /// Returns the budgets with less left than demanded.
    fn short_of(&self, demands: &[Demand]) -> Vec<BudgetView> {
        let mut views = self.views(demands);
        let wanted = |it: &BudgetView| {
            // By the whole name: a customer's part of a budget has a separate limit.
            demands.iter().find(|demand| demand.key.name() == it.name).map(|demand| demand.amount)
        };
        views.retain(|it| wanted(it) > Some(it.remaining));
        views
    }

    /// Returns the budgets of a permitted request in need of attention, with the current amounts.
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

    /// Judges an unfinished request longer than [`super::core::HOLD_BYTES`]. Returns true if the
    /// request is refused, because no remaining byte could change the result.
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
        let unit = Call { exchange: open.exchange, ..as_unit(open.call.clone()) };
        let call = &self.deciding(now, link, unit);
        let unread = !is_readable_so_far(call);
        let mut content = self.matching(link, &subject, open);
        content.extend(self.off_endpoints(&subject, call));
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
            under_way: false,
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

    /// Returns the objection independent of the rest of the request.
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

    /// Returns the names of the content rules matching the text so far. Text from an earlier look
    /// is skipped, except for the last bytes, because a match may begin there.
    fn matching(&self, link: &mut Link, subject: &Subject, open: &OpenRequest<'_>) -> Vec<String> {
        /// Maximum distance, in bytes, of the start of a match before the new text.
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

    /// Returns the call to decide: if several models may answer, the call with the refused model,
    /// otherwise with the dearest.
    pub(super) fn deciding(&mut self, now: Now, link: &Link, call: Call) -> Call {
        if call.other_models.is_empty() {
            return call;
        }
        let subject = self.subject(link);
        let mut dearest = self.worst(now, &subject, &call);
        let mut deciding = call.clone();
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
            under_way: false,
            estimate: self.estimate(now, subject, call, call.request_bytes, None),
            region: self.region(call),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        };
        !self.opinion(now, subject, &ask, None).refusals.is_empty()
    }

    /// Refuses a connection without readable requests.
    pub(super) fn refuse_opaque(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        objection: &Objection,
    ) {
        let id = self.issue();
        // The kernel acted before the engine was asked: the code follows from nothing in a record.
        let beforehand = [
            ReasonCode::CONNECTION_DENIED,
            ReasonCode::TOO_MANY_REFUSALS,
            ReasonCode::DECISION_TIMEOUT,
        ];
        let settled = beforehand.into_iter().find(|it| *it == objection.code);
        let seen = Seen { settled, ..self.seen(now, subject, ask, true) };
        let opened = self.opened(now, id, link, subject, ask, objection, false);
        let inputs = inputs(ask, 0, None, seen);
        self.refuse(now, link, subject, ask, opened, objection.refusal(), inputs);
    }

    /// Permits a connection without readable requests; nothing is counted or set aside.
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

    /// Refuses a request stopped by the kernel's deadline before a decision.
    pub(super) fn refuse_stopped(
        &mut self,
        now: Now,
        link: &mut Link,
        open: &OpenRequest<'_>,
        received: u64,
    ) {
        let subject = self.subject(link);
        let call = &Call { exchange: open.exchange, ..as_unit(open.call.clone()) };
        let ask = Ask {
            call,
            who: self.charged(&subject, call),
            readable: false,
            inspectable: true,
            content: Vec::new(),
            start: open.start,
            end: received,
            under_way: false,
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
            start: ask.start,
            end: ask.end,
            under_way: ask.under_way,
            complete,
            times: link.times,
        }
    }

    /// Returns the opinion of the policies and grants.
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
        let settings = &self.settings.0;
        let slice = self.slice(subject);
        let mut opinion = settings.policies.evaluate(slice, who, &subject.lineage, &facts);
        if let Some(chain) = self.chain(subject) {
            opinion.weigh(chain, &facts, settings.require_authority);
        }
        opinion
    }

    /// Returns the names of the endpoint rules met by no endpoint of a grant.
    fn off_endpoints(&self, subject: &Subject, call: &Call) -> Vec<String> {
        let chain = self.chain(subject).into_iter();
        chain.flat_map(|it| it.off_endpoints(call)).map(str::to_owned).collect()
    }

    /// Returns the limits on a request, each with the meter counting the request.
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

    /// Objects if no price is known: without a price nothing can be reserved in USD.
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

    /// Returns a valid approval of the request or of the kind of the request.
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

    /// Notes a request open to approval by a human. Returns the name for the approval.
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

    /// Returns the digest for recognizing a repeated request: client, server and the whole content.
    /// `None` if not all of the request was read.
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
    let own = limits.filter(move |it| it.concerns(&ask.who, &subject.lineage, provider));
    let principal = subject.identity.principal.and_then(|it| settings.0.roster.get(it));
    own.chain(principal.into_iter().flat_map(|it| it.chain.rates()))
}

/// Returns true if the request was read to the end without a loss.
fn is_whole(call: &Call, complete: bool) -> bool {
    complete && call.request_seen && call.missing_bytes == 0 && is_readable_so_far(call)
}

/// Returns true if no part was unreadable so far and the operation is known.
fn is_readable_so_far(call: &Call) -> bool {
    let known = !call.unlisted || call.operation.as_deref() == Some(Call::COUNT_TOKENS);
    known && call.unreadable.is_none()
}

/// Returns an objection if the names in the request belong to two providers, or to two regions of a
/// provider.
fn differing(call: &Call) -> Option<(ReasonCode, &'static str)> {
    let why = "the names that the request gives do not belong to one provider and region";
    call.other_provider.as_ref().map(|_| (ReasonCode::PROVIDERS_DIFFER, why))
}

/// Objects to a request not read whole, because the demand on a budget is unknown.
fn unread_objection(ask: &Ask<'_>, demands: &[Demand]) -> Option<Objection> {
    let first = demands.first().filter(|_| !ask.readable && ask.inspectable)?;
    let why = "it was not read whole, so what it may need of the budget is not known";
    let code = ReasonCode::BudgetReservationFailed;
    Some(Objection::block(code, Some(&first.key.name()), why))
}

/// Returns the binding of an approval of a kind of request: principal, operation, provider and
/// model.
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

/// Returns everybody excluded from approving requests of a principal.
fn involved(subject: &Subject, settings: &Settings) -> Vec<String> {
    let mut names = subject.lineage.clone();
    names.extend(subject.facts.user.clone());
    // A user without a name on the host is configured by number.
    names.extend(subject.facts.uid.map(|it| it.to_string()));
    let principal = subject.identity.principal.and_then(|it| settings.0.roster.get(it));
    names.extend(principal.into_iter().flat_map(|it| it.chain.people()));
    // A requesting human may have several names.
    let grants = &settings.0.grants;
    let known = names.iter().filter_map(|it| grants.names_of(it)).flatten();
    let known: Vec<String> = known.cloned().collect();
    names.extend(known);
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
        compute_ns: ask.estimate.compute_ns,
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
    } else if *code == ReasonCode::NO_AUTHORITY {
        "it is not from a human"
    } else if *code == ReasonCode::DELEGATION_EXCEEDED {
        "the chain below it is longer than it permits"
    } else {
        "it has expired, or is not valid yet"
    }
}

/// Returns the objection of a policy, with the matched value in the reason.
fn explained(matched: &Matched, ask: &Ask<'_>) -> Objection {
    let mut objection = Objection::of(matched);
    let said = |it: &Option<String>| it.clone().unwrap_or_else(|| "not known".to_owned());
    let call = ask.call;
    let of_grant = |key: &str| matched.id.starts_with("grant:") && matched.id.ends_with(key);
    let about = if matched.code == ReasonCode::PolicyDenyRegion || of_grant(".regions") {
        format!("the region is {}", said(&ask.region))
    } else if of_grant(".operations") {
        format!("it is {}", said(&call.operation))
    } else if matched.code == ReasonCode::BudgetExceeded || of_grant(".max_cost") {
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

/// Returns true for an own server budgeted by time: no price is needed.
fn is_by_time(provider: Option<&str>, demands: &[Demand]) -> bool {
    let timed = demands.iter().all(|it| it.unit == Unit::ComputeSeconds);
    !demands.is_empty() && timed && Prices::is_own_server(provider)
}

/// Returns true if the estimate uses the price of another model.
fn is_unpriced(ask: &Ask<'_>) -> bool {
    ask.estimate.price.as_ref().is_some_and(|it| it.assumed)
}

/// States the missing price and the price taken instead.
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
