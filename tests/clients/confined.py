"""Becomes a program under a seccomp filter like a container's: calls that are not on its list are its death.

    confined.py PROGRAM [ARGUMENT..]

The list is every system call that libseccomp has a name for, without those that containers are refused. A kernel that
needs another call for itself in the program, as return probes do, kills it.
"""

import ctypes
import os
import sys

KILL_PROCESS, ERRNO_EPERM, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
NATIVE = 0
# More than the numbers that are in use.
END = 600
REFUSED = {
    b"acct", b"add_key", b"bpf", b"delete_module", b"finit_module", b"init_module", b"ioperm", b"iopl", b"kcmp",
    b"kexec_load", b"keyctl", b"mount", b"move_mount", b"open_tree", b"perf_event_open", b"pivot_root",
    b"process_vm_readv", b"process_vm_writev", b"ptrace", b"reboot", b"request_key", b"setns", b"swapoff", b"swapon",
    b"umount2", b"unshare", b"userfaultfd",
}


def main():
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    libc = ctypes.CDLL(None)
    libc.free.restype = None
    filter = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(KILL_PROCESS)))
    for number in range(END):
        name = seccomp.seccomp_syscall_resolve_num_arch(NATIVE, number)
        if name is not None:
            action = ERRNO_EPERM if name in REFUSED else ALLOW
            assert seccomp.seccomp_rule_add(filter, ctypes.c_uint32(action), number, 0) == 0, name
    assert seccomp.seccomp_load(filter) == 0
    os.execv(sys.argv[1], sys.argv[1:])


main()
