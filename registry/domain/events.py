"""What extensions publish: the topic an event gets, what it may hold, and how deep events may cause events (T26).

Attacks it stops: an extension that forges a topic of the host or of another extension, so that subscribers act on it (every topic lies
under the name of whoever publishes); two extensions that answer each other's events until every quota is used up (an event knows how many
events led to it, and no event is deeper than four).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from registry.domain.limits import MIB

MAX_DEPTH: Final = 4
"""An event that no event led to has depth 1."""
MAX_DATA_BYTES: Final = 256 * 1024
MAX_TOPIC_CHARACTERS: Final = 256
"""As the guest gives it; the extension's name comes in front."""
MAX_KEY_CHARACTERS: Final = 128
MAX_CONTENT_TYPE_CHARACTERS: Final = 256
ROOT: Final = "ext"
"""Under it lies what extensions publish. No topic of the host begins with it."""

_TOPIC: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}(\.[a-z0-9][a-z0-9_-]{0,63})*\Z")
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - RFC 9110, not a secret
_PARAMETER: Final = rf'[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*")'
_CONTENT_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(?:{_PARAMETER}){{0,8}}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLimits:
    """What one install may publish."""

    data_bytes: int = MAX_DATA_BYTES
    """Of one event."""
    per_minute: int = 600
    per_day: int = 10_000
    bytes_per_day: int = 64 * MIB


DEFAULT_EVENT_LIMITS: Final = EventLimits()


class EventError(ValueError):
    """A topic, type or key that is not accepted; the text says which rule."""


def topic_of(extension_name: str, topic: str) -> str:
    """Return the topic under which `topic` of an extension is published: "ext.{extension name}.{topic}".

    A topic that has this prefix already is taken as it is: it cannot name anybody else's. Any other that begins with "ext." is refused.

    Raises:
        EventError: it breaks a rule.
    """
    own = f"{ROOT}.{extension_name}."
    bare = topic.removeprefix(own)
    if len(bare) > MAX_TOPIC_CHARACTERS or not _TOPIC.match(bare):
        message = f"a topic is at most {MAX_TOPIC_CHARACTERS} characters: segments of a-z, 0-9, _ and -, joined by dots"
        raise EventError(message)
    if bare.partition(".")[0] == ROOT:
        message = f"a topic that begins with {ROOT}. names somebody; only {own} is this extension's"
        raise EventError(message)
    return own + bare


def other_owners(extension_name: str, full_topic: str) -> list[str]:
    """Return the names of extensions that would own `full_topic`, if they exist, rather than the extension of this name.

    Names have dots as topics have: the topic "notes.added" of com.acme reads like "added" of com.acme.notes. It belongs to the longest
    name of an extension that it begins with.
    """
    segments = full_topic.removeprefix(f"{ROOT}.{extension_name}.").split(".")
    return [".".join((extension_name, *segments[:count])) for count in range(1, len(segments))]


def checked_content_type(content_type: str) -> str:
    """Return a media type as it is.

    Raises:
        EventError: it is none, or too long.
    """
    if len(content_type) > MAX_CONTENT_TYPE_CHARACTERS or not _CONTENT_TYPE.match(content_type):
        message = "the content type is no media type of RFC 9110, or too long"
        raise EventError(message)
    return content_type


def checked_key(key: str | None) -> str | None:
    """Return an ordering key as it is.

    Raises:
        EventError: it is empty, too long, or holds what does not show.
    """
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isprintable()):
        message = f"a key is 1 to {MAX_KEY_CHARACTERS} printable characters"
        raise EventError(message)
    return key
