"""A tenant that sends bodies slowly and never ends them: the room for bodies is everybody's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fakes.gateway_kit import EXTENSION, GatewayKit, gateway_kit
from tests.fakes.raw_http import RawConnection, connect

KIB = 1024


async def hoard(kit: GatewayKit, address: tuple[str, int], *, tenant: str, size: int) -> RawConnection:
    """Send `size` bytes of a body that is one byte longer, and hold the connection."""
    connection = await connect(*address)
    head = f"POST /api/ext/{EXTENSION} HTTP/1.1\r\nHost: x\r\nAuthorization: {kit.bearer(tenant=tenant)['authorization']}\r\n"
    await connection.send(f"{head}Content-Length: {size + 1}\r\n\r\n".encode() + b"x" * size)
    return connection


async def held(kit: GatewayKit, size: int) -> None:
    async with asyncio.timeout(5):
        while kit.endpoint._buffered_bytes != size:  # noqa: ASYNC110 - the server has nothing to wait for.
            await asyncio.sleep(0.01)


async def test_one_tenants_unfinished_bodies__leave_room_for_another(tmp_path: Path) -> None:
    async with (
        gateway_kit(tmp_path, buffered_bytes=96 * KIB, tenant_bytes=48 * KIB, body_seconds=30) as kit,
        kit.serving() as address,
    ):
        first = await hoard(kit, address, tenant="greedy", size=30 * KIB)
        await held(kit, 30 * KIB)
        async with await hoard(kit, address, tenant="greedy", size=30 * KIB) as second:
            answer = await second.answer()
            assert (answer.status, answer.problem["reason"]) == (503, "OVERLOADED")
        async with await hoard(kit, address, tenant="modest", size=40 * KIB) as third:
            await third.send(b"x")
            assert (await third.answer()).status == 200
        await first.send(b"x")
        assert (await first.answer()).status == 200
        async with first:
            pass
        await held(kit, 0)
        assert not kit.endpoint._buffered_of


async def test_all_tenants_together__still_bounded(tmp_path: Path) -> None:
    async with (
        gateway_kit(tmp_path, buffered_bytes=64 * KIB, tenant_bytes=48 * KIB, body_seconds=30) as kit,
        kit.serving() as address,
    ):
        async with await hoard(kit, address, tenant="a", size=40 * KIB):
            await held(kit, 40 * KIB)
            async with await hoard(kit, address, tenant="b", size=40 * KIB) as second:
                assert (await second.answer()).problem["reason"] == "OVERLOADED"
        await held(kit, 0)
