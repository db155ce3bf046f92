"""A budget for the bytes of requests that are in the daemon at once (T21).

The attack it stops: callers with a valid token that together send more than the machine has memory for, each below every limit of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB


class IntakeBudget:
    """Counts bytes in flight.

    Args:
        limit_bytes: all requests together. At least one largest request should fit.
        tenant_bytes: of those, one tenant's; by default a quarter, or one largest request where that is more.
    """

    def __init__(self, limit_bytes: int, *, tenant_bytes: int | None = None) -> None:
        self._limit = limit_bytes
        self._tenant_limit = max(limit_bytes // 4, min(limit_bytes, 33 * MIB)) if tenant_bytes is None else tenant_bytes
        self._used = 0
        self._used_by: Counter[str] = Counter()

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

    @contextmanager
    def share(self, tenant_id: str, size: int) -> Iterator[None]:
        """Count `size` bytes, reserved before, as one tenant's while the block runs: its waiting calls must not be everybody's OVERLOADED.

        Raises:
            RefusalError: OVERLOADED.
        """
        if self._used_by[tenant_id] + size > self._tenant_limit:
            raise RefusalError(Reason.OVERLOADED, "This tenant has too many request bytes in the runner at once; try again in a moment.")
        self._used_by[tenant_id] += size
        try:
            yield
        finally:
            self._used_by[tenant_id] -= size
            if not self._used_by[tenant_id]:
                del self._used_by[tenant_id]
