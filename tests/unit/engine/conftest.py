"""One engine for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.fakes.engine_kit import EngineKit


@pytest.fixture(scope="session")
def kit() -> EngineKit:
    return EngineKit()
