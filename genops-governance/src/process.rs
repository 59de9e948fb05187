//! What is known of a process. The facts are discovered elsewhere; here they are only described.

/// Most ancestors that are reported.
pub const ANCESTRY_LIMIT: usize = 16;

/// A process, also after its number was given to another: number and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// Thread-group id, in the initial pid namespace.
    pub pid: u32,
    /// Start time, in nanoseconds since boot.
    pub start_ns: u64,
}

/// A user in one place: the host, or one container or pod. By it is counted what somebody takes of what
/// all share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User {
    /// Its number; absent where it is not known.
    pub uid: Option<u32>,
    /// The pod, else the container; absent on the host.
    pub place: Option<String>,
}

/// A process above another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Thread-group id.
    pub pid: u32,
    /// Name of the command, as the kernel keeps it (15 bytes).
    pub comm: String,
    /// Path of the executable.
    pub exe: Option<String>,
}

/// Facts about a process. `None` means not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Which process.
    pub key: ProcessKey,
    /// The process that started it.
    pub parent: Option<ProcessKey>,
    /// Name of the command, as the kernel keeps it (15 bytes).
    pub comm: String,
    /// Path of the executable, as the process itself sees it.
    pub exe: Option<String>,
    /// The host itself has another file under `exe`, or none: whoever has a mount namespace of
    /// their own shows any file there. Such a path names nobody outside of a container.
    pub exe_is_elsewhere: bool,
    /// Numeric user.
    pub uid: Option<u32>,
    /// Name of the user.
    pub user: Option<String>,
    /// Path in the cgroup tree.
    pub cgroup: Option<String>,
    /// systemd unit, such as `refund.service`: of the host, not what is made below a user's slice.
    pub systemd_unit: Option<String>,
    /// Container id.
    pub container_id: Option<String>,
    /// Kubernetes pod.
    pub pod_uid: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes service account.
    pub service_account: Option<String>,
    /// The processes above, nearest first.
    pub ancestry: Vec<Ancestor>,
}

impl ProcessFacts {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> User {
        let place = self.pod_uid.as_ref().or(self.container_id.as_ref());
        User { uid: self.uid, place: place.cloned() }
    }

    /// Its files and users are not the host's: there, a path and a user's number say what an image
    /// or a pod's author wrote.
    pub(crate) fn is_contained(&self) -> bool {
        self.container_id.is_some() || self.pod_uid.is_some() || self.namespace.is_some()
    }

    /// It runs in the same unit, container and pod as another: there, a child is what its parent is.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.systemd_unit == other.systemd_unit
            && self.container_id == other.container_id
            && self.pod_uid == other.pod_uid
    }

    /// Facts of a process that this one has just forked: the same in all but its number.
    #[must_use]
    pub fn forked(&self, key: ProcessKey) -> Self {
        let Self { key: parent, comm, exe, .. } = self.clone();
        let mut ancestry = vec![Ancestor { pid: parent.pid, comm, exe }];
        ancestry.extend(self.ancestry.iter().take(ANCESTRY_LIMIT - 1).cloned());
        Self { key, parent: Some(parent), ancestry, ..self.clone() }
    }

    /// Facts of a process of which only the key and the name are known.
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
