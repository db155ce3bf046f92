"""Answers to host calls: whatever goes wrong is the function's own failure, in its own shape."""

from __future__ import annotations

import asyncio
import time

import pytest

from extrunner.worker.v1 import worker_pb2
from registry.domain.limits import OPERATOR_DEFAULTS
from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.results import HostResult, succeeded
from runnerd.capabilities.values import reply_from_wire
from runnerd.dispatch.calls import MAX_DENIALS, CallTable, HostCallRequested
from runnerd.dispatch.host_calls import HostCallDesk, failure_of
from runnerd.telemetry.metrics import Metrics
from tests.fakes.dispatch_kit import make_extension, make_install

BROKERED = [function for function in FUNCTIONS if not function.local]


class Answers:
    def __init__(self, result: HostResult | None) -> None:
        self.result = result
        self.asked = 0

    async def call(self, grant: InvocationGrant, function: HostFunction, arguments: tuple[object, ...]) -> HostResult:
        self.asked += 1
        if self.result is None:
            await asyncio.Event().wait()
        assert self.result is not None
        return self.result


def request(function: HostFunction, *, seconds: float = 5.0) -> HostCallRequested:
    install = make_install(make_extension())
    deadline = time.monotonic() + seconds
    grant = InvocationGrant(
        tenant_id=install.tenant_id,
        install_id=install.install_id,
        extension_id=install.extension_id,
        extension_name=install.extension_name,
        version_id=install.version_id,
        request_id="r",
        capabilities=install.capabilities,
        declared=install.declared,
        granted=install.granted,
        config={},
        user=None,
        deadline=deadline,
    )
    call = CallTable().open(grant=grant, limits=OPERATOR_DEFAULTS, deadline=deadline)
    return HostCallRequested(call=call, function=function, arguments=())


def read(function: HostFunction, payload: bytes) -> tuple[object, str | None]:
    return reply_from_wire(function, worker_pb2.HostReply.FromString(payload))


@pytest.mark.parametrize("function", BROKERED, ids=lambda function: function.qualified_name)
async def test_every_function__can_say_that_we_failed(function: HostFunction) -> None:
    desk = HostCallDesk(Answers(succeeded(object())), Metrics())
    value, error = read(function, await desk.answer(request(function)))
    assert (value, error) == (failure_of(function).value, failure_of(function).error) or function.result is None


async def test_broker_that_never_answers__is_cut_by_the_cap_and_by_the_deadline() -> None:
    function = BROKERED[0]
    metrics = Metrics()
    for most, left in ((0.02, 5.0), (5.0, 0.02)):
        answers = Answers(None)
        desk = HostCallDesk(answers, metrics, most_seconds=most)
        asked = request(function, seconds=left)
        assert read(function, await asyncio.wait_for(desk.answer(asked), 2))[1] == "internal"
        assert answers.asked == 1
    labels = {"capability": function.capability, "result": "timeout"}
    assert metrics.registry.get_sample_value("extrunner_host_calls_total", labels) == 2


async def test_time_is_up__nothing_is_asked() -> None:
    answers = Answers(succeeded("x"))
    await HostCallDesk(answers, Metrics()).answer(request(BROKERED[0], seconds=-1))
    assert answers.asked == 0


async def test_denial__is_kept_for_the_record() -> None:
    function = BROKERED[0]
    explanation = {"capability": "cap:secrets.get", "why": "not_granted", "change": "…"}
    asked = request(function)
    payload = await HostCallDesk(Answers(HostResult(error="denied", denial=explanation)), Metrics()).answer(asked)
    assert read(function, payload)[1] == "denied"
    assert asked.call.notes.denials == [explanation]


async def test_denials__of_one_call__are_each_kept_once_and_bounded() -> None:
    function = BROKERED[0]
    asked = request(function)
    for number in (*range(100), *range(100)):
        explanation = {"capability": "cap:http.fetch", "why": "host", "change": f"host {number}"}
        await HostCallDesk(Answers(HostResult(error="denied", denial=explanation)), Metrics()).answer(asked)
    assert [denial["change"] for denial in asked.call.notes.denials] == [f"host {number}" for number in range(MAX_DENIALS)]
