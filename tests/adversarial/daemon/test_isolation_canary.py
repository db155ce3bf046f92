"""Nothing of one tenant ever reaches another: unique markers in memory, storage, logs and errors, across traps, timeouts, exceptions of
host calls and workers that are killed (T4, T41). Real workers; and what a worker's own memory holds."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import LimitWishes
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult
from runnerd.dispatch.breaker import BreakerSettings
from runnerd.dispatch.cpus import find_cpus
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, Trapped
from runnerd.dispatch.pool import Isolation, PoolSettings
from runnerd.dispatch.workers import WorkerFactory
from runnerd.engine.profile import engine_fingerprint
from runnerd.worker.settings import WorkerConfig
from tests.fakes import guests
from tests.fakes.dispatch_kit import CONNECTION, Kit, dispatching, eventually, make_extension, make_install, make_request

TENANTS = tuple(TenantId(f"tenant-{letter}") for letter in "abcde")
EXTENSION = "com.example.canary"
ENDS = "esslgtxhz"
"""How a call may end, see the guest; storage twice."""
CALLS = 90
"""Of each tenant."""
AT_ONCE = 6
MARKER = re.compile(r"MARK-(tenant-[a-z])-\d+-END")
REAL = replace(
    CONNECTION, build=metadata.version("extrunner"), engine_fingerprint=engine_fingerprint(), hello_seconds=20.0, grace_seconds=1.0
)
_numbers = itertools.count()


def marker_of(tenant: TenantId, how: str) -> bytes:
    return f"{how} MARK-{tenant}-{next(_numbers)}-END".encode()


def owners_in(thing: object) -> set[str]:
    """Return the tenants whose markers stand anywhere in what was answered, recorded or stored."""
    return set(MARKER.findall(repr(thing)))


@asynccontextmanager
async def canaries(*, isolation: Isolation = Isolation.TENANT) -> AsyncIterator[Kit]:
    compiled = guests.compiled("canary")
    extension = make_extension(compiled.artifact, memories=compiled.memories, bridged=compiled.bridged)
    factory = await WorkerFactory.start(WorkerConfig(slots=8), cpus=find_cpus("auto"))
    settings = PoolSettings(floor=2, ceiling=6, slots=8, spread=2, isolation=isolation, mandatory_hardening=factory.mandatory_hardening)
    # It is the test that kills workers; no version shall be paused for it.
    patient = BreakerSettings(incidents=1_000_000)
    try:
        async with dispatching(
            factory.fork, pool=settings, connection=REAL, tenants=TENANTS, queue_seconds=20.0, breaker_settings=patient
        ) as kit:
            kit.extensions.add(extension)
            for tenant in TENANTS:
                kit.installs.add(replace(make_install(extension, tenant_id=tenant), extension_name=EXTENSION))
            yield kit
    finally:
        await factory.aclose()


def break_settings(kit: Kit) -> None:
    """Let every look-up of a setting raise, with the guest's own words in the exception."""
    answer = kit.broker.call

    async def call(grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        if function.qualified_name == "extrunner:host/config.get":
            raise RuntimeError(f"no setting for {arguments[0]}")  # noqa: EM102, TRY003
        return await answer(grant, function, arguments)

    kit.broker.call = call  # type: ignore[method-assign]


async def run(kit: Kit, tenant: TenantId, body: bytes) -> object:
    """Run one call; return its outcome, or the refusal."""
    wishes = LimitWishes(wall_time_ms=150 if body.startswith(b"x") else 20_000)
    request = make_request(tenant_id=tenant, extension=EXTENSION, method="POST", body=body, wishes=wishes)
    try:
        return (await kit.executor.execute(kit.caller, request, deadline=None)).outcome
    except RefusalError as refused:
        return refused


def text_of(ended: object) -> object:
    return (str(ended), ended.public_detail, ended.metadata) if isinstance(ended, RefusalError) else ended


def strays(kit: Kit) -> list[object]:
    """Return every record, stored value and host call that holds another tenant's marker."""
    records = [record for record in kit.recorder.records if not owners_in(record) <= {record.tenant_id}]
    stored = [(key, value) for key, value in kit.broker.stored.items() if owners_in((key[2], value)) != {key[0]}]
    asked = [call for call in kit.broker.calls if not owners_in(call[2]) <= {call[0]}]
    return [*records, *stored, *asked]


async def test_markers_of_five_tenants__across_traps_timeouts_exceptions_and_killed_workers__stay_with_their_tenant() -> None:
    async with canaries() as kit:
        break_settings(kit)
        chance = random.Random(7)
        foreign: list[str] = []
        ends: Counter[str] = Counter()

        async def caller(tenant: TenantId, bodies: list[bytes]) -> None:
            for body in bodies:
                ended = await run(kit, tenant, body)
                ends[ended.reason.value if isinstance(ended, RefusalError) else type(ended).__name__] += 1
                if not owners_in(text_of(ended)) <= {tenant}:
                    foreign.append(f"{tenant}: {ended}")
                if isinstance(ended, Completed) and body[:1] in b"esl" and ended.body != body:
                    foreign.append(f"{tenant}: asked with {body!r}, answered {ended.body!r}")

        async def killer() -> None:
            while True:
                await asyncio.sleep(0.25)
                os.kill(chance.choice(kit.pool.workers).pid, signal.SIGKILL) if kit.pool.workers else None

        callers = []
        for tenant in TENANTS:
            bodies = [marker_of(tenant, chance.choice(ENDS)) for _ in range(CALLS)]
            callers += [caller(tenant, bodies[start::AT_ONCE]) for start in range(AT_ONCE)]
        killing = asyncio.create_task(killer())
        await asyncio.gather(*callers)
        killing.cancel()

        assert foreign == []
        assert strays(kit) == []
        # Everything that was meant to happen did, or the silence proves nothing.
        assert {"Completed", "Trapped", "LimitExceeded", "GuestError", Reason.WORKER_CRASHED.value} <= set(ends), ends
        assert ends["Completed"] > len(TENANTS) * CALLS / 4, ends
        assert len(kit.broker.stored) > len(TENANTS)
        assert any(record.log for record in kit.recorder.records)


# --- the worker's own memory -----------------------------------------------------------------------------------------------------------


def memory_holds(pid: int, needle: bytes) -> bool:
    """Search everything that a process may write to."""
    regions = [line.split() for line in Path(f"/proc/{pid}/maps").read_text(encoding="ascii", errors="replace").splitlines()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for fields in regions:
            low, high = (int(number, 16) for number in fields[0].split("-"))
            # The pool's unused part is gigabytes that nobody may touch.
            if not fields[1].startswith("rw"):
                continue
            for start in range(low, high, 1 << 24):
                try:
                    memory.seek(start)
                    if needle in memory.read(min(1 << 24, high - start)):
                        return True
                except OSError:
                    break
    return False


def workers_of(kit: Kit, tenant: TenantId) -> list[int]:
    return [worker.pid for worker in kit.pool.workers if (worker.key or "").startswith(tenant)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a process that is not dumpable")
async def test_dedicated__the_next_tenants_worker_holds_nothing_of_the_one_before() -> None:
    first, second = TENANTS[:2]
    async with canaries(isolation=Isolation.DEDICATED) as kit:
        markers = [marker_of(first, how) for how in "eslth" for _ in range(6)]
        ended = await asyncio.gather(*(run(kit, first, marker) for marker in markers))
        assert {type(outcome) for outcome in ended} == {Completed, Trapped, GuestError}
        of_first = workers_of(kit, first)
        # The probe finds what is there: the tenant's own worker still knows it.
        assert any(memory_holds(pid, f"MARK-{first}-".encode()) for pid in of_first)

        mine = marker_of(second, "x")
        running = asyncio.create_task(run(kit, second, mine))
        await eventually(lambda: bool(workers_of(kit, second)))
        of_second = workers_of(kit, second)
        assert isinstance(await running, LimitExceeded)
        assert isinstance(await run(kit, second, marker_of(second, "e")), Completed)

        assert not set(of_first) & set(of_second)
        for pid in workers_of(kit, second):
            assert memory_holds(pid, f"MARK-{second}-".encode())
            assert not memory_holds(pid, f"MARK-{first}-".encode())


async def test_guest_memory_that_nobody_wrote__is_zero_after_another_tenants_calls() -> None:
    first, second = TENANTS[:2]
    async with canaries() as kit:
        for _ in range(4):
            await asyncio.gather(*(run(kit, first, marker_of(first, "e")) for _ in range(8)))
            answers: list[Any] = await asyncio.gather(*(run(kit, second, marker_of(second, "z")) for _ in range(4)))

            assert [set(answer.body) for answer in answers] == [{0}] * 4
