"""Concurrency by tenant and install, fair and bounded waiting."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from runnerd.dispatch.admission import Admission, AdmissionLimits
from tests.fakes.dispatch_kit import eventually


class Crowd:
    """Calls that hold their place until told."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.running: list[tuple[str, str]] = []
        self.most = Counter[str]()
        self.tasks: list[asyncio.Task[None]] = []
        self.leave: dict[int, asyncio.Event] = {}

    def come(self, tenant: str, install: str = "i", seconds: float = 10) -> asyncio.Task[None]:
        number = len(self.tasks)
        self.leave[number] = asyncio.Event()

        async def call() -> None:
            async with self.admission.enter(tenant, f"{tenant}/{install}", deadline=time.monotonic() + seconds):
                self.running.append((tenant, install))
                await self.leave[number].wait()
                self.running.remove((tenant, install))

        task = asyncio.create_task(call())
        self.tasks.append(task)
        return task

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for event in self.leave.values():
            event.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def of(crowd: Crowd, tenant: str) -> int:
    return sum(running == tenant for running, _ in crowd.running)


@pytest.mark.parametrize(("slots", "cap"), [(1, 1), (4, 2), (8, 2), (16, 4), (64, 16), (1000, 16)])
def test_cap_of_a_tenant__is_a_quarter_at_least_two_at_most_the_setting(slots: int, cap: int) -> None:
    assert AdmissionLimits(slots=slots).tenant_cap == cap


async def test_tenant_at_its_cap__waits_and_others_run() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=16, per_install=8)))
    for _ in range(6):
        crowd.come("a")
    crowd.come("b")
    await crowd.settle()
    assert (of(crowd, "a"), of(crowd, "b"), crowd.admission.waiting) == (4, 1, 2)
    crowd.leave[0].set()
    await crowd.settle()
    assert (of(crowd, "a"), crowd.admission.waiting) == (4, 1)
    await crowd.end()
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (0, 0)


async def test_install_at_its_cap__does_not_stop_its_tenants_other_install() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=64, per_install=2)))
    for _ in range(4):
        crowd.come("a", "one")
    crowd.come("a", "two")
    await crowd.settle()
    assert Counter(crowd.running) == {("a", "one"): 2, ("a", "two"): 1}
    await crowd.end()


async def test_last_quarter__is_for_tenants_below_their_share() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=16, per_tenant=16, per_install=16)))
    for tenant in ("a", "b", "c"):
        for _ in range(4):
            crowd.come(tenant)
    await crowd.settle()
    assert len(crowd.running) == 12
    for _ in range(3):
        crowd.come("d")
    await crowd.settle()
    assert of(crowd, "d") == 3
    await crowd.end()


async def test_queue__is_bounded_for_each_tenant_and_for_all() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=8, waiting=3, waiting_per_tenant=2)))
    tasks = [crowd.come("a") for _ in range(5)]
    await crowd.settle()
    with pytest.raises(RefusalError) as refused:
        await tasks[4]
    assert refused.value.reason is Reason.CONCURRENCY_LIMIT
    assert refused.value.retry_after_seconds == 1
    for _ in range(4):
        crowd.come("b")
    await crowd.settle()
    assert crowd.admission.waiting == 3
    await crowd.end()


async def test_everybody_together_at_the_limit__is_overload() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=2, waiting=0)))
    crowd.come("a")
    crowd.come("b")
    await crowd.settle()
    with pytest.raises(RefusalError) as refused:
        await crowd.come("c")
    assert refused.value.reason is Reason.OVERLOADED
    await crowd.end()


async def test_waiting__ends_with_the_deadline_and_leaves_nothing() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=8)))
    crowd.come("a")
    crowd.come("a")
    with pytest.raises(RefusalError) as refused:
        await crowd.come("a", seconds=0.02)
    assert refused.value.reason is Reason.CONCURRENCY_LIMIT
    assert crowd.admission.waiting == 0
    await crowd.end()


async def test_cancelled_while_waiting_or_just_admitted__gives_the_place_on() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=8)))
    crowd.come("a")
    crowd.come("a")
    await crowd.settle()
    waiting, just_admitted, last = crowd.come("a"), crowd.come("a"), crowd.come("a")
    await crowd.settle()
    waiting.cancel()
    await crowd.settle()
    crowd.leave[0].set()
    # The place goes to `just_admitted`, which is cancelled before it can run.
    await eventually(crowd.tasks[0].done)
    just_admitted.cancel()
    await crowd.settle()
    assert not last.done()
    assert crowd.admission.in_flight == 2
    await crowd.end()
    assert crowd.admission.in_flight == 0


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 24),
    arrivals=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.integers(0, 3)), max_size=60),
)
def test_any_order_of_arrivals__keeps_the_bounds_and_strands_nobody(slots: int, arrivals: list[tuple[str, str, int]]) -> None:
    limits = AdmissionLimits(slots=slots, per_tenant=6, per_install=3)

    async def scenario() -> None:
        admission = Admission(limits)
        total, tenants, installs = Counter[str](), Counter[str](), Counter[str]()

        async def call(tenant: str, install: str, turns: int) -> None:
            key = f"{tenant}/{install}"
            async with admission.enter(tenant, key, deadline=time.monotonic() + 30):
                for counter, name in ((total, "all"), (tenants, tenant), (installs, key)):
                    counter[name] += 1
                assert total["all"] <= limits.slots
                assert tenants[tenant] <= limits.tenant_cap
                assert installs[key] <= limits.install_cap
                for _ in range(turns):
                    await asyncio.sleep(0)
                for counter, name in ((total, "all"), (tenants, tenant), (installs, key)):
                    counter[name] -= 1

        await asyncio.wait_for(asyncio.gather(*(call(*arrival) for arrival in arrivals)), 30)
        assert (admission.in_flight, admission.waiting) == (0, 0)

    asyncio.run(scenario())
