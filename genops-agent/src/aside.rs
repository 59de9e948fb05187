//! Work of unbounded time or memory, in a separate process.
//!
//! A page of a file may come from a file system that never answers, and an untrusted file may
//! contain anything. The agent never waits for the process: the agent polls, kills the process at
//! the deadline, and leaves behind a process that the kernel can't end yet (the process may be
//! waiting for the same file system).

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Most killed processes kept for reaping.
const LEFT_BEHIND: usize = 64;

/// A piece of work.
#[derive(Debug)]
pub(crate) struct Aside {
    child: Child,
    out: ChildStdout,
    said: Vec<u8>,
    /// Most bytes of output.
    limit: usize,
    until_mono_ns: u64,
}

/// Progress of the work.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not done.
    Works,
    /// Done, with the output.
    Done(Vec<u8>),
    /// The process failed, wrote too much, or took too long.
    Failed,
}

impl Aside {
    /// Starts the agent's own program with `args`: a hidden subcommand that writes its result to
    /// the standard output. The process has until `until_mono_ns` of the monotonic clock, and may
    /// write `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails if no process could be started.
    pub(crate) fn start(args: &[String], limit: usize, until_mono_ns: u64) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("genops-agent")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        fcntl_setfl(&out, fcntl_getfl(&out)? | OFlags::NONBLOCK)?;
        Ok(Self { child, out, said: Vec::new(), limit, until_mono_ns })
    }

    /// Takes the output so far, and checks whether the work is done.
    pub(crate) fn look(&mut self, now_mono_ns: u64) -> Progress {
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.out.read(&mut piece) {
                Ok(0) => return self.ended(),
                Ok(count) => self.said.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Failed,
            }
            if self.said.len() > self.limit {
                return Progress::Failed;
            }
        }
        if now_mono_ns >= self.until_mono_ns { Progress::Failed } else { Progress::Works }
    }

    /// Returns the process, which may still run.
    pub(crate) fn into_process(self) -> Child {
        self.child
    }

    /// Takes the exit code after the end of the output.
    fn ended(&mut self) -> Progress {
        match self.child.wait() {
            Ok(status) if status.success() => Progress::Done(std::mem::take(&mut self.said)),
            _ => Progress::Failed,
        }
    }
}

/// Killed processes; the agent does not wait for their end.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind {
    children: Vec<Child>,
}

impl LeftBehind {
    /// Kills a process still running.
    pub(crate) fn leave(&mut self, mut child: Child) {
        // An already ended process is fine.
        let _ended = child.kill();
        self.children.retain_mut(|it| !matches!(it.try_wait(), Ok(Some(_)) | Err(_)));
        if matches!(child.try_wait(), Ok(None)) && self.children.len() < LEFT_BEHIND {
            self.children.push(child);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock;

    /// Like [`Aside::start`], with another program.
    fn start(script: &str, limit: usize, patience_ns: u64) -> Aside {
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        fcntl_setfl(&out, fcntl_getfl(&out).unwrap() | OFlags::NONBLOCK).unwrap();
        let until_mono_ns = clock::mono_ns() + patience_ns;
        Aside { child, out, said: Vec::new(), limit, until_mono_ns }
    }

    fn end_of(aside: &mut Aside) -> Progress {
        loop {
            match aside.look(clock::mono_ns()) {
                Progress::Works => std::thread::sleep(Duration::from_millis(1)),
                other => return other,
            }
        }
    }

    const LONG: u64 = 20_000_000_000;

    #[test]
    fn what_is_said_in_time_is_the_result() {
        let done = end_of(&mut start("printf abc; printf def", 100, LONG));
        assert_eq!(done, Progress::Done(b"abcdef".to_vec()));
        assert_eq!(end_of(&mut start("printf abc; exit 3", 100, LONG)), Progress::Failed);
        assert_eq!(end_of(&mut start("head -c 200000 /dev/zero", 1_000, LONG)), Progress::Failed);
    }

    #[test]
    fn nobody_waits_for_what_does_not_end() {
        let begun = Instant::now();
        let mut aside = start("printf abc; exec sleep 1000", 100, 50_000_000);
        assert_eq!(end_of(&mut aside), Progress::Failed);
        LeftBehind::default().leave(aside.into_process());
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
