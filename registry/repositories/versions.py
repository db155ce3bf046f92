"""Extensions, their versions and bundles: claiming a name and a version, publishing in two phases, reading.

How a publish uses `VersionRepository` (each step in a transaction of its own, as role ext_admin):

    1. bytes received, unpacked, signature verified                          (no database)
    2. claimed = await VersionRepository(session).claim(new_version)         a `pending` row nobody can install
       claimed.state is `published`: the same bytes are published already; answer as if they just had been
    3. archive, signature and manifest stored in the object store; warmed    (no database)
    4. await VersionRepository(session).mark_published(claimed.version_id)   visible from here on
    on failure of 3: await VersionRepository(session).delete_pending(claimed.version_id): nothing is burnt, not even the name

A pending row never blocks anybody: a later publish of the same version replaces it, and the earlier one's step 4 is then refused.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from registry.database import Session
from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExtensionId, PublisherId, VersionId, is_extension_name, is_uuid, new_id
from registry.domain.records import AllowedSigner, LoadableBundle
from registry.repositories.searchable import text_or_nothing, uuid_or_none
from registry.repositories.version_order import is_prerelease, version_order
from registry.repositories.version_rows import PENDING, PUBLISHED, NewVersion, VersionRow, version_row

__all__ = ["PENDING", "PUBLISHED", "STALE_PENDING", "NewVersion", "VersionRepository", "VersionRow"]

STALE_PENDING = timedelta(minutes=15)
"""A name that nobody ever published under is free again when its pending versions are older than this."""


_SELECT: Final = """
select r.id::text as extension_id, r.name as extension_name, r.publisher_id::text as publisher_id, r.publisher,
       v.id::text as version_id, v.version, v.state, v.runtime, v.capabilities, v.manifest, v.manifest_digest,
       b.content_hash, b.size_bytes, b.trust_domain, b.signer_issuer, b.signer_identity, b.verified_at,
       v.created_at, v.published_at, v.yanked_at, v.deprecated_at
  from extension_version v
  join extension_registry r on r.id = v.registry_id
  join extension_bundle b on b.version_id = v.id
"""
_BY_NUMBER = text(_SELECT + " where v.registry_id = cast(:extension_id as uuid) and v.version = :version")
_BY_ID = text(_SELECT + " where v.id = cast(:version_id as uuid)")
_BY_REF_AND_NUMBER = text(
    _SELECT + " where (r.name = :ref or r.id = cast(:uuid as uuid)) and v.version = :version and v.state = 'published'"
)
_PUBLISHED = text(
    _SELECT
    + """ where (r.name = :ref or r.id = cast(:uuid as uuid)) and v.state = 'published'
            and (cast(:before as text) is null or v.version_order < :before)
          order by v.version_order desc limit :limit"""
)
_LATEST = text(
    _SELECT
    + """ where (r.name = :ref or r.id = cast(:uuid as uuid)) and v.state = 'published' and v.yanked_at is null
          order by v.is_prerelease, v.version_order desc limit 1"""
)
_LOADABLE = text(
    """
select b.content_hash, r.id::text as extension_id, r.name as extension_name, v.id::text as version_id, v.version, v.runtime,
       r.publisher_id::text as publisher_id, r.publisher, v.manifest_digest,
       exists (select from extension_denylist d where d.content_hash = b.content_hash) as denied,
       coalesce((select jsonb_agg(jsonb_build_array(i.trust_domain, i.issuer, i.identity)
                                  order by i.trust_domain, i.issuer, i.identity)
                   from extension_publisher_identity i where i.publisher_id = r.publisher_id), '[]') as signers
  from extension_bundle b
  join extension_version v on v.id = b.version_id
  join extension_registry r on r.id = v.registry_id
 where b.content_hash = :content_hash
"""
)
_LOCK_NAME = text("select id::text as id, publisher_id::text as publisher_id from extension_registry where name = :name for update")
_NAME_IS_ABANDONED = text(
    """
select not exists (select from extension_version v where v.registry_id = cast(:extension_id as uuid)
                      and (v.state = 'published' or v.created_at > now() - cast(:stale as interval)))
"""
)
_INSERT_NAME = text(
    """
insert into extension_registry (id, publisher_id, publisher, name, display_name, description)
values (cast(:id as uuid), cast(:publisher_id as uuid), :publisher, :name, :display_name, :description)
on conflict do nothing
"""
)
_INSERT_VERSION = text(
    """
insert into extension_version (id, registry_id, version, version_order, is_prerelease, runtime, main_entry, api_endpoints, ui,
                               capabilities, manifest, manifest_digest, sbom_ref)
values (cast(:id as uuid), cast(:extension_id as uuid), :version, :version_order, :is_prerelease, :runtime, :main_entry,
        :api_endpoints, :ui, :capabilities, :manifest, :manifest_digest, :sbom_ref)
"""
).bindparams(
    bindparam("api_endpoints", type_=JSONB),
    bindparam("ui", type_=JSONB(none_as_null=True)),
    bindparam("capabilities", type_=JSONB),
    bindparam("manifest", type_=JSONB),
)
_INSERT_BUNDLE = text(
    """
insert into extension_bundle (id, version_id, content_hash, signature, storage_url, size_bytes, trust_domain, signer_issuer,
                              signer_identity, verified_at)
values (cast(:id as uuid), cast(:version_id as uuid), :content_hash, :signature, :storage_url, :size_bytes, :trust_domain, :signer_issuer,
        :signer_identity, :verified_at)
"""
)


class VersionRepository:
    """Global tables, no tenant: `extension_registry`, `extension_version`, `extension_bundle`. Writing needs role ext_admin.

    Methods:
        claim(new) -> VersionRow                           make the pending row, or find the same bytes published
        mark_published(version_id) -> VersionRow           make it visible
        delete_pending(version_id) -> bool                 take the pending row back
        get_published(extension_ref, version) -> VersionRow
        find_latest(extension_ref) -> VersionRow | None
        list_published(extension_ref, *, limit, before) -> tuple[VersionRow, ...]
        set_yanked(version_id, *, reason) / set_deprecated(version_id)
        find_loadable(content_hash) -> tuple[LoadableBundle, bool] | None
        is_denied(content_hash) -> bool
        is_interface_served(extension_ref, content_hash) -> bool
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, new: NewVersion) -> VersionRow:
        """Write the version down as pending, or return the published row if it holds the same bytes.

        Guarantee: of two concurrent claims of one version exactly one `version_id` survives; the other's `mark_published` is refused.

        Raises:
            RefusalError: NOT_FOUND (publisher), PUBLISHER_MISMATCH (the name is another publisher's), VERSION_EXISTS (published with
                other bytes, or these bytes under another version), HASH_DENIED, INVALID_REQUEST (name or version are not well formed).
        """
        self._check(new)
        publisher_id = await self._publisher_id(new.publisher)
        if await self.is_denied(new.content_hash):
            raise RefusalError(Reason.HASH_DENIED, "This content was revoked; change the extension and publish a new version.")
        extension_id = await self._claim_name(new, publisher_id)
        existing = await self._find(_BY_NUMBER, extension_id=extension_id, version=new.version)
        if existing is not None and existing.state == PUBLISHED:
            if existing.content_hash == new.content_hash:
                return existing
            raise RefusalError(
                Reason.VERSION_EXISTS,
                f"Version {new.version} is published with other content; raise the version number.",
                metadata={"content_hash": existing.content_hash},
            )
        # A pending row is replaced, not updated: whoever made it holds an id that no longer exists.
        await self._session.execute(
            text(
                """delete from extension_version v where v.state = 'pending' and v.registry_id = cast(:extension_id as uuid)
                   and (v.version = :version or exists (select from extension_bundle b
                                                         where b.version_id = v.id and b.content_hash = :content_hash))"""
            ),
            {"extension_id": extension_id, "version": new.version, "content_hash": new.content_hash},
        )
        return await self._insert(new, extension_id)

    async def mark_published(self, version_id: VersionId) -> VersionRow:
        """Make a pending version visible. Marking a published one again changes nothing.

        Raises:
            RefusalError: VERSION_EXISTS: a later publish of the same version replaced this one. HASH_DENIED: revoked meanwhile.
        """
        row = await self._find(_BY_ID, version_id=uuid_or_none(version_id))
        if row is None:
            raise RefusalError(Reason.VERSION_EXISTS, "Another publish of this version replaced this one; look at what is published now.")
        if await self.is_denied(row.content_hash):
            raise RefusalError(Reason.HASH_DENIED, "This content was revoked while it was being published.")
        await self._session.execute(
            text(
                """update extension_version set state = 'published', published_at = now()
                   where id = cast(:version_id as uuid) and state = 'pending'"""
            ),
            {"version_id": version_id},
        )
        published = await self._find(_BY_ID, version_id=version_id)
        if published is None or published.state != PUBLISHED:
            raise RefusalError(Reason.VERSION_EXISTS, "Another publish of this version replaced this one; look at what is published now.")
        return published

    async def delete_pending(self, version_id: VersionId) -> bool:
        """Take a pending version back, and the name with it if nothing else holds it. Tell whether there was one."""
        row = await self._find(_BY_ID, version_id=uuid_or_none(version_id))
        if row is None or row.state != PENDING:
            return False
        await self._session.execute(text("select from extension_registry where name = :name for update"), {"name": row.extension_name})
        deleted = await self._session.execute(
            text("delete from extension_version where id = cast(:version_id as uuid) and state = 'pending' returning id"),
            {"version_id": version_id},
        )
        gone = deleted.first() is not None
        await self._session.execute(
            text(
                """delete from extension_registry r where r.id = cast(:extension_id as uuid)
                   and not exists (select from extension_version v where v.registry_id = r.id)"""
            ),
            {"extension_id": row.extension_id},
        )
        return gone

    async def get_published(self, extension_ref: str, version: str) -> VersionRow:
        """Return one published version.

        Raises:
            RefusalError: VERSION_NOT_FOUND.
        """
        row = await self._find(
            _BY_REF_AND_NUMBER, ref=text_or_nothing(extension_ref), uuid=uuid_or_none(extension_ref), version=text_or_nothing(version)
        )
        if row is None:
            raise RefusalError(Reason.VERSION_NOT_FOUND, "There is no such published version; check the name and the number.")
        return row

    async def find_latest(self, extension_ref: str) -> VersionRow | None:
        """Return the highest published version that is not yanked; a pre-release only where there is nothing else."""
        return await self._find(_LATEST, ref=text_or_nothing(extension_ref), uuid=uuid_or_none(extension_ref))

    async def list_published(self, extension_ref: str, *, limit: int = 50, before: str | None = None) -> tuple[VersionRow, ...]:
        """Return published versions, highest first, beginning below version `before`."""
        order = None if before is None else version_order(before)
        parameters = {"ref": text_or_nothing(extension_ref), "uuid": uuid_or_none(extension_ref), "before": order, "limit": limit}
        rows = await self._session.execute(_PUBLISHED, parameters)
        return tuple(version_row(mapping) for mapping in rows.mappings())

    async def set_yanked(self, version_id: VersionId, *, reason: str) -> bool:
        """Withdraw a published version from new installs. Tell whether it changed anything."""
        changed = await self._session.execute(
            text(
                """update extension_version set yanked_at = now(), yanked_reason = :reason
                   where id = cast(:version_id as uuid) and state = 'published' and yanked_at is null returning id"""
            ),
            {"version_id": uuid_or_none(version_id), "reason": reason},
        )
        return changed.first() is not None

    async def set_deprecated(self, version_id: VersionId) -> bool:
        """Mark a published version as deprecated. Tell whether it changed anything."""
        changed = await self._session.execute(
            text(
                """update extension_version set deprecated_at = now()
                   where id = cast(:version_id as uuid) and state = 'published' and deprecated_at is null returning id"""
            ),
            {"version_id": uuid_or_none(version_id)},
        )
        return changed.first() is not None

    async def find_loadable(self, content_hash: str) -> tuple[LoadableBundle, bool] | None:
        """Return what a load must check, pending versions included, and whether the hash is denied."""
        row = (await self._session.execute(_LOADABLE, {"content_hash": text_or_nothing(content_hash)})).mappings().first()
        if row is None:
            return None
        signers = tuple(AllowedSigner(trust_domain=domain, issuer=issuer, identity=identity) for domain, issuer, identity in row["signers"])
        bundle = LoadableBundle(
            content_hash=ContentHash(row["content_hash"]),
            extension_id=ExtensionId(row["extension_id"]),
            extension_name=row["extension_name"],
            version_id=VersionId(row["version_id"]),
            version=row["version"],
            runtime=row["runtime"],
            publisher_id=PublisherId(row["publisher_id"]),
            publisher=row["publisher"],
            manifest_digest=row["manifest_digest"],
            signers=signers,
        )
        return bundle, bool(row["denied"])

    async def is_denied(self, content_hash: str) -> bool:
        """Tell whether a content hash was revoked."""
        found = await self._session.execute(
            text("select 1 from extension_denylist where content_hash = :content_hash"), {"content_hash": text_or_nothing(content_hash)}
        )
        return found.first() is not None

    async def is_interface_served(self, extension_ref: str, content_hash: str) -> bool:
        """Tell whether any tenant's enabled install of a published version has this hash. Runs as a SECURITY DEFINER function."""
        parameters = {"ref": text_or_nothing(extension_ref), "content_hash": text_or_nothing(content_hash)}
        found = await self._session.execute(text("select extrunner_is_interface_served(:ref, :content_hash)"), parameters)
        return bool(found.scalar_one())

    async def _publisher_id(self, name: str) -> str:
        found = await self._session.execute(
            text("select id::text from extension_publisher where name = :name"), {"name": text_or_nothing(name)}
        )
        publisher_id: str | None = found.scalar_one_or_none()
        if publisher_id is None:
            raise RefusalError(Reason.NOT_FOUND, "There is no such publisher; ask the operator to create it.")
        return publisher_id

    async def _claim_name(self, new: NewVersion, publisher_id: str) -> str:
        """Return the extension's id with its row locked, so that claims of one name come one after the other."""
        row = (await self._session.execute(_LOCK_NAME, {"name": new.extension_name})).mappings().first()
        if row is not None and row["publisher_id"] != publisher_id and await self._is_abandoned(row["id"]):
            await self._session.execute(
                text("delete from extension_version where registry_id = cast(:id as uuid) and state = 'pending'"), {"id": row["id"]}
            )
            await self._session.execute(text("delete from extension_registry where id = cast(:id as uuid)"), {"id": row["id"]})
            row = None
        if row is None:
            await self._session.execute(
                _INSERT_NAME,
                {
                    "id": new_id(),
                    "publisher_id": publisher_id,
                    "publisher": new.publisher,
                    "name": new.extension_name,
                    "display_name": new.display_name,
                    "description": new.description,
                },
            )
            row = (await self._session.execute(_LOCK_NAME, {"name": new.extension_name})).mappings().one()
        if row["publisher_id"] != publisher_id:
            raise RefusalError(Reason.PUBLISHER_MISMATCH, "The extension's name belongs to another publisher; choose a name of your own.")
        return str(row["id"])

    async def _is_abandoned(self, extension_id: str) -> bool:
        found = await self._session.execute(_NAME_IS_ABANDONED, {"extension_id": extension_id, "stale": STALE_PENDING})
        return bool(found.scalar_one())

    async def _insert(self, new: NewVersion, extension_id: str) -> VersionRow:
        holder = (
            await self._session.execute(
                text("select 1 from extension_bundle where content_hash = :content_hash"), {"content_hash": new.content_hash}
            )
        ).first()
        if holder is not None:
            raise RefusalError(Reason.VERSION_EXISTS, "These bytes are already registered under another version.")
        version_id = new_id()
        await self._session.execute(
            _INSERT_VERSION,
            {
                "id": version_id,
                "extension_id": extension_id,
                "version": new.version,
                "version_order": version_order(new.version),
                "is_prerelease": is_prerelease(new.version),
                "runtime": new.runtime,
                "main_entry": new.main_entry,
                "api_endpoints": [dict(endpoint) for endpoint in new.api_endpoints],
                "ui": None if new.ui is None else dict(new.ui),
                "capabilities": sorted(set(new.capabilities)),
                "manifest": dict(new.manifest),
                "manifest_digest": new.manifest_digest,
                "sbom_ref": new.sbom_ref,
            },
        )
        await self._session.execute(
            _INSERT_BUNDLE,
            {
                "id": new_id(),
                "version_id": version_id,
                "content_hash": new.content_hash,
                "signature": new.signature,
                "storage_url": new.storage_url,
                "size_bytes": new.size_bytes,
                "trust_domain": new.signer.trust_domain,
                "signer_issuer": new.signer.issuer,
                "signer_identity": new.signer.identity,
                "verified_at": new.verified_at,
            },
        )
        row = await self._find(_BY_ID, version_id=version_id)
        if row is None:  # pragma: no cover - the row was written in this transaction
            raise RefusalError(Reason.INTERNAL, "The version could not be written.")
        return row

    async def _find(self, statement: TextClause, **parameters: object) -> VersionRow | None:
        mapping = (await self._session.execute(statement, parameters)).mappings().first()
        return None if mapping is None else version_row(mapping)

    @staticmethod
    def _check(new: NewVersion) -> None:
        if not is_extension_name(new.extension_name) or is_uuid(new.extension_name):
            raise RefusalError(Reason.INVALID_REQUEST, "The extension's name is not a reverse-domain name such as com.example.notes.")
        if not is_content_hash(new.content_hash):
            raise RefusalError(Reason.INVALID_REQUEST, 'The content hash is not "sha256:" and 64 lower-case hexadecimal digits.')
        try:
            version_order(new.version)
        except ValueError as exc:
            raise RefusalError(Reason.INVALID_REQUEST, "The version is not a semantic version such as 1.4.0.") from exc
