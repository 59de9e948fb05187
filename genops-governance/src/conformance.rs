//! Checks any runtime's export (OTLP as JSON) against the specification, rule by rule.
//!
//! Pure: text in, [`Report`] out; it judges what the telemetry says and knows nothing of who made
//! it. Every span with a `genops.` attribute is a unit of work. To add a rule: write a function
//! over a [`Unit`] in [`rules`] and a row in [`rules::RULES`], and a mutated export that breaks it
//! in `tests/conformance.rs`.

mod export;
mod rules;

use std::collections::BTreeMap;
use std::fmt;

use self::export::Unit;

/// How well an export complies (spec §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything that is required, on every unit.
    Full,
    /// Everything but the accounting invariant, and it says so.
    Partial,
    /// Not even that.
    Not,
}

impl Level {
    /// What the specification calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "GenOps v0.1",
            Self::Partial => "GenOps v0.1 — partial",
            Self::Not => "not compliant",
        }
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Section of the specification, such as `5.3`.
    pub section: &'static str,
    /// Short name of the rule.
    pub rule: &'static str,
    /// `TRACE/SPAN` of the unit; empty where it concerns the export.
    pub unit: String,
    /// What is wrong, with the values.
    pub message: String,
}

/// The judgement of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of the export as a whole: its worst unit's.
    pub level: Level,
    /// How many units are of which level.
    pub units: BTreeMap<Level, usize>,
    /// Every violation, in the order of the units.
    pub findings: Vec<Finding>,
    /// Rules that were checked: section and name.
    pub rules: Vec<(&'static str, &'static str)>,
}

/// An export that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON, nor lines of it.
    #[error("line {line}, column {column}: {why}")]
    Json {
        /// Which line, from 1.
        line: usize,
        /// Which column, from 1.
        column: usize,
        /// What the parser says.
        why: String,
    },
    /// It is JSON and has no `resourceSpans`.
    #[error("there are no `resourceSpans`: this is not an OTLP/JSON export of traces")]
    NoSpans,
}

/// Checks an export: one OTLP/JSON document, or one a line.
///
/// # Errors
///
/// [`Unreadable`] where it is not an OTLP/JSON export.
pub fn check(json: &str) -> Result<Report, Unreadable> {
    let units = export::read(json)?;
    let mut findings = rules::across(&units);
    let mut counts = BTreeMap::new();
    for unit in &units {
        let own = rules::RULES.iter().flat_map(|rule| rule.apply(unit)).collect::<Vec<_>>();
        let mut all: Vec<&Finding> = findings.iter().filter(|it| it.unit == unit.name).collect();
        all.extend(&own);
        *counts.entry(level(unit, &all)).or_default() += 1;
        findings.extend(own);
    }
    if units.is_empty() {
        findings.push(Finding {
            section: "2",
            rule: "unit",
            unit: String::new(),
            message: "no span has a `genops.` attribute".to_owned(),
        });
    }
    let level = counts.keys().next_back().copied().unwrap_or(Level::Not);
    let rules = rules::RULES.iter().map(|it| (it.section, it.name)).chain(rules::ACROSS);
    Ok(Report { level, units: counts, findings, rules: rules.collect() })
}

/// Only the accounting may be missing from a unit that says that it is partial (§9.2).
fn level(unit: &Unit, findings: &[&Finding]) -> Level {
    let partial = unit.text("genops.compliance") == Some("partial");
    match (findings.is_empty(), partial) {
        (true, false) => Level::Full,
        (true, true) => Level::Partial,
        (false, true) if findings.iter().all(|it| rules::of_accounting(it)) => Level::Partial,
        (false, _) => Level::Not,
    }
}

impl fmt::Display for Report {
    /// A line for each finding, a line for each rule, and the judgement last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { section, rule, unit, message } in &self.findings {
            let unit = if unit.is_empty() { "export" } else { unit };
            writeln!(f, "§{section} {rule}: {unit}: {message}")?;
        }
        for (section, rule) in &self.rules {
            let broken = self.findings.iter().filter(|it| it.rule == *rule).count();
            let verdict =
                if broken == 0 { "holds".to_owned() } else { format!("broken {broken}×") };
            writeln!(f, "§{section} {rule}: {verdict}")?;
        }
        let total: usize = self.units.values().sum();
        let count = |level| self.units.get(&level).copied().unwrap_or(0);
        let (full, partial, not) = (count(Level::Full), count(Level::Partial), count(Level::Not));
        writeln!(f, "{total} units: {full} full, {partial} partial, {not} not compliant")?;
        writeln!(f, "{}", self.level.as_str())
    }
}
