//! Recognition of AI traffic in the kernel, so that no other traffic on the host is copied or held.
//!
//! A connection is AI traffic if the server name given to the TLS library is a provider's, or if an
//! HTTP/1 request on the connection names a provider's host or an AI API's path. The names are
//! compared from the end, as a longest-prefix match on the reversed name.

use core::ptr;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_user},
    maps::{LpmTrie, lpm_trie::Key},
};
use genops_ebpf_common::{NAME_LEN, NameKey, NameRule};

use crate::maps::{EMPTY_SCRATCH, HOSTS, PATHS, SCRATCH, Scratch, WINDOW};

const NAME_MASK: u32 = NAME_LEN as u32 - 1;
/// Byte before a name: the blank of the request line and, by custom, of the header.
const BORDER: u8 = b' ';
/// Byte after the bytes read; a head has no NUL (RFC 9110 §5.5).
const END: u8 = 0;
const BYTES_MASK: u32 = 2 * WINDOW as u32 - 1;

/// Returns the thread's working memory.
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut Scratch> {
    scratch_of(bpf_get_current_pid_tgid())
}

/// Returns the working memory of a thread or of a socket: no other code may use the memory at the
/// same time.
#[inline(always)]
pub(crate) fn scratch_of(user: u64) -> Option<*mut Scratch> {
    if let Some(found) = SCRATCH.get_ptr_mut(user) {
        return Some(found);
    }
    SCRATCH.insert(user, EMPTY_SCRATCH.get(0)?, 0).ok()?;
    SCRATCH.get_ptr_mut(user)
}

/// Returns the number of the provider named by the `len` bytes after the first of `bytes`.
#[inline(always)]
pub(crate) fn provider_of_name(scratch: *mut Scratch, len: u32) -> Option<u32> {
    // SAFETY: `scratch` is this thread's own map element.
    unsafe {
        *(&raw mut (*scratch).bytes).cast::<u8>() = BORDER;
        (*scratch).start = 1;
        (*scratch).end = 1 + len;
    }
    matches(scratch, &HOSTS)
}

/// Result of [`is_ai_request`]: unknown bytes.
pub(crate) const OTHER: u64 = 0;
/// Result of [`is_ai_request`]: the preface of HTTP/2 (RFC 9113 §3.4).
pub(crate) const HTTP2_BEGINS: u64 = 1;
/// Result of [`is_ai_request`]: a frame of HTTP/2 opening a stream (RFC 9113 §6.2).
pub(crate) const HTTP2_GOES_ON: u64 = 2;
/// Result of [`is_ai_request`]: a request to an AI API, plus the number of the provider if the host
/// is known.
pub(crate) const AI: u64 = 3;

/// Classifies the beginning of the `len` bytes at `address`.
///
/// Separate function of numbers only: the verifier then checks the loops once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_ai_request(address: u64, len: u64) -> u64 {
    if len < 16 {
        return OTHER;
    }
    let mut first = [0u8; 8];
    // SAFETY: eight bytes onto the stack; the address is the program's own buffer of 16 or more.
    if unsafe { bpf_probe_read_user(first.as_mut_ptr().cast(), 8, address as *const _) } != 0 {
        return OTHER;
    }
    if is_method(&first) {
        return looks_like_ai(address, len).map_or(OTHER, |provider| AI + u64::from(provider));
    }
    if first == *b"PRI * HT" {
        return HTTP2_BEGINS;
    }
    if opens_stream(&first) { HTTP2_GOES_ON } else { OTHER }
}

/// Returns whether the eight bytes begin a whole HEADERS frame at the start of a client's stream,
/// with a length usual for requests.
#[inline(always)]
fn opens_stream(first: &[u8; 8]) -> bool {
    const HEADERS: u8 = 1;
    const END_HEADERS: u8 = 4;
    first[0] == 0
        && first[1] < 64
        && first[3] == HEADERS
        && first[4] & END_HEADERS != 0
        && first[5] & 0x80 == 0
}

#[inline(always)]
fn looks_like_ai(address: u64, len: u64) -> Option<u32> {
    let scratch = scratch()?;
    let window = if len < WINDOW as u64 { len as u32 } else { WINDOW as u32 };
    // SAFETY: `bytes` has twice WINDOW.
    let failed = unsafe {
        bpf_probe_read_user((&raw mut (*scratch).bytes).cast(), window, address as *const _)
    };
    if failed != 0 {
        return None;
    }
    // The end is a byte and not a number to compare with: otherwise the verifier would follow each
    // length.
    // SAFETY: the mask keeps the index within `bytes`.
    unsafe {
        *(&raw mut (*scratch).bytes).cast::<u8>().add((window & BYTES_MASK) as usize) = END;
    }
    // Not `or_else`: the verifier follows each combination of states left by a closure.
    find_host(scratch);
    let by_host = matches(scratch, &HOSTS);
    if by_host.is_some() {
        return by_host;
    }
    find_path(scratch);
    matches(scratch, &PATHS)
}

/// Returns whether the method is used to call AI APIs: POST, or GET for an upgrade to WebSocket.
#[inline(always)]
fn is_method(bytes: &[u8; 8]) -> bool {
    let post = bytes[0] == b'P'
        && bytes[1] == b'O'
        && bytes[2] == b'S'
        && bytes[3] == b'T'
        && bytes[4] == b' ';
    let get = bytes[0] == b'G' && bytes[1] == b'E' && bytes[2] == b'T' && bytes[3] == b' ';
    post || get
}

/// Returns byte `at` of the window; beyond the window, some byte of the room behind.
#[inline(always)]
fn byte(scratch: *mut Scratch, at: u32) -> u8 {
    // SAFETY: the mask keeps the index within `bytes`.
    unsafe { *(&raw const (*scratch).bytes).cast::<u8>().add((at & BYTES_MASK) as usize) }
}

/// Puts the borders of the request's path (without query) into `start` and `end`.
#[inline(always)]
fn find_path(scratch: *mut Scratch) {
    let start = if byte(scratch, 0) == b'P' { 5 } else { 4 };
    // Through memory, and not in registers: the verifier then sees one state behind each loop.
    // SAFETY: this thread's own map element.
    unsafe {
        (*scratch).start = start;
        (*scratch).end = start;
    }
    let mut at = start;
    while at < WINDOW as u32 {
        let it = byte(scratch, at);
        if it == b' ' || it == b'?' || it == END {
            // SAFETY: as above.
            unsafe { (*scratch).end = at };
            break;
        }
        at += 1;
    }
}

/// Puts the borders of the `Host` header's name (without port) into `start` and `end`.
#[inline(always)]
fn find_host(scratch: *mut Scratch) {
    // SAFETY: this thread's own map element, here and below.
    unsafe {
        (*scratch).start = 0;
        (*scratch).end = 0;
    }
    let mut at = 4;
    while at < WINDOW as u32 - 8 {
        let it = byte(scratch, at);
        if it == END {
            break;
        }
        if it == b'\n' && is_host_header(scratch, at + 1) {
            // SAFETY: this thread's own map element; here and below.
            unsafe { (*scratch).start = at + 6 };
            break;
        }
        at += 1;
    }
    // SAFETY: as above.
    let mut start = unsafe { ptr::read_volatile(&raw const (*scratch).start) };
    if start == 0 {
        return;
    }
    if byte(scratch, start) == b' ' {
        start += 1;
        // SAFETY: as above.
        unsafe { (*scratch).start = start };
    } else {
        // `Host:name` is allowed (RFC 9112 §5): a border in place of the colon.
        // SAFETY: as above, and the mask keeps the index within `bytes`.
        unsafe {
            *(&raw mut (*scratch).bytes)
                .cast::<u8>()
                .add((start.wrapping_sub(1) & BYTES_MASK) as usize) = BORDER;
        }
    }
    let mut length = 0;
    while length < NAME_LEN as u32 {
        let it = byte(scratch, start + length);
        if it == b'\r' || it == b'\n' || it == b':' || it == b' ' || it == END {
            // SAFETY: as above.
            unsafe { (*scratch).end = start + length };
            break;
        }
        length += 1;
    }
}

#[inline(always)]
fn is_host_header(scratch: *mut Scratch, at: u32) -> bool {
    (byte(scratch, at) | 0x20) == b'h'
        && (byte(scratch, at + 1) | 0x20) == b'o'
        && (byte(scratch, at + 2) | 0x20) == b's'
        && (byte(scratch, at + 3) | 0x20) == b't'
        && byte(scratch, at + 4) == b':'
}

/// Returns the provider of the name between `start` and `end`, if the trie has the name. A border
/// stands before `start`.
///
/// The loop ends by a byte read and not by a length, and the result goes through memory: the
/// verifier then follows two states (before and behind the border) instead of a state for each
/// length.
#[inline(always)]
fn matches(scratch: *mut Scratch, trie: &LpmTrie<NameKey, NameRule>) -> Option<u32> {
    // SAFETY: this thread's own map element; indices are masked to the arrays' sizes.
    unsafe {
        let start = ptr::read_volatile(&raw const (*scratch).start);
        let end = ptr::read_volatile(&raw const (*scratch).end);
        let name = (&raw mut (*scratch).name).cast::<u8>();
        let mut behind = false;
        let mut at = 0;
        while at < NAME_LEN as u32 {
            let it = lower(byte(scratch, end.wrapping_sub(1 + at)));
            behind |= it == BORDER;
            // A NUL follows the name's first character: an exact rule ends with the NUL.
            *name.add((at & NAME_MASK) as usize) = if behind { 0 } else { it };
            at += 1;
        }
        (*scratch).prefix_len = NAME_LEN as u32 * 8;
        let key = scratch.cast::<Key<NameKey>>();
        let rule = trie.get(&*key)?;
        if has_prefix(scratch, start, rule) { Some(rule.provider) } else { None }
    }
}

#[inline(always)]
fn has_prefix(scratch: *mut Scratch, start: u32, rule: &NameRule) -> bool {
    for (at, expected) in (0..).zip(&rule.prefix) {
        if at >= rule.prefix_len {
            break;
        }
        if lower(byte(scratch, start + at)) != *expected {
            return false;
        }
    }
    true
}

#[inline(always)]
fn lower(it: u8) -> u8 {
    if it.is_ascii_uppercase() { it | 0x20 } else { it }
}
