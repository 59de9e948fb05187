//! `genops-agent witness`: cosigns the logs of other hosts.
//!
//! The C2SP tlog-witness protocol over plain HTTP/1.1, a request per connection; TLS is the task of
//! a proxy in front. The witness should run beyond the reach of the logs' administrators.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use clap::Args;
use genops_evidence::note::{KeyType, SecretKey};
use genops_evidence::witness::{Answer, REQUEST_LIMIT, Witness};

use super::{line, outward, read_key};

/// Requests served at the same time; more are refused at once.
const CONNECTIONS: usize = 64;

/// Longest request head, in bytes.
const HEAD_LIMIT: usize = 8 << 10;

/// Maximum time for a request to arrive, and for an answer to leave.
const DEADLINE: Duration = Duration::from_secs(10);

/// Cosign the logs of other hosts, so that a rewritten or cut log is found out.
///
/// Run the witness beyond the reach of the logs' administrators. The witness prints its public key
/// at the start; logs and auditors need the key.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen at.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8741")]
    listen: SocketAddr,
    /// Folder for the key and for the cosigned checkpoints.
    #[arg(long, value_name = "FOLDER", default_value_os_t = outward::default_state())]
    state: PathBuf,
    /// Name of a witness without a key: a URL without scheme.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Public key of a log to cosign, or a file with the key; may be given more than once.
    #[arg(long = "log", value_name = "VKEY", required = true)]
    logs: Vec<String>,
}

impl Serve {
    /// Serves until the end of the process.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let logs = self.logs.iter().map(|log| read_key(log)).collect::<anyhow::Result<Vec<_>>>()?;
        for log in &logs {
            ensure!(log.key_type() == KeyType::Note, "`{log}` is a witness's key, not a log's");
        }
        let state = || self.state.display().to_string();
        std::fs::create_dir_all(&self.state).with_context(state)?;
        let key = self.key()?;
        let public = key.public().to_string();
        let witness = Witness::open(&self.state, key, logs).with_context(state)?;
        let listener = TcpListener::bind(self.listen).with_context(|| self.listen.to_string())?;
        let bound = listener.local_addr()?;
        line(&mut io::stdout(), &format!("{public}\nlistening at http://{bound}"))?;
        accept(&listener, &Arc::new(Mutex::new(witness)));
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the witness's key; creates a missing key.
    fn key(&self) -> anyhow::Result<SecretKey> {
        let path = self.state.join("witness.key");
        let place = || path.display().to_string();
        if !path.exists() {
            let name = self
                .name
                .as_deref()
                .with_context(|| format!("{}: no key yet; give the witness a --name", place()))?;
            let key = SecretKey::generate(name, KeyType::Cosignature)?;
            genops_evidence::secret::write(&path, &key.to_text()).with_context(place)?;
        }
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(&path).with_context(place)?);
        let key = SecretKey::parse(&text).with_context(place)?;
        ensure!(
            key.public().key_type() == KeyType::Cosignature,
            "{}: not a witness's key",
            place()
        );
        Ok(key)
    }
}

fn accept(listener: &TcpListener, witness: &Arc<Mutex<Witness>>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or the peer was gone already: no reason to spin.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (its_witness, its_open) = (Arc::clone(witness), Arc::clone(&open));
        let served =
            std::thread::Builder::new().name("witness-request".to_owned()).spawn(move || {
                // The peer went away or was too slow, at the peer's own loss.
                serve(stream, &its_witness).unwrap_or_default();
                its_open.fetch_sub(1, Ordering::Relaxed);
            });
        if served.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, witness: &Mutex<Witness>) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    stream.set_write_timeout(Some(DEADLINE))?;
    let answer = match read_request(&mut stream, deadline)? {
        Ok(request) => respond(&request, witness),
        Err(status) => plain(status),
    };
    let Answer { status, content_type, body } = answer;
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}",
        reason(status)
    );
    stream.write_all(reply.as_bytes())?;
    // The rest sent by the peer is read and dropped, within bounds: a close with bytes unread would
    // discard the answer before the peer reads the answer.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    io::copy(&mut stream.take(REQUEST_LIMIT as u64), &mut io::sink()).map(|_| ())
}

fn plain(status: u16) -> Answer {
    let body = format!("{}\n", reason(status));
    Answer { status, content_type: "text/plain; charset=utf-8", body }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        422 => "Unprocessable Entity",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    }
}

struct HttpRequest {
    method: String,
    path: String,
    body: Vec<u8>,
}

/// Reads a request; `Err` is the status of the refusal.
fn read_request(stream: &mut TcpStream, deadline: Instant) -> io::Result<Result<HttpRequest, u16>> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > HEAD_LIMIT {
            return Ok(Err(431));
        }
        read_more(stream, &mut bytes, deadline)?;
    };
    let head = String::from_utf8_lossy(bytes.get(..head_end).unwrap_or_default()).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path)) = (first.next(), first.next()) else { return Ok(Err(400)) };
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Err(411));
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>());
        }
    }
    let length = match (method, length) {
        (_, Some(Ok(length))) => length,
        (_, Some(Err(_))) => return Ok(Err(400)),
        ("POST", None) => return Ok(Err(411)),
        (_, None) => 0,
    };
    if length > REQUEST_LIMIT {
        return Ok(Err(413));
    }
    while bytes.len() < head_end + length {
        read_more(stream, &mut bytes, deadline)?;
    }
    let body = bytes.get(head_end..head_end + length).unwrap_or_default().to_vec();
    Ok(Ok(HttpRequest { method: method.to_owned(), path: path.to_owned(), body }))
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut chunk = [0; 4096];
    let read = stream.read(&mut chunk)?;
    if read == 0 || left.is_zero() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
    Ok(())
}

fn respond(request: &HttpRequest, witness: &Mutex<Witness>) -> Answer {
    let HttpRequest { method, path, body } = request;
    let mut witness = witness.lock().unwrap_or_else(PoisonError::into_inner);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    match (method.as_str(), path.as_str()) {
        ("POST", "/add-checkpoint") => {
            witness.add_checkpoint(body, since.map_or(0, |since| since.as_secs()))
        }
        ("GET", path) => match path.trim_start_matches('/').split_once('/') {
            Some((origin, "checkpoint")) => witness.checkpoint(origin),
            _ => plain(404),
        },
        (_, "/add-checkpoint") => plain(405),
        _ => plain(404),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use genops_evidence::note::PublicKey;
    use genops_evidence::witness::Outcome;
    use genops_evidence::{Directory, Log, Options};

    use super::super::outward::{WitnessAt, submit};
    use super::*;

    /// A witness at its own port, for the log in `log`.
    fn start(log: &Directory, state: &std::path::Path) -> (WitnessAt, SocketAddr) {
        let key = SecretKey::new("witness.example/w", KeyType::Cosignature, &[5; 32]).unwrap();
        let public: PublicKey = key.public().clone();
        let witness = Witness::open(state, key, log.keys().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || accept(&listener, &Arc::new(Mutex::new(witness))));
        (WitnessAt { url: format!("http://{address}/"), key: public }, address)
    }

    fn grow(folder: &std::path::Path, records: u64) {
        let (mut log, _) = Log::open(folder, Options::new("example.com/w")).unwrap();
        for index in 0..records {
            log.append(format!("record {index}").as_bytes()).unwrap();
        }
        log.close().unwrap();
    }

    #[test]
    fn a_log_is_cosigned_over_the_network_and_a_rollback_is_found_out() {
        let (log, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        grow(log.path(), 300);
        let directory = Directory::new(log.path());
        let (witness, _) = start(&directory, state.path());
        let outcome = submit(&directory, &witness, 0, 1).unwrap().unwrap();
        let Outcome::Cosigned(checkpoint, _) = outcome else { panic!("{outcome:?}") };
        assert!(checkpoint.note.verify(&witness.key).is_ok());
        assert_eq!(submit(&directory, &witness, 300, 1).unwrap(), None);
        let kept = std::fs::read(log.path().join("checkpoint")).unwrap();
        grow(log.path(), 100);
        // The log forgot the cosigned size; the witness reports the size.
        let outcome = submit(&directory, &witness, 0, 1).unwrap();
        assert!(matches!(outcome, Some(Outcome::Cosigned(..))), "{outcome:?}");
        std::fs::write(log.path().join("checkpoint"), kept).unwrap();
        let outcome = submit(&directory, &witness, 0, 1).unwrap();
        assert_eq!(outcome, Some(Outcome::Conflict(400)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let (log, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        grow(log.path(), 3);
        let (_, address) = start(&Directory::new(log.path()), state.path());
        let ask = |request: &[u8]| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap_or_default();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap_or_default();
            answer.split(' ').nth(1).unwrap_or("closed").to_owned()
        };
        assert_eq!(ask(b"GET /nothing HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(ask(b"GET /add-checkpoint HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(ask(b"PUT /add-checkpoint HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(ask(b"POST /add-checkpoint HTTP/1.1\r\n\r\n"), "411");
        let huge = format!("POST /add-checkpoint HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 1 << 30);
        assert_eq!(ask(huge.as_bytes()), "413");
        assert_eq!(ask(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), "400");
        assert_eq!(ask(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"), "closed");
        assert_eq!(ask(&vec![b'a'; 20_000]), "431");
    }
}
