"""What guests measure and publish, through the daemon as it is started in earnest."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from typing import Any

import psycopg

from extrunner.runner.v1 import execution_pb2
from registry.database import Database
from registry.domain.measurements import MAX_NAMES, MAX_SERIES
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.repositories.executions import ExecutionRepository
from registry.services.measurements import MeasurementQuery
from tests.fakes.daemon_process import Machine, add_extension, started
from tests.fakes.dispatch_kit import TENANT
from tests.fakes.guests import component


def series_of(page: str) -> set[str]:
    """Return names and labels of every series on a page of metrics, without their values."""
    return {line.rpartition(" ")[0] for line in page.partition("\r\n\r\n")[2].splitlines() if line and not line.startswith("#")}


def measured_in(page: str) -> float:
    """Return how many host calls of metrics a page counts."""
    counted = [line for line in page.splitlines() if line.startswith('extrunner_host_calls_total{capability="metrics.emit"')]
    return sum(float(line.rpartition(" ")[2]) for line in counted)


async def test_guest_with_names_and_labels_without_end__makes_no_series_of_the_operators(
    machine: Machine, admin_database: Database
) -> None:
    view = await add_extension(machine, admin_database, "wild", component("measure_wildly"), capabilities=["metrics.emit"])
    # Nine hundred host calls in one: more than a busy machine does in the usual time.
    patience = {"RUNNERD_LIMITS__DEFAULTS__WALL_TIME_MS": "30000", "RUNNERD_LIMITS__DEFAULTS__CPU_TIME_MS": "10000"}
    async with started(machine, **patience) as daemon:
        await daemon.execute("wild")
        before = after = await daemon.get("/metrics")
        for _ in range(40):
            if measured_in(after) >= 2_500:
                break
            await daemon.execute("wild")
            after = await daemon.get("/metrics")
        assert measured_in(after) >= 2_500
        assert series_of(after) == series_of(before)
        # A name that begins like one of ours stays the guest's.
        assert not re.search(r"extrunner_[a-p]{16}", after)
    assert daemon.process.returncode == 0
    assert not re.search(r"extrunner_[a-p]{16}", json.dumps(daemon.lines))
    rows = await MeasurementQuery(admin_database).list_measurements(TENANT, view.install_id)
    assert 0 < len(rows) <= MAX_SERIES
    assert len({row.series.name for row in rows}) <= MAX_NAMES


async def test_events__carry_their_depth_and_a_caller_cannot_lower_it(
    machine: Machine, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    view = await add_extension(machine, admin_database, "speaker", component("publish_event"), capabilities=["events.emit"])
    async with started(machine) as daemon:
        ids = [(await daemon.execute("speaker")).completed.body.decode()]
        for _ in range(3):
            ids.append((await daemon.execute("speaker", follows=ids[-1])).completed.body.decode())
        # The fifth would be too deep; so is one that follows from an event that nobody names, or that is not there.
        for follows in (ids[-1], "", ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1")):
            assert (await daemon.execute("speaker", follows=follows)).completed.status == 501, "denied"
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        rows = connection.execute("select id::text, depth, topic, cause_id::text from extension_event order by sequence").fetchall()
    topic = "ext.com.example.speaker.note.added"
    assert rows == [(one, depth, topic, cause) for one, depth, cause in zip(ids, (1, 2, 3, 4), (None, *ids), strict=False)]
    async with admin_database.tenant_session(TENANT) as session:
        records = await ExecutionRepository(session, TENANT).list_executions(limit=100, before=None)
    denied: list[Any] = [denial for record in records for denial in record.denials]
    assert [(denial["capability"], denial["why"]) for denial in denied] == [("cap:events.emit", "event_depth")] * 3
    assert {record.install_id for record in records} == {view.install_id}


async def test_ungranted__is_denied_explained_and_counted(machine: Machine, admin_database: Database) -> None:
    await add_extension(machine, admin_database, "speaker", component("publish_event"), capabilities=["events.emit"], granted=[])
    async with started(machine) as daemon:
        answer = await daemon.execute("speaker")
        assert answer.completed.status == 501
        assert 'extrunner_capability_denials_total{capability="events.emit"} 1.0' in await daemon.get("/metrics")
    async with admin_database.tenant_session(TENANT) as session:
        record = await ExecutionRepository(session, TENANT).find(answer.execution_id)
    assert record is not None
    assert [(denial["capability"], denial["why"]) for denial in record.denials] == [("cap:events.emit", "not_granted")]
    assert "grants" in record.denials[0]["change"]


async def test_personal_data__of_a_call__stands_in_the_guests_own_log_and_nowhere_else(
    machine: Machine, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    """T42: at DEBUG, too, the daemon's log and metrics repeat nothing of what a user is, sends or has logged by an extension."""
    await add_extension(machine, admin_database, "talker", component("talk"), capabilities=["user.read"])
    said, unsaid = b"MARK-said", b"MARK-body"
    body = b"".join(struct.pack("<BH", kind, len(text)) + text for kind, text in ((3, said), (0, unsaid), (1, said), (2, said)))
    user = execution_pb2.User(user_id="u-1", email="MARK-email@example.com", name="MARK-name", client_name="MARK-client")
    user.additional_fields["MARK-field"] = "MARK-value"
    request = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id="req-1", tenant_id=TENANT, extension_id="com.example.talker", user=user),
        http=execution_pb2.HttpRequest(method="POST", path="/MARK-path", query="q=MARK-query", body=body),
    )
    request.http.headers.add(name="user-agent", value="MARK-header")
    async with started(machine, RUNNERD_LOG_LEVEL="DEBUG") as daemon:
        answer = await daemon.stub.Execute(request, metadata=daemon.metadata(), timeout=60)
        assert answer.completed.status == 200
        trapped = execution_pb2.ExecuteRequest()
        trapped.CopyFrom(request)
        trapped.http.body = body + struct.pack("<BH", 5, 0)
        assert (await daemon.stub.Execute(trapped, metadata=daemon.metadata(), timeout=60)).HasField("trapped")
        assert "MARK" not in await daemon.get("/metrics")
    assert any(line["event"] == "execution" for line in daemon.lines)
    assert "MARK" not in json.dumps(daemon.lines)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        rows = [row[0] for row in connection.execute("select to_jsonb(l) from extension_execution_log l").fetchall()]
    assert len(rows) == 2
    for row in rows:
        assert [line["message"] for line in row.pop("log")] == ["MARK-said"] * 3
        assert row["user_id"] == "u-1"
        assert "MARK" not in json.dumps(row)
