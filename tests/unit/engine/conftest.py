"""One engine for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.fakes.engine_kit import EngineKit


@pytest.fixture(scope="session", params=["bridge", "ordinary"])
def kit(request: pytest.FixtureRequest) -> EngineKit:
    """Both call paths: what a test says holds on each, unless it asks `kit.bridge`."""
    return EngineKit(bridge=request.param == "bridge")
