//! Providers as known to the kernel programs: by number.

use genops_protocols::{HostPattern, Hosts};

/// Bits of a number: the programs' compared value has other bits beside the number.
const BITS: u32 = 24;

/// Providers by number, as known to the kernel programs: 1 and up.
///
/// The number depends on the name alone, so maps outliving an agent mean the same to the next
/// agent, with any configuration and version.
#[derive(Clone, Debug)]
pub(crate) struct Providers {
    names: Vec<(u32, String)>,
    hosts: Hosts,
}

impl Providers {
    pub(crate) fn new(hosts: &Hosts) -> Self {
        let mut new = Self { names: Vec::new(), hosts: hosts.clone() };
        new.replace(hosts);
        new
    }

    /// Replaces the hosts. A provider keeps the number as long as the agent runs.
    pub(crate) fn replace(&mut self, hosts: &Hosts) {
        for pattern in hosts.host_patterns() {
            if self.number(pattern.provider) == 0 {
                let mut number = number_of(pattern.provider);
                while self.name(number).is_some() {
                    number = number % ((1 << BITS) - 1) + 1;
                }
                self.names.push((number, pattern.provider.to_owned()));
            }
        }
        self.hosts = hosts.clone();
    }

    /// Every host, with the number of the provider.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (HostPattern<'_>, u32)> {
        self.hosts.host_patterns().map(|it| (it, self.number(it.provider)))
    }

    /// The number of a provider; 0 for an unknown name.
    pub(crate) fn number(&self, name: &str) -> u32 {
        self.names.iter().find(|(_, it)| it == name).map_or(0, |(number, _)| *number)
    }

    /// The provider of a number.
    pub(crate) fn name(&self, number: u32) -> Option<&str> {
        self.names.iter().find(|(it, _)| *it == number).map(|(_, name)| name.as_str())
    }

    /// The number of a host's provider, and the port if not HTTPS; 0: no provider.
    pub(crate) fn of_host(&self, host: &str) -> (u32, Option<u16>) {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let found = self.hosts.host_patterns().find(|it| it.matches(&host, it.port));
        found.map_or((0, None), |it| (self.number(it.provider), it.port))
    }
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>), folded; never 0.
fn number_of(name: &str) -> u32 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let folded = (hash >> BITS) ^ (hash & ((1 << BITS) - 1));
    folded.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_from_the_name_alone_and_names_one_provider() {
        let hosts = Hosts::builtin();
        let providers = Providers::new(&hosts);
        let openai = providers.number("openai");
        assert_eq!(openai, number_of("openai"));
        assert_eq!(providers.name(openai), Some("openai"));
        assert_eq!(providers.of_host("api.openai.com").0, openai);
        let mut numbers: Vec<u32> = providers.names.iter().map(|it| it.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), providers.names.len());
        assert!(numbers.iter().all(|it| (1..1 << BITS).contains(it)));
    }
}
