//! TLS runtimes: detection in files, and the places of their probes.
//!
//! A file is read once for all runtimes: an executable may hold several. To add a runtime, write a
//! module here with a [`Runtime`] and add the runtime to [`RUNTIMES`]; a kernel program is needed
//! only for a new calling convention. No other code in the agent knows of OpenSSL.

mod flow;
mod image;
mod openssl;

use std::path::Path;

use genops_ebpf_common::Frame;

use image::Image;
pub(crate) use image::ImageError;

/// A place for a probe in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbePoint {
    /// Name of the program in `genops-ebpf`.
    pub(crate) program: &'static str,
    /// Offset in the file, in bytes: required by the kernel, and unaffected by stripping.
    pub(crate) file_offset: u64,
    /// A cheaper place with its frame, for kernels that pass the frame to the program.
    pub(crate) cheaper: Option<(u64, Frame)>,
}

/// A TLS implementation.
#[derive(Debug)]
struct Runtime {
    /// Name shown by `doctor`.
    name: &'static str,
    /// Whether a file of the given name may hold the runtime; cheap, called for each mapping of
    /// each process.
    may_be_in: fn(role: Role, file_name: &str) -> bool,
    /// Finds the probe points in the file; none if the file does not hold the runtime after all.
    detect: fn(image: &Image) -> Result<Vec<ProbePoint>, ImageError>,
}

/// Role of a file in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The program itself.
    Executable,
    /// A library, or another mapped file.
    Library,
}

/// All runtimes.
const RUNTIMES: &[Runtime] = &[openssl::SHARED, openssl::IN_EXECUTABLE];

/// Runtimes found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Detected {
    /// Names of the runtimes.
    pub(crate) runtimes: Vec<&'static str>,
    /// Places of all probes, without duplicates.
    pub(crate) points: Vec<ProbePoint>,
}

/// Whether a file at `path` may hold a runtime.
pub(crate) fn may_hold_any(role: Role, path: &Path) -> bool {
    RUNTIMES.iter().any(|runtime| may_hold(runtime, role, path))
}

fn may_hold(runtime: &Runtime, role: Role, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| (runtime.may_be_in)(role, name))
}

/// Runs the detection of every runtime possible for `path`. `file`: path used to open the file.
///
/// # Errors
///
/// Fails if no runtime was found, and an expected runtime can't be probed.
pub(crate) fn detect(role: Role, path: &Path, file: &Path) -> Result<Detected, ImageError> {
    detect_of(RUNTIMES, role, path, file)
}

fn detect_of(
    runtimes: &[Runtime],
    role: Role,
    path: &Path,
    file: &Path,
) -> Result<Detected, ImageError> {
    let image = match Image::open(file) {
        // A script, or a program of another kind: no error.
        Err(ImageError::Malformed(_)) if role == Role::Executable => {
            return Ok(Detected::default());
        }
        image => image?,
    };
    let mut found = Detected::default();
    let mut fault = None;
    for runtime in runtimes.iter().filter(|runtime| may_hold(runtime, role, path)) {
        match (runtime.detect)(&image) {
            Ok(points) if points.is_empty() => {}
            Ok(points) => {
                found.runtimes.push(runtime.name);
                for point in points {
                    if !found.points.contains(&point) {
                        found.points.push(point);
                    }
                }
            }
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    match fault {
        Some(error) if found.points.is_empty() => Err(error),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONE: ProbePoint = ProbePoint { program: "ssl_free", file_offset: 1, cheaper: None };
    const AT_TWO: ProbePoint = ProbePoint { file_offset: 2, ..AT_ONE };
    const NEITHER: fn(&Image) -> Result<Vec<ProbePoint>, ImageError> =
        |_| Err(ImageError::NoSymbol { symbol: "none" });

    fn runtime(
        name: &'static str,
        detect: fn(&Image) -> Result<Vec<ProbePoint>, ImageError>,
    ) -> Runtime {
        Runtime { name, may_be_in: |_, _| true, detect }
    }

    fn found(runtimes: &[Runtime]) -> Result<Detected, ImageError> {
        let own = Path::new("/proc/self/exe");
        detect_of(runtimes, Role::Executable, own, own)
    }

    #[test]
    fn every_runtime_of_a_file_is_found_and_each_place_once() {
        let runtimes = [
            runtime("one", |_| Ok(vec![AT_ONE])),
            runtime("none", |_| Ok(Vec::new())),
            runtime("broken", NEITHER),
            runtime("two", |_| Ok(vec![AT_TWO, AT_ONE])),
            Runtime { may_be_in: |_, _| false, ..runtime("elsewhere", |_| Ok(vec![AT_TWO])) },
        ];
        let all = Detected { runtimes: vec!["one", "two"], points: vec![AT_ONE, AT_TWO] };
        assert_eq!(found(&runtimes).expect("two of them"), all);
    }

    #[test]
    fn a_runtime_that_can_t_be_probed_is_said_if_there_is_no_other() {
        let broken = found(&[runtime("broken", NEITHER)]);
        assert!(matches!(broken, Err(ImageError::NoSymbol { .. })));
        assert_eq!(found(&[]).expect("nothing"), Detected::default());
        let script = detect_of(&[], Role::Executable, Path::new("/x"), Path::new("/etc/passwd"));
        assert_eq!(script.expect("no program"), Detected::default());
        let library = detect_of(&[], Role::Library, Path::new("/x"), Path::new("/etc/passwd"));
        assert!(matches!(library, Err(ImageError::Malformed(_))));
    }
}
