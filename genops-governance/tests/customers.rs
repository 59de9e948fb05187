//! Budgets, limits and policies by the customer, feature or session named in a request.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use expect_test::{Expect, expect};
use genops_governance::{
    AttributionConfig, Awu, BudgetConfig, Dimension, Per, PerConfig, PolicyText, PrincipalConfig,
    RateLimitConfig, Sections, Settings, Value,
};
use support::*;

/// A service naming the customer of each request.
fn desk(sources: &[&str]) -> Sections {
    let customer_id = sources.iter().map(|it| (*it).to_owned()).collect();
    let attribution = AttributionConfig { customer_id, ..AttributionConfig::default() };
    Sections { principals: vec![PrincipalConfig { attribution, ..bot() }], ..enforcing() }
}

fn per_customer(limit: f64) -> BudgetConfig {
    BudgetConfig { name: "shop".to_owned(), per: Some(Dimension::CustomerId), ..budget(limit) }
}

/// Returns a request of 93,750 nano-USD at most, with an additional header line.
fn with(header: &str) -> Vec<u8> {
    let request = String::from_utf8(chat("gpt-4o-mini", "hello")).unwrap();
    let head = if header.is_empty() { String::new() } else { format!("\r\n{header}") };
    let line = "\r\nContent-Type: application/json";
    request.replacen(line, &format!("{head}{line}"), 1).into_bytes()
}

/// Sends a request on a new connection; answers the request if the request may leave.
fn send(host: &mut Host, request: &[u8]) -> Awu {
    let conn = host.open(HELD);
    host.text.clear();
    host.egress(conn, request);
    if host.text.contains("release") {
        host.ingress(conn, &ok());
    }
    host.close(conn);
    host.awus.pop().unwrap()
}

fn text(awu: &Awu, name: &str) -> Option<String> {
    awu.attributes().into_iter().find(|(it, _)| *it == name).map(|(_, value)| match value {
        Value::Str(text) => text,
        other => format!("{other:?}"),
    })
}

fn result(awu: &Awu) -> String {
    let of = |name| text(awu, name).unwrap_or_else(|| "-".to_owned());
    format!("{} {}", of("genops.policy.result"), of("genops.policy.name"))
}

#[test]
fn one_process_and_three_customers_each_stopped_at_its_own_cap() {
    // Of 0.0001 USD, a call takes 0.000009 at the end, and 0.00009375 at first.
    let budgets = vec![per_customer(0.000_1)];
    let mut host = Host::new(&Sections { budgets, ..desk(&["header:x-shop"]) });
    let ann = with("X-Shop: ann");
    assert_eq!(result(&send(&mut host, &ann)), "ALLOWED -");
    assert_eq!(result(&send(&mut host, &ann)), "BLOCKED shop[ann]");
    for who in ["bob", "cem"] {
        let request = with(&format!("x-shop: {who}"));
        assert_eq!(result(&send(&mut host, &request)), "ALLOWED -");
        let refused = send(&mut host, &request);
        assert_eq!(result(&refused), format!("BLOCKED shop[{who}]"));
        assert_eq!(text(&refused, "genops.customer_id").as_deref(), Some(who));
    }
    // Requests without a customer count as another customer.
    assert_eq!(result(&send(&mut host, &with(""))), "ALLOWED -");
    assert_eq!(result(&send(&mut host, &with(""))), "BLOCKED shop[~unnamed]");
    let left: Vec<(String, i64)> =
        host.engine.ledger().accounts().map(|(key, it)| (key.name(), it.consumed())).collect();
    let nine = |name: &str| (name.to_owned(), 9_000);
    assert_eq!(left, ["shop[ann]", "shop[bob]", "shop[cem]", "shop[~unnamed]"].map(nine));
}

#[test]
fn a_forged_customer_never_exceeds_the_budget_of_the_principal() {
    let whole = BudgetConfig { principal: Some("refund-bot".to_owned()), ..budget(0.000_2) };
    let budgets = vec![per_customer(0.000_1), whole];
    let mut host = Host::new(&Sections { budgets, ..desk(&["header:x-shop"]) });
    let mut allowed = 0;
    for number in 0..60 {
        let awu = send(&mut host, &with(&format!("x-shop: made-up-{number}")));
        allowed += usize::from(awu.outcome.actual().is_some());
        if awu.outcome.actual().is_none() {
            assert_eq!(result(&awu), "BLOCKED daily");
        }
    }
    let whole = host.engine.ledger().accounts().find(|(key, _)| key.budget == "daily").unwrap().1;
    assert!(whole.consumed() <= 200_000 && whole.overrun == 0, "{whole:?}");
    assert_eq!(allowed, 12);
}

#[track_caller]
fn check(sources: &[&str], request: &[u8], expected: &Expect) {
    let mut host = Host::new(&desk(sources));
    let awu = send(&mut host, request);
    let names = ["genops.customer_id", "genops.attribution.source", "genops.attribution.fields"];
    let said = names.map(|name| text(&awu, name).unwrap_or_else(|| "-".to_owned()));
    expected.assert_eq(&said.join(" "));
}

#[test]
fn the_client_s_word_is_marked_as_such() {
    let body = |fields: &str| {
        request_to(
            "/v1/chat/completions",
            &format!(
                r#"{{"model":"gpt-4o-mini",{fields},"messages":[{{"role":"user","content":"hi"}}]}}"#
            ),
        )
    };
    let by_header = expect![[r#"s-1 client StrList(["customer_id=header:x-shop"])"#]];
    check(&["header:X-Shop"], &with("x-shop:  s-1"), &by_header);
    let by_baggage = expect![[r#"s 2 client StrList(["customer_id=baggage:shop"])"#]];
    check(&["baggage:shop"], &with("baggage: lane=3, shop=s%202;p=1"), &by_baggage);
    let by_user = expect![[r#"s-3 client StrList(["customer_id=body:user"])"#]];
    check(&["header:x-shop", "body:user"], &body(r#""user":"s-3""#), &by_user);
    let by_metadata = expect![[r#"77 client StrList(["customer_id=body:metadata.tenant_id"])"#]];
    check(&["body:metadata.tenant_id"], &body(r#""metadata":{"tenant_id":77}"#), &by_metadata);
    let by_thread = expect![[r#"conv_9 client StrList(["customer_id=conversation"])"#]];
    let thread = request_to(
        "/v1/responses",
        r#"{"model":"gpt-4o-mini","conversation":"conv_9","input":"hi"}"#,
    );
    check(&["conversation"], &thread, &by_thread);
    // Not asked for, nothing said, or no name.
    let nothing = expect!["- - -"];
    check(&[], &with("x-shop: s-1"), &nothing);
    check(&["header:x-shop"], &with("x-shop: unknown"), &nothing);
    check(&["header:x-shop"], &with(&format!("x-shop: {}", "s".repeat(129))), &nothing);
}

#[test]
fn a_text_in_such_a_field_is_still_one_for_content_rules() {
    let mut sections = policy(|it| it.denied_content = vec!["internal".to_owned()]);
    sections.principals = desk(&["body:metadata.customer_id"]).principals;
    for inside in [r#""internal""#, r#"{"a":["internal"]}"#] {
        let request = request_to(
            "/v1/chat/completions",
            &format!(
                r#"{{"model":"gpt-4o-mini","metadata":{{"customer_id":{inside}}},"messages":[]}}"#
            ),
        );
        let awu = send(&mut Host::new(&sections), &request);
        assert_eq!(result(&awu), "BLOCKED rules.denied_content");
    }
}

#[test]
fn a_rate_holds_for_each_feature_by_itself() {
    let mut sections = desk(&[]);
    let attribution = AttributionConfig {
        feature: vec!["header:x-lane".to_owned()],
        ..AttributionConfig::default()
    };
    sections.principals = vec![PrincipalConfig { attribution, ..bot() }];
    sections.rate_limits = vec![RateLimitConfig {
        name: "pace".to_owned(),
        requests: Some(1),
        per: PerConfig { time: Some(Per::Hour), each: Some(Dimension::Feature) },
        ..RateLimitConfig::default()
    }];
    let mut host = Host::new(&sections);
    let said = ["x-lane: a", "x-lane: b", "x-lane: a", "", ""]
        .map(|it| result(&send(&mut host, &with(it))));
    let expected = [
        "ALLOWED -",
        "ALLOWED -",
        "RATE_LIMITED pace[a]",
        "ALLOWED -",
        "RATE_LIMITED pace[~unnamed]",
    ];
    assert_eq!(said, expected);
}

fn cedar(text: &str) -> Sections {
    let (name, text) = ("own.cedar".to_owned(), text.to_owned());
    Sections { policy_files: vec![PolicyText { name, text }], ..desk(&["header:x-shop"]) }
}

#[test]
fn cedar_narrows_by_the_client_s_word_and_permits_nothing_by_it() {
    let forbid = r#"@id("closed") @reason_code("x_shop_closed")
        forbid (principal, action, resource) when { context.customer_id == "ann" };"#;
    let mut host = Host::new(&cedar(forbid));
    assert_eq!(result(&send(&mut host, &with("x-shop: ann"))), "BLOCKED closed");
    assert_eq!(result(&send(&mut host, &with("x-shop: bob"))), "ALLOWED -");
    let permit = r#"@id("open")
        permit (principal, action, resource) when { context.customer_id == "ann" };"#;
    let faults = Settings::compile(&cedar(permit)).unwrap_err().to_string();
    assert!(faults.contains("the word of the client, which grants nothing"), "{faults}");
}

#[test]
fn a_part_of_a_budget_can_be_raised_and_keeps_its_name_to_itself() {
    let budgets = vec![per_customer(0.000_1)];
    let mut host = Host::new(&Sections { budgets, ..desk(&["header:x-shop"]) });
    send(&mut host, &with("x-shop: ann"));
    assert!(host.engine.adjust(host.now, "shop", 1, "eve", "no part").is_err());
    host.engine.adjust(host.now, "shop[ann]", 100_000, "eve", "asked").unwrap();
    assert_eq!(result(&send(&mut host, &with("x-shop: ann"))), "ALLOWED -");
    let named = BudgetConfig { name: "shop[ann]".to_owned(), ..budget(1.0) };
    let sections = Sections { budgets: vec![per_customer(1.0), named], ..enforcing() };
    let faults = Settings::compile(&sections).unwrap_err().to_string();
    expect!["budgets[1] (shop[ann]): `name` is that of a part of `shop`"].assert_eq(&faults);
}

#[test]
fn a_place_that_is_none_is_a_fault_and_so_is_one_for_what_is_fixed() {
    let faults = |sections: &Sections| Settings::compile(sections).unwrap_err().to_string();
    let said = faults(&desk(&["x-shop"]));
    expect!["principals[0] (refund-bot): `attribution.customer_id` holds `x-shop` is none of `header:NAME`, `baggage:KEY`, `body:PATH` and `conversation`"].assert_eq(&said);
    let mut fixed = desk(&["header:x-shop"]);
    fixed.principals.iter_mut().for_each(|it| it.customer_id = Some("ann".to_owned()));
    expect!["principals[0] (refund-bot): `attribution.customer_id` names where requests say it, and the principal has one that is fixed"].assert_eq(&faults(&fixed));
}

#[test]
fn beyond_the_parts_that_are_told_apart_all_share_one() {
    let budgets = vec![per_customer(0.000_1)];
    let sections = Sections { budgets, ..desk(&["header:x-shop"]) };
    let mut ledger = genops_governance::Ledger::new();
    let mut log = Vec::new();
    let mut host = Host::new(&sections);
    send(&mut host, &with("x-shop: ann"));
    let (mut key, account) =
        host.engine.ledger().accounts().next().map(|(key, it)| (key.clone(), it.clone())).unwrap();
    for number in 0..10_000 {
        key.part = Some(format!("made-up-{number}"));
        let demand = genops_governance::Demand {
            key: key.clone(),
            end_s: account.end_s,
            period: account.period.clone(),
            unit: account.unit,
            limit: account.limit,
            amount: 0,
        };
        ledger.adjust(1, &demand, "eve", "made up", &mut log);
    }
    let mut host = Host::on(&sections, ledger);
    assert_eq!(result(&send(&mut host, &with("x-shop: late"))), "ALLOWED -");
    assert_eq!(result(&send(&mut host, &with("x-shop: later"))), "BLOCKED shop[~others]");
    assert_eq!(result(&send(&mut host, &with("x-shop: made-up-7"))), "ALLOWED -");
}
