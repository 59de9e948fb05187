//! The host's executables by path, now and earlier.
//!
//! The path shown by a process for its program comes from the process's own mount namespace, which
//! anyone may create. So a path counts only if the host's root (`/proc/1/root`) has the same file
//! there: the same device and inode. A file replaced while programs run (a package upgrade) is
//! remembered, also over a restart, together with its birth time: inode numbers are reused, and
//! only the kernel sets birth times. On a file system without birth times nothing is remembered.
//!
//! If the agent may not look into the root of process 1, the agent's own root counts, and the agent
//! says so.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use genops_governance::MatchConfig;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, open, openat2, statx},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// Most paths remembered.
const PATHS_LIMIT: usize = 4_096;
/// Most files remembered for a path: the latest ones.
const FILES_LIMIT: usize = 8;
/// Longest state file read, in bytes.
const STATE_LIMIT: u64 = 16 << 20;

/// A file, independent of its name.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    /// User id of the owner at the time of the look-up.
    #[serde(skip)]
    owner: u32,
    /// Birth time in nanoseconds since 1970; `None` if the file system keeps none.
    born_ns: Option<i128>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        let what = |it: &Self| (it.device, it.inode, it.born_ns);
        what(self) == what(other)
    }
}

/// Files seen under each path, oldest first.
type Remembered = BTreeMap<String, Vec<Identity>>;

/// The host's executables.
#[derive(Debug)]
pub(super) struct Executables {
    root: Option<OwnedFd>,
    /// Matches of principals; only paths matched there are remembered.
    matches: Vec<MatchConfig>,
    remembered: RefCell<Remembered>,
    /// Path of the state file.
    file: Option<PathBuf>,
}

impl Executables {
    pub(super) fn new() -> Self {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open("/proc/1/root", directory, Mode::empty());
        let root = root.or_else(|_| open("/", directory, Mode::empty())).ok();
        Self { root, matches: Vec::new(), remembered: RefCell::default(), file: None }
    }

    /// Returns the error of looking into the host's root, if any.
    pub(super) fn why_not_of_host() -> Option<Errno> {
        fs::read_link("/proc/1/root")
            .err()
            .map(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Loads the files remembered by an earlier agent from `directory`, and keeps them there from
    /// here on.
    pub(super) fn keep_in(&mut self, directory: &Path) {
        let file = directory.join("executables.json");
        let fits = fs::metadata(&file).is_ok_and(|it| it.len() <= STATE_LIMIT);
        let known = fits.then(|| fs::read(&file).ok()).flatten();
        if let Some(known) = known.and_then(|it| serde_json::from_slice(&it).ok()) {
            self.remembered = RefCell::new(known);
        }
        self.file = Some(file);
    }

    /// Sets the matches of principals, and remembers the files under their paths.
    pub(super) fn name_by(&mut self, matches: Vec<MatchConfig>) {
        self.matches = matches;
        let paths = self.matches.iter().filter_map(|it| it.exe.as_deref());
        let mut changed = false;
        for path in paths.filter(|it| !it.contains('*')) {
            if let Some(now) = self.stands_under(path) {
                changed |= self.remember(path, now);
            }
        }
        if changed {
            self.write();
        }
    }

    /// Tells whether the host has, or had, the program of a process under `path`. A path matched by
    /// no principal counts as present without a look: no decision depends on the answer.
    pub(super) fn has(&self, pid: u32, path: &str) -> bool {
        if !self.matches.iter().any(|it| it.may_be_program(path)) {
            return true;
        }
        let Some(runs) = identity(CWD, &format!("/proc/{pid}/exe"), AtFlags::empty()) else {
            return false;
        };
        if self.stands_under(path) == Some(runs) {
            if self.remember(path, runs) {
                self.write();
            }
            return true;
        }
        let remembered = self.remembered.borrow();
        runs.born_ns.is_some() && remembered.get(path).is_some_and(|it| it.contains(&runs))
    }

    /// Returns the file under a path in the host's root.
    fn stands_under(&self, path: &str) -> Option<Identity> {
        let inside = path.strip_prefix('/').filter(|it| !it.is_empty())?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(self.root.as_ref()?, inside, flags, Mode::empty(), resolve).ok()?;
        identity(file, "", AtFlags::EMPTY_PATH)
    }

    /// Remembers a file; true if new. Under a pattern, only root's files are remembered: otherwise
    /// any user able to write to a matching directory could fill all places.
    fn remember(&self, path: &str, file: Identity) -> bool {
        let mut remembered = self.remembered.borrow_mut();
        let by_name = || self.matches.iter().any(|it| it.exe.as_deref() == Some(path));
        if file.born_ns.is_none()
            || !(file.owner == 0 || by_name())
            || (remembered.len() >= PATHS_LIMIT && !remembered.contains_key(path))
        {
            return false;
        }
        let files = remembered.entry(path.to_owned()).or_default();
        if files.contains(&file) {
            return false;
        }
        if files.len() >= FILES_LIMIT {
            files.remove(0);
        }
        files.push(file);
        true
    }

    /// Writes the state file. After a failure, the files are remembered until the agent ends.
    fn write(&self) {
        let Some(file) = &self.file else { return };
        let written = || -> io::Result<()> {
            let new = file.with_extension("new");
            fs::write(&new, serde_json::to_vec(&*self.remembered.borrow())?)?;
            fs::rename(new, file)
        };
        if let Err(error) = written() {
            eprintln!("genops-agent: {}: {error}", file.display());
        }
    }
}

/// Reads the identity of a file without asking the server of a network file system, or the program
/// behind a FUSE mount.
fn identity(at: impl std::os::fd::AsFd, path: &str, flags: AtFlags) -> Option<Identity> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(at, path, flags | AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let born = (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(stat.stx_btime);
    Some(Identity {
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        owner: stat.stx_uid,
        born_ns: born
            .map(|it| i128::from(it.tv_sec) * 1_000_000_000 + i128::from(it.tv_nsec))
            .filter(|&it| it != 0),
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A waiting program, under a path of the test's own.
    struct Program {
        path: PathBuf,
        child: Child,
    }

    impl Program {
        fn start(name: &str) -> Self {
            let name = format!("genops-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::copy("/bin/sleep", &path).expect("a program");
            let child = Command::new(&path).arg("30").spawn().expect("it starts");
            Self { path, child }
        }

        fn path(&self) -> &str {
            self.path.to_str().expect("a path")
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            self.child.kill().expect("it runs");
            self.child.wait().expect("it ends");
            let _gone = fs::remove_file(&self.path);
        }
    }

    fn matching(pattern: &str) -> Vec<MatchConfig> {
        vec![MatchConfig { exe: Some(pattern.to_owned()), ..MatchConfig::default() }]
    }

    #[test]
    fn a_path_names_the_file_that_stands_there_and_no_other() {
        let program = Program::start("named");
        let mut executables = Executables::new();
        executables.name_by(matching("*"));
        assert!(executables.has(program.child.id(), program.path()));
        for other in ["/bin/cat", "/nowhere/at/all", "relative", "", "/"] {
            assert!(!executables.has(program.child.id(), other), "{other}");
        }
    }

    #[test]
    fn a_program_that_was_replaced_while_it_runs_keeps_its_name() {
        let state = std::env::temp_dir().join(format!("genops-state-{}", std::process::id()));
        fs::create_dir_all(&state).expect("a directory");
        let program = Program::start("upgraded");
        for pattern in [program.path(), "*/genops-upgraded-*"] {
            let mut before = Executables::new();
            before.keep_in(&state);
            before.name_by(matching(pattern));
            assert!(before.has(program.child.id(), program.path()), "{pattern}");
        }
        let new = program.path.with_extension("new");
        fs::copy("/bin/cat", &new).expect("another program");
        fs::rename(&new, &program.path).expect("replaced");
        let mut after = Executables::new();
        after.name_by(matching("*"));
        assert!(!after.has(program.child.id(), program.path()), "nobody remembers");
        after.keep_in(&state);
        let known = after.has(program.child.id(), program.path());
        let born = identity(CWD, program.path(), AtFlags::empty()).and_then(|it| it.born_ns);
        assert_eq!(known, born.is_some());
        fs::remove_dir_all(state).expect("removed");
    }

    #[test]
    fn what_no_principal_is_matched_by_is_not_looked_at() {
        let mut executables = Executables::new();
        executables.name_by(matching("/opt/bot"));
        assert!(executables.has(u32::MAX, "/usr/bin/other"));
        assert!(!executables.has(u32::MAX, "/opt/bot"));
        assert!(executables.remembered.borrow().is_empty());
    }
}
