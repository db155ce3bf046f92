"""What one invocation may do and on whose behalf, as the broker sees it. Built by the daemon from the registry, never by a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.domain.egress import NO_EGRESS, InstallEgress
from registry.domain.ids import ExtensionId, InstallId, TenantId, VersionId, new_id
from registry.domain.limits import OPERATOR_DEFAULTS, StorageLimits
from runnerd.capabilities.redaction import RevealedValues
from runnerd.capabilities.writes import WriteLedger

REQUEST_BYTES, RESPONSE_BYTES = "egress_request_bytes", "egress_response_bytes"
"""Words of `InvocationGrant.used` that stand in the usage of every call, http.fetch or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestUser:
    """The user behind an invocation, as proven by a token or asserted with the scope for it."""

    user_id: str
    email: str = ""
    name: str = ""
    user_type: str = ""
    client_name: str = ""
    client_id: str | None = None
    additional_fields: Mapping[str, str] = field(default_factory=dict)
    proven: bool = False
    """By the user's own token; otherwise a service said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationGrant:
    """The authority of one invocation. It never leaves the daemon; workers learn only the names of its capabilities."""

    tenant_id: TenantId
    install_id: InstallId
    extension_id: ExtensionId
    extension_name: str
    version_id: VersionId
    request_id: str
    capabilities: frozenset[str]
    """In force: declared ∩ granted ∩ operator ceiling, and what everybody has."""
    declared: frozenset[str]
    granted: frozenset[str]
    config: Mapping[str, str]
    user: GuestUser | None
    deadline: float
    """On the clock of `time.monotonic()`, in seconds."""
    egress: InstallEgress = NO_EGRESS
    """Which hosts http.fetch may reach."""
    follows_event: bool = False
    """Whether an event led to it."""
    event_id: str | None = None
    """Which one, where the caller named it; how deep it is stands in the registry, not here."""
    writes: WriteLedger = field(default_factory=lambda: WriteLedger(new_id()), compare=False)
    """Keys of what it writes at the host platform."""
    storage: StorageLimits = OPERATOR_DEFAULTS.storage
    """What its install may store."""
    used: Counter[str] = field(default_factory=Counter, compare=False)
    """How much it has used of what one invocation may use only so often, by a word of the capability's own."""
    revealed: RevealedValues = field(default_factory=RevealedValues, compare=False)
    """Secrets that it was given; hidden in what is kept about it."""

    @property
    def log_fields(self) -> dict[str, str]:
        """What every log line about one of its calls says: whose it is."""
        return {
            "request_id": self.request_id,
            "tenant_id": self.tenant_id,
            "install_id": self.install_id,
            "extension_id": self.extension_id,
        }
