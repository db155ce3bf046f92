"""A child process that an event loop can wait for, started with exactly the descriptors it is meant to have.

Not asyncio's own: uvloop starts children with every inheritable descriptor of the daemon, whatever `pass_fds` says. Standard error is a
pipe read by the daemon, so that a child that was taken over cannot flood the operator's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence

from runnerd.children.budget import Budget

LINES_PER_SECOND = 1.0
LINES_BURST = 100
"""A traceback has about forty lines."""
MAX_LINE_CHARACTERS = 400
_READ_BYTES = 64 * 1024


class ChildProcess:
    """One child in a session of its own, with an empty environment.

    Start it in the thread that lives as long as the daemon: the child asks the kernel to be killed when that thread ends.

    Args:
        command: program and arguments.
        descriptors: what it inherits besides the standard streams.
        on_line: told what it writes to standard error, at a bounded rate; what is beyond is dropped.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, command: Sequence[str], *, descriptors: Iterable[int], on_line: Callable[[str], None]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter and a module of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            # SECURITY: nothing is inherited but what is listed: no variable, no descriptor, no working folder.
            env={},
            cwd="/",
            close_fds=True,
            pass_fds=tuple(descriptors),
            start_new_session=True,  # Ctrl-C on the daemon's terminal is the daemon's to handle.
        )
        self._on_line = on_line
        self._lines = Budget(per_second=LINES_PER_SECOND, burst=LINES_BURST)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._errors = _descriptor_of(self._process)
        self._watcher = os.pidfd_open(self.pid)
        self._loop.add_reader(self._errors, self._read)
        self._loop.add_reader(self._watcher, self._reap)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._process.returncode

    def kill(self) -> None:
        """Kill it, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        await self._ended.wait()
        return self._process.returncode

    def _read(self) -> None:
        try:
            data = os.read(self._errors, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._errors)
            return
        for line in data.decode("utf-8", "replace").splitlines():
            if not self._lines.take():
                return
            self._on_line(line[:MAX_LINE_CHARACTERS])

    def _reap(self) -> None:
        if self._process.poll() is None:
            return
        self._loop.remove_reader(self._watcher)
        os.close(self._watcher)
        self._read()  # Its last words.
        self._loop.remove_reader(self._errors)
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._ended.set()


def _descriptor_of(process: subprocess.Popen[bytes]) -> int:
    if process.stderr is None:
        message = "standard error is not a pipe"
        raise OSError(message)
    descriptor = process.stderr.fileno()
    os.set_blocking(descriptor, False)
    return descriptor
