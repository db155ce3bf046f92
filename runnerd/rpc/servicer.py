"""The RPCs: scan, convert, hand to the use case, convert back. No rule lives here."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from extrunner.runner.v1 import execution_pb2, runner_service_pb2
from registry.domain.digests import ContentHash
from registry.logs import correlate
from runnerd.artifacts.loaded import WarmOutcome
from runnerd.dispatch.request import Caller, ExecutionRequest, ExecutionResult
from runnerd.dispatch.runner_info import RunnerInfo
from runnerd.rpc import converters, prescan
from runnerd.rpc.intake import IntakeBudget
from runnerd.rpc.interceptors.authentication import caller_of_call

SERVICE = "extrunner.runner.v1.RunnerService"
SCOPES = {f"/{SERVICE}/Execute": "execute", f"/{SERVICE}/Warm": "warm", f"/{SERVICE}/GetRunnerInfo": "info"}
"""Full method name → scope of the service token."""

Context = grpc.aio.ServicerContext[Any, Any]


class Executes(Protocol):
    """The use case behind Execute."""

    async def execute(self, caller: Caller, request: ExecutionRequest, *, deadline: float | None) -> ExecutionResult:
        """Run one call; `deadline` is on the clock of `time.monotonic()`."""


class RunnerServicer:
    """Answers RunnerService.

    Args:
        executor: runs calls.
        warm: makes a content hash ready.
        describe: returns the daemon's description.
        budget: of request bytes.
    """

    def __init__(
        self,
        *,
        executor: Executes,
        warm: Callable[[ContentHash], Awaitable[WarmOutcome]],
        describe: Callable[[], RunnerInfo],
        budget: IntakeBudget,
    ) -> None:
        self._executor = executor
        self._warm = warm
        self._describe = describe
        self._budget = budget

    async def execute(self, raw: bytes, context: Context) -> execution_pb2.ExecuteResponse:
        """Run one execution."""
        # NOTE: None without a deadline, whatever the stubs say.
        remaining: Any = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        with self._budget.reserve(len(raw)):
            request = converters.to_execution_request(prescan.execute_request(raw))
            # Until this RPC's task ends, so that what the interceptors log about it is found as well.
            correlate(request_id=request.request_id, tenant_id=request.tenant_id)
            with self._budget.share(request.tenant_id, len(raw)):
                result = await self._executor.execute(caller_of_call.get(), request, deadline=deadline)
            return converters.from_result(result)

    async def warm(self, raw: bytes, _context: Context) -> runner_service_pb2.WarmResponse:
        """Verify and compile ahead of traffic."""
        content_hash = converters.to_content_hash(prescan.warm_request(raw))
        correlate(content_hash=content_hash)
        outcome = await self._warm(content_hash)
        return converters.from_warm(outcome.state, outcome.compile_seconds)

    async def get_runner_info(self, raw: bytes, _context: Context) -> runner_service_pb2.GetRunnerInfoResponse:
        """Describe the daemon."""
        prescan.info_request(raw)
        return converters.from_runner_info(self._describe())

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """Return the handlers for the server. They get raw bytes: nothing is parsed before the pre-scan."""
        methods: dict[str, Any] = {
            "Execute": (self.execute, execution_pb2.ExecuteResponse),
            "Warm": (self.warm, runner_service_pb2.WarmResponse),
            "GetRunnerInfo": (self.get_runner_info, runner_service_pb2.GetRunnerInfoResponse),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(behaviour, response_serializer=response.SerializeToString)
            for name, (behaviour, response) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)
