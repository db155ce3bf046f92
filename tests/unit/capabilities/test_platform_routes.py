"""Routes of guests: those that go, as they are, and no spelling of an internal route."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise, product
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from registry.domain.ids import ExtensionId
from runnerd.capabilities.platform.routes import MOST_CHARACTERS, RouteError, target_of

EXTENSION = ExtensionId("0197a000-0000-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("route", "target"),
    [
        ("/api/v1/tickets", "/api/v1/tickets"),
        ("/api/v1/tickets?limit=5&q=a%20b", "/api/v1/tickets?limit=5&q=a%20b"),
        ("/api/v1/tickets?path=/api/internal/../x//y", "/api/v1/tickets?path=/api/internal/../x//y"),
        ("/api/v1/tickets?", "/api/v1/tickets"),
        ("/api/tickets/", "/api/tickets/"),
        ("/api/clients/M%C3%BCller%20GmbH", "/api/clients/M%C3%BCller%20GmbH"),
        ("/api/v1/internals", "/api/v1/internals"),
        ("/api/v1/internal", "/api/v1/internal"),
        ("/api/internally", "/api/internally"),
        ("summary", f"/{EXTENSION}/summary"),
        ("/summary/7?x=1", f"/{EXTENSION}/summary/7?x=1"),
        ("internal/notes", f"/{EXTENSION}/internal/notes"),
        ("api/v1/tickets", f"/{EXTENSION}/api/v1/tickets"),
        ("/api", f"/{EXTENSION}/api"),
        # A colon is a character like others in a path.
        ("http:/example.com", f"/{EXTENSION}/http:/example.com"),
    ],
)
def test_a_route_goes_as_it_is(route: str, target: str) -> None:
    assert target_of(route, EXTENSION) == target


@pytest.mark.parametrize(
    "route",
    [
        "",
        "/",
        "//",
        "?a=b",
        "/?a=b",
        "/api/internal",
        "/api/internal/",
        "/api/internal/ext-storage/install/x",
        "/api/internal?x",
        "/api/INTERNAL/x",
        "/API/internal/x",
        "/api/InTeRnAl/x",
        "api/internal/x",
        "/api/x/../internal/y",
        "/api/./internal/y",
        "/api//internal/y",
        "//api/internal/y",
        "/api/%69nternal/y",
        "/%61pi/internal/y",
        "/api/%2569nternal/y",
        "/api/x/%2e%2e/internal",
        "/api/x/%2E./internal",
        "/api/x/%252e%252e/internal",
        "/api/x/..%2finternal",
        "/api%2finternal",
        "/api/x%2f..%2finternal",
        "/api\\internal",
        "/api/x/..\\internal",
        "/api/x/..%5cinternal",
        "/api/x/..;/internal",
        "/api/x/..;a=b/internal",
        "/api/.;/internal",
        "/api/;/internal",
        "/api/;x=1/internal",
        "/api/internal;x=1/y",
        "/api;x/internal/y",
        "/api/internal./y",
        "/api/internal%20/y",
        "/api/%20internal/y",
        "/api/%20/internal",
        "/api/internal%00/y",
        "/api/internal%09/y",
        "/api/%EF%BD%89nternal/y",
        "/api/inter%E2%80%8Bnal/y",
        "/api/inter%CC%81nal/y",
        "/api/%C3%ADnternal/y",
        "/api/%e2%80%8b/internal",
        "/api%EF%BC%8Finternal",
        "/api/x%EF%BC%8Finternal",
        "/api/x/%E2%80%A5/internal",
        "/api/internal%EF%BC%9Bx",
        "/api/%EF%BC%8569nternal",
        "/api/%c0%ae%c0%ae/internal",
        "/api/x/%c0%af../internal",
        "/x/api/internal/y",
        "https://example.com/api/x",
        "//example.com/api/x",
        "/api/x#fragment",
        "/api/x\r\nx-runner-auth: y",
        "/api/x y",
        "/api/x\0",
        "/api/ü",
        "/api/x%",
        "/api/x%2",
        "/api/x%zz",
        "/api/x?a=\r\n",
        "/api/x?a=b#c",
        "/api/x?a=%",
        "/api/x?a=b\\c",
        "/api/x?ü",
        "x/../../api/internal",
        "../api/internal",
        "..",
        ".",
        "/api/" + "x" * MOST_CHARACTERS,
    ],
)
def test_a_route_is_refused(route: str) -> None:
    with pytest.raises(RouteError):
        target_of(route, EXTENSION)


def test_a_refusal_does_not_repeat_the_route() -> None:
    with pytest.raises(RouteError) as refused:
        target_of("/api/secret-word/../x", EXTENSION)
    assert "secret-word" not in str(refused.value)


PIECES = [
    *("/", "/", "/api/", "//", "api", "API", "aPi", "internal", "Internal", "%69nternal", "%2569nternal", "inter", "nal", "x", "..", "."),
    *("%2e", "%2E%2e", "%252e", ";", ";x=1", "\\", "%5c", "%5C", "%2f", "%252f", "%00", "%09", "%20", " ", "\t", "\n", "?", "#", "@", ":"),
    *(
        "http:",
        "%EF%BD%89nternal",
        "%EF%BC%8F",
        "%E2%80%8B",
        "%c0%ae",
        "%c0%af",
        "ü",
        "%",
        "%25",
        "%CC%81",
        "%e2%80%a4",
        "%E2%81%84",
        "~",
        "+",
    ),
]


SEGMENTS = st.lists(st.sampled_from([piece for piece in PIECES if "/" not in piece]), min_size=1, max_size=2).map("".join)
NEARLY = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda segments: "/api/" + "/".join(segments))


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | NEARLY)
@example("/api/x/..;/internal")
@example("/api/%E2%80%A4%E2%80%A4/internal")
def test_whatever_goes__no_reader_finds_an_internal_route_in_it(route: str) -> None:
    try:
        target = target_of(route, EXTENSION)
    except RouteError:
        return
    path = target.partition("?")[0]
    assert re.fullmatch(r"/[!-~]*", target)
    assert "#" not in target
    assert path.startswith(("/api/", f"/{EXTENSION}/"))
    for segments in readings(path):
        assert ("api", "internal") not in pairwise(segments)
        assert segments[:1] in (["api"], [EXTENSION], []), "nothing climbs out of where it was put"


def readings(path: str) -> Iterator[list[str]]:
    """Read a path as careless readers do: decoded up to three times, with or without each of their habits."""
    for decodings, parameters, backslash, fold, trim in product(range(4), (False, True), (False, True), (False, True), (False, True)):
        text = path
        for _ in range(decodings):
            text = unquote(text)
        if fold:
            text = unicodedata.normalize("NFKC", text)
        if backslash:
            text = text.replace("\\", "/")
        resolved: list[str] = []
        for raw in text.split("/"):
            segment = raw.partition(";")[0] if parameters else raw
            if trim:
                segment = "".join(character for character in segment if unicodedata.category(character) != "Cf").strip()
                segment = segment.rstrip(".") or segment
            if segment == "..":
                del resolved[-1:]
            elif segment not in {"", "."}:
                resolved.append(segment.casefold())
        yield resolved
