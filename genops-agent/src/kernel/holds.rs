//! Verdicts on held connections, and what happens when none comes in time.
//!
//! Four maps: what waits (written by the kernel programs), whose socket it is (likewise), what was
//! decided, and the settings (written here). The agent uses them on its events thread; the guard process has the same
//! maps and does the same when the agent can't.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use genops_ebpf_common::{Hold, Join, Settings, Sock, Verdict, holding, phase, unexplained};
use genops_governance::Mechanism;

use rustix::io::Errno;

use super::sockets::{Socket, Sockets};

/// Bytes that begin a connection and say nothing yet: a `ClientHello`, or QUIC's Initial packets with one
/// (RFC 9001 §4.3).
const BEGINNING_BYTES: u64 = 4_096;

/// Maps that the agent and its guard share.
pub(crate) const MAPS: usize = 4;

/// The maps of held connections, by connection number, and the settings of the programs.
pub(crate) struct Holds {
    waiting: HashMap<MapData, u64, Hold>,
    sockets: HashMap<MapData, u64, Join>,
    verdicts: HashMap<MapData, u64, Verdict>,
    settings: Array<MapData, Settings>,
    /// The maps' descriptors in this process, in the order of [`Self::from_maps`].
    descriptors: [RawFd; MAPS],
}

/// A hold whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) conn: u64,
    /// Position after the last byte that waited.
    pub(crate) to: u64,
    /// Nothing explains what waited: one of the reasons in [`unexplained`].
    pub(crate) unexplained: Option<u32>,
    /// It was stopped for good; otherwise it was pushed, and the kernel program lets it pass.
    pub(crate) stopped: bool,
}

impl Holds {
    /// What waits, whose socket it is, the verdicts, and the settings.
    pub(crate) fn from_maps(maps: [MapData; MAPS]) -> Result<Self, MapError> {
        let descriptors = maps.each_ref().map(|map| map.fd().as_fd().as_raw_fd());
        let [holds, sockets, verdicts, settings] = maps;
        Ok(Self {
            waiting: Map::HashMap(holds).try_into()?,
            sockets: Map::HashMap(sockets).try_into()?,
            verdicts: Map::HashMap(verdicts).try_into()?,
            settings: Map::Array(settings).try_into()?,
            descriptors,
        })
    }

    /// The maps behind [`Self::descriptors`] of another process.
    pub(crate) fn from_descriptors(descriptors: [OwnedFd; MAPS]) -> Result<Self, MapError> {
        let [holds, sockets, verdicts, settings] = descriptors.map(MapData::from_fd);
        Self::from_maps([holds?, sockets?, verdicts?, settings?])
    }

    /// The maps' descriptors in this process, for [`Self::from_descriptors`] in another.
    pub(crate) fn descriptors(&self) -> [RawFd; MAPS] {
        self.descriptors
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) -> Result<(), MapError> {
        self.settings.set(0, settings, 0)
    }

    /// Somebody decides, at this time.
    pub(crate) fn beat(&mut self, now_mono_ns: u64, absent_after_ns: u64) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { alive_at_mono_ns: now_mono_ns, absent_after_ns, ..settings })
    }

    /// From now on nobody decides, until somebody says otherwise ([`Self::beat`]).
    pub(crate) fn leave(&mut self) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { absent_after_ns: 0, ..settings })
    }

    /// Whether anything of `conn` waits or waited, and nobody has ended it.
    pub(crate) fn is_known(&self, conn: u64) -> bool {
        self.waiting.get(&conn, 0).is_ok()
    }

    /// Whether what was left here is void.
    pub(crate) fn is_void(&self, now_mono_ns: u64) -> bool {
        self.settings.get(&0, 0).is_ok_and(|it| it.is_void(now_mono_ns))
    }

    /// Ends the sockets of what is denied: by the kernel programs, since nobody decides, or by an agent that did not come
    /// to that. Whether there were any.
    pub(crate) fn end_denied(&mut self, sockets: &mut Sockets) -> bool {
        let denied: Vec<u64> = self
            .waiting
            .iter()
            .flatten()
            .map(|(conn, _)| conn)
            .filter(|conn| self.is_denied(*conn))
            .collect();
        let mut any = false;
        for conn in denied {
            let Some(socket) = self.socket(conn) else { continue };
            if let Ok(()) | Err(Errno::NOENT) = sockets.destroy(socket) {
                // Nothing of it can leave any more, and the next ones need the room.
                self.forget(conn);
                any = true;
            }
        }
        any
    }

    /// From now on no request waits: nobody is left who could decide. The kernel takes seconds to detach the
    /// probes of a process that ends, and until then they go on.
    pub(crate) fn hold_no_more(&mut self) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { holding: holding::NOBODY, ..settings })
    }

    /// Bytes of `conn` up to `to` may leave, as they were reported in this round ([`Hold::round`]).
    pub(crate) fn release(&mut self, conn: u64, to: u64, round: u16) -> Result<(), MapError> {
        let verdict = Verdict { released_to: to, denied: 0, round: u32::from(round) };
        self.verdicts.insert(conn, verdict, 0)
    }

    /// Nothing more of `conn` may leave.
    pub(crate) fn deny(&mut self, conn: u64) -> Result<(), MapError> {
        self.verdicts.insert(conn, Verdict { released_to: 0, denied: 1, round: 0 }, 0)
    }

    /// From now on, nothing of a connection that no probe reads leaves without a verdict.
    pub(crate) fn arm_opaque(&mut self, conn: u64, tgid: u32, now_mono_ns: u64) {
        let hold = Hold { armed_to: 1, armed_at_mono_ns: now_mono_ns, tgid, ..Hold::default() };
        // Where there is no room, what the agent decides counts from its verdict on.
        let _full = self.waiting.insert(conn, hold, 0);
    }

    /// What waits of `conn`, or has waited.
    pub(crate) fn hold(&self, conn: u64) -> Option<Hold> {
        self.waiting.get(&conn, 0).ok()
    }

    /// Position up to which the deadline has let bytes of `conn` pass.
    pub(crate) fn passed_to(&self, conn: u64) -> u64 {
        self.waiting.get(&conn, 0).map_or(0, |hold| hold.passed_to)
    }

    /// The socket of `conn`, once the kernel has seen a packet of it.
    pub(crate) fn socket(&self, conn: u64) -> Option<Socket> {
        self.sockets.get(&conn, 0).ok().map(|join| socket_of(&join))
    }

    /// Removes every trace of a connection that has ended.
    pub(crate) fn forget(&mut self, conn: u64) {
        // What is not there needs no removal.
        let _absent = self.waiting.remove(&conn);
        let _absent = self.sockets.remove(&conn);
        let _absent = self.verdicts.remove(&conn);
    }

    /// Whether anything that was read waits for a verdict. What nothing explains waits for none.
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting.iter().flatten().any(|(conn, hold)| self.is_undecided(conn, &hold))
    }

    /// Whether `conn` was denied, by whomever.
    pub(crate) fn is_denied(&self, conn: u64) -> bool {
        self.verdict(conn).denied != 0
    }

    fn verdict(&self, conn: u64) -> Verdict {
        self.verdicts.get(&conn, 0).unwrap_or_default()
    }

    /// Whether bytes that were read wait for a verdict.
    fn is_undecided(&self, conn: u64, hold: &Hold) -> bool {
        let verdict = self.verdict(conn);
        verdict.denied == 0 && hold.is_waiting(hold.released_to(&verdict))
    }

    fn waits(&self, conn: u64, hold: &Hold) -> bool {
        self.is_undecided(conn, hold) || hold.unexplained_at_mono_ns != 0 && !self.is_denied(conn)
    }

    /// Since when `conn` waits, and why if that is because nothing explains it. What was read and is not decided comes first:
    /// the rule for it is never the laxer one.
    fn oldest(&self, conn: u64, hold: &Hold) -> (u64, Option<u32>) {
        let verdict = self.verdict(conn);
        let is_read = hold.unread == 0 && hold.is_waiting(hold.released_to(&verdict));
        match (hold.unread, hold.unexplained_at_mono_ns) {
            (0, since) if !is_read && since != 0 => (since, Some(unexplained::NO_PLAINTEXT)),
            (0, _) => (hold.armed_at_mono_ns, None),
            (reason, _) => (hold.armed_at_mono_ns, Some(reason)),
        }
    }

    /// Ends every hold that has waited for longer than `deadline_ns`, as `closed` says: a kick, upon
    /// which the kernel program lets the bytes pass, or the end of the socket.
    ///
    /// The kernel program applies the deadline by itself, but only when TCP tries to send, and TCP's
    /// timer knows nothing of our deadline.
    pub(crate) fn expire(
        &mut self,
        sockets: &mut Sockets,
        now_mono_ns: u64,
        deadline_ns: u64,
        closed: bool,
    ) -> Vec<Expired> {
        let unread_stays = self.settings.get(&0, 0).is_ok_and(|it| it.unread_stays != 0);
        let overdue: Vec<Expired> = self
            .waiting
            .iter()
            .flatten()
            .filter(|(conn, hold)| self.waits(*conn, hold))
            .filter_map(|(conn, hold)| {
                let (since, unexplained) = self.oldest(conn, &hold);
                if now_mono_ns.saturating_sub(since) < deadline_ns {
                    return None;
                }
                let stopped = if unexplained.is_some() { unread_stays } else { closed };
                Some(Expired { conn, to: hold.armed_to, unexplained, stopped })
            })
            .collect();
        for &Expired { conn, stopped, .. } in &overdue {
            let socket = self.socket(conn);
            if stopped {
                // Denied first, so that nothing leaves between the two.
                let _unwritten = self.deny(conn);
                let _gone = socket.map(|socket| sockets.destroy(socket));
            } else {
                let _gone = socket.map(|socket| sockets.kick(socket));
            }
        }
        overdue
    }
}

/// What left of a connection, and how it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Bytes that passed above the released position.
    pub(crate) above: u64,
    /// What keeps the rest; none where nothing did.
    pub(crate) mechanism: Mechanism,
    /// Somebody counted; otherwise more than `above` may have left.
    pub(crate) counted: bool,
}

impl Left {
    /// Nobody counted, and the deadline has let so much pass.
    pub(crate) const fn unknown(above: u64) -> Self {
        Self { above, mechanism: Mechanism::None, counted: false }
    }

    /// Nothing can have left; by what it was kept.
    pub(crate) const fn nothing(mechanism: Mechanism) -> Self {
        Self { above: 0, mechanism, counted: true }
    }
}

/// What left of a connection whose plaintext up to `released_to` might, by the records that its socket has
/// sent. `sock`: what the kernel says of that socket, where there is one; `hold`: of what waits on it.
pub(crate) fn left_of(
    conn: u64,
    cookie: u64,
    sock: Option<&Sock>,
    hold: Option<&Hold>,
    released_to: u64,
) -> Left {
    let passed_to = hold.map_or(0, |it| it.passed_to);
    let unknown = Left::unknown(passed_to.saturating_sub(released_to));
    // A connection that nobody read has its socket's number, also where it is read from some record on.
    let carries = |it: &&Sock| it.conn == conn || it.conn == 0 || conn == cookie;
    let Some(sock) = sock.filter(carries) else { return unknown };
    let above = if sock.conn == cookie {
        // Its records say nothing of plaintext; all of it is held, or what was sent was free to leave.
        match hold {
            Some(_) if passed_to == 0 => 0,
            Some(_) => sock.sent.max(1),
            None => sock.sent.saturating_sub(BEGINNING_BYTES),
        }
    } else {
        match sock.cursor.phase {
            phase::HANDSHAKE | phase::CHANGED => 0,
            phase::OPEN => sock.cursor.explained.saturating_sub(sock.excess),
            _ => return unknown,
        }
        .saturating_sub(released_to)
    };
    Left { above, mechanism: Mechanism::EgressHold, counted: true }
}

/// An address as the kernel programs write it: the first four bytes for IPv4.
pub(crate) fn address_of(ip_version: u32, bytes: [u8; 16], port: u16) -> SocketAddr {
    let [a, b, c, d, ..] = bytes;
    let ip = if ip_version == 4 { IpAddr::from([a, b, c, d]) } else { bytes.into() };
    SocketAddr::new(ip, port)
}

/// The socket that a kernel record names.
pub(crate) fn socket_of(join: &Join) -> Socket {
    let address = |bytes, port| address_of(join.ip_version, bytes, port);
    Socket {
        cookie: join.cookie,
        tgid: join.tgid,
        local: address(join.local, join.local_port),
        remote: address(join.remote, join.remote_port),
    }
}

#[cfg(test)]
mod tests {
    use genops_ebpf_common::Cursor;

    use super::*;

    /// Bytes above position 2,100 by the cursor of a socket, and whether anybody counted.
    fn above(sock: Sock, passed_to: u64) -> (u64, bool) {
        let hold = Hold { passed_to, ..Hold::default() };
        let Left { above, counted, mechanism } = left_of(7, 91, Some(&sock), Some(&hold), 2_100);
        assert_eq!(counted, mechanism != Mechanism::None);
        (above, counted)
    }

    fn at(phase: u8, explained: u64) -> Sock {
        let cursor = Cursor { phase, explained, ..Cursor::default() };
        Sock { conn: 7, sent: 900_000, cursor, ..Sock::default() }
    }

    #[test]
    fn what_left_is_what_records_carried_above_the_released_position() {
        assert_eq!(above(at(phase::OPEN, 2_100), 0), (0, true), "whatever is on the wire");
        assert_eq!(above(at(phase::OPEN, 2_600), 0), (500, true));
        assert_eq!(above(at(phase::OPEN, 2_100), 2_600), (0, true), "it may pass, and has not");
        assert_eq!(above(at(phase::HANDSHAKE, 0), 0), (0, true));
        let let_go = Sock { excess: 300, ..at(phase::OPEN, 2_600) };
        assert_eq!(above(let_go, 0), (200, true), "what nothing explains is a unit of its own");
    }

    #[test]
    fn what_left_is_unknown_without_a_socket_that_is_followed() {
        assert_eq!(above(at(phase::LOST, 2_100), 2_600), (500, false));
        let others = Sock { conn: 8, ..at(phase::OPEN, 2_100) };
        assert_eq!(above(others, 0), (0, false), "the socket carries another connection");
        assert_eq!(left_of(7, 91, None, None, 2_100), Left::unknown(0));
    }

    #[test]
    fn a_connection_that_nobody_reads_is_held_as_a_whole() {
        let of = |passed_to: Option<u64>, sent| {
            let sock = Sock { conn: 91, sent, ..Sock::default() };
            let hold = passed_to.map(|passed_to| Hold { passed_to, ..Hold::default() });
            left_of(91, 91, Some(&sock), hold.as_ref(), 0).above
        };
        assert_eq!(of(Some(0), 5_000), 0);
        assert_eq!(of(Some(1), 5_000), 5_000);
        assert_eq!((of(None, 2_700), of(None, 9_096)), (0, 5_000), "it has begun, or gone on");
        let read_since = |explained| {
            let sock = Sock { conn: 7, ..at(phase::OPEN, explained) };
            left_of(91, 91, Some(&sock), Some(&Hold::default()), 0)
        };
        assert_eq!((read_since(0).above, read_since(380).above), (0, 380));
        assert!(read_since(0).counted);
    }
}
