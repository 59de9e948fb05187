//! Copies plaintext into the ring buffer: whole calls, in pieces with stream positions.
//!
//! Bytes left out are counted, and show as a jump of the position in the next piece; no bytes are
//! spliced silently.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use genops_ebpf_common::{
    CALL_LIMIT_MAX, DATA_CLASSES, DATA_CUT, DATA_FIRST, Data, PIECE_LEN, kind, loss, unexplained,
};

use crate::maps::{EVENTS, count_loss, settings, wake};

/// Properties common to the pieces of a call.
#[derive(Clone, Copy)]
struct Source {
    conn: u64,
    direction: u8,
    flags: u8,
    round: u16,
    /// Address in the program's memory.
    address: u64,
    /// Stream position of the first byte.
    offset: u64,
}

impl Source {
    #[inline(always)]
    fn new(conn: u64, kind: u64, address: u64, offset: u64) -> Self {
        let (direction, flags, round) = (kind as u8, (kind >> 8) as u8, (kind >> 16) as u16);
        Self { conn, direction, flags, round, address, offset }
    }
}

/// Pieces in a block: 1 MiB.
const BLOCK_PIECES: u64 = 64;
const MAX_BLOCKS: u64 = CALL_LIMIT_MAX / (BLOCK_PIECES * PIECE_LEN as u64);

#[repr(C)]
struct Piece<const N: usize> {
    header: Data,
    payload: [u8; N],
}

/// Sends `len` bytes of a call to the agent: `kind` is the direction, shifted by 8 the flags, and
/// by 16 the [`genops_ebpf_common::Hold::round`]. For a call above the limit, the function sends
/// the first bytes up to the limit and the last piece: the end of a message states its cost.
///
/// Stops at the first piece not readable or not sendable, and returns the reason ([`unexplained`]);
/// otherwise 0.
///
/// Separate function of numbers only: the verifier then checks the loop once, and not for each path
/// to the call.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn emit_call(
    conn: u64,
    kind: u64,
    address: u64,
    offset: u64,
    len: u64,
) -> u64 {
    let Some(settings) = settings() else { return 0 };
    let mut kind = kind | FIRST;
    let limit =
        if settings.call_limit > CALL_LIMIT_MAX { CALL_LIMIT_MAX } else { settings.call_limit };
    let mut left = len;
    if len > limit + PIECE_LEN as u64 {
        left = limit;
    }
    let (cut, mut done, mut block) = (len - left, 0, 0);
    while block < MAX_BLOCKS {
        if left < PIECE_LEN as u64 {
            break;
        }
        let sent = emit_block(conn, kind, address + done, offset + done, left);
        if sent >= LOST {
            return sent - LOST;
        }
        kind &= !FIRST;
        done += sent;
        left -= sent;
        block += 1;
    }
    if left > 0 {
        let lost = last_piece(&Source::new(conn, kind, address + done, offset + done), left);
        if lost != 0 {
            return lost;
        }
    }
    if cut > 0 {
        let last = len - PIECE_LEN as u64;
        count_loss(loss::LIMIT_BYTES, cut - PIECE_LEN as u64);
        return emit_piece(conn, kind & !FIRST | CUT, address + last, offset + last);
    }
    0
}

/// [`DATA_FIRST`] and [`DATA_CUT`] in a `kind`.
const FIRST: u64 = (DATA_FIRST as u64) << 8;
const CUT: u64 = (DATA_CUT as u64) << 8;
/// Added by [`emit_block`] to the reason of an early end.
const LOST: u64 = 1 << 32;
const RING_FULL: u64 = unexplained::RING_FULL as u64;
const UNREAD_PAGE: u64 = unexplained::UNREAD_PAGE as u64;

/// Sends whole pieces of `len` bytes, at most [`BLOCK_PIECES`]; returns the number of bytes sent.
/// Separate function because the verifier's time for a loop grows with the square of its rounds.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn emit_block(
    conn: u64,
    kind: u64,
    address: u64,
    offset: u64,
    len: u64,
) -> u64 {
    let (mut kind, mut done, mut piece) = (kind, 0, 0);
    while piece < BLOCK_PIECES {
        if len - done < PIECE_LEN as u64 {
            break;
        }
        let lost = emit_piece(conn, kind, address + done, offset + done);
        if lost != 0 {
            return LOST + lost;
        }
        kind &= !FIRST;
        done += PIECE_LEN as u64;
        piece += 1;
    }
    done
}

/// Sends a whole piece. Separate function, so that the verifier checks the function once and not in
/// each round of each loop: Linux 6.1 gives up otherwise.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn emit_piece(conn: u64, kind: u64, address: u64, offset: u64) -> u64 {
    let source = Source::new(conn, kind, address, offset);
    // A whole piece is worth a wake-up.
    piece::<PIECE_LEN>(&source, PIECE_LEN as u32, wake(true))
}

/// Sends less than a whole piece, in the smallest sufficient class.
#[inline(always)]
fn last_piece(source: &Source, len: u64) -> u64 {
    const SMALL: usize = DATA_CLASSES[0];
    const MEDIUM: usize = DATA_CLASSES[1];
    const LARGE: usize = DATA_CLASSES[2];
    let (len, wakes) = (len as u32, wake(source.flags & !DATA_FIRST != 0));
    if len <= SMALL as u32 {
        piece::<SMALL>(source, len, wakes)
    } else if len <= MEDIUM as u32 {
        piece::<MEDIUM>(source, len, wakes)
    } else if len <= LARGE as u32 {
        piece::<LARGE>(source, len, wakes)
    } else {
        piece::<PIECE_LEN>(source, len, wakes)
    }
}

#[inline(always)]
fn piece<const N: usize>(source: &Source, len: u32, wakes: u64) -> u64 {
    // Opaque to the compiler, so that the check is made on the very value passed to the helper: the
    // verifier forgets bounds checked on a copy.
    let len = core::hint::black_box(len);
    if len > N as u32 {
        return 0;
    }
    let Some(mut entry) = EVENTS.reserve::<Piece<N>>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        count_loss(loss::RING_FULL_BYTES, u64::from(len));
        return RING_FULL;
    };
    let record: *mut Piece<N> = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `record` is N bytes and a header of reserved ring buffer, and `len` is at most N. The
    // address is the program's own buffer; the helper reports an unreadable address.
    let failed = unsafe {
        (&raw mut (*record).header).write(Data {
            kind: kind::DATA,
            direction: source.direction,
            flags: source.flags,
            round: source.round,
            at_mono_ns: bpf_ktime_get_ns(),
            conn: source.conn,
            offset: source.offset,
            tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
            captured_len: len,
        });
        bpf_probe_read_user((&raw mut (*record).payload).cast(), len, source.address as *const _)
    };
    if failed == 0 {
        entry.submit(wakes);
        return 0;
    }
    entry.discard(0);
    count_loss(loss::FAULT_BYTES, u64::from(len));
    UNREAD_PAGE
}
