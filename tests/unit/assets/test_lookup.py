from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import lookup as lookups
from runnerd.assets.channel import MAX_OUTSTANDING, Frame
from runnerd.assets.lookup import Asker, Lookup
from runnerd.assets.paths import AssetPath
from runnerd.children.budget import Budget
from tests.fakes.interface_files import EXTENSION, HASH
from tests.unit.assets.conftest import Clock, Harness


def asset(number: int | None = None) -> AssetPath:
    return AssetPath(extension_id=EXTENSION, content_hash=HASH if number is None else f"sha256:{number:064x}", path="a.js")


@pytest.fixture
def lookup(harness: Harness, clock: Clock) -> Lookup:
    return Lookup(harness.asker, clock=clock)


async def test_find__answer__holds_less_than_two_seconds_and_is_renewed_without_the_index(harness: Harness, lookup: Lookup) -> None:
    harness.shelf.put({"a.js": b"1"})
    for _ in range(10):
        await lookup.find(asset())
    assert [question["known"] for question in harness.asker.questions] == [False]
    harness.clock.now += lookups.ANSWER_SECONDS - 0.01
    await lookup.find(asset())
    assert len(harness.asker.questions) == 1
    harness.clock.now += 0.01
    assert (await lookup.find(asset())).files["a.js"].size == 1
    assert [question["known"] for question in harness.asker.questions] == [False, True]
    assert lookups.ANSWER_SECONDS < 2


async def test_find__refusal__is_remembered_as_long(harness: Harness, lookup: Lookup) -> None:
    for _ in range(10):
        with pytest.raises(RefusalError):
            await lookup.find(asset())
    assert len(harness.asker.questions) == 1
    harness.clock.now += 2
    with pytest.raises(RefusalError):
        await lookup.find(asset())
    assert len(harness.asker.questions) == 2


async def test_find__many_at_once__ask_once(harness: Harness, lookup: Lookup) -> None:
    harness.shelf.put({"a.js": b"1"})
    harness.shelf.delay_seconds = 0.01
    await asyncio.gather(*(lookup.find(asset()) for _ in range(50)))
    assert len(harness.asker.questions) == 1


async def test_find__random_hashes__cost_the_daemon_no_more_than_the_burst(harness: Harness, lookup: Lookup) -> None:
    harness.shelf.put({"a.js": b"1"})
    await lookup.find(asset())
    reasons: list[Reason] = []
    for number in range(100_000):
        try:
            await lookup.find(asset(number))
        except RefusalError as refusal:
            reasons.append(refusal.reason)
    assert len(reasons) == 100_000
    assert len(harness.shelf.resolved) <= lookups.COLD_ASKS_BURST
    assert reasons[-1] is Reason.OVERLOADED
    harness.clock.now += 60
    assert (await lookup.find(asset())).files
    assert len(lookup._refused) <= lookups.MAX_REFUSALS


async def test_find__kept_refusals__are_bounded(harness: Harness, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MAX_REFUSALS", 3)
    lookup = Lookup(harness.asker, clock=clock, budget=Budget(per_second=1_000, burst=1_000, clock=clock))
    for number in range(10):
        with pytest.raises(RefusalError):
            await lookup.find(asset(number))
    assert len(lookup._refused) == 3


@pytest.mark.parametrize(("limit", "value"), [("MAX_INDEXES", 2), ("MAX_INDEXED_FILES", 4)])
async def test_find__kept_indexes__are_bounded(
    harness: Harness, lookup: Lookup, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(lookups, limit, value)
    for number in range(5):
        harness.shelf.put({"a.js": b"1", "b.js": b"2"}, content_hash=f"sha256:{number:064x}")
        await lookup.find(asset(number))
    assert len(lookup._served) == 2


async def test_find__reader_leaves__answer_is_kept_for_others(harness: Harness, lookup: Lookup) -> None:
    harness.shelf.put({"a.js": b"1"})
    harness.shelf.delay_seconds = 0.01
    leaving = asyncio.ensure_future(lookup.find(asset()))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await lookup.find(asset())).files
    assert len(harness.asker.questions) == 1


async def test_ask__answers__reach_who_asked(tmp_path: object) -> None:
    sent: list[Frame] = []
    asker = Asker()
    asker.connect(sent.append)
    first, second = asyncio.ensure_future(asker.ask(op="resolve")), asyncio.ensure_future(asker.ask(op="open"))
    await asyncio.sleep(0)
    asker.answered({"id": sent[1]["id"], "mark": 2}, None)
    asker.answered({"id": sent[0]["id"], "mark": 1}, None)
    assert [(await first)[0]["mark"], (await second)[0]["mark"]] == [1, 2]


async def test_ask__refusal__is_raised_with_its_reason() -> None:
    sent: list[Frame] = []
    asker = Asker()
    asker.connect(sent.append)
    asking = asyncio.ensure_future(asker.ask(op="open"))
    await asyncio.sleep(0)
    asker.answered({"id": sent[0]["id"], "reason": "HASH_DENIED", "detail": "x"}, None)
    with pytest.raises(RefusalError) as refused:
        await asking
    assert refused.value.reason is Reason.HASH_DENIED


@pytest.mark.parametrize("frame", [{"id": 99}, {}, {"id": None}, {"id": "1"}])
async def test_answered__nobody_waits__descriptor_is_closed(frame: dict[str, Any]) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    Asker().answered(frame, reading)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reading)


async def test_ask__too_many_waiting__is_overloaded() -> None:
    asker = Asker()
    asker.connect(lambda frame: None)
    waiting = [asyncio.ensure_future(asker.ask(op="open")) for _ in range(MAX_OUTSTANDING)]
    await asyncio.sleep(0)
    assert asker.is_half_full
    with pytest.raises(RefusalError) as refused:
        await asker.ask(op="open")
    assert refused.value.reason is Reason.OVERLOADED
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not asker.is_half_full


async def test_ask__no_answer__is_overloaded_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "ASK_TIMEOUT_SECONDS", 0.01)
    silent = Asker()
    silent.connect(lambda frame: None)
    with pytest.raises(RefusalError) as refused:
        await silent.ask(op="open")
    assert refused.value.reason is Reason.OVERLOADED


async def test_ask__no_channel__is_overloaded() -> None:
    with pytest.raises(RefusalError) as refused:
        await Asker().ask(op="open")
    assert refused.value.reason is Reason.OVERLOADED


def test_budget__rate_and_burst__hold_exactly() -> None:
    clock = Clock()
    budget = Budget(per_second=2, burst=3, clock=clock)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [budget.take(), budget.take()] == [True, False]
    clock.now += 3_600
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
