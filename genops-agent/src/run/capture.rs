//! The capture shared by `run` and `record`: the kernel part, discovery on a thread, and one wait
//! for records, signals and deadlines.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use genops_ebpf_common::{NAP_NS, Record, Settings, loss};
use genops_governance::Mechanism;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    config::Config,
    discovery::{Discovery, Finding},
    foreign::Foreign,
    kernel::{self, Kept, Kernel, Maps, Mechanisms, Pins, Providers, pins, place::Touch},
    metrics::{Metrics, Part},
};

/// Most records handled before verdicts are written: bounds the delay of a hold by a burst.
const BATCH: usize = 256;

/// Delay of the next look at the ring buffer after records: the programs do not wake the agent for
/// each record.
const LOOK_AGAIN: Duration = Duration::from_nanos(2 * NAP_NS);

/// Most lines about uncapturable files, in [`LINES_EVERY`]; the others are counted.
const LINES_LIMIT: u32 = 10;
const LINES_EVERY: Duration = Duration::from_mins(1);

/// Reason for the end of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Records may have come, or time has passed.
    Work,
    /// The configuration was read again.
    Reload,
    /// SIGTERM or SIGINT: drain and end.
    Stop,
}

/// Purpose of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To decide: takes over, or ends, the programs left in the kernel by earlier agents.
    Govern,
    /// To observe.
    Record,
    /// Programs without work: the floor of the benchmarks.
    Floor,
}

/// A running capture.
pub(crate) struct Capture {
    pub(crate) maps: Maps,
    pub(crate) mechanisms: Mechanisms,
    pub(crate) providers: Providers,
    pub(crate) pins: Option<Arc<Pins>>,
    /// Reason why the programs end with the agent, contrary to the configuration.
    pub(crate) unkept: Option<String>,
    ring: RingBuf<MapData>,
    /// Records were read since the last wait: others may follow without a wake-up.
    drained: bool,
    started: Sender<u32>,
    stop: UnixStream,
    reload: UnixStream,
    reread: UnixStream,
    metrics: Arc<Metrics>,
}

impl Capture {
    /// Loads the programs, and starts to attach them.
    pub(crate) fn start(
        config: &Config,
        settings: Settings,
        purpose: Purpose,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let governs = purpose == Purpose::Govern;
        let (pins, unkept) = if governs { open_pins(config)? } else { (None, None) };
        let (ring_bytes, kept) = (config.capture.ring_bytes, pins.clone());
        let floor = purpose == Purpose::Floor;
        let options = kernel::Options { pins: kept, ring_bytes, floor, governs };
        let providers = Providers::new(&config.hosts);
        let loaded = Kernel::load(options, settings, &providers)?;
        let Kernel { probes, maps, ring, mechanisms, no_lineage } = loaded;
        if let Some(why) = mechanisms.why_not(Mechanism::EgressHold) {
            eprintln!("genops-agent: requests can't be held on this host, only observed: {why}");
        }
        if let Some(why) = no_lineage {
            eprintln!(
                "genops-agent: what a process starts acts for it only as long as its parent lives: {why}"
            );
        }
        let (started, programs) = channel();
        let found = Arc::clone(metrics);
        std::thread::Builder::new().name("discovery".to_owned()).spawn(move || {
            let mut said = Said::default();
            Discovery::new(probes).run(&programs, |finding| note(&found, &mut said, finding));
        })?;
        let (reload, reread) = UnixStream::pair()?;
        reload.set_nonblocking(true)?;
        Ok(Self {
            maps,
            mechanisms,
            providers,
            pins,
            unkept,
            ring,
            drained: false,
            started,
            stop: signals(&[signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?,
            reload,
            reread,
            metrics: Arc::clone(metrics),
        })
    }

    /// Returns a stream; a byte written there makes [`Self::wait`] report a configuration read
    /// again.
    pub(crate) fn reread(&self) -> std::io::Result<UnixStream> {
        self.reread.try_clone()
    }

    /// Waits for records or a signal, for `patience` at most.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<Woken> {
        let nap = if std::mem::take(&mut self.drained) { LOOK_AGAIN } else { Duration::MAX };
        let timeout = Timespec::try_from(patience.min(nap)).context("a deadline of years")?;
        let mut fds = [
            PollFd::new(&self.ring, PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.reload, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("waiting for the kernel"),
        }
        if heard(&mut self.stop) {
            return Ok(Woken::Stop);
        }
        if heard(&mut self.reload) {
            return Ok(Woken::Reload);
        }
        Ok(Woken::Work)
    }

    /// Hands over the waiting records, a batch at most; returns the number of records.
    pub(crate) fn drain(&mut self, mut handle: impl FnMut(&mut Maps, Record<'_>)) -> usize {
        let mut count = 0;
        while count < BATCH
            && let Some(record) = self.ring.next()
        {
            count += 1;
            match Record::parse(&record) {
                Ok(record) => {
                    if let Record::Exec(process, _) = record {
                        // Without a receiver the agent is about to end.
                        let _ended = self.started.send(process.tgid);
                    }
                    handle(&mut self.maps, record);
                }
                Err(_) => self.metrics.lost_malformed.increment(),
            }
        }
        self.metrics.kernel_records.add(count as u64);
        self.drained |= count > 0;
        count
    }

    /// Brings the kernel's loss counters into the metrics; returns the lost records and calls
    /// together.
    pub(crate) fn count_losses(&self) -> u64 {
        let losses = self.maps.losses();
        let of = |cause: u32| losses.get(cause as usize).copied().unwrap_or(0);
        let metrics = &self.metrics;
        metrics.lost_ring_full.observe_total(of(loss::RING_FULL_RECORDS));
        metrics.lost_unreadable.observe_total(of(loss::FAULT_BYTES));
        metrics.lost_map_full.observe_total(of(loss::CONNECTIONS_FULL) + of(loss::CALLS_FULL));
        metrics.lost_lineages.observe_total(of(loss::LINEAGES_FULL));
        metrics.lost_over_quota.observe_total(of(loss::QUOTA));
        metrics.over_message_limit_bytes.observe_total(of(loss::LIMIT_BYTES));
        of(loss::RING_FULL_RECORDS) + of(loss::CONNECTIONS_FULL) + of(loss::CALLS_FULL)
    }
}

/// Directory of pinned programs and maps, or the reason for none.
fn open_pins(config: &Config) -> Result<(Option<Arc<Pins>>, Option<String>)> {
    match pins::place_for(&config.pin_directory, config.enforces(), Touch::Make)? {
        Kept::In(directory) => Ok((Some(Arc::new(Pins::open(&directory)?)), None)),
        Kept::NotWanted => Ok((None, None)),
        Kept::Nowhere(why) => Ok((None, Some(why))),
    }
}

/// Returns a socket readable after one of the signals.
pub(crate) fn signals(signals: &[i32]) -> Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for &signal in signals {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

fn heard(pipe: &mut UnixStream) -> bool {
    matches!(pipe.read(&mut [0; 16]), Ok(1..))
}

/// Lines about files, limited because anybody can make any number of files.
#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Said {
    /// Returns the number of lines left out before, if another line may be written.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|it| now.saturating_duration_since(it) >= LINES_EVERY) {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_LIMIT {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

fn note(metrics: &Metrics, said: &mut Said, finding: Finding) {
    match finding {
        Finding::Attached => metrics.attached_files.set(metrics.attached_files.get() + 1),
        Finding::Detached => {
            metrics.attached_files.set(metrics.attached_files.get().saturating_sub(1));
        }
        Finding::Failed { path, error } => {
            metrics.attach_failures.increment();
            let Some(left_out) = said.one_more(Instant::now()) else { return };
            if left_out > 0 {
                eprintln!("genops-agent: {left_out} more files were not captured");
            }
            let (path, error) = (Foreign(path.display()), Foreign(error));
            eprintln!("genops-agent: {path}: not captured: {error}");
        }
        Finding::Ready { refused: None } => metrics.readiness.reached(Part::Probes),
        Finding::Ready { refused: Some(why) } => {
            metrics.readiness.waits(Part::Probes, Foreign(why).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_files_are_few_however_many_files_there_are() {
        let mut said = Said::default();
        let start = Instant::now();
        let lines = (0..5_000).filter(|_| said.one_more(start).is_some()).count();
        assert_eq!(lines, LINES_LIMIT as usize);
        let later = start + LINES_EVERY;
        assert_eq!(said.one_more(later), Some(5_000 - u64::from(LINES_LIMIT)));
        assert_eq!(said.one_more(later), Some(0));
    }
}
