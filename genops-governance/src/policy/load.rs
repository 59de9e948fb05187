//! Loading of policies: the short form and Cedar files, parsed, validated strictly and linted.
//!
//! Every fault is a sentence with file, line and column; a configuration with a fault is refused as
//! a whole.

use std::collections::HashMap;
use std::fmt;

use cedar_policy::{
    Effect, Policy, PolicyId, PolicySet, PrincipalConstraint, ResourceConstraint, Schema,
    ValidationMode, Validator,
};
use miette::Diagnostic;
use regex::{RegexSet, RegexSetBuilder};
use serde_json::{Value, json};

use super::attributes::Attributes;
use super::{Meta, SCHEMA, Severity};
use crate::config::{PolicyConfig, Sections, Signal};
use crate::decision::ReasonCode;
use crate::settings::Faults;

/// Maximum memory for the compiled content expressions of a policy, in bytes.
const CONTENT_BYTES: usize = 1 << 20;

/// Returns the content expressions of each policy with expressions over text.
pub(super) fn content_rules(
    sections: &Sections,
    faults: &mut Faults,
) -> Vec<(PolicyConfig, RegexSet)> {
    let mut rules = Vec::new();
    for (index, policy) in sections.policies.iter().enumerate() {
        if policy.denied_content.is_empty() {
            continue;
        }
        let built = RegexSetBuilder::new(&policy.denied_content)
            .size_limit(CONTENT_BYTES)
            .dfa_size_limit(CONTENT_BYTES / 4)
            .build();
        match built {
            Ok(set) => rules.push((policy.clone(), set)),
            Err(error) => {
                let place = Faults::entry("policies", index, &policy.name);
                let why = error.to_string().replace('\n', " ");
                faults.add(&place, "denied_content", &format!("can't be compiled: {why}"));
            }
        }
    }
    rules
}

/// Number of policies validated together; bounds the memory of a load.
const CHUNK: usize = 64;

/// Parsed, validated and linted policy, kept as text: a parsed policy takes a hundred times as much
/// memory, and few policies concern a principal running on the host.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) id: PolicyId,
    pub(super) text: String,
    pub(super) concerns: PrincipalConstraint,
    pub(super) looks_at: Attributes,
}

impl Stored {
    /// Parses the policy again for principals concerned by the policy. The principal and the action
    /// are not checked at each decision: the caller has matched the principal, and there is a
    /// single action.
    pub(super) fn parse(&self) -> Policy {
        let whole = Policy::parse(Some(self.id.clone()), &self.text).expect("it was parsed before");
        let Ok(Value::Object(mut json)) = whole.to_json() else { return whole };
        for scope in ["principal", "action"] {
            json.insert(scope.to_owned(), json!({"op": "All"}));
        }
        Policy::from_json(Some(self.id.clone()), json.into()).unwrap_or(whole)
    }
}

/// Reads, validates and lints Cedar.
pub(super) struct Loader {
    validator: Validator,
    pub(super) policies: Vec<Stored>,
    pub(super) metas: HashMap<PolicyId, Meta>,
    /// Name and text of everything read.
    pub(super) texts: Vec<(String, String)>,
    places: HashMap<PolicyId, Place>,
}

/// Place of a policy.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Index of the text.
    index: usize,
    /// Line of the policy's start.
    line: usize,
    /// Start of the statement, in bytes.
    start: usize,
}

impl Loader {
    pub(super) fn new() -> Self {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("the schema is a constant");
        Self {
            validator: Validator::new(schema),
            policies: Vec::new(),
            metas: HashMap::new(),
            texts: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Reads a text statement by statement, so the size of the text does not matter.
    pub(super) fn read(&mut self, name: &str, text: &str, faults: &mut Faults) {
        let index = self.texts.len();
        self.texts.push((name.to_owned(), text.to_owned()));
        let mut chunk = Vec::new();
        let mut start = 0;
        for statement in statements(text) {
            let set: PolicySet = match statement.parse() {
                Ok(set) => set,
                Err(errors) => {
                    let errors: cedar_policy::ParseErrors = errors;
                    for error in errors.iter() {
                        let place = position(name, text, start, error);
                        faults.0.push(format!("{place}: {error}"));
                    }
                    return;
                }
            };
            for template in set.templates() {
                let line = line_at(text, start, statement, &template.to_string());
                let why = "templates (`?principal`) have nothing to link them";
                faults.0.push(format!("{name}:{line}: {why}"));
            }
            for policy in set.policies() {
                let line = line_at(text, start, statement, &policy.to_string());
                chunk.extend(self.take(policy, index, (line, start), faults));
            }
            if chunk.len() >= CHUNK {
                self.validate(std::mem::take(&mut chunk), faults);
            }
            start += statement.len();
        }
        self.validate(chunk, faults);
    }

    /// Lints a policy and sets the policy's id from `@id`.
    fn take(
        &mut self,
        policy: &Policy,
        index: usize,
        (line, start): (usize, usize),
        faults: &mut Faults,
    ) -> Option<Policy> {
        let name = self.texts.get(index).map(|(name, _)| name.clone()).unwrap_or_default();
        let place = format!("{name}:{line}");
        let Some(id) = policy.annotation("id").filter(|it| !it.is_empty()) else {
            faults.0.push(format!("{place}: the policy has no `@id(\"..\")`"));
            return None;
        };
        let id = PolicyId::new(id);
        if self.places.contains_key(&id) {
            faults.0.push(format!("{place}: `@id(\"{id}\")` is used by a policy before it"));
            return None;
        }
        let looks_at = Attributes::of(policy);
        match meta(policy, looks_at) {
            Ok(Some(meta)) => {
                self.metas.insert(id.clone(), meta);
            }
            Ok(None) => {}
            Err(why) => {
                faults.0.push(format!("{place}: policy `{id}`: {why}"));
            }
        }
        self.places.insert(id.clone(), Place { index, line, start });
        let (text, concerns) = (policy.to_string(), policy.principal_constraint());
        self.policies.push(Stored { id: id.clone(), text, concerns, looks_at });
        Some(policy.new_id(id))
    }

    /// Validates strictly; a warning counts as a fault.
    fn validate(&self, chunk: Vec<Policy>, faults: &mut Faults) {
        if chunk.is_empty() {
            return;
        }
        let set = PolicySet::from_policies(chunk).expect("names are unique, none is a template");
        let result = self.validator.validate(&set, ValidationMode::Strict);
        for error in result.validation_errors() {
            faults.0.push(self.located(error.policy_id(), error));
        }
        for warning in result.validation_warnings() {
            faults.0.push(self.located(warning.policy_id(), warning));
        }
    }

    fn located(&self, id: &PolicyId, error: &(impl Diagnostic + fmt::Display)) -> String {
        let Some(Place { index, line, start }) = self.places.get(id).copied() else {
            return error.to_string();
        };
        let Some((name, text)) = self.texts.get(index) else { return error.to_string() };
        let exact = error.labels().and_then(|mut it| it.next());
        let place = match exact {
            Some(_) => position(name, text, start, error),
            None => format!("{name}:{line}"),
        };
        format!("{place}: {error}")
    }
}

/// Splits a text into statements, each with the `;` and the preceding text; together the whole
/// text. A `;` in a string or a comment ends nothing.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut comment, mut before) = (false, false, '\0');
    text.split_inclusive(move |char| {
        let escaped = before == '\\';
        match char {
            '\n' => comment = false,
            _ if comment => {}
            '"' if !escaped => quoted = !quoted,
            '/' if !quoted && before == '/' => comment = true,
            _ => {}
        }
        // An escaped backslash escapes nothing.
        before = if char == '\\' && escaped { '\0' } else { char };
        char == ';' && !quoted && !comment
    })
}

/// Returns the line of a policy's start in a statement; annotations come first in the policy's
/// text.
fn line_at(text: &str, start: usize, statement: &str, policy: &str) -> usize {
    let at = start + statement.find(policy.trim()).unwrap_or(0);
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}

/// Returns `FILE:LINE:COLUMN` of an error in a text, as far as known.
fn position(name: &str, text: &str, start: usize, error: &impl Diagnostic) -> String {
    let Some(label) = error.labels().and_then(|mut it| it.next()) else { return name.to_owned() };
    let before = text.get(..start + label.offset()).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{name}:{line}:{column}")
}

/// Lints the annotations of a policy. Returns `None` for a permit.
fn meta(policy: &Policy, looks_at: Attributes) -> Result<Option<Meta>, String> {
    let code = policy.annotation("reason_code");
    let result = policy.annotation("genops_result");
    let signal = policy.annotation("genops_signal");
    if policy.effect() == Effect::Permit {
        if looks_at.are_said() {
            let why = "a permit can't look at `customer_id`, `feature` or `session_id`: they may be \
                       the word of the client, which grants nothing";
            return Err(why.to_owned());
        }
        return match code.or(result).or(signal) {
            None => Ok(None),
            Some(_) => {
                Err("a permit has no `@reason_code`, `@genops_result` or `@genops_signal`"
                    .to_owned())
            }
        };
    }
    let code = code.ok_or("a forbid needs `@reason_code(\"..\")`")?;
    let code = ReasonCode::parse(code)
        .ok_or_else(|| format!("`{code}` is no reason code of the specification, nor `x_..`"))?;
    let severity = match result {
        None | Some("BLOCKED") => Severity::Block,
        Some("RATE_LIMITED") => Severity::LimitRate,
        Some("WARNING") => Severity::Warn,
        Some(other) => return Err(format!("`@genops_result(\"{other}\")` is none of the four")),
    };
    let extension = matches!(code, ReasonCode::Extension(_));
    let of_rate = code == ReasonCode::RateLimited;
    if of_rate && severity == Severity::Block
        || severity == Severity::LimitRate && !of_rate && !extension
    {
        return Err(format!("result and reason code `{code}` don't go together"));
    }
    let signal = signal.map(|text| signal_named(text, severity)).transpose()?;
    let priority = match policy.annotation("priority") {
        None => 0,
        Some(text) => text.parse().map_err(|_| format!("`@priority(\"{text}\")` is no integer"))?,
    };
    let reason = policy.annotation("reason").map(str::to_owned);
    Ok(Some(Meta { severity, code, priority, reason, of_host: of_host(policy, looks_at), signal }))
}

fn signal_named(text: &str, severity: Severity) -> Result<Signal, String> {
    if severity == Severity::Warn {
        return Err("`@genops_signal` goes with a refusal only: a warning ends nothing".to_owned());
    }
    let found = Signal::ALL.into_iter().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`@genops_signal(\"{text}\")` is none of TERM, KILL"))
}

/// Returns true if a policy depends on the host only: on no model, content, size or price.
fn of_host(policy: &Policy, looks_at: Attributes) -> bool {
    let any_model = match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => true,
        ResourceConstraint::In(it) | ResourceConstraint::IsIn(_, it) => {
            it.type_name().basename() == "Provider"
        }
        ResourceConstraint::Eq(_) => false,
    };
    any_model && looks_at.are_of_host()
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::{Attributes, of_host, statements};

    #[test]
    fn a_policy_is_of_the_host_if_it_looks_at_nothing_else() {
        let check = |resource: &str, condition: &str| {
            let text = format!("forbid (principal, action, {resource}) {condition};");
            let policy = Policy::parse(None, text).expect("Cedar");
            of_host(&policy, Attributes::of(&policy))
        };
        assert!(check("resource", "unless { context.provider like \"openai\" }"));
        assert!(check("resource", "when { !context.inspectable }"));
        assert!(check("resource in GenOps::Provider::\"openai\"", ""));
        assert!(!check("resource", "when { context.model like \"*-pro\" }"));
        assert!(!check("resource", "when { context.provider == \"x\" && context.stream }"));
        assert!(!check("resource", "when { resource in GenOps::Tier::\"frontier\" }"));
        assert!(!check("resource in GenOps::Tier::\"frontier\"", ""));
        assert!(!check("resource == GenOps::Model::\"openai/o1\"", ""));
    }

    #[test]
    fn a_semicolon_ends_a_statement_unless_quoted_or_in_a_comment() {
        let text = "@a(\"x;\\\";\") permit; // no; end\nforbid \"\\\\\"; \"/\" / / ; // x";
        let parts: Vec<&str> = statements(text).collect();
        assert_eq!(parts.concat(), text);
        let ends = ["permit;", "\"\\\\\";", "/ / ;", "// x"];
        assert_eq!(parts.len(), ends.len(), "{parts:?}");
        assert!(parts.iter().zip(ends).all(|(part, end)| part.ends_with(end)), "{parts:?}");
    }
}
