//! Compares evidence with a provider's counts: the differences, by day (UTC) and model.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;

use super::exports::{Counts, Export};
use super::table::{Cell, Column, Kind, Table};
use super::units::{Basis, State, Unit};
use crate::evidence::filter::{Span, start_ns};

/// A day and the plain name of a model; the model is absent if the export does not split by model.
type Key = (Date, Option<String>);

/// Lists the differences.
pub(super) fn compare(units: &[Unit], export: &Export, span: Span) -> Table {
    let by_model = export.cells.keys().any(|(_, model)| model.is_some());
    let mut names = BTreeMap::new();
    let mut skipped_days = BTreeSet::new();
    let mut theirs: BTreeMap<Key, Counts> = BTreeMap::new();
    for ((day, model), counts) in &export.cells {
        if !span.takes(start_ns(*day, &TimeZone::UTC)) {
            skipped_days.insert(*day);
            continue;
        }
        let key = (*day, model.as_deref().map(plain));
        if let (Some(plain), Some(model)) = (&key.1, model) {
            names.entry(plain.clone()).or_insert_with(|| model.clone());
        }
        theirs.entry(key).or_default().add(*counts);
    }
    let mut ours: BTreeMap<Key, Counts> = BTreeMap::new();
    let (mut guessed, mut outside, mut open) = (0_u64, 0_u64, 0_u64);
    let of_provider = |unit: &&Unit| unit.labels.provider.as_deref() == Some(export.provider);
    for unit in units.iter().filter(of_provider) {
        let time = Timestamp::from_nanosecond(i128::from(unit.at)).unwrap_or_default();
        let day = time.to_zoned(TimeZone::UTC).date();
        if !export.days.is_some_and(|(from, to)| (from..=to).contains(&day)) {
            outside += unit.times();
            continue;
        }
        open += if unit.state == State::Open { unit.times() } else { 0 };
        if unit.state != State::Settled {
            continue;
        }
        guessed += if unit.basis == Basis::Reported { 0 } else { unit.times() };
        let model = unit.answered.as_deref().or(unit.labels.model.as_deref()).unwrap_or_default();
        let key = (day, by_model.then(|| plain(model)));
        if let Some(plain) = &key.1 {
            names.insert(plain.clone(), model.to_owned());
        }
        ours.entry(key).or_default().add(of_unit(unit));
    }
    let mut table = Table { columns: COLUMNS.to_vec(), ..Table::default() };
    let keys: BTreeSet<&Key> = ours.keys().chain(theirs.keys()).collect();
    let mut figures = 0;
    for key in keys {
        let model = key.1.as_ref().map(|plain| names.get(plain).unwrap_or(plain));
        let (our, their) = (ours.get(key), theirs.get(key));
        figures += differences(&mut table, export, key.0, model, our, their);
    }
    say(&mut table, export, figures);
    let mut note = |what: &str, count: u64| {
        if count > 0 {
            table.notes.push(format!("{what}: {count}"));
        }
    };
    note("compared calls by an estimate, a reservation, or an unknown basis", guessed);
    note("open calls, not compared", open);
    note("calls of days that the export is not about, not compared", outside);
    note("rows of the export without tokens, calls or costs of models", export.skipped);
    note("days of the export outside the time asked for", skipped_days.len() as u64);
    if export.more {
        table.notes.push("the export says that there are more pages: get all of them".to_owned());
    }
    table
}

const COLUMNS: [Column; 6] = [
    Column::new("day", Kind::Text),
    Column::new("model", Kind::Text),
    Column::new("figure", Kind::Text),
    Column::new("evidence", Kind::Count),
    Column::new("provider", Kind::Count),
    Column::new("difference", Kind::Count),
];

/// Compared figures.
const FIGURES: [&str; 4] = ["calls", "input_tokens", "output_tokens", "cost_usd"];

fn values(counts: Counts) -> [Option<i128>; 4] {
    [counts.calls, counts.input, counts.output, counts.nano_usd]
}

fn of_unit(unit: &Unit) -> Counts {
    Counts {
        calls: Some(unit.times().into()),
        input: unit.input.map(i128::from),
        output: unit.output.map(i128::from),
        nano_usd: unit.actual.map(i128::from),
    }
}

/// Adds a row for each differing figure; returns the number of compared figures.
fn differences(
    table: &mut Table,
    export: &Export,
    day: Date,
    model: Option<&String>,
    our: Option<&Counts>,
    their: Option<&Counts>,
) -> u64 {
    // Figures missing throughout the export are not compared.
    let said = |index: usize| {
        export.cells.values().any(|it| values(*it).get(index).copied().flatten().is_some())
    };
    let (ours, theirs) =
        (values(our.copied().unwrap_or_default()), values(their.copied().unwrap_or_default()));
    let mut compared = 0;
    for (index, ((name, our), their)) in FIGURES.iter().zip(ours).zip(theirs).enumerate() {
        if !said(index) {
            continue;
        }
        compared += 1;
        let difference = their.unwrap_or(0) - our.unwrap_or(0);
        if difference == 0 {
            continue;
        }
        let cell = |value: Option<i128>| match value {
            None => Cell::Absent,
            Some(value) if *name == "cost_usd" => {
                Cell::Usd(i64::try_from(value).unwrap_or(i64::MAX))
            }
            Some(value) => Cell::Count(value),
        };
        table.rows.push(vec![
            Cell::Text(day.to_string()),
            Cell::text(model.map(String::as_str)),
            Cell::Text((*name).to_owned()),
            cell(our),
            cell(their),
            cell(Some(difference)),
        ]);
    }
    compared
}

fn say(table: &mut Table, export: &Export, figures: u64) {
    let days = export.days.map_or_else(
        || "no day".to_owned(),
        |(from, to)| if from == to { from.to_string() } else { format!("{from} to {to}") },
    );
    let differ = table.rows.len();
    table.head.push(format!("Evidence beside the export of {}, {days} (UTC)", export.provider));
    table.notes.push(format!(
        "{differ} of {figures} figures differ; difference is the provider's less the evidence's"
    ));
    table.facts.insert(
        "compared".to_owned(),
        json!({"provider": export.provider, "figures": figures, "differences": differ}),
    );
}

/// Returns a model's name in a form common to both sides: without vendor, release date and version,
/// letters and digits only. `anthropic.claude-3-haiku-20240307-v1:0` and `Claude3Haiku` are equal.
fn plain(model: &str) -> String {
    let lower = model.to_ascii_lowercase();
    let name = lower.rsplit('/').next().unwrap_or(&lower);
    let mut name = name.split(':').next().unwrap_or(name);
    while let Some((vendor, rest)) = name.split_once('.') {
        if vendor.is_empty() || !vendor.bytes().all(|it| it.is_ascii_lowercase()) {
            break;
        }
        name = rest;
    }
    let mut parts: Vec<&str> = name.split('-').collect();
    if parts.len() > 2 && parts.last().is_some_and(|it| is_version(it)) {
        parts.pop();
    }
    let digits = |part: Option<&&str>, length: usize| {
        part.is_some_and(|it| it.len() == length && it.bytes().all(|it| it.is_ascii_digit()))
    };
    let end = parts.len();
    let at = |back: usize| end.checked_sub(back).and_then(|index| parts.get(index));
    let dated = if digits(at(1), 8) {
        1
    } else if digits(at(3), 4) && digits(at(2), 2) && digits(at(1), 2) {
        3
    } else {
        0
    };
    parts.truncate(end - dated);
    parts.concat().chars().filter(char::is_ascii_alphanumeric).collect()
}

/// Returns whether a part is a version such as `v1` or `v2`, as in Bedrock's names.
fn is_version(part: &str) -> bool {
    let number = part.strip_prefix('v').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|it| it.is_ascii_digit())
}
