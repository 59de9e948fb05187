//! Serves `/metrics`, `/healthz` and `/readyz`.
//!
//! A hand-written responder for three fixed paths, in place of an HTTP framework: one request a
//! connection, GET and HEAD only, no body read, a bounded head, a deadline, a bounded number of
//! connections at once. It runs on threads of its own, so that neither a slow scrape nor a busy
//! exporter delays a verdict, and it still answers when the exporter's runtime is stuck.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Metrics;

/// Requests served at the same time; more are refused at once.
const CONNECTIONS: usize = 16;

/// Longest request head, in bytes.
const HEAD_LIMIT: usize = 8 << 10;

/// From accepting a connection to the end of its request head.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// For writing the answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Stack of a request's thread, in bytes.
const STACK: usize = 128 << 10;

/// Binds `address` and serves it until the process ends.
///
/// # Errors
///
/// Where the address cannot be bound; the returned address has the port that was chosen for 0.
pub(crate) fn start(address: SocketAddr, metrics: Arc<Metrics>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let bound = listener.local_addr()?;
    thread("metrics").spawn(move || accept(&listener, &metrics))?;
    Ok(bound)
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

fn accept(listener: &TcpListener, metrics: &Arc<Metrics>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or the peer was gone already: neither is a reason to spin.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            metrics.scrapes_refused.increment();
            continue;
        }
        let (its_metrics, its_open) = (Arc::clone(metrics), Arc::clone(&open));
        let served = thread("metrics-request").spawn(move || {
            // The peer went away or was too slow: its loss, and nothing here depends on it.
            serve(stream, &its_metrics).unwrap_or_default();
            its_open.fetch_sub(1, Ordering::Relaxed);
        });
        if served.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
            metrics.scrapes_refused.increment();
        }
    }
}

fn serve(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let head = read_head(&mut stream)?;
    let (answer, with_body) = respond(&head, metrics);
    let Answer { status, content_type, body } = answer;
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if with_body {
        stream.write_all(body.as_bytes())?;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// Reads up to the empty line, or as much as the limit allows.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + HEAD_DEADLINE;
    let mut head = Vec::with_capacity(1 << 10);
    let mut piece = [0; 1 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut piece)?;
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
        let ended = head.windows(4).any(|four| four == b"\r\n\r\n");
        if read == 0 || ended || head.len() >= HEAD_LIMIT {
            return Ok(head);
        }
    }
}

/// An answer in full.
#[derive(Debug)]
struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

/// What to answer, and whether with the body (not to HEAD).
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
