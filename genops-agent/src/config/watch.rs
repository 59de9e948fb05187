//! Reads the configuration again: on SIGHUP, and when the file or a policy that it names changes.
//!
//! On a thread of its own, so that reading and compiling delays no decision; the events thread takes
//! what is ready and puts it in force, or says why it was refused. Directories are watched, not
//! files: editors and `ConfigMap`s put another file in the place of the old one, and each link on the
//! way there may be what changes. A file system that tells of no changes (NFS) needs the SIGHUP.

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

/// Changes come in bursts: what is read is what has been quiet for so long.
const QUIET: Duration = Duration::from_millis(100);

/// Who writes without a pause is not waited for any longer.
const RESTLESS: Duration = Duration::from_secs(2);

/// Most links that are followed on the way to a file, as in the kernel.
const LINKS: usize = 40;

/// Most directories that are watched.
const DIRECTORIES: usize = 1_024;

/// What changes a directory's files, or which files they are.
const CHANGES: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO);

/// The configuration as it became, or why it was refused.
pub(crate) type Reading = Result<Box<Config>, LoadError>;

/// What a thread of its own has read.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    readings: Receiver<Reading>,
}

impl Watch {
    /// Watches over the file that `config` came from. A byte that comes from `asked` makes it read in
    /// any case; for each reading a byte goes to `wake`.
    ///
    /// # Errors
    ///
    /// Where the thread can't be started.
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

    /// The file that is watched over.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next reading, if one is ready.
    pub(crate) fn next(&self) -> Option<Reading> {
        self.readings.try_recv().ok()
    }
}

/// What a reading came to, as far as it takes to tell it from another.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Accepted([u8; 32]),
    Refused(String),
}

/// Why a reading is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Change,
    Asked,
}

struct Watcher {
    path: PathBuf,
    /// `None`: the kernel has no more room for it.
    changes: Option<OwnedFd>,
    asked: UnixStream,
    /// The last reading.
    known: Outcome,
    sender: Sender<Reading>,
    wake: UnixStream,
}

impl Watcher {
    /// Until nobody listens any more.
    fn run(mut self) {
        self.watch();
        // What changed between the start and now.
        let mut cause = Some(Cause::Change);
        loop {
            if let Some(cause) = cause {
                let cause = self.settle(cause);
                // Whatever this reading names is watched from here on, also where it was refused.
                self.watch();
                if !self.read(cause) {
                    return;
                }
            }
            cause = self.wait(None);
        }
    }

    /// Reads, and hands on what is new or was asked for. False: nobody listens.
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
        // A full pipe wakes as well.
        let _full = self.wake.write(&[0]);
        heard
    }

    /// Waits until the files have been quiet for a while.
    fn settle(&mut self, mut cause: Cause) -> Cause {
        let since = Instant::now();
        while since.elapsed() < RESTLESS
            && let Some(another) = self.wait(Some(QUIET))
        {
            cause = cause.max(another);
        }
        cause
    }

    /// Waits for a cause; `None`: the time passed without one.
    fn wait(&mut self, patience: Option<Duration>) -> Option<Cause> {
        let timeout = patience.and_then(|it| Timespec::try_from(it).ok());
        let mut fds = vec![PollFd::new(&self.asked, PollFlags::IN)];
        fds.extend(self.changes.as_ref().map(|it| PollFd::new(it, PollFlags::IN)));
        // An interrupted wait finds nothing, and is made again.
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

    /// Watches every directory on the way to every file; what is watched already stays so.
    fn watch(&self) {
        let Some(changes) = &self.changes else { return };
        for directory in directories(&self.path).iter().take(DIRECTORIES) {
            // One that is gone is found again when its parent changes.
            let _gone = inotify::add_watch(changes, directory, CHANGES | WatchFlags::ONLYDIR);
        }
    }
}

/// Loads; but what somebody has just emptied, to write it anew, is not "observe everything".
pub(crate) fn load(path: &Path) -> Reading {
    let emptied = std::fs::metadata(path).is_ok_and(|it| it.len() == 0);
    if emptied {
        let message = format!("{}: it is empty", path.display());
        return Err(LoadError::Invalid(message));
    }
    Config::load(path).map(Box::new)
}

/// The directories whose entries lead to the configuration and the policies that it names.
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

/// Notes the directory of the file, and of each link on the way there.
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

/// The names that a path is made of; an absolute one begins with the root.
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

    /// A configuration in a directory of its own, and whoever watches over it.
    struct Place {
        folder: tempfile::TempDir,
        watch: Watch,
        ask: UnixStream,
        woken: UnixStream,
    }

    impl Place {
        /// `prepare` makes the files; the configuration is `agent.yaml`.
        fn new(prepare: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let path = folder.path().join("agent.yaml");
            let (woken, wake) = UnixStream::pair().unwrap();
            woken.set_read_timeout(Some(PATIENCE)).unwrap();
            let config = Config::load(&path).unwrap();
            let (asked, ask) = UnixStream::pair().unwrap();
            let watch = Watch::start(path, &config, asked, wake).unwrap();
            // The first look is over when the thread waits for changes.
            std::thread::sleep(QUIET * 3);
            Self { folder, watch, ask, woken }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// The environment that the next reading gives, or why it is refused.
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

        /// Puts another file in the place of the one of that name.
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
        // A machine that stands still at the wrong moment shows it empty first.
        while place.next() != "b with 0" {}
        place.put("agent.yaml", "environment: c\n");
        assert_eq!(place.next(), "c with 0");
        // The same once more, and another file beside it.
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

    /// As the kubelet does it: the files are links through `..data`, which is replaced by a rename.
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
