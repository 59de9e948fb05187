//! Providers found without plaintext: by the server name of a `ClientHello`, and by the answers of
//! name servers.
//!
//! Bytes from strangers are parsed by dedicated libraries; everything kept has a limit.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use genops_ebpf_common::{AddressKey, Contact, Dns, TieKey, contact};
use simple_dns::{Packet, rdata::RData};

use super::{
    names::Names,
    questions::Questions,
    ties::{Caller, Ties},
};
use crate::kernel::{Providers, holds::address_of};

/// Most `ClientHello`s in pieces at a time.
const PARTS_LIMIT: usize = 1_024;
/// Most bytes of a `ClientHello`: the size of a TLS record (RFC 8446 §5.1).
const HELLO_LIMIT: usize = 16_384 + 5;
/// Most remembered addresses; past the limit, all are learnt again.
const ADDRESSES_LIMIT: usize = 65_536;
/// Port of providers, unless the configuration says otherwise.
const HTTPS: u16 = 443;

/// A provider reached by a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) server_name: Option<String>,
    /// Number of the provider.
    pub(super) provider: u32,
}

/// Result of reading a `ClientHello`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// The `ClientHello` names a provider.
    Provider(Reached),
    /// The `ClientHello` names another server, or none; or the bytes are no `ClientHello`.
    Other(Option<String>),
    /// More bytes have to come.
    Part,
}

/// State learnt so far.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    /// By socket cookie.
    parts: HashMap<u64, Vec<u8>>,
    addresses: HashMap<IpAddr, Address>,
    questions: Questions,
    ties: Ties,
    names: Names,
}

/// The provider of the names resolving to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Address {
    provider: u32,
    port: u16,
    /// Another provider has the same address: a shared front end proves nothing.
    shared: bool,
}

impl Contacts {
    /// Takes the bytes of a contact.
    pub(super) fn hello(
        &mut self,
        providers: &Providers,
        contact: &Contact,
        bytes: &[u8],
    ) -> Hello {
        let whole = contact.what == contact::HELLO;
        let name = if whole {
            server_name(bytes)
        } else {
            if self.parts.len() >= PARTS_LIMIT && !self.parts.contains_key(&contact.cookie) {
                self.parts.clear();
            }
            let so_far = self.parts.entry(contact.cookie).or_default();
            so_far.extend_from_slice(bytes);
            let name = server_name(so_far);
            match name {
                Read::Part if so_far.len() < HELLO_LIMIT => return Hello::Part,
                _ => self.parts.remove(&contact.cookie),
            };
            name
        };
        let server_name = if let Read::Name(name) = name { Some(name) } else { None };
        let by_name = server_name.as_deref().map_or(0, |name| providers.of_host(name).0);
        // The kernel program has compared the name already.
        match if whole { contact.provider } else { by_name } {
            0 => Hello::Other(server_name),
            provider => Hello::Provider(Reached { server_name, provider }),
        }
    }

    /// Takes a DNS message: a question of a socket of this host, or the answer. Returns the
    /// addresses of a provider from now on (with the provider's number), and the addresses no
    /// longer of a single provider (0). An answer counts only if the question was seen, and only
    /// gives addresses to providers.
    pub(super) fn name_server(
        &mut self,
        providers: &Providers,
        dns: &Dns,
        message: &[u8],
    ) -> Vec<(AddressKey, u32)> {
        let Ok(packet) = Packet::parse(message) else { return Vec::new() };
        let Some(asked) = packet.questions.first().map(|it| it.qname.to_string()) else {
            return Vec::new();
        };
        let (provider, port) = providers.of_host(&asked);
        if provider == 0 && !self.names.are_kept() {
            return Vec::new();
        }
        let server = address_of(dns.ip_version, dns.server, 0).ip();
        let (key, mut news) = ((dns.cookie, packet.id()), Vec::new());
        if dns.answers == 0 {
            self.questions.ask(key, server, &asked);
            return news;
        }
        if !self.questions.is_answered(key, server, &asked) {
            return news;
        }
        for record in &packet.answers {
            let ip: IpAddr = match &record.rdata {
                RData::A(it) => std::net::Ipv4Addr::from(it.address).into(),
                RData::AAAA(it) => std::net::Ipv6Addr::from(it.address).into(),
                _ => continue,
            };
            self.names.confirm(ip, &asked);
            news.extend(self.learn(ip, provider, port.unwrap_or(HTTPS)));
        }
        news
    }

    /// Sets whether the names in questions are remembered, for [`Self::is_confirmed`].
    pub(super) fn keep_names(&mut self, keep: bool) {
        self.names.keep(keep);
    }

    /// Whether a name server or the hosts file has confirmed the address for the server name.
    pub(super) fn is_confirmed(&mut self, name: &str, ip: IpAddr) -> bool {
        self.names.is_confirmed(name, ip)
    }

    /// Ties an address to a provider for a caller, by the server name sent by the caller. The name
    /// is the caller's own claim: it counts for no other caller, and not against the answers of
    /// name servers.
    pub(super) fn tie(
        &mut self,
        caller: Caller,
        address: SocketAddr,
        provider: u32,
    ) -> Vec<(TieKey, u32)> {
        if provider == 0 || self.addresses.contains_key(&address.ip().to_canonical()) {
            return Vec::new();
        }
        self.ties.tie(caller, address_key(address), provider)
    }

    /// Takes over a tie told to an earlier agent.
    pub(super) fn adopt_tie(&mut self, key: &TieKey, provider: u32) -> Vec<(TieKey, u32)> {
        let TieKey { address, port, reserved, uid, group } = *key;
        self.ties.tie((uid, group), AddressKey { address, port, reserved }, provider)
    }

    /// Replaces the claims of callers by the answers of name servers for an address.
    pub(super) fn untie(&mut self, address: AddressKey) -> Vec<(TieKey, u32)> {
        self.ties.forget(address)
    }

    /// Assigns an address to a provider; returns the resulting change.
    pub(super) fn learn(
        &mut self,
        ip: IpAddr,
        provider: u32,
        port: u16,
    ) -> Option<(AddressKey, u32)> {
        let known = self.addresses.get(&ip).copied();
        if provider == 0 {
            // An address also used by others stays the provider's: no answer lifts a refusal.
            return None;
        }
        if self.addresses.len() >= ADDRESSES_LIMIT {
            self.addresses.clear();
        }
        let before = known.unwrap_or_default();
        let shared = before.shared || known.is_some_and(|it| it.provider != provider);
        let now = Address { provider: before.provider.max(provider), port, shared };
        self.addresses.insert(ip, now);
        let number = if shared { 0 } else { provider };
        let told = if before.shared { 0 } else { before.provider };
        (number != told).then(|| (address_key(SocketAddr::new(ip, port)), number))
    }
}

/// An address in the form compared by the kernel programs.
fn address_key(address: SocketAddr) -> AddressKey {
    let mut bytes = [0; 16];
    match address.ip().to_canonical() {
        IpAddr::V4(it) => {
            for (to, from) in bytes.iter_mut().zip(it.octets()) {
                *to = from;
            }
        }
        IpAddr::V6(it) => bytes = it.octets(),
    }
    AddressKey { address: bytes, port: address.port(), reserved: 0 }
}

/// Result of parsing a `ClientHello`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Read {
    Name(String),
    Nameless,
    Part,
}

/// The server name in the first TLS records of a client.
fn server_name(bytes: &[u8]) -> Read {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) | Err(_) => return Read::Nameless,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let name = hello.server_name().map(str::to_owned);
                return name.map_or(Read::Nameless, Read::Name);
            }
            Err(_) => return Read::Nameless,
        }
    }
    Read::Part
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use genops_protocols::Hosts;
    use simple_dns::{
        CLASS, Name, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
        rdata::{A, AAAA},
    };

    use super::*;

    /// The first bytes sent by a rustls client.
    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory");
        bytes
    }

    fn providers() -> Providers {
        Providers::new(&Hosts::builtin())
    }

    fn part(provider: u32, what: u32) -> Contact {
        Contact {
            kind: genops_ebpf_common::kind::CONTACT,
            what,
            at_mono_ns: 0,
            cookie: 7,
            unreported: 0,
            local: [0; 16],
            remote: [0; 16],
            local_port: 0,
            remote_port: 443,
            ip_version: 4,
            tgid: 0,
            provider,
            held: 0,
            captured_len: 0,
        }
    }

    #[test]
    fn a_name_is_read_wherever_the_hello_is_cut() {
        let hello = client_hello("api.openai.com");
        let providers = providers();
        let openai = providers.number("openai");
        for cut in 1..hello.len() {
            let (first, second) = hello.split_at(cut);
            let mut contacts = Contacts::default();
            let contact = part(0, contact::HELLO_PART);
            assert_eq!(contacts.hello(&providers, &contact, first), Hello::Part, "{cut}");
            let Hello::Provider(reached) = contacts.hello(&providers, &contact, second) else {
                panic!("cut at {cut}");
            };
            assert_eq!(reached.server_name.as_deref(), Some("api.openai.com"));
            assert_eq!(reached.provider, openai);
            assert!(contacts.parts.is_empty());
        }
    }

    #[test]
    fn somebody_elses_name_and_what_is_no_hello_are_passed_over() {
        let providers = providers();
        let mut contacts = Contacts::default();
        let contact = part(0, contact::HELLO_PART);
        let other = client_hello("files.example.test");
        let name = Some("files.example.test".to_owned());
        assert_eq!(contacts.hello(&providers, &contact, &other), Hello::Other(name));
        for junk in [&[22, 3, 1, 0, 5, 9, 9, 9, 9, 9][..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64]] {
            assert_eq!(contacts.hello(&providers, &contact, junk), Hello::Other(None), "{junk:?}");
        }
    }

    const RESOLVER: [u8; 4] = [192, 0, 2, 53];

    /// Contacts of a host with one name server.
    fn contacts() -> Contacts {
        let questions = Questions::with(vec![RESOLVER.into()]);
        Contacts { questions, ..Contacts::default() }
    }

    fn dns(answers: u32) -> Dns {
        let mut server = [0; 16];
        server.iter_mut().zip(RESOLVER).for_each(|(to, from)| *to = from);
        let kind = genops_ebpf_common::kind::DNS;
        Dns { kind, captured_len: 0, cookie: 7, server, ip_version: 4, answers }
    }

    /// Asks and answers a question of a socket; returns the changes.
    fn learnt(
        contacts: &mut Contacts,
        providers: &Providers,
        name: &str,
        ips: &[IpAddr],
    ) -> Vec<(AddressKey, u32)> {
        let message = answer(name, ips);
        assert!(contacts.name_server(providers, &dns(0), &message).is_empty());
        contacts.name_server(providers, &dns(1), &message)
    }

    fn answer(name: &str, ips: &[IpAddr]) -> Vec<u8> {
        let mut packet = Packet::new_reply(1);
        packet.set_flags(PacketFlag::RESPONSE);
        let name = Name::new(name).expect("a name");
        packet.questions.push(Question::new(
            name.clone(),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        for ip in ips {
            let data = match *ip {
                IpAddr::V4(it) => RData::A(A { address: it.into() }),
                IpAddr::V6(it) => RData::AAAA(AAAA { address: it.into() }),
            };
            packet.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 60, data));
        }
        packet.build_bytes_vec_compressed().expect("it fits")
    }

    #[test]
    fn an_address_is_a_providers_until_it_is_anothers_too() {
        let providers = providers();
        let mut contacts = contacts();
        let (ours, theirs): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().expect("v4"), "2001:db8::1".parse().expect("v6"));
        let key = |ip| address_key(SocketAddr::new(ip, 443));
        let openai = providers.number("openai");
        let told = learnt(&mut contacts, &providers, "api.openai.com", &[ours, theirs]);
        assert_eq!(told, [(key(ours), openai), (key(theirs), openai)]);
        assert!(learnt(&mut contacts, &providers, "api.openai.com", &[ours]).is_empty());
        let told = learnt(&mut contacts, &providers, "api.anthropic.com", &[ours]);
        assert_eq!(told, [(key(ours), 0)]);
    }

    #[test]
    fn a_strangers_name_for_a_providers_address_lifts_nothing() {
        let providers = providers();
        let mut contacts = contacts();
        let ours: IpAddr = "192.0.2.9".parse().expect("v4");
        assert_eq!(learnt(&mut contacts, &providers, "api.openai.com", &[ours]).len(), 1);
        for name in ["cdn.example.test", "openai.com.example.test"] {
            assert!(learnt(&mut contacts, &providers, name, &[ours]).is_empty(), "{name}");
        }
        assert!(!contacts.addresses.get(&ours).expect("known").shared);
    }

    #[test]
    fn what_nobody_asked_is_not_believed() {
        let providers = providers();
        let ip: IpAddr = "198.51.100.4".parse().expect("v4");
        let message = answer("api.openai.com", &[ip]);
        let asked = |question: &Dns, questioned: &[u8], answered: &Dns| {
            let mut contacts = contacts();
            assert!(contacts.name_server(&providers, question, questioned).is_empty());
            contacts.name_server(&providers, answered, &message).len()
        };
        assert_eq!(asked(&dns(0), &message, &dns(1)), 1);
        assert_eq!(contacts().name_server(&providers, &dns(1), &message), []);
        let socket = Dns { cookie: 8, ..dns(1) };
        assert_eq!(asked(&dns(0), &message, &socket), 0, "another socket's");
        let mut server = dns(1);
        server.server = [10; 16];
        assert_eq!(asked(&dns(0), &message, &server), 0, "another server's");
        let both = Dns { answers: 0, ..server };
        assert_eq!(asked(&both, &message, &server), 0, "of a server that is not the host's");
        let other = answer("api.anthropic.com", &[ip]);
        assert_eq!(asked(&dns(0), &other, &dns(1)), 0, "to another question");
        let mut number = message.clone();
        number.iter_mut().take(2).for_each(|it| *it = 9);
        assert_eq!(asked(&dns(0), &number, &dns(1)), 0, "with another number");
    }

    #[test]
    fn an_answer_cut_anywhere_or_of_junk_is_no_harm() {
        let providers = providers();
        let whole = answer("api.openai.com", &["192.0.2.1".parse().expect("v4")]);
        for end in 0..whole.len() {
            let cut = whole.get(..end).unwrap_or_default();
            let mut contacts = contacts();
            let _nothing = contacts.name_server(&providers, &dns(0), cut);
            let _nothing = contacts.name_server(&providers, &dns(1), cut);
        }
    }
}
