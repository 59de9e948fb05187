//! The kernel part: loads and attaches the programs, and hands out the maps.
//!
//! The parts are split by user: [`Probes`] (discovery attaches files), [`Maps`] (the events thread
//! writes verdicts), and the ring buffer.

pub(crate) mod attach;
pub(crate) mod features;
pub(crate) mod holds;
mod layout;
pub(crate) mod mechanisms;
pub(crate) mod pins;
pub(crate) mod place;
pub(crate) mod providers;
pub(crate) mod sockets;
mod usage;

use std::{collections::HashSet, net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::{RawTracePoint, UProbe},
};
use genops_ebpf_common::{
    AddressKey, Conn, ConnKey, DeniedKey, FloodKey, Lineage, NAME_LEN, NameKey, NameRule, Refusals,
    Settings, Sock, TieKey, loss, process_mode,
};
use genops_governance::ProcessKey;
use genops_protocols::{API_PATH_SUFFIXES, HostPattern};

pub(crate) use attach::Probes;
pub(crate) use holds::{Holds, Left};
pub(crate) use mechanisms::Mechanisms;
pub(crate) use pins::{Kept, Pins};
pub(crate) use providers::Providers;
use usage::Usages;

/// The compiled kernel programs; empty if the build skipped them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/genops-ebpf"));

/// Whether the build compiled the kernel programs in.
pub(crate) fn is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// Programs attached besides the probes in files, and their tracepoints.
const TRACEPOINTS: [(&str, &str); 2] =
    [("process_exec", "sched_process_exec"), ("process_exit", "sched_process_exit")];

/// Program that passes the lineage from a process to its children, and its tracepoint.
const FORK: (&str, &str) = ("process_fork", "sched_process_fork");

/// Options for loading the programs.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Place of the programs and maps that outlive the agent.
    pub(crate) pins: Option<Arc<Pins>>,
    /// Size of the ring buffer, in bytes: a power of two, at least a page.
    pub(crate) ring_bytes: u32,
    /// Attach programs without any work: the floor of the benchmarks.
    pub(crate) floor: bool,
    /// The agent decides from here on, and may remove the programs of earlier agents.
    pub(crate) governs: bool,
}

/// The loaded programs and maps.
pub(crate) struct Kernel {
    pub(crate) probes: Probes,
    pub(crate) maps: Maps,
    pub(crate) ring: RingBuf<MapData>,
    /// Mechanisms able to stop calls on the host, and the reasons against the others.
    pub(crate) mechanisms: Mechanisms,
    /// Reason for a missing lineage of processes.
    pub(crate) no_lineage: Option<String>,
}

/// Tells whether the lineage of processes can be tracked on the running kernel.
///
/// # Errors
///
/// The reason, if not.
pub(crate) fn try_lineage() -> Result<(), String> {
    layout::of_this_kernel().map(drop).map_err(|error| format!("{error:#}"))
}

impl Kernel {
    /// Loads the programs and attaches those outside files. Settings and provider names are in the
    /// maps before the first program runs.
    pub(crate) fn load(
        options: Options,
        settings: Settings,
        providers: &Providers,
    ) -> Result<Self> {
        if !is_built_in() {
            bail!(
                "this agent was built without its kernel programs; build it with `cargo xtask build`"
            );
        }
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("EVENTS", options.ring_bytes);
        let cookies = u32::from(attach::has_cookies());
        loader.override_global("COOKIES", &cookies, true);
        // Process IDs repeat in containers.
        let run = u32::try_from(crate::clock::mono_ns() / 1_000_000 % u64::from(u32::MAX))
            .unwrap_or(0)
            + 1;
        loader.override_global("RUN", &run, true);
        let layout = layout::of_this_kernel();
        if let Ok(layout) = &layout {
            loader.override_global("TASK", layout, true);
        }
        let (pins, floor) = (options.pins.clone(), options.floor);
        for (name, path) in pins.iter().flat_map(|it| it.maps()) {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).context("the kernel refused the programs or maps")?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.set_settings(settings)?;
        maps.set_hosts(providers)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?;
        for program in attach::UPROBES {
            uprobe(&mut ebpf, program)?.load().with_context(|| format!("program `{program}`"))?;
        }
        if !floor {
            for (program, tracepoint) in TRACEPOINTS {
                attach_tracepoint(&mut ebpf, program, tracepoint, pins.as_deref())?;
            }
        }
        let (program, tracepoint) = FORK;
        let lineage = match layout {
            Ok(_) if !floor => attach_tracepoint(&mut ebpf, program, tracepoint, pins.as_deref()),
            found => found.map(drop),
        };
        let no_lineage = lineage.err().map(|error| format!("{error:#}"));
        let mechanisms = Mechanisms::attach(&mut ebpf, pins.as_deref());
        maps.holds.count_by(run)?;
        Ok(Self { probes: Probes::new(ebpf, options), maps, ring, mechanisms, no_lineage })
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).with_context(|| format!("the kernel object has no map `{name}`"))
}

fn hash_map(ebpf: &mut Ebpf, name: &str) -> Result<MapData> {
    match take(ebpf, name)? {
        Map::HashMap(data) => Ok(data),
        _ => bail!("map `{name}` of the kernel object is not a hash"),
    }
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the kernel object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    program: &str,
    tracepoint: &str,
    pins: Option<&Pins>,
) -> Result<()> {
    let it: &mut RawTracePoint = ebpf
        .program_mut(program)
        .with_context(|| format!("the kernel object has no program `{program}`"))?
        .try_into()?;
    it.load().with_context(|| format!("program `{program}`"))?;
    let link = it.attach(tracepoint).with_context(|| format!("raw tracepoint `{tracepoint}`"))?;
    if let Some(pins) = pins {
        pins.keep(it.take_link(link)?.into(), program)?;
    }
    Ok(())
}

/// Mount point of cgroup v2: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in the hybrid layout.
pub(crate) fn cgroup2_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// Maps read and written by the events thread.
pub(crate) struct Maps {
    pub(crate) holds: Holds,
    conns: HashMap<MapData, ConnKey, Conn>,
    socks: HashMap<MapData, u64, Sock>,
    addresses: HashMap<MapData, AddressKey, u32>,
    ties: HashMap<MapData, TieKey, u32>,
    denied: HashMap<MapData, DeniedKey, u64>,
    flooding: HashMap<MapData, FloodKey, u64>,
    refusals: HashMap<MapData, DeniedKey, Refusals>,
    counted: HashMap<MapData, DeniedKey, u64>,
    names: HashMap<MapData, u64, NameKey>,
    others: HashMap<MapData, ConnKey, u32>,
    processes: HashMap<MapData, u32, u32>,
    lineages: HashMap<MapData, u32, Lineage>,
    losses: PerCpuArray<MapData, u64>,
    hosts: LpmTrie<MapData, NameKey, NameRule>,
    paths: LpmTrie<MapData, NameKey, NameRule>,
    usages: Usages,
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let Map::Array(settings) = take(ebpf, "SETTINGS")? else {
            bail!("map `SETTINGS` of the kernel object is not an array")
        };
        Ok(Self {
            holds: Holds::from_maps([
                hash_map(ebpf, "HOLDS")?,
                hash_map(ebpf, "SOCKETS")?,
                hash_map(ebpf, "VERDICTS")?,
                settings,
            ])?,
            conns: take(ebpf, "CONNS")?.try_into()?,
            socks: take(ebpf, "SOCKS")?.try_into()?,
            addresses: take(ebpf, "ADDRESSES")?.try_into()?,
            ties: take(ebpf, "TIES")?.try_into()?,
            denied: take(ebpf, "DENIED")?.try_into()?,
            flooding: take(ebpf, "FLOODING")?.try_into()?,
            refusals: take(ebpf, "REFUSALS")?.try_into()?,
            counted: take(ebpf, "COUNTED")?.try_into()?,
            names: take(ebpf, "NAMES")?.try_into()?,
            others: take(ebpf, "OTHERS")?.try_into()?,
            processes: take(ebpf, "PROCESSES")?.try_into()?,
            lineages: take(ebpf, "LINEAGES")?.try_into()?,
            losses: take(ebpf, "LOSSES")?.try_into()?,
            hosts: take(ebpf, "HOSTS")?.try_into()?,
            paths: take(ebpf, "PATHS")?.try_into()?,
            usages: Usages::from_maps([hash_map(ebpf, "USAGE")?, hash_map(ebpf, "USERS")?])?,
        })
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        Ok(self.holds.configure(settings)?)
    }

    /// Marks an address as a provider's (by number), or (0) as no single provider's.
    pub(crate) fn set_address(&mut self, address: &AddressKey, provider: u32) {
        // If the map is full, the provider is recognised later.
        let _full = match provider {
            0 => self.addresses.remove(address),
            provider => self.addresses.insert(address, provider, 0),
        };
    }

    /// Addresses of providers learnt by an earlier agent.
    pub(crate) fn addresses(&self) -> Vec<(AddressKey, u32)> {
        self.addresses.iter().flatten().collect()
    }

    /// Ties an address to a provider (by number) for a user in a cgroup, or (0) removes the tie.
    pub(crate) fn set_tie(&mut self, key: &TieKey, provider: u32) {
        // If the map is full, the provider is recognised later.
        let _full = match provider {
            0 => self.ties.remove(key),
            provider => self.ties.insert(key, provider, 0),
        };
    }

    /// Ties recorded by an earlier agent: addresses called by users as a provider's.
    pub(crate) fn ties(&self) -> Vec<(TieKey, u32)> {
        self.ties.iter().flatten().collect()
    }

    /// Denies a process all calls to a provider until a time of `CLOCK_MONOTONIC`, in nanoseconds;
    /// `None`: no longer.
    pub(crate) fn set_denied(&mut self, key: DeniedKey, until_mono_ns: Option<u64>) {
        // If the map is full, each request is decided separately.
        let _full = match until_mono_ns {
            Some(until) => self.denied.insert(key, until, 0),
            None => self.denied.remove(&key),
        };
    }

    /// Refuses connects of a user to a provider until a time of `CLOCK_MONOTONIC`, in nanoseconds;
    /// `None`: no longer.
    pub(crate) fn set_flooding(&mut self, key: &FloodKey, until_mono_ns: Option<u64>) {
        // If the map is full, each request is decided separately.
        let _full = match until_mono_ns {
            Some(until) => self.flooding.insert(key, until, 0),
            None => self.flooding.remove(key),
        };
    }

    /// Refused connections of processes, by provider.
    pub(crate) fn refusals(&self) -> Vec<(DeniedKey, Refusals)> {
        self.refusals.iter().flatten().collect()
    }

    /// Refused connections of a process to a provider.
    pub(crate) fn refusals_at(&self, key: DeniedKey) -> Option<Refusals> {
        self.refusals.get(&key, 0).ok()
    }

    /// Refusals without a record of their own counted by an earlier agent.
    pub(crate) fn counted(&self) -> Vec<(DeniedKey, u64)> {
        self.counted.iter().flatten().collect()
    }

    /// Remembers for a later agent how many refusals without a record of their own were counted.
    pub(crate) fn set_counted(&mut self, key: DeniedKey, unreported: u64) {
        // If the map is full, a later agent counts the refusals again.
        let _full = self.counted.insert(key, unreported, 0);
    }

    /// Removes the refusals of an ended process.
    pub(crate) fn forget_refusals(&mut self, key: DeniedKey) {
        let _absent = self.refusals.remove(&key);
        let _absent = self.counted.remove(&key);
    }

    /// Registers a socket, only now known to go to a provider, as a separate connection.
    pub(crate) fn set_socket(&mut self, cookie: u64, tgid: u32) {
        let sock = Sock { conn: cookie, tgid, ..Sock::default() };
        let _full = self.socks.insert(cookie, sock, 0);
    }

    /// Returns how far a connection's bytes have left, from the state of the socket. Bytes up to
    /// `released_to` were allowed to leave.
    pub(crate) fn what_left(&self, conn: u64, cookie: u64, released_to: u64) -> Left {
        let sock = self.socks.get(&cookie, 0).ok();
        let hold = self.holds.hold(conn);
        holds::left_of(conn, cookie, sock.as_ref(), hold.as_ref(), released_to)
    }

    /// Removes a socket that goes to no provider.
    pub(crate) fn forget_socket(&mut self, cookie: u64) {
        let _absent = self.socks.remove(&cookie);
    }

    /// Writes the names of AI providers for the programs.
    pub(crate) fn set_hosts(&mut self, providers: &Providers) -> Result<()> {
        let mut known = HashSet::new();
        for (HostPattern { suffix, prefix, port, provider: _ }, number) in providers.hosts() {
            // The programs compare names, not ports: a rule would hold every service of the host.
            // An AI API on a local port is recognised by path.
            if port.is_some() && is_this_host(suffix) {
                continue;
            }
            let key = name_key(suffix, !suffix.starts_with(['.', '-']));
            let rule = name_rule(prefix, number);
            self.hosts.insert(&key, rule, 0).with_context(|| suffix.to_owned())?;
            known.insert((key.prefix_len(), key.data()));
        }
        // Remove names of an earlier configuration or an earlier agent.
        let keys: Vec<Key<NameKey>> = self.hosts.keys().flatten().collect();
        for key in keys.iter().filter(|it| !known.contains(&(it.prefix_len(), it.data()))) {
            let _gone = self.hosts.remove(key);
        }
        for suffix in API_PATH_SUFFIXES {
            self.paths
                .insert(&name_key(suffix, false), name_rule("", 0), 0)
                .with_context(|| (*suffix).to_owned())?;
        }
        Ok(())
    }

    /// Marks a TLS object as speaking HTTP/2 with no AI provider.
    pub(crate) fn set_other(&mut self, key: &ConnKey) {
        let _full = self.others.insert(*key, 1, 0);
        self.forget_tls_object(key);
    }

    /// TLS objects known before the start of the agent.
    pub(crate) fn tls_objects(&self) -> Vec<(ConnKey, Conn)> {
        self.conns.iter().flatten().collect()
    }

    /// Position after the last byte taken by a TLS object's library; `None` if the object is gone.
    pub(crate) fn taken_to(&self, key: &ConnKey) -> Option<u64> {
        self.conns.get(key, 0).ok().map(|it| it.egress_offset)
    }

    /// Server name of a connection, if the program gave a name.
    pub(crate) fn server_name(&self, conn: u64) -> Option<String> {
        let name = self.names.get(&conn, 0).ok()?;
        let name = name.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(name).ok().filter(|it| !it.is_empty()).map(str::to_owned)
    }

    /// Denials written by an earlier agent: process, provider and end. Removes the denials of ended
    /// processes.
    pub(crate) fn denials(&mut self) -> Vec<(DeniedKey, u64)> {
        let found: Vec<(DeniedKey, u64)> = self.denied.iter().flatten().collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(key, _)| self.processes.get(&key.tgid, 0).is_ok());
        for (key, _) in gone {
            self.set_denied(key, None);
        }
        kept
    }

    /// Removes a TLS object not freed by its process.
    pub(crate) fn forget_tls_object(&mut self, key: &ConnKey) {
        let _absent = self.conns.remove(key);
    }

    /// Recounts the usage of the shared maps by processes and users.
    pub(crate) fn count_anew(&mut self) {
        let objects = self.tls_objects();
        let sockets = self.socks.iter().flatten().map(|(_, sock)| sock);
        for key in self.usages.set(&objects, sockets) {
            self.forget_tls_object(&key);
        }
    }

    /// Tells the programs whether to hold the requests of a process.
    pub(crate) fn set_process(&mut self, tgid: u32, enforce: bool) -> Result<()> {
        let mode = if enforce { process_mode::ENFORCE } else { process_mode::OBSERVE };
        Ok(self.processes.insert(tgid, mode, 0)?)
    }

    pub(crate) fn forget_process(&mut self, tgid: u32) {
        let _absent = self.processes.remove(&tgid);
    }

    /// Lineages of processes, by process id.
    pub(crate) fn lineages(&self) -> Vec<(u32, Lineage)> {
        self.lineages.iter().flatten().collect()
    }

    /// Lineage of a process.
    pub(crate) fn lineage(&self, process: ProcessKey) -> Option<Lineage> {
        let found = self.lineages.get(&process.pid, 0).ok()?;
        (found.start_ns == process.start_ns).then_some(found)
    }

    /// Writes the lineage of a process, unless a younger process has taken the process id.
    pub(crate) fn set_lineage(&mut self, tgid: u32, lineage: Lineage) -> Result<()> {
        match self.lineages.get(&tgid, 0) {
            Ok(found) if found.start_ns > lineage.start_ns || found == lineage => Ok(()),
            _ => Ok(self.lineages.insert(tgid, lineage, 0)?),
        }
    }

    /// Removes the lineage of a process: its children belong to no principal.
    pub(crate) fn forget_lineage(&mut self, process: ProcessKey) {
        if self.lineage(process).is_some() {
            let _ended = self.lineages.remove(&process.pid);
        }
    }

    /// Losses by cause, summed over CPUs, in the order of [`loss`].
    pub(crate) fn losses(&self) -> [u64; loss::COUNT as usize] {
        let mut sums = [0; loss::COUNT as usize];
        for (cause, sum) in (0..).zip(&mut sums) {
            if let Ok(values) = self.losses.get(&cause, 0) {
                *sum = values.iter().sum();
            }
        }
        sums
    }
}

/// Tells whether a name means the host itself.
fn is_this_host(name: &str) -> bool {
    name == "localhost"
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Reverses a name; the key of a `whole` rule includes the NUL in front of a name's first
/// character.
fn name_key(name: &str, whole: bool) -> Key<NameKey> {
    let mut data = [0; NAME_LEN];
    let len = name.len().min(NAME_LEN);
    for (to, from) in data.iter_mut().zip(name.bytes().rev()) {
        *to = from.to_ascii_lowercase();
    }
    let compared = if whole { (len + 1).min(NAME_LEN) } else { len };
    Key::new(u32::try_from(compared * 8).unwrap_or(0), data)
}

fn name_rule(prefix: &str, provider: u32) -> NameRule {
    let mut rule = NameRule { prefix: [0; 28], prefix_len: 0, provider };
    for (to, from) in rule.prefix.iter_mut().zip(prefix.bytes()) {
        *to = from;
        rule.prefix_len += 1;
    }
    rule
}
