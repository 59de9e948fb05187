//! JSON, read as it comes: wanted values at wanted paths, in constant memory.
//!
//! A body may be a gigabyte, cut anywhere, and only a handful of its values matter. [`Scanner`]
//! walks the text byte by byte, follows a [`Schema`] of wanted paths and tells a [`Reader`] what
//! it finds there; everything else is skipped without being kept. It does not validate: a text
//! that is not JSON yields fewer values, never a panic. Several texts may follow each other.
//!
//! What it does not do: it does not judge values, and it does not join texts across a hole. For
//! what can still be proved after a hole, see [`tail`].

pub(crate) mod schema;
pub(crate) mod tail;

pub(crate) use schema::{NodeId, Schema};

use schema::{DEEP, NONE, ROOT, Want};

/// A value that is neither string, object nor array.
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
    /// The next decoded bytes of the string; may be cut within a character.
    fn text(&mut self, want: Want, piece: &[u8]);
    fn text_end(&mut self, want: Want);
    fn scalar(&mut self, want: Want, scalar: Scalar<'_>);
    /// An object or array begins at a wanted node.
    fn enter(&mut self, want: Want);
    fn leave(&mut self, want: Want);
}

/// Where the unwanted scalars of one text lie: what may differ without anything changing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) string: bool,
    /// What a model wrote: its length counts.
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

/// Follows UTF-8 through pieces of any size.
#[derive(Debug, Default)]
struct Utf8 {
    /// A character that has begun.
    held: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Returns false where the bytes are none.
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

/// Follows one JSON text after another through pieces of any size.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Debug)]
pub(crate) struct Scanner {
    schema: &'static Schema,
    state: State,
    /// Open objects and arrays, outermost first; a set bit is an object.
    objects: [u64; Self::DEPTH_LIMIT / 64],
    depth: usize,
    /// Schema node of each open container; deeper ones inherit.
    nodes: [NodeId; Self::NODE_LIMIT],
    /// Node of the value that comes next or is being read.
    value: NodeId,
    escape: Escape,
    /// First half of a surrogate pair.
    high_surrogate: Option<u16>,
    small: [u8; Self::KEY_LIMIT],
    small_len: usize,
    /// Open containers within the unwanted one, itself included.
    skip_depth: u64,
    texts_seen: u64,
    holes: Vec<Hole>,
    record_holes: bool,
    /// The text of a client: see [`Scanner::strict`].
    strict: bool,
    /// More than one text may follow another.
    many: bool,
    /// Two parsers can read it differently.
    ambiguous: bool,
    utf8: Utf8,
    /// Wanted keys of the objects that are open, with their depth.
    keys: Vec<(usize, NodeId)>,
}

impl Scanner {
    /// Most levels of nesting followed; deeper texts count as broken.
    pub(crate) const DEPTH_LIMIT: usize = 512;
    /// Levels at which a path is followed.
    const NODE_LIMIT: usize = 24;
    /// Most bytes of a key or number; longer ones match nothing.
    const KEY_LIMIT: usize = 64;
    /// Most holes recorded of one text.
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

    /// A scanner for what a client sends: it follows the whole text, and marks what two parsers can
    /// read in two ways (RFC 8259 §4, §8 and §9 leave it open): a wanted key that comes twice, or is
    /// spelt in other case, a second text (unless `many`), half a surrogate pair or a zero character
    /// where a name is, what is no UTF-8 or no JSON.
    pub(crate) fn strict(schema: &'static Schema, many: bool) -> Self {
        Self { strict: true, many, ..Self::new(schema) }
    }

    /// The text was read to its end, in the one way in which it can be read.
    pub(crate) fn is_sound(&self) -> bool {
        !self.ambiguous && self.state == State::Start && self.utf8.len == 0
    }

    /// Forgets the text that is being read.
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

    /// Texts that ended properly so far.
    pub(crate) fn texts_seen(&self) -> u64 {
        self.texts_seen
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Nothing of a text was seen, or the last one ended.
    pub(crate) fn is_between_texts(&self) -> bool {
        self.state == State::Start
    }

    /// Notes the holes of the text that the next [`Self::feed`] holds whole.
    pub(crate) fn record_holes(&mut self) {
        self.holes.clear();
        self.record_holes = true;
    }

    /// The holes noted; `None` where there were too many.
    pub(crate) fn holes(&self) -> Option<&[Hole]> {
        (self.holes.len() < Self::HOLE_LIMIT).then_some(&self.holes)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.holes.capacity() * size_of::<Hole>()
            + self.keys.capacity() * size_of::<(usize, NodeId)>()
    }

    /// The body ended: a number that nothing followed ends too.
    pub(crate) fn finish(&mut self, reader: &mut impl Reader) {
        if self.state == State::Number {
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

    /// One byte outside strings. Returns how many bytes were used: 0 or 1, or white space skipped.
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

    /// Begins a value with `byte`, the first of `rest`. Returns how many bytes were used.
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

    /// Node of the innermost open container. Past the levels followed only prose is inherited.
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
        let sound = self.small().is_some_and(is_json_number);
        self.ambiguous |= self.strict && !sound;
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

    /// `None`: longer than any that is wanted.
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

    /// A wanted key that came already, or one that differs from it in case only.
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

    /// Takes one byte of an escape; returns the character it completes.
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

    /// Half a surrogate pair stays alone: readers make different characters of it, or none (RFC 8259
    /// §8.2). That matters in names; prose may be cut anywhere.
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

/// Index of the first quote or backslash, or the length.
pub(crate) fn string_stop(bytes: &[u8]) -> usize {
    /// Strings of a stream's events are mostly shorter than this; the call below pays past it.
    const SHORT: usize = 16;
    let near = bytes.iter().take(SHORT).position(|&byte| matches!(byte, b'"' | b'\\'));
    near.or_else(|| {
        let far = bytes.get(SHORT..)?;
        memchr::memchr2(b'"', b'\\', far).map(|at| at + SHORT)
    })
    .unwrap_or(bytes.len())
}

/// Characters that a string has only as escapes ([RFC 8259 §7][rfc]).
///
/// [rfc]: https://www.rfc-editor.org/rfc/rfc8259#section-7
fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte < b' ')
}

/// A number as [RFC 8259 §6](https://www.rfc-editor.org/rfc/rfc8259#section-6) has it.
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

/// May be part of a JSON number.
pub(crate) fn is_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}
