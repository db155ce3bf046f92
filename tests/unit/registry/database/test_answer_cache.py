from __future__ import annotations

import asyncio

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.services.answer_cache import AnswerCache


class Source:
    """Counts how often it is asked; answers when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: Reason | None = None

    async def __call__(self) -> int:
        self.asked += 1
        answer = self.asked
        await self.gate.wait()
        if self.refusal is not None:
            raise RefusalError(self.refusal, "no")
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _cache(*, ttl: float = 2.0, entries: int = 10) -> tuple[AnswerCache[str, int], Clock]:
    clock = Clock()
    return AnswerCache(ttl_seconds=ttl, max_entries=entries, clock=clock), clock


async def test_cache__within_ttl__asks_once() -> None:
    cache, clock = _cache()
    source = Source()
    assert await cache.get("a", source) == 1
    clock.now = 1.999
    assert await cache.get("a", source) == 1
    clock.now = 2.0
    assert await cache.get("a", source) == 2


async def test_cache__age__counts_from_before_the_question() -> None:
    cache, clock = _cache()
    source = Source()
    source.gate.clear()
    waiting = asyncio.create_task(cache.get("a", source))
    await asyncio.sleep(0)
    clock.now = 1.5
    source.gate.set()
    await waiting
    clock.now = 2.0
    assert await cache.get("a", source) == 2


async def test_cache__ttl_zero__asks_each_time() -> None:
    cache, _ = _cache(ttl=0)
    source = Source()
    assert [await cache.get("a", source) for _ in range(2)] == [1, 2]


async def test_cache__many_at_once__ask_once() -> None:
    cache, _ = _cache()
    source = Source()
    assert await asyncio.gather(*(cache.get("a", source) for _ in range(50))) == [1] * 50


async def test_cache__first_caller_gives_up__others_get_the_answer() -> None:
    cache, _ = _cache()
    source = Source()
    source.gate.clear()
    first = asyncio.create_task(cache.get("a", source))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.get("a", source))
    await asyncio.sleep(0)
    first.cancel()
    source.gate.set()
    assert await second == 1
    assert source.asked == 1


async def test_cache__refusal__is_kept_and_raised_fresh() -> None:
    cache, _ = _cache()
    source = Source()
    source.refusal = Reason.INSTALL_DISABLED
    raised = []
    for _ in range(2):
        with pytest.raises(RefusalError) as caught:
            await cache.get("a", source)
        raised.append(caught.value)
    assert source.asked == 1
    assert raised[0] is not raised[1]
    assert raised[1].reason is Reason.INSTALL_DISABLED


@pytest.mark.parametrize("reason", [Reason.REGISTRY_UNAVAILABLE, Reason.INTERNAL])
async def test_cache__database_away__is_not_kept(reason: Reason) -> None:
    cache, _ = _cache()
    source = Source()
    source.refusal = reason
    with pytest.raises(RefusalError):
        await cache.get("a", source)
    source.refusal = None
    assert await cache.get("a", source) == 2


async def test_cache__invalidated_while_asking__does_not_keep_the_old_answer() -> None:
    cache, _ = _cache()
    source = Source()
    source.gate.clear()
    asking = asyncio.create_task(cache.get("a", source))
    await asyncio.sleep(0)
    cache.invalidate()
    source.gate.set()
    assert await asking == 1
    assert await cache.get("a", source) == 2


async def test_cache__full__forgets_the_least_recently_used() -> None:
    cache, _ = _cache(entries=2)
    sources = {key: Source() for key in "abc"}
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, sources[key])
    assert {key: source.asked for key, source in sources.items()} == {"a": 1, "b": 2, "c": 1}


async def test_cache__flood_of_refusals__does_not_push_out_answers() -> None:
    cache, _ = _cache(entries=2)
    used, missing = Source(), Source()
    missing.refusal = Reason.EXTENSION_NOT_INSTALLED
    await cache.get("used", used)
    for number in range(100):
        with pytest.raises(RefusalError):
            await cache.get(f"missing-{number}", missing)
    await cache.get("used", used)
    assert used.asked == 1
    assert len(cache._refusals) == 1


async def test_cache__refusal_turns_into_answer_and_back__only_the_newer_counts() -> None:
    cache, clock = _cache()
    source = Source()
    source.refusal = Reason.INSTALL_DISABLED
    with pytest.raises(RefusalError):
        await cache.get("a", source)
    clock.now = 2.0
    source.refusal = None
    assert await cache.get("a", source) == 2
    clock.now = 4.0
    source.refusal = Reason.INSTALL_DISABLED
    for _ in range(2):
        with pytest.raises(RefusalError):
            await cache.get("a", source)
    assert source.asked == 3
