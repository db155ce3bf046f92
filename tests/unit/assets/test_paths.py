from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.errors import Reason, RefusalError
from runnerd.assets.paths import MAX_RAW_PATH_BYTES, MAX_SEGMENTS, parse
from tests.fakes.interface_files import EXTENSION, HASH

BASE = f"/ext-ui/{EXTENSION}/{HASH}/".encode()


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"", ""),
        (b"index.html", "index.html"),
        (b"a/b/c.js", "a/b/c.js"),
        (b"a..b.js", "a..b.js"),
        (b"with%20space.png", "with space.png"),
        (b"caf%C3%A9.txt", "café.txt"),
        (b"caf%c3%a9.txt", "café.txt"),
        (b"clients/", "clients/"),
        (b"100%25.txt", "100%.txt"),
        (b"a+b@2x,(1)!$&'*;=~.png", "a+b@2x,(1)!$&'*;=~.png"),
    ],
)
def test_parse__path_in_normal_form__is_decoded_once(raw: bytes, path: str) -> None:
    asset = parse(BASE + raw)
    assert (asset.extension_id, asset.content_hash, asset.path) == (EXTENSION, HASH, path)


@pytest.mark.parametrize(
    "raw",
    [
        b"..",
        b"../x",
        b"a/../b",
        b"a/./b",
        b".",
        b".env",
        b"a/.git/config",
        b"...",
        b"%2e%2e/x",
        b"a/%2e%2e/x",
        b"%2E./x",
        b"a%2fb",
        b"a%2Fb",
        b"a%5cb",
        b"a\\b",
        b"a%00b",
        b"a%0ab",
        b"a%7fb",
        b"%61.js",
        b"a//b",
        b"/a",
        b"//",
        b"a%",
        b"a%4",
        b"a%zz",
        b"a b",
        b"a\x00b",
        b"caf\xc3\xa9",
        b"%ff.js",
        b"%c0%ae%c0%ae/x",
        b"a#b",
        b"a?b",
        b"a<b>",
        b'a"b',
        b"a|b",
        b"a^b",
        b"a`b",
        b"a{b}",
        b"a[b]",
    ],
)
def test_parse__path_not_in_normal_form__is_refused(raw: bytes) -> None:
    with pytest.raises(RefusalError) as refused:
        parse(BASE + raw)
    assert refused.value.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    "raw",
    [
        b"/",
        b"",
        b"*",
        b"/v1/execute",
        b"/metrics",
        b"/healthz",
        b"/ext-ui",
        b"/ext-ui/",
        b"/EXT-UI/" + BASE[8:],
        b"//ext-ui/" + BASE[8:],
        b"/x/../ext-ui/" + BASE[8:],
        f"/ext-ui/{EXTENSION}".encode(),
        f"/ext-ui/{EXTENSION}/{HASH}".encode(),
        f"/ext-ui//{HASH}/a.js".encode(),
        f"/ext-ui/{EXTENSION}//a.js".encode(),
        f"/ext-ui/../{HASH}/a.js".encode(),
        f"/ext-ui/notes/{HASH}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/{HASH[7:]}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/{HASH.upper()}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/sha256:{'AB' * 32}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/{HASH}0/a.js".encode(),
        f"/ext-ui/{EXTENSION}/{HASH[:-1]}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/sha512:{'ab' * 32}/a.js".encode(),
        f"/ext-ui/{EXTENSION}/{HASH.replace(':', '%3A')}/a.js".encode(),
        f"/ext-ui/{EXTENSION}%00/{HASH}/a.js".encode(),
    ],
)
def test_parse__no_extension_and_version__is_not_found(raw: bytes) -> None:
    with pytest.raises(RefusalError) as refused:
        parse(raw)
    assert refused.value.reason is Reason.ASSET_NOT_FOUND


def test_parse__extension_by_uuid__is_accepted() -> None:
    asset = parse(f"/ext-ui/01890a5d-ac96-774b-bcce-b302099a8057/{HASH}/a.js".encode())
    assert asset.extension_id == "01890a5d-ac96-774b-bcce-b302099a8057"


def test_parse__length__is_bounded_exactly() -> None:
    longest = BASE + b"a" * (MAX_RAW_PATH_BYTES - len(BASE))
    assert parse(longest).path
    with pytest.raises(RefusalError, match="at most"):
        parse(longest + b"a")


def test_parse__segments__are_bounded_exactly() -> None:
    assert parse(BASE + b"/".join([b"a"] * MAX_SEGMENTS)).path
    with pytest.raises(RefusalError, match="segments"):
        parse(BASE + b"/".join([b"a"] * (MAX_SEGMENTS + 1)))


@pytest.mark.parametrize(
    ("path", "may_be"), [("", True), ("clients", True), ("clients/5/", True), ("a.b/c", True), ("app.js", False), ("x/y.z", False)]
)
def test_may_be_route__last_segment_with_extension__is_none(path: str, *, may_be: bool) -> None:
    assert parse(BASE + path.encode()).may_be_route is may_be


_NAME = st.text(st.characters(exclude_characters="/\\", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda name: not name.startswith(".")
)


@given(st.lists(_NAME, min_size=1, max_size=5))
def test_parse__any_name_of_a_bundle__survives_the_encoding_of_a_browser(names: list[str]) -> None:
    path = "/".join(names)
    assert parse(BASE + quote(path, safe="/").encode()).path == path


@given(st.binary(max_size=60))
def test_parse__any_bytes__are_refused_or_contain_no_step_upwards(raw: bytes) -> None:
    try:
        asset = parse(BASE + raw)
    except RefusalError:
        return
    segments = asset.path.split("/")
    assert not any(segment.startswith(".") or "\\" in segment or "\0" in segment for segment in segments)
    assert all(segments[:-1])
