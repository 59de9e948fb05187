//! Ancestry of processes: handed down at each start of a child process, so the ancestry holds even
//! if processes in between have ended.
//!
//! The programs copy the agent's decision without a report. Only children started before the agent
//! has looked at the parent's program are reported, because the agent then has to decide about the
//! child.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use genops_ebpf_common::{Fork, Lineage, kind, loss};

use crate::{
    maps::{EVENTS, LINEAGES, count_loss, settings, wake},
    task::Task,
};

/// The first process: adopts orphans, and hands down no ancestry.
const INIT: u32 = 1;

/// Marks the process as undecided: the process begins to run another program.
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

/// Hands down the ancestry: the process starts another, or a thread.
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

/// Removes the ancestry of an ended process.
#[inline(always)]
pub(crate) fn ends(tgid: u32) {
    let _none = LINEAGES.remove(tgid);
}

/// Returns [`Lineage::principal`] of the current process.
#[inline(always)]
pub(crate) fn principal() -> u64 {
    of_current().map_or(0, |it| it.principal)
}

/// Returns the lineage of the current process. Most processes have none, and cost a single look-up.
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
    // Both processes may end before the agent looks at either.
    entry.submit(wake(true));
}
