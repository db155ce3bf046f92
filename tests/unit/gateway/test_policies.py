"""Header tables both ways, and the one spelling of a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policies import (
    MAX_PATH_BYTES,
    MAX_QUERY_BYTES,
    check_header_size,
    is_forwardable_request_header,
    is_passive,
    parse_address,
    parse_query,
    request_headers,
    response_headers,
    safety_headers,
)
from registry.domain.errors import Reason, RefusalError
from registry.domain.headers import MAX_HEADER_BYTES, MAX_HEADERS
from registry.domain.paths import check_normal_form
from runnerd.dispatch.headers import check_request_header

NAME = "com.example.notes"
HOME = f"/api/ext/{NAME}"
HERE = f"{HOME}/one/two"
PREFIX = HOME.encode()
UUID = "0191d5a0-7c1e-7000-8000-0123456789ab"


def refused(raw_path: bytes) -> str:
    with pytest.raises(RefusalError) as refusal:
        parse_address(raw_path)
    assert refusal.value.reason is Reason.INVALID_REQUEST
    return refusal.value.public_detail


class TestAddress:
    @pytest.mark.parametrize(
        ("rest", "path"),
        [
            (b"", "/"),
            (b"/", "/"),
            (b"/a", "/a"),
            (b"/a/", "/a/"),
            (b"/a/b.c/~d_e-f", "/a/b.c/~d_e-f"),
            (b"/a:b@c!$&'()*+,;=", "/a:b@c!$&'()*+,;="),
            (b"/caf%C3%A9", "/caf%C3%A9"),
            (b"/a%20b", "/a%20b"),
            (b"/100%25", "/100%25"),
            (b"/...", "/..."),
            (b"/..a", "/..a"),
            (b"/a..", "/a.."),
            (b"/" + b"p" * (MAX_PATH_BYTES - len(PREFIX) - 1), "/" + "p" * (MAX_PATH_BYTES - len(PREFIX) - 1)),
        ],
    )
    def test_normal_form__kept_as_it_is(self, rest: bytes, path: str) -> None:
        address = parse_address(PREFIX + rest)
        assert (address.extension_id, address.path) == (NAME, path)

    def test_id__accepted(self) -> None:
        assert parse_address(f"/api/ext/{UUID}/x".encode()).extension_id == UUID

    @pytest.mark.parametrize(
        "rest",
        [
            b"//",
            b"//a",
            b"/a//b",
            b"/a//",
            b"/.",
            b"/..",
            b"/./a",
            b"/a/../b",
            b"/a/..",
            b"/%2e",
            b"/%2E%2e/b",
            b"/.%2e/b",
            b"/a%2fb",
            b"/a%2Fb",
            b"/a%5cb",
            b"/a\\b",
            b"/a%00",
            b"/a\x00",
            b"/a%0a",
            b"/a%0d%0ax",
            b"/a%1f",
            b"/a%7F",
            b"/%61dmin",
            b"/admin/%37",
            b"/%7euser",
            b"/a%",
            b"/a%2",
            b"/a%zz",
            b"/a b",
            b"/a\tb",
            b"/a\nb",
            b"/a<b>",
            b'/a"b',
            b"/a{b}",
            b"/a|b",
            b"/a^b",
            b"/a`b",
            b"/a[b]",
            b"/a#b",
            b"/a?b",
            b"/caf\xc3\xa9",
            b"/%c0%af",
            b"/%ff",
            b"/" + b"p" * (MAX_PATH_BYTES - len(PREFIX)),
        ],
    )
    def test_anything_else__refused(self, rest: bytes) -> None:
        assert refused(PREFIX + rest)

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"/",
            b"/api/ext",
            b"/api/ext/",
            b"/api/ext//x",
            b"/api/ext/../admin/v1/publishers",
            b"/api%2Fext/com.example.notes",
            b"/api/%65xt/com.example.notes",
            b"/API/EXT/com.example.notes",
            b"/api/ext/com.example.notes%2Fx",
            b"/api/ext/com.example.notes%00",
            b"/api/ext/com.example.notes;v=1",
            b"/api/ext/Com.Example.Notes",
            b"/api/ext/notes",
            b"/api/ext/com..notes",
            b"/api/ext/\xc3\xa9.b",
            b"/api/ext/" + UUID.upper().encode(),
            b"/api/ext/{" + UUID.encode() + b"}",
            b"/api/ext/" + b"a." * 70 + b"a/x",
        ],
    )
    def test_odd_prefix_or_extension__refused(self, raw: bytes) -> None:
        assert refused(raw)

    @given(st.binary(max_size=60))
    def test_whatever_passes__the_daemon_takes_too(self, rest: bytes) -> None:
        try:
            address = parse_address(PREFIX + b"/" + rest)
        except RefusalError:
            return
        check_normal_form(address.path)

    @given(st.text(alphabet="/.%25eEfF0aA\\", max_size=24))
    def test_no_second_spelling_of_a_segment(self, rest: str) -> None:
        try:
            path = parse_address(PREFIX + b"/" + rest.encode()).path
        except RefusalError:
            return
        assert "//" not in path
        assert not {".", ".."} & set(path.split("/"))
        assert "%2f" not in path.lower()
        assert "%2e" not in path.lower()


class TestQuery:
    @pytest.mark.parametrize("raw", [b"", b"a=1&a=2", b"a=%20&b=+", b'x[]=1&y={}|^`"<>', b"?&=&", b"q" * MAX_QUERY_BYTES])
    def test_raw__passed_on(self, raw: bytes) -> None:
        assert parse_query(raw).encode() == raw

    @pytest.mark.parametrize("raw", [b"a b", b"a\nb", b"a\x00", b"a#b", b"\xc3\xa9", b"q" * (MAX_QUERY_BYTES + 1)])
    def test_unprintable_or_long__refused(self, raw: bytes) -> None:
        with pytest.raises(RefusalError) as refusal:
            parse_query(raw)
        assert refusal.value.reason is Reason.INVALID_REQUEST


class TestHeaderSize:
    @pytest.mark.parametrize(
        ("headers", "fits"),
        [
            ([(b"a", b"")] * MAX_HEADERS, True),
            ([(b"a", b"")] * (MAX_HEADERS + 1), False),
            ([(b"a", b"x" * (MAX_HEADER_BYTES - 1))], True),
            ([(b"a", b"x" * MAX_HEADER_BYTES)], False),
        ],
    )
    def test_limits(self, headers: list[tuple[bytes, bytes]], fits: bool) -> None:
        if fits:
            check_header_size(headers)
            return
        with pytest.raises(RefusalError) as refusal:
            check_header_size(headers)
        assert refusal.value.reason is Reason.HEADERS_TOO_LARGE


class TestRequestHeaders:
    def pass_on(self, *headers: tuple[bytes, bytes], declared: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
        passed = request_headers(headers, request_id="r1", tenant_id="t1", extension_id=NAME, declared=declared)
        assert passed[-3:] == (("x-request-id", "r1"), ("x-alga-tenant", "t1"), ("x-alga-extension", NAME))
        for name, value in passed:
            check_request_header(name, value)
        return list(passed[:-3])

    @pytest.mark.parametrize(
        "name",
        [
            "accept",
            "accept-language",
            "content-type",
            "content-encoding",
            "user-agent",
            "if-match",
            "if-none-match",
            "x-idempotency-key",
        ],
    )
    def test_listed__passes(self, name: str) -> None:
        assert self.pass_on((name.encode(), b"v")) == [(name, "v")]

    NEVER = (
        "authorization",
        "cookie",
        "proxy-authorization",
        "proxy-connection",
        "proxy-anything",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-alga-tenant",
        "x-alga-extension",
        "x-alga-anything",
        "x-extrunner-subject-token",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "x-request-id",
    )

    @pytest.mark.parametrize("name", [*NEVER, "accept-encoding", "origin", "referer", "range", "x-custom"])
    def test_not_listed__dropped(self, name: str) -> None:
        assert self.pass_on((name.encode(), b"v")) == []

    def test_declared__passes(self) -> None:
        declared = frozenset({"x-hub-signature-256", "stripe-signature"})
        assert self.pass_on((b"stripe-signature", b"a"), (b"x-other", b"b"), declared=declared) == [("stripe-signature", "a")]

    @pytest.mark.parametrize("name", NEVER)
    def test_declared_but_never__dropped(self, name: str) -> None:
        assert not is_forwardable_request_header(name)
        assert self.pass_on((name.encode(), b"v"), declared=frozenset({name})) == []

    def test_duplicates__kept_in_order(self) -> None:
        assert self.pass_on((b"accept", b"b"), (b"cookie", b"x"), (b"accept", b"a")) == [("accept", "b"), ("accept", "a")]

    def test_text__is_utf8_or_latin1(self) -> None:
        passed = self.pass_on((b"user-agent", "é".encode()), (b"accept", b"\xe9"))
        assert passed == [("user-agent", "é"), ("accept", "é")]


class TestResponseHeaders:
    def back(self, *headers: tuple[str, str], own_origin: str | None = None, declared: frozenset[str] = frozenset()) -> dict[str, str]:
        return dict(response_headers(headers, request_path=HERE, own_origin=own_origin, declared=declared))

    BASE = (
        ("content-type", "application/octet-stream"),
        ("cache-control", "no-store"),
        ("vary", "Authorization, Origin"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
        ("cross-origin-resource-policy", "same-origin"),
    )

    def test_nothing_said__safe(self) -> None:
        assert response_headers((), request_path=HERE, own_origin=None) == self.BASE

    @pytest.mark.parametrize("name", ["content-language", "etag", "last-modified", "retry-after", "x-ext-anything"])
    def test_listed__passes(self, name: str) -> None:
        assert self.back((name, "v"))[name] == "v"

    @pytest.mark.parametrize(
        "name",
        [
            "set-cookie",
            "set-cookie2",
            "connection",
            "keep-alive",
            "proxy-authenticate",
            "proxy-x",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "x-alga-tenant",
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "x-request-id",
            "x-ext-execution-id",
            "x-ext-content-hash",
            "x-ext-version-id",
            "content-length",
            "content-encoding",
        ],
    )
    def test_never__not_even_declared(self, name: str) -> None:
        assert name not in self.back((name, "v"), declared=frozenset({name}))
        assert name not in self.back((name.upper(), "v"), declared=frozenset({name}))

    @pytest.mark.parametrize(
        "name", ["x-powered-by", "server", "link", "refresh", "clear-site-data", "www-authenticate", "x-frame-options"]
    )
    def test_others__dropped_unless_declared(self, name: str) -> None:
        assert name not in self.back((name, "v"))
        assert self.back((name, "v"), declared=frozenset({name}))[name] == "v"

    @pytest.mark.parametrize(
        "name", ["content-security-policy", "x-content-type-options", "cross-origin-resource-policy", "vary", "cache-control"]
    )
    def test_safety__never_replaced(self, name: str) -> None:
        passed = response_headers(((name, "public, unsafe"),), request_path=HERE, own_origin=None, declared=frozenset({name}))
        assert [value for key, value in passed if key == name].count("public, unsafe") == 0
        assert len([key for key, _ in passed if key == name]) == 1

    def test_duplicates__kept_where_harmless(self) -> None:
        passed = response_headers(
            (("x-ext-a", "1"), ("x-ext-a", "2"), ("etag", '"1"'), ("etag", '"2"')), request_path=HERE, own_origin=None
        )
        assert [value for name, value in passed if name == "x-ext-a"] == ["1", "2"]
        assert [value for name, value in passed if name == "etag"] == ['"1"']

    @pytest.mark.parametrize("value", ["a\r\nset-cookie: x=1", "a\nb", "a\x00b", "a\x7fb", "a\x85b", "\udc80"])
    @pytest.mark.parametrize("name", ["etag", "x-ext-a"])
    def test_header_splitting__refused(self, name: str, value: str) -> None:
        with pytest.raises(RefusalError) as refusal:
            self.back((name, value))
        assert refusal.value.reason is Reason.GUEST_INVALID_RESPONSE

    @pytest.mark.parametrize("name", ["x-ext-a b", "x-ext-é", "x-ext-\r\n", "x-ext-a:"])
    def test_bad_names__refused(self, name: str) -> None:
        with pytest.raises(RefusalError):
            self.back((name, "v"))

    @pytest.mark.parametrize(
        "location",
        [
            f"{HOME}/a",
            f"{HOME}/a?b=c#d",
            HOME,
            f"{HOME}/",
            "a/b",
            "?x=1",
            "#top",
            "./a",
            "../a",
            ".",
            "..",
            f"https://api.example.com{HOME}/x",
            f"HTTPS://API.EXAMPLE.COM{HOME}/x",
            f"{HOME}/a:b",
            "a?b:c",
        ],
    )
    def test_location__own(self, location: str) -> None:
        assert self.back(("location", location), own_origin="https://api.example.com")["location"] == location

    @pytest.mark.parametrize(
        "location",
        [
            "",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "\t//evil.example",
            "https://evil.example",
            "https://api.example.com.evil.example/",
            "https://api.example.com@evil.example/",
            "https://api.example.com:444/",
            "http://api.example.com/",
            "https:evil.example",
            "https:/evil.example",
            "javascript:alert(1)",
            "data:text/html,x",
            "JaVaScRiPt:alert(1)",
            "mailto:a@b",
            "x:y/z",
            "/é",
            "https://[::1",
        ],
    )
    def test_location__elsewhere__dropped(self, location: str) -> None:
        assert "location" not in self.back(("location", location), own_origin="https://api.example.com")

    def test_location__absolute_without_own_origin__dropped(self) -> None:
        assert "location" not in self.back(("location", f"https://api.example.com{HOME}/x"))

    @pytest.mark.parametrize(
        "location",
        [
            "/",
            "/a",
            "/api/admin/v1/installs",
            "/%61pi/admin/v1/installs",
            "/api/ext/com.example.other/x",
            "/api/ext/com.example.notes.evil/x",
            f"{HOME}.evil/x",
            f"{HOME}/../com.example.other/x",
            f"{HOME}/a/../../com.example.other/x",
            f"{HOME}/%2e%2e/com.example.other/x",
            f"{HOME}/.%2E/com.example.other/x",
            f"{HOME}/..%2fcom.example.other/x",
            f"{HOME}/..%5ccom.example.other/x",
            f"{HOME}//../../com.example.other/x",
            "../../com.example.other/x",
            "../../../admin/v1/installs",
            "../../../../../../../api/admin/v1/installs",
            "https://api.example.com",
            "https://api.example.com/api/admin/v1/installs",
            f"https://api.example.com{HOME}/../com.example.other/x",
        ],
    )
    def test_location__of_another_extension_or_the_admin_rest__dropped(self, location: str) -> None:
        assert "location" not in self.back(("location", location), own_origin="https://api.example.com")

    def test_location__relative_to_an_address_without_slash__dropped(self) -> None:
        # A browser resolves it against /api/ext/, and the guest's word becomes the name of another extension.
        answer = (("location", "com.example.other/x"),)
        assert "location" not in dict(response_headers(answer, request_path=HOME, own_origin=None))
        assert "location" in dict(response_headers(answer, request_path=f"{HOME}/", own_origin=None))

    @pytest.mark.parametrize(
        ("asked", "given"),
        [
            ("private, max-age=60", "private, max-age=60"),
            ("Private,Max-Age=60, must-revalidate", "private, max-age=60, must-revalidate"),
            ("private, no-cache", "private, no-cache"),
            ("private, immutable, max-age=1", "private, immutable, max-age=1"),
            ("private, max-age=99999999999", "private"),
            ("private, s-maxage=60", "private"),
            ("private, stale-while-revalidate=9", "private"),
            ("public, max-age=60", "no-store"),
            ("private, public", "no-store"),
            ("private, no-store", "no-store"),
            ("max-age=60", "no-store"),
            ("no-cache", "no-store"),
            ("", "no-store"),
            ("private\tx", "no-store"),
        ],
    )
    def test_cache_control(self, asked: str, given: str) -> None:
        assert self.back(("cache-control", asked))["cache-control"] == given

    def test_cache_control__split_over_two_headers(self) -> None:
        passed = response_headers((("cache-control", "private"), ("cache-control", "public")), request_path=HERE, own_origin=None)
        assert dict(passed)["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        ("asked", "given"),
        [
            ("Accept-Language", "Authorization, Origin, Accept-Language"),
            ("authorization, ORIGIN, accept", "Authorization, Origin, accept"),
            ("*", "Authorization, Origin, *"),
            ("a b, c", "Authorization, Origin, c"),
            ("", "Authorization, Origin"),
        ],
    )
    def test_vary(self, asked: str, given: str) -> None:
        assert self.back(("vary", asked))["vary"] == given

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/json",
            "application/problem+json",
            "application/json; charset=utf-8",
            "text/plain",
            "TEXT/PLAIN; charset=utf-8",
            "text/csv",
            "image/png",
            "image/jpeg",
            "audio/mpeg",
            "video/mp4",
            "application/pdf",
            "application/octet-stream",
        ],
    )
    def test_passive_types__shown(self, media_type: str) -> None:
        assert is_passive(media_type)
        passed = self.back(("content-type", media_type))
        assert passed["content-type"] == media_type
        assert "content-disposition" not in passed

    @pytest.mark.parametrize(
        "media_type",
        [
            "text/html",
            "TEXT/HTML",
            "text/html; charset=utf-8",
            "text/html ;x=y",
            "image/svg+xml",
            "IMAGE/SVG+XML; x=y",
            "image/svg",
            "application/xhtml+xml",
            "application/xml",
            "text/xml",
            "text/javascript",
            "application/javascript",
            "text/css",
            "text/markdown",
            "application/x-unknown",
            "text/html+json",
            "multipart/x-mixed-replace",
            "application/x-shockwave-flash",
            "message/rfc822",
        ],
    )
    @pytest.mark.parametrize("disposition", [None, "inline", "INLINE; filename=x.html", "attachmentx", ""])
    def test_active_types__saved(self, media_type: str, disposition: str | None) -> None:
        headers = [("content-type", media_type)] + ([] if disposition is None else [("content-disposition", disposition)])
        assert self.back(*headers)["content-disposition"] == "attachment"

    def test_active_type__keeps_its_file_name(self) -> None:
        headers = (("content-type", "text/html"), ("content-disposition", 'Attachment; filename="a.html"'))
        assert self.back(*headers)["content-disposition"] == 'Attachment; filename="a.html"'

    @pytest.mark.parametrize("media_type", ["", "text", "text/html\n", "text/html, text/plain", "/", "te xt/plain", "text/plain\x00"])
    def test_invalid_type__is_bytes(self, media_type: str) -> None:
        assert self.back(("content-type", media_type))["content-type"] == "application/octet-stream"

    def test_two_types__the_first_one_decides_and_is_the_only_one(self) -> None:
        passed = response_headers((("content-type", "image/png"), ("content-type", "text/html")), request_path=HERE, own_origin=None)
        assert [value for name, value in passed if name == "content-type"] == ["image/png"]

    def test_refusals__carry_the_same_walls(self) -> None:
        headers = dict(safety_headers())
        assert headers["cache-control"] == "no-store"
        assert headers["vary"] == "Authorization, Origin"
        assert headers["content-security-policy"].startswith("sandbox")
