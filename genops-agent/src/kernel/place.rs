//! Safe directories for pins: on a BPF file system, and replaceable, renamable and readable by root
//! alone.

use std::{
    ffi::OsStr,
    fs,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, fchmod, fstat, fstatfs, mkdirat, openat},
    io::Errno,
    mount::{MountFlags, mount},
};

/// Directories of the pins, first choice first.
pub(crate) const USUAL: [&str; 2] = ["/sys/fs/bpf/genops", MOUNTED];

/// Mount point of the agent's own BPF file system, if there is none.
const MOUNTED: &str = "/run/genops/bpf";

/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS: u64 = 0xcafe_4a11;

/// Write permission of group or others.
const OTHERS_WRITE: u32 = 0o022;
/// Users with write permission can't rename or remove the files of others.
const STICKY: u32 = 0o1000;
/// Permissions of a place.
const PRIVATE: u32 = 0o700;
/// Permissions of a directory on the way to a place outside a BPF file system.
const PASSABLE: u32 = 0o755;

/// Advice without a BPF file system.
const MOUNT_ONE: &str = "mount one: `mount -t bpf -o mode=0700 bpf /sys/fs/bpf`";

/// Whether changes are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Makes directories, and mounts a file system.
    Make,
    /// Makes no changes; only checks whether they would be made.
    Look,
}

/// Returns the first safe place of the usual places.
///
/// # Errors
///
/// If no place is safe: the reason for each.
pub(crate) fn of_itself(touch: Touch) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for place in USUAL {
        let found = if place == MOUNTED { mounted(touch) } else { at(Path::new(place), touch) };
        match found {
            Ok(()) => return Ok(PathBuf::from(place)),
            Err(why) => reasons.push(why),
        }
    }
    Err(reasons.join("; "))
}

/// Checks a place; makes a missing place.
///
/// # Errors
///
/// If the place is not safe: the reason, and the remedy.
pub(crate) fn at(path: &Path, touch: Touch) -> Result<(), String> {
    let way = Way { touch, mode: PRIVATE, everywhere: false };
    let Some(last) = way.descend(path)? else { return Ok(()) };
    let shown = path.display();
    if !is_bpf(&last) {
        return Err(format!("{shown} is not on a BPF file system; {MOUNT_ONE}"));
    }
    let mode = fstat(&last).map_err(|error| format!("{shown}: {error}"))?.st_mode & 0o7777;
    // The root of a BPF file system is sticky, whatever the mount options.
    if mode & !STICKY == PRIVATE {
        return Ok(());
    }
    if mode & OTHERS_WRITE != 0 || !holds_only_ours(path) {
        return Err(format!(
            "{shown} has mode {mode:04o} and may be somebody else's; name a directory below it, or `chmod 0700 {shown}`"
        ));
    }
    match touch {
        Touch::Look => Ok(()),
        Touch::Make => make_private(path).map_err(|error| format!("{shown}: {error}")),
    }
}

/// Checks the place with the agent's own file system.
fn mounted(touch: Touch) -> Result<(), String> {
    let path = Path::new(MOUNTED);
    let way = Way { touch, mode: PASSABLE, everywhere: true };
    match way.descend(path)? {
        Some(last) if is_bpf(&last) => return at(path, touch),
        Some(_) | None => may_mount()?,
    }
    if touch == Touch::Look {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", path, "bpf", flags, c"mode=0700")
        .map_err(|error| format!("{MOUNTED}: no BPF file system can be mounted: {error}"))?;
    at(path, touch)
}

/// Refuses a mount in a private namespace of the agent, because the file system would end with the
/// namespace.
fn may_mount() -> Result<(), String> {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt"));
    match (namespace("1"), namespace("self")) {
        (Ok(host), Ok(own)) if host != own => Err(format!(
            "{MOUNTED}: what is mounted here ends with this container or service; {MOUNT_ONE} on the host and give it in"
        )),
        _ => Ok(()),
    }
}

/// Rules for following a path.
struct Way {
    touch: Touch,
    /// Mode of new directories.
    mode: u32,
    /// Makes directories on other file systems, too.
    everywhere: bool,
}

impl Way {
    /// Follows the path from the root, and refuses a path that others could redirect. `None`: the
    /// path does not exist, and may not be made now.
    fn descend(&self, path: &Path) -> Result<Option<OwnedFd>, String> {
        let mut at = PathBuf::from("/");
        let mut here = open(None, OsStr::new("/")).map_err(|error| format!("/: {error}"))?;
        check(&here, &at)?;
        for part in path.components() {
            let name = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(format!("{} has `..` in it", path.display()));
                }
            };
            at.push(name);
            here = match open(Some(&here), name) {
                Ok(next) => next,
                Err(Errno::NOENT) => match self.make(&here, name, &at)? {
                    Some(next) => next,
                    None => return Ok(None),
                },
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(format!("{} is a link or a file, not a directory", at.display()));
                }
                Err(error) => return Err(format!("{}: {error}", at.display())),
            };
            check(&here, &at)?;
        }
        Ok(Some(here))
    }

    fn make(&self, here: &OwnedFd, name: &OsStr, at: &Path) -> Result<Option<OwnedFd>, String> {
        if !self.everywhere && !is_bpf(here) {
            let above = at.parent().unwrap_or(at).display();
            return Err(format!("{above} is not on a BPF file system; {MOUNT_ONE}"));
        }
        if self.touch == Touch::Look {
            return Ok(None);
        }
        match mkdirat(here, name, Mode::from_raw_mode(self.mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("{} can't be made: {error}", at.display())),
        }
        open(Some(here), name).map(Some).map_err(|error| format!("{}: {error}", at.display()))
    }
}

fn open(above: Option<&OwnedFd>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match above {
        Some(above) => openat(above, name, flags, Mode::empty()),
        None => openat(CWD, name, flags, Mode::empty()),
    }
}

/// Whether root alone can replace the entries of a directory.
fn check(directory: &OwnedFd, path: &Path) -> Result<(), String> {
    let shown = path.display();
    let stat = fstat(directory).map_err(|error| format!("{shown}: {error}"))?;
    let mode = stat.st_mode & 0o7777;
    fault(stat.st_uid, mode).map_or(Ok(()), |fault| {
        Err(format!("{shown} {fault}; `chown root:root {shown} && chmod 0700 {shown}` after a look at what is in it"))
    })
}

/// The fault of a directory with the given owner and mode.
fn fault(uid: u32, mode: u32) -> Option<String> {
    if uid != 0 {
        return Some(format!("belongs to user {uid}, not to root"));
    }
    (mode & OTHERS_WRITE != 0 && mode & STICKY == 0)
        .then(|| format!("can be written by others than root (mode {mode:04o})"))
}

fn is_bpf(directory: &OwnedFd) -> bool {
    fstatfs(directory).is_ok_and(|it| u64::try_from(it.f_type) == Ok(BPF_FS))
}

/// Whether the directory has only directories made by agents (`v4`).
fn holds_only_ours(path: &Path) -> bool {
    let ours = |name: &str| {
        name.strip_prefix('v').is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    fs::read_dir(path).is_ok_and(|entries| {
        entries.flatten().all(|entry| entry.file_name().to_str().is_some_and(ours))
    })
}

fn make_private(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty())?;
    fchmod(&directory, Mode::from_raw_mode(PRIVATE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_on_the_way_is_roots_and_nobody_elses() {
        let says = |uid, mode| fault(uid, mode).unwrap_or_default();
        assert_eq!(says(0, 0o755), "");
        assert_eq!(says(0, 0o700), "");
        assert_eq!(says(0, 0o1777), "");
        assert_eq!(says(0, 0o777), "can be written by others than root (mode 0777)");
        assert_eq!(says(0, 0o720), "can be written by others than root (mode 0720)");
        assert_eq!(says(65_534, 0o700), "belongs to user 65534, not to root");
    }

    #[test]
    fn nothing_is_made_outside_a_bpf_file_system() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("place");
        let why = at(&place, Touch::Make).unwrap_err();
        assert!(why.contains("is not on a BPF file system; mount one"), "{why}");
        assert!(!place.exists());
    }

    #[test]
    fn a_link_leads_nowhere() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        symlink("/sys/fs/bpf", folder.path().join("link")).unwrap();
        let why = at(&folder.path().join("link/genops"), Touch::Make).unwrap_err();
        assert!(why.ends_with("link is a link or a file, not a directory"), "{why}");
    }

    #[test]
    fn a_way_that_others_may_write_is_refused_with_what_to_do() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o773)).unwrap();
        let why = at(&open.join("place"), Touch::Make).unwrap_err();
        assert!(why.contains("can be written by others than root (mode 0773)"), "{why}");
        assert!(why.contains("chmod 0700"), "{why}");
    }
}
