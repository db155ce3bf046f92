from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnerd.capabilities.broker import CapabilityBroker
from tests.fakes.platform_kit import platform_broker
from tests.fakes.platform_server import FakePlatform, fake_platform


@pytest.fixture
async def platform() -> AsyncIterator[FakePlatform]:
    async with fake_platform() as server:
        yield server


@pytest.fixture
async def broker(platform: FakePlatform, tmp_path: Path) -> AsyncIterator[CapabilityBroker]:
    async with platform_broker(platform, tmp_path) as broker:
        yield broker
