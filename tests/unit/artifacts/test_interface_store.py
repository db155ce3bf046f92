from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from registry.domain.digests import ContentHash, content_hash
from runnerd.artifacts.interface_store import InterfaceStore
from runnerd.artifacts.records import MAX_INTERFACE_RECORD_BYTES

A, B, C = (content_hash(name) for name in (b"a", b"b", b"c"))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def commit(store: InterfaceStore, bundle: ContentHash, files: Mapping[str, bytes]) -> frozenset[ContentHash]:
    index = {"body": {"files": {path: [digest(data), len(data)] for path, data in files.items()}}}
    with store.new_draft() as draft:
        for data in files.values():
            write = draft.begin()
            write(data[:1])
            write(data[1:])
            draft.end(digest(data))
        return store.commit(bundle, draft, json.dumps(index).encode())


def blobs(store: InterfaceStore) -> set[str]:
    return {path.name for path in store.folder.glob("[0-9a-f][0-9a-f]/*")}


@pytest.fixture
def store(tmp_path: Path) -> InterfaceStore:
    return InterfaceStore(tmp_path / "ui", max_bytes=1_000)


def test_files_lie_under_their_own_digest_read_only(store: InterfaceStore) -> None:
    commit(store, A, {"index.html": b"<p>", "empty.css": b""})
    for data in (b"<p>", b""):
        path = store.path_of(digest(data))
        assert path == store.folder / digest(data)[:2] / digest(data)
        assert path.read_bytes() == data
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.find_index(A) is not None
    assert store.has_index(A)
    assert store.find_damaged([(digest(b"<p>"), 3), (digest(b""), 0)]) is None


def _break_off(store: InterfaceStore) -> None:
    with store.new_draft() as draft:
        draft.begin()(b"half")
        raise ZeroDivisionError


def test_a_draft_that_is_not_committed_leaves_nothing(store: InterfaceStore) -> None:
    with pytest.raises(ZeroDivisionError):
        _break_off(store)
    assert blobs(store) == set()
    assert list((store.folder / ".drafts").iterdir()) == []


def test_an_end_without_a_beginning_is_a_mistake(store: InterfaceStore) -> None:
    with store.new_draft() as draft, pytest.raises(RuntimeError):
        draft.end("0" * 64)


@pytest.mark.parametrize("damage", ["altered", "longer", "shorter", "missing", "link", "link to itself by another name", "pipe", "folder"])
def test_damage_is_found(store: InterfaceStore, tmp_path: Path, damage: str) -> None:
    commit(store, A, {"index.html": b"genuine"})
    path = store.path_of(digest(b"genuine"))
    if damage == "link to itself by another name":
        path.rename(tmp_path / "genuine")
        path.symlink_to(tmp_path / "genuine")
    else:
        path.unlink()
    match damage:
        case "altered":
            path.write_bytes(b"altered")
        case "longer":
            path.write_bytes(b"genuine!")
        case "shorter":
            path.write_bytes(b"genuin")
        case "link":
            (tmp_path / "evil").write_bytes(b"altered")
            path.symlink_to(tmp_path / "evil")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    assert store.find_damaged([(digest(b"genuine"), 7)]) == digest(b"genuine")


def test_a_commit_repairs_what_was_altered(store: InterfaceStore) -> None:
    commit(store, A, {"index.html": b"genuine"})
    path = store.path_of(digest(b"genuine"))
    path.unlink()
    path.write_bytes(b"altered")
    commit(store, A, {"index.html": b"genuine"})
    assert path.read_bytes() == b"genuine"


def test_an_index_that_is_a_link_or_too_long_is_not_read(store: InterfaceStore, tmp_path: Path) -> None:
    commit(store, A, {"index.html": b"x"})
    (index,) = (store.folder / "index").iterdir()
    with index.open("r+b") as file:
        file.truncate(MAX_INTERFACE_RECORD_BYTES + 1)
    assert store.find_index(A) is None
    index.rename(tmp_path / "elsewhere")
    index.symlink_to(tmp_path / "elsewhere")
    assert store.find_index(A) is None


def test_an_index_can_be_discarded_twice(store: InterfaceStore) -> None:
    commit(store, A, {"index.html": b"x"})
    store.discard(A)
    store.discard(A)
    assert store.find_index(A) is None
    assert not store.has_index(A)


def test_the_interface_not_used_for_longest_makes_room(store: InterfaceStore) -> None:
    shared = b"s" * 100
    commit(store, A, {"a": b"a" * 400, "shared": shared})
    commit(store, B, {"b": b"b" * 400, "shared": shared})
    for bundle, age in ((A, 200), (B, 100)):
        os.utime(store._index_path(bundle), (1_000 - age,) * 2)
    assert commit(store, C, {"c": b"c" * 400}) == {A}
    assert [store.has_index(bundle) for bundle in (A, B, C)] == [False, True, True]
    assert blobs(store) == {digest(b"b" * 400), digest(shared), digest(b"c" * 400)}


def test_what_was_just_committed_is_never_removed(store: InterfaceStore) -> None:
    assert commit(store, A, {"a": b"a" * 2_000}) == frozenset()
    assert store.has_index(A)
    assert commit(store, B, {"b": b"b" * 2_000}) == {A}
    assert blobs(store) == {digest(b"b" * 2_000)}


def test_files_that_no_index_names_make_room_first(store: InterfaceStore) -> None:
    commit(store, A, {"a": b"a" * 900})
    store.discard(A)
    assert commit(store, B, {"b": b"b" * 900}) == frozenset()
    assert blobs(store) == {digest(b"b" * 900)}


def test_a_forged_index_does_not_break_the_making_of_room(store: InterfaceStore) -> None:
    commit(store, A, {"a": b"a" * 900})
    for number, content in enumerate((b"", b"[" * 5_000, b'{"body":{"files":[1]}}', b'{"body":{"files":{"x":["../../../etc/passwd",1]}}}')):
        (store.folder / "index" / f"{number:064x}.json").write_bytes(content)
    (store.folder / "index" / "no-digest.json").write_bytes(b"{}")
    commit(store, B, {"b": b"b" * 900})
    assert blobs(store) == {digest(b"b" * 900)}


def test_old_drafts_are_removed(store: InterfaceStore) -> None:
    old = store.folder / ".drafts" / "old"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    commit(store, A, {"a": b"a"})
    assert not old.exists()
