//! Engine state of a connection, beside the decoder: owner, released position and running units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use genops_protocols::Call;

use super::{ConnId, ConnectionOpen};
use crate::awu::{Attribution, AwuId, Grounds, Held, HoldLevel, Mechanism, Network, Reservation};
use crate::config::Unit;
use crate::decision::{Permission, Refusal};
use crate::ledger::Demand;
use crate::prices::ModelPrice;
use crate::process::ProcessKey;
use crate::rate::Meter;
use crate::record::Inputs;
use crate::sla::Target;

/// Connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: ConnId,
    pub(super) name: String,
    pub(super) process: Option<ProcessKey>,
    pub(super) pid: Option<u32>,
    pub(super) comm: Option<String>,
    pub(super) exe: Option<String>,
    pub(super) hold: HoldLevel,
    pub(super) network: Network,
    /// Call standing for all requests of a connection without readable plaintext.
    pub(super) opaque: Option<Call>,
    /// Number of contacts for which the connection stands.
    pub(super) times: u64,
    /// Reason for the unreadable data.
    pub(super) unread: Option<&'static str>,
    /// Egress up to here may leave.
    pub(super) released: u64,
    /// Previous value of `released`.
    pub(super) released_before: u64,
    /// Egress up to here left because the kernel's deadline came.
    pub(super) passed: u64,
    /// Nothing more may leave.
    pub(super) denied: bool,
    /// The kernel's deadline passed and stopped the held data.
    pub(super) stopped_by_deadline: bool,
    /// The end was seen: further exchanges come from the decoder's remaining data.
    pub(super) closing: bool,
    /// Permitted units, by number of the exchange.
    pub(super) units: BTreeMap<u64, Running>,
    /// Refused units, until the end of the turn decides on the other units of the connection.
    pub(super) refused: Vec<Refused>,
    /// Refused units with an effect not known yet.
    pub(super) awaiting: Vec<Refused>,
    /// Refused exchanges: later reports of the decoder change nothing.
    pub(super) over: BTreeSet<u64>,
    /// Progress of the content rules in the text of the open request: exchange, bytes.
    pub(super) matched_to: (u64, usize),
}

/// Common part of permitted and refused units.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: AwuId,
    pub(super) attribution: Arc<Attribution>,
    pub(super) grounds: Grounds,
    pub(super) enforcement: Held,
    pub(super) region: Option<String>,
    /// Stream position of the request's first byte.
    pub(super) start: u64,
    /// Stream position after the request's last byte.
    pub(super) end: u64,
    /// The server has begun the request on its own: no position shows whether the request can still
    /// be kept back.
    pub(super) under_way: bool,
    /// The request was read to the end.
    pub(super) complete: bool,
    /// Number of contacts for which the unit stands.
    pub(super) times: u64,
}

/// Unit permitted to run.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) opened: Opened,
    pub(super) permission: Permission,
    pub(super) reservation: Reservation,
    /// Maximum cost of the unit, without regard to the usual cost.
    pub(super) worst_nano_usd: Option<i64>,
    /// The unit of each account's share, in the ledger's order.
    pub(super) shares: Vec<Unit>,
    /// The unit may have left the host.
    pub(super) sent: bool,
    /// The unit was permitted, then kept back for want of evidence; the accounts are settled.
    pub(super) withheld: bool,
    pub(super) price: Option<Arc<ModelPrice>>,
    /// Bytes and characters of the request's text.
    pub(super) asked: (u64, u64),
    /// Concurrency limits counting the unit.
    pub(super) limits: Vec<Meter>,
    pub(super) target: Option<Target>,
}

/// Unit not permitted to run.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) opened: Opened,
    pub(super) refusal: Refusal,
    pub(super) call: Call,
    /// Inputs of the decision and worst-case cost, until the effect is known.
    pub(super) stake: Option<Box<(Inputs, Stake)>>,
    /// Stream position of the connection at the decision: bytes above the position belong to the
    /// unit or came later. Bytes passed by the deadline later do not move the position.
    pub(super) position: u64,
}

/// Reservation for a refused unit executed all the same.
#[derive(Debug)]
pub(super) struct Stake {
    pub(super) demands: Vec<Demand>,
    pub(super) reservation: Reservation,
    pub(super) worst_nano_usd: Option<i64>,
    pub(super) price: Option<Arc<ModelPrice>>,
    /// Bytes and characters of the request's text.
    pub(super) asked: (u64, u64),
}

impl Link {
    pub(super) fn new(id: ConnId, open: ConnectionOpen) -> Self {
        let ConnectionOpen { name, process, pid, comm, exe, hold, local, remote, .. } = open;
        Self {
            id,
            name,
            process,
            pid: pid.or(process.map(|it| it.pid)),
            comm,
            exe,
            hold,
            network: Network { local, remote, ..Network::default() },
            opaque: None,
            times: 1,
            unread: None,
            released: 0,
            released_before: 0,
            passed: 0,
            denied: false,
            stopped_by_deadline: false,
            closing: false,
            units: BTreeMap::new(),
            refused: Vec::new(),
            awaiting: Vec::new(),
            over: BTreeSet::new(),
            matched_to: (0, 0),
        }
    }

    /// Updates process and hold. `received`: egress so far; bytes not held have left.
    pub(super) fn learn(
        &mut self,
        process: Option<ProcessKey>,
        hold: Option<HoldLevel>,
        received: u64,
    ) {
        if let Some(process) = process {
            self.process = Some(process);
            self.pid = Some(process.pid);
        }
        if let Some(hold) = hold {
            if self.mechanism() == Mechanism::None {
                self.released = received;
            }
            self.hold = hold;
        }
    }

    /// Returns the mechanism holding the connection.
    pub(super) fn mechanism(&self) -> Mechanism {
        match self.hold {
            HoldLevel::None => Mechanism::None,
            HoldLevel::Held(mechanism) => mechanism,
        }
    }

    /// Returns the number of bytes sent of a request.
    pub(super) fn left_of(&self, start: u64, end: u64) -> u64 {
        self.released.max(self.passed).min(end).saturating_sub(start)
    }

    /// Returns true if a refusal can still keep a request ending at `end` from running.
    pub(super) fn can_prevent(&self, end: u64) -> bool {
        self.mechanism() != Mechanism::None && self.passed < end
    }
}
