"""What the loader hands out: proof that a content hash was verified, in a form that can run or be served.

`BundleBlob → VerifiedSignature → CompiledExtension`: nobody but the loader makes these, so holding one means that the
steps of a load (see `runnerd.artifacts.loader`) passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from registry.domain.digests import ContentHash
from registry.domain.records import LoadableBundle
from runnerd.artifacts.records import ArtifactStatement
from runnerd.artifacts.sealed import SealedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledExtension:
    """A verified, compiled extension that a worker can map.

    The sealed memory file stays open for as long as anybody holds this object; send `artifact.fileno()` to a worker and keep
    the object until the worker has answered for it.
    """

    bundle: LoadableBundle
    """The facts of the registry under which it was verified."""
    signer: str
    """Identity that signed the bundle."""
    artifact: SealedFile
    """Native code in a memory file that nobody can write to any more."""
    statement: ArtifactStatement
    """What the artifact record says, signed by this installation."""

    @property
    def content_hash(self) -> ContentHash:
        """Hash of the bundle's archive."""
        return self.bundle.content_hash

    @property
    def memories(self) -> int:
        """Linear memories that one instance has together; the memory cap is divided among them."""
        return self.statement.memories

    @property
    def bridged(self) -> bool:
        """Whether it was composed with the bridge."""
        return self.statement.bridge_applied


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmOutcome:
    """How a content hash became ready."""

    state: Literal["cached", "compiled", "ui_only"]
    compile_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceFile:
    """One file of an interface, stored under the name of its own digest."""

    sha256: str
    """64 lower-case hexadecimal digits."""
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceIndex:
    """The interface of one verified bundle: which path is which file."""

    bundle: LoadableBundle
    entry: str | None
    """Path of the page to begin with, below `ui/`; None where the manifest names none."""
    files: Mapping[str, InterfaceFile]
    """Path below `ui/`, without leading slash → file."""
    folder: Path
    """Where the files lie: `<folder>/<first two digits>/<sha256>`. Readers hash what they open before they serve it."""

    @property
    def content_hash(self) -> ContentHash:
        """Hash of the bundle's archive."""
        return self.bundle.content_hash
