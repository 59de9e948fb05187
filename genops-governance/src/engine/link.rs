//! What the engine knows of one connection beside its decoder: whose it is, how much of it may
//! leave, and the units that are under way on it.

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

/// One connection.
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
    /// Where no plaintext of it is read: what is known of all of its requests together.
    pub(super) opaque: Option<Call>,
    /// Why what it stands for could not be read.
    pub(super) unread: Option<&'static str>,
    /// Egress up to here may leave.
    pub(super) released: u64,
    /// What `released` was before the last time.
    pub(super) released_before: u64,
    /// Egress up to here left because the kernel's deadline came.
    pub(super) passed: u64,
    /// Nothing more may leave.
    pub(super) denied: bool,
    /// The kernel's deadline came and stopped what was held.
    pub(super) stopped_by_deadline: bool,
    /// The end was seen: what comes now is what the decoder had left.
    pub(super) closing: bool,
    /// Units that were permitted, by number of the exchange.
    pub(super) units: BTreeMap<u64, Running>,
    /// Units that were refused, until the end of the turn says what else ends with them.
    pub(super) refused: Vec<Refused>,
    /// Units that were refused, and of which is not known yet whether that kept them back.
    pub(super) awaiting: Vec<Refused>,
    /// Exchanges that were refused: what their decoder says later changes nothing.
    pub(super) over: BTreeSet<u64>,
    /// How far the text of the open request was compared with content rules: its exchange, bytes.
    pub(super) matched_to: (u64, usize),
}

/// What permitted and refused units have in common.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: AwuId,
    pub(super) attribution: Arc<Attribution>,
    pub(super) grounds: Grounds,
    pub(super) enforcement: Held,
    pub(super) region: Option<String>,
    /// Stream position after the request's last byte.
    pub(super) end: u64,
    /// The request was read to its end.
    pub(super) complete: bool,
}

/// A unit that may run.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) opened: Opened,
    pub(super) permission: Permission,
    pub(super) reservation: Reservation,
    /// The unit of each account's share, in the ledger's order.
    pub(super) shares: Vec<Unit>,
    /// It may have left the host.
    pub(super) sent: bool,
    /// It was permitted, and then kept back for want of evidence; its accounts are settled.
    pub(super) withheld: bool,
    pub(super) price: Option<Arc<ModelPrice>>,
    /// Bytes and characters of the text that it asked with.
    pub(super) asked: (u64, u64),
    /// Limits on what runs at the same time that count it.
    pub(super) limits: Vec<Meter>,
    pub(super) target: Option<Target>,
}

/// A unit that must not run.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) opened: Opened,
    pub(super) refusal: Refusal,
    pub(super) call: Call,
    /// What it was decided from, and what it may cost, until its effect is known.
    pub(super) stake: Option<Box<(Inputs, Stake)>>,
}

/// What is set aside for a refused unit that ran all the same.
#[derive(Debug)]
pub(super) struct Stake {
    pub(super) demands: Vec<Demand>,
    pub(super) reservation: Reservation,
    pub(super) price: Option<Arc<ModelPrice>>,
    /// Bytes and characters of the text that it asks with.
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

    /// `received`: egress so far. What was not held has left.
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

    /// By which mechanism it is held.
    pub(super) fn mechanism(&self) -> Mechanism {
        match self.hold {
            HoldLevel::None => Mechanism::None,
            HoldLevel::Held(mechanism) => mechanism,
        }
    }

    /// Bytes of a request that have left.
    pub(super) fn left_of(&self, start: u64, end: u64) -> u64 {
        self.released.max(self.passed).min(end).saturating_sub(start)
    }

    /// A refusal can still keep a request that ends at `end` from running.
    pub(super) fn can_prevent(&self, end: u64) -> bool {
        self.mechanism() != Mechanism::None && self.passed < end
    }
}
