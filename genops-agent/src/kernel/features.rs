//! What this kernel allows, found by trying and never by its version: distributions backport.

use aya::{programs::ProgramType, sys::is_program_supported};

/// What `doctor` shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Programs at the packets of a cgroup.
    pub(crate) cgroup_skb: bool,
    /// Programs at user-space functions.
    pub(crate) uprobes: bool,
}

impl Features {
    /// Asks the kernel. What can't be asked (no privilege) counts as absent.
    pub(crate) fn probe() -> Self {
        let program = |it| is_program_supported(it).unwrap_or(false);
        Self { cgroup_skb: program(ProgramType::CgroupSkb), uprobes: program(ProgramType::KProbe) }
    }
}
