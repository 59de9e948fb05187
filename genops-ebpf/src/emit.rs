//! Plaintext into the ring buffer: whole calls, in pieces with stream positions.
//!
//! What does not fit is counted, and shows as a jump of the position in the next piece; nothing is
//! spliced silently.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use genops_ebpf_common::{CALL_LIMIT_MAX, DATA_CLASSES, DATA_CUT, Data, PIECE_LEN, kind, loss};

use crate::maps::{EVENTS, count_loss, settings, wake};

/// What the pieces of one call have in common.
#[derive(Clone, Copy)]
struct Source {
    conn: u64,
    direction: u8,
    flags: u8,
    /// Address in the program's memory.
    address: u64,
    /// Stream position of the first byte.
    offset: u64,
}

/// Pieces in a block: 1 MiB.
const BLOCK_PIECES: u64 = 64;
const MAX_BLOCKS: u64 = CALL_LIMIT_MAX / (BLOCK_PIECES * PIECE_LEN as u64);

#[repr(C)]
struct Piece<const N: usize> {
    header: Data,
    payload: [u8; N],
}

/// Sends `len` bytes of a call to the agent: `kind` is the direction, and shifted by 8 the flags. Of a
/// call above the limit, the first bytes up to the limit and the last piece: the end of a message says
/// what it cost.
///
/// A function of its own, with numbers only: the verifier then checks its loop once, and not for each
/// way that leads here.
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
    let mut source =
        Source { conn, direction: kind as u8, flags: (kind >> 8) as u8, address, offset };
    let limit =
        if settings.call_limit > CALL_LIMIT_MAX { CALL_LIMIT_MAX } else { settings.call_limit };
    let mut left = len;
    if len > limit + PIECE_LEN as u64 {
        left = limit;
    }
    let cut = len - left;
    let mut block = 0;
    while block < MAX_BLOCKS {
        if left < PIECE_LEN as u64 {
            break;
        }
        let sent = emit_block(conn, kind, source.address, source.offset, left);
        source.address += sent;
        source.offset += sent;
        left -= sent;
        block += 1;
    }
    if left > 0 {
        last_piece(&source, left);
    }
    if cut > 0 {
        let skipped = left + cut - PIECE_LEN as u64;
        source.address += skipped;
        source.offset += skipped;
        source.flags |= DATA_CUT;
        count_loss(loss::LIMIT_BYTES, cut - PIECE_LEN as u64);
        whole_piece(&source);
    }
    0
}

/// Sends whole pieces of `len` bytes, at most [`BLOCK_PIECES`]; says how many bytes that were. A
/// function of its own because the verifier's time for a loop grows with the square of its rounds.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn emit_block(
    conn: u64,
    kind: u64,
    address: u64,
    offset: u64,
    len: u64,
) -> u64 {
    let mut source =
        Source { conn, direction: kind as u8, flags: (kind >> 8) as u8, address, offset };
    let mut left = len;
    let mut piece = 0;
    while piece < BLOCK_PIECES {
        if left < PIECE_LEN as u64 {
            break;
        }
        whole_piece(&source);
        source.address += PIECE_LEN as u64;
        source.offset += PIECE_LEN as u64;
        left -= PIECE_LEN as u64;
        piece += 1;
    }
    len - left
}

#[inline(always)]
fn whole_piece(source: &Source) {
    // So much is worth a look.
    piece::<PIECE_LEN>(source, PIECE_LEN as u32, wake(true));
}

/// Less than a whole piece, in the smallest class that holds it.
#[inline(always)]
fn last_piece(source: &Source, len: u64) {
    const SMALL: usize = DATA_CLASSES[0];
    const MEDIUM: usize = DATA_CLASSES[1];
    const LARGE: usize = DATA_CLASSES[2];
    let (len, wakes) = (len as u32, wake(source.flags != 0));
    if len <= SMALL as u32 {
        piece::<SMALL>(source, len, wakes);
    } else if len <= MEDIUM as u32 {
        piece::<MEDIUM>(source, len, wakes);
    } else if len <= LARGE as u32 {
        piece::<LARGE>(source, len, wakes);
    } else if len <= PIECE_LEN as u32 {
        piece::<PIECE_LEN>(source, len, wakes);
    }
}

#[inline(always)]
fn piece<const N: usize>(source: &Source, len: u32, wakes: u64) {
    // Opaque to the compiler, so that the check is made on the very value that the helper gets: the
    // verifier forgets bounds that were checked on a copy.
    let len = core::hint::black_box(len);
    if len > N as u32 {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Piece<N>>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        count_loss(loss::RING_FULL_BYTES, u64::from(len));
        return;
    };
    let record: *mut Piece<N> = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `record` is N bytes and a header of reserved ring buffer, and `len` is at most N. The
    // address is the program's own buffer; where it can't be read the helper says so.
    let failed = unsafe {
        (&raw mut (*record).header).write(Data {
            kind: kind::DATA,
            direction: source.direction,
            flags: source.flags,
            reserved: 0,
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
    } else {
        entry.discard(0);
        count_loss(loss::FAULT_BYTES, u64::from(len));
    }
}
