"""alga:extension/clients and services: what extensions may read of a tenant's clients and services (cap:client.read, cap:service.read).

Input is checked before anything is sent. Whatever the platform answers becomes a value of the guest's types or a case of its error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from runnerd.capabilities.arguments import record_of
from runnerd.capabilities.catalog import SERVICE_BILLING_METHOD, SERVICE_ITEM_KIND
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.platform.client import PlatformAnswer, PlatformError
from runnerd.capabilities.platform.documents import Document, DocumentError, parse_object
from runnerd.capabilities.platform.identity import explain_refusal
from runnerd.capabilities.platform.internal import InternalApi, is_id, is_refused, is_rejected, log_failure
from runnerd.capabilities.results import HostResult, failed, succeeded

DEFAULT_PAGE_SIZE: Final = 25
MOST_PAGE_SIZE: Final = 100
MOST_PAGE: Final = 10_000
MOST_SEARCH_CHARACTERS: Final = 200
_CLIENTS: Final = "alga:extension/clients"
_SERVICES: Final = "alga:extension/services"
_NOT_ALLOWED: Final = "not-allowed"
_INVALID_INPUT: Final = "invalid-input"
_INTERNAL: Final = "internal"

Read = Callable[[Document], object]


def reading_handlers(api: InternalApi) -> Mapping[int, Handler]:
    """Return the handlers of both interfaces, by number of the function."""

    async def list_clients(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        content = _list_input(arguments[0], ("include_inactive",))
        return await _read(grant, "clients", "list", content, lambda answer: _page(answer, client_summary))

    async def get_client(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        return await _read(grant, "clients", "get", _get_input("clientId", arguments[0]), lambda answer: _item(answer, client_summary))

    async def list_services(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        content = _list_input(arguments[0], ("item_kind", "is_active", "billing_method"))
        return await _read(grant, "services", "list", content, lambda answer: _page(answer, service_summary))

    async def get_service(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        return await _read(grant, "services", "get", _get_input("serviceId", arguments[0]), lambda answer: _item(answer, service_summary))

    async def _read(grant: InvocationGrant, interface: str, operation: str, content: Mapping[str, object] | None, read: Read) -> HostResult:
        if content is None:
            return failed(_INVALID_INPUT)
        try:
            answer = await api.ask(grant, interface, operation, {"input": content})
            return succeeded(read(parse_object(answer.body))) if answer.is_success else _refusal(grant, answer)
        except (PlatformError, DocumentError) as error:
            log_failure(grant, f"{interface}.{operation}", str(error))
            return failed(_INTERNAL)

    handlers: Mapping[tuple[str, str], Callable[[InvocationGrant, tuple[object, ...]], Awaitable[HostResult]]] = {
        (_CLIENTS, "list-clients"): list_clients,
        (_CLIENTS, "get-client"): get_client,
        (_SERVICES, "list-services"): list_services,
        (_SERVICES, "get-service"): get_service,
    }
    return {function_named(*name).number: handler for name, handler in handlers.items()}


def _refusal(grant: InvocationGrant, answer: PlatformAnswer) -> HostResult:
    if is_refused(answer):
        return explain_refusal(grant, failed(_NOT_ALLOWED))
    return failed(_INVALID_INPUT if is_rejected(answer) else _INTERNAL)


# --- input --------------------------------------------------------------------------------------------------------------------------------


def _list_input(argument: object, filters: tuple[str, ...]) -> dict[str, object] | None:
    """Return the input of a list as the platform wants it; None where it is not acceptable."""
    value = record_of(argument)
    search = value["search"]
    page = 1 if value["page"] is None else value["page"]
    page_size = DEFAULT_PAGE_SIZE if value["page_size"] is None else value["page_size"]
    if not 1 <= page <= MOST_PAGE or not 1 <= page_size <= MOST_PAGE_SIZE:
        return None
    if search is not None and (len(search) > MOST_SEARCH_CHARACTERS or "\0" in search):
        return None
    wanted = {_camel(name): value[name] for name in filters if value[name] is not None}
    return ({"search": search} if search else {}) | wanted | {"page": page, "pageSize": page_size}


def _get_input(name: str, value: object) -> dict[str, object] | None:
    return {name: str(value).lower()} if is_id(str(value)) else None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


# --- answers ------------------------------------------------------------------------------------------------------------------------------


def _page(answer: Document, read: Read) -> dict[str, object]:
    return {
        "items": [read(item) for item in answer.nested_list("items", most=MOST_PAGE_SIZE)],
        "total_count": answer.u32("totalCount"),
        "page": answer.u32("page"),
        "page_size": answer.u32("pageSize"),
    }


def _item(answer: Document, read: Read) -> object:
    item = answer.optional_nested("item")
    return None if item is None else read(item)


def client_summary(item: Document) -> dict[str, object]:
    """Read a `client-summary`.

    Raises:
        DocumentError: it is not one.
    """
    return {
        "client_id": item.text("clientId"),
        "client_name": item.text("clientName"),
        "client_type": item.optional_text("clientType"),
        "is_inactive": item.boolean("isInactive"),
        "default_currency_code": item.optional_text("defaultCurrencyCode"),
        "account_manager_id": item.optional_text("accountManagerId"),
        "account_manager_name": item.optional_text("accountManagerName"),
        "billing_email": item.optional_text("billingEmail"),
    }


def service_summary(item: Document) -> dict[str, object]:
    """Read a `service-summary`.

    Raises:
        DocumentError: it is not one.
    """
    return {
        "service_id": item.text("serviceId"),
        "service_name": item.text("serviceName"),
        "item_kind": item.one_of("itemKind", SERVICE_ITEM_KIND.cases),
        "billing_method": item.one_of("billingMethod", SERVICE_BILLING_METHOD.cases),
        "service_type_id": item.optional_text("serviceTypeId"),
        "service_type_name": item.optional_text("serviceTypeName"),
        "default_rate": item.number("defaultRate"),
        "unit_of_measure": item.text("unitOfMeasure"),
        "is_active": item.boolean("isActive"),
        "sku": item.optional_text("sku"),
    }
