"""Where an artifact comes from: the cache of this machine, another daemon of the fleet, or a compiler of our own, in this order.

Attack it stops (T1): native code of one bundle under the name of another. Whatever the source, an artifact leaves here only in sealed
memory, with a record that a trusted key signed for the bundle that was asked for, this engine, and these very bytes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal

from registry.domain.digests import ContentHash
from registry.domain.errors import RefusalError
from registry.domain.records import LoadableBundle
from runnerd.artifacts.cache import ArtifactCache
from runnerd.artifacts.compiler import ArtifactCompiler, Compilation, FetchComponent
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.observations import LoaderMetrics
from runnerd.artifacts.progress import Preparation
from runnerd.artifacts.records import ArtifactStatement, require_artifact, verify_artifact_record, write_artifact_record
from runnerd.artifacts.sealed import SealedFile
from runnerd.artifacts.shared import SharedArtifacts
from runnerd.engine.profile import BRIDGE_VERSION

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyArtifact:
    """A verified artifact, in memory that nobody can write to."""

    artifact: SealedFile
    statement: ArtifactStatement
    source: Literal["cache", "shared", "compiler"]
    compile_seconds: float | None = None
    """None where this daemon did not compile it."""


class ArtifactSources:
    """Finds and makes artifacts. Belongs to one event loop.

    Args:
        cache: of this machine.
        shared: the fleet's.
        compiler: makes them.
        signer: signs the records of what is made here.
        records: verifies records, whoever made them.
        fingerprint: of the engine.
        metrics: told what happens.
    """

    def __init__(  # noqa: PLR0913 - the loader hands over its parts once
        self,
        *,
        cache: ArtifactCache,
        shared: SharedArtifacts,
        compiler: ArtifactCompiler,
        signer: ArtifactSigner,
        records: ArtifactVerifier,
        fingerprint: str,
        metrics: LoaderMetrics,
    ) -> None:
        self._cache = cache
        self._shared = shared
        self._compiler = compiler
        self._signer = signer
        self._records = records
        self._fingerprint = fingerprint
        self._metrics = metrics

    async def find_cached(self, content_hash: ContentHash, *, used: bool = True) -> ReadyArtifact | None:
        """Return what the cache holds, if it is genuine; what is not is refused, counted and forgotten."""
        found = await asyncio.to_thread(self._cache.find, content_hash, used=used)
        if found is None:
            return None
        try:
            statement = verify_artifact_record(found.record, self._records, content_hash=content_hash, engine_fingerprint=self._fingerprint)
            require_artifact(statement, found.artifact)
        except RefusalError as refusal:
            self._metrics.verification(refusal.reason)
            _LOG.error("cached artifact rejected: %s", refusal.metadata.get("why", ""), extra={"content_hash": content_hash})
            await asyncio.to_thread(self._cache.discard, content_hash, found)
            return None
        return ReadyArtifact(artifact=found.artifact, statement=statement, source="cache")

    async def make(self, bundle: LoadableBundle, unpack: FetchComponent, preparation: Preparation) -> ReadyArtifact:
        """Take the artifact that another daemon left, or compile the component; keep it for the next start, and for the others.

        Args:
            bundle: what was admitted.
            unpack: fetches the component, once it is needed and its turn has come.
            preparation: told how far it is.

        Raises:
            RefusalError: whatever `unpack` and the compiler refuse.
        """
        content_hash = bundle.content_hash
        async with self._shared.turn(content_hash) as found:
            if found is not None:
                # With the record of who made it: should that key lose its trust, so does this copy.
                await self._keep(content_hash, found.artifact, found.record)
                return ReadyArtifact(artifact=found.artifact, statement=found.statement, source="shared")
            compilation = await self._compiler.compile(unpack, publisher=bundle.publisher_id, preparation=preparation)
            self._metrics.compiled(compilation.seconds)
            statement = self._state(content_hash, compilation)
            record = write_artifact_record(statement, self._signer)
            await self._keep(content_hash, compilation.artifact, record)
            self._shared.offer(content_hash, compilation.artifact, record)
        return ReadyArtifact(artifact=compilation.artifact, statement=statement, source="compiler", compile_seconds=compilation.seconds)

    async def aclose(self) -> None:
        """Stop what is left to be shared."""
        await self._shared.aclose()

    def _state(self, content_hash: ContentHash, compilation: Compilation) -> ArtifactStatement:
        # SECURITY: every fact is the daemon's own but the count of memories and the bridge's use, which can mislead only about the
        # component's own code; the hashes are of what was sent and of what came back, for the bundle that was asked for (T16).
        return ArtifactStatement(
            content_hash=content_hash,
            component_sha256=compilation.component_sha256,
            bridge_version=BRIDGE_VERSION,
            bridge_applied=compilation.bridge_applied,
            engine_fingerprint=self._fingerprint,
            artifact_sha256=compilation.artifact.sha256,
            artifact_bytes=compilation.artifact.size,
            memories=compilation.memories,
        )

    async def _keep(self, content_hash: ContentHash, artifact: SealedFile, record: bytes) -> None:
        try:
            await asyncio.to_thread(self._cache.store, content_hash, artifact, record)
        except OSError as error:
            # A full disk costs the next start a compilation, not this call its answer.
            _LOG.warning("artifact not cached: %s", error, extra={"content_hash": content_hash})
