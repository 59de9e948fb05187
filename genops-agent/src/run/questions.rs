//! Questions of this host's sockets to name servers: an answer is believed only after a question.
//!
//! A question is identified by socket, ID and name (RFC 5452 §9.1), and answers count only from the
//! name servers of the host (`resolv.conf(5)`).

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::Read as _,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Most questions without an answer; past the limit, the oldest is dropped.
const QUESTIONS_LIMIT: usize = 4_096;
/// Most questions of one socket without an answer.
const SOCKET_LIMIT: usize = 32;
/// Longest list of name servers to read, in bytes.
const FILE_LIMIT: u64 = 64 << 10;
/// Interval of reading the list again.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Cookie of the socket and ID of the question.
type Key = (u64, u16);

/// A question.
#[derive(Debug)]
struct Asked {
    server: IpAddr,
    /// In lower case: resolvers vary the case (draft-vixie-dnsext-dns0x20).
    name: String,
}

/// Questions without an answer yet.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: HashMap<Key, Asked>,
    /// Oldest first; may still have answered questions.
    order: VecDeque<Key>,
    servers: Vec<IpAddr>,
    read_at: Option<Instant>,
}

impl Questions {
    #[cfg(test)]
    pub(super) fn with(servers: Vec<IpAddr>) -> Self {
        let read_at = Instant::now().checked_add(READ_EVERY * 1_000);
        Self { servers, read_at, ..Self::default() }
    }

    /// Notes a socket's question to a name server.
    pub(super) fn ask(&mut self, key: Key, server: IpAddr, name: &str) {
        let own = self.order.iter().filter(|it| it.0 == key.0).count();
        if own >= SOCKET_LIMIT
            && let Some(at) = self.order.iter().position(|it| it.0 == key.0)
        {
            self.give_up(at);
        } else if self.order.len() >= QUESTIONS_LIMIT {
            self.give_up(0);
        }
        if self.asked.insert(key, Asked { server, name: name.to_ascii_lowercase() }).is_none() {
            self.order.push_back(key);
        }
    }

    fn give_up(&mut self, at: usize) {
        if let Some(key) = self.order.remove(at) {
            self.asked.remove(&key);
        }
    }

    /// Whether an answer fits a question; each question counts once.
    pub(super) fn is_answered(&mut self, key: Key, server: IpAddr, name: &str) -> bool {
        let fits = |it: &Asked| it.server == server && it.name.eq_ignore_ascii_case(name);
        if !self.asked.get(&key).is_some_and(fits) || !self.is_of_host(server) {
            return false;
        }
        if let Some(at) = self.order.iter().position(|it| *it == key) {
            self.give_up(at);
        }
        true
    }

    fn is_of_host(&mut self, server: IpAddr) -> bool {
        let now = Instant::now();
        if self.read_at.is_none_or(|it| now.saturating_duration_since(it) >= READ_EVERY && now > it)
        {
            self.read_at = Some(now);
            self.servers = servers();
        }
        self.servers.contains(&server)
    }
}

/// The host's name servers; if the host's root is not readable, the name servers seen by the agent.
fn servers() -> Vec<IpAddr> {
    let file =
        File::open("/proc/1/root/etc/resolv.conf").or_else(|_| File::open("/etc/resolv.conf"));
    let mut text = String::new();
    if let Ok(file) = file {
        let _partial = file.take(FILE_LIMIT).read_to_string(&mut text);
    }
    listed(&text)
}

fn listed(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|it| *it == "nameserver").and_then(|_| words.next())?;
        address.split('%').next()?.parse::<IpAddr>().ok()
    });
    lines.map(|it| it.to_canonical()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_as_the_file_lists_them() {
        let text = "# nameserver 192.0.2.1\nsearch lab.test\nnameserver 192.0.2.2\n\
                    nameserver\tfe80::1%eth0\noptions nameserver 192.0.2.3\nnameserver x\n";
        let expected: [IpAddr; 2] =
            ["192.0.2.2".parse().expect("v4"), "fe80::1".parse().expect("v6")];
        assert_eq!(listed(text), expected);
    }

    #[test]
    fn many_questions_of_one_socket_push_out_its_own_only() {
        let server: IpAddr = "192.0.2.2".parse().expect("v4");
        let mut questions = Questions::with(vec![server]);
        questions.ask((1, 1), server, "API.openai.com");
        for id in 0..1_000 {
            questions.ask((2, id), server, "api.openai.com");
        }
        assert_eq!(questions.asked.len(), SOCKET_LIMIT + 1);
        assert!(questions.is_answered((1, 1), server, "api.OPENAI.com"));
        assert!(!questions.is_answered((1, 1), server, "api.openai.com"), "once");
        assert!(!questions.is_answered((2, 1), server, "api.openai.com"), "given up");
        assert!(questions.is_answered((2, 999), server, "api.openai.com"));
        assert_eq!(questions.asked.len(), questions.order.len());
    }
}
