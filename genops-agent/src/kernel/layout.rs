//! Offsets of the task fields read by the programs, from the kernel's own type information
//! (`Documentation/bpf/btf.rst`): the offsets differ by version and configuration.
//!
//! Reads only structures and their members.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use genops_ebpf_common::TaskLayout;

/// The kernel's types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// `BTF_MAGIC` (`include/uapi/linux/btf.h`), in the byte order of the host.
const MAGIC: u16 = 0xeb9f;
/// Size of `struct btf_type`, of `struct btf_member` and of the header's part to read.
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;
const HEADER_LEN: usize = 24;
/// Deepest anonymous structure within another to look into.
const DEPTH_LIMIT: usize = 8;

/// Finds the layout of this kernel.
///
/// # Errors
///
/// If the kernel has no type information, or a task lacks a field.
pub(super) fn of_this_kernel() -> Result<TaskLayout> {
    let bytes = fs::read(VMLINUX).context(VMLINUX)?;
    layout(&Types::parse(&bytes).with_context(|| format!("{VMLINUX} is cut short"))?)
}

fn layout(types: &Types<'_>) -> Result<TaskLayout> {
    let place = |structure: &str, member: &str| {
        types
            .member(structure, member)
            .with_context(|| format!("this kernel's `{structure}` has no `{member}`"))
    };
    let task = |member| place("task_struct", member);
    let layout = TaskLayout {
        pid: task("pid")?,
        tgid: task("tgid")?,
        group_leader: task("group_leader")?,
        real_parent: task("real_parent")?,
        start_boottime: task("start_boottime")?,
        signal: task("signal")?,
        live: place("signal_struct", "live")?,
        interp: place("linux_binprm", "interp")?,
    };
    ensure!(layout.group_leader != 0, "`group_leader` is the first of this kernel's `task_struct`");
    Ok(layout)
}

/// Kinds of types (`BTF_KIND_*`) with data behind the head, or with members.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// One type: the head, and the data behind the head.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    rest: &'a [u8],
}

impl Type<'_> {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// Bytes behind the head.
    fn rest_len(self) -> usize {
        let count = usize::try_from(self.info & 0xffff).unwrap_or(0);
        match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION => count * MEMBER_LEN,
            kind::DATASEC | kind::ENUM64 => count * 12,
            kind::ENUM | kind::FUNC_PROTO => count * 8,
            _ => 0,
        }
    }

    fn has_members(self) -> bool {
        matches!(self.kind(), kind::STRUCT | kind::UNION)
    }
}

/// Every type, by type number less one.
struct Types<'a> {
    types: Vec<Type<'a>>,
    names: &'a [u8],
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_LEN)?;
        let magic = u16::from_ne_bytes(header.first_chunk().copied()?);
        let header_len = number(header, 4)?;
        let section = |at: usize| {
            let (from, len) = (number(header, at)?, number(header, at + 4)?);
            let from = usize::try_from(header_len.checked_add(from)?).ok()?;
            bytes.get(from..)?.get(..usize::try_from(len).ok()?)
        };
        if magic != MAGIC {
            return None;
        }
        let (mut rest, names) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (name, info) = (number(rest, 0)?, number(rest, 4)?);
            let found = Type { name, info, rest: rest.get(TYPE_LEN..)? };
            let (of_type, after) = found.rest.split_at_checked(found.rest_len())?;
            types.push(Type { rest: of_type, ..found });
            rest = after;
        }
        Some(Self { types, names })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.names.get(usize::try_from(at).ok()?..)?.split(|byte| *byte == 0).next()
    }

    /// Bytes between the beginning of a structure and a member.
    fn member(&self, structure: &str, member: &str) -> Option<u32> {
        let is_it = |it: &&Type<'_>| {
            it.kind() == kind::STRUCT && self.name(it.name) == Some(structure.as_bytes())
        };
        // A name may occur more than once, first without members as a declaration.
        self.types.iter().filter(is_it).find_map(|it| self.member_of(*it, member, 0))
    }

    /// Finds a member; members of an anonymous structure belong to the enclosing structure.
    fn member_of(&self, structure: Type<'_>, wanted: &str, depth: usize) -> Option<u32> {
        structure.rest.chunks_exact(MEMBER_LEN).find_map(|member| {
            let (name, of_type, at) = (number(member, 0)?, number(member, 4)?, number(member, 8)?);
            // In a structure with bit fields, the upper byte is the length of a field.
            let bits = if structure.info >> 31 == 0 { at } else { at & 0x00ff_ffff };
            match self.name(name)? {
                b"" if depth < DEPTH_LIMIT => {
                    let index = usize::try_from(of_type).ok()?.checked_sub(1)?;
                    let inner = self.types.get(index).filter(|it| it.has_members())?;
                    Some(bits / 8 + self.member_of(*inner, wanted, depth + 1)?)
                }
                name => (name == wanted.as_bytes()).then_some(bits / 8),
            }
        })
    }
}

/// A number of four bytes.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    const INT: u32 = 1;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|it| it.to_ne_bytes()).collect()
    }

    /// `struct task_struct { int pid; struct { int tgid; int flag: 1; int group_leader; };
    /// int start_boottime; int signal; int real_parent; }` and
    /// `struct signal_struct { int count; int live; }`, after an `int` and a forward declaration.
    fn sample() -> Vec<u8> {
        let names: &[&str] = &[
            "",
            "int",
            "task_struct",
            "pid",
            "tgid",
            "flag",
            "group_leader",
            "start_boottime",
            "signal",
            "real_parent",
            "signal_struct",
            "count",
            "live",
            "linux_binprm",
            "interp",
        ];
        let at = |wanted: &str| -> u32 {
            let before = names.iter().take_while(|it| **it != wanted);
            before.map(|it| u32::try_from(it.len()).expect("short") + 1).sum()
        };
        let info = |kind: u32, count: u32| kind << 24 | count;
        let bit_fields = 1 << 31;
        let types = words(&[
            at("int"),
            info(kind::INT, 0),
            4,
            32,
            at("task_struct"),
            info(kind::STRUCT, 0),
            0,
            0,
            info(kind::STRUCT, 3) | bit_fields,
            12,
            at("tgid"),
            INT,
            0,
            at("flag"),
            INT,
            1 << 24 | 32,
            at("group_leader"),
            INT,
            64,
            at("task_struct"),
            info(kind::STRUCT, 5),
            28,
            at("pid"),
            INT,
            0,
            0,
            3,
            32,
            at("start_boottime"),
            INT,
            128,
            at("signal"),
            INT,
            160,
            at("real_parent"),
            INT,
            192,
            at("signal_struct"),
            info(kind::STRUCT, 2),
            8,
            at("count"),
            INT,
            0,
            at("live"),
            INT,
            32,
            at("linux_binprm"),
            info(kind::STRUCT, 1),
            8,
            at("interp"),
            INT,
            64,
        ]);
        let names: Vec<u8> = names.iter().flat_map(|it| it.bytes().chain([0])).collect();
        let len = |it: &[u8]| u32::try_from(it.len()).expect("short");
        let mut bytes =
            words(&[u32::from(MAGIC) | 1 << 16, 24, 0, len(&types), len(&types), len(&names)]);
        bytes.extend(types.iter().chain(&names));
        bytes
    }

    #[test]
    fn members_are_found_also_in_a_structure_without_a_name() {
        let bytes = sample();
        let found = layout(&Types::parse(&bytes).expect("whole")).expect("all of them");
        let expected = TaskLayout {
            pid: 0,
            tgid: 4,
            group_leader: 12,
            real_parent: 24,
            start_boottime: 16,
            signal: 20,
            live: 4,
            interp: 8,
        };
        assert_eq!(found.as_bytes(), expected.as_bytes());
    }

    #[test]
    fn a_task_without_a_member_and_what_is_cut_anywhere_is_refused() {
        let bytes = sample();
        let types = Types::parse(&bytes).expect("whole");
        assert_eq!(types.member("task_struct", "live"), None);
        assert_eq!(types.member("nothing", "pid"), None);
        for end in 0..bytes.len() {
            assert!(Types::parse(bytes.get(..end).unwrap_or_default()).is_none(), "{end}");
        }
    }

    #[test]
    fn this_kernel_says_where_things_are() {
        let Ok(bytes) = fs::read(VMLINUX) else {
            eprintln!("skipped: no {VMLINUX}");
            return;
        };
        let found = layout(&Types::parse(&bytes).expect("whole")).expect("all of them");
        // `pid_t pid; pid_t tgid;` (`include/linux/sched.h`).
        assert_eq!(found.tgid, found.pid + 4);
        assert!(found.live != 0 && found.interp != 0);
    }
}
