//! Decodes captured bytes into model calls.
//!
//! [`Connection`] takes the plaintext bytes of a connection, in pieces of any size and with gaps,
//! and reports requests and outcomes to a [`Sink`]. No I/O, no clock, no policy; no input of a peer
//! can cause a panic or growth past the limits.

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
