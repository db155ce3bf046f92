"""From the stored archive to the component and the interface in it: one download, one descriptor, one reading.

Attack it stops (T31): hashing one copy and unpacking another. The archive goes into a file without a name, is hashed on the way,
and is unpacked from that same file; the component goes into memory, the interface's files into a draft that vanishes unless the
whole archive is genuine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from registry.bundles.layout import UI, WASM, BundleLimits
from registry.bundles.store import BundleStore, ObjectNotFoundError, download, object_keys
from registry.bundles.unpacking import BundleContents, BundleFile, read_bundle
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.records import LoadableBundle
from runnerd.artifacts.interface_store import InterfaceDraft, InterfaceStore
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.records import InterfaceStatement, write_interface_record
from runnerd.artifacts.sealed import SealedFile, new_memory_file, write_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What a genuine archive held."""

    component: SealedFile | None
    """None where it has no component, or it was not asked for."""
    interface: InterfaceStatement
    evicted: frozenset[ContentHash]
    """Bundles whose interfaces had to make room."""


class _Sink:
    """Sends each file where it belongs."""

    def __init__(self, draft: InterfaceDraft, component: int | None) -> None:
        self._draft = draft
        self._component = component

    def begin(self, path: str, size: int) -> Callable[[bytes], object] | None:
        del size
        if path == WASM and self._component is not None:
            descriptor = self._component
            return lambda data: write_all(descriptor, data)
        return self._draft.begin() if path.startswith(UI) else None

    def end(self, file: BundleFile) -> None:
        if file.path.startswith(UI):
            self._draft.end(file.sha256)


class ArchiveReader:
    """Fetches and unpacks archives.

    Args:
        store: where they lie.
        interfaces: where the files of interfaces go.
        signer: signs their indexes.
        scratch: folder for files without a name.
        limits: what an archive may hold.
    """

    def __init__(
        self, *, store: BundleStore, interfaces: InterfaceStore, signer: ArtifactSigner, scratch: Path, limits: BundleLimits
    ) -> None:
        self._store = store
        self._interfaces = interfaces
        self._signer = signer
        self._scratch = scratch
        self._limits = limits

    async def fetch(self, bundle: LoadableBundle, *, component: bool) -> Unpacked:
        """Download, check and unpack the archive of an admitted bundle; write its interface to disk.

        Raises:
            RefusalError: BUNDLE_CORRUPT where the stored bytes are not those of the hash, or their manifest is not the one of the
                registry; INVALID_BUNDLE or INVALID_MANIFEST; BUNDLE_UNAVAILABLE.
        """
        try:
            return await self._fetch(bundle, component=component)
        except OSError as error:
            raise RefusalError(Reason.INTERNAL, "The runner cannot write to its cache folder.") from error

    async def _fetch(self, bundle: LoadableBundle, *, component: bool) -> Unpacked:
        await asyncio.to_thread(self._scratch.mkdir, mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._scratch) as archive:
            try:
                found = await download(self._store, object_keys(bundle.content_hash).archive, archive, max_bytes=self._limits.packed_bytes)
            except ObjectNotFoundError as error:
                raise RefusalError(Reason.BUNDLE_UNAVAILABLE, "The bundle is missing from the store; publish it again.") from error
            if found != bundle.content_hash:
                raise RefusalError(Reason.BUNDLE_CORRUPT, "The stored archive is not the one that was verified; publish it again.")
            archive.seek(0)
            return await asyncio.to_thread(self._unpack, bundle, archive, component=component)

    def _unpack(self, bundle: LoadableBundle, archive: BinaryIO, *, component: bool) -> Unpacked:
        memory = new_memory_file("component") if component else None
        try:
            with self._interfaces.new_draft() as draft:
                contents = read_bundle(archive, _Sink(draft, memory), expected=bundle.content_hash, limits=self._limits)
                _check_manifest(bundle, contents)
                statement = _interface_of(bundle.content_hash, contents)
                record = write_interface_record(statement, self._signer)
                evicted = self._interfaces.commit(bundle.content_hash, draft, record)
            if memory is None or contents.wasm is None:
                return Unpacked(component=None, interface=statement, evicted=evicted)
            owned, memory = memory, None
            return Unpacked(component=SealedFile(owned), interface=statement, evicted=evicted)
        finally:
            if memory is not None:
                os.close(memory)


def _check_manifest(bundle: LoadableBundle, contents: BundleContents) -> None:
    # SECURITY: consent refers to the registry's manifest; another one in the archive must not be acted on (T32).
    if contents.manifest.digest != bundle.manifest_digest:
        raise RefusalError(Reason.BUNDLE_CORRUPT, "The archive's manifest is not the one that the registry holds; publish it again.")


def _interface_of(content_hash: ContentHash, contents: BundleContents) -> InterfaceStatement:
    ui = contents.manifest.ui
    return InterfaceStatement(
        content_hash=content_hash,
        entry=ui.entry.removeprefix(UI) if ui is not None else None,
        files={file.path.removeprefix(UI): (file.sha256, file.size) for file in contents.ui_files},
    )
