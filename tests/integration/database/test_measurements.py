from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import psycopg
import pytest

from registry.database import Database, Session
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import InstallId
from registry.domain.measurements import MAX_NAMES, MAX_SERIES, Measurement, MeasurementKind
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.repositories.installs import InstallView
from registry.services.installing import InstallService
from registry.services.measurements import Loss, MeasurementCase, MeasurementQuery, MeasurementRecorder, MeasurementRefusalError
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, install, new_version, publish

COUNTER, GAUGE, HISTOGRAM = MeasurementKind
SEED = 20_261_128
Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


class Fleet:
    """Daemons of one install, and what the tenant sees."""

    def __init__(self, admin: Database, runner: Database, view: InstallView) -> None:
        self.query = MeasurementQuery(admin)
        self.view = view
        self.losses: Counter[str] = Counter()
        self.runner = runner

    def daemon(self, database: Any = None, **settings: Any) -> MeasurementRecorder:
        def lost(loss: Loss, series: int) -> None:
            self.losses[loss] += series

        return MeasurementRecorder(cast("Database", database or self.runner), on_lost=lost, **settings)

    def record(self, daemon: MeasurementRecorder, kind: MeasurementKind, name: str, value: float = 1.0, **labels: str) -> None:
        daemon.record(self.view.tenant_id, self.view.install_id, kind=kind, name=name, value=value, labels=tuple(labels.items()))

    async def rows(self) -> dict[Key, Measurement]:
        found = await self.query.list_measurements(self.view.tenant_id, self.view.install_id)
        return {(one.series.name, one.series.labels): one for one in found}


@pytest.fixture
async def fleet(admin_database: Database, runner_database: Database) -> Fleet:
    await publish(admin_database)
    return Fleet(admin_database, runner_database, await install(admin_database))


class Troubled:
    """A database in trouble: it does not answer, or the connection is lost while it commits."""

    def __init__(self, database: Database, *, commits: bool) -> None:
        self.database = database
        self.commits = commits
        self.is_well = False

    @asynccontextmanager
    async def tenant_session(self, tenant_id: str, **settings: Any) -> AsyncIterator[Session]:
        if self.is_well or self.commits:
            async with self.database.tenant_session(tenant_id, **settings) as session:
                yield session
        if not self.is_well:
            raise RefusalError(Reason.REGISTRY_UNAVAILABLE, "away")


async def test_two_daemons__whatever_they_measure__add_up_as_a_dictionary_does(fleet: Fleet) -> None:
    chance = random.Random(SEED)
    daemons = [fleet.daemon(), fleet.daemon()]
    sums: defaultdict[Key, float] = defaultdict(float)
    counts: Counter[Key] = Counter()
    gauges: dict[Key, float] = {}
    for _ in range(400):
        daemon, kind, value = chance.choice(daemons), chance.choice(list(MeasurementKind)), float(chance.randrange(2_000))
        labels = {"place": str(chance.randrange(3))} if chance.random() < 0.5 else {}
        name = f"{kind.value}_{chance.randrange(2)}"
        fleet.record(daemon, kind, name, value, **labels)
        key = (name, tuple(labels.items()))
        if kind is GAUGE:
            gauges[key] = value
        else:
            sums[key] += value
            counts[key] += 1
        if chance.random() < 0.05:
            await chance.choice(daemons).flush()
    for daemon in daemons:
        await daemon.flush()
    rows = await fleet.rows()
    assert {key: row.value for key, row in rows.items()} == dict(sums) | gauges
    assert {key: sum(row.buckets) for key, row in rows.items() if row.buckets} == {
        key: count for key, count in counts.items() if key[0].startswith("histogram")
    }
    assert not fleet.losses


async def test_fleet__has_no_more_names_and_series_than_one_daemon(fleet: Fleet) -> None:
    first, second = fleet.daemon(), fleet.daemon()
    for number in range(MAX_NAMES):
        fleet.record(first, COUNTER, f"a{number}")
        fleet.record(second, COUNTER, f"b{number}")
    await first.flush()
    await second.flush()
    assert {name for name, _ in await fleet.rows()} == {f"a{number}" for number in range(MAX_NAMES)}
    assert fleet.losses == {Loss.REFUSED: MAX_NAMES}
    with pytest.raises(MeasurementRefusalError) as refused:
        fleet.record(second, COUNTER, "b0")
    assert refused.value.case is MeasurementCase.QUOTA_EXCEEDED
    third = fleet.daemon()
    for number in range(MAX_SERIES):
        fleet.record(third, COUNTER, "a0", place=str(number))
    await third.flush()
    assert len(await fleet.rows()) == MAX_SERIES


async def test_kind__of_a_name__is_that_of_its_first_use_in_the_fleet(fleet: Fleet) -> None:
    first, second = fleet.daemon(), fleet.daemon()
    fleet.record(first, COUNTER, "thing", 5.0)
    fleet.record(second, GAUGE, "thing", 7.0)
    await first.flush()
    await second.flush()
    (row,) = (await fleet.rows()).values()
    assert (row.series.kind, row.value) == (COUNTER, 5.0)
    for daemon in (first, second):
        with pytest.raises(MeasurementRefusalError) as refused:
            fleet.record(daemon, GAUGE, "thing")
        assert refused.value.case is MeasurementCase.INVALID


async def test_hostile_guest__ten_thousand_names_and_values__makes_twenty_and_a_hundred(fleet: Fleet) -> None:
    daemon = fleet.daemon()
    said: Counter[str] = Counter()
    for number in range(10_000):
        for kind, name, labels in ((GAUGE, f"name_{number}", {}), (COUNTER, "name", {"user": str(number)})):
            try:
                fleet.record(daemon, kind, name, 1.0, **labels)
            except MeasurementRefusalError as refusal:
                said[refusal.case] += 1
    assert daemon.gathered == MAX_SERIES
    assert said == {MeasurementCase.QUOTA_EXCEEDED: 20_000 - MAX_SERIES}
    await daemon.flush()
    rows = await fleet.rows()
    assert len(rows) == MAX_SERIES
    assert len({name for name, _ in rows}) == MAX_NAMES


async def test_database_away__nothing_is_lost_and_one_tenant_does_not_take_the_others_room(fleet: Fleet) -> None:
    trouble = Troubled(fleet.runner, commits=False)
    daemon = fleet.daemon(trouble, max_gathered=8)
    fleet.record(daemon, COUNTER, "orders", 2.0)
    await daemon.flush()
    fleet.record(daemon, COUNTER, "orders", 3.0)
    fleet.record(daemon, GAUGE, "depth", 9.0)
    with pytest.raises(MeasurementRefusalError) as refused:
        fleet.record(daemon, COUNTER, "more")
    assert refused.value.case is MeasurementCase.INTERNAL
    daemon.record(OTHER_TENANT, InstallId(UNKNOWN_ID), kind=COUNTER, name="theirs", value=1.0)
    trouble.is_well = True
    await daemon.flush()
    assert {name: row.value for (name, _), row in (await fleet.rows()).items()} == {"orders": 5.0, "depth": 9.0}
    # The other tenant has no such install.
    assert (daemon.gathered, fleet.losses) == (0, {Loss.REFUSED: 1})


async def test_connection_lost_at_commit__is_not_repeated(fleet: Fleet) -> None:
    trouble = Troubled(fleet.runner, commits=True)
    daemon = fleet.daemon(trouble)
    fleet.record(daemon, COUNTER, "orders", 2.0)
    await daemon.flush()
    assert (daemon.gathered, fleet.losses) == (0, {Loss.UNCERTAIN: 1})
    trouble.is_well = True
    await daemon.flush()
    assert [row.value for row in (await fleet.rows()).values()] == [2.0]


async def test_shutdown__writes_what_waits_or_counts_it(fleet: Fleet) -> None:
    daemon = fleet.daemon()
    await daemon.start()
    fleet.record(daemon, COUNTER, "orders", 2.0)
    assert await daemon.aclose() == 0
    assert len(await fleet.rows()) == 1
    lost = fleet.daemon(Troubled(fleet.runner, commits=False))
    await lost.start()
    fleet.record(lost, COUNTER, "orders", 2.0)
    assert await lost.aclose() == 1
    assert fleet.losses == {Loss.SHUTDOWN: 1}


async def test_query__another_tenant_or_no_install__is_told_nothing(fleet: Fleet, admin_database: Database) -> None:
    daemon = fleet.daemon()
    fleet.record(daemon, COUNTER, "orders")
    await daemon.flush()
    await install(admin_database, OTHER_TENANT)
    for tenant, install_id in ((OTHER_TENANT, fleet.view.install_id), (TENANT, UNKNOWN_ID), (TENANT, "no id"), (TENANT, "")):
        for question in (fleet.query.list_measurements(tenant, install_id), fleet.query.forget(tenant, install_id, actor="evil")):
            with pytest.raises(RefusalError) as refused:
                await question
            assert refused.value.reason is Reason.EXTENSION_NOT_INSTALLED
    assert len(await fleet.rows()) == 1


async def test_forgetting__frees_names_and_kinds_and_is_audited(fleet: Fleet, database_urls: Mapping[str, str]) -> None:
    daemon = fleet.daemon()
    fleet.record(daemon, COUNTER, "thing")
    await daemon.flush()
    assert await fleet.query.forget(TENANT, fleet.view.install_id, actor="ada") == 1
    another = fleet.daemon()
    fleet.record(another, GAUGE, "thing", 3.0)
    await another.flush()
    (row,) = (await fleet.rows()).values()
    assert (row.series.kind, row.value) == (GAUGE, 3.0)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        audit = connection.execute("select actor, detail from extension_audit_log where action = 'install.forget_metrics'").fetchall()
    assert audit == [("ada", {"series": 1})]


async def test_purged_install__leaves_no_series_and_takes_none(
    fleet: Fleet, admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(name="com.acme.other"))
    other = await install(admin_database, name="com.acme.other", granted=())
    daemon = fleet.daemon()
    fleet.record(daemon, COUNTER, "orders")
    await daemon.flush()
    fleet.record(daemon, COUNTER, "orders")
    daemon.record(other.tenant_id, other.install_id, kind=COUNTER, name="orders", value=1.0)
    await InstallService(admin_database).uninstall(TENANT, fleet.view.install_id, purge=True, actor="ada")
    await daemon.flush()
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        rows = connection.execute("select install_id::text, value from extension_measurement").fetchall()
    assert rows == [(other.install_id, 1.0)]
