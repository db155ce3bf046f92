"""A gateway in front of a fake runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.gateway_kit import GatewayKit, gateway_kit


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[GatewayKit]:
    async with gateway_kit(tmp_path, cors_origins=frozenset({"https://app.example.com"}), own_origin="https://api.example.com") as kit:
        yield kit


@pytest.fixture
async def client(kit: GatewayKit) -> AsyncIterator[httpx.AsyncClient]:
    async with kit.client() as client:
        yield client
