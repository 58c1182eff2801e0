"""Limits that a process puts on itself, without privileges: memory, files, network, new processes.

A seccomp filter allows the system calls that computing on what is already open needs, and fails every other one with
EPERM: signals too, whoever they are for. Numbers are those of Linux, seccomp(2) and the kernel's syscall tables.
"""

import ctypes
import errno
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWNET, _CLONE_NEWUSER, _CLONE_THREAD = 0x40000000, 0x10000000, 0x00010000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
_MAX_FILES = 16

# x86_64, aarch64; None where an architecture lacks the call. Memory, signals of its own, clocks, open descriptors.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "exit": (60, 93),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def end_with_parent() -> None:
    """Have the kernel kill this process, even a stopped one, when the thread that started it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_resources(extra_memory_bytes: int) -> None:
    """Bound this process's memory beyond what it has, and forbid core dumps, written files and many open ones.

    Args:
        extra_memory_bytes: Address space that it may still take.
    """
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, size_bytes + extra_memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
    ):
        _, most = resource.getrlimit(kind)
        allowed = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (allowed, allowed))


def forbid_system_calls() -> str:
    """Take network, files and new processes from this process, as far as the kernel lets it.

    Returns:
        What could not be had; empty if all could. Threads remain allowed.
    """
    if not sys.platform.startswith("linux"):
        return f"no seccomp on {sys.platform}"
    libc = ctypes.CDLL(None, use_errno=True)
    problem = ""
    if platform.machine() not in _ARCHITECTURES:
        problem = f"no system call table for {platform.machine()}"
    elif libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        problem = f"no_new_privs: {errno.errorcode.get(ctypes.get_errno(), '?')}"
    elif not _install(libc, _build_filter(platform.machine())):
        problem = f"seccomp: {errno.errorcode.get(ctypes.get_errno(), '?')}"
    if problem and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        problem += f"; network namespace: {errno.errorcode.get(ctypes.get_errno(), '?')}"
    return problem


def _install(libc: ctypes.CDLL, program: bytes) -> bool:
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a number of 8-byte instructions, padding, their address.
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0) == 0)


def _build_filter(machine: str) -> bytes:
    """Return BPF instructions: any other architecture is killed, what is not listed fails with EPERM."""
    architecture, column = _ARCHITECTURES[machine]

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    numbers = [call[column] for call in _ALLOWED.values()]
    program = [
        step(_LOAD, _ARCHITECTURE_OFFSET),
        step(_JUMP_EQUAL, architecture, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, _NUMBER_OFFSET),
        # glibc falls back to clone, whose flags a filter can read.
        step(_JUMP_EQUAL, _CLONE3[column], 0, 1),
        step(_RETURN, _ERRNO | errno.ENOSYS),
        step(_JUMP_EQUAL, _CLONE[column], 0, 4),
        step(_LOAD, _FIRST_ARGUMENT_OFFSET),
        step(_JUMP_BITS, _CLONE_THREAD, 0, 1),
        step(_RETURN, _ALLOW),
        step(_RETURN, _ERRNO | errno.EPERM),
    ]
    for number in numbers:
        if number is not None:
            program += [step(_JUMP_EQUAL, number, 0, 1), step(_RETURN, _ALLOW)]
    return b"".join([*program, step(_RETURN, _ERRNO | errno.EPERM)])
