from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.bundles.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from registry.bundles.manifest_schema import PATH, render
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import LimitWishes
from registry.domain.records import Endpoint
from tests.fakes.archives import manifest, manifest_bytes

FULL: dict[str, Any] = {
    "name": "com.alga.soft-one",
    "publisher": "softwareone",
    "version": "1.2.3-rc.1+build.7",
    "runtime": "wasm-js@1",
    "capabilities": ["http.fetch", "cap:storage.kv", "secrets.get"],
    "api": {
        "endpoints": [
            {"method": "GET", "path": "/", "handler": "dist/main"},
            {
                "method": "POST",
                "path": "/agreements/:agreement_id/sync",
                "handler": "dist/handlers/sync",
                "timeout_ms": 30000,
                "roles": ["billing:write"],
                "request_headers": ["x-signature"],
                "response_headers": ["x-total"],
                "schedulable": True,
            },
        ]
    },
    "ui": {
        "type": "iframe",
        "entry": "ui/index.html",
        "hooks": {"appMenu": {"label": "Agreements"}, "clientPortalMenu": {"label": "Verträge"}, "somethingNew": {"label": "x" * 64}},
        "routes": [{"path": "/agreements", "iframePath": "ui/agreements.html"}],
    },
    "events": [{"topic": "billing.statement.*", "handler": "on_statement", "filter": {"amount": {"gt": 10}}}],
    "egress": [{"host": "api.example.com", "ports": [443, 8443], "schemes": ["https"]}, {"host": "*.example.org"}],
    "limits": {"wall_time_ms": 1000, "memory_bytes": 67108864},
    "precompiled": {"x86_64-linux-gnu": "artifacts/main.cwasm"},
    "assets": ["ui/**/*"],
    "sbom": "sbom.spdx.json",
}


def refusal_of(data: bytes) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        parse_manifest(data)
    assert caught.value.reason is Reason.INVALID_MANIFEST
    return caught.value


def place_of(**changes: Any) -> str:
    return refusal_of(manifest_bytes(**changes)).metadata["place"]


def test_every_field_of_the_contract_is_read() -> None:
    read = parse_manifest(json.dumps(FULL).encode())
    assert read.capabilities == ("http.fetch", "storage.kv", "secrets.get")
    assert read.ui is not None
    assert read.ui.hooks["clientPortalMenu"].label == "Verträge"
    assert read.ui.routes[0].iframe_path == "ui/agreements.html"
    assert read.events[0].filter == {"amount": {"gt": 10}}
    assert read.egress[1].ports == (443,)
    assert read.egress[1].schemes == ("https",)
    assert read.limits.to_wishes() == LimitWishes(wall_time_ms=1000, memory_bytes=67108864)
    assert read.to_endpoints() == (
        Endpoint(method="GET", path="/", handler="dist/main"),
        Endpoint(
            method="POST",
            path="/agreements/:agreement_id/sync",
            handler="dist/handlers/sync",
            timeout_ms=30000,
            roles=("billing:write",),
            request_headers=("x-signature",),
            response_headers=("x-total",),
            schedulable=True,
        ),
    )


def test_the_least_manifest_is_read() -> None:
    read = parse_manifest(b'{"name":"a.b","publisher":"p","version":"0.0.1","runtime":"wasm-component@1"}')
    assert read.to_endpoints() == ()
    assert read.ui is None
    assert read.limits.to_wishes() == LimitWishes()


def test_the_canonical_form_is_that_of_rfc_8785_and_names_the_document() -> None:
    one = parse_manifest(b'{ "version":"0.0.1", "name":"a.b",\n "publisher":"\\u0070","runtime":"wasm-component@1", "limits":{"fuel":10}}')
    other = parse_manifest(b'{"limits":{"fuel":10},"name":"a.b","publisher":"p","runtime":"wasm-component@1","version":"0.0.1"}')
    assert one.canonical_json == b'{"limits":{"fuel":10},"name":"a.b","publisher":"p","runtime":"wasm-component@1","version":"0.0.1"}'
    assert one.digest == other.digest == "sha256:" + hashlib.sha256(one.canonical_json).hexdigest()


def test_the_canonical_form_is_of_the_document_and_not_of_what_we_made_of_it() -> None:
    prefixed = parse_manifest(manifest_bytes(capabilities=["cap:storage.kv"]))
    bare = parse_manifest(manifest_bytes(capabilities=["storage.kv"]))
    assert prefixed.capabilities == bare.capabilities
    assert prefixed.digest != bare.digest


def test_only_the_reader_gives_a_canonical_form() -> None:
    made = Manifest.model_validate({"name": "a.b", "publisher": "p", "version": "0.0.1", "runtime": "wasm-component@1"})
    with pytest.raises(ValueError, match="parse_manifest"):
        _ = made.digest


def test_a_manifest_does_not_change() -> None:
    read = parse_manifest(manifest_bytes())
    with pytest.raises(ValueError, match="frozen"):
        read.name = "x.y"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    [
        "notes",
        "Com.example",
        "com..x",
        "com.",
        ".com",
        "com.exa_mple",
        "com.ex ample",
        "a.b\n",
        "a." + "b" * 127,
        "018f0e2a-0000-7000-8000-000000000000",
        "sha256:" + "a" * 64,
        "com.exämple",
        "../x.y",
    ],
)
def test_a_name_is_reverse_domain_and_never_an_id(name: str) -> None:
    assert place_of(name=name) == "name"


@pytest.mark.parametrize(("length", "fits"), [(127, True), (128, True), (129, False)])
def test_a_name_is_bounded(length: int, fits: bool) -> None:
    name = "a." + "b" * (length - 2)
    if fits:
        assert parse_manifest(manifest_bytes(name=name)).name == name
    else:
        assert place_of(name=name) == "name"


@pytest.mark.parametrize(
    "version", ["1", "1.2", "01.2.3", "1.2.3.4", "v1.2.3", "1.2.x", "1.2.3-", "1.2.3-01", "1.2.3+", " 1.2.3", "1.2.3\n", "1.2." + "3" * 61]
)
def test_a_version_is_semantic(version: str) -> None:
    assert place_of(version=version) == "version"


@pytest.mark.parametrize(
    "publisher", ["", " x", "x ", "Acme", "a b", "-a", "a.", "a" * 65, "x\u202ey", "a/b", "a\n", "018f0e2a-0000-7000-8000-000000000000"]
)
def test_a_publisher_is_a_plain_name(publisher: str) -> None:
    assert place_of(publisher=publisher) == "publisher"


@pytest.mark.parametrize(("length", "fits"), [(1, True), (63, True), (64, True), (65, False), (0, False)])
def test_labels_are_bounded(length: int, fits: bool) -> None:
    ui = {"type": "iframe", "entry": "ui/index.html", "hooks": {"appMenu": {"label": "ä" * length}}}
    if fits:
        parse_manifest(manifest_bytes(ui=ui))
    else:
        assert place_of(ui=ui) == "ui.hooks.appMenu.label"


@pytest.mark.parametrize(
    "character",
    ["\x00", "\x1b", "\x7f", "\x85", "\n", "\u200b", "\u200f", "\u202e", "\u2066", "\u061c", "\ufeff", "\u2028", "\ue000", "\U000e0041"],
)
def test_labels_hold_nothing_that_rewrites_a_screen(character: str) -> None:
    label = f"a{character}b"
    document = manifest(ui={"type": "iframe", "entry": "ui/index.html", "hooks": {"appMenu": {"label": label}}})
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False)):
        refusal = refusal_of(text.encode())
        assert refusal.metadata["place"] == "ui.hooks.appMenu.label"
        assert refusal.public_detail.isascii()
        assert refusal.public_detail.isprintable()


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"surprise": 1}, "surprise"),
        ({"entry": "dist/main.wasm"}, "entry"),
        ({"\u202ex": 1}, "['\\u202ex']"),
        ({"name": None}, "name"),
        ({"publisher": None}, "publisher"),
        ({"runtime": "wasm-js@2"}, "runtime"),
        ({"runtime": ["wasm-js@1"]}, "runtime"),
        ({"capabilities": ["storage.kv", "cap:storage.kv"]}, "(top)"),
        ({"capabilities": ["cap:cap:storage.kv"]}, "capabilities[0]"),
        ({"capabilities": ["everything"]}, "capabilities[0]"),
        ({"capabilities": [1]}, "capabilities[0]"),
        ({"capabilities": "storage.kv"}, "capabilities"),
        ({"api": []}, "api"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a"}]}}, "api.endpoints[0].handler"),
        ({"api": {"endpoints": [{"method": "get", "path": "/a", "handler": "h"}]}}, "api.endpoints[0].method"),
        ({"api": {"endpoints": [{"method": "CONNECT", "path": "/a", "handler": "h"}]}}, "api.endpoints[0].method"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/:a/:a", "handler": "h"}]}}, "api.endpoints[0]"),
        (
            {"api": {"endpoints": [{"method": "GET", "path": "/:a", "handler": "h"}, {"method": "GET", "path": "/:b", "handler": "h"}]}},
            "api",
        ),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "timeout_ms": 0}]}}, "api.endpoints[0].timeout_ms"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "timeout_ms": 30001}]}}, "api.endpoints[0].timeout_ms"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "timeout_ms": "5"}]}}, "api.endpoints[0].timeout_ms"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "timeout_ms": True}]}}, "api.endpoints[0].timeout_ms"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "roles": ["a b"]}]}}, "api.endpoints[0].roles[0]"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "schedulable": 1}]}}, "api.endpoints[0].schedulable"),
        ({"api": {"endpoints": [{"method": "GET", "path": "/a", "handler": "h", "extra": 1}]}}, "api.endpoints[0].extra"),
        ({"ui": {"type": "native", "entry": "ui/index.html"}}, "ui.type"),
        ({"ui": {"type": "iframe"}}, "ui.entry"),
        ({"ui": {"type": "iframe", "entry": "ui/i.html", "hooks": {"App Menu": {"label": "x"}}}}, "ui.hooks['App Menu']"),
        ({"ui": {"type": "iframe", "entry": "ui/i.html", "hooks": {"__proto__": {"label": "x"}}}}, "ui.hooks.__proto__"),
        ({"ui": {"type": "iframe", "entry": "ui/i.html", "hooks": {"appMenu": {"label": "x", "icon": "y"}}}}, "ui.hooks.appMenu.icon"),
        ({"ui": {"type": "iframe", "entry": "ui/i.html", "routes": [{"path": "/x", "iframe_path": "ui/x"}]}}, "ui.routes[0].iframePath"),
        ({"events": [{"topic": "Has Space", "handler": "h"}]}, "events[0].topic"),
        ({"events": [{"topic": "*", "handler": "h"}]}, "events[0].topic"),
        ({"egress": [{"host": "http://x"}]}, "egress[0].host"),
        ({"egress": [{"host": "*"}]}, "egress[0].host"),
        ({"egress": [{"host": "a.*.b"}]}, "egress[0].host"),
        ({"egress": [{"host": "x.y", "ports": [0]}]}, "egress[0].ports[0]"),
        ({"egress": [{"host": "x.y", "ports": [65536]}]}, "egress[0].ports[0]"),
        ({"egress": [{"host": "x.y", "ports": []}]}, "egress[0].ports"),
        ({"egress": [{"host": "x.y", "schemes": ["ftp"]}]}, "egress[0].schemes[0]"),
        ({"limits": {"fuel": 0}}, "limits.fuel"),
        ({"limits": {"fuel": 1.5}}, "limits.fuel"),
        ({"limits": {"disk": 1}}, "limits.disk"),
        ({"precompiled": []}, "precompiled"),
        ({"assets": ["a\u202e"]}, "assets[0]"),
        ({"sbom": "../sbom.json"}, "sbom"),
        ({"runtime": "ui-only@1", "api": None, "ui": None}, "(top)"),
        ({"runtime": "ui-only@1"}, "(top)"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], place: str) -> None:
    refusal = refusal_of(manifest_bytes(**changes))
    assert refusal.metadata["place"] == place
    assert place in refusal.public_detail


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "/a/",
        "//a",
        "/a//b",
        "/./a",
        "/a/../b",
        "/a?b",
        "/a#b",
        "/a%2fb",
        "/a b",
        "/:",
        "/:1",
        "/a:b",
        "/ä",
        "/a\n",
        "/" + "a" * 512,
    ],
)
def test_a_template_is_in_normal_form(path: str) -> None:
    assert place_of(api={"endpoints": [{"method": "GET", "path": path, "handler": "h"}]}) == "api.endpoints[0].path"


@pytest.mark.parametrize("path", ["/", "/a", "/a/:id", "/a.b/c~d/_e-f", "/:a/:b", "/" + "a" * 511])
def test_templates_that_are_accepted(path: str) -> None:
    read = parse_manifest(manifest_bytes(api={"endpoints": [{"method": "GET", "path": path, "handler": "h"}]}))
    assert read.to_endpoints()[0].path == path


@pytest.mark.parametrize(
    "entry",
    [
        "index.html",
        "/ui/index.html",
        "ui/",
        "ui/../manifest.json",
        "ui/./x",
        "ui//x",
        "ui/.hidden",
        "ui\\x",
        "ui/x?y",
        "ui/x#y",
        "ui/%2e%2e/x",
        "https://evil/x",
        "javascript:x",
        "ui/a\u202eb",
        "ui/" + "a" * 253,
    ],
)
def test_an_entry_is_a_file_below_ui(entry: str) -> None:
    assert place_of(ui={"type": "iframe", "entry": entry}) == "ui.entry"


@pytest.mark.parametrize(
    "header",
    [
        "authorization",
        "cookie",
        "set-cookie",
        "proxy-authorization",
        "forwarded",
        "x-forwarded-for",
        "x-alga-tenant",
        "connection",
        "host",
        "content-length",
        "transfer-encoding",
        "accept-encoding",
        "sec-fetch-site",
        "X-Upper",
        "a b",
        "a:b",
        "",
        "x" * 65,
    ],
)
def test_headers_that_are_never_passed_cannot_be_asked_for(header: str) -> None:
    for field in ("request_headers", "response_headers"):
        endpoint = {"method": "GET", "path": "/a", "handler": "h", field: [header]}
        assert place_of(api={"endpoints": [endpoint]}) == f"api.endpoints[0].{field}[0]"


@pytest.mark.parametrize(("count", "fits"), [(255, True), (256, True), (257, False)])
def test_endpoints_are_bounded(count: int, fits: bool) -> None:
    api = {"endpoints": [{"method": "GET", "path": f"/{number}", "handler": "h"} for number in range(count)]}
    if fits:
        assert len(parse_manifest(manifest_bytes(api=api)).to_endpoints()) == count
    else:
        assert place_of(api=api) == "api.endpoints"


@pytest.mark.parametrize(("size", "fits"), [(MAX_MANIFEST_BYTES - 1, True), (MAX_MANIFEST_BYTES, True), (MAX_MANIFEST_BYTES + 1, False)])
def test_a_manifest_is_bounded(size: int, fits: bool) -> None:
    data = manifest_bytes()
    data += b" " * (size - len(data))
    if fits:
        assert parse_manifest(data).name == "com.example.notes"
    else:
        assert "longer than 262144 bytes" in refusal_of(data).public_detail


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b'"x"', b"\xff", b"{", b'{"name":"a.b","name":"a.c"}', b"[" * 100_000, b'{"name":NaN}']
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    assert refusal_of(data).public_detail.startswith("manifest.json is refused at ")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from([*FULL, "x"]), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=4)
)
def test_nothing_but_a_refusal_ever_leaves_the_reader(changes: dict[str, object]) -> None:
    document = {**FULL, **changes}
    data = json.dumps(document).encode()
    try:
        read = parse_manifest(data)
    except RefusalError:
        assert refusal_of(data).public_detail.isprintable()
    else:
        assert json.loads(read.canonical_json) == document


def test_the_shipped_schema_is_that_of_the_model() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run: python -m registry.bundles.manifest_schema"


def test_the_schema_speaks_of_every_field() -> None:
    schema = json.loads(PATH.read_text(encoding="utf-8"))
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(FULL)
