"""Code that has escaped the engine, tried from inside each hardened kind of process, as root and as an ordinary user, with and without
landlock (T2, T3)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runnerd.worker import kernel
from runnerd.worker.hardening import MANDATORY

PROBE = Path(__file__).with_name("probe.py")
NEEDED = {"thread", "map", "random", "own_limits"}
MAY_OPEN = {"memory_file_by_descriptor"}
NOT_ATTEMPTS = {"environment", "applied"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the probe changes its user")


def run_probe(tmp_path: Path, *, profile: str, user: str, landlock: str, readable: str = "-") -> dict[str, str]:
    unix_path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(unix_path))
        unix_path.chmod(0o777)
        listening.listen()
        result = subprocess.run(
            [sys.executable, "-I", str(PROBE), profile, user, str(os.getpid()), str(unix_path), readable, landlock],
            env={"SECRET": "of the daemon", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            check=False,
            timeout=60,
            close_fds=True,
        )
    assert result.returncode == 0, result.stderr.decode()
    assert unix_path.exists()
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("landlock", ["yes", "no"])
@pytest.mark.parametrize("user", ["-", "1234"])
@pytest.mark.parametrize("profile", ["worker", "compiler", "assets"])
def test_everything_that_opens_another_door__is_refused(tmp_path: Path, profile: str, user: str, landlock: str) -> None:
    found = run_probe(tmp_path, profile=profile, user=user, landlock=landlock)

    confined = "landlock" in found["applied"].split()
    allowed = NEEDED | (MAY_OPEN if confined else set())
    attempts = {name: outcome for name, outcome in found.items() if name not in NOT_ATTEMPTS}
    assert {name for name, outcome in attempts.items() if outcome == "done"} == allowed
    assert {outcome for name, outcome in attempts.items() if name not in allowed} <= {"EPERM", "EACCES"}
    assert found["environment"] == "{}"
    assert set(MANDATORY) <= set(found["applied"].split())


def test_landlock__is_in_force_where_the_kernel_has_it(tmp_path: Path) -> None:
    try:
        kernel.landlock_version()
    except OSError:
        pytest.skip("this kernel has no landlock")
    assert "landlock" in run_probe(tmp_path, profile="worker", user="-", landlock="yes")["applied"].split()


def test_readable_folder__is_readable_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "page.html").write_text("hello", encoding="utf-8")
    for path in [folder, *folder.parents]:
        if path.stat().st_uid == os.getuid() and path.is_relative_to(tmp_path.parents[2]):
            path.chmod(path.stat().st_mode | 0o055)
    found = run_probe(tmp_path, profile="assets", user="-", landlock="yes", readable=str(folder))

    if "landlock" not in found["applied"].split():
        pytest.skip("this kernel has no landlock")
    assert found["readable_folder"] == "done"
    assert found["read_passwd"] == "EACCES"
    assert found["write_readable_folder"] in {"EPERM", "EACCES"}
