//! Own servers, paid by the duration of requests.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use genops_governance::{
    Awu, BudgetConfig, ConnId, ConnectionUpdate, Estimate, GrantBudgetConfig, GrantConfig,
    PriceConfig, PrincipalConfig, ProviderConfig, Sections, Unit, Value,
};
use support::*;

const SERVER: &str = "llm.internal";

/// An own server at 0.0006 USD a second, with requests of 30 seconds at most.
fn own(budgets: Vec<BudgetConfig>) -> Sections {
    let provider = ProviderConfig {
        host: SERVER.to_owned(),
        dialect: Some("vllm".to_owned()),
        ..ProviderConfig::default()
    };
    let price = PriceConfig {
        provider: Some("vllm".to_owned()),
        model: "own-*".to_owned(),
        per_second: Some(0.0006),
        max_seconds: Some(30),
        ..PriceConfig::default()
    };
    let mut sections = enforcing();
    sections.providers = vec![provider];
    sections.prices.overrides = vec![price];
    sections.budgets = budgets;
    sections
}

fn seconds(limit: f64) -> BudgetConfig {
    BudgetConfig { name: "gpu".to_owned(), unit: Unit::ComputeSeconds, ..budget(limit) }
}

fn host(sections: &Sections) -> Host {
    let mut host = Host::new(sections);
    host.server_name = SERVER;
    host
}

fn ask(model: &str, stream: bool) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":50,"stream":{stream},"messages":[{{"role":"user","content":"Which bay is it?"}}]}}"#
    );
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {SERVER}\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Sends a request, and the answer `ms` milliseconds later.
fn answered(host: &mut Host, conn: ConnId, ms: u64, answer: &[u8]) {
    host.egress(conn, &ask("own-8b", false));
    host.wait_ms(ms);
    host.ingress(conn, answer).close(conn);
}

/// Returns the accounting attributes of a unit.
fn accounts(awu: &Awu) -> String {
    let names = [
        "genops.policy.result",
        "genops.policy.reason_code",
        "genops.policy.reason",
        "genops.accounting.unit",
        "genops.accounting.reserved",
        "genops.accounting.actual",
        "genops.accounting.basis",
        "genops.accounting.incomplete",
        "genops.budget.name",
        "genops.budget.unit",
        "genops.budget.allocated",
        "genops.budget.remaining",
        "genops.budget.others",
        "genops.cost.total",
        "genops.usage.compute_seconds",
    ];
    let mut text = String::new();
    for (name, value) in awu.attributes() {
        if names.contains(&name) {
            let value = match value {
                Value::Str(text) => text,
                Value::Double(number) => number.to_string(),
                other => format!("{other:?}"),
            };
            writeln!(text, "{}: {value}", name.trim_start_matches("genops.")).unwrap();
        }
    }
    text
}

#[track_caller]
fn check(awu: &Awu, expected: &Expect) {
    expected.assert_eq(&accounts(awu));
}

#[test]
fn a_request_is_charged_the_time_from_its_first_byte_to_the_end_of_the_answer() {
    let mut host = host(&own(vec![seconds(60.0)]));
    let conn = host.open(HELD);
    answered(&mut host, conn, 1_250, &ok());
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 30
        accounting.unit: compute_seconds
        accounting.actual: 1.25
        accounting.basis: reported
        budget.name: gpu
        budget.unit: compute_seconds
        budget.allocated: 60
        budget.remaining: 30
        cost.total: 0.00075
        usage.compute_seconds: 1.25
    "#]],
    );
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.limit, account.spent), (60_000_000_000, 1_250_000_000));
    assert_eq!(host.awus.first().unwrap().cost_nano_usd, Some(750_000));
}

#[test]
fn a_budget_of_time_is_reserved_before_and_refuses_what_does_not_fit() {
    let mut host = host(&own(vec![seconds(60.0)]));
    let all: Vec<ConnId> = (0..3).map(|_| host.open(HELD)).collect();
    for conn in &all {
        host.egress(*conn, &ask("own-8b", false));
    }
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: BLOCKED
        policy.reason_code: BUDGET_EXCEEDED
        policy.reason: of 60 seconds there are 0 seconds left, and this request may need 30 seconds
    "#]],
    );
    host.wait_ms(2_000);
    for conn in all {
        host.ingress(conn, &ok()).close(conn);
    }
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.spent), (0, 4_000_000_000));
    assert_eq!(account.remaining(), 56_000_000_000);
}

#[test]
fn a_budget_in_usd_is_drawn_on_by_the_second() {
    let mut host = host(&own(vec![budget(0.02)]));
    let conn = host.open(HELD);
    answered(&mut host, conn, 4_500, &ok());
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 0.018
        accounting.unit: USD
        accounting.actual: 0.0027
        accounting.basis: reported
        budget.name: daily
        budget.unit: USD
        budget.allocated: 0.02
        budget.remaining: 0.002
        cost.total: 0.0027
        usage.compute_seconds: 4.5
    "#]],
    );
}

#[test]
fn without_a_price_time_is_counted_all_the_same() {
    let mut sections = own(vec![seconds(3_600.0)]);
    sections.prices.overrides.clear();
    let mut host = host(&sections);
    let conn = host.open(HELD);
    answered(&mut host, conn, 700, &ok());
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 600
        accounting.unit: compute_seconds
        accounting.actual: 0.7
        accounting.basis: reported
        budget.name: gpu
        budget.unit: compute_seconds
        budget.allocated: 3600
        budget.remaining: 3000
        usage.compute_seconds: 0.7
    "#]],
    );
    sections.prices.default_max_seconds = Some(90);
    let mut host = self::host(&sections);
    let conn = host.open(HELD);
    answered(&mut host, conn, 700, &ok());
    let reserved = host.awus.first().unwrap().outcome.reservation().unwrap().amount;
    assert_eq!(reserved, 90_000_000_000);
}

#[test]
fn whoever_leaves_is_charged_the_time_until_then_as_an_estimate() {
    let mut host = host(&own(vec![seconds(60.0)]));
    let conn = host.open(HELD);
    host.egress(conn, &ask("own-8b", true));
    host.wait_ms(1_000);
    let head =
        "HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    host.ingress(conn, head.as_bytes());
    host.wait_ms(1_000);
    host.close(conn);
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 30
        accounting.unit: compute_seconds
        accounting.actual: 2
        accounting.incomplete: Bool(true)
        accounting.basis: estimated
        budget.name: gpu
        budget.unit: compute_seconds
        budget.allocated: 60
        budget.remaining: 30
    "#]],
    );
    // Before any answer, and later than was taken for the longest.
    let conn = host.open(HELD);
    host.egress(conn, &ask("own-8b", false));
    host.wait_ms(31_000);
    host.close(conn);
    check(
        host.awus.get(1).unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 30
        accounting.unit: compute_seconds
        accounting.actual: 31
        accounting.incomplete: Bool(true)
        accounting.basis: estimated
        budget.name: gpu
        budget.unit: compute_seconds
        budget.allocated: 60
        budget.remaining: 28
    "#]],
    );
}

/// A measurement by the agent is no claim of the server.
#[test]
fn what_takes_longer_than_was_set_aside_is_charged_whole() {
    let mut host = host(&own(vec![seconds(60.0), budget(1.0)]));
    let conn = host.open(HELD);
    let remote = Some("10.20.30.40:8000".parse().unwrap());
    host.engine.learn(host.now, conn, ConnectionUpdate { remote, ..ConnectionUpdate::default() });
    answered(&mut host, conn, 45_000, &ok());
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 0.018
        accounting.unit: USD
        accounting.actual: 0.027
        accounting.basis: reported
        budget.name: daily
        budget.unit: USD
        budget.allocated: 1
        budget.remaining: 0.982
        budget.others: StrList(["gpu"])
        cost.total: 0.027
        usage.compute_seconds: 45
    "#]],
    );
    let amounts = host.engine.ledger().accounts().map(|(_, it)| (it.unit, it.spent, it.overrun));
    assert_eq!(
        amounts.collect::<Vec<_>>(),
        [
            (Unit::Usd, 18_000_000, 9_000_000),
            (Unit::ComputeSeconds, 30_000_000_000, 15_000_000_000)
        ]
    );
}

#[test]
fn a_refusal_takes_its_time_too() {
    let mut host = host(&own(vec![seconds(60.0)]));
    let conn = host.open(HELD);
    answered(&mut host, conn, 3_000, &answer(503, r#"{"error":{"type":"overloaded"}}"#));
    check(
        host.awus.first().unwrap(),
        &expect![[r#"
        policy.result: ALLOWED
        accounting.reserved: 30
        accounting.unit: compute_seconds
        accounting.actual: 3
        accounting.basis: reported
        budget.name: gpu
        budget.unit: compute_seconds
        budget.allocated: 60
        budget.remaining: 30
        cost.total: 0.0018
        usage.compute_seconds: 3
    "#]],
    );
}

/// The tokens of an answer without a waiting client are unknown; the time is known.
#[test]
fn each_budget_is_settled_in_its_own_unit() {
    let tokens = BudgetConfig { name: "words".to_owned(), unit: Unit::Tokens, ..budget(1_000.0) };
    let mut host = host(&own(vec![tokens, seconds(60.0)]));
    let conn = host.open(HELD);
    host.egress(conn, &ask("own-8b", false));
    host.wait_ms(5_000);
    host.close(conn);
    let amounts: Vec<(Unit, i64)> =
        host.engine.ledger().accounts().map(|(_, it)| (it.unit, it.spent)).collect();
    let asked = i64::try_from(ask("own-8b", false).len()).unwrap();
    assert_eq!(amounts, [(Unit::ComputeSeconds, 5_000_000_000), (Unit::Tokens, asked + 50)]);
}

#[test]
fn what_such_requests_usually_take_is_set_aside_where_that_is_configured() {
    let mut sections = own(vec![seconds(10_000.0)]);
    sections.prices.estimate = Estimate::P95;
    let mut host = host(&sections);
    for _ in 0..150 {
        let conn = host.open(HELD);
        answered(&mut host, conn, 2_000, &ok());
    }
    let reserved = |awu: &Awu| awu.outcome.reservation().unwrap().amount;
    assert_eq!(reserved(host.awus.first().unwrap()), 30_000_000_000);
    assert_eq!(reserved(host.awus.last().unwrap()), 2_000_000_000);
}

/// A call failing at once, or only counting tokens, is no evidence of the duration of an answer.
#[test]
fn what_was_refused_or_failed_says_nothing_of_what_others_take() {
    let mut sections = own(vec![seconds(10_000.0), budget(100.0)]);
    sections.prices.estimate = Estimate::P95;
    let mut host = host(&sections);
    for round in 0..150 {
        let conn = host.open(HELD);
        let (code, body) = match round % 3 {
            0 => (429, r#"{"error":{"type":"rate_limit_error"}}"#),
            1 => (503, r#"{"error":{"type":"overloaded"}}"#),
            _ => (200, r#"{"error":{"type":"odd_error","message":"no"}}"#),
        };
        answered(&mut host, conn, 5, &answer(code, body));
    }
    let reserved = |awu: &Awu| awu.outcome.reservation().unwrap().amount;
    assert_eq!(reserved(host.awus.last().unwrap()), 18_000_000);
    let amounts: Vec<i64> = host.engine.ledger().accounts().map(|(_, it)| it.consumed()).collect();
    // By the time alone, and each for the own time: 150 times 5 ms.
    assert_eq!(amounts, [450_000, 750_000_000]);
}

/// The usual duration bounds the reservation, and not the charge.
#[test]
fn what_is_left_before_its_end_is_charged_beyond_what_is_usual() {
    let mut sections = own(vec![seconds(10_000.0), budget(100.0)]);
    sections.prices.estimate = Estimate::P95;
    let mut host = host(&sections);
    for _ in 0..150 {
        let conn = host.open(HELD);
        answered(&mut host, conn, 2_000, &ok());
    }
    let used = |host: &Host| -> Vec<i64> {
        host.engine.ledger().accounts().map(|(_, it)| it.consumed()).collect()
    };
    let before = used(&host);
    let conn = host.open(HELD);
    host.egress(conn, &ask("own-8b", false));
    host.wait_ms(40_000);
    host.close(conn);
    let of_last: Vec<i64> = used(&host).iter().zip(before).map(|(now, it)| now - it).collect();
    assert_eq!(of_last, [24_000_000, 40_000_000_000]);
    let actual = host.awus.last().unwrap().outcome.actual().unwrap();
    assert_eq!((actual.amount, actual.basis.as_str()), (24_000_000, "estimated"));
}

/// The host compares each decision with the repeated decision.
#[test]
fn what_only_counts_takes_no_time_of_a_budget_also_when_it_is_decided_again() {
    let mut host = Host::new(&Sections { budgets: vec![seconds(5.0)], ..enforcing() });
    host.server_name = "api.anthropic.com";
    let conn = host.open(HELD);
    let body =
        r#"{"model":"claude-haiku-4-5","messages":[{"role":"user","content":"Which bay is it?"}]}"#;
    let head = "POST /v1/messages/count_tokens HTTP/1.1\r\nHost: api.anthropic.com\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    host.egress(conn, request.as_bytes());
    host.wait_ms(900);
    host.ingress(conn, &answer(200, r#"{"input_tokens":14}"#)).close(conn);
    let awu = host.awus.pop().unwrap();
    assert_eq!(awu.outcome.decision().result().as_str(), "ALLOWED");
    assert_eq!(awu.call.operation.as_deref(), Some("x_count_tokens"));
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.consumed()), (0, 0));
}

#[test]
fn a_grant_can_give_time() {
    let given =
        GrantBudgetConfig { limit: 45.0, unit: Unit::ComputeSeconds, period: None, timezone: None };
    let mut sections = own(Vec::new());
    sections.humans = vec![human("alice@example.com")];
    sections.grants = vec![GrantConfig {
        name: "gpu".to_owned(),
        delegated_by: Some("alice@example.com".to_owned()),
        budget: Some(given),
        ..GrantConfig::default()
    }];
    sections.principals = vec![PrincipalConfig { grant: Some("gpu".to_owned()), ..bot() }];
    let mut host = host(&sections);
    let conn = host.open(HELD);
    answered(&mut host, conn, 1_500, &ok());
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.unit, account.spent), (Unit::ComputeSeconds, 1_500_000_000));
    let reserved = host.awus.first().unwrap().outcome.reservation().unwrap();
    assert_eq!((reserved.unit, reserved.amount), (Unit::ComputeSeconds, 30_000_000_000));
}

/// A pico-USD a second, and halves of a nano-USD: nothing is lost on the way.
#[test]
fn a_price_by_the_second_is_exact_to_the_nano_usd() {
    let cost = |per_second: f64, ms: u64| {
        let mut sections = own(Vec::new());
        sections.prices.overrides.first_mut().unwrap().per_second = Some(per_second);
        let mut host = host(&sections);
        let conn = host.open(HELD);
        answered(&mut host, conn, ms, &ok());
        host.awus.first().unwrap().cost_nano_usd.unwrap()
    };
    assert_eq!(cost(0.000_000_001, 1_500), 2);
    assert_eq!(cost(0.000_000_001, 2_500), 2);
    assert_eq!(cost(0.000_000_001, 2_501), 3);
    assert_eq!(cost(0.000_000_000_001, 501_000), 1);
    assert_eq!(cost(1.5, 29_999), 44_998_500_000);
}
