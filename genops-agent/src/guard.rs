//! A second process that applies the deadline when the agent can't.
//!
//! The kernel program drops and passes packets by itself, but only TCP's own timer makes it look again,
//! and nothing in the kernel destroys a socket. So when the agent is killed or frozen while requests
//! are held, somebody must push or destroy those sockets in time. The guard holds duplicates of the
//! maps and of the egress program's link, so that the hold outlives the agent for as long as it is
//! needed: until the last deadline, and no longer.
//!
//! It hears from the agent through a pipe, four times a deadline. Silence for half a deadline means
//! frozen; its end, dead.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    clock,
    kernel::{Holds, holds::MAPS, sockets::Sockets},
};

/// The agent speaks so many times a deadline.
const BEATS: u32 = 4;
/// Part of a deadline after which silence means that the agent is frozen.
const SILENCE: u32 = 2;
/// Looks a deadline, once the agent is frozen or dead: how late the guard may be.
const STEPS: u32 = 32;

/// How the guard is started; hidden from users.
#[derive(Debug, clap::Args)]
pub(crate) struct Guard {
    /// The agent.
    #[arg(long)]
    agent: i32,
    /// Descriptors of the maps in the agent.
    #[arg(long, value_delimiter = ',')]
    maps: Vec<RawFd>,
    /// Descriptor of the egress program's link in the agent.
    #[arg(long)]
    link: Option<RawFd>,
    #[arg(long)]
    deadline_ms: u64,
    #[arg(long)]
    closed: bool,
    /// Descriptor, in the agent, of the directory as long as which the programs outlive it.
    #[arg(long)]
    run: Option<RawFd>,
}

impl Guard {
    /// Guards until the agent has ended and nothing waits any more.
    pub(crate) fn run(self) -> Result<()> {
        let Self { agent, maps, link, deadline_ms, closed, run } = self;
        genops_ebpf_common::close_inherited();
        // Own session and deaf to the signals that end the agent: its end is what we are here for.
        let _leader_already = rustix::process::setsid();
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, std::sync::Arc::default())?;
        }
        let agent = Pid::from_raw(agent).context("--agent: not a process")?;
        let process = pidfd_open(agent, PidfdFlags::empty()).context("the agent is gone")?;
        let copy = |number| -> Result<OwnedFd> {
            pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
                .with_context(|| format!("descriptor {number} of the agent"))
        };
        let maps = maps.iter().map(|&number| copy(number)).collect::<Result<Vec<_>>>()?;
        let maps = <[OwnedFd; MAPS]>::try_from(maps).ok().context("--maps: not all of them")?;
        let mut holds = Holds::from_descriptors(maps)?;
        // Nothing is done with the link; while this copy is open, the program stays attached.
        let _link = link.map(copy).transpose()?;
        // Whatever becomes of its name.
        let run = run.map(copy).transpose()?;
        watch(&mut holds, Duration::from_millis(deadline_ms), closed, run.as_ref())
    }
}

/// Reads the pipe, and acts when it falls silent or ends.
fn watch(holds: &mut Holds, deadline: Duration, closed: bool, run: Option<&OwnedFd>) -> Result<()> {
    let mut pipe = std::io::stdin();
    let mut sockets = Sockets::default();
    let mut beats = [0; 64];
    let deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
    let mut patience = deadline / SILENCE;
    loop {
        let heard = wait(&pipe, patience)?;
        if heard && matches!(pipe.read(&mut beats), Ok(0) | Err(_)) {
            outlive(holds, &mut sockets, deadline, closed, run);
            return Ok(());
        }
        if heard {
            patience = deadline / SILENCE;
        } else {
            patience = deadline / STEPS;
            holds.expire(&mut sockets, clock::mono_ns(), deadline_ns, closed);
        }
    }
}

/// The agent has ended: no more requests are held, and the guard stays until none waits; where the programs outlive the
/// agent, until another one has taken them over, somebody has ended them, or they are void. What was written after
/// that end, where timeouts are closed, is not waited for: nobody will decide it.
fn outlive(
    holds: &mut Holds,
    sockets: &mut Sockets,
    deadline: Duration,
    closed: bool,
    run: Option<&OwnedFd>,
) {
    if run.is_some() {
        // Where it can't be written, what comes ends at its deadline.
        let _unwritten = holds.leave();
    }
    let deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
    let step = (deadline / STEPS).max(Duration::from_millis(1));
    while run.is_some_and(is_there) && !holds.is_void(clock::mono_ns()) {
        let at_once = holds.end_denied(sockets);
        let late = holds.expire(sockets, clock::mono_ns(), deadline_ns, closed);
        if late.is_empty() && !at_once {
            std::thread::sleep(step);
        }
    }
    if run.is_none() {
        // Written, unless the map is gone: then nothing is held either.
        let _gone = holds.hold_no_more();
    }
    let end = clock::mono_ns().saturating_add(deadline_ns.saturating_mul(4));
    while clock::mono_ns() < end {
        // What the agent has denied and not ended yet would leave when the programs go.
        let at_once = holds.end_denied(sockets);
        if !holds.any_waiting() {
            return;
        }
        let late = holds.expire(sockets, clock::mono_ns(), deadline_ns, closed);
        if late.is_empty() && !at_once {
            std::thread::sleep(step);
        }
    }
}

/// Whether a directory has not been removed.
fn is_there(directory: &OwnedFd) -> bool {
    fstat(directory).is_ok_and(|it| it.st_nlink > 0)
}

/// Whether something came, or the other end is gone, within `patience`.
fn wait(pipe: &std::io::Stdin, patience: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(patience).context("a deadline of years")?;
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// How long the agent may be silent, given the deadline.
pub(crate) fn beat_interval(deadline: Duration) -> Duration {
    deadline / BEATS
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    pipe: ChildStdin,
    /// It outlives the agent, as the programs do.
    stays: bool,
}

impl Guarded {
    /// Starts the guard. `run`: the programs outlive the agent as long as the directory of this descriptor is there.
    pub(crate) fn start(
        holds: &Holds,
        deadline: Duration,
        closed: bool,
        run: Option<RawFd>,
    ) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("genops-agent")
            .arg("guard")
            .args(["--agent", &std::process::id().to_string()])
            .args(["--maps", &holds.descriptors().map(|it| it.to_string()).join(",")])
            .args(["--deadline-ms", &deadline.as_millis().to_string()]);
        if closed {
            command.arg("--closed");
        }
        if let Some(run) = run {
            command.args(["--run", &run.to_string()]);
        }
        if let Some(link) = cgroup_link() {
            command.args(["--link", &link.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("the guard process could not be started")?;
        let pipe = child.stdin.take().context("the guard has no pipe")?;
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self { child, pipe, stays: run.is_some() })
    }

    /// Says that the agent is at work. False once the guard has ended.
    pub(crate) fn beat(&mut self) -> bool {
        match self.pipe.write_all(&[0]) {
            Ok(()) => true,
            // Full: it is frozen, or slower than we are; alive in any case.
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Ends a guard whose place another one has taken, or that has nothing to guard any more. At once: what it would
    /// do by itself is meant for the agent's end.
    pub(crate) fn dismiss(self) {
        let Self { mut child, pipe, stays: _ } = self;
        // Its pipe is open until then. Ended already is as good.
        let _ended = child.kill();
        let _status = child.wait();
        drop(pipe);
    }

    /// Says that the agent ends, and waits for the guard.
    pub(crate) fn finish(self) {
        let Self { mut child, pipe, stays } = self;
        drop(pipe);
        if stays {
            return;
        }
        // It has ended, or never will be waited for: both are the end.
        let _status = child.wait();
    }
}

/// The descriptor of our link between the egress program and its cgroup: aya does not say.
fn cgroup_link() -> Option<RawFd> {
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?.flatten();
    entries
        .filter(|entry| {
            fs::read_to_string(entry.path())
                .is_ok_and(|text| text.lines().any(|line| line == "link_type:\tcgroup"))
        })
        .find_map(|entry| entry.file_name().to_str()?.parse().ok())
}
