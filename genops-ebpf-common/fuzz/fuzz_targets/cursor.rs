//! Laws of the record cursor: any cut of a stream into packets leads to the same position, and no
//! more bytes leave than explained by released plaintext.
#![no_main]

use genops_ebpf_common::{Bounds, Bytes, Cursor, Fate};
use libfuzzer_sys::fuzz_target;

/// Difference in length between a TLS 1.3 record and its plaintext, in bytes (RFC 8446 §5.2).
const OVERHEAD: u64 = 17;
/// Bytes allowed to leave unexplained: four records of at most five bytes.
const UNEXPLAINED: u64 = 20;

struct Packet<'a>(&'a [u8]);

impl Bytes for Packet<'_> {
    fn five(&self, at: u32) -> Option<[u8; 5]> {
        self.0.get(at as usize..)?.first_chunk().copied()
    }

    fn one(&self, at: u32) -> Option<u8> {
        self.0.get(at as usize).copied()
    }
}

/// Sends a stream in packets of the given lengths; returns the number of bytes sent before the
/// first packet held back.
fn send(cursor: &mut Cursor, stream: &[u8], lengths: &[u8], bounds: Bounds) -> usize {
    let (mut sent, mut lengths) = (0, lengths.iter().cycle());
    while sent < stream.len() {
        let len = lengths.next().map_or(1, |it| usize::from(*it)).max(1);
        let packet = &stream[sent..stream.len().min(sent + len)];
        let mut trial = *cursor;
        let fate = trial.walk(&Packet(packet), 0, packet.len() as u32, bounds);
        // TCP sends the packet again, with nothing changed.
        let mut again = *cursor;
        assert_eq!(again.walk(&Packet(packet), 0, packet.len() as u32, bounds), fate);
        if fate != Fate::Passes {
            break;
        }
        *cursor = trial;
        sent += packet.len();
    }
    sent
}

/// Returns the cursor without leftover bytes of a used header.
fn state(mut cursor: Cursor) -> Cursor {
    cursor.head[usize::from(cursor.head_len)..].fill(0);
    cursor
}

/// Returns the length of the plaintext in the records with headers in `stream`, up to the first
/// bytes without a record.
fn plaintext(stream: &[u8]) -> u64 {
    let (mut at, mut sum) = (0, 0);
    while let Some(&[kind, 3, _, high, low]) = stream.get(at..).and_then(<[u8]>::first_chunk) {
        let len = u16::from_be_bytes([high, low]);
        if kind == 23 {
            sum += u64::from(len).saturating_sub(OVERHEAD);
        }
        at += 5 + usize::from(len);
    }
    sum
}

/// Input: seen, released, four lengths of packets, and the bytes to send.
fuzz_target!(|data: &[u8]| {
    let Some((&[seen, released, lengths @ ..], stream)) = data.split_first_chunk::<6>() else {
        return;
    };
    let seen_to = u64::from(seen) * 64;
    let bounds = Bounds { seen_to, released_to: u64::from(released).min(seen.into()) * 64 };
    for begin in [Cursor::at_data(9, 0, OVERHEAD as u8), Cursor::at_handshake(9)] {
        let (mut cursor, mut by_bytes) = (begin, begin);
        let sent = send(&mut cursor, stream, &lengths, bounds);
        let one_by_one = send(&mut by_bytes, &stream[..sent], &[], bounds);
        assert_eq!((sent, state(cursor)), (one_by_one, state(by_bytes)));
        assert!(cursor.explained <= bounds.released_to);
    }
    let mut cursor = Cursor::at_data(9, 0, OVERHEAD as u8);
    let sent = send(&mut cursor, stream, &lengths, bounds);
    assert!(plaintext(&stream[..sent]) <= bounds.released_to + UNEXPLAINED);
});
