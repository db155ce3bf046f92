"""Two daemons as they are started in earnest, each with its own cache and key, on one object store (T39, T1)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from extrunner.runner.v1 import runner_service_pb2
from runnerd.artifacts.keys import ArtifactSigner
from tests.fakes.daemon_process import Machine, Running, started
from tests.fakes.loading import until


@pytest.fixture
def fleet(machine: Machine) -> list[dict[str, str]]:
    """Settings of two daemons that trust each other's keys."""
    folders = [machine.folder / name for name in ("one", "two")]
    for folder in folders:
        signer = ArtifactSigner.from_file(folder / "artifacts.ed25519")
        pem = signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / "artifacts.pub").write_bytes(pem)
    return [
        {
            "RUNNERD_CACHE_DIR": str(own / "cache"),
            "RUNNERD_ARTIFACTS__KEY_FILE": str(own / "artifacts.ed25519"),
            "RUNNERD_ARTIFACTS__FLEET_PUBLIC_KEY_FILES": f'["{other / "artifacts.pub"}"]',
            "RUNNERD_ARTIFACTS__SHARING": "read-write",
        }
        for own, other in (folders, reversed(folders))
    ]


def objects(machine: Machine, suffix: str) -> list[Path]:
    return list((machine.folder / "bundles" / "compiled").rglob(f"*{suffix}"))


async def loads(daemon: Running) -> dict[str, int]:
    """How artifacts became ready in a daemon, by source."""
    found = {}
    for line in (await daemon.get("/metrics")).splitlines():
        if line.startswith("extrunner_artifact_loads_total{"):
            name, _, value = line.partition('source="')[2].partition('"} ')
            found[name] = int(float(value))
    return found


async def test_each_artifact_is_compiled_by_one_daemon(machine: Machine, fleet: list[dict[str, str]]) -> None:
    async with started(machine, **fleet[0]) as one, started(machine, **fleet[1]) as two:
        # At the same time, and before either has anything.
        await asyncio.gather(
            *(daemon.execute(name, wall_ms=15_000 if name == "hello" else 300) for daemon in (one, two) for name in machine.hashes)
        )
        found = [await loads(daemon) for daemon in (one, two)]
        assert sum(each["compiler"] for each in found) == sum(each["shared"] for each in found) == len(machine.hashes)
        assert 'extrunner_preparations{stage="compiling"} 0.0' in await one.get("/metrics")
        await until(lambda: not objects(machine, ".claim"))
    assert len(objects(machine, ".cwasm")) == len(objects(machine, ".record.json")) == len(machine.hashes)


async def test_what_no_trusted_daemon_made_does_not_run(machine: Machine, fleet: list[dict[str, str]]) -> None:
    stranger = fleet[1] | {"RUNNERD_ARTIFACTS__FLEET_PUBLIC_KEY_FILES": "[]"}
    warm = runner_service_pb2.WarmRequest(content_hash=machine.hashes["hello"])
    async with started(machine, **fleet[0]) as one:
        await one.stub.Warm(warm, metadata=one.metadata(), timeout=60)
        await until(lambda: objects(machine, ".record.json") and not objects(machine, ".claim"))
    before = [path.read_bytes() for path in objects(machine, ".*")]
    async with started(machine, **stranger) as two:
        warmed = await two.stub.Warm(warm, metadata=two.metadata(), timeout=60)
        assert warmed.state == runner_service_pb2.WARM_STATE_COMPILED
        assert (await two.execute("hello")).completed.body == b"hello"
        assert 'extrunner_shared_artifacts_total{result="rejected"} 1.0' in await two.get("/metrics")
    refused = [line for line in two.lines if str(line["event"]).startswith("shared artifact refused")]
    assert [line["content_hash"] for line in refused] == [machine.hashes["hello"]]
    assert [path.read_bytes() for path in objects(machine, ".*")] == before


async def test_artifacts_on_disk_are_checked_after_a_start(machine: Machine) -> None:
    async with started(machine) as daemon:
        await daemon.execute("hello")
    async with started(machine) as daemon:
        await until(lambda: any(line["event"] == "artifacts checked ahead" for line in daemon.lines))
        assert (await loads(daemon))["check"] == 1
        assert (await daemon.execute("hello")).completed.body == b"hello"
        assert await loads(daemon) == {"memory": 1, "cache": 0, "shared": 0, "compiler": 0, "check": 1}
