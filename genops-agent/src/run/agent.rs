//! The state of a run, and the changes to the state with each record of the kernel.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use genops_ebpf_common::{
    ConnKey, Contact, DATA_DENIED, DATA_FIRST, DATA_HELD, Data, DeniedKey, EGRESS, Fork, Join,
    Open, PIECE_LEN, Payload, Process, Record, Refusals, Released, TimedOut, Unexplained, contact,
    kind, origin, unexplained,
};
use genops_governance::{
    Awu, AwuId, Beforehand, ConnId, ConnectionOpen, ConnectionUpdate, Contacted, Effect, Engine,
    HoldLevel, Ledger, MatchConfig, Mechanism, Mode, Now, OnTimeout, Outcome, Output, PolicyResult,
    ProcessFacts, ProcessKey, Signal, Unexplainable, User,
};
use genops_protocols::Direction;

use super::{
    absence, absent_after,
    capture::Capture,
    contacts::{Contacts, Hello, Reached},
    coverage::Coverage,
    enforcer::{Enforcer, Late},
    flood::{Authors, Floods},
    hold_deadline, kernel_settings,
    lineage::Lineages,
    ns,
    pages::{self, Pages, Want},
    repeats::Repeats,
    rewrites::{Compared, Rewrites},
    standing::Standing,
};
use crate::{
    clock,
    config::{Config, Content, LoadError, OnFailure, Watch, kept},
    control::{self, Control},
    discovery,
    export::Exporter,
    guard::{self, Guarded},
    identity::{self, Identities},
    journal::{
        Journal, Moment, Opening,
        entry::Kind,
        fold::{Fold, Line, Taken, Terms, is_refusal, owner},
    },
    kernel::{
        Left, Maps, Mechanisms, Pins, Providers,
        holds::{Expired, address_of, socket_of},
        sockets::Socket,
    },
    ledger_file::{self, LedgerFile, Restored},
    metrics::{Metrics, Part, Remark},
    render::{self, Printer},
    space,
    user_socket::UserSocket,
};
use genops_evidence::AppendError;

/// Longest wait for records; also how often evidence is published.
const TICK: Duration = Duration::from_secs(1);
/// Longest time in memory for evidence without a waiting request, in nanoseconds.
const COMMIT_WITHIN_NS: u64 = 5_000_000;
/// Interval of the sign of life to the kernel programs, in nanoseconds.
const BEAT_EVERY_NS: u64 = 100_000_000;
/// Interval of publishing evidence and setting the gauges, in nanoseconds.
const ACCOUNT_EVERY_NS: u64 = 250_000_000;
/// Interval of the recount of kernel map entries by process, in nanoseconds.
const COUNT_EVERY_NS: u64 = 30_000_000_000;
/// Longest wait for the OTLP collector at the end of the run.
const EXPORT_PATIENCE: Duration = Duration::from_secs(3);
/// Most ancestors of a process to look at.
const LINEAGE_LIMIT: usize = 16;
/// Most processes with a remembered executable.
const PROGRAMS_LIMIT: usize = 65_536;
/// Processes older than the agent to look at in one turn.
const SURVEY_BATCH: usize = 16;
/// Most connections followed at once: the kernel's maps have room for as many TLS objects, and for
/// as many sockets without a TLS object.
const CONNECTIONS_LIMIT: usize = 2 * genops_ebpf_common::CONNECTIONS as usize;
/// Most connections of one process: twice the limit of the kernel programs for each kind.
const PROCESS_LIMIT: usize = 2 * genops_ebpf_common::CONNECTIONS_OF_PROCESS as usize;
/// File in the state directory with the key for recognizing approved requests.
const APPROVALS_KEY: &str = "approvals.key";
/// Bit in the numbers of units of unexplained bytes and of counted refusals, which are no
/// connections.
const WITHOUT_CONNECTION: u64 = 1 << 63;
/// A reason beside the reasons in [`unexplained`]: a write was repeated with other bytes.
const REWRITTEN: u32 = u32::MAX;

/// Pieces of an HTTP/2 connection to examine for an AI call if the beginning was not seen.
const UNSURE_PIECES: u32 = 32;

/// A connection followed by the agent.
struct Live {
    tgid: u32,
    /// The TLS object; none if no probe reads the connection.
    tls: Option<ConnKey>,
    /// The kernel holds the connection for a verdict.
    holds: bool,
    /// Number of the provider, if the server name tells.
    provider: u32,
    /// Pieces left to examine for an AI call; none if there is no doubt.
    unsure: Option<u32>,
}

/// A process with connections.
struct Known {
    key: ProcessKey,
    conns: Vec<u64>,
}

/// Most refusals with a unit still to come.
const REFUSERS_LIMIT: usize = 16_384;

/// State against floods.
#[derive(Debug, Default)]
struct Many {
    fold: Fold,
    floods: Floods,
    repeats: Repeats,
    authors: Authors,
    /// The user with folded refusals, because disk space is scarce.
    squeezed: Option<User>,
}

/// Everything owned by a run.
pub(super) struct Agent {
    config: Config,
    watch: Option<Watch>,
    metrics: Arc<Metrics>,
    engine: Engine,
    enforcer: Enforcer,
    mechanisms: Mechanisms,
    pins: Option<Arc<Pins>>,
    providers: Providers,
    contacts: Contacts,
    standing: Standing,
    coverage: Coverage,
    rewrites: Rewrites,
    pages: Pages,
    units_without_connection: u64,
    /// Units of unexplained bytes without a reported effect yet, with the connection of the bytes.
    unread_units: HashMap<u64, u64>,
    identities: Identities,
    journal: Journal,
    many: Many,
    ledger: LedgerFile,
    printer: Printer,
    exporter: Option<Exporter>,
    control: Option<Control>,
    user_socket: UserSocket,
    /// Owners of the units refused just now.
    refusers: HashMap<AwuId, User>,
    guard: Option<Guarded>,
    conns: HashMap<u64, Live>,
    processes: HashMap<u32, Known>,
    /// Processes known to the engine.
    introduced: HashMap<u32, ProcessKey>,
    /// Executables of running processes unknown to the engine.
    programs: HashMap<u32, String>,
    lineages: Lineages,
    /// Processes not looked at yet: older than this agent, or than the first principal of the
    /// configuration.
    unseen: Vec<u32>,
    /// The last attempt to write evidence failed, and the failure was reported.
    evidence_failed: bool,
    /// Time of the oldest record not yet durable.
    uncommitted_since: Option<u64>,
    account_at_mono_ns: u64,
    count_at_mono_ns: u64,
    beat_at_mono_ns: u64,
    /// Reason why the programs end with the agent, contrary to the configuration.
    unkept: Option<String>,
}

impl Agent {
    /// Opens evidence and accounts, and starts the helpers of the run.
    pub(super) fn start(
        config: Config,
        output: render::Output,
        watch: Option<Watch>,
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
            detail: start_detail(&config, &capture.mechanisms),
        };
        let known = ledger_file::last_in_evidence(&directory);
        let (mut journal, recovery) = Journal::open(&directory, opening, now)
            .with_context(|| format!("evidence in {}", directory.display()))?;
        // Becomes durable with the next record.
        journal
            .event(now, Kind::Capability, &capture.mechanisms.detail())
            .context("the record of what can be stopped here")?;
        journal.look_after(&config.evidence, metrics)?;
        let state = directory.parent().unwrap_or(&directory).join("state");
        let (ledger, accounts, restored) = LedgerFile::open(&state, known, now.unix_ns)
            .with_context(|| format!("budget accounts in {}", state.display()))?;
        report(&restored);
        let lost = match &restored {
            Restored::Lost { why, .. } => Some(why.as_str()),
            Restored::Whole | Restored::Torn { .. } => None,
        };
        // Becomes durable with the next record, too.
        journal
            .balances(now, Moment::Start, &accounts.ledger, lost)
            .context("the record of what budgets have")?;
        let mut engine = engine(&config, accounts.ledger)?;
        engine.make_up_for(accounts.closed);
        engine.await_effects();
        engine.keep_texts(config.evidence.content != Content::None);
        if !recovery.clean {
            engine.note_absence(now);
        }
        let exporter = config
            .telemetry
            .otlp
            .as_ref()
            .map(|otlp| Exporter::start(otlp, Arc::clone(metrics)))
            .transpose()?;
        let control =
            config.telemetry.socket.as_ref().and_then(|path| start_control(path, metrics));
        let user_socket =
            UserSocket::start(config.telemetry.user_socket.as_deref(), Arc::clone(metrics))
                .context("a thread for refusals")?;
        let enforcing = config.enforces() && capture.mechanisms.has(Mechanism::EgressHold);
        let guard = if enforcing {
            start_guard(&config, &capture.maps, capture.pins.as_deref())
        } else {
            None
        };
        metrics.enforcing.set(u64::from(enforcing));
        remark_absence(&config, capture, metrics);
        metrics.readiness.reached(Part::Policy);
        let lineages = Lineages::new(engine.settings());
        let mut identities = Identities::new();
        identities.keep_in(&state);
        identities.name_by(matches(&config));
        let mut contacts = Contacts::default();
        contacts.keep_names(config.settings().asks_for_names());
        Ok(Self {
            enforcer: Enforcer::new(hold_deadline(&config), config.on_timeout),
            printer: Printer::start(output, Arc::clone(metrics))?,
            config,
            watch,
            metrics: Arc::clone(metrics),
            engine,
            mechanisms: capture.mechanisms.clone(),
            pins: capture.pins.clone(),
            providers: capture.providers.clone(),
            contacts,
            standing: Standing::default(),
            coverage: Coverage::default(),
            rewrites: Rewrites::default(),
            pages: Pages::default(),
            units_without_connection: 0,
            unread_units: HashMap::new(),
            identities,
            journal,
            many: Many::default(),
            ledger,
            exporter,
            control,
            user_socket,
            refusers: HashMap::new(),
            guard,
            conns: HashMap::new(),
            processes: HashMap::new(),
            introduced: HashMap::new(),
            programs: HashMap::new(),
            unseen: if lineages.matter() { discovery::pids().collect() } else { Vec::new() },
            lineages,
            evidence_failed: false,
            uncommitted_since: None,
            account_at_mono_ns: 0,
            count_at_mono_ns: 0,
            beat_at_mono_ns: 0,
            unkept: capture.unkept.clone(),
        })
    }

    /// Keeps a copy of the configuration in force, read from the file, for a later start.
    pub(super) fn keep_configuration(&self) {
        if let Some(watch) = &self.watch {
            keep(watch.path(), &self.config);
        }
    }

    /// Takes over the connections left by an earlier agent with its programs: later decisions are
    /// made here, and denied connections stay denied.
    pub(super) fn adopt(&mut self, maps: &mut Maps) {
        if !self.pins.as_deref().is_some_and(Pins::are_inherited) {
            return;
        }
        self.adopt_lineages(maps);
        self.adopt_denials(maps);
        for (key, counted) in maps.counted() {
            self.many.repeats.adopt(key, counted);
        }
        self.adopt_addresses(maps);
        let mut adopted = 0u64;
        for (key, conn) in maps.tls_objects() {
            let Some(facts) = self.identities.of(key.tgid) else {
                maps.forget_tls_object(&key);
                continue;
            };
            let name = maps.server_name(conn.id);
            let provider = conn.provider;
            let live =
                Live { tgid: key.tgid, tls: Some(key), holds: false, provider, unsure: None };
            if !self.follow(maps, conn.id, live, Some(facts), name, false) {
                break;
            }
            adopted += 1;
            if let Some(socket) = maps.holds.socket(conn.id) {
                self.joined(maps, conn.id, socket);
            }
            let cookie = (conn.cookie != 0).then_some(conn.cookie);
            self.enforcer.adopt(maps, conn.id, conn.egress_offset, cookie);
        }
        eprintln!(
            "genops-agent: took over the programs of the agent before, and {adopted} connections"
        );
    }

    /// Keeps earlier outright refusals until this agent decides otherwise; the new decision may end
    /// a refusal at once.
    fn adopt_denials(&mut self, maps: &mut Maps) {
        for (key, until_mono_ns) in maps.denials() {
            match self
                .identities
                .of(key.tgid)
                .filter(|_| self.providers.name(key.provider).is_some())
            {
                Some(facts) => {
                    self.standing.adopt(key, facts.key, until_mono_ns);
                    self.introduce(maps, facts);
                }
                None => maps.set_denied(key, None),
            }
        }
    }

    /// Takes over the provider addresses learnt by an earlier agent; clears addresses of providers
    /// unknown to this agent.
    fn adopt_addresses(&mut self, maps: &mut Maps) {
        for (key, number) in maps.addresses() {
            if self.providers.name(number).is_none() {
                maps.set_address(&key, 0);
                continue;
            }
            // The rest of an IPv4 address is zero.
            let ip_version = if key.address.iter().skip(4).all(|it| *it == 0) { 4 } else { 6 };
            let ip = address_of(ip_version, key.address, key.port).ip();
            let _told = self.contacts.learn(ip, number, key.port);
        }
        for (key, number) in maps.ties() {
            if self.providers.name(number).is_none() {
                maps.set_tie(&key, 0);
                continue;
            }
            for (tie, provider) in self.contacts.adopt_tie(&key, number) {
                maps.set_tie(&tie, provider);
            }
        }
    }

    /// Takes over the lineages told to the kernel by an earlier agent, and the lineages handed down
    /// by the programs since.
    fn adopt_lineages(&mut self, maps: &mut Maps) {
        for (pid, lineage) in maps.lineages() {
            match self.identities.of(pid).filter(|it| it.key.start_ns == lineage.start_ns) {
                Some(facts) => self.introduce(maps, facts),
                None => maps.forget_lineage(ProcessKey { pid, start_ns: lineage.start_ns }),
            }
        }
    }

    /// Longest sleep of the loop.
    pub(super) fn patience(&self) -> Duration {
        if !self.unseen.is_empty() {
            return Duration::ZERO;
        }
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
        until = until.min(self.enforcer.next_effect().unwrap_or(u64::MAX));
        if !self.pages.is_empty() {
            until = until.min(now.saturating_add(ns(pages::LOOK_EVERY)));
        }
        until = until.min(self.many.fold.next_close().unwrap_or(u64::MAX));
        Duration::from_nanos(until.saturating_sub(now))
    }

    /// Takes one record of the kernel.
    pub(super) fn handle(&mut self, maps: &mut Maps, record: Record<'_>) {
        match record {
            Record::Data(data, payload) => self.data(maps, &data, payload),
            Record::Open(open) => self.open(maps, &open),
            Record::Join(join) => self.join(maps, &join),
            Record::Contact(contact, payload) => self.contact(maps, &contact, payload),
            Record::Released(released) => self.released(maps, &released),
            Record::Dns(dns, payload) => {
                let news = self.contacts.name_server(&self.providers, &dns, payload.0);
                for (address, provider) in news {
                    maps.set_address(&address, provider);
                    for (tie, provider) in self.contacts.untie(address) {
                        maps.set_tie(&tie, provider);
                    }
                }
            }
            Record::Close(close) => {
                self.void(maps, close.conn, close.taken_to);
                self.close(close.conn, close.at_mono_ns, Some(close.taken_to));
            }
            Record::TimedOut(TimedOut { conn, to, passed, .. }) => {
                self.timed_out(maps, conn, to, passed != 0);
            }
            Record::Unexplained(found) => self.unexplained(maps, &found),
            Record::Exec(Process { tgid, .. }, path) => self.exec(maps, tgid, path),
            Record::Fork(fork) => self.fork(maps, &fork),
            Record::Exit(Process { tgid, at_mono_ns, .. }) => self.exit(maps, tgid, at_mono_ns),
        }
    }

    fn open(&mut self, maps: &mut Maps, open: &Open) {
        let facts = self.identify(open.tgid, open.uid).unwrap_or_else(|| {
            let comm = String::from_utf8_lossy(&open.comm);
            let comm = comm.trim_end_matches('\0');
            let mut gone = self.identities.of_gone(open.tgid, open.at_mono_ns, open.uid, comm);
            self.recall(&mut gone);
            if let Some(principal) = self.lineages.name(open.principal) {
                self.engine.process_of(clock::now(), gone.clone(), principal);
            }
            gone
        });
        let server_name = server_name(open).map(str::to_owned);
        let provider = server_name.as_deref().map_or(0, |it| self.providers.of_host(it).0);
        let tls = ConnKey { ssl: open.ssl, tgid: open.tgid, reserved: 0 };
        let unsure = (open.origin == origin::HTTP2_MIDWAY).then_some(UNSURE_PIECES);
        let live = Live { tgid: open.tgid, tls: Some(tls), holds: false, provider, unsure };
        let from_start = unsure.is_none();
        self.follow(maps, open.conn, live, Some(facts), server_name, from_start);
    }

    /// Returns the facts of a process. An ended process keeps the facts from the start of its
    /// program; the kernel shows no executable of an ended process.
    fn identify(&self, tgid: u32, uid: u32) -> Option<ProcessFacts> {
        let before = self.introduced.get(&tgid).and_then(|it| self.engine.facts(*it));
        if let Some(known) = self.still(before, uid) {
            return Some(known.clone());
        }
        // Since then, the process may have begun another program and ended before a look at it.
        let before = before.cloned().map(|mut it| {
            if self.has_changed(&it) {
                self.recall(&mut it);
            }
            it
        });
        match (self.identities.of(tgid), before) {
            (Some(now), Some(before)) if now.exe.is_none() && now.key == before.key => Some(before),
            (Some(mut now), _) => {
                if now.exe.is_none() {
                    self.recall(&mut now);
                }
                Some(now)
            }
            (None, before) => before,
        }
    }

    /// Sets the executable of an ended process. Nobody looked at the file under the path.
    fn recall(&self, facts: &mut ProcessFacts) {
        facts.exe = self.programs.get(&facts.key.pid).cloned();
        facts.exe_is_elsewhere = true;
    }

    /// Whether a process has begun another program since `known` was recorded.
    fn has_changed(&self, known: &ProcessFacts) -> bool {
        self.programs.get(&known.key.pid).is_some_and(|now| known.exe.as_ref() != Some(now))
    }

    /// Returns the known facts of a process, if the process ID can't belong to another process by
    /// now. The facts are looked up once, not for each TLS object. A program begun since then
    /// replaces the facts.
    fn still<'a>(&self, known: Option<&'a ProcessFacts>, uid: u32) -> Option<&'a ProcessFacts> {
        let known = known.filter(|it| it.uid == Some(uid) && it.exe.is_some())?;
        let known = Some(known).filter(|it| !self.has_changed(it))?;
        let same = self.identities.key_of(known.key.pid).is_none_or(|it| it == known.key);
        same.then_some(known)
    }

    /// Starts to follow a connection. False: too many connections.
    fn follow(
        &mut self,
        maps: &mut Maps,
        conn: u64,
        mut live: Live,
        facts: Option<ProcessFacts>,
        server_name: Option<String>,
        from_start: bool,
    ) -> bool {
        let of_process = self.processes.get(&live.tgid).map_or(0, |it| it.conns.len());
        if self.conns.len() >= CONNECTIONS_LIMIT || of_process >= PROCESS_LIMIT {
            self.metrics.lost_connections.increment();
            return false;
        }
        let now = clock::now();
        let key = facts.as_ref().map(|it| it.key);
        let (comm, exe) =
            facts.as_ref().map_or((None, None), |it| (Some(it.comm.clone()), it.exe.clone()));
        if let Some(facts) = facts {
            self.known(maps, conn, live.tgid, facts);
        }
        if let Some(key) = key {
            self.standing.seen(key, live.provider);
            live.holds = self.engine.principal_mode(key) == Mode::Enforce
                && self.mechanisms.has(Mechanism::EgressHold);
        }
        let hold =
            if live.holds { HoldLevel::Held(Mechanism::EgressHold) } else { HoldLevel::None };
        let opened = ConnectionOpen {
            name: format!("c{conn}"),
            process: key,
            pid: (live.tgid != 0).then_some(live.tgid),
            comm,
            exe,
            server_name,
            local: None,
            remote: None,
            from_start,
            hold,
        };
        self.engine.open(now, ConnId(conn), opened);
        self.enforcer.begins(conn);
        self.conns.insert(conn, live);
        true
    }

    /// Records a connection of a process.
    fn known(&mut self, maps: &mut Maps, conn: u64, tgid: u32, facts: ProcessFacts) {
        let key = facts.key;
        self.introduce(maps, facts);
        let known = self.processes.entry(tgid).or_insert_with(|| Known { key, conns: Vec::new() });
        known.key = key;
        known.conns.push(conn);
        let enforce = self.engine.principal_mode(key) == Mode::Enforce;
        // If there is no room, the kernel applies the default, which is stricter.
        let _full = maps.set_process(tgid, enforce);
    }

    /// Records the socket of a connection.
    fn join(&mut self, maps: &mut Maps, join: &Join) {
        if self.enforcer.socket(join.conn).is_none_or(|it| it.cookie != join.cookie) {
            self.joined(maps, join.conn, socket_of(join));
        }
    }

    /// Records the socket of a connection known to the kernel, if the report is still unread.
    fn catch_up(&mut self, maps: &mut Maps, conn: u64) {
        if self.enforcer.socket(conn).is_none()
            && let Some(socket) = maps.holds.socket(conn)
        {
            self.joined(maps, conn, socket);
        }
    }

    fn joined(&mut self, maps: &mut Maps, conn: u64, socket: Socket) {
        let Some(live) = self.conns.get(&conn) else { return };
        let (provider, tls, tgid) = (live.provider, live.tls.is_some(), live.tgid);
        if tls {
            self.metrics.joins_proved.increment();
            // A probe reads the plaintext from here on.
            self.close(socket.cookie, clock::mono_ns(), None);
        }
        self.tie(maps, tgid, socket.remote, provider);
        self.enforcer.joined(conn, socket);
        let update = ConnectionUpdate {
            local: Some(socket.local),
            remote: Some(socket.remote),
            ..ConnectionUpdate::default()
        };
        self.engine.learn(clock::now(), ConnId(conn), update);
        if self.enforcer.was_unseen(conn) {
            self.check(maps, conn);
        }
    }

    /// Reports the bytes sent by a connection with a refusal, if the number can be known yet.
    fn check(&mut self, maps: &mut Maps, conn: u64) {
        self.catch_up(maps, conn);
        if let Some(left) = self.enforcer.effect(maps, conn) {
            self.engine.left(clock::now(), ConnId(conn), effect_of(left));
        }
    }

    /// Reports the bytes sent by the connection of an unexplained unit above the released position,
    /// where the unit's own stream begins.
    fn check_unread(&mut self, maps: &Maps, unit: ConnId, conn: u64) {
        let left = self.enforcer.effect_at_last(maps, conn);
        let left = Left { to: left.to.saturating_sub(self.enforcer.released_to(conn)), ..left };
        self.engine.left(clock::now(), unit, effect_of(left));
    }

    /// Reports bytes sent by a connection although the evidence says that no more had left.
    fn look_for_breach(&mut self, maps: &Maps, conn: u64) {
        if let Some(left) = self.enforcer.breach(maps, conn) {
            self.engine.breach(clock::now(), ConnId(conn), effect_of(left));
        }
    }

    /// Ties an address to the provider named by a process, for the process's user in the process's
    /// cgroup.
    fn tie(&mut self, maps: &mut Maps, tgid: u32, remote: SocketAddr, provider: u32) {
        let facts = self.processes.get(&tgid).and_then(|it| self.engine.facts(it.key));
        let Some((uid, cgroup)) = facts.and_then(|it| it.uid.zip(it.cgroup.as_deref())) else {
            return;
        };
        let Some(group) = self.identities.group_number(cgroup) else { return };
        for (tie, provider) in self.contacts.tie((uid, group), remote, provider) {
            maps.set_tie(&tie, provider);
        }
    }

    /// Handles a contact with a provider past the probes.
    fn contact(&mut self, maps: &mut Maps, contact: &Contact, payload: Payload<'_>) {
        let reached = match contact.what {
            contact::HELLO | contact::HELLO_PART => {
                self.contacts.hello(&self.providers, contact, payload.0)
            }
            _ => Hello::Provider(Reached { server_name: None, provider: contact.provider }),
        };
        match reached {
            Hello::Provider(reached) => {
                let unreported = self.unreported(maps, contact);
                self.opaque(maps, contact, reached, unreported.saturating_add(1));
            }
            Hello::Other(name) if self.concerns(contact, name.as_deref()) => {
                self.opaque(maps, contact, Reached { server_name: name, provider: 0 }, 1);
            }
            Hello::Other(_) => self.let_by(maps, contact),
            Hello::Part => {}
        }
    }

    /// Returns the number of refusals before a reported refusal, without a record of their own.
    fn unreported(&mut self, maps: &mut Maps, contact: &Contact) -> u64 {
        if beforehand_of(contact) == Beforehand::Nothing {
            return 0;
        }
        let Contact { tgid, provider, unreported, .. } = *contact;
        let key = DeniedKey { tgid, provider };
        let news = self.many.repeats.news(key, unreported);
        if news > 0 {
            maps.set_counted(key, unreported);
        }
        news
    }

    /// Counts the refusals not followed by a reported refusal so far.
    fn count_refusals(&mut self, maps: &mut Maps) {
        for (key, refusals) in maps.refusals() {
            self.count_refusals_of(maps, key, refusals);
        }
    }

    fn count_refusals_of(&mut self, maps: &mut Maps, key: DeniedKey, refusals: Refusals) {
        let Refusals { unreported, last, .. } = refusals;
        let count = self.unreported(maps, &Contact { unreported, ..last });
        if count > 0 {
            // The socket may have connected to another place since.
            let contact = Contact { cookie: self.number_without_connection(), ..last };
            let reached = Reached { server_name: None, provider: key.provider };
            self.opaque(maps, &contact, reached, count);
        }
    }

    /// Counts the last refusals of an ended process.
    fn end_refusals(&mut self, maps: &mut Maps, tgid: u32) {
        let keys: Vec<DeniedKey> = self.many.repeats.of(tgid).collect();
        for key in keys {
            if let Some(refusals) = maps.refusals_at(key) {
                self.count_refusals_of(maps, key, refusals);
            }
            maps.forget_refusals(key);
        }
        self.many.repeats.forget(tgid);
    }

    /// Removes the refusals of processes with a lost record of their end.
    fn sweep_refusals(&mut self, maps: &mut Maps) {
        for (key, refusals) in maps.refusals() {
            if self.identities.key_of(key.tgid).is_none() {
                self.count_refusals_of(maps, key, refusals);
                maps.forget_refusals(key);
                self.many.repeats.forget(key.tgid);
            }
        }
    }

    /// Returns the number of a unit without a connection of its own.
    fn number_without_connection(&mut self) -> u64 {
        self.units_without_connection = self.units_without_connection.wrapping_add(1);
        WITHOUT_CONNECTION | self.units_without_connection
    }

    /// Whether a handshake names no provider and has no confirmed name, though the settings ask for
    /// names.
    fn concerns(&mut self, contact: &Contact, name: Option<&str>) -> bool {
        if !self.engine.settings().asks_for_names() {
            return false;
        }
        let remote = socket_of_contact(contact).remote.ip().to_canonical();
        if name.is_some_and(|it| self.contacts.is_confirmed(it, remote)) {
            return false;
        }
        // A connection stopped by the programs belongs to a process in enforce mode, as far as they
        // know.
        let process = self.identities.of(contact.tgid).map(|it| it.key);
        process.map_or(contact.held != 0, |it| self.engine.principal_mode(it) == Mode::Enforce)
    }

    /// Lets a handshake without a provider go on.
    fn let_by(&mut self, maps: &mut Maps, contact: &Contact) {
        if contact.held != 0 {
            self.enforcer.joined(contact.cookie, socket_of_contact(contact));
            self.enforcer.arrived(contact.cookie, 1, contact.at_mono_ns);
            self.enforcer.release(maps, &self.metrics, contact.cookie, u64::MAX);
            self.enforcer.ended(contact.at_mono_ns, contact.cookie, false, None);
        }
        maps.forget_socket(contact.cookie);
    }

    /// Follows a connection without readable plaintext; without a provider, a connection with an
    /// unconfirmed name. `times`: number of contacts for which the contact stands.
    fn opaque(&mut self, maps: &mut Maps, contact: &Contact, reached: Reached, times: u64) {
        let (conn, now) = (contact.cookie, clock::now());
        let Reached { server_name, provider } = reached;
        let socket = socket_of_contact(contact);
        let facts = self.identities.of(contact.tgid);
        if contact.what == contact::HELLO_PART {
            if let Some(key) = facts.as_ref().map(|it| it.key)
                && self.engine.principal_mode(key) == Mode::Enforce
            {
                maps.holds.arm_opaque(conn, contact.tgid, contact.at_mono_ns);
            }
            maps.set_socket(conn, contact.tgid);
        }
        let live = Live { tgid: contact.tgid, tls: None, holds: false, provider, unsure: None };
        if !self.follow(maps, conn, live, facts, server_name.clone(), true) {
            self.metrics.lost_connections.add(times.saturating_sub(1));
            return;
        }
        self.metrics.uninspectable_connections.add(times);
        let beforehand = beforehand_of(contact);
        let refused = beforehand != Beforehand::Nothing;
        let update = ConnectionUpdate {
            local: (contact.local_port != 0).then_some(socket.local),
            remote: Some(socket.remote),
            hold: refused.then_some(HoldLevel::Held(Mechanism::Connect)),
            ..ConnectionUpdate::default()
        };
        self.engine.learn(now, ConnId(conn), update);
        self.tie(maps, contact.tgid, socket.remote, provider);
        if contact.what != contact::HELLO {
            self.enforcer.joined(conn, socket);
        }
        if refused {
            self.enforcer.unconnected(conn);
        }
        if contact.held != 0 || contact.what == contact::HELLO_PART {
            self.enforcer.arrived(conn, 1, contact.at_mono_ns);
        }
        match self.providers.name(provider) {
            None if provider == 0 => self.engine.unnamed(now, ConnId(conn), server_name.as_deref()),
            name => {
                let (provider, server) = (name.unwrap_or_default(), server_name.as_deref());
                self.engine.opaque(
                    now,
                    ConnId(conn),
                    Contacted { server, provider, beforehand, times },
                );
            }
        }
        if contact.held != 0 && !self.conns.get(&conn).is_some_and(|it| it.holds) {
            // The kernel held before it knew that the process is only observed.
            self.enforcer.release(maps, &self.metrics, conn, u64::MAX);
        }
        if refused {
            self.close(conn, contact.at_mono_ns, None);
        }
    }

    /// Handles the release of a socket to a provider: accounts for the read and unread bytes.
    fn released(&mut self, maps: &Maps, released: &Released) {
        let Released { at_mono_ns, cookie, conn, sent, received, .. } = *released;
        self.enforcer.released(at_mono_ns, cookie);
        self.metrics.socket_egress_bytes.add(sent);
        self.metrics.socket_ingress_bytes.add(received);
        self.look_for_breach(maps, conn);
        let now = clock::now();
        let opaque = self.conns.get(&conn).is_some_and(|it| it.tls.is_none());
        for unread in self.coverage.released(conn, opaque, sent, received) {
            let bytes = unread.passed_bytes.saturating_sub(unread.read_bytes);
            match unread.direction {
                Direction::Egress => self.metrics.unread_egress_bytes.add(bytes),
                Direction::Ingress => self.metrics.unread_ingress_bytes.add(bytes),
            }
            self.engine.note_unread(now, ConnId(conn), unread);
        }
        if opaque {
            self.engine.carried(ConnId(conn), sent, received);
            self.close(conn, at_mono_ns, None);
        }
    }

    /// Stops following a connection after long enough without an AI call.
    fn give_up(&mut self, maps: &mut Maps, conn: u64, at_mono_ns: u64) {
        self.enforcer.release(maps, &self.metrics, conn, u64::MAX);
        if let Some(socket) = self.enforcer.socket(conn) {
            // The bytes written from here on are not read, and need no explanation.
            maps.forget_socket(socket.cookie);
        }
        if let Some(key) = self.close(conn, at_mono_ns, None) {
            maps.set_other(&key);
        }
    }

    /// Handles the start of a program. The executable is remembered while the process runs, for the
    /// processes it may start. `path`: the path given to the kernel; empty: not known.
    fn exec(&mut self, maps: &mut Maps, tgid: u32, path: &[u8]) {
        self.programs.remove(&tgid);
        if (self.lineages.matter() || self.introduced.contains_key(&tgid))
            && let Some(facts) = self.identities.of(tgid).filter(|it| it.exe.is_some())
        {
            self.introduce(maps, facts);
            return;
        }
        // The process may have ended before: then the path reported by the kernel is all there is.
        let given = || (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned());
        if self.programs.len() < PROGRAMS_LIMIT
            && let Some(exe) = identity::executable(tgid).or_else(given)
        {
            self.programs.insert(tgid, exe);
        }
    }

    /// Handles the start of a child by a process not looked at yet. Either process may have ended
    /// meanwhile.
    fn fork(&mut self, maps: &mut Maps, fork: &Fork) {
        let parent = ProcessKey { pid: fork.tgid, start_ns: fork.start_ns };
        let child = ProcessKey { pid: fork.child_tgid, start_ns: fork.child_start_ns };
        self.metrics.undecided_forks.increment();
        if !self.engine.knows(parent)
            && let Some(facts) = self.identities.of(parent.pid).filter(|it| it.key == parent)
        {
            self.introduce(maps, facts);
        }
        let started_by = self.engine.principal(parent).map(str::to_owned);
        match self.engine.facts(parent).filter(|_| started_by.is_some()) {
            Some(of_parent) => {
                let known = self.engine.facts(child).cloned();
                let facts = known.unwrap_or_else(|| of_parent.forked(child));
                self.meet(maps, facts, started_by.as_deref());
            }
            None => maps.forget_lineage(child),
        }
    }

    /// Looks at some of the processes older than the agent, to know the lineage of the processes
    /// they start.
    fn survey(&mut self, maps: &mut Maps) {
        let rest = self.unseen.len().saturating_sub(SURVEY_BATCH);
        for pid in self.unseen.split_off(rest) {
            // Threads of the kernel run no program.
            if !self.introduced.contains_key(&pid)
                && let Some(facts) = self.identities.of(pid).filter(|it| it.exe.is_some())
            {
                self.introduce(maps, facts);
            }
        }
    }

    /// Tells the engine of a process, after the unknown ancestors of the process.
    fn introduce(&mut self, maps: &mut Maps, facts: ProcessFacts) {
        let mut line = vec![facts];
        while line.len() < LINEAGE_LIMIT
            && let Some(parent) = line.last().and_then(|it| it.parent)
            && parent.pid > 1
            && !self.engine.knows(parent)
            && let Some(above) = self.identities.of(parent.pid)
        {
            line.push(above);
        }
        for facts in line.into_iter().rev() {
            let started_by = self.lineages.of(maps, &facts).map(str::to_owned);
            self.meet(maps, facts, started_by.as_deref());
        }
    }

    /// Looks again at a process with a program matched by a principal from now on: whether the host
    /// has the program was not looked at while no principal depended on the answer.
    fn look_again(&mut self, maps: &mut Maps, process: ProcessKey) {
        let exe = self.engine.facts(process).and_then(|it| it.exe.as_deref());
        let principals = &self.config.sections().principals;
        if exe.is_some_and(|exe| principals.iter().any(|it| it.matches.may_be_program(exe)))
            && let Some(facts) = self.identities.of(process.pid).filter(|it| it.key == process)
        {
            self.introduce(maps, facts);
            if self.processes.contains_key(&process.pid) {
                let enforce = self.engine.principal_mode(process) == Mode::Enforce;
                let _full = maps.set_process(process.pid, enforce);
            }
        }
    }

    /// Tells the engine of a process, and of the principal that started the process, if known.
    fn meet(&mut self, maps: &mut Maps, facts: ProcessFacts, started_by: Option<&str>) {
        let (key, now) = (facts.key, clock::now());
        if let Some(before) = self.introduced.insert(key.pid, key).filter(|it| *it != key) {
            // The end of the earlier process was not seen.
            self.engine.process_exit(now, before);
        }
        match started_by {
            Some(principal) => self.engine.process_of(now, facts, principal),
            None => self.engine.process(now, facts),
        }
        self.hand_down(maps, key);
    }

    /// Has the kernel hand down the lineage of a process to the processes it starts.
    fn hand_down(&self, maps: &mut Maps, process: ProcessKey) {
        if let Some(facts) = self.engine.facts(process)
            && !self.lineages.tell(maps, facts, self.engine.principal(process))
        {
            self.metrics.lost_lineages.increment();
        }
    }

    /// Whether a write reported before is repeated with the same bytes; if not, reports the
    /// difference and ends the connection.
    fn repeats(&mut self, maps: &mut Maps, data: &Data, payload: Payload<'_>) -> bool {
        let first = data.flags & DATA_FIRST != 0;
        match self.rewrites.piece(data.conn, first, data.offset, payload.0) {
            Compared::Same => {
                let end = data.offset.saturating_add(u64::from(data.captured_len));
                self.enforcer.repeated(maps, data.conn, data.round, end);
                true
            }
            Compared::Different => {
                // The library took none of the bytes reported before.
                self.void(maps, data.conn, self.rewrites.taken_to(data.conn));
                self.note_unexplained(maps, data.conn, data.tgid, REWRITTEN, true);
                false
            }
        }
    }

    fn data(&mut self, maps: &mut Maps, data: &Data, payload: Payload<'_>) {
        if let Some(left) = self.conns.get_mut(&data.conn).and_then(|it| it.unsure.as_mut())
            && data.direction == EGRESS
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return self.give_up(maps, data.conn, data.at_mono_ns);
            }
        }
        let Some(live) = self.conns.get(&data.conn) else {
            // The opening was lost, and counted. The deadline decides about the bytes sent.
            return;
        };
        let (holds, tgid) = (live.holds, live.tgid);
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
            if holds && data.direction == EGRESS && !self.repeats(maps, data, payload) {
                return;
            }
            if holds && self.enforcer.is_overdue(data.at_mono_ns) {
                match self.enforcer.late(maps, data.conn, end, data.at_mono_ns) {
                    Late::Passed => self.timed_out(maps, data.conn, end, true),
                    Late::Stopped => self.timed_out(maps, data.conn, end, false),
                    Late::Kept => {}
                }
            }
            if !holds {
                // The kernel held before it knew that the process is only observed.
                self.enforcer.release(maps, &self.metrics, data.conn, end);
                self.enforcer.unheld(data.conn, end);
            }
        } else if data.direction == EGRESS && data.flags & DATA_DENIED == 0 {
            self.unheld(data.conn, end, holds);
        }
        let conn = ConnId(data.conn);
        if data.flags & DATA_DENIED != 0 {
            // The kernel has ended the connection already, as told.
            let mechanism = if self.mechanisms.has(Mechanism::Lsm) {
                Mechanism::Lsm
            } else {
                Mechanism::EgressHold
            };
            let hold = Some(HoldLevel::Held(mechanism));
            let update = ConnectionUpdate { hold, ..ConnectionUpdate::default() };
            self.engine.learn(clock::now(), conn, update);
            self.standing.refused(tgid);
        }
        self.coverage.read(data.conn, direction, data.offset, u64::from(data.captured_len));
        self.engine.data_at(clock::now(), conn, data.at_mono_ns, direction, data.offset, payload.0);
    }

    /// Handles bytes of a connection up to `to` written without a hold. `holds`: the kernel was to
    /// hold, and had no room; then `on_timeout` decides, and the socket's counters show the result.
    fn unheld(&mut self, conn: u64, to: u64, holds: bool) {
        if !holds {
            self.enforcer.unheld(conn, to);
        } else if !self.enforcer.is_closed() {
            self.engine.timed_out(clock::now(), ConnId(conn), to, true);
        }
    }

    /// Handles bytes sent by a socket and not explained by plaintext.
    fn unexplained(&mut self, maps: &mut Maps, found: &Unexplained) {
        let Unexplained { conn, state, reason, tgid, at_mono_ns, .. } = *found;
        if state != unexplained::WAITS {
            return self.note_unexplained(maps, conn, tgid, reason, state == unexplained::STOPPED);
        }
        self.enforcer.waits_unexplained(conn, at_mono_ns);
        if found.address != 0 {
            self.read_pages(found);
        }
        let Some(live) = self.conns.get(&conn) else { return };
        let known = self.processes.get(&live.tgid).map(|it| it.key);
        let provider = self.providers.name(live.provider).unwrap_or_default();
        if known.is_some_and(|it| self.engine.denies_until(clock::now(), it, provider).is_some()) {
            // The process may not reach the provider, whatever the bytes say.
            self.note_unexplained(maps, conn, tgid, reason, true);
        }
    }

    /// Asks for a read of a write not readable by the probe, until the deadline of the hold.
    fn read_pages(&mut self, found: &Unexplained) {
        let Unexplained { conn, tgid, at_mono_ns, seen_to, address, from, round, .. } = *found;
        let Some(facts) = self.processes.get(&tgid).and_then(|it| self.engine.facts(it.key)) else {
            return;
        };
        let user = facts.owner();
        let want = Want { conn, tgid, address, from, to: seen_to, round, at_mono_ns };
        let until = at_mono_ns.saturating_add(ns(hold_deadline(&self.config)));
        let limit = self.config.capture.message_limit_bytes;
        self.pages.want(want, user, limit, until);
    }

    /// Takes the bytes read of writes still going on. For a finished write, the probe at the end of
    /// the write has reported the bytes taken by the library, or has failed to.
    pub(super) fn take_pages(&mut self, maps: &mut Maps) {
        let done = self.pages.done(clock::mono_ns());
        if done.is_empty() {
            return;
        }
        for (want, bytes) in done {
            let tls = self.conns.get(&want.conn).and_then(|it| it.tls);
            if tls.and_then(|it| maps.taken_to(&it)) != Some(want.from) {
                continue;
            }
            let mut at = want.from;
            for piece in bytes.chunks(PIECE_LEN) {
                let first = if at == want.from { DATA_FIRST } else { 0 };
                let data = Data {
                    kind: kind::DATA,
                    direction: EGRESS,
                    flags: DATA_HELD | first,
                    round: u16::try_from(want.round & 0xffff).unwrap_or_default(),
                    at_mono_ns: want.at_mono_ns,
                    conn: want.conn,
                    offset: at,
                    tgid: want.tgid,
                    captured_len: u32::try_from(piece.len()).unwrap_or_default(),
                };
                self.data(maps, &data, Payload(piece));
                at = at.saturating_add(piece.len() as u64);
            }
        }
        self.settle(maps);
    }

    /// Records bytes not explained by plaintext, stopped for good or let go, as a separate unit.
    fn note_unexplained(
        &mut self,
        maps: &mut Maps,
        conn: u64,
        tgid: u32,
        reason: u32,
        stopped: bool,
    ) {
        let now = clock::now();
        let live = self.conns.get(&conn);
        let (tgid, provider) = live.map_or((tgid, 0), |it| (it.tgid, it.provider));
        let facts = self.identities.of(tgid);
        let key = self.processes.get(&tgid).map(|it| it.key).or(facts.as_ref().map(|it| it.key));
        let server_name = maps.server_name(conn);
        let socket = self.enforcer.socket(conn).or_else(|| maps.holds.socket(conn));
        let hold = HoldLevel::Held(Mechanism::EgressHold);
        let unit = ConnId(self.number_without_connection());
        let opened = ConnectionOpen {
            name: format!("c{conn}"),
            process: key,
            pid: (tgid != 0).then_some(tgid),
            comm: facts.as_ref().map(|it| it.comm.clone()),
            exe: facts.and_then(|it| it.exe),
            server_name: server_name.clone(),
            local: socket.map(|it| it.local),
            remote: socket.map(|it| it.remote),
            from_start: false,
            hold: if stopped { hold } else { HoldLevel::None },
        };
        if stopped {
            self.unread_units.insert(unit.0, conn);
        }
        self.engine.open(now, unit, opened);
        let unread = Unexplainable { reason: reason_name(reason), stopped };
        let provider = self.providers.name(provider).unwrap_or_default();
        self.engine.unexplained(now, unit, server_name.as_deref(), provider, unread);
        self.engine.close(now, unit, now.mono_ns);
        if stopped {
            self.enforcer.deny(maps, &self.metrics, conn);
        }
    }

    /// Treats the bytes not taken by the TLS library as not run, unless some left all the same.
    /// Called when the TLS object is freed, or when other bytes come in the place.
    fn void(&mut self, maps: &mut Maps, conn: u64, taken_to: u64) {
        let Some(from) = self.engine.running_from(ConnId(conn), taken_to) else { return };
        if self.enforcer.withdraw(maps, &self.metrics, conn, from) {
            self.engine.not_taken(ConnId(conn), from);
        }
    }

    /// Handles the end of a connection. `taken_to`: position after the last byte taken by the
    /// library, if the TLS object was freed.
    fn close(&mut self, conn: u64, at_mono_ns: u64, taken_to: Option<u64>) -> Option<ConnKey> {
        let live = self.conns.remove(&conn)?;
        if let Some(known) = self.processes.get_mut(&live.tgid) {
            known.conns.retain(|&other| other != conn);
        }
        self.engine.close(clock::now(), ConnId(conn), at_mono_ns);
        self.coverage.ended(conn, at_mono_ns);
        if live.tls.is_some() && self.enforcer.socket(conn).is_none() {
            self.metrics.joins_unknown.increment();
        }
        self.enforcer.ended(at_mono_ns, conn, live.tls.is_some(), taken_to);
        self.rewrites.ended(conn);
        live.tls
    }

    fn exit(&mut self, maps: &mut Maps, tgid: u32, at_mono_ns: u64) {
        self.programs.remove(&tgid);
        self.end_refusals(maps, tgid);
        if let Some(key) = self.introduced.remove(&tgid) {
            // The kernel may have been told of the process after the process had ended.
            maps.forget_lineage(key);
            self.engine.process_exit(clock::now(), key);
        }
        let Some(known) = self.processes.remove(&tgid) else {
            // An earlier agent may have denied the process a provider.
            return self.standing.forget(maps, tgid);
        };
        for conn in known.conns {
            // The process did not free its TLS objects, so the kernel programs still know them.
            if let Some(key) = self.close(conn, at_mono_ns, None) {
                maps.forget_tls_object(&key);
            }
        }
        self.standing.forget(maps, tgid);
        maps.forget_process(tgid);
    }

    fn timed_out(&mut self, maps: &mut Maps, conn: u64, to: u64, passed: bool) {
        self.enforcer.timed_out(maps, &self.metrics, conn, to, passed);
        self.engine.timed_out(clock::now(), ConnId(conn), to, passed);
    }

    /// Carries out the engine's decisions: writes each decision down, makes it durable if a request
    /// waits for it, then releases or denies.
    pub(super) fn settle(&mut self, maps: &mut Maps) {
        let outputs: Vec<Output> = self.engine.outputs().collect();
        if outputs.is_empty() {
            return;
        }
        let mut taken = true;
        for output in &outputs {
            match output {
                Output::Record(record) => taken &= self.write_down(record),
                Output::Ledger(entry) => {
                    self.ledger.append(entry);
                    self.uncommitted_since.get_or_insert_with(clock::mono_ns);
                }
                Output::Awu(_)
                | Output::Release { .. }
                | Output::Deny { .. }
                | Output::Check { .. } => {}
            }
        }
        let verdicts =
            outputs.iter().any(|it| matches!(it, Output::Release { .. } | Output::Deny { .. }));
        let durable = if verdicts && self.config.evidence.durable_before_release {
            self.commit() && taken
        } else {
            taken
        };
        self.evidence_failed &= !durable;
        for output in outputs {
            self.carry_out(maps, output, durable);
        }
        // The effect of a refusal is written down at once; no request waits for it.
        self.settle(maps);
    }

    /// Writes or folds a record. False after a failure.
    fn write_down(&mut self, record: &genops_governance::Record) -> bool {
        let terms =
            Terms { suspended: self.evidence_failed, squeezed: self.many.squeezed.as_ref() };
        match self.many.fold.take(record, terms) {
            Taken::Written => self.write_record(record),
            Taken::Folded => true,
            Taken::After(lines) => {
                let before = self.write_lines(record.at, &lines);
                self.write_record(record) && before
            }
            Taken::Instead(lines) => self.write_lines(record.at, &lines),
        }
    }

    /// Writes all lines. False after a failure.
    fn write_lines(&mut self, now: Now, lines: &[Line]) -> bool {
        let mut taken = true;
        for line in lines {
            taken &= match line {
                Line::Record(record) => self.write_record(record),
                Line::Folded(folded) => self.write(|journal| journal.folded(now, folded)),
            };
        }
        taken
    }

    fn write_record(&mut self, record: &genops_governance::Record) -> bool {
        if let Some(user) = owner(record) {
            self.many.authors.one_more(record.at.mono_ns, user);
        }
        self.write(|journal| journal.record(record))
    }

    /// Appends to the journal. False after a failure, which is counted.
    fn write(&mut self, append: impl FnOnce(&mut Journal) -> Result<u64, AppendError>) -> bool {
        // Many waiting requests fill the buffer; a commit makes room. The ledger's part comes
        // first.
        if self.journal.is_crowded() {
            self.commit();
        }
        self.uncommitted_since.get_or_insert_with(clock::mono_ns);
        let written = append(&mut self.journal);
        written.map_err(|error| self.evidence_fails(error.to_string())).is_ok()
    }

    /// Writes the counts of past seconds.
    fn unfold(&mut self, now: Now) {
        let lines = self.many.fold.close(now);
        self.write_lines(now, &lines);
    }

    /// Folds refusals of the user with most records while disk space is scarce.
    fn squeeze(&mut self, now: Now) {
        let scarce = space::free_percent(&self.config.evidence.directory)
            .is_some_and(|it| it < space::SCARCE_PERCENT);
        let squeezed = if scarce { self.many.authors.most(now.mono_ns).cloned() } else { None };
        if squeezed.is_some() && self.many.squeezed.is_none() {
            eprintln!(
                "genops-agent: less than {} % of {} are free: refusals of whoever writes most of the evidence are counted, and not written one by one",
                space::SCARCE_PERCENT,
                self.config.evidence.directory.display()
            );
        }
        self.many.squeezed = squeezed;
    }

    /// Counts a refused unit. Above the rate, the kernel refuses the user's connects to the
    /// provider.
    fn refused(&mut self, maps: &mut Maps, record: &genops_governance::Record) {
        let provider = record.what.as_ref().and_then(|it| it.provider.as_deref());
        let provider = provider.map_or(0, |it| self.providers.number(it));
        let Some(user) = owner(record).filter(|_| provider != 0) else { return };
        // Without the cgroup, the user ID of an ended process may belong to another user in a
        // container.
        let cgroup = record.who.as_ref().and_then(|it| it.cgroup.as_deref());
        let Some((uid, cgroup)) = user.uid.zip(cgroup) else { return };
        let now_mono_ns = clock::mono_ns();
        let floods = &mut self.many.floods;
        let Some(until) = floods.refused(now_mono_ns, &user, provider, record.times) else {
            return;
        };
        let groups = self.groups_of(&user, cgroup);
        for key in self.many.floods.close(groups.into_iter(), (uid, provider), until) {
            maps.set_flooding(&key, Some(until));
        }
    }

    /// Returns the cgroup of a process first, then the cgroups of the other processes of the same
    /// user.
    fn groups_of(&self, user: &User, own: &str) -> Vec<u64> {
        let facts = self.processes.values().filter_map(|it| self.engine.facts(it.key));
        let theirs = facts.filter(|it| it.owner() == *user).filter_map(|it| it.cgroup.as_deref());
        let others: BTreeSet<&str> = theirs.filter(|it| *it != own).collect();
        let all = std::iter::once(own).chain(others);
        all.filter_map(|it| self.identities.group_number(it)).collect()
    }

    fn evidence_fails(&mut self, error: String) {
        self.metrics.lost_evidence.increment();
        if !std::mem::replace(&mut self.evidence_failed, true) {
            eprintln!("genops-agent: evidence can't be written: {error}");
        }
        self.metrics.readiness.waits(Part::Evidence, error);
    }

    fn carry_out(&mut self, maps: &mut Maps, output: Output, durable: bool) {
        match output {
            Output::Release { conn, .. } | Output::Deny { conn, .. }
                if conn.0 & WITHOUT_CONNECTION != 0 =>
            {
                // The kernel has carried out the verdict.
            }
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
            Output::Check { conn } => match self.unread_units.remove(&conn.0) {
                Some(carrier) => self.check_unread(maps, conn, carrier),
                None => self.check(maps, conn.0),
            },
            Output::Awu(awu) => {
                let refused = matches!(awu.outcome, Outcome::Refused(_));
                let conn = awu.conn.strip_prefix('c').and_then(|it| it.parse().ok());
                if let Some(live) = conn.and_then(|it: u64| self.conns.get_mut(&it)) {
                    live.unsure = None;
                }
                if let Some(tgid) = awu.pid.filter(|_| refused) {
                    self.standing.refused(tgid);
                }
                if let Some(signal) = awu.signal() {
                    self.end_process(&awu, signal);
                }
                let awu = Arc::from(awu);
                self.tell(&awu);
                let user = self.refusers.remove(&awu.id);
                if let Some(user) = user.filter(|_| refused) {
                    self.user_socket.publish(user, &awu);
                }
            }
            Output::Record(record) if is_refusal(&record) => {
                if self.refusers.len() >= REFUSERS_LIMIT {
                    self.refusers.clear();
                }
                self.refusers.extend(record.awu.zip(owner(&record)));
                self.refused(maps, &record);
            }
            Output::Record(_) | Output::Ledger(_) => {}
        }
    }

    /// Sends the signal asked for by a policy. The evidence is written, and no byte of the request
    /// can leave any more.
    fn end_process(&self, awu: &Awu, signal: Signal) {
        let Some(known) = awu.pid.and_then(|it| self.processes.get(&it)) else {
            return self.metrics.signals_failed.increment();
        };
        match self.identities.signal(known.key, signal) {
            Ok(()) => self.metrics.signals_sent.increment(),
            Err(error) => {
                self.metrics.signals_failed.increment();
                let (signal, pid) = (signal.as_str(), known.key.pid);
                eprintln!("genops-agent: SIG{signal} can't be sent to process {pid}: {error}");
            }
        }
    }

    fn tell(&self, awu: &Arc<Awu>) {
        match awu.outcome.decision().result() {
            PolicyResult::Allowed => self.metrics.awus_allowed.increment(),
            PolicyResult::Warning => self.metrics.awus_warning.increment(),
            PolicyResult::Blocked => self.metrics.awus_blocked.increment(),
            PolicyResult::RateLimited => self.metrics.awus_rate_limited.increment(),
        }
        // Printer and exporter count the units they can't take.
        self.printer.try_print(awu);
        if let Some(exporter) = &self.exporter {
            exporter.try_send(awu);
        }
        if let Some(control) = &self.control {
            control.publish(awu);
        }
    }

    /// Performs the requests at the agent's socket. An answer means that the change is durable.
    fn answer(&mut self, maps: &mut Maps) {
        while let Some(pending) = self.control.as_ref().and_then(Control::next) {
            let (request, peer) = (pending.request.clone(), pending.peer);
            let answer = control::perform(request, peer, &mut self.engine, clock::now());
            self.settle(maps);
            self.commit();
            pending.answer(answer);
        }
    }

    /// Makes evidence and accounts durable. False after a failure, which is counted.
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
            Ok(records) => {
                self.metrics.evidence_records.add(records);
                self.metrics.readiness.reached(Part::Evidence);
                true
            }
            Err(error) => {
                self.evidence_fails(error);
                false
            }
        }
    }

    /// Does the timed work: deadlines, commits, checkpoints, the guard's heartbeat.
    pub(super) fn tick(&mut self, capture: &mut Capture) {
        let now = clock::now();
        let maps = &mut capture.maps;
        for Expired { conn, to, unexplained, stopped } in self.enforcer.expire(maps) {
            // A push makes the kernel program report; a closed socket reports nothing.
            match unexplained {
                _ if !stopped => {}
                Some(reason) => self.note_unexplained(maps, conn, 0, reason, true),
                None => self.timed_out(maps, conn, to, false),
            }
        }
        if self.engine.next_deadline().is_some_and(|at| at <= now.mono_ns) {
            self.engine.tick(now);
        }
        self.survey(maps);
        self.settle(maps);
        self.answer(maps);
        self.standing.tell(maps, &self.engine, &self.providers, now);
        for conn in self.enforcer.overdue(now.mono_ns) {
            self.give_up_waiting(maps, conn);
        }
        for (conn, more) in self.enforcer.forget(maps, now.mono_ns) {
            if let Some(left) = more {
                self.engine.breach(now, ConnId(conn), effect_of(left));
            }
            self.engine.forget(ConnId(conn));
        }
        self.settle(maps);
        self.unfold(now);
        self.beat(maps, now);
        if self.guard.as_mut().is_some_and(|guard| !guard.beat()) {
            eprintln!("genops-agent: the guard process has ended; it is started again");
            self.guard = start_guard(&self.config, maps, self.pins.as_deref());
        }
        if self
            .uncommitted_since
            .is_some_and(|since| now.mono_ns.saturating_sub(since) >= COMMIT_WITHIN_NS)
        {
            self.commit();
        }
        if now.mono_ns >= self.account_at_mono_ns {
            self.account_at_mono_ns = now.mono_ns.saturating_add(ACCOUNT_EVERY_NS);
            for key in self.many.floods.over(now.mono_ns) {
                capture.maps.set_flooding(&key, None);
            }
            self.account(capture, now);
        }
        if self.many.repeats.are_due(now.mono_ns) {
            self.count_refusals(&mut capture.maps);
        }
        if now.mono_ns >= self.count_at_mono_ns {
            self.count_at_mono_ns = now.mono_ns.saturating_add(COUNT_EVERY_NS);
            capture.maps.count_anew();
            self.sweep_refusals(&mut capture.maps);
        }
    }

    /// Reports the effect of a refusal without a socket known in time.
    fn give_up_waiting(&mut self, maps: &mut Maps, conn: u64) {
        self.catch_up(maps, conn);
        let left = self.enforcer.effect_at_last(maps, conn);
        self.engine.left(clock::now(), ConnId(conn), effect_of(left));
    }

    /// Tells the kernel programs that an agent decides.
    fn beat(&mut self, maps: &mut Maps, now: Now) {
        if now.mono_ns < self.beat_at_mono_ns {
            return;
        }
        self.beat_at_mono_ns = now.mono_ns.saturating_add(BEAT_EVERY_NS);
        let beaten = maps.holds.beat(now.mono_ns, ns(absent_after(&self.config)));
        if let Err(error) = beaten {
            eprintln!("genops-agent: the kernel programs can't be told that it runs: {error}");
        }
    }

    /// Brings evidence and counters up to date.
    fn account(&mut self, capture: &Capture, now: Now) {
        let lost = capture.count_losses();
        self.squeeze(now);
        // Accounts before evidence.
        self.commit();
        if let Err(error) = self.ledger.renew(self.engine.ledger()) {
            eprintln!(
                "genops-agent: budget accounts can't be written anew, and go on growing: {error}"
            );
        }
        self.journal.set_kernel_counters(self.metrics.kernel_records.get(), lost);
        if let Err(error) = self.journal.tick(now) {
            self.metrics.readiness.waits(Part::Evidence, error.to_string());
        }
        if self.journal.waits() {
            // Results of witnesses and copies; on an idle host nothing else would commit them.
            self.uncommitted_since.get_or_insert_with(clock::mono_ns);
        }
        self.metrics.connections.set(self.conns.len() as u64);
        self.metrics.processes.set(self.processes.len() as u64);
        self.metrics.decoder_memory_bytes.set(self.engine.memory_bytes() as u64);
    }

    /// Puts a configuration read again in force; if it is refused, the configuration before stays.
    pub(super) fn reload(&mut self, maps: &mut Maps) {
        while let Some(reading) = self.watch.as_ref().and_then(Watch::next) {
            match reading {
                Ok(config) => self.put_in_force(maps, *config),
                Err(error) => self.refuse(&error),
            }
            self.settle(maps);
        }
    }

    fn refuse(&mut self, error: &LoadError) {
        self.metrics.policy_loads_refused.increment();
        refused(&self.metrics, &error.to_string());
        self.engine.refused(clock::now(), &error.to_string());
        eprintln!("genops-agent: {error}; the configuration before stays in force");
    }

    fn put_in_force(&mut self, maps: &mut Maps, config: Config) {
        let old = std::mem::replace(&mut self.config, config);
        let config = &self.config;
        for warning in &config.warnings {
            eprintln!("genops-agent: {warning}");
        }
        for key in old.wait_for_start(config) {
            eprintln!("genops-agent: `{key}` has changed; that counts from the next start on");
        }
        self.journal.decide_by(config.recipe.as_deref());
        self.journal.set_content(config.evidence.content);
        self.engine.keep_texts(config.evidence.content != Content::None);
        self.engine.reload(clock::now(), config.settings());
        self.identities.name_by(matches(config));
        self.contacts.keep_names(config.settings().asks_for_names());
        let had_any = self.lineages.matter();
        self.lineages = Lineages::new(self.engine.settings());
        self.enforcer.set(hold_deadline(config), config.on_timeout);
        let told = maps.set_settings(kernel_settings(config));
        self.providers.replace(&config.hosts);
        self.standing.all_changed();
        if let Err(error) = told.and_then(|()| maps.set_hosts(&self.providers)) {
            eprintln!("genops-agent: the kernel programs keep their settings: {error:#}");
        }
        for &process in self.introduced.values() {
            self.hand_down(maps, process);
        }
        if self.lineages.matter() && !had_any {
            self.unseen = discovery::pids().collect();
        }
        for (&tgid, known) in &self.processes {
            let enforce = self.engine.principal_mode(known.key) == Mode::Enforce;
            let _full = maps.set_process(tgid, enforce);
        }
        let enforcing = config.enforces() && self.mechanisms.has(Mechanism::EgressHold);
        self.metrics.enforcing.set(u64::from(enforcing));
        let remark = absence::remark(config, self.pins.as_deref(), self.unkept.as_deref());
        if let Some(remark) = &remark {
            eprintln!("genops-agent: {remark}");
        }
        self.metrics.readiness.remark(Remark::Absence, remark);
        let guarded = (old.on_timeout, old.hold_deadline, enforcing);
        if guarded != (config.on_timeout, config.hold_deadline, self.guard.is_some()) {
            let next =
                if enforcing { start_guard(config, maps, self.pins.as_deref()) } else { None };
            if let Some(before) = std::mem::replace(&mut self.guard, next) {
                before.dismiss();
            }
        }
        for process in self.introduced.values().copied().collect::<Vec<_>>() {
            self.look_again(maps, process);
        }
        self.hold_more();
        self.metrics.policy_loads_accepted.increment();
        self.metrics.configuration_refused.set(0);
        self.metrics.readiness.remark(Remark::Configuration, None);
        if let Some(watch) = &self.watch {
            keep(watch.path(), &self.config);
        }
        eprintln!("genops-agent: the configuration was read again and is in force");
    }

    /// Holds the connections of processes enforced from now on; a held connection stays held.
    fn hold_more(&mut self) {
        let held = Some(HoldLevel::Held(Mechanism::EgressHold));
        for (&conn, live) in self.conns.iter_mut().filter(|(_, it)| !it.holds) {
            let known = self.processes.get(&live.tgid);
            let enforce =
                known.is_some_and(|it| self.engine.principal_mode(it.key) == Mode::Enforce);
            if enforce && self.mechanisms.has(Mechanism::EgressHold) {
                live.holds = true;
                let update = ConnectionUpdate { hold: held, ..ConnectionUpdate::default() };
                self.engine.learn(clock::now(), ConnId(conn), update);
            }
        }
    }

    /// Closes and writes everything, and ends the helpers of the run.
    pub(super) fn finish(mut self, capture: &mut Capture) {
        let now = clock::now();
        let left = if self.pins.is_none() {
            capture.maps.holds.hold_no_more()
        } else {
            capture.maps.holds.leave()
        };
        if let Err(error) = left {
            eprintln!("genops-agent: the kernel programs can't be told that it ends: {error}");
        }
        self.count_refusals(&mut capture.maps);
        self.engine.finish(now);
        self.settle(&mut capture.maps);
        for conn in self.enforcer.overdue(u64::MAX - 1) {
            self.give_up_waiting(&mut capture.maps, conn);
        }
        self.settle(&mut capture.maps);
        let lines = self.many.fold.finish();
        self.write_lines(now, &lines);
        self.commit();
        self.account(capture, now);
        if let Err(error) = self.journal.balances(now, Moment::Stop, self.engine.ledger(), None) {
            eprintln!("genops-agent: evidence: {error}");
        }
        let farewell = absence::farewell(&self.config, self.pins.as_deref());
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
        if let Some(farewell) = farewell {
            eprintln!("genops-agent: {farewell}");
        }
    }
}

/// Reports that the configuration in force is not the configuration in the file.
pub(super) fn refused(metrics: &Metrics, why: &str) {
    metrics.configuration_refused.set(1);
    let said =
        format!("the last good configuration is in force, the present one is refused: {why}");
    metrics.readiness.remark(Remark::Configuration, Some(said));
}

/// Keeps the configuration in force for a start without a valid configuration file.
fn keep(path: &Path, config: &Config) {
    if let Err(error) = kept::keep(path, config) {
        let state = kept::state_of(config);
        eprintln!(
            "genops-agent: the configuration can't be kept in {}: {error}; a start with one that can't be read will fail",
            state.display()
        );
    }
}

/// The reason as named in `genops.capture.reason`.
fn reason_name(reason: u32) -> &'static str {
    match reason {
        unexplained::UNREAD_PAGE => "page_not_present",
        unexplained::RING_FULL => "ring_full",
        unexplained::NO_RECORDS => "no_tls_records",
        REWRITTEN => "rewritten",
        _ => "no_plaintext",
    }
}

fn effect_of(left: Left) -> Effect {
    let Left { to, mechanism, counted } = left;
    Effect { mechanism, counted, left_to: to }
}

/// Returns the verdict of the kernel programs on a contact.
fn beforehand_of(contact: &Contact) -> Beforehand {
    match contact.what {
        contact::REFUSED => Beforehand::Refused,
        contact::ABSENT => Beforehand::Undecided,
        contact::FLOODED => Beforehand::TooMany,
        _ => Beforehand::Nothing,
    }
}

/// The socket named by a contact.
fn socket_of_contact(contact: &Contact) -> Socket {
    let Contact { cookie, tgid, ip_version, local, remote, local_port, remote_port, .. } = *contact;
    let address = |bytes: [u8; 16], port| address_of(ip_version, bytes, port);
    Socket { cookie, tgid, local: address(local, local_port), remote: address(remote, remote_port) }
}

/// The match rules of all principals.
fn matches(config: &Config) -> Vec<MatchConfig> {
    config.sections().principals.iter().map(|it| it.matches.clone()).collect()
}

/// The server name given to the TLS library by the program.
pub(super) fn server_name(open: &Open) -> Option<&str> {
    let len = usize::try_from(open.name_len).ok().filter(|&len| len > 0)?;
    std::str::from_utf8(open.name.get(..len)?).ok()
}

fn engine(config: &Config, accounts: Ledger) -> Result<Engine> {
    let mut entropy = [0; 32];
    let filled = rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    anyhow::ensure!(filled == entropy.len(), "the kernel gave {filled} random bytes of 32");
    let mut engine = Engine::new(config.settings(), accounts, entropy);
    // Approvals outlive the agent, as the accounts do.
    let path = kept::state_of(config).join(APPROVALS_KEY);
    match genops_evidence::secret::load_or_make(&path) {
        Ok(key) => engine.know_requests_by(*key),
        Err(error) => eprintln!(
            "genops-agent: {}: {error}; what is approved from now on must run before this agent ends",
            path.display()
        ),
    }
    Ok(engine)
}

fn start_guard(config: &Config, maps: &Maps, pins: Option<&Pins>) -> Option<Guarded> {
    let closed = config.on_timeout == OnTimeout::Closed;
    let run = pins.map(Pins::run);
    match Guarded::start(&maps.holds, hold_deadline(config), closed, run) {
        Ok(guard) => Some(guard),
        Err(error) => {
            eprintln!(
                "genops-agent: {error:#}; if the agent is killed while it holds requests, they wait for TCP's own timers"
            );
            None
        }
    }
}

/// Warns about the fate of refusals while no agent runs, if a remark is due.
fn remark_absence(config: &Config, capture: &Capture, metrics: &Metrics) {
    let (pins, unkept) = (capture.pins.as_deref(), capture.unkept.as_deref());
    if let Some(remark) = absence::remark(config, pins, unkept) {
        eprintln!("genops-agent: {remark}");
        metrics.readiness.remark(Remark::Absence, Some(remark));
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

fn start_detail(config: &Config, mechanisms: &Mechanisms) -> Vec<(&'static str, String)> {
    let mode = if config.enforces() { "enforce" } else { "observe" };
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("mode", mode.to_owned()),
        ("config", crate::journal::sha256_text(&config.hash)),
        ("mechanism", mechanisms.names()),
    ]
}

fn report(restored: &Restored) {
    match restored {
        Restored::Whole => {}
        Restored::Torn { bytes } => eprintln!(
            "genops-agent: budget accounts: {bytes} bytes of an interrupted write were cut off"
        ),
        Restored::Lost { why, kept_as } => {
            let kept = kept_as.as_ref().map(|it| format!("; the file is kept as {}", it.display()));
            eprintln!(
                "genops-agent: budget accounts are not all there ({why}); budgets count as used up until their period ends, or `genops-agent budget --adjust` gives them more{}",
                kept.unwrap_or_default()
            );
        }
    }
}
