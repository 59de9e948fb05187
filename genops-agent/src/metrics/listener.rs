//! Listener for `/metrics`, `/healthz` and `/readyz`.
//!
//! A hand-written responder for three fixed paths, in place of an HTTP framework: a single request
//! per connection, GET and HEAD only, no body read, a bounded head, a deadline, a bounded number of
//! connections at once. The listener has a separate thread, so that neither a slow scrape nor a
//! busy exporter delays a verdict, and answers even when the exporter's runtime is stuck.
//!
//! Anybody may connect, and nobody can keep a health check from its answer. All heads are read
//! concurrently. If all places are taken, the oldest head of the peer with most heads is dropped.
//! Answers to health checks fit into the socket's buffer, so no write waits; pages of metrics,
//! possibly larger, are written by separate threads with a limit of their own.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Metrics;

/// Most request heads read at the same time.
const HEADS: usize = 128;

/// Most connections accepted before the next look at the heads.
const ACCEPTED_AT_ONCE: usize = 16;

/// Most pages of metrics written at the same time; further requests are refused at once.
const PAGES: usize = 8;

/// Longest request head, in bytes.
const HEAD_LIMIT: usize = 8 << 10;

/// Maximum time from accepting a connection to the end of the request head.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// Timeout for writing a page of metrics.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept: out of descriptors.
const REST: Duration = Duration::from_millis(100);

/// Stack of a thread, in bytes.
const STACK: usize = 128 << 10;

/// Binds `address` and serves until the process ends.
///
/// # Errors
///
/// Fails if the address cannot be bound. The returned address has the port chosen for port 0.
pub(crate) fn start(address: SocketAddr, metrics: Arc<Metrics>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let mut desk = Desk { listener, metrics, heads: Vec::new(), pages: Arc::default() };
    thread("metrics").spawn(move || {
        loop {
            desk.turn();
        }
    })?;
    Ok(bound)
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

/// A connection with an incomplete request head.
#[derive(Debug)]
struct Head {
    stream: TcpStream,
    peer: IpAddr,
    since: Instant,
    read: Vec<u8>,
}

/// Result of reading a head.
enum Read {
    Part,
    Whole,
    /// The peer went away; nothing depends on the answer.
    Gone,
}

/// State of the listener.
struct Desk {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    /// Oldest first.
    heads: Vec<Head>,
    /// Number of pages being written.
    pages: Arc<AtomicUsize>,
}

impl Desk {
    /// Waits for the next event, and handles all ready connections.
    fn turn(&mut self) {
        let now = Instant::now();
        let left = |it: &Head| (it.since + HEAD_DEADLINE).saturating_duration_since(now);
        let patience = self.heads.first().map(left);
        let patience = patience.and_then(|it| Timespec::try_from(it).ok());
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.heads.iter().map(|it| PollFd::new(&it.stream, PollFlags::IN)));
        if poll(&mut fds, patience.as_ref()).is_err() {
            // A signal; or no memory, which is no reason to spin.
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.listener.accept() {
                Ok((stream, peer)) => self.take_up(stream, peer.ip()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    // Out of descriptors, or the peer was gone already.
                    std::thread::sleep(REST);
                    break;
                }
            }
        }
        self.read();
    }

    fn take_up(&mut self, stream: TcpStream, peer: IpAddr) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.heads.len() >= HEADS {
            // Complete heads are served before a head is dropped.
            self.read();
        }
        if self.heads.len() >= HEADS {
            self.make_room();
        }
        self.heads.push(Head { stream, peer, since: Instant::now(), read: Vec::new() });
    }

    /// Drops the oldest head of the peer with most heads.
    fn make_room(&mut self) {
        let mut places: HashMap<IpAddr, usize> = HashMap::new();
        for head in &self.heads {
            *places.entry(head.peer).or_default() += 1;
        }
        let most = places.values().max().copied().unwrap_or_default();
        let of_most = |it: &Head| places.get(&it.peer) == Some(&most);
        if let Some(at) = self.heads.iter().position(of_most) {
            self.heads.remove(at);
            self.metrics.scrapes_refused.increment();
        }
    }

    /// Reads all heads, and answers the complete ones.
    fn read(&mut self) {
        let now = Instant::now();
        for mut head in std::mem::take(&mut self.heads) {
            match head.go_on() {
                Read::Whole => self.answer(head),
                Read::Part if now.saturating_duration_since(head.since) < HEAD_DEADLINE => {
                    self.heads.push(head);
                }
                Read::Part | Read::Gone => {}
            }
        }
    }

    fn answer(&self, head: Head) {
        let Head { stream, read, .. } = head;
        if !asks_for_metrics(&read) {
            // The socket's buffer takes the answer; a peer already gone does not matter.
            let (answer, with_body) = respond(&read, &self.metrics);
            return write(stream, &answer, with_body).unwrap_or_default();
        }
        if self.pages.fetch_add(1, Ordering::Relaxed) >= PAGES {
            self.pages.fetch_sub(1, Ordering::Relaxed);
            return self.metrics.scrapes_refused.increment();
        }
        let (metrics, pages) = (Arc::clone(&self.metrics), Arc::clone(&self.pages));
        let served = thread("metrics-page").spawn(move || {
            // An error means a peer gone or too slow.
            page(stream, &read, &metrics).unwrap_or_default();
            pages.fetch_sub(1, Ordering::Relaxed);
        });
        if served.is_err() {
            self.pages.fetch_sub(1, Ordering::Relaxed);
            self.metrics.scrapes_refused.increment();
        }
    }
}

impl Head {
    /// Reads up to the empty line, or to the limit.
    fn go_on(&mut self) -> Read {
        let mut piece = [0; 1 << 10];
        loop {
            let read = match self.stream.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Read::Part,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Read::Gone,
            };
            // The end of the head may span two pieces.
            let from = self.read.len().saturating_sub(3);
            self.read.extend_from_slice(piece.get(..read).unwrap_or_default());
            let new = self.read.get(from..).unwrap_or_default();
            let ended = new.windows(4).any(|four| four == b"\r\n\r\n");
            if read == 0 || ended || self.read.len() >= HEAD_LIMIT {
                return Read::Whole;
            }
        }
    }
}

/// Writes a page of metrics, at the peer's pace.
fn page(stream: TcpStream, head: &[u8], metrics: &Metrics) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (answer, with_body) = respond(head, metrics);
    write(stream, &answer, with_body)
}

fn write(mut stream: TcpStream, answer: &Answer, with_body: bool) -> io::Result<()> {
    let Answer { status, content_type, body } = answer;
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    if with_body {
        text.push_str(body);
    }
    stream.write_all(text.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Whether the target is the page possibly too large for the socket's buffer.
fn asks_for_metrics(head: &[u8]) -> bool {
    let target = head.split(|&byte| byte == b' ' || byte == b'\r').nth(1).unwrap_or_default();
    target.split(|&byte| byte == b'?').next() == Some(b"/metrics")
}

/// A complete answer.
#[derive(Debug)]
struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

/// Returns the answer, and whether to send the body (not to HEAD).
fn respond(head: &[u8], metrics: &Metrics) -> (Answer, bool) {
    let text = |status, body: String| Answer { status, content_type: TEXT, body };
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else {
        return (text("400 Bad Request", "the request is not HTTP\n".to_owned()), true);
    };
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version)) = (method, target, version) else {
        return (text("400 Bad Request", "the request is not HTTP\n".to_owned()), true);
    };
    if !version.starts_with("HTTP/1.") {
        return (text("505 HTTP Version Not Supported", "use HTTP/1.1\n".to_owned()), true);
    }
    if !matches!(method, "GET" | "HEAD") {
        return (text("405 Method Not Allowed", "use GET\n".to_owned()), true);
    }
    let path = target.split('?').next().unwrap_or_default();
    let answer = match path {
        "/metrics" => Answer { status: "200 OK", content_type: PROMETHEUS, body: metrics.render() },
        "/healthz" => text("200 OK", "alive\n".to_owned()),
        "/readyz" => match metrics.readiness.missing() {
            None => {
                let said = ["ready".to_owned()].into_iter().chain(metrics.readiness.remarks());
                text("200 OK", said.collect::<Vec<_>>().join("\n") + "\n")
            }
            Some(missing) => text("503 Service Unavailable", format!("not ready: {missing}\n")),
        },
        _ => text("404 Not Found", "here are /metrics, /healthz and /readyz\n".to_owned()),
    };
    (answer, method == "GET")
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use expect_test::{Expect, expect};

    use super::super::Part;
    use super::*;

    /// Sends `request` to a real listener and shows the status line and the body's first line.
    #[track_caller]
    fn check(metrics: Metrics, request: &[u8], expected: &Expect) {
        let address = start("127.0.0.1:0".parse().unwrap(), Arc::new(metrics)).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if !request.starts_with(b"HEAD") {
            assert_eq!(length, body.len().to_string());
        }
        let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        expected.assert_eq(&format!("{}\n{}\n", first(head), first(body)));
    }

    fn ready() -> Metrics {
        let metrics = Metrics::default();
        metrics.readiness.reached(Part::Probes);
        metrics.readiness.reached(Part::Policy);
        metrics
    }

    #[test]
    fn the_three_paths_answer() {
        check(
            Metrics::default(),
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            &expect![[r"
                HTTP/1.1 200 OK
                # HELP genops_agent_build_info The agent's version.
            "]],
        );
        check(
            Metrics::default(),
            b"GET /healthz HTTP/1.0\r\n\r\n",
            &expect![[r"
                HTTP/1.1 200 OK
                alive
            "]],
        );
        check(
            Metrics::default(),
            b"GET /readyz?verbose HTTP/1.1\r\n\r\n",
            &expect![[r"
                HTTP/1.1 503 Service Unavailable
                not ready: probes: not attached yet; policy: not loaded yet
            "]],
        );
        check(
            ready(),
            b"GET /readyz HTTP/1.1\r\n\r\n",
            &expect![[r"
                HTTP/1.1 200 OK
                ready
            "]],
        );
    }

    /// Requests a health check's path, and tells whether an answer came in time.
    fn probe(address: SocketAddr, path: &str) -> bool {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (first, second) = path.split_at(3);
        stream.write_all(format!("GET {first}").as_bytes()).unwrap();
        stream.write_all(format!("{second} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200 OK\r\n")
    }

    #[test]
    fn heads_that_never_end_keep_no_probe_from_its_answer() {
        let address = start("127.0.0.1:0".parse().unwrap(), Arc::new(ready())).unwrap();
        let mut held = Vec::new();
        for round in 0..6 {
            for _ in 0..HEADS / 2 {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /hea").unwrap();
                held.push(stream);
            }
            for path in ["/healthz", "/readyz"] {
                assert!(probe(address, path), "{path} in round {round}");
            }
        }
    }

    #[test]
    fn who_does_not_read_pages_keeps_no_probe_from_its_answer() {
        let address = start("127.0.0.1:0".parse().unwrap(), Arc::new(ready())).unwrap();
        let unread: Vec<TcpStream> = (0..3 * PAGES)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                stream
            })
            .collect();
        for path in ["/readyz", "/healthz"] {
            assert!(probe(address, path), "{path}");
        }
        drop(unread);
    }

    #[test]
    fn a_head_request_gets_no_body() {
        check(
            ready(),
            b"HEAD /readyz HTTP/1.1\r\n\r\n",
            &expect![[r"
                HTTP/1.1 200 OK

            "]],
        );
    }

    #[test]
    fn what_is_not_such_a_request_is_told_so() {
        check(
            ready(),
            b"POST /metrics HTTP/1.1\r\n\r\n",
            &expect![[r"
                HTTP/1.1 405 Method Not Allowed
                use GET
            "]],
        );
        check(
            ready(),
            b"GET /secret HTTP/1.1\r\n\r\n",
            &expect![[r"
                HTTP/1.1 404 Not Found
                here are /metrics, /healthz and /readyz
            "]],
        );
        check(
            ready(),
            b"\x16\x03\x01\xff\xff",
            &expect![[r"
                HTTP/1.1 400 Bad Request
                the request is not HTTP
            "]],
        );
        check(
            ready(),
            b"",
            &expect![[r"
                HTTP/1.1 400 Bad Request
                the request is not HTTP
            "]],
        );
        check(
            ready(),
            b"PRI * HTTP/2.0\r\n\r\n",
            &expect![[r"
                HTTP/1.1 505 HTTP Version Not Supported
                use HTTP/1.1
            "]],
        );
    }
}
