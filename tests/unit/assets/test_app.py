from __future__ import annotations

import json

import pytest

from registry.domain.errors import Reason, RefusalError
from tests.fakes.interface_files import EXTENSION, HASH, OTHER_HASH
from tests.unit.assets.conftest import Harness

FILES = {
    "index.html": b"<!doctype html><script src=app.js></script>",
    "app.js": b"console.log(1)",
    "img/logo.svg": b"<svg/>",
    "empty.txt": b"",
    "big.bin": bytes(range(256)) * 3_000,
}


@pytest.fixture(autouse=True)
def shelf(harness: Harness) -> None:
    harness.shelf.put(FILES)


@pytest.mark.parametrize("path", FILES)
async def test_get__file__is_served_whole(harness: Harness, path: str) -> None:
    reply = await harness.get(path)
    assert (reply.status, reply.body, reply.complete) == (200, FILES[path], True)
    assert reply.headers["content-length"] == str(len(FILES[path]))
    assert reply.headers["etag"].startswith('"sha256-')
    assert "set-cookie" not in reply.headers


async def test_head__file__says_what_get_says(harness: Harness) -> None:
    got, headed = await harness.get("app.js"), await harness.get("app.js", "HEAD")
    assert headed.status == 200
    assert {**headed.headers, "date": ""} == {**got.headers, "date": ""}


@pytest.mark.parametrize("path", ["index.html", "app.js", "img/logo.svg"])
async def test_get__known_etag__is_304_with_the_same_headers(harness: Harness, path: str) -> None:
    first = await harness.get(path)
    again = await harness.get(path, if_none_match=f'"other", W/{first.headers["etag"]}')
    assert (again.status, again.body) == (304, b"")
    ignored = {"date": "", "content-length": ""}
    assert {**again.headers, **ignored} == {**first.headers, **ignored}
    assert "content-length" not in again.headers


async def test_get__other_etag__is_200(harness: Harness) -> None:
    assert (await harness.get("app.js", if_none_match='"sha256-00"')).status == 200


@pytest.mark.parametrize("path", ["missing.js", "img/missing.png", "img", "app.js/", "index.html/x.js"])
async def test_get__missing_file__is_404_and_not_stored(harness: Harness, path: str) -> None:
    reply = await harness.get(path)
    document = json.loads(reply.body)
    assert reply.status == 404
    assert (document["status"], document["reason"]) == (404, "ASSET_NOT_FOUND")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "etag" not in reply.headers


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("clients/5", "text/html,*/*", 200),
        ("clients/", "text/html", 200),
        ("clients/5", "*/*", 404),
        ("clients/5", "", 404),
        ("missing.js", "text/html", 404),
        ("clients/a.b", "text/html", 404),
    ],
)
async def test_get__client_side_route__falls_back_for_navigations_only(harness: Harness, path: str, accept: str, status: int) -> None:
    reply = await harness.get(path, accept=accept)
    assert reply.status == status
    if status == 200:
        assert reply.body == FILES["index.html"]
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["vary"] == "Accept"
        assert "sandbox allow-scripts" in reply.headers["content-security-policy"]


async def test_get__root__is_the_entry(harness: Harness) -> None:
    assert (await harness.get("")).body == FILES["index.html"]


async def test_get__root__entry_in_a_folder__redirects_so_that_its_links_work(harness: Harness) -> None:
    harness.shelf.put({"dist/my page.html": b"<p>"}, entry="dist/my page.html", content_hash=OTHER_HASH)
    reply = await harness.request(f"/ext-ui/{EXTENSION}/{OTHER_HASH}/?path=/x")
    assert (reply.status, reply.headers["location"]) == (307, "dist/my%20page.html?path=/x")
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("query", ["a\x01b", "\u00e9", "a b", "x\r\nset-cookie: y"])
async def test_get__root_redirect__odd_query__does_not_come_back(harness: Harness, query: str) -> None:
    harness.shelf.put({"dist/i.html": b"<p>"}, entry="dist/i.html", content_hash=OTHER_HASH)
    reply = await harness.request(f"/ext-ui/{EXTENSION}/{OTHER_HASH}/?{query}")
    assert (reply.status, reply.headers["location"]) == (307, "dist/i.html")


@pytest.mark.parametrize("entry", [None, "gone.html"])
async def test_get__root__no_entry__is_404(harness: Harness, entry: str | None) -> None:
    harness.shelf.put({"app.js": b"1"}, entry=entry, content_hash=OTHER_HASH)
    assert (await harness.request(f"/ext-ui/{EXTENSION}/{OTHER_HASH}/", accept="text/html")).status == 404


@pytest.mark.parametrize("path", ["/", "/v1/execute", "/metrics", "/healthz", "/readyz", "/ext-ui/", "/favicon.ico"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
async def test_other_paths__any_method__are_404(harness: Harness, path: str, method: str) -> None:
    assert (await harness.request(path, method)).status == 404
    assert not harness.asker.questions


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods__are_405(harness: Harness, method: str) -> None:
    reply = await harness.get("app.js", method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(reply.body)["reason"] == "METHOD_NOT_ALLOWED"
    assert not harness.asker.questions


@pytest.mark.parametrize("headers", [{"content_length": "1"}, {"transfer_encoding": "chunked"}])
async def test_get__with_a_body__is_refused_and_closes(harness: Harness, headers: dict[str, str]) -> None:
    reply = await harness.get("app.js", **headers)
    assert (reply.status, reply.headers["connection"]) == (400, "close")


async def test_get__content_length_zero__is_no_body(harness: Harness) -> None:
    assert (await harness.get("app.js", content_length="0")).status == 200


async def test_get__service_worker__is_refused(harness: Harness) -> None:
    reply = await harness.get("app.js", service_worker="script")
    assert reply.status == 400
    assert b"console" not in reply.body


async def test_get__range__is_answered_whole(harness: Harness) -> None:
    reply = await harness.get("app.js", range="bytes=0-3")
    assert (reply.status, reply.body, reply.headers["accept-ranges"]) == (200, FILES["app.js"], "none")


async def test_get__tenant_in_query_or_header__changes_nothing(harness: Harness) -> None:
    reply = await harness.get("app.js?tenant=other&path=/x", x_tenant_id="other", cookie="session=1")
    assert (reply.status, reply.body) == (200, FILES["app.js"])


async def test_get__version_taken_away__is_served_no_longer_than_five_seconds(harness: Harness) -> None:
    assert (await harness.get("app.js")).status == 200
    harness.shelf.served.clear()
    harness.clock.now += 5
    assert (await harness.get("app.js")).status == 404
    assert (await harness.get("app.js", if_none_match="*")).status == 404


async def test_get__version_denied__is_gone_and_forgotten(harness: Harness) -> None:
    assert (await harness.get("app.js")).status == 200
    harness.shelf.refused[EXTENSION, HASH] = RefusalError(Reason.HASH_DENIED, "This content was revoked.")
    harness.clock.now += 5
    reply = await harness.get("app.js", if_none_match="*")
    assert (reply.status, reply.headers["clear-site-data"], reply.headers["cache-control"]) == (410, '"cache"', "no-store")
    assert json.loads(reply.body)["reason"] == "HASH_DENIED"


async def test_get__version_back_again__is_served(harness: Harness) -> None:
    taken = dict(harness.shelf.served)
    harness.shelf.served.clear()
    assert (await harness.get("app.js")).status == 404
    harness.shelf.served.update(taken)
    harness.clock.now += 5
    assert (await harness.get("app.js")).status == 200


async def test_get__registry_away__is_said_so_and_not_taken_for_not_found(harness: Harness) -> None:
    harness.shelf.refused[EXTENSION, HASH] = RefusalError(Reason.REGISTRY_UNAVAILABLE, "The registry does not answer.")
    reply = await harness.get("app.js")
    assert (reply.status, reply.headers["retry-after"], reply.headers["cache-control"]) == (503, "2", "no-store")


async def test_get__unexpected_failure__is_500_without_internals(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(**question: object) -> None:
        message = "secret path"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(harness.asker, "ask", fail)
    reply = await harness.get("app.js")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert json.loads(reply.body)["reason"] == "INTERNAL"


async def test_get__client_gone__stops_reading_the_file(harness: Harness) -> None:
    sent = 0

    def leave(reply: object) -> None:
        nonlocal sent
        sent += 1
        harness.on_send = lambda reply: pytest.fail("the file was sent on")
        reply.transport.closing = True  # type: ignore[attr-defined]

    harness.on_send = leave
    reply = await harness.get("big.bin")
    assert (sent, reply.complete) == (1, False)
