//! The engine: owns every connection, takes bytes, facts and the time, and gives [`Output`]s.
//!
//! No I/O: the caller applies the outputs in order. The same inputs give the same outputs. The
//! module is the public interface; [`core`] has the state, [`decide`] the order of a decision,
//! [`estimate`] the possible usage of a request, [`account`] the end of a unit, [`effect`] the
//! effect of a refusal, [`again`] the repetition of a recorded decision, and [`link`] the facts
//! about a connection.

mod account;
mod again;
mod core;
mod decide;
mod effect;
mod estimate;
mod link;
mod opaque;
mod spent;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use genops_protocols::{
    Connection, ConnectionFacts, Direction, Egress, Exchange, Memory, Request, Sink,
};

use self::core::Core;
use self::link::{Link, Running};
use crate::approval::Approval;
use crate::awu::{Awu, AwuId, HoldLevel};
use crate::config::Mode;
use crate::ledger::{AccountKey, Closed, Entry, Ledger};
use crate::process::{ProcessFacts, ProcessKey, User};
use crate::record::Record;
use crate::settings::Settings;
use crate::time::Now;

pub use self::again::Again;
pub use self::effect::Effect;
pub use self::opaque::Unexplainable;

/// Number of a connection, given by the caller. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Facts about a connection when first seen.
#[derive(Clone, Debug)]
pub struct ConnectionOpen {
    /// `conn` in outputs.
    pub name: String,
    /// Process owning the connection.
    pub process: Option<ProcessKey>,
    /// Pid of the process, also if nothing more is known.
    pub pid: Option<u32>,
    /// Command name of the process.
    pub comm: Option<String>,
    /// Executable of the process.
    pub exe: Option<String>,
    /// Server name of the TLS handshake.
    pub server_name: Option<String>,
    /// Local address.
    pub local: Option<SocketAddr>,
    /// Remote address.
    pub remote: Option<SocketAddr>,
    /// Whether the connection was seen from the first byte.
    pub from_start: bool,
    /// Whether the kernel holds the connection's egress.
    pub hold: HoldLevel,
}

/// Facts about a connection learned later. `None` changes nothing.
#[derive(Clone, Debug, Default)]
pub struct ConnectionUpdate {
    /// Process owning the connection.
    pub process: Option<ProcessKey>,
    /// Server name of the TLS handshake.
    pub server_name: Option<String>,
    /// Local address.
    pub local: Option<SocketAddr>,
    /// Remote address.
    pub remote: Option<SocketAddr>,
    /// Whether the kernel holds the connection's egress from now on.
    pub hold: Option<HoldLevel>,
}

/// Verdict of the kernel on a connection before the engine heard of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beforehand {
    /// No verdict: the engine decides.
    Nothing,
    /// The kernel refused the connection, as told after [`Engine::denies_until`].
    Refused,
    /// The kernel refused the connection after too many refusals of the user.
    TooMany,
    /// The kernel refused the connection, because no agent was running to decide.
    Undecided,
}

/// Contact with a provider on a connection without a reader of the plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contacted<'a> {
    /// Server name of the TLS handshake.
    pub server: Option<&'a str>,
    /// Provider.
    pub provider: &'a str,
    /// Verdict of the kernel.
    pub beforehand: Beforehand,
    /// Number of contacts for which the contact stands: the kernel only counts refusals above a
    /// rate.
    pub times: u64,
}

/// Amount read of a direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Direction.
    pub direction: Direction,
    /// Bytes carried by the socket, TLS records included.
    pub passed_bytes: u64,
    /// Bytes of plaintext read.
    pub read_bytes: u64,
}

/// Task for the caller, in the order of the outputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Releases egress up to stream position `to`. Only for held connections.
    Release {
        /// Connection.
        conn: ConnId,
        /// Stream position after the last released byte.
        to: u64,
    },
    /// Denies all further egress of the connection: the caller destroys the socket.
    Deny {
        /// Connection.
        conn: ConnId,
        /// Refused unit.
        awu: AwuId,
        /// Number of other exchanges in flight on the connection.
        collateral: u64,
    },
    /// Asks for the effect of refusals on the connection: the caller reads the bytes that left, and
    /// reports the effect through [`Engine::left`] within a second. Only after
    /// [`Engine::await_effects`].
    Check {
        /// Connection.
        conn: ConnId,
    },
    /// Change of the ledger: make the change durable before any later `Release` takes effect.
    Ledger(Entry),
    /// Evidence: make the record durable before any later `Release` or `Deny` takes effect.
    Record(Box<Record>),
    /// Finished unit, refused units included.
    Awu(Box<Awu>),
}

/// The governance engine: connections, accounts and decisions.
#[derive(Debug)]
pub struct Engine {
    conns: BTreeMap<ConnId, (Connection, Link)>,
    core: Core,
    /// Memory limit of all decoders together.
    memory: Arc<Memory>,
    /// Memory limit of the decoders of each user, kept while the user has a connection.
    memories: HashMap<User, Weak<Memory>>,
}

/// A call into a decoder, passing decoded requests and exchanges to the core.
struct Turn<'a> {
    core: &'a mut Core,
    link: &'a mut Link,
    now: Now,
}

impl Sink for Turn<'_> {
    fn request(&mut self, request: &Request<'_>) {
        self.core.request(self.now, self.link, request);
    }

    fn exchange(&mut self, exchange: Exchange) {
        self.core.exchange(self.now, self.link, exchange);
    }
}

impl Engine {
    /// Creates an engine with the settings, continuing from the ledger. `entropy` makes identities
    /// unique: fresh randomness for a live run, any fixed value for a replay.
    ///
    /// Calls holding a reservation when the ledger was written are charged in full, because nobody
    /// knows whether the calls ran.
    #[must_use]
    pub fn new(settings: Settings, ledger: Ledger, entropy: [u8; 32]) -> Self {
        Self {
            conns: BTreeMap::new(),
            core: Core::new(settings, ledger, entropy),
            memory: Arc::default(),
            memories: HashMap::new(),
        }
    }

    /// Sets whether records of decisions carry the text sent to the model.
    pub fn keep_texts(&mut self, keep: bool) {
        self.core.keeps_texts = keep;
    }

    /// Sets the key for recognizing requests; without a key, no approval outlives the engine. The
    /// key prevents guessing the text of an approved request from the request's digest.
    pub fn know_requests_by(&mut self, key: [u8; 32]) {
        self.core.approvals_key = key;
    }

    /// Delays the decision records of refusals on held connections until the effect is known: the
    /// caller answers each [`Output::Check`].
    pub fn await_effects(&mut self) {
        self.core.awaits_effects = true;
    }

    /// Takes the effect of refusals on a connection.
    pub fn left(&mut self, now: Now, conn: ConnId, effect: Effect) {
        if let Some(mut link) = self.core.departed.remove(&conn) {
            self.core.settle_refused(now, &mut link, effect, true);
        }
        if let Some((_, link)) = self.conns.get_mut(&conn) {
            self.core.settle_refused(now, link, effect, false);
        }
    }

    /// Takes the effect on a connection with more egress than reported to [`Self::left`].
    pub fn breach(&mut self, now: Now, conn: ConnId, effect: Effect) {
        self.core.breach(now, conn, effect);
    }

    /// Forgets the stopped units of a connection, because nothing more can leave.
    pub fn forget(&mut self, conn: ConnId) {
        self.core.stopped.remove(&conn);
    }

    /// Takes calls closed in the ledger without a record in evidence, and writes the records first.
    /// An agent killed between the two writes leaves calls without a record.
    pub fn make_up_for(&mut self, closed: Vec<Closed>) {
        self.core.unsaid = closed;
    }

    /// Puts new settings in force, for every decision from now on.
    pub fn reload(&mut self, now: Now, settings: Settings) {
        self.core.reload(now, settings);
    }

    /// Records the refusal of new settings as evidence; the settings in force stay.
    pub fn refused(&mut self, now: Now, why: &str) {
        self.core.refused(now, why);
    }

    /// Takes facts about a process: a new process, better facts, or another program after an
    /// `exec`.
    pub fn process(&mut self, now: Now, facts: ProcessFacts) {
        self.core.start(now);
        self.core.process(facts, None);
    }

    /// Takes facts about a process started, directly or through others, by a process of the
    /// principal, regardless of the present parent.
    pub fn process_of(&mut self, now: Now, facts: ProcessFacts, principal: &str) {
        self.core.start(now);
        self.core.process(facts, Some(principal));
    }

    /// Takes the end of a process. Bytes sent by the process may still arrive for a while.
    pub fn process_exit(&mut self, now: Now, key: ProcessKey) {
        self.core.process_exit(now, key);
    }

    /// Returns whether facts about the process are known and not forgotten.
    #[must_use]
    pub fn knows(&self, key: ProcessKey) -> bool {
        self.core.knows(key)
    }

    /// Returns the facts about the process, until forgotten.
    #[must_use]
    pub fn facts(&self, key: ProcessKey) -> Option<&ProcessFacts> {
        self.core.facts(key)
    }

    /// Returns the configured principal of a process.
    #[must_use]
    pub fn principal(&self, key: ProcessKey) -> Option<&str> {
        self.core.principal(key)
    }

    /// Returns the mode of a process, as told to the kernel.
    #[must_use]
    pub fn principal_mode(&self, key: ProcessKey) -> Mode {
        self.core.mode_of(key)
    }

    /// Opens a connection when first seen.
    pub fn open(&mut self, now: Now, conn: ConnId, open: ConnectionOpen) {
        self.core.start(now);
        let facts = ConnectionFacts {
            server_name: open.server_name.clone(),
            remote: open.remote,
            from_start: open.from_start,
        };
        let link = Link::new(conn, open);
        let memory = self.memory_of(self.core.subject(&link).facts.owner());
        let connection = Connection::new(facts, self.core.hosts()).with_memory(memory);
        self.conns.insert(conn, (connection, link));
    }

    /// Returns the memory limit shared by the decoders of a user's connections.
    fn memory_of(&mut self, user: User) -> Arc<Memory> {
        if let Some(known) = self.memories.get(&user).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(Memory::of_user(&self.memory));
        self.memories.retain(|_, it| it.strong_count() > 0);
        self.memories.insert(user, Arc::downgrade(&new));
        new
    }

    /// Takes more facts about a connection.
    pub fn learn(&mut self, _now: Now, conn: ConnId, update: ConnectionUpdate) {
        let Some((connection, link)) = self.conns.get_mut(&conn) else { return };
        let ConnectionUpdate { process, server_name, local, remote, hold } = update;
        link.network.local = local.or(link.network.local);
        link.network.remote = remote.or(link.network.remote);
        link.learn(process, hold, connection.egress().received);
        if server_name.is_some() || remote.is_some() {
            connection.learn(ConnectionFacts { server_name, remote, from_start: true });
        }
    }

    /// Takes bytes at a stream position, seen at `at_ns` of the monotonic clock.
    pub fn data_at(
        &mut self,
        now: Now,
        conn: ConnId,
        at_ns: u64,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
    ) {
        self.turn(now, conn, |connection, sink| {
            connection.data_at(at_ns, direction, offset, bytes, sink);
        });
    }

    /// Takes the next bytes in order.
    pub fn data(&mut self, now: Now, conn: ConnId, at_ns: u64, direction: Direction, bytes: &[u8]) {
        self.turn(now, conn, |connection, sink| connection.data(at_ns, direction, bytes, sink));
    }

    /// Takes a gap in the bytes; `None`: the length is unknown.
    pub fn gap(
        &mut self,
        now: Now,
        conn: ConnId,
        at_ns: u64,
        direction: Direction,
        bytes: Option<u64>,
    ) {
        self.core.note_gap(now, conn, direction, bytes);
        self.turn(now, conn, |connection, sink| connection.gap(at_ns, direction, bytes, sink));
    }

    /// Returns whether an account is from before a change of the budget's unit: no new call draws
    /// on the account.
    #[must_use]
    pub fn is_superseded(&self, key: &AccountKey) -> bool {
        let mut budgets = self.core.settings().0.budgets();
        budgets.any(|it| it.name == key.budget && it.unit != key.unit)
    }

    /// Returns the stream position of the first unit at or after `from` that may run; `None` if no
    /// unit may run there.
    #[must_use]
    pub fn running_from(&self, conn: ConnId, from: u64) -> Option<u64> {
        let (_, link) = self.conns.get(&conn)?;
        let asked = link.units.values().filter(|it| !it.opened.under_way);
        asked.map(|it| it.opened.start).filter(|it| *it >= from).min()
    }

    /// Marks units from `from` on as not executed, because the program has written the request and
    /// the TLS library has taken no byte. The caller has made sure that no byte has left or will
    /// leave.
    pub fn not_taken(&mut self, conn: ConnId, from: u64) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        let asked = |it: &&mut Running| it.opened.start >= from && !it.opened.under_way;
        for running in link.units.values_mut().filter(asked) {
            running.sent = false;
        }
    }

    /// Closes a connection.
    pub fn close(&mut self, now: Now, conn: ConnId, at_ns: u64) {
        let Some((mut connection, mut link)) = self.conns.remove(&conn) else { return };
        link.closing = true;
        let mut turn = Turn { core: &mut self.core, link: &mut link, now };
        connection.close(at_ns, &mut turn);
        self.core.abandon(now, &mut link);
        let mut awaiting = std::mem::take(&mut link.awaiting);
        if !awaiting.is_empty() {
            // A socket refused again and again is always the same connection.
            self.core.departed.entry(conn).or_insert(link).awaiting.append(&mut awaiting);
        }
    }

    /// Opens a connection to the provider without a plaintext reader: the connection is a unit,
    /// decided by the known facts. [`Self::close`] ends the unit.
    pub fn opaque(&mut self, now: Now, conn: ConnId, contacted: Contacted<'_>) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.open_opaque(now, link, contacted);
    }

    /// Opens a unit for a TLS handshake of a process without a probe, with an unconfirmed server
    /// name or none. [`Self::close`] ends the unit.
    pub fn unnamed(&mut self, now: Now, conn: ConnId, server: Option<&str>) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.open_unnamed(now, link, server);
    }

    /// Opens a unit for bytes sent by a socket and explained by no plaintext. `conn` was opened
    /// only for the unit, is held if the kernel has stopped the socket, and is closed afterwards.
    pub fn unexplained(
        &mut self,
        now: Now,
        conn: ConnId,
        server: Option<&str>,
        provider: &str,
        unread: Unexplainable,
    ) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.open_unexplained(now, link, server, provider, unread);
    }

    /// Takes the number of bytes carried by a connection without a plaintext reader.
    pub fn carried(&mut self, conn: ConnId, sent_bytes: u64, received_bytes: u64) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        link.network.sent_bytes = Some(sent_bytes);
        link.network.received_bytes = Some(received_bytes);
    }

    /// Returns when the reason to refuse every request of the process to the provider ends, in
    /// nanoseconds since 1970, or [`u64::MAX`] if time alone does not end the reason. The reason is
    /// independent of the request's content: the principal's grants, a policy on attributes of the
    /// provider's host, or an exhausted budget. Returns `None` if a request may pass now.
    #[must_use]
    pub fn denies_until(&self, now: Now, process: ProcessKey, provider: &str) -> Option<u64> {
        self.core.denies_until(now, process, provider)
    }

    /// Records a time without decisions: the previous agent was killed.
    pub fn note_absence(&mut self, now: Now) {
        self.core.note_absence(now);
    }

    /// Records bytes that passed between a process and a provider without being read.
    pub fn note_unread(&mut self, now: Now, conn: ConnId, unread: Unread) {
        self.core.note_unread(now, conn, unread);
    }

    /// Takes the kernel's own verdict at the deadline on the bytes up to `to`: the bytes passed, or
    /// the bytes will never leave and the connection is dead.
    pub fn timed_out(&mut self, now: Now, conn: ConnId, to: u64, passed: bool) {
        let Some((connection, link)) = self.conns.get_mut(&conn) else { return };
        self.core.timed_out(now, link, &connection.egress(), to, passed);
    }

    /// Refuses the units of the connection's last `Release`, because the evidence could not be made
    /// durable and the bytes never left. Nothing more of the connection may leave.
    pub fn withhold(&mut self, now: Now, conn: ConnId) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.withhold(now, link);
    }

    /// Forgets processes that ended a while ago.
    pub fn tick(&mut self, now: Now) {
        self.core.tick(now);
    }

    /// Returns the monotonic time at which [`Self::tick`] has work to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.core.next_deadline()
    }

    /// Closes all connections, in the order of connection numbers.
    pub fn finish(&mut self, now: Now) {
        while let Some(conn) = self.conns.keys().next().copied() {
            self.close(now, conn, now.mono_ns);
        }
    }

    /// Takes a human's approval of a request, or of a request of a kind. `by`: further facts on the
    /// approver for the record, as name and value.
    ///
    /// # Errors
    ///
    /// A sentence: no request waits for the approval; the approval has expired, is too long, does
    /// not cover the request's maximum cost, is not from a human outside the chain; or another
    /// unused approval exists.
    pub fn approve(
        &mut self,
        now: Now,
        approval: Approval,
        by: &[(&'static str, String)],
    ) -> Result<(), String> {
        self.core.approve(now, approval, by)
    }

    /// Changes the amount allocated by a budget in the present period by `delta` nano-USD or
    /// tokens.
    ///
    /// # Errors
    ///
    /// A sentence, if no budget of the name is configured.
    pub fn adjust(
        &mut self,
        now: Now,
        budget: &str,
        delta: i64,
        by: &str,
        why: &str,
    ) -> Result<(), String> {
        self.core.adjust(now, budget, delta, by, why)
    }

    /// Returns the accounts.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        self.core.ledger()
    }

    /// Returns the settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.core.settings()
    }

    /// Returns the number of bytes held for open connections.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.conns.values().map(|(connection, _)| connection.memory_bytes()).sum()
    }

    /// Returns the number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Returns all outputs since the last call, in order.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.core.outputs.drain(..)
    }

    /// Decodes, and then decides the released position of the egress.
    fn turn(
        &mut self,
        now: Now,
        conn: ConnId,
        decode: impl FnOnce(&mut Connection, &mut dyn Sink),
    ) {
        let Some((connection, link)) = self.conns.get_mut(&conn) else { return };
        connection.keep_texts(self.core.wants_texts());
        connection.keep_digests(self.core.wants_digests());
        connection.want(&self.core.settings.0.wanted);
        decode(connection, &mut Turn { core: &mut self.core, link, now });
        let egress: Egress<'_> = connection.egress();
        self.core.settle_egress(now, link, &egress);
    }
}
