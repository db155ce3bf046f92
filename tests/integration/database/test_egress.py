"""What the registry says about the hosts that an install may reach: declared, left by the tenant, counted for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from registry.database import Database
from registry.domain.egress import DEFAULT_PORTS, EgressRule, SecretBinding
from registry.domain.errors import Reason, RefusalError
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.services.installing import InstallService
from registry.services.resolution import Resolver
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, install, new_version, publish

NAME = "com.acme.notes"
DECLARED = ({"host": "api.example.com", "ports": [443, 8443], "schemes": ["https"]}, {"host": "*.example.org"})
RULES = (EgressRule(host="api.example.com", ports=(443, 8443)), EgressRule(host="*.example.org", ports=DEFAULT_PORTS))


async def _refused(attempt: Awaitable[object], reason: Reason) -> None:
    with pytest.raises(RefusalError) as caught:
        await attempt
    assert caught.value.reason is reason


async def test_declared_hosts__granted_for_their_manifest__reach_the_daemon(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    resolved = await Resolver(runner_database, ttl_seconds=0).resolve(TENANT, NAME)
    assert (resolved.egress, view.egress) == (view.egress, resolved.egress)
    assert (resolved.egress.rules, resolved.egress.hosts, resolved.egress.count_until) == (RULES, None, None)


async def test_declared_hosts__consent_is_for_another_manifest__are_none(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update tenant_extension_install set consented_digest = %s", ["sha256:" + "0" * 64])
    resolver = Resolver(runner_database, ttl_seconds=0)
    assert (await resolver.resolve(TENANT, NAME)).egress.rules == ()
    await InstallService(admin_database).set_grants(TENANT, view.install_id, granted=["http.fetch"], actor="a")
    assert (await resolver.resolve(TENANT, NAME)).egress.rules == RULES


@pytest.mark.parametrize(
    "hosts", [[], ["api.example.com"], ["*.example.org"], ["a.example.org", "*.b.example.org"], ["api.example.com", "api.example.com"]]
)
async def test_set_egress_hosts__within_what_is_declared__is_kept(admin_database: Database, hosts: list[str]) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service = InstallService(admin_database)
    changed = await service.set_egress_hosts(TENANT, view.install_id, hosts=hosts, actor="a")
    assert changed.egress.hosts == tuple(sorted(set(hosts)))
    assert changed.egress.rules == RULES
    assert (await service.set_egress_hosts(TENANT, view.install_id, hosts=None, actor="a")).egress.hosts is None


@pytest.mark.parametrize(
    "hosts",
    [
        ["example.org"],
        ["*.api.example.com"],
        ["*.example.com"],
        ["evil-example.org"],
        ["*.org"],
        ["*"],
        ["API.example.com"],
        ["api.example.com."],
        ["api.example.com\n"],
        ["https://api.example.com"],
        ["api.example.com:443"],
        [""],
        ["api.example.com"] * 257,
    ],
)
async def test_set_egress_hosts__beyond_or_malformed__is_refused(admin_database: Database, hosts: Collection[str]) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service = InstallService(admin_database)
    await _refused(service.set_egress_hosts(TENANT, view.install_id, hosts=hosts, actor="a"), Reason.INVALID_REQUEST)
    await _refused(service.install(OTHER_TENANT, NAME, granted=["http.fetch"], egress_hosts=hosts, actor="a"), Reason.INVALID_REQUEST)
    assert (await service.get(TENANT, view.install_id)).egress.hosts is None


async def test_install__with_hosts__has_them_from_the_first_moment(admin_database: Database) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    service = InstallService(admin_database)
    view = await service.install(TENANT, NAME, granted=["http.fetch"], egress_hosts=["api.example.com"], actor="a")
    assert view.egress.hosts == ("api.example.com",)


async def test_set_egress_count__up_to_fourteen_days__is_audited_and_ends(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service, resolver = InstallService(admin_database), Resolver(runner_database, ttl_seconds=0)
    await service.set_egress_count(TENANT, view.install_id, duration=timedelta(days=14), actor="operator")
    egress = (await resolver.resolve(TENANT, NAME)).egress
    now = datetime.now(UTC)
    assert egress.counts_at(now)
    assert not egress.counts_at(now + timedelta(days=14, minutes=1))
    for duration in (timedelta(days=14, seconds=1), timedelta(seconds=-1)):
        await _refused(service.set_egress_count(TENANT, view.install_id, duration=duration, actor="operator"), Reason.INVALID_REQUEST)
    await service.set_egress_count(TENANT, view.install_id, duration=timedelta(0), actor="operator")
    assert not (await resolver.resolve(TENANT, NAME)).egress.counts_at(datetime.now(UTC))
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        rows = connection.execute(
            "select detail from extension_audit_log where action = 'install.egress_count' order by created_at, id"
        ).fetchall()
    assert [detail["until"] is not None for (detail,) in rows] == [True, False]


async def test_count_mode__a_date_that_no_service_writes__is_no_permission(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    await install(admin_database, granted=["http.fetch"])
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        connection.execute("update tenant_extension_install set egress_count_until = now() + interval '30 days'")
    assert not (await Resolver(runner_database, ttl_seconds=0).resolve(TENANT, NAME)).egress.counts_at(datetime.now(UTC))


BINDING = SecretBinding(secret="api_key", header="authorization", host="api.example.com")


async def test_set_egress_secrets__to_declared_hosts__reach_the_daemon_and_are_audited(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service, resolver = InstallService(admin_database), Resolver(runner_database, ttl_seconds=0)
    bindings = (replace(BINDING, port=8443), BINDING, SecretBinding(secret="b", header="x-key", host="a.example.org"))
    await service.set_egress_secrets(TENANT, view.install_id, bindings=bindings, actor="a")
    assert set((await resolver.resolve(TENANT, NAME)).egress.secrets) == set(bindings)
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        (detail,) = connection.execute("select detail from extension_audit_log where action = 'install.egress_secrets'").fetchone() or ({},)
    assert len(detail["bindings"]) == 3
    await service.uninstall(TENANT, view.install_id, actor="a")
    assert (await install(admin_database, granted=["http.fetch"])).egress.secrets == ()


@pytest.mark.parametrize(
    "bindings",
    [
        (BINDING, BINDING),
        (replace(BINDING, host="*.example.org"),),
        (replace(BINDING, host="example.org"),),
        (replace(BINDING, host="other.example.com"),),
        (replace(BINDING, host="8.8.8.8"),),
        (replace(BINDING, host="API.example.com"),),
        (replace(BINDING, port=444),),
        (replace(BINDING, port=0),),
        (replace(BINDING, header="host"),),
        (replace(BINDING, header="Authorization"),),
        (replace(BINDING, header="a b"),),
        (replace(BINDING, header="proxy-authorization"),),
        (replace(BINDING, secret=""),),
        (replace(BINDING, secret="a}}b"),),
        tuple(replace(BINDING, secret=f"s{number}") for number in range(33)),
    ],
)
async def test_set_egress_secrets__beyond_or_malformed__is_refused(admin_database: Database, bindings: tuple[SecretBinding, ...]) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service = InstallService(admin_database)
    await _refused(service.set_egress_secrets(TENANT, view.install_id, bindings=bindings, actor="a"), Reason.INVALID_REQUEST)
    assert (await service.get(TENANT, view.install_id)).egress.secrets == ()


async def test_reinstall__after_count_mode__is_enforced_and_has_every_declared_host(admin_database: Database) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service = InstallService(admin_database)
    await service.set_egress_count(TENANT, view.install_id, duration=timedelta(days=1), actor="operator")
    await service.uninstall(TENANT, view.install_id, actor="a")
    assert (await install(admin_database, granted=["http.fetch"])).egress.count_until is None


async def test_other_tenant__changes_nothing(admin_database: Database) -> None:
    await publish(admin_database, new_version(egress=DECLARED))
    view = await install(admin_database, granted=["http.fetch"])
    service = InstallService(admin_database)
    await _refused(service.set_egress_hosts(OTHER_TENANT, view.install_id, hosts=[], actor="b"), Reason.EXTENSION_NOT_INSTALLED)
    await _refused(
        service.set_egress_count(OTHER_TENANT, view.install_id, duration=timedelta(days=1), actor="b"), Reason.EXTENSION_NOT_INSTALLED
    )
    await _refused(service.set_egress_secrets(OTHER_TENANT, view.install_id, bindings=[BINDING], actor="b"), Reason.EXTENSION_NOT_INSTALLED)
    assert (await service.get(TENANT, view.install_id)).egress == view.egress
