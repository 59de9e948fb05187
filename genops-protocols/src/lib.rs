//! Captured bytes to model calls.
//!
//! [`Connection`] takes the plaintext bytes of one connection, in pieces of any size and with
//! holes, and tells a [`Sink`] which requests were made and what came of them. No I/O, no clock,
//! no policy; nothing a peer sends can make it panic or grow past its limits.

#![forbid(unsafe_code)]

mod body;
mod call;
mod claims;
mod coding;
mod connection;
mod dialect;
mod eventstream;
mod exchange;
mod facts;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grpc;
mod harmless;
pub mod hosts;
mod http1;
mod http2;
mod json;
mod memory;
mod multipart;
mod path;
mod sse;
mod stream;
mod websocket;

pub use call::{
    Call, Direction, Egress, Exchange, Kind, McpCall, OpenRequest, Request, RequestParams, Sink,
    Unreadable, Usage,
};
pub use claims::{BODY_PATHS, Claim, ClaimSource, UnknownSource, Wanted};
pub use connection::{Connection, ConnectionFacts};
pub use hosts::{API_PATH_SUFFIXES, HarmlessFault, HostPattern, Hosts, UnknownDialect};
pub use memory::Memory;
