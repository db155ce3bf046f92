"""A small cache of answers and refusals: bounded, short-lived, and asked once for each key however many wait."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from registry.domain.errors import Reason, RefusalError

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")

UNCACHED_REASONS: Final = frozenset({Reason.REGISTRY_UNAVAILABLE, Reason.INTERNAL})
"""What says nothing about the thing asked for, only about the moment."""


@dataclass(frozen=True, slots=True)
class _Kept(Generic[Answer]):
    expires: float
    answer: Answer | None
    refusal: RefusalError | None


class AnswerCache(Generic[Key, Answer]):
    """Keeps what `load` answered or refused.

    Args:
        ttl_seconds: how old an answer may be, counted from before it was asked for.
        max_entries: answers kept, the least recently used go first. Refusals have half that room of their own: whoever asks for a million
            things that do not exist must not push out what is used.
        clock: monotonic seconds.
    """

    def __init__(self, *, ttl_seconds: float, max_entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._answers: OrderedDict[Key, _Kept[Answer]] = OrderedDict()
        self._refusals: OrderedDict[Key, _Kept[Answer]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Answer]] = {}

    async def get(self, key: Key, load: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the kept answer, or ask. Callers of one key share one question; a caller that gives up does not spoil it for the others.

        Raises:
            RefusalError: what `load` refused with.
        """
        for shelf in (self._answers, self._refusals):
            kept = shelf.get(key)
            if kept is not None and self._clock() < kept.expires:
                shelf.move_to_end(key)
                return _open(kept)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, load, self._clock() + self._ttl))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    def invalidate(self) -> None:
        """Forget everything, also answers to questions that are under way."""
        self._answers.clear()
        self._refusals.clear()
        self._asking.clear()

    async def _ask(self, key: Key, load: Callable[[], Awaitable[Answer]], expires: float) -> Answer:
        task = asyncio.current_task()
        try:
            answer = await load()
        except RefusalError as refusal:
            if refusal.reason not in UNCACHED_REASONS and self._asking.get(key) is task:
                self._keep(key, _Kept(expires, None, refusal))
            raise
        if self._asking.get(key) is task:
            self._keep(key, _Kept(expires, answer, None))
        return answer

    def _asked(self, key: Key, task: asyncio.Task[Answer]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # Whoever waited has it; if nobody did, nobody needs a warning.

    def _keep(self, key: Key, kept: _Kept[Answer]) -> None:
        refused = kept.refusal is not None
        shelf, other = (self._refusals, self._answers) if refused else (self._answers, self._refusals)
        other.pop(key, None)
        shelf[key] = kept
        shelf.move_to_end(key)
        while len(shelf) > (max(1, self._max_entries // 2) if refused else self._max_entries):
            shelf.popitem(last=False)


def _open(kept: _Kept[Answer]) -> Answer:
    if kept.refusal is not None:
        raise kept.refusal.again()
    return kept.answer  # type: ignore[return-value]
