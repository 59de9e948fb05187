//! Memory of a program that the probe could not read when the program wrote it: the page was not there.
//!
//! If the write ends at once, the probe at its end reads what the library has touched. One that is longer than the socket
//! takes does not end before it is decided: another process reads that, since nobody knows for how long it may take.
//!
//! What was read so counts only if the write was still going on when it was read: a program that is back from it may have
//! changed its memory.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, ensure};
use genops_governance::User;

use crate::aside::{Aside, LeftBehind, Progress};

/// How often it is looked whether a read is done.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Most reads at a time, and of one user's processes.
const READS: usize = 32;
const READS_OF_USER: usize = 4;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// A write that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) conn: u64,
    /// Thread-group id of the program.
    pub(super) tgid: u32,
    /// Where in its memory the write begins.
    pub(super) address: u64,
    /// Position of its first byte.
    pub(super) from: u64,
    /// Position after its last byte.
    pub(super) to: u64,
    /// [`genops_ebpf_common::Hold::round`] of the write.
    pub(super) round: u32,
    /// When it began.
    pub(super) at_mono_ns: u64,
}

/// The reads that are going on, one a process.
#[derive(Debug, Default)]
pub(super) struct Pages {
    reads: HashMap<u32, (Want, User, Aside)>,
    left: LeftBehind,
}

impl Pages {
    /// Starts a read, which has until `until_mono_ns`. Where there is no room for another one, or no process can be
    /// started, what it would have read stays unread.
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

    /// What was read since.
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

/// How a read is started; hidden from users.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadMemory {
    /// The program.
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
