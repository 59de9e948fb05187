//! Connections and HTTP: hyper for all well-formed traffic, raw bytes for a script.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::http::Error;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::answers::{Answer, Event, Framing, Payload};
use super::log::{self, Counted, Layer, Log, Made};
use super::{Behaviour, Ending, PAUSE_AFTER, PROCESSING_MS};

/// Pause longer than any client waits.
const FOREVER: Duration = Duration::from_hours(1);
/// Longest request head awaited by a script, in bytes.
const HEAD_LIMIT: usize = 64 << 10;

type Body = BoxBody<Bytes, Infallible>;
type Stream = Counted<tokio_rustls::server::TlsStream<Counted<TcpStream>>>;

/// State shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) log: Log,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
    pub(super) ending: Arc<Mutex<Ending>>,
    /// Number of bodies ended by turns.
    pub(super) turns: Arc<AtomicUsize>,
    pub(super) piece_delay: Duration,
    pub(super) think: Duration,
    /// Number of delayed answers; the delay of each answer follows from the number.
    pub(super) thoughts: Arc<AtomicU64>,
}

impl Server {
    /// Serves until the runtime is shut down.
    pub(super) async fn accept(self, listener: TcpListener, acceptor: TlsAcceptor) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return eprintln!("provider: {error}"),
        };
        loop {
            // A connection gone before it is accepted is the client's affair.
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let (server, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move { server.connection(stream, peer, acceptor).await });
        }
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let sealed = Counted::new(stream, Layer::Sealed, self.log.clone());
        // A client breaking off the handshake has sent no request.
        let Ok(mut tls) = acceptor.accept(sealed).await else { return };
        let connection = self.log.opened(peer);
        tls.get_mut().0.belongs_to(connection);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let mut stream = Counted::new(tls, Layer::Application, self.log.clone());
        stream.belongs_to(connection);
        let behaviour = self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match behaviour {
            Behaviour::Answer => self.clone().serve(stream, connection, http2).await,
            Behaviour::Script { bytes, hang } => script(stream, &bytes, hang).await,
        }
        self.log.closed(connection);
    }

    async fn serve(self, stream: Stream, connection: usize, http2: bool) {
        let service = service_fn(move |request| self.clone().answer(connection, request));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder = if http2 { builder.http2_only() } else { builder.http1_only() };
        // The log has the result of a connection: its bytes and its requests.
        drop(builder.serve_connection(TokioIo::new(stream), service).await);
    }

    async fn answer(
        self,
        connection: usize,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let gzip = header(ACCEPT_ENCODING).is_some_and(|accepted| accepted.contains("gzip"));
        let pause_after = request.headers().get(PAUSE_AFTER);
        let pause_after = pause_after.and_then(|it| it.to_str().ok()?.parse().ok());
        let host = header(HOST).or(request.uri().host()).unwrap_or_default().to_owned();
        let method = request.method().to_string();
        let path = request.uri().path().to_owned();
        let Ok(body) = request.into_body().collect().await.map(http_body_util::Collected::to_bytes)
        else {
            return Response::builder().status(400).body(full(Bytes::new()));
        };
        let answer = Answer::to(&method, &path, &body);
        let made = Arc::new(Made::default());
        self.log.request(log::Request {
            connection,
            method,
            host,
            path,
            body_bytes: body.len(),
            model: answer.model.clone(),
            stream: matches!(answer.payload, Payload::Events(_)),
            input_tokens: answer.input_tokens,
            output_tokens: answer.output_tokens,
            id: answer.id,
            counted_input: answer.counted_input,
            made: Arc::clone(&made),
        });
        let mut response =
            Response::builder().status(answer.status).header("request-id", "req_genops_test");
        if !self.think.is_zero() {
            let begun = Instant::now();
            tokio::time::sleep(self.think.mul_f64(self.share())).await;
            let took = format!("{:.3}", begun.elapsed().as_secs_f64() * 1e3);
            response = response.header(PROCESSING_MS, took);
        }
        let ending = self.ending();
        match answer.payload {
            Payload::Events(events) => {
                let response = response.header(CONTENT_TYPE, "text/event-stream; charset=utf-8");
                response.body(self.pieces(events, made, pause_after, ending))
            }
            Payload::Json(json) => {
                // The whole answer is made before its first byte leaves.
                made.more(answer.output_tokens.unwrap_or(0), true);
                let mut response = response.header(CONTENT_TYPE, "application/json");
                let mut bytes = json.to_string().into_bytes();
                if gzip {
                    response = response.header(CONTENT_ENCODING, "gzip");
                    bytes = compress(&bytes);
                }
                if let Framing::Sized = answer.framing {
                    if ending == Ending::AtOnce {
                        return response.body(full(bytes.into()));
                    }
                    response = response.header(CONTENT_LENGTH, bytes.len());
                }
                let half = bytes.split_off(bytes.len() / 2);
                let halves = [bytes, half].map(|it| Bytes::from(it).into());
                response.body(self.pieces(halves.into(), made, None, ending))
            }
        }
    }

    /// Returns the ending of a body beginning now.
    fn ending(&self) -> Ending {
        let ending = *self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match ending {
            Ending::ByTurns(late) => {
                let turns = [Ending::AtOnce, Ending::Late(late), Ending::Never];
                let turn = self.turns.fetch_add(1, Ordering::Relaxed) % turns.len();
                turns.get(turn).copied().unwrap_or_default()
            }
            other => other,
        }
    }

    /// Returns a factor from 0.5 to 1.5, so that requests arriving together are not answered
    /// together.
    fn share(&self) -> f64 {
        // Multiples of the golden ratio: the next is far from the ones before (Knuth, TAOCP 6.4).
        let number = self.thoughts.fetch_add(1, Ordering::Relaxed) % 1_000;
        0.5 + (f64::from(u32::try_from(number).unwrap_or(0)) * 0.618_034).fract()
    }

    /// Returns a body sent piece by piece.
    fn pieces(
        &self,
        pieces: Vec<Event>,
        made: Arc<Made>,
        pause_after: Option<u64>,
        ending: Ending,
    ) -> Body {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
        let pause = if pieces.len() > 2 { self.piece_delay } else { Duration::ZERO };
        tokio::spawn(async move {
            for Event { bytes, tokens, tells } in pieces {
                // The timer has a resolution of a millisecond, also for no time at all.
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                if pause_after.is_some_and(|most| made.output_tokens() >= most) {
                    tokio::time::sleep(FOREVER).await;
                }
                if sender.send_data(bytes).await.is_err() {
                    return; // The client has gone.
                }
                made.more(tokens, tells);
            }
            match ending {
                Ending::Late(late) => tokio::time::sleep(late).await,
                Ending::Never => tokio::time::sleep(FOREVER).await,
                Ending::AtOnce | Ending::ByTurns(_) => {}
            }
        });
        body.boxed()
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a vector takes every byte")
}

async fn script(mut stream: Stream, bytes: &[u8], hang: bool) {
    let mut head: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < HEAD_LIMIT {
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => head.extend(buffer.iter().take(read)),
            Ok(0) | Err(_) => return,
        }
    }
    if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    if hang {
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
    } else {
        // The client may have gone first.
        drop(stream.shutdown().await);
    }
}
