//! Authority grants and chains of grants: who may act for whom, until when, how far.
//!
//! Effective authority is the intersection along the chain: the time of every link must hold, and
//! the scope of every link must cover the request, so that a wrong grant can only take authority
//! away. If authority is required, or nothing is permitted by default, a chain covering a request
//! permits the request.

mod endpoint;
mod humans;
mod narrow;
mod scope;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use genops_protocols::Call;

use self::humans::Humans;
use self::scope::{Rule, Scope};
use crate::budget::{self, Budget, OF_GRANT};
use crate::config::{GrantConfig, PrincipalConfig, Sections};
use crate::decision::ReasonCode;
use crate::policy::Facts;
use crate::rate::{self, Limit};
use crate::settings::Faults;
use crate::time::parse_moment;

/// Maximum length of a chain of grants, unless a grant sets less.
pub(crate) const DEPTH_LIMIT: usize = 4;

/// Maximum number of ancestors compared with a grant. A longer chain is refused as too deep, unless
/// grants raise `max_depth` above the number.
const ABOVE_LIMIT: usize = 64;

/// A link of a chain.
#[derive(Debug)]
pub(crate) struct Link {
    name: String,
    /// Whether the link is a grant; otherwise the link comes from the principal's own entry.
    is_grant: bool,
    scope: Scope,
    /// Budget of the grant and all grants below together.
    budget: Option<Budget>,
    /// Rate of the grant and all grants below together.
    rate: Option<Limit>,
    /// Start of validity, in nanoseconds since 1970.
    not_before: Option<u64>,
    /// End of validity, in nanoseconds since 1970.
    expires: Option<u64>,
    revoked: bool,
    max_depth: Option<u32>,
    accountable: Option<String>,
    /// Delegators and accountable humans, by every known name.
    people: Vec<String>,
    /// Whether the link begins a chain and must come from a human, but does not.
    is_nobodys: bool,
}

/// Grants of a principal, the principal's own first, the root last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain(Vec<Arc<Link>>);

/// All configured grants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    links: Vec<(Arc<Link>, Option<String>)>,
    /// Position of each grant, by name.
    index: HashMap<String, usize>,
    /// Grants not revoked, by name.
    standing: BTreeMap<String, GrantConfig>,
    humans: Humans,
}

impl Grants {
    pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Self {
        let standing = sections.grants.iter().filter(|it| !it.revoked);
        let standing = standing.map(|it| (it.name.clone(), it.clone())).collect();
        let humans = Humans::compile(sections, faults);
        let mut grants = Self { standing, humans, ..Self::default() };
        let mut providers = BTreeSet::new();
        let names: BTreeSet<&String> = sections.grants.iter().map(|it| &it.name).collect();
        for (index, config) in sections.grants.iter().enumerate() {
            let place = Faults::entry("grants", index, &config.name);
            let is_used = grants.index.contains_key(&config.name);
            faults.name_is_new(&place, &config.name, |_| is_used, index);
            match &config.parent {
                Some(parent) if !names.contains(parent) => {
                    faults.add(&place, "parent", &format!("names `{parent}`, and there is none"));
                }
                None if config.delegated_by.is_none() => {
                    let needed = "is missing: a grant without a parent needs the human it is from";
                    faults.add(&place, "delegated_by", needed);
                }
                _ => {}
            }
            let GrantConfig { parent, delegated_by, accountable, .. } = config;
            if let Some(name) = delegated_by.as_ref().filter(|_| parent.is_none()) {
                grants.humans.miss(&place, "delegated_by", name, faults);
            }
            if let Some(name) = accountable {
                grants.humans.miss(&place, "accountable", name, faults);
            }
            let scope = Scope::compile(config, sections, &mut providers, &place, faults);
            let GrantConfig { name, budget, rate, .. } = config;
            let budget = budget.as_ref().map(|it| budget::of_grant(name, it, &place, faults));
            let rate = rate.as_ref().map(|it| rate::of_grant(name, it, &place, faults));
            let own = grants.link(config, &place, faults);
            let link = Link { scope, is_grant: true, budget, rate, ..own };
            grants.links.push((Arc::new(link), config.parent.clone()));
            grants.index.entry(config.name.clone()).or_insert(index);
        }
        if !grants.refuse_cycles(faults) {
            grants.refuse_wider(sections, faults);
        }
        grants
    }

    /// Refuses a grant wider than the grants above, because the excess can never apply.
    fn refuse_wider(&self, sections: &Sections, faults: &mut Faults) {
        for (index, config) in sections.grants.iter().enumerate() {
            let above = std::iter::successors(self.parent_of(index), |it| self.parent_of(*it));
            let above: Vec<&GrantConfig> =
                above.take(ABOVE_LIMIT).filter_map(|it| sections.grants.get(it)).collect();
            let place = Faults::entry("grants", index, &config.name);
            narrow::check(config, &above, &place, faults);
        }
    }

    /// Returns the grants in force now that were not in force in the same words before.
    pub(crate) fn given_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = &'a GrantConfig> {
        self.standing.values().filter(|it| before.standing.get(&it.name) != Some(*it))
    }

    /// Returns the grants in force before that are revoked or missing now.
    pub(crate) fn revoked_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = &'a GrantConfig> {
        before.standing.values().filter(|it| !self.standing.contains_key(&it.name))
    }

    /// Returns the budgets of grants.
    pub(crate) fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.links.iter().filter_map(|(link, _)| link.budget.as_ref())
    }

    /// Returns all names of the human with the name; `None`: no entry of `humans` has the name.
    pub(crate) fn names_of(&self, name: &str) -> Option<&[String]> {
        self.humans.names(name)
    }

    /// Returns the budget with the account name.
    pub(crate) fn budget(&self, name: &str) -> Option<&Budget> {
        self.get(name.strip_prefix(OF_GRANT)?)?.0.budget.as_ref()
    }

    /// Returns each rule of each scope as equivalent Cedar text, by name.
    pub(crate) fn cedar(&self) -> impl Iterator<Item = (String, String)> {
        self.links.iter().flat_map(|(link, _)| link.scope.cedar(&link.name))
    }

    /// Refuses cycles. Visits each grant once, so that number and depth of the grants do not
    /// matter.
    fn refuse_cycles(&self, faults: &mut Faults) -> bool {
        let mut seen = vec![false; self.links.len()];
        let mut circular = BTreeSet::new();
        for start in 0..self.links.len() {
            let mut path = Vec::new();
            let mut at = Some(start);
            while let Some(index) = at.filter(|it| seen.get(*it) == Some(&false)) {
                path.push(index);
                if let Some(it) = seen.get_mut(index) {
                    *it = true;
                }
                at = self.parent_of(index);
            }
            let begins = path.iter().position(|it| Some(*it) == at);
            circular.extend(begins.into_iter().flat_map(|from| path.iter().skip(from).copied()));
        }
        let found = !circular.is_empty();
        for index in circular {
            let name = self.links.get(index).map(|(link, _)| link.name.as_str());
            let place = Faults::entry("grants", index, name.unwrap_or_default());
            faults.add(&place, "parent", "leads back to the grant itself");
        }
        found
    }

    fn get(&self, name: &str) -> Option<&(Arc<Link>, Option<String>)> {
        self.links.get(*self.index.get(name)?)
    }

    fn parent_of(&self, index: usize) -> Option<usize> {
        self.index.get(self.links.get(index)?.1.as_ref()?).copied()
    }

    /// Returns the chain of a principal: the link of the principal's own entry, then the
    /// principal's grant and the grant's ancestors.
    pub(crate) fn chain_of(
        &self,
        config: &PrincipalConfig,
        place: &str,
        faults: &mut Faults,
    ) -> Chain {
        let mut chain = Chain::default();
        let PrincipalConfig { name, delegated_by, not_before, expires, grant, .. } = config;
        if let Some(name) = delegated_by
            && grant.is_none()
            && self.humans.are_asked_for()
        {
            self.humans.miss(place, "delegated_by", name, faults);
        }
        if delegated_by.is_some() || not_before.is_some() || expires.is_some() {
            let own = GrantConfig {
                name: format!("principal:{name}"),
                delegated_by: delegated_by.clone(),
                not_before: not_before.clone(),
                expires: expires.clone(),
                ..GrantConfig::default()
            };
            let own = self.link(&own, place, faults);
            let is_asked = grant.is_none() && self.humans.are_asked_for();
            let is_nobodys = is_asked && delegated_by.is_some() && own.is_nobodys;
            chain.0.push(Arc::new(Link { is_nobodys, ..own }));
        }
        let mut at = grant.as_ref();
        if let Some(name) = at
            && self.get(name).is_none()
        {
            faults.add(place, "grant", &format!("names `{name}`, and there is none"));
        }
        // A cycle is refused above; the bound ends the loop until the caller sees the refusal.
        for _ in 0..self.links.len() {
            let Some((link, parent)) = at.and_then(|name| self.get(name)) else { break };
            chain.0.push(Arc::clone(link));
            at = parent.as_ref();
        }
        chain
    }

    fn link(&self, config: &GrantConfig, place: &str, faults: &mut Faults) -> Link {
        let mut moment = |key: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(parse_moment)?;
            parsed.map_err(|why| faults.add(place, key, &why)).ok()
        };
        let not_before = moment("not_before", &config.not_before);
        let expires = moment("expires", &config.expires);
        if let (Some(from), Some(until)) = (not_before, expires)
            && until <= from
        {
            faults.add(place, "expires", "is not after `not_before`");
        }
        let root = config.parent.is_none();
        let GrantConfig { delegated_by, accountable, .. } = config;
        let named = delegated_by.iter().chain(accountable);
        let known = named.clone().filter_map(|it| self.humans.names(it)).flatten();
        let is_human = |it: &String| self.humans.names(it).is_some();
        Link {
            name: config.name.clone(),
            is_grant: false,
            scope: Scope::default(),
            budget: None,
            rate: None,
            not_before,
            expires,
            revoked: config.revoked,
            max_depth: config.max_depth,
            accountable: accountable.clone().or_else(|| delegated_by.clone().filter(|_| root)),
            people: known.chain(named.clone()).cloned().collect(),
            is_nobodys: root && !delegated_by.as_ref().is_some_and(is_human),
        }
    }
}

impl Chain {
    /// Returns the names of the links, own first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|it| it.name.clone()).collect()
    }

    /// Returns the accountable human nearest to the root.
    pub(crate) fn accountable(&self) -> Option<String> {
        self.0.iter().rev().find_map(|it| it.accountable.clone())
    }

    /// Returns all delegators and accountable humans.
    pub(crate) fn people(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().flat_map(|it| &it.people).cloned()
    }

    /// Adds the links above a sub-agent, because the links bind the sub-agent too.
    pub(crate) fn extend(&mut self, above: &Self) {
        for link in &above.0 {
            let is_link = |it: &Arc<Link>| it.is_grant == link.is_grant && it.name == link.name;
            if !self.0.iter().any(is_link) {
                self.0.push(Arc::clone(link));
            }
        }
    }

    /// Returns the budgets drawn on by a request: the budget of every link, each once.
    pub(crate) fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.0.iter().filter_map(|it| it.budget.as_ref())
    }

    /// Returns the rates counting a request: the rate of every link.
    pub(crate) fn rates(&self) -> impl Iterator<Item = &Limit> {
        self.0.iter().filter_map(|it| it.rate.as_ref())
    }

    /// Returns the names of the endpoint rules not fulfilled by a call.
    pub(crate) fn off_endpoints(&self, call: &Call) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|it| it.scope.off_endpoint(call))
    }

    /// Returns whether the chain has a grant; the link of a principal's own entry is not a grant.
    pub(crate) fn is_granted(&self) -> bool {
        self.0.iter().any(|it| it.is_grant)
    }

    /// Returns the rules not fulfilled by a request, and for each whether the rule belongs to the
    /// principal's own grant.
    pub(crate) fn missed<'s>(
        &'s self,
        facts: &'s Facts<'_>,
    ) -> impl Iterator<Item = (&'s Rule, bool)> {
        let own = self.0.iter().position(|it| it.is_grant);
        let links = self.0.iter().enumerate();
        links.flat_map(move |(at, link)| {
            link.scope.missed(facts).map(move |rule| (rule, Some(at) == own))
        })
    }

    /// Returns the latest start among the links that have not started.
    pub(crate) fn begins_after(&self, unix_ns: u64) -> Option<u64> {
        self.0.iter().filter_map(|link| link.not_before).filter(|it| *it > unix_ns).max()
    }

    /// Checks that every link holds now; otherwise returns the code and the failing link.
    pub(crate) fn check(&self, unix_ns: u64) -> Result<(), (ReasonCode, &str)> {
        let mut below = 0;
        for link in &self.0 {
            let name = link.name.as_str();
            if link.is_nobodys {
                return Err((ReasonCode::NO_AUTHORITY, name));
            }
            if link.revoked {
                return Err((ReasonCode::AUTHORITY_REVOKED, name));
            }
            if link.expires.is_some_and(|it| unix_ns >= it)
                || link.not_before.is_some_and(|it| unix_ns < it)
            {
                return Err((ReasonCode::AUTHORITY_EXPIRED, name));
            }
            let depth = link.max_depth.map_or(DEPTH_LIMIT, |it| it as usize);
            if below > depth {
                return Err((ReasonCode::DELEGATION_EXCEEDED, name));
            }
            below += usize::from(link.is_grant);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::scope::tests::facts;
    use super::*;
    use crate::awu::AwuId;
    use crate::config::{GrantBudgetConfig, ScopeConfig, Unit};
    use crate::ledger::Ledger;

    fn link(name: &str, change: impl FnOnce(&mut Link)) -> Link {
        let mut link = Link {
            name: name.to_owned(),
            is_grant: true,
            scope: Scope::default(),
            budget: None,
            rate: None,
            not_before: None,
            expires: None,
            revoked: false,
            max_depth: None,
            accountable: None,
            people: Vec::new(),
            is_nobodys: false,
        };
        change(&mut link);
        link
    }

    #[test]
    fn every_link_must_hold() {
        let plain = |name: &str| link(name, |_| {});
        let of = |links: Vec<Link>| {
            Chain(links.into_iter().map(Arc::new).collect())
                .check(100)
                .map_err(|(code, link)| format!("{code} {link}"))
        };
        let failed = |text: &str| Err(text.to_owned());
        assert_eq!(of(vec![]), Ok(()));
        assert_eq!(of(vec![plain("a"), plain("b")]), Ok(()));
        let expired = link("b", |it| it.expires = Some(100));
        assert_eq!(of(vec![plain("a"), expired]), failed("x_authority_expired b"));
        let early = link("a", |it| it.not_before = Some(101));
        assert_eq!(of(vec![early]), failed("x_authority_expired a"));
        let revoked = link("b", |it| it.revoked = true);
        assert_eq!(of(vec![plain("a"), revoked]), failed("x_authority_revoked b"));
        let nobodys = link("b", |it| it.is_nobodys = true);
        assert_eq!(of(vec![plain("a"), nobodys]), failed("x_no_authority b"));
        let shallow = link("c", |it| it.max_depth = Some(1));
        let chain = vec![plain("a"), plain("b"), shallow];
        assert_eq!(of(chain), failed("x_delegation_exceeded c"));
        let long = ["a", "b", "c", "d", "e", "f"].map(plain).into_iter().collect();
        assert_eq!(of(long), failed("x_delegation_exceeded f"));
    }

    /// Builds grants, each possibly below an earlier grant, and none checked against the parent.
    fn tree(configs: &[(Option<usize>, GrantConfig)]) -> Vec<Chain> {
        let (mut faults, mut known) = (Faults::default(), BTreeSet::new());
        let (grants, sections) = (Grants::default(), Sections::default());
        let mut chains: Vec<Chain> = Vec::new();
        for (index, (parent, config)) in configs.iter().enumerate() {
            let config = GrantConfig {
                name: format!("g{index}"),
                parent: parent.map(|it| format!("g{it}")),
                ..config.clone()
            };
            let scope = Scope::compile(&config, &sections, &mut known, "", &mut faults);
            let own = grants.link(&config, "", &mut faults);
            let of_grant = |it| budget::of_grant(&config.name, it, "", &mut Faults::default());
            let budget = config.budget.as_ref().map(of_grant);
            let link = Link { is_grant: true, is_nobodys: false, scope, budget, ..own };
            let above = parent.and_then(|it| chains.get(it)).cloned().unwrap_or_default();
            chains.push(Chain(std::iter::once(Arc::new(link)).chain(above.0).collect()));
        }
        chains
    }

    /// Chooses an earlier parent, or none, for each grant.
    fn parents(count: usize) -> impl Strategy<Value = Vec<Option<usize>>> {
        let picks = proptest::collection::vec(any::<prop::sample::Index>(), count);
        picks.prop_map(|picks| {
            let parent = |(at, pick): (usize, prop::sample::Index)| {
                Some(pick.index(at + 1)).filter(|it| *it < at)
            };
            picks.into_iter().enumerate().map(parent).collect()
        })
    }

    fn any_grant() -> impl Strategy<Value = GrantConfig> {
        let list = || proptest::option::of(proptest::collection::vec("[ab*]{0,2}", 0..3));
        let minute = || proptest::option::of(0..60_u32);
        let cost = proptest::option::of(0..3_i32);
        let all = (list(), list(), cost, minute(), minute(), any::<u8>());
        all.prop_map(|(models, regions, max_cost, from, until, odd)| {
            let moment = |it: Option<u32>| it.map(|it| format!("2026-11-22T10:{it:02}:00Z"));
            let max_cost = max_cost.map(f64::from);
            GrantConfig {
                not_before: moment(from),
                expires: moment(until),
                revoked: odd < 16,
                max_depth: (odd > 200).then_some(u32::from(odd) % 4),
                scope: ScopeConfig { models, regions, max_cost, ..ScopeConfig::default() },
                ..GrantConfig::default()
            }
        })
    }

    /// 2026-11-22T10:00:00Z.
    const TEN: u64 = 1_795_341_600_000_000_000;

    const LIMIT_USD: i64 = 1_000_000_000;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn authority_never_exceeds_that_of_any_grant_above(
            parents in parents(7),
            grants in proptest::collection::vec(any_grant(), 7),
            asks in proptest::collection::vec(("[ab]{0,2}", "[ab]{0,2}", 0..4_i64, any::<bool>(), 0..61_u64), 12),
        ) {
            let configs: Vec<_> = parents.iter().copied().zip(grants).collect();
            let chains = tree(&configs);
            for (model, region, usd, readable, minute) in &asks {
                let est_nano_usd = Some(usd * LIMIT_USD);
                let facts = Facts { model, region, est_nano_usd, readable: *readable, ..facts() };
                let unix_ns = TEN + minute * 60_000_000_000;
                let permits = |chain: &Chain| {
                    chain.check(unix_ns).is_ok() && chain.missed(&facts).next().is_none()
                };
                for (chain, (parent, _)) in chains.iter().zip(&configs) {
                    let above = parent.and_then(|it| chains.get(it));
                    // A stricter grant below can only take authority away.
                    if let Some(above) = above.filter(|_| permits(chain)) {
                        prop_assert!(permits(above), "{:?} under {:?}", chain.names(), above.names());
                    }
                }
            }
        }

        #[test]
        fn those_below_a_grant_never_spend_more_than_it_has(
            parents in parents(6),
            limits in proptest::collection::vec(proptest::option::of(0..60_i32), 6),
            calls in proptest::collection::vec((0..6_usize, 0..30_i64, any::<prop::sample::Index>(), 0..3_u8), 1..60),
        ) {
            let grant = |limit: Option<i32>| {
                let budget = limit.map(|it| GrantBudgetConfig {
                    limit: f64::from(it),
                    unit: Unit::Tokens,
                    period: None,
                    timezone: None,
                });
                GrantConfig { budget, ..GrantConfig::default() }
            };
            let configs: Vec<_> =
                parents.iter().copied().zip(limits.iter().copied().map(grant)).collect();
            let chains = tree(&configs);
            let (mut ledger, mut log) = (Ledger::new(), Vec::new());
            // Amount used under each grant, by the grant and all grants below.
            let mut used = [0; 6];
            let mut open: Vec<(AwuId, usize, i64)> = Vec::new();
            for (number, (who, amount, pick, step)) in calls.into_iter().enumerate() {
                if step < 2 {
                    let mut awu = AwuId { trace: [1; 16], span: [0; 8] };
                    awu.span.copy_from_slice(&(number as u64).to_be_bytes());
                    let budgets = chains.get(who).into_iter().flat_map(Chain::budgets);
                    let demands: Vec<_> =
                        budgets.map(|it| it.demand(&ledger, TEN, amount, None)).collect();
                    let before = ledger.clone();
                    if ledger.reserve(TEN, awu, &demands, &mut log).is_ok() {
                        open.push((awu, who, amount));
                    } else {
                        // All or nothing.
                        prop_assert!(before.accounts().all(|(key, it)| ledger.account(key).is_some_and(|now| now.reserved == it.reserved)));
                    }
                } else if !open.is_empty() {
                    let (awu, who, amount) = open.swap_remove(pick.index(open.len()));
                    let actual = pick.index(usize::try_from(amount).unwrap_or_default() + 1);
                    let actual = i64::try_from(actual).unwrap_or_default();
                    let shares = chains.get(who).map_or(0, |it| it.budgets().count());
                    ledger.settle(TEN, awu, Some(vec![actual; shares]), &mut log);
                    let mut at = Some(who);
                    while let Some(index) = at {
                        used[index] += actual;
                        at = parents.get(index).copied().flatten();
                    }
                }
            }
            for (index, limit) in limits.iter().enumerate() {
                let Some(limit) = limit else { continue };
                prop_assert!(used[index] <= i64::from(*limit));
                let name = format!("grant:g{index}");
                let account = ledger.accounts().find(|(key, _)| key.budget == name);
                prop_assert_eq!(account.map_or(0, |(_, it)| it.spent), used[index]);
                prop_assert_eq!(account.map_or(0, |(_, it)| it.overrun), 0);
            }
        }
    }
}
