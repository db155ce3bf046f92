from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.private_files import create_private_file, replace_private_file

Write = Callable[[Path, bytes], None]


@pytest.fixture(autouse=True)
def careless_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("write", [create_private_file, replace_private_file])
def test_new_file__is_the_owner_s_alone_and_the_only_one(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_create__a_public_half__has_the_mode_asked_for(tmp_path: Path) -> None:
    create_private_file(tmp_path / "key", b"public", mode=0o644)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o644


def test_create__something_is_there__stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        create_private_file(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_create__a_link_to_nowhere__is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_private_file(tmp_path / "key", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_replace__a_readable_file__becomes_the_owner_s_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"first")
    (tmp_path / "key").chmod(0o644)
    replace_private_file(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"second"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_replace__a_link__takes_its_place_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"other")
    (tmp_path / "key").symlink_to(tmp_path / "target")
    replace_private_file(tmp_path / "key", b"secret")
    assert not (tmp_path / "key").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"other"


@pytest.mark.parametrize("write", [create_private_file, replace_private_file])
def test_failure__leaves_nothing_half_written(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):  # noqa: PT011 - any
        write(tmp_path / "key", b"secret")
    assert list(tmp_path.iterdir()) == []


def test_replace__a_folder_of_that_name__is_refused_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_private_file(tmp_path / "key", b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
