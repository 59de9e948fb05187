//! The last refusals of each user, for `why` and the log.
//!
//! A user is a user id in a place (the host, a container or a pod). Refusals of a user never push
//! out refusals of a user with fewer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use genops_governance::{Awu, Explanation, User};
use serde::{Deserialize, Serialize};

use crate::foreign::{Foreign, Line};

/// Most refusals kept for a user.
pub(crate) const OF_USER: usize = 100;
/// Most refusals kept for all users.
const OF_ALL: usize = 10_000;
/// Window for counting retries of a request, in nanoseconds; a retry in the window gets no log
/// line.
const REPEAT_NS: u64 = 60_000_000_000;
/// Most kinds of refusals with counted repeats at a time. Refusals of further kinds get no log
/// line.
const KINDS: usize = 1_024;
/// Most kinds of a user: a user with many kinds leaves room for other users.
const KINDS_OF_USER: usize = 64;
/// Hexadecimal digits of a short id.
const SHORT: usize = 8;

/// A refused request, in the form shown to its own user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Trace id and span id of the unit.
    pub(crate) awu: String,
    /// RFC 3339 time of the request.
    pub(crate) time: Option<String>,
    /// Nanoseconds since 1970.
    pub(crate) unix_ns: u64,
    /// `BLOCKED` or `RATE_LIMITED`.
    pub(crate) result: String,
    /// Reason code.
    pub(crate) code: Option<String>,
    /// Deciding policy, grant, budget or limit.
    pub(crate) policy: Option<String>,
    /// Reason, in words.
    pub(crate) reason: Option<String>,
    /// Change required for the request to run.
    pub(crate) mend: String,
    /// Process id.
    pub(crate) pid: Option<u32>,
    /// Path of the program.
    pub(crate) exe: Option<String>,
    /// Principal of the process.
    pub(crate) principal: Option<String>,
    /// Provider of the request.
    pub(crate) provider: Option<String>,
    /// Model of the request.
    pub(crate) model: Option<String>,
}

impl Refusal {
    /// Builds the refusal from a refused unit.
    pub(crate) fn of(awu: &Awu) -> Self {
        let told = Explanation::of(awu);
        let mend = told.mend();
        Self {
            awu: told.awu,
            time: told.when,
            unix_ns: awu.grounds.unix_ns,
            result: told.result,
            code: told.code,
            policy: told.policy,
            reason: told.reason,
            mend,
            pid: told.pid,
            exe: told.exe,
            principal: told.principal,
            provider: told.provider,
            model: told.model,
        }
    }

    /// The beginning of the unit's id, long enough for `why` and `explain`.
    pub(crate) fn short(&self) -> &str {
        self.awu.get(..SHORT).unwrap_or(&self.awu)
    }

    /// Returns the verdict in a sentence.
    pub(crate) fn verdict(&self) -> String {
        let code = self.code.as_deref().map(|it| format!(" with {it}")).unwrap_or_default();
        let policy = self.policy.as_deref().map(|it| format!(" by `{it}`")).unwrap_or_default();
        let reason = self.reason.as_deref().map(|it| format!(": {it}")).unwrap_or_default();
        format!("{}{code}{policy}{reason}", self.result)
    }

    /// Returns the program and the process, as far as known.
    pub(crate) fn program(&self) -> String {
        let exe = self.exe.as_deref().unwrap_or("a program that had ended");
        match self.pid {
            Some(pid) => format!("{exe}, pid {pid}"),
            None => exe.to_owned(),
        }
    }
}

/// Refusals by user, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_user: HashMap<User, VecDeque<Arc<Refusal>>>,
    count: usize,
}

impl Refusals {
    /// Keeps a refusal. If there is no room, the user with most refusals loses the oldest.
    pub(crate) fn put(&mut self, user: User, refusal: Arc<Refusal>) {
        let own = self.by_user.entry(user).or_default();
        own.push_back(refusal);
        self.count += 1;
        if own.len() > OF_USER {
            own.pop_front();
            self.count -= 1;
        } else if self.count > OF_ALL {
            self.make_room();
        }
    }

    /// Refusals of a user, newest first.
    pub(crate) fn of(&self, user: &User) -> Vec<Arc<Refusal>> {
        self.by_user.get(user).into_iter().flatten().rev().cloned().collect()
    }

    fn make_room(&mut self) {
        let most = self.by_user.iter().max_by_key(|(_, refusals)| refusals.len());
        let Some(user) = most.map(|(user, _)| user.clone()) else { return };
        let Some(refusals) = self.by_user.get_mut(&user) else { return };
        if refusals.pop_front().is_some() {
            self.count -= 1;
        }
        if refusals.is_empty() {
            self.by_user.remove(&user);
        }
    }
}

/// Key of retries of the same request: user, program, reason code, provider and model.
type Alike = (User, Option<String>, Option<String>, Option<String>, Option<String>);

/// Log lines about refusals: a line for the first of each kind, and a line for the number of
/// repeats.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Time of the first refusal, and the number of repeats.
    open: BTreeMap<Alike, (u64, u64)>,
    left_out: u64,
}

impl Lines {
    /// Returns the line about a refusal; `None` for a repeat.
    pub(crate) fn about(&mut self, user: &User, refusal: &Refusal) -> Option<String> {
        let Refusal { exe, code, provider, model, .. } = refusal;
        let alike = (user.clone(), exe.clone(), code.clone(), provider.clone(), model.clone());
        if let Some((_, repeats)) = self.open.get_mut(&alike) {
            *repeats += 1;
            return None;
        }
        let of_user = self.open.keys().filter(|(owner, ..)| owner == user).count();
        if self.open.len() >= KINDS || of_user >= KINDS_OF_USER {
            self.left_out += 1;
            return None;
        }
        self.open.insert(alike, (refusal.unix_ns, 0));
        Some(Line(Told { user, refusal }).to_string())
    }

    /// Returns lines about repeats, once a minute has passed since the first refusal.
    pub(crate) fn over(&mut self, unix_ns: u64) -> Vec<String> {
        let over =
            self.open.extract_if(.., |_, (since, _)| since.saturating_add(REPEAT_NS) <= unix_ns);
        let repeated = over.filter(|(_, (_, repeats))| *repeats > 0);
        let mut lines: Vec<String> = repeated
            .map(|((user, exe, code, ..), (_, repeats))| {
                let exe = exe.unwrap_or_else(|| "a program that had ended".to_owned());
                let code = code.unwrap_or_default();
                let uid = user.uid.map(|it| format!(" of uid {it}")).unwrap_or_default();
                format!("refused {repeats} more within a minute: {}{uid}, {code}", Foreign(exe))
            })
            .collect();
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            lines.push(format!("refused {left_out} more of other kinds, not listed here"));
        }
        lines
    }
}

/// A refusal as a line of the log.
struct Told<'a> {
    user: &'a User,
    refusal: &'a Refusal,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, refusal } = self;
        let uid = user.uid.map(|it| format!(", uid {it}")).unwrap_or_default();
        let id = refusal.short();
        write!(f, "{} ({}{uid}, id {id}). {}", refusal.verdict(), refusal.program(), refusal.mend)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use expect_test::expect;

    use super::*;

    fn user(uid: u32) -> User {
        User { uid: Some(uid), place: None }
    }

    fn refusal(number: usize, exe: &str) -> Refusal {
        Refusal {
            awu: format!("{number:032x}-{number:016x}"),
            time: None,
            unix_ns: 5,
            result: "BLOCKED".to_owned(),
            code: Some("POLICY_DENY_MODEL".to_owned()),
            policy: Some("small.denied_models".to_owned()),
            reason: Some("these models are denied: *-pro".to_owned()),
            mend: "Ask for another model.".to_owned(),
            pid: Some(7),
            exe: Some(exe.to_owned()),
            principal: None,
            provider: None,
            model: None,
        }
    }

    #[test]
    fn a_user_has_the_last_hundred_and_nobody_else_s() {
        let mut refusals = Refusals::default();
        for number in 0..150 {
            refusals.put(user(1), Arc::new(refusal(number, "/bin/a")));
        }
        refusals.put(user(2), Arc::new(refusal(900, "/bin/b")));
        let own = refusals.of(&user(1));
        assert_eq!(own.len(), OF_USER);
        assert_eq!(own.first().unwrap().awu, refusal(149, "").awu);
        assert_eq!(own.last().unwrap().awu, refusal(50, "").awu);
        assert_eq!(refusals.of(&user(2)).len(), 1);
        let contained = User { place: Some("pod".to_owned()), ..user(1) };
        assert_eq!(refusals.of(&contained), []);
    }

    #[test]
    fn many_users_take_no_place_of_one_who_has_few() {
        let mut refusals = Refusals::default();
        refusals.put(user(0), Arc::new(refusal(1, "/bin/a")));
        for number in 0..2 * OF_ALL {
            let uid = u32::try_from(number / OF_USER).unwrap() + 1;
            refusals.put(user(uid), Arc::new(refusal(number, "/bin/b")));
        }
        assert_eq!(refusals.of(&user(0)).len(), 1);
        assert_eq!(refusals.count, OF_ALL);
        assert_eq!(refusals.by_user.values().map(VecDeque::len).sum::<usize>(), OF_ALL);
    }

    #[test]
    fn a_minute_s_retries_are_one_line_and_their_number() {
        let mut lines = Lines::default();
        let first = lines.about(&user(1_000), &refusal(1, "/usr/bin/\u{1b}curl")).unwrap();
        expect!["BLOCKED with POLICY_DENY_MODEL by `small.denied_models`: these models are denied: *-pro (/usr/bin/\\u{1b}curl, pid 7, uid 1000, id 00000000). Ask for another model."].assert_eq(&first);
        for number in 2..5 {
            let again = refusal(number, "/usr/bin/\u{1b}curl");
            assert_eq!(lines.about(&user(1_000), &again), None);
        }
        assert!(lines.about(&user(1_001), &refusal(9, "/usr/bin/\u{1b}curl")).is_some());
        assert_eq!(lines.over(REPEAT_NS), [] as [String; 0]);
        let over = lines.over(REPEAT_NS + 5);
        expect![
            "refused 3 more within a minute: /usr/bin/\\u{1b}curl of uid 1000, POLICY_DENY_MODEL"
        ]
        .assert_eq(&over.join("\n"));
        assert!(lines.about(&user(1_000), &refusal(9, "/usr/bin/\u{1b}curl")).is_some());
    }

    #[test]
    fn strangers_can_t_fill_the_log() {
        let mut lines = Lines::default();
        let said = (0..3 * KINDS)
            .filter(|it| lines.about(&user(1), &refusal(1, &format!("/tmp/{it}"))).is_some())
            .count();
        assert_eq!(said, KINDS_OF_USER);
        assert!(lines.about(&user(2), &refusal(1, "/bin/b")).is_some(), "another user has room");
        assert_eq!(lines.over(u64::MAX).len(), 1);
        assert!(lines.open.is_empty());
    }
}
