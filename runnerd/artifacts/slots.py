"""Compile slots, fair among publishers: a hundred bundles of one publisher delay another publisher's by one turn, not by a hundred."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from registry.domain.errors import Reason, RefusalError


class CompileSlots:
    """Hands out a bounded number of slots; who waits is served in turn by publisher, and within one publisher in order.

    Belongs to one event loop.
    """

    def __init__(self, *, slots: int, waiting_per_publisher: int, waiting: int) -> None:
        self._free = slots
        self._per_publisher = waiting_per_publisher
        self._limit = waiting
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a slot now."""
        return sum(len(queue) for queue in self._queues.values())

    @contextlib.asynccontextmanager
    async def slot(self, publisher: str, *, on_wait: Callable[[Callable[[], int]], None] | None = None) -> AsyncIterator[None]:
        """Hold a slot for the length of the block.

        Args:
            publisher: whose turn it takes.
            on_wait: told, where it has to wait, how to find how many have their turn before it.

        Raises:
            RefusalError: OVERLOADED where too many of this publisher, or of all, wait already.
        """
        await self._acquire(publisher, on_wait)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, publisher: str, on_wait: Callable[[Callable[[], int]], None] | None) -> None:
        if self._free > 0:
            self._free -= 1
            return
        if len(self._queues.get(publisher, ())) >= self._per_publisher or self.waiting >= self._limit:
            raise RefusalError(Reason.OVERLOADED, "Too many extensions wait to be compiled; try again.", retry_after_seconds=5)
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(publisher, deque()).append(turn)
        try:
            if on_wait is not None:
                on_wait(lambda: self._ahead_of(publisher, turn))
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The slot was handed over in the moment of the cancellation: pass it on.
                self._release()
            else:
                self._withdraw(publisher, turn)
            raise

    def _ahead_of(self, publisher: str, turn: asyncio.Future[None]) -> int:
        """Count the turns before this one: one of every publisher for each round, and one more of those who come before its own."""
        queue = self._queues.get(publisher)
        if queue is None or turn not in queue:
            return 0
        round_ = queue.index(turn)
        ahead, before = round_, True
        for other, waiting in self._queues.items():
            if other == publisher:
                before = False
            else:
                ahead += min(len(waiting), round_ + 1 if before else round_)
        return ahead

    def _withdraw(self, publisher: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(publisher)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(turn)
            if not queue:
                del self._queues[publisher]

    def _release(self) -> None:
        while self._queues:
            publisher, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            if queue:
                self._queues.move_to_end(publisher)
            else:
                del self._queues[publisher]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
