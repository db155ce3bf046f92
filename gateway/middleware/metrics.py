"""Counts and times requests, writes one log line for each, and lets no exception out.

Labels come from closed sets: templates of routes, known methods, statuses (T43). Paths, queries and tenants are in no label.
"""

from __future__ import annotations

import time
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from registry.domain.errors import Reason, RefusalError

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CLIENT_GONE: Final = 499
"""In metrics and logs only: nobody was there to read an answer."""

_log = structlog.get_logger(__name__)


class GatewayMetrics:
    """The gateway's own metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "extrunner_gateway_requests_total", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "extrunner_gateway_request_seconds", "Time to answer.", ["route"], buckets=_BUCKETS, registry=self.registry
        )
        self.in_progress = Gauge("extrunner_gateway_requests_in_progress", "Requests being answered.", registry=self.registry)


class MetricsMiddleware:
    """Observes every request.

    Args:
        app: the application.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, *, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE
        started = time.perf_counter()

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, observe)
            except Exception:  # noqa: BLE001 - the outermost place: everything is logged and answered here.
                # What the application did not answer is a mistake of ours: the text stays here.
                _log.exception("request_failed")
                if status == _CLIENT_GONE:
                    refusal = RefusalError(Reason.INTERNAL, "An internal error; give the request id to the operator.")
                    await problems.problem_response(refusal, request_id=scope.get("request_id", ""))(scope, receive, observe)
        self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_template(scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        _log.info("request", route=route, method=method, status=status, milliseconds=round(seconds * 1000, 2))


def route_template(scope: Scope) -> str:
    """Return the template of the route that answered, or "(none)": never a path."""
    template = scope.get("route_template")
    if isinstance(template, str):
        return template
    path = getattr(scope.get("route"), "path", None)
    return f"{scope.get('root_path', '')}{path}" if isinstance(path, str) else "(none)"
