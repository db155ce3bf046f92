"""Code that has escaped the engine, tried from inside each hardened kind of process, as root and as an ordinary user, with and without
landlock (T2, T3)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runnerd.worker import kernel
from runnerd.worker.hardening import MANDATORY, NOBODY

PROBE = Path(__file__).with_name("probe.py")
NEEDED = {"thread", "map", "random", "own_limits", "talk_to_the_daemon"}
MAY_OPEN = {"memory_file_by_descriptor"}
NOT_ATTEMPTS = {"environment", "applied"}
STANDS_OPEN = {"stat_by_empty_path"}
"""Known and accepted: the size, owner and dates of a file whose folders everybody may enter. glibc asks fstat that way, and a filter does
not see the path; nothing of the content is read."""
LOOKS_ALLOWED = {
    # Refused by the socket, which is connected to the daemon: the filter lets a message without address pass and does not see one with.
    "message_inherited_elsewhere": "EISCONN",
    "message_inherited_to_database": "EISCONN",
    # Answered like that so that glibc makes threads with clone, whose flags a filter sees.
    "clone3_process": "ENOSYS",
}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the probe changes its user")


@contextmanager
def sibling_of(user: str) -> Iterator[int]:
    """A process of the user that the probe ends as, which hides nothing."""
    identity = NOBODY if user == "-" else int(user)
    with subprocess.Popen(["sleep", "60"], env={"SECRET": "of a neighbour"}, user=identity, group=identity, extra_groups=[]) as process:
        yield process.pid
        process.kill()


def start_probe(tmp_path: Path, *, sibling: int, **plan: Any) -> subprocess.CompletedProcess[bytes]:
    unix_path, datagram_path = tmp_path / "socket", tmp_path / "datagrams"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taking:
        for made, path in ((listening, unix_path), (taking, datagram_path)):
            made.bind(str(path))
            path.chmod(0o777)
        listening.listen()
        fields = {"parent": os.getpid(), "sibling": sibling, "unix_path": str(unix_path), "datagram_path": str(datagram_path)}
        ended = subprocess.run(
            [sys.executable, "-I", str(PROBE), json.dumps(fields | plan)],
            env={"SECRET": "of the daemon", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            check=False,
            timeout=60,
            close_fds=True,
        )
        # Whatever the error was called, nothing has arrived.
        for made in (listening, taking):
            made.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
        with pytest.raises(BlockingIOError):
            taking.recv(1)
    assert unix_path.exists()
    return ended


def run_probe(tmp_path: Path, *, profile: str, user: str, landlock: bool, readable: str = "-") -> dict[str, str]:
    with sibling_of(user) as sibling:
        ended = start_probe(tmp_path, sibling=sibling, profile=profile, user=user, landlock=landlock, readable=readable)
        assert Path(f"/proc/{sibling}").exists()
    assert ended.returncode == 0, ended.stderr.decode()
    found: dict[str, str] = json.loads(ended.stdout)
    # The probe says on its standard error what it found open in its sweeps.
    assert ended.stderr == b"" or found["every_other_call"] != "done", ended.stderr.decode()
    return found


@pytest.mark.parametrize("landlock", [True, False], ids=["landlock", "no landlock"])
@pytest.mark.parametrize("user", ["-", "1234"])
@pytest.mark.parametrize("profile", ["worker", "compiler", "assets"])
def test_everything_that_opens_another_door__is_refused(tmp_path: Path, profile: str, user: str, landlock: bool) -> None:
    found = run_probe(tmp_path, profile=profile, user=user, landlock=landlock)

    confined = "landlock" in found["applied"].split()
    allowed = NEEDED | STANDS_OPEN | (MAY_OPEN if confined else set())
    attempts = {name: outcome for name, outcome in found.items() if name not in NOT_ATTEMPTS}
    assert {name for name, outcome in attempts.items() if outcome == "done"} == allowed
    refused = {name: outcome for name, outcome in attempts.items() if outcome not in {"done", "EPERM", "EACCES"}}
    assert refused == LOOKS_ALLOWED
    assert found["environment"] == "{}"
    assert set(MANDATORY) <= set(found["applied"].split())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the 32-bit calls are those of x86")
@pytest.mark.parametrize("profile", ["worker", "compiler", "assets"])
def test_call_of_the_32_bit_architecture__ends_the_process(tmp_path: Path, profile: str) -> None:
    ended = start_probe(tmp_path, sibling=os.getpid(), profile=profile, user="-", landlock=True, readable="-", foreign_calls=True)

    assert ended.returncode == -signal.SIGSYS


def test_landlock__is_in_force_where_the_kernel_has_it(tmp_path: Path) -> None:
    try:
        kernel.landlock_version()
    except OSError:
        pytest.skip("this kernel has no landlock")
    assert "landlock" in run_probe(tmp_path, profile="worker", user="-", landlock=True)["applied"].split()


def test_readable_folder__is_readable_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "page.html").write_text("hello", encoding="utf-8")
    for path in [folder, *folder.parents]:
        if path.stat().st_uid == os.getuid() and path.is_relative_to(tmp_path.parents[2]):
            path.chmod(path.stat().st_mode | 0o055)
    found = run_probe(tmp_path, profile="assets", user="-", landlock=True, readable=str(folder))

    if "landlock" not in found["applied"].split():
        pytest.skip("this kernel has no landlock")
    assert found["readable_folder"] == "done"
    assert found["read_passwd"] == "EACCES"
    assert found["write_readable_folder"] in {"EPERM", "EACCES"}
