//! The two clocks.

use genops_governance::Now;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC`, as in the time stamps of the kernel programs, and the time of day.
pub(crate) fn now() -> Now {
    Now { mono_ns: mono_ns(), unix_ns: ns(clock_gettime(ClockId::Realtime)) }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn mono_ns() -> u64 {
    ns(clock_gettime(ClockId::Monotonic))
}

/// Converts a time of `CLOCK_BOOTTIME`, as in the start time of `/proc/PID/stat`, to
/// `CLOCK_MONOTONIC`; too early if the host has slept since.
pub(crate) fn mono_of_boot_ns(boot_ns: u64) -> u64 {
    let asleep_ns = ns(clock_gettime(ClockId::Boottime)).saturating_sub(mono_ns());
    boot_ns.saturating_sub(asleep_ns)
}

fn ns(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.unsigned_abs())
}
