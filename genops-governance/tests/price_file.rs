//! Prices from a file, with precedence over the compiled-in prices.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use genops_governance::prices::data;
use genops_governance::{PriceTable, PricesConfig, Sections, Settings, UnknownModel};
use support::*;

/// A model missing in the built-in table, and a model with another price in the table.
const DATA: &str = r#"[{"id":"openai","models":[
    {"id":"gpt-9-mega","match":{"starts_with":"gpt-9-mega"},"prices":{"input_mtok":2,"output_mtok":8}},
    {"id":"gpt-4o-mini","match":{"starts_with":"gpt-4o-mini"},"prices":{"input_mtok":1,"output_mtok":2}}]}]"#;

fn with_file() -> Sections {
    let lines = data::compile(DATA).unwrap();
    let table = PriceTable { file: "prices.json".to_owned(), sha256: "ab".repeat(32), lines };
    let prices = PricesConfig { unknown_model: UnknownModel::Block, ..PricesConfig::default() };
    Sections { prices, price_table: Some(table), ..enforcing() }
}

#[test]
fn a_file_comes_before_the_built_in_prices_and_hides_none_of_the_others() {
    let settings = Settings::compile(&with_file()).unwrap();
    let from = |provider: &str, model: &str| {
        let listed = settings.prices().list(Some(provider), model, START / 1_000_000_000);
        listed.first().map(|it| (it.from, it.rates.first().unwrap().1.clone()))
    };
    assert_eq!(from("openai", "gpt-9-mega-2027"), Some(("prices.file", "2".to_owned())));
    assert_eq!(from("openai", "gpt-4o-mini"), Some(("prices.file", "1".to_owned())));
    assert_eq!(from("openai", "gpt-4o"), Some(("built-in", "2.5".to_owned())));
    assert_eq!(from("anthropic", "claude-3-haiku"), Some(("built-in", "0.25".to_owned())));
    let builtin = Settings::compile(&enforcing()).unwrap();
    assert_ne!(settings.price_hash(), builtin.price_hash());
}

#[test]
fn a_model_of_the_file_is_no_unknown_one_and_costs_what_the_file_says() {
    let mut host = Host::new(&with_file());
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-9-mega-2027", "hello"));
    let body = r#"{"id":"r1","object":"chat.completion","model":"gpt-9-mega-2027","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100}}"#;
    host.ingress(conn, &answer(200, body)).close(conn);
    assert_eq!(host.awus.pop().unwrap().cost_nano_usd, Some(2_000_000 + 800_000));
    // The same without the file.
    let mut sections = with_file();
    sections.price_table = None;
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-9-mega-2027", "hello")).close(conn);
    let refused = host.awus.pop().unwrap().outcome;
    assert_eq!(refused.decision().reason().unwrap().as_str(), "x_price_unknown");
}
