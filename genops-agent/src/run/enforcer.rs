//! Verdicts into the kernel: release with a kick, denial with the end of exactly that socket.

use std::{collections::BTreeMap, time::Duration};

use genops_governance::OnTimeout;

use crate::{
    clock,
    kernel::{
        Maps,
        holds::Expired,
        sockets::{Socket, Sockets},
    },
    metrics::Metrics,
};

/// How long the kernel's notes on a connection outlive it: what is queued must still be judged.
const KEEP_RELEASED_NS: u64 = 2_000_000_000;
/// The same for one that was denied: TCP gives up on a dead peer after minutes.
const KEEP_DENIED_NS: u64 = 300_000_000_000;

/// A connection, as far as holding it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) socket: Option<Socket>,
    released_to: u64,
    denied: bool,
    /// When the oldest bytes that wait were written.
    waiting_since: Option<u64>,
    /// Position after the last byte seen.
    received: u64,
}

/// Applies verdicts.
#[derive(Debug)]
pub(super) struct Enforcer {
    sockets: Sockets,
    deadline_ns: u64,
    closed: bool,
    /// Connections that have ended, by the time when the kernel may forget them.
    ended: BTreeMap<(u64, u64), Option<u64>>,
}

impl Enforcer {
    pub(super) fn new(deadline: Duration, on_timeout: OnTimeout) -> Self {
        let mut new = Self {
            sockets: Sockets::default(),
            deadline_ns: 0,
            closed: false,
            ended: BTreeMap::new(),
        };
        new.set(deadline, on_timeout);
        new
    }

    pub(super) fn set(&mut self, deadline: Duration, on_timeout: OnTimeout) {
        self.deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        self.closed = on_timeout == OnTimeout::Closed;
    }

    /// The kernel holds bytes up to `to`, written at `at_mono_ns`.
    pub(super) fn arrived(held: &mut Held, to: u64, at_mono_ns: u64) {
        held.received = held.received.max(to);
        if held.received > held.released_to && held.waiting_since.is_none() {
            held.waiting_since = Some(at_mono_ns);
        }
    }

    /// Bytes up to `to` may leave, now. False where the guard has denied them meanwhile.
    pub(super) fn release(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        held: &mut Held,
        to: u64,
    ) -> bool {
        if held.denied {
            return false;
        }
        let now = clock::mono_ns();
        let waited_ns = held.waiting_since.map_or(0, |since| now.saturating_sub(since));
        if waited_ns > self.deadline_ns && maps.holds.is_denied(conn) {
            held.denied = true;
            held.waiting_since = None;
            return false;
        }
        held.released_to = held.released_to.max(to);
        if maps.holds.release(conn, held.released_to).is_err() {
            metrics.lost_map_full.increment();
        }
        if held.released_to < held.received {
            return true;
        }
        if held.waiting_since.take().is_some() {
            metrics.hold.observe(Duration::from_nanos(waited_ns));
            metrics.holds_released.increment();
            self.kick(held);
        }
        true
    }

    /// Pushes what the kernel dropped while the verdict was open. Without effect where the packet is
    /// still to come: it will find the verdict.
    fn kick(&mut self, held: &Held) {
        if let Some(socket) = held.socket {
            // A process that has gone needs no push; TCP's timer does it.
            let _gone = self.sockets.kick(socket);
        }
    }

    /// The socket became known, perhaps after the verdict.
    pub(super) fn joined(&mut self, held: &mut Held, socket: Socket) {
        held.socket = Some(socket);
        if held.denied {
            // Gone already is as good.
            let _gone = self.sockets.destroy(socket);
        } else if held.released_to > 0 {
            self.kick(held);
        }
    }

    /// Nothing more may leave.
    pub(super) fn deny(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        held: &mut Held,
    ) {
        held.denied = true;
        if let Some(since) = held.waiting_since.take() {
            metrics.hold.observe(Duration::from_nanos(clock::mono_ns().saturating_sub(since)));
        }
        if maps.holds.deny(conn).is_err() {
            metrics.lost_map_full.increment();
        }
        if let Some(socket) = held.socket {
            let _gone = self.sockets.destroy(socket);
        }
        metrics.holds_denied.increment();
    }

    /// The deadline has passed for what the kernel has not seen TCP try again.
    pub(super) fn expire(&mut self, maps: &mut Maps) -> Vec<Expired> {
        maps.holds.expire(&mut self.sockets, clock::mono_ns(), self.deadline_ns, self.closed)
    }

    /// The kernel, or [`Self::expire`], has ended the hold of a connection.
    pub(super) fn timed_out(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        held: &mut Held,
        passed: bool,
    ) {
        held.waiting_since = None;
        if passed {
            metrics.holds_timed_out_open.increment();
            return;
        }
        metrics.holds_timed_out_closed.increment();
        held.denied = true;
        let _full = maps.holds.deny(conn);
        if let Some(socket) = held.socket {
            let _gone = self.sockets.destroy(socket);
        }
    }

    /// When [`Self::expire`] has to look at a connection.
    pub(super) fn deadline(&self, held: &Held) -> Option<u64> {
        held.waiting_since.map(|since| since.saturating_add(self.deadline_ns))
    }

    /// The connection has ended; the kernel forgets it a while later.
    pub(super) fn ended(&mut self, now_mono_ns: u64, conn: u64, held: &Held) {
        let keep = if held.denied { KEEP_DENIED_NS } else { KEEP_RELEASED_NS + self.deadline_ns };
        let cookie = held.socket.map(|socket| socket.cookie);
        self.ended.insert((now_mono_ns.saturating_add(keep), conn), cookie);
    }

    /// Forgets connections whose time has come.
    pub(super) fn forget(&mut self, maps: &mut Maps, now_mono_ns: u64) {
        while let Some(entry) = self.ended.first_entry()
            && entry.key().0 <= now_mono_ns
        {
            let ((_, conn), cookie) = entry.remove_entry();
            maps.forget(conn, cookie);
            if let Some(cookie) = cookie {
                self.sockets.forget(cookie);
            }
        }
    }
}
