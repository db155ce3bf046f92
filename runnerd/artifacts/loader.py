"""Load: the step from a content hash to something that runs or is served (T31).

Every load, warm cache or not, takes these steps:

1. the registry knows the content and has not revoked it;
2. the stored signature verifies against the current trust root, by a signer that its publisher has now;
3. an artifact record of this installation verifies for this bundle, this engine and these very bytes (T1), or the archive is
   fetched, checked against the hash and compiled again (`runnerd.artifacts.sources`).

A warm cache saves the download and the compilation, never a check. What is handed out lies in memory that nobody can write to.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry.bundles.layout import DEFAULT_LIMITS, BundleLimits
from registry.bundles.store import BundleStore
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB
from registry.domain.records import LoadableBundle
from registry.flights import SingleFlight, StillRunningError
from runnerd.artifacts.archives import ArchiveReader
from runnerd.artifacts.authority import Admission, LoadableResolver, LoadAuthority, SignatureVerifier
from runnerd.artifacts.cache import ArtifactCache, CacheEntry
from runnerd.artifacts.compiler import ArtifactCompiler
from runnerd.artifacts.failures import RecentFailures
from runnerd.artifacts.interface_store import InterfaceStore
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.loaded import CompiledExtension, InterfaceFile, InterfaceIndex, WarmOutcome
from runnerd.artifacts.observations import VERIFIED, LoaderMetrics
from runnerd.artifacts.progress import ProgressBoard
from runnerd.artifacts.records import InterfaceStatement, reject, verify_interface_record
from runnerd.artifacts.sealed import SealedFile
from runnerd.artifacts.shared import SharedArtifacts, SharingSettings
from runnerd.artifacts.sources import ArtifactSources, ReadyArtifact

__all__ = [
    "CompiledExtension",
    "ExtensionLoader",
    "InterfaceFile",
    "InterfaceIndex",
    "LoaderSettings",
    "WarmOutcome",
]

_LOG = logging.getLogger(__name__)
_UI_ONLY = "ui-only@1"
_MAX_INDEXES = 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """Where the loader keeps what it makes, and how much of it."""

    cache_folder: Path
    """Holds `artifacts/`, `ui/` and `scratch/`; 0700, on a disk with room for the two budgets and one archive."""
    engine_fingerprint: str
    """Of the engine that the workers run (`runnerd.engine.profile.engine_fingerprint`)."""
    loaded_bytes: int = 1024 * MIB
    """Artifacts kept in memory; those in use beyond that stay until they are no longer."""
    artifact_cache_bytes: int = 8192 * MIB
    interface_cache_bytes: int = 2048 * MIB
    max_artifact_bytes: int = 512 * MIB
    reverify_seconds: float = 24 * 3600.0
    """Signatures are verified again after this time, even where nothing is known to have changed."""
    bundle_limits: BundleLimits = DEFAULT_LIMITS
    sharing: SharingSettings = field(default_factory=SharingSettings)
    """Of artifacts among the daemons of a fleet."""


class ExtensionLoader:
    """Loads extensions. Belongs to one event loop, in the thread that lives as long as the daemon.

    Args:
        settings: folders and budgets.
        resolver: the registry's word on a content hash (`registry.services.resolution.Resolver`).
        store: where bundles lie.
        verifier: verifies signatures (`registry.provenance.verifier.BundleVerifier`); called in threads.
        compiler: makes artifacts.
        signer: signs records; its key never leaves this process.
        records: verifies records; knows the signer's public key, during a rotation the one before, and those of the fleet.
        metrics: told what happens.
        trust_generation: changes whenever the trust root does.
    """

    def __init__(  # noqa: PLR0913 - the composition root hands over its parts once
        self,
        settings: LoaderSettings,
        *,
        resolver: LoadableResolver,
        store: BundleStore,
        verifier: SignatureVerifier,
        compiler: ArtifactCompiler,
        signer: ArtifactSigner,
        records: ArtifactVerifier,
        metrics: LoaderMetrics,
        trust_generation: Callable[[], object] = int,
    ) -> None:
        self._settings = settings
        self._records = records
        self._metrics = metrics
        self._authority = LoadAuthority(
            resolver=resolver,
            store=store,
            verifier=verifier,
            metrics=metrics,
            trust_generation=trust_generation,
            reverify_seconds=settings.reverify_seconds,
        )
        self._cache = ArtifactCache(
            settings.cache_folder / "artifacts",
            fingerprint=settings.engine_fingerprint,
            max_bytes=settings.artifact_cache_bytes,
            max_artifact_bytes=settings.max_artifact_bytes,
        )
        self._sources = ArtifactSources(
            cache=self._cache,
            shared=SharedArtifacts(store, settings.sharing, fingerprint=settings.engine_fingerprint, records=records, metrics=metrics),
            compiler=compiler,
            signer=signer,
            records=records,
            fingerprint=settings.engine_fingerprint,
            metrics=metrics,
        )
        self._board = ProgressBoard(metrics)
        self._interfaces = InterfaceStore(settings.cache_folder / "ui", max_bytes=settings.interface_cache_bytes)
        self._archives = ArchiveReader(
            store=store,
            interfaces=self._interfaces,
            signer=signer,
            scratch=settings.cache_folder / "scratch",
            limits=settings.bundle_limits,
        )
        self._failures = RecentFailures()
        self._loaded: OrderedDict[ContentHash, ReadyArtifact] = OrderedDict()
        self._indexes: OrderedDict[ContentHash, InterfaceStatement] = OrderedDict()
        self._artifact_flights: SingleFlight[ContentHash, ReadyArtifact] = SingleFlight()
        self._interface_flights: SingleFlight[ContentHash, InterfaceStatement] = SingleFlight()

    async def load(self, content_hash: ContentHash, *, wait_seconds: float | None = None) -> CompiledExtension:
        """Return a verified extension that a worker can map.

        Args:
            content_hash: the bundle.
            wait_seconds: how long the caller can wait for a download and a compilation (half of what is left of its deadline);
                they go on when the time is over. None waits as long as it takes.

        Raises:
            RefusalError: what the registry refuses (HASH_DENIED, VERSION_NOT_FOUND, …), SIGNATURE_REJECTED, BUNDLE_CORRUPT,
                BUNDLE_UNAVAILABLE, INVALID_BUNDLE, COMPILE_REJECTED, OVERLOADED, INTERNAL; COMPILING where the time was too short;
                ENDPOINT_NOT_FOUND where the bundle has no server code.
        """
        admission = await self._admit(content_hash)  # (1), (2)
        if admission.bundle.runtime == _UI_ONLY:
            raise RefusalError(Reason.ENDPOINT_NOT_FOUND, "This extension is an interface only; it has no endpoints.")
        known = self._loaded.get(content_hash)
        if known is not None:
            self._loaded.move_to_end(content_hash)
            self._metrics.artifact_loaded("memory")
            return _extension(admission, known)
        loaded = await self._prepared(admission.bundle, wait_seconds)  # (3)
        # What was waited for may have been revoked meanwhile.
        return _extension(await self._admit(content_hash), loaded)

    async def warm(self, content_hash: ContentHash) -> WarmOutcome:
        """Make a content hash ready, its interface included, so that no user waits for a compiler.

        Raises:
            RefusalError: as `load`.
        """
        admission = await self._admit(content_hash)
        outcome = WarmOutcome(state="ui_only")
        if admission.bundle.runtime != _UI_ONLY:
            fresh = content_hash not in self._loaded
            loaded = await self._prepared(admission.bundle, None)
            seconds = loaded.compile_seconds if fresh else None
            outcome = WarmOutcome(state="cached") if seconds is None else WarmOutcome(state="compiled", compile_seconds=seconds)
        await self.interface(content_hash)
        return outcome

    async def list_cached(self) -> tuple[CacheEntry, ...]:
        """List what the disk holds for this engine, last used first, unverified; remove what only engines long gone could use."""
        await asyncio.to_thread(self._cache.prune)
        return await asyncio.to_thread(self._cache.recent)

    async def check(self, entry: CacheEntry) -> bool:
        """Take every step of a load for an artifact on disk, and keep it in memory for the first call.

        Nothing is compiled, nothing that is in memory makes room, and what a call loads meanwhile is left alone.

        Returns:
            False where memory has no room for it.

        Raises:
            RefusalError: what the registry refuses, SIGNATURE_REJECTED, BUNDLE_UNAVAILABLE.
        """
        content_hash = entry.content_hash
        if self._loaded_bytes() + entry.size > self._settings.loaded_bytes:
            return False
        await self._admit(content_hash)  # (1), (2)
        if content_hash not in self._loaded:
            ready = await self._sources.find_cached(content_hash, used=False)  # (3)
            if ready is not None and content_hash not in self._loaded:
                self._metrics.artifact_loaded("check")
                self._loaded[content_hash] = ready
                # Whatever a call asked for was used later than this.
                self._loaded.move_to_end(content_hash, last=False)
        return True

    async def interface(self, content_hash: ContentHash) -> InterfaceIndex:
        """Return the files of a verified bundle's interface; they lie on disk, intact when this process first looked.

        Readers hash what they open; a file that is not what its name says is reported with `discard_interface`.

        Raises:
            RefusalError: what the registry refuses, SIGNATURE_REJECTED, BUNDLE_CORRUPT, BUNDLE_UNAVAILABLE, INVALID_BUNDLE, INTERNAL.
        """
        admission = await self._admit(content_hash)
        statement = self._indexes.get(content_hash)
        if statement is None or not self._interfaces.has_index(content_hash):
            self._failures.check(content_hash)
            statement = await self._interface_flights.run(content_hash, lambda: self._find_interface(admission.bundle))
            admission = await self._admit(content_hash)
        files = {path: InterfaceFile(sha256=sha256, size=size) for path, (sha256, size) in statement.files.items()}
        return InterfaceIndex(bundle=admission.bundle, entry=statement.entry, files=files, folder=self._interfaces.folder)

    async def discard_interface(self, content_hash: ContentHash) -> None:
        """Forget an interface of which a file was found altered; the next `interface` writes it again from the archive."""
        self._metrics.verification(Reason.BUNDLE_CORRUPT)
        _LOG.error("interface discarded: a file on disk was altered", extra={"content_hash": content_hash})
        self._indexes.pop(content_hash, None)
        await asyncio.to_thread(self._interfaces.discard, content_hash)

    async def aclose(self) -> None:
        """Stop what runs, compilers included. Descriptors that are held elsewhere stay open."""
        await self._artifact_flights.aclose()
        await self._interface_flights.aclose()
        await self._sources.aclose()
        await self._authority.aclose()
        self._loaded.clear()

    async def _admit(self, content_hash: ContentHash) -> Admission:
        try:
            return await self._authority.admit(content_hash)
        except RefusalError as refusal:
            if refusal.row.retry_after_seconds is None:
                # Refused for good: its memory is of no use to anybody.
                self._loaded.pop(content_hash, None)
                self._indexes.pop(content_hash, None)
            raise

    async def _prepared(self, bundle: LoadableBundle, wait_seconds: float | None) -> ReadyArtifact:
        content_hash = bundle.content_hash
        known = self._loaded.get(content_hash)
        if known is not None:
            return known
        self._failures.check(content_hash)
        try:
            return await self._artifact_flights.run(content_hash, lambda: self._prepare(bundle), wait_seconds=wait_seconds)
        except StillRunningError as error:
            progress = self._board.describe(content_hash)
            raise RefusalError(
                Reason.COMPILING, "The extension is being prepared; try again in a few seconds.", metadata=progress
            ) from error

    async def _prepare(self, bundle: LoadableBundle) -> ReadyArtifact:
        with self._board.preparing(bundle) as preparation:
            ready = await self._sources.find_cached(bundle.content_hash)
            if ready is None:
                making = self._sources.make(bundle, lambda: self._unpack(bundle), preparation)
                ready = await self._remembering(bundle, making)
        self._metrics.artifact_loaded(ready.source)
        self._keep(bundle.content_hash, ready)
        return ready

    async def _unpack(self, bundle: LoadableBundle) -> SealedFile:
        unpacked = await self._archives.fetch(bundle, component=True)
        self._metrics.verification(VERIFIED)
        self._forget_interfaces(unpacked.evicted)
        self._keep_index(bundle.content_hash, unpacked.interface)
        if unpacked.component is None:
            raise RefusalError(Reason.INVALID_BUNDLE, "The bundle has no component.")
        return unpacked.component

    async def _find_interface(self, bundle: LoadableBundle) -> InterfaceStatement:
        statement = await self._interface_on_disk(bundle.content_hash)
        if statement is None:
            statement = await self._remembering(bundle, self._fetch_interface(bundle))
        self._keep_index(bundle.content_hash, statement)
        return statement

    async def _interface_on_disk(self, content_hash: ContentHash) -> InterfaceStatement | None:
        record = await asyncio.to_thread(self._interfaces.find_index, content_hash)
        if record is None:
            return None
        try:
            statement = verify_interface_record(record, self._records, content_hash=content_hash)
            if await asyncio.to_thread(self._interfaces.find_damaged, statement.files.values()) is not None:
                reject("a file of the interface is missing or altered")
        except RefusalError as refusal:
            self._metrics.verification(refusal.reason)
            _LOG.error("cached interface rejected: %s", refusal.metadata.get("why", ""), extra={"content_hash": content_hash})
            return None
        return statement

    async def _fetch_interface(self, bundle: LoadableBundle) -> InterfaceStatement:
        unpacked = await self._archives.fetch(bundle, component=False)
        self._metrics.verification(VERIFIED)
        self._forget_interfaces(unpacked.evicted)
        return unpacked.interface

    async def _remembering(self, bundle: LoadableBundle, work: Awaitable[T]) -> T:
        """Do `work` on an archive; count why it failed, and keep it in mind."""
        try:
            return await work
        except RefusalError as refusal:
            self._metrics.verification(refusal.reason)
            self._failures.remember(bundle.content_hash, refusal)
            raise

    def _keep(self, content_hash: ContentHash, loaded: ReadyArtifact) -> None:
        self._loaded[content_hash] = loaded
        self._loaded.move_to_end(content_hash)
        while len(self._loaded) > 1 and self._loaded_bytes() > self._settings.loaded_bytes:
            # Who holds it keeps its descriptor; it closes with the last holder.
            self._loaded.popitem(last=False)

    def _loaded_bytes(self) -> int:
        return sum(one.artifact.size for one in self._loaded.values())

    def _keep_index(self, content_hash: ContentHash, statement: InterfaceStatement) -> None:
        self._indexes[content_hash] = statement
        self._indexes.move_to_end(content_hash)
        while len(self._indexes) > _MAX_INDEXES:
            self._indexes.popitem(last=False)

    def _forget_interfaces(self, evicted: frozenset[ContentHash]) -> None:
        for content_hash in evicted:
            self._indexes.pop(content_hash, None)


def _extension(admission: Admission, loaded: ReadyArtifact) -> CompiledExtension:
    return CompiledExtension(bundle=admission.bundle, signer=admission.signer, artifact=loaded.artifact, statement=loaded.statement)
