from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.ahead import AheadChecker
from runnerd.artifacts.cache import CacheEntry
from tests.fakes.loading import WASM, Installation, SampleBundle, artifact_for, make_bundle, read

ENTRIES = tuple(CacheEntry(content_hash=content_hash(bytes([number])), size=1) for number in range(5))


@dataclass
class FakeLoader:
    """Takes a while for each."""

    room: int = 5
    seconds: float = 0.001
    refuse: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    unlisted: bool = False
    checked: list[tuple[int, float]] = field(default_factory=list)

    async def list_cached(self) -> tuple[CacheEntry, ...]:
        if self.unlisted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ENTRIES

    async def check(self, entry: CacheEntry) -> bool:
        number = ENTRIES.index(entry)
        self.checked.append((number, time.monotonic()))
        await asyncio.sleep(self.seconds)
        if number in self.refuse:
            raise RefusalError(Reason.HASH_DENIED, "This content was revoked.")
        if number in self.broken:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return len(self.checked) <= self.room


async def through(checker: AheadChecker) -> None:
    checker.start()
    assert checker._task is not None
    async with asyncio.timeout(10):
        await checker._task
    await checker.aclose()


async def test_everything_is_checked_in_order_whatever_is_refused() -> None:
    loader = FakeLoader(refuse={0, 3})
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert [number for number, _ in loader.checked] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("loader", "checked", "refused"), [(FakeLoader(broken={1, 3}), 3, 2), (FakeLoader(unlisted=True), 0, 0)])
async def test_it_says_that_it_is_through_whatever_the_machine_fails(
    caplog: pytest.LogCaptureFixture, loader: FakeLoader, checked: int, refused: int
) -> None:
    with caplog.at_level(logging.INFO):
        await through(AheadChecker(loader, is_busy=lambda: False))
    said = caplog.records[-1].__dict__
    assert (said["message"], said["checked"], said["refused"]) == ("artifacts checked ahead", checked, refused)
    assert "Too many open files" in caplog.text


async def test_it_ends_where_memory_has_no_more_room() -> None:
    loader = FakeLoader(room=2)
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert [number for number, _ in loader.checked] == [0, 1, 2]


async def test_it_rests_while_calls_run() -> None:
    loader = FakeLoader(seconds=0.01)
    await through(AheadChecker(loader, is_busy=lambda: True))
    moments = [moment for _, moment in loader.checked]
    # A check takes 10 ms or more, and the rest after it nineteen times as long.
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(moments))


async def test_it_can_be_closed_at_any_time() -> None:
    loader = FakeLoader(seconds=30)
    checker = AheadChecker(loader, is_busy=lambda: False)
    await checker.aclose()
    checker.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await checker.aclose()


# --- with the loader itself ---


@pytest.fixture
async def bundles(installation: Installation) -> list[SampleBundle]:
    made = [await installation.publish(make_bundle(f"com.example.n{number}", wasm=WASM + bytes(1_000 + number))) for number in range(4)]
    loader = installation.loader()
    for bundle in made:
        await loader.load(bundle.hash)
    await loader.aclose()
    installation.metrics.seen.clear()
    installation.compiler.compiled.clear()
    return made


async def test_what_was_checked_is_loaded_from_memory(installation: Installation, bundles: list[SampleBundle]) -> None:
    loader = installation.loader()
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert installation.metrics.seen["loaded:check"] == len(bundles)
    for number, bundle in enumerate(bundles):
        assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM + bytes(1_000 + number))
    assert installation.metrics.seen["loaded:memory"] == len(bundles)
    assert installation.metrics.seen["loaded:cache"] == 0


async def test_an_altered_artifact_is_refused_ahead_and_compiled_at_its_first_call(
    installation: Installation, bundles: list[SampleBundle]
) -> None:
    installation.artifact_path(bundles[0]).write_bytes(installation.artifact_path(bundles[1]).read_bytes())
    loader = installation.loader()
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert installation.metrics.seen["verification:ARTIFACT_REJECTED"] == 1
    assert installation.compiler.compiled == []
    assert read((await loader.load(bundles[0].hash)).artifact) == artifact_for(WASM + bytes(1_000))
    assert len(installation.compiler.compiled) == 1


async def test_checking_takes_no_room_from_what_calls_use(installation: Installation, bundles: list[SampleBundle]) -> None:
    loader = installation.loader(loaded_bytes=2_500)
    used = await loader.load(bundles[0].hash)
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert installation.metrics.seen["loaded:check"] == 1
    assert (await loader.load(bundles[0].hash)).artifact is used.artifact
    # The next call of something else takes the place of what was only checked.
    await loader.load(bundles[1].hash)
    assert (await loader.load(bundles[0].hash)).artifact is used.artifact


async def test_what_was_denied_meanwhile_is_neither_checked_nor_kept(installation: Installation, bundles: list[SampleBundle]) -> None:
    installation.resolver.denied.add(bundles[2].hash)
    loader = installation.loader()
    await through(AheadChecker(loader, is_busy=lambda: False))
    assert installation.metrics.seen["loaded:check"] == len(bundles) - 1
    assert bundles[2].hash not in loader._loaded
