"""One call of an extension and what came back, whichever way it went."""

from __future__ import annotations

from dataclasses import dataclass, field

from registry.cli.output import ProblemError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionCall:
    """What to call. Everything is sent as it is; whoever receives it decides."""

    tenant_id: str
    """Over HTTP the token names the tenant instead."""
    extension_id: str
    """Name or id."""
    method: str = "GET"
    path: str = "/"
    """Absolute, within the extension."""
    query: str = ""
    """Raw, without "?"."""
    headers: tuple[tuple[str, str], ...] = ()
    """Lower-case names."""
    body: bytes | None = None
    subject_token: str | None = field(default=None, repr=False)
    """gRPC only: the token of the user on whose behalf the call is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back from a call of an extension, over either way."""

    via: str
    """"http" or "grpc"."""
    outcome: str
    """"completed", "trapped", "limit_exceeded", "guest_error", or "refused"."""
    status: int | None
    """The guest's HTTP status, or the gateway's; None where there is none."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    execution_id: str
    request_id: str
    content_hash: str
    wall_ms: float
    """As measured here, from request to answer."""
    problem: ProblemError | None = None
    """Set where the call did not complete."""
