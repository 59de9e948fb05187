//! Recordings: captured byte streams as JSON lines. All reading and writing of recordings is here.
//!
//! A line is a single event (`open`, `data`, `gap`, `close`) of a connection;
//! [`replay`](crate::replay) feeds the events to the pipeline. The reader streams, holds a single
//! line at a time, and names the line in every refusal. Recordings hold plaintext: the writer
//! creates a file readable by the owner only, and no type here shows payload in `Debug`.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use genops_governance::{Ancestor, HoldLevel, Mechanism, ProcessFacts, ProcessKey};
use memchr::memchr;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest line accepted, in bytes: the base64 of a body of 190 MiB. The reader holds a single line
/// at a time.
pub(crate) const LINE_LIMIT: usize = 256 << 20;

/// Most payload bytes written on a line; chunk borders mean nothing.
const WRITTEN_PIECE: usize = 48 << 10;

/// Direction of bytes; egress is sent by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the client to the server.
    Egress,
    /// From the server to the client.
    Ingress,
}

/// An event of a recording.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Name of the connection; unique within the recording.
    pub(crate) conn: String,
    /// Nanoseconds from the recording's origin; `None` if absent from the line.
    pub(crate) time_ns: Option<u64>,
    /// The event itself.
    pub(crate) kind: Kind,
}

/// Kind of an event on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Facts about the connection. May come late if the stream was joined midway.
    Open(Box<Open>),
    /// Plaintext, in stream order for its direction.
    Data {
        /// Direction of the bytes.
        direction: Direction,
        /// The bytes.
        bytes: Payload,
    },
    /// Missing bytes.
    Gap {
        /// Direction of the missing bytes.
        direction: Direction,
        /// Number of missing bytes, if known.
        bytes: Option<u64>,
    },
    /// End of the connection.
    Close,
}

/// Facts about a connection and its process; each is absent if unknown.
///
/// The published format ends with `tls`. The later fields are additions: with them a replay knows
/// the process as the run did, and decides the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Open {
    /// Process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// Name of the process (`/proc/PID/comm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) comm: Option<String>,
    /// Path of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exe: Option<String>,
    /// Address of the client.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "address")]
    pub(crate) local: Option<SocketAddr>,
    /// Address of the server.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "address")]
    pub(crate) remote: Option<SocketAddr>,
    /// Server name requested by the client (TLS SNI).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "not_empty")]
    pub(crate) server_name: Option<String>,
    /// Whether the bytes were under TLS on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<bool>,
    /// Whether the stream was seen from its first byte; if absent, the bytes tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_start: Option<bool>,
    /// Mechanism of the hold on egress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
    /// Start time of the process, in nanoseconds since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_ns: Option<u64>,
    /// Parent process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Parent>,
    /// Numeric user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    /// Name of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Path in the cgroup tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<String>,
    /// Innermost systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) systemd_unit: Option<String>,
    /// Container id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container_id: Option<String>,
    /// UID of the Kubernetes pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod_uid: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Kubernetes service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_account: Option<String>,
    /// Ancestor processes, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ancestry: Vec<Above>,
}

/// A process, unambiguous even after reuse of the process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Parent {
    /// Process id.
    pub(crate) pid: u32,
    /// Start time, in nanoseconds since boot.
    pub(crate) start_ns: u64,
}

/// An ancestor of a process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Above {
    /// Process id.
    pub(crate) pid: u32,
    /// Name of the process.
    pub(crate) comm: String,
    /// Path of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exe: Option<String>,
}

/// Mechanism of the hold on egress, as `genops.enforcement.mechanism` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hold {
    /// By a security hook that fails the send call.
    Lsm,
    /// In the send queue.
    #[serde(rename = "egress_hold")]
    Egress,
    /// By refusing the connection itself.
    Connect,
    /// No hold.
    None,
}

impl Hold {
    /// Converts to the engine's type.
    pub(crate) fn level(self) -> HoldLevel {
        match self {
            Self::Lsm => HoldLevel::Held(Mechanism::Lsm),
            Self::Egress => HoldLevel::Held(Mechanism::EgressHold),
            Self::Connect => HoldLevel::Held(Mechanism::Connect),
            Self::None => HoldLevel::None,
        }
    }
}

impl From<HoldLevel> for Hold {
    fn from(level: HoldLevel) -> Self {
        match level {
            HoldLevel::Held(Mechanism::Lsm) => Self::Lsm,
            HoldLevel::Held(Mechanism::EgressHold) => Self::Egress,
            HoldLevel::Held(Mechanism::Connect) => Self::Connect,
            HoldLevel::Held(Mechanism::None) | HoldLevel::None => Self::None,
        }
    }
}

impl Open {
    /// Returns the process for the engine; `None` if not even the process id is known.
    pub(crate) fn facts(&self) -> Option<ProcessFacts> {
        let key = ProcessKey { pid: self.pid?, start_ns: self.start_ns.unwrap_or(0) };
        let ancestor =
            |it: &Above| Ancestor { pid: it.pid, comm: it.comm.clone(), exe: it.exe.clone() };
        Some(ProcessFacts {
            key,
            parent: self.parent.map(|it| ProcessKey { pid: it.pid, start_ns: it.start_ns }),
            comm: self.comm.clone().unwrap_or_default(),
            exe: self.exe.clone(),
            exe_is_elsewhere: false,
            uid: self.uid,
            user: self.user.clone(),
            cgroup: self.cgroup.clone(),
            systemd_unit: self.systemd_unit.clone(),
            container_id: self.container_id.clone(),
            pod_uid: self.pod_uid.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            ancestry: self.ancestry.iter().map(ancestor).collect(),
        })
    }

    /// Converts the engine's facts to the form of a recording.
    pub(crate) fn of(facts: &ProcessFacts) -> Self {
        let ProcessFacts {
            key,
            parent,
            comm,
            exe,
            exe_is_elsewhere: _,
            uid,
            user,
            cgroup,
            systemd_unit,
            container_id,
            pod_uid,
            namespace,
            service_account,
            ancestry,
        } = facts;
        let above = |Ancestor { pid, comm, exe }: &Ancestor| Above {
            pid: *pid,
            comm: comm.clone(),
            exe: exe.clone(),
        };
        Self {
            pid: Some(key.pid),
            start_ns: Some(key.start_ns),
            parent: parent.map(|it| Parent { pid: it.pid, start_ns: it.start_ns }),
            comm: Some(comm.clone()),
            exe: exe.clone(),
            uid: *uid,
            user: user.clone(),
            cgroup: cgroup.clone(),
            systemd_unit: systemd_unit.clone(),
            container_id: container_id.clone(),
            pod_uid: pod_uid.clone(),
            namespace: namespace.clone(),
            service_account: service_account.clone(),
            ancestry: ancestry.iter().map(above).collect(),
            ..Self::default()
        }
    }
}

/// Reads an address and a port; an empty text is as if absent.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text: Option<Cow<'de, str>> = Option::deserialize(deserializer)?;
    let parse = |text: Cow<'_, str>| {
        text.parse().map_err(|_| {
            serde::de::Error::custom(format_args!(
                "`{text}` is not an address and a port, such as 192.0.2.1:443"
            ))
        })
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Captured bytes: usable, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Vec<u8>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A line that violates the format, or could not be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {fault}")]
pub(crate) struct RecordingError {
    /// Line number, counted from 1.
    pub(crate) line: u64,
    /// Fault of the line.
    pub(crate) fault: Fault,
}

/// Fault of a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Reading the file failed.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// Longer than [`LINE_LIMIT`].
    #[error("is longer than {limit} bytes; cut its data into several lines")]
    TooLong {
        /// Limit exceeded by the line.
        limit: usize,
    },
    /// Not a JSON object with the format's types.
    #[error("column {column}: {message}")]
    Json {
        /// Column, counted from 1.
        column: usize,
        /// Message of the JSON reader.
        message: String,
    },
    /// A key required by the line's type is missing.
    #[error("a `{kind}` line needs `{key}`")]
    Missing {
        /// The line's `type`.
        kind: String,
        /// The missing key.
        key: &'static str,
    },
    /// A `type` unknown to the format.
    #[error("type `{0}` is not one of open, data, gap, close")]
    UnknownType(String),
    /// `data` is not base64.
    #[error("`data` is not base64: {0}")]
    Base64(base64::DecodeError),
}

/// A line without the fields of [`Open`]. Unknown keys are ignored: the format may grow.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    conn: Cow<'a, str>,
    time_ns: Option<u64>,
    dir: Option<Direction>,
    #[serde(borrow)]
    data: Option<Coded<'a>>,
    bytes: Option<u64>,
}

/// A base64 string; most of a recording. The bytes are not checked for UTF-8: the base64 decoder
/// checks every byte anyway, and accepts fewer values.
struct Coded<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Coded<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(CodedVisitor)
    }
}

struct CodedVisitor;

impl<'de> Visitor<'de> for CodedVisitor {
    type Value = Coded<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Coded(bytes.into()))
    }

    /// A string with escapes: some writers escape the slash.
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Coded(bytes.to_vec().into()))
    }
}

/// Reader of a recording, an event at a time.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Lines begun so far.
    line: u64,
    /// Buffer reused from line to line.
    buffer: Vec<u8>,
    /// Set at the end or after a fault; nothing more is read.
    ended: bool,
    line_limit: usize,
}

impl Reader<Box<dyn BufRead>> {
    /// Opens a recording; `-` is the standard input.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let input: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::with_capacity(1 << 18, File::open(path)?))
        };
        Ok(Self::new(input))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from `input`.
    pub(crate) fn new(input: R) -> Self {
        Self { input, line: 0, buffer: Vec::new(), ended: false, line_limit: LINE_LIMIT }
    }

    /// Reads the next non-blank line into `self.buffer`; false at the end.
    fn fill(&mut self) -> Result<bool, Fault> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let limit = self.line_limit;
            let mut bounded = self.input.by_ref().take(limit as u64 + 1);
            let read = read_line(&mut bounded, &mut self.buffer).map_err(Fault::Io)?;
            if read == 0 {
                return Ok(false);
            }
            if read > limit {
                return Err(Fault::TooLong { limit });
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let result = match self.fill() {
            Ok(true) => parse(&self.buffer),
            Ok(false) => {
                self.ended = true;
                return None;
            }
            Err(fault) => Err(fault),
        };
        self.ended = result.is_err();
        Some(result.map_err(|fault| RecordingError { line: self.line, fault }))
    }
}

/// Appends a line to `buffer`, with the line feed. Returns the number of bytes; 0 at the end of the
/// input. The standard library's search for the line feed costs a multiple of `memchr`'s.
fn read_line(input: &mut impl BufRead, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let before = buffer.len();
    loop {
        let piece = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        let end = memchr(b'\n', piece).map(|at| at + 1);
        let used = end.unwrap_or(piece.len());
        buffer.extend_from_slice(piece.get(..used).unwrap_or_default());
        input.consume(used);
        if end.is_some() || used == 0 {
            return Ok(buffer.len() - before);
        }
    }
}

/// Parses a line into an event.
fn parse(line: &[u8]) -> Result<Event, Fault> {
    let Line { kind, conn, time_ns, dir, data, bytes } =
        serde_json::from_slice(line).map_err(|error| json_fault(&error))?;
    let need = |key| Fault::Missing { kind: kind.clone().into_owned(), key };
    let kind = match &*kind {
        "open" => Kind::Open(serde_json::from_slice(line).map_err(|error| json_fault(&error))?),
        "data" => {
            let direction = dir.ok_or_else(|| need("dir"))?;
            let data = data.ok_or_else(|| need("data"))?;
            let bytes = Payload(STANDARD.decode(&data.0).map_err(Fault::Base64)?);
            Kind::Data { direction, bytes }
        }
        "gap" => Kind::Gap { direction: dir.ok_or_else(|| need("dir"))?, bytes },
        "close" => Kind::Close,
        other => return Err(Fault::UnknownType(other.to_owned())),
    };
    Ok(Event { conn: conn.into_owned(), time_ns, kind })
}

/// Strips the JSON reader's own line number from the message.
fn json_fault(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
    Fault::Json { column: error.column(), message }
}

/// A line as written: only the keys with a value.
#[derive(Serialize)]
struct Written<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    conn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<Direction>,
    time_ns: u64,
    #[serde(flatten)]
    rest: T,
}

#[derive(Serialize)]
struct WrittenData<'a> {
    data: &'a str,
}

#[derive(Serialize)]
struct WrittenGap {
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct WrittenNothing {}

/// Writer of a recording. Times are nanoseconds since the Unix epoch, so that a replay sees the
/// same day and hour as the run.
#[derive(Debug)]
pub(crate) struct Writer<W: Write> {
    output: W,
    /// Base64 of the current piece, reused.
    encoded: String,
    /// Lines written.
    lines: u64,
}

impl Writer<BufWriter<File>> {
    /// Creates `path`, readable by the owner only; refuses an existing file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self::new(BufWriter::with_capacity(1 << 18, file)))
    }
}

impl<W: Write> Writer<W> {
    /// Writes to `output`, which should be buffered.
    pub(crate) fn new(output: W) -> Self {
        Self { output, encoded: String::new(), lines: 0 }
    }

    /// Lines written so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// Writes the beginning of a connection, or newly known facts about the connection.
    pub(crate) fn open(&mut self, time_ns: u64, conn: &str, open: &Open) -> io::Result<()> {
        self.line(&Written { kind: "open", conn, dir: None, time_ns, rest: open })
    }

    /// Writes bytes in stream order.
    pub(crate) fn data(
        &mut self,
        time_ns: u64,
        conn: &str,
        direction: Direction,
        bytes: &[u8],
    ) -> io::Result<()> {
        for piece in bytes.chunks(WRITTEN_PIECE) {
            let mut encoded = std::mem::take(&mut self.encoded);
            encoded.clear();
            STANDARD.encode_string(piece, &mut encoded);
            let rest = WrittenData { data: &encoded };
            let line = Written { kind: "data", conn, dir: Some(direction), time_ns, rest };
            let written = self.line(&line);
            self.encoded = encoded;
            written?;
        }
        Ok(())
    }

    /// Writes a gap; `None`: the number of missing bytes is unknown.
    pub(crate) fn gap(
        &mut self,
        time_ns: u64,
        conn: &str,
        direction: Direction,
        bytes: Option<u64>,
    ) -> io::Result<()> {
        let rest = WrittenGap { bytes };
        self.line(&Written { kind: "gap", conn, dir: Some(direction), time_ns, rest })
    }

    /// Writes the end of a connection.
    pub(crate) fn close(&mut self, time_ns: u64, conn: &str) -> io::Result<()> {
        self.line(&Written { kind: "close", conn, dir: None, time_ns, rest: WrittenNothing {} })
    }

    /// Returns the output.
    #[cfg(test)]
    pub(crate) fn into_inner(self) -> W {
        self.output
    }

    /// Flushes buffered lines to the operating system.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.output, line)?;
        self.lines += 1;
        self.output.write_all(b"\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use expect_test::{Expect, expect};

    use super::*;

    /// Reads `text` whole and byte by byte: the size of the reads must not matter.
    #[track_caller]
    fn check(text: &str, expected: &Expect) {
        let whole = read(Reader::new(text.as_bytes()));
        let trickled = read(Reader::new(BufReader::with_capacity(1, text.as_bytes())));
        assert_eq!(whole, trickled);
        expected.assert_eq(&whole);
    }

    fn read(reader: Reader<impl BufRead>) -> String {
        let line = |event| match event {
            Ok(Event { conn, time_ns, kind }) => format!("{conn} {time_ns:?} {kind:?}\n"),
            Err(error) => format!("{error}\n"),
        };
        reader.map(line).collect()
    }

    #[test]
    fn the_example_of_the_format_is_read() {
        check(
            r#"{"type":"open","conn":"c1","time_ns":1,"pid":4242,"comm":"python3","exe":"/usr/bin/python3","local":"10.0.0.5:51324","remote":"104.18.6.192:443","server_name":"api.openai.com","tls":true}
{"type":"data","conn":"c1","dir":"egress","time_ns":2,"data":"UE9TVCAv"}

{"type":"data","conn":"c1","dir":"ingress","time_ns":9,"data":"SFRUUC8x"}
{"type":"gap","conn":"c1","dir":"ingress","time_ns":10,"bytes":4096}
{"type":"gap","conn":"c1","dir":"ingress","time_ns":10,"bytes":null}
{"type":"close","conn":"c1","time_ns":11}"#,
            &expect![[r#"
                c1 Some(1) Open(Open { pid: Some(4242), comm: Some("python3"), exe: Some("/usr/bin/python3"), local: Some(10.0.0.5:51324), remote: Some(104.18.6.192:443), server_name: Some("api.openai.com"), tls: Some(true), from_start: None, hold: None, start_ns: None, parent: None, uid: None, user: None, cgroup: None, systemd_unit: None, container_id: None, pod_uid: None, namespace: None, service_account: None, ancestry: [] })
                c1 Some(2) Data { direction: Egress, bytes: 6 bytes }
                c1 Some(9) Data { direction: Ingress, bytes: 6 bytes }
                c1 Some(10) Gap { direction: Ingress, bytes: Some(4096) }
                c1 Some(10) Gap { direction: Ingress, bytes: None }
                c1 Some(11) Close
            "#]],
        );
    }

    #[test]
    fn an_open_may_lack_everything_but_its_name() {
        check(
            r#"{"type":"open","conn":"x","later":"ignored"}"#,
            &expect![[r"
                x None Open(Open { pid: None, comm: None, exe: None, local: None, remote: None, server_name: None, tls: None, from_start: None, hold: None, start_ns: None, parent: None, uid: None, user: None, cgroup: None, systemd_unit: None, container_id: None, pod_uid: None, namespace: None, service_account: None, ancestry: [] })
            "]],
        );
    }

    #[test]
    fn a_line_without_its_keys_is_named() {
        check(
            "\n{\"type\":\"data\",\"conn\":\"a\",\"data\":\"\"}",
            &expect![[r"
                line 2: a `data` line needs `dir`
            "]],
        );
        check(
            r#"{"type":"data","conn":"a","dir":"egress"}"#,
            &expect![[r"
                line 1: a `data` line needs `data`
            "]],
        );
        check(
            r#"{"type":"gap","conn":"a"}"#,
            &expect![[r"
                line 1: a `gap` line needs `dir`
            "]],
        );
        check(
            r#"{"type":"data","dir":"egress"}"#,
            &expect![[r"
                line 1: column 30: missing field `conn`
            "]],
        );
    }

    #[test]
    fn what_is_not_the_format_is_refused_with_its_place() {
        check(
            r#"{"type":"pause","conn":"a"}"#,
            &expect![[r"
                line 1: type `pause` is not one of open, data, gap, close
            "]],
        );
        check(
            r#"{"type":"data","conn":"a","dir":"up"}"#,
            &expect![[r"
                line 1: column 36: unknown variant `up`, expected `egress` or `ingress`
            "]],
        );
        check(
            r#"{"type":"data","conn":"a","dir":"egress","data":"a*=="}"#,
            &expect![[r"
                line 1: `data` is not base64: Invalid symbol 42, offset 1.
            "]],
        );
        check(
            r#"{"type":"open","conn":"a","remote":"example.com"}"#,
            &expect![[r"
                line 1: column 49: `example.com` is not an address and a port, such as 192.0.2.1:443
            "]],
        );
        check(
            r#"{"type":"open","conn":"a","pid":-1}"#,
            &expect![[r"
                line 1: column 34: invalid value: integer `-1`, expected u32
            "]],
        );
        check(
            "\u{7f}ELF",
            &expect![[r"
                line 1: column 1: expected value
            "]],
        );
        check(
            r#"{"type":"data","conn":"a","dir":"egress","da"#,
            &expect![[r"
                line 1: column 44: EOF while parsing a string
            "]],
        );
    }

    #[test]
    fn data_is_base64_however_its_string_is_written() {
        check(
            r#"{"type":"data","conn":"a","dir":"egress","data":"Pz8\/"}
{"type":"data","conn":"a","dir":"egress","data":"\u0050z8/Pz8="}
{"type":"data","conn":"a","dir":"egress","data":null}"#,
            &expect![[r"
                a None Data { direction: Egress, bytes: 3 bytes }
                a None Data { direction: Egress, bytes: 5 bytes }
                line 3: a `data` line needs `data`
            "]],
        );
        for data in [r#""Pz8\u0000""#, r#""Pz8\ud800""#, "\"Pz8\u{9}\"", "\"Pz8\u{e9}\""] {
            let line = format!(r#"{{"type":"data","conn":"a","dir":"egress","data":{data}}}"#);
            let fault = read(Reader::new(line.as_bytes()));
            assert!(fault.starts_with("line 1: `data` is not base64: "), "{data}: {fault}");
        }
        for (data, is) in [("7", "integer `7`"), ("[80]", "sequence"), ("{}", "map")] {
            let line = format!(r#"{{"type":"data","conn":"a","dir":"egress","data":{data}}}"#);
            let fault = read(Reader::new(line.as_bytes()));
            let says = format!(": invalid type: {is}, expected a string\n");
            assert!(fault.ends_with(&says), "{data}: {fault}");
        }
    }

    #[test]
    fn a_line_past_the_limit_is_refused_and_not_held() {
        let text = format!("{}\n{}", r#"{"type":"close","conn":"a"}"#, " ".repeat(200));
        let mut reader = Reader::new(text.as_bytes());
        reader.line_limit = 64;
        let rendered = read(reader);
        expect![[r"
            a None Close
            line 2: is longer than 64 bytes; cut its data into several lines
        "]]
        .assert_eq(&rendered);
    }

    #[test]
    fn what_is_written_reads_back() {
        let open = Open {
            pid: Some(7),
            comm: Some("curl \"x\"".to_owned()),
            remote: Some("[2001:db8::1]:443".parse().unwrap()),
            from_start: Some(false),
            ..Open::default()
        };
        let body: Vec<u8> = (0..=255).cycle().take(WRITTEN_PIECE * 2 + 5).collect();
        let mut writer = Writer::new(Vec::new());
        writer.open(1, "c", &open).unwrap();
        writer.data(2, "c", Direction::Egress, &body).unwrap();
        writer.gap(3, "c", Direction::Ingress, None).unwrap();
        writer.close(4, "c").unwrap();
        assert_eq!(writer.lines(), 6);
        let events: Vec<Event> =
            Reader::new(writer.output.as_slice()).collect::<Result<_, _>>().unwrap();
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            panic!("no events")
        };
        assert_eq!(first.kind, Kind::Open(Box::new(open)));
        assert_eq!(last.kind, Kind::Close);
        let read: Vec<u8> = events
            .iter()
            .filter_map(|event| match &event.kind {
                Kind::Data { direction: Direction::Egress, bytes } => Some(bytes.0.clone()),
                Kind::Data { .. } | Kind::Open(_) | Kind::Gap { .. } | Kind::Close => None,
            })
            .flatten()
            .collect();
        assert_eq!(read, body);
    }
}
