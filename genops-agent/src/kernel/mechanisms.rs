//! The mechanisms for stopping a call, strictest first. Each is tried at the start; a mechanism
//! refused by the kernel is absent, with the reason.
//!
//! The mechanisms work together: the hold keeps a request back until the decision, the hook at
//! `sendmsg` makes the send call of a denied connection fail at once, and the hooks at `connect`
//! keep a process without any access to a provider from reaching the provider.

use std::fs::File;

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Lsm, ProgramError,
        cgroup_skb::CgroupSkbAttachType,
    },
};
use genops_governance::Mechanism;

use super::{OBJECT, Pins, cgroup2_root, features::is_lsm_active};

/// Size of a ring buffer without a reader.
const SMALL_RING_BYTES: u32 = 1 << 16;

/// Attaches the programs of one mechanism.
trait Attach {
    /// The name in telemetry.
    const MECHANISM: Mechanism;

    /// Loads and attaches the programs, all or none; with `pins`, the programs outlive the agent.
    fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<()>;
}

/// The mechanisms of this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mechanisms {
    available: Vec<Mechanism>,
    missing: Vec<(Mechanism, String)>,
}

impl Mechanisms {
    /// Attaches every mechanism of the kernel.
    pub(super) fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Self {
        let mut mechanisms = Self::default();
        mechanisms.add::<EgressHold>(ebpf, pins);
        mechanisms.add::<SendHook>(ebpf, pins);
        mechanisms.add::<ConnectHooks>(ebpf, pins);
        mechanisms
    }

    fn add<M: Attach>(&mut self, ebpf: &mut Ebpf, pins: Option<&Pins>) {
        match M::attach(ebpf, pins) {
            Ok(()) => self.available.push(M::MECHANISM),
            Err(error) => self.missing.push((M::MECHANISM, brief(&error))),
        }
    }

    /// Whether a mechanism works here.
    pub(crate) fn has(&self, mechanism: Mechanism) -> bool {
        self.available.contains(&mechanism)
    }

    /// The reason for a missing mechanism.
    pub(crate) fn why_not(&self, mechanism: Mechanism) -> Option<&str> {
        self.missing.iter().find(|(it, _)| *it == mechanism).map(|(_, why)| why.as_str())
    }

    /// Each tried mechanism, with `works` or the reason for the failure.
    pub(crate) fn detail(&self) -> Vec<(&'static str, String)> {
        let works = self.available.iter().map(|it| (it.as_str(), "works".to_owned()));
        let missing = self.missing.iter().map(|(it, why)| (it.as_str(), why.clone()));
        works.chain(missing).collect()
    }

    /// The working mechanisms, strictest first, as text: `lsm,egress_hold,connect`.
    pub(crate) fn names(&self) -> String {
        let order = [Mechanism::Lsm, Mechanism::EgressHold, Mechanism::Connect];
        let names: Vec<_> =
            order.into_iter().filter(|it| self.has(*it)).map(Mechanism::as_str).collect();
        if names.is_empty() { Mechanism::None.as_str().to_owned() } else { names.join(",") }
    }
}

/// Packets of a request wait in TCP's queue (`cgroup_skb/egress`).
struct EgressHold;

impl Attach for EgressHold {
    const MECHANISM: Mechanism = Mechanism::EgressHold;

    fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<()> {
        packets(ebpf, "egress_hold", CgroupSkbAttachType::Egress, pins)
    }
}

/// The send call of a denied connection fails (`security_socket_sendmsg`).
struct SendHook;

impl SendHook {
    /// Loads the program; refused by a kernel without all helpers used by the program.
    fn load(ebpf: &mut Ebpf) -> Result<&mut Lsm> {
        let btf = Btf::from_sys_fs().context("/sys/kernel/btf/vmlinux")?;
        let program: &mut Lsm = program(ebpf, "deny_sendmsg")?;
        program.load("socket_sendmsg", &btf).context("program `deny_sendmsg`")?;
        Ok(program)
    }
}

/// Tests whether the send call of a denied connection can fail here: loads the program, attaches
/// nothing.
///
/// # Errors
///
/// If the send call can't be made to fail, with the reason.
pub(crate) fn try_send_hook() -> Result<(), String> {
    let attempt = || {
        ensure_lsm_is_active()?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("EVENTS", SMALL_RING_BYTES);
        let mut ebpf = loader.load(OBJECT).context("the kernel refused the programs or maps")?;
        SendHook::load(&mut ebpf).map(drop)
    };
    attempt().map_err(|error| brief(&error))
}

/// One line, without the output of the verifier.
fn brief(error: &anyhow::Error) -> String {
    let why = format!("{error:#}");
    why.split(" Verifier output").next().unwrap_or_default().to_owned()
}

fn ensure_lsm_is_active() -> Result<()> {
    anyhow::ensure!(
        is_lsm_active(),
        "`bpf` is not among the active security modules (boot parameter `lsm=`)"
    );
    Ok(())
}

impl Attach for SendHook {
    const MECHANISM: Mechanism = Mechanism::Lsm;

    fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<()> {
        ensure_lsm_is_active()?;
        let program = Self::load(ebpf)?;
        let link = program.attach()?;
        if let Some(pins) = pins {
            pins.keep(program.take_link(link)?.into(), "deny_sendmsg")?;
        }
        Ok(())
    }
}

/// A process without any access to a provider is refused the connection (`cgroup/connect4`,
/// `connect6`, `sendmsg4`, `sendmsg6`), also by UDP.
struct ConnectHooks;

impl ConnectHooks {
    const PROGRAMS: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];
}

impl Attach for ConnectHooks {
    const MECHANISM: Mechanism = Mechanism::Connect;

    fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<()> {
        let root = root()?;
        for name in Self::PROGRAMS {
            let it: &mut CgroupSockAddr = program(ebpf, name)?;
            it.load().with_context(|| format!("program `{name}`"))?;
            let link = it.attach(root.try_clone()?, CgroupAttachMode::Single)?;
            if let Some(pins) = pins {
                pins.keep(it.take_link(link)?.try_into()?, name)?;
            }
        }
        let release: &mut CgroupSock = program(ebpf, "socket_release")?;
        release.load().context("program `socket_release`")?;
        let link = release.attach(root, CgroupAttachMode::Single)?;
        if let Some(pins) = pins {
            pins.keep(release.take_link(link)?.try_into()?, "socket_release")?;
        }
        packets(ebpf, "ingress_dns", CgroupSkbAttachType::Ingress, pins)
    }
}

/// Attaches a program to the packets of every socket.
fn packets(
    ebpf: &mut Ebpf,
    name: &str,
    direction: CgroupSkbAttachType,
    pins: Option<&Pins>,
) -> Result<()> {
    let root = root()?;
    let it: &mut CgroupSkb = program(ebpf, name)?;
    it.load().with_context(|| format!("program `{name}`"))?;
    // `Single` is no flag; a link shares the place with others in any case, and the kernel refuses
    // the flag for sharing (`kernel/bpf/cgroup.c`, `cgroup_bpf_link_attach`).
    let link = it.attach(root, direction, CgroupAttachMode::Single)?;
    if let Some(pins) = pins {
        pins.keep(it.take_link(link)?.try_into()?, name)?;
    }
    Ok(())
}

fn root() -> Result<File> {
    let root = cgroup2_root().context("no cgroup v2 hierarchy is mounted")?;
    File::open(&root).with_context(|| format!("{}", root.display()))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the kernel object has no program `{name}`"))?;
    Ok(program.try_into()?)
}
