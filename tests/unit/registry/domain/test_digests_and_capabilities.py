from __future__ import annotations

import pytest

from registry.domain import capabilities, digests

_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_content_hash__of_nothing() -> None:
    value = digests.content_hash(b"")
    assert value == f"sha256:{_EMPTY}"
    assert digests.hex_of(value) == _EMPTY
    assert digests.from_hex(_EMPTY) == value


@pytest.mark.parametrize(
    "text", ["", _EMPTY, f"sha256:{_EMPTY.upper()}", f"sha256:{_EMPTY}0", f"sha256:{_EMPTY[:-1]}", f"sha256:{_EMPTY}\n"]
)
def test_is_content_hash__refuses(text: str) -> None:
    assert not digests.is_content_hash(text)


@pytest.mark.parametrize("digits", ["", "zz", _EMPTY.upper(), _EMPTY + "\n"])
def test_from_hex__refuses(digits: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        digests.from_hex(digits)


def test_normalise__takes_both_spellings() -> None:
    assert capabilities.normalise("cap:storage.kv") == capabilities.normalise("storage.kv") == "storage.kv"


@pytest.mark.parametrize("name", ["", "cap:", "cap:cap:storage.kv", "storage", "STORAGE.KV", "storage.kv "])
def test_normalise__refuses(name: str) -> None:
    with pytest.raises(ValueError, match="unknown capability"):
        capabilities.normalise(name)


def test_effective__is_the_intersection_and_what_everybody_has() -> None:
    result = capabilities.effective(
        declared={"storage.kv", "http.fetch", "user.read"}, granted={"storage.kv", "secrets.get", "user.read"}, ceiling={"storage.kv"}
    )
    assert result == {"storage.kv"} | capabilities.ALWAYS


def test_always_is_known() -> None:
    assert capabilities.ALWAYS <= capabilities.KNOWN
