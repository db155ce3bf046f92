"""Settings of the daemon. The only place that reads its environment: RUNNERD_…, nested with "__", ENV, and RUNNER_PUBLIC_BASE.

Every default is the careful one: production, loopback, hardening required. What production refuses is refused here, before a secret is
read or anything listens: an embedded database, plaintext gRPC away from loopback, hardening that may be missing (T2, T3, T7).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.deployment import Environment, is_embedded_database, is_loopback, refuse_unknown_settings
from registry.domain.capabilities import KNOWN, normalise
from registry.domain.egress import DEFAULT_PORTS, is_host_pattern
from registry.domain.events import EventLimits
from registry.domain.limits import MIB, OPERATOR_CEILING, OPERATOR_DEFAULTS, ExecutionLimits, LimitWishes, clamp
from registry.domain.paths import check_normal_form
from registry.secrets.settings import OpeningSettings
from registry.services.secret_reading import MAX_MEMORY_SECONDS
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE

PREFIX: Final = "RUNNERD_"
LEAST_REQUEST_BYTES_IN_FLIGHT: Final = 33 * MIB
"""One request at the ceiling must fit."""
_MAX_TOKENS: Final = 4
"""Old and new ones, while they are changed."""
_MIN_TOKEN_BYTES: Final = 32
_MAX_TOKEN_BYTES: Final = 1_024
OPENABLE_RANGES: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
"""What an operator can let extensions reach, besides what is public."""
LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
LEAST_EGRESS_BUFFER_BYTES: Final = 128 * MIB
"""A quarter of it holds the largest body, sent or received."""
_ISSUER = Annotated[str, Field(min_length=1, max_length=255)]


class SettingsError(ValueError):
    """A setting is missing, malformed, unknown or refused. The text names it and repeats no secret."""


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004 - the highest port
        message = 'must be "host:port", for example "127.0.0.1:50051" or "[::1]:50051"'
        raise ValueError(message)
    return value


Address = Annotated[str, Field(max_length=255), AfterValidator(_address)]


def host_of(address: str) -> str:
    """Return the host of "host:port", without brackets."""
    return address.rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """Return the port of "host:port"."""
    return int(address.rpartition(":")[2])


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GrpcSettings(_Section):
    """The gRPC listener."""

    address: Address = "127.0.0.1:50051"
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    reflection: bool = False
    max_concurrent_rpcs: Annotated[int, Field(ge=1, le=65_536)] = 2_048
    request_bytes_in_flight: Annotated[int, Field(ge=LEAST_REQUEST_BYTES_IN_FLIGHT, le=65_536 * MIB)] = 256 * MIB
    """All requests in the daemon together."""


class OpsSettings(_Section):
    """/metrics, /healthz and /readyz."""

    address: Address = "127.0.0.1:9464"
    token_file: Path | None = None
    """Bearer tokens that open /metrics, one a line; without it everybody who reaches the address may read them."""
    is_open: bool = False
    """Whether /metrics may be open to a network, without a token."""

    def read_tokens(self) -> tuple[bytes, ...]:
        """Read the tokens; none where there is no file.

        Raises:
            SettingsError: the file cannot be read, or a token in it is too easy to guess.
        """
        if self.token_file is None:
            return ()
        try:
            with self.token_file.open("rb") as stream:
                lines = stream.read(_MAX_TOKENS * _MAX_TOKEN_BYTES).split()
        except OSError as error:
            message = f"ops.token_file {self.token_file} cannot be read"
            raise SettingsError(message) from error
        if not 0 < len(lines) <= _MAX_TOKENS or not all(
            _MIN_TOKEN_BYTES <= len(line) < _MAX_TOKEN_BYTES and line.isascii() for line in lines
        ):
            message = (
                f"ops.token_file {self.token_file} must hold 1 to {_MAX_TOKENS} lines, each of {_MIN_TOKEN_BYTES} ASCII characters at least"
            )
            raise SettingsError(message)
        return tuple(lines)


class AssetsSettings(_Section):
    """The child that serves interface files."""

    enabled: bool = True
    address: Address = "127.0.0.1:8081"
    frame_ancestors: tuple[str, ...] = ()
    """Origins that may embed interfaces; without any, nobody may."""


class DatabaseSettings(_Section):
    """PostgreSQL, role ext_runner. Exactly one of the two says where."""

    url: SecretStr | None = None
    url_file: Path | None = None
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            message = "give either RUNNERD_DATABASE__URL_FILE or RUNNERD_DATABASE__URL"
            raise ValueError(message)
        return self


class ServicesSettings(_Section):
    """Whose service tokens are accepted."""

    jwks_file: Path
    issuer: _ISSUER
    audience: Annotated[str, Field(min_length=1, max_length=255)] = RUNNER_AUDIENCE


class UsersSettings(_Section):
    """Whose users' own tokens are accepted as subject tokens."""

    jwks_file: Path
    issuer: _ISSUER
    audience: Annotated[str, Field(min_length=1, max_length=255)] = GATEWAY_AUDIENCE
    tenant_claim: Annotated[str, Field(min_length=1, max_length=64)] = "tenant"
    subject_claim: Annotated[str, Field(min_length=1, max_length=64)] = "sub"
    roles_claim: Annotated[str, Field(min_length=1, max_length=64)] = "roles"


class ArtifactsSettings(_Section):
    """Compiled artifacts."""

    key_file: Path
    """Ed25519 private key (PEM) that signs artifact records; created where it is absent."""
    previous_public_key_file: Path | None = None
    """During a rotation: records of this key count as well."""
    loaded_bytes: Annotated[int, Field(ge=64 * MIB)] = 1_024 * MIB
    cache_bytes: Annotated[int, Field(ge=64 * MIB)] = 8_192 * MIB
    interface_cache_bytes: Annotated[int, Field(ge=16 * MIB)] = 2_048 * MIB
    sharing: Literal["off", "read", "read-write"] = "off"
    """Of artifacts among the daemons of a fleet, in the object store; "read" takes what others left and leaves nothing."""
    fleet_public_key_files: Annotated[tuple[Path, ...], Field(max_length=64)] = ()
    """Ed25519 public keys (PEM) of the other daemons: artifacts that one of them signed run here. Whoever holds one of these keys can make
    native code that this daemon runs."""
    shared_transfer_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Until a shared artifact is there, or in the store."""
    shared_wait_seconds: Annotated[float, Field(ge=0, le=3_600)] = 300.0
    """How long another daemon's compilation is waited for."""
    compilers: Annotated[int, Field(ge=1, le=64)] = 1
    compile_seconds: Annotated[float, Field(gt=0, le=3_600)] = 180.0


class WorkersSettings(_Section):
    """Worker processes. 0 leaves the number to the CPUs found."""

    floor: Annotated[int, Field(ge=0, le=4_096)] = 0
    """Kept alive when idle; 0 = two for each CPU."""
    ceiling: Annotated[int, Field(ge=0, le=4_096)] = 0
    """At most; 0 = 32 for each CPU."""
    slots: Annotated[int, Field(ge=1, le=64)] = 16
    """Calls that one worker holds."""
    memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    """What the daemon and everything it starts may have; 0 = what the cgroup or the machine has."""
    pin: Literal["auto", "on", "off"] = "auto"
    isolation: Literal["tenant", "install", "dedicated"] = "tenant"
    idle_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    max_calls: Annotated[int, Field(ge=1)] = 20_000
    """Calls after which a worker is replaced."""
    grace_seconds: Annotated[float, Field(ge=0.05, le=10)] = 0.5
    """How long after its deadline a call may still take to end before its worker is killed."""


class AdmissionSettings(_Section):
    """Who may run now."""

    per_tenant: Annotated[int, Field(ge=1, le=10_000)] = 16
    per_install: Annotated[int, Field(ge=1, le=10_000)] = 8
    waiting: Annotated[int, Field(ge=0, le=100_000)] = 512
    waiting_per_tenant: Annotated[int, Field(ge=0, le=10_000)] = 64
    running: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Calls that compute at once before tenants are held to their fair share of them; 0 = two for each CPU."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0.01, le=100)]], Field(max_length=10_000)] = {}
    """Tenant → weight of its share, as JSON; 1 for those that are not in it."""
    queue_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Which part of a daemon a process is."""

    index: int = 0
    count: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether there is no other, and so no supervisor."""
        return self.count == 1


class EventsSettings(_Section):
    """What extensions may publish."""

    data_bytes: Annotated[int, Field(ge=1, le=MIB)] = 256 * 1024
    """Of one event."""
    per_invocation: Annotated[int, Field(ge=0, le=1_000)] = 32
    per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 600
    """Of one install, in the whole fleet; so are the next two."""
    per_day: Annotated[int, Field(ge=0, le=100_000_000)] = 10_000
    bytes_per_day: Annotated[int, Field(ge=0, le=1 << 40)] = 64 * MIB

    @property
    def limits(self) -> EventLimits:
        """What one install may publish."""
        return EventLimits(data_bytes=self.data_bytes, per_minute=self.per_minute, per_day=self.per_day, bytes_per_day=self.bytes_per_day)


_BASE_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?(?P<path>/[^?#]*)?\Z")


def _base_url(value: str) -> str:
    found = _BASE_URL.match(value)
    if found is None:
        message = 'must be "https://host", with a port and a path where there is one, without user, query or fragment'
        raise ValueError(message)
    base = value.rstrip("/")
    parts = urlsplit(base)
    if parts.port == 0:
        message = "port 0 is no port"
        raise ValueError(message)
    # SECURITY: tokens go there (T8).
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        message = f"plaintext HTTP is refused to {parts.hostname}; use https, or loopback"
        raise ValueError(message)
    if parts.path:
        check_normal_form(parts.path)
    return base


BaseUrl = Annotated[str, Field(max_length=2048), AfterValidator(_base_url)]


class PlatformSettings(_Section):
    """The host platform, which answers ui-proxy, invoicing, clients and services. Without an address they are not offered."""

    base_url: BaseUrl | None = None
    """Its internal routes lie at `{base_url}/api/internal/`."""
    token_file: Path | None = None
    """Token that opens them, for `x-runner-auth`; read again when the file changes."""
    proxy_base_url: BaseUrl | None = None
    """Where ui-proxy's routes go, if not to `base_url`."""
    proxy_token_file: Path | None = None
    """Token for `x-runner-auth` of ui-proxy's routes; without it they carry none. Never the one above."""
    ca_file: Path | None = None
    """PEM: the only authorities whose certificates are believed; without it, those that browsers believe."""
    connect_seconds: Annotated[float, Field(gt=0, le=5)] = 2.0
    call_seconds: Annotated[float, Field(gt=0, le=4.9)] = 4.5
    """Of one call in all. A host call ends after five seconds; before that, the platform's capabilities can still say what happened."""
    calls: Annotated[int, Field(ge=1, le=4_096)] = 64
    """At once."""
    calls_per_install: Annotated[int, Field(ge=1, le=256)] = 4
    answer_bytes: Annotated[int, Field(ge=4_096, le=8 * MIB)] = MIB
    """Of an internal route."""
    proxy_answer_bytes: Annotated[int, Field(ge=4_096, le=32 * MIB)] = 4 * MIB
    """Of a route of ui-proxy. Times `calls`, this is what the daemon may have to hold."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.base_url is None) != (self.token_file is None):
            message = "platform.base_url and platform.token_file belong together"
            raise ValueError(message)
        if self.proxy_token_file is not None and self.base_url is None and self.proxy_base_url is None:
            message = "platform.proxy_token_file needs platform.proxy_base_url or platform.base_url"
            raise ValueError(message)
        return self


class EgressSettings(_Section):
    """Requests of extensions (http.fetch), which leave from a child process of their own."""

    enabled: bool = True
    hosts: Annotated[tuple[str, ...], Field(max_length=1_000)] = ("*",)
    """Ceiling: hosts that any install may reach at all; "*" is every name, "*.example.com" the names below one.
    Addresses only by themselves."""
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], Field(max_length=64)] = DEFAULT_PORTS
    schemes: tuple[Literal["https", "http"], ...] = ("https",)
    denied_ranges: Annotated[tuple[str, ...], Field(max_length=1_000)] = ()
    """Networks that are not connected to, besides everything that is not public."""
    allowed_ranges: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Private networks that are connected to all the same. Never loopback (but in development), link-local, or a metadata service."""
    name_servers: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Addresses, with ":port" where it is not 53; without any, those of /etc/resolv.conf."""
    ca_file: Path | None = None
    """PEM: authorities that are trusted besides the system's."""
    request_seconds: Annotated[float, Field(gt=0, le=30)] = 10.0
    requests: Annotated[int, Field(ge=0, le=1_000)] = 32
    """Of one invocation."""
    request_bytes: Annotated[int, Field(ge=0, le=32 * MIB)] = 10 * MIB
    """Of one invocation, sent."""
    response_bytes: Annotated[int, Field(ge=0, le=32 * MIB)] = 10 * MIB
    """Of one invocation, received."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 256
    """Requests at once."""
    concurrency_per_tenant: Annotated[int, Field(ge=1, le=512)] = 32
    buffered_bytes: Annotated[int, Field(ge=LEAST_EGRESS_BUFFER_BYTES, le=65_536 * MIB)] = 256 * MIB
    """Bodies in the daemon's memory; a tenant may have a quarter of it."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for host in self.hosts:
            if host != "*" and not is_host_pattern(host):
                message = f'hosts: {host[:80]!r} is neither "*", a host, nor "*." and a host, in lower case'
                raise ValueError(message)
        for text in (*self.denied_ranges, *self.allowed_ranges):
            ip_network(text)
        for text in self.name_servers:
            ip_address(host_of(text) if text.startswith("[") or text.count(":") == 1 else text)
        return self


class LimitOverrides(_Section):
    """Limits of one execution that differ from the product's; see `registry.domain.limits.ExecutionLimits` for the units."""

    wall_time_ms: Annotated[int, Field(ge=1)] | None = None
    cpu_time_ms: Annotated[int, Field(ge=1)] | None = None
    fuel: Annotated[int, Field(ge=1, le=1 << 62)] | None = None
    memory_bytes: Annotated[int, Field(ge=MIB)] | None = None
    request_bytes: Annotated[int, Field(ge=0)] | None = None
    response_bytes: Annotated[int, Field(ge=0)] | None = None
    host_calls: Annotated[int, Field(ge=0)] | None = None
    log_lines: Annotated[int, Field(ge=0)] | None = None
    log_bytes: Annotated[int, Field(ge=0)] | None = None
    storage_namespaces: Annotated[int, Field(ge=0)] | None = None
    storage_keys: Annotated[int, Field(ge=0)] | None = None
    storage_value_bytes: Annotated[int, Field(ge=0)] | None = None
    storage_bytes: Annotated[int, Field(ge=0)] | None = None

    def over(self, base: ExecutionLimits) -> ExecutionLimits:
        """Return `base` with these limits in place of its own."""
        return replace(base, **self.model_dump(exclude_none=True))


class LimitsSettings(_Section):
    """Operator limits: what applies where nobody asks, and what nobody can exceed."""

    defaults: LimitOverrides = LimitOverrides()
    ceiling: LimitOverrides = LimitOverrides()

    @property
    def effective_ceiling(self) -> ExecutionLimits:
        """What nobody can exceed."""
        return self.ceiling.over(OPERATOR_CEILING)

    @property
    def effective_defaults(self) -> ExecutionLimits:
        """What applies where nobody asks; never above the ceiling."""
        wanted, ceiling = self.defaults.over(OPERATOR_DEFAULTS), self.effective_ceiling
        return clamp(defaults=wanted, ceiling=ceiling, grant=LimitWishes(), wishes=LimitWishes())

    @model_validator(mode="after")
    def _below_the_product(self) -> Self:
        hard = OPERATOR_CEILING
        for limit in fields(ExecutionLimits):
            own = getattr(self.effective_ceiling, limit.name)
            # Fuel is the operator's alone (DESIGN §7); every other figure is what engine, frames and memory are built for.
            if limit.name != "fuel" and own > getattr(hard, limit.name):
                message = f"ceiling.{limit.name} is {own}, above what this build supports ({getattr(hard, limit.name)})"
                raise ValueError(message)
        return self


class SecretsSettings(OpeningSettings):
    """Which keys open secrets of installs, and how much of what was opened is remembered."""

    memory_seconds: Annotated[float, Field(ge=0, le=MAX_MEMORY_SECONDS)] = MAX_MEMORY_SECONDS
    """How long a value is remembered at most, and never beyond its expiry; 0 opens it anew each time."""
    memory_entries: Annotated[int, Field(ge=1, le=4_096)] = 256
    """Values remembered; one has 64 KiB at most."""


class RunnerdSettings(BaseSettings):
    """All settings; frozen, unknown ones refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", populate_by_name=True)

    environment: Environment = Field(Environment.PRODUCTION, validation_alias=AliasChoices("RUNNERD_ENVIRONMENT", "ENV"))
    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    require_hardening: bool = True
    """Refuse to run with a worker, compiler or assets child in which a mandatory step of hardening failed. False only in development."""
    fuel: bool = True
    """Count fuel. Off, code that calls a lot runs up to twice as fast, and calls are ended by their times alone."""
    bridge: bool = True
    """Compose the bridge around extensions. Off, bodies cost a hundred times as much and end at 2 MiB; for an advisory in what it uses."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 30.0
    """How long running calls may take to end after SIGTERM."""
    cells: Annotated[int, Field(ge=0, le=256)] = 0
    """Fronts with workers of their own behind the one gRPC port; 0 = one for each four CPUs, at least one."""
    public_base: str | None = Field(None, max_length=255, validation_alias=AliasChoices("RUNNERD_PUBLIC_BASE", "RUNNER_PUBLIC_BASE"))
    """Where browsers reach the interface files, for example "https://ext.example.com"; written to the log at start."""
    trust_domains_file: Path
    object_store_url: Annotated[str, Field(pattern=r"^file:///", max_length=4096)]
    """Where bundles lie: "file:///folder"."""
    cache_dir: Path
    """Folder of the daemon's own (0700): compiled artifacts, interface files, scratch."""
    capability_ceiling: tuple[str, ...] = tuple(sorted(KNOWN))
    """What any install may have at all."""
    grpc: GrpcSettings = GrpcSettings()
    ops: OpsSettings = OpsSettings()
    events: EventsSettings = EventsSettings()
    platform: PlatformSettings = PlatformSettings()
    secrets: SecretsSettings | None = None
    """Without it this runner has no key, and no extension gets a secret."""
    assets: AssetsSettings = AssetsSettings()
    database: DatabaseSettings
    services: ServicesSettings
    users: UsersSettings | None = None
    artifacts: ArtifactsSettings
    workers: WorkersSettings = WorkersSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitsSettings = LimitsSettings()
    egress: EgressSettings = EgressSettings()

    @property
    def is_production(self) -> bool:
        """Whether what is meant for development is refused."""
        return self.environment is Environment.PRODUCTION

    def share_of(self, cell: Cell, *, grpc_port: int) -> RunnerdSettings:
        """Return the settings of one cell: its share of what the operator allows the whole daemon, on the port that all share.

        What bounds one tenant or install stays as it is: a client's connection ends in one cell.
        """
        if cell.is_alone:
            return self
        count = cell.count
        host = self.grpc.address.rpartition(":")[0]
        grpc = {
            "address": f"{host}:{grpc_port}",
            "max_concurrent_rpcs": _share(self.grpc.max_concurrent_rpcs, count),
            "request_bytes_in_flight": max(LEAST_REQUEST_BYTES_IN_FLIGHT, self.grpc.request_bytes_in_flight // count),
        }
        workers = {name: _share(getattr(self.workers, name), count) for name in ("floor", "ceiling", "memory_bytes")}
        parts = {
            "grpc": self.grpc.model_copy(update=grpc),
            "workers": self.workers.model_copy(update=workers),
            "assets": self.assets.model_copy(update={"enabled": self.assets.enabled and cell.index == 0}),
            "database": self.database.model_copy(update={"pool_size": max(2, self.database.pool_size // count)}),
            "egress": self.egress.model_copy(
                update={
                    "concurrency": _share(self.egress.concurrency, count),
                    "buffered_bytes": max(LEAST_EGRESS_BUFFER_BYTES, self.egress.buffered_bytes // count),
                }
            ),
            "artifacts": self.artifacts.model_copy(update={"loaded_bytes": _share(self.artifacts.loaded_bytes, count)}),
            "platform": self.platform.model_copy(update={"calls": _share(self.platform.calls, count)}),
            "admission": self.admission.model_copy(
                update={name: _share(getattr(self.admission, name), count) for name in ("waiting", "running")}
            ),
        }
        return self.model_copy(update=parts)

    @property
    def object_store_folder(self) -> Path:
        """The folder of the local object store."""
        return Path(unquote(urlsplit(self.object_store_url).path))

    @property
    def capabilities(self) -> frozenset[str]:
        """The capability ceiling, without prefixes."""
        return frozenset(normalise(name) for name in self.capability_ceiling)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.capability_ceiling:
            normalise(name)
        grpc = self.grpc
        if (grpc.tls_certificate_file is None) != (grpc.tls_key_file is None):
            message = "grpc.tls_certificate_file and grpc.tls_key_file belong together"
            raise ValueError(message)
        # SECURITY: a bearer token over plaintext is everybody's (T8).
        if grpc.tls_certificate_file is None and not is_loopback(host_of(grpc.address)):
            message = f"plaintext gRPC is refused on {grpc.address}; give a TLS certificate and key, or listen on loopback"
            raise ValueError(message)
        # SECURITY: metrics name the engine's version and the hardening, which is nobody's business on the network (T43).
        if not (is_loopback(host_of(self.ops.address)) or self.ops.token_file or self.ops.is_open):
            message = (
                f"/metrics without a token is refused on {self.ops.address}; give ops.token_file, listen on loopback, or set ops.is_open"
            )
            raise ValueError(message)
        if self.is_production and not self.require_hardening:
            message = "require_hardening=false needs ENV=development"
            raise ValueError(message)
        self._check_allowed_ranges()
        # SECURITY: whoever listens between us and the key service would have what it opens (T8).
        if self.is_production and self.secrets is not None and self.secrets.is_plaintext:
            message = "secrets: a key service without TLS needs ENV=development"
            raise ValueError(message)
        if self.database.url is not None:
            self._check_database(self.database.url.get_secret_value())
        if self.workers.ceiling and self.workers.floor > self.workers.ceiling:
            message = "workers.floor is above workers.ceiling"
            raise ValueError(message)
        return self

    def _check_allowed_ranges(self) -> None:
        # SECURITY: nobody needs guests on the loopback interface, where what trusts the machine listens, or on its link (T11).
        openable = OPENABLE_RANGES if self.is_production else (*OPENABLE_RANGES, *LOOPBACK)
        for text in self.egress.allowed_ranges:
            network = ip_network(text)
            if not any(network.version == outer.version and network.subnet_of(outer) for outer in openable):  # type: ignore[arg-type]
                message = f"egress.allowed_ranges: {network} is no part of a private network"
                raise ValueError(message)

    def _check_database(self, url: str) -> None:
        # SECURITY: the embedded server's superuser belongs to whoever runs it (T3).
        if self.is_production and is_embedded_database(url):
            message = "the database is an embedded development server, which production refuses"
            raise ValueError(message)

    def read_database_url(self) -> str:
        """Read the URL, from its file where it has one.

        Raises:
            SettingsError: the file cannot be read, or production meets an embedded server.
        """
        if self.database.url is not None:
            return self.database.url.get_secret_value()
        file = self.database.url_file
        if file is None:
            message = "no database URL"
            raise SettingsError(message)
        try:
            url = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            message = f"database.url_file {file} cannot be read"
            raise SettingsError(message) from error
        try:
            self._check_database(url)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return url


def _share(total: int, count: int) -> int:
    """Return a cell's share, rounded up; what is off (0) stays off."""
    return -(-total // count)


def load(**overrides: Any) -> RunnerdSettings:
    """Read the environment; `overrides` are for tests.

    Raises:
        SettingsError: a setting is missing, malformed, unknown or refused.
    """
    try:
        refuse_unknown_settings(os.environ, prefix=PREFIX, fields=RunnerdSettings.model_fields)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    try:
        return RunnerdSettings(**overrides)
    except ValidationError as error:
        raise SettingsError(_readable(error)) from error


def _readable(error: ValidationError) -> str:
    """Say what is wrong, without the values."""
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in row['loc']) or 'settings'}: {row['msg']}" for row in rows)
