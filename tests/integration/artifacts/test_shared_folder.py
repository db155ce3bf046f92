"""Several processes with one cache folder: whatever they do at once, an entry is one writer's, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.domain.digests import content_hash
from runnerd.artifacts.cache import ArtifactCache
from runnerd.artifacts.sealed import seal_bytes
from tests.fakes.loading import FINGERPRINT, read

PROCESSES = 4
ROUNDS = 150

# Each writer's artifact and record name it; an entry that mixes two of them would be refused as forged.
_WORKER = f"""
import sys
from pathlib import Path
from registry.domain.digests import content_hash
from runnerd.artifacts.cache import ArtifactCache
from runnerd.artifacts.sealed import seal_bytes
from tests.fakes.loading import read

folder, me, max_bytes = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
cache = ArtifactCache(folder, fingerprint="{FINGERPRINT}", max_bytes=max_bytes, max_artifact_bytes=1 << 20)
sys.stdin.readline()
seen = 0
for number in range({ROUNDS}):
    bundle = content_hash(bytes([number % 5]))
    match number % 4:
        case 0 | 1:
            cache.store(bundle, seal_bytes("x", me * 20_000), me)
        case 2:
            found = cache.find(bundle)
            if found is not None:
                seen += 1
                assert read(found.artifact) == found.record * 20_000, "an artifact of one writer with the record of another"
        case _:
            found = cache.find(bundle)
            if found is not None and number % 12 == 3:
                cache.discard(bundle, found)
            cache.prune()
            cache.recent()
print(seen)
"""


@pytest.mark.parametrize("room", ["enough", "too little"])
def test_entries_are_never_mixed(tmp_path: Path, room: str) -> None:
    max_bytes = 10_000_000 if room == "enough" else 50_000
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path / "artifacts"), str(number), str(max_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[3],
        )
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, [err for _, err in ends]
    assert sum(int(out) for out, _ in ends) > 0
    folder = tmp_path / "artifacts" / FINGERPRINT
    assert not list(folder.glob(".draft-*"))


def test_what_one_process_evicts_another_goes_on_using(tmp_path: Path) -> None:
    mine, other = (
        ArtifactCache(tmp_path / "artifacts", fingerprint=FINGERPRINT, max_bytes=1_500, max_artifact_bytes=10_000) for _ in range(2)
    )
    mine.store(content_hash(b"a"), seal_bytes("x", b"a" * 1_000), b"record")
    held = mine.find(content_hash(b"a"))
    other.store(content_hash(b"b"), seal_bytes("x", b"b" * 1_000), b"record")
    assert mine.find(content_hash(b"a")) is None
    assert held is not None
    assert read(held.artifact) == b"a" * 1_000


@pytest.mark.parametrize("survives", [".cwasm", ".record"])
def test_a_crash_between_the_two_files_leaves_what_is_not_found(tmp_path: Path, survives: str) -> None:
    cache = ArtifactCache(tmp_path / "artifacts", fingerprint=FINGERPRINT, max_bytes=10_000, max_artifact_bytes=10_000)
    bundle = content_hash(b"a")
    cache.store(bundle, seal_bytes("x", b"native"), b"record")
    (gone,) = (path for path in (tmp_path / "artifacts" / FINGERPRINT).iterdir() if path.suffix != survives)
    gone.unlink()
    assert cache.find(bundle) is None
    assert cache.recent() == ()
    assert cache.store(bundle, seal_bytes("x", b"again"), b"record")
    found = cache.find(bundle)
    assert found is not None
    assert read(found.artifact) == b"again"
