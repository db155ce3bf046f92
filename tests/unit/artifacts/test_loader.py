from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.bundles.layout import BundleLimits
from registry.bundles.store import object_keys
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.loader import ExtensionLoader
from tests.fakes.loading import BOB, WASM, Installation, SampleBundle, artifact_for, make_bundle, read


async def refused(loader: ExtensionLoader, bundle: SampleBundle | ContentHash, **options: Any) -> RefusalError:
    target = bundle.hash if isinstance(bundle, SampleBundle) else bundle
    with pytest.raises(RefusalError) as caught:
        await loader.load(target, **options)
    return caught.value


async def closed(descriptor: int) -> None:
    """Wait until nobody holds the descriptor; the thread that wrote the cache lets go a moment after it is done."""
    async with asyncio.timeout(10):
        while Path(f"/proc/self/fd/{descriptor}").exists():  # noqa: ASYNC110, ASYNC240 - nobody signals it
            await asyncio.sleep(0.001)


async def compiling(installation: Installation) -> None:
    """Wait until the compiler has work."""
    async with asyncio.timeout(10):
        while not installation.compiler.compiled:  # noqa: ASYNC110 - the fake counts, it does not signal
            await asyncio.sleep(0.001)


async def test_a_bundle_is_verified_compiled_and_sealed(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    extension = await installation.loader().load(bundle.hash)
    assert read(extension.artifact) == artifact_for(WASM)
    assert (extension.content_hash, extension.bundle, extension.memories) == (bundle.hash, bundle.loadable, 1)
    assert extension.signer == "https://dev.invalid/people/alice"
    with pytest.raises(PermissionError):
        os.pwrite(extension.artifact.fileno(), b"x", 0)
    assert installation.compiler.publishers == ["publisher-example"]
    assert installation.metrics.seen == {"verification:ok": 2, "compiled": 1, "loaded:compiler": 1}
    # As the compiler's side measured it: neither waiting nor fetching.
    assert installation.metrics.compile_seconds == [0.25]


async def test_a_second_load_is_from_memory_and_a_second_daemon_loads_from_the_cache(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader()
    first, second = await loader.load(bundle.hash), await loader.load(bundle.hash)
    assert first.artifact is second.artifact
    again = await installation.loader().load(bundle.hash)
    assert read(again.artifact) == read(first.artifact)
    assert len(installation.compiler.compiled) == 1
    assert installation.metrics.seen["loaded:memory"] == installation.metrics.seen["loaded:cache"] == 1
    assert installation.verifier.calls == 2  # Once for each daemon, cache or not.


async def test_nothing_but_the_signature_is_read_from_the_store_when_the_cache_is_warm(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    await installation.loader().load(bundle.hash)
    installation.object_path(object_keys(bundle.hash).archive).unlink()
    assert (await installation.loader().load(bundle.hash)).content_hash == bundle.hash
    installation.object_path(object_keys(bundle.hash).signature).unlink()
    assert (await refused(installation.loader(), bundle)).reason is Reason.BUNDLE_UNAVAILABLE


async def test_many_calls_at_once_compile_once(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.gate = asyncio.Event()
    loader = installation.loader()
    calls = [asyncio.create_task(loader.load(bundle.hash)) for _ in range(20)]
    await compiling(installation)
    installation.compiler.gate.set()
    extensions = await asyncio.gather(*calls)
    assert len({extension.artifact.fileno() for extension in extensions}) == 1
    assert len(installation.compiler.compiled) == 1
    assert installation.verifier.calls == 1


async def test_who_cannot_wait_is_told_compiling_and_the_work_goes_on(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.gate = asyncio.Event()
    loader = installation.loader()
    refusal = await refused(loader, bundle, wait_seconds=0.01)
    assert (refusal.reason, refusal.retry_after_seconds) == (Reason.COMPILING, 3)
    installation.compiler.gate.set()
    assert (await loader.load(bundle.hash)).content_hash == bundle.hash
    assert len(installation.compiler.compiled) == 1


async def test_what_is_denied_while_it_compiles_is_not_handed_out(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.gate = asyncio.Event()
    call = asyncio.create_task(installation.loader().load(bundle.hash))
    await compiling(installation)
    installation.resolver.denied.add(bundle.hash)
    installation.compiler.gate.set()
    with pytest.raises(RefusalError) as caught:
        await call
    assert caught.value.reason is Reason.HASH_DENIED


async def test_what_is_denied_while_loaded_is_refused_at_the_next_load_and_its_memory_freed(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader()
    descriptor = (await loader.load(bundle.hash)).artifact.fileno()
    installation.resolver.denied.add(bundle.hash)
    assert (await refused(loader, bundle)).reason is Reason.HASH_DENIED
    await closed(descriptor)
    with pytest.raises(RefusalError):
        await loader.interface(bundle.hash)
    with pytest.raises(RefusalError):
        await loader.warm(bundle.hash)


@pytest.mark.parametrize("change", ["signers", "publisher", "root"])
async def test_other_grounds_need_another_verification(installation: Installation, change: str) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader()
    await loader.load(bundle.hash)
    match change:
        case "signers":
            installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=(BOB,))
        case "root":
            installation.verifier.root = "root-2"
        case _:
            installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, publisher_id="other", signers=(BOB,))  # type: ignore[arg-type]
    assert (await refused(loader, bundle)).reason is Reason.SIGNATURE_REJECTED
    assert installation.metrics.seen["verification:SIGNATURE_REJECTED"] == 1


async def test_a_signer_that_came_back_is_verified_again(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader()
    installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=())
    assert (await refused(loader, bundle)).reason is Reason.SIGNATURE_REJECTED
    installation.resolver.bundles[bundle.hash] = bundle.loadable
    assert (await loader.load(bundle.hash)).content_hash == bundle.hash


async def test_a_signature_is_verified_again_after_a_while(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader(reverify_seconds=0.0)
    await loader.load(bundle.hash)
    before = installation.verifier.calls
    await loader.load(bundle.hash)
    assert installation.verifier.calls > before


@pytest.mark.parametrize(
    "target", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "../../etc/passwd", "sha256:" + "0" * 64 + "\n"]
)
async def test_what_is_no_content_hash_is_refused(installation: Installation, target: str) -> None:
    assert (await refused(installation.loader(), ContentHash(target))).reason is Reason.INVALID_REQUEST


async def test_unknown_content_is_refused(installation: Installation) -> None:
    assert (await refused(installation.loader(), content_hash(b"unknown"))).reason is Reason.VERSION_NOT_FOUND


async def test_a_manifest_that_the_registry_does_not_hold_is_refused(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, manifest_digest=content_hash(b"another"))
    assert (await refused(installation.loader(), bundle)).reason is Reason.BUNDLE_CORRUPT
    assert installation.compiler.compiled == []


async def test_a_missing_archive_is_told(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.object_path(object_keys(bundle.hash).archive).unlink()
    assert (await refused(installation.loader(), bundle)).reason is Reason.BUNDLE_UNAVAILABLE


async def test_an_archive_larger_than_any_is_not_read(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    limits = BundleLimits(packed_bytes=len(bundle.archive) - 1)
    assert (await refused(installation.loader(bundle_limits=limits), bundle)).reason is Reason.BUNDLE_CORRUPT


async def test_a_rejected_component_costs_one_compilation_for_many_calls(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.refusal = RefusalError(Reason.COMPILE_REJECTED, "The component was rejected: too large.")
    loader = installation.loader()
    for _ in range(3):
        refusal = await refused(loader, bundle)
        assert (refusal.reason, refusal.public_detail) == (Reason.COMPILE_REJECTED, "The component was rejected: too large.")
    assert len(installation.compiler.compiled) == 1


async def test_an_overloaded_compiler_is_asked_again(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.refusal = RefusalError(Reason.OVERLOADED, "Try again.")
    loader = installation.loader()
    assert (await refused(loader, bundle)).reason is Reason.OVERLOADED
    installation.compiler.refusal = None
    assert (await loader.load(bundle.hash)).content_hash == bundle.hash


async def test_loaded_artifacts_have_a_budget_and_those_in_use_stay_open(installation: Installation) -> None:
    bundles = [await installation.publish(make_bundle(f"com.example.n{number}", wasm=WASM + bytes(1_000))) for number in range(3)]
    loader = installation.loader(loaded_bytes=2_500)
    held = await loader.load(bundles[0].hash)
    dropped = (await loader.load(bundles[1].hash)).artifact.fileno()
    await loader.load(bundles[2].hash)
    await loader.load(bundles[0].hash)
    await loader.load(bundles[2].hash)
    assert read(held.artifact) == artifact_for(WASM + bytes(1_000))
    await closed(dropped)


async def test_an_artifact_larger_than_the_budget_is_loaded_all_the_same(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader(loaded_bytes=1)
    first = await loader.load(bundle.hash)
    assert (await loader.load(bundle.hash)).artifact is first.artifact


async def test_a_full_disk_costs_the_cache_and_not_the_call(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = await installation.publish(make_bundle())
    loader = installation.loader()

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loader._cache, "store", full)
    assert (await loader.load(bundle.hash)).content_hash == bundle.hash


async def test_a_cache_folder_that_takes_nothing_is_told_without_its_path(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.cache.write_bytes(b"a file, not a folder")
    refusal = await refused(installation.loader(), bundle)
    assert refusal.reason is Reason.INTERNAL
    assert str(installation.folder) not in refusal.public_detail


async def test_the_archive_lies_in_a_file_without_a_name(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.gate = asyncio.Event()
    installation.compiler.gate.set()
    names: list[list[Path]] = []
    original = tempfile.TemporaryFile

    def spy(*args: Any, **kwargs: Any) -> Any:
        file = original(*args, **kwargs)
        names.append(list((installation.cache / "scratch").iterdir()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", spy)
    await installation.loader().load(bundle.hash)
    assert names == [[]]


async def test_a_key_before_the_current_one_still_verifies_during_a_rotation(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    await installation.loader().load(bundle.hash)
    old, installation.signer = installation.signer, ArtifactSigner.generate()
    installation.trusted.append(old)
    await installation.loader().load(bundle.hash)
    assert len(installation.compiler.compiled) == 1


async def test_warm_says_how_it_became_ready(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle(ui={"index.html": b"<p>"}))
    loader = installation.loader()
    first, second = await loader.warm(bundle.hash), await loader.warm(bundle.hash)
    assert (first.state, first.compile_seconds) == ("compiled", 0.25)
    assert (second.state, second.compile_seconds) == ("cached", 0.0)
    restarted = await installation.loader().warm(bundle.hash)
    assert (restarted.state, restarted.compile_seconds) == ("cached", 0.0)


async def test_an_interface_only_is_warm_without_a_compiler_and_cannot_run(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle(wasm=None, ui={"index.html": b"<p>"}))
    loader = installation.loader()
    assert (await loader.warm(bundle.hash)).state == "ui_only"
    assert (await refused(loader, bundle)).reason is Reason.ENDPOINT_NOT_FOUND
    assert installation.compiler.compiled == []


async def test_an_interface_lists_its_files_under_their_digests(installation: Installation) -> None:
    pages = {"index.html": b"<p>", "assets/app.js": b"run()", "empty.css": b""}
    bundle = await installation.publish(make_bundle(ui=pages))
    index = await installation.loader().interface(bundle.hash)
    assert (index.content_hash, index.entry) == (bundle.hash, "assets/app.js")
    assert {path: (index.folder / file.sha256[:2] / file.sha256).read_bytes() for path, file in index.files.items()} == pages
    assert {path: file.size for path, file in index.files.items()} == {path: len(data) for path, data in pages.items()}
    assert installation.compiler.compiled == []


async def test_an_extension_without_interface_has_an_empty_one(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    index = await installation.loader().interface(bundle.hash)
    assert (index.entry, dict(index.files)) == (None, {})


async def test_an_interface_is_there_after_a_restart_without_the_archive(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle(ui={"index.html": b"<p>"}))
    first = await installation.loader().interface(bundle.hash)
    installation.object_path(object_keys(bundle.hash).archive).unlink()
    assert (await installation.loader().interface(bundle.hash)).files == first.files


async def test_closing_stops_a_compilation_that_nobody_waits_for(installation: Installation) -> None:
    bundle = await installation.publish(make_bundle())
    installation.compiler.gate = asyncio.Event()
    loader = installation.loader()
    await refused(loader, bundle, wait_seconds=0.01)
    await loader.aclose()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
