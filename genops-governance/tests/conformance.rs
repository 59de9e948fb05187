//! Conformance checker: the agent's export of a mixed run, and exports with a single broken rule
//! each.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::indexing_slicing, reason = "JSON of a known shape")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use expect_test::{Expect, expect};
use genops_governance::conformance::{self, Level};
use genops_governance::{
    Awu, BudgetConfig, HoldLevel, Mode, PrincipalConfig, RateLimitConfig, Sections, SlaConfig,
    Value,
};
use serde_json::{Value as Json, json};
use support::{HELD, Host, answer, bot, budget, chat, enforcing, ok, policy};

/// Returns units in the form of an OTLP/JSON export.
fn export(awus: &[Awu]) -> Json {
    let value = |value: &Value| match value {
        Value::Str(text) => json!({ "stringValue": text }),
        Value::Int(number) => json!({ "intValue": number.to_string() }),
        Value::Double(number) => json!({ "doubleValue": number }),
        Value::Bool(truth) => json!({ "boolValue": truth }),
        Value::StrList(list) => {
            let values: Vec<Json> = list.iter().map(|it| json!({ "stringValue": it })).collect();
            json!({ "arrayValue": { "values": values } })
        }
    };
    let attributes = |list: &[(&'static str, Value)]| -> Json {
        list.iter().map(|(name, it)| json!({ "key": name, "value": value(it) })).collect()
    };
    let span = |awu: &Awu| {
        let id = awu.id.to_string();
        let (trace, span) = id.split_once('-').unwrap();
        let events: Vec<Json> = awu
            .events()
            .iter()
            .map(|it| {
                json!({
                    "name": it.name,
                    "timeUnixNano": it.unix_ns.to_string(),
                    "attributes": attributes(&it.attributes),
                })
            })
            .collect();
        json!({
            "traceId": trace,
            "spanId": span,
            "name": awu.name(),
            "startTimeUnixNano": awu.start_unix_ns.to_string(),
            "endTimeUnixNano": awu.end_unix_ns.to_string(),
            "attributes": attributes(&awu.attributes()),
            "events": events,
        })
    };
    let spans: Vec<Json> = awus.iter().map(span).collect();
    json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": spans }] }] })
}

/// Sends a single request and returns the resulting unit.
fn unit(sections: &Sections, hold: HoldLevel, model: &str, response: Option<&[u8]>) -> Vec<Awu> {
    let mut host = Host::new(sections);
    run(&mut host, hold, model, response);
    std::mem::take(&mut host.awus)
}

fn run(host: &mut Host, hold: HoldLevel, model: &str, response: Option<&[u8]>) {
    let conn = host.open(hold);
    host.egress(conn, &chat(model, "hello secret"));
    host.wait_ms(20);
    if let Some(response) = response {
        host.ingress(conn, response);
    }
    host.close(conn);
}

/// Returns units of every sort possible in a held run: each reason code, and each end.
fn mixed() -> Vec<Awu> {
    let deny = |change: fn(&mut genops_governance::PolicyConfig)| {
        unit(&policy(change), HELD, "gpt-4o-mini", Some(&ok()))
    };
    let mut awus = unit(&enforcing(), HELD, "gpt-4o-mini", Some(&ok()));
    awus.extend(deny(|it| it.denied_models = vec!["gpt*".to_owned()]));
    awus.extend(deny(|it| it.allowed_regions = Some(vec!["eu-*".to_owned()])));
    awus.extend(deny(|it| it.denied_content = vec!["secret".to_owned()]));
    awus.extend(deny(|it| it.max_cost = Some(0.0)));
    awus.extend(deny(|it| it.approval_above = Some(0.0)));
    let warn = |it: &mut genops_governance::PolicyConfig| {
        it.denied_models = vec!["gpt*".to_owned()];
        it.enforcement = genops_governance::Enforcement::Warn;
    };
    awus.extend(unit(&policy(warn), HELD, "gpt-4o-mini", Some(&ok())));
    let used_up = Sections { budgets: vec![budget(0.0)], ..enforcing() };
    awus.extend(unit(&used_up, HELD, "gpt-4o-mini", Some(&ok())));
    let too_little = Sections { budgets: vec![budget(0.000_001)], ..enforcing() };
    awus.extend(unit(&too_little, HELD, "gpt-4o-mini", Some(&ok())));
    let limit =
        RateLimitConfig { name: "one".to_owned(), requests: Some(1), ..RateLimitConfig::default() };
    let mut limited = Host::new(&Sections { rate_limits: vec![limit], ..enforcing() });
    for _ in 0..2 {
        run(&mut limited, HELD, "gpt-4o-mini", Some(&ok()));
    }
    awus.append(&mut limited.awus);
    let target =
        SlaConfig { tier: "gold".to_owned(), latency_target_ms: 10, ..SlaConfig::default() };
    let mut slow = Host::new(&Sections { sla: vec![target], ..enforcing() });
    for _ in 0..2 {
        run(&mut slow, HELD, "gpt-4o-mini", Some(&ok()));
    }
    awus.append(&mut slow.awus);
    let mut failing = Host::new(&enforcing());
    for _ in 0..2 {
        run(&mut failing, HELD, "gpt-4o-mini", Some(&answer(503, "{}")));
    }
    awus.append(&mut failing.awus);
    // Incomplete: the connection died after the request left.
    awus.extend(unit(&enforcing(), HELD, "gpt-4o-mini", None));
    let expired = PrincipalConfig { expires: Some("2026-01-01T00:00:00Z".to_owned()), ..bot() };
    let expired = Sections { principals: vec![expired], ..enforcing() };
    awus.extend(unit(&expired, HELD, "gpt-4o-mini", Some(&ok())));
    let thresholds = BudgetConfig { thresholds: vec![1], ..budget(0.001) };
    let nearly = Sections { budgets: vec![thresholds], ..enforcing() };
    awus.extend(unit(&nearly, HELD, "gpt-4o-mini", Some(&ok())));
    // Permitted, but the connection was refused because of another request before the bytes left.
    let mut host = Host::new(&policy(|it| it.denied_models = vec!["*-pro".to_owned()]));
    let conn = host.open(HELD);
    host.egress(conn, &[chat("gpt-4o-mini", "one"), chat("gpt-5-pro", "two")].concat());
    host.close(conn);
    awus.append(&mut host.awus);
    // Identities are unique within an engine; here every host has the same entropy.
    for (number, awu) in awus.iter_mut().enumerate() {
        awu.id.trace[0] = u8::try_from(number).unwrap();
    }
    awus
}

#[test]
fn a_held_run_of_every_sort_complies_in_full() {
    let awus = mixed();
    let report = conformance::check(&export(&awus).to_string()).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.level, Level::Full);
    let mut codes: Vec<String> = awus
        .iter()
        .filter_map(|it| Some(it.outcome.decision().reason()?.as_str().to_owned()))
        .collect();
    codes.sort();
    codes.dedup();
    let expected = expect![[r#"
        BUDGET_EXCEEDED
        BUDGET_RESERVATION_FAILED
        POLICY_DENY_CONTENT
        POLICY_DENY_MODEL
        POLICY_DENY_REGION
        PROVIDER_ERROR_UPSTREAM
        RATE_LIMITED
        SLA_LATENCY_VIOLATION
        x_approval_required
        x_authority_expired
        x_budget_threshold"#]];
    expected.assert_eq(&codes.join("\n"));
}

#[test]
fn an_observed_run_says_that_it_is_partial() {
    let observing = Sections { mode: Mode::Observe, ..enforcing() };
    let awus = unit(&observing, HoldLevel::None, "gpt-4o-mini", Some(&ok()));
    let report = conformance::check(&export(&awus).to_string()).unwrap();
    assert_eq!((report.level, report.findings.len()), (Level::Partial, 0));
}

/// Allowed, warned, and blocked units: the start of the mutations.
fn sound() -> Json {
    let target =
        SlaConfig { tier: "gold".to_owned(), latency_target_ms: 100, ..SlaConfig::default() };
    let mut host = Host::new(&Sections {
        sla: vec![target],
        budgets: vec![BudgetConfig { thresholds: vec![1], ..budget(0.001) }],
        ..enforcing()
    });
    run(&mut host, HELD, "gpt-4o-mini", Some(&ok()));
    run(&mut host, HELD, "gpt-4o", Some(&ok()));
    let json = export(&host.awus);
    let results = ["WARNING", "BLOCKED"];
    for (index, result) in results.iter().enumerate() {
        let span = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][index];
        assert!(span.to_string().contains(result), "{span}");
    }
    json
}

/// The first span ran, the second was stopped.
const RAN: usize = 0;
const STOPPED: usize = 1;

struct Export(Json);

impl Export {
    fn span(&mut self, index: usize) -> &mut Json {
        &mut self.0["resourceSpans"][0]["scopeSpans"][0]["spans"][index]
    }

    fn events(&mut self, index: usize) -> &mut Vec<Json> {
        self.span(index)["events"].as_array_mut().unwrap()
    }

    fn event(&mut self, index: usize, name: &str) -> &mut Json {
        self.events(index).iter_mut().find(|it| it["name"] == name).unwrap()
    }
}

fn remove(of: &mut Json, name: &str) {
    let list = of["attributes"].as_array_mut().unwrap();
    let before = list.len();
    list.retain(|it| it["key"] != name);
    assert_ne!(before, list.len(), "{name} was not there");
}

#[expect(clippy::needless_pass_by_value, reason = "the calls are a table")]
fn set(of: &mut Json, name: &str, value: Json) {
    let list = of["attributes"].as_array_mut().unwrap();
    list.retain(|it| it["key"] != name);
    list.push(json!({ "key": name, "value": value }));
}

fn text(value: &str) -> Json {
    json!({ "stringValue": value })
}

fn double(value: f64) -> Json {
    json!({ "doubleValue": value })
}

/// Checks that a change breaks exactly the expected rules and makes the export noncompliant.
#[track_caller]
fn broken(change: impl FnOnce(&mut Export), expected: &Expect) {
    let mut mutated = Export(sound());
    change(&mut mutated);
    let report = conformance::check(&mutated.0.to_string()).unwrap();
    assert_eq!(report.level, Level::Not);
    let mut rules: Vec<String> =
        report.findings.iter().map(|it| format!("§{} {}", it.section, it.rule)).collect();
    rules.dedup();
    expected.assert_eq(&rules.join("\n"));
}

#[test]
fn what_the_mutations_start_from_is_sound() {
    let report = conformance::check(&sound().to_string()).unwrap();
    assert_eq!((report.level, report.findings), (Level::Full, vec![]));
}

/// A mutated export for each rule; the line of the mutation names the expected finding.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_mutated_export_breaks_the_rule_that_it_is_made_for() {
    broken(|it| it.span(RAN)["traceId"] = "0".repeat(32).into(), &expect!["§2 identity"]);
    broken(|it| it.span(RAN)["spanId"] = "xyz".into(), &expect!["§2 identity"]);
    broken(
        |it| {
            let (trace, span) = (it.span(RAN)["traceId"].clone(), it.span(RAN)["spanId"].clone());
            it.span(STOPPED)["traceId"] = trace;
            it.span(STOPPED)["spanId"] = span;
        },
        &expect!["§2 identity-unique"],
    );
    broken(|it| remove(it.span(RAN), "genops.team"), &expect!["§7.1 team"]);
    broken(|it| set(it.span(RAN), "genops.team", text("unknown")), &expect!["§7.1 team"]);
    broken(|it| set(it.span(RAN), "genops.project", text(" ")), &expect!["§7.1 project"]);
    broken(|it| remove(it.span(STOPPED), "genops.environment"), &expect!["§7.1 environment"]);
    broken(
        |it| {
            let other = json!({"key": "genops.project", "value": text("another")});
            it.span(RAN)["attributes"].as_array_mut().unwrap().push(other);
        },
        &expect!["§7 keys-unique"],
    );
    broken(|it| remove(it.span(RAN), "genops.operation.name"), &expect!["§7.1 operation-name"]);
    broken(
        |it| set(it.span(RAN), "genops.operation.type", json!({"intValue": "1"})),
        &expect![[r#"
            §7.1 operation-type
            §7 types"#]],
    );
    broken(|it| remove(it.span(STOPPED), "genops.spec.version"), &expect!["§7.1 spec-version"]);
    broken(
        |it| set(it.span(RAN), "genops.spec.version", text("0.2.0")),
        &expect!["§7.1 spec-version"],
    );
    broken(
        |it| set(it.span(RAN), "genops.policy.result", text("PASSED")),
        &expect![[r#"
            §4 result
            §4.3 one-decision
            §8 stopped-runs-not"#]],
    );
    broken(
        |it| remove(it.span(STOPPED), "genops.policy.result"),
        &expect![[r#"
            §4 result
            §4.3 one-decision"#]],
    );
    broken(|it| it.events(RAN).retain(|it| it["name"] != EVALUATED), &expect!["§4.3 one-decision"]);
    broken(
        |it| {
            let again = it.event(RAN, EVALUATED).clone();
            it.events(RAN).push(again);
        },
        &expect!["§4.3 one-decision"],
    );
    broken(
        |it| set(it.event(STOPPED, EVALUATED), "genops.policy.result", text("RATE_LIMITED")),
        &expect!["§4.3 one-decision"],
    );
    broken(
        |it| remove(it.span(STOPPED), "genops.policy.reason_code"),
        &expect![[r#"
            §5.3 reason-present
            §8 evaluated-attributes"#]],
    );
    broken(
        |it| {
            set(it.span(RAN), "genops.policy.result", text("ALLOWED"));
            set(it.event(RAN, EVALUATED), "genops.policy.result", text("ALLOWED"));
            remove(it.event(RAN, EVALUATED), "genops.policy.reason_code");
        },
        &expect![[r#"
            §5.3 reason-absent
            §8 evaluated-attributes"#]],
    );
    broken(
        |it| {
            set(it.span(STOPPED), "genops.policy.reason_code", text("too expensive"));
            set(it.event(STOPPED, EVALUATED), "genops.policy.reason_code", text("too expensive"));
        },
        &expect!["§5.2 reason-known"],
    );
    broken(
        |it| remove(it.event(STOPPED, EVALUATED), "genops.policy.reason_code"),
        &expect!["§8 evaluated-attributes"],
    );
    broken(|it| remove(it.span(RAN), "genops.accounting.reserved"), &expect!["§3 reserved"]);
    broken(|it| remove(it.span(RAN), "genops.accounting.unit"), &expect!["§3 unit"]);
    broken(
        |it| it.events(RAN).retain(|it| it["name"] != RESERVED),
        &expect!["§3 reservation-event"],
    );
    broken(
        |it| it.event(RAN, RESERVED)["timeUnixNano"] = "9000000000000000000".into(),
        &expect!["§3 reserved-before"],
    );
    broken(|it| remove(it.span(RAN), "genops.accounting.actual"), &expect!["§3 actual"]);
    broken(
        |it| it.events(RAN).retain(|it| it["name"] != RECONCILED),
        &expect!["§3 reconciliation-event"],
    );
    broken(
        |it| set(it.event(RAN, RECONCILED), "genops.accounting.actual", double(5.0)),
        &expect![[r#"
            §3 reconciliation-agrees
            §3 delta"#]],
    );
    broken(
        |it| set(it.span(RAN), "genops.accounting.reconciliation_delta", double(1.0)),
        &expect!["§3 delta"],
    );
    broken(
        |it| {
            let event = it.event(RAN, RECONCILED).clone();
            it.events(STOPPED).push(event);
        },
        &expect!["§8 stopped-runs-not"],
    );
    broken(
        |it| set(it.span(STOPPED), "genops.accounting.actual", double(0.0)),
        &expect!["§8 stopped-runs-not"],
    );
    broken(|it| remove(it.span(RAN), "genops.sla.tier"), &expect!["§6 sla-complete"]);
    broken(
        |it| set(it.span(RAN), "genops.sla.met", json!({"boolValue": false})),
        &expect!["§6 sla-met"],
    );
    broken(
        |it| {
            let whole = json!({"intValue": "1"});
            set(it.span(RAN), "genops.budget.remaining", whole);
        },
        &expect!["§7 types"],
    );
    broken(
        |it| remove(it.event(RAN, RESERVED), "genops.accounting.unit"),
        &expect!["§8 reservation-attributes"],
    );
    broken(
        |it| remove(it.event(RAN, RECONCILED), "genops.accounting.reserved"),
        &expect!["§8 reconciliation-attributes"],
    );
    broken(
        |it| remove(it.event(RAN, COST), "genops.cost.currency"),
        &expect!["§8 cost-attributes"],
    );
    broken(
        |it| remove(it.event(RAN, ALERT), "genops.budget.consumed"),
        &expect!["§8 alert-attributes"],
    );
    broken(
        |it| {
            let evaluation = json!({ "name": "genops.evaluation.complete", "attributes": [] });
            it.events(RAN).push(evaluation);
        },
        &expect!["§8 evaluation-attributes"],
    );
    broken(
        |it| set(it.span(RAN), "genops.cost.currency", text("dollars")),
        &expect!["§7.3 currency"],
    );
    broken(
        |it| set(it.span(RAN), "genops.enforcement.mechanism", text("none")),
        &expect!["§9.2 honest"],
    );
    broken(|it| set(it.span(RAN), "genops.compliance", text("mostly")), &expect!["§9.2 honest"]);
}

/// Unit, budget and attribution of a unit agree with each other.
#[test]
fn a_budget_of_another_unit_or_owner_is_found() {
    broken(
        |it| set(it.span(RAN), "genops.budget.unit", text("tokens")),
        &expect![[r#"
        §3 budget-one-unit
        §3 budget-unit"#]],
    );
    broken(
        |it| set(it.event(RAN, ALERT), "genops.budget.unit", text("tokens")),
        &expect![[r#"
        §3 budget-one-unit
        §3 budget-unit"#]],
    );
    // The reserving event names another budget than the span.
    broken(
        |it| set(it.event(RAN, RESERVED), "genops.budget.name", text("flow")),
        &expect!["§7.3 budget-agrees"],
    );
    broken(
        |it| set(it.event(RAN, RECONCILED), "genops.budget.name", text("flow")),
        &expect!["§7.3 budget-agrees"],
    );
    // An alert about a budget the unit does not draw on.
    broken(
        |it| set(it.event(RAN, ALERT), "genops.budget.name", text("flow")),
        &expect![[r#"
        §7.3 budget-agrees
        §8 alert-of-cause"#]],
    );
    // The unit draws on the budget, but another budget crossed the threshold.
    broken(
        |it| {
            let others = json!({"arrayValue": {"values": [{"stringValue": "flow"}]}});
            set(it.span(RAN), "genops.budget.others", others);
            set(it.event(RAN, ALERT), "genops.budget.name", text("flow"));
            set(it.event(RAN, ALERT), "genops.budget.unit", text("tokens"));
        },
        &expect!["§8 alert-of-cause"],
    );
    broken(
        |it| {
            let others = json!({"arrayValue": {"values": [{"stringValue": "daily"}]}});
            set(it.span(RAN), "genops.budget.others", others);
        },
        &expect!["§7.3 budget-agrees"],
    );
    // Tokens under a name of money.
    broken(
        |it| set(it.span(RAN), "genops.budget.remaining", double(7_155.0)),
        &expect!["§7.3 budget-adds-up"],
    );
    // The same budget in tokens elsewhere.
    broken(
        |it| set(it.event(STOPPED, ALERT), "genops.budget.unit", text("tokens")),
        &expect!["§3 budget-one-unit"],
    );
    broken(
        |it| set(it.event(RAN, COST), "genops.team", text("research")),
        &expect!["§2 attribution-agrees"],
    );
    broken(
        |it| set(it.event(RAN, RESERVED), "genops.customer_id", text("c-77")),
        &expect!["§2 attribution-agrees"],
    );
}

const EVALUATED: &str = "genops.policy.evaluated";
const RESERVED: &str = "genops.budget.reservation";
const RECONCILED: &str = "genops.budget.reconciliation";
const COST: &str = "genops.cost.calculated";
const ALERT: &str = "genops.budget.alert";

#[test]
fn a_partial_runtime_may_leave_the_accounting_out_and_nothing_else() {
    let mut export = Export(sound());
    for index in [RAN, STOPPED] {
        set(export.span(index), "genops.compliance", text("partial"));
    }
    remove(export.span(RAN), "genops.accounting.actual");
    let level = |export: &Export| conformance::check(&export.0.to_string()).unwrap().level;
    assert_eq!(level(&export), Level::Partial);
    remove(export.span(RAN), "genops.team");
    assert_eq!(level(&export), Level::Not);
}

#[test]
fn what_is_no_export_is_said_in_a_sentence() {
    let error = |text: &str| conformance::check(text).unwrap_err().to_string();
    expect!["line 1, column 20: expected value"].assert_eq(&error("{\"resourceSpans\": [}"));
    expect!["there are no `resourceSpans`: this is not an OTLP/JSON export of traces"]
        .assert_eq(&error("{}"));
    let nothing = conformance::check(r#"{"resourceSpans": []}"#).unwrap();
    assert_eq!((nothing.level, nothing.findings.len()), (Level::Not, 1));
}

#[test]
fn spans_of_a_line_each_are_read_too() {
    let line = sound().to_string();
    let mut second = Export(sound());
    for index in [RAN, STOPPED] {
        second.span(index)["spanId"] = format!("{:016x}", index + 1).into();
    }
    let report = conformance::check(&format!("{line}\n{}\n", second.0)).unwrap();
    assert_eq!(report.units.get(&Level::Full), Some(&4));
}
