from __future__ import annotations

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.assets import headers

ANCESTORS = headers.frame_ancestors(["https://host.example"])
ETAG = headers.etag_of("0" * 64)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("INDEX.HTM", "text/html; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.json", "application/json; charset=utf-8"),
        ("a.js.map", "application/json; charset=utf-8"),
        ("a.svg", "image/svg+xml; charset=utf-8"),
        ("a.ico", "image/x-icon"),
        ("a.avif", "image/avif"),
        ("a.woff2", "font/woff2"),
        ("a.ttf", "font/ttf"),
        ("a.wasm", "application/wasm"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.webmanifest", "application/manifest+json; charset=utf-8"),
        ("a.pdf", "application/pdf"),
        ("LICENSE", "application/octet-stream"),
        ("html", "application/octet-stream"),
        ("a.exe", "application/octet-stream"),
        ("x.html/readme", "application/octet-stream"),
    ],
)
def test_content_type__comes_from_the_fixed_table(path: str, kind: str) -> None:
    assert headers.content_type(path) == kind


def test_content_type__every_text_type__names_its_charset() -> None:
    texts = [kind for kind in headers.CONTENT_TYPES.values() if kind.startswith("text/") or "xml" in kind or "json" in kind]
    assert texts
    assert all(kind.endswith("; charset=utf-8") for kind in texts)


@pytest.mark.parametrize("path", ["a.html", "a.htm", "a.xhtml", "a.xht", "a.svg", "a.xml", "a.xsl", "a.pdf"])
def test_for_file__document_types__are_sandboxed_without_an_origin(path: str) -> None:
    fields = dict(headers.for_file(kind=headers.content_type(path), etag=ETAG, ancestors=ANCESTORS))
    directives = fields[b"content-security-policy"].decode().split("; ")
    assert directives[0] == "sandbox allow-scripts allow-forms"
    assert "default-src 'none'" in directives
    assert "form-action 'none'" in directives
    assert "base-uri 'none'" in directives
    assert "object-src 'none'" in directives
    assert "webrtc 'block'" in directives
    assert "frame-ancestors https://host.example" in directives
    assert not any("unsafe-eval" in directive or "allow-same-origin" in directive for directive in directives)
    assert "script-src 'self'" in directives


@pytest.mark.parametrize("path", ["a.js", "a.png", "a.txt", "a.json", "a.wasm", "a"])
def test_for_file__other_types__may_do_nothing_when_opened_directly(path: str) -> None:
    fields = dict(headers.for_file(kind=headers.content_type(path), etag=ETAG, ancestors=ANCESTORS))
    assert fields[b"content-security-policy"] == b"sandbox; default-src 'none'; frame-ancestors https://host.example"


@pytest.mark.parametrize("path", ["a.html", "a.js", "a.svg", "a.woff2", "a"])
def test_for_file__every_type__carries_the_guards(path: str) -> None:
    fields = dict(headers.for_file(kind=headers.content_type(path), etag=ETAG, ancestors=ANCESTORS))
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert fields[b"referrer-policy"] == b"no-referrer"
    assert fields[b"access-control-allow-origin"] == b"*"
    assert fields[b"cross-origin-resource-policy"] == b"cross-origin"
    assert fields[b"x-dns-prefetch-control"] == b"off"
    assert b"camera=()" in fields[b"permissions-policy"]
    assert b"set-cookie" not in fields
    assert b"service-worker-allowed" not in fields
    assert fields[b"etag"] == b'"sha256-' + b"0" * 64 + b'"'


@pytest.mark.parametrize(("path", "is_kept"), [("a.html", False), ("a.xhtml", False), ("a.js", True), ("a.svg", True), ("a", True)])
def test_for_file__pages__are_revalidated_and_the_rest_is_kept(path: str, *, is_kept: bool) -> None:
    fields = dict(headers.for_file(kind=headers.content_type(path), etag=ETAG, ancestors=ANCESTORS))
    assert fields[b"cache-control"] == (b"public, max-age=31536000, immutable" if is_kept else b"no-cache")


def test_for_problem__is_never_stored() -> None:
    fields = dict(headers.for_problem(ancestors=ANCESTORS))
    assert fields[b"cache-control"] == b"no-store"
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert b"etag" not in fields


@pytest.mark.parametrize(
    ("sent", "matches"),
    [
        (ETAG, True),
        (b"W/" + ETAG, True),
        (b"*", True),
        (b'"x", ' + ETAG + b' , "y"', True),
        (b'"x"', False),
        (b"", False),
        (ETAG.strip(b'"'), False),
        (ETAG.upper(), False),
    ],
)
def test_is_match__if_none_match(sent: bytes, *, matches: bool) -> None:
    assert headers.is_match(sent, ETAG) is matches


def test_frame_ancestors__none__lets_nobody_embed() -> None:
    assert headers.frame_ancestors([]) == "'none'"


@pytest.mark.parametrize(
    "origin", ["https://a.example", "http://localhost:3000", "https://*.a.example:8443", "http://[::1]:8080", "http://127.0.0.1:1"]
)
def test_frame_ancestors__origins__are_accepted(origin: str) -> None:
    assert headers.frame_ancestors([origin]) == origin


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https:",
        "https://",
        "'self'",
        "a.example",
        "https://a.example/",
        "https://a.example;script-src *",
        "https://a.example https://b.example",
        "https://a.example\r\nx: y",
        "https://a.example\n",
        "javascript:alert(1)",
        "HTTPS://A.EXAMPLE",
        "https://*",
        "https://a.*.example",
    ],
)
def test_frame_ancestors__anything_else__is_refused(origin: str) -> None:
    with pytest.raises(RefusalError) as refused:
        headers.frame_ancestors([origin])
    assert refused.value.reason is Reason.INVALID_REQUEST


def test_frame_ancestors__count__is_bounded_exactly() -> None:
    origins = [f"https://h{number}.example" for number in range(headers.MAX_FRAME_ANCESTORS)]
    assert headers.frame_ancestors(origins)
    with pytest.raises(RefusalError):
        headers.frame_ancestors([*origins, "https://one-more.example"])
