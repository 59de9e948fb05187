//! Verdicts into the kernel: release with a kick, denial with the end of exactly that socket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use genops_governance::{Mechanism, OnTimeout};

use crate::{
    clock,
    kernel::{
        Left, Maps,
        holds::Expired,
        sockets::{Socket, Sockets},
    },
    metrics::Metrics,
};

/// How long the kernel's notes on a connection outlive it: what is queued must still be judged.
const KEEP_RELEASED_NS: u64 = 2_000_000_000;
/// The same for one that was denied: TCP gives up on a dead peer after minutes.
const KEEP_DENIED_NS: u64 = 300_000_000_000;
/// How long after a denial it is written down at the latest what left.
const EFFECT_WITHIN_NS: u64 = 900_000_000;

/// How long the kernel follows a socket that its program has let go of: TCP may try for minutes to send what it
/// has queued.
const KEEP_CLOSED_NS: u64 = 300_000_000_000;

/// A connection, as far as holding it goes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    socket: Option<Socket>,
    /// Cookie of the socket of a connection that was taken over, also where no more is known of it.
    cookie: Option<u64>,
    /// Position up to which bytes may leave.
    released_to: u64,
    /// Position up to which bytes left that nobody held, before anything was denied.
    free_to: u64,
    denied: bool,
    /// When the oldest bytes that wait were written.
    waiting_since: Option<u64>,
    /// Position after the last byte that the kernel holds or held.
    received: u64,
    /// Denied in the kernel until it is decided, since its deadline had passed before it was.
    stopped: bool,
    /// The kernel's round of the last write: see [`genops_ebpf_common::Hold::round`].
    round: u16,
    /// In a later round than the first, the position up to which it says the same as before.
    compared_to: u64,
    /// The socket was destroyed.
    destroyed: bool,
    /// Position after the last byte that the TLS library took, where its object was freed.
    taken_to: Option<u64>,
    /// What was read back of it after its denial, last; or that its socket never reached the other end.
    left: Option<Left>,
}

impl Held {
    /// From which position on a refusal keeps what is written.
    fn kept_from(&self) -> u64 {
        self.released_to.max(self.free_to)
    }

    /// How far a verdict may go now.
    fn release_to(&self) -> u64 {
        if self.round == 0 { self.released_to } else { self.released_to.min(self.compared_to) }
    }
}

/// What became of bytes that are decided after their deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// They passed.
    Passed,
    /// They were stopped for good.
    Stopped,
    /// They wait for the verdict, or an earlier one has stopped them.
    Kept,
}

/// Applies verdicts, and knows what waits for one.
#[derive(Debug)]
pub(super) struct Enforcer {
    sockets: Sockets,
    /// When this agent began: what was written before may have been judged without it.
    since_mono_ns: u64,
    deadline_ns: u64,
    closed: bool,
    held: HashMap<u64, Held>,
    /// Connections that wait, by since when.
    waiting: BTreeSet<(u64, u64)>,
    /// Connections that have ended, by the time when the kernel may forget them.
    ended: BTreeMap<(u64, u64), Option<u64>>,
    /// Sockets that their programs have let go of, by the time when the kernel may forget them. One that is open is
    /// never forgotten: what nobody knows of passes.
    closed_sockets: BTreeSet<(u64, u64)>,
    /// Connections of `ended`, with what became of them since.
    past: HashMap<u64, Held>,
    /// Denied connections whose socket is not known yet, by when that is waited for no longer.
    unseen: BTreeSet<(u64, u64)>,
}

impl Enforcer {
    pub(super) fn new(deadline: Duration, on_timeout: OnTimeout) -> Self {
        let mut new = Self {
            sockets: Sockets::default(),
            since_mono_ns: clock::mono_ns(),
            deadline_ns: 0,
            closed: false,
            held: HashMap::new(),
            waiting: BTreeSet::new(),
            ended: BTreeMap::new(),
            closed_sockets: BTreeSet::new(),
            past: HashMap::new(),
            unseen: BTreeSet::new(),
        };
        new.set(deadline, on_timeout);
        new
    }

    pub(super) fn set(&mut self, deadline: Duration, on_timeout: OnTimeout) {
        self.deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        self.closed = on_timeout == OnTimeout::Closed;
    }

    /// A connection is taken up: what is remembered of an earlier one of this number is not meant.
    pub(super) fn begins(&mut self, conn: u64) {
        self.past.remove(&conn);
    }

    /// Bytes of `conn` up to `to` were written while its process was not held: they are no matter of a later refusal.
    pub(super) fn unheld(&mut self, conn: u64, to: u64) {
        let held = self.held.entry(conn).or_default();
        if !held.denied {
            held.free_to = held.free_to.max(to);
        }
    }

    /// The kernel holds bytes of `conn` up to `to`, written at `at_mono_ns`.
    pub(super) fn arrived(&mut self, conn: u64, to: u64, at_mono_ns: u64) {
        let held = self.held.entry(conn).or_default();
        held.received = held.received.max(to);
        if held.received > held.released_to && held.waiting_since.is_none() {
            held.waiting_since = Some(at_mono_ns);
            self.waiting.insert((at_mono_ns, conn));
        }
    }

    /// The write that ends at `to` was reported in this round, and says what was said before of what it repeats.
    pub(super) fn repeated(&mut self, maps: &mut Maps, conn: u64, round: u16, to: u64) {
        let held = self.held.entry(conn).or_default();
        if held.round == round && (round == 0 || held.compared_to >= to) {
            return;
        }
        held.round = round;
        held.compared_to = to;
        if !held.denied && !held.stopped && held.released_to > 0 {
            // What was decided of these bytes holds for them still.
            let _full = maps.holds.release(conn, held.release_to(), round);
            let held = *held;
            self.kick(held);
        }
    }

    /// The kernel keeps what nothing explains, from this time on.
    pub(super) fn waits_unexplained(&mut self, conn: u64, at_mono_ns: u64) {
        let held = self.held.entry(conn).or_default();
        if held.waiting_since.is_none() {
            held.waiting_since = Some(at_mono_ns);
            self.waiting.insert((at_mono_ns, conn));
        }
    }

    /// Bytes up to `to`, written then, are about to be decided after their deadline: what the kernel program has done, or
    /// else that it does nothing more by itself.
    pub(super) fn late(&mut self, maps: &mut Maps, conn: u64, to: u64, at_mono_ns: u64) -> Late {
        let held = self.held.entry(conn).or_default();
        if held.denied || held.stopped {
            return Late::Kept;
        }
        let ended = at_mono_ns < self.since_mono_ns && !maps.holds.is_known(conn);
        if ended || maps.holds.is_denied(conn) {
            return Late::Stopped;
        }
        if maps.holds.deny(conn).is_err() {
            return Late::Kept;
        }
        // Denied first: what has not passed now, can't.
        let passed_to = maps.holds.passed_to(conn);
        if passed_to < to {
            held.stopped = true;
            return Late::Kept;
        }
        held.released_to = held.released_to.max(passed_to);
        // As it was, or further.
        let _full = maps.holds.release(conn, held.release_to(), held.round);
        Late::Passed
    }

    /// Whether bytes that were written then are past their deadline, or older than this agent.
    pub(super) fn is_overdue(&self, at_mono_ns: u64) -> bool {
        at_mono_ns < self.since_mono_ns
            || clock::mono_ns().saturating_sub(at_mono_ns) >= self.deadline_ns
    }

    /// Bytes up to `to` may leave, now. False where the guard has denied them meanwhile.
    pub(super) fn release(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        to: u64,
    ) -> bool {
        let held = self.held.entry(conn).or_default();
        let now = clock::mono_ns();
        let waited_ns = held.waiting_since.map_or(0, |since| now.saturating_sub(since));
        let older = held.waiting_since.is_some_and(|since| since < self.since_mono_ns);
        let stopped = std::mem::take(&mut held.stopped);
        if (waited_ns > self.deadline_ns || older) && !stopped && maps.holds.is_denied(conn) {
            held.denied = true;
        }
        if held.denied {
            self.waits_no_more(conn);
            return false;
        }
        held.released_to = held.released_to.max(to);
        if maps.holds.release(conn, held.release_to(), held.round).is_err() {
            metrics.lost_map_full.increment();
        }
        let held = *held;
        if held.released_to >= held.received && self.waits_no_more(conn).is_some() {
            metrics.hold.observe(Duration::from_nanos(waited_ns));
            metrics.holds_released.increment();
            self.kick(held);
        }
        true
    }

    /// Pushes what the kernel dropped while the verdict was open. Without effect where the packet is
    /// still to come: it will find the verdict.
    fn kick(&mut self, held: Held) {
        if let Some(socket) = held.socket {
            // A process that has gone needs no push; TCP's timer does it.
            let _gone = self.sockets.kick(socket);
        }
    }

    /// A connection that another agent followed so far: what left before is no matter of ours, and what was
    /// denied stays so.
    pub(super) fn adopt(&mut self, maps: &Maps, conn: u64, sent: u64, cookie: Option<u64>) {
        let held = self.held.entry(conn).or_default();
        held.denied = maps.holds.is_denied(conn);
        held.cookie = cookie;
        held.released_to = sent;
        held.received = sent;
    }

    /// The socket became known, perhaps after the verdict.
    pub(super) fn joined(&mut self, conn: u64, socket: Socket) {
        let held = self.held.entry(conn).or_default();
        held.socket = Some(socket);
        let held = *held;
        if held.denied {
            // Gone already is as good.
            let gone = self.sockets.destroy(socket).is_ok();
            self.held.entry(conn).or_default().destroyed = gone;
        } else if held.released_to > 0 {
            self.kick(held);
        }
    }

    /// The socket of a connection, as far as it is known.
    pub(super) fn socket(&self, conn: u64) -> Option<Socket> {
        self.held.get(&conn)?.socket
    }

    /// Nothing more may leave.
    pub(super) fn deny(&mut self, maps: &mut Maps, metrics: &Metrics, conn: u64) {
        if let Some(since) = self.waits_no_more(conn) {
            metrics.hold.observe(Duration::from_nanos(clock::mono_ns().saturating_sub(since)));
        }
        metrics.holds_denied.increment();
        self.end(maps, metrics, conn);
    }

    /// Denies in the kernel first, so that nothing leaves before the socket is gone.
    fn end(&mut self, maps: &mut Maps, metrics: &Metrics, conn: u64) {
        if maps.holds.deny(conn).is_err() {
            metrics.lost_map_full.increment();
        }
        let held = self.past.get_mut(&conn);
        let held = held.unwrap_or_else(|| self.held.entry(conn).or_default());
        held.denied = true;
        if let Some(socket) = held.socket {
            held.destroyed = self.sockets.destroy(socket).is_ok();
        }
    }

    /// Ends the holds whose deadline has passed and that TCP has not tried again since.
    pub(super) fn expire(&mut self, maps: &mut Maps) -> Vec<Expired> {
        let now = clock::mono_ns();
        if self.next_deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let expired = maps.holds.expire(&mut self.sockets, now, self.deadline_ns, self.closed);
        // What waits no more in the kernel has been pushed; its own report says how that ended.
        let overdue = |since: u64| since.saturating_add(self.deadline_ns) <= now;
        while let Some(&(since, conn)) = self.waiting.first()
            && overdue(since)
        {
            self.waiting.pop_first();
            if let Some(held) = self.held.get_mut(&conn) {
                held.waiting_since = None;
            }
        }
        expired
    }

    /// The deadline has ended a hold, in the kernel or by [`Self::expire`].
    pub(super) fn timed_out(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        to: u64,
        passed: bool,
    ) {
        self.waits_no_more(conn);
        if passed {
            let held = self.held.entry(conn).or_default();
            // What it was decided for before that is known by what was read back then.
            if !held.denied {
                held.released_to = held.released_to.max(to);
            }
            metrics.holds_timed_out_open.increment();
        } else {
            metrics.holds_timed_out_closed.increment();
            self.end(maps, metrics, conn);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.waiting.first().map(|&(since, _)| since.saturating_add(self.deadline_ns))
    }

    /// When [`Self::overdue`] has something to say.
    pub(super) fn next_effect(&self) -> Option<u64> {
        self.unseen.first().map(|&(until, _)| until)
    }

    /// Since when it has waited, if it has.
    fn waits_no_more(&mut self, conn: u64) -> Option<u64> {
        let since = self.held.get_mut(&conn)?.waiting_since.take()?;
        self.waiting.remove(&(since, conn));
        Some(since)
    }

    /// The connection has ended; the kernel forgets it a while later. `taken_to`: position after the last byte
    /// that the TLS library took, where its object was freed.
    pub(super) fn ended(&mut self, now_mono_ns: u64, conn: u64, taken_to: Option<u64>) {
        self.waits_no_more(conn);
        let held = Held { taken_to, ..self.held.remove(&conn).unwrap_or_default() };
        // A verdict may still be on its way.
        self.past.insert(conn, held);
        // Of a socket that is destroyed nothing leaves any more, whoever's place its verdict takes.
        let long = held.denied && !held.destroyed;
        let keep = if long { KEEP_DENIED_NS } else { KEEP_RELEASED_NS + self.deadline_ns };
        let cookie = held.socket.map(|socket| socket.cookie);
        self.ended.insert((now_mono_ns.saturating_add(keep), conn), cookie);
    }

    /// The program has let go of a socket. What it has queued may still have to leave.
    pub(super) fn released(&mut self, now_mono_ns: u64, cookie: u64) {
        let at = now_mono_ns.saturating_add(KEEP_CLOSED_NS);
        self.closed_sockets.insert((at, cookie));
    }

    /// Forgets connections whose time has come; which of them were denied, and what more left of them at last.
    pub(super) fn forget(&mut self, maps: &mut Maps, now_mono_ns: u64) -> Vec<(u64, Option<Left>)> {
        let mut denied = Vec::new();
        while let Some(entry) = self.ended.first_entry()
            && entry.key().0 <= now_mono_ns
        {
            let ((_, conn), cookie) = entry.remove_entry();
            let more = self.breach(maps, conn);
            maps.holds.forget(conn);
            if let Some(cookie) = cookie {
                self.sockets.forget(cookie);
            }
            if self.past.remove(&conn).is_some_and(|it| it.denied) {
                denied.push((conn, more));
            }
        }
        while let Some(&(at, cookie)) = self.closed_sockets.first()
            && at <= now_mono_ns
        {
            self.closed_sockets.pop_first();
            maps.forget_socket(cookie);
        }
        denied
    }

    /// The kernel refused its socket to connect, so that nothing of it can have left.
    pub(super) fn unconnected(&mut self, conn: u64) {
        self.held.entry(conn).or_default().left = Some(Left::nothing(Mechanism::Connect));
    }

    /// What left of a denied connection. `None`: its socket is not known yet, and is waited for, for
    /// [`EFFECT_WITHIN_NS`] at most.
    pub(super) fn effect(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let left = self.read_back(maps, conn);
        if left.is_none() && self.unseen.iter().all(|(_, other)| *other != conn) {
            let until = clock::mono_ns().saturating_add(EFFECT_WITHIN_NS);
            self.unseen.insert((until, conn));
        }
        left
    }

    /// The same, where its socket is waited for no longer.
    pub(super) fn effect_at_last(&mut self, maps: &Maps, conn: u64) -> Left {
        self.was_unseen(conn);
        let left = self.read_back(maps, conn);
        left.unwrap_or_else(|| Left::unknown(maps.holds.passed_to(conn)))
    }

    /// What its socket says of a denied connection. `None`: it has none, or none is known.
    fn read_back(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let held = self.past.get_mut(&conn);
        let held = held.unwrap_or_else(|| self.held.entry(conn).or_default());
        let socket = held.socket.or_else(|| maps.holds.socket(conn));
        let cookie = socket.map(|it| it.cookie).or(held.cookie);
        let left =
            if let Some(unconnected) = held.left.filter(|it| it.mechanism == Mechanism::Connect) {
                unconnected
            } else if let Some(cookie) = cookie {
                maps.what_left(conn, cookie, held.kept_from())
            } else if held.taken_to.is_some_and(|to| to <= held.kept_from()) {
                // The program gave up on a socket that was dead already: what waits in no socket leaves by none.
                Left::nothing(Mechanism::None)
            } else {
                return None;
            };
        held.left = Some(left);
        Some(left)
    }

    /// What left of a denied connection beyond what was read back of it before; each byte is told once.
    pub(super) fn breach(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let held = self.past.get_mut(&conn).or_else(|| self.held.get_mut(&conn))?;
        let (before, socket) = (held.left?, held.socket?);
        let now = maps.what_left(conn, socket.cookie, held.kept_from());
        if now.above <= before.above {
            return None;
        }
        held.left = Some(now);
        Some(now)
    }

    /// Denied connections whose socket was waited for long enough.
    pub(super) fn overdue(&mut self, now_mono_ns: u64) -> Vec<u64> {
        let later = self.unseen.split_off(&(now_mono_ns.saturating_add(1), 0));
        std::mem::replace(&mut self.unseen, later).into_iter().map(|(_, conn)| conn).collect()
    }

    /// Whether the socket of a denied connection is waited for, no longer from here on.
    pub(super) fn was_unseen(&mut self, conn: u64) -> bool {
        let before = self.unseen.len();
        self.unseen.retain(|(_, other)| *other != conn);
        self.unseen.len() < before
    }
}
