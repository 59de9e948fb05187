//! Plaintext in and out of OpenSSL: entry and RET probes, one program per calling convention. A probe may sit
//! somewhat below the entry or above the RET ([`Frame`]).
//!
//! A write is reported at its entry, before anything is encrypted, at the position where the last
//! successful write ended. A write that fails and is repeated is reported again at the same position,
//! as OpenSSL wants the same bytes again (`SSL_write(3)`, "WARNINGS"); the reader drops the overlap.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_attach_cookie, bpf_get_current_cgroup_id, bpf_get_current_task,
            bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user,
            bpf_probe_read_user_str,
        },
    },
    macros::uprobe,
    programs::ProbeContext,
};
use genops_ebpf_common::{
    Close, Conn, ConnKey, DATA_DENIED, DATA_HELD, EGRESS, Frame, INGRESS, NAME_LEN, NameKey, Open,
    Verdict, kind, loss, origin,
};

use crate::{
    classify,
    egress::{APPLICATION_DATA, HANDSHAKE},
    emit::emit_call,
    hold::{arm, is_closed, is_held, set_read, set_unread},
    lineage,
    maps::{
        CALLS, CONNS, Call, EMPTY_SCRATCH, EVENTS, MARK_LIFETIME_NS, MARKS, Mark, NAMES, OTHERS,
        READ, Scratch, VERDICTS, count_loss, settings, wake,
    },
    quota,
};

/// `SSL_CTRL_SET_TLSEXT_HOSTNAME` (`openssl/ssl.h`).
const SET_SERVER_NAME: i32 = 55;
const NAME_MASK: u32 = NAME_LEN as u32 - 1;
/// Longest plaintext of one TLS record (RFC 8446 §5.1).
const RECORD_LEN: u64 = 16_384;

/// `long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg)`: the server name, before the handshake.
#[uprobe]
pub(crate) fn ssl_ctrl(ctx: ProbeContext) -> u32 {
    if ctx.arg::<i32>(1) == Some(SET_SERVER_NAME)
        && let (Some(ssl), Some(name)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(3))
    {
        server_name(ssl, name);
    }
    0
}

/// `int SSL_do_handshake(SSL *ssl)`, `int SSL_connect(SSL *ssl)`: the next record of this thread is
/// the `ClientHello`.
#[uprobe]
pub(crate) fn ssl_handshake(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg::<u64>(0) {
        let key = conn_key(ssl);
        match CONNS.get_ptr_mut(key) {
            Some(conn) => handshake_begins(key, conn),
            None => is_read(),
        }
    }
    0
}

/// What this thread says next, a probe would read: whom it says it to is nobody else's concern.
#[inline(always)]
fn is_read() {
    if settings().is_some_and(|it| it.unnamed != 0) {
        // SAFETY: helpers without arguments.
        let (now, task) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_task()) };
        let _full = READ.insert(task, now, 0);
    }
}

/// A connection that has carried nothing will send a `ClientHello` first, whichever call makes it:
/// Node.js lets `SSL_read` do the handshake.
#[inline(always)]
fn handshake_begins(key: ConnKey, conn: *mut Conn) {
    // SAFETY: an element of the map, alive while this program runs.
    let Conn { cookie, egress_offset, ingress_offset, .. } = unsafe { *conn };
    if cookie == 0 && egress_offset == 0 && ingress_offset == 0 {
        mark(key, HANDSHAKE, 0, 0);
    }
}

/// `int SSL_write(SSL *ssl, const void *buf, int num)`.
#[uprobe]
pub(crate) fn ssl_write(ctx: ProbeContext) -> u32 {
    if let (Some(ssl), Some(buffer), Some(len)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<i32>(2))
        && len > 0
    {
        write_begins(&ctx, ssl, buffer, len as u64, 0);
    }
    0
}

/// `int SSL_write_ex(SSL *s, const void *buf, size_t num, size_t *written)`.
#[uprobe]
pub(crate) fn ssl_write_ex(ctx: ProbeContext) -> u32 {
    if let (Some(ssl), Some(buffer), Some(len), Some(count_at)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2), ctx.arg::<u64>(3))
        && len > 0
    {
        write_begins(&ctx, ssl, buffer, len, count_at);
    }
    0
}

/// At a RET instruction of `SSL_write` or `SSL_write_ex`.
#[uprobe]
pub(crate) fn ssl_write_ret(ctx: ProbeContext) -> u32 {
    if let Some((call, count)) = call_returns(&ctx) {
        let key = conn_key(call.ssl);
        if let Some(conn) = CONNS.get_ptr_mut(key) {
            // SAFETY: an element of the map, alive while this program runs; a TLS object is used by one
            // thread at a time (openssl-threads(7)).
            let id = unsafe {
                (*conn).egress_offset += count;
                (*conn).id
            };
            if call.unread != 0 {
                read_again(id, &call, count);
            }
        }
    }
    0
}

/// What could not be read when it was written: the library has touched it since.
#[inline(always)]
fn read_again(id: u64, call: &Call, count: u64) {
    if count > 0 && emit_call(id, call.unread >> 1, call.buffer, call.offset, count) == 0 {
        set_read(id);
    }
}

/// `int SSL_read(SSL *ssl, void *buf, int num)`.
#[uprobe]
pub(crate) fn ssl_read(ctx: ProbeContext) -> u32 {
    if let (Some(ssl), Some(buffer)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        read_begins(&ctx, ssl, buffer, 0);
    }
    0
}

/// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`.
#[uprobe]
pub(crate) fn ssl_read_ex(ctx: ProbeContext) -> u32 {
    if let (Some(ssl), Some(buffer), Some(count_at)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(3))
    {
        read_begins(&ctx, ssl, buffer, count_at);
    }
    0
}

/// At a RET instruction of `SSL_read` or `SSL_read_ex`.
#[uprobe]
pub(crate) fn ssl_read_ret(ctx: ProbeContext) -> u32 {
    if let Some((call, count)) = call_returns(&ctx)
        && count > 0
        && let Some(conn) = CONNS.get_ptr_mut(conn_key(call.ssl))
    {
        // SAFETY: as in `ssl_write_ret`.
        let (id, offset) = unsafe {
            let offset = (*conn).ingress_offset;
            (*conn).ingress_offset = offset + count;
            ((*conn).id, offset)
        };
        emit_call(id, u64::from(INGRESS), call.buffer, offset, count);
    }
    0
}

/// `void SSL_free(SSL *ssl)`.
#[uprobe]
pub(crate) fn ssl_free(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg::<u64>(0) {
        let key = conn_key(ssl);
        if let Some(conn) = CONNS.get_ptr_mut(key) {
            // SAFETY: an element of the map, alive while this program runs.
            let conn = unsafe { *conn };
            // Already gone is as good.
            let _gone = CONNS.remove(key);
            quota::object_ends(key.tgid, conn.uid);
            report_close(&conn);
        }
    }
    0
}

/// Does nothing: the floor that the benchmarks measure against.
#[uprobe]
pub(crate) fn empty(_: ProbeContext) -> u32 {
    0
}

#[inline(always)]
fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
fn conn_key(ssl: u64) -> ConnKey {
    ConnKey { ssl, tgid: tgid(), reserved: 0 }
}

/// 1: the kernel tells a program which of its probes was hit (5.15). Set before it is loaded, so that kernels
/// without the helper never see the call.
#[unsafe(no_mangle)]
static COOKIES: u32 = 0;

#[inline(always)]
fn frame(ctx: &ProbeContext) -> Frame {
    // SAFETY: a constant of ours, which the loader may have changed.
    if unsafe { (&raw const COOKIES).read_volatile() } == 0 {
        return Frame::default();
    }
    // SAFETY: the context that this program was entered with.
    Frame(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

/// The stack pointer at the entry of the function in which a probe was hit.
#[inline(always)]
fn stack_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: the registers that this program was entered with.
    let here = unsafe { (*ctx.regs).rsp };
    here + frame(ctx).depth()
}

/// What the function in which a probe was hit is about to return.
#[inline(always)]
fn result(ctx: &ProbeContext) -> i32 {
    // Each at its own constant offset: the verifier takes no other into its context.
    // SAFETY: as in `stack_pointer`.
    let (rax, rbx, rbp, r12, r13, r14, r15) = unsafe {
        (
            (&raw const (*ctx.regs).rax).read_volatile(),
            (&raw const (*ctx.regs).rbx).read_volatile(),
            (&raw const (*ctx.regs).rbp).read_volatile(),
            (&raw const (*ctx.regs).r12).read_volatile(),
            (&raw const (*ctx.regs).r13).read_volatile(),
            (&raw const (*ctx.regs).r14).read_volatile(),
            (&raw const (*ctx.regs).r15).read_volatile(),
        )
    };
    let value = match frame(ctx).register() {
        3 => rbx,
        5 => rbp,
        12 => r12,
        13 => r13,
        14 => r14,
        15 => r15,
        _ => rax,
    };
    value as i32
}

/// Remembers a provider's name; other names leave no trace.
#[inline(always)]
fn server_name(ssl: u64, name: u64) {
    let Some(scratch) = classify::scratch() else { return };
    // Behind one byte of room for the border.
    // SAFETY: `bytes` is larger than NAME_LEN; the name is the program's own string.
    let len = unsafe {
        bpf_probe_read_user_str(
            (&raw mut (*scratch).bytes).cast::<u8>().add(1).cast(),
            NAME_LEN as u32,
            name as *const _,
        )
    };
    if !(2..=NAME_LEN as u64).contains(&(len as u64)) {
        return;
    }
    let mut len = len as u32 - 1;
    // A name may end with the root's dot (RFC 1034 §3.1).
    // SAFETY: within `bytes`, by the check above and the mask.
    unsafe {
        // Opaque, so that the mask stays: kernels before 6.2 lose the bound that was checked.
        let at = core::hint::black_box(len) & NAME_MASK;
        let last = (&raw mut (*scratch).bytes).cast::<u8>().add(at as usize);
        if len > 1 && *last == b'.' {
            *last = 0;
            len -= 1;
        }
    }
    if let Some(provider) = classify::provider_of_name(scratch, len) {
        open(conn_key(ssl), origin::SERVER_NAME, provider, Some((scratch, len)));
    }
}

#[inline(always)]
fn write_begins(ctx: &ProbeContext, ssl: u64, buffer: u64, len: u64, count_at: u64) {
    let Some(settings) = settings() else { return };
    let key = conn_key(ssl);
    if CONNS.get_ptr_mut(key).is_none() {
        match classify::is_ai_request(buffer, len) {
            classify::OTHER => return is_read(),
            classify::HTTP2_BEGINS => {
                let _full = OTHERS.insert(key, 1, 0);
                return;
            }
            classify::HTTP2_GOES_ON => {
                // SAFETY: looked at once.
                if unsafe { OTHERS.get(key) }.is_some() {
                    return;
                }
                open(key, origin::HTTP2_MIDWAY, 0, None);
            }
            found => open(key, origin::REQUEST, (found - classify::AI) as u32, None),
        }
    }
    let Some(conn) = CONNS.get_ptr_mut(key) else { return };
    // SAFETY: an element of the map, alive while this program runs.
    let Conn { id, cookie, egress_offset: offset, provider, .. } = unsafe { *conn };
    let mut kind = u64::from(EGRESS);
    let mut held = false;
    if is_held(key.tgid, settings.holding)
        && let Some(round) = arm(id, key.tgid, offset, offset + len)
    {
        held = true;
        kind |= u64::from(DATA_HELD) << 8 | u64::from(round as u16) << 16;
    }
    if is_closed(key.tgid, provider)
        && VERDICTS.insert(id, Verdict { released_to: 0, denied: 1, round: 0 }, 0).is_ok()
    {
        kind |= u64::from(DATA_DENIED) << 8;
    }
    if cookie == 0 {
        mark(key, APPLICATION_DATA, offset, if len < RECORD_LEN { len } else { RECORD_LEN });
    }
    let lost = emit_call(id, kind, buffer, offset, len);
    let mut call = begun(ctx, ssl, buffer, count_at);
    if lost != 0 {
        call.offset = offset;
        call.unread = kind << 1 | 1;
        if held {
            set_unread(id, key.tgid, lost as u32, buffer, offset);
        }
    }
    call_begins(&call);
}

#[inline(always)]
fn read_begins(ctx: &ProbeContext, ssl: u64, buffer: u64, count_at: u64) {
    let key = conn_key(ssl);
    let Some(conn) = CONNS.get_ptr_mut(key) else { return is_read() };
    handshake_begins(key, conn);
    call_begins(&begun(ctx, ssl, buffer, count_at));
}

#[inline(always)]
fn begun(ctx: &ProbeContext, ssl: u64, buffer: u64, count_at: u64) -> Call {
    Call { stack_pointer: stack_pointer(ctx), ssl, buffer, count_at, offset: 0, unread: 0 }
}

#[inline(always)]
fn call_begins(call: &Call) {
    if CALLS.insert(bpf_get_current_pid_tgid(), call, 0).is_err() {
        count_loss(loss::CALLS_FULL, 1);
    }
}

/// The call that ends here, and how many bytes it moved.
#[inline(always)]
fn call_returns(ctx: &ProbeContext) -> Option<(Call, u64)> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: copied at once; only this thread writes its element.
    let call = unsafe { *CALLS.get(thread)? };
    if call.stack_pointer != stack_pointer(ctx) {
        return None; // a RET of another function, or of a call within this one
    }
    let _gone = CALLS.remove(thread);
    let returned = result(ctx);
    if returned <= 0 {
        return Some((call, 0));
    }
    if call.count_at == 0 {
        return Some((call, returned as u64));
    }
    let mut count = 0u64;
    // SAFETY: eight bytes onto the stack; the address is the program's own variable.
    let failed =
        unsafe { bpf_probe_read_user((&raw mut count).cast(), 8, call.count_at as *const _) };
    if failed != 0 {
        count_loss(loss::FAULT_BYTES, 1);
        return Some((call, 0));
    }
    Some((call, count))
}

/// Announces that this thread is about to send a record for `conn`.
#[inline(always)]
fn mark(conn: ConnKey, content_type: u8, offset: u64, record_len: u64) {
    // SAFETY: helpers without arguments.
    let (now, task) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_task()) };
    let mut ambiguous = 0;
    // SAFETY: copied at once; only this thread writes its element.
    if let Some(before) = unsafe { MARKS.get(task) }
        && (before.conn.ssl != conn.ssl || before.conn.tgid != conn.tgid)
        && now - before.at_mono_ns <= MARK_LIFETIME_NS
    {
        ambiguous = 1;
    }
    let mark = Mark {
        conn,
        at_mono_ns: now,
        content_type,
        ambiguous,
        reserved: [0; 2],
        record_len: record_len as u32,
        offset,
    };
    // Without a mark the socket stays unknown, and the agent says so.
    let _full = MARKS.insert(task, mark, 0);
}

/// Begins a connection and tells the agent.
#[inline(always)]
fn open(key: ConnKey, origin: u32, provider: u32, name: Option<(*mut Scratch, u32)>) {
    // SAFETY: helpers without arguments.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let id = now << 8 | u64::from(cpu & 0xff);
    let uid = bpf_get_current_uid_gid() as u32;
    if let Some(before) = CONNS.get_ptr_mut(key) {
        // SAFETY: an element of the map, alive while this program runs.
        let before = unsafe { *before };
        if is_same(&before, name) {
            return;
        }
        if !quota::object(key.tgid, uid, false) {
            // It is followed by its socket alone from here on.
            let _gone = CONNS.remove(key);
            quota::object_ends(key.tgid, before.uid);
            return report_close(&before);
        }
        // A TLS object that is used again, or one at the address of another that nobody freed.
        report_close(&before);
    } else if !quota::object(key.tgid, uid, true) {
        return;
    }
    let conn = Conn { id, cookie: 0, egress_offset: 0, ingress_offset: 0, provider, uid };
    if CONNS.insert(key, conn, 0).is_err() {
        count_loss(loss::CONNECTIONS_FULL, 1);
        return quota::object_ends(key.tgid, uid);
    }
    if let Some((scratch, _)) = name {
        // SAFETY: this thread's own map element, of which `bytes` is longer than a name; behind the name
        // is a NUL.
        let name = unsafe { &*(&raw const (*scratch).bytes).cast::<u8>().add(1).cast::<NameKey>() };
        let _full = NAMES.insert(id, name, 0);
    }
    let Some(mut entry) = EVENTS.reserve::<Open>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    let held = match settings() {
        Some(settings) => u32::from(is_held(key.tgid, settings.holding)),
        None => 0,
    };
    let record: *mut Open = entry.as_mut_ptr();
    let (name, name_len) = if let Some((scratch, len)) = name {
        (scratch.cast_const(), len)
    } else if let Some(empty) = EMPTY_SCRATCH.get_ptr(0) {
        (empty, 0)
    } else {
        entry.discard(0);
        return;
    };
    // Field by field: the record does not fit on the stack beside the rest.
    // SAFETY: `record` is reserved ring buffer of its type; `bytes` is longer than the name.
    unsafe {
        (&raw mut (*record).kind).write(kind::OPEN);
        (&raw mut (*record).tgid).write(key.tgid);
        (&raw mut (*record).at_mono_ns).write(now);
        (&raw mut (*record).conn).write(id);
        (&raw mut (*record).ssl).write(key.ssl);
        (&raw mut (*record).cgroup_id).write(bpf_get_current_cgroup_id());
        (&raw mut (*record).uid).write(uid);
        (&raw mut (*record).origin).write(origin);
        (&raw mut (*record).comm).write(bpf_get_current_comm().unwrap_or_default());
        (&raw mut (*record).name_len).write(name_len);
        (&raw mut (*record).held).write(held);
        (&raw mut (*record).principal).write(lineage::principal());
        let bytes = (&raw const (*name).bytes).cast::<u8>().add(1).cast();
        bpf_probe_read_kernel((&raw mut (*record).name).cast(), NAME_LEN as u32, bytes);
    }
    entry.submit(wake(false));
}

/// Whether a TLS object that has carried nothing is given the name that it has.
#[inline(always)]
fn is_same(before: &Conn, name: Option<(*mut Scratch, u32)>) -> bool {
    if before.cookie != 0 || before.egress_offset != 0 || before.ingress_offset != 0 {
        return false;
    }
    let Some((scratch, len)) = name else { return false };
    // SAFETY: looked at once.
    let Some(known) = (unsafe { NAMES.get(before.id) }) else { return false };
    let mut at = 0;
    while at < NAME_LEN {
        // SAFETY: `bytes` is longer than a name and the byte before it.
        let it = unsafe { *(&raw const (*scratch).bytes).cast::<u8>().add(1 + at) };
        if known.get(at) != Some(&it) {
            return false;
        }
        if at as u32 >= len {
            return true;
        }
        at += 1;
    }
    true
}

#[inline(always)]
fn report_close(conn: &Conn) {
    let Some(mut entry) = EVENTS.reserve::<Close>(0) else {
        count_loss(loss::RING_FULL_RECORDS, 1);
        return;
    };
    // SAFETY: a helper without arguments.
    let at_mono_ns = unsafe { bpf_ktime_get_ns() };
    entry.write(Close {
        kind: kind::CLOSE,
        tgid: tgid(),
        conn: conn.id,
        at_mono_ns,
        taken_to: conn.egress_offset,
    });
    entry.submit(wake(false));
}
