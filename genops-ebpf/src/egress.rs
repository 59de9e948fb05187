//! The packets of a socket: whose connection it is, and whether they may leave.
//!
//! Runs for every packet that leaves a socket on the host, and lets it pass after two look-ups that
//! find nothing, unless the socket carries an AI call or this is a `ClientHello`. A packet that is
//! dropped here stays in TCP's send queue; TCP sends it again when the agent kicks the socket, or when
//! its timer fires.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_get_current_task, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_fullsock,
        bpf_tcp_sock,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use genops_ebpf_common::{Join, Sock, kind, loss};

use crate::{
    hello,
    hold::may_leave,
    maps::{CONNS, EVENTS, MARK_LIFETIME_NS, MARKS, Mark, SOCKETS, SOCKS, count_loss, wake},
    packet::{Ends, IPPROTO_TCP, Packet},
};

pub(crate) const DROP: i32 = 0;
pub(crate) const PASS: i32 = 1;

/// `ClientHello` (RFC 8446 §4).
pub(crate) const CLIENT_HELLO: u8 = 1;
/// TLS content types (RFC 8446 §5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;
/// Records of a packet that are looked at.
const RECORDS: u32 = 5;
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
    // SAFETY: copied at once; only this thread writes its element.
    if let Some(mark) = unsafe { MARKS.get(task) } {
        join(&ctx, cookie, task, *mark);
    }
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else {
        hello::look(&ctx, cookie);
        return PASS;
    };
    // SAFETY: an element of the map, alive while this program runs.
    let Sock { conn, hello_len, .. } = unsafe { *sock };
    let Some(packet) = Packet::of(&ctx) else { return PASS };
    if conn == 0 {
        hello::go_on(&ctx, cookie, &packet, hello_len);
        return PASS;
    }
    if packet.payload_len > 0 && !may_leave(conn) {
        return DROP;
    }
    account(&ctx, sock, &packet);
    PASS
}

/// Joins the socket with the connection for which its thread is about to send, if the packet is what
/// was announced: a `ClientHello`, or a record of the right type and length. What was joined before
/// (the socket of a TLS object that a child process inherited) gives way to the newer proof.
#[inline(always)]
fn join(ctx: &SkBuffContext, cookie: u64, task: u64, mark: Mark) -> Option<()> {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now - mark.at_mono_ns > MARK_LIFETIME_NS {
        let _gone = MARKS.remove(task);
        return None;
    }
    if mark.ambiguous != 0 {
        return None;
    }
    let packet = Packet::of(ctx)?;
    if packet.protocol != IPPROTO_TCP || packet.payload_len < 6 {
        return None;
    }
    if !carries_announced(ctx, &packet, mark) {
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
    if carries(ctx, cookie, &packet, id) {
        let ends = packet.ends(ctx)?;
        report_join(&ends, packet.ip_version, id, cookie, mark.conn.tgid);
    }
    Some(())
}

/// Whether one of the first records of the packet is what was announced: a client that has just ended its
/// handshake sends that, and its first request, at once.
#[inline(always)]
fn carries_announced(ctx: &SkBuffContext, packet: &Packet, mark: Mark) -> bool {
    let mut at = packet.payload_at;
    let mut looked = 0;
    while looked < RECORDS {
        let Ok(record) = ctx.load::<[u8; 6]>(at as usize) else { return false };
        if record[0] < CHANGE_CIPHER_SPEC || record[0] > APPLICATION_DATA || record[1] != 3 {
            return false;
        }
        if is_announced(record, mark) {
            return true;
        }
        at += 5 + u32::from(u16::from_be_bytes([record[3], record[4]]));
        looked += 1;
    }
    false
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

/// From this packet on, the socket carries connection `conn`. False where there is no room to say so.
#[inline(always)]
pub(crate) fn carries(ctx: &SkBuffContext, cookie: u64, packet: &Packet, conn: u64) -> bool {
    if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
        // SAFETY: an element of the map, alive while this program runs.
        unsafe { (*sock).conn = conn };
        return true;
    }
    let next_sequence = sequence(ctx, packet);
    let sock = Sock { conn, sent: 0, received: 0, next_sequence, hello_len: 0 };
    SOCKS.insert(cookie, sock, 0).is_ok()
}

/// TCP's number of the first byte of payload.
#[inline(always)]
fn sequence(ctx: &SkBuffContext, packet: &Packet) -> u32 {
    ctx.load::<u32>(packet.header_at as usize + 4).map_or(0, u32::from_be)
}

/// Counts what passes: each byte once, however often TCP sends it.
#[inline(always)]
fn account(ctx: &SkBuffContext, sock: *mut Sock, packet: &Packet) {
    // SAFETY: `sock` is an element of the map, alive while this program runs; the kernel checks the
    // pointers to its socket, and gives null for one of another kind.
    unsafe {
        if packet.protocol != IPPROTO_TCP {
            (*sock).sent += u64::from(packet.payload_len);
            return;
        }
        let end = sequence(ctx, packet).wrapping_add(packet.payload_len);
        let new = end.wrapping_sub((*sock).next_sequence);
        if new < u32::MAX / 2 {
            (*sock).sent += u64::from(new);
            (*sock).next_sequence = end;
        }
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return;
        }
        let tcp = bpf_tcp_sock(socket);
        if !tcp.is_null() {
            (*sock).received = (*tcp).bytes_received;
        }
    }
}

#[inline(always)]
pub(crate) fn report_join(ends: &Ends, ip_version: u32, conn: u64, cookie: u64, tgid: u32) {
    let join = Join {
        kind: kind::JOIN,
        ip_version,
        conn,
        cookie,
        local: ends.local,
        remote: ends.remote,
        local_port: ends.local_port,
        remote_port: ends.remote_port,
        tgid,
    };
    if SOCKETS.insert(conn, join, 0).is_err() {
        count_loss(loss::CONNECTIONS_FULL, 1);
    }
    if EVENTS.output::<Join>(join, wake(true)).is_err() {
        count_loss(loss::RING_FULL_RECORDS, 1);
    }
}
