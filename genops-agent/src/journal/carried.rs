//! Budgets carried from one run of the agent to the next: the amounts at a stop are the amounts at
//! the next start. After a kill, the difference is the amounts not yet written down by the killed
//! agent.
//!
//! Compares used amounts, not balances: a limit may change between two runs, a used amount may not.

use std::collections::BTreeMap;

use super::entry::{Accounted, Entry, Standing};

/// Budget, period and unit.
type Key = (String, String, String);

/// Amount reserved or used of each budget.
type Drawn = BTreeMap<Key, i64>;

/// Follows the accounts across starts.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// As the records go. None: not known.
    now: Option<Drawn>,
    /// Amounts at the present start, and the record with the amounts. Kept until the first
    /// decision, because everything unwritten by the run before is written by then.
    found: Option<(u64, Drawn)>,
    /// Budgets overdrawn by a unit open at a kill: the reserved amount shows only at the end of the
    /// unit.
    vague: Vec<String>,
}

impl Carried {
    /// Begins a log: no amount is used or reserved.
    pub(super) fn begin(&mut self) {
        self.now = Some(Drawn::new());
    }

    /// Forgets everything until the next list, because records are missing.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes a list of balances; returns the contradictions.
    pub(super) fn list(&mut self, entry: &Entry<'_>) -> Vec<(u64, String)> {
        let Some(list) = &entry.bal else { return Vec::new() };
        let says = |name: &str| entry.det.iter().find(|(key, _)| key.as_str() == name);
        let of_start = says("at").is_some_and(|(_, at)| at.as_str() == "start");
        if says("lost").is_some() {
            // The agent reports the loss, and counts everything as used up.
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
            // The records before are no longer in the log.
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

    /// Notes a start, before the amounts found. `overdrawn`: budgets overdrawn by open units.
    pub(super) fn start(&mut self, overdrawn: Vec<String>) {
        self.found = None;
        self.vague = overdrawn;
    }

    /// Compares the amounts after everything unwritten by the run before is written; returns the
    /// contradictions.
    pub(super) fn settled(&mut self) -> Vec<(u64, String)> {
        let Some((seq, found)) = self.found.take() else { return Vec::new() };
        let before = self.now.take();
        let mut wrong = Vec::new();
        for (key, drawn) in before.iter().flatten().filter(|(key, _)| !self.vague.contains(&key.0))
        {
            let now = found.get(key).copied();
            // A period that ended before the last one is forgotten.
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

    /// Notes an amount drawn on a budget (or, negative, given back).
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
