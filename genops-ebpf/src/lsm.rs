//! Fails the send call of a denied connection at once (`EPERM`), on kernels with BPF programs as
//! security hooks.

use aya_ebpf::cty::c_void;
use aya_ebpf::{helpers::generated::bpf_get_socket_cookie, macros::lsm, programs::LsmContext};

use crate::{hold::is_denied, maps::SOCKS};

const EPERM: i32 = 1;
/// Offset of `sk` in `struct socket` (`include/linux/net.h`; the same since 5.3), in bytes. The
/// verifier knows the type at each offset: a kernel with another offset refuses the program, and
/// the mechanism is absent.
const SK_OFFSET: usize = 24;

/// `int security_socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn deny_sendmsg(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    if before != 0 {
        return before;
    }
    let socket: *const *mut c_void = ctx.arg(0);
    // SAFETY: a trusted pointer of the hook; the verifier checks the access.
    let sk = unsafe { socket.byte_add(SK_OFFSET).read_volatile() };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: the socket of the call under way.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return 0 };
    // SAFETY: copied at once.
    if is_denied(unsafe { (*sock).conn }) { -EPERM } else { 0 }
}
