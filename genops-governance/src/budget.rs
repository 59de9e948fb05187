//! Budgets: which of them a call draws on, and how much it may need of each.

use jiff::tz::TimeZone;

use crate::awu::{Attribution, OTHERS, PARTS_LIMIT};
use crate::config::{BudgetConfig, Dimension, Sections, Unit};
use crate::glob;
use crate::ledger::{AccountKey, Demand, Ledger};
use crate::money::from_usd;
use crate::settings::Faults;
use crate::time::{Period, parse_zone};

/// One configured budget.
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
    /// In nano-USD or tokens.
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
    /// Whether a call draws on it.
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

    /// Whose part of it a request draws on, where it holds for each by itself.
    pub(crate) fn part<'a>(&self, who: &'a Attribution) -> Option<&'a str> {
        self.per.map(|dimension| who.part(dimension))
    }

    /// The part that an account's name means; `None`: it is not an account of this budget.
    #[expect(clippy::option_option, reason = "no part, and no account, are different things")]
    pub(crate) fn part_named<'n>(&self, name: &'n str) -> Option<Option<&'n str>> {
        let rest = name.strip_prefix(&self.name)?;
        if self.per.is_none() {
            return rest.is_empty().then_some(None);
        }
        rest.strip_prefix('[').and_then(|it| it.strip_suffix(']')).map(Some)
    }

    /// A demand of this amount on the period that a time lies in, and on this part of it. There are
    /// [`PARTS_LIMIT`] of them; whoever comes later shares one.
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
            start_s: ledger.place(&self.name, part, window),
            part: part.map(str::to_owned),
        };
        let mut key = key_of(part);
        let is_new = part.is_some() && ledger.account(&key).is_none();
        if is_new && ledger.parts(&self.name, key.start_s) >= PARTS_LIMIT {
            key = key_of(Some(OTHERS));
        }
        let (end_s, period) = match ledger.account(&key) {
            Some(account) => (account.end_s, account.period.clone()),
            None => (window.end_s, window.label(&self.zone)),
        };
        Demand { key, end_s, period, unit: self.unit, limit: self.limit, amount }
    }
}
