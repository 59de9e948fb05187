//! Providers as the kernel programs know them: by numbers.

use genops_protocols::{HostPattern, Hosts};

/// Providers by number, as the kernel programs know them: 1 and up.
#[derive(Clone, Debug)]
pub(crate) struct Providers {
    names: Vec<String>,
    hosts: Hosts,
}

impl Providers {
    pub(crate) fn new(hosts: &Hosts) -> Self {
        let mut new = Self { names: Vec::new(), hosts: hosts.clone() };
        new.replace(hosts);
        new
    }

    /// Takes other hosts. A provider keeps its number as long as the agent runs.
    pub(crate) fn replace(&mut self, hosts: &Hosts) {
        for pattern in hosts.host_patterns() {
            if self.number(pattern.provider) == 0 {
                self.names.push(pattern.provider.to_owned());
            }
        }
        self.hosts = hosts.clone();
    }

    /// Every host, with its provider's number.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (HostPattern<'_>, u32)> {
        self.hosts.host_patterns().map(|it| (it, self.number(it.provider)))
    }

    /// The number of a provider; 0 where it is none.
    pub(crate) fn number(&self, name: &str) -> u32 {
        let at = self.names.iter().position(|it| it == name).map_or(0, |at| at + 1);
        u32::try_from(at).unwrap_or(0)
    }

    /// The provider of a number.
    pub(crate) fn name(&self, number: u32) -> Option<&str> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        self.names.get(at).map(String::as_str)
    }

    /// The number of the provider whose host this is, and its port where that is not HTTPS; 0: none's.
    pub(crate) fn of_host(&self, host: &str) -> (u32, Option<u16>) {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let found = self.hosts.host_patterns().find(|it| it.matches(&host, it.port));
        found.map_or((0, None), |it| (self.number(it.provider), it.port))
    }
}
