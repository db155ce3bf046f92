"""T31: a warm cache saves the download and the compilation, never a check; altered files are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry.bundles.store import object_keys
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.loader import ExtensionLoader
from tests.fakes.loading import ALICE, BOB, WASM, Installation, SampleBundle, artifact_for, make_bundle, read

PAGES = {"index.html": b"<script src=app.js></script>", "app.js": b"genuine()"}


@pytest.fixture
async def bundle(installation: Installation) -> SampleBundle:
    """Published, compiled, cached; then the daemon went down."""
    made = await installation.publish(make_bundle(ui=PAGES, signers=(ALICE, BOB)))
    loader = installation.loader()
    await loader.warm(made.hash)
    await loader.aclose()
    installation.metrics.seen.clear()
    installation.compiler.compiled.clear()
    return made


async def reasons(loader: ExtensionLoader, bundle: SampleBundle) -> set[Reason]:
    """Why it neither runs, nor is warmed, nor served."""
    found: set[Reason] = set()
    for attempt in (loader.load, loader.warm, loader.interface):
        with pytest.raises(RefusalError) as caught:
            await attempt(bundle.hash)
        found.add(caught.value.reason)
    return found


def narrow_signers(installation: Installation, bundle: SampleBundle) -> None:
    installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=(BOB,))


def remove_signers(installation: Installation, bundle: SampleBundle) -> None:
    installation.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=())


def swap_root(installation: Installation, bundle: SampleBundle) -> None:
    installation.verifier.root = "another root"


def deny(installation: Installation, bundle: SampleBundle) -> None:
    installation.resolver.denied.add(bundle.hash)


def withdraw(installation: Installation, bundle: SampleBundle) -> None:
    del installation.resolver.bundles[bundle.hash]


def alter_signature(installation: Installation, bundle: SampleBundle) -> None:
    path = installation.object_path(object_keys(bundle.hash).signature)
    path.write_bytes(path.read_bytes().replace(b"alice", b"mallory"))


def cut_signature(installation: Installation, bundle: SampleBundle) -> None:
    path = installation.object_path(object_keys(bundle.hash).signature)
    path.write_bytes(path.read_bytes()[:-1])


def swap_signature(installation: Installation, bundle: SampleBundle) -> None:
    other = make_bundle("com.example.other")
    installation.object_path(object_keys(bundle.hash).signature).write_bytes(installation.verifier.sign(other.hash))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (narrow_signers, Reason.SIGNATURE_REJECTED),
        (remove_signers, Reason.SIGNATURE_REJECTED),
        (swap_root, Reason.SIGNATURE_REJECTED),
        (alter_signature, Reason.SIGNATURE_REJECTED),
        (cut_signature, Reason.SIGNATURE_REJECTED),
        (swap_signature, Reason.SIGNATURE_REJECTED),
        (deny, Reason.HASH_DENIED),
        (withdraw, Reason.VERSION_NOT_FOUND),
    ],
)
async def test_what_changed_while_the_daemon_was_down_counts(
    installation: Installation, bundle: SampleBundle, change: Callable[[Installation, SampleBundle], None], reason: Reason
) -> None:
    change(installation, bundle)
    assert await reasons(installation.loader(), bundle) == {reason}
    assert installation.compiler.compiled == []
    assert not any(name.startswith("loaded:") for name in installation.metrics.seen)


@pytest.mark.parametrize("change", [narrow_signers, swap_root, deny])
async def test_what_changes_while_the_daemon_runs_counts_at_the_next_load(
    installation: Installation, bundle: SampleBundle, change: Callable[[Installation, SampleBundle], None]
) -> None:
    loader = installation.loader()
    await loader.load(bundle.hash)
    await loader.interface(bundle.hash)
    change(installation, bundle)
    assert await reasons(loader, bundle) <= {Reason.SIGNATURE_REJECTED, Reason.HASH_DENIED}


@pytest.mark.parametrize("place", [0, 20, -1])
async def test_an_altered_archive_never_runs_and_is_never_served(installation: Installation, place: int) -> None:
    made = await installation.publish(make_bundle(ui=PAGES))
    path = installation.object_path(object_keys(made.hash).archive)
    data = bytearray(made.archive)
    data[place] ^= 1
    path.write_bytes(data)
    assert await reasons(installation.loader(), made) == {Reason.BUNDLE_CORRUPT}
    assert installation.compiler.compiled == []
    assert not list((installation.cache / "ui").glob("[0-9a-f][0-9a-f]/*"))


async def test_another_genuine_archive_under_this_hash_never_runs(installation: Installation) -> None:
    made = await installation.publish(make_bundle())
    other = make_bundle("com.example.other", wasm=WASM + b"other")
    installation.object_path(object_keys(made.hash).archive).write_bytes(other.archive)
    assert await reasons(installation.loader(), made) == {Reason.BUNDLE_CORRUPT}
    assert installation.compiler.compiled == []


async def test_an_archive_with_an_altered_signature_never_runs(installation: Installation) -> None:
    made = await installation.publish(make_bundle(ui=PAGES))
    alter_signature(installation, made)
    assert await reasons(installation.loader(), made) == {Reason.SIGNATURE_REJECTED}
    assert installation.compiler.compiled == []


async def test_an_archive_altered_after_it_was_cached_does_not_matter_until_it_is_read(
    installation: Installation, bundle: SampleBundle
) -> None:
    installation.object_path(object_keys(bundle.hash).archive).write_bytes(b"altered")
    assert read((await installation.loader().load(bundle.hash)).artifact) == artifact_for(WASM)
    installation.artifact_path(bundle).unlink()
    with pytest.raises(RefusalError) as caught:
        await installation.loader().load(bundle.hash)
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


def page(installation: Installation, data: bytes) -> Path:
    (path,) = (path for path in (installation.cache / "ui").glob("[0-9a-f][0-9a-f]/*") if path.read_bytes() == data)
    return path


@pytest.mark.parametrize("how", ["altered", "replaced", "link", "missing", "folder", "other page"])
async def test_a_page_altered_on_disk_is_found_and_written_again(installation: Installation, bundle: SampleBundle, how: str) -> None:
    path = page(installation, b"genuine()")
    other = page(installation, PAGES["index.html"])
    path.chmod(0o644)
    match how:
        case "altered":
            path.write_bytes(b"evil()   ")
        case "replaced":
            path.unlink()
            path.write_bytes(b"evil()")
        case "link":
            path.unlink()
            (installation.folder / "evil").write_bytes(b"evil()")
            path.symlink_to(installation.folder / "evil")
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "other page":
            path.unlink()
            path.symlink_to(other)
    index = await installation.loader().interface(bundle.hash)
    assert path.read_bytes() == b"genuine()"
    assert not path.is_symlink()
    assert set(index.files) == set(PAGES)
    assert installation.metrics.seen["verification:ARTIFACT_REJECTED"] == 1


async def test_a_page_altered_on_disk_is_not_served_when_the_archive_is_gone(installation: Installation, bundle: SampleBundle) -> None:
    page(installation, b"genuine()").unlink()
    installation.object_path(object_keys(bundle.hash).archive).unlink()
    with pytest.raises(RefusalError) as caught:
        await installation.loader().interface(bundle.hash)
    assert caught.value.reason is Reason.BUNDLE_UNAVAILABLE


async def test_a_reader_that_found_an_altered_page_has_it_written_again(installation: Installation, bundle: SampleBundle) -> None:
    loader = installation.loader()
    await loader.interface(bundle.hash)
    path = page(installation, b"genuine()")
    path.unlink()
    path.write_bytes(b"evil()")
    await loader.discard_interface(bundle.hash)
    await loader.interface(bundle.hash)
    assert path.read_bytes() == b"genuine()"
    assert installation.metrics.seen["verification:BUNDLE_CORRUPT"] == 1


async def test_an_index_cannot_give_a_page_another_extensions_script(installation: Installation, bundle: SampleBundle) -> None:
    evil = await installation.publish(make_bundle("com.evil.page", ui={"index.html": b"x", "app.js": b"evil()"}))
    await installation.loader().warm(evil.hash)
    indexes = installation.cache / "ui" / "index"
    mine, theirs = (indexes / f"{one.hash.removeprefix('sha256:')}.json" for one in (bundle, evil))
    record = json.loads(mine.read_bytes())
    record["body"]["files"]["app.js"] = json.loads(theirs.read_bytes())["body"]["files"]["app.js"]
    for forged in (json.dumps(record).encode(), theirs.read_bytes()):
        installation.metrics.seen.clear()
        mine.write_bytes(forged)
        index = await installation.loader().interface(bundle.hash)
        app = index.files["app.js"].sha256
        assert (index.folder / app[:2] / app).read_bytes() == b"genuine()"
        assert installation.metrics.seen["verification:ARTIFACT_REJECTED"] == 1


async def test_an_interface_whose_index_another_process_removed_is_made_again(installation: Installation, bundle: SampleBundle) -> None:
    loader = installation.loader()
    await loader.interface(bundle.hash)
    (installation.cache / "ui" / "index" / f"{bundle.hash.removeprefix('sha256:')}.json").unlink()
    page(installation, b"genuine()").unlink()
    await loader.interface(bundle.hash)
    assert page(installation, b"genuine()").exists()
