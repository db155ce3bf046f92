"""Which file a request names: `/ext-ui/{extension_id}/{content_hash}/{path}` in its one spelling.

The attack this stops: two readers of one path that disagree (a proxy that collapses `..`, a server that decodes `%2f`) let a page
reach what its frame rule does not cover. A path that is not in normal form is refused, never rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.domain.digests import is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import is_extension_name, is_uuid
from registry.domain.paths import PathError, check_normal_form, segments_of

PREFIX = b"/ext-ui/"
MAX_RAW_PATH_BYTES = 2_048
"""Longest path of a bundle is 255 bytes; every byte may be percent-encoded, and the prefix takes about 200."""
MAX_SEGMENTS = 34


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
    # Latin-1 keeps each byte a character; those that are not ASCII are no part of a path.
    path = "/" + raw.decode("latin-1")
    try:
        check_normal_form(path)
    except PathError as error:
        raise RefusalError(Reason.INVALID_REQUEST, f"Send the path in normal form: {error}.") from error
    segments = segments_of(path)
    if len(segments) > MAX_SEGMENTS:
        raise RefusalError(Reason.INVALID_REQUEST, f"The path must have at most {MAX_SEGMENTS} segments.")
    if any(segment.startswith(".") for segment in segments):
        raise RefusalError(Reason.INVALID_REQUEST, "No segment of the path may begin with a dot.")
    return "/".join(segments)
