"""Publishing: from a stream of bytes and a signature to a version that tenants can install.

Attacks and accidents: bytes that nobody signed, signed by somebody else, or changed between check and use; a name taken from its owner; a
publish that dies half way and leaves something visible, or burns the version number. So nothing is written before everything about the
bytes is verified, nothing is visible before bytes and signature are stored, and whatever fails takes its traces back: the
upload lies in a file without a name, which ends with the process, and the pending row is deleted. Objects that a failed
publish already stored stay: they are whole, named by their hash, and another publish of the same bytes may already count on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog

from registry.bundles.layout import DEFAULT_LIMITS, SBOM, WASM, BundleLimits
from registry.bundles.store import ARCHIVE_TYPE, MANIFEST_TYPE, SIGNATURE_TYPE, BundleStore, ObjectNotFoundError, object_keys
from registry.bundles.unpacking import BundleContents, DiscardSink, read_bundle
from registry.database import Database
from registry.domain.digests import ContentHash, from_hex
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExtensionId, VersionId
from registry.domain.limits import MAX_SIGNATURE_BYTES
from registry.domain.records import AllowedSigner, LoadableBundle
from registry.provenance.verifier import BundleVerifier, VerifiedSignature
from registry.repositories.audit import AuditRepository
from registry.repositories.publishers import PublisherRepository
from registry.repositories.versions import PUBLISHED, NewVersion, VersionRepository, VersionRow

_log = structlog.get_logger(__name__)

DEFERRED: Final = "deferred"
"""`compile` of a version that no runner has compiled yet; the first call or the next warm-up will."""

_FAULTS_OF_THE_BUNDLE: Final = frozenset(
    {
        Reason.COMPILE_REJECTED,
        Reason.INVALID_BUNDLE,
        Reason.INVALID_MANIFEST,
        Reason.SIGNATURE_REJECTED,
        Reason.HASH_DENIED,
        Reason.BUNDLE_CORRUPT,
    }
)
"""What a runner may say about a bundle that must not be published. Whatever else goes wrong there is the runner's own trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmOutcome:
    """How a runner made a content hash ready."""

    state: str
    """"cached", "compiled" or "ui_only"."""
    compile_seconds: float = 0.0


Warm = Callable[[ContentHash], Awaitable[WarmOutcome]]
"""Asks a runner to verify and compile; raises `RefusalError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishingLimits:
    """What publishing may cost at a time."""

    bundle: BundleLimits = DEFAULT_LIMITS
    concurrent: int = 4
    """Publishes at a time; each may hold an archive on disk. One more is refused."""
    concurrent_per_actor: int = 2
    """Of those, by one actor: who sends slowly must not keep everybody else from publishing."""
    receive_seconds: float = 600.0
    """From the first byte to the last."""
    warm_seconds: float = 180.0
    """After which a version is published without waiting for the runner any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """What was published."""

    extension_id: ExtensionId
    extension_name: str
    publisher: str
    version_id: VersionId
    version: str
    content_hash: ContentHash
    manifest_digest: str
    size_bytes: int
    runtime: str
    capabilities: tuple[str, ...]
    signer: AllowedSigner
    production: bool
    """False: signed under a development root."""
    signed_at: datetime
    published_at: datetime | None
    created: bool
    """False: the same bytes were published already, and nothing changed."""
    compile: str
    """"cached", "compiled", "ui_only" or "deferred"."""
    compile_seconds: float = 0.0


class PublishingService:
    """Publishes bundles. Belongs to one event loop; several processes may publish at once.

    Args:
        database: of role ext_admin.
        store: where archives, signatures and manifests are kept; written to.
        verifier: decides about signatures; called in threads.
        work_dir: a folder for uploads, 0700; nothing in it has a name.
        warm: asks a runner to compile what is about to be published; None where there is none.
        limits: what publishing may cost.
    """

    def __init__(  # noqa: PLR0913 - the parts it is composed of, each named
        self,
        *,
        database: Database,
        store: BundleStore,
        verifier: BundleVerifier,
        work_dir: Path,
        warm: Warm | None,
        limits: PublishingLimits | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._verifier = verifier
        self._work_dir = work_dir
        self._warm = warm
        self._limits = limits or PublishingLimits()
        self._running: Counter[str] = Counter()

    async def publish(self, archive: AsyncIterator[bytes], signature: bytes, *, actor: str) -> PublishedVersion:
        """Publish an archive.

        1. The bytes are received, counted and hashed.
        2. They are a bundle in canonical form, with a valid manifest.
        3. The publisher that the manifest names exists, and one of its signers signed these bytes.
        4. Name and version are claimed, or found published with the same bytes; the hash is not revoked.
        5. Archive, signature and manifest are stored, each created only if absent.
        6. A runner verifies and compiles it; one that cannot be reached is not waited for.
        7. The version becomes visible.

        Args:
            archive: the bytes, in any pieces.
            signature: the sigstore bundle, JSON.
            actor: who asks, for the audit log. Being allowed to publish says nothing about being the publisher: the signature does.

        Raises:
            RefusalError: PAYLOAD_TOO_LARGE, DEADLINE_EXCEEDED (1); INVALID_BUNDLE, INVALID_MANIFEST (2); NOT_FOUND (publisher),
                SIGNATURE_REJECTED (3); PUBLISHER_MISMATCH, VERSION_EXISTS, HASH_DENIED (4); BUNDLE_UNAVAILABLE (5); COMPILE_REJECTED (6);
                OVERLOADED, REGISTRY_UNAVAILABLE. Nothing is visible then, and the same version can be published again.
        """
        if self._running.total() >= self._limits.concurrent or self._running[actor] >= self._limits.concurrent_per_actor:
            raise RefusalError(Reason.OVERLOADED, "Too many bundles are being published; try again.")
        self._running[actor] += 1
        try:
            # SECURITY: one file from here to the store, without a name: nobody can put another in its place (T31).
            with await asyncio.to_thread(self._open_upload) as upload:
                return await self._publish(upload, archive, signature, actor)
        finally:
            self._running[actor] -= 1
            if not self._running[actor]:
                del self._running[actor]

    def _open_upload(self) -> BinaryIO:
        self._work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._work_dir)

    async def _publish(self, upload: BinaryIO, archive: AsyncIterator[bytes], signature: bytes, actor: str) -> PublishedVersion:
        content_hash = await self._receive(archive, upload)
        contents = await asyncio.to_thread(self._read, upload, content_hash)
        signers, verified = await self._verify(contents, signature)
        async with self._database.session() as session:  # (4) The name.
            claimed = await VersionRepository(session).claim(_new_version(contents, verified))
        if claimed.state == PUBLISHED:
            # SECURITY: any signer of now: one of them must not put his signature in the place of another's, and take it along when he goes.
            await self._store_objects(upload, contents, signature, signers)
            return _published(claimed, verified, await self._warm_up(content_hash), created=False)
        try:
            await self._store_objects(upload, contents, signature, [verified.signer])
            warmed = await self._warm_up(content_hash)
            row = await self._make_visible(claimed, verified, actor)
        except BaseException:
            await asyncio.shield(self._take_back(claimed.version_id))
            raise
        return _published(row, verified, warmed, created=True)

    async def _receive(self, archive: AsyncIterator[bytes], upload: BinaryIO) -> ContentHash:
        # (1) Bytes.
        digest = hashlib.sha256()
        received = 0
        maximum = self._limits.bundle.packed_bytes
        try:
            async with asyncio.timeout(self._limits.receive_seconds):
                async for chunk in archive:
                    received += len(chunk)
                    if received > maximum:
                        raise RefusalError(Reason.PAYLOAD_TOO_LARGE, f"The archive is longer than {maximum} bytes; make it smaller.")
                    digest.update(chunk)
                    await asyncio.to_thread(_keep, upload, chunk)
        except TimeoutError as exc:
            raise RefusalError(Reason.DEADLINE_EXCEEDED, "The archive did not arrive in time; send it again.") from exc
        return from_hex(digest.hexdigest())

    def _read(self, upload: BinaryIO, content_hash: ContentHash) -> BundleContents:
        # (2) Form.
        try:
            upload.flush()
        except OSError as exc:
            raise _no_room() from exc
        upload.seek(0)
        return read_bundle(upload, DiscardSink(), expected=content_hash, limits=self._limits.bundle)

    async def _verify(self, contents: BundleContents, signature: bytes) -> tuple[Sequence[AllowedSigner], VerifiedSignature]:
        # (3) Publisher and signature.
        async with self._database.session() as session:
            publisher = await PublisherRepository(session).find(contents.manifest.publisher)
        if publisher is None:
            raise RefusalError(
                Reason.NOT_FOUND,
                "The publisher that the manifest names does not exist; correct manifest.json or ask the operator to create it.",
                metadata={"publisher": contents.manifest.publisher},
            )
        verified = await asyncio.to_thread(
            self._verifier.verify, content_hash=contents.content_hash, bundle_json=signature, signers=publisher.signers
        )
        return publisher.signers, verified

    async def _store_objects(self, upload: BinaryIO, contents: BundleContents, signature: bytes, keep: Sequence[AllowedSigner]) -> None:
        # (5) Objects.
        keys = object_keys(contents.content_hash)
        # The open file by its descriptor: it has no other name.
        source = Path(f"/proc/self/fd/{upload.fileno()}")
        if not await self._store.put_if_absent(keys.archive, source, content_type=ARCHIVE_TYPE):
            found = await self._store.stat(keys.archive)
            if found is not None and found.size != contents.packed_bytes:
                raise RefusalError(Reason.BUNDLE_CORRUPT, "The store holds other bytes under this hash; tell the operator.")
        if not await self._store.put_if_absent(keys.signature, signature, content_type=SIGNATURE_TYPE):
            await self._renew_signature(contents.content_hash, signature, keep)
        await self._store.put_if_absent(keys.manifest, contents.manifest.canonical_json, content_type=MANIFEST_TYPE)

    async def _renew_signature(self, content_hash: ContentHash, signature: bytes, keep: Sequence[AllowedSigner]) -> None:
        """Keep the signature that is stored if it is a good one by one of `keep`; put the new one in its place otherwise.

        An earlier attempt may have stored one of a signer who may not sign any more, or under a root that is gone.
        """
        key = object_keys(content_hash).signature
        try:
            stored = await self._store.read(key, MAX_SIGNATURE_BYTES)
            await asyncio.to_thread(self._verifier.verify, content_hash=content_hash, bundle_json=stored, signers=keep)
        except ObjectNotFoundError:
            pass
        except RefusalError as refusal:
            if refusal.reason not in {Reason.SIGNATURE_REJECTED, Reason.BUNDLE_CORRUPT}:
                raise
            await self._store.delete(key)
        else:
            return
        await self._store.put_if_absent(key, signature, content_type=SIGNATURE_TYPE)

    async def _warm_up(self, content_hash: ContentHash) -> WarmOutcome:
        # (6) Compilation.
        if self._warm is None:
            return WarmOutcome(state=DEFERRED)
        try:
            async with asyncio.timeout(self._limits.warm_seconds):
                return await self._warm(content_hash)
        except RefusalError as refusal:
            if refusal.reason in _FAULTS_OF_THE_BUNDLE:
                raise
            _log.warning("publish_not_warmed", content_hash=content_hash, reason=refusal.reason)
        except Exception as exc:  # noqa: BLE001 (a runner that fails must not keep a good version from being published)
            _log.warning("publish_not_warmed", content_hash=content_hash, reason=type(exc).__name__)
        return WarmOutcome(state=DEFERRED)

    async def _make_visible(self, claimed: VersionRow, verified: VerifiedSignature, actor: str) -> VersionRow:
        # (7) Visibility.
        async with self._database.session() as session:
            row = await VersionRepository(session).mark_published(claimed.version_id)
            await AuditRepository(session).record(
                actor=actor,
                action="version.publish",
                subject=f"{row.extension_name}@{row.version}",
                detail={"content_hash": row.content_hash, "publisher": row.publisher, **asdict(verified.signer)},
            )
        return row

    async def _take_back(self, version_id: VersionId) -> None:
        try:
            async with self._database.session() as session:
                await VersionRepository(session).delete_pending(version_id)
        except RefusalError as refusal:
            # A pending row that stays is seen by nobody, and the next publish of this version replaces it.
            _log.warning("pending_version_left_behind", version_id=version_id, reason=refusal.reason)


class StoredSignatureCheck:
    """Verifies the stored signature of what is about to be installed, as of now; `InstallService` takes one.

    Args:
        store: where the signatures lie.
        verifier: decides about them; called in threads.
    """

    def __init__(self, store: BundleStore, verifier: BundleVerifier) -> None:
        self._store = store
        self._verifier = verifier

    async def __call__(self, bundle: LoadableBundle) -> None:
        """Check.

        Raises:
            RefusalError: SIGNATURE_REJECTED, BUNDLE_UNAVAILABLE (also where the signature is missing), BUNDLE_CORRUPT.
        """
        try:
            stored = await self._store.read(object_keys(bundle.content_hash).signature, MAX_SIGNATURE_BYTES)
        except ObjectNotFoundError as exc:
            raise RefusalError(Reason.BUNDLE_UNAVAILABLE, "The signature of this version cannot be found; tell the operator.") from exc
        await asyncio.to_thread(self._verifier.verify, content_hash=bundle.content_hash, bundle_json=stored, signers=bundle.signers)


def _keep(upload: BinaryIO, chunk: bytes) -> None:
    try:
        upload.write(chunk)
    except OSError as exc:
        raise _no_room() from exc


def _no_room() -> RefusalError:
    return RefusalError(Reason.OVERLOADED, "There is no room for the archive; try again.")


def _new_version(contents: BundleContents, verified: VerifiedSignature) -> NewVersion:
    manifest = contents.manifest
    keys = object_keys(contents.content_hash)
    document: dict[str, Any] = json.loads(manifest.canonical_json)
    paths = {file.path for file in contents.files}
    return NewVersion(
        publisher=manifest.publisher,
        extension_name=manifest.name,
        version=manifest.version,
        runtime=manifest.runtime,
        main_entry=WASM if contents.wasm is not None else "",
        api_endpoints=[asdict(endpoint) for endpoint in manifest.to_endpoints()],
        ui=document.get("ui"),
        capabilities=manifest.capabilities,
        manifest=document,
        manifest_digest=manifest.digest,
        sbom_ref=SBOM if SBOM in paths else None,
        content_hash=contents.content_hash,
        size_bytes=contents.packed_bytes,
        storage_url=keys.archive,
        signature=keys.signature,
        signer=verified.signer,
        verified_at=datetime.now(UTC),
    )


def _published(row: VersionRow, verified: VerifiedSignature, warmed: WarmOutcome, *, created: bool) -> PublishedVersion:
    return PublishedVersion(
        extension_id=row.extension_id,
        extension_name=row.extension_name,
        publisher=row.publisher,
        version_id=row.version_id,
        version=row.version,
        content_hash=row.content_hash,
        manifest_digest=row.manifest_digest,
        size_bytes=row.size_bytes,
        runtime=row.runtime,
        capabilities=row.capabilities,
        signer=verified.signer,
        production=verified.production,
        signed_at=verified.signed_at,
        published_at=row.published_at,
        created=created,
        compile=warmed.state,
        compile_seconds=warmed.compile_seconds,
    )
