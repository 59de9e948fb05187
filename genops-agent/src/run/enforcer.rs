//! Verdicts in the kernel: release with a kick, denial with the end of exactly the denied socket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
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

/// Lifetime of the kernel's notes after the end of a connection, in nanoseconds: queued bytes must
/// still be judged.
const KEEP_RELEASED_NS: u64 = 2_000_000_000;
/// The same for a denied connection: TCP gives up on a dead peer after minutes.
const KEEP_DENIED_NS: u64 = 300_000_000_000;
/// Latest time after a denial for the record of the bytes that left, in nanoseconds.
const EFFECT_WITHIN_NS: u64 = 900_000_000;

/// Lifetime of the kernel's notes on a socket closed by the program, in nanoseconds: TCP may try
/// for minutes to send queued bytes.
const KEEP_CLOSED_NS: u64 = 300_000_000_000;

/// Way out of the host for a connection's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Outlet {
    /// A socket, known or to become known.
    #[default]
    Open,
    /// A destroyed socket.
    Destroyed,
    /// None: the TLS object has ended without a known socket, so no socket becomes known. The
    /// kernel needs no note of the connection.
    Absent,
}

/// State of the hold of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    socket: Option<Socket>,
    /// Cookie of the socket of an adopted connection, even if nothing else of the socket is known.
    cookie: Option<u64>,
    /// Position up to which bytes may leave.
    released_to: u64,
    /// Position up to which bytes left without a hold, or were released by an earlier agent, before
    /// any denial by this agent.
    free_to: u64,
    denied: bool,
    /// Write time of the oldest waiting bytes.
    waiting_since: Option<u64>,
    /// Position after the last byte held by the kernel, now or before.
    received: u64,
    /// Denied in the kernel until the decision, because the deadline passed before the decision.
    stopped: bool,
    /// The kernel's round of the last write: see [`genops_ebpf_common::Hold::round`].
    round: u16,
    /// In a later round than the first, the position up to which the bytes are the same as before.
    compared_to: u64,
    outlet: Outlet,
    /// Position after the last byte taken by the TLS library, if the TLS object was freed.
    taken_to: Option<u64>,
    /// Bytes read back last after the denial; or the note that the socket never reached the other
    /// end.
    left: Option<Left>,
}

impl Held {
    /// Bytes that left; zero if a refusal concerns none of them.
    const fn concerned(self, left: Left) -> Left {
        if left.to > self.free_to { left } else { Left { to: 0, ..left } }
    }

    /// Position up to which bytes left, or may leave.
    fn reached(&self) -> u64 {
        self.released_to.max(self.free_to)
    }

    /// Whether no socket can carry the connection. The kernel is asked too: the report of a socket
    /// may have found the ring full.
    fn is_gone(&self, maps: &Maps, conn: u64) -> bool {
        self.outlet == Outlet::Absent && maps.holds.socket(conn).is_none()
    }

    /// Position for a verdict now.
    fn release_to(&self) -> u64 {
        if self.round == 0 { self.released_to } else { self.released_to.min(self.compared_to) }
    }
}

/// Fate of bytes decided after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The bytes passed.
    Passed,
    /// The bytes were stopped for good.
    Stopped,
    /// The bytes wait for the verdict, or an earlier verdict has stopped them.
    Kept,
}

/// Applies verdicts, and knows the connections waiting for a verdict.
#[derive(Debug)]
pub(super) struct Enforcer {
    sockets: Sockets,
    /// Start of this agent: bytes written before may have been judged by another.
    since_mono_ns: u64,
    deadline_ns: u64,
    closed: bool,
    held: HashMap<u64, Held>,
    /// Waiting connections, by start of the wait.
    waiting: BTreeSet<(u64, u64)>,
    /// Ended connections, by the time when the kernel may forget them.
    ended: BTreeMap<(u64, u64), Option<u64>>,
    /// Sockets closed by their programs, by the time when the kernel may forget them. An open
    /// socket is never forgotten: the bytes of an unknown socket pass.
    closed_sockets: BTreeSet<(u64, u64)>,
    /// State of the connections in `ended`.
    past: HashMap<u64, Held>,
    /// Connections with [`Outlet::Absent`] since the last [`Self::forget`].
    bare: Vec<u64>,
    unseen: Unseen,
}

/// Denied connections without a known socket yet, and the ends of waiting.
#[derive(Debug, Default)]
struct Unseen {
    by_time: BTreeSet<(u64, u64)>,
    until: HashMap<u64, u64>,
}

impl Unseen {
    /// Waits for the socket of a connection, unless waiting already.
    fn wait(&mut self, conn: u64, until_mono_ns: u64) {
        if let Entry::Vacant(entry) = self.until.entry(conn) {
            entry.insert(until_mono_ns);
            self.by_time.insert((until_mono_ns, conn));
        }
    }

    /// Ends the waiting for a socket. False without any.
    fn end(&mut self, conn: u64) -> bool {
        let Some(until) = self.until.remove(&conn) else { return false };
        self.by_time.remove(&(until, conn))
    }

    fn next(&self) -> Option<u64> {
        self.by_time.first().map(|&(until, _)| until)
    }

    /// Removes and returns overdue connections, in order of time.
    fn overdue(&mut self, now_mono_ns: u64) -> Vec<u64> {
        let later = self.by_time.split_off(&(now_mono_ns.saturating_add(1), 0));
        let over = std::mem::replace(&mut self.by_time, later);
        let conns: Vec<u64> = over.into_iter().map(|(_, conn)| conn).collect();
        for conn in &conns {
            self.until.remove(conn);
        }
        conns
    }
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
            bare: Vec::new(),
            unseen: Unseen::default(),
        };
        new.set(deadline, on_timeout);
        new
    }

    pub(super) fn set(&mut self, deadline: Duration, on_timeout: OnTimeout) {
        self.deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        self.closed = on_timeout == OnTimeout::Closed;
    }

    /// Starts to follow a connection; drops the state of an earlier connection of the same number.
    pub(super) fn begins(&mut self, conn: u64) {
        self.past.remove(&conn);
    }

    /// Notes bytes of `conn` up to `to`, written while the process was not held: no later refusal
    /// concerns them.
    pub(super) fn unheld(&mut self, conn: u64, to: u64) {
        let held = self.held.entry(conn).or_default();
        if !held.denied {
            held.free_to = held.free_to.max(to);
        }
    }

    /// Notes bytes of `conn` up to `to`, written at `at_mono_ns` and held by the kernel.
    pub(super) fn arrived(&mut self, conn: u64, to: u64, at_mono_ns: u64) {
        let held = self.held.entry(conn).or_default();
        held.received = held.received.max(to);
        if held.received > held.released_to && held.waiting_since.is_none() {
            held.waiting_since = Some(at_mono_ns);
            self.waiting.insert((at_mono_ns, conn));
        }
    }

    /// Notes a write ending at `to`, reported in `round`, with the same bytes as the earlier
    /// report.
    pub(super) fn repeated(&mut self, maps: &mut Maps, conn: u64, round: u16, to: u64) {
        let held = self.held.entry(conn).or_default();
        if held.round == round && (round == 0 || held.compared_to >= to) {
            return;
        }
        held.round = round;
        held.compared_to = to;
        if !held.denied && !held.stopped && held.released_to > 0 {
            // The earlier decision about the bytes still holds.
            let _full = maps.holds.release(conn, held.release_to(), round);
            let held = *held;
            self.kick(held);
        }
    }

    /// Notes a hold of unexplained bytes by the kernel since `at_mono_ns`.
    pub(super) fn waits_unexplained(&mut self, conn: u64, at_mono_ns: u64) {
        let held = self.held.entry(conn).or_default();
        if held.waiting_since.is_none() {
            held.waiting_since = Some(at_mono_ns);
            self.waiting.insert((at_mono_ns, conn));
        }
    }

    /// Returns the fate of bytes up to `to`, written at `at_mono_ns` and about to be decided after
    /// the deadline. If the kernel program has not acted yet, keeps the program from acting by
    /// itself.
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
        // Denied first: bytes that have not passed by now can't pass.
        let passed_to = maps.holds.passed_to(conn);
        if passed_to < to {
            held.stopped = true;
            return Late::Kept;
        }
        held.released_to = held.released_to.max(passed_to);
        // The position stays, or moves on.
        let _full = maps.holds.release(conn, held.release_to(), held.round);
        Late::Passed
    }

    /// Whether undecided bytes stay held at the deadline.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether bytes written at `at_mono_ns` are past their deadline, or older than this agent.
    pub(super) fn is_overdue(&self, at_mono_ns: u64) -> bool {
        at_mono_ns < self.since_mono_ns
            || clock::mono_ns().saturating_sub(at_mono_ns) >= self.deadline_ns
    }

    /// Ends the connection of a write not taken by the library, whatever was decided, if all bytes
    /// before `from` have left and no later byte. Returns whether no later byte has left, and none
    /// can.
    pub(super) fn withdraw(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        from: u64,
    ) -> bool {
        let held = self.held.entry(conn).or_default();
        let socket = held.socket.or_else(|| maps.holds.socket(conn));
        let Some(cookie) = socket.map(|it| it.cookie).or(held.cookie) else { return false };
        let stands_there = |maps: &Maps| {
            let left = maps.what_left(conn, cookie, from);
            left.counted && left.to == from && maps.holds.passed_to(conn) <= from
        };
        if !stands_there(maps) {
            return false;
        }
        self.end(maps, metrics, conn);
        // Denied first: a verdict on the way, a deadline and a TCP retransmission change nothing
        // any more.
        stands_there(maps)
    }

    /// Releases bytes up to `to`, now. False if the guard has denied them meanwhile.
    pub(super) fn release(
        &mut self,
        maps: &mut Maps,
        metrics: &Metrics,
        conn: u64,
        to: u64,
    ) -> bool {
        // The end of the connection may have been read before the verdict became durable.
        let past = self.past.get_mut(&conn);
        let held = past.unwrap_or_else(|| self.held.entry(conn).or_default());
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
        if !held.is_gone(maps, conn)
            && maps.holds.release(conn, held.release_to(), held.round).is_err()
        {
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

    /// Pushes packets dropped by the kernel before the verdict. Without effect if the packet is
    /// still to come, and will find the verdict.
    fn kick(&mut self, held: Held) {
        if let Some(socket) = held.socket {
            // An ended process needs no push; TCP's timer sends.
            let _gone = self.sockets.kick(socket);
        }
    }

    /// Takes over a connection of another agent: no refusal by this agent concerns the bytes sent
    /// before, and a denied connection stays denied.
    pub(super) fn adopt(&mut self, maps: &Maps, conn: u64, sent: u64, cookie: Option<u64>) {
        let held = self.held.entry(conn).or_default();
        held.denied = maps.holds.is_denied(conn);
        held.cookie = cookie;
        held.free_to = sent;
        held.released_to = sent;
        held.received = sent;
    }

    /// Notes the socket, known perhaps after the verdict.
    pub(super) fn joined(&mut self, conn: u64, socket: Socket) {
        let held = self.held.entry(conn).or_default();
        held.socket = Some(socket);
        let held = *held;
        if held.denied {
            // A socket closed already is as good.
            if self.sockets.destroy(socket).is_ok() {
                self.held.entry(conn).or_default().outlet = Outlet::Destroyed;
            }
        } else if held.released_to > 0 {
            self.kick(held);
        }
    }

    /// Position up to which bytes of a connection may leave.
    pub(super) fn released_to(&self, conn: u64) -> u64 {
        self.past.get(&conn).or_else(|| self.held.get(&conn)).map_or(0, Held::reached)
    }

    /// The socket of a connection, if known.
    pub(super) fn socket(&self, conn: u64) -> Option<Socket> {
        self.held.get(&conn)?.socket
    }

    /// Denies all further bytes.
    pub(super) fn deny(&mut self, maps: &mut Maps, metrics: &Metrics, conn: u64) {
        if let Some(since) = self.waits_no_more(conn) {
            metrics.hold.observe(Duration::from_nanos(clock::mono_ns().saturating_sub(since)));
        }
        metrics.holds_denied.increment();
        self.end(maps, metrics, conn);
    }

    /// Denies in the kernel first, so that no byte leaves before the end of the socket.
    fn end(&mut self, maps: &mut Maps, metrics: &Metrics, conn: u64) {
        let is_gone = self.past.get(&conn).is_some_and(|it| it.is_gone(maps, conn));
        if !is_gone && maps.holds.deny(conn).is_err() {
            metrics.lost_map_full.increment();
        }
        let held = self.past.get_mut(&conn);
        let held = held.unwrap_or_else(|| self.held.entry(conn).or_default());
        held.denied = true;
        if let Some(socket) = held.socket
            && self.sockets.destroy(socket).is_ok()
        {
            held.outlet = Outlet::Destroyed;
        }
    }

    /// Ends the holds past their deadline and not tried again by TCP since.
    pub(super) fn expire(&mut self, maps: &mut Maps) -> Vec<Expired> {
        let now = clock::mono_ns();
        if self.next_deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let expired = maps.holds.expire(&mut self.sockets, now, self.deadline_ns, self.closed);
        // A connection without a hold in the kernel has been pushed; the kernel's own report tells
        // the result.
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

    /// Notes the end of a hold at the deadline, in the kernel or by [`Self::expire`].
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
            // The bytes read back at an earlier denial show the effect of the denial.
            if !held.denied {
                held.released_to = held.released_to.max(to);
            }
            metrics.holds_timed_out_open.increment();
        } else {
            metrics.holds_timed_out_closed.increment();
            self.end(maps, metrics, conn);
        }
    }

    /// Time of the next work for [`Self::expire`].
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.waiting.first().map(|&(since, _)| since.saturating_add(self.deadline_ns))
    }

    /// Time of the next result of [`Self::overdue`].
    pub(super) fn next_effect(&self) -> Option<u64> {
        self.unseen.next()
    }

    /// Ends the wait; returns the start of the wait, if any.
    fn waits_no_more(&mut self, conn: u64) -> Option<u64> {
        let since = self.held.get_mut(&conn)?.waiting_since.take()?;
        self.waiting.remove(&(since, conn));
        Some(since)
    }

    /// Notes the end of a connection; the kernel forgets the connection later. `of_object`: a TLS
    /// object of the connection was known. `taken_to`: position after the last byte taken by the
    /// TLS library, if the TLS object was freed.
    pub(super) fn ended(
        &mut self,
        now_mono_ns: u64,
        conn: u64,
        of_object: bool,
        taken_to: Option<u64>,
    ) {
        self.waits_no_more(conn);
        let mut held = self.held.remove(&conn).unwrap_or_default();
        let is_known = held.socket.is_some() || held.cookie.is_some();
        held.taken_to = taken_to;
        if of_object && !is_known {
            held.outlet = Outlet::Absent;
            self.bare.push(conn);
        }
        // A verdict may still be on the way.
        self.past.insert(conn, held);
        // No byte leaves a destroyed socket, whatever later verdict is written.
        let long = held.denied && held.outlet == Outlet::Open && is_known;
        let keep = if long { KEEP_DENIED_NS } else { KEEP_RELEASED_NS + self.deadline_ns };
        let cookie = held.socket.map(|socket| socket.cookie);
        self.ended.insert((now_mono_ns.saturating_add(keep), conn), cookie);
    }

    /// Notes a socket closed by the program. Queued bytes may still have to leave.
    pub(super) fn released(&mut self, now_mono_ns: u64, cookie: u64) {
        let at = now_mono_ns.saturating_add(KEEP_CLOSED_NS);
        self.closed_sockets.insert((at, cookie));
    }

    /// Forgets connections after their time; returns the denied connections, with the bytes that
    /// left since the last look.
    pub(super) fn forget(&mut self, maps: &mut Maps, now_mono_ns: u64) -> Vec<(u64, Option<Left>)> {
        self.forget_bare(maps);
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

    /// Frees the kernel's places of connections without a socket at once: otherwise a user could
    /// take all places with TLS objects that write into memory.
    fn forget_bare(&mut self, maps: &mut Maps) {
        for conn in std::mem::take(&mut self.bare) {
            if maps.holds.socket(conn).is_none() {
                maps.holds.forget(conn);
            } else if let Some(held) = self.past.get_mut(&conn) {
                // The report of the socket was lost.
                held.outlet = Outlet::Open;
            }
        }
    }

    /// Notes a connect refused by the kernel: no byte can have left.
    pub(super) fn unconnected(&mut self, conn: u64) {
        self.held.entry(conn).or_default().left = Some(Left::nothing(Mechanism::Connect));
    }

    /// Bytes that left a denied connection. `None`: the socket is not known yet; the wait for the
    /// socket lasts [`EFFECT_WITHIN_NS`] at most.
    pub(super) fn effect(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let left = self.read_back(maps, conn);
        if left.is_none() {
            self.unseen.wait(conn, clock::mono_ns().saturating_add(EFFECT_WITHIN_NS));
        }
        left
    }

    /// The same, at the end of the wait for the socket.
    pub(super) fn effect_at_last(&mut self, maps: &Maps, conn: u64) -> Left {
        self.was_unseen(conn);
        let left = self.read_back(maps, conn);
        left.unwrap_or_else(|| Left::unknown(maps.holds.passed_to(conn)))
    }

    /// Reads the bytes that left a denied connection from the socket. `None`: no known socket.
    fn read_back(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let held = self.past.get_mut(&conn);
        let held = held.unwrap_or_else(|| self.held.entry(conn).or_default());
        let socket = held.socket.or_else(|| maps.holds.socket(conn));
        let cookie = socket.map(|it| it.cookie).or(held.cookie);
        let left =
            if let Some(unconnected) = held.left.filter(|it| it.mechanism == Mechanism::Connect) {
                unconnected
            } else if let Some(cookie) = cookie {
                maps.what_left(conn, cookie, held.released_to)
            } else if let Some(to) = held.taken_to.filter(|to| *to <= held.reached()) {
                // The program gave up on a dead socket: bytes waiting in no socket leave by none.
                Left { to, ..Left::nothing(Mechanism::None) }
            } else {
                return None;
            };
        let left = held.concerned(left);
        held.left = Some(left);
        Some(left)
    }

    /// Bytes that left a denied connection after the last look; each byte is reported once.
    pub(super) fn breach(&mut self, maps: &Maps, conn: u64) -> Option<Left> {
        let held = self.past.get_mut(&conn).or_else(|| self.held.get_mut(&conn))?;
        let (before, socket) = (held.left?, held.socket?);
        let now = held.concerned(maps.what_left(conn, socket.cookie, held.released_to));
        if now.to <= before.to {
            return None;
        }
        held.left = Some(now);
        Some(now)
    }

    /// Removes and returns the denied connections at the end of the wait for a socket.
    pub(super) fn overdue(&mut self, now_mono_ns: u64) -> Vec<u64> {
        self.unseen.overdue(now_mono_ns)
    }

    /// Ends the wait for the socket of a denied connection. False without a wait.
    pub(super) fn was_unseen(&mut self, conn: u64) -> bool {
        self.unseen.end(conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_waited_for_once_and_no_longer_than_was_said_first() {
        let mut unseen = Unseen::default();
        for conn in 0..4 {
            unseen.wait(conn, 100 + conn);
            unseen.wait(conn, 900);
        }
        assert_eq!(unseen.next(), Some(100));
        assert!(unseen.end(1) && !unseen.end(1) && !unseen.end(7));
        assert_eq!(unseen.overdue(102), [0, 2]);
        assert_eq!(unseen.overdue(u64::MAX - 1), [3]);
        assert!(unseen.by_time.is_empty() && unseen.until.is_empty());
    }
}
