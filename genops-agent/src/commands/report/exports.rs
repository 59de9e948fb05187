//! Parses providers' exports of usage and costs into counts by day (UTC) and model.
//!
//! Supported are: `OpenAI`'s usage and costs (JSON of the API, CSV of the dashboard), Anthropic's
//! usage and cost reports (likewise), and AWS cost and usage reports (CSV, rows about Bedrock).
//! Amounts are decimal text, parsed into integers of a billionth of a USD.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

/// Maximum length of an export, in bytes.
const LIMIT: u64 = 1 << 30;

/// Counts of a model on a day; counts missing in the export are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: Option<i128>,
    pub(super) input: Option<i128>,
    pub(super) output: Option<i128>,
    pub(super) nano_usd: Option<i128>,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        let sum = |one: &mut Option<i128>, other: Option<i128>| {
            if let Some(other) = other {
                *one = Some(one.unwrap_or(0).saturating_add(other));
            }
        };
        sum(&mut self.calls, other.calls);
        sum(&mut self.input, other.input);
        sum(&mut self.output, other.output);
        sum(&mut self.nano_usd, other.nano_usd);
    }
}

/// An export.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Export {
    /// Name of the provider in evidence.
    pub(super) provider: &'static str,
    /// Counts by day and model; the model is absent if the export does not split by model.
    pub(super) cells: BTreeMap<(Date, Option<String>), Counts>,
    /// First and last day covered by the export.
    pub(super) days: Option<(Date, Date)>,
    /// The export has more pages.
    pub(super) more: bool,
    /// Rows without counts.
    pub(super) skipped: u64,
}

impl Export {
    fn covers(&mut self, day: Date) {
        let (from, to) = self.days.unwrap_or((day, day));
        self.days = Some((from.min(day), to.max(day)));
    }

    fn add(&mut self, day: Date, model: Option<String>, counts: Counts) {
        self.covers(day);
        if counts == Counts::default() {
            self.skipped += 1;
        } else {
            self.cells.entry((day, model)).or_default().add(counts);
        }
    }

    fn is_of(&mut self, provider: &'static str) -> anyhow::Result<()> {
        ensure!(
            self.provider.is_empty() || self.provider == provider,
            "both of {} and of {provider}",
            self.provider
        );
        self.provider = provider;
        Ok(())
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> anyhow::Result<Export> {
    let length = std::fs::metadata(path)?.len();
    ensure!(length <= LIMIT, "{length} bytes; at most {LIMIT} are read");
    parse(&std::fs::read_to_string(path)?)
}

/// Reads a text of any supported format.
pub(super) fn parse(text: &str) -> anyhow::Result<Export> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with(['{', '[']) { pages(text) } else { sheet(text) }
}

/// Reads a page of an API's answer, or several pages, in sequence or as a list.
fn pages(text: &str) -> anyhow::Result<Export> {
    let mut export = Export::default();
    for page in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let page = page.context("not JSON")?;
        let list = page.as_array().map_or_else(|| vec![&page], |list| list.iter().collect());
        export.more = false;
        for page in list {
            let buckets = page.get("data").and_then(Value::as_array);
            export.more = page.get("has_more").and_then(Value::as_bool).unwrap_or(false);
            let one = [page.clone()];
            for bucket in buckets.map_or(one.as_slice(), Vec::as_slice) {
                read_bucket(&mut export, bucket)?;
            }
        }
    }
    ensure!(!export.provider.is_empty(), "no usage or costs of OpenAI or Anthropic in it");
    Ok(export)
}

fn read_bucket(export: &mut Export, bucket: &Value) -> anyhow::Result<()> {
    let Some(results) = bucket.get("results").and_then(Value::as_array) else {
        bail!("not an answer of a usage or costs API: a bucket without `results`")
    };
    let (start, anthropic) = match (bucket.get("start_time"), bucket.get("starting_at")) {
        (Some(start), _) => (start, false),
        (None, Some(start)) => (start, true),
        (None, None) => bail!("a bucket with neither `start_time` nor `starting_at`"),
    };
    export.is_of(if anthropic { "anthropic" } else { "openai" })?;
    let start = day(&scalar(start).unwrap_or_default())?;
    export.covers(start);
    for result in results {
        let text = |key: &str| result.get(key).and_then(scalar);
        let model = text("model").or_else(|| text("line_item").map(|it| item_model(&it)));
        let counts = if anthropic { anthropic_counts(result)? } else { openai_counts(result)? };
        export.add(start, model, counts);
    }
    Ok(())
}

fn openai_counts(result: &Value) -> anyhow::Result<Counts> {
    let amount = result.get("amount");
    let nano_usd = match amount.and_then(|it| it.get("value")).and_then(scalar) {
        Some(value) => {
            dollars(amount.and_then(|it| it.get("currency")).and_then(scalar).as_deref())?;
            Some(decimal(&value, 9)?)
        }
        None => None,
    };
    let count = |key: &str| whole(result.get(key));
    Ok(Counts {
        calls: count("num_model_requests"),
        input: count("input_tokens"),
        output: count("output_tokens"),
        nano_usd,
    })
}

fn anthropic_counts(result: &Value) -> anyhow::Result<Counts> {
    let nano_usd = match result.get("amount").and_then(scalar) {
        Some(cents) => {
            dollars(result.get("currency").and_then(scalar).as_deref())?;
            // In cents, according to the API's documentation.
            Some(decimal(&cents, 7)?)
        }
        None => None,
    };
    let written = result.get("cache_creation");
    let parts = [
        result.get("uncached_input_tokens"),
        result.get("cache_read_input_tokens"),
        written.and_then(|it| it.get("ephemeral_1h_input_tokens")),
        written.and_then(|it| it.get("ephemeral_5m_input_tokens")),
    ];
    let input = parts.into_iter().filter_map(whole).reduce(i128::saturating_add);
    Ok(Counts { calls: None, input, output: whole(result.get("output_tokens")), nano_usd })
}

/// Reads a table with a line of names.
fn sheet(text: &str) -> anyhow::Result<Export> {
    let mut rows = rows(text).into_iter();
    let names: Vec<String> = rows
        .next()
        .unwrap_or_default()
        .iter()
        .map(|it| it.trim().to_ascii_lowercase().replace('/', "_").replace("lineitem", "line_item"))
        .collect();
    let sheet = Sheet { names };
    let mut export = Export::default();
    let provider = sheet.provider().context(
        "neither usage nor costs of OpenAI, of Anthropic or of AWS: no column is called as theirs",
    )?;
    export.is_of(provider)?;
    for (number, row) in rows.enumerate().filter(|(_, row)| row.iter().any(|it| !it.is_empty())) {
        sheet.row(&mut export, &row).with_context(|| format!("row {}", number + 2))?;
    }
    Ok(export)
}

/// The names of the columns, in lower case.
struct Sheet {
    names: Vec<String>,
}

/// Columns that together make up the input, as counted by Anthropic.
const INPUT_PARTS: [&str; 9] = [
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read",
    "uncached_input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "ephemeral_5m_input_tokens",
    "ephemeral_1h_input_tokens",
];

impl Sheet {
    fn provider(&self) -> Option<&'static str> {
        let has = |name: &str| self.names.iter().any(|it| it == name);
        let any = |names: &[&str]| names.iter().any(|name| has(name));
        if any(&["line_item_usagestartdate", "line_item_usage_start_date"]) {
            Some("aws.bedrock")
        } else if any(&["usage_date_utc", "model_version", "cost_usd"]) || any(&INPUT_PARTS) {
            Some("anthropic")
        } else if any(&["input_tokens", "output_tokens", "num_model_requests", "amount_value"]) {
            Some("openai")
        } else {
            None
        }
    }

    /// Returns the value of the first of the columns present and not empty.
    fn get<'r>(&self, row: &'r [String], names: &[&str]) -> Option<&'r str> {
        names.iter().find_map(|name| {
            let index = self.names.iter().position(|it| it == name)?;
            row.get(index).map(|it| it.trim()).filter(|it| !it.is_empty())
        })
    }

    fn count(&self, row: &[String], names: &[&str]) -> anyhow::Result<Option<i128>> {
        self.get(row, names).map(|it| decimal(it, 0)).transpose()
    }

    fn row(&self, export: &mut Export, row: &[String]) -> anyhow::Result<()> {
        if export.provider == "aws.bedrock" {
            return self.aws(export, row);
        }
        let day = day(self
            .get(row, &["usage_date_utc", "start_time_iso", "start_time", "starting_at", "date"])
            .context("no day")?)?;
        let model = self.get(row, &["model_version", "model", "line_item"]).map(item_model);
        let mut input = self.count(row, &["input_tokens"])?;
        for part in INPUT_PARTS {
            if let Some(count) = self.count(row, &[part])? {
                input = Some(input.unwrap_or(0).saturating_add(count));
            }
        }
        let cost = self.get(row, &["amount_value", "cost_usd", "amount", "cost"]);
        if cost.is_some() {
            dollars(self.get(row, &["amount_currency", "currency"]))?;
        }
        let counts = Counts {
            calls: self.count(row, &["num_model_requests", "num_requests", "requests"])?,
            input,
            output: self.count(row, &["output_tokens", "usage_output_tokens"])?,
            nano_usd: cost.map(|it| decimal(it, 9)).transpose()?,
        };
        export.add(day, model, counts);
        Ok(())
    }

    fn aws(&self, export: &mut Export, row: &[String]) -> anyhow::Result<()> {
        let product = self.get(row, &["line_item_product_code", "line_item_productcode"]);
        if !product.is_some_and(|it| it.to_ascii_lowercase().contains("bedrock")) {
            export.skipped += 1;
            return Ok(());
        }
        let day = day(self
            .get(row, &["line_item_usage_start_date", "line_item_usagestartdate"])
            .context("no day")?)?;
        let usage = self
            .get(row, &["line_item_usage_type", "line_item_usagetype"])
            .unwrap_or_default()
            .to_ascii_lowercase();
        let model =
            self.get(row, &["product_model"]).map(str::to_owned).or_else(|| usage_model(&usage));
        let amount = self.get(row, &["line_item_usage_amount", "line_item_usageamount"]);
        let unit = self.get(row, &["pricing_unit"]).unwrap_or("1K tokens").to_ascii_lowercase();
        let digits = match unit.as_str() {
            it if it.contains("1m") || it.contains("million") => 6,
            it if it.contains("1k") || it.contains("thousand") => 3,
            _ => 0,
        };
        let tokens = amount.map(|it| decimal(it, digits)).transpose()?;
        let is = |kind: &str| usage.contains(&format!("{kind}-token"));
        let cost = self.get(row, &["line_item_unblended_cost", "line_item_unblendedcost"]);
        if cost.is_some() {
            dollars(self.get(row, &["line_item_currency_code", "line_item_currencycode"]))?;
        }
        let counts = Counts {
            calls: None,
            input: tokens.filter(|_| is("input") && !is("output")),
            output: tokens.filter(|_| is("output")),
            nano_usd: cost.map(|it| decimal(it, 9)).transpose()?,
        };
        export.add(day, model, counts);
        Ok(())
    }
}

/// Returns the model of a usage type such as `use1-claude3haiku-input-tokens`.
fn usage_model(usage: &str) -> Option<String> {
    let end = ["-cache-", "-input-token", "-output-token"]
        .iter()
        .filter_map(|it| usage.find(it))
        .min()?;
    let name = usage.get(..end)?;
    // Short form of a region: letters, and a digit at the end.
    let region = |it: &str| it.len() <= 5 && it.ends_with(|last: char| last.is_ascii_digit());
    let rest = name.split_once('-').filter(|(first, _)| region(first)).map(|(_, rest)| rest);
    Some(rest.unwrap_or(name).to_owned())
}

/// Returns the model of a line item such as `gpt-4o-mini-2024-07-18, input`.
fn item_model(item: &str) -> String {
    item.split(',').next().unwrap_or(item).trim().to_owned()
}

/// Refuses costs in other currencies.
fn dollars(currency: Option<&str>) -> anyhow::Result<()> {
    match currency {
        Some(it) if !it.eq_ignore_ascii_case("usd") => bail!("costs in {it}, not in USD"),
        _ => Ok(()),
    }
}

/// Returns the day of seconds since 1970, of a time, or of a date; times are UTC.
fn day(text: &str) -> anyhow::Result<Date> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(Timestamp::from_second(seconds)?.to_zoned(TimeZone::UTC).date());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.to_zoned(TimeZone::UTC).date());
    }
    let date = text.get(..10).and_then(|it| it.parse().ok());
    date.with_context(|| format!("`{text}` is no day"))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn whole(value: Option<&Value>) -> Option<i128> {
    value.and_then(Value::as_u64).map(i128::from)
}

/// Parses a decimal number, times ten to the power of `digits`, rounded half away from zero.
pub(super) fn decimal(text: &str, digits: i32) -> anyhow::Result<i128> {
    let wrong = || format!("`{text}` is no amount");
    let (body, exponent) = match text.split_once(['e', 'E']) {
        Some((body, exponent)) => (body, exponent.parse::<i32>().with_context(wrong)?),
        None => (text, 0),
    };
    let (negative, body) = match body.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, body.strip_prefix('+').unwrap_or(body)),
    };
    let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
    let all = format!("{whole}{fraction}");
    let numeric = !all.is_empty() && all.bytes().all(|it| it.is_ascii_digit());
    ensure!(numeric && all.len() <= 38, wrong());
    let mut value: i128 = all.parse().with_context(wrong)?;
    let fraction = i32::try_from(fraction.len()).with_context(wrong)?;
    let shift = exponent.saturating_add(digits).saturating_sub(fraction);
    ensure!(shift.abs() <= 60, wrong());
    let power = |by: i32| 10_i128.checked_pow(by.unsigned_abs());
    value = if shift >= 0 {
        power(shift).and_then(|by| value.checked_mul(by)).with_context(wrong)?
    } else {
        power(shift).map_or(0, |by| (value + by / 2) / by)
    };
    Ok(if negative { -value } else { value })
}

/// Splits a text into rows (RFC 4180).
fn rows(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                cell.push('"');
                letters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            other => cell.push(other),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows
}
