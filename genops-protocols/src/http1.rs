//! HTTP/1.1 ([RFC 9112][rfc]) decoder: messages of both directions, paired in order.
//!
//! Supports keep-alive, pipelining, chunked bodies with trailers, interim responses, HEAD, bodies
//! ended by the close of the connection, and upgrades. A gap inside a body of known length stays a
//! gap in the body. Any other gap loses the place; reading resumes at the next unmistakable start
//! of a message.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc9112

use std::collections::VecDeque;
use std::sync::Arc;

use memchr::{memchr, memmem};

use crate::call::{Direction, Kind, OpenRequest, Sink, Unreadable};
use crate::claims::Wanted;
use crate::exchange::{Context, Head, Transaction};

/// Whether lines must end as demanded by the grammar. True for requests, because a request readable
/// in two ways is not released. False for responses: sloppy servers are read all the same.
type Strict = bool;

/// Framing of a message body: the rule for the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked(Chunk, Strict),
    /// By the close of the connection.
    Close,
}

/// Position in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Within the line with the size: digits, blanks, an extension.
    Size {
        size: u64,
        digits: u8,
        extension: Extension,
        cr: bool,
    },
    Data(u64),
    /// Line end after the data; `cr`: the first byte of the line end was seen.
    DataEnd {
        cr: bool,
    },
    /// Fields after the last chunk; `line` counts the bytes of the line so far, without line end.
    Trailer {
        line: u64,
        cr: bool,
        /// The name of the field is over.
        named: bool,
    },
}

/// Part of a chunk's size line after the digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    None,
    /// Blanks only.
    Blank,
    Begun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body(Framing),
    /// Place lost: searching for a head.
    Lost,
    /// No longer HTTP/1.
    Tunnel,
}

/// State of a direction.
#[derive(Debug)]
struct Side {
    state: State,
    /// Bytes of an incomplete head; after a gap, bytes of a possible start of a head.
    held: Vec<u8>,
    /// Bytes of `held` already searched for the end of the head.
    searched: usize,
    /// Position and time of the first byte of the message.
    start: u64,
    at_ns: u64,
}

impl Side {
    /// Longest head, in bytes.
    const HEAD_LIMIT: usize = 64 << 10;

    fn new(state: State) -> Self {
        Self { state, held: Vec::new(), searched: 0, start: 0, at_ns: 0 }
    }

    /// Adds bytes to the head. Returns the number of bytes used, and the head once whole or too
    /// long.
    fn head<'a>(&'a mut self, bytes: &'a [u8]) -> (usize, Option<Result<&'a [u8], Unreadable>>) {
        if self.held.is_empty()
            && let Some(end) = head_end(bytes, 0)
        {
            return (end, Some(Ok(bytes.get(..end).unwrap_or_default())));
        }
        let before = self.held.len();
        let room = Self::HEAD_LIMIT.saturating_sub(before);
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.held.extend_from_slice(taken);
        match head_end(&self.held, self.searched) {
            Some(end) => {
                self.searched = 0;
                (end.saturating_sub(before), Some(Ok(self.held.get(..end).unwrap_or_default())))
            }
            None if self.held.len() >= Self::HEAD_LIMIT => {
                (taken.len(), Some(Err(Unreadable::Head)))
            }
            None => {
                self.searched = self.held.len().saturating_sub(3);
                (taken.len(), None)
            }
        }
    }
}

impl Side {
    /// Searches for a line beginning a message; keeps an unfinished line. Returns the number of
    /// bytes used.
    fn find(&mut self, at_ns: u64, at: u64, bytes: &[u8], begins: impl Fn(&[u8]) -> bool) -> usize {
        /// Longest line kept until the line ends, in bytes: a method and a long path.
        const LINE_LIMIT: usize = 4 << 10;
        if self.held.is_empty() {
            (self.start, self.at_ns) = (at, at_ns);
        }
        let end = memchr(b'\n', bytes).map(|end| end + 1);
        let taken = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
        if self.held.is_empty() && end.is_some() && !begins(taken) {
            return taken.len();
        }
        let room = LINE_LIMIT.saturating_sub(self.held.len());
        self.held.extend_from_slice(taken.get(..room).unwrap_or(taken));
        if end.is_some() {
            if begins(&self.held) {
                self.state = State::Head;
                self.searched = 0;
            } else {
                self.held.clear();
            }
        }
        taken.len()
    }
}

/// Returns the index after the empty line ending a head.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr(b'\n', bytes.get(at..)?)? + 1;
        match bytes.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
}

/// Outcome of an upgrade.
#[derive(Debug)]
pub(crate) enum Upgrade {
    /// No upgrade: the connection is HTTP/1.
    None,
    /// WebSocket frames of the transaction follow in both directions.
    WebSocket(Box<Transaction>),
    /// HTTP/2 follows; the exchange continues as stream 1.
    Http2(Box<Transaction>),
    /// An unsupported protocol follows.
    Opaque,
}

/// Decoder of both directions of a connection.
#[derive(Debug)]
pub(crate) struct Http1 {
    egress: Side,
    ingress: Side,
    /// Oldest first; the request of the last may still be open.
    queue: VecDeque<Transaction>,
    next_exchange: u64,
    upgrade: Upgrade,
    /// Responses without seen requests.
    unasked: Vec<Transaction>,
    /// Capture joined midway: the first responses may belong to unseen requests.
    midway: bool,
    /// After a gap in ingress, until a response begins: the request of the next response is
    /// unknown.
    unpaired: bool,
}

impl Http1 {
    /// Maximum number of requests without response.
    const QUEUE_LIMIT: usize = 64;
    /// Maximum number of responses without request kept until the connection ends.
    const UNASKED_LIMIT: usize = 16;

    pub(crate) fn new(from_start: bool) -> Self {
        let state = if from_start { State::Head } else { State::Lost };
        Self {
            egress: Side::new(state),
            ingress: Side::new(state),
            queue: VecDeque::new(),
            next_exchange: 0,
            upgrade: Upgrade::None,
            unasked: Vec::new(),
            midway: !from_start,
            unpaired: false,
        }
    }

    /// Returns the outcome of an upgrade. After an upgrade, all other exchanges in flight end at
    /// position `at` of egress: no answer can follow.
    pub(crate) fn take_upgrade(&mut self, at_ns: u64, at: u64, sink: &mut dyn Sink) -> Upgrade {
        let mut upgrade = std::mem::replace(&mut self.upgrade, Upgrade::None);
        match &mut upgrade {
            Upgrade::None => return upgrade,
            Upgrade::WebSocket(transaction) | Upgrade::Http2(transaction) => {
                transaction.end_request(at, false, sink);
            }
            Upgrade::Opaque => {}
        }
        self.close(at_ns, at, sink);
        upgrade
    }

    pub(crate) fn next_exchange(&self) -> u64 {
        self.next_exchange
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let transactions = self.queue.iter().chain(&self.unasked);
        self.egress.held.capacity()
            + self.ingress.held.capacity()
            + transactions.map(Transaction::memory_bytes).sum::<usize>()
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        self.queue.iter().chain(&self.unasked).map(Transaction::retained_bytes).sum()
    }

    pub(crate) fn open(&self) -> Option<OpenRequest<'_>> {
        self.queue.iter().find_map(Transaction::open)
    }

    /// Returns the position of the first byte of an incomplete head.
    pub(crate) fn partial_head(&self) -> Option<u64> {
        let within = self.egress.state == State::Head && !self.egress.held.is_empty();
        within.then_some(self.egress.start)
    }

    /// Takes the next bytes of a direction. Returns the number of bytes used: fewer than all only
    /// after an upgrade.
    pub(crate) fn data(
        &mut self,
        at_ns: u64,
        direction: Direction,
        start: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            let at = start + used as u64;
            let step = match direction {
                Direction::Egress => self.egress(at_ns, at, rest, context, sink),
                Direction::Ingress => self.ingress(at_ns, at, rest, context, sink),
            };
            used += step;
            if !matches!(self.upgrade, Upgrade::None) {
                break;
            }
        }
        for transaction in &mut self.queue {
            transaction.refresh_if_changed();
        }
        used
    }

    fn egress(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        match self.egress.state {
            State::Head => self.request_head(at_ns, at, bytes, context, sink),
            State::Lost => self.find_request(at_ns, at, bytes),
            State::Tunnel => bytes.len(),
            State::Body(framing) => {
                let Some(transaction) = self.queue.back_mut() else {
                    self.egress.state = State::Lost;
                    return 0;
                };
                let (used, next) = framing.take(bytes, |data| transaction.request_data(data));
                transaction.call_mut().request_bytes += used as u64;
                match next {
                    Next::More(framing) => self.egress.state = State::Body(framing),
                    Next::Ended => {
                        self.egress.state = State::Head;
                        transaction.end_request(at + used as u64, true, sink);
                        self.reap();
                    }
                    Next::Broken => {
                        transaction.unreadable(Unreadable::Body);
                        transaction.end_request(at + used as u64, false, sink);
                        self.egress.state = State::Lost;
                    }
                }
                used
            }
        }
    }

    fn request_head(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        let side = &mut self.egress;
        if side.held.is_empty() {
            // A client may send an extra empty line (RFC 9112 §2.2).
            if let Some(b'\r' | b'\n') = bytes.first() {
                return 1;
            }
            (side.start, side.at_ns) = (at, at_ns);
        }
        let start = side.start;
        let mut transaction = Transaction::new(self.next_exchange, side.at_ns, start);
        let (used, head) = side.head(bytes);
        let Some(head) = head else { return used };
        let mut names = Head::default();
        let parsed = head.and_then(|head| {
            parse_request(head, &context.wanted).ok_or_else(|| {
                names = salvage(head);
                Unreadable::Head
            })
        });
        side.held.clear();
        let end = at + used as u64;
        self.next_exchange += 1;
        self.make_room(at_ns, at, sink);
        transaction.call_mut().request_bytes = end - start;
        match parsed {
            Ok((head, framing)) => {
                transaction.request_head(&head, context);
                match framing {
                    Some(framing) => self.egress.state = State::Body(framing),
                    None => transaction.end_request(end, true, sink),
                }
            }
            Err(reason) => {
                transaction.unreadable(reason);
                names.partial = true;
                transaction.request_head(&names, context);
                transaction.end_request(end, false, sink);
                self.egress.state = State::Lost;
            }
        }
        self.queue.push_back(transaction);
        used
    }

    /// Ends the oldest requests, unlikely to be answered any more, to make room.
    fn make_room(&mut self, at_ns: u64, at: u64, sink: &mut dyn Sink) {
        while self.queue.len() >= Self::QUEUE_LIMIT || self.unpaired && !self.queue.is_empty() {
            let Some(mut oldest) = self.queue.pop_front() else { return };
            oldest.unreadable(Unreadable::Gap);
            oldest.end_request(at, false, sink);
            oldest.end_response(at_ns, false, sink);
        }
    }

    /// Finds the next unmistakable request line after a gap.
    fn find_request(&mut self, at_ns: u64, at: u64, bytes: &[u8]) -> usize {
        self.egress.find(at_ns, at, bytes, |line| {
            is_request_start(line) && memmem::find(line, b" HTTP/1.").is_some()
        })
    }

    fn find_response(&mut self, at_ns: u64, at: u64, bytes: &[u8]) -> usize {
        self.ingress.find(at_ns, at, bytes, |line| {
            let status = line.strip_prefix(b"HTTP/1.0 ").or(line.strip_prefix(b"HTTP/1.1 "));
            status.is_some_and(|rest| {
                matches!(rest, [a, b, c, b' ' | b'\r', ..] if [a, b, c].iter().all(|it| it.is_ascii_digit()))
            })
        })
    }

    fn ingress(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        match self.ingress.state {
            State::Head => self.response_head(at_ns, bytes, context, sink),
            State::Lost => self.find_response(at_ns, at, bytes),
            State::Tunnel => bytes.len(),
            State::Body(framing) => {
                let Some(transaction) = self.queue.front_mut() else {
                    self.ingress.state = State::Lost;
                    return 0;
                };
                let (used, next) =
                    framing.take(bytes, |data| transaction.response_data(at_ns, data));
                transaction.call_mut().response_bytes += used as u64;
                match next {
                    Next::More(framing) => self.ingress.state = State::Body(framing),
                    Next::Ended => {
                        self.ingress.state = State::Head;
                        transaction.end_response(at_ns, true, sink);
                        self.reap();
                    }
                    Next::Broken => {
                        transaction.unreadable(Unreadable::Body);
                        transaction.end_response(at_ns, false, sink);
                        self.ingress.state = State::Lost;
                        self.reap();
                    }
                }
                used
            }
        }
    }

    fn response_head(
        &mut self,
        at_ns: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        let (used, head) = self.ingress.head(bytes);
        let Some(head) = head else { return used };
        let len = head.map_or(0, <[u8]>::len) as u64;
        let parsed = head.and_then(|head| parse_response(head).ok_or(Unreadable::Head));
        self.ingress.held.clear();
        self.unpaired = false;
        // A request with an ended response has no second response: the response is unasked.
        if self.queue.front().is_none_or(Transaction::response_ended) {
            let mut unasked = Transaction::unasked(at_ns);
            unasked.request_head(&Head { partial: true, ..Head::default() }, context);
            self.queue.push_front(unasked);
        }
        let Some(transaction) = self.queue.front_mut() else { return used };
        transaction.call_mut().response_bytes += len;
        let (head, framing) = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => {
                transaction.unreadable(reason);
                transaction.end_response(at_ns, false, sink);
                self.ingress.state = State::Lost;
                self.reap();
                return used;
            }
        };
        let status = head.status.unwrap_or(0);
        if (100..200).contains(&status) && status != 101 {
            return used;
        }
        transaction.response_head(&head, at_ns);
        let method = transaction.call().method.clone();
        if status == 101 || method.as_deref() == Some("CONNECT") && (200..300).contains(&status) {
            self.upgraded(at_ns, &head, sink);
            return used;
        }
        let bodiless = matches!(status, 204 | 304) || method.as_deref() == Some("HEAD");
        match framing {
            _ if bodiless => transaction.end_response(at_ns, true, sink),
            Framing::Length(0) => transaction.end_response(at_ns, true, sink),
            framing => self.ingress.state = State::Body(framing),
        }
        self.reap();
        used
    }

    fn upgraded(&mut self, at_ns: u64, head: &Head, sink: &mut dyn Sink) {
        self.ingress.state = State::Tunnel;
        self.egress.state = State::Tunnel;
        let Some(mut transaction) = self.queue.pop_front() else { return };
        let protocol = head.upgrade.as_deref().unwrap_or_default().to_ascii_lowercase();
        self.upgrade = match protocol.as_str() {
            "websocket" => {
                transaction.websocket_deflate = head.websocket_deflate;
                Upgrade::WebSocket(Box::new(transaction))
            }
            "h2c" => Upgrade::Http2(Box::new(transaction)),
            _ => {
                transaction.end_response(at_ns, true, sink);
                self.queue.push_front(transaction);
                Upgrade::Opaque
            }
        };
    }

    /// Drops finished exchanges; keeps inference responses without a seen request.
    fn reap(&mut self) {
        while let Some(first) = self.queue.front() {
            if !(first.request_ended() && first.response_ended()) {
                return;
            }
            let Some(over) = self.queue.pop_front() else { return };
            let wanted = !over.call().request_seen && over.call().kind == Kind::Inference;
            if wanted && self.midway && self.unasked.len() < Self::UNASKED_LIMIT {
                self.unasked.push(over);
            }
        }
    }

    /// Takes a gap in a direction, before position `at`.
    pub(crate) fn gap(
        &mut self,
        at_ns: u64,
        direction: Direction,
        at: u64,
        bytes: Option<u64>,
        context: &Context,
        sink: &mut dyn Sink,
    ) {
        match direction {
            Direction::Egress => {
                let within = self.egress.skip(bytes);
                let begun = self.queue.back_mut().filter(|it| !it.request_ended());
                match (within, begun) {
                    (true, Some(transaction)) => transaction.request_gap(bytes),
                    (_, Some(transaction)) => {
                        transaction.missing(bytes);
                        transaction.end_request(at, false, sink);
                    }
                    (true, None) => {}
                    (false, None) => {
                        let start = at.saturating_sub(bytes.unwrap_or(0));
                        let exchange = self.next_exchange;
                        self.next_exchange += 1;
                        Transaction::unread(exchange, at_ns, start, context)
                            .tell_unread(at_ns, at, sink);
                    }
                }
                self.end_at_gap(Direction::Egress, at_ns, at, sink);
            }
            Direction::Ingress => {
                let within = self.ingress.skip(bytes);
                if let Some(transaction) = self.queue.front_mut() {
                    if within {
                        transaction.response_gap(bytes);
                    } else {
                        self.unpaired = true;
                        self.midway = true;
                        transaction.missing(bytes);
                        if transaction.response_began() {
                            transaction.end_response(at_ns, false, sink);
                        }
                    }
                }
                self.end_at_gap(Direction::Ingress, at_ns, at, sink);
            }
        }
        self.reap();
    }

    /// Ends the body if a gap ends exactly at the end of the body.
    fn end_at_gap(&mut self, direction: Direction, at_ns: u64, at: u64, sink: &mut dyn Sink) {
        let ended = State::Body(Framing::Length(0));
        if direction == Direction::Egress && self.egress.state == ended {
            self.egress.state = State::Head;
            if let Some(transaction) = self.queue.back_mut() {
                transaction.end_request(at, true, sink);
            }
        } else if direction == Direction::Ingress && self.ingress.state == ended {
            self.ingress.state = State::Head;
            if let Some(transaction) = self.queue.front_mut() {
                transaction.end_response(at_ns, true, sink);
            }
        }
    }

    /// Ends the connection, at position `at` of egress.
    pub(crate) fn close(&mut self, at_ns: u64, at: u64, sink: &mut dyn Sink) {
        if self.partial_head().is_some() {
            let mut transaction =
                Transaction::new(self.next_exchange, self.egress.at_ns, self.egress.start);
            self.next_exchange += 1;
            transaction.end_request(at, false, sink);
            self.queue.push_back(transaction);
        }
        let by_close = self.ingress.state == State::Body(Framing::Close);
        for (index, transaction) in self.queue.iter_mut().enumerate() {
            transaction.end_request(at, false, sink);
            transaction.end_response(at_ns, by_close && index == 0, sink);
        }
        self.reap();
        for mut transaction in self.unasked.drain(..) {
            transaction.number(self.next_exchange);
            self.next_exchange += 1;
            transaction.report_unasked(at, sink);
        }
    }
}

impl Side {
    /// Skips missing bytes. Returns whether all missing bytes were within the body.
    fn skip(&mut self, bytes: Option<u64>) -> bool {
        let within = match (&mut self.state, bytes) {
            (State::Body(Framing::Length(left)), Some(bytes)) if bytes <= *left => {
                *left -= bytes;
                true
            }
            (State::Body(Framing::Chunked(Chunk::Data(left), _)), Some(bytes)) if bytes < *left => {
                *left -= bytes;
                true
            }
            (State::Body(Framing::Close), _) => true,
            (State::Tunnel, _) => return true,
            _ => false,
        };
        if !within {
            self.state = State::Lost;
            self.held.clear();
            self.searched = 0;
        }
        within
    }
}

enum Next {
    More(Framing),
    Ended,
    Broken,
}

impl Framing {
    /// Takes bytes of the body. Returns the number of bytes used.
    fn take(self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> (usize, Next) {
        match self {
            Self::Close => {
                data(bytes);
                (bytes.len(), Next::More(self))
            }
            Self::Length(left) => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                data(bytes.get(..len).unwrap_or_default());
                match left - len as u64 {
                    0 => (len, Next::Ended),
                    left => (len, Next::More(Self::Length(left))),
                }
            }
            Self::Chunked(mut chunk, strict) => {
                let mut used = 0;
                while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
                    let (step, next) = chunk.take(rest, strict, &mut data);
                    used += step;
                    match next {
                        Next::More(Self::Chunked(next, _)) => chunk = next,
                        other => return (used, other),
                    }
                }
                (used, Next::More(Self::Chunked(chunk, strict)))
            }
        }
    }
}

impl Chunk {
    const START: Self = Self::Size { size: 0, digits: 0, extension: Extension::None, cr: false };

    fn take(self, bytes: &[u8], strict: bool, data: &mut impl FnMut(&[u8])) -> (usize, Next) {
        let more = |chunk| Next::More(Framing::Chunked(chunk, strict));
        let Some(&byte) = bytes.first() else { return (0, more(self)) };
        // A line end needs both bytes (RFC 9112 §7.1): a lone byte can be read in two ways.
        let astray = |cr: bool| strict && cr != (byte == b'\n');
        match self {
            Self::Data(left) => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                data(bytes.get(..len).unwrap_or_default());
                let left = left - len as u64;
                (len, more(if left == 0 { Self::DataEnd { cr: false } } else { Self::Data(left) }))
            }
            Self::DataEnd { cr } => match byte {
                _ if astray(cr) => (0, Next::Broken),
                b'\r' => (1, more(Self::DataEnd { cr: true })),
                b'\n' => (1, more(Self::START)),
                _ => (0, Next::Broken),
            },
            Self::Size { cr, .. } if astray(cr) => (0, Next::Broken),
            Self::Size { size, digits, extension, .. } => {
                let begun = extension != Extension::None;
                let digit = char::from(byte).to_digit(16).filter(|_| !begun);
                match (digit, byte) {
                    (Some(digit), _) if digits < 15 => {
                        let size = size << 4 | u64::from(digit);
                        let digits = digits + 1;
                        (1, more(Self::Size { size, digits, extension, cr: false }))
                    }
                    (None, b'\n') if digits == 0 => (0, Next::Broken),
                    (None, b'\n') if size == 0 => {
                        (1, more(Self::Trailer { line: 0, cr: false, named: false }))
                    }
                    (None, b'\n') => (1, more(Self::Data(size))),
                    (None, b'\r') => (
                        1,
                        more(Self::Size { size, digits, extension: Extension::Begun, cr: true }),
                    ),
                    (None, byte) => match extension.after(byte, strict) {
                        Some(extension) => {
                            (1, more(Self::Size { size, digits, extension, cr: false }))
                        }
                        None => (0, Next::Broken),
                    },
                    _ => (0, Next::Broken),
                }
            }
            Self::Trailer { cr, .. } if astray(cr) => (0, Next::Broken),
            Self::Trailer { line, named, .. } => match byte {
                b'\n' if line == 0 => (1, Next::Ended),
                b'\n' if strict && !named => (0, Next::Broken),
                b'\n' => (1, more(Self::Trailer { line: 0, cr: false, named: false })),
                b'\r' => (1, more(Self::Trailer { line, cr: true, named })),
                _ if strict && !named && !(is_token(byte) || byte == b':' && line > 0) => {
                    (0, Next::Broken)
                }
                _ if strict && byte.is_ascii_control() && byte != b'\t' => (0, Next::Broken),
                _ => {
                    let named = named || byte == b':';
                    (1, more(Self::Trailer { line: line + 1, cr: false, named }))
                }
            },
        }
    }
}

impl Extension {
    /// Returns the state after another byte of the line, line ends aside. `None`: not in the
    /// grammar ([RFC 9112 §7.1.1][rfc]). Quoted values are left out, because readers disagree on
    /// the end of a line within a quoted value.
    ///
    /// [rfc]: https://www.rfc-editor.org/rfc/rfc9112#section-7.1.1
    fn after(self, byte: u8, strict: bool) -> Option<Self> {
        match (self, byte) {
            (Self::None | Self::Blank, b' ' | b'\t') => Some(Self::Blank),
            (_, b';') | (Self::Begun, b' ' | b'\t' | b'=') => Some(Self::Begun),
            (Self::Begun, _) if is_token(byte) => Some(Self::Begun),
            (Self::Blank | Self::Begun, _) if !strict => Some(Self::Begun),
            _ => None,
        }
    }
}

/// Returns whether a byte may be part of a token ([RFC 9110
/// §5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2)).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Maximum number of fields in a head.
const FIELD_LIMIT: usize = 1_000;

/// Number of fields sufficient for most heads: more room is allocated only if needed.
const USUAL_FIELDS: usize = 64;

fn parse_request(bytes: &[u8], wanted: &Arc<Wanted>) -> Option<(Head, Option<Framing>)> {
    let mut fields = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    match request_of(bytes, &mut fields, wanted) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut fields = vec![httparse::EMPTY_HEADER; FIELD_LIMIT];
            request_of(bytes, &mut fields, wanted).ok()?
        }
        read => read.ok()?,
    }
}

fn request_of<'b>(
    bytes: &'b [u8],
    fields: &mut [httparse::Header<'b>],
    wanted: &Arc<Wanted>,
) -> Result<Option<(Head, Option<Framing>)>, httparse::Error> {
    let mut request = httparse::Request::new(fields);
    if !request.parse(bytes)?.is_complete() {
        return Ok(None);
    }
    let mut head = Head {
        method: request.method.map(str::to_owned),
        target: request.path.map(str::to_owned),
        ..Head::wanting(wanted)
    };
    let Some(framing) = read_fields(&mut head, request.headers, true) else { return Ok(None) };
    let chunked = matches!(framing, Some(Framing::Chunked(..)));
    head.malformed |= has_bare_line_end(bytes) || chunked && request.version != Some(1);
    let framing = framing.filter(|framing| *framing != Framing::Length(0));
    head.has_body = framing.is_some();
    Ok(Some((head, framing)))
}

/// Returns whether a line ends without carriage return: not every server accepts a bare line feed.
fn has_bare_line_end(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes)
        .any(|at| at.checked_sub(1).and_then(|before| bytes.get(before)) != Some(&b'\r'))
}

/// Salvages the addressed host from an unreadable head.
fn salvage(bytes: &[u8]) -> Head {
    let mut head = Head::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(name) = line.get(..5).filter(|name| name.eq_ignore_ascii_case(b"host:")) {
            head.field(b"host", line.get(name.len()..).unwrap_or_default());
        }
    }
    head
}

fn parse_response(bytes: &[u8]) -> Option<(Head, Framing)> {
    let mut fields = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    match response_of(bytes, &mut fields) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut fields = vec![httparse::EMPTY_HEADER; FIELD_LIMIT];
            response_of(bytes, &mut fields).ok()?
        }
        read => read.ok()?,
    }
}

fn response_of<'b>(
    bytes: &'b [u8],
    fields: &mut [httparse::Header<'b>],
) -> Result<Option<(Head, Framing)>, httparse::Error> {
    let mut response = httparse::Response::new(fields);
    let read = httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .parse_response(&mut response, bytes)?;
    if !read.is_complete() {
        return Ok(None);
    }
    let mut head = Head { status: response.code, ..Head::default() };
    let framing = read_fields(&mut head, response.headers, false);
    Ok(framing.map(|framing| (head, framing.unwrap_or(Framing::Close))))
}

/// Reads the fields; returns the framing of the body, if given. `None`: the fields contradict each
/// other, or a request departs from the grammar.
#[expect(clippy::option_option, reason = "contradiction and silence are different things")]
fn read_fields(
    head: &mut Head,
    fields: &[httparse::Header<'_>],
    strict: bool,
) -> Option<Option<Framing>> {
    let (mut length, mut chunked, mut hosts) = (None, false, 0);
    for field in fields {
        head.field(field.name.as_bytes(), field.value);
        hosts += usize::from(field.name.eq_ignore_ascii_case("host"));
        if field.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value).ok()?;
            for part in text.split(',') {
                let part = part.trim_matches([' ', '\t']);
                let digits = part.bytes().all(|byte| byte.is_ascii_digit());
                let value: u64 = part.parse().ok().filter(|_| digits)?;
                if length.replace(value).is_some_and(|other| strict || other != value) {
                    return None;
                }
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            let lower = field.value.to_ascii_lowercase();
            let bare = lower.iter().filter(|byte| !matches!(byte, b' ' | b'\t'));
            if strict && (chunked || !bare.eq(b"chunked")) {
                return None;
            }
            chunked = memmem::find(&lower, b"chunked").is_some();
        }
    }
    if strict && (chunked && length.is_some() || hosts > 1) {
        return None;
    }
    let by_chunks = Framing::Chunked(Chunk::START, strict);
    Some(if chunked { Some(by_chunks) } else { length.map(Framing::Length) })
}

/// Methods accepted at the start of a request.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"PATCH ",
    b"HEAD ",
    b"OPTIONS ",
    b"CONNECT ",
    b"TRACE ",
];

/// Returns whether `bytes` begin with a method.
pub(crate) fn is_request_start(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// Returns whether further bytes may complete `bytes` to the start of a request.
pub(crate) fn may_start_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| method.starts_with(bytes))
}
