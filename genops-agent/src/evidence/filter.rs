//! Filters of records.

use clap::{Args, ValueEnum};
use genops_governance::ReasonCode;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::journal::entry::{Entry, Kind, Text};

/// Filter by type and unit, and by decision.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filter {
    #[command(flatten)]
    pub(super) which: Which,
    /// Of the given type, such as decision or reconciliation.
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        ignore_case = true,
        hide_possible_values = true
    )]
    kind: Option<Kind>,
    /// Of the given unit of work: trace id, or trace and span id.
    #[arg(long, value_name = "ID")]
    awu: Option<String>,
}

/// Filter of decisions: time, principal and result.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// From the given time on: 2026-11-22T10:00:00Z, a date (its first moment), or a duration ago,
    /// as 12h.
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    since: Option<When>,
    /// Before the given time.
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    until: Option<When>,
    /// Of the given principal.
    #[arg(long)]
    pub(super) principal: Option<String>,
    /// Of the given team.
    #[arg(long)]
    team: Option<String>,
    /// With the given result.
    #[arg(long, value_name = "RESULT", value_enum, ignore_case = true)]
    decision: Option<Decision>,
    /// With the given reason code.
    #[arg(long, value_name = "CODE", value_parser = parse_reason)]
    reason: Option<String>,
    /// For the given model.
    #[arg(long)]
    model: Option<String>,
}

/// A result, spelt as in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Decision {
    Allowed,
    Blocked,
    Warning,
    RateLimited,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Blocked => "BLOCKED",
            Self::Warning => "WARNING",
            Self::RateLimited => "RATE_LIMITED",
        }
    }
}

impl Filter {
    /// Returns whether the filter accepts the record.
    pub(super) fn takes(&self, entry: &Entry<'_>) -> bool {
        let Self { which, kind, awu } = self;
        which.takes(entry)
            && which.span(&TimeZone::UTC).takes(entry.t)
            && kind.is_none_or(|kind| kind == entry.kind)
            && awu.as_ref().is_none_or(|wanted| {
                entry.awu.as_ref().is_some_and(|awu| awu.as_str().starts_with(wanted.as_str()))
            })
    }

    /// Returns whether the filter accepts every record of a single principal, and no other.
    pub(super) fn is_whole_principal(&self) -> bool {
        let Self { which, kind, awu } = self;
        let Which { since, until, principal, team, decision, reason, model } = which;
        principal.is_some()
            && [since, until].into_iter().all(Option::is_none)
            && [team, reason, model, awu].into_iter().all(Option::is_none)
            && decision.is_none()
            && kind.is_none()
    }
}

impl Which {
    /// Returns whether the filter accepts the record, regardless of the time.
    pub(crate) fn takes(&self, entry: &Entry<'_>) -> bool {
        let Self { since: _, until: _, principal, team, decision, reason, model } = self;
        let who = entry.who.as_ref();
        let what = entry.what.as_ref();
        let dec = entry.dec.as_ref();
        let result = dec.map(|dec| dec.result.as_str());
        is(principal.as_ref(), who.map(|who| &who.prin))
            && is(team.as_ref(), who.and_then(|who| who.team.as_ref()))
            && decision.is_none_or(|wanted| result == Some(wanted.as_str()))
            && is(reason.as_ref(), dec.and_then(|dec| dec.code.as_ref()))
            && is(model.as_ref(), what.and_then(|what| what.model.as_ref()))
    }

    /// Returns the accepted times, with dates in the time zone.
    pub(crate) fn span(&self, zone: &TimeZone) -> Span {
        let resolve = |when: Option<When>| when.map(|when| when.unix_ns(zone));
        Span { from: resolve(self.since), to: resolve(self.until) }
    }
}

/// Times from `from` on, and before `to`, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Option<u64>,
    pub(crate) to: Option<u64>,
}

impl Span {
    /// Returns whether a time is within the span.
    pub(crate) fn takes(self, unix_ns: u64) -> bool {
        self.from.is_none_or(|from| unix_ns >= from) && self.to.is_none_or(|to| unix_ns < to)
    }
}

/// A time given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(u64),
    /// The first moment of a day.
    On(Date),
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_at(text, crate::clock::now().unix_ns)
    }

    fn parse_at(text: &str, now_ns: u64) -> Result<Self, String> {
        if let Ok(time) = parse_time(text) {
            return Ok(Self::At(time));
        }
        let is_date = text.len() == 10 && text.bytes().all(|it| it.is_ascii_digit() || it == b'-');
        if let Some(date) = text.parse().ok().filter(|_| is_date) {
            return Ok(Self::On(date));
        }
        let ago: Option<SignedDuration> = text.parse().ok().filter(|_| !text.starts_with('-'));
        let days = text.strip_suffix('d').and_then(|it| it.parse::<u64>().ok());
        let ago = match (days, ago) {
            (Some(days), _) => days.checked_mul(86_400_000_000_000),
            (None, Some(ago)) => u64::try_from(ago.as_nanos()).ok(),
            (None, None) => None,
        };
        ago.and_then(|ago| now_ns.checked_sub(ago)).map(Self::At).ok_or_else(|| {
            format!(
                "`{text}` is neither a time like 2026-11-22T10:00:00Z, nor a date like 2026-11-22, nor so \
                 long ago as 90m, 12h or 7d"
            )
        })
    }

    fn unix_ns(self, zone: &TimeZone) -> u64 {
        match self {
            Self::At(time) => time,
            Self::On(date) => start_ns(date, zone),
        }
    }
}

/// Returns the first moment of a day in a time zone; 0 before 1970.
pub(crate) fn start_ns(date: Date, zone: &TimeZone) -> u64 {
    let start = date.to_zoned(zone.clone()).map(|it| it.timestamp().as_nanosecond());
    start.ok().and_then(|it| u64::try_from(it).ok()).unwrap_or(0)
}

fn is(wanted: Option<&String>, found: Option<&Text<'_>>) -> bool {
    wanted.is_none_or(|wanted| found.is_some_and(|found| found.as_str() == wanted))
}

/// Parses a reason code, in any case: a code of the specification, or an extension.
fn parse_reason(text: &str) -> Result<String, String> {
    for spelt in [text.to_ascii_uppercase(), text.to_ascii_lowercase()] {
        if let Some(code) = ReasonCode::parse(&spelt) {
            return Ok(code.as_str().to_owned());
        }
    }
    let known = || ReasonCode::STANDARD.iter().map(|(name, _)| *name);
    let upper = text.to_ascii_uppercase();
    let near = known().min_by_key(|name| strsim::damerau_levenshtein(&upper, name));
    let near = near.filter(|name| strsim::jaro_winkler(&upper, name) > 0.75);
    let all: Vec<&str> = known().collect();
    Err(match near {
        Some(name) => format!("there is no such code; did you mean {name}?"),
        None => format!("there is no such code; there are {}, and x_..", all.join(", ")),
    })
}

pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    let time: Timestamp =
        text.parse().map_err(|_| format!("`{text}` is not a time like 2026-11-22T10:00:00Z"))?;
    u64::try_from(time.as_nanosecond()).map_err(|_| format!("`{text}` is before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_asked_for_as_records_spell_it() {
        for kind in Kind::value_variants() {
            let name = kind.to_possible_value().map(|it| it.get_name().to_owned());
            assert_eq!(name.as_deref(), Some(kind.as_str()));
        }
    }

    #[test]
    fn a_result_is_asked_for_as_records_spell_it() {
        for result in Decision::value_variants() {
            let name = result.to_possible_value().map(|it| it.get_name().to_owned());
            assert_eq!(name.as_deref(), Some(result.as_str()));
        }
    }

    #[test]
    fn times_dates_and_durations_are_read() {
        let now = 1_795_378_193_000_000_000;
        let hour = 3_600_000_000_000;
        for (text, expected) in [
            ("2026-11-22T20:09:53Z", Ok(1_795_378_193_000_000_000)),
            ("2026-03-29", Ok(1_774_738_800_000_000_000)),
            ("90m", Ok(now - hour - hour / 2)),
            ("2d", Ok(now - 48 * hour)),
            ("-2h", Err(())),
            ("2026-13-01", Err(())),
            ("yesterday", Err(())),
            ("999999d", Err(())),
        ] {
            let berlin =
                genops_governance::time::parse_zone("Europe/Berlin").unwrap_or(TimeZone::UTC);
            let read = When::parse_at(text, now).map(|it| it.unix_ns(&berlin)).map_err(|_| ());
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_reason_is_a_code_in_any_case_or_refused_with_the_nearest() {
        assert_eq!(parse_reason("budget_exceeded"), Ok("BUDGET_EXCEEDED".to_owned()));
        assert_eq!(parse_reason("X_Unread"), Ok("x_unread".to_owned()));
        let told = "there is no such code; did you mean BUDGET_EXCEEDED?".to_owned();
        assert_eq!(parse_reason("BUDGET_EXCEDED"), Err(told));
        assert!(parse_reason("nope").is_err());
    }
}
