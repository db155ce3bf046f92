"""The gateway's client against the daemon's real front: listener, interceptors, pre-scan, converters, status. No worker runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.runner_client import ExtensionCall, RunnerClient, RunnerTarget
from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExecutionId, VersionId
from registry.tokens import GATEWAY_AUDIENCE, RUNNER_AUDIENCE, TokenMinter, TokenVerifier, generate_key_set
from runnerd.artifacts.loaded import WarmOutcome
from runnerd.dispatch.authority import authorise
from runnerd.dispatch.outcome import Completed, LimitExceeded, LimitKind, Outcome, TrapKind, Trapped, Usage
from runnerd.dispatch.request import Caller, ExecutionRequest, ExecutionResult
from runnerd.dispatch.runner_info import RunnerInfo
from runnerd.rpc.intake import IntakeBudget
from runnerd.rpc.server import RpcOptions, RpcServer
from runnerd.rpc.servicer import RunnerServicer
from runnerd.telemetry.metrics import Metrics

USERS = "https://users.dev.invalid"
SERVICES = "https://services.dev.invalid"
MIB = 1024 * 1024
HASH = ContentHash("sha256:" + "0" * 64)
USAGE = Usage(wall_us=1, queue_us=1, cpu_us=1, fuel=1, peak_memory_bytes=1, host_calls=0)


class Executor:
    """Checks who calls, as the daemon does, and answers what a test wants."""

    def __init__(self) -> None:
        self.outcome: Outcome | RefusalError = Completed(status=200, headers=(("x-a", "1"), ("x-a", "2")), body=b"hello")
        self.asked: list[tuple[Caller, ExecutionRequest]] = []

    async def execute(self, caller: Caller, request: ExecutionRequest, *, deadline: float | None) -> ExecutionResult:
        authorise(caller, request)
        assert deadline is not None
        self.asked.append((caller, request))
        if isinstance(self.outcome, RefusalError):
            raise self.outcome
        return ExecutionResult(
            outcome=self.outcome, usage=USAGE, execution_id=ExecutionId("e1"), version_id=VersionId("v1"), content_hash=HASH
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    executor: Executor
    client: RunnerClient
    foreign: RunnerClient
    users: TokenMinter

    def call(self, *, tenant: str = "t1", token_tenant: str | None = None, body: bytes | None = None) -> ExtensionCall:
        return ExtensionCall(
            request_id="r1",
            tenant_id=tenant,
            extension_id="com.example.notes",
            content_hash=None,
            method="POST",
            path="/caf%C3%A9/7",
            query="a=1&a=%20",
            headers=(("accept", "a"), ("accept", "b"), ("x-alga-tenant", tenant), ("x-alga-extension", "com.example.notes")),
            body=body,
            subject_token=self.users.mint("u1", ttl_seconds=60, tenant=token_tenant or tenant, roles=["ext:invoke"], email="u@dev.invalid"),
        )


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    users, services, others = (generate_key_set(tmp_path, name) for name in ("users", "services", "others"))
    executor = Executor()

    async def warm(_: ContentHash) -> WarmOutcome:
        return WarmOutcome(state="compiled", compile_seconds=1.25)

    def describe() -> RunnerInfo:
        raise RefusalError(Reason.INTERNAL, "not asked here")

    servicer = RunnerServicer(executor=executor, warm=warm, describe=describe, budget=IntakeBudget(64 * MIB))
    server = RpcServer(
        RpcOptions(address="127.0.0.1:0", request_bytes_ceiling=2 * MIB, response_bytes_ceiling=2 * MIB),
        servicer=servicer,
        services=TokenVerifier(services.jwks_file, audience=RUNNER_AUDIENCE, issuer=SERVICES),
        users=TokenVerifier(users.jwks_file, audience=GATEWAY_AUDIENCE, issuer=USERS),
        metrics=Metrics(),
    )
    target = RunnerTarget(
        address=f"127.0.0.1:{await server.start()}", tls_root_certificates=None, service_name="gateway", token_seconds=120
    )
    client, foreign = (
        RunnerClient(target, TokenMinter(keys.private_jwk_file, issuer=SERVICES, audience=RUNNER_AUDIENCE)) for keys in (services, others)
    )
    try:
        yield Front(
            executor=executor,
            client=client,
            foreign=foreign,
            users=TokenMinter(users.private_jwk_file, issuer=USERS, audience=GATEWAY_AUDIENCE),
        )
    finally:
        await client.aclose()
        await foreign.aclose()
        await server.drain(0)


async def refusal_of(client: RunnerClient, call: ExtensionCall) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await client.execute(call, timeout_seconds=10)
    return caught.value


async def test_a_call__arrives_as_it_was_sent(front: Front) -> None:
    call = front.call(body=b"\x00binary\xff")
    answer = await front.client.execute(call, timeout_seconds=10)
    assert (answer.status, answer.body, answer.execution_id) == (200, b"hello", "e1")
    assert answer.headers == (("x-a", "1"), ("x-a", "2"))
    ((caller, request),) = front.executor.asked
    assert (request.tenant_id, request.extension, request.request_id) == ("t1", "com.example.notes", "r1")
    assert (request.http.method, request.http.path, request.http.query) == ("POST", call.path, call.query)
    assert request.http.headers == call.headers
    assert bytes(request.http.body or b"") == b"\x00binary\xff"
    assert caller.service.scopes == {"execute"}
    assert caller.subject is not None
    assert (caller.subject.subject, caller.subject.email) == ("u1", "u@dev.invalid")


async def test_no_body__stays_none(front: Front) -> None:
    await front.client.execute(front.call(), timeout_seconds=10)
    assert front.executor.asked[0][1].http.body is None


async def test_outcomes(front: Front) -> None:
    front.executor.outcome = Trapped(kind=TrapKind.STACK_OVERFLOW, message="deep")
    refusal = await refusal_of(front.client, front.call())
    assert (refusal.reason, refusal.metadata) == (Reason.GUEST_TRAPPED, {"execution_id": "e1", "trap": "STACK_OVERFLOW"})
    front.executor.outcome = LimitExceeded(limit=LimitKind.FUEL, used=6, allowed=5)
    refusal = await refusal_of(front.client, front.call())
    assert refusal.metadata == {"execution_id": "e1", "limit": "FUEL", "used": "6", "allowed": "5"}


async def test_refusals__keep_reason_sentence_and_retry(front: Front) -> None:
    front.executor.outcome = RefusalError(Reason.COMPILING, "Wait.", metadata={"a": "b"}, retry_after_seconds=7)
    refusal = await refusal_of(front.client, front.call())
    assert (refusal.reason, refusal.public_detail, refusal.metadata, refusal.retry_after_seconds) == (
        Reason.COMPILING,
        "Wait.",
        {"a": "b"},
        7,
    )


async def test_another_tenants_user__refused(front: Front) -> None:
    refusal = await refusal_of(front.client, front.call(tenant="t1", token_tenant="t2"))
    assert refusal.reason is Reason.TENANT_FORBIDDEN
    assert not front.executor.asked


async def test_gateway_with_a_wrong_key__is_not_the_users_mistake(front: Front) -> None:
    refusal = await refusal_of(front.foreign, front.call())
    assert refusal.reason is Reason.INTERNAL
    assert not front.executor.asked


@pytest.mark.parametrize("size", [2 * MIB, 5 * MIB])
async def test_bodies__up_to_and_beyond_the_daemons_cap(front: Front, size: int) -> None:
    call = front.call(body=bytes(size))
    if size <= 2 * MIB:
        assert (await front.client.execute(call, timeout_seconds=10)).status == 200
        return
    assert (await refusal_of(front.client, call)).reason is Reason.PAYLOAD_TOO_LARGE


async def test_warm(front: Front) -> None:
    result = await front.client.warm(HASH)
    assert (result.state, result.compile_seconds) == ("compiled", 1.25)
    with pytest.raises(RefusalError) as caught:
        await front.client.warm("sha256:x")
    assert caught.value.reason is Reason.INVALID_REQUEST
