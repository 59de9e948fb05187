//! How a unit ends: what it used, what its accounts become, and the unit as it is told.

use std::net::IpAddr;
use std::sync::Arc;

use genops_protocols::Call;

use super::Output;
use super::core::{Core, failure_key, provider_key, target_key};
use super::link::{Link, Opened, Running};
use crate::awu::{Actual, Awu, AwuId, Basis, CaptureLevel, Mechanism, Outcome, Reservation, Sla};
use crate::config::{Estimate, Unit};
use crate::decision::{Decision, ReasonCode, Refusal};
use crate::ledger::{Account, Share};
use crate::prices::{ModelPrice, RateCard, Tokens};
use crate::process::User;
use crate::record::{Accounted, Decided, Record, RecordKind, What, Who};
use crate::telemetry::{has_output, operation_type};
use crate::time::Now;

impl Core {
    /// A unit that was permitted ended.
    pub(super) fn finish(
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
        let user = self.subject(link).facts.owner();
        self.note_outcome(now, &user, &running, &call, response_complete, latency_ms);
        let models = (call.response_model.as_deref(), call.request_model.as_deref());
        let prices = &self.settings.0.prices;
        let known = prices.answered(call.provider.as_deref(), models.0, models.1).is_some();
        running.opened.grounds.price_assumed &= !known;
        let cost = self.cost(now, &user, &running, &call, response_complete);
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
        // Neither is what the accounts did not take a server's word for.
        let taken = awu.outcome.actual().is_none_or(|it| it.basis == Basis::Reported);
        let told =
            cost.filter(|it| !awu.grounds.price_assumed && it.basis == Basis::Reported && taken);
        awu.cost_nano_usd = told.and_then(|it| it.nano_usd);
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
        user: &User,
        running: &Running,
        call: &Call,
        complete: bool,
        latency_ms: u64,
    ) {
        let principal = &running.opened.attribution.principal;
        let provider = call.provider.as_deref().unwrap_or_default();
        if !running.sent || !complete {
            return;
        }
        self.latencies.note(user, &provider_key(provider), latency_ms);
        if let Some(target) = &running.target {
            let missed = u64::from(latency_ms > target.latency_ms);
            self.latencies.note(user, &target_key(target, principal), missed);
        }
        let failed = call.status.is_some_and(|it| it >= 500);
        let key = failure_key(principal, provider);
        if failed {
            *self.failures.entry(user, &key) = now.mono_ns;
        } else {
            self.failures.remove(&key);
        }
    }

    /// What a call used, as far as its response says, else by what was seen of its text.
    fn cost(
        &mut self,
        now: Now,
        user: &User,
        running: &Running,
        call: &Call,
        complete: bool,
    ) -> Option<Cost> {
        let usage = &call.usage;
        let unix_s = now.unix_of(call.request_at_ns) / 1_000_000_000;
        let tier = call.service_tier.as_deref().or(call.params.service_tier.as_deref());
        let price = self.price(running, call);
        let card = price.as_ref().and_then(|it| it.card(unix_s, tier));
        let reported = usage.input_tokens.is_some() || usage.output_tokens.is_some();
        if !reported && complete {
            // The provider refused it, or failed: nothing was used.
            if call.status.is_some_and(|it| it >= 400) {
                return Some(Cost { tokens: 0, nano_usd: Some(0), basis: Basis::Reported });
            }
            if let Some(card) = card.filter(|it| it.is_by_piece())
                && let Some(tokens) = pieces(card, running, call)
            {
                let nano_usd = Some(card.actual_nano_usd(&tokens));
                return Some(Cost { tokens: 0, nano_usd, basis: Basis::Reported });
            }
        }
        let output = usage.output_tokens.or((!has_output(call)).then_some(0));
        let whole = usage.input_tokens.zip(output).filter(|_| complete);
        let Some((input, output)) = whole else {
            let (input, output) = seen(running, call, complete)?;
            let tokens = Tokens { input, output, ..tokens_of(call) };
            let nano_usd = card.map(|it| it.actual_nano_usd(&tokens));
            let tokens = input.saturating_add(output);
            return Some(Cost { tokens, nano_usd, basis: Basis::Estimated });
        };
        let tokens = Tokens { input, output, ..tokens_of(call) };
        let nano_usd = card.map(|it| it.actual_nano_usd(&tokens));
        if let (Some(nano), false) = (nano_usd, running.opened.grounds.price_assumed) {
            let principal = &running.opened.attribution.principal;
            let model = call.request_model.as_deref().unwrap_or_default();
            self.latencies.note(user, &format!("cost {principal} {model}"), nano.unsigned_abs());
        }
        let tokens = input.saturating_add(output);
        Some(Cost { tokens, nano_usd, basis: Basis::Reported })
    }

    /// The price of the model that answered, else what the decision went by.
    fn price(&self, running: &Running, call: &Call) -> Option<Arc<ModelPrice>> {
        let prices = &self.settings.0.prices;
        let models = (call.response_model.as_deref(), call.request_model.as_deref());
        let answered = prices.answered(call.provider.as_deref(), models.0, models.1);
        answered.or_else(|| running.price.clone())
    }

    /// Settles the accounts of a unit that ran.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn settle(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        reservation: &Reservation,
        shares: &[Unit],
        call: &Call,
        cost: Option<Cost>,
    ) -> Actual {
        // An estimate never exceeds what was set aside, and neither does the word of a server that is no
        // provider's: a program may talk to its own under any name, and others share the budget.
        let accounts = self.accounts_of(opened.id);
        let told = cost.map_or(Basis::Reserved, |it| it.basis);
        let stranger = self.settings.0.estimate == Estimate::WorstCase
            && link.network.remote.is_some_and(|it| is_own(it.ip()));
        let used = |unit: Unit| cost.and_then(|it| it.in_unit(unit));
        let bounded = |used: i64, reserved: i64| {
            if told == Basis::Estimated || stranger { used.min(reserved) } else { used }
        };
        let set_aside = |index: usize| {
            let share = accounts.get(index);
            share.map_or(i64::MAX, |it| it.covered.saturating_add(it.beyond))
        };
        let of_share =
            |(index, unit): (usize, &Unit)| used(*unit).map(|used| bounded(used, set_aside(index)));
        let actuals: Option<Vec<i64>> = shares.iter().enumerate().map(of_share).collect();
        let known = used(reservation.unit).map(|used| bounded(used, reservation.amount));
        // What a stranger's word was cut to rests on what was set aside.
        let cut = stranger && known < used(reservation.unit);
        let basis = if cut { Basis::Reserved } else { told };
        let mut log = Vec::new();
        self.ledger.settle(now.unix_ns, opened.id, actuals.clone(), &mut log);
        let mut record = Record::new(now, RecordKind::Reconciliation);
        self.fill(&mut record, link, opened, call);
        record.accounts = self.accounted(&accounts, reservation, |index, unit| {
            if accounts.is_empty() {
                known.filter(|_| unit == reservation.unit)
            } else {
                actuals.as_ref()?.get(index).copied()
            }
        });
        self.put(log, [record]);
        Actual {
            amount: known.unwrap_or(reservation.amount),
            incomplete: known.is_none() || basis != Basis::Reported,
            basis: if known.is_none() { Basis::Reserved } else { basis },
            unix_ns: now.unix_ns,
        }
    }

    /// Frees what a unit that never ran had set aside.
    fn release(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        reservation: &Reservation,
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
    pub(super) fn accounts_of(&self, awu: AwuId) -> Vec<Share> {
        let own = self.ledger.open().find(|(it, _)| *it == awu);
        own.map(|(_, shares)| shares.to_vec()).unwrap_or_default()
    }

    /// The accounts of a record: one for each share, or one without a budget.
    pub(super) fn accounted(
        &self,
        shares: &[Share],
        reservation: &Reservation,
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
        let of_share = |(index, share): (usize, &Share)| {
            let account = self.ledger.account(&share.key);
            let unit = account.map(|it| it.unit).unwrap_or_default();
            let actual = actual(index, unit);
            Accounted {
                budget: Some(share.key.name()),
                period: account.map(|it| it.period.clone()),
                unit,
                reserved: share.covered.saturating_add(share.beyond),
                actual,
                remaining: account.map(Account::remaining),
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
            uid: facts.uid,
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
            capture: capture_of(link, call, opened.complete, true),
            mechanism: self.shown(link, opened.enforcement.mechanism),
        });
    }

    /// The mechanism that is told: none where the socket was to be known, and is not.
    fn shown(&self, link: &Link, mechanism: Mechanism) -> Mechanism {
        let unknown = self.awaits_effects && link.network.remote.is_none();
        if unknown { Mechanism::None } else { mechanism }
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

    pub(super) fn awu(
        &self,
        now: Now,
        link: &Link,
        opened: Opened,
        outcome: Outcome,
        call: Call,
        response_complete: bool,
    ) -> Awu {
        let Opened { id, attribution, grounds, mut enforcement, region, complete, .. } = opened;
        enforcement.mechanism = self.shown(link, enforcement.mechanism);
        let refused = matches!(outcome, Outcome::Refused(_));
        let start_unix_ns = now.unix_of(call.request_at_ns);
        let end_unix_ns = call.end_at_ns.map_or(now.unix_ns, |at| now.unix_of(at));
        let exe = link.exe.clone();
        Awu {
            id,
            conn: link.name.clone(),
            capture: capture_of(link, &call, complete, refused || response_complete),
            network: link.network,
            capture_reason: link.unread,
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
}

/// What a call used.
#[derive(Clone, Copy, Debug)]
struct Cost {
    tokens: u64,
    nano_usd: Option<i64>,
    basis: Basis,
}

/// Whether an address is of this host or of a private network (RFC 1918, RFC 4193, RFC 3927): no public provider's.
fn is_own(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => it.is_loopback() || it.is_private() || it.is_link_local(),
        IpAddr::V6(it) => it.is_loopback() || it.is_unique_local() || it.is_unicast_link_local(),
    }
}

/// Bytes of text that are taken for one token where nobody counted: what tokenizers make of English
/// and of programs, on average.
const BYTES_PER_TOKEN: u64 = 4;

/// Input and output as far as they are known: as the provider counted them up to there, else by the
/// text that was seen. `None`: nothing to go by.
///
/// Who leaves a stream ends it: the providers known stop generating and bill what they made. An
/// answer that comes in one piece is made to its end, and billed, whoever still listens.
fn seen(running: &Running, call: &Call, complete: bool) -> Option<(u64, u64)> {
    let usage = &call.usage;
    let lost = call.missing_bytes > 0 || call.unreadable.is_some() || !call.request_seen;
    let asked = running.asked.0.div_ceil(BYTES_PER_TOKEN);
    let input = usage.input_tokens.or((asked > 0).then_some(asked))?;
    let written = call.written_bytes.div_ceil(BYTES_PER_TOKEN);
    let began = call.stream_response || call.stream && call.status.is_some();
    let text = usage.output_tokens.is_some() || written > 0 || !has_output(call);
    if lost || !(complete && text || began) {
        return None;
    }
    let output = usage.output_tokens.unwrap_or(0).max(written);
    Some((input, if has_output(call) { output } else { 0 }))
}

/// What is paid by the second, the character or the page, where it is known.
fn pieces(card: &RateCard, running: &Running, call: &Call) -> Option<Tokens> {
    let [sound, characters, pages] = card.counts();
    let spoken = Some(running.asked.1).filter(|count| *count > 0 && running.opened.complete);
    let needed = |wanted: bool, count: Option<u64>| if wanted { count } else { Some(0) };
    Some(Tokens {
        audio_ms: needed(sound, call.usage.audio_input_ms)?,
        characters: needed(characters, spoken)?,
        pages: needed(pages, call.usage.pages)?,
        ..Tokens::default()
    })
}

/// Everything that a call was counted, but for input and output as a whole.
fn tokens_of(call: &Call) -> Tokens {
    let usage = &call.usage;
    let count = |it: Option<u64>| it.unwrap_or(0);
    Tokens {
        input: 0,
        output: 0,
        cache_read: count(usage.cache_read_input_tokens),
        cache_write: count(usage.cache_creation_input_tokens),
        reasoning: count(usage.reasoning_output_tokens),
        audio_input: count(usage.audio_input_tokens),
        audio_output: count(usage.audio_output_tokens),
        cache_write_hour: count(usage.cache_creation_hour_input_tokens),
        audio_cached: count(usage.audio_cache_read_input_tokens),
        image_input: count(usage.image_input_tokens),
        image_output: count(usage.image_output_tokens),
        image_cached: count(usage.image_cache_read_input_tokens),
        video_input: count(usage.video_input_tokens),
        video_output: count(usage.video_output_tokens),
        citations: count(usage.citation_tokens),
        web_searches: count(usage.web_searches),
        file_searches: count(usage.file_searches),
        audio_ms: count(usage.audio_input_ms),
        characters: 0,
        pages: count(usage.pages),
    }
}

impl Cost {
    fn in_unit(self, unit: Unit) -> Option<i64> {
        match unit {
            Unit::Usd => self.nano_usd,
            Unit::Tokens => i64::try_from(self.tokens).ok(),
        }
    }
}

fn capture_of(
    link: &Link,
    call: &Call,
    request_complete: bool,
    response_complete: bool,
) -> CaptureLevel {
    if link.opaque.is_some() {
        return CaptureLevel::Metadata;
    }
    let lost = call.missing_bytes > 0 || call.unreadable.is_some() || !call.request_seen;
    if lost || !request_complete || !response_complete {
        CaptureLevel::Partial
    } else {
        CaptureLevel::Full
    }
}
