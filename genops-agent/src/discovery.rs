//! Which files get probes: TLS libraries that processes map, and those that they would map.
//!
//! A probe belongs to a file, so a library that is attached once is attached for every process that
//! will ever map it. What remains is to hear of new files soon: the standard library directories are
//! attached at start; each program that starts is looked at a few times, as its libraries are mapped
//! a moment after it starts; and everything is looked at again from time to time (`dlopen`).

mod inspect;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use crate::{
    kernel::{
        Probes,
        attach::{AttachError, FileId},
    },
    runtimes::{Role, runtime_of},
};
use inspect::{Found, Inspector};

pub(crate) use inspect::Inspect;

/// When a program that has started is looked at, counted from its start.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(250),
    Duration::from_secs(2),
];
/// How often every process is looked at.
const SCAN_INTERVAL: Duration = Duration::from_secs(15);
/// How long a file keeps its probes after the last process that mapped it has gone.
const DETACH_AFTER: Duration = Duration::from_mins(1);
/// Most programs that wait for a look; past that, the next scan finds them.
const WAITING_LIMIT: usize = 16_384;
/// Longest memory map of a process that is read, in bytes.
const MAPS_LIMIT: u64 = 8 << 20;

/// Most files that are remembered as of no use; past that, all are looked at once more.
const REFUSED_LIMIT: usize = 65_536;

/// Programs with a TLS library inside that may be started: attached before.
const EXECUTABLES: [&str; 4] =
    ["/usr/bin/node", "/usr/bin/nodejs", "/usr/local/bin/node", "/opt/node/bin/node"];

/// Where libraries are that programs will map: attached before the first of them starts.
const LIBRARY_DIRECTORIES: [&str; 10] = [
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/ssl/lib",
    "/opt/lib",
];

/// What happened to a file.
#[derive(Debug)]
pub(crate) enum Finding {
    /// It has probes now.
    Attached,
    /// Nobody maps it any more.
    Detached,
    /// It should have, and can't.
    Failed { path: PathBuf, error: String },
    /// Everything that ran at the start was looked at; every file that could be has its probes, unless
    /// the kernel refused one.
    Ready { refused: Option<String> },
}

/// A mapped file that may be, or hold, a TLS library.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mapped {
    pub(crate) role: Role,
    pub(crate) file: FileId,
    /// As the process names it, in its own mount namespace.
    pub(crate) path: PathBuf,
}

/// Finds files and attaches probes in them, on a thread of its own.
pub(crate) struct Discovery {
    probes: Probes,
    inspector: Inspector,
    /// Files that were found to be something else, or that could not be attached.
    refused: HashSet<FileId>,
    /// Files with probes, and when a process was last seen to map them. Those of the standard
    /// directories have no time: they stay.
    used: HashMap<FileId, Option<Instant>>,
    /// Why the kernel refused a probe, the first time that it did.
    kernel_refused: Option<String>,
    /// Programs to look at, by the time of the look.
    waiting: BTreeMap<(Instant, u32), usize>,
}

impl Discovery {
    pub(crate) fn new(probes: Probes) -> Self {
        Self {
            probes,
            inspector: Inspector::default(),
            refused: HashSet::new(),
            used: HashMap::new(),
            kernel_refused: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Attaches what is there already; then follows the programs that start, until the sender of
    /// `started` is gone.
    pub(crate) fn run(mut self, started: &Receiver<u32>, mut tell: impl FnMut(Finding)) {
        self.standard_places(&mut tell);
        self.scan(&mut tell);
        self.probes.take_over();
        tell(Finding::Ready { refused: self.kernel_refused.take() });
        let mut next_scan = Instant::now() + SCAN_INTERVAL;
        loop {
            let wake = self.waiting.keys().next().map_or(next_scan, |&(at, _)| at.min(next_scan));
            match started.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(pid) => self.expect(pid, 0, Instant::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look(&mut tell);
            if Instant::now() >= next_scan {
                self.scan(&mut tell);
                self.detach_unused(&mut tell);
                next_scan = Instant::now() + SCAN_INTERVAL;
            }
        }
    }

    fn expect(&mut self, pid: u32, look: usize, started: Instant) {
        if let Some(&after) = LOOKS.get(look)
            && self.waiting.len() < WAITING_LIMIT
        {
            self.waiting.insert((started + after, pid), look);
        }
    }

    /// Looks at the programs whose time has come.
    fn look(&mut self, tell: &mut impl FnMut(Finding)) {
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            let ((at, pid), look) = entry.remove_entry();
            if !Path::new(&format!("/proc/{pid}")).exists() {
                continue;
            }
            self.process(pid, tell);
            let after = LOOKS.get(look).copied().unwrap_or_default();
            let started = at.checked_sub(after).unwrap_or(at);
            self.expect(pid, look + 1, started);
        }
    }

    /// Looks at every process.
    fn scan(&mut self, tell: &mut impl FnMut(Finding)) {
        for pid in pids() {
            self.process(pid, tell);
        }
    }

    fn process(&mut self, pid: u32, tell: &mut impl FnMut(Finding)) {
        for mapped in mapped_runtimes(pid) {
            self.file(mapped, Some(pid), tell);
        }
    }

    fn standard_places(&mut self, tell: &mut impl FnMut(Finding)) {
        let libraries = LIBRARY_DIRECTORIES.iter().flat_map(|directory| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| (Role::Library, entry.path()))
        });
        let executables = EXECUTABLES.iter().map(|path| (Role::Executable, PathBuf::from(path)));
        for (role, path) in executables.chain(libraries) {
            if runtime_of(role, &path).is_some()
                && let Some(file) = file_id(&path)
            {
                self.file(Mapped { role, file, path }, None, tell);
            }
        }
    }

    /// Attaches the probes of one file, once. `pid`: the process that maps it; none for one of the host's own.
    fn file(&mut self, mapped: Mapped, pid: Option<u32>, tell: &mut impl FnMut(Finding)) {
        let seen = pid.map(|_| Instant::now());
        if let Some(used) = self.used.get_mut(&mapped.file) {
            if used.is_some() {
                *used = seen;
            }
            return;
        }
        if self.refused.contains(&mapped.file) {
            return;
        }
        let attached = match self.inspector.look(pid, &mapped) {
            Found::Points(_, points) if points.is_empty() => Ok(false),
            Found::Points(path, points) => {
                let attached = self.probes.attach(mapped.file, &path, &points);
                if attached.is_err() && !path.exists() {
                    return;
                }
                attached.map(|()| true).map_err(|error| self.refuses(&error))
            }
            Found::Unusable(why) => Err(why),
            Found::Endless(error) => return tell(Finding::Failed { path: mapped.path, error }),
            // Its process ended meanwhile; the next one, or the next look, will tell.
            Found::Gone | Found::Later => return,
        };
        if matches!(attached, Ok(true)) {
            self.used.insert(mapped.file, seen);
            return tell(Finding::Attached);
        }
        if self.refused.len() >= REFUSED_LIMIT {
            self.refused.clear();
        }
        self.refused.insert(mapped.file);
        if let Err(error) = attached {
            tell(Finding::Failed { path: mapped.path, error });
        }
    }

    /// The kernel refused a probe.
    fn refuses(&mut self, error: &AttachError) -> String {
        let error = error.to_string();
        self.kernel_refused.get_or_insert_with(|| error.clone());
        error
    }

    fn detach_unused(&mut self, tell: &mut impl FnMut(Finding)) {
        let unused: Vec<FileId> = self
            .used
            .iter()
            .filter(|(_, seen)| seen.is_some_and(|at| at.elapsed() > DETACH_AFTER))
            .map(|(&file, _)| file)
            .collect();
        for file in unused {
            self.probes.detach(file);
            self.used.remove(&file);
            tell(Finding::Detached);
        }
    }
}

fn file_id(path: &Path) -> Option<FileId> {
    let metadata = fs::metadata(path).ok()?;
    Some(FileId { device: metadata.dev(), inode: metadata.ino() })
}

/// A path that leads us to the file that a process maps: through its root, or, where that is a changed
/// root within our own mount namespace, the path as `/proc` shows it to us. `None`: the file is gone.
///
/// An overlay may show another inode number than the mapping has; then the path through the root counts.
pub(crate) fn reach(pid: u32, mapped: &Mapped) -> Option<PathBuf> {
    let Mapped { role, file, path } = mapped;
    if *role == Role::Executable {
        return Some(PathBuf::from(format!("/proc/{pid}/exe")));
    }
    let inode = |it: &Path| fs::metadata(it).ok().map(|metadata| metadata.ino());
    let inside = PathBuf::from(format!("/proc/{pid}/root{}", path.display()));
    let found = inode(&inside);
    if found != Some(file.inode) && inode(path) == Some(file.inode) {
        return Some(path.clone());
    }
    found.map(|_| inside)
}

/// Every process of the host, but not ourselves.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |&pid| pid != own)
}

/// The files that a process maps and that may be, or hold, TLS libraries. Touches none of them: their file system may
/// never answer.
pub(crate) fn mapped_runtimes(pid: u32) -> BTreeSet<Mapped> {
    let path = format!("/proc/{pid}/maps");
    let Ok(file) = fs::File::open(path) else { return BTreeSet::new() };
    let mut text = String::new();
    // A map that is not text, or ends while it is read, gives what was read so far.
    let _partial =
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAPS_LIMIT), &mut text);
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let executable = executable.and_then(|it| executable_in(&text, it));
    text.lines().filter_map(mapped_library).chain(executable).collect()
}

/// The program that a process runs, of this path, as its map has it.
fn executable_in(maps: &str, path: PathBuf) -> Option<Mapped> {
    runtime_of(Role::Executable, &path)?;
    let shown = path.to_str()?;
    let file = maps.lines().find_map(|line| {
        let at = line.find('/')?;
        let (fields, name) = line.split_at_checked(at)?;
        file_of(fields).filter(|_| name == shown)
    })?;
    Some(Mapped { role: Role::Executable, file, path })
}

/// Device and inode, of the fields before the path.
fn file_of(fields: &str) -> Option<FileId> {
    let mut fields = fields.split_ascii_whitespace();
    let (major, minor) = fields.nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some(FileId {
        device: rustix::fs::makedev(number(major)?, number(minor)?),
        inode: fields.next()?.parse().ok()?,
    })
}

/// One line of `/proc/PID/maps` (`proc_pid_maps(5)`):
/// `7f2c...-7f2c... r-xp 00016000 fe:00 1835 /usr/lib/x86_64-linux-gnu/libssl.so.3`.
fn mapped_library(line: &str) -> Option<Mapped> {
    // Cheap first: most lines are not TLS libraries.
    let at = line.find('/')?;
    let (fields, path) = line.split_at_checked(at)?;
    let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
    runtime_of(Role::Library, path)?;
    let file = file_of(fields)?;
    Some(Mapped { role: Role::Library, file, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_map_names_the_file() {
        let line = "7f2c8a000000-7f2c8a016000 r-xp 00016000 fe:00 1835       /usr/lib/x86_64-linux-gnu/libssl.so.3";
        let mapped = mapped_library(line).expect("a libssl");
        assert_eq!(mapped.path, Path::new("/usr/lib/x86_64-linux-gnu/libssl.so.3"));
        assert_eq!(mapped.file.inode, 1835);
        assert_eq!(mapped.file.device, rustix::fs::makedev(0xfe, 0));
    }

    #[test]
    fn other_mappings_are_passed_over() {
        for line in [
            "7ffd1c000000-7ffd1c021000 rw-p 00000000 00:00 0                          [stack]",
            "7f2c8a000000-7f2c8a016000 r-xp 00000000 fe:00 9 /usr/lib/x86_64-linux-gnu/libcrypto.so.3",
            "55d0c0000000-55d0c0001000 r--p 00000000 fe:00 7 /usr/bin/curl",
            "garbage",
            "",
        ] {
            assert_eq!(mapped_library(line), None, "{line}");
        }
    }

    #[test]
    fn a_library_that_was_replaced_while_mapped_keeps_its_name() {
        let line = "7f00-7f01 r-xp 00000000 fe:00 5 /opt/venv/lib/libssl.so.3 (deleted)";
        let mapped = mapped_library(line).expect("a libssl");
        assert_eq!(mapped.path, Path::new("/opt/venv/lib/libssl.so.3"));
    }
}
