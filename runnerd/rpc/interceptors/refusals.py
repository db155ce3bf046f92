"""The one place where a domain error becomes a gRPC status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from registry.domain.errors import Reason, RefusalError
from runnerd.rpc.prescan import PrescanRefusedError
from runnerd.rpc.status import to_status
from runnerd.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class RefusalInterceptor(grpc.aio.ServerInterceptor):
    """Answers a RefusalError with its status and everything else with INTERNAL. Aborts and cancellations pass through.

    It is the outermost interceptor, so that what others refuse comes by here as well.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: tuple[object, grpc.RpcMethodHandler[Any, Any] | None] = (None, None)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of this call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler is not self._wrapped[0]:
            # One is kept, of the kind that is called all the time; those that refuse a single call are made for it.
            wrapped = self._wrap(handler)
            if handler.request_streaming:
                return wrapped
            self._wrapped = (handler, wrapped)
        return self._wrapped[1]

    def _wrap(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        kind = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind[0])
        guarded = self._guard_stream(behaviour) if handler.response_streaming else self._guard(behaviour)
        wrapped: grpc.RpcMethodHandler[Any, Any] = kind[1](
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return wrapped

    def _guard(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the last place before the wire; a bug becomes INTERNAL, its text only a log line.
                return await self._abort(error, context)

        return guarded

    def _guard_stream(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(request, context):
                    yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - as above.
                await self._abort(error, context)

        return guarded

    async def _abort(self, error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if isinstance(error, RefusalError):
            refusal = error
        else:
            _log.error("rpc_failed", exc_info=error)
            refusal = RefusalError(Reason.INTERNAL, "An internal error; the log has it under the request id.")
        self._metrics.refusal(refusal.reason)
        if isinstance(refusal, PrescanRefusedError):
            self._metrics.prescan_refusal(refusal.problem)
        if refusal.reason is Reason.INTERNAL:
            _log.error("rpc_refused", reason=refusal.reason.value, detail=str(refusal))
        await context.abort_with_status(rpc_status.to_status(to_status(refusal)))
