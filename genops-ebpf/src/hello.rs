//! Providers reached past the probes, known by the server name in the `ClientHello` (RFC 6066 §3;
//! RFC 8446 §4.1.2).
//!
//! The program reads a `ClientHello` contained in a single packet, so that other TLS traffic never
//! reaches the agent. A `ClientHello` in pieces goes to the agent unread.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use genops_ebpf_common::{Contact, Cursor, HELLO_LEN, NAME_LEN, contact, kind, loss};

use crate::{
    classify, connect,
    egress::{CLIENT_HELLO, HANDSHAKE, carries, first_byte, report_join, walk},
    hold::{arm, is_held},
    maps::{EVENTS, MARK_LIFETIME_NS, OWNERS, READ, SOCKS, count_loss, settings, wake},
    packet::{Ends, IPPROTO_TCP, Packet, bounded},
    quota::Share,
    task::Task,
};

/// Record header (RFC 8446 §5.1), handshake header (§4), version and random.
const BEFORE_SESSION: u32 = 5 + 4 + 2 + 32;
/// Maximum of inspected extensions; browsers send about 20.
const EXTENSIONS: u32 = 40;
/// `server_name` (RFC 6066 §3).
const SERVER_NAME: u16 = 0;
/// Maximum of bytes passed to the agent of a `ClientHello` in pieces.
const PARTS_LIMIT: u32 = 16_384;

/// Server name in a `ClientHello`.
enum Name {
    /// A provider's name, with the number of the provider.
    Provider(u32),
    /// Another name, or none.
    Other,
    /// The `ClientHello` ends in a later packet.
    Part,
}

/// Inspects payload of an unknown socket. False: the payload may not leave.
#[inline(always)]
pub(crate) fn look(ctx: &SkBuffContext, cookie: u64) -> bool {
    let Some(packet) = Packet::of(ctx) else { return true };
    if packet.protocol != IPPROTO_TCP {
        connect::question(ctx, cookie, &packet);
        return true;
    }
    if packet.payload_len == 0 {
        return true;
    }
    if !may_begin(ctx, &packet) {
        return true;
    }
    let name = match ctx.load::<[u8; 6]>(packet.payload_at as usize) {
        Ok(head) if 5 + u32::from(u16::from_be_bytes([head[3], head[4]])) <= packet.payload_len => {
            read(ctx, cookie, packet.payload_at)
        }
        _ => Name::Part,
    };
    let begun = match name {
        Name::Other => begin_unnamed(ctx, cookie, &packet),
        Name::Provider(provider) => begin(ctx, cookie, &packet, provider),
        Name::Part => begin_in_part(ctx, cookie, &packet),
    };
    begun.is_some() || no_room(cookie)
}

/// Applies the rule of the deadline at once, for lack of room to follow the socket.
#[inline(always)]
fn no_room(cookie: u64) -> bool {
    let Some(settings) = settings() else { return true };
    settings.closed == 0 || !is_held(owner(cookie), settings.holding)
}

/// Returns whether the packet may be the beginning of a `ClientHello`, as far as its bytes go.
#[inline(always)]
fn may_begin(ctx: &SkBuffContext, packet: &Packet) -> bool {
    let byte = |at: u32| ctx.load::<u8>((packet.payload_at + at) as usize).unwrap_or(0);
    if byte(0) != HANDSHAKE {
        return false;
    }
    if packet.payload_len >= 2 && byte(1) != 3 {
        return false;
    }
    packet.payload_len < 6 || byte(5) == CLIENT_HELLO
}

/// Begins with a `ClientHello` ending in a later packet: nothing but a handshake leaves until the
/// agent knows the server name.
#[inline(always)]
fn begin_in_part(ctx: &SkBuffContext, cookie: u64, packet: &Packet) -> Option<()> {
    let tgid = owner(cookie);
    let sock = carries(ctx, cookie, packet, 0, tgid, Share::New)?;
    let next = first_byte(ctx, packet);
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        (*sock).hello_len = packet.payload_len;
        (*sock).cursor = Cursor::at_handshake(next);
    }
    // A handshake leaves in any case.
    let _passes = walk(ctx, cookie, packet.payload_at, packet.payload_len);
    report(ctx, cookie, packet, &packet.ends(ctx)?, contact::HELLO_PART, 0, 0);
    Some(())
}

/// Begins with a `ClientHello` without a provider's name. Followed only on demand of the
/// configuration.
#[inline(always)]
fn begin_unnamed(ctx: &SkBuffContext, cookie: u64, packet: &Packet) -> Option<()> {
    let settings = settings()?;
    if settings.unnamed == 0 || !is_held(owner(cookie), settings.holding) || is_read() {
        return Some(());
    }
    begin(ctx, cookie, packet, 0)
}

/// Returns whether the sending task is in a TLS library read by probes, once for each handshake.
#[inline(always)]
fn is_read() -> bool {
    // SAFETY: helpers without arguments, and copied at once.
    let (now, task, at) = unsafe {
        let task = bpf_get_current_task();
        (bpf_ktime_get_ns(), task, READ.get(task).copied())
    };
    let _none = READ.remove(task);
    at.is_some_and(|at| now - at <= MARK_LIFETIME_NS)
}

/// Goes on with another packet of a socket with an incomplete `ClientHello`.
#[inline(always)]
pub(crate) fn go_on(
    ctx: &SkBuffContext,
    cookie: u64,
    packet: &Packet,
    hello_len: u32,
) -> Option<()> {
    if packet.payload_len == 0 || hello_len == 0 {
        return None;
    }
    let sock = SOCKS.get_ptr_mut(cookie)?;
    let hello_len = hello_len.saturating_add(packet.payload_len);
    // SAFETY: an element of the map, alive while this program runs.
    unsafe { (*sock).hello_len = hello_len };
    if hello_len <= PARTS_LIMIT {
        report(ctx, cookie, packet, &packet.ends(ctx)?, contact::HELLO_PART, 0, 0);
    }
    Some(())
}

/// Begins a connection to a provider, with the cookie of the socket as its number.
#[inline(always)]
fn begin(ctx: &SkBuffContext, cookie: u64, packet: &Packet, provider: u32) -> Option<()> {
    let tgid = owner(cookie);
    carries(ctx, cookie, packet, cookie, tgid, Share::New)?;
    let held = is_held(tgid, settings()?.holding) && arm(cookie, tgid, 0, 1).is_some();
    let ends = packet.ends(ctx)?;
    report(ctx, cookie, packet, &ends, contact::HELLO, provider, u32::from(held));
    // After the contact, so that the agent knows the connection before its socket.
    report_join(&ends, packet.ip_version, cookie, cookie, tgid);
    Some(())
}

/// Returns the thread-group id of the process that connected the socket; otherwise of the sending
/// process, if the kernel's layout is known; 0 if neither is known.
#[inline(always)]
pub(crate) fn owner(cookie: u64) -> u32 {
    // SAFETY: copied at once.
    match unsafe { OWNERS.get(cookie) } {
        Some(tgid) => *tgid,
        None => Task::current().and_then(Task::process).unwrap_or(0),
    }
}

/// Finds the server name in a `ClientHello` whose record begins at `at`.
#[inline(always)]
fn read(ctx: &SkBuffContext, cookie: u64, at: u32) -> Name {
    match name_in(ctx.skb.skb, u64::from(at)) {
        PART => Name::Part,
        NONE => Name::Other,
        place => provider_of(ctx, cookie, (place >> 32) as u32, place as u32),
    }
}

/// Result of [`name_in`] for a packet ending before the name.
const PART: u64 = 0;
/// Result of [`name_in`] without a name.
const NONE: u64 = 1;

/// Returns position (upper half) and length (lower half) of the name in a `ClientHello` whose
/// record begins at `at`.
///
/// Separate function, so that the verifier goes through the extensions once, and not again with all
/// code after the call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn name_in(skb: *mut __sk_buff, at: u64) -> u64 {
    match server_name(&SkBuffContext::new(skb), at as u32) {
        Ok(Some((at, len))) => u64::from(at) << 32 | u64::from(len),
        Ok(None) => NONE,
        Err(_) => PART,
    }
}

/// Returns position and length of the name. An error: the packet ends before the name.
#[inline(always)]
fn server_name(ctx: &SkBuffContext, record_at: u32) -> Result<Option<(u32, u32)>, i64> {
    let byte = |at: u32| ctx.load::<u8>(at as usize);
    let pair = |at: u32| ctx.load::<[u8; 2]>(at as usize).map(u16::from_be_bytes);
    let mut at = record_at + BEFORE_SESSION;
    at += 1 + u32::from(byte(at)?);
    at += 2 + u32::from(pair(at)?);
    at += 1 + u32::from(byte(at)?);
    let end = at + 2 + u32::from(pair(at)?);
    at += 2;
    let mut looked = 0;
    while looked < EXTENSIONS {
        if at + 4 > end {
            return Ok(None);
        }
        let (kind, len) = (pair(at)?, u32::from(pair(at + 2)?));
        if kind == SERVER_NAME {
            // A list with a single name: length of the list, type of the name (0: host), length of
            // the name.
            return Ok(Some((at + 9, u32::from(pair(at + 7)?))));
        }
        at += 4 + len;
        looked += 1;
    }
    Ok(None)
}

/// Compares the name with the names of the providers.
#[inline(always)]
fn provider_of(ctx: &SkBuffContext, cookie: u64, at: u32, len: u32) -> Name {
    let Some(scratch) = classify::scratch_of(cookie) else { return Name::Other };
    if len == 0 || len >= NAME_LEN as u32 {
        return Name::Other;
    }
    let len = bounded::<{ NAME_LEN as u32 }>(len);
    // SAFETY: `bytes` is larger than NAME_LEN; behind one byte of room for the border.
    let failed = unsafe {
        let to = (&raw mut (*scratch).bytes).cast::<u8>().add(1);
        bpf_skb_load_bytes(ctx.skb.skb.cast(), at, to.cast(), len)
    };
    if failed != 0 {
        return Name::Part;
    }
    match classify::provider_of_name(scratch, len) {
        Some(provider) => Name::Provider(provider),
        None => Name::Other,
    }
}

#[repr(C)]
struct Reported {
    header: Contact,
    bytes: [u8; HELLO_LEN],
}

/// Reports to the agent, with the packet's payload.
#[inline(always)]
fn report(
    ctx: &SkBuffContext,
    cookie: u64,
    packet: &Packet,
    ends: &Ends,
    what: u32,
    provider: u32,
    held: u32,
) {
    let Some(mut entry) = EVENTS.reserve::<Reported>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    let len = bounded::<{ HELLO_LEN as u32 }>(packet.payload_len);
    let record: *mut Reported = entry.as_mut_ptr();
    // SAFETY: `record` is reserved ring buffer of its type, and `len` is at most HELLO_LEN.
    let failed = unsafe {
        (&raw mut (*record).header).write(Contact {
            kind: kind::CONTACT,
            what,
            at_mono_ns: bpf_ktime_get_ns(),
            cookie,
            unreported: 0,
            local: ends.local,
            remote: ends.remote,
            local_port: ends.local_port,
            remote_port: ends.remote_port,
            ip_version: packet.ip_version,
            tgid: owner(cookie),
            provider,
            held,
            captured_len: len,
        });
        let to = (&raw mut (*record).bytes).cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), packet.payload_at, to, len)
    };
    if failed == 0 {
        entry.submit(wake(true));
    } else {
        entry.discard(0);
        count_loss(loss::FAULT_BYTES, u64::from(len));
    }
}
