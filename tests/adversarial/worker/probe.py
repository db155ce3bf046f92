"""What escaped code would try, from a process under a hardening profile. Run by test_escape_attempts.py as a program of its own.

Arguments: profile, user (or "-"), the parent's pid, a UNIX socket path, a folder that may be readable (or "-"), landlock ("yes" or "no").
Prints one JSON object: attempt → "done" or the error's name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from runnerd.worker import hardening, kernel

profile, user, parent, unix_path, readable, landlock = sys.argv[1:7]
report_descriptor = os.dup(1)
memory_file = os.memfd_create("probe")
os.write(memory_file, b"x" * 4096)
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"


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


def read(path: str) -> Callable[[], None]:
    def call() -> None:
        with open(path, "rb") as file:  # noqa: PTH123 - the system call is what is meant
            file.read(1)

    return call


def grow_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


ATTEMPTS: dict[str, Callable[[], object]] = {
    # What a worker needs must keep working.
    "thread": thread,
    "map": lambda: mmap.mmap(-1, 1 << 20).close(),
    "random": lambda: os.urandom(8),
    "own_limits": lambda: resource.getrlimit(resource.RLIMIT_DATA),
    "memory_file_by_descriptor": read(f"/proc/self/fd/{memory_file}"),
    "readable_folder": read(f"{readable}/page.html"),
    # What it must not do.
    "read_passwd": read("/etc/passwd"),
    "read_parent_memory": read(f"/proc/{parent}/mem"),
    "read_parent_environment": read(f"/proc/{parent}/environ"),
    "read_own_memory": read("/proc/self/mem"),
    "list_parent_descriptors": lambda: os.listdir(f"/proc/{parent}/fd"),  # noqa: PTH208
    "write_tmp": lambda: os.open("/tmp/probe-was-here", os.O_WRONLY | os.O_CREAT, 0o600),
    "write_readable_folder": lambda: os.open(f"{readable}/new", os.O_WRONLY | os.O_CREAT, 0o600),
    "stat_passwd": lambda: os.stat("/etc/passwd"),  # noqa: PTH116
    "readlink": lambda: os.readlink("/proc/self/exe"),  # noqa: PTH115
    "unlink": lambda: os.unlink(unix_path),  # noqa: PTH108
    "chdir": lambda: os.chdir("/"),
    "unix_socket": connect(socket.AF_UNIX, socket.SOCK_STREAM, unix_path),
    "abstract_socket": connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0probe"),
    "tcp": connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 9)),
    "udp": connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53)),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socketpair": socket.socketpair,
    "signal_parent": lambda: os.kill(int(parent), 0),
    "kill_everybody": lambda: os.kill(-1, signal.SIGCONT),
    "signal_group": lambda: os.killpg(0, signal.SIGCONT),
    "pidfd_parent": lambda: os.pidfd_open(int(parent)),
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "ptrace_parent": raw(101, 117, 16, int(parent), None, None),
    "process_vm_readv": raw(310, 270, int(parent), None, 0, None, 0, 0),
    "unshare_user": lambda: kernel.unshare(kernel.CLONE_NEWUSER),
    "clone_namespace": raw(56, 220, 0x10000000 | 17, None, None, None, None),
    "io_uring": raw(425, 425, 8, None),
    "bpf": raw(321, 280, 0, None, 0),
    "perf": raw(298, 241, None, 0, -1, -1, 0),
    "userfaultfd": raw(323, 282, 0),
    "keyctl": raw(250, 219, 0, -3, 1),
    "mount": raw(165, 40, b"none", b"/mnt", b"tmpfs", 0, None),
    "dumpable_again": lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1),
    "become_root": lambda: os.setuid(0),
    "raise_limit": grow_limit,
    "limit_of_parent": lambda: resource.prlimit(int(parent), resource.RLIMIT_CORE),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "shared_memory": raw(29, 194, 0x1234, 4096, 0o1000 | 0o600),
    "sysv_queue": raw(68, 186, 0x1234, 0o1000 | 0o600),
    "terminal_injection": raw(16, 29, 0, 0x5412, b"x"),
}


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))
    except ValueError:
        return "EPERM"
    return "done"


def main() -> None:
    if user != "-":
        os.setgroups([])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    if landlock == "no":

        def missing(profile: hardening.HardeningProfile) -> None:
            raise OSError(errno.ENOSYS, "switched off by the test")

        hardening._landlock = missing
    chosen = hardening.PROFILES[profile]
    if chosen.keep_descriptors is not None:
        chosen = replace(chosen, keep_descriptors=frozenset({report_descriptor, memory_file}))
    report = hardening.harden(chosen, readable=[] if readable == "-" else [readable])
    found = {name: attempt(action) for name, action in ATTEMPTS.items() if readable != "-" or "readable" not in name}
    found["environment"] = json.dumps(dict(os.environ))
    found["applied"] = " ".join(sorted(report.applied))
    os.write(report_descriptor, json.dumps(found).encode())
    os._exit(0)


main()
