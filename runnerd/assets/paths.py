"""Which file a request names: `/ext-ui/{extension_id}/{content_hash}/{path}` in its one spelling.

The attack this stops: two readers of one path that disagree (a proxy that collapses `..`, a server that decodes `%2f`) let a page
reach what its frame rule does not cover. A path that is not in normal form is refused, never rewritten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from registry.domain.digests import is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import is_extension_name, is_uuid

PREFIX = b"/ext-ui/"
MAX_RAW_PATH_BYTES = 2_048
"""Longest path of a bundle is 255 bytes; every byte may be percent-encoded, and the prefix takes about 200."""
MAX_SEGMENTS = 34

_SEGMENT = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*\Z")
"""RFC 3986 `pchar`: what else arrives is not a path."""
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NEVER_ENCODED = _UNRESERVED | frozenset(b"/\\") | frozenset(range(0x20)) | {0x7F}
"""Encoded dots, letters, separators and control bytes serve only to be read differently by somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetPath:
    """One file of one version's interface."""

    extension_id: str
    content_hash: str
    path: str
    """Decoded, relative; empty for the interface's root."""

    @property
    def may_be_route(self) -> bool:
        """Whether the path could be a client-side route: its last segment has no file extension."""
        return "." not in self.path.rpartition("/")[2]


def parse(raw_path: bytes) -> AssetPath:
    """Read the path of a request as it came over the wire.

    Raises:
        RefusalError: ASSET_NOT_FOUND where the path lies outside `/ext-ui/` or names no extension and version in their one spelling;
            INVALID_REQUEST where it is not in normal form.
    """
    if not raw_path.startswith(PREFIX):
        raise RefusalError(Reason.ASSET_NOT_FOUND, "Only /ext-ui/{extension_id}/{content_hash}/{path} is served here.")
    if len(raw_path) > MAX_RAW_PATH_BYTES:
        raise RefusalError(Reason.INVALID_REQUEST, f"The path must have at most {MAX_RAW_PATH_BYTES} bytes.")
    extension, _, rest = raw_path[len(PREFIX) :].partition(b"/")
    content_hash, slash, path = rest.partition(b"/")
    extension_id, version = _plain(extension), _plain(content_hash)
    if not slash or not (is_uuid(extension_id) or is_extension_name(extension_id)) or not is_content_hash(version):
        detail = "Name the extension by its id and the version by sha256: and 64 lower-case hexadecimal digits, then / and a path."
        raise RefusalError(Reason.ASSET_NOT_FOUND, detail)
    return AssetPath(extension_id=extension_id, content_hash=version, path=_file_path(path))


def _plain(segment: bytes) -> str:
    return segment.decode("ascii", "replace")


def _file_path(raw: bytes) -> str:
    segments = raw.split(b"/")
    if len(segments) > MAX_SEGMENTS:
        raise RefusalError(Reason.INVALID_REQUEST, f"The path must have at most {MAX_SEGMENTS} segments.")
    last = len(segments) - 1
    return "/".join(_decoded(segment, may_be_empty=number == last) for number, segment in enumerate(segments))


def _decoded(segment: bytes, *, may_be_empty: bool) -> str:
    # SECURITY: nothing here is repaired. Each rule refuses a spelling that a proxy or a browser may read as another path.
    if not segment and not may_be_empty:
        raise RefusalError(Reason.INVALID_REQUEST, "The path must not contain an empty segment.")
    if segment.startswith(b"."):
        raise RefusalError(Reason.INVALID_REQUEST, "No segment of the path may begin with a dot.")
    if not _SEGMENT.match(segment):
        raise RefusalError(Reason.INVALID_REQUEST, "The path contains a character that must be percent-encoded.")
    if any(int(digits, 16) in _NEVER_ENCODED for digits in _ENCODED.findall(segment)):
        detail = "The path percent-encodes a character that must not be: letters, digits, dots, separators and control characters."
        raise RefusalError(Reason.INVALID_REQUEST, detail)
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as exc:
        raise RefusalError(Reason.INVALID_REQUEST, "The percent-decoded path must be UTF-8.") from exc
