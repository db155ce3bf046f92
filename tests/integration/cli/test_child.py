"""Services as children: none outlives its supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.cli.child import ChildProcess
from registry.cli.output import UnavailableError

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def child(tmp_path: Path, code: str) -> ChildProcess:
    return ChildProcess("service", [sys.executable, "-c", code], environment=ENVIRONMENT, log=tmp_path / "service.log")


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> bool:
    for _ in range(200):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_wait_until__service_ends_first__says_so_with_the_end_of_its_log(tmp_path: Path) -> None:
    service = child(tmp_path, "import sys; print('no \\x1b[2J database'); sys.exit(7)")
    with pytest.raises(UnavailableError, match=r"ended with 7(.|\n)*no \\x1b\[2J database"):
        service.wait_until(lambda: False, timeout_seconds=30)
    service.stop(timeout_seconds=1)


def test_wait_until__never_ready__ends_after_its_time(tmp_path: Path) -> None:
    service = child(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(UnavailableError, match="not ready"):
        service.wait_until(lambda: False, timeout_seconds=0.2)
    service.stop(timeout_seconds=10)
    assert not service.is_running


def test_stop__service_that_ignores_sigterm__ends_by_force_with_what_it_started(tmp_path: Path) -> None:
    grandchild = "import time; time.sleep(600)"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"inner = subprocess.Popen([sys.executable, '-c', {grandchild!r}])\n"
        "print(inner.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    service = child(tmp_path, code)
    log = tmp_path / "service.log"
    service.wait_until(lambda: log.read_text().endswith("\n"), timeout_seconds=30)
    inner = int(log.read_text())
    service.stop(timeout_seconds=0.3)
    assert not service.is_running
    assert wait_until_gone(inner)


def test_stop__twice__is_harmless(tmp_path: Path) -> None:
    service = child(tmp_path, "pass")
    service.stop(timeout_seconds=10)
    service.stop(timeout_seconds=10)


def test_supervisor_killed__the_kernel_ends_the_service(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from registry.cli.child import ChildProcess
command = [sys.executable, "-c", "import time; time.sleep(600)"]
service = ChildProcess("service", command, environment=dict(os.environ), log=Path({str(tmp_path / "log")!r}))
print(service.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as supervisor:
        try:
            assert supervisor.stdout is not None
            service = int(supervisor.stdout.readline())
            # The service has asked the kernel once it runs its own program; until then it shows its supervisor's, or nothing.
            for _ in range(200):
                if b"import time; time.sleep(600)" in (Path("/proc") / str(service) / "cmdline").read_bytes().split(b"\0"):
                    break
                time.sleep(0.05)
        finally:
            supervisor.kill()
    assert wait_until_gone(service)


def test_child__is_in_a_session_of_its_own(tmp_path: Path) -> None:
    service = child(tmp_path, "import time; time.sleep(600)")
    try:
        assert os.getsid(service.pid) == service.pid
    finally:
        service.stop(timeout_seconds=10)


def test_child__environment__is_exactly_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTCTL_TOKEN", "leak")
    service = child(tmp_path, "import os, time; print(sorted(os.environ), flush=True); time.sleep(600)")
    try:
        service.wait_until(lambda: "PATH" in service.tail(), timeout_seconds=30)
        assert "EXTCTL_TOKEN" not in service.tail()
    finally:
        service.stop(timeout_seconds=10)
