"""A budget for the bytes of requests that are in the daemon at once (T21).

The attack it stops: callers with a valid token that together send more than the machine has memory for, each below every limit of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from registry.domain.errors import Reason, RefusalError


class IntakeBudget:
    """Counts bytes in flight.

    Args:
        limit_bytes: all requests together. At least one largest request should fit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the requests in flight."""
        return self._used

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Count `size` bytes while the block runs.

        Raises:
            RefusalError: OVERLOADED.
        """
        if self._used + size > self._limit:
            raise RefusalError(Reason.OVERLOADED, "The runner holds too many request bytes at once; try again in a moment.")
        self._used += size
        try:
            yield
        finally:
            self._used -= size
