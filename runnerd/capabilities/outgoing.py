"""A request on its way out and what comes back: what http.fetch and the egress process say to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from runnerd.capabilities.urls import Target


class Failure(StrEnum):
    """Why a request that was allowed by name got no answer; the words of the metric."""

    ADDRESS = "address"
    """The name resolves to an address that is not connected to."""
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESPONSE_SIZE = "response_size"
    PROTOCOL = "protocol"
    """What came back is no acceptable HTTP, or ended too early."""
    UNAVAILABLE = "unavailable"
    """The egress process is not there, died, or has no room."""
    INTERNAL = "internal"


class EgressError(Exception):
    """A request got no answer.

    Args:
        failure: why.
        detail: for the log; never for the guest.
    """

    def __init__(self, failure: Failure, detail: str = "") -> None:
        super().__init__(f"{failure}: {detail}" if detail else failure)
        self.failure = failure
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingRequest:
    """One request, checked by name and ready to be sent."""

    tenant_id: str
    install_id: str
    generation: str
    """Of the policy: requests of different generations share no connection."""
    method: str
    target: Target
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    seconds: float
    """For everything: resolving, connecting, sending and receiving."""
    response_bytes: int
    """The most that headers and body of the answer may have."""
    received: Callable[[int], None] = field(compare=False)
    """Told how many of these bytes have come, each time: they are counted whatever becomes of the request, its cancelling included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingResponse:
    """What came back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Egress(Protocol):
    """Sends requests (`runnerd.egress.client.EgressClient`)."""

    async def fetch(self, request: OutgoingRequest) -> IncomingResponse:
        """Send one request and return the answer, or raise EgressError."""
        ...
