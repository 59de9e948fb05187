//! The kernel programs: they read what TLS libraries are given and give, learn which socket carries
//! it, and hold a request back until the agent has decided.
//!
//! - `tls`: entry and RET probes on the TLS library's functions;
//! - `classify`: is this an AI provider? (host name, or path of the request);
//! - `emit`: plaintext into the ring buffer;
//! - `egress`: the packets of a socket: join, hold, count (`packet`: where things are in one);
//! - `hold`: what waits, and the deadline; `quota`: what one process may take of what all share;
//! - `hello`: providers that are reached past the probes, by the name in the `ClientHello`;
//! - `connect`: sockets as they are got and let go of; name servers' answers;
//! - `lsm`: send calls of denied connections;
//! - `process`: exec, fork and exit (`lineage`: what a process descends from; `task`: what the kernel
//!   knows of one).
//!
//! They decide nothing but that: policies live in the agent. Nothing here writes to a workload's
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
