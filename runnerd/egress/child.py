"""The child as a whole: what it is made of, in the order that hardening demands."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import resource
import socket
import ssl
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import certifi
import dns.resolver

from runnerd.capabilities.outgoing import EgressError, Failure
from runnerd.egress.addresses import AddressPolicy
from runnerd.egress.answers import Headers
from runnerd.egress.exchange import Order, perform
from runnerd.egress.frames import CHUNK_BYTES, FROM_DAEMON, Frame, FrameError, Kind, encode, encode_document, read_frame
from runnerd.egress.pools import CONNECTIONS_PER_POOL, Pools
from runnerd.egress.resolver import NameServer, Resolver
from runnerd.worker.hardening import Step, harden

MAX_REQUESTS: Final = 512
"""At once."""
MAX_DESCRIPTORS: Final = 8_192
SWEEP_SECONDS: Final = 5.0
LATE_CODECS: Final = ("ascii", "idna", "latin-1", "punycode", "utf-8")
"""Python imports a codec when it is first used; hardened, this process imports nothing."""
_SYSTEM_ROOTS: Final = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What the daemon tells its child on the command line. None of it is secret."""

    require_hardening: bool
    name_servers: tuple[str, ...] = ()
    """Addresses, with ":port" where it is not 53; those of /etc/resolv.conf where there is none."""
    denied_ranges: tuple[str, ...] = ()
    allowed_ranges: tuple[str, ...] = ()
    ca_file: str | None = None
    """PEM: authorities that are trusted besides the system's."""
    ports: tuple[int, ...] | None = None
    """TCP ports that the operator allows; the kernel refuses every other one, whatever this process believes. None: all."""

    def to_argument(self) -> str:
        """Return what `from_argument` reads."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_argument(cls, text: str) -> Self:
        """Read a command line's argument."""
        document: dict[str, Any] = json.loads(text)
        for name, value in document.items():
            document[name] = tuple(value) if isinstance(value, list) else value
        return cls(**document)


async def serve(settings: ChildSettings, control_fd: int) -> None:
    """Serve until the daemon closes the control channel or dies.

    1. take over the inherited descriptor; 2. read and make everything that needs more than the hardened process may do; 3. harden;
    4. tell the daemon; 5. take requests.
    """
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=control_fd), limit=4 * CHUNK_BYTES)  # (1)
    logging.getLogger("aiohttp").disabled = True  # What strangers send must not write the operator's log.
    addresses = AddressPolicy(denied=settings.denied_ranges, allowed=settings.allowed_ranges)  # (2)
    requests = _room()
    servers = name_servers(settings.name_servers)
    pools = Pools(Resolver(servers), addresses, tls_context(settings.ca_file), most=requests)
    desk = _Desk(reader, writer, pools, most=requests)
    ports = None if settings.ports is None else {*settings.ports, *(server.port for server in servers)}
    steps = harden_child(require=settings.require_hardening, ports=ports)  # (3)
    desk.send(encode_document(Kind.READY, 0, {"hardening": steps}))  # (4)
    await desk.serve()  # (5)


def harden_child(*, require: bool, ports: Iterable[int] | None = None) -> dict[str, bool]:
    """Give up everything that requests do not need; return each step and whether it is in force.

    Afterwards no path opens and no program starts; sockets are made for TCP and UDP only, none of them listens, and where landlock knows
    the network, TCP reaches `ports` only: not PostgreSQL's, whatever address a mistake in the address filter let through (T11).

    Raises:
        HardeningError: a mandatory step failed and `require` says that this is fatal.
    """
    for name in LATE_CODECS:
        codecs.lookup(name)
    "warm".encode("idna")
    report = harden("egress", require=require, connect_ports=ports, namespaces=False)
    return {step.value: report.holds(step) for step in Step}


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Make the context that verifies servers: the system's authorities, or certifi's where the system has none, and the operator's.

    All of them are read now: later, no file opens.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    system = next((path for path in _SYSTEM_ROOTS if path.is_file()), None)
    context.load_verify_locations(cafile=certifi.where() if system is None else str(system))
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


def name_servers(configured: tuple[str, ...]) -> tuple[NameServer, ...]:
    """Return whom to ask: the configured ones, or those of /etc/resolv.conf."""
    if not configured:
        system = dns.resolver.Resolver()
        return tuple(NameServer(str(address), system.port) for address in system.nameservers)
    return tuple(map(_name_server, configured))


def _name_server(text: str) -> NameServer:
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return NameServer(address, int(port.removeprefix(":") or 53))
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return NameServer(address, int(port))
    return NameServer(text)


def _room() -> int:
    """Return how many requests this process has descriptors for, a full pool for each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (available, available))
    return max(8, min(MAX_REQUESTS, available // (CONNECTIONS_PER_POOL + 4)))


class _Outlet:
    """Writes the answer of one request, the body in full frames; waits where the daemon is slow.

    A server that sends single bytes costs this process something for each, and the daemon nothing.
    """

    def __init__(self, writer: asyncio.StreamWriter, call: int) -> None:
        self._writer = writer
        self._call = call
        self._waiting = bytearray()

    async def tell(self, status: int, headers: Headers) -> None:
        self._writer.write(encode_document(Kind.HEAD, self._call, {"status": status, "headers": headers}))
        await self._writer.drain()

    async def pass_on(self, piece: bytes) -> None:
        self._waiting += piece
        while len(self._waiting) >= CHUNK_BYTES:
            self._writer.write(encode(Kind.CHUNK, self._call, bytes(self._waiting[:CHUNK_BYTES])))
            del self._waiting[:CHUNK_BYTES]
            await self._writer.drain()

    def flush(self) -> None:
        """Write what is left, also of an answer that ended too early: the daemon counts what it is handed."""
        if self._waiting:
            self._writer.write(encode(Kind.CHUNK, self._call, bytes(self._waiting)))


class _Desk:
    """Takes requests from the daemon, each a task of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pools: Pools, *, most: int) -> None:
        self._reader = reader
        self._writer = writer
        self._pools = pools
        self._most = most
        self._running: dict[int, asyncio.Task[None]] = {}

    def send(self, data: bytes) -> None:
        """Queue a small frame."""
        self._writer.write(data)

    async def serve(self) -> None:
        """Serve until the daemon closes its end; nothing goes on after that."""
        sweeping = asyncio.get_running_loop().create_task(self._sweep())
        try:
            while (frame := await read_frame(self._reader, FROM_DAEMON)) is not None:
                await self._take(frame)
        finally:
            sweeping.cancel()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(sweeping, *self._running.values(), return_exceptions=True)
            await self._pools.aclose()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                self.send(encode(Kind.PONG))
            case Kind.CANCEL:
                task = self._running.get(frame.call)
                if task is not None:
                    task.cancel()
            case Kind.REQUEST:
                order = Order.from_document(frame.document())
                body = await self._body(frame.call) if order.has_body else None
                self._start(frame.call, order, body)
            case _:
                message = f"a {frame.kind.name} frame that nothing announced"
                raise FrameError(message)

    async def _body(self, call: int) -> bytes:
        frame = await read_frame(self._reader, FROM_DAEMON)
        if frame is None or frame.kind is not Kind.BODY or frame.call != call:
            message = "no body where one was announced"
            raise FrameError(message)
        return frame.payload

    def _start(self, call: int, order: Order, body: bytes | None) -> None:
        if len(self._running) >= self._most:
            self._end(call, EgressError(Failure.UNAVAILABLE, "too many requests at once"))
            return
        task = asyncio.get_running_loop().create_task(self._run(call, order, body))
        self._running[call] = task
        task.add_done_callback(lambda done: self._ended(call, done))

    def _ended(self, call: int, task: asyncio.Task[None]) -> None:
        self._running.pop(call, None)
        if task.cancelled():
            # The daemon waits for one end of each request, so that it knows when nothing of it comes any more.
            self._end(call, EgressError(Failure.UNAVAILABLE, "cancelled"))

    async def _run(self, call: int, order: Order, body: bytes | None) -> None:
        failed: EgressError | None = None
        outlet = _Outlet(self._writer, call)
        try:
            await perform(self._pools, order, body, outlet)
        except EgressError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - one broken request must not end the others
            _log.exception("a request failed")
            failed = EgressError(Failure.INTERNAL, type(error).__name__)
        outlet.flush()
        self._end(call, failed)

    def _end(self, call: int, failed: EgressError | None) -> None:
        document = {} if failed is None else {"failure": failed.failure.value, "detail": failed.detail[:400]}
        self.send(encode_document(Kind.END, call, document))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._pools.sweep()
