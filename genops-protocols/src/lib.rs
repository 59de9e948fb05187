//! Captured bytes to model calls.
//!
//! [`Connection`] takes the plaintext bytes of one connection, in pieces of any size and with
//! holes, and tells a [`Sink`] which requests were made and what came of them. No I/O, no clock,
//! no policy; nothing a peer sends can make it panic or grow past its limits.

#![forbid(unsafe_code)]

mod call;
mod connection;
mod dialect;
pub mod hosts;

pub use call::{
    Call, Direction, Egress, Exchange, Kind, McpCall, OpenRequest, Request, RequestParams, Sink,
    Unreadable, Usage,
};
pub use connection::{Connection, ConnectionFacts};
pub use hosts::{API_PATH_SUFFIXES, HostPattern, Hosts, UnknownDialect};
