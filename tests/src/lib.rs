//! Peers and tools for the tests that need a kernel, a process or a peer.

pub mod agent;
pub mod authority;
pub mod clients;
pub mod process;
pub mod provider;
pub mod scratch;
