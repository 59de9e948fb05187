//! Reader of a request or response body: undoes the coding, detects the form, gathers the facts.
//!
//! The first bytes tell the form of a body more reliably than `Content-Type`: recorders and proxies
//! lose the field, and errors come as JSON whatever type was announced.

use sha2::{Digest as _, Sha256};

use crate::call::{Texts, Unreadable};
use crate::coding::{Coding, Decoder};
use crate::dialect;
use crate::facts::{Facts, Field, Gather, Nested};
use crate::grpc;
use crate::json::tail;
use crate::json::{Hole, Scanner, Schema, is_number};
use crate::{eventstream, multipart, sse};

/// Facts of the head about a body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    pub(crate) content_type: Option<String>,
    /// `None`: unknown, because part of the head is unknown.
    pub(crate) coding: Option<Coding>,
    /// Facts to read from a gRPC body.
    pub(crate) grpc: Option<grpc::Table>,
}

#[derive(Debug)]
enum Stage {
    /// First bytes of a possibly coded body.
    Undecided(Vec<u8>),
    Plain,
    Coded(Box<Decoder>),
    /// No more can be read.
    Failed,
}

#[derive(Debug)]
enum Form {
    /// First bytes of a body of unknown form.
    Undecided(Vec<u8>),
    Json,
    /// JSON after a gap: the last bytes.
    JsonTail(Vec<u8>),
    /// JSON texts, a text per line, after a gap: the rest of the line is skipped.
    JsonLost,
    Sse(sse::Decoder),
    EventStream(Box<eventstream::Decoder>),
    Multipart(Box<multipart::Decoder>),
    Grpc(Box<grpc::Decoder>),
    /// Media, HTML, anything else.
    Opaque,
}

/// Reads a body through pieces of any size.
#[derive(Debug)]
pub(crate) struct Body {
    hints: Hints,
    stage: Stage,
    form: Form,
    parser: Parser,
    unreadable: Option<Unreadable>,
    /// Body sent by a client: must be readable in a single way.
    strict: bool,
    /// Messages, each a separate text.
    messages: bool,
    /// Set if the declared type is a form: follows the names of the form, in case the body reads as
    /// JSON.
    pairs: Option<Pairs>,
    /// Hash over the decoded bytes, if requested.
    digest: Option<Box<Sha256>>,
}

impl Body {
    /// Number of bytes examined to find the coding.
    const CODING_BYTES: usize = 4;
    /// Number of bytes examined to find the form.
    const SNIFF_BYTES: usize = 16;

    /// Creates the reader of a body. `texts` keeps prose, and marks a body sent by a client.
    pub(crate) fn new(schema: &'static Schema, hints: Hints, texts: Option<Texts>) -> Self {
        let mut body = Self {
            stage: match hints.coding {
                Some(Coding::Identity) => Stage::Plain,
                _ => Stage::Undecided(Vec::new()),
            },
            hints,
            form: Form::Undecided(Vec::new()),
            strict: texts.is_some(),
            messages: false,
            pairs: None,
            parser: Parser::new(schema, texts),
            unreadable: None,
            digest: None,
        };
        if body.strict {
            let form = body.hints.is("application/x-www-form-urlencoded");
            body.pairs = form.then(Pairs::default);
            body.parser.scanner = Scanner::strict(schema, body.hints.is_ndjson());
            body.parser.facts.expect_one_model();
        }
        body
    }

    /// Creates the reader of a series of messages: every message counts as the last.
    pub(crate) fn of_messages(schema: &'static Schema, texts: Option<Texts>) -> Self {
        let coding = Some(Coding::Identity);
        let hints = Hints { content_type: Some("application/json".into()), coding, grpc: None };
        let strict = texts.is_some();
        let mut body = Self::new(schema, hints, texts);
        body.messages = true;
        body.parser.facts = Facts::default();
        body.parser.facts.keep_last_type();
        if strict {
            body.parser.facts.expect_readable_models();
            body.parser.scanner = Scanner::strict(schema, true);
        }
        body
    }

    /// Enables hashing of the decoded bytes from here on.
    pub(crate) fn with_digest(mut self) -> Self {
        self.digest = Some(Box::default());
        self
    }

    /// Returns SHA-256 over the decoded bytes. `None`: not requested, or part of the body was not
    /// read.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        let digest = self.digest.as_ref().filter(|_| self.unreadable.is_none())?;
        Some(Sha256::clone(digest).finalize().into())
    }

    /// Ends a message: open values do not continue in the next message. Returns whether the message
    /// could be read.
    pub(crate) fn end_message(&mut self) -> bool {
        if let Form::Undecided(held) = &self.form {
            let held = held.clone();
            if held.is_empty() {
                return false;
            }
            self.form = sniff(&self.hints, &held, true, self.strict).unwrap_or(Form::Opaque);
            self.decoded(without_mark(&self.form, &held));
        }
        self.parser.finish_scan();
        let sound = matches!(self.form, Form::Json)
            && self.parser.scanner.is_sound()
            && !self.parser.facts.is_ambiguous();
        self.parser.scanner.reset();
        self.form = Form::Undecided(Vec::new());
        sound
    }

    /// Returns whether the body has bytes in none of the supported forms.
    pub(crate) fn is_opaque(&self) -> bool {
        matches!(self.form, Form::Opaque)
    }

    /// Returns whether the declared type is media, given to a model unchanged.
    pub(crate) fn is_media(&self) -> bool {
        let kinds = ["audio/", "image/", "video/", "application/octet-stream"];
        kinds.iter().any(|kind| self.hints.is(kind))
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.parser.facts
    }

    pub(crate) fn facts_mut(&mut self) -> &mut Facts {
        &mut self.parser.facts
    }

    pub(crate) fn texts(&self) -> Option<&Texts> {
        self.parser.texts.as_ref()
    }

    /// Frees the prose after the last use.
    pub(crate) fn drop_texts(&mut self) {
        self.parser.texts = None;
    }

    pub(crate) fn unreadable(&self) -> Option<Unreadable> {
        self.unreadable
    }

    /// Returns whether the content read announces the end, whatever the transport does.
    pub(crate) fn is_over(&self) -> bool {
        let Parser { scanner, facts, over, .. } = &self.parser;
        let whole = scanner.texts_seen() == 1 && scanner.is_between_texts();
        let lines = self.hints.is_ndjson() || facts.flag(Field::Done).is_some();
        let one = matches!(self.form, Form::Json) && !lines && !self.messages;
        *over || facts.says_over() || one && whole
    }

    /// Returns the exception carried by an event stream.
    pub(crate) fn exception(&self) -> Option<&str> {
        self.parser.exception.as_deref()
    }

    /// Returns whether the body is a stream of events or of JSON texts.
    pub(crate) fn is_stream(&self) -> bool {
        let texts = self.parser.scanner.texts_seen();
        matches!(self.form, Form::Sse(_) | Form::EventStream(_))
            || texts > 1
            || self.messages && texts > 0
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let stage = match &self.stage {
            Stage::Undecided(held) => held.capacity(),
            Stage::Coded(decoder) => decoder.memory_bytes(),
            Stage::Plain | Stage::Failed => 0,
        };
        let form = match &self.form {
            Form::Undecided(held) | Form::JsonTail(held) => held.capacity(),
            Form::EventStream(decoder) => decoder.memory_bytes(),
            Form::Multipart(decoder) => decoder.memory_bytes(),
            Form::Grpc(decoder) => decoder.memory_bytes(),
            Form::Json | Form::JsonLost | Form::Sse(_) | Form::Opaque => 0,
        };
        let digest = self.digest.as_ref().map_or(0, |_| size_of::<Sha256>());
        size_of::<Self>() + stage + form + digest + self.parser.memory_bytes()
    }

    /// Returns the bytes of memory growing with the peer's input: the window of a decompressor, and
    /// prose.
    pub(crate) fn shared_bytes(&self) -> usize {
        let window = match &self.stage {
            Stage::Coded(decoder) => decoder.memory_bytes(),
            Stage::Undecided(_) | Stage::Plain | Stage::Failed => 0,
        };
        window + self.texts().map_or(0, Texts::memory_bytes)
    }

    /// Gives up for lack of memory: the rest of a coded body is not read, and no more prose is
    /// kept.
    pub(crate) fn give_up(&mut self) {
        if matches!(self.stage, Stage::Coded(_)) {
            self.stage = self.fail(Unreadable::Bomb);
        }
        if let Some(texts) = &mut self.parser.texts {
            texts.give_up();
        }
    }

    /// Returns the bytes kept for use: facts and prose.
    pub(crate) fn retained_bytes(&self) -> usize {
        self.parser.facts.memory_bytes() + self.texts().map_or(0, Texts::memory_bytes)
    }

    /// Takes the next bytes, as transferred.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        match &mut self.stage {
            Stage::Plain => self.undone(bytes),
            Stage::Failed => {}
            Stage::Coded(_) => self.coded(bytes),
            Stage::Undecided(held) => {
                // Always the same number of bytes, however cut: a longer look could decide
                // otherwise.
                let missing = Self::CODING_BYTES.saturating_sub(held.len());
                let (taken, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
                held.extend_from_slice(taken);
                if held.len() < Self::CODING_BYTES {
                    return;
                }
                let held = std::mem::take(held);
                self.decide_stage(&held);
                self.feed(&held);
                if !rest.is_empty() {
                    self.feed(rest);
                }
            }
        }
    }

    fn decide_stage(&mut self, start: &[u8]) {
        let coding = actual_coding(self.hints.coding, start);
        if self.strict && self.hints.coding.is_some_and(|said| said != coding) {
            self.unreadable.get_or_insert(Unreadable::Corrupt);
        }
        self.stage = match Decoder::new(coding) {
            Ok(Some(decoder)) => Stage::Coded(Box::new(decoder)),
            Ok(None) => Stage::Plain,
            Err(reason) => self.fail(reason),
        };
    }

    fn fail(&mut self, reason: Unreadable) -> Stage {
        self.unreadable.get_or_insert(reason);
        Stage::Failed
    }

    fn coded(&mut self, bytes: &[u8]) {
        let Stage::Coded(mut decoder) = std::mem::replace(&mut self.stage, Stage::Failed) else {
            return;
        };
        self.stage = match decoder.feed(bytes, |piece| self.undone(piece)) {
            Ok(()) => Stage::Coded(decoder),
            Err(reason) => self.fail(reason),
        };
    }

    /// Takes bytes after removal of the content coding.
    fn undone(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        self.decoded(bytes);
    }

    /// Takes decoded bytes.
    fn decoded(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let parser = &mut self.parser;
        match &mut self.form {
            Form::Json => {
                if self.pairs.as_mut().is_some_and(|pairs| pairs.name_model(bytes)) {
                    self.unreadable.get_or_insert(Unreadable::Body);
                }
                parser.scan(bytes);
            }
            Form::Sse(decoder) => decoder.feed(bytes, parser),
            Form::Opaque => {}
            Form::JsonTail(held) => tail::keep(held, bytes),
            Form::JsonLost => {
                if let Some(at) = memchr::memchr(b'\n', bytes) {
                    self.form = Form::Json;
                    self.decoded(bytes.get(at + 1..).unwrap_or_default());
                }
            }
            Form::EventStream(decoder) => decoder.feed(bytes, parser),
            Form::Multipart(decoder) => parser.multipart(decoder, bytes),
            Form::Grpc(decoder) => {
                decoder.feed(bytes, &mut parser.facts, parser.texts.as_mut());
            }
            Form::Undecided(held) => {
                // Servers keep a connection alive with white space until an answer is ready.
                let binary = self.hints.is("application/grpc");
                let bytes =
                    if held.is_empty() && !binary { bytes.trim_ascii_start() } else { bytes };
                if bytes.is_empty() {
                    return; // nothing to judge by, whatever was announced
                }
                let room = Self::SNIFF_BYTES.saturating_sub(held.len());
                let (taken, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
                held.extend_from_slice(taken);
                let enough = held.len() >= Self::SNIFF_BYTES;
                let Some(form) = sniff(&self.hints, held, enough, self.strict) else {
                    return;
                };
                let held = std::mem::replace(&mut self.form, form);
                if let Form::Undecided(held) = held {
                    self.decoded(without_mark(&self.form, &held));
                }
                self.decoded(rest);
            }
        }
    }

    /// Takes a gap: bytes are missing here.
    pub(crate) fn gap(&mut self) {
        if matches!(self.stage, Stage::Coded(_) | Stage::Undecided(_)) {
            self.stage = self.fail(Unreadable::Gap);
            return;
        }
        self.unreadable.get_or_insert(Unreadable::Gap);
        let parser = &mut self.parser;
        match &mut self.form {
            Form::Json if parser.scanner.texts_seen() > 0 || self.hints.is_ndjson() => {
                parser.scanner.reset();
                self.form = Form::JsonLost;
            }
            Form::Json => self.form = Form::JsonTail(Vec::new()),
            Form::JsonTail(held) => held.clear(),
            Form::Sse(decoder) => {
                decoder.gap();
                parser.gap();
            }
            Form::EventStream(decoder) => decoder.gap(),
            Form::Multipart(decoder) => parser.multipart_gap(decoder),
            Form::Grpc(decoder) => decoder.gap(),
            Form::Undecided(held) => {
                self.form = match held.first() {
                    _ if self.hints.is_sse() => {
                        let mut decoder = sse::Decoder::default();
                        decoder.gap();
                        Form::Sse(decoder)
                    }
                    _ if self.hints.is_ndjson() => Form::JsonLost,
                    Some(b'{' | b'[') => Form::JsonTail(Vec::new()),
                    None if self.hints.is_json() => Form::JsonTail(Vec::new()),
                    _ => Form::Opaque,
                };
            }
            Form::JsonLost | Form::Opaque => {}
        }
        if let Some(texts) = &mut parser.texts {
            texts.end();
        }
    }

    /// Ends the body, by the framing (`complete`) or because no more bytes will come.
    pub(crate) fn end(&mut self, complete: bool) {
        if let Stage::Undecided(held) = &mut self.stage {
            let held = std::mem::take(held);
            if !held.is_empty() {
                self.decide_stage(&held);
                self.feed(&held);
            }
        }
        if let Form::Undecided(held) = &self.form {
            let held = held.clone();
            if !held.is_empty() {
                self.form = sniff(&self.hints, &held, true, self.strict).unwrap_or(Form::Opaque);
                self.decoded(without_mark(&self.form, &held));
            }
        }
        let parser = &mut self.parser;
        match &mut self.form {
            Form::Sse(decoder) => decoder.finish(parser),
            Form::Json => parser.finish_scan(),
            Form::JsonTail(held) if complete => parser.read_tail(held),
            _ => {}
        }
        if matches!(self.stage, Stage::Coded(_)) {
            self.stage = Stage::Failed; // no more input: the window is not needed
        }
        let parser = &mut self.parser;
        if let Form::Grpc(decoder) = &self.form
            && decoder.skipped()
        {
            self.unreadable.get_or_insert(Unreadable::Body);
        }
        if parser.corrupt {
            self.unreadable.get_or_insert(Unreadable::Corrupt);
        }
        let unsound = match &self.form {
            Form::Json if self.strict && !self.messages => !parser.scanner.is_sound(),
            Form::Json => parser.scanner.is_broken(),
            // No API accepts event streams from a client.
            Form::Sse(_) | Form::EventStream(_) => self.strict,
            Form::Multipart(decoder) => self.strict && !decoder.is_sound(),
            _ => false,
        };
        if unsound || parser.facts.is_ambiguous() {
            self.unreadable.get_or_insert(Unreadable::Body);
        }
        if let Some(texts) = &mut parser.texts {
            texts.end();
        }
    }
}

/// Follows the names of a form through pieces of any size.
#[derive(Debug, Default)]
struct Pairs {
    name: String,
    /// Within a value, or in a name longer than any name of interest.
    past: bool,
}

impl Pairs {
    /// Maximum characters of a name; each character may be percent-encoded.
    const NAME_LIMIT: usize = 3 * "model".len();

    /// Takes bytes of a form. Returns whether the name of the model ends here.
    fn name_model(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for &byte in bytes {
            match byte {
                b'&' => {
                    self.name.clear();
                    self.past = false;
                }
                b'=' if !self.past => {
                    found |= dialect::percent_decode(&self.name) == "model";
                    self.past = true;
                }
                _ if !self.past && self.name.len() < Self::NAME_LIMIT => {
                    self.name.push(char::from(byte));
                }
                _ => self.past = true,
            }
        }
        found
    }
}

impl Hints {
    fn is(&self, part: &str) -> bool {
        self.content_type.as_deref().is_some_and(|value| {
            let kind = value.split(';').next().unwrap_or_default().as_bytes();
            kind.windows(part.len()).any(|it| it.eq_ignore_ascii_case(part.as_bytes()))
        })
    }

    fn is_sse(&self) -> bool {
        self.is("event-stream") && !self.is("vnd.amazon")
    }

    fn is_ndjson(&self) -> bool {
        self.is("ndjson") || self.is("jsonl") || self.is("stream+json")
    }

    fn is_json(&self) -> bool {
        self.is("json")
    }
}

/// Determines the coding of a body from the field and the first bytes. If both contradict, the
/// bytes win: recorders and proxies undo codings and leave the field.
fn actual_coding(hint: Option<Coding>, start: &[u8]) -> Coding {
    let by_magic = match start {
        [0x1f, 0x8b, ..] => Some(Coding::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Coding::Zstd),
        _ => None,
    };
    let looks_plain = start.iter().all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e))
        && start.trim_ascii().first().is_none_or(|byte| b"{[\":deir-".contains(byte));
    match hint {
        Some(Coding::Unknown) => Coding::Unknown,
        Some(Coding::Brotli) if !looks_plain => Coding::Brotli,
        Some(Coding::Deflate) if !looks_plain => Coding::Deflate,
        Some(Coding::Gzip | Coding::Zstd) if by_magic.is_some() => by_magic.unwrap_or_default(),
        Some(_) => Coding::Identity,
        None => match (by_magic, start) {
            (Some(coding), _) => coding,
            (None, [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..]) => Coding::Deflate,
            (None, [0, ..]) => Coding::Identity,
            (None, _) if looks_plain => Coding::Identity,
            // Brotli has no magic number; other data will not decode to anything readable.
            (None, _) => Coding::Brotli,
        },
    }
}

/// Byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Strips a byte order mark before JSON: the mark is not part of the text (RFC 8259 §8.1).
fn without_mark<'b>(form: &Form, start: &'b [u8]) -> &'b [u8] {
    let json = matches!(form, Form::Json);
    start.strip_prefix(MARK).filter(|_| json).unwrap_or(start)
}

/// Determines the form of a body. `None`: more bytes are needed. More bytes must not contradict a
/// decision on few bytes, or the form would depend on how the bytes were cut.
fn sniff(hints: &Hints, start: &[u8], enough: bool, strict: bool) -> Option<Form> {
    let content_type = || hints.content_type.as_deref().unwrap_or_default();
    if hints.is("application/grpc") {
        let form = hints.grpc.map(|table| Form::Grpc(Box::new(grpc::Decoder::new(table))));
        return Some(form.unwrap_or(Form::Opaque));
    }
    if hints.is("multipart/") {
        if strict && !hints.is("multipart/form-data") {
            return Some(Form::Opaque); // no other sort names its parts
        }
        let decoder = multipart::Decoder::from_content_type(content_type());
        return Some(decoder.map_or(Form::Opaque, |it| Form::Multipart(Box::new(it))));
    }
    if hints.is("vnd.amazon.eventstream") {
        return Some(Form::EventStream(Box::default()));
    }
    if !enough && MARK.starts_with(start) {
        return None;
    }
    let text = start.strip_prefix(MARK).unwrap_or(start).trim_ascii_start();
    match text.first() {
        Some(b'{' | b'[' | b'"') => return Some(Form::Json),
        None if !enough => return None,
        _ if hints.is_sse() => return Some(Form::Sse(sse::Decoder::default())),
        _ => {}
    }
    let fields: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];
    if fields.iter().any(|field| text.starts_with(field)) {
        return Some(Form::Sse(sse::Decoder::default()));
    }
    if start.first() == Some(&0) {
        match eventstream::Decoder::recognizes(start) {
            Some(true) => return Some(Form::EventStream(Box::default())),
            None if !enough => return None,
            _ => {}
        }
    }
    let may_become = fields.iter().any(|field| field.starts_with(text));
    (enough || !may_become).then_some(Form::Opaque)
}

/// Gathers the facts of a body of any form.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "marks of the current event, each on its own")]
struct Parser {
    schema: &'static Schema,
    scanner: Scanner,
    facts: Facts,
    texts: Option<Texts>,
    nested: Nested,
    templates: Templates,
    /// Data of the current event was seen.
    in_event: bool,
    /// The current event is a repetition: the rest of the event adds no facts.
    repeated: bool,
    /// The current event came in pieces: a changed fact shows at the end of the event.
    pieced: bool,
    exception: Option<String>,
    corrupt: bool,
    /// First bytes of a data line received in pieces, to detect [`END_OF_STREAM`].
    marker: Vec<u8>,
    /// The stream announced the end.
    over: bool,
}

/// Last data line of the streams of OpenAI and many other providers.
const END_OF_STREAM: &[u8] = b"[DONE]";

impl Parser {
    fn new(schema: &'static Schema, texts: Option<Texts>) -> Self {
        Self {
            schema,
            scanner: Scanner::new(schema),
            facts: Facts::default(),
            texts,
            nested: Nested::new(schema),
            templates: Templates::default(),
            in_event: false,
            repeated: false,
            pieced: false,
            exception: None,
            corrupt: false,
            marker: Vec::new(),
            over: false,
        }
    }

    fn memory_bytes(&self) -> usize {
        self.scanner.memory_bytes()
            + self.nested.scanner.memory_bytes()
            + self.facts.memory_bytes()
            + self.texts.as_ref().map_or(0, Texts::memory_bytes)
            + self.templates.memory_bytes()
    }

    fn scan(&mut self, bytes: &[u8]) {
        let Self { scanner, facts, texts, nested, .. } = self;
        let mut gather = Gather { facts, texts: texts.as_mut(), nested: Some(nested) };
        scanner.feed(bytes, &mut gather);
    }

    fn finish_scan(&mut self) {
        let Self { scanner, facts, texts, .. } = self;
        scanner.finish(&mut Gather { facts, texts: texts.as_mut(), nested: None });
    }

    fn read_tail(&mut self, held: &[u8]) {
        let Self { schema, facts, texts, .. } = self;
        tail::read(held, schema, &mut Gather { facts, texts: texts.as_mut(), nested: None });
    }

    fn multipart(&mut self, decoder: &mut multipart::Decoder, bytes: &[u8]) {
        let Self { schema, facts, texts, .. } = self;
        decoder.feed(bytes, schema, &mut Gather { facts, texts: texts.as_mut(), nested: None });
    }

    fn multipart_gap(&mut self, decoder: &mut multipart::Decoder) {
        let Self { facts, texts, .. } = self;
        decoder.gap(&mut Gather { facts, texts: texts.as_mut(), nested: None });
    }

    fn gap(&mut self) {
        self.scanner.reset();
        self.in_event = false;
        self.repeated = false;
        self.templates.clear();
    }

    /// Scans the data of an event received whole, and learns the shape.
    fn scan_event(&mut self, line: &[u8]) {
        self.scanner.reset();
        let learn = line.len() <= Templates::LINE_LIMIT;
        if learn {
            self.scanner.record_holes();
            self.facts.take_changed();
            self.facts.take_appended();
        }
        let before = self.scanner.texts_seen();
        self.scan(line);
        if learn {
            if self.facts.take_changed() {
                self.templates.clear();
            }
            let whole = self.scanner.is_between_texts() && self.scanner.texts_seen() > before;
            if whole
                && !self.facts.take_appended()
                && let Some(holes) = self.scanner.holes()
            {
                self.templates.learn(line, holes);
            }
        } else {
            self.templates.clear();
        }
    }
}

impl sse::Handler for Parser {
    fn line(&mut self, line: &[u8]) {
        if self.repeated {
            return;
        }
        self.over |= line == END_OF_STREAM;
        if std::mem::replace(&mut self.in_event, true) {
            self.pieced = true;
            self.scan(b"\n");
            self.scan(line);
        } else if let Some(written) = self.templates.matches(line) {
            self.facts.count_written(written);
            self.repeated = true;
        } else {
            self.scan_event(line);
        }
    }

    fn begin(&mut self) {
        self.marker.clear();
        self.pieced = true;
        if std::mem::replace(&mut self.in_event, true) {
            self.scan(b"\n");
        } else {
            self.scanner.reset();
        }
    }

    fn piece(&mut self, piece: &[u8]) {
        let room = (END_OF_STREAM.len() + 1).saturating_sub(self.marker.len());
        self.marker.extend_from_slice(piece.get(..room).unwrap_or(piece));
        self.scan(piece);
    }

    fn end(&mut self) {
        self.over |= self.marker == END_OF_STREAM;
    }

    fn dispatch(&mut self) {
        if std::mem::take(&mut self.in_event) && !std::mem::take(&mut self.repeated) {
            self.finish_scan();
            self.scanner.reset();
            if std::mem::take(&mut self.pieced) && self.facts.take_changed() {
                self.templates.clear();
            }
        }
    }
}

impl eventstream::Handler for Parser {
    fn begin(&mut self, _event: Option<&str>, exception: Option<&str>) {
        self.scanner.reset();
        if let Some(exception) = exception.filter(|name| name.len() <= Facts::TEXT_LIMIT) {
            self.exception = Some(exception.to_owned());
        }
    }

    fn payload(&mut self, piece: &[u8]) {
        self.scan(piece);
    }

    fn end(&mut self) {
        self.finish_scan();
    }

    fn corrupt(&mut self) {
        self.corrupt = true;
    }
}

/// Shapes of events scanned in full; a repetition adds no facts.
///
/// An event is a repetition if the only differences from an earlier event are inside unwanted
/// strings and numbers. Of two values of a fact the last counts, so scanning a repetition would
/// keep the same facts again. The rule holds only while no other event has changed a fact since, so
/// a change forgets every shape. Events appending to a list never become shapes.
#[derive(Debug, Default)]
struct Templates {
    /// Shapes past `active` are forgotten; the memory is kept.
    known: Vec<Shape>,
    active: usize,
    next: usize,
}

#[derive(Debug, Default)]
struct Shape {
    line: Vec<u8>,
    holes: Vec<Hole>,
}

impl Templates {
    /// Longest event learnt, in bytes.
    const LINE_LIMIT: usize = 4 << 10;
    const COUNT: usize = 4;

    fn clear(&mut self) {
        self.active = 0;
        self.next = 0;
    }

    fn memory_bytes(&self) -> usize {
        let one = |shape: &Shape| {
            shape.line.capacity() + shape.holes.capacity() * size_of::<Hole>() + size_of::<Shape>()
        };
        self.known.iter().map(one).sum()
    }

    fn learn(&mut self, line: &[u8], holes: &[Hole]) {
        let at = if self.active < Self::COUNT {
            self.active += 1;
            self.active - 1
        } else {
            self.next = (self.next + 1) % Self::COUNT;
            self.next
        };
        if self.known.len() <= at {
            self.known.push(Shape::default());
        }
        let Some(shape) = self.known.get_mut(at) else { return };
        shape.line.clear();
        shape.line.extend_from_slice(line);
        shape.holes.clear();
        shape.holes.extend_from_slice(holes);
    }

    /// Returns the bytes written by a model in a line of a known shape. Tries the last match first.
    fn matches(&mut self, line: &[u8]) -> Option<u64> {
        let mut known = self.known.iter().take(self.active).enumerate();
        let (at, written) = known
            .find_map(|(at, shape)| Some((at, same_shape(&shape.line, &shape.holes, line)?)))?;
        self.known.swap(0, at);
        Some(written)
    }
}

fn same_shape(known: &[u8], holes: &[Hole], mut line: &[u8]) -> Option<u64> {
    let (mut from, mut written) = (0, 0);
    for hole in holes {
        line = line.strip_prefix(known.get(from..hole.start)?)?;
        let len = if hole.written {
            let (len, said) = written_len(line)?;
            written += said;
            len
        } else if hole.string {
            string_len(line)?
        } else {
            let len = line.iter().take_while(|&&byte| is_number(byte)).count();
            Some(len).filter(|&len| len > 0)?
        };
        line = line.get(len..)?;
        from = hole.end;
    }
    (line == known.get(from..)?).then_some(written)
}

/// Returns the bytes up to the quote ending a string, and the count without escapes. `None` if a
/// closer look is needed.
fn written_len(bytes: &[u8]) -> Option<(usize, u64)> {
    let (mut at, mut said) = (0, 0);
    loop {
        let plain = crate::json::string_stop(bytes.get(at..)?);
        at += plain;
        said += plain as u64;
        match (bytes.get(at)?, bytes.get(at + 1)) {
            (b'"', _) => return Some((at, said)),
            (_, None | Some(b'u')) => return None,
            _ => {
                at += 2;
                said += 1;
            }
        }
    }
}

/// Returns the bytes up to the quote ending a string.
fn string_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += crate::json::string_stop(bytes.get(at..)?);
        match bytes.get(at)? {
            b'"' => return Some(at),
            _ => at += 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_coding_is_found_however_the_body_is_cut() {
        let text = b"{\"m\"\x00\xff: 1}";
        for len in 1..=text.len() {
            let mut body = Body::new(&dialect::REQUESTS, Hints::default(), None);
            for piece in text.chunks(len) {
                body.feed(piece);
            }
            assert!(matches!(body.stage, Stage::Plain), "pieces of {len}: {:?}", body.stage);
        }
    }

    #[test]
    fn events_say_the_same_whether_their_shape_is_known_or_not() {
        let said = |len: usize| {
            let hints = Hints {
                content_type: Some("text/event-stream".to_owned()),
                coding: Some(Coding::Identity),
                grpc: None,
            };
            let mut body = Body::new(&dialect::RESPONSES, hints, None);
            for number in 0..40 {
                let reason = if number == 33 { "\"length\"" } else { "null" };
                let events = [
                    format!(
                        r#"{{"id":"r1","n":{number},"choices":[{{"delta":{{"content":"no {number}"}},"finish_reason":{reason}}}]}}"#
                    ),
                    format!(
                        r#"{{"id":"r1","choices":[{{"delta":{{"content":"\"{number}\""}}}}],"x":"{number}"}}"#
                    ),
                    format!(
                        r#"{{"id":"r1","usage":{{"completion_tokens":{}}},"x":"y"}}"#,
                        number / 9
                    ),
                ];
                for event in events.iter().take(1 + number % 3) {
                    let event = format!("data: {event}\n\n");
                    event.as_bytes().chunks(len).for_each(|piece| body.feed(piece));
                }
            }
            body.end(true);
            let facts = body.facts();
            let reasons: Vec<String> = facts.reasons().map(str::to_owned).collect();
            (facts.written_bytes(), facts.count(Field::CompletionTokens), reasons)
        };
        let whole = said(usize::MAX);
        assert_eq!(whole, (288, Some(4), vec!["length".to_owned()]));
        for len in [1, 7, 30] {
            assert_eq!(said(len), whole, "pieces of {len}");
        }
    }

    #[test]
    fn the_form_is_found_however_the_body_is_cut() {
        let types = [None, Some("text/event-stream"), Some("application/json")];
        for content_type in types.map(|it| it.map(str::to_owned)) {
            for text in
                ["\r\n {\"id\": \"x\"}", "\u{feff}{\"id\": \"x\"}", "\u{feff} {\"id\": \"x\"}"]
            {
                for len in 1..=text.len() {
                    let coding = Some(Coding::Identity);
                    let hints = Hints { content_type: content_type.clone(), coding, grpc: None };
                    let mut body = Body::new(&dialect::RESPONSES, hints, None);
                    text.as_bytes().chunks(len).for_each(|piece| body.feed(piece));
                    assert_eq!(
                        body.facts().text(Field::Id),
                        Some("x"),
                        "pieces of {len}: {text:?}"
                    );
                }
            }
        }
    }
}
