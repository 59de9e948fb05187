//! Sums the calls by group.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::table::{Cell, Column, Kind};
use super::units::{Basis, State, Unit};

/// Property for grouping calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Dimension {
    Team,
    Project,
    #[value(alias = "cost_center")]
    CostCenter,
    #[value(alias = "customer_id", alias = "customer-id")]
    Customer,
    Feature,
    Principal,
    User,
    Provider,
    /// The requested model.
    Model,
    /// The day in the time zone of the report.
    Day,
}

impl Dimension {
    /// Returns the name of the column.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Team => "team",
            Self::Project => "project",
            Self::CostCenter => "cost_center",
            Self::Customer => "customer_id",
            Self::Feature => "feature",
            Self::Principal => "principal",
            Self::User => "user",
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Day => "day",
        }
    }

    fn of(self, unit: &Unit, zone: &TimeZone) -> Option<String> {
        let labels = &unit.labels;
        match self {
            Self::Team => labels.team.clone(),
            Self::Project => labels.project.clone(),
            Self::CostCenter => labels.cost_center.clone(),
            Self::Customer => labels.customer.clone(),
            Self::Feature => labels.feature.clone(),
            Self::Principal => labels.principal.clone(),
            Self::User => labels.user.clone(),
            Self::Provider => labels.provider.clone(),
            Self::Model => labels.model.clone(),
            Self::Day => Some(day(unit.at, zone)),
        }
    }
}

/// Returns the day of a moment, in a time zone.
pub(super) fn day(unix_ns: u64, zone: &TimeZone) -> String {
    let time = Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or_default();
    time.to_zoned(zone.clone()).date().to_string()
}

/// Sums of calls. Amounts are nano-USD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Calls run, or possibly running.
    pub(super) calls: u64,
    pub(super) reported: i64,
    pub(super) estimated: i64,
    /// Charged in full, at the amount of the reservation.
    pub(super) reserved: i64,
    /// Charged by records without a basis of the amount.
    pub(super) unrecorded: i64,
    /// Calls neither settled nor released; `pending`: amount of their reservations.
    pub(super) open: u64,
    pub(super) pending: i64,
    /// Refused calls; `stopped`: amount of the reservations never made.
    pub(super) blocked: u64,
    pub(super) stopped: i64,
    pub(super) released: u64,
    /// Calls sent despite a recorded refusal.
    pub(super) breached: u64,
    pub(super) undecided: u64,
    /// Refused calls without a known amount.
    pub(super) unvalued: u64,
    /// Calls run, or possibly running, without a known amount in USD.
    pub(super) unpriced: u64,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cached: u64,
    /// Calls run without a count of tokens.
    pub(super) uncounted: u64,
}

impl Sums {
    /// Returns the charged amount, on any basis.
    pub(super) fn actual(&self) -> i64 {
        let Self { reported, estimated, reserved, unrecorded, .. } = *self;
        [estimated, reserved, unrecorded].into_iter().fold(reported, i64::saturating_add)
    }

    pub(super) fn add(&mut self, unit: &Unit) {
        let times = unit.times();
        match unit.state {
            State::Settled => {
                self.calls += times;
                self.settled(unit, times);
            }
            State::Open => {
                self.calls += times;
                self.open += times;
                let reserved = unit.reserved.or(unit.wanted);
                self.unpriced += if reserved.is_none() { times } else { 0 };
                grow(&mut self.pending, reserved);
            }
            State::Refused => {
                self.blocked += times;
                self.unvalued += if unit.wanted.is_none() { times } else { 0 };
                grow(&mut self.stopped, unit.wanted);
            }
            State::Released => self.released += times,
            State::Breached => {
                self.calls += times;
                self.breached += times;
                self.unpriced += times;
                self.uncounted += times;
            }
            State::Undecided => self.undecided += times,
        }
    }

    fn settled(&mut self, unit: &Unit, times: u64) {
        let sum = match unit.basis {
            Basis::Reported => &mut self.reported,
            Basis::Estimated => &mut self.estimated,
            Basis::Reserved => &mut self.reserved,
            Basis::Unrecorded => &mut self.unrecorded,
        };
        grow(sum, unit.actual);
        if unit.actual.is_none() {
            self.unpriced += times;
        }
        if unit.input.is_none() && unit.output.is_none() {
            self.uncounted += times;
        }
        for (sum, count) in [
            (&mut self.input, unit.input),
            (&mut self.output, unit.output),
            (&mut self.cached, unit.cached),
        ] {
            *sum = sum.saturating_add(count.unwrap_or(0));
        }
    }

    /// Columns of [`Sums::cells`].
    pub(super) const COLUMNS: [Column; 17] = [
        Column::new("calls", Kind::Count),
        Column::new("actual_usd", Kind::Usd),
        Column::optional("reported_usd", Kind::Usd),
        Column::optional("estimated_usd", Kind::Usd),
        Column::optional("charged_as_reserved_usd", Kind::Usd),
        Column::optional("unknown_basis_usd", Kind::Usd),
        Column::optional("open", Kind::Count),
        Column::optional("open_reserved_usd", Kind::Usd),
        Column::optional("blocked", Kind::Count),
        Column::optional("blocked_usd", Kind::Usd),
        Column::optional("never_ran", Kind::Count),
        Column::optional("undecided", Kind::Count),
        Column::optional("without_usd", Kind::Count),
        Column::new("input_tokens", Kind::Count),
        Column::new("output_tokens", Kind::Count),
        Column::optional("cached_tokens", Kind::Count),
        Column::optional("without_tokens", Kind::Count),
    ];

    pub(super) fn cells(&self) -> [Cell; 17] {
        let count = |it: u64| Cell::Count(it.into());
        // A sum of unknown amounts only is absent, not zero.
        let sum = |amount: i64, of: u64, unknown: u64| {
            if of > 0 && unknown == of { Cell::Absent } else { Cell::Usd(amount) }
        };
        [
            count(self.calls),
            sum(self.actual(), self.calls, self.unpriced),
            Cell::Usd(self.reported),
            Cell::Usd(self.estimated),
            Cell::Usd(self.reserved),
            Cell::Usd(self.unrecorded),
            count(self.open),
            Cell::Usd(self.pending),
            count(self.blocked),
            sum(self.stopped, self.blocked, self.unvalued),
            count(self.released),
            count(self.undecided),
            count(self.unpriced),
            count(self.input),
            count(self.output),
            count(self.cached),
            count(self.uncounted),
        ]
    }
}

fn grow(sum: &mut i64, by: Option<i64>) {
    *sum = sum.saturating_add(by.unwrap_or(0));
}

/// A group: values in the order of the dimensions, and sums of its calls.
pub(super) type Group = (Vec<Option<String>>, Sums);

/// Returns the groups and the sum of all: by day if days are requested, otherwise the most
/// expensive group first.
pub(super) fn groups(units: &[Unit], by: &[Dimension], zone: &TimeZone) -> (Vec<Group>, Sums) {
    let mut groups: BTreeMap<Vec<Option<String>>, Sums> = BTreeMap::new();
    let mut total = Sums::default();
    for unit in units {
        let key = by.iter().map(|it| it.of(unit, zone)).collect();
        groups.entry(key).or_default().add(unit);
        total.add(unit);
    }
    let mut groups: Vec<Group> = groups.into_iter().collect();
    if !by.contains(&Dimension::Day) {
        groups.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.actual()));
    }
    (groups, total)
}
