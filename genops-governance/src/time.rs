//! Time as an argument: the readings of the caller's clocks, and the calendar periods of budgets.
//!
//! The module reads no clock. Time zones come from the compiled-in database, so that the same input
//! gives the same period on every host.

use jiff::{Span, Timestamp, ToSpan as _, Zoned, tz::TimeZone};
use serde::Deserialize;

/// The caller's two clocks at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a clock without steps; the caller chooses the origin.
    pub mono_ns: u64,
    /// Nanoseconds since 1970-01-01 UTC. May step, also backwards.
    pub unix_ns: u64,
}

impl Now {
    /// Returns the wall-clock time of a monotonic time near `self`.
    #[must_use]
    pub fn unix_of(self, mono_ns: u64) -> u64 {
        if mono_ns <= self.mono_ns {
            self.unix_ns.saturating_sub(self.mono_ns - mono_ns)
        } else {
            self.unix_ns.saturating_add(mono_ns - self.mono_ns)
        }
    }
}

/// Period of a budget, given by the moment of the reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// At each full hour.
    Hour,
    /// At midnight.
    Day,
    /// At midnight before Monday (ISO 8601).
    Week,
    /// At midnight before the first of the month.
    Month,
    /// Never.
    Total,
}

impl Period {
    /// Returns the name used in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// Returns the period containing `unix_ns`, as counted in `zone`.
    ///
    /// A time beyond the calendar (after the year 9999) lies in the total period.
    #[must_use]
    pub fn at(self, unix_ns: u64, zone: &TimeZone) -> Window {
        self.window(unix_ns, zone).unwrap_or(Window { start_s: 0, end_s: i64::MAX, of: self })
    }

    fn window(self, unix_ns: u64, zone: &TimeZone) -> Option<Window> {
        let now = Timestamp::from_nanosecond(i128::from(unix_ns)).ok()?.to_zoned(zone.clone());
        let day = || now.start_of_day().ok();
        let (start, length): (Zoned, Span) = match self {
            Self::Total => return None,
            Self::Hour => {
                // Whole hours of the wall clock, also in zones with an offset of half an hour.
                let into = i64::from(now.minute()) * 60 + i64::from(now.second());
                let start_s = now.timestamp().as_second() - into;
                return Some(Window { start_s, end_s: start_s + 3600, of: self });
            }
            Self::Day => (day()?, 1.day()),
            Self::Week => {
                let back = i64::from(now.weekday().to_monday_zero_offset());
                let monday = now.checked_sub(back.days()).ok()?;
                (monday.start_of_day().ok()?, 1.week())
            }
            Self::Month => (now.first_of_month().ok()?.start_of_day().ok()?, 1.month()),
        };
        let end = start.checked_add(length).ok()?;
        Some(Window {
            start_s: start.timestamp().as_second(),
            end_s: end.timestamp().as_second(),
            of: self,
        })
    }
}

/// A period of a budget: from `start_s` until just before `end_s`, in seconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First second of the period.
    pub start_s: i64,
    /// First second after the period; `i64::MAX` if the period never ends.
    pub end_s: i64,
    of: Period,
}

impl Window {
    /// Returns the period's name in telemetry: `2026-11-22T14`, `2026-11-22`, `2026-W47`,
    /// `2026-11`, `total`.
    #[must_use]
    pub fn label(&self, zone: &TimeZone) -> String {
        let format = match self.of {
            Period::Hour => "%Y-%m-%dT%H",
            Period::Day => "%Y-%m-%d",
            Period::Week => "%G-W%V",
            Period::Month => "%Y-%m",
            Period::Total => return "total".to_owned(),
        };
        let Ok(start) = Timestamp::from_second(self.start_s) else { return "total".to_owned() };
        start.to_zoned(zone.clone()).strftime(format).to_string()
    }
}

/// Parses an RFC 3339 moment (`2027-01-01T00:00:00Z`) to nanoseconds since 1970.
///
/// # Errors
///
/// A sentence with an example of a moment.
pub fn parse_moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a moment like 2027-01-01T00:00:00Z");
    let moment: Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(moment.as_nanosecond()).map_err(|_| wrong())
}

/// Formats a moment as RFC 3339, in UTC, to the second.
#[must_use]
pub fn format_moment(unix_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(unix_ns)).map_or_else(
        |_| "beyond the calendar".to_owned(),
        |it| it.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

/// Parses a time zone: an IANA name, for example `Europe/Berlin`, or `UTC`.
///
/// # Errors
///
/// A sentence with examples of valid names.
pub fn parse_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name)
        .map_err(|_| format!("`{name}` is not a time zone like UTC or Europe/Berlin"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panic")]
    #![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(moment: &str, zone: &str, expected: &Expect) {
        let (unix_ns, zone) = (parse_moment(moment).unwrap(), parse_zone(zone).unwrap());
        let mut rendered = String::new();
        for period in [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Total] {
            let window = period.at(unix_ns, &zone);
            let inside = i128::from(window.start_s) * 1_000_000_000 <= i128::from(unix_ns)
                && i128::from(unix_ns) < i128::from(window.end_s) * 1_000_000_000;
            assert!(inside, "{window:?}");
            let hours = match period {
                Period::Total => String::new(),
                _ => format!(" of {} h", (window.end_s - window.start_s) / 3_600),
            };
            writeln!(rendered, "{}{hours}", window.label(&zone)).unwrap();
        }
        expected.assert_eq(&rendered);
    }

    #[test]
    fn periods_begin_where_the_calendar_says() {
        check(
            "2026-11-22T23:59:59Z",
            "UTC",
            &expect![[r#"
            2026-11-22T23 of 1 h
            2026-11-22 of 24 h
            2026-W47 of 168 h
            2026-11 of 720 h
            total
        "#]],
        );
        // Monday has begun in Berlin.
        check(
            "2026-11-22T23:30:00Z",
            "Europe/Berlin",
            &expect![[r#"
            2026-11-23T00 of 1 h
            2026-11-23 of 24 h
            2026-W48 of 168 h
            2026-11 of 720 h
            total
        "#]],
        );
    }

    #[test]
    fn a_day_on_which_the_clocks_change_has_another_length() {
        check(
            "2026-10-25T12:00:00Z",
            "Europe/Berlin",
            &expect![[r#"
            2026-10-25T13 of 1 h
            2026-10-25 of 25 h
            2026-W43 of 169 h
            2026-10 of 745 h
            total
        "#]],
        );
        check(
            "2026-03-29T12:00:00Z",
            "Europe/Berlin",
            &expect![[r#"
            2026-03-29T14 of 1 h
            2026-03-29 of 23 h
            2026-W13 of 167 h
            2026-03 of 743 h
            total
        "#]],
        );
    }

    #[test]
    fn an_offset_of_half_an_hour_moves_the_hours() {
        check(
            "2026-11-22T10:15:00Z",
            "Asia/Kolkata",
            &expect![[r#"
            2026-11-22T15 of 1 h
            2026-11-22 of 24 h
            2026-W47 of 168 h
            2026-11 of 720 h
            total
        "#]],
        );
    }

    #[test]
    fn the_first_nanosecond_has_its_periods_too() {
        check(
            "1970-01-01T00:00:00Z",
            "UTC",
            &expect![[r#"
            1970-01-01T00 of 1 h
            1970-01-01 of 24 h
            1970-W01 of 168 h
            1970-01 of 744 h
            total
        "#]],
        );
    }

    #[test]
    fn what_is_no_moment_is_said() {
        expect!["`tomorrow` is not a moment like 2027-01-01T00:00:00Z"]
            .assert_eq(&parse_moment("tomorrow").unwrap_err());
        expect!["`1969-12-31T00:00:00Z` is not a moment like 2027-01-01T00:00:00Z"]
            .assert_eq(&parse_moment("1969-12-31T00:00:00Z").unwrap_err());
    }
}
