//! Write-ahead segments: make a record durable before any other use of the record.
//!
//! A segment is a file of fixed length, preallocated and zero at first, never written twice at the
//! same place:
//!
//! ```text
//! 0    "genops-wal 1\n" and zeroes, 16 bytes
//! 16   u64 index of the first record
//! 24   u32 length of the file
//! 28   u32 CRC-32C of the 28 bytes before, then zeroes
//! 512  frames:  u16 length (not 0), u32 CRC-32C of index and bytes, bytes
//!      marks:   u16 0, u32 CRC-32C, u32 own offset, u32 offset of the closed batch
//! ```
//!
//! Numbers are big-endian. A batch is written with a single write and a single `fdatasync`, and
//! closed by a mark. So after a crash only the last batch can be torn, and a tear runs along sector
//! borders. Any other damage has another cause, and [`scan`] reports the damage.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::files::{self, Writer};

/// Maximum length of a record, in bytes: entry bundles have 16 bits for the length.
pub const RECORD_LIMIT: usize = 65_535;

/// Default length of a segment, in bytes.
pub const SEGMENT_BYTES: u32 = 16 << 20;

/// Maximum of bytes waiting for a commit.
pub const BUFFER_LIMIT: usize = 4 << 20;

/// Maximum length of a segment for reading, in bytes.
pub(crate) const SEGMENT_LIMIT: usize = 1 << 30;

const MAGIC: &[u8; 16] = b"genops-wal 1\n\0\0\0";
const HEADER: usize = 512;
const SECTOR: usize = 512;
const FRAME: usize = 6;
const MARK: usize = 14;
const LIST_HEAD: &str = "genops-wal 1\n";

/// An unreadable segment, with the offset of the damage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {what}")]
pub struct WalError {
    /// Offset in the segment.
    pub offset: usize,
    /// Description of the damage.
    pub what: &'static str,
}

/// End of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// A whole batch.
    Whole,
    /// A batch cut short by a crash, at the given offset.
    Torn(usize),
}

/// Content of a segment.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Index of the first record.
    pub first: u64,
    /// Every whole record, in order.
    pub records: Vec<&'a [u8]>,
    /// End of the segment.
    pub tail: Tail,
}

/// Reads a segment.
///
/// # Errors
///
/// A [`WalError`] if any byte differs from the bytes written, except in a batch torn by a crash.
pub fn scan(bytes: &[u8]) -> Result<Scan<'_>, WalError> {
    let first = read_header(bytes)?;
    let mut records = Vec::new();
    let mut batch = HEADER;
    let mut at = HEADER;
    let (broken, len) = loop {
        match read_frame(bytes, at, first, first + records.len() as u64, batch) {
            Frame::Record(record) => {
                at += FRAME + record.len();
                records.push(record);
            }
            Frame::Mark => {
                at += MARK;
                batch = at;
            }
            Frame::End => break (false, 0),
            Frame::Broken(len) => break (true, len),
        }
    };
    let rest = bytes.get(at..).unwrap_or_default();
    let tail = if !broken && rest.iter().all(|byte| *byte == 0) {
        if at == batch { Tail::Whole } else { Tail::Torn(at) }
    } else {
        is_torn(bytes, first, at, len)?;
        Tail::Torn(at)
    };
    Ok(Scan { first, records, tail })
}

enum Frame<'a> {
    Record(&'a [u8]),
    Mark,
    End,
    /// With the length claimed by the frame.
    Broken(usize),
}

fn read_header(bytes: &[u8]) -> Result<u64, WalError> {
    let wrong = |offset, what| Err(WalError { offset, what });
    let Some(header) = bytes.get(..HEADER) else {
        return wrong(bytes.len(), "shorter than a segment's header");
    };
    let (Some(signed), Some(crc)) = (header.get(..28), be32(header, 28)) else {
        return wrong(0, "shorter than a segment's header");
    };
    if signed.get(..16) != Some(MAGIC.as_slice()) {
        return wrong(0, "not a write-ahead segment");
    }
    if crc32c::crc32c(signed) != crc {
        return wrong(16, "the header's checksum does not fit");
    }
    if header.iter().skip(32).any(|byte| *byte != 0) {
        return wrong(32, "the unused part of the header is not zero");
    }
    if be32(header, 24).map(|length| length as usize) != Some(bytes.len()) {
        return wrong(bytes.len(), "the file does not have the length that its header says");
    }
    be64(header, 16).ok_or(WalError { offset: 16, what: "no first index" })
}

fn read_frame(bytes: &[u8], at: usize, first: u64, index: u64, batch: usize) -> Frame<'_> {
    let (Some(len), Some(crc)) = (be16(bytes, at), be32(bytes, at + 2)) else {
        // Fewer bytes than a frame's head are left: no write ever reached the place.
        return Frame::End;
    };
    match (usize::from(len), crc) {
        (0, 0) => Frame::End,
        (0, _) if read_mark(bytes, at, first) == Some(batch) => Frame::Mark,
        (0, _) => Frame::Broken(MARK - FRAME),
        (len, crc) => match bytes.get(at + FRAME..at + FRAME + len) {
            Some(record) if record_crc(index, record) == crc => Frame::Record(record),
            _ => Frame::Broken(len),
        },
    }
}

/// Returns the start of the batch closed by the mark at `at`; `None` without a mark.
fn read_mark(bytes: &[u8], at: usize, first: u64) -> Option<usize> {
    let own = be32(bytes, at + 6)? as usize;
    let batch = be32(bytes, at + 10)?;
    let whole = own == at && be16(bytes, at)? == 0;
    let crc = be32(bytes, at + 2)?;
    (whole && crc == mark_crc(first, u32::try_from(at).ok()?, batch)).then_some(batch as usize)
}

/// Accepts the damage at `at` if a write cut short by a crash can be the cause.
fn is_torn(bytes: &[u8], first: u64, at: usize, len: usize) -> Result<(), WalError> {
    let damaged = |what| Err(WalError { offset: at, what });
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(at, |last| last + 1).max(at);
    let mut end = used.max((at + FRAME + len).min(bytes.len()));
    let mut marked = false;
    for place in at + 1..used {
        match read_mark(bytes, place, first) {
            Some(batch) if batch > at => {
                return damaged("broken, and a later batch was written after it");
            }
            Some(_) => (marked, end) = (true, place + MARK),
            None => {}
        }
    }
    if end < used {
        return damaged("something stands behind the last batch");
    }
    // Without a mark, the rest of the batch runs up to a sector's border.
    if !marked && (1..SECTOR - 8).contains(&(used % SECTOR)) {
        return damaged("broken, and not along a sector as a cut write would be");
    }
    let mut holes = 0_usize;
    let mut from = at;
    let mut before: Option<&[u8]> = None;
    while from < end {
        let to = ((from / SECTOR + 1) * SECTOR).min(end).min(bytes.len());
        let part = bytes.get(from..to).unwrap_or_default();
        let hole = part.iter().all(|byte| *byte == 0);
        holes += usize::from(hole);
        // Data runs up to the sector border before a hole, and begins at the sector border after a
        // hole.
        let empty = |edge: &[u8]| edge.iter().all(|byte| *byte == 0);
        let ragged = match (before.map(|part| (part, empty(part))), hole) {
            (Some((part, false)), true) => {
                empty(part.get(part.len().saturating_sub(8)..).unwrap_or_default())
            }
            (Some((_, true)), false) => empty(part.get(..part.len().min(8)).unwrap_or_default()),
            _ => false,
        };
        if ragged {
            return damaged("broken, and not along a sector as a cut write would be");
        }
        before = Some(part);
        from = to;
    }
    if holes == 0 {
        return damaged("the record or mark does not fit its checksum");
    }
    Ok(())
}

fn record_crc(index: u64, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_be_bytes()), record)
}

fn mark_crc(first: u64, own: u32, batch: u32) -> u32 {
    let mut crc = crc32c::crc32c(b"mark");
    crc = crc32c::crc32c_append(crc, &first.to_be_bytes());
    crc = crc32c::crc32c_append(crc, &own.to_be_bytes());
    crc32c::crc32c_append(crc, &batch.to_be_bytes())
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|raw| u16::from_be_bytes(*raw))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|raw| u32::from_be_bytes(*raw))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|raw| u64::from_be_bytes(*raw))
}

/// Reads the list of segments in use: their first indices, in order.
pub(crate) fn parse_list(bytes: &[u8]) -> Option<Vec<u64>> {
    let text = str::from_utf8(bytes).ok()?;
    let lines = text.strip_prefix(LIST_HEAD)?;
    let mut list = Vec::new();
    for line in lines.split_inclusive('\n') {
        list.push(crate::note::parse_decimal(line.strip_suffix('\n')?)?);
    }
    list.is_sorted_by(|one, next| one < next).then_some(list)
}

/// Writes the list of segments in use.
pub(crate) fn format_list(list: &[u64]) -> String {
    let mut text = LIST_HEAD.to_owned();
    for first in list {
        text.push_str(&first.to_string());
        text.push('\n');
    }
    text
}

/// The open end of the write-ahead log.
#[derive(Debug)]
pub(crate) struct Wal {
    directory: PathBuf,
    writer: Writer,
    segment_bytes: u32,
    /// First indices of the segments in use, the open one last.
    list: Vec<u64>,
    open: Option<Segment>,
    /// Index of the next record.
    next: u64,
    /// Index of the first record in `buffer`.
    durable: u64,
    /// Frames not durable yet.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    first: u64,
    position: usize,
}

impl Wal {
    /// Goes on at record `next`, beside the needed segments in `list`.
    pub(crate) fn new(directory: &Path, segment_bytes: u32, list: Vec<u64>, next: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            writer: Writer::new(directory, "wal"),
            segment_bytes: segment_bytes.max(1 << 20),
            list,
            open: None,
            next,
            durable: next,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Returns whether another record of length `len` may wait.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.buffer.len() + FRAME + len <= BUFFER_LIMIT
    }

    /// Appends a record to the waiting records. The caller checked the length.
    pub(crate) fn append(&mut self, record: &[u8]) -> u64 {
        let index = self.next;
        let len = u16::try_from(record.len()).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&len.to_be_bytes());
        self.buffer.extend_from_slice(&record_crc(index, record).to_be_bytes());
        self.buffer.extend_from_slice(record);
        self.next += 1;
        index
    }

    /// Writes the waiting records, makes the records durable, and hands each record to `each`.
    /// After an error all records still wait, and the next call writes the same bytes at the same
    /// place: after a failed sync the content of the disk is unknown.
    pub(crate) fn commit(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        while !self.buffer.is_empty() {
            let taken = self.commit_some()?;
            let mut at = 0;
            while at < taken {
                let len = be16(&self.buffer, at).map_or(0, usize::from);
                each(self.buffer.get(at + FRAME..at + FRAME + len).unwrap_or_default());
                at += FRAME + len;
                self.durable += 1;
            }
            self.buffer.drain(..taken);
        }
        if self.buffer.capacity() > 1 << 20 {
            self.buffer.shrink_to(1 << 16);
        }
        Ok(())
    }

    /// Writes as many frames as fit the open segment; returns the length of the frames.
    fn commit_some(&mut self) -> io::Result<usize> {
        let capacity = self.segment_bytes as usize;
        let fitting = |position: usize, buffer: &[u8]| {
            let mut end = 0;
            while let Some(len) = be16(buffer, end) {
                let next = end + FRAME + usize::from(len);
                if position + next + MARK > capacity {
                    break;
                }
                end = next;
            }
            end
        };
        let open = self.open.as_ref().map(|open| fitting(open.position, &self.buffer));
        if open.is_none_or(|taken| taken == 0) {
            self.open = None;
            self.open = Some(self.start_segment()?);
        }
        let Some(segment) = self.open.as_mut() else { return Ok(0) };
        let taken = fitting(segment.position, &self.buffer);
        let mark_at = u32::try_from(segment.position + taken).map_err(io::Error::other)?;
        let batch = u32::try_from(segment.position).map_err(io::Error::other)?;
        let mut write = Vec::with_capacity(taken + MARK);
        write.extend_from_slice(self.buffer.get(..taken).unwrap_or_default());
        write.extend_from_slice(&[0, 0]);
        write.extend_from_slice(&mark_crc(segment.first, mark_at, batch).to_be_bytes());
        write.extend_from_slice(&mark_at.to_be_bytes());
        write.extend_from_slice(&batch.to_be_bytes());
        segment.file.write_all_at(&write, u64::from(batch))?;
        segment.file.sync_data()?;
        segment.position += taken + MARK;
        Ok(taken)
    }

    /// Creates the next segment: first the file, then the entry in the list.
    fn start_segment(&mut self) -> io::Result<Segment> {
        let first = self.durable;
        let name = files::segment(first);
        let path = self.directory.join(&name);
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&first.to_be_bytes());
        header.extend_from_slice(&self.segment_bytes.to_be_bytes());
        let crc = crc32c::crc32c(&header);
        header.extend_from_slice(&crc.to_be_bytes());
        if self.list.last() == Some(&first) {
            // Prepared by an earlier call with a failed write of the list.
            let file = OpenOptions::new().write(true).open(&path)?;
            self.write_list()?;
            return Ok(Segment { file, first, position: HEADER });
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let prepared = preallocate(&file, self.segment_bytes)
            .and_then(|()| file.write_all_at(&header, 0))
            .and_then(|()| file.sync_all());
        if let Err(error) = prepared {
            // Not in the list yet, so no code depends on the file.
            std::fs::remove_file(&path).unwrap_or_default();
            return Err(error);
        }
        self.list.push(first);
        self.write_list()?;
        Ok(Segment { file, first, position: HEADER })
    }

    fn write_list(&mut self) -> io::Result<()> {
        self.writer.write(files::SEGMENTS, format_list(&self.list).as_bytes())?;
        self.writer.settle()
    }

    /// Removes the segments with all records below `size`, except the open segment.
    pub(crate) fn release(&mut self, size: u64) -> io::Result<()> {
        let open = usize::from(self.open.is_some());
        let closed = self.list.len().saturating_sub(open);
        let ends: Vec<u64> =
            self.list.iter().skip(1).copied().chain([self.durable]).take(closed).collect();
        let done = ends.iter().take_while(|end| **end <= size).count();
        if done == 0 {
            return Ok(());
        }
        let old: Vec<u64> = self.list.drain(..done).collect();
        self.write_list()?;
        for first in old {
            self.writer.remove(&files::segment(first))?;
        }
        Ok(())
    }

    /// Ends the open segment, so that [`Wal::release`] may remove the segment.
    pub(crate) fn close_segment(&mut self) {
        self.open = None;
    }
}

/// Reserves the blocks, so that a write into the segment cannot find the disk full.
fn preallocate(file: &File, bytes: u32) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::empty(), 0, u64::from(bytes)) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            file.set_len(u64::from(bytes))
        }
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests;
