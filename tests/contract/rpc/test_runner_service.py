"""RunnerService on the wire: outcomes, refusals with their reasons, scopes, health, limits."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from extrunner.errors.v1 import error_reason_pb2
from extrunner.runner.v1 import execution_pb2, runner_service_pb2
from registry.domain.errors import CATALOG, ERROR_DOMAIN, Reason, RefusalError
from registry.domain.limits import MIB
from registry.domain.records import Endpoint
from runnerd.rpc.prescan import PrescanRefusedError
from runnerd.rpc.servicer import SCOPES, SERVICE
from runnerd.worker.frames import FrameKind
from tests.contract.rpc.conftest import ALL, WARM_HASH, Face, FaceFactory
from tests.fakes.dispatch_kit import OTHER_TENANT, TENANT, eventually, make_install
from tests.fakes.fake_worker import WorkerEnd

EXECUTE = f"/{SERVICE}/Execute"


def request(**changes: Any) -> execution_pb2.ExecuteRequest:
    fields: dict[str, Any] = {
        "context": execution_pb2.Context(request_id="req-1", tenant_id=TENANT, extension_id="com.example.test"),
        "http": execution_pb2.HttpRequest(method="POST", path="/notes/1", body=b"hi"),
    }
    return execution_pb2.ExecuteRequest(**fields | changes)


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    call: Any = error
    status = rpc_status.from_call(call)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == ERROR_DOMAIN
    assert CATALOG[Reason(info.reason)].grpc_code == error.code().name
    return info.reason, dict(info.metadata)


async def refused(call: Any) -> tuple[str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)


async def raw(face: Face, data: bytes, metadata: list[tuple[str, str]]) -> Any:
    call: Any = face.channel.unary_unary(EXECUTE)
    return await call(data, metadata=metadata, timeout=20)


def test_public_reasons__are_the_catalog() -> None:
    public = {name.removeprefix("ERROR_REASON_") for name in list(error_reason_pb2.ErrorReason.keys())} - {"UNSPECIFIED"}
    assert public == {reason.value for reason in Reason}


async def test_execute__echoes_and_names_what_ran(face: FaceFactory) -> None:
    async with face() as served:
        answer = await served.stub.Execute(request(), metadata=served.metadata())
        assert answer.completed.status == 200
        assert answer.completed.body == b"hi"
        assert answer.content_hash == served.kit.extension.content_hash
        assert answer.execution_id == served.kit.recorder.records[0].execution_id
        assert served.budget.used_bytes == 0


@pytest.mark.parametrize("reason", [reason for reason in Reason if CATALOG[reason].grpc_code != "OK"])
async def test_every_reason__arrives_as_itself(face: FaceFactory, reason: Reason) -> None:
    async with face() as served:
        served.kit.installs.failure = RefusalError(reason, "Change something.", metadata={"fact": "value"})
        name, metadata = await refused(served.stub.Execute(request(), metadata=served.metadata()))
        assert (name, metadata) == (reason.value, {"fact": "value"})
        assert served.kit.metric("refusals_total", {"reason": reason.value}) == 1


async def test_bug__is_internal_and_says_nothing(face: FaceFactory) -> None:
    async with face() as served:
        served.kit.installs.failure = ZeroDivisionError("secret detail")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Execute(request(), metadata=served.metadata())
        assert reason_of(caught.value)[0] == "INTERNAL"
        assert "secret" not in str(caught.value.details()) + str(caught.value.trailing_metadata())


@pytest.mark.parametrize("method", list(SCOPES))
@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer x.y.z")],
        [("authorization", "Basic dXNlcjpwYXNz")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer " + "a" * 9000)],
    ],
    ids=["none", "empty", "forged", "basic", "bare", "huge"],
)
async def test_no_valid_credential__is_unauthenticated(face: FaceFactory, method: str, metadata: list[tuple[str, str]]) -> None:
    async with face() as served:
        call: Any = served.channel.unary_unary(method)
        assert (await refused(call(b"", metadata=metadata, timeout=10)))[0] == "UNAUTHENTICATED"


async def test_credential_given_twice__is_refused(face: FaceFactory) -> None:
    async with face() as served:
        metadata = served.metadata() * 2
        assert (await refused(served.stub.Execute(request(), metadata=metadata)))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize(("method", "scope"), list(SCOPES.items()))
async def test_method__needs_its_scope(face: FaceFactory, method: str, scope: str) -> None:
    async with face() as served:
        others = " ".join(set(ALL.split()) - {scope})
        call: Any = served.channel.unary_unary(method)
        assert await refused(call(b"", metadata=served.metadata(others), timeout=10)) == ("PERMISSION_MISSING", {"scope": scope})


async def test_unknown_method__needs_a_credential_first(face: FaceFactory) -> None:
    async with face() as served:
        call: Any = served.channel.unary_unary(f"/{SERVICE}/Nothing")
        assert (await refused(call(b"", timeout=10)))[0] == "UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=served.metadata(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_tenant__must_be_covered_and_may_not_be_guessed(face: FaceFactory) -> None:
    async with face() as served:
        call = served.stub.Execute(request(), metadata=served.metadata(tenants=(OTHER_TENANT,)))
        assert (await refused(call))[0] == "TENANT_FORBIDDEN"


async def test_subject_token__proves_the_role_of_an_endpoint(face: FaceFactory) -> None:
    async with face() as served:
        protected = (Endpoint(method="POST", path="/notes/:id", roles=("editor",)),)
        served.kit.installs.add(make_install(served.kit.extension, endpoints=protected))
        assert (await refused(served.stub.Execute(request(), metadata=served.metadata())))[0] == "PERMISSION_MISSING"
        plain = served.metadata(user=served.user_token())
        assert (await refused(served.stub.Execute(request(), metadata=plain)))[0] == "PERMISSION_MISSING"
        editor = served.metadata("execute", user=served.user_token(roles=("ext:invoke", "editor")))
        assert (await served.stub.Execute(request(), metadata=editor)).completed.status == 200
        assert served.kit.recorder.records[0].user_id == "u-1"
        for user in ("not a token", served.service_token(), served.user_token(tenant=OTHER_TENANT, roles=("ext:invoke", "editor"))):
            name, facts = await refused(served.stub.Execute(request(), metadata=served.metadata(user=user)))
            assert (name, facts) in (("UNAUTHENTICATED", {"credential": "subject"}), ("TENANT_FORBIDDEN", {}))


async def test_user_token__is_no_service_token(face: FaceFactory) -> None:
    async with face() as served:
        metadata = [("authorization", f"Bearer {served.user_token()}")]
        assert (await refused(served.stub.Execute(request(), metadata=metadata)))[0] == "UNAUTHENTICATED"


async def test_prescan_refusal__is_counted_by_problem(face: FaceFactory) -> None:
    async with face() as served:
        name, _ = await refused(raw(served, request().SerializeToString() * 2, served.metadata()))
        assert name == "INVALID_REQUEST"
        assert served.kit.metric("prescan_refusals_total", {"problem": "duplicate_field"}) == 1
        assert issubclass(PrescanRefusedError, RefusalError)


async def test_idempotency_key__is_refused_for_now(face: FaceFactory) -> None:
    async with face() as served:
        name, metadata = await refused(served.stub.Execute(request(idempotency_key="k"), metadata=served.metadata()))
        assert (name, metadata) == ("INVALID_REQUEST", {"field": "idempotency_key"})
        assert not served.kit.recorder.records


async def test_request_above_the_ceiling__is_ours_to_refuse_up_to_a_mebibyte_more(face: FaceFactory) -> None:
    async with face() as served:
        big = request(http=execution_pb2.HttpRequest(method="POST", path="/", body=bytes(32 * MIB + 1)))
        assert (await refused(served.stub.Execute(big, metadata=served.metadata())))[0] == "PAYLOAD_TOO_LARGE"
        huge = request(http=execution_pb2.HttpRequest(method="POST", path="/", body=bytes(34 * MIB)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Execute(huge, metadata=served.metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_request_above_the_installs_limit__is_too_large(face: FaceFactory) -> None:
    async with face() as served:
        big = request(http=execution_pb2.HttpRequest(method="POST", path="/", body=bytes(10 * MIB + 1)))
        name, metadata = await refused(served.stub.Execute(big, metadata=served.metadata()))
        assert (name, metadata["limit"]) == ("PAYLOAD_TOO_LARGE", str(10 * MIB))


async def test_bytes_in_flight__have_a_budget(face: FaceFactory) -> None:
    async with face(budget_bytes=MIB) as served:
        big = request(http=execution_pb2.HttpRequest(method="POST", path="/", body=bytes(2 * MIB)))
        assert (await refused(served.stub.Execute(big, metadata=served.metadata())))[0] == "OVERLOADED"
        assert (await served.stub.Execute(request(), metadata=served.metadata())).completed.status == 200


async def test_health__with_and_without_credential(face: FaceFactory) -> None:
    async with face() as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        for metadata in ([], served.metadata("info")):
            for service in ("", SERVICE):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service), metadata=metadata)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="nobody"), metadata=served.metadata("info"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await served.server.health.set_serving(serving=False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_warm_and_info(face: FaceFactory) -> None:
    async with face() as served:
        warmed = await served.stub.Warm(runner_service_pb2.WarmRequest(content_hash=WARM_HASH), metadata=served.metadata("warm"))
        assert warmed.state == runner_service_pb2.WARM_STATE_COMPILED
        assert warmed.compile_duration.ToMilliseconds() == 1500
        other = runner_service_pb2.WarmRequest(content_hash="sha256:" + "b" * 64)
        assert (await refused(served.stub.Warm(other, metadata=served.metadata("warm"))))[0] == "VERSION_NOT_FOUND"
        info = await served.stub.GetRunnerInfo(runner_service_pb2.GetRunnerInfoRequest(), metadata=served.metadata("info"))
        assert info.hardening[0].name == "seccomp"
        assert info.request_bytes_ceiling == 32 * MIB


async def test_cancelled_client__cancels_the_guest(face: FaceFactory) -> None:
    ends: list[WorkerEnd] = []

    async def patient(worker: WorkerEnd) -> None:
        ends.append(worker)
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.next_of(FrameKind.CANCEL)
        await worker.complete(call_id)
        await worker.next_frame()

    async with face(patient) as served:
        call = served.stub.Execute(request(), metadata=served.metadata())
        await eventually(lambda: bool(ends and ends[0].starts))
        call.cancel()
        await eventually(lambda: bool(ends[0].cancelled))
        await eventually(lambda: bool(served.kit.recorder.records))
        assert served.kit.recorder.records[0].reason == "CANCELLED"


async def test_deadline_of_the_client__bounds_the_guest(face: FaceFactory) -> None:
    ends: list[WorkerEnd] = []

    async def slow(worker: WorkerEnd) -> None:
        ends.append(worker)
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.complete(call_id)
        await worker.next_frame()

    async with face(slow) as served:
        await served.stub.Execute(request(), metadata=served.metadata(), timeout=2)
        start = next(iter(ends[0].starts.values()))
        # gRPC rounds a timeout up on its way; without one the guest would have five seconds.
        assert start.wall_time_us <= 2_100_000


async def test_drain__refuses_new_calls_and_lets_running_ones_end(face: FaceFactory) -> None:
    release = asyncio.Event()
    ends: list[WorkerEnd] = []

    async def held(worker: WorkerEnd) -> None:
        ends.append(worker)
        await worker.greet()
        call_id, _ = await worker.next_start()
        await release.wait()
        await worker.complete(call_id, body=b"finished")
        await worker.next_frame()

    async with face(held) as served:
        running = asyncio.ensure_future(served.stub.Execute(request(), metadata=served.metadata()))
        await eventually(lambda: bool(ends and ends[0].starts))
        draining = asyncio.create_task(served.server.drain(5))
        await eventually(lambda: not served.server.health.is_serving)
        release.set()
        assert (await running).completed.body == b"finished"
        await draining


async def test_reflection__only_behind_its_flag_and_a_credential(face: FaceFactory) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    for enabled in (False, True):
        async with face(reflection=enabled) as served:
            channel: Any = served.channel
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ServerReflectionInfo(iter([asked])).read()
            call = stub.ServerReflectionInfo(iter([asked]), metadata=served.metadata("info"))
            if enabled:
                names = {service.name for service in (await call.read()).list_services_response.service}
                assert SERVICE in names
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
