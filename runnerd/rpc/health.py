"""grpc.health.v1.Health: one state under the name of each service, and answers without a credential that read nothing.

Probes carry no token, and a unary handler would read whatever an anonymous caller sends up to the message cap (T21). So a call
without a credential gets the daemon's overall state, which every service name shares, and its message stays unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The state that health checks see. NOT_SERVING until told otherwise."""

    def __init__(self, services: Iterable[str]) -> None:
        self.servicer = health_aio.HealthServicer()
        self._services = ("", *services)
        self._serving = False
        self._changed = asyncio.Condition()

    @property
    def is_serving(self) -> bool:
        """True between start and drain."""
        return self._serving

    async def set_serving(self, *, serving: bool) -> None:
        """Change the state of every service at once."""
        for service in self._services:
            await self.servicer.set(service, _SERVING if serving else _NOT_SERVING)
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def anonymous_handlers(self) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return handlers that answer without reading: full method name → handler."""
        serialise = health_pb2.HealthCheckResponse.SerializeToString
        return {
            CHECK: grpc.stream_unary_rpc_method_handler(self._check, response_serializer=serialise),
            WATCH: grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=serialise),
        }

    def _response(self) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=_SERVING if self._serving else _NOT_SERVING)

    async def _check(self, _messages: AsyncIterator[bytes], _context: Any) -> health_pb2.HealthCheckResponse:
        return self._response()

    async def _watch(self, _messages: AsyncIterator[bytes], _context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told: bool | None = None
        while True:
            async with self._changed:
                while self._serving is told:
                    await self._changed.wait()
                told = self._serving
            yield self._response()
