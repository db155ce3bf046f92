"""Who answers the probing guests outside of the daemon, all on loopback: a web server with a name, and a host platform."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.fakes.egress_kit import name_server, read_request, says
from tests.fakes.platform_kit import CLIENT, SERVICE, write_token
from tests.fakes.platform_server import Received, document, fake_platform, response, saying

WEB_NAME: Final = "probe.test"
WEB_PORTS: Final = tuple(range(28_190, 28_206))
"""Fixed, because manifests name them and bundles are cached; on an address of loopback that nobody else uses."""
UNICODE: Final = "Zażółć ключ 𐍈 🦀"
"""Two, three and four bytes of UTF-8; the last two are surrogate pairs in JavaScript."""
INVOICE: Final = "7d3f0f64-5717-4562-b3fc-2c963f66afa8"
ABSENT, FORBIDDEN, BROKEN = (f"{number}0000000-5717-4562-b3fc-2c963f66afa6" for number in (1, 2, 3))


@asynccontextmanager
async def probe_servers(folder: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Serve. Return the address of the web server as guests write it, and the settings of the daemon that reaches both."""
    async with AsyncExitStack() as stack:
        host = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        port = await stack.enter_async_context(_web(host))
        names = await stack.enter_async_context(name_server({WEB_NAME: says(host)}))
        platform = await stack.enter_async_context(fake_platform())
        platform.answer = _platform
        yield (
            f"http://{WEB_NAME}:{port}",
            {
                "RUNNERD_EGRESS__NAME_SERVERS": json.dumps([f"127.0.0.1:{names.port}"]),
                "RUNNERD_EGRESS__ALLOWED_RANGES": json.dumps(["127.0.0.0/8"]),
                "RUNNERD_EGRESS__PORTS": json.dumps(WEB_PORTS),
                "RUNNERD_EGRESS__SCHEMES": json.dumps(["http", "https"]),
                "RUNNERD_PLATFORM__BASE_URL": platform.base_url,
                "RUNNERD_PLATFORM__TOKEN_FILE": str(write_token(folder, name="platform-token")),
            },
        )


# --- the web ---------------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _web(host: str) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while (request := await read_request(reader)) is not None:
                answer = _web_answer(request)
                writer.write(answer)
                await writer.drain()
                if not answer:
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await _listen(serve, host)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(set(tasks))


async def _listen(serve: Any, host: str) -> asyncio.Server:
    for port in WEB_PORTS[:-1]:
        try:
            return await asyncio.start_server(serve, host, port, limit=64 * 1024)
        except OSError:
            continue
    return await asyncio.start_server(serve, host, WEB_PORTS[-1])


def _web_answer(request: bytes) -> bytes:
    """Answer by path: an echo, two headers of one name, nothing at all."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    sent = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if target.startswith("/cut"):
        return b""
    if target.startswith("/twice"):
        return response(404, b"no", ("x-two", "a"), ("x-two", "b"))
    return response(200, body, ("x-method", method), ("x-sent", sent.get("x-sent", "")))


# --- the platform ----------------------------------------------------------------------------------------------------------------------


async def _platform(received: Received, writer: asyncio.StreamWriter) -> None:
    path = received.target.partition("?")[0]
    if path.startswith("/api/status/"):
        await saying(int(path.rpartition("/")[2]))(received, writer)
    elif path == "/api/echo":
        await saying(200, received.body if received.method == "POST" else received.method.encode())(received, writer)
    else:
        status, content = _internal(path.split("/")[3], received.json)
        await document(status, content)(received, writer)


def _internal(route: str, asked: dict[str, Any]) -> tuple[int, object]:
    if route == "ext-invoicing":
        return _invoice(asked.get("poNumber"))
    given, (least, most) = asked["input"], _SUMMARIES[route]
    if asked["operation"] == "list":
        if given.get("search") in {"403", "500"}:
            return int(given["search"]), {"error": "secret detail"}
        items = [] if given.get("search") == "none" else [least, most]
        return 200, {"items": items, "totalCount": 2**32 - 1, "page": 1, "pageSize": 25}
    wanted = given.get("clientId", given.get("serviceId"))
    if wanted in {FORBIDDEN, BROKEN}:
        return (403 if wanted == FORBIDDEN else 500), {"error": "secret detail"}
    return 200, {"item": None if wanted == ABSENT else most}


def _invoice(order: str | None) -> tuple[int, object]:
    if order in {"403", "500"}:
        return int(order), {"error": "secret detail"}
    if order == "422":
        return 422, {"success": False, "fieldErrors": {"items[0].rate": "too high"}}
    totals = {"subtotal": 0.1, "tax": -0.0, "total": 1e15}
    return 201, {"success": True, "invoice": {"invoiceId": INVOICE, "invoiceNumber": f"1 {UNICODE}", "status": "draft", **totals}}


_SUMMARIES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "ext-clients": (
        {"clientId": CLIENT, "clientName": "", "isInactive": False},
        {
            "clientId": CLIENT,
            "isInactive": True,
            **dict.fromkeys(
                ("clientName", "clientType", "defaultCurrencyCode", "accountManagerId", "accountManagerName", "billingEmail"), UNICODE
            ),
        },
    ),
    "ext-services": (
        {
            "serviceId": SERVICE,
            "serviceName": "",
            "itemKind": "service",
            "billingMethod": "fixed",
            "defaultRate": 0,
            "unitOfMeasure": "",
            "isActive": False,
        },
        {
            "serviceId": SERVICE,
            "itemKind": "product",
            "billingMethod": "usage",
            "defaultRate": -12345.678,
            "isActive": True,
            **dict.fromkeys(("serviceName", "serviceTypeId", "serviceTypeName", "unitOfMeasure", "sku"), UNICODE),
        },
    ),
}
