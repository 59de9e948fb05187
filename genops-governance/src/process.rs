//! Facts about a process. The facts are discovered elsewhere; the module only has the types.

/// Maximum number of reported ancestors.
pub const ANCESTRY_LIMIT: usize = 16;

/// Identity of a process, pid and start time: still unique after the pid was given to another
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// Thread-group id, in the initial pid namespace.
    pub pid: u32,
    /// Start time, in nanoseconds since boot.
    pub start_ns: u64,
}

/// A user in a place: the host, a container or a pod. The unit for counting each user's share of
/// common resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User {
    /// Numeric user id; absent if not known.
    pub uid: Option<u32>,
    /// The pod, else the container; absent on the host.
    pub place: Option<String>,
}

/// A process above another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Thread-group id.
    pub pid: u32,
    /// Command name, as kept by the kernel (15 bytes).
    pub comm: String,
    /// Path of the executable.
    pub exe: Option<String>,
}

/// Facts about a process. `None` means not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Identity of the process.
    pub key: ProcessKey,
    /// Parent process.
    pub parent: Option<ProcessKey>,
    /// Command name, as kept by the kernel (15 bytes).
    pub comm: String,
    /// Path of the executable, as seen by the process.
    pub exe: Option<String>,
    /// Whether the host has another file under `exe`, or none: a user with a mount namespace of the
    /// user's own can show any file there. Outside of a container, the path is no identity then.
    pub exe_is_elsewhere: bool,
    /// Numeric user id.
    pub uid: Option<u32>,
    /// Name of the user.
    pub user: Option<String>,
    /// Path in the cgroup tree.
    pub cgroup: Option<String>,
    /// systemd unit, for example `refund.service`: a unit of the host, not created below a user's
    /// slice.
    pub systemd_unit: Option<String>,
    /// Container id.
    pub container_id: Option<String>,
    /// Kubernetes pod.
    pub pod_uid: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes service account.
    pub service_account: Option<String>,
    /// Ancestors, nearest first.
    pub ancestry: Vec<Ancestor>,
}

impl ProcessFacts {
    /// Returns the user in the process's place.
    #[must_use]
    pub fn owner(&self) -> User {
        let place = self.pod_uid.as_ref().or(self.container_id.as_ref());
        User { uid: self.uid, place: place.cloned() }
    }

    /// Returns whether files and users of the process are not the host's: in a container, the
    /// author of an image or a pod chooses paths and user ids.
    pub(crate) fn is_contained(&self) -> bool {
        self.container_id.is_some() || self.pod_uid.is_some() || self.namespace.is_some()
    }

    /// Returns whether the process runs in the same unit, container and pod as the other: inside, a
    /// child inherits the parent's principal.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.systemd_unit == other.systemd_unit
            && self.container_id == other.container_id
            && self.pod_uid == other.pod_uid
    }

    /// Returns the facts of a just forked child: the same except the key, the parent and the
    /// ancestors.
    #[must_use]
    pub fn forked(&self, key: ProcessKey) -> Self {
        let Self { key: parent, comm, exe, .. } = self.clone();
        let mut ancestry = vec![Ancestor { pid: parent.pid, comm, exe }];
        ancestry.extend(self.ancestry.iter().take(ANCESTRY_LIMIT - 1).cloned());
        Self { key, parent: Some(parent), ancestry, ..self.clone() }
    }

    /// Returns facts of a process with only the key and the name known.
    #[must_use]
    pub fn bare(key: ProcessKey, comm: &str) -> Self {
        Self {
            key,
            parent: None,
            comm: comm.to_owned(),
            exe: None,
            exe_is_elsewhere: false,
            uid: None,
            user: None,
            cgroup: None,
            systemd_unit: None,
            container_id: None,
            pod_uid: None,
            namespace: None,
            service_account: None,
            ancestry: Vec::new(),
        }
    }
}
