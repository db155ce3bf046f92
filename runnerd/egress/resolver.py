"""Names to addresses, in this process and on its event loop.

Attacks it stops (T34): a name server that never answers holds a thread of everybody's (there is none: no getaddrinfo), or every look-up
there can be (each tenant has few); an answer by somebody else than who was asked (connected socket, random id, question compared); endless
chains and answers (bounded); a search list or a hosts file that makes another name of what was checked (there is neither). What was found
for one tenant is not kept for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype

# dnspython imports a type when it first meets one; the hardened process imports nothing. Every other type stays bytes.
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA

LOOKUP_SECONDS: Final = 2.0
"""For all addresses of one name, whatever servers are asked."""
LOOKUPS_PER_TENANT: Final = 4
MAX_CACHED: Final = 4_096
MAX_TTL_SECONDS: Final = 60.0
"""However long an answer says it holds; one that says 0 is not kept."""
NEGATIVE_SECONDS: Final = 2.0
MAX_ADDRESSES: Final = 32
MAX_NAME_SERVERS: Final = 8
_PAYLOAD_BYTES: Final = 1_232
"""EDNS: what passes without fragments (DNS flag day 2020)."""
_MAX_BYTES: Final = 8_192
"""Of an answer; one with `MAX_ADDRESSES` has a few hundred."""
_MAX_RECORDS: Final = 128
"""In all sections. Each costs everybody's event loop a fifth of a millisecond where its name is long, and 64 KiB hold thousands."""
_OPCODE_BITS: Final = 0b1111
_KINDS = (dns.rdatatype.A, dns.rdatatype.AAAA)


class ResolutionError(Exception):
    """The name has no address, or nobody said one in time. The text says which, for the log."""


@dataclass(frozen=True, slots=True)
class NameServer:
    """One to ask."""

    address: str
    port: int = 53


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: tuple[str, ...]
    ttl: float


class Resolver:
    """Resolves names. One for each process; belongs to one event loop.

    Args:
        servers: asked one after the other until one answers.
        clock: monotonic seconds.
    """

    def __init__(self, servers: Sequence[NameServer], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = tuple(servers[:MAX_NAME_SERVERS])
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._cache: OrderedDict[tuple[str, str], tuple[float, tuple[str, ...]]] = OrderedDict()

    async def resolve(self, tenant: str, name: str) -> tuple[str, ...]:
        """Return every address of a name, IPv4 and IPv6. None of them is judged here.

        Raises:
            ResolutionError: there is none, or none in time.
        """
        key = (tenant, name)
        known = self._known(key)
        if known is None:
            async with self._turns.setdefault(tenant, asyncio.Semaphore(LOOKUPS_PER_TENANT)):
                # Another request of this tenant may have found it meanwhile.
                known = self._known(key)
                if known is None:
                    known = await self._look_up(key)
        if not known:
            message = "the name has no address"
            raise ResolutionError(message)
        return known

    def _known(self, key: tuple[str, str]) -> tuple[str, ...] | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        until, addresses = entry
        if until <= self._clock():
            del self._cache[key]
            return None
        return addresses

    async def _look_up(self, key: tuple[str, str]) -> tuple[str, ...]:
        try:
            name = dns.name.from_text(key[1])
        except dns.exception.DNSException as error:
            message = "the name cannot be asked for"
            raise ResolutionError(message) from error
        try:
            async with asyncio.timeout(LOOKUP_SECONDS), asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(name, kind)) for kind in _KINDS]
        except TimeoutError as error:
            message = "no name server answered in time"
            raise ResolutionError(message) from error
        except BaseExceptionGroup as errors:
            # SECURITY: half of an answer is none: what was not said could be what is refused.
            message = "; ".join(str(error) for error in errors.exceptions)
            raise ResolutionError(message) from errors
        found = [task.result() for task in asked]
        addresses = tuple(dict.fromkeys(address for part in found for address in part.addresses))
        if len(addresses) > MAX_ADDRESSES:
            message = "the name has too many addresses"
            raise ResolutionError(message)
        self._keep(key, addresses, min((part.ttl for part in found if part.addresses), default=NEGATIVE_SECONDS))
        return addresses

    def _keep(self, key: tuple[str, str], addresses: tuple[str, ...], ttl: float) -> None:
        seconds = min(ttl, MAX_TTL_SECONDS)
        if seconds <= 0:
            return
        self._cache[key] = (self._clock() + seconds, addresses)
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    async def _ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> _Found:
        """Ask the servers in turn; each has its share of the time, the last one what is left."""
        said = "no name server is set"
        for index, server in enumerate(self._servers):
            share = LOOKUP_SECONDS / (len(self._servers) + 1) * (2 if index == len(self._servers) - 1 else 1)
            try:
                async with asyncio.timeout(share):
                    return _read(await _exchange(server, dns.message.make_query(name, kind, use_edns=0, payload=_PAYLOAD_BYTES)))
            except TimeoutError:
                said = "no name server answered in time"
            except (OSError, dns.exception.DNSException, ResolutionError) as error:
                said = f"{type(error).__name__}: {error}"[:200]
        raise ResolutionError(said)


def _read(message: dns.message.Message) -> _Found:
    code = message.rcode()
    if code == dns.rcode.NXDOMAIN:
        return _Found((), 0)
    if code != dns.rcode.NOERROR or not isinstance(message, dns.message.QueryMessage):
        problem = f"a name server answered {dns.rcode.to_text(code)}"
        raise ResolutionError(problem)
    # Follows the chain of CNAMEs within the answer, up to a bound; the addresses at its end are what counts.
    chain = message.resolve_chaining()
    if chain.answer is None:
        return _Found((), 0)
    return _Found(tuple(record.address for record in chain.answer), chain.minimum_ttl)


async def _exchange(server: NameServer, query: dns.message.Message) -> dns.message.Message:
    answer = await _over_udp(server, query)
    return await _over_tcp(server, query) if answer.flags & dns.flags.TC else answer


def _parse(data: bytes) -> dns.message.Message:
    """Parse an answer that is not too long to be one.

    Raises:
        ResolutionError: it is too long, or answers no query.
        DNSException: it is none.
    """
    # SECURITY: before a record is read: whoever owns a name chooses how many there are.
    records = sum(int.from_bytes(data[at : at + 2], "big") for at in (6, 8, 10))
    if len(data) > _MAX_BYTES or records > _MAX_RECORDS:
        message = f"an answer of {len(data)} bytes and {records} records"
        raise ResolutionError(message)
    if int.from_bytes(data[2:3], "big") >> 3 & _OPCODE_BITS != dns.opcode.QUERY:
        # The parser would import what it needs for the others, which the hardened process cannot.
        message = "an answer to something else than a query"
        raise ResolutionError(message)
    return dns.message.from_wire(data, ignore_trailing=False, raise_on_truncation=False)


class _Answers(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers the question; anything else is as if it had not come."""

    def __init__(self, query: dns.message.Message) -> None:
        self._query = query
        self.answer: asyncio.Future[dns.message.Message] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr
        if self.answer.done():
            return
        with contextlib.suppress(dns.exception.DNSException, ResolutionError, ValueError):
            message = _parse(data)
            # SECURITY: id, question and class; the socket is connected, so it came from whom we asked.
            if self._query.is_response(message):
                self.answer.set_result(message)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _over_udp(server: NameServer, query: dns.message.Message) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    # A connected socket with a port of the kernel's choice.
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Answers(query), remote_addr=(server.address, server.port))
    try:
        transport.sendto(query.to_wire())
        return await protocol.answer
    finally:
        protocol.answer.cancel()
        transport.close()


async def _over_tcp(server: NameServer, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(server.address, server.port, limit=_MAX_BYTES)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await reader.readexactly(2), "big")
        message = _parse(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        problem = "a name server ended its answer too early"
        raise ResolutionError(problem) from error
    finally:
        writer.close()
    if not query.is_response(message):
        problem = "a name server answered another question"
        raise ResolutionError(problem)
    return message
