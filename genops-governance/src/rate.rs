//! Rate limits by the generic cell rate algorithm, and limits on what runs at the same time.
//!
//! Integers and the caller's monotonic clock only. State is in memory: a restart forgives at most
//! one burst.

use std::collections::HashMap;

use crate::awu::Attribution;
use crate::config::{Per, RateLimitConfig, Sections};
use crate::decision::ReasonCode;
use crate::settings::Faults;

/// One configured limit.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) name: String,
    principal: Option<String>,
    team: Option<String>,
    provider: Option<String>,
    pace: Option<Pace>,
    concurrent: Option<u32>,
}

/// A rate: one request each `interval_ns`, and `tolerance_ns` of them in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    interval_ns: u64,
    tolerance_ns: u64,
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) code: ReasonCode,
    pub(crate) limit: String,
    /// When to try again, from now.
    pub(crate) retry_after_ns: Option<u64>,
}

/// What the limits count, by name of the limit.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// The theoretical arrival time of the next request.
    arrivals: HashMap<String, u64>,
    running: HashMap<String, u32>,
}

pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (index, config) in sections.rate_limits.iter().enumerate() {
        let RateLimitConfig { name, principal, team, provider, requests, per, burst, concurrent } =
            config.clone();
        let place = Faults::entry("rate_limits", index, &name);
        let before =
            |count: usize| sections.rate_limits.iter().take(count).any(|other| other.name == name);
        faults.name_is_new(&place, &name, before, index);
        if let Some(wanted) = &principal
            && !sections.principals.iter().any(|it| it.name == *wanted)
        {
            faults.add(&place, "principal", &format!("names `{wanted}`, and there is none"));
        }
        if requests.is_none() && concurrent.is_none() {
            faults.add(&place, "requests", "or `concurrent` is missing: it limits nothing");
        }
        for (key, value) in [("requests", requests), ("burst", burst), ("concurrent", concurrent)] {
            if value == Some(0) {
                faults.add(&place, key, "is 0; to refuse everything, use a policy");
            }
        }
        let rate = requests.map(|it| pace(it, per.unwrap_or(Per::Minute), burst.unwrap_or(it)));
        limits.push(Limit { name, principal, team, provider, pace: rate, concurrent });
    }
    limits
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
    pub(crate) fn concerns(
        &self,
        who: &Attribution,
        lineage: &[String],
        provider: Option<&str>,
    ) -> bool {
        self.principal.as_ref().is_none_or(|it| lineage.contains(it))
            && (self.team.is_none() || self.team == who.team)
            && (self.provider.is_none() || self.provider.as_deref() == provider)
    }
}

impl Meters {
    /// Counts a request in every limit, or in none where one is reached.
    pub(crate) fn admit(&mut self, limits: &[&Limit], mono_ns: u64) -> Result<(), Reached> {
        for limit in limits {
            self.has_room(limit, mono_ns)?;
        }
        for limit in limits {
            self.count(limit, mono_ns);
        }
        Ok(())
    }

    /// Counts a request that can't be stopped.
    pub(crate) fn count(&mut self, limit: &Limit, mono_ns: u64) {
        if let Some(pace) = limit.pace {
            let arrival = self.arrivals.entry(limit.name.clone()).or_insert(mono_ns);
            // What was let through beyond the limit is not held against later requests.
            let most = mono_ns.saturating_add(pace.tolerance_ns);
            *arrival = (*arrival).clamp(mono_ns, most).saturating_add(pace.interval_ns);
        }
        if limit.concurrent.is_some() {
            *self.running.entry(limit.name.clone()).or_default() += 1;
        }
    }

    /// What a limit has counted: how far its theoretical arrival time lies ahead, in nanoseconds, and
    /// how many requests run.
    pub(crate) fn reading(&self, limit: &str, mono_ns: u64) -> (u64, u32) {
        let arrival = self.arrivals.get(limit).copied().unwrap_or(mono_ns);
        (arrival.saturating_sub(mono_ns), self.running.get(limit).copied().unwrap_or_default())
    }

    /// Makes a limit have counted what one had, for a decision that is made again.
    pub(crate) fn recall(&mut self, limit: &str, arrival_ns: u64, running: u32) {
        self.arrivals.insert(limit.to_owned(), arrival_ns);
        self.running.insert(limit.to_owned(), running);
    }

    /// A counted request ended.
    pub(crate) fn ended(&mut self, limit: &str) {
        if let Some(running) = self.running.get_mut(limit) {
            *running = running.saturating_sub(1);
        }
    }

    fn has_room(&self, limit: &Limit, mono_ns: u64) -> Result<(), Reached> {
        if let Some(most) = limit.concurrent
            && self.running.get(&limit.name).is_some_and(|running| *running >= most)
        {
            let (code, limit) = (ReasonCode::CONCURRENCY_EXCEEDED, limit.name.clone());
            return Err(Reached { code, limit, retry_after_ns: None });
        }
        let Some(pace) = limit.pace else { return Ok(()) };
        let arrival = self.arrivals.get(&limit.name).copied().unwrap_or(mono_ns);
        let early_ns = arrival.saturating_sub(mono_ns).saturating_sub(pace.tolerance_ns);
        if early_ns == 0 {
            return Ok(());
        }
        let (code, limit) = (ReasonCode::RateLimited, limit.name.clone());
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
            pace: Some(pace(requests, per, burst)),
            concurrent,
        }
    }

    #[test]
    fn a_burst_passes_and_then_the_pace_holds() {
        let (limit, mut meters) = (limit(60, Per::Minute, 3, None), Meters::default());
        let at = [0, 0, 0, 0, SECOND / 2, SECOND, SECOND, 10 * SECOND, 10 * SECOND];
        let passed = at.map(|now| meters.admit(&[&limit], now).is_ok());
        assert_eq!(passed, [true, true, true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let (limit, mut meters) = (limit(1, Per::Second, 1, None), Meters::default());
        assert!(meters.admit(&[&limit], 0).is_ok());
        let reached = meters.admit(&[&limit], SECOND / 4);
        assert_eq!(reached.map_err(|it| it.retry_after_ns), Err(Some(SECOND * 3 / 4)));
    }

    #[test]
    fn no_more_than_so_many_run_at_the_same_time() {
        let (limit, mut meters) = (limit(100, Per::Second, 100, Some(2)), Meters::default());
        let admitted = [0, 0, 0].map(|now| meters.admit(&[&limit], now).is_ok());
        assert_eq!(admitted, [true, true, false]);
        meters.ended("limit");
        assert!(meters.admit(&[&limit], 0).is_ok());
    }
}
