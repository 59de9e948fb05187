//! A budget in USD beside a tighter budget in tokens: each event names the budget concerned, in the
//! budget's own unit.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::clients::{Stage, run};
use genops_tests::collector::Span;
use serde_json::{Value, json};

use crate::books::Audited;
use crate::support::can_run;

/// Seven tokens of output, at a cent each: a call costs 0.07 USD. Input costs nothing, and counts
/// as tokens.
const CONFIGURATION: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: shell, match: {exe: "*/curl"}, team: sales, project: quotes}
budgets:
  - {name: dollars, team: sales, unit: USD, limit: 1, period: total, thresholds: [50]}
  - {name: words, team: sales, unit: tokens, limit: 2000, period: total, thresholds: [99]}
prices:
  overrides:
    - {model: gpt-4o-mini, input_per_million: 0, output_per_million: 10000}
"#;
const PATIENCE: Duration = Duration::from_secs(10);
const ALERT: &str = "genops.budget.alert";
const RESERVATION: &str = "genops.budget.reservation";
/// Calls paid by a dollar, and calls made before a call too long for the tokens.
const PAID: usize = 14;
const BEFORE_LONG: usize = 4;
/// More than the remaining tokens, at a token a byte.
const LONG: usize = 3_000;

/// Makes a call, released or refused.
fn call(stage: &Stage, said: &str) -> anyhow::Result<()> {
    let body = json!({
        "model": "gpt-4o-mini", "max_tokens": 7, "messages": [{"role": "user", "content": said}],
    });
    run(&mut stage.curl("https://api.openai.com/v1/chat/completions", &body))?;
    Ok(())
}

/// Tokens counted by the provider for the first `count` requests.
fn tokens(stage: &Stage, count: usize) -> u64 {
    let requests = stage.provider.log.requests().into_iter().take(count);
    requests.map(|it| it.counted_input + it.made.output_tokens()).sum()
}

/// Fails unless the events called `name` are exactly `expected`: budget, unit, and remaining
/// amount.
#[track_caller]
fn assert_events(span: &Span, name: &str, expected: &[(&str, &str, f64)]) {
    let of_name = span.events.iter().filter(|(it, _)| it == name);
    let found: Vec<_> = of_name
        .map(|(_, event)| {
            let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
            let unit = ["genops.budget.unit", "genops.accounting.unit"].map(text).concat();
            let remaining = event.get("genops.budget.remaining").and_then(Value::as_f64);
            (text("genops.budget.name"), unit, remaining.unwrap_or(f64::NAN))
        })
        .collect();
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| {
            (found.0, found.1.as_str()) == (expected.0, expected.1)
                && (found.2 - expected.2).abs() < 1e-9
        });
    assert!(same, "{name}: {found:?} instead of {expected:?}: {span:#?}");
}

#[track_caller]
fn assert_refused(span: &Span, budget: &str, code: &str) {
    let said = |key: &str| span.attributes.get(key).and_then(Value::as_str);
    let found =
        ["genops.policy.result", "genops.policy.reason_code", "genops.policy.name"].map(said);
    let expected = ["BLOCKED", code, budget].map(Some);
    assert_eq!(found, expected, "{span:#?}");
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn events_and_alerts_name_the_budget_that_they_are_about() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let audited = Audited::start(CONFIGURATION)?;
    let stage = Stage::new()?;
    // Up to 0.98 USD; the half of the dollar is passed with the eighth.
    for number in 0..PAID {
        if number == BEFORE_LONG {
            // Tokens are short, and dollars are not.
            call(&stage, &"word ".repeat(LONG / 5))?;
        }
        call(&stage, "What is the capital of France?")?;
    }
    call(&stage, "What is the capital of France?")?;
    let arrived = stage.provider.log.request_count();
    ensure!(arrived == PAID, "{arrived} requests arrived");

    let mut spans = audited.collector.wait_for(PAID + 2, PATIENCE)?;
    let long = spans.remove(BEFORE_LONG);
    assert_refused(&long, "words", "BUDGET_RESERVATION_FAILED");
    let left = 2_000.0 - tokens(&stage, BEFORE_LONG) as f64;
    assert_events(&long, ALERT, &[("words", "tokens", left)]);
    let last = spans.pop().context("a span")?;
    assert_refused(&last, "dollars", "BUDGET_RESERVATION_FAILED");
    assert_events(&last, ALERT, &[("dollars", "USD", 0.02)]);
    for (number, span) in spans.iter().enumerate() {
        let left = 1.0 - 0.07 * (number + 1) as f64;
        let dollars = ("dollars", "USD", left);
        assert_events(span, RESERVATION, &[dollars]);
        assert_events(span, ALERT, if left > 0.5 { &[] } else { std::slice::from_ref(&dollars) });
        let others = span.attributes.get("genops.budget.others");
        ensure!(others == Some(&json!(["words"])), "{others:?}");
        let unit = span.attributes.get("genops.budget.unit");
        ensure!(unit == Some(&json!("USD")), "{unit:?}");
    }
    Ok(())
}
