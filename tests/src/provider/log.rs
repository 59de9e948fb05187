//! Connections and requests received by the provider, with byte counts.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::patience::scaled;

/// TLS connection with a completed handshake.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client's address.
    pub peer: SocketAddr,
    /// Bytes of plaintext, as written by the client's program.
    pub application_bytes: u64,
    /// Bytes received from the network after the handshake, readable or not.
    pub sealed_bytes: u64,
    /// Beginning of the plaintext, at most [`START_LIMIT`] bytes.
    pub start: Vec<u8>,
    /// Neither side has closed the connection so far.
    pub open: bool,
    /// The marker occurred in the plaintext.
    pub marked: bool,
    /// End of the plaintext, where a marker may begin.
    tail: Vec<u8>,
}

/// Most plaintext bytes kept of a connection.
pub const START_LIMIT: usize = 4 << 10;

/// Request with a body received in full.
#[derive(Clone, Debug)]
pub struct Request {
    /// Index of the request's [`Connection`].
    pub connection: usize,
    /// Method, as sent.
    pub method: String,
    /// The `Host` header, or the authority of HTTP/2.
    pub host: String,
    /// Path without the query.
    pub path: String,
    /// Length of the body, in bytes.
    pub body_bytes: usize,
    /// The model asked for.
    pub model: Option<String>,
    /// The answer was sent as server-sent events.
    pub stream: bool,
    /// Input tokens reported in the answer.
    pub input_tokens: Option<u64>,
    /// Output tokens reported in the answer.
    pub output_tokens: Option<u64>,
    /// Id of the answer; `None` for an embedding.
    pub id: Option<String>,
    /// Input tokens counted by the provider, reported in the answer or not.
    pub counted_input: u64,
    /// Progress of the answer.
    pub made: Arc<Made>,
}

/// Progress of the provider with an answer.
#[derive(Debug, Default)]
pub struct Made {
    output_tokens: AtomicU64,
    told: AtomicBool,
}

impl Made {
    /// Output tokens made so far.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        self.output_tokens.load(Ordering::Relaxed)
    }

    /// Whether the usage has been reported.
    #[must_use]
    pub fn told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    pub(super) fn more(&self, output_tokens: u64, tells: bool) {
        self.output_tokens.fetch_add(output_tokens, Ordering::Relaxed);
        self.told.fetch_or(tells, Ordering::Relaxed);
    }
}

/// Log shared by the provider's threads and the test.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    connections: Vec<Connection>,
    requests: Vec<Request>,
    file: Option<File>,
    marker: Vec<u8>,
}

impl Log {
    pub(super) fn new(path: Option<&Path>, marker: Option<&str>) -> anyhow::Result<Self> {
        let file = match path {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Some(file.with_context(|| format!("{}", path.display()))?)
            }
            None => None,
        };
        let marker = marker.unwrap_or_default().as_bytes().to_vec();
        Ok(Self(Arc::new(Mutex::new(State { file, marker, ..State::default() }))))
    }

    /// Every connection so far.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.lock().connections.clone()
    }

    /// Every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Number of requests so far.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.lock().requests.len()
    }

    /// Waits until there are `count` connections; returns false if `patience` ends first.
    #[must_use]
    pub fn wait_for_connections(&self, count: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + scaled(patience);
        while self.lock().connections.len() < count {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits until there are `count` requests.
    pub fn wait_for_requests(&self, count: usize, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + scaled(patience);
        while self.request_count() < count {
            let arrived = self.request_count();
            anyhow::ensure!(Instant::now() < deadline, "{arrived} of {count} requests arrived");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub(super) fn opened(&self, peer: SocketAddr) -> usize {
        let mut state = self.lock();
        let connection = state.connections.len();
        state.connections.push(Connection {
            peer,
            application_bytes: 0,
            sealed_bytes: 0,
            start: Vec::new(),
            open: true,
            marked: false,
            tail: Vec::new(),
        });
        state.write(
            &json!({"type": "connection", "connection": connection, "peer": peer.to_string()}),
        );
        connection
    }

    pub(super) fn request(&self, request: Request) {
        let mut state = self.lock();
        let Request {
            connection,
            method,
            host,
            path,
            body_bytes,
            model,
            stream,
            input_tokens,
            output_tokens,
            id,
            counted_input: _,
            made: _,
        } = &request;
        let line = json!({
            "type": "request", "connection": connection, "method": method, "host": host, "path": path,
            "body_bytes": body_bytes, "model": model, "stream": stream,
            "input_tokens": input_tokens, "output_tokens": output_tokens, "id": id,
        });
        state.write(&line);
        state.requests.push(request);
    }

    pub(super) fn closed(&self, connection: usize) {
        let mut state = self.lock();
        let Some(entry) = state.connections.get_mut(connection) else { return };
        entry.open = false;
        let line = json!({
            "type": "close", "connection": connection,
            "application_bytes": entry.application_bytes, "sealed_bytes": entry.sealed_bytes,
        });
        state.write(&line);
    }

    fn count(&self, connection: usize, layer: Layer, bytes: &[u8]) {
        let mut state = self.lock();
        let State { connections, marker, .. } = &mut *state;
        let Some(entry) = connections.get_mut(connection) else { return };
        match layer {
            Layer::Application => {
                let room = START_LIMIT.saturating_sub(entry.start.len());
                entry.start.extend(bytes.iter().take(room));
                entry.application_bytes += bytes.len() as u64;
                if entry.meets(marker, bytes) {
                    state.write(&json!({"type": "marker", "connection": connection}));
                }
            }
            Layer::Sealed => entry.sealed_bytes += bytes.len() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Adds `bytes` and returns whether the marker now occurs for the first time.
    fn meets(&mut self, marker: &[u8], bytes: &[u8]) -> bool {
        if marker.is_empty() || self.marked {
            return false;
        }
        self.tail.extend(bytes);
        self.marked = self.tail.windows(marker.len()).any(|it| it == marker);
        let read = self.tail.len().saturating_sub(marker.len() - 1);
        self.tail.drain(..read);
        self.marked
    }

    /// Returns whether any part of a request arrived: any byte, or on HTTP/2 any frame of a stream.
    #[must_use]
    pub fn has_request(&self) -> bool {
        let Some(mut frames) = self.start.strip_prefix(HTTP2_PREFACE) else {
            return self.application_bytes > 0 || self.sealed_bytes > 0;
        };
        // RFC 9113 section 4.1: length (3 bytes), type, flags, stream.
        while let Some((&[high, middle, low, _, _, stream @ ..], rest)) =
            frames.split_first_chunk::<9>()
        {
            if stream != [0; 4] {
                return true;
            }
            let length = u32::from_be_bytes([0, high, middle, low]);
            frames = rest.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        // Bytes on the wire are the plaintext and the bytes added by TLS to each record.
        self.sealed_bytes > self.application_bytes + SEALING_LIMIT
    }
}

/// First bytes of an HTTP/2 client (RFC 9113 section 3.4), part of no request.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// More bytes than TLS adds to the few records of a preface, and fewer than a request has.
const SEALING_LIMIT: u64 = 128;

impl State {
    /// Writes a line. A failed write makes the test reading the log fail; serving goes on.
    fn write(&mut self, line: &Value) {
        if let Some(file) = &mut self.file
            && let Err(error) = writeln!(file, "{line}")
        {
            eprintln!("provider log: {error}");
        }
    }
}

/// Counted side of TLS.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layer {
    /// Below TLS.
    Sealed,
    /// Above TLS.
    Application,
}

/// Stream counting the bytes read from it, from [`Counted::belongs_to`] on.
#[derive(Debug)]
pub(super) struct Counted<S> {
    inner: S,
    layer: Layer,
    log: Log,
    connection: Option<usize>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, layer: Layer, log: Log) -> Self {
        Self { inner, layer, log, connection: None }
    }

    /// Counts bytes for `connection` from here on.
    pub(super) fn belongs_to(&mut self, connection: usize) {
        self.connection = Some(connection);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(connection) = self.connection {
            self.log.count(connection, self.layer, buf.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
