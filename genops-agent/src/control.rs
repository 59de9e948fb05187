//! The agent's control socket, used by `top`, `approve` and `budget`.
//!
//! A client sends a single request as a JSON line and gets JSON lines back: a single answer, or for
//! `watch` the AWUs from then on. Only root and the agent's own user are served. Nothing here can
//! hold the events thread: the events thread publishes into bounded queues, and takes requests
//! between other work.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use genops_governance::{AccountKey, Approval, Awu, Engine, Now, Scope};
use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;
use crate::render;

/// Default path of the socket.
pub(crate) const SOCKET: &str = "/run/genops/agent.sock";

/// Most clients served at the same time; further clients are refused.
const CLIENTS: usize = 8;

/// Most AWUs queued for a client; beyond the limit, AWUs are counted and not sent.
const QUEUE: usize = 1_024;

/// Most requests waiting for the events thread.
const REQUESTS: usize = 16;

/// Longest request, in bytes.
const REQUEST_LIMIT: u64 = 64 << 10;

/// Timeout of a client for sending the request or taking a line, and of the agent for answering.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stack of a client's thread, in bytes.
const STACK: usize = 256 << 10;

/// Request of a client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The AWUs from now on.
    Watch {},
    /// The accounts of all budgets.
    Budgets {},
    /// Raises or lowers a budget in the present period.
    AdjustBudget {
        /// Name of the budget.
        budget: String,
        /// Change, in nano-USD, tokens or nanoseconds.
        delta: i64,
        /// Name of the person making the change.
        by: String,
        /// Reason for the change.
        why: String,
    },
    /// A human's approval of a request, or of a request of the same kind.
    Approve {
        /// `genops.approval.request` of the blocked AWU.
        approval_request: String,
        /// Name of the approver.
        by: String,
        /// Most that the request may cost, in nano-USD.
        ceiling_nano_usd: i64,
        /// Validity of the approval, in seconds.
        valid_seconds: u64,
        /// Approve any request of the same kind, whatever its content.
        #[serde(default)]
        kind: bool,
    },
}

/// Answer to a client.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done, with the result.
    Done(serde_json::Value),
    /// Not done, with the reason.
    Refused(String),
}

/// A period of a budget. Amounts are nano-USD, tokens or nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Account {
    /// Name of the budget.
    pub(crate) budget: String,
    /// Name of the period.
    pub(crate) period: String,
    /// First second of the period, since 1970.
    pub(crate) start_unix_s: i64,
    /// First second after the period, since 1970.
    pub(crate) end_unix_s: i64,
    /// `USD`, `tokens` or `compute_seconds`.
    pub(crate) unit: String,
    /// The limit, with adjustments.
    pub(crate) allocated: i64,
    /// Reserved for calls still running.
    pub(crate) reserved: i64,
    /// Used by calls that ended.
    pub(crate) consumed: i64,
    /// Amount free for new reservations.
    pub(crate) remaining: i64,
    /// The account is from before a change of the budget's unit: no new call draws on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) superseded: bool,
}

/// Carries out a request, on the engine's thread.
///
/// Output of the engine during the call (evidence, changes of the ledger) must be made durable
/// before the client gets the answer.
pub(crate) fn perform(request: Request, peer: Peer, engine: &mut Engine, now: Now) -> Answer {
    let done = match request {
        Request::Watch {} => Err("not a request for the engine".to_owned()),
        Request::Budgets {} => {
            let accounts = engine.ledger().accounts();
            let accounts: Vec<Account> =
                accounts.map(|(key, it)| account(key, it, engine.is_superseded(key))).collect();
            serde_json::to_value(accounts).map_err(|error| error.to_string())
        }
        Request::AdjustBudget { budget, delta, by, why } => engine
            .adjust(now, &budget, delta, &by, &why)
            .map(|()| serde_json::json!({"budget": budget, "delta": delta})),
        Request::Approve { approval_request, by, ceiling_nano_usd, valid_seconds, kind } => {
            let valid_ns = valid_seconds.saturating_mul(1_000_000_000);
            // Unique enough for a name: no two approvals are given in the same nanosecond.
            let id = format!("approval-{:x}", now.unix_ns);
            let approval = Approval {
                id: id.clone(),
                request: approval_request,
                scope: if kind { Scope::Kind } else { Scope::Request },
                approver: by,
                ceiling_nano_usd,
                given_unix_ns: now.unix_ns,
                expires_unix_ns: now.unix_ns.saturating_add(valid_ns),
            };
            engine.approve(now, approval, &peer.detail()).map(|()| serde_json::json!({"id": id}))
        }
    };
    done.map_or_else(Answer::Refused, Answer::Done)
}

fn account(key: &AccountKey, account: &genops_governance::Account, superseded: bool) -> Account {
    Account {
        budget: key.name(),
        period: account.period.clone(),
        start_unix_s: key.start_s,
        end_unix_s: account.end_s,
        unit: account.unit.as_str().to_owned(),
        allocated: account.allocated(),
        reserved: account.reserved,
        consumed: account.consumed(),
        remaining: account.remaining(),
        superseded,
    }
}

/// Client of the socket, as reported by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    uid: Option<u32>,
    /// User of the login session (`proc_pid_loginuid(5)`); unchanged by becoming root.
    login_uid: Option<u32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
            return Self::default();
        };
        let path = format!("/proc/{}/loginuid", peer.pid.as_raw_nonzero());
        let login_uid = std::fs::read_to_string(path).ok().and_then(|it| it.trim().parse().ok());
        // The kernel's value without a login.
        let login_uid = login_uid.filter(|it| *it != u32::MAX);
        Self { uid: Some(peer.uid.as_raw()), login_uid }
    }

    /// Details for a record, beside the name given by the client.
    fn detail(self) -> Vec<(&'static str, String)> {
        let Self { uid, login_uid } = self;
        let all = [("approver_uid", uid), ("approver_login_uid", login_uid)];
        all.into_iter().filter_map(|(name, it)| Some((name, it?.to_string()))).collect()
    }
}

/// A request waiting for the events thread.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The request; never [`Request::Watch`].
    pub(crate) request: Request,
    /// The client.
    pub(crate) peer: Peer,
    answer: SyncSender<Answer>,
}

impl Pending {
    /// Sends the answer to the client. A client gone meanwhile is ignored.
    pub(crate) fn answer(self, answer: Answer) {
        self.answer.try_send(answer).unwrap_or_default();
    }
}

type Watchers = Arc<Mutex<Vec<SyncSender<Arc<Awu>>>>>;

/// The control socket, served until dropped.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    watchers: Watchers,
    requests: Receiver<Pending>,
    metrics: Arc<Metrics>,
}

impl Control {
    /// Creates the socket at `path`, and the directory if missing.
    ///
    /// # Errors
    ///
    /// Fails if the socket cannot be created, or another agent serves the path.
    pub(crate) fn start(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let listener = bind(path, 0o600)?;
        let (pending, requests) = sync_channel(REQUESTS);
        let watchers = Watchers::default();
        let its_watchers = Arc::clone(&watchers);
        std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(STACK)
            .spawn(move || accept(&listener, &its_watchers, &pending))?;
        Ok(Self { path: path.to_owned(), watchers, requests, metrics })
    }

    /// Sends an AWU to all watching clients; never waits.
    pub(crate) fn publish(&self, awu: &Arc<Awu>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| match watcher.try_send(Arc::clone(awu)) {
            Ok(()) => true,
            Err(std::sync::mpsc::TrySendError::Full(_)) => {
                self.metrics.lost_top_queue_full.increment();
                true
            }
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => false,
        });
    }

    /// Returns the next request, if any waits.
    pub(crate) fn next(&self) -> Option<Pending> {
        self.requests.try_recv().ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // If the removal fails, the next agent finds a stale socket.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// Binds a socket with mode `mode`; replaces a socket without a server.
pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent serves it"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, watchers: &Watchers, pending: &SyncSender<Pending>) {
    // Each client's thread holds a clone.
    let clients = Arc::new(());
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or the client was gone already: neither is a reason to spin.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if !is_trusted(&stream) || Arc::strong_count(&clients) > CLIENTS {
            let refusal = Answer::Refused("too many clients, or not root".to_owned());
            // A refused client may close without reading.
            send(&stream, &refusal).unwrap_or_default();
            continue;
        }
        let (watchers, pending) = (Arc::clone(watchers), pending.clone());
        let client = Arc::clone(&clients);
        let served = std::thread::Builder::new()
            .name("control-client".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // An error means a client gone or too slow.
                serve(&stream, &watchers, &pending).unwrap_or_default();
                drop(client);
            });
        // Without a thread the stream is dropped: the client sees the end.
        drop(served);
    }
}

/// Accepts root and the agent's own user. The mode of the socket says the same, but a directory
/// writable by others could be abused between the creation of the socket and the change of its
/// mode.
fn is_trusted(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn send(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn serve(
    stream: &UnixStream,
    watchers: &Watchers,
    pending: &SyncSender<Pending>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).take(REQUEST_LIMIT).read_line(&mut line)?;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return send(stream, &Answer::Refused(format!("not a request: {error}"))),
    };
    if let Request::Watch {} = request {
        return watch(stream, watchers);
    }
    let (answer, answered) = sync_channel(1);
    let peer = Peer::of(stream);
    let refusal = match pending.try_send(Pending { request, peer, answer }) {
        Ok(()) => match answered.recv_timeout(PATIENCE) {
            Ok(answer) => return send(stream, &answer),
            Err(_) => "the agent did not answer in time",
        },
        Err(_) => "the agent is busy; try again",
    };
    send(stream, &Answer::Refused(refusal.to_owned()))
}

fn watch(mut stream: &UnixStream, watchers: &Watchers) -> io::Result<()> {
    let (sender, awus) = sync_channel::<Arc<Awu>>(QUEUE);
    watchers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    loop {
        let mut text = String::new();
        match awus.recv_timeout(Duration::from_secs(1)) {
            Ok(awu) => render::json(&awu, &mut text),
            // An empty line finds out whether the client is still there.
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => text.push('\n'),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
        }
        stream.write_all(text.as_bytes())?;
    }
}

/// Sends a single request to the running agent.
///
/// # Errors
///
/// Fails if no agent serves `path`, or the answer violates the protocol.
pub(crate) fn ask(path: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Streams the AWUs of the running agent as JSON lines; an empty line is a sign of life.
///
/// # Errors
///
/// Fails if no agent serves `path`.
pub(crate) fn watch_lines(path: &Path) -> io::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(path)?;
    let mut line = serde_json::to_vec(&Request::Watch {})?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(BufReader::new(stream))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use super::*;

    fn socket(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("genops-{name}-{}/agent.sock", std::process::id()))
    }

    #[test]
    fn a_request_reaches_the_events_thread_and_its_answer_the_client() {
        let path = socket("ask");
        let control = Control::start(&path, Arc::default()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let its_path = path.clone();
        let client = std::thread::spawn(move || ask(&its_path, &Request::Budgets {}));
        let pending = loop {
            if let Some(pending) = control.next() {
                break pending;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(pending.request, Request::Budgets {});
        pending.answer(Answer::Done(serde_json::json!([1])));
        assert_eq!(client.join().unwrap().unwrap(), Answer::Done(serde_json::json!([1])));
        drop(control);
        assert!(!path.exists());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn whoever_watches_gets_the_units_and_nobody_else_costs_anything() {
        let path = socket("watch");
        let metrics = Arc::<Metrics>::default();
        let control = Control::start(&path, Arc::clone(&metrics)).unwrap();
        let recording = crate::replay::tests::chat("/usr/bin/python3", "gpt-4o-mini");
        let awus = crate::replay::tests::awus(&crate::config::Config::default(), &recording);
        let awu = Arc::new(awus.into_iter().next().unwrap());
        control.publish(&awu);
        let mut lines = watch_lines(&path).unwrap();
        let watching = || !control.watchers.lock().unwrap().is_empty();
        while !watching() {
            std::thread::sleep(Duration::from_millis(1));
        }
        control.publish(&awu);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let mut expected = String::new();
        render::json(&awu, &mut expected);
        assert_eq!(line, expected);
        assert_eq!(metrics.lost_top_queue_full.get(), 0);
        drop(control);
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_request_is_refused_and_a_stale_socket_replaced() {
        let path = socket("stale");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let control = Control::start(&path, Arc::default()).unwrap();
        let second = Control::start(&path, Arc::default()).unwrap_err();
        assert_eq!(second.to_string(), "another agent serves it");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{\"request\":\"reboot\"}\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"refused\":\"not a request: unknown variant `reboot`"));
        drop(control);
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}
