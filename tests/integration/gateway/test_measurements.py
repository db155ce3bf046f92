"""What an install measured, through the admin REST: as JSON, in Prometheus' text format, and forgotten."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from registry.database import Database
from registry.domain.ids import InstallId, TenantId
from registry.domain.measurements import MeasurementKind
from registry.services.measurements import MeasurementRecorder
from tests.integration.gateway.conftest import AdminKit
from tests.integration.gateway.test_admin import installed, published, reason

COUNTER, GAUGE, HISTOGRAM = MeasurementKind


async def measured(admin: AdminKit, runner_database: Database) -> str:
    """Install, measure one series of each kind, and return the address."""
    await published(admin)
    install_id = (await installed(admin))["install_id"]
    daemon = MeasurementRecorder(runner_database)
    for kind, name, value, labels in (
        (COUNTER, "orders_total", 2.0, (("place", "a/b"),)),
        (GAUGE, "depth", -1.5, ()),
        (HISTOGRAM, "seconds", 0.3, ()),
        (HISTOGRAM, "seconds", 1e12, ()),
    ):
        daemon.record(TenantId("t1"), InstallId(install_id), kind=kind, name=name, value=value, labels=labels)
    await daemon.flush()
    return f"/installs/{install_id}/metrics"


async def test_as_json__every_series_with_its_parts(admin: AdminKit, runner_database: Database) -> None:
    address = await measured(admin, runner_database)
    items = {item["name"]: item for item in (await admin.ask("GET", address, "ext:read")).json()["items"]}
    assert (items["orders"]["kind"], items["orders"]["value"], items["orders"]["labels"]) == ("counter", 2.0, {"place": "a/b"})
    assert (items["depth"]["kind"], items["depth"]["value"], items["depth"]["count"]) == ("gauge", -1.5, None)
    buckets = items["seconds"]["buckets"]
    assert (items["seconds"]["count"], buckets["0.1"], buckets["0.5"], buckets["100000000"]) == (
        2,
        0,
        1,
        1,
    )
    assert buckets["+Inf"] == 2


async def test_as_prometheus_reads_it__with_the_prefix_of_extensions(admin: AdminKit, runner_database: Database) -> None:
    address = await measured(admin, runner_database)
    answer = await admin.ask("GET", address, "ext:read", params={"format": "prometheus"})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {name: family.type for name, family in families.items()} == {
        "ext_depth": "gauge",
        "ext_orders": "counter",
        "ext_seconds": "histogram",
    }
    (orders,) = families["ext_orders"].samples
    assert (orders.name, orders.labels, orders.value) == ("ext_orders_total", {"place": "a/b"}, 2.0)
    seconds = {(sample.name, sample.labels.get("le")): sample.value for sample in families["ext_seconds"].samples}
    assert seconds["ext_seconds_bucket", "+Inf"] == seconds["ext_seconds_count", None] == 2
    assert seconds["ext_seconds_sum", None] == 1e12 + 0.3


async def test_operators_metrics__hold_nothing_of_it(admin: AdminKit, runner_database: Database) -> None:
    await measured(admin, runner_database)
    page = (await admin.client.get("/metrics")).text
    assert "extrunner_gateway" in page
    assert "ext_orders" not in page
    assert "orders" not in page


async def test_forgotten__by_who_manages__and_by_nobody_of_another_tenant(admin: AdminKit, runner_database: Database) -> None:
    address = await measured(admin, runner_database)
    for method in ("GET", "DELETE"):
        assert reason(await admin.ask(method, address, "ext:manage", tenant="t2")) == (404, "EXTENSION_NOT_INSTALLED")
    assert reason(await admin.ask("DELETE", address, "ext:read")) == (403, "PERMISSION_MISSING")
    assert reason(await admin.ask("GET", address, "ext:read", params={"format": "html"})) == (400, "INVALID_REQUEST")
    assert (await admin.ask("DELETE", address, "ext:manage")).status_code == 204
    assert (await admin.ask("GET", address, "ext:read")).json() == {"items": [], "next_cursor": None}
