//! Price list for people: known prices of a model, with provider and source.

use super::{
    ModelPrice, Prices, RateCard, TABLE, aliases, limits, look_up, parse_model, table_name,
};

/// Known price of a model at a provider, or the price assumed without a known price.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The provider.
    pub provider: String,
    /// `prices.overrides`, `prices.file` or `built-in`.
    pub from: &'static str,
    /// If no price is known: start of the names of the models considered for the dearest price;
    /// empty for the provider's dearest.
    pub assumed: Option<String>,
    /// Rates in USD as decimal texts, by purpose.
    pub rates: Vec<(String, String)>,
    /// Tokens of prompt and answer together.
    pub context_tokens: Option<u64>,
    /// Maximum number of tokens in an answer.
    pub max_output_tokens: Option<u64>,
    /// Maximum duration of a request, in seconds, if set in a configured price.
    pub max_seconds: Option<u64>,
    /// Service tiers with other prices.
    pub tiers: Vec<String>,
}

impl Prices {
    /// Returns the prices of a model at a provider, or at every provider with the model. Without a
    /// known price, returns the assumed prices.
    #[must_use]
    pub fn list(&self, provider: Option<&str>, model: &str, unix_s: u64) -> Vec<Listed> {
        let all: Vec<&str> = match provider {
            Some(one) => vec![one],
            None => self.providers(),
        };
        let known: Vec<Listed> =
            all.iter().filter_map(|it| self.exact(it, model, unix_s)).collect();
        if !known.is_empty() {
            return known;
        }
        let assumed = all.iter().filter_map(|it| {
            let found = self.find(Some(it), Some(model)).filter(|it| it.assumed)?;
            // Without a named provider, only providers with models of a similar name.
            let tells = provider.is_some() || !found.family.is_empty();
            let limit = limits::of_family(&found.family).filter(|_| !found.family.is_empty());
            let listed = listed(it, "built-in", &found.price, limit, unix_s)?;
            tells.then_some(Listed { assumed: Some(found.family), ..listed })
        });
        assumed.collect()
    }

    /// Returns the providers with a table or a configured price, without duplicates.
    fn providers(&self) -> Vec<&str> {
        let heads = self.tables().flat_map(str::lines).filter_map(|it| it.strip_prefix('@'));
        let named = self.overrides.iter().filter_map(|(it, _)| it.provider.as_deref());
        let heads = heads.filter_map(|it| it.split('\t').next());
        let mut all: Vec<&str> = heads.chain(named).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn exact(&self, provider: &str, model: &str, unix_s: u64) -> Option<Listed> {
        let limit = limits::of_model(model);
        if let Some(own) = self.own(Some(provider), model) {
            return listed(provider, "prices.overrides", &own, limit, unix_s);
        }
        let spelled = aliases(table_name(provider), model);
        let by = |table: &str| {
            let mut lines = spelled.iter().filter_map(|(by, name)| look_up(table, by, name));
            lines.find_map(parse_model)
        };
        let file = self.file.as_ref().and_then(|it| by(&it.lines)).map(|it| ("prices.file", it));
        let (from, price) = file.or_else(|| by(TABLE).map(|it| ("built-in", it)))?;
        listed(provider, from, &price, limit, unix_s)
    }
}

fn listed(
    provider: &str,
    from: &'static str,
    price: &ModelPrice,
    limit: Option<u64>,
    unix_s: u64,
) -> Option<Listed> {
    let card = price.card(unix_s, None)?;
    Some(Listed {
        provider: provider.to_owned(),
        from,
        assumed: None,
        rates: rates(card),
        context_tokens: price.context_tokens,
        max_output_tokens: price.max_output_tokens.or(limit),
        max_seconds: price.max_compute_ns.map(|it| it.unsigned_abs() / 1_000_000_000),
        tiers: price.tiers.iter().map(|(name, _)| name.clone()).collect(),
    })
}

fn rates(card: &RateCard) -> Vec<(String, String)> {
    const MILLION: usize = 6;
    const THOUSAND: usize = 9;
    const ONE: usize = 12;
    let all = [
        ("input_per_million", &card.input, MILLION),
        ("output_per_million", &card.output, MILLION),
        ("cache_read_per_million", &card.cache_read, MILLION),
        ("cache_write_per_million", &card.cache_write, MILLION),
        ("cache_write_hour_per_million", &card.cache_write_1h, MILLION),
        ("reasoning_per_million", &card.reasoning, MILLION),
        ("audio_input_per_million", &card.audio_input, MILLION),
        ("audio_output_per_million", &card.audio_output, MILLION),
        ("audio_cached_per_million", &card.audio_cached, MILLION),
        ("image_input_per_million", &card.image_input, MILLION),
        ("image_output_per_million", &card.image_output, MILLION),
        ("image_cached_per_million", &card.image_cached, MILLION),
        ("video_input_per_million", &card.video_input, MILLION),
        ("video_output_per_million", &card.video_output, MILLION),
        ("citation_per_million", &card.citation, MILLION),
        ("characters_per_million", &card.character, MILLION),
        ("requests_per_thousand", &card.request, THOUSAND),
        ("web_searches_per_thousand", &card.web_search, THOUSAND),
        ("file_searches_per_thousand", &card.file_search, THOUSAND),
        ("pages_per_thousand", &card.page, THOUSAND),
        ("audio_per_hour", &card.audio_hour, ONE),
        ("per_second", &card.second, ONE),
    ];
    let mut out = Vec::new();
    for (name, rate, decimals) in all {
        let Some(rate) = rate else { continue };
        out.push((name.to_owned(), decimal(rate.base, decimals)));
        for (start, tier) in &rate.tiers {
            out.push((format!("{name}_above_{start}_input_tokens"), decimal(*tier, decimals)));
        }
    }
    out
}

/// Formats a number with `decimals` digits after the point: 150000 with 6 decimals is 0.15.
fn decimal(number: u64, decimals: usize) -> String {
    let digits = format!("{number:0>width$}", width = decimals + 1);
    let (whole, fraction) = digits.split_at_checked(digits.len() - decimals).unwrap_or_default();
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_decimal_text() {
        let all = [(150_000, 6), (2_500_000, 6), (0, 6), (75, 6), (12_000_000_000, 9)];
        let texts = all.map(|(number, decimals)| decimal(number, decimals));
        assert_eq!(texts, ["0.15", "2.5", "0", "0.000075", "12"]);
    }

    #[test]
    fn a_model_is_listed_by_whoever_has_it_and_else_what_is_taken() {
        let prices = Prices::builtin();
        let known = prices.list(Some("openai"), "gpt-4o-mini", 1_795_305_600);
        let rate = |listed: &Listed, name: &str| {
            listed.rates.iter().find(|(it, _)| it == name).map(|(_, price)| price.clone())
        };
        let first = known.first().cloned().unwrap_or_default();
        assert_eq!((known.len(), first.from, &first.assumed), (1, "built-in", &None));
        assert_eq!(rate(&first, "input_per_million").as_deref(), Some("0.15"));
        assert!(prices.list(None, "gpt-4o-mini", 1_795_305_600).len() > 1);
        let newer = prices.list(Some("openai"), "gpt-9-mega", 1_795_305_600);
        assert_eq!(newer.first().and_then(|it| it.assumed.as_deref()), Some("gpt-"));
        assert_eq!(prices.list(Some("nobody"), "gpt-9-mega", 1_795_305_600), []);
    }
}
