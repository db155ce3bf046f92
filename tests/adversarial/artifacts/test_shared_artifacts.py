"""T1 and T31 in the object store: what others left there runs only for the bundle it was made from, and never wedges a daemon."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts import shared as shared_module
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.loader import ExtensionLoader
from runnerd.artifacts.records import ArtifactStatement, verify_artifact_record, write_artifact_record
from runnerd.artifacts.shared import Sharing, SharingSettings
from runnerd.engine.profile import engine_fingerprint
from tests.fakes.bundle_store import MemoryBundleStore
from tests.fakes.loading import BOB, FINGERPRINT, WASM, Installation, SampleBundle, artifact_for, make_bundle, read, until
from tests.fakes.marker_guests import marker_guest, run_marker

SHARING = SharingSettings(sharing=Sharing.READ_WRITE, max_artifact_bytes=1 << 20, transfer_seconds=10, wait_seconds=20, stale_seconds=1)


def key_of(bundle: SampleBundle, suffix: str = ".cwasm", fingerprint: str = FINGERPRINT) -> str:
    return f"compiled/{fingerprint}/{bundle.hash.removeprefix('sha256:')}{suffix}"


def path_of(installation: Installation, bundle: SampleBundle, suffix: str = ".cwasm", fingerprint: str = FINGERPRINT) -> Path:
    return installation.object_path(key_of(bundle, suffix, fingerprint))


async def shared(installation: Installation, bundle: SampleBundle) -> None:
    """Wait until the daemon has left both objects, and given up its claim."""
    record, claim = path_of(installation, bundle, ".record.json"), path_of(installation, bundle, ".claim")
    await until(lambda: record.exists() and not claim.exists())


@pytest.fixture
async def pair(installation: Installation) -> tuple[SampleBundle, SampleBundle]:
    """Two extensions that a daemon of the fleet has compiled and shared."""
    bundles = [await installation.publish(make_bundle(f"com.example.{name}", wasm=WASM + name.encode())) for name in ("a", "b")]
    loader = installation.loader(sharing=SHARING)
    for bundle in bundles:
        await loader.load(bundle.hash)
        await shared(installation, bundle)
    await loader.aclose()
    return bundles[0], bundles[1]


@pytest.fixture
def other(installation: Installation) -> Installation:
    """Another daemon of the fleet, with nothing in its cache."""
    return installation.neighbour(installation.folder / "other")


async def load(installation: Installation, bundle: SampleBundle, **options: Any) -> bytes:
    loader = installation.loader(**{"sharing": SHARING} | options)
    try:
        return read((await loader.load(bundle.hash)).artifact)
    finally:
        await loader.aclose()


async def test_what_one_daemon_compiled_the_others_take(other: Installation, pair: tuple[SampleBundle, SampleBundle]) -> None:
    for bundle, name in zip(pair, (b"a", b"b"), strict=True):
        assert await load(other, bundle) == artifact_for(WASM + name)
    assert other.compiler.compiled == []
    assert other.metrics.seen["loaded:shared"] == other.metrics.seen["shared:found"] == 2
    # Kept on its own disk, with the record of who made it.
    assert await load(other, pair[0], sharing=SharingSettings()) == artifact_for(WASM + b"a")
    assert other.metrics.seen["loaded:cache"] == 1


async def test_a_daemon_whose_key_lost_its_trust_has_made_nothing_that_still_runs(
    installation: Installation, other: Installation, pair: tuple[SampleBundle, SampleBundle]
) -> None:
    bundle = pair[0]
    await load(other, bundle)
    other.trusted.remove(installation.signer)
    assert await load(other, bundle) == artifact_for(WASM + b"a")
    assert other.compiler.compiled != []
    assert other.metrics.seen["verification:ARTIFACT_REJECTED"] == 2  # The copy on its disk, and the shared one.


def swap_both(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    for suffix in (".cwasm", ".record.json"):
        shutil.copy(path_of(installation, a, suffix), path_of(installation, b, suffix))


def swap_bytes(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    shutil.copy(path_of(installation, a), path_of(installation, b))


def swap_record(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    shutil.copy(path_of(installation, a, ".record.json"), path_of(installation, b, ".record.json"))


def rewrite_record(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    swap_both(installation, a, b)
    path = path_of(installation, b, ".record.json")
    record = json.loads(path.read_bytes())
    record["body"]["content_hash"] = b.hash
    path.write_text(json.dumps(record))


def _forge(installation: Installation, a: SampleBundle, b: SampleBundle, signer: ArtifactSigner, **changes: Any) -> None:
    if a is not b:
        swap_both(installation, a, b)
    path = path_of(installation, b, ".record.json")
    statement = ArtifactStatement(**json.loads(path.read_bytes())["body"])
    path.write_bytes(write_artifact_record(replace(statement, **{"content_hash": b.hash} | changes), signer))


def sign_with_another_key(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    _forge(installation, a, b, ArtifactSigner.generate())


def another_engine(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    _forge(installation, b, b, installation.signer, engine_fingerprint="0" * 64)


def promise_too_much(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    _forge(installation, b, b, installation.signer, artifact_bytes=SHARING.max_artifact_bytes + 1)


def promise_nothing(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    _forge(installation, b, b, installation.signer, artifact_bytes=0)


def truncate(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path = path_of(installation, b)
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    with path_of(installation, b).open("ab") as file:
        file.write(b"\0")


def lengthen_without_end(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    os.truncate(path_of(installation, b), 1 << 40)


def flip_a_bit(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path = path_of(installation, b)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def remove_artifact(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path_of(installation, b).unlink()


def folder_for_artifact(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path_of(installation, b).unlink()
    path_of(installation, b).mkdir()


def garbage_record(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path_of(installation, b, ".record.json").write_bytes(b"[" * 3_000)


def endless_record(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    os.truncate(path_of(installation, b, ".record.json"), 1 << 40)


def empty_record(installation: Installation, a: SampleBundle, b: SampleBundle) -> None:
    path_of(installation, b, ".record.json").write_bytes(b"")


REFUSED = [
    swap_both,
    swap_bytes,
    swap_record,
    rewrite_record,
    sign_with_another_key,
    another_engine,
    promise_too_much,
    promise_nothing,
    truncate,
    lengthen,
    lengthen_without_end,
    flip_a_bit,
    remove_artifact,
    folder_for_artifact,
    garbage_record,
    endless_record,
    empty_record,
]


@pytest.mark.parametrize("spoil", REFUSED)
async def test_what_is_not_genuine_is_refused_each_time_and_compiled_at_home(
    installation: Installation,
    other: Installation,
    pair: tuple[SampleBundle, SampleBundle],
    spoil: Callable[[Installation, SampleBundle, SampleBundle], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = pair
    spoil(installation, a, b)
    before = {path.name: path.stat().st_mtime_ns for path in path_of(installation, b).parent.iterdir()}
    for attempt in (1, 2):
        # Each time a daemon with an empty cache, as after a new machine was added.
        shutil.rmtree(other.cache, ignore_errors=True)
        with caplog.at_level(logging.ERROR):
            assert await load(other, b) == artifact_for(WASM + b"b")
        assert len(other.compiler.compiled) == attempt
        assert other.metrics.seen["shared:rejected"] == other.metrics.seen["loaded:compiler"] == attempt
        assert other.metrics.seen["loaded:shared"] == 0
    assert "shared artifact refused" in caplog.text
    # It was neither replaced nor removed, and no claim was left: an operator finds it as it was.
    assert {path.name: path.stat().st_mtime_ns for path in path_of(installation, b).parent.iterdir()} == before
    # The other extension is shared as before.
    assert await load(other, a) == artifact_for(WASM + b"a")
    assert other.metrics.seen["loaded:shared"] == 1


@pytest.mark.parametrize("suffix", [".cwasm", ".record.json"])
async def test_a_link_is_not_followed(
    installation: Installation, other: Installation, pair: tuple[SampleBundle, SampleBundle], suffix: str
) -> None:
    a, b = pair
    path_of(installation, b, suffix).unlink()
    path_of(installation, b, suffix).symlink_to(path_of(installation, a, suffix))
    assert await load(other, b) == artifact_for(WASM + b"b")
    assert other.metrics.seen["loaded:compiler"] == other.metrics.seen["shared:unavailable"] == 1


async def test_an_artifact_that_lies_in_the_way_is_never_vouched_for(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    await installation.store.put_if_absent(key_of(bundle), b"\x7fELF planted", content_type="x/y")
    assert await load(installation, bundle) == artifact_for(WASM)
    loader = installation.loader(sharing=SHARING, cache_folder=installation.folder / "fresh")
    assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    await until(lambda: installation.metrics.seen["shared:occupied"])
    await loader.aclose()
    assert not path_of(installation, bundle, ".record.json").exists()
    assert path_of(installation, bundle).read_bytes() == b"\x7fELF planted"


async def test_an_artifact_without_record_is_completed_by_who_makes_the_same(
    installation: Installation, other: Installation, pair: tuple[SampleBundle, SampleBundle]
) -> None:
    a, _ = pair
    path_of(installation, a, ".record.json").unlink()
    loader = other.loader(sharing=SHARING)
    await loader.load(a.hash)
    await shared(installation, a)
    await loader.aclose()
    assert other.metrics.seen["shared:stored"] == 1
    assert await load(installation, a, cache_folder=installation.folder / "fresh") == artifact_for(WASM + b"a")
    assert installation.metrics.seen["loaded:shared"] == 1


@pytest.mark.parametrize("how", ["in place", "replaced"])
async def test_changed_between_the_fetch_and_the_check(
    installation: Installation, other: Installation, pair: tuple[SampleBundle, SampleBundle], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    a, b = pair
    evil = path_of(installation, a).read_bytes()

    def paused(*args: Any, **kwargs: Any) -> ArtifactStatement:
        # The record is verified; whoever can write to the store now puts A's code in B's place.
        statement = verify_artifact_record(*args, **kwargs)
        if how == "replaced":
            path_of(installation, b).unlink()
        path_of(installation, b).write_bytes(evil)
        return statement

    monkeypatch.setattr(shared_module, "verify_artifact_record", paused)
    assert await load(other, b) == artifact_for(WASM + b"b")
    assert other.metrics.seen["shared:rejected"] == 1


class SlowStore(MemoryBundleStore):
    """Answers about compiled artifacts after an hour."""

    hanging = True

    async def _hang(self, key: str) -> None:
        if self.hanging and key.startswith("compiled/"):
            await asyncio.sleep(3600)

    async def read(self, key: str, max_bytes: int) -> bytes:
        await self._hang(key)
        return await super().read(key, max_bytes)

    async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
        await self._hang(key)
        return await super().put_if_absent(key, source, content_type=content_type)

    async def delete(self, key: str) -> None:
        await self._hang(key)
        await super().delete(key)


async def publish_in(store: MemoryBundleStore, installation: Installation, bundle: SampleBundle) -> SampleBundle:
    await installation.publish(bundle)
    for path in installation.object_path("").rglob("bundle.*"):
        store.objects[str(path.relative_to(installation.object_path("")))] = path.read_bytes()
    return bundle


async def test_a_store_that_hangs_costs_its_time_once_and_is_then_left_alone(installation: Installation) -> None:
    store = SlowStore()
    bundles = [await publish_in(store, installation, make_bundle(f"com.example.n{number}")) for number in range(3)]
    settings = replace(SHARING, transfer_seconds=0.2)
    loader = installation.loader(sharing=settings, store=store)
    for bundle in bundles:
        assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    assert installation.metrics.seen["loaded:compiler"] == 3
    assert installation.metrics.seen["shared:found"] == installation.metrics.seen["shared:stored"] == 0
    async with asyncio.timeout(10):
        await loader.aclose()


@pytest.mark.parametrize("method", ["read", "open", "stat", "put_if_absent", "delete"])
async def test_a_store_that_fails_harms_nobody(installation: Installation, method: str) -> None:
    store = MemoryBundleStore()
    bundle = await publish_in(store, installation, make_bundle())
    await installation.loader(sharing=SHARING, store=store, cache_folder=installation.folder / "first").load(bundle.hash)
    await until(lambda: key_of(bundle, ".record.json") in store.objects)

    class Failing(MemoryBundleStore):
        def _maybe_fail(self, name: str, key: str) -> None:
            if name == method and key.startswith("compiled/"):
                raise RefusalError(Reason.BUNDLE_UNAVAILABLE, "The bundle store does not answer; try again.")

    failing = Failing()
    failing.objects = store.objects
    loader = installation.loader(sharing=SHARING, store=failing)
    assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    await loader.aclose()
    if method in {"read", "open"}:
        assert installation.metrics.seen["shared:unavailable"] == 1
        assert installation.metrics.seen["loaded:compiler"] == 2


async def test_more_offers_than_wait_are_dropped_and_the_rest_is_shared(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "_MAX_OFFERS", 1)
    gate = asyncio.Event()

    class Gated(MemoryBundleStore):
        async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
            if key.endswith(".cwasm"):
                await gate.wait()
            return await super().put_if_absent(key, source, content_type=content_type)

    store = Gated()
    bundles = [await publish_in(store, installation, make_bundle(f"com.example.n{number}")) for number in range(3)]
    loader = installation.loader(sharing=SHARING, store=store)
    for bundle in bundles:
        await loader.load(bundle.hash)
    gate.set()
    await until(lambda: not any(key.endswith(".claim") for key in store.objects))
    await loader.aclose()
    assert installation.metrics.seen["shared:dropped"] == 2
    assert [key_of(bundle, ".record.json") in store.objects for bundle in bundles] == [True, False, False]


async def test_an_artifact_that_vanishes_between_two_looks__gives_its_claim_back(installation: Installation) -> None:
    class Vanishing(MemoryBundleStore):
        async def put_if_absent(self, key: str, source: Path | bytes, *, content_type: str) -> bool:
            # Says that it is there already; whoever can write there has taken it away when it is looked at.
            return not key.endswith(".cwasm") and await super().put_if_absent(key, source, content_type=content_type)

    store = Vanishing()
    bundle = await publish_in(store, installation, make_bundle())
    loader = installation.loader(sharing=SHARING, store=store)
    assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    await until(lambda: installation.metrics.seen["shared:occupied"] == 1)
    await until(lambda: not any(key.endswith(".claim") for key in store.objects))
    await loader.aclose()


@pytest.mark.parametrize("size", [257, 1 << 40])
async def test_a_planted_claim_of_any_length_is_waited_for_and_then_overtaken(installation: Installation, size: int) -> None:
    bundle = await installation.publish(make_bundle())
    claim = path_of(installation, bundle, ".claim")
    claim.parent.mkdir(mode=0o700, parents=True)
    claim.touch(mode=0o600)
    os.truncate(claim, size)
    loader = installation.loader(sharing=SHARING)
    assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    await shared(installation, bundle)
    await loader.aclose()
    assert installation.metrics.seen["shared:waited_in_vain"] == installation.metrics.seen["shared:unavailable"] == 0
    assert installation.metrics.seen["shared:stored"] == 1


async def test_a_folder_in_the_place_of_a_claim_costs_the_sharing_only(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    claim = path_of(installation, bundle, ".claim")
    claim.mkdir(mode=0o700, parents=True)
    assert await load(installation, bundle) == artifact_for(WASM)
    assert installation.metrics.seen["shared:unavailable"] == 1
    assert claim.is_dir()


@pytest.mark.parametrize("method", ["read", "put_if_absent", "delete"])
@pytest.mark.parametrize("reason", [Reason.BUNDLE_CORRUPT, Reason.HASH_DENIED, Reason.INTERNAL])
async def test_whatever_the_store_refuses_about_a_claim_the_bundle_loads(installation: Installation, method: str, reason: Reason) -> None:
    class Refusing(MemoryBundleStore):
        def _maybe_fail(self, name: str, key: str) -> None:
            if name == method and key.endswith(".claim"):
                raise RefusalError(reason, "No.")

    store = Refusing()
    bundle = await publish_in(store, installation, make_bundle())
    store.objects[key_of(bundle, ".claim")] = b"of a daemon that is gone"
    loader = installation.loader(sharing=replace(SHARING, stale_seconds=0.1), store=store)
    assert read((await loader.load(bundle.hash)).artifact) == artifact_for(WASM)
    await loader.aclose()


@pytest.mark.parametrize("sharing", [Sharing.OFF, Sharing.READ])
async def test_who_does_not_share_leaves_nothing(installation: Installation, sharing: Sharing) -> None:
    bundle = await installation.publish(make_bundle())
    await load(installation, bundle, sharing=replace(SHARING, sharing=sharing))
    assert not installation.object_path("compiled").exists()
    assert installation.metrics.seen["shared:absent"] == (1 if sharing is Sharing.READ else 0)


async def test_sharing_is_off_unless_it_is_asked_for(other: Installation, pair: tuple[SampleBundle, SampleBundle]) -> None:
    await load(other, pair[0], sharing=SharingSettings())
    assert other.metrics.seen["loaded:compiler"] == 1
    assert not any(name.startswith("shared:") for name in other.metrics.seen)


def narrow_signers(installation: Installation, bundle: SampleBundle) -> None:
    installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=(BOB,))


def swap_root(installation: Installation, bundle: SampleBundle) -> None:
    # The verifier of both daemons is one object: the root was replaced for the fleet.
    installation.verifier.root = "another root"


def deny(installation: Installation, bundle: SampleBundle) -> None:
    installation.resolver.denied.add(bundle.hash)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(narrow_signers, Reason.SIGNATURE_REJECTED), (swap_root, Reason.SIGNATURE_REJECTED), (deny, Reason.HASH_DENIED)],
)
@pytest.mark.parametrize("warm_cache", [True, False])
async def test_what_changed_while_the_daemon_was_down_counts_whatever_the_fleet_left(
    other: Installation,
    pair: tuple[SampleBundle, SampleBundle],
    change: Callable[[Installation, SampleBundle], None],
    reason: Reason,
    warm_cache: bool,
) -> None:
    bundle = pair[0]
    if warm_cache:
        await load(other, bundle)
    other.metrics.seen.clear()
    change(other, bundle)
    loader: ExtensionLoader = other.loader(sharing=SHARING)
    for attempt in (loader.load, loader.warm):
        with pytest.raises(RefusalError) as caught:
            await attempt(bundle.hash)
        assert caught.value.reason is reason
    for entry in await loader.list_cached():
        with pytest.raises(RefusalError):
            await loader.check(entry)
    await loader.aclose()
    assert other.compiler.compiled == []
    assert not any(name.startswith(("loaded:", "shared:")) for name in other.metrics.seen)


async def test_real_native_code_of_another_bundle_never_runs(installation: Installation) -> None:
    fingerprint = engine_fingerprint()
    compiler = Compiler(CompilerSettings(), engine_fingerprint=fingerprint)
    made = [make_bundle(f"com.example.{name}", wasm=marker_guest(f"I am {name}"), publisher=name) for name in ("a", "b")]
    a, b = [await installation.publish(bundle) for bundle in made]
    loader = installation.loader(compiler=compiler, fingerprint=fingerprint, sharing=SHARING)
    for bundle in (a, b):
        await loader.load(bundle.hash)
        claim = path_of(installation, bundle, ".claim", fingerprint)
        await until(lambda path=claim: not path.exists())  # type: ignore[misc]
    other = installation.neighbour(installation.folder / "other")
    taken = await other.loader(compiler=compiler, fingerprint=fingerprint, sharing=SHARING).load(b.hash)
    assert run_marker(taken.artifact.fileno()) == "I am b"
    assert other.metrics.seen["loaded:shared"] == 1
    for suffix in (".cwasm", ".record.json"):
        shutil.copy(path_of(installation, a, suffix, fingerprint), path_of(installation, b, suffix, fingerprint))
    third = installation.neighbour(installation.folder / "third")
    own = await third.loader(compiler=compiler, fingerprint=fingerprint, sharing=SHARING).load(b.hash)
    assert run_marker(own.artifact.fileno()) == "I am b"
    assert third.metrics.seen["shared:rejected"] == third.metrics.seen["loaded:compiler"] == 1
    await loader.aclose()
