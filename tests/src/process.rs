//! Facts about processes from `/proc`.

use std::path::PathBuf;

use anyhow::Context as _;

/// Returns the CPU time used by the threads of a process, in nanoseconds (`schedstat`, first
/// field).
pub fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let first = text.split(' ').next().context("an empty schedstat")?;
        total += first.parse::<u64>()?;
    }
    Ok(total)
}

/// Returns the executable of a process.
pub fn executable(pid: u32) -> anyhow::Result<PathBuf> {
    Ok(std::fs::read_link(format!("/proc/{pid}/exe"))?)
}

/// Returns the `libssl` files mapped by a process.
pub fn mapped_libssl(pid: u32) -> anyhow::Result<Vec<String>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut files: Vec<_> = maps
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .filter(|path| path.contains("libssl"))
        .collect();
    files.dedup();
    Ok(files.into_iter().map(str::to_owned).collect())
}
