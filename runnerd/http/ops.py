"""GET /metrics, /healthz and /readyz on a listener of their own (DESIGN §10, T43).

Loopback by default: metrics name engine version and hardening, which is nobody's business on the network. Elsewhere they need a bearer
token; the probes say one word and need none, because a kubelet has none. uvicorn runs without its own signal handling (N25): this
listener stops last, and answers 503 on /readyz while the daemon drains.

Live: the event loop turns. Ready: the daemon can execute something, with a worker alive and not draining; never "the database is up" (T38).
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

_TEXT = b"text/plain; charset=utf-8"
_METRICS = b"text/plain; version=0.0.4; charset=utf-8"

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OpsApp:
    """The ASGI application.

    Args:
        render_metrics: returns all series in Prometheus' text form.
        is_ready: tells whether the daemon takes calls.
        tokens: any of them opens the metrics; without one they are open.
    """

    def __init__(
        self,
        *,
        render_metrics: Callable[[], Awaitable[bytes]],
        is_ready: Callable[[], Awaitable[bool]],
        tokens: Sequence[bytes] = (),
    ) -> None:
        self._render_metrics = render_metrics
        self._is_ready = is_ready
        self._tokens = tokens

    async def __call__(self, scope: Mapping[str, Any], _receive: Receive, send: Send) -> None:
        """Answer one request. Its body is never read."""
        if scope["type"] != "http":
            return
        if scope["method"] not in {"GET", "HEAD"}:
            await _answer(send, 405, b"method not allowed\n", scope)
            return
        match scope["path"]:
            case "/metrics" if not self._may_read(scope):
                await _answer(send, 401, b"a bearer token is needed\n", scope, challenge=True)
            case "/metrics":
                await _answer(send, 200, await self._render_metrics(), scope, content_type=_METRICS)
            case "/healthz":
                await _answer(send, 200, b"live\n", scope)
            case "/readyz":
                ready = await self._is_ready()
                await _answer(send, 200 if ready else 503, b"ready\n" if ready else b"not ready\n", scope)
            case _:
                await _answer(send, 404, b"not found\n", scope)

    def _may_read(self, scope: Mapping[str, Any]) -> bool:
        if not self._tokens:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        # SECURITY: every token is compared, each in a time that does not depend on where they differ.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        return scheme.lower() == b"bearer" and any(matches)


async def _answer(  # noqa: PLR0913 - an answer's parts
    send: Send, status: int, body: bytes, scope: Mapping[str, Any], *, content_type: bytes = _TEXT, challenge: bool = False
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if challenge:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class _QuietServer(uvicorn.Server):
    """uvicorn without signal handling: the daemon decides when it stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OpsServer:
    """Serves an `OpsApp`.

    Args:
        app: what to serve.
        host: numeric address.
        port: 0 picks one.
    """

    def __init__(self, app: OpsApp, *, host: str, port: int) -> None:
        config = uvicorn.Config(
            app,
            http="h11",
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=64,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
        )
        self._server = _QuietServer(config)
        self._address = (host, port)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            OSError: the address cannot be had.
        """
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self._address)
            # From here on connections wait in the kernel; uvicorn takes over in its own task.
            listening.listen(64)
        except OSError:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))
        return self.port

    async def aclose(self) -> None:
        """Stop listening and let running answers end."""
        if self._task is None:
            return
        self._server.should_exit = True
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
