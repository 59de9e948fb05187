//! Which processes may not call which providers at all: the kernel programs then need no verdict.
//!
//! Asked anew where something may have changed: a first contact, a refusal, another configuration; and
//! what is denied, from time to time, since budgets begin anew.

use std::collections::{HashMap, HashSet};

use genops_ebpf_common::DeniedKey;
use genops_governance::{Engine, Now, ProcessKey};

use crate::kernel::{Maps, Providers};

/// Most pairs that are followed; past that, requests are decided one by one.
const PAIRS_LIMIT: usize = 16_384;
/// How often what is denied is asked anew.
const AGAIN_AFTER_NS: u64 = 1_000_000_000;
/// By how much the end of a denial may be off: the clocks of the day and of the kernel drift apart.
const TOLERANCE_NS: u64 = 100_000_000;

/// Every pair of a process and a provider that it was seen with.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pairs: HashMap<DeniedKey, Pair>,
    asked: HashSet<DeniedKey>,
    again_at_mono_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    process: ProcessKey,
    /// Until when it is denied, on the monotonic clock, where it is.
    denied_until: Option<u64>,
}

impl Standing {
    /// A process has to do with a provider.
    pub(super) fn seen(&mut self, process: ProcessKey, provider: u32) {
        let key = DeniedKey { tgid: process.pid, provider };
        if provider == 0 || self.pairs.len() >= PAIRS_LIMIT {
            return;
        }
        let pair = self.pairs.entry(key).or_insert(Pair { process, denied_until: None });
        pair.process = process;
        self.asked.insert(key);
    }

    /// A process is denied a provider, as an agent before this one has told the kernel.
    pub(super) fn adopt(&mut self, key: DeniedKey, process: ProcessKey, until_mono_ns: u64) {
        let denied_until = Some(until_mono_ns);
        self.pairs.insert(key, Pair { process, denied_until });
        self.asked.insert(key);
    }

    /// Something of this process was refused.
    pub(super) fn refused(&mut self, tgid: u32) {
        self.asked.extend(self.pairs.keys().filter(|it| it.tgid == tgid));
    }

    /// Everything may be otherwise now.
    pub(super) fn all_changed(&mut self) {
        self.asked.extend(self.pairs.keys());
    }

    /// A process has ended.
    pub(super) fn forget(&mut self, maps: &mut Maps, tgid: u32) {
        self.pairs.retain(|key, pair| {
            if key.tgid == tgid && pair.denied_until.is_some() {
                maps.set_denied(*key, None);
            }
            key.tgid != tgid
        });
    }

    /// Tells the kernel programs what has changed.
    pub(super) fn tell(
        &mut self,
        maps: &mut Maps,
        engine: &Engine,
        providers: &Providers,
        now: Now,
    ) {
        if now.mono_ns >= self.again_at_mono_ns {
            self.again_at_mono_ns = now.mono_ns.saturating_add(AGAIN_AFTER_NS);
            self.asked.extend(
                self.pairs.iter().filter(|(_, it)| it.denied_until.is_some()).map(|(key, _)| key),
            );
        }
        for key in self.asked.drain() {
            let Some(pair) = self.pairs.get_mut(&key) else { continue };
            let Some(provider) = providers.name(key.provider) else { continue };
            let until = engine.denies_until(now, pair.process, provider);
            let until = until.map(|unix_ns| on_monotonic_clock(now, unix_ns));
            if differ(until, pair.denied_until) {
                pair.denied_until = until;
                maps.set_denied(key, until);
            }
        }
    }
}

/// A time of day on the monotonic clock; what never comes never comes there either.
fn on_monotonic_clock(now: Now, unix_ns: u64) -> u64 {
    if unix_ns == u64::MAX {
        return u64::MAX;
    }
    now.mono_ns.saturating_add(unix_ns.saturating_sub(now.unix_ns))
}

/// Whether the kernel has to be told.
fn differ(until: Option<u64>, told: Option<u64>) -> bool {
    match (until, told) {
        (Some(until), Some(told)) => until.abs_diff(told) > TOLERANCE_NS,
        (until, told) => until != told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_an_end_by_its_own_clock() {
        let now = Now { mono_ns: 40_000, unix_ns: 9_000_000 };
        assert_eq!(on_monotonic_clock(now, 9_000_700), 40_700);
        assert_eq!(on_monotonic_clock(now, 8_000_000), 40_000);
        assert_eq!(on_monotonic_clock(now, u64::MAX), u64::MAX);
    }

    #[test]
    fn the_kernel_is_told_again_where_the_end_has_moved() {
        let told = Some(77_000_000_000);
        assert!(!differ(Some(77_050_000_000), told));
        assert!(differ(Some(78_000_000_000), told));
        assert!(differ(Some(u64::MAX), told));
        assert!(differ(None, told) && differ(told, None));
        assert!(!differ(None, None));
    }
}
