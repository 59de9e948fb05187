//! Looking into files that strangers have made: in a process of its own.
//!
//! What a file says of itself may need any amount of memory, and a file system may take any time to give it. So another
//! process looks, which may have so much memory and takes one question at a time. It may wait for so long; the time that it
//! runs, or waits for a processor, is the host's and not the file's. One that waits for longer is killed, and nobody
//! waits for its end. The user whose program named the file then waits for a while.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use genops_ebpf_common::Frame;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

use super::{Mapped, reach};
use crate::{
    aside::LeftBehind,
    kernel::attach::{FileId, program_named},
    runtimes::{ProbePoint, Role, runtime_of},
};

/// Most memory of the process that looks, as addresses, in bytes.
const MEMORY: u64 = 256 << 20;
/// How long it may wait while it looks into one file.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it may take, whatever for.
const LONGEST: Duration = Duration::from_mins(1);
/// How often it is looked whether it waits.
const STEP: Duration = Duration::from_millis(20);
/// How long a user's files are not looked into after one that took longer.
const PENALTY: Duration = Duration::from_mins(1);
/// Longest answer, in bytes: places of probes in one file.
const ANSWER_LIMIT: usize = 1 << 20;

/// What was found in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Places for probes, and how the file is reached; none where it has no TLS library.
    Points(PathBuf, Vec<ProbePoint>),
    /// It is no longer there.
    Gone,
    /// Not now: a file of the same user took too long a while ago.
    Later,
    /// It took too long, or too much.
    Endless(String),
    /// It can't be captured, because.
    Unusable(String),
}

/// A question.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// The process that names the file; none for one of the host's own.
    pid: Option<u32>,
    executable: bool,
    device: u64,
    inode: u64,
    path: String,
}

/// Its answer.
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

/// The process that looks, at the agent's end.
#[derive(Debug, Default)]
pub(super) struct Inspector {
    running: Option<Running>,
    left: LeftBehind,
    /// Users of files that took too long, and until when theirs are not looked into.
    slow: HashMap<u32, Instant>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: ChildStdout,
}

impl Inspector {
    /// Looks into a file that `pid` maps, or one of the host's own.
    pub(super) fn look(&mut self, pid: Option<u32>, mapped: &Mapped) -> Found {
        let user = pid.and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok()).map(|it| it.uid());
        self.slow.retain(|_, until| Instant::now() < *until);
        if user.is_some_and(|it| self.slow.contains_key(&it)) {
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

    /// The next line, if it comes in time.
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

    /// Whether it runs, or waits for a processor to run on (`proc_pid_stat(5)`: the state follows the name).
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

/// The process that looks; started by the agent.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {}

impl Inspect {
    /// Answers questions on the standard input until it ends.
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
    let Some(runtime) = runtime_of(role, Path::new(path)) else { return Answer::Gone };
    match (runtime.probe_points)(&reached) {
        Ok(points) => {
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
