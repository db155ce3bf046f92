from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from registry.bundles.layout import BundleLimits
from registry.bundles.packing import PACKER_VERSION, pack_files, pack_folder
from registry.bundles.unpacking import DiscardSink, read_bundle
from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from tests.fakes.archives import COMPONENT, files, manifest_bytes

GOLDEN_SHA256 = "b51ed256ef9c3cff982742a40a2df5aceb5f65f62156184338b3b7b981ac2623"
"""Of the sample below. If a library or a change here alters it, that is a new packer version (N29): raise PACKER_VERSION."""


def sample() -> dict[str, bytes]:
    """A little of everything, large enough that zstd has choices to make."""
    text = b"".join(b"line %d of a text that compresses\n" % (number % 977) for number in range(40_000))
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(2_000))
    return files(
        {
            "ui/app.js": text,
            "ui/logo.png": noise,
            "ui/deep/er/x.css": b"",
            "dist/main.wasm": COMPONENT + text[:70_000],
            "sbom.spdx.json": b"{}",
        }
    )


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refusal_of(folder: Path, target: Path, limits: BundleLimits | None = None) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        pack_folder(folder, target, limits=limits or BundleLimits())
    assert not target.exists()
    assert not list(target.parent.glob(".*.tmp"))
    return caught.value


def test_the_bytes_are_those_of_this_packer_version() -> None:
    packed = pack_files(sample())
    assert PACKER_VERSION == 1
    assert hashlib.sha256(packed).hexdigest() == GOLDEN_SHA256


def test_the_same_folder_gives_the_same_bytes_wherever_and_whenever_it_lies(tmp_path: Path) -> None:
    one = write(tmp_path / "one", sample())
    other = write(tmp_path / "ot her", dict(reversed(sample().items())))
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700)
    first = pack_folder(one, tmp_path / "1.tar.zst")
    second = pack_folder(other, tmp_path / "2.tar.zst")
    assert first.content_hash == second.content_hash == content_hash((tmp_path / "2.tar.zst").read_bytes())
    assert (tmp_path / "1.tar.zst").read_bytes() == pack_files(sample())


def test_ordinary_tools_can_read_it(tmp_path: Path) -> None:
    raw = zstd.decompress(pack_files(sample()))
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        found = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar if member.isfile()}
        modes = {(member.isdir(), member.mode, member.mtime, member.uid, member.gid) for member in tar}
    assert found == sample()
    assert modes == {(False, 0o644, 0, 0, 0), (True, 0o755, 0, 0, 0)}


def test_only_what_belongs_into_a_bundle_is_packed(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", files() | {"src/app.py": b"x", "README.md": b"x", ".env": b"SECRET", "dist/other.wasm": b"x"})
    packed = pack_folder(folder, tmp_path / "x.tar.zst")
    assert [file.path for file in packed.contents.files] == ["dist/main.wasm", "manifest.json", "ui/index.html"]


def test_an_empty_folder_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", files())
    (folder / "ui/empty").mkdir()
    assert pack_folder(folder, tmp_path / "x.tar.zst").content_hash == content_hash(pack_files(files()))


def test_a_bundle_that_is_only_an_interface_has_no_component(tmp_path: Path) -> None:
    contents = files({"dist/main.wasm": None}, runtime="ui-only@1", api=None)
    packed = pack_folder(write(tmp_path / "x", contents), tmp_path / "x.tar.zst")
    assert packed.contents.wasm is None
    assert [file.path for file in packed.contents.ui_files] == ["ui/index.html"]


def test_packing_replaces_an_older_result(tmp_path: Path) -> None:
    target = tmp_path / "x.tar.zst"
    target.write_bytes(b"old")
    pack_folder(write(tmp_path / "x", files()), target)
    assert read_bundle(io.BytesIO(target.read_bytes()), DiscardSink()).manifest.version == "1.0.0"


@pytest.mark.parametrize("where", ["manifest.json", "ui/link", "ui/folder", "dist/main.wasm"])
def test_links_are_refused_and_not_followed(tmp_path: Path, where: str) -> None:
    folder = write(tmp_path / "x", files())
    secret = tmp_path / "secret"
    if where == "ui/folder":
        secret.mkdir()
    else:
        secret.write_bytes(manifest_bytes())
    (folder / where).unlink(missing_ok=True)
    (folder / where).symlink_to(secret)
    refusal = refusal_of(folder, tmp_path / "x.tar.zst")
    assert refusal.reason is Reason.INVALID_BUNDLE
    assert "link" in refusal.public_detail


def test_an_interface_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", files())
    shutil.move(folder / "ui", tmp_path / "elsewhere")
    (folder / "ui").symlink_to(tmp_path / "elsewhere")
    assert "link" in refusal_of(folder, tmp_path / "x.tar.zst").public_detail


def test_pipes_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", files())
    os.mkfifo(folder / "ui/pipe")
    assert refusal_of(folder, tmp_path / "x.tar.zst").metadata["entry"] == "'ui/pipe'"


@pytest.mark.parametrize("name", ["ui/.hidden", "ui/.git/config", "ui/a:b", "ui/con.js", "ui/x ", "ui/e\u0301.js", "ui/\u202e.js"])
def test_names_that_no_bundle_holds_are_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "x", files({name: b"x"}))
    assert refusal_of(folder, tmp_path / "x.tar.zst").reason is Reason.INVALID_BUNDLE


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    assert (
        "it has no manifest.json" in refusal_of(write(tmp_path / "x", files({"manifest.json": None})), tmp_path / "x.tar.zst").public_detail
    )


def test_a_bad_manifest_is_refused_with_its_place(tmp_path: Path) -> None:
    refusal = refusal_of(write(tmp_path / "x", files(version="one")), tmp_path / "x.tar.zst")
    assert refusal.reason is Reason.INVALID_MANIFEST
    assert refusal.metadata == {"place": "version"}


@pytest.mark.parametrize(("slack", "fits"), [(1, True), (0, True), (-1, False)])
def test_size_is_bounded_before_anything_is_compressed(tmp_path: Path, slack: int, fits: bool) -> None:
    folder = write(tmp_path / "x", files({"ui/large": b"x" * 5_000}))
    # Two folders and four files have headers of 512 bytes; contents are padded to 512.
    unpacked = 6 * 512 + 512 + 512 + 5_120 + 512 + 1_024
    limits = BundleLimits(unpacked_bytes=unpacked + slack)
    if fits:
        assert pack_folder(folder, tmp_path / "x.tar.zst", limits=limits).contents.unpacked_bytes == unpacked
    else:
        assert f"unpacks to more than {unpacked - 1} bytes" in refusal_of(folder, tmp_path / "x.tar.zst", limits).public_detail


@pytest.mark.parametrize(("allowed", "fits"), [(6, True), (5, True), (4, False)])
def test_the_number_of_files_is_bounded(tmp_path: Path, allowed: int, fits: bool) -> None:
    folder = write(tmp_path / "x", files())
    limits = BundleLimits(files=allowed)
    if fits:
        assert len(pack_folder(folder, tmp_path / "x.tar.zst", limits=limits).contents.files) == 3
    else:
        assert "more than 4 files and folders" in refusal_of(folder, tmp_path / "x.tar.zst", limits).public_detail
