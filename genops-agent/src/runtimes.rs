//! TLS runtimes: which files they are, and where their probes belong.
//!
//! To add one: write a module here with a [`Runtime`] and add it to [`RUNTIMES`]; a kernel program only
//! if its calling convention is new. Nothing else in the agent knows that OpenSSL exists.

mod elf;
mod flow;
mod openssl;

use std::path::Path;

use genops_ebpf_common::Frame;

pub(crate) use elf::ElfError;

/// One place in a file where a probe belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbePoint {
    /// Name of the program in `genops-ebpf`.
    pub(crate) program: &'static str,
    /// Offset in the file, in bytes: what the kernel wants, and what survives stripping.
    pub(crate) file_offset: u64,
    /// A cheaper place for it, for kernels that tell the program which frame it finds there.
    pub(crate) cheaper: Option<(u64, Frame)>,
}

/// A TLS implementation.
#[derive(Debug)]
pub(crate) struct Runtime {
    /// As `doctor` shows it.
    pub(crate) name: &'static str,
    /// Whether a file of this name may be one; cheap, asked for each mapping of each process.
    pub(crate) may_be: fn(role: Role, file_name: &str) -> bool,
    /// The places in the file; none where it is something else after all.
    pub(crate) probe_points: fn(file: &Path) -> Result<Vec<ProbePoint>, ElfError>,
}

/// What a file is to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The program itself.
    Executable,
    /// Something else that it maps.
    Library,
}

/// Every runtime.
pub(crate) const RUNTIMES: &[Runtime] = &[openssl::SHARED, openssl::IN_EXECUTABLE];

/// The first runtime that a file of this path may belong to.
pub(crate) fn runtime_of(role: Role, path: &Path) -> Option<&'static Runtime> {
    let name = path.file_name()?.to_str()?;
    RUNTIMES.iter().find(|runtime| (runtime.may_be)(role, name))
}
