//! Owns every connection; takes bytes, facts and the time, and gives [`Output`]s.
//!
//! No I/O: the caller applies what comes out, in its order. The same inputs give the same outputs.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use genops_protocols::{Connection, ConnectionFacts, Direction};

use crate::approval::Approval;
use crate::awu::{Awu, AwuId, HoldLevel};
use crate::config::Mode;
use crate::ledger::{Entry, Ledger};
use crate::process::{ProcessFacts, ProcessKey};
use crate::record::Record;
use crate::settings::Settings;
use crate::time::Now;

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
    settings: Settings,
    ledger: Ledger,
    entropy: [u8; 32],
    conns: BTreeMap<ConnId, Connection>,
    outputs: VecDeque<Output>,
}

impl Engine {
    /// An engine on these settings, going on from this ledger. `entropy` makes identities unique:
    /// fresh randomness for a live run, anything fixed for a replay.
    #[must_use]
    pub fn new(settings: Settings, ledger: Ledger, entropy: [u8; 32]) -> Self {
        Self { settings, ledger, entropy, conns: BTreeMap::new(), outputs: VecDeque::new() }
    }

    /// Puts other settings in force, for every decision from here on.
    pub fn reload(&mut self, _now: Now, settings: Settings) {
        self.settings = settings;
    }

    /// Takes facts about a process, new or better ones.
    pub fn process(&mut self, _now: Now, _facts: ProcessFacts) {}

    /// A process ended.
    pub fn process_exit(&mut self, _now: Now, _key: ProcessKey) {}

    /// What the kernel is told about a process.
    #[must_use]
    pub fn principal_mode(&self, _key: ProcessKey) -> Mode {
        Mode::Observe
    }

    /// A connection was first seen.
    pub fn open(&mut self, _now: Now, conn: ConnId, open: ConnectionOpen) {
        let ConnectionOpen { server_name, remote, from_start, .. } = open;
        let facts = ConnectionFacts { server_name, remote, from_start };
        self.conns.insert(conn, Connection::new(facts, self.settings.hosts()));
    }

    /// More is known of a connection.
    pub fn learn(&mut self, _now: Now, conn: ConnId, update: ConnectionUpdate) {
        let ConnectionUpdate { server_name, remote, .. } = update;
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.learn(ConnectionFacts { server_name, remote, from_start: true });
        }
    }

    /// Bytes at a stream position, seen at `at_ns` of the monotonic clock.
    pub fn data_at(
        &mut self,
        _now: Now,
        conn: ConnId,
        at_ns: u64,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
    ) {
        let _ = (conn, at_ns, direction, offset, bytes);
    }

    /// The next bytes in order.
    pub fn data(
        &mut self,
        _now: Now,
        conn: ConnId,
        at_ns: u64,
        direction: Direction,
        bytes: &[u8],
    ) {
        let _ = (conn, at_ns, direction, bytes);
    }

    /// Bytes are missing here; `None`: nobody knows how many.
    pub fn gap(
        &mut self,
        _now: Now,
        conn: ConnId,
        at_ns: u64,
        direction: Direction,
        bytes: Option<u64>,
    ) {
        let _ = (conn, at_ns, direction, bytes);
    }

    /// The connection ended.
    pub fn close(&mut self, _now: Now, conn: ConnId, _at_ns: u64) {
        self.conns.remove(&conn);
    }

    /// The kernel applied the deadline by itself to the bytes up to `to`: they passed, or never will.
    pub fn timed_out(&mut self, _now: Now, conn: ConnId, to: u64, passed: bool) {
        let _ = (conn, to, passed);
    }

    /// Time went by.
    pub fn tick(&mut self, _now: Now) {}

    /// When [`Self::tick`] has something to do, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// Closes everything, in the order of connection numbers.
    pub fn finish(&mut self, _now: Now) {
        self.conns.clear();
    }

    /// Takes a human's approval of one request.
    ///
    /// # Errors
    ///
    /// A sentence, where it is expired, too long, or not from a human outside the chain.
    pub fn approve(&mut self, _now: Now, _approval: Approval) -> Result<(), String> {
        Ok(())
    }

    /// Changes what a budget allocates in its present period by `delta` nano-USD or tokens.
    ///
    /// # Errors
    ///
    /// A sentence, where no such budget is configured.
    pub fn adjust(
        &mut self,
        _now: Now,
        _budget: &str,
        _delta: i64,
        _by: &str,
        _why: &str,
    ) -> Result<(), String> {
        Ok(())
    }

    /// The accounts.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Bytes held for open connections.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.conns.values().map(Connection::memory_bytes).sum()
    }

    /// Everything to do since the last call, in order.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.outputs.drain(..)
    }
}
