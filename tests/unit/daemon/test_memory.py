"""T38: what the group may have, how many workers fit into it, and which of them goes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId
from registry.domain.limits import MIB
from runnerd.dispatch import cgroups
from runnerd.dispatch.memory import (
    ABOVE_ITS_LINE,
    FOR_THE_BUDGET,
    ORDINARY_BYTES,
    RESERVE_BYTES,
    MemoryLimits,
    NotEnoughMemoryError,
    find_memory,
    resident_bytes,
    share_out,
    too_much,
    workers_that_fit,
)
from runnerd.dispatch.request import ExecutionResult
from tests.fakes.dispatch_kit import OTHER_TENANT, POOL, TENANT, Kit, dispatching, eventually, make_request
from tests.fakes.fake_worker import WorkerEnd, scripted

GIB = 1024 * MIB
CALL = 256 * MIB


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16777216 kB\nMemFree:         1000 kB\n")
    return file


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        ({}, 16 * GIB),
        ({".": "max"}, 16 * GIB),
        ({".": str(GIB)}, GIB),
        ({"a/b": str(4 * GIB), "a": "max"}, 4 * GIB),
        ({"a/b": str(4 * GIB), "a": str(2 * GIB)}, 2 * GIB),
        ({"a/b": "max", "a": "nonsense"}, 16 * GIB),
        ({"a/b": str(64 * GIB)}, 16 * GIB),
        ({"elsewhere": str(GIB)}, 16 * GIB),
    ],
)
def test_memory__is_the_lowest_bound_above_us(
    tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, str], found: int
) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/old\n0::/a/b\n")
    for folder, text in bounds.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(text + "\n")
    monkeypatch.setattr(cgroups.contents, "__kwdefaults__", {"root": tmp_path, "own": own})

    assert find_memory(cgroup_root=tmp_path, machine=machine) == found


@pytest.mark.parametrize("text", ["", "0::/\n", "0::/../../outside\n", "1:cpu:/x\n"])
def test_own_group__whatever_the_kernel_says_lies_below_the_mount(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own"
    own.write_text(text)
    (tmp_path / "cpu.max").write_text("max 100000")

    assert list(cgroups.contents("cpu.max", root=tmp_path, own=own)) == ["max 100000"]


def test_one_gibibyte__is_two_workers() -> None:
    limits = share_out(GIB, loaded_bytes=GIB, call_bytes=CALL, slots=16)

    assert limits.budget_bytes == GIB - RESERVE_BYTES
    assert workers_that_fit(limits, call_bytes=CALL) == 2
    assert limits.worker_bytes == limits.budget_bytes


def test_large_machine__keeps_room_for_loaded_artifacts_and_bounds_one_worker() -> None:
    limits = share_out(64 * GIB, loaded_bytes=GIB, call_bytes=CALL, slots=16)

    assert limits.budget_bytes == 64 * GIB - GIB - RESERVE_BYTES
    assert limits.worker_bytes == ORDINARY_BYTES + 16 * CALL


def test_too_little__is_refused_with_what_to_change() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"64 MiB are left for workers, and one needs 320"):
        workers_that_fit(share_out(320 * MIB, loaded_bytes=GIB, call_bytes=CALL, slots=16), call_bytes=CALL)


def test_own_memory__is_what_we_have() -> None:
    before = resident_bytes(os.getpid())
    block = bytearray(os.urandom(MIB)) * 64

    assert 60 * MIB < resident_bytes(os.getpid()) - before < 80 * MIB
    assert len(block) == 64 * MIB
    assert resident_bytes(4_194_304 + 7) == 0


@dataclass(eq=False)
class Held:
    """A worker, as the choice sees it."""

    key: str
    size: int


LIMITS = MemoryLimits(budget_bytes=100, worker_bytes=60)


def chosen(*held: Held) -> set[Held]:
    return set(too_much(((worker, worker.size) for worker in held), LIMITS))


def test_worker_above_its_line__goes_alone() -> None:
    bomb, other = Held("a", 61), Held("b", 60)
    assert chosen(bomb, other) == {bomb}


def test_all_together_above_the_budget__whoever_holds_most_loses_its_largest() -> None:
    victim = Held("v", 30)
    crowd = [Held("a", 20), Held("a", 28), Held("a", 25)]
    assert chosen(victim, *crowd) == {crowd[1]}, "not the largest worker of all, which is the victim's"


def test_tenant_whose_versions_are_kept_apart__is_one_holder() -> None:
    """Six versions apart hold 54 together and 9 each; the victim holds more than any of them."""
    victim = [Held("victim", 25), Held("victim", 25)]
    crowd = [Held(f"evil/apart/v{number}", 9) for number in range(6)]
    assert chosen(*victim, *crowd) <= set(crowd)
    assert chosen(*victim, *crowd)


def test_why__above_its_line_is_the_workers_and_the_budget_is_nobodys() -> None:
    bomb, large, small = Held("a", 61), Held("b", 59), Held("c", 42)
    assert too_much([(worker, worker.size) for worker in (bomb, large, small)], LIMITS) == {bomb: ABOVE_ITS_LINE, large: FOR_THE_BUDGET}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 120)), max_size=12))
def test_what_is_left__fits_and_nobody_goes_without_need(workers: list[tuple[str, int]]) -> None:
    held = [Held(key, size) for key, size in workers]
    going = chosen(*held)
    left = [worker for worker in held if worker not in going]

    assert sum(worker.size for worker in left) <= LIMITS.budget_bytes
    assert all(worker.size <= LIMITS.worker_bytes for worker in left)
    if all(size <= LIMITS.worker_bytes for _, size in workers) and sum(size for _, size in workers) <= LIMITS.budget_bytes:
        assert not going


@asynccontextmanager
async def two_calls(
    monkeypatch: pytest.MonkeyPatch, *, budget_bytes: int
) -> AsyncIterator[tuple[Kit, dict[int, int], dict[TenantId, asyncio.Task[ExecutionResult]]]]:
    """Let two tenants' workers hold a call each, of sizes that the test says by process id."""
    sizes: dict[int, int] = {}
    monkeypatch.setattr("runnerd.dispatch.pool.resident_bytes", lambda pid: sizes.get(pid, 10))

    async def holds(worker: WorkerEnd) -> None:
        await worker.greet()
        await worker.next_start()
        await worker.next_frame()

    fork, _ = scripted(holds, holds)
    pool = replace(POOL, floor=2, memory=MemoryLimits(budget_bytes=budget_bytes, worker_bytes=500), memory_seconds=0.01)
    async with dispatching(fork, pool=pool) as kit:
        await eventually(lambda: len(kit.pool.workers) == 2)
        calls = {
            tenant: asyncio.create_task(kit.executor.execute(kit.caller, make_request(tenant_id=tenant), deadline=None))
            for tenant in (TENANT, OTHER_TENANT)
        }
        await eventually(lambda: kit.pool.state().in_use == 2)
        yield kit, sizes, calls


async def test_pool__ends_the_worker_that_holds_too_much_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_calls(monkeypatch, budget_bytes=1_000) as (kit, sizes, calls):
        bomb = next(worker for worker in kit.pool.workers if worker.key == TENANT)
        sizes[bomb.pid] = 501
        with pytest.raises(RefusalError) as refused:
            await calls[TENANT]
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert not calls[OTHER_TENANT].done()
        assert kit.metric("worker_restarts_total", {"cause": "memory"}) == 1
        assert kit.metric("workers_memory_budget_bytes") == 1_000
        assert bomb.suspects == {(TENANT, kit.extension.bundle.version_id)}
        await eventually(lambda: len(kit.pool.workers) == 2)
        calls[OTHER_TENANT].cancel()


async def test_memory_that_cannot_be_read_for_a_while__is_said_once_and_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0

    def resident(_pid: int) -> int:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return 501

    monkeypatch.setattr("runnerd.dispatch.pool.resident_bytes", resident)
    fork, _ = scripted()
    pool = replace(POOL, memory=MemoryLimits(budget_bytes=1_000, worker_bytes=500), memory_seconds=0.01)
    with capture_logs() as lines:
        async with dispatching(fork, pool=pool) as kit:
            await eventually(lambda: kit.metric("worker_restarts_total", {"cause": "memory"}) >= 1)
    assert failures == 3
    assert [line["event"] for line in lines].count("memory_not_watched") == 1


async def test_pool__for_the_budget__the_worker_that_goes_is_blamed_on_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_calls(monkeypatch, budget_bytes=600) as (kit, sizes, calls):
        first, second = kit.pool.workers
        larger = first if first.key == TENANT else second
        sizes[first.pid] = sizes[second.pid] = 301
        sizes[larger.pid] = 302
        with pytest.raises(RefusalError) as refused:
            await calls[TENANT]
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert not calls[OTHER_TENANT].done()
        assert kit.metric("worker_restarts_total", {"cause": "memory_pressure"}) == 1
        assert larger.suspects == frozenset()
        calls[OTHER_TENANT].cancel()
