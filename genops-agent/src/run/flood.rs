//! Refusals and evidence records per user: too many refusals close providers to a user for a
//! second.
//!
//! Reads no clock: callers pass the time. The state of a user is bounded, and so is the number of
//! users.

use std::collections::HashMap;

use genops_ebpf_common::{FLOODS, FloodKey};
use genops_governance::User;

/// Refusals of a user, over all processes, in a second. More make the kernel refuse connects for
/// the next second.
const REFUSALS_A_SECOND: u64 = 100;
const SECOND_NS: u64 = 1_000_000_000;
/// Resolution of the last second, and the time after which a lasting flood renews the refusal of
/// connects: long before the end of the refusal, so there is no gap.
const TENTH_NS: u64 = SECOND_NS / 10;
/// Most providers closed to a user at a time.
const PROVIDERS_OF_USER: usize = 16;
/// Most cgroups of a user told to the kernel.
const GROUPS_OF_USER: usize = 64;
/// Most users with a state.
const USERS: usize = 1_024;

/// Users with the fewest records that make room for new ones at a time: a search for each new user
/// would take longer than its record.
const MAKE_ROOM: usize = USERS / 8;

/// Recent events, counted in parts of `PART_NS` each.
#[derive(Clone, Copy, Debug)]
struct Recent<const PARTS: usize, const PART_NS: u64> {
    counts: [u32; PARTS],
    part: u64,
}

impl<const PARTS: usize, const PART_NS: u64> Default for Recent<PARTS, PART_NS> {
    fn default() -> Self {
        Self { counts: [0; PARTS], part: 0 }
    }
}

impl<const PARTS: usize, const PART_NS: u64> Recent<PARTS, PART_NS> {
    fn add(&mut self, now_mono_ns: u64, times: u64) {
        self.go_on(now_mono_ns);
        let at = Self::place(self.part);
        if let Some(count) = self.counts.get_mut(at) {
            *count = count.saturating_add(times.try_into().unwrap_or(u32::MAX));
        }
    }

    /// Events in the present part and the `PARTS - 1` parts before.
    fn count(&mut self, now_mono_ns: u64) -> u64 {
        self.go_on(now_mono_ns);
        self.counts.iter().map(|it| u64::from(*it)).sum()
    }

    /// Drops counts of older parts.
    fn go_on(&mut self, now_mono_ns: u64) {
        let part = now_mono_ns / PART_NS;
        let steps = part.saturating_sub(self.part).min(PARTS as u64);
        for step in 0..steps {
            if let Some(count) = self.counts.get_mut(Self::place(part.saturating_sub(step))) {
                *count = 0;
            }
        }
        self.part = self.part.max(part);
    }

    fn place(part: u64) -> usize {
        usize::try_from(part % PARTS as u64).unwrap_or(0)
    }
}

/// Refusals of a user.
#[derive(Debug, Default)]
struct Refusals {
    last_second: Recent<10, TENTH_NS>,
    /// End of the refusal of connects, by provider.
    until_mono_ns: HashMap<u32, u64>,
}

/// Users above the rate of refusals.
#[derive(Debug, Default)]
pub(super) struct Floods {
    users: HashMap<User, Refusals>,
    /// Entries of the kernel's map, with their ends.
    told: HashMap<FloodKey, u64>,
    /// Tenth of a second in which users without refusals were last removed.
    swept: u64,
}

impl Floods {
    /// Counts refusals of a user's requests or connects to a provider. Returns the end of the
    /// refusal of connects if the kernel's map needs a new one.
    pub(super) fn refused(
        &mut self,
        now_mono_ns: u64,
        user: &User,
        provider: u32,
        times: u64,
    ) -> Option<u64> {
        let refusals = self.of(now_mono_ns, user)?;
        refusals.last_second.add(now_mono_ns, times);
        if refusals.last_second.count(now_mono_ns) <= REFUSALS_A_SECOND {
            return None;
        }
        let closed = &mut refusals.until_mono_ns;
        closed.retain(|_, it| *it > now_mono_ns);
        let until = now_mono_ns.saturating_add(SECOND_NS);
        let is_new = match closed.get(&provider) {
            Some(before) => until.saturating_sub(*before) >= TENTH_NS,
            None => closed.len() < PROVIDERS_OF_USER,
        };
        if is_new {
            closed.insert(provider, until);
        }
        is_new.then_some(until)
    }

    /// Returns the entries to write for a user in the given cgroups.
    pub(super) fn close(
        &mut self,
        groups: impl Iterator<Item = u64>,
        (uid, provider): (u32, u32),
        until_mono_ns: u64,
    ) -> Vec<FloodKey> {
        let keys = groups.take(GROUPS_OF_USER).map(|group| FloodKey { group, uid, provider });
        keys.filter(|key| {
            let has_room = self.told.len() < FLOODS as usize || self.told.contains_key(key);
            has_room && self.told.insert(*key, until_mono_ns).is_none_or(|it| it < until_mono_ns)
        })
        .collect()
    }

    /// Removes and returns entries past their end.
    pub(super) fn over(&mut self, now_mono_ns: u64) -> Vec<FloodKey> {
        self.told.extract_if(|_, until| *until <= now_mono_ns).map(|(key, _)| key).collect()
    }

    fn of(&mut self, now_mono_ns: u64, user: &User) -> Option<&mut Refusals> {
        if self.users.len() >= USERS && !self.users.contains_key(user) {
            // Counts end with their tenth: a second search within a tenth finds nothing.
            let tenth = now_mono_ns / TENTH_NS;
            if std::mem::replace(&mut self.swept, tenth) != tenth {
                self.users.retain(|_, it| it.last_second.count(now_mono_ns) > 0);
            }
            if self.users.len() >= USERS {
                return None;
            }
        }
        Some(self.users.entry(user.clone()).or_default())
    }
}

/// Evidence records of the last minute, by user.
#[derive(Debug, Default)]
pub(super) struct Authors {
    users: HashMap<User, Recent<6, { 10 * SECOND_NS }>>,
}

impl Authors {
    /// Counts a record about a user.
    pub(super) fn one_more(&mut self, now_mono_ns: u64, user: User) {
        if self.users.len() >= USERS && !self.users.contains_key(&user) {
            let counts = self.users.iter_mut().map(|(user, it)| (it.count(now_mono_ns), user));
            let mut counts: Vec<(u64, User)> =
                counts.map(|(count, user)| (count, user.clone())).collect();
            counts.sort_unstable();
            for (_, least) in counts.iter().take(MAKE_ROOM) {
                self.users.remove(least);
            }
        }
        self.users.entry(user).or_default().add(now_mono_ns, 1);
    }

    /// The user with most records.
    pub(super) fn most(&mut self, now_mono_ns: u64) -> Option<&User> {
        self.users.retain(|_, it| it.count(now_mono_ns) > 0);
        // Of equals always the same.
        let counts = self.users.iter_mut().map(|(user, it)| (it.count(now_mono_ns), user));
        counts.max().map(|(_, user)| user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn user(uid: u32) -> User {
        User { uid: Some(uid), place: None }
    }

    /// Spreads `count` refusals evenly over a span. Returns time and end of each renewal, in
    /// milliseconds.
    fn refuse(
        floods: &mut Floods,
        uid: u32,
        from_ms: u64,
        to_ms: u64,
        count: u64,
    ) -> Vec<(u64, u64)> {
        let mut told = Vec::new();
        for number in 0..count {
            let at = from_ms * MS + number * (to_ms - from_ms) * MS / count;
            let until = floods.refused(at, &user(uid), 3, 1);
            told.extend(until.map(|until| (at / MS, until / MS)));
        }
        told
    }

    #[test]
    fn a_hundred_a_second_are_not_too_many_and_one_more_is() {
        let mut floods = Floods::default();
        assert_eq!(refuse(&mut floods, 7, 5_000, 5_900, 100), []);
        // As many in each second, for long.
        assert_eq!(refuse(&mut floods, 8, 20_000, 50_000, 3_000), []);
        assert_eq!(refuse(&mut floods, 7, 5_950, 5_951, 1), [(5_950, 6_950)]);
        // Who has stopped begins anew.
        assert_eq!(refuse(&mut floods, 7, 20_000, 20_900, 100), []);
    }

    #[test]
    fn while_there_are_too_many_there_is_no_gap_at_whatever_rate() {
        for a_second in [104, 115, 150, 300, 990, 5_000] {
            let mut floods = Floods::default();
            let told = refuse(&mut floods, 7, 3_000, 13_000, 10 * a_second);
            let (begins, _) = *told.first().expect("told");
            assert!(begins <= 4_000, "{a_second}: {begins}");
            let mut until_ms = begins;
            for (at, until) in told {
                assert!(at <= until_ms.max(begins), "{a_second}: a gap from {until_ms} to {at}");
                assert_eq!(until, at + 1_000);
                until_ms = until;
            }
            assert!((13_700..14_000).contains(&until_ms), "{a_second}: {until_ms}");
        }
    }

    #[test]
    fn only_the_providers_that_refuse_are_closed_and_only_so_many() {
        let mut floods = Floods::default();
        refuse(&mut floods, 7, 1_000, 1_100, 100);
        assert_eq!(floods.refused(1_200 * MS, &user(7), 4, 1), Some(2_200 * MS));
        assert_eq!(floods.refused(1_200 * MS, &user(7), 3, 1), Some(2_200 * MS));
        assert_eq!(floods.refused(1_210 * MS, &user(7), 3, 1), None, "it is told already");
        let more = (5..100).filter(|it| floods.refused(1_300 * MS, &user(7), *it, 1).is_some());
        assert_eq!(more.count(), PROVIDERS_OF_USER - 2);
        assert_eq!(floods.refused(1_300 * MS, &user(8), 3, 1), None, "another user");
        // The same number in a container is another user.
        let inside = User { uid: Some(7), place: Some("e5".to_owned()) };
        assert_eq!(floods.refused(1_300 * MS, &inside, 3, 1), None);
    }

    #[test]
    fn the_kernel_is_told_for_each_group_and_when_it_is_over() {
        let mut floods = Floods::default();
        let key = |group| FloodKey { group, uid: 7, provider: 3 };
        let groups = [21, 22].into_iter();
        assert_eq!(floods.close(groups.clone(), (7, 3), 5_000), [key(21), key(22)]);
        assert_eq!(floods.close(groups, (7, 3), 5_000), []);
        assert_eq!(floods.close([22].into_iter(), (7, 3), 6_000), [key(22)]);
        assert_eq!(floods.over(4_999), []);
        assert_eq!(floods.over(5_000), [key(21)]);
        assert_eq!(floods.over(6_000), [key(22)]);
        assert_eq!(floods.close(0..1_000, (7, 3), 7_000).len(), GROUPS_OF_USER);
        for uid in 0..1_000 {
            floods.close(0..64, (uid, 3), 7_000);
        }
        assert_eq!(floods.told.len(), FLOODS as usize);
    }

    #[test]
    fn what_is_remembered_of_users_is_bounded() {
        let mut floods = Floods::default();
        for uid in 100..9_000 {
            refuse(&mut floods, uid, 1_000, 1_001, 1);
        }
        assert_eq!(floods.users.len(), USERS);
        refuse(&mut floods, 50, 9_000, 9_001, 1);
        assert_eq!(floods.users.len(), 1, "those of seconds that are over make room");
        for uid in 100..9_000 {
            refuse(&mut floods, uid, 10_010, 10_011, 1);
        }
        refuse(&mut floods, 50, 10_990, 10_991, 1);
        assert!(!floods.users.contains_key(&user(50)), "all others were refused within a second");
        refuse(&mut floods, 50, 11_020, 11_021, 1);
        assert!(floods.users.contains_key(&user(50)), "and no longer");
    }

    #[test]
    fn who_wrote_most_is_who_did_in_the_last_minute() {
        let mut authors = Authors::default();
        assert_eq!(authors.most(0), None);
        for at in 0..30 {
            authors.one_more(at * 100 * MS, user(7));
        }
        for at in 0..20 {
            authors.one_more(40_000 * MS + at, user(8));
        }
        assert_eq!(authors.most(45_000 * MS), Some(&user(7)));
        assert_eq!(authors.most(61_000 * MS), Some(&user(8)), "what the other wrote is too old");
        assert_eq!(authors.most(200_000 * MS), None);
        assert!(authors.users.is_empty());
    }

    #[test]
    fn many_users_do_not_push_out_the_one_who_writes_most() {
        let mut authors = Authors::default();
        for _ in 0..500 {
            authors.one_more(MS, user(7));
        }
        for uid in (20..120).cycle().take(300) {
            authors.one_more(MS, user(uid));
        }
        for uid in 1_000..12_000 {
            authors.one_more(2 * MS, user(uid));
            assert!(authors.users.len() <= USERS);
        }
        assert_eq!(authors.most(3 * MS), Some(&user(7)));
        assert!((20..120).all(|uid| authors.users.contains_key(&user(uid))), "nor others");
        assert!(authors.users.len() >= USERS - MAKE_ROOM);
    }
}
