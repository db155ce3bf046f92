"""What guests ask of every host function, and what it must answer: one table for all toolchains and worlds.

A scenario is asked in one call of a guest, in order; each guest has an install, and so storage, of its own. What a guest without the
capability is told follows from the catalog and needs no table.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runnerd.capabilities.catalog import FUNCTIONS, HostFunction
from tests.fakes.platform_kit import CLIENT, SERVICE
from tests.fakes.probe_guests import Answer
from tests.fakes.probe_servers import ABSENT, BROKEN, FORBIDDEN, INVOICE, UNICODE

KIB: Final = 1024
MOST_KEYS: Final = 30
"""In a namespace of the guests' installs."""
SETTINGS: Final = {"colour": "blue", "empty": "", "unicode": UNICODE}
_BY_SHORT_NAME: Final = {function.qualified_name.partition("/")[2]: function for function in FUNCTIONS}


class Like:
    """Equal to every text that matches a pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._pattern.fullmatch(other) is not None

    def __hash__(self) -> int:
        return hash(self._pattern)

    def __repr__(self) -> str:
        return f"Like({self._pattern.pattern!r})"


A_TIME: Final = Like(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
AN_ID: Final = Like(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the answers to a guest depend on."""

    tenant_id: str = ""
    install_id: str = ""
    extension_id: str = ""
    version_id: str = ""
    web: str = "http://probe.test"
    """Where tests/fakes/probe_servers.py answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One call and its answer."""

    function: HostFunction
    arguments: tuple[Any, ...]
    answer: Answer
    times: int = 1


Scenario = Callable[[Surroundings], list[Probe]]


def asks(name: str, *arguments: Any, answers: Any = None, refuses: str | None = None, times: int = 1) -> Probe:
    """Make a probe.

    Args:
        name: interface and function, without the package.
        arguments: of the shapes of the catalog.
        answers: the value.
        refuses: the case of its error instead.
        times: how often it is called; the answer is that of the last.
    """
    return Probe(function=_BY_SHORT_NAME[name], arguments=arguments, answer=Answer(value=answers, error=refuses), times=times)


def denial_of(function: HostFunction) -> Answer:
    """Return what a guest is told that has not the capability."""
    return Answer(error=str(function.denied)) if function.error is not None else Answer(value=function.denied)


# --- what every install has ------------------------------------------------------------------------------------------------------------


def context(at: Surroundings) -> list[Probe]:
    ids = {"tenant_id": at.tenant_id, "extension_id": at.extension_id, "install_id": at.install_id, "version_id": at.version_id}
    return [asks("context.get-context", answers=ids | {"request_id": "probe"})]


def config(_: Surroundings) -> list[Probe]:
    return [
        asks("config.get", "colour", answers="blue"),
        asks("config.get", "empty", answers=""),
        asks("config.get", "unicode", answers=UNICODE),
        asks("config.get", "absent", answers=None),
        asks("config.get", "", answers=None),
        asks("config.list", answers=[{"key": key, "value": value} for key, value in sorted(SETTINGS.items())]),
    ]


def logging(_: Surroundings) -> list[Probe]:
    return [asks(f"logging.log-{level}", text) for level in ("info", "warn", "error") for text in (f"{level} {UNICODE}", "")]


# --- who asks --------------------------------------------------------------------------------------------------------------------------

USER: Final[dict[str, Any]] = {
    "user_id": "u-1",
    "email": "ada@example.com",
    "name": f"Ada {UNICODE}",
    "type": "internal",
    "client_name": "",
    "client_id": "c-1",
    "additional_fields": {"team": "night", "empty": "", "unicode": UNICODE},
}
"""As a service asserts it."""


def user(at: Surroundings) -> list[Probe]:
    data = {
        "tenant_id": at.tenant_id,
        "client_name": "",
        "user_id": "u-1",
        "user_email": "ada@example.com",
        "user_name": USER["name"],
        "user_type": "internal",
    }
    further = {"client_id": "c-1", "additional_fields": [("empty", ""), ("team", "night"), ("unicode", UNICODE)]}
    return [asks("user.get-user", answers=data), asks("user-v2.get-user", answers=data | further)]


def nobody(_: Surroundings) -> list[Probe]:
    return [asks("user.get-user", refuses="not-available"), asks("user-v2.get-user", refuses="not-available")]


# --- storage ---------------------------------------------------------------------------------------------------------------------------


def storage(_: Surroundings) -> list[Probe]:
    def entry(key: str, value: bytes, revision: int | None, namespace: str = UNICODE) -> dict[str, Any]:
        return {"namespace": namespace, "key": key, "value": value, "revision": revision}

    everything, most = bytes(range(256)), bytes(64 * KIB)
    return [
        asks("storage.get", UNICODE, UNICODE, refuses="missing"),
        asks("storage.delete", UNICODE, UNICODE, refuses="missing"),
        asks("storage.list-entries", UNICODE, None, answers=[]),
        asks("storage.put", entry("a", everything, None), answers=entry("a", everything, 1)),
        asks("storage.put", entry("a", b"", 1), answers=entry("a", b"", 2)),
        asks("storage.put", entry("a", b"", 0), refuses="conflict"),
        asks("storage.put", entry("a", b"", 2**53 + 1), refuses="conflict"),
        asks("storage.put", entry("a", b"", 2**64 - 1), refuses="conflict"),
        asks("storage.put", entry(UNICODE, most, 0), answers=entry(UNICODE, most, 1)),
        asks("storage.put", entry("b", most + b"x", None), refuses="denied"),
        asks("storage.put", entry("", b"", None), refuses="denied"),
        asks("storage.get", UNICODE, "a", answers=entry("a", b"", 2)),
        asks("storage.get", UNICODE, UNICODE, answers=entry(UNICODE, most, 1)),
        asks("storage.get", "", "a", refuses="denied"),
        asks("storage.list-entries", UNICODE, None, answers=[entry(UNICODE, most, 1), entry("a", b"", 2)]),
        asks("storage.list-entries", UNICODE, "a", answers=[]),
        asks("storage.delete", UNICODE, "a"),
        asks("storage.list-entries", UNICODE, "A", answers=[entry(UNICODE, most, 1)]),
    ]


def kv(_: Surroundings) -> list[Probe]:
    space = f"kv {UNICODE}"
    everything, most = bytes(range(256)), bytes(64 * KIB)

    def entry(key: str, value: bytes, revision: int, metadata: str | None = None) -> dict[str, Any]:
        return {"key": key, "value": value, "metadata": metadata, "revision": revision, "expires_at": None}

    def options(**given: Any) -> dict[str, Any]:
        return {"expected_revision": None, "create_only": False, "ttl_seconds": None, "metadata": None} | given

    def item(key: str, value: bytes = b"", **given: Any) -> dict[str, Any]:
        return {"key": key, "value": value, "metadata": None, "ttl_seconds": None} | given

    return [
        asks("kv.get", space, "a", refuses="missing"),
        asks("kv.put", space, "a", everything, options(create_only=True), answers=1),
        asks("kv.put", space, "a", b"", options(create_only=True), refuses="conflict"),
        asks("kv.put", space, "a", b"", options(expected_revision=2**64 - 1), refuses="conflict"),
        asks("kv.put", space, "a", b"", options(expected_revision=1, create_only=True), refuses="invalid"),
        asks("kv.put", space, "a", b"", options(expected_revision=1, metadata=UNICODE), answers=2),
        asks("kv.put", space, "a", most + b"x", options(), refuses="invalid"),
        asks("kv.put", space, "a", b"", options(metadata="x" * 4_097), refuses="invalid"),
        asks("kv.put", space, "a", b"", options(ttl_seconds=59), refuses="invalid"),
        asks("kv.put", space, "a/b", b"", options(), refuses="invalid"),
        asks("kv.get", space, "a", answers=entry("a", b"", 2, UNICODE)),
        asks("kv.put-many", space, [item("b", everything, metadata=""), item("c", most), item("short", ttl_seconds=60)], answers=[1, 1, 1]),
        asks("kv.put-many", space, [item("d"), item("d")], refuses="invalid"),
        asks("kv.put-many", space, [item(str(number)) for number in range(21)], refuses="invalid"),
        asks("kv.put-many", space, [item(str(number), most) for number in range(9)], refuses="invalid"),
        asks("kv.put-many", space, [], answers=[]),
        asks(
            "kv.list",
            space,
            None,
            2,
            None,
            answers={"entries": [entry("a", b"", 2, UNICODE), entry("b", everything, 1, "")], "next_cursor": Like(".+")},
        ),
        asks("kv.list", space, "c", None, None, answers={"entries": [entry("c", most, 1)], "next_cursor": None}),
        asks("kv.list", space, None, 0, None, refuses="invalid"),
        asks("kv.list", space, None, 101, None, refuses="invalid"),
        asks("kv.list", space, None, None, "of nobody", refuses="invalid"),
        asks("kv.get", space, "a/b", refuses="invalid"),
        asks("kv.delete", "", "a", None, refuses="invalid"),
        asks("kv.delete", space, "a", 1, refuses="conflict"),
        asks("kv.delete", space, "a", 2),
        asks("kv.delete", space, "a", None, refuses="missing"),
        asks("storage.get", space, "b", answers={"namespace": space, "key": "b", "value": everything, "revision": 1}),
        asks("kv.put-many", "full", [item(f"a {number}") for number in range(20)], answers=[1] * 20),
        asks("kv.put-many", "full", [item(f"b {number}") for number in range(MOST_KEYS - 19)], refuses="quota-exceeded"),
        asks("kv.put-many", "full", [item(f"b {number}") for number in range(MOST_KEYS - 20)], answers=[1] * (MOST_KEYS - 20)),
        asks("kv.put", "full", "c", b"", options(), refuses="quota-exceeded"),
        asks("storage.put", {"namespace": "full", "key": "c", "value": b"", "revision": None}, refuses="denied"),
    ]


# --- secrets ---------------------------------------------------------------------------------------------------------------------------

SECRETS: Final = {"unicode": UNICODE, "old": "expired", "moved": "sealed for another version"}


def secrets(_: Surroundings) -> list[Probe]:
    return [
        asks("secrets.get", "unicode", answers=UNICODE),
        asks("secrets.get", "absent", refuses="missing"),
        asks("secrets.get", "old", refuses="expired"),
        asks("secrets.get", "moved", refuses="internal"),
        asks("secrets.get", "", refuses="missing"),
        asks("secrets.get", UNICODE, refuses="missing"),
        asks("secrets.list-keys", answers=sorted(SECRETS)),
    ]


# --- what an extension measures and publishes ------------------------------------------------------------------------------------------


def metrics(_: Surroundings) -> list[Probe]:
    def labels(count: int) -> list[dict[str, str]]:
        return [{"name": f"label_{number}", "value": "a"} for number in range(count)]

    probes = [
        asks("metrics.counter-add", "probes_total", 1.0, []),
        asks("metrics.counter-add", "probes_total", -1.0, [], refuses="invalid"),
        asks("metrics.gauge-set", "level", -0.25, labels(1)),
        asks("metrics.histogram-record", "seconds", 1e15, labels(8)),
    ]
    for name, good in (("counter-add", "probes_total"), ("gauge-set", "level"), ("histogram-record", "seconds")):
        probes += [
            asks(f"metrics.{name}", "", 1.0, [], refuses="invalid"),
            asks(f"metrics.{name}", UNICODE, 1.0, [], refuses="invalid"),
            asks(f"metrics.{name}", good, math.nan, [], refuses="invalid"),
            asks(f"metrics.{name}", good, math.inf, [], refuses="invalid"),
            asks(f"metrics.{name}", good, 1.0, labels(9), refuses="invalid"),
            asks(f"metrics.{name}", good, 1.0, labels(17), refuses="invalid"),
            asks(f"metrics.{name}", good, 1.0, [{"name": "a", "value": ""}], refuses="invalid"),
        ]
    return [*probes, *(asks("metrics.gauge-set", f"name_{number}", 1.0, []) for number in range(17))] + [
        asks(f"metrics.{name}", "one_too_many", 1.0, [], refuses="quota-exceeded")
        for name in ("counter-add", "gauge-set", "histogram-record")
    ]


def events(_: Surroundings) -> list[Probe]:
    def event(topic: str, data: bytes = b"", key: str | None = None, content_type: str = "application/json") -> dict[str, Any]:
        return {"topic": topic, "content_type": content_type, "data": data, "key": key}

    return [
        asks("events.publish", event("note.added"), answers=AN_ID),
        asks("events.publish", event("note.added", bytes(range(256)), UNICODE), answers=AN_ID),
        asks("events.publish", event("note.added", bytes(256 * KIB), "k"), answers=AN_ID),
        asks("events.publish", event("note.added", bytes(256 * KIB + 1)), refuses="too-large"),
        asks("events.publish", event("note.added", key=""), refuses="invalid"),
        asks("events.publish", event(""), refuses="invalid"),
        asks("events.publish", event(UNICODE), refuses="invalid"),
        asks("events.publish", event("ext.com.example.other.note"), refuses="invalid"),
        asks("events.publish", event("note.added", content_type=""), refuses="invalid"),
        asks("events.publish", event("note.added"), refuses="quota-exceeded", times=32),
    ]


# --- requests over HTTP ----------------------------------------------------------------------------------------------------------------


def http(at: Surroundings) -> list[Probe]:
    def request(path: str, body: bytes | None = None, method: str = "POST", headers: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        url = path if "://" in path else f"{at.web}{path}"
        return {"method": method, "url": url, "headers": _headers(*headers), "body": body}

    def response(status: int, body: bytes | None, *headers: tuple[str, str]) -> dict[str, Any]:
        return {"status": status, "headers": _headers(*headers), "body": body}

    def echo(method: str, sent: str, body: bytes) -> dict[str, Any]:
        return response(200, body, ("x-method", method), ("x-sent", sent), ("content-length", str(len(body))))

    every, much = bytes(range(256)), bytes(range(256)) * (4 * KIB)
    two = (("x-two", "a"), ("x-two", "b"), ("content-length", "2"))
    return [
        asks("http.fetch", request("/echo", every), answers=echo("POST", "", every)),
        asks("http.fetch", request("/echo", b""), answers=echo("POST", "", b"")),
        asks("http.fetch", request("/echo"), answers=echo("POST", "", b"")),
        asks("http.fetch", request("/echo", much), answers=echo("POST", "", much)),
        asks("http.fetch", request("/echo?a=%F0%9F%A6%80", None, "GET", [("X-Sent", "one")]), answers=echo("GET", "one", b"")),
        asks("http.fetch", request("/twice"), answers=response(404, b"no", *two)),
        asks("http.fetch", request("", method=""), refuses="invalid-url"),
        asks("http.fetch", request(f"/{UNICODE}", None, UNICODE), refuses="invalid-url"),
        asks("http.fetch", request("ftp://probe.test/"), refuses="invalid-url"),
        asks("http.fetch", request("/echo", None, "GET", [("x-sent", "a\r\nx-two: b")]), refuses="invalid-url"),
        asks("http.fetch", request("https://elsewhere.test/"), refuses="not-allowed"),
        asks("http.fetch", request("http://169.254.169.254/latest/meta-data/"), refuses="not-allowed"),
        asks("http.fetch", request("/cut"), refuses="transport"),
    ]


def _headers(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in pairs]


# --- the host platform -----------------------------------------------------------------------------------------------------------------


def ui_proxy(_: Surroundings) -> list[Probe]:
    every, much = bytes(range(256)), bytes(range(256)) * (4 * KIB)
    return [
        asks("ui-proxy.call-route", "/api/echo", every, answers=every),
        asks("ui-proxy.call-route", "/api/echo", much, answers=much),
        asks("ui-proxy.call-route", "/api/echo", b"", answers=b""),
        asks("ui-proxy.call-route", "/api/echo?q=%F0%9F%A6%80", None, answers=b"GET"),
        asks("ui-proxy.call-route", "/api/status/404", None, refuses="route-not-found"),
        asks("ui-proxy.call-route", "/api/status/403", None, refuses="denied"),
        asks("ui-proxy.call-route", "/api/status/400", None, refuses="bad-request"),
        asks("ui-proxy.call-route", "/api/status/500", None, refuses="internal"),
        asks("ui-proxy.call-route", "", None, refuses="bad-request"),
        asks("ui-proxy.call-route", "/api/internal/ext-clients", None, refuses="bad-request"),
        asks("ui-proxy.call-route", f"/api/{UNICODE}?{UNICODE}", None, refuses="bad-request"),
    ]


def invoicing(_: Surroundings) -> list[Probe]:
    def invoice(**changes: Any) -> dict[str, Any]:
        fields = {"client_id": CLIENT, "items": [item()], "invoice_date": None, "due_date": None, "po_number": None}
        return fields | changes

    def item(**changes: Any) -> dict[str, Any]:
        optional = ("is_discount", "discount_type", "applies_to_item_id", "applies_to_service_id")
        return {"service_id": SERVICE, "quantity": 2.5, "description": UNICODE, "rate": 100.0} | dict.fromkeys(optional) | changes

    made = {"invoice_id": INVOICE, "invoice_number": f"1 {UNICODE}", "status": "draft", "subtotal": 0.1, "tax": -0.0, "total": 1e15}
    created = {"success": True, "error": None, "field_errors": None} | made
    refused = dict.fromkeys(created) | {"success": False}
    full = invoice(
        items=[item(is_discount=True, discount_type="percentage", applies_to_service_id=SERVICE), item(is_discount=False)],
        invoice_date="2026-01-31",
        due_date="2026-02-28",
        po_number=UNICODE,
    )
    name = "invoicing.create-manual-invoice"
    return [
        asks(name, invoice(), answers=created),
        asks(name, full, answers=created),
        asks(name, invoice(items=[]), answers=refused | {"error": Like(".+"), "field_errors": Like(".*items.*")}),
        asks(name, invoice(client_id=""), answers=refused | {"error": Like(".+"), "field_errors": Like(".*client.*")}),
        asks(name, invoice(po_number="422"), answers=refused | {"error": Like(".+"), "field_errors": '{"items[0].rate": "too high"}'}),
        asks(name, invoice(po_number="403"), answers=refused | {"error": Like(".+")}),
        asks(name, invoice(po_number="500"), answers=refused | {"error": Like(".+")}),
    ]


def clients(_: Surroundings) -> list[Probe]:
    def page(**changes: Any) -> dict[str, Any]:
        return {"search": None, "include_inactive": None, "page": None, "page_size": None} | changes

    def found(*items: dict[str, Any]) -> dict[str, Any]:
        return {"items": list(items), "total_count": 2**32 - 1, "page": 1, "page_size": 25}

    least = {
        "client_id": CLIENT,
        "client_name": "",
        "client_type": None,
        "is_inactive": False,
        "default_currency_code": None,
        "account_manager_id": None,
        "account_manager_name": None,
        "billing_email": None,
    }
    most = dict.fromkeys(least, UNICODE) | {"client_id": CLIENT, "is_inactive": True}
    return [
        asks("clients.list-clients", page(), answers=found(least, most)),
        asks("clients.list-clients", page(search=UNICODE, include_inactive=False, page=1, page_size=100), answers=found(least, most)),
        asks("clients.list-clients", page(search="none"), answers=found()),
        asks("clients.list-clients", page(page=2**32 - 1), refuses="invalid-input"),
        asks("clients.list-clients", page(page_size=0), refuses="invalid-input"),
        asks("clients.list-clients", page(search="403"), refuses="not-allowed"),
        asks("clients.list-clients", page(search="500"), refuses="internal"),
        asks("clients.get-client", CLIENT, answers=most),
        asks("clients.get-client", ABSENT, answers=None),
        asks("clients.get-client", "", refuses="invalid-input"),
        asks("clients.get-client", UNICODE, refuses="invalid-input"),
        asks("clients.get-client", FORBIDDEN, refuses="not-allowed"),
        asks("clients.get-client", BROKEN, refuses="internal"),
    ]


def services(_: Surroundings) -> list[Probe]:
    def page(**changes: Any) -> dict[str, Any]:
        names = ("search", "item_kind", "is_active", "billing_method", "page", "page_size")
        return dict.fromkeys(names) | changes

    def found(*items: dict[str, Any]) -> dict[str, Any]:
        return {"items": list(items), "total_count": 2**32 - 1, "page": 1, "page_size": 25}

    least = {
        "service_id": SERVICE,
        "service_name": "",
        "item_kind": "service",
        "billing_method": "fixed",
        "service_type_id": None,
        "service_type_name": None,
        "default_rate": 0.0,
        "unit_of_measure": "",
        "is_active": False,
        "sku": None,
    }
    numbers = {"default_rate": -12345.678, "is_active": True}
    most = dict.fromkeys(least, UNICODE) | {"service_id": SERVICE, "item_kind": "product", "billing_method": "usage"} | numbers
    return [
        asks("services.list-services", page(), answers=found(least, most)),
        *(asks("services.list-services", page(item_kind=kind), answers=found(least, most)) for kind in ("service", "product")),
        *(asks("services.list-services", page(billing_method=way), answers=found(least, most)) for way in ("fixed", "hourly", "usage")),
        asks("services.list-services", page(search="none", is_active=True, page=10_000, page_size=1), answers=found()),
        asks("services.list-services", page(page=0), refuses="invalid-input"),
        asks("services.list-services", page(page_size=2**32 - 1), refuses="invalid-input"),
        asks("services.list-services", page(search="403"), refuses="not-allowed"),
        asks("services.list-services", page(search="500"), refuses="internal"),
        asks("services.get-service", SERVICE, answers=most),
        asks("services.get-service", ABSENT, answers=None),
        asks("services.get-service", "", refuses="invalid-input"),
        asks("services.get-service", FORBIDDEN, refuses="not-allowed"),
        asks("services.get-service", BROKEN, refuses="internal"),
    ]


# --- schedules ---------------------------------------------------------------------------------------------------------------------------


def scheduler(_: Surroundings) -> list[Probe]:
    def wish(**named: Any) -> dict[str, Any]:
        return dict.fromkeys(("endpoint", "cron", "timezone", "enabled", "name", "payload")) | named

    said = {"cron": "0 3 * * *", "timezone": "Asia/Tokyo", "enabled": False, "name": UNICODE, "payload": json.dumps({"text": UNICODE})}
    never_run = dict.fromkeys(("last_run_at", "last_run_status", "last_error"))
    kept = said | never_run | {"id": AN_ID, "endpoint_method": "POST", "endpoint_path": "/probe", "created_at": A_TIME}
    made = {"success": True, "schedule_id": AN_ID, "error": None, "field_errors": None}
    wrong = {"success": False, "error": "the schedule is not valid", "field_errors": Like(r'\{"endpoint": "[^"]+", "cron": "[^"]+"\}')}
    unknown = {"success": False, "error": "there is no such schedule"}
    return [
        asks("scheduler.list-schedules", answers=[]),
        asks(
            "scheduler.get-endpoints",
            answers=[{"id": AN_ID, "method": "POST", "path": "/probe", "handler": "probe", "schedulable": True}],
        ),
        asks("scheduler.create-schedule", wish(endpoint="POST /probe", **said), answers=made),
        asks("scheduler.create-schedule", wish(endpoint="/other", cron="0,1 * * * *"), answers=wrong | {"schedule_id": None}),
        asks("scheduler.list-schedules", answers=[kept]),
        asks("scheduler.get-schedule", UNICODE, refuses="not-found"),
        asks("scheduler.update-schedule", UNICODE, wish(enabled=True), answers=unknown | {"field_errors": None}),
        asks("scheduler.delete-schedule", "", answers=unknown),
        asks("scheduler.list-schedules", answers=[kept]),
    ]


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "context": context,
    "config": config,
    "logging": logging,
    "user": user,
    "nobody": nobody,
    "storage": storage,
    "kv": kv,
    "metrics": metrics,
    "events": events,
    "http": http,
    "ui-proxy": ui_proxy,
    "invoicing": invoicing,
    "clients": clients,
    "services": services,
    "secrets": secrets,
    "scheduler": scheduler,
}
