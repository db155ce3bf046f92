"""Plays the daemon towards one real worker process, over its real socket."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from extrunner.worker.v1 import worker_pb2
from runnerd.capabilities.catalog import BY_NUMBER, HostFunction
from runnerd.capabilities.values import arguments_from_wire, reply_to_wire
from runnerd.dispatch.zygote import ForkedWorker
from runnerd.engine.compilation import CompiledComponent
from runnerd.worker.frames import FROM_WORKER, FrameDecoder, FrameKind, encode_frame, encode_message, parse_message, send_descriptor
from tests.fakes import guests

MIB = 1024 * 1024
ALWAYS = ("config.read", "context.read", "log.emit")
Answer = Callable[[HostFunction, tuple[object, ...]], Any]
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def status_of(pid: int) -> str:
    """Return /proc/<pid>/status."""
    return Path(f"/proc/{pid}/status").read_text(encoding="ascii")


def sealed(data: bytes, *, seals: int = SEALS) -> int:
    """Return the descriptor of a memory file of `data`; the taker closes it."""
    descriptor = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@dataclass
class Ended:
    """What came of one call."""

    done: worker_pb2.Done
    body: bytes | None
    lines: list[worker_pb2.LogLine]
    denied: list[str]
    host_calls: list[tuple[str, tuple[object, ...]]]

    @property
    def kind(self) -> str:
        return str(self.done.WhichOneof("outcome"))

    @property
    def limit(self) -> str:
        return self.done.limit.limit

    @property
    def trap(self) -> str:
        return self.done.trapped.kind


@dataclass
class _Open:
    ended: asyncio.Future[Ended]
    answer: Answer | None
    lines: list[worker_pb2.LogLine] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    host_calls: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    done: worker_pb2.Done | None = None


class WorkerDriver:
    """Use as `async with WorkerDriver(forked) as worker`."""

    def __init__(self, forked: ForkedWorker, *, bridge: bool = True) -> None:
        self.process = forked
        self.bridge = bridge
        self.hello: worker_pb2.Hello
        self._calls: dict[int, _Open] = {}
        self._numbers = itertools.count(1)
        self._components: dict[str, int] = {}
        self._decoder = FrameDecoder(FROM_WORKER)
        self._greeted: asyncio.Future[worker_pb2.Hello]
        self._reading: asyncio.Task[None]
        self.line_arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._greeted = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())
        self.hello = await asyncio.wait_for(self._greeted, 30)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self.process.sock.close()
        await asyncio.wait_for(self.process.wait_exit(), 10)

    async def load(self, name: str) -> int:
        """Load a .wat guest once; return its number."""
        if name not in self._components:
            self._components[name] = await self.load_compiled(guests.compiled(name, bridge=self.bridge))
        return self._components[name]

    async def load_compiled(self, compiled: CompiledComponent, *, memories: int | None = None) -> int:
        return await self.load_bytes(
            compiled.artifact, memories=compiled.memories if memories is None else memories, bridged=compiled.bridged
        )

    async def load_bytes(
        self, artifact: bytes, *, memories: int = 1, bridged: bool = False, size: int | None = None, seals: int = SEALS
    ) -> int:
        number = next(self._numbers)
        message = worker_pb2.LoadComponent(
            component=number, size=len(artifact) if size is None else size, memories=memories, bridged=bridged
        )
        data = encode_message(FrameKind.LOAD, 0, message)
        descriptor = sealed(artifact, seals=seals)
        try:
            sent = send_descriptor(self.process.sock, data, descriptor)
        finally:
            os.close(descriptor)
        await self._write(data[sent:])
        return number

    async def drop(self, component: int) -> None:
        await self._write(encode_message(FrameKind.DROP, 0, worker_pb2.DropComponent(component=component)))

    async def begin(self, component: int | str, *, body: bytes | None = None, answer: Answer | None = None, **changes: Any) -> int:
        """Start a call; return its id."""
        number = await self.load(component) if isinstance(component, str) else component
        call_id = next(self._numbers)
        self._calls[call_id] = _Open(ended=asyncio.get_running_loop().create_future(), answer=answer)
        await self._write(encode_message(FrameKind.START, call_id, start(number, has_body=body is not None, **changes)))
        if body is not None:
            await self._write(encode_frame(FrameKind.BODY, call_id, body))
        return call_id

    async def end_of(self, call_id: int) -> Ended:
        return await asyncio.wait_for(asyncio.shield(self._calls[call_id].ended), 60)

    async def call(self, component: int | str, **changes: Any) -> Ended:
        return await self.end_of(await self.begin(component, **changes))

    async def cancel(self, call_id: int) -> None:
        await self._write(encode_frame(FrameKind.CANCEL, call_id))

    async def send_raw(self, data: bytes) -> None:
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.process.sock, data)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self.process.sock, 256 * 1024)
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            for frame in self._decoder.feed(data):
                await self._handle(frame.kind, frame.call_id, frame.payload)

    def _lost(self) -> None:
        error = ConnectionResetError("the worker closed its socket")
        waiting: list[asyncio.Future[Any]] = [self._greeted, *(call.ended for call in self._calls.values())]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()

    async def _handle(self, kind: FrameKind, call_id: int, payload: bytes) -> None:
        if kind is FrameKind.HELLO:
            self._greeted.set_result(parse_message(worker_pb2.Hello, payload))
            return
        call = self._calls[call_id]
        match kind:
            case FrameKind.LOG:
                said = parse_message(worker_pb2.Log, payload)
                call.lines += said.lines
                call.denied += said.denied_capabilities
                self.line_arrived.set()
            case FrameKind.HOST_CALL:
                await self._answer(call_id, call, parse_message(worker_pb2.HostCall, payload))
            case FrameKind.DONE:
                call.done = parse_message(worker_pb2.Done, payload)
                if not call.done.completed.has_body:
                    self._finish(call, None)
            case FrameKind.BODY:
                self._finish(call, payload)

    async def _answer(self, call_id: int, call: _Open, message: worker_pb2.HostCall) -> None:
        function = BY_NUMBER[message.function]
        arguments = arguments_from_wire(function, message.arguments)
        call.host_calls.append((function.qualified_name, arguments))
        if call.answer is None:
            return
        answer = call.answer(function, arguments)
        if isinstance(answer, worker_pb2.HostReply):
            reply = answer
        elif isinstance(answer, ErrorCase):
            reply = reply_to_wire(function, error=answer.name)
        else:
            reply = reply_to_wire(function, answer)
        await self._write(encode_message(FrameKind.HOST_REPLY, call_id, reply))

    @staticmethod
    def _finish(call: _Open, body: bytes | None) -> None:
        assert call.done is not None
        call.ended.set_result(Ended(done=call.done, body=body, lines=call.lines, denied=call.denied, host_calls=call.host_calls))


@dataclass(frozen=True)
class ErrorCase:
    """Answers a host call with this case of its error."""

    name: str


def start(component: int, *, headers: Iterable[tuple[str, str]] = (), **changes: Any) -> worker_pb2.Start:
    fields: dict[str, Any] = {
        "request_id": "request-1",
        "tenant_id": "tenant-1",
        "extension_id": "com.example.one",
        "install_id": "install-1",
        "version_id": "version-1",
        "method": "POST",
        "url": "/",
        "wall_time_us": 10_000_000,
        "cpu_time_us": 10_000_000,
        "fuel": 100_000_000_000,
        "memory_bytes": 64 * MIB,
        "response_bytes": 2 * MIB,
        "host_calls": 1_000,
        "log_lines": 256,
        "log_bytes": 64 * 1024,
        "capabilities": ALWAYS,
    }
    frame_headers = [worker_pb2.FrameHeader(name=name, value=value) for name, value in headers]
    return worker_pb2.Start(component=component, headers=frame_headers, **fields | changes)
