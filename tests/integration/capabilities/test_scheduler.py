"""The scheduler's six functions through the broker and over the wire's shapes, on real PostgreSQL, as the role of the daemon."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from registry.database import Database, _build_engine
from registry.domain.ids import InstallId
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.services.schedules import DEFAULT_LIMITS, ScheduleLimits, ScheduleService
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import BY_NAME, CREATE_SCHEDULE_INPUT, ENDPOINT_INFO, SCHEDULE_INFO, UPDATE_SCHEDULE_INPUT
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.scheduler import scheduler_handlers
from runnerd.capabilities.values import arguments_from_wire, arguments_to_wire, reply_from_wire, reply_to_wire
from tests.fakes.capabilities import grant_of, make_broker
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, install, new_version, publish

CAPABILITY = "scheduler.manage"
ENDPOINTS = (
    {"method": "POST", "path": "/report", "handler": "report", "schedulable": True},
    {"method": "GET", "path": "/notes/:id", "handler": "note"},
)
READING: tuple[tuple[str, tuple[object, ...]], ...] = (("list-schedules", ()), ("get-schedule", (UNKNOWN_ID,)), ("get-endpoints", ()))
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
async def grants(admin_database: Database) -> tuple[InvocationGrant, InvocationGrant]:
    """One extension, installed by two tenants."""
    await publish(admin_database, new_version(capabilities=[CAPABILITY], endpoints=ENDPOINTS))
    views = [await install(admin_database, tenant, granted=[CAPABILITY]) for tenant in (TENANT, OTHER_TENANT)]
    mine, theirs = (grant_of(CAPABILITY, tenant_id=view.tenant_id, install_id=view.install_id) for view in views)
    return mine, theirs


def broker_over(database: Database, limits: ScheduleLimits = DEFAULT_LIMITS) -> CapabilityBroker:
    return make_broker(scheduler_handlers(ScheduleService(database, limits)))


async def ask(broker: CapabilityBroker, grant: InvocationGrant, name: str, *arguments: object) -> tuple[Any, str | None]:
    """Call as a worker does: nothing passes that the catalog's shapes do not allow, in either direction."""
    function = BY_NAME["alga:extension/scheduler", name]
    sent = arguments_from_wire(function, arguments_to_wire(function, arguments))
    result = await broker.call(grant, function, sent)
    return reply_from_wire(function, reply_to_wire(function, result.value, error=result.error))


def wish(shape: Any = UPDATE_SCHEDULE_INPUT, **named: object) -> dict[str, object]:
    return dict.fromkeys(shape.keys) | named


def creation(**named: object) -> dict[str, object]:
    return wish(CREATE_SCHEDULE_INPUT, **({"endpoint": "POST /report", "cron": "0 3 * * *"} | named))


ARGUMENTS: Mapping[str, tuple[object, ...]] = {
    "create-schedule": (creation(),),
    "update-schedule": (UNKNOWN_ID, wish()),
    "delete-schedule": (UNKNOWN_ID,),
}


async def test_from_creating_to_deleting(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    broker, (mine, _) = broker_over(runner_database), grants
    created, error = await ask(broker, mine, "create-schedule", creation(name="nightly", payload='{"a":1}', timezone="Europe/Berlin"))
    assert (created["success"], created["error"], created["field_errors"], error) == (True, None, None, None)
    schedule_id = created["schedule_id"]
    (listed,), _ = await ask(broker, mine, "list-schedules")
    assert TIME.fullmatch(listed.pop("created_at"))
    assert listed == {
        "id": schedule_id,
        "endpoint_path": "/report",
        "endpoint_method": "POST",
        "name": "nightly",
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "enabled": True,
        "payload": '{"a":1}',
        "last_run_at": None,
        "last_run_status": None,
        "last_error": None,
    }
    # What is not named stays (reference §18.5, 61); an empty payload is cleared (62).
    assert await ask(broker, mine, "update-schedule", schedule_id, wish(cron="0 4 * * *")) == (
        {"success": True, "error": None, "field_errors": None},
        None,
    )
    assert (await ask(broker, mine, "update-schedule", schedule_id, wish(payload="")))[0]["success"]
    found, _ = await ask(broker, mine, "get-schedule", schedule_id)
    assert found == listed | {"cron": "0 4 * * *", "payload": None, "created_at": found["created_at"]}
    assert await ask(broker, mine, "delete-schedule", schedule_id) == ({"success": True, "error": None}, None)
    assert await ask(broker, mine, "get-schedule", schedule_id) == (None, "not-found")
    assert await ask(broker, mine, "list-schedules") == ([], None)


async def test_what_is_wrong_is_said_field_by_field(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    """Reference §18.5, 60: a guest saw only the name of a case."""
    broker, (mine, _) = broker_over(runner_database), grants
    wrong = {"endpoint": "/notes/:id", "cron": "0,1 * * * *", "timezone": "../../etc/passwd", "name": "\x1b", "payload": "{"}
    (made, _) = await ask(broker, mine, "create-schedule", creation())
    for answer, error in (
        await ask(broker, mine, "create-schedule", creation(**wrong)),
        await ask(broker, mine, "update-schedule", made["schedule_id"], wish(**wrong)),
    ):
        assert (answer["success"], answer["error"], answer.get("schedule_id"), error) == (False, "the schedule is not valid", None, None)
        problems = json.loads(answer["field_errors"])
        assert problems.keys() == wrong.keys()
        assert all(isinstance(problem, str) and problem for problem in problems.values())
        assert "passwd" not in answer["field_errors"]


async def test_other_refusals_are_said_without_fields(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    limits = ScheduleLimits(schedules=1, changes_per_minute=4)
    broker, (mine, _) = broker_over(runner_database, limits), grants
    await ask(broker, mine, "create-schedule", creation())
    assert (await ask(broker, mine, "create-schedule", creation()))[0] == {
        "success": False,
        "schedule_id": None,
        "error": "an install has at most 1 schedules",
        "field_errors": None,
    }
    nothing = {"success": False, "error": "there is no such schedule"}
    assert (await ask(broker, mine, "delete-schedule", UNKNOWN_ID))[0] == nothing
    assert (await ask(broker, mine, "update-schedule", UNKNOWN_ID, wish()))[0] == nothing | {"field_errors": None}
    over, _ = await ask(broker, mine, "delete-schedule", UNKNOWN_ID)
    assert over == {"success": False, "error": "an install changes its schedules at most 4 times a minute"}


async def test_the_other_tenant_reads_and_changes_nothing(
    runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]
) -> None:
    broker, (mine, theirs) = broker_over(runner_database), grants
    schedule_id = (await ask(broker, mine, "create-schedule", creation()))[0]["schedule_id"]
    before = await ask(broker, mine, "list-schedules")
    crossed = grant_of(CAPABILITY, tenant_id=theirs.tenant_id, install_id=mine.install_id)
    for grant in (theirs, crossed):
        assert await ask(broker, grant, "list-schedules") == ([], None)
        assert await ask(broker, grant, "get-schedule", schedule_id) == (None, "not-found")
        assert (await ask(broker, grant, "update-schedule", schedule_id, wish(enabled=False)))[0]["success"] is False
        assert (await ask(broker, grant, "delete-schedule", schedule_id))[0]["success"] is False
    assert (await ask(broker, crossed, "create-schedule", creation()))[0]["success"] is False
    assert await ask(broker, crossed, "get-endpoints") == (None, "denied")
    assert await ask(broker, mine, "list-schedules") == before


async def test_endpoints(runner_database: Database, grants: tuple[InvocationGrant, InvocationGrant]) -> None:
    broker, (mine, theirs) = broker_over(runner_database), grants
    endpoints, _ = await ask(broker, mine, "get-endpoints")
    assert [{name: one[name] for name in ENDPOINT_INFO.keys if name != "id"} for one in endpoints] == [
        {"method": "POST", "path": "/report", "handler": "report", "schedulable": True},
        {"method": "GET", "path": "/notes/:id", "handler": "note", "schedulable": False},
    ]
    # They say which endpoint of which version, nothing of an install.
    assert (await ask(broker, theirs, "get-endpoints"))[0] == endpoints


async def test_the_longest_list_is_an_answer(
    runner_database: Database, database_urls: Mapping[str, str], grants: tuple[InvocationGrant, InvocationGrant]
) -> None:
    broker, (mine, _) = broker_over(runner_database, ScheduleLimits(changes_per_minute=100)), grants
    largest = '["' + "x" * 99_996 + '"]'
    answers = [(await ask(broker, mine, "create-schedule", creation(payload=largest)))[0] for _ in range(22)]
    assert [answer["success"] for answer in answers] == [True] * 20 + [False] * 2
    for number in range(30):
        assert (await ask(broker, mine, "create-schedule", creation(name=f"{number:0128}")))[0]["success"], number
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update extension_schedule set last_error = repeat('é', 4000), last_run_at = now(), last_run_status = 'error'")
    listed, error = await ask(broker, mine, "list-schedules")
    assert (len(listed), error) == (50, None)
    assert all(one.keys() == set(SCHEDULE_INFO.keys) and TIME.fullmatch(one["last_run_at"]) for one in listed)


async def test_not_granted__nothing_is_asked_and_everything_is_explained(runner_database: Database) -> None:
    broker = broker_over(runner_database)
    ungranted = grant_of()
    for name, arguments in READING:
        assert await ask(broker, ungranted, name, *arguments) == (None, "denied")
    for name in ARGUMENTS:
        function = BY_NAME["alga:extension/scheduler", name]
        result = await broker.call(ungranted, function, ARGUMENTS[name])
        assert isinstance(result.value, dict)
        assert (result.value["success"], result.value["error"]) == (False, "this extension has no permission for it")
        assert result.denial is not None
        assert (result.denial["capability"], result.denial["why"]) == ("cap:scheduler.manage", "not_declared")


async def test_an_install_that_is_gone_has_nothing(runner_database: Database) -> None:
    broker, gone = broker_over(runner_database), grant_of(CAPABILITY, install_id=InstallId(UNKNOWN_ID))
    assert await ask(broker, gone, "list-schedules") == ([], None)
    assert await ask(broker, gone, "get-endpoints") == (None, "denied")
    answer, _ = await ask(broker, gone, "create-schedule", creation())
    assert (answer["success"], answer["error"]) == (False, "the extension is not installed or not enabled")


async def test_a_database_that_does_not_answer_is_internal(tmp_path: Path) -> None:
    absent = Database(_build_engine(f"postgresql+psycopg://ext_runner@/none?host={tmp_path}", 1))
    broker, grant = broker_over(absent), grant_of(CAPABILITY)
    try:
        for name, arguments in READING:
            assert await ask(broker, grant, name, *arguments) == (None, "internal")
        for name, arguments in ARGUMENTS.items():
            answer, _ = await ask(broker, grant, name, *arguments)
            assert (answer["success"], answer["error"]) == (False, "the host could not do it; try again later")
    finally:
        await absent.aclose()
