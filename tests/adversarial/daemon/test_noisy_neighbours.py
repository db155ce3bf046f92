"""T23: whatever one tenant's guests do to their limits, another tenant's calls are served meanwhile.

Two workers, each with the neighbour's endless loops, sleepers and memory growers; what is asserted is who ends before whom.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import metadata

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import LimitWishes
from runnerd.artifacts.loaded import CompiledExtension
from runnerd.dispatch.admission import AdmissionLimits
from runnerd.dispatch.cpus import find_cpus
from runnerd.dispatch.outcome import Completed, LimitExceeded, Outcome
from runnerd.dispatch.pool import PoolSettings
from runnerd.dispatch.workers import WorkerFactory
from runnerd.engine.profile import engine_fingerprint
from runnerd.worker.settings import WorkerConfig
from tests.fakes import guests
from tests.fakes.dispatch_kit import (
    CONNECTION,
    OTHER_TENANT,
    TENANT,
    Kit,
    dispatching,
    eventually,
    make_extension,
    make_install,
    make_request,
)

SLOTS = 16
LOOPS = 14
LIMITS = LimitWishes(wall_time_ms=1_500, cpu_time_ms=1_000)


@pytest.fixture(scope="session")
def neighbours() -> dict[str, CompiledExtension]:
    names = ("hello", "spin_forever", "sleep_in_poll", "memory_bomb")
    made = {name: guests.compiled(name) for name in names}
    return {name: make_extension(one.artifact, memories=one.memories, bridged=one.bridged) for name, one in made.items()}


@asynccontextmanager
async def running(extensions: dict[str, CompiledExtension], admission: AdmissionLimits, *, workers: int) -> AsyncIterator[Kit]:
    factory = await WorkerFactory.start(WorkerConfig(slots=SLOTS), cpus=find_cpus("auto"))
    connection = replace(CONNECTION, build=metadata.version("extrunner"), engine_fingerprint=engine_fingerprint(), hello_seconds=20.0)
    pool = PoolSettings(floor=workers, ceiling=workers, slots=SLOTS, spread=2, mandatory_hardening=factory.mandatory_hardening)
    try:
        # Patience beyond every limit here: who waits how long is told by the order of ends, on however slow a machine.
        async with dispatching(
            factory.fork, pool=pool, connection=replace(connection, grace_seconds=5.0), admission=admission, queue_seconds=30
        ) as kit:
            for name, extension in extensions.items():
                kit.extensions.add(extension)
                for tenant in (TENANT, OTHER_TENANT):
                    kit.installs.add(replace(make_install(extension, tenant_id=tenant), extension_name=f"com.example.{name}"))
            yield kit
    finally:
        await factory.aclose()


async def call(kit: Kit, guest: str, tenant: TenantId = TENANT, wishes: LimitWishes = LIMITS) -> Outcome | Reason:
    request = make_request(extension=f"com.example.{guest}", tenant_id=tenant, wishes=wishes)
    try:
        return (await kit.executor.execute(kit.caller, request, deadline=None)).outcome
    except RefusalError as error:
        return error.reason


@pytest.mark.parametrize("guest", ["spin_forever", "sleep_in_poll", "memory_bomb"])
async def test_victim__is_served_while_a_neighbour_runs_to_its_limits(neighbours: dict[str, CompiledExtension], guest: str) -> None:
    # As many workers as a daemon on two processors keeps for its busiest tenant, and one for whoever else comes.
    limits = AdmissionLimits(slots=4 * SLOTS, running=4)
    async with running(neighbours, limits, workers=3) as kit:
        assert isinstance(await call(kit, "hello", OTHER_TENANT), Completed)
        noisy = [asyncio.create_task(call(kit, guest)) for _ in range(16)]
        await eventually(lambda: kit.admission.waiting > 0)
        for _ in range(10):
            assert isinstance(await call(kit, "hello", OTHER_TENANT), Completed)
        # Ten calls one after the other came and went before the neighbour's crowd had: nobody waited behind it.
        assert not all(task.done() for task in noisy)
        outcomes = await asyncio.gather(*noisy)
        # The neighbour was not starved either: its calls ran to their limits, all of them in their turn.
        assert all(isinstance(outcome, LimitExceeded) for outcome in outcomes), outcomes


async def test_loops_in_every_worker_again_and_again__another_tenant_is_served_within_one_limit(
    neighbours: dict[str, CompiledExtension],
) -> None:
    """A tenant that may fill every worker does not keep them: one goes to whoever waits, once it is empty."""
    limits = AdmissionLimits(slots=8 * LOOPS, per_tenant=2 * LOOPS, per_install=2 * LOOPS)
    async with running(neighbours, limits, workers=2) as kit:
        stop, rounds = asyncio.Event(), Counter[int]()

        async def loop_for_ever() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                outcome = await call(kit, "spin_forever", wishes=LimitWishes(wall_time_ms=3_000, cpu_time_ms=10_000))
                assert isinstance(outcome, LimitExceeded)
                rounds[number] += 1

        loops = [asyncio.create_task(loop_for_ever()) for _ in range(2 * LOOPS)]
        await eventually(lambda: kit.pool.state().in_use == 2 * LOOPS)
        assert isinstance(await call(kit, "hello", OTHER_TENANT), Completed)
        assert rounds[1] >= LOOPS
        assert rounds[2] < LOOPS, "the victim waited for more than one limit of its neighbour"
        stop.set()
        await asyncio.gather(*loops)
        assert kit.metric("worker_restarts_total", {"cause": "backstop"}) == 0


async def test_loops_of_one_tenant__never_hold_up_another_that_has_a_worker(neighbours: dict[str, CompiledExtension]) -> None:
    limits = AdmissionLimits(slots=8 * LOOPS, per_tenant=2 * LOOPS, per_install=2 * LOOPS)
    async with running(neighbours, limits, workers=4) as kit:
        wishes = LimitWishes(wall_time_ms=2_500, cpu_time_ms=10_000)
        loops = [asyncio.create_task(call(kit, "spin_forever", wishes=wishes)) for _ in range(2 * LOOPS)]
        await eventually(lambda: kit.pool.state().in_use == 2 * LOOPS)
        for _ in range(20):
            assert isinstance(await call(kit, "hello", OTHER_TENANT), Completed)
        assert not any(loop.done() for loop in loops)
        assert all(isinstance(outcome, LimitExceeded) for outcome in await asyncio.gather(*loops))
