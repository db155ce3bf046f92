"""T21: callers without a credential cannot make the daemon read, keep or parse what they send."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from registry.domain.limits import MIB
from runnerd.rpc.health import CHECK
from runnerd.rpc.servicer import SCOPES
from tests.contract.rpc.conftest import FaceFactory, face
from tests.fakes.dispatch_kit import make_request
from tests.fakes.resident_memory import peak_growth

__all__ = ["face"]
ROOT = Path(__file__).parents[3]


async def flood(port: int, method: str, *, calls: int, mebibytes: int) -> str:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.flood_client",
        str(port),
        method,
        str(calls),
        str(mebibytes),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await program.communicate()
    return output.decode().strip()


@pytest.mark.parametrize(("method", "code"), [*((name, "UNAUTHENTICATED") for name in SCOPES), (CHECK, "OK")])
async def test_flood_of_30_mib_bodies__is_answered_unread(face: FaceFactory, method: str, code: str) -> None:
    async with face() as served:
        with peak_growth() as grown:
            codes = await flood(served.server.port, method, calls=50, mebibytes=30)
        assert codes == code
        assert grown.bytes < 64 * MIB
        # And whoever has a credential is served as before.
        result = await served.kit.executor.execute(served.kit.caller, make_request(), deadline=None)
        assert result.outcome is not None
