//! Bytes that a program gave its TLS library and that the library has not taken, as far as is known.
//!
//! A write is reported before it is made. If it fails, the program may make it again, at the same position; then
//! it must be the same bytes, since those were decided about. Other bytes are a difference.

use std::collections::HashMap;

/// Most bytes of one connection that are kept.
const CONNECTION_LIMIT: usize = 16 << 20;
/// Most bytes of all connections together.
const TOTAL_LIMIT: usize = 64 << 20;

/// How a report compares with an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// Where they overlap, they are the same.
    Same,
    /// They differ, or the earlier one is not kept.
    Different,
}

/// What was reported last on a connection.
#[derive(Debug, Default)]
struct Reported {
    /// Position of the first byte.
    base: u64,
    bytes: Vec<u8>,
    /// Bytes behind `bytes` that were reported and are not kept.
    dropped: u64,
}

/// The last writes of all connections that are held.
#[derive(Debug, Default)]
pub(super) struct Rewrites {
    connections: HashMap<u64, Reported>,
    total: usize,
}

impl Rewrites {
    /// Takes a piece of a write. `first`: its first piece, so that all before it was taken.
    pub(super) fn piece(&mut self, conn: u64, first: bool, offset: u64, piece: &[u8]) -> Compared {
        let reported = self.connections.entry(conn).or_default();
        self.total = self.total.saturating_sub(reported.bytes.len());
        if first {
            reported.confirm(offset);
        }
        let room = TOTAL_LIMIT.saturating_sub(self.total).min(CONNECTION_LIMIT);
        let compared = reported.take(offset, piece, room);
        self.total = self.total.saturating_add(reported.bytes.len());
        compared
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, conn: u64) {
        if let Some(reported) = self.connections.remove(&conn) {
            self.total = self.total.saturating_sub(reported.bytes.len());
        }
    }
}

impl Reported {
    /// Everything before `offset` was taken.
    fn confirm(&mut self, offset: u64) {
        let taken = offset.saturating_sub(self.base);
        let kept = usize::try_from(taken).unwrap_or(usize::MAX).min(self.bytes.len());
        let beyond = taken.saturating_sub(kept as u64);
        self.bytes.drain(..kept);
        self.dropped = self.dropped.saturating_sub(beyond);
        self.base = offset;
    }

    fn take(&mut self, offset: u64, piece: &[u8], room: usize) -> Compared {
        let Some(at) = offset.checked_sub(self.base).and_then(|it| usize::try_from(it).ok()) else {
            return Compared::Different;
        };
        let known = self.bytes.get(at..).unwrap_or_default();
        let overlap = known.len().min(piece.len());
        let (again, new) = piece.split_at(overlap);
        if known.get(..overlap) != Some(again) {
            return Compared::Different;
        }
        if new.is_empty() {
            return Compared::Same;
        }
        if self.dropped > 0 || at > self.bytes.len() {
            // Behind what is kept: it may have been reported before.
            let end =
                self.base.saturating_add(self.bytes.len() as u64).saturating_add(self.dropped);
            let behind = offset.saturating_add(overlap as u64) >= end;
            let to = offset.saturating_add(piece.len() as u64);
            self.dropped = self.dropped.saturating_add(to.saturating_sub(end));
            return if behind { Compared::Same } else { Compared::Different };
        }
        if self.bytes.len().saturating_add(new.len()) > room {
            self.dropped = new.len() as u64;
        } else {
            self.bytes.extend_from_slice(new);
        }
        Compared::Same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_again_are_the_same_however_they_are_cut() {
        let mut writes = Rewrites::default();
        assert_eq!(writes.piece(1, true, 0, b"abcdef"), Compared::Same);
        assert_eq!(writes.piece(1, true, 0, b"abc"), Compared::Same);
        assert_eq!(writes.piece(1, false, 3, b"defgh"), Compared::Same);
        // Two bytes were taken; the rest comes again.
        assert_eq!(writes.piece(1, true, 2, b"cdefgh"), Compared::Same);
        assert_eq!(writes.piece(1, true, 8, b"next"), Compared::Same);
        assert_eq!(writes.piece(1, true, 8, b"nexT"), Compared::Different);
    }

    #[test]
    fn other_bytes_at_a_position_that_was_reported_are_a_difference() {
        for again in [&b"abX"[..], b"Xbc", b"abcdeX"] {
            let mut writes = Rewrites::default();
            writes.piece(1, true, 0, b"abcdef");
            assert_eq!(writes.piece(1, true, 0, again), Compared::Different, "{again:?}");
        }
    }

    #[test]
    fn what_is_not_kept_is_no_proof() {
        let mut writes = Rewrites::default();
        let large = vec![7; CONNECTION_LIMIT];
        assert_eq!(writes.piece(1, true, 0, &large), Compared::Same);
        assert_eq!(writes.piece(1, false, large.len() as u64, &large), Compared::Same);
        assert_eq!(writes.total, CONNECTION_LIMIT);
        assert_eq!(writes.piece(1, true, 0, &large), Compared::Same);
        assert_eq!(writes.piece(1, false, large.len() as u64, &large), Compared::Different);
        // Once it was taken, it no longer matters.
        assert_eq!(writes.piece(1, true, 2 * large.len() as u64, b"more"), Compared::Same);
        writes.ended(1);
        assert_eq!(writes.total, 0);
    }
}
