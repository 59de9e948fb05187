//! Names of addresses, by answers of name servers and by the hosts file: a server name sent by a
//! program is only the program's claim.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::Read as _,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Most names of addresses; past the limit, the oldest is forgotten.
const LIMIT: usize = 65_536;
/// Longest hosts file to read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// Interval of reading the hosts file again.
const READ_EVERY: Duration = Duration::from_secs(5);

/// An address and the digest of a name.
type Pair = (IpAddr, u64);

/// Confirmed names.
#[derive(Debug, Default)]
pub(super) struct Names {
    kept: bool,
    /// With a random key, so nobody finds a name with another name's digest.
    digests: RandomState,
    answered: HashSet<Pair>,
    /// Oldest first.
    order: VecDeque<Pair>,
    of_file: HashSet<Pair>,
    read_at: Option<Instant>,
}

impl Names {
    /// Sets whether answers are remembered.
    pub(super) fn keep(&mut self, keep: bool) {
        if !keep {
            *self = Self::default();
        }
        self.kept = keep;
    }

    pub(super) fn are_kept(&self) -> bool {
        self.kept
    }

    /// Notes an address answered by a name server for a name.
    pub(super) fn confirm(&mut self, ip: IpAddr, name: &str) {
        let pair = self.pair(ip, name);
        if !self.kept || !self.answered.insert(pair) {
            return;
        }
        self.order.push_back(pair);
        if self.order.len() > LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.answered.remove(&oldest);
        }
    }

    /// Whether a name server or the hosts file has confirmed the address for the name.
    pub(super) fn is_confirmed(&mut self, name: &str, ip: IpAddr) -> bool {
        let pair = self.pair(ip, name);
        if self.answered.contains(&pair) {
            return true;
        }
        let now = Instant::now();
        if self.read_at.is_none_or(|it| now.saturating_duration_since(it) >= READ_EVERY) {
            self.read_at = Some(now);
            self.of_file = self.listed(&hosts());
        }
        self.of_file.contains(&pair)
    }

    fn pair(&self, ip: IpAddr, name: &str) -> Pair {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        (ip.to_canonical(), self.digests.hash_one(name))
    }

    /// The names of a hosts file (hosts(5)).
    fn listed(&self, text: &str) -> HashSet<Pair> {
        let mut found = HashSet::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(ip) = words.next().and_then(|it| it.parse::<IpAddr>().ok()) else { continue };
            found.extend(words.map(|name| self.pair(ip, name)));
        }
        found
    }
}

/// The host's hosts file; if the host's root is not readable, the hosts file seen by the agent.
fn hosts() -> String {
    let file = File::open("/proc/1/root/etc/hosts").or_else(|_| File::open("/etc/hosts"));
    let mut text = String::new();
    if let Ok(file) = file {
        let _partial = file.take(FILE_LIMIT).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_a_name_server_said_of_an_address_is_confirmed_and_nothing_else() {
        let mut names = Names::default();
        names.confirm(ip("192.0.2.7"), "mirror.example.test");
        assert!(!names.is_confirmed("mirror.example.test", ip("192.0.2.7")), "not asked for");
        names.keep(true);
        names.confirm(ip("192.0.2.7"), "Mirror.example.test.");
        assert!(names.is_confirmed("mirror.EXAMPLE.test", ip("192.0.2.7")));
        assert!(names.is_confirmed("mirror.example.test", ip("::ffff:192.0.2.7")));
        assert!(!names.is_confirmed("mirror.example.test", ip("192.0.2.8")));
        assert!(!names.is_confirmed("example.test", ip("192.0.2.7")));
        names.keep(false);
        names.keep(true);
        assert!(!names.is_confirmed("mirror.example.test", ip("192.0.2.7")));
    }

    #[test]
    fn what_the_hosts_file_says() {
        let names = Names::default();
        let text = "# 192.0.2.1 no\n192.0.2.2\tbuild build.example.test # old\n::1 six\nx y\n";
        let listed = names.listed(text);
        for (name, address) in [("build", "192.0.2.2"), ("BUILD.example.test", "192.0.2.2")] {
            assert!(listed.contains(&names.pair(ip(address), name)), "{name}");
        }
        assert!(listed.contains(&names.pair(ip("::1"), "six")));
        assert_eq!(listed.len(), 3);
    }

    #[test]
    fn the_oldest_names_give_way() {
        let mut names = Names::default();
        names.keep(true);
        for number in 0..=LIMIT {
            names.confirm(ip("192.0.2.7"), &format!("{number}.example.test"));
        }
        assert!(!names.is_confirmed("0.example.test", ip("192.0.2.7")));
        assert!(names.is_confirmed("1.example.test", ip("192.0.2.7")));
        assert_eq!(names.answered.len(), LIMIT);
    }
}
