//! Kernel programs: read the plaintext passing through TLS libraries, learn the socket of each
//! connection, and hold a request until the agent's decision.
//!
//! - `tls`: entry and RET probes on the TLS library's functions;
//! - `classify`: recognition of AI providers, by host name or by path of the request;
//! - `emit`: plaintext into the ring buffer;
//! - `egress`: packets of a socket: join, hold, count (`packet`: positions in a packet);
//! - `hold`: waiting writes, and the deadline; `quota`: limits of a process in shared maps;
//! - `hello`: providers reached past the probes, by the name in the `ClientHello`;
//! - `connect`: sockets at connect and close; name servers' answers;
//! - `lsm`: send calls of denied connections;
//! - `process`: exec, fork and exit (`lineage`: ancestry of a process; `task`: the kernel's fields
//!   of a task).
//!
//! The programs decide nothing else: policies live in the agent. No program writes to a workload's
//! memory, uses a return probe, or keeps state per CPU (uprobe programs can be preempted).
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "kernel boundary: helpers, maps and user memory are raw pointers")]
#![allow(missing_docs, reason = "a binary: the programs are documented where they are defined")]
#![allow(
    clippy::inline_always,
    reason = "one program, one body: the verifier then knows its state"
)]
#![allow(clippy::cast_possible_truncation, reason = "halves of pid_tgid, and numbers with a bound")]
#![allow(clippy::cast_sign_loss, reason = "checked to be positive before")]
#![allow(clippy::needless_pass_by_value, reason = "the macros of aya pass contexts by value")]

mod classify;
mod connect;
mod egress;
mod emit;
mod hello;
mod hold;
mod lineage;
mod lsm;
mod maps;
mod packet;
mod process;
mod quota;
mod task;
mod tls;

/// GPL-compatible: the kernel refuses `bpf_probe_read_user` to other programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
