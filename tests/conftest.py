"""What all tests share: the category marker of each folder, groups that stay in one process, and sockets limited to this machine."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_CATEGORIES = ("unit", "contract", "integration", "adversarial", "e2e")
_ROOT = Path(__file__).parent

_GROUP = re.compile(r'\bxdist_group\("([^"]+)"\)')


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives all tests of a group to one process, by the group that their files name.

    NOTE: what xdist 3.8 has for it (`--dist loadgroup`) hands groups over in the names of the tests, which pytest 9.2 no longer takes:
    tests are scattered without a word, and what a module sets up is set up in every process.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0]) or nodeid


@functools.cache
def group_of(file: str) -> str | None:
    """Return the group that a test file, named as in the names of its tests, puts its tests into."""
    found = _GROUP.search((_ROOT.parent / file).read_text("utf-8"))
    return None if found is None else found[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


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
