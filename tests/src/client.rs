//! A client for measurements: OpenSSL from the system, HTTP/1.1 keep-alive, and nothing else.
//!
//! The real clients spend a millisecond in their own code, too much to measure differences of
//! microseconds. To the agent, the client is a program mapping `libssl.so.3`, as any other.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use openssl::ssl::{SslConnector, SslMethod, SslStream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::process;
use crate::provider::PROCESSING_MS;

/// Longest response head and body, in bytes.
const RESPONSE_LIMIT: usize = 1 << 20;

/// Requests to make, and the provider to call.
#[derive(Clone, Debug, clap::Args)]
pub struct Client {
    /// Address of the provider.
    #[arg(long)]
    pub address: SocketAddr,
    /// Name of the provider for the client.
    #[arg(long, default_value = "api.openai.com")]
    pub name: String,
    /// Certificate to trust.
    #[arg(long)]
    pub root: std::path::PathBuf,
    /// Requests on one connection.
    #[arg(long, default_value_t = 1)]
    pub requests: usize,
    /// Requests a second; without a rate, as fast as answers come.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Ask for a stream with every n-th request; otherwise with none.
    #[arg(long)]
    pub stream_every: Option<usize>,
    /// Requests before the measurement.
    #[arg(long, default_value_t = 0)]
    pub warm_up: usize,
    /// Open the given number of connections, make `requests` on each, and keep all open until
    /// standard input ends.
    #[arg(long)]
    pub connections: Option<usize>,
    /// Model to ask for.
    #[arg(long, default_value = "gpt-4o-mini")]
    pub model: String,
    /// Ask for another model each time, and each n-th time for a model name ending with `-pro`; go
    /// on after errors.
    #[arg(long)]
    pub deny_every: Option<usize>,
}

/// Result of a request of [`Client::deny_every`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Model name, unique among all requests on the host.
    pub model: String,
    /// Whether the whole answer came.
    pub answered: bool,
    /// Time from the first byte written to the answer or the error, in seconds.
    pub seconds: f64,
}

/// Latencies and CPU time of the requests of a connection.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time of each request, from the call writing the request to the last byte of the answer,
    /// without the processing time reported by the provider; sorted.
    pub latencies: Vec<Duration>,
    /// CPU time of the client's threads per request, in nanoseconds.
    pub cpu_ns: u64,
}

impl Client {
    /// Runs the requests and prints a JSON report.
    pub fn run(&self) -> anyhow::Result<()> {
        let report = match (self.connections, self.deny_every) {
            (Some(count), _) => self.keep_open(count)?,
            (None, Some(every)) => serde_json::to_value(self.attempts(every)?)?,
            (None, None) => self.measure()?.report(),
        };
        writeln!(std::io::stdout(), "{report}")?;
        if self.connections.is_some() {
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }

    /// Makes the requests one after another on a connection.
    pub fn measure(&self) -> anyhow::Result<Measured> {
        let mut stream = self.connect()?;
        let [plain, streamed] = [false, true].map(|stream| self.request(stream));
        let mut response = Vec::new();
        for _ in 0..self.warm_up {
            exchange(&mut stream, &plain, &mut response)?;
        }
        let mut latencies = Vec::with_capacity(self.requests);
        let begun = Instant::now();
        let cpu_before = process::cpu_ns(std::process::id())?;
        for index in 0..self.requests {
            self.wait_for_turn(begun, index);
            let wants_stream = self.stream_every.is_some_and(|every| index % every == 0);
            let request = if wants_stream { &streamed } else { &plain };
            let written = Instant::now();
            exchange(&mut stream, request, &mut response)?;
            latencies.push(written.elapsed().saturating_sub(processing(&response)));
        }
        let cpu_ns = process::cpu_ns(std::process::id())?.saturating_sub(cpu_before);
        latencies.sort_unstable();
        Ok(Measured { cpu_ns: cpu_ns / u64::try_from(self.requests.max(1))?, latencies })
    }

    fn keep_open(&self, count: usize) -> anyhow::Result<Value> {
        let request = self.request(false);
        let mut response = Vec::new();
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = self.connect()?;
            for _ in 0..self.requests {
                exchange(&mut stream, &request, &mut response)?;
            }
            open.push(stream);
        }
        // The connections live as long as the process.
        std::mem::forget(open);
        Ok(json!({"connections": count}))
    }

    /// Makes the requests on a connection. An error ends the connection, and the next request opens
    /// another.
    pub fn attempts(&self, every: usize) -> anyhow::Result<Vec<Attempt>> {
        let (mut connection, mut response) = (None, Vec::new());
        let mut attempts = Vec::with_capacity(self.requests);
        let started = Instant::now();
        for index in 1..=self.requests {
            self.wait_for_turn(started, index - 1);
            let ending = if index % every == 0 { "-pro" } else { "" };
            let model = format!("{}-{}-{index}{ending}", self.model, std::process::id());
            let request = self.asking(&model, false);
            let stream = connection.take().map_or_else(|| self.connect(), Ok);
            let begun = Instant::now();
            // While no agent decides, the connection may be refused as well.
            connection = stream
                .and_then(|mut stream| {
                    exchange(&mut stream, &request, &mut response)?;
                    Ok(stream)
                })
                .ok();
            let answered = connection.is_some();
            attempts.push(Attempt { model, answered, seconds: begun.elapsed().as_secs_f64() });
        }
        Ok(attempts)
    }

    /// Waits until a request is due, if a rate is set.
    fn wait_for_turn(&self, begun: Instant, index: usize) {
        if let Some(rate) = self.rate {
            let due = begun + Duration::from_secs(1).div_f64(rate).mul_f64(as_f64(index));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    fn connect(&self) -> anyhow::Result<SslStream<TcpStream>> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_ca_file(Path::new(&self.root))?;
        let tcp = TcpStream::connect(self.address).with_context(|| format!("{}", self.address))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        builder
            .build()
            .connect(&self.name, tcp)
            .map_err(|error| anyhow::anyhow!("handshake: {error}"))
    }

    fn request(&self, stream: bool) -> Vec<u8> {
        self.asking(&self.model, stream)
    }

    fn asking(&self, model: &str, stream: bool) -> Vec<u8> {
        let mut body = json!({
            "model": model, "max_tokens": 64,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
        });
        if stream && let Some(fields) = body.as_object_mut() {
            fields.insert("stream".to_owned(), true.into());
            fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        let body = body.to_string();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer test-key\r\n\
             Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.name,
            body.len()
        )
        .into_bytes()
    }
}

impl Measured {
    /// Returns the latency not exceeded by `share` of the requests.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(&self.latencies, share)
    }

    fn report(&self) -> Value {
        let microseconds = |share| self.quantile(share).as_secs_f64() * 1e6;
        json!({
            "requests": self.latencies.len(), "p50_us": microseconds(0.5), "p99_us": microseconds(0.99),
            "cpu_ns": self.cpu_ns,
        })
    }
}

/// Returns the value not exceeded by `share` of `sorted`; zero if `sorted` is empty.
#[must_use]
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index within the slice"
    )]
    let index = (as_f64(last) * share).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// Sends a request and reads the whole answer. Fails unless the status is 200.
fn exchange(
    stream: &mut SslStream<TcpStream>,
    request: &[u8],
    response: &mut Vec<u8>,
) -> anyhow::Result<()> {
    stream.write_all(request)?;
    response.clear();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended inside an answer");
        response.extend(buffer.iter().take(read));
        ensure!(response.len() <= RESPONSE_LIMIT, "an answer of more than {RESPONSE_LIMIT} bytes");
        if is_complete(response)? {
            return Ok(());
        }
    }
}

/// Processing time reported by the provider.
fn processing(response: &[u8]) -> Duration {
    let head = response.split(|byte| *byte == b'\n').take_while(|line| *line != b"\r");
    let value = head
        .filter_map(|line| {
            str::from_utf8(line).ok()?.strip_prefix(PROCESSING_MS)?.strip_prefix(": ")
        })
        .find_map(|value| value.trim().parse::<f64>().ok());
    Duration::try_from_secs_f64(value.unwrap_or(0.0) / 1e3).unwrap_or_default()
}

fn is_complete(response: &[u8]) -> anyhow::Result<bool> {
    let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    let (head, rest) = response.split_at_checked(end).context("the head is in the response")?;
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "an answer other than 200: {head}");
    let field =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    if let Some(length) = field("content-length") {
        return Ok(rest.len() >= 4 + length.trim().parse::<usize>()?);
    }
    if field("transfer-encoding").is_none() {
        bail!("an answer without a length: {head}");
    }
    Ok(rest.ends_with(b"\r\n0\r\n\r\n"))
}

#[cfg(test)]
mod tests {
    use super::is_complete;

    #[track_caller]
    fn check(response: &str) {
        let bytes = response.as_bytes();
        for end in 0..bytes.len() {
            let part = bytes.get(..end).expect("a prefix");
            assert!(!is_complete(part).expect("a good answer"), "complete after {end} bytes");
        }
        assert!(is_complete(bytes).expect("a good answer"));
    }

    #[test]
    fn an_answer_ends_with_its_length_or_its_last_chunk() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    }

    #[test]
    fn an_error_is_no_answer() {
        assert!(is_complete(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
