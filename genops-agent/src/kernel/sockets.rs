//! Actions on a workload's socket from outside: push the queue, or destroy the socket.
//!
//! Both actions find exactly one socket by its cookie, or none.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
        socket_with, sockopt,
    },
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A socket of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// `SO_COOKIE`.
    pub(crate) cookie: u64,
    /// Thread-group ID of the process sending on the socket.
    pub(crate) tgid: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Finds sockets of other processes and remembers their descriptors.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Cookie to the descriptor's number in the process; checked by the cookie each time.
    numbers: HashMap<u64, RawFd>,
    /// Network namespace (inode) to a netlink socket there.
    diag: HashMap<u64, OwnedFd>,
}

/// Most remembered descriptors; past the limit, all are forgotten and found again.
const NUMBERS_LIMIT: usize = 4096;
/// Most network namespaces with a kept netlink socket.
const NAMESPACES_LIMIT: usize = 256;

impl Sockets {
    /// Makes TCP send queued bytes, without a trace on the socket: taking away `TCP_CORK`, set or
    /// not, pushes the queue (`net/ipv4/tcp.c`, `__tcp_sock_set_cork`).
    ///
    /// # Errors
    ///
    /// If the process has ended or no longer has the socket. No byte is lost then: the queue goes
    /// out when TCP's timer fires.
    pub(crate) fn kick(&mut self, socket: Socket) -> Result<(), Errno> {
        let pid = i32::try_from(socket.tgid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let copy = self.copy_of(&process, socket)?;
        let corked = sockopt::tcp_cork(&copy)?;
        sockopt::set_tcp_cork(&copy, false)?;
        if corked {
            sockopt::set_tcp_cork(&copy, true)?;
        }
        Ok(())
    }

    /// Duplicates the socket's descriptor. The duplicate lives no longer than a call: a longer life
    /// would delay the end of the connection.
    fn copy_of(&mut self, process: &OwnedFd, socket: Socket) -> Result<OwnedFd, Errno> {
        let is_it = |number: RawFd| -> Option<OwnedFd> {
            let copy = pidfd_getfd(process, number, PidfdGetfdFlags::empty()).ok()?;
            (sockopt::socket_cookie(&copy).ok()? == socket.cookie).then_some(copy)
        };
        if let Some(copy) = self.numbers.get(&socket.cookie).and_then(|&it| is_it(it)) {
            return Ok(copy);
        }
        for number in socket_numbers(socket.tgid) {
            if let Some(copy) = is_it(number) {
                if self.numbers.len() >= NUMBERS_LIMIT {
                    self.numbers.clear();
                }
                self.numbers.insert(socket.cookie, number);
                return Ok(copy);
            }
        }
        Err(Errno::BADF)
    }

    /// Forgets an ended socket.
    pub(crate) fn forget(&mut self, cookie: u64) {
        self.numbers.remove(&cookie);
    }

    /// Destroys exactly the given socket (`SOCK_DESTROY`, `sock_diag(7)`): the program's next or
    /// waiting call on the socket fails at once, and no queued byte is sent.
    ///
    /// # Errors
    ///
    /// `NOENT` if the socket is gone already; `OPNOTSUPP` on kernels without
    /// `CONFIG_INET_DIAG_DESTROY`.
    pub(crate) fn destroy(&mut self, socket: Socket) -> Result<(), Errno> {
        let namespace = network_namespace(socket.tgid);
        if self.diag.len() >= NAMESPACES_LIMIT {
            self.diag.clear();
        }
        let diag = match self.diag.entry(namespace.unwrap_or(0)) {
            std::collections::hash_map::Entry::Occupied(it) => it.into_mut(),
            std::collections::hash_map::Entry::Vacant(it) => {
                it.insert(diag_socket(namespace.map(|_| socket.tgid))?)
            }
        };
        let request = DestroyRequest::new(socket);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&diag, request.as_bytes(), SendFlags::empty(), &kernel)?;
        let mut answer = [0u8; 1024];
        let (len, _) = recv(&diag, &mut answer, RecvFlags::empty())?;
        let (answer, _) = Answer::read_from_prefix(answer.get(..len).unwrap_or_default())
            .map_err(|_| Errno::PROTO)?;
        match (answer.kind, answer.error) {
            (NLMSG_ERROR, 0) => Ok(()),
            (NLMSG_ERROR, error) => Err(Errno::from_raw_os_error(-error)),
            _ => Err(Errno::PROTO),
        }
    }
}

/// Numbers of a process's socket descriptors.
fn socket_numbers(tgid: u32) -> impl Iterator<Item = RawFd> {
    let entries = fs::read_dir(format!("/proc/{tgid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        if !target.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
            return None;
        }
        entry.file_name().to_str()?.parse().ok()
    })
}

/// Inode of a process's network namespace.
fn network_namespace(tgid: u32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{tgid}/ns/net")).ok()?.ino())
}

/// Opens a `sock_diag` socket in the network namespace of `tgid`, or in the agent's. A separate
/// thread enters the namespace and ends, so the agent's threads never leave their own namespace.
fn diag_socket(tgid: Option<u32>) -> Result<OwnedFd, Errno> {
    let open = || {
        socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )
    };
    let Some(tgid) = tgid else { return open() };
    let entered = move || -> Result<OwnedFd, Errno> {
        let target = File::open(format!("/proc/{tgid}/ns/net")).map_err(|_| Errno::SRCH)?;
        let ours = fs::metadata("/proc/thread-self/ns/net").map_err(|_| Errno::SRCH)?.ino();
        let theirs = target.metadata().map_err(|_| Errno::SRCH)?.ino();
        if ours != theirs {
            rustix::thread::move_into_link_name_space(
                target.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
        }
        open()
    };
    std::thread::spawn(entered).join().unwrap_or(Err(Errno::IO))
}

/// `SOCK_DESTROY` (`linux/sock_diag.h`).
const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_ACK` (`linux/netlink.h`).
const REQUEST_ACK: u16 = 1 | 4;
/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (`linux/netlink.h`, `linux/inet_diag.h`).
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DestroyRequest {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    reserved: u8,
    states: u32,
    /// Network byte order, as the next three fields.
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

const _: () = assert!(size_of::<DestroyRequest>() == 72);

impl DestroyRequest {
    fn new(socket: Socket) -> Self {
        let Socket { cookie, tgid: _, local, remote } = socket;
        Self {
            len: 72,
            kind: SOCK_DESTROY,
            flags: REQUEST_ACK,
            sequence: 1,
            port: 0,
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: 0,
            reserved: 0,
            states: u32::MAX,
            source_port: local.port().to_be_bytes(),
            destination_port: remote.port().to_be_bytes(),
            source: address_bytes(local.ip()),
            destination: address_bytes(remote.ip()),
            interface: 0,
            cookie: halves(cookie),
        }
    }
}

/// Low half first, as compared by the kernel (`sock_diag_check_cookie`).
#[expect(clippy::cast_possible_truncation, reason = "the halves of the number")]
const fn halves(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(it) => it.octets(),
        IpAddr::V4(it) => {
            let [a, b, c, d] = it.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
    }
}

/// `struct nlmsghdr` and the error of an acknowledgement.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Answer {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    error: i32,
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a test says why it was skipped")]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (server, _) = listener.accept().expect("connected");
        let socket = Socket {
            cookie: sockopt::socket_cookie(&client).expect("Linux has cookies"),
            tgid: std::process::id(),
            local: client.local_addr().expect("connected"),
            remote: client.peer_addr().expect("connected"),
        };
        (client, server, socket)
    }

    #[test]
    fn a_kick_sends_what_is_corked_and_leaves_the_cork() {
        let (mut client, mut server, socket) = pair();
        sockopt::set_tcp_cork(&client, true).expect("TCP");
        client.write_all(b"held").expect("queued");
        match Sockets::default().kick(socket) {
            Err(Errno::PERM | Errno::NOSYS) => {
                return println!("skipped: pidfd_getfd is not allowed");
            }
            kicked => kicked.expect("our own socket"),
        }
        let mut got = [0; 4];
        server.read_exact(&mut got).expect("pushed");
        assert_eq!(&got, b"held");
        assert!(sockopt::tcp_cork(&client).expect("TCP"));
    }

    #[test]
    fn a_kick_with_another_cookie_finds_nothing() {
        let (_client, _server, socket) = pair();
        let other = Socket { cookie: socket.cookie + 1_000_000, ..socket };
        assert!(Sockets::default().kick(other).is_err());
    }

    #[test]
    fn destroying_ends_exactly_that_socket() {
        let (mut client, _server, socket) = pair();
        let (mut bystander, mut other_end, _) = pair();
        let wrong = Socket { cookie: socket.cookie + 1_000_000, ..socket };
        match Sockets::default().destroy(wrong) {
            Err(Errno::PERM | Errno::ACCESS) => return println!("skipped: needs CAP_NET_ADMIN"),
            refused => assert!(refused.is_err()),
        }
        client.write_all(b"still alive").expect("another cookie destroys nothing");
        Sockets::default().destroy(socket).expect("root may");
        assert!(client.write_all(b"x").is_err() || client.read(&mut [0]).is_err());
        bystander.write_all(b"y").expect("untouched");
        other_end.read_exact(&mut [0]).expect("untouched");
    }
}
