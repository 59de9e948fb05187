//! The state of a run, and what happens to it with each record of the kernel.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use genops_ebpf_common::{
    ConnKey, DATA_HELD, Data, EGRESS, Open, Payload, Process, Record, TimedOut,
};
use genops_governance::{
    Awu, ConnId, ConnectionOpen, ConnectionUpdate, Engine, HoldLevel, Ledger, Mode, Now, OnTimeout,
    Output, PolicyResult, ProcessFacts, ProcessKey, Rung,
};
use genops_protocols::Direction;

use super::{Options, capture::Capture, enforcer::Enforcer, hold_deadline, kernel_settings};
use crate::{
    clock,
    config::{Config, Content, OnFailure},
    control::{self, Control},
    export::Exporter,
    guard::{self, Guarded},
    identity::Identities,
    journal::{Journal, Opening},
    kernel::{
        Maps,
        holds::{Expired, socket_of},
    },
    ledger_file::{LedgerFile, Restored},
    metrics::{Metrics, Part},
    render::Printer,
};

/// Longest wait for records; also how often evidence is published.
const TICK: Duration = Duration::from_secs(1);
/// Longest time that evidence which nobody waits for stays in memory.
const COMMIT_WITHIN_NS: u64 = 5_000_000;
/// How often evidence is published and the gauges are set.
const ACCOUNT_EVERY_NS: u64 = 250_000_000;
/// How long the end waits for the OTLP collector.
const EXPORT_PATIENCE: Duration = Duration::from_secs(3);
/// Most connections that are followed at once; the kernel's maps have as many.
const CONNECTIONS_LIMIT: usize = 16_384;

/// A connection that is followed.
struct Live {
    key: ConnKey,
    /// The kernel holds it for a verdict.
    holds: bool,
}

/// A process with connections.
struct Known {
    key: ProcessKey,
    conns: Vec<u64>,
}

/// Everything that a run owns.
pub(super) struct Agent {
    config: Config,
    options: Options,
    metrics: Arc<Metrics>,
    engine: Engine,
    enforcer: Enforcer,
    can_hold: bool,
    identities: Identities,
    journal: Journal,
    ledger: LedgerFile,
    printer: Printer,
    exporter: Option<Exporter>,
    control: Option<Control>,
    guard: Option<Guarded>,
    conns: HashMap<u64, Live>,
    processes: HashMap<u32, Known>,
    /// When the oldest record that is not durable was made.
    uncommitted_since: Option<u64>,
    account_at_mono_ns: u64,
}

impl Agent {
    /// Opens evidence and accounts, and starts what runs beside.
    pub(super) fn start(
        config: Config,
        options: Options,
        capture: &mut Capture,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let now = clock::now();
        let directory = config.evidence.directory.clone();
        let opening = Opening {
            origin: config.evidence.origin.clone(),
            key_file: config.evidence.key_file.clone(),
            segment_bytes: Some(config.evidence.segment_bytes),
            content: config.evidence.content,
            recipe: config.recipe.clone(),
            detail: start_detail(&config, capture.can_hold),
        };
        let (mut journal, _) = Journal::open(&directory, opening, now)
            .with_context(|| format!("evidence in {}", directory.display()))?;
        journal.look_after(&config.evidence, metrics)?;
        let state = directory.parent().unwrap_or(&directory).join("state");
        let (ledger, accounts, restored) = LedgerFile::open(&state, now.unix_ns)
            .with_context(|| format!("budget accounts in {}", state.display()))?;
        report(&restored);
        let mut engine = engine(&config, accounts)?;
        engine.keep_texts(config.evidence.content != Content::None);
        let exporter = config
            .telemetry
            .otlp
            .as_ref()
            .map(|otlp| Exporter::start(otlp, Arc::clone(metrics)))
            .transpose()?;
        let control =
            config.telemetry.socket.as_ref().and_then(|path| start_control(path, metrics));
        let enforcing = config.enforces() && capture.can_hold;
        let guard = if enforcing { start_guard(&config, &capture.maps) } else { None };
        metrics.enforcing.set(u64::from(enforcing));
        metrics.readiness.reached(Part::Policy);
        Ok(Self {
            enforcer: Enforcer::new(hold_deadline(&config), config.on_timeout),
            printer: Printer::start(options.output, Arc::clone(metrics))?,
            config,
            options,
            metrics: Arc::clone(metrics),
            engine,
            can_hold: capture.can_hold,
            identities: Identities::new(),
            journal,
            ledger,
            exporter,
            control,
            guard,
            conns: HashMap::new(),
            processes: HashMap::new(),
            uncommitted_since: None,
            account_at_mono_ns: 0,
        })
    }

    /// How long the loop may sleep.
    pub(super) fn patience(&self) -> Duration {
        let now = clock::mono_ns();
        let mut until = now.saturating_add(u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX));
        until = until.min(self.engine.next_deadline().unwrap_or(u64::MAX));
        if let Some(since) = self.uncommitted_since {
            until = until.min(since.saturating_add(COMMIT_WITHIN_NS));
        }
        if self.guard.is_some() {
            let beat = guard::beat_interval(hold_deadline(&self.config));
            until = until.min(now.saturating_add(u64::try_from(beat.as_nanos()).unwrap_or(0)));
        }
        until = until.min(self.enforcer.next_deadline().unwrap_or(u64::MAX));
        Duration::from_nanos(until.saturating_sub(now))
    }

    /// Takes one record of the kernel.
    pub(super) fn handle(&mut self, maps: &mut Maps, record: Record<'_>) {
        match record {
            Record::Data(data, payload) => self.data(maps, &data, payload),
            Record::Open(open) => self.open(maps, &open),
            Record::Join(join) => {
                let socket = socket_of(&join);
                if !self.conns.contains_key(&join.conn) {
                    return;
                }
                self.enforcer.joined(join.conn, socket);
                let update = ConnectionUpdate {
                    local: Some(socket.local),
                    remote: Some(socket.remote),
                    ..ConnectionUpdate::default()
                };
                self.engine.learn(clock::now(), ConnId(join.conn), update);
            }
            Record::Close(close) => {
                self.close(close.conn, close.at_mono_ns);
            }
            Record::TimedOut(TimedOut { conn, to, passed, .. }) => {
                self.timed_out(maps, conn, to, passed != 0);
            }
            Record::Exec(_) => {}
            Record::Exit(Process { tgid, at_mono_ns, .. }) => self.exit(maps, tgid, at_mono_ns),
        }
    }

    fn open(&mut self, maps: &mut Maps, open: &Open) {
        if self.conns.len() >= CONNECTIONS_LIMIT {
            self.metrics.lost_connections.increment();
            return;
        }
        let now = clock::now();
        let facts = self.facts(open);
        let key = facts.key;
        let (comm, exe) = (facts.comm.clone(), facts.exe.clone());
        self.engine.process(now, facts);
        let known =
            self.processes.entry(open.tgid).or_insert_with(|| Known { key, conns: Vec::new() });
        known.key = key;
        known.conns.push(open.conn);
        let enforce = self.engine.principal_mode(key) == Mode::Enforce;
        // Where there is no room, the kernel goes by the default, which is stricter.
        let _full = maps.set_process(open.tgid, enforce);
        let holds = enforce && self.can_hold;
        let hold = if holds { HoldLevel::Held(Rung::EgressHold) } else { HoldLevel::None };
        let opened = ConnectionOpen {
            name: format!("c{}", open.conn),
            process: Some(key),
            pid: Some(open.tgid),
            comm: Some(comm),
            exe,
            server_name: server_name(open).map(str::to_owned),
            local: None,
            remote: None,
            from_start: true,
            hold,
        };
        self.engine.open(now, ConnId(open.conn), opened);
        let key = ConnKey { ssl: open.ssl, tgid: open.tgid, reserved: 0 };
        self.conns.insert(open.conn, Live { key, holds });
    }

    fn facts(&self, open: &Open) -> ProcessFacts {
        self.identities.of(open.tgid).unwrap_or_else(|| {
            let comm = String::from_utf8_lossy(&open.comm);
            let comm = comm.trim_end_matches('\0');
            self.identities.of_gone(open.tgid, open.at_mono_ns, open.uid, comm)
        })
    }

    fn data(&mut self, maps: &mut Maps, data: &Data, payload: Payload<'_>) {
        let Some(live) = self.conns.get(&data.conn) else {
            // Its opening was lost, and counted; nothing is held for ever on its account.
            if data.flags & DATA_HELD != 0 {
                let _full = maps.holds.release(data.conn, u64::MAX);
            }
            return;
        };
        let end = data.offset.saturating_add(u64::from(data.captured_len));
        let direction = if data.direction == EGRESS {
            self.metrics.captured_egress_bytes.add(u64::from(data.captured_len));
            Direction::Egress
        } else {
            self.metrics.captured_ingress_bytes.add(u64::from(data.captured_len));
            Direction::Ingress
        };
        if data.flags & DATA_HELD != 0 {
            self.enforcer.arrived(data.conn, end, data.at_mono_ns);
            if !live.holds {
                // The kernel held before it knew that this process is only observed.
                self.enforcer.release(maps, &self.metrics, data.conn, end);
            }
        }
        let conn = ConnId(data.conn);
        self.engine.data_at(clock::now(), conn, data.at_mono_ns, direction, data.offset, payload.0);
    }

    fn close(&mut self, conn: u64, at_mono_ns: u64) -> Option<ConnKey> {
        let live = self.conns.remove(&conn);
        if let Some(known) = live.as_ref().and_then(|it| self.processes.get_mut(&it.key.tgid)) {
            known.conns.retain(|&other| other != conn);
        }
        if live.is_some() {
            self.engine.close(clock::now(), ConnId(conn), at_mono_ns);
        }
        self.enforcer.ended(at_mono_ns, conn);
        live.map(|it| it.key)
    }

    fn exit(&mut self, maps: &mut Maps, tgid: u32, at_mono_ns: u64) {
        let Some(known) = self.processes.remove(&tgid) else { return };
        for conn in known.conns {
            // It did not free its TLS objects, so the kernel programs still know them.
            if let Some(key) = self.close(conn, at_mono_ns) {
                maps.forget_tls_object(&key);
            }
        }
        self.engine.process_exit(clock::now(), known.key);
        maps.forget_process(tgid);
    }

    fn timed_out(&mut self, maps: &mut Maps, conn: u64, to: u64, passed: bool) {
        self.enforcer.timed_out(maps, &self.metrics, conn, passed);
        self.engine.timed_out(clock::now(), ConnId(conn), to, passed);
    }

    /// Carries out what the engine decided: writes it down, makes it durable where somebody waits for
    /// it, then lets go or denies.
    pub(super) fn settle(&mut self, maps: &mut Maps) {
        let outputs: Vec<Output> = self.engine.outputs().collect();
        if outputs.is_empty() {
            return;
        }
        let mut taken = true;
        for output in &outputs {
            match output {
                Output::Record(record) => taken &= self.journal.record(record).is_ok(),
                Output::Ledger(entry) => self.ledger.append(entry),
                Output::Awu(_) | Output::Release { .. } | Output::Deny { .. } => continue,
            }
            self.uncommitted_since.get_or_insert_with(clock::mono_ns);
        }
        let verdicts =
            outputs.iter().any(|it| matches!(it, Output::Release { .. } | Output::Deny { .. }));
        let durable = if verdicts && self.config.evidence.durable_before_release {
            self.commit() && taken
        } else {
            taken
        };
        for output in outputs {
            self.carry_out(maps, output, durable);
        }
    }

    fn carry_out(&mut self, maps: &mut Maps, output: Output, durable: bool) {
        match output {
            Output::Release { conn, to } => {
                if !durable && self.config.evidence.on_failure == OnFailure::Block {
                    self.engine.withhold(clock::now(), conn);
                    self.enforcer.deny(maps, &self.metrics, conn.0);
                } else if !self.enforcer.release(maps, &self.metrics, conn.0, to) {
                    self.engine.timed_out(clock::now(), conn, to, false);
                }
            }
            Output::Deny { conn, awu: _, collateral } => {
                self.metrics.collateral_exchanges.add(collateral);
                self.enforcer.deny(maps, &self.metrics, conn.0);
            }
            Output::Awu(awu) => self.tell(&Arc::from(awu)),
            Output::Record(_) | Output::Ledger(_) => {}
        }
    }

    fn tell(&self, awu: &Arc<Awu>) {
        match awu.outcome.decision().result() {
            PolicyResult::Allowed => self.metrics.awus_allowed.increment(),
            PolicyResult::Warning => self.metrics.awus_warning.increment(),
            PolicyResult::Blocked => self.metrics.awus_blocked.increment(),
            PolicyResult::RateLimited => self.metrics.awus_rate_limited.increment(),
        }
        // Both count what they can't take.
        self.printer.try_print(awu);
        if let Some(exporter) = &self.exporter {
            exporter.try_send(awu);
        }
        if let Some(control) = &self.control {
            control.publish(awu);
        }
    }

    /// Does what was asked for at the agent's socket. An answer says that it is durable.
    fn answer(&mut self, maps: &mut Maps) {
        while let Some(pending) = self.control.as_ref().and_then(Control::next) {
            let answer = control::perform(pending.request.clone(), &mut self.engine, clock::now());
            self.settle(maps);
            self.commit();
            pending.answer(answer);
        }
    }

    /// Makes evidence and accounts durable. False where that failed; it is counted.
    fn commit(&mut self) -> bool {
        if self.uncommitted_since.take().is_none() {
            return true;
        }
        let before = clock::mono_ns();
        let written = self.ledger.sync().map_err(|error| error.to_string());
        let written = written.and(self.journal.commit().map_err(|error| error.to_string()));
        let took_ns = clock::mono_ns().saturating_sub(before);
        self.metrics.evidence_commit.observe(Duration::from_nanos(took_ns));
        match written {
            Ok(()) => {
                self.metrics.readiness.reached(Part::Evidence);
                true
            }
            Err(error) => {
                self.metrics.lost_evidence.increment();
                self.metrics.readiness.waits(Part::Evidence, error);
                false
            }
        }
    }

    /// What time brings: deadlines, commits, checkpoints, the guard's heartbeat.
    pub(super) fn tick(&mut self, capture: &mut Capture) {
        let now = clock::now();
        let maps = &mut capture.maps;
        for Expired { conn, to } in self.enforcer.expire(maps) {
            // A push makes the kernel program report; a socket that is gone reports nothing.
            if self.config.on_timeout == OnTimeout::Closed {
                self.timed_out(maps, conn, to, false);
            }
        }
        if self.engine.next_deadline().is_some_and(|at| at <= now.mono_ns) {
            self.engine.tick(now);
        }
        self.settle(maps);
        self.answer(maps);
        self.enforcer.forget(maps, now.mono_ns);
        if self.guard.as_mut().is_some_and(|guard| !guard.beat()) {
            eprintln!("genops-agent: the guard process has ended; it is started again");
            self.guard = start_guard(&self.config, maps);
        }
        if self
            .uncommitted_since
            .is_some_and(|since| now.mono_ns.saturating_sub(since) >= COMMIT_WITHIN_NS)
        {
            self.commit();
        }
        if now.mono_ns >= self.account_at_mono_ns {
            self.account_at_mono_ns = now.mono_ns.saturating_add(ACCOUNT_EVERY_NS);
            self.account(capture, now);
        }
    }

    /// Brings evidence and counters up to date.
    fn account(&mut self, capture: &Capture, now: Now) {
        let lost = capture.count_losses();
        self.journal.set_kernel_counters(self.metrics.kernel_records.get(), lost);
        if let Err(error) = self.journal.tick(now) {
            self.metrics.readiness.waits(Part::Evidence, error.to_string());
        }
        if self.journal.waits() {
            // What witnesses and copies came to; on an idle host nothing else would commit it.
            self.uncommitted_since.get_or_insert_with(clock::mono_ns);
        }
        self.metrics.connections.set(self.conns.len() as u64);
        self.metrics.processes.set(self.processes.len() as u64);
        self.metrics.decoder_memory_bytes.set(self.engine.memory_bytes() as u64);
    }

    /// Reads the configuration again; the old one stays in force where the new one is refused.
    pub(super) fn reload(&mut self, maps: &mut Maps) {
        let Some(path) = &self.options.config_path else { return };
        let loaded = Config::load(path);
        let config = match loaded {
            Ok(config) => config,
            Err(error) => {
                self.metrics.policy_loads_refused.increment();
                eprintln!("genops-agent: {error}; the configuration before stays in force");
                return;
            }
        };
        self.journal.decide_by(config.recipe.as_deref());
        self.journal.set_content(config.evidence.content);
        self.engine.keep_texts(config.evidence.content != Content::None);
        self.engine.reload(clock::now(), config.settings());
        self.enforcer.set(hold_deadline(&config), config.on_timeout);
        if let Err(error) = maps.set_settings(kernel_settings(&config)) {
            eprintln!("genops-agent: the kernel programs keep their settings: {error:#}");
        }
        for (&tgid, known) in &self.processes {
            let enforce = self.engine.principal_mode(known.key) == Mode::Enforce;
            let _full = maps.set_process(tgid, enforce);
        }
        let enforcing = config.enforces() && self.can_hold;
        self.metrics.enforcing.set(u64::from(enforcing));
        if let Some(guard) = self.guard.take() {
            guard.finish();
        }
        self.guard = if enforcing { start_guard(&config, maps) } else { None };
        self.config = config;
        self.metrics.policy_loads_accepted.increment();
        self.settle(maps);
    }

    /// Closes and writes everything, and ends what runs beside.
    pub(super) fn finish(mut self, capture: &mut Capture) {
        let now = clock::now();
        self.engine.finish(now);
        self.settle(&mut capture.maps);
        self.commit();
        self.account(capture, now);
        let Self { journal, printer, exporter, guard, metrics, .. } = self;
        if let Err(error) = journal.close(now) {
            eprintln!("genops-agent: evidence: {error}");
        }
        printer.finish();
        if exporter.is_some_and(|it| !it.shutdown(EXPORT_PATIENCE)) {
            metrics.lost_export_failed.increment();
            eprintln!("genops-agent: the OTLP collector did not take everything in time");
        }
        if let Some(guard) = guard {
            guard.finish();
        }
    }
}

/// The name that the program gave its TLS library.
pub(super) fn server_name(open: &Open) -> Option<&str> {
    let len = usize::try_from(open.name_len).ok().filter(|&len| len > 0)?;
    std::str::from_utf8(open.name.get(..len)?).ok()
}

fn engine(config: &Config, accounts: Ledger) -> Result<Engine> {
    let mut entropy = [0; 32];
    let filled = rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    anyhow::ensure!(filled == entropy.len(), "the kernel gave {filled} random bytes of 32");
    Ok(Engine::new(config.settings(), accounts, entropy))
}

fn start_guard(config: &Config, maps: &Maps) -> Option<Guarded> {
    let closed = config.on_timeout == OnTimeout::Closed;
    match Guarded::start(&maps.holds, hold_deadline(config), closed) {
        Ok(guard) => Some(guard),
        Err(error) => {
            eprintln!(
                "genops-agent: {error:#}; if the agent is killed while it holds requests, they wait for TCP's own timers"
            );
            None
        }
    }
}

fn start_control(path: &Path, metrics: &Arc<Metrics>) -> Option<Control> {
    match Control::start(path, Arc::clone(metrics)) {
        Ok(control) => Some(control),
        Err(error) => {
            eprintln!(
                "genops-agent: {}: {error}; `top`, `budget` and `approve` can't reach this agent",
                path.display()
            );
            None
        }
    }
}

fn start_detail(config: &Config, can_hold: bool) -> Vec<(&'static str, String)> {
    let mode = if config.enforces() { "enforce" } else { "observe" };
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("mode", mode.to_owned()),
        ("config", crate::journal::sha256_text(&config.hash)),
        ("rung", if can_hold { "egress_hold" } else { "none" }.to_owned()),
    ]
}

fn report(restored: &Restored) {
    match restored {
        Restored::Whole => {}
        Restored::Torn { bytes } => eprintln!(
            "genops-agent: budget accounts: {bytes} bytes of an interrupted write were cut off"
        ),
        Restored::Lost { why, kept_as } => eprintln!(
            "genops-agent: budget accounts can't be read ({why}); budgets count as used up until their period ends; the file is kept as {}",
            kept_as.display()
        ),
    }
}
