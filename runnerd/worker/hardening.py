"""The second wall: what a process gives up before it touches hostile bytes. For workers and the small children.

The attack it stops (T2, T3): code that has escaped the engine reads the daemon's memory or environment, opens files, connects to a
database's socket, signals or traces other processes, or starts a program. Each step reports whether it is in force; a mandatory step that
is not is fatal unless the operator, in development only, says otherwise.

Order (N12): namespaces · environment, descriptors · another user without capabilities · no-new-privs, not dumpable, parent-death signal
· (a worker builds its engine) · landlock · resource limits · seccomp. Everything is imported before the first and every thread made
after the last.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from runnerd.worker import kernel, seccomp

MIB = 1024 * 1024
NOBODY = 65_534
_MAX_DESCRIPTOR = 1 << 20


class Step(StrEnum):
    """One step; the names are those of metrics and of `Hello`."""

    ENVIRONMENT = "environment"
    DESCRIPTORS = "descriptors"
    NAMESPACES = "namespaces"
    IDENTITY = "identity"
    NO_NEW_PRIVS = "no_new_privs"
    NOT_DUMPABLE = "not_dumpable"
    PARENT_DEATH = "parent_death"
    RLIMITS = "rlimits"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


MANDATORY: frozenset[Step] = frozenset(
    {Step.ENVIRONMENT, Step.DESCRIPTORS, Step.NO_NEW_PRIVS, Step.NOT_DUMPABLE, Step.PARENT_DEATH, Step.RLIMITS, Step.SECCOMP}
)
"""Steps that every kernel and container lets a process take (N12). The rest is added where it can be, never instead."""


class HardeningError(Exception):
    """A mandatory step is not in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningReport:
    """What is in force."""

    applied: tuple[Step, ...] = ()
    missing: Mapping[Step, str] = field(default_factory=dict)
    """Step → why not."""

    def joined(self, other: HardeningReport) -> HardeningReport:
        """Return what both say."""
        return HardeningReport(applied=(*self.applied, *other.applied), missing={**self.missing, **other.missing})

    def holds(self, step: Step) -> bool:
        """Tell whether a step is in force."""
        return step in self.applied


@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningProfile:
    """What one kind of process gives up."""

    name: str
    data_bytes: int | None = None
    """RLIMIT_DATA above what is used now; None leaves it. Never RLIMIT_AS: pools reserve hundreds of GiB (N12)."""
    open_files: int | None = 64
    """RLIMIT_NOFILE; None leaves it."""
    file_bytes: int = 0
    """RLIMIT_FSIZE: the longest file that it may write, memory files included."""
    file_bytes_without_landlock: int = 0
    """The same where landlock is missing. Workers then deserialise artifacts from bytes, and the engine copies images to memory files."""
    cpu_seconds: int | None = None
    extra_calls: tuple[str, ...] = ()
    """System calls beyond `seccomp.ALWAYS`."""
    ioctls: tuple[int, ...] = ()
    connects: bool = False
    """It makes TCP and UDP sockets and connects them; it never listens."""
    connect_ports: frozenset[int] | None = None
    """With `connects`: the only TCP ports that landlock leaves to it, on any host; None leaves all."""
    readable: tuple[str, ...] = ()
    """Folders that landlock leaves readable."""
    keep_descriptors: frozenset[int] | None = None
    """Close every other one above 2. None: whoever started the process passed only what it needs."""
    user: int | None = NOBODY
    """User and group to become where the process is root; None keeps it."""
    parent_death: bool = True
    clear_environment: bool = True


WORKER = HardeningProfile(name="worker", keep_descriptors=frozenset(), file_bytes_without_landlock=256 * MIB)
COMPILER = HardeningProfile(name="compiler", data_bytes=4096 * MIB, file_bytes=1024 * MIB, extra_calls=seccomp.COMPILE)
ASSETS = HardeningProfile(name="assets", data_bytes=512 * MIB, open_files=None, extra_calls=seccomp.SERVE, ioctls=seccomp.SERVE_IOCTLS)
EGRESS = HardeningProfile(
    name="egress", data_bytes=2048 * MIB, open_files=None, extra_calls=seccomp.CONNECT, ioctls=seccomp.SERVE_IOCTLS, connects=True
)
PROFILES: Mapping[str, HardeningProfile] = MappingProxyType({profile.name: profile for profile in (WORKER, COMPILER, ASSETS, EGRESS)})


def harden(
    profile: HardeningProfile | str,
    *,
    require: bool = True,
    readable: Iterable[str] = (),
    connect_ports: Iterable[int] | None = None,
    namespaces: bool = True,
) -> HardeningReport:
    """Take every step at once; for processes that need nothing in between.

    Call it after every import, in a process of one thread. Afterwards: no file opens (below `readable`, for reading, where landlock is in
    force), no socket is made, no program starts, no other process is signalled.

    Args:
        profile: or the name of one of `PROFILES`.
        require: raise where a mandatory step fails. False only in development.
        readable: folders that stay readable, besides the profile's.
        connect_ports: the only TCP ports that stay reachable, for a profile that connects.
        namespaces: try to leave the network and IPC namespaces. A listening socket that the process already has keeps working.

    Raises:
        HardeningError: a mandatory step failed.
    """
    chosen = PROFILES[profile] if isinstance(profile, str) else profile
    if readable:
        chosen = replace(chosen, readable=(*chosen.readable, *readable))
    if connect_ports is not None:
        chosen = replace(chosen, connect_ports=frozenset(connect_ports))
    report = enter_namespaces() if namespaces else HardeningReport()
    report = report.joined(give_up_privileges(chosen))
    return close_down(chosen, report, require=require)


def enter_namespaces() -> HardeningReport:
    """Move into an empty network and a new IPC namespace, through a user namespace where that is what the kernel allows.

    Before `give_up_privileges`: a process that is not dumpable cannot write its user map (N12).
    """
    return _run({Step.NAMESPACES: _enter_namespaces})


def give_up_privileges(profile: HardeningProfile) -> HardeningReport:
    """Environment, descriptors, user, capabilities, no-new-privs, dumpability, parent-death signal."""
    parent = os.getppid()
    steps: dict[Step, Callable[[], None]] = {}
    if profile.clear_environment:
        steps[Step.ENVIRONMENT] = _clear_environment
    if profile.keep_descriptors is not None:
        steps[Step.DESCRIPTORS] = lambda: _close_descriptors(profile.keep_descriptors or frozenset())
    else:
        steps[Step.DESCRIPTORS] = _check_descriptors
    if profile.user is not None:
        user = profile.user
        steps[Step.IDENTITY] = lambda: _become(user)
    else:
        steps[Step.IDENTITY] = _drop_capabilities
    steps[Step.NO_NEW_PRIVS] = lambda: _set_and_check(kernel.PR_SET_NO_NEW_PRIVS, 1, kernel.PR_GET_NO_NEW_PRIVS)
    steps[Step.NOT_DUMPABLE] = lambda: _set_and_check(kernel.PR_SET_DUMPABLE, 0, kernel.PR_GET_DUMPABLE)
    if profile.parent_death:
        # After the change of user, which clears it.
        steps[Step.PARENT_DEATH] = lambda: die_with_parent(parent)
    return _run(steps)


def close_down(profile: HardeningProfile, report: HardeningReport, *, require: bool) -> HardeningReport:
    """Landlock, resource limits, seccomp; then judge everything that was done.

    Args:
        profile: of this kind of process.
        report: of the steps before.
        require: raise where a mandatory step is missing.

    Raises:
        HardeningError: a mandatory step is missing.
    """
    in_use = _data_in_use()
    report = report.joined(_run({Step.LANDLOCK: lambda: _landlock(profile)}))
    confined = report.holds(Step.LANDLOCK)
    file_bytes = profile.file_bytes if confined else max(profile.file_bytes, profile.file_bytes_without_landlock)
    report = report.joined(
        _run(
            {
                Step.RLIMITS: lambda: _limit_resources(profile, in_use=in_use, file_bytes=file_bytes),
                # SECURITY: opening stays allowed only where landlock says what.
                Step.SECCOMP: lambda: _filter_calls(profile, may_open=confined),
            }
        )
    )
    missing = {step: report.missing.get(step, "not attempted") for step in MANDATORY if not report.holds(step)}
    if missing and require:
        message = "; ".join(f"{step}: {why}" for step, why in sorted(missing.items()))
        raise HardeningError(message)
    return report


def _run(steps: Mapping[Step, Callable[[], None]]) -> HardeningReport:
    applied: list[Step] = []
    missing: dict[Step, str] = {}
    for step, action in steps.items():
        try:
            action()
        except (OSError, ValueError, KeyError) as exc:
            missing[step] = f"{type(exc).__name__}: {exc}"[:200]
        else:
            applied.append(step)
    return HardeningReport(applied=tuple(applied), missing=missing)


# --- the steps, each raising OSError (or ValueError, KeyError) where it is not in force ------------------------------------------------


def _clear_environment() -> None:
    os.environ.clear()
    kernel.clear_environment()


def _close_descriptors(keep: frozenset[int]) -> None:
    low = 3
    for descriptor in sorted(number for number in keep if number >= low):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, _MAX_DESCRIPTOR)
    # NOTE: standard error stays until the process is closed down, so that a failing start can say why.
    _redirect((0, 1))


def _redirect(descriptors: Iterable[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def silence_standard_error() -> None:
    """Point standard error at nothing. Before `close_down`, which forbids opening."""
    _redirect((2,))


def _check_descriptors() -> None:
    """Check that only sockets, pipes, memory files and event descriptors are open besides the standard streams: no file, no folder."""
    for link in Path("/proc/self/fd").iterdir():
        number = int(link.name)
        if number <= 2:  # noqa: PLR2004 - the standard streams
            continue
        with contextlib.suppress(FileNotFoundError):
            target = str(link.readlink())
            if target.startswith("/") and not target.startswith(("/memfd:", "/dev/null", "/dev/urandom", "/proc/")):
                message = f"descriptor {number} is open on a file"
                raise ValueError(message)


def _enter_namespaces() -> None:
    wanted = kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    user, group = os.getuid(), os.getgid()
    try:
        kernel.unshare(wanted)
    except PermissionError:
        kernel.unshare(wanted | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_bytes(b"deny")
        Path("/proc/self/uid_map").write_bytes(f"{user} {user} 1".encode())
        Path("/proc/self/gid_map").write_bytes(f"{group} {group} 1".encode())


def _become(user: int) -> None:
    if os.geteuid() == 0:
        kernel.drop_bounding_set()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.drop_capabilities()


def _drop_capabilities() -> None:
    # Without the right to lower it the bounding set stays; with no-new-privs nothing can be raised from it.
    with contextlib.suppress(PermissionError):
        kernel.drop_bounding_set()
    kernel.drop_capabilities()


def _set_and_check(setter: int, value: int, getter: int) -> None:
    kernel.prctl(setter, value)
    found = kernel.prctl(getter)
    if found != value:
        message = f"the kernel says {found} after {value} was set"
        raise ValueError(message)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when the thread that started it ends.

    Args:
        parent: process id of the parent, where it is known. The kernel tells only of a death to come; with this, one that came before it
            was asked ends the process too.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit_resources(profile: HardeningProfile, *, in_use: int, file_bytes: int) -> None:
    limits = {resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_CORE: 0}
    if profile.data_bytes is not None:
        limits[resource.RLIMIT_DATA] = in_use + profile.data_bytes
    if profile.open_files is not None:
        limits[resource.RLIMIT_NOFILE] = profile.open_files
    if profile.cpu_seconds is not None:
        limits[resource.RLIMIT_CPU] = profile.cpu_seconds
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def _data_in_use() -> int:
    """Return the bytes that count against RLIMIT_DATA now."""
    # NOTE: bytes, not text: reading text may import a codec, and the interpreter's files may be out of reach by now.
    fields = Path("/proc/self/statm").read_bytes().split()
    return int(fields[5]) * resource.getpagesize()


_FS_BITS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""Accesses to the file system that each version of landlock handles."""
_NETWORK_VERSION, _BIND_BIT, _CONNECT_BIT = 4, 0b01, 0b10
"""TCP only: landlock knows no UDP yet."""
_SCOPE_VERSION, _SCOPE_BITS = 6, 0b11
"""Abstract UNIX sockets and signals."""
_READ_FILE_AND_FOLDER = 0b1100


def _landlock(profile: HardeningProfile) -> None:
    version = kernel.landlock_version()
    connects_anywhere = profile.connects and profile.connect_ports is None
    network = (_BIND_BIT if connects_anywhere else _BIND_BIT | _CONNECT_BIT) if version >= _NETWORK_VERSION else 0
    ruleset = kernel.landlock_ruleset(
        filesystem=_FS_BITS[min(version, max(_FS_BITS))],
        network=network,
        scoped=_SCOPE_BITS if version >= _SCOPE_VERSION else 0,
    )
    try:
        for folder in profile.readable:
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                kernel.landlock_allow(ruleset, descriptor, _READ_FILE_AND_FOLDER)
            finally:
                os.close(descriptor)
        if network & _CONNECT_BIT:
            for port in sorted(profile.connect_ports or ()):
                kernel.landlock_allow_port(ruleset, port, _CONNECT_BIT)
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def _filter_calls(profile: HardeningProfile, *, may_open: bool) -> None:
    rules = seccomp.rules_for(
        own_pid=os.getpid(), extra=profile.extra_calls, may_open=may_open, may_connect=profile.connects, ioctls=profile.ioctls
    )
    kernel.install_filter(seccomp.build_program(rules, kernel.machine()))
    # SECURITY: believe the filter only when it has refused something.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0, 0, None, None) != -1 or ctypes.get_errno() != errno.EPERM:
        message = "the filter does not refuse"
        raise ValueError(message)
