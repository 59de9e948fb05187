//! Records of the ring buffer, and keys and values of the maps, shared by the kernel programs and
//! the agent.
//!
//! Every type is `repr(C)` without padding, proved by the zerocopy derives. Only [`Record::parse`]
//! reads records: a total function, tested without a kernel.
#![no_std]

mod cursor;

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use cursor::{Bounds, Bytes, Cursor, Fate, Step, follow, overhead_of_record, phase};

/// Version of the layout of maps and records. Every change of the layout increments the version, so
/// that an agent never takes over maps of another layout.
pub const LAYOUT: u32 = 7;

/// Length of `task_struct.comm` (`include/linux/sched.h`, `TASK_COMM_LEN`), with its final NUL.
pub const COMM_LEN: usize = 16;

/// Unit of a process's start time in `/proc/PID/stat`, in nanoseconds: 1 second / `USER_HZ`, and
/// `USER_HZ` is 100 (`include/asm-generic/param.h`). Programs and agent identify a process by its
/// pid and its start time.
pub const TICK_NS: u64 = 10_000_000;

/// Maximum length of a host name or of a path's end compared by the kernel programs, in bytes.
pub const NAME_LEN: usize = 128;

/// Payload capacities of the [`Data`] records, ascending. The ring buffer reserves fixed sizes, so
/// a record takes the smallest class with room for its payload.
pub const DATA_CLASSES: [usize; 4] = [256, 1024, 4096, PIECE_LEN];

/// Largest payload of one [`Data`] record: a TLS record's limit (RFC 8446 §5.1).
pub const PIECE_LEN: usize = 16_384;

/// Maximum of captured bytes per TLS library call, whatever the configuration says: bounds the
/// program's loop.
pub const CALL_LIMIT_MAX: u64 = 16 << 20;

/// Type of a record: the first four bytes of each record.
pub mod kind {
    /// A [`crate::Data`] record.
    pub const DATA: u32 = 1;
    /// A [`crate::Open`] record.
    pub const OPEN: u32 = 2;
    /// A [`crate::Join`] record.
    pub const JOIN: u32 = 3;
    /// A [`crate::Close`] record.
    pub const CLOSE: u32 = 4;
    /// A [`crate::TimedOut`] record.
    pub const TIMED_OUT: u32 = 5;
    /// An [`crate::Exec`] record: a process began to run a program.
    pub const EXEC: u32 = 6;
    /// A [`crate::Process`] record: a process ended.
    pub const EXIT: u32 = 7;
    /// A [`crate::Contact`] record.
    pub const CONTACT: u32 = 8;
    /// A [`crate::Released`] record.
    pub const RELEASED: u32 = 9;
    /// A [`crate::Dns`] record.
    pub const DNS: u32 = 10;
    /// A [`crate::Fork`] record.
    pub const FORK: u32 = 11;
    /// A [`crate::Unexplained`] record.
    pub const UNEXPLAINED: u32 = 12;
}

/// [`Data::direction`]: sent by the program.
pub const EGRESS: u8 = 0;
/// [`Data::direction`]: received by the program.
pub const INGRESS: u8 = 1;

/// [`Data::flags`]: the kernel holds the socket until a verdict for the bytes.
pub const DATA_HELD: u8 = 1;
/// [`Data::flags`]: bytes before the record were left out because the call exceeded the limit.
pub const DATA_CUT: u8 = 2;
/// [`Data::flags`]: the kernel denied these bytes by itself, on the agent's earlier instruction in
/// [`DeniedKey`].
pub const DATA_DENIED: u8 = 4;
/// [`Data::flags`]: the first piece of a call: the library has taken all bytes before the piece.
pub const DATA_FIRST: u8 = 8;

/// Plaintext passed into or out of a TLS library; `captured_len` bytes of payload follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Data {
    /// [`kind::DATA`].
    pub kind: u32,
    /// [`EGRESS`] or [`INGRESS`].
    pub direction: u8,
    /// [`DATA_HELD`], [`DATA_CUT`].
    pub flags: u8,
    /// [`Hold::round`] of the write, its lower half.
    pub round: u16,
    /// `bpf_ktime_get_ns`: nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Position of the first byte within its direction of the stream.
    pub offset: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Bytes of payload after the header.
    pub captured_len: u32,
}

/// Reason for taking a connection for AI traffic.
pub mod origin {
    /// The server name passed by the program to its TLS library.
    pub const SERVER_NAME: u32 = 0;
    /// The host or the path of an HTTP/1 request.
    pub const REQUEST: u32 = 1;
    /// HTTP/2, with the beginning unseen: the provider is not known yet.
    pub const HTTP2_MIDWAY: u32 = 2;
}

/// First sight of a TLS object with traffic to an AI provider.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Open {
    /// [`kind::OPEN`].
    pub kind: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Address of the TLS object: together with `tgid`, the [`ConnKey`].
    pub ssl: u64,
    /// `bpf_get_current_cgroup_id`: inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// Real user id.
    pub uid: u32,
    /// A constant of [`origin`].
    pub origin: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
    /// Bytes of `name` in use.
    pub name_len: u32,
    /// 1 if the kernel will hold requests of the process.
    pub held: u32,
    /// [`Lineage::principal`].
    pub principal: u64,
    /// Server name, if the program gave a server name.
    pub name: [u8; NAME_LEN],
}

/// The socket of a connection is known.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Join {
    /// [`kind::JOIN`].
    pub kind: u32,
    /// 4 or 6.
    pub ip_version: u32,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Socket cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Network byte order; the first four bytes for IPv4.
    pub local: [u8; 16],
    /// Network byte order; the first four bytes for IPv4.
    pub remote: [u8; 16],
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
}

/// Ways in which a process reached for a provider over a socket whose plaintext no probe reads.
pub mod contact {
    /// The process sent a `ClientHello` with a provider's name; the `ClientHello` follows.
    pub const HELLO: u32 = 0;
    /// The process sent the beginning, or more, of an incomplete `ClientHello`; the bytes follow.
    pub const HELLO_PART: u32 = 1;
    /// The process addressed a provider by UDP.
    pub const DATAGRAM: u32 = 2;
    /// The kernel refused the connection, on the agent's earlier instruction in
    /// [`crate::DeniedKey`].
    pub const REFUSED: u32 = 3;
    /// The kernel refused the connection, because no agent decides and the timeout is closed.
    pub const ABSENT: u32 = 4;
    /// The kernel refused the connection after too many refusals of the user: see
    /// [`crate::FloodKey`].
    pub const FLOODED: u32 = 5;
}

/// Longest part of a `ClientHello` in a [`Contact`] record, in bytes. A `ClientHello` with a
/// post-quantum key share has about 1,800.
pub const HELLO_LEN: usize = 4096;

/// A process reached for a provider; `captured_len` bytes of a `ClientHello` follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Contact {
    /// [`kind::CONTACT`].
    pub kind: u32,
    /// A constant of [`contact`].
    pub what: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// Socket cookie: also the number of the connection ([`Sock::conn`]).
    pub cookie: u64,
    /// [`Refusals::unreported`] at the time of the record.
    pub unreported: u64,
    /// Network byte order; the first four bytes for IPv4.
    pub local: [u8; 16],
    /// Network byte order; the first four bytes for IPv4.
    pub remote: [u8; 16],
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// 4 or 6.
    pub ip_version: u32,
    /// Thread-group id of the connecting process; 0 if the process connected before the programs
    /// ran.
    pub tgid: u32,
    /// Number of the provider; 0 if not known yet.
    pub provider: u32,
    /// 1 if the kernel holds bytes after the `ClientHello` until a verdict.
    pub held: u32,
    /// Bytes of the `ClientHello` after the header.
    pub captured_len: u32,
}

/// Connections of a process to a provider refused by the kernel. The kernel programs write the
/// value; the agent deletes the value after the end of the process.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Refusals {
    /// Time up to which reports are used up, in nanoseconds of `CLOCK_MONOTONIC`: see
    /// [`REFUSAL_REPORT_NS`].
    pub used_to_mono_ns: u64,
    /// Refusals without a record of their own since the start of the process, at least: threads
    /// refused at the same instant may count as one. Never decreases.
    pub unreported: u64,
    /// [`Settings::run`] at the last refusal.
    pub run: u32,
    /// Zero.
    pub reserved: u32,
    /// The last refusal.
    pub last: Contact,
}

/// Time of a report of a refused connection, in nanoseconds: the kernel programs report 32 refusals
/// of a process by a provider in a second, 256 at once, and only count the others. Otherwise a
/// process in a loop would fill the ring buffer for everybody.
pub const REFUSAL_REPORT_NS: u64 = 1_000_000_000 / 32;

/// Reports of refusals at once, in nanoseconds of [`REFUSAL_REPORT_NS`] each: 256. A program with
/// many calls at a time has a report of each.
pub const REFUSALS_AT_ONCE_NS: u64 = 256 * REFUSAL_REPORT_NS;

/// The program let go of a socket to a provider.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Released {
    /// [`kind::RELEASED`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// [`Sock::conn`].
    pub conn: u64,
    /// [`Sock::sent`].
    pub sent: u64,
    /// [`Sock::received`].
    pub received: u64,
}

/// Longest DNS message in a [`Dns`] record, in bytes.
pub const DNS_LEN: usize = 1024;

/// A question of a socket in the initial network namespace to a name server, or the name server's
/// answer (RFC 1035 §4.1); `captured_len` bytes of the message follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Dns {
    /// [`kind::DNS`].
    pub kind: u32,
    /// Bytes of the message after the header, at most [`DNS_LEN`].
    pub captured_len: u32,
    /// Cookie of the asking socket.
    pub cookie: u64,
    /// Address of the name server, in network byte order; an IPv4 address fills the first four
    /// bytes.
    pub server: [u8; 16],
    /// 4 or 6.
    pub ip_version: u32,
    /// 1: an answer; 0: a question.
    pub answers: u32,
}

/// The program freed a TLS object.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Close {
    /// [`kind::CLOSE`].
    pub kind: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// [`Conn::egress_offset`].
    pub taken_to: u64,
}

/// No verdict came before the deadline, so the kernel applied `on_timeout`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TimedOut {
    /// [`kind::TIMED_OUT`].
    pub kind: u32,
    /// 1: the bytes pass; 0: the bytes stay dropped.
    pub passed: u32,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Position after the last byte concerned.
    pub to: u64,
}

/// States and reasons of a socket that sends more than the plaintext read so far explains, or whose
/// plaintext could not be read.
pub mod unexplained {
    /// The socket waits until the deadline.
    pub const WAITS: u32 = 0;
    /// The deadline has let the bytes pass.
    pub const PASSED: u32 = 1;
    /// The deadline has stopped the socket for good.
    pub const STOPPED: u32 = 2;
    /// [`super::Unexplained::reason`]: no probe saw plaintext for the bytes.
    pub const NO_PLAINTEXT: u32 = 0;
    /// [`super::Unexplained::reason`]: the program's memory could not be read at the write.
    pub const UNREAD_PAGE: u32 = 1;
    /// [`super::Unexplained::reason`]: the ring buffer was full.
    pub const RING_FULL: u32 = 2;
    /// [`super::Unexplained::reason`]: the socket sends no TLS records, or none the cursor can
    /// follow.
    pub const NO_RECORDS: u32 = 3;
}

/// A socket of a held process sends bytes explained by no plaintext.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Unexplained {
    /// [`kind::UNEXPLAINED`].
    pub kind: u32,
    /// [`unexplained::WAITS`], [`unexplained::PASSED`] or [`unexplained::STOPPED`].
    pub state: u32,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// Position up to which plaintext was seen.
    pub seen_to: u64,
    /// Bytes of plaintext beyond `seen_to`, at least; 0 if not known.
    pub bytes: u64,
    /// Reason: a constant of [`unexplained`].
    pub reason: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Address, in the program's memory, of an unreadable write; otherwise 0.
    pub address: u64,
    /// Position of the first byte of the unreadable write; the write ends at `seen_to`.
    pub from: u64,
    /// [`Hold::round`] of the unreadable write.
    pub round: u32,
    /// 0.
    pub reserved: u32,
}

/// A process ended, or began to run a program. In the second case, the beginning of an [`Exec`]
/// record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Process {
    /// [`kind::EXEC`] or [`kind::EXIT`].
    pub kind: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// Inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// Real user id.
    pub uid: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
}

/// Longest reported path of a program, in bytes, including the final zero byte.
pub const EXEC_PATH_LEN: usize = 256;

/// A process began to run a program. Carries the path because a later read of `/proc` may find the
/// process gone.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exec {
    /// The process; its kind is [`kind::EXEC`].
    pub process: Process,
    /// Path of the program (of a script: of its interpreter), as given to the kernel, and a zero
    /// byte. Bytes behind the zero byte have no meaning. Empty: not known, or too long.
    pub path: [u8; EXEC_PATH_LEN],
}

/// An undecided process (see [`Lineage`]) has started another process. Each process is identified
/// by pid and start time, because either pid may belong to another process by the time the agent
/// reads the record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fork {
    /// [`kind::FORK`].
    pub kind: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// [`Lineage::start_ns`].
    pub start_ns: u64,
    /// [`Lineage::start_ns`] of the started process.
    pub child_start_ns: u64,
    /// Thread-group id of the started process.
    pub child_tgid: u32,
    /// Zero.
    pub reserved: u32,
}

/// A record of the ring buffer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// Plaintext, with its payload.
    Data(Data, Payload<'a>),
    /// A connection began.
    Open(Open),
    /// The socket of a connection is known.
    Join(Join),
    /// A connection ended.
    Close(Close),
    /// The kernel decided in the agent's place.
    TimedOut(TimedOut),
    /// [`kind::EXEC`], with the program's path (see [`Exec`]); empty unless the path begins at the
    /// root.
    Exec(Process, &'a [u8]),
    /// [`kind::EXIT`].
    Exit(Process),
    /// An undecided process has started another process.
    Fork(Fork),
    /// A process reached for a provider past the probes, with the bytes of a `ClientHello`.
    Contact(Contact, Payload<'a>),
    /// The program let go of a socket to a provider.
    Released(Released),
    /// A question to a name server, or an answer.
    Dns(Dns, Payload<'a>),
    /// A socket sends bytes explained by no plaintext.
    Unexplained(Unexplained),
}

/// Captured plaintext. `Debug` shows only the length.
#[derive(Clone, Copy)]
pub struct Payload<'a>(pub &'a [u8]);

impl core::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A record of a form written by no kernel program of the present version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Bytes in the record.
    pub len: usize,
}

impl<'a> Record<'a> {
    /// Reads one record of the ring buffer.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the kind is unknown or the record is shorter than announced.
    pub fn parse(record: &'a [u8]) -> Result<Self, Malformed> {
        let malformed = Malformed { len: record.len() };
        let (kind, _) = u32::read_from_prefix(record).map_err(|_| malformed)?;
        match kind {
            kind::DATA => {
                let (data, payload) = with_payload(record, |it: &Data| it.captured_len)?;
                Ok(Self::Data(data, payload))
            }
            kind::CONTACT => {
                let (contact, payload) = with_payload(record, |it: &Contact| it.captured_len)?;
                Ok(Self::Contact(contact, payload))
            }
            kind::DNS => {
                let (dns, payload) = with_payload(record, |it: &Dns| it.captured_len)?;
                Ok(Self::Dns(dns, payload))
            }
            kind::RELEASED => read(record).map(Self::Released),
            kind::OPEN => read(record).map(Self::Open),
            kind::JOIN => read(record).map(Self::Join),
            kind::CLOSE => read(record).map(Self::Close),
            kind::TIMED_OUT => read(record).map(Self::TimedOut),
            kind::EXEC => {
                let (process, path) = Process::read_from_prefix(record).map_err(|_| malformed)?;
                let path = path.get(..EXEC_PATH_LEN).ok_or(malformed)?;
                let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
                Ok(Self::Exec(process, if path.starts_with(b"/") { path } else { &[] }))
            }
            kind::EXIT => read(record).map(Self::Exit),
            kind::FORK => read(record).map(Self::Fork),
            kind::UNEXPLAINED => read(record).map(Self::Unexplained),
            _ => Err(malformed),
        }
    }
}

/// Reads a record and the bytes after the record, as many as announced in the record.
fn with_payload<T: FromBytes>(
    record: &[u8],
    captured_len: impl Fn(&T) -> u32,
) -> Result<(T, Payload<'_>), Malformed> {
    let malformed = Malformed { len: record.len() };
    let (header, rest) = T::read_from_prefix(record).map_err(|_| malformed)?;
    let len = usize::try_from(captured_len(&header)).map_err(|_| malformed)?;
    let payload = rest.get(..len).ok_or(malformed)?;
    Ok((header, Payload(payload)))
}

fn read<T: FromBytes>(record: &[u8]) -> Result<T, Malformed> {
    T::read_from_prefix(record).map(|(it, _)| it).map_err(|_| Malformed { len: record.len() })
}

/// Key of the map of connections: a TLS object in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnKey {
    /// Address of the TLS object.
    pub ssl: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
}

/// A connection, represented by its TLS object. Only the kernel programs write the value.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Conn {
    /// Number unique while the host runs: time of creation, shifted, combined with the CPU.
    pub id: u64,
    /// Socket cookie; 0 while the socket is not known.
    pub cookie: u64,
    /// Position after the last byte taken by the TLS library.
    pub egress_offset: u64,
    /// Position after the last byte received by the program.
    pub ingress_offset: u64,
    /// Number of the provider, assigned by the agent; 0 if the server name did not tell.
    pub provider: u32,
    /// Real user id of the process: the connection counts against the quota of the user.
    pub uid: u32,
}

/// A socket to a provider, by cookie. Only the kernel programs write the value.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sock {
    /// The connection on the socket: [`Conn::id`]. The socket's own cookie if no TLS object is
    /// joined with the socket. 0 while the destination may or may not be a provider.
    pub conn: u64,
    /// Bytes of payload sent, each counted once.
    pub sent: u64,
    /// Bytes of payload received (`tcp_sock.bytes_received`).
    pub received: u64,
    /// TCP sequence number after the last counted byte.
    pub next_sequence: u32,
    /// Bytes reported so far of a `ClientHello` longer than its first packet; otherwise 0.
    pub hello_len: u32,
    /// Position in the TLS records sent so far.
    pub cursor: Cursor,
    /// Working memory of the programs: the cursor after the current packet, if the packet may
    /// leave.
    pub trial: Cursor,
    /// Bytes of unexplained plaintext let go: positions of records are ahead of
    /// [`Conn::egress_offset`] by the same number of bytes.
    pub excess: u64,
    /// Working memory of the programs: [`Bounds`].
    pub seen_to: u64,
    /// Working memory of the programs: [`Bounds`].
    pub released_to: u64,
    /// Thread-group id of the process owning the connection; 0 if not known.
    pub tgid: u32,
    /// 1: the program has let go of the socket; queued bytes may still have to leave.
    pub closed: u32,
}

/// Maximum of TLS objects followed at a time, and about the maximum of followed sockets without a
/// TLS object.
pub const CONNECTIONS: u32 = 32_768;

/// Maximum of TLS objects, and of sockets, of a single process at a time; a user may have three
/// times as many TLS objects. The limits keep a process or user from taking the places of others.
/// Above the limits, a connection is followed by its socket alone, like a connection without a
/// probe.
pub const CONNECTIONS_OF_PROCESS: u32 = 4_096;

/// Maximum of TLS objects taken up per second for a single process.
pub const OPENS_PER_SECOND: u32 = 512;

/// A process's share of the maps common to all processes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Usage {
    /// The second counted by `opens`, by `CLOCK_MONOTONIC`.
    pub second: u64,
    /// TLS objects taken up in the second.
    pub opens: u32,
    /// TLS objects of the process.
    pub objects: u32,
    /// Sockets of the process.
    pub sockets: u32,
    /// Zero.
    pub reserved: u32,
}

/// Address of a provider, learnt from answers of name servers and from sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressKey {
    /// Network byte order; the first four bytes for IPv4, the others zero.
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// An address named as a provider's by programs of a single user in a single cgroup. The value is
/// the number of the provider. Written by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TieKey {
    /// As in [`AddressKey`].
    pub address: [u8; 16],
    /// As in [`AddressKey`].
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Number of the cgroup (v2).
    pub group: u64,
}

/// A user in a cgroup with too many refusals by a provider: the kernel refuses connects. The value
/// is the end of the refusal, in nanoseconds of `CLOCK_MONOTONIC`. Written by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FloodKey {
    /// Number of the cgroup (v2).
    pub group: u64,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Number of the provider.
    pub provider: u32,
}

/// Maximum of [`FloodKey`]s at a time.
pub const FLOODS: u32 = 16_384;

/// A process barred from calling a provider at all. The value is the end of the bar, in nanoseconds
/// of `CLOCK_MONOTONIC`. Written by the agent.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct DeniedKey {
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Number of the provider, assigned by the agent.
    pub provider: u32,
}

/// Writes waiting for a verdict on a connection, by [`Conn::id`]. The kernel programs write the
/// value. The agent deletes the value after the end of the connection, with everything on the
/// connection decided.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hold {
    /// End of the last write: no byte before the position leaves without a verdict.
    pub armed_to: u64,
    /// Time of the oldest waiting write, in nanoseconds of `CLOCK_MONOTONIC`.
    pub armed_at_mono_ns: u64,
    /// Position up to which the expired deadline has let bytes pass.
    pub passed_to: u64,
    /// Position up to which an expired deadline was reported.
    pub reported_to: u64,
    /// Time of the socket's first unexplained bytes, in nanoseconds of `CLOCK_MONOTONIC`; 0: none.
    pub unexplained_at_mono_ns: u64,
    /// Position of the first byte reported again, because the library had not taken the bytes of an
    /// earlier report.
    pub from: u64,
    /// Number of repeated reports: a verdict of an earlier round is void for bytes behind `from`.
    pub round: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Reason ([`unexplained`]) of plaintext before `armed_to` that could not be read; otherwise 0.
    pub unread: u32,
    /// 1: the stop or the release of the socket for unexplained bytes was reported.
    pub reported: u32,
}

/// Bits of the round in a [`Data`] record.
const ROUNDS: u32 = 0xffff;

impl Hold {
    /// Returns the position up to which `verdict` lets bytes leave.
    #[must_use]
    pub const fn released_to(&self, verdict: &Verdict) -> u64 {
        if verdict.round & ROUNDS == self.round & ROUNDS || verdict.released_to < self.from {
            verdict.released_to
        } else {
            self.from
        }
    }

    /// Returns whether bytes wait, given the released position.
    #[must_use]
    pub const fn is_waiting(&self, released_to: u64) -> bool {
        released_to < self.armed_to && self.passed_to < self.armed_to
    }
}

/// The agent's decision about a connection. Only the agent writes the value.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Verdict {
    /// Position up to which bytes may leave.
    pub released_to: u64,
    /// 1: no more bytes may leave.
    pub denied: u32,
    /// [`Hold::round`] of the decided write.
    pub round: u32,
}

/// Place of a probe in a function, passed to the program by `bpf_get_attach_cookie`. Zero: at the
/// entry or at a RET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame(pub u64);

impl Frame {
    /// Creates the frame of a probe below the entry, with the stack pointer `depth` bytes lower.
    #[must_use]
    pub const fn entered(depth: u16) -> Self {
        Self::returning(depth, 0)
    }

    /// Creates the frame of a probe above a RET, with the stack pointer `depth` bytes lower and the
    /// result in a register, numbered by the processor's encoding.
    #[must_use]
    pub const fn returning(depth: u16, register: u8) -> Self {
        Self(depth as u64 | (register as u64) << 16)
    }

    /// Returns the distance of the stack pointer below its place at the function's entry, in bytes.
    #[must_use]
    pub const fn depth(self) -> u64 {
        self.0 & 0xffff
    }

    /// Returns the number of the register with the result.
    #[must_use]
    pub const fn register(self) -> u64 {
        self.0 >> 16 & 0xff
    }
}

/// Ancestry of a process, by thread-group id. The programs add an element for each process
/// beginning to run a program, and for each process started by a process with an element. The
/// programs remove an element at the end of the process. The agent fills in the principal, or
/// removes an element without a principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lineage {
    /// Start of the process: nanoseconds of `CLOCK_BOOTTIME`, rounded down to a whole [`TICK_NS`].
    /// An element with another start time belongs to an earlier process with the same pid.
    pub start_ns: u64,
    /// The principal of the process, or the principal that started the process, numbered by the
    /// agent; 0: not known.
    pub principal: u64,
    /// Container and pod of the principal's process, numbered by the agent; 0: none.
    pub place: u32,
    /// 1: the process has begun to run another program since, or was started by an undecided
    /// process. The agent has yet to look at the process.
    pub undecided: u32,
}

/// Offsets of the fields read by the programs in the kernel's structures of a task, in bytes. All
/// zero: the offsets are not known, and the programs read no field.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskLayout {
    /// `task_struct.pid`.
    pub pid: u32,
    /// `task_struct.tgid`.
    pub tgid: u32,
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.real_parent`.
    pub real_parent: u32,
    /// `task_struct.start_boottime`.
    pub start_boottime: u32,
    /// `task_struct.signal`.
    pub signal: u32,
    /// `signal_struct.live`: number of threads not yet ended.
    pub live: u32,
    /// `linux_binprm.interp`: path of the program about to run.
    pub interp: u32,
}

/// Modes of a process, set by the agent.
pub mod process_mode {
    /// Never hold.
    pub const OBSERVE: u32 = 1;
    /// Hold each request for a verdict.
    pub const ENFORCE: u32 = 2;
}

/// Maximum delay of the agent's wake-up for a record without a waiting request. An agent that has
/// just read records looks again by itself after twice the delay, so no record is left lying.
pub const NAP_NS: u64 = 5_000_000;

/// Processes whose requests wait for a verdict.
pub mod holding {
    /// Processes named by the agent ([`super::process_mode::ENFORCE`]).
    pub const NAMED: u32 = 0;
    /// Processes named by the agent, and processes for which the agent has set no mode.
    pub const UNKNOWN_TOO: u32 = 1;
    /// No process: no agent is left to decide, and the programs are about to be detached.
    pub const NOBODY: u32 = 2;
}

/// Settings that may change while the programs run: a single element.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// Maximum wait of a request for a verdict, in nanoseconds.
    pub hold_deadline_ns: u64,
    /// Captured bytes per TLS library call, at most [`CALL_LIMIT_MAX`].
    pub call_limit: u64,
    /// A constant of [`holding`].
    pub holding: u32,
    /// 1: after the deadline, bytes stay dropped; 0: bytes pass.
    pub closed: u32,
    /// 1: the configuration has principals inherited by child processes.
    pub lineage: u32,
    /// 1: after the deadline, unexplained bytes stay dropped; 0: unexplained bytes pass.
    pub unread_stays: u32,
    /// 1: handshakes of held processes without a server name, or with a name of no provider, are
    /// reported and wait.
    pub unnamed: u32,
    /// Number of the run with the programs that count refusals. While an agent replaces another,
    /// the programs of both see each refusal.
    pub run: u32,
    /// Time of the agent's last sign of life, in nanoseconds of `CLOCK_MONOTONIC`.
    pub alive_at_mono_ns: u64,
    /// Period after the last sign of life, in nanoseconds, after which the agent counts as absent.
    /// 0: absent from now on.
    pub absent_after_ns: u64,
    /// Period after the last sign of life, in nanoseconds, after which no connection is refused or
    /// held any more, if bytes pass at the deadline.
    pub pinned_for_ns: u64,
}

impl Settings {
    /// Returns whether requests are refused at once, because no agent decides and the timeout is
    /// closed.
    #[inline]
    #[must_use]
    pub const fn refuses_all(&self, now_mono_ns: u64) -> bool {
        self.closed != 0 && self.silent_for_ns(now_mono_ns) >= self.absent_after_ns
    }

    /// Returns whether the agent has been absent for so long that its decisions are void, given an
    /// open timeout.
    #[inline]
    #[must_use]
    pub const fn is_void(&self, now_mono_ns: u64) -> bool {
        self.closed == 0 && self.silent_for_ns(now_mono_ns) > self.pinned_for_ns
    }

    /// Returns whether a refusal with a reason ending at `until_mono_ns` ([`DeniedKey`]) is still
    /// in force.
    #[inline]
    #[must_use]
    pub const fn is_in_force(&self, until_mono_ns: u64, now_mono_ns: u64) -> bool {
        until_mono_ns > now_mono_ns && !self.is_void(now_mono_ns)
    }

    /// Returns the time since the agent's last sign of life; 0 if the sign is younger than
    /// `now_mono_ns`.
    #[inline]
    const fn silent_for_ns(&self, now_mono_ns: u64) -> u64 {
        now_mono_ns.saturating_sub(self.alive_at_mono_ns)
    }
}

/// Key of the tries of host names and path ends: the name reversed, in lower case.
pub type NameKey = [u8; NAME_LEN];

/// Value of the trie of host names: the name must also begin with `prefix`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NameRule {
    /// Lower case.
    pub prefix: [u8; 28],
    /// Bytes of `prefix` in use; 0: any name.
    pub prefix_len: u32,
    /// Number of the provider, assigned by the agent; 0 for a path.
    pub provider: u32,
}

/// Causes of lost bytes, records or probes: indexes into the array of counters.
pub mod loss {
    /// The ring buffer was full: bytes of plaintext.
    pub const RING_FULL_BYTES: u32 = 0;
    /// The ring buffer was full: records of any kind.
    pub const RING_FULL_RECORDS: u32 = 1;
    /// The program's memory could not be read at the moment of the call: bytes.
    pub const FAULT_BYTES: u32 = 2;
    /// The call was larger than the limit: bytes left out on purpose.
    pub const LIMIT_BYTES: u32 = 3;
    /// The map of connections was full: connections not seen.
    pub const CONNECTIONS_FULL: u32 = 4;
    /// The map of running calls was full: calls with an unseen result.
    pub const CALLS_FULL: u32 = 5;
    /// The map of lineages was full: processes without a known ancestry.
    pub const LINEAGES_FULL: u32 = 6;
    /// A process or user had the maximum of connections: TLS objects and sockets not followed.
    pub const QUOTA: u32 = 7;
    /// Number of counters.
    pub const COUNT: u32 = 8;
}

macro_rules! layout {
    ($($type:ty = $size:expr),+ $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $size);)+
        $(
            // SAFETY: `repr(C)` without padding and valid for every bit pattern, proved by the
            // zerocopy derives on the type (`IntoBytes`, `FromBytes`).
            #[cfg(feature = "user")]
            #[expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]
            unsafe impl aya::Pod for $type {}
        )+
    };
}

layout! {
    Data = 40,
    Open = 208,
    Join = 64,
    Close = 32,
    TimedOut = 24,
    Process = 48,
    Exec = 304,
    Fork = 32,
    Lineage = 24,
    TaskLayout = 32,
    ConnKey = 16,
    Conn = 40,
    Cursor = 32,
    Sock = 128,
    Usage = 24,
    Unexplained = 72,
    AddressKey = 20,
    TieKey = 32,
    FloodKey = 16,
    DeniedKey = 8,
    Contact = 88,
    Refusals = 112,
    Released = 48,
    Dns = 40,
    Hold = 64,
    Verdict = 16,
    Settings = 64,
    NameRule = 36,
}

/// Closes every descriptor but the three standard descriptors, for a process meant to outlive its
/// parent: inherited descriptors (a lock, a pipe) would stay open with the process. Call the
/// function before opening any descriptor.
#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "a system call; nothing that is owned is open yet")]
pub fn close_inherited() {
    unsafe extern "C" {
        fn syscall(number: core::ffi::c_long, ...) -> core::ffi::c_long;
    }
    /// `close_range` (`include/uapi/asm-generic/unistd.h`; the same on all architectures; Linux
    /// 5.9).
    const CLOSE_RANGE: core::ffi::c_long = 436;
    // SAFETY: the arguments are as in close_range(2), and no descriptor from 3 on has an owner
    // here.
    let _closed =
        unsafe { syscall(CLOSE_RANGE, 3 as core::ffi::c_uint, core::ffi::c_uint::MAX, 0) };
}

/// Reads memory of another process into all of `into`; false if the memory can't be read. Uses
/// `process_vm_readv(2)`: unlike `/proc/PID/mem`, the call does not keep the lock of the memory
/// while waiting for a page; detaching probes needs the lock.
#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "a system call that writes into a slice which it is given whole")]
pub fn read_memory(pid: u32, address: u64, into: &mut [u8]) -> bool {
    unsafe extern "C" {
        fn syscall(number: core::ffi::c_long, ...) -> core::ffi::c_long;
    }
    /// `struct iovec` (`include/uapi/linux/uio.h`).
    #[repr(C)]
    struct Part {
        address: u64,
        len: usize,
    }
    /// `process_vm_readv` (`arch/x86/entry/syscalls/syscall_64.tbl`,
    /// `include/uapi/asm-generic/unistd.h`).
    #[cfg(target_arch = "x86_64")]
    const PROCESS_VM_READV: core::ffi::c_long = 310;
    #[cfg(not(target_arch = "x86_64"))]
    const PROCESS_VM_READV: core::ffi::c_long = 270;
    let local = Part { address: into.as_mut_ptr() as u64, len: into.len() };
    let remote = Part { address, len: into.len() };
    // SAFETY: the kernel writes at most `len` bytes from `as_mut_ptr` on, all of them the slice's
    // own, and reads the two parts, alive until the call returns. The other address is another
    // process's: the kernel checks the address.
    let count = unsafe {
        syscall(
            PROCESS_VM_READV,
            core::ffi::c_long::from(pid.cast_signed()),
            &raw const local,
            1 as core::ffi::c_ulong,
            &raw const remote,
            1 as core::ffi::c_ulong,
            0 as core::ffi::c_ulong,
        )
    };
    usize::try_from(count).is_ok_and(|it| it == into.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(captured_len: u32) -> [u8; 44] {
        let header = Data {
            kind: kind::DATA,
            direction: EGRESS,
            flags: 0,
            round: 0,
            at_mono_ns: 1,
            conn: 2,
            offset: 3,
            tgid: 4,
            captured_len,
        };
        let mut record = [7; 44];
        header.write_to_prefix(&mut record).expect("44 bytes hold 40");
        record
    }

    #[test]
    fn a_record_cut_anywhere_is_malformed_and_nothing_worse() {
        let whole = data(4);
        for end in 0..whole.len() {
            let cut = whole.get(..end).expect("within the record");
            assert_eq!(Record::parse(cut).err(), Some(Malformed { len: end }));
        }
        assert!(matches!(Record::parse(&whole), Ok(Record::Data(_, Payload([7, 7, 7, 7])))));
    }

    #[test]
    fn payload_beyond_its_length_is_not_read() {
        assert!(matches!(Record::parse(&data(1)), Ok(Record::Data(_, Payload([7])))));
        assert_eq!(Record::parse(&data(u32::MAX)).err(), Some(Malformed { len: 44 }));
    }

    #[test]
    fn a_program_is_named_by_a_path_from_the_root_only() {
        let of = |path: &[u8]| {
            let mut record = [7; 304];
            kind::EXEC.write_to_prefix(&mut record).expect("a number");
            record.get_mut(48..48 + path.len()).expect("room").copy_from_slice(path);
            match Record::parse(&record) {
                Ok(Record::Exec(_, path)) => path.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(b"/bin/ls\0/x"), 7);
        assert_eq!((of(b"./ls\0"), of(b"\0/x")), (0, 0));
        assert!(Record::parse(&[6; 303]).is_err());
    }

    #[test]
    fn an_unknown_kind_is_malformed() {
        assert_eq!(Record::parse(&[9; 64]).err(), Some(Malformed { len: 64 }));
    }

    #[test]
    fn debug_shows_no_plaintext() {
        extern crate std;
        let shown = std::format!("{:?}", Record::parse(&data(4)));
        assert!(shown.contains("4 bytes") && !shown.contains("7, 7"), "{shown}");
    }
}
