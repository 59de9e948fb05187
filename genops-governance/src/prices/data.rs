//! Compiler from the price data of the `genai-prices` project (JSON) to the lines of the table.
//!
//! A price without an exact form in a line is taken at the dearest rate, and never left out. A file
//! in another form is refused as a whole.

use std::fmt::Write as _;

use serde_json::Value;

/// Maximum size of price data, in bytes.
pub const DATA_LIMIT: usize = 16 << 20;

/// Maximum number of models.
const MODELS_LIMIT: usize = 50_000;

/// Rates of a card, in the order of the table's columns, named as in the source.
const RATES: [&str; 21] = [
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_reasoning_mtok",
    "input_audio_mtok",
    "output_audio_mtok",
    "requests_kcount",
    "cache_audio_read_mtok",
    "input_image_mtok",
    "output_image_mtok",
    "cache_image_read_mtok",
    "input_video_mtok",
    "output_video_mtok",
    "output_citation_mtok",
    "web_searches_kcount",
    "storage_searches_kcount",
    "input_audio_hours",
    "input_mchars",
    "input_document_kpages",
];

/// Highest plausible rate, in pico-USD: a thousand times a million USD for a million tokens.
const RATE_LIMIT: f64 = 1e15;

/// Compiles price data.
///
/// # Errors
///
/// A sentence with provider and model, if the data has another form.
pub fn compile(json: &str) -> Result<String, String> {
    if json.len() > DATA_LIMIT {
        return Err(format!("is longer than {DATA_LIMIT} bytes"));
    }
    let source: Value =
        serde_json::from_str(json).map_err(|error| format!("is not JSON: {error}"))?;
    // Later forms have the list under a name.
    let providers = source.as_array().or_else(|| source.get("providers")?.as_array());
    let providers = providers.ok_or("is not a list of providers")?;
    let (mut out, mut count) = (String::new(), 0);
    for provider in providers {
        let id = word(provider.get("id")).ok_or("has a provider without a usable `id`")?;
        let models = provider.get("models").and_then(Value::as_array);
        let models = models.ok_or_else(|| format!("has no `models` of `{id}`"))?;
        let mut lines = String::new();
        for model in models {
            let named = || model.get("id").and_then(Value::as_str).unwrap_or_default();
            let line =
                model_line(model).map_err(|why| format!("says of `{id}/{}` {why}", named()))?;
            lines.push_str(&line.unwrap_or_default());
            count += 1;
        }
        if count > MODELS_LIMIT {
            return Err(format!("has more than {MODELS_LIMIT} models"));
        }
        if lines.is_empty() {
            continue;
        }
        let fallback = provider.get("fallback_model_providers").and_then(Value::as_array);
        let fallback: Vec<&str> =
            fallback.into_iter().flatten().filter_map(|it| word(Some(it))).collect();
        let _infallible = writeln!(out, "@{id}\t{}", fallback.join(" "));
        out.push_str(&lines);
    }
    if out.is_empty() { Err("has no model with a price".to_owned()) } else { Ok(out) }
}

/// Returns a name fit for a line.
fn word(value: Option<&Value>) -> Option<&str> {
    let text = value?.as_str()?;
    let fits = !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic() && it != b'@');
    fits.then_some(text)
}

/// Returns the line of a model; none for a model without a price of a card.
fn model_line(model: &Value) -> Result<Option<String>, String> {
    let prices = model.get("prices").ok_or("no `prices`")?;
    let Some(standard) = dated(prices)? else { return Ok(None) };
    let mut cards = vec![standard];
    let variants = model.get("price_variants").and_then(Value::as_array);
    for variant in variants.into_iter().flatten() {
        let when = variant.get("when").and_then(Value::as_object);
        let own = variant.get("prices").and_then(Value::as_object).filter(|it| !it.is_empty());
        let (Some(when), Some(own)) = (when, own) else { continue };
        let tier = when.get("service_tier").filter(|_| when.len() == 1);
        let Some(tier) = word(tier) else { continue };
        // A variant replaces the prices in the variant; the others stay. The variant's start is
        // left out, because the date is the day of verification.
        let mut merged = latest(prices).as_object().cloned().unwrap_or_default();
        merged.extend(own.clone());
        if let Some(card) = card(&Value::Object(merged))? {
            cards.push(format!("{tier} {card}"));
        }
    }
    let context = model.get("context_window").and_then(Value::as_u64).unwrap_or(0);
    let rule = rule(model.get("match").ok_or("no `match`")?, " ")?;
    if rule.chars().any(char::is_control) {
        return Err("a `match` with a control character".to_owned());
    }
    Ok(Some(format!("{rule}\t{context}\t{}\n", cards.join("\t"))))
}

fn latest(prices: &Value) -> &Value {
    let last = prices.as_array().and_then(|dated| dated.last()?.get("prices"));
    last.unwrap_or(prices)
}

/// Returns `FROM card;FROM card`; `FROM` is the first second of validity, since 1970. Of prices by
/// the time of day, the dearest is taken.
fn dated(prices: &Value) -> Result<Option<String>, String> {
    let Some(list) = prices.as_array() else {
        return Ok(card(prices)?.map(|card| format!("0 {card}")));
    };
    let of = |it: &Value, key: &str| it.get("constraint").and_then(|it| it.get(key)).cloned();
    let by_time = |it: &&Value| of(it, "start_time").is_some_and(|it| it.is_string());
    if list.iter().any(|it| by_time(&it)) {
        let usual = list.iter().rfind(|it| !by_time(it));
        let candidates = list.iter().filter(by_time).chain(usual).filter_map(|it| it.get("prices"));
        let output = |it: &&Value| it.get("output_mtok").and_then(Value::as_f64).unwrap_or(0.0);
        let dearest = candidates.max_by(|a, b| output(a).total_cmp(&output(b)));
        let card = dearest.map(card).transpose()?.flatten();
        return Ok(card.map(|card| format!("0 {card}")));
    }
    let mut cards = Vec::new();
    for entry in list {
        let date = of(entry, "start_date");
        let from = date.as_ref().and_then(Value::as_str).map_or(Ok(0), seconds)?;
        let prices = entry.get("prices").ok_or("a dated price without `prices`")?;
        if let Some(card) = card(prices)? {
            cards.push(format!("{from} {card}"));
        }
    }
    Ok((!cards.is_empty()).then(|| cards.join(";")))
}

fn seconds(date: &str) -> Result<u64, String> {
    let moment = crate::time::parse_moment(&format!("{date}T00:00:00Z"));
    moment.map(|it| it / 1_000_000_000).map_err(|_error| format!("`{date}` for a date"))
}

/// Returns the rates in pico-USD, separated by commas: `BASE` or `BASE>START:RATE`; empty if there
/// is no rate.
fn card(prices: &Value) -> Result<Option<String>, String> {
    let get = |key: &str| prices.get(key).filter(|it| it.is_number() || it.is_object());
    let of = |key: &str| match key {
        "input_audio_hours" => get(key).or_else(|| get("audio_hours")),
        _ => get(key),
    };
    let mut rates = Vec::new();
    for key in RATES {
        let rate = of(key).map(|price| rate(price, scale(key))).transpose()?;
        rates.push(rate.unwrap_or_default());
    }
    let card = rates.join(",").trim_end_matches(',').to_owned();
    Ok((!card.is_empty()).then_some(card))
}

/// Returns the factor from the source's unit to pico-USD per piece.
fn scale(key: &str) -> f64 {
    match key {
        _ if key.ends_with("_kcount") || key.ends_with("_kpages") => 1e9,
        _ if key.ends_with("_hours") => 1e12,
        _ => 1e6,
    }
}

fn rate(price: &Value, scale: f64) -> Result<String, String> {
    let pico = |it: Option<&Value>| {
        let usd = it.and_then(Value::as_f64).ok_or("a price that is no number")?;
        let pico = (usd * scale).round();
        if (0.0..=RATE_LIMIT).contains(&pico) {
            Ok(pico.to_string())
        } else {
            Err(format!("{usd}, which is no price"))
        }
    };
    if price.is_number() {
        return pico(Some(price));
    }
    let mut text = pico(price.get("base"))?;
    let tiers = price.get("tiers").and_then(Value::as_array);
    for tier in tiers.into_iter().flatten() {
        let start = tier.get("start").and_then(Value::as_u64).ok_or("a tier without `start`")?;
        let _infallible = write!(text, ">{start}:{}", pico(tier.get("price"))?);
    }
    Ok(text)
}

/// Returns alternatives separated by spaces; conditions of a conjunction are joined by `&`.
fn rule(rule: &Value, separator: &str) -> Result<String, String> {
    let one = rule.as_object().and_then(|it| it.iter().next());
    let (kind, value) = one.ok_or("a `match` that is no rule")?;
    let joined = |separator: &str| {
        let parts = value.as_array().ok_or("a `match` that is no list")?.iter();
        let parts: Result<Vec<String>, String> =
            parts.map(|it| self::rule(it, separator)).collect();
        Ok(parts?.join(separator))
    };
    match kind.as_str() {
        "or" if separator == " " => return joined(" "),
        "and" => return joined("&"),
        "or" => return Err("an alternative inside of a conjunction".to_owned()),
        _ => {}
    }
    let text = value.as_str().ok_or("a `match` that is no text")?;
    let folded = text.to_lowercase();
    let clause = match kind.as_str() {
        "equals" => format!("={folded}"),
        "starts_with" => format!("^{folded}"),
        "ends_with" => format!("${folded}"),
        "contains" => format!("*{folded}"),
        "regex" => match text.strip_prefix("^(?!.*").and_then(|it| it.strip_suffix(')')) {
            Some(unwanted) => format!("!{unwanted}"),
            None => format!("~{text}"),
        },
        other => return Err(format!("a `match` by `{other}`")),
    };
    if clause.contains([' ', '&']) {
        return Err(format!("`{text}` in a `match`, which can't be written down"));
    }
    Ok(clause)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(models: &str, expected: &Expect) {
        let json = format!(r#"[{{"id":"acme","models":[{models}]}}]"#);
        expected.assert_eq(&compile(&json).unwrap_or_else(|why| why));
    }

    #[test]
    fn a_model_is_a_line_with_its_rates_in_pico_usd() {
        check(
            r#"{"id":"a-1","match":{"or":[{"equals":"A-1"},{"and":[{"starts_with":"a-1-"},{"regex":"^(?!.*mini)"}]}]},
               "context_window":9000,"prices":{"input_mtok":0.5,"output_mtok":{"base":2,"tiers":[{"start":1000,"price":3}]}},
               "price_variants":[{"when":{"service_tier":"flex"},"prices":{"input_mtok":0.25}}]}"#,
            &expect![[r"
                @acme	
                =a-1 ^a-1-&!mini	9000	0 500000,2000000>1000:3000000	flex 250000,2000000>1000:3000000
            "]],
        );
        check(
            r#"{"id":"a-2","match":{"equals":"a-2"},"prices":[{"prices":{"input_mtok":1}},
               {"constraint":{"start_date":"2026-10-01"},"prices":{"input_mtok":2}}]}"#,
            &expect![[r"
                @acme	
                =a-2	0	0 1000000;1790812800 2000000
            "]],
        );
    }

    #[test]
    fn what_is_not_of_the_form_is_refused_as_a_whole() {
        let known = r#"{"id":"a","match":{"equals":"a"},"prices":{"input_mtok":1}}"#;
        check(
            &format!(
                r#"{known},{{"id":"b","match":{{"equals":"b"}},"prices":{{"input_mtok":-1}}}}"#
            ),
            &expect!["says of `acme/b` -1, which is no price"],
        );
        check(
            &format!(
                r#"{known},{{"id":"b","match":{{"sounds_like":"b"}},"prices":{{"input_mtok":1}}}}"#
            ),
            &expect!["says of `acme/b` a `match` by `sounds_like`"],
        );
        check("", &expect!["has no model with a price"]);
        expect!["is not a list of providers"].assert_eq(&compile("{}").unwrap_or_else(|why| why));
    }
}
