//! The live table: a line per AWU, for people.

use std::fmt::Write as _;

use genops_governance::{Attribute, Awu, Value};

use super::{find, find_double, find_int, find_str, plain};

/// A column: head, width in characters, and alignment (right for numbers).
struct Column {
    head: &'static str,
    width: usize,
    right: bool,
}

const fn left(head: &'static str, width: usize) -> Column {
    Column { head, width, right: false }
}

const fn right(head: &'static str, width: usize) -> Column {
    Column { head, width, right: true }
}

/// The columns, in order; [`cells`] has a cell for each.
const COLUMNS: [Column; 10] = [
    left("TIME UTC", 8),
    left("PROCESS", 20),
    left("PRINCIPAL", 22),
    left("PROVIDER", 12),
    left("MODEL", 24),
    right("IN", 7),
    right("OUT", 7),
    right("COST USD", 10),
    right("SECONDS", 8),
    left("DECISION", DECISION_WIDTH),
];

/// Width of the last column, in characters.
const DECISION_WIDTH: usize = 48;

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// The head line.
pub(super) fn head(colour: bool, out: &mut String) {
    let heads = COLUMNS.map(|column| column.head.to_owned());
    if colour {
        out.push_str(BOLD);
    }
    line(&heads, out);
    if colour {
        out.push_str(RESET);
    }
    out.push('\n');
}

/// Appends the line of an AWU.
pub(super) fn row(awu: &Awu, colour: bool, out: &mut String) {
    let attributes = awu.attributes();
    let mut cells = cells(awu.start_unix_ns, awu.end_unix_ns, &attributes);
    if !colour {
        line(&cells, out);
        out.push('\n');
        return;
    }
    let [.., decision] = &mut cells;
    let decision = plain(&std::mem::take(decision), DECISION_WIDTH);
    line(&cells, out);
    let paint = match find_str(&attributes, "genops.policy.result") {
        Some("BLOCKED" | "RATE_LIMITED") => RED,
        Some("WARNING") => YELLOW,
        Some("ALLOWED") if awu.is_error() => YELLOW,
        Some("ALLOWED") => GREEN,
        _ => DIM,
    };
    push(out, format_args!("  {paint}{decision}{RESET}\n"));
}

fn cells(start_ns: u64, end_ns: u64, attributes: &[Attribute]) -> [String; COLUMNS.len()] {
    let text = |key| find_str(attributes, key).unwrap_or_default().to_owned();
    let tokens = |key| find_int(attributes, key).map(|count| count.to_string()).unwrap_or_default();
    let model = find_str(attributes, "gen_ai.request.model")
        .or_else(|| find_str(attributes, "gen_ai.response.model"))
        .or_else(|| find_str(attributes, "url.path"));
    [
        time_of_day(start_ns),
        process(attributes),
        principal(attributes),
        text("gen_ai.provider.name"),
        model.unwrap_or_default().to_owned(),
        tokens("gen_ai.usage.input_tokens"),
        tokens("gen_ai.usage.output_tokens"),
        cost(attributes).map(|usd| format!("{usd:.6}")).unwrap_or_default(),
        duration(end_ns.saturating_sub(start_ns)),
        decision(attributes),
    ]
}

/// `python3 4242`: the executable's name and the process id.
fn process(attributes: &[Attribute]) -> String {
    let name = find_str(attributes, "process.executable.path")
        .and_then(|path| path.rsplit('/').next())
        .or_else(|| find_str(attributes, "process.executable.name"))
        .or_else(|| find_str(attributes, "process.command"));
    let pid = find_int(attributes, "process.pid").map(|pid| pid.to_string());
    [name.map(|name| plain(name, 12)), pid].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// `refund-bot (payments)`: the principal, and the team unless part of the name.
fn principal(attributes: &[Attribute]) -> String {
    let name = find_str(attributes, "genops.principal").unwrap_or_default();
    match find_str(attributes, "genops.team").filter(|team| !name.contains(team)) {
        Some(team) => format!("{name} ({team})"),
        None => name.to_owned(),
    }
}

/// Cost in USD; absent if the price or the usage is only assumed.
fn cost(attributes: &[Attribute]) -> Option<f64> {
    let assumed = ["genops.accounting.incomplete", "genops.accounting.price_assumed"]
        .iter()
        .any(|key| find(attributes, key) == Some(&Value::Bool(true)));
    find_double(attributes, "genops.cost.total").filter(|_| !assumed)
}

/// `BLOCKED POLICY_DENY_MODEL`, and the provider's error, if any.
fn decision(attributes: &[Attribute]) -> String {
    let keys = ["genops.policy.result", "genops.policy.reason_code", "error.type"];
    let mut words: Vec<&str> = keys.iter().filter_map(|key| find_str(attributes, key)).collect();
    words.dedup();
    words.join(" ")
}

/// Hours, minutes and seconds of a time since 1970, UTC.
fn time_of_day(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Seconds with milliseconds.
fn duration(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1_000)
}

/// Pads each cell to its column; an empty cell before the last is a hyphen. No line end.
fn line(cells: &[String; COLUMNS.len()], out: &mut String) {
    let mut padded = String::new();
    let last = COLUMNS.len() - 1;
    for (index, (Column { width, right, .. }, cell)) in COLUMNS.iter().zip(cells).enumerate() {
        let cell = plain(cell, *width);
        let cell = if cell.is_empty() && index < last { "-" } else { &cell };
        if *right {
            push(&mut padded, format_args!("{cell:>width$}  "));
        } else {
            push(&mut padded, format_args!("{cell:<width$}  "));
        }
    }
    out.push_str(padded.trim_end());
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string does not fail");
}
