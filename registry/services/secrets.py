"""Writing secrets: a tenant's administrators set, name and delete them, and nobody reads one back. Role ext_admin.

Attacks it stops: a key service that fails and leaves a value in plain text instead (reference §18.9 no. 94: nothing is written then); a
write that quietly drops what it cannot read (no. 95: each secret is a row of its own, and no write reads another).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId, TenantId, is_secret_name
from registry.repositories.audit import AuditRepository
from registry.repositories.secrets import SecretRepository, SecretView
from registry.secrets.binding import MAX_SECRETS, MAX_VALUE_BYTES, Binding
from registry.secrets.envelope import SecretEnvelopeError
from registry.secrets.sealing import Sealer
from registry.services.refusals import no_such_install

__all__ = ["SecretView", "SecretWriter"]

_LOG = logging.getLogger(__name__)
_ATTEMPTS: Final = 5
"""Of writers of one secret at the same time, each of whom seals for the version after the one it has seen."""


class SecretWriter:
    """Sets, lists and deletes secrets; every act leaves an audit row of the tenant with the name, never the value.

    Args:
        database: of role ext_admin.
        sealer: None where the operator chose no key; nothing can be set then.
    """

    def __init__(self, database: Database, sealer: Sealer | None) -> None:
        self._database = database
        self._sealer = sealer

    async def put(  # noqa: PLR0913 - what a tenant decides, named at the call
        self, tenant_id: TenantId | str, install_id: str, name: str, *, value: str, expires_at: datetime | None = None, actor: str
    ) -> SecretView:
        """Set a secret; its version begins at 1 and grows with each write.

        Args:
            tenant_id: the tenant.
            install_id: of the tenant.
            name: 1 to 128 of A-Z a-z 0-9 _ . -, not beginning with "." or "-".
            value: 1 byte to 64 KiB as UTF-8.
            expires_at: from then on the extension is told "expired"; with a time zone, and still to come.
            actor: who asks, for the audit log.

        Raises:
            RefusalError: INVALID_REQUEST, EXTENSION_NOT_INSTALLED, QUOTA_EXCEEDED (64 for each install), NOT_FOUND (no key was chosen),
                REGISTRY_UNAVAILABLE (also: the key service does not answer).
        """
        _check_name(name)
        data = _checked_value(value)
        if expires_at is not None and expires_at.tzinfo is None:
            raise RefusalError(Reason.INVALID_REQUEST, "Give the time of expiry with its time zone.")
        if self._sealer is None:
            raise RefusalError(Reason.NOT_FOUND, "This gateway was given no key to seal secrets with; its operator chooses one.")
        for _ in range(_ATTEMPTS):
            binding = await self._next(tenant_id, install_id, name, expires_at)
            try:
                # Outside of the transaction: a key service may take longer than one may stay open.
                envelope = await self._sealer.seal(data, binding)
            except SecretEnvelopeError as error:
                _LOG.warning("secret not sealed: %s", error, extra={"tenant_id": tenant_id, "install_id": install_id})
                raise RefusalError(
                    Reason.REGISTRY_UNAVAILABLE, "The secret could not be sealed, so nothing was stored; try again."
                ) from None
            async with self._database.tenant_session(tenant_id) as session:
                secrets = SecretRepository(session, tenant_id)
                await _locked(secrets, install_id, expires_at)
                _check_room(await secrets.versions(binding.install_id), name)
                if not await secrets.put(binding, envelope, expires_at=expires_at, actor=actor):
                    continue
                written = {"name": name, "version": binding.version, "key": envelope.key.kek_id}
                audit = AuditRepository(session, TenantId(tenant_id))
                await audit.record(actor=actor, action="secret.set", subject=binding.install_id, detail=written)
                return next(view for view in await secrets.list_secrets(binding.install_id) if view.name == name)
        raise RefusalError(Reason.REGISTRY_UNAVAILABLE, "Others set this secret at the same time; try again.")

    async def list(self, tenant_id: TenantId | str, install_id: str) -> tuple[SecretView, ...]:
        """Return what an install has, without the values.

        Raises:
            RefusalError: EXTENSION_NOT_INSTALLED, REGISTRY_UNAVAILABLE.
        """
        async with self._database.tenant_session(tenant_id) as session:
            secrets = SecretRepository(session, tenant_id)
            found = await secrets.find_install(install_id)
            if found is None:
                raise no_such_install()
            return await secrets.list_secrets(found)

    async def delete(self, tenant_id: TenantId | str, install_id: str, name: str, *, actor: str) -> None:
        """Delete a secret; what the extension asks for next finds it missing.

        Raises:
            RefusalError: INVALID_REQUEST, EXTENSION_NOT_INSTALLED, NOT_FOUND, REGISTRY_UNAVAILABLE.
        """
        _check_name(name)
        async with self._database.tenant_session(tenant_id) as session:
            secrets = SecretRepository(session, tenant_id)
            locked = await _locked(secrets, install_id, None)
            version = await secrets.delete(locked, name)
            if version is None:
                raise RefusalError(Reason.NOT_FOUND, "The install has no secret of this name.")
            audit = AuditRepository(session, TenantId(tenant_id))
            await audit.record(actor=actor, action="secret.delete", subject=locked, detail={"name": name, "version": version})

    async def _next(self, tenant_id: TenantId | str, install_id: str, name: str, expires_at: datetime | None) -> Binding:
        async with self._database.tenant_session(tenant_id) as session:
            secrets = SecretRepository(session, tenant_id)
            locked = await _locked(secrets, install_id, expires_at)
            versions = await secrets.versions(locked)
        _check_room(versions, name)
        return Binding(tenant_id=TenantId(tenant_id), install_id=locked, name=name, version=versions.get(name, 0) + 1)


async def _locked(secrets: SecretRepository, install_id: str, expires_at: datetime | None) -> InstallId:
    locked = await secrets.lock_install(install_id, expires_at=expires_at)
    if locked is None:
        raise no_such_install()
    if not locked[1]:
        raise RefusalError(Reason.INVALID_REQUEST, "The time of expiry is past.")
    return locked[0]


def _check_room(versions: Mapping[str, int], name: str) -> None:
    if name not in versions and len(versions) >= MAX_SECRETS:
        raise RefusalError(Reason.QUOTA_EXCEEDED, f"An install has at most {MAX_SECRETS} secrets; delete one first.")


def _check_name(name: str) -> None:
    if not is_secret_name(name):
        raise RefusalError(Reason.INVALID_REQUEST, 'A secret\'s name is 1 to 128 of A-Z a-z 0-9 _ . -, not beginning with "." or "-".')


def _checked_value(value: str) -> bytes:
    try:
        data = value.encode()
    except UnicodeEncodeError:
        # SECURITY: from None: the exception holds the value.
        raise RefusalError(Reason.INVALID_REQUEST, "The value is not valid Unicode text.") from None
    if not 1 <= len(data) <= MAX_VALUE_BYTES:
        raise RefusalError(Reason.INVALID_REQUEST, f"A value has 1 to {MAX_VALUE_BYTES} bytes.")
    return data
