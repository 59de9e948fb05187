//! Tests of the cursor with records cut, repeated and reordered in every way.

extern crate std;

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;

struct Packet<'a>(&'a [u8]);

impl Bytes for Packet<'_> {
    fn five(&self, at: u32) -> Option<[u8; 5]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at + 5)?.try_into().ok()
    }

    fn one(&self, at: u32) -> Option<u8> {
        self.0.get(usize::try_from(at).ok()?).copied()
    }
}

fn record(kind: u8, len: usize) -> Vec<u8> {
    let size = u16::try_from(len).expect("a record's length").to_be_bytes();
    let mut bytes = vec![kind, 3, 3, size[0], size[1]];
    bytes.resize(5 + len, 0xaa);
    bytes
}

/// Bytes sent by a client of TLS 1.3 until the end of its handshake.
fn handshake() -> Vec<u8> {
    [record(22, 512), record(20, 1), record(23, 53)].concat()
}

/// Sends `bytes` in pieces ending at the cuts; returns the number of bytes sent, and the fate of
/// the next piece.
fn send(cursor: &mut Cursor, bytes: &[u8], cuts: &[usize], bounds: Bounds) -> (usize, Fate) {
    let mut ends: Vec<usize> = cuts.iter().map(|at| at % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut sent = 0;
    for end in ends {
        let piece = bytes.get(sent..end).expect("cuts ascend");
        let len = u32::try_from(piece.len()).expect("a packet's length");
        let mut trial = *cursor;
        match trial.walk(&Packet(piece), 0, len, bounds) {
            Fate::Passes => *cursor = trial,
            fate => return (sent, fate),
        }
        sent = end;
    }
    (sent, Fate::Passes)
}

fn bounds(seen_to: u64, released_to: u64) -> Bounds {
    Bounds { seen_to, released_to }
}

#[test]
fn a_handshake_passes_and_one_finished_with_it() {
    let mut cursor = Cursor::at_handshake(7);
    let sent = send(&mut cursor, &handshake(), &[], bounds(0, 0));
    assert_eq!(sent.1, Fate::Passes);
    assert_eq!((cursor.phase, cursor.overhead, cursor.explained), (phase::OPEN, 17, 0));
    // A second record of the same length is no handshake any more.
    assert_eq!(send(&mut cursor, &record(23, 53), &[], bounds(0, 0)).1, Fate::Unexplained);
}

#[test]
fn the_overhead_of_tls_1_2_follows_from_finished() {
    for (finished, expected) in [(40, 24), (32, 16), (64, 52), (80, 64), (96, 80)] {
        let bytes = [record(22, 200), record(22, 70), record(20, 1), record(22, finished)].concat();
        let mut cursor = Cursor::at_handshake(0);
        assert_eq!(send(&mut cursor, &bytes, &[], bounds(0, 0)).1, Fate::Passes, "{finished}");
        assert_eq!((cursor.phase, cursor.overhead), (phase::OPEN, expected));
    }
}

#[test]
fn four_alerts_pass_and_no_fifth() {
    let mut cursor = Cursor::at_data(0, 100, 17);
    for _ in 0..SMALL_RECORDS {
        assert_eq!(send(&mut cursor, &record(23, 19), &[], bounds(100, 100)).1, Fate::Passes);
    }
    assert_eq!(send(&mut cursor, &record(23, 19), &[], bounds(100, 100)).1, Fate::Unexplained);
    assert_eq!(cursor.explained, 100);
}

#[test]
fn a_small_write_that_waits_is_no_alert() {
    let mut cursor = Cursor::at_data(0, 0, 17);
    assert_eq!(send(&mut cursor, &record(23, 18), &[], bounds(1, 0)).1, Fate::Waits);
    assert_eq!(send(&mut cursor, &record(23, 18), &[], bounds(1, 1)).1, Fate::Passes);
}

#[test]
fn what_is_no_record_is_unexplained_for_good_and_passes_where_nothing_is_held() {
    for junk in [&b"GET / HTTP/1.1\r\n"[..], &[23, 2, 0, 0, 1, 0], &[23, 3, 3, 0xff, 0xff, 0]] {
        let mut cursor = Cursor::at_data(0, 0, 17);
        assert_eq!(send(&mut cursor, junk, &[], bounds(99, 99)).1, Fate::Unexplained);
        assert_eq!(send(&mut cursor, junk, &[], Bounds::ALL).1, Fate::Passes);
        assert_eq!(send(&mut cursor, &record(23, 20), &[], bounds(99, 99)).1, Fate::Unexplained);
    }
}

#[test]
fn sixty_four_records_in_a_packet_are_followed() {
    let bytes: Vec<u8> = (0..64).flat_map(|_| record(23, 18)).collect();
    let mut cursor = Cursor::at_data(0, 0, 17);
    assert_eq!(send(&mut cursor, &bytes, &[], bounds(64, 64)).1, Fate::Passes);
    assert_eq!(cursor.explained, 64);
}

proptest! {
    /// However records are cut, exactly the records explained by released plaintext leave.
    #[test]
    fn what_leaves_is_what_was_released(
        writes in proptest::collection::vec(6_usize..3_000, 1..12),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
        released in 0_usize..12,
    ) {
        let mut cursor = Cursor::at_handshake(0);
        prop_assert_eq!(send(&mut cursor, &handshake(), &cuts, bounds(0, 0)).1, Fate::Passes);
        let stream: Vec<u8> = writes.iter().flat_map(|len| record(23, len + 17)).collect();
        let ends: Vec<usize> = writes.iter().scan(0, |at, len| { *at += len; Some(*at) }).collect();
        let seen = *ends.last().expect("one write at least") as u64;
        let released_to = released.checked_sub(1).and_then(|it| ends.get(it)).map_or(0, |it| *it as u64);
        let released_to = if released >= writes.len() { seen } else { released_to };
        let (sent, fate) = send(&mut cursor, &stream, &cuts, bounds(seen, released_to));
        prop_assert!(cursor.explained <= released_to);
        // Headers of records held back account for at most four bytes.
        let wire: usize = writes.iter().take(released).map(|len| len + 22).sum();
        prop_assert!(sent <= wire + 4, "{sent} of {wire}");
        if released >= writes.len() {
            prop_assert_eq!((sent, fate), (stream.len(), Fate::Passes));
        } else {
            prop_assert_eq!(fate, Fate::Waits);
            // Released later, the remaining bytes leave from the point of the stop.
            prop_assert_eq!(send(&mut cursor, stream.get(sent..).expect("sent is within"), &cuts, bounds(seen, seen)).1, Fate::Passes);
            prop_assert_eq!(cursor.explained, seen);
        }
    }

    /// No input makes the cursor panic, loop or explain more than the released plaintext.
    #[test]
    fn strangers_bytes_explain_nothing(
        bytes in proptest::collection::vec(any::<u8>(), 0..4_000),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut cursor = Cursor::at_handshake(0);
        let _fate = send(&mut cursor, &bytes, &cuts, bounds(64, 32));
        prop_assert!(cursor.explained <= 32);
    }
}
