//! Inspection of untrusted files, in a separate process.
//!
//! Parsing an untrusted file may need any amount of memory, and a file system may take any time to
//! deliver the content. So a separate process inspects files, with a memory limit, a question at a
//! time. The process may wait for [`PATIENCE`]; time on a processor, or in the run queue, is the
//! host's and not the file's. A process waiting longer is killed, and the agent does not wait for
//! its end. Files of the user whose program named the file are then skipped for [`PENALTY`].

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use genops_ebpf_common::Frame;
use genops_governance::User;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

use super::{Mapped, reach};
use crate::{
    aside::LeftBehind,
    identity::user_of,
    kernel::attach::{FileId, program_named},
    runtimes::{Detected, ProbePoint, Role, detect},
};

/// Most address space of the inspecting process, in bytes.
const MEMORY: u64 = 256 << 20;
/// Longest wait (not running) during the inspection of a file.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest time for a file, running or waiting.
const LONGEST: Duration = Duration::from_mins(1);
/// Interval between checks of the process's state.
const STEP: Duration = Duration::from_millis(20);
/// Time without inspections of a user's files after a slow file.
const PENALTY: Duration = Duration::from_mins(1);
/// Longest answer, in bytes: probe points of a file.
const ANSWER_LIMIT: usize = 1 << 20;

/// Result of inspecting a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Probe points, and the path used to reach the file; no points if the file has no TLS library.
    Points(PathBuf, Vec<ProbePoint>),
    /// The file no longer exists.
    Gone,
    /// Not now: a file of the same user took too long a while ago.
    Later,
    /// The inspection took too long, or too much memory.
    Endless(String),
    /// Capture is impossible, with the reason.
    Unusable(String),
}

/// A question to the inspecting process.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// The process mapping the file; `None` for a file of the host's standard directories.
    pid: Option<u32>,
    executable: bool,
    device: u64,
    inode: u64,
    path: String,
}

/// An answer of the inspecting process.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Points { path: String, points: Vec<Point> },
    Gone,
    Unusable(String),
}

/// A [`ProbePoint`].
#[derive(Debug, Serialize, Deserialize)]
struct Point {
    program: String,
    file_offset: u64,
    cheaper: Option<(u64, u64)>,
}

/// The agent's end of the inspecting process.
#[derive(Debug, Default)]
pub(super) struct Inspector {
    running: Option<Running>,
    left: LeftBehind,
    /// Users with slow files, each in a place, and the end of their penalty.
    slow: HashMap<User, Instant>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: ChildStdout,
}

impl Inspector {
    /// Inspects a file mapped by `pid`, or a file of the host's standard directories.
    pub(super) fn look(&mut self, pid: Option<u32>, mapped: &Mapped) -> Found {
        let user = pid.and_then(user_of);
        self.slow.retain(|_, until| Instant::now() < *until);
        if user.as_ref().is_some_and(|it| self.slow.contains_key(it)) {
            return Found::Later;
        }
        let question = Question {
            pid,
            executable: mapped.role == Role::Executable,
            device: mapped.file.device,
            inode: mapped.file.inode,
            path: mapped.path.to_string_lossy().into_owned(),
        };
        match self.ask(&question) {
            Ok(answer) => found(answer),
            Err(error) => {
                if let Some(Running { child, .. }) = self.running.take() {
                    self.left.leave(child);
                }
                if let Some(user) = user {
                    self.slow.insert(user, Instant::now() + PENALTY);
                }
                Found::Endless(format!("could not be looked into: {error}"))
            }
        }
    }

    fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(Running::start()?),
        };
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        running.questions.write_all(&line)?;
        Ok(serde_json::from_slice(&running.line()?)?)
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("genops-agent")
            .arg("inspect")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (questions, answers) = pipes.ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Self { child, questions, answers })
    }

    /// Reads the next line, if in time.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let begun = Instant::now();
        let (mut looked, mut waited) = (begun, Duration::ZERO);
        let mut line = Vec::new();
        let mut piece = vec![0; 16 << 10];
        let step = Timespec::try_from(STEP).map_err(io::Error::other)?;
        while line.last() != Some(&b'\n') {
            let mut fds = [PollFd::new(&self.answers, PollFlags::IN)];
            match poll(&mut fds, Some(&step)) {
                Ok(0) => {
                    let since = std::mem::replace(&mut looked, Instant::now());
                    if !self.runs() {
                        waited += looked.saturating_duration_since(since);
                    }
                    if waited > PATIENCE || begun.elapsed() > LONGEST {
                        return Err(io::Error::other("it takes too long to read"));
                    }
                    continue;
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let count = self.answers.read(&mut piece)?;
            line.extend_from_slice(piece.get(..count).unwrap_or_default());
            if count == 0 || line.len() > ANSWER_LIMIT {
                return Err(io::Error::other("it took too much memory, or was not understood"));
            }
        }
        Ok(line)
    }

    /// Whether the process runs, or waits for a processor (`proc_pid_stat(5)`: the state follows
    /// the name).
    fn runs(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let state = stat.ok().and_then(|it| it.rsplit_once(") ").map(|(_, rest)| rest.to_owned()));
        state.is_some_and(|it| it.starts_with('R'))
    }
}

fn found(answer: Answer) -> Found {
    match answer {
        Answer::Points { path, points } => {
            let points = points.into_iter().map(|it| {
                let Point { program, file_offset, cheaper } = it;
                let cheaper = cheaper.map(|(offset, frame)| (offset, Frame(frame)));
                Some(ProbePoint { program: program_named(&program)?, file_offset, cheaper })
            });
            match points.collect() {
                Some(points) => Found::Points(PathBuf::from(path), points),
                None => Found::Unusable("wants a program that does not exist".to_owned()),
            }
        }
        Answer::Gone => Found::Gone,
        Answer::Unusable(why) => Found::Unusable(why),
    }
}

/// Arguments of the inspecting process; started by the agent.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {}

impl Inspect {
    /// Answers questions on the standard input until end of file.
    pub(crate) fn run(self) -> Result<()> {
        let Self {} = self;
        genops_ebpf_common::close_inherited();
        let most = getrlimit(Resource::As).maximum.map_or(MEMORY, |it| it.min(MEMORY));
        setrlimit(Resource::As, Rlimit { current: Some(most), maximum: Some(most) })?;
        let mut out = io::stdout().lock();
        for line in io::stdin().lock().lines() {
            let answer = answer(&serde_json::from_str(&line?)?);
            serde_json::to_writer(&mut out, &answer)?;
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }
}

fn answer(question: &Question) -> Answer {
    let Question { pid, executable, device, inode, ref path } = *question;
    let role = if executable { Role::Executable } else { Role::Library };
    let file = FileId { device, inode };
    let mapped = Mapped { role, file, path: PathBuf::from(path) };
    let reached = match pid {
        Some(pid) => reach(pid, &mapped),
        None => Some(mapped.path.clone()),
    };
    let Some(reached) = reached else { return Answer::Gone };
    match detect(role, Path::new(path), &reached) {
        Ok(Detected { points, .. }) => {
            let point = |it: ProbePoint| Point {
                program: it.program.to_owned(),
                file_offset: it.file_offset,
                cheaper: it.cheaper.map(|(offset, frame)| (offset, frame.0)),
            };
            let path = reached.to_string_lossy().into_owned();
            Answer::Points { path, points: points.into_iter().map(point).collect() }
        }
        Err(_) if !reached.exists() => Answer::Gone,
        Err(error) => Answer::Unusable(error.to_string()),
    }
}
