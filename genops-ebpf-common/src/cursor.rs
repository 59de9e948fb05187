//! Position of a socket in its TLS records, and the part of the sent records explained by plaintext
//! read before.
//!
//! A single function, [`Cursor::step`] in [`follow`], follows the records of a packet (RFC 8446
//! §5.1). The kernel program, the property test and the fuzz target run the same code; the code
//! reads the packet through [`Bytes`] alone.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Maximum of steps through a packet: a record takes two, a head in pieces five more. A packet with
/// more records is not followed: [`Fate::Unexplained`].
pub(crate) const STEPS: u32 = 144;
/// Largest record: 2^14 bytes of plaintext and 256 of everything else (RFC 8446 §5.2), or 2,048
/// (RFC 5246 §6.2.3).
const RECORD_MAX: u32 = 16_384 + 2_048;
/// Content of an alert (RFC 8446 §6) or of a `KeyUpdate` (§4.6.3), sent by libraries on their own.
pub(crate) const SMALL_LEN: u64 = 5;
/// Maximum of small unexplained records of a connection.
pub(crate) const SMALL_RECORDS: u8 = 4;

/// Bytes added by a cipher to the plaintext of a record.
mod overhead {
    /// TLS 1.3: content type and tag (RFC 8446 §5.2).
    pub(super) const TLS13: u8 = 17;
    /// TLS 1.3 with the short tag of `AES_128_CCM_8` (RFC 8446 §B.4).
    pub(super) const TLS13_SHORT: u8 = 9;
    /// TLS 1.2 with GCM or CCM: nonce and tag (RFC 5288 §3).
    pub(super) const GCM: u8 = 24;
    /// TLS 1.2 with ChaCha20-Poly1305: tag (RFC 7905).
    pub(super) const CHACHA: u8 = 16;
}

/// TLS content types (RFC 8446 §5.1).
mod content {
    pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const APPLICATION_DATA: u8 = 23;
}

/// Progress of a connection, for [`Cursor::phase`].
pub mod phase {
    /// The beginning of a record is not known: the cursor cannot follow.
    pub const UNKNOWN: u8 = 0;
    /// Before `ChangeCipherSpec`.
    pub const HANDSHAKE: u8 = 1;
    /// After `ChangeCipherSpec`: `Finished` comes next.
    pub const CHANGED: u8 = 2;
    /// Application data.
    pub const OPEN: u8 = 3;
    /// The socket sent bytes other than TLS records.
    pub const LOST: u8 = 4;
}

/// Position in the TLS records sent by a socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Cursor {
    /// Position in the plaintext of the connection up to which records have left.
    pub explained: u64,
    /// TCP sequence number of the first byte still to leave.
    pub next: u32,
    /// Bytes of the current record still to leave.
    pub left: u32,
    /// Beginning of a record header split over packets.
    pub head: [u8; 5],
    /// Bytes of `head` in use.
    pub head_len: u8,
    /// A constant of [`phase`].
    pub phase: u8,
    /// Number of small records let go unexplained.
    pub small: u8,
    /// Difference in length between a record and its plaintext; 0 while not known.
    pub overhead: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// The plaintext allowed to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Position up to which plaintext was seen.
    pub seen_to: u64,
    /// Position up to which plaintext may leave; [`Bounds::FREE`]: all plaintext may leave.
    pub released_to: u64,
}

impl Bounds {
    /// [`Bounds::released_to`] of a socket followed and not held.
    pub const FREE: u64 = u64::MAX;
    /// All bytes may leave.
    pub const ALL: Self = Self { seen_to: Self::FREE, released_to: Self::FREE };
}

/// Decision about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The packet may leave.
    Passes,
    /// The packet carries plaintext seen and not released.
    Waits,
    /// The packet carries more than the plaintext seen, or the content cannot be told.
    Unexplained,
}

/// The payload of a packet.
pub trait Bytes {
    /// Returns the five bytes at a position.
    fn five(&self, at: u32) -> Option<[u8; 5]>;
    /// Returns the byte at a position.
    fn one(&self, at: u32) -> Option<u8>;
}

/// [`Fate`] so far, and the number of bytes concerned: packed into a number, because functions of
/// the kernel programs pass numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(pub u64);

impl Step {
    const WAITS: u64 = 1 << 32;
    const UNEXPLAINED: u64 = 2 << 32;
    /// No byte may leave, for want of a cursor to follow.
    pub const STOP: u64 = Self::UNEXPLAINED;

    /// Returns the lower half.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as below")]
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is the fate")]
    const fn bytes(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as below")]
    fn of(fate: Fate, bytes: u32) -> Self {
        Self(
            u64::from(bytes)
                | match fate {
                    Fate::Passes => 0,
                    Fate::Waits => Self::WAITS,
                    Fate::Unexplained => Self::UNEXPLAINED,
                },
        )
    }
}

/// Goes through the `len` bytes of a packet in steps; `step` gets the position of its beginning.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as below")]
pub fn follow(len: u32, mut step: impl FnMut(u32) -> Step) -> Fate {
    let mut done = 0;
    let mut steps = 0;
    while steps < STEPS {
        if done >= len {
            return Fate::Passes;
        }
        let Step(taken) = step(done);
        if taken >= Step::UNEXPLAINED {
            return Fate::Unexplained;
        }
        if taken >= Step::WAITS {
            return Fate::Waits;
        }
        done += Step(taken).bytes();
        steps += 1;
    }
    if done >= len { Fate::Passes } else { Fate::Unexplained }
}

impl Cursor {
    /// Creates a cursor at the beginning of a handshake, before the `ClientHello` with its first
    /// byte at `next`.
    #[must_use]
    pub const fn at_handshake(next: u32) -> Self {
        Self { phase: phase::HANDSHAKE, ..Self::at(next) }
    }

    /// Creates a cursor at a record of application data carrying plaintext from position
    /// `explained` on; each record is `overhead` bytes longer than its plaintext.
    #[must_use]
    pub const fn at_data(next: u32, explained: u64, overhead: u8) -> Self {
        Self { phase: phase::OPEN, explained, overhead, ..Self::at(next) }
    }

    const fn at(next: u32) -> Self {
        Self {
            explained: 0,
            next,
            left: 0,
            head: [0; 5],
            head_len: 0,
            phase: phase::UNKNOWN,
            small: 0,
            overhead: 0,
            reserved: [0; 7],
        }
    }

    /// Follows the `len` bytes of payload at `at`, starting with the next byte to leave. If the
    /// bytes may not leave, the cursor is of no more use: pass a copy.
    pub fn walk(&mut self, bytes: &impl Bytes, at: u32, len: u32, bounds: Bounds) -> Fate {
        follow(len, |done| self.step(bytes, at + done, len - done, bounds))
    }

    /// Takes a step through the `rest` bytes at `at`: to the end of the current record, or over the
    /// available part of the next record's header.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "one program, one body: the verifier knows its state")]
    pub fn step(&mut self, bytes: &impl Bytes, at: u32, rest: u32, bounds: Bounds) -> Step {
        if self.phase == phase::LOST {
            self.next = self.next.wrapping_add(rest);
            return Step::of(Self::lost(bounds), rest);
        }
        if self.left > 0 {
            let skipped = if self.left < rest { self.left } else { rest };
            self.left -= skipped;
            self.next = self.next.wrapping_add(skipped);
            return Step::of(Fate::Passes, skipped);
        }
        let Some((head, taken)) = self.head(bytes, at, rest) else {
            return Step::of(Fate::Unexplained, 0);
        };
        self.next = self.next.wrapping_add(taken);
        let fate = match head {
            Some(head) => self.record(head, bounds),
            None => Fate::Passes,
        };
        Step::of(fate, taken)
    }

    /// Returns the header of the next record, once complete, and the number of its bytes at `at`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn head(&mut self, bytes: &impl Bytes, at: u32, rest: u32) -> Option<(Option<[u8; 5]>, u32)> {
        if self.head_len == 0 && rest >= 5 {
            return Some((Some(bytes.five(at)?), 5));
        }
        let byte = bytes.one(at)?;
        // Each byte at a constant place: the verifier accepts no variable offset into the map's
        // value.
        match self.head_len {
            0 => self.head[0] = byte,
            1 => self.head[1] = byte,
            2 => self.head[2] = byte,
            3 => self.head[3] = byte,
            _ => {
                self.head[4] = byte;
                self.head_len = 0;
                return Some((Some(self.head), 1));
            }
        }
        self.head_len += 1;
        Some((None, 1))
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn record(&mut self, head: [u8; 5], bounds: Bounds) -> Fate {
        let len = u32::from(u16::from_be_bytes([head[3], head[4]]));
        let kind = head[0];
        if !(content::CHANGE_CIPHER_SPEC..=content::APPLICATION_DATA).contains(&kind)
            || head[1] != 3
            || len > RECORD_MAX
        {
            self.phase = phase::LOST;
            return Self::lost(bounds);
        }
        self.left = len;
        if kind == content::APPLICATION_DATA {
            return self.data(len, bounds);
        }
        if kind == content::CHANGE_CIPHER_SPEC && self.phase == phase::HANDSHAKE {
            self.phase = phase::CHANGED;
        }
        if kind == content::HANDSHAKE && self.phase == phase::CHANGED {
            self.phase = phase::OPEN;
            self.overhead = overhead_of_tls12(len);
        }
        Fate::Passes
    }

    /// Follows a record of application data. The first of TLS 1.3 is `Finished`: 4 bytes and a hash
    /// (RFC 8446 §4.4.4).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn data(&mut self, len: u32, bounds: Bounds) -> Fate {
        if self.phase != phase::OPEN {
            self.phase = phase::OPEN;
            self.overhead = overhead::TLS13;
            match len {
                53 | 69 => return Fate::Passes,
                45 | 61 => {
                    self.overhead = overhead::TLS13_SHORT;
                    return Fate::Passes;
                }
                _ => {}
            }
        }
        let plain = plain_len(len, self.overhead);
        let need = self.explained.saturating_add(plain);
        if bounds.released_to == Bounds::FREE {
            self.explained = need;
            return Fate::Passes;
        }
        // Bytes already sent count as seen and released.
        let released_to = max(bounds.released_to, self.explained);
        let seen_to = max(bounds.seen_to, self.explained);
        if need <= released_to {
            self.explained = need;
            return Fate::Passes;
        }
        if need <= seen_to {
            return Fate::Waits;
        }
        let more = need - seen_to;
        if seen_to <= released_to && more <= SMALL_LEN && self.small < SMALL_RECORDS {
            self.small += 1;
            self.explained = released_to;
            return Fate::Passes;
        }
        Fate::Unexplained
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    const fn lost(bounds: Bounds) -> Fate {
        if bounds.released_to == Bounds::FREE { Fate::Passes } else { Fate::Unexplained }
    }
}

/// Returns the minimum of plaintext in a record of `len` bytes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as above")]
fn plain_len(len: u32, overhead: u8) -> u64 {
    let overhead = u32::from(overhead);
    if len > overhead {
        return u64::from(len - overhead);
    }
    // With CBC, a block is padding or text. An empty record of another cipher carries nothing.
    u64::from(len < overhead)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as above")]
fn max(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// Returns the overhead, derived from the length of TLS 1.2's `Finished`, 16 bytes of plaintext
/// (RFC 5246 §7.4.9). With CBC (§6.2.3.2) the record has 16 bytes of IV, a MAC of 20, 32 or 48 and
/// 1 to 16 of padding; the function assumes the maximum of padding.
const fn overhead_of_tls12(len: u32) -> u8 {
    match len {
        32 => overhead::CHACHA,
        64 => 16 + 20 + 16,
        80 => 16 + 32 + 16,
        96 => 16 + 48 + 16,
        _ => overhead::GCM,
    }
}

/// Returns the overhead of a connection's records, derived from a record of `len` bytes with
/// `plain` bytes of plaintext; `None` if no cipher has the difference.
#[must_use]
pub const fn overhead_of_record(len: u32, plain: u32) -> Option<u8> {
    match len.wrapping_sub(plain) {
        9 => Some(overhead::TLS13_SHORT),
        16 => Some(overhead::CHACHA),
        17 => Some(overhead::TLS13),
        24 => Some(overhead::GCM),
        37..=48 => Some(16 + 20 + 16),
        49..=64 => Some(16 + 32 + 16),
        65..=80 => Some(16 + 48 + 16),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
