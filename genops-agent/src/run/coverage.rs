//! Bytes between processes and providers, and the share read by the probes.
//!
//! The kernel counts the bytes of every socket to a provider; the probes count plaintext. A socket
//! with more bytes than the plaintext explains is a gap, and is reported as a gap.

use std::collections::{BTreeSet, HashMap};

use genops_governance::Unread;
use genops_protocols::Direction;

/// Most bytes of a TLS handshake in one direction, certificates and tickets included.
const HANDSHAKE: u64 = 16_384;
/// Most bytes added by TLS to each library call and to each record of 16 KiB (RFC 8446 §5.2).
const RECORD_OVERHEAD: u64 = 128;
const RECORD_LEN: u64 = 16_384;
/// Most connections with plaintext counts kept until the socket is closed.
const ENDED_LIMIT: usize = 16_384;

/// Plaintext of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Plain {
    /// Bytes taken or given by the TLS library.
    passed: u64,
    /// Bytes read by the probes.
    read: u64,
    /// Pieces read by the probes.
    pieces: u64,
}

impl Plain {
    fn piece(&mut self, offset: u64, len: u64) {
        self.passed = self.passed.max(offset.saturating_add(len));
        self.read = self.read.saturating_add(len);
        self.pieces = self.pieces.saturating_add(1);
    }

    /// Most bytes on the wire for the plaintext.
    fn explains(&self) -> u64 {
        let records = self.passed / RECORD_LEN + self.pieces;
        HANDSHAKE
            .saturating_add(self.passed)
            .saturating_add(records.saturating_mul(RECORD_OVERHEAD))
    }
}

/// Both directions of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    egress: Plain,
    ingress: Plain,
}

/// Every connection with an open socket.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    ways: HashMap<u64, Ways>,
    /// Ended connections, by time of the end.
    ended: BTreeSet<(u64, u64)>,
}

impl Coverage {
    /// Counts plaintext read by a probe.
    pub(super) fn read(&mut self, conn: u64, direction: Direction, offset: u64, len: u64) {
        let ways = self.ways.entry(conn).or_default();
        match direction {
            Direction::Egress => ways.egress.piece(offset, len),
            Direction::Ingress => ways.ingress.piece(offset, len),
        }
    }

    /// Notes the end of a TLS object; the end of the socket follows a moment later.
    pub(super) fn ended(&mut self, conn: u64, at_mono_ns: u64) {
        if self.ways.contains_key(&conn) {
            self.ended.insert((at_mono_ns, conn));
        }
        while self.ended.len() > ENDED_LIMIT {
            if let Some((_, oldest)) = self.ended.pop_first() {
                self.ways.remove(&oldest);
            }
        }
    }

    /// Returns the unread bytes of a closed socket, by direction. `opaque`: no probe reads the
    /// connection.
    pub(super) fn released(
        &mut self,
        conn: u64,
        opaque: bool,
        sent: u64,
        received: u64,
    ) -> Vec<Unread> {
        let ways = self.ways.remove(&conn).unwrap_or_default();
        let of = |direction, passed_bytes: u64, plain: Plain| {
            let explained = if opaque { 0 } else { plain.explains() };
            let unread = passed_bytes > explained;
            unread.then_some(Unread { direction, passed_bytes, read_bytes: plain.read })
        };
        let egress = of(Direction::Egress, sent, ways.egress);
        let ingress = of(Direction::Ingress, received, ways.ingress);
        egress.into_iter().chain(ingress).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_explains_its_records_and_a_handshake_and_no_more() {
        let mut coverage = Coverage::default();
        coverage.read(1, Direction::Egress, 0, 300);
        coverage.read(1, Direction::Ingress, 0, 900);
        assert!(coverage.released(1, false, 300 + 22 + 1_800, 900 + 22 + 4_000).is_empty());
        coverage.read(2, Direction::Egress, 0, 300);
        let unread = coverage.released(2, false, 100_000, 4_000);
        let expected =
            Unread { direction: Direction::Egress, passed_bytes: 100_000, read_bytes: 300 };
        assert_eq!(unread, [expected]);
        assert_eq!(coverage.released(3, true, 700, 0).len(), 1);
    }
}
