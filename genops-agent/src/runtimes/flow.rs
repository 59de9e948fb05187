//! Control flow through a function's instructions, and cheap places for probes.
//!
//! A breakpoint costs the program a trap. If the kernel can't emulate the replaced instruction, the
//! processor runs the instruction in single-step mode. Single-stepping costs another trap and, in a
//! virtual machine, an exit to the host on top (five times as much, measured). The kernel emulates
//! near branches and pushes (`arch/x86/kernel/uprobes.c`: `branch_xol_ops`, `push_xol_ops`). So a
//! probe at an entry moves down to the first emulated instruction with the arguments still in their
//! registers. A probe at a RET moves up to the branch of the stack protector; at the branch, the
//! result is already computed.

use std::collections::{BTreeMap, BTreeSet};

use genops_ebpf_common::Frame;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

/// Most instructions decoded for a function, jumps out of the function included.
const INSTRUCTION_LIMIT: usize = 20_000;
/// Most RET instructions probed in a function.
const RETURN_LIMIT: usize = 64;
/// Offset of glibc's stack protector secret from the FS register (System V ABI, x86-64 TLS).
const STACK_GUARD_OFFSET: u64 = 0x28;
/// Registers of integer arguments one to four, in the System V ABI.
const ARGUMENTS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];

/// A place for a probe in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: u64,
    /// Difference from the frame at the function's entry, or at its RET.
    pub(super) frame: Frame,
}

/// Instructions reachable from a function's entry.
#[derive(Debug, Default)]
pub(super) struct Flow {
    start: u64,
    instructions: BTreeMap<u64, Instruction>,
    targets: BTreeSet<u64>,
}

impl Flow {
    /// Follows control from `start`, in a function of `size` bytes. `code`: returns up to the given
    /// number of bytes from an address on.
    ///
    /// Jumps out of the function are followed too: the target is the function's cold part, or a
    /// tail-called function returning to the same caller. A probe hit on another path sees another
    /// stack pointer and does nothing.
    pub(super) fn of<Bytes: AsRef<[u8]>>(
        start: u64,
        size: u64,
        code: impl Fn(u64, u64) -> Option<Bytes>,
    ) -> Self {
        let mut flow = Self { start, ..Self::default() };
        let inside = start..start.saturating_add(size);
        let mut todo = vec![start];
        while let Some(from) = todo.pop() {
            if flow.instructions.len() >= INSTRUCTION_LIMIT {
                break;
            }
            if flow.instructions.contains_key(&from) {
                continue;
            }
            let room = if inside.contains(&from) { inside.end - from } else { 4096 };
            let Some(code) = code(from, room) else { continue };
            let mut decoder = Decoder::with_ip(64, code.as_ref(), from, DecoderOptions::NONE);
            while decoder.can_decode() {
                let instruction = decoder.decode();
                if instruction.is_invalid()
                    || flow.instructions.len() >= INSTRUCTION_LIMIT
                    || flow.instructions.insert(instruction.ip(), instruction).is_some()
                {
                    break;
                }
                let branches = matches!(
                    instruction.flow_control(),
                    FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
                );
                if branches {
                    let target = instruction.near_branch_target();
                    flow.targets.insert(target);
                    todo.push(target);
                }
                if !goes_on(&instruction) {
                    break;
                }
            }
        }
        flow
    }

    /// Addresses of the RET instructions.
    pub(super) fn returns(&self) -> Vec<u64> {
        let returns =
            self.instructions.values().filter(|it| it.flow_control() == FlowControl::Return);
        returns.map(Instruction::ip).take(RETURN_LIMIT).collect()
    }

    /// Returns a cheaper place for the probe at the entry, with the same arguments and a single hit
    /// per call.
    pub(super) fn cheap_entry(&self) -> Option<Place> {
        let mut info = InstructionInfoFactory::new();
        let mut address = self.start;
        let mut depth = 0_i64;
        loop {
            let instruction = self.instructions.get(&address)?;
            if address != self.start && self.targets.contains(&address) {
                return None;
            }
            if is_emulated(instruction) {
                return Some(Place { address, frame: Frame::entered(u16::try_from(depth).ok()?) });
            }
            let next = instruction.flow_control() == FlowControl::Next;
            if !next || ARGUMENTS.iter().any(|it| writes(&mut info, instruction, *it)) {
                return None;
            }
            depth -= stack_change(&mut info, instruction)?;
            address = instruction.next_ip();
        }
    }

    /// Returns a cheaper place for the probe at the RET at `address`, with the same result each
    /// time.
    pub(super) fn cheap_return(&self, address: u64) -> Option<Place> {
        let mut info = InstructionInfoFactory::new();
        let mut below = self.instructions.get(&address)?;
        let mut result = Register::RAX;
        let mut depth = 0_i64;
        loop {
            let instruction = self.falls_into(below)?;
            if self.is_guard(instruction) {
                let frame = Frame::returning(u16::try_from(depth).ok()?, number(result)?);
                return Some(Place { address: instruction.ip(), frame });
            }
            if instruction.flow_control() != FlowControl::Next {
                return None;
            }
            if writes(&mut info, instruction, result) {
                result = copied_from(instruction)?;
            }
            depth += stack_change(&mut info, instruction)?;
            below = instruction;
        }
    }

    /// Returns the instruction before, if control reaches `below` only from there.
    fn falls_into(&self, below: &Instruction) -> Option<&Instruction> {
        let (_, before) = self.instructions.range(..below.ip()).next_back()?;
        let only_way = before.next_ip() == below.ip() && !self.targets.contains(&below.ip());
        only_way.then_some(before)
    }

    /// Tells whether the instruction is the branch of the stack protector; a program taking the
    /// branch ends.
    fn is_guard(&self, instruction: &Instruction) -> bool {
        let compares = |it: &Instruction| {
            matches!(it.mnemonic(), Mnemonic::Sub | Mnemonic::Xor | Mnemonic::Cmp)
                && it.segment_prefix() == Register::FS
                && it.memory_base() == Register::None
                && it.memory_index() == Register::None
                && it.memory_displacement64() == STACK_GUARD_OFFSET
        };
        instruction.mnemonic() == Mnemonic::Jne
            && is_emulated(instruction)
            && self.falls_into(instruction).is_some_and(compares)
    }
}

/// Tells whether the following instruction may be next.
fn goes_on(instruction: &Instruction) -> bool {
    match instruction.flow_control() {
        FlowControl::Next
        | FlowControl::Call
        | FlowControl::IndirectCall
        | FlowControl::ConditionalBranch
        | FlowControl::XbeginXabortXend => true,
        FlowControl::Return
        | FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Interrupt
        | FlowControl::Exception => false,
    }
}

/// Tells whether the kernel emulates the instruction, in the plain encoding without prefixes, on
/// every version from 5.10.
fn is_emulated(instruction: &Instruction) -> bool {
    let lengths: &[usize] = match instruction.code() {
        Code::Push_r64 => &[1, 2],
        Code::Call_rel32_64 | Code::Jmp_rel32_64 => &[5],
        Code::Jmp_rel8_64 => &[2],
        _ if instruction.is_jcc_short() => &[2],
        _ if instruction.is_jcc_near() => &[6],
        _ => &[],
    };
    lengths.contains(&instruction.len())
}

fn writes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    info.info(instruction).used_registers().iter().any(|used| {
        let written =
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        written && used.register().full_register() == register
    })
}

/// Change of the stack pointer by an instruction, in bytes; `None` if unknown.
fn stack_change(info: &mut InstructionInfoFactory, instruction: &Instruction) -> Option<i64> {
    if !writes(info, instruction, Register::RSP) {
        return Some(0);
    }
    let by_number = instruction.op0_register() == Register::RSP
        && matches!(
            instruction.op1_kind(),
            OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate8
        );
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop => Some(i64::from(instruction.stack_pointer_increment())),
        Mnemonic::Add if by_number => Some(instruction.immediate(1).cast_signed()),
        Mnemonic::Sub if by_number => instruction.immediate(1).cast_signed().checked_neg(),
        _ => None,
    }
}

/// Source register of a `MOV` between registers, whole or the lower half: a result is an `int`.
fn copied_from(instruction: &Instruction) -> Option<Register> {
    let moves = matches!(
        instruction.code(),
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Mov_r32_rm32 | Code::Mov_rm32_r32
    );
    let registers =
        instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register;
    (moves && registers).then(|| instruction.op1_register().full_register())
}

/// Number of a callee-saved register or RAX, in the processor's encoding.
fn number(register: Register) -> Option<u8> {
    Some(match register {
        Register::RAX => 0,
        Register::RBX => 3,
        Register::RBP => 5,
        Register::R12 => 12,
        Register::R13 => 13,
        Register::R14 => 14,
        Register::R15 => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x1000;

    fn flow(code: &[u8]) -> Flow {
        let len = code.len() as u64;
        Flow::of(START, len, |at, room| {
            let from = usize::try_from(at.checked_sub(START)?).ok()?;
            let to = from.checked_add(usize::try_from(room).ok()?)?.min(code.len());
            code.get(from..to)
        })
    }

    /// Code of OpenSSL 3.0's `SSL_read` as compiled by GCC with a stack protector; `epilogue`
    /// stands between the protector's branch and the RET.
    fn protected(epilogue: &[u8]) -> Vec<u8> {
        let mut code = vec![
            0x48, 0x83, 0xec, 0x18, // sub rsp, 0x18
            0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, // mov rax, fs:[0x28]
            0x48, 0x89, 0x44, 0x24, 0x08, // mov [rsp+8], rax
            0x85, 0xd2, // test edx, edx
            0x78, 0x00, // js: the next instruction
            0x48, 0x8b, 0x54, 0x24, 0x08, // mov rdx, [rsp+8]
            0x64, 0x48, 0x2b, 0x14, 0x25, 0x28, 0, 0, 0, // sub rdx, fs:[0x28]
            0x75, 0x00, // jne: its distance follows
        ];
        code.extend(epilogue);
        code.push(0xc3);
        let distance = u8::try_from(epilogue.len() + 1).expect("short");
        if let Some(to) = code.get_mut(37) {
            *to = distance;
        }
        code.extend([0xe8, 0, 0, 0, 0]); // call __stack_chk_fail
        code
    }

    #[test]
    fn an_entry_moves_down_to_the_first_branch() {
        let place = flow(&protected(&[0x48, 0x83, 0xc4, 0x18])).cheap_entry().expect("a place");
        assert_eq!(place, Place { address: START + 20, frame: Frame::entered(0x18) });
    }

    #[test]
    fn an_entry_stays_where_an_argument_is_overwritten_or_a_loop_begins() {
        // mov rdi, rax; push rbx; ret
        assert_eq!(flow(&[0x48, 0x89, 0xc7, 0x53, 0xc3]).cheap_entry(), None);
        // nop; push rbx; jmp to the push
        assert_eq!(flow(&[0x90, 0x53, 0xeb, 0xfd]).cheap_entry(), None);
        // sub rsp, rax; push rbx; ret: the amount is unknown
        assert_eq!(flow(&[0x48, 0x29, 0xc4, 0x53, 0xc3]).cheap_entry(), None);
    }

    #[test]
    fn a_push_at_the_entry_is_cheap_already() {
        let place = flow(&[0x55, 0x5d, 0xc3]).cheap_entry();
        assert_eq!(place, Some(Place { address: START, frame: Frame::entered(0) }));
    }

    #[test]
    fn a_return_moves_up_to_the_stack_protectors_branch() {
        // add rsp, 0x18; xor edx, edx; ret
        let flow = flow(&protected(&[0x48, 0x83, 0xc4, 0x18, 0x31, 0xd2]));
        let [ret] = flow.returns()[..] else { panic!("one RET") };
        let frame = Frame::returning(0x18, 0);
        assert_eq!(flow.cheap_return(ret), Some(Place { address: START + 36, frame }));
    }

    #[test]
    fn a_result_is_found_in_the_register_that_it_comes_from() {
        // add rsp, 0x18; mov eax, r12d; pop r12; ret
        let flow = flow(&protected(&[0x48, 0x83, 0xc4, 0x18, 0x44, 0x89, 0xe0, 0x41, 0x5c]));
        let [ret] = flow.returns()[..] else { panic!("one RET") };
        let frame = Frame::returning(0x20, 12);
        assert_eq!(flow.cheap_return(ret), Some(Place { address: START + 36, frame }));
    }

    #[test]
    fn a_return_stays_where_the_result_comes_later_or_others_join() {
        // xor eax, eax; add rsp, 0x18; ret
        let later = flow(&protected(&[0x31, 0xc0, 0x48, 0x83, 0xc4, 0x18]));
        assert_eq!(later.returns().iter().filter_map(|it| later.cheap_return(*it)).count(), 0);
        // je to the RET; sub rdx, fs:[0x28]; jne back; ret
        let joined =
            flow(&[0x74, 0x0b, 0x64, 0x48, 0x2b, 0x14, 0x25, 0x28, 0, 0, 0, 0x75, 0xf5, 0xc3]);
        assert_eq!(joined.returns(), [START + 13]);
        assert_eq!(joined.cheap_return(START + 13), None);
    }

    #[test]
    fn what_follows_a_function_is_not_part_of_it() {
        // call (which doesn't return); then another function: push rbp; ret
        let code = [0xe8, 0, 0, 0, 0, 0x55, 0xc3];
        let flow = Flow::of(START, 5, |at, room| {
            let from = usize::try_from(at - START).ok()?;
            code.get(from..(from + usize::try_from(room).ok()?).min(code.len()))
        });
        assert_eq!(flow.returns(), [0_u64; 0]);
    }
}
