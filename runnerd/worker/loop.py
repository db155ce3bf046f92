"""The life of a worker after it is hardened: reads frames, runs calls, writes frames.

The main thread only reads, so that a cancel is heard while guests loop and the end of the socket ends the process at once, whatever
runs (N40). Calls run on slot threads; what a call waits for reaches it through its own queue.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import wasmtime
from wasmtime import component

from extrunner.worker.v1 import worker_pb2
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.values import ValueMismatchError, arguments_to_wire, reply_from_wire
from runnerd.engine.calls import Call, GuestContext, GuestRequest
from runnerd.engine.component_values import GuestTypeError, refuse_size
from runnerd.engine.engine import Ticker
from runnerd.engine.invocation import LoadedComponent, run_call
from runnerd.engine.journal import BATCH_SECONDS, Journal, LogLine
from runnerd.engine.limits import InvocationLimits
from runnerd.engine.linker import UnlinkableError
from runnerd.worker.done import done_message
from runnerd.worker.frames import MAX_HOST_CALL_BYTES, Frame, FrameError, FrameKind, FrameReader, FrameWriter
from runnerd.worker.settings import WorkerConfig
from runnerd.worker.slots import ByteBudget, SlotPool

EXIT_CLOSED = 0
"""The daemon closed the socket."""
EXIT_PROTOCOL = 71
"""The daemon broke the protocol, or this worker did."""
_SMALL_BODY_BYTES = 64 * 1024
_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class FramePort:
    """Carries one call's host calls to the daemon; one is outstanding at a time, because a guest is synchronous."""

    def __init__(self, writer: FrameWriter, call_id: int) -> None:
        self._writer = writer
        self._call_id = call_id
        self.replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """Payloads of HOST_REPLY; None for a cancel."""

    def call(self, function: HostFunction, arguments: Sequence[object], *, timeout_seconds: float) -> tuple[object, str | None]:
        """See `runnerd.engine.calls.HostPort`."""
        try:
            message = worker_pb2.HostCall(function=function.number, arguments=arguments_to_wire(function, arguments))
            # Each argument is within its shape; together they may be more than the daemon takes, and whoever sends more is killed.
            if message.ByteSize() > MAX_HOST_CALL_BYTES:
                refuse_size(message.ByteSize(), MAX_HOST_CALL_BYTES)
            self._writer.send_message(FrameKind.HOST_CALL, self._call_id, message)
            payload = self.replies.get(timeout=timeout_seconds)
            if payload is None:
                raise InterruptedError
            return reply_from_wire(function, worker_pb2.HostReply.FromString(payload))
        except queue.Empty as exc:
            raise TimeoutError from exc
        except ValueMismatchError as exc:
            raise ConnectionError from exc


@dataclass(slots=True, kw_only=True)
class _OpenCall:
    call: Call
    port: FramePort
    component: int
    request: GuestRequest


@dataclass(slots=True, kw_only=True)
class _AwaitingBody:
    start: worker_pb2.Start
    received: float


@dataclass(slots=True)
class _Components:
    """What is mapped, and why what is not could not be."""

    loaded: dict[int, LoadedComponent] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class Worker:
    """One worker process.

    Args:
        reader: frames of the daemon.
        writer: frames to it.
        engine: of this process, made after the fork.
        config: as the daemon gave it.
        may_open: whether landlock lets a memory file be opened by its descriptor.
    """

    def __init__(self, reader: FrameReader, writer: FrameWriter, engine: wasmtime.Engine, config: WorkerConfig, *, may_open: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._engine = engine
        self._config = config
        self._may_open = may_open
        self._ticker = Ticker(engine)
        self._slots = SlotPool(config.slots)
        self._bodies = ByteBudget(config.body_bytes_in_flight)
        self._components = _Components()
        self._awaiting_body: dict[int, _AwaitingBody] = {}
        self._open: dict[int, _OpenCall] = {}
        self._journals_wanted = threading.Event()
        self._handlers: Mapping[FrameKind, Callable[[Frame], None]] = MappingProxyType(
            {
                FrameKind.LOAD: self._load,
                FrameKind.DROP: self._drop,
                FrameKind.START: self._start,
                FrameKind.BODY: self._body,
                FrameKind.HOST_REPLY: self._host_reply,
                FrameKind.CANCEL: self._cancel,
            }
        )

    def run(self, hello: worker_pb2.Hello) -> int:
        """Serve until the daemon closes the socket; return the exit status. Running guests do not delay it: the caller ends the process."""
        self._ticker.start()
        threading.Thread(target=self._flush_journals, name="journals", daemon=True).start()
        self._writer.send_message(FrameKind.HELLO, 0, hello)
        try:
            for frame in self._reader.frames():
                self._handlers[frame.kind](frame)
        except FrameError:
            return EXIT_PROTOCOL
        except OSError:
            return EXIT_CLOSED
        return EXIT_CLOSED

    # --- components ---

    def _load(self, frame: Frame) -> None:
        message = worker_pb2.LoadComponent.FromString(frame.payload)
        if not self._reader.descriptors:
            error = "a LOAD frame came without a descriptor"
            raise FrameError(error)
        descriptor = self._reader.descriptors.popleft()
        try:
            self._components.loaded[message.component] = self._map(descriptor, message)
            self._components.failed.pop(message.component, None)
        except (wasmtime.WasmtimeError, UnlinkableError, GuestTypeError, OSError, ValueError) as exc:
            self._components.loaded.pop(message.component, None)
            self._components.failed[message.component] = f"{type(exc).__name__}: {exc}"[:300]
        finally:
            os.close(descriptor)

    def _map(self, descriptor: int, message: worker_pb2.LoadComponent) -> LoadedComponent:
        # SECURITY: nobody can write to what is mapped here (T1); the daemon sealed it, this is the check that it did.
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALED != _SEALED:
            error = "the artifact is not sealed"
            raise ValueError(error)
        if os.fstat(descriptor).st_size != message.size:
            error = "the artifact has another size than was said"
            raise ValueError(error)
        if self._may_open:
            compiled = component.Component.deserialize_file(self._engine, f"/proc/self/fd/{descriptor}")
        else:
            with mmap.mmap(descriptor, message.size, access=mmap.ACCESS_READ) as mapped:
                compiled = component.Component.deserialize(self._engine, bytes(mapped))
        return LoadedComponent(
            self._engine, compiled, memories=max(message.memories, 1), bridged=message.bridged, fuel_on=self._config.fuel
        )

    def _drop(self, frame: Frame) -> None:
        number = worker_pb2.DropComponent.FromString(frame.payload).component
        self._components.loaded.pop(number, None)
        self._components.failed.pop(number, None)

    # --- calls ---

    def _start(self, frame: Frame) -> None:
        received = time.monotonic()
        start = worker_pb2.Start.FromString(frame.payload)
        if frame.call_id in self._open or frame.call_id in self._awaiting_body:
            error = "a call was started twice"
            raise FrameError(error)
        if start.has_body:
            self._awaiting_body[frame.call_id] = _AwaitingBody(start=start, received=received)
        else:
            self._begin(frame.call_id, start, received, None)

    def _body(self, frame: Frame) -> None:
        waiting = self._awaiting_body.pop(frame.call_id, None)
        if waiting is None:
            error = "a body came for a call that awaits none"
            raise FrameError(error)
        self._begin(frame.call_id, waiting.start, waiting.received, frame.payload)

    def _begin(self, call_id: int, start: worker_pb2.Start, received: float, body: bytes | None) -> None:
        limits = limits_of(start)
        port = FramePort(self._writer, call_id)
        call = Call(
            context=GuestContext(
                request_id=start.request_id,
                tenant_id=start.tenant_id,
                extension_id=start.extension_id,
                install_id=start.install_id,
                version_id=start.version_id,
            ),
            limits=limits,
            capabilities=frozenset(start.capabilities),
            journal=Journal(lambda lines: self._send_log(call_id, lines), max_lines=limits.log_lines, max_bytes=limits.log_bytes),
            port=port,
            on_denied=lambda capability: self._send_denied(call_id, capability),
            started=received,
        )
        headers = [(header.name, header.value) for header in start.headers]
        request = GuestRequest(method=start.method, url=start.url, headers=headers, body=body)
        opened = self._open[call_id] = _OpenCall(call=call, port=port, component=start.component, request=request)
        self._journals_wanted.set()
        self._slots.submit(lambda: self._run(call_id, opened))

    def _run(self, call_id: int, opened: _OpenCall) -> None:
        """Run one call on a slot's thread, and say how it ended."""
        try:
            done, body = self._execute(opened)
            opened.call.journal.close()
            done.log_lines_dropped = opened.call.journal.dropped
            # Before Done leaves: from then on the daemon may use the id again.
            self._open.pop(call_id, None)
            self._writer.send_message(FrameKind.DONE, call_id, done, body=body)
        except OSError:
            # Nobody listens; the reader ends the process.
            pass
        except BaseException:  # noqa: BLE001 - a call without a Done would hang until the backstop; a dead worker is noticed at once
            os._exit(EXIT_PROTOCOL)

    def _execute(self, opened: _OpenCall) -> tuple[worker_pb2.Done, bytes | None]:
        loaded = self._components.loaded.get(opened.component)
        if loaded is None:
            why = self._components.failed.get(opened.component, "it was not sent")
            return worker_pb2.Done(internal_error=f"component {opened.component} is not loaded: {why}"), None
        # Over the bridge a byte costs an eighth of what it does value by value.
        size = len(opened.request.body or b"") // (8 if loaded.bridged else 1)
        budgeted = size > _SMALL_BODY_BYTES and self._bodies.take(size, deadline=opened.call.deadline)
        try:
            # Where the budget did not come in time, the deadline has passed and the call ends before it begins.
            return done_message(run_call(loaded, opened.call, opened.request, self._ticker))
        finally:
            if budgeted:
                self._bodies.give_back(size)

    def _host_reply(self, frame: Frame) -> None:
        opened = self._open.get(frame.call_id)
        # A reply for a call that has just ended is late, not wrong.
        if opened is not None:
            opened.port.replies.put(frame.payload)

    def _cancel(self, frame: Frame) -> None:
        waiting = self._awaiting_body.get(frame.call_id)
        if waiting is not None:
            # Its body is on the way and must still be taken.
            waiting.start.wall_time_us = 1
            return
        opened = self._open.get(frame.call_id)
        if opened is not None:
            opened.call.cancel()
            opened.port.replies.put(None)
            self._ticker.hurry()

    # --- logs ---

    def _send_log(self, call_id: int, lines: list[LogLine]) -> None:
        message = worker_pb2.Log(
            lines=[
                worker_pb2.LogLine(level=line.level, message=line.message, truncated=line.truncated, offset_us=line.offset_us)
                for line in lines
            ]
        )
        self._writer.send_message(FrameKind.LOG, call_id, message)

    def _send_denied(self, call_id: int, capability: str) -> None:
        self._writer.send_message(FrameKind.LOG, call_id, worker_pb2.Log(denied_capabilities=[capability]))

    def _flush_journals(self) -> None:
        """Send what has waited long enough, so that a killed call's last words are kept (N23)."""
        while True:
            self._journals_wanted.wait()
            self._journals_wanted.clear()
            while calls := list(self._open.values()):
                time.sleep(BATCH_SECONDS)
                now = time.monotonic()
                for opened in calls:
                    if opened.call.journal.overdue(now):
                        try:
                            opened.call.journal.flush(now)
                        except OSError:
                            return


def limits_of(start: worker_pb2.Start) -> InvocationLimits:
    """Read the limits of a Start frame, none above the worker's own maxima."""
    return InvocationLimits(
        wall_seconds=start.wall_time_us / 1e6,
        cpu_seconds=start.cpu_time_us / 1e6,
        fuel=start.fuel,
        memory_bytes=start.memory_bytes,
        response_bytes=start.response_bytes,
        host_calls=start.host_calls,
        log_lines=start.log_lines,
        log_bytes=start.log_bytes,
    ).bounded()
