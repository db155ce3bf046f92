"""Remembers for a while why something could not be loaded, so that a broken bundle costs one compilation and not one for each call."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
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

LONGEST_SECONDS = 300.0
_FAILS_IN_A_ROW_WITHIN_SECONDS = 900.0
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class _Failure:
    refusal: RefusalError
    seconds: float
    """How long it is remembered."""
    noted: float
    """When, on the clock of `time.monotonic()`."""


class RecentFailures:
    """The last failures by content hash, bounded.

    What is INTERNAL again and again is remembered for twice as long each time, up to `LONGEST_SECONDS`: a component that makes the
    compiler itself fail must not keep it busy.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[ContentHash, _Failure] = OrderedDict()

    def check(self, content_hash: ContentHash) -> None:
        """Refuse again what was refused a moment ago.

        Raises:
            RefusalError: with the reason, detail and metadata of then.
        """
        failure = self._failures.get(content_hash)
        if failure is None or time.monotonic() >= failure.noted + failure.seconds:
            return
        raise failure.refusal.again()

    def remember(self, content_hash: ContentHash, refusal: RefusalError) -> None:
        """Note a refusal, if it is one worth remembering."""
        seconds = FORGET_AFTER_SECONDS.get(refusal.reason)
        if seconds is None:
            return
        now, before = time.monotonic(), self._failures.get(content_hash)
        if (
            refusal.reason is Reason.INTERNAL
            and before is not None
            and now < before.noted + before.seconds + _FAILS_IN_A_ROW_WITHIN_SECONDS
        ):
            seconds = min(max(seconds, 2 * before.seconds), LONGEST_SECONDS)
        self._failures[content_hash] = _Failure(refusal, seconds, now)
        self._failures.move_to_end(content_hash)
        if len(self._failures) > _MAX_REMEMBERED:
            self._failures.popitem(last=False)
