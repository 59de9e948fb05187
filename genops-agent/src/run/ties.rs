//! Addresses tied to a provider by the server name sent by a program: a claim of the program, valid
//! only for its own user in its own cgroup.

use std::collections::{HashMap, VecDeque};

use genops_ebpf_common::{AddressKey, TieKey};

/// Most addresses of one user in one cgroup.
const USER_LIMIT: usize = 64;
/// Most addresses of all users: the size of the kernel's map.
const LIMIT: usize = 16_384;

/// Numbers of a user and of a cgroup: the kernel's identification of a connecting process.
pub(super) type Caller = (u32, u64);

#[derive(Debug)]
struct Tie {
    address: AddressKey,
    /// Sequence number, ascending.
    age: u64,
}

/// Ties claimed so far.
#[derive(Debug, Default)]
pub(super) struct Ties {
    /// Oldest first.
    by_caller: HashMap<Caller, VecDeque<Tie>>,
    len: usize,
    age: u64,
}

impl Ties {
    /// Ties an address to a provider for a caller; returns the changes for the kernel (0: removed).
    /// The first claim stays, because a caller could otherwise open a closed address.
    pub(super) fn tie(
        &mut self,
        caller: Caller,
        address: AddressKey,
        provider: u32,
    ) -> Vec<(TieKey, u32)> {
        let known = self.by_caller.get(&caller);
        if known.is_some_and(|it| it.iter().any(|tie| tie.address == address)) {
            return Vec::new();
        }
        let mut news = Vec::new();
        if known.is_some_and(|it| it.len() >= USER_LIMIT) {
            news.extend(self.forget_oldest_of(caller));
        } else if self.len >= LIMIT {
            let most = self.by_caller.iter().max_by_key(|(_, ties)| {
                (ties.len(), ties.front().map(|tie| std::cmp::Reverse(tie.age)))
            });
            if let Some(most) = most.map(|(caller, _)| *caller) {
                news.extend(self.forget_oldest_of(most));
            }
        }
        self.age += 1;
        let tie = Tie { address, age: self.age };
        self.by_caller.entry(caller).or_default().push_back(tie);
        self.len += 1;
        news.push((key_of(caller, address), provider));
        news
    }

    /// Removes the ties of an address: the answers of name servers count instead.
    pub(super) fn forget(&mut self, address: AddressKey) -> Vec<(TieKey, u32)> {
        let mut gone = Vec::new();
        self.by_caller.retain(|caller, ties| {
            ties.retain(|tie| {
                let keeps = tie.address != address;
                if !keeps {
                    gone.push((key_of(*caller, address), 0));
                }
                keeps
            });
            !ties.is_empty()
        });
        self.len = self.len.saturating_sub(gone.len());
        gone
    }

    fn forget_oldest_of(&mut self, caller: Caller) -> Option<(TieKey, u32)> {
        let ties = self.by_caller.get_mut(&caller)?;
        let oldest = ties.pop_front();
        if ties.is_empty() {
            self.by_caller.remove(&caller);
        }
        let oldest = oldest?;
        self.len = self.len.saturating_sub(1);
        Some((key_of(caller, oldest.address), 0))
    }
}

fn key_of((uid, group): Caller, address: AddressKey) -> TieKey {
    let AddressKey { address, port, reserved } = address;
    TieKey { address, port, reserved, uid, group }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> AddressKey {
        let mut address = [0; 16];
        address.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
        AddressKey { address, port: 443, reserved: 0 }
    }

    #[test]
    fn what_a_caller_says_first_stays_and_is_its_own() {
        let mut ties = Ties::default();
        let (here, there) = ((601, 5), (602, 5));
        assert_eq!(ties.tie(here, address(1), 3), [(key_of(here, address(1)), 3)]);
        assert_eq!(ties.tie(here, address(1), 4), []);
        assert_eq!(ties.tie(there, address(1), 4), [(key_of(there, address(1)), 4)]);
        let mut gone = ties.forget(address(1));
        gone.sort_by_key(|(key, _)| key.uid);
        assert_eq!(gone, [(key_of(here, address(1)), 0), (key_of(there, address(1)), 0)]);
        assert_eq!((ties.len, ties.by_caller.len()), (0, 0));
    }

    #[test]
    fn many_addresses_of_one_caller_push_out_its_own() {
        let mut ties = Ties::default();
        ties.tie((601, 5), address(1), 3);
        for number in 0..5_000 {
            let news = ties.tie((602, 5), address(number), 3);
            let expected = if usize::from(number) < USER_LIMIT { 1 } else { 2 };
            assert_eq!(news.len(), expected);
        }
        assert_eq!(ties.len, USER_LIMIT + 1);
        assert_eq!(ties.tie((601, 5), address(1), 3), [], "still known");
    }

    #[test]
    fn of_many_callers_the_one_that_has_most_gives_way() {
        let mut ties = Ties::default();
        for group in 0..u64::try_from(LIMIT).expect("it fits") / 2 {
            for number in 0..3 {
                ties.tie((700, group), address(number), 3);
            }
        }
        assert_eq!(ties.len, LIMIT);
        let news = ties.tie((601, 1), address(9), 3);
        assert_eq!(news.len(), 2);
        assert!(news.iter().any(|(key, provider)| key.uid == 700 && *provider == 0));
    }
}
