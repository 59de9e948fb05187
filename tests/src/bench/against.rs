//! Compares two agents in one run: the extra cost of a request with the second agent.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::agent::{Agent, Launch, program};
use crate::client::quantile;
use crate::unrelated;

use super::{ENFORCING, Peer, warm_up};

/// Least number of rounds: fewer say nothing about differences of microseconds.
const LEAST_ROUNDS: usize = 9;
/// Largest allowed extra cost of a governed request, in microseconds.
const GOVERNED_MORE_US: f64 = 10.0;

/// Costs measured for each agent, in the order of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    HoldingDurably,
    Holding,
    Ungoverned,
}

const COSTS: [Cost; 3] = [Cost::HoldingDurably, Cost::Holding, Cost::Ungoverned];

impl Cost {
    fn name(self) -> &'static str {
        match self {
            Self::HoldingDurably => "governed, evidence on disk before (default)",
            Self::Holding => "governed, evidence on disk a moment later",
            Self::Ungoverned => "not governed: a TLS server that is no AI",
        }
    }

    /// Evidence settings of the agent for the measurement.
    fn evidence(self) -> &'static str {
        match self {
            Self::HoldingDurably | Self::Ungoverned => "",
            Self::Holding => "durable_before_release: false, ",
        }
    }
}

/// Servers called, and the number of requests.
struct Peers {
    provider: Peer,
    unrelated: Peer,
    requests: usize,
}

impl Peers {
    /// Measures the p50 of requests, in microseconds.
    fn measure(&self, cost: Cost) -> anyhow::Result<f64> {
        let latencies = if cost == Cost::Ungoverned {
            let Peer { address, scratch, .. } = &self.unrelated;
            let root = scratch.join("root.pem");
            unrelated::latencies(*address, &root, warm_up(self.requests), self.requests)?
        } else {
            self.provider.client(self.requests).measure()?.latencies
        };
        Ok(quantile(&latencies, 0.5).as_secs_f64() * 1e6)
    }

    /// Measures the same p50 while `agent` enforces.
    fn measure_with(&self, agent: &Path, cost: Cost) -> anyhow::Result<f64> {
        let place = || format!("{}: {}", agent.display(), cost.name());
        let launch = Launch {
            program: Some(agent.to_owned()),
            evidence: cost.evidence(),
            ..Launch::default()
        };
        // Older agents do not know `pin_directory: none`.
        let kept = Kept(PathBuf::from(format!("/sys/fs/bpf/genops-bench-{}", std::process::id())));
        let configuration = format!("{ENFORCING}pin_directory: {}\n", kept.0.display());
        let mut agent = Agent::launch(&configuration, &launch).with_context(place)?;
        let measured = self.measure(cost).with_context(place)?;
        let losses = agent.losses()?;
        ensure!(losses.is_empty(), "{}: lost {losses:?}", place());
        agent.stop()?;
        Ok(measured)
    }
}

/// Pin directory of an agent, removed on drop: pinned programs would go on while the next agent is
/// measured.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// p50 of a round, in microseconds: without an agent, with the first agent and with the second
/// agent.
#[derive(Clone, Copy, Debug)]
struct Round {
    none: f64,
    before: f64,
    after: f64,
}

/// Alternates two agents and reports the extra cost of the second.
pub(super) struct Against {
    before: PathBuf,
    after: PathBuf,
    peers: Peers,
    rounds: usize,
}

impl Against {
    /// Compares the agent of this workspace with `other`.
    pub(super) fn new(other: &Path, requests: usize, rounds: usize) -> anyhow::Result<Self> {
        let before = other.canonicalize().with_context(|| format!("{}", other.display()))?;
        let after = program()?.canonicalize()?;
        let (provider, unrelated) = (Peer::start("provider", &[])?, Peer::start("unrelated", &[])?);
        Ok(Self { before, after, peers: Peers { provider, unrelated, requests }, rounds })
    }

    /// Measures all costs and returns the table.
    pub(super) fn run(&self) -> anyhow::Result<String> {
        let rows = COSTS.map(|cost| self.row(cost));
        let rows: Vec<_> = rows.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(format!(
            "| p50 of a request | no agent | with {} | with {} | difference (median of pairs) | middle half | allowed |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n{}",
            self.before.display(),
            self.after.display(),
            rows.concat()
        ))
    }

    fn row(&self, cost: Cost) -> anyhow::Result<String> {
        let rounds = (0..self.rounds).map(|number| self.round(cost, number));
        let rounds: Vec<_> = rounds.collect::<anyhow::Result<_>>()?;
        let of = |value: fn(&Round) -> f64| Spread::new(rounds.iter().map(value));
        let difference = of(|it| it.after - it.before);
        let [none, before, after] = [of(|it| it.none), of(|it| it.before), of(|it| it.after)];
        let allowed = match cost {
            Cost::Ungoverned => "as before".to_owned(),
            _ if difference.median <= GOVERNED_MORE_US => format!("{GOVERNED_MORE_US} µs: holds"),
            _ => format!("{GOVERNED_MORE_US} µs: missed"),
        };
        Ok(format!(
            "| {} | {:.1} µs | {:.1} µs | {:.1} µs | {:+.1} µs | {difference} | {allowed} |\n",
            cost.name(),
            none.median,
            before.median,
            after.median,
            difference.median
        ))
    }

    /// Measures a round. The agent measured first in a round is measured second in the next.
    fn round(&self, cost: Cost, number: usize) -> anyhow::Result<Round> {
        let none = self.peers.measure(cost)?;
        let with = |agent: &Path| self.peers.measure_with(agent, cost);
        let (before, after) = if number.is_multiple_of(2) {
            let before = with(&self.before)?;
            (before, with(&self.after)?)
        } else {
            let after = with(&self.after)?;
            (with(&self.before)?, after)
        };
        Ok(Round { none, before, after })
    }
}

/// Returns the number of rounds to run: `asked`, or `LEAST_ROUNDS` if more.
pub(super) fn rounds(asked: usize) -> usize {
    asked.max(LEAST_ROUNDS)
}

/// Describes the method of measurement for readers of the table.
pub(super) fn method(requests: usize, rounds: usize) -> String {
    format!(
        "two agents in turn, each started anew, in {rounds} rounds of {requests} requests after {} to warm up; whoever comes \
         first in one round comes second in the next, and without an agent comes before both; a governed request is a chat \
         completion of 0.4 kB by a client of OpenSSL (HTTP/1.1 keep-alive) to a rustls provider in another process on \
         loopback, from SSL_write to the answer's last byte; a request that is not governed is a GET to a server of OpenSSL \
         that is no AI, by a client without probes; each round gives the p50 of each, and the difference is the median of \
         the differences within rounds, beside the middle half of them",
        warm_up(requests)
    )
}

/// Median and middle half of the values of all rounds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    lower: f64,
    upper: f64,
}

impl Spread {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let index = (sorted.len().saturating_sub(1) * quarters + 2) / 4;
            sorted.get(index).copied().unwrap_or_default()
        };
        Self { median: at(2), lower: at(1), upper: at(3) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.1} to {:+.1} µs", self.lower, self.upper)
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    fn check(values: &[f64], expected: &str) {
        let spread = Spread::new(values.iter().copied());
        assert_eq!(format!("{:+.1}, {spread}", spread.median), expected);
    }

    #[test]
    fn a_spread_is_its_median_and_its_middle_half() {
        check(&[3.0], "+3.0, +3.0 to +3.0 µs");
        check(&[9.0, -4.0, 1.0, 2.0, 100.0], "+2.0, +1.0 to +9.0 µs");
        check(&[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, -70.0], "+4.0, +2.0 to +6.0 µs");
    }
}
