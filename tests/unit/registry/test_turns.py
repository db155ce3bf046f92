"""Turns of an install: a crowd of one waits without a connection, others do not wait, and nothing is left of who came."""

from __future__ import annotations

import asyncio

import pytest

from registry.services.turns import InstallTurns

TENANT, OTHER_TENANT = "t1", "t2"
INSTALL = "7d444840-9dc0-11d1-b245-5ffdce74fad2"


@pytest.mark.parametrize("at_once", [1, 3])
async def test_crowd_of_one_install__so_many_at_once_and_others_beside_them(at_once: int) -> None:
    turns = InstallTurns(at_once)
    running: list[str] = []
    go_on = asyncio.Event()

    async def change(tenant: str) -> None:
        async with turns.of(tenant, INSTALL):
            running.append(tenant)
            await go_on.wait()

    crowd = [asyncio.create_task(change(tenant)) for tenant in (*[TENANT] * 5, OTHER_TENANT)]
    # As often as the loop needs for everybody to come as far as they can.
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(running) == [*[TENANT] * at_once, OTHER_TENANT]
    assert len(turns) == 2
    go_on.set()
    await asyncio.gather(*crowd)
    assert sorted(running) == [*[TENANT] * 5, OTHER_TENANT]
    crowd.clear()
    assert len(turns) == 0


async def test_who_gives_up_waiting__frees_nobody_elses_turn() -> None:
    turns = InstallTurns()
    async with turns.of(TENANT, INSTALL):
        waiting = asyncio.create_task(turns.of(TENANT, INSTALL).acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert turns.of(TENANT, INSTALL).locked()
    async with turns.of(TENANT, INSTALL):
        assert len(turns) == 1
