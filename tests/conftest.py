"""What all tests share: the category marker of each folder, and sockets limited to this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

_CATEGORIES = ("unit", "contract", "integration", "adversarial", "e2e")
_ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_ROOT).parts[0]
        if folder not in _CATEGORIES:
            message = f"{item.path} lies in none of {_CATEGORIES}"
            raise pytest.UsageError(message)
        item.add_marker(folder)


def pytest_runtest_setup() -> None:
    # SECURITY: no test may reach beyond loopback; what must be fetched is fetched by scripts/test before pytest starts.
    from pytest_socket import socket_allow_hosts  # noqa: PLC0415

    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
