"""Microseconds of a host call, for every function of the catalog: how much longer a guest runs that makes many of them than one of one.

Context and logging are answered in the worker, the others by the daemon: storage, schedules and events by PostgreSQL (values of 32 KiB),
the platform's functions and `http.fetch` by servers on this machine. A deletion after the first finds nothing to delete.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import psycopg

from extrunner.runner.v1 import execution_pb2, runner_service_pb2_grpc
from registry.migrations.roles import OWNER, libpq_conninfo
from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from scripts.benchmark.bench import PROBE_TENANT, Bench, Figures
from scripts.demonstration.samples import javascript_is_available
from tests.fakes.platform_kit import CLIENT, SERVICE, invoice, page, services_page
from tests.fakes.probe_guests import write_call

_CALLS: Final = 20
_VALUE: Final = bytes(range(256)) * 128
_RECORD: Final = {"namespace": "bench", "key": "one", "value": _VALUE, "revision": None}
_ITEM: Final = {"key": "one", "value": _VALUE, "metadata": None, "ttl_seconds": None}
_OPTIONS: Final = {"expected_revision": None, "create_only": False, "ttl_seconds": None, "metadata": None}
_EVENT: Final = {"topic": "bench", "content_type": "application/json", "data": b"{}", "key": None}
_LABELS: Final = [{"name": "kind", "value": "bench"}]
_WISH: Final = dict.fromkeys(("endpoint", "cron", "timezone", "enabled", "name", "payload"))
_SCHEDULE: Final = _WISH | {"endpoint": "POST /probe", "cron": "0 3 * * *", "enabled": False}
_NO_ID: Final = "0197a000-0000-7000-8000-0000000000ff"
_ARGUMENTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "secrets.get": ("api_key",),
    "storage.get": ("bench", "one"),
    "storage.put": (_RECORD,),
    "storage.delete": ("bench", "two"),
    "storage.list-entries": ("bench", None),
    "logging.log-info": ("measured",),
    "logging.log-warn": ("measured",),
    "logging.log-error": ("measured",),
    "ui-proxy.call-route": ("/api/echo", b"{}"),
    "scheduler.create-schedule": (_SCHEDULE,),
    "scheduler.delete-schedule": (_NO_ID,),
    "invoicing.create-manual-invoice": (invoice(),),
    "clients.list-clients": (page(),),
    "clients.get-client": (CLIENT,),
    "services.list-services": (services_page(),),
    "services.get-service": (SERVICE,),
    "metrics.counter-add": ("bench_total", 1.0, _LABELS),
    "metrics.gauge-set": ("bench_level", 1.0, _LABELS),
    "metrics.histogram-record": ("bench_seconds", 1.0, _LABELS),
    "config.get": ("greeting",),
    "kv.get": ("bench", "one"),
    "kv.put": ("bench", "one", _VALUE, _OPTIONS),
    "kv.delete": ("bench", "two", None),
    "kv.list": ("bench", None, None, None),
    "kv.put-many": ("bench", [_ITEM]),
    "events.publish": (_EVENT,),
}
"""Of the functions that have any which are known beforehand."""
_CHANGES: Final = frozenset(f"scheduler.{name}-schedule" for name in ("create", "update", "delete"))
_CHANGES_AT_ONCE: Final = 8
"""Fewer than an install may make in a minute."""
_NOTHING_THERE: Final = frozenset({"missing", "not-found"})
"""Cases that measure as much as success does."""
_NO_SCHEDULE: Final = "there is no such schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    wall_us: float
    told: Mapping[str, Any]


def measure(bench: Bench) -> Figures:
    """Return p50 and p99 for each function, over executions of many calls each."""
    if not javascript_is_available():
        bench.miss("host calls: Node.js or componentize-js is not installed")
        return {}
    with grpc.insecure_channel(bench.machine.addresses.grpc) as channel:
        guest = _Guest(bench, runner_service_pb2_grpc.RunnerServiceStub(channel))
        # What others read has been written.
        for function in FUNCTIONS:
            if function.name == "put":
                guest.run(function, 1)
        figures = {_name(function): _figures(guest, function, rounds=3 if bench.quick else 30) for function in FUNCTIONS}
    return {"host_call_us": figures}


class _Guest:
    """Has the probe guest call functions."""

    def __init__(self, bench: Bench, stub: Any) -> None:
        self._bench = bench
        self._stub = stub
        self._name = bench.probe.name
        self._metadata = (("authorization", f"Bearer {bench.token(PROBE_TENANT, scope='execute assert-user')}"),)
        self._schedule = self._run(_BY_NAME["scheduler.create-schedule"], 1, (_SCHEDULE | {"name": "kept"},)).told["ok"]["schedule_id"]

    def run(self, function: HostFunction, times: int) -> _Ran:
        """Have it call one function so often in one execution."""
        name = _name(function)
        if name in _CHANGES:
            self._forget_changes()
        arguments = _ARGUMENTS.get(name, ())
        if name == "http.fetch":
            arguments = ({"method": "GET", "url": f"{self._bench.web}/echo", "headers": [], "body": None},)
        elif name == "scheduler.get-schedule":
            arguments = (self._schedule,)
        elif name == "scheduler.update-schedule":
            arguments = (self._schedule, _WISH | {"enabled": False})
        ran = self._run(function, times, arguments)
        refusal = _refusal(ran.told)
        if refusal is not None:
            message = f"{name} answered {refusal}"
            raise RuntimeError(message)
        return ran

    def _run(self, function: HostFunction, times: int, arguments: tuple[Any, ...]) -> _Ran:
        user = execution_pb2.User(user_id="u-1", email="ada@example.com")
        context = execution_pb2.Context(request_id="host-calls", tenant_id=PROBE_TENANT, extension_id=self._name, user=user)
        body = json.dumps([write_call(function, arguments, times=times)]).encode()
        http = execution_pb2.HttpRequest(method="POST", path="/probe", body=body)
        response = self._stub.Execute(execution_pb2.ExecuteRequest(context=context, http=http), timeout=30, metadata=self._metadata)
        if response.WhichOneof("outcome") != "completed":
            message = f"{times} calls of {_name(function)} ended as {response.WhichOneof('outcome')}"
            raise RuntimeError(message)
        return _Ran(wall_us=float(response.usage.wall_time.ToMicroseconds()), told=json.loads(response.completed.body)[0])

    def _forget_changes(self) -> None:
        """Give the install a new minute, and room for more schedules."""
        url = self._bench.machine.state.database_url_file(OWNER).read_text("utf-8").strip()
        with psycopg.connect(libpq_conninfo(url), autocommit=True) as owner:
            owner.execute("delete from extension_schedule_changes")
            owner.execute("delete from extension_schedule where name is null")


def _figures(guest: _Guest, function: HostFunction, *, rounds: int) -> dict[str, float]:
    """Return how long one call takes: what a guest's calls after the first add to its time, divided by their number."""
    calls = _CHANGES_AT_ONCE if _name(function) in _CHANGES else _CALLS
    guest.run(function, 1 + calls)
    without = statistics.median(guest.run(function, 1).wall_us for _ in range(rounds))
    each = sorted((guest.run(function, 1 + calls).wall_us - without) / calls for _ in range(rounds))
    return {"p50": round(each[len(each) // 2], 1), "p99": round(each[len(each) * 99 // 100], 1)}


def _refusal(told: Mapping[str, Any]) -> str | None:
    """Return what stood in the way of a call, where something did."""
    if "ok" not in told:
        case = told.get("error")
        return None if case in _NOTHING_THERE else f"{case or told.get('threw')}"
    value = told["ok"]
    refused = isinstance(value, Mapping) and value.get("success") is False
    return f"{value['error']}" if refused and value["error"] != _NO_SCHEDULE else None


def _name(function: HostFunction) -> str:
    return function.qualified_name.partition("/")[2]


_BY_NAME: Final = {_name(function): function for function in FUNCTIONS}
