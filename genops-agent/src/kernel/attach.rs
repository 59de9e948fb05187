//! Probes in files: attached once a file, all or none.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError,
        uprobe::{UProbeAttachLocation, UProbeLinkId, UProbeScope},
    },
};

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
    attached: HashMap<FileId, Vec<(&'static str, UProbeLinkId)>>,
}

impl Probes {
    pub(super) fn new(ebpf: Ebpf, floor: bool) -> Self {
        Self { ebpf, floor, attached: HashMap::new() }
    }

    /// Attaches `points` in the file at `path`, all or none. A file attached before is left alone.
    pub(crate) fn attach(
        &mut self,
        file: FileId,
        path: &Path,
        points: &[ProbePoint],
    ) -> Result<(), AttachError> {
        let Entry::Vacant(slot) = self.attached.entry(file) else { return Ok(()) };
        let mut links = Vec::with_capacity(points.len());
        for &ProbePoint { program, file_offset } in points {
            let program = if self.floor { "empty" } else { program };
            let attempt = uprobe(&mut self.ebpf, program).and_then(|it| {
                let location = UProbeAttachLocation::AbsoluteOffset(file_offset);
                it.attach(location, path, UProbeScope::AllProcesses)
            });
            match attempt {
                Ok(link) => links.push((program, link)),
                Err(source) => {
                    detach_all(&mut self.ebpf, links);
                    let (path, source) = (path.to_owned(), Box::new(source));
                    return Err(AttachError { program, file_offset, path, source });
                }
            }
        }
        slot.insert(links);
        Ok(())
    }

    /// Detaches the probes of a file that nobody uses any more.
    pub(crate) fn detach(&mut self, file: FileId) {
        if let Some(links) = self.attached.remove(&file) {
            detach_all(&mut self.ebpf, links);
        }
    }
}

fn uprobe<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::UProbe, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn detach_all(ebpf: &mut Ebpf, links: Vec<(&'static str, UProbeLinkId)>) {
    for (program, link) in links {
        if let Ok(it) = uprobe(ebpf, program) {
            // A link that is gone already is what was wanted.
            let _gone = it.detach(link);
        }
    }
}
