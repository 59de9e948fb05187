//! Kernel programs and maps that outlive the agent, as files of a BPF file system.
//!
//! `DIRECTORY/vN/maps` holds the maps, which every agent of this layout uses; `DIRECTORY/vN/links/RUN` the
//! attachments of one run. An agent that starts attaches its own programs to the same maps and then
//! removes the runs before it, so that no packet and no call finds none. Programs of two runs at once do
//! no harm: what they write is by key, and the same.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use genops_ebpf_common::LAYOUT;

/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS: u64 = 0xcafe_4a11;

/// The maps that agents hand on.
const MAPS: [&str; 19] = [
    "EVENTS",
    "SETTINGS",
    "CONNS",
    "SOCKS",
    "OWNERS",
    "ADDRESSES",
    "DENIED",
    "HOLDS",
    "SOCKETS",
    "VERDICTS",
    "PROCESSES",
    "LINEAGES",
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
    maps: PathBuf,
    /// Of all runs.
    links: PathBuf,
    run: PathBuf,
    next: AtomicU32,
    inherited: bool,
}

impl Pins {
    /// Makes room below `directory`, which must be on a BPF file system.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let root = directory.join(format!("v{LAYOUT}"));
        let links = root.join("links");
        let run = links.join(format!("run-{}", std::process::id()));
        let mut pins =
            Self { maps: root.join("maps"), links, run, next: AtomicU32::new(0), inherited: false };
        let place = || format!("{}", directory.display());
        // A run of the same number that was killed.
        let _none = fs::remove_dir_all(&pins.run);
        fs::create_dir_all(&pins.run)
            .and_then(|()| fs::create_dir_all(&pins.maps))
            .with_context(place)?;
        let kind = rustix::fs::statfs(directory).with_context(place)?.f_type;
        ensure!(
            u64::try_from(kind) == Ok(BPF_FS),
            "pin_directory {}: not on a BPF file system; mount one: `mount -t bpf bpf /sys/fs/bpf`",
            directory.display()
        );
        let before = pins.runs().next();
        pins.inherited = before.is_some();
        Ok(pins)
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
        for run in self.runs() {
            if let Err(error) = fs::remove_dir_all(&run) {
                eprintln!("genops-agent: {}: {error}", run.display());
            }
        }
    }

    /// The directory whose end says that another run has taken over.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    fn runs(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.links).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| *path != self.run)
    }
}

/// Ends everything that agents of any layout have left below `directory`. False: there was nothing.
pub(crate) fn remove(directory: &Path) -> Result<bool> {
    let mut found = false;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries.with_context(|| format!("{}", directory.display()))?,
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.join("maps").is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
            found = true;
        }
    }
    Ok(found)
}
