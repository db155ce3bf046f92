from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.loading import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(folder=tmp_path)
