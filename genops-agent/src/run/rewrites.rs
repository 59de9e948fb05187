//! Bytes given to a TLS library and not known to be taken.
//!
//! A write is reported before the library takes it. If the write fails, the program may repeat it
//! at the same position. The repetition must have the same bytes, because the decision was about
//! those bytes; other bytes count as a difference.

use std::collections::HashMap;

/// Most bytes kept of one connection.
const CONNECTION_LIMIT: usize = 16 << 20;
/// Most bytes of all connections together.
const TOTAL_LIMIT: usize = 64 << 20;

/// Result of comparing a report with an earlier report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The overlapping bytes are the same.
    Same,
    /// The overlapping bytes differ, or the earlier bytes are not kept.
    Different,
}

/// Last report on a connection.
#[derive(Debug, Default)]
struct Reported {
    /// Position of the first byte.
    base: u64,
    bytes: Vec<u8>,
    /// Bytes behind `bytes`, reported and not kept.
    dropped: u64,
}

/// The last writes of all held connections.
#[derive(Debug, Default)]
pub(super) struct Rewrites {
    connections: HashMap<u64, Reported>,
    total: usize,
}

impl Rewrites {
    /// Takes a piece of a write. `first`: the first piece of the write, so the library has taken
    /// all bytes before.
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

    /// Position up to which the library is known to have taken the reported bytes of a connection.
    pub(super) fn taken_to(&self, conn: u64) -> u64 {
        self.connections.get(&conn).map_or(0, |it| it.base)
    }

    /// Forgets an ended connection.
    pub(super) fn ended(&mut self, conn: u64) {
        if let Some(reported) = self.connections.remove(&conn) {
            self.total = self.total.saturating_sub(reported.bytes.len());
        }
    }
}

impl Reported {
    /// Drops everything before `offset`: the library has taken it.
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
            // Behind the kept bytes: the piece may have been reported before.
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
        assert_eq!((writes.taken_to(1), writes.taken_to(2)), (8, 0));
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
