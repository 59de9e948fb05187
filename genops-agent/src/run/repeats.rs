//! Refused connections that the kernel programs only counted: how many are new.
//!
//! The kernel's counts never decrease, so a count read twice, or read late, is counted once.

use std::collections::HashMap;

use genops_ebpf_common::DeniedKey;

/// Interval of reading the kernel's counts, in nanoseconds.
const READ_EVERY_NS: u64 = 1_000_000_000;

/// Counts already in the evidence, by process and provider. Bounded by the kernel's map.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    counted: HashMap<u32, HashMap<u32, u64>>,
    read_at_mono_ns: u64,
}

impl Repeats {
    /// Returns whether the kernel's counts are to be read, once in [`READ_EVERY_NS`].
    pub(super) fn are_due(&mut self, now_mono_ns: u64) -> bool {
        let due = now_mono_ns >= self.read_at_mono_ns;
        if due {
            self.read_at_mono_ns = now_mono_ns.saturating_add(READ_EVERY_NS);
        }
        due
    }

    /// Takes over a count of an earlier agent.
    pub(super) fn adopt(&mut self, key: DeniedKey, counted: u64) {
        let DeniedKey { tgid, provider } = key;
        self.counted.entry(tgid).or_default().insert(provider, counted);
    }

    /// Returns how much a kernel's count is above the counts before.
    pub(super) fn news(&mut self, key: DeniedKey, unreported: u64) -> u64 {
        let DeniedKey { tgid, provider } = key;
        let counted = self.counted.entry(tgid).or_default().entry(provider).or_default();
        let news = unreported.saturating_sub(*counted);
        *counted = unreported.max(*counted);
        news
    }

    /// Returns the keys of a process.
    pub(super) fn of(&self, tgid: u32) -> impl Iterator<Item = DeniedKey> + '_ {
        let providers = self.counted.get(&tgid).into_iter().flat_map(HashMap::keys);
        providers.map(move |provider| DeniedKey { tgid, provider: *provider })
    }

    /// Forgets an ended process.
    pub(super) fn forget(&mut self, tgid: u32) {
        self.counted.remove(&tgid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DeniedKey = DeniedKey { tgid: 311, provider: 3 };

    #[test]
    fn each_refusal_is_counted_once_however_often_and_late_the_count_is_read() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.news(KEY, 0), 0);
        assert_eq!(repeats.news(KEY, 7), 7);
        assert_eq!(repeats.news(KEY, 7), 0);
        // A record was read after the map.
        assert_eq!(repeats.news(KEY, 5), 0);
        assert_eq!(repeats.news(KEY, 9), 2);
        assert_eq!(repeats.news(DeniedKey { provider: 4, ..KEY }, 9), 9, "another provider");
        assert_eq!(repeats.news(DeniedKey { tgid: 312, ..KEY }, 9), 9, "another process");
    }

    #[test]
    fn a_later_process_of_the_same_number_begins_anew() {
        let mut repeats = Repeats::default();
        repeats.news(KEY, 7);
        assert_eq!(repeats.of(KEY.tgid).collect::<Vec<_>>(), [KEY]);
        repeats.forget(KEY.tgid);
        assert_eq!(repeats.of(KEY.tgid).count(), 0);
        assert_eq!(repeats.news(KEY, 2), 2);
    }

    #[test]
    fn an_agent_goes_on_where_the_agent_before_has_ended() {
        let mut repeats = Repeats::default();
        repeats.adopt(KEY, 40);
        assert_eq!(repeats.news(KEY, 45), 5);
    }
}
