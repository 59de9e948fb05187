//! Checks any runtime's export (OTLP as JSON) against the specification, rule by rule.
//!
//! Pure: text in, [`Report`] out; the check uses only the telemetry and knows nothing of the
//! producer. Every span with a `genops.` attribute is a unit of work. To add a rule: write a
//! function over a [`Unit`] in [`rules`], a row in [`rules::RULES`], and a mutated export breaking
//! the rule in `tests/conformance.rs`.

mod export;
mod rules;

use std::collections::BTreeMap;
use std::fmt;

use self::export::Unit;

/// Compliance level of an export (spec §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All requirements hold, for every unit.
    Full,
    /// All requirements but the accounting invariant hold, and the export declares the level.
    Partial,
    /// Less than partial.
    Not,
}

impl Level {
    /// Returns the level's name in the specification.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "GenOps v0.1",
            Self::Partial => "GenOps v0.1 — partial",
            Self::Not => "not compliant",
        }
    }
}

/// A violation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Section of the specification, such as `5.3`.
    pub section: &'static str,
    /// Short name of the rule.
    pub rule: &'static str,
    /// `TRACE/SPAN` of the unit; empty for a finding on the whole export.
    pub unit: String,
    /// Description of the violation, with the values.
    pub message: String,
}

/// The result of checking an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Level of the whole export: the lowest level of a unit.
    pub level: Level,
    /// Number of units for each level.
    pub units: BTreeMap<Level, usize>,
    /// All violations, in the order of the units.
    pub findings: Vec<Finding>,
    /// Checked rules: section and name.
    pub rules: Vec<(&'static str, &'static str)>,
}

/// An export that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The text is neither JSON nor JSON lines.
    #[error("line {line}, column {column}: {why}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Message of the parser.
        why: String,
    },
    /// The JSON has no `resourceSpans`.
    #[error("there are no `resourceSpans`: this is not an OTLP/JSON export of traces")]
    NoSpans,
}

/// Checks an export: an OTLP/JSON document, or a document for each line.
///
/// # Errors
///
/// [`Unreadable`] if the text is not an OTLP/JSON export.
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

/// Returns the level of a unit: only accounting may be missing from a unit declared as partial
/// (§9.2).
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
    /// Writes a line for each finding, a line for each rule, and the result last.
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
