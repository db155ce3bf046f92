"""Connections are one install's, under one state of its policy (T34); memory and places are shared fairly."""

from __future__ import annotations

import asyncio

import pytest

from runnerd.capabilities.outgoing import EgressError, Failure
from runnerd.egress.client import ClientSettings
from tests.fakes.egress_kit import LOOPBACK, egress, ok, raw_server, read_request, says, until

MIB = 1024 * 1024
ZONE = {"good.example": says("127.0.0.1", ttl=60)}


async def test_installs__never_share_a_connection() -> None:
    async with raw_server(ok()) as server, egress(ZONE, allowed_ranges=LOOPBACK) as kit:
        url = f"http://good.example:{server.port}/"
        for _ in range(3):
            for install in ("a", "b"):
                await kit.get(url, install_id=install)
        # Six requests over two connections: each install uses its own again.
        assert (len(server.requests), len(server.accepted)) == (6, 2)


async def test_policy_changes__idle_connections_of_the_old_one_close_and_running_requests_end() -> None:
    arrived, going = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader)) is not None:
            if b"/slow" in request:
                arrived.set()
                await going.wait()
            writer.write(ok())
            await writer.drain()

    async with raw_server(serve) as server, egress(ZONE, allowed_ranges=LOOPBACK) as kit:
        url = f"http://good.example:{server.port}/"
        await kit.get(url, generation="1")
        assert (len(server.accepted), len(server.closed)) == (1, 0)
        await kit.get(url, generation="2")
        await until(lambda: server.closed == server.accepted[:1])
        slow = asyncio.ensure_future(kit.get(f"{url}slow", generation="2"))
        async with asyncio.timeout(30):
            await arrived.wait()
        await kit.get(url, generation="3")
        assert len(server.closed) == 1
        going.set()
        assert (await slow).status == 200
        await until(lambda: len(server.closed) == 2)
        assert len(server.accepted) == 3


async def test_bodies__of_one_tenant_leave_room_for_others() -> None:
    settings = ClientSettings(buffered_bytes=4 * MIB)
    async with raw_server(ok(b"x" * (MIB - 1_000))) as server, egress(ZONE, settings=settings, allowed_ranges=LOOPBACK) as kit:
        url = f"http://good.example:{server.port}/"
        assert (await kit.get(url)).status == 200
        with pytest.raises(EgressError) as caught:
            await kit.get(url, method="POST", body=b"x" * (MIB + 1))
        assert caught.value.failure is Failure.UNAVAILABLE
        # What was held is given back, whatever the end.
        for _ in range(8):
            assert (await kit.get(url)).status == 200
            assert await kit.failure(url, method="POST", body=b"x" * 10_000) == "unavailable"
        assert not kit.client._held
        assert not kit.client._running
