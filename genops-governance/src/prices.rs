//! Prices of calls: integer rate cards, in pico-USD for a token.
//!
//! `data/prices.tsv` is compiled by [`data`] from the data of the `genai-prices` crate (MIT,
//! Pydantic); `tests/price_table.rs` compares every price with the price computed by the crate. A
//! configured file of the same form takes precedence. The table is embedded as text and parsed on
//! demand: 2,000 models cost no memory until looked up. Searches, seconds, characters and pages
//! have rates of their own; see [`RateCard`].

pub mod data;
mod limits;
mod list;

use std::fmt;
use std::num::ParseIntError;
use std::sync::{Arc, Mutex};

use regex::Regex;
use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::config::{PriceConfig, PriceTable, PricesConfig, UnknownModel};
use crate::glob;
use crate::money::{nanoseconds, pico_per_second, pico_per_token};
use crate::settings::Faults;

pub use self::list::Listed;

/// The price table: for each provider a line `@PROVIDER<tab>FALLBACKS`, then a line for each model.
const TABLE: &str = include_str!("../data/prices.tsv");

/// Maximum number of (provider, model) pairs with a remembered price.
const CACHE_LIMIT: usize = 256;

/// Provider names in telemetry and in the table, if different.
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

/// Providers running on the user's own machines: no bill for tokens.
const SELF_HOSTED: [&str; 6] = ["ollama", "vllm", "llama_cpp", "llama-cpp", "lmstudio", "tgi"];

/// Usage of a call. The special kinds of tokens are parts of `input` and `output`.
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
    /// Of the tokens written to a cache: kept for an hour.
    pub cache_write_hour: u64,
    /// Of the tokens read from a cache: audio.
    pub audio_cached: u64,
    /// Of the input: pictures.
    pub image_input: u64,
    /// Of the output: pictures.
    pub image_output: u64,
    /// Of the tokens read from a cache: pictures.
    pub image_cached: u64,
    /// Of the input: video.
    pub video_input: u64,
    /// Of the output: video.
    pub video_output: u64,
    /// Citations, not included in the output.
    pub citations: u64,
    /// Web searches run by the provider.
    pub web_searches: u64,
    /// Searches of stored files run by the provider.
    pub file_searches: u64,
    /// Milliseconds of audio input.
    pub audio_ms: u64,
    /// Characters of text converted to speech.
    pub characters: u64,
    /// Pages of documents read.
    pub pages: u64,
    /// Nanoseconds from the request's first byte to the end of the answer.
    pub compute_ns: u64,
}

/// A price, possibly dependent on the length of the prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rate {
    base: u64,
    /// Threshold in input tokens of the call, and the rate for all tokens above the threshold;
    /// ascending.
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

    /// Parses `BASE>START:RATE>START:RATE`.
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

/// Rate card of a model, in pico-USD.
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
    audio_cached: Option<Rate>,
    image_input: Option<Rate>,
    image_output: Option<Rate>,
    image_cached: Option<Rate>,
    video_input: Option<Rate>,
    video_output: Option<Rate>,
    citation: Option<Rate>,
    /// For a search.
    web_search: Option<Rate>,
    /// For a search.
    file_search: Option<Rate>,
    /// For an hour of audio.
    audio_hour: Option<Rate>,
    /// For a character converted to speech.
    character: Option<Rate>,
    /// For a page.
    page: Option<Rate>,
    /// For a second of a request's duration; only configured prices have a rate for seconds.
    second: Option<Rate>,
}

/// Nanoseconds in a second, the unit of the price for durations.
const SECOND_NS: u128 = 1_000_000_000;
/// Milliseconds in an hour, the unit of the price for audio.
const HOUR_MS: u128 = 3_600_000;
/// Minimum number of bytes in a second of audio: no encoding accepted by an API has fewer.
const SOUND_BYTES_PER_S: u64 = 500;
/// Maximum number of pages in a document accepted by an API.
const PAGES_LIMIT: u64 = 1_000;

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
            audio_cached: next()?,
            image_input: next()?,
            image_output: next()?,
            image_cached: next()?,
            video_input: next()?,
            video_output: next()?,
            citation: next()?,
            web_search: next()?,
            file_search: next()?,
            audio_hour: next()?,
            character: next()?,
            page: next()?,
            second: None,
        })
    }

    /// Returns the cost of a call with the tokens, rounded half to even.
    #[must_use]
    pub fn actual_nano_usd(&self, tokens: &Tokens) -> i64 {
        let input = tokens.input;
        let at = |rate: &Option<Rate>, other: &Option<Rate>| {
            rate.as_ref().or(other.as_ref()).map_or(0, |it| u128::from(it.at(input)))
        };
        let own = |rate: &Option<Rate>, count: u64| if rate.is_some() { count } else { 0 };
        let reasoning = own(&self.reasoning, tokens.reasoning);
        // A picture or audio read from a cache is charged as cached, and not a second time.
        let audio_cached = tokens.audio_cached.min(tokens.cache_read);
        let image_cached = tokens.image_cached.min(tokens.cache_read.saturating_sub(audio_cached));
        let text_cached =
            tokens.cache_read.saturating_sub(audio_cached).saturating_sub(image_cached);
        let audio_input = tokens.audio_input.saturating_sub(audio_cached);
        let image_input = tokens.image_input.saturating_sub(image_cached);
        let hour = tokens.cache_write_hour.min(tokens.cache_write);
        let short = tokens.cache_write.saturating_sub(hour);
        let special =
            [tokens.cache_read, tokens.cache_write, audio_input, image_input, tokens.video_input];
        let plain_input = special.iter().fold(input, |rest, it| rest.saturating_sub(*it));
        let special = [reasoning, tokens.audio_output, tokens.image_output, tokens.video_output];
        let plain_output = special.iter().fold(tokens.output, |rest, it| rest.saturating_sub(*it));
        let cached = self.cache_read.as_ref().or(self.input.as_ref()).cloned();
        let written = self.cache_write.as_ref().or(self.input.as_ref()).cloned();
        let none = None;
        let pico = [
            (plain_input, at(&self.input, &none)),
            (text_cached, at(&cached, &none)),
            (audio_cached, at(&self.audio_cached, &cached)),
            (image_cached, at(&self.image_cached, &cached)),
            (short, at(&written, &none)),
            (hour, at(&self.cache_write_1h, &written)),
            (audio_input, at(&self.audio_input, &self.input)),
            (image_input, at(&self.image_input, &self.input)),
            (tokens.video_input, at(&self.video_input, &self.input)),
            (plain_output, at(&self.output, &none)),
            (reasoning, at(&self.reasoning, &self.output)),
            (tokens.audio_output, at(&self.audio_output, &self.output)),
            (tokens.image_output, at(&self.image_output, &self.output)),
            (tokens.video_output, at(&self.video_output, &self.output)),
            (tokens.citations, at(&self.citation, &none)),
            (tokens.web_searches, at(&self.web_search, &none)),
            (tokens.file_searches, at(&self.file_search, &none)),
            (tokens.characters, at(&self.character, &none)),
            (tokens.pages, at(&self.page, &none)),
            (1, at(&self.request, &none)),
        ];
        let sound = u128::from(tokens.audio_ms) * at(&self.audio_hour, &none) / HOUR_MS;
        let time = u128::from(tokens.compute_ns) * at(&self.second, &none);
        let whole = pico.iter().map(|(count, rate)| u128::from(*count) * rate).sum::<u128>();
        half_even(sound + time / SECOND_NS + whole, time % SECOND_NS > 0)
    }

    /// Returns the cost of a request's duration, if durations have a price; rounded half to even.
    #[must_use]
    pub fn time_nano_usd(&self, compute_ns: u64) -> i64 {
        let rate = u128::from(self.second.as_ref().map_or(0, |it| it.base));
        let pico = u128::from(compute_ns) * rate;
        half_even(pico / SECOND_NS, pico % SECOND_NS > 0)
    }

    /// Returns whether the card has a price for seconds and none for tokens: the usage reported by
    /// the server does not change the cost.
    #[must_use]
    pub fn is_by_time(&self) -> bool {
        self.second.is_some() && self.input.is_none() && self.output.is_none()
    }

    /// Returns whether the card has no price for tokens, only for seconds, characters or pages.
    #[must_use]
    pub fn is_by_piece(&self) -> bool {
        let pieces = [&self.audio_hour, &self.character, &self.page];
        self.input.is_none() && self.output.is_none() && pieces.iter().any(|it| it.is_some())
    }

    /// Returns the further quantities needed for the cost: milliseconds, characters, pages.
    pub(crate) fn counts(&self) -> [bool; 3] {
        [&self.audio_hour, &self.character, &self.page].map(Option::is_some)
    }

    /// Returns the maximum cost of a call with up to the given tokens, rounded up: every token at
    /// the highest rate of the token's kind, at every prompt length up to the given length.
    #[must_use]
    pub fn worst_nano_usd(&self, input: u64, output: u64) -> i64 {
        self.worst_with_time(input, output, 0)
    }

    fn worst_with_time(&self, input: u64, output: u64, compute_ns: u64) -> i64 {
        let dearest = |rates: &[&Option<Rate>]| {
            let reachable = |it: &Rate| {
                let tiers = it.tiers.iter().filter(|(start, _)| input > *start);
                tiers.map(|(_, rate)| *rate).chain([it.base]).max().unwrap_or(0)
            };
            rates.iter().filter_map(|it| it.as_ref()).map(reachable).max().unwrap_or(0)
        };
        let input_rate = dearest(&[
            &self.input,
            &self.cache_read,
            &self.cache_write,
            &self.cache_write_1h,
            &self.audio_input,
            &self.image_input,
            &self.video_input,
        ]);
        let output_rate = dearest(&[
            &self.output,
            &self.reasoning,
            &self.audio_output,
            &self.image_output,
            &self.video_output,
            &self.citation,
        ]);
        let times = |count: u64, rate: u64| u128::from(count) * u128::from(rate);
        let seconds = input / SOUND_BYTES_PER_S + 1;
        let pico = times(input, input_rate)
            + times(output, output_rate)
            + times(input, dearest(&[&self.character]))
            + times(PAGES_LIMIT, dearest(&[&self.page]))
            + times(seconds * 1_000, dearest(&[&self.audio_hour])).div_ceil(HOUR_MS)
            + times(1, dearest(&[&self.request]))
            + times(compute_ns, dearest(&[&self.second])).div_ceil(SECOND_NS);
        i64::try_from(pico.div_ceil(1_000)).unwrap_or(i64::MAX)
    }
}

/// Converts pico-USD to nano-USD, rounded half to even. `more`: whether the amount has a further
/// fraction of a pico-USD.
fn half_even(pico: u128, more: bool) -> i64 {
    let (nano, rest) = (pico / 1_000, pico % 1_000);
    let up = rest > 500 || (rest == 500 && (more || nano % 2 == 1));
    i64::try_from(nano + u128::from(up)).unwrap_or(i64::MAX)
}

/// Prices of a model: the standard prices by date, and the prices of other service tiers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelPrice {
    /// Rate cards with the first second of validity, ascending.
    dated: Vec<(u64, RateCard)>,
    tiers: Vec<(String, RateCard)>,
    /// Maximum tokens of prompt and answer together, if known.
    pub context_tokens: Option<u64>,
    /// Maximum tokens of an answer, if known.
    pub max_output_tokens: Option<u64>,
    /// Maximum duration of a request, in nanoseconds, if configured.
    pub max_compute_ns: Option<i64>,
}

impl ModelPrice {
    /// Returns the rate card for a call of a service tier; the standard card if the tier has none.
    #[must_use]
    pub fn card(&self, unix_s: u64, service_tier: Option<&str>) -> Option<&RateCard> {
        let tier = service_tier.and_then(|tier| self.tiers.iter().find(|(name, _)| name == tier));
        let dated = || self.dated.iter().rev().find(|(from, _)| *from <= unix_s);
        tier.map(|(_, card)| card).or_else(|| dated().map(|(_, card)| card))
    }

    /// Returns the maximum cost of a call. A request without a service tier may get any tier.
    #[must_use]
    pub fn worst_nano_usd(
        &self,
        unix_s: u64,
        service_tier: Option<&str>,
        input: u64,
        output: u64,
    ) -> Option<i64> {
        self.worst_with_time(unix_s, service_tier, input, output, 0)
    }

    /// Returns the maximum cost of a call with a duration.
    pub(crate) fn worst_with_time(
        &self,
        unix_s: u64,
        service_tier: Option<&str>,
        input: u64,
        output: u64,
        compute_ns: i64,
    ) -> Option<i64> {
        let worst =
            |it: &RateCard| it.worst_with_time(input, output, compute_ns.max(0).unsigned_abs());
        let standard = worst(self.card(unix_s, service_tier)?);
        let open = matches!(service_tier, None | Some("auto"));
        let others = self.tiers.iter().filter(|_| open);
        others.map(|(_, card)| worst(card)).chain([standard]).max()
    }
}

/// All prices: the configured prices, then the built-in table.
pub struct Prices {
    /// Configured price file; the lines take precedence over the built-in lines.
    file: Option<PriceTable>,
    overrides: Vec<(PriceConfig, ModelPrice)>,
    unknown_model: UnknownModel,
    hash: [u8; 32],
    /// Remembered look-ups. The values never change, so the lock cannot change an outcome.
    cache: Mutex<Vec<(String, Option<Arc<ModelPrice>>)>>,
}

impl fmt::Debug for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prices").field("overrides", &self.overrides).finish_non_exhaustive()
    }
}

/// A price, found or assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The price.
    pub price: Arc<ModelPrice>,
    /// Whether the price is assumed, because the model is unknown: the highest price of the model's
    /// family or of the provider.
    pub assumed: bool,
    /// Common beginning of the family's model names; empty if the provider's highest price was
    /// assumed.
    pub family: String,
    /// For an assumed price: the highest price of the provider, used for limits of a request.
    pub dearest: Option<Arc<ModelPrice>>,
}

impl Prices {
    /// Returns the built-in table alone.
    #[must_use]
    pub fn builtin() -> Self {
        Self {
            file: None,
            overrides: Vec::new(),
            unknown_model: UnknownModel::default(),
            hash: tables().finalize().into(),
            cache: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn compile(
        config: &PricesConfig,
        file: Option<&PriceTable>,
        faults: &mut Faults,
    ) -> Self {
        let mut hash = tables();
        if let Some(file) = file {
            hash.update("file\n");
            hash.update(&file.lines);
        }
        let mut overrides = Vec::new();
        for (index, price) in config.overrides.iter().enumerate() {
            canonical::hash(&mut hash, price);
            let place = Faults::entry("prices.overrides", index, &price.model);
            overrides.push((price.clone(), own_price(price, &place, faults)));
        }
        let hash = hash.finalize().into();
        let file = file.cloned();
        Self { file, overrides, unknown_model: config.unknown_model, hash, ..Self::builtin() }
    }

    /// Returns the price file in force, and the file's SHA-256.
    #[must_use]
    pub fn file(&self) -> Option<(&str, &str)> {
        self.file.as_ref().map(|it| (it.file.as_str(), it.sha256.as_str()))
    }

    /// Returns the SHA-256 of the tables and the overrides.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Returns the price of a provider's model. Under the conservative rule for unknown models, an
    /// unknown model gets the highest price of the model's family, or else of the provider;
    /// otherwise an unknown model has no price. A provider missing from the table has no price.
    #[must_use]
    pub fn find(&self, provider: Option<&str>, model: Option<&str>) -> Option<Found> {
        let exact = model.and_then(|model| self.known(provider, model));
        if let Some(price) = exact {
            return Some(Found { price, assumed: false, family: String::new(), dearest: None });
        }
        if self.unknown_model != UnknownModel::Conservative {
            return None;
        }
        let provider = table_name(provider?);
        let dearest = self.remember(&format!("{provider}\n"), || self.dearest(provider, ""))?;
        let family = model.map(|it| self.family(provider, it)).unwrap_or_default();
        let price = if family.is_empty() {
            dearest.clone()
        } else {
            self.remember(&format!("{provider}\n\n{family}"), || self.dearest(provider, &family))?
        };
        Some(Found { price, assumed: true, family, dearest: Some(dearest) })
    }

    /// Returns the price of the answering model, or else of the requested model. A configured price
    /// of either model comes first.
    #[must_use]
    pub fn answered(
        &self,
        provider: Option<&str>,
        answered: Option<&str>,
        asked: Option<&str>,
    ) -> Option<Arc<ModelPrice>> {
        let models = || [answered, asked].into_iter().flatten();
        let own = models().find_map(|model| self.own(provider, model));
        own.or_else(|| models().find_map(|model| self.known(provider, model)))
    }

    /// Returns whether a call without a price may draw on budgets in USD at no cost.
    pub(crate) fn free_without_price(&self, provider: Option<&str>) -> bool {
        self.unknown_model == UnknownModel::TokensOnly || Self::is_own_server(provider)
    }

    /// Returns whether a provider is a self-hosted server without a bill for tokens.
    pub(crate) fn is_own_server(provider: Option<&str>) -> bool {
        provider.is_some_and(|it| SELF_HOSTED.contains(&it))
    }

    /// Returns the rule for models without a price.
    #[must_use]
    pub fn unknown_model(&self) -> UnknownModel {
        self.unknown_model
    }

    fn known(&self, provider: Option<&str>, model: &str) -> Option<Arc<ModelPrice>> {
        if let Some(own) = self.own(provider, model) {
            return Some(own);
        }
        let provider = table_name(provider?);
        self.remember(&format!("{provider}\n{model}"), || {
            let spelled = aliases(provider, model);
            spelled.iter().find_map(|(provider, model)| self.look_up(provider, model))
        })
    }

    /// Returns the configured price of a model.
    fn own(&self, provider: Option<&str>, model: &str) -> Option<Arc<ModelPrice>> {
        let own = self.overrides.iter().find(|(it, _)| {
            it.provider.as_deref().is_none_or(|name| Some(name) == provider)
                && glob::matches(&it.model, model)
        });
        own.map(|(_, price)| Arc::new(price.clone()))
    }

    /// Returns the rate card of a model under the table's own names, for tests and tools.
    #[must_use]
    pub fn find_raw(&self, provider: &str, model: &str, unix_s: u64) -> Option<RateCard> {
        self.look_up(provider, model)?.card(unix_s, None).cloned()
    }

    /// Returns the tables in the order of look-up.
    fn tables(&self) -> impl Iterator<Item = &str> {
        self.file.iter().map(|it| it.lines.as_str()).chain([TABLE])
    }

    fn look_up(&self, provider: &str, model: &str) -> Option<ModelPrice> {
        self.tables().find_map(|table| parse_model(look_up(table, provider, model)?))
    }

    /// Returns the lines of a provider's models.
    fn lines<'s>(&'s self, provider: &'s str) -> impl Iterator<Item = &'s str> {
        self.tables().filter_map(move |it| section(it, provider)).flat_map(|(_, it)| it.lines())
    }

    /// Returns the family of a model: the longest beginning, in whole words, shared with the stem
    /// of a known model of the provider. Empty if no model shares a beginning.
    fn family(&self, provider: &str, model: &str) -> String {
        let folded = model.to_lowercase();
        let own = stem(&folded);
        let common = |other: &str| {
            let same = own.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
            let whole = same == own.len() && !own.is_empty();
            let shared = own.get(..same).unwrap_or_default();
            let words = shared.rfind(['-', '.', '_']).map_or(0, |at| at + 1);
            if whole { same } else { words }
        };
        let names = self.lines(provider).flat_map(names_of);
        let longest = names.map(|name| common(stem(name))).max().unwrap_or(0);
        own.get(..longest).unwrap_or_default().to_owned()
    }

    /// Returns the provider's model with the highest price, input and output together, among the
    /// models with names beginning with `family`.
    fn dearest(&self, provider: &str, family: &str) -> Option<ModelPrice> {
        let of_family = |line: &&str| {
            family.is_empty() || names_of(line).any(|name| limits::bare(name).starts_with(family))
        };
        let lines = self.lines(provider).filter(of_family);
        let priced = lines.filter_map(parse_model).filter_map(|it| {
            let cost = it.worst_nano_usd(u64::MAX >> 1, None, 1_000, 1_000)?;
            Some((cost, it))
        });
        priced.max_by_key(|(cost, _)| *cost).map(|(_, it)| it)
    }

    fn remember(
        &self,
        key: &str,
        compute: impl FnOnce() -> Option<ModelPrice>,
    ) -> Option<Arc<ModelPrice>> {
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, found)) = cache.iter().find(|(it, _)| it == key) {
            return found.clone();
        }
        if cache.len() >= CACHE_LIMIT {
            cache.clear();
        }
        let found = compute().map(Arc::new);
        cache.push((key.to_owned(), found.clone()));
        found
    }
}

/// Returns the maximum output tokens of a request without an output limit. The first known value
/// counts: the configured limit of the model, the documented limit of the model, the configured
/// limit for unknown models, the context window of the model, the documented limit of the family,
/// and last the highest documented limit of the provider.
pub(crate) fn output_limit(
    provider: Option<&str>,
    model: Option<&str>,
    price: Option<&Found>,
    unknown: Option<u64>,
) -> u64 {
    // An assumed price is about another model.
    let own = price.filter(|it| !it.assumed).map(|it| &it.price);
    own.and_then(|it| it.max_output_tokens)
        .or_else(|| limits::of_model(model?))
        .or(unknown)
        .or_else(|| own?.context_tokens)
        .or_else(|| limits::of_family(&price.filter(|it| !it.family.is_empty())?.family))
        .unwrap_or_else(|| limits::of_provider(provider.unwrap_or_default()))
}

fn own_price(config: &PriceConfig, place: &str, faults: &mut Faults) -> ModelPrice {
    let mut rate = |key: &str, usd: Option<f64>| {
        let pico = pico_per_token(usd?).map_err(|why| faults.add(place, key, &why)).ok()?;
        Some(Rate::flat(pico))
    };
    let mut card = RateCard {
        input: rate("input_per_million", config.input_per_million),
        output: rate("output_per_million", config.output_per_million),
        cache_read: rate("cache_read_per_million", config.cache_read_per_million),
        cache_write: rate("cache_write_per_million", config.cache_write_per_million),
        ..RateCard::default()
    };
    let second = config.per_second.map(pico_per_second).transpose();
    card.second =
        second.map_err(|why| faults.add(place, "per_second", &why)).ok().flatten().map(Rate::flat);
    if config.per_second.is_none() {
        for (key, price) in [
            ("input_per_million", config.input_per_million),
            ("output_per_million", config.output_per_million),
        ] {
            if price.is_none() {
                faults.add(place, key, "is missing, and no `per_second` is given either");
            }
        }
    }
    let longest = config.max_seconds.map(nanoseconds).transpose();
    let longest = longest.map_err(|why| faults.add(place, "max_seconds", &why));
    let max_output_tokens = config.max_output_tokens;
    ModelPrice {
        dated: vec![(0, card)],
        max_output_tokens,
        max_compute_ns: longest.ok().flatten(),
        ..ModelPrice::default()
    }
}

/// Returns the hash state after the built-in tables.
fn tables() -> Sha256 {
    Sha256::new_with_prefix(TABLE).chain_update(limits::TABLE)
}

fn table_name(provider: &str) -> &str {
    let renamed = PROVIDERS.iter().find(|(telemetry, _)| *telemetry == provider);
    renamed.map_or(provider, |(_, table)| table)
}

/// Returns the fallback providers for missing models, and the lines of the provider's models.
fn section<'t>(table: &'t str, provider: &str) -> Option<(&'t str, &'t str)> {
    let start = table.match_indices(provider).map(|(at, _)| at).find(|at| {
        let (before, after) = table.split_at(*at);
        (before == "@" || before.ends_with("\n@"))
            && after.strip_prefix(provider).is_some_and(|it| it.starts_with('\t'))
    })?;
    let (_, here) = table.split_at_checked(start)?;
    let section = here.split("\n@").next()?;
    let (head, models) = section.split_once('\n').unwrap_or((section, ""));
    Some((head.split_once('\t').map_or("", |(_, it)| it), models))
}

/// Returns the line of a model in a table.
fn look_up<'t>(table: &'t str, provider: &str, model: &str) -> Option<&'t str> {
    let (fallbacks, models) = section(table, provider)?;
    let folded = model.to_lowercase();
    let fallbacks = fallbacks.split(' ').filter_map(|it| section(table, it));
    let mut sections = std::iter::once(models).chain(fallbacks.map(|(_, models)| models));
    sections.find_map(|models| {
        models.lines().find(|line| {
            let rule = line.split('\t').next().unwrap_or_default();
            rule.split(' ').any(|all| all.split('&').all(|one| fits(one, model, &folded)))
        })
    })
}

/// Tests a clause of a rule: the first byte gives the kind of clause.
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
    Some(ModelPrice { dated, tiers, context_tokens, ..ModelPrice::default() })
}

/// Gateways passing requests on to other providers and billing the other providers' prices.
const PASSING_ON: [&str; 4] = ["cloudflare", "portkey", "pydantic_gateway", "vercel"];

/// Returns the spellings for looking up a model, each with the provider: the name unchanged, then
/// without the additions of deployments, routers and clouds.
fn aliases<'a>(provider: &'a str, model: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut names = vec![model];
    let mut also = |name: Option<&'a str>| {
        if let Some(name) = name.filter(|it| !it.is_empty() && !names.contains(it)) {
            names.push(name);
        }
    };
    // `openai/gpt-4o:nitro` has the price of any other variant; but `:free` variants cost nothing.
    let variant = model.rsplit_once(':').filter(|(_, it)| *it != "free");
    let plain = variant
        .filter(|(_, it)| it.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        .map(|(name, _)| name);
    also(plain);
    let plain = plain.unwrap_or(model);
    // Not for an application profile of Bedrock: the name tells nothing about the model.
    let tells = !plain.contains("application-inference-profile");
    let last = plain.rsplit('/').next().filter(|_| tells && provider != "openrouter");
    also(last);
    let last = last.unwrap_or(plain);
    also(last.split_once('@').map(|(name, _)| name));
    also(limits::without_place(last));
    also(last.strip_suffix("-maas"));
    if tells && provider != "openrouter" {
        also(Some(limits::bare(last)));
    }
    let mut all: Vec<(&str, &str)> = names.iter().map(|name| (provider, *name)).collect();
    if let Some((vendor, name)) = plain.split_once('/')
        && PASSING_ON.contains(&provider)
    {
        all.push((table_name(vendor), name));
    }
    all
}

/// Returns a model's bare name up to the first digit.
fn stem(model: &str) -> &str {
    let name = limits::bare(model);
    name.split(|it: char| it.is_ascii_digit()).next().unwrap_or_default()
}

/// Returns the model names in the rule of a line.
fn names_of(line: &str) -> impl Iterator<Item = &str> {
    let rule = line.split('\t').next().unwrap_or_default();
    let clauses = rule.split([' ', '&']);
    clauses.filter_map(|clause| clause.strip_prefix(['=', '^', '*']))
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

    /// Formats input and output price of a model in pico-USD for a token, and the family of a
    /// guess.
    fn known(provider: &str, model: &str) -> String {
        let found = Prices::builtin().find(Some(provider), Some(model)).unwrap();
        let card = found.price.card(TODAY, None).unwrap();
        let pico = |rate: &Option<Rate>| rate.as_ref().map_or(0, |it| it.base);
        let guess = if found.assumed { format!(" by `{}*`", found.family) } else { String::new() };
        format!("{provider} {model}: {} {}{guess}\n", pico(&card.input), pico(&card.output))
    }

    #[test]
    fn a_model_is_found_under_what_deployments_routers_and_clouds_call_it() {
        let same = |all: &[(&str, &str)]| {
            let prices = Prices::builtin();
            let found = all.iter().map(|(provider, model)| {
                let found = prices.find(Some(provider), Some(model)).unwrap();
                assert!(!found.assumed, "{provider} {model}");
                found.price.card(TODAY, None).unwrap().worst_nano_usd(1_000, 1_000)
            });
            let mut found: Vec<i64> = found.collect();
            found.dedup();
            assert_eq!(found.len(), 1, "{all:?}: {found:?}");
        };
        same(&[
            ("openai", "gpt-4o"),
            ("openai", "GPT-4o-2024-08-06"),
            ("openai", "openai/gpt-4o"),
            ("vercel", "openai/gpt-4o"),
        ]);
        same(&[
            ("aws.bedrock", "anthropic.claude-3-haiku-20240307-v1:0"),
            ("aws.bedrock", "anthropic.claude-3-haiku-20240307"),
            ("aws.bedrock", "eu.anthropic.claude-3-haiku-20240307-v1:0"),
            (
                "aws.bedrock",
                "arn:aws:bedrock:eu-west-3:123456789012:inference-profile/eu.anthropic.claude-3-haiku-20240307-v1:0",
            ),
        ]);
        same(&[
            ("openrouter", "anthropic/claude-3-haiku"),
            ("openrouter", "anthropic/claude-3-haiku:nitro"),
        ]);
    }

    #[test]
    fn a_newer_model_is_taken_for_the_dearest_of_its_family() {
        let all = [
            ("openai", "gpt-8-nova"),
            ("anthropic", "claude-haiku-9"),
            ("gcp.gemini", "gemini-7-flash"),
            ("mistral_ai", "codestral-3100"),
            ("openai", "zeta-1"),
        ];
        let said: String = all.iter().map(|(provider, model)| known(provider, model)).collect();
        expect_test::expect![[r"
            openai gpt-8-nova: 75000000 150000000 by `gpt-*`
            anthropic claude-haiku-9: 1000000 5000000 by `claude-haiku-*`
            gcp.gemini gemini-7-flash: 2000000 12000000 by `gemini-*`
            mistral_ai codestral-3100: 300000 900000 by `codestral*`
            openai zeta-1: 150000000 600000000 by `*`
        "]]
        .assert_eq(&said);
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
        // No longer listed, but the price table has the length of the context.
        assert_eq!(limit("openai", "gpt-4-32k", None), 32_000);
        assert_eq!(limit("openai", "no-such-model", Some(5)), 5);
        assert_eq!(limit("openai", "no-such-model", None), limits::of_provider("openai"));
        assert_eq!(limit("ollama", "my-own", None), limits::of_provider("nobody"));
    }

    #[test]
    fn halves_round_to_even() {
        assert_eq!([500, 1_500, 2_500, 2_501].map(|it| half_even(it, false)), [0, 2, 2, 3]);
        assert_eq!([499, 500, 2_500].map(|it| half_even(it, true)), [0, 1, 3]);
    }
}
