//! Budgets: selects the budgets drawn on by a call, and computes the demand on each.

use jiff::tz::TimeZone;

use crate::awu::{Attribution, OTHERS, PARTS_LIMIT};
use crate::config::{BudgetConfig, Dimension, GrantBudgetConfig, Sections, Unit};
use crate::glob;
use crate::ledger::{AccountKey, Demand, Ledger};
use crate::money::{from_seconds, from_usd};
use crate::settings::Faults;
use crate::time::{Period, parse_zone};

/// A configured budget.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) name: String,
    team: Option<String>,
    project: Option<String>,
    principal: Option<String>,
    cost_center: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    customer_id: Option<String>,
    feature: Option<String>,
    pub(crate) per: Option<Dimension>,
    pub(crate) unit: Unit,
    /// In nano-USD, tokens or nanoseconds.
    pub(crate) limit: i64,
    pub(crate) period: Period,
    zone: TimeZone,
    /// Percentages, ascending.
    pub(crate) thresholds: Vec<u8>,
}

/// Largest limit in tokens: exact as a double.
const TOKENS_LIMIT: f64 = 9_007_199_254_740_991.0;

pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for (index, config) in sections.budgets.iter().enumerate() {
        let place = Faults::entry("budgets", index, &config.name);
        let before = |count: usize| {
            sections.budgets.iter().take(count).any(|other| other.name == config.name)
        };
        faults.name_is_new(&place, &config.name, before, index);
        if let Some(grant) = config.name.strip_prefix(OF_GRANT)
            && sections.grants.iter().any(|it| it.name == grant && it.budget.is_some())
        {
            faults.add(&place, "name", &format!("is that of the budget of the grant `{grant}`"));
        }
        if let Some(name) = &config.principal
            && !sections.principals.iter().any(|it| it.name == *name)
        {
            faults.add(&place, "principal", &format!("names `{name}`, and there is none"));
        }
        let part_of = |it: &&BudgetConfig| {
            let rest = config.name.strip_prefix(&it.name);
            it.per.is_some() && rest.is_some_and(|rest| rest.starts_with('['))
        };
        if let Some(other) = sections.budgets.iter().find(part_of) {
            faults.add(&place, "name", &format!("is that of a part of `{}`", other.name));
        }
        budgets.push(budget(config.clone(), &place, faults));
    }
    budgets
}

/// Prefix of the names of a grant's budget and rate, before the grant's name.
pub(crate) const OF_GRANT: &str = "grant:";

/// Compiles the budget of a grant.
pub(crate) fn of_grant(
    grant: &str,
    config: &GrantBudgetConfig,
    place: &str,
    faults: &mut Faults,
) -> Budget {
    let GrantBudgetConfig { limit, unit, period, timezone } = config.clone();
    let name = format!("{OF_GRANT}{grant}");
    let config = BudgetConfig { name, unit, limit, period, timezone, ..BudgetConfig::default() };
    let mut own = Faults::default();
    let budget = budget(config, place, &mut own);
    faults.extend_under("budget", &own);
    budget
}

fn budget(config: BudgetConfig, place: &str, faults: &mut Faults) -> Budget {
    let BudgetConfig {
        name,
        team,
        project,
        principal,
        cost_center,
        provider,
        model,
        customer_id,
        feature,
        per,
        unit,
        limit,
        period,
        timezone,
        mut thresholds,
    } = config;
    let limit = match unit {
        Unit::Usd => from_usd(limit),
        Unit::Tokens => whole(limit),
        Unit::ComputeSeconds => from_seconds(limit),
    };
    let limit = limit.map_err(|why| faults.add(place, "limit", &why)).unwrap_or_default();
    let zone = timezone.as_deref().map_or(Ok(TimeZone::UTC), parse_zone);
    let zone = zone.map_err(|why| faults.add(place, "timezone", &why)).unwrap_or(TimeZone::UTC);
    thresholds.sort_unstable();
    if thresholds.iter().any(|it| *it == 0 || *it > 100) {
        faults.add(place, "thresholds", "are percentages from 1 to 100");
    }
    let period = period.unwrap_or(Period::Total);
    Budget {
        name,
        team,
        project,
        principal,
        cost_center,
        provider,
        model,
        customer_id,
        feature,
        per,
        unit,
        limit,
        period,
        zone,
        thresholds,
    }
}

fn whole(limit: f64) -> Result<i64, String> {
    if !limit.is_finite() || limit.fract() != 0.0 {
        return Err(format!("{limit} is not a whole number of tokens"));
    }
    if !(0.0..=TOKENS_LIMIT).contains(&limit) {
        return Err(format!("{limit} is below zero or above {TOKENS_LIMIT}"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole, and bounded above")]
    let limit = limit as i64;
    Ok(limit)
}

impl Budget {
    /// Returns whether a call draws on the budget.
    pub(crate) fn concerns(
        &self,
        who: &Attribution,
        lineage: &[String],
        provider: Option<&str>,
        model: Option<&str>,
    ) -> bool {
        let is = |wanted: &Option<String>, actual: Option<&str>| {
            wanted.as_deref().is_none_or(|it| Some(it) == actual)
        };
        is(&self.team, who.team.as_deref())
            && is(&self.project, who.project.as_deref())
            && is(&self.cost_center, who.cost_center.as_deref())
            && is(&self.customer_id, who.customer_id.as_deref())
            && is(&self.feature, who.feature.as_deref())
            && is(&self.provider, provider)
            && self.principal.as_ref().is_none_or(|it| lineage.contains(it))
            && self.model.as_ref().is_none_or(|like| {
                model.is_some_and(|it| glob::matches(&like.to_lowercase(), &it.to_lowercase()))
            })
    }

    /// Returns the part drawn on by a request, if the budget has a limit for each part.
    pub(crate) fn part<'a>(&self, who: &'a Attribution) -> Option<&'a str> {
        self.per.map(|dimension| who.part(dimension))
    }

    /// Returns the part in an account's name; `None`: the account belongs to another budget.
    #[expect(clippy::option_option, reason = "no part, and no account, are different things")]
    pub(crate) fn part_named<'n>(&self, name: &'n str) -> Option<Option<&'n str>> {
        let rest = name.strip_prefix(&self.name)?;
        if self.per.is_none() {
            return rest.is_empty().then_some(None);
        }
        rest.strip_prefix('[').and_then(|it| it.strip_suffix(']')).map(Some)
    }

    /// Returns a demand of the amount on the part, in the period of the time. The budget keeps
    /// [`PARTS_LIMIT`] parts; all later parts share a single account.
    pub(crate) fn demand(
        &self,
        ledger: &Ledger,
        unix_ns: u64,
        amount: i64,
        part: Option<&str>,
    ) -> Demand {
        let window = self.period.at(unix_ns, &self.zone);
        let key_of = |part: Option<&str>| AccountKey {
            budget: self.name.clone(),
            start_s: ledger.place(&self.name, part, self.unit, window),
            part: part.map(str::to_owned),
            unit: self.unit,
        };
        let mut key = key_of(part);
        let is_new = part.is_some() && ledger.account(&key).is_none();
        if is_new && ledger.parts(&self.name, self.unit, key.start_s) >= PARTS_LIMIT {
            key = key_of(Some(OTHERS));
        }
        let (end_s, period) = match ledger.account(&key) {
            Some(account) => (account.end_s, account.period.clone()),
            None => (window.end_s, window.label(&self.zone)),
        };
        Demand { key, end_s, period, unit: self.unit, limit: self.limit, amount }
    }
}
