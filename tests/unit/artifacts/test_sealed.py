from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from runnerd.artifacts.sealed import SealedFile, SealError, new_memory_file, read_all, seal_bytes, seal_copy, write_all


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_sealed_file_knows_its_size_and_digest() -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    sealed = seal_bytes("test", data)
    assert (sealed.size, sealed.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert read_all(sealed.fileno(), size=sealed.size) == data


def test_an_empty_file_can_be_sealed() -> None:
    sealed = seal_bytes("test", b"")
    assert (sealed.size, sealed.sha256) == (0, hashlib.sha256(b"").hexdigest())


def _write_reopened(descriptor: int) -> None:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        os.write(again, b"forged!")
    finally:
        os.close(again)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda descriptor: os.write(descriptor, b"forged!"), id="write"),
        pytest.param(lambda descriptor: os.pwrite(descriptor, b"forged!", 0), id="pwrite"),
        pytest.param(lambda descriptor: os.ftruncate(descriptor, 1), id="shrink"),
        pytest.param(lambda descriptor: os.ftruncate(descriptor, 100), id="grow"),
        pytest.param(_write_reopened, id="reopen"),
        pytest.param(lambda descriptor: os.posix_fallocate(descriptor, 0, 4096), id="allocate"),
        pytest.param(lambda descriptor: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0), id="add seals"),
    ],
)
def test_nobody_can_change_a_sealed_file(change: Callable[[int], object]) -> None:
    sealed = seal_bytes("test", b"genuine")
    with pytest.raises(PermissionError) as caught:
        change(sealed.fileno())
    assert caught.value.errno == errno.EPERM
    assert os.pread(sealed.fileno(), 7, 0) == b"genuine"


def test_a_sealed_file_cannot_be_mapped_writable() -> None:
    sealed = seal_bytes("test", b"genuine")
    with pytest.raises(PermissionError):
        mmap.mmap(sealed.fileno(), 7, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_a_private_mapping_does_not_reach_the_file() -> None:
    sealed = seal_bytes("test", b"genuine")
    with mmap.mmap(sealed.fileno(), 7, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
        private[:6] = b"forged"
    assert os.pread(sealed.fileno(), 7, 0) == b"genuine"


def test_a_file_that_somebody_holds_mapped_writable_is_not_sealed() -> None:
    descriptor = new_memory_file("test")
    write_all(descriptor, b"genuine")
    with mmap.mmap(descriptor, 7), pytest.raises(SealError):
        SealedFile(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_file_that_cannot_be_sealed_is_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT)
    with pytest.raises(SealError):
        SealedFile(descriptor)


def test_a_copy_is_of_the_bytes_at_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    path.write_bytes(b"genuine")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sealed = seal_copy("test", descriptor, size=7)
        path.write_bytes(b"forged!")
        assert os.pread(sealed.fileno(), 7, 0) == b"genuine"
    finally:
        os.close(descriptor)


def test_a_source_that_is_shorter_than_said_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    path.write_bytes(b"short")
    descriptor = os.open(path, os.O_RDONLY)
    before = descriptors()
    try:
        with pytest.raises(SealError):
            seal_copy("test", descriptor, size=6)
        assert descriptors() <= before
        with pytest.raises(SealError):
            read_all(descriptor, size=6)
    finally:
        os.close(descriptor)


def test_the_descriptor_lives_as_long_as_its_last_holder() -> None:
    sealed = seal_bytes("test", b"genuine")
    descriptor = sealed.fileno()
    holder = {"kept": sealed}
    gone = weakref.ref(sealed)
    del sealed
    assert os.fstat(descriptor).st_size == 7
    holder.clear()
    gc.collect()
    assert gone() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_closed_file_hands_out_no_descriptor() -> None:
    sealed = seal_bytes("test", b"genuine")
    sealed.close()
    sealed.close()
    with pytest.raises(ValueError, match="closed"):
        sealed.fileno()


def test_no_child_inherits_a_memory_file() -> None:
    assert not os.get_inheritable(seal_bytes("test", b"x").fileno())
