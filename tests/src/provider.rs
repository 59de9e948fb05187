//! A local AI provider over real TLS: the OpenAI and Anthropic APIs as their SDKs speak them.
//!
//! It answers with fixed text and realistic bodies, and writes down every byte and every request that
//! reached it, so that a test can say "not one byte arrived". It uses rustls: an agent that looks at
//! `libssl` sees the clients and never the provider. It runs no model and checks no key.

mod answers;
mod log;
mod server;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
pub use log::{Connection, Log, Request, START_LIMIT};

use crate::authority::Authority;

/// The header that says how long an answer took, as OpenAI names it.
pub(crate) const PROCESSING_MS: &str = "openai-processing-ms";

/// What the provider does with a connection.
#[derive(Clone, Debug, Default)]
pub enum Behaviour {
    /// Answers as the API would.
    #[default]
    Answer,
    /// Waits for the end of a request's head, then writes exactly these bytes, whatever they say.
    Script {
        /// Head and body, or anything else.
        bytes: Vec<u8>,
        /// Keep the connection open afterwards; otherwise it is closed.
        hang: bool,
    },
}

/// How to start a [`Provider`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Offer HTTP/2 in ALPN.
    pub http2: bool,
    /// Pause before each piece of a streamed answer.
    pub piece_delay: Duration,
    /// How long an answer takes on average; each takes between a half and one and a half of it.
    pub think: Duration,
    /// Append each connection and request to this file, one JSON object a line.
    pub log: Option<PathBuf>,
    /// Say of each connection whether this text came out of TLS, anywhere in it.
    pub marker: Option<String>,
}

/// A running provider; it stops when dropped.
#[derive(Debug)]
pub struct Provider {
    /// Where it listens.
    pub address: SocketAddr,
    /// What reached it.
    pub log: Log,
    authority: Authority,
    behaviour: Arc<Mutex<Behaviour>>,
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("provider")
            .enable_all()
            .build()?;
        let acceptor = tokio_rustls::TlsAcceptor::from(authority.server_config(options.http2)?);
        let server = server::Server {
            log: log.clone(),
            behaviour: Arc::clone(&behaviour),
            piece_delay: options.piece_delay,
            think: options.think,
            thoughts: Arc::default(),
        };
        runtime.spawn(async move { server.accept(listener, acceptor).await });
        Ok(Self { address, log, authority, behaviour, runtime: Some(runtime) })
    }

    /// Writes the certificate that clients must trust.
    pub fn write_root(&self, path: &Path) -> anyhow::Result<()> {
        self.authority.write_root(path)
    }

    /// What the requests that arrive from now on are met with.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
