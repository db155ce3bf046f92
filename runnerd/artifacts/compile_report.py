"""What a compiler child says about its work: written by the child, read by the daemon, trusted by nobody.

It imports next to nothing, so that the child can import it before it is confined.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from registry.bundles.text import is_unshowable

MAX_REPORT_BYTES = 16 * 1024
MAX_MESSAGE_CHARACTERS = 500

EXIT_COMPILED = 0
EXIT_REJECTED = 3
EXIT_FAILED = 4

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_NUMBER = 1 << 40


class CompileVerdict(StrEnum):
    """How a compilation ended, as the child says."""

    COMPILED = "compiled"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """One line of JSON on the child's standard output."""

    verdict: CompileVerdict
    message: str = ""
    """Why it was rejected, or compiled without the bridge; as read by the daemon, it is `printable`."""
    component_sha256: str = ""
    engine_fingerprint: str = ""
    bridge_applied: bool = False
    memories: int = 0
    artifact_bytes: int = 0

    def to_json(self) -> bytes:
        """Write the report."""
        return json.dumps(asdict(self)).encode("ascii")


class CompileReportError(ValueError):
    """The child's output is not a report."""


def read_report(data: bytes) -> CompileReport:
    """Read what a child wrote.

    Raises:
        CompileReportError: it is anything but exactly a report.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = "the output is not JSON"
        raise CompileReportError(message) from error
    if not isinstance(parsed, dict) or not _is_report(parsed):
        message = "the output is JSON but no report"
        raise CompileReportError(message)
    return CompileReport(
        verdict=CompileVerdict(parsed["verdict"]),
        message=printable(parsed["message"]),
        component_sha256=parsed["component_sha256"],
        engine_fingerprint=parsed["engine_fingerprint"],
        bridge_applied=parsed["bridge_applied"],
        memories=parsed["memories"],
        artifact_bytes=parsed["artifact_bytes"],
    )


def printable(text: str) -> str:
    """Return foreign text as one line that shows what it holds: without control and direction characters, cut."""
    shown = "".join(" " if character in "\n\t" else character for character in text[: 4 * MAX_MESSAGE_CHARACTERS])
    shown = "".join(character for character in shown if not is_unshowable(character))
    return " ".join(shown.split())[:MAX_MESSAGE_CHARACTERS]


def _is_report(parsed: dict[str, Any]) -> bool:
    if set(parsed) != set(CompileReport.__slots__):
        return False
    digest, fingerprint = parsed["component_sha256"], parsed["engine_fingerprint"]
    return all(
        (
            parsed["verdict"] in tuple(CompileVerdict),
            isinstance(parsed["message"], str),
            isinstance(digest, str) and (not digest or _DIGEST.match(digest) is not None),
            isinstance(fingerprint, str) and len(fingerprint) <= 128,  # noqa: PLR2004 - longer than any
            isinstance(parsed["bridge_applied"], bool),
            *(_is_number(parsed[name]) for name in ("memories", "artifact_bytes")),
        )
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER
