"""Where the database URL of the admin face may come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.admin_face import read_database_url
from gateway.config import StartError

EMBEDDED = "postgresql+psycopg://ext_admin:hunter2@/extrunner?host=/tmp/extpg-abc123"


@pytest.mark.parametrize("url", [EMBEDDED, EMBEDDED.replace("extpg-", "%65xtpg%2D")])
def test_embedded_server__refused_in_production(tmp_path: Path, url: str) -> None:
    file = tmp_path / "url"
    file.write_text(url + "\n")
    assert read_database_url(file, embedded_allowed=True) == url
    with pytest.raises(StartError, match="development only") as error:
        read_database_url(file, embedded_allowed=False)
    assert "hunter2" not in str(error.value)


def test_real_server__accepted(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql+psycopg://ext_admin:x@db.example.com/extrunner")
    assert read_database_url(file, embedded_allowed=False).endswith("db.example.com/extrunner")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"postgresql://[::1/extrunner"])
def test_unreadable__refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartError, match="cannot be read"):
        read_database_url(file, embedded_allowed=True)
