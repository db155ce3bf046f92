"""T39: daemons of one fleet compile each artifact once, and none of them waits for one that is gone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts import shared as shared_module
from runnerd.artifacts.claims import Claims
from runnerd.artifacts.shared import Sharing, SharingSettings
from tests.fakes.bundle_store import MemoryBundleStore
from tests.fakes.loading import FINGERPRINT, WASM, FakeCompiler, Installation, artifact_for, make_bundle, read, until

SHARING = SharingSettings(sharing=Sharing.READ_WRITE, wait_seconds=30, stale_seconds=0.3)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "_POLL_SECONDS", 0.01)


def fleet_of(installation: Installation, size: int) -> list[Installation]:
    """Daemons that all trust each other, with one compiler to count by."""
    fleet = [installation, *(installation.neighbour(installation.folder / f"daemon-{number}") for number in range(1, size))]
    for member in fleet:
        member.trusted = [other.signer for other in fleet if other is not member]
        member.compiler = installation.compiler
    return fleet


async def test_three_daemons_with_a_cold_store_compile_each_artifact_once(installation: Installation) -> None:
    bundles = [await installation.publish(make_bundle(f"com.example.n{number}", wasm=WASM + bytes([number]))) for number in range(4)]
    loaders = [member.loader(sharing=SHARING) for member in fleet_of(installation, 3)]
    made = await asyncio.gather(*(loader.load(bundle.hash) for bundle in bundles for loader in loaders))
    assert sorted({read(one.artifact) for one in made}) == sorted(artifact_for(WASM + bytes([number])) for number in range(4))
    assert sorted(installation.compiler.compiled) == sorted(set(installation.compiler.compiled))
    assert len(installation.compiler.compiled) == len(bundles)
    for loader in loaders:
        await loader.aclose()
    assert not list(installation.object_path("compiled").rglob("*.claim"))


async def test_the_next_daemon_has_its_turn_when_one_fails(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    first, second = fleet_of(installation, 2)
    second.compiler = FakeCompiler()
    first.compiler.gate = asyncio.Event()
    first.compiler.refusal = RefusalError(Reason.INTERNAL, "The component could not be compiled.")
    failing = asyncio.create_task(first.loader(sharing=SHARING).load(bundle.hash))
    await until(lambda: first.compiler.compiled)
    loader = second.loader(sharing=SHARING)
    waiting = asyncio.create_task(loader.load(bundle.hash))
    await asyncio.sleep(0.05)
    assert second.compiler.compiled == []
    first.compiler.gate.set()
    with pytest.raises(RefusalError):
        await failing
    assert read((await waiting).artifact) == artifact_for(WASM)
    await loader.aclose()


async def test_a_daemon_that_is_gone_is_not_waited_for(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    first, second = fleet_of(installation, 2)
    second.compiler = FakeCompiler()
    first.compiler.gate = asyncio.Event()
    dead = first.loader(sharing=SHARING)
    lost = asyncio.create_task(dead.load(bundle.hash))
    await until(lambda: first.compiler.compiled)
    # Killed: its claim stays, and nobody renews it.
    await dead._sources._shared._claims.aclose()
    assert list(installation.object_path("compiled").rglob("*.claim"))
    async with asyncio.timeout(20):
        assert read((await second.loader(sharing=SHARING).load(bundle.hash)).artifact) == artifact_for(WASM)
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    await dead.aclose()


async def test_a_claim_that_is_renewed_for_ever_is_not_waited_for_for_ever(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    key = f"compiled/{FINGERPRINT}/{bundle.hash.removeprefix('sha256:')}.claim"

    async def liar() -> None:
        for number in range(100_000):
            await installation.store.delete(key)
            await installation.store.put_if_absent(key, str(number).encode(), content_type="text/plain")
            await asyncio.sleep(0.02)

    lying = asyncio.create_task(liar())
    await asyncio.sleep(0.05)
    settings = SharingSettings(sharing=Sharing.READ_WRITE, wait_seconds=0.5, stale_seconds=10)
    async with asyncio.timeout(20):
        assert read((await installation.loader(sharing=settings).load(bundle.hash)).artifact) == artifact_for(WASM)
    lying.cancel()
    assert installation.metrics.seen["loaded:compiler"] == 1


async def test_who_waits_for_another_daemon_is_told_that_it_is_being_looked_for(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    first, second = fleet_of(installation, 2)
    second.compiler = FakeCompiler()
    first.compiler.gate = asyncio.Event()
    working, waiting = first.loader(sharing=SHARING), second.loader(sharing=SHARING)
    task = asyncio.create_task(working.load(bundle.hash))
    await until(lambda: first.compiler.compiled)
    with pytest.raises(RefusalError) as caught:
        await waiting.load(bundle.hash, wait_seconds=0.05)
    assert (caught.value.reason, caught.value.metadata["stage"]) == (Reason.COMPILING, "looking")
    first.compiler.gate.set()
    await task
    assert read((await waiting.load(bundle.hash)).artifact) == artifact_for(WASM)
    assert second.compiler.compiled == []
    for loader in (working, waiting):
        await loader.aclose()


# --- the claims by themselves ---


def claims(store: MemoryBundleStore, *, stale_seconds: float = 0.2) -> Claims:
    return Claims(store, stale_seconds=stale_seconds)


async def test_one_of_two_has_a_claim_until_it_gives_it_up() -> None:
    store = MemoryBundleStore()
    one, two = claims(store, stale_seconds=60), claims(store, stale_seconds=60)
    assert await one.take("claims/x")
    assert not await two.take("claims/x")
    assert await two.take("claims/y")
    await two.release("claims/x")
    assert not await two.take("claims/x")
    await one.release("claims/x")
    assert await two.take("claims/x")
    for each in (one, two):
        await each.aclose()


async def test_a_claim_that_is_held_is_renewed_and_never_stale() -> None:
    store = MemoryBundleStore()
    one, two = claims(store), claims(store)
    assert await one.take("claims/x")
    said = set()
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        said.add(store.objects.get("claims/x"))
        assert not await two.take("claims/x")
        await asyncio.sleep(0.01)
    assert len(said) > 2
    await one.release("claims/x")
    await asyncio.sleep(0.2)
    assert store.objects == {}
    for each in (one, two):
        await each.aclose()


async def test_of_two_who_find_a_claim_stale_the_faster_one_has_it() -> None:
    class Raced(MemoryBundleStore):
        async def delete(self, key: str) -> None:
            self.objects[key] = b"the faster one's"

    store = Raced()
    store.objects["claims/x"] = b"of a daemon that is gone"
    slower = claims(store, stale_seconds=0.02)
    assert not await slower.take("claims/x")
    await asyncio.sleep(0.03)
    assert not await slower.take("claims/x")
    assert store.objects == {"claims/x": b"the faster one's"}
    # From here on it watches that one.
    assert not await slower.take("claims/x")
    await slower.aclose()


async def test_who_finds_the_claim_taken_while_renewing_leaves_it_alone() -> None:
    class Raced(MemoryBundleStore):
        deleted = 0

        async def delete(self, key: str) -> None:
            self.deleted += 1
            await super().delete(key)
            # In the gap.
            self.objects[key] = b"another daemon's"

    store = Raced()
    one = claims(store, stale_seconds=0.03)
    assert await one.take("claims/x")
    await until(lambda: store.deleted)
    # Some renewals later nothing of the other's was touched, nor is it when the work is done.
    await asyncio.sleep(0.1)
    await one.release("claims/x")
    assert store.deleted == 1
    assert store.objects == {"claims/x": b"another daemon's"}
    await one.aclose()


async def test_a_claim_that_cannot_be_read_is_waited_for_and_then_overtaken() -> None:
    store = MemoryBundleStore()
    store.objects["claims/x"] = bytes(257)
    one = claims(store, stale_seconds=0.2)
    assert not await one.take("claims/x")
    assert not await one.take("claims/x")
    assert store.objects["claims/x"] == bytes(257)
    await asyncio.sleep(0.25)
    assert await one.take("claims/x")
    assert len(store.objects["claims/x"]) == 32
    await one.aclose()


async def test_a_store_that_fails_while_renewing_leaves_the_claim_to_become_stale() -> None:
    store = MemoryBundleStore()
    one, two = claims(store), claims(store)
    assert await one.take("claims/x")
    store.fail_on = "delete"
    await asyncio.sleep(0.1)
    await one.release("claims/x")
    store.fail_on = None
    async with asyncio.timeout(10):
        while not await two.take("claims/x"):  # noqa: ASYNC110 - the store does not signal
            await asyncio.sleep(0.01)
    for each in (one, two):
        await each.aclose()


async def test_claims_are_not_left_in_a_folder_without_the_daemon(tmp_path: Path) -> None:
    installation = Installation(folder=tmp_path)
    bundle = await installation.publish(make_bundle())
    loader = installation.loader(sharing=SHARING)
    await loader.load(bundle.hash)
    # A daemon that stops goes on for a moment with what it has begun to leave.
    await loader.aclose()
    names = {path.suffix for path in installation.object_path("compiled").rglob("*.*")}
    assert names == {".cwasm", ".json"}
