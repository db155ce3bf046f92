"""T38: how many CPUs are ours is affinity ∩ quota, and pinning needs a machine of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runnerd.dispatch.cpus import find_cpus


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


@pytest.mark.parametrize(
    ("quota", "usable", "own"),
    [
        (None, 4, True),
        ("max 100000", 4, True),
        ("200000 100000", 2, False),
        ("150000 100000", 2, False),
        ("1000 100000", 1, False),
        ("900000 100000", 4, False),
        ("nonsense", 4, True),
    ],
)
@pytest.mark.usefixtures("four_cpus")
def test_quota__bounds_the_count_and_forbids_pinning(tmp_path: Path, quota: str | None, usable: int, own: bool) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    cpus = find_cpus("auto", cgroup_root=tmp_path)
    assert cpus.usable == usable
    assert cpus.pin_to == ((0, 1, 2, 3) if own else ())


@pytest.mark.usefixtures("four_cpus")
def test_operator__decides_where_it_does_not_say_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cpus("off", cgroup_root=tmp_path).pin_to == ()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert find_cpus("auto", cgroup_root=tmp_path).pin_to == (), "a part of a larger machine is not ours alone"
    assert find_cpus("on", cgroup_root=tmp_path).pin_to == (0, 1, 2, 3)
