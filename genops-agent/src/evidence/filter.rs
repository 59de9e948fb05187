//! Which records are meant.

use clap::Args;

use crate::journal::entry::{Entry, Text};

/// Which records.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filter {
    /// From this time on, as 2026-11-22T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<u64>,
    /// Before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
    /// Of this principal.
    #[arg(long)]
    pub(super) principal: Option<String>,
    /// Of this team.
    #[arg(long)]
    team: Option<String>,
    /// With this result: ALLOWED, BLOCKED, WARNING, `RATE_LIMITED`.
    #[arg(long, value_name = "RESULT")]
    decision: Option<String>,
    /// With this reason code.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// For this model.
    #[arg(long)]
    model: Option<String>,
    /// Of this type, such as decision or reconciliation.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Of this unit of work: its trace id, or trace and span id.
    #[arg(long, value_name = "ID")]
    awu: Option<String>,
}

impl Filter {
    /// Whether the record is meant.
    pub(super) fn takes(&self, entry: &Entry<'_>) -> bool {
        let Self { since, until, principal, team, decision, reason, model, kind, awu } = self;
        let who = entry.who.as_ref();
        let what = entry.what.as_ref();
        let dec = entry.dec.as_ref();
        since.is_none_or(|since| entry.t >= since)
            && until.is_none_or(|until| entry.t < until)
            && is(principal.as_ref(), who.map(|who| &who.prin))
            && is(team.as_ref(), who.and_then(|who| who.team.as_ref()))
            && is(decision.as_ref(), dec.map(|dec| &dec.result))
            && is(reason.as_ref(), dec.and_then(|dec| dec.code.as_ref()))
            && is(model.as_ref(), what.and_then(|what| what.model.as_ref()))
            && kind.as_ref().is_none_or(|kind| kind == entry.kind.as_str())
            && awu.as_ref().is_none_or(|wanted| {
                entry.awu.as_ref().is_some_and(|awu| awu.as_str().starts_with(wanted.as_str()))
            })
    }

    /// Whether it takes every record of one principal, and no other.
    pub(super) fn is_whole_principal(&self) -> bool {
        let Self { since, until, principal, team, decision, reason, model, kind, awu } = self;
        principal.is_some()
            && [since, until].into_iter().all(Option::is_none)
            && [team, decision, reason, model, kind, awu].into_iter().all(Option::is_none)
    }
}

fn is(wanted: Option<&String>, found: Option<&Text<'_>>) -> bool {
    wanted.is_none_or(|wanted| found.is_some_and(|found| found.as_str() == wanted))
}

pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| format!("`{text}` is not a time like 2026-11-22T10:00:00Z"))?;
    u64::try_from(time.as_nanosecond()).map_err(|_| format!("`{text}` is before 1970"))
}
