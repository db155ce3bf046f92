"""Settings of the gateway. The only place that reads its environment: GATEWAY_…, nested with "__", and ENV.

Every default is the careful one: production, invoke only, loopback, no origin for browsers, no admin. What production refuses is
refused here, before anything listens: plaintext to a runner elsewhere, both faces in one process without saying so, an embedded
database, development keys (T7, T8).
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.deployment import Environment, is_loopback, refuse_unknown_settings
from registry.domain.limits import MIB
from registry.secrets.settings import SealingSettings
from registry.tokens import GATEWAY_AUDIENCE, MAX_SERVICE_TOKEN_SECONDS

PREFIX: Final = "GATEWAY_"
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?\Z")

Origin = Annotated[str, Field(pattern=_ORIGIN.pattern.replace(r"\Z", "$"), max_length=255)]


class StartError(Exception):
    """The gateway cannot start with what its settings name. The message says what to change, and holds no secret."""


class Serve(StrEnum):
    """Which faces the process shows."""

    INVOKE = "invoke"
    ADMIN = "admin"
    ALL = "all"

    @property
    def invoke(self) -> bool:
        """Whether extensions can be called."""
        return self is not Serve.ADMIN

    @property
    def admin(self) -> bool:
        """Whether the registry can be changed."""
        return self is not Serve.INVOKE


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunnerSettings(_Section):
    """The daemon."""

    target: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1:50051"
    """gRPC target, for example "dns:///runnerd.internal:50051"."""
    tls_root_file: Path | None = None
    """PEM of the authority that signed the daemon's certificate; None speaks plaintext, on loopback only."""

    @property
    def is_loopback(self) -> bool:
        """Whether the target is this machine."""
        address = self.target.rsplit("///", 1)[-1].removeprefix("ipv4:").removeprefix("ipv6:")
        if address.startswith("unix:"):
            return True
        return is_loopback(address.rsplit(":", 1)[0].strip("[]"))


class ServiceSettings(_Section):
    """How the gateway names itself to the daemon."""

    private_jwk_file: Path
    issuer: Annotated[str, Field(min_length=1, max_length=255)]
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")] = "gateway"
    token_seconds: Annotated[int, Field(ge=90, le=min(300, MAX_SERVICE_TOKEN_SECONDS))] = 300


class UsersSettings(_Section):
    """Whose users' tokens are accepted."""

    jwks_file: Path
    issuer: Annotated[str, Field(min_length=1, max_length=255)]
    audience: Annotated[str, Field(min_length=1, max_length=255)] = GATEWAY_AUDIENCE
    tenant_claim: Annotated[str, Field(min_length=1, max_length=64)] = "tenant"
    subject_claim: Annotated[str, Field(min_length=1, max_length=64)] = "sub"
    roles_claim: Annotated[str, Field(min_length=1, max_length=64)] = "roles"


class AdminSettings(_Section):
    """What only the admin face has."""

    database_url_file: Path
    """File with the URL of the role ext_admin."""
    bundle_store: Path
    """Folder of the local object store."""
    trust_domains_file: Path
    work_dir: Path
    """Folder for bundles while they are checked."""
    secrets: SealingSettings | None = None
    """What seals secrets of installs; without it none can be set."""
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 600
    max_publishing: Annotated[int, Field(ge=1, le=64)] = 4
    """Publications that are checked at the same time."""


class LimitSettings(_Section):
    """What one connection and one request may take."""

    request_bytes: Annotated[int, Field(ge=0, le=32 * MIB)] = 10 * MIB
    execute_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 30
    header_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10
    body_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30
    keep_alive_seconds: Annotated[int, Field(ge=0, le=75)] = 5
    drain_seconds: Annotated[int, Field(ge=0, le=600)] = 30
    connections: Annotated[int, Field(ge=1, le=100_000)] = 2_000


class GatewaySettings(BaseSettings):
    """All settings; frozen, unknown ones refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", populate_by_name=True)

    environment: Environment = Field(Environment.PRODUCTION, validation_alias=AliasChoices("GATEWAY_ENVIRONMENT", "ENV"))
    serve: Serve = Serve.INVOKE
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    one_process_in_production: bool = False
    """Allows `serve=all` in production: then whoever takes over the process that parses internet traffic can change grants (T7)."""
    public_origin: Origin | None = None
    """Origin under which callers reach the gateway; a guest's absolute `location` may name no other."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may call extensions with a bearer token. Empty: none."""
    limits: LimitSettings = LimitSettings()
    runner: RunnerSettings = RunnerSettings()
    service: ServiceSettings
    users: UsersSettings
    admin: AdminSettings | None = None

    @property
    def is_production(self) -> bool:
        """Whether what is meant for development is refused."""
        return self.environment is Environment.PRODUCTION

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.serve.admin and self.admin is None:
            message = "serve=admin and serve=all need GATEWAY_ADMIN__DATABASE_URL_FILE and the rest of GATEWAY_ADMIN__…"
            raise ValueError(message)
        # SECURITY: an invoke-only process must hold nothing that changes the registry (T7), not even by mistake.
        if not self.serve.admin and self.admin is not None:
            message = "serve=invoke must not be given GATEWAY_ADMIN__…; run the admin face as a process of its own"
            raise ValueError(message)
        # SECURITY: a bearer token over plaintext is everybody's (T8).
        if self.runner.tls_root_file is None and not self.runner.is_loopback:
            message = f"the runner {self.runner.target!r} is not on this machine; give GATEWAY_RUNNER__TLS_ROOT_FILE"
            raise ValueError(message)
        if self.is_production and self.admin is not None and self.admin.secrets is not None and self.admin.secrets.is_plaintext:
            message = "admin.secrets: a key service without TLS needs ENV=development"
            raise ValueError(message)
        if self.is_production and self.serve is Serve.ALL and not self.one_process_in_production:
            message = "serve=all in production needs GATEWAY_ONE_PROCESS_IN_PRODUCTION=true; better run two processes"
            raise ValueError(message)
        return self


def load(**overrides: Any) -> GatewaySettings:
    """Read the environment; `overrides` are what the command line says.

    Raises:
        ValueError: a setting is missing, malformed, unknown or refused (pydantic's ValidationError is one).
    """
    refuse_unknown_settings(os.environ, prefix=PREFIX, fields=GatewaySettings.model_fields)
    return GatewaySettings(**{name: value for name, value in overrides.items() if value is not None})
