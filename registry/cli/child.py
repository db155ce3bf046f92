"""A service as a child process: started in a session of its own, watched, stopped in good order, and never left behind.

Ctrl-C reaches a whole process group, so a child in the group of its supervisor would die at the same moment as those it needs (N40);
and a supervisor that is killed cannot stop anybody, so the kernel is asked to end the child with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx

from registry.cli.output import UnavailableError
from registry.cli.rendering import visible_block

_POLL_SECONDS: Final = 0.05
_TAIL_BYTES: Final = 3_000
# Runs between fork and the service: asks the kernel for SIGTERM when the supervisor dies, however it dies.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the supervisor is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildProcess:
    """One service.

    Start it from a thread that lives as long as the service should: the kernel ends it with that thread.

    Args:
        name: for messages.
        command: program (a path) and arguments; no secret among them.
        environment: everything that the service finds in its environment.
        log: file that takes what the service prints; begun anew.
    """

    def __init__(self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the service has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """Go on if the service runs.

        Raises:
            UnavailableError: it has ended; the end of its log is in the message.
        """
        if not self.is_running:
            message = f"{self.name} ended with {self._process.returncode}; the end of {self._log}:\n{self.tail()}"
            raise UnavailableError(message)

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Wait until `is_ready`.

        Raises:
            UnavailableError: the service ended first, or took longer than `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check()
            if is_ready():
                return
            time.sleep(_POLL_SECONDS)
        message = f"{self.name} was not ready within {timeout_seconds:.0f} seconds; the end of {self._log}:\n{self.tail()}"
        raise UnavailableError(message)

    def stop(self, *, timeout_seconds: float) -> None:
        """Ask the service to end, wait, and end it and what it started by force if it does not."""
        if self.is_running:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_seconds)
        # Also when it ended by itself: whatever it left in its session goes with it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def has_logged(self, event: str) -> bool:
        """Tell whether the service has logged an event since it was started."""
        with suppress(OSError):
            return f'"event": "{event}"'.encode() in self._log.read_bytes()
        return False

    def tail(self) -> str:
        """Return the end of the log, fit for a terminal."""
        with suppress(OSError):
            return visible_block(self._log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip())
        return "(no log)"


def answers(url: str) -> bool:
    """Tell whether `url` answers 200."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
