//! Writes waiting for a verdict: armed by the write probe (or by a `ClientHello`), judged at each
//! packet.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use genops_ebpf_common::{
    Bounds, DeniedKey, Hold, Settings, Sock, TimedOut, Unexplained, Verdict, holding, kind, loss,
    process_mode, unexplained,
};

use crate::maps::{DENIED, EVENTS, HOLDS, PROCESSES, VERDICTS, count_loss, settings, wake};

/// Returns whether requests of the process wait for a verdict, by the settings' [`holding`].
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

/// Returns whether a provider is closed to a process altogether, for a reason still in force. The
/// end of a process removes its mode, so that a later process with the same pid is not affected.
#[inline(always)]
pub(crate) fn is_closed(tgid: u32, provider: u32) -> bool {
    let Some(settings) = settings() else { return false };
    // SAFETY: copied at once, and looked at once; a helper without arguments.
    unsafe {
        let Some(&until) = DENIED.get(DeniedKey { tgid, provider }) else { return false };
        settings.is_in_force(until, bpf_ktime_get_ns()) && PROCESSES.get(tgid).is_some()
    }
}

/// Returns whether a process is refused for want of an agent to decide.
#[inline(always)]
pub(crate) fn is_undecided(tgid: u32) -> bool {
    settings().is_some_and(|it| is_held(tgid, it.holding)) && refuses_all()
}

/// Returns whether requests are refused at once, because no agent decides.
#[inline(always)]
fn refuses_all() -> bool {
    // SAFETY: a helper without arguments.
    settings().is_some_and(|it| it.refuses_all(unsafe { bpf_ktime_get_ns() }))
}

/// Returns whether the decisions left by an agent are void.
#[inline(always)]
fn is_void() -> bool {
    // SAFETY: a helper without arguments.
    settings().is_some_and(|it| it.is_void(unsafe { bpf_ktime_get_ns() }))
}

/// Arms the hold: from now on no byte before `to` leaves without a verdict. `from` is the beginning
/// of the write. Returns the round of the hold; `None` without room for the hold.
#[inline(always)]
pub(crate) fn arm(id: u64, tgid: u32, from: u64, to: u64) -> Option<u32> {
    if refuses_all() {
        // Without room for the verdict, the request ends at the deadline.
        let _full = VERDICTS.insert(id, Verdict { released_to: 0, denied: 1, round: 0 }, 0);
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(hold) = HOLDS.get_ptr_mut(id) else {
        let hold = Hold {
            armed_to: to,
            armed_at_mono_ns: now,
            passed_to: 0,
            reported_to: 0,
            unexplained_at_mono_ns: 0,
            from: 0,
            round: 0,
            tgid,
            unread: 0,
            reported: 0,
        };
        if HOLDS.insert(id, hold, 0).is_err() {
            count_loss(loss::CONNECTIONS_FULL, 1);
            return None;
        }
        return Some(0);
    };
    // SAFETY: copied at once; and `hold` is an element of the map, alive while this program runs.
    unsafe {
        let verdict = verdict_of(id);
        if !(*hold).is_waiting((*hold).released_to(&verdict)) {
            (*hold).armed_at_mono_ns = now;
        }
        if from < (*hold).armed_to {
            // The library has not taken bytes reported before: the decision about the bytes is
            // void.
            (*hold).round = (*hold).round.wrapping_add(1);
            (*hold).from = from;
            (*hold).armed_at_mono_ns = now;
            if (*hold).passed_to > from {
                (*hold).passed_to = from;
            }
        }
        (*hold).armed_to = to;
        Some((*hold).round)
    }
}

/// Returns the verdict on a connection.
#[inline(always)]
fn verdict_of(id: u64) -> Verdict {
    // SAFETY: copied at once.
    unsafe { VERDICTS.get(id).map_or(Verdict { released_to: 0, denied: 0, round: 0 }, |it| *it) }
}

/// Marks and reports unreadable plaintext of the write armed last: at `address` in the program's
/// memory, from position `from` on.
#[inline(always)]
pub(crate) fn set_unread(id: u64, tgid: u32, reason: u32, address: u64, from: u64) {
    let Some(hold) = HOLDS.get_ptr_mut(id) else { return };
    // SAFETY: an element of the map, alive while this program runs.
    let (seen_to, round) = unsafe {
        (*hold).unread = reason;
        ((*hold).armed_to, (*hold).round)
    };
    report_unread(&Unexplained {
        kind: kind::UNEXPLAINED,
        state: unexplained::WAITS,
        conn: id,
        // SAFETY: a helper without arguments.
        at_mono_ns: unsafe { bpf_ktime_get_ns() },
        seen_to,
        bytes: 0,
        reason,
        tgid,
        address,
        from,
        round,
        reserved: 0,
    });
}

/// Clears the mark: plaintext unreadable before has been read by now.
#[inline(always)]
pub(crate) fn set_read(id: u64) {
    if let Some(hold) = HOLDS.get_ptr_mut(id) {
        // SAFETY: an element of the map, alive while this program runs.
        unsafe { (*hold).unread = 0 };
    }
}

/// Returns whether bytes of the connection wait for a verdict, or the connection is denied.
#[inline(always)]
pub(crate) fn is_waiting(id: u64) -> bool {
    let verdict = verdict_of(id);
    let Some(hold) = HOLDS.get_ptr_mut(id) else { return verdict.denied != 0 };
    // SAFETY: an element of the map, alive while this program runs.
    verdict.denied != 0 || unsafe { (*hold).is_waiting((*hold).released_to(&verdict)) }
}

/// Returns whether the connection is denied: no more bytes may leave.
#[inline(always)]
pub(crate) fn is_denied(id: u64) -> bool {
    // SAFETY: copied at once.
    unsafe { VERDICTS.get(id).is_some_and(|verdict| verdict.denied != 0) }
}

/// Returns whether payload of the connection, with no plaintext read, may leave now.
#[inline(always)]
pub(crate) fn may_leave(id: u64) -> bool {
    let verdict = verdict_of(id);
    if verdict.denied != 0 {
        return false;
    }
    let Some(hold) = HOLDS.get_ptr_mut(id) else { return true };
    // SAFETY: an element of the map, alive while this program runs.
    if unsafe { !(*hold).is_waiting(verdict.released_to) } {
        return true;
    }
    let Some(settings) = settings() else { return true };
    deadline(hold, id, settings)
}

/// Applies the deadline to bytes waiting for a verdict: returns whether the bytes may leave now.
#[inline(always)]
pub(crate) fn deadline(hold: *mut Hold, id: u64, settings: &Settings) -> bool {
    // SAFETY: an element of the map, alive while this program runs.
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

/// Puts the bounds of a socket into its working memory. False: no bytes may leave.
#[inline(always)]
pub(crate) fn bounds(sock: *mut Sock, id: u64, held: bool) -> bool {
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        if !held {
            (*sock).seen_to = Bounds::FREE;
            (*sock).released_to = Bounds::FREE;
            return true;
        }
        let verdict = verdict_of(id);
        if verdict.denied != 0 {
            return false;
        }
        let (mut seen_to, mut released_to) = (0, 0);
        if let Some(hold) = HOLDS.get_ptr_mut(id) {
            seen_to = (*hold).armed_to;
            released_to = (*hold).released_to(&verdict);
            if (*hold).passed_to > released_to {
                released_to = (*hold).passed_to;
            }
            if released_to > seen_to {
                released_to = seen_to;
            }
        }
        (*sock).seen_to = seen_to.saturating_add((*sock).excess);
        (*sock).released_to = released_to.saturating_add((*sock).excess);
    }
    true
}

/// Holds unexplained bytes until the deadline; afterwards the settings decide. Returns whether the
/// bytes may leave now.
#[inline(always)]
pub(crate) fn unexplained_may_leave(sock: *mut Sock, id: u64, settings: &Settings) -> bool {
    // SAFETY: elements of maps, alive while this program runs, and a helper without arguments.
    unsafe {
        let now = bpf_ktime_get_ns();
        let tgid = (*sock).tgid;
        if HOLDS.get_ptr_mut(id).is_none() && arm(id, tgid, 0, 0).is_none() {
            // The beginning of the wait cannot be recorded.
            return settings.closed == 0 && settings.unread_stays == 0;
        }
        let Some(hold) = HOLDS.get_ptr_mut(id) else { return false };
        let reason = match (*hold).unread {
            0 if (*sock).trial.phase == genops_ebpf_common::phase::LOST => unexplained::NO_RECORDS,
            0 => unexplained::NO_PLAINTEXT,
            reason => reason,
        };
        let since = if (*hold).unread != 0 {
            (*hold).armed_at_mono_ns
        } else {
            (*hold).unexplained_at_mono_ns
        };
        let (seen_to, bytes) = ((*hold).armed_to, (*sock).trial.left);
        if since == 0 {
            (*hold).unexplained_at_mono_ns = now;
            (*hold).reported = 0;
            report_unexplained(id, tgid, unexplained::WAITS, reason, seen_to, bytes);
            return false;
        }
        if now - since < settings.hold_deadline_ns {
            return false;
        }
        let pass = settings.unread_stays == 0;
        if pass {
            (*hold).unexplained_at_mono_ns = 0;
            (*hold).unread = 0;
            (*hold).passed_to = seen_to;
        }
        if pass || (*hold).reported == 0 {
            (*hold).reported = 1;
            let state = if pass { unexplained::PASSED } else { unexplained::STOPPED };
            report_unexplained(id, tgid, state, reason, seen_to, bytes);
        }
        pass
    }
}

#[inline(always)]
fn report_unexplained(conn: u64, tgid: u32, state: u32, reason: u32, seen_to: u64, bytes: u32) {
    report_unread(&Unexplained {
        kind: kind::UNEXPLAINED,
        state,
        conn,
        // SAFETY: a helper without arguments.
        at_mono_ns: unsafe { bpf_ktime_get_ns() },
        seen_to,
        bytes: u64::from(bytes),
        reason,
        tgid,
        address: 0,
        from: 0,
        round: 0,
        reserved: 0,
    });
}

#[inline(always)]
fn report_unread(found: &Unexplained) {
    let Some(mut entry) = EVENTS.reserve::<Unexplained>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    entry.write(*found);
    entry.submit(wake(true));
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
