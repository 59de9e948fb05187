//! Reads the configuration again: on SIGHUP, and on a change of the file or a named policy.
//!
//! A separate thread reads and compiles, so that no decision waits. The events thread takes each
//! reading, and either puts the configuration in force or reports the refusal. The thread watches
//! directories, not files: editors and `ConfigMap`s replace the file, and any link on the path may
//! change. On file systems without change notification (NFS), a reload needs SIGHUP.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{Config, LoadError};

/// Quiet time required before a reading, because changes come in bursts.
const QUIET: Duration = Duration::from_millis(100);

/// Longest wait for a quiet moment, if a writer never pauses.
const RESTLESS: Duration = Duration::from_secs(2);

/// Most links followed on the path to a file, as in the kernel.
const LINKS: usize = 40;

/// Most directories watched.
const DIRECTORIES: usize = 1_024;

/// inotify events for a changed file or a changed set of files in a directory.
const CHANGES: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO);

/// The new configuration, or the reason for its refusal.
pub(crate) type Reading = Result<Box<Config>, LoadError>;

/// Readings made by the watching thread.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    readings: Receiver<Reading>,
}

impl Watch {
    /// Starts watching the file of `config`. A byte from `asked` forces a reading; each reading
    /// sends a byte to `wake`.
    ///
    /// # Errors
    ///
    /// Fails if the thread can't be started.
    pub(crate) fn start(
        path: PathBuf,
        config: &Config,
        asked: UnixStream,
        wake: UnixStream,
    ) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(error) = &changes {
            eprintln!("genops-agent: a changed configuration is read at SIGHUP only: {error}");
        }
        let (sender, readings) = channel();
        let known = Outcome::Accepted(config.hash);
        let watcher =
            Watcher { path: path.clone(), changes: changes.ok(), asked, known, sender, wake };
        std::thread::Builder::new().name("configuration".to_owned()).spawn(|| watcher.run())?;
        Ok(Self { path, readings })
    }

    /// Path of the watched file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the next reading, if ready.
    pub(crate) fn next(&self) -> Option<Reading> {
        self.readings.try_recv().ok()
    }
}

/// Result of a reading, reduced to the part needed for comparison.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Accepted([u8; 32]),
    Refused(String),
}

/// Cause of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Change,
    Asked,
}

struct Watcher {
    path: PathBuf,
    /// inotify descriptor; `None`: `inotify_init` failed, for example at the limit of instances.
    changes: Option<OwnedFd>,
    asked: UnixStream,
    /// Outcome of the last reading.
    known: Outcome,
    sender: Sender<Reading>,
    wake: UnixStream,
}

impl Watcher {
    /// Runs until the receiver is gone.
    fn run(mut self) {
        self.watch();
        // Catches changes between the start of the agent and the first watch.
        let mut cause = Some(Cause::Change);
        loop {
            if let Some(cause) = cause {
                let cause = self.settle(cause);
                // A refused reading may name new files as well: watch all of them from here on.
                self.watch();
                if !self.read(cause) {
                    return;
                }
            }
            cause = self.wait(None);
        }
    }

    /// Reads, and sends a new or requested reading. False: the receiver is gone.
    fn read(&mut self, cause: Cause) -> bool {
        let reading = load(&self.path);
        let outcome = match &reading {
            Ok(config) => Outcome::Accepted(config.hash),
            Err(error) => Outcome::Refused(error.to_string()),
        };
        if outcome == self.known && cause == Cause::Change {
            return true;
        }
        self.known = outcome;
        let heard = self.sender.send(reading).is_ok();
        // A full pipe wakes the reader as well.
        let _full = self.wake.write(&[0]);
        heard
    }

    /// Waits until the files have been quiet for [`QUIET`], at most [`RESTLESS`].
    fn settle(&mut self, mut cause: Cause) -> Cause {
        let since = Instant::now();
        while since.elapsed() < RESTLESS
            && let Some(another) = self.wait(Some(QUIET))
        {
            cause = cause.max(another);
        }
        cause
    }

    /// Waits for a cause; `None`: the timeout expired without a cause.
    fn wait(&mut self, patience: Option<Duration>) -> Option<Cause> {
        let timeout = patience.and_then(|it| Timespec::try_from(it).ok());
        let mut fds = vec![PollFd::new(&self.asked, PollFlags::IN)];
        fds.extend(self.changes.as_ref().map(|it| PollFd::new(it, PollFlags::IN)));
        // An interrupted wait finds nothing; the caller waits again.
        let _interrupted = poll(&mut fds, timeout.as_ref());
        let ready = fds.first().is_some_and(|it| !it.revents().is_empty());
        if ready && matches!(self.asked.read(&mut [0; 16]), Ok(1..)) {
            return Some(Cause::Asked);
        }
        let mut buffer = [MaybeUninit::uninit(); 4_096];
        let mut events = inotify::Reader::new(self.changes.as_ref()?, &mut buffer);
        let mut cause = None;
        while events.next().is_ok() {
            cause = Some(Cause::Change);
        }
        cause
    }

    /// Watches every directory on the path to every file; existing watches remain.
    fn watch(&self) {
        let Some(changes) = &self.changes else { return };
        for directory in directories(&self.path).iter().take(DIRECTORIES) {
            // A missing directory is found again when its parent changes.
            let _gone = inotify::add_watch(changes, directory, CHANGES | WatchFlags::ONLYDIR);
        }
    }
}

/// Loads the configuration; an empty file is refused, because an editor may just be rewriting the
/// file and an empty one would mean "observe everything".
pub(crate) fn load(path: &Path) -> Reading {
    let emptied = std::fs::metadata(path).is_ok_and(|it| it.len() == 0);
    if emptied {
        let message = format!("{}: it is empty", path.display());
        return Err(LoadError::Invalid(message));
    }
    Config::load(path).map(Box::new)
}

/// Returns the directories holding the path entries of the configuration and of its policies.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    follow(path, &mut found);
    for policies in super::named_paths(path) {
        follow(&policies, &mut found);
        if policies.is_dir() {
            found.insert(policies.clone());
            for file in super::cedar_files(&policies).unwrap_or_default() {
                follow(&file, &mut found);
            }
        }
    }
    found
}

/// Adds the directory of the file, and of each link on the path.
fn follow(path: &Path, found: &mut BTreeSet<PathBuf>) {
    let mut ahead: VecDeque<PathBuf> = parts(path).collect();
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        let next = here.join(&part);
        let target = std::fs::read_link(&next).ok().filter(|_| links < LINKS);
        if target.is_some() || ahead.is_empty() {
            found.insert(if here.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                here.clone()
            });
        }
        match target {
            Some(target) => {
                links += 1;
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    ahead.push_front(part);
                }
            }
            None => here = next,
        }
    }
}

/// Splits a path into components; an absolute path begins with the root.
fn parts(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    path.components().filter(|it| *it != Component::CurDir).map(|it| PathBuf::from(it.as_os_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A configuration in a temporary directory, and its watch.
    struct Place {
        folder: tempfile::TempDir,
        watch: Watch,
        ask: UnixStream,
        woken: UnixStream,
    }

    impl Place {
        /// Runs `prepare` to create the files; the configuration is `agent.yaml`.
        fn new(prepare: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let path = folder.path().join("agent.yaml");
            let (woken, wake) = UnixStream::pair().unwrap();
            woken.set_read_timeout(Some(PATIENCE)).unwrap();
            let config = Config::load(&path).unwrap();
            let (asked, ask) = UnixStream::pair().unwrap();
            let watch = Watch::start(path, &config, asked, wake).unwrap();
            // After the pause, the first reading is over and the thread waits for changes.
            std::thread::sleep(QUIET * 3);
            Self { folder, watch, ask, woken }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Returns the environment of the next reading, or the reason for its refusal.
        fn next(&mut self) -> String {
            self.woken.read_exact(&mut [0]).unwrap();
            match self.watch.next().unwrap() {
                Ok(config) => {
                    let policies = config.settings().policy_count();
                    format!("{} with {policies}", config.environment.unwrap_or_default())
                }
                Err(error) => {
                    let folder = format!("{}/", self.folder.path().display());
                    error.to_string().replace(&folder, "")
                }
            }
        }

        /// Replaces the file `name` by a rename.
        fn put(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(self.path("beside"), text).unwrap();
            fs::rename(self.path("beside"), self.path(name)).unwrap();
        }

        fn is_quiet(&mut self) {
            std::thread::sleep(QUIET * 5);
            assert!(self.watch.next().is_none());
        }
    }

    fn policy(name: &str) -> String {
        format!("@id(\"{name}\") @reason_code(\"x_a\")\nforbid (principal, action, resource);\n")
    }

    #[test]
    fn a_file_that_is_written_or_replaced_is_read_again() {
        let mut place =
            Place::new(|at| fs::write(at.join("agent.yaml"), "environment: a\n").unwrap());
        place.is_quiet();
        fs::write(place.path("agent.yaml"), "environment: b\n").unwrap();
        // On a stalled machine, the first reading may find an empty file.
        while place.next() != "b with 0" {}
        place.put("agent.yaml", "environment: c\n");
        assert_eq!(place.next(), "c with 0");
        // Same content once more, and an unrelated file beside.
        place.put("agent.yaml", "environment: c\n");
        place.put("notes.txt", "x");
        place.is_quiet();
    }

    #[test]
    fn what_is_refused_is_said_once_and_what_mends_it_is_read() {
        let mut place =
            Place::new(|at| fs::write(at.join("agent.yaml"), "mode: observe\n").unwrap());
        place.put("agent.yaml", "mdoe: observe\n");
        assert_eq!(place.next(), "agent.yaml:1: `mdoe` is not a key here; did you mean `mode`?");
        place.put("agent.yaml", "mdoe: observe\n");
        place.is_quiet();
        place.put("agent.yaml", "");
        assert_eq!(place.next(), "agent.yaml: it is empty");
        fs::remove_file(place.path("agent.yaml")).unwrap();
        assert!(place.next().starts_with("agent.yaml: cannot be read"));
        place.put("agent.yaml", "environment: a\n");
        assert_eq!(place.next(), "a with 0");
    }

    #[test]
    fn policies_in_files_and_directories_are_watched_also_those_that_come_later() {
        let mut place = Place::new(|at| {
            fs::create_dir(at.join("policies")).unwrap();
            fs::write(at.join("agent.yaml"), "policy_files: [policies]\n").unwrap();
        });
        place.put("policies/a.cedar", policy("a"));
        assert_eq!(place.next(), " with 1");
        place.put("policies/b.cedar", policy("b"));
        assert_eq!(place.next(), " with 2");
        place.put("policies/b.cedar", "nonsense");
        assert_eq!(place.next(), "policies/b.cedar:1:9: unexpected end of input");
        fs::remove_file(place.path("policies/b.cedar")).unwrap();
        assert_eq!(place.next(), " with 1");
        fs::create_dir(place.path("more")).unwrap();
        place.put("agent.yaml", "policy_files: [policies, more]\n");
        assert_eq!(place.next(), " with 1");
        place.put("more/c.cedar", policy("c"));
        assert_eq!(place.next(), " with 2");
    }

    /// Imitates the kubelet: the files are links through `..data`, replaced by a rename.
    #[test]
    fn a_config_map_is_swapped_in_one_step() {
        let version = |at: &Path, name: &str, environment: &str, policies: &str| {
            fs::create_dir(at.join(name)).unwrap();
            let text = format!("environment: {environment}\npolicy_files: [rules.cedar]\n");
            fs::write(at.join(name).join("agent.yaml"), text).unwrap();
            fs::write(at.join(name).join("rules.cedar"), policies).unwrap();
        };
        let mut place = Place::new(|at| {
            version(at, "..2026_11_24", "a", &policy("a"));
            symlink("..2026_11_24", at.join("..data")).unwrap();
            symlink("..data/agent.yaml", at.join("agent.yaml")).unwrap();
            symlink("..data/rules.cedar", at.join("rules.cedar")).unwrap();
        });
        for (name, environment) in [("..2026_11_25", "b"), ("..2026_11_26", "c")] {
            let both = policy("a") + &policy("b");
            version(place.folder.path(), name, environment, &both);
            symlink(name, place.path("..data_tmp")).unwrap();
            fs::rename(place.path("..data_tmp"), place.path("..data")).unwrap();
            assert_eq!(place.next(), format!("{environment} with 2"));
        }
    }

    #[test]
    fn a_link_to_elsewhere_is_followed() {
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("real.yaml"), "environment: a\n").unwrap();
        let mut place = Place::new(|at| {
            symlink(elsewhere.path().join("real.yaml"), at.join("agent.yaml")).unwrap();
        });
        fs::write(elsewhere.path().join("real.yaml"), "environment: b\n").unwrap();
        assert_eq!(place.next(), "b with 0");
    }

    #[test]
    fn whoever_asks_has_it_read_although_nothing_changed() {
        let mut place =
            Place::new(|at| fs::write(at.join("agent.yaml"), "environment: a\n").unwrap());
        place.ask.write_all(&[0]).unwrap();
        assert_eq!(place.next(), "a with 0");
    }
}
