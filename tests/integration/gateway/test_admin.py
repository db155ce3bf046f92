"""The admin REST from end to end: publish, install, change, read, revoke; and everybody who may not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from registry.database import Database
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, ExtensionId, InstallId, TenantId, VersionId, new_id
from registry.domain.records import ExecutionRecord
from registry.repositories.executions import ExecutionRepository
from registry.tokens import parse_service
from runnerd.rpc.status import to_status
from tests.fakes.archives import make_bundle
from tests.integration.gateway.conftest import MALLORY, AdminKit

NAME = "com.example.notes"


class Unread:
    """A body that nobody may read."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        pytest.fail("the body was read")


def reason(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, document["reason"]


async def published(admin: AdminKit, **changes: Any) -> dict[str, Any]:
    if (await admin.operate("GET", "/publishers/example")).status_code == 404:
        await admin.make_publisher()
    answer = await admin.publish(make_bundle(**changes))
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def installed(admin: AdminKit, tenant: str = "t1", **wishes: Any) -> dict[str, Any]:
    body = {"extension": NAME, "granted": ["cap:storage.kv"], "config": {"greeting": "hello"}, **wishes}
    answer = await admin.ask("POST", "/installs", "ext:manage", tenant=tenant, json=body)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


class TestPublishing:
    async def test_published__visible_and_warmed(self, admin: AdminKit) -> None:
        archive = make_bundle()
        await admin.make_publisher()
        document = (await admin.publish(archive)).json()
        assert document["extension_name"] == NAME
        assert document["content_hash"] == content_hash(archive)
        assert document["created"] is True
        assert document["compile"] == "compiled"
        assert document["signer"]["identity"].endswith("/alice")
        assert admin.gateway.runner.warmed == [content_hash(archive)]
        claims = admin.gateway.services.verify(admin.gateway.runner.metadata[-1]["authorization"].removeprefix("Bearer "))
        assert parse_service(claims).scopes == {"warm"}
        assert "x-extrunner-subject-token" not in admin.gateway.runner.metadata[-1]
        listed = (await admin.ask("GET", "/extensions", "ext:read")).json()
        assert [extension["name"] for extension in listed["items"]] == [NAME]
        versions = (await admin.ask("GET", f"/extensions/{NAME}/versions", "ext:read")).json()
        assert [version["version"] for version in versions["items"]] == ["1.0.0"]
        assert versions["items"][0]["capabilities"] == ["storage.kv"]

    async def test_again__the_same(self, admin: AdminKit) -> None:
        first = await published(admin)
        second = await published(admin)
        assert (first["version_id"], second["created"]) == (second["version_id"], False)

    async def test_streamed_in_odd_pieces__the_same(self, admin: AdminKit) -> None:
        await admin.make_publisher()
        archive = make_bundle()
        signature = admin.trust.sign(content_hash(archive), "https://dev.invalid/people/alice")
        whole = signature + archive

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(whole), 97):
                yield whole[at : at + 97]

        headers = {"content-type": "application/vnd.extrunner.signed-bundle; v=1", "x-extrunner-signature-length": str(len(signature))}
        answer = await admin.ask("POST", "/bundles", "ext:publish", tenant="*", headers=headers, content=pieces())
        assert answer.json()["content_hash"] == content_hash(archive)

    async def test_runner_away__published_and_deferred(self, admin: AdminKit) -> None:
        admin.gateway.runner.warm_answer = to_status(RefusalError(Reason.OVERLOADED, "no room"))
        assert (await published(admin))["compile"] == "deferred"

    async def test_rejected_by_the_compiler__400_and_not_visible(self, admin: AdminKit) -> None:
        admin.gateway.runner.warm_answer = to_status(RefusalError(Reason.COMPILE_REJECTED, "no component"))
        await admin.make_publisher()
        assert reason(await admin.publish(make_bundle())) == (400, "COMPILE_REJECTED")
        assert (await admin.ask("GET", "/extensions", "ext:read")).json()["items"] == []

    async def test_flipped_byte__refused(self, admin: AdminKit) -> None:
        await admin.make_publisher()
        archive = make_bundle()
        signature = admin.trust.sign(content_hash(archive), "https://dev.invalid/people/alice")
        for at in (0, len(archive) // 2, len(archive) - 1):
            altered = archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]
            status, why = reason(await admin.publish(altered, signature=signature))
            assert (status, why) in {(400, "INVALID_BUNDLE"), (403, "SIGNATURE_REJECTED"), (400, "INVALID_MANIFEST")}

    async def test_other_signer_and_unknown_publisher__refused(self, admin: AdminKit) -> None:
        assert reason(await admin.publish(make_bundle())) == (404, "NOT_FOUND")
        await admin.make_publisher()
        assert reason(await admin.publish(make_bundle(), identity=MALLORY)) == (403, "SIGNATURE_REJECTED")

    @pytest.mark.parametrize(
        "changes",
        [
            {"x-extrunner-signature-length": "0"},
            {"x-extrunner-signature-length": "-1"},
            {"x-extrunner-signature-length": "65537"},
            {"x-extrunner-signature-length": "many"},
            {"x-extrunner-signature-length": "9999"},
            {"content-type": "application/zstd"},
            {"content-type": "multipart/form-data; boundary=x"},
        ],
    )
    async def test_bad_framing__refused(self, admin: AdminKit, changes: dict[str, str]) -> None:
        headers = {"content-type": "application/vnd.extrunner.signed-bundle", "x-extrunner-signature-length": "4", **changes}
        answer = await admin.ask("POST", "/bundles", "ext:publish", tenant="*", headers=headers, content=b"{}{}archive")
        assert reason(answer) == (400, "INVALID_REQUEST")

    async def test_connection_lost__nothing_left(self, admin: AdminKit, tmp_path: Path) -> None:
        await admin.make_publisher()
        archive = make_bundle()
        signature = admin.trust.sign(content_hash(archive), "https://dev.invalid/people/alice")
        messages = [
            {"type": "http.request", "body": signature + archive[: len(archive) // 2], "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {
            **admin.gateway.bearer(tenant="*", roles=("ext:publish",)),
            "content-type": "application/vnd.extrunner.signed-bundle",
            "x-extrunner-signature-length": str(len(signature)),
        }
        path = "/api/admin/v1/bundles"
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "root_path": "",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("x", 1),
            "client": ("y", 2),
        }
        await admin.gateway.app(scope, receive, send)
        assert sent[0]["status"] == 400
        assert not list((tmp_path / "work").iterdir())
        assert (await admin.ask("GET", "/extensions", "ext:read")).json()["items"] == []
        assert (await published(admin))["created"] is True

    async def test_no_length__refused(self, admin: AdminKit) -> None:
        answer = await admin.ask("POST", "/bundles", "ext:publish", tenant="*", content=b"x")
        assert reason(answer) == (400, "INVALID_REQUEST")

    async def test_declared_too_large__413(self, admin: AdminKit) -> None:
        headers = {
            "content-type": "application/vnd.extrunner.signed-bundle",
            "x-extrunner-signature-length": "4",
            "content-length": str(201 * 1024 * 1024),
        }
        answer = await admin.ask("POST", "/bundles", "ext:publish", tenant="*", headers=headers, content=Unread())
        assert reason(answer) == (413, "PAYLOAD_TOO_LARGE")

    async def test_revoked__cannot_be_published(self, admin: AdminKit) -> None:
        await admin.make_publisher()
        archive = make_bundle()
        await admin.operate("POST", "/denylist", json={"content_hash": content_hash(archive), "reason": "malware"})
        assert reason(await admin.publish(archive)) == (403, "HASH_DENIED")


BAD_WISHES: tuple[dict[str, Any], ...] = (
    {"extensions": NAME},
    {"tenant_id": "t2"},
    {"granted": "storage.kv"},
    {"granted": ["secrets.get"]},
    {"granted": ["*"]},
    {"granted": ["storage.kv"] * 65},
    {"config": {"a": 1}},
    {"config": {"a b": "x"}},
    {"limits": {"wall_time_ms": "1000"}},
    {"limits": {"wall_time_ms": 10**9}},
    {"limits": {"walltime": 1}},
    {"endpoint_policy": "none"},
    {"version": "latest"},
    {"extension": ""},
    {"extension": "x" * 129},
    {"extension": None},
)


class TestInstalling:
    async def test_install__from_wish_to_detail(self, admin: AdminKit) -> None:
        version = await published(admin)
        install = await installed(admin, limits={"wall_time_ms": 1000})
        assert install["content_hash"] == version["content_hash"]
        assert install["granted"] == ["storage.kv"]
        assert install["is_enabled"] is True
        assert install["config"] == {"greeting": "hello"}
        assert install["limits"]["wall_time_ms"] == 1000
        assert install["granted_by"] == "u1"
        assert install["warm"] == "ready"
        assert admin.gateway.runner.warmed[-1] == version["content_hash"]
        found = (await admin.ask("GET", f"/installs/{install['install_id']}", "ext:manage")).json()
        assert found["config"] == {"greeting": "hello"}

    async def test_settings__survive_a_reinstall_that_says_nothing_about_them(self, admin: AdminKit) -> None:
        await published(admin)
        before = await installed(admin)
        assert (await admin.ask("DELETE", f"/installs/{before['install_id']}", "ext:manage")).status_code == 204
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": NAME, "granted": []})
        assert (answer.status_code, answer.json()["config"], answer.json()["granted"]) == (201, {"greeting": "hello"}, [])

    async def test_settings__only_for_those_who_may_change_them(self, admin: AdminKit) -> None:
        await published(admin)
        install = await installed(admin)
        found = (await admin.ask("GET", f"/installs/{install['install_id']}", "ext:read")).json()
        assert found["install_id"] == install["install_id"]
        assert "config" not in found
        assert "config" not in (await admin.ask("GET", "/installs", "ext:manage")).json()["items"][0]

    async def test_runner_away__installed_all_the_same(self, admin: AdminKit) -> None:
        await published(admin)
        admin.gateway.runner.warm_answer = to_status(RefusalError(Reason.OVERLOADED, "no room"))
        assert (await installed(admin))["warm"] == "failed"

    async def test_no_decision__consent_required(self, admin: AdminKit) -> None:
        await published(admin)
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": NAME})
        assert reason(answer) == (409, "CONSENT_REQUIRED")
        assert answer.json()["metadata"] == {"missing": "storage.kv"}

    async def test_twice__409(self, admin: AdminKit) -> None:
        await published(admin)
        await installed(admin)
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": NAME, "granted": []})
        assert reason(answer) == (409, "ALREADY_INSTALLED")

    async def test_bad_wishes__400_and_nothing_installed(self, admin: AdminKit) -> None:
        await published(admin)
        for change in BAD_WISHES:
            body = {"extension": NAME, "granted": ["storage.kv"], **change}
            assert reason(await admin.ask("POST", "/installs", "ext:manage", json=body)) == (400, "INVALID_REQUEST"), change
        assert (await admin.ask("GET", "/installs", "ext:manage")).json()["items"] == []

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"a":' * 5000, b"\xff\xfe"])
    async def test_no_json__400(self, admin: AdminKit, body: bytes) -> None:
        answer = await admin.ask("POST", "/installs", "ext:manage", content=body, headers={"content-type": "application/json"})
        assert reason(answer) == (400, "INVALID_REQUEST")

    async def test_large_json__413(self, admin: AdminKit) -> None:
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": "x" * 300_000})
        assert reason(answer) == (413, "PAYLOAD_TOO_LARGE")

    async def test_refused_value__not_repeated(self, admin: AdminKit) -> None:
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": NAME, "config": {"key": ["hunter2"]}})
        assert "hunter2" not in answer.text

    async def test_change__one_thing_at_a_time(self, admin: AdminKit) -> None:
        await published(admin)
        path = f"/installs/{(await installed(admin))['install_id']}"
        assert (await admin.ask("PATCH", path, "ext:manage", json={"enabled": False})).json()["is_enabled"] is False
        assert (await admin.ask("PATCH", path, "ext:manage", json={"granted": []})).json()["granted"] == []
        assert (await admin.ask("PATCH", path, "ext:manage", json={"config": {"a": "b"}})).json()["config"] == {"a": "b"}
        assert (await admin.ask("PATCH", path, "ext:manage", json={"enabled": True})).json()["is_enabled"] is True
        for body in ({}, {"enabled": True, "granted": []}, {"enabled": None}, {"enabled": "yes"}, {"version": "2.0.0"}):
            assert reason(await admin.ask("PATCH", path, "ext:manage", json=body)) == (400, "INVALID_REQUEST")
        assert reason(await admin.ask("PATCH", path, "ext:manage", json={"granted": ["http.fetch"]})) == (400, "INVALID_REQUEST")

    async def test_limits__are_replaced_as_a_whole_and_bounded(self, admin: AdminKit) -> None:
        await published(admin)
        path = f"/installs/{(await installed(admin))['install_id']}"
        for limits in ({"storage_bytes": 1_000, "wall_time_ms": 100}, {"storage_keys": 20_480}, {}):
            changed = (await admin.ask("PATCH", path, "ext:manage", json={"limits": limits})).json()["limits"]
            assert {name: value for name, value in changed.items() if value is not None} == limits
        for wrong in (
            {"storage_bytes": 0},
            {"storage_keys": 20_481},
            {"storage_value_bytes": 65_537},
            {"bytes": 1},
            {"storage_bytes": "1"},
        ):
            assert reason(await admin.ask("PATCH", path, "ext:manage", json={"limits": wrong})) == (400, "INVALID_REQUEST"), wrong
        assert reason(await admin.ask("PATCH", path, "ext:read", json={"limits": {}})) == (403, "PERMISSION_MISSING")

    async def test_hosts__tenant_narrows_operator_counts(self, admin: AdminKit) -> None:
        await published(admin)
        path = f"/installs/{(await installed(admin))['install_id']}"
        answer = await admin.ask("PATCH", path, "ext:manage", json={"egress": {"hosts": []}})
        assert answer.json()["egress"] == {"rules": [], "hosts": [], "secrets": [], "count_until": None}
        assert (await admin.ask("PATCH", path, "ext:manage", json={"egress": {"hosts": None}})).json()["egress"]["hosts"] is None
        bodies: list[dict[str, object]] = [{"egress": {}}, {"egress": {"hosts": ["a.example"]}}, {"egress": {"hosts": "a"}}]
        bodies += [{"egress_secrets": [{"secret": "s", "header": "x-key", "host": "a.example"}]}, {"egress_secrets": [{"secret": "s"}]}]
        for body in (*bodies, {"egress_count_days": 15}):
            assert reason(await admin.ask("PATCH", path, "ext:manage", json=body)) == (400, "INVALID_REQUEST")
        # A tenant must not take its own wall down (T10).
        refused = await admin.ask("PATCH", path, "ext:manage", json={"egress_count_days": 1})
        assert reason(refused) == (403, "PERMISSION_MISSING")
        scope = {"tenant_id": "t1"}
        counted = await admin.operate("PATCH", path, params=scope, json={"egress_count_days": 1})
        assert counted.json()["egress"]["count_until"] is not None

    async def test_uninstall(self, admin: AdminKit) -> None:
        await published(admin)
        path = f"/installs/{(await installed(admin))['install_id']}"
        answer = await admin.ask("DELETE", path, "ext:manage")
        assert (answer.status_code, answer.content) == (204, b"")
        assert reason(await admin.ask("GET", path, "ext:manage")) == (404, "EXTENSION_NOT_INSTALLED")
        assert reason(await admin.ask("DELETE", path, "ext:manage")) == (404, "EXTENSION_NOT_INSTALLED")

    async def test_pages(self, admin: AdminKit) -> None:
        for number in range(3):
            await published(admin, name=f"com.example.n{number}")
            await installed(admin, extension=f"com.example.n{number}")
        seen: list[str] = []
        cursor: str | None = None
        for _ in range(3):
            parameters = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
            page = (await admin.ask("GET", "/installs", "ext:read", params=parameters)).json()
            seen += [install["extension_name"] for install in page["items"]]
            cursor = page["next_cursor"]
        assert seen == [f"com.example.n{number}" for number in range(3)]
        assert cursor is None

    async def test_bad_pages__400(self, admin: AdminKit) -> None:
        bad = ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"cursor": "!!"}, {"cursor": "W10"}, {"cursor": "x" * 3000})
        for path in ("/installs", "/executions", "/extensions"):
            for parameters in bad:
                answer = await admin.ask("GET", path, "ext:read", params=parameters)
                assert reason(answer) == (400, "INVALID_REQUEST"), (path, parameters)


class TestTenants:
    async def test_another_tenants_install__does_not_exist(self, admin: AdminKit) -> None:
        await published(admin)
        install = await installed(admin, tenant="t1")
        path = f"/installs/{install['install_id']}"
        for method, arguments in (("GET", {}), ("PATCH", {"json": {"enabled": False}}), ("DELETE", {})):
            answer = await admin.ask(method, path, "ext:manage", tenant="t2", **arguments)
            assert reason(answer) == (404, "EXTENSION_NOT_INSTALLED")
        assert (await admin.ask("GET", "/installs", "ext:manage", tenant="t2")).json()["items"] == []
        assert (await admin.ask("GET", path, "ext:manage", tenant="t1")).json()["is_enabled"] is True

    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_naming_another_tenant__403(self, admin: AdminKit, method: str) -> None:
        answer = await admin.ask(
            method,
            "/installs",
            "ext:manage",
            "ext:read",
            "ext:publish",
            params={"tenant_id": "t2"},
            json={"extension": NAME, "granted": []},
        )
        assert reason(answer) == (403, "TENANT_FORBIDDEN")

    async def test_operator__names_a_tenant(self, admin: AdminKit) -> None:
        await published(admin)
        await installed(admin, tenant="t2")
        assert reason(await admin.operate("GET", "/installs")) == (400, "INVALID_REQUEST")
        found = (await admin.operate("GET", "/installs", params={"tenant_id": "t2"})).json()
        assert [install["tenant_id"] for install in found["items"]] == ["t2"]

    @pytest.mark.parametrize("tenant", ["*", "", "t 2", "../t2", "t" * 129])
    async def test_operator__odd_tenants(self, admin: AdminKit, tenant: str) -> None:
        assert reason(await admin.operate("GET", "/installs", params={"tenant_id": tenant})) == (400, "INVALID_REQUEST")

    async def test_two_tenants_in_one_query__the_last_one_is_checked_and_used(self, admin: AdminKit) -> None:
        answer = await admin.ask("GET", "/installs?tenant_id=t1&tenant_id=t2", "ext:read")
        assert reason(answer) == (403, "TENANT_FORBIDDEN")


class TestExecutions:
    def record(self, install: dict[str, Any], tenant: str) -> ExecutionRecord:
        return ExecutionRecord(
            execution_id=ExecutionId(new_id()),
            tenant_id=TenantId(tenant),
            install_id=InstallId(install["install_id"]),
            extension_id=ExtensionId(install["extension_id"]),
            version_id=VersionId(install["version_id"]),
            content_hash=ContentHash(install["content_hash"]),
            request_id="r1",
            trigger="http",
            method="GET",
            endpoint="/notes/:id",
            user_id="u1",
            outcome="completed",
            reason=None,
            http_status=200,
            started_at=datetime.now(UTC),
            wall_ms=3,
            queue_ms=0,
            cpu_ms=2,
            fuel=1000,
            peak_memory_bytes=65536,
            host_calls=1,
            egress_request_bytes=0,
            egress_response_bytes=0,
            log=({"level": "info", "message": "hello", "offset_us": "5"},),
        )

    async def test_listed_and_shown__to_their_tenant_only(self, admin: AdminKit, runner_database: Database) -> None:
        await published(admin)
        install = await installed(admin)
        record = self.record(install, "t1")
        async with runner_database.tenant_session("t1") as session:
            await ExecutionRepository(session, "t1").add_batch([record])
        (listed,) = (await admin.ask("GET", "/executions", "ext:read")).json()["items"]
        assert listed["execution_id"] == record.execution_id
        assert "log" not in listed
        shown = (await admin.ask("GET", f"/executions/{record.execution_id}", "ext:read")).json()
        assert shown["log"][0]["message"] == "hello"
        assert (await admin.ask("GET", "/executions", "ext:read", tenant="t2")).json()["items"] == []
        assert reason(await admin.ask("GET", f"/executions/{record.execution_id}", "ext:read", tenant="t2")) == (404, "NOT_FOUND")
        assert reason(await admin.ask("GET", "/executions/no-such", "ext:read")) == (404, "NOT_FOUND")


class TestPublishersAndDenylist:
    async def test_publisher__with_its_signers(self, admin: AdminKit) -> None:
        await admin.make_publisher()
        found = (await admin.operate("GET", "/publishers/example")).json()
        assert [signer["identity"] for signer in found["signers"]] == ["https://dev.invalid/people/alice"]
        assert [item["name"] for item in (await admin.operate("GET", "/publishers")).json()["items"]] == ["example"]
        assert reason(await admin.operate("POST", "/publishers", json={"name": "example"})) == (409, "ALREADY_EXISTS")

    async def test_unknown__404(self, admin: AdminKit) -> None:
        assert reason(await admin.operate("GET", "/publishers/nobody")) == (404, "NOT_FOUND")
        signer = {"trust_domain": "development", "issuer": "https://x.invalid", "identity": "https://x.invalid/y"}
        assert reason(await admin.operate("POST", "/publishers/nobody/signers", json=signer)) == (404, "NOT_FOUND")
        assert reason(await admin.ask("GET", "/extensions/com.example.none/versions", "ext:read")) == (404, "NOT_FOUND")

    async def test_revocations(self, admin: AdminKit) -> None:
        digest = "sha256:" + "a" * 64
        first = await admin.operate("POST", "/denylist", json={"content_hash": digest, "reason": "malware"})
        second = await admin.operate("POST", "/denylist", json={"content_hash": digest, "reason": "again"})
        assert (first.json()["added"], second.json()["added"]) == (True, False)
        (listed,) = (await admin.operate("GET", "/denylist")).json()["items"]
        assert (listed["content_hash"], listed["reason"]) == (digest, "malware")
        bad = await admin.operate("POST", "/denylist", json={"content_hash": "sha256:x", "reason": "x"})
        assert reason(bad) == (400, "INVALID_REQUEST")

    async def test_revoked__cannot_be_installed(self, admin: AdminKit) -> None:
        version = await published(admin)
        await admin.operate("POST", "/denylist", json={"content_hash": version["content_hash"], "reason": "malware"})
        answer = await admin.ask("POST", "/installs", "ext:manage", json={"extension": NAME, "granted": []})
        assert reason(answer) == (403, "HASH_DENIED")


ROLES = ("ext:invoke", "ext:read", "ext:manage", "ext:publish", "ext:operate")
ROUTES: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("POST", "/bundles", frozenset({"ext:publish"})),
    ("POST", "/publishers", frozenset({"ext:operate"})),
    ("GET", "/publishers", frozenset({"ext:operate", "ext:publish"})),
    ("GET", "/publishers/example", frozenset({"ext:operate", "ext:publish"})),
    ("POST", "/publishers/example/signers", frozenset({"ext:operate"})),
    ("POST", "/installs", frozenset({"ext:manage", "ext:operate"})),
    ("GET", "/installs", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("GET", "/installs/x", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("PATCH", "/installs/x", frozenset({"ext:manage", "ext:operate"})),
    ("DELETE", "/installs/x", frozenset({"ext:manage", "ext:operate"})),
    ("GET", "/installs/x/metrics", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("DELETE", "/installs/x/metrics", frozenset({"ext:manage", "ext:operate"})),
    ("GET", "/installs/x/secrets", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("PUT", "/installs/x/secrets/example", frozenset({"ext:manage", "ext:operate"})),
    ("DELETE", "/installs/x/secrets/example", frozenset({"ext:manage", "ext:operate"})),
    ("GET", "/installs/x/schedules", frozenset({"ext:manage", "ext:operate"})),
    ("PATCH", "/installs/x/schedules/x", frozenset({"ext:manage", "ext:operate"})),
    ("DELETE", "/installs/x/schedules/x", frozenset({"ext:manage", "ext:operate"})),
    ("GET", "/executions", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("GET", "/executions/x", frozenset({"ext:read", "ext:manage", "ext:operate"})),
    ("POST", "/denylist", frozenset({"ext:operate"})),
    ("GET", "/denylist", frozenset({"ext:operate"})),
    ("GET", "/extensions", frozenset({"ext:read", "ext:manage", "ext:publish", "ext:operate"})),
    ("GET", "/extensions/x/versions", frozenset({"ext:read", "ext:manage", "ext:publish", "ext:operate"})),
)
BODIES: dict[str, Any] = {
    "/publishers": {"name": "other"},
    "/publishers/example/signers": {"trust_domain": "development", "issuer": "https://x.invalid", "identity": "https://x.invalid/y"},
    "/installs": {"extension": NAME, "granted": []},
    "/installs/x": {"enabled": True},
    "/installs/x/secrets/example": {"value": "x"},
    "/installs/x/schedules/x": {"enabled": True},
    "/denylist": {"content_hash": "sha256:" + "b" * 64, "reason": "test"},
}


def arguments_of(method: str, path: str) -> dict[str, Any]:
    if path == "/bundles":
        headers = {"content-type": "application/vnd.extrunner.signed-bundle", "x-extrunner-signature-length": "2"}
        return {"headers": headers, "content": b"{}archive"}
    return {"json": BODIES[path]} if method in {"POST", "PUT", "PATCH"} else {}


class TestWhoMay:
    async def test_every_route__every_role(self, admin: AdminKit) -> None:
        for method, path, allowed in ROUTES:
            for role in ROLES:
                answer = await admin.ask(method, path, role, **arguments_of(method, path))
                refused = answer.status_code == 403 and answer.json()["reason"] == "PERMISSION_MISSING"
                assert refused is (role not in allowed), (method, path, role, answer.status_code, answer.text)

    async def test_every_route__no_credential(self, admin: AdminKit) -> None:
        for method, path, _ in (*ROUTES, ("GET", "/no-such", ROLES), ("GET", "/openapi.json", ROLES), ("PUT", "/installs", ROLES)):
            answer = await admin.client.request(method, f"/api/admin/v1{path}", **arguments_of(method, path) if path in BODIES else {})
            assert reason(answer) == (401, "UNAUTHENTICATED"), (method, path)

    async def test_cookie__is_no_credential(self, admin: AdminKit) -> None:
        token = admin.gateway.token(roles=("ext:operate",))
        answer = await admin.client.post(
            "/api/admin/v1/publishers", json={"name": "x"}, headers={"cookie": f"session={token}; authorization=Bearer {token}"}
        )
        assert reason(answer) == (401, "UNAUTHENTICATED")

    async def test_table__names_every_route(self, admin: AdminKit) -> None:
        schema = (await admin.ask("GET", "/openapi.json", "ext:read")).json()
        documented = {(method.upper(), path) for path, operations in schema["paths"].items() for method in operations}
        tested = {(method, path) for method, path, _ in ROUTES}
        renamed = {(method, re.sub(r"\{\w+\}", "x", path.replace("{name}", "example"))) for method, path in documented}
        assert renamed == tested

    async def test_unauthenticated_body__not_read(self, admin: AdminKit) -> None:
        answer = await admin.client.post("/api/admin/v1/installs", content=Unread(), headers={"content-type": "application/json"})
        assert answer.status_code == 401


class TestDocumentation:
    async def test_problems__instead_of_422(self, admin: AdminKit) -> None:
        schema = (await admin.ask("GET", "/openapi.json", "ext:read")).json()
        assert "Problem" in schema["components"]["schemas"]
        assert "HTTPValidationError" not in schema["components"]["schemas"]
        assert schema["security"] == [{"bearer": []}]
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                assert "422" not in operation["responses"], (method, path)
                assert {"400", "401", "403"} <= operation["responses"].keys(), (method, path)
                assert operation["summary"]
                assert "Role" in operation["description"] or "role" in operation["description"], (method, path)

    async def test_unknown_address_and_method__problems(self, admin: AdminKit) -> None:
        assert reason(await admin.ask("GET", "/no-such", "ext:read")) == (404, "NOT_FOUND")
        answer = await admin.ask("PUT", "/installs", "ext:read")
        assert reason(answer) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers["allow"]

    @pytest.mark.parametrize("path", ["/installs/", "/docs", "/redoc"])
    async def test_no_redirects_and_no_pages(self, admin: AdminKit, path: str) -> None:
        assert (await admin.ask("GET", path, "ext:read")).status_code == 404

    async def test_answers__are_not_kept(self, admin: AdminKit) -> None:
        answer = await admin.ask("GET", "/installs", "ext:read")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"

    async def test_database_away__503(self, admin: AdminKit, tmp_path: Path) -> None:
        await admin.database.aclose()
        admin.database._engine = await unreachable_engine(tmp_path)
        answer = await admin.ask("GET", "/installs", "ext:read")
        assert reason(answer) == (503, "REGISTRY_UNAVAILABLE")
        assert answer.headers["retry-after"]


async def unreachable_engine(folder: Path) -> Any:
    from registry.database import _build_engine  # noqa: PLC0415

    return _build_engine(f"postgresql+psycopg://ext_admin:x@/none?host={folder}", 1)
