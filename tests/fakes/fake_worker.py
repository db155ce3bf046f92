"""A worker whose every frame a test writes: the other end of a socketpair, without process, engine or manners."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from extrunner.worker.v1 import worker_pb2
from runnerd.worker.frames import FROM_DAEMON, NO_CALL, PROTOCOL_VERSION, Frame, FrameDecoder, FrameKind, encode_frame, encode_message

BUILD = "test-build"
FINGERPRINT = "f" * 64
HARDENING = ("no_new_privs", "seccomp")

Script = Callable[["WorkerEnd"], Awaitable[None]]


def hello(**changes: Any) -> worker_pb2.Hello:
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "build": BUILD,
        "engine_fingerprint": FINGERPRINT,
        "hardening_applied": HARDENING,
        "pid": os.getpid(),
        "slots": 4,
    }
    return worker_pb2.Hello(**fields | changes)


class WorkerEnd:
    """The worker's end of the pair."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.starts: dict[int, worker_pb2.Start] = {}
        self.bodies: dict[int, bytes] = {}
        self.loads: list[worker_pb2.LoadComponent] = []
        self.drops: list[int] = []
        self.cancelled: list[int] = []
        self.replies: list[tuple[int, worker_pb2.HostReply]] = []
        self._decoder = FrameDecoder(FROM_DAEMON)
        self._frames: deque[Frame] = deque()

    async def next_frame(self) -> Frame:
        """Return the next frame of the daemon; ConnectionError at the end."""
        loop = asyncio.get_running_loop()
        while not self._frames:
            data = await loop.sock_recv(self.socket, 256 * 1024)
            if not data:
                raise ConnectionResetError
            self._frames.extend(self._decoder.feed(data))
        frame = self._frames.popleft()
        self._note(frame)
        return frame

    def _note(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.START:
                self.starts[frame.call_id] = worker_pb2.Start.FromString(frame.payload)
            case FrameKind.BODY:
                self.bodies[frame.call_id] = frame.payload
            case FrameKind.LOAD:
                self.loads.append(worker_pb2.LoadComponent.FromString(frame.payload))
            case FrameKind.DROP:
                self.drops.append(worker_pb2.DropComponent.FromString(frame.payload).component)
            case FrameKind.CANCEL:
                self.cancelled.append(frame.call_id)
            case FrameKind.HOST_REPLY:
                self.replies.append((frame.call_id, worker_pb2.HostReply.FromString(frame.payload)))

    async def next_start(self) -> tuple[int, worker_pb2.Start]:
        """Read up to the next call, its body included."""
        while True:
            frame = await self.next_frame()
            if frame.kind is FrameKind.START:
                start = self.starts[frame.call_id]
                while start.has_body and frame.call_id not in self.bodies:
                    await self.next_frame()
                return frame.call_id, start

    async def next_of(self, kind: FrameKind) -> Frame:
        while (frame := await self.next_frame()).kind is not kind:
            pass
        return frame

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def say(self, kind: FrameKind, call_id: int, message: Any) -> None:
        await self.write(encode_message(kind, call_id, message))

    async def greet(self, **changes: Any) -> None:
        await self.say(FrameKind.HELLO, NO_CALL, hello(**changes))

    async def complete(self, call_id: int, *, status: int = 200, body: bytes | None = b"ok", **usage: Any) -> None:
        done = worker_pb2.Done(completed=worker_pb2.Completed(status=status, has_body=body is not None), **usage)
        await self.say(FrameKind.DONE, call_id, done)
        if body is not None:
            await self.write(encode_frame(FrameKind.BODY, call_id, body))


class FakeWorkerProcess:
    """What the pool gets instead of a forked worker. `kill` is like SIGKILL: the script ends, the socket closes."""

    _pids = 4_000_000

    def __init__(self, script: Script) -> None:
        self.sock, other = socket.socketpair()
        self.end = WorkerEnd(other)
        FakeWorkerProcess._pids += 1
        self.pid = FakeWorkerProcess._pids
        self.killed = False
        self.zygote_died = False
        self._killed_in_time = False
        self.exit_status = 0
        """Of a script that ends by itself."""
        self.error: BaseException | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(script))

    async def _run(self, script: Script) -> None:
        try:
            await script(self.end)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:  # noqa: BLE001 - kept for the test
            self.error = error
        finally:
            self.end.socket.close()

    def kill(self) -> None:
        # As the kernel does it: whoever has ended already keeps the status it ended with.
        self.killed = True
        self._killed_in_time = not self._task.done()
        self._task.cancel()

    async def wait_exit(self) -> int:
        await asyncio.wait({self._task})
        return -9 if self._killed_in_time else self.exit_status


async def echo(worker: WorkerEnd) -> None:
    """Greet, and answer every call at once with its own body."""
    await worker.greet()
    while True:
        call_id, _ = await worker.next_start()
        await worker.complete(call_id, body=worker.bodies.get(call_id, b"ok"))


def scripted(*scripts: Script, then: Script = echo) -> tuple[Callable[[], Awaitable[FakeWorkerProcess]], list[FakeWorkerProcess]]:
    """Return a fork function that gives each script to one worker, and `then` to all later ones; and the list of all workers made."""
    made: list[FakeWorkerProcess] = []
    left = deque(scripts)

    async def fork() -> FakeWorkerProcess:
        await asyncio.sleep(0)
        process = FakeWorkerProcess(left.popleft() if left else then)
        made.append(process)
        return process

    return fork, made
