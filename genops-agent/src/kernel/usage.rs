//! Recount of the shared maps' entries by process and user.
//!
//! The kernel programs count as they go. Entries not freed by an ended process stay in the count,
//! and of two threads at once one count may be lost; so the agent corrects the numbers.

use std::{collections::HashMap as Counts, path::Path};

use aya::maps::{HashMap, MapData, MapError};
use genops_ebpf_common::{Conn, ConnKey, Sock, Usage};

/// `BPF_EXIST`: a removed entry stays removed (`include/uapi/linux/bpf.h`).
const ONLY_IF_THERE: u64 = 2;

/// The counts used by the kernel programs.
#[derive(Debug)]
pub(super) struct Usages {
    by_process: HashMap<MapData, u32, Usage>,
    objects_by_user: HashMap<MapData, u32, u32>,
}

impl Usages {
    pub(super) fn from_maps([by_process, objects_by_user]: [MapData; 2]) -> Result<Self, MapError> {
        let (by_process, by_user) = (aya::maps::Map::HashMap(by_process), objects_by_user);
        Ok(Self {
            by_process: by_process.try_into()?,
            objects_by_user: aya::maps::Map::HashMap(by_user).try_into()?,
        })
    }

    /// Corrects the counts, and returns the TLS objects of ended processes.
    pub(super) fn set(
        &mut self,
        objects: &[(ConnKey, Conn)],
        sockets: impl Iterator<Item = Sock>,
    ) -> Vec<ConnKey> {
        let mut counts = Counted::default();
        let gone = counts.objects(objects, |it| Path::new("/proc").join(it.to_string()).exists());
        sockets.for_each(|it| counts.socket(&it));
        for (tgid, known) in self.by_process.iter().flatten().collect::<Vec<_>>() {
            let found = counts.of_process(tgid, known);
            if (found.objects, found.sockets) != (known.objects, known.sockets) {
                let _ended = self.by_process.insert(tgid, found, ONLY_IF_THERE);
            }
        }
        for (user, known) in self.objects_by_user.iter().flatten().collect::<Vec<_>>() {
            let found = counts.by_user.get(&user).copied().unwrap_or(0);
            let _same = match found {
                0 => self.objects_by_user.remove(&user),
                _ if found == known => Ok(()),
                _ => self.objects_by_user.insert(user, found, ONLY_IF_THERE),
            };
        }
        gone
    }
}

/// The counted entries.
#[derive(Debug, Default)]
struct Counted {
    /// TLS objects and sockets of processes.
    by_process: Counts<u32, (u32, u32)>,
    /// TLS objects of users.
    by_user: Counts<u32, u32>,
}

impl Counted {
    /// Counts TLS objects; returns the objects of ended processes instead.
    fn objects(
        &mut self,
        objects: &[(ConnKey, Conn)],
        lives: impl Fn(u32) -> bool,
    ) -> Vec<ConnKey> {
        let mut known: Counts<u32, bool> = Counts::new();
        let mut gone = Vec::new();
        for (key, conn) in objects {
            if !*known.entry(key.tgid).or_insert_with(|| lives(key.tgid)) {
                gone.push(*key);
                continue;
            }
            self.by_process.entry(key.tgid).or_default().0 += 1;
            *self.by_user.entry(conn.uid).or_default() += 1;
        }
        gone
    }

    /// Counts a socket that its process has not closed.
    fn socket(&mut self, sock: &Sock) {
        if sock.closed == 0 {
            self.by_process.entry(sock.tgid).or_default().1 += 1;
        }
    }

    fn of_process(&self, tgid: u32, known: Usage) -> Usage {
        let (objects, sockets) = self.by_process.get(&tgid).copied().unwrap_or_default();
        Usage { objects, sockets, ..known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(ssl: u64, tgid: u32, uid: u32) -> (ConnKey, Conn) {
        let key = ConnKey { ssl, tgid, reserved: 0 };
        let conn =
            Conn { id: ssl, cookie: 0, egress_offset: 0, ingress_offset: 0, provider: 0, uid };
        (key, conn)
    }

    #[test]
    fn what_ended_processes_did_not_free_counts_for_nobody() {
        let mut counts = Counted::default();
        let all = [object(1, 40, 7), object(2, 40, 7), object(3, 41, 7), object(4, 42, 0)];
        let gone = counts.objects(&all, |it| it != 41);
        assert_eq!(gone, [all[2].0]);
        for (tgid, closed) in [(40, 0), (40, 1), (42, 0), (43, 0)] {
            counts.socket(&Sock { tgid, closed, ..Sock::default() });
        }
        let known = Usage { second: 9, opens: 3, objects: 500, sockets: 500, reserved: 0 };
        let of = |tgid| {
            let it = counts.of_process(tgid, known);
            (it.second, it.opens, it.objects, it.sockets)
        };
        assert_eq!([of(40), of(41), of(42)], [(9, 3, 2, 1), (9, 3, 0, 0), (9, 3, 1, 1)]);
        assert_eq!((counts.by_user.get(&7), counts.by_user.get(&0)), (Some(&2), Some(&1)));
    }
}
