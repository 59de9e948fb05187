//! Position in a direction of a connection: order, overlap, gaps.
//!
//! Pieces come with a position. Bytes seen before are skipped, a jump ahead is a [`Piece`] with a
//! gap before. Nothing is held back: capture delivers a direction in order, so a piece absent at
//! the arrival of a later piece never comes.

/// New bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// Bytes missing before the piece.
    pub(crate) gap: u64,
    /// Position of the first byte.
    pub(crate) start: u64,
    pub(crate) bytes: &'a [u8],
}

/// Progress of reading a direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(u64);

impl Position {
    pub(crate) fn next(self) -> u64 {
        self.0
    }

    /// Returns the new part of `bytes` at `offset`.
    pub(crate) fn take<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> Piece<'a> {
        let seen = usize::try_from(self.0.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(seen..).unwrap_or_default();
        let start = offset.max(self.0);
        let gap = start - self.0;
        if bytes.is_empty() {
            return Piece { gap: 0, start: self.0, bytes };
        }
        self.0 = start.saturating_add(bytes.len() as u64);
        Piece { gap, start, bytes }
    }

    /// Skips bytes known to be missing.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.0 = self.0.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_skipped_and_a_jump_is_a_gap() {
        let mut position = Position::default();
        assert_eq!(position.take(0, b"abcd"), Piece { gap: 0, start: 0, bytes: b"abcd" });
        assert_eq!(position.take(2, b"cdef"), Piece { gap: 0, start: 4, bytes: b"ef" });
        assert_eq!(position.take(0, b"abc"), Piece { gap: 0, start: 6, bytes: b"" });
        assert_eq!(position.take(9, b"j"), Piece { gap: 3, start: 9, bytes: b"j" });
        assert_eq!(position.take(u64::MAX, b"zz").start, u64::MAX);
    }
}
