//! What a request may need at most, before it runs: tokens, money, and of which budgets.

use std::sync::Arc;

use genops_protocols::Call;

use super::core::{Core, Subject};
use crate::awu::{Attribution, BudgetView, OTHERS, Reservation};
use crate::budget::Budget;
use crate::config::{Estimate, Unit};
use crate::ledger::Demand;
use crate::prices::{Found, output_limit};
use crate::record::Texts;
use crate::telemetry::has_output;
use crate::time::Now;

/// Tokens of context where a model's own number is not known: the longest that are offered.
const CONTEXT_TOKENS: u64 = 1_048_576;

/// A request as far as it was read.
pub(super) struct Ask<'a> {
    pub(super) call: &'a Call,
    /// Whom it is charged to.
    pub(super) who: Arc<Attribution>,
    /// It was read to its end, and all of its text.
    pub(super) readable: bool,
    /// There is a request to read; otherwise only a connection.
    pub(super) inspectable: bool,
    /// Names of the content rules that match.
    pub(super) content: Vec<String>,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) estimate: Guess,
    pub(super) region: Option<String>,
    /// Bytes and characters of its text.
    pub(super) asked: (u64, u64),
    /// What it says, where that is to be kept.
    pub(super) texts: Texts,
    /// SHA-256 over its body, where an approval may ask for it.
    pub(super) digest: Option<[u8; 32]>,
}

/// Most that a request can use.
#[derive(Clone, Debug, Default)]
pub(super) struct Guess {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) nano_usd: Option<i64>,
    /// As `nano_usd`, whatever such requests usually cost, and of the provider's dearest model if the price is
    /// assumed: what rules about one request look at.
    pub(super) worst_nano_usd: Option<i64>,
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
        }
    }
}

/// Of an assumed price, what the provider's dearest model may cost for it.
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

/// Most tokens of a picture or of sound: the largest that is documented has 6,240.
const MEDIA_TOKENS: u64 = 16_384;

/// No model answers with more than this, where nothing is documented for it.
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
    /// Most that a request of so many bytes can use. `output` replaces what the call says.
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
        // A token is a byte at least. What lies at the provider may fill the model's context.
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
        let nano_usd = price
            .as_ref()
            .and_then(|it| it.price.worst_nano_usd(unix_s, tier, input_tokens, output_tokens));
        let usual = settings.estimate == Estimate::P95 && output.is_none();
        let tokens = (input_tokens, output_tokens);
        let worst_nano_usd = ceiling(price.as_ref(), now, tier, tokens, nano_usd);
        let nano_usd = nano_usd.map(|worst| {
            let principal = &subject.identity.attribution.principal;
            let key = format!("cost {principal} {}", model.unwrap_or_default());
            let known = usual && self.latencies.is_full(&key);
            let p95 = self.latencies.p95(&key).filter(|_| known);
            p95.and_then(|it| i64::try_from(it).ok()).map_or(worst, |it| it.min(worst))
        });
        Guess { input_tokens, output_tokens, nano_usd, worst_nano_usd, price }
    }

    /// Where the model computes: what host or path say, else what is configured for the host.
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

    /// What a request may need of each budget that it draws on.
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
        own.map(demand).collect()
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

    /// How the budgets demanded stand.
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

/// What a request is accounted in: money where there is a price, unless every budget that it draws
/// on counts something else.
fn unit_of(ask: &Ask<'_>, demands: &[Demand]) -> Unit {
    let is_priced = ask.estimate.nano_usd.is_some();
    let usual = if is_priced { Unit::Usd } else { Unit::Tokens };
    let known = |it: &&Demand| it.unit != Unit::Usd || is_priced;
    if demands.iter().any(|it| it.unit == usual) {
        return usual;
    }
    demands.iter().find(known).map_or(usual, |it| it.unit)
}
