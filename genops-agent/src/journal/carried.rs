//! What budgets have, carried from one run of the agent to the next: what a stop says is what the next start
//! finds, and after a kill the difference is what the agent that was killed had not come to write down.
//!
//! Amounts used are compared, not what is left: a limit may change between two runs, what was used may not.

use std::collections::BTreeMap;

use super::entry::{Accounted, Entry, Standing};

/// Budget, period and unit.
type Key = (String, String, String);

/// What was set aside or used of each budget.
type Drawn = BTreeMap<Key, i64>;

/// Follows the accounts across starts.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// As the records go. None: that is not known.
    now: Option<Drawn>,
    /// What the present start has found, and the record that says so, until the first decision shows that all
    /// is written down that the run before had not.
    found: Option<(u64, Drawn)>,
    /// Budgets on which a unit that was open at a kill had drawn more than was there: how much of that
    /// was set aside shows only when it ends.
    vague: Vec<String>,
}

impl Carried {
    /// The log begins, and nothing has been drawn on anything.
    pub(super) fn begin(&mut self) {
        self.now = Some(Drawn::new());
    }

    /// Records are missing: nothing is known until the next list.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// A list of balances; what it contradicts.
    pub(super) fn list(&mut self, entry: &Entry<'_>) -> Vec<(u64, String)> {
        let Some(list) = &entry.bal else { return Vec::new() };
        let says = |name: &str| entry.det.iter().find(|(key, _)| key.as_str() == name);
        let of_start = says("at").is_some_and(|(_, at)| at.as_str() == "start");
        if says("lost").is_some() {
            // The agent says so, and counts everything as used up.
            self.forget();
            return Vec::new();
        }
        let listed = list.list.iter().map(|Standing(name, period, unit, _, reserved, used)| {
            let [name, period, unit] = [name, period, unit].map(|it| it.as_str().to_owned());
            ((name, period, unit), reserved.saturating_add(*used))
        });
        if of_start {
            self.found.get_or_insert_with(|| (entry.seq, Drawn::new())).1.extend(listed);
            return Vec::new();
        }
        let mut wrong = self.settled();
        let Some(now) = &mut self.now else {
            // What was before is not in this log any more.
            self.now = Some(listed.collect());
            return wrong;
        };
        for (key, drawn) in listed {
            let before = now.insert(key.clone(), drawn).unwrap_or(0);
            if before != drawn {
                wrong.push((entry.seq, differs(&key, Some(drawn), "at the stop", before)));
            }
        }
        wrong
    }

    /// The agent starts, and what it finds comes next. `overdrawn`: budgets of which units that are open had
    /// drawn more than was there.
    pub(super) fn start(&mut self, overdrawn: Vec<String>) {
        self.found = None;
        self.vague = overdrawn;
    }

    /// Everything that the run before had not written down is written by now; what does not fit.
    pub(super) fn settled(&mut self) -> Vec<(u64, String)> {
        let Some((seq, found)) = self.found.take() else { return Vec::new() };
        let before = self.now.take();
        let mut wrong = Vec::new();
        for (key, drawn) in before.iter().flatten().filter(|(key, _)| !self.vague.contains(&key.0))
        {
            let now = found.get(key).copied();
            // A period that ended before the one before is forgotten.
            let forgotten = now.is_none() && found.keys().any(|it| it.0 == key.0);
            if now != Some(*drawn) && !forgotten {
                wrong.push((seq, differs(key, now, "at the start", *drawn)));
            }
        }
        let kept = |key: &Key| before.as_ref()?.get(key).filter(|_| self.vague.contains(&key.0));
        let now = found.into_iter().map(|(key, it)| {
            let drawn = kept(&key).copied().unwrap_or(it);
            (key, drawn)
        });
        self.now = Some(now.collect());
        wrong
    }

    /// Something was drawn on a budget (or, negative, given back).
    pub(super) fn draw(&mut self, account: &Accounted<'_>, amount: i64) {
        let Some(key) = super::check::key_of(account) else { return };
        if let Some(now) = &mut self.now {
            let drawn = now.entry(key).or_default();
            *drawn = drawn.saturating_add(amount);
        }
    }
}

fn differs(key: &Key, found: Option<i64>, place: &str, before: i64) -> String {
    let (name, period, _) = key;
    let found = found.map_or_else(|| "nothing".to_owned(), |it| it.to_string());
    format!(
        "budget `{name}` ({period}): {found} used {place}, and {before} by the records before it"
    )
}
