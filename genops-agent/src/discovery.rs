//! Discovery of files to probe: TLS libraries mapped by processes now or later.
//!
//! A probe belongs to a file: a library attached once is attached for every later process. The
//! remaining task is to learn of new files soon. The standard library directories are attached at
//! the start. Each started program is inspected a few times, as libraries are mapped a moment after
//! the start. All processes are scanned periodically (`dlopen`).

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
    runtimes::{Role, may_hold_any},
};
use inspect::{Found, Inspector};

pub(crate) use inspect::Inspect;

/// Times of inspecting a started program, counted from the start of the program.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(250),
    Duration::from_secs(2),
];
/// Interval between scans of all processes.
const SCAN_INTERVAL: Duration = Duration::from_secs(15);
/// Time until a file loses its probes, counted from the last sight of a process mapping the file.
const DETACH_AFTER: Duration = Duration::from_mins(1);
/// Most programs waiting for a look; the next scan finds the others.
const WAITING_LIMIT: usize = 16_384;
/// Longest memory map read of a process, in bytes.
const MAPS_LIMIT: u64 = 8 << 20;

/// Most files remembered as useless; beyond the limit, all files are inspected once more.
const REFUSED_LIMIT: usize = 65_536;

/// Executables with a TLS library inside, attached before the first start.
const EXECUTABLES: [&str; 4] =
    ["/usr/bin/node", "/usr/bin/nodejs", "/usr/local/bin/node", "/opt/node/bin/node"];

/// Directories of libraries, attached before the first program maps them.
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

/// Report about a file.
#[derive(Debug)]
pub(crate) enum Finding {
    /// The file has probes now.
    Attached,
    /// No process maps the file any more.
    Detached,
    /// The file should have probes, and can't.
    Failed { path: PathBuf, error: String },
    /// All processes running at the start were inspected. Every attachable file has its probes,
    /// unless the kernel refused a probe.
    Ready { refused: Option<String> },
}

/// A mapped file that may be, or hold, a TLS library.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mapped {
    pub(crate) role: Role,
    pub(crate) file: FileId,
    /// Path of the file in the process's own mount namespace.
    pub(crate) path: PathBuf,
}

/// Finds files and attaches probes, on a separate thread.
pub(crate) struct Discovery {
    probes: Probes,
    inspector: Inspector,
    /// Files found to be something else, or impossible to attach.
    refused: HashSet<FileId>,
    /// Files with probes, and the last time a process was seen mapping the file. Files of the
    /// standard directories have no time: they stay.
    used: HashMap<FileId, Option<Instant>>,
    /// The kernel's first refusal of a probe.
    kernel_refused: Option<String>,
    /// Programs waiting for a look, by the time of the look.
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

    /// Attaches existing files; then follows program starts, until the sender of `started` is gone.
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

    /// Inspects the programs due for a look.
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

    /// Inspects every process.
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
            if may_hold_any(role, &path)
                && let Some(file) = file_id(&path)
            {
                self.file(Mapped { role, file, path }, None, tell);
            }
        }
    }

    /// Attaches the probes of a file, once. `pid`: the mapping process; `None` for a file of the
    /// host's standard directories.
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
            // The process ended meanwhile; the next process, or the next look, will tell.
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

    /// Remembers the kernel's first refusal of a probe.
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

/// Returns the agent's path to a file mapped by a process: through the process's root or, for a
/// changed root within the agent's own mount namespace, the path as shown by `/proc`. `None`: the
/// file is gone.
///
/// An overlay may show another inode number than the mapping; then the path through the root
/// counts.
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

/// Process ids of the host, except the agent's own.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |&pid| pid != own)
}

/// Returns the mapped files of a process that may be, or hold, TLS libraries. Touches none of them:
/// a file system may never answer.
pub(crate) fn mapped_runtimes(pid: u32) -> BTreeSet<Mapped> {
    let path = format!("/proc/{pid}/maps");
    let Ok(file) = fs::File::open(path) else { return BTreeSet::new() };
    let mut text = String::new();
    // A map with invalid text, or ending during the read, gives the part read so far.
    let _partial =
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAPS_LIMIT), &mut text);
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let executable = executable.and_then(|it| executable_in(&text, it));
    text.lines().filter_map(mapped_library).chain(executable).collect()
}

/// Finds the executable at `path` in the process's map.
fn executable_in(maps: &str, path: PathBuf) -> Option<Mapped> {
    if !may_hold_any(Role::Executable, &path) {
        return None;
    }
    let shown = path.to_str()?;
    let file = maps.lines().find_map(|line| {
        let at = line.find('/')?;
        let (fields, name) = line.split_at_checked(at)?;
        file_of(fields).filter(|_| name == shown)
    })?;
    Some(Mapped { role: Role::Executable, file, path })
}

/// Returns device and inode from the fields before the path.
fn file_of(fields: &str) -> Option<FileId> {
    let mut fields = fields.split_ascii_whitespace();
    let (major, minor) = fields.nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some(FileId {
        device: rustix::fs::makedev(number(major)?, number(minor)?),
        inode: fields.next()?.parse().ok()?,
    })
}

/// Parses a line of `/proc/PID/maps` (`proc_pid_maps(5)`):
/// `7f2c...-7f2c... r-xp 00016000 fe:00 1835 /usr/lib/x86_64-linux-gnu/libssl.so.3`.
fn mapped_library(line: &str) -> Option<Mapped> {
    // Cheap first: most lines are not TLS libraries.
    let at = line.find('/')?;
    let (fields, path) = line.split_at_checked(at)?;
    let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
    if !may_hold_any(Role::Library, path) {
        return None;
    }
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
