//! Compilation of the short form of policies to Cedar.
//!
//! An allow-list does not cover an unknown model or region. Every rule about models, content or
//! cost refuses a request not read whole, or readable in two ways, whatever the part read so far:
//! the rest could ask for anything.

use std::fmt::Write as _;

use crate::config::{Enforcement, PolicyConfig, Sections, Signal, TierConfig};
use crate::decision::ReasonCode;
use crate::money::from_usd;
use crate::settings::{Faults, check_providers};

/// Cedar policy as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) id: String,
    pub(super) cedar: String,
}

/// Compiles the whole short form, in the order of the file.
pub(super) fn compile(sections: &Sections, faults: &mut Faults) -> Vec<Text> {
    let mut texts = Vec::new();
    for (index, policy) in sections.policies.iter().enumerate() {
        let place = Faults::entry("policies", index, &policy.name);
        let before = |count: usize| {
            sections.policies.iter().take(count).any(|other| other.name == policy.name)
        };
        faults.name_is_new(&place, &policy.name, before, index);
        if let Some(name) = &policy.principal
            && !sections.principals.iter().any(|it| it.name == *name)
        {
            faults.add(&place, "principal", &format!("names `{name}`, and there is none"));
        }
        let allowed = policy.allowed_providers.as_deref().unwrap_or_default();
        check_providers(sections, &place, "allowed_providers", allowed, faults);
        check_providers(sections, &place, "denied_providers", &policy.denied_providers, faults);
        let count = texts.len();
        policy_texts(policy, &place, faults, &mut texts);
        if texts.len() == count {
            faults.add(&place, "allowed_models", "or another rule is missing: it forbids nothing");
        }
    }
    texts
}

/// Returns the principal constraint of a policy.
fn bound(policy: &PolicyConfig) -> String {
    match (&policy.principal, &policy.team) {
        (Some(name), None) => format!("principal in GenOps::Workload::{}", quoted(name)),
        (None, Some(team)) => format!("principal in GenOps::Team::{}", quoted(team)),
        _ => "principal".to_owned(),
    }
}

/// `forbid` policy in the making.
struct Rule<'a> {
    /// `policy.key`.
    id: String,
    who: &'a str,
    code: &'a ReasonCode,
    reason: String,
    warn: bool,
    signal: Option<Signal>,
    /// `when { .. }` or `unless { .. }`.
    condition: String,
}

impl Rule<'_> {
    fn text(self) -> Text {
        let Self { id, who, code, reason, warn, signal, condition } = self;
        let mut cedar = String::new();
        // Writing to a String can't fail.
        let _infallible = write!(cedar, "@id({})\n@reason_code(\"{code}\")\n", quoted(&id));
        if warn {
            cedar.push_str("@genops_result(\"WARNING\")\n");
        }
        if let Some(signal) = signal {
            let _infallible = writeln!(cedar, "@genops_signal(\"{}\")", signal.as_str());
        }
        let reason = quoted(&reason);
        let _infallible = write!(
            cedar,
            "@reason({reason})\nforbid ({who}, action == GenOps::Action::\"invoke\", resource)\n{condition};\n"
        );
        Text { id, cedar }
    }
}

fn policy_texts(policy: &PolicyConfig, place: &str, faults: &mut Faults, out: &mut Vec<Text>) {
    let PolicyConfig {
        name,
        principal,
        team,
        allowed_providers,
        denied_providers,
        allowed_models,
        denied_models,
        allowed_regions,
        denied_regions,
        denied_content,
        max_cost,
        approval_above,
        enforcement,
        signal,
    } = policy;
    if principal.is_some() && team.is_some() {
        faults.add(place, "team", "and `principal` are both given: a policy binds one of them");
    }
    let who = bound(policy);
    let warn = *enforcement == Enforcement::Warn;
    let signal = signal.filter(|_| !warn);
    if warn && policy.signal.is_some() {
        faults.add(place, "signal", "goes with `enforcement: block` only: a warning ends nothing");
    }
    let mut rule = |key: &str, code: &ReasonCode, reason: String, condition: String| {
        let id = format!("{name}.{key}");
        out.push(Rule { id, who: &who, code, reason, warn, signal, condition }.text());
    };
    if let Some(list) = allowed_providers {
        let reason = format!("only these providers are allowed: {}", list.join(", "));
        rule(
            "allowed_providers",
            &ReasonCode::PolicyDenyModel,
            reason,
            unless(&any("provider", list)),
        );
    }
    if !denied_providers.is_empty() {
        let reason = format!("these providers are denied: {}", denied_providers.join(", "));
        let condition = when(&any("provider", denied_providers));
        rule("denied_providers", &ReasonCode::PolicyDenyModel, reason, condition);
    }
    if let Some(list) = allowed_models {
        let reason = format!("only these models are allowed: {}", list.join(", "));
        let condition = unless(&and_readable("model", list));
        rule("allowed_models", &ReasonCode::PolicyDenyModel, reason, condition);
    }
    if !denied_models.is_empty() {
        let reason = format!("these models are denied: {}", denied_models.join(", "));
        let condition = when(&or_unreadable("model", denied_models));
        rule("denied_models", &ReasonCode::PolicyDenyModel, reason, condition);
    }
    if let Some(list) = allowed_regions {
        let reason = format!("only these regions are allowed: {}", list.join(", "));
        rule(
            "allowed_regions",
            &ReasonCode::PolicyDenyRegion,
            reason,
            unless(&any("region", list)),
        );
    }
    if !denied_regions.is_empty() {
        let reason = format!("these regions are denied: {}", denied_regions.join(", "));
        let condition = when(&any("region", denied_regions));
        rule("denied_regions", &ReasonCode::PolicyDenyRegion, reason, condition);
    }
    if !denied_content.is_empty() {
        let reason = "the text sent to the model matches denied content".to_owned();
        let rule_name = quoted(&content_rule(name));
        let condition =
            when(&format!("context.content.contains({rule_name}) || !context.readable"));
        rule("denied_content", &ReasonCode::PolicyDenyContent, reason, condition);
    }
    let mut above = |key: &str, usd: f64| {
        from_usd(usd).map_err(|why| faults.add(place, key, &why)).unwrap_or_default()
    };
    if let Some(usd) = max_cost {
        let nano = above("max_cost", *usd);
        let reason = format!("one request may cost at most {usd} USD");
        let condition = when(&above_or_unreadable(nano));
        rule("max_cost", &ReasonCode::BudgetExceeded, reason, condition);
    }
    if let Some(usd) = approval_above {
        let nano = above("approval_above", *usd);
        let reason = format!("a human must approve a request that may cost more than {usd} USD");
        let condition =
            format!("{}\nunless {{ context.approved }}", when(&above_or_unreadable(nano)));
        rule("approval_above", &ReasonCode::APPROVAL_REQUIRED, reason, condition);
    }
}

/// Returns the name of a policy's content rule, as in `context.content`.
pub(super) fn content_rule(policy: &str) -> String {
    format!("{policy}.denied_content")
}

/// Returns the names of a model's tiers.
pub(super) fn tiers_of<'a>(
    tiers: &'a [TierConfig],
    model: &'a str,
) -> impl Iterator<Item = &'a str> {
    let fits = |tier: &&TierConfig| {
        tier.models.iter().any(|it| crate::glob::matches(&it.to_lowercase(), model))
    };
    tiers.iter().filter(fits).map(|tier| tier.name.as_str())
}

fn when(condition: &str) -> String {
    format!("when {{ {condition} }}")
}

fn unless(condition: &str) -> String {
    format!("unless {{ {condition} }}")
}

/// Returns a condition: the attribute is like any of the patterns; `false` without patterns.
fn any(attribute: &str, patterns: &[String]) -> String {
    let like = |it: &String| {
        let it = if attribute == "region" { it.clone() } else { it.to_lowercase() };
        format!("context.{attribute} like {}", quoted(&it))
    };
    let all: Vec<String> = patterns.iter().map(like).collect();
    if all.is_empty() { "false".to_owned() } else { all.join(" || ") }
}

fn or_unreadable(attribute: &str, patterns: &[String]) -> String {
    let any = any(attribute, patterns);
    format!("{any} || !context.readable")
}

/// Returns the condition of an allow-list, limited to requests read whole: the unread rest could
/// ask for anything.
fn and_readable(attribute: &str, patterns: &[String]) -> String {
    format!("context.readable && ({})", any(attribute, patterns))
}

/// Returns the condition of a cost limit; a request not read whole may cost anything.
fn above_or_unreadable(nano: i64) -> String {
    format!("context.est_nano_usd > {nano} || !context.readable")
}

/// Returns a Cedar string. In a pattern, `*` stays a wildcard.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => {
                let _infallible = write!(quoted, "\\u{{{:x}}}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
