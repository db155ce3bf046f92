from __future__ import annotations

import asyncio

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.slots import CompileSlots


class Yard:
    """Starts holders of slots and notes the order in which they got them."""

    def __init__(self, *, slots: int = 1, per_publisher: int = 1000, waiting: int = 10_000) -> None:
        self.slots = CompileSlots(slots=slots, waiting_per_publisher=per_publisher, waiting=waiting)
        self.order: list[str] = []
        self.running = 0
        self.most = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def _hold(self, publisher: str, gate: asyncio.Event) -> None:
        async with self.slots.slot(publisher):
            self.order.append(publisher)
            self.running += 1
            self.most = max(self.most, self.running)
            await gate.wait()
            self.running -= 1

    async def start(self, publisher: str, gate: asyncio.Event) -> asyncio.Task[None]:
        task = asyncio.create_task(self._hold(publisher, gate))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task


@pytest.mark.parametrize("slots", [1, 3])
async def test_no_more_run_than_there_are_slots(slots: int) -> None:
    yard, gate = Yard(slots=slots), asyncio.Event()
    for number in range(10):
        await yard.start(f"p{number}", gate)
    assert yard.running == slots
    gate.set()
    await asyncio.gather(*yard.tasks)
    assert yard.most == slots
    assert len(yard.order) == 10


async def test_a_hundred_bundles_of_one_publisher_delay_another_by_two_turns_at_most() -> None:
    yard, gate = Yard(), asyncio.Event()
    for _ in range(100):
        await yard.start("flood", gate)
    await yard.start("other", gate)
    gate.set()
    await asyncio.gather(*yard.tasks)
    assert yard.order.index("other") <= 2


async def test_publishers_take_turns_and_each_keeps_its_order() -> None:
    yard, gate = Yard(), asyncio.Event()
    for publisher in ("a", "a", "a", "b", "b", "c"):
        await yard.start(publisher, gate)
    gate.set()
    await asyncio.gather(*yard.tasks)
    assert yard.order == ["a", "a", "b", "c", "a", "b"]


async def test_too_many_of_one_publisher_are_refused_and_others_are_not() -> None:
    yard, gate = Yard(per_publisher=2), asyncio.Event()
    for _ in range(3):
        await yard.start("flood", gate)
    with pytest.raises(RefusalError) as caught:
        await yard._hold("flood", gate)
    assert caught.value.reason is Reason.OVERLOADED
    other = await yard.start("other", gate)
    gate.set()
    await asyncio.gather(*yard.tasks)
    assert other.done()


async def test_too_many_in_all_are_refused() -> None:
    yard, gate = Yard(waiting=2), asyncio.Event()
    for publisher in ("a", "b", "c"):
        await yard.start(publisher, gate)
    with pytest.raises(RefusalError):
        await yard._hold("d", gate)
    gate.set()
    await asyncio.gather(*yard.tasks)


async def test_who_stops_waiting_leaves_no_trace() -> None:
    yard, gate = Yard(), asyncio.Event()
    await yard.start("a", gate)
    waiting = await yard.start("b", gate)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert yard.slots.waiting == 0
    gate.set()
    await yard.tasks[0]
    await yard.start("c", gate)
    await yard.tasks[-1]
    assert yard.order == ["a", "c"]


async def test_a_slot_handed_to_somebody_who_just_gave_up_is_passed_on() -> None:
    yard, gate = Yard(), asyncio.Event()
    first = await yard.start("a", gate)
    second = await yard.start("b", gate)
    third = await yard.start("c", gate)
    gate.set()
    # In one turn of the loop: the first lets go, and the second, which was just given the slot, is cancelled.
    first.add_done_callback(lambda _: second.cancel())
    await asyncio.gather(*yard.tasks, return_exceptions=True)
    assert third.done()
    assert not third.cancelled()
    async with asyncio.timeout(5), yard.slots.slot("d"):
        assert yard.slots.waiting == 0


async def test_a_holder_that_fails_gives_its_slot_back() -> None:
    slots = CompileSlots(slots=1, waiting_per_publisher=1, waiting=1)
    with pytest.raises(ZeroDivisionError):
        async with slots.slot("a"):
            raise ZeroDivisionError
    async with asyncio.timeout(5), slots.slot("a"):
        assert slots.waiting == 0
