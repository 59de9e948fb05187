//! WebSocket decoder ([RFC 6455][rfc]) with permessage-deflate ([RFC 7692][deflate]), for realtime
//! APIs.
//!
//! The handshake is a separate exchange. On a connection of a realtime API, the messages of the
//! client up to the request for a response form a request, and the messages of the server up to the
//! end of the response form the response: an exchange per turn. A transcription of the audio by
//! another model is an exchange too. Other connections are not read. A gap loses the place for
//! good, because frames carry no mark for resuming. Data failing to decompress loses only the
//! message, and every later compressed message; frames go on.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc6455
//! [deflate]: https://www.rfc-editor.org/rfc/rfc7692

use flate2::{Decompress, FlushDecompress, Status};

use crate::body::Body;
use crate::call::{Direction, OpenRequest, Sink, Unreadable};
use crate::dialect;
use crate::exchange::{Context, Transaction};
use crate::facts::{Facts, Field};

/// Longest head of a frame, in bytes: two, eight of length, four of mask (RFC 6455 §5.2).
const HEAD_LIMIT: usize = 14;
const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// Bytes appended to the compressed data of a message (RFC 7692 §7.2.2).
const DEFLATE_TAIL: &[u8] = &[0, 0, 0xff, 0xff];

#[derive(Debug)]
enum State {
    /// Gathering the head of a frame.
    Head,
    Payload {
        left: u64,
        mask: Option<[u8; 4]>,
        at: usize,
        data: bool,
        last: bool,
    },
    /// Place lost.
    Lost,
}

/// State of the compressed data of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deflated {
    Open,
    /// The compressed data ended with a final block: the next message starts a new stream.
    Ended,
    /// After the end, the single permitted zero byte came (RFC 7692 §7.2.3.4).
    Padded,
}

/// Frames of a direction.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
struct Side {
    state: State,
    /// Bytes of an unfinished frame head: at most [`HEAD_LIMIT`].
    held: Vec<u8>,
    /// The current message is compressed.
    compressed: bool,
    /// `None`: compression was not agreed, or the state is lost.
    inflate: Option<Box<Decompress>>,
    /// The current message is compressed, and can't be decompressed.
    spoiled: bool,
    deflated: Deflated,
    /// The head of a frame breaks the grammar: readers may differ from here on.
    broken: bool,
    /// Direction of the client.
    client: bool,
    /// Position and time of the first byte of the message.
    start: u64,
    at_ns: u64,
    within_message: bool,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Side {
    fn new(deflate: bool, client: bool) -> Self {
        Self {
            state: State::Head,
            held: Vec::with_capacity(HEAD_LIMIT),
            compressed: false,
            spoiled: false,
            deflated: Deflated::Open,
            broken: false,
            client,
            inflate: deflate.then(|| Box::new(Decompress::new(false))),
            start: 0,
            at_ns: 0,
            within_message: false,
        }
    }

    /// Takes the next bytes; passes on pieces of messages. Returns the number of bytes used, and
    /// whether a message ended.
    fn step(&mut self, at_ns: u64, at: u64, bytes: &[u8], out: impl FnMut(&[u8])) -> (usize, bool) {
        match &mut self.state {
            State::Lost => (bytes.len(), false),
            State::Head => {
                if self.held.is_empty() && !self.within_message {
                    (self.start, self.at_ns) = (at, at_ns);
                }
                self.held.extend_from_slice(bytes.get(..1).unwrap_or_default());
                (1, self.head(out))
            }
            State::Payload { left, mask, at, data, last } => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                let piece = bytes.get(..len).unwrap_or_default();
                let (from, mask, data, last) = (*at, *mask, *data, *last);
                *at = (*at + len) % 4;
                *left -= len as u64;
                let over = *left == 0;
                if data {
                    self.unmasked(piece, mask, from, out);
                }
                if over {
                    self.state = State::Head;
                    self.within_message = self.within_message && !(data && last);
                }
                (len, over && data && last)
            }
        }
    }

    /// Takes a byte of the head. Returns whether an empty message ended.
    fn head(&mut self, out: impl FnMut(&[u8])) -> bool {
        let &[first, second, ref rest @ ..] = self.held.as_slice() else { return false };
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let masked = second & 0x80 != 0;
        if rest.len() < extended + if masked { 4 } else { 0 } {
            return false;
        }
        let number = rest.get(..extended).unwrap_or_default();
        let left = match extended {
            0 => u64::from(second & 0x7f),
            _ => number.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        };
        let mask = rest.get(extended..).and_then(|rest| rest.first_chunk::<4>()).copied();
        let opcode = first & 0x0f;
        let data = matches!(opcode, CONTINUATION | TEXT | BINARY);
        self.broken |= self.client && !self.is_sound_head(first, masked, left, extended);
        if matches!(opcode, TEXT | BINARY) {
            self.compressed = first & COMPRESSED != 0;
            self.within_message = true;
        }
        let last = first & FIN != 0;
        let mask = mask.filter(|_| masked);
        self.held.clear();
        if left > 0 {
            self.state = State::Payload { left, mask, at: 0, data, last };
            return false;
        }
        if data && last {
            self.within_message = false;
            self.unmasked(&[], None, 0, out);
        }
        data && last
    }

    /// Returns whether the head of a frame follows [RFC 6455 §5.2][rfc] and the extension.
    ///
    /// [rfc]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
    fn is_sound_head(&self, first: u8, masked: bool, left: u64, extended: usize) -> bool {
        let opcode = first & 0x0f;
        let (last, compressed) = (first & FIN != 0, first & COMPRESSED != 0);
        let fits = match opcode {
            CONTINUATION => self.within_message && !compressed,
            TEXT | BINARY => !self.within_message,
            8..=10 => last && !compressed && left <= 125,
            _ => false,
        };
        let shortest = match extended {
            0 => true,
            2 => left > 125,
            _ => left > 0xffff && left >> 63 == 0,
        };
        fits && masked && shortest && first & 0x30 == 0
    }

    fn unmasked(
        &mut self,
        piece: &[u8],
        mask: Option<[u8; 4]>,
        from: usize,
        mut out: impl FnMut(&[u8]),
    ) {
        let mut batch = [0_u8; 1024];
        let mut phase = from;
        for part in piece.chunks(batch.len()) {
            let plain = match mask {
                None => part,
                Some(mask) => {
                    for (slot, (index, &byte)) in batch.iter_mut().zip(part.iter().enumerate()) {
                        *slot = byte ^ mask.get((phase + index) % 4).copied().unwrap_or(0);
                    }
                    phase += part.len();
                    batch.get(..part.len()).unwrap_or_default()
                }
            };
            if self.compressed {
                self.inflate(plain, &mut out);
            } else {
                out(plain);
            }
        }
    }

    fn inflate(&mut self, mut bytes: &[u8], out: &mut impl FnMut(&[u8])) {
        if self.deflated != Deflated::Open {
            return self.behind_end(bytes);
        }
        let Some(inflate) = self.inflate.as_mut().filter(|_| !self.spoiled) else {
            self.spoiled = true;
            return;
        };
        let mut room = [0_u8; 4096];
        loop {
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(bytes, &mut room, FlushDecompress::Sync);
            let used = usize::try_from(inflate.total_in() - before_in).unwrap_or(bytes.len());
            let made = usize::try_from(inflate.total_out() - before_out).unwrap_or(0);
            out(room.get(..made).unwrap_or_default());
            let Ok(status) = status else {
                // Frames are still known: the message ends with the last frame, however cut.
                self.spoiled = true;
                self.inflate = None;
                return;
            };
            bytes = bytes.get(used..).unwrap_or_default();
            let stuck = used == 0 && made == 0;
            if status == Status::StreamEnd {
                self.deflated = Deflated::Ended;
                return self.behind_end(bytes);
            }
            if stuck || bytes.is_empty() && made < room.len() {
                return;
            }
        }
    }

    /// Takes bytes behind the end of compressed data: readers differ on bytes other than padding.
    fn behind_end(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.spoiled |= byte != 0 || self.deflated == Deflated::Padded;
            self.deflated = Deflated::Padded;
        }
    }

    /// Ends a message. Returns whether the whole message was passed on.
    fn end_message(&mut self, out: &mut impl FnMut(&[u8])) -> bool {
        if std::mem::take(&mut self.compressed) && self.deflated == Deflated::Open {
            self.inflate(DEFLATE_TAIL, out);
        }
        if std::mem::replace(&mut self.deflated, Deflated::Open) != Deflated::Open {
            self.inflate = self.inflate.take().map(|_| Box::new(Decompress::new(false)));
        }
        !std::mem::take(&mut self.spoiled)
    }

    fn memory_bytes(&self) -> usize {
        self.held.capacity() + self.inflate.as_ref().map_or(0, |_| 48 << 10)
    }
}

/// Decoder of both directions after the handshake.
#[derive(Debug)]
pub(crate) struct WebSocket {
    egress: Side,
    ingress: Side,
    /// The handshake, with the facts shared by the turns.
    session: Transaction,
    handshake_over: bool,
    /// Whether messages are read at all.
    realtime: bool,
    /// Request being assembled.
    asking: Transaction,
    asking_began: bool,
    /// Request being answered.
    answering: Option<Transaction>,
    answer: Body,
    next_exchange: u64,
    /// Position of egress after the last byte read.
    sent_to: u64,
    /// Transcription model: as last requested by the client, and as last reported by the server.
    transcribers: [Option<String>; 2],
}

impl WebSocket {
    pub(crate) fn new(session: Transaction, next_exchange: u64, context: &Context) -> Self {
        let deflate = session.websocket_deflate;
        let asking = session.turn(next_exchange, context);
        Self {
            egress: Side::new(deflate, true),
            ingress: Side::new(deflate, false),
            realtime: session.is_realtime(),
            session,
            handshake_over: false,
            asking,
            asking_began: false,
            answering: None,
            answer: new_answer(),
            next_exchange: next_exchange + 1,
            sent_to: 0,
            transcribers: [None, None],
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let transactions = [Some(&self.session), Some(&self.asking), self.answering.as_ref()];
        self.egress.memory_bytes()
            + self.ingress.memory_bytes()
            + self.answer.memory_bytes()
            + transactions.into_iter().flatten().map(Transaction::memory_bytes).sum::<usize>()
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        let transactions = [Some(&self.session), Some(&self.asking), self.answering.as_ref()];
        self.answer.retained_bytes()
            + transactions.into_iter().flatten().map(Transaction::retained_bytes).sum::<usize>()
    }

    /// Returns the request being assembled if a message is unfinished: the message may ask for a
    /// response.
    pub(crate) fn open(&self) -> Option<OpenRequest<'_>> {
        let within = self.egress.within_message || !self.egress.held.is_empty();
        let open = self.asking.open().filter(|_| self.realtime && within)?;
        Some(OpenRequest { start: self.egress.start, ..open })
    }

    pub(crate) fn data(
        &mut self,
        at_ns: u64,
        direction: Direction,
        start: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) {
        if !std::mem::replace(&mut self.handshake_over, true) {
            self.session.end_response(at_ns, true, sink);
        }
        if !self.realtime {
            return;
        }
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            let at = start + used as u64;
            used += match direction {
                Direction::Egress => self.sent(at_ns, at, rest, context, sink),
                Direction::Ingress => self.received(at_ns, at, rest, context, sink),
            };
        }
    }

    fn sent(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        let Self { egress, asking, .. } = self;
        if matches!(egress.state, State::Lost) {
            return bytes.len();
        }
        if !self.asking_began {
            self.asking_began = true;
            asking.begin_at(at_ns, at);
        }
        let (used, ended) = egress.step(at_ns, at, bytes, |piece| asking.request_data(piece));
        asking.call_mut().request_bytes += used as u64;
        self.sent_to = at + used as u64;
        if egress.broken {
            egress.state = State::Lost;
            egress.within_message = false;
            self.lose_questions(at_ns, at, Some(0), Unreadable::Head, sink);
            return bytes.len();
        }
        if !ended {
            return used;
        }
        let whole = egress.end_message(&mut |piece| asking.request_data(piece));
        let sound = asking.end_message() && whole;
        let [asked, _] = &mut self.transcribers;
        *asked = asking.take_transcriber().or(asked.take());
        asking.refresh_if_changed();
        if !sound {
            // Another reader may take the message for a request.
            asking.unreadable(Unreadable::Body);
            self.ask(false, context, sink);
        } else if asking.asks() {
            self.ask(true, context, sink);
        }
        used
    }

    fn take_number(&mut self) -> u64 {
        self.next_exchange += 1;
        self.next_exchange - 1
    }

    /// Returns a number for an exchange before the request being assembled. If a message of the
    /// assembled request has begun, the number of the request may be known, and stays.
    fn number_before(&mut self) -> u64 {
        let fresh = self.take_number();
        if self.open().is_some() || self.asking.request_ended() {
            return fresh;
        }
        let number = self.asking.call().exchange;
        self.asking.number(fresh);
        number
    }

    /// Ends the assembled request: the next response answers the request.
    fn ask(&mut self, complete: bool, context: &Context, sink: &mut dyn Sink) {
        let number = self.take_number();
        let next = self.session.turn(number, context);
        let mut asked = std::mem::replace(&mut self.asking, next);
        if !std::mem::take(&mut self.asking_began) {
            asked.begin_at(asked.call().request_at_ns, self.sent_to);
        }
        asked.end_request(self.sent_to, complete, sink);
        if let Some(mut unanswered) = self.answering.replace(asked) {
            unanswered.end_response(0, false, sink);
        }
    }

    fn received(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: &[u8],
        context: &Context,
        sink: &mut dyn Sink,
    ) -> usize {
        let Self { ingress, answer, .. } = self;
        let (used, ended) = ingress.step(at_ns, at, bytes, |piece| answer.feed(piece));
        if let Some(answering) = &mut self.answering {
            answering.call_mut().response_bytes += used as u64;
            answering.call_mut().first_chunk_at_ns.get_or_insert(at_ns);
        }
        if ended && ingress.end_message(&mut |piece| answer.feed(piece)) {
            self.judge(at_ns, context, sink);
        } else if ended {
            answer.end_message();
            if let Some(answering) = &mut self.answering {
                answering.unreadable(Unreadable::Corrupt);
            }
        }
        used
    }

    /// Takes the end of a message of the server, and updates the turn.
    fn judge(&mut self, at_ns: u64, context: &Context, sink: &mut dyn Sink) {
        let [_, told] = &mut self.transcribers;
        *told = self.answer.facts_mut().take_text(Field::Transcriber).or(told.take());
        let said = self.answer.facts().text(Field::Type).unwrap_or_default();
        if said.starts_with("conversation.item.input_audio_transcription") {
            self.transcribed(at_ns, context, sink);
        }
        let facts = self.answer.facts();
        let kind = facts.text(Field::Type).unwrap_or_default();
        let begins = kind == "response.created" || facts.has(Field::ServerContent);
        let ends = is_last(kind, facts);
        let told = self.answering.is_some() || matches!(self.egress.state, State::Lost);
        if (begins || ends && kind != "error") && !told {
            // The server answered by itself, for instance when the user stopped speaking.
            self.asking.mark_under_way();
            self.ask(true, context, sink);
        }
        if ends && let Some(mut answered) = self.answering.take() {
            let answer = std::mem::replace(&mut self.answer, new_answer());
            answered.answer(answer);
            answered.end_response(at_ns, true, sink);
        }
    }

    /// Reports a transcription by another model. The usage becomes a separate call, finished and
    /// never requested separately.
    fn transcribed(&mut self, at_ns: u64, context: &Context, sink: &mut dyn Sink) {
        let mut answer = new_answer();
        let told = self.answer.facts_mut().move_usage(answer.facts_mut());
        let [asked, said] = &self.transcribers;
        let Some(model) = said.clone().or_else(|| asked.clone()).filter(|_| told) else { return };
        let number = self.number_before();
        let mut heard = self.session.turn(number, context);
        heard.become_transcription(model);
        heard.begin_at(at_ns, self.sent_to);
        heard.mark_under_way();
        heard.answer(answer);
        heard.end_request(self.sent_to, true, sink);
        heard.end_response(at_ns, true, sink);
    }

    pub(crate) fn gap(
        &mut self,
        at_ns: u64,
        direction: Direction,
        at: u64,
        bytes: Option<u64>,
        sink: &mut dyn Sink,
    ) {
        let side = match direction {
            Direction::Egress => &mut self.egress,
            Direction::Ingress => &mut self.ingress,
        };
        let known = !matches!(std::mem::replace(&mut side.state, State::Lost), State::Lost);
        side.within_message = false;
        side.held.clear();
        match direction {
            Direction::Egress => {
                if self.realtime && known {
                    self.lose_questions(at_ns, at, bytes, Unreadable::Gap, sink);
                }
            }
            Direction::Ingress => {
                if let Some(mut answering) = self.answering.take() {
                    answering.missing(bytes);
                    answering.unreadable(Unreadable::Gap);
                    answering.end_response(at_ns, false, sink);
                }
            }
        }
    }

    /// Reports a single request up to the end of the connection: later messages of the client are
    /// unreadable.
    fn lose_questions(
        &mut self,
        at_ns: u64,
        at: u64,
        bytes: Option<u64>,
        reason: Unreadable,
        sink: &mut dyn Sink,
    ) {
        let asking = &mut self.asking;
        if !std::mem::replace(&mut self.asking_began, true) {
            asking.begin_at(at_ns, at.saturating_sub(bytes.unwrap_or(0)));
        }
        asking.unreadable(reason);
        if reason == Unreadable::Gap {
            asking.missing(bytes);
        }
        asking.end_request(u64::MAX, false, sink);
        asking.end_response(at_ns, false, sink);
    }

    pub(crate) fn close(&mut self, at_ns: u64, at: u64, sink: &mut dyn Sink) {
        if !std::mem::replace(&mut self.handshake_over, true) {
            self.session.end_response(at_ns, true, sink);
        }
        if let Some(mut answering) = self.answering.take() {
            answering.answer(std::mem::replace(&mut self.answer, new_answer()));
            answering.end_response(at_ns, false, sink);
        }
        let half = self.egress.within_message || !self.egress.held.is_empty();
        if self.realtime && half && !matches!(self.egress.state, State::Lost) {
            self.asking.unreadable(Unreadable::Body);
            self.asking.end_request(at, false, sink);
            self.asking.end_response(at_ns, false, sink);
        }
    }
}

fn new_answer() -> Body {
    Body::of_messages(&dialect::RESPONSES, None)
}

/// Returns whether a message ends a response.
fn is_last(kind: &str, facts: &Facts) -> bool {
    matches!(
        kind,
        "response.done"
            | "response.completed"
            | "response.failed"
            | "response.incomplete"
            | "error"
    ) || facts.flag(Field::TurnComplete) == Some(true)
}
