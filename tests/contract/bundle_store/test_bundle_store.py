"""What every bundle store promises; runs on each of them, the fake included."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import pytest

from registry.bundles.local import LocalBundleStore
from registry.bundles.store import CHUNK_BYTES, BundleStore, ObjectInfo, ObjectNotFoundError, download, object_keys
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from tests.fakes.bundle_store import MemoryBundleStore

KEY = "sha256/" + "ab" * 32 + "/bundle.tar.zst"
TYPE = "application/zstd"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BundleStore:
    return LocalBundleStore(tmp_path / "bundles") if request.param == "local" else MemoryBundleStore()


async def test_an_object_is_read_as_it_was_written(store: BundleStore) -> None:
    assert await store.put_if_absent(KEY, b"bytes", content_type=TYPE)
    assert await store.read(KEY, 5) == b"bytes"
    assert await store.stat(KEY) == ObjectInfo(key=KEY, size=5)


async def test_an_object_from_a_file_is_read_in_chunks(store: BundleStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end"
    source = tmp_path / "source"
    source.write_bytes(data)
    assert await store.put_if_absent(KEY, source, content_type=TYPE)
    async with store.open(KEY) as chunks:
        read = [chunk async for chunk in chunks]
    assert b"".join(read) == data
    assert max(map(len, read)) <= CHUNK_BYTES


async def test_an_empty_object_is_an_object(store: BundleStore) -> None:
    assert await store.put_if_absent(KEY, b"", content_type=TYPE)
    assert await store.read(KEY, 0) == b""
    async with store.open(KEY) as chunks:
        assert [chunk async for chunk in chunks] == []


async def test_the_first_writer_wins(store: BundleStore) -> None:
    assert await store.put_if_absent(KEY, b"first", content_type=TYPE)
    assert not await store.put_if_absent(KEY, b"second", content_type=TYPE)
    assert await store.read(KEY, 100) == b"first"


async def test_of_many_concurrent_writers_exactly_one_wins(store: BundleStore) -> None:
    won = await asyncio.gather(*(store.put_if_absent(KEY, b"%d" % number, content_type=TYPE) for number in range(12)))
    assert won.count(True) == 1
    assert await store.read(KEY, 100) == b"%d" % won.index(True)


async def test_what_is_not_there_is_told(store: BundleStore) -> None:
    assert await store.stat(KEY) is None
    with pytest.raises(ObjectNotFoundError):
        await store.read(KEY, 1)
    with pytest.raises(ObjectNotFoundError):
        async with store.open(KEY):
            pass


async def test_a_failed_write_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    with pytest.raises((RefusalError, OSError)):
        await store.put_if_absent(KEY, tmp_path / "missing", content_type=TYPE)
    assert await store.stat(KEY) is None
    assert await store.put_if_absent(KEY, b"x", content_type=TYPE)


async def test_a_deleted_object_is_gone_and_can_be_written_again(store: BundleStore) -> None:
    await store.put_if_absent(KEY, b"first", content_type=TYPE)
    await store.delete(KEY)
    assert await store.stat(KEY) is None
    await store.delete(KEY)
    assert await store.put_if_absent(KEY, b"second", content_type=TYPE)


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
async def test_reading_whole_is_bounded(store: BundleStore, size: int, fits: bool) -> None:
    await store.put_if_absent(KEY, b"x" * size, content_type=TYPE)
    if fits:
        assert await store.read(KEY, 10) == b"x" * size
        return
    with pytest.raises(RefusalError) as refusal:
        await store.read(KEY, 10)
    assert refusal.value.reason is Reason.BUNDLE_CORRUPT


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.hidden", "a\\b", "A/b", "a/b\n", "a\0b", "a b", "ä", "x" * 513],
)
async def test_a_malformed_key_reaches_nothing(store: BundleStore, key: str) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        await store.put_if_absent(key, b"x", content_type=TYPE)
    with pytest.raises(ValueError, match="not an object key"):
        await store.read(key, 1)
    with pytest.raises(ValueError, match="not an object key"):
        await store.stat(key)
    with pytest.raises(ValueError, match="not an object key"):
        await store.delete(key)
    with pytest.raises(ValueError, match="not an object key"):
        store.open(key)


async def test_a_download_hashes_what_it_writes(store: BundleStore) -> None:
    data = b"d" * (CHUNK_BYTES + 1)
    await store.put_if_absent(KEY, data, content_type=TYPE)
    target = io.BytesIO()
    assert await download(store, KEY, target, max_bytes=len(data)) == content_hash(data)
    assert target.getvalue() == data


async def test_a_download_is_bounded(store: BundleStore) -> None:
    await store.put_if_absent(KEY, b"x" * 11, content_type=TYPE)
    target = io.BytesIO()
    with pytest.raises(RefusalError) as refusal:
        await download(store, KEY, target, max_bytes=10)
    assert refusal.value.reason is Reason.BUNDLE_CORRUPT
    assert len(target.getvalue()) <= 10


def test_the_keys_of_a_bundle_are_those_of_the_contract() -> None:
    digits = hashlib.sha256(b"x").hexdigest()
    keys = object_keys(ContentHash("sha256:" + digits))
    assert keys.archive == f"sha256/{digits}/bundle.tar.zst"
    assert keys.signature == f"sha256/{digits}/bundle.sigstore.json"
    assert keys.manifest == f"sha256/{digits}/manifest.json"
