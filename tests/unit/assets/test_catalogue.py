from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import catalogue as catalogues
from runnerd.assets import index as indexes
from runnerd.assets.catalogue import Catalogue
from runnerd.children.budget import Budget
from tests.fakes.interface_files import EXTENSION, HASH, InterfaceShelf
from tests.unit.assets.conftest import Clock


@pytest.fixture
def shelf(tmp_path: Path) -> InterfaceShelf:
    shelf = InterfaceShelf(tmp_path / "ui")
    shelf.root.mkdir()
    return shelf


@pytest.fixture
def catalogue(shelf: InterfaceShelf, clock: Clock) -> Catalogue:
    return Catalogue(resolve=shelf.resolve, root=shelf.root, clock=clock)


async def read(catalogue: Catalogue, path: str) -> bytes:
    with os.fdopen(await catalogue.open(EXTENSION, HASH, path), "rb") as file:
        return file.read()


async def test_index__served_version__is_a_memory_file(catalogue: Catalogue, shelf: InterfaceShelf) -> None:
    shelf.put({"a.js": b"1", "ä/ö.css": b"22"})
    with os.fdopen(await catalogue.index(EXTENSION, HASH), "rb") as file:
        index = indexes.decode(os.pread(file.fileno(), 10_000, 0))
    assert index.entry == "index.html"
    assert {path: facts.size for path, facts in index.files.items()} == {"a.js": 1, "ä/ö.css": 2}


async def test_open__file_of_a_served_version__is_opened(catalogue: Catalogue, shelf: InterfaceShelf) -> None:
    shelf.put({"a.js": b"data"})
    assert await read(catalogue, "a.js") == b"data"


@pytest.mark.parametrize("path", ["b.js", "", "../a.js", "/a.js", "a.js\0", "None"])
async def test_open__path_that_the_index_does_not_name__is_refused(catalogue: Catalogue, shelf: InterfaceShelf, path: str) -> None:
    shelf.put({"a.js": b"data"})
    with pytest.raises(RefusalError) as refused:
        await catalogue.open(EXTENSION, HASH, path)
    assert refused.value.reason is Reason.ASSET_NOT_FOUND


async def test_open__version_taken_away__opens_nothing(catalogue: Catalogue, shelf: InterfaceShelf, clock: Clock) -> None:
    shelf.put({"a.js": b"data"})
    await read(catalogue, "a.js")
    shelf.served.clear()
    clock.now += catalogues.ANSWER_SECONDS
    with pytest.raises(RefusalError):
        await catalogue.open(EXTENSION, HASH, "a.js")


@pytest.mark.parametrize("names", [("x", HASH), (EXTENSION, "sha256:.."), ("../..", HASH), ("None", "None"), (EXTENSION, HASH + "\n")])
async def test_find__malformed_names__never_reach_the_registry(catalogue: Catalogue, shelf: InterfaceShelf, names: tuple[str, str]) -> None:
    with pytest.raises(RefusalError) as refused:
        await catalogue.find(*names)
    assert refused.value.reason is Reason.ASSET_NOT_FOUND
    assert not shelf.resolved


async def test_open__file_missing_on_disk__is_unavailable(catalogue: Catalogue, shelf: InterfaceShelf) -> None:
    shelf.put({"a.js": b"data"})
    shelf.place_of("a.js").unlink()
    with pytest.raises(RefusalError) as refused:
        await catalogue.open(EXTENSION, HASH, "a.js")
    assert refused.value.reason is Reason.BUNDLE_UNAVAILABLE


@pytest.mark.parametrize("kind", ["link", "link to the same bytes", "folder link", "fifo", "folder", "file for folder"])
async def test_open__anything_else_in_its_place__is_corrupt(catalogue: Catalogue, shelf: InterfaceShelf, tmp_path: Path, kind: str) -> None:
    shelf.put({"a.js": b"data"})
    place = shelf.place_of("a.js")
    secret = tmp_path / "secret"
    secret.write_bytes(b"data" if "same" in kind else b"key")
    place.unlink()
    if kind.startswith("link"):
        place.symlink_to(secret)
    elif kind == "folder link":
        place.parent.rmdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / place.name).write_bytes(b"data")
        place.parent.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.parent.rmdir()
        place.parent.write_bytes(b"")
    with pytest.raises(RefusalError) as refused:
        await catalogue.open(EXTENSION, HASH, "a.js")
    assert refused.value.reason is Reason.BUNDLE_CORRUPT


async def test_open__root_replaced_by_a_link__is_corrupt(shelf: InterfaceShelf, tmp_path: Path) -> None:
    shelf.put({"a.js": b"data"})
    shelf.root.rename(tmp_path / "moved")
    shelf.root.symlink_to(tmp_path / "moved")
    with pytest.raises(RefusalError) as refused:
        await Catalogue(resolve=shelf.resolve, root=shelf.root).open(EXTENSION, HASH, "a.js")
    assert refused.value.reason is Reason.BUNDLE_CORRUPT


async def test_find__answers__are_kept_for_a_moment(catalogue: Catalogue, shelf: InterfaceShelf, clock: Clock) -> None:
    shelf.put({"a.js": b"data"})
    for _ in range(20):
        await catalogue.find(EXTENSION, HASH)
    assert len(shelf.resolved) == 1
    clock.now += catalogues.ANSWER_SECONDS
    await catalogue.find(EXTENSION, HASH)
    assert len(shelf.resolved) == 2


async def test_find__hostile_child__cannot_make_the_daemon_resolve_without_bound(catalogue: Catalogue, shelf: InterfaceShelf) -> None:
    shelf.put({"a.js": b"data"})
    await catalogue.find(EXTENSION, HASH)
    reasons: set[Reason] = set()
    for number in range(2_000):
        with pytest.raises(RefusalError) as refused:
            await catalogue.find(EXTENSION, f"sha256:{number:064x}")
        reasons.add(refused.value.reason)
    assert len(shelf.resolved) <= catalogues.COLD_RESOLVES_BURST
    assert reasons == {Reason.ASSET_NOT_FOUND, Reason.OVERLOADED}
    assert len(catalogue._refused) <= catalogues.MAX_REFUSALS


async def test_find__version_served_a_moment_ago__is_not_starved_by_a_flood(shelf: InterfaceShelf, clock: Clock) -> None:
    catalogue = Catalogue(resolve=shelf.resolve, root=shelf.root, clock=clock, budget=Budget(per_second=0, burst=1, clock=clock))
    shelf.put({"a.js": b"data"})
    await catalogue.find(EXTENSION, HASH)
    with pytest.raises(RefusalError) as refused:
        await catalogue.find(EXTENSION, "sha256:" + "0" * 64)
    assert refused.value.reason is Reason.OVERLOADED
    clock.now += 60
    assert (await catalogue.find(EXTENSION, HASH)).files


async def test_find__many_at_once__resolve_a_few_at_once(shelf: InterfaceShelf) -> None:
    running = highest = 0

    async def resolve(extension: str, content_hash: str) -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0.005)
        running -= 1

    catalogue = Catalogue(resolve=resolve, root=shelf.root)
    asked = (catalogue.find(EXTENSION, f"sha256:{number:064x}") for number in range(50))
    refusals = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(refusal, RefusalError) for refusal in refusals)
    assert highest == catalogues.MAX_RESOLVES_AT_ONCE


async def test_find__kept_answers__are_bounded(shelf: InterfaceShelf, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "MAX_INTERFACES", 2)
    monkeypatch.setattr(catalogues, "MAX_REFUSALS", 3)
    catalogue = Catalogue(resolve=shelf.resolve, root=shelf.root, clock=clock)
    for number in range(6):
        shelf.put({"a.js": b"1"}, content_hash=f"sha256:{number:064x}")
        await catalogue.find(EXTENSION, f"sha256:{number:064x}")
        with pytest.raises(RefusalError):
            await catalogue.find(EXTENSION, f"sha256:{number + 100:064x}")
    assert (len(catalogue._served), len(catalogue._refused)) == (2, 3)


async def test_find__refusal__has_its_reason_every_time(catalogue: Catalogue, shelf: InterfaceShelf) -> None:
    shelf.refused[EXTENSION, HASH] = RefusalError(Reason.SIGNATURE_REJECTED, "no")
    for _ in range(3):
        with pytest.raises(RefusalError) as refused:
            await catalogue.find(EXTENSION, HASH)
        assert refused.value.reason is Reason.SIGNATURE_REJECTED
    assert len(shelf.resolved) == 1


async def test_index__too_many_files__is_refused(catalogue: Catalogue, shelf: InterfaceShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put({"a.js": b"1"})
    monkeypatch.setattr(indexes, "MAX_INDEX_BYTES", 50)
    with pytest.raises(RefusalError) as refused:
        await catalogue.index(EXTENSION, HASH)
    assert refused.value.reason is Reason.INVALID_BUNDLE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entry":null}',
        b'{"entry":null,"files":[]}',
        b'{"entry":null,"files":{"a":1}}',
        b'{"entry":null,"files":{"a":["x",1]}}',
        b'{"entry":null,"files":{"a":["' + b"0" * 64 + b'",-1]}}',
        b'{"entry":null,"files":{"a":["' + b"0" * 64 + b'",true]}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_decode__anything_but_an_index__is_refused(data: bytes) -> None:
    with pytest.raises(indexes.IndexFormatError):
        indexes.decode(data)


@pytest.mark.parametrize("damage", ["missing", "link"])
async def test_open__file_not_as_verified__has_it_written_again(shelf: InterfaceShelf, clock: Clock, damage: str) -> None:
    discarded: list[str] = []

    async def discard(content_hash: str) -> None:
        discarded.append(content_hash)
        shelf.place_of("a.js").unlink(missing_ok=True)
        shelf.put({"a.js": b"data"})

    catalogue = Catalogue(resolve=shelf.resolve, root=shelf.root, discard=discard, clock=clock)
    shelf.put({"a.js": b"data"})
    shelf.place_of("a.js").unlink()
    if damage == "link":
        shelf.place_of("a.js").symlink_to("/dev/null")
    with pytest.raises(RefusalError):
        await catalogue.open(EXTENSION, HASH, "a.js")
    assert discarded == [HASH]
    before = len(shelf.resolved)
    assert await read(catalogue, "a.js") == b"data"
    assert len(shelf.resolved) == before + 1


async def test_discard__version_that_is_not_served__is_not_the_childs_to_touch(shelf: InterfaceShelf, clock: Clock) -> None:
    discarded: list[str] = []

    async def discard(content_hash: str) -> None:
        discarded.append(content_hash)

    catalogue = Catalogue(resolve=shelf.resolve, root=shelf.root, discard=discard, clock=clock)
    with pytest.raises(RefusalError):
        await catalogue.find(EXTENSION, HASH)
    await catalogue.discard(EXTENSION, HASH)
    await catalogue.discard("../..", "x")
    assert not discarded


async def test_discard__claimed_again_and_again__is_done_at_a_bounded_rate(shelf: InterfaceShelf, clock: Clock) -> None:
    discarded: list[str] = []

    async def discard(content_hash: str) -> None:
        discarded.append(content_hash)

    catalogue = Catalogue(resolve=shelf.resolve, root=shelf.root, discard=discard, clock=clock)
    shelf.put({"a.js": b"data"})
    await catalogue.find(EXTENSION, HASH)
    for _ in range(1_000):
        await catalogue.discard(EXTENSION, HASH)
    assert len(discarded) == catalogues.DISCARDS_BURST
