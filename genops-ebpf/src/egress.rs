//! Packets of a socket: joins the socket with its connection, and decides whether a packet may
//! leave.
//!
//! Runs for every packet leaving a socket on the host. The program lets a packet pass after two
//! fruitless look-ups, unless the socket carries an AI call or the packet is a `ClientHello`. A
//! dropped packet stays in TCP's send queue; TCP sends the packet again when the agent kicks the
//! socket, or when TCP's timer fires.

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
/// Maximum of inspected records per packet.
const RECORDS: u32 = 5;

#[cgroup_skb(egress)]
pub(crate) fn egress_hold(ctx: SkBuffContext) -> i32 {
    // SAFETY: the context of the program, and a helper without arguments: the sending task, in
    // whose context the program runs unless TCP defers.
    let (cookie, task) = unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_current_task()) };
    let mut known = SOCKS.get_ptr_mut(cookie);
    // SAFETY: copied at once.
    let marked = match unsafe { MARKS.get(task) } {
        Some(mark) => Some((task, mark)),
        None if known.is_some() => {
            // SAFETY: as above.
            unsafe { MARKS.get(cookie) }.map(|mark| (cookie, mark))
        }
        None => None,
    };
    if let Some((by, mark)) = marked {
        join(&ctx, cookie, by, *mark);
        if known.is_none() {
            known = SOCKS.get_ptr_mut(cookie);
        }
    }
    let Some(sock) = known else {
        return if hello::look(&ctx, cookie) { PASS } else { DROP };
    };
    // SAFETY: an element of the map, alive while this program runs.
    let Sock { conn, hello_len, tgid, .. } = unsafe { *sock };
    let Some(settings) = settings() else { return PASS };
    let id = if conn == 0 { cookie } else { conn };
    // Bytes already waiting go on waiting after the hold of new requests has ended.
    let held =
        is_held(tgid, settings.holding) || settings.holding == holding::NOBODY && is_waiting(id);
    let Some(packet) = Packet::of(&ctx) else {
        // Unreadable packets of a followed and held socket stay here.
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

/// Bytes of a packet.
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

/// Returns whether all records of the packet may leave: the plaintext of the records was read and
/// released. A socket of a process not held is followed all the same, so that a later hold is
/// possible.
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
    // Offset, in the packet, of the first byte still to leave.
    let left = next.wrapping_sub(first_byte(ctx, packet));
    if left > i32::MAX as u32 {
        // Earlier bytes have not left: TCP will send the earlier bytes first.
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

/// Returns the TCP sequence number of the first byte of payload; `SYN` counts as a byte before the
/// payload.
#[inline(always)]
pub(crate) fn first_byte(ctx: &SkBuffContext, packet: &Packet) -> u32 {
    const SYN: u8 = 2;
    let flags = ctx.load::<u8>(packet.header_at as usize + 13).unwrap_or(0);
    sequence(ctx, packet).wrapping_add(u32::from(flags & SYN != 0))
}

/// Follows the records of a socket at `at` in its packet, within the bounds in the socket's working
/// memory. Moves the cursor if the records may leave.
#[inline(always)]
pub(crate) fn walk(ctx: &SkBuffContext, cookie: u64, at: u32, len: u32) -> Fate {
    match follow_records(ctx.skb.skb, cookie, u64::from(at), u64::from(len)) {
        PASSES => Fate::Passes,
        WAITS => Fate::Waits,
        _ => Fate::Unexplained,
    }
}

/// Results of [`follow_records`]; any other number is [`Fate::Unexplained`].
const PASSES: u64 = 1;
const WAITS: u64 = 2;

/// [`walk`], as a function of a context and numbers: the verifier checks the loop once, and not for
/// each path to the call.
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

/// Takes a [`Cursor::step`] with a socket's cursor on trial.
///
/// Separate function of a context and numbers: the verifier then checks the function once, and not
/// in each round of each calling loop.
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

/// Joins the socket with the connection announced for the sending thread or for the socket (`by`),
/// if the packet matches the announcement: a `ClientHello`, or a record of the right type and
/// length. An earlier join (the socket of a TLS object inherited by a child process) gives way to
/// the newer proof.
#[inline(always)]
fn join(ctx: &SkBuffContext, cookie: u64, by: u64, mark: Mark) -> Option<()> {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now - mark.at_mono_ns > MARK_LIFETIME_NS {
        let _gone = MARKS.remove(by);
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
    let _gone = MARKS.remove(by);
    // SAFETY: an element of the map, alive while this program runs.
    let id = unsafe {
        if (*conn).cookie != 0 {
            return None;
        }
        (*conn).id
    };
    // Without room, a connection beginning now is judged by the server name, like a connection
    // without a probe. An older connection has no name to be judged by: older connections have a
    // separate share.
    let share = if mark.content_type == HANDSHAKE { Share::New } else { Share::Older };
    let sock = carries(ctx, cookie, &packet, id, mark.conn.tgid, share)?;
    // SAFETY: as above. Written once there is room: until then each write announces itself again.
    unsafe { (*conn).cookie = cookie };
    let next = first_byte(ctx, &packet).wrapping_add(at - packet.payload_at);
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        (*sock).excess = 0;
        (*sock).cursor = if mark.content_type == HANDSHAKE {
            Cursor::at_handshake(next)
        } else {
            // A library writing into memory has returned before its record is sent: the position at
            // the beginning of the write counts.
            let overhead = overhead_of_record(record_len, mark.record_len).unwrap_or(0);
            Cursor::at_data(next, mark.offset, overhead)
        };
    }
    let ends = packet.ends(ctx)?;
    report_join(&ends, packet.ip_version, id, cookie, mark.conn.tgid);
    Some(())
}

/// Returns position and length of the announced record. Looks at the first records of the packet,
/// because a client at the end of its handshake sends `Finished` and its first request at once. A
/// socket without bytes sent so far may send the `ClientHello` in pieces of any size; the bytes
/// must be explained all the same.
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

/// Records the socket as carrying connection `conn` from the packet on. `None` without room for the
/// record.
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

/// Returns the sequence number in the TCP header.
#[inline(always)]
fn sequence(ctx: &SkBuffContext, packet: &Packet) -> u32 {
    ctx.load::<u32>(packet.header_at as usize + 4).map_or(0, u32::from_be)
}

/// Counts passing bytes: each byte once, however often TCP sends the byte.
#[inline(always)]
fn account(ctx: &SkBuffContext, sock: *mut Sock, packet: &Packet) {
    // SAFETY: `sock` is an element of the map, alive while the program runs; the kernel checks the
    // pointers to its socket, and returns null for a socket of another kind.
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
