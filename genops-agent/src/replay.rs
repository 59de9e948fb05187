//! `replay`: feeds a recording to the same engine as `run`, with no kernel and no privilege.
//!
//! The recorded times are the clock and the identities come from a fixed seed, so that the same
//! recording and configuration always give the same AWUs. As in a run, a refusal ends the
//! connection: the rest of the connection's recording is not read.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;

use anyhow::Context as _;
use genops_governance::{
    ConnId, ConnectionOpen, ConnectionUpdate, Engine, HoldLevel, Ledger, Mechanism, Mode, Now,
    Output, ProcessKey,
};
use genops_protocols::Direction;

use crate::cli::{self, ConfigFile, Failure, Printed};
use crate::config::Config;
use crate::recording::{self, Event, Kind, Open, Reader, RecordingError};
use crate::render::{self, Renderer};

/// Seed of identities in a replay: the same each time, unlike any run's.
const SEED: [u8; 32] = *b"genops-agent replay: fixed seed.";

/// Run the pipeline over a recording, without a kernel and without privilege
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: genops-agent replay calls.jsonl --config agent.yaml --output json\n\n\
    Prints one AI Workload Unit a line. The recording's times are the clock; a connection counts \
    as held where the recording says so, or, where it says nothing, where the configuration \
    enforces."
)]
pub(crate) struct Replay {
    /// Recording to read, made by `record`; `-` is the standard input.
    #[arg(value_name = "FILE")]
    recording: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// How to print the AWUs.
    #[arg(long, value_enum, default_value_t = render::Output::Table)]
    output: render::Output,
}

impl Replay {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { recording, config, output } = self;
        let config = Config::load_or_default(config.path.as_deref())?;
        let name = recording.display().to_string();
        let events = Reader::open(&recording).with_context(|| name.clone());
        let events = events.map_err(Failure::unreadable)?;
        let mut renderer = Renderer::stdout(output);
        let mut fault = None;
        let printed = cli::print(|out| {
            let mut replayer = Replayer::new(&config, |output| match output {
                Output::Awu(awu) => renderer.write(awu, out),
                Output::Release { .. }
                | Output::Deny { .. }
                | Output::Check { .. }
                | Output::Ledger(_)
                | Output::Record(_) => Ok(()),
            });
            match replayer.replay(events) {
                Ok(()) => Ok(()),
                Err(ReplayError::Output(error)) => Err(error),
                Err(ReplayError::Recording(error)) => {
                    fault = Some(error);
                    Ok(())
                }
            }
        })?;
        match fault {
            Some(error) if printed == Printed::All => {
                Err(Failure::unreadable(anyhow::Error::new(error).context(name)))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Reason for an early end of a replay.
#[derive(Debug)]
pub(crate) enum ReplayError {
    /// The recording is invalid. AWUs completed before the fault have been reported.
    Recording(RecordingError),
    /// The AWUs could not be passed on.
    Output(std::io::Error),
}

/// Feeds a recording to an engine and passes the outputs on.
pub(crate) struct Replayer<F> {
    engine: Engine,
    enforces: bool,
    /// Open connections, by name in the recording.
    open: HashMap<String, Connection>,
    /// Connections seen so far.
    count: u64,
    /// The latest time seen.
    now_ns: u64,
    sink: F,
}

struct Connection {
    id: ConnId,
    /// The connection was refused: the rest is not read.
    denied: bool,
}

impl<F> std::fmt::Debug for Replayer<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").field("now_ns", &self.now_ns).finish_non_exhaustive()
    }
}

impl<F: FnMut(&Output) -> std::io::Result<()>> Replayer<F> {
    /// Returns a replayer on `config`, with empty accounts.
    pub(crate) fn new(config: &Config, sink: F) -> Self {
        Self {
            engine: Engine::new(config.settings(), Ledger::new(), SEED),
            enforces: config.enforces(),
            open: HashMap::new(),
            count: 0,
            now_ns: 0,
            sink,
        }
    }

    /// Feeds all events in order, and closes all open connections at the end.
    pub(crate) fn replay<R: BufRead>(&mut self, events: Reader<R>) -> Result<(), ReplayError> {
        let mut fault = None;
        for event in events {
            match event {
                Ok(event) => self.event(event)?,
                Err(error) => fault = Some(error),
            }
        }
        let now = self.now();
        self.engine.finish(now);
        self.drain()?;
        fault.map_or(Ok(()), |error| Err(ReplayError::Recording(error)))
    }

    fn now(&self) -> Now {
        Now { mono_ns: self.now_ns, unix_ns: self.now_ns }
    }

    fn event(&mut self, event: Event) -> Result<(), ReplayError> {
        let Event { conn, time_ns, kind } = event;
        self.advance(time_ns.unwrap_or(self.now_ns))?;
        let now = self.now();
        let at_ns = now.mono_ns;
        match kind {
            Kind::Open(open) => self.facts(conn, *open),
            Kind::Data { direction, bytes } => {
                if let Some(id) = self.connection(&conn) {
                    self.engine.data(now, id, at_ns, side(direction), &bytes.0);
                }
            }
            Kind::Gap { direction, bytes } => {
                if let Some(id) = self.connection(&conn) {
                    self.engine.gap(now, id, at_ns, side(direction), bytes);
                }
            }
            Kind::Close => {
                if let Some(Connection { id, denied: false }) = self.open.remove(&conn) {
                    self.engine.close(now, id, at_ns);
                }
            }
        }
        self.drain()
    }

    /// Moves the clock to `until_ns`; anything due earlier happens at its own time.
    fn advance(&mut self, until_ns: u64) -> Result<(), ReplayError> {
        while let Some(due_ns) = self.engine.next_deadline().filter(|due| *due <= until_ns) {
            self.now_ns = self.now_ns.max(due_ns);
            let now = self.now();
            self.engine.tick(now);
            self.drain()?;
            if self.engine.next_deadline().is_some_and(|next_ns| next_ns <= due_ns) {
                break;
            }
        }
        self.now_ns = self.now_ns.max(until_ns);
        Ok(())
    }

    /// Returns the connection `name`, joined midway if not opened; `None`: already refused.
    fn connection(&mut self, name: &str) -> Option<ConnId> {
        let allowed = |known: &Connection| (!known.denied).then_some(known.id);
        if let Some(known) = self.open.get(name) {
            return allowed(known);
        }
        let nothing_known = Open { from_start: Some(false), ..Open::default() };
        self.facts(name.to_owned(), nothing_known);
        self.open.get(name).and_then(allowed)
    }

    /// Opens a connection with the known facts, or adds facts to an open connection.
    fn facts(&mut self, name: String, open: Open) {
        let now = self.now();
        let process = open.facts();
        let key = process.as_ref().map(|facts| facts.key);
        if let Some(facts) = process {
            self.engine.process(now, facts);
        }
        let Open { pid, comm, exe, local, remote, server_name, from_start, hold, .. } = open;
        if let Some(Connection { id, denied }) = self.open.get(&name) {
            let update = ConnectionUpdate { process: key, server_name, local, remote, hold: None };
            if !denied {
                self.engine.learn(now, *id, update);
            }
            return;
        }
        let id = ConnId(self.count);
        self.count += 1;
        let hold = hold.map_or_else(|| self.hold(key), recording::Hold::level);
        // A recording without the field may not know: the decoder finds out from the bytes.
        let from_start = from_start.unwrap_or(false);
        let opened = ConnectionOpen {
            name: name.clone(),
            process: key,
            pid,
            comm,
            exe,
            server_name,
            local,
            remote,
            from_start,
            hold,
        };
        self.engine.open(now, id, opened);
        self.open.insert(name, Connection { id, denied: false });
    }

    /// Level of hold for a connection without a recorded hold: as in a run with the same
    /// configuration, on a capable kernel.
    fn hold(&self, process: Option<ProcessKey>) -> HoldLevel {
        let enforced =
            process.map_or(self.enforces, |key| self.engine.principal_mode(key) == Mode::Enforce);
        if enforced { HoldLevel::Held(Mechanism::EgressHold) } else { HoldLevel::None }
    }

    /// Passes the outputs on, and ends refused connections.
    fn drain(&mut self) -> Result<(), ReplayError> {
        let mut denied = Vec::new();
        for output in self.engine.outputs() {
            (self.sink)(&output).map_err(ReplayError::Output)?;
            if let Output::Deny { conn, .. } = output {
                denied.push(conn);
            }
        }
        if denied.is_empty() {
            return Ok(());
        }
        let now = self.now();
        for id in denied {
            let mut refused = self.open.values_mut().filter(|connection| connection.id == id);
            if let Some(connection) = refused.next()
                && !std::mem::replace(&mut connection.denied, true)
            {
                self.engine.close(now, id, now.mono_ns);
            }
        }
        self.drain()
    }
}

fn side(direction: recording::Direction) -> Direction {
    match direction {
        recording::Direction::Egress => Direction::Egress,
        recording::Direction::Ingress => Direction::Ingress,
    }
}

#[cfg(test)]
pub(crate) mod tests;
