"""What may be in a bundle, and what its files may be called.

Attack: a name that means one file to the verifier and another to a file system, a browser or a reviewer (absolute, climbing, hidden,
differing only by case or by Unicode form, holding a control or a right-to-left override), or a file where nobody looks for code.
Names are therefore refused, never repaired, and outside `ui/` the list of files is closed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from registry.bundles.manifest import Manifest
from registry.bundles.text import is_unshowable, show
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB

MANIFEST = "manifest.json"
WASM = "dist/main.wasm"
SBOM = "sbom.spdx.json"
UI = "ui/"

_FILES = frozenset({MANIFEST, WASM, SBOM})
_FOLDERS = frozenset({"dist/", UI})

MAX_NAME_BYTES = 255
"""What a ustar header can hold at most: 155 of prefix, a slash, 99 or 100 of name."""

_FORBIDDEN_CHARACTERS = frozenset('\\:*?"<>|')
"""Separators and wildcards of one system or another."""

_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}
)
"""Names that open a device on Windows, with any extension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLimits:
    """What a bundle may hold at most (DESIGN §7)."""

    packed_bytes: int = 200 * MIB
    """Length of the archive."""
    unpacked_bytes: int = 512 * MIB
    """Length of the tar stream inside, headers included."""
    files: int = 10_000
    """Files and folders together."""
    wasm_bytes: int = 64 * MIB


DEFAULT_LIMITS = BundleLimits()


def refused(problem: str, *, name: str | None = None) -> RefusalError:
    """Return the refusal of an archive; `name` is the entry that is at fault."""
    if name is None:
        return RefusalError(Reason.INVALID_BUNDLE, f"The bundle is refused: {problem}.")
    shown = show(name)
    return RefusalError(Reason.INVALID_BUNDLE, f"The bundle is refused at {shown}: {problem}.", metadata={"entry": shown})


def refuse(problem: str, *, name: str | None = None) -> NoReturn:
    """Raise what `refused` returns."""
    raise refused(problem, name=name)


def check_name(name: str) -> str:
    """Check the name of an entry; a folder's ends with a slash.

    Returns:
        The key under which it collides with other names: folded by case and Unicode form, without the trailing slash.

    Raises:
        RefusalError: INVALID_BUNDLE, with the rule that the name breaks.
    """
    problem = _problem_of_name(name)
    if problem is not None:
        raise refused(problem, name=name)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.removesuffix("/")).casefold())


def check_place(name: str) -> None:
    """Check that the layout of bundles has a place for this entry.

    Raises:
        RefusalError: INVALID_BUNDLE.
    """
    if name in _FILES or name in _FOLDERS or name.startswith(UI):
        return
    refuse(f"only {MANIFEST}, {WASM}, {SBOM} and files below {UI} may be in a bundle", name=name)


def check_contents(manifest: Manifest, names: Collection[str]) -> None:
    """Check that the files are those that the manifest speaks of.

    Raises:
        RefusalError: INVALID_BUNDLE.
    """
    if manifest.runtime == "ui-only@1":
        if WASM in names:
            refuse(f"runtime ui-only@1 has no {WASM}; remove the file or name another runtime")
    elif WASM not in names:
        refuse(f"runtime {manifest.runtime} needs {WASM}")
    wanted: list[tuple[str, str]] = []
    if manifest.ui is not None:
        wanted.append(("ui.entry", manifest.ui.entry))
        wanted.extend((f"ui.routes[{i}].iframePath", route.iframe_path) for i, route in enumerate(manifest.ui.routes))
    if manifest.sbom is not None:
        wanted.append(("sbom", manifest.sbom))
    for place, path in wanted:
        if path not in names:
            refuse(f"{place} of the manifest names a file that is not in the bundle", name=path)


def _problem_of_name(name: str) -> str | None:
    if not name:
        return "an entry has no name"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"its name is longer than {MAX_NAME_BYTES} bytes"
    if name.startswith("/"):
        return "its name is absolute"
    if any(is_unshowable(character) for character in name):
        return "its name holds control, format or unassigned characters"
    if unicodedata.normalize("NFC", name) != name:
        return "its name is not in Unicode normal form C"
    if not _FORBIDDEN_CHARACTERS.isdisjoint(name):
        return 'its name holds one of \\ : * ? " < > |'
    for segment in name.removesuffix("/").split("/"):
        problem = _problem_of_segment(segment)
        if problem is not None:
            return problem
    return None


def _problem_of_segment(segment: str) -> str | None:
    if not segment:
        return "its name has an empty segment"
    if segment in {".", ".."}:
        return "its name holds a . or .. segment"
    if segment.startswith("."):
        return "hidden files are not accepted"
    if segment.endswith((".", " ")) or segment.startswith(" "):
        return "a segment of its name begins with a space or ends with a dot or space"
    if any(character != " " and unicodedata.category(character) == "Zs" for character in segment):
        return "its name holds a space other than U+0020"
    if segment.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "its name is that of a device"
    return None
