//! Request attributes available to policies: the Cedar context, attribute by attribute as in the
//! schema.
//!
//! To add an attribute: a line in [`ATTRIBUTES`] and a line in the schema.

use cedar_policy::{Policy, RestrictedExpression};
use serde_json::Value;

use super::{AMOUNT_LIMIT, Facts};
use crate::config::Dimension;

/// Attribute of the context.
struct Attribute {
    name: &'static str,
    /// Known of a connection before any request is read.
    of_host: bool,
    value: fn(&Facts<'_>) -> RestrictedExpression,
}

const fn of_call(name: &'static str, value: fn(&Facts<'_>) -> RestrictedExpression) -> Attribute {
    Attribute { name, of_host: false, value }
}

const fn of_host(name: &'static str, value: fn(&Facts<'_>) -> RestrictedExpression) -> Attribute {
    Attribute { of_host: true, ..of_call(name, value) }
}

/// Every attribute.
const ATTRIBUTES: [Attribute; 22] = [
    of_host("provider", |it| text(it.provider)),
    of_call("model", |it| text(it.model)),
    of_call("operation", |it| text(it.operation)),
    of_host("region", |it| text(it.region)),
    of_host("server", |it| text(it.server)),
    of_host("environment", |it| text(it.environment)),
    of_call("customer_id", |it| text(it.customer_id)),
    of_call("feature", |it| text(it.feature)),
    of_call("session_id", |it| text(it.session_id)),
    of_call("est_nano_usd", |it| amount(it.est_nano_usd.unwrap_or(AMOUNT_LIMIT).unsigned_abs())),
    of_call("est_tokens", |it| amount(it.est_tokens)),
    of_call("max_output_tokens", |it| amount(it.max_output_tokens)),
    of_call("request_bytes", |it| amount(it.request_bytes)),
    of_call("p95_latency_ms", |it| amount(it.p95_latency_ms)),
    of_call("stream", |it| flag(it.stream)),
    of_call("readable", |it| flag(it.readable)),
    of_host("inspectable", |it| flag(it.inspectable)),
    of_call("approved", |it| flag(it.approved)),
    of_host("mapped", |it| flag(it.mapped)),
    of_call("content", |it| RestrictedExpression::new_set(it.content.iter().map(|it| text(it)))),
    of_host("hour_utc", |it| amount(it.unix_s % 86_400 / 3_600)),
    of_host("weekday_utc", |it| amount(weekday(it.unix_s))),
];

fn text(it: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(it.to_owned())
}

fn amount(it: u64) -> RestrictedExpression {
    let bounded = i64::try_from(it).unwrap_or(AMOUNT_LIMIT).min(AMOUNT_LIMIT);
    RestrictedExpression::new_long(bounded)
}

fn flag(it: bool) -> RestrictedExpression {
    RestrictedExpression::new_bool(it)
}

/// Returns the day of the week: 1 is Monday. 1970-01-01 was a Thursday.
fn weekday(unix_s: u64) -> u64 {
    (unix_s / 86_400 + 3) % 7 + 1
}

/// Bit of the resource, the model: no attribute, but known only from the request.
const RESOURCE: u32 = 1 << 31;

/// Set of attributes, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(u32);

impl Attributes {
    /// All attributes.
    pub(super) const ALL: Self = Self(((1 << ATTRIBUTES.len()) - 1) | RESOURCE);

    /// Returns the attributes mentioned by a policy; all, if the policy uses the context as a whole
    /// or has no JSON.
    pub(super) fn of(policy: &Policy) -> Self {
        let json = policy.to_json().ok();
        json.as_ref().and_then(|it| it.get("conditions")).map_or(Self::ALL, Self::mentioned)
    }

    /// Returns the attributes mentioned in Cedar's JSON: a variable is `{"Var": "context"}`, an
    /// attribute `{".": {"left": .., "attr": ..}}`; `has` likewise.
    fn mentioned(json: &Value) -> Self {
        match json {
            Value::Object(fields) => {
                let access = fields.get(".").or_else(|| fields.get("has"));
                let of_context = |it: &&Value| {
                    it.pointer("/left/Var").and_then(Value::as_str) == Some("context")
                };
                if let Some(access) = access.filter(of_context) {
                    let name = access.get("attr").and_then(Value::as_str);
                    return name.map_or(Self::ALL, Self::named);
                }
                match fields.get("Var").and_then(Value::as_str) {
                    Some("context") => return Self::ALL,
                    Some("resource") => return Self(RESOURCE),
                    _ => {}
                }
                fields.values().map(Self::mentioned).fold(Self::default(), Self::and)
            }
            Value::Array(items) => {
                items.iter().map(Self::mentioned).fold(Self::default(), Self::and)
            }
            _ => Self::default(),
        }
    }

    /// Returns an empty set if the schema has no attribute of the name: a policy mentioning the
    /// name was refused.
    fn named(name: &str) -> Self {
        let index = ATTRIBUTES.iter().position(|it| it.name == name);
        index.map_or(Self::default(), |it| Self(1 << it))
    }

    /// Returns the union of both sets.
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns true if a customer, feature or session named by the request is among the attributes.
    pub(super) fn are_said(self) -> bool {
        let said = Dimension::ALL.map(Dimension::as_str);
        self != Self::ALL && self.chosen().any(|it| said.contains(&it.name))
    }

    /// Returns true if all attributes are known before any request is read.
    pub(super) fn are_of_host(self) -> bool {
        self.0 & RESOURCE == 0 && self.chosen().all(|it| it.of_host)
    }

    /// Returns the mentioned part of a request's context.
    pub(super) fn pairs(self, facts: &Facts<'_>) -> Vec<(String, RestrictedExpression)> {
        self.chosen().map(|it| (it.name.to_owned(), (it.value)(facts))).collect()
    }

    fn chosen(self) -> impl Iterator<Item = &'static Attribute> {
        let is_chosen = move |index: usize| self.0 & 1 << index != 0;
        ATTRIBUTES.iter().enumerate().filter(move |(index, _)| is_chosen(*index)).map(|(_, it)| it)
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::{Attributes, weekday};

    /// 2026-11-22 is a Sunday.
    #[test]
    fn weekdays_count_from_monday() {
        assert_eq!([1_795_341_600, 1_795_341_600 + 86_400].map(weekday), [7, 1]);
    }

    #[test]
    fn a_policy_is_given_what_it_looks_at() {
        let of = |condition: &str| {
            let text = format!("forbid (principal, action, resource) {condition};");
            let attributes = Attributes::of(&Policy::parse(None, text).expect("Cedar"));
            attributes.chosen().map(|it| it.name).collect::<Vec<_>>()
        };
        assert_eq!(of(""), [""; 0]);
        assert_eq!(of("when { context.model like \"o9*\" }"), ["model"]);
        let two = "when { [context.region].contains(\"us\") } unless { context has stream }";
        assert_eq!(of(two), ["region", "stream"]);
        assert_eq!(of("when { context == {} }").len(), 22);
    }
}
