"""A token bucket: bounds how often questions about unknown things travel to the daemon and on to the registry (T37)."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """At most `burst` at once and `per_second` in the long run.

    Args:
        per_second: refill rate.
        burst: size of the bucket; it starts full.
        clock: monotonic seconds.
    """

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> bool:
        """Take one token and tell whether there was one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
