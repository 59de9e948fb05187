//! The packets of a socket: whose connection it is, and whether they may leave.
//!
//! Runs for every packet that leaves a socket on the host, and lets it pass after two look-ups that
//! find nothing, unless the socket carries an AI call or this is a `ClientHello`. A packet that is
//! dropped here stays in TCP's send queue; TCP sends it again when the agent kicks the socket, or when
//! its timer fires.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{
        bpf_get_current_task, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_fullsock,
        bpf_tcp_sock,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use genops_ebpf_common::{
    Bounds, Bytes, Cursor, Fate, Join, Sock, Step, follow, holding, kind, loss, overhead_of_record,
    phase,
};

use crate::{
    hello,
    hold::{bounds, deadline, is_held, is_waiting, may_leave, unexplained_may_leave},
    maps::{
        CONNS, EVENTS, HOLDS, MARK_LIFETIME_NS, MARKS, Mark, SOCKETS, SOCKS, count_loss, new_sock,
        settings, wake,
    },
    packet::{Ends, IPPROTO_TCP, Packet},
    quota::{self, Share},
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
        return if hello::look(&ctx, cookie) { PASS } else { DROP };
    };
    // SAFETY: an element of the map, alive while this program runs.
    let Sock { conn, hello_len, tgid, .. } = unsafe { *sock };
    let Some(settings) = settings() else { return PASS };
    let id = if conn == 0 { cookie } else { conn };
    // What waits already waits on when nobody new is held.
    let held =
        is_held(tgid, settings.holding) || settings.holding == holding::NOBODY && is_waiting(id);
    let Some(packet) = Packet::of(&ctx) else {
        // Of a socket that is followed, what can't be read stays here.
        return if held { DROP } else { PASS };
    };
    if packet.payload_len > 0 {
        let leaves = if conn == cookie {
            may_leave(conn)
        } else {
            is_explained(&ctx, cookie, sock, &packet, id, held)
        };
        if !leaves {
            return DROP;
        }
        if conn == 0 {
            hello::go_on(&ctx, cookie, &packet, hello_len);
        }
    }
    account(&ctx, sock, &packet);
    PASS
}

/// A packet's bytes.
struct Payload(SkBuffContext);

impl Bytes for Payload {
    #[inline(always)]
    fn five(&self, at: u32) -> Option<[u8; 5]> {
        self.0.load(at as usize).ok()
    }

    #[inline(always)]
    fn one(&self, at: u32) -> Option<u8> {
        self.0.load(at as usize).ok()
    }
}

/// Whether all records of the packet may leave: the plaintext that explains them was read and released. Where
/// nobody is held, the socket is followed all the same, so that it can be held later.
#[inline(always)]
fn is_explained(
    ctx: &SkBuffContext,
    cookie: u64,
    sock: *mut Sock,
    packet: &Packet,
    id: u64,
    held: bool,
) -> bool {
    let Some(settings) = settings() else { return true };
    if !bounds(sock, id, held) {
        return false;
    }
    // SAFETY: an element of the map, alive while this program runs.
    let (next, known) = unsafe { ((*sock).cursor.next, (*sock).cursor.phase != phase::UNKNOWN) };
    if !known {
        return !held || may_leave(id);
    }
    // Where in the packet the first byte is that has not left.
    let left = next.wrapping_sub(first_byte(ctx, packet));
    if left > i32::MAX as u32 {
        // Bytes before it have not left: TCP will send them first.
        return !held;
    }
    if left >= packet.payload_len {
        return true;
    }
    let (at, len) = (packet.payload_at + left, packet.payload_len - left);
    match walk(ctx, cookie, at, len) {
        Fate::Passes => return true,
        Fate::Waits => {
            let Some(waiting) = HOLDS.get_ptr_mut(id) else { return false };
            // SAFETY: as above.
            if unsafe { (*waiting).unread } == 0 {
                if !deadline(waiting, id, settings) || !bounds(sock, id, held) {
                    return false;
                }
                return walk(ctx, cookie, at, len) == Fate::Passes;
            }
        }
        Fate::Unexplained => {}
    }
    if !unexplained_may_leave(sock, id, settings) {
        return false;
    }
    // SAFETY: as above.
    unsafe {
        let seen_to = (*sock).seen_to;
        (*sock).released_to = Bounds::FREE;
        let _passes = walk(ctx, cookie, at, len);
        let explained = (*sock).cursor.explained;
        if explained > seen_to {
            (*sock).excess = (*sock).excess.saturating_add(explained - seen_to);
        }
    }
    true
}

/// TCP's number of the first byte of payload; `SYN` counts as one before it.
#[inline(always)]
pub(crate) fn first_byte(ctx: &SkBuffContext, packet: &Packet) -> u32 {
    const SYN: u8 = 2;
    let flags = ctx.load::<u8>(packet.header_at as usize + 13).unwrap_or(0);
    sequence(ctx, packet).wrapping_add(u32::from(flags & SYN != 0))
}

/// Follows the records of a socket at `at` in its packet, within the bounds that are in its room to work in, and moves
/// its cursor if they may leave.
#[inline(always)]
pub(crate) fn walk(ctx: &SkBuffContext, cookie: u64, at: u32, len: u32) -> Fate {
    match follow_records(ctx.skb.skb, cookie, u64::from(at), u64::from(len)) {
        PASSES => Fate::Passes,
        WAITS => Fate::Waits,
        _ => Fate::Unexplained,
    }
}

/// What [`follow_records`] says; anything else is [`Fate::Unexplained`].
const PASSES: u64 = 1;
const WAITS: u64 = 2;

/// [`walk`], as a function of a context and numbers: the verifier checks its loop once, and not for each way that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_records(skb: *mut __sk_buff, cookie: u64, at: u64, len: u64) -> u64 {
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return 0 };
    // SAFETY: an element of the map, alive while this program runs.
    unsafe { (*sock).trial = (*sock).cursor };
    let fate = follow(len as u32, |done| {
        Step(step(skb, cookie, at + u64::from(done), len - u64::from(done)))
    });
    match fate {
        Fate::Passes => {
            // SAFETY: as above.
            unsafe { (*sock).cursor = (*sock).trial };
            PASSES
        }
        Fate::Waits => WAITS,
        Fate::Unexplained => 0,
    }
}

/// One [`Cursor::step`] of a socket's cursor on trial.
///
/// A function of its own, of a context and numbers: the verifier then checks it once, and not in each round of
/// each loop that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step(skb: *mut __sk_buff, cookie: u64, at: u64, rest: u64) -> u64 {
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return Step::STOP };
    let payload = Payload(SkBuffContext::new(skb));
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        let bounds = Bounds { seen_to: (*sock).seen_to, released_to: (*sock).released_to };
        let trial: &mut Cursor = &mut (*sock).trial;
        trial.step(&payload, at as u32, rest as u32, bounds).0
    }
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
    if packet.protocol != IPPROTO_TCP || packet.payload_len == 0 {
        return None;
    }
    let (at, record_len) = announced(ctx, cookie, &packet, mark)?;
    let conn = CONNS.get_ptr_mut(mark.conn)?;
    let _gone = MARKS.remove(task);
    // SAFETY: an element of the map, alive while this program runs.
    let id = unsafe {
        if (*conn).cookie != 0 {
            return None;
        }
        (*conn).id
    };
    // A connection that begins now, and for which there is no room, is judged by its server name, as one that
    // nobody reads. An older one has no name to be judged by: it has a share of its own.
    let share = if mark.content_type == HANDSHAKE { Share::New } else { Share::Older };
    let sock = carries(ctx, cookie, &packet, id, mark.conn.tgid, share)?;
    // SAFETY: as above. Once there is room: until then each write announces itself again.
    unsafe { (*conn).cookie = cookie };
    let next = first_byte(ctx, &packet).wrapping_add(at - packet.payload_at);
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        (*sock).excess = 0;
        (*sock).cursor = if mark.content_type == HANDSHAKE {
            Cursor::at_handshake(next)
        } else {
            // A library that writes into memory has returned before its record is sent: where its write began counts.
            let overhead = overhead_of_record(record_len, mark.record_len).unwrap_or(0);
            Cursor::at_data(next, mark.offset, overhead)
        };
    }
    let ends = packet.ends(ctx)?;
    report_join(&ends, packet.ip_version, id, cookie, mark.conn.tgid);
    Some(())
}

/// Where the record that was announced begins, and its length: one of the first of the packet, since a client that
/// has just ended its handshake sends that, and its first request, at once. A socket that has sent nothing yet may
/// send the `ClientHello` in pieces of any size; what it sends must be explained all the same.
#[inline(always)]
fn announced(ctx: &SkBuffContext, cookie: u64, packet: &Packet, mark: Mark) -> Option<(u32, u32)> {
    let mut at = packet.payload_at;
    if mark.content_type == HANDSHAKE && packet.payload_len < 6 {
        let first = ctx.load::<u8>(at as usize).ok()?;
        let begins = first == HANDSHAKE && SOCKS.get_ptr_mut(cookie).is_none();
        return begins.then_some((at, 0));
    }
    let mut looked = 0;
    while looked < RECORDS {
        let record = ctx.load::<[u8; 5]>(at as usize).ok()?;
        if record[0] < CHANGE_CIPHER_SPEC || record[0] > APPLICATION_DATA || record[1] != 3 {
            return None;
        }
        let len = u32::from(u16::from_be_bytes([record[3], record[4]]));
        if record[0] == mark.content_type && is_announced(ctx, at, len, mark) {
            return Some((at, len));
        }
        at += 5 + len;
        looked += 1;
    }
    None
}

#[inline(always)]
fn is_announced(ctx: &SkBuffContext, at: u32, len: u32, mark: Mark) -> bool {
    if mark.content_type == HANDSHAKE {
        return ctx.load::<u8>(at as usize + 5).is_ok_and(|it| it == CLIENT_HELLO);
    }
    overhead_of_record(len, mark.record_len).is_some()
}

/// From this packet on, the socket carries connection `conn`. None where there is no room to say so.
#[inline(always)]
pub(crate) fn carries(
    ctx: &SkBuffContext,
    cookie: u64,
    packet: &Packet,
    conn: u64,
    tgid: u32,
    share: Share,
) -> Option<*mut Sock> {
    let sock = if let Some(known) = SOCKS.get_ptr_mut(cookie) {
        known
    } else {
        if !quota::socket(tgid, share) {
            return None;
        }
        let new = new_sock(cookie)?;
        let next_sequence = first_byte(ctx, packet);
        // SAFETY: an element of the map, alive while this program runs.
        unsafe { (*new).next_sequence = next_sequence };
        new
    };
    // SAFETY: as above.
    unsafe {
        (*sock).conn = conn;
        (*sock).tgid = tgid;
    }
    Some(sock)
}

/// The sequence number in the TCP header.
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
        let end = first_byte(ctx, packet).wrapping_add(packet.payload_len);
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
