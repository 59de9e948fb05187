//! Decoder of a connection: takes bytes of both directions, yields calls.
//!
//! Detects the protocol and passes the bytes to the matching decoder. A connection with the host as
//! the server is recognised by the first bytes and not read.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::call::{Call, Direction, Egress, OpenRequest, Sink};
use crate::claims::Wanted;
use crate::exchange::{Context, Transaction};
use crate::hosts::Hosts;
use crate::http1::{self, Http1, Upgrade};
use crate::http2::{self, Http2};
use crate::memory::Memory;
use crate::stream::Position;
use crate::websocket::WebSocket;

/// Facts of a connection at the start of decoding. Name and address may come later.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Server name of the TLS handshake, or the resolved name.
    pub server_name: Option<String>,
    /// Address of the peer.
    pub remote: Option<SocketAddr>,
    /// Seen from the first byte. False: joined midway.
    pub from_start: bool,
}

impl Default for ConnectionFacts {
    /// Nothing known, seen from the first byte.
    fn default() -> Self {
        Self { server_name: None, remote: None, from_start: true }
    }
}

/// Protocol of the connection.
#[derive(Debug)]
enum Protocol {
    /// Unknown so far: the first bytes of both directions.
    Undecided {
        egress: Vec<u8>,
        ingress: Vec<u8>,
    },
    Http1(Box<Http1>),
    Http2(Box<Http2>),
    WebSocket(Box<WebSocket>),
    /// Protocol without a decoder.
    Opaque,
}

/// Decodes a connection.
pub struct Connection {
    context: Context,
    from_start: bool,
    /// The connection was not seen from the first byte.
    joined_midway: bool,
    egress: Position,
    ingress: Position,
    protocol: Protocol,
    /// Call for a request with a partly seen head: only the peer is known.
    unknown: Call,
}

impl Connection {
    /// Default of [`Self::with_text_limit`], in bytes.
    pub const TEXT_LIMIT: usize = 4 << 20;

    /// Maximum bytes of memory held by a connection whatever the peer sends, beside messages in
    /// flight.
    pub const MEMORY_LIMIT: usize = 256 << 10;

    /// Maximum bytes of memory held by a message in flight, beside the data retained for use (the
    /// call, the texts) and the window of the decompressor (gzip 32 KiB, zstd 8 MiB, br 16 MiB at
    /// most).
    pub const MESSAGE_LIMIT: usize = 64 << 10;

    /// Number of first bytes examined to find the protocol: a preface of HTTP/2, or two frame
    /// heads.
    const SNIFF_BYTES: usize = 24;

    /// Creates the decoder of an unread connection.
    #[must_use]
    pub fn new(facts: ConnectionFacts, hosts: Arc<Hosts>) -> Self {
        let ConnectionFacts { server_name, remote, from_start } = facts;
        let mut it = Self {
            context: Context {
                hosts,
                server_name,
                remote,
                text_limit: Self::TEXT_LIMIT,
                digests: false,
                wanted: Arc::default(),
                memory: Arc::default(),
            },
            from_start,
            joined_midway: !from_start,
            egress: Position::default(),
            ingress: Position::default(),
            protocol: Protocol::Undecided { egress: Vec::new(), ingress: Vec::new() },
            unknown: Call::default(),
        };
        it.know_addressee();
        it
    }

    /// Updates the peer of a request with a partly seen head.
    fn know_addressee(&mut self) {
        self.unknown = Transaction::unread(0, 0, 0, &self.context).into_call();
    }

    /// Sets the bytes of text kept per request for content policy.
    #[must_use]
    pub fn with_text_limit(mut self, bytes: usize) -> Self {
        self.context.text_limit = bytes;
        self
    }

    /// Counts the memory of the decoders in a budget shared with other connections.
    #[must_use]
    pub fn with_memory(mut self, memory: Arc<Memory>) -> Self {
        self.context.memory = memory;
        self
    }

    /// Sets whether the texts of later requests are kept; otherwise the texts are only counted.
    pub fn keep_texts(&mut self, keep: bool) {
        self.context.text_limit = if keep { Self::TEXT_LIMIT } else { 0 };
    }

    /// Sets whether the bodies of later requests are hashed.
    pub fn keep_digests(&mut self, keep: bool) {
        self.context.digests = keep;
    }

    /// Sets the fields to read from later requests: [`Call::claims`].
    pub fn want(&mut self, wanted: &Arc<Wanted>) {
        if !Arc::ptr_eq(&self.context.wanted, wanted) {
            self.context.wanted = Arc::clone(wanted);
        }
    }

    /// Takes a server name or address learned later.
    pub fn learn(&mut self, facts: ConnectionFacts) {
        let ConnectionFacts { server_name, remote, from_start: _ } = facts;
        let Context { server_name: known_name, remote: known_remote, .. } = &mut self.context;
        *known_name = server_name.or(known_name.take());
        *known_remote = remote.or(*known_remote);
        self.know_addressee();
    }

    /// Takes bytes at a stream position: 0 is the first byte of the direction. Bytes seen before
    /// are skipped, a jump ahead is a gap.
    pub fn data_at(
        &mut self,
        at_ns: u64,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        sink: &mut dyn Sink,
    ) {
        if self.joined_midway && self.position(direction).next() == 0 {
            // Bytes sent before joining are not missing.
            self.position(direction).skip(offset);
        }
        let piece = self.position(direction).take(offset, bytes);
        if piece.gap > 0 {
            self.lost(at_ns, direction, piece.start, Some(piece.gap), sink);
        }
        if !piece.bytes.is_empty() {
            self.read(at_ns, direction, piece.start, piece.bytes, sink);
        }
    }

    /// Takes the next bytes in order.
    pub fn data(&mut self, at_ns: u64, direction: Direction, bytes: &[u8], sink: &mut dyn Sink) {
        let offset = self.position(direction).next();
        self.data_at(at_ns, direction, offset, bytes, sink);
    }

    /// Takes a gap; `None`: of unknown length.
    pub fn gap(
        &mut self,
        at_ns: u64,
        direction: Direction,
        bytes: Option<u64>,
        sink: &mut dyn Sink,
    ) {
        self.position(direction).skip(bytes.unwrap_or(0));
        let at = self.position(direction).next();
        self.lost(at_ns, direction, at, bytes, sink);
    }

    /// Ends the connection: no more bytes will come.
    pub fn close(&mut self, at_ns: u64, sink: &mut dyn Sink) {
        let at = self.egress.next();
        match std::mem::replace(&mut self.protocol, Protocol::Opaque) {
            Protocol::Http1(mut http1) => http1.close(at_ns, at, sink),
            Protocol::Http2(mut http2) => {
                let partial = http2.partial_block().filter(|_| self.from_start);
                http2.close(at_ns, at, sink);
                if let Some(start) = partial {
                    self.tell_unread(http2.next_exchange(), at_ns, start, sink);
                }
            }
            Protocol::WebSocket(mut websocket) => websocket.close(at_ns, at, sink),
            Protocol::Undecided { .. } | Protocol::Opaque => {}
        }
    }

    /// Returns the progress of reading egress.
    #[must_use]
    pub fn egress(&self) -> Egress<'_> {
        let partial = |start: Option<u64>, exchange: u64| {
            start.map(|start| OpenRequest {
                exchange,
                start,
                call: &self.unknown,
                body_bytes: 0,
                texts: None,
            })
        };
        let open = match &self.protocol {
            Protocol::Undecided { egress, .. } if self.from_start => {
                let start = self.egress.next() - egress.len() as u64;
                partial((!egress.is_empty()).then_some(start), 0)
            }
            Protocol::Http1(http1) => {
                http1.open().or_else(|| partial(http1.partial_head(), http1.next_exchange()))
            }
            Protocol::Http2(http2) => {
                http2.open().or_else(|| partial(http2.partial_frame(), http2.next_exchange()))
            }
            Protocol::WebSocket(websocket) => websocket.open(),
            Protocol::Undecided { .. } | Protocol::Opaque => None,
        };
        Egress { received: self.egress.next(), open }
    }

    /// Returns the bytes of memory held by the connection.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let protocol = match &self.protocol {
            Protocol::Undecided { egress, ingress } => egress.capacity() + ingress.capacity(),
            Protocol::Http1(http1) => size_of::<Http1>() + http1.memory_bytes(),
            Protocol::Http2(http2) => size_of::<Http2>() + http2.memory_bytes(),
            Protocol::WebSocket(websocket) => size_of::<WebSocket>() + websocket.memory_bytes(),
            Protocol::Opaque => 0,
        };
        size_of::<Self>() + protocol
    }

    /// Returns the bytes of [`Self::memory_bytes`] retained for use: calls, texts.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        match &self.protocol {
            Protocol::Http1(http1) => http1.retained_bytes(),
            Protocol::Http2(http2) => http2.retained_bytes(),
            Protocol::WebSocket(websocket) => websocket.retained_bytes(),
            Protocol::Undecided { .. } | Protocol::Opaque => 0,
        }
    }

    fn position(&mut self, direction: Direction) -> &mut Position {
        match direction {
            Direction::Egress => &mut self.egress,
            Direction::Ingress => &mut self.ingress,
        }
    }

    fn read(
        &mut self,
        at_ns: u64,
        direction: Direction,
        start: u64,
        bytes: &[u8],
        sink: &mut dyn Sink,
    ) {
        let context = &self.context;
        let used = match &mut self.protocol {
            Protocol::Opaque => return,
            Protocol::Undecided { .. } => return self.sniff(at_ns, direction, start, bytes, sink),
            Protocol::Http1(http1) => http1.data(at_ns, direction, start, bytes, context, sink),
            Protocol::Http2(http2) => {
                if http2.data(at_ns, direction, start, bytes, context, sink) == http2::Role::Server
                {
                    let from = match direction {
                        Direction::Egress => http2.misread_from(),
                        Direction::Ingress => self.egress.next(),
                    };
                    http2.close(at_ns, from, sink);
                    let exchange = http2.next_exchange();
                    self.protocol = Protocol::Opaque;
                    if direction == Direction::Egress && self.from_start {
                        self.tell_unread(exchange, at_ns, from, sink);
                    }
                }
                return;
            }
            Protocol::WebSocket(websocket) => {
                return websocket.data(at_ns, direction, start, bytes, context, sink);
            }
        };
        self.upgrade(at_ns, sink);
        if let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            self.read(at_ns, direction, start + used as u64, rest, sink);
        }
    }

    fn upgrade(&mut self, at_ns: u64, sink: &mut dyn Sink) {
        let Protocol::Http1(http1) = &mut self.protocol else { return };
        let upgrade = http1.take_upgrade(at_ns, self.egress.next(), sink);
        let next_exchange = http1.next_exchange();
        self.protocol = match upgrade {
            Upgrade::None => return,
            Upgrade::Opaque => Protocol::Opaque,
            Upgrade::WebSocket(transaction) => {
                let websocket = WebSocket::new(*transaction, next_exchange, &self.context);
                Protocol::WebSocket(Box::new(websocket))
            }
            Upgrade::Http2(transaction) => {
                Protocol::Http2(Box::new(Http2::upgraded(*transaction, next_exchange)))
            }
        };
    }

    /// Gathers first bytes until the protocol is known. Midway, skips bytes up to a recognisable
    /// start.
    fn sniff(
        &mut self,
        at_ns: u64,
        direction: Direction,
        start: u64,
        bytes: &[u8],
        sink: &mut dyn Sink,
    ) {
        for (index, &byte) in bytes.iter().enumerate() {
            let Protocol::Undecided { egress, ingress } = &mut self.protocol else { return };
            let held = match direction {
                Direction::Egress => egress,
                Direction::Ingress => ingress,
            };
            held.push(byte);
            let verdict = match (self.from_start, direction) {
                (true, Direction::Egress) => spoken_by_client(held),
                (true, Direction::Ingress) => spoken_by_server(held),
                (false, _) => spoken_midway(held, direction),
            };
            match verdict {
                Verdict::More => {}
                Verdict::Skip => {
                    held.remove(0);
                }
                Verdict::Is(spoken) => {
                    let after = start + index as u64 + 1;
                    self.decide(at_ns, direction, after, spoken, sink);
                    let rest = bytes.get(index + 1..).unwrap_or_default();
                    if !rest.is_empty() {
                        self.read(at_ns, direction, after, rest, sink);
                    }
                    return;
                }
            }
        }
    }

    /// Reports unreadable egress as a single request of unknown content, up to the end of the
    /// connection.
    fn tell_unread(&mut self, exchange: u64, at_ns: u64, start: u64, sink: &mut dyn Sink) {
        let unread = Transaction::unread(exchange, at_ns, start, &self.context);
        unread.tell_unread(at_ns, u64::MAX, sink);
    }

    /// Starts the detected protocol: reads the held bytes, `direction` up to position `after`.
    fn decide(
        &mut self,
        at_ns: u64,
        direction: Direction,
        after: u64,
        spoken: Spoken,
        sink: &mut dyn Sink,
    ) {
        let protocol = match spoken {
            Spoken::Http1 => Protocol::Http1(Box::new(Http1::new(self.from_start))),
            Spoken::Http2 => Protocol::Http2(Box::new(Http2::new(self.from_start))),
            Spoken::Http2Preface => Protocol::Http2(Box::new(Http2::new(true))),
            Spoken::Unknown => Protocol::Opaque,
        };
        let before = std::mem::replace(&mut self.protocol, protocol);
        let Protocol::Undecided { egress, ingress } = before else { return };
        let (egress_end, ingress_end) = match direction {
            Direction::Egress => (after, self.ingress.next()),
            Direction::Ingress => (self.egress.next(), after),
        };
        if spoken == Spoken::Unknown && self.from_start && direction == Direction::Egress {
            let start = egress_end.saturating_sub(egress.len() as u64);
            self.tell_unread(0, at_ns, start, sink);
        }
        let sides =
            [(Direction::Egress, egress, egress_end), (Direction::Ingress, ingress, ingress_end)];
        for (direction, held, end) in sides {
            if !held.is_empty() {
                self.read(at_ns, direction, end.saturating_sub(held.len() as u64), &held, sink);
            }
        }
    }

    fn lost(
        &mut self,
        at_ns: u64,
        direction: Direction,
        at: u64,
        bytes: Option<u64>,
        sink: &mut dyn Sink,
    ) {
        match &mut self.protocol {
            Protocol::Undecided { egress, ingress } => {
                self.from_start = false;
                match direction {
                    Direction::Egress => egress.clear(),
                    Direction::Ingress => ingress.clear(),
                }
            }
            Protocol::Http1(http1) => {
                http1.gap(at_ns, direction, at, bytes, &self.context, sink);
            }
            Protocol::Http2(http2) => {
                http2.gap(at_ns, direction, at, bytes, &self.context, sink);
            }
            Protocol::WebSocket(websocket) => websocket.gap(at_ns, direction, at, bytes, sink),
            Protocol::Opaque => {}
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("server_name", &self.context.server_name)
            .field("remote", &self.context.remote)
            .field("egress", &self.egress.next())
            .field("ingress", &self.ingress.next())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    /// HTTP/2, from the first byte.
    Http2Preface,
    Unknown,
}

/// Result of examining bytes for a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Is(Spoken),
    /// More bytes are needed.
    More,
    /// Nothing starts at the first byte.
    Skip,
}

/// Detects the protocol by the first bytes of egress, if the host is the client.
fn spoken_by_client(bytes: &[u8]) -> Verdict {
    // A client may send any number of empty lines before a request (RFC 9112 §2.2).
    if matches!(bytes, [b'\r' | b'\n']) {
        return Verdict::Skip;
    }
    let text = bytes;
    let enough = bytes.len() >= Connection::SNIFF_BYTES;
    if http1::is_request_start(text) {
        Verdict::Is(Spoken::Http1)
    } else if bytes == http2::PREFACE {
        Verdict::Is(Spoken::Http2Preface)
    } else if !enough && (http1::may_start_request(text) || http2::PREFACE.starts_with(bytes)) {
        Verdict::More
    } else {
        Verdict::Is(Spoken::Unknown) // the server's side, or no HTTP at all
    }
}

const STATUS: &[u8] = b"HTTP/1.";

/// Detects the protocol by the first bytes of ingress, if the host is the client.
fn spoken_by_server(bytes: &[u8]) -> Verdict {
    // SETTINGS may come before the client's preface.
    let settings = [4, 0, 0, 0, 0, 0];
    let after_len = bytes.get(3..).unwrap_or_default();
    if bytes.starts_with(STATUS) {
        Verdict::Is(Spoken::Http1)
    } else if http1::is_request_start(bytes) || bytes.starts_with(http2::PREFACE) {
        Verdict::Is(Spoken::Unknown) // this host is the server
    } else if after_len.starts_with(&settings) {
        Verdict::Is(Spoken::Http2)
    } else if STATUS.starts_with(bytes)
        || http1::may_start_request(bytes)
        || http2::PREFACE.starts_with(bytes)
        || settings.starts_with(after_len)
    {
        Verdict::More
    } else {
        Verdict::Is(Spoken::Unknown)
    }
}

/// Detects a protocol starting at the first of `bytes`, taken from the middle of a connection.
fn spoken_midway(bytes: &[u8], direction: Direction) -> Verdict {
    let starts = http1::is_request_start(bytes) || bytes.starts_with(http2::PREFACE);
    let status = bytes.starts_with(STATUS);
    let client = direction == Direction::Egress;
    if bytes.first_chunk().is_some_and(http2::plausible) {
        return Verdict::Is(Spoken::Http2);
    }
    match (starts, status) {
        (true, _) if client && bytes == http2::PREFACE => Verdict::Is(Spoken::Http2Preface),
        (true, _) if client && !bytes.starts_with(b"PRI") => Verdict::Is(Spoken::Http1),
        (_, true) if !client => Verdict::Is(Spoken::Http1),
        (true, _) | (_, true) => Verdict::Is(Spoken::Unknown), // this host is the server
        (false, false) => {
            let may = bytes.len() < 9
                || http2::PREFACE.starts_with(bytes)
                || http1::may_start_request(bytes);
            if may { Verdict::More } else { Verdict::Skip }
        }
    }
}
