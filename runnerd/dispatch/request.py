"""What a call is, once every field was checked: the types between the faces (gRPC today) and the executor.

Nothing here knows protobuf. A face builds these only from validated values (T22).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from registry.domain.digests import ContentHash
from registry.domain.ids import ExecutionId, InstallId, TenantId, VersionId
from registry.domain.limits import LimitWishes
from registry.tokens import ServiceToken, UserToken
from runnerd.capabilities.grants import GuestUser
from runnerd.dispatch.outcome import Outcome, Usage


class Trigger(StrEnum):
    """What started a call; the value is the word of the execution log."""

    HTTP = "http"
    EVENT = "event"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a verified service, and the user whose own token it brought along, if it did."""

    service: ServiceToken
    subject: UserToken | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What the caller believes to be installed; a difference is PIN_MISMATCH."""

    install_id: InstallId | None = None
    version_id: VersionId | None = None
    content_hash: ContentHash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRequest:
    """The HTTP request that the guest gets. Method, path, query and headers are in the form that `rpc.converters` accepts."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: memoryview | None

    @property
    def url(self) -> str:
        """Path and query, as the guest's world wants it."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRequest:
    """One validated call."""

    request_id: str
    tenant_id: TenantId
    extension: str
    """Name or id."""
    http: GuestRequest
    pins: Pins = field(default_factory=Pins)
    asserted_user: GuestUser | None = None
    wishes: LimitWishes = field(default_factory=LimitWishes)
    trigger: Trigger = Trigger.HTTP
    event_id: str | None = None
    """Of the event that is delivered; only with the trigger EVENT."""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """The outcome of a call that ran, and what it used."""

    outcome: Outcome
    usage: Usage
    execution_id: ExecutionId
    version_id: VersionId
    content_hash: ContentHash
