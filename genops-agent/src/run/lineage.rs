//! The principal that started a process, handed down by the kernel programs: numbers in the kernel,
//! principals here.
//!
//! A process entering a container from outside inherits nothing from the process that brought it
//! in: a container runtime is no parent.

use std::collections::HashMap;

use genops_ebpf_common::Lineage;
use genops_governance::{ProcessFacts, ProcessKey, Settings};
use sha2::{Digest as _, Sha256};

use crate::kernel::Maps;

/// The first process. Orphans become its children, so nobody inherits from it.
const INIT: u32 = 1;

/// The inheritable principals.
#[derive(Debug, Default)]
pub(super) struct Lineages {
    /// By number: the same number in every agent, because a later agent may find it.
    names: HashMap<u64, String>,
}

impl Lineages {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { names: settings.principals().map(|it| (number_of(it), it.to_owned())).collect() }
    }

    /// Whether there is a principal to inherit.
    pub(super) fn matter(&self) -> bool {
        !self.names.is_empty()
    }

    /// The principal of a number.
    pub(super) fn name(&self, principal: u64) -> Option<&str> {
        self.names.get(&principal).map(String::as_str)
    }

    /// The principal that started a process.
    pub(super) fn of(&self, maps: &Maps, facts: &ProcessFacts) -> Option<&str> {
        let lineage = maps.lineage(facts.key).filter(|_| self.matter())?;
        self.name(lineage.principal).filter(|_| lineage.place == place_of(facts))
    }

    /// Has the kernel hand down a process's principal to its children. False if the kernel has no
    /// room.
    pub(super) fn tell(
        &self,
        maps: &mut Maps,
        facts: &ProcessFacts,
        principal: Option<&str>,
    ) -> bool {
        let ProcessKey { pid, start_ns } = facts.key;
        if !self.matter() || pid == INIT {
            return true;
        }
        let Some(name) = principal else {
            maps.forget_lineage(facts.key);
            return true;
        };
        let (principal, place) = (number_of(name), place_of(facts));
        maps.set_lineage(pid, Lineage { start_ns, principal, place, undecided: 0 }).is_ok()
    }
}

/// Number of a principal, derived from the name. Never 0, which means no principal.
fn number_of(name: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(name).into();
    hash.first_chunk().map_or(1, |it| u64::from_le_bytes(*it)).max(1)
}

/// Number of a process's container and pod; 0: none. Users name the cgroups below a user slice
/// themselves, so those count for nothing.
fn place_of(facts: &ProcessFacts) -> u32 {
    let ProcessFacts { cgroup, container_id, pod_uid, .. } = facts;
    let of_user = cgroup.as_deref().is_some_and(|it| it.starts_with("/user.slice/"));
    if of_user || (container_id.is_none() && pod_uid.is_none()) {
        return 0;
    }
    let mut hash = Sha256::new();
    for id in [container_id, pod_uid] {
        hash.update(id.as_deref().unwrap_or_default());
        hash.update([0]);
    }
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(1, |it| u32::from_le_bytes(*it)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cgroup: &str, container: Option<&str>, pod: Option<&str>) -> u32 {
        let facts = ProcessFacts::bare(ProcessKey { pid: 7, start_ns: 0 }, "curl");
        place_of(&ProcessFacts {
            cgroup: Some(cgroup.to_owned()),
            container_id: container.map(str::to_owned),
            pod_uid: pod.map(str::to_owned),
            ..facts
        })
    }

    #[test]
    fn a_container_is_another_place_and_a_unit_is_not() {
        let host = place("/system.slice/agent.service", None, None);
        assert_eq!((host, place("/system.slice/other.service", None, None)), (0, 0));
        let places = [
            place("/docker/a", Some("a"), None),
            place("/docker/b", Some("b"), None),
            place("/kubepods/pod1/a", Some("a"), Some("1")),
            place("/kubepods/pod1", None, Some("1")),
        ];
        for (index, one) in places.iter().enumerate() {
            assert!(*one != 0 && !places.iter().skip(index + 1).any(|it| it == one));
        }
    }

    #[test]
    fn a_group_that_a_user_names_like_a_container_is_none() {
        let own = "/user.slice/user-1000.slice/user@1000.service/docker-a.scope";
        assert_eq!(place(own, Some("a"), None), 0);
    }

    #[test]
    fn numbers_of_principals_stay_the_same() {
        assert_eq!(number_of("refund-bot"), number_of("refund-bot"));
        assert_ne!(number_of("refund-bot"), number_of("refund-bot2"));
    }
}
