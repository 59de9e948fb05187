//! A table, and its four output formats.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::commands::money;
use crate::evidence::csv_cell;
use crate::foreign::{Foreign, Line};

/// Type of the values in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Count,
    /// Nano-USD.
    Usd,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Hidden from people if all values are absent or zero.
    pub(super) optional: bool,
}

impl Column {
    pub(super) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, optional: false }
    }

    pub(super) const fn optional(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, optional: true }
    }
}

/// A cell; an unknown value is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Absent,
    Text(String),
    Count(i128),
    Usd(i64),
}

impl Cell {
    pub(super) fn text(text: Option<&str>) -> Self {
        text.map_or(Self::Absent, |text| Self::Text(text.to_owned()))
    }

    pub(super) fn count(count: Option<u64>) -> Self {
        count.map_or(Self::Absent, |count| Self::Count(count.into()))
    }

    pub(super) fn usd(nano: Option<i64>) -> Self {
        nano.map_or(Self::Absent, Self::Usd)
    }

    fn says_nothing(&self) -> bool {
        matches!(self, Self::Absent | Self::Count(0) | Self::Usd(0))
    }

    fn plain(&self, absent: &str) -> String {
        match self {
            Self::Absent => absent.to_owned(),
            Self::Text(text) => Foreign(text).to_string(),
            Self::Count(count) => count.to_string(),
            Self::Usd(nano) => money::usd(*nano),
        }
    }

    fn csv(&self) -> String {
        match self {
            Self::Text(text) => csv_cell(text),
            number => number.plain(""),
        }
    }

    fn json(&self) -> Option<Value> {
        match self {
            Self::Absent => None,
            Self::Text(text) => Some(json!(text)),
            Self::Count(count) => Some(json!(i64::try_from(*count).unwrap_or(i64::MAX))),
            Self::Usd(nano) => Some(json!(money::usd(*nano))),
        }
    }
}

/// Columns and rows, with remarks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// The sum of the rows: not in CSV, because a reader would count the sum again.
    pub(super) total: Option<Vec<Cell>>,
    /// Lines before the table, for people.
    pub(super) head: Vec<String>,
    /// Lines after the table, for people and programs.
    pub(super) notes: Vec<String>,
    /// Further facts for programs.
    pub(super) facts: Map<String, Value>,
}

impl Table {
    /// Writes aligned columns, without optional columns of absent or zero values.
    pub(super) fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for line in &self.head {
            writeln!(out, "{}", Line(line))?;
        }
        let lines = self.shown();
        let mut widths = vec![0; lines.first().map_or(0, Vec::len)];
        for line in &lines {
            for (width, (text, _)) in widths.iter_mut().zip(line) {
                *width = text.chars().count().max(*width);
            }
        }
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|((text, kind), width)| match kind {
                Kind::Text => format!("{text:<width$}"),
                _ => format!("{text:>width$}"),
            });
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "{}", Line(note)))
    }

    /// Writes a Markdown table.
    pub(super) fn write_markdown(&self, out: &mut dyn Write) -> io::Result<()> {
        for line in &self.head {
            writeln!(out, "{}\n", escape(&Line(line).to_string()))?;
        }
        for (number, line) in self.shown().iter().enumerate() {
            let cells: Vec<String> = line.iter().map(|(text, _)| escape(text)).collect();
            writeln!(out, "| {} |", cells.join(" | "))?;
            if number == 0 {
                let rule = line.iter().map(|(_, kind)| match kind {
                    Kind::Text => "---",
                    _ => "---:",
                });
                writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | "))?;
            }
        }
        writeln!(out)?;
        self.notes
            .iter()
            .try_for_each(|note| writeln!(out, "- {}", escape(&Line(note).to_string())))
    }

    /// Writes every column, a line per row, and nothing else.
    pub(super) fn write_csv(&self, out: &mut dyn Write) -> io::Result<()> {
        let names: Vec<&str> = self.columns.iter().map(|it| it.name).collect();
        writeln!(out, "{}", names.join(","))?;
        for row in &self.rows {
            writeln!(out, "{}", row.iter().map(Cell::csv).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }

    /// Writes a single object.
    pub(super) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut all = self.facts.clone();
        let rows: Vec<Value> = self.rows.iter().map(|row| self.object(row)).collect();
        all.insert("rows".to_owned(), json!(rows));
        if let Some(total) = &self.total {
            all.insert("total".to_owned(), self.object(total));
        }
        all.insert("notes".to_owned(), json!(self.notes));
        serde_json::to_writer_pretty(&mut *out, &all)?;
        writeln!(out)
    }

    fn object(&self, row: &[Cell]) -> Value {
        let cells = self.columns.iter().zip(row);
        let known = cells.filter_map(|(column, cell)| Some((column.name.to_owned(), cell.json()?)));
        Value::Object(known.collect())
    }

    /// Returns the part shown to people: names, rows, total.
    fn shown(&self) -> Vec<Vec<(String, Kind)>> {
        let every = || self.rows.iter().chain(&self.total);
        let says = |index: usize| every().any(|row| !row.get(index).is_none_or(Cell::says_nothing));
        let kept: Vec<(usize, &Column)> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(index, column)| !column.optional || says(*index))
            .collect();
        let names = kept.iter().map(|(_, it)| (it.name.to_ascii_uppercase(), it.kind)).collect();
        let row = |row: &Vec<Cell>, absent: &str| {
            let text = |index: usize| row.get(index).map(|it| it.plain(absent));
            kept.iter().map(|(index, it)| (text(*index).unwrap_or_default(), it.kind)).collect()
        };
        let rows = self.rows.iter().map(|it| row(it, "-"));
        let total = self.total.iter().map(|it| row(it, ""));
        std::iter::once(names).chain(rows).chain(total).collect()
    }
}

/// Escapes text so that Markdown shows the characters unchanged.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if "\\|*_`<>[]".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}
