//! A local AI provider over real TLS: the OpenAI, Anthropic and Gemini APIs as their SDKs speak
//! them.
//!
//! The provider answers with fixed text and realistic bodies, and records the bytes and requests
//! received, so that a test can say "not one byte arrived". The provider uses rustls: an agent
//! probing `libssl` sees the clients and never the provider. The provider runs no model and checks
//! no key.

mod answers;
mod log;
mod server;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
pub use log::{Connection, Log, Made, Request, START_LIMIT};

use crate::authority::Authority;

/// Response header with the processing time of an answer in milliseconds, named as by OpenAI.
pub(crate) const PROCESSING_MS: &str = "openai-processing-ms";

/// Behaviour of the provider on a connection.
#[derive(Clone, Debug, Default)]
pub enum Behaviour {
    /// Answers as the API would.
    #[default]
    Answer,
    /// Waits for the end of a request's head, then writes exactly `bytes`, well formed or not.
    Script {
        /// Head and body, or anything else.
        bytes: Vec<u8>,
        /// Keep the connection open afterwards; otherwise the provider closes the connection.
        hang: bool,
    },
}

/// Time of the end of a body (the last chunk of HTTP/1.1, `END_STREAM` of HTTP/2), after the whole
/// content of the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the last piece.
    #[default]
    AtOnce,
    /// After the given time.
    Late(Duration),
    /// Never.
    Never,
    /// At once, after the given time and never, by turns.
    ByTurns(Duration),
}

/// Request header with a number of tokens to stream at once; the rest follows only long after.
pub const PAUSE_AFTER: &str = "x-pause-after";

/// Options to start a [`Provider`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Offer HTTP/2 in ALPN.
    pub http2: bool,
    /// Pause before each piece of a streamed answer.
    pub piece_delay: Duration,
    /// Average time of an answer; each answer takes between half and one and a half of the average.
    pub think: Duration,
    /// Append each connection and request to the file, a JSON object per line.
    pub log: Option<PathBuf>,
    /// Record for each connection whether the text occurred anywhere in the plaintext.
    pub marker: Option<String>,
}

/// Running provider, stopped on drop.
#[derive(Debug)]
pub struct Provider {
    /// Address of the provider.
    pub address: SocketAddr,
    /// Connections and requests received.
    pub log: Log,
    authority: Authority,
    behaviour: Arc<Mutex<Behaviour>>,
    ending: Arc<Mutex<Ending>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Provider {
    /// Listens and serves on two threads of its own.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let authority = Authority::new()?;
        let listener = TcpListener::bind(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let log = Log::new(options.log.as_deref(), options.marker.as_deref())?;
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        let ending = Arc::new(Mutex::new(Ending::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("provider")
            .enable_all()
            .build()?;
        let acceptor = tokio_rustls::TlsAcceptor::from(authority.server_config(options.http2)?);
        let server = server::Server {
            log: log.clone(),
            behaviour: Arc::clone(&behaviour),
            ending: Arc::clone(&ending),
            turns: Arc::default(),
            piece_delay: options.piece_delay,
            think: options.think,
            thoughts: Arc::default(),
        };
        runtime.spawn(async move { server.accept(listener, acceptor).await });
        Ok(Self { address, log, authority, behaviour, ending, runtime: Some(runtime) })
    }

    /// Writes the certificate for clients to trust.
    pub fn write_root(&self, path: &Path) -> anyhow::Result<()> {
        self.authority.write_root(path)
    }

    /// Sets the behaviour on connections accepted from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Sets the ending of bodies beginning from now on.
    pub fn end(&self, ending: Ending) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = ending;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
