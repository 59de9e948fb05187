//! Whole HTTP exchanges through the engine: bytes in, decisions, accounts and units out.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use genops_governance::{
    ANCESTRY_LIMIT, Approval, Awu, BudgetConfig, ConnId, ConnectionUpdate, Enforcement, Entry,
    Explanation, GrantConfig, HoldLevel, Ledger, MatchConfig, Mode, Output, PolicyText,
    PriceConfig, PricesConfig, PrincipalConfig, ProcessFacts, ProcessKey, RateLimitConfig,
    RecordKind, Scope, ScopeConfig, Sections, Settings, Signal, SlaConfig, Unit, UnknownModel,
    Unmapped, Value,
};
use genops_protocols::Direction;
use support::{BOT, HELD, Host, START, answer, bot, budget, chat, enforcing, human, ok, policy};

/// A single held request, and the result.
#[track_caller]
fn held(sections: &Sections, request: &[u8], expected: &Expect) {
    let mut host = Host::new(sections);
    let conn = host.open(HELD);
    host.egress(conn, request).check(expected);
}

#[test]
fn an_allowed_call_is_reserved_released_and_reconciled() {
    let mut host = Host::new(&Sections { budgets: vec![budget(1.0)], ..enforcing() });
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    host.check(&expect![[r#"
        record decision
        record reservation [daily 93750 None left Some(999906250)]
        release c1 to 225
    "#]]);
    host.wait_ms(40);
    host.ingress(conn, &ok()).check(&expect![[r#"
        record reconciliation [daily 93750 Some(9000) left Some(999991000)]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
    host.close(conn).check(&expect![[""]]);
}

#[test]
fn a_denied_model_never_leaves() {
    let sections = policy(|it| it.denied_models = vec!["*-pro".to_owned()]);
    held(
        &sections,
        &chat("gpt-5-pro", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: *-pro; it asks openai for gpt-5-pro
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
    held(
        &sections,
        &chat("GPT-5-Pro", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: *-pro; it asks openai for GPT-5-Pro
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

/// Only a refusal sends a signal; a warning never does.
#[test]
fn a_policy_may_ask_for_a_signal() {
    let sections = policy(|it| {
        it.denied_models = vec!["*-pro".to_owned()];
        it.signal = Some(Signal::Term);
    });
    let signals_of = |hold: HoldLevel, model: &str| {
        let mut host = Host::new(&sections);
        let conn = host.open(hold);
        host.egress(conn, &chat(model, "hello")).ingress(conn, &ok()).close(conn);
        host.awus.iter().map(Awu::signal).collect::<Vec<_>>()
    };
    assert_eq!(signals_of(HELD, "gpt-5-pro"), [Some(Signal::Term)]);
    assert_eq!(signals_of(HELD, "gpt-4o-mini"), [None]);
    assert_eq!(signals_of(HoldLevel::None, "gpt-5-pro"), [None]);
}

#[test]
fn a_model_that_is_not_on_the_list_is_refused() {
    let sections = policy(|it| it.allowed_models = Some(vec!["claude-*".to_owned()]));
    held(
        &sections,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.allowed_models
          policy.reason: only these models are allowed: claude-*; it asks openai for gpt-4o-mini
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn a_denied_provider_is_refused() {
    let sections = policy(|it| it.allowed_providers = Some(vec!["anthropic".to_owned()]));
    held(
        &sections,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.allowed_providers
          policy.reason: only these providers are allowed: anthropic; it asks openai for gpt-4o-mini
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn a_region_that_is_not_known_is_on_no_list() {
    let sections = policy(|it| it.allowed_regions = Some(vec!["eu-*".to_owned()]));
    held(
        &sections,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_REGION")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_REGION
          policy.name: rules.allowed_regions
          policy.reason: only these regions are allowed: eu-*; the region is not known
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn denied_content_is_refused() {
    let sections = policy(|it| it.denied_content = vec!["(?i)internal use only".to_owned()]);
    held(
        &sections,
        &chat("gpt-4o-mini", "for INTERNAL use only"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_CONTENT")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_CONTENT
          policy.name: rules.denied_content
          policy.reason: the text sent to the model matches denied content; it asks openai for gpt-4o-mini
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn a_request_that_may_cost_too_much_is_refused() {
    let sections = policy(|it| it.max_cost = Some(0.000_01));
    held(
        &sections,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("BUDGET_EXCEEDED")
          policy.result: BLOCKED
          policy.reason_code: BUDGET_EXCEEDED
          policy.name: rules.max_cost
          policy.reason: one request may cost at most 0.00001 USD; this one may cost up to 0.00009375 USD
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn a_policy_that_only_warns_lets_pass() {
    let sections = policy(|it| {
        it.denied_models = vec!["gpt-4o*".to_owned()];
        it.enforcement = Enforcement::Warn;
    });
    held(
        &sections,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        release c1 to 225
    "#]],
    );
}

#[test]
fn an_observed_call_is_a_warning_with_the_same_code_and_partial() {
    let mut sections = policy(|it| it.denied_models = vec!["gpt-4o*".to_owned()]);
    sections.mode = Mode::Observe;
    let mut host = Host::new(&sections);
    let conn = host.open(HoldLevel::None);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok());
    host.check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: WARNING
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o*; it asks openai for gpt-4o-mini
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: partial
          capture.level: full
          enforcement.mechanism: none
    "#]]);
}

#[test]
fn an_unmapped_process_is_a_warning() {
    let mut host = Host::new(&Sections::default());
    let conn = host.open(HoldLevel::None);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok());
    host.check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: WARNING
          policy.reason_code: x_unmapped_principal
          policy.reason: no configured principal matches the process
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: partial
          capture.level: full
          enforcement.mechanism: none
    "#]]);
    let attributes = host.awus.pop().unwrap().attributes();
    let said = |name: &str| attributes.iter().find(|(it, _)| *it == name).map(|(_, it)| it.clone());
    assert_eq!(said("genops.team"), Some(Value::Str("svc-refund".to_owned())));
    assert_eq!(said("genops.project"), Some(Value::Str("python3.11".to_owned())));
    assert_eq!(said("genops.environment"), Some(Value::Str("host".to_owned())));
}

#[test]
fn unmapped_and_nameless_processes_can_be_refused() {
    let strict = Sections { unmapped: Unmapped::Block, ..enforcing() };
    let mut host = Host::new(&strict);
    let stranger = ProcessKey { pid: 9, start_ns: 9 };
    host.engine.process(host.now, ProcessFacts::bare(stranger, "curl"));
    let conn = host.open_for(Some(stranger), HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    let conn = host.open_for(None, HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    host.check(&expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_unmapped_principal")
          policy.result: BLOCKED
          policy.reason_code: x_unmapped_principal
          policy.reason: no configured principal matches the process
          compliance: partial
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        deny c2 collateral 0
        awu error=Str("x_identity_unresolved")
          policy.result: BLOCKED
          policy.reason_code: x_identity_unresolved
          policy.reason: nothing is known of the process that asks
          compliance: partial
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn of_47_parallel_calls_a_budget_for_10_lets_10_pass() {
    let request = chat("gpt-4o-mini", "hello");
    let mut probe = Host::new(&enforcing());
    let conn = probe.open(HELD);
    probe.egress(conn, &request).ingress(conn, &ok());
    let reserved = probe.awus.pop().unwrap().outcome.reservation().unwrap().amount;
    let limit = genops_governance::money::to_usd(reserved * 10 + reserved / 2);
    let sections = Sections { budgets: vec![budget(limit)], ..enforcing() };
    let mut host = Host::new(&sections);
    let conns: Vec<ConnId> = (0..47).map(|_| host.open(HELD)).collect();
    for conn in &conns {
        host.egress(*conn, &request);
    }
    assert_eq!(host.text.matches("release c").count(), 10);
    assert_eq!(host.text.matches("deny c").count(), 37);
    assert_eq!(host.text.matches("reason_code: BUDGET_RESERVATION_FAILED").count(), 37);
    for conn in conns {
        host.ingress(conn, &ok()).close(conn);
    }
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert!(account.spent <= account.limit && account.reserved == 0 && account.overrun == 0);
    let actuals = host.awus.iter().filter_map(|it| it.outcome.actual());
    assert_eq!(actuals.map(|it| it.amount).sum::<i64>(), account.spent);
    assert_eq!(host.awus.len(), 47);
}

#[test]
fn a_used_up_budget_is_exceeded() {
    let mut host = Host::new(&Sections { budgets: vec![budget(0.0)], ..enforcing() });
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).check(&expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("BUDGET_EXCEEDED")
          policy.result: BLOCKED
          policy.reason_code: BUDGET_EXCEEDED
          policy.name: daily
          policy.reason: of 0 USD there are 0 USD left, and this request may need 0.00009375 USD
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_call_that_the_provider_refused_costs_nothing() {
    let mut host = Host::new(&Sections { budgets: vec![budget(1.0)], ..enforcing() });
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    host.text.clear();
    let error = r#"{"error":{"message":"no","type":"invalid_request_error","code":"bad"}}"#;
    host.ingress(conn, &answer(400, error)).check(&expect![[r#"
        record reconciliation [daily 93750 Some(0) left Some(1000000000)]
        awu error=Str("invalid_request_error")
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(0.0)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_connection_that_dies_after_release_keeps_what_was_reserved() {
    let mut host = Host::new(&Sections { budgets: vec![budget(1.0)], ..enforcing() });
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    host.text.clear();
    host.close(conn).check(&expect![[r#"
        record reconciliation [daily 93750 None left Some(999906250)]
        awu error=Str("connection_closed")
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9.375e-5)
          accounting.incomplete: Bool(true)
          compliance: full
          capture.level: partial
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn keep_alive_and_pipelining_decide_each_request_once() {
    let mut host = Host::new(&policy(|it| it.denied_models = vec!["*-pro".to_owned()]));
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "one")).ingress(conn, &ok());
    let both = [chat("gpt-4o-mini", "two"), chat("gpt-5-pro", "three")].concat();
    host.egress(conn, &both).close(conn);
    host.check(&expect![[r#"
        record decision
        record reservation [- 93450 None left None]
        release c1 to 223
        record reconciliation [- 93450 Some(9000) left None]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.345e-5)
          accounting.actual: Double(9e-6)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        record reservation [- 93450 None left None]
        record decision
        deny c1 collateral 1
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: *-pro; it asks openai for gpt-5-pro
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record release [- 93450 Some(0) left None]
        awu error=Str("connection_closed")
          policy.result: ALLOWED
          accounting.reserved: Double(9.345e-5)
          compliance: full
          capture.level: partial
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_request_in_two_pieces_is_held_until_its_end() {
    let mut host = Host::new(&enforcing());
    let conn = host.open(HELD);
    let request = chat("gpt-4o-mini", "hello");
    let (head, tail) = request.split_at(request.len() - 5);
    host.egress(conn, head).check(&expect![[""]]);
    host.egress(conn, tail).check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        release c1 to 225
    "#]]);
}

#[test]
fn a_large_request_leaves_up_to_its_last_piece_unless_it_is_refused_for_certain() {
    let sections = policy(|it| {
        it.denied_models = vec!["*-pro".to_owned()];
        it.denied_content = vec!["secret$".to_owned()];
    });
    for (model, end) in [("gpt-4o-mini", "secret"), ("gpt-5-pro", "fine")] {
        let text = format!("{}{end}", "x".repeat(100_000));
        let request = chat(model, &text);
        let (head, tail) = request.split_at(80_000);
        let mut host = Host::new(&sections);
        let conn = host.open(HELD);
        host.egress(conn, head);
        writeln!(host.text, "-- {model}").unwrap();
        host.egress(conn, tail).close(conn);
        let expected = match model {
            "gpt-4o-mini" => expect![[r#"
                release c1 to 80000
                -- gpt-4o-mini
                record decision
                deny c1 collateral 0
                awu error=Str("POLICY_DENY_CONTENT")
                  policy.result: BLOCKED
                  policy.reason_code: POLICY_DENY_CONTENT
                  policy.name: rules.denied_content
                  policy.reason: the text sent to the model matches denied content; it asks openai for gpt-4o-mini
                  compliance: full
                  capture.level: full
                  enforcement.mechanism: egress_hold
                  enforcement.bytes_before_decision: Int(80000)
            "#]],
            _ => expect![[r#"
                record decision
                deny c1 collateral 0
                awu error=Str("POLICY_DENY_MODEL")
                  policy.result: BLOCKED
                  policy.reason_code: POLICY_DENY_MODEL
                  policy.name: rules.denied_models
                  policy.reason: these models are denied: *-pro; it asks openai for gpt-5-pro
                  compliance: full
                  capture.level: partial
                  enforcement.mechanism: egress_hold
                -- gpt-5-pro
            "#]],
        };
        host.check(&expected);
    }
}

#[test]
fn management_and_other_traffic_is_released_and_no_unit() {
    let mut host = Host::new(&enforcing());
    let conn = host.open(HELD);
    host.egress(conn, b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n");
    host.ingress(conn, &answer(200, r#"{"object":"list","data":[]}"#)).close(conn);
    host.check(&expect![[r#"
        release c1 to 49
    "#]]);
}

#[test]
fn a_deadline_that_let_the_request_pass_makes_the_refusal_a_warning() {
    let mut host = Host::new(&policy(|it| it.denied_models = vec!["gpt-4o*".to_owned()]));
    let conn = host.open(HELD);
    let request = chat("gpt-4o-mini", "hello");
    host.engine.timed_out(host.now, conn, request.len() as u64, true);
    host.egress(conn, &request).ingress(conn, &ok());
    host.check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: WARNING
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o*; it asks openai for gpt-4o-mini
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: partial
          capture.level: full
          enforcement.mechanism: egress_hold
          enforcement.bytes_before_decision: Int(225)
          enforcement.timed_out: Bool(true)
    "#]]);
}

#[test]
fn a_deadline_that_stopped_the_request_blocks_it() {
    let mut host = Host::new(&enforcing());
    let conn = host.open(HELD);
    let request = chat("gpt-4o-mini", "hello");
    let (head, _) = request.split_at(request.len() - 5);
    host.egress(conn, head);
    host.engine.timed_out(host.now, conn, head.len() as u64, false);
    host.close(conn).check(&expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_decision_timeout")
          policy.result: BLOCKED
          policy.reason_code: x_decision_timeout
          policy.reason: no decision came before the deadline, and the configuration refuses then
          compliance: partial
          capture.level: partial
          enforcement.mechanism: egress_hold
          enforcement.timed_out: Bool(true)
    "#]]);
}

#[test]
fn rates_and_concurrency_limit() {
    let limit = RateLimitConfig {
        name: "two".to_owned(),
        principal: Some("refund-bot".to_owned()),
        requests: Some(2),
        concurrent: Some(1),
        ..RateLimitConfig::default()
    };
    let mut host = Host::new(&Sections { rate_limits: vec![limit], ..enforcing() });
    let (first, second) = (host.open(HELD), host.open(HELD));
    host.egress(first, &chat("gpt-4o-mini", "one"));
    host.egress(second, &chat("gpt-4o-mini", "two"));
    host.ingress(first, &ok()).egress(first, &chat("gpt-4o-mini", "three"));
    host.ingress(first, &ok()).egress(first, &chat("gpt-4o-mini", "four"));
    host.check(&expect![[r#"
        record decision
        record reservation [- 93450 None left None]
        release c1 to 223
        record decision
        deny c2 collateral 0
        awu error=Str("x_concurrency_exceeded")
          policy.result: RATE_LIMITED
          policy.reason_code: x_concurrency_exceeded
          policy.name: two
          policy.reason: the limit `two` is reached
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record reconciliation [- 93450 Some(9000) left None]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.345e-5)
          accounting.actual: Double(9e-6)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        record reservation [- 93750 None left None]
        release c1 to 448
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        deny c1 collateral 0
        awu error=Str("RATE_LIMITED")
          policy.result: RATE_LIMITED
          policy.reason_code: RATE_LIMITED
          policy.name: two
          policy.reason: the limit `two` is reached; again in 30000 ms
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_grant_narrows_and_expires() {
    let grant = |name: &str, parent: Option<&str>, models: &[&str]| GrantConfig {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        delegated_by: parent.is_none().then(|| "alice@example.com".to_owned()),
        expires: Some("2026-11-22T11:00:00Z".to_owned()),
        scope: ScopeConfig {
            models: Some(models.iter().map(|it| (*it).to_owned()).collect()),
            ..ScopeConfig::default()
        },
        ..GrantConfig::default()
    };
    let mut sections = enforcing();
    sections.humans = vec![human("alice@example.com")];
    sections.grants =
        vec![grant("child", Some("root"), &["gpt-4o-*"]), grant("root", None, &["gpt-4o*"])];
    sections.principals = vec![PrincipalConfig { grant: Some("child".to_owned()), ..bot() }];
    let mut host = Host::new(&sections);
    for model in ["gpt-4o-mini", "gpt-5"] {
        let conn = host.open(HELD);
        host.egress(conn, &chat(model, "hello"));
    }
    host.wait_ms(3_600_000);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        release c1 to 225
        record decision
        deny c2 collateral 0
        awu error=Str("x_delegation_exceeded")
          policy.result: BLOCKED
          policy.reason_code: x_delegation_exceeded
          policy.name: grant:child.models
          policy.reason: the grant covers only these models: gpt-4o-*; it asks openai for gpt-5
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        deny c3 collateral 0
        awu error=Str("x_authority_expired")
          policy.result: BLOCKED
          policy.reason_code: x_authority_expired
          policy.name: child
          policy.reason: the grant `child` does not hold: it has expired, or is not valid yet
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_sub_agent_is_bound_by_what_binds_its_parent() {
    let exe = Some("/opt/helper".to_owned());
    let helper = PrincipalConfig {
        name: "helper".to_owned(),
        matches: MatchConfig { exe: exe.clone(), ..MatchConfig::default() },
        subagent_of: Some("refund-bot".to_owned()),
        ..PrincipalConfig::default()
    };
    let mut sections = policy(|it| {
        it.principal = Some("refund-bot".to_owned());
        it.denied_models = vec!["*-pro".to_owned()];
    });
    sections.principals.push(helper);
    let mut host = Host::new(&sections);
    let child = ProcessKey { pid: 5000, start_ns: 8 };
    let facts = ProcessFacts { exe, parent: Some(BOT), ..ProcessFacts::bare(child, "helper") };
    host.engine.process(host.now, facts);
    let conn = host.open_for(Some(child), HELD);
    host.egress(conn, &chat("gpt-5-pro", "hello"));
    assert_eq!(host.awus.pop().unwrap().attribution.principal, "helper");
    host.check(&expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: *-pro; it asks openai for gpt-5-pro
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_child_is_what_its_parent_is() {
    let mut host = Host::new(&enforcing());
    let child = ProcessKey { pid: 5000, start_ns: 8 };
    let exe = Some("/usr/bin/curl".to_owned());
    let facts = ProcessFacts { exe, parent: Some(BOT), ..ProcessFacts::bare(child, "curl") };
    host.engine.process(host.now, facts);
    let conn = host.open_for(Some(child), HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok());
    assert_eq!(host.awus.pop().unwrap().attribution.principal, "refund-bot");
    assert_eq!(host.engine.principal_mode(child), Mode::Enforce);
}

/// A process without a matching principal in the configuration.
fn stranger(pid: u32, parent: ProcessKey) -> ProcessFacts {
    let key = ProcessKey { pid, start_ns: u64::from(pid) };
    let exe = Some("/usr/bin/curl".to_owned());
    ProcessFacts { exe, parent: Some(parent), ..ProcessFacts::bare(key, "curl") }
}

/// Returns the principal of the unit of a call by a process.
fn principal_of(host: &mut Host, process: ProcessKey) -> String {
    let conn = host.open_for(Some(process), HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok());
    host.awus.pop().unwrap().attribution.principal.clone()
}

#[test]
fn a_process_stays_what_it_is_when_it_becomes_another_program_or_its_parent_goes() {
    let mut host = Host::new(&enforcing());
    // The process becomes another program under the same number.
    let exe = Some("/usr/bin/curl".to_owned());
    host.engine.process(host.now, ProcessFacts { exe, ..ProcessFacts::bare(BOT, "curl") });
    assert_eq!(principal_of(&mut host, BOT), "refund-bot");
    // The grandchild outlives the child, and settings come into force meanwhile.
    let (child, grandchild) = (stranger(5000, BOT), stranger(5001, stranger(5000, BOT).key));
    host.engine.process(host.now, child.clone());
    host.engine.process(host.now, grandchild.clone());
    host.engine.process_exit(host.now, child.key);
    host.wait_ms(60_000);
    host.engine.tick(host.now);
    assert!(!host.engine.knows(child.key));
    host.engine.reload(host.now, Settings::compile(&enforcing()).unwrap());
    assert_eq!(principal_of(&mut host, grandchild.key), "refund-bot");
}

#[test]
fn a_process_is_what_it_was_started_by_whoever_its_parent_is_now() {
    let mut host = Host::new(&enforcing());
    let init = ProcessKey { pid: 1, start_ns: 0 };
    let orphan = stranger(5000, init);
    host.engine.process_of(host.now, orphan.clone(), "refund-bot");
    assert_eq!(host.engine.principal(orphan.key), Some("refund-bot"));
    assert_eq!(host.engine.principal_mode(orphan.key), Mode::Enforce);
    assert_eq!(principal_of(&mut host, orphan.key), "refund-bot");
    // Children of the process, and later reports of the process, change nothing; nor do other
    // settings.
    let child = stranger(5001, orphan.key);
    host.engine.process(host.now, child.clone());
    host.engine.process(host.now, orphan.clone());
    host.engine.reload(host.now, Settings::compile(&enforcing()).unwrap());
    for key in [orphan.key, child.key] {
        assert_eq!(principal_of(&mut host, key), "refund-bot");
    }
    // Another process with the same number, and a process started by a principal no longer
    // configured.
    let (reused, late) = (ProcessKey { start_ns: 9, ..orphan.key }, stranger(5002, init));
    host.engine.process(host.now, ProcessFacts { key: reused, ..orphan });
    host.engine.process_of(host.now, late.clone(), "nobody");
    for key in [reused, late.key] {
        assert_eq!(host.engine.principal(key), None);
    }
}

#[test]
fn a_forked_process_is_its_parent_in_all_but_its_number() {
    let mut host = Host::new(&enforcing());
    let (first, second) =
        (ProcessKey { pid: 5000, start_ns: 8 }, ProcessKey { pid: 5001, start_ns: 9 });
    let bot = host.engine.facts(BOT).cloned().unwrap();
    let middle = bot.forked(first);
    let last = middle.forked(second);
    assert_eq!((last.parent, &last.exe, &last.user), (Some(first), &bot.exe, &bot.user));
    let above: Vec<u32> = last.ancestry.iter().take(2).map(|it| it.pid).collect();
    assert_eq!(above, [first.pid, BOT.pid]);
    host.engine.process(host.now, middle);
    host.engine.process_exit(host.now, first);
    host.engine.process(host.now, last);
    assert_eq!(principal_of(&mut host, second), "refund-bot");
    let deep = (0..40).fold(bot, |it, pid| it.forked(ProcessKey { pid, start_ns: 1 }));
    assert_eq!(deep.ancestry.len(), ANCESTRY_LIMIT);
}

#[test]
fn what_another_unit_or_container_starts_inherits_nothing() {
    let mut host = Host::new(&enforcing());
    let unit = ProcessFacts { systemd_unit: Some("x.service".to_owned()), ..stranger(5000, BOT) };
    let container = ProcessFacts { container_id: Some("9bca".to_owned()), ..stranger(5001, BOT) };
    for facts in [unit, container] {
        let key = facts.key;
        host.engine.process(host.now, facts);
        assert_ne!(principal_of(&mut host, key), "refund-bot");
    }
}

#[test]
fn what_a_process_matches_is_found_anew_when_settings_change() {
    let mut host = Host::new(&enforcing());
    assert_eq!(principal_of(&mut host, BOT), "refund-bot");
    let others = Sections { principals: Vec::new(), ..enforcing() };
    host.engine.reload(host.now, Settings::compile(&others).unwrap());
    assert_eq!(principal_of(&mut host, BOT), "svc-refund/python3.11");
}

#[test]
fn grants_that_come_change_and_go_are_written_down() {
    let grant = |name: &str, revoked: bool, models: Option<&str>| GrantConfig {
        name: name.to_owned(),
        delegated_by: Some("alice@example.com".to_owned()),
        revoked,
        scope: ScopeConfig {
            models: models.map(|it| vec![it.to_owned()]),
            ..ScopeConfig::default()
        },
        ..GrantConfig::default()
    };
    let humans = vec![human("alice@example.com")];
    let with = |grants| Sections { grants, humans: humans.clone(), ..enforcing() };
    let mut host = Host::new(&with(vec![grant("a", false, None), grant("b", false, None)]));
    let mut told = |grants: Vec<GrantConfig>| {
        host.engine.reload(host.now, Settings::compile(&with(grants)).unwrap());
        let of_grant = |output: Output| match output {
            Output::Record(it) if matches!(it.kind, RecordKind::Grant | RecordKind::Revoke) => {
                Some(format!("{} {:?}", it.kind.as_str(), it.detail))
            }
            _ => None,
        };
        host.engine.outputs().filter_map(of_grant).collect::<Vec<_>>()
    };
    assert_eq!(
        told(vec![
            grant("a", false, None),
            grant("b", false, Some("gpt-*")),
            grant("c", true, None)
        ]),
        [r#"grant [("grant", "b")]"#]
    );
    assert_eq!(
        told(vec![grant("a", true, None)]),
        [r#"revoke [("grant", "a")]"#, r#"revoke [("grant", "b")]"#]
    );
    assert_eq!(told(vec![grant("a", false, None)]), [r#"grant [("grant", "a")]"#]);
}

fn asks_a_human() -> Host {
    let mut sections = policy(|it| it.approval_above = Some(0.0));
    let by = Some("alice@example.com".to_owned());
    sections.principals = vec![PrincipalConfig { delegated_by: by, ..bot() }];
    Host::new(&sections)
}

fn asks(host: &mut Host, text: &str) -> Awu {
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", text)).ingress(conn, &ok());
    host.awus.pop().unwrap()
}

#[test]
fn an_approval_of_a_request_is_for_no_other_one() {
    let mut host = asks_a_human();
    let request = asks(&mut host, "delete the draft").grounds.approval_request.unwrap();
    let approval = Approval {
        id: "a-1".to_owned(),
        request: request.clone(),
        scope: Scope::Request,
        approver: "bob@example.com".to_owned(),
        ceiling_nano_usd: 1_000_000_000,
        given_unix_ns: START,
        expires_unix_ns: START + 60_000_000_000,
    };
    let approve = |host: &mut Host, change: &dyn Fn(&mut Approval)| {
        let mut approval = approval.clone();
        change(&mut approval);
        host.engine.approve(host.now, approval, &[])
    };
    // The approval must cover the maximum cost, and a single approval is enough.
    let said = approve(&mut host, &|it| it.ceiling_nano_usd = 1).unwrap_err();
    assert!(
        said.ends_with("may cost up to 0.0000954 USD, more than the approval covers"),
        "{said}"
    );
    approve(&mut host, &|_| {}).unwrap();
    let said = approve(&mut host, &|it| it.id = "a-2".to_owned()).unwrap_err();
    assert_eq!(said, "`a-1` approves it already, and was not used yet");

    let other = asks(&mut host, "delete the report");
    assert_ne!(other.grounds.approval_request.as_ref(), Some(&request));
    assert_eq!(asks(&mut host, "delete the draft").grounds.approval.as_deref(), Some("a-1"));
    assert_eq!(asks(&mut host, "delete the draft").grounds.approval_request, Some(request));

    // An approval of the kind covers any text, if somebody approved exactly the kind.
    approve(&mut host, &|it| it.scope = Scope::Kind).unwrap();
    assert_eq!(asks(&mut host, "delete the report").grounds.approval.as_deref(), Some("a-1"));
    assert!(asks(&mut host, "delete the report").grounds.approval_request.is_some());
}

#[test]
fn what_the_library_did_not_take_costs_nothing() {
    let mut sections = enforcing();
    sections.principals = vec![bot()];
    sections.budgets =
        vec![BudgetConfig { name: "all".to_owned(), limit: 1.0, ..BudgetConfig::default() }];
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    assert_eq!(host.engine.running_from(conn, 1), None);
    assert_eq!(host.engine.running_from(conn, 0), Some(0));
    host.engine.not_taken(conn, 0);
    host.close(conn);
    let awu = host.awus.pop().unwrap();
    assert!(awu.outcome.actual().is_none(), "{awu:?}");
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.consumed()), (0, 0));
}

#[test]
fn an_approval_is_used_once_and_not_by_the_one_who_asks() {
    let mut host = asks_a_human();
    let ask = |host: &mut Host| asks(host, "hello");
    let request = ask(&mut host).grounds.approval_request.unwrap();
    let approval = |approver: &str, minutes: u64| Approval {
        id: "a-1".to_owned(),
        request: request.clone(),
        scope: Scope::Request,
        approver: approver.to_owned(),
        ceiling_nano_usd: 1_000_000_000,
        given_unix_ns: START,
        expires_unix_ns: START + minutes * 60_000_000_000,
    };
    for wrong in [approval("Alice@Example.com ", 5), approval("bob@example.com", 16)] {
        writeln!(host.text, "{}", host.engine.approve(host.now, wrong, &[]).unwrap_err()).unwrap();
    }
    host.engine.approve(host.now, approval("bob@example.com", 5), &[]).unwrap();
    let used = ask(&mut host).grounds.approval;
    assert_eq!(used.as_deref(), Some("a-1"));
    assert!(ask(&mut host).grounds.approval_request.is_some());
    host.check(&expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_approval_required")
          policy.result: BLOCKED
          policy.reason_code: x_approval_required
          policy.name: rules.approval_above
          policy.reason: a human must approve a request that may cost more than 0 USD
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        `Alice@Example.com ` is part of the chain that asked; somebody else must approve
        the approval `a-1` is valid for longer than 15 minutes
        record approval
        record decision
        record reservation [- 93750 None left None]
        release c2 to 225
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        deny c3 collateral 0
        awu error=Str("x_approval_required")
          policy.result: BLOCKED
          policy.reason_code: x_approval_required
          policy.name: rules.approval_above
          policy.reason: a human must approve a request that may cost more than 0 USD
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn cedar_files_decide_and_an_evaluation_error_blocks() {
    let cedar = |text: &str| {
        let (name, text) = ("policies/test.cedar".to_owned(), text.to_owned());
        Sections { policy_files: vec![PolicyText { name, text }], ..enforcing() }
    };
    let overflow = r#"@id("overflow") @reason_code("x_too_big")
        forbid (principal, action, resource)
        when { context.est_tokens * 9223372036854775807 > 5 };"#;
    held(
        &cedar(overflow),
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_policy_error")
          policy.result: BLOCKED
          policy.reason_code: x_policy_error
          policy.name: overflow
          policy.reason: the policy can't be evaluated: integer overflow while attempting to multiply the values `325` and `9223372036854775807`
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
    let several = r#"
        @id("b") @reason_code("POLICY_DENY_REGION") @reason("restricted data stays in the EU")
        forbid (principal in GenOps::Team::"payments", action == GenOps::Action::"invoke", resource)
        unless { ["eu-west-1"].contains(context.region) };
        @id("a") @reason_code("POLICY_DENY_MODEL")
        forbid (principal, action, resource in GenOps::Provider::"openai");
        @id("c") @reason_code("RATE_LIMITED") @genops_result("RATE_LIMITED") @priority("9")
        forbid (principal, action, resource);"#;
    held(
        &cedar(several),
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: a
          policy.reason: a policy forbids it; it asks openai for gpt-4o-mini
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
    let mut denying = cedar(
        r#"@id("p") permit (principal, action, resource) when { context.model like "claude*" };"#,
    );
    denying.default_deny = true;
    held(
        &denying,
        &chat("gpt-4o-mini", "hello"),
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_no_authority")
          policy.result: BLOCKED
          policy.reason_code: x_no_authority
          policy.reason: no policy permits it
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
}

#[test]
fn an_unknown_model_follows_the_rule() {
    let prices = |unknown_model| Sections {
        prices: PricesConfig { unknown_model, ..PricesConfig::default() },
        ..enforcing()
    };
    let request = chat("no-such-model", "hello");
    held(
        &prices(UnknownModel::Conservative),
        &request,
        &expect![[r#"
        record decision
        record reservation [- 94050000 None left None]
        release c1 to 227
    "#]],
    );
    held(
        &prices(UnknownModel::Block),
        &request,
        &expect![[r#"
        record decision
        deny c1 collateral 0
        awu error=Str("x_price_unknown")
          policy.result: BLOCKED
          policy.reason_code: x_price_unknown
          policy.reason: no price is known for the model, and the configuration refuses then
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]],
    );
    held(
        &prices(UnknownModel::TokensOnly),
        &request,
        &expect![[r#"
        record decision
        record reservation [- 327 None left None]
        release c1 to 227
    "#]],
    );
}

#[test]
fn a_missed_target_warns_later_calls() {
    let target =
        SlaConfig { tier: "gold".to_owned(), latency_target_ms: 100, ..SlaConfig::default() };
    let mut host = Host::new(&Sections { sla: vec![target], ..enforcing() });
    for ms in [200, 50] {
        let conn = host.open(HELD);
        host.egress(conn, &chat("gpt-4o-mini", "hello"));
        host.wait_ms(ms);
        host.ingress(conn, &ok());
    }
    host.check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        release c1 to 225
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          sla.met: Bool(false)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        record reservation [- 93750 None left None]
        release c2 to 225
        record reconciliation [- 93750 Some(9000) left None]
        awu
          policy.result: WARNING
          policy.reason_code: SLA_LATENCY_VIOLATION
          policy.name: gold
          policy.reason: of the last calls, too many took over 100 ms
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(9e-6)
          sla.met: Bool(true)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_failed_provider_makes_the_retry_a_warning() {
    let mut host = Host::new(&enforcing());
    for _ in 0..2 {
        let conn = host.open(HELD);
        host.egress(conn, &chat("gpt-4o-mini", "hello"));
        host.ingress(conn, &answer(503, r#"{"error":{"type":"server_error"}}"#));
    }
    host.check(&expect![[r#"
        record decision
        record reservation [- 93750 None left None]
        release c1 to 225
        record reconciliation [- 93750 Some(0) left None]
        awu error=Str("server_error")
          policy.result: ALLOWED
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(0.0)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        record reservation [- 93750 None left None]
        release c2 to 225
        record reconciliation [- 93750 Some(0) left None]
        awu error=Str("server_error")
          policy.result: WARNING
          policy.reason_code: PROVIDER_ERROR_UPSTREAM
          policy.reason: the provider failed less than a minute ago
          accounting.reserved: Double(9.375e-5)
          accounting.actual: Double(0.0)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_restart_charges_what_was_under_way() {
    let sections = Sections { budgets: vec![budget(1.0)], ..enforcing() };
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    let mut file = Ledger::new().snapshot();
    file.extend(host.ledger.iter().flat_map(Entry::encode));
    let restored = Ledger::restore(&file).unwrap();
    let again = Host::on(&sections, restored.ledger);
    let (_, account) = again.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, again.engine.ledger().open().count()), (0, 0));
    assert!(account.spent > 0);
}

/// After a restart and after a reload, 9,000 nano-USD are not counted as 9,000 tokens.
#[test]
fn a_budget_that_counts_in_another_unit_begins_anew_and_evidence_says_so() {
    let usd = Sections { budgets: vec![budget(1.0)], ..enforcing() };
    let tokens = BudgetConfig { unit: Unit::Tokens, ..budget(5_000.0) };
    let tokens = Sections { budgets: vec![tokens], ..enforcing() };
    let compiled = |sections: &Sections| Settings::compile(sections).unwrap();
    let said = |engine: &mut genops_governance::Engine| {
        let loaded = |output: Output| match output {
            Output::Record(it) if it.kind == RecordKind::PolicyLoaded => Some(it.detail),
            _ => None,
        };
        let detail = engine.outputs().filter_map(loaded).last().unwrap();
        detail.into_iter().find(|(key, _)| *key == "units").map(|(_, units)| units)
    };
    let charged = |engine: &genops_governance::Engine| -> Vec<(Unit, i64, bool)> {
        let accounts = engine.ledger().accounts();
        accounts.map(|(key, it)| (it.unit, it.consumed(), engine.is_superseded(key))).collect()
    };
    let mut host = Host::new(&usd);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    let mut file = Ledger::new().snapshot();
    file.extend(host.ledger.iter().flat_map(Entry::encode));
    host.ingress(conn, &ok());
    let anew = Some("daily: USD before, tokens now, begins anew".to_owned());
    let mut again = genops_governance::Engine::new(
        compiled(&tokens),
        Ledger::restore(&file).unwrap().ledger,
        [8; 32],
    );
    again.tick(host.now);
    again.process_exit(host.now, BOT);
    assert_eq!(said(&mut again), anew);

    host.engine.reload(host.now, compiled(&tokens));
    assert_eq!(said(&mut host.engine), anew);
    assert_eq!(asks(&mut host, "hello").outcome.decision().result().as_str(), "ALLOWED");
    assert_eq!(charged(&host.engine), [(Unit::Usd, 9_000, true), (Unit::Tokens, 30, false)]);
    host.engine.reload(host.now, compiled(&tokens));
    assert_eq!(said(&mut host.engine), None);
    host.engine.reload(host.now, compiled(&usd));
    let back = Some("daily: tokens before, USD now, goes on as it was".to_owned());
    assert_eq!(said(&mut host.engine), back);
    asks(&mut host, "hello");
    assert_eq!(charged(&host.engine), [(Unit::Usd, 18_000, false), (Unit::Tokens, 30, true)]);
}

/// A program's own server empties no budget, whatever the name used for the server.
#[test]
fn a_server_that_is_no_public_providers_is_not_taken_at_its_word() {
    let much = r#"{"id":"r1","object":"chat.completion","model":"gpt-4o-mini","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":9000000,"completion_tokens":9000000}}"#;
    let told = |address: &str| {
        let sections = Sections { budgets: vec![budget(1_000.0)], ..enforcing() };
        let mut host = Host::new(&sections);
        let conn = host.open(HELD);
        let remote = Some(address.parse().unwrap());
        let update = ConnectionUpdate { remote, ..ConnectionUpdate::default() };
        host.engine.learn(host.now, conn, update);
        host.egress(conn, &chat("gpt-4o-mini", "hello"));
        host.ingress(conn, &answer(200, much));
        let unit = host.awus.first().unwrap();
        let reserved = unit.outcome.reservation().unwrap().amount;
        let actual = unit.outcome.actual().unwrap();
        let (_, account) = host.engine.ledger().accounts().next().unwrap();
        assert_eq!(account.spent + account.overrun, actual.amount);
        (actual.amount == reserved, actual.incomplete, unit.cost_nano_usd.is_some())
    };
    for own in ["127.0.0.1:443", "10.1.2.3:443", "[::ffff:192.168.0.1]:443", "[fd00::1]:443"] {
        assert_eq!(told(own), (true, true, false), "{own}");
    }
    assert_eq!(told("104.18.6.192:443"), (false, false, true));
}

/// No reported count empties a budget of any unit.
#[test]
fn a_count_that_no_call_can_reach_is_no_count() {
    let tokens = BudgetConfig { name: "words".to_owned(), unit: Unit::Tokens, ..budget(1e9) };
    let sections = Sections { budgets: vec![budget(1_000.0), tokens], ..enforcing() };
    let charged = |usage: &str| {
        let mut host = Host::new(&sections);
        let conn = host.open(HELD);
        host.egress(conn, &chat("gpt-4o-mini", "hello"));
        let body = format!(
            r#"{{"id":"r1","object":"chat.completion","model":"gpt-4o-mini","choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"hi"}}}}],"usage":{{{usage}}}}}"#
        );
        host.ingress(conn, &answer(200, &body)).close(conn);
        let awu = host.awus.first().unwrap();
        let actual = awu.outcome.actual().unwrap();
        let reserved = awu.outcome.reservation().unwrap().amount;
        let ledger = host.engine.ledger();
        let amounts: Vec<i64> = ledger.accounts().map(|(_, it)| it.consumed()).collect();
        (actual.basis.as_str(), actual.amount == reserved, awu.cost_nano_usd.is_some(), amounts)
    };
    let (basis, whole, told, set_aside) =
        charged(r#""prompt_tokens":67108865,"completion_tokens":1"#);
    assert_eq!((basis, whole, told), ("reserved", true, false));
    let max = u64::MAX;
    for usage in [
        format!(r#""prompt_tokens":1,"completion_tokens":{max}"#),
        format!(r#""prompt_tokens":{max},"completion_tokens":{max},"total_tokens":{max}"#),
        format!(
            r#""prompt_tokens":9,"completion_tokens":9,"prompt_tokens_details":{{"cached_tokens":{max}}}"#
        ),
        format!(
            r#""prompt_tokens":9,"completion_tokens":9,"completion_tokens_details":{{"reasoning_tokens":{max}}}"#
        ),
        format!(r#""prompt_tokens":9,"completion_tokens":9,"num_search_queries":{max}"#),
    ] {
        assert_eq!(charged(&usage), ("reserved", true, false, set_aside.clone()), "{usage}");
    }
    let most = charged(r#""prompt_tokens":67108864,"completion_tokens":67108864"#);
    assert_eq!((most.0, most.3.last()), ("reported", Some(&134_217_728)));
}

/// The agent was killed after the accounts were durable, and before the closing record was.
#[test]
fn what_the_accounts_closed_and_evidence_does_not_say_is_said_first() {
    let sections = Sections { budgets: vec![budget(1.0)], ..enforcing() };
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello"));
    let known = host.engine.ledger().sequence();
    host.ingress(conn, &ok());
    let mut file = Ledger::new().snapshot();
    file.extend(host.ledger.iter().flat_map(Entry::encode));
    let restored = Ledger::restore(&file).unwrap();
    // A second agent, killed before a record was written, leaves the closing record to a third.
    let closed: Vec<_> = restored.closed.into_iter().filter(|it| it.sequence > known).collect();
    let file = restored.ledger.snapshot_with(&closed);
    let restored = Ledger::restore(&file).unwrap();
    assert_eq!((restored.closed.len(), &restored.closed), (1, &closed));
    let mut again = Host::on(&sections, restored.ledger.clone());
    let settings = Settings::compile(&sections).unwrap();
    again.engine = genops_governance::Engine::new(settings, restored.ledger, [9; 32]);
    again.engine.make_up_for(closed);
    again.text.clear();
    let conn = again.open(HELD);
    again.close(conn).check(&expect![[r#"
        record policy_loaded
        record price_loaded
        record reconciliation [daily 93750 Some(9000) left Some(999991000)]
    "#]]);
}

#[test]
fn an_adjustment_raises_what_is_allocated() {
    let mut host = Host::new(&Sections { budgets: vec![budget(0.0)], ..enforcing() });
    let error = host.engine.adjust(host.now, "weekly", 5, "alice", "more").unwrap_err();
    assert_eq!(error, "there is no budget `weekly`");
    host.engine.adjust(host.now, "daily", 1_000_000_000, "alice", "more").unwrap();
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).check(&expect![[r#"
        record override
        record decision
        record reservation [daily 93750 None left Some(999906250)]
        release c1 to 225
    "#]]);
}

#[test]
fn token_budgets_and_own_prices_count_too() {
    let mut sections = enforcing();
    sections.budgets = vec![BudgetConfig { unit: Unit::Tokens, ..budget(1_000.0) }];
    sections.prices.overrides = vec![PriceConfig {
        model: "gpt-4o*".to_owned(),
        input_per_million: Some(1.0),
        output_per_million: Some(2.0),
        ..PriceConfig::default()
    }];
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok());
    host.check(&expect![[r#"
        record decision
        record reservation [daily 325 None left Some(675)]
        release c1 to 225
        record reconciliation [daily 325 Some(30) left Some(970)]
        awu
          policy.result: ALLOWED
          accounting.reserved: Double(325.0)
          accounting.actual: Double(30.0)
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut host = Host::new(&Sections { budgets: vec![budget(0.001)], ..enforcing() });
        let mut all = String::new();
        for text in ["a", "b", "c", "d"] {
            let conn = host.open(HELD);
            host.engine.data(host.now, conn, 5, Direction::Egress, &chat("gpt-4o", text));
            host.engine.data(host.now, conn, 9, Direction::Ingress, &ok());
            for output in host.engine.outputs() {
                writeln!(all, "{output:?}").unwrap();
            }
        }
        all
    };
    assert_eq!(run(), run());
}

#[test]
fn a_decision_is_explained_in_a_paragraph() {
    let by = Some("alice@example.com".to_owned());
    let mut sections = policy(|it| it.denied_models = vec!["gpt-5*".to_owned()]);
    sections.principals = vec![PrincipalConfig { delegated_by: by, ..bot() }];
    sections.budgets = vec![budget(1.0)];
    let mut host = Host::new(&sections);
    for model in ["gpt-5-pro", "gpt-4o-mini"] {
        let conn = host.open(HELD);
        host.egress(conn, &chat(model, "hello")).ingress(conn, &ok());
    }
    let said: Vec<String> = host.awus.iter().map(|it| Explanation::of(it).paragraph()).collect();
    let expected = expect![[r#"
        At 2026-11-22T10:00:00Z `refund-bot` (team payments, project refunds, /usr/bin/python3.11, pid 4242), acting under principal:refund-bot, for whom alice@example.com answers, asked openai for gpt-5-pro (chat). It was BLOCKED with POLICY_DENY_MODEL by `rules.denied_models`: these models are denied: gpt-5*; it asks openai for gpt-5-pro. To run, ask for a model and provider that `rules.denied_models` permits, or have it changed.
        At 2026-11-22T10:00:00Z `refund-bot` (team payments, project refunds, /usr/bin/python3.11, pid 4242), acting under principal:refund-bot, for whom alice@example.com answers, asked openai for gpt-4o-mini (chat). It was ALLOWED. 0.00009375 USD were set aside for it from `daily` (2026-11-22), which has 0.99990625 USD left."#]];
    expected.assert_eq(&said.join("\n"));
}

/// An HTTP/2 frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length.get(1..).unwrap().to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header field never indexed, name and value plain (RFC 7541 §6.2.3).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |it: &str| {
        let length = u8::try_from(it.len()).unwrap();
        assert!(length < 127);
        [&[length], it.as_bytes()].concat()
    };
    [vec![0x10], text(name), text(value)].concat()
}

/// The header block of a chat completion, as a HEADERS frame with `END_HEADERS`.
fn headers(stream: u32) -> Vec<u8> {
    let fields = [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":authority", "api.openai.com"),
        field(":path", "/v1/chat/completions"),
        field("content-type", "application/json"),
    ];
    frame(1, 4, stream, &fields.concat())
}

fn body(model: &str) -> Vec<u8> {
    format!(
        r#"{{"model":"{model}","max_tokens":100,"service_tier":"default","messages":[{{"role":"user","content":"hi"}}]}}"#
    )
    .into_bytes()
}

#[test]
fn on_http2_each_stream_is_decided_and_a_refusal_ends_them_all() {
    let mut host = Host::new(&policy(|it| it.denied_models = vec!["*-pro".to_owned()]));
    let conn = host.open(HELD);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    host.egress(conn, &[preface.to_vec(), frame(4, 0, 0, &[])].concat());
    let (first, third) = (body("gpt-4o-mini"), body("gpt-4o"));
    let (head, tail) = first.split_at(30);
    // Two streams with alternating frames: nothing of the older leaves before the end.
    host.egress(conn, &[headers(1), frame(0, 0, 1, head)].concat());
    host.egress(conn, &[headers(3), frame(0, 1, 3, &third)].concat());
    writeln!(host.text, "-- the first ends").unwrap();
    host.egress(conn, &frame(0, 1, 1, tail));
    writeln!(host.text, "-- a refused one").unwrap();
    host.egress(conn, &[headers(5), frame(0, 1, 5, &body("gpt-5-pro"))].concat());
    writeln!(host.text, "-- one after it, and the end").unwrap();
    host.egress(conn, &[headers(7), frame(0, 1, 7, &body("gpt-4o"))].concat());
    host.close(conn).check(&expect![[r#"
        release c1 to 33
        record decision
        record reservation [- 1592500 None left None]
        -- the first ends
        record decision
        record reservation [- 97650 None left None]
        release c1 to 521
        -- a refused one
        record decision
        deny c1 collateral 2
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: *-pro; it asks openai for gpt-5-pro
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        -- one after it, and the end
        record decision
        awu error=Str("x_connection_denied")
          policy.result: BLOCKED
          policy.reason_code: x_connection_denied
          policy.reason: nothing more of this connection may leave
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record reconciliation [- 97650 None left None]
        awu error=Str("connection_closed")
          policy.result: ALLOWED
          accounting.reserved: Double(9.765e-5)
          accounting.actual: Double(9.765e-5)
          accounting.incomplete: Bool(true)
          compliance: full
          capture.level: partial
          enforcement.mechanism: egress_hold
        record reconciliation [- 1592500 None left None]
        awu error=Str("connection_closed")
          policy.result: ALLOWED
          accounting.reserved: Double(0.0015925)
          accounting.actual: Double(0.0015925)
          accounting.incomplete: Bool(true)
          compliance: full
          capture.level: partial
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn an_ai_connection_is_a_unit_once_something_of_it_can_not_be_read() {
    let mut host = Host::new(&enforcing());
    let conn = host.open(HELD);
    host.egress(conn, b"\x00\x01\x02 this is nothing that anybody speaks\r\n\r\n");
    host.close(conn);
    let silent = host.open(HELD);
    host.close(silent);
    assert_eq!(host.awus.len(), 1);
}

#[test]
fn a_request_whose_evidence_is_not_durable_is_refused_after_all() {
    let mut host = Host::new(&Sections { budgets: vec![budget(1.0)], ..enforcing() });
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "one")).ingress(conn, &ok());
    host.egress(conn, &chat("gpt-4o-mini", "two"));
    host.text.clear();
    host.engine.withhold(host.now, conn);
    host.close(conn).check(&expect![[r#"
        record release [daily 93450 Some(0) left Some(999991000)]
        awu error=Str("ACCOUNTING_INVARIANT_VIOLATION")
          policy.result: BLOCKED
          policy.reason_code: ACCOUNTING_INVARIANT_VIOLATION
          policy.reason: its evidence could not be made durable, so it was kept back
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.spent), (0, 9_000));
}

#[test]
fn without_a_price_no_budget_in_usd_can_be_drawn_on_but_by_own_servers() {
    let send = |host_name: &'static str, path: &str, sections: &Sections| {
        let mut host = Host::new(sections);
        host.server_name = host_name;
        let conn = host.open(HELD);
        let body =
            r#"{"model":"own-7b","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}"#;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host_name}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        host.egress(conn, request.as_bytes());
        let released = host.text.contains("release");
        host.close(conn);
        let awu = host.awus.pop().unwrap();
        let reason = awu.outcome.decision().reason().map(|it| it.as_str().to_owned());
        let unit = awu.outcome.reservation().map(|it| it.unit);
        format!("{:?} released {released} {reason:?} {unit:?}\n", awu.call.provider)
    };
    let with_budget = Sections { budgets: vec![budget(1.0)], ..enforcing() };
    let mut said = String::new();
    for sections in [&with_budget, &enforcing()] {
        said.push_str(&send("api.venice.ai", "/v1/chat/completions", sections));
        said.push_str(&send("models.internal", "/api/chat", sections));
    }
    let expected = expect![[r#"
        Some("venice") released false Some("BUDGET_RESERVATION_FAILED") None
        Some("ollama") released true Some("x_price_unknown") Some(Tokens)
        Some("venice") released true Some("x_price_unknown") Some(Tokens)
        Some("ollama") released true Some("x_price_unknown") Some(Tokens)
    "#]];
    expected.assert_eq(&said);
}
