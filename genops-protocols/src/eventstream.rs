//! Decoder of the AWS event stream encoding, [`application/vnd.amazon.eventstream`][spec].
//!
//! Takes messages with checksums, passes on relevant headers and pieces of payload. A message of up
//! to [`Decoder::WHOLE_LIMIT`] bytes is passed on after a check of the checksum; a longer message
//! streams through, with a check at the end. After damage or a gap, decoding resumes at the next
//! prelude with a right checksum.
//!
//! [spec]: https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html

use crc32fast::Hasher;

/// Receiver of messages.
pub(crate) trait Handler {
    /// A message begins, with the headers `:event-type` and `:exception-type` (or `:error-code`).
    fn begin(&mut self, event: Option<&str>, exception: Option<&str>);
    fn payload(&mut self, piece: &[u8]);
    fn end(&mut self);
    /// A checksum was wrong: of skipped bytes, or of a message already passed on.
    fn corrupt(&mut self);
}

/// Total length, length of headers, checksum of both.
const PRELUDE: usize = 12;
const CHECKSUM: usize = 4;
/// Maximum bytes of a message by the specification: 24 MiB and headers.
const MESSAGE_LIMIT: u32 = (24 << 20) + (128 << 10);

#[derive(Debug, Default)]
enum State {
    /// Gathering a prelude, headers, or a whole short message.
    #[default]
    Gather,
    /// Payload of a long message: bytes still to come.
    Payload {
        left: usize,
    },
    /// Headers too long to keep.
    SkipHeaders {
        left: usize,
        payload: usize,
    },
    Checksum,
}

/// Splits a stream into messages, through pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    held: Vec<u8>,
    crc: Hasher,
    /// Searching for a prelude, after damage or a gap.
    searching: bool,
}

struct Prelude {
    total: usize,
    headers: usize,
}

impl Decoder {
    /// Longest message held until the checksum is known, in bytes.
    pub(crate) const WHOLE_LIMIT: usize = 16 << 10;
    /// Longest headers read of a longer message, in bytes.
    const HEADERS_LIMIT: usize = 4 << 10;

    /// Returns whether `bytes` begin with a valid prelude. `None`: too few bytes.
    pub(crate) fn recognizes(bytes: &[u8]) -> Option<bool> {
        (bytes.len() >= PRELUDE).then(|| prelude(bytes).is_some())
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.held.capacity()
    }

    pub(crate) fn gap(&mut self) {
        self.held.clear();
        self.state = State::Gather;
        self.searching = true;
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8], handler: &mut impl Handler) {
        while !bytes.is_empty() {
            let used = match self.state {
                State::Gather => self.gather(bytes, handler),
                State::Payload { left } => self.payload(bytes, left, handler),
                State::SkipHeaders { left, payload } => self.skip_headers(bytes, left, payload),
                State::Checksum => self.checksum(bytes, handler),
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Gathers the missing bytes of the current part. Returns the number of bytes used.
    fn gather(&mut self, bytes: &[u8], handler: &mut impl Handler) -> usize {
        let wanted = match prelude(&self.held) {
            None => PRELUDE,
            Some(prelude) if prelude.total <= Self::WHOLE_LIMIT => prelude.total,
            Some(prelude) => PRELUDE + prelude.headers,
        };
        let missing = wanted.saturating_sub(self.held.len());
        let taken = bytes.get(..missing).unwrap_or(bytes);
        self.held.extend_from_slice(taken);
        if self.held.len() >= wanted {
            self.gathered(handler);
        }
        taken.len()
    }

    fn gathered(&mut self, handler: &mut impl Handler) {
        let Some(Prelude { total, headers }) = prelude(&self.held) else {
            if !std::mem::replace(&mut self.searching, true) {
                handler.corrupt();
            }
            self.held.drain(..1);
            return;
        };
        self.searching = false;
        if total <= Self::WHOLE_LIMIT {
            if self.held.len() >= total {
                self.whole(total, headers, handler);
            }
        } else if headers > Self::HEADERS_LIMIT {
            self.begin_long();
            self.state =
                State::SkipHeaders { left: headers, payload: total - headers - PRELUDE - CHECKSUM };
            handler.begin(None, None);
        } else if self.held.len() >= PRELUDE + headers {
            let (event, exception) = names(self.held.get(PRELUDE..).unwrap_or_default());
            handler.begin(event, exception);
            self.begin_long();
            self.state = State::Payload { left: total - headers - PRELUDE - CHECKSUM };
        }
    }

    fn begin_long(&mut self) {
        self.crc = Hasher::new();
        self.crc.update(&self.held);
        self.held.clear();
    }

    fn whole(&mut self, total: usize, headers: usize, handler: &mut impl Handler) {
        let (message, sum) = self.held.split_at_checked(total - CHECKSUM).unwrap_or_default();
        if crc32fast::hash(message).to_be_bytes() == sum {
            let body = message.get(PRELUDE..).unwrap_or_default();
            let (headers, payload) = body.split_at_checked(headers).unwrap_or_default();
            let (event, exception) = names(headers);
            handler.begin(event, exception);
            handler.payload(payload);
            handler.end();
        } else {
            handler.corrupt();
        }
        self.held.clear();
    }

    fn skip_headers(&mut self, bytes: &[u8], left: usize, payload: usize) -> usize {
        let taken = bytes.get(..left).unwrap_or(bytes);
        self.crc.update(taken);
        self.state = match left - taken.len() {
            0 => State::Payload { left: payload },
            left => State::SkipHeaders { left, payload },
        };
        taken.len()
    }

    fn payload(&mut self, bytes: &[u8], left: usize, handler: &mut impl Handler) -> usize {
        let taken = bytes.get(..left).unwrap_or(bytes);
        self.crc.update(taken);
        handler.payload(taken);
        self.state = match left - taken.len() {
            0 => State::Checksum,
            left => State::Payload { left },
        };
        taken.len()
    }

    fn checksum(&mut self, bytes: &[u8], handler: &mut impl Handler) -> usize {
        let taken = bytes.get(..CHECKSUM - self.held.len()).unwrap_or(bytes);
        self.held.extend_from_slice(taken);
        if self.held.len() == CHECKSUM {
            handler.end();
            if self.crc.clone().finalize().to_be_bytes() != self.held.as_slice() {
                handler.corrupt();
            }
            self.held.clear();
            self.state = State::Gather;
        }
        taken.len()
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*four))
}

/// Returns the prelude at the start of `bytes`, if the checksum is right and the lengths fit.
fn prelude(bytes: &[u8]) -> Option<Prelude> {
    let (total, headers, sum) = (number(bytes, 0)?, number(bytes, 4)?, number(bytes, 8)?);
    let right = crc32fast::hash(bytes.get(..8)?) == sum;
    let total = usize::try_from(Some(total).filter(|&total| total <= MESSAGE_LIMIT)?).ok()?;
    let headers = usize::try_from(headers).ok()?;
    let fits = headers <= total.checked_sub(PRELUDE + CHECKSUM)?;
    (right && fits).then_some(Prelude { total, headers })
}

/// Returns event and exception type from the headers.
fn names(mut headers: &[u8]) -> (Option<&str>, Option<&str>) {
    let (mut event, mut exception) = (None, None);
    while let Some((name, value, rest)) = header(headers) {
        let value = || std::str::from_utf8(value).ok();
        match name {
            b":event-type" => event = value(),
            b":exception-type" | b":error-code" => exception = value(),
            _ => {}
        }
        headers = rest;
    }
    (event, exception)
}

/// Splits a header off: name, value, rest. Values of fixed length are passed on raw.
fn header(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&name_len, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
    let (&kind, rest) = rest.split_first()?;
    let (len, rest) = match kind {
        0 | 1 => (0, rest),
        2 => (1, rest),
        3 => (2, rest),
        4 => (4, rest),
        5 | 8 => (8, rest),
        6 | 7 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        9 => (16, rest),
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(len)?;
    Some((name, value, rest))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Encodes a message.
    pub(crate) fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut coded = Vec::new();
        for (name, value) in headers {
            coded.push(u8::try_from(name.len()).expect("short name"));
            coded.extend_from_slice(name.as_bytes());
            coded.push(7);
            coded.extend_from_slice(&u16::try_from(value.len()).expect("short").to_be_bytes());
            coded.extend_from_slice(value.as_bytes());
        }
        let total = PRELUDE + coded.len() + payload.len() + CHECKSUM;
        let mut out = u32::try_from(total).expect("short").to_be_bytes().to_vec();
        out.extend_from_slice(&u32::try_from(coded.len()).expect("short").to_be_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out.extend_from_slice(&coded);
        out.extend_from_slice(payload);
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out
    }

    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        messages: Vec<(String, Vec<u8>)>,
        corrupt: u32,
    }

    impl Handler for Seen {
        fn begin(&mut self, event: Option<&str>, exception: Option<&str>) {
            let name = format!("{} {}", event.unwrap_or("-"), exception.unwrap_or("-"));
            self.messages.push((name, Vec::new()));
        }

        fn payload(&mut self, piece: &[u8]) {
            let (_, payload) = self.messages.last_mut().expect("a message began");
            payload.extend_from_slice(piece);
        }

        fn end(&mut self) {}

        fn corrupt(&mut self) {
            self.corrupt += 1;
        }
    }

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
        let (mut decoder, mut seen) = (Decoder::default(), Seen::default());
        for piece in pieces {
            decoder.feed(piece, &mut seen);
        }
        assert!(decoder.memory_bytes() < 40 << 10, "memory is bounded");
        seen
    }

    #[track_caller]
    fn check(stream: &[u8], names: &[&str], corrupt: u32) {
        let whole = decode([stream]);
        for at in 0..=stream.len().min(600) {
            let (head, tail) = stream.split_at(at);
            assert_eq!(decode([head, tail]), whole, "cut at byte {at}");
        }
        let seen: Vec<&str> = whole.messages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((seen.as_slice(), whole.corrupt), (names, corrupt));
    }

    #[test]
    fn messages_are_split_and_exceptions_named() {
        let mut stream = message(&[(":event-type", "metadata")], b"{\"usage\":{}}");
        stream.extend(message(&[(":exception-type", "throttlingException")], b"{}"));
        check(&stream, &["metadata -", "- throttlingException"], 0);
    }

    #[test]
    fn a_long_message_streams_through() {
        let long = vec![b'x'; 3 * Decoder::WHOLE_LIMIT];
        let stream = message(&[(":event-type", "chunk")], &long);
        check(&stream, &["chunk -"], 0);
        assert_eq!(decode([stream.as_slice()]).messages[0].1, long);
    }

    #[test]
    fn a_damaged_message_is_left_out_and_the_next_one_is_found() {
        let mut stream = message(&[(":event-type", "a")], b"{}");
        let at = stream.len() - 5;
        stream[at] ^= 1;
        stream.extend(message(&[(":event-type", "b")], b"{}"));
        check(&stream, &["b -"], 1);
        let mut lost = b"tail of something".to_vec();
        lost.extend(message(&[(":event-type", "c")], b"{}"));
        check(&lost, &["c -"], 1);
    }
}
