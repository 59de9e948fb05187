//! Probes in files: attached once a file, all or none.

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

/// The programs that are attached in files.
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

/// The program of that name.
pub(crate) fn program_named(name: &str) -> Option<&'static str> {
    UPROBES.into_iter().find(|it| *it == name)
}

/// Device and inode: a uprobe belongs to a file, whatever paths lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A probe that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("program `{program}` at offset {file_offset:#x} of {}: {source}", path.display())]
pub(crate) struct AttachError {
    program: &'static str,
    file_offset: u64,
    path: PathBuf,
    source: Box<ProgramError>,
}

/// The loaded programs and the files that they are attached in.
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
    /// It ends with the agent.
    Link(&'static str, UProbeLinkId),
    /// It outlives the agent.
    Pinned(PinnedLink),
}

impl Probes {
    pub(super) fn new(ebpf: Ebpf, options: Options) -> Self {
        let Options { pins, floor, governs, .. } = options;
        Self { ebpf, floor, governs, pins, attached: HashMap::new() }
    }

    /// Every probe for what runs is in place: those of agents before are not needed any more.
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

    /// Attaches one probe; it outlives the agent where that is wanted and the kernel can (5.15).
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

    /// Detaches the probes of a file that nobody uses any more.
    pub(crate) fn detach(&mut self, file: FileId) {
        if let Some(links) = self.attached.remove(&file) {
            detach_all(&mut self.ebpf, links);
        }
    }
}

/// The offset of a probe and what its program is to know of it: the cheaper place where the kernel can say
/// that (5.15).
fn place(point: &ProbePoint) -> (u64, Option<u64>) {
    match point.cheaper.filter(|_| has_cookies()) {
        Some((file_offset, frame)) => (file_offset, Some(frame.0)),
        None => (point.file_offset, None),
    }
}

/// Whether the kernel tells a program which of its probes was hit.
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
        // A link that is gone already is what was wanted.
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
