//! Streaming JSON scanner: reports wanted values at wanted paths, in constant memory.
//!
//! A body may be a gigabyte long and cut anywhere, and only a handful of values matter. [`Scanner`]
//! walks the text byte by byte, follows a [`Schema`] of wanted paths and reports the values found
//! to a [`Reader`]; everything else is skipped without being kept. The scanner does not validate: a
//! text other than JSON yields fewer values, never a panic. Several texts may follow each other.
//!
//! The scanner neither judges values nor joins texts across a gap. See [`tail`] for values still
//! provable after a gap.

pub(crate) mod schema;
pub(crate) mod tail;

pub(crate) use schema::{NodeId, Schema};

use schema::{DEEP, NONE, ROOT, Want};

/// A value other than a string, object or array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    /// As written; at most 64 bytes.
    Number(&'a str),
    Bool(bool),
    Null,
}

/// Receives the wanted values.
pub(crate) trait Reader {
    /// A string begins.
    fn text_begin(&mut self, want: Want);
    /// The next decoded bytes of a string; may be cut within a character.
    fn text(&mut self, want: Want, piece: &[u8]);
    fn text_end(&mut self, want: Want);
    fn scalar(&mut self, want: Want, scalar: Scalar<'_>);
    /// An object or array begins at a wanted node.
    fn enter(&mut self, want: Want);
    fn leave(&mut self, want: Want);
}

/// Position of an unwanted scalar in a text: free to differ without changing a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) string: bool,
    /// Text written by a model: the length counts.
    pub(crate) written: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a text, or between two.
    #[default]
    Start,
    Value,
    ArrayFirst,
    ObjectFirst,
    ObjectKey,
    Colon,
    AfterValue,
    Key,
    Text,
    Number,
    Literal,
    /// Within an unwanted object or array.
    Skip,
    /// Within a string inside an unwanted object or array.
    SkipText,
    /// Not JSON; nothing more is read until [`Scanner::reset`].
    Broken,
}

#[derive(Clone, Copy, Debug, Default)]
enum Escape {
    #[default]
    None,
    Backslash,
    Unicode {
        digits: u8,
        value: u16,
    },
}

/// Checks UTF-8 through pieces of any size.
#[derive(Debug, Default)]
struct Utf8 {
    /// Bytes of an unfinished character.
    held: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Returns false if the bytes are not UTF-8.
    fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while self.len > 0 {
            let Some((&byte, rest)) = bytes.split_first() else { return true };
            let Some(slot) = self.held.get_mut(self.len) else { return false };
            *slot = byte;
            self.len += 1;
            bytes = rest;
            match std::str::from_utf8(self.held.get(..self.len).unwrap_or_default()) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        let Err(error) = std::str::from_utf8(bytes) else { return true };
        let begun = bytes.get(error.valid_up_to()..).filter(|_| error.error_len().is_none());
        let Some(slots) = begun.and_then(|begun| self.held.get_mut(..begun.len())) else {
            return false;
        };
        slots.copy_from_slice(begun.unwrap_or_default());
        self.len = slots.len();
        true
    }
}

/// Scans a series of JSON texts through pieces of any size.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Debug)]
pub(crate) struct Scanner {
    schema: &'static Schema,
    state: State,
    /// Open objects and arrays, outermost first; a set bit is an object.
    objects: [u64; Self::DEPTH_LIMIT / 64],
    depth: usize,
    /// Schema node of each open container; deeper containers inherit.
    nodes: [NodeId; Self::NODE_LIMIT],
    /// Node of the next or current value.
    value: NodeId,
    escape: Escape,
    /// First half of a surrogate pair.
    high_surrogate: Option<u16>,
    small: [u8; Self::KEY_LIMIT],
    small_len: usize,
    /// Open containers within the unwanted container, including the unwanted container.
    skip_depth: u64,
    texts_seen: u64,
    holes: Vec<Hole>,
    record_holes: bool,
    /// Text of a client: see [`Scanner::strict`].
    strict: bool,
    /// Several texts may follow each other.
    many: bool,
    /// Two parsers may read the text differently.
    ambiguous: bool,
    utf8: Utf8,
    /// Wanted keys of the open objects, each with the depth.
    keys: Vec<(usize, NodeId)>,
}

impl Scanner {
    /// Maximum levels of nesting; deeper texts count as broken.
    pub(crate) const DEPTH_LIMIT: usize = 512;
    /// Levels at which a path is followed.
    const NODE_LIMIT: usize = 24;
    /// Maximum bytes of a key or number; longer keys and numbers match nothing.
    const KEY_LIMIT: usize = 64;
    /// Maximum number of holes recorded per text.
    const HOLE_LIMIT: usize = 24;

    pub(crate) fn new(schema: &'static Schema) -> Self {
        Self {
            schema,
            state: State::Start,
            objects: [0; Self::DEPTH_LIMIT / 64],
            depth: 0,
            nodes: [NONE; Self::NODE_LIMIT],
            value: NONE,
            escape: Escape::None,
            high_surrogate: None,
            small: [0; Self::KEY_LIMIT],
            small_len: 0,
            skip_depth: 0,
            texts_seen: 0,
            holes: Vec::new(),
            record_holes: false,
            strict: false,
            many: false,
            ambiguous: false,
            utf8: Utf8::default(),
            keys: Vec::new(),
        }
    }

    /// Creates a scanner for the text of a client. Follows the whole text, and marks everything two
    /// parsers may read differently (RFC 8259 §4, §8 and §9 leave the reading open): a repeated
    /// wanted key, a wanted key in other case, a second text (unless `many`), half a surrogate pair
    /// or a zero character in a name, invalid UTF-8, invalid JSON.
    pub(crate) fn strict(schema: &'static Schema, many: bool) -> Self {
        Self { strict: true, many, ..Self::new(schema) }
    }

    /// Returns whether the text was read to the end and has a single reading.
    pub(crate) fn is_sound(&self) -> bool {
        !self.ambiguous && self.state == State::Start && self.utf8.len == 0
    }

    /// Forgets the current text.
    pub(crate) fn reset(&mut self) {
        self.state = State::Start;
        self.depth = 0;
        self.escape = Escape::None;
        self.high_surrogate = None;
        self.small_len = 0;
        self.record_holes = false;
        self.ambiguous = false;
        self.utf8 = Utf8::default();
        self.keys.clear();
    }

    /// Begins in the middle of a text: the next byte belongs to the value of `node`.
    pub(crate) fn begin_at(&mut self, node: NodeId) {
        self.reset();
        self.value = node;
        self.state = State::Value;
    }

    /// Returns the number of texts ended properly so far.
    pub(crate) fn texts_seen(&self) -> u64 {
        self.texts_seen
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Returns whether no text has begun, or the last text has ended.
    pub(crate) fn is_between_texts(&self) -> bool {
        self.state == State::Start
    }

    /// Records the holes of a text; the next [`Self::feed`] must hold the whole text.
    pub(crate) fn record_holes(&mut self) {
        self.holes.clear();
        self.record_holes = true;
    }

    /// Returns the recorded holes; `None` if there were too many.
    pub(crate) fn holes(&self) -> Option<&[Hole]> {
        (self.holes.len() < Self::HOLE_LIMIT).then_some(&self.holes)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.holes.capacity() * size_of::<Hole>()
            + self.keys.capacity() * size_of::<(usize, NodeId)>()
    }

    /// Ends the body. A number outside objects and arrays ends too. A number within an open object
    /// or array does not: the number may have been cut, and 12 may be the beginning of 1234.
    pub(crate) fn finish(&mut self, reader: &mut impl Reader) {
        if self.state == State::Number && self.depth == 0 {
            self.end_number(reader);
        }
    }

    /// Takes the next piece.
    pub(crate) fn feed(&mut self, bytes: &[u8], reader: &mut impl Reader) {
        let mut at = 0;
        self.ambiguous |= self.strict && !self.utf8.feed(bytes);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match self.state {
                State::Text => self.text(rest, at, reader),
                State::Key => self.key(rest),
                State::Skip => self.skip(rest),
                State::SkipText => self.skip_text(rest),
                State::Broken => return,
                _ => self.structure(rest, at, reader),
            };
        }
    }

    /// Takes the next token outside strings. Returns the number of bytes used.
    fn structure(&mut self, rest: &[u8], at: usize, reader: &mut impl Reader) -> usize {
        let Some(&byte) = rest.first() else { return 0 };
        match self.state {
            State::Number => return self.number(rest, at, reader),
            State::Literal => return self.literal(byte, reader),
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => return 1,
            State::Start => {
                self.value = ROOT;
                self.ambiguous |= self.strict && !self.many && self.texts_seen > 0;
                return self.begin_value(byte, rest, at, reader);
            }
            State::ArrayFirst if byte == b']' => self.close(false, reader),
            State::Value | State::ArrayFirst => return self.begin_value(byte, rest, at, reader),
            State::ObjectFirst if byte == b'}' => self.close(true, reader),
            State::ObjectFirst | State::ObjectKey if byte == b'"' => {
                self.small_len = 0;
                self.escape = Escape::None;
                self.high_surrogate = None;
                self.state = State::Key;
            }
            State::Colon if byte == b':' => self.state = State::Value,
            State::AfterValue if byte == b',' => self.after_comma(),
            State::AfterValue if byte == b'}' => self.close(true, reader),
            State::AfterValue if byte == b']' => self.close(false, reader),
            _ => self.state = State::Broken,
        }
        1
    }

    /// Begins a value with `byte`, the first byte of `rest`. Returns the number of bytes used.
    fn begin_value(&mut self, byte: u8, rest: &[u8], at: usize, reader: &mut impl Reader) -> usize {
        let want = self.want();
        match byte {
            b'"' => {
                self.escape = Escape::None;
                self.high_surrogate = None;
                self.state = State::Text;
                if matches!(want, Want::Nothing | Want::Written) {
                    self.open_hole(at + 1, true, want == Want::Written);
                }
                if want != Want::Nothing {
                    reader.text_begin(want);
                }
            }
            b'{' | b'[' if self.value == NONE && !self.strict => self.begin_skip(),
            b'{' => self.open(true, want, reader),
            b'[' => self.open(false, want, reader),
            b't' | b'f' | b'n' => {
                let whole = LITERALS.iter().find(|(text, _)| rest.starts_with(text));
                if let Some(&(text, scalar)) = whole {
                    if want != Want::Nothing {
                        reader.scalar(want, scalar);
                    }
                    self.end_value();
                    return text.len();
                }
                self.small_len = 0;
                self.keep_small(byte);
                self.state = State::Literal;
            }
            b'-' | b'0'..=b'9' => {
                self.small_len = 0;
                self.keep_small(byte);
                self.state = State::Number;
                if want == Want::Nothing {
                    self.open_hole(at, false, false);
                }
            }
            _ => self.state = State::Broken,
        }
        1
    }

    fn begin_skip(&mut self) {
        self.skip_depth = 1;
        self.state = State::Skip;
    }

    fn want(&self) -> Want {
        self.schema.want(self.value)
    }

    fn open(&mut self, object: bool, want: Want, reader: &mut impl Reader) {
        let Some(word) = self.objects.get_mut(self.depth / 64) else {
            self.state = State::Broken;
            return;
        };
        let bit = 1 << (self.depth % 64);
        if object {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        if let Some(node) = self.nodes.get_mut(self.depth) {
            *node = self.value;
        }
        self.depth += 1;
        if want != Want::Nothing {
            reader.enter(want);
        }
        if object {
            self.state = State::ObjectFirst;
        } else {
            self.value = self.schema.element(self.value);
            self.state = State::ArrayFirst;
        }
    }

    /// Returns the node of the innermost open container. Past the followed levels only prose is
    /// inherited.
    fn container(&self) -> NodeId {
        match self.depth.checked_sub(1).map(|at| self.nodes.get(at)) {
            Some(Some(&node)) => node,
            Some(None) if self.nodes.last() == Some(&DEEP) => DEEP,
            _ => NONE,
        }
    }

    fn in_object(&self) -> bool {
        self.depth.checked_sub(1).is_some_and(|at| {
            self.objects.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
        })
    }

    fn after_comma(&mut self) {
        if self.in_object() {
            self.state = State::ObjectKey;
        } else {
            self.value = self.schema.element(self.container());
            self.state = State::Value;
        }
    }

    fn close(&mut self, object: bool, reader: &mut impl Reader) {
        if self.depth == 0 || self.in_object() != object {
            self.state = State::Broken;
            return;
        }
        let want = self.schema.want(self.container());
        while self.keys.last().is_some_and(|(depth, _)| *depth >= self.depth) {
            self.keys.pop();
        }
        self.depth -= 1;
        if want != Want::Nothing {
            reader.leave(want);
        }
        self.end_value();
    }

    fn end_value(&mut self) {
        if self.depth == 0 {
            self.texts_seen += 1;
            self.state = State::Start;
        } else {
            self.state = State::AfterValue;
        }
    }

    fn keep_small(&mut self, byte: u8) {
        if let Some(slot) = self.small.get_mut(self.small_len) {
            *slot = byte;
        }
        self.small_len += 1;
    }

    fn small(&self) -> Option<&[u8]> {
        self.small.get(..self.small_len)
    }

    fn number(&mut self, rest: &[u8], at: usize, reader: &mut impl Reader) -> usize {
        let mut used = 0;
        for &byte in rest {
            if !is_number(byte) {
                self.close_hole(at + used);
                self.end_number(reader);
                return used;
            }
            self.keep_small(byte);
            used += 1;
        }
        used
    }

    fn end_number(&mut self, reader: &mut impl Reader) {
        let want = self.want();
        self.ambiguous |= self.strict && !self.small().is_some_and(is_json_number);
        if want != Want::Nothing
            && let Some(text) = self.small().and_then(|bytes| std::str::from_utf8(bytes).ok())
        {
            reader.scalar(want, Scalar::Number(text));
        }
        self.end_value();
    }

    fn literal(&mut self, byte: u8, reader: &mut impl Reader) -> usize {
        self.keep_small(byte);
        let small = self.small().unwrap_or_default();
        let scalar = match LITERALS.iter().find(|(text, _)| text.starts_with(small)) {
            Some(&(text, scalar)) if text.len() == small.len() => scalar,
            Some(_) => return 1,
            None => {
                self.state = State::Broken;
                return 1;
            }
        };
        let want = self.want();
        if want != Want::Nothing {
            reader.scalar(want, scalar);
        }
        self.end_value();
        1
    }

    fn key(&mut self, rest: &[u8]) -> usize {
        if self.small_len == 0 && matches!(self.escape, Escape::None) {
            let end = string_stop(rest);
            if let (Some(key), Some(b'"')) = (rest.get(..end), rest.get(end)) {
                self.ambiguous |= self.strict && has_control(key);
                self.end_key_of(Some(key).filter(|key| key.len() <= Self::KEY_LIMIT));
                return end + 1;
            }
        }
        let mut used = 0;
        for &byte in rest {
            used += 1;
            match self.escape {
                Escape::None if byte == b'"' => {
                    self.drop_surrogate();
                    self.end_key();
                    break;
                }
                Escape::None if byte == b'\\' => self.escape = Escape::Backslash,
                Escape::None => {
                    self.drop_surrogate();
                    self.ambiguous |= self.strict && byte < b' ';
                    self.keep_small(byte);
                }
                _ => {
                    if let Some(character) = self.unescape(byte) {
                        let mut utf8 = [0; 4];
                        for &byte in character.encode_utf8(&mut utf8).as_bytes() {
                            self.keep_small(byte);
                        }
                    }
                }
            }
        }
        used
    }

    fn end_key(&mut self) {
        let small = self.small;
        self.end_key_of(small.get(..self.small_len));
    }

    /// Ends a key. `None`: longer than any wanted key.
    fn end_key_of(&mut self, key: Option<&[u8]>) {
        self.value = match (self.container(), key) {
            (DEEP, None) => DEEP,
            (NONE, _) | (_, None) => NONE,
            (container, Some(key)) => {
                let child = self.schema.child(container, key);
                if self.strict {
                    self.compare_key(container, child, key);
                }
                child
            }
        };
        self.state = State::Colon;
    }

    /// Marks a repeated wanted key, or a key differing from a wanted key only in case.
    fn compare_key(&mut self, container: NodeId, child: NodeId, key: &[u8]) {
        if container == DEEP || child == DEEP {
            return;
        }
        if child == NONE {
            self.ambiguous |= self.schema.differs_in_case(container, key);
            return;
        }
        let this = (self.depth, child);
        let of_object = self.keys.iter().rev().take_while(|(depth, _)| *depth == self.depth);
        if of_object.into_iter().any(|known| *known == this) {
            self.ambiguous = true;
        } else {
            self.keys.push(this);
        }
    }

    /// Takes a byte of an escape; returns the completed character, if any.
    fn unescape(&mut self, byte: u8) -> Option<char> {
        match self.escape {
            Escape::None => None,
            Escape::Backslash if byte == b'u' => {
                self.escape = Escape::Unicode { digits: 0, value: 0 };
                None
            }
            Escape::Backslash => {
                self.escape = Escape::None;
                self.drop_surrogate();
                self.ambiguous |= self.strict && !b"\"\\/bfnrt".contains(&byte);
                Some(match byte {
                    b'n' => '\n',
                    b't' => '\t',
                    b'r' => '\r',
                    b'b' => '\u{8}',
                    b'f' => '\u{c}',
                    _ => char::from(byte),
                })
            }
            Escape::Unicode { digits, value } => {
                let digit = char::from(byte).to_digit(16);
                self.ambiguous |= self.strict && digit.is_none();
                let digit = digit.unwrap_or(0);
                let value = value << 4 | u16::try_from(digit).unwrap_or(0);
                if digits < 3 {
                    self.escape = Escape::Unicode { digits: digits + 1, value };
                    return None;
                }
                self.escape = Escape::None;
                self.end_unicode(value)
            }
        }
    }

    fn end_unicode(&mut self, unit: u16) -> Option<char> {
        let pair = self.high_surrogate.take().map(|high| [high, unit]);
        if let Some(pair) = pair
            && let Some(Ok(character)) = char::decode_utf16(pair).next()
        {
            return Some(character);
        }
        self.ambiguous |= self.strict && unit == 0 && self.state == State::Key;
        self.lone_surrogate(pair.is_some() || (0xdc00..0xe000).contains(&unit));
        if (0xd800..0xdc00).contains(&unit) {
            self.high_surrogate = Some(unit);
            return None;
        }
        Some(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// Marks a lone half of a surrogate pair: readers make different characters of the half, or
    /// none (RFC 8259 §8.2). Only names matter; prose may be cut anywhere.
    fn lone_surrogate(&mut self, lone: bool) {
        let name = self.state == State::Key || matches!(self.want(), Want::Keep(_));
        self.ambiguous |= self.strict && lone && name;
    }

    fn drop_surrogate(&mut self) {
        let lone = self.high_surrogate.take().is_some();
        self.lone_surrogate(lone);
    }

    fn text(&mut self, rest: &[u8], at: usize, reader: &mut impl Reader) -> usize {
        let want = self.want();
        if !matches!(self.escape, Escape::None) {
            let character = rest.first().and_then(|&byte| self.unescape(byte));
            if let Some(character) = character
                && want != Want::Nothing
            {
                let mut utf8 = [0; 4];
                reader.text(want, character.encode_utf8(&mut utf8).as_bytes());
            }
            return 1;
        }
        let end = string_stop(rest);
        let (plain, stop) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        self.ambiguous |= self.strict && has_control(plain);
        if want != Want::Nothing && !plain.is_empty() {
            self.drop_surrogate();
            reader.text(want, plain);
        }
        match stop.first() {
            Some(b'"') => {
                self.drop_surrogate();
                self.close_hole(at + end);
                if want != Want::Nothing {
                    reader.text_end(want);
                }
                self.end_value();
                end + 1
            }
            Some(_) => {
                self.escape = Escape::Backslash;
                end + 1
            }
            None => rest.len(),
        }
    }

    fn skip(&mut self, rest: &[u8]) -> usize {
        let mut used = 0;
        for &byte in rest {
            used += 1;
            match byte {
                b'"' => {
                    self.escape = Escape::None;
                    self.state = State::SkipText;
                    break;
                }
                b'{' | b'[' => self.skip_depth += 1,
                b'}' | b']' => {
                    self.skip_depth -= 1;
                    if self.skip_depth == 0 {
                        self.end_value();
                        break;
                    }
                }
                _ => {}
            }
        }
        used
    }

    fn skip_text(&mut self, rest: &[u8]) -> usize {
        if !matches!(self.escape, Escape::None) {
            self.escape = Escape::None;
            return 1;
        }
        let end = string_stop(rest);
        match rest.get(end) {
            Some(b'"') => self.state = State::Skip,
            Some(_) => self.escape = Escape::Backslash,
            None => return rest.len(),
        }
        end + 1
    }

    fn open_hole(&mut self, start: usize, string: bool, written: bool) {
        if self.record_holes && self.holes.len() < Self::HOLE_LIMIT {
            self.holes.push(Hole { start, end: usize::MAX, string, written });
        }
    }

    fn close_hole(&mut self, end: usize) {
        if self.record_holes
            && self.value_is_unwanted()
            && let Some(hole) = self.holes.last_mut().filter(|hole| hole.end == usize::MAX)
        {
            hole.end = end;
        }
    }

    fn value_is_unwanted(&self) -> bool {
        matches!(self.want(), Want::Nothing | Want::Written)
    }
}

const LITERALS: [(&[u8], Scalar<'static>); 3] =
    [(b"null", Scalar::Null), (b"true", Scalar::Bool(true)), (b"false", Scalar::Bool(false))];

/// Returns the index of the first quote or backslash, or the length.
pub(crate) fn string_stop(bytes: &[u8]) -> usize {
    /// Most strings in the events of a stream are shorter; the `memchr` call below pays past the
    /// limit.
    const SHORT: usize = 16;
    let near = bytes.iter().take(SHORT).position(|&byte| matches!(byte, b'"' | b'\\'));
    near.or_else(|| {
        let far = bytes.get(SHORT..)?;
        memchr::memchr2(b'"', b'\\', far).map(|at| at + SHORT)
    })
    .unwrap_or(bytes.len())
}

/// Returns whether bytes hold control characters, allowed in a string only as escapes ([RFC 8259
/// §7][rfc]).
///
/// [rfc]: https://www.rfc-editor.org/rfc/rfc8259#section-7
fn has_control(bytes: &[u8]) -> bool {
    // Without an early exit, the compiler tests many bytes at a time; control characters are rare.
    bytes.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' '
}

/// Returns whether a text is a number as defined by [RFC 8259
/// §6](https://www.rfc-editor.org/rfc/rfc8259#section-6).
fn is_json_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(text);
    if whole == 0 || whole > 1 && text.first() == Some(&b'0') {
        return false;
    }
    let mut rest = text.get(whole..).unwrap_or_default();
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = fraction.get(count..).unwrap_or_default();
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-"));
        let exponent = exponent.or(rest.get(1..)).unwrap_or_default();
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

/// Returns whether a byte may be part of a JSON number.
pub(crate) fn is_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}
