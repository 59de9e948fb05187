//! `doctor`: capabilities of the kernel and the host, and the running programs that `run` would
//! capture.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Result;
use genops_governance::Mechanism;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::{
    cli::Format,
    config::{Config, OnFailure, PinDirectory},
    discovery::{mapped_runtimes, pids, reach},
    foreign::Foreign,
    identity::Identities,
    kernel::{
        self, Kept,
        features::Features,
        mechanisms::try_send_hook,
        pins::{is_used, place_for},
        place::{Touch, USUAL},
    },
    run::absence::{ends, outlook},
    runtimes::detect,
    space,
};

/// A capability used by the agent.
#[derive(Debug, Serialize)]
struct Capability {
    name: &'static str,
    available: bool,
    /// Reason for the absence, or the purpose.
    note: String,
}

/// A running program that the agent would capture.
#[derive(Debug, Serialize)]
struct Program {
    pid: u32,
    comm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    runtime: String,
    library: String,
    /// `genops.capture.level` of the program's calls.
    level: &'static str,
    method: &'static str,
}

#[derive(Debug, Serialize)]
struct Findings {
    kernel: String,
    mechanisms: Vec<Capability>,
    /// Best mechanism for a denial on the host.
    best_mechanism: &'static str,
    /// Enforcement while no agent of the configuration runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    absence: Option<String>,
    /// Kernel programs left by agents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_behind: Vec<String>,
    /// Warning about little room for evidence, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<String>,
    programs: Vec<Program>,
    not_captured: BTreeMap<String, String>,
}

/// Prints the findings. False if the host can't capture, or can't enforce though `config` does.
pub(crate) fn run(config: &Config, output: Format) -> Result<bool> {
    let findings = examine(config);
    let captures = findings.has("uprobes") && findings.has("kernel programs");
    let fit = captures && (!config.enforces() || findings.best_mechanism != "none");
    let mut out = io::stdout().lock();
    match output {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&findings)?)?,
        Format::Text => print(&findings, &mut out)?,
    }
    Ok(fit)
}

impl Findings {
    fn has(&self, name: &str) -> bool {
        self.mechanisms.iter().any(|it| it.name == name && it.available)
    }
}

fn examine(config: &Config) -> Findings {
    let mechanisms = mechanisms();
    let has = |name: &str| mechanisms.iter().any(|it| it.name == name && it.available);
    let holds = has("egress hold");
    let (programs, not_captured) = programs();
    let name = rustix::system::uname();
    Findings {
        kernel: name.release().to_string_lossy().into_owned(),
        best_mechanism: best_mechanism(holds, has("send hook")),
        mechanisms,
        absence: absence(config),
        left_behind: left_behind(config),
        evidence: scarcity(config, space::free_percent(&config.evidence.directory)),
        programs,
        not_captured,
    }
}

/// Describes the enforcement while no agent of the configuration runs.
fn absence(config: &Config) -> Option<String> {
    if !config.enforces() {
        return None;
    }
    Some(match place_for(&config.pin_directory, true, Touch::Look) {
        Ok(Kept::In(directory)) => outlook(config, &directory.display().to_string()),
        Ok(Kept::NotWanted) => ends("`pin_directory` is `none`"),
        Ok(Kept::Nowhere(why)) => ends(&why),
        Err(error) => format!("an agent of this configuration does not start: {error:#}"),
    })
}

/// Describes the consequences of little room for evidence.
fn scarcity(config: &Config, free_percent: Option<u64>) -> Option<String> {
    let free = free_percent.filter(|it| *it < space::LITTLE_PERCENT)?;
    let directory = config.evidence.directory.display();
    let then = match config.evidence.on_failure {
        OnFailure::Block => "held requests are refused",
        OnFailure::Continue => "requests go on without a record",
    };
    Some(format!(
        "{directory}: {free} % of its file system are free; under {} % refusals of whoever writes most are counted and not written one by one, and when it is full {then} (`evidence.max_bytes` and `evidence.retention_days` bound it)",
        space::SCARCE_PERCENT
    ))
}

/// Lists places with kernel programs left by agents.
fn left_behind(config: &Config) -> Vec<String> {
    let mut places: Vec<PathBuf> = USUAL.map(PathBuf::from).into();
    if let PinDirectory::Path(path) = &config.pin_directory {
        places.push(path.clone());
    }
    let used = places.iter().filter(|it| is_used(it));
    used.map(|it| format!("{}: kernel programs of an agent; if none is to run any more, `genops-agent unpin` ends them", it.display())).collect()
}

/// Returns the strictest mechanism for a denial. The send hook needs the hold: without a hold, no
/// decision comes in time.
fn best_mechanism(holds: bool, fails_sends: bool) -> &'static str {
    let mechanism = match (holds, fails_sends) {
        (true, true) => Mechanism::Lsm,
        (true, false) => Mechanism::EgressHold,
        (false, _) => Mechanism::None,
    };
    mechanism.as_str()
}

fn mechanisms() -> Vec<Capability> {
    let send_hook = try_send_hook();
    let lineage = kernel::try_lineage();
    let features = Features::probe();
    let missing = missing_capabilities();
    let because = |available: bool, needed: &str, why_not: &str| {
        if available {
            needed.to_owned()
        } else if missing.is_empty() {
            why_not.to_owned()
        } else {
            format!("{why_not}; missing capabilities: {}", missing.join(", "))
        }
    };
    let mechanism = |name, available, needed: &str, why_not: &str| Capability {
        name,
        available,
        note: because(available, needed, why_not),
    };
    let root = kernel::cgroup2_root();
    vec![
        mechanism(
            "kernel programs",
            kernel::is_built_in(),
            "compiled into this agent",
            "this agent was built without them: build it with `cargo xtask build`",
        ),
        mechanism(
            "capabilities",
            missing.is_empty(),
            "BPF, PERFMON, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, DAC_READ_SEARCH",
            "run it as root, or with the capabilities that deploy/ lists",
        ),
        mechanism(
            "uprobes",
            features.uprobes,
            "reads plaintext at the TLS library",
            "the kernel refuses programs at user-space functions",
        ),
        mechanism(
            "cgroup v2",
            root.is_some(),
            "sees the packets of every socket",
            "no cgroup v2 hierarchy is mounted",
        ),
        mechanism(
            "egress hold",
            features.cgroup_skb && root.is_some(),
            "holds a request until it is decided",
            "the kernel refuses programs at the packets of a cgroup",
        ),
        mechanism(
            "connect hook",
            features.cgroup_sock_addr && root.is_some(),
            "refuses connections to a provider that is closed to a process",
            "the kernel refuses programs at the sockets of a cgroup",
        ),
        mechanism(
            "send hook",
            send_hook.is_ok(),
            "fails the send call of a denied connection at once (lsm)",
            &send_hook.err().map_or_else(String::new, |why| {
                format!("a denied connection is only reset: {why}")
            }),
        ),
        mechanism(
            "lineage",
            lineage.is_ok(),
            "what a process starts acts for it, whichever of those between have ended",
            &lineage.err().map_or_else(String::new, |why| {
                format!("what a process starts acts for it only as long as its parent lives: {why}")
            }),
        ),
    ]
}

/// Lists capabilities needed by `run` and missing in the process.
fn missing_capabilities() -> Vec<&'static str> {
    let needed = [
        ("BPF", CapabilitySet::BPF),
        ("PERFMON", CapabilitySet::PERFMON),
        ("NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("SYS_PTRACE", CapabilitySet::SYS_PTRACE),
        // Kernels since 2025 require SYS_ADMIN for uprobes again, beside PERFMON.
        ("SYS_ADMIN", CapabilitySet::SYS_ADMIN),
        ("DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH),
    ];
    let effective = rustix::thread::capabilities(None)
        .map_or_else(|_| CapabilitySet::empty(), |sets| sets.effective);
    needed.iter().filter(|(_, it)| !effective.contains(*it)).map(|(name, _)| *name).collect()
}

/// Lists running programs with a supported TLS library, and files named like a TLS library but
/// unusable.
fn programs() -> (Vec<Program>, BTreeMap<String, String>) {
    let identities = Identities::new();
    let mut programs = Vec::new();
    let mut refused = BTreeMap::new();
    // A file is read once, for any number of processes.
    let mut looked_at = HashMap::new();
    for pid in pids() {
        for mapped in mapped_runtimes(pid) {
            let library = mapped.path.display().to_string();
            let Some(reached) = reach(pid, &mapped) else { continue };
            let known = looked_at.entry(mapped.file).or_insert_with(|| {
                let found = detect(mapped.role, &mapped.path, &reached);
                found.map(|found| found.runtimes.join(", ")).map_err(|error| error.to_string())
            });
            let runtime = match known {
                Ok(runtimes) if runtimes.is_empty() => continue,
                Ok(runtimes) => runtimes.clone(),
                Err(error) => {
                    refused.insert(library, error.clone());
                    continue;
                }
            };
            let Some(facts) = identities.of(pid) else { continue };
            programs.push(Program {
                pid,
                comm: facts.comm,
                executable: facts.exe,
                runtime,
                library,
                level: "full",
                method: "uprobes at entry and RET",
            });
        }
    }
    (programs, refused)
}

fn print(findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    let Findings {
        kernel,
        mechanisms,
        best_mechanism,
        absence,
        left_behind,
        evidence,
        programs,
        not_captured,
    } = findings;
    writeln!(out, "Linux {kernel}")?;
    for Capability { name, available, note } in mechanisms {
        let answer = if *available { "yes" } else { "NO " };
        writeln!(out, "  {answer}  {name:<24} {note}")?;
    }
    match *best_mechanism {
        "none" => {
            writeln!(out, "Requests can be observed, not held: enforce mode has no effect here.")?;
        }
        mechanism => {
            writeln!(
                out,
                "Requests can be held and denied before a byte leaves (mechanism: {mechanism})."
            )?;
        }
    }
    for said in absence.iter().chain(left_behind).chain(evidence) {
        writeln!(out, "{said}")?;
    }
    if programs.is_empty() {
        writeln!(
            out,
            "No running program maps a TLS library that is known; programs that start later are captured."
        )?;
    } else {
        writeln!(out, "Running programs that are captured:")?;
    }
    for Program { pid, comm, executable, runtime, library, level, method } in programs {
        let executable = Foreign(executable.as_deref().unwrap_or("?"));
        let (comm, library) = (Foreign(comm).to_string(), Foreign(library));
        writeln!(
            out,
            "  {pid:>8}  {comm:<16} {runtime:<8} {level:<6} {method}  {executable}  ({library})"
        )?;
    }
    for (library, why) in not_captured {
        writeln!(out, "Not captured: {}: {}", Foreign(library), Foreign(why))?;
    }
    Ok(())
}
