//! Conformance rules, each under the section of the specification with the requirement.

use std::collections::BTreeMap;

use super::Finding;
use super::export::{Attributes, Event, Unit, Value};
use crate::decision::ReasonCode;
use crate::telemetry::{SPEC_VERSION, says_something};

const EVALUATED: &str = "genops.policy.evaluated";
const RESERVED: &str = "genops.budget.reservation";
const RECONCILED: &str = "genops.budget.reconciliation";
const ALERT: &str = "genops.budget.alert";

/// Rule over a single unit; returns the faults in words.
pub(super) struct Rule {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    check: fn(&Unit) -> Vec<String>,
}

impl Rule {
    pub(super) fn apply(&self, unit: &Unit) -> impl Iterator<Item = Finding> + use<> {
        let (section, rule, unit_name) = (self.section, self.name, unit.name.clone());
        let found = (self.check)(unit).into_iter();
        found.map(move |message| Finding { section, rule, unit: unit_name.clone(), message })
    }
}

macro_rules! rules {
    ($($section:literal $name:literal $check:expr;)*) => {
        /// Every rule over a single unit.
        pub(super) const RULES: &[Rule] =
            &[$(Rule { section: $section, name: $name, check: $check }),*];
    };
}

rules! {
    "2" "identity" identity;
    "7.1" "team" |it| meaningful(it, "genops.team");
    "7.1" "project" |it| meaningful(it, "genops.project");
    "7.1" "environment" |it| meaningful(it, "genops.environment");
    "7.1" "operation-name" |it| meaningful(it, "genops.operation.name");
    "7.1" "operation-type" |it| meaningful(it, "genops.operation.type");
    "7.1" "spec-version" spec_version;
    "4" "result" result;
    "4.3" "one-decision" one_decision;
    "5.3" "reason-present" reason_present;
    "5.3" "reason-absent" reason_absent;
    "5.2" "reason-known" reason_known;
    "3" "reserved" reserved;
    "3" "unit" unit_declared;
    "3" "reservation-event" reservation_event;
    "3" "reserved-before" reserved_before;
    "3" "actual" actual;
    "3" "reconciliation-event" reconciliation_event;
    "3" "reconciliation-agrees" reconciliation_agrees;
    "3" "delta" delta;
    "3" "budget-unit" budget_unit;
    "7.3" "budget-agrees" budget_agrees;
    "7.3" "budget-adds-up" budget_adds_up;
    "8" "alert-of-cause" alert_of_cause;
    "2" "attribution-agrees" attribution_agrees;
    "8" "stopped-runs-not" stopped_runs_not;
    "6" "sla-complete" sla_complete;
    "6" "sla-met" sla_met;
    "7" "types" types;
    "7" "keys-unique" keys_unique;
    "8" "evaluated-attributes" evaluated_attributes;
    "8" "reservation-attributes" |it| event_attributes(it, RESERVED, &["genops.accounting.reserved", "genops.accounting.unit"]);
    "8" "reconciliation-attributes" |it| event_attributes(it, RECONCILED, &["genops.accounting.actual", "genops.accounting.reserved", "genops.accounting.unit"]);
    "8" "cost-attributes" |it| event_attributes(it, "genops.cost.calculated", &["genops.cost.total", "genops.cost.currency"]);
    "8" "alert-attributes" |it| event_attributes(it, ALERT, &["genops.budget.name", "genops.budget.consumed", "genops.budget.allocated"]);
    "8" "evaluation-attributes" |it| event_attributes(it, "genops.evaluation.complete", &["genops.eval.metric", "genops.eval.score"]);
    "7.3" "currency" currency;
    "9.2" "honest" honest;
}

/// The rules over the export as a whole.
pub(super) const ACROSS: [(&str, &str); 2] = [("2", "identity-unique"), ("3", "budget-one-unit")];

/// Checks the rules across units.
pub(super) fn across(units: &[Unit]) -> Vec<Finding> {
    let mut found = identity_unique(units);
    found.extend(budget_one_unit(units));
    found
}

/// Checks for a single unit of measure in each budget, over all AWUs.
fn budget_one_unit(units: &[Unit]) -> Vec<Finding> {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = Vec::new();
    for unit in units {
        for (budget, said) in parts(unit).filter_map(budget_and_unit) {
            let before = *first.entry(budget).or_insert(said);
            if before != said {
                let message = format!("`{budget}` is in {said}, and elsewhere in {before}");
                let (section, rule, unit) = ("3", "budget-one-unit", unit.name.clone());
                found.push(Finding { section, rule, unit, message });
                break;
            }
        }
    }
    found
}

/// Returns the named budget and the budget's unit of measure.
fn budget_and_unit(it: &Attributes) -> Option<(&str, &str)> {
    let unit = it.text("genops.budget.unit").or_else(|| it.text("genops.accounting.unit"))?;
    Some((it.text("genops.budget.name")?, unit))
}

/// Returns the attributes of the span and of each event.
fn parts(unit: &Unit) -> impl Iterator<Item = &Attributes> {
    std::iter::once(&unit.attributes).chain(unit.events.iter().map(|it| &it.attributes))
}

/// Checks that no two units share an identity.
fn identity_unique(units: &[Unit]) -> Vec<Finding> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for unit in units {
        *counts.entry(&unit.name).or_default() += 1;
    }
    let reused = counts.into_iter().filter(|(_, count)| *count > 1);
    let (section, rule) = ("2", "identity-unique");
    reused
        .map(|(unit, count)| Finding {
            section,
            rule,
            unit: unit.to_owned(),
            message: format!("{count} spans have this identity"),
        })
        .collect()
}

/// Returns true if a partial runtime may break the rule (§9.2).
pub(super) fn of_accounting(finding: &Finding) -> bool {
    let of_events = ["reservation-attributes", "reconciliation-attributes"];
    finding.section == "3" || of_events.contains(&finding.rule)
}

fn fault(wrong: bool, message: impl FnOnce() -> String) -> Vec<String> {
    if wrong { vec![message()] } else { Vec::new() }
}

/// Reports repeated keys: with two values of the same name, the valid value is unknown.
fn keys_unique(unit: &Unit) -> Vec<String> {
    let of_events = unit.events.iter().flat_map(|it| it.attributes.repeated());
    let all = unit.attributes.repeated().into_iter().chain(of_events);
    all.map(|name| format!("`{name}` is there more than once")).collect()
}

fn identity(unit: &Unit) -> Vec<String> {
    let fits = |text: &str, digits: usize| {
        text.len() == digits
            && text.bytes().all(|it| it.is_ascii_hexdigit())
            && text.bytes().any(|it| it != b'0')
    };
    fault(!fits(&unit.trace, 32) || !fits(&unit.span, 16), || {
        "trace or span id is not valid".to_owned()
    })
}

fn meaningful(unit: &Unit, name: &str) -> Vec<String> {
    match unit.attributes.get(name) {
        None => vec![format!("`{name}` is missing")],
        Some(Value::Text(text)) => {
            fault(!says_something(text), || format!("`{name}` is `{text}`, which says nothing"))
        }
        Some(other) => vec![format!("`{name}` is of type {}, not string", other.kind())],
    }
}

fn spec_version(unit: &Unit) -> Vec<String> {
    let found = unit.text("genops.spec.version");
    fault(found != Some(SPEC_VERSION), || match found {
        Some(other) => format!("`genops.spec.version` is `{other}`, not `{SPEC_VERSION}`"),
        None => "`genops.spec.version` is missing".to_owned(),
    })
}

fn result_of(unit: &Unit) -> &str {
    unit.text("genops.policy.result").unwrap_or_default()
}

fn permitted(unit: &Unit) -> bool {
    matches!(result_of(unit), "ALLOWED" | "WARNING")
}

fn stopped(unit: &Unit) -> bool {
    matches!(result_of(unit), "BLOCKED" | "RATE_LIMITED")
}

/// Returns true if the unit was permitted and is not marked as never run.
fn executed(unit: &Unit) -> bool {
    permitted(unit) && !unit.attributes.is_true("genops.accounting.released")
}

fn result(unit: &Unit) -> Vec<String> {
    fault(!permitted(unit) && !stopped(unit), || {
        format!("`genops.policy.result` is `{}`, none of the four", result_of(unit))
    })
}

fn one_decision(unit: &Unit) -> Vec<String> {
    let results: Vec<&str> = unit
        .events(EVALUATED)
        .map(|it| it.attributes.text("genops.policy.result").unwrap_or_default())
        .collect();
    match results.as_slice() {
        [] => vec![format!("there is no event `{EVALUATED}`")],
        [one] => fault(*one != result_of(unit), || {
            format!("the event says `{one}`, the span `{}`", result_of(unit))
        }),
        more => vec![format!("there are {} events `{EVALUATED}`", more.len())],
    }
}

fn reason_present(unit: &Unit) -> Vec<String> {
    let missing = unit.text("genops.policy.reason_code").is_none();
    let due = stopped(unit) || result_of(unit) == "WARNING";
    fault(due && missing, || format!("{} without `genops.policy.reason_code`", result_of(unit)))
}

fn reason_absent(unit: &Unit) -> Vec<String> {
    let code = unit.attributes.get("genops.policy.reason_code");
    fault(result_of(unit) == "ALLOWED" && code.is_some(), || {
        "ALLOWED with a `genops.policy.reason_code`".to_owned()
    })
}

fn reason_known(unit: &Unit) -> Vec<String> {
    let events = unit.events(EVALUATED).map(|it| &it.attributes);
    let all = std::iter::once(&unit.attributes).chain(events);
    let codes = all.filter_map(|it| it.text("genops.policy.reason_code"));
    let unknown = codes.filter(|it| ReasonCode::parse(it).is_none());
    unknown.map(|it| format!("`{it}` is no reason code of §5.2, nor `x_..`")).collect()
}

fn reserved(unit: &Unit) -> Vec<String> {
    let due = executed(unit) || unit.events(RESERVED).next().is_some();
    let missing = unit.attributes.get("genops.accounting.reserved").is_none();
    fault(due && missing, || "`genops.accounting.reserved` is missing".to_owned())
}

fn unit_declared(unit: &Unit) -> Vec<String> {
    let due = executed(unit) || unit.attributes.get("genops.accounting.reserved").is_some();
    let said = unit.text("genops.accounting.unit").unwrap_or_default();
    fault(due && said.trim().is_empty(), || "`genops.accounting.unit` is missing".to_owned())
}

fn reservation_event(unit: &Unit) -> Vec<String> {
    let count = unit.events(RESERVED).count();
    fault(executed(unit) && count != 1, || format!("there are {count} events `{RESERVED}`"))
}

fn reserved_before(unit: &Unit) -> Vec<String> {
    let first = |name| unit.events(name).map(|it: &Event| it.unix_ns).min();
    let Some(after) = first(RECONCILED) else { return Vec::new() };
    let late = |name| first(name).filter(|at| *at > after);
    let found = [EVALUATED, RESERVED].into_iter().filter(|name| late(name).is_some());
    let mut found: Vec<String> =
        found.map(|name| format!("`{name}` comes after the reconciliation")).collect();
    if after > unit.end_unix_ns && unit.end_unix_ns > 0 && late(RESERVED).is_some() {
        found.push("the reservation comes after the span's end".to_owned());
    }
    found
}

fn actual(unit: &Unit) -> Vec<String> {
    let missing = unit.attributes.get("genops.accounting.actual").is_none();
    fault(executed(unit) && missing, || "`genops.accounting.actual` is missing".to_owned())
}

fn reconciliation_event(unit: &Unit) -> Vec<String> {
    let count = unit.events(RECONCILED).count();
    fault(executed(unit) && count != 1, || format!("there are {count} events `{RECONCILED}`"))
}

fn reconciliation_agrees(unit: &Unit) -> Vec<String> {
    let names =
        ["genops.accounting.actual", "genops.accounting.reserved", "genops.accounting.unit"];
    let mut found = Vec::new();
    for event in unit.events.iter().filter(|it| it.name == RECONCILED || it.name == RESERVED) {
        for name in names {
            let (there, here) = (event.attributes.get(name), unit.attributes.get(name));
            if there.is_some() && here.is_some() && there != here {
                found.push(format!("`{name}` of the event `{}` is not the span's", event.name));
            }
        }
    }
    found
}

fn delta(unit: &Unit) -> Vec<String> {
    let all =
        std::iter::once(&unit.attributes).chain(unit.events(RECONCILED).map(|it| &it.attributes));
    let wrong = |it: &Attributes| {
        let delta = it.double("genops.accounting.reconciliation_delta")?;
        let actual = it.double("genops.accounting.actual")?;
        let reserved = it.double("genops.accounting.reserved")?;
        let due = actual - reserved;
        let close = (delta - due).abs() <= 1e-9 + 1e-9 * due.abs();
        (!close).then(|| format!("the delta is {delta}, actual - reserved {due}"))
    };
    all.filter_map(wrong).collect()
}

/// Checks that each unit is accounted in the unit of measure of the budget.
fn budget_unit(unit: &Unit) -> Vec<String> {
    let wrong = |it: &Attributes| {
        let (budget, said) = (it.text("genops.budget.unit")?, it.text("genops.accounting.unit")?);
        let name = it.text("genops.budget.name").unwrap_or_default();
        (budget != said).then(|| format!("accounted in {said}, by the budget `{name}` in {budget}"))
    };
    let mut found: Vec<String> = parts(unit).filter_map(wrong).collect();
    // The span and the span's events name the same unit for the same budget.
    let own = budget_and_unit(&unit.attributes);
    for event in &unit.events {
        let there = budget_and_unit(&event.attributes);
        if let Some(((name, here), (other, there))) = own.zip(there)
            && name == other
            && here != there
        {
            let event = &event.name;
            found.push(format!("the budget `{name}` is in {here}, and in {there} in `{event}`"));
        }
    }
    found
}

/// Checks that events name a budget of the span.
fn budget_agrees(unit: &Unit) -> Vec<String> {
    let Some(own) = unit.text("genops.budget.name") else { return Vec::new() };
    let others = unit.attributes.list("genops.budget.others");
    let mut found = Vec::new();
    if others.iter().any(|it| it == own) {
        found.push(format!("the budget `{own}` is among its own others"));
    }
    for event in &unit.events {
        let Some(named) = event.attributes.text("genops.budget.name") else { continue };
        let of_other = event.name == ALERT && others.iter().any(|it| it == named);
        if named != own && !of_other {
            found.push(format!("`{}` names the budget `{named}`, the span `{own}`", event.name));
        }
    }
    found
}

/// Checks that remaining, used and reserved amounts stay within the allocation, unless the budget
/// has run out.
fn budget_adds_up(unit: &Unit) -> Vec<String> {
    let wrong = |it: &Attributes| {
        let name = it.text("genops.budget.name")?;
        let allocated = it.double("genops.budget.allocated")?;
        let amount = |name| it.double(name).unwrap_or(0.0);
        let left = amount("genops.budget.remaining");
        let held = amount("genops.accounting.reserved").max(amount("genops.budget.reserved"));
        let used = amount("genops.budget.consumed").max(0.0) + left;
        let beyond = |it: f64| it > allocated + 1e-9 + 1e-9 * allocated.abs();
        let too_much = left > 0.0 && (beyond(used) || beyond(held)) || beyond(left);
        too_much.then(|| {
            format!("of the budget `{name}` there are {left} left beside what is used or held, of {allocated}")
        })
    };
    parts(unit).filter_map(wrong).collect()
}

/// Checks that an alert names the deciding budget, if a budget decided.
fn alert_of_cause(unit: &Unit) -> Vec<String> {
    let code = unit.text("genops.policy.reason_code").unwrap_or_default();
    let Some(cause) = unit.text("genops.policy.name") else { return Vec::new() };
    let named = unit.text("genops.budget.name") == Some(cause)
        || unit.attributes.list("genops.budget.others").iter().any(|it| it == cause);
    // With other codes, a policy may have decided.
    let by_budget = code == "x_budget_threshold"
        || named && matches!(code, "BUDGET_EXCEEDED" | "BUDGET_RESERVATION_FAILED");
    let alerts: Vec<&str> =
        unit.events(ALERT).filter_map(|it| it.attributes.text("genops.budget.name")).collect();
    fault(by_budget && !alerts.is_empty() && !alerts.contains(&cause), || {
        format!("the budget `{cause}` decided, and the alert is about `{}`", alerts.join("`, `"))
    })
}

/// Attribution of a unit (§2: never changes for a unit).
const ATTRIBUTION: [&str; 7] = [
    "genops.team",
    "genops.project",
    "genops.environment",
    "genops.cost_center",
    "genops.customer_id",
    "genops.feature",
    "genops.session_id",
];

fn attribution_agrees(unit: &Unit) -> Vec<String> {
    let mut found = Vec::new();
    for (event, name) in unit.events.iter().flat_map(|it| ATTRIBUTION.map(|name| (it, name))) {
        let (there, here) = (event.attributes.get(name), unit.attributes.get(name));
        if there.is_some() && there != here {
            found.push(format!("`{name}` of the event `{}` is not the span's", event.name));
        }
    }
    found
}

fn stopped_runs_not(unit: &Unit) -> Vec<String> {
    if executed(unit) || !stopped(unit) && result_of(unit).is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if unit.events(RECONCILED).next().is_some() {
        found.push(format!("it did not run, and has an event `{RECONCILED}`"));
    }
    if unit.attributes.get("genops.accounting.actual").is_some() {
        found.push("it did not run, and has `genops.accounting.actual`".to_owned());
    }
    found
}

const SLA: [&str; 4] = [
    "genops.sla.tier",
    "genops.sla.latency_target_ms",
    "genops.sla.actual_latency_ms",
    "genops.sla.met",
];

fn sla_complete(unit: &Unit) -> Vec<String> {
    let present = SLA.iter().filter(|name| unit.attributes.get(name).is_some()).count();
    fault(present != 0 && present != SLA.len(), || {
        format!("only {present} of the four `genops.sla.` attributes are there")
    })
}

fn sla_met(unit: &Unit) -> Vec<String> {
    let int = |name| unit.attributes.int(name);
    let target = int("genops.sla.latency_target_ms");
    let actual = int("genops.sla.actual_latency_ms");
    let Some((target, actual)) = target.zip(actual) else { return Vec::new() };
    let due = Value::Bool(actual <= target);
    let said = unit.attributes.get("genops.sla.met");
    fault(said.is_some_and(|it| *it != due), || {
        format!("`genops.sla.met` is wrong: {actual} ms of {target} ms")
    })
}

/// Types of the attributes with a fixed type (§7.1, §7.3, §6).
const TYPES: [(&str, &str); 41] = [
    ("genops.team", "string"),
    ("genops.project", "string"),
    ("genops.environment", "string"),
    ("genops.operation.name", "string"),
    ("genops.operation.type", "string"),
    ("genops.spec.version", "string"),
    ("genops.policy.result", "string"),
    ("genops.policy.reason_code", "string"),
    ("genops.policy.name", "string"),
    ("genops.policy.reason", "string"),
    ("genops.policy.timestamp", "int"),
    ("genops.accounting.reserved", "double"),
    ("genops.accounting.actual", "double"),
    ("genops.accounting.unit", "string"),
    ("genops.accounting.reconciliation_delta", "double"),
    ("genops.budget.name", "string"),
    ("genops.budget.period", "string"),
    ("genops.budget.allocated", "double"),
    ("genops.budget.consumed", "double"),
    ("genops.budget.remaining", "double"),
    ("genops.cost.total", "double"),
    ("genops.cost.currency", "string"),
    ("genops.cost.provider", "string"),
    ("genops.cost.model", "string"),
    ("genops.tokens.input", "int"),
    ("genops.tokens.output", "int"),
    ("genops.tokens.total", "int"),
    ("genops.eval.metric", "string"),
    ("genops.eval.score", "double"),
    ("genops.eval.threshold", "double"),
    ("genops.eval.passed", "bool"),
    ("genops.sla.tier", "string"),
    ("genops.sla.latency_target_ms", "int"),
    ("genops.sla.actual_latency_ms", "int"),
    ("genops.sla.met", "bool"),
    ("genops.cost_center", "string"),
    ("genops.customer_id", "string"),
    ("genops.feature", "string"),
    ("genops.session_id", "string"),
    ("genops.budget.unit", "string"),
    ("genops.budget.reserved", "double"),
];

fn types(unit: &Unit) -> Vec<String> {
    let events = unit.events.iter().map(|it| &it.attributes);
    let all = std::iter::once(&unit.attributes).chain(events).flat_map(Attributes::iter);
    let wrong = |(name, value): (&str, &Value)| {
        let (_, due) = TYPES.iter().find(|(it, _)| *it == name)?;
        let kind = value.kind();
        (kind != *due).then(|| format!("`{name}` is of type {kind}, not {due}"))
    };
    all.filter_map(wrong).collect()
}

fn evaluated_attributes(unit: &Unit) -> Vec<String> {
    let mut found = event_attributes(unit, EVALUATED, &["genops.policy.result"]);
    for event in unit.events(EVALUATED) {
        let allowed = event.attributes.text("genops.policy.result") == Some("ALLOWED");
        let code = event.attributes.text("genops.policy.reason_code");
        if allowed == code.is_some() {
            let there = if allowed { "has a" } else { "has no" };
            found.push(format!("the event {there} `genops.policy.reason_code`"));
        }
        if code != unit.text("genops.policy.reason_code") {
            found.push("the event's `genops.policy.reason_code` is not the span's".to_owned());
        }
    }
    found
}

fn event_attributes(unit: &Unit, name: &str, due: &[&str]) -> Vec<String> {
    let missing = |event: &Event| {
        let absent = due.iter().filter(|it| event.attributes.get(it).is_none());
        absent.map(|it| format!("the event `{name}` has no `{it}`")).collect::<Vec<_>>()
    };
    unit.events(name).flat_map(missing).collect()
}

fn currency(unit: &Unit) -> Vec<String> {
    let fits = |it: &str| it.len() == 3 && it.bytes().all(|byte| byte.is_ascii_uppercase());
    let said = unit.text("genops.cost.currency");
    let cost = unit.attributes.get("genops.cost.total").is_some();
    match said {
        Some(text) => fault(!fits(text), || format!("`{text}` is no currency of ISO 4217")),
        None => fault(cost, || "`genops.cost.total` without `genops.cost.currency`".to_owned()),
    }
}

/// Checks that a unit without a hold claims no reservation before the execution.
fn honest(unit: &Unit) -> Vec<String> {
    let observed = unit.text("genops.enforcement.mechanism") == Some("none")
        || unit.attributes.is_true("genops.enforcement.timed_out");
    let partial = unit.text("genops.compliance") == Some("partial");
    let mut found = fault(observed && !partial, || {
        "it was only observed, and does not say `partial`".to_owned()
    });
    let said = unit.text("genops.compliance").unwrap_or("full");
    if !matches!(said, "full" | "partial") {
        found.push(format!("`genops.compliance` is `{said}`, neither `full` nor `partial`"));
    }
    if unit.text("genops.enforcement.mechanism") == Some("none") && stopped(unit) {
        found.push("it was only observed, and says that it was stopped".to_owned());
    }
    found
}
