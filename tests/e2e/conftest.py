"""The product as a person starts it: `scripts/demo` and `extctl up` as processes, and a look at what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts" / "demo"
EXTCTL = ROOT / ".venv" / "bin" / "extctl"
READY = "Ctrl-C stops everything."
LIMIT_SECONDS = 280
"""A bound, not a promise: the first run builds and compiles two guests."""
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A program that has ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def last_json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return document


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("EXTCTL_", "GATEWAY_", "RUNNERD_")) and name != "ENV"}


def run(command: Sequence[str | Path], *, seconds: float = LIMIT_SECONDS) -> Run:
    """Run a program in a session of its own, as a terminal would, to its end."""
    with subprocess.Popen(
        [str(part) for part in command],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            stdout, stderr = program.communicate(timeout=seconds)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    return Run(returncode=program.returncode, stdout=stdout, stderr=stderr)


@dataclass(slots=True)
class Running:
    """A program that runs until it is told to stop."""

    process: subprocess.Popen[str]
    state: Path
    lines: list[str] = field(default_factory=list)

    def interrupt(self) -> int:
        """Press Ctrl-C: the whole group of the terminal gets it. Return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_SECONDS)

    def extctl(self, *arguments: str) -> Run:
        return run([EXTCTL, *arguments, "--state", self.state])


def start(command: Sequence[str | Path], state: Path) -> Running:
    """Start a program and wait until it says that it is ready."""
    process = subprocess.Popen(
        [*(str(part) for part in command), "--state", str(state)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running = Running(process, state)
    is_ready = threading.Event()

    def read() -> None:
        if process.stdout is not None:
            for line in process.stdout:
                running.lines.append(line.rstrip("\n"))
                if READY in line:
                    is_ready.set()
        is_ready.set()

    threading.Thread(target=read, daemon=True).start()
    came = is_ready.wait(LIMIT_SECONDS)
    if not came or process.poll() is not None:
        stop(running)
        pytest.fail("did not get ready:\n" + "\n".join(running.lines[-40:]))
    return running


def stop(running: Running) -> None:
    """End whatever is left, for the end of a test."""
    if running.process.poll() is None:
        running.process.terminate()
        try:
            running.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
    if running.process.stdout is not None:
        running.process.stdout.close()


def processes_of(state: Path) -> list[str]:
    """Return the command lines of the processes that know this state folder by argument, environment, working folder or open file."""
    found: list[str] = []
    wanted = str(state)
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            links = [str((process / "cwd").readlink()), *(str(link.readlink()) for link in (process / "fd").iterdir())]
            if wanted.encode() in command + (process / "environ").read_bytes() or any(link.startswith(wanted) for link in links):
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile, or belongs to another user
    return found


def family_of(pid: int) -> dict[int, str]:
    """Return the processes below `pid`, itself included: id to start time, which together name a process for good."""
    parents: dict[int, tuple[int, str]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(process.name)] = (int(fields[1]), fields[19])
    family = {pid: parents[pid][1]} if pid in parents else {}
    while found := {child: started for child, (parent, started) in parents.items() if parent in family and child not in family}:
        family |= found
    return family


def are_gone(family: dict[int, str]) -> bool:
    """Tell whether none of these processes is there any more; the dead that nobody waited for are gone too."""
    for pid, started in family.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == started and fields[0] != "Z":
            return False
    return True


def eventually(holds: Callable[[], bool], *, seconds: float = STOP_SECONDS) -> bool:
    """Ask until it holds, at most for `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="session")
def demo_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose path has a space."""
    return tmp_path_factory.mktemp("demo") / "a state"


@pytest.fixture(scope="session")
def first_run(demo_state: Path) -> Run:
    """`scripts/demo --once` on an empty state folder."""
    return run([DEMO, "--once", "--state", demo_state])


@pytest.fixture(scope="session")
def demo(first_run: Run, demo_state: Path) -> Iterator[Running]:
    """The demonstration that keeps running, on the same state. Ctrl-C at the end must stop all of it, and well."""
    assert first_run.returncode == 0, first_run.stdout[-3000:] + first_run.stderr[-3000:]
    running = start([DEMO], demo_state)
    try:
        yield running
        family = family_of(running.process.pid)
        assert running.interrupt() == 0
        assert are_gone(family)
        assert processes_of(demo_state) == []
    finally:
        stop(running)
