"""Wrapping every data key anew, after a key was replaced or another key service was chosen. Values stay sealed all the while.

Role ext_maintenance, and the keys of both: it opens with the old one and seals with the new. A daemon that knows both reads throughout; the
old one may go when this says that nothing is left under it.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final

from registry.database import Database
from registry.domain.ids import InstallId, TenantId, new_id
from registry.repositories.audit import AuditRepository
from registry.repositories.secrets import SecretWrappingRepository, WrappedSecret
from registry.secrets.binding import Binding
from registry.secrets.envelope import EnvelopeRejectedError, UnknownKeyError, WrappedKey
from registry.secrets.opening import Opener
from registry.secrets.sealing import DATA_KEY_BYTES, Sealer

_LOG = logging.getLogger(__name__)
BATCH: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationReport:
    """What a run did."""

    kek_id: str
    """The key that everything is under now, but for what is named here."""
    rewrapped: int
    overtaken: int
    """Written by somebody else meanwhile; the next run finds them, if they are under an old key."""
    refused: int
    """Envelopes that do not open, left as they are. Each is in the log."""


async def rewrap_all(database: Database, opener: Opener, sealer: Sealer, *, actor: str) -> RotationReport:
    """Wrap anew whatever is not under the sealer's present key. May be stopped and repeated at any time.

    Every batch leaves an audit row of the platform.

    Raises:
        RefusalError: REGISTRY_UNAVAILABLE.
        KeyServiceError: a key service does not answer; what was done stays.
    """
    kek_id = await _present_key(sealer)
    totals: Counter[str] = Counter()
    after: Binding | None = None
    while True:
        async with database.session() as session:
            found = await SecretWrappingRepository(session).wrapped_otherwise(kek_id, after=after, limit=BATCH)
        if not found:
            return RotationReport(kek_id=kek_id, rewrapped=totals["rewrapped"], overtaken=totals["overtaken"], refused=totals["refused"])
        after = found[-1].binding
        renewed: list[tuple[WrappedSecret, WrappedKey]] = []
        for secret in found:
            key = await _renewed(secret, opener, sealer)
            if key is None:
                totals["refused"] += 1
            else:
                renewed.append((secret, key))
        totals += await _written(database, renewed, actor=actor)


async def _written(database: Database, renewed: list[tuple[WrappedSecret, WrappedKey]], *, actor: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    async with database.session(deadline_seconds=10) as session:
        secrets = SecretWrappingRepository(session)
        for secret, key in renewed:
            counted["rewrapped" if await secrets.rewrap(secret, key) else "overtaken"] += 1
        if counted["rewrapped"]:
            detail = {"secrets": counted["rewrapped"], "from": sorted({secret.key.kek_id for secret, _ in renewed})}
            await AuditRepository(session).record(actor=actor, action="secret.rewrap", subject=renewed[-1][1].kek_id, detail=detail)
    return counted


async def _renewed(secret: WrappedSecret, opener: Opener, sealer: Sealer) -> WrappedKey | None:
    try:
        data_key = await opener.unwrap(secret.key, secret.binding)
    except (EnvelopeRejectedError, UnknownKeyError) as error:
        place = {"tenant_id": secret.binding.tenant_id, "install_id": secret.binding.install_id}
        _LOG.error("secret not wrapped anew: %s", error, extra=place)
        return None
    return await sealer.wrap(data_key, secret.binding)


async def _present_key(sealer: Sealer) -> str:
    """Ask what a new secret would be under: key services have versions that nobody here knows."""
    nowhere = Binding(tenant_id=TenantId("-"), install_id=InstallId(new_id()), name="-", version=0)
    return (await sealer.wrap(bytes(DATA_KEY_BYTES), nowhere)).kek_id
