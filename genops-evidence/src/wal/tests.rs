#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;

use super::*;

const LENGTH: usize = 1 << 20;

/// Creates a segment of batches of records with the given lengths; returns the end of each batch.
fn segment(batches: &[&[usize]]) -> (Vec<u8>, Vec<usize>) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("wal")).unwrap();
    fs::create_dir_all(folder.path().join("tmp")).unwrap();
    let mut wal = Wal::new(folder.path(), 1 << 20, Vec::new(), 40);
    let mut ends = Vec::new();
    for batch in batches {
        for (index, len) in batch.iter().enumerate() {
            wal.append(&vec![b'a' + u8::try_from(index % 26).unwrap(); *len]);
        }
        wal.commit(|_| {}).unwrap();
        ends.push(wal.open.as_ref().unwrap().position);
    }
    (fs::read(folder.path().join(files::segment(40))).unwrap(), ends)
}

fn lengths(scan: &Scan<'_>) -> Vec<usize> {
    scan.records.iter().map(|record| record.len()).collect()
}

#[test]
fn what_was_written_is_read() {
    let (bytes, _) = segment(&[&[1, 2, 3], &[700], &[65_535, 5]]);
    assert_eq!(bytes.len(), LENGTH);
    let scan = scan(&bytes).unwrap();
    assert_eq!((scan.first, scan.tail), (40, Tail::Whole));
    assert_eq!(lengths(&scan), [1, 2, 3, 700, 65_535, 5]);
}

/// A crash keeps any of the last batch's sectors from the disk: every durable record is read, and
/// no damage is reported.
#[test]
fn a_last_batch_torn_along_sectors_costs_only_itself() {
    let (bytes, ends) = segment(&[&[300, 300], &[700, 20, 900, 1500, 40]]);
    let (from, to) = (ends[0], ends[1]);
    let sectors: Vec<usize> = (from / 512..=(to - 1) / 512).collect();
    for lost in 1_u32..1 << sectors.len() {
        let mut torn = bytes.clone();
        for (bit, sector) in sectors.iter().enumerate() {
            if lost >> bit & 1 == 1 {
                torn[(sector * 512).max(from)..(sector * 512 + 512).min(to)].fill(0);
            }
        }
        let scan = scan(&torn).unwrap_or_else(|error| panic!("sectors {lost:b} lost: {error}"));
        assert_eq!(lengths(&scan)[..2], [300, 300], "sectors {lost:b} lost");
    }
}

#[test]
fn every_flipped_bit_is_damage_wherever_it_is() {
    let (bytes, ends) = segment(&[&[30, 30], &[70, 20], &[600, 9]]);
    let whole = scan(&bytes).unwrap().records.len();
    for at in (0..ends[2] + 40).chain([LENGTH - 1, LENGTH / 2, LENGTH / 2 + 511, LENGTH / 2 + 512])
    {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let found = scan(&flipped);
            let tail = found.map(|scan| scan.tail);
            assert!(tail.is_err(), "bit {bit} of byte {at}: {tail:?}");
        }
    }
    assert_eq!(whole, 6);
}

#[test]
fn a_segment_of_another_length_or_place_is_damage() {
    let (bytes, _) = segment(&[&[30, 30]]);
    assert!(scan(&bytes[..LENGTH - 1]).is_err());
    assert!(scan(&bytes[..100]).is_err());
    assert!(scan(&[]).is_err());
    let mut longer = bytes;
    longer.push(0);
    assert!(scan(&longer).is_err());
}

#[test]
fn a_full_segment_is_followed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("wal")).unwrap();
    fs::create_dir_all(folder.path().join("tmp")).unwrap();
    let mut wal = Wal::new(folder.path(), 1 << 20, Vec::new(), 0);
    for _ in 0..60 {
        wal.append(&vec![b'x'; 60_000]);
    }
    let mut seen = 0;
    wal.commit(|record| seen += record.len()).unwrap();
    assert_eq!(seen, 60 * 60_000);
    assert!(wal.list.len() == 4, "{:?}", wal.list);
    wal.release(40).unwrap();
    assert_eq!(wal.list.len(), 2, "{:?}", wal.list);
    let mut next = wal.list[0];
    for first in wal.list.clone() {
        assert_eq!(first, next);
        let bytes = fs::read(folder.path().join(files::segment(first))).unwrap();
        next += scan(&bytes).unwrap().records.len() as u64;
    }
    assert_eq!(next, 60);
}
