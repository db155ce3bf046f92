from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.assets.content import CHUNK_BYTES, OpenFiles, VerifiedFile
from runnerd.assets.index import FileFacts


def write(path: Path, data: bytes) -> FileFacts:
    path.write_bytes(data)
    return FileFacts(hashlib.sha256(data).hexdigest(), len(data))


def descriptor_of(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
async def test_verify__untouched_file__yields_its_bytes_again_and_again(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    facts = write(tmp_path / "f", data)
    file = await VerifiedFile.verify(descriptor_of(tmp_path / "f"), facts)
    assert b"".join(file.chunks()) == data
    assert b"".join(file.chunks()) == data


@pytest.mark.parametrize("change", ["flip", "longer", "shorter", "empty"])
async def test_verify__altered_file__is_refused_and_closed(tmp_path: Path, change: str) -> None:
    data = os.urandom(CHUNK_BYTES + 10)
    facts = write(tmp_path / "f", data)
    altered = {"flip": b"\x00" + data[1:] if data[0] else b"\x01" + data[1:], "longer": data + b"x", "shorter": data[:-1], "empty": b""}
    (tmp_path / "f").write_bytes(altered[change])
    descriptor = descriptor_of(tmp_path / "f")
    with pytest.raises(RefusalError) as refused:
        await VerifiedFile.verify(descriptor, facts)
    assert refused.value.reason is Reason.BUNDLE_CORRUPT
    assert not is_open(descriptor)


@pytest.mark.parametrize("offset", [0, CHUNK_BYTES, 2 * CHUNK_BYTES])
async def test_chunks__file_altered_after_verification__altered_bytes_are_never_yielded(tmp_path: Path, offset: int) -> None:
    data = bytes(2 * CHUNK_BYTES + 5)
    facts = write(tmp_path / "f", data)
    file = await VerifiedFile.verify(descriptor_of(tmp_path / "f"), facts)
    with (tmp_path / "f").open("r+b") as target:
        target.seek(offset)
        target.write(b"evil")
    served: list[bytes] = []
    with pytest.raises(RefusalError) as refused:
        served.extend(file.chunks())
    assert refused.value.reason is Reason.BUNDLE_CORRUPT
    assert b"".join(served) == data[:offset]


async def test_chunks__file_truncated_after_verification__is_refused(tmp_path: Path) -> None:
    facts = write(tmp_path / "f", bytes(CHUNK_BYTES + 1))
    file = await VerifiedFile.verify(descriptor_of(tmp_path / "f"), facts)
    os.truncate(tmp_path / "f", 0)
    with pytest.raises(RefusalError):
        next(file.chunks())


async def test_chunks__path_replaced_after_verification__serves_what_was_verified(tmp_path: Path) -> None:
    facts = write(tmp_path / "f", b"good")
    file = await VerifiedFile.verify(descriptor_of(tmp_path / "f"), facts)
    (tmp_path / "new").write_bytes(b"evil")
    (tmp_path / "new").replace(tmp_path / "f")
    assert b"".join(file.chunks()) == b"good"


async def test_open_files__limit__closes_the_least_recently_used_when_its_reader_is_done(tmp_path: Path) -> None:
    files = OpenFiles(limit=2)
    facts = [write(tmp_path / str(number), bytes([number])) for number in range(3)]
    descriptors: list[int] = []

    async def fetch(number: int) -> int:
        descriptors.append(descriptor_of(tmp_path / str(number)))
        return descriptors[-1]

    reader = await files.get(facts[0], lambda: fetch(0))
    await files.get(facts[1], lambda: fetch(1))
    await files.get(facts[0], lambda: fetch(0))
    await files.get(facts[2], lambda: fetch(2))
    assert [is_open(descriptor) for descriptor in descriptors] == [True, False, True]
    await files.get(facts[1], lambda: fetch(1))
    assert is_open(descriptors[0])
    assert b"".join(reader.chunks()) == b"\x00"
    del reader
    assert not is_open(descriptors[0])


async def test_open_files__many_readers_at_once__open_it_once(tmp_path: Path) -> None:
    files = OpenFiles()
    facts = write(tmp_path / "f", b"x")
    fetched = 0

    async def fetch() -> int:
        nonlocal fetched
        fetched += 1
        await asyncio.sleep(0)
        return descriptor_of(tmp_path / "f")

    found = await asyncio.gather(*(files.get(facts, fetch) for _ in range(20)))
    assert fetched == 1
    assert len({id(file) for file in found}) == 1


async def test_open_files__one_reader_leaves__the_others_still_get_it(tmp_path: Path) -> None:
    files = OpenFiles()
    facts = write(tmp_path / "f", b"x")
    go = asyncio.Event()

    async def fetch() -> int:
        await go.wait()
        return descriptor_of(tmp_path / "f")

    first, second = asyncio.ensure_future(files.get(facts, fetch)), asyncio.ensure_future(files.get(facts, fetch))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert b"".join((await second).chunks()) == b"x"


async def test_open_files__altered_file__is_tried_anew_next_time(tmp_path: Path) -> None:
    files = OpenFiles()
    facts = write(tmp_path / "f", b"good")
    (tmp_path / "f").write_bytes(b"evil")

    async def fetch() -> int:
        return descriptor_of(tmp_path / "f")

    for _ in range(2):
        with pytest.raises(RefusalError):
            await files.get(facts, fetch)
    (tmp_path / "f").write_bytes(b"good")
    assert b"".join((await files.get(facts, fetch)).chunks()) == b"good"
