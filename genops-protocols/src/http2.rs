//! HTTP/2 decoder ([RFC 9113][rfc]): frames, header blocks, interleaved streams; from the preface
//! on or joined midway.
//!
//! A gap inside the payload of a DATA frame is a gap in the body. Any other gap loses the place:
//! reading resumes at the next nine bytes plausible only as a frame head, the header tables are
//! forgotten, and every body open in the direction has a gap.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc9113

mod hpack;

use std::collections::BTreeMap;

use crate::call::{Direction, Kind, OpenRequest, Sink, Unreadable};
use crate::exchange::{Context, Head, Transaction};

/// Connection preface of a client.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
/// Error code of a reset (RFC 9113 §7).
const REFUSED_STREAM: u32 = 7;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;

/// Head of a frame.
#[derive(Clone, Copy, Debug)]
struct FrameHead {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    const LEN: usize = 9;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Returns whether nine bytes are almost certainly the head of a frame.
pub(crate) fn plausible(bytes: &[u8; 9]) -> bool {
    let FrameHead { len, kind, flags, stream } = FrameHead::parse(bytes);
    let reserved = bytes.get(5).is_some_and(|byte| byte & 0x80 != 0);
    let (flags_fit, len_fits) = match kind {
        DATA => (flags & !(END_STREAM | PADDED) == 0, len <= 16_384),
        HEADERS => (
            flags & !(END_STREAM | END_HEADERS | PADDED | PRIORITIZED) == 0,
            (1..=16_384).contains(&len),
        ),
        PRIORITY => (true, len == 5),
        SETTINGS => (flags & !1 == 0, len % 6 == 0 && len <= 96 && (flags == 0 || len == 0)),
        PUSH_PROMISE => (flags & !(END_HEADERS | PADDED) == 0, (4..=16_384).contains(&len)),
        PING => (flags & !1 == 0, len == 8),
        GOAWAY => (true, (8..=1024).contains(&len)),
        RST_STREAM | WINDOW_UPDATE => (true, len == 4),
        CONTINUATION => (flags & !END_HEADERS == 0, len <= 16_384),
        _ => (false, false),
    };
    let stream_fits = match kind {
        SETTINGS | PING | GOAWAY => stream == 0,
        WINDOW_UPDATE => stream < 1 << 20,
        _ => stream != 0 && stream < 1 << 20,
    };
    flags_fit && len_fits && stream_fits && !reserved
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within the client's preface: number of bytes seen.
    Preface(usize),
    Frame,
    /// Within a frame: head, bytes left, padding among the bytes left.
    Payload {
        frame: FrameHead,
        left: u32,
        padding: u32,
        part: Part,
    },
    /// Place lost: searching for the head of a frame.
    Lost,
}

/// Next part of a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    PadLength,
    /// Priority or promised stream: bytes left.
    Fixed(u32),
    Content,
}

/// A header block being gathered.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    promise: bool,
    start: u64,
    at_ns: u64,
    /// Longer than the limit.
    overlong: bool,
}

#[derive(Debug)]
struct Side {
    state: State,
    /// Bytes of an unfinished frame head, or payload of an unfinished small frame.
    held: Vec<u8>,
    hpack: hpack::Decoder,
    fragments: Vec<u8>,
    block: Option<Block>,
    frame_start: u64,
    frame_at_ns: u64,
}

impl Side {
    /// Longest header block, in bytes.
    const BLOCK_LIMIT: usize = 64 << 10;
    /// Longest payload gathered, in bytes: SETTINGS and the like.
    const SMALL_LIMIT: usize = 256;

    fn new(state: State, from_start: bool) -> Self {
        Self {
            state,
            held: Vec::new(),
            hpack: hpack::Decoder::new(from_start),
            fragments: Vec::new(),
            block: None,
            frame_start: 0,
            frame_at_ns: 0,
        }
    }

    fn memory_bytes(&self) -> usize {
        self.held.capacity() + self.fragments.capacity() + self.hpack.memory_bytes()
    }
}

/// Role of the host on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Decoder of both directions of a connection.
#[derive(Debug)]
pub(crate) struct Http2 {
    egress: Side,
    ingress: Side,
    streams: BTreeMap<u32, Transaction>,
    next_exchange: u64,
    /// Seen from the start: the request of every stream was seen.
    complete: bool,
    /// The client's preface was seen: the host is the client, whatever a block says.
    settled: bool,
    /// A block of egress held a request: the host is the client.
    asks: bool,
    unasked: Vec<Transaction>,
    role: Role,
    /// Position of the first byte of egress not sent by a client.
    misread_from: u64,
}

impl Http2 {
    /// Maximum number of open streams; the oldest gives way.
    const STREAM_LIMIT: usize = 256;
    /// Maximum number of responses without request kept until the connection ends.
    const UNASKED_LIMIT: usize = 16;

    pub(crate) fn new(from_start: bool) -> Self {
        let (egress, ingress) =
            if from_start { (State::Preface(0), State::Frame) } else { (State::Lost, State::Lost) };
        Self {
            egress: Side::new(egress, from_start),
            ingress: Side::new(ingress, from_start),
            streams: BTreeMap::new(),
            next_exchange: 0,
            complete: from_start,
            settled: false,
            asks: false,
            unasked: Vec::new(),
            role: Role::Client,
            misread_from: 0,
        }
    }

    /// Continues after `Upgrade: h2c`: the upgraded exchange becomes stream 1.
    pub(crate) fn upgraded(transaction: Transaction, next_exchange: u64) -> Self {
        let mut it = Self::new(true);
        it.next_exchange = next_exchange;
        it.streams.insert(1, transaction);
        it
    }

    pub(crate) fn next_exchange(&self) -> u64 {
        self.next_exchange
    }

    /// Returns the position of the first byte of egress not sent by an HTTP/2 client, once egress
    /// has shown the host to be no client.
    pub(crate) fn misread_from(&self) -> u64 {
        self.misread_from
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let transactions = self.streams.values().chain(&self.unasked);
        self.egress.memory_bytes()
            + self.ingress.memory_bytes()
            + transactions.map(Transaction::memory_bytes).sum::<usize>()
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        self.streams.values().chain(&self.unasked).map(Transaction::retained_bytes).sum()
    }

    /// Returns the oldest open request. `None` if an unfinished frame began earlier.
    pub(crate) fn open(&self) -> Option<OpenRequest<'_>> {
        let open = self.streams.values().filter_map(Transaction::open);
        let first = open.min_by_key(|request| request.start)?;
        match self.partial_frame() {
            Some(start) if start < first.start => None,
            _ => Some(first),
        }
    }

    /// Returns the position of an unfinished frame of egress, able to begin a request.
    pub(crate) fn partial_frame(&self) -> Option<u64> {
        let side = &self.egress;
        if let Some(block) = &side.block {
            return Some(block.start);
        }
        match side.state {
            State::Preface(_) | State::Lost => None,
            State::Frame => (!side.held.is_empty()).then_some(side.frame_start),
            State::Payload { frame, .. } => {
                matches!(frame.kind, HEADERS | CONTINUATION).then_some(side.frame_start)
            }
        }
    }

    /// Returns the position of an unfinished header block of egress.
    pub(crate) fn partial_block(&self) -> Option<u64> {
        self.egress.block.as_ref().map(|block| block.start)
    }

    /// Takes the next bytes of a direction. Returns the role of the host.
    pub(crate) fn data(
        &mut self,
        at_ns: u64,
        direction: Direction,
        start: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> Role {
        let mut used = 0;
        let mut input = Input { at_ns, direction, at: start, context, sink };
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            input.at = start + used as u64;
            used += self.step(rest, &mut input);
            if self.role == Role::Server {
                return self.role;
            }
        }
        for transaction in self.streams.values_mut() {
            transaction.refresh_if_changed();
        }
        self.role
    }

    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Egress => &mut self.egress,
            Direction::Ingress => &mut self.ingress,
        }
    }

    fn step(&mut self, bytes: &[u8], input: &mut Input<'_>) -> usize {
        let side = self.side(input.direction);
        match side.state {
            State::Preface(seen) => {
                let rest = PREFACE.get(seen..).unwrap_or_default();
                let len = rest.len().min(bytes.len());
                if bytes.get(..len) != rest.get(..len) {
                    self.role = Role::Server;
                    self.misread_from = input.at.saturating_sub(seen as u64);
                    return bytes.len();
                }
                side.state =
                    if len == rest.len() { State::Frame } else { State::Preface(seen + len) };
                self.settled |= len == rest.len() && input.direction == Direction::Egress;
                len
            }
            State::Frame => self.frame_head(bytes, input),
            State::Lost => self.find_frame(bytes, input),
            State::Payload { frame, left, padding, part } => {
                self.payload(frame, left, padding, part, bytes, input)
            }
        }
    }

    fn frame_head(&mut self, bytes: &[u8], input: &mut Input<'_>) -> usize {
        let side = self.side(input.direction);
        if side.held.is_empty() {
            (side.frame_start, side.frame_at_ns) = (input.at, input.at_ns);
        }
        let missing = FrameHead::LEN.saturating_sub(side.held.len());
        let taken = bytes.get(..missing).unwrap_or(bytes);
        side.held.extend_from_slice(taken);
        if let Some(head) = side.held.first_chunk() {
            let head = FrameHead::parse(head);
            side.held.clear();
            self.begin_frame(head, input);
        }
        taken.len()
    }

    /// Finds the next unmistakable head of a frame after a gap.
    fn find_frame(&mut self, bytes: &[u8], input: &mut Input<'_>) -> usize {
        let side = self.side(input.direction);
        let Some(&byte) = bytes.first() else { return 0 };
        if side.held.is_empty() {
            side.frame_at_ns = input.at_ns;
        }
        side.held.push(byte);
        if let Some(head) = side.held.first_chunk() {
            let bare = FrameHead::parse(head);
            if plausible(head) && bare.kind != CONTINUATION {
                side.frame_start = (input.at + 1).saturating_sub(FrameHead::LEN as u64);
                side.held.clear();
                self.begin_frame(bare, input);
            } else {
                side.held.remove(0);
            }
        }
        1
    }

    fn begin_frame(&mut self, frame: FrameHead, input: &mut Input<'_>) {
        let side = self.side(input.direction);
        let fixed = match frame.kind {
            HEADERS if frame.has(PRIORITIZED) => 5,
            PUSH_PROMISE => 4,
            _ => 0,
        };
        let padded = matches!(frame.kind, DATA | HEADERS | PUSH_PROMISE) && frame.has(PADDED);
        let part = match (padded, fixed) {
            (true, _) => Part::PadLength,
            (false, 0) => Part::Content,
            (false, fixed) => Part::Fixed(fixed),
        };
        if matches!(frame.kind, HEADERS | PUSH_PROMISE) {
            side.fragments.clear();
            side.block = Some(Block {
                stream: frame.stream,
                end_stream: frame.kind == HEADERS && frame.has(END_STREAM),
                promise: frame.kind == PUSH_PROMISE,
                start: side.frame_start,
                at_ns: side.frame_at_ns,
                overlong: false,
            });
        }
        side.state = State::Payload { frame, left: frame.len, padding: 0, part };
        self.count(frame.stream, input.direction, FrameHead::LEN as u64);
        if frame.len == 0 {
            self.end_frame(frame, input);
        }
    }

    fn count(&mut self, stream: u32, direction: Direction, bytes: u64) {
        if let Some(transaction) = self.streams.get_mut(&stream) {
            let call = transaction.call_mut();
            match direction {
                Direction::Egress => call.request_bytes += bytes,
                Direction::Ingress => call.response_bytes += bytes,
            }
        }
    }

    fn payload(
        &mut self,
        frame: FrameHead,
        left: u32,
        padding: u32,
        part: Part,
        bytes: &[u8],
        input: &mut Input<'_>,
    ) -> usize {
        let next;
        let used: u32 = match part {
            Part::PadLength => {
                let length = bytes.first().copied().map_or(0, u32::from);
                let fixed = match frame.kind {
                    HEADERS if frame.has(PRIORITIZED) => Part::Fixed(5),
                    PUSH_PROMISE => Part::Fixed(4),
                    _ => Part::Content,
                };
                next = (left - 1, length.min(left - 1), fixed);
                1
            }
            Part::Fixed(fixed) => {
                next = (
                    left - 1,
                    padding,
                    if fixed > 1 { Part::Fixed(fixed - 1) } else { Part::Content },
                );
                1
            }
            Part::Content => {
                let content = left.saturating_sub(padding);
                let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                if content == 0 {
                    let skipped = left.min(available);
                    next = (left - skipped, left - skipped, part);
                    skipped
                } else {
                    let len = content.min(available);
                    let piece = bytes.get(..len as usize).unwrap_or(bytes);
                    self.content(frame, piece, input);
                    next = (left - len, padding, part);
                    len
                }
            }
        };
        self.count(frame.stream, input.direction, u64::from(used));
        let (left, padding, part) = next;
        self.side(input.direction).state = State::Payload { frame, left, padding, part };
        if left == 0 {
            self.end_frame(frame, input);
        }
        used as usize
    }

    fn content(&mut self, frame: FrameHead, piece: &[u8], input: &mut Input<'_>) {
        match frame.kind {
            DATA => {
                let Some(transaction) = self.streams.get_mut(&frame.stream) else { return };
                match input.direction {
                    Direction::Egress => transaction.request_data(piece),
                    Direction::Ingress => transaction.response_data(input.at_ns, piece),
                }
            }
            HEADERS | CONTINUATION | PUSH_PROMISE => {
                let side = self.side(input.direction);
                let Some(block) = &mut side.block else { return };
                if side.fragments.len() + piece.len() > Side::BLOCK_LIMIT {
                    block.overlong = true;
                } else {
                    side.fragments.extend_from_slice(piece);
                }
            }
            SETTINGS | RST_STREAM | GOAWAY => {
                let side = self.side(input.direction);
                let room = Side::SMALL_LIMIT.saturating_sub(side.held.len());
                side.held.extend_from_slice(piece.get(..room).unwrap_or(piece));
            }
            _ => {}
        }
    }

    fn end_frame(&mut self, frame: FrameHead, input: &mut Input<'_>) {
        let side = self.side(input.direction);
        side.state = State::Frame;
        let frame_end = side.frame_start + FrameHead::LEN as u64 + u64::from(frame.len);
        let small = std::mem::take(&mut side.held);
        match frame.kind {
            DATA if frame.has(END_STREAM) => self.end_stream(frame.stream, frame_end, input),
            HEADERS | CONTINUATION | PUSH_PROMISE if frame.has(END_HEADERS) => {
                self.end_block(frame_end, input);
            }
            RST_STREAM => {
                let code = small.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                self.reset(frame.stream, code == Some(REFUSED_STREAM), frame_end, input);
            }
            SETTINGS if !frame.has(1) => self.settings(&small, input.direction),
            GOAWAY if input.direction == Direction::Ingress => {
                let last = small.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                self.go_away(last.unwrap_or(u32::MAX) & 0x7fff_ffff, frame_end, input);
            }
            _ => {}
        }
    }

    /// Takes SETTINGS: the table size allowed by a side bounds the table of the other side.
    fn settings(&mut self, payload: &[u8], direction: Direction) {
        const HEADER_TABLE_SIZE: u16 = 1;
        for setting in payload.chunks_exact(6) {
            let (Some(name), Some(value)) = (setting.first_chunk(), setting.last_chunk()) else {
                continue;
            };
            if u16::from_be_bytes(*name) == HEADER_TABLE_SIZE {
                let other = match direction {
                    Direction::Egress => &mut self.ingress,
                    Direction::Ingress => &mut self.egress,
                };
                other.hpack.allow(u32::from_be_bytes(*value));
            }
        }
    }

    fn end_block(&mut self, end: u64, input: &mut Input<'_>) {
        let side = self.side(input.direction);
        let Some(block) = side.block.take() else { return };
        let mut head = match input.direction {
            Direction::Egress => Head::wanting(&input.context.wanted),
            Direction::Ingress => Head::default(),
        };
        let fragments = std::mem::take(&mut side.fragments);
        let decoded = if block.overlong {
            Err(hpack::Malformed)
        } else {
            let mut grammar = Grammar::default();
            let request = input.direction == Direction::Egress;
            let decoded = side.hpack.decode(&fragments, |name, value| match (name, value) {
                (Some(name), Some(value)) => {
                    grammar.field(name, value);
                    head.field(name, value);
                }
                _ => head.partial = true,
            });
            head.malformed |= grammar.broken;
            head.malformed |= request && head.method.is_some() && !grammar.is_whole(&head);
            decoded
        };
        side.fragments = fragments;
        side.fragments.clear();
        if decoded.is_err() {
            side.hpack.forget();
            head.partial = true;
        }
        if block.promise {
            return;
        }
        match input.direction {
            Direction::Egress => self.request_block(block, &head, decoded.is_ok(), end, input),
            Direction::Ingress => {
                self.response_block(block, &head, decoded.is_ok(), end, input);
            }
        }
        if block.end_stream {
            self.end_stream(block.stream, end, input);
        }
    }

    fn request_block(
        &mut self,
        block: Block,
        head: &Head,
        readable: bool,
        end: u64,
        input: &mut Input<'_>,
    ) {
        let answers = head.status.is_some();
        self.asks |= head.method.is_some() && !answers;
        if answers && head.method.is_none() && !self.settled && !self.asks {
            self.role = Role::Server;
            self.misread_from = block.start;
            return;
        }
        if let Some(transaction) = self.streams.get_mut(&block.stream) {
            let names = head.method.is_some() || head.target.is_some() || answers;
            let trailers = block.end_stream && !names && !head.malformed;
            if !trailers && !transaction.request_ended() && self.settled {
                transaction.doubt();
            }
            return;
        }
        self.make_room(end, input);
        let mut transaction = Transaction::new(self.next_exchange, block.at_ns, block.start);
        self.next_exchange += 1;
        transaction.call_mut().request_bytes = end - block.start;
        if !readable {
            transaction.unreadable(Unreadable::Head);
        }
        // If nothing is missing, an unknown field does not exist.
        let unknown = head.partial && self.complete;
        if answers || self.settled && (unknown || !head.partial && head.method.is_none()) {
            transaction.doubt();
        }
        transaction.request_head(head, input.context);
        if head.method.as_deref() == Some("CONNECT") && transaction.call().provider.is_some() {
            // The tunnelled data is not read, and may never end.
            transaction.unreadable(Unreadable::Head);
            transaction.end_request(end, false, input.sink);
        }
        self.streams.insert(block.stream, transaction);
    }

    fn response_block(
        &mut self,
        block: Block,
        head: &Head,
        readable: bool,
        end: u64,
        input: &mut Input<'_>,
    ) {
        if head.method.is_some() && head.status.is_none() {
            return; // of a client; only egress tells the role of the host
        }
        if !self.streams.contains_key(&block.stream) {
            if self.complete {
                return;
            }
            self.make_room(end, input);
            let mut unasked = Transaction::unasked(block.at_ns);
            unasked.request_head(&Head { partial: true, ..Head::default() }, input.context);
            self.streams.insert(block.stream, unasked);
        }
        let Some(transaction) = self.streams.get_mut(&block.stream) else { return };
        if transaction.response_began() {
            transaction.response_trailers(head);
            return;
        }
        if head.status.is_some_and(|status| (100..200).contains(&status)) && !block.end_stream {
            return;
        }
        if !readable {
            transaction.unreadable(Unreadable::Head);
        }
        transaction.response_head(head, input.at_ns);
        transaction.response_trailers(head);
    }

    /// Ends the oldest stream if too many are open.
    fn make_room(&mut self, end: u64, input: &mut Input<'_>) {
        if self.streams.len() < Self::STREAM_LIMIT {
            return;
        }
        if let Some((_, mut oldest)) = self.streams.pop_first() {
            oldest.unreadable(Unreadable::Gap);
            oldest.end_request(end, false, input.sink);
            oldest.end_response(input.at_ns, false, input.sink);
        }
    }

    fn end_stream(&mut self, stream: u32, end: u64, input: &mut Input<'_>) {
        let Some(transaction) = self.streams.get_mut(&stream) else { return };
        match input.direction {
            Direction::Egress => transaction.end_request(end, true, input.sink),
            Direction::Ingress => transaction.end_response(input.at_ns, true, input.sink),
        }
        self.reap(stream);
    }

    /// Ends a stream after a reset. `refused`: the code says nothing was done.
    fn reset(&mut self, stream: u32, refused: bool, end: u64, input: &mut Input<'_>) {
        let Some(mut transaction) = self.streams.remove(&stream) else { return };
        if refused && input.direction == Direction::Ingress && !transaction.response_began() {
            transaction.call_mut().unprocessed = true;
        }
        let end = match input.direction {
            Direction::Egress => end,
            Direction::Ingress => transaction.start(),
        };
        transaction.end_request(end, false, input.sink);
        transaction.end_response(input.at_ns, false, input.sink);
        self.keep_unasked(transaction);
    }

    /// Ends the streams past `last`: the server will answer none of the streams.
    fn go_away(&mut self, last: u32, end: u64, input: &mut Input<'_>) {
        let refused: Vec<u32> =
            self.streams.keys().copied().filter(|&stream| stream > last).collect();
        for stream in refused {
            self.reset(stream, true, end, input);
        }
    }

    fn reap(&mut self, stream: u32) {
        let over = self
            .streams
            .get(&stream)
            .is_some_and(|transaction| transaction.request_ended() && transaction.response_ended());
        if over && let Some(transaction) = self.streams.remove(&stream) {
            self.keep_unasked(transaction);
        }
    }

    fn keep_unasked(&mut self, transaction: Transaction) {
        let call = transaction.call();
        let wanted = !call.request_seen && call.kind == Kind::Inference;
        if wanted && self.unasked.len() < Self::UNASKED_LIMIT {
            self.unasked.push(transaction);
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
        let mut input = Input { at_ns, direction, at, context, sink };
        if let State::Payload { frame, left, padding, part: Part::Content } =
            self.side(direction).state
            && frame.kind == DATA
            && let Some(bytes) = bytes.and_then(|bytes| u32::try_from(bytes).ok())
            && bytes <= left - padding
        {
            if let Some(transaction) = self.streams.get_mut(&frame.stream) {
                match direction {
                    Direction::Egress => transaction.request_gap(Some(u64::from(bytes))),
                    Direction::Ingress => transaction.response_gap(Some(u64::from(bytes))),
                }
            }
            let left = left - bytes;
            self.side(direction).state =
                State::Payload { frame, left, padding, part: Part::Content };
            if left == 0 {
                self.end_frame(frame, &mut input);
            }
            return;
        }
        let side = self.side(direction);
        side.state = State::Lost;
        side.held.clear();
        side.fragments.clear();
        side.block = None;
        side.hpack.forget();
        self.complete = false;
        for transaction in self.streams.values_mut() {
            match direction {
                Direction::Egress if !transaction.request_ended() => transaction.request_gap(None),
                Direction::Ingress if !transaction.response_ended() => {
                    transaction.response_gap(None);
                }
                Direction::Egress | Direction::Ingress => {}
            }
        }
    }

    /// Ends the connection, at position `at` of egress.
    pub(crate) fn close(&mut self, at_ns: u64, at: u64, sink: &mut dyn Sink) {
        let mut left: Vec<Transaction> = std::mem::take(&mut self.streams).into_values().collect();
        left.sort_by_key(Transaction::start);
        for mut transaction in left {
            transaction.end_request(at, false, sink);
            transaction.end_response(at_ns, false, sink);
            self.keep_unasked(transaction);
        }
        for mut transaction in self.unasked.drain(..) {
            transaction.number(self.next_exchange);
            self.next_exchange += 1;
            transaction.report_unasked(at, sink);
        }
    }
}

/// Detects malformed header blocks ([RFC 9113 §8.2 and §8.3][rfc]): some servers refuse a malformed
/// block, others read the block differently.
///
/// [rfc]: https://www.rfc-editor.org/rfc/rfc9113#section-8.2
#[derive(Debug, Default)]
struct Grammar {
    fields_began: bool,
    broken: bool,
    /// Pseudo-header fields seen, as bits.
    seen: u8,
}

impl Grammar {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        const OF_CONNECTION: [&[u8]; 5] =
            [b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"];
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if name.first() == Some(&b':') {
            let bit = PSEUDO.iter().position(|known| *known == name).map_or(0, |at| 1_u8 << at);
            self.broken |= self.fields_began || bit == 0 || self.seen & bit != 0;
            self.broken |= name == b":path" && value.first() != Some(&b'/') && value != b"*";
            self.seen |= bit;
        } else {
            self.fields_began = true;
        }
        let plain = |byte: &u8| matches!(byte, 0x21..=0x7e) && !byte.is_ascii_uppercase();
        self.broken |= name.iter().skip(1).any(|byte| *byte == b':');
        let no_control = |byte: &u8| !matches!(byte, b'\0' | b'\r' | b'\n');
        self.broken |= name.is_empty()
            || !name.iter().all(plain)
            || !value.iter().all(no_control)
            || blank(value.first())
            || blank(value.last())
            || name == b"te" && value != b"trailers"
            || OF_CONNECTION.contains(&name);
    }

    /// Returns whether all fields required of a request came ([RFC 9113 §8.3.1][rfc]), or part of
    /// the block is unknown.
    ///
    /// [rfc]: https://www.rfc-editor.org/rfc/rfc9113#section-8.3.1
    fn is_whole(&self, head: &Head) -> bool {
        let tunnel = head.method.as_deref() == Some("CONNECT") && head.protocol.is_none();
        let needed = if tunnel { METHOD } else { METHOD | SCHEME | PATH };
        head.partial || self.seen & needed == needed
    }
}

/// Pseudo-header fields; the index is the number of the bit in [`Grammar::seen`].
const PSEUDO: [&[u8]; 6] =
    [b":method", b":scheme", b":path", b":authority", b":status", b":protocol"];
const METHOD: u8 = 1;
const SCHEME: u8 = 1 << 1;
const PATH: u8 = 1 << 2;

/// Context of a piece of bytes.
struct Input<'a> {
    at_ns: u64,
    direction: Direction,
    /// Position of the next byte.
    at: u64,
    context: &'a Context,
    sink: &'a mut dyn Sink,
}
