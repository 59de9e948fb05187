//! The agent's socket: what `top` watches, and where `approve` and `budget` ask the running agent.
//!
//! A client sends one request as a JSON line and gets JSON lines back: one answer, or for `watch`
//! the AWUs from then on. Only root and the agent's own user are served. Nothing here can hold the
//! events thread: it publishes into bounded queues, and takes requests when it has time.

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

/// Where the socket is if nothing else is said.
pub(crate) const SOCKET: &str = "/run/genops/agent.sock";

/// Clients served at the same time; more are told so.
const CLIENTS: usize = 8;

/// AWUs that wait for one client; what comes when it is full is counted and not sent.
const QUEUE: usize = 1_024;

/// Requests that wait for the events thread.
const REQUESTS: usize = 16;

/// Longest request, in bytes.
const REQUEST_LIMIT: u64 = 64 << 10;

/// How long a client may take to send its request or to take a line, and the agent to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stack of a client's thread, in bytes.
const STACK: usize = 256 << 10;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The AWUs from now on.
    Watch {},
    /// The accounts of all budgets.
    Budgets {},
    /// More or less for a budget in its present period.
    AdjustBudget {
        /// Which.
        budget: String,
        /// By how much, in nano-USD or tokens.
        delta: i64,
        /// Who says so.
        by: String,
        /// Why.
        why: String,
    },
    /// A human's approval of one request, or of one of its kind.
    Approve {
        /// `genops.approval.request` of the blocked AWU.
        approval_request: String,
        /// Who approves.
        by: String,
        /// Most that the request may cost, in nano-USD.
        ceiling_nano_usd: i64,
        /// How long the approval holds.
        valid_seconds: u64,
        /// One of its kind will do, whatever it says.
        #[serde(default)]
        kind: bool,
    },
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done, and this is what came of it.
    Done(serde_json::Value),
    /// Not done, because.
    Refused(String),
}

/// One period of one budget. Amounts are nano-USD or tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Account {
    /// Its name.
    pub(crate) budget: String,
    /// Name of the period.
    pub(crate) period: String,
    /// First second of the period, since 1970.
    pub(crate) start_unix_s: i64,
    /// First second after it.
    pub(crate) end_unix_s: i64,
    /// `USD` or `tokens`.
    pub(crate) unit: String,
    /// The limit, with adjustments.
    pub(crate) allocated: i64,
    /// Set aside for calls that have not ended.
    pub(crate) reserved: i64,
    /// Used by calls that ended.
    pub(crate) consumed: i64,
    /// What can still be set aside.
    pub(crate) remaining: i64,
}

/// Does what a request asks for, on the engine's thread.
///
/// What the engine puts out meanwhile (evidence, changes of the ledger) must be made durable
/// before the answer is given.
pub(crate) fn perform(request: Request, peer: Peer, engine: &mut Engine, now: Now) -> Answer {
    let done = match request {
        Request::Watch {} => Err("not a request for the engine".to_owned()),
        Request::Budgets {} => {
            let accounts: Vec<Account> = engine.ledger().accounts().map(account).collect();
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

fn account((key, account): (&AccountKey, &genops_governance::Account)) -> Account {
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
    }
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    uid: Option<u32>,
    /// As whom the session was begun (`proc_pid_loginuid(5)`): it stays when somebody becomes root.
    login_uid: Option<u32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
            return Self::default();
        };
        let path = format!("/proc/{}/loginuid", peer.pid.as_raw_nonzero());
        let login_uid = std::fs::read_to_string(path).ok().and_then(|it| it.trim().parse().ok());
        // What the kernel says where nobody has logged in.
        let login_uid = login_uid.filter(|it| *it != u32::MAX);
        Self { uid: Some(peer.uid.as_raw()), login_uid }
    }

    /// As a record says it, beside the name that was given.
    fn detail(self) -> Vec<(&'static str, String)> {
        let Self { uid, login_uid } = self;
        let all = [("approver_uid", uid), ("approver_login_uid", login_uid)];
        all.into_iter().filter_map(|(name, it)| Some((name, it?.to_string()))).collect()
    }
}

/// A request that waits for the events thread.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What is asked for; never [`Request::Watch`].
    pub(crate) request: Request,
    /// By whom.
    pub(crate) peer: Peer,
    answer: SyncSender<Answer>,
}

impl Pending {
    /// Tells the client. One that went away does not mind.
    pub(crate) fn answer(self, answer: Answer) {
        self.answer.try_send(answer).unwrap_or_default();
    }
}

type Watchers = Arc<Mutex<Vec<SyncSender<Arc<Awu>>>>>;

/// The socket, served until this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    watchers: Watchers,
    requests: Receiver<Pending>,
    metrics: Arc<Metrics>,
}

impl Control {
    /// Creates the socket at `path`, and its directory where there is none.
    ///
    /// # Errors
    ///
    /// Where it cannot be created, or another agent serves it.
    pub(crate) fn start(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let listener = bind(path)?;
        let (pending, requests) = sync_channel(REQUESTS);
        let watchers = Watchers::default();
        let its_watchers = Arc::clone(&watchers);
        std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(STACK)
            .spawn(move || accept(&listener, &its_watchers, &pending))?;
        Ok(Self { path: path.to_owned(), watchers, requests, metrics })
    }

    /// Sends an AWU to whoever watches; never waits.
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

    /// The next request, if one waits.
    pub(crate) fn next(&self) -> Option<Pending> {
        self.requests.try_recv().ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What is left is found stale by the next agent.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// Binds the socket; one that nobody serves is replaced.
fn bind(path: &Path) -> io::Result<UnixListener> {
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
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
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
            // A refused client that does not even read does not matter.
            send(&stream, &refusal).unwrap_or_default();
            continue;
        }
        let (watchers, pending) = (Arc::clone(watchers), pending.clone());
        let client = Arc::clone(&clients);
        let served = std::thread::Builder::new()
            .name("control-client".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // The client went away or was too slow: its loss.
                serve(&stream, &watchers, &pending).unwrap_or_default();
                drop(client);
            });
        // Without a thread the stream is dropped: the client sees the end.
        drop(served);
    }
}

/// Root, or who the agent runs as. The socket's mode says the same; a directory that others may
/// write to could be tricked between creating and protecting it.
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

/// Asks the running agent one thing.
///
/// # Errors
///
/// Where no agent serves `path`, or it does not answer as agreed.
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

/// The AWUs of the running agent as JSON lines; an empty line is a sign of life.
///
/// # Errors
///
/// Where no agent serves `path`.
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
