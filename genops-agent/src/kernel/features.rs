//! What this kernel allows, found by trying and never by its version: distributions backport.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};

/// What the programs are told, and `doctor` shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// `bpf_get_current_pid_tgid` in cgroup programs (Linux 6.10): without it no socket can be joined
    /// with its TLS object, and so none held.
    pub(crate) egress_current_pid_tgid: bool,
    /// Programs at the packets of a cgroup.
    pub(crate) cgroup_skb: bool,
    /// Programs at user-space functions.
    pub(crate) uprobes: bool,
}

impl Features {
    /// Asks the kernel. What can't be asked (no privilege) counts as absent.
    pub(crate) fn probe() -> Self {
        let program = |it| is_program_supported(it).unwrap_or(false);
        Self {
            egress_current_pid_tgid: is_helper_supported(
                ProgramType::CgroupSkb,
                BpfHelper::BPF_FUNC_get_current_pid_tgid,
            )
            .unwrap_or(false),
            cgroup_skb: program(ProgramType::CgroupSkb),
            uprobes: program(ProgramType::KProbe),
        }
    }
}
