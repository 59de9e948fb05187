//! Identity of processes: facts from `/proc` about a living process.
//!
//! Only facts written by the kernel alone count: `/proc/PID/cgroup`, as far as the cgroups belong
//! to root; `mountinfo` and labels do not. A program is identified by the host's file under its
//! path. Unreadable facts are absent.

mod executables;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use genops_governance::{
    ANCESTRY_LIMIT, Ancestor, MatchConfig, ProcessFacts, ProcessKey, Signal, User,
};
use procfs::process::{Process, Stat};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal},
};

use self::executables::Executables;
use crate::{clock, kernel};

/// Longest `/etc/passwd` read, in bytes.
const PASSWD_LIMIT: u64 = 4 << 20;

/// Turns process ids into facts.
#[derive(Debug)]
pub(crate) struct Identities {
    /// User names by user id, from the host's `/etc/passwd`.
    users: HashMap<u32, String>,
    ns_per_tick: u64,
    executables: Executables,
    /// Mount point of cgroup v2, for reading the owners of cgroups.
    groups: Option<PathBuf>,
}

impl Identities {
    pub(crate) fn new() -> Self {
        Self {
            users: users_of_host(),
            ns_per_tick: 1_000_000_000 / procfs::ticks_per_second().max(1),
            executables: Executables::new(),
            groups: kernel::cgroup2_root(),
        }
    }

    /// Keeps the files seen under principals' paths in `directory`.
    pub(crate) fn keep_in(&mut self, directory: &Path) {
        if let Some(why) = Executables::why_not_of_host() {
            eprintln!(
                "genops-agent: the host's root can't be looked into ({why}); paths of principals are compared with what the agent itself sees"
            );
        }
        self.executables.keep_in(directory);
    }

    /// Sets the matches of principals from now on.
    pub(crate) fn name_by(&mut self, matches: Vec<MatchConfig>) {
        self.executables.name_by(matches);
    }

    /// Returns process id and start time of a living process; the start time distinguishes
    /// processes with a reused id.
    pub(crate) fn key_of(&self, pid: u32) -> Option<ProcessKey> {
        let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
        Some(self.key(pid, &stat))
    }

    /// Collects the facts about a living process.
    pub(crate) fn of(&self, pid: u32) -> Option<ProcessFacts> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let uid = process.status().ok().map(|status| status.ruid);
        let cgroup = cgroup_of(&process);
        let place = cgroup.as_deref().map(|it| place(self.groups.as_deref(), &process, it));
        let place = place.unwrap_or_default();
        let exe = exe_of(&process);
        let contained = place.container_id.is_some() || place.pod_uid.is_some();
        let exe_is_elsewhere =
            !contained && exe.as_deref().is_some_and(|it| !self.executables.has(pid, it));
        Some(ProcessFacts {
            key: self.key(pid, &stat),
            parent: self.parent(&stat),
            comm: stat.comm.clone(),
            exe,
            exe_is_elsewhere,
            uid,
            user: uid.and_then(|uid| self.users.get(&uid).cloned()),
            systemd_unit: place.systemd_unit,
            container_id: place.container_id,
            pod_uid: place.pod_uid,
            cgroup,
            namespace: None,
            service_account: None,
            ancestry: ancestry(&stat),
        })
    }

    /// Returns the kernel's number of a cgroup, by path.
    pub(crate) fn group_number(&self, cgroup: &str) -> Option<u64> {
        let root = self.groups.as_deref().filter(|_| !cgroup.contains(".."))?;
        fs::metadata(root.join(cgroup.trim_start_matches('/'))).ok().map(|it| it.ino())
    }

    /// Facts of a process gone before the look-up, as seen by the kernel program.
    pub(crate) fn of_gone(&self, pid: u32, start_ns: u64, uid: u32, comm: &str) -> ProcessFacts {
        let mut facts = ProcessFacts::bare(ProcessKey { pid, start_ns }, comm);
        facts.uid = Some(uid);
        facts.user = self.users.get(&uid).cloned();
        facts
    }

    /// Sends a signal to exactly the given process, never to another process with a reused id.
    ///
    /// # Errors
    ///
    /// `SRCH` if the process has ended; `PERM` without `CAP_KILL` over another user's process.
    pub(crate) fn signal(&self, process: ProcessKey, signal: Signal) -> Result<(), Errno> {
        let pid = i32::try_from(process.pid).map_err(|_| Errno::SRCH)?;
        let handle = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        // The handle refers to the present holder of the id, and the holder keeps the id until its
        // end.
        let now = Process::new(pid).and_then(|it| it.stat()).map_err(|_| Errno::SRCH)?;
        if self.key(process.pid, &now) != process {
            return Err(Errno::SRCH);
        }
        let signal = match signal {
            Signal::Term => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        pidfd_send_signal(&handle, signal)
    }

    fn key(&self, pid: u32, stat: &Stat) -> ProcessKey {
        ProcessKey { pid, start_ns: stat.starttime.saturating_mul(self.ns_per_tick) }
    }

    fn parent(&self, stat: &Stat) -> Option<ProcessKey> {
        let pid = u32::try_from(stat.ppid).ok().filter(|&pid| pid != 0)?;
        let parent = Process::new(stat.ppid).ok()?.stat().ok()?;
        Some(self.key(pid, &parent))
    }
}

/// Place of a process, as far as its cgroups belong to root. `groups`: mount point of cgroup v2.
fn place(groups: Option<&Path>, process: &Process, cgroup: &str) -> Place {
    let Some(root) = groups.filter(|_| !cgroup.contains("..")) else {
        return Place::of(cgroup, |_| true);
    };
    let owner = |path: &str| fs::metadata(root.join(path.trim_start_matches('/')));
    let missing =
        |path: &str| owner(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if missing(cgroup) && cgroup_of(process).as_deref() == Some(cgroup) {
        // The cgroups mounted here are not those of the path.
        return Place::of(cgroup, |_| true);
    }
    Place::of(cgroup, |path| owner(path).is_ok_and(|it| it.uid() == 0))
}

/// The user of a living process.
pub(crate) fn user_of(pid: u32) -> Option<User> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let uid = process.status().ok()?.ruid;
    let groups = kernel::cgroup2_root();
    let place = cgroup_of(&process).map(|it| place(groups.as_deref(), &process, &it));
    let place = place.and_then(|it| it.pod_uid.or(it.container_id));
    Some(User { uid: Some(uid), place })
}

/// Start time of a living process on `CLOCK_MONOTONIC`.
pub(crate) fn began_at_mono_ns(pid: i32) -> Option<u64> {
    let stat = Process::new(pid).ok()?.stat().ok()?;
    let ns_per_tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
    Some(clock::mono_of_boot_ns(stat.starttime.saturating_mul(ns_per_tick)))
}

/// Path of a running process's executable.
pub(crate) fn executable(pid: u32) -> Option<String> {
    // The `/proc` entry alone: the process is read no further.
    exe_of(&Process::new(i32::try_from(pid).ok()?).ok()?)
}

/// Path of the executable, without the mark of a file deleted meanwhile.
fn exe_of(process: &Process) -> Option<String> {
    let path = process.exe().ok()?.to_string_lossy().into_owned();
    Some(path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned))
}

/// Ancestors of a process, nearest first.
fn ancestry(stat: &Stat) -> Vec<Ancestor> {
    let mut above = Vec::new();
    let mut parent = stat.ppid;
    while parent > 0 && above.len() < ANCESTRY_LIMIT {
        let Ok(process) = Process::new(parent) else { break };
        let Ok(stat) = process.stat() else { break };
        above.push(Ancestor {
            pid: parent.unsigned_abs(),
            comm: stat.comm.clone(),
            exe: exe_of(&process),
        });
        parent = stat.ppid;
    }
    above
}

/// Path in the unified hierarchy; if only `/` (hybrid layout), the path in systemd's hierarchy.
fn cgroup_of(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?;
    let path_of = |wanted: &dyn Fn(&procfs::ProcessCGroup) -> bool| {
        groups.0.iter().find(|it| wanted(it)).map(|it| it.pathname.clone())
    };
    let unified = path_of(&|it| it.hierarchy == 0);
    let systemd = path_of(&|it| it.controllers.iter().any(|name| name == "name=systemd"));
    match (unified, systemd) {
        (Some(unified), Some(systemd)) if unified == "/" => Some(systemd),
        (unified, systemd) => unified.or(systemd),
    }
}

/// Place of a process, as named by the path of its cgroup.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    systemd_unit: Option<String>,
    container_id: Option<String>,
    pod_uid: Option<String>,
}

impl Place {
    /// Reads only names given by the host: outside of users' slices, in cgroups owned by root
    /// (`is_roots`). A cgroup delegated to a user (`Delegate=`) ends the trusted part.
    fn of(cgroup: &str, is_roots: impl Fn(&str) -> bool) -> Self {
        let mut place = Self::default();
        let mut in_pods = false;
        let mut above = String::from("/");
        for part in cgroup.split('/').filter(|it| !it.is_empty()) {
            if part == USERS || (names_something(part) && !is_roots(&above)) {
                break;
            }
            above.push_str(part);
            above.push('/');
            in_pods |= part.starts_with("kubepods");
            // The outermost pod counts: a container may name its own child cgroups freely.
            if in_pods && place.pod_uid.is_none() {
                place.pod_uid = pod_uid(part);
            }
            if place.container_id.is_none() {
                place.container_id = container_id(part);
            }
            // The outermost unit counts, for the same reason.
            if place.systemd_unit.is_none() && is_unit(part) {
                place.systemd_unit = Some(part.to_owned());
            }
        }
        if place.container_id.is_some() {
            // The unit of a container's scope adds nothing to the container's id.
            place.systemd_unit = None;
        }
        place
    }
}

/// systemd's slice for users (`systemd.special(7)`): users choose the names below.
const USERS: &str = "user.slice";

fn names_something(part: &str) -> bool {
    is_unit(part) || container_id(part).is_some() || pod_uid(part).is_some()
}

/// Tells whether a cgroup is a service or a scope; slices only group.
fn is_unit(part: &str) -> bool {
    [".service", ".scope"].iter().any(|kind| part.ends_with(kind))
}

/// Finds 64 hex digits, bare (`cgroupfs` driver) or as `docker-ID.scope`,
/// `cri-containerd-ID.scope`.
fn container_id(part: &str) -> Option<String> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit('-').next()?;
    let is_id = id.len() == 64 && id.bytes().all(|it| it.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

/// Parses `pod2c48913c-b29f-...` (`cgroupfs` driver) or
/// `kubepods-burstable-pod2c48913c_b29f_....slice`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let at = part.rfind("pod")?;
    let uid = part.get(at + 3..)?.replace('_', "-");
    let is_uid = uid.len() == 36 && uid.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-');
    is_uid.then_some(uid)
}

/// Reads the names of the host's users from the root of process 1, so that an agent in a container
/// with the host's processes works as well; otherwise from the agent's own root.
fn users_of_host() -> HashMap<u32, String> {
    let paths = ["/proc/1/root/etc/passwd", "/etc/passwd"].map(Path::new);
    paths.into_iter().map(users).find(|it| !it.is_empty()).unwrap_or_default()
}

/// Parses `name:password:uid:...` (passwd(5)).
fn users(passwd: &Path) -> HashMap<u32, String> {
    let fits = fs::metadata(passwd).is_ok_and(|it| it.len() <= PASSWD_LIMIT);
    let text = if fits { fs::read_to_string(passwd).unwrap_or_default() } else { String::new() };
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "9bca8d63f1a04b6c8f0f3f5b8f4f6c0e9bca8d63f1a04b6c8f0f3f5b8f4f6c0e";
    const UID: &str = "2c48913c-b29f-4f5e-9c0a-1d2e3f405162";

    fn place(unit: Option<&str>, container: Option<&str>, pod: Option<&str>) -> Place {
        Place {
            systemd_unit: unit.map(str::to_owned),
            container_id: container.map(str::to_owned),
            pod_uid: pod.map(str::to_owned),
        }
    }

    /// Assumes root as the owner of every cgroup.
    fn place_of(cgroup: &str) -> Place {
        Place::of(cgroup, |_| true)
    }

    #[test]
    fn what_users_name_below_their_slice_is_nothing() {
        for made in [
            "/user.slice/user-7.slice/user@7.service/app.slice/payroll.service".to_owned(),
            "/user.slice/user-7.slice/session-2.scope".to_owned(),
            format!("/user.slice/user-7.slice/user@7.service/docker-{ID}.scope"),
            format!("/user.slice/kubepods/pod{UID}/{ID}"),
        ] {
            assert_eq!(place_of(&made), Place::default(), "{made}");
        }
    }

    #[test]
    fn what_is_made_in_a_group_that_was_handed_over_is_nothing() {
        let within = |handed: &'static str| move |group: &str| !group.starts_with(handed);
        let made = format!("/system.slice/web.service/docker-{ID}.scope/x.service");
        let web = place(Some("web.service"), None, None);
        assert_eq!(Place::of(&made, within("/system.slice/web.service/")), web);
        let unit = "/system.slice/web.service/payroll.service";
        assert_eq!(Place::of(unit, within("/system.slice/web.service/")), web);
        assert_eq!(place_of(unit), web, "a unit holds no other");
        let pods = format!("/lab/kubepods/pod{UID}/{ID}");
        assert_eq!(Place::of(&pods, within("/lab/")), Place::default());
        assert_eq!(place_of(&pods), place(None, Some(ID), Some(UID)));
    }

    #[test]
    fn a_service_is_a_unit_and_a_slice_is_not() {
        assert_eq!(
            place_of("/system.slice/refund-worker.service"),
            place(Some("refund-worker.service"), None, None)
        );
        assert_eq!(place_of("/user.slice"), Place::default());
        assert_eq!(place_of("/"), Place::default());
    }

    #[test]
    fn containers_of_each_driver() {
        assert_eq!(place_of(&format!("/docker/{ID}")), place(None, Some(ID), None));
        assert_eq!(
            place_of(&format!("/system.slice/docker-{ID}.scope")),
            place(None, Some(ID), None)
        );
    }

    #[test]
    fn pods_of_each_driver() {
        let expected = place(None, Some(ID), Some(UID));
        assert_eq!(place_of(&format!("/kubepods/burstable/pod{UID}/{ID}")), expected);
        let escaped = UID.replace('-', "_");
        let systemd = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-{ID}.scope"
        );
        assert_eq!(place_of(&systemd), expected);
    }

    #[test]
    fn a_group_that_a_container_makes_below_its_own_changes_nothing() {
        let other = "ffffffff-ffff-4fff-8fff-ffffffffffff";
        let forged =
            format!("/kubepods/pod{UID}/{ID}/kubepods/pod{other}/{}", ID.replace('9', "8"));
        assert_eq!(place_of(&forged), place(None, Some(ID), Some(UID)));
    }

    #[test]
    fn this_process_is_known() {
        let facts = Identities::new().of(std::process::id()).expect("alive");
        assert!(facts.exe.is_some_and(|exe| exe.contains("genops")));
        assert!(facts.key.start_ns > 0);
        assert!(!facts.ancestry.is_empty());
        assert!(facts.parent.is_some());
    }

    #[test]
    fn a_process_that_never_was_is_not() {
        assert!(Identities::new().of(u32::MAX).is_none());
    }
}
