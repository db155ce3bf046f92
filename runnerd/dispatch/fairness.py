"""Whose turn it is among those who wait: start-time fair queueing, on time used instead of turns taken.

The attack it stops: a tenant whose calls take fifty times as long as another's gets fifty times as much where everybody is served in
turn. Each flow (a tenant; within it, an install) has a virtual time: what it has used, divided by its weight. The flow with the least goes
first. What a call will use is charged when it starts, as an estimate from the calls before it, and put right when it ends.

Every operation costs O(log n) of the flows that wait, whoever floods.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final, Generic, TypeVar

_SMOOTHING: Final = 0.2
"""Weight of the newest call in an estimate: some ten calls are remembered."""
_SLACK: Final = 16


def smoothed(estimate: float, newest: float) -> float:
    """Return the estimate after one more call."""
    return estimate + (newest - estimate) * _SMOOTHING


class Flow:
    """Somebody who gets a share.

    Args:
        weight: of the share; twice the weight is twice the time.
        virtual: where it starts: the virtual time of those that it is one of.
    """

    __slots__ = ("cost", "virtual", "weight")

    def __init__(self, weight: float, virtual: float) -> None:
        self.weight = weight
        self.virtual = virtual
        self.cost = 0.0
        """Estimate of what its next call will use, in seconds."""

    def charge(self) -> float:
        """Charge a call that starts; return what was charged."""
        self.virtual += self.cost / self.weight
        return self.cost

    def settle(self, charged: float, used: float) -> None:
        """Put right what `charge` had charged, and learn from it.

        Args:
            charged: what `charge` returned.
            used: what the call has used, in seconds.
        """
        self.virtual += (used - charged) / self.weight
        self.cost = smoothed(self.cost, used)


F = TypeVar("F", bound=Flow)


class Turns(Generic[F]):
    """Flows that wait, the one with the least virtual time first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, F]] = []
        self._entries: dict[F, int] = {}
        """Flow → number of its entry in the heap; other entries of it are left over."""
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, flow: F) -> None:
        """Let a flow wait, or wait where its virtual time puts it now."""
        number = next(self._numbers)
        self._entries[flow] = number
        heapq.heappush(self._heap, (flow.virtual, number, flow))
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [entry for entry in self._heap if self._entries.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def remove(self, flow: F) -> None:
        """Let a flow wait no longer; nothing where it does not."""
        self._entries.pop(flow, None)

    def first(self) -> F | None:
        """Return the flow whose turn it is; it goes on waiting until it is removed."""
        heap = self._heap
        while heap:
            _, number, flow = heap[0]
            if self._entries.get(flow) == number:
                return flow
            heapq.heappop(heap)
        return None
