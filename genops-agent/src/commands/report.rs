//! `report`: spending by team, model, day and so on, from evidence.
//!
//! Reads the log, not the running agent: the report covers recorded facts. Sums are integers of a
//! billionth of a USD, so every grouping of the same calls has the same total.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use genops_evidence::Directory;
use genops_governance::time::parse_zone;
use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;

use crate::cli::{self, Failure};
use crate::evidence::filter::{Span, Which, start_ns};
use crate::evidence::{At, read_key, time_text, verify};
use crate::foreign::Line;

mod compare;
mod exports;
mod sums;
mod table;
mod units;

#[cfg(test)]
mod tests;

use self::sums::{Dimension, Sums, groups};
use self::table::{Cell, Column, Kind, Table};
use self::units::{Read, Unit};

/// Say who spent how much, by team, model, day and so on, from evidence
///
/// Amounts are charges: by the provider's count, by an estimate, or, without a known usage, the
/// whole reservation; each apart. Exit code 1: the log does not verify, or `--compare` found
/// differences.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  genops-agent report --by team,model --month 2026-11 --time-zone Europe/Berlin\n  \
    genops-agent report --month 2026-11 --output csv --calls > calls.csv\n  \
    genops-agent report --month 2026-11 --compare usage.json\n\n\
    A month that is not over has a forecast: what was spent, and as much a second until its end as since its \
    begin, or since the log's first record if that is later."
)]
pub(crate) struct Report {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    which: Which,
    /// Properties to sum by, one or several.
    #[arg(long, value_enum, value_delimiter = ',', ignore_case = true, default_value = "team")]
    by: Vec<Dimension>,
    /// Calls of the given month.
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, conflicts_with_all = ["since", "until"])]
    month: Option<Date>,
    /// Time zone of days and months.
    #[arg(long, value_name = "ZONE", value_parser = parse_zone, default_value = "UTC")]
    time_zone: TimeZone,
    /// How to write the report; CSV has every column, and only rows.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// A row per call, not sums; with `csv` or `json`.
    #[arg(long, conflicts_with = "compare")]
    calls: bool,
    /// Usage or costs exported by the provider (`OpenAI` or Anthropic, CSV or JSON; AWS cost and
    /// usage report, CSV): list the differences by day (UTC) and model.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Public key of the log, or a file with the key, obtained elsewhere than from the directory.
    #[arg(long, value_name = "VKEY", conflicts_with = "no_verify")]
    key: Option<String>,
    /// Do not verify the log first.
    #[arg(long)]
    no_verify: bool,
}

/// Format of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    Csv,
    Json,
    #[value(alias = "md")]
    Markdown,
}

impl Output {
    fn write(self, table: &Table, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Text => table.write_text(out),
            Self::Csv => table.write_csv(out),
            Self::Json => table.write_json(out),
            Self::Markdown => table.write_markdown(out),
        }
    }
}

/// A report before its output.
#[derive(Debug)]
struct Made {
    table: Table,
    verified: Verified,
    /// The provider's counts differ.
    differ: bool,
}

impl Report {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.calls && !matches!(self.output, Output::Csv | Output::Json) {
            let why = "--calls: a row a call is for programs; add --output csv or json";
            return Err(Failure::unreadable(anyhow!(why)));
        }
        let now_ns = crate::clock::now().unix_ns;
        let Made { table, verified, differ } = self.make(now_ns).map_err(Failure::unreadable)?;
        self.write(&table)?;
        match verified {
            Verified::Not(why) => Err(Failure::not_so(anyhow!("the log does not verify: {why}"))),
            _ if differ => Err(Failure::not_so_as_said()),
            _ => Ok(()),
        }
    }

    /// Reads, verifies and sums.
    fn make(&self, now_ns: u64) -> anyhow::Result<Made> {
        let directory = self.at.open()?;
        let key = self.key.as_deref().map(read_key).transpose()?;
        let span = self.span();
        let read = units::read(&directory, &self.which, span)?;
        let verified = self.verify(&directory, key.as_ref());
        let mut differ = false;
        let mut table = match &self.compare {
            None if self.calls => calls(&read.units),
            None => self.sums(&read, span, now_ns),
            Some(path) => {
                let export = exports::read(path).with_context(|| path.display().to_string())?;
                let compared = compare::compare(&read.units, &export, span);
                differ = !compared.rows.is_empty();
                compared
            }
        };
        self.tell_log(&read, &verified, &mut table);
        Ok(Made { table, verified, differ })
    }

    fn span(&self) -> Span {
        let Some(first) = self.month else { return self.which.span(&self.time_zone) };
        Span { from: Some(start_ns(first, &self.time_zone)), to: Some(self.month_end(first)) }
    }

    fn month_end(&self, first: Date) -> u64 {
        first.checked_add(1.month()).map_or(u64::MAX, |next| start_ns(next, &self.time_zone))
    }

    fn verify(
        &self,
        directory: &Directory,
        key: Option<&genops_evidence::note::PublicKey>,
    ) -> Verified {
        if self.no_verify {
            return Verified::NotAsked;
        }
        verify::fault(directory, key).map_or(Verified::Yes, Verified::Not)
    }

    fn write(&self, table: &Table) -> Result<(), Failure> {
        cli::print(|out| self.output.write(table, out))?;
        if self.output == Output::Csv {
            for note in &table.notes {
                // Without a standard error, the note has no reader.
                writeln!(io::stderr(), "{}", Line(note)).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Returns the sums by the requested dimensions, with a forecast for an unfinished month.
    fn sums(&self, read: &Read, span: Span, now_ns: u64) -> Table {
        let mut by: Vec<Dimension> = Vec::new();
        for dimension in &self.by {
            if !by.contains(dimension) {
                by.push(*dimension);
            }
        }
        let (groups, total) = groups(&read.units, &by, &self.time_zone);
        let forecast = self.month.and_then(|_| Forecast::new(read, span, now_ns));
        let mut columns: Vec<Column> =
            by.iter().map(|it| Column::new(it.name(), Kind::Text)).collect();
        columns.extend(Sums::COLUMNS);
        columns.extend(forecast.map(|_| Column::new("forecast_usd", Kind::Usd)));
        let cells = |key: Vec<Cell>, sums: &Sums| {
            let mut row = key;
            row.extend(sums.cells());
            row.extend(forecast.map(|it| Cell::Usd(it.of(sums.actual()))));
            row
        };
        let rows = groups.iter().map(|(key, sums)| {
            cells(key.iter().map(|it| Cell::text(it.as_deref())).collect(), sums)
        });
        let rows = rows.collect();
        let mut name = vec![Cell::Absent; by.len()];
        if let Some(first) = name.first_mut() {
            *first = Cell::Text("total".to_owned());
        }
        let mut table = Table { columns, rows, ..Table::default() };
        let mut total_row = cells(name, &total);
        if self.output == Output::Json {
            for cell in total_row.iter_mut().take(by.len()) {
                *cell = Cell::Absent;
            }
        }
        table.total = Some(total_row);
        let names: Vec<&str> = by.iter().map(|it| it.name()).collect();
        table.head.push(format!("Spent by {}, {}", names.join(", "), self.when(span)));
        table.facts.insert("by".to_owned(), json!(names));
        table.notes.extend(remarks(&total));
        if let Some(forecast) = forecast {
            table.notes.push(forecast.method());
            table.facts.insert("forecast".to_owned(), json!({"method": forecast.method()}));
        }
        table
    }

    /// Describes the reported time.
    fn when(&self, span: Span) -> String {
        let zone = self.time_zone.iana_name().unwrap_or("UTC");
        let time = |it: Option<u64>| it.map(time_text);
        match (self.month, time(span.from), time(span.to)) {
            (Some(month), _, _) => format!("{} ({zone})", month.strftime("%Y-%m")),
            (None, None, None) => "all that the log holds".to_owned(),
            (None, Some(from), None) => format!("from {from} on"),
            (None, None, Some(to)) => format!("before {to}"),
            (None, Some(from), Some(to)) => format!("from {from} until {to}"),
        }
    }

    /// Describes the log: identity, verification, and gaps.
    fn tell_log(&self, read: &Read, verified: &Verified, table: &mut Table) {
        let lost: u64 = read.gaps.iter().map(|(_, lost)| lost).sum();
        let state = match verified {
            Verified::Yes if self.key.is_some() => "verified with the key given".to_owned(),
            Verified::Yes => "verified, with the key found in it".to_owned(),
            Verified::Not(why) => format!("NOT VERIFIED ({why})"),
            Verified::NotAsked => "not verified (--no-verify)".to_owned(),
        };
        table
            .notes
            .push(format!("log {} of one host, {} records: {state}", read.origin, read.records));
        if !read.gaps.is_empty() {
            table.notes.push(format!(
                "gaps in the log: {} ({lost} records lost); calls may be missing",
                read.gaps.len()
            ));
        }
        if read.first > 0 {
            table.notes.push(format!(
                "records before number {} were given up: earlier calls are missing",
                read.first
            ));
        }
        if read.unreadable > 0 {
            table.notes.push(format!("unreadable records: {}", read.unreadable));
        }
        let whether = match verified {
            Verified::Yes => json!(true),
            Verified::Not(_) => json!(false),
            Verified::NotAsked => json!(null),
        };
        let span = self.span();
        table.facts.insert(
            "log".to_owned(),
            json!({
                "origin": read.origin,
                "records": read.records,
                "verified": whether,
                "gaps": read.gaps.len(),
                "records_lost": lost,
                "first_record": read.first,
            }),
        );
        table.facts.insert(
            "window".to_owned(),
            json!({
                "from": span.from.map(time_text),
                "until": span.to.map(time_text),
                "time_zone": self.time_zone.iana_name(),
            }),
        );
    }
}

/// Result of the verification of the log.
#[derive(Debug)]
enum Verified {
    Yes,
    /// The first fault of the log.
    Not(String),
    NotAsked,
}

/// Returns the remarks needed to read the sums.
fn remarks(total: &Sums) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut say = |what: &str, count: u64, why: &str| {
        if count > 0 {
            remarks.push(format!("{what}: {count} ({why})"));
        }
    };
    say("open calls", total.open, "set aside and not settled; not in actual_usd");
    say("undecided calls", total.undecided, "about to be refused, and no outcome recorded");
    say("breached calls", total.breached, "left after a refusal was recorded; amount unknown");
    say("calls without an amount in USD", total.unpriced, "no known price, or never counted");
    say(
        "blocked calls without an amount in USD",
        total.unvalued,
        "no known price, or not read whole; not in blocked_usd",
    );
    say("calls without a count of tokens", total.uncounted, "the provider told none");
    if total.stopped != 0 {
        let what = "blocked_usd: what would have been set aside for the calls, not what they would have cost";
        remarks.push(what.to_owned());
    }
    if total.unrecorded != 0 {
        remarks
            .push("unknown_basis_usd: the records do not say what the amount goes by".to_owned());
    }
    if total.reserved != 0 {
        let what =
            "charged_as_reserved_usd: nothing is known of the usage, the worst case is charged";
        remarks.push(what.to_owned());
    }
    remarks
}

/// A forecast by elapsed time; all in nanoseconds, `since` of the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forecast {
    elapsed: u64,
    remaining: u64,
    since: u64,
}

impl Forecast {
    /// Returns `None` if the time is over or has not begun, or without records.
    fn new(read: &Read, span: Span, now_ns: u64) -> Option<Self> {
        let (first, _) = read.times?;
        let since_ns = span.from?.max(first);
        let remaining_ns = span.to?.checked_sub(now_ns).filter(|it| *it > 0)?;
        let elapsed_ns = now_ns.checked_sub(since_ns).filter(|it| *it > 0)?;
        Some(Self { elapsed: elapsed_ns, remaining: remaining_ns, since: since_ns })
    }

    /// Returns the nano-USD at the end, rounded down.
    fn of(self, spent: i64) -> i64 {
        let more = i128::from(spent) * i128::from(self.remaining) / i128::from(self.elapsed.max(1));
        i64::try_from(i128::from(spent) + more).unwrap_or(i64::MAX)
    }

    fn method(self) -> String {
        let minutes = self.elapsed / 60_000_000_000;
        format!(
            "forecast_usd is a forecast, not a record: spent, and as much a second until the month's end as \
             since {} ({} d {} h {} min ago); blocked and open calls are not in it",
            time_text(self.since),
            minutes / 1440,
            minutes / 60 % 24,
            minutes % 60
        )
    }
}

/// Returns a table with a row per call.
fn calls(units: &[Unit]) -> Table {
    let text = |name| Column::new(name, Kind::Text);
    let (usd, count) = (|name| Column::new(name, Kind::Usd), |name| Column::new(name, Kind::Count));
    let columns = vec![
        text("time"),
        count("record"),
        text("awu"),
        text("principal"),
        text("team"),
        text("project"),
        text("cost_center"),
        text("customer_id"),
        text("feature"),
        text("user"),
        text("exe"),
        text("provider"),
        text("model"),
        text("response_model"),
        text("result"),
        text("reason"),
        text("state"),
        text("basis"),
        usd("reserved_usd"),
        usd("actual_usd"),
        usd("blocked_usd"),
        count("input_tokens"),
        count("output_tokens"),
        count("cached_tokens"),
    ];
    Table { columns, rows: units.iter().map(call).collect(), ..Table::default() }
}

fn call(unit: &Unit) -> Vec<Cell> {
    let labels = &unit.labels;
    let settled = unit.state == units::State::Settled;
    let refused = unit.state == units::State::Refused;
    let text = |it: Option<&String>| Cell::text(it.map(String::as_str));
    vec![
        Cell::Text(time_text(unit.at)),
        Cell::count(Some(unit.seq)),
        Cell::Text(unit.id.to_string()),
        text(labels.principal.as_ref()),
        text(labels.team.as_ref()),
        text(labels.project.as_ref()),
        text(labels.cost_center.as_ref()),
        text(labels.customer.as_ref()),
        text(labels.feature.as_ref()),
        text(labels.user.as_ref()),
        text(labels.exe.as_ref()),
        text(labels.provider.as_ref()),
        text(labels.model.as_ref()),
        Cell::text(unit.answered.as_deref()),
        Cell::text(unit.result.as_deref()),
        Cell::text(unit.reason.as_deref()),
        Cell::text(Some(unit.state.as_str())),
        Cell::text(settled.then(|| unit.basis.as_str())),
        Cell::usd(unit.reserved),
        Cell::usd(unit.actual),
        Cell::usd(unit.wanted.filter(|_| refused)),
        Cell::count(unit.input),
        Cell::count(unit.output),
        Cell::count(unit.cached),
    ]
}

fn parse_month(text: &str) -> Result<Date, String> {
    let first = format!("{text}-01").parse().ok().filter(|_| text.len() == 7);
    first.ok_or_else(|| format!("`{text}` is not a month like 2026-11"))
}
