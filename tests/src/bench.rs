//! Measures the agent beside its floors, in one run, and prints tables for docs/benchmarks.md.
//!
//! Latency and CPU time are measured with a keep-alive client over TLS on loopback, in five
//! set-ups: no agent; the same probes with empty programs; the agent observing; the agent holding
//! each request until the verdict, with the evidence written to disk after the verdict and before
//! it. The set-ups take turns, so that a busy machine slows all of them alike.

mod against;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::agent::{Agent, Launch, free_address};
use crate::client::{Client, quantile};
use crate::scratch::Scratch;
use crate::unrelated;

use self::against::Against;

/// Processes on the host while the start is measured.
const BYSTANDERS: usize = 200;
/// Connections open while memory is measured.
const CONNECTIONS: usize = 1_000;
/// Configuration enforcing for every process; the requests of the benchmark are allowed.
const ENFORCING: &str = "mode: enforce\non_timeout: open\nhold_deadline_ms: 1000\npolicies:\n  \
                         - {name: bench, allowed_models: [\"gpt-4o-mini*\"], denied_models: [\"*-pro\"], enforcement: block}\n";
/// Average time of an answer of the slow provider, in milliseconds: about the time of a short
/// answer of a small model.
const THINK_MS: &str = "500";
/// Requests at the same time, one connection each.
const CONCURRENT: [usize; 3] = [1, 100, 1_000];
/// Requests at the same time with the slow provider; a single connection would take minutes.
const CONCURRENT_THINKING: [usize; 2] = [100, 1_000];

/// Measure the agent beside its floors.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Requests of each set-up in each round.
    #[arg(long, default_value_t = 3_000)]
    requests: usize,
    /// Rounds, each with a turn of every set-up.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Alternate with the agent at PATH and report only the extra cost of a request over that
    /// agent; at least 9 rounds.
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Run as small as possible, to check the benchmark itself.
    #[arg(long)]
    tiny: bool,
}

/// Set-up of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    NoAgent,
    Floor,
    Observing,
    Holding,
    HoldingDurably,
}

const SETUPS: [Setup; 5] =
    [Setup::NoAgent, Setup::Floor, Setup::Observing, Setup::Holding, Setup::HoldingDurably];

/// Measurements of a set-up, over all rounds.
#[derive(Debug, Default)]
struct Sample {
    latencies: Vec<Duration>,
    /// CPU time per request, in nanoseconds; a value for each round.
    client_cpu_ns: Vec<u64>,
    agent_cpu_ns: Vec<u64>,
}

impl Bench {
    /// Runs all measurements and prints the tables.
    pub fn run(&self) -> anyhow::Result<()> {
        let (requests, rounds) = if self.tiny { (50, 1) } else { (self.requests, self.rounds) };
        if let Some(other) = &self.against {
            let rounds = if self.tiny { 2 } else { against::rounds(rounds) };
            let mut out = std::io::stdout();
            writeln!(out, "method: {}\n", against::method(requests, rounds))?;
            return Ok(writeln!(out, "{}", Against::new(other, requests, rounds)?.run()?)?);
        }
        let peer = Peer::start("provider", &[])?;
        let mut out = std::io::stdout();
        writeln!(out, "method: {}", method(requests, rounds))?;
        let mut samples = SETUPS.map(|setup| (setup, Sample::default()));
        for _ in 0..rounds {
            for (setup, sample) in &mut samples {
                sample.add(*setup, &peer.client(requests))?;
            }
        }
        writeln!(out, "\n{}", latency_table(&mut samples))?;
        writeln!(out, "{}", self.concurrent(&peer, &CONCURRENT)?)?;
        let thinking = Peer::start("provider", &["--think-ms", THINK_MS])?;
        let what = "The same with a provider that takes its time";
        writeln!(out, "{what}, {THINK_MS} ms on average, which is not counted:\n")?;
        writeln!(out, "{}", self.concurrent(&thinking, &CONCURRENT_THINKING)?)?;
        drop(thinking);
        writeln!(out, "{}", self.denied(&peer)?)?;
        writeln!(out, "{}", self.unrelated(rounds)?)?;
        writeln!(out, "{}", memory_and_start(&peer, if self.tiny { 20 } else { CONNECTIONS })?)?;
        Ok(())
    }
}

impl Bench {
    /// Measures the latency with and without the hold, with each of `counts` requests at a time.
    fn concurrent(&self, peer: &Peer, counts: &[usize]) -> anyhow::Result<String> {
        let total = if self.tiny { 20 } else { self.requests };
        let mut rows = vec![
            "| requests at a time | not held p50 | p99 | held and released p50 | p99 |".to_owned(),
            "| --- | --- | --- | --- | --- |".to_owned(),
        ];
        for &count in counts.iter().take(counts.len() - usize::from(self.tiny)) {
            let client = peer.client((total / count).max(3));
            let free = at_once(&client, count)?;
            let agent = Agent::start(ENFORCING)?;
            let held = at_once(&client, count)?;
            ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
            let [a, b, c, d] = [(&free, 0.5), (&free, 0.99), (&held, 0.5), (&held, 0.99)]
                .map(|(sorted, share)| quantile(sorted, share).as_secs_f64() * 1e3);
            rows.push(format!("| {count} | {a:.2} ms | {b:.2} ms | {c:.2} ms | {d:.2} ms |"));
        }
        Ok(rows.join("\n") + "\n")
    }

    /// Measures the time until a denied client knows.
    fn denied(&self, peer: &Peer) -> anyhow::Result<String> {
        let agent = Agent::start(ENFORCING)?;
        let requests = if self.tiny { 5 } else { (self.requests / 10).max(5) };
        let denied = peer.client(requests).attempts(1)?;
        drop(agent);
        ensure!(denied.iter().all(|attempt| !attempt.answered), "a denied request was answered");
        let mut took: Vec<_> =
            denied.iter().map(|attempt| Duration::from_secs_f64(attempt.seconds)).collect();
        took.sort_unstable();
        let [p50, p99] = [0.5, 0.99].map(|share| quantile(&took, share).as_secs_f64() * 1e3);
        Ok(format!("A denied client knows after {p50:.2} ms (p50), {p99:.2} ms (p99).\n"))
    }

    /// Measures the requests per second of a TLS server without AI, with and without an enforcing
    /// agent.
    fn unrelated(&self, rounds: usize) -> anyhow::Result<String> {
        let peer = Peer::start("unrelated", &[])?;
        let requests =
            if self.tiny { 50 } else { u32::try_from(self.requests)?.saturating_mul(10) };
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (with_agent, rates) in [false, true].into_iter().zip(&mut rates) {
                let agent = with_agent.then(|| Agent::start(ENFORCING)).transpose()?;
                rates.push(unrelated::rate(
                    peer.address,
                    &peer.scratch.join("root.pem"),
                    requests,
                )?);
                drop(agent);
            }
        }
        let [without, with] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates.get(rates.len() / 2).copied().unwrap_or_default()
        });
        Ok(format!(
            "An unrelated TLS server (libssl, keep-alive, 1 KiB answers that cost it nothing else) serves {without:.0} \
             requests a second to one client without probes while there is no agent, and {with:.0} with it: {:.3} of it.\n",
            with / without
        ))
    }
}

/// Returns the sorted latencies of `count` clients measuring at the same time.
fn at_once(client: &Client, count: usize) -> anyhow::Result<Vec<Duration>> {
    let measured: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(|| client.measure())).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut all = Vec::new();
    for result in measured {
        all.extend(result.ok().context("a measuring thread panicked")??.latencies);
    }
    all.sort_unstable();
    Ok(all)
}

fn method(requests: usize, rounds: usize) -> String {
    format!(
        "one client (OpenSSL, HTTP/1.1 keep-alive, one connection a round) posts a chat completion of 0.4 kB to a \
         rustls provider in another process on loopback and reads the answer of 0.9 kB; {requests} requests after \
         {} to warm up, in each of {rounds} rounds in which the set-ups take turns; latency is from SSL_write to \
         the answer's last byte, over all rounds; CPU time is that of the client's and the agent's threads, \
         median of the rounds; \"floor\" attaches empty programs to the same places",
        warm_up(requests)
    )
}

fn warm_up(requests: usize) -> usize {
    requests / 10 + 10
}

impl Setup {
    fn name(self) -> &'static str {
        match self {
            Self::NoAgent => "no agent",
            Self::Floor => "floor: the same probes, empty programs",
            Self::Observing => "observing",
            Self::Holding => "held and released, evidence on disk a moment later",
            Self::HoldingDurably => "held and released, evidence on disk before (default)",
        }
    }

    fn agent(self) -> anyhow::Result<Option<Agent>> {
        let agent = match self {
            Self::NoAgent => return Ok(None),
            Self::Floor => Agent::launch(
                "mode: observe",
                &Launch { arguments: vec!["--floor".into()], ..Launch::default() },
            ),
            Self::Observing => Agent::start("mode: observe"),
            Self::Holding => Agent::launch(
                ENFORCING,
                &Launch { evidence: "durable_before_release: false, ", ..Launch::default() },
            ),
            Self::HoldingDurably => Agent::start(ENFORCING),
        };
        Ok(Some(agent.context(self.name())?))
    }
}

impl Sample {
    fn add(&mut self, setup: Setup, client: &Client) -> anyhow::Result<()> {
        let agent = setup.agent()?;
        let before = agent.as_ref().map(Agent::cpu_ns).transpose()?.unwrap_or(0);
        let measured = client.measure().context(setup.name())?;
        let after = agent.as_ref().map(Agent::cpu_ns).transpose()?.unwrap_or(0);
        let requests = client.requests + client.warm_up;
        self.latencies.extend(&measured.latencies);
        self.client_cpu_ns.push(measured.cpu_ns);
        self.agent_cpu_ns.push((after - before) / u64::try_from(requests)?);
        if let Some(mut agent) = agent
            && setup != Setup::Floor
        {
            let mine = u64::from(std::process::id());
            let of_mine = |awu: &serde_json::Value| {
                awu.get("process.pid").and_then(serde_json::Value::as_u64) == Some(mine)
            };
            agent.wait_for(requests, Duration::from_secs(10), of_mine)?;
            let losses = agent.losses()?;
            ensure!(losses.is_empty(), "{}: lost {losses:?}", setup.name());
            agent.stop()?;
        }
        Ok(())
    }
}

fn latency_table(samples: &mut [(Setup, Sample)]) -> String {
    let mut rows = vec![
        "| set-up | p50 | p99 | added p50 | added p99 | client CPU a request | agent CPU a request |".to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    let mut base = None;
    for (setup, sample) in samples {
        sample.latencies.sort_unstable();
        let [p50, p99] =
            [0.5, 0.99].map(|share| quantile(&sample.latencies, share).as_secs_f64() * 1e6);
        let (base_p50, base_p99) = *base.get_or_insert((p50, p99));
        let [client, agent] =
            [&sample.client_cpu_ns, &sample.agent_cpu_ns].map(|cpu| median_us(cpu));
        let [added_p50, added_p99] = [p50 - base_p50, p99 - base_p99];
        let name = setup.name();
        rows.push(format!(
            "| {name} | {p50:.0} µs | {p99:.0} µs | {added_p50:.0} µs | {added_p99:.0} µs \
             | {client:.0} µs | {agent:.0} µs |"
        ));
    }
    rows.join("\n") + "\n"
}

fn median_us(samples: &[u64]) -> f64 {
    let mut sorted: Vec<_> = samples.iter().copied().map(Duration::from_nanos).collect();
    sorted.sort_unstable();
    quantile(&sorted, 0.5).as_secs_f64() * 1e6
}

fn memory_and_start(peer: &Peer, connections: usize) -> anyhow::Result<String> {
    let mut agent = Agent::start("mode: observe")?;
    let idle_kib = agent.resident_kib()?;
    let mut client = peer.client_process(connections)?;
    let reported = agent.wait_for(connections, Duration::from_mins(1), |_| true)?;
    let busy_kib = agent.resident_kib()?;
    client.kill()?;
    client.wait()?;
    agent.stop()?;
    let bystanders = Bystanders::start()?;
    let mut ready = Vec::new();
    for _ in 0..3 {
        ready.push(Agent::start("mode: observe")?.ready_after);
    }
    drop(bystanders);
    ready.sort_unstable();
    Ok(format!(
        "| | measured |\n| --- | --- |\n| resident memory, idle | {:.1} MiB |\n\
         | resident memory, {connections} open connections ({} calls reported) | {:.1} MiB |\n\
         | start to ready, {BYSTANDERS} processes on the host (median of 3) | {:.2} s |\n",
        mib(idle_kib),
        reported.len(),
        mib(busy_kib),
        quantile(&ready, 0.5).as_secs_f64(),
    ))
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

/// Server in a process of its own.
struct Peer {
    child: Child,
    scratch: Scratch,
    address: SocketAddr,
}

impl Peer {
    /// Starts a server of `genops-tests` with the given command and options.
    fn start(command: &str, options: &[&str]) -> anyhow::Result<Self> {
        let scratch = Scratch::new("bench")?;
        let address = free_address()?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([command, "--listen", &address.to_string(), "--root"])
            .arg(scratch.join("root.pem"))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("the provider's output is a pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("listening"), "the provider did not start");
        Ok(Self { child, scratch, address })
    }

    fn client(&self, requests: usize) -> Client {
        Client {
            address: self.address,
            name: "api.openai.com".to_owned(),
            root: self.scratch.join("root.pem"),
            requests,
            rate: None,
            stream_every: None,
            warm_up: warm_up(requests),
            connections: None,
            model: "gpt-4o-mini".to_owned(),
            deny_every: None,
        }
    }

    fn client_process(&self, connections: usize) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["client", "--address", &self.address.to_string(), "--root"])
            .arg(self.scratch.join("root.pem"));
        command.args(["--connections", &connections.to_string()]);
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Idle processes mapping `libssl`.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn start() -> anyhow::Result<Self> {
        let mut all = Self(Vec::new());
        for _ in 0..BYSTANDERS {
            let mut command = Command::new(std::env::current_exe()?);
            let mut child =
                command.arg("idle").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let stdout = child.stdout.take().context("a pipe")?;
            all.0.push(child);
            BufReader::new(stdout).read_line(&mut String::new())?;
        }
        Ok(all)
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        eprintln!("process {}: {error}", child.id());
    }
}
