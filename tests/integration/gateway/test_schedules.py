"""Schedules of an install, through the admin REST: seen, stopped, let go and deleted, and by whom not."""

from __future__ import annotations

from typing import Any

import pytest

from registry.database import Database
from registry.services.schedules import ScheduleRefusalError, ScheduleService, ScheduleWish
from tests.fakes.registry_rows import UNKNOWN_ID
from tests.integration.gateway.conftest import AdminKit
from tests.integration.gateway.test_admin import installed, published, reason

ENDPOINTS = [{"method": "POST", "path": "/report", "handler": "report", "schedulable": True}]
CAPABILITY = "cap:scheduler.manage"


async def scheduled(admin: AdminKit, schedules: ScheduleService) -> tuple[str, str, str]:
    """Publish, install and schedule; return the install, the address of its schedules, and the schedule."""
    await published(admin, capabilities=[CAPABILITY], api={"endpoints": ENDPOINTS})
    install_id = (await installed(admin, granted=[CAPABILITY]))["install_id"]
    wish = ScheduleWish(endpoint="POST /report", cron="0 3 * * *", name="nightly", payload='{"a":1}')
    made = await schedules.create("t1", install_id, wish)
    return install_id, f"/installs/{install_id}/schedules", made.schedule_id


async def items(admin: AdminKit, address: str) -> list[dict[str, Any]]:
    answer = await admin.ask("GET", address, "ext:manage")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_listed_stopped_let_go_and_deleted(admin: AdminKit, runner_database: Database) -> None:
    schedules = ScheduleService(runner_database)
    install_id, address, schedule_id = await scheduled(admin, schedules)
    (shown,) = await items(admin, address)
    assert {name: shown[name] for name in shown if not name.endswith("_at")} == {
        "schedule_id": schedule_id,
        "name": "nightly",
        "endpoint": "POST /report",
        "has_endpoint": True,
        "cron": "0 3 * * *",
        "timezone": "UTC",
        "is_active": True,
        "enabled": True,
        "stopped_by": None,
        "payload": '{"a":1}',
        "last_run_status": None,
        "last_error": None,
    }
    stopped = (await admin.ask("PATCH", f"{address}/{schedule_id}", "ext:manage", json={"enabled": False})).json()
    assert (stopped["is_active"], stopped["enabled"]) == (False, True)
    assert stopped["stopped_by"]
    with pytest.raises(ScheduleRefusalError) as caught:
        await schedules.update("t1", install_id, schedule_id, ScheduleWish(enabled=True))
    assert set(caught.value.fields) == {"enabled"}
    let_go = (await admin.ask("PATCH", f"{address}/{schedule_id}", "ext:manage", json={"enabled": True})).json()
    assert (let_go["is_active"], let_go["stopped_by"]) == (True, None)
    assert (await admin.ask("DELETE", f"{address}/{schedule_id}", "ext:manage")).status_code == 204
    assert await items(admin, address) == []
    assert reason(await admin.ask("DELETE", f"{address}/{schedule_id}", "ext:manage")) == (404, "NOT_FOUND")


async def test_another_tenant_s_or_no_schedule__is_not_found(admin: AdminKit, runner_database: Database) -> None:
    _, address, schedule_id = await scheduled(admin, ScheduleService(runner_database))
    before = await items(admin, address)
    theirs = (await installed(admin, tenant="t2", granted=[CAPABILITY]))["install_id"]
    stop = {"json": {"enabled": False}}
    for path, tenant, why in (
        (f"{address}/{schedule_id}", "t2", "EXTENSION_NOT_INSTALLED"),
        (f"/installs/{theirs}/schedules/{schedule_id}", "t2", "NOT_FOUND"),
        (f"/installs/{theirs}/schedules/{schedule_id}", "t1", "EXTENSION_NOT_INSTALLED"),
        (f"{address}/{UNKNOWN_ID}", "t1", "NOT_FOUND"),
        (f"{address}/x%00", "t1", "INVALID_REQUEST"),
        (f"{address}/x'--", "t1", "NOT_FOUND"),
    ):
        for method, arguments in (("PATCH", stop), ("DELETE", {})):
            answer = await admin.ask(method, path, "ext:manage", tenant=tenant, **arguments)
            assert reason(answer) == (400 if why == "INVALID_REQUEST" else 404, why), (method, path)
    assert reason(await admin.ask("GET", address, "ext:manage", tenant="t2")) == (404, "EXTENSION_NOT_INSTALLED")
    assert (await admin.ask("GET", f"/installs/{theirs}/schedules", "ext:manage", tenant="t2")).json()["items"] == []
    assert await items(admin, address) == before


async def test_change__says_exactly_whether_it_may_run(admin: AdminKit, runner_database: Database) -> None:
    _, address, schedule_id = await scheduled(admin, ScheduleService(runner_database))
    bodies: list[Any] = [{}, {"enabled": None}, {"enabled": "no"}, {"enabled": 0}, {"enabled": False, "cron": "* * * * *"}, [], None]
    for body in bodies:
        answer = await admin.ask("PATCH", f"{address}/{schedule_id}", "ext:manage", json=body)
        assert reason(answer) == (400, "INVALID_REQUEST"), body
    (shown,) = await items(admin, address)
    assert shown["is_active"] is True


async def test_operator__stops_a_named_tenant_s(admin: AdminKit, runner_database: Database) -> None:
    _, address, schedule_id = await scheduled(admin, ScheduleService(runner_database))
    scope = {"tenant_id": "t1"}
    answer = await admin.operate("PATCH", f"{address}/{schedule_id}", params=scope, json={"enabled": False})
    assert answer.json()["is_active"] is False
