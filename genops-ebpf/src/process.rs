//! Exec and exit, so that a process that lives for 20 ms is known while it lives.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_task, bpf_ktime_get_ns},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use genops_ebpf_common::{Process, kind, loss};

use crate::maps::{EVENTS, MARKS, PROCESSES, count_loss, wake};

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(_: RawTracePointContext) -> i32 {
    report(kind::EXEC);
    0
}

/// Fires for each thread; a process ends with its leader.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(_: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments. Another task may get the same address.
    let _none = MARKS.remove(unsafe { bpf_get_current_task() });
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid as u32 == (pid_tgid >> 32) as u32 {
        // Its number may be another's soon.
        let _none = PROCESSES.remove((pid_tgid >> 32) as u32);
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
