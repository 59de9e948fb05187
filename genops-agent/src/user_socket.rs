//! The socket for all users: `why` gets the refusals of the caller's own user in the caller's place
//! (the host, a container or a pod), as the kernel identifies the caller.
//!
//! A thread keeps the refusals and other threads serve them: no client reaches the deciding thread.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use genops_governance::{Awu, User};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::control::{self, Answer};
use crate::identity;
use crate::metrics::Metrics;
use crate::refusals::{Lines, Refusal, Refusals};

/// Path of the socket if the configuration names none.
pub(crate) const SOCKET: &str = "/run/genops/user.sock";
/// Environment variable with another path, for clients.
pub(crate) const SOCKET_VARIABLE: &str = "GENOPS_USER_SOCKET";

/// Most clients served at a time.
const CLIENTS: usize = 64;
/// Most clients of a user served at a time.
const CLIENTS_OF_USER: usize = 4;
/// Most refusals queued for the keeping thread.
const QUEUE: usize = 1_024;
/// Longest request, in bytes.
const REQUEST_LIMIT: u64 = 1 << 10;
/// Timeout of a client for sending a request or taking the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Interval of checking for repeats.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Stack of a thread, in bytes.
const STACK: usize = 256 << 10;

/// Request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The refusals of the caller's user, newest first.
    Why {},
}

type Kept = Arc<Mutex<Refusals>>;

/// Keeps refusals and, if a socket exists, serves them.
#[derive(Debug)]
pub(crate) struct UserSocket {
    path: Option<PathBuf>,
    told: SyncSender<(User, Arc<Awu>)>,
    metrics: Arc<Metrics>,
}

impl UserSocket {
    /// Starts keeping refusals, with a line of the log about each. `path`: the socket to serve. If
    /// the socket can't be created, the agent says so and continues.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started.
    pub(crate) fn start(path: Option<&Path>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let kept = Kept::default();
        let (told, refused) = sync_channel(QUEUE);
        let own = Arc::clone(&kept);
        let thread = || std::thread::Builder::new().stack_size(STACK);
        thread().name("refusals".to_owned()).spawn(move || keep(&refused, &own))?;
        let served = path.and_then(|path| match control::bind(path, 0o666) {
            Ok(listener) => Some((path.to_owned(), listener)),
            Err(error) => {
                eprintln!(
                    "genops-agent: {}: {error}; `why` can't reach this agent",
                    path.display()
                );
                None
            }
        });
        let path = match served {
            Some((path, listener)) => {
                thread().name("user-socket".to_owned()).spawn(move || accept(&listener, &kept))?;
                Some(path)
            }
            None => None,
        };
        Ok(Self { path, told, metrics })
    }

    /// Keeps a refused unit of a user; never waits.
    pub(crate) fn publish(&self, user: User, awu: &Arc<Awu>) {
        if self.told.try_send((user, Arc::clone(awu))).is_err() {
            self.metrics.lost_refusal_queue_full.increment();
        }
    }
}

impl Drop for UserSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If the removal fails, the next agent finds a stale socket.
            std::fs::remove_file(path).unwrap_or_default();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps refusals until the agent ends.
fn keep(refused: &Receiver<(User, Arc<Awu>)>, kept: &Kept) {
    let mut lines = Lines::default();
    loop {
        match refused.recv_timeout(LOOK_EVERY) {
            Ok((user, awu)) => {
                let refusal = Arc::new(Refusal::of(&awu));
                if let Some(line) = lines.about(&user, &refusal) {
                    eprintln!("genops-agent: {line}");
                }
                locked(kept).put(user, refusal);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for line in lines.over(clock::now().unix_ns) {
            eprintln!("genops-agent: {line}");
        }
    }
}

/// Number of served clients, by user.
type Clients = Arc<Mutex<HashMap<User, usize>>>;

/// A served client's place; free again when dropped.
struct Place {
    clients: Clients,
    user: User,
}

impl Place {
    /// Takes a place; `None` if the user, or all users, have the maximum.
    fn take(clients: &Clients, user: User) -> Option<Self> {
        let mut served = locked(clients);
        let all: usize = served.values().sum();
        let of_user = served.get(&user).copied().unwrap_or(0);
        if all >= CLIENTS || of_user >= CLIENTS_OF_USER {
            return None;
        }
        served.insert(user.clone(), of_user + 1);
        Some(Self { clients: Arc::clone(clients), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut served = locked(&self.clients);
        let left = served.get(&self.user).map_or(0, |it| it.saturating_sub(1));
        if left == 0 {
            served.remove(&self.user);
        } else {
            served.insert(self.user.clone(), left);
        }
    }
}

fn accept(listener: &UnixListener, kept: &Kept) {
    let clients = Clients::default();
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or the client was gone already: neither is a reason to spin.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let place = match caller(&stream) {
            Ok(user) => Place::take(&clients, user).ok_or("too many clients; try again"),
            Err(why) => Err(why),
        };
        let place = match place {
            Ok(place) => place,
            Err(why) => {
                // A refused client may close without reading.
                answer(&stream, &Answer::Refused(why.to_owned())).unwrap_or_default();
                continue;
            }
        };
        let kept = Arc::clone(kept);
        let thread = std::thread::Builder::new().name("user-client".to_owned()).stack_size(STACK);
        // Without a thread the stream is dropped: the client sees the end. An error means a client
        // gone or too slow.
        drop(thread.spawn(move || serve(&stream, &kept, &place).unwrap_or_default()));
    }
}

/// Identifies the caller: the user id at the time of the connect, and the place of the process.
fn caller(stream: &UnixStream) -> Result<User, &'static str> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|_| "the kernel does not say who asks")?;
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    let user = identity::user_of(pid).ok_or("the agent does not see the process that asks")?;
    Ok(User { uid: Some(peer.uid.as_raw()), ..user })
}

fn answer(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn serve(stream: &UnixStream, kept: &Kept, place: &Place) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).take(REQUEST_LIMIT).read_line(&mut line)?;
    let said = match serde_json::from_str(&line) {
        Ok(Request::Why {}) => {
            let refusals = locked(kept).of(&place.user);
            Answer::Done(refusals.iter().map(|it| serde_json::json!(**it)).collect())
        }
        Err(error) => Answer::Refused(format!("not a request: {error}")),
    };
    answer(stream, &said)
}

/// Asks the agent serving `path` for the refusals of the caller's user, newest first.
///
/// # Errors
///
/// Fails if no agent serves `path`, or the answer violates the protocol.
pub(crate) fn why(path: &Path) -> io::Result<Result<Vec<Refusal>, String>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    let mut line = serde_json::to_vec(&Request::Why {})?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said)?;
    match serde_json::from_str(&said)? {
        Answer::Done(refusals) => Ok(Ok(serde_json::from_value(refusals)?)),
        Answer::Refused(why) => Ok(Err(why)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;
    use crate::config::Config;
    use crate::replay::tests::{ENFORCED, awus, chat};

    fn socket(name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{name}.sock"));
        (folder, path)
    }

    fn refused() -> Arc<Awu> {
        let config = Config::parse(Path::new("agent.yaml"), ENFORCED).unwrap();
        let awus = awus(&config, &chat("/usr/bin/python3", "gpt-4o-pro"));
        Arc::new(awus.into_iter().next().unwrap())
    }

    fn own() -> User {
        let user = identity::user_of(std::process::id()).unwrap();
        User { uid: Some(rustix::process::geteuid().as_raw()), ..user }
    }

    #[test]
    fn a_caller_gets_what_its_own_user_was_refused() {
        let (_folder, path) = socket("why");
        let socket = UserSocket::start(Some(&path), Arc::default()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let awu = refused();
        let stranger = User { uid: Some(4_711), ..own() };
        let elsewhere = User { place: Some("another".to_owned()), ..own() };
        for user in [stranger, elsewhere, own()] {
            socket.publish(user, &awu);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let refusals = loop {
            let refusals = why(&path).unwrap().unwrap();
            if !refusals.is_empty() || Instant::now() > deadline {
                break refusals;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(refusals, [Refusal::of(&awu)]);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_request_is_said_to_be_none() {
        let (_folder, path) = socket("none");
        let _socket = UserSocket::start(Some(&path), Arc::default()).unwrap();
        for line in ["{\"request\":\"watch\"}\n", "\n", "{\"request\":\"why\",\"uid\":0}\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.starts_with("{\"refused\":\"not a request: "), "{said}");
        }
    }

    #[test]
    fn a_user_s_idle_clients_take_no_place_of_others() {
        let clients = Clients::default();
        let user = |uid| User { uid: Some(uid), place: None };
        let own: Vec<_> = (0..10).filter_map(|_| Place::take(&clients, user(1))).collect();
        assert_eq!(own.len(), CLIENTS_OF_USER);
        let other = Place::take(&clients, user(2));
        assert!(other.is_some());
        drop((own, other));
        assert!(locked(&clients).is_empty());
        let all = (0..100).filter_map(|uid| Place::take(&clients, user(uid)));
        assert_eq!(all.collect::<Vec<_>>().len(), CLIENTS);
    }

    #[test]
    fn a_full_queue_counts_and_does_not_wait() {
        let metrics = Arc::<Metrics>::default();
        let (told, refused_by_nobody) = sync_channel(1);
        let socket = UserSocket { path: None, told, metrics: Arc::clone(&metrics) };
        let awu = refused();
        for _ in 0..3 {
            socket.publish(own(), &awu);
        }
        assert_eq!(metrics.lost_refusal_queue_full.get(), 2);
        drop(refused_by_nobody);
    }
}
