"""The daemon's side of a fake host platform: a broker whose platform capabilities speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.platform.assembly import Platform, PlatformOptions
from runnerd.capabilities.platform.ui_proxy import ApiKeys
from tests.fakes.capabilities import make_broker
from tests.fakes.platform_server import FakePlatform

TOKEN = "service-token-of-the-daemon-1"
CLIENT = "4a1f0f64-5717-4562-b3fc-2c963f66afa6"
SERVICE = "9b2f0f64-5717-4562-b3fc-2c963f66afa7"
CALL_ROUTE = BY_NAME["alga:extension/ui-proxy", "call-route"]
CREATE = BY_NAME["alga:extension/invoicing", "create-manual-invoice"]
LIST_CLIENTS = BY_NAME["alga:extension/clients", "list-clients"]
GET_CLIENT = BY_NAME["alga:extension/clients", "get-client"]
LIST_SERVICES = BY_NAME["alga:extension/services", "list-services"]
GET_SERVICE = BY_NAME["alga:extension/services", "get-service"]

CLIENT_DOCUMENT = {
    "clientId": CLIENT,
    "clientName": "Example Ltd",
    "clientType": "company",
    "isInactive": False,
    "defaultCurrencyCode": "EUR",
    "accountManagerId": None,
    "billingEmail": "bills@example.com",
}
SERVICE_DOCUMENT = {
    "serviceId": SERVICE,
    "serviceName": "Consulting",
    "itemKind": "service",
    "billingMethod": "hourly",
    "serviceTypeId": None,
    "defaultRate": 12000,
    "unitOfMeasure": "hour",
    "isActive": True,
}


def write_token(folder: Path, token: str = TOKEN, *, name: str = "token", mode: int = 0o600) -> Path:
    file = folder / name
    draft = folder / f".{name}"
    draft.write_text(token + "\n")
    draft.chmod(mode)
    draft.replace(file)
    return file


def options_for(folder: Path, base_url: str | None, **changes: Any) -> PlatformOptions:
    facts: dict[str, Any] = {
        "base_url": base_url,
        "token_file": write_token(folder) if base_url is not None else None,
        "proxy_base_url": None,
        "proxy_token_file": None,
        "ca_file": None,
        "production": True,
        "connect_seconds": 2.0,
        "call_seconds": 4.5,
        "calls": 64,
        "calls_per_install": 4,
        "answer_bytes": 1024 * 1024,
        "proxy_answer_bytes": 1024 * 1024,
    }
    return PlatformOptions(**facts | changes)


@asynccontextmanager
async def platform_broker(
    platform: FakePlatform, folder: Path, *, api_keys: ApiKeys | None = None, **changes: Any
) -> AsyncIterator[CapabilityBroker]:
    daemon = Platform(options_for(folder, platform.base_url, **changes), api_keys=api_keys)
    try:
        yield make_broker(*daemon.handlers())
    finally:
        await daemon.aclose()


def page(**changes: Any) -> dict[str, Any]:
    return {"search": None, "include_inactive": None, "page": None, "page_size": None} | changes


def services_page(**changes: Any) -> dict[str, Any]:
    return {"search": None, "item_kind": None, "is_active": None, "billing_method": None, "page": None, "page_size": None} | changes


def item(**changes: Any) -> dict[str, Any]:
    return {
        "service_id": SERVICE,
        "quantity": 2.5,
        "description": "Work",
        "rate": 100.0,
        "is_discount": None,
        "discount_type": None,
        "applies_to_item_id": None,
        "applies_to_service_id": None,
    } | changes


def invoice(**changes: Any) -> dict[str, Any]:
    return {"client_id": CLIENT, "items": [item()], "invoice_date": None, "due_date": None, "po_number": None} | changes
