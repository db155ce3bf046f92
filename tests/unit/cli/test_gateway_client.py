from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from registry.cli.gateway_client import GatewayClient
from registry.cli.invocation import ExtensionCall
from registry.cli.output import ProblemError, UnavailableError, UsageError

Handler = Callable[[httpx.Request], httpx.Response]
PROBLEM = {"title": "t", "detail": "choose another", "reason": "VERSION_EXISTS", "request_id": "r-1"}


def client(handler: Handler) -> GatewayClient:
    return GatewayClient("http://127.0.0.1:8080", "tok.en", transport=httpx.MockTransport(handler))


def problem(status: int, document: object = PROBLEM, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": "application/problem+json", **headers}, content=json.dumps(document).encode())


def test_admin__success__returns_the_object_and_sends_the_token() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"name": "example"})

    with client(handler) as gateway:
        assert gateway.admin("POST", "/publishers", json={"name": "example"}) == {"name": "example"}
    assert str(seen[0].url) == "http://127.0.0.1:8080/api/admin/v1/publishers"
    assert seen[0].headers["authorization"] == "Bearer tok.en"


def test_admin__no_content__is_empty() -> None:
    with client(lambda _: httpx.Response(204)) as gateway:
        assert gateway.admin("DELETE", "/installs/x") == {}


def test_admin__problem__is_raised_with_its_reason() -> None:
    with client(lambda _: problem(409)) as gateway, pytest.raises(ProblemError) as raised:
        gateway.admin("POST", "/bundles")
    assert (raised.value.reason, raised.value.detail, raised.value.status, raised.value.request_id) == (
        "VERSION_EXISTS",
        "choose another",
        "409",
        "r-1",
    )


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(502, text="<html>a proxy's page</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(302, headers={"location": "https://elsewhere.invalid/"}),
        httpx.Response(200, text="not json"),
        httpx.Response(500, headers={"content-type": "application/problem+json"}, content=b"[" * 100_000),
    ],
)
def test_admin__answer_of_something_else__is_unavailable(response: httpx.Response) -> None:
    with client(lambda _: response) as gateway, pytest.raises(UnavailableError):
        gateway.admin("GET", "/publishers")


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")])
def test_admin__no_answer__is_unavailable_and_says_where(error: httpx.HTTPError) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    with client(handler) as gateway, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:8080"):
        gateway.admin("GET", "/publishers")


def test_admin__endless_answer__is_cut() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=(b"x" * (1 << 20) for _ in range(1 << 20)))

    with client(handler) as gateway, pytest.raises(UnavailableError, match="longer than"):
        gateway.admin("GET", "/publishers")


def test_publish__streams_the_signature_and_then_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar.zst"
    archive.write_bytes(bytes(range(256)) * 4_000)
    sent: dict[str, object] = {}
    progress: list[tuple[int, int]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.update(headers=request.headers, body=request.read())
        return httpx.Response(201, json={"version": "1.0.0"})

    with client(handler) as gateway:
        assert gateway.publish(archive, b'{"sig":1}', lambda done, total: progress.append((done, total))) == {"version": "1.0.0"}
    headers = sent["headers"]
    assert isinstance(headers, httpx.Headers)
    assert headers["x-extrunner-signature-length"] == "9"
    assert headers["content-length"] == str(9 + 1_024_000)
    assert "transfer-encoding" not in headers
    assert sent["body"] == b'{"sig":1}' + archive.read_bytes()
    assert progress[-1] == (1_024_000, 1_024_000)
    assert len(progress) > 1


def test_call__guest_answered__is_completed_whatever_the_status() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/api/ext/com.example.notes/a%2Fb?x=1&x=2"
        return httpx.Response(404, headers={"x-ext-execution-id": "e-1"}, json={"error": "no_such_note"})

    with client(handler) as gateway:
        answer = gateway.call(ExtensionCall(tenant_id="acme", extension_id="com.example.notes", path="/a%2Fb", query="x=1&x=2"))
    assert (answer.outcome, answer.status, answer.execution_id, answer.problem) == ("completed", 404, "e-1", None)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("GUEST_TRAPPED", "trapped"),
        ("GUEST_LIMIT_EXCEEDED", "limit_exceeded"),
        ("GUEST_INVALID_RESPONSE", "guest_error"),
        ("BUNDLE_CORRUPT", "refused"),
        ("SOMETHING_NEW", "refused"),
    ],
)
def test_call__problem__is_an_answer_with_its_outcome(reason: str, outcome: str) -> None:
    response = problem(502, PROBLEM | {"reason": reason}, **{"x-ext-execution-id": "e-2"})
    with client(lambda _: response) as gateway:
        answer = gateway.call(ExtensionCall(tenant_id="acme", extension_id="com.example.notes"))
    assert (answer.outcome, answer.execution_id) == (outcome, "e-2")
    assert answer.problem is not None


def test_client__token_would_travel_unprotected__is_refused() -> None:
    with pytest.raises(UsageError):
        GatewayClient("http://gateway.example.com", "tok.en")
