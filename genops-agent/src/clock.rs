//! The two clocks.

use genops_governance::Now;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC`, which the kernel programs stamp records with, and the time of day.
pub(crate) fn now() -> Now {
    Now { mono_ns: mono_ns(), unix_ns: ns(clock_gettime(ClockId::Realtime)) }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn mono_ns() -> u64 {
    ns(clock_gettime(ClockId::Monotonic))
}

fn ns(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.unsigned_abs())
}
