//! The price table against the `genai-prices` crate that it is compiled from.
//!
//! `UPDATE_PRICES=1 cargo test -p genops-governance --test price_table` writes the table anew; the
//! difference is then reviewed like any other change.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::indexing_slicing, reason = "JSON of a known shape")]
#![expect(clippy::disallowed_methods, reason = "the test compares files")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use genai_prices::{Calculator, ErrorKind, PriceRequest, UsageKey};
use genops_governance::prices::{Prices, RateCard, Tokens};
use serde_json::Value;

/// Rates of a card, in the order of the table's columns, as the source names them.
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

#[test]
fn the_table_is_what_the_crate_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/prices.tsv");
    let table = compile(&source());
    if std::env::var_os("UPDATE_PRICES").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let present = std::fs::read_to_string(&path).unwrap();
    assert!(present == table, "run again with UPDATE_PRICES=1 and review the difference");
}

/// The JSON inside the crate, found where Cargo unpacked it.
fn source() -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|it| it["name"] == "genai-prices").unwrap();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let data = std::fs::read(manifest.with_file_name("data/prices.json")).unwrap();
    serde_json::from_slice(&data).unwrap()
}

fn compile(source: &Value) -> String {
    let mut out = String::new();
    for provider in source.as_array().unwrap() {
        let models: Vec<String> =
            provider["models"].as_array().unwrap().iter().filter_map(model_line).collect();
        if models.is_empty() {
            continue;
        }
        let fallback = provider["fallback_model_providers"].as_array();
        let fallback: Vec<&str> =
            fallback.into_iter().flatten().map(|it| it.as_str().unwrap()).collect();
        writeln!(out, "@{}\t{}", provider["id"].as_str().unwrap(), fallback.join(" ")).unwrap();
        out.push_str(&models.concat());
    }
    out
}

/// A model, unless none of its prices is for tokens or requests.
fn model_line(model: &Value) -> Option<String> {
    let standard = dated(&model["prices"])?;
    let mut cards = vec![standard];
    for variant in model["price_variants"].as_array().into_iter().flatten() {
        let when = variant["when"].as_object().unwrap();
        let prices = variant["prices"].as_object().unwrap();
        if let (1, Some(tier)) = (when.len(), when.get("service_tier"))
            && !prices.is_empty()
        {
            // A variant replaces the prices it names; the others stay. Its start is left out: it
            // is dated on the day it was verified.
            let mut merged = latest(&model["prices"]).as_object().unwrap().clone();
            merged.extend(prices.clone());
            let card = card(&Value::Object(merged))?;
            cards.push(format!("{} {card}", tier.as_str().unwrap()));
        }
    }
    let context = model["context_window"].as_u64().unwrap_or(0);
    let rule = rule(&model["match"], " ");
    assert!(!rule.contains('\t'), "{rule}");
    Some(format!("{rule}\t{context}\t{}\n", cards.join("\t")))
}

fn latest(prices: &Value) -> &Value {
    prices.as_array().map_or(prices, |dated| &dated.last().unwrap()["prices"])
}

/// `FROM card;FROM card`, with the first second since 1970 at which each holds. Of prices by the
/// time of day, the dearest.
fn dated(prices: &Value) -> Option<String> {
    let Some(list) = prices.as_array() else { return Some(format!("0 {}", card(prices)?)) };
    let by_time = |it: &&Value| it["constraint"]["start_time"].is_string();
    if list.iter().any(|it| by_time(&it)) {
        let usual = list.iter().rfind(|it| !by_time(it));
        let candidates = list.iter().filter(by_time).chain(usual);
        let output = |it: &&Value| it["prices"]["output_mtok"].as_f64().unwrap();
        let dearest = candidates.max_by(|a, b| output(a).total_cmp(&output(b))).unwrap();
        return Some(format!("0 {}", card(&dearest["prices"])?));
    }
    let mut cards = Vec::new();
    for entry in list {
        let from = entry["constraint"]["start_date"].as_str().map_or(0, seconds);
        cards.push(format!("{from} {}", card(&entry["prices"])?));
    }
    Some(cards.join(";"))
}

fn seconds(date: &str) -> i64 {
    let moment = genops_governance::time::parse_moment(&format!("{date}T00:00:00Z")).unwrap();
    i64::try_from(moment / 1_000_000_000).unwrap()
}

/// Rates in pico-USD, separated by commas: `BASE` or `BASE>START:RATE`; empty where there is none.
fn card(prices: &Value) -> Option<String> {
    let known = |key: &str| prices[key].is_number() || prices[key].is_object();
    if !RATES.iter().any(|key| known(key)) && !known("audio_hours") {
        return None;
    }
    let of = |key: &str| match (key, &prices[key]) {
        ("input_audio_hours", Value::Null) => &prices["audio_hours"],
        (_, price) => price,
    };
    let rates: Vec<String> = RATES.iter().map(|key| rate(of(key), scale(key))).collect();
    Some(rates.join(",").trim_end_matches(',').to_owned())
}

/// From the source's unit to pico-USD for one.
fn scale(key: &str) -> f64 {
    match key {
        _ if key.ends_with("_kcount") || key.ends_with("_kpages") => 1e9,
        _ if key.ends_with("_hours") => 1e12,
        _ => 1e6,
    }
}

fn rate(price: &Value, scale: f64) -> String {
    let pico = |it: &Value| (it.as_f64().unwrap() * scale).round().to_string();
    match price {
        Value::Null => String::new(),
        Value::Number(_) => pico(price),
        tiered => {
            let mut text = pico(&tiered["base"]);
            for tier in tiered["tiers"].as_array().unwrap() {
                write!(text, ">{}:{}", tier["start"], pico(&tier["price"])).unwrap();
            }
            text
        }
    }
}

/// Alternatives separated by spaces, what must hold together by `&`.
fn rule(rule: &Value, separator: &str) -> String {
    let (kind, value) = rule.as_object().unwrap().iter().next().unwrap();
    let text = || value.as_str().unwrap();
    let folded = || text().to_lowercase();
    let joined = |separator| {
        let parts = value.as_array().unwrap().iter();
        parts.map(|it| self::rule(it, separator)).collect::<Vec<_>>().join(separator)
    };
    match kind.as_str() {
        "or" => {
            assert_eq!(separator, " ", "an alternative inside of a conjunction");
            joined(" ")
        }
        "and" => joined("&"),
        "equals" => format!("={}", folded()),
        "starts_with" => format!("^{}", folded()),
        "ends_with" => format!("${}", folded()),
        "contains" => format!("*{}", folded()),
        "regex" => match text().strip_prefix("^(?!.*").and_then(|it| it.strip_suffix(')')) {
            Some(unwanted) => format!("!{unwanted}"),
            None => format!("~{}", text()),
        },
        other => panic!("{other}"),
    }
}

/// Every model that the crate prices by tokens costs the same here, to a nano-USD: with a short
/// prompt, and with one that reaches the tiers of long ones.
#[test]
fn every_model_costs_what_the_crate_says() {
    let prices = Prices::builtin();
    let mut compared = 0;
    for provider in Calculator::bundled().providers() {
        for model in provider.models() {
            let Some(card) = prices.find_raw(provider.id(), model.id(), AT) else { continue };
            let same = |input| same(&card, provider.id(), model.id(), input);
            compared += u32::from(same(1_000) && same(900_000));
        }
    }
    assert!(compared > 1_800, "only {compared} compared");
}

/// 2026-11-18, in seconds since 1970.
const AT: u64 = 1_795_000_000;

/// Whether the crate knows a price for tokens; it must be ours then.
fn same(card: &RateCard, provider: &str, model: &str, input: u64) -> bool {
    let tokens = Tokens { input, cache_read: input / 4, output: 500, ..Tokens::default() };
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let usage = [
        (UsageKey::INPUT_TOKENS, input as f64),
        (UsageKey::CACHE_READ_TOKENS, (input / 4) as f64),
        (UsageKey::OUTPUT_TOKENS, 500.0),
    ]
    .into_iter()
    .collect();
    let theirs_at = |hour: u64| {
        let request = PriceRequest::new(model, &usage)
            .with_provider_id(provider)
            .with_timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(AT + hour * 3_600));
        Calculator::bundled().calculate(&request)
    };
    let theirs = match theirs_at(0) {
        Ok(it) => it.total_price,
        Err(error)
            if matches!(error.kind(), ErrorKind::InvalidUsage | ErrorKind::ModelNotFound) =>
        {
            return false;
        }
        Err(error) => panic!("{provider} {model}: {error}"),
    };
    let ours = genops_governance::money::to_usd(card.actual_nano_usd(&tokens));
    let close = |theirs: f64| (ours - theirs).abs() <= 1.5e-9;
    // Of prices by the time of day, the table has the dearest.
    let dearest = || (0..24).map(|hour| theirs_at(hour).unwrap().total_price).fold(0.0, f64::max);
    assert!(close(theirs) || close(dearest()), "{provider} {model} {input}: {ours} {theirs}");
    true
}
