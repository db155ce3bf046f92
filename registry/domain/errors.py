"""The one catalog of refusals: every reason, its gRPC code, its HTTP status and whether trying again may help.

    RefusalError            a refusal or failure with a reason of this catalog
    (everything else that escapes is a bug and is answered INTERNAL, its text only in the log)

`runnerd/rpc/status.py` and `gateway/problems.py` only read this table. A test ties it to `extrunner.errors.v1.ErrorReason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

ERROR_DOMAIN = "extrunner.dev"
"""`domain` of google.rpc.ErrorInfo."""


class Reason(StrEnum):
    """Machine-readable reason; the name is the wire string."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_MANIFEST = "INVALID_MANIFEST"
    INVALID_BUNDLE = "INVALID_BUNDLE"
    COMPILE_REJECTED = "COMPILE_REJECTED"
    GUEST_TRAPPED = "GUEST_TRAPPED"
    GUEST_LIMIT_EXCEEDED = "GUEST_LIMIT_EXCEEDED"
    GUEST_INVALID_RESPONSE = "GUEST_INVALID_RESPONSE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    TENANT_FORBIDDEN = "TENANT_FORBIDDEN"
    PERMISSION_MISSING = "PERMISSION_MISSING"
    SIGNATURE_REJECTED = "SIGNATURE_REJECTED"
    PUBLISHER_MISMATCH = "PUBLISHER_MISMATCH"
    HASH_DENIED = "HASH_DENIED"
    EXTENSION_NOT_INSTALLED = "EXTENSION_NOT_INSTALLED"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    ENDPOINT_NOT_FOUND = "ENDPOINT_NOT_FOUND"
    ASSET_NOT_FOUND = "ASSET_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    VERSION_EXISTS = "VERSION_EXISTS"
    ALREADY_INSTALLED = "ALREADY_INSTALLED"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    INSTALL_DISABLED = "INSTALL_DISABLED"
    CONSENT_REQUIRED = "CONSENT_REQUIRED"
    VERSION_YANKED = "VERSION_YANKED"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    IDEMPOTENCY_IN_FLIGHT = "IDEMPOTENCY_IN_FLIGHT"
    PIN_MISMATCH = "PIN_MISMATCH"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    HEADERS_TOO_LARGE = "HEADERS_TOO_LARGE"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    CONCURRENCY_LIMIT = "CONCURRENCY_LIMIT"
    OVERLOADED = "OVERLOADED"
    BUNDLE_UNAVAILABLE = "BUNDLE_UNAVAILABLE"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    COMPILING = "COMPILING"
    BUNDLE_CORRUPT = "BUNDLE_CORRUPT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    ARTIFACT_REJECTED = "ARTIFACT_REJECTED"
    WORKER_CRASHED = "WORKER_CRASHED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """How one reason is said on each wire."""

    grpc_code: str
    """Name of the gRPC status code; "OK" for what is an outcome in gRPC."""
    http_status: int
    title: str
    retry_after_seconds: int | None = None
    """Set where trying again may help; sent as RetryInfo and Retry-After."""


CATALOG: Mapping[Reason, CatalogRow] = MappingProxyType(
    {
        Reason.INVALID_REQUEST: CatalogRow("INVALID_ARGUMENT", 400, "The request is malformed"),
        Reason.INVALID_MANIFEST: CatalogRow("INVALID_ARGUMENT", 400, "The manifest is invalid"),
        Reason.INVALID_BUNDLE: CatalogRow("INVALID_ARGUMENT", 400, "The bundle is not in canonical form"),
        Reason.COMPILE_REJECTED: CatalogRow("INVALID_ARGUMENT", 400, "The component was rejected by the compiler"),
        Reason.GUEST_TRAPPED: CatalogRow("OK", 502, "The extension trapped"),
        Reason.GUEST_LIMIT_EXCEEDED: CatalogRow("OK", 502, "The extension exceeded a limit"),
        Reason.GUEST_INVALID_RESPONSE: CatalogRow("OK", 502, "The extension gave an invalid response"),
        Reason.UNAUTHENTICATED: CatalogRow("UNAUTHENTICATED", 401, "The credential is missing or invalid"),
        Reason.TENANT_FORBIDDEN: CatalogRow("PERMISSION_DENIED", 403, "The credential does not cover this tenant"),
        Reason.PERMISSION_MISSING: CatalogRow("PERMISSION_DENIED", 403, "The credential lacks a permission"),
        Reason.SIGNATURE_REJECTED: CatalogRow("PERMISSION_DENIED", 403, "The signature was rejected"),
        Reason.PUBLISHER_MISMATCH: CatalogRow("PERMISSION_DENIED", 403, "The name belongs to another publisher"),
        Reason.HASH_DENIED: CatalogRow("PERMISSION_DENIED", 403, "This content was revoked"),
        Reason.EXTENSION_NOT_INSTALLED: CatalogRow("NOT_FOUND", 404, "The extension is not installed"),
        Reason.VERSION_NOT_FOUND: CatalogRow("NOT_FOUND", 404, "No such version"),
        Reason.ENDPOINT_NOT_FOUND: CatalogRow("NOT_FOUND", 404, "No such endpoint"),
        Reason.ASSET_NOT_FOUND: CatalogRow("NOT_FOUND", 404, "No such file"),
        Reason.NOT_FOUND: CatalogRow("NOT_FOUND", 404, "No such resource"),
        Reason.VERSION_EXISTS: CatalogRow("ALREADY_EXISTS", 409, "The version exists with other content"),
        Reason.ALREADY_INSTALLED: CatalogRow("ALREADY_EXISTS", 409, "The extension is already installed"),
        Reason.ALREADY_EXISTS: CatalogRow("ALREADY_EXISTS", 409, "The resource already exists"),
        Reason.INSTALL_DISABLED: CatalogRow("FAILED_PRECONDITION", 409, "The install is disabled"),
        Reason.CONSENT_REQUIRED: CatalogRow("FAILED_PRECONDITION", 409, "The tenant has not consented"),
        Reason.VERSION_YANKED: CatalogRow("FAILED_PRECONDITION", 409, "The version was withdrawn"),
        Reason.IDEMPOTENCY_MISMATCH: CatalogRow("FAILED_PRECONDITION", 409, "The idempotency key belongs to another request"),
        Reason.IDEMPOTENCY_IN_FLIGHT: CatalogRow("FAILED_PRECONDITION", 409, "A request with this key is running", 1),
        Reason.PIN_MISMATCH: CatalogRow("FAILED_PRECONDITION", 409, "A pin does not match what is installed"),
        Reason.PAYLOAD_TOO_LARGE: CatalogRow("INVALID_ARGUMENT", 413, "The body is too large"),
        Reason.HEADERS_TOO_LARGE: CatalogRow("INVALID_ARGUMENT", 431, "The headers are too large"),
        Reason.METHOD_NOT_ALLOWED: CatalogRow("INVALID_ARGUMENT", 405, "The method is not allowed"),
        Reason.RATE_LIMITED: CatalogRow("RESOURCE_EXHAUSTED", 429, "Too many requests", 1),
        Reason.QUOTA_EXCEEDED: CatalogRow("RESOURCE_EXHAUSTED", 429, "A quota is used up", 60),
        Reason.CONCURRENCY_LIMIT: CatalogRow("RESOURCE_EXHAUSTED", 429, "Too many calls are running", 1),
        Reason.OVERLOADED: CatalogRow("UNAVAILABLE", 503, "The runner has no room", 1),
        Reason.BUNDLE_UNAVAILABLE: CatalogRow("UNAVAILABLE", 503, "The bundle cannot be fetched", 2),
        Reason.REGISTRY_UNAVAILABLE: CatalogRow("UNAVAILABLE", 503, "The registry does not answer", 2),
        Reason.COMPILING: CatalogRow("UNAVAILABLE", 503, "The extension is being compiled", 3),
        Reason.BUNDLE_CORRUPT: CatalogRow("DATA_LOSS", 502, "Stored bytes are not those that were verified"),
        Reason.DEADLINE_EXCEEDED: CatalogRow("DEADLINE_EXCEEDED", 504, "The deadline passed before the extension ran"),
        Reason.ARTIFACT_REJECTED: CatalogRow("DATA_LOSS", 502, "A compiled artifact was rejected"),
        Reason.WORKER_CRASHED: CatalogRow("INTERNAL", 502, "The worker process died"),
        Reason.CIRCUIT_OPEN: CatalogRow("UNAVAILABLE", 503, "This version is paused after crashes", 30),
        Reason.INTERNAL: CatalogRow("INTERNAL", 500, "An internal error"),
    }
)


class RefusalError(Exception):
    """A refusal or failure that a caller is told about.

    Args:
        reason: the row of the catalog.
        public_detail: one sentence for the caller that says what to change; no internals.
        metadata: further machine-readable facts for ErrorInfo and problem+json; short strings.
        retry_after_seconds: overrides the catalog's.

    `str(error)` is for operators and may carry a cause; `public_detail` is for callers.
    """

    def __init__(
        self,
        reason: Reason,
        public_detail: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(f"{reason}: {public_detail}")
        self.reason = reason
        self.public_detail = public_detail
        self.metadata: dict[str, str] = dict(metadata or {})
        row = CATALOG[reason]
        self.retry_after_seconds = row.retry_after_seconds if retry_after_seconds is None else retry_after_seconds

    @property
    def row(self) -> CatalogRow:
        """The catalog's row of this reason."""
        return CATALOG[self.reason]

    def again(self) -> RefusalError:
        """Return an equal refusal. What is kept is never raised itself: one exception would collect the tracebacks of many callers."""
        return RefusalError(self.reason, self.public_detail, metadata=self.metadata, retry_after_seconds=self.retry_after_seconds)
