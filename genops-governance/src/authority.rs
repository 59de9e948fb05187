//! Authority grants and the chains they form: who may act for whom, until when, how far.
//!
//! Effective authority is the intersection along the chain: every link's time must hold here, and
//! every link's scope is a Cedar `forbid` of its own ([`crate::policy`]), so that a wrong grant
//! can only take away.

use std::collections::BTreeMap;

use crate::config::{GrantConfig, PrincipalConfig, Sections};
use crate::decision::ReasonCode;
use crate::settings::Faults;
use crate::time::parse_moment;

/// Longest chain of grants, unless a grant says less.
pub(crate) const DEPTH_LIMIT: usize = 4;

/// One link of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    /// Valid from, in nanoseconds since 1970.
    not_before: Option<u64>,
    /// Valid until.
    expires: Option<u64>,
    revoked: bool,
    max_depth: Option<u32>,
    delegated_by: Option<String>,
    accountable: Option<String>,
}

/// The grants a principal acts under, its own first, the root last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain(Vec<Link>);

/// Every configured grant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    links: Vec<(Link, Option<String>)>,
    /// Those that are not revoked, by name.
    standing: BTreeMap<String, GrantConfig>,
}

impl Grants {
    pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Self {
        let standing = sections.grants.iter().filter(|it| !it.revoked);
        let standing = standing.map(|it| (it.name.clone(), it.clone())).collect();
        let mut grants = Self { standing, ..Self::default() };
        for (index, config) in sections.grants.iter().enumerate() {
            let place = Faults::entry("grants", index, &config.name);
            let earlier = |count: usize| {
                sections.grants.iter().take(count).any(|other| other.name == config.name)
            };
            faults.name_is_new(&place, &config.name, earlier, index);
            let parents = sections.grants.iter().map(|it| &it.name);
            match &config.parent {
                Some(parent) if !parents.clone().any(|it| it == parent) => {
                    faults.add(&place, "parent", &format!("names `{parent}`, and there is none"));
                }
                None if config.delegated_by.is_none() => {
                    let needed = "is missing: a grant without a parent needs the human it is from";
                    faults.add(&place, "delegated_by", needed);
                }
                _ => {}
            }
            grants.links.push((Link::of(config, &place, faults), config.parent.clone()));
        }
        grants.refuse_cycles(faults);
        grants
    }

    /// The grants that hold here, and did not hold in the same words before.
    pub(crate) fn given_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = &'a GrantConfig> {
        self.standing.values().filter(|it| before.standing.get(&it.name) != Some(*it))
    }

    /// The grants that held before, and are revoked or gone here.
    pub(crate) fn revoked_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = &'a GrantConfig> {
        before.standing.values().filter(|it| !self.standing.contains_key(&it.name))
    }

    fn refuse_cycles(&self, faults: &mut Faults) {
        for (index, (link, _)) in self.links.iter().enumerate() {
            let mut at = self.parent_of(&link.name);
            for _ in 0..self.links.len() {
                let Some(name) = at else { break };
                if *name == link.name {
                    let place = Faults::entry("grants", index, &link.name);
                    faults.add(&place, "parent", "leads back to the grant itself");
                    break;
                }
                at = self.parent_of(name);
            }
        }
    }

    fn parent_of(&self, name: &str) -> Option<&String> {
        self.links.iter().find(|(link, _)| link.name == name)?.1.as_ref()
    }

    /// The chain of a principal: what its own entry says, then its grant and that one's parents.
    pub(crate) fn chain_of(
        &self,
        config: &PrincipalConfig,
        place: &str,
        faults: &mut Faults,
    ) -> Chain {
        let mut chain = Chain::default();
        let PrincipalConfig { name, delegated_by, not_before, expires, grant, .. } = config;
        if delegated_by.is_some() || not_before.is_some() || expires.is_some() {
            let own = GrantConfig {
                name: format!("principal:{name}"),
                delegated_by: delegated_by.clone(),
                not_before: not_before.clone(),
                expires: expires.clone(),
                ..GrantConfig::default()
            };
            chain.0.push(Link::of(&own, place, faults));
        }
        let mut at = grant.as_ref();
        if let Some(name) = at
            && !self.links.iter().any(|(link, _)| link.name == *name)
        {
            faults.add(place, "grant", &format!("names `{name}`, and there is none"));
        }
        // A cycle is refused above; the bound is what ends the loop until the caller sees that.
        for _ in 0..self.links.len() {
            let Some((link, parent)) =
                at.and_then(|name| self.links.iter().find(|(link, _)| link.name == *name))
            else {
                break;
            };
            chain.0.push(link.clone());
            at = parent.as_ref();
        }
        chain
    }
}

impl Link {
    fn of(config: &GrantConfig, place: &str, faults: &mut Faults) -> Self {
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
        Self {
            name: config.name.clone(),
            not_before,
            expires,
            revoked: config.revoked,
            max_depth: config.max_depth,
            delegated_by: config.delegated_by.clone(),
            accountable: config
                .accountable
                .clone()
                .or_else(|| config.delegated_by.clone().filter(|_| root)),
        }
    }
}

impl Chain {
    /// Names of the links, own first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|it| it.name.clone()).collect()
    }

    /// The human at the end of the chain.
    pub(crate) fn accountable(&self) -> Option<String> {
        self.0.iter().rev().find_map(|it| it.accountable.clone())
    }

    /// Everybody who handed authority down, or answers for it.
    pub(crate) fn people(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().flat_map(|it| it.delegated_by.iter().chain(&it.accountable)).cloned()
    }

    /// Everything above a sub-agent binds it too.
    pub(crate) fn extend(&mut self, above: &Self) {
        for link in &above.0 {
            if !self.0.contains(link) {
                self.0.push(link.clone());
            }
        }
    }

    /// When the last of the links begins that have not begun yet.
    pub(crate) fn begins_after(&self, unix_ns: u64) -> Option<u64> {
        self.0.iter().filter_map(|link| link.not_before).filter(|it| *it > unix_ns).max()
    }

    /// Whether every link holds now; else the code and the link that does not.
    pub(crate) fn check(&self, unix_ns: u64) -> Result<(), (ReasonCode, &str)> {
        for (below, link) in self.0.iter().enumerate() {
            let name = link.name.as_str();
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
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, change: impl FnOnce(&mut Link)) -> Link {
        let mut link = Link {
            name: name.to_owned(),
            not_before: None,
            expires: None,
            revoked: false,
            max_depth: None,
            delegated_by: None,
            accountable: None,
        };
        change(&mut link);
        link
    }

    #[test]
    fn every_link_must_hold() {
        let plain = |name: &str| link(name, |_| {});
        let of = |links: Vec<Link>| {
            Chain(links).check(100).map_err(|(code, link)| format!("{code} {link}"))
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
        let shallow = link("c", |it| it.max_depth = Some(1));
        let chain = vec![plain("a"), plain("b"), shallow];
        assert_eq!(of(chain), failed("x_delegation_exceeded c"));
        let long = ["a", "b", "c", "d", "e", "f"].map(plain).to_vec();
        assert_eq!(of(long), failed("x_delegation_exceeded f"));
    }
}
