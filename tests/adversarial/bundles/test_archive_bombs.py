"""Archives made to cost memory (T24): each is read in a child that may grow by 128 MiB, and refused there with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backports.zstd import CompressionParameter, ZstdCompressor

from tests.fakes.archives import Header, archive, compress, file, good_members, make_bundle, manifest_bytes

MIB = 1024 * 1024
ZEROS = bytes(MIB)


def compressed(total: int, parts: Iterable[bytes], *, window_log: int = 23, level: int = 1) -> Iterator[bytes]:
    compressor = ZstdCompressor(
        options={
            CompressionParameter.compression_level: level,
            CompressionParameter.window_log: window_log,
            CompressionParameter.checksum_flag: 1,
        }
    )
    compressor.set_pledged_input_size(total)
    for part in parts:
        yield compressor.compress(part)
    yield compressor.flush()


def zeros_in(header: bytes, before: list[bytes], count: int, *, window_log: int = 23) -> Iterator[bytes]:
    """An archive with `count` MiB of zeros behind `header`."""
    head = b"".join(before) + header
    tail = bytes(1024)
    total = len(head) + count * MIB + len(tail)
    return compressed(total, (head, *[ZEROS] * count, tail), window_log=window_log)


def frame_of_empty_blocks(count: int) -> bytes:
    head = (0xFD2FB528).to_bytes(4, "little") + bytes([0b1000_0100, 13 << 3]) + (5_120).to_bytes(4, "little")
    return head + bytes(3) * count + b"\x01\0\0" + bytes(4)


def many_files(count: int) -> bytes:
    members = good_members()
    members += [file(f"ui/{number:05d}-" + "n" * 80) for number in range(count)]
    return compress(archive(*sorted(members, key=lambda data: data[:100])), level=1)


def manifest_of(text: bytes) -> bytes:
    members = good_members()
    members[2] = file("manifest.json", text)
    return compress(archive(*members), level=1)


def wide_manifest() -> bytes:
    wide = json.dumps({f"k{number}": [number] for number in range(12_000)})
    return manifest_bytes()[:-1] + b', "precompiled": ' + wide.encode() + b"}"


CODE = good_members()[:2]

CORPUS: dict[str, tuple[Any, str, str]] = {
    "pax header with 300 MiB": (
        lambda: zeros_in(Header(name="pax", size=300 * MIB, kind=b"x").block(), [], 300),
        "INVALID_BUNDLE",
        "extension headers",
    ),
    "global pax header with 300 MiB": (
        lambda: zeros_in(Header(name="pax", size=300 * MIB, kind=b"g").block(), CODE, 300),
        "INVALID_BUNDLE",
        "extension headers",
    ),
    "gnu long name with 300 MiB": (
        lambda: zeros_in(Header(name="././@LongLink", size=300 * MIB, kind=b"L").block(), CODE, 300),
        "INVALID_BUNDLE",
        "extension headers",
    ),
    "gnu sparse file": (
        lambda: zeros_in(Header(name="ui/x", size=100 * MIB, kind=b"S").block(), CODE, 100),
        "INVALID_BUNDLE",
        "extension headers",
    ),
    "base-256 size of 2^80": (
        lambda: [compress(archive(*CODE, Header(name="ui/x", raw_size=b"\x80" + b"\xff" * 11).block()))],
        "INVALID_BUNDLE",
        "base-256",
    ),
    "manifest of 300 MiB": (
        lambda: zeros_in(Header(name="manifest.json", size=300 * MIB).block(), CODE, 300),
        "INVALID_BUNDLE",
        "larger than 262144",
    ),
    "component of 65 MiB": (
        lambda: zeros_in(Header(name="dist/main.wasm", size=65 * MIB).block(), good_members()[:1], 65),
        "INVALID_BUNDLE",
        "larger than 67108864",
    ),
    "content of 513 MiB": (
        lambda: zeros_in(Header(name="ui/x", size=513 * MIB).block(), good_members()[:4], 513),
        "INVALID_BUNDLE",
        "unpacks to more than",
    ),
    "content of 2^60 bytes, by its word": (
        lambda: [(0xFD2FB528).to_bytes(4, "little") + bytes([0b1100_0100, 13 << 3]) + (2**60).to_bytes(8, "little")],
        "INVALID_BUNDLE",
        "unpacks to more than",
    ),
    "window of 128 MiB": (
        lambda: zeros_in(Header(name="ui/x", size=200 * MIB).block(), good_members()[:4], 200, window_log=27),
        "INVALID_BUNDLE",
        "window",
    ),
    "window of 2 TiB, by its word": (
        lambda: [(0xFD2FB528).to_bytes(4, "little") + bytes([0b1000_0100, (31 << 3) | 7]) + (5_120).to_bytes(4, "little")],
        "INVALID_BUNDLE",
        "window",
    ),
    "second frame of 400 MiB": (
        lambda: [make_bundle(), *compressed(400 * MIB, [ZEROS] * 400)],
        "INVALID_BUNDLE",
        "exactly one frame",
    ),
    "skippable frame of 150 MiB before": (
        lambda: [(0x184D2A50).to_bytes(4, "little") + (150 * MIB).to_bytes(4, "little"), *[ZEROS] * 150, make_bundle()],
        "INVALID_BUNDLE",
        "skippable",
    ),
    "a million empty blocks": (lambda: [frame_of_empty_blocks(1_000_000)], "INVALID_BUNDLE", "damaged"),
    "10,001 files": (lambda: [many_files(9_997)], "INVALID_BUNDLE", "more than 10000 files"),
    "manifest nested 200,000 deep": (lambda: [manifest_of(b"[" * 200_000)], "INVALID_MANIFEST", "deeper than 16"),
    "number of 200,000 digits": (lambda: [manifest_of(b'{"a":' + b"1" * 200_000 + b"}")], "INVALID_MANIFEST", "longer than 64"),
    "random bytes": (lambda: [b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 400], "INVALID_BUNDLE", ""),
    # What is large and good is accepted in the same room: the reader streams.
    "interface of 300 MiB": (
        lambda: zeros_in(Header(name="ui/index.html", size=300 * MIB).block(), good_members()[:4], 300),
        "accepted",
        "",
    ),
    "10,000 files": (lambda: [many_files(9_995)], "accepted", ""),
    "manifest as wide as it may be": (lambda: [manifest_of(wide_manifest())], "accepted", ""),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("archives")
    paths = {name: folder / str(number) for number, name in enumerate(CORPUS)}
    for name, (make, _, _) in CORPUS.items():
        with paths[name].open("wb") as target:
            target.writelines(make())
    reader = Path(__file__).with_name("limited_reader.py")
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, str(reader), *map(str, paths.values())],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
    )
    answers = json.loads(run.stdout)
    for path in paths.values():
        path.unlink()
    return {name: answers[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("name", CORPUS)
def test_bombs_cost_little_and_are_refused_with_their_reason(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    _, outcome, detail = CORPUS[name]
    assert outcomes[name]["outcome"] == outcome, outcomes[name]
    assert detail in outcomes[name]["detail"]


def test_nothing_of_an_extension_header_reaches_the_sink(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["pax header with 300 MiB"]["begun"] == []
    assert outcomes["component of 65 MiB"]["begun"] == []
    assert outcomes["second frame of 400 MiB"]["begun"] == ["dist/main.wasm", "manifest.json", "ui/index.html"]
