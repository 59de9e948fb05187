//! Laws of the decoders, kept whatever the bytes: a function per decoder, called by the fuzz
//! targets. A function panics if a law is broken.
//!
//! The laws: the cuts between pieces do not matter; memory stays within the limit; positions lie
//! within the received bytes, unless a request takes up the rest of the connection; each exchange
//! is reported once, after the request.
#![expect(clippy::missing_panics_doc, reason = "to panic is what these are for")]

use std::collections::HashMap;
use std::sync::Arc;

use crate::body::{Body, Hints};
use crate::call::{Call, Direction, Exchange, Request, Sink, Texts};
use crate::coding::{Coding, Decoder};
use crate::connection::{Connection, ConnectionFacts};
use crate::dialect;
use crate::hosts::Hosts;
use crate::json::schema::Want;
use crate::json::{Reader, Scalar, Scanner};
use crate::{eventstream, multipart, sse};

/// Text kept for policy in fuzz runs, in bytes.
const TEXT_LIMIT: usize = 4 << 10;

/// Splits the control bytes off: lengths of pieces.
fn cuts(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at_checked(4).unwrap_or((&[], data))
}

/// Cuts `data` into pieces of the lengths in `control`, used in a cycle.
fn pieces<'a>(control: &'a [u8], mut data: &'a [u8]) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    let mut lengths = control.iter().cycle();
    while !data.is_empty() {
        let len = lengths.next().map_or(data.len(), |&len| usize::from(len).max(1));
        let (piece, rest) = data.split_at_checked(len).unwrap_or((data, &[]));
        out.push(piece);
        data = rest;
    }
    out
}

/// Writes the findings of a scanner down, with strings whole.
#[derive(Debug, Default, PartialEq)]
struct Written(Vec<u8>);

impl Reader for Written {
    fn text_begin(&mut self, want: Want) {
        self.0.extend_from_slice(format!("<{want:?} ").as_bytes());
    }

    fn text(&mut self, _want: Want, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn text_end(&mut self, _want: Want) {
        self.0.push(b'>');
    }

    fn scalar(&mut self, want: Want, scalar: Scalar<'_>) {
        self.0.extend_from_slice(format!("<{want:?} {scalar:?}>").as_bytes());
    }

    fn enter(&mut self, want: Want) {
        self.0.extend_from_slice(format!("({want:?} ").as_bytes());
    }

    fn leave(&mut self, _want: Want) {
        self.0.push(b')');
    }
}

/// Checks the JSON scanner.
pub fn json(data: &[u8]) {
    let (control, data) = cuts(data);
    let scan = |pieces: &[&[u8]]| {
        let (mut scanner, mut written) = (Scanner::new(&dialect::RESPONSES), Written::default());
        for piece in pieces {
            scanner.feed(piece, &mut written);
            assert!(scanner.memory_bytes() < 2048, "memory");
        }
        scanner.finish(&mut written);
        (written, scanner.texts_seen(), scanner.is_broken())
    };
    assert_eq!(scan(&pieces(control, data)), scan(&[data]));
    let mut written = Written::default();
    crate::json::tail::read(data, &dialect::RESPONSES, &mut written);
}

impl sse::Handler for Written {
    fn line(&mut self, line: &[u8]) {
        sse::Handler::begin(self);
        sse::Handler::piece(self, line);
        sse::Handler::end(self);
    }

    fn begin(&mut self) {
        self.0.push(b'<');
    }

    fn piece(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn end(&mut self) {
        self.0.push(b'>');
    }

    fn dispatch(&mut self) {
        if self.0.last().is_some_and(|&last| last != b'\n') {
            self.0.push(b'\n');
        }
    }
}

/// Checks the splitter of server-sent events.
pub fn events(data: &[u8]) {
    let (control, data) = cuts(data);
    let split = |pieces: &[&[u8]]| {
        let (mut decoder, mut written) = (sse::Decoder::default(), Written::default());
        for piece in pieces {
            decoder.feed(piece, &mut written);
        }
        decoder.finish(&mut written);
        written
    };
    assert_eq!(split(&pieces(control, data)), split(&[data]));
}

impl eventstream::Handler for Written {
    fn begin(&mut self, event: Option<&str>, exception: Option<&str>) {
        self.0.extend_from_slice(format!("<{event:?} {exception:?} ").as_bytes());
    }

    fn payload(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn end(&mut self) {
        self.0.push(b'>');
    }

    fn corrupt(&mut self) {
        self.0.push(b'!');
    }
}

/// Checks the splitter of AWS event streams.
pub fn event_stream(data: &[u8]) {
    let (control, data) = cuts(data);
    let split = |pieces: &[&[u8]]| {
        let (mut decoder, mut written) = (eventstream::Decoder::default(), Written::default());
        for piece in pieces {
            decoder.feed(piece, &mut written);
            assert!(decoder.memory_bytes() < 40 << 10, "memory");
        }
        written
    };
    assert_eq!(split(&pieces(control, data)), split(&[data]));
}

/// Checks the multipart splitter.
pub fn multipart(data: &[u8]) {
    let (control, data) = cuts(data);
    let split = |pieces: &[&[u8]]| {
        let mut written = Written::default();
        let decoder = multipart::Decoder::from_content_type("multipart/form-data; boundary=b");
        let mut decoder = decoder.expect("a boundary is given");
        for piece in pieces {
            decoder.feed(piece, &dialect::REQUESTS, &mut written);
            assert!(decoder.memory_bytes() < 16 << 10, "memory");
        }
        written
    };
    assert_eq!(split(&pieces(control, data)), split(&[data]));
}

/// Checks the content codings.
pub fn coding(data: &[u8]) {
    let (control, data) = cuts(data);
    let codings = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];
    let which = usize::from(control.first().copied().unwrap_or(0)) % codings.len();
    let Some(&coding) = codings.get(which) else { return };
    let decode = |pieces: &[&[u8]]| {
        let Ok(Some(mut decoder)) = Decoder::new(coding) else { return (0, false) };
        let (mut out, mut failed) = (0_u64, false);
        for piece in pieces {
            failed = failed || decoder.feed(piece, |bytes| out += bytes.len() as u64).is_err();
            assert!(decoder.memory_bytes() < 40 << 20, "memory");
        }
        let allowed = (data.len() as u64).saturating_mul(Decoder::EXPANSION_LIMIT);
        assert!(out <= allowed.max(Decoder::FREE_OUTPUT) + (64 << 10), "expansion");
        (out, failed)
    };
    let (whole, cut) = (decode(&[data]), decode(&pieces(control, data)));
    assert!(whole.1 || cut.1 || whole == cut, "{whole:?} {cut:?}");
}

/// Checks a body of unknown coding and form, with a gap.
pub fn body(data: &[u8]) {
    let (control, data) = cuts(data);
    let hole = usize::from(control.first().copied().unwrap_or(0));
    let types = [None, Some("text/event-stream"), Some("application/json"), Some("x/ndjson")];
    let content_type = types.get(hole % 4).copied().flatten().map(str::to_owned);
    let coding = (hole % 3 > 0).then_some(Coding::Identity);
    let hints = Hints { content_type, coding, grpc: None };
    let texts = Texts::new(TEXT_LIMIT);
    let mut body = Body::new(&dialect::REQUESTS, hints, Some(texts));
    for (index, piece) in pieces(control, data).into_iter().enumerate() {
        if index > 0 && index == hole / 8 {
            body.gap();
        }
        body.feed(piece);
    }
    body.end(true);
    let kept: usize = body.texts().into_iter().flat_map(Texts::iter).map(str::len).sum();
    assert!(kept <= TEXT_LIMIT * 3, "text");
}

/// Checks and keeps the reports of a connection.
#[derive(Default)]
struct Laws {
    received: u64,
    requests: HashMap<u64, u32>,
    /// Number, completeness, start and end of each request.
    told: Vec<(u64, bool, u64, u64)>,
    /// A request taking up the rest of the connection was reported.
    endless: bool,
    exchanges: Vec<Call>,
    texts: Vec<String>,
}

impl Sink for Laws {
    fn request(&mut self, request: &Request<'_>) {
        assert!(request.start <= request.end, "{request:?}");
        assert!(!self.endless, "nothing follows the rest of the connection: {request:?}");
        self.endless = request.end == u64::MAX && !request.complete;
        let received = self.endless || request.end <= self.received;
        assert!(received, "{request:?} of {}", self.received);
        let Request { start, end, complete, call, .. } = request;
        self.told.push((call.exchange, *complete, *start, *end));
        let times = self.requests.entry(request.call.exchange).or_default();
        *times += 1;
        assert_eq!(*times, 1, "a request is told once: {request:?}");
        self.texts.extend(request.texts().map(str::to_owned));
    }

    fn exchange(&mut self, exchange: Exchange) {
        let number = exchange.call.exchange;
        assert!(self.requests.contains_key(&number), "its request comes first: {exchange:?}");
        assert!(self.exchanges.iter().all(|other| other.exchange != number), "told once");
        self.exchanges.push(exchange.call);
    }
}

/// A step in the life of a connection.
#[derive(Clone, Copy)]
enum Step<'a> {
    Data(Direction, &'a [u8]),
    Gap(Direction, Option<u64>),
}

fn run(steps: &[Step<'_>], from_start: bool, cut: Option<&[u8]>) -> Laws {
    let facts =
        ConnectionFacts { server_name: Some("api.openai.com".into()), remote: None, from_start };
    let connection = Connection::new(facts, Arc::new(Hosts::builtin()));
    let mut connection = connection.with_text_limit(TEXT_LIMIT);
    let mut laws = Laws::default();
    for step in steps {
        match *step {
            Step::Data(direction, bytes) => {
                for piece in cut.map_or_else(|| vec![bytes], |control| pieces(control, bytes)) {
                    if direction == Direction::Egress {
                        laws.received += piece.len() as u64;
                    }
                    connection.data(1, direction, piece, &mut laws);
                }
            }
            Step::Gap(direction, bytes) => {
                if direction == Direction::Egress {
                    laws.received += bytes.unwrap_or(0);
                }
                connection.gap(1, direction, bytes, &mut laws);
            }
        }
        let egress = connection.egress();
        assert_eq!(egress.received, laws.received);
        if let Some(open) = egress.open {
            assert!(open.start <= egress.received, "{open:?}");
        }
        let beside = connection.memory_bytes() - connection.retained_bytes();
        let in_flight = laws.requests.len().saturating_sub(laws.exchanges.len()) + 2;
        let windows = (in_flight * 24) << 20; // decompressors that a few bytes may open
        let limit = Connection::MEMORY_LIMIT + in_flight * Connection::MESSAGE_LIMIT + windows;
        assert!(beside <= limit, "{beside} bytes with {in_flight} in flight");
    }
    connection.close(1, &mut laws);
    for number in laws.requests.keys() {
        assert!(laws.exchanges.iter().any(|call| call.exchange == *number), "every end is told");
    }
    laws
}

/// Runs whole and cut; both runs must report the same.
fn compare(steps: &[Step<'_>], from_start: bool, control: &[u8]) {
    let whole = run(steps, from_start, None);
    let cut = run(steps, from_start, Some(control));
    assert_eq!(whole.told, cut.told);
    assert_eq!(whole.exchanges, cut.exchanges);
    assert_eq!(whole.texts, cut.texts);
}

/// Splits the rest of the input among both directions.
fn both(control: &[u8], data: &[u8]) -> (usize, usize) {
    let share = usize::from(control.last().copied().unwrap_or(0));
    let at = data.len() * share / 256;
    (at, data.len())
}

/// Checks HTTP/1: a chat request, then any bytes in both directions.
pub fn http1(data: &[u8]) {
    let (control, data) = cuts(data);
    let (at, _) = both(control, data);
    let (sent, received) = data.split_at_checked(at).unwrap_or((data, &[]));
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n";
    compare(
        &[
            Step::Data(Direction::Egress, request),
            Step::Data(Direction::Egress, sent),
            Step::Data(Direction::Ingress, b"HTTP/1.1 200 OK\r\n"),
            Step::Data(Direction::Ingress, received),
        ],
        true,
        control,
    );
}

/// Checks HTTP/2 from the preface on: any bytes in both directions.
pub fn http2(data: &[u8]) {
    let (control, data) = cuts(data);
    let (at, _) = both(control, data);
    let (sent, received) = data.split_at_checked(at).unwrap_or((data, &[]));
    compare(
        &[
            Step::Data(Direction::Egress, crate::http2::PREFACE),
            Step::Data(Direction::Egress, sent),
            Step::Data(Direction::Ingress, received),
        ],
        true,
        control,
    );
}

/// Checks a realtime WebSocket after the handshake.
pub fn websocket(data: &[u8]) {
    let (control, data) = cuts(data);
    let (at, _) = both(control, data);
    let (sent, received) = data.split_at_checked(at).unwrap_or((data, &[]));
    compare(
        &[
            Step::Data(
                Direction::Egress,
                b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: websocket\r\n\r\n",
            ),
            Step::Data(
                Direction::Ingress,
                b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            ),
            Step::Data(Direction::Egress, sent),
            Step::Data(Direction::Ingress, received),
        ],
        true,
        control,
    );
}

/// Checks the whole engine: any steps, gaps included, from the start or midway.
pub fn engine(data: &[u8]) {
    let (control, mut data) = cuts(data);
    let from_start = control.first().is_none_or(|byte| byte & 1 == 0);
    let mut steps = Vec::new();
    while let Some((&[kind, len], rest)) = data.split_first_chunk::<2>() {
        let direction = if kind & 1 == 0 { Direction::Egress } else { Direction::Ingress };
        let len = usize::from(len) + usize::from(kind >> 4) * 256;
        if kind & 0x0e == 0x0e {
            steps.push(Step::Gap(direction, (kind & 0x10 == 0).then_some(len as u64)));
            data = rest;
        } else {
            let (piece, rest) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            steps.push(Step::Data(direction, piece));
            data = rest;
        }
    }
    compare(&steps, from_start, control);
}
