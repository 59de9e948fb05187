//! A TLS server unrelated to AI, to measure the cost of the agent's probes.
//!
//! The server uses the system's libssl, as most servers do, so that each read and write meets a
//! probe. The server has a thread for each connection, uses HTTP/1.1 keep-alive and always sends
//! the same answer. The measuring client uses rustls, free of probes: any difference is the
//! server's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::authority::Authority;

/// Length of the answer's body, in bytes.
const BODY_BYTES: usize = 1024;

/// Listens on `address` and serves on threads of its own until the process ends. Returns the
/// address with its port.
pub fn serve(address: SocketAddr, root: &Path) -> anyhow::Result<SocketAddr> {
    let authority = Authority::new()?;
    authority.write_root(root)?;
    let (certificate, key) = authority.leaf()?;
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    acceptor.set_certificate(X509::from_der(certificate)?.as_ref())?;
    acceptor.set_private_key(PKey::private_key_from_der(key)?.as_ref())?;
    let acceptor = Arc::new(acceptor.build());
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let acceptor = Arc::clone(&acceptor);
            // A broken connection is the affair of its client.
            std::thread::spawn(move || drop(connection(stream, &acceptor)));
        }
    });
    Ok(address)
}

fn connection(stream: TcpStream, acceptor: &SslAcceptor) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut tls = acceptor.accept(stream).map_err(|error| anyhow::anyhow!("handshake: {error}"))?;
    let answer = answer();
    let mut request = [0; 4096];
    // A request of the measuring client fits one record.
    while tls.read(&mut request)? > 0 {
        tls.write_all(&answer)?;
    }
    Ok(())
}

fn answer() -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + BODY_BYTES, b'x');
    answer
}

/// Measures the requests per second of a keep-alive connection to the server at `address`, with the
/// certificate in `root`.
///
/// # Errors
///
/// If the server does not answer.
pub fn rate(address: SocketAddr, root: &Path, requests: u32) -> anyhow::Result<f64> {
    let mut client = Client::connect(address, root)?;
    (0..requests.div_ceil(10)).try_for_each(|_| client.ask())?;
    let begun = Instant::now();
    (0..requests).try_for_each(|_| client.ask())?;
    Ok(f64::from(requests) / begun.elapsed().as_secs_f64())
}

/// Measures the time of each request of a keep-alive connection after `warm_up` requests, sorted.
///
/// # Errors
///
/// If the server does not answer.
pub fn latencies(
    address: SocketAddr,
    root: &Path,
    warm_up: usize,
    requests: usize,
) -> anyhow::Result<Vec<Duration>> {
    let mut client = Client::connect(address, root)?;
    (0..warm_up).try_for_each(|_| client.ask())?;
    let mut latencies = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        client.ask()?;
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Keep-alive connection.
struct Client {
    tls: StreamOwned<ClientConnection, TcpStream>,
    request: String,
    answer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr, root: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "files.example.test";
        let connection = ClientConnection::new(Arc::new(config), name.try_into()?)?;
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        let tls = StreamOwned::new(connection, tcp);
        let request = format!("GET /index.html HTTP/1.1\r\nHost: {name}\r\n\r\n");
        Ok(Self { tls, request, answer: answer() })
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        self.tls.write_all(self.request.as_bytes())?;
        Ok(self.tls.read_exact(&mut self.answer)?)
    }
}
