"""Which keys seal and which open, as sections of the services' settings. Read by `config.py` of each; nothing here reads the environment.

Attack it stops: a key service reached over plaintext, where anybody on the way has its token (T8). There is no default and no second
choice: without a section there are no secrets.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from registry.deployment import is_loopback

_PATH: Final = r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"
_SECONDS = Annotated[float, Field(gt=0, le=4)]
"""Below the five seconds of a host call, so that a guest hears of it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VaultSettings(_Section):
    """A key of HashiCorp Vault's transit engine."""

    address: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$", max_length=255)]
    """"https://host:port"."""
    token_file: Path
    """Read again when it changes."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)]
    mount: Annotated[str, Field(pattern=_PATH, max_length=128)] = "transit"
    namespace: Annotated[str, Field(pattern=_PATH, max_length=128)] | None = None
    ca_file: Path | None = None
    """PEM of the authority of its certificate; None takes those of the machine."""
    timeout_seconds: _SECONDS = 2.0

    @property
    def is_plaintext(self) -> bool:
        """Whether everybody on the way can read along."""
        return self.address.startswith("http:")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_plaintext and not is_loopback(urlsplit(self.address).hostname or ""):
            message = "address must begin with https:// where it is not this machine"
            raise ValueError(message)
        return self


class KmsSettings(_Section):
    """A key of Google Cloud KMS, with the credentials of the process's environment (application default credentials)."""

    key: Annotated[str, Field(pattern=r"^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", max_length=512)]
    """Resource name of the key, without a version."""
    endpoint: Annotated[str, Field(pattern=r"^(http://)?[A-Za-z0-9.-]+(:[0-9]{1,5})?$", max_length=255)] = "cloudkms.googleapis.com"
    """Host of the service, spoken to over TLS; "http://127.0.0.1:port" is for a stand-in on a development machine, without credentials."""
    timeout_seconds: _SECONDS = 2.0

    @property
    def is_plaintext(self) -> bool:
        """Whether it is a stand-in."""
        return self.endpoint.startswith("http:")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_plaintext and not _is_loopback_address(self.endpoint):
            message = "endpoint must be a host, spoken to over TLS, where it is not this machine"
            raise ValueError(message)
        return self


class LocalSealingSettings(_Section):
    """The public half of a key pair of our own."""

    public_key_file: Path


class LocalOpeningSettings(_Section):
    """The private halves of key pairs of our own."""

    private_key_files: Annotated[tuple[Path, ...], Field(min_length=1, max_length=16)]


class SealingSettings(_Section):
    """What seals: exactly one of them."""

    local: LocalSealingSettings | None = None
    vault: VaultSettings | None = None
    kms: KmsSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(part is not None for part in (self.local, self.vault, self.kms)) != 1:
            message = "give exactly one of local, vault, kms: there is no second choice when the first fails"
            raise ValueError(message)
        return self

    @property
    def is_plaintext(self) -> bool:
        """Whether a key service is spoken to without TLS, which production refuses."""
        return any(part is not None and part.is_plaintext for part in (self.vault, self.kms))


class OpeningSettings(_Section):
    """What opens: at least one of them; several while secrets move from one to another."""

    local: LocalOpeningSettings | None = None
    vault: VaultSettings | None = None
    kms: KmsSettings | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if all(part is None for part in (self.local, self.vault, self.kms)):
            message = "give at least one of local, vault, kms"
            raise ValueError(message)
        return self

    @property
    def is_plaintext(self) -> bool:
        """Whether a key service is spoken to without TLS, which production refuses."""
        return any(part is not None and part.is_plaintext for part in (self.vault, self.kms))


def _is_loopback_address(endpoint: str) -> bool:
    try:
        return ipaddress.ip_address(urlsplit(endpoint).hostname or "").is_loopback
    except ValueError:
        return False
