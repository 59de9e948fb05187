//! Kernel programs and maps that outlive the agent, as files of a BPF file system.
//!
//! `DIRECTORY/vN/maps` holds the maps, which every agent of this layout uses; `DIRECTORY/vN/links/RUN` the
//! attachments of one run. An agent that starts attaches its own programs to the same maps and then
//! removes the runs before it, of any layout, so that no packet and no call finds none. Programs of two runs at once
//! do no harm: what they write is by key, and the same.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::links::{FdLink, PinnedLink};
use genops_ebpf_common::LAYOUT;
use rustix::fs::{CWD, Mode, OFlags};

use super::place::{self, Touch};
use crate::{clock, config::PinDirectory};

/// The maps that agents hand on.
const MAPS: [&str; 23] = [
    "EVENTS",
    "SETTINGS",
    "CONNS",
    "SOCKS",
    "OWNERS",
    "ASKERS",
    "ADDRESSES",
    "TIES",
    "DENIED",
    "HOLDS",
    "SOCKETS",
    "VERDICTS",
    "PROCESSES",
    "LINEAGES",
    "USAGE",
    "USERS",
    "HOSTS",
    "PATHS",
    "CALLS",
    "MARKS",
    "NAMES",
    "OTHERS",
    "LOSSES",
];

/// Where the programs and maps of a run are kept.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
    maps: PathBuf,
    run: PathBuf,
    /// The run's directory, whatever its name.
    held: OwnedFd,
    next: AtomicU32,
    inherited: bool,
}

/// Where programs and maps of this run are kept, or why nowhere.
#[derive(Clone, Debug)]
pub(crate) enum Kept<T> {
    /// Here.
    In(T),
    /// Nowhere, as is wanted.
    NotWanted,
    /// Nowhere, since no place is safe.
    Nowhere(String),
}

/// The place that an agent of this configuration uses.
///
/// # Errors
///
/// Where the configuration names one that is not safe.
pub(crate) fn place_for(
    directory: &PinDirectory,
    enforcing: bool,
    touch: Touch,
) -> Result<Kept<PathBuf>> {
    match directory {
        PinDirectory::None => Ok(Kept::NotWanted),
        PinDirectory::Auto if !enforcing => Ok(Kept::NotWanted),
        PinDirectory::Auto => Ok(match place::of_itself(touch) {
            Ok(path) => Kept::In(path),
            Err(why) => Kept::Nowhere(why),
        }),
        PinDirectory::Path(path) => match place::at(path, touch) {
            Ok(()) => Ok(Kept::In(path.clone())),
            Err(why) => Err(anyhow!("pin_directory {}: {why}", path.display())),
        },
    }
}

impl Pins {
    /// Makes room below `directory`, which is a safe place.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let root = directory.join(format!("v{LAYOUT}"));
        let place = || format!("{}", directory.display());
        // Another run's of the same number may still be in force.
        let run = format!("run-{}-{}", std::process::id(), clock::mono_ns());
        let run = root.join("links").join(run);
        let inherited = has_entries(&root.join("links"));
        fs::create_dir_all(&run)
            .and_then(|()| fs::create_dir_all(root.join("maps")))
            .with_context(place)?;
        let held = rustix::fs::openat(
            CWD,
            &run,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(place)?;
        Ok(Self {
            directory: directory.to_owned(),
            maps: root.join("maps"),
            run,
            held,
            next: AtomicU32::new(0),
            inherited,
        })
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Each map and its file.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        MAPS.into_iter().map(|name| (name, self.maps.join(name)))
    }

    /// Whether an agent before has left its maps.
    pub(crate) fn are_inherited(&self) -> bool {
        self.inherited
    }

    /// Keeps an attachment when the agent ends.
    pub(super) fn keep(&self, link: FdLink, name: &str) -> Result<PinnedLink> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // A dot is not allowed in names (`kernel/bpf/inode.c`).
        let path = self.run.join(format!("{name}-{number}").replace('.', "_"));
        link.pin(&path).with_context(|| format!("{}", path.display()))
    }

    /// Ends the attachments of the runs before this one, which has its own in place.
    pub(crate) fn take_over(&self) {
        for layout in layouts(&self.directory) {
            let ours = self.maps.parent() == Some(layout.as_path());
            for run in entries(&layout.join("links")).filter(|it| *it != self.run) {
                end(&run);
            }
            if !ours {
                end(&layout);
            }
        }
        end_abandoned(Some(&self.directory));
    }

    /// Descriptor of the directory whose end says that another run has taken over.
    pub(crate) fn run(&self) -> RawFd {
        self.held.as_fd().as_raw_fd()
    }
}

/// Ends what agents that run no more have left in the usual places, but for `kept`: an agent that runs
/// decides, with its own programs or with none.
pub(crate) fn end_abandoned(kept: Option<&Path>) {
    for directory in place::USUAL.map(Path::new) {
        if Some(directory) == kept {
            continue;
        }
        for layout in layouts(directory) {
            let runs: Vec<PathBuf> = entries(&layout.join("links")).collect();
            if !runs.is_empty() && !runs.iter().any(|it| is_at_work(it)) {
                end(&layout);
            }
        }
    }
}

/// Whether the agent of a run is there.
fn is_at_work(run: &Path) -> bool {
    let name = run.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let Some(pid) = name.split('-').nth(1) else { return false };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // One that has ended, and whose parent has not heard of it, has a name and no command line.
    let runs = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty());
    comm.trim_end() == "genops-agent" && runs
}

fn end(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("genops-agent: {}: {error}", directory.display());
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn has_entries(directory: &Path) -> bool {
    entries(directory).next().is_some()
}

/// What agents of each layout have left below `directory`.
fn layouts(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    entries(directory).filter(|path| path.join("maps").is_dir())
}

/// Whether an agent of any layout has left something below `directory`.
pub(crate) fn is_used(directory: &Path) -> bool {
    layouts(directory).next().is_some()
}

/// Ends everything that agents of any layout have left below `directory`. False: there was nothing.
pub(crate) fn remove(directory: &Path) -> Result<bool> {
    let mut found = false;
    let list = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        list => list.with_context(|| format!("{}", directory.display()))?,
    };
    drop(list);
    for path in layouts(directory) {
        fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        found = true;
    }
    Ok(found)
}
