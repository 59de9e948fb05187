//! Reads of memory that a probe could not read at the write: the page was not present.
//!
//! If the write ends at once, the probe at the end of the write reads the pages touched by the
//! library. A write longer than the socket's buffer does not end before the decision: another
//! process reads the memory, because the read may take arbitrarily long.
//!
//! A read counts only if the write was still going on: after the write, the program may have
//! changed the memory.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, ensure};
use genops_governance::User;

use crate::aside::{Aside, LeftBehind, Progress};

/// Interval of the look for finished reads.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Most reads at a time, and for the processes of one user.
const READS: usize = 32;
const READS_OF_USER: usize = 4;
/// Bytes per read.
const PIECE: usize = 64 << 10;

/// A write not readable by the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) conn: u64,
    /// Thread-group ID of the program.
    pub(super) tgid: u32,
    /// Address of the write in the program's memory.
    pub(super) address: u64,
    /// Position of the first byte.
    pub(super) from: u64,
    /// Position after the last byte.
    pub(super) to: u64,
    /// [`genops_ebpf_common::Hold::round`] of the write.
    pub(super) round: u32,
    /// Start of the write.
    pub(super) at_mono_ns: u64,
}

/// The reads going on, one per process.
#[derive(Debug, Default)]
pub(super) struct Pages {
    reads: HashMap<u32, (Want, User, Aside)>,
    left: LeftBehind,
}

impl Pages {
    /// Starts a read with the deadline `until_mono_ns`. Without room for another read, or if no
    /// process can be started, the write stays unread.
    pub(super) fn want(&mut self, want: Want, user: User, limit: u64, until_mono_ns: u64) {
        let len = want.to.saturating_sub(want.from);
        let of_user = self.reads.values().filter(|(_, it, _)| *it == user).count();
        let full = self.reads.len() >= READS || of_user >= READS_OF_USER;
        let Ok(most) = usize::try_from(len) else { return };
        if full || len > limit || self.reads.contains_key(&want.tgid) {
            return;
        }
        let (pid, address) = (want.tgid.to_string(), want.address.to_string());
        let len = len.to_string();
        let args = ["read-memory", "--pid", &pid, "--address", &address, "--length", &len];
        let args = args.map(str::to_owned);
        if let Ok(aside) = Aside::start(&args, most, until_mono_ns) {
            self.reads.insert(want.tgid, (want, user, aside));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// The reads finished since the last call.
    pub(super) fn done(&mut self, now_mono_ns: u64) -> Vec<(Want, Vec<u8>)> {
        let mut done = Vec::new();
        let mut over = Vec::new();
        for (tgid, (want, _, aside)) in &mut self.reads {
            match aside.look(now_mono_ns) {
                Progress::Works => continue,
                Progress::Done(bytes) if bytes.len() as u64 == want.to - want.from => {
                    done.push((*want, bytes));
                }
                Progress::Done(_) | Progress::Failed => {}
            }
            over.push(*tgid);
        }
        for (_, _, aside) in over.iter().filter_map(|tgid| self.reads.remove(tgid)) {
            self.left.leave(aside.into_process());
        }
        done
    }
}

/// Arguments of a read process; hidden from users.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadMemory {
    /// The program to read from.
    #[arg(long)]
    pid: u32,
    #[arg(long)]
    address: u64,
    #[arg(long)]
    length: u64,
}

impl ReadMemory {
    /// Writes memory of another process to the standard output.
    pub(crate) fn run(self) -> Result<()> {
        let Self { pid, address, length } = self;
        genops_ebpf_common::close_inherited();
        let mut out = io::stdout().lock();
        let (mut at, mut left) = (address, length);
        while left > 0 {
            let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            let read = genops_ebpf_common::read_memory(pid, at, &mut piece);
            ensure!(read, "memory of process {pid} can't be read");
            out.write_all(&piece)?;
            let count = piece.len() as u64;
            (at, left) = (at.saturating_add(count), left.saturating_sub(count));
        }
        Ok(out.flush()?)
    }
}
