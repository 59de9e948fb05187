//! Features of the running kernel, found by trying and never by version: distributions backport.

use aya::{programs::ProgramType, sys::is_program_supported};

/// Features shown by `doctor`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Programs at the packets of a cgroup.
    pub(crate) cgroup_skb: bool,
    /// Programs at the sockets of a cgroup.
    pub(crate) cgroup_sock_addr: bool,
    /// Programs at user-space functions.
    pub(crate) uprobes: bool,
}

impl Features {
    /// Asks the kernel. A feature without an answer (no privilege) counts as absent.
    pub(crate) fn probe() -> Self {
        let program = |it| is_program_supported(it).unwrap_or(false);
        Self {
            cgroup_skb: program(ProgramType::CgroupSkb),
            cgroup_sock_addr: program(ProgramType::CgroupSockAddr),
            uprobes: program(ProgramType::KProbe),
        }
    }
}

/// Whether `bpf` is among the active security modules. True without a mounted securityfs: loading a
/// program then shows the answer.
pub(super) fn is_lsm_active() -> bool {
    let active = std::fs::read_to_string("/sys/kernel/security/lsm");
    active.map_or(true, |it| it.split(',').any(|name| name.trim() == "bpf"))
}
