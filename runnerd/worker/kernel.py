"""Calls of the Linux kernel that Python 3.11 lacks: prctl, capset, unshare, landlock, seccomp. Own ctypes (N12)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

_libc: Any = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_GET_DUMPABLE = 3
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_NEWUSER = 0x10000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000

_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_RULE_NET_PORT = 2
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_MAX_CAPABILITY = 63
_EINVAL = 22


def machine() -> str:
    """Return the processor architecture as the kernel names it."""
    return os.uname().machine


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: Any) -> int:
    return _check(int(_libc.syscall(ctypes.c_long(number), *arguments)), what)


def prctl(option: int, *arguments: int) -> int:
    """Change or ask for an attribute of this process; arguments are integers."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(int(_libc.prctl(ctypes.c_int(option), *padded)), f"prctl {option}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _check(int(_libc.unshare(ctypes.c_int(flags))), "unshare")


def clear_environment() -> None:
    """Empty the environment of the C library."""
    _check(int(_libc.clearenv()), "clearenv")


def drop_bounding_set() -> None:
    """Empty the bounding set, from which nothing can then be raised again. Needs CAP_SETPCAP, so it comes before a change of user."""
    for capability in range(_MAX_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as exc:
            if exc.errno == _EINVAL:
                # The kernel knows no more of them.
                return
            raise


def drop_capabilities() -> None:
    """Empty the ambient, effective, permitted and inheritable sets."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("capset", _SYS_CAPSET[machine()], header, bytes(24))


def landlock_version() -> int:
    """Return the version of landlock's interface; raise OSError where the kernel has none."""
    return _syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION))


def landlock_ruleset(*, filesystem: int, network: int, scoped: int) -> int:
    """Make a rule set that handles these accesses; return its descriptor. Masks that are 0 at the end are left out, for older kernels."""
    attributes = struct.pack("<Q", filesystem)
    if network or scoped:
        attributes += struct.pack("<Q", network)
    if scoped:
        attributes += struct.pack("<Q", scoped)
    return _syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))


def landlock_allow(ruleset: int, folder: int, access: int) -> None:
    """Allow an access beneath an open folder."""
    rule = struct.pack("<Qi", access, folder)
    _syscall("landlock", _SYS_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))


def landlock_allow_port(ruleset: int, port: int, access: int) -> None:
    """Allow an access to one TCP port."""
    rule = struct.pack("<QQ", access, port)
    _syscall("landlock", _SYS_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_LANDLOCK_RULE_NET_PORT), rule, ctypes.c_uint32(0))


def landlock_restrict(ruleset: int) -> None:
    """Put this process under a rule set, for good."""
    _syscall("landlock", _SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install_filter(program: bytes) -> None:
    """Put every thread of this process under a seccomp filter, for good. Needs no-new-privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _syscall(
        "seccomp",
        _SYS_SECCOMP[machine()],
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(descriptor),
    )
