"""Requests and responses of the admin REST. Unknown fields of a request are refused: a misspelt wish must not silently not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, model_validator

from registry.secrets.binding import MAX_VALUE_BYTES

Item = TypeVar("Item")
Name = Annotated[str, Field(min_length=1, max_length=128)]
Text = Annotated[str, Field(min_length=1, max_length=512)]
Capabilities = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)]
Hosts = Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=256)]
Warmth = Literal["ready", "pending", "failed"]
"""Whether the first call will find the version compiled; "pending" goes on in the background."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Response(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    """Of the error catalog; what a program decides on."""
    request_id: str
    metadata: dict[str, str] | None = None


class PageModel(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next_cursor: str | None = None
    """Opaque; absent on the last page."""


class NewPublisher(_Request):
    """A publisher to create."""

    name: Name


class SignerModel(_Response):
    """One identity that may sign for a publisher, exact."""

    trust_domain: str
    issuer: str
    identity: str


class NewSigner(_Request):
    """An identity to allow."""

    trust_domain: Name
    issuer: Text
    identity: Text


class PublisherModel(_Response):
    """A publisher."""

    publisher_id: str
    name: str
    created_at: datetime
    signers: list[SignerModel]


class ExtensionModel(_Response):
    """An extension that has a published version."""

    extension_id: str
    name: str
    publisher: str
    display_name: str | None
    description: str | None
    created_at: datetime


class VersionModel(_Response):
    """A published version and who signed it."""

    extension_id: str
    extension_name: str
    publisher: str
    version_id: str
    version: str
    runtime: str
    capabilities: list[str]
    """What it asks for."""
    manifest: Mapping[str, Any]
    manifest_digest: str
    """What a consent refers to."""
    content_hash: str
    size_bytes: int
    signer: SignerModel
    verified_at: datetime
    published_at: datetime | None
    yanked_at: datetime | None
    deprecated_at: datetime | None


class PublishedBundle(_Response):
    """What was published, and whether it was new."""

    extension_id: str
    extension_name: str
    publisher: str
    version_id: str
    version: str
    content_hash: str
    manifest_digest: str
    size_bytes: int
    runtime: str
    capabilities: list[str]
    signer: SignerModel
    production: bool
    """False: signed under a development root."""
    signed_at: datetime
    published_at: datetime | None
    created: bool
    """False: the same bytes were published before, and nothing changed."""
    compile: str
    """"cached", "compiled", "ui_only", or "deferred" where no runner has compiled it yet."""
    compile_seconds: float


class LimitsModel(BaseModel):
    """Limits granted to an install; what is absent is the operator's default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, from_attributes=True)

    wall_time_ms: int | None = None
    cpu_time_ms: int | None = None
    fuel: int | None = None
    memory_bytes: int | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    host_calls: int | None = None
    log_lines: int | None = None
    log_bytes: int | None = None
    storage_namespaces: int | None = None
    storage_keys: int | None = None
    """In each namespace."""
    storage_value_bytes: int | None = None
    storage_bytes: int | None = None


class NewInstall(_Request):
    """An extension to install for a tenant."""

    extension: Name
    """Name or id."""
    version: Annotated[str, Field(max_length=128)] | None = None
    """The latest one where absent."""
    granted: Capabilities | None = None
    """What it may do; absent means that nobody decided, which is refused where the extension asks for anything."""
    config: Annotated[dict[str, str], Field(max_length=100)] | None = None
    """Absent keeps what an earlier install of the extension left behind."""
    limits: LimitsModel = LimitsModel()
    endpoint_policy: Literal["advisory", "enforce"] = "advisory"
    egress_hosts: Hosts | None = None
    """What is left of the hosts that it declares, for http.fetch; absent leaves all of them."""


class SecretBindingModel(BaseModel):
    """A secret that the daemon puts into one header of requests to one host, where the extension writes `{{secret:NAME}}`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, from_attributes=True)

    secret: Name
    header: Annotated[str, Field(max_length=64)]
    host: Annotated[str, Field(max_length=253)]
    """Exact, and declared by the extension; a host that stores or shows what it is sent must not be bound."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 443


class EgressChange(_Request):
    """Another list of hosts."""

    hosts: Hosts | None
    """What is left of the declared hosts; null leaves all of them."""


class InstallChange(_Request):
    """A change of an install: exactly one of its fields, so that it happens as a whole or not at all."""

    enabled: bool | None = None
    granted: Capabilities | None = None
    config: Annotated[dict[str, str], Field(max_length=100)] | None = None
    limits: LimitsModel | None = None
    """All of them anew; what is absent is the operator's default."""
    egress: EgressChange | None = None
    egress_count_days: Annotated[int, Field(ge=0, le=14)] | None = None
    """For so many days from now the list of hosts is counted and not enforced; 0 ends that. Operators only."""

    egress_secrets: Annotated[list[SecretBindingModel], Field(max_length=32)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for _, value in self) != 1:
            message = "give exactly one of " + ", ".join(type(self).model_fields)
            raise ValueError(message)
        return self


class EgressRuleModel(_Response):
    """A host that the manifest declares."""

    host: str
    ports: list[int]
    schemes: list[str]


class EgressModel(_Response):
    """Which hosts an install may reach where http.fetch is granted."""

    rules: list[EgressRuleModel]
    """Declared by the manifest that the tenant consented to."""
    hosts: list[str] | None
    """What the tenant leaves of them; null where it leaves all."""
    secrets: list[SecretBindingModel]
    count_until: datetime | None
    """Until then the list is counted and not enforced."""


class InstallModel(_Response):
    """An install."""

    install_id: str
    tenant_id: str
    extension_id: str
    extension_name: str
    publisher: str
    version_id: str
    version: str
    content_hash: str
    runtime: str
    declared: list[str]
    granted: list[str]
    is_enabled: bool
    is_yanked: bool
    is_denied: bool
    endpoint_policy: str
    limits: LimitsModel
    egress: EgressModel
    consented_digest: str
    granted_by: str
    granted_at: datetime
    created_at: datetime
    updated_at: datetime


class InstallDetail(InstallModel):
    """An install with its settings, for those who may change them."""

    config: Mapping[str, str]


class InstallCreated(InstallDetail):
    """A new install, and whether it is ready."""

    warm: Warmth = "pending"


class MeasurementModel(_Response):
    """One series of what an install measured."""

    name: str
    """A counter's without "_total"."""
    kind: Literal["counter", "gauge", "histogram"]
    labels: dict[str, str]
    value: float
    """A gauge's value; the sum of a counter or histogram."""
    count: int | None
    """Of a histogram: how many values."""
    buckets: dict[str, int] | None
    """Of a histogram: upper bound, and how many values are at most that."""
    observed_at: datetime


class NewSecret(_Request):
    """A secret to set. It can be replaced and deleted, never read."""

    value: SecretStr = Field(min_length=1, max_length=MAX_VALUE_BYTES)
    """1 byte to 64 KiB as UTF-8."""
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = None
    """From then on the extension is told "expired"; never, where absent."""


class SecretModel(_Response):
    """A secret without its value."""

    name: str
    version: int
    """Grows with each write."""
    kek_id: str
    """The key that it is sealed under."""
    expires_at: datetime | None
    is_expired: bool
    created_at: datetime
    updated_at: datetime
    updated_by: str


class ScheduleEnabling(_Request):
    """Whether a schedule may run."""

    enabled: bool


class ScheduleModel(_Response):
    """A schedule of an install."""

    schedule_id: str
    name: str | None
    endpoint: str
    """Method and path."""
    has_endpoint: bool
    """False: the installed version has no such endpoint any more, or none that can be scheduled."""
    cron: str
    timezone: str
    is_active: bool
    """Enabled by its extension, and not stopped."""
    enabled: bool
    """As its extension wants it."""
    stopped_by: str | None
    """The administrator who stopped it."""
    payload: str | None
    last_run_at: datetime | None
    last_run_status: str | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class ExecutionModel(_Response):
    """One row of the execution log."""

    execution_id: str
    tenant_id: str
    install_id: str
    extension_id: str
    version_id: str
    content_hash: str
    request_id: str
    trigger: str
    method: str
    endpoint: str
    user_id: str | None
    outcome: str
    reason: str | None
    http_status: int | None
    started_at: datetime
    wall_ms: int
    queue_ms: int
    cpu_ms: int
    fuel: int
    peak_memory_bytes: int | None
    host_calls: int
    egress_request_bytes: int
    egress_response_bytes: int


class ExecutionDetail(ExecutionModel):
    """One row with what the extension logged and what it was denied."""

    denials: Sequence[Mapping[str, Any]]
    log: Sequence[Mapping[str, Any]]


class NewRevocation(_Request):
    """Content that must not run any more."""

    content_hash: Annotated[str, Field(max_length=80)]
    reason: Text


class RevocationModel(_Response):
    """A revoked content hash."""

    content_hash: str
    reason: str
    created_by: str
    created_at: datetime


class RevocationResult(BaseModel):
    """What revoking did."""

    content_hash: str
    added: bool
    """False where it was revoked before."""
