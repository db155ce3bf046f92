"""Seccomp filters: which system calls a hardened process may still make, as a BPF program for x86_64 and aarch64.

The attack it stops (T2, T3): whoever escapes the engine calls the kernel. An allow-list: no socket, connect, bind, exec, fork, kill of
others, ptrace, process_vm_*, unshare, mount, bpf, perf, io_uring, keyctl, userfaultfd; a call that is not listed answers EPERM, a call of
another architecture ends the process. It is the wall that always stands: an empty network namespace does not stop a UNIX socket, and
landlock stops neither that nor UDP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMNS = {"x86_64": 0, "aarch64": 1}
_X32_BIT = 0x40000000

# Name → number on x86_64, on aarch64; -1 where the architecture has none.
NUMBERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "read": (0, 63),
        "write": (1, 64),
        "close": (3, 57),
        "fstat": (5, 80),
        "poll": (7, -1),
        "lseek": (8, 62),
        "mmap": (9, 222),
        "mprotect": (10, 226),
        "munmap": (11, 215),
        "brk": (12, 214),
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "ioctl": (16, 29),
        "pread64": (17, 67),
        "pwrite64": (18, 68),
        "readv": (19, 65),
        "writev": (20, 66),
        "sched_yield": (24, 124),
        "mremap": (25, 216),
        "mincore": (27, 232),
        "madvise": (28, 233),
        "dup": (32, 23),
        "socket": (41, 198),
        "connect": (42, 203),
        "nanosleep": (35, 101),
        "getpid": (39, 172),
        "sendfile": (40, 71),
        "sendto": (44, 206),
        "recvfrom": (45, 207),
        "sendmsg": (46, 211),
        "recvmsg": (47, 212),
        "shutdown": (48, 210),
        "getsockname": (51, 204),
        "getpeername": (52, 205),
        "setsockopt": (54, 208),
        "getsockopt": (55, 209),
        "clone": (56, 220),
        "exit": (60, 93),
        "uname": (63, 160),
        "fcntl": (72, 25),
        "ftruncate": (77, 46),
        "gettimeofday": (96, 169),
        "getrlimit": (97, 163),
        "getrusage": (98, 165),
        "sysinfo": (99, 179),
        "times": (100, 153),
        "getuid": (102, 174),
        "getgid": (104, 176),
        "geteuid": (107, 175),
        "getegid": (108, 177),
        "getppid": (110, 173),
        "sigaltstack": (131, 132),
        "prctl": (157, 167),
        "gettid": (186, 178),
        "futex": (202, 98),
        "sched_getaffinity": (204, 123),
        "set_tid_address": (218, 96),
        "restart_syscall": (219, 128),
        "clock_gettime": (228, 113),
        "clock_getres": (229, 114),
        "clock_nanosleep": (230, 115),
        "exit_group": (231, 94),
        "epoll_wait": (232, -1),
        "epoll_ctl": (233, 21),
        "tgkill": (234, 131),
        "openat": (257, 56),
        "newfstatat": (262, 79),
        "ppoll": (271, 73),
        "set_robust_list": (273, 99),
        "get_robust_list": (274, 100),
        "epoll_pwait": (281, 22),
        "accept4": (288, 242),
        "eventfd2": (290, 19),
        "prlimit64": (302, 261),
        "getcpu": (309, 168),
        "getrandom": (318, 278),
        "memfd_create": (319, 279),
        "membarrier": (324, 283),
        "statx": (332, 291),
        "rseq": (334, 293),
        "clone3": (435, 435),
        "close_range": (436, 436),
        "epoll_pwait2": (441, 441),
        "futex_waitv": (449, 449),
    }
)

ALWAYS: tuple[str, ...] = (
    # What runs most comes first: the program is searched in order.
    "futex",
    "recvmsg",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "clock_nanosleep",
    "clock_gettime",
    "read",
    "write",
    "getrusage",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigaction",
    "sigaltstack",
    "brk",
    "close",
    "fstat",
    "lseek",
    "pread64",
    "readv",
    "writev",
    "mremap",
    "mincore",
    "poll",
    "ppoll",
    "nanosleep",
    "clock_getres",
    "gettimeofday",
    "recvfrom",
    "sched_yield",
    "sched_getaffinity",
    "getcpu",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getrandom",
    "getrlimit",
    "sysinfo",
    "times",
    "uname",
    "exit",
    "exit_group",
    "set_robust_list",
    "get_robust_list",
    "set_tid_address",
    "restart_syscall",
    "rseq",
    "membarrier",
    "futex_waitv",
    "memfd_create",
    "ftruncate",
    "close_range",
)
"""What a process needs that computes, has threads and talks over descriptors that it holds."""

SERVE: tuple[str, ...] = (
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_ctl",
    "accept4",
    "getsockname",
    "getpeername",
    "setsockopt",
    "getsockopt",
    "shutdown",
    "sendfile",
    "eventfd2",
    "dup",
)
"""What an event loop needs that serves a listening socket which it was given."""

CONNECT: tuple[str, ...] = (
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_ctl",
    "connect",
    "getsockname",
    "getpeername",
    "setsockopt",
    "getsockopt",
    "shutdown",
    "eventfd2",
    "dup",
)
"""What an event loop needs that connects: no bind, no listen, no accept. Its sockets are made under `SOCKETS`."""

COMPILE: tuple[str, ...] = ("pwrite64", "eventfd2")

_SOCKET_FAMILIES = (2, 10)
"""AF_INET, AF_INET6. Not AF_UNIX, which would reach the database's socket, nor packets or the kernel's own."""
_SOCKET_KINDS = tuple(kind | flags for kind in (1, 2) for flags in (0, 0o4000, 0o2000000, 0o2004000))
"""SOCK_STREAM, SOCK_DGRAM, with SOCK_NONBLOCK and SOCK_CLOEXEC. Not SOCK_RAW."""
_SOCKET_PROTOCOLS = (0, 6, 17)
"""Default, TCP, UDP."""
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000 | 0x00000080
"""Every CLONE_NEW… flag."""
_AT_EMPTY_PATH = 0x1000
_NOT_FOR_READING = 0o3 | 0o100 | 0o1000 | 0o20000000 | 0o10000000
"""O_ACCMODE, O_CREAT, O_TRUNC, the bit of O_TMPFILE, O_PATH."""
_FCNTL_COMMANDS = (1, 2, 3, 4, 1030, 1033, 1034)
"""F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS. Not F_SETOWN: it sends signals."""
_PRCTL_OPTIONS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA."""
_FIONBIO, _FIOCLEX, _FIONCLEX = 0x5421, 0x5451, 0x5450
_MSG_FASTOPEN = 0x20000000
_ENOSYS = 38
_EPERM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one argument of a call must be."""

    argument: int
    one_of: tuple[int, ...] = ()
    """Where set: exactly one of these (64 bits)."""
    all_bits: int = 0
    """These bits are set."""
    no_bits: int = 0
    """None of these is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRules:
    """What a filter allows."""

    always: tuple[str, ...]
    conditions: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    """Calls that answer another error than EPERM."""


def rules_for(
    *, own_pid: int, extra: Iterable[str] = (), may_open: bool = False, may_connect: bool = False, ioctls: tuple[int, ...] = ()
) -> FilterRules:
    """Make the rules of a hardened process.

    Args:
        own_pid: of the process; only its own threads may be signalled.
        extra: further calls without condition.
        may_open: allow opening for reading. Only under a landlock rule set that says what.
        may_connect: allow TCP and UDP sockets. What they connect to no filter sees.
        ioctls: ioctl requests to allow.
    """
    conditions: dict[str, tuple[Condition, ...]] = {
        # SECURITY: clone without CLONE_THREAD is fork.
        "clone": (Condition(argument=0, all_bits=_CLONE_THREAD, no_bits=_CLONE_NAMESPACES),),
        "tgkill": (Condition(argument=0, one_of=(own_pid,)),),
        # SECURITY: an address would reach any UNIX or UDP socket.
        "sendto": (Condition(argument=4, one_of=(0,)), Condition(argument=3, no_bits=_MSG_FASTOPEN)),
        # SECURITY: its address lies in memory, where no filter sees it. Connected sockets refuse one; with this flag a TCP socket that was
        # shut down connects to it, past the missing connect, past landlock, and out of the namespace the socket was made in.
        "sendmsg": (Condition(argument=2, no_bits=_MSG_FASTOPEN),),
        "fcntl": (Condition(argument=1, one_of=_FCNTL_COMMANDS),),
        "prctl": (Condition(argument=0, one_of=_PRCTL_OPTIONS),),
        # Reading one's own limits.
        "prlimit64": (Condition(argument=0, one_of=(0, own_pid)), Condition(argument=2, one_of=(0,))),
        # fstat by another name.
        "newfstatat": (Condition(argument=3, all_bits=_AT_EMPTY_PATH),),
        "statx": (Condition(argument=2, all_bits=_AT_EMPTY_PATH),),
    }
    if may_open:
        conditions["openat"] = (Condition(argument=2, no_bits=_NOT_FOR_READING),)
    if may_connect:
        conditions["socket"] = (
            Condition(argument=0, one_of=_SOCKET_FAMILIES),
            Condition(argument=1, one_of=_SOCKET_KINDS),
            Condition(argument=2, one_of=_SOCKET_PROTOCOLS),
        )
    if ioctls:
        conditions["ioctl"] = (Condition(argument=1, one_of=ioctls),)
    # glibc falls back from clone3, whose flags a filter cannot see, to clone.
    return FilterRules(always=(*ALWAYS, *extra), conditions=conditions, errors={"clone3": _ENOSYS})


SERVE_IOCTLS = (_FIONBIO, _FIOCLEX, _FIONCLEX)

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_BITS = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_NOT_BELOW = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000
_NR_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

Instruction = tuple[int, int, int, int]


def build_program(rules: FilterRules, machine: str) -> bytes:
    """Compile rules for an architecture.

    Raises:
        KeyError: the architecture is unknown.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NR_OFFSET),
    ]
    if machine == "x86_64":
        # SECURITY: the x32 calls are the same kernel functions under other numbers.
        program += [(_NOT_BELOW, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    column = _COLUMNS[machine]
    for name in rules.always:
        if NUMBERS[name][column] >= 0:
            program += [(_EQUAL, 0, 1, NUMBERS[name][column]), (_RETURN, 0, 0, _ALLOW)]
    for name, error in rules.errors.items():
        program += [(_EQUAL, 0, 1, NUMBERS[name][column]), (_RETURN, 0, 0, _ERRNO | error)]
    for name, conditions in rules.conditions.items():
        if NUMBERS[name][column] >= 0:
            block = _block(conditions)
            program += [(_EQUAL, 0, len(block), NUMBERS[name][column]), *block]
    program.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _block(conditions: tuple[Condition, ...]) -> list[Instruction]:
    """Compile what follows a matching number: every condition holds, or EPERM."""
    block: list[Instruction] = []
    for condition in conditions:
        block += _condition(condition)
    return [*block, (_RETURN, 0, 0, _ALLOW)]


def _condition(condition: Condition) -> list[Instruction]:
    low = _ARGUMENTS_OFFSET + 8 * condition.argument
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | _EPERM)
    if condition.one_of:
        # The upper half must be zero: all these values are small. Commands and options are compared as the kernel sees them, 32 bits.
        tests: list[Instruction] = [(_LOAD, 0, 0, low + 4), (_EQUAL, 1, 0, 0), refuse, (_LOAD, 0, 0, low)]
        count = len(condition.one_of)
        # Each match jumps over the remaining tests and the refusal.
        tests += [(_EQUAL, count - index, 0, value) for index, value in enumerate(condition.one_of)]
        return [*tests, refuse]
    tests = [(_LOAD, 0, 0, low)]
    if condition.all_bits:
        tests += [(_AND, 0, 0, condition.all_bits), (_EQUAL, 1, 0, condition.all_bits), refuse, (_LOAD, 0, 0, low)]
    if condition.no_bits:
        tests += [(_BITS, 0, 1, condition.no_bits), refuse]
    return tests
