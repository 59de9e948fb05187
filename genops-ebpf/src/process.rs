//! Exec, fork and exit, so that a process that lives for 20 ms is known while it lives.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_task, bpf_ktime_get_ns},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use genops_ebpf_common::{Process, kind, loss};

use crate::{
    lineage,
    maps::{EVENTS, MARKS, PROCESSES, count_loss, wake},
    quota,
    task::Task,
};

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(_: RawTracePointContext) -> i32 {
    // Before it is said, so that what the agent says of it comes after.
    let _unknown = lineage::begins();
    report(kind::EXEC);
    0
}

/// Fires for each thread, in the process that starts it and before what is started can run: `task_struct`
/// of the one that starts, and of the other (`include/trace/events/sched.h`).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(ctx: RawTracePointContext) -> i32 {
    let _nothing = lineage::hand_down(ctx.arg(1));
    0
}

/// Fires for each thread; a process ends with its last one, and where that is not known, with its leader.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(_: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments. Another task may get the same address.
    let _none = MARKS.remove(unsafe { bpf_get_current_task() });
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if Task::current().and_then(Task::is_last).unwrap_or(pid_tgid as u32 == tgid) {
        // Its number may be another's soon.
        let _none = PROCESSES.remove(tgid);
        quota::process_ends(tgid);
        lineage::ends(tgid);
        report(kind::EXIT);
    }
    0
}

#[inline(always)]
fn report(kind: u32) {
    let Some(mut entry) = EVENTS.reserve::<Process>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    // SAFETY: helpers without arguments.
    let (at_mono_ns, cgroup_id) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_cgroup_id()) };
    entry.write(Process {
        kind,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        at_mono_ns,
        cgroup_id,
        uid: bpf_get_current_uid_gid() as u32,
        reserved: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    });
    // What has begun may end before it is looked at.
    entry.submit(wake(kind == kind::EXEC));
}
