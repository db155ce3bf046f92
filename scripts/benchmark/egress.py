"""Requests of extensions a second, through broker and egress process, beside the same requests by the library behind it alone.

Both ask one small server in a process of its own; what stands between the two figures is the price of the wall: policy, two socket pairs of
frames and a process that shares this machine's CPUs. No guest is in the way, and no TLS.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from registry.domain.capabilities import KNOWN
from registry.domain.egress import EgressRule, InstallEgress
from registry.domain.ids import ExtensionId, InstallId, TenantId, VersionId
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import BY_NAME, FUNCTIONS
from runnerd.capabilities.egress_policy import EgressCeiling
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.http import FetchLimits, http_handlers
from runnerd.capabilities.unavailable import unavailable_handlers
from runnerd.egress.child import ChildSettings
from runnerd.egress.client import ClientSettings, EgressClient
from runnerd.telemetry.metrics import Metrics
from scripts.benchmark.bench import Bench, Figures

_FETCH: Final = BY_NAME["alga:extension/http", "fetch"]
_CONNECTIONS: Final = (1, 16)
_BODY_BYTES: Final = 1_024
_SERVER: Final = """
import asyncio, sys
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % {size} + b"x" * {size}
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        self.buffer += data
        while b"\\r\\n\\r\\n" in self.buffer:
            _, _, self.buffer = self.buffer.partition(b"\\r\\n\\r\\n")
            self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


def measure(bench: Bench) -> Figures:
    """Return requests a second for each number of connections, with the bare client's and the ratio of the two."""
    seconds = 0.5 if bench.quick else 5.0
    program = _SERVER.format(size=_BODY_BYTES)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            return {"egress_rps": asyncio.run(_measure(int(line), seconds))}
        finally:
            server.kill()


async def _measure(port: int, seconds: float) -> Figures:
    url = f"http://127.0.0.1:{port}/v1/things?page=1"
    client = EgressClient(ChildSettings(require_hardening=True, allowed_ranges=("127.0.0.0/8",)), ClientSettings(), Metrics())
    await client.start()
    try:
        broker = _broker(client, port)
        grant = _grant(port)

        async def through_the_process() -> None:
            result = await broker.call(grant, _FETCH, ({"method": "GET", "url": url, "headers": [], "body": None},))
            if result.error is not None:
                message = f"a request ended as {result.error}"
                raise RuntimeError(message)
            # One invocation for all of them: what it used is not what is measured.
            grant.used.clear()

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(family=socket.AF_INET)) as session:

            async def by_the_library() -> None:
                async with session.get(url, allow_redirects=False) as response:
                    await response.read()

            figures: Figures = {}
            for connections in _CONNECTIONS:
                rates = {"through": 0.0, "bare": 0.0}
                # Turn by turn: what the machine does besides falls on both.
                for _ in range(3):
                    rates["through"] += await _rate(through_the_process, connections, seconds / 3)
                    rates["bare"] += await _rate(by_the_library, connections, seconds / 3)
                through, bare = rates["through"] / 3, rates["bare"] / 3
                figures[f"{connections}"] = {"egress": round(through), "aiohttp": round(bare), "ratio": round(through / bare, 3)}
            return figures
    finally:
        await client.aclose()


async def _rate(request: Callable[[], Awaitable[None]], connections: int, seconds: float) -> float:
    count = 0
    end = time.perf_counter() + seconds

    async def loop() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await request()
            count += 1

    await request()
    began = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(connections)))
    return count / (time.perf_counter() - began)


def _broker(client: EgressClient, port: int) -> CapabilityBroker:
    ceiling = EgressCeiling(hosts=("127.0.0.1",), ports=(port,), schemes=("http",))
    fetching = http_handlers(client, ceiling=ceiling, limits=FetchLimits(), metrics=Metrics())
    others = {function.interface for function in FUNCTIONS if function.number not in fetching}
    return CapabilityBroker((fetching, unavailable_handlers(*others)))


def _grant(port: int) -> InvocationGrant:
    capabilities = frozenset(KNOWN)
    return InvocationGrant(
        tenant_id=TenantId("bench"),
        install_id=InstallId("0197a000-0000-7000-8000-00000000000a"),
        extension_id=ExtensionId("0197a000-0000-7000-8000-000000000001"),
        extension_name="com.example.bench",
        version_id=VersionId("0197a000-0000-7000-8000-000000000002"),
        request_id="egress",
        capabilities=capabilities,
        declared=capabilities,
        granted=capabilities,
        config={},
        user=None,
        deadline=time.monotonic() + 3_600,
        egress=InstallEgress(rules=(EgressRule(host="127.0.0.1", ports=(port,), schemes=("http",)),)),
    )
