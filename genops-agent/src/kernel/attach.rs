//! Probes in files: attached once per file, all or none.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    programs::{
        ProgramError,
        links::{FdLink, PinnedLink},
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope},
    },
};

use super::{Options, Pins, pins::end_abandoned};
use crate::runtimes::ProbePoint;

/// The programs attached in files.
pub(super) const UPROBES: [&str; 10] = [
    "ssl_ctrl",
    "ssl_handshake",
    "ssl_write",
    "ssl_write_ex",
    "ssl_write_ret",
    "ssl_read",
    "ssl_read_ex",
    "ssl_read_ret",
    "ssl_free",
    "empty",
];

/// The program with the given name.
pub(crate) fn program_named(name: &str) -> Option<&'static str> {
    UPROBES.into_iter().find(|it| *it == name)
}

/// Device and inode: a uprobe belongs to a file, under any path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A probe refused by the kernel.
#[derive(Debug, thiserror::Error)]
#[error("program `{program}` at offset {file_offset:#x} of {}: {source}", path.display())]
pub(crate) struct AttachError {
    program: &'static str,
    file_offset: u64,
    path: PathBuf,
    source: Box<ProgramError>,
}

/// The loaded programs and the files with attached probes.
pub(crate) struct Probes {
    ebpf: Ebpf,
    floor: bool,
    /// See [`Options::governs`].
    governs: bool,
    pins: Option<Arc<Pins>>,
    attached: HashMap<FileId, Vec<Attached>>,
}

/// One probe in a file.
enum Attached {
    /// Ends with the agent.
    Link(&'static str, UProbeLinkId),
    /// Outlives the agent.
    Pinned(PinnedLink),
}

impl Probes {
    pub(super) fn new(ebpf: Ebpf, options: Options) -> Self {
        let Options { pins, floor, governs, .. } = options;
        Self { ebpf, floor, governs, pins, attached: HashMap::new() }
    }

    /// Ends the probes of earlier agents, after every probe of the running programs is in place.
    pub(crate) fn take_over(&self) {
        match &self.pins {
            Some(pins) => pins.take_over(),
            None if self.governs => end_abandoned(None),
            None => {}
        }
    }

    /// Attaches `points` in the file at `path`, all or none. A file attached before is left alone.
    pub(crate) fn attach(
        &mut self,
        file: FileId,
        path: &Path,
        points: &[ProbePoint],
    ) -> Result<(), AttachError> {
        if self.attached.contains_key(&file) {
            return Ok(());
        }
        let mut links = Vec::with_capacity(points.len());
        for point in points {
            let (file_offset, cookie) = place(point);
            let program = point.program;
            let program = if self.floor { "empty" } else { program };
            match self.attach_point(program, file_offset, cookie, path) {
                Ok(link) => links.push(link),
                Err(source) => {
                    detach_all(&mut self.ebpf, links);
                    let (path, source) = (path.to_owned(), Box::new(source));
                    return Err(AttachError { program, file_offset, path, source });
                }
            }
        }
        self.attached.insert(file, links);
        Ok(())
    }

    /// Attaches one probe, outliving the agent if configured and possible (kernel 5.15 and later).
    fn attach_point(
        &mut self,
        program: &'static str,
        file_offset: u64,
        cookie: Option<u64>,
        path: &Path,
    ) -> Result<Attached, ProgramError> {
        let it = uprobe(&mut self.ebpf, program)?;
        let point = || {
            let location = UProbeAttachLocation::AbsoluteOffset(file_offset);
            UProbeAttachPoint { location, cookie }
        };
        let link = it.attach(point(), path, UProbeScope::AllProcesses)?;
        let Some(pins) = self.pins.as_ref().filter(|_| aya::features().bpf_perf_link()) else {
            return Ok(Attached::Link(program, link));
        };
        let link: FdLink = it.take_link(link)?.try_into().map_err(|_| ProgramError::NotAttached)?;
        match pins.keep(link, program) {
            Ok(link) => Ok(Attached::Pinned(link)),
            Err(error) => {
                eprintln!("genops-agent: probe `{program}` ends with the agent: {error:#}");
                let link = it.attach(point(), path, UProbeScope::AllProcesses)?;
                Ok(Attached::Link(program, link))
            }
        }
    }

    /// Detaches the probes of a file no longer in use.
    pub(crate) fn detach(&mut self, file: FileId) {
        if let Some(links) = self.attached.remove(&file) {
            detach_all(&mut self.ebpf, links);
        }
    }
}

/// The offset and cookie of a probe: the cheaper offset if the kernel supports cookies (kernel 5.15
/// and later).
fn place(point: &ProbePoint) -> (u64, Option<u64>) {
    match point.cheaper.filter(|_| has_cookies()) {
        Some((file_offset, frame)) => (file_offset, Some(frame.0)),
        None => (point.file_offset, None),
    }
}

/// Whether the kernel tells a program the hit probe.
pub(super) fn has_cookies() -> bool {
    aya::features().bpf_cookie() && aya::features().bpf_perf_link()
}

fn uprobe<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::UProbe, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn detach_all(ebpf: &mut Ebpf, links: Vec<Attached>) {
    for link in links {
        // A link gone already is as good.
        match link {
            Attached::Link(program, link) => {
                let _gone = uprobe(ebpf, program).and_then(|it| it.detach(link));
            }
            Attached::Pinned(link) => {
                let _gone = link.unpin();
            }
        }
    }
}
