"""Health, metrics, and what happens when something of ours goes wrong."""

from __future__ import annotations

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.problems import http_status, problem_response
from registry.domain.errors import CATALOG, Reason, RefusalError
from registry.domain.ids import is_uuid
from tests.fakes.gateway_kit import EXTENSION, GatewayKit

URL = f"/api/ext/{EXTENSION}/secret-path?secret=query"


async def test_mistake_of_ours__500_without_its_text(kit: GatewayKit, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> object:
        message = "password=hunter2"
        raise RuntimeError(message)

    monkeypatch.setattr(kit.runner_client, "execute", broken)
    answer = await client.get(URL, headers={**kit.bearer(), "x-request-id": "r1"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == "INTERNAL"
    assert answer.json()["request_id"] == "r1"
    assert "hunter2" not in answer.text
    assert kit.endpoint._buffered_bytes == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/api/admin/v1/installs", 404, "NOT_FOUND"),
        ("GET", "/openapi.json", 404, "NOT_FOUND"),
        ("GET", "/docs", 404, "NOT_FOUND"),
        ("GET", "/healthz/", 404, "NOT_FOUND"),
        ("POST", "/healthz", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/ext", 404, "NOT_FOUND"),
    ],
)
async def test_built_in_errors__are_problems(client: httpx.AsyncClient, method: str, path: str, status: int, reason: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.headers["content-type"] == "application/problem+json"
    assert is_uuid(answer.json()["request_id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code in {200, 503}
    assert (await client.get("/healthz")).headers["cache-control"] == "no-store"


async def test_metrics__closed_labels_only(kit: GatewayKit, client: httpx.AsyncClient) -> None:
    await client.get(URL, headers=kit.bearer(tenant="tenant-seven"))
    await client.get(URL)
    await client.request("BREW", URL)
    for number in range(5):
        await client.get(f"/scan-{number}.php")
    metrics = (await client.get("/metrics")).text
    route = "/api/ext/{extension_id}/{path}"
    assert f'extrunner_gateway_requests_total{{method="GET",route="{route}",status="200"}} 1.0' in metrics
    assert f'extrunner_gateway_requests_total{{method="GET",route="{route}",status="401"}} 1.0' in metrics
    assert f'extrunner_gateway_requests_total{{method="OTHER",route="{route}",status="405"}} 1.0' in metrics
    assert 'extrunner_gateway_requests_total{method="GET",route="(none)",status="404"} 5.0' in metrics
    for text in ("tenant-seven", EXTENSION, "secret", "scan-", "BREW"):
        assert text not in metrics


async def test_log_lines__have_no_path_and_no_token(kit: GatewayKit, client: httpx.AsyncClient) -> None:
    token = kit.token()
    with capture_logs() as lines:
        await client.get(URL, headers={"authorization": f"Bearer {token}"})
        await client.get(URL, headers={"authorization": f"Bearer {token[:-2]}"})
    text = str(lines)
    assert any(line["event"] == "request" and line["status"] == 200 for line in lines)
    assert "secret" not in text
    assert token[:40] not in text


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason__has_a_problem(reason: Reason) -> None:
    refusal = RefusalError(reason, "Do this.")
    response = problem_response(refusal, request_id="r")
    assert response.status_code == http_status(refusal) == CATALOG[reason].http_status
    assert response.media_type is None
    assert response.headers["content-type"] == "application/problem+json"
    assert ("www-authenticate" in response.headers) is (reason is Reason.UNAUTHENTICATED)
    assert ("retry-after" in response.headers) is (CATALOG[reason].retry_after_seconds is not None)


def test_compile_rejected__is_the_servers_doing_at_load() -> None:
    refusal = RefusalError(Reason.COMPILE_REJECTED, "x")
    assert (http_status(refusal), http_status(refusal, at_load=True)) == (400, 502)
