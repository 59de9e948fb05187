//! Price table against the source, the `genai-prices` crate.
//!
//! `UPDATE_PRICES=1 cargo test -p genops-governance --test price_table` writes the table anew; the
//! difference is then reviewed like any other change.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::indexing_slicing, reason = "JSON of a known shape")]
#![expect(clippy::disallowed_methods, reason = "the test compares files")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use genai_prices::{Calculator, ErrorKind, PriceRequest, UsageKey};
use genops_governance::prices::{Prices, RateCard, Tokens};
use serde_json::Value;

#[test]
fn the_table_is_what_the_crate_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/prices.tsv");
    let table = genops_governance::prices::data::compile(&source()).unwrap();
    if std::env::var_os("UPDATE_PRICES").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let present = std::fs::read_to_string(&path).unwrap();
    assert!(present == table, "run again with UPDATE_PRICES=1 and review the difference");
}

/// Returns the JSON inside the crate, in Cargo's unpacked sources.
fn source() -> String {
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
    std::fs::read_to_string(manifest.with_file_name("data/prices.json")).unwrap()
}

/// Every model priced by tokens in the crate costs the same here, to a nano-USD: with a short
/// prompt, and with a prompt reaching the tiers of long prompts.
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

/// Compares the prices of a model. Returns false if the crate knows no price for tokens; panics if
/// the prices differ.
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
