//! The kernel's fields of a task (`struct task_struct`), at the offsets found by the agent (BTF).
//! Without offsets, nothing is known.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_get_current_task};
use genops_ebpf_common::{TICK_NS, TaskLayout};

/// Set before the programs are loaded.
#[unsafe(no_mangle)]
static TASK: TaskLayout = TaskLayout {
    pid: 0,
    tgid: 0,
    group_leader: 0,
    real_parent: 0,
    start_boottime: 0,
    signal: 0,
    live: 0,
    interp: 0,
};

/// A task with readable fields.
#[derive(Clone, Copy)]
pub(crate) struct Task(u64);

impl Task {
    /// Returns the current thread.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: a helper without arguments.
        Self::at(unsafe { bpf_get_current_task() })
    }

    /// Returns the task at an address given by the kernel.
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Option<Self> {
        (place(&raw const TASK.group_leader) != 0).then_some(Self(address))
    }

    /// Returns the pid of the process, unless the task is a later thread of the process.
    #[inline(always)]
    pub(crate) fn as_process(self) -> Option<u32> {
        let tgid: u32 = read(self.0, place(&raw const TASK.tgid))?;
        let pid: u32 = read(self.0, place(&raw const TASK.pid))?;
        (pid == tgid).then_some(tgid)
    }

    /// Returns the pid of the process.
    #[inline(always)]
    pub(crate) fn process(self) -> Option<u32> {
        read(self.0, place(&raw const TASK.tgid))
    }

    /// Returns the task that started the process, or adopted the process.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Self> {
        read(self.0, place(&raw const TASK.real_parent)).map(Self)
    }

    /// Returns the start of the process, as in `/proc`: nanoseconds of `CLOCK_BOOTTIME`, rounded
    /// down to a tick.
    #[inline(always)]
    pub(crate) fn start_ns(self) -> Option<u64> {
        let leader: u64 = read(self.0, place(&raw const TASK.group_leader))?;
        let start_ns: u64 = read(leader, place(&raw const TASK.start_boottime))?;
        Some(start_ns - start_ns % TICK_NS)
    }

    /// Returns whether the process has ended together with the current thread: no thread is left
    /// that has not begun to end (`kernel/exit.c`, `do_exit`).
    #[inline(always)]
    pub(crate) fn is_last(self) -> Option<bool> {
        let signal: u64 = read(self.0, place(&raw const TASK.signal))?;
        let live: u32 = read(signal, place(&raw const TASK.live))?;
        Some(live == 0)
    }
}

/// Returns the address of the path of the program about to run, from `struct linux_binprm`.
#[inline(always)]
pub(crate) fn program_path(binary: u64) -> Option<u64> {
    let interp = place(&raw const TASK.interp);
    if interp == 0 { None } else { read(binary, interp) }
}

/// Returns the offset of a field.
#[inline(always)]
fn place(field: *const u32) -> u64 {
    // SAFETY: a field of a constant of the program, possibly changed by the loader.
    u64::from(unsafe { field.read_volatile() })
}

#[inline(always)]
fn read<T>(structure: u64, place: u64) -> Option<T> {
    // SAFETY: the helper reports an address outside the kernel's memory.
    unsafe { bpf_probe_read_kernel((structure + place) as *const T).ok() }
}
