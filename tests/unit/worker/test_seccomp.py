"""The filters, run in a small interpreter of the kernel's machine, for both architectures."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from runnerd.worker import seccomp
from runnerd.worker.seccomp import NUMBERS, build_program, rules_for

PID = 4242
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050001, 0x00050026
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), *, architecture: int) -> int:
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, constant = instructions[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                position += if_true if accumulator == constant else if_false
            case 0x45:
                position += if_true if accumulator & constant else if_false
            case 0x35:
                position += if_true if accumulator >= constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(code)


def decide(machine: str, name: str, *arguments: int, **rules: object) -> int:
    program = build_program(rules_for(own_pid=PID, **rules), machine)  # type: ignore[arg-type]
    number = NUMBERS[name][0 if machine == "x86_64" else 1]
    return run(program, number, arguments, architecture=ARCHITECTURES[machine])


def both(numbers: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """Return (machine, name) of every call that the machine has."""
    return [(machine, name) for name, pair in numbers.items() for machine, number in zip(ARCHITECTURES, pair, strict=True) if number >= 0]


@pytest.mark.parametrize(("machine", "name"), both({name: NUMBERS[name] for name in seccomp.ALWAYS}))
def test_always__is_allowed(machine: str, name: str) -> None:
    assert decide(machine, name) == ALLOW


FORBIDDEN = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "userfaultfd": (323, 282),
    "open": (2, -1),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "creat": (85, -1),
    "unlinkat": (263, 35),
    "readlinkat": (267, 78),
    "setuid": (105, 146),
    "setresuid": (117, 147),
    "capset": (126, 91),
    "setrlimit": (160, 164),
    "seccomp": (317, 277),
    "reboot": (169, 142),
    "chroot": (161, 51),
    "personality": (135, 92),
    "shmget": (29, 194),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
    "sendmmsg": (307, 269),
    "modify_ldt": (154, -1),
    "ioctl": (16, 29),
    "memfd_secret": (447, 447),
}


@pytest.mark.parametrize(("machine", "name"), both(FORBIDDEN))
def test_forbidden__is_refused(machine: str, name: str) -> None:
    number = FORBIDDEN[name][0 if machine == "x86_64" else 1]
    program = build_program(rules_for(own_pid=PID, may_open=True), machine)

    assert run(program, number, architecture=ARCHITECTURES[machine]) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("clone", (0x003D0F00,), ALLOW),  # as pthread_create does
        ("clone", (17,), EPERM),  # as fork does
        ("clone", (0x00010000 | 0x10000000,), EPERM),  # a thread in a new user namespace
        ("clone", (0x00000100,), EPERM),
        ("clone3", (), ENOSYS),
        ("tgkill", (PID, 77, 6), ALLOW),
        ("tgkill", (PID + 1, 77, 9), EPERM),
        ("tgkill", (PID | 1 << 32, 77, 9), EPERM),
        ("sendto", (5, 0, 0, 0, 0), ALLOW),
        ("sendto", (5, 0, 0, 0, 0x7FFF00001000), EPERM),
        ("sendto", (5, 0, 0, 0, 0x700000000000), EPERM),
        ("fcntl", (5, 3), ALLOW),
        ("fcntl", (5, 1034), ALLOW),
        ("fcntl", (5, 8), EPERM),  # F_SETOWN
        ("fcntl", (5, 10), EPERM),  # F_SETSIG
        ("prctl", (15,), ALLOW),
        ("prctl", (4,), EPERM),  # PR_SET_DUMPABLE
        ("prctl", (22,), EPERM),  # PR_SET_SECCOMP
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (PID, 7, 0), ALLOW),
        ("prlimit64", (0, 7, 0x7FFF00001000), EPERM),
        ("prlimit64", (1, 7, 0), EPERM),
        ("newfstatat", (5, 0, 0, 0x1000), ALLOW),
        ("newfstatat", (5, 0, 0, 0), EPERM),
        ("statx", (5, 0, 0x1000), ALLOW),
        ("statx", (5, 0, 0), EPERM),
        ("openat", (0, 0, 0), EPERM),  # without landlock
    ],
)
def test_conditions(machine: str, name: str, arguments: tuple[int, ...], verdict: int) -> None:
    assert decide(machine, name, *arguments) == verdict


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("flags", "verdict"),
    [(0, ALLOW), (0o2000000, ALLOW), (1, EPERM), (2, EPERM), (0o100, EPERM), (0o1000, EPERM), (0o20200002, EPERM), (0o10000000, EPERM)],
)
def test_open__under_landlock__is_for_reading_only(machine: str, flags: int, verdict: int) -> None:
    assert decide(machine, "openat", 0, 0, flags, may_open=True) == verdict


def test_other_architecture__ends_the_process() -> None:
    program = build_program(rules_for(own_pid=PID), "x86_64")

    assert run(program, 0, architecture=0x40000003) == KILL  # i386
    assert run(program, 0x40000000, architecture=ARCHITECTURES["x86_64"]) == KILL  # x32


def test_unknown_machine__is_an_error() -> None:
    with pytest.raises(KeyError):
        build_program(rules_for(own_pid=PID), "riscv64")


def test_serve__adds_what_an_event_loop_needs() -> None:
    assert decide("x86_64", "accept4") == EPERM
    assert decide("x86_64", "accept4", extra=seccomp.SERVE) == ALLOW
    assert decide("x86_64", "ioctl", 5, 0x5421, ioctls=seccomp.SERVE_IOCTLS) == ALLOW
    assert decide("x86_64", "ioctl", 5, 0x5412, ioctls=seccomp.SERVE_IOCTLS) == EPERM  # TIOCSTI
