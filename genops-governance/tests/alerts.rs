//! Budgets named in a unit's telemetry, and the receivers of alerts.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use genops_governance::{
    Awu, Beforehand, BudgetConfig, Contacted, Dimension, Enforcement, PolicyConfig, Sections, Unit,
    Value, time::Period,
};
use support::*;

fn flow(limit: f64) -> BudgetConfig {
    BudgetConfig {
        name: "flow".to_owned(),
        unit: Unit::Tokens,
        limit,
        period: Some(Period::Month),
        ..BudgetConfig::default()
    }
}

fn daily(limit: f64, threshold: u8) -> BudgetConfig {
    BudgetConfig { thresholds: vec![threshold], ..budget(limit) }
}

/// Returns the budget attributes of a single call of 93,750 nano-USD and 325 tokens at most.
fn told(sections: &Sections) -> String {
    let mut host = Host::new(sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    if host.text.contains("release") {
        host.ingress(conn, &ok());
    }
    host.close(conn);
    let awu = host.awus.pop().unwrap();
    let mut text = span(&awu);
    for event in awu.events() {
        let budgets = event.attributes.iter().filter(|(name, _)| is_told(name));
        writeln!(text, "{}", event.name).unwrap();
        budgets.for_each(|(name, value)| line(&mut text, name, value));
    }
    text
}

fn span(awu: &Awu) -> String {
    let mut text = String::from("span\n");
    let all = awu.attributes();
    all.iter().filter(|(name, _)| is_told(name)).for_each(|(name, it)| line(&mut text, name, it));
    text
}

fn is_told(name: &str) -> bool {
    let amounts = ["genops.accounting.reserved", "genops.accounting.unit"];
    name.starts_with("genops.budget.") && name != "genops.budget.period" || amounts.contains(&name)
}

fn line(text: &mut String, name: &str, value: &Value) {
    let name = name.strip_prefix("genops.").unwrap();
    writeln!(text, "  {name}: {value:?}").unwrap();
}

#[track_caller]
fn check(budgets: Vec<BudgetConfig>, expected: &Expect) {
    expected.assert_eq(&told(&Sections { budgets, ..enforcing() }));
}

#[test]
fn the_budget_of_an_event_has_its_unit_and_the_others_are_listed() {
    // Fewer tokens are left, but the tokens crossed no threshold.
    check(
        vec![daily(0.000_15, 60), flow(500.0)],
        &expect![[r#"
        span
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
          budget.unit: Str("USD")
          budget.allocated: Double(0.00015)
          budget.consumed: Double(0.0)
          budget.reserved: Double(9.375e-5)
          budget.remaining: Double(5.625e-5)
          budget.others: StrList(["flow"])
        genops.policy.evaluated
        genops.budget.reservation
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
          budget.remaining: Double(5.625e-5)
          budget.others: StrList(["flow"])
        genops.budget.alert
          budget.name: Str("daily")
          budget.unit: Str("USD")
          budget.allocated: Double(0.00015)
          budget.consumed: Double(0.0)
          budget.reserved: Double(9.375e-5)
          budget.remaining: Double(5.625e-5)
        genops.budget.reconciliation
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
        genops.cost.calculated
    "#]],
    );
    check(
        vec![flow(500.0), daily(1.0, 60)],
        &expect![[r#"
        span
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
          budget.unit: Str("USD")
          budget.allocated: Double(1.0)
          budget.consumed: Double(0.0)
          budget.reserved: Double(9.375e-5)
          budget.remaining: Double(0.99990625)
          budget.others: StrList(["flow"])
        genops.policy.evaluated
        genops.budget.reservation
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
          budget.remaining: Double(0.99990625)
          budget.others: StrList(["flow"])
        genops.budget.reconciliation
          accounting.reserved: Double(9.375e-5)
          accounting.unit: Str("USD")
          budget.name: Str("daily")
        genops.cost.calculated
    "#]],
    );
}

#[test]
fn tokens_alone_are_accounted_in_tokens() {
    check(
        vec![flow(500.0)],
        &expect![[r#"
        span
          accounting.reserved: Double(325.0)
          accounting.unit: Str("tokens")
          budget.name: Str("flow")
          budget.unit: Str("tokens")
          budget.allocated: Double(500.0)
          budget.consumed: Double(0.0)
          budget.reserved: Double(325.0)
          budget.remaining: Double(175.0)
        genops.policy.evaluated
        genops.budget.reservation
          accounting.reserved: Double(325.0)
          accounting.unit: Str("tokens")
          budget.name: Str("flow")
          budget.remaining: Double(175.0)
        genops.budget.reconciliation
          accounting.reserved: Double(325.0)
          accounting.unit: Str("tokens")
          budget.name: Str("flow")
        genops.cost.calculated
    "#]],
    );
}

#[test]
fn a_refusal_alerts_about_each_budget_that_was_short() {
    check(
        vec![daily(0.000_15, 1), flow(300.0)],
        &expect![[r#"
        span
        genops.policy.evaluated
        genops.budget.alert
          budget.name: Str("flow")
          budget.unit: Str("tokens")
          budget.allocated: Double(300.0)
          budget.consumed: Double(0.0)
          budget.reserved: Double(0.0)
          budget.remaining: Double(300.0)
    "#]],
    );
    check(
        vec![daily(0.000_09, 1), flow(300.0)],
        &expect![[r#"
        span
        genops.policy.evaluated
        genops.budget.alert
          budget.name: Str("daily")
          budget.unit: Str("USD")
          budget.allocated: Double(9e-5)
          budget.consumed: Double(0.0)
          budget.reserved: Double(0.0)
          budget.remaining: Double(9e-5)
        genops.budget.alert
          budget.name: Str("flow")
          budget.unit: Str("tokens")
          budget.allocated: Double(300.0)
          budget.consumed: Double(0.0)
          budget.reserved: Double(0.0)
          budget.remaining: Double(300.0)
    "#]],
    );
}

#[test]
fn a_refusal_alerts_about_the_part_that_was_short() {
    let per_customer = |limit| BudgetConfig { per: Some(Dimension::CustomerId), ..daily(limit, 1) };
    check(
        vec![per_customer(0.000_08), flow(500.0)],
        &expect![[r#"
        span
        genops.policy.evaluated
        genops.budget.alert
          budget.name: Str("daily[~unnamed]")
          budget.unit: Str("USD")
          budget.allocated: Double(8e-5)
          budget.consumed: Double(0.0)
          budget.reserved: Double(0.0)
          budget.remaining: Double(8e-5)
    "#]],
    );
}

/// The budget is exhausted, so nothing of the connection is evaluated; the alert is sent all the
/// same.
#[test]
fn a_connection_that_is_refused_since_nothing_is_left_alerts() {
    let budgets = vec![daily(0.000_093_75, 1), flow(1_000.0)];
    let mut host = Host::new(&Sections { budgets, ..enforcing() });
    // The request is never answered, and charged in whole.
    let first = host.open(HELD);
    host.egress(first, &chat("gpt-4o-mini", "hello")).close(first);
    let second = host.open(HELD);
    let contacted =
        Contacted { server: None, provider: "openai", beforehand: Beforehand::Nothing, times: 1 };
    host.engine.opaque(host.now, second, contacted);
    host.close(second);
    let awu = host.awus.pop().unwrap();
    let alerts: Vec<_> =
        awu.events().into_iter().filter(|it| it.name == "genops.budget.alert").collect();
    let mut text = String::from("alert\n");
    for (name, value) in alerts.iter().flat_map(|it| &it.attributes).filter(|it| is_told(it.0)) {
        line(&mut text, name, value);
    }
    expect![[r#"
        alert
          budget.name: Str("daily")
          budget.unit: Str("USD")
          budget.allocated: Double(9.375e-5)
          budget.consumed: Double(9.375e-5)
          budget.reserved: Double(0.0)
          budget.remaining: Double(0.0)
    "#]]
    .assert_eq(&text);
}

#[test]
fn what_only_observes_alerts_about_the_budget_that_was_short() {
    let observing = Sections {
        mode: genops_governance::Mode::Observe,
        budgets: vec![daily(0.000_15, 90), flow(300.0)],
        ..enforcing()
    };
    let said = told(&observing);
    let alerts: Vec<&str> = said.split("genops.budget.alert\n").skip(1).collect();
    assert_eq!(alerts.len(), 1, "{said}");
    assert!(alerts.iter().all(|it| it.contains("name: Str(\"flow\")")), "{said}");
}

#[test]
fn a_limit_on_one_request_alerts_about_no_budget() {
    let policy = PolicyConfig {
        name: "daily".to_owned(),
        max_cost: Some(0.000_01),
        enforcement: Enforcement::Warn,
        ..PolicyConfig::default()
    };
    let sections =
        Sections { policies: vec![policy], budgets: vec![budget(1.0), flow(500.0)], ..enforcing() };
    let said = told(&sections);
    assert!(!said.contains("genops.budget.alert"), "{said}");
}
