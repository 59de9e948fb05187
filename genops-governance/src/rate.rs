//! Rate limits by the generic cell rate algorithm, and limits on concurrent requests.
//!
//! Integers and the caller's monotonic clock only. State is in memory: a restart forgives at most
//! one burst.

use std::collections::HashMap;

use crate::awu::{Attribution, OTHERS, PARTS_LIMIT};
use crate::budget::OF_GRANT;
use crate::config::{Dimension, GrantRateConfig, Per, RateLimitConfig, Sections};
use crate::decision::ReasonCode;
use crate::settings::Faults;

/// A configured limit.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) name: String,
    principal: Option<String>,
    team: Option<String>,
    provider: Option<String>,
    customer_id: Option<String>,
    feature: Option<String>,
    each: Option<Dimension>,
    pace: Option<Pace>,
    concurrent: Option<u32>,
}

/// A rate: a request each `interval_ns`, and requests up to `tolerance_ns` in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    interval_ns: u64,
    tolerance_ns: u64,
}

/// A reached limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) code: ReasonCode,
    pub(crate) limit: String,
    /// Time until the next try, from now.
    pub(crate) retry_after_ns: Option<u64>,
}

/// Subject of a count: a limit, or a part of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meter {
    pub(crate) limit: String,
    part: Option<String>,
}

impl Meter {
    /// Returns `LIMIT`, or `LIMIT[PART]`.
    pub(crate) fn name(&self) -> String {
        match &self.part {
            Some(part) => format!("{}[{part}]", self.limit),
            None => self.limit.clone(),
        }
    }

    fn part(&self) -> &str {
        self.part.as_deref().unwrap_or_default()
    }
}

/// Counts of all limits, by name of the limit.
#[derive(Debug, Default)]
pub(crate) struct Meters(HashMap<String, Counted>);

/// Counts of a limit, by part; `""` for a limit without parts.
#[derive(Debug, Default)]
struct Counted {
    /// Theoretical arrival time of the next request.
    arrivals: HashMap<String, u64>,
    running: HashMap<String, u32>,
    /// Time of the last removal of idle parts.
    swept_ns: u64,
}

/// Minimum time between removals of idle parts.
const SWEEP_NS: u64 = 1_000_000_000;

impl Counted {
    fn knows(&self, part: &str) -> bool {
        self.arrivals.contains_key(part) || self.running.contains_key(part)
    }

    fn is_full(&self) -> bool {
        self.arrivals.len().max(self.running.len()) >= PARTS_LIMIT
    }

    /// Forgets idle parts: an idle part has no count against later requests.
    fn sweep(&mut self, mono_ns: u64) {
        if self.is_full() && mono_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = mono_ns;
            self.arrivals.retain(|_, arrival| *arrival > mono_ns);
            self.running.retain(|_, running| *running > 0);
        }
    }
}

pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (index, config) in sections.rate_limits.iter().enumerate() {
        let RateLimitConfig {
            name,
            principal,
            team,
            provider,
            customer_id,
            feature,
            requests,
            per,
            burst,
            concurrent,
        } = config.clone();
        let place = Faults::entry("rate_limits", index, &name);
        let before =
            |count: usize| sections.rate_limits.iter().take(count).any(|other| other.name == name);
        faults.name_is_new(&place, &name, before, index);
        if let Some(grant) = name.strip_prefix(OF_GRANT)
            && sections.grants.iter().any(|it| it.name == grant && it.rate.is_some())
        {
            faults.add(&place, "name", &format!("is that of the rate of the grant `{grant}`"));
        }
        if let Some(wanted) = &principal
            && !sections.principals.iter().any(|it| it.name == *wanted)
        {
            faults.add(&place, "principal", &format!("names `{wanted}`, and there is none"));
        }
        limits_something(requests, burst, concurrent, &place, faults);
        let rate =
            requests.map(|it| pace(it, per.time.unwrap_or(Per::Minute), burst.unwrap_or(it)));
        let part_of = |it: &&RateLimitConfig| {
            let rest = name.strip_prefix(&it.name);
            it.per.each.is_some() && rest.is_some_and(|rest| rest.starts_with('['))
        };
        if let Some(other) = sections.rate_limits.iter().find(part_of) {
            faults.add(&place, "name", &format!("is that of a part of `{}`", other.name));
        }
        let each = per.each;
        limits.push(Limit {
            name,
            principal,
            team,
            provider,
            customer_id,
            feature,
            each,
            pace: rate,
            concurrent,
        });
    }
    limits
}

fn limits_something(
    requests: Option<u32>,
    burst: Option<u32>,
    concurrent: Option<u32>,
    place: &str,
    faults: &mut Faults,
) {
    if requests.is_none() && concurrent.is_none() {
        faults.add(place, "requests", "or `concurrent` is missing: it limits nothing");
    }
    for (key, value) in [("requests", requests), ("burst", burst), ("concurrent", concurrent)] {
        if value == Some(0) {
            faults.add(place, key, "is 0; to refuse everything, use a policy");
        }
    }
}

/// Compiles the rate of a grant.
pub(crate) fn of_grant(
    grant: &str,
    config: &GrantRateConfig,
    place: &str,
    faults: &mut Faults,
) -> Limit {
    let GrantRateConfig { requests, per, burst, concurrent } = config.clone();
    let mut own = Faults::default();
    limits_something(requests, burst, concurrent, place, &mut own);
    faults.extend_under("rate", &own);
    Limit {
        name: format!("{OF_GRANT}{grant}"),
        principal: None,
        team: None,
        provider: None,
        customer_id: None,
        feature: None,
        each: None,
        pace: requests.map(|it| pace(it, per.unwrap_or(Per::Minute), burst.unwrap_or(it))),
        concurrent,
    }
}

fn pace(requests: u32, per: Per, burst: u32) -> Pace {
    let seconds: u64 = match per {
        Per::Second => 1,
        Per::Minute => 60,
        Per::Hour => 3_600,
        Per::Day => 86_400,
    };
    let interval_ns = seconds * 1_000_000_000 / u64::from(requests.max(1));
    Pace { interval_ns, tolerance_ns: interval_ns * u64::from(burst.max(1) - 1) }
}

impl Limit {
    /// Returns whether the limit has a count for each customer, feature or session.
    pub(crate) fn is_parted(&self) -> bool {
        self.each.is_some()
    }

    pub(crate) fn concerns(
        &self,
        who: &Attribution,
        lineage: &[String],
        provider: Option<&str>,
    ) -> bool {
        self.principal.as_ref().is_none_or(|it| lineage.contains(it))
            && (self.team.is_none() || self.team == who.team)
            && (self.provider.is_none() || self.provider.as_deref() == provider)
            && (self.customer_id.is_none() || self.customer_id == who.customer_id)
            && (self.feature.is_none() || self.feature == who.feature)
    }
}

impl Meters {
    /// Returns the meter of a request under a limit. A limit keeps [`PARTS_LIMIT`] parts; all later
    /// parts share a meter.
    pub(crate) fn meter(&self, limit: &Limit, who: &Attribution) -> Meter {
        let part = limit.each.map(|dimension| {
            let own = who.part(dimension);
            let counted = self.0.get(&limit.name);
            let beyond = counted.is_some_and(|it| it.is_full() && !it.knows(own));
            if beyond { OTHERS.to_owned() } else { own.to_owned() }
        });
        Meter { limit: limit.name.clone(), part }
    }

    /// Returns the meter shared by all parts beyond the maximum.
    pub(crate) fn others(limit: &Limit) -> Meter {
        Meter { limit: limit.name.clone(), part: Some(OTHERS.to_owned()) }
    }

    /// Counts a request in every limit, or in none if a limit is reached.
    pub(crate) fn admit(
        &mut self,
        limits: &[(&Limit, Meter)],
        mono_ns: u64,
    ) -> Result<(), Reached> {
        for (limit, meter) in limits {
            self.has_room(limit, meter, mono_ns)?;
        }
        for (limit, meter) in limits {
            self.count(limit, meter, mono_ns);
        }
        Ok(())
    }

    /// Counts a request that cannot be stopped.
    pub(crate) fn count(&mut self, limit: &Limit, meter: &Meter, mono_ns: u64) {
        let counted = self.0.entry(meter.limit.clone()).or_default();
        counted.sweep(mono_ns);
        if let Some(pace) = limit.pace {
            let arrival = counted.arrivals.entry(meter.part().to_owned()).or_insert(mono_ns);
            // Requests admitted beyond the limit are not held against later requests.
            let most = mono_ns.saturating_add(pace.tolerance_ns);
            *arrival = (*arrival).clamp(mono_ns, most).saturating_add(pace.interval_ns);
        }
        if limit.concurrent.is_some() {
            *counted.running.entry(meter.part().to_owned()).or_default() += 1;
        }
    }

    /// Returns the state of a meter: the distance of the theoretical arrival time in the future, in
    /// nanoseconds, and the number of running requests.
    pub(crate) fn reading(&self, meter: &Meter, mono_ns: u64) -> (u64, u32) {
        let Some(counted) = self.0.get(&meter.limit) else { return (0, 0) };
        let arrival = counted.arrivals.get(meter.part()).copied().unwrap_or(mono_ns);
        let running = counted.running.get(meter.part()).copied().unwrap_or_default();
        (arrival.saturating_sub(mono_ns), running)
    }

    /// Gives a meter the recorded state, for repeating a decision.
    pub(crate) fn recall(&mut self, meter: &Meter, arrival_ns: u64, running: u32) {
        let counted = self.0.entry(meter.limit.clone()).or_default();
        counted.arrivals.insert(meter.part().to_owned(), arrival_ns);
        counted.running.insert(meter.part().to_owned(), running);
    }

    /// Takes the end of a counted request.
    pub(crate) fn ended(&mut self, meter: &Meter) {
        let Some(counted) = self.0.get_mut(&meter.limit) else { return };
        if let Some(running) = counted.running.get_mut(meter.part()) {
            *running = running.saturating_sub(1);
        }
    }

    fn has_room(&self, limit: &Limit, meter: &Meter, mono_ns: u64) -> Result<(), Reached> {
        let (ahead_ns, running) = self.reading(meter, mono_ns);
        if limit.concurrent.is_some_and(|most| running >= most) {
            let (code, limit) = (ReasonCode::CONCURRENCY_EXCEEDED, meter.name());
            return Err(Reached { code, limit, retry_after_ns: None });
        }
        let Some(pace) = limit.pace else { return Ok(()) };
        let early_ns = ahead_ns.saturating_sub(pace.tolerance_ns);
        if early_ns == 0 {
            return Ok(());
        }
        let (code, limit) = (ReasonCode::RateLimited, meter.name());
        Err(Reached { code, limit, retry_after_ns: Some(early_ns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limit(requests: u32, per: Per, burst: u32, concurrent: Option<u32>) -> Limit {
        Limit {
            name: "limit".to_owned(),
            principal: None,
            team: None,
            provider: None,
            customer_id: None,
            feature: None,
            each: None,
            pace: Some(pace(requests, per, burst)),
            concurrent,
        }
    }

    /// Counts a request of a customer.
    fn admit(meters: &mut Meters, limit: &Limit, who: &str, mono_ns: u64) -> Result<(), Reached> {
        let customer_id = Some(who.to_owned());
        let who = Attribution { customer_id, ..Attribution::default() };
        let meter = meters.meter(limit, &who);
        meters.admit(&[(limit, meter)], mono_ns)
    }

    #[test]
    fn each_customer_has_a_count_of_its_own_and_the_last_ones_share_one() {
        let mut limit = limit(2, Per::Hour, 2, None);
        limit.each = Some(Dimension::CustomerId);
        let mut meters = Meters::default();
        let passed = ["ann", "ann", "ann", "bob"]
            .map(|who| admit(&mut meters, &limit, who, 0).map_err(|it| it.limit));
        assert_eq!(passed, [Ok(()), Ok(()), Err("limit[ann]".to_owned()), Ok(())]);
        for number in 0..2 * PARTS_LIMIT {
            let _told = admit(&mut meters, &limit, &format!("made-up-{number}"), 1);
        }
        let counted = meters.0.get("limit").map(|it| it.arrivals.len());
        assert_eq!(counted, Some(PARTS_LIMIT + 1));
        let late = admit(&mut meters, &limit, "late", 1).map_err(|it| it.limit);
        assert_eq!(late, Err("limit[~others]".to_owned()));
        // Idle customers are forgotten.
        let later = 3 * 3_600 * SECOND;
        assert!(admit(&mut meters, &limit, "ann", later).is_ok());
        assert!(admit(&mut meters, &limit, "late", later).is_ok());
        assert_eq!(meters.0.get("limit").map(|it| it.arrivals.len()), Some(2));
    }

    #[test]
    fn a_burst_passes_and_then_the_pace_holds() {
        let (limit, mut meters) = (limit(60, Per::Minute, 3, None), Meters::default());
        let at = [0, 0, 0, 0, SECOND / 2, SECOND, SECOND, 10 * SECOND, 10 * SECOND];
        let passed = at.map(|now| admit(&mut meters, &limit, "", now).is_ok());
        assert_eq!(passed, [true, true, true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let (limit, mut meters) = (limit(1, Per::Second, 1, None), Meters::default());
        assert!(admit(&mut meters, &limit, "", 0).is_ok());
        let reached = admit(&mut meters, &limit, "", SECOND / 4);
        assert_eq!(reached.map_err(|it| it.retry_after_ns), Err(Some(SECOND * 3 / 4)));
    }

    #[test]
    fn no_more_than_so_many_run_at_the_same_time() {
        let (limit, mut meters) = (limit(100, Per::Second, 100, Some(2)), Meters::default());
        let admitted = [0, 0, 0].map(|now| admit(&mut meters, &limit, "", now).is_ok());
        assert_eq!(admitted, [true, true, false]);
        meters.ended(&Meter { limit: "limit".to_owned(), part: None });
        assert!(admit(&mut meters, &limit, "", 0).is_ok());
    }
}
