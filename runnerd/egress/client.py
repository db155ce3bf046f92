"""The daemon's handle on the egress process: asks it for one request at a time of many, and outlives it.

Attacks it stops (T11): a child that was taken over by what a server sent it writes frames of its choice, answers more than was asked for,
floods us, or answers and reads nothing any more. It has no more to give than answers of the shape checked here, in no more frames than they
need; what breaks that is killed and replaced. Requests under way then end as "unavailable" and the next ones wait for the new process. One
tenant's slow servers hold its own places only, and its answers a part of the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import structlog

from registry.domain.limits import MIB
from runnerd.capabilities.outgoing import EgressError, Failure, IncomingResponse, OutgoingRequest
from runnerd.children.keeper import Child, ChildStartError, Keeper, steps_of
from runnerd.children.process import ChildProcess
from runnerd.egress.answers import AnswerError, Headers, check_head, head_size
from runnerd.egress.child import ChildSettings
from runnerd.egress.exchange import Order
from runnerd.egress.frames import (
    CHUNK_BYTES,
    FROM_CHILD,
    FROM_DAEMON,
    NO_CALL,
    Frame,
    FrameError,
    Kind,
    encode,
    encode_document,
    is_taken,
    read_frame,
)
from runnerd.telemetry.metrics import Metrics

WAIT_FOR_CHILD_SECONDS: Final = 2.0
"""A request that comes while there is no child waits for the next one so long."""
GRACE_SECONDS: Final = 2.0
"""How much later than the child the daemon gives a request up."""
PING_SECONDS: Final = 5.0
MOST_GIVEN_UP: Final = 4_096
"""Calls whose end a child owes us, which it says at once."""
SILENT_SECONDS: Final = 20.0
"""A child that says nothing for so long, asked every few seconds, is not alive any more."""
_log = structlog.get_logger(__name__)


class EgressStartError(ChildStartError):
    """The egress process did not come up; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How much may be under way."""

    requests: int = 256
    requests_per_tenant: int = 32
    buffered_bytes: int = 256 * MIB
    """Of bodies, those that go and those that come; a tenant may have a quarter of it."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Call:
    number: int
    request: OutgoingRequest
    answer: asyncio.Future[IncomingResponse]
    head: tuple[int, Headers] | None = None
    body: bytearray = field(default_factory=bytearray)
    size: int = 0
    held: int = 0
    is_whole: bool = False
    """Its last piece has come."""

    @property
    def frames(self) -> int:
        """How many its answer may have: head, end, full pieces and the last one."""
        return self.request.response_bytes // CHUNK_BYTES + 3


@dataclass(slots=True, kw_only=True)
class _EgressChild(Child):
    channel: _Channel
    calls: dict[int, _Call] = field(default_factory=dict)
    heard_at: float = field(default_factory=time.monotonic)
    unanswered: int = 0
    """PINGs."""
    given_up: dict[int, int] = field(default_factory=dict)
    """Call → how many of its frames may still come, until its end does."""
    reading: asyncio.Task[None] | None = None


class _Channel:
    """The daemon's end of the stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.closed = False

    def close(self) -> None:
        """End it; the child reads an end of file."""
        self.closed = True
        self.writer.close()


class EgressClient:
    """Sends requests from a process of its own.

    Args:
        child: what that process is told.
        settings: how much may be under way.
        metrics: counts.
    """

    def __init__(self, child: ChildSettings, settings: ClientSettings, metrics: Metrics) -> None:
        self._child_settings = child
        self._settings = settings
        self._metrics = metrics
        self._keeper: Keeper[_EgressChild] = Keeper("egress", self._spawn)
        self._spawned = False
        self._numbers = 0
        self._running: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self.hardening: dict[str, bool] = {}
        """Step of hardening → whether it holds in the child."""

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._keeper.child is None else self._keeper.child.process.pid

    async def start(self) -> None:
        """Start the child and wait until it takes requests.

        Raises:
            EgressStartError: it did not come up.
        """
        try:
            await self._keeper.start()
        except (ChildStartError, OSError) as error:
            raise EgressStartError(str(error)) from error
        self._watch = asyncio.get_running_loop().create_task(self._ping())

    async def aclose(self) -> None:
        """End requests under way; leave no process behind."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        child = self._keeper.child
        await self._keeper.aclose()
        if child is not None and child.reading is not None:
            await asyncio.wait({child.reading})

    async def fetch(self, request: OutgoingRequest) -> IncomingResponse:
        """Send one request and return the answer. Cancelling closes the connection.

        Raises:
            EgressError: there is none.
        """
        with self._place(request):
            try:
                async with asyncio.timeout(min(WAIT_FOR_CHILD_SECONDS, request.seconds)):
                    child = await self._keeper.wait_up()
            except TimeoutError as error:
                raise EgressError(Failure.UNAVAILABLE, "the egress process is not there") from error
            call = self._open(child, request)
            try:
                self._hold(call, len(request.body or b""))
                async with asyncio.timeout(request.seconds + GRACE_SECONDS):
                    await self._send(child, call)
                    return await call.answer
            except TimeoutError as error:
                raise EgressError(Failure.TIMEOUT, "the egress process says nothing") from error
            finally:
                self._close(child, call)

    @contextlib.contextmanager
    def _place(self, request: OutgoingRequest) -> Iterator[None]:
        tenant, settings = request.tenant_id, self._settings
        if self._running.total() >= settings.requests or self._running[tenant] >= settings.requests_per_tenant:
            raise EgressError(Failure.UNAVAILABLE, "too many requests at once")
        self._running[tenant] += 1
        try:
            yield
        finally:
            _lower(self._running, tenant, 1)

    def _hold(self, call: _Call, size: int) -> None:
        """Account for bytes in memory.

        Raises:
            EgressError: that is too much for the tenant, or for all together.
        """
        tenant, most = call.request.tenant_id, self._settings.buffered_bytes
        if self._held.total() + size > most or self._held[tenant] + size > most // 4:
            raise EgressError(Failure.UNAVAILABLE, "too many bytes under way")
        self._held[tenant] += size
        call.held += size

    def _open(self, child: _EgressChild, request: OutgoingRequest) -> _Call:
        self._numbers += 1
        call = _Call(number=self._numbers, request=request, answer=asyncio.get_running_loop().create_future())
        child.calls[call.number] = call
        return call

    def _close(self, child: _EgressChild, call: _Call) -> None:
        self._give_up(child, call)
        if call.answer.done() and not call.answer.cancelled():
            call.answer.exception()
        _lower(self._held, call.request.tenant_id, call.held)

    def _give_up(self, child: _EgressChild, call: _Call) -> None:
        """Take no more of a call that has not ended, and tell the child."""
        if child.calls.pop(call.number, None) is not None:
            child.given_up[call.number] = call.frames
            if len(child.given_up) > MOST_GIVEN_UP:
                _log.error("egress child ends nothing that is given up")
                child.gone()
            if not child.channel.writer.is_closing():
                child.channel.writer.write(encode(Kind.CANCEL, call.number))

    async def _send(self, child: _EgressChild, call: _Call) -> None:
        request, target = call.request, call.request.target
        order = Order(
            tenant=request.tenant_id,
            install=request.install_id,
            generation=request.generation,
            method=request.method,
            scheme=target.scheme,
            host=target.host,
            port=target.port,
            path=target.path,
            headers=request.headers,
            has_body=request.body is not None,
            seconds=request.seconds,
            response_bytes=request.response_bytes,
        )
        writer = child.channel.writer
        if writer.is_closing():
            raise EgressError(Failure.UNAVAILABLE, "the egress process has ended")
        # SECURITY: what is sent to a child that does not read stays here, and outlives the calls that it was counted for.
        if writer.transport.get_write_buffer_size() > self._settings.buffered_bytes:
            raise EgressError(Failure.UNAVAILABLE, "the egress process does not read")
        frames = [encode_document(Kind.REQUEST, call.number, asdict(order))]
        if request.body is not None:
            frames.append(encode(Kind.BODY, call.number, request.body))
        # SECURITY: the child ends at a frame that is too long, and with it everybody's requests.
        if not all(is_taken(frame, FROM_DAEMON) for frame in frames):
            raise EgressError(Failure.INTERNAL, "the request is longer than a frame")
        for frame in frames:
            writer.write(frame)
        with contextlib.suppress(ConnectionError):  # Whoever reads from the child ends the call.
            await writer.drain()

    async def _spawn(self) -> _EgressChild:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.enter_context(ours)
            with theirs:
                process = ChildProcess(self._command(theirs.fileno()), descriptors=(theirs.fileno(),), on_line=_say)
            stack.pop_all()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=4 * CHUNK_BYTES)
        child = _EgressChild(process=process, channel=_Channel(reader, writer), ready=loop.create_future())
        child.reading = loop.create_task(self._read(child))
        self.hardening = steps_of(await child.wait_ready("egress"))
        if self._spawned:
            self._metrics.egress_restarted()
        self._spawned = True
        # The names are the child's: none of them is a field of the log's own.
        _log.info("egress child hardened", steps=self.hardening)
        return child

    def _command(self, control_fd: int) -> list[str]:
        command = [sys.executable, "-I", "-B", "-X", "utf8", "-m", "runnerd.egress"]
        return [*command, "--control-fd", str(control_fd), "--settings", self._child_settings.to_argument()]

    async def _read(self, child: _EgressChild) -> None:
        """Take the child's frames until it ends or breaks the protocol; then end what it held."""
        try:
            while (frame := await read_frame(child.channel.reader, FROM_CHILD)) is not None:
                child.heard_at = time.monotonic()
                self._take(child, frame)
        except FrameError as error:
            # SECURITY: our child sends nothing of this kind; this one is not our child any more.
            _log.error("egress child broke the protocol", detail=str(error))
        except OSError:
            pass
        if not child.channel.closed:
            child.gone()
        for call in list(child.calls.values()):
            self._fail(child, call, EgressError(Failure.UNAVAILABLE, "the egress process ended"))

    def _take(self, child: _EgressChild, frame: Frame) -> None:
        if frame.call == NO_CALL:
            self._take_own(child, frame)
            return
        call = child.calls.get(frame.call)
        if call is None:
            _take_late(child, frame)
            return
        match frame.kind:
            case Kind.HEAD if call.head is None:
                self._take_head(child, call, frame)
            # SECURITY: full ones, so that their number has a bound; empty ones would have no end.
            case Kind.CHUNK if call.head is not None and frame.payload and not call.is_whole:
                call.is_whole = len(frame.payload) < CHUNK_BYTES
                self._take_bytes(child, call, len(frame.payload))
                call.body += frame.payload
            case Kind.END:
                self._take_end(child, call, frame)
            case _:
                message = f"a {frame.kind.name} frame out of order"
                raise FrameError(message)

    def _take_own(self, child: _EgressChild, frame: Frame) -> None:
        if frame.kind is Kind.READY and not child.ready.done():
            child.ready.set_result(frame.document().get("hardening"))
        elif frame.kind is Kind.PONG and child.unanswered:
            child.unanswered -= 1
        else:
            message = f"a {frame.kind.name} frame of no call"
            raise FrameError(message)

    def _take_head(self, child: _EgressChild, call: _Call, frame: Frame) -> None:
        status, headers = _head(frame.document())
        call.head = (status, headers)
        self._take_bytes(child, call, head_size(headers))

    def _take_bytes(self, child: _EgressChild, call: _Call, size: int) -> None:
        call.size += size
        if call.size > call.request.response_bytes:
            message = "an answer longer than was asked for"
            raise FrameError(message)
        call.request.received(size)
        try:
            self._hold(call, size)
        except EgressError as error:
            self._give_up(child, call)
            self._fail(child, call, error)

    def _take_end(self, child: _EgressChild, call: _Call, frame: Frame) -> None:
        document = frame.document()
        failure = document.get("failure")
        if failure is not None:
            named = Failure(failure) if isinstance(failure, str) and failure in set(Failure) else Failure.INTERNAL
            self._fail(child, call, EgressError(named, str(document.get("detail"))[:400]))
            return
        if call.head is None:
            message = "an end without an answer"
            raise FrameError(message)
        del child.calls[call.number]
        status, headers = call.head
        if not call.answer.done():
            call.answer.set_result(IncomingResponse(status=status, headers=headers, body=bytes(call.body)))

    def _fail(self, child: _EgressChild, call: _Call, error: EgressError) -> None:
        child.calls.pop(call.number, None)
        if not call.answer.done():
            call.answer.set_exception(error)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            child = self._keeper.child
            if child is None or child.channel.writer.is_closing():
                continue
            if time.monotonic() - child.heard_at > SILENT_SECONDS:
                _log.error("egress child does not answer")
                child.gone()
            else:
                child.unanswered += 1
                child.channel.writer.write(encode(Kind.PING))


def _take_late(child: _EgressChild, frame: Frame) -> None:
    """Drop a frame that crossed with the cancellation of its call.

    Raises:
        FrameError: it has no such call, or that had more of them than an answer has.
    """
    left = child.given_up.pop(frame.call, 0)
    # SECURITY: numbers that were never given out, and calls that have ended, have no frames.
    if not left:
        message = "an answer to what nobody asked"
        raise FrameError(message)
    if frame.kind is not Kind.END:
        child.given_up[frame.call] = left - 1


def _head(document: dict[str, Any]) -> tuple[int, Headers]:
    headers = document.get("headers")
    try:
        return check_head(document.get("status"), headers if isinstance(headers, list) else [None])
    except AnswerError as error:
        raise FrameError(str(error)) from error


def _lower(counter: Counter[str], key: str, by: int) -> None:
    counter[key] -= by
    if counter[key] <= 0:
        del counter[key]


def _say(line: str) -> None:
    _log.warning("egress child says", line=line)
