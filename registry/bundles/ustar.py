"""The one spelling of a tar header that a bundle may hold.

Attack: tar readers read the payload of PAX and GNU extension records whole before they yield a member, follow base-256
numbers, and disagree with each other about names and sizes (T24). So there is exactly one header for a given name, kind and
size, the one that `encode` writes; `decode` rebuilds it from what it read and compares every byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.bundles.layout import refuse, refused

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks end the archive; nothing follows them, not even the padding that tar programs write."""

_FILE = b"0"
_FOLDER = b"5"
_NAME_BYTES = 100
_PREFIX_BYTES = 155
_CHECKSUM = slice(148, 156)
_OCTAL = frozenset(b"01234567")

_REFUSED_TYPES = {
    b"x": "PAX extension headers are not accepted",
    b"g": "PAX extension headers are not accepted",
    b"X": "PAX extension headers are not accepted",
    b"L": "GNU extension headers are not accepted",
    b"K": "GNU extension headers are not accepted",
    b"S": "GNU extension headers are not accepted",
    b"V": "GNU extension headers are not accepted",
    b"D": "GNU extension headers are not accepted",
    b"M": "GNU extension headers are not accepted",
    b"N": "GNU extension headers are not accepted",
    b"1": "links are not accepted",
    b"2": "links are not accepted",
    b"3": "devices and pipes are not accepted",
    b"4": "devices and pipes are not accepted",
    b"6": "devices and pipes are not accepted",
    b"7": "only regular files and folders are accepted",
    b"\0": "a regular file has type 0, not NUL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TarEntry:
    """One header: a file, or a folder, whose name ends with a slash."""

    name: str
    size: int
    """Bytes of content; 0 for a folder."""

    @property
    def is_folder(self) -> bool:
        """Tell a folder from a file."""
        return self.name.endswith("/")

    @property
    def padding(self) -> int:
        """Zero bytes between the content and the next header."""
        return -self.size % BLOCK


def encode(entry: TarEntry) -> bytes:
    """Return the header block of an entry.

    Raises:
        RefusalError: INVALID_BUNDLE if the name does not fit.
    """
    prefix, name = _split(entry.name)
    header = bytearray(BLOCK)
    header[0 : len(name)] = name
    header[100:108] = b"0000755\0" if entry.is_folder else b"0000644\0"
    header[108:124] = b"0000000\0" * 2
    header[124:136] = b"%011o\0" % entry.size
    header[136:148] = b"00000000000\0"
    header[_CHECKSUM] = b"        "
    header[156:157] = _FOLDER if entry.is_folder else _FILE
    header[257:265] = b"ustar\x0000"
    header[329:345] = b"0000000\0" * 2
    header[345 : 345 + len(prefix)] = prefix
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


def decode(block: bytes) -> TarEntry:
    """Read a header block, which must be byte for byte what `encode` writes.

    Raises:
        RefusalError: INVALID_BUNDLE; nothing after the header has been read by then.
    """
    kind = block[156:157]
    if kind not in {_FILE, _FOLDER}:
        raise refused(_REFUSED_TYPES.get(kind, "only regular files and folders are accepted"))
    entry = TarEntry(name=_name(block), size=_size(block))
    # SECURITY: this comparison is the wall. Whatever a field could be made to mean elsewhere, here it has one spelling.
    if entry.is_folder != (kind == _FOLDER) or encode(entry) != block:
        refuse("its header is not in canonical form; pack the folder with extctl", name=entry.name)
    return entry


def _name(block: bytes) -> str:
    name = block[0:_NAME_BYTES].rstrip(b"\0")
    prefix = block[345 : 345 + _PREFIX_BYTES].rstrip(b"\0")
    raw = prefix + b"/" + name if prefix else name
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        problem = "a name is not UTF-8"
        raise refused(problem) from exc


def _size(block: bytes) -> int:
    digits = block[124:135]
    if block[124] & 0x80:
        refuse("base-256 numbers are not accepted")
    if not _OCTAL.issuperset(digits):
        refuse("a size is not in canonical form")
    return int(digits, 8)


def _split(path: str) -> tuple[bytes, bytes]:
    """Divide a name between the two fields of a header: at the last slash that leaves a prefix that fits."""
    raw = path.encode("utf-8")
    if len(raw) <= _NAME_BYTES:
        return b"", raw
    at = raw.rfind(b"/", 0, min(_PREFIX_BYTES + 1, len(raw) - 1))
    if at <= 0 or len(raw) - at - 1 > _NAME_BYTES:
        refuse("its name is too long for the fields of a tar header; shorten the last segment or the folders", name=path)
    return raw[:at], raw[at + 1 :]
