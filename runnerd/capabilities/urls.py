"""The one parser of the URLs that guests want to fetch.

The attack it stops (SSRF by disagreement): a URL that the check reads one way and the connection another:
"http://allowed.example@10.0.0.1", a backslash before the "@", "http://0x7f.1", "http://2130706433", "http://[fe80::1%25eth0]", fullwidth
digits, a trailing dot. What this parser returns is all that anybody behind it sees: scheme, host, port and path are passed on apart, and
whatever has more than one reading is refused rather than repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final
from urllib.parse import quote

import idna

from registry.domain.egress import is_address_like, is_host_pattern

MAX_URL_CHARACTERS: Final = 8_192
DEFAULT_PORT: Final = {"https": 443, "http": 80}
_URL = re.compile(r"([A-Za-z]+)://([^/?#]+)([^#]*)(?:#.*)?\Z", re.DOTALL)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
"""Other programs drop, or turn into "/", what stands here."""
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::([1-9][0-9]{0,4}))?\Z")
_NAMED = re.compile(r"([^:\[\]@%]+)(?::([1-9][0-9]{0,4}))?\Z")
_OTHER_DOTS = re.compile("[\u3002\uff0e\uff61]")
"""Label separators of IDNA besides ".": a name with one has two spellings."""
_MAX_PORT = 65_535
_PATH_CHARACTERS = "%/?:@!$&'()*+,;=-._~[]"


class UrlError(ValueError):
    """It is no URL that can be fetched; the text says why and repeats nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes."""

    scheme: str
    """"https" or "http"."""
    host: str
    """A name in lower case and ASCII, an IPv4 address in its one canonical spelling, or an IPv6 address without brackets."""
    port: int
    path: str
    """Path and query as sent, percent-encoded; begins with "/"."""

    @property
    def is_address(self) -> bool:
        """Whether the host is an address rather than a name."""
        return is_address_like(self.host)

    @property
    def authority(self) -> str:
        """Host and port as they are written in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"


def parse_url(text: str) -> Target:
    """Read an absolute http or https URL. A fragment is dropped: it is never sent.

    Raises:
        UrlError: it is none, or has more than one reading.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlError("the URL is too long")  # noqa: EM101, TRY003 - each text is used once
    if _FORBIDDEN.search(text):
        raise UrlError("the URL holds a blank, a control character or a backslash")  # noqa: EM101, TRY003
    match = _URL.match(text)
    if match is None:
        raise UrlError("this is no absolute URL")  # noqa: EM101, TRY003
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if scheme not in DEFAULT_PORT:
        raise UrlError("the scheme is neither https nor http")  # noqa: EM101, TRY003
    host, port = _authority(authority)
    before, _, query = rest.partition("?")
    # A query of nothing is none: not every reader keeps the mark.
    path = quote(rest if query else before, safe=_PATH_CHARACTERS)
    return Target(
        scheme=scheme,
        host=host,
        port=DEFAULT_PORT[scheme] if port is None else port,
        path=path if path.startswith("/") else f"/{path}",
    )


def _authority(text: str) -> tuple[str, int | None]:
    bracketed = _BRACKETED.match(text)
    match = bracketed or _NAMED.match(text)
    if match is None:
        raise UrlError("host and port are not in their plain form (no user, no zone, no port 0)")  # noqa: EM101, TRY003
    port = None if match[2] is None else int(match[2])
    if port is not None and port > _MAX_PORT:
        raise UrlError("there is no such port")  # noqa: EM101, TRY003
    return _address6(match[1]) if bracketed else _name(match[1]), port


def _address6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except AddressValueError as error:
        raise UrlError("the host is no IPv6 address") from error  # noqa: EM101, TRY003


def _name(text: str) -> str:
    host = text.lower()
    # SECURITY: of the text as written; the KELVIN SIGN, for one, becomes a plain "k" in lower case.
    if not text.isascii():
        if _OTHER_DOTS.search(text):
            raise UrlError("the host holds another dot than the plain one")  # noqa: EM101, TRY003
        try:
            # SECURITY: not UTS 46, which turns fullwidth digits into an address.
            host = idna.encode(text, std3_rules=True).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError) as error:
            raise UrlError("the host is no internationalised name") from error  # noqa: EM101, TRY003
    if is_address_like(host):
        # SECURITY: 0x7f.1, 0177.0.0.1, 2130706433 and 127.1 are addresses to many programs; only the canonical spelling is one here.
        try:
            return str(IPv4Address(host))
        except AddressValueError as error:
            raise UrlError("the host is an address in an unusual spelling") from error  # noqa: EM101, TRY003
    if host.startswith("*") or not is_host_pattern(host):
        raise UrlError("the host is no name (a trailing dot is none either)")  # noqa: EM101, TRY003
    return host
