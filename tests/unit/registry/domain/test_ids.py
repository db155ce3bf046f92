from __future__ import annotations

import time
from uuid import UUID

import pytest

from registry.domain import ids

_UUID = "0197a000-0000-7000-8000-0000000000ff"


def test_new_id__is_version_7_of_the_rfc_variant_and_holds_the_time() -> None:
    before = time.time_ns() // 1_000_000
    value = UUID(ids.new_id())
    after = time.time_ns() // 1_000_000
    assert value.version == 7
    assert value.variant == "specified in RFC 4122"
    assert before <= value.int >> 80 <= after


def test_new_id__ids_of_later_milliseconds_sort_later() -> None:
    first = ids.new_id()
    time.sleep(0.002)
    assert first < ids.new_id()


def test_new_id__does_not_repeat() -> None:
    assert len({ids.new_id() for _ in range(5_000)}) == 5_000


@pytest.mark.parametrize("text", ["a", "tenant-1", "A.b_c-9", "x" * 128])
def test_is_tenant_id__accepts(text: str) -> None:
    assert ids.is_tenant_id(text)


@pytest.mark.parametrize("text", ["", "-a", ".a", "a b", "a\n", "é", "a/b", "x" * 129, "*", "a\x00"])
def test_is_tenant_id__refuses(text: str) -> None:
    assert not ids.is_tenant_id(text)


@pytest.mark.parametrize("text", ["com.example", "com.example-labs.notes", "a1.b2"])
def test_is_extension_name__accepts(text: str) -> None:
    assert ids.is_extension_name(text)


@pytest.mark.parametrize(
    "text",
    ["", "notes", "Com.example", "com..example", ".com", "com.", "com.ex/ample", "com.example\n", "a." + "b" * 127, _UUID],
)
def test_is_extension_name__refuses(text: str) -> None:
    assert not ids.is_extension_name(text)


@pytest.mark.parametrize("text", ["a", "7", "acme", "acme.example", "a--b", "x" * 64])
def test_is_publisher_name__accepts(text: str) -> None:
    assert ids.is_publisher_name(text)


@pytest.mark.parametrize("text", ["", "Acme", "a b", "a_b", "-a", "a-", ".a", "a.", "é", "a/b", "a\n", "a\x00", "x" * 65, _UUID])
def test_is_publisher_name__refuses(text: str) -> None:
    assert not ids.is_publisher_name(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("r", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False), ("a\n", False)]
)
def test_is_request_id(text: str, expected: bool) -> None:
    assert ids.is_request_id(text) is expected


def test_is_uuid__knows_only_the_canonical_spelling() -> None:
    value = ids.new_id()
    assert ids.is_uuid(value)
    assert not ids.is_uuid(value.upper())
    assert not ids.is_uuid(value.replace("-", ""))
    assert not ids.is_uuid("{" + value + "}")
    assert not ids.is_uuid("")
