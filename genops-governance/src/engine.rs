//! Owns every connection; takes bytes, facts and the time, and gives [`Output`]s.
//!
//! No I/O: the caller applies what comes out, in its order. The same inputs give the same outputs.
//! Here is the public face; [`core`] has the state, [`decide`] the order of a decision, [`estimate`]
//! what a request may need, [`account`] how a unit ends, [`effect`] what a refusal came to, [`again`] how
//! a recorded decision is made again, and [`link`] what is known of a connection.

mod account;
mod again;
mod core;
mod decide;
mod effect;
mod estimate;
mod link;
mod opaque;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use genops_protocols::{
    Connection, ConnectionFacts, Direction, Egress, Exchange, Memory, Request, Sink,
};

use self::core::Core;
use self::link::Link;
use crate::approval::Approval;
use crate::awu::{Awu, AwuId, HoldLevel};
use crate::config::Mode;
use crate::ledger::{Closed, Entry, Ledger};
use crate::process::{ProcessFacts, ProcessKey, User};
use crate::record::Record;
use crate::settings::Settings;
use crate::time::Now;

pub use self::again::Again;
pub use self::effect::Effect;
pub use self::opaque::Unexplainable;

/// A connection, as the caller numbers them. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What is known of a connection when it is first seen.
#[derive(Clone, Debug)]
pub struct ConnectionOpen {
    /// `conn` in outputs.
    pub name: String,
    /// The process.
    pub process: Option<ProcessKey>,
    /// Its number, where nothing more is known.
    pub pid: Option<u32>,
    /// Its command.
    pub comm: Option<String>,
    /// Its executable.
    pub exe: Option<String>,
    /// Server name of the TLS handshake.
    pub server_name: Option<String>,
    /// Own address.
    pub local: Option<SocketAddr>,
    /// Peer's address.
    pub remote: Option<SocketAddr>,
    /// Seen from its first byte.
    pub from_start: bool,
    /// Whether its egress is held.
    pub hold: HoldLevel,
}

/// What became known of a connection later. `None` changes nothing.
#[derive(Clone, Debug, Default)]
pub struct ConnectionUpdate {
    /// The process.
    pub process: Option<ProcessKey>,
    /// Server name of the TLS handshake.
    pub server_name: Option<String>,
    /// Own address.
    pub local: Option<SocketAddr>,
    /// Peer's address.
    pub remote: Option<SocketAddr>,
    /// Whether its egress is held from here on.
    pub hold: Option<HoldLevel>,
}

/// What the kernel did with a connection before anybody here heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beforehand {
    /// Nothing: it is to be decided.
    Nothing,
    /// Refused it, as it was told after [`Engine::denies_until`].
    Refused,
    /// Refused it, since nobody was there to decide.
    Undecided,
}

/// How much of one direction of a connection was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Which.
    pub direction: Direction,
    /// Bytes that the socket carried, records and all.
    pub passed_bytes: u64,
    /// Bytes of plaintext that were read.
    pub read_bytes: u64,
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Egress up to stream position `to` may leave. Only for held connections.
    Release {
        /// Which connection.
        conn: ConnId,
        /// Stream position after the last byte that may leave.
        to: u64,
    },
    /// Nothing more of this connection may leave; destroy its socket.
    Deny {
        /// Which connection.
        conn: ConnId,
        /// The refused unit.
        awu: AwuId,
        /// How many other exchanges were in flight on it.
        collateral: u64,
    },
    /// Units of this connection were refused: see what left of it, and say so by [`Engine::left`] within a
    /// second. Only after [`Engine::await_effects`].
    Check {
        /// Which connection.
        conn: ConnId,
    },
    /// A change of the ledger: make it durable before any later `Release` takes effect.
    Ledger(Entry),
    /// Evidence: make it durable before any later `Release` or `Deny` takes effect.
    Record(Box<Record>),
    /// A finished unit, also a refused one.
    Awu(Box<Awu>),
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    conns: BTreeMap<ConnId, (Connection, Link)>,
    core: Core,
    /// What all decoders together may hold.
    memory: Arc<Memory>,
    /// What those of each user hold of it, as long as somebody has a connection.
    memories: HashMap<User, Weak<Memory>>,
}

/// One call into a decoder: what it decodes goes to the core.
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
    /// An engine on these settings, going on from this ledger. `entropy` makes identities unique:
    /// fresh randomness for a live run, anything fixed for a replay.
    ///
    /// Calls that held a reservation when the ledger was written are charged in full: whether
    /// they ran is not known.
    #[must_use]
    pub fn new(settings: Settings, ledger: Ledger, entropy: [u8; 32]) -> Self {
        Self {
            conns: BTreeMap::new(),
            core: Core::new(settings, ledger, entropy),
            memory: Arc::default(),
            memories: HashMap::new(),
        }
    }

    /// Has records of decisions carry what was sent to the model, or not.
    pub fn keep_texts(&mut self, keep: bool) {
        self.core.keeps_texts = keep;
    }

    /// Has requests known again by this key; without one, no approval outlives the engine. It keeps what an approved
    /// request said from being guessed by its digest.
    pub fn know_requests_by(&mut self, key: [u8; 32]) {
        self.core.approvals_key = key;
    }

    /// Refusals on held connections are decided when their effect is known: the caller answers each
    /// [`Output::Check`].
    pub fn await_effects(&mut self) {
        self.core.awaits_effects = true;
    }

    /// What left of a connection on which units were refused.
    pub fn left(&mut self, now: Now, conn: ConnId, effect: Effect) {
        if let Some(mut link) = self.core.departed.remove(&conn) {
            self.core.settle_refused(now, &mut link, effect, true);
        }
        if let Some((_, link)) = self.conns.get_mut(&conn) {
            self.core.settle_refused(now, link, effect, false);
        }
    }

    /// More left of a connection than was said by [`Self::left`].
    pub fn breach(&mut self, now: Now, conn: ConnId, effect: Effect) {
        self.core.breach(now, conn, effect);
    }

    /// Nothing more can leave of a connection.
    pub fn forget(&mut self, conn: ConnId) {
        self.core.stopped.remove(&conn);
    }

    /// Has it write down first what the ledger has closed and evidence does not say: an agent that was
    /// killed between the two did not come to it.
    pub fn make_up_for(&mut self, closed: Vec<Closed>) {
        self.core.unsaid = closed;
    }

    /// Puts other settings in force, for every decision from here on.
    pub fn reload(&mut self, now: Now, settings: Settings) {
        self.core.reload(now, settings);
    }

    /// Other settings were refused, and those in force stay: that is evidence too.
    pub fn refused(&mut self, now: Now, why: &str) {
        self.core.refused(now, why);
    }

    /// Takes facts about a process, new or better ones, or about the other program that it became.
    pub fn process(&mut self, now: Now, facts: ProcessFacts) {
        self.core.start(now);
        self.core.process(facts, None);
    }

    /// Takes facts about a process that one of this principal has started, directly or through others,
    /// whoever its parent is now.
    pub fn process_of(&mut self, now: Now, facts: ProcessFacts, principal: &str) {
        self.core.start(now);
        self.core.process(facts, Some(principal));
    }

    /// A process ended. What it sent may still arrive for a while.
    pub fn process_exit(&mut self, now: Now, key: ProcessKey) {
        self.core.process_exit(now, key);
    }

    /// It was told of this process, and has not forgotten it.
    #[must_use]
    pub fn knows(&self, key: ProcessKey) -> bool {
        self.core.knows(key)
    }

    /// What it was told of this process, as long as it has not forgotten it.
    #[must_use]
    pub fn facts(&self, key: ProcessKey) -> Option<&ProcessFacts> {
        self.core.facts(key)
    }

    /// The configured principal that a process acts for.
    #[must_use]
    pub fn principal(&self, key: ProcessKey) -> Option<&str> {
        self.core.principal(key)
    }

    /// What the kernel is told about a process.
    #[must_use]
    pub fn principal_mode(&self, key: ProcessKey) -> Mode {
        self.core.mode_of(key)
    }

    /// A connection was first seen.
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

    /// What the decoders of a user's connections hold.
    fn memory_of(&mut self, user: User) -> Arc<Memory> {
        if let Some(known) = self.memories.get(&user).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(Memory::of_user(&self.memory));
        self.memories.retain(|_, it| it.strong_count() > 0);
        self.memories.insert(user, Arc::downgrade(&new));
        new
    }

    /// More is known of a connection.
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

    /// Bytes at a stream position, seen at `at_ns` of the monotonic clock.
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

    /// The next bytes in order.
    pub fn data(&mut self, now: Now, conn: ConnId, at_ns: u64, direction: Direction, bytes: &[u8]) {
        self.turn(now, conn, |connection, sink| connection.data(at_ns, direction, bytes, sink));
    }

    /// Bytes are missing here; `None`: nobody knows how many.
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

    /// The connection ended.
    pub fn close(&mut self, now: Now, conn: ConnId, at_ns: u64) {
        let Some((mut connection, mut link)) = self.conns.remove(&conn) else { return };
        link.closing = true;
        let mut turn = Turn { core: &mut self.core, link: &mut link, now };
        connection.close(at_ns, &mut turn);
        self.core.abandon(now, &mut link);
        let mut awaiting = std::mem::take(&mut link.awaiting);
        if !awaiting.is_empty() {
            // A socket that is refused again and again is always the same connection.
            self.core.departed.entry(conn).or_insert(link).awaiting.append(&mut awaiting);
        }
    }

    /// No plaintext of this connection will be read, and it goes to this provider: it is one unit, decided
    /// by what is known of it. [`Self::close`] ends it.
    pub fn opaque(
        &mut self,
        now: Now,
        conn: ConnId,
        server: Option<&str>,
        provider: &str,
        beforehand: Beforehand,
    ) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.open_opaque(now, link, server, provider, beforehand);
    }

    /// A process that no probe reads began to speak TLS, and nobody has confirmed the name that it says, if any: one
    /// unit. [`Self::close`] ends it.
    pub fn unnamed(&mut self, now: Now, conn: ConnId, server: Option<&str>) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.open_unnamed(now, link, server);
    }

    /// A socket sent what no plaintext explains. `conn` was opened for it alone, held if the kernel has stopped it,
    /// and is closed behind it.
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

    /// What a connection carried, of which no plaintext is read.
    pub fn carried(&mut self, conn: ConnId, sent_bytes: u64, received_bytes: u64) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        link.network.sent_bytes = Some(sent_bytes);
        link.network.received_bytes = Some(received_bytes);
    }

    /// Where every request of this process to this provider would be refused now, whatever it says (by its
    /// grants, by a policy on the host, or for want of any budget): when the reason for that ends, in
    /// nanoseconds since 1970; [`u64::MAX`] where time alone does not end it.
    #[must_use]
    pub fn denies_until(&self, now: Now, process: ProcessKey, provider: &str) -> Option<u64> {
        self.core.denies_until(now, process, provider)
    }

    /// Nobody decided for a while: the agent before was killed.
    pub fn note_absence(&mut self, now: Now) {
        self.core.note_absence(now);
    }

    /// Bytes that passed between a process and a provider, and that were not read.
    pub fn note_unread(&mut self, now: Now, conn: ConnId, unread: Unread) {
        self.core.note_unread(now, conn, unread);
    }

    /// The kernel applied the deadline by itself to the bytes up to `to`: they passed, or they
    /// never will and the connection is dead.
    pub fn timed_out(&mut self, now: Now, conn: ConnId, to: u64, passed: bool) {
        let Some((connection, link)) = self.conns.get_mut(&conn) else { return };
        self.core.timed_out(now, link, &connection.egress(), to, passed);
    }

    /// What the last `Release` of this connection let pass never left, since its evidence could
    /// not be made durable: its units are refused, and nothing more of the connection may leave.
    pub fn withhold(&mut self, now: Now, conn: ConnId) {
        let Some((_, link)) = self.conns.get_mut(&conn) else { return };
        self.core.withhold(now, link);
    }

    /// Forgets processes that ended a while ago.
    pub fn tick(&mut self, now: Now) {
        self.core.tick(now);
    }

    /// When [`Self::tick`] has something to do, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.core.next_deadline()
    }

    /// Closes everything, in the order of connection numbers.
    pub fn finish(&mut self, now: Now) {
        while let Some(conn) = self.conns.keys().next().copied() {
            self.close(now, conn, now.mono_ns);
        }
    }

    /// Takes a human's approval of one request, or of one of its kind. `by`: what else the record is to say of who
    /// gave it, as name and value.
    ///
    /// # Errors
    ///
    /// A sentence: where nothing waits for it, where it is expired, too long, does not cover what the request may
    /// cost, is not from a human outside the chain, or where there is another that was not used yet.
    pub fn approve(
        &mut self,
        now: Now,
        approval: Approval,
        by: &[(&'static str, String)],
    ) -> Result<(), String> {
        self.core.approve(now, approval, by)
    }

    /// Changes what a budget allocates in its present period by `delta` nano-USD or tokens.
    ///
    /// # Errors
    ///
    /// A sentence, where no such budget is configured.
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

    /// The accounts.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        self.core.ledger()
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.core.settings()
    }

    /// Bytes held for open connections.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.conns.values().map(|(connection, _)| connection.memory_bytes()).sum()
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Everything to do since the last call, in order.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.core.outputs.drain(..)
    }

    /// Decodes, and then says what of the egress may leave.
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
