"""A gateway on a real socket in front of a fake runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.gateway_kit import GatewayKit, gateway_kit
from tests.fakes.raw_http import RawConnection, connect


@dataclass(frozen=True, slots=True)
class Served:
    kit: GatewayKit
    host: str
    port: int

    async def connect(self) -> RawConnection:
        return await connect(self.host, self.port)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with (
        gateway_kit(tmp_path, body_seconds=0.5) as kit,
        kit.serving(header_timeout_seconds=0.5, keep_alive_seconds=1) as (host, port),
    ):
        yield Served(kit, host, port)
