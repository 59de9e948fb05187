//! `conformance`: checks an export of any runtime against the specification.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use genops_governance::conformance::{self, Finding, Level, Report};
use serde_json::{Value, json};

use crate::cli::{self, Failure, Format};

/// Maximum length of an export, in bytes.
const LIMIT: u64 = 1 << 30;

/// Check an OTLP/JSON export against `GenOps` v0.1, rule by rule
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  genops-agent conformance spans.json\n  \
    genops-agent replay calls.jsonl --output otlp | genops-agent conformance -\n\n\
    Reads one OTLP/JSON document, or one a line. Exit code 0: every unit is full, or says that it is \
    partial and is; 1: it is not; 2: it is no such export.")]
pub(crate) struct Conformance {
    /// Export to check; `-` is the standard input.
    #[arg(value_name = "FILE")]
    export: PathBuf,
    /// Level required of the export for exit code 0.
    #[arg(long, value_enum, default_value_t = Required::Partial)]
    require: Required,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Lowest sufficient level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Required {
    /// Everything, on every unit.
    Full,
    /// Everything but the accounting invariant, declared as partial.
    Partial,
}

impl Conformance {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { export, require, output } = self;
        let place = export.display().to_string();
        let text = read(&export).with_context(|| place.clone()).map_err(Failure::unreadable)?;
        let report = conformance::check(&text)
            .map_err(|error| Failure::unreadable(anyhow!("{place}: {error}")))?;
        cli::print(|out| match output {
            Format::Text => write!(out, "{report}"),
            Format::Json => writeln!(out, "{}", as_json(&report)),
        })?;
        let reached = match require {
            Required::Full => report.level == Level::Full,
            Required::Partial => report.level != Level::Not,
        };
        if reached { Ok(()) } else { Err(Failure::not_so_as_said()) }
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<String> {
    let input: Box<dyn std::io::Read> = if path == std::path::Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path)?)
    };
    let mut text = String::new();
    input.take(LIMIT + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= LIMIT, "is longer than {LIMIT} bytes; check it in parts");
    Ok(text)
}

fn as_json(report: &Report) -> Value {
    let Report { level, units, findings, rules } = report;
    let count = |level| units.get(&level).copied().unwrap_or(0);
    let finding = |Finding { section, rule, unit, message }: &Finding| json!({"section": section, "rule": rule, "unit": unit, "message": message});
    let rule = |(section, rule): &(&str, &str)| {
        let broken = findings.iter().filter(|finding| finding.rule == *rule).count();
        json!({"section": section, "rule": rule, "broken": broken})
    };
    json!({
        "level": match level {
            Level::Full => "full",
            Level::Partial => "partial",
            Level::Not => "not",
        },
        "units": {
            "full": count(Level::Full),
            "partial": count(Level::Partial),
            "not": count(Level::Not),
        },
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "rules": rules.iter().map(rule).collect::<Vec<_>>(),
    })
}
