"""Concurrency by tenant and install, fair and bounded waiting, early refusal (T23)."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from runnerd.dispatch import admission as module
from runnerd.dispatch import fairness
from runnerd.dispatch.admission import REMEMBER_SECONDS, Admission, AdmissionLimits, Place
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


class Clock:
    """The admission's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


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


async def test_busy_machine__a_tenant_with_nothing_running_starts_at_once() -> None:
    crowd = Crowd(Admission(AdmissionLimits(slots=64, running=4)))
    for _ in range(8):
        crowd.come("a")
    await crowd.settle()
    assert of(crowd, "a") == 4
    crowd.come("b")
    await crowd.settle()
    assert of(crowd, "b") == 1
    # Two tenants, four places: what "a" has above its two it does not get again, and "b" may have its second.
    crowd.come("b")
    await crowd.settle()
    crowd.leave[0].set()
    crowd.leave[1].set()
    await crowd.settle()
    assert (of(crowd, "a"), of(crowd, "b")) == (2, 2)
    assert crowd.admission.waiting == 4
    await crowd.end()


async def test_tenant_that_has_gone__gives_its_share_back_after_a_while(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=64, running=4))
    async with admission.enter("b", "b/i", deadline=clock.now + 10):
        pass
    crowd = Crowd(admission)
    for _ in range(3):
        crowd.come("a", seconds=clock.now)
    assert admission.remembered == 1
    await crowd.settle()
    # Nobody misses the third place.
    assert (of(crowd, "a"), admission.remembered) == (3, 2)
    clock.now += REMEMBER_SECONDS
    crowd.come("c", seconds=clock.now)
    await crowd.settle()
    assert admission.remembered == 2
    await crowd.end()


async def test_waiting_for_the_host__lets_another_compute_and_keeps_the_place() -> None:
    admission = Admission(AdmissionLimits(slots=4, running=1, per_tenant=2, per_install=2))
    deadline = time.monotonic() + 10
    async with admission.enter("a", "a/i", deadline=deadline) as place:
        waiting = asyncio.create_task(_hold(admission, "a", deadline))
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (1, 1)
        place.pause()
        place.pause()
        assert (admission.in_flight, admission.running, admission.waiting) == (2, 1, 0)
        await waiting
        place.resume()
        place.resume()
        assert (admission.in_flight, admission.running) == (1, 1)
        place.pause()
    assert (admission.in_flight, admission.running) == (0, 0)
    # The host may answer after the caller has gone.
    place.resume()
    place.pause()
    assert (admission.in_flight, admission.running) == (0, 0)


async def _hold(admission: Admission, tenant: str, deadline: float) -> None:
    async with admission.enter(tenant, f"{tenant}/i", deadline=deadline):
        await asyncio.sleep(0)


# --- early refusal ---------------------------------------------------------------------------------------------------------------


async def _slow_history(admission: Admission, clock: Clock, seconds: float) -> None:
    for _ in range(40):
        async with admission.enter("a", "a/i", deadline=clock.now + 100):
            clock.now += seconds


async def test_call_that_would_die_in_the_queue__is_refused_at_once(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=8, per_install=1))
    await _slow_history(admission, clock, 4.0)
    async with admission.enter("a", "a/i", deadline=clock.now + 100):
        with pytest.raises(RefusalError) as refused:
            await admission.enter("a", "a/i", deadline=clock.now + 2).__aenter__()
        assert refused.value.reason is Reason.CONCURRENCY_LIMIT
        # The hint is when a place is expected, not just "a moment".
        assert refused.value.retry_after_seconds == 4
        assert (admission.waiting, admission.in_flight) == (0, 1)
        patient = asyncio.create_task(_hold(admission, "a", clock.now + 60))
        await asyncio.sleep(0)
        assert admission.waiting == 1
        # Behind that one it takes twice as long.
        with pytest.raises(RefusalError) as refused:
            await admission.enter("a", "a/i", deadline=clock.now + 6).__aenter__()
        assert refused.value.retry_after_seconds == 8
    await patient


async def test_idle_runner__refuses_nobody_whatever_the_past(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=8))
    await _slow_history(admission, clock, 30.0)
    async with admission.enter("a", "a/i", deadline=clock.now + 0.01):
        assert admission.in_flight == 1


async def test_tenant_without_a_place__is_not_judged_by_its_own_past(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=2, per_tenant=2, per_install=2))
    await _slow_history(admission, clock, 30.0)
    crowd = Crowd(admission)
    others = [crowd.come("b", seconds=clock.now), crowd.come("c", seconds=clock.now)]
    await crowd.settle()
    assert admission.in_flight == 2
    waiting = asyncio.create_task(_hold(admission, "a", clock.now + 5))
    await asyncio.sleep(0)
    assert admission.waiting == 1
    crowd.leave[0].set()
    await waiting
    await crowd.end()
    assert all(other.done() for other in others)


async def test_past_deadline__is_refused_where_it_would_wait(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=1))
    async with admission.enter("a", "a/i", deadline=clock.now + 1):
        with pytest.raises(RefusalError) as refused:
            await admission.enter("b", "b/i", deadline=clock.now).__aenter__()
    assert refused.value.reason is Reason.OVERLOADED
    assert (admission.in_flight, admission.waiting) == (0, 0)


# --- fair by time used -----------------------------------------------------------------------------------------------------------


async def _contend(clock: Clock, admission: Admission, calls: dict[str, float], *, places: int, seconds: float) -> dict[str, float]:
    """Let everybody in `calls` ("tenant/install" → seconds of a call) always want more; return who used how much of the `places`."""
    used: dict[str, float] = defaultdict(float)
    running: list[tuple[float, int, str]] = []
    leave: dict[int, asyncio.Event] = {}
    tasks: list[asyncio.Task[None]] = []

    async def call(name: str) -> None:
        number = len(leave)
        leave[number] = asyncio.Event()
        async with admission.enter(name.partition("/")[0], name, deadline=clock.now + 1e6):
            heapq.heappush(running, (clock.now + calls[name], number, name))
            await leave[number].wait()

    def come(name: str) -> None:
        tasks.append(asyncio.create_task(call(name)))

    for name in calls:
        for _ in range(places + 2):
            come(name)
    await asyncio.sleep(0)
    end = clock.now + seconds
    while clock.now < end:
        clock.now, number, name = heapq.heappop(running)
        used[name] += calls[name]
        leave[number].set()
        come(name)
        for _ in range(3):
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.in_flight, admission.waiting) == (0, 0)
    return used


async def test_long_and_short_calls__share_the_time_not_the_turns(clock: Clock) -> None:
    limits = AdmissionLimits(slots=1, per_tenant=8, per_install=8, waiting=1_000, waiting_per_tenant=100)
    used = await _contend(clock, Admission(limits), {"long/i": 0.05, "short/i": 0.001}, places=1, seconds=5)
    assert used["long/i"] == pytest.approx(used["short/i"], rel=0.1)


async def test_installs_of_one_tenant__share_its_part_and_no_more(clock: Clock) -> None:
    limits = AdmissionLimits(slots=1, waiting=1_000, waiting_per_tenant=100)
    calls = {"many/1": 0.02, "many/2": 0.02, "many/3": 0.005, "one/1": 0.01}
    used = await _contend(clock, Admission(limits), calls, places=1, seconds=8)
    many = used["many/1"] + used["many/2"] + used["many/3"]
    assert many == pytest.approx(used["one/1"], rel=0.1)
    assert used["many/3"] == pytest.approx(many / 3, rel=0.2)


@settings(max_examples=20, deadline=None)
@given(
    weights=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=4),
    costs=st.lists(st.sampled_from([0.001, 0.007, 0.05]), min_size=4, max_size=4),
    places=st.sampled_from([1, 2]),
)
def test_share__is_by_weight_whatever_a_call_costs(weights: list[float], costs: list[float], places: int) -> None:
    names = [f"t{index}" for index in range(len(weights))]
    clock = Clock()

    async def scenario() -> dict[str, float]:
        limits = AdmissionLimits(slots=places, per_tenant=8, per_install=8, waiting=10_000, waiting_per_tenant=1_000)
        admission = Admission(limits, dict(zip(names, weights, strict=True)))
        calls = {f"{name}/i": cost for name, cost in zip(names, costs, strict=False)}
        return await _contend(clock, admission, calls, places=places, seconds=5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        used = asyncio.run(scenario())
    # Nobody is behind its part by more than what some calls cost: with several places a share is also whole places.
    if places == 1:
        for name, weight in zip(names, weights, strict=True):
            part = sum(used.values()) * weight / sum(weights)
            assert used[f"{name}/i"] == pytest.approx(part, rel=0.1, abs=0.15)
    assert all(used[f"{name}/i"] > 0 for name in names)


async def test_coming_and_going__saves_up_no_credit(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=1))
    async with admission.enter("rare", "rare/i", deadline=clock.now + 1):
        clock.now += 0.01
    for _ in range(200):
        async with admission.enter("busy", "busy/i", deadline=clock.now + 1):
            clock.now += 0.01
    used = await _contend(clock, admission, {"rare/i": 0.01, "busy/i": 0.01}, places=1, seconds=1)
    assert used["rare/i"] == pytest.approx(used["busy/i"], abs=0.05)


# --- what a flood costs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heap_steps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what the heaps are asked, and how much of them is looked at."""
    steps: Counter[str] = Counter()

    def counted(name: str) -> object:
        original = getattr(heapq, name)

        def step(heap: list[object], *arguments: object) -> object:
            steps["steps"] += len(heap) if name == "heapify" else 1
            return original(heap, *arguments)

        return step

    monkeypatch.setattr(fairness, "heapq", SimpleNamespace(**{name: counted(name) for name in ("heappush", "heappop", "heapify")}))
    return steps


async def test_flood_of_tenants_and_installs__each_step_stays_cheap(heap_steps: Counter[str]) -> None:
    limits = AdmissionLimits(slots=40, running=10, per_tenant=4, per_install=2, waiting=10_000, waiting_per_tenant=5_000)
    crowd = Crowd(Admission(limits))
    for number in range(2_000):
        crowd.come("hostile", str(number), seconds=1_000)
    for number in range(2_000):
        crowd.come(f"tenant-{number}", seconds=1_000)
    await crowd.settle()
    assert crowd.admission.waiting > 3_900
    heap_steps.clear()
    ended = 0
    for number in range(4_000):
        crowd.leave[number].set()
    for _ in range(4_000):
        await asyncio.sleep(0)
    ended = sum(task.done() for task in crowd.tasks)
    assert ended == 4_000
    # A few for each call that ends, although thousands wait.
    assert heap_steps["steps"] < 20 * ended


async def test_hostile_tenant__is_remembered_in_a_bounded_space(clock: Clock) -> None:
    admission = Admission(AdmissionLimits(slots=4))
    for number in range(1_000):
        async with admission.enter("hostile", f"hostile/{number}", deadline=clock.now + 1):
            pass
    assert len(admission._tenants["hostile"].installs) <= 64
    for number in range(1_000):
        async with admission.enter(f"t{number}", "i", deadline=clock.now + 1):
            clock.now += REMEMBER_SECONDS / 10
    assert admission.remembered <= 12


async def test_turns__forget_what_was_moved_again_and_again() -> None:
    turns: fairness.Turns[fairness.Flow] = fairness.Turns()
    flows = [fairness.Flow(1.0, 0.0) for _ in range(4)]
    for number in range(1_000):
        flow = flows[number % 4]
        flow.virtual += 1 + number % 3
        turns.put(flow)
        assert turns.first() is min(flows[: min(number + 1, 4)], key=lambda flow: flow.virtual) or number < 4
    assert len(turns) == 4
    assert len(turns._heap) <= 2 * 4 + 16
    for flow in flows:
        turns.remove(flow)
    assert turns.first() is None


# --- any order -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    slots=st.integers(1, 24),
    running=st.integers(1, 12),
    arrivals=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.integers(0, 3), st.booleans(), st.none() | st.integers(0, 6)),
        max_size=60,
    ),
)
def test_any_order_of_arrivals__keeps_the_bounds_and_strands_nobody(
    slots: int, running: int, arrivals: list[tuple[str, str, int, bool, int | None]]
) -> None:
    limits = AdmissionLimits(slots=slots, running=running, per_tenant=6, per_install=3)

    asyncio.run(asyncio.wait_for(_any_order(limits, arrivals), 30))


class _Bounded:
    """Calls that check the bounds from inside."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.limits = limits
        self.admission = Admission(limits)
        self.running = Counter[str]()

    async def call(self, tenant: str, install: str, turns: int, *, waits_for_host: bool) -> None:
        keys = ("", tenant, f"{tenant}/{install}")
        async with self.admission.enter(tenant, keys[2], deadline=time.monotonic() + 30) as place:
            self.running.update(keys)
            bounds = (self.limits.slots, self.limits.tenant_cap, self.limits.install_cap)
            try:
                assert all(self.running[key] <= bound for key, bound in zip(keys, bounds, strict=True))
                if waits_for_host:
                    place.pause()
                    await asyncio.sleep(0)
                    place.resume()
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                self.running.subtract(keys)


async def _impatient(task: asyncio.Task[None], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()


async def _any_order(limits: AdmissionLimits, arrivals: list[tuple[str, str, int, bool, int | None]]) -> None:
    bounded = _Bounded(limits)
    calls: list[asyncio.Task[None]] = []
    cancels: list[asyncio.Task[None]] = []
    for tenant, install, turns, waits_for_host, patience in arrivals:
        calls.append(asyncio.create_task(bounded.call(tenant, install, turns, waits_for_host=waits_for_host)))
        if patience is not None:
            cancels.append(asyncio.create_task(_impatient(calls[-1], patience)))
    while not all(task.done() for task in calls):
        await asyncio.sleep(0)
        _check_that_nobody_waits_in_vain(bounded.admission, limits)
    ended = await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.gather(*cancels)
    assert all(isinstance(result, asyncio.CancelledError) or result is None for result in ended)
    admission = bounded.admission
    assert (admission.in_flight, admission.running, admission.waiting) == (0, 0, 0)
    assert not any(len(turns) for turns in (admission._turns, admission._crowding))


def _check_that_nobody_waits_in_vain(admission: Admission, limits: AdmissionLimits) -> None:
    """Work is conserved: where there is room for anybody, whoever waits is at a cap of its own."""
    open_to_all = admission.running < limits.running and admission.in_flight < limits.open_slots
    for tenant in admission._tenants.values():
        for install in tenant.installs.values():
            waiting: list[Place] = [place for place, future in install.waiters.items() if not future.done()]
            if not waiting or admission.in_flight >= limits.slots:
                continue
            assert not (open_to_all or not tenant.in_flight) or (
                tenant.in_flight >= limits.tenant_cap or install.in_flight >= limits.install_cap
            )
