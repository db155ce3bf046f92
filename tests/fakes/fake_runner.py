"""A RunnerService on loopback that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeAlias

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from extrunner.runner.v1 import execution_pb2, runner_service_pb2, runner_service_pb2_grpc

Answer: TypeAlias = execution_pb2.ExecuteResponse | status_pb2.Status | grpc.StatusCode
"""A response; a rich status; or a bare code without any detail, as gRPC itself sends it."""

MIB = 1024 * 1024


def completed(
    status: int = 200, *, headers: tuple[tuple[str, str], ...] = (), body: bytes | None = None, execution_id: str = "exec-1"
) -> execution_pb2.ExecuteResponse:
    return execution_pb2.ExecuteResponse(
        completed=execution_pb2.HttpResponse(
            status=status, headers=[execution_pb2.Header(name=name, value=value) for name, value in headers], body=body
        ),
        execution_id=execution_id,
        content_hash="sha256:" + "0" * 64,
    )


class FakeRunner(runner_service_pb2_grpc.RunnerServiceServicer):
    """Use as an asynchronous context manager; `target` is where it listens."""

    def __init__(self) -> None:
        self.answer: Answer | Callable[[execution_pb2.ExecuteRequest], Awaitable[Answer]] = completed()
        self.warm_answer: runner_service_pb2.WarmResponse | status_pb2.Status | grpc.StatusCode = runner_service_pb2.WarmResponse(
            state=runner_service_pb2.WARM_STATE_COMPILED
        )
        self.requests: list[execution_pb2.ExecuteRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining_seconds: list[float] = []
        self.warmed: list[str] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.target = ""
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 33 * MIB), ("grpc.max_send_message_length", 40 * MIB)])
        runner_service_pb2_grpc.add_RunnerServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self._server.stop(0)

    async def Execute(self, request: execution_pb2.ExecuteRequest, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_seconds.append(context.time_remaining())
        self.started.set()
        try:
            answer = await self.answer(request) if callable(self.answer) else self.answer
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await _give(answer, context)

    async def Warm(self, request: runner_service_pb2.WarmRequest, context: Any) -> Any:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        self.warmed.append(request.content_hash)
        return await _give(self.warm_answer, context)

    async def GetRunnerInfo(self, request: runner_service_pb2.GetRunnerInfoRequest, context: Any) -> Any:  # noqa: N802
        return runner_service_pb2.GetRunnerInfoResponse(version="fake")


async def _give(answer: Any, context: Any) -> Any:
    if isinstance(answer, status_pb2.Status):
        await context.abort_with_status(rpc_status.to_status(answer))
    if isinstance(answer, grpc.StatusCode):
        await context.abort(answer, "internals that nobody may see")
    return answer
