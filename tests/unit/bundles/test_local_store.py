"""What the store in a folder promises beyond the contract: modes, links, temporary files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from registry.bundles.local import LocalBundleStore
from registry.bundles.store import ObjectNotFoundError
from registry.domain.errors import Reason, RefusalError

TYPE = "application/octet-stream"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bundles").mkdir(mode=0o700)
    return tmp_path / "bundles"


async def test_files_and_folders_are_private(tmp_path: Path) -> None:
    root = tmp_path / "new"
    await LocalBundleStore(root).put_if_absent("a/b/c", b"x", content_type=TYPE)
    for path in (root, root / "a", root / "a/b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "a/b/c").stat().st_mode) == 0o600


async def test_no_temporary_file_stays(root: Path, tmp_path: Path) -> None:
    store = LocalBundleStore(root)
    await store.put_if_absent("a/b", b"x", content_type=TYPE)
    await store.put_if_absent("a/b", b"y", content_type=TYPE)
    with pytest.raises(RefusalError):
        await store.put_if_absent("a/c", tmp_path / "missing", content_type=TYPE)
    assert [path.name for path in (root / "a").iterdir()] == ["b"]


async def test_a_link_in_place_of_an_object_is_not_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (root / "a").mkdir()
    (root / "a/b").symlink_to(secret)
    store = LocalBundleStore(root)
    with pytest.raises(RefusalError) as refusal:
        await store.read("a/b", 100)
    assert refusal.value.reason is Reason.BUNDLE_UNAVAILABLE
    with pytest.raises(RefusalError):
        await store.put_if_absent("a/b", b"x", content_type=TYPE)
    assert secret.read_bytes() == b"secret"


async def test_a_link_in_place_of_a_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(b"outside")
    (root / "a").symlink_to(outside)
    store = LocalBundleStore(root)
    for attempt in (store.read("a/b", 100), store.put_if_absent("a/c", b"x", content_type=TYPE), store.delete("a/b")):
        with pytest.raises(RefusalError):
            await attempt
    assert [path.name for path in outside.iterdir()] == ["b"]


async def test_a_folder_or_pipe_is_no_object(root: Path) -> None:
    (root / "a/folder").mkdir(parents=True)
    os.mkfifo(root / "a/pipe")
    store = LocalBundleStore(root)
    for key in ("a/folder", "a/pipe"):
        with pytest.raises(ObjectNotFoundError):
            await store.read(key, 1)
        assert await store.stat(key) is None


async def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(RefusalError) as refusal:
        await LocalBundleStore(blocked / "bundles").put_if_absent("a/b", b"x", content_type=TYPE)
    assert refusal.value.reason is Reason.BUNDLE_UNAVAILABLE
    assert str(tmp_path) not in refusal.value.public_detail
