//! What waits for a verdict: armed by the write probe (or by a `ClientHello`), judged at each packet.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use genops_ebpf_common::{DeniedKey, Hold, TimedOut, Verdict, holding, kind, loss, process_mode};

use crate::maps::{DENIED, EVENTS, HOLDS, PROCESSES, VERDICTS, count_loss, settings, wake};

/// Whether requests of this process wait for a verdict, by the settings' [`holding`].
#[inline(always)]
pub(crate) fn is_held(tgid: u32, holding: u32) -> bool {
    if holding == holding::NOBODY || is_void() {
        return false;
    }
    // SAFETY: copied at once.
    match unsafe { PROCESSES.get(tgid) } {
        Some(mode) => *mode == process_mode::ENFORCE,
        None => holding == holding::UNKNOWN_TOO,
    }
}

/// Whether a provider is closed to a process altogether, and the reason for that has not ended. A process
/// that has ended takes its mode along, so that another of its number is not meant.
#[inline(always)]
pub(crate) fn is_closed(tgid: u32, provider: u32) -> bool {
    let Some(settings) = settings() else { return false };
    // SAFETY: copied at once, and looked at once; a helper without arguments.
    unsafe {
        let Some(&until) = DENIED.get(DeniedKey { tgid, provider }) else { return false };
        settings.is_in_force(until, bpf_ktime_get_ns()) && PROCESSES.get(tgid).is_some()
    }
}

/// Whether a process is refused what an agent would decide, since there is none.
#[inline(always)]
pub(crate) fn is_undecided(tgid: u32) -> bool {
    settings().is_some_and(|it| is_held(tgid, it.holding)) && refuses_all()
}

/// Whether requests are refused at once, since nobody decides.
#[inline(always)]
fn refuses_all() -> bool {
    // SAFETY: a helper without arguments.
    settings().is_some_and(|it| it.refuses_all(unsafe { bpf_ktime_get_ns() }))
}

/// Whether what an agent has left here is void.
#[inline(always)]
fn is_void() -> bool {
    // SAFETY: a helper without arguments.
    settings().is_some_and(|it| it.is_void(unsafe { bpf_ktime_get_ns() }))
}

/// From now on nothing before `to` leaves without a verdict. False where there is no room to say so.
#[inline(always)]
pub(crate) fn arm(id: u64, tgid: u32, to: u64) -> bool {
    if refuses_all() {
        // Where there is no room, it ends at the deadline.
        let _full = VERDICTS.insert(id, Verdict { released_to: 0, denied: 1, reserved: 0 }, 0);
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(hold) = HOLDS.get_ptr_mut(id) else {
        let hold = Hold {
            armed_to: to,
            armed_at_mono_ns: now,
            passed_to: 0,
            reported_to: 0,
            tgid,
            reserved: 0,
        };
        let armed = HOLDS.insert(id, hold, 0).is_ok();
        if !armed {
            count_loss(loss::CONNECTIONS_FULL, 1);
        }
        return armed;
    };
    // SAFETY: copied at once; and `hold` is an element of the map, alive while this program runs.
    unsafe {
        let released_to = VERDICTS.get(id).map_or(0, |verdict| verdict.released_to);
        if !(*hold).is_waiting(released_to) {
            (*hold).armed_at_mono_ns = now;
        }
        (*hold).armed_to = to;
    }
    true
}

/// Whether nothing more of this connection may leave.
#[inline(always)]
pub(crate) fn is_denied(id: u64) -> bool {
    // SAFETY: copied at once.
    unsafe { VERDICTS.get(id).is_some_and(|verdict| verdict.denied != 0) }
}

/// Whether payload of this connection may leave now.
#[inline(always)]
pub(crate) fn may_leave(id: u64) -> bool {
    // SAFETY: copied at once.
    let (released_to, denied) = match unsafe { VERDICTS.get(id) } {
        Some(verdict) => (verdict.released_to, verdict.denied),
        None => (0, 0),
    };
    if denied != 0 {
        return false;
    }
    let Some(hold) = HOLDS.get_ptr_mut(id) else { return true };
    // SAFETY: an element of the map, alive while this program runs.
    if unsafe { !(*hold).is_waiting(released_to) } {
        return true;
    }
    let Some(settings) = settings() else { return true };
    // SAFETY: as above.
    let (now, armed_at, to, reported_to) = unsafe {
        (bpf_ktime_get_ns(), (*hold).armed_at_mono_ns, (*hold).armed_to, (*hold).reported_to)
    };
    if now - armed_at < settings.hold_deadline_ns {
        return false;
    }
    let pass = settings.closed == 0;
    // SAFETY: as above.
    unsafe {
        if pass {
            (*hold).passed_to = to;
        }
        (*hold).reported_to = to;
    }
    if reported_to < to {
        report_timeout(id, to, pass);
    }
    pass
}

#[inline(always)]
fn report_timeout(conn: u64, to: u64, pass: bool) {
    let Some(mut entry) = EVENTS.reserve::<TimedOut>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    entry.write(TimedOut { kind: kind::TIMED_OUT, passed: u32::from(pass), conn, to });
    entry.submit(wake(true));
}
