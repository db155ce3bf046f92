"""One confined child process, watched until nothing of it is left.

Attacks it stops (T16): a compiler that was taken over by the bytes it read and outlives its time, forks, floods its output or
keeps a pipe open. The child gets an empty environment and the listed descriptors only, a process group of its own that is killed
whole, resource limits set from outside, and pipes that are read up to a cap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

_PIPE_CHUNK_BYTES = 64 * 1024
_REAP_SECONDS = 10.0


class Ending(StrEnum):
    """Why a child ended."""

    EXITED = "exited"
    OUT_OF_TIME = "out_of_time"
    FLOODED = "flooded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What one child may use."""

    wall_seconds: float
    resources: Mapping[int, tuple[int, int]]
    """`resource.RLIMIT_…` → soft and hard limit."""
    output_bytes: int
    """Of standard output, and of standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """What a child left behind. Nothing of it is trusted."""

    ending: Ending
    returncode: int
    """Exit status, or the negative number of the signal that ended it."""
    stdout: bytes
    stderr: bytes


class _BoundedPipe:
    """Collects what comes out of a pipe, up to a cap."""

    def __init__(self, descriptor: int, limit: int, on_flood: Callable[[], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._limit = limit
        self._on_flood = on_flood
        self._loop = asyncio.get_running_loop()
        self._reading = True
        self.data = bytearray()
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> bool:
        """Take one chunk; tell whether there may be more."""
        try:
            chunk = os.read(self._descriptor, _PIPE_CHUNK_BYTES)
        except BlockingIOError:
            return False
        self.data += chunk
        if len(self.data) > self._limit:
            del self.data[self._limit :]
            self._stop()
            self._on_flood()
            return False
        if not chunk:
            self._stop()
        return bool(chunk)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def drain(self) -> bytes:
        """Take what is in the pipe already, without waiting for an end that a surviving grandchild may withhold."""
        while self._reading and self._read():
            pass
        self._stop()
        return bytes(self.data)


async def run_child(command: Sequence[str], *, pass_fds: Sequence[int], limits: ChildLimits) -> ChildResult:
    """Run a child until it ends, exceeds its time or floods its output; then kill what is left of its group and reap it.

    The child finds one byte on its standard input once its limits are in force, and must not touch foreign bytes before.
    Cancelling kills it, too. Start it from the thread that lives as long as the process: the child asks to be killed when the
    thread that started it ends.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - vfork and exec take a millisecond; the command is the daemon's own
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # SECURITY: nothing is inherited but what is listed: no variable, no descriptor, no working folder.
        env={},
        cwd="/",
        close_fds=True,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    try:
        return await _watch(process, limits)
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


async def _watch(process: subprocess.Popen[bytes], limits: ChildLimits) -> ChildResult:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Ending] = loop.create_future()
    gone: asyncio.Future[None] = loop.create_future()
    watcher = os.pidfd_open(process.pid)

    def end(ending: Ending) -> None:
        if not ended.done():
            ended.set_result(ending)

    def exited() -> None:
        loop.remove_reader(watcher)
        gone.set_result(None)
        end(Ending.EXITED)

    loop.add_reader(watcher, exited)
    stdout = _BoundedPipe(_descriptor(process.stdout), limits.output_bytes, lambda: end(Ending.FLOODED))
    stderr = _BoundedPipe(_descriptor(process.stderr), limits.output_bytes, lambda: end(Ending.FLOODED))
    try:
        _confine(process.pid, limits.resources)
        _release(_descriptor(process.stdin))
        try:
            async with asyncio.timeout(limits.wall_seconds):
                ending = await ended
        except TimeoutError:
            ending = Ending.OUT_OF_TIME
    finally:
        try:
            await _kill_and_reap(process, gone)
        finally:
            loop.remove_reader(watcher)
            os.close(watcher)
            output, errors = stdout.drain(), stderr.drain()
    returncode = -signal.SIGKILL if process.returncode is None else process.returncode
    return ChildResult(ending=ending, returncode=returncode, stdout=output, stderr=errors)


async def _kill_and_reap(process: subprocess.Popen[bytes], gone: asyncio.Future[None]) -> None:
    # The group is killed before its leader is reaped: until then its number cannot belong to anybody else.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_SECONDS):
            # Shielded: a second cancellation must not leave a zombie.
            await asyncio.shield(gone)
    process.poll()


def _confine(pid: int, limits: Mapping[int, tuple[int, int]]) -> None:
    for name, wanted in limits.items():
        # A child that ended already needs no limits.
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, name)
            # Nobody can raise what the daemon itself is limited to.
            soft, highest = (value if hard == resource.RLIM_INFINITY else min(value, hard) for value in wanted)
            resource.prlimit(pid, name, (soft, highest))


def _release(stdin: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(stdin, b"\n")


def _descriptor(pipe: object) -> int:
    descriptor: int = pipe.fileno()  # type: ignore[attr-defined]  # Popen types its pipes as optional
    return descriptor
