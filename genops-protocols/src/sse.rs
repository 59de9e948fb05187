//! Parser of server-sent events, as defined by the [WHATWG HTML standard §9.2.6][spec].
//!
//! Takes bytes and passes `data` lines on at once: no part of an event is kept, whatever the
//! length. The handler judges the meaning of events. Deviation from the standard: an event cut off
//! by the end of the stream is passed on, not dropped, because usage often stands in the last
//! event.
//!
//! [spec]: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

use memchr::memchr2;

/// Receives the `data` of events.
pub(crate) trait Handler {
    /// A whole line of data, received in a single piece.
    fn line(&mut self, line: &[u8]);
    /// A line of data in several pieces begins.
    fn begin(&mut self);
    /// Next piece of the begun line.
    fn piece(&mut self, piece: &[u8]);
    /// The begun line ended.
    fn end(&mut self);
    /// The event ended. Called for events without data too.
    fn dispatch(&mut self);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    LineStart,
    /// Within the field name `data` or the colon; number of bytes matched.
    Name(usize),
    /// After `data:`; a single space may follow.
    Space,
    Value,
    /// Within a line of another field, or a comment.
    Other,
    /// After a gap: nothing counts until an empty line.
    Lost {
        line_empty: bool,
    },
}

/// Splits a stream into events, through pieces of any size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    /// The last byte was a carriage return: a following line feed belongs to the same line end.
    after_cr: bool,
    /// Bytes of a byte order mark seen at the start of the stream; 3 when past the mark.
    bom: u8,
}

const FIELD: &[u8] = b"data:";
const BOM: &[u8] = b"\xef\xbb\xbf";

impl Decoder {
    pub(crate) fn feed(&mut self, mut bytes: &[u8], handler: &mut impl Handler) {
        while self.bom < 3 && !bytes.is_empty() {
            if bytes.first() == BOM.get(usize::from(self.bom)) {
                self.bom += 1;
                bytes = bytes.get(1..).unwrap_or_default();
            } else {
                self.bom = 3;
            }
        }
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while !bytes.is_empty() {
            let Some(end) = memchr2(b'\n', b'\r', bytes) else {
                self.part(bytes, handler);
                return;
            };
            let (line, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
            if self.state == State::LineStart {
                whole(line, handler);
            } else {
                self.part(line, handler);
                self.end_line(handler);
            }
            let cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if cr {
                self.after_cr = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
        }
    }

    /// Ends the stream: an event cut off counts as ended.
    pub(crate) fn finish(&mut self, handler: &mut impl Handler) {
        if !matches!(self.state, State::Lost { .. }) {
            if self.state != State::LineStart {
                self.end_line(handler);
            }
            handler.dispatch();
        }
    }

    /// Takes a gap: the event around the missing bytes is dropped.
    pub(crate) fn gap(&mut self) {
        self.state = State::Lost { line_empty: false };
        self.after_cr = false;
        self.bom = 3;
    }

    /// Takes part of a line.
    fn part(&mut self, mut bytes: &[u8], handler: &mut impl Handler) {
        while let Some(&byte) = bytes.first() {
            match self.state {
                State::LineStart => {
                    self.state = State::Name(0);
                    continue;
                }
                State::Name(matched) if FIELD.get(matched) == Some(&byte) => {
                    self.state = State::Name(matched + 1);
                    if matched + 1 == FIELD.len() {
                        self.state = State::Space;
                    }
                }
                State::Name(_) => self.state = State::Other,
                State::Space => {
                    handler.begin();
                    self.state = State::Value;
                    if byte != b' ' {
                        continue;
                    }
                }
                State::Value => return handler.piece(bytes),
                State::Other => return,
                State::Lost { .. } => {
                    self.state = State::Lost { line_empty: false };
                    return;
                }
            }
            bytes = bytes.get(1..).unwrap_or_default();
        }
    }

    fn end_line(&mut self, handler: &mut impl Handler) {
        let next = match self.state {
            State::Value => {
                handler.end();
                State::LineStart
            }
            State::Space => {
                handler.line(b"");
                State::LineStart
            }
            // The line after a gap may begin within the gap: only the next line can be empty.
            State::Lost { line_empty: false } => State::Lost { line_empty: true },
            State::Lost { line_empty: true } | State::LineStart | State::Name(_) | State::Other => {
                State::LineStart
            }
        };
        self.state = next;
    }
}

fn whole(line: &[u8], handler: &mut impl Handler) {
    if line.is_empty() {
        handler.dispatch();
    } else if let Some(value) = line.strip_prefix(FIELD) {
        handler.line(value.strip_prefix(b" ").unwrap_or(value));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    #[derive(Default)]
    struct Events {
        out: String,
        data: Option<Vec<u8>>,
    }

    impl Handler for Events {
        fn line(&mut self, line: &[u8]) {
            self.begin();
            self.piece(line);
        }

        fn begin(&mut self) {
            match &mut self.data {
                Some(data) => data.push(b'\n'),
                None => self.data = Some(Vec::new()),
            }
        }

        fn piece(&mut self, piece: &[u8]) {
            self.data.get_or_insert_default().extend_from_slice(piece);
        }

        fn end(&mut self) {}

        fn dispatch(&mut self) {
            if let Some(data) = self.data.take() {
                writeln!(self.out, "{:?}", String::from_utf8_lossy(&data))
                    .expect("a string takes it");
            }
        }
    }

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let (mut decoder, mut events) = (Decoder::default(), Events::default());
        for piece in pieces {
            decoder.feed(piece, &mut events);
        }
        decoder.finish(&mut events);
        events.out
    }

    /// Decodes `body` whole, byte by byte and cut in two at every byte: the result must be the
    /// same.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at the call")]
    fn check(body: &str, expected: Expect) {
        let whole = decode([body.as_bytes()]);
        for at in 0..=body.len() {
            let (head, tail) = body.as_bytes().split_at(at);
            assert_eq!(decode([head, tail]), whole, "cut at byte {at}");
        }
        assert_eq!(decode(body.as_bytes().chunks(1)), whole, "byte by byte");
        expected.assert_eq(&whole);
    }

    #[test]
    fn an_event_without_data_is_never_dispatched() {
        check(": keep-alive\n\nevent: ping\n\n", expect![""]);
    }

    #[test]
    fn every_line_ending_ends_a_line() {
        check(
            "data: a\n\ndata: b\r\n\r\ndata: c\r\rdata:d\n\r\n",
            expect![[r#"
            "a"
            "b"
            "c"
            "d"
        "#]],
        );
    }

    #[test]
    fn lines_of_one_event_are_joined_and_other_fields_are_not_data() {
        check(
            "\u{feff}id: 1\ndata: a\ndata:  b\ndatax: no\ndata\nretry: 5\n\n",
            expect![[r#"
            "a\n b"
        "#]],
        );
    }

    #[test]
    fn an_unterminated_last_event_counts() {
        check(
            "data: a\n\ndata: {\"usage\":1}",
            expect![[r#"
            "a"
            "{\"usage\":1}"
        "#]],
        );
    }

    #[test]
    fn after_a_hole_the_next_whole_event_counts() {
        let (mut decoder, mut events) = (Decoder::default(), Events::default());
        decoder.feed(b"data: a\n\ndata: lo", &mut events);
        decoder.gap();
        events.data = None;
        decoder.feed(b"st\ndata: lost\n\ndata: b\n\n", &mut events);
        decoder.finish(&mut events);
        expect![[r#"
            "a"
            "b"
        "#]]
        .assert_eq(&events.out);
    }
}
