//! Number of records of each principal, with the last record.
//!
//! Principals of the configuration are always numbered. Other principals are named after their
//! programs, and users choose the names of programs. Each user has a limit for such principals, so
//! no user takes the numbers of others.

use std::collections::HashMap;

use super::entry::{Head, Text, Who};

/// Most numbered principals of one user, besides the principals of the configuration.
const USER_LIMIT: usize = 64;
/// Most numbered principals of all users.
const LIMIT: usize = 16_384;

/// The newest record of a principal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Newest {
    count: u64,
    index: u64,
    /// The user of a made-up principal; absent for a principal of the configuration.
    user: Option<String>,
}

/// The newest record of every numbered principal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Principals {
    known: HashMap<String, Newest>,
    /// Number of principals made up by each user.
    made_up: HashMap<String, usize>,
    made_up_by_all: usize,
}

impl Principals {
    /// The number of a principal's next record, and the index of the record before; none if the
    /// user has reached the limit.
    pub(super) fn next(&self, who: &Who<'_>) -> Option<(u64, Option<u64>)> {
        if let Some(it) = self.known.get(who.prin.as_str()) {
            return Some((it.count + 1, Some(it.index)));
        }
        let of_user = || self.made_up.get(&user_of(who)).copied().unwrap_or(0);
        let room = who.mapped || (self.made_up_by_all < LIMIT && of_user() < USER_LIMIT);
        room.then_some((1, None))
    }

    /// Notes a written record of a principal.
    pub(super) fn note(&mut self, who: &Who<'_>, count: u64, index: u64) {
        let user = (!who.mapped).then(|| user_of(who));
        self.set(who.prin.as_str(), count, index, user);
    }

    /// Takes an entry of a list of principals.
    pub(super) fn take(&mut self, Head(name, count, index, user): &Head<'_>) {
        let user = user.as_ref().map(|it| it.as_str().to_owned());
        self.set(name.as_str(), *count, *index, user);
    }

    pub(super) fn list(&self) -> impl Iterator<Item = Head<'static>> {
        self.known.iter().map(|(name, Newest { count, index, user })| {
            Head(name.clone().into(), *count, *index, user.clone().map(Into::into))
        })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn set(&mut self, name: &str, count: u64, index: u64, user: Option<String>) {
        if let Some(it) = self.known.get_mut(name) {
            // The user of a principal does not change.
            (it.count, it.index) = (count, index);
            return;
        }
        if let Some(user) = &user {
            *self.made_up.entry(user.clone()).or_default() += 1;
            self.made_up_by_all += 1;
        }
        self.known.insert(name.to_owned(), Newest { count, index, user });
    }
}

/// A user in one place: the host, or a pod or container.
fn user_of(who: &Who<'_>) -> String {
    let number = who.uid.map(|it| it.to_string());
    let user = who.user.as_ref().map(Text::as_str).or(number.as_deref()).unwrap_or_default();
    let place = who.pod.as_ref().or(who.ctr.as_ref()).map_or("", |it| it.as_str());
    format!("{user}@{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who<'a>(principal: &'a str, user: &'a str) -> Who<'a> {
        Who { prin: principal.into(), user: Some(user.into()), ..Who::default() }
    }

    /// Notes a record; returns its number.
    fn write(principals: &mut Principals, who: &Who<'_>, index: u64) -> Option<u64> {
        let (number, _) = principals.next(who)?;
        principals.note(who, number, index);
        Some(number)
    }

    #[test]
    fn names_that_one_user_makes_up_take_no_number_of_others() {
        let mut principals = Principals::default();
        let names: Vec<String> = (0..20_000).map(|it| format!("tool-{it}/tool")).collect();
        let numbered = (0..)
            .zip(&names)
            .filter_map(|(index, name)| write(&mut principals, &who(name, "mallory"), index));
        assert_eq!(numbered.count(), USER_LIMIT);
        assert_eq!(principals.next(&who("bench/bench", "mallory")), None);
        assert_eq!(write(&mut principals, &who("bench/bench", "grace"), 30_000), Some(1));
        assert_eq!(principals.next(&who("bench/bench", "grace")), Some((2, Some(30_000))));
        let configured = Who { mapped: true, ..who("payouts", "mallory") };
        assert_eq!(principals.next(&configured), Some((1, None)));
        let nameless = |uid| Who { prin: "x/x".into(), uid: Some(uid), ..Who::default() };
        assert_eq!(principals.next(&nameless(4_001)), Some((1, None)));
        let pod = Who { pod: Some("2c48".into()), ..who("y/y", "mallory") };
        assert_eq!(principals.next(&pod), Some((1, None)), "is another user");
    }

    #[test]
    fn of_all_users_together_a_bounded_number_is_numbered_and_configured_ones_always() {
        let mut principals = Principals::default();
        for uid in 0..400 {
            for name in 0..USER_LIMIT {
                let name = format!("{uid}/{name}");
                let who = Who { prin: name.as_str().into(), uid: Some(uid), ..Who::default() };
                write(&mut principals, &who, 1);
            }
        }
        assert_eq!(principals.known.len(), LIMIT);
        let configured = Who { mapped: true, ..who("payouts", "grace") };
        assert_eq!(principals.next(&configured), Some((1, None)));
    }

    #[test]
    fn a_list_says_whose_they_are() {
        let mut before = Principals::default();
        for (index, name) in (0..).zip(["a/a", "b/b", "a/a"]) {
            write(&mut before, &who(name, "grace"), index);
        }
        write(&mut before, &Who { mapped: true, ..who("payouts", "grace") }, 9);
        let text = serde_json::to_string(&before.list().collect::<Vec<_>>()).expect("JSON");
        let list: Vec<Head<'_>> = serde_json::from_str(&text).expect("a list");
        let mut after = Principals::default();
        for head in &list {
            after.take(head);
        }
        assert_eq!(after, before);
        // As written by earlier agents.
        let old: Head<'_> = serde_json::from_str(r#"["payouts", 7, 12]"#).expect("a head");
        assert_eq!(old, Head("payouts".into(), 7, 12, None));
    }
}
