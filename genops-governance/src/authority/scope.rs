//! Scope of a grant: lists and a ceiling, each a rule for requests.
//!
//! A request is outside of a grant if any rule fails; a grant without rules covers everything. The
//! rules are evaluated directly, because every link of a chain is evaluated for every request;
//! [`cedar`](Scope::cedar) returns the same rules in Cedar.

use std::collections::BTreeSet;

use genops_protocols::Call;

use super::endpoint::Endpoint;
use crate::config::{GrantConfig, ScopeConfig, Sections};
use crate::glob;
use crate::money::from_usd;
use crate::policy::{AMOUNT_LIMIT, Facts};
use crate::settings::{Faults, check_providers};

/// Subject and allowed values of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Providers(Vec<String>),
    Models(Vec<String>),
    Regions(Vec<String>),
    Operations(Vec<String>),
    Endpoints(Vec<Endpoint>),
    /// In nano-USD.
    MaxCost(i64),
}

/// Rule of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    wanted: Wanted,
    /// `grant:NAME.KEY`.
    pub(crate) id: String,
    /// Values covered, in words.
    pub(crate) reason: String,
}

/// Rules of a grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope(Vec<Rule>);

impl Scope {
    /// Compiles a grant's scope. `known`: provider names already found valid.
    pub(crate) fn compile(
        grant: &GrantConfig,
        sections: &Sections,
        known: &mut BTreeSet<String>,
        place: &str,
        faults: &mut Faults,
    ) -> Self {
        let ScopeConfig { providers, models, regions, operations, endpoints, max_cost } =
            &grant.scope;
        let places = endpoints.as_ref().map(|list| {
            let read = list.iter().map(|it| Endpoint::parse(it));
            let found = read
                .filter_map(|it| it.map_err(|why| faults.add(place, "scope.endpoints", &why)).ok());
            Wanted::Endpoints(found.collect())
        });
        let named = providers.iter().flatten().filter(|it| !known.contains(*it));
        let named: Vec<String> = named.cloned().collect();
        if !named.is_empty() {
            check_providers(sections, place, "scope.providers", &named, faults);
            known.extend(named);
        }
        let lists = [
            ("providers", providers.clone().map(|it| Wanted::Providers(lower(it)))),
            ("models", models.clone().map(|it| Wanted::Models(lower(it)))),
            ("regions", regions.clone().map(Wanted::Regions)),
            ("operations", operations.clone().map(Wanted::Operations)),
            ("endpoints", places),
        ];
        let mut rules = Vec::new();
        let mut rule = |key: &str, wanted: Wanted, reason: String| {
            rules.push(Rule { wanted, id: format!("grant:{}.{key}", grant.name), reason });
        };
        let given = [providers, models, regions, operations, endpoints];
        for ((key, wanted), list) in lists.into_iter().zip(given) {
            if let Some((wanted, list)) = wanted.zip(list.as_ref()) {
                let reason = format!("the grant covers only these {key}: {}", list.join(", "));
                rule(key, wanted, reason);
            }
        }
        if let Some(usd) = max_cost {
            let nano = from_usd(*usd).map_err(|why| faults.add(place, "scope.max_cost", &why));
            let reason = format!("the grant covers requests up to {usd} USD");
            rule("max_cost", Wanted::MaxCost(nano.unwrap_or(0)), reason);
        }
        Self(rules)
    }

    /// Returns the rules failed by a request.
    pub(crate) fn missed<'s>(&'s self, facts: &'s Facts<'_>) -> impl Iterator<Item = &'s Rule> {
        self.0.iter().filter(|it| !it.holds(facts))
    }

    /// Returns the name of the endpoint rule if the call goes to no covered endpoint.
    pub(crate) fn off_endpoint(&self, call: &Call) -> Option<&str> {
        let covered = |it: &Rule| match &it.wanted {
            Wanted::Endpoints(list) => list.iter().any(|it| it.covers(call)),
            _ => true,
        };
        self.0.iter().find(|it| !covered(it)).map(|it| it.id.as_str())
    }

    /// Returns each rule as an equivalent Cedar `forbid`.
    pub(crate) fn cedar(&self, grant: &str) -> impl Iterator<Item = (String, String)> {
        let who = format!("principal in GenOps::Grant::{}", crate::policy::quoted(grant));
        self.0.iter().map(move |it| (it.id.clone(), it.cedar(&who)))
    }
}

impl Rule {
    /// Returns true if the rule depends on the host and not on the request: the result holds for
    /// all requests on a connection.
    pub(crate) fn is_of_host(&self) -> bool {
        matches!(self.wanted, Wanted::Providers(_) | Wanted::Regions(_))
    }

    /// Returns true if the request fulfils the rule. A request not read whole could ask for any
    /// model, at any price.
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let any = |list: &[String], text: &str| list.iter().any(|it| glob::matches(it, text));
        match &self.wanted {
            Wanted::Providers(list) => any(list, facts.provider),
            Wanted::Models(list) => facts.readable && any(list, facts.model),
            Wanted::Regions(list) => any(list, facts.region),
            Wanted::Operations(list) => any(list, facts.operation),
            // Method and path are not kept; the result of the comparison is.
            Wanted::Endpoints(_) => !facts.content.contains(&self.id),
            Wanted::MaxCost(most) => {
                let cost = facts.est_nano_usd.unwrap_or(AMOUNT_LIMIT).unsigned_abs();
                facts.readable && cost.min(AMOUNT_LIMIT.unsigned_abs()) <= most.unsigned_abs()
            }
        }
    }

    fn cedar(&self, who: &str) -> String {
        let any = |attribute: &str, list: &[String]| {
            let like =
                |it: &String| format!("context.{attribute} like {}", crate::policy::quoted(it));
            let all: Vec<String> = list.iter().map(like).collect();
            if all.is_empty() { "false".to_owned() } else { all.join(" || ") }
        };
        let condition = match &self.wanted {
            Wanted::Providers(list) => format!("unless {{ {} }}", any("provider", list)),
            Wanted::Models(list) => {
                format!("unless {{ context.readable && ({}) }}", any("model", list))
            }
            Wanted::Regions(list) => format!("unless {{ {} }}", any("region", list)),
            Wanted::Operations(list) => format!("unless {{ {} }}", any("operation", list)),
            Wanted::Endpoints(_) => {
                let id = crate::policy::quoted(&self.id);
                format!("when {{ context.content.contains({id}) }}")
            }
            Wanted::MaxCost(most) => {
                format!("when {{ context.est_nano_usd > {most} || !context.readable }}")
            }
        };
        let (id, reason) = (crate::policy::quoted(&self.id), crate::policy::quoted(&self.reason));
        format!(
            "@id({id})\n@reason_code(\"x_delegation_exceeded\")\n@reason({reason})\nforbid \
             ({who}, action == GenOps::Action::\"invoke\", resource)\n{condition};\n"
        )
    }
}

fn lower(list: Vec<String>) -> Vec<String> {
    list.into_iter().map(|it| it.to_lowercase()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::awu::Attribution;
    use crate::config::PolicyText;
    use crate::policy::Policies;

    /// Returns the facts of a request with nothing known except the changes made by the test.
    pub(crate) fn facts<'a>() -> Facts<'a> {
        Facts {
            provider: "",
            model: "",
            operation: "",
            region: "",
            server: "",
            environment: "",
            customer_id: "",
            feature: "",
            session_id: "",
            est_nano_usd: None,
            est_tokens: 0,
            max_output_tokens: 0,
            request_bytes: 0,
            p95_latency_ms: 0,
            stream: false,
            readable: true,
            inspectable: true,
            approved: false,
            mapped: true,
            content: &[],
            unix_s: 0,
        }
    }

    fn list() -> impl Strategy<Value = Option<Vec<String>>> {
        let pattern = "[ab*]{0,3}";
        proptest::option::of(proptest::collection::vec(pattern, 0..3))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_scope_refuses_what_its_cedar_refuses(
            models in list(),
            regions in list(),
            operations in list(),
            max_cost in proptest::option::of(0..4_i32),
            asks in proptest::collection::vec(("[ab]{0,3}", "[ab]{0,2}", any::<bool>(), proptest::option::of(0..4_i64)), 8),
        ) {
            let scope = ScopeConfig {
                models,
                regions,
                operations,
                max_cost: max_cost.map(f64::from),
                ..ScopeConfig::default()
            };
            let grant = GrantConfig { name: "of a \u{00e9}".to_owned(), scope, ..GrantConfig::default() };
            let (mut faults, mut known) = (Faults::default(), BTreeSet::new());
            let scope =
                Scope::compile(&grant, &Sections::default(), &mut known, "", &mut faults);
            let text: String = scope.cedar(&grant.name).map(|(_, text)| text).collect();
            let file = PolicyText { name: "grant".to_owned(), text };
            let sections = Sections { policy_files: vec![file], ..Sections::default() };
            let policies = Policies::compile(&sections, &mut faults);
            prop_assert_eq!(faults.0, Vec::<String>::new());
            let who = Attribution { chain: vec![grant.name.clone()], ..Attribution::default() };
            let slice = policies.slice(&who, &[]);
            for (model, other, readable, cost) in &asks {
                let facts = Facts {
                    model,
                    region: other,
                    operation: model,
                    readable: *readable,
                    est_nano_usd: cost.map(|it| it * 1_000_000_000),
                    ..facts()
                };
                let mut missed: Vec<&str> =
                    scope.missed(&facts).map(|it| it.id.as_str()).collect();
                missed.sort_unstable();
                let opinion = policies.evaluate(&slice, &who, &[], &facts);
                let refused: Vec<&str> = opinion.refusals.iter().map(|it| it.id.as_str()).collect();
                prop_assert_eq!(missed, refused);
            }
        }
    }
}
