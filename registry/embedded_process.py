"""How the embedded server's process runs: as whom, where its socket is, and that it dies with its owner."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.deployment import EMBEDDED_SOCKET_PREFIX

_MAX_SOCKET_BASE_BYTES: Final = 60
"""A UNIX socket's path holds 107 bytes; to this come "/extpg-" with 16 digits and "/.s.PGSQL.5432.lock"."""
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._-]+\Z")  # The setting is a list: a comma or quote would mean something.
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01
ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_ACCOUNTS: Final = ("postgres", "nobody")
# Runs in the child between the user namespace and PostgreSQL: asks the kernel for SIGINT ("fast shutdown") when its owner dies, however it
# dies. It cannot be asked for earlier: entering a user namespace clears it.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 2, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedPostgresError(Exception):
    """The embedded server could not be found, started or reached. The text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How PostgreSQL is kept from being root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None


def choose_account() -> Account:
    """Choose how not to be root: ourselves if we are not, a user namespace, or an account that exists."""
    if os.geteuid() != 0:
        return Account()
    unshare = shutil.which("unshare", path=ENVIRONMENT["PATH"])
    if unshare is not None:
        prefix = (unshare, "--user", "--map-user=1000", "--map-group=1000", "--")
        tried = subprocess.run([*prefix, "/bin/true"], env=ENVIRONMENT, capture_output=True, check=False)  # noqa: S603 - fixed arguments
        if tried.returncode == 0:
            return Account(prefix=prefix)
    return unprivileged_account()


def unprivileged_account() -> Account:
    """Return an account that exists and may do little.

    Raises:
        EmbeddedPostgresError: there is none.
    """
    for name in _ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    message = "PostgreSQL refuses to run as root, and neither a user namespace nor another account is there; run as an ordinary user"
    raise EmbeddedPostgresError(message)


def launcher_of(account: Account) -> Sequence[str]:
    """Return what makes the server die with its owner."""
    if account.uid is None:
        return (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
    # Another account may not be able to reach this interpreter; the system's own tool does the same, where it is there.
    setpriv = shutil.which("setpriv", path=ENVIRONMENT["PATH"])
    return () if setpriv is None else (setpriv, "--pdeathsig", "INT", "--")


def make_socket_folder(account: Account, directory: Path) -> Path:
    """Make a short private folder: a UNIX socket's path is limited to 107 bytes, the state folder's is not.

    Its name follows from the state folder, so that URLs stay the same when the server is restarted.
    """
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _MAX_SOCKET_BASE_BYTES or _PLAIN_PATH.match(base) is None:
        base = "/tmp"  # noqa: S108 - what is made there is checked to be ours
    owner = os.geteuid() if account.uid is None else account.uid
    folder = Path(base) / (EMBEDDED_SOCKET_PREFIX + hashlib.sha256(f"{owner}:{directory}".encode()).hexdigest()[:16])
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        # SECURITY: the name can be foreseen, so somebody else may have made it, or a link. Then it is not used.
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
            folder = Path(tempfile.mkdtemp(prefix=EMBEDDED_SOCKET_PREFIX, dir=base))
    if account.uid is not None and account.gid is not None:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    return folder


def end_server(server: subprocess.Popen[bytes]) -> None:
    """Stop a server of ours: kindly, then firmly."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, and what cannot be refused
        with suppress(ProcessLookupError):
            server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
            return


def end_orphan(data: Path) -> None:
    """Wait for, and if need be stop, a server whose owner was killed."""

    def is_ours(pid: int) -> bool:
        # The number alone may be another process by now; a postmaster works in its data folder.
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
        return False

    with suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text(encoding="ascii").splitlines()[0])
        if is_ours(pid):
            os.kill(pid, signal.SIGINT)
            if not _until(lambda: not is_ours(pid)):
                os.kill(pid, signal.SIGKILL)
                _until(lambda: not is_ours(pid))


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(_POLL_SECONDS)
    return False
