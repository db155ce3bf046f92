"""HTTP/1.1 on the child's connections: uvicorn's protocol with the bounds it lacks, and the accept loop that keeps count.

The attacks this stops: connections that send nothing, half a header line or one header without end; requests pipelined without end;
readers that stop reading. A server of public files meets all of them, and uvicorn alone holds such connections for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import headers
from runnerd.assets.app import AssetsApp, problem_body

HEAD_SECONDS = 10.0
"""For a request's head, from connecting or from its first byte (N25)."""
STALL_SECONDS = 30.0
"""For a reader to take one chunk: about 8 KiB a second at least."""
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_PIPELINED = 8
ACCEPTS_AT_ONCE = 64
RETRY_ACCEPT_SECONDS = 0.2


class _HeadRefusedError(Exception):
    """Leaves a callback of the parser, which then stops."""


class Slots:
    """Counts connections, and finds room for a new one.

    Room is made by whoever has waited longest without sending a whole request, or else has not read for longest what was sent.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[AssetsProtocol, None] = OrderedDict()
        self._stalled: OrderedDict[AssetsProtocol, None] = OrderedDict()
        self.taken = 0
        self.on_released: Callable[[], None] = lambda: None

    def take(self) -> bool:
        """Take a place for a new connection, and tell whether there was one or one could be made."""
        if self.taken >= self._limit:
            idle = self._waiting or self._stalled
            if not idle:
                return False
            oldest, _ = idle.popitem(last=False)
            oldest.transport.abort()
        self.taken += 1
        return True

    def release(self, connection: AssetsProtocol | None) -> None:
        """Give a place back."""
        self.taken -= 1
        if connection is not None:
            self._waiting.pop(connection, None)
            self._stalled.pop(connection, None)
        self.on_released()

    def waits(self, connection: AssetsProtocol) -> None:
        """Note that a connection has no request in progress."""
        self._waiting[connection] = None

    def works(self, connection: AssetsProtocol) -> None:
        """Note that a connection has sent a whole request."""
        self._waiting.pop(connection, None)

    def stalls(self, connection: AssetsProtocol) -> None:
        """Note that a connection's client does not read."""
        self._stalled[connection] = None

    def reads(self, connection: AssetsProtocol) -> None:
        """Note that it does again."""
        self._stalled.pop(connection, None)


class AssetsProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, config: Config, state: ServerState, *, slots: Slots, frame_ancestors: str) -> None:
        super().__init__(config, state, {})
        self._slots = slots
        self._ancestors = frame_ancestors
        self._head_bytes = 0
        self._refusal: RefusalError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._slots.waits(self)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back and stop every clock."""
        self._stop_head_timer()
        self._stop_stall_timer()
        self._unset_keepalive_if_required()
        self._slots.release(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives before a head is complete, and parse it."""
        if self._head_timer is None and self._is_idle:
            self._await_head()
        self._head_bytes += len(data)
        super().data_received(data)
        # A head that is complete has set the count back; the parser itself buffers without a bound.
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refusal = _head_too_large()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Let the application see when its client has gone."""
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport

    def on_headers_complete(self) -> None:
        """Check the head as a whole and hand it on."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refusal = _head_too_large()
            raise _HeadRefusedError
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _HeadRefusedError
        self._head_bytes = 0
        self._stop_head_timer()
        self._slots.works(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Drop it: no request has a body that is read."""
        del body
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        """Wait for the next request, for as long as uvicorn's keep-alive says."""
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._slots.waits(self)

    def pause_writing(self) -> None:
        """Start the clock for a reader that does not keep up."""
        super().pause_writing()
        self._slots.stalls(self)
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        self._stop_stall_timer()
        self._slots.reads(self)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refused, as a problem, and close."""
        del msg
        if not self._is_idle:
            self.transport.abort()  # An answer is under way; another one in its middle would be taken for file content.
            return
        refusal = self._refusal or RefusalError(Reason.INVALID_REQUEST, "The request is not HTTP/1.1.")
        status = refusal.row.http_status
        body = problem_body(refusal, status=status)
        fields = [*headers.for_problem(ancestors=self._ancestors), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
        self.transport.write(b"HTTP/1.1 %d \r\n" % status + head + b"\r\n" + body)
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class Listener:
    """Accepts connections on an inherited socket as long as there is room.

    Args:
        sock: bound, listening; owned from now on.
        app: answers requests.
        max_connections: more wait in the kernel's queue.
        frame_ancestors: for answers that the application never sees.
    """

    def __init__(self, sock: socket.socket, app: AssetsApp, *, max_connections: int, frame_ancestors: str) -> None:
        self._sock = sock
        self._ancestors = frame_ancestors
        self._loop = asyncio.get_running_loop()
        self._config = Config(
            app,
            interface="asgi3",
            loop="asyncio",
            http=AssetsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=5,
        )
        self._config.load()
        self._state = ServerState()
        self._slots = Slots(max_connections)
        self._slots.on_released = self._released
        self._empty = asyncio.Event()
        self._accepting: set[asyncio.Task[Any]] = set()
        self._is_reading = False
        self._is_open = False

    def start(self) -> None:
        """Begin to accept."""
        self._sock.setblocking(False)
        self._is_open = True
        self._resume()

    async def aclose(self, *, grace_seconds: float) -> None:
        """Accept no more, let running answers end, and cut what is left after `grace_seconds`."""
        self._is_open = False
        self._pause()
        self._sock.close()
        self._empty.clear()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._slots.taken:
            # An answer has ended when its connection has: what is written may still wait for its reader.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), grace_seconds)
        for connection in list(self._state.connections):
            if isinstance(connection, AssetsProtocol):
                connection.transport.abort()

    def _acceptable(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if not self._slots.take():
                self._pause()
                return
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                self._slots.taken -= 1
                return
            except OSError:
                # No descriptor left, or the peer is gone already. Not at once again: the socket stays readable.
                self._slots.taken -= 1
                self._pause()
                self._loop.call_later(RETRY_ACCEPT_SECONDS, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()
            self._slots.release(None)

    def _protocol(self) -> AssetsProtocol:
        return AssetsProtocol(self._config, self._state, slots=self._slots, frame_ancestors=self._ancestors)

    def _released(self) -> None:
        if not self._slots.taken:
            self._empty.set()
        self._resume()

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            with contextlib.suppress(ValueError):
                self._loop.remove_reader(self._sock.fileno())

    def _resume(self) -> None:
        if self._is_open and not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._sock.fileno(), self._acceptable)


def _head_too_large() -> RefusalError:
    detail = f"Send at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes before the body."
    return RefusalError(Reason.HEADERS_TOO_LARGE, detail)
