"""A text whose byte order is the precedence of semantic versions (semver.org §11), so that the database can sort them."""

from __future__ import annotations

import re

MAX_VERSION_CHARACTERS = 64
_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"(?P<release>{_NUMBER}\.{_NUMBER}\.{_NUMBER})(?:-(?P<pre>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?\Z"
)
_RELEASE = "~"  # Above every pre-release: "~" is greater than the "0" and "1" that begin an identifier.


def is_version(text: str) -> bool:
    """Tell whether `text` is a semantic version of at most 64 characters."""
    return len(text) <= MAX_VERSION_CHARACTERS and _SEMVER.match(text) is not None


def version_order(version: str) -> str:
    """Return a key for `version`; keys compare bytewise as the versions compare by precedence (build metadata does not count).

    Raises:
        ValueError: `version` is not a semantic version.
    """
    match = _SEMVER.match(version) if len(version) <= MAX_VERSION_CHARACTERS else None
    if match is None:
        message = f"not a semantic version of at most {MAX_VERSION_CHARACTERS} characters: {version[:80]!r}"
        raise ValueError(message)
    release = " ".join(_number(part) for part in match["release"].split("."))
    before = match["pre"]
    return f"{release} {_RELEASE}" if before is None else f"{release} " + " ".join(_identifier(part) for part in before.split("."))


def is_prerelease(version: str) -> bool:
    """Tell whether `version` is a pre-release."""
    match = _SEMVER.match(version)
    return match is not None and match["pre"] is not None


def _number(digits: str) -> str:
    # Numbers without leading zeros compare by their length first, whatever their size.
    return f"{len(digits):02d}{digits}"


def _identifier(part: str) -> str:
    return f"0{_number(part)}" if part.isdigit() else f"1{part}"
