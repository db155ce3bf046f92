"""The daemon's side of the zygote: starts it, asks it for workers, hears of their ends, starts another one when it dies.

The zygote's death takes its workers with it (parent-death signal), so the daemon sees their sockets close; the next `fork_worker` starts a
new zygote.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from runnerd.worker.settings import WorkerConfig

READY_SECONDS = 30.0
"""A zygote imports for a second; a loaded machine takes longer."""
FORK_SECONDS = 10.0
_MAX_MESSAGE_BYTES = 16 * 1024
_GONE_MILLISECONDS = 5_000
_UNKNOWN_STATUS = -signal.SIGKILL
"""What is reported for workers whose zygote died: it killed them."""


class ZygoteError(Exception):
    """No worker could be made."""


@dataclass(slots=True, eq=False)
class ForkedWorker:
    """A worker process, as the daemon holds it."""

    sock: socket.socket
    """The daemon's end of the socketpair, non-blocking. The holder closes it."""
    pid: int
    _zygote: Zygote
    _pidfd: int
    _exited: asyncio.Future[int]
    _killed: bool = field(default=False, init=False)
    _orphaned: bool = field(default=False, init=False)

    def kill(self) -> None:
        """End it with SIGKILL; nothing where it has ended. A pidfd cannot hit another process that got the same number."""
        if not self._exited.done() and not self._killed:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_exit(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        return await asyncio.shield(self._exited)

    @property
    def zygote_died(self) -> bool:
        """Whether what made it has ended, and it with that; certain once `wait_exit` has returned: only a live zygote reports ends."""
        return self._orphaned or self._zygote._is_gone()  # noqa: SLF001 - both classes are one thing

    @property
    def has_exited(self) -> bool:
        """Whether its end was reported."""
        return self._exited.done()


class Zygote:
    """Makes workers. Belongs to one event loop; must be started on the thread that lives longest (the main one): the zygote dies with it.

    Use `await Zygote.start()`, `await zygote.fork_worker(config)`, `await zygote.aclose()`.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[int] | None = None
        self._forks: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._workers: dict[int, ForkedWorker] = {}
        self._early_exits: dict[int, int] = {}
        self._unwanted: set[int] = set()
        """Workers that came too late and were killed."""
        self._next_id = 1
        self._starting = asyncio.Lock()
        self._closed = False

    @classmethod
    async def start(cls, *, command: list[str] | None = None) -> Zygote:
        """Start a zygote and wait until it is ready.

        Args:
            command: of the process; tests give another one. `--control-fd N` is appended.

        Raises:
            ZygoteError: it did not become ready.
        """
        # -I: neither the working folder nor PYTHON… variables choose what is imported.
        zygote = cls(command or [sys.executable, "-I", "-B", "-m", "runnerd.worker.zygote"])
        try:
            await zygote._ensure_running()
        except BaseException:
            zygote._kill()
            raise
        return zygote

    @property
    def pid(self) -> int | None:
        """Process id of the zygote, None where none runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def fork_worker(self, config: WorkerConfig) -> ForkedWorker:
        """Make one worker. Its Hello is the first thing to come from `sock`.

        Raises:
            ZygoteError: none could be made.
        """
        await self._ensure_running()
        control = self._control
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            pid, pidfd = await self._ask(config, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        worker = ForkedWorker(sock=ours, pid=pid, _zygote=self, _pidfd=pidfd, _exited=asyncio.get_running_loop().create_future())
        if self._control is not control:
            # Its zygote has ended meanwhile, and perhaps there is another one already, which knows nothing of it.
            worker.kill()
            worker._orphaned = True  # noqa: SLF001 - both classes are one thing
            self._end(worker, _UNKNOWN_STATUS)
        elif pid in self._early_exits:
            self._end(worker, self._early_exits.pop(pid))
        else:
            self._workers[pid] = worker
        return worker

    async def aclose(self) -> None:
        """End the zygote, and with it every worker that still runs. Returns when they are gone."""
        self._closed = True
        process = self._process
        pidfds = [os.dup(worker._pidfd) for worker in self._workers.values()]  # noqa: SLF001 - both classes are one thing
        if self._control is not None:
            # End of file: it stops. Its workers get the parent-death signal.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        if process is not None:
            await asyncio.to_thread(_wait, process)
        self._lost()
        await asyncio.to_thread(_wait_gone, pidfds)

    # --- life cycle ---

    async def _ensure_running(self) -> None:
        async with self._starting:
            if self._closed:
                message = "the zygote is closed"
                raise ZygoteError(message)
            if self._control is not None:
                return
            self._spawn()
            try:
                await asyncio.wait_for(asyncio.shield(self._require(self._ready)), READY_SECONDS)
            except TimeoutError as exc:
                self._kill()
                message = f"the zygote was not ready after {READY_SECONDS:g} seconds"
                raise ZygoteError(message) from exc

    @staticmethod
    def _require(future: asyncio.Future[int] | None) -> asyncio.Future[int]:
        if future is None:
            message = "the zygote ended while it started"
            raise ZygoteError(message)
        return future

    def _spawn(self) -> None:
        self._reap_process()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with contextlib.ExitStack() as unless_started, theirs:
            unless_started.callback(ours.close)
            # SECURITY: no variable of the daemon's environment, no descriptor but the control channel; Ctrl-C of the terminal does not
            # reach its session (N40).
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*self._command, "--control-fd", str(theirs.fileno())],
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            unless_started.pop_all()
        loop = asyncio.get_running_loop()
        self._control = ours
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._readable)

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._lost()

    def _lost(self) -> None:
        """Tell everybody who waits that this zygote is gone."""
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        error = ZygoteError("the zygote ended")
        ready, self._ready = self._ready, None
        waiting: list[asyncio.Future[Any]] = [*self._forks.values(), *([ready] if ready is not None else [])]
        self._forks.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                # Whoever waits hears of it; where nobody does, that is no mistake.
                future.exception()
        for worker in list(self._workers.values()):
            # The kernel does this too, where the worker has not talked it out of it.
            worker.kill()
            worker._orphaned = True  # noqa: SLF001 - both classes are one thing
            self._end(worker, _UNKNOWN_STATUS)
        self._early_exits.clear()
        self._unwanted.clear()
        self._reap_process()

    def _is_gone(self) -> bool:
        """Tell whether the zygote has ended, as far as is known now: a child just born may hold its channel a moment longer."""
        if self._control is None or self.pid is None:
            return True
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _reap_process(self) -> None:
        if self._process is not None and self._process.poll() is None and self._control is None:
            # Its channel is gone, so it is on its way out or hangs; either way nothing of it may stay.
            self._process.kill()
            self._process.wait()

    # --- messages ---

    async def _ask(self, config: WorkerConfig, theirs: socket.socket) -> tuple[int, int]:
        control = self._control
        if control is None:
            message = "the zygote ended"
            raise ZygoteError(message)
        number, self._next_id = self._next_id, self._next_id + 1
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._forks[number] = answer
        request = json.dumps({"op": "fork", "id": number, "config": config.to_json()}).encode()
        try:
            socket.send_fds(control, [request], [theirs.fileno()])
            return await asyncio.wait_for(answer, FORK_SECONDS)
        except (OSError, TimeoutError) as exc:
            message = f"the zygote does not answer: {type(exc).__name__}"
            raise ZygoteError(message) from exc
        finally:
            self._forks.pop(number, None)

    def _readable(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            data, descriptors = _receive(control)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._lost()
            return
        self._dispatch(json.loads(data), descriptors)

    def _dispatch(self, message: dict[str, Any], descriptors: list[int]) -> None:
        operation = message["op"]
        if operation == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(message["pid"])
        elif operation == "forked":
            self._forked(message, descriptors[0])
        elif operation == "failed":
            answer = self._forks.get(message["id"])
            if answer is not None and not answer.done():
                answer.set_exception(ZygoteError(f"no worker was made: {message['why']}"))
        elif operation == "exited":
            self._exited(message["pid"], message["status"])

    def _forked(self, message: dict[str, Any], pidfd: int) -> None:
        answer = self._forks.get(message["id"])
        if answer is None or answer.done():
            # Nobody waits any more (timeout): a worker that nobody holds must not live.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            self._unwanted.add(message["pid"])
            return
        answer.set_result((message["pid"], pidfd))

    def _exited(self, pid: int, status: int) -> None:
        worker = self._workers.get(pid)
        if worker is not None:
            self._end(worker, status)
        elif pid in self._unwanted:
            self._unwanted.discard(pid)
        else:
            # It ended before the coroutine that asked for it ran again.
            self._early_exits[pid] = status

    def _end(self, worker: ForkedWorker, status: int) -> None:
        self._workers.pop(worker.pid, None)
        if not worker._exited.done():  # noqa: SLF001 - both classes are one thing
            worker._exited.set_result(status)  # noqa: SLF001
            os.close(worker._pidfd)  # noqa: SLF001


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = control.recvmsg(_MAX_MESSAGE_BYTES, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)


def _wait_gone(pidfds: list[int]) -> None:
    """Wait until processes that are not our children have ended: their pidfd becomes readable."""
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_GONE_MILLISECONDS)
        os.close(pidfd)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
