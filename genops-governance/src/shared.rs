//! Tables shared by all programs: the entries of a user never displace the entries of users with
//! fewer entries.

use std::collections::HashMap;

use crate::process::User;

/// Values under keys that programs may make up.
#[derive(Debug)]
pub(crate) struct Shared<V> {
    entries: HashMap<String, Entry<V>>,
    limit: usize,
    /// Number of uses.
    uses: u64,
}

#[derive(Debug)]
struct Entry<V> {
    /// User who created the entry.
    user: User,
    used: u64,
    value: V,
}

impl<V: Default> Shared<V> {
    /// Creates a table of at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), limit, uses: 0 }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.entries.get(key).map(|it| &it.value)
    }

    /// Returns the entry of a key, creating a missing entry. In a full table, the user with the
    /// most entries loses the least recently used entry.
    pub(crate) fn entry(&mut self, user: &User, key: &str) -> &mut V {
        if self.entries.len() >= self.limit && !self.entries.contains_key(key) {
            self.make_room(user);
        }
        self.uses += 1;
        let new = || Entry { user: user.clone(), used: 0, value: V::default() };
        let entry = self.entries.entry(key.to_owned()).or_insert_with(new);
        entry.used = self.uses;
        &mut entry.value
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.remove(key);
    }

    fn make_room(&mut self, newcomer: &User) {
        let mut counts: HashMap<&User, usize> = HashMap::from([(newcomer, 1)]);
        for entry in self.entries.values() {
            *counts.entry(&entry.user).or_default() += 1;
        }
        // With equal counts, the requesting user loses an entry.
        let most = counts.iter().max_by_key(|(user, count)| (**count, **user == newcomer));
        let most = most.map_or(newcomer, |(user, _)| *user);
        let oldest = self.entries.iter().filter(|(_, it)| it.user == *most);
        let oldest = oldest.min_by_key(|(_, it)| it.used).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> User {
        User { uid: Some(uid), place: None }
    }

    #[test]
    fn whoever_has_most_loses_what_was_longest_not_used() {
        let mut table: Shared<u32> = Shared::new(8);
        for name in ["night", "day"] {
            *table.entry(&user(71), name) = 1;
        }
        for number in 0..500 {
            *table.entry(&user(72), &format!("made-up-{number}")) = number;
            assert!(table.entries.len() <= 8);
        }
        assert_eq!((table.get("night"), table.get("day")), (Some(&1), Some(&1)));
        let kept = (494..500).map(|it| format!("made-up-{it}"));
        assert!(kept.clone().all(|it| table.get(&it).is_some()));
        table.entry(&user(72), "made-up-494");
        table.entry(&user(73), "new");
        assert_eq!(table.get("made-up-495"), None);
        assert_eq!(table.get("made-up-494"), Some(&494), "was used since");
        table.remove("new");
        assert_eq!(table.get("new"), None);
    }

    #[test]
    fn whoever_has_as_many_as_others_makes_room_of_its_own() {
        let mut table: Shared<u32> = Shared::new(4);
        for uid in 0..4 {
            table.entry(&user(uid), &format!("of {uid}"));
        }
        table.entry(&user(2), "another of 2");
        let left: Vec<bool> = (0..4).map(|it| table.get(&format!("of {it}")).is_some()).collect();
        assert_eq!(left, [true, true, false, true]);
        let of_container = User { uid: Some(2), place: Some("7f".to_owned()) };
        table.entry(&of_container, "a container's");
        assert!(table.get("a container's").is_some());
    }

    #[test]
    fn a_table_without_room_takes_one_all_the_same() {
        let mut table: Shared<u32> = Shared::new(0);
        *table.entry(&user(1), "only") = 5;
        assert_eq!(table.get("only"), Some(&5));
    }
}
