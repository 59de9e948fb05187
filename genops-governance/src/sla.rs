//! Latency targets (spec §6): what a call should take, and what the last ones took.

use std::collections::{HashMap, VecDeque};

use crate::config::{Sections, SlaConfig};
use crate::glob;
use crate::settings::Faults;

/// How many calls are remembered for each target or provider.
const WINDOW: usize = 20;

/// Most providers whose latency is remembered.
const KEY_LIMIT: usize = 256;

/// One configured target.
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

/// The first target for a principal and model.
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

/// Latencies of the last calls.
#[derive(Debug, Default)]
pub(crate) struct Latencies(HashMap<String, VecDeque<u64>>);

impl Latencies {
    pub(crate) fn note(&mut self, key: &str, latency_ms: u64) {
        if self.0.len() >= KEY_LIMIT && !self.0.contains_key(key) {
            self.0.clear();
        }
        let last = self.0.entry(key.to_owned()).or_default();
        if last.len() >= WINDOW {
            last.pop_front();
        }
        last.push_back(latency_ms);
    }

    /// The 95th percentile (nearest rank) of the calls remembered.
    pub(crate) fn p95(&self, key: &str) -> Option<u64> {
        let mut last: Vec<u64> = self.0.get(key)?.iter().copied().collect();
        last.sort_unstable();
        let rank = (last.len() * 95).div_ceil(100);
        last.get(rank.checked_sub(1)?).copied()
    }

    /// Whether as many calls are remembered as there is room for.
    pub(crate) fn is_full(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|it| it.len() >= WINDOW)
    }
}
