"""Artifacts that the daemons of a fleet leave for each other in the object store.

They lie at `compiled/<engine fingerprint>/<digits of the bundle>.cwasm`, each with its `.record.json`.

Attack it stops (T1): whoever can write to the store puts native code there, a genuine artifact under another bundle's name, or anything
of any length. Nothing of it is believed: the record must be signed by a key that this daemon trusts, for the bundle that was asked for and
for this engine, before a byte of the artifact is fetched; the artifact goes into a memory file, never longer than the record says, is
sealed, and must then be the one of the record. Whatever else lies there is refused, counted, logged and left alone, and the daemon
compiles for itself. Objects are only ever created, so a bad one stays until an operator removes it: it costs the fleet the sharing of that
one artifact, and nobody anything else.

A store that fails or hangs costs a bounded time, and then is not asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from registry.bundles.store import BundleStore, ObjectNotFoundError
from registry.domain.digests import ContentHash, hex_of
from registry.domain.errors import RefusalError
from runnerd.artifacts.claims import STALE_SECONDS, Claims
from runnerd.artifacts.keys import ArtifactVerifier
from runnerd.artifacts.observations import LoaderMetrics
from runnerd.artifacts.records import MAX_ARTIFACT_RECORD_BYTES, ArtifactStatement, reject, require_artifact, verify_artifact_record
from runnerd.artifacts.sealed import SealedFile, new_memory_file, read_all, write_all

_LOG = logging.getLogger(__name__)
_ARTIFACT_TYPE = "application/octet-stream"
_RECORD_TYPE = "application/json"
_MAX_OFFERS = 16
"""Artifacts that wait to be shared; each keeps its memory until then. What comes beyond is not shared."""
_BACK_OFF_SECONDS = 30.0
_POLL_SECONDS = 1.0
_CLOSING_SECONDS = 2.0
"""How long a daemon that stops goes on leaving what it has made."""


class Sharing(StrEnum):
    """Whether a daemon takes part."""

    OFF = "off"
    READ = "read"
    """Takes what others left, leaves nothing."""
    READ_WRITE = "read-write"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSettings:
    """How a daemon takes part."""

    sharing: Sharing = Sharing.OFF
    max_artifact_bytes: int = 512 * 1024 * 1024
    transfer_seconds: float = 30.0
    """Until one artifact must be there, or in the store."""
    wait_seconds: float = 300.0
    """How long another daemon's compilation is waited for at most, whatever it says about itself."""
    stale_seconds: float = STALE_SECONDS
    """After which a claim that was not renewed belongs to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedArtifact:
    """An artifact of another daemon, verified for the bundle that was asked for."""

    artifact: SealedFile
    statement: ArtifactStatement
    record: bytes


class _NotSharedError(Exception):
    """Nothing can be shared for this bundle now; the daemon is on its own."""


class SharedArtifacts:
    """The shared artifacts of one engine. Belongs to one event loop.

    Args:
        store: the object store.
        settings: how to take part.
        fingerprint: of the engine.
        records: verifies records: the fleet's keys.
        metrics: told what happens.
    """

    def __init__(
        self, store: BundleStore, settings: SharingSettings, *, fingerprint: str, records: ArtifactVerifier, metrics: LoaderMetrics
    ) -> None:
        self._store = store
        self._settings = settings
        self._fingerprint = fingerprint
        self._records = records
        self._metrics = metrics
        self._claims = Claims(store, stale_seconds=settings.stale_seconds)
        self._offers: deque[tuple[ContentHash, SealedFile, bytes]] = deque()
        self._offering: asyncio.Task[None] | None = None
        self._silent_until = 0.0

    @contextlib.asynccontextmanager
    async def turn(self, content_hash: ContentHash) -> AsyncIterator[SharedArtifact | None]:
        """Yield what another daemon left for the bundle, or None: then it is this daemon's turn to make it.

        While one daemon of the fleet makes it, the others wait here, for as long as it shows that it is alive. What the block makes is
        given to `offer`; where it fails instead, the next daemon has its turn.
        """
        found = await self._seek(content_hash)
        try:
            yield found
        finally:
            if not any(offered == content_hash for offered, _, _ in self._offers):
                await self._release(content_hash)

    async def _seek(self, content_hash: ContentHash) -> SharedArtifact | None:
        claim = self._key(content_hash, ".claim")
        give_up = time.monotonic() + self._settings.wait_seconds
        try:
            while self._settings.sharing is not Sharing.OFF and time.monotonic() >= self._silent_until:
                found = await self._find(content_hash)
                if found is not None:
                    return found
                if self._settings.sharing is Sharing.READ or await self._claim(claim):
                    self._metrics.shared_artifact("absent")
                    return None
                if time.monotonic() >= give_up:
                    self._metrics.shared_artifact("waited_in_vain")
                    return None
                await asyncio.sleep(_POLL_SECONDS)
        except _NotSharedError:
            pass
        finally:
            self._claims.forget(claim)
        return None

    async def _claim(self, key: str) -> bool:
        try:
            async with self._answering():
                return await self._claims.take(key)
        except RefusalError as refusal:
            # Refused for good. Whatever it is about a claim, it is no failure of the bundle that is loaded.
            raise self._unavailable(refusal.public_detail) from refusal

    async def _release(self, content_hash: ContentHash) -> None:
        with contextlib.suppress(_NotSharedError):
            async with self._answering():
                await self._claims.release(self._key(content_hash, ".claim"))

    def offer(self, content_hash: ContentHash, artifact: SealedFile, record: bytes) -> None:
        """Leave an artifact of this daemon for the others, in the background; a failure is counted and harms nobody."""
        if self._settings.sharing is not Sharing.READ_WRITE:
            return
        if len(self._offers) >= _MAX_OFFERS:
            self._metrics.shared_artifact("dropped")
            return
        self._offers.append((content_hash, artifact, record))
        if self._offering is None or self._offering.done():
            self._offering = asyncio.get_running_loop().create_task(self._offer_all())

    async def aclose(self) -> None:
        """Leave what is being offered for a moment, then stop; claims that are still held become stale."""
        if self._offering is not None:
            await asyncio.wait({self._offering}, timeout=_CLOSING_SECONDS)
            self._offering.cancel()
            await asyncio.gather(self._offering, return_exceptions=True)
        self._offers.clear()
        await self._claims.aclose()

    async def _find(self, content_hash: ContentHash) -> SharedArtifact | None:
        """Fetch and verify what lies there; None where nothing does.

        1. The record is signed by a key of the fleet, for this bundle and this engine.
        2. The artifact is fetched, not a byte more than the record says.
        3. It is sealed, and is the one of the record.

        Raises:
            _NotSharedError: the store does not answer, or what lies there was refused.
        """
        try:
            async with self._answering():
                record = await self._store.read(self._key(content_hash, ".record.json"), MAX_ARTIFACT_RECORD_BYTES)
                statement = verify_artifact_record(  # (1)
                    record, self._records, content_hash=content_hash, engine_fingerprint=self._fingerprint
                )
                artifact = await self._fetch(content_hash, statement.artifact_bytes)  # (2)
            require_artifact(statement, artifact)  # (3)
        except ObjectNotFoundError:
            return None
        except RefusalError as refusal:
            self._metrics.shared_artifact("rejected")
            self._metrics.verification(refusal.reason)
            _LOG.error(
                "shared artifact refused: %s", refusal.metadata.get("why", refusal.public_detail), extra={"content_hash": content_hash}
            )
            raise _NotSharedError from refusal
        self._metrics.shared_artifact("found")
        return SharedArtifact(artifact=artifact, statement=statement, record=record)

    async def _fetch(self, content_hash: ContentHash, size: int) -> SealedFile:
        if not 0 < size <= self._settings.max_artifact_bytes:
            reject("the shared artifact is larger than any")
        unowned = [new_memory_file("artifact")]
        try:
            received = 0
            async with self._store.open(self._key(content_hash, ".cwasm")) as chunks:
                async for chunk in chunks:
                    received += len(chunk)
                    if received > size:
                        reject("the shared artifact is longer than its record says")
                    write_all(unowned[0], chunk)
            # Taken over by the thread itself, which may never run where the time is over first.
            return await asyncio.to_thread(lambda: SealedFile(unowned.pop()))
        except ObjectNotFoundError:
            reject("a shared record has no artifact")
        finally:
            for descriptor in unowned:
                os.close(descriptor)

    async def _offer_all(self) -> None:
        while self._offers:
            content_hash, artifact, record = self._offers[0]
            result = "not_stored"
            try:
                if time.monotonic() >= self._silent_until:
                    with contextlib.suppress(_NotSharedError, RefusalError):
                        async with self._answering():
                            result = await self._put(content_hash, artifact, record)
            finally:
                # Whatever the store made of it: an offer that stayed would renew its claim for ever, and others would wait.
                self._metrics.shared_artifact(result)
                self._offers.popleft()
                await self._release(content_hash)

    async def _put(self, content_hash: ContentHash, artifact: SealedFile, record: bytes) -> str:
        """Create both objects, the artifact first: a record never promises what is not there.

        Where an artifact lies there already without being ours, a record of ours would promise something else: none is written.
        """
        if await self._store.stat(self._key(content_hash, ".record.json")) is not None:
            return "present"
        # Bytes, not the path of the descriptor: a thread that outlives its time would open whatever file has that number by then.
        source = await asyncio.to_thread(read_all, artifact.fileno(), size=artifact.size)
        key = self._key(content_hash, ".cwasm")
        if not await self._store.put_if_absent(key, source, content_type=_ARTIFACT_TYPE) and not await self._is_stored(key, artifact):
            _LOG.error("another artifact lies where this one belongs in the object store", extra={"content_hash": content_hash})
            return "occupied"
        created = await self._store.put_if_absent(self._key(content_hash, ".record.json"), record, content_type=_RECORD_TYPE)
        return "stored" if created else "present"

    async def _is_stored(self, key: str, artifact: SealedFile) -> bool:
        """Whether the object is this very artifact: left by a daemon that stopped before it wrote its record."""
        digest, received = hashlib.sha256(), 0
        try:
            async with self._store.open(key) as chunks:
                async for chunk in chunks:
                    received += len(chunk)
                    if received > artifact.size:
                        return False
                    digest.update(chunk)
        except ObjectNotFoundError:
            # Taken away again between the two looks, by whoever can write there.
            return False
        return digest.hexdigest() == artifact.sha256

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Bound what the block waits for the store; where it fails, do not ask it again for a while."""
        try:
            async with asyncio.timeout(self._settings.transfer_seconds):
                yield
        except (TimeoutError, OSError) as error:
            raise self._unavailable(str(error) or "it took too long") from error
        except RefusalError as refusal:
            if refusal.row.retry_after_seconds is None:
                raise
            raise self._unavailable(" ".join(getattr(refusal, "__notes__", ())) or refusal.public_detail) from refusal

    def _unavailable(self, why: str) -> _NotSharedError:
        self._silent_until = time.monotonic() + _BACK_OFF_SECONDS
        self._metrics.shared_artifact("unavailable")
        _LOG.warning("the object store shares no artifacts: %s", why)
        return _NotSharedError()

    def _key(self, content_hash: ContentHash, suffix: str) -> str:
        return f"compiled/{self._fingerprint}/{hex_of(content_hash)}{suffix}"
