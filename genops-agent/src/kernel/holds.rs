//! Verdicts on held connections, and the action at the deadline without a verdict.
//!
//! Four maps: holds and their sockets (both written by the kernel programs), verdicts and settings
//! (both written here). The agent uses the maps on the events thread; the guard process has the
//! same maps and does the same if the agent can't.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use genops_ebpf_common::{Hold, Join, Settings, Sock, Verdict, holding, phase, unexplained};
use genops_governance::Mechanism;

use rustix::io::Errno;

use super::sockets::{Socket, Sockets};

/// Bytes at the beginning of a connection without a request: a `ClientHello`, or QUIC's Initial
/// packets with a `ClientHello` (RFC 9001 §4.3).
const BEGINNING_BYTES: u64 = 4_096;

/// Maps shared by the agent and the guard.
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

/// A hold past the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) conn: u64,
    /// Position after the last waiting byte.
    pub(crate) to: u64,
    /// Reason if no plaintext explains the waiting bytes: a constant of [`unexplained`].
    pub(crate) unexplained: Option<u32>,
    /// The connection was stopped for good; otherwise pushed, and the kernel program lets the bytes
    /// pass.
    pub(crate) stopped: bool,
}

impl Holds {
    /// Opens the maps of holds, sockets, verdicts and settings.
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

    /// Opens the maps behind [`Self::descriptors`] of another process.
    pub(crate) fn from_descriptors(descriptors: [OwnedFd; MAPS]) -> Result<Self, MapError> {
        let [holds, sockets, verdicts, settings] = descriptors.map(MapData::from_fd);
        Self::from_maps([holds?, sockets?, verdicts?, settings?])
    }

    /// The maps' descriptors in this process, for [`Self::from_descriptors`] in another.
    pub(crate) fn descriptors(&self) -> [RawFd; MAPS] {
        self.descriptors
    }

    fn set_settings(&mut self, settings: Settings) -> Result<(), MapError> {
        self.settings.set(0, settings, 0)
    }

    /// Writes the settings of a configuration; [`Settings::run`] stays.
    pub(crate) fn configure(&mut self, settings: Settings) -> Result<(), MapError> {
        let run = self.settings.get(&0, 0)?.run;
        self.set_settings(Settings { run, ..settings })
    }

    /// Lets the programs of a run count, and no others.
    pub(crate) fn count_by(&mut self, run: u32) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { run, ..settings })
    }

    /// Tells the programs that a process decides, at `now_mono_ns`.
    pub(crate) fn beat(&mut self, now_mono_ns: u64, absent_after_ns: u64) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { alive_at_mono_ns: now_mono_ns, absent_after_ns, ..settings })
    }

    /// Tells the programs that no process decides until the next [`Self::beat`].
    pub(crate) fn leave(&mut self) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { absent_after_ns: 0, ..settings })
    }

    /// Whether bytes of `conn` wait or waited, and the hold was not removed.
    pub(crate) fn is_known(&self, conn: u64) -> bool {
        self.waiting.get(&conn, 0).is_ok()
    }

    /// Whether the state left in the maps is void.
    pub(crate) fn is_void(&self, now_mono_ns: u64) -> bool {
        self.settings.get(&0, 0).is_ok_and(|it| it.is_void(now_mono_ns))
    }

    /// Ends the sockets of denied connections: denied by the kernel programs in the absence of an
    /// agent, or by an agent that ended too early. Whether there were any.
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
                // No byte can leave any more, and the next connections need the room.
                self.forget(conn);
                any = true;
            }
        }
        any
    }

    /// Stops all holds, because no process is left to decide. The kernel takes seconds to detach
    /// the probes of an ended process, and the probes go on until then.
    pub(crate) fn hold_no_more(&mut self) -> Result<(), MapError> {
        let settings = self.settings.get(&0, 0)?;
        self.set_settings(Settings { holding: holding::NOBODY, ..settings })
    }

    /// Releases bytes of `conn` up to `to`, as reported in `round` ([`Hold::round`]).
    pub(crate) fn release(&mut self, conn: u64, to: u64, round: u16) -> Result<(), MapError> {
        let verdict = Verdict { released_to: to, denied: 0, round: u32::from(round) };
        self.verdicts.insert(conn, verdict, 0)
    }

    /// Denies all further bytes of `conn`.
    pub(crate) fn deny(&mut self, conn: u64) -> Result<(), MapError> {
        self.verdicts.insert(conn, Verdict { released_to: 0, denied: 1, round: 0 }, 0)
    }

    /// Holds every byte of a connection without a probe, from now on, until a verdict.
    pub(crate) fn arm_opaque(&mut self, conn: u64, tgid: u32, now_mono_ns: u64) {
        let hold = Hold { armed_to: 1, armed_at_mono_ns: now_mono_ns, tgid, ..Hold::default() };
        // Without room, a decision of the agent counts from the verdict on.
        let _full = self.waiting.insert(conn, hold, 0);
    }

    /// The hold of `conn`, present or past.
    pub(crate) fn hold(&self, conn: u64) -> Option<Hold> {
        self.waiting.get(&conn, 0).ok()
    }

    /// Position up to which the deadline has let bytes of `conn` pass.
    pub(crate) fn passed_to(&self, conn: u64) -> u64 {
        self.waiting.get(&conn, 0).map_or(0, |hold| hold.passed_to)
    }

    /// The socket of `conn`, known after the first packet seen by the kernel.
    pub(crate) fn socket(&self, conn: u64) -> Option<Socket> {
        self.sockets.get(&conn, 0).ok().map(|join| socket_of(&join))
    }

    /// Removes every trace of an ended connection.
    pub(crate) fn forget(&mut self, conn: u64) {
        // An absent entry needs no removal.
        let _absent = self.waiting.remove(&conn);
        let _absent = self.sockets.remove(&conn);
        let _absent = self.verdicts.remove(&conn);
    }

    /// Whether read bytes wait for a verdict. Unexplained bytes wait for none.
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting.iter().flatten().any(|(conn, hold)| self.is_undecided(conn, &hold))
    }

    /// Whether `conn` was denied, by the agent, the guard or the kernel programs.
    pub(crate) fn is_denied(&self, conn: u64) -> bool {
        self.verdict(conn).denied != 0
    }

    fn verdict(&self, conn: u64) -> Verdict {
        self.verdicts.get(&conn, 0).unwrap_or_default()
    }

    /// Whether read bytes of `conn` wait for a verdict.
    fn is_undecided(&self, conn: u64, hold: &Hold) -> bool {
        let verdict = self.verdict(conn);
        verdict.denied == 0 && hold.is_waiting(hold.released_to(&verdict))
    }

    fn waits(&self, conn: u64, hold: &Hold) -> bool {
        self.is_undecided(conn, hold) || hold.unexplained_at_mono_ns != 0 && !self.is_denied(conn)
    }

    /// Start of the wait of `conn`, and the reason if no plaintext explains the bytes. Read and
    /// undecided bytes come first, because their rule is never the laxer one.
    fn oldest(&self, conn: u64, hold: &Hold) -> (u64, Option<u32>) {
        let verdict = self.verdict(conn);
        let is_read = hold.unread == 0 && hold.is_waiting(hold.released_to(&verdict));
        match (hold.unread, hold.unexplained_at_mono_ns) {
            (0, since) if !is_read && since != 0 => (since, Some(unexplained::NO_PLAINTEXT)),
            (0, _) => (hold.armed_at_mono_ns, None),
            (reason, _) => (hold.armed_at_mono_ns, Some(reason)),
        }
    }

    /// Ends every hold longer than `deadline_ns`, as `closed` says: by a kick, after which the
    /// kernel program lets the bytes pass, or by the end of the socket.
    ///
    /// The kernel program applies the deadline itself, but only at TCP's next attempt to send, and
    /// TCP's timer does not know the deadline.
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
                // Denied first, so that no byte leaves between denial and end.
                let _unwritten = self.deny(conn);
                let _gone = socket.map(|socket| sockets.destroy(socket));
            } else {
                let _gone = socket.map(|socket| sockets.kick(socket));
            }
        }
        overdue
    }
}

/// Bytes that left a connection, and the mechanism against the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Position in the plaintext up to which bytes have left.
    pub(crate) to: u64,
    /// Mechanism keeping the rest; none if no mechanism did.
    pub(crate) mechanism: Mechanism,
    /// The bytes were counted; otherwise more may have left.
    pub(crate) counted: bool,
}

impl Left {
    /// No count; the deadline has let the bytes before `to` pass.
    pub(crate) const fn unknown(to: u64) -> Self {
        Self { to, mechanism: Mechanism::None, counted: false }
    }

    /// No byte can have left, because of `mechanism`.
    pub(crate) const fn nothing(mechanism: Mechanism) -> Self {
        Self { to: 0, mechanism, counted: true }
    }
}

/// Computes the bytes that left a connection with plaintext released up to `released_to`, from the
/// records sent by the socket. `sock`: the kernel's entry of the socket, if any; `hold`: the hold
/// on the socket.
pub(crate) fn left_of(
    conn: u64,
    cookie: u64,
    sock: Option<&Sock>,
    hold: Option<&Hold>,
    released_to: u64,
) -> Left {
    let passed_to = hold.map_or(0, |it| it.passed_to);
    let unknown = Left::unknown(passed_to);
    // A connection without a probe has the number of its socket, even if read from some record on.
    let carries = |it: &&Sock| it.conn == conn || it.conn == 0 || conn == cookie;
    let Some(sock) = sock.filter(carries) else { return unknown };
    let to = if sock.conn == cookie {
        // The records say nothing of plaintext; all bytes are held, or the sent bytes were free to
        // leave.
        released_to.saturating_add(match hold {
            Some(_) if passed_to == 0 => 0,
            Some(_) => sock.sent.max(1),
            None => sock.sent.saturating_sub(BEGINNING_BYTES),
        })
    } else {
        match sock.cursor.phase {
            phase::HANDSHAKE | phase::CHANGED => 0,
            phase::OPEN => sock.cursor.explained.saturating_sub(sock.excess),
            _ => return unknown,
        }
    };
    Left { to, mechanism: Mechanism::EgressHold, counted: true }
}

/// An address as written by the kernel programs: the first four bytes for IPv4.
pub(crate) fn address_of(ip_version: u32, bytes: [u8; 16], port: u16) -> SocketAddr {
    let [a, b, c, d, ..] = bytes;
    let ip = if ip_version == 4 { IpAddr::from([a, b, c, d]) } else { bytes.into() };
    SocketAddr::new(ip, port)
}

/// The socket named by a kernel record.
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

    /// Bytes sent by a socket according to the cursor, released up to position 2,100, and whether
    /// the bytes were counted.
    fn left(sock: Sock, passed_to: u64) -> (u64, bool) {
        let hold = Hold { passed_to, ..Hold::default() };
        let Left { to, counted, mechanism } = left_of(7, 91, Some(&sock), Some(&hold), 2_100);
        assert_eq!(counted, mechanism != Mechanism::None);
        (to, counted)
    }

    fn at(phase: u8, explained: u64) -> Sock {
        let cursor = Cursor { phase, explained, ..Cursor::default() };
        Sock { conn: 7, sent: 900_000, cursor, ..Sock::default() }
    }

    #[test]
    fn what_left_is_what_records_carried() {
        assert_eq!(left(at(phase::OPEN, 2_100), 0), (2_100, true), "whatever is on the wire");
        assert_eq!(left(at(phase::OPEN, 2_600), 0), (2_600, true));
        assert_eq!(left(at(phase::OPEN, 2_100), 2_600), (2_100, true), "it may pass, and has not");
        assert_eq!(left(at(phase::HANDSHAKE, 0), 0), (0, true));
        let let_go = Sock { excess: 300, ..at(phase::OPEN, 2_600) };
        assert_eq!(left(let_go, 0), (2_300, true), "what nothing explains is a unit of its own");
    }

    #[test]
    fn what_left_is_unknown_without_a_socket_that_is_followed() {
        assert_eq!(left(at(phase::LOST, 2_100), 2_600), (2_600, false));
        let others = Sock { conn: 8, ..at(phase::OPEN, 2_100) };
        assert_eq!(left(others, 0), (0, false), "the socket carries another connection");
        assert_eq!(left_of(7, 91, None, None, 2_100), Left::unknown(0));
    }

    #[test]
    fn a_connection_that_nobody_reads_is_held_as_a_whole() {
        let of = |passed_to: Option<u64>, sent| {
            let sock = Sock { conn: 91, sent, ..Sock::default() };
            let hold = passed_to.map(|passed_to| Hold { passed_to, ..Hold::default() });
            left_of(91, 91, Some(&sock), hold.as_ref(), 0).to
        };
        assert_eq!(of(Some(0), 5_000), 0);
        assert_eq!(of(Some(1), 5_000), 5_000);
        assert_eq!((of(None, 2_700), of(None, 9_096)), (0, 5_000), "it has begun, or gone on");
        let read_since = |explained| {
            let sock = Sock { conn: 7, ..at(phase::OPEN, explained) };
            left_of(91, 91, Some(&sock), Some(&Hold::default()), 0)
        };
        assert_eq!((read_since(0).to, read_since(380).to), (0, 380));
        assert!(read_since(0).counted);
    }
}
