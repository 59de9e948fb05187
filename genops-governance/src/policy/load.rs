//! Loading policies: the short form and Cedar files, parsed, validated strictly and linted.
//!
//! Every fault is a sentence with file, line and column; nothing is taken in half.

use std::collections::HashMap;
use std::fmt;

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic;
use regex::{RegexSet, RegexSetBuilder};

use super::{Meta, SCHEMA, Severity};
use crate::config::{PolicyConfig, Sections};
use crate::decision::ReasonCode;
use crate::settings::Faults;

/// Bytes that one policy's content expressions may take, compiled.
const CONTENT_BYTES: usize = 1 << 20;

/// The expressions over text, of those policies that have some.
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

/// Reads, validates and lints Cedar.
#[derive(Default)]
pub(super) struct Loader {
    pub(super) policies: Vec<Policy>,
    pub(super) metas: HashMap<PolicyId, Meta>,
    /// Name and text of everything read.
    pub(super) texts: Vec<(String, String)>,
    /// In which text each policy is, and on which line it begins.
    places: HashMap<PolicyId, (usize, usize)>,
}

impl Loader {
    pub(super) fn read(&mut self, name: &str, text: &str, faults: &mut Faults) {
        let set: PolicySet = match text.parse() {
            Ok(set) => set,
            Err(errors) => {
                let errors: cedar_policy::ParseErrors = errors;
                for error in errors.iter() {
                    let place = position(name, text, error);
                    faults.0.push(format!("{place}: {error}"));
                }
                return;
            }
        };
        let index = self.texts.len();
        self.texts.push((name.to_owned(), text.to_owned()));
        if set.templates().next().is_some() {
            faults.0.push(format!("{name}: templates (`?principal`) have nothing to link them"));
        }
        // Parsing numbers the policies in the order of the file.
        let mut found: Vec<&Policy> = set.policies().collect();
        found.sort_by_key(|it| it.id().to_string().get(6..).and_then(|it| it.parse::<u64>().ok()));
        let mut from = 0;
        for policy in found {
            let line = line_of(policy, text, &mut from);
            self.take(policy, index, line, faults);
        }
    }

    fn take(&mut self, policy: &Policy, index: usize, line: usize, faults: &mut Faults) {
        let name = self.texts.get(index).map(|(name, _)| name.clone()).unwrap_or_default();
        let place = format!("{name}:{line}");
        let Some(id) = policy.annotation("id").filter(|it| !it.is_empty()) else {
            faults.0.push(format!("{place}: the policy has no `@id(\"..\")`"));
            return;
        };
        let id = PolicyId::new(id);
        if self.places.contains_key(&id) {
            faults.0.push(format!("{place}: `@id(\"{id}\")` is used by a policy before it"));
            return;
        }
        match meta(policy) {
            Ok(Some(meta)) => {
                self.metas.insert(id.clone(), meta);
            }
            Ok(None) => {}
            Err(why) => {
                faults.0.push(format!("{place}: policy `{id}`: {why}"));
            }
        }
        self.places.insert(id.clone(), (index, line));
        self.policies.push(policy.new_id(id));
    }

    /// Strict validation of everything together; warnings count.
    pub(super) fn validate(&self, faults: &mut Faults) {
        if self.policies.is_empty() {
            return;
        }
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("the schema is a constant");
        let set = PolicySet::from_policies(self.policies.iter().cloned())
            .expect("names are unique, and none is a template");
        let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
        for error in result.validation_errors() {
            faults.0.push(self.located(error.policy_id(), error));
        }
        for warning in result.validation_warnings() {
            faults.0.push(self.located(warning.policy_id(), warning));
        }
    }

    fn located(&self, id: &PolicyId, error: &(impl Diagnostic + fmt::Display)) -> String {
        let Some((index, line)) = self.places.get(id) else { return error.to_string() };
        let Some((name, text)) = self.texts.get(*index) else { return error.to_string() };
        let exact = error.labels().and_then(|mut it| it.next());
        let place = match exact {
            Some(_) => position(name, text, error),
            None => format!("{name}:{line}"),
        };
        format!("{place}: {error}")
    }
}

/// The line that a policy begins on: its annotations come first in its text.
fn line_of(policy: &Policy, text: &str, from: &mut usize) -> usize {
    let own = policy.to_string();
    let rest = text.get(*from..).unwrap_or_default();
    let at = rest.find(own.trim()).unwrap_or(0);
    let start = *from + at;
    *from = start + own.trim().len().min(rest.len() - at);
    text.get(..start).unwrap_or_default().matches('\n').count() + 1
}

/// `FILE:LINE:COLUMN` of an error in a text, as far as it says.
fn position(name: &str, text: &str, error: &impl Diagnostic) -> String {
    let Some(label) = error.labels().and_then(|mut it| it.next()) else { return name.to_owned() };
    let before = text.get(..label.offset()).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{name}:{line}:{column}")
}

/// Lints the annotations. `None` for a permit.
fn meta(policy: &Policy) -> Result<Option<Meta>, String> {
    let code = policy.annotation("reason_code");
    let result = policy.annotation("genops_result");
    if policy.effect() == Effect::Permit {
        return match code.or(result) {
            None => Ok(None),
            Some(_) => Err("a permit has no `@reason_code` and no `@genops_result`".to_owned()),
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
    let priority = match policy.annotation("priority") {
        None => 0,
        Some(text) => text.parse().map_err(|_| format!("`@priority(\"{text}\")` is no integer"))?,
    };
    let reason = policy.annotation("reason").map(str::to_owned);
    Ok(Some(Meta { severity, code, priority, reason }))
}
