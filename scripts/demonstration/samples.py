"""The example extensions of this repository, built from source, packed and signed. Kept in .cache by the content of their sources."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.bundles.packing import PackedBundle
from registry.cli.building import Language, Toolchain, build, find_wit, pack
from registry.domain.digests import ContentHash

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = ROOT / "examples"
CACHE: Final = ROOT / ".cache"
TOOLCHAIN: Final = CACHE / "toolchain"
PYTHON: Final = "notes-python"
JAVASCRIPT: Final = "notes-javascript"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One packed example."""

    example: str
    """Its folder below examples/."""
    folder: Path
    """What was packed: manifest, component, interface."""
    archive: Path
    language: Language
    packed: PackedBundle
    cached: bool
    """Whether the component came from the cache."""

    @property
    def name(self) -> str:
        """Name of the extension."""
        return self.packed.contents.manifest.name

    @property
    def version(self) -> str:
        """Version of the extension."""
        return self.packed.contents.manifest.version

    @property
    def publisher(self) -> str:
        """Publisher of the extension."""
        return self.packed.contents.manifest.publisher

    @property
    def content_hash(self) -> ContentHash:
        """Hash of the archive."""
        return self.packed.content_hash


def javascript_is_available() -> bool:
    """Tell whether JavaScript extensions can be built here: Node.js, and scripts/build_guest_toolchain has run."""
    installed = TOOLCHAIN / "node_modules" / "@bytecodealliance" / "componentize-js"
    return shutil.which("node") is not None and installed.is_dir()


def build_sample(example: str, work: Path, *, manifest: bytes | None = None, projects: Path = EXAMPLES) -> Sample:
    """Build and pack an example into `work`; about ten seconds the first time, a fraction of one from the cache.

    Args:
        example: folder below `projects`.
        work: folder to write into.
        manifest: replaces the example's manifest, for a version that differs.
        projects: where the project is.

    Raises:
        UsageError, UnavailableError, RefusalError: as the building and packing of any project.
    """
    project = projects / example
    folder, archive = work / example, work / f"{example}.tar.zst"
    tools = Toolchain(wit=find_wit(), node_modules=TOOLCHAIN, cache=CACHE / "guests")
    work.mkdir(parents=True, exist_ok=True)
    # One at a time for each example: whoever waits finds the result in the cache.
    with exclusive(CACHE / f"{example}.lock"):
        built = build(project, folder, tools)
        if manifest is not None:
            (folder / "manifest.json").write_bytes(manifest)
        packed = pack(folder, archive, cache=CACHE / "bundles")
    return Sample(example=example, folder=folder, archive=archive, language=built.language, packed=packed, cached=built.cached)


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Hold the lock that `file` stands for; the file stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
