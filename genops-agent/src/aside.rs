//! Work that may take as long as a stranger pleases, or as much memory: in a process of its own.
//!
//! A page of a file may come from a file system that never answers, and a file may say anything of itself. Nobody waits
//! for such a process: it is asked now and then, killed at its deadline, and what the kernel does not let die (it may be
//! waiting for that very file system) is left behind.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Most processes left behind whose end is still looked for.
const LEFT_BEHIND: usize = 64;

/// One piece of work.
#[derive(Debug)]
pub(crate) struct Aside {
    child: Child,
    out: ChildStdout,
    said: Vec<u8>,
    /// Most bytes that it may say.
    limit: usize,
    until_mono_ns: u64,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not done.
    Works,
    /// Done, and this is what it said.
    Done(Vec<u8>),
    /// It failed, said too much, or took too long.
    Failed,
}

impl Aside {
    /// Starts this program once more, with these arguments: a hidden subcommand that writes its result to the standard
    /// output. It has until `until_mono_ns` of the monotonic clock, and may say `limit` bytes.
    ///
    /// # Errors
    ///
    /// No process could be started.
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

    /// Takes what it has said, and looks whether it is done.
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

    /// Its process, which may not have ended.
    pub(crate) fn into_process(self) -> Child {
        self.child
    }

    /// It has closed its output: what remains of it is its exit code.
    fn ended(&mut self) -> Progress {
        match self.child.wait() {
            Ok(status) if status.success() => Progress::Done(std::mem::take(&mut self.said)),
            _ => Progress::Failed,
        }
    }
}

/// Processes that were killed, and whose end nobody waits for.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind {
    children: Vec<Child>,
}

impl LeftBehind {
    /// Kills one that has not ended.
    pub(crate) fn leave(&mut self, mut child: Child) {
        // Ended already is as good.
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
