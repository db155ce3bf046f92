"""From an author's project to a folder that can be packed: the component by its language's toolchain, manifest and interface beside it.

A project holds `manifest.json`, `src/app.py` or `src/app.js` (neither for an interface alone) and optionally `ui/` and `sbom.spdx.json`.
Toolchains run in a folder of their own with an environment of their own, so that nothing of this machine gets into the component but
what the project holds. componentize-py and componentize-js do not give the same bytes twice; with a cache the same sources do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from registry.bundles.manifest import parse_manifest
from registry.bundles.packing import PACKER_VERSION, PackedBundle, pack_folder
from registry.bundles.unpacking import DiscardSink, read_bundle
from registry.cli.output import UnavailableError, UsageError
from registry.cli.rendering import visible_block

DEFAULT_WORLD: Final = "extrunner:host/extension@0.1.0"
MANIFEST: Final = "manifest.json"
COMPONENT: Final = Path("dist/main.wasm")
_SBOM: Final = "sbom.spdx.json"
_TIMEOUT_SECONDS: Final = 300
_JS_LIBRARY: Final = Path("node_modules/@bytecodealliance/componentize-js/src/componentize.js")
_JS_RUNNER: Final = Path(__file__).with_name("componentize.mjs")
# SECURITY: none of these may be linked: http opens egress, the others are host state an extension has no business with (RUNTIME §4).
_JS_DISABLED: Final = ("http", "random", "clocks", "stdio", "fetch-event")
_PACKAGE: Final = re.compile(r"^\s*package\s+([a-z][a-z0-9-]*:[a-z][a-z0-9-]*)(@[0-9A-Za-z.+-]+)?\s*;", re.MULTILINE)
_CACHE_FORMAT: Final = "1"


class Language(StrEnum):
    """What an extension's server code is written in."""

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    NONE = "none"
    """An interface only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """Where the tools of a build are.

    Args:
        wit: folder of the .wit files that define the world.
        world: full name of the world that the component is built against.
        node_modules: folder whose `node_modules` holds componentize-js; None looks in the project and the folders above it.
        cache: folder in which finished components are kept by the content of their sources; None keeps none.
    """

    wit: Path
    world: str = DEFAULT_WORLD
    node_modules: Path | None = None
    cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A folder ready to be packed."""

    folder: Path
    language: Language
    component_bytes: int
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The folders of one run of a toolchain."""

    sources: Path
    wit: Path
    target: Path
    scratch: Path


def find_wit() -> Path:
    """Return the folder of the world's definition that comes with this installation.

    Raises:
        UnavailableError: it is not installed.
    """
    # The daemon's package is located, not imported: the registry stands below it.
    spec = importlib.util.find_spec("runnerd")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        wit = Path(folder) / "capabilities" / "wit"
        if any(wit.glob("*.wit")):
            return wit
    message = "The definition of the guest world is not installed; name its folder with --wit."
    raise UnavailableError(message)


def language_of(project: Path) -> Language:
    """Tell the language of a project by its entry file.

    Raises:
        UsageError: it is no project, or has two entries.
    """
    if not (project / MANIFEST).is_file():
        message = f"{project} holds no {MANIFEST}; name the folder of an extension."
        raise UsageError(message)
    python, javascript = (project / "src" / "app.py").is_file(), (project / "src" / "app.js").is_file()
    if python and javascript:
        message = "The project has both src/app.py and src/app.js; keep one."
        raise UsageError(message)
    if python:
        return Language.PYTHON
    return Language.JAVASCRIPT if javascript else Language.NONE


def build(project: Path, output: Path, toolchain: Toolchain) -> Built:
    """Build `project` into `output`, which is replaced.

    Raises:
        RefusalError: INVALID_MANIFEST.
        UsageError: the project cannot be built as it is; the tool's own words are in the message.
        UnavailableError: a tool is missing.
    """
    started = time.monotonic()
    language = language_of(project)
    parse_manifest((project / MANIFEST).read_bytes())
    if output.resolve() in (project.resolve(), *project.resolve().parents):
        message = f"The output folder {output} would replace the project."
        raise UsageError(message)
    with tempfile.TemporaryDirectory(prefix="extctl-build-", dir=_plain_temporary_folder()) as scratch:
        staged = Path(scratch) / "bundle"
        staged.mkdir()
        cached = _stage_component(project, staged, language, toolchain, Path(scratch))
        shutil.copyfile(project / MANIFEST, staged / MANIFEST)
        if (project / _SBOM).is_file():
            shutil.copyfile(project / _SBOM, staged / _SBOM)
        if (project / "ui").is_dir():
            shutil.copytree(project / "ui", staged / "ui")
        _replace(staged, output)
    component = output / COMPONENT
    size = component.stat().st_size if component.is_file() else 0
    return Built(folder=output, language=language, component_bytes=size, cached=cached, seconds=time.monotonic() - started)


def pack(folder: Path, target: Path, *, cache: Path | None = None) -> PackedBundle:
    """Pack `folder` into `target`; with a cache, a folder that was packed before is not compressed again.

    Guarantee: either way the strict reader has read what lies at `target`.

    Raises:
        RefusalError: INVALID_BUNDLE or INVALID_MANIFEST.
        OSError: the folder cannot be read or the target cannot be written.
    """
    if cache is None:
        return pack_folder(folder, target)
    kept = cache / _digest_of([_CACHE_FORMAT, PACKER_VERSION, version("backports.zstd"), _digests(folder)]) / "bundle.tar.zst"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        pack_folder(folder, kept)
    shutil.copyfile(kept, target)
    with target.open("rb") as packed:
        return PackedBundle(contents=read_bundle(packed, DiscardSink()))


def _stage_component(project: Path, staged: Path, language: Language, toolchain: Toolchain, scratch: Path) -> bool:
    """Put the component into `staged`; tell whether it came from the cache."""
    if language is Language.NONE:
        return False
    target = staged / COMPONENT
    target.parent.mkdir()
    kept = None if toolchain.cache is None else toolchain.cache / _cache_key(project, language, toolchain) / "main.wasm"
    if kept is not None and kept.is_file():
        shutil.copyfile(kept, target)
        return True
    work = _Work(sources=scratch / "src", wit=scratch / "wit", target=target, scratch=scratch)
    shutil.copytree(project / "src", work.sources, ignore=shutil.ignore_patterns("__pycache__", "node_modules", ".*"))
    _lay_out_wit(toolchain, work.wit)
    if language is Language.PYTHON:
        _componentize_python(work, toolchain.world)
    else:
        _componentize_javascript(work, toolchain.world, find_componentize_js(project, toolchain.node_modules))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with _written_whole(kept) as partial:
            shutil.copyfile(target, partial)
    return False


def _componentize_python(work: _Work, world: str) -> None:
    tool = Path(sys.executable).with_name("componentize-py")
    found = str(tool) if tool.is_file() else shutil.which("componentize-py")
    if found is None:
        message = "componentize-py is not installed; `pip install componentize-py` next to extctl."
        raise UnavailableError(message)
    arguments = ["-q", "-d", str(work.wit), "-w", world, "componentize", "app", "-p", str(work.sources), "-o", str(work.target)]
    _run([found, *arguments], work.scratch, work.scratch)


def _componentize_javascript(work: _Work, world: str, tool: Path) -> None:
    node = shutil.which("node")
    if node is None:
        message = "Node.js is not installed; JavaScript extensions are built with it."
        raise UnavailableError(message)
    # NOTE: the tool splits its own command line at spaces, so sources and working folder lie where no path has one.
    arguments = [str(tool), "app.js", str(work.wit), world, str(work.target), *_JS_DISABLED]
    _run([node, str(_JS_RUNNER), *arguments], work.sources, work.scratch)


def find_componentize_js(project: Path, node_modules: Path | None) -> Path:
    """Return the module of componentize-js.

    Raises:
        UnavailableError: it is installed in none of the places that are looked at.
    """
    start = project.resolve()
    for folder in [node_modules] if node_modules is not None else [start, *start.parents]:
        if (folder / _JS_LIBRARY).is_file():
            return (folder / _JS_LIBRARY).resolve()
    message = "componentize-js is not installed; `npm install @bytecodealliance/componentize-js` in the project, or name --toolchain."
    raise UnavailableError(message)


def _run(command: list[str], folder: Path, scratch: Path) -> None:
    """Run a tool in a group of its own, with nothing of this environment but where programs are."""
    (scratch / "venv/lib/python3.11/site-packages").mkdir(parents=True, exist_ok=True)
    # VIRTUAL_ENV: componentize-py would otherwise look for the author's libraries in our own environment.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LC_ALL": "C.UTF-8",
        "VIRTUAL_ENV": str(scratch / "venv"),
    }
    with subprocess.Popen(  # noqa: S603 - fixed programs, no shell
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as tool:
        try:
            said, _ = tool.communicate(timeout=_TIMEOUT_SECONDS)
        except BaseException as error:
            os.killpg(tool.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"The toolchain did not end within {_TIMEOUT_SECONDS} seconds."
                raise UsageError(message) from error
            raise
    if tool.returncode != 0:
        words = said.decode("utf-8", "replace").strip()
        message = f"The toolchain refused the project:\n{visible_block(words[-4000:])}"
        raise UsageError(message)


def _lay_out_wit(toolchain: Toolchain, target: Path) -> None:
    """Lay the packages out as both toolchains read them: the world's package on top, the others under `deps`."""
    wanted = toolchain.world.partition("/")[0]
    target.mkdir()
    found = False
    for file in sorted(toolchain.wit.glob("*.wit")):
        declared = _PACKAGE.search(file.read_text("utf-8"))
        name = declared.group(1) if declared else ""
        found = found or name == wanted
        folder = target if name == wanted else target / "deps" / file.stem
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
    if not found:
        message = f"{toolchain.wit} does not define the package {wanted} of the world {toolchain.world}."
        raise UsageError(message)


def _cache_key(project: Path, language: Language, toolchain: Toolchain) -> str:
    """Digest everything that decides what the component does: sources, world, and the tool's version."""
    sources = [_digests(project / "src"), _digests(toolchain.wit)]
    return _digest_of([_CACHE_FORMAT, language, _tool_version(project, language, toolchain), toolchain.world, sources])


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below `folder`, by its name there."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _digest_of(identity: object) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _tool_version(project: Path, language: Language, toolchain: Toolchain) -> str:
    if language is Language.PYTHON:
        try:
            return version("componentize-py")
        except PackageNotFoundError:
            return "unknown"
    package = find_componentize_js(project, toolchain.node_modules).parents[1] / "package.json"
    return str(json.loads(package.read_text("utf-8"))["version"])


def _plain_temporary_folder() -> str:
    """Return a temporary folder whose path has no space (see `_componentize_javascript`)."""
    usual = tempfile.gettempdir()
    return "/tmp" if " " in usual else usual  # noqa: S108 - the folder made in it is private


def _replace(staged: Path, output: Path) -> None:
    """Put `staged` where `output` was; what stood there goes only when the new one is complete."""
    if output.exists() and not (output / MANIFEST).is_file() and any(output.iterdir()):
        message = f"{output} is not empty and no earlier build; choose another output folder."
        raise UsageError(message)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copytree(staged, partial)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


@contextmanager
def _written_whole(file: Path) -> Iterator[Path]:
    """Hand out a path beside `file` that takes its place when the body ends well."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
