"""T1: native code runs only for the bundle it was made from, whatever is done to the cache folder. Real components, real compiler."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runnerd.artifacts import cache as cache_module
from runnerd.artifacts import sources as sources_module
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.loader import ExtensionLoader
from runnerd.artifacts.records import ArtifactStatement, verify_artifact_record, write_artifact_record
from runnerd.artifacts.sealed import SealedFile, seal_copy
from runnerd.engine.profile import engine_fingerprint
from tests.fakes.loading import Installation, SampleBundle, make_bundle
from tests.fakes.marker_guests import marker_guest, run_marker

FINGERPRINT = engine_fingerprint()
Pair = tuple[SampleBundle, SampleBundle]


@pytest.fixture
async def pair(installation: Installation) -> Pair:
    """Two genuine extensions of two publishers, compiled and cached."""
    made = [make_bundle(f"com.example.{name}", wasm=marker_guest(f"I am {name}"), publisher=name) for name in ("a", "b")]
    a, b = [await installation.publish(bundle) for bundle in made]
    return a, b


@pytest.fixture
async def warm(installation: Installation, pair: Pair) -> Pair:
    loader = daemon(installation)
    for bundle, marker in zip(pair, ("I am a", "I am b"), strict=True):
        assert run_marker((await loader.load(bundle.hash)).artifact.fileno()) == marker
    await loader.aclose()
    installation.metrics.seen.clear()
    return pair


def daemon(installation: Installation) -> ExtensionLoader:
    compiler = Compiler(CompilerSettings(), engine_fingerprint=FINGERPRINT)
    return installation.loader(compiler=compiler, fingerprint=FINGERPRINT)


def path_of(installation: Installation, bundle: SampleBundle, suffix: str = ".cwasm") -> Path:
    return installation.artifact_path(bundle, suffix, FINGERPRINT)


async def check_b_is_itself(installation: Installation, b: SampleBundle, *, rejected: bool = True) -> None:
    """A daemon that starts now gives B's own code for B, after refusing what lies in the cache and compiling again."""
    loader = daemon(installation)
    assert run_marker((await loader.load(b.hash)).artifact.fileno()) == "I am b"
    assert (installation.metrics.seen["verification:ARTIFACT_REJECTED"] == 1) is rejected
    assert installation.metrics.seen["loaded:compiler"] == 1
    assert installation.metrics.seen["loaded:cache"] == 0
    # What was made again is cached again, and good.
    assert run_marker((await daemon(installation).load(b.hash)).artifact.fileno()) == "I am b"
    assert installation.metrics.seen["loaded:cache"] == 1


async def test_an_artifact_with_its_record_under_another_name(
    installation: Installation, warm: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = warm
    for suffix in (".cwasm", ".record"):
        shutil.copy(path_of(installation, a, suffix), path_of(installation, b, suffix))
    with caplog.at_level(logging.ERROR):
        await check_b_is_itself(installation, b)
    assert "the record belongs to another bundle" in caplog.text


async def test_bytes_alone_under_another_name(installation: Installation, warm: Pair, caplog: pytest.LogCaptureFixture) -> None:
    a, b = warm
    shutil.copy(path_of(installation, a), path_of(installation, b))
    with caplog.at_level(logging.ERROR):
        await check_b_is_itself(installation, b)
    assert "the artifact is not the one of the record" in caplog.text


async def test_a_record_rewritten_for_the_other_bundle(installation: Installation, warm: Pair) -> None:
    a, b = warm
    shutil.copy(path_of(installation, a), path_of(installation, b))
    record = json.loads(path_of(installation, a, ".record").read_bytes())
    record["body"]["content_hash"] = b.hash
    path_of(installation, b, ".record").write_text(json.dumps(record))
    await check_b_is_itself(installation, b)


async def test_a_record_signed_with_another_key(installation: Installation, warm: Pair) -> None:
    a, b = warm
    shutil.copy(path_of(installation, a), path_of(installation, b))
    body = json.loads(path_of(installation, a, ".record").read_bytes())["body"]
    forged = write_artifact_record(replace(ArtifactStatement(**body), content_hash=b.hash), ArtifactSigner.generate())
    path_of(installation, b, ".record").write_bytes(forged)
    await check_b_is_itself(installation, b)


@pytest.mark.parametrize("place", [0, 100, -1])
async def test_one_flipped_bit(installation: Installation, warm: Pair, place: int) -> None:
    _, b = warm
    path = path_of(installation, b)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    await check_b_is_itself(installation, b)


@pytest.mark.parametrize("change", ["cut", "lengthened", "emptied"])
async def test_another_length(installation: Installation, warm: Pair, change: str) -> None:
    _, b = warm
    path = path_of(installation, b)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "lengthened": data + b"\0", "emptied": b""}[change])
    await check_b_is_itself(installation, b)


@pytest.mark.parametrize("suffix", [".cwasm", ".record"])
async def test_a_link_to_the_other_ones_file(installation: Installation, warm: Pair, suffix: str) -> None:
    a, b = warm
    path_of(installation, b, suffix).unlink()
    path_of(installation, b, suffix).symlink_to(path_of(installation, a, suffix))
    await check_b_is_itself(installation, b, rejected=False)


async def test_an_artifact_of_another_engine(installation: Installation, warm: Pair) -> None:
    _, b = warm
    other = installation.loader(compiler=Compiler(CompilerSettings(), engine_fingerprint="0" * 64), fingerprint="0" * 64)
    folder = path_of(installation, b).parent
    shutil.copytree(folder, folder.with_name("0" * 64))
    found = await other._sources.find_cached(b.hash)
    assert found is None
    assert installation.metrics.seen["verification:ARTIFACT_REJECTED"] == 1


async def test_written_in_place_after_it_was_loaded(installation: Installation, warm: Pair) -> None:
    a, b = warm
    extension = await daemon(installation).load(b.hash)
    path = path_of(installation, b)
    with path.open("r+b") as file:
        file.write(path_of(installation, a).read_bytes())
    assert run_marker(extension.artifact.fileno()) == "I am b"
    installation.metrics.seen.clear()
    await check_b_is_itself(installation, b)


async def test_written_through_the_memory_file_after_it_was_loaded(installation: Installation, warm: Pair) -> None:
    a, b = warm
    extension = await daemon(installation).load(b.hash)
    descriptor = extension.artifact.fileno()
    evil = path_of(installation, a).read_bytes()
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        for target in (descriptor, again):
            with pytest.raises(PermissionError) as caught:
                os.pwrite(target, evil, 0)
            assert caught.value.errno == errno.EPERM
    finally:
        os.close(again)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, extension.artifact.size)
    assert run_marker(descriptor) == "I am b"


async def test_protection_of_a_mapping_cannot_be_raised(installation: Installation, warm: Pair) -> None:
    _, b = warm
    extension = await daemon(installation).load(b.hash)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, extension.artifact.fileno(), 0)
    try:
        assert libc.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() in {errno.EACCES, errno.EPERM}
    finally:
        libc.munmap(address, 4096)


async def test_replaced_between_the_check_and_the_mapping(installation: Installation, warm: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = warm

    def paused(*args: object, **kwargs: object) -> ArtifactStatement:
        # The daemon has read and hashed; whoever can write to the folder now replaces both files.
        for suffix in (".cwasm", ".record"):
            draft = installation.folder / "draft"
            shutil.copy(path_of(installation, a, suffix), draft)
            draft.replace(path_of(installation, b, suffix))
        return verify_artifact_record(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sources_module, "verify_artifact_record", paused)
    extension = await daemon(installation).load(b.hash)
    assert run_marker(extension.artifact.fileno()) == "I am b"
    monkeypatch.undo()
    installation.metrics.seen.clear()
    await check_b_is_itself(installation, b)


@pytest.mark.parametrize("how", ["in place", "replaced"])
async def test_changed_while_it_is_read(installation: Installation, warm: Pair, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    a, b = warm
    evil = path_of(installation, a).read_bytes()

    def paused(name: str, source: int, *, size: int) -> SealedFile:
        path = path_of(installation, b)
        if how == "replaced":
            path.unlink()
        path.write_bytes(evil)
        return seal_copy(name, source, size=size)

    monkeypatch.setattr(cache_module, "seal_copy", paused)
    extension = await daemon(installation).load(b.hash)
    assert run_marker(extension.artifact.fileno()) == "I am b"
    # Written in place, the bytes read were A's and were refused; replaced, the descriptor still led to B's own.
    assert installation.metrics.seen["verification:ARTIFACT_REJECTED"] == (1 if how == "in place" else 0)


async def test_a_record_without_artifact_and_an_artifact_without_record(installation: Installation, warm: Pair) -> None:
    _, b = warm
    path_of(installation, b).unlink()
    await check_b_is_itself(installation, b, rejected=False)
    path_of(installation, b, ".record").unlink()
    installation.metrics.seen.clear()
    await check_b_is_itself(installation, b, rejected=False)


async def test_what_is_handed_out_is_only_ever_sealed(installation: Installation, pair: Pair) -> None:
    loader = daemon(installation)
    for bundle in pair:
        for _ in range(2):
            with pytest.raises(PermissionError):
                os.ftruncate((await loader.load(bundle.hash)).artifact.fileno(), 0)
