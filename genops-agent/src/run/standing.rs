//! Pairs of process and provider with all calls denied: the kernel programs then need no verdict.
//!
//! A pair is checked anew if something may have changed: a first contact, a refusal, another
//! configuration. Denied pairs are also checked at intervals, because budgets begin anew.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use genops_ebpf_common::DeniedKey;
use genops_governance::{Engine, Now, ProcessKey};

use crate::kernel::{Maps, Providers};

/// Most pairs followed; past the limit, requests are decided one by one.
const PAIRS_LIMIT: usize = 16_384;
/// Interval of the check of denied pairs, in nanoseconds.
const AGAIN_AFTER_NS: u64 = 1_000_000_000;
/// Tolerance for the end of a denial, in nanoseconds: wall clock and monotonic clock drift apart.
const TOLERANCE_NS: u64 = 100_000_000;

/// Every pair of a process and a provider seen together.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pairs: BTreeMap<DeniedKey, Pair>,
    asked: HashSet<DeniedKey>,
    again_at_mono_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    process: ProcessKey,
    /// End of the denial on the monotonic clock, if denied.
    denied_until: Option<u64>,
}

impl Standing {
    /// Notes a contact of a process with a provider.
    pub(super) fn seen(&mut self, process: ProcessKey, provider: u32) {
        let key = DeniedKey { tgid: process.pid, provider };
        if provider == 0 || self.pairs.len() >= PAIRS_LIMIT {
            return;
        }
        let pair = self.pairs.entry(key).or_insert(Pair { process, denied_until: None });
        pair.process = process;
        self.asked.insert(key);
    }

    /// Takes over a denial told to the kernel by an earlier agent.
    pub(super) fn adopt(&mut self, key: DeniedKey, process: ProcessKey, until_mono_ns: u64) {
        let denied_until = Some(until_mono_ns);
        self.pairs.insert(key, Pair { process, denied_until });
        self.asked.insert(key);
    }

    /// Notes a refusal of a process.
    pub(super) fn refused(&mut self, tgid: u32) {
        self.asked.extend(self.pairs.range(of_process(tgid)).map(|(key, _)| key));
    }

    /// Marks all pairs for a check.
    pub(super) fn all_changed(&mut self) {
        self.asked.extend(self.pairs.keys());
    }

    /// Forgets an ended process.
    pub(super) fn forget(&mut self, maps: &mut Maps, tgid: u32) {
        for (key, pair) in self.pairs.extract_if(of_process(tgid), |_, _| true) {
            if pair.denied_until.is_some() {
                maps.set_denied(key, None);
            }
        }
    }

    /// Tells the kernel programs the changes.
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

/// The pairs of a process.
fn of_process(tgid: u32) -> RangeInclusive<DeniedKey> {
    DeniedKey { tgid, provider: 0 }..=DeniedKey { tgid, provider: u32::MAX }
}

/// A wall-clock time on the monotonic clock; `u64::MAX` (never) stays never.
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
    fn a_refusal_has_what_its_process_may_asked_anew_and_nothing_else() {
        let mut standing = Standing::default();
        for tgid in [310, 311, 312] {
            for provider in [1, 4, u32::MAX] {
                standing.seen(ProcessKey { pid: tgid, start_ns: 5 }, provider);
            }
        }
        standing.asked.clear();
        standing.refused(311);
        standing.refused(313);
        let mut asked: Vec<(u32, u32)> =
            standing.asked.iter().map(|it| (it.tgid, it.provider)).collect();
        asked.sort_unstable();
        assert_eq!(asked, [(311, 1), (311, 4), (311, u32::MAX)]);
    }

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
