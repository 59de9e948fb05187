//! What a call costs: integer rate cards, in pico-USD for one token.
//!
//! `data/prices.tsv` is compiled from the `genai-prices` crate's data (MIT, Pydantic) by
//! `tests/price_table.rs`, which also compares every price with what that crate computes. It is
//! embedded as text and read where it lies: 2,000 models cost no memory until they are asked for.
//! Web searches and the like have no rates here.

mod limits;

use std::fmt;
use std::num::ParseIntError;
use std::sync::Mutex;

use regex::Regex;
use sha2::{Digest as _, Sha256};

use crate::config::{PriceConfig, PricesConfig, UnknownModel};
use crate::glob;
use crate::money::pico_per_token;
use crate::settings::Faults;

/// The table: a line `@PROVIDER<tab>FALLBACKS`, then a line for each of its models.
const TABLE: &str = include_str!("../data/prices.tsv");

/// Most (provider, model) pairs whose price is remembered.
const CACHE_LIMIT: usize = 256;

/// Names of providers where telemetry's differ from the table's.
const PROVIDERS: [(&str, &str); 12] = [
    ("aws.bedrock", "aws"),
    ("azure.ai.inference", "azure"),
    ("azure.ai.openai", "azure"),
    ("gcp.gemini", "google"),
    ("gcp.gen_ai", "google"),
    ("gcp.vertex_ai", "google"),
    ("github_copilot", "github-copilot"),
    ("mistral_ai", "mistral"),
    ("moonshot_ai", "moonshotai"),
    ("together_ai", "together"),
    ("x_ai", "x-ai"),
    ("z_ai", "zai"),
];

/// Servers that run on somebody's own machines: nobody is billed for a token.
const SELF_HOSTED: [&str; 6] = ["ollama", "vllm", "llama_cpp", "llama-cpp", "lmstudio", "tgi"];

/// Tokens of one call. The special kinds are parts of `input` and `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All input tokens.
    pub input: u64,
    /// All output tokens.
    pub output: u64,
    /// Of the input: read from a cache.
    pub cache_read: u64,
    /// Of the input: written to a cache.
    pub cache_write: u64,
    /// Of the output: reasoning.
    pub reasoning: u64,
    /// Of the input: audio.
    pub audio_input: u64,
    /// Of the output: audio.
    pub audio_output: u64,
}

/// A price that may depend on how long the prompt is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rate {
    base: u64,
    /// Above this many input tokens of the call, this rate for all of them; ascending.
    tiers: Vec<(u64, u64)>,
}

impl Rate {
    fn flat(base: u64) -> Self {
        Self { base, tiers: Vec::new() }
    }

    fn at(&self, input_tokens: u64) -> u64 {
        let reached = self.tiers.iter().rev().find(|(start, _)| input_tokens > *start);
        reached.map_or(self.base, |(_, rate)| *rate)
    }

    /// `BASE>START:RATE>START:RATE`.
    fn parse(text: &str) -> Result<Self, ParseIntError> {
        let mut parts = text.split('>');
        let base = parts.next().unwrap_or_default().parse()?;
        let tier = |part: &str| {
            let (start, rate) = part.split_once(':').unwrap_or((part, ""));
            Ok((start.parse()?, rate.parse()?))
        };
        Ok(Self { base, tiers: parts.map(tier).collect::<Result<_, ParseIntError>>()? })
    }
}

/// What one model costs, in pico-USD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateCard {
    input: Option<Rate>,
    output: Option<Rate>,
    cache_read: Option<Rate>,
    cache_write: Option<Rate>,
    cache_write_1h: Option<Rate>,
    reasoning: Option<Rate>,
    audio_input: Option<Rate>,
    audio_output: Option<Rate>,
    request: Option<Rate>,
}

impl RateCard {
    fn parse(text: &str) -> Result<Self, ParseIntError> {
        let mut columns = text.split(',');
        let mut next = || match columns.next() {
            None | Some("") => Ok(None),
            Some(column) => Rate::parse(column).map(Some),
        };
        Ok(Self {
            input: next()?,
            output: next()?,
            cache_read: next()?,
            cache_write: next()?,
            cache_write_1h: next()?,
            reasoning: next()?,
            audio_input: next()?,
            audio_output: next()?,
            request: next()?,
        })
    }

    /// What a call with these tokens costs, rounded half to even.
    #[must_use]
    pub fn actual_nano_usd(&self, tokens: &Tokens) -> i64 {
        let Tokens { input, output, cache_read, cache_write, reasoning, audio_input, audio_output } =
            *tokens;
        let at = |rate: &Option<Rate>, other: &Option<Rate>| {
            rate.as_ref().or(other.as_ref()).map_or(0, |it| u128::from(it.at(input)))
        };
        let own_reasoning = if self.reasoning.is_some() { reasoning } else { 0 };
        let special = cache_read.saturating_add(cache_write).saturating_add(audio_input);
        let plain_input = input.saturating_sub(special);
        let plain_output = output.saturating_sub(own_reasoning).saturating_sub(audio_output);
        let pico = [
            (plain_input, at(&self.input, &None)),
            (cache_read, at(&self.cache_read, &self.input)),
            (cache_write, at(&self.cache_write, &self.input)),
            (audio_input, at(&self.audio_input, &self.input)),
            (plain_output, at(&self.output, &None)),
            (own_reasoning, at(&self.reasoning, &self.output)),
            (audio_output, at(&self.audio_output, &self.output)),
            (1, at(&self.request, &None)),
        ];
        half_even(pico.iter().map(|(count, rate)| u128::from(*count) * rate).sum())
    }

    /// Most that a call with up to these tokens can cost, rounded up: every token at the dearest
    /// rate that its kind may have, at every prompt length up to the one given.
    #[must_use]
    pub fn worst_nano_usd(&self, input: u64, output: u64) -> i64 {
        let dearest = |rates: &[&Option<Rate>]| {
            let reachable = |it: &Rate| {
                let tiers = it.tiers.iter().filter(|(start, _)| input > *start);
                tiers.map(|(_, rate)| *rate).chain([it.base]).max().unwrap_or(0)
            };
            rates.iter().filter_map(|it| it.as_ref()).map(reachable).max().unwrap_or(0)
        };
        let Self {
            input: plain,
            output: out,
            cache_read,
            cache_write,
            cache_write_1h,
            reasoning,
            audio_input,
            audio_output,
            request,
        } = self;
        let input_rate = dearest(&[plain, cache_read, cache_write, cache_write_1h, audio_input]);
        let output_rate = dearest(&[out, reasoning, audio_output]);
        let pico = u128::from(input) * u128::from(input_rate)
            + u128::from(output) * u128::from(output_rate)
            + u128::from(dearest(&[request]));
        i64::try_from(pico.div_ceil(1_000)).unwrap_or(i64::MAX)
    }
}

fn half_even(pico: u128) -> i64 {
    let (nano, rest) = (pico / 1_000, pico % 1_000);
    let up = rest > 500 || (rest == 500 && nano % 2 == 1);
    i64::try_from(nano + u128::from(up)).unwrap_or(i64::MAX)
}

/// The prices of one model at one moment: the standard one, and those of other service tiers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelPrice {
    /// From which second on, ascending.
    dated: Vec<(u64, RateCard)>,
    tiers: Vec<(String, RateCard)>,
    /// Tokens of prompt and answer together, where known.
    pub context_tokens: Option<u64>,
    /// Tokens of an answer, where known.
    pub max_output_tokens: Option<u64>,
}

impl ModelPrice {
    /// The card for a call of a service tier; the standard one where the tier has none.
    #[must_use]
    pub fn card(&self, unix_s: u64, service_tier: Option<&str>) -> Option<&RateCard> {
        let tier = service_tier.and_then(|tier| self.tiers.iter().find(|(name, _)| name == tier));
        let dated = || self.dated.iter().rev().find(|(from, _)| *from <= unix_s);
        tier.map(|(_, card)| card).or_else(|| dated().map(|(_, card)| card))
    }

    /// Most a call can cost. A request that does not name its service tier may get any.
    #[must_use]
    pub fn worst_nano_usd(
        &self,
        unix_s: u64,
        service_tier: Option<&str>,
        input: u64,
        output: u64,
    ) -> Option<i64> {
        let standard = self.card(unix_s, service_tier)?.worst_nano_usd(input, output);
        let open = matches!(service_tier, None | Some("auto"));
        let others = self.tiers.iter().filter(|_| open);
        others.map(|(_, card)| card.worst_nano_usd(input, output)).chain([standard]).max()
    }
}

/// Every price: the built-in table, and those of the configuration before it.
pub struct Prices {
    overrides: Vec<(PriceConfig, ModelPrice)>,
    unknown_model: UnknownModel,
    hash: [u8; 32],
    /// Remembered look-ups. The values never change, so the lock can't change an outcome.
    cache: Mutex<Vec<(String, Option<std::sync::Arc<ModelPrice>>)>>,
}

impl fmt::Debug for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prices").field("overrides", &self.overrides).finish_non_exhaustive()
    }
}

/// A price that was found, or assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The price.
    pub price: std::sync::Arc<ModelPrice>,
    /// It is the dearest of the provider's, since the model is not known.
    pub assumed: bool,
}

impl Prices {
    /// The built-in table alone.
    #[must_use]
    pub fn builtin() -> Self {
        Self {
            overrides: Vec::new(),
            unknown_model: UnknownModel::default(),
            hash: tables().finalize().into(),
            cache: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn compile(config: &PricesConfig, faults: &mut Faults) -> Self {
        let mut hash = tables();
        let mut overrides = Vec::new();
        for (index, price) in config.overrides.iter().enumerate() {
            hash.update(format!("{price:?}"));
            let place = Faults::entry("prices.overrides", index, &price.model);
            overrides.push((price.clone(), own_price(price, &place, faults)));
        }
        let hash = hash.finalize().into();
        Self { overrides, unknown_model: config.unknown_model, hash, ..Self::builtin() }
    }

    /// SHA-256 of the tables and the overrides.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The price of a provider's model, or what the rule for unknown models assumes: the dearest
    /// of the provider's. A provider that the table does not know has none.
    #[must_use]
    pub fn find(&self, provider: Option<&str>, model: Option<&str>) -> Option<Found> {
        let exact = model.and_then(|model| self.known(provider, model));
        if let Some(price) = exact {
            return Some(Found { price, assumed: false });
        }
        if self.unknown_model != UnknownModel::Conservative {
            return None;
        }
        let provider = table_name(provider?);
        let dearest = self.remember(&format!("{provider}\n"), || dearest(provider));
        dearest.map(|price| Found { price, assumed: true })
    }

    /// Whether a call without a price may draw on budgets in USD as if it cost nothing.
    pub(crate) fn free_without_price(&self, provider: Option<&str>) -> bool {
        self.unknown_model == UnknownModel::TokensOnly
            || provider.is_some_and(|it| SELF_HOSTED.contains(&it))
    }

    /// What holds for models without a price.
    #[must_use]
    pub fn unknown_model(&self) -> UnknownModel {
        self.unknown_model
    }

    fn known(&self, provider: Option<&str>, model: &str) -> Option<std::sync::Arc<ModelPrice>> {
        let own = self.overrides.iter().find(|(it, _)| {
            it.provider.as_deref().is_none_or(|name| Some(name) == provider)
                && glob::matches(&it.model, model)
        });
        if let Some((_, price)) = own {
            return Some(std::sync::Arc::new(price.clone()));
        }
        let provider = table_name(provider?);
        self.remember(&format!("{provider}\n{model}"), || look_up(provider, model))
    }

    /// The card of a model by the table's own names, for tests and tools.
    #[must_use]
    pub fn find_raw(&self, provider: &str, model: &str, unix_s: u64) -> Option<RateCard> {
        look_up(provider, model)?.card(unix_s, None).cloned()
    }

    fn remember(
        &self,
        key: &str,
        compute: impl FnOnce() -> Option<ModelPrice>,
    ) -> Option<std::sync::Arc<ModelPrice>> {
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, found)) = cache.iter().find(|(it, _)| it == key) {
            return found.clone();
        }
        if cache.len() >= CACHE_LIMIT {
            cache.clear();
        }
        let found = compute().map(std::sync::Arc::new);
        cache.push((key.to_owned(), found.clone()));
        found
    }
}

/// Most tokens that a request without a limit of its own can be answered with: what the
/// configuration says of the model, what is documented for it, what the configuration says of
/// models that are not known, the model's context window, and at last the most that the provider
/// documents for any model.
pub(crate) fn output_limit(
    provider: Option<&str>,
    model: Option<&str>,
    price: Option<&Found>,
    unknown: Option<u64>,
) -> u64 {
    // What an assumed price says is about another model.
    let own = price.filter(|it| !it.assumed).map(|it| &it.price);
    own.and_then(|it| it.max_output_tokens)
        .or_else(|| limits::of_model(model?))
        .or(unknown)
        .or_else(|| own?.context_tokens)
        .unwrap_or_else(|| limits::of_provider(provider.unwrap_or_default()))
}

fn own_price(config: &PriceConfig, place: &str, faults: &mut Faults) -> ModelPrice {
    let mut rate = |key: &str, usd: Option<f64>| {
        let pico = pico_per_token(usd?).map_err(|why| faults.add(place, key, &why)).ok()?;
        Some(Rate::flat(pico))
    };
    let card = RateCard {
        input: rate("input_per_million", Some(config.input_per_million)),
        output: rate("output_per_million", Some(config.output_per_million)),
        cache_read: rate("cache_read_per_million", config.cache_read_per_million),
        cache_write: rate("cache_write_per_million", config.cache_write_per_million),
        ..RateCard::default()
    };
    let max_output_tokens = config.max_output_tokens;
    ModelPrice { dated: vec![(0, card)], max_output_tokens, ..ModelPrice::default() }
}

/// The built-in tables, hashed.
fn tables() -> Sha256 {
    Sha256::new_with_prefix(TABLE).chain_update(limits::TABLE)
}

fn table_name(provider: &str) -> &str {
    let renamed = PROVIDERS.iter().find(|(telemetry, _)| *telemetry == provider);
    renamed.map_or(provider, |(_, table)| table)
}

/// The models of a provider, and the providers to look at where it has not the model.
fn section(provider: &str) -> Option<(&'static str, &'static str)> {
    let start = TABLE.match_indices(provider).map(|(at, _)| at).find(|at| {
        let (before, after) = TABLE.split_at(*at);
        (before == "@" || before.ends_with("\n@"))
            && after.strip_prefix(provider).is_some_and(|it| it.starts_with('\t'))
    })?;
    let (_, here) = TABLE.split_at_checked(start)?;
    let section = here.split("\n@").next()?;
    let (head, models) = section.split_once('\n').unwrap_or((section, ""));
    Some((head.split_once('\t').map_or("", |(_, it)| it), models))
}

fn look_up(provider: &str, model: &str) -> Option<ModelPrice> {
    let (fallbacks, models) = section(provider)?;
    let folded = model.to_lowercase();
    let fallbacks = fallbacks.split(' ').filter_map(section).map(|(_, models)| models);
    let mut sections = std::iter::once(models).chain(fallbacks);
    let line = sections.find_map(|models| {
        models.lines().find(|line| {
            let rule = line.split('\t').next().unwrap_or_default();
            rule.split(' ').any(|all| all.split('&').all(|one| fits(one, model, &folded)))
        })
    })?;
    parse_model(line)
}

/// One clause of a rule: its first byte says which sort.
fn fits(clause: &str, raw: &str, folded: &str) -> bool {
    let Some((kind, value)) = clause.split_at_checked(1) else { return false };
    let regex = || Regex::new(value).is_ok_and(|it| it.is_match(raw));
    match kind {
        "=" => folded == value,
        "^" => folded.starts_with(value),
        "$" => folded.ends_with(value),
        "*" => folded.contains(value),
        "~" => regex(),
        "!" => !regex(),
        _ => false,
    }
}

fn parse_model(line: &str) -> Option<ModelPrice> {
    let mut columns = line.split('\t').skip(1);
    let context: u64 = columns.next()?.parse().ok()?;
    let mut dated = Vec::new();
    for entry in columns.next()?.split(';') {
        let (from, card) = entry.split_once(' ')?;
        dated.push((from.parse().ok()?, RateCard::parse(card).ok()?));
    }
    let mut tiers = Vec::new();
    for entry in columns {
        let (name, card) = entry.split_once(' ')?;
        tiers.push((name.to_owned(), RateCard::parse(card).ok()?));
    }
    let context_tokens = (context > 0).then_some(context);
    Some(ModelPrice { dated, tiers, context_tokens, max_output_tokens: None })
}

/// The dearest model of a provider, by input and output together.
fn dearest(provider: &str) -> Option<ModelPrice> {
    let (_, models) = section(provider)?;
    let priced = models.lines().filter_map(parse_model).filter_map(|it| {
        let cost = it.worst_nano_usd(u64::MAX >> 1, None, 1_000, 1_000)?;
        Some((cost, it))
    });
    priced.max_by_key(|(cost, _)| *cost).map(|(_, it)| it)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panic")]

    use super::*;

    /// 2026-11-22.
    const TODAY: u64 = 1_795_305_600;

    #[track_caller]
    fn worst(provider: &str, model: &str, tier: Option<&str>) -> i64 {
        let found = Prices::builtin().find(Some(provider), Some(model)).unwrap();
        found.price.worst_nano_usd(TODAY, tier, 1_000, 100).unwrap()
    }

    #[test]
    fn the_worst_case_takes_the_dearest_tier_unless_the_request_names_one() {
        // gpt-4o-mini, USD for a million: standard 0.15 and 0.60, priority 0.25 and 1.00.
        assert_eq!(worst("openai", "gpt-4o-mini", Some("default")), 150_000 + 60_000);
        assert_eq!(worst("openai", "gpt-4o-mini", None), 250_000 + 100_000);
    }

    #[test]
    fn an_unknown_model_costs_as_much_as_the_dearest_of_its_provider() {
        let prices = Prices::builtin();
        let found = prices.find(Some("anthropic"), Some("no-such-model")).unwrap();
        assert!(found.assumed);
        let dearest = found.price.worst_nano_usd(TODAY, None, 1_000, 1_000);
        let known = prices.find(Some("anthropic"), Some("claude-haiku-5-5")).unwrap();
        assert!(dearest > known.price.worst_nano_usd(TODAY, None, 1_000, 1_000));
        assert_eq!(prices.find(None, None), None);
        assert_eq!(prices.find(Some("ollama"), Some("llama3")), None);
    }

    #[test]
    fn a_long_prompt_reaches_the_dearer_tier_whole() {
        let found = Prices::builtin().find(Some("anthropic"), Some("claude-haiku-5-5")).unwrap();
        let card = found.price.card(TODAY, None).unwrap();
        let tokens = |input| Tokens { input, ..Tokens::default() };
        assert_eq!(card.actual_nano_usd(&tokens(100_000)), 10_000_000);
        assert_eq!(card.actual_nano_usd(&tokens(100_001)), 50_000_500);
    }

    #[test]
    fn the_largest_answer_is_documented_or_configured_or_as_large_as_may_be() {
        let prices = Prices::builtin();
        let limit = |provider: &str, model: &str, unknown| {
            let found = prices.find(Some(provider), Some(model));
            output_limit(Some(provider), Some(model), found.as_ref(), unknown)
        };
        assert_eq!(limit("openai", "gpt-4o-mini-2024-07-18", Some(5)), 16_384);
        // No longer listed, but its price says how long its context is.
        assert_eq!(limit("openai", "gpt-4-32k", None), 32_000);
        assert_eq!(limit("openai", "no-such-model", Some(5)), 5);
        assert_eq!(limit("openai", "no-such-model", None), limits::of_provider("openai"));
        assert_eq!(limit("ollama", "my-own", None), limits::of_provider("nobody"));
    }

    #[test]
    fn halves_round_to_even() {
        assert_eq!([500, 1_500, 2_500, 2_501].map(half_even), [0, 2, 2, 3]);
    }
}
