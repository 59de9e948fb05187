//! Policies: loading, checking, and evaluating the policies of a principal.
//!
//! The short form is translated to Cedar text ([`short`]); Cedar files are taken unchanged. All
//! Cedar text is validated strictly and linted at load. A decision evaluates only the policies that
//! can concern the principal (a [`Slice`]). An evaluation error never allows a request, although
//! Cedar itself skips a policy with an error.

mod attributes;
mod load;
mod short;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId,
    PolicySet, PrincipalConstraint, Request,
};
use regex::RegexSet;
use sha2::{Digest as _, Sha256};

use self::attributes::Attributes;
use self::load::{Loader, Stored, content_rules};
pub(crate) use self::short::quoted;
use crate::authority::Chain;
use crate::awu::Attribution;
use crate::canonical;
use crate::config::{PolicyConfig, PolicyText, Sections, Signal, TierConfig};
use crate::decision::ReasonCode;
use crate::settings::Faults;

/// Cedar schema of entities and context for policies.
const SCHEMA: &str = include_str!("policy/genops.cedarschema");

/// Largest amount shown to a policy: a product of two amounts can overflow, a sum cannot.
pub(crate) const AMOUNT_LIMIT: i64 = (1 << 53) - 1;

/// Maximum number of (principal, model) pairs with cached entities.
const ENTITIES_LIMIT: usize = 512;

/// Consequence of a matching `forbid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Block,
    LimitRate,
    Warn,
}

/// Annotations of a policy.
#[derive(Clone, Debug)]
struct Meta {
    severity: Severity,
    code: ReasonCode,
    /// A larger value goes first.
    priority: i64,
    reason: Option<String>,
    /// Whether the policy reads only attributes known before any request is read: the result for a
    /// connection holds for every request on the connection.
    of_host: bool,
    signal: Option<Signal>,
}

/// A matching policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matched {
    pub(crate) severity: Severity,
    pub(crate) code: ReasonCode,
    priority: i64,
    pub(crate) id: String,
    pub(crate) reason: Option<String>,
    pub(crate) of_host: bool,
    pub(crate) signal: Option<Signal>,
}

impl Matched {
    /// Returns the order of matching policies: severity, priority, taxonomy, name.
    fn rank(&self) -> impl Ord + '_ {
        (self.severity, std::cmp::Reverse(self.priority), &self.code, &self.id)
    }
}

/// Result of evaluating the policies for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opinion {
    /// Refusals, the reported refusal first. Without the policies asking for an approval.
    pub(crate) refusals: Vec<Matched>,
    /// Policies asking for a human's approval.
    pub(crate) approvals: Vec<Matched>,
    /// Warnings, the reported warning first.
    pub(crate) warnings: Vec<Matched>,
    /// A policy with an evaluation error, and the error.
    pub(crate) error: Option<(String, String)>,
    /// Whether a `permit` is needed and none matched.
    pub(crate) not_permitted: bool,
}

impl Opinion {
    /// Adds the result of a chain's grants: a request not covered by every grant is refused, and a
    /// request covered by all grants needs no other permit. If authority is `required`, a request
    /// not covered by the principal's own grant is outside of every grant, and the refusal goes
    /// before every policy.
    pub(crate) fn weigh(&mut self, chain: &Chain, facts: &Facts<'_>, required: bool) {
        let before = self.refusals.len();
        self.refusals.extend(chain.missed(facts).map(|(rule, own)| Matched {
            severity: Severity::Block,
            code: if own && required {
                ReasonCode::NO_AUTHORITY
            } else {
                ReasonCode::DELEGATION_EXCEEDED
            },
            priority: if required { i64::MAX - i64::from(!own) } else { 0 },
            id: rule.id.clone(),
            reason: Some(rule.reason.clone()),
            of_host: rule.is_of_host(),
            signal: None,
        }));
        if self.refusals.len() > before {
            self.refusals.sort_by(|a, b| a.rank().cmp(&b.rank()));
        } else if chain.is_granted() {
            self.not_permitted = false;
        }
    }

    /// Returns the names of all matching policies.
    pub(crate) fn matched(&self) -> Vec<String> {
        let all = self.refusals.iter().chain(&self.approvals).chain(&self.warnings);
        all.map(|it| it.id.clone()).collect()
    }
}

/// Attributes of a request for policies.
#[expect(clippy::struct_excessive_bools, reason = "the attributes of the schema, one by one")]
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) provider: &'a str,
    /// In lower case.
    pub(crate) model: &'a str,
    pub(crate) operation: &'a str,
    pub(crate) region: &'a str,
    pub(crate) server: &'a str,
    pub(crate) environment: &'a str,
    pub(crate) customer_id: &'a str,
    pub(crate) feature: &'a str,
    pub(crate) session_id: &'a str,
    pub(crate) est_nano_usd: Option<i64>,
    pub(crate) est_tokens: u64,
    pub(crate) max_output_tokens: u64,
    pub(crate) request_bytes: u64,
    pub(crate) p95_latency_ms: u64,
    pub(crate) stream: bool,
    pub(crate) readable: bool,
    pub(crate) inspectable: bool,
    pub(crate) approved: bool,
    pub(crate) mapped: bool,
    pub(crate) content: &'a [String],
    pub(crate) unix_s: u64,
}

/// All policies of a configuration.
pub(crate) struct Policies {
    all: Vec<Stored>,
    metas: HashMap<PolicyId, Meta>,
    content: Vec<(PolicyConfig, RegexSet)>,
    tiers: Vec<TierConfig>,
    texts: Vec<(String, String)>,
    /// Whether a policy asks for an approval.
    approvals: bool,
    default_deny: bool,
    hash: [u8; 32],
    types: Types,
    authorizer: Authorizer,
    /// Slices by the contained policies: principals with the same policies share a slice.
    slices: Mutex<BTreeMap<Vec<usize>, Arc<Slice>>>,
    /// Entities by principal and model. The entities never change, so the lock cannot change an
    /// outcome.
    entities: Mutex<HashMap<(String, String), Arc<Entities>>>,
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("count", &self.all.len()).finish_non_exhaustive()
    }
}

/// Policies found by a [`Loader`].
#[derive(Default)]
struct Loaded {
    policies: Vec<Stored>,
    metas: HashMap<PolicyId, Meta>,
    texts: Vec<(String, String)>,
}

/// The policies that can concern a principal.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Refusals, and permits if a permit is needed.
    enforcing: PolicySet,
    /// Warnings: evaluated apart, so that a warning can never grant.
    advisory: PolicySet,
    /// Indices of the content rules.
    content: Vec<usize>,
    /// Attributes of a request read by the policies: no other attribute is computed.
    looks_at: Attributes,
}

/// Names of the entity types, parsed once.
struct Types {
    workload: EntityTypeName,
    model: EntityTypeName,
    provider: EntityTypeName,
    tier: EntityTypeName,
    team: EntityTypeName,
    project: EntityTypeName,
    cost_center: EntityTypeName,
    environment: EntityTypeName,
    grant: EntityTypeName,
    invoke: EntityUid,
}

impl Types {
    fn new() -> Self {
        let name = |it: &str| it.parse().expect("a constant that parses");
        Self {
            workload: name("GenOps::Workload"),
            model: name("GenOps::Model"),
            provider: name("GenOps::Provider"),
            tier: name("GenOps::Tier"),
            team: name("GenOps::Team"),
            project: name("GenOps::Project"),
            cost_center: name("GenOps::CostCenter"),
            environment: name("GenOps::Environment"),
            grant: name("GenOps::Grant"),
            invoke: uid(&name("GenOps::Action"), "invoke"),
        }
    }
}

fn uid(name: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(name.clone(), EntityId::new(id))
}

impl Policies {
    pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Self {
        if sections.policies.is_empty() && sections.policy_files.is_empty() {
            return Self::of(Loaded::default(), sections, faults);
        }
        let mut loader = Loader::new();
        for short::Text { id, cedar } in short::compile(sections, faults) {
            loader.read(&id, &cedar, faults);
        }
        for PolicyText { name, text } in &sections.policy_files {
            loader.read(name, text, faults);
        }
        let Loader { policies, metas, texts, .. } = loader;
        Self::of(Loaded { policies, metas, texts }, sections, faults)
    }

    fn of(loaded: Loaded, sections: &Sections, faults: &mut Faults) -> Self {
        let Loaded { policies, metas, texts } = loaded;
        let mut hash = Sha256::new();
        for (name, text) in &texts {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        for policy in &sections.policies {
            canonical::hash(&mut hash, &policy.denied_content);
        }
        for grant in &sections.grants {
            canonical::hash(&mut hash, &(&grant.name, &grant.scope));
        }
        let approvals = metas.values().any(|it| it.code == ReasonCode::APPROVAL_REQUIRED);
        Self {
            all: policies,
            metas,
            approvals,
            content: content_rules(sections, faults),
            tiers: sections.model_tiers.clone(),
            texts,
            default_deny: sections.default_deny,
            hash: hash.finalize().into(),
            types: Types::new(),
            authorizer: Authorizer::new(),
            slices: Mutex::new(BTreeMap::new()),
            entities: Mutex::new(HashMap::new()),
        }
    }

    /// Returns the SHA-256 of the Cedar texts, the content expressions and the scopes of grants.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Returns the number of policies.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the Cedar texts made from the configuration, by file or short-form rule.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Returns the policies that can concern a principal. `lineage`: the principal and all
    /// superiors.
    pub(crate) fn slice(&self, who: &Attribution, lineage: &[String]) -> Arc<Slice> {
        let (own, ancestors) = (self.own_uid(who), self.ancestors(who, lineage));
        let concerns = |policy: &Stored| match &policy.concerns {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Is(name) => *name == self.types.workload,
            PrincipalConstraint::In(it) => ancestors.contains(it),
            PrincipalConstraint::Eq(it) => *it == own,
            PrincipalConstraint::IsIn(name, it) => {
                *name == self.types.workload && ancestors.contains(it)
            }
        };
        let chosen = self.all.iter().enumerate().filter(|(_, it)| concerns(it));
        let chosen: Vec<usize> = chosen.map(|(index, _)| index).collect();
        let content = self.content.iter().enumerate().filter(|(_, (policy, _))| {
            let team = policy.team.is_none() || policy.team == who.team;
            policy.principal.as_ref().is_none_or(|it| lineage.contains(it)) && team
        });
        let content: Vec<usize> = content.map(|(index, _)| index).collect();
        let mut slices = self.slices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slice = slices
            .entry(chosen.clone())
            .or_insert_with(|| Arc::new(self.build_slice(&chosen, &content)));
        Arc::clone(slice)
    }

    fn build_slice(&self, chosen: &[usize], content: &[usize]) -> Slice {
        let (mut enforcing, mut advisory) = (PolicySet::new(), PolicySet::new());
        let mut looks_at = Attributes::default();
        for policy in chosen.iter().filter_map(|index| self.all.get(*index)) {
            let warns = self.metas.get(&policy.id).is_some_and(|it| it.severity == Severity::Warn);
            let set = if warns { &mut advisory } else { &mut enforcing };
            looks_at = looks_at.and(policy.looks_at);
            set.add(policy.parse()).expect("names are unique, and none is a template");
        }
        Slice { enforcing, advisory, content: content.to_vec(), looks_at }
    }

    fn own_uid(&self, who: &Attribution) -> EntityUid {
        uid(&self.types.workload, &who.principal)
    }

    /// Returns all groups of a principal, and the principal itself.
    fn ancestors(&self, who: &Attribution, lineage: &[String]) -> HashSet<EntityUid> {
        let Types { workload, team, project, cost_center, environment, grant, .. } = &self.types;
        let mut all: HashSet<EntityUid> = lineage.iter().map(|it| uid(workload, it)).collect();
        all.extend(who.chain.iter().map(|it| uid(grant, it)));
        for (name, value) in [
            (team, &who.team),
            (project, &who.project),
            (cost_center, &who.cost_center),
            (environment, &who.environment),
        ] {
            all.extend(value.iter().map(|it| uid(name, it)));
        }
        all.insert(self.own_uid(who));
        all
    }

    /// Returns whether the slice has rules about text.
    pub(crate) fn looks_at_content(slice: &Slice) -> bool {
        !slice.content.is_empty()
    }

    /// Returns whether a policy may ask for a human's approval.
    pub(crate) fn has_approvals(&self) -> bool {
        self.approvals
    }

    /// Returns whether rules about text exist.
    pub(crate) fn has_content_rules(&self) -> bool {
        !self.content.is_empty()
    }

    /// Returns the names of the slice's content rules matching a text.
    pub(crate) fn content(&self, slice: &Slice, texts: &[&str]) -> Vec<String> {
        let rules = slice.content.iter().filter_map(|index| self.content.get(*index));
        let matching = rules.filter(|(_, set)| texts.iter().any(|text| set.is_match(text)));
        matching.map(|(policy, _)| short::content_rule(&policy.name)).collect()
    }

    /// Evaluates the policies of a slice for a request.
    pub(crate) fn evaluate(
        &self,
        slice: &Slice,
        who: &Attribution,
        lineage: &[String],
        facts: &Facts<'_>,
    ) -> Opinion {
        let mut opinion = Opinion { not_permitted: self.default_deny, ..Opinion::default() };
        let quiet = slice.enforcing.is_empty() && slice.advisory.is_empty();
        if quiet {
            return opinion;
        }
        let request = match self.request(who, facts, slice.looks_at) {
            Ok(request) => request,
            Err(why) => {
                opinion.error = Some(("request".to_owned(), why));
                return opinion;
            }
        };
        let entities = self.entities(who, lineage, facts);
        for set in [&slice.enforcing, &slice.advisory] {
            if !set.is_empty() {
                self.collect(&request, set, &entities, &mut opinion);
            }
        }
        opinion.refusals.sort_by(|a, b| a.rank().cmp(&b.rank()));
        opinion.approvals.sort_by(|a, b| a.rank().cmp(&b.rank()));
        opinion.warnings.sort_by(|a, b| a.rank().cmp(&b.rank()));
        opinion
    }

    fn collect(
        &self,
        request: &Request,
        set: &PolicySet,
        entities: &Entities,
        opinion: &mut Opinion,
    ) {
        let response = self.authorizer.is_authorized(request, set, entities);
        for error in response.diagnostics().errors() {
            let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
            let found = (error.policy_id().to_string(), error.inner().to_string());
            if opinion.error.as_ref().is_none_or(|first| found < *first) {
                opinion.error = Some(found);
            }
        }
        for id in response.diagnostics().reason() {
            let Some(meta) = self.metas.get(id) else {
                // Only permits have no annotations.
                opinion.not_permitted = false;
                continue;
            };
            let Meta { severity, code, priority, reason, of_host, signal } = meta.clone();
            let id = id.to_string();
            let matched = Matched { severity, code, priority, id, reason, of_host, signal };
            match severity {
                Severity::Warn => opinion.warnings.push(matched),
                _ if matched.code == ReasonCode::APPROVAL_REQUIRED => {
                    opinion.approvals.push(matched);
                }
                _ => opinion.refusals.push(matched),
            }
        }
    }

    fn request(
        &self,
        who: &Attribution,
        facts: &Facts<'_>,
        looks_at: Attributes,
    ) -> Result<Request, String> {
        let resource = uid(&self.types.model, &format!("{}/{}", facts.provider, facts.model));
        let context =
            Context::from_pairs(looks_at.pairs(facts)).map_err(|error| error.to_string())?;
        Request::new(self.own_uid(who), self.types.invoke.clone(), resource, context, None)
            .map_err(|error| error.to_string())
    }

    /// Returns the principal and the model, each with all groups.
    fn entities(&self, who: &Attribution, lineage: &[String], facts: &Facts<'_>) -> Arc<Entities> {
        let model = format!("{}/{}", facts.provider, facts.model);
        let key = (who.principal.clone(), model);
        let mut cache = self.entities.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = cache.get(&key) {
            return Arc::clone(found);
        }
        let Types { model: model_type, provider, tier, .. } = &self.types;
        let own = self.own_uid(who);
        let mut above = self.ancestors(who, lineage);
        above.remove(&own);
        let mut of_model = HashSet::from([uid(provider, facts.provider)]);
        of_model.extend(short::tiers_of(&self.tiers, facts.model).map(|it| uid(tier, it)));
        let both = [
            Entity::new_no_attrs(own, above),
            Entity::new_no_attrs(uid(model_type, &key.1), of_model),
        ];
        let entities = Entities::from_entities(both, None).expect("two different names, no cycle");
        let entities = Arc::new(entities);
        if cache.len() >= ENTITIES_LIMIT {
            cache.clear();
        }
        cache.insert(key, Arc::clone(&entities));
        entities
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Schema;

    use super::*;

    /// The agent does not check requests against the schema at run time; the test does.
    #[test]
    fn every_request_is_what_the_schema_says() {
        let (schema, warnings) = Schema::from_cedarschema_str(SCHEMA).expect("it parses");
        assert_eq!(warnings.count(), 0);
        let rules = ["a.denied_content".to_owned()];
        let facts = Facts {
            provider: "openai",
            model: "gpt-4o-mini",
            operation: "chat",
            region: "",
            server: "api.openai.com",
            environment: "production",
            customer_id: "",
            feature: "",
            session_id: "",
            est_nano_usd: None,
            est_tokens: u64::MAX,
            max_output_tokens: 100,
            request_bytes: 300,
            p95_latency_ms: 0,
            stream: true,
            readable: true,
            inspectable: true,
            approved: false,
            mapped: true,
            content: &rules,
            unix_s: 1_795_341_600,
        };
        let types = Types::new();
        let context = Context::from_pairs(Attributes::ALL.pairs(&facts)).expect("no duplicates");
        let principal = uid(&types.workload, "bot");
        let resource = uid(&types.model, "openai/gpt-4o-mini");
        let request = Request::new(principal, types.invoke, resource, context, Some(&schema));
        assert!(request.is_ok(), "{request:?}");
    }
}
