//! Peers and tools for tests with a kernel, a process or a peer.

pub mod agent;
pub mod authority;
pub mod bench;
pub mod client;
pub mod clients;
pub mod collector;
pub mod demo;
pub mod patience;
pub mod process;
pub mod provider;
pub mod scratch;
pub mod unrelated;
