//! The running agent: a single thread owns all state and runs the main loop.
//!
//! Each round waits for the kernel's records, feeds them to the engine, writes the decisions to
//! evidence, makes the evidence durable, and only then writes the verdicts. Printing, exporting and
//! discovery have separate threads and can't hold a verdict back.

pub(crate) mod absence;
mod agent;
mod capture;
mod contacts;
mod coverage;
mod enforcer;
mod flood;
mod lineage;
mod names;
mod pages;
mod questions;
mod repeats;
mod rewrites;
mod standing;
mod ties;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use genops_ebpf_common::{EGRESS, Record, Settings, holding};
use genops_governance::{ConnId, OnTimeout};

use crate::{
    clock,
    config::{Config, Watch},
    identity::Identities,
    kernel::holds::socket_of,
    metrics::{self, Metrics},
    record::{Facts, Recorder, Room},
    recording::Direction,
    render::Output,
    service::Service,
};
pub(crate) use pages::ReadMemory;

use agent::Agent;
use capture::{Capture, Purpose, Woken, signals};

/// Longest time of taking records before the loop's other work.
const AT_A_STRETCH: Duration = Duration::from_millis(20);
/// Longest time of taking records captured before the end.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Options of `run` beside the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Output format of AWUs.
    pub(crate) output: Output,
    /// Attach programs without any work.
    pub(crate) floor: bool,
    /// Configuration file, read again on SIGHUP and on a change.
    pub(crate) config_path: Option<PathBuf>,
    /// Reason for refusing the file, if the agent starts with another configuration.
    pub(crate) refused: Option<String>,
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) fn run(config: Config, options: Options) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = config.telemetry.metrics_listen {
        metrics::listener::start(address, Arc::clone(&metrics))?;
    }
    let purpose = if options.floor { Purpose::Floor } else { Purpose::Govern };
    let mut capture = Capture::start(&config, kernel_settings(&config), purpose, &metrics)?;
    // Without a file a SIGHUP has no effect, and ends nothing.
    let asked = signals(&[signal_hook::consts::SIGHUP])?;
    let watch = match options.config_path {
        Some(path) => Some(Watch::start(path, &config, asked, capture.reread()?)?),
        None => None,
    };
    let nice = config.capture.nice;
    if let Some(why) = &options.refused {
        // Reported before the agent is ready.
        agent::refused(&metrics, why);
    }
    let mut agent = Agent::start(config, options.output, watch, &mut capture, &metrics)?;
    if options.refused.is_none() {
        agent.keep_configuration();
    }
    agent.adopt(&mut capture.maps);
    let service = Service::start(Arc::clone(&metrics))?;
    set_priority(nice);
    loop {
        match capture.wait(agent.patience())? {
            Woken::Work => {}
            Woken::Reload => agent.reload(&mut capture.maps),
            Woken::Stop => break,
        }
        work_off(&mut agent, &mut capture, AT_A_STRETCH);
        agent.take_pages(&mut capture.maps);
        agent.tick(&mut capture);
        service.goes_on();
    }
    Service::ends();
    work_off(&mut agent, &mut capture, AT_THE_END);
    agent.finish(&mut capture);
    Ok(())
}

/// Takes the kernel's records, for at most `patience`: a program writing faster than the agent
/// reads must not delay deadlines, the heartbeat and the end.
fn work_off(agent: &mut Agent, capture: &mut Capture, patience: Duration) {
    let end = Instant::now() + patience;
    while capture.drain(|maps, record| agent.handle(maps, record)) > 0 {
        agent.settle(&mut capture.maps);
        if Instant::now() >= end {
            return;
        }
    }
}

/// Records until a signal, the time or the size ends the recording; returns the number of lines.
pub(crate) fn record(
    config: &Config,
    mut recorder: Recorder,
    duration: Option<Duration>,
) -> Result<u64> {
    let metrics = Arc::new(Metrics::default());
    let settings = Settings { holding: holding::NAMED, lineage: 0, ..kernel_settings(config) };
    let mut capture = Capture::start(config, settings, Purpose::Record, &metrics)?;
    let _deaf = signals(&[signal_hook::consts::SIGHUP])?;
    let identities = Identities::new();
    let end = duration.map(|it| Instant::now() + it);
    let mut outcome: std::io::Result<Room> = Ok(Room::Left);
    let mut ending = false;
    while !ending && matches!(outcome, Ok(Room::Left)) {
        let patience = end.map_or(Duration::from_secs(1), |end| {
            end.saturating_duration_since(Instant::now()).min(Duration::from_secs(1))
        });
        ending =
            capture.wait(patience)? == Woken::Stop || end.is_some_and(|end| Instant::now() >= end);
        // Everything captured by then is written, also at the end.
        let stretch = Instant::now() + if ending { AT_THE_END } else { AT_A_STRETCH };
        while matches!(outcome, Ok(Room::Left))
            && capture.drain(|_, record| {
                if matches!(outcome, Ok(Room::Left)) {
                    outcome = write(&mut recorder, &identities, record);
                }
            }) > 0
            && Instant::now() < stretch
        {}
    }
    outcome?;
    Ok(recorder.finish()?)
}

/// Writes a record of the kernel to the recording.
fn write(
    recorder: &mut Recorder,
    identities: &Identities,
    record: Record<'_>,
) -> std::io::Result<Room> {
    let now = clock::now();
    match record {
        Record::Data(data, payload) => {
            let direction =
                if data.direction == EGRESS { Direction::Egress } else { Direction::Ingress };
            let at = now.unix_of(data.at_mono_ns);
            return recorder.data_at(at, ConnId(data.conn), direction, data.offset, payload.0);
        }
        Record::Open(open) => {
            let process = identities.of(open.tgid);
            let facts = Facts {
                process: process.as_ref(),
                server_name: agent::server_name(&open),
                local: None,
                remote: None,
                from_start: true,
            };
            recorder.open(now.unix_of(open.at_mono_ns), ConnId(open.conn), facts)?;
        }
        Record::Join(join) => {
            let socket = socket_of(&join);
            let facts = Facts {
                process: None,
                server_name: None,
                local: Some(socket.local),
                remote: Some(socket.remote),
                from_start: true,
            };
            // A join has no time: take the time of the last captured data.
            recorder.open(recorder.latest_unix_ns(), ConnId(join.conn), facts)?;
        }
        Record::Close(close) => {
            recorder.close(now.unix_of(close.at_mono_ns), ConnId(close.conn))?;
        }
        Record::TimedOut(_)
        | Record::Unexplained(_)
        | Record::Exec(..)
        | Record::Exit(_)
        | Record::Fork(_)
        | Record::Contact(..)
        | Record::Released(_)
        | Record::Dns(..) => {}
    }
    Ok(Room::Left)
}

/// Sets the priority of the calling thread; every held request waits for it. On a busy host, an
/// ordinary thread is too slow for hundreds of concurrent clients: the clients then wait for each
/// other, and the ring buffer overflows.
fn set_priority(nice: i32) {
    // Affects only the calling thread (setpriority(2), "C library/kernel differences").
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        eprintln!(
            "genops-agent: `capture.nice` {nice}: {error}; it needs CAP_SYS_NICE. On a busy host requests may wait longer"
        );
    }
}

/// Deadline of a hold in the kernel: 90 % of the promised deadline, so that the push or the end of
/// the socket comes in time.
fn hold_deadline(config: &Config) -> Duration {
    config.hold_deadline.mul_f64(0.9)
}

/// Settings for the kernel programs.
fn kernel_settings(config: &Config) -> Settings {
    Settings {
        hold_deadline_ns: ns(hold_deadline(config)),
        call_limit: config.capture.message_limit_bytes,
        holding: if config.enforces() { holding::UNKNOWN_TOO } else { holding::NAMED },
        closed: u32::from(config.on_timeout == OnTimeout::Closed),
        lineage: u32::from(config.settings().names_principals()),
        unread_stays: u32::from(config.settings().blocks_unread()),
        unnamed: u32::from(config.settings().asks_for_names()),
        run: 0,
        alive_at_mono_ns: clock::mono_ns(),
        absent_after_ns: ns(absent_after(config)),
        pinned_for_ns: ns(config.pinned_for),
    }
}

/// Time of silence until the agent counts as absent: longer than delays of a busy machine, and
/// never within a deadline.
fn absent_after(config: &Config) -> Duration {
    (hold_deadline(config) * 2).max(Duration::from_secs(2))
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
