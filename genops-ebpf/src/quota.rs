//! Quotas of a process, and of a user, in the maps shared by all processes.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use genops_ebpf_common::{CONNECTIONS_OF_PROCESS, OPENS_PER_SECOND, Usage, loss};

use crate::maps::{USAGE, USERS, count_loss};

/// TLS objects of one user.
const OBJECTS_OF_USER: u32 = 3 * CONNECTIONS_OF_PROCESS;
const SECOND_NS: u64 = 1_000_000_000;

/// Counts a TLS object taken up by a process, the first time or again. False: the process or user
/// has no share left.
#[inline(always)]
pub(crate) fn object(tgid: u32, uid: u32, new: bool) -> bool {
    let may = may_open(tgid, uid, new).unwrap_or(false);
    if !may {
        count_loss(loss::QUOTA, 1);
    }
    may
}

#[inline(always)]
fn may_open(tgid: u32, uid: u32, new: bool) -> Option<bool> {
    let usage = usage_of(tgid)?;
    // SAFETY: elements of maps, alive while the program runs; two threads at once cost accuracy
    // only.
    unsafe {
        let second = bpf_ktime_get_ns() / SECOND_NS;
        if (*usage).second != second {
            (*usage).second = second;
            (*usage).opens = 0;
        }
        if (*usage).opens >= OPENS_PER_SECOND {
            return Some(false);
        }
        (*usage).opens += 1;
        if !new {
            return Some(true);
        }
        if (*usage).objects >= CONNECTIONS_OF_PROCESS {
            return Some(false);
        }
        if USERS.get_ptr_mut(uid).is_none() {
            USERS.insert(uid, 0, 0).ok()?;
        }
        let of_user = USERS.get_ptr_mut(uid)?;
        if *of_user >= OBJECTS_OF_USER {
            return Some(false);
        }
        *of_user += 1;
        (*usage).objects += 1;
    }
    Some(true)
}

/// Subtracts a TLS object at its end.
#[inline(always)]
pub(crate) fn object_ends(tgid: u32, uid: u32) {
    // SAFETY: elements of maps, alive while this program runs.
    unsafe {
        if let Some(usage) = USAGE.get_ptr_mut(tgid) {
            (*usage).objects = (*usage).objects.saturating_sub(1);
        }
        if let Some(of_user) = USERS.get_ptr_mut(uid) {
            *of_user = (*of_user).saturating_sub(1);
        }
    }
}

/// Share of the quota used by a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// For connections beginning now.
    New,
    /// For connections older than the programs. Sockets of new connections take no place of the
    /// share: otherwise a process could use up the places, and its older connections would go
    /// unfollowed.
    Older,
}

/// Counts a followed socket of a process. False: the process has no share left.
#[inline(always)]
pub(crate) fn socket(tgid: u32, share: Share) -> bool {
    let most = match share {
        Share::New => CONNECTIONS_OF_PROCESS,
        Share::Older => 2 * CONNECTIONS_OF_PROCESS,
    };
    let Some(usage) = usage_of(tgid) else {
        count_loss(loss::QUOTA, 1);
        return false;
    };
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        if (*usage).sockets >= most {
            count_loss(loss::QUOTA, 1);
            return false;
        }
        (*usage).sockets += 1;
    }
    true
}

/// Subtracts a socket closed by a process.
#[inline(always)]
pub(crate) fn socket_ends(tgid: u32) {
    if let Some(usage) = USAGE.get_ptr_mut(tgid) {
        // SAFETY: an element of the map, alive while this program runs.
        unsafe { (*usage).sockets = (*usage).sockets.saturating_sub(1) };
    }
}

/// Removes the usage of an ended process. (The agent counts the TLS objects of the user anew.)
#[inline(always)]
pub(crate) fn process_ends(tgid: u32) {
    let _none = USAGE.remove(tgid);
}

#[inline(always)]
fn usage_of(tgid: u32) -> Option<*mut Usage> {
    if let Some(found) = USAGE.get_ptr_mut(tgid) {
        return Some(found);
    }
    let new = Usage { second: 0, opens: 0, objects: 0, sockets: 0, reserved: 0 };
    USAGE.insert(tgid, new, 0).ok()?;
    USAGE.get_ptr_mut(tgid)
}
