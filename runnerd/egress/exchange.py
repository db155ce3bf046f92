"""One request and its answer, within bounds.

Attacks it stops: a server that answers for ever, slowly, in endless headers or in a body without end; one that switches protocols; a
redirect to where the check never was (it is an answer like any other). Bytes pass as they are: nothing is decompressed here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from registry.domain.headers import HOP_BY_HOP
from runnerd.capabilities.outgoing import EgressError, Failure
from runnerd.egress.addresses import AddressRefusedError
from runnerd.egress.answers import Headers, check_head, head_size
from runnerd.egress.frames import CHUNK_BYTES
from runnerd.egress.pools import WIRE_BYTES, Pools
from runnerd.egress.resolver import ResolutionError

CONNECT_SECONDS: Final = 3.0
"""For one address, TLS included."""
FRAMING_BYTES: Final = 256 * 1024
"""Of the answer, interim ones included, beside twice what its headers and body may have."""
USER_AGENT: Final = "extrunner"
"""Where the guest says none: some servers answer nothing else."""
_SWITCHING = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request as the daemon asks for it: checked by name, with what it may take."""

    tenant: str
    install: str
    generation: str
    method: str
    scheme: str
    host: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...]
    has_body: bool
    seconds: float
    response_bytes: int

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read what the daemon made of one with `asdict`; KeyError, TypeError or ValueError where somebody else did."""
        return cls(**{**document, "headers": tuple((str(name), str(value)) for name, value in document["headers"])})

    @property
    def url(self) -> URL:
        """Where it goes, put together from parts that were checked apart.

        Raises:
            EgressError: the library reads them in another way.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        url = URL(f"{self.scheme}://{host}:{self.port}{self.path}", encoded=True)
        # SECURITY: one more reading of a URL is one too many, unless it says the same.
        if (url.scheme, url.raw_host, url.port, url.raw_path_qs, url.user, url.raw_fragment) != (
            self.scheme,
            self.host,
            self.port,
            self.path,
            None,
            "",
        ):
            raise EgressError(Failure.INTERNAL, "the URL is read in another way")
        return url


class Outlet(Protocol):
    """Takes an answer, piece by piece."""

    async def tell(self, status: int, headers: Headers) -> None:
        """Take status and headers; called once."""
        ...

    async def pass_on(self, piece: bytes) -> None:
        """Take a piece of the body."""
        ...


async def perform(pools: Pools, order: Order, body: bytes | None, outlet: Outlet) -> None:
    """Send a request and pass its answer on.

    Raises:
        EgressError: there is no answer, or not the whole of it.
    """
    try:
        async with asyncio.timeout(order.seconds):
            await _perform(pools, order, body, outlet)
    except TimeoutError as error:
        raise EgressError(Failure.TIMEOUT) from error
    except AddressRefusedError as error:
        raise EgressError(Failure.ADDRESS, str(error)) from error
    except ResolutionError as error:
        raise EgressError(Failure.DNS, str(error)) from error
    except (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
        raise EgressError(Failure.TLS, str(error)[:300]) from error
    except aiohttp.ClientConnectorError as error:
        raise EgressError(Failure.CONNECT, str(error)[:300]) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EgressError(Failure.PROTOCOL, f"{type(error).__name__}: {error}"[:300]) from error


async def _perform(pools: Pools, order: Order, body: bytes | None, outlet: Outlet) -> None:
    # SECURITY: what the framing may cost, on top of what counts.
    WIRE_BYTES.set(2 * order.response_bytes + FRAMING_BYTES)
    headers = CIMultiDict(order.headers)
    headers.setdefault("user-agent", USER_AGENT)
    lent = pools.session(tenant=order.tenant, install=order.install, generation=order.generation)
    async with (
        lent as session,
        session.request(
            order.method,
            order.url,
            headers=headers,
            data=body,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=None),
        ) as response,
    ):
        if response.status == _SWITCHING:
            response.close()
            raise EgressError(Failure.PROTOCOL, "the server switched protocols")
        status, received = check_head(response.status, _headers(response.raw_headers))
        size = head_size(received)
        if size > order.response_bytes:
            response.close()
            raise EgressError(Failure.RESPONSE_SIZE, "the headers are too long")
        await outlet.tell(status, received)
        async for piece in response.content.iter_chunked(CHUNK_BYTES):
            size += len(piece)
            if size > order.response_bytes:
                # What is on its way is not waited for: the connection is not used again.
                response.close()
                raise EgressError(Failure.RESPONSE_SIZE, "the body is too long")
            await outlet.pass_on(piece)


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, str]]:
    for name, value in raw:
        lower = name.decode("latin-1").lower()
        if lower not in HOP_BY_HOP:
            yield lower, _text(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
