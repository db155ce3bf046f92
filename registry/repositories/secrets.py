"""Sealed secrets of one tenant's installs, and the wrapping of all of them during a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import RowMapping, TextClause, text

from registry.database import Session
from registry.domain.ids import InstallId, TenantId
from registry.repositories.searchable import uuid_or_none
from registry.secrets.binding import Binding
from registry.secrets.envelope import Envelope, WrappedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretView:
    """One secret as administrators see it: everything but the value."""

    name: str
    version: int
    kek_id: str
    expires_at: datetime | None
    is_expired: bool
    created_at: datetime
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """One secret as the daemon reads it."""

    version: int
    envelope: Envelope
    seconds_left: float | None
    """Until it expires, by the database's clock; 0 where it has. None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedSecret:
    """The wrapping of one secret of any tenant."""

    binding: Binding
    key: WrappedKey


_KEY: Final = "s.tenant_id = :tenant_id and s.install_id = cast(:install_id as uuid)"
_LOCK_INSTALL: Final = text(
    """select i.id::text as id, cast(:expires_at as timestamptz) is null or cast(:expires_at as timestamptz) > now() as in_time
         from tenant_extension_install i
        where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status <> 'uninstalled' for update"""
)
_EXISTS: Final = text(
    """select i.id::text as id from tenant_extension_install i
        where i.tenant_id = :tenant_id and i.id = cast(:install_id as uuid) and i.status <> 'uninstalled'"""
)
_VERSIONS: Final = text(f"select s.name, s.version from tenant_extension_install_secrets s where {_KEY}")  # noqa: S608 - constants
_INSERT: Final = text(
    """
insert into tenant_extension_install_secrets
       (tenant_id, install_id, name, version, kek_id, wrapped_key, ciphertext, expires_at, updated_by)
values (:tenant_id, cast(:install_id as uuid), :name, :version, :kek_id, :wrapped_key, :ciphertext, :expires_at, :actor)
on conflict do nothing
returning version
"""
)
_UPDATE: Final = text(
    f"""
update tenant_extension_install_secrets s
   set version = :version, kek_id = :kek_id, wrapped_key = :wrapped_key, ciphertext = :ciphertext, expires_at = :expires_at,
       updated_at = now(), updated_by = :actor
 where {_KEY} and s.name = :name and s.version = :version - 1
returning s.version
"""  # noqa: S608 - constants
)
_DELETE: Final = text(
    f"delete from tenant_extension_install_secrets s where {_KEY} and s.name = :name returning s.version"  # noqa: S608 - constants
)
_LIST: Final = text(
    f"""select s.name, s.version, s.kek_id, s.expires_at, s.created_at, s.updated_at, s.updated_by,
               coalesce(s.expires_at <= now(), false) as is_expired
          from tenant_extension_install_secrets s where {_KEY} order by s.name"""  # noqa: S608 - constants
)
_FIND: Final = text(
    f"""select s.version, s.kek_id, s.wrapped_key, s.ciphertext,
               greatest(0, extract(epoch from s.expires_at - now()))::float8 as seconds_left, s.expires_at is not null as expires
          from tenant_extension_install_secrets s where {_KEY} and s.name = :name"""  # noqa: S608 - constants
)
_NAMES: Final = text(f"select s.name from tenant_extension_install_secrets s where {_KEY} order by s.name")  # noqa: S608 - constants
_WRAPPED: Final = text(
    """
select s.tenant_id, s.install_id::text as install_id, s.name, s.version, s.kek_id, s.wrapped_key
  from tenant_extension_install_secrets s
 where s.kek_id <> :kek_id
   and (cast(:tenant_id as text) is null or (s.tenant_id, s.install_id, s.name) > (:tenant_id, cast(:install_id as uuid), :name))
 order by s.tenant_id, s.install_id, s.name limit :limit
"""
)
_REWRAP: Final = text(
    """
update tenant_extension_install_secrets s set kek_id = :kek_id, wrapped_key = :wrapped_key
 where s.tenant_id = :tenant_id and s.install_id = cast(:install_id as uuid) and s.name = :name
   and s.version = :version and s.wrapped_key = :before
returning s.name
"""
)


class SecretRepository:
    """Table `tenant_extension_install_secrets` of one tenant. Writing and naming: ext_admin; reading: ext_runner."""

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def lock_install(self, install_id: str, *, expires_at: datetime | None) -> tuple[InstallId, bool] | None:
        """Lock the install of a write until the end of the transaction.

        Returns:
            its id, and whether `expires_at` is still to come by the database's clock; None if there is no such install.
        """
        row = await self._first(_LOCK_INSTALL, install_id=uuid_or_none(install_id), expires_at=expires_at)
        return None if row is None else (InstallId(row["id"]), row["in_time"])

    async def find_install(self, install_id: str) -> InstallId | None:
        """Return the id of an install of the tenant, if it is one."""
        row = await self._first(_EXISTS, install_id=uuid_or_none(install_id))
        return None if row is None else InstallId(row["id"])

    async def versions(self, install_id: InstallId) -> dict[str, int]:
        """Return name → version of all secrets of an install."""
        rows = await self._session.execute(_VERSIONS, {"tenant_id": self._tenant_id, "install_id": install_id})
        return {row["name"]: row["version"] for row in rows.mappings()}

    async def put(self, binding: Binding, envelope: Envelope, *, expires_at: datetime | None, actor: str) -> bool:
        """Write a value as the version that it was sealed for. False if the stored version is not the one before it."""
        written = await self._first(
            _INSERT if binding.version == 1 else _UPDATE,
            install_id=binding.install_id,
            name=binding.name,
            version=binding.version,
            kek_id=envelope.key.kek_id,
            wrapped_key=envelope.key.wrapped,
            ciphertext=envelope.ciphertext,
            expires_at=expires_at,
            actor=actor,
        )
        return written is not None

    async def delete(self, install_id: InstallId, name: str) -> int | None:
        """Delete a secret. Return the version it had, None if there was none."""
        row = await self._first(_DELETE, install_id=install_id, name=name)
        return None if row is None else row["version"]

    async def list_secrets(self, install_id: InstallId) -> tuple[SecretView, ...]:
        """Return all secrets of an install by name, without their values."""
        rows = await self._session.execute(_LIST, {"tenant_id": self._tenant_id, "install_id": install_id})
        return tuple(SecretView(**row) for row in rows.mappings())

    async def find(self, install_id: InstallId, name: str) -> StoredSecret | None:
        """Return a sealed value. Role ext_runner."""
        row = await self._first(_FIND, install_id=install_id, name=name)
        if row is None:
            return None
        key = WrappedKey(kek_id=row["kek_id"], wrapped=bytes(row["wrapped_key"]))
        envelope = Envelope(key=key, ciphertext=bytes(row["ciphertext"]))
        return StoredSecret(version=row["version"], envelope=envelope, seconds_left=row["seconds_left"] if row["expires"] else None)

    async def names(self, install_id: InstallId) -> tuple[str, ...]:
        """Return the names of all secrets of an install, expired ones included. Role ext_runner."""
        rows = await self._session.execute(_NAMES, {"tenant_id": self._tenant_id, "install_id": install_id})
        return tuple(row["name"] for row in rows.mappings())

    async def _first(self, statement: TextClause, **parameters: object) -> RowMapping | None:
        return (await self._session.execute(statement, {"tenant_id": self._tenant_id, **parameters})).mappings().first()


class SecretWrappingRepository:
    """The wrapping of the secrets of all tenants. Role ext_maintenance, in a transaction without tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def wrapped_otherwise(self, kek_id: str, *, after: Binding | None, limit: int) -> tuple[WrappedSecret, ...]:
        """Return secrets that are under another key than `kek_id`, in the order of their places, beginning after `after`."""
        place = {
            "tenant_id": None if after is None else after.tenant_id,
            "install_id": None if after is None else after.install_id,
            "name": None if after is None else after.name,
        }
        rows = await self._session.execute(_WRAPPED, {"kek_id": kek_id, "limit": limit, **place})
        return tuple(_wrapped(row) for row in rows.mappings())

    async def rewrap(self, secret: WrappedSecret, key: WrappedKey) -> bool:
        """Replace the wrapping, unless the secret was written or wrapped anew meanwhile. Tell whether it was replaced."""
        binding = secret.binding
        parameters = {
            "tenant_id": binding.tenant_id,
            "install_id": binding.install_id,
            "name": binding.name,
            "version": binding.version,
            "before": secret.key.wrapped,
            "kek_id": key.kek_id,
            "wrapped_key": key.wrapped,
        }
        return (await self._session.execute(_REWRAP, parameters)).first() is not None


def _wrapped(row: RowMapping) -> WrappedSecret:
    binding = Binding(
        tenant_id=TenantId(row["tenant_id"]), install_id=InstallId(row["install_id"]), name=row["name"], version=row["version"]
    )
    return WrappedSecret(binding=binding, key=WrappedKey(kek_id=row["kek_id"], wrapped=bytes(row["wrapped_key"])))
