//! Checks for parts of a grant without effect: authority wider than in the grants above.
//!
//! Nothing here widens or narrows a grant: a chain is the intersection of the links, whatever the
//! links say. The check informs the author of a grant meant to give more than possible.

use super::DEPTH_LIMIT;
use super::endpoint::Endpoint;
use crate::config::{GrantBudgetConfig, GrantConfig, GrantRateConfig, Per, ScopeConfig};
use crate::glob;
use crate::settings::Faults;
use crate::time::{Period, parse_moment};

/// Reports parts of a grant wider than in the grants above, the nearest first, or covering nothing.
pub(super) fn check(grant: &GrantConfig, above: &[&GrantConfig], place: &str, faults: &mut Faults) {
    let mut told = Told { above, place, faults };
    told.lists(&grant.scope);
    told.amount("scope.max_cost", "USD", grant.scope.max_cost, |it| it.scope.max_cost);
    told.times(grant);
    told.depth(grant);
    told.budget(grant.budget.as_ref());
    told.rate(grant.rate.as_ref());
}

/// Destination of the findings.
struct Told<'a> {
    above: &'a [&'a GrantConfig],
    place: &'a str,
    faults: &'a mut Faults,
}

type List = fn(&ScopeConfig) -> &Option<Vec<String>>;

/// Lists of a scope, and whether the case of letters matters.
const LISTS: [(&str, List, bool); 5] = [
    ("scope.providers", |it| &it.providers, false),
    ("scope.models", |it| &it.models, false),
    ("scope.regions", |it| &it.regions, true),
    ("scope.operations", |it| &it.operations, true),
    ("scope.endpoints", |it| &it.endpoints, true),
];

impl<'a> Told<'a> {
    /// Returns the nearest grant above with a value, and the value.
    fn nearest<T>(
        &self,
        says: impl Fn(&'a GrantConfig) -> Option<T>,
    ) -> Option<(&'a GrantConfig, T)> {
        self.above.iter().find_map(|it| Some((*it, says(it)?)))
    }

    fn add(&mut self, key: &str, why: &str) {
        self.faults.add(self.place, key, why);
    }

    fn lists(&mut self, scope: &'a ScopeConfig) {
        for (key, list, exact) in LISTS {
            let Some(own) = list(scope) else { continue };
            if own.is_empty() {
                let why = "is empty, so the grant covers nothing; leave it out to cover all that is \
                           covered above it";
                self.add(key, why);
            }
            let Some((parent, theirs)) = self.nearest(|it| list(&it.scope).as_ref()) else {
                continue;
            };
            let outside = |it: &&String| !theirs.iter().any(|like| is_within(key, it, like, exact));
            for name in own.iter().filter(outside) {
                let (parent, has) = (&parent.name, theirs.join(", "));
                let why = format!(
                    "names `{name}`, and `{parent}` above it covers only {has}; take it out, or add it \
                     there"
                );
                self.add(key, &why);
            }
        }
    }

    /// Reports an amount larger than in the nearest grant above.
    fn amount(
        &mut self,
        key: &str,
        unit: &str,
        own: Option<f64>,
        of: impl Fn(&GrantConfig) -> Option<f64>,
    ) {
        let nearest = self.nearest(of);
        if let (Some(own), Some((parent, most))) = (own, nearest)
            && own > most
        {
            let name = &parent.name;
            let why = format!(
                "is {own} {unit}, and `{name}` above it has {most}; make it no more, or raise that"
            );
            self.add(key, &why);
        }
    }

    fn times(&mut self, grant: &GrantConfig) {
        let at = |text: &Option<String>| parse_moment(text.as_deref()?).ok();
        let until = self.nearest(|it| Some((at(&it.expires)?, it.expires.as_deref()?)));
        let from = self.nearest(|it| Some((at(&it.not_before)?, it.not_before.as_deref()?)));
        let (begins, ends) = (at(&grant.not_before), at(&grant.expires));
        if let Some((parent, (last, text))) = until {
            let name = &parent.name;
            if ends.is_some_and(|it| it > last) {
                let why = format!("is after `{name}` above it expires ({text}); make it no later");
                self.add("expires", &why);
            }
            if begins.is_some_and(|it| it >= last) {
                let why =
                    format!("is not before `{name}` above it expires ({text}): it never holds");
                self.add("not_before", &why);
            }
        }
        if let Some((parent, (first, text))) = from {
            let name = &parent.name;
            if begins.is_some_and(|it| it < first) {
                let why =
                    format!("is before `{name}` above it begins ({text}); make it no earlier");
                self.add("not_before", &why);
            }
            if ends.is_some_and(|it| it <= first) {
                let why = format!("is not after `{name}` above it begins ({text}): it never holds");
                self.add("expires", &why);
            }
        }
    }

    fn depth(&mut self, grant: &GrantConfig) {
        let most = |it: &GrantConfig| it.max_depth.map_or(DEPTH_LIMIT, |it| it as usize);
        let mut levels = self.above.iter().zip(1..);
        if let Some((parent, below)) = levels.clone().find(|(it, below)| *below > most(it)) {
            let (name, most) = (&parent.name, most(parent));
            let why = format!(
                "puts it {below} below `{name}`, below which there may be {most}: it never holds; hang \
                 it higher, or raise `depth` there"
            );
            self.add("parent", &why);
        } else if let Some(own) = grant.max_depth
            && let Some((parent, below)) = levels.find(|(it, below)| {
                it.max_depth.is_some_and(|most| (most as usize) < own as usize + below)
            })
        {
            let (name, left) = (&parent.name, most(parent) - below);
            let why = format!(
                "(`max_depth`) is {own}, and `{name}` above it leaves {left} below this one; make it no \
                 more, or raise that"
            );
            self.add("depth", &why);
        }
    }

    /// Compares budgets of the same unit, if the period of the budget above is not shorter.
    fn budget(&mut self, own: Option<&GrantBudgetConfig>) {
        let Some(own) = own else { return };
        let days = |it: &GrantBudgetConfig| match it.period.unwrap_or(Period::Total) {
            Period::Hour => 0,
            Period::Day => 1,
            Period::Week => 7,
            Period::Month => 28,
            Period::Total => u32::MAX,
        };
        let alike = |it: &GrantBudgetConfig| it.unit == own.unit && days(it) >= days(own);
        let most = |it: &GrantConfig| it.budget.as_ref().filter(|it| alike(it)).map(|it| it.limit);
        self.amount("budget.limit", own.unit.as_str(), Some(own.limit), most);
    }

    fn rate(&mut self, own: Option<&GrantRateConfig>) {
        let Some(own) = own else { return };
        let pace = |it: &GrantRateConfig| {
            let seconds = match it.per.unwrap_or(Per::Minute) {
                Per::Second => 1.0,
                Per::Minute => 60.0,
                Per::Hour => 3_600.0,
                Per::Day => 86_400.0,
            };
            it.requests.map(|it| f64::from(it) * 86_400.0 / seconds)
        };
        let burst = |it: &GrantRateConfig| it.burst.or(it.requests).map(f64::from);
        let concurrent = |it: &GrantRateConfig| it.concurrent.map(f64::from);
        let of = |it: &GrantConfig, what: &dyn Fn(&GrantRateConfig) -> Option<f64>| {
            it.rate.as_ref().and_then(what)
        };
        self.amount("rate.requests", "a day", pace(own), |it| of(it, &pace));
        self.amount("rate.burst", "at once", own.burst.map(f64::from), |it| of(it, &burst));
        let key = "rate.concurrent";
        self.amount(key, "at the same time", concurrent(own), |it| of(it, &concurrent));
    }
}

/// Returns true if every text described by `own` is described by `other`; a `*` in `own` matches
/// only a `*`.
fn is_within(key: &str, own: &str, other: &str, exact: bool) -> bool {
    if key == "scope.endpoints" {
        // A text other than an endpoint is reported elsewhere.
        let both = (Endpoint::parse(own), Endpoint::parse(other));
        return !matches!(both, (Ok(own), Ok(other)) if !own.is_within(&other));
    }
    if exact {
        return glob::matches(other, own);
    }
    glob::matches(&other.to_lowercase(), &own.to_lowercase())
}
