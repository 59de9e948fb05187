//! Plaintext in and out of OpenSSL: entry and RET probes, a program per calling convention. A probe
//! may sit somewhat below the entry or above the RET ([`Frame`]).
//!
//! A write is reported at its entry, before encryption, at the position after the last successful
//! write. A failed and repeated write is reported again at the same position, because OpenSSL
//! demands the same bytes again (`SSL_write(3)`, "WARNINGS"); the reader drops the overlap.

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
    task::Task,
};

/// `SSL_CTRL_SET_TLSEXT_HOSTNAME` (`openssl/ssl.h`).
const SET_SERVER_NAME: i32 = 55;
const NAME_MASK: u32 = NAME_LEN as u32 - 1;
/// Maximum length of the plaintext in a TLS record (RFC 8446 §5.1).
const RECORD_LEN: u64 = 16_384;

/// `long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg)`: the server name, before the
/// handshake.
#[uprobe]
pub(crate) fn ssl_ctrl(ctx: ProbeContext) -> u32 {
    if ctx.arg::<i32>(1) == Some(SET_SERVER_NAME)
        && let (Some(ssl), Some(name)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(3))
    {
        server_name(ssl, name);
    }
    0
}

/// `int SSL_do_handshake(SSL *ssl)`, `int SSL_connect(SSL *ssl)`: the next record of the thread is
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

/// Remembers the time of the call: a probe reads the thread's next plaintext, so an unnamed
/// handshake of the thread needs no report.
#[inline(always)]
fn is_read() {
    if settings().is_some_and(|it| it.unnamed != 0) {
        // SAFETY: helpers without arguments.
        let (now, task) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_task()) };
        let _full = READ.insert(task, now, 0);
    }
}

/// Announces a `ClientHello`: the first record of a connection without traffic, whichever call
/// sends the record. Node.js lets `SSL_read` do the handshake.
#[inline(always)]
fn handshake_begins(key: ConnKey, conn: *mut Conn) {
    // SAFETY: an element of the map, alive while this program runs.
    let Conn { cookie, egress_offset, ingress_offset, .. } = unsafe { *conn };
    if cookie == 0 && egress_offset == 0 && ingress_offset == 0 {
        // SAFETY: a helper without arguments.
        mark(unsafe { bpf_get_current_task() }, key, HANDSHAKE, 0, 0);
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
            // SAFETY: an element of the map, alive while the program runs; only a single thread at
            // a time uses a TLS object (openssl-threads(7)).
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

/// Reads plaintext unreadable at the write: the library has touched the memory since.
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
            // An element already gone is fine.
            let _gone = CONNS.remove(key);
            quota::object_ends(key.tgid, conn.uid);
            report_close(&conn);
        }
    }
    0
}

/// Does nothing: the baseline of the benchmarks.
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

/// 1: the kernel tells a program the cookie of the hit probe (5.15). Set before loading, so that
/// kernels without the helper never see the call.
#[unsafe(no_mangle)]
static COOKIES: u32 = 0;

#[inline(always)]
fn frame(ctx: &ProbeContext) -> Frame {
    // SAFETY: a constant of the program, possibly changed by the loader.
    if unsafe { (&raw const COOKIES).read_volatile() } == 0 {
        return Frame::default();
    }
    // SAFETY: the context that this program was entered with.
    Frame(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

/// Returns the stack pointer at the entry of the probed function.
#[inline(always)]
fn stack_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: the registers that this program was entered with.
    let here = unsafe { (*ctx.regs).rsp };
    here + frame(ctx).depth()
}

/// Returns the result of the probed function.
#[inline(always)]
fn result(ctx: &ProbeContext) -> i32 {
    // Each register at a constant offset: the verifier accepts no variable offset into the context.
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
    // Behind a byte of room for the border.
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
        // Opaque, so that the mask stays: kernels before 6.2 lose the checked bound.
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
        let record_len = if len < RECORD_LEN { len } else { RECORD_LEN };
        // SAFETY: a helper without arguments.
        mark(unsafe { bpf_get_current_task() }, key, APPLICATION_DATA, offset, record_len);
        if let Some(inherited) = inherited_socket(key) {
            mark(inherited, key, APPLICATION_DATA, offset, record_len);
        }
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

/// Returns the ending call, and the number of bytes moved.
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

/// Ancestors asked for the socket of an inherited TLS object.
const ANCESTORS: u32 = 3;

/// Returns the socket of a TLS object that the process inherited: an ancestor has the object at the
/// same address.
#[inline(always)]
fn inherited_socket(key: ConnKey) -> Option<u64> {
    let mut task = Task::current()?;
    let mut above = 0;
    while above < ANCESTORS {
        task = task.parent()?;
        // SAFETY: copied at once.
        if let Some(conn) = unsafe { CONNS.get(ConnKey { tgid: task.process()?, ..key }) } {
            return (conn.cookie != 0).then_some(conn.cookie);
        }
        above += 1;
    }
    None
}

/// Announces a record of `conn`, about to be sent by a task or over a socket (`by`: see [`MARKS`]).
#[inline(always)]
fn mark(by: u64, conn: ConnKey, content_type: u8, offset: u64, record_len: u64) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut ambiguous = 0;
    // SAFETY: copied at once.
    if let Some(before) = unsafe { MARKS.get(by) }
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
    // Without a mark the socket stays unknown, and the agent reports the unknown socket.
    let _full = MARKS.insert(by, mark, 0);
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
            // The socket alone is followed from here on.
            let _gone = CONNS.remove(key);
            quota::object_ends(key.tgid, before.uid);
            return report_close(&before);
        }
        // A reused TLS object, or a new object at the address of an object never freed.
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
        // SAFETY: the thread's own map element; `bytes` is longer than a name; a NUL follows the
        // name.
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

/// Returns whether a TLS object without traffic is given the name the object already has.
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
