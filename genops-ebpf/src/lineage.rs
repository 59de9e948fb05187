//! What a process descends from: handed down as it starts another, so that it holds whichever of the
//! processes between have ended.
//!
//! What the agent has decided is copied, and nobody hears of it. Only what a process starts before the
//! agent has looked at its program is reported, since the agent then has to say whose that is.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use genops_ebpf_common::{Fork, Lineage, kind, loss};

use crate::{
    maps::{EVENTS, LINEAGES, count_loss, settings, wake},
    task::Task,
};

/// The first process: it takes in the orphans, and nobody inherits from it.
const INIT: u32 = 1;

/// The process begins to run another program.
#[inline(always)]
pub(crate) fn begins() -> Option<()> {
    let tgid = current();
    if settings()?.lineage == 0 || tgid == INIT {
        return None;
    }
    let start_ns = Task::current()?.start_ns()?;
    // SAFETY: copied at once.
    let before = unsafe { LINEAGES.get(tgid) }.copied().unwrap_or_default();
    let before = if before.start_ns == start_ns { before } else { Lineage::default() };
    put(tgid, Lineage { start_ns, undecided: 1, ..before });
    Some(())
}

/// The process starts another, or a thread.
#[inline(always)]
pub(crate) fn hand_down(child: u64) -> Option<()> {
    let of_parent = of_current()?;
    let child = Task::at(child)?;
    let child_tgid = child.as_process()?;
    let child_start_ns = child.start_ns()?;
    put(child_tgid, Lineage { start_ns: child_start_ns, ..of_parent });
    if of_parent.undecided != 0 {
        report(Fork {
            kind: kind::FORK,
            tgid: current(),
            start_ns: of_parent.start_ns,
            child_start_ns,
            child_tgid,
            reserved: 0,
        });
    }
    Some(())
}

/// The process has ended.
#[inline(always)]
pub(crate) fn ends(tgid: u32) {
    let _none = LINEAGES.remove(tgid);
}

/// [`Lineage::principal`] of the process that runs.
#[inline(always)]
pub(crate) fn principal() -> u64 {
    of_current().map_or(0, |it| it.principal)
}

/// Lineage of the process that runs. Most have none, and cost one look.
#[inline(always)]
fn of_current() -> Option<Lineage> {
    // SAFETY: copied at once.
    let lineage = unsafe { *LINEAGES.get(current())? };
    (Task::current()?.start_ns()? == lineage.start_ns).then_some(lineage)
}

#[inline(always)]
fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
fn put(tgid: u32, lineage: Lineage) {
    if LINEAGES.insert(tgid, lineage, 0).is_err() {
        count_loss(loss::LINEAGES_FULL, 1);
    }
}

#[inline(always)]
fn report(fork: Fork) {
    let Some(mut entry) = EVENTS.reserve::<Fork>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    entry.write(fork);
    // Both may end before they are looked at.
    entry.submit(wake(true));
}
