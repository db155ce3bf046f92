"""Connections to the host platform: bounded in all and for each install, and never shared between installs.

Attacks it stops: a platform that hangs for one install's calls and thereby for everybody's; an answer that somebody between us and the
platform sends too early or too often, and that would be read as the answer to another install's next call; descriptors that pile up.

The transport is httpx's, without the client around it: no redirects, no cookies, no proxy or certificate of the environment, no retries,
no header of its own, and no log line with the address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx

from registry.domain.ids import InstallId

KEEP_ALIVE_SECONDS: Final = 2.0
"""Shorter than any server's own (Node.js: 5 s), so that no request is sent into a connection that is being closed."""
MOST_IDLE_INSTALLS: Final = 64
"""Installs whose connections are kept for their next call."""


@dataclass(slots=True, eq=False)
class _Line:
    """What one install has: its transport and its places."""

    transport: httpx.AsyncHTTPTransport
    places: asyncio.Semaphore
    users: int = 0
    """Calls that use it or wait for a place."""
    idle: asyncio.TimerHandle | None = field(default=None)


class PlatformConnections:
    """The connections of one daemon to one platform.

    Args:
        verify: whose certificates are believed.
        most: calls at once.
        most_per_install: calls at once of one install; what is more waits, as long as its own time lasts.
    """

    def __init__(self, *, verify: ssl.SSLContext, most: int, most_per_install: int) -> None:
        self._verify = verify
        self._most_per_install = most_per_install
        self._places = asyncio.Semaphore(most)
        self._lines: dict[InstallId, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def transport_for(self, install_id: InstallId) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """Wait for a place and lend the transport of an install."""
        line = self._lines.get(install_id)
        if line is None:
            line = self._lines[install_id] = self._open()
        if line.idle is not None:
            line.idle.cancel()
            line.idle = None
        line.users += 1
        try:
            # An install waits for its own places first, so that it holds none of everybody's meanwhile.
            async with line.places, self._places:
                yield line.transport
        finally:
            line.users -= 1
            if not line.users:
                self._rest(install_id, line)

    async def aclose(self) -> None:
        """Close every connection. No call may be under way."""
        for install_id in tuple(self._lines):
            self._close(install_id)
        while self._closing:
            await asyncio.wait(self._closing)

    def _open(self) -> _Line:
        limits = httpx.Limits(
            max_connections=self._most_per_install,
            max_keepalive_connections=self._most_per_install,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        )
        # SECURITY: trust_env is for SSL_CERT_FILE and the like; proxies of the environment are a client's affair, which there is not.
        transport = httpx.AsyncHTTPTransport(verify=self._verify, trust_env=False, http2=False, limits=limits, retries=0)
        return _Line(transport, asyncio.Semaphore(self._most_per_install))

    def _rest(self, install_id: InstallId, line: _Line) -> None:
        """Keep the connections of a line that nobody uses for a while, where there is room."""
        if sum(1 for other in self._lines.values() if other.idle is not None) >= MOST_IDLE_INSTALLS:
            self._close(install_id)
        else:
            line.idle = asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, self._close, install_id)

    def _close(self, install_id: InstallId) -> None:
        line = self._lines.pop(install_id)
        if line.idle is not None:
            line.idle.cancel()
        task = asyncio.ensure_future(line.transport.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
