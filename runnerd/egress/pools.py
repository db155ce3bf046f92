"""Connections, kept apart by install and state of its policy.

Attacks it stops (T34): a connection, a TLS session or a cookie of one install that serves another's request; a connection that outlives the
policy it was made under; an address that was checked and another that is connected to. There is one connector for each install and policy
generation, without cookies, proxies or redirects, and whatever it connects to passes the address check once more.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from runnerd.egress.addresses import AddressPolicy
from runnerd.egress.resolver import Resolver

IDLE_SECONDS: Final = 30.0
"""Of a connection that nobody uses, and then of a pool."""
CONNECTIONS_PER_POOL: Final = 16
READ_BUFFER_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 128


WIRE_BYTES: contextvars.ContextVar[int] = contextvars.ContextVar("WIRE_BYTES")
"""What the request of this task may receive on its connection, framing included."""


class WireBoundHandler(ResponseHandler):
    """Ends a connection on which one request received more than it may, or on which an answer came that nobody had asked for.

    The body's own limit does not see interim answers, extensions of chunks, or chunks of one byte: those have no end of their own.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._wire_left = 0

    def set_response_params(self, **params: Any) -> None:
        """Begin with the next request."""
        self._wire_left = WIRE_BYTES.get()
        super().set_response_params(**params)

    def is_connected(self) -> bool:
        """Tell whether a kept connection carries another request."""
        # SECURITY: what came while it lay idle would be the answer to the next request, which may be another user's of the same install.
        return super().is_connected() and not self.should_close

    def data_received(self, data: bytes) -> None:
        """Take bytes of the connection."""
        self._wire_left -= len(data)
        if self._wire_left < 0:
            if self.transport is not None:
                self.transport.abort()
            return
        super().data_received(data)


@dataclass(slots=True, eq=False)
class _Pool:
    session: aiohttp.ClientSession
    generation: str
    in_use: int = 0
    idle_since: float = 0.0
    retired: bool = False


class _CheckedResolver(AbstractResolver):
    """Gives a connector the addresses of a name, all of them checked."""

    def __init__(self, resolver: Resolver, addresses: AddressPolicy, tenant: str) -> None:
        self._resolver = resolver
        self._addresses = addresses
        self._tenant = tenant

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._resolver.resolve(self._tenant, host)
        self._addresses.check(found)
        wanted = {socket.AF_INET, socket.AF_INET6} if family == socket.AF_UNSPEC else {family}
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for address in found
            if (kind := socket.AF_INET6 if ":" in address else socket.AF_INET) in wanted
        ]

    async def close(self) -> None:
        """Nothing to close: the resolver behind it is everybody's."""


class Pools:
    """The pools of one process.

    Args:
        resolver: of names.
        addresses: judges what they resolve to.
        tls: verifies servers.
        most: pools at once; at least as many as requests can run at once.
        clock: monotonic seconds.
    """

    def __init__(
        self, resolver: Resolver, addresses: AddressPolicy, tls: ssl.SSLContext, *, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._resolver = resolver
        self._addresses = addresses
        self._tls = tls
        self._most = most
        self._clock = clock
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._pools)

    @asynccontextmanager
    async def session(self, *, tenant: str, install: str, generation: str) -> AsyncIterator[aiohttp.ClientSession]:
        """Lend the session of an install under a state of its policy. What it had under another state is closed as soon as it is idle."""
        pool = self._pools.get(install)
        if pool is not None and pool.generation != generation:
            self._retire(install, pool)
            pool = None
        if pool is None:
            self._make_room()
            pool = self._pools[install] = _Pool(self._new_session(tenant), generation)
        self._pools.move_to_end(install)
        pool.in_use += 1
        try:
            yield pool.session
        finally:
            pool.in_use -= 1
            pool.idle_since = self._clock()
            if pool.retired and not pool.in_use:
                self._close(pool)

    def sweep(self) -> None:
        """Close pools that nobody used for a while. Called every few seconds."""
        for install, pool in list(self._pools.items()):
            if not pool.in_use and self._clock() - pool.idle_since > IDLE_SECONDS:
                self._retire(install, pool)

    async def aclose(self) -> None:
        """Close everything."""
        for install, pool in list(self._pools.items()):
            del self._pools[install]
            self._close(pool)
        while self._closing:
            await asyncio.wait(set(self._closing))

    def _make_room(self) -> None:
        idle = (install for install, pool in self._pools.items() if not pool.in_use)
        while len(self._pools) >= self._most and (oldest := next(idle, None)) is not None:
            self._retire(oldest, self._pools[oldest])
            idle = (install for install, pool in self._pools.items() if not pool.in_use)

    def _retire(self, install: str, pool: _Pool) -> None:
        del self._pools[install]
        pool.retired = True
        if not pool.in_use:
            self._close(pool)

    def _close(self, pool: _Pool) -> None:
        task = asyncio.get_running_loop().create_task(pool.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _new_session(self, tenant: str) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._resolver, self._addresses, tenant),
            use_dns_cache=False,
            ssl=self._tls,
            limit=CONNECTIONS_PER_POOL,
            keepalive_timeout=IDLE_SECONDS,
            socket_factory=self._socket,
        )
        # NOTE: no public way leads here; a test holds every release of the library to it.
        connector._factory = functools.partial(WireBoundHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # noqa: SLF001
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            version=aiohttp.HttpVersion11,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one connection attempt."""
        # SECURITY: whatever came before, nothing is connected to that was not checked. Address literals meet the check only here.
        self._addresses.check((info[4][0],))
        made = socket.socket(info[0], info[1], info[2])
        made.setblocking(False)
        return made
