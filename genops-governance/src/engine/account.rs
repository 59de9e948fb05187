//! The end of a unit: usage, settlement of the accounts, and the AWU for the caller.

use std::net::IpAddr;
use std::sync::Arc;

use genops_protocols::{Call, Usage};

use super::Output;
use super::core::{Core, failure_key, provider_key, target_key};
use super::link::{Link, Opened, Running};
use super::spent;
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
    /// Ends a permitted unit: settles or releases its accounts and emits the AWU.
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
        running.sent &= !call.unprocessed;
        let end_ns = call.end_at_ns.unwrap_or(now.mono_ns);
        let latency_ms = end_ns.saturating_sub(call.request_at_ns) / 1_000_000;
        let user = self.subject(link).facts.owner();
        self.note_outcome(now, &user, &running, &call, response_complete, latency_ms);
        let answered = self.answered(&call);
        running.opened.grounds.price_assumed &= answered.is_none();
        running.price = answered.or(running.price);
        let cost = self.cost(now, &user, &running, &call, response_complete);
        let Running {
            opened, permission, reservation, worst_nano_usd, shares, sent, target, ..
        } = running;
        let timed = cost.by_time || shares.contains(&Unit::ComputeSeconds);
        let outcome = if sent {
            let set_aside = (&reservation, worst_nano_usd);
            let actual = self.settle(now, link, &opened, set_aside, &shares, &call, cost);
            Outcome::Executed(permission, reservation, actual)
        } else {
            self.release(now, link, &opened, &reservation, &call);
            Outcome::NotExecuted(permission, reservation)
        };
        let mut awu = self.awu(now, link, opened, outcome, call, response_complete);
        // An assumed price gives a bound for the accounts, not a cost. A server's figure cut by the
        // accounts is no cost either.
        let taken = awu.outcome.actual().is_none_or(|it| it.basis == Basis::Reported);
        let reported = |it: &(i64, Basis)| it.1 == Basis::Reported;
        let told = cost.usd.filter(reported).filter(|_| taken && !awu.grounds.price_assumed);
        awu.cost_nano_usd = told.map(|(nano_usd, _)| nano_usd);
        let time = cost.in_unit(Unit::ComputeSeconds).filter(reported);
        awu.compute_ns = time.filter(|_| timed && awu.outcome.actual().is_some()).map(|(ns, _)| ns);
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

    /// Returns the usage of a call: tokens and money as reported in the response, otherwise
    /// estimated from the observed text; time as measured.
    fn cost(
        &mut self,
        now: Now,
        user: &User,
        running: &Running,
        call: &Call,
        complete: bool,
    ) -> Cost {
        let unix_s = now.unix_of(call.request_at_ns) / 1_000_000_000;
        let tier = call.service_tier.as_deref().or(call.params.service_tier.as_deref());
        let price = running.price.clone();
        let card = price.as_ref().and_then(|it| it.card(unix_s, tier));
        let time = Time::of(now, call, complete);
        // A refused or failed call, or a call only counting tokens, is no evidence of the usage of
        // others.
        let telling = !is_refusal(call, complete) && time.ns > 0;
        if let (Basis::Reported, true) = (time.basis, self.settings.0.counts_time && telling) {
            self.note_usual(user, running, call, "time", time.ns);
        }
        if let Some(card) = card.filter(|it| it.is_by_time()) {
            let tokens = counted(None, time, running, call, complete).and_then(|it| it.tokens);
            let nano_usd = card.time_nano_usd(time.ns);
            if time.basis == Basis::Reported && telling {
                self.note_usual(user, running, call, "cost", nano_usd.unsigned_abs());
            }
            let usd = Some((nano_usd, time.basis));
            return Cost { tokens, usd, time, by_time: true, for_time: nano_usd };
        }
        let for_time = card.map_or(0, |it| it.time_nano_usd(time.ns));
        let counted = counted(card, time, running, call, complete);
        let Counted { tokens, usd, usual } = counted.unwrap_or_default();
        let usual = usual && !is_refusal(call, complete) && !running.opened.grounds.price_assumed;
        if let (Some((nano, _)), true) = (usd, usual) {
            self.note_usual(user, running, call, "cost", nano.unsigned_abs());
        }
        Cost { tokens, usd, time, by_time: false, for_time }
    }

    /// Adds the amount of a request to the usual amounts of the principal and model.
    fn note_usual(&mut self, user: &User, running: &Running, call: &Call, what: &str, amount: u64) {
        let principal = &running.opened.attribution.principal;
        let model = call.request_model.as_deref().unwrap_or_default();
        self.latencies.note(user, &format!("{what} {principal} {model}"), amount);
    }

    /// Returns the price of the model in the response, otherwise of the requested model.
    fn answered(&self, call: &Call) -> Option<Arc<ModelPrice>> {
        let prices = &self.settings.0.prices;
        let models = (call.response_model.as_deref(), call.request_model.as_deref());
        prices.answered(call.provider.as_deref(), models.0, models.1)
    }

    /// Settles the accounts of an executed unit.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn settle(
        &mut self,
        now: Now,
        link: &Link,
        opened: &Opened,
        (reservation, worst_nano_usd): (&Reservation, Option<i64>),
        shares: &[Unit],
        call: &Call,
        cost: Cost,
    ) -> Actual {
        // An estimate never exceeds the worst case. Neither does a figure from a server
        // with a local or private address: a program may talk to an own server under any name, and
        // others share the budget. An amount measured by the agent is not bounded.
        let accounts = self.accounts_of(opened.id);
        let stranger = link.network.remote.is_some_and(|it| is_own(it.ip()));
        let bounded = |unit: Unit, reserved: i64| {
            let (used, basis) = cost.in_unit(unit)?;
            let usual = unit == Unit::Usd && self.settings.0.estimate == Estimate::P95;
            let worst = worst_nano_usd.filter(|_| usual).unwrap_or(reserved);
            let most = worst.max(reserved).max(cost.measured(unit));
            match basis {
                Basis::Estimated => Some((used.min(most), basis)),
                // The basis of a cut figure is the reservation, made or hypothetical.
                _ if stranger && used > most => Some((most, Basis::Reserved)),
                _ => Some((used, basis)),
            }
        };
        let set_aside = |index: usize| {
            let share = accounts.get(index);
            share.map_or(i64::MAX, |it| it.covered.saturating_add(it.beyond))
        };
        let shares = shares.iter().enumerate();
        let actuals: Vec<Option<i64>> = shares
            .map(|(index, unit)| bounded(*unit, set_aside(index)).map(|(used, _)| used))
            .collect();
        let known = bounded(reservation.unit, reservation.amount);
        let mut log = Vec::new();
        // If the usage in a budget's unit is unknown, the reservation is charged.
        let charged = actuals.iter().enumerate();
        let charged = charged.map(|(index, used)| used.unwrap_or_else(|| set_aside(index)));
        let charged = actuals.iter().any(Option::is_some).then(|| charged.collect());
        self.ledger.settle(now.unix_ns, opened.id, charged, &mut log);
        let mut record = Record::new(now, RecordKind::Reconciliation);
        self.fill(&mut record, link, opened, call);
        record.accounts = self.accounted(&accounts, reservation, |index, unit| {
            if accounts.is_empty() {
                known.filter(|_| unit == reservation.unit).map(|(used, _)| used)
            } else {
                actuals.get(index).copied().flatten()
            }
        });
        let (amount, basis) = known.unwrap_or((reservation.amount, Basis::Reserved));
        let usd = if reservation.unit == Unit::Usd { Some((amount, basis)) } else { cost.usd };
        // The cost of unread data is unknown, not zero.
        let usd = usd.filter(|_| link.opaque.is_none());
        let (nano_usd, by) = (usd.map(|(nano, _)| nano), usd.map_or(basis, |(_, by)| by));
        record.detail = spent::detail(call, by, nano_usd, opened.grounds.price_assumed);
        self.put(log, [record]);
        let incomplete = basis != Basis::Reported;
        Actual { amount, incomplete, basis, unix_ns: now.unix_ns }
    }

    /// Frees the reservation of a unit not executed.
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

    /// Returns the shares held for a unit.
    pub(super) fn accounts_of(&self, awu: AwuId) -> Vec<Share> {
        self.ledger.held(awu).to_vec()
    }

    /// Returns the accounts of a record: an entry for each share, or a single entry without a
    /// budget.
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

    /// Fills in the attribution, the process and the operation of a record.
    pub(super) fn fill(&self, record: &mut Record, link: &Link, opened: &Opened, call: &Call) {
        let subject = self.subject(link);
        let facts = &subject.facts;
        record.awu = Some(opened.id);
        record.times = opened.times;
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

    /// Returns the mechanism to report: none if the caller reads counters back and the socket is
    /// unknown.
    fn shown(&self, link: &Link, mechanism: Mechanism) -> Mechanism {
        let unknown = self.awaits_effects && link.network.remote.is_none();
        if unknown { Mechanism::None } else { mechanism }
    }

    /// Adds the reason of a decision, in words, to the decision's record.
    pub(super) fn explain(record: &mut Record, opened: &Opened) {
        let grounds = &opened.grounds;
        let reason = grounds.reason.iter().map(|it| ("reason", it.clone()));
        let request = grounds.approval_request.iter().map(|it| ("approval_request", it.clone()));
        record.detail.extend(reason.chain(request));
    }

    /// Returns the decision in the form for a record.
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
            compute_ns: None,
            region,
            sla: None,
        }
    }
}

/// Usage of a call in each unit, with the basis of each amount; absent if nothing is known.
#[derive(Clone, Copy, Debug)]
struct Cost {
    tokens: Option<(i64, Basis)>,
    usd: Option<(i64, Basis)>,
    time: Time,
    /// The money pays for time alone.
    by_time: bool,
    /// Part of the money paid for time.
    for_time: i64,
}

/// Tokens of a call, counted or estimated, and the price of the tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    tokens: Option<(i64, Basis)>,
    usd: Option<(i64, Basis)>,
    /// The amounts may count towards the usual cost of requests.
    usual: bool,
}

impl Counted {
    fn new(tokens: u64, nano_usd: Option<i64>, basis: Basis) -> Self {
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        Self { tokens: Some((tokens, basis)), usd: nano_usd.map(|it| (it, basis)), usual: false }
    }
}

/// Duration of a call, from the first byte of the request to the end of the answer, or to the
/// client's departure.
#[derive(Clone, Copy, Debug)]
struct Time {
    ns: u64,
    basis: Basis,
}

impl Time {
    fn of(now: Now, call: &Call, complete: bool) -> Self {
        let end_ns = call.end_at_ns.filter(|_| complete).unwrap_or(now.mono_ns);
        let counts = call.operation.as_deref() == Some(Call::COUNT_TOKENS);
        let ns = if counts { 0 } else { end_ns.saturating_sub(call.request_at_ns) };
        // Of a call begun before the observation, only a part was measured.
        let whole = complete && call.request_seen;
        Self { ns, basis: if whole { Basis::Reported } else { Basis::Estimated } }
    }
}

/// Returns the usage of a call as reported in the response, otherwise estimated from the observed
/// text.
fn counted(
    card: Option<&RateCard>,
    time: Time,
    running: &Running,
    call: &Call,
    complete: bool,
) -> Option<Counted> {
    let usage = &call.usage;
    if !is_credible(usage) {
        return None;
    }
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        if is_refusal(call, complete) {
            let for_time = card.map_or(0, |it| it.time_nano_usd(time.ns));
            return Some(Counted::new(0, Some(for_time), Basis::Reported));
        }
        if let Some(card) = card.filter(|it| it.is_by_piece())
            && let Some(tokens) = pieces(card, running, call)
        {
            let nano_usd = card.actual_nano_usd(&tokens);
            // A client leaving before the end pays at most the price of the whole.
            let basis = if complete { Basis::Reported } else { Basis::Estimated };
            return Some(Counted::new(0, Some(nano_usd), basis));
        }
    }
    let output = usage.output_tokens.or((!has_output(call)).then_some(0));
    let whole = usage.input_tokens.zip(output).filter(|_| complete);
    let basis = if whole.is_some() { Basis::Reported } else { Basis::Estimated };
    let (input, output) = whole.or_else(|| seen(running, call, complete))?;
    let tokens = Tokens { input, output, compute_ns: time.ns, ..tokens_of(call) };
    let nano_usd = card.map(|it| it.actual_nano_usd(&tokens));
    let known = Counted::new(input.saturating_add(output), nano_usd, basis);
    Some(Counted { usual: basis == Basis::Reported, ..known })
}

/// Returns true for an address of the host or of a private network (RFC 1918, RFC 4193, RFC 3927):
/// no public provider has an address there.
fn is_own(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => it.is_loopback() || it.is_private() || it.is_link_local(),
        IpAddr::V6(it) => it.is_loopback() || it.is_unique_local() || it.is_unicast_link_local(),
    }
}

/// Maximum token count of each kind accepted from a server for a single call: 64 times the longest
/// context on offer, enough for a model working with a provider's tools for hours.
const TOKENS_BELIEVED: u64 = 64 << 20;

/// Maximum duration of sound: a day, in milliseconds.
const SOUND_BELIEVED_MS: u64 = 86_400_000;

/// Maximum number of searches, and of document pages, accepted from a server for a single call.
const PIECES_BELIEVED: u64 = 10_000;

/// Returns true if no count exceeds the possible usage of a single call. A larger count is no
/// measurement: the reservation is charged instead.
fn is_credible(usage: &Usage) -> bool {
    let Usage {
        input_tokens,
        output_tokens,
        total_tokens: _,
        cache_read_input_tokens,
        cache_creation_input_tokens,
        cache_creation_hour_input_tokens,
        reasoning_output_tokens,
        audio_input_tokens,
        audio_output_tokens,
        audio_cache_read_input_tokens,
        image_input_tokens,
        image_output_tokens,
        image_cache_read_input_tokens,
        video_input_tokens,
        video_output_tokens,
        citation_tokens,
        web_searches,
        file_searches,
        audio_input_ms,
        pages,
    } = *usage;
    let tokens = [
        input_tokens,
        output_tokens,
        cache_read_input_tokens,
        cache_creation_input_tokens,
        cache_creation_hour_input_tokens,
        reasoning_output_tokens,
        audio_input_tokens,
        audio_output_tokens,
        audio_cache_read_input_tokens,
        image_input_tokens,
        image_output_tokens,
        image_cache_read_input_tokens,
        video_input_tokens,
        video_output_tokens,
        citation_tokens,
    ];
    let within = |all: &[Option<u64>], most: u64| all.iter().flatten().all(|it| *it <= most);
    within(&tokens, TOKENS_BELIEVED)
        && within(&[web_searches, file_searches, pages], PIECES_BELIEVED)
        && within(&[audio_input_ms], SOUND_BELIEVED_MS)
}

/// Bytes of text taken for a token if nobody counted: the average of tokenizers on English and on
/// program code.
const BYTES_PER_TOKEN: u64 = 4;

/// Returns input and output tokens as far as known: counted by the provider up to the client's
/// departure, otherwise estimated from the observed text. `None`: no basis for an estimate.
///
/// A client leaving a stream ends the stream: the known providers stop generating and bill the
/// tokens generated so far. An answer in a single piece is generated to its end and billed even if
/// nobody listens.
fn seen(running: &Running, call: &Call, complete: bool) -> Option<(u64, u64)> {
    let usage = &call.usage;
    let lost = call.missing_bytes > 0 || call.unreadable.is_some() || !call.request_seen;
    let asked = running.asked.0.div_ceil(BYTES_PER_TOKEN);
    let input = usage.input_tokens.or((asked > 0).then_some(asked))?;
    let written = call.written_bytes.div_ceil(BYTES_PER_TOKEN);
    let began = call.stream_response || call.stream && call.status.is_some();
    let text = usage.output_tokens.is_some() || written > 0 || !has_output(call);
    // In an answer in a single piece the counts come once, and are final.
    let counted = usage.input_tokens.is_some() && usage.output_tokens.is_some();
    let counted = counted && !call.stream_response;
    if !counted && (lost || !(complete && text || began)) {
        return None;
    }
    let output = usage.output_tokens.unwrap_or(0).max(written);
    Some((input, if has_output(call) { output } else { 0 }))
}

/// Returns true if the provider refused the call, failed or redirected the call: no usage.
fn is_refusal(call: &Call, complete: bool) -> bool {
    let whole = complete && !call.stream_response && call.written_bytes == 0;
    call.status.is_some_and(|it| it >= 300) || whole && call.error_type.is_some()
}

/// Returns the quantities billed by the second, the character or the page, if known.
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

/// Returns every count of a call except the totals of input and output.
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
        compute_ns: 0,
    }
}

impl Cost {
    fn in_unit(self, unit: Unit) -> Option<(i64, Basis)> {
        match unit {
            Unit::Usd => self.usd,
            Unit::Tokens => self.tokens,
            Unit::ComputeSeconds => {
                Some((i64::try_from(self.time.ns).unwrap_or(i64::MAX), self.time.basis))
            }
        }
    }

    /// Returns the part of the amount measured by the agent: neither an estimate nor a figure from
    /// the server.
    fn measured(self, unit: Unit) -> i64 {
        match unit {
            Unit::Usd => self.for_time,
            Unit::Tokens => 0,
            Unit::ComputeSeconds => i64::try_from(self.time.ns).unwrap_or(i64::MAX),
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
