//! The guard: a second process that enforces the hold deadline if the agent can't.
//!
//! The kernel program drops and passes packets, but only TCP's own timer makes a socket try again,
//! and no part of the kernel destroys a socket. So if the agent is killed or frozen while requests
//! are held, another process must push or destroy the held sockets in time. The guard holds
//! duplicates of the maps and of the egress program's link, so that the hold outlives the agent for
//! as long as needed: until the last deadline, and no longer.
//!
//! The agent sends a heartbeat through a pipe, four times per deadline. Silence for half a deadline
//! means a frozen agent; the end of the pipe, a dead agent.

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

/// Heartbeats of the agent per deadline.
const BEATS: u32 = 4;
/// Divisor of the deadline: longer silence means a frozen agent.
const SILENCE: u32 = 2;
/// Checks per deadline once the agent is frozen or dead; bounds the lateness of the guard.
const STEPS: u32 = 32;

/// Arguments of the guard; the subcommand is hidden from users.
#[derive(Debug, clap::Args)]
pub(crate) struct Guard {
    /// Process id of the agent.
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
    /// Descriptor, in the agent, of the pin directory of the run: the programs outlive the agent
    /// while the directory exists.
    #[arg(long)]
    run: Option<RawFd>,
}

impl Guard {
    /// Guards until the agent has ended and no request waits any more.
    pub(crate) fn run(self) -> Result<()> {
        let Self { agent, maps, link, deadline_ms, closed, run } = self;
        genops_ebpf_common::close_inherited();
        // Own session and deaf to the signals that end the agent: the guard must survive the agent.
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
        // The link is not used; while the copy is open, the program stays attached.
        let _link = link.map(copy).transpose()?;
        // A descriptor stays valid after a rename.
        let run = run.map(copy).transpose()?;
        watch(&mut holds, Duration::from_millis(deadline_ms), closed, run.as_ref())
    }
}

/// Reads the pipe, and acts after silence or the end.
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

/// Acts after the agent's end. Without `run`, no more requests are held, and the guard stays until
/// none waits. With `run`, the programs outlive the agent, and the guard stays until another agent
/// has taken over the programs, until they are removed, or until they are void. With timeouts
/// closed, bytes written after the agent's end are not waited for: no agent will decide on them.
fn outlive(
    holds: &mut Holds,
    sockets: &mut Sockets,
    deadline: Duration,
    closed: bool,
    run: Option<&OwnedFd>,
) {
    if run.is_some() {
        // If the write fails, later requests end at their deadline.
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
        // Requests denied but not ended by the agent would leave when the programs go.
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

/// Tells whether a directory has not been removed.
fn is_there(directory: &OwnedFd) -> bool {
    fstat(directory).is_ok_and(|it| it.st_nlink > 0)
}

/// Tells whether input came, or the other end is gone, within `patience`.
fn wait(pipe: &std::io::Stdin, patience: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(patience).context("a deadline of years")?;
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Interval of the agent's heartbeats, given the deadline.
pub(crate) fn beat_interval(deadline: Duration) -> Duration {
    deadline / BEATS
}

/// The agent's end of the guard.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    pipe: ChildStdin,
    /// The guard outlives the agent, as the programs do.
    stays: bool,
}

impl Guarded {
    /// Starts the guard. `run`: the programs outlive the agent while the directory of the
    /// descriptor exists.
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

    /// Sends a heartbeat. False once the guard has ended.
    pub(crate) fn beat(&mut self) -> bool {
        match self.pipe.write_all(&[0]) {
            Ok(()) => true,
            // Full: the guard is frozen, or slower than the agent; alive in any case.
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Kills a guard replaced by another guard, or with nothing left to guard. The kill comes
    /// first, because the guard takes a closed pipe for the agent's end.
    pub(crate) fn dismiss(self) {
        let Self { mut child, pipe, stays: _ } = self;
        // The pipe is open until then. An already ended guard is fine.
        let _ended = child.kill();
        let _status = child.wait();
        drop(pipe);
    }

    /// Closes the pipe, and waits for the guard unless the guard outlives the agent.
    pub(crate) fn finish(self) {
        let Self { mut child, pipe, stays } = self;
        drop(pipe);
        if stays {
            return;
        }
        // An error means no process to wait for.
        let _status = child.wait();
    }
}

/// Finds the descriptor of the agent's link between the egress program and its cgroup: aya offers
/// no access.
fn cgroup_link() -> Option<RawFd> {
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?.flatten();
    entries
        .filter(|entry| {
            fs::read_to_string(entry.path())
                .is_ok_and(|text| text.lines().any(|line| line == "link_type:\tcgroup"))
        })
        .find_map(|entry| entry.file_name().to_str()?.parse().ok())
}
