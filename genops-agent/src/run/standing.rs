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
    denied: bool,
}

impl Standing {
    /// A process has to do with a provider.
    pub(super) fn seen(&mut self, process: ProcessKey, provider: u32) {
        let key = DeniedKey { tgid: process.pid, provider };
        if provider == 0 || self.pairs.len() >= PAIRS_LIMIT {
            return;
        }
        let pair = self.pairs.entry(key).or_insert(Pair { process, denied: false });
        pair.process = process;
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
            if key.tgid == tgid && pair.denied {
                maps.set_denied(*key, false);
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
            self.asked.extend(self.pairs.iter().filter(|(_, it)| it.denied).map(|(key, _)| key));
        }
        for key in self.asked.drain() {
            let Some(pair) = self.pairs.get_mut(&key) else { continue };
            let Some(provider) = providers.name(key.provider) else { continue };
            let denied = engine.denies_all(now, pair.process, provider);
            if denied != pair.denied {
                pair.denied = denied;
                maps.set_denied(key, denied);
            }
        }
    }
}
