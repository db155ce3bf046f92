"""Every host function of the guest worlds in one table: shapes, capability, who answers it, how it says "denied". `FUNCTIONS` is the table.

The worker builds its linker from this table and turns each brokered call into a HostCall frame; the modules beside it are the daemon's half
(N35). Standard library only: a worker imports it, and so does the daemon. The WIT texts in `wit/` say the same; a test compares them.

Numbers are the wire's: append, never reuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runnerd.capabilities.shapes import (
    BOOL,
    DATA,
    FLOAT,
    TEXT,
    U16,
    U32,
    U64,
    Data,
    Enum,
    ListOf,
    Option,
    Record,
    Shape,
    Text,
    TupleOf,
    enum,
    record,
)

OPTIONAL_TEXT = Option(TEXT)

# --- alga:extension/types: names, orders and cases are those of existing extensions; none may change (CONTRACT §4) --------------------

CONTEXT_DATA = record(
    "context-data", request_id=OPTIONAL_TEXT, tenant_id=TEXT, extension_id=TEXT, install_id=OPTIONAL_TEXT, version_id=OPTIONAL_TEXT
)
HTTP_HEADER = record("http-header", name=TEXT, value=TEXT)
HEADERS = ListOf(HTTP_HEADER, 256)
BODY = Data(32 * 1024 * 1024)
HTTP_REQUEST = record("http-request", method=TEXT, url=TEXT, headers=HEADERS, body=Option(DATA))
HTTP_RESPONSE = record("http-response", status=U16, headers=HEADERS, body=Option(BODY))
INCOMING_HTTP_REQUEST = record("http-request", method=TEXT, url=TEXT, headers=HEADERS, body=Option(BODY))
EXECUTE_REQUEST = record("execute-request", context=CONTEXT_DATA, http=INCOMING_HTTP_REQUEST)
EXECUTE_RESPONSE = record("execute-response", status=U16, headers=HEADERS, body=Option(BODY))
SECRET_ERROR = enum("secret-error", "missing denied expired internal")
HTTP_ERROR = enum("http-error", "invalid-url not-allowed transport internal")
STORAGE_ERROR = enum("storage-error", "missing conflict denied internal")
STORAGE_ENTRY = record("storage-entry", namespace=TEXT, key=TEXT, value=DATA, revision=Option(U64))
PROXY_ERROR = enum("proxy-error", "route-not-found denied bad-request internal")
USER_DATA = record("user-data", tenant_id=TEXT, client_name=TEXT, user_id=TEXT, user_email=TEXT, user_name=TEXT, user_type=TEXT)
USER_DATA_V2 = record(
    "user-data-v2",
    tenant_id=TEXT,
    client_name=TEXT,
    user_id=TEXT,
    user_email=TEXT,
    user_name=TEXT,
    user_type=TEXT,
    client_id=OPTIONAL_TEXT,
    additional_fields=ListOf(TupleOf((TEXT, TEXT)), 64),
)
USER_ERROR = enum("user-error", "not-available not-allowed")
SCHEDULER_ERROR = enum("scheduler-error", "not-found validation-failed quota-exceeded denied internal")
SCHEDULE_INFO = record(
    "schedule-info",
    id=TEXT,
    endpoint_path=TEXT,
    endpoint_method=TEXT,
    name=OPTIONAL_TEXT,
    cron=TEXT,
    timezone=TEXT,
    enabled=BOOL,
    payload=OPTIONAL_TEXT,
    last_run_at=OPTIONAL_TEXT,
    last_run_status=OPTIONAL_TEXT,
    last_error=OPTIONAL_TEXT,
    created_at=OPTIONAL_TEXT,
)
ENDPOINT_INFO = record("endpoint-info", id=TEXT, method=TEXT, path=TEXT, handler=TEXT, schedulable=BOOL)
CREATE_SCHEDULE_INPUT = record(
    "create-schedule-input",
    endpoint=TEXT,
    cron=TEXT,
    timezone=OPTIONAL_TEXT,
    enabled=Option(BOOL),
    name=OPTIONAL_TEXT,
    payload=OPTIONAL_TEXT,
)
CREATE_SCHEDULE_RESULT = record(
    "create-schedule-result", success=BOOL, schedule_id=OPTIONAL_TEXT, error=OPTIONAL_TEXT, field_errors=OPTIONAL_TEXT
)
UPDATE_SCHEDULE_INPUT = record(
    "update-schedule-input",
    endpoint=OPTIONAL_TEXT,
    cron=OPTIONAL_TEXT,
    timezone=OPTIONAL_TEXT,
    enabled=Option(BOOL),
    name=OPTIONAL_TEXT,
    payload=OPTIONAL_TEXT,
)
UPDATE_SCHEDULE_RESULT = record("update-schedule-result", success=BOOL, error=OPTIONAL_TEXT, field_errors=OPTIONAL_TEXT)
DELETE_SCHEDULE_RESULT = record("delete-schedule-result", success=BOOL, error=OPTIONAL_TEXT)
DISCOUNT_TYPE = enum("discount-type", "percentage fixed")
MANUAL_INVOICE_ITEM_INPUT = record(
    "manual-invoice-item-input",
    service_id=TEXT,
    quantity=FLOAT,
    description=TEXT,
    rate=FLOAT,
    is_discount=Option(BOOL),
    discount_type=Option(DISCOUNT_TYPE),
    applies_to_item_id=OPTIONAL_TEXT,
    applies_to_service_id=OPTIONAL_TEXT,
)
CREATE_MANUAL_INVOICE_INPUT = record(
    "create-manual-invoice-input",
    client_id=TEXT,
    items=ListOf(MANUAL_INVOICE_ITEM_INPUT, 256),
    invoice_date=OPTIONAL_TEXT,
    due_date=OPTIONAL_TEXT,
    po_number=OPTIONAL_TEXT,
)
CREATE_MANUAL_INVOICE_RESULT = record(
    "create-manual-invoice-result",
    success=BOOL,
    invoice_id=OPTIONAL_TEXT,
    invoice_number=OPTIONAL_TEXT,
    status=OPTIONAL_TEXT,
    subtotal=Option(FLOAT),
    tax=Option(FLOAT),
    total=Option(FLOAT),
    error=OPTIONAL_TEXT,
    field_errors=OPTIONAL_TEXT,
)
CLIENT_READ_ERROR = enum("client-read-error", "not-allowed invalid-input internal")
SERVICE_READ_ERROR = enum("service-read-error", "not-allowed invalid-input internal")
CLIENT_SUMMARY = record(
    "client-summary",
    client_id=TEXT,
    client_name=TEXT,
    client_type=OPTIONAL_TEXT,
    is_inactive=BOOL,
    default_currency_code=OPTIONAL_TEXT,
    account_manager_id=OPTIONAL_TEXT,
    account_manager_name=OPTIONAL_TEXT,
    billing_email=OPTIONAL_TEXT,
)
CLIENTS_LIST_INPUT = record(
    "clients-list-input", search=OPTIONAL_TEXT, include_inactive=Option(BOOL), page=Option(U32), page_size=Option(U32)
)
CLIENTS_LIST_RESULT = record("clients-list-result", items=ListOf(CLIENT_SUMMARY), total_count=U32, page=U32, page_size=U32)
SERVICE_ITEM_KIND = enum("service-item-kind", "service product")
SERVICE_BILLING_METHOD = enum("service-billing-method", "fixed hourly usage")
SERVICE_SUMMARY = record(
    "service-summary",
    service_id=TEXT,
    service_name=TEXT,
    item_kind=SERVICE_ITEM_KIND,
    billing_method=SERVICE_BILLING_METHOD,
    service_type_id=OPTIONAL_TEXT,
    service_type_name=OPTIONAL_TEXT,
    default_rate=FLOAT,
    unit_of_measure=TEXT,
    is_active=BOOL,
    sku=OPTIONAL_TEXT,
)
SERVICES_LIST_INPUT = record(
    "services-list-input",
    search=OPTIONAL_TEXT,
    item_kind=Option(SERVICE_ITEM_KIND),
    is_active=Option(BOOL),
    billing_method=Option(SERVICE_BILLING_METHOD),
    page=Option(U32),
    page_size=Option(U32),
)
SERVICES_LIST_RESULT = record("services-list-result", items=ListOf(SERVICE_SUMMARY), total_count=U32, page=U32, page_size=U32)

# --- extrunner:host@0.1.0: our additions ----------------------------------------------------------------------------------------------

LABEL = record("label", name=Text(256), value=Text(1024))
LABELS = ListOf(LABEL, 16)
METRIC_ERROR = enum("metric-error", "invalid denied quota-exceeded internal")
SETTING = record("setting", key=TEXT, value=TEXT)
KV_ENTRY = record("entry", key=TEXT, value=DATA, metadata=OPTIONAL_TEXT, revision=U64, expires_at=Option(U64))
KV_PUT_OPTIONS = record("put-options", expected_revision=Option(U64), create_only=BOOL, ttl_seconds=Option(U32), metadata=OPTIONAL_TEXT)
KV_ITEM = record("item", key=TEXT, value=DATA, metadata=OPTIONAL_TEXT, ttl_seconds=Option(U32))
KV_PAGE = record("page", entries=ListOf(KV_ENTRY), next_cursor=OPTIONAL_TEXT)
KV_ERROR = enum("kv-error", "missing conflict invalid denied quota-exceeded internal")
EVENT = record("event", topic=Text(1024), content_type=Text(256), data=DATA, key=Option(Text(1024)))
EVENT_ERROR = enum("event-error", "invalid denied too-large quota-exceeded internal")


@dataclass(frozen=True, kw_only=True)
class HostFunction:
    """One function that a guest may import."""

    number: int
    """On the wire, in HostCall.function."""
    interface: str
    """Interface as imported, without its version."""
    name: str
    params: tuple[tuple[str, Shape], ...]
    capability: str
    """Without prefix; must be in force for the call, else `denied` is the answer."""
    result: Shape | None = None
    """The value, or the (ok) value where `error` is set; None where there is none."""
    error: Enum | None = None
    """Set where the function returns result<result, error>."""
    denied: object = None
    """Without the capability: the case of `error`, or the value where the function has no error."""
    local: bool = False
    """Answered in the worker, without a frame."""
    effectful: bool = False
    """May change something outside the invocation; a call that made one is never run again."""

    @property
    def qualified_name(self) -> str:
        """Interface and name, as in "alga:extension/storage.get"."""
        return f"{self.interface}.{self.name}"

    @property
    def carries_bytes(self) -> bool:
        """Whether its values hold list<u8>, which the bridge carries in images (`runnerd/engine/bridge.py`)."""
        shapes = [shape for _, shape in self.params]
        return any(map(_has_data, shapes if self.result is None else [*shapes, self.result]))

    @property
    def unacceptable(self) -> object:
        """What is answered, like `denied`, where an argument is too large for its shape. Never leaves the worker."""
        if self.error is not None:
            return next((case for case in _UNACCEPTABLE if case in self.error.cases), self.denied)
        if isinstance(self.result, Record) and "success" in self.result.keys:
            return _result(self.result, "an argument is too large")
        return self.denied


def _has_data(shape: Shape) -> bool:
    match shape:
        case Data():
            return True
        case Option(inner=inner) | ListOf(item=inner):
            return _has_data(inner)
        case TupleOf(items=items):
            return any(map(_has_data, items))
        case Record():
            return any(_has_data(field) for _, field in shape.fields)
        case _:
            return False


_ALGA = "alga:extension/"
_HOST = "extrunner:host/"
_UNACCEPTABLE = ("too-large", "invalid", "invalid-input", "bad-request", "validation-failed", "internal")


def _result(shape: Record, error: str = "this extension has no permission for it") -> dict[str, object]:
    """Say no in a result record that has `success` and `error`."""
    return dict.fromkeys(shape.keys) | {"success": False, "error": error}


def _function(number: int, name: str, params: tuple[tuple[str, Shape], ...], capability: str, **rest: object) -> HostFunction:
    interface, _, function = name.rpartition(".")
    return HostFunction(number=number, interface=interface, name=function, params=params, capability=capability, **rest)  # type: ignore[arg-type]


_KEY = (("key", TEXT),)
_NAMESPACE_KEY = (("namespace", TEXT), ("key", TEXT))
_MESSAGE = (("message", TEXT),)
_METRIC = (("name", Text(256)), ("value", FLOAT), ("labels", LABELS))
_SCHEDULE_ID = (("schedule-id", TEXT),)
_STORED: dict[str, object] = {"error": STORAGE_ERROR, "denied": "denied"}
_SCHEDULED: dict[str, object] = {"error": SCHEDULER_ERROR, "denied": "denied"}
_MEASURED: dict[str, object] = {"error": METRIC_ERROR, "denied": "denied", "effectful": True}
_KV: dict[str, object] = {"error": KV_ERROR, "denied": "denied"}
_CLIENTS: dict[str, object] = {"error": CLIENT_READ_ERROR, "denied": "not-allowed"}
_SERVICES: dict[str, object] = {"error": SERVICE_READ_ERROR, "denied": "not-allowed"}
_NOBODY: dict[str, object] = dict.fromkeys(CONTEXT_DATA.keys) | {"tenant_id": "", "extension_id": ""}
_USER: dict[str, object] = {"error": USER_ERROR, "denied": "not-allowed"}

# fmt: off
FUNCTIONS: tuple[HostFunction, ...] = (
    _function(1, f"{_ALGA}context.get-context", (), "context.read", result=CONTEXT_DATA, denied=_NOBODY, local=True),
    _function(2, f"{_ALGA}secrets.get", _KEY, "secrets.get", result=TEXT, error=SECRET_ERROR, denied="denied"),
    _function(3, f"{_ALGA}secrets.list-keys", (), "secrets.get", result=ListOf(TEXT), denied=[]),
    _function(4, f"{_ALGA}http.fetch", (("request", HTTP_REQUEST),), "http.fetch", result=HTTP_RESPONSE, error=HTTP_ERROR,
              denied="not-allowed", effectful=True),
    _function(5, f"{_ALGA}storage.get", _NAMESPACE_KEY, "storage.kv", result=STORAGE_ENTRY, **_STORED),
    _function(6, f"{_ALGA}storage.put", (("entry", STORAGE_ENTRY),), "storage.kv", result=STORAGE_ENTRY, effectful=True, **_STORED),
    _function(7, f"{_ALGA}storage.delete", _NAMESPACE_KEY, "storage.kv", effectful=True, **_STORED),
    _function(8, f"{_ALGA}storage.list-entries", (("namespace", TEXT), ("cursor", OPTIONAL_TEXT)), "storage.kv",
              result=ListOf(STORAGE_ENTRY), **_STORED),
    _function(9, f"{_ALGA}logging.log-info", _MESSAGE, "log.emit", local=True),
    _function(10, f"{_ALGA}logging.log-warn", _MESSAGE, "log.emit", local=True),
    _function(11, f"{_ALGA}logging.log-error", _MESSAGE, "log.emit", local=True),
    _function(12, f"{_ALGA}ui-proxy.call-route", (("route", TEXT), ("payload", Option(DATA))), "ui.proxy", result=BODY,
              error=PROXY_ERROR, denied="denied", effectful=True),
    _function(13, f"{_ALGA}user.get-user", (), "user.read", result=USER_DATA, **_USER),
    _function(14, f"{_ALGA}user-v2.get-user", (), "user.read", result=USER_DATA_V2, **_USER),
    _function(15, f"{_ALGA}scheduler.list-schedules", (), "scheduler.manage", result=ListOf(SCHEDULE_INFO), **_SCHEDULED),
    _function(16, f"{_ALGA}scheduler.get-schedule", _SCHEDULE_ID, "scheduler.manage", result=Option(SCHEDULE_INFO), **_SCHEDULED),
    _function(17, f"{_ALGA}scheduler.create-schedule", (("input", CREATE_SCHEDULE_INPUT),), "scheduler.manage",
              result=CREATE_SCHEDULE_RESULT, denied=_result(CREATE_SCHEDULE_RESULT), effectful=True),
    _function(18, f"{_ALGA}scheduler.update-schedule", (*_SCHEDULE_ID, ("input", UPDATE_SCHEDULE_INPUT)), "scheduler.manage",
              result=UPDATE_SCHEDULE_RESULT, denied=_result(UPDATE_SCHEDULE_RESULT), effectful=True),
    _function(19, f"{_ALGA}scheduler.delete-schedule", _SCHEDULE_ID, "scheduler.manage",
              result=DELETE_SCHEDULE_RESULT, denied=_result(DELETE_SCHEDULE_RESULT), effectful=True),
    _function(20, f"{_ALGA}scheduler.get-endpoints", (), "scheduler.manage", result=ListOf(ENDPOINT_INFO), **_SCHEDULED),
    _function(21, f"{_ALGA}invoicing.create-manual-invoice", (("input", CREATE_MANUAL_INVOICE_INPUT),), "invoice.manual.create",
              result=CREATE_MANUAL_INVOICE_RESULT, denied=_result(CREATE_MANUAL_INVOICE_RESULT), effectful=True),
    _function(22, f"{_ALGA}clients.list-clients", (("input", CLIENTS_LIST_INPUT),), "client.read", result=CLIENTS_LIST_RESULT, **_CLIENTS),
    _function(23, f"{_ALGA}clients.get-client", (("client-id", TEXT),), "client.read", result=Option(CLIENT_SUMMARY), **_CLIENTS),
    _function(24, f"{_ALGA}services.list-services", (("input", SERVICES_LIST_INPUT),), "service.read", result=SERVICES_LIST_RESULT,
              **_SERVICES),
    _function(25, f"{_ALGA}services.get-service", (("service-id", TEXT),), "service.read", result=Option(SERVICE_SUMMARY), **_SERVICES),
    _function(26, f"{_HOST}metrics.counter-add", _METRIC, "metrics.emit", **_MEASURED),
    _function(27, f"{_HOST}metrics.gauge-set", _METRIC, "metrics.emit", **_MEASURED),
    _function(28, f"{_HOST}metrics.histogram-record", _METRIC, "metrics.emit", **_MEASURED),
    _function(29, f"{_HOST}config.get", _KEY, "config.read", result=OPTIONAL_TEXT),
    _function(30, f"{_HOST}config.list", (), "config.read", result=ListOf(SETTING), denied=[]),
    _function(31, f"{_HOST}kv.get", _NAMESPACE_KEY, "storage.kv", result=KV_ENTRY, **_KV),
    _function(32, f"{_HOST}kv.put", (*_NAMESPACE_KEY, ("value", DATA), ("options", KV_PUT_OPTIONS)), "storage.kv", result=U64,
              effectful=True, **_KV),
    _function(33, f"{_HOST}kv.delete", (*_NAMESPACE_KEY, ("expected-revision", Option(U64))), "storage.kv", effectful=True, **_KV),
    _function(34, f"{_HOST}kv.list", (("namespace", TEXT), ("prefix", OPTIONAL_TEXT), ("limit", Option(U32)), ("cursor", OPTIONAL_TEXT)),
              "storage.kv", result=KV_PAGE, **_KV),
    _function(35, f"{_HOST}kv.put-many", (("namespace", TEXT), ("items", ListOf(KV_ITEM, 20))), "storage.kv", result=ListOf(U64, 20),
              effectful=True, **_KV),
    _function(36, f"{_HOST}events.publish", (("event", EVENT),), "events.emit", result=TEXT, error=EVENT_ERROR, denied="denied",
              effectful=True),
)
# fmt: on

BY_NUMBER: Mapping[int, HostFunction] = MappingProxyType({function.number: function for function in FUNCTIONS})
BY_NAME: Mapping[tuple[str, str], HostFunction] = MappingProxyType(
    {(function.interface, function.name): function for function in FUNCTIONS}
)
INTERFACES: frozenset[str] = frozenset(function.interface for function in FUNCTIONS) | {"alga:extension/types"}
"""Every interface of the worlds, without version. `types` has no functions."""
