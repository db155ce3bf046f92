"""What escaped code would try, from a process under a hardening profile. Run by test_escape_attempts.py as a program of its own.

Argument: a JSON object of `Plan`'s fields. Prints one JSON object: attempt → "done" or the error's name.
"""

# ruff: noqa: PTH104, PTH108, PTH115, PTH116, PTH123, PTH208 - the system calls are what is meant

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from runnerd.worker import hardening, kernel, seccomp


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the test has prepared."""

    profile: str
    user: str
    """Become this user first, "-": stay."""
    parent: int
    sibling: int
    """A process of the same user that hides nothing."""
    unix_path: str
    """Somebody listens there, as a database does."""
    datagram_path: str
    readable: str
    """A folder that may be readable, or "-"."""
    landlock: bool
    foreign_calls: bool = False
    """Only run a system call of the 32-bit architecture, which ends the process."""


plan: Final = Plan(**json.loads(sys.argv[1]))
report_descriptor = os.dup(1)
memory_file = os.memfd_create("probe")
os.write(memory_file, b"x" * 4096)
inherited, other_end = socket.socketpair()
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
UNFILTERED = {335, 336} if X86 else set()
"""uretprobe and uprobe: newer kernels let them past every filter, and end the process that calls them by itself."""
FAMILIES, KINDS = range(47), (*range(1, 6), 10)


def raw(number_x86: int, number_arm: int, *arguments: object) -> Callable[[], None]:
    def call() -> None:
        if libc.syscall(ctypes.c_long(number_x86 if X86 else number_arm), *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return call


def thread() -> None:
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()


def connect(family: int, kind: int, address: object) -> Callable[[], None]:
    def call() -> None:
        with socket.socket(family, kind) as made:
            made.connect(address)  # type: ignore[arg-type]

    return call


def every_socket(number_x86: int, number_arm: int) -> Callable[[], None]:
    """Try each family and type; succeed where any of them is not refused as such."""

    def call() -> None:
        pair = (ctypes.c_int * 2)()
        for family, kind in itertools.product(FAMILIES, KINDS):
            ctypes.set_errno(0)
            made = libc.syscall(ctypes.c_long(number_x86 if X86 else number_arm), family, kind, 0, pair)
            if made >= 0 or ctypes.get_errno() != errno.EPERM:
                return
        raise PermissionError(errno.EPERM, "refused")

    return call


def every_other_call() -> None:
    """Try each system call that no profile lists; succeed where any of them is not refused as such."""
    column = 0 if X86 else 1
    listed = {numbers[column] for numbers in seccomp.NUMBERS.values()}
    for number in sorted(set(range(512)) - listed - UNFILTERED):
        ctypes.set_errno(0)
        # Arguments that nothing can be done with, should a call get through.
        if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) >= 0 or ctypes.get_errno() != errno.EPERM:
            os.write(2, f"system call {number}: {ctypes.get_errno()}\n".encode())
            return
    raise PermissionError(errno.EPERM, "refused")


def message_to(path: str) -> Callable[[], object]:
    """Send over the inherited connected socket to somebody else."""
    return lambda: inherited.sendmsg([b"to the database"], [], 0, path)


def read(path: str) -> Callable[[], None]:
    def call() -> None:
        with open(path, "rb") as file:
            file.read(1)

    return call


def grow_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def execute_memory() -> None:
    """Run a program from a memory file."""
    raw(322, 281, memory_file, b"", (ctypes.c_char_p * 1)(), (ctypes.c_char_p * 1)(), AT_EMPTY_PATH)()


def stat_by_empty_path() -> None:
    """Ask for a path with the flag that fstat needs: the filter sees the flag and not the path."""
    raw(262, 79, AT_FDCWD, b"/etc/passwd", ctypes.create_string_buffer(256), AT_EMPTY_PATH)()


def foreign_calls() -> None:
    """Call getpid of i386: int 0x80."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def of(name: str, pid: int) -> dict[str, Callable[[], object]]:
    """What could be done to another process."""
    folder = f"/proc/{pid}"
    return {
        f"read_{name}_memory": read(f"{folder}/mem"),
        f"read_{name}_environment": read(f"{folder}/environ"),
        f"read_{name}_maps": read(f"{folder}/maps"),
        f"read_{name}_command": read(f"{folder}/cmdline"),
        f"read_{name}_folder": lambda: os.listdir(f"{folder}/cwd"),
        f"list_{name}_descriptors": lambda: os.listdir(f"{folder}/fd"),
        f"open_{name}_descriptor": read(f"{folder}/fd/0"),
        f"open_{name}_namespace": read(f"{folder}/ns/net"),
        f"write_{name}_oom": lambda: os.open(f"{folder}/oom_score_adj", os.O_WRONLY),
        f"signal_{name}": lambda: os.kill(pid, 0),
        f"thread_signal_{name}": raw(200, 130, pid, 0),
        f"thread_group_signal_{name}": raw(234, 131, pid, pid, 0),
        f"queued_signal_{name}": raw(129, 138, pid, 0, ctypes.create_string_buffer(128)),
        f"pidfd_{name}": lambda: os.pidfd_open(pid),
        f"pidfd_signal_{name}": raw(424, 424, memory_file, 0, None, 0),
        f"pidfd_getfd_{name}": raw(438, 438, memory_file, 0, 0),
        f"attach_{name}": raw(101, 117, 16, pid, None, None),
        f"seize_{name}": raw(101, 117, 0x4206, pid, None, None),
        f"process_vm_readv_{name}": raw(310, 270, pid, None, 0, None, 0, 0),
        f"process_vm_writev_{name}": raw(311, 271, pid, None, 0, None, 0, 0),
        f"process_madvise_{name}": raw(440, 440, memory_file, None, 0, 0, 0),
        f"kcmp_{name}": raw(312, 272, os.getpid(), pid, 0, 0, 0),
        f"move_pages_{name}": raw(279, 239, pid, 0, None, None, None, 0),
        f"limit_{name}": lambda: resource.prlimit(pid, resource.RLIMIT_CORE),
        f"priority_{name}": lambda: os.setpriority(os.PRIO_PROCESS, pid, 5),
        f"affinity_{name}": lambda: os.sched_setaffinity(pid, {0}),
        f"scheduler_{name}": raw(144, 119, pid, 0, ctypes.create_string_buffer(8)),
    }


ATTEMPTS: dict[str, Callable[[], object]] = {
    # What a worker needs must keep working.
    "thread": thread,
    "map": lambda: mmap.mmap(-1, 1 << 20).close(),
    "random": lambda: os.urandom(8),
    "own_limits": lambda: resource.getrlimit(resource.RLIMIT_DATA),
    "talk_to_the_daemon": lambda: inherited.send(b"x"),
    "memory_file_by_descriptor": read(f"/proc/self/fd/{memory_file}"),
    "readable_folder": read(f"{plan.readable}/page.html"),
    # Other processes: the daemon, and a worker of another tenant.
    **of("parent", plan.parent),
    **of("sibling", plan.sibling),
    "kill_everybody": lambda: os.kill(-1, signal.SIGCONT),
    "signal_group": lambda: os.killpg(0, signal.SIGCONT),
    "traced_by_parent": raw(101, 117, 0, 0, None, None),
    # Files.
    "read_passwd": read("/etc/passwd"),
    "read_own_memory": read("/proc/self/mem"),
    "read_own_environment": read("/proc/self/environ"),
    "list_processes": lambda: os.listdir("/proc"),
    "write_tmp": lambda: os.open("/tmp/probe-was-here", os.O_WRONLY | os.O_CREAT, 0o600),
    "unnamed_tmp_file": lambda: os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600),
    "write_readable_folder": lambda: os.open(f"{plan.readable}/new", os.O_WRONLY | os.O_CREAT, 0o600),
    "path_only": lambda: os.open("/etc/passwd", os.O_PATH),
    "old_open": raw(2, -1, b"/etc/passwd", 0, 0),
    "openat2": raw(437, 437, AT_FDCWD, b"/etc/passwd", ctypes.create_string_buffer(24), 24),
    "open_by_handle": raw(304, 265, AT_FDCWD, ctypes.create_string_buffer(32), 0),
    "handle_of_a_file": raw(303, 264, AT_FDCWD, b"/etc/passwd", ctypes.create_string_buffer(256), ctypes.byref(ctypes.c_int()), 0),
    "stat_passwd": lambda: os.stat("/etc/passwd"),
    "stat_by_empty_path": stat_by_empty_path,
    "access_passwd": lambda: os.access("/etc/passwd", os.R_OK) or os.strerror(0)[99],
    "readlink": lambda: os.readlink("/proc/self/exe"),
    "unlink": lambda: os.unlink(plan.unix_path),
    "rename": lambda: os.rename(plan.unix_path, plan.unix_path + "-moved"),
    "chdir": lambda: os.chdir("/"),
    "chroot": lambda: os.chroot("/"),
    "watch_files": raw(294, 26, 0),
    # Sockets, new and inherited.
    "every_socket": every_socket(41, 198),
    "every_socket_pair": every_socket(53, 199),
    "unix_socket": connect(socket.AF_UNIX, socket.SOCK_STREAM, plan.unix_path),
    "unix_datagram": connect(socket.AF_UNIX, socket.SOCK_DGRAM, plan.datagram_path),
    "abstract_socket": connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0probe"),
    "tcp": connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 9)),
    "udp": connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53)),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "reconnect_inherited": lambda: inherited.connect(plan.unix_path),
    "send_inherited_elsewhere": lambda: inherited.sendto(b"x", plan.datagram_path),
    "message_inherited_elsewhere": message_to(plan.datagram_path),
    "message_inherited_to_database": message_to(plan.unix_path),
    "many_messages": raw(307, 269, inherited.fileno(), None, 0, 0),
    "listen_on_inherited": inherited.listen,
    "bind_inherited": lambda: inherited.bind("\0probe"),
    # Programs, processes, namespaces.
    "fork": os.fork,
    "vfork": raw(58, -1),
    "clone_process": raw(56, 220, signal.SIGCHLD, None, None, None, None),
    "clone3_process": raw(435, 435, ctypes.create_string_buffer(88), 88),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "execute_memory": execute_memory,
    "unshare_user": lambda: kernel.unshare(kernel.CLONE_NEWUSER),
    "enter_namespace": raw(308, 268, memory_file, 0),
    "clone_namespace": raw(56, 220, 0x10000000 | 17, None, None, None, None),
    "mount": raw(165, 40, b"none", b"/mnt", b"tmpfs", 0, None),
    "mount_by_descriptor": raw(429, 429, memory_file, b"", AT_FDCWD, b"/mnt", 4),
    "open_tree": raw(428, 428, AT_FDCWD, b"/", 1),
    "pivot_root": raw(155, 41, b"/", b"/"),
    # What the kernel offers besides.
    "io_uring": raw(425, 425, 8, None),
    "bpf": raw(321, 280, 0, None, 0),
    "perf": raw(298, 241, None, 0, -1, -1, 0),
    "userfaultfd": raw(323, 282, 0),
    "keyctl": raw(250, 219, 0, -3, 1),
    "add_key": raw(248, 217, b"user", b"probe", b"x", 1, -3),
    "request_key": raw(249, 218, b"user", b"probe", None, -3),
    "secret_memory": raw(447, 447, 0),
    "shared_memory": raw(29, 194, 0x1234, 4096, 0o1000 | 0o600),
    "sysv_queue": raw(68, 186, 0x1234, 0o1000 | 0o600),
    "posix_queue": raw(240, 180, b"probe", 0o100, 0o600, None),
    "terminal_injection": raw(16, 29, 0, 0x5412, b"x"),
    "every_other_call": every_other_call,
    # Undoing what was given up.
    "dumpable_again": lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1),
    "let_anybody_trace": lambda: kernel.prctl(0x59616D61, -1),
    "outlive_the_parent": lambda: kernel.prctl(kernel.PR_SET_PDEATHSIG, 0),
    "another_filter": raw(317, 277, 1, 0, None),
    "become_root": lambda: os.setuid(0),
    "take_capabilities": raw(126, 91, ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)),
    "raise_limit": grow_limit,
    "raise_limit_the_old_way": raw(160, 164, 4, ctypes.create_string_buffer(16)),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "leave_the_processor": lambda: os.sched_setaffinity(0, {0}),
    "personality": raw(135, 92, 0x0040000),
}


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))
    except (ValueError, IndexError):
        return "EPERM"
    return "done"


def main() -> None:
    if plan.user != "-":
        user = int(plan.user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    if not plan.landlock:

        def missing(profile: hardening.HardeningProfile) -> None:
            raise OSError(errno.ENOSYS, "switched off by the test")

        hardening._landlock = missing
    chosen = hardening.PROFILES[plan.profile]
    if chosen.keep_descriptors is not None:
        chosen = replace(chosen, keep_descriptors=frozenset({report_descriptor, memory_file, inherited.fileno(), other_end.fileno()}))
    report = hardening.harden(chosen, readable=[] if plan.readable == "-" else [plan.readable])
    if plan.foreign_calls:
        foreign_calls()
    found = {name: attempt(action) for name, action in ATTEMPTS.items() if plan.readable != "-" or "readable" not in name}
    found["environment"] = json.dumps(dict(os.environ))
    found["applied"] = " ".join(sorted(report.applied))
    os.write(report_descriptor, json.dumps(found).encode())
    os._exit(0)


main()
