//! Exec, fork and exit, so that the agent knows even a process of 20 ms before the exit.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_task, bpf_ktime_get_ns,
            bpf_probe_read_kernel_str,
        },
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use genops_ebpf_common::{EXEC_PATH_LEN, Exec, Process, kind, loss};

use crate::{
    lineage,
    maps::{EVENTS, MARKS, PROCESSES, count_loss, wake},
    quota,
    task::{Task, program_path},
};

/// Fires in the process: `task_struct`, former pid, and program (`struct linux_binprm`).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    // Before the report, so that the agent's answer comes after the mark.
    let _unknown = lineage::begins();
    let Some(mut entry) = EVENTS.reserve::<Exec>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return 0;
    };
    let exec = entry.as_mut_ptr();
    // SAFETY: the reserved record is as long as an `Exec`; the helper writes no further than the
    // end of the path.
    unsafe {
        (&raw mut (*exec).process).write(current(kind::EXEC));
        let path = &raw mut (*exec).path;
        (*path)[0] = 0;
        if let Some(from) = program_path(ctx.arg(2)) {
            let len =
                bpf_probe_read_kernel_str(path.cast(), EXEC_PATH_LEN as u32, from as *const _);
            // Too long (the path fills the field), or absent.
            let is_whole =
                u64::try_from(len).is_ok_and(|len| len > 0 && len < EXEC_PATH_LEN as u64);
            if !is_whole {
                (*path)[0] = 0;
            }
        }
    }
    // The process may end before the agent looks at it.
    entry.submit(wake(true));
    0
}

/// Fires for each new thread, in the starting process and before the new task can run:
/// `task_struct` of the parent, and of the child (`include/trace/events/sched.h`).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(ctx: RawTracePointContext) -> i32 {
    let _nothing = lineage::hand_down(ctx.arg(1));
    0
}

/// Fires for each thread. A process ends with the last thread; if the last thread is not known,
/// with its leader.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(_: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments. Another task may get the same address.
    let _none = MARKS.remove(unsafe { bpf_get_current_task() });
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if Task::current().and_then(Task::is_last).unwrap_or(pid_tgid as u32 == tgid) {
        // The pid may soon belong to another process.
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
    entry.write(current(kind));
    entry.submit(wake(false));
}

/// Returns the description of the current process.
#[inline(always)]
fn current(kind: u32) -> Process {
    // SAFETY: helpers without arguments.
    let (at_mono_ns, cgroup_id) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_cgroup_id()) };
    Process {
        kind,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        at_mono_ns,
        cgroup_id,
        uid: bpf_get_current_uid_gid() as u32,
        reserved: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}
