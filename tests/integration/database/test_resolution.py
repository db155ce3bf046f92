from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from registry.database import Database
from registry.domain.capabilities import ALWAYS
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import new_id
from registry.domain.records import Endpoint
from registry.repositories.versions import VersionRepository
from registry.services.installing import InstallService
from registry.services.resolution import Resolver
from registry.services.revocations import RevocationService
from tests.fakes.registry_rows import OTHER_TENANT, SIGNER, TENANT, ensure_publisher, install, new_version, publish


async def _refused(attempt: Awaitable[object], reason: Reason) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await attempt
    assert caught.value.reason is reason
    return caught.value


def _fresh(database: Database) -> Resolver:
    return Resolver(database, ttl_seconds=0)


async def test_resolve__by_name_and_by_id__gives_what_the_tenant_granted(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    by_name = await _fresh(runner_database).resolve(TENANT, "com.acme.notes")
    assert by_name == await _fresh(runner_database).resolve(TENANT, view.extension_id)
    assert by_name.capabilities == {"storage.kv"} | ALWAYS
    assert by_name.declared == {"storage.kv", "http.fetch"}
    assert by_name.endpoints == (Endpoint(method="GET", path="/notes/:id"),)
    assert (by_name.install_id, by_name.content_hash, by_name.publisher) == (view.install_id, view.content_hash, "acme")


async def test_resolve__operator_ceiling__takes_away(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    await install(admin_database)
    resolver = Resolver(runner_database, capability_ceiling=frozenset())
    assert (await resolver.resolve(TENANT, "com.acme.notes")).capabilities == ALWAYS


async def test_resolve__other_tenant__is_not_installed_by_any_identifier(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    resolver = Resolver(runner_database)
    await resolver.resolve(TENANT, "com.acme.notes")
    for reference in ("com.acme.notes", view.extension_id, view.install_id, view.version_id):
        await _refused(resolver.resolve(OTHER_TENANT, reference), Reason.EXTENSION_NOT_INSTALLED)
    await _refused(resolver.resolve(OTHER_TENANT, "com.acme.notes", install_id=view.install_id), Reason.EXTENSION_NOT_INSTALLED)


@pytest.mark.parametrize(
    "reference", ["", "notes", "COM.ACME.NOTES", "com.acme.notes\0", "../x", "\ud800", "a" * 10_000, "com.acme.notes "]
)
async def test_resolve__no_name_at_all__is_not_installed(runner_database: Database, reference: str) -> None:
    await _refused(Resolver(runner_database).resolve(TENANT, reference), Reason.EXTENSION_NOT_INSTALLED)


@pytest.mark.parametrize("tenant", ["", "*", "a\0"])
async def test_resolve__no_tenant__is_not_installed(runner_database: Database, tenant: str) -> None:
    await _refused(Resolver(runner_database).resolve(tenant, "com.acme.notes"), Reason.EXTENSION_NOT_INSTALLED)


@pytest.mark.parametrize("pin", ["install_id", "version_id", "content_hash"])
async def test_resolve__pins__are_compared_also_on_a_cached_answer(admin_database: Database, runner_database: Database, pin: str) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    resolver = Resolver(runner_database)
    good = {"install_id": view.install_id, "version_id": view.version_id, "content_hash": view.content_hash}
    assert (await resolver.resolve(TENANT, "com.acme.notes", **good)).install_id == view.install_id
    for wrong in ("", new_id(), "sha256:" + "0" * 64, good[pin].upper()):
        refusal = await _refused(resolver.resolve(TENANT, "com.acme.notes", **(good | {pin: wrong})), Reason.PIN_MISMATCH)
        assert refusal.metadata == {"pin": pin}


async def test_resolve__disabled_denied_uninstalled_and_yanked(admin_database: Database, runner_database: Database) -> None:
    version = await publish(admin_database)
    view = await install(admin_database)
    service = InstallService(admin_database)
    resolver = _fresh(runner_database)
    await service.set_enabled(TENANT, view.install_id, enabled=False, actor="a")
    await _refused(resolver.resolve(TENANT, "com.acme.notes"), Reason.INSTALL_DISABLED)
    await service.set_enabled(TENANT, view.install_id, enabled=True, actor="a")
    async with admin_database.session() as session:
        await VersionRepository(session).set_yanked(version.version_id, reason="bad")
    await resolver.resolve(TENANT, "com.acme.notes")  # what is installed keeps running
    await RevocationService(admin_database).deny(version.content_hash, "bad", "a")
    await _refused(resolver.resolve(TENANT, "com.acme.notes"), Reason.HASH_DENIED)
    await service.uninstall(TENANT, view.install_id, actor="a")
    await _refused(resolver.resolve(TENANT, "com.acme.notes"), Reason.EXTENSION_NOT_INSTALLED)


async def test_resolve__cached__asks_once_until_invalidated(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    resolver = Resolver(runner_database, ttl_seconds=5)
    await asyncio.gather(*(resolver.resolve(TENANT, "com.acme.notes") for _ in range(20)))
    await InstallService(admin_database).set_enabled(TENANT, view.install_id, enabled=False, actor="a")
    await resolver.resolve(TENANT, "com.acme.notes")
    resolver.invalidate()
    await _refused(resolver.resolve(TENANT, "com.acme.notes"), Reason.INSTALL_DISABLED)


async def test_resolve__roles_on_any_endpoint__always_enforce(admin_database: Database, runner_database: Database) -> None:
    await publish(admin_database, new_version(endpoints=[{"method": "GET", "path": "/a"}, {"method": "GET", "path": "/b", "roles": ["x"]}]))
    assert (await install(admin_database)).endpoint_policy == "advisory"
    assert (await _fresh(runner_database).resolve(TENANT, "com.acme.notes")).endpoint_policy == "enforce"


async def test_loadable__pending_published_denied_and_unknown(admin_database: Database, runner_database: Database) -> None:
    await ensure_publisher(admin_database)
    async with admin_database.session() as session:
        pending = await VersionRepository(session).claim(new_version())
    resolver = _fresh(runner_database)
    bundle = await resolver.loadable(pending.content_hash)
    assert (bundle.signers, bundle.extension_name, bundle.manifest_digest) == ((SIGNER,), "com.acme.notes", pending.manifest_digest)
    assert not await resolver.denied(pending.content_hash)
    await RevocationService(admin_database).deny(pending.content_hash, "bad", "a")
    await _refused(resolver.loadable(pending.content_hash), Reason.HASH_DENIED)
    assert await resolver.denied(pending.content_hash)
    for unknown in ("sha256:" + "0" * 64, "", "x", "\0"):
        await _refused(resolver.loadable(unknown), Reason.VERSION_NOT_FOUND)
        assert not await resolver.denied(unknown)


async def test_is_interface_served__only_while_somebody_has_it_enabled(admin_database: Database, runner_database: Database) -> None:
    await ensure_publisher(admin_database)
    resolver = _fresh(runner_database)
    async with admin_database.session() as session:
        pending = await VersionRepository(session).claim(new_version())
    name, content_hash = "com.acme.notes", pending.content_hash
    service = InstallService(admin_database)

    async def served() -> bool:
        by_name = await resolver.is_interface_served(name, content_hash)
        assert by_name == await resolver.is_interface_served(pending.extension_id, content_hash)
        return by_name

    seen = [await served()]
    async with admin_database.session() as session:
        await VersionRepository(session).mark_published(pending.version_id)
    seen.append(await served())
    one = await install(admin_database)
    other = await install(admin_database, OTHER_TENANT)
    seen.append(await served())
    await service.set_enabled(TENANT, one.install_id, enabled=False, actor="a")
    seen.append(await served())
    await service.uninstall(OTHER_TENANT, other.install_id, actor="a")
    seen.append(await served())
    await service.set_enabled(TENANT, one.install_id, enabled=True, actor="a")
    seen.append(await served())
    await RevocationService(admin_database).deny(content_hash, "bad", "a")
    seen.append(await served())
    assert seen == [False, False, True, True, False, True, False]
    assert not await resolver.is_interface_served("com.acme.other", content_hash)
    assert not await resolver.is_interface_served(name, "x")


@pytest.mark.parametrize(("ttl", "entries"), [(-0.1, 1), (5.1, 1), (2.0, 0)])
def test_resolver__settings_beyond_their_bounds__are_refused(ttl: float, entries: int) -> None:
    with pytest.raises(ValueError, match="ttl_seconds"):
        Resolver(None, ttl_seconds=ttl, max_entries=entries)  # type: ignore[arg-type]
