//! `evidence show`: lists records, without verification.

use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use serde_json::json;

use super::filter::Filter;
use super::{At, Output, line, time_text};
use crate::journal::entry::{Accounted, Count, Entry, Text};
use crate::journal::sealed;

/// List records. Records are not verified; `evidence verify` does so.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    filter: Filter,
    /// Only the last N records.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Decrypt the texts sent to models, if kept by `evidence.content: full` and if the keys are
    /// present.
    #[arg(long)]
    content: bool,
    /// How to write the records; `json` gives the stored bytes, a record per line.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Show {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let place = directory.path().display();
        let head = super::trusted_head(&directory)?;
        let first = directory.first_kept().with_context(|| format!("{place}"))?;
        let out = &mut io::stdout().lock();
        let mut kept = std::collections::VecDeque::new();
        let mut failed = Ok(true);
        let mut parts = Vec::new();
        let (mut taken, mut of) = (0, 0);
        let mut each = |index: u64, record: &[u8]| {
            of += 1;
            let Some(mut text) = self.render(index, record) else { return };
            taken += 1;
            if let Some(opened) = self.open(record, &mut parts) {
                text.push('\n');
                text.push_str(&opened);
            }
            match self.last {
                Some(last) => {
                    kept.push_back(text);
                    if kept.len() > last {
                        kept.pop_front();
                    }
                }
                None if matches!(failed, Ok(true)) => failed = line(out, &text),
                None => {}
            }
        };
        directory.records(first, head.size, &mut each).with_context(|| format!("{place}"))?;
        directory.unpublished(head.size, &mut each).with_context(|| format!("{place}"))?;
        let mut going = failed?;
        for text in kept {
            going = going && line(out, &text)?;
        }
        Ok(super::matched(taken, of))
    }

    /// Returns the texts sent to a model, if the record is the last part.
    fn open(&self, record: &[u8], parts: &mut Vec<String>) -> Option<String> {
        let entry: Entry<'_> = serde_json::from_slice(record).ok().filter(|_| self.content)?;
        let (seal, awu) = (entry.seal.as_ref()?, entry.awu.as_ref()?);
        if seal.part == 0 {
            parts.clear();
        }
        parts.push(seal.data.to_string());
        if parts.len() as u64 != seal.parts {
            return None;
        }
        let opened = sealed::open(&self.at.directory, awu.as_str(), seal.day, parts);
        Some(match (opened, self.output) {
            (Ok(texts), Output::Json) => json!({"awu": awu.as_str(), "texts": texts}).to_string(),
            (Ok(texts), Output::Text) => texts
                .iter()
                .map(|text| format!("          \"{}\"", text.escape_debug()))
                .collect::<Vec<_>>()
                .join("\n"),
            (Err(why), Output::Json) => json!({"awu": awu.as_str(), "unreadable": why}).to_string(),
            (Err(why), Output::Text) => format!("          {why}"),
        })
    }

    fn render(&self, index: u64, record: &[u8]) -> Option<String> {
        let parsed = serde_json::from_slice::<Entry<'_>>(record);
        match (parsed, self.output) {
            (Ok(entry), _) if !self.filter.takes(&entry) => None,
            (Ok(_), Output::Json) => Some(String::from_utf8_lossy(record).into_owned()),
            (Ok(entry), Output::Text) => Some(describe(index, &entry)),
            (Err(error), _) => Some(format!("{index:>8}  cannot be read: {error}")),
        }
    }
}

/// Returns a line for people.
fn describe(index: u64, entry: &Entry<'_>) -> String {
    let mut text = format!("{index:>8}  {}  {:<14}", time_text(entry.t), entry.kind.as_str());
    let mut add = |label: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str("  ");
            text.push_str(label);
            text.push_str(value);
        }
    };
    if let Some(dec) = &entry.dec {
        add("", Some(dec.result.as_str()));
        add("", dec.code.as_ref().map(Text::as_str));
        add("by ", dec.policy.as_ref().map(Text::as_str));
    }
    if let Some(who) = &entry.who {
        add("", Some(who.prin.as_str()));
        add("team=", who.team.as_ref().map(Text::as_str));
        add("pid=", who.pid.map(|pid| pid.to_string()).as_deref());
    }
    if let Some(what) = &entry.what {
        add("", what.prov.as_ref().map(Text::as_str));
        add("", what.model.as_ref().map(Text::as_str));
    }
    if let Some(Count { n, first, last }) = &entry.fold {
        add("", Some(&format!("{n} from {} to {}", time_text(*first), time_text(*last))));
    }
    for account in &entry.bud {
        let Accounted { name, unit, res, act, rem, .. } = account;
        add("budget=", name.as_ref().map(Text::as_str));
        add("reserved=", Some(&amount(*res, unit.as_str())));
        add("actual=", act.map(|act| amount(act, unit.as_str())).as_deref());
        add("left=", rem.map(|rem| amount(rem, unit.as_str())).as_deref());
    }
    for (key, value) in &entry.det {
        let value: String = value.as_str().chars().take(80).collect();
        add("", Some(&format!("{key}={}", value.escape_debug())));
    }
    text
}

/// Nano-USD as USD, nanoseconds as seconds, exactly; tokens as they are.
fn amount(value: i64, unit: &str) -> String {
    if !matches!(unit, "nUSD" | "ns") {
        return format!("{value} {unit}");
    }
    let (sign, value) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let text = format!("{sign}{}.{:09}", value / 1_000_000_000, value % 1_000_000_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if unit == "ns" { format!("{text}s") } else { format!("${text}") }
}
