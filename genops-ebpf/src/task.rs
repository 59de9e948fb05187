//! What the kernel knows of a task (`struct task_struct`), where the agent has found out at which places
//! (BTF). Without that, nothing is known.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_get_current_task};
use genops_ebpf_common::{TICK_NS, TaskLayout};

/// Set before the programs are loaded.
#[unsafe(no_mangle)]
static TASK: TaskLayout =
    TaskLayout { pid: 0, tgid: 0, group_leader: 0, start_boottime: 0, signal: 0, live: 0 };

/// A task of which something can be read.
#[derive(Clone, Copy)]
pub(crate) struct Task(u64);

impl Task {
    /// The thread that runs.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: a helper without arguments.
        Self::at(unsafe { bpf_get_current_task() })
    }

    /// The task at an address that the kernel gave.
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Option<Self> {
        (place(&raw const TASK.group_leader) != 0).then_some(Self(address))
    }

    /// Its process's number, where it is not one of its later threads.
    #[inline(always)]
    pub(crate) fn as_process(self) -> Option<u32> {
        let tgid: u32 = read(self.0, place(&raw const TASK.tgid))?;
        let pid: u32 = read(self.0, place(&raw const TASK.pid))?;
        (pid == tgid).then_some(tgid)
    }

    /// Its process's number.
    #[inline(always)]
    pub(crate) fn process(self) -> Option<u32> {
        read(self.0, place(&raw const TASK.tgid))
    }

    /// When its process began, as `/proc` has it: nanoseconds of `CLOCK_BOOTTIME`, down to a tick.
    #[inline(always)]
    pub(crate) fn start_ns(self) -> Option<u64> {
        let leader: u64 = read(self.0, place(&raw const TASK.group_leader))?;
        let start_ns: u64 = read(leader, place(&raw const TASK.start_boottime))?;
        Some(start_ns - start_ns % TICK_NS)
    }

    /// Whether its process has ended when this thread has: none is left that has not begun to end
    /// (`kernel/exit.c`, `do_exit`).
    #[inline(always)]
    pub(crate) fn is_last(self) -> Option<bool> {
        let signal: u64 = read(self.0, place(&raw const TASK.signal))?;
        let live: u32 = read(signal, place(&raw const TASK.live))?;
        Some(live == 0)
    }
}

/// Where a field is.
#[inline(always)]
fn place(field: *const u32) -> u64 {
    // SAFETY: a field of a constant of ours, which the loader may have changed.
    u64::from(unsafe { field.read_volatile() })
}

#[inline(always)]
fn read<T>(structure: u64, place: u64) -> Option<T> {
    // SAFETY: where the address is none of the kernel's, the helper says so.
    unsafe { bpf_probe_read_kernel((structure + place) as *const T).ok() }
}
