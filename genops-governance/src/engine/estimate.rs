//! Worst-case usage of a request, estimated before the request runs: tokens, money and the budgets
//! demanded.

use std::sync::Arc;

use genops_protocols::Call;

use super::core::{Core, Subject};
use crate::authority::Chain;
use crate::awu::{Attribution, BudgetView, OTHERS, Reservation};
use crate::budget::Budget;
use crate::config::{Estimate, Unit};
use crate::ledger::Demand;
use crate::prices::{Found, output_limit};
use crate::record::Texts;
use crate::telemetry::has_output;
use crate::time::Now;

/// Context length, in tokens, for a model without a known context length: the longest on offer.
const CONTEXT_TOKENS: u64 = 1_048_576;

/// Request, as far as read.
pub(super) struct Ask<'a> {
    pub(super) call: &'a Call,
    /// Attribution of the request.
    pub(super) who: Arc<Attribution>,
    /// The request was read to the end, including all text.
    pub(super) readable: bool,
    /// The connection has readable requests; otherwise only the connection is known.
    pub(super) inspectable: bool,
    /// Names of the matching content rules.
    pub(super) content: Vec<String>,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The server has begun the request on its own.
    pub(super) under_way: bool,
    pub(super) estimate: Guess,
    pub(super) region: Option<String>,
    /// Bytes and characters of the text.
    pub(super) asked: (u64, u64),
    /// Text of the request, if kept.
    pub(super) texts: Texts,
    /// SHA-256 of the body, if an approval may need the digest.
    pub(super) digest: Option<[u8; 32]>,
}

/// Maximum usage of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Guess {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) nano_usd: Option<i64>,
    /// As `nano_usd`, without regard to the usual cost, and for the provider's dearest model if the
    /// price is assumed: the amount for rules about a single request.
    pub(super) worst_nano_usd: Option<i64>,
    /// Maximum duration, in nanoseconds; absent if no budget counts time.
    pub(super) compute_ns: Option<i64>,
    pub(super) price: Option<Found>,
}

impl Guess {
    pub(super) fn tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    pub(super) fn in_unit(&self, unit: Unit) -> i64 {
        match unit {
            Unit::Usd => self.nano_usd.unwrap_or(0),
            Unit::Tokens => i64::try_from(self.tokens()).unwrap_or(i64::MAX),
            Unit::ComputeSeconds => self.compute_ns.unwrap_or(0),
        }
    }
}

/// Returns the maximum cost; for an assumed price, at least the cost of the provider's dearest
/// model.
fn ceiling(
    price: Option<&Found>,
    now: Now,
    tier: Option<&str>,
    (input, output): (u64, u64),
    nano_usd: Option<i64>,
) -> Option<i64> {
    let unix_s = now.unix_ns / 1_000_000_000;
    let dearest = price.and_then(|it| it.dearest.as_ref());
    nano_usd.max(dearest.and_then(|it| it.worst_nano_usd(unix_s, tier, input, output)))
}

/// Maximum tokens of a picture or of sound: the largest documented value is 6,240.
const MEDIA_TOKENS: u64 = 16_384;

/// Returns the maximum answer, in tokens, for a model without a documented maximum.
fn largest_answer(call: &Call, model: Option<&str>, price: Option<&Found>) -> u64 {
    let known = price.is_some_and(|it| !it.assumed && it.price.max_output_tokens.is_some());
    let operation = call.operation.as_deref().unwrap_or_default();
    let media = matches!(
        operation,
        "image_generation"
            | "text_to_speech"
            | "audio_transcription"
            | "audio_translation"
            | "video_generation"
    );
    if media && !known && model.is_some() { MEDIA_TOKENS } else { u64::MAX }
}

impl Core {
    /// Returns the maximum usage of a request of `bytes` bytes. `output` replaces the output limit
    /// of the call.
    pub(super) fn estimate(
        &self,
        now: Now,
        subject: &Subject,
        call: &Call,
        bytes: u64,
        output: Option<u64>,
    ) -> Guess {
        let settings = &self.settings.0;
        let model = call.request_model.as_deref();
        let price = settings.prices.find(call.provider.as_deref(), model);
        if call.operation.as_deref() == Some(Call::COUNT_TOKENS) {
            return Guess { nano_usd: Some(0), worst_nano_usd: Some(0), price, ..Guess::default() };
        }
        // A token has at least a byte. Data stored at the provider may fill the model's context.
        let context = || {
            let known = price.as_ref().filter(|it| !it.assumed);
            known.and_then(|it| it.price.context_tokens).unwrap_or(CONTEXT_TOKENS)
        };
        let referred = if call.input_by_reference { context() } else { 0 };
        let input_tokens = bytes.saturating_add(referred);
        let output_tokens = output.unwrap_or_else(|| {
            if !has_output(call) {
                return 0;
            }
            let limit = call.max_output_tokens.unwrap_or_else(|| {
                let (provider, unknown) = (call.provider.as_deref(), settings.max_output_tokens);
                output_limit(provider, model, price.as_ref(), unknown)
            });
            let limit = limit.min(largest_answer(call, model, price.as_ref()));
            limit.saturating_mul(call.choices.unwrap_or(1).max(1))
        });
        let unix_s = now.unix_ns / 1_000_000_000;
        let tier = call.params.service_tier.as_deref();
        let own_ns = price.as_ref().and_then(|it| it.price.max_compute_ns);
        let longest_ns = own_ns.unwrap_or(settings.max_compute_ns);
        let nano_usd = price.as_ref().and_then(|it| {
            it.price.worst_with_time(unix_s, tier, input_tokens, output_tokens, longest_ns)
        });
        let usual = settings.estimate == Estimate::P95 && output.is_none();
        let tokens = (input_tokens, output_tokens);
        let worst_nano_usd = ceiling(price.as_ref(), now, tier, tokens, nano_usd);
        let principal = &subject.identity.attribution.principal;
        let usually = |what: &str, worst: i64| {
            let key = format!("{what} {principal} {}", model.unwrap_or_default());
            let known = usual && self.latencies.is_full(&key);
            let p95 = self.latencies.p95(&key).filter(|_| known);
            p95.and_then(|it| i64::try_from(it).ok()).map_or(worst, |it| it.min(worst))
        };
        let nano_usd = nano_usd.map(|worst| usually("cost", worst));
        let compute_ns = settings.counts_time.then(|| usually("time", longest_ns));
        Guess { input_tokens, output_tokens, nano_usd, worst_nano_usd, compute_ns, price }
    }

    /// Returns the region of the model: from host or path, otherwise as configured for the host.
    pub(super) fn region(&self, call: &Call) -> Option<String> {
        let host = call.server_address.as_deref().unwrap_or_default().to_lowercase();
        let configured = || {
            let regions = &self.settings.0.regions;
            regions.iter().find(|(like, port, _)| {
                (port.is_none() || *port == call.server_port) && crate::glob::matches(like, &host)
            })
        };
        call.region.clone().or_else(|| configured().map(|(_, _, region)| region.clone()))
    }

    /// Returns the demand of a request on each budget concerned.
    pub(super) fn demands(&self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Vec<Demand> {
        let who = &ask.who;
        let (provider, model) = (ask.call.provider.as_deref(), ask.call.request_model.as_deref());
        let budgets = self.settings.0.budgets.iter();
        let own = budgets.filter(|it| it.concerns(who, &subject.lineage, provider, model));
        let demand = |it: &Budget| {
            let crowded = self.crowded.contains(&it.name);
            let part = it.part(who).map(|part| if crowded { OTHERS } else { part });
            it.demand(&self.ledger, now.unix_ns, ask.estimate.in_unit(it.unit), part)
        };
        let of_chain = self.chain(subject).into_iter().flat_map(Chain::budgets);
        own.chain(of_chain).map(demand).collect()
    }

    pub(super) fn reservation(&self, now: Now, ask: &Ask<'_>, demands: &[Demand]) -> Reservation {
        let unit = unit_of(ask, demands);
        let mut others = self.views(demands);
        let tightness = |it: &BudgetView| {
            i128::from(it.remaining) * 1_000_000 / i128::from(it.allocated.max(1))
        };
        let own = others.iter().enumerate().filter(|(_, it)| it.unit == unit);
        let tightest = own.min_by_key(|(_, it)| tightness(it)).map(|(at, _)| at);
        let budget = tightest.map(|at| others.remove(at));
        let amount = ask.estimate.in_unit(unit);
        Reservation { unit, amount, budget, others, unix_ns: now.unix_ns }
    }

    /// Returns the current state of the demanded budgets.
    pub(super) fn views(&self, demands: &[Demand]) -> Vec<BudgetView> {
        let view = |it: &Demand| {
            let account = self.ledger.account(&it.key)?;
            Some(BudgetView {
                name: it.key.name(),
                period: account.period.clone(),
                unit: account.unit,
                allocated: account.allocated(),
                consumed: account.consumed(),
                reserved: account.reserved,
                remaining: account.remaining(),
            })
        };
        demands.iter().filter_map(view).collect()
    }
}

/// Returns the accounting unit of a request: money if a price is known, unless every demanded
/// budget counts something else.
fn unit_of(ask: &Ask<'_>, demands: &[Demand]) -> Unit {
    let is_priced = ask.estimate.nano_usd.is_some();
    let usual = if is_priced { Unit::Usd } else { Unit::Tokens };
    let known = |it: &&Demand| it.unit != Unit::Usd || is_priced;
    if demands.iter().any(|it| it.unit == usual) {
        return usual;
    }
    demands.iter().find(known).map_or(usual, |it| it.unit)
}
