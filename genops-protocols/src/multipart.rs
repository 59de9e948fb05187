//! Streaming reader of `multipart/form-data` request bodies ([RFC 7578][rfc]), for small fields.
//!
//! The content of a file is skipped, not kept; the presence of a file is noted.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc7578

use memchr::memmem;

use crate::facts::Field;
use crate::json::schema::{ROOT, Want};
use crate::json::{Reader, Schema};

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Before the first delimiter, or within a part; `None` skips it.
    Part(Option<Want>),
    /// After a delimiter: `--` ends the body, a line end begins the headers of a part. Holds the
    /// byte before.
    AfterDelimiter(u8),
    Headers,
    End,
}

/// Splits a body into parts, through pieces of any size.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// Line end, two dashes, boundary.
    delimiter: Vec<u8>,
    /// Bytes of a possible delimiter, or of unfinished headers.
    held: Vec<u8>,
    /// The body breaks the grammar, or readers differ on the meaning.
    odd: bool,
    /// A delimiter came.
    parts: bool,
}

impl Decoder {
    /// Longest boundary (RFC 2046 §5.1.1).
    const BOUNDARY_LIMIT: usize = 70;
    /// Maximum bytes of the headers of a part.
    const HEADERS_LIMIT: usize = 4 << 10;

    /// Reads the boundary from a `Content-Type` field value.
    pub(crate) fn from_content_type(value: &str) -> Option<Self> {
        let mut named = value.split(';').skip(1).filter_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim())
        });
        let boundary = named.next()?;
        let boundary = match boundary.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => boundary.split([' ', '\t']).next()?,
        };
        let only =
            named.next().is_none() && value.to_ascii_lowercase().matches("boundary").count() == 1;
        (only && !boundary.is_empty() && boundary.len() <= Self::BOUNDARY_LIMIT).then(|| Self {
            state: State::Part(None),
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            // The first delimiter needs no line end before it.
            held: b"\r\n".to_vec(),
            odd: false,
            parts: false,
        })
    }

    /// Returns whether the body was read to the last delimiter and has a single reading.
    pub(crate) fn is_sound(&self) -> bool {
        !self.odd && self.state == State::End
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.held.capacity() + self.delimiter.capacity()
    }

    pub(crate) fn gap(&mut self, reader: &mut impl Reader) {
        if let State::Part(Some(want)) = self.state {
            reader.text_end(want);
        }
        self.state = State::Part(None);
        self.held.clear();
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8], schema: &Schema, reader: &mut impl Reader) {
        while !bytes.is_empty() {
            let used = match self.state {
                State::Part(want) => self.part(bytes, want, reader),
                State::AfterDelimiter(before) => self.after_delimiter(before, bytes),
                State::Headers => self.headers(bytes, schema, reader),
                State::End => {
                    // Some readers look for parts after the last delimiter.
                    self.odd |= !bytes.trim_ascii().is_empty();
                    return;
                }
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Passes on bytes outside any possible delimiter. Returns the number of bytes used.
    fn part(&mut self, bytes: &[u8], want: Option<Want>, reader: &mut impl Reader) -> usize {
        if !self.held.is_empty() {
            return self.part_across(bytes, want, reader);
        }
        if let Some(at) = memmem::find(bytes, &self.delimiter) {
            self.emit(bytes.get(..at).unwrap_or_default(), want, reader);
            self.end_part(want, reader);
            return at + self.delimiter.len();
        }
        let keep = longest_start(bytes, &self.delimiter);
        let (plain, held) = bytes.split_at_checked(bytes.len() - keep).unwrap_or((bytes, &[]));
        self.emit(plain, want, reader);
        self.held.extend_from_slice(held);
        bytes.len()
    }

    /// Takes a byte while the held bytes begin like a delimiter.
    fn part_across(&mut self, bytes: &[u8], want: Option<Want>, reader: &mut impl Reader) -> usize {
        self.held.extend_from_slice(bytes.get(..1).unwrap_or_default());
        if self.held == self.delimiter {
            self.held.clear();
            self.end_part(want, reader);
        } else {
            let keep = longest_start(&self.held, &self.delimiter);
            let plain = self.held.len() - keep;
            let plain: Vec<u8> = self.held.drain(..plain).collect();
            self.emit(&plain, want, reader);
        }
        1
    }

    fn end_part(&mut self, want: Option<Want>, reader: &mut impl Reader) {
        if let Some(want) = want {
            reader.text_end(want);
        }
        self.parts = true;
        self.state = State::AfterDelimiter(0);
    }

    fn after_delimiter(&mut self, before: u8, bytes: &[u8]) -> usize {
        let byte = bytes.first().copied().unwrap_or_default();
        self.state = match (before, byte) {
            (b'-', b'-') => State::End,
            (_, b'\n') => State::Headers,
            _ => State::AfterDelimiter(byte),
        };
        self.odd |= !matches!(
            (before, byte),
            (b'-' | 0, b'-') | (b'\r', b'\n') | (0 | b' ' | b'\t', b'\r' | b' ' | b'\t')
        );
        1
    }

    /// Passes on bytes of a part. Bytes before the first delimiter are odd: not every reader skips
    /// the bytes.
    fn emit(&mut self, bytes: &[u8], want: Option<Want>, reader: &mut impl Reader) {
        self.odd |= !self.parts && !bytes.trim_ascii().is_empty();
        if let Some(want) = want.filter(|_| !bytes.is_empty()) {
            reader.text(want, bytes);
        }
    }

    fn headers(&mut self, bytes: &[u8], schema: &Schema, reader: &mut impl Reader) -> usize {
        let Some(&byte) = bytes.first() else { return 0 };
        self.held.push(byte);
        let whole = self.held.ends_with(b"\r\n\r\n") || self.held == b"\r\n";
        if whole || self.held.len() >= Self::HEADERS_LIMIT {
            self.odd |= !whole;
            let want = wanted(&self.held, schema, reader, &mut self.odd);
            if let Some(want) = want {
                reader.text_begin(want);
            }
            self.held.clear();
            // The delimiter of an empty part begins with the line end of the headers.
            self.state = State::Part(want);
        }
        1
    }
}

/// Returns the length of the longest proper start of `delimiter` at the end of `bytes`.
fn longest_start(bytes: &[u8], delimiter: &[u8]) -> usize {
    let most = bytes.len().min(delimiter.len() - 1);
    let tail = bytes.get(bytes.len() - most..).unwrap_or_default();
    (0..tail.len())
        .find(|&at| tail.get(at..).is_some_and(|end| delimiter.starts_with(end)))
        .map_or(0, |at| tail.len() - at)
}

/// Returns the action for the content of a part, by the headers.
fn wanted(
    headers: &[u8],
    schema: &Schema,
    reader: &mut impl Reader,
    odd: &mut bool,
) -> Option<Want> {
    *odd |= !are_fields(headers);
    let headers = String::from_utf8_lossy(headers).to_ascii_lowercase();
    let of = |name: &'static str| headers.lines().filter(move |line| line.starts_with(name));
    *odd |= of("content-transfer-encoding:").any(|line| !line.contains("binary"))
        || of("content-disposition:").count() > 1
        || of("content-type:").any(is_other_text);
    let disposition = of("content-disposition:").next()?;
    let mut parameters = disposition.split(';').skip(1).filter_map(|it| it.split_once('='));
    let mut names = parameters.clone().filter(|(name, _)| name.trim() == "name");
    let name = names.next().map(|(_, value)| value.trim().trim_matches('"'));
    let name = name.unwrap_or_default();
    *odd |= parameters.clone().any(|(name, _)| name.trim().starts_with("name*"));
    *odd |= names.next().is_some() || disposition.contains(['\\', '%']) && name == "model";
    let want = schema.want(schema.child(ROOT, name.as_bytes()));
    if parameters.any(|(name, _)| matches!(name.trim(), "filename" | "filename*")) {
        // Some servers take the contents of a file for the value.
        *odd |= want == Want::Keep(Field::Model);
        reader.enter(Want::Keep(Field::HasFile));
        return None;
    }
    matches!(want, Want::Keep(_) | Want::Prose | Want::ProseAnd(_) | Want::Claim(_)).then_some(want)
}

/// Returns whether every line is a name, a colon and a value, with a proper line end.
fn are_fields(headers: &[u8]) -> bool {
    let mut lines = headers.split_inclusive(|byte| *byte == b'\n');
    lines.all(|line| {
        let Some(line) = line.strip_suffix(b"\r\n") else { return false };
        let name = line
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte));
        let len = name.count();
        let named = len > 0 && line.get(len) == Some(&b':');
        (line.is_empty() || named) && !line.contains(&b'\r') && !line.contains(&0)
    })
}

/// Returns whether the type of a part, in lower case, names a charset other than UTF-8.
fn is_other_text(line: &str) -> bool {
    let known = ["utf-8", "\"utf-8\"", "us-ascii"];
    let charset = line.split_once("charset=").map(|(_, rest)| rest.split(';').next());
    charset.is_some_and(|named| named.is_none_or(|named| !known.contains(&named.trim())))
}
