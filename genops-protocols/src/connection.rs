//! One connection: bytes of both directions in, calls out.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::call::{Direction, Egress, Sink};
use crate::hosts::Hosts;

/// What is known of a connection when decoding starts. All may come later.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Server name of the TLS handshake, or the name that was resolved.
    pub server_name: Option<String>,
    /// Address of the peer.
    pub remote: Option<SocketAddr>,
    /// Seen from its first byte. False: joined midway.
    pub from_start: bool,
}

impl Default for ConnectionFacts {
    /// Nothing known, seen from its first byte.
    fn default() -> Self {
        Self { server_name: None, remote: None, from_start: true }
    }
}

/// Decodes one connection.
pub struct Connection {
    facts: ConnectionFacts,
    hosts: Arc<Hosts>,
    egress: u64,
    ingress: u64,
}

impl Connection {
    /// Begins a connection of which nothing was read yet.
    #[must_use]
    pub fn new(facts: ConnectionFacts, hosts: Arc<Hosts>) -> Self {
        Self { facts, hosts, egress: 0, ingress: 0 }
    }

    /// Takes a server name or address that became known later.
    pub fn learn(&mut self, facts: ConnectionFacts) {
        self.facts.server_name = facts.server_name.or(self.facts.server_name.take());
        self.facts.remote = facts.remote.or(self.facts.remote);
    }

    /// Takes bytes at a stream position: 0 is the first byte of that direction. What was seen
    /// before is skipped, a jump ahead is a gap.
    pub fn data_at(
        &mut self,
        at_ns: u64,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        sink: &mut dyn Sink,
    ) {
        let position = match direction {
            Direction::Egress => &mut self.egress,
            Direction::Ingress => &mut self.ingress,
        };
        *position = (*position).max(offset.saturating_add(bytes.len() as u64));
        let (_, _) = (at_ns, sink);
    }

    /// Takes the next bytes in order.
    pub fn data(&mut self, at_ns: u64, direction: Direction, bytes: &[u8], sink: &mut dyn Sink) {
        let offset = match direction {
            Direction::Egress => self.egress,
            Direction::Ingress => self.ingress,
        };
        self.data_at(at_ns, direction, offset, bytes, sink);
    }

    /// Bytes are missing here; `None`: nobody knows how many.
    pub fn gap(
        &mut self,
        at_ns: u64,
        direction: Direction,
        bytes: Option<u64>,
        sink: &mut dyn Sink,
    ) {
        let (_, _, _, _) = (at_ns, direction, bytes, sink);
    }

    /// No more bytes will come.
    pub fn close(&mut self, at_ns: u64, sink: &mut dyn Sink) {
        let (_, _) = (at_ns, sink);
    }

    /// How far egress was read.
    #[must_use]
    pub fn egress(&self) -> Egress<'_> {
        Egress { received: self.egress, open: None }
    }

    /// Bytes of memory this connection holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + Arc::strong_count(&self.hosts).min(0)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
