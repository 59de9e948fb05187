//! What the kernel programs and the agent say to each other: the records of the ring buffer, and the
//! keys and values of the maps.
//!
//! Every type is `repr(C)` without padding, which the zerocopy derives prove. Records are read by
//! [`Record::parse`] alone; it is total, and tested without a kernel.
#![no_std]

mod cursor;

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use cursor::{Bounds, Bytes, Cursor, Fate, Step, follow, overhead_of_record, phase};

/// Number of the layout of maps and records. One more with each change of any of them, so that an agent never
/// takes over the maps of another layout.
pub const LAYOUT: u32 = 6;

/// Length of `task_struct.comm` (`include/linux/sched.h`, `TASK_COMM_LEN`), with its final NUL.
pub const COMM_LEN: usize = 16;

/// In what `/proc/PID/stat` counts the start of a process: a second has `USER_HZ` of it, which is 100
/// (`include/asm-generic/param.h`). Programs and agent name a process by its number and this time.
pub const TICK_NS: u64 = 10_000_000;

/// Most bytes of a host name or of a path's end that the kernel programs compare.
pub const NAME_LEN: usize = 128;

/// Payload capacities of the [`Data`] records, ascending. The ring buffer reserves fixed sizes, so a
/// record takes the smallest class that its payload fits in.
pub const DATA_CLASSES: [usize; 4] = [256, 1024, 4096, PIECE_LEN];

/// Largest payload of one [`Data`] record: a TLS record's limit (RFC 8446 §5.1).
pub const PIECE_LEN: usize = 16_384;

/// Most bytes of one TLS library call that are captured, whatever the configuration says: bounds the
/// program's loop.
pub const CALL_LIMIT_MAX: u64 = 16 << 20;

/// Identifies what a record is; the first four bytes of each.
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
    /// A [`crate::Process`] record that says that a process began to run a program.
    pub const EXEC: u32 = 6;
    /// A [`crate::Process`] record that says that a process ended.
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

/// [`Data::direction`]: what the program sent.
pub const EGRESS: u8 = 0;
/// [`Data::direction`]: what the program received.
pub const INGRESS: u8 = 1;

/// [`Data::flags`]: the kernel holds the socket until a verdict for these bytes.
pub const DATA_HELD: u8 = 1;
/// [`Data::flags`]: bytes before this record were left out because the call exceeded the limit.
pub const DATA_CUT: u8 = 2;
/// [`Data::flags`]: the kernel denied these bytes by itself, as the agent had told it in [`DeniedKey`].
pub const DATA_DENIED: u8 = 4;
/// [`Data::flags`]: the first piece of a call: the library has taken everything before it.
pub const DATA_FIRST: u8 = 8;

/// Plaintext that went into or came out of a TLS library; `captured_len` bytes of payload follow.
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
    /// Bytes of payload that follow.
    pub captured_len: u32,
}

/// What made the programs take a connection for AI traffic.
pub mod origin {
    /// The server name that the program gave to its TLS library.
    pub const SERVER_NAME: u32 = 0;
    /// The host or the path of an HTTP/1 request.
    pub const REQUEST: u32 = 1;
    /// It speaks HTTP/2, its beginning was not seen, and so nobody knows yet.
    pub const HTTP2_MIDWAY: u32 = 2;
}

/// A TLS object that speaks to an AI provider was seen for the first time.
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
    /// Address of the TLS object: with `tgid`, its [`ConnKey`].
    pub ssl: u64,
    /// `bpf_get_current_cgroup_id`: inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// Real user id.
    pub uid: u32,
    /// One of [`origin`].
    pub origin: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
    /// Bytes of `name` in use.
    pub name_len: u32,
    /// 1 where the kernel will hold this process's requests.
    pub held: u32,
    /// [`Lineage::principal`].
    pub principal: u64,
    /// Server name, where the program gave one.
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

/// How a process reached for a provider over a socket whose plaintext no probe reads.
pub mod contact {
    /// It sent a `ClientHello` with a provider's name, which follows.
    pub const HELLO: u32 = 0;
    /// It sent the beginning, or more, of a `ClientHello` that is not whole yet; the bytes follow.
    pub const HELLO_PART: u32 = 1;
    /// It addressed a provider by UDP.
    pub const DATAGRAM: u32 = 2;
    /// It was refused the connection, as the agent had told the kernel in [`crate::DeniedKey`].
    pub const REFUSED: u32 = 3;
    /// It was refused the connection, since no agent decides and the timeout is closed.
    pub const ABSENT: u32 = 4;
}

/// Longest part of a `ClientHello` in one [`Contact`]. One with a post-quantum key share has about 1,800.
pub const HELLO_LEN: usize = 4096;

/// A process reached for a provider; `captured_len` bytes of a `ClientHello` follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Contact {
    /// [`kind::CONTACT`].
    pub kind: u32,
    /// One of [`contact`].
    pub what: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_mono_ns: u64,
    /// Socket cookie: also the number of the connection ([`Sock::conn`]).
    pub cookie: u64,
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
    /// Thread-group id of the process that connected; 0 where it did before the programs ran.
    pub tgid: u32,
    /// Number of the provider; 0 where it is not known yet.
    pub provider: u32,
    /// 1 where the kernel holds what comes after the `ClientHello` until a verdict.
    pub held: u32,
    /// Bytes that follow.
    pub captured_len: u32,
}

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

/// Longest DNS answer that is reported, in bytes.
pub const DNS_LEN: usize = 1024;

/// What a socket of the initial network namespace asked a name server, or was answered by it (RFC 1035
/// §4.1); `captured_len` bytes of the message follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Dns {
    /// [`kind::DNS`].
    pub kind: u32,
    /// Bytes that follow, at most [`DNS_LEN`].
    pub captured_len: u32,
    /// The socket that asks.
    pub cookie: u64,
    /// Address of the name server, in network byte order; an IPv4 address is in the first four bytes.
    pub server: [u8; 16],
    /// 4 or 6.
    pub ip_version: u32,
    /// 1: an answer; 0: a question.
    pub answers: u32,
}

/// The program freed its TLS object.
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
    /// 1: the bytes pass; 0: they stay dropped.
    pub passed: u32,
    /// The connection: [`Conn::id`].
    pub conn: u64,
    /// Position after the last byte that this concerns.
    pub to: u64,
}

/// What a socket sends is more than the plaintext that was read explains, or plaintext could not be read.
pub mod unexplained {
    /// It waits until the deadline.
    pub const WAITS: u32 = 0;
    /// The deadline has let it pass.
    pub const PASSED: u32 = 1;
    /// The deadline has stopped it for good.
    pub const STOPPED: u32 = 2;
    /// [`super::Unexplained::reason`]: no probe saw plaintext for it.
    pub const NO_PLAINTEXT: u32 = 0;
    /// [`super::Unexplained::reason`]: the program's memory could not be read when it wrote.
    pub const UNREAD_PAGE: u32 = 1;
    /// [`super::Unexplained::reason`]: the ring buffer was full.
    pub const RING_FULL: u32 = 2;
    /// [`super::Unexplained::reason`]: what it sends are no TLS records that can be followed.
    pub const NO_RECORDS: u32 = 3;
}

/// A socket of a held process sends what no plaintext explains.
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
    /// Bytes of plaintext beyond it, at least; 0 where that is not known.
    pub bytes: u64,
    /// Why: one of the reasons in [`unexplained`].
    pub reason: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Where in the program's memory a write begins that could not be read; otherwise 0.
    pub address: u64,
    /// Position of the first byte of that write, which ends at `seen_to`.
    pub from: u64,
    /// [`Hold::round`] of that write.
    pub round: u32,
    /// 0.
    pub reserved: u32,
}

/// A process began to run a program, or ended.
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

/// A process that is not decided yet (see [`Lineage`]) has started another. The process is named by number
/// and start, since either number may be another's when this is read.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fork {
    /// [`kind::FORK`].
    pub kind: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// [`Lineage::start_ns`].
    pub start_ns: u64,
    /// [`Lineage::start_ns`] of the other.
    pub child_start_ns: u64,
    /// Thread-group id of the other.
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
    /// Its socket is known.
    Join(Join),
    /// It ended.
    Close(Close),
    /// The kernel decided in the agent's place.
    TimedOut(TimedOut),
    /// [`kind::EXEC`].
    Exec(Process),
    /// [`kind::EXIT`].
    Exit(Process),
    /// A process that is not decided yet has started another.
    Fork(Fork),
    /// A provider was reached for past the probes, with the bytes of a `ClientHello`.
    Contact(Contact, Payload<'a>),
    /// A socket to a provider was let go.
    Released(Released),
    /// A name server's answer.
    Dns(Dns, Payload<'a>),
    /// A socket sends what no plaintext explains.
    Unexplained(Unexplained),
}

/// Captured plaintext. `Debug` shows its length only.
#[derive(Clone, Copy)]
pub struct Payload<'a>(pub &'a [u8]);

impl core::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A record that no kernel program of this version writes.
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
    /// [`Malformed`] where the kind is unknown or the record is too short for what it announces.
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
            kind::EXEC => read(record).map(Self::Exec),
            kind::EXIT => read(record).map(Self::Exit),
            kind::FORK => read(record).map(Self::Fork),
            kind::UNEXPLAINED => read(record).map(Self::Unexplained),
            _ => Err(malformed),
        }
    }
}

/// A record and the bytes that follow it, as many as it says.
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

/// A connection, as its TLS object. Only the kernel programs write it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Conn {
    /// Unique while the host runs: time of birth, shifted, with the CPU.
    pub id: u64,
    /// Socket cookie; 0 while the socket is not known.
    pub cookie: u64,
    /// Position after the last byte that the TLS library took.
    pub egress_offset: u64,
    /// Position after the last byte that the program received.
    pub ingress_offset: u64,
    /// Number of the provider, as the agent numbers them; 0 where its name did not say.
    pub provider: u32,
    /// Real user id of its process, whose quota it counts against.
    pub uid: u32,
}

/// A socket to a provider, by its cookie. Only the kernel programs write it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sock {
    /// The connection that it carries: [`Conn::id`]; or its own cookie, where no TLS object is joined
    /// with it; or 0, where it is not known yet whether it goes to a provider.
    pub conn: u64,
    /// Bytes of payload that left, each counted once.
    pub sent: u64,
    /// Bytes of payload that came (`tcp_sock.bytes_received`).
    pub received: u64,
    /// TCP's sequence number after the last byte that was counted.
    pub next_sequence: u32,
    /// Bytes of a `ClientHello` that was not whole in its first packet, reported so far; otherwise 0.
    pub hello_len: u32,
    /// What has left, as records.
    pub cursor: Cursor,
    /// The programs' room to work in: what has left, if the packet at hand may.
    pub trial: Cursor,
    /// Bytes of plaintext that were let go although nothing explains them: positions of records are behind those
    /// of [`Conn::egress_offset`] by so much.
    pub excess: u64,
    /// The programs' room to work in: [`Bounds`].
    pub seen_to: u64,
    /// As above.
    pub released_to: u64,
    /// Thread-group id of the process whose connection it carries; 0 where that is not known.
    pub tgid: u32,
    /// 1: the program has let go of it; what it has queued may still have to leave.
    pub closed: u32,
}

/// Most TLS objects, and about as many sockets without one, that are followed at a time.
pub const CONNECTIONS: u32 = 32_768;

/// Most of each that one process may have at a time, and a user three times as many in TLS objects: nobody takes
/// the others' places. What is above is followed by its socket alone, as what no probe reads.
pub const CONNECTIONS_OF_PROCESS: u32 = 4_096;

/// Most TLS objects of one process that are taken up in a second.
pub const OPENS_PER_SECOND: u32 = 512;

/// What a process takes of the maps that all processes share.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Usage {
    /// The second that `opens` counts, by `CLOCK_MONOTONIC`.
    pub second: u64,
    /// TLS objects that were taken up in it.
    pub opens: u32,
    /// TLS objects that it has.
    pub objects: u32,
    /// Sockets that it has.
    pub sockets: u32,
    /// Zero.
    pub reserved: u32,
}

/// A provider's address, learnt from name servers' answers and from sockets.
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

/// An address that programs of one user in one group call a provider's. The value is the provider's number.
/// Written by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TieKey {
    /// As in [`AddressKey`].
    pub address: [u8; 16],
    /// As in [`AddressKey`].
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// Real user id, as the initial user namespace has it.
    pub uid: u32,
    /// Number of the cgroup (v2).
    pub group: u64,
}

/// A process that may not call a provider at all. The value is when the reason for that ends, in nanoseconds
/// of `CLOCK_MONOTONIC`. Written by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeniedKey {
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Number of the provider, as the agent numbers them.
    pub provider: u32,
}

/// What waits for a verdict on a connection, by [`Conn::id`]. The kernel programs write it; the agent
/// deletes it when the connection has ended and everything on it is decided.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hold {
    /// Nothing before this position leaves without a verdict: end of the last write.
    pub armed_to: u64,
    /// When the oldest write that waits was made, in nanoseconds of `CLOCK_MONOTONIC`.
    pub armed_at_mono_ns: u64,
    /// Position up to which the deadline has let bytes pass.
    pub passed_to: u64,
    /// Position up to which an expired deadline was reported.
    pub reported_to: u64,
    /// When the socket first sent what nothing explains, by the same clock; 0: it does not.
    pub unexplained_at_mono_ns: u64,
    /// Position from which on bytes were reported another time, since the library had not taken them.
    pub from: u64,
    /// How often that was so: a verdict of an earlier round says nothing of what is behind `from`.
    pub round: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// 1: plaintext before `armed_to` could not be read; by reason in [`unexplained`].
    pub unread: u32,
    /// 1: that the socket was stopped for it, or let go, was reported.
    pub reported: u32,
}

/// What a [`Data`] record says of a round.
const ROUNDS: u32 = 0xffff;

impl Hold {
    /// Position up to which `verdict` lets bytes leave.
    #[must_use]
    pub const fn released_to(&self, verdict: &Verdict) -> u64 {
        if verdict.round & ROUNDS == self.round & ROUNDS || verdict.released_to < self.from {
            verdict.released_to
        } else {
            self.from
        }
    }

    /// Whether bytes wait, given what was released.
    #[must_use]
    pub const fn is_waiting(&self, released_to: u64) -> bool {
        released_to < self.armed_to && self.passed_to < self.armed_to
    }
}

/// What the agent decided about a connection. Only the agent writes it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Verdict {
    /// Position up to which bytes may leave.
    pub released_to: u64,
    /// 1: nothing more may leave.
    pub denied: u32,
    /// [`Hold::round`] that it is of.
    pub round: u32,
}

/// Where in a function a probe sits, as `bpf_get_attach_cookie` hands it to the program; zero: at the entry or
/// at a RET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame(pub u64);

impl Frame {
    /// Below the entry, the stack pointer `depth` bytes lower.
    #[must_use]
    pub const fn entered(depth: u16) -> Self {
        Self::returning(depth, 0)
    }

    /// Above a RET, the stack pointer `depth` bytes lower, the result in a register of this number in the
    /// processor's encoding.
    #[must_use]
    pub const fn returning(depth: u16, register: u8) -> Self {
        Self(depth as u64 | (register as u64) << 16)
    }

    /// How many bytes the stack pointer is lower than at the function's entry.
    #[must_use]
    pub const fn depth(self) -> u64 {
        self.0 & 0xffff
    }

    /// The register with the result.
    #[must_use]
    pub const fn register(self) -> u64 {
        self.0 >> 16 & 0xff
    }
}

/// What a process descends from, by thread-group id. The programs make an element for each process that
/// begins to run a program, and one for each that a process with an element starts, and take it away when
/// the process has ended. The agent fills in whose it is, or takes it away where it is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lineage {
    /// When the process began: nanoseconds of `CLOCK_BOOTTIME`, down to a whole [`TICK_NS`]. An element with
    /// another time is of another process that had the number.
    pub start_ns: u64,
    /// The principal that it acts for, or that started it, as the agent numbers them; 0: none is known.
    pub principal: u64,
    /// Container and pod that the principal's process was in, as the agent numbers them; 0: none.
    pub place: u32,
    /// 1: it has begun to run another program since, or was started by one that had; the agent has yet to
    /// look at it.
    pub undecided: u32,
}

/// Where the kernel keeps what the programs read of a task, in bytes from the beginning of its structure.
/// All zero: nobody says, and nothing is read.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskLayout {
    /// `task_struct.pid`.
    pub pid: u32,
    /// `task_struct.tgid`.
    pub tgid: u32,
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.start_boottime`.
    pub start_boottime: u32,
    /// `task_struct.signal`.
    pub signal: u32,
    /// `signal_struct.live`: how many threads have not ended.
    pub live: u32,
}

/// What the agent told the programs about a process.
pub mod process_mode {
    /// Never hold.
    pub const OBSERVE: u32 = 1;
    /// Hold each request for a verdict.
    pub const ENFORCE: u32 = 2;
}

/// How long a record that nobody waits for may lie in the ring buffer before the agent is woken for it. An agent
/// that has just read records looks again by itself after twice that time, so that none is left lying.
pub const NAP_NS: u64 = 5_000_000;

/// Whose requests wait for a verdict.
pub mod holding {
    /// Those of processes that the agent has named ([`super::process_mode::ENFORCE`]).
    pub const NAMED: u32 = 0;
    /// Those, and those of processes of which it has said nothing.
    pub const UNKNOWN_TOO: u32 = 1;
    /// Nobody's: there is nobody left who could decide, and the programs are about to be detached.
    pub const NOBODY: u32 = 2;
}

/// One element of settings that may change while the programs run.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// How long a request waits for a verdict.
    pub hold_deadline_ns: u64,
    /// Bytes of one TLS library call that are captured, at most [`CALL_LIMIT_MAX`].
    pub call_limit: u64,
    /// One of [`holding`].
    pub holding: u32,
    /// 1: after the deadline, bytes stay dropped; 0: they pass.
    pub closed: u32,
    /// 1: somebody is configured to be inherited.
    pub lineage: u32,
    /// 1: after the deadline, what nothing explains stays dropped; 0: it passes.
    pub unread_stays: u32,
    /// 1: handshakes of held processes whose server name is no provider's, or absent, are reported and wait.
    pub unnamed: u32,
    /// Zero.
    pub reserved: u32,
    /// When the agent last said that it decides, in nanoseconds of `CLOCK_MONOTONIC`.
    pub alive_at_mono_ns: u64,
    /// How long after that nobody is taken to decide any more. 0: from now on.
    pub absent_after_ns: u64,
    /// How long after that, where bytes pass at the deadline, nothing is refused or held any more.
    pub pinned_for_ns: u64,
}

impl Settings {
    /// Whether requests are refused at once, since nobody decides and the timeout is closed.
    #[inline]
    #[must_use]
    pub const fn refuses_all(&self, now_mono_ns: u64) -> bool {
        self.closed != 0 && self.silent_for_ns(now_mono_ns) >= self.absent_after_ns
    }

    /// Whether the agent has been away for so long that what it left is void, since the timeout is open.
    #[inline]
    #[must_use]
    pub const fn is_void(&self, now_mono_ns: u64) -> bool {
        self.closed == 0 && self.silent_for_ns(now_mono_ns) > self.pinned_for_ns
    }

    /// Whether a refusal whose reason ends then ([`DeniedKey`]) is still in force.
    #[inline]
    #[must_use]
    pub const fn is_in_force(&self, until_mono_ns: u64, now_mono_ns: u64) -> bool {
        until_mono_ns > now_mono_ns && !self.is_void(now_mono_ns)
    }

    /// A beat may be younger than the time that is compared with it.
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
    /// Number of the provider, as the agent numbers them; 0 for a path.
    pub provider: u32,
}

/// Why bytes, events or probes were lost: an index into the array of counters.
pub mod loss {
    /// The ring buffer was full: bytes of plaintext.
    pub const RING_FULL_BYTES: u32 = 0;
    /// The ring buffer was full: records of any kind.
    pub const RING_FULL_RECORDS: u32 = 1;
    /// The program's memory could not be read at that moment: bytes.
    pub const FAULT_BYTES: u32 = 2;
    /// The call was larger than the limit: bytes left out on purpose.
    pub const LIMIT_BYTES: u32 = 3;
    /// The map of connections was full: connections not seen.
    pub const CONNECTIONS_FULL: u32 = 4;
    /// The map of running calls was full: calls whose result was not seen.
    pub const CALLS_FULL: u32 = 5;
    /// The map of lineages was full: processes of which is not known what started them.
    pub const LINEAGES_FULL: u32 = 6;
    /// A process or user had as many connections as one may have: TLS objects and sockets not followed.
    pub const QUOTA: u32 = 7;
    /// How many there are.
    pub const COUNT: u32 = 8;
}

macro_rules! layout {
    ($($type:ty = $size:expr),+ $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $size);)+
        $(
            // SAFETY: `repr(C)` without padding and valid for every bit pattern, which the zerocopy
            // derives on the type (`IntoBytes`, `FromBytes`) have proved.
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
    Fork = 32,
    Lineage = 24,
    TaskLayout = 24,
    ConnKey = 16,
    Conn = 40,
    Cursor = 32,
    Sock = 128,
    Usage = 24,
    Unexplained = 72,
    AddressKey = 20,
    TieKey = 32,
    DeniedKey = 8,
    Contact = 80,
    Released = 48,
    Dns = 40,
    Hold = 64,
    Verdict = 16,
    Settings = 64,
    NameRule = 36,
}

/// Closes every descriptor but the three standard ones, for a process that outlives whoever started it: what it
/// inherited (a lock, a pipe) would stay open with it. To be called before anything is opened.
#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "a system call; nothing that is owned is open yet")]
pub fn close_inherited() {
    unsafe extern "C" {
        fn syscall(number: core::ffi::c_long, ...) -> core::ffi::c_long;
    }
    /// `close_range` (`include/uapi/asm-generic/unistd.h`; the same on every architecture; Linux 5.9).
    const CLOSE_RANGE: core::ffi::c_long = 436;
    // SAFETY: the arguments are those of close_range(2), and no descriptor from 3 on has an owner here.
    let _closed =
        unsafe { syscall(CLOSE_RANGE, 3 as core::ffi::c_uint, core::ffi::c_uint::MAX, 0) };
}

/// Reads memory of another process into all of `into`; false where it can't be read. `process_vm_readv(2)`: unlike
/// `/proc/PID/mem`, it does not keep the lock of that memory while it waits for a page, which probes need to be detached.
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
    /// `process_vm_readv` (`arch/x86/entry/syscalls/syscall_64.tbl`, `include/uapi/asm-generic/unistd.h`).
    #[cfg(target_arch = "x86_64")]
    const PROCESS_VM_READV: core::ffi::c_long = 310;
    #[cfg(not(target_arch = "x86_64"))]
    const PROCESS_VM_READV: core::ffi::c_long = 270;
    let local = Part { address: into.as_mut_ptr() as u64, len: into.len() };
    let remote = Part { address, len: into.len() };
    // SAFETY: the kernel writes at most `len` bytes from `as_mut_ptr` on, which are the slice's own, and reads the two
    // parts, which live until it returns. The other address is another process's: the kernel checks it.
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
