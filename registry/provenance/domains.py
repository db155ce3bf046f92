"""Trust domains: the roots under which a signature may be verified, each pinned and each apart from the others.

Attacks: a trust root that was altered on disk or in a cache makes every signature good, so a root is named together with its
SHA-256 and parsed from the very bytes that were hashed. A development root merged into the production root can mint every
production identity, so roots are never merged: one `TrustDomain`, one sigstore verifier. And a development domain has no place where
strangers' bundles are judged: outside a development environment it is refused.

    TrustConfigurationError    the configuration of trust is unusable; the process must not start
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from sigstore.errors import Error as SigstoreError
from sigstore.models import TrustedRoot
from sigstore.verify import Verifier
from sigstore_models.common.v1 import TimeRange
from sigstore_models.trustroot.v1 import TrustedRoot as TrustedRootModel

NON_PRODUCTION_LABEL = "NON-PRODUCTION"
"""Stands in every development root's names. It catches accidents; the pinned digest is the control."""

DEVELOPMENT = "development"
"""The one environment in which development domains are accepted."""

MAX_ROOT_BYTES = 1024 * 1024
MAX_DOMAINS_FILE_BYTES = 64 * 1024
MAX_DOMAINS = 16

_MAX_NARROWED = 64
"""Sets of authorities that were valid together and are kept as verifiers; a root has a handful."""


class TrustConfigurationError(Exception):
    """The trust domains cannot be used; the text says what to change."""


class TrustDomain:
    """One root of trust.

    Args:
        name: how publishers' signers refer to it.
        production: False for a root whose keys prove the code path only.
        root: the sigstore trusted root, as JSON.

    Raises:
        TrustConfigurationError: the root cannot be used, or is a development root that claims to be a production one.
    """

    def __init__(self, *, name: str, production: bool, root: bytes) -> None:
        if production and NON_PRODUCTION_LABEL.encode() in root:
            message = f"trust domain {name!r}: a root labelled {NON_PRODUCTION_LABEL} cannot be a production domain"
            raise TrustConfigurationError(message)
        self.name = name
        self.production = production
        self.root_sha256 = hashlib.sha256(root).hexdigest()
        try:
            self._model = TrustedRootModel.from_json(root)
            self._verifier = Verifier(trusted_root=TrustedRoot(self._model))
        except Exception as exc:  # The libraries leak whatever their parsers raise.
            message = f"trust domain {name!r}: the trusted root cannot be used: {type(exc).__name__}"
            raise TrustConfigurationError(message) from exc
        if not (self._model.certificate_authorities and self._model.tlogs and self._model.ctlogs):
            message = f"trust domain {name!r}: the trusted root must name an authority, a transparency log and a certificate log"
            raise TrustConfigurationError(message)
        self._narrowed: dict[tuple[tuple[int, ...], ...], Verifier] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"TrustDomain({self.name!r}, production={self.production}, root_sha256={self.root_sha256!r})"

    @property
    def verifier(self) -> Verifier:
        """Verifies under everything in the root, whenever it was valid. Never enough alone: see `verifier_at`."""
        return self._verifier

    def verifier_at(self, moment: datetime) -> Verifier | None:
        """Return a verifier that knows only the authorities and logs that were valid at `moment`, or None if that leaves too few.

        It is `verifier` itself where everything in the root was valid then.

        sigstore-python ignores the end of validity of certificate authorities and of log keys, and where a log entry does not
        name a key that it knows, it tries them all. So it is not asked which one was used: those out of date are taken away.
        """
        model = self._model
        chosen = (
            _valid_at(model.certificate_authorities, lambda authority: authority.valid_for, moment),
            _valid_at(model.tlogs, lambda log: log.public_key.valid_for, moment),
            _valid_at(model.ctlogs, lambda log: log.public_key.valid_for, moment),
        )
        if not all(chosen):
            return None
        if [len(part) for part in chosen] == [len(part) for part in (model.certificate_authorities, model.tlogs, model.ctlogs)]:
            return self._verifier
        with self._lock:
            verifier = self._narrowed.get(chosen)
            if verifier is None:
                verifier = self._narrow(*chosen)
                if verifier is not None and len(self._narrowed) < _MAX_NARROWED:
                    self._narrowed[chosen] = verifier
        return verifier

    def _narrow(self, authorities: tuple[int, ...], logs: tuple[int, ...], certificate_logs: tuple[int, ...]) -> Verifier | None:
        model = self._model
        narrowed = model.model_copy(
            update={
                "certificate_authorities": [model.certificate_authorities[index] for index in authorities],
                "tlogs": [model.tlogs[index] for index in logs],
                "ctlogs": [model.ctlogs[index] for index in certificate_logs],
            }
        )
        try:
            return Verifier(trusted_root=TrustedRoot(narrowed))
        except SigstoreError:
            return None  # What is left is not valid yet, by this machine's clock.


def load_trust_domains(path: Path, *, environment: str) -> tuple[TrustDomain, ...]:
    """Read the file that lists the trust domains: `[{"name", "trusted_root", "trusted_root_sha256", "production"}]`.

    Args:
        path: the file; `trusted_root` is relative to it.
        environment: "development" accepts domains that are not for production; every other value refuses them.

    Raises:
        TrustConfigurationError: the file, or a domain in it, cannot be used.
    """
    raw = _read(path, MAX_DOMAINS_FILE_BYTES)
    try:
        rows = _ROWS.validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        message = f"{path}: {'.'.join(str(step) for step in first['loc']) or 'the file'}: {first['msg']}"
        raise TrustConfigurationError(message) from exc
    if len({row.name for row in rows}) != len(rows):
        message = f"{path}: two trust domains have one name"
        raise TrustConfigurationError(message)
    return tuple(_load(row, path, environment) for row in rows)


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    trusted_root: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    trusted_root_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    production: bool


_ROWS: TypeAdapter[list[_Row]] = TypeAdapter(Annotated[list[_Row], Field(min_length=1, max_length=MAX_DOMAINS)])


def _load(row: _Row, path: Path, environment: str) -> TrustDomain:
    # SECURITY: production is what a setting that was forgotten means.
    if not row.production and environment != DEVELOPMENT:
        message = f"{path}: trust domain {row.name!r} is not for production; remove it, or set ENV=development"
        raise TrustConfigurationError(message)
    root_path = path.parent / row.trusted_root
    root = _read(root_path, MAX_ROOT_BYTES)
    found = hashlib.sha256(root).hexdigest()
    if found != row.trusted_root_sha256:
        message = f"{root_path}: its SHA-256 is {found}, but {row.trusted_root_sha256} is pinned; review the root and pin it anew"
        raise TrustConfigurationError(message)
    return TrustDomain(name=row.name, production=row.production, root=root)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        message = f"{path}: cannot be read: {exc.strerror}"
        raise TrustConfigurationError(message) from exc
    if len(data) > max_bytes:
        message = f"{path}: longer than {max_bytes} bytes"
        raise TrustConfigurationError(message)
    return data


def _valid_at(items: list[Any], period_of: Callable[[Any], TimeRange | None], moment: datetime) -> tuple[int, ...]:
    """Return the positions of the items whose period, both ends included, holds `moment`."""
    return tuple(index for index, item in enumerate(items) if _holds(period_of(item), moment))


def _holds(period: TimeRange | None, moment: datetime) -> bool:
    return period is None or (period.start <= moment and (period.end is None or moment <= period.end))
