"""Tests of a group stay in one process: what their module sets up takes longer than they do."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from tests.conftest import GroupScheduling, group_of, pytest_xdist_make_scheduler


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("tests/e2e/test_demo.py", "demo"),
        ("tests/e2e/test_up.py", "demo"),
        ("tests/integration/guests/test_every_function.py", "probing guests"),
        ("tests/unit/packaging/test_images.py", None),
    ],
)
def test_group__is_what_the_file_says(file: str, group: str | None) -> None:
    assert group_of(file) == group


def test_scheduler__is_ours_where_groups_are_asked_for(pytestconfig: pytest.Config) -> None:
    asked = Mock(getvalue=Mock(side_effect={"dist": "loadgroup", "tx": ["popen"], "maxschedchunk": None}.get))
    scheduler = pytest_xdist_make_scheduler(asked, Mock())
    assert isinstance(scheduler, GroupScheduling)
    assert scheduler._split_scope("tests/e2e/test_demo.py::test_a[1]") == scheduler._split_scope("tests/e2e/test_up.py::test_b") == "demo"
    single = "tests/unit/packaging/test_test_groups.py::test_one"
    assert scheduler._split_scope(single) == single
