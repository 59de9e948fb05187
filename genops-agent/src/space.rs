//! How much room is left where evidence is written.

use std::path::Path;

/// Below, `doctor` warns.
pub(crate) const LITTLE_PERCENT: u64 = 10;
/// Below, the agent folds readable refusals of the user with most records.
pub(crate) const SCARCE_PERCENT: u64 = 5;

/// Free share of the file system of a directory, or of the nearest existing parent; `None` if
/// unknown.
pub(crate) fn free_percent(directory: &Path) -> Option<u64> {
    let made = directory.ancestors().find(|it| it.is_dir()).unwrap_or(Path::new("."));
    let it = rustix::fs::statvfs(made).ok()?;
    percent(it.f_bavail, it.f_blocks)
}

/// Free share; `None` for a file system without a count of blocks.
fn percent(free: u64, all: u64) -> Option<u64> {
    u64::try_from(u128::from(free) * 100 / u128::from(all.max(1))).ok().filter(|_| all > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_rounded_down() {
        assert_eq!(percent(499, 10_000), Some(4));
        assert_eq!(percent(500, 10_000), Some(5));
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
        assert_eq!(percent(0, 0), None);
    }

    #[test]
    fn of_a_directory_that_is_still_to_be_made_the_one_above_counts() {
        let made = tempfile::tempdir().expect("a directory");
        let all = free_percent(made.path());
        assert!(all.is_some_and(|it| it <= 100));
        assert!(free_percent(&made.path().join("a/b/c")).is_some());
    }
}
