from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.repositories.version_order import MAX_VERSION_CHARACTERS, is_prerelease, is_version, version_order

IN_ORDER = [
    "0.0.9",
    "0.1.0",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-11",
    "1.0.0--",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-alpha0",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0-a",
    "2.0.0",
    "10.0.0",
    "99999999999999999999.0.0",
    "100000000000000000000.0.0",
]


def test_version_order__precedence__is_byte_order() -> None:
    shuffled = IN_ORDER[::-1]
    assert sorted(shuffled, key=lambda version: version_order(version).encode()) == IN_ORDER


def test_version_order__build_metadata__does_not_count() -> None:
    assert version_order("1.0.0+a") == version_order("1.0.0+b.7")


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0+", "v1.0.0", "1.0.0 ", "1.0.0\n", "1.0.0-é", "٣.0.0", "-1.0.0"],
)
def test_version_order__not_semver__is_refused(text: str) -> None:
    assert not is_version(text)
    with pytest.raises(ValueError, match="not a semantic version"):
        version_order(text)


def test_version_order__length__is_bounded() -> None:
    longest = "1.0.0-" + "a" * (MAX_VERSION_CHARACTERS - 6)
    assert is_version(longest)
    assert not is_version(longest + "a")


@pytest.mark.parametrize(("text", "expected"), [("1.0.0", False), ("1.0.0-a", True), ("1.0.0+a-b", False), ("x", False)])
def test_is_prerelease(text: str, expected: bool) -> None:
    assert is_prerelease(text) is expected


def _precedence(version: tuple[tuple[int, int, int], tuple[int | str, ...]]) -> tuple[object, ...]:
    release, before = version
    return (release, not before, tuple((0, part, "") if isinstance(part, int) else (1, 0, part) for part in before))


_VERSIONS = st.tuples(
    st.tuples(*[st.integers(0, 10_000)] * 3),
    st.lists(st.integers(0, 10_000) | st.from_regex(r"[a-z-][0-9a-zA-Z-]{0,4}", fullmatch=True), max_size=3).map(tuple),
)


def _text(version: tuple[tuple[int, int, int], tuple[int | str, ...]]) -> str:
    release, before = version
    return ".".join(map(str, release)) + ("-" + ".".join(map(str, before)) if before else "")


@given(_VERSIONS, _VERSIONS)
def test_version_order__any_two__compare_as_semver_says(
    one: tuple[tuple[int, int, int], tuple[int | str, ...]], other: tuple[tuple[int, int, int], tuple[int | str, ...]]
) -> None:
    keys = version_order(_text(one)).encode(), version_order(_text(other)).encode()
    assert (keys[0] < keys[1]) == (_precedence(one) < _precedence(other))
