//! The kernel part: loads the programs, attaches them, and hands out their maps.
//!
//! Split by who works with it: [`Probes`] (discovery attaches files), [`Maps`] (the events thread
//! writes verdicts), and the ring buffer.

pub(crate) mod attach;
pub(crate) mod features;
pub(crate) mod holds;
pub(crate) mod sockets;

use std::{fs::File, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, RawTracePoint, UProbe},
};
use genops_ebpf_common::{
    Conn, ConnKey, NAME_LEN, NameKey, NameRule, Settings, loss, process_mode,
};
use genops_protocols::{API_PATH_SUFFIXES, HostPattern, Hosts};

pub(crate) use attach::Probes;
pub(crate) use holds::Holds;

/// The compiled kernel programs; empty where the build skipped them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/genops-ebpf"));

/// Whether the build compiled the kernel programs in.
pub(crate) fn is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// What is attached besides the probes in files.
const TRACEPOINTS: [(&str, &str); 2] =
    [("process_exec", "sched_process_exec"), ("process_exit", "sched_process_exit")];

/// How the programs are to be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Size of the ring buffer: a power of two, at least a page.
    pub(crate) ring_bytes: u32,
    /// Attach programs that do nothing: the floor of the benchmarks.
    pub(crate) floor: bool,
}

/// Everything that was loaded.
pub(crate) struct Kernel {
    pub(crate) probes: Probes,
    pub(crate) maps: Maps,
    pub(crate) ring: RingBuf<MapData>,
    /// Whether a request can be held: the egress program is attached.
    pub(crate) can_hold: bool,
    /// Why it is not.
    pub(crate) cannot_hold: Option<String>,
}

impl Kernel {
    /// Loads the programs and attaches those that are not in files. Settings are in force, and the
    /// names of providers known to the programs, before the first of them runs.
    pub(crate) fn load(options: Options, settings: Settings, hosts: &Hosts) -> Result<Self> {
        if !is_built_in() {
            bail!(
                "this agent was built without its kernel programs; build it with `cargo xtask build`"
            );
        }
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes)
            .load(OBJECT)
            .context("the kernel refused the programs or maps")?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.set_settings(settings)?;
        maps.set_hosts(hosts)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?;
        for program in attach::UPROBES {
            uprobe(&mut ebpf, program)?.load().with_context(|| format!("program `{program}`"))?;
        }
        if !options.floor {
            for (program, tracepoint) in TRACEPOINTS {
                attach_tracepoint(&mut ebpf, program, tracepoint)?;
            }
        }
        let held = attach_egress(&mut ebpf);
        Ok(Self {
            probes: Probes::new(ebpf, options.floor),
            maps,
            ring,
            can_hold: held.is_ok(),
            cannot_hold: held.err().map(|error| format!("{error:#}")),
        })
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

fn attach_tracepoint(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> Result<()> {
    let it: &mut RawTracePoint = ebpf
        .program_mut(program)
        .with_context(|| format!("the kernel object has no program `{program}`"))?
        .try_into()?;
    it.load().with_context(|| format!("program `{program}`"))?;
    it.attach(tracepoint).with_context(|| format!("raw tracepoint `{tracepoint}`"))?;
    Ok(())
}

/// Attaches the egress program to the root of the v2 hierarchy, beside whatever is there.
fn attach_egress(ebpf: &mut Ebpf) -> Result<()> {
    let root = cgroup2_root().context("no cgroup v2 hierarchy is mounted")?;
    let directory = File::open(&root).with_context(|| format!("{}", root.display()))?;
    let program: &mut CgroupSkb = ebpf
        .program_mut("egress_hold")
        .context("the kernel object has no program `egress_hold`")?
        .try_into()?;
    program.load().context("program `egress_hold`")?;
    // `Single` is no flag; a link is beside others in any case, and refuses the flag that says so
    // (`kernel/bpf/cgroup.c`, `cgroup_bpf_link_attach`).
    program
        .attach(directory, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
        .with_context(|| format!("cgroup {}", root.display()))?;
    Ok(())
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in the hybrid layout.
pub(crate) fn cgroup2_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// The maps that the events thread reads and writes.
pub(crate) struct Maps {
    pub(crate) holds: Holds,
    settings: Array<MapData, Settings>,
    conns: HashMap<MapData, ConnKey, Conn>,
    cookies: HashMap<MapData, u64, u64>,
    processes: HashMap<MapData, u32, u32>,
    losses: PerCpuArray<MapData, u64>,
    hosts: LpmTrie<MapData, NameKey, NameRule>,
    paths: LpmTrie<MapData, NameKey, NameRule>,
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            holds: Holds::from_maps([
                hash_map(ebpf, "HOLDS")?,
                hash_map(ebpf, "SOCKETS")?,
                hash_map(ebpf, "VERDICTS")?,
            ])?,
            settings: take(ebpf, "SETTINGS")?.try_into()?,
            conns: take(ebpf, "CONNS")?.try_into()?,
            cookies: take(ebpf, "COOKIES")?.try_into()?,
            processes: take(ebpf, "PROCESSES")?.try_into()?,
            losses: take(ebpf, "LOSSES")?.try_into()?,
            hosts: take(ebpf, "HOSTS")?.try_into()?,
            paths: take(ebpf, "PATHS")?.try_into()?,
        })
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        Ok(self.settings.set(0, settings, 0)?)
    }

    /// Tells the programs which names are AI providers'.
    pub(crate) fn set_hosts(&mut self, hosts: &Hosts) -> Result<()> {
        for pattern in hosts.host_patterns() {
            let HostPattern { suffix, prefix, port, provider: _ } = pattern;
            // The programs compare names, not ports: every service of this host would be held. What is
            // an AI API on a local port is known by its path.
            if port.is_some() && is_this_host(suffix) {
                continue;
            }
            let key = name_key(suffix, !suffix.starts_with(['.', '-']));
            self.hosts.insert(&key, name_rule(prefix), 0).with_context(|| suffix.to_owned())?;
        }
        for suffix in API_PATH_SUFFIXES {
            self.paths
                .insert(&name_key(suffix, false), name_rule(""), 0)
                .with_context(|| (*suffix).to_owned())?;
        }
        Ok(())
    }

    /// Removes every trace of a connection that has ended.
    pub(crate) fn forget(&mut self, conn: u64, cookie: Option<u64>) {
        self.holds.forget(conn);
        if let Some(cookie) = cookie {
            // What is not there needs no removal.
            let _absent = self.cookies.remove(&cookie);
        }
    }

    /// Removes a TLS object that its process did not free.
    pub(crate) fn forget_tls_object(&mut self, key: &ConnKey) {
        let _absent = self.conns.remove(key);
    }

    /// Tells the programs whether the requests of a process are held.
    pub(crate) fn set_process(&mut self, tgid: u32, enforce: bool) -> Result<()> {
        let mode = if enforce { process_mode::ENFORCE } else { process_mode::OBSERVE };
        Ok(self.processes.insert(tgid, mode, 0)?)
    }

    pub(crate) fn forget_process(&mut self, tgid: u32) {
        let _absent = self.processes.remove(&tgid);
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

/// Names of the host itself.
fn is_this_host(name: &str) -> bool {
    name == "localhost"
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A name reversed; `whole` rules end with the NUL that stands before a name's first character.
fn name_key(name: &str, whole: bool) -> Key<NameKey> {
    let mut data = [0; NAME_LEN];
    let len = name.len().min(NAME_LEN);
    for (to, from) in data.iter_mut().zip(name.bytes().rev()) {
        *to = from.to_ascii_lowercase();
    }
    let compared = if whole { (len + 1).min(NAME_LEN) } else { len };
    Key::new(u32::try_from(compared * 8).unwrap_or(0), data)
}

fn name_rule(prefix: &str) -> NameRule {
    let mut rule = NameRule { prefix: [0; 28], prefix_len: 0 };
    for (to, from) in rule.prefix.iter_mut().zip(prefix.bytes()) {
        *to = from;
        rule.prefix_len += 1;
    }
    rule
}
