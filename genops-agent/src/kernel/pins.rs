//! Kernel programs and maps outliving the agent, as files of a BPF file system.
//!
//! `DIRECTORY/vN/maps` holds the maps, shared by all agents of layout N; `DIRECTORY/vN/links/RUN`
//! holds the attachments of one run. A starting agent attaches its own programs to the same maps
//! and then removes the earlier runs of any layout, so that every packet and call meets a program.
//! Programs of two runs at once do no harm: both write the same values under the same keys.

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
use crate::{clock, config::PinDirectory, identity};

/// The maps handed on from agent to agent.
const MAPS: [&str; 25] = [
    "EVENTS",
    "SETTINGS",
    "CONNS",
    "SOCKS",
    "OWNERS",
    "ASKERS",
    "ADDRESSES",
    "TIES",
    "DENIED",
    "REFUSALS",
    "COUNTED",
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

/// Directories of the programs and maps of a run.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
    maps: PathBuf,
    run: PathBuf,
    /// Descriptor of the run's directory, valid under any name.
    held: OwnedFd,
    next: AtomicU32,
    inherited: bool,
}

/// Place of the programs and maps of a run, or the reason for none.
#[derive(Clone, Debug)]
pub(crate) enum Kept<T> {
    /// The place.
    In(T),
    /// No place, as configured.
    NotWanted,
    /// No place, because none is safe.
    Nowhere(String),
}

/// Returns the place for an agent of the configuration.
///
/// # Errors
///
/// If the configuration names an unsafe place.
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
    /// Makes the directories of a run below `directory`, which is a safe place.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let root = directory.join(format!("v{LAYOUT}"));
        let place = || format!("{}", directory.display());
        // A run of another process with the same number may still be in force.
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

    /// Directory of the pins.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Each map with its file.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        MAPS.into_iter().map(|name| (name, self.maps.join(name)))
    }

    /// Whether an earlier agent has left its maps.
    pub(crate) fn are_inherited(&self) -> bool {
        self.inherited
    }

    /// Keeps an attachment after the end of the agent.
    pub(super) fn keep(&self, link: FdLink, name: &str) -> Result<PinnedLink> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // A dot is not allowed in names (`kernel/bpf/inode.c`).
        let path = self.run.join(format!("{name}-{number}").replace('.', "_"));
        link.pin(&path).with_context(|| format!("{}", path.display()))
    }

    /// Ends the attachments of earlier runs; the run's own must be in place.
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

    /// Descriptor of the run's directory, for a watcher: another run has taken over once the
    /// directory is removed.
    pub(crate) fn run(&self) -> RawFd {
        self.held.as_fd().as_raw_fd()
    }
}

/// Removes the pins of ended agents from the usual places, except `kept`: only a running agent
/// decides, with pinned programs or without.
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

/// Whether the agent of a run lives, under any program name: the process began before the run, and
/// lives.
fn is_at_work(run: &Path) -> bool {
    let name = run.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let mut numbers = name.split('-').skip(1);
    let pid: Option<i32> = numbers.next().and_then(|it| it.parse().ok());
    let begun: Option<u64> = numbers.next().and_then(|it| it.parse().ok());
    let Some((pid, begun)) = pid.zip(begun) else { return false };
    // A zombie has a name and no command line.
    let lives = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty());
    lives && identity::began_at_mono_ns(pid).is_some_and(|it| it <= begun)
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

/// The layouts left by agents below `directory`.
fn layouts(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    entries(directory).filter(|path| path.join("maps").is_dir())
}

/// Whether an agent of any layout has left pins below `directory`.
pub(crate) fn is_used(directory: &Path) -> bool {
    layouts(directory).next().is_some()
}

/// Removes the pins of agents of any layout below `directory`. False: no pins found.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_at_work_while_the_process_of_its_run_lives() {
        let run = |pid: u32, begun: u64| PathBuf::from(format!("links/run-{pid}-{begun}"));
        let own = std::process::id();
        assert!(is_at_work(&run(own, clock::mono_ns())));
        assert!(!is_at_work(&run(own, 0)), "another process had the number");
        assert!(!is_at_work(&run(u32::MAX >> 1, clock::mono_ns())), "nobody has the number");
        assert!(!is_at_work(Path::new("links/run-x")));
    }
}
