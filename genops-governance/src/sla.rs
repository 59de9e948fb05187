//! Latency targets (spec §6) and the latencies of recent calls.

use std::collections::VecDeque;

use crate::config::{Sections, SlaConfig};
use crate::glob;
use crate::process::User;
use crate::settings::Faults;
use crate::shared::Shared;

/// Number of calls remembered for each target or provider.
const WINDOW: usize = 20;

/// Maximum number of keys with remembered calls.
const KEY_LIMIT: usize = 1_024;

/// A configured target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) tier: String,
    principal: Option<String>,
    model: Option<String>,
    pub(crate) latency_ms: u64,
}

pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Vec<Target> {
    let mut targets = Vec::new();
    for (index, config) in sections.sla.iter().enumerate() {
        let SlaConfig { tier, principal, model, latency_target_ms: latency_ms } = config.clone();
        let place = Faults::entry("sla", index, &tier);
        if tier.trim().is_empty() {
            faults.add(&place, "tier", "is empty");
        }
        if latency_ms == 0 {
            faults.add(&place, "latency_target_ms", "is 0, which no call can meet");
        }
        if let Some(name) = &principal
            && !sections.principals.iter().any(|it| it.name == *name)
        {
            faults.add(&place, "principal", &format!("names `{name}`, and there is none"));
        }
        targets.push(Target { tier, principal, model, latency_ms });
    }
    targets
}

/// Returns the first target for a principal and model.
pub(crate) fn find<'a>(
    targets: &'a [Target],
    lineage: &[String],
    model: Option<&str>,
) -> Option<&'a Target> {
    targets.iter().find(|it| {
        it.principal.as_ref().is_none_or(|name| lineage.contains(name))
            && it.model.as_ref().is_none_or(|like| model.is_some_and(|it| glob::matches(like, it)))
    })
}

/// Latencies of recent calls.
#[derive(Debug)]
pub(crate) struct Latencies(Shared<VecDeque<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Shared::new(KEY_LIMIT))
    }
}

impl Latencies {
    /// Records the latency of a user's call. Keys may contain names made up by programs.
    pub(crate) fn note(&mut self, user: &User, key: &str, latency_ms: u64) {
        let last = self.0.entry(user, key);
        if last.len() >= WINDOW {
            last.pop_front();
        }
        last.push_back(latency_ms);
    }

    /// Returns the 95th percentile (nearest rank) of the remembered calls.
    pub(crate) fn p95(&self, key: &str) -> Option<u64> {
        let mut last: Vec<u64> = self.0.get(key)?.iter().copied().collect();
        last.sort_unstable();
        let rank = (last.len() * 95).div_ceil(100);
        last.get(rank.checked_sub(1)?).copied()
    }

    /// Returns whether the maximum number of calls is remembered.
    pub(crate) fn is_full(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|it| it.len() >= WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_one_user_makes_up_leave_the_others_theirs() {
        let mut latencies = Latencies::default();
        let user = |uid| User { uid: Some(uid), place: None };
        for ms in 1..=20 {
            latencies.note(&user(31), "provider mistral_ai", ms);
        }
        for number in 0..3_000 {
            latencies.note(&user(32), &format!("cost tool-{number} small-{number}"), 7);
        }
        assert_eq!(latencies.p95("provider mistral_ai"), Some(19));
        assert!(latencies.is_full("provider mistral_ai"));
        assert_eq!(latencies.p95("cost tool-0 small-0"), None);
        assert_eq!(latencies.p95("cost tool-2999 small-2999"), Some(7));
    }
}
