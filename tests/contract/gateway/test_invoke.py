"""`/api/ext`: what reaches the runner and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from extrunner.runner.v1 import execution_pb2, limits_pb2
from registry.domain.errors import CATALOG, Reason, RefusalError
from registry.domain.ids import is_uuid
from registry.tokens import parse_service
from runnerd.rpc.status import to_status
from tests.fakes.fake_runner import completed
from tests.fakes.gateway_kit import BODY_LIMIT, EXTENSION, GatewayKit, gateway_kit

URL = f"/api/ext/{EXTENSION}"


class TestWhatReachesTheRunner:
    async def test_request__is_carried_over(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        headers = {**kit.bearer(), "content-type": "application/json", "x-request-id": "req-7"}
        answer = await client.post(f"{URL}/notes/7?a=1&a=%20b&c", headers=headers, content=b'{"x":1}')
        assert answer.status_code == 200
        (request,) = kit.runner.requests
        assert request.context.tenant_id == "t1"
        assert request.context.extension_id == EXTENSION
        assert request.context.request_id == "req-7"
        assert not request.context.HasField("user")
        assert request.context.content_hash == ""
        assert request.trigger == execution_pb2.TRIGGER_HTTP
        assert (request.http.method, request.http.path, request.http.query) == ("POST", "/notes/7", "a=1&a=%20b&c")
        assert request.http.body == b'{"x":1}'
        assert request.idempotency_key == ""

    @pytest.mark.parametrize(("address", "path"), [("", "/"), ("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/%C3%A9/b", "/%C3%A9/b")])
    async def test_both_address_forms__without_redirect(self, kit: GatewayKit, client: httpx.AsyncClient, address: str, path: str) -> None:
        answer = await client.get(URL + address, headers=kit.bearer())
        assert answer.status_code == 200
        assert kit.runner.requests[0].http.path == path

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def test_methods(self, kit: GatewayKit, client: httpx.AsyncClient, method: str) -> None:
        assert (await client.request(method, URL, headers=kit.bearer())).status_code == 200
        assert kit.runner.requests[0].http.method == method

    async def test_head__is_a_get_without_body(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = completed(headers=(("content-type", "text/plain"),), body=b"hello")
        answer = await client.head(URL, headers=kit.bearer())
        assert kit.runner.requests[0].http.method == "GET"
        assert answer.content == b""
        assert answer.headers["content-length"] == "5"

    @pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "QUERY"])
    async def test_other_methods__405(self, kit: GatewayKit, client: httpx.AsyncClient, method: str) -> None:
        answer = await client.request(method, URL, headers=kit.bearer()) if method != "get" else await _raw_method(kit, method)
        assert answer.status_code == 405
        assert answer.json()["reason"] == "METHOD_NOT_ALLOWED"
        assert "GET" in answer.headers["allow"]
        assert not kit.runner.requests

    async def test_service_token__covers_this_tenant_and_execute_only(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        token = kit.token(tenant="t9")
        await client.get(URL, headers={"authorization": f"Bearer {token}"})
        metadata = kit.runner.metadata[0]
        claims = kit.services.verify(metadata["authorization"].removeprefix("Bearer "))
        service = parse_service(claims)
        assert service.tenants == {"t9"}
        assert service.scopes == {"execute"}
        assert service.subject == "gateway"
        assert metadata["x-extrunner-subject-token"] == token

    async def test_service_token__is_reused_for_a_tenant(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        for tenant in ("t1", "t1", "t2"):
            await client.get(URL, headers=kit.bearer(tenant=tenant))
        tokens = [metadata["authorization"] for metadata in kit.runner.metadata]
        assert tokens[0] == tokens[1] != tokens[2]

    async def test_deadline__is_passed_on(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        await client.get(URL, headers=kit.bearer())
        # The client sends ten seconds; 10.0996 s has arrived for them; rounding on the wire, as it seems.
        assert 5 < kit.runner.remaining_seconds[0] <= 10 * 1.01

    async def test_pin__is_passed_on(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        pin = "sha256:" + "a" * 64
        await client.get(URL, headers={**kit.bearer(), "x-ext-content-hash": pin})
        assert kit.runner.requests[0].context.content_hash == pin

    @pytest.mark.parametrize("pin", ["", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha512:" + "a" * 64])
    async def test_malformed_pin__refused(self, kit: GatewayKit, client: httpx.AsyncClient, pin: str) -> None:
        answer = await client.get(URL, headers={**kit.bearer(), "x-ext-content-hash": pin})
        assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_REQUEST")
        assert not kit.runner.requests

    async def test_request_headers__allow_list(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        sent = [
            ("accept", "text/html"),
            ("accept", "application/json"),
            ("accept-language", "de"),
            ("accept-encoding", "gzip"),
            ("content-type", "text/plain"),
            ("content-encoding", "identity"),
            ("user-agent", "test/1"),
            ("if-match", '"a"'),
            ("if-none-match", '"b"'),
            ("x-idempotency-key", "k1"),
            ("x-request-id", "req-1"),
            ("cookie", "session=1"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("proxy-authorization", "Basic eA=="),
            ("x-alga-tenant", "t2"),
            ("x-alga-extension", "com.evil"),
            ("x-alga-admin", "1"),
            ("x-extrunner-subject-token", "forged"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("referer", "https://app.example.com/secret"),
            ("x-tenant-id", "t2"),
            ("authorization", kit.bearer()["authorization"]),
        ]
        await client.post(URL, headers=sent, content=b"x")
        got = [(header.name, header.value) for header in kit.runner.requests[0].http.headers]
        assert sorted(got) == sorted(
            [
                ("accept", "text/html"),
                ("accept", "application/json"),
                ("accept-language", "de"),
                ("content-type", "text/plain"),
                ("content-encoding", "identity"),
                ("user-agent", "test/1"),
                ("if-match", '"a"'),
                ("if-none-match", '"b"'),
                ("x-idempotency-key", "k1"),
                ("x-request-id", "req-1"),
                ("x-alga-tenant", "t1"),
                ("x-alga-extension", EXTENSION),
            ]
        )
        assert [value for name, value in got if name == "accept"] == ["text/html", "application/json"]
        assert kit.runner.metadata[0]["x-extrunner-subject-token"] != "forged"


async def _raw_method(kit: GatewayKit, method: str) -> httpx.Response:
    """httpx upper-cases methods; a raw ASGI call does not."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path = URL.encode()
    scope = {
        "type": "http",
        "method": method,
        "path": URL,
        "raw_path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in kit.bearer().items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 1),
        "client": ("y", 2),
    }
    await kit.app(scope, receive, send)
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=b"".join(m.get("body", b"") for m in sent[1:]))


class TestWhatComesBack:
    async def test_answer__is_relayed_and_made_harmless(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = completed(201, headers=(("content-type", "application/json"), ("x-ext-a", "1"), ("x-ext-a", "2")), body=b"{}")
        answer = await client.post(URL, headers={**kit.bearer(), "x-request-id": "req-9"})
        assert (answer.status_code, answer.content) == (201, b"{}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers.get_list("x-ext-a") == ["1", "2"]
        assert answer.headers["x-request-id"] == "req-9"
        assert answer.headers["x-ext-execution-id"] == "exec-1"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["vary"] == "Authorization, Origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "content-disposition" not in answer.headers

    async def test_guest__cannot_set_what_the_gateway_sets(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        forged = [
            ("x-ext-execution-id", "forged"),
            ("x-request-id", "forged"),
            ("x-content-type-options", "none"),
            ("content-security-policy", "default-src *"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("access-control-allow-origin", "*"),
            ("set-cookie", "a=b"),
            ("x-alga-tenant", "t2"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("server", "guest"),
            ("content-encoding", "gzip"),
            ("strict-transport-security", "max-age=0"),
        ]
        kit.runner.answer = completed(headers=tuple(forged), body=b"12345")
        answer = await client.get(URL, headers=kit.bearer())
        assert answer.content == b"12345"
        assert all(("forged" not in value) for value in answer.headers.values())
        for name in (
            "set-cookie",
            "x-alga-tenant",
            "server",
            "content-encoding",
            "access-control-allow-origin",
            "strict-transport-security",
        ):
            assert name not in answer.headers
        assert answer.headers.get_list("content-security-policy") == ["sandbox; default-src 'none'; frame-ancestors 'none'"]
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers["content-length"] == "5"

    @pytest.mark.parametrize("status", [204, 205, 304])
    async def test_statuses_without_body(self, kit: GatewayKit, client: httpx.AsyncClient, status: int) -> None:
        kit.runner.answer = completed(status, headers=(("etag", '"v1"'), ("content-type", "text/html")))
        answer = await client.get(URL, headers=kit.bearer())
        assert answer.status_code == status
        assert answer.headers["etag"] == '"v1"'
        assert "content-type" not in answer.headers
        assert "content-length" not in answer.headers

    @pytest.mark.parametrize("status", [0, 100, 101, 199, 600, 70_000])
    async def test_invalid_status__502(self, kit: GatewayKit, client: httpx.AsyncClient, status: int) -> None:
        kit.runner.answer = completed(status)
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (502, "GUEST_INVALID_RESPONSE")
        assert answer.headers["x-ext-execution-id"] == "exec-1"

    @pytest.mark.parametrize("status", [200, 404, 500, 599])
    async def test_guest_statuses__verbatim(self, kit: GatewayKit, client: httpx.AsyncClient, status: int) -> None:
        kit.runner.answer = completed(status, body=b"x")
        assert (await client.get(URL, headers=kit.bearer())).status_code == status

    async def test_reply_above_four_mebibytes__arrives(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = completed(body=bytes(5 * 1024 * 1024))
        assert len((await client.get(URL, headers=kit.bearer())).content) == 5 * 1024 * 1024

    async def test_reply_above_the_cap__typed(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = completed(body=bytes(34 * 1024 * 1024))
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")


class TestCompression:
    TEXT = b"all work and no play " * 100

    @pytest.mark.parametrize(
        ("asked", "headers", "body", "encoded"),
        [
            ("gzip", (("content-type", "application/json"),), TEXT, True),
            ("br, gzip;q=0.5", (("content-type", "text/plain"),), TEXT, True),
            ("gzip;q=0", (("content-type", "text/plain"),), TEXT, False),
            ("gzip;q=x", (("content-type", "text/plain"),), TEXT, False),
            ("br", (("content-type", "text/plain"),), TEXT, False),
            ("identity", (("content-type", "text/plain"),), TEXT, False),
            ("*", (("content-type", "text/plain"),), TEXT, False),
            ("gzip", (("content-type", "image/png"),), TEXT, False),
            ("gzip", (), TEXT, False),
            ("gzip", (("content-type", "text/plain"), ("etag", '"1"')), TEXT, False),
            ("gzip", (("content-type", "text/plain"),), TEXT[:1023], False),
            ("gzip", (("content-type", "text/plain"),), TEXT[:1024], True),
            ("gzip", (("content-type", "text/plain"),), TEXT * 50, True),
        ],
    )
    async def test_where_it_is_asked_for_and_helps(
        self, kit: GatewayKit, client: httpx.AsyncClient, asked: str, headers: tuple[tuple[str, str], ...], body: bytes, encoded: bool
    ) -> None:
        kit.runner.answer = completed(headers=headers, body=body)
        for method in ("GET", "HEAD"):
            answer = await client.request(method, URL, headers={**kit.bearer(), "accept-encoding": asked})
            assert answer.content == (body if method == "GET" else b"")
            assert (answer.headers.get("content-encoding") == "gzip") is encoded
            assert (int(answer.headers["content-length"]) < len(body)) is encoded
            if encoded:
                assert answer.headers["vary"] == "Authorization, Origin, Accept-Encoding"


class TestOutcomes:
    @pytest.mark.parametrize(
        ("limit", "status"),
        [
            ("WALL_TIME", 504),
            ("CPU_TIME", 504),
            ("FUEL", 504),
            ("MEMORY", 502),
            ("RESPONSE_SIZE", 502),
            ("HOST_CALLS", 502),
            ("HEADERS", 502),
            ("TABLES", 502),
        ],
    )
    async def test_limits(self, kit: GatewayKit, client: httpx.AsyncClient, limit: str, status: int) -> None:
        kit.runner.answer = execution_pb2.ExecuteResponse(
            limit_exceeded=execution_pb2.LimitExceeded(limit=limits_pb2.LimitKind.Value(f"LIMIT_KIND_{limit}"), used=7, allowed=5),
            execution_id="exec-2",
        )
        answer = await client.get(URL, headers=kit.bearer())
        assert answer.status_code == status
        problem = answer.json()
        assert problem["reason"] == "GUEST_LIMIT_EXCEEDED"
        assert problem["metadata"] == {"limit": limit, "used": "7", "allowed": "5", "execution_id": "exec-2"}
        assert answer.headers["x-ext-execution-id"] == "exec-2"

    async def test_trap__without_the_guests_words(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = execution_pb2.ExecuteResponse(
            trapped=execution_pb2.Trapped(kind=execution_pb2.TRAP_KIND_STACK_OVERFLOW, message="<script>internals</script>"),
            execution_id="exec-3",
        )
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (502, "GUEST_TRAPPED")
        assert answer.json()["metadata"]["trap"] == "STACK_OVERFLOW"
        assert "internals" not in answer.text

    async def test_guest_error(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = execution_pb2.ExecuteResponse(guest_error=execution_pb2.GuestError(message="status 999"), execution_id="e")
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (502, "GUEST_INVALID_RESPONSE")

    async def test_no_outcome__500(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = execution_pb2.ExecuteResponse(execution_id="e")
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (500, "INTERNAL")

    @pytest.mark.parametrize("reason", [reason for reason in Reason if CATALOG[reason].grpc_code != "OK"])
    async def test_every_refusal_of_the_runner__keeps_its_reason(self, kit: GatewayKit, client: httpx.AsyncClient, reason: Reason) -> None:
        metadata = {"field": "x", "credential": "subject"}
        kit.runner.answer = to_status(RefusalError(reason, "Change this.", metadata=metadata))
        answer = await client.get(URL, headers={**kit.bearer(), "x-request-id": "req-1"})
        row = CATALOG[reason]
        assert answer.status_code == (502 if reason is Reason.COMPILE_REJECTED else row.http_status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json() == {
            "type": f"https://extrunner.dev/problems/{reason.lower().replace('_', '-')}",
            "title": row.title,
            "status": answer.status_code,
            "detail": "Change this.",
            "reason": reason.value,
            "request_id": "req-1",
            "metadata": metadata,
        }
        assert answer.headers.get("retry-after") == (None if row.retry_after_seconds is None else str(row.retry_after_seconds))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"] == "req-1"

    async def test_retry_after__is_the_runners(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        kit.runner.answer = to_status(RefusalError(Reason.COMPILING, "Wait.", retry_after_seconds=17))
        assert (await client.get(URL, headers=kit.bearer())).headers["retry-after"] == "17"

    @pytest.mark.parametrize(
        "refusal",
        [
            RefusalError(Reason.UNAUTHENTICATED, "The service token is broken."),
            RefusalError(Reason.PERMISSION_MISSING, "The service token lacks a scope.", metadata={"scope": "execute"}),
        ],
    )
    async def test_runner_refuses_the_gateway__is_not_the_users_mistake(
        self, kit: GatewayKit, client: httpx.AsyncClient, refusal: RefusalError
    ) -> None:
        kit.runner.answer = to_status(refusal)
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (500, "INTERNAL")
        assert "token" not in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PAYLOAD_TOO_LARGE),
            (grpc.StatusCode.UNAVAILABLE, Reason.OVERLOADED),
            (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
            (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
            (grpc.StatusCode.INTERNAL, Reason.INTERNAL),
            (grpc.StatusCode.UNIMPLEMENTED, Reason.INTERNAL),
            (grpc.StatusCode.CANCELLED, Reason.INTERNAL),
            (grpc.StatusCode.INVALID_ARGUMENT, Reason.INTERNAL),
        ],
    )
    async def test_status_without_reason(self, kit: GatewayKit, client: httpx.AsyncClient, code: grpc.StatusCode, reason: Reason) -> None:
        kit.runner.answer = code
        answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (CATALOG[reason].http_status, reason.value)
        assert "nobody may see" not in answer.text

    async def test_reason_of_another_domain__not_believed(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        status = to_status(RefusalError(Reason.HASH_DENIED, "x"))
        from google.rpc import error_details_pb2  # noqa: PLC0415

        info = error_details_pb2.ErrorInfo(reason="HASH_DENIED", domain="evil.example")
        status.details[0].Pack(info)
        kit.runner.answer = status
        assert (await client.get(URL, headers=kit.bearer())).json()["reason"] == "INTERNAL"

    async def test_no_runner__503(self, tmp_path: Path) -> None:
        async with gateway_kit(tmp_path, execute_timeout_seconds=5) as kit:
            assert kit.runner._server is not None
            await kit.runner._server.stop(0)
            async with kit.client() as client:
                answer = await client.get(URL, headers=kit.bearer())
        assert (answer.status_code, answer.json()["reason"]) == (503, "OVERLOADED")
        assert "127.0.0.1" not in answer.text

    async def test_own_deadline__504(self, tmp_path: Path) -> None:
        async with gateway_kit(tmp_path, execute_timeout_seconds=0.3) as kit, kit.client() as client:

            async def slow(_: Any) -> Any:
                await asyncio.sleep(30)

            kit.runner.answer = slow
            answer = await client.get(URL, headers=kit.bearer())
            assert (answer.status_code, answer.json()["reason"]) == (504, "DEADLINE_EXCEEDED")
            async with asyncio.timeout(5):
                await kit.runner.cancelled.wait()


class TestWhoMayCall:
    async def test_no_credential__401(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        answer = await client.get(URL)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["reason"] == "UNAUTHENTICATED"
        assert is_uuid(answer.json()["request_id"])

    @pytest.mark.parametrize(
        "headers",
        [
            {"cookie": "authorization=Bearer {token}; token={token}; session={token}"},
            {"x-authorization": "Bearer {token}"},
            {"authorization": "Basic {token}"},
            {"authorization": "{token}"},
            {"authorization": "Bearer"},
            {"authorization": "Bearer "},
            {"authorization": "Bearer {token} {token}"},
            {"authorization": "Bearer {token},Bearer {token}"},
            {"proxy-authorization": "Bearer {token}"},
            {"x-extrunner-subject-token": "{token}"},
        ],
    )
    async def test_anything_but_one_bearer__401(self, kit: GatewayKit, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        filled = {name: value.format(token=kit.token()) for name, value in headers.items()}
        assert (await client.get(URL, headers=filled)).status_code == 401
        assert not kit.runner.requests

    async def test_two_authorization_headers__401(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        pairs = [("authorization", kit.bearer()["authorization"]), ("authorization", kit.bearer(tenant="t2")["authorization"])]
        assert (await client.get(URL, headers=pairs)).status_code == 401

    async def test_token_in_the_query__401(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"{URL}?access_token={kit.token()}")).status_code == 401

    @pytest.mark.parametrize("roles", [(), ("ext:manage",), ("ext:operate", "ext:publish"), ("ext:invoker",)])
    async def test_without_role__403(self, kit: GatewayKit, client: httpx.AsyncClient, roles: tuple[str, ...]) -> None:
        answer = await client.get(URL, headers=kit.bearer(roles=roles))
        assert (answer.status_code, answer.json()["reason"]) == (403, "PERMISSION_MISSING")
        assert answer.json()["metadata"] == {"roles": "ext:invoke"}

    async def test_token_for_every_tenant__cannot_invoke(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        assert (await client.get(URL, headers=kit.bearer(tenant="*", roles=("ext:operate",)))).status_code == 403
        assert (await client.get(URL, headers=kit.bearer(tenant="*", roles=("ext:invoke",)))).status_code == 401

    async def test_tenant__comes_from_the_token_only(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        headers = {**kit.bearer(tenant="t1"), "x-alga-tenant": "t2", "x-tenant-id": "t2", "tenant": "t2"}
        await client.post(f"{URL}/x?tenant_id=t2&tenant=t2", headers=headers, json={"tenant_id": "t2"})
        request = kit.runner.requests[0]
        assert request.context.tenant_id == "t1"
        assert [header.value for header in request.http.headers if header.name == "x-alga-tenant"] == ["t1"]

    async def test_refusal__comes_before_the_body_is_read(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        async def receive() -> dict[str, Any]:
            pytest.fail("the body was read")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": URL,
            "raw_path": URL.encode(),
            "query_string": b"",
            "headers": [(b"content-length", b"999999999")],
            "root_path": "",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("x", 1),
            "client": ("y", 2),
        }
        await kit.app(scope, receive, send)
        assert sent[0]["status"] == 401


class TestSizes:
    @pytest.mark.parametrize(("excess", "status"), [(-1, 200), (0, 200), (1, 413)])
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_body(self, kit: GatewayKit, client: httpx.AsyncClient, excess: int, status: int, chunked: bool) -> None:
        size = BODY_LIMIT + excess

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, size, 10_000):
                yield b"x" * min(10_000, size - start)

        answer = await client.post(URL, headers=kit.bearer(), content=parts() if chunked else b"x" * size)
        assert answer.status_code == status
        if status == 413:
            assert answer.json()["reason"] == "PAYLOAD_TOO_LARGE"
            assert answer.json()["metadata"] == {"limit_bytes": str(BODY_LIMIT)}
            assert not kit.runner.requests
        else:
            assert len(kit.runner.requests[0].http.body) == size

    @pytest.mark.parametrize(("count", "status"), [(64, 200), (65, 431)])
    async def test_number_of_headers(self, kit: GatewayKit, client: httpx.AsyncClient, count: int, status: int) -> None:
        own = ("host", "user-agent", "accept", "accept-encoding", "connection", "authorization")
        headers = {**kit.bearer(), **{f"x-{number}": "1" for number in range(count - len(own))}}
        answer = await client.get(URL, headers=headers)
        assert answer.status_code == status
        if status == 431:
            assert answer.json()["reason"] == "HEADERS_TOO_LARGE"

    @pytest.mark.parametrize(("excess", "status"), [(-1, 200), (0, 200), (1, 431)])
    async def test_size_of_headers(self, kit: GatewayKit, client: httpx.AsyncClient, excess: int, status: int) -> None:
        request = client.build_request("GET", URL, headers={**kit.bearer(), "x-pad": ""})
        taken = sum(len(name) + len(value) for name, value in request.headers.raw)
        request.headers["x-pad"] = "x" * (16 * 1024 - taken + excess)
        assert (await client.send(request)).status_code == status

    @pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 400)])
    async def test_query(self, kit: GatewayKit, client: httpx.AsyncClient, excess: int, status: int) -> None:
        assert (await client.get(f"{URL}?{'q' * (8192 + excess)}", headers=kit.bearer())).status_code == status

    @pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 400)])
    async def test_path(self, kit: GatewayKit, client: httpx.AsyncClient, excess: int, status: int) -> None:
        pad = "p" * (4096 - len(URL) - 1 + excess)
        assert (await client.get(f"{URL}/{pad}", headers=kit.bearer())).status_code == status

    async def test_held_bodies__have_a_budget(self, tmp_path: Path) -> None:
        async with gateway_kit(tmp_path, buffered_bytes=10_000) as kit, kit.client() as client:
            assert (await client.post(URL, headers=kit.bearer(), content=b"x" * 10_000)).status_code == 200
            answer = await client.post(URL, headers=kit.bearer(), content=b"x" * 10_001)
            assert (answer.status_code, answer.json()["reason"]) == (503, "OVERLOADED")
            assert (await client.post(URL, headers=kit.bearer(), content=b"x" * 10_000)).status_code == 200

    async def test_no_body__is_absent(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        await client.get(URL, headers=kit.bearer())
        assert not kit.runner.requests[0].http.HasField("body")


class TestRequestId:
    @pytest.mark.parametrize("sent", ["a b", "x" * 129, "a/b", "<script>", ""])
    async def test_invalid__replaced(self, kit: GatewayKit, client: httpx.AsyncClient, sent: str) -> None:
        answer = await client.get(URL, headers=[*kit.bearer().items(), ("x-request-id", sent)])
        given = answer.headers["x-request-id"]
        assert is_uuid(given)
        assert kit.runner.requests[0].context.request_id == given

    async def test_two__replaced(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        pairs = [*kit.bearer().items(), ("x-request-id", "a"), ("x-request-id", "b")]
        assert is_uuid((await client.get(URL, headers=pairs)).headers["x-request-id"])

    async def test_longest__kept(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        assert (await client.get(URL, headers={**kit.bearer(), "x-request-id": "x" * 128})).headers["x-request-id"] == "x" * 128


class TestBrowsers:
    ORIGIN = "https://app.example.com"

    async def test_preflight__of_a_listed_origin(self, client: httpx.AsyncClient) -> None:
        answer = await client.options(URL, headers={"origin": self.ORIGIN, "access-control-request-method": "PUT"})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == self.ORIGIN
        assert "PUT" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.com.evil.example", "https://APP.example.com"])
    async def test_other_origins__get_nothing(self, kit: GatewayKit, client: httpx.AsyncClient, origin: str) -> None:
        preflight = await client.options(URL, headers={"origin": origin, "access-control-request-method": "PUT"})
        answer = await client.get(URL, headers={**kit.bearer(), "origin": origin})
        assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control-")]
        assert preflight.headers["allow"].startswith("GET")

    async def test_answers_and_refusals__can_be_read_by_a_listed_origin(self, kit: GatewayKit, client: httpx.AsyncClient) -> None:
        for headers in (kit.bearer(), {}):
            answer = await client.get(URL, headers={**headers, "origin": self.ORIGIN})
            assert answer.headers["access-control-allow-origin"] == self.ORIGIN
            assert "x-ext-execution-id" in answer.headers["access-control-expose-headers"]

    async def test_default__no_origin_is_listed(self, tmp_path: Path) -> None:
        async with gateway_kit(tmp_path) as kit, kit.client() as client:
            answer = await client.options(URL, headers={"origin": self.ORIGIN, "access-control-request-method": "PUT"})
            assert "access-control-allow-origin" not in answer.headers


class TestDisconnect:
    async def test_caller_gone__execution_cancelled(self, kit: GatewayKit) -> None:
        async def slow(_: Any) -> Any:
            await asyncio.sleep(30)

        kit.runner.answer = slow
        sent: list[Any] = []
        first = True

        async def receive() -> dict[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await kit.runner.started.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": URL,
            "raw_path": URL.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in kit.bearer().items()],
            "root_path": "",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("x", 1),
            "client": ("y", 2),
        }
        async with asyncio.timeout(10):
            await kit.app(scope, receive, send)
            await kit.runner.cancelled.wait()
        assert sent == []
        assert kit.endpoint._buffered_bytes == 0
