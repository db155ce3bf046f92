"""The use case over scripted workers: what reaches the worker, what is recorded, what is retried and what never is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extrunner.runner.v1 import execution_pb2, limits_pb2
from extrunner.worker.v1 import worker_pb2
from registry.domain.errors import Reason, RefusalError
from registry.domain.headers import MAX_HEADER_BYTES, MAX_HEADERS
from registry.domain.limits import OPERATOR_CEILING, OPERATOR_DEFAULTS, LimitWishes, clamp
from registry.domain.records import Endpoint
from runnerd.capabilities.catalog import BY_NAME, HostFunction
from runnerd.capabilities.grants import REQUEST_BYTES, RESPONSE_BYTES, GuestUser, InvocationGrant
from runnerd.capabilities.results import HostResult, failed
from runnerd.capabilities.values import arguments_to_wire
from runnerd.dispatch.calls import OpenCall
from runnerd.dispatch.connection import WorkerConnection
from runnerd.dispatch.outcome import Completed, GuestError, LimitExceeded, LimitKind, TrapKind, Trapped
from runnerd.dispatch.request import ExecutionResult, GuestRequest
from runnerd.dispatch.start import Invocation, build_start
from runnerd.rpc import converters, prescan
from runnerd.worker.frames import Frame, FrameKind, encode_frame
from tests.fakes.dispatch_kit import (
    CONNECTION,
    OTHER_TENANT,
    POOL,
    TENANT,
    Kit,
    dispatching,
    eventually,
    make_extension,
    make_install,
    make_request,
)
from tests.fakes.fake_worker import Script, WorkerEnd, scripted


async def execute(kit: Kit, *, deadline: float | None = None, **changes: Any) -> ExecutionResult:
    return await kit.executor.execute(kit.caller, make_request(**changes), deadline=deadline)


def answering(done: worker_pb2.Done, body: bytes | None = None, ends: list[WorkerEnd] | None = None) -> Any:
    async def script(worker: WorkerEnd) -> None:
        if ends is not None:
            ends.append(worker)
        await worker.greet()
        while True:
            call_id, _ = await worker.next_start()
            await worker.say(FrameKind.DONE, call_id, done)
            if body is not None:
                await worker.write(encode_frame(FrameKind.BODY, call_id, body))

    return script


def completed(status: int = 200, *headers: tuple[str, str], body: bool = False) -> worker_pb2.Done:
    pairs = [worker_pb2.FrameHeader(name=name, value=value) for name, value in headers]
    return worker_pb2.Done(completed=worker_pb2.Completed(status=status, headers=pairs, has_body=body))


@pytest.mark.parametrize(
    ("done", "body", "expected"),
    [
        (completed(204), None, Completed(status=204, headers=(), body=None)),
        (completed(200, ("a", "1"), ("set-cookie", "x"), ("connection", "x"), ("x-alga-y", "z")), None, None),
        (completed(199), None, GuestError),
        (completed(600), None, GuestError),
        (completed(200, ("A", "1")), None, GuestError),
        (completed(200, ("a", "b\n")), None, GuestError),
        (completed(204, body=True), b"x", GuestError),
        (completed(304, body=True), b"x", GuestError),
        (completed(304, body=True), b"", Completed(status=304, headers=(), body=b"")),
        (completed(200, *[("a", "b")] * 65), None, LimitKind.HEADERS),
        (completed(200, ("a", "b" * 16_384)), None, LimitKind.HEADERS),
        (worker_pb2.Done(trapped=worker_pb2.GuestTrap(kind="exit", message="bye\x1b[2J\u202e")), None, TrapKind.EXIT),
        (worker_pb2.Done(limit=worker_pb2.GuestLimit(limit="fuel", used=7, allowed=999)), None, LimitKind.FUEL),
        (worker_pb2.Done(guest_error="no"), None, GuestError(message="no")),
    ],
)
async def test_what_the_worker_says__is_judged_again(done: worker_pb2.Done, body: bytes | None, expected: Any) -> None:
    fork, _ = scripted(then=answering(done, body))
    async with dispatching(fork) as kit:
        outcome = (await execute(kit)).outcome
        if isinstance(expected, LimitKind):
            assert isinstance(outcome, LimitExceeded)
            assert outcome.limit is expected
        elif isinstance(expected, TrapKind):
            assert isinstance(outcome, Trapped)
            assert (outcome.kind, outcome.message) == (expected, "bye\\u001b[2J\\u202e")
        elif expected is None:
            assert outcome == Completed(status=200, headers=(("a", "1"),), body=None)
        elif isinstance(expected, type):
            assert isinstance(outcome, expected)
        else:
            assert outcome == expected


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
async def test_response__is_bounded_by_the_daemon(size: int, fits: bool) -> None:
    fork, _ = scripted(then=answering(completed(200, body=True), b"x" * size))
    async with dispatching(fork) as kit:
        asked = execute(kit, wishes=LimitWishes(response_bytes=100))
        if fits:
            assert isinstance((await asked).outcome, Completed)
        else:
            # A worker of ours refuses that itself (RESPONSE_SIZE); one that sends it is killed.
            with pytest.raises(RefusalError) as refused:
                await asked
            assert refused.value.reason is Reason.WORKER_CRASHED
            assert kit.metric("worker_restarts_total", {"cause": "violation"}) == 1


async def test_allowed__is_the_daemons_own_figure() -> None:
    fork, _ = scripted(then=answering(worker_pb2.Done(limit=worker_pb2.GuestLimit(limit="fuel", used=7, allowed=999))))
    async with dispatching(fork) as kit:
        assert (await execute(kit, wishes=LimitWishes(fuel=5))).outcome == LimitExceeded(limit=LimitKind.FUEL, used=7, allowed=5)


@pytest.mark.parametrize(("claimed", "allowed"), [(MAX_HEADERS, MAX_HEADERS), (MAX_HEADER_BYTES, MAX_HEADER_BYTES), (7, MAX_HEADERS)])
async def test_allowed_headers__are_in_the_unit_of_what_was_used(claimed: int, allowed: int) -> None:
    done = worker_pb2.Done(limit=worker_pb2.GuestLimit(limit="headers", used=20_001, allowed=claimed))
    fork, _ = scripted(then=answering(done))
    async with dispatching(fork) as kit:
        assert (await execute(kit)).outcome == LimitExceeded(limit=LimitKind.HEADERS, used=20_001, allowed=allowed)


async def test_times_of_a_limit__are_milliseconds_of_the_daemons_own() -> None:
    done = worker_pb2.Done(limit=worker_pb2.GuestLimit(limit="cpu_time", used=10**12, allowed=10**12), cpu_time_us=10**12)
    fork, _ = scripted(then=answering(done))
    async with dispatching(fork) as kit:
        outcome = (await execute(kit)).outcome
        assert isinstance(outcome, LimitExceeded)
        assert (outcome.limit, outcome.allowed) == (LimitKind.CPU_TIME, 1000)
        assert outcome.used < 5_000


async def test_usage__is_clamped_to_what_can_be() -> None:
    done = completed()
    done.cpu_time_us, done.peak_memory_bytes, done.fuel, done.wall_time_us = 10**15, 2**60, 5, 10**15
    fork, _ = scripted(then=answering(done))
    async with dispatching(fork) as kit:
        usage = (await execute(kit, wishes=LimitWishes(memory_bytes=1000, fuel=5))).usage
        assert usage.cpu_us <= usage.wall_us < 5_000_000
        assert (usage.peak_memory_bytes, usage.fuel) == (1000, 5)


async def test_internal_error_of_the_worker__is_ours() -> None:
    fork, made = scripted(then=answering(worker_pb2.Done(internal_error="component 1 is not loaded")))
    async with dispatching(fork) as kit:
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.INTERNAL
        assert "component" not in refused.value.public_detail
        assert not made[0].killed
        with pytest.raises(RefusalError):
            await execute(kit)
        assert [load.component for load in made[0].end.loads] == [1, 2], "what could not be used is sent again"
        assert kit.recorder.records[0].reason == "INTERNAL"


async def test_start__holds_what_was_resolved_and_clamped() -> None:
    ends: list[WorkerEnd] = []
    fork, _ = scripted(then=answering(completed(), ends=ends))
    async with dispatching(fork) as kit:
        install = make_install(
            kit.extension,
            endpoints=(Endpoint(method="GET", path="/slow/:id", timeout_ms=700),),
            limits=LimitWishes(wall_time_ms=20_000, memory_bytes=1 << 40),
        )
        kit.installs.add(install)
        http = GuestRequest(method="GET", path="/slow/1", query="a=1", headers=(("x-a", "b"),), body=None)
        user = GuestUser(user_id="u-1", email="someone@example.com")
        await execute(kit, http=http, asserted_user=user, wishes=LimitWishes(fuel=10**30))
        start = next(iter(ends[0].starts.values()))
        assert (start.tenant_id, start.install_id, start.version_id) == (TENANT, install.install_id, install.version_id)
        assert (start.extension_id, start.url, start.request_id) == ("com.example.test", "/slow/1?a=1", "req-1")
        assert start.wall_time_us <= 700_000
        assert start.memory_bytes == OPERATOR_CEILING.memory_bytes
        assert start.fuel == OPERATOR_DEFAULTS.fuel
        assert "user.read" not in start.capabilities
        # SECURITY: the user's data stays in the daemon; the guest asks the broker for it where it may.
        assert b"someone" not in start.SerializeToString()
        assert kit.recorder.records[0].endpoint == "/slow/:id"
        assert kit.recorder.records[0].user_id == "u-1"


async def test_component__is_sent_once_and_dropped_when_many_came() -> None:
    ends: list[WorkerEnd] = []
    fork, _ = scripted(then=answering(completed(), ends=ends))
    async with dispatching(fork, connection=replace(CONNECTION, max_components=2)) as kit:
        await execute(kit)
        await execute(kit)
        assert [load.component for load in ends[0].loads] == [1]
        for number in range(3):
            other = kit.extensions.add(make_extension(b"code %d" % number, memories=2))
            install = kit.installs.add(replace(make_install(other), extension_name=f"com.example.other{number}"))
            await execute(kit, extension=install.extension_name)
        await execute(kit)
        assert [load.component for load in ends[0].loads] == [1, 2, 3, 4, 5]
        assert [load.memories for load in ends[0].loads] == [1, 2, 2, 2, 1]
        assert ends[0].drops == [1, 2, 3]


async def test_call_whose_worker_died_before_it_began__is_sent_once_more() -> None:
    starts = 0

    async def dies_while_busy(worker: WorkerEnd) -> None:
        await worker.greet()
        # Reads nothing, so that the second call's bytes wait behind the first's.
        await asyncio.sleep(0.1)

    async def works(worker: WorkerEnd) -> None:
        nonlocal starts
        await worker.greet()
        while True:
            call_id, _ = await worker.next_start()
            starts += 1
            await worker.complete(call_id)

    fork, _ = scripted(dies_while_busy, then=works)
    async with dispatching(fork, pool=replace(POOL, spread=1)) as kit:
        first = asyncio.create_task(execute(kit, body=bytes(4_000_000)))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(execute(kit))
        with pytest.raises(RefusalError) as refused:
            await first
        assert refused.value.metadata == {"started": "true"}
        assert isinstance((await second).outcome, Completed)
        assert starts == 1


async def test_call_that_never_gets_a_worker_that_lives__gives_up_after_the_second() -> None:
    async def dies_at_once(worker: WorkerEnd) -> None:
        await worker.greet()
        await worker.next_start()

    fork, made = scripted(then=dies_at_once)
    async with dispatching(fork) as kit:
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.WORKER_CRASHED
        assert sum(bool(process.end.starts) for process in made) == 1, "a running call is never sent again"


async def test_denials__are_explained_in_the_record_and_counted() -> None:
    async def denies(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        for capability in ("http.fetch", "secrets.get"):
            await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(denied_capabilities=[capability]))
        await worker.complete(call_id)
        await worker.next_frame()

    fork, _ = scripted(denies)
    async with dispatching(fork) as kit:
        await execute(kit)
        denials = {denial["capability"]: denial["why"] for denial in kit.recorder.records[0].denials}
        assert denials == {"cap:http.fetch": "not_declared", "cap:secrets.get": "not_declared"}
        assert kit.metric("capability_denials_total", {"capability": "http.fetch"}) == 1


async def test_log_lines__reach_the_record_within_the_limits() -> None:
    async def talks(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        for number in range(4):
            line = worker_pb2.LogLine(level="info", message=f"line {number}", offset_us=number, truncated=number == 1)
            await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(lines=[line]))
        await worker.complete(call_id)
        await worker.next_frame()

    fork, _ = scripted(talks)
    async with dispatching(fork, defaults=LimitWishes(log_lines=3)) as kit:
        await execute(kit)
        log = kit.recorder.records[0].log
        assert [line["message"] for line in log] == ["line 0", "line 1", "line 2"]
        assert log[1]["truncated"] == "true"


def saying(*lines: tuple[str, str], dropped: int = 0, dies: bool = False) -> Script:
    """A worker that logs these lines and was asked for what nobody granted; then it answers, says nothing more, or dies."""

    async def script(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        said = [worker_pb2.LogLine(level=level, message=message, offset_us=7) for level, message in lines]
        await worker.say(FrameKind.LOG, call_id, worker_pb2.Log(lines=said, denied_capabilities=["http.fetch"]))
        if dies:
            return
        if dropped:
            await worker.complete(call_id, log_lines_dropped=dropped)
        while True:
            await worker.next_frame()

    return script


async def test_log_lines__say_stream_and_level_and_what_is_missing() -> None:
    levels = ("info", "warn", "error", "stdout", "stderr")
    fork, _ = scripted(saying(*((level, f"by {level}") for level in levels), dropped=9))
    async with dispatching(fork) as kit:
        await execute(kit)
        *log, missing = kit.recorder.records[0].log
        said = [(line["message"], line["stream"], line["level"], line["offset_us"]) for line in log]
        assert said == [
            ("by info", "log", "info", "7"),
            ("by warn", "log", "warn", "7"),
            ("by error", "log", "error", "7"),
            ("by stdout", "stdout", "info", "7"),
            ("by stderr", "stderr", "error", "7"),
        ]
        assert (missing["message"], missing["truncated"]) == ("(9 more lines were dropped)", "true")


async def test_call_whose_worker_dies__leaves_its_last_words_and_its_denials() -> None:
    fork, _ = scripted(saying(("stdout", "last words"), dies=True))
    async with dispatching(fork) as kit:
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.WORKER_CRASHED
        record = kit.recorder.records[0]
        assert (record.outcome, [line["message"] for line in record.log]) == ("error", ["last words"])
        assert [denial["capability"] for denial in record.denials] == ["cap:http.fetch"]
        assert kit.metric("capability_denials_total", {"capability": "http.fetch"}) == 1


async def test_call_that_is_cut_or_cancelled__leaves_its_last_words_and_its_denials() -> None:
    fork, _ = scripted(saying(("info", "last words")), saying(("info", "last words")))
    async with dispatching(fork) as kit:
        result = await execute(kit, wishes=LimitWishes(wall_time_ms=100))
        assert isinstance(result.outcome, LimitExceeded)
        call = asyncio.ensure_future(execute(kit, tenant_id=OTHER_TENANT))
        await eventually(
            lambda: any(opened.notes.log for worker in kit.pool.workers for opened in worker._table.calls if not opened.cancelled)
        )
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for record in kit.recorder.records:
            assert [line["message"] for line in record.log] == ["last words"]
            assert [denial["capability"] for denial in record.denials] == ["cap:http.fetch"]
        assert [record.reason for record in kit.recorder.records] == ["wall_time", "CANCELLED"]


async def test_host_calls__are_brokered_for_their_own_tenant_and_counted() -> None:
    get = BY_NAME["alga:extension/storage", "get"]

    async def asks(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.say(
            FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=get.number, arguments=arguments_to_wire(get, ("n", "k")))
        )
        await worker.next_of(FrameKind.HOST_REPLY)
        await worker.complete(call_id)
        await worker.next_frame()

    fork, made = scripted(asks)
    async with dispatching(fork) as kit:
        kit.broker.stored[TENANT, "n", "k"] = b"value"
        result = await execute(kit)
        assert result.usage.host_calls == 1
        assert made[0].end.replies[0][1].ok.record.items[2].data == b"value"
        assert kit.metric("host_calls_total", {"capability": "storage.kv", "result": "ok"}) == 1


@pytest.mark.parametrize("survives", [True, False])
async def test_egress__is_what_the_daemon_counted__however_the_call_ends(survives: bool) -> None:
    fetch = BY_NAME["alga:extension/http", "fetch"]
    request: dict[str, object] = {"method": "GET", "url": "https://a.example/", "headers": [], "body": None}

    async def asks(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        asked = worker_pb2.HostCall(function=fetch.number, arguments=arguments_to_wire(fetch, (request,)))
        await worker.say(FrameKind.HOST_CALL, call_id, asked)
        await worker.next_of(FrameKind.HOST_REPLY)
        if survives:
            await worker.complete(call_id)
            await worker.next_frame()

    async def fetching(grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        grant.used.update({REQUEST_BYTES: 10, RESPONSE_BYTES: 2_000})
        return failed("transport")

    fork, _ = scripted(asks)
    async with dispatching(fork, tenants=()) as kit:
        kit.installs.add(make_install(kit.extension, capabilities=frozenset({"http.fetch"})))
        kit.broker.call = fetching  # type: ignore[method-assign]
        if survives:
            usage = (await execute(kit)).usage
            assert (usage.egress_request_bytes, usage.egress_response_bytes) == (10, 2_000)
            assert kit.metric("egress_bytes_total", {"direction": "response"}) == 2_000
        else:
            with pytest.raises(RefusalError):
                await execute(kit)
        (record,) = kit.recorder.records
        assert (record.egress_request_bytes, record.egress_response_bytes) == (10, 2_000)


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), RefusalError(Reason.REGISTRY_UNAVAILABLE, "x")])
async def test_broken_capability__answers_its_typed_failure(error: Exception) -> None:
    get = BY_NAME["alga:extension/storage", "get"]

    async def asks(worker: WorkerEnd) -> None:
        await worker.greet()
        call_id, _ = await worker.next_start()
        await worker.say(
            FrameKind.HOST_CALL, call_id, worker_pb2.HostCall(function=get.number, arguments=arguments_to_wire(get, ("n", "k")))
        )
        await worker.next_of(FrameKind.HOST_REPLY)
        await worker.complete(call_id)
        await worker.next_frame()

    fork, made = scripted(asks)
    async with dispatching(fork) as kit:
        kit.broker.error = error
        assert isinstance((await execute(kit)).outcome, Completed)
        assert made[0].end.replies[0][1].error == "internal"


async def test_refusals_before_the_guest__leave_no_record() -> None:
    fork, made = scripted()
    async with dispatching(fork) as kit:
        for changes, reason in (
            ({"extension": "com.example.absent"}, Reason.EXTENSION_NOT_INSTALLED),
            ({"tenant_id": "tenant-z"}, Reason.EXTENSION_NOT_INSTALLED),
            ({"idempotency_key": "k"}, Reason.INVALID_REQUEST),
            ({"body": bytes(10 * 1024 * 1024 + 1)}, Reason.PAYLOAD_TOO_LARGE),
        ):
            with pytest.raises(RefusalError) as refused:
                await execute(kit, **changes)
            assert refused.value.reason is reason
        with pytest.raises(RefusalError) as refused:
            await execute(kit, deadline=time.monotonic() - 1)
        assert refused.value.reason is Reason.DEADLINE_EXCEEDED
        assert not kit.recorder.records
        assert not made[0].end.starts


async def test_generated_headers__must_agree_with_the_request() -> None:
    fork, _ = scripted()
    async with dispatching(fork) as kit:

        def http(tenant: str, extension: str) -> GuestRequest:
            headers = (("x-alga-tenant", tenant), ("x-alga-extension", extension))
            return GuestRequest(method="GET", path="/", query="", headers=headers, body=None)

        await execute(kit, http=http(TENANT, "com.example.test"))
        for tenant, extension in (("tenant-b", "com.example.test"), (TENANT, "com.example.other")):
            with pytest.raises(RefusalError) as refused:
                await execute(kit, http=http(tenant, extension))
            assert refused.value.reason is Reason.INVALID_REQUEST


async def test_full_recorder__refuses_before_the_guest_runs() -> None:
    fork, made = scripted()
    async with dispatching(fork) as kit:
        kit.recorder.is_full = True
        with pytest.raises(RefusalError) as refused:
            await execute(kit)
        assert refused.value.reason is Reason.OVERLOADED
        assert not made[0].end.starts


async def test_recorder_that_fails_afterwards__does_not_take_the_answer_away() -> None:
    fork, _ = scripted()
    async with dispatching(fork) as kit:
        kit.recorder.failure = RefusalError(Reason.OVERLOADED, "x")
        assert isinstance((await execute(kit)).outcome, Completed)
        assert kit.metric("execution_records_lost_total") == 1


async def test_undeclared_path_under_advisory__is_flagged() -> None:
    fork, _ = scripted()
    async with dispatching(fork) as kit:
        await execute(kit, path="/anything")
        assert kit.recorder.records[0].endpoint == "(undeclared)"
        assert kit.metric("undeclared_endpoint_calls_total") == 1


async def test_worker_that_takes_nothing__costs_the_waiting_call_no_more_than_its_time() -> None:
    async def never_reads(worker: WorkerEnd) -> None:
        await worker.greet()
        await asyncio.Event().wait()

    fork, _ = scripted(never_reads)
    async with dispatching(fork, pool=replace(POOL, spread=1, ceiling=1)) as kit:
        first = asyncio.create_task(execute(kit, body=bytes(4_000_000)))
        await asyncio.sleep(0.05)
        with pytest.raises(RefusalError) as refused:
            await execute(kit, wishes=LimitWishes(wall_time_ms=50))
        assert refused.value.reason is Reason.OVERLOADED
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_cancelled_before_it_left__frees_the_slot_at_once() -> None:
    async def never_reads(worker: WorkerEnd) -> None:
        await worker.greet()
        await asyncio.Event().wait()

    fork, _ = scripted(never_reads)
    async with dispatching(fork, pool=replace(POOL, spread=1, ceiling=1)) as kit:
        first = asyncio.create_task(execute(kit, body=bytes(4_000_000)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(execute(kit))
        await eventually(lambda: kit.pool.state().in_use == 2)
        second.cancel()
        await eventually(lambda: kit.pool.state().in_use == 1)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def silent(worker: WorkerEnd) -> None:
    await worker.greet()
    while True:
        await worker.next_frame()


async def started(kit: Kit) -> tuple[asyncio.Task[ExecutionResult], WorkerConnection, OpenCall]:
    """Start a call; return it once its worker has it, with both."""
    task = asyncio.create_task(execute(kit))
    await eventually(lambda: any(call.started for worker in kit.pool.workers for call in worker._table.calls))
    worker = next(worker for worker in kit.pool.workers if worker.in_flight)
    return task, worker, worker._table.calls[0]


async def test_call_that_ends_in_the_moment_of_its_cancellation__costs_the_worker_nothing() -> None:
    fork, _ = scripted(then=silent)
    async with dispatching(fork) as kit:
        task, worker, call = await started(kit)
        task.cancel()
        worker._on_frame(Frame(FrameKind.DONE, call.call_id, completed(204).SerializeToString()))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.in_flight == 0
        await asyncio.sleep(CONNECTION.grace_seconds * 2 + CONNECTION.bystander_seconds)
        assert not worker.has_ended


async def test_cancelled_call__is_taken_from_the_guest_and_its_late_answer_is_no_violation() -> None:
    fork, processes = scripted(then=silent)
    async with dispatching(fork) as kit:
        task, worker, call = await started(kit)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.orphans == 1
        await eventually(lambda: any(call.call_id in process.end.cancelled for process in processes))
        worker._on_frame(Frame(FrameKind.DONE, call.call_id, worker_pb2.Done(internal_error="cancelled").SerializeToString()))
        assert (worker.in_flight, worker.orphans) == (0, 0)
        await asyncio.sleep(CONNECTION.grace_seconds * 2 + CONNECTION.bystander_seconds)
        assert not worker.has_ended


# --- T22 ---------------------------------------------------------------------------------------------------------------------------------

wishes = st.builds(
    limits_pb2.Limits,
    memory_bytes=st.none() | st.integers(1, 2**63 - 1),
    fuel=st.none() | st.integers(1, 2**63 - 1),
    response_bytes=st.none() | st.integers(0, 2**63 - 1),
)
parts = st.lists(
    st.one_of(
        wishes.map(lambda limits: execution_pb2.ExecuteRequest(limits=limits).SerializeToString()),
        st.sampled_from(
            [
                execution_pb2.ExecuteRequest(context=execution_pb2.Context(tenant_id="tenant-b")).SerializeToString(),
                execution_pb2.ExecuteRequest(http=execution_pb2.HttpRequest(path="/other", body=b"more")).SerializeToString(),
                execution_pb2.ExecuteRequest(context=execution_pb2.Context(user=execution_pb2.User(user_id="root"))).SerializeToString(),
                worker_pb2.Start(fuel=2**60, tenant_id="tenant-b", memory_bytes=2**60).SerializeToString(),
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(wanted=wishes, extra=parts, position=st.integers(0, 4), body=st.binary(max_size=40))
def test_whatever_is_appended__the_worker_gets_the_clamped_values(
    wanted: limits_pb2.Limits, extra: list[bytes], position: int, body: bytes
) -> None:
    """Duplicated submessages and unknown fields, in any place, are refused, or are no part of what the worker gets."""
    message = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id="r", tenant_id=TENANT, extension_id="com.example.test"),
        http=execution_pb2.HttpRequest(method="GET", path="/", body=body),
    )
    pieces = [message.SerializeToString(), execution_pb2.ExecuteRequest(limits=wanted).SerializeToString()]
    for piece in extra:
        pieces.insert(min(position, len(pieces)), piece)
    try:
        request = converters.to_execution_request(prescan.execute_request(b"".join(pieces)))
    except RefusalError:
        return
    limits = clamp(defaults=OPERATOR_DEFAULTS, ceiling=OPERATOR_CEILING, grant=LimitWishes(), wishes=request.wishes)
    extension = EXTENSION
    install = make_install(extension)
    grant = InvocationGrant(
        tenant_id=request.tenant_id,
        install_id=install.install_id,
        extension_id=install.extension_id,
        extension_name=install.extension_name,
        version_id=install.version_id,
        request_id=request.request_id,
        capabilities=install.capabilities,
        declared=install.declared,
        granted=install.granted,
        config={},
        user=request.asserted_user,
        deadline=0.0,
    )
    invocation = Invocation(extension=extension, grant=grant, limits=limits, http=request.http, deadline=0.0)
    start = worker_pb2.Start.FromString(build_start(invocation, component=1, wall_time_us=5).SerializeToString())
    assert start.tenant_id == TENANT
    assert start.fuel <= OPERATOR_DEFAULTS.fuel
    assert start.memory_bytes <= OPERATOR_DEFAULTS.memory_bytes
    assert start.response_bytes <= OPERATOR_DEFAULTS.response_bytes
    assert (start.component, start.wall_time_us, start.url, start.method) == (1, 5, "/", "GET")
    assert frozenset(start.capabilities) == install.capabilities
    assert bytes(request.http.body or b"") == body


EXTENSION = make_extension()
