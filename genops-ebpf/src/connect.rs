//! Sockets at connect and at close: records the connecting process, and refuses connections to
//! denied providers.
//!
//! The kernel refuses the connection (`EPERM`) of a process denied a provider by the agent, by TCP
//! and by UDP, so QUIC is no way around. The agent keeps the providers' addresses, learnt from name
//! servers' answers and from sockets to providers.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, bpf_sock_addr},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
            bpf_ktime_get_ns, bpf_skb_load_bytes,
        },
    },
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext, SockContext},
};
use genops_ebpf_common::{
    AddressKey, Contact, DNS_LEN, DeniedKey, Dns, FloodKey, REFUSAL_REPORT_NS, REFUSALS_AT_ONCE_NS,
    Refusals, Released, Sock, TieKey, contact, kind, loss,
};

use crate::{
    hold::{is_closed, is_held, is_undecided},
    maps::{
        ADDRESSES, ASKERS, DATAGRAMS, EMPTY_REFUSALS, EVENTS, FLOODING, OWNERS, REFUSALS, SOCKS,
        TIES, count_loss, is_crowded, new_sock, settings, wake,
    },
    packet::{IPPROTO_UDP, Packet, bounded},
    quota,
};

/// Number of the agent's run: see [`Settings::run`](genops_ebpf_common::Settings::run).
#[unsafe(no_mangle)]
static RUN: u32 = 0;

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;
/// `SOCK_DGRAM` (`include/linux/net.h`).
const DATAGRAM: u32 = 2;
/// Minimum interval between reports of a process addressing a provider by UDP, in nanoseconds.
const DATAGRAM_EVERY_NS: u64 = 1_000_000_000;
/// Maximum time between the programs of two runs at the same connect, in nanoseconds.
const SAME_REFUSAL_NS: u64 = 100_000;
/// The port of name servers (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;
/// Header of a DNS message (RFC 1035 §4.1.1).
const DNS_HEADER: u32 = 12;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, address4(&ctx), 4)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, address6(&ctx), 6)
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    reach(&ctx, address4(&ctx), 4, true)
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    reach(&ctx, address6(&ctx), 6, true)
}

/// Reports the close of a socket by its last process.
#[cgroup_sock(sock_release)]
pub(crate) fn socket_release(ctx: SockContext) -> i32 {
    // SAFETY: the context that this program was entered with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let _none = OWNERS.remove(cookie);
    if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
        // Queued bytes may still have to leave: the agent forgets the socket later.
        // SAFETY: an element of the map, alive while this program runs.
        unsafe {
            (*sock).closed = 1;
            quota::socket_ends((*sock).tgid);
        }
        report_released(cookie, sock);
    }
    ALLOW
}

/// Reports the answers of name servers.
#[cgroup_skb(ingress)]
pub(crate) fn ingress_dns(ctx: SkBuffContext) -> i32 {
    let _other = answer(&ctx);
    ALLOW
}

/// Remembers a socket about to ask a name server. Only sockets of the initial network namespace
/// count: in a network namespace of its own, a process can answer anything under any address.
#[inline(always)]
fn will_ask(ctx: &SockAddrContext) {
    // SAFETY: the context of the program; without a context, the helper returns the cookie of the
    // initial namespace (`net/core/filter.c`, `__bpf_get_netns_cookie`).
    let (its, initial) = unsafe {
        (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_netns_cookie(core::ptr::null_mut()))
    };
    if its == initial {
        // SAFETY: the context that this program was entered with.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // Without room, answers to the socket are not believed.
        let _full = ASKERS.insert(cookie, 1, 0);
    }
}

/// Reports the question of a socket to a name server.
#[inline(always)]
pub(crate) fn question(ctx: &SkBuffContext, cookie: u64, packet: &Packet) -> Option<()> {
    let remote_port = ctx.load(packet.header_at as usize + 2).map(u16::from_be_bytes).ok()?;
    if remote_port != DNS_PORT {
        return None;
    }
    report_dns(ctx, cookie, packet, packet.ends(ctx)?.remote, 0)
}

#[inline(always)]
fn address4(ctx: &SockAddrContext) -> AddressKey {
    // SAFETY: fields of the context that this program was entered with.
    let (ip, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    let mut address = [0; 16];
    address[..4].copy_from_slice(&ip.to_ne_bytes());
    AddressKey { address, port: u16::from_be(port as u16), reserved: 0 }
}

#[inline(always)]
fn address6(ctx: &SockAddrContext) -> AddressKey {
    let from: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: fields of the context that this program was entered with.
    let (a, b, c, d, port) = unsafe {
        let ip = &raw const (*from).user_ip6;
        let word = |at: usize| ip.cast::<u32>().add(at).read_volatile();
        (word(0), word(1), word(2), word(3), (*from).user_port)
    };
    let mut address = [0; 16];
    if a == 0 && b == 0 && c == 0xffff_u32.to_be() {
        // An IPv4 address in IPv6 (RFC 4291 §2.5.5.2).
        address[..4].copy_from_slice(&d.to_ne_bytes());
    } else {
        address[..4].copy_from_slice(&a.to_ne_bytes());
        address[4..8].copy_from_slice(&b.to_ne_bytes());
        address[8..12].copy_from_slice(&c.to_ne_bytes());
        address[12..].copy_from_slice(&d.to_ne_bytes());
    }
    AddressKey { address, port: u16::from_be(port as u16), reserved: 0 }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, to: AddressKey, ip_version: u32) -> i32 {
    // SAFETY: the context that this program was entered with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // Without room, the owner of the socket stays unknown.
    let _full = OWNERS.insert(cookie, tgid, 0);
    // SAFETY: a field of the context that this program was entered with.
    let datagram = unsafe { (*ctx.sock_addr).type_ } == DATAGRAM;
    reach(ctx, to, ip_version, datagram)
}

/// Returns the provider of an address: by name servers' answers, else by the ties of the caller's
/// own user in its cgroup.
#[inline(always)]
fn whose(to: AddressKey) -> Option<u32> {
    // SAFETY: copied at once, here and below; helpers without arguments.
    unsafe {
        if let Some(provider) = ADDRESSES.get(to) {
            return Some(*provider);
        }
        let AddressKey { address, port, reserved } = to;
        let uid = bpf_get_current_uid_gid() as u32;
        let key = TieKey { address, port, reserved, uid, group: bpf_get_current_cgroup_id() };
        TIES.get(key).copied()
    }
}

/// Returns whether the process may address the place.
#[inline(always)]
fn reach(ctx: &SockAddrContext, to: AddressKey, ip_version: u32, datagram: bool) -> i32 {
    if datagram && to.port == DNS_PORT {
        will_ask(ctx);
    }
    let Some(provider) = whose(to) else { return ALLOW };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the context that this program was entered with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // A datagram on a socket with an existing connection to the place is no connect.
    let begins = !datagram || SOCKS.get_ptr_mut(cookie).is_none();
    let refused = if is_closed(tgid, provider) {
        Some(contact::REFUSED)
    } else if is_undecided(tgid) {
        Some(contact::ABSENT)
    } else if begins && is_flooding(tgid, provider) {
        Some(contact::FLOODED)
    } else {
        None
    };
    let contact = Contact {
        kind: kind::CONTACT,
        what: refused.unwrap_or(contact::DATAGRAM),
        // SAFETY: a helper without arguments.
        at_mono_ns: unsafe { bpf_ktime_get_ns() },
        cookie,
        unreported: 0,
        local: [0; 16],
        remote: to.address,
        local_port: 0,
        remote_port: to.port,
        ip_version,
        tgid,
        provider,
        held: 0,
        captured_len: 0,
    };
    if refused.is_some() {
        refuse(contact);
        return REFUSE;
    }
    if datagram && begins && is_news(tgid, provider) {
        follow(cookie, tgid);
        if !report(contact) {
            count_loss(loss::RING_FULL_RECORDS, 1);
        }
    }
    ALLOW
}

/// Reports a refused connection, or counts the connection for the next report: a process in a loop
/// refuses itself a hundred thousand times a second, and the ring buffer is for all.
#[inline(always)]
fn refuse(mut contact: Contact) {
    // SAFETY: a constant of the program, possibly changed by the loader.
    let run = unsafe { (&raw const RUN).read_volatile() };
    if settings().is_some_and(|it| it.run != run) {
        return;
    }
    let key = DeniedKey { tgid: contact.tgid, provider: contact.provider };
    let Some(refusals) = refusals(key) else {
        if is_crowded() || !report(contact) {
            count_loss(loss::RING_FULL_RECORDS, 1);
        }
        return;
    };
    // SAFETY: an element of the map, alive while this program runs; threads of a process refused at
    // the same instant may count as one.
    unsafe {
        if is_counted(refusals, &contact, run) {
            return;
        }
        (*refusals).run = run;
        (&raw mut (*refusals).last).write(contact);
        contact.unreported = (*refusals).unreported;
        if !is_reported(refusals, contact.at_mono_ns) || !report(contact) {
            (*refusals).unreported += 1;
        }
    }
}

/// Returns whether the program of an earlier run has just counted the same refusal: the run changed
/// between the two programs.
///
/// # Safety
///
/// `refusals` is an element of the map.
#[inline(always)]
unsafe fn is_counted(refusals: *mut Refusals, contact: &Contact, run: u32) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let Contact { cookie, at_mono_ns, .. } = (*refusals).last;
        (*refusals).run != run
            && cookie == contact.cookie
            && contact.at_mono_ns.wrapping_sub(at_mono_ns) < SAME_REFUSAL_NS
    }
}

/// Returns the refusals of a process by a provider; `None` without room.
#[inline(always)]
fn refusals(key: DeniedKey) -> Option<*mut Refusals> {
    if let Some(found) = REFUSALS.get_ptr_mut(key) {
        return Some(found);
    }
    // Another thread of the process may have been first.
    let _exists = REFUSALS.insert(key, EMPTY_REFUSALS.get(0)?, u64::from(BPF_NOEXIST));
    REFUSALS.get_ptr_mut(key)
}

/// Returns whether a refusal has a record of its own: the agent can read as much, and few were
/// reported just before.
///
/// # Safety
///
/// `refusals` is an element of the map.
#[inline(always)]
unsafe fn is_reported(refusals: *mut Refusals, now: u64) -> bool {
    if is_crowded() {
        return false;
    }
    // SAFETY: as the caller promises.
    unsafe {
        let used_to = (*refusals).used_to_mono_ns.max(now);
        if used_to - now > REFUSALS_AT_ONCE_NS {
            return false;
        }
        (*refusals).used_to_mono_ns = used_to + REFUSAL_REPORT_NS;
    }
    true
}

/// Returns whether the caller's user had too many refusals by the provider. An observed process
/// passes.
#[inline(always)]
fn is_flooding(tgid: u32, provider: u32) -> bool {
    let uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: copied at once; helpers without arguments.
    unsafe {
        let key = FloodKey { group: bpf_get_current_cgroup_id(), uid, provider };
        let Some(&until) = FLOODING.get(key) else { return false };
        bpf_ktime_get_ns() < until && settings().is_some_and(|it| is_held(tgid, it.holding))
    }
}

/// Follows a socket without a TLS object as a connection of its own.
#[inline(always)]
fn follow(cookie: u64, tgid: u32) -> Option<()> {
    if !quota::socket(tgid, quota::Share::New) {
        return None;
    }
    let sock = new_sock(cookie)?;
    // SAFETY: an element of the map, alive while this program runs.
    unsafe {
        (*sock).conn = cookie;
        (*sock).tgid = tgid;
    }
    Some(())
}

/// Returns whether the last report of the process addressing the provider by UDP is at least a
/// second old, whatever the number of sockets.
#[inline(always)]
fn is_news(tgid: u32, provider: u32) -> bool {
    let key = DeniedKey { tgid, provider };
    // SAFETY: a helper without arguments; and copied at once.
    let (now, before) = unsafe { (bpf_ktime_get_ns(), DATAGRAMS.get(key).copied()) };
    if before.is_some_and(|it| now - it < DATAGRAM_EVERY_NS) {
        return false;
    }
    let _full = DATAGRAMS.insert(key, now, 0);
    true
}

/// Reports a contact. False without room.
#[inline(always)]
fn report(contact: Contact) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Contact>(0) else { return false };
    entry.write(contact);
    entry.submit(wake(true));
    true
}

#[inline(always)]
fn report_released(cookie: u64, sock: *mut Sock) {
    let Some(mut entry) = EVENTS.reserve::<Released>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    // SAFETY: an element of the map, alive while this program runs.
    let (conn, sent, received) = unsafe { ((*sock).conn, (*sock).sent, (*sock).received) };
    entry.write(Released {
        kind: kind::RELEASED,
        reserved: 0,
        // SAFETY: a helper without arguments.
        at_mono_ns: unsafe { bpf_ktime_get_ns() },
        cookie,
        conn,
        sent,
        received,
    });
    entry.submit(wake(false));
}

#[repr(C)]
struct Answer {
    header: Dns,
    bytes: [u8; DNS_LEN],
}

/// Reports a UDP packet from a name server.
#[inline(always)]
fn answer(ctx: &SkBuffContext) -> Option<()> {
    let packet = Packet::of(ctx)?;
    let source = ctx.load(packet.header_at as usize).map(u16::from_be_bytes).ok()?;
    if packet.protocol != IPPROTO_UDP || source != DNS_PORT {
        return None;
    }
    // In an arriving packet, the source is the other end.
    let server = packet.ends(ctx)?.local;
    // SAFETY: the context that this program was entered with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    report_dns(ctx, cookie, &packet, server, 1)
}

#[inline(always)]
fn report_dns(
    ctx: &SkBuffContext,
    cookie: u64,
    packet: &Packet,
    server: [u8; 16],
    answers: u32,
) -> Option<()> {
    if packet.payload_len <= DNS_HEADER || ASKERS.get_ptr_mut(cookie).is_none() {
        return None;
    }
    let Some(mut entry) = EVENTS.reserve::<Answer>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return None;
    };
    let len = bounded::<{ DNS_LEN as u32 }>(packet.payload_len);
    let record: *mut Answer = entry.as_mut_ptr();
    // SAFETY: `record` is reserved ring buffer of its type, and `len` is at most DNS_LEN.
    let failed = unsafe {
        (&raw mut (*record).header).write(Dns {
            kind: kind::DNS,
            captured_len: len,
            cookie,
            server,
            ip_version: packet.ip_version,
            answers,
        });
        let to = (&raw mut (*record).bytes).cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), packet.payload_at, to, len)
    };
    if failed == 0 {
        entry.submit(wake(true));
    } else {
        entry.discard(0);
    }
    Some(())
}
