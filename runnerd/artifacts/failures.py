"""Remembers for a while why something could not be loaded, so that a broken bundle costs one compilation and not one for each call."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError

FORGET_AFTER_SECONDS: Mapping[Reason, float] = MappingProxyType(
    {
        Reason.COMPILE_REJECTED: 300.0,
        Reason.INVALID_BUNDLE: 60.0,
        Reason.INVALID_MANIFEST: 60.0,
        Reason.BUNDLE_CORRUPT: 5.0,
        Reason.INTERNAL: 5.0,
    }
)
"""The first three are properties of the content and do not change; the others may be repaired by an operator."""

_MAX_REMEMBERED = 1024


class RecentFailures:
    """The last failures by content hash, bounded."""

    def __init__(self) -> None:
        self._failures: OrderedDict[ContentHash, tuple[float, RefusalError]] = OrderedDict()

    def check(self, content_hash: ContentHash) -> None:
        """Refuse again what was refused a moment ago.

        Raises:
            RefusalError: with the reason, detail and metadata of then.
        """
        until, refusal = self._failures.get(content_hash, (0.0, None))
        if refusal is None:
            return
        if time.monotonic() >= until:
            del self._failures[content_hash]
            return
        raise RefusalError(refusal.reason, refusal.public_detail, metadata=refusal.metadata)

    def remember(self, content_hash: ContentHash, refusal: RefusalError) -> None:
        """Note a refusal, if it is one worth remembering."""
        seconds = FORGET_AFTER_SECONDS.get(refusal.reason)
        if seconds is None:
            return
        self._failures[content_hash] = (time.monotonic() + seconds, refusal)
        self._failures.move_to_end(content_hash)
        if len(self._failures) > _MAX_REMEMBERED:
            self._failures.popitem(last=False)
