from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from registry.domain.digests import ContentHash, content_hash, hex_of
from runnerd.artifacts.cache import ArtifactCache
from runnerd.artifacts.records import MAX_ARTIFACT_RECORD_BYTES
from runnerd.artifacts.sealed import seal_bytes
from tests.fakes.loading import FINGERPRINT, read

A, B, C = (content_hash(name) for name in (b"a", b"b", b"c"))
RECORD = b"record"


def make_cache(folder: Path, *, max_bytes: int = 10_000, max_artifact_bytes: int = 5_000, fingerprint: str = FINGERPRINT) -> ArtifactCache:
    return ArtifactCache(folder / "artifacts", fingerprint=fingerprint, max_bytes=max_bytes, max_artifact_bytes=max_artifact_bytes)


def path_of(folder: Path, bundle: ContentHash, suffix: str = ".cwasm") -> Path:
    return folder / "artifacts" / FINGERPRINT / (hex_of(bundle) + suffix)


def age(folder: Path, bundle: ContentHash, seconds: int) -> None:
    for suffix in (".cwasm", ".record"):
        path = path_of(folder, bundle, suffix)
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_what_was_stored_is_found(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert cache.find(A) is None
    assert cache.store(A, seal_bytes("x", b"native"), RECORD)
    found = cache.find(A)
    assert found is not None
    assert (read(found.artifact), found.record) == (b"native", RECORD)
    assert cache.find(B) is None


def test_files_and_folders_are_private_and_no_draft_remains(tmp_path: Path) -> None:
    make_cache(tmp_path).store(A, seal_bytes("x", b"native"), RECORD)
    folder = path_of(tmp_path, A).parent
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        path_of(tmp_path, A).name: 0o600,
        path_of(tmp_path, A, ".record").name: 0o600,
    }


def test_another_engine_finds_nothing(tmp_path: Path) -> None:
    make_cache(tmp_path).store(A, seal_bytes("x", b"native"), RECORD)
    assert make_cache(tmp_path, fingerprint="0" * 64).find(A) is None


@pytest.mark.parametrize("fingerprint", ["", "short", "../../../../etc", "a/b" * 10, ".hidden-name", "x" * 129, "x" * 20 + "\n"])
def test_a_fingerprint_must_be_a_plain_name(tmp_path: Path, fingerprint: str) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        make_cache(tmp_path, fingerprint=fingerprint)


@pytest.mark.parametrize("suffix", [".cwasm", ".record"])
def test_a_link_is_not_followed(tmp_path: Path, suffix: str) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    path = path_of(tmp_path, A, suffix)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.find(A) is None


@pytest.mark.parametrize("suffix", [".cwasm", ".record"])
def test_a_pipe_is_neither_read_nor_waited_for(tmp_path: Path, suffix: str) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    path_of(tmp_path, A, suffix).unlink()
    os.mkfifo(path_of(tmp_path, A, suffix))
    assert cache.find(A) is None


def test_a_folder_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    folder = path_of(tmp_path, A).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache.find(A) is None
    with pytest.raises(OSError, match="directory"):
        cache.store(B, seal_bytes("x", b"native"), RECORD)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    path_of(tmp_path, A).parent.chmod(mode)
    assert cache.find(A) is None
    with pytest.raises(OSError, match="another user"):
        cache.store(B, seal_bytes("x", b"native"), RECORD)


@pytest.mark.parametrize(("size", "found"), [(4_999, True), (5_000, True), (5_001, False)])
def test_an_artifact_beyond_the_cap_is_not_read(tmp_path: Path, size: int, found: bool) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"x" * size), RECORD)
    assert (cache.find(A) is not None) is found


@pytest.mark.parametrize(("size", "found"), [(MAX_ARTIFACT_RECORD_BYTES, True), (MAX_ARTIFACT_RECORD_BYTES + 1, False)])
def test_a_record_beyond_the_cap_is_not_read(tmp_path: Path, size: int, found: bool) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), b"r" * size)
    assert (cache.find(A) is not None) is found


def test_an_artifact_larger_than_the_cache_is_not_stored(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=1_000)
    assert cache.store(A, seal_bytes("x", b"x" * (1_000 - len(RECORD))), RECORD)
    assert not cache.store(B, seal_bytes("x", b"x" * (1_001 - len(RECORD))), RECORD)
    assert cache.find(A) is not None


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=2_500)
    for number, bundle in enumerate((A, B)):
        cache.store(bundle, seal_bytes("x", b"x" * 1_000), RECORD)
        age(tmp_path, bundle, 1_000 - number)
    assert cache.find(A) is not None  # Used now: B is older.
    cache.store(C, seal_bytes("x", b"x" * 1_000), RECORD)
    assert [cache.find(bundle) is not None for bundle in (A, B, C)] == [True, False, True]
    assert sum(path.stat().st_size for path in path_of(tmp_path, A).parent.iterdir()) <= 2_500


def test_artifacts_of_former_engines_make_room_too(tmp_path: Path) -> None:
    make_cache(tmp_path, max_bytes=2_500, fingerprint="0" * 64).store(A, seal_bytes("x", b"x" * 2_000), RECORD)
    make_cache(tmp_path, max_bytes=2_500).store(A, seal_bytes("x", b"x" * 2_000), RECORD)
    assert make_cache(tmp_path, fingerprint="0" * 64).find(A) is None
    assert make_cache(tmp_path).find(A) is not None


def test_drafts_that_nobody_finished_are_removed_in_time(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    folder = path_of(tmp_path, A).parent
    old, new = folder / ".draft-old", folder / ".draft-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.store(B, seal_bytes("x", b"native"), RECORD)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_store_that_fails_leaves_nothing_under_a_name_that_is_read(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"first"), RECORD)
    closed = seal_bytes("x", b"second")
    size = closed.size
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        cache.store(A, closed, RECORD)
    assert size == 6
    found = cache.find(A)
    assert found is not None
    assert read(found.artifact) == b"first"
    assert not [path for path in path_of(tmp_path, A).parent.iterdir() if path.name.startswith(".")]


def test_a_second_store_replaces_the_first(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"first"), b"record one")
    cache.store(A, seal_bytes("x", b"second"), b"record two")
    found = cache.find(A)
    assert found is not None
    assert (read(found.artifact), found.record) == (b"second", b"record two")


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    found = cache.find(A)
    assert found is not None
    cache.discard(A, found)
    cache.discard(A, found)
    assert cache.find(A) is None
    assert list(path_of(tmp_path, A).parent.iterdir()) == []


def test_what_another_process_stored_meanwhile_is_not_discarded(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"altered"), RECORD)
    rejected = cache.find(A)
    assert rejected is not None
    make_cache(tmp_path).store(A, seal_bytes("x", b"native"), RECORD)
    cache.discard(A, rejected)
    found = cache.find(A)
    assert found is not None
    assert read(found.artifact) == b"native"


def test_entries_are_listed_last_used_first_and_a_check_is_no_use(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for bundle, seconds in ((A, 300), (B, 100), (C, 200)):
        cache.store(bundle, seal_bytes("x", b"native" + bytes(seconds)), RECORD)
        age(tmp_path, bundle, seconds)
    (path_of(tmp_path, A).parent / "foreign.record").write_bytes(b"x")
    path_of(tmp_path, C).unlink()
    assert [(entry.content_hash, entry.size) for entry in cache.recent()] == [(B, 106), (A, 306)]
    cache.find(A, used=False)
    assert [entry.content_hash for entry in cache.recent()] == [B, A]
    cache.find(A)
    assert [entry.content_hash for entry in cache.recent()] == [A, B]


def test_an_empty_or_missing_cache_lists_nothing(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.prune()
    assert cache.recent() == ()


@pytest.mark.parametrize(("days", "kept"), [(13, True), (15, False)])
def test_an_engine_that_nobody_used_for_two_weeks_is_forgotten(tmp_path: Path, days: int, kept: bool) -> None:
    old = make_cache(tmp_path, fingerprint="0" * 64)
    old.store(A, seal_bytes("x", b"old"), RECORD)
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    then = time.time() - days * 24 * 3600
    folder = tmp_path / "artifacts" / ("0" * 64)
    for path in [*folder.iterdir(), folder, *path_of(tmp_path, A).parent.iterdir(), path_of(tmp_path, A).parent]:
        os.utime(path, (then, then))
    cache.prune()
    assert folder.exists() is kept
    assert (old.find(A) is not None) is kept
    assert cache.find(A) is not None


def test_what_is_not_ours_keeps_its_folder(tmp_path: Path) -> None:
    other = tmp_path / "artifacts" / "somebody"
    (other / "folder").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"x")
    (tmp_path / "artifacts" / "link").symlink_to(tmp_path / "elsewhere")
    os.utime(other, (0, 0))
    os.utime(tmp_path / "elsewhere", (0, 0))
    os.utime(tmp_path / "elsewhere" / "file", (0, 0))
    make_cache(tmp_path).prune()
    assert (other / "folder").exists()
    assert (tmp_path / "elsewhere" / "file").exists()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.store(A, seal_bytes("x", b"native"), RECORD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for bundle in (A, B, A):
        cache.find(bundle)
    path_of(tmp_path, A).unlink()
    cache.find(A)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
