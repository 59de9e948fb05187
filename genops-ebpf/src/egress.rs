//! The packets of a socket: whose connection it is, and whether they may leave.
//!
//! Runs for every packet that leaves a socket on the host, and lets it pass after two look-ups that
//! find nothing, unless the socket carries an AI call. A packet that is dropped here stays in TCP's
//! send queue; TCP sends it again when the agent kicks the socket, or when its timer fires.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_current_task, bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use genops_ebpf_common::{Join, TimedOut, kind, loss};

use crate::maps::{
    CONNS, COOKIES, EVENTS, HOLDS, MARK_LIFETIME_NS, MARKS, Mark, SOCKETS, VERDICTS, count_loss,
    settings,
};

const DROP: i32 = 0;
const PASS: i32 = 1;

const IPPROTO_TCP: u8 = 6;
/// `ClientHello` (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
const HANDSHAKE: u8 = 22;
/// By how much a record is longer than its plaintext: TLS 1.3 adds a content type and a tag (RFC 8446
/// §5.2, 17 bytes; 9 with a short tag), TLS 1.2 a tag (RFC 7905, 16) and for GCM and CCM a nonce
/// before it (RFC 5288 §3, 24; 16 with a short tag).
const AEAD_OVERHEADS: [u32; 4] = [9, 16, 17, 24];
/// With CBC (RFC 5246 §6.2.3.2): 16 bytes of IV, 1 to 16 of padding, and a MAC of 20 to 48.
const CBC_OVERHEADS: core::ops::RangeInclusive<u32> = 37..=80;

#[cgroup_skb(egress)]
pub(crate) fn egress_hold(ctx: SkBuffContext) -> i32 {
    // SAFETY: the context that this program was entered with, and a helper without arguments: the task
    // that sends, in whose context this program runs unless TCP defers.
    let (cookie, task) = unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_current_task()) };
    let mut conn = 0;
    if let Some(joined) = COOKIES.get_ptr_mut(cookie) {
        // SAFETY: copied at once.
        conn = unsafe { *joined };
    }
    // SAFETY: copied at once; only this thread writes its element.
    if let Some(mark) = unsafe { MARKS.get(task) }
        && let Some(joined) = join(&ctx, cookie, task, *mark)
    {
        conn = joined;
    }
    if conn == 0 { PASS } else { decide(&ctx, conn) }
}

/// Addresses and payload of a TCP packet.
struct Tcp {
    ip_version: u32,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    /// Where the payload begins, from the IP header.
    payload_at: u32,
    payload_len: u32,
}

/// Borders of the payload, or `None` where the packet is not TCP or carries nothing.
#[inline(always)]
fn payload(ctx: &SkBuffContext) -> Option<(u32, u32, u32)> {
    let first = ctx.load::<u8>(0).ok()?;
    let (ip_version, tcp_at) = match first >> 4 {
        4 if ctx.load::<u8>(9).ok()? == IPPROTO_TCP => (4, u32::from(first & 0xf) * 4),
        6 if ctx.load::<u8>(6).ok()? == IPPROTO_TCP => (6, 40),
        _ => return None,
    };
    let tcp_len = u32::from(ctx.load::<u8>(tcp_at as usize + 12).ok()? >> 4) * 4;
    let at = tcp_at + tcp_len;
    if ctx.len() <= at {
        return None;
    }
    Some((ip_version, tcp_at, at))
}

#[inline(always)]
fn tcp(ctx: &SkBuffContext) -> Option<Tcp> {
    let (ip_version, tcp_at, payload_at) = payload(ctx)?;
    let mut local = [0; 16];
    let mut remote = [0; 16];
    if ip_version == 4 {
        local[..4].copy_from_slice(&ctx.load::<[u8; 4]>(12).ok()?);
        remote[..4].copy_from_slice(&ctx.load::<[u8; 4]>(16).ok()?);
    } else {
        local = ctx.load::<[u8; 16]>(8).ok()?;
        remote = ctx.load::<[u8; 16]>(24).ok()?;
    }
    Some(Tcp {
        ip_version,
        local,
        remote,
        local_port: u16::from_be_bytes(ctx.load(tcp_at as usize).ok()?),
        remote_port: u16::from_be_bytes(ctx.load(tcp_at as usize + 2).ok()?),
        payload_at,
        payload_len: ctx.len() - payload_at,
    })
}

/// Joins the socket with the connection for which its thread is about to send, if the packet is what
/// was announced: a `ClientHello`, or a record of the right type and length. What was joined before
/// (the socket of a TLS object that a child process inherited) gives way to the newer proof.
#[inline(always)]
fn join(ctx: &SkBuffContext, cookie: u64, task: u64, mark: Mark) -> Option<u64> {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now - mark.at_mono_ns > MARK_LIFETIME_NS {
        let _gone = MARKS.remove(task);
        return None;
    }
    if mark.ambiguous != 0 {
        return None;
    }
    let tcp = tcp(ctx)?;
    if tcp.payload_len < 6 {
        return None;
    }
    let record = ctx.load::<[u8; 6]>(tcp.payload_at as usize).ok()?;
    if !is_announced(record, mark) {
        return None;
    }
    let conn = CONNS.get_ptr_mut(mark.conn)?;
    let _gone = MARKS.remove(task);
    // SAFETY: an element of the map, alive while this program runs.
    let id = unsafe {
        if (*conn).cookie != 0 {
            return None;
        }
        (*conn).cookie = cookie;
        (*conn).id
    };
    // Where there is no room, the next packets are not held, and the agent learns no address.
    if COOKIES.insert(cookie, id, 0).is_ok() {
        report_join(&tcp, id, cookie, mark.conn.tgid);
    }
    Some(id)
}

#[inline(always)]
fn is_announced(record: [u8; 6], mark: Mark) -> bool {
    if record[0] != mark.content_type || record[1] != 3 {
        return false;
    }
    if mark.content_type == HANDSHAKE {
        return record[5] == CLIENT_HELLO;
    }
    let length = u32::from(u16::from_be_bytes([record[3], record[4]]));
    let more = length.wrapping_sub(mark.record_len);
    AEAD_OVERHEADS.contains(&more) || CBC_OVERHEADS.contains(&more)
}

/// Whether a packet of this connection may leave now.
#[inline(always)]
fn decide(ctx: &SkBuffContext, id: u64) -> i32 {
    let Some(hold) = HOLDS.get_ptr_mut(id) else { return PASS };
    if payload(ctx).is_none() {
        return PASS;
    }
    // SAFETY: copied at once.
    let (released_to, denied) = match unsafe { VERDICTS.get(id) } {
        Some(verdict) => (verdict.released_to, verdict.denied),
        None => (0, 0),
    };
    if denied != 0 {
        return DROP;
    }
    // SAFETY: an element of the map, alive while this program runs.
    if unsafe { !(*hold).is_waiting(released_to) } {
        return PASS;
    }
    let Some(settings) = settings() else { return PASS };
    // SAFETY: as above.
    let (now, armed_at, to, reported_to) = unsafe {
        (bpf_ktime_get_ns(), (*hold).armed_at_mono_ns, (*hold).armed_to, (*hold).reported_to)
    };
    if now - armed_at < settings.hold_deadline_ns {
        return DROP;
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
    if pass { PASS } else { DROP }
}

#[inline(always)]
fn report_join(tcp: &Tcp, conn: u64, cookie: u64, tgid: u32) {
    let join = Join {
        kind: kind::JOIN,
        ip_version: tcp.ip_version,
        conn,
        cookie,
        local: tcp.local,
        remote: tcp.remote,
        local_port: tcp.local_port,
        remote_port: tcp.remote_port,
        tgid,
    };
    if SOCKETS.insert(conn, join, 0).is_err() {
        count_loss(loss::CONNECTIONS_FULL, 1);
    }
    if EVENTS.output::<Join>(join, 0).is_err() {
        count_loss(loss::RING_FULL_RECORDS, 1);
    }
}

#[inline(always)]
fn report_timeout(conn: u64, to: u64, pass: bool) {
    let Some(mut entry) = EVENTS.reserve::<TimedOut>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    entry.write(TimedOut { kind: kind::TIMED_OUT, passed: u32::from(pass), conn, to });
    entry.submit(0);
}
