"""Addresses of the admin REST that a proxy in front would not take for such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.middleware.body_limit import BodyAllowance
from gateway.routes.admin.access import Gate
from tests.fakes.gateway_kit import GatewayKit, gateway_kit
from tests.fakes.raw_http import connect


@dataclass(kw_only=True)
class Face:
    """An admin face of one application that answers everything."""

    app: ASGIApp
    allowances: dict[str, BodyAllowance] = field(default_factory=dict)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("reached")(scope, receive, send)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[GatewayKit]:
    async with gateway_kit(tmp_path) as kit:
        yield kit.with_admin(Face(app=Gate(_answer, authenticator=kit.authenticator)))


async def status_of(kit: GatewayKit, path: str, *, credential: bool = True) -> tuple[int, bytes]:
    authorization = f"Authorization: {kit.bearer()['authorization']}\r\n" if credential else ""
    async with kit.serving() as (host, port), await connect(host, port) as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n".encode())
        answer = await connection.answer()
    return answer.status, answer.body


async def test_the_plain_spelling__reaches(kit: GatewayKit) -> None:
    assert await status_of(kit, "/api/admin/v1/installs?a=%61") == (200, b"reached")


@pytest.mark.parametrize(
    "path",
    [
        "/%61pi/admin/v1/installs",
        "/api/%61dmin/v1/installs",
        "/api/admin/v1/%69nstalls",
        "/api%2fadmin/v1/installs",
        "/api/admin%2Fv1/installs",
        "//api/admin/v1/installs",
        "/api//admin/v1/installs",
        "/api/./admin/v1/installs",
        "/api/ext/../admin/v1/installs",
        "/api/admin/v1/x/../installs",
        "/api/admin/v1//installs",
        "/api/admin/v1/installs%00",
        "/API/ADMIN/V1/installs",
    ],
)
async def test_another_spelling__does_not_reach(kit: GatewayKit, path: str) -> None:
    status, body = await status_of(kit, path)
    assert (status in {400, 404}, b"reached" in body) == (True, False)


async def test_another_spelling_of_a_stranger__says_nothing_about_it(kit: GatewayKit) -> None:
    assert (await status_of(kit, "/api/admin/v1/%69nstalls", credential=False))[0] == 401
