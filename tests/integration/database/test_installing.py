from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

import psycopg
import pytest

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import OPERATOR_CEILING, LimitWishes
from registry.domain.records import AllowedSigner, LoadableBundle
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.repositories.versions import VersionRepository
from registry.services.installing import InstallService
from registry.services.publishers import PublisherService
from registry.services.resolution import Resolver
from registry.services.revocations import RevocationService
from tests.fakes.registry_rows import OTHER_TENANT, SIGNER, TENANT, UNKNOWN_ID, ensure_publisher, install, new_version, publish


async def _refused(attempt: Awaitable[object], reason: Reason) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await attempt
    assert caught.value.reason is reason
    return caught.value


def _audit(urls: Mapping[str, str]) -> list[tuple[str, str, str]]:
    with psycopg.connect(libpq_conninfo(urls[OWNER])) as connection:
        return connection.execute("select tenant_id, action, actor from extension_audit_log order by created_at, id").fetchall()


async def test_install__subset_of_what_it_asks_for__is_stored_with_the_manifest_it_is_for(
    admin_database: Database, database_urls: Mapping[str, str]
) -> None:
    version = await publish(admin_database)
    view = await InstallService(admin_database).install(
        TENANT,
        "com.acme.notes",
        granted=["cap:storage.kv", "storage.kv", "log.emit"],
        config={"greeting": "héllo"},
        limits=LimitWishes(wall_time_ms=1),
        endpoint_policy="enforce",
        actor="alice",
    )
    assert (view.granted, view.declared) == (("storage.kv",), ("http.fetch", "storage.kv"))
    assert (view.config, view.limits, view.endpoint_policy) == ({"greeting": "héllo"}, LimitWishes(wall_time_ms=1), "enforce")
    assert (view.version_id, view.consented_digest, view.is_enabled) == (version.version_id, version.manifest_digest, True)
    assert await InstallService(admin_database).get(TENANT, view.install_id) == view
    assert (TENANT, "install.create", "alice") in _audit(database_urls)


async def test_install__nobody_decided__asks_for_consent(admin_database: Database) -> None:
    await publish(admin_database)
    service = InstallService(admin_database)
    refusal = await _refused(service.install(TENANT, "com.acme.notes", actor="a"), Reason.CONSENT_REQUIRED)
    assert refusal.metadata == {"missing": "http.fetch,storage.kv"}
    assert (await service.install(TENANT, "com.acme.notes", granted=(), actor="a")).granted == ()


async def test_install__asks_for_nothing__needs_no_decision(admin_database: Database) -> None:
    await publish(admin_database, new_version(capabilities=("log.emit",)))
    assert (await InstallService(admin_database).install(TENANT, "com.acme.notes", actor="a")).granted == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"granted": ["secrets.get"]}, Reason.INVALID_REQUEST),
        ({"granted": ["no.such"]}, Reason.INVALID_REQUEST),
        ({"granted": ["cap:cap:storage.kv"]}, Reason.INVALID_REQUEST),
        ({"version": "9.9.9"}, Reason.VERSION_NOT_FOUND),
        ({"version": "latest"}, Reason.INVALID_REQUEST),
        ({"extension_ref": "com.acme.none"}, Reason.VERSION_NOT_FOUND),
        ({"tenant_id": "*"}, Reason.INVALID_REQUEST),
        ({"tenant_id": ""}, Reason.INVALID_REQUEST),
        ({"endpoint_policy": "off"}, Reason.INVALID_REQUEST),
        ({"limits": LimitWishes(wall_time_ms=0)}, Reason.INVALID_REQUEST),
        ({"limits": LimitWishes(wall_time_ms=OPERATOR_CEILING.wall_time_ms + 1)}, Reason.INVALID_REQUEST),
        ({"config": {"": "x"}}, Reason.INVALID_REQUEST),
        ({"config": {"a b": "x"}}, Reason.INVALID_REQUEST),
        ({"config": {"a": "\0"}}, Reason.INVALID_REQUEST),
        ({"config": {"a": "\ud800"}}, Reason.INVALID_REQUEST),
        ({"config": {str(number): "x" for number in range(101)}}, Reason.INVALID_REQUEST),
        ({"config": {"a": "x" * (64 * 1024)}}, Reason.INVALID_REQUEST),
    ],
)
async def test_install__malformed__is_refused_and_nothing_remains(
    admin_database: Database, database_urls: Mapping[str, str], change: dict[str, object], reason: Reason
) -> None:
    await publish(admin_database)
    before = len(_audit(database_urls))
    arguments: dict[str, object] = {"tenant_id": TENANT, "extension_ref": "com.acme.notes", "granted": [], "actor": "a"} | change
    await _refused(InstallService(admin_database).install(**arguments), reason)  # type: ignore[arg-type]
    page, cursor = await InstallService(admin_database).list(TENANT)
    assert (page, cursor, len(_audit(database_urls))) == ((), None, before)


@pytest.mark.parametrize("config", [{str(number): "x" for number in range(100)}, {"a": "x" * (64 * 1024 - 1)}])
async def test_install__settings_at_their_limit__are_taken(admin_database: Database, config: dict[str, str]) -> None:
    await publish(admin_database)
    view = await InstallService(admin_database).install(TENANT, "com.acme.notes", granted=[], config=config, actor="a")
    assert view.config == config


async def test_install__limits_at_the_ceiling__are_taken(admin_database: Database) -> None:
    await publish(admin_database)
    wishes = LimitWishes(wall_time_ms=OPERATOR_CEILING.wall_time_ms, fuel=1)
    assert (await InstallService(admin_database).install(TENANT, "com.acme.notes", granted=[], limits=wishes, actor="a")).limits == wishes


async def test_install__twice__is_refused_and_other_tenants_are_free(admin_database: Database) -> None:
    await publish(admin_database)
    await install(admin_database)
    await _refused(install(admin_database), Reason.ALREADY_INSTALLED)
    assert (await install(admin_database, OTHER_TENANT)).tenant_id == OTHER_TENANT


async def test_install__many_at_once__one_wins(admin_database: Database) -> None:
    await publish(admin_database)
    answers = await asyncio.gather(*(install(admin_database) for _ in range(5)), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, RefusalError)]
    assert {refusal.reason for refusal in refusals} == {Reason.ALREADY_INSTALLED}
    assert len(refusals) == 4


async def test_install__pending_yanked_or_denied_version__is_refused(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    async with admin_database.session() as session:
        await VersionRepository(session).claim(new_version(version="3.0.0"))
    await _refused(install(admin_database), Reason.VERSION_NOT_FOUND)
    yanked = await publish(admin_database, new_version(version="2.0.0"))
    async with admin_database.session() as session:
        await VersionRepository(session).set_yanked(yanked.version_id, reason="bad")
    service = InstallService(admin_database)
    await _refused(service.install(TENANT, "com.acme.notes", version="2.0.0", granted=[], actor="a"), Reason.VERSION_YANKED)
    denied = await publish(admin_database, new_version(version="1.0.0"))
    await RevocationService(admin_database).deny(denied.content_hash, "bad", "a")
    await _refused(install(admin_database), Reason.HASH_DENIED)


async def test_install__signature_does_not_hold_any_more__is_refused(admin_database: Database) -> None:
    version = await publish(admin_database)
    seen: list[LoadableBundle] = []

    async def verify(bundle: LoadableBundle) -> None:
        seen.append(bundle)
        raise RefusalError(Reason.SIGNATURE_REJECTED, "no")

    service = InstallService(admin_database, verify_bundle=verify)
    await _refused(service.install(TENANT, "com.acme.notes", granted=[], actor="a"), Reason.SIGNATURE_REJECTED)
    assert [bundle.content_hash for bundle in seen] == [version.content_hash]
    assert (await service.list(TENANT))[0] == ()


async def test_install__newer_version_appears_while_verifying__installs_what_was_verified(admin_database: Database) -> None:
    await publish(admin_database)

    async def verify(bundle: LoadableBundle) -> None:
        await publish(admin_database, new_version(version="2.0.0"))

    view = await InstallService(admin_database, verify_bundle=verify).install(TENANT, "com.acme.notes", granted=[], actor="a")
    assert view.version == "1.0.0"


async def test_set_grants__narrower_wider_and_beyond(admin_database: Database) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    service = InstallService(admin_database)
    for granted in ((), ("http.fetch", "storage.kv")):
        assert (await service.set_grants(TENANT, view.install_id, granted=granted, actor="a")).granted == granted
    await _refused(service.set_grants(TENANT, view.install_id, granted=["secrets.get"], actor="a"), Reason.INVALID_REQUEST)


async def test_set_enabled_and_config__change_what_they_say(admin_database: Database, database_urls: Mapping[str, str]) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    service = InstallService(admin_database)
    assert not (await service.set_enabled(TENANT, view.install_id, enabled=False, actor="a")).is_enabled
    assert (await service.set_enabled(TENANT, view.install_id, enabled=True, actor="a")).is_enabled
    assert (await service.set_config(TENANT, view.install_id, config={"token": "very secret"}, actor="a")).config == {
        "token": "very secret"
    }
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        details = str(connection.execute("select detail from extension_audit_log").fetchall())
    assert "token" in details
    assert "very secret" not in details


async def test_uninstall__without_purge__comes_back_with_its_id_and_settings(admin_database: Database) -> None:
    await publish(admin_database)
    service = InstallService(admin_database)
    view = await service.install(TENANT, "com.acme.notes", granted=["storage.kv"], config={"a": "b"}, actor="a")
    await service.uninstall(TENANT, view.install_id, actor="a")
    await _refused(service.get(TENANT, view.install_id), Reason.EXTENSION_NOT_INSTALLED)
    await _refused(service.set_enabled(TENANT, view.install_id, enabled=True, actor="a"), Reason.EXTENSION_NOT_INSTALLED)
    await _refused(service.set_grants(TENANT, view.install_id, granted=[], actor="a"), Reason.EXTENSION_NOT_INSTALLED)
    await _refused(service.uninstall(TENANT, view.install_id, actor="a"), Reason.EXTENSION_NOT_INSTALLED)
    assert (await service.list(TENANT))[0] == ()
    again = await service.install(TENANT, "com.acme.notes", granted=[], actor="a")
    assert (again.install_id, again.granted, again.config) == (view.install_id, (), {"a": "b"})


async def test_uninstall__purge__leaves_nothing(admin_database: Database, database_urls: Mapping[str, str]) -> None:
    await publish(admin_database)
    service = InstallService(admin_database)
    view = await install(admin_database)
    await service.uninstall(TENANT, view.install_id, purge=True, actor="a")
    with psycopg.connect(libpq_conninfo(database_urls[OWNER])) as connection:
        for table in ("tenant_extension_install", "tenant_extension_install_config", "ext_storage_record", "ext_storage_usage"):
            assert connection.execute(f"select count(*) from {table}".encode()).fetchone() == (0,)
    assert (await install(admin_database)).install_id != view.install_id


async def test_uninstall__kept_then_purged__leaves_nothing(admin_database: Database) -> None:
    await publish(admin_database)
    service = InstallService(admin_database)
    view = await install(admin_database)
    await service.uninstall(TENANT, view.install_id, actor="a")
    await service.uninstall(TENANT, view.install_id, purge=True, actor="a")
    assert (await install(admin_database)).install_id != view.install_id


async def test_other_tenant__by_any_identifier__sees_and_changes_nothing(admin_database: Database) -> None:
    await publish(admin_database)
    service = InstallService(admin_database)
    view = await install(admin_database)
    for attempt in (
        service.get(OTHER_TENANT, view.install_id),
        service.set_enabled(OTHER_TENANT, view.install_id, enabled=False, actor="b"),
        service.set_grants(OTHER_TENANT, view.install_id, granted=[], actor="b"),
        service.set_config(OTHER_TENANT, view.install_id, config={}, actor="b"),
        service.uninstall(OTHER_TENANT, view.install_id, purge=True, actor="b"),
        service.uninstall(OTHER_TENANT, view.install_id, actor="b"),
    ):
        await _refused(attempt, Reason.EXTENSION_NOT_INSTALLED)
    assert (await service.list(OTHER_TENANT))[0] == ()
    assert await service.get(TENANT, view.install_id) == view


@pytest.mark.parametrize("install_id", ["", "x", "\0", "A" * 9_999, UNKNOWN_ID.upper(), UNKNOWN_ID])
async def test_get__no_such_id__is_not_installed(admin_database: Database, install_id: str) -> None:
    await _refused(InstallService(admin_database).get(TENANT, install_id), Reason.EXTENSION_NOT_INSTALLED)


async def test_list__pages__lose_and_repeat_nothing(admin_database: Database) -> None:
    names = sorted(f"com.acme.n{number}" for number in range(5))
    for name in names:
        await publish(admin_database, new_version(name=name))
        await install(admin_database, name=name)
    service = InstallService(admin_database)
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = await service.list(TENANT, limit=2, cursor=cursor)
        seen += [view.extension_name for view in page]
        if cursor is None:
            break
    assert seen == names
    for limit in (0, 101):
        await _refused(service.list(TENANT, limit=limit), Reason.INVALID_REQUEST)
    await _refused(service.list(TENANT, cursor="garbage"), Reason.INVALID_REQUEST)


async def test_publisher__created_with_signers__and_audited(admin_database: Database, database_urls: Mapping[str, str]) -> None:
    service = PublisherService(admin_database)
    assert (await service.create("acme", "op")).signers == ()
    await _refused(service.create("acme", "op"), Reason.ALREADY_EXISTS)
    for _ in range(2):
        assert (await service.add_signer("acme", SIGNER, "op")).signers == (SIGNER,)
    assert (await service.get("acme")).signers == (SIGNER,)
    assert _audit(database_urls) == [("*", "publisher.create", "op"), ("*", "publisher.add_signer", "op")]
    await service.create("beta", "op")
    page, cursor = await service.list(limit=1)
    rest, end = await service.list(limit=1, cursor=cursor)
    assert [publisher.name for publisher in (*page, *rest)] == ["acme", "beta"]
    assert end is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a/b", "a\0", "a" * 65, "é", "a\n"])
async def test_publisher__malformed_name__is_refused(admin_database: Database, name: str) -> None:
    await _refused(PublisherService(admin_database).create(name, "op"), Reason.INVALID_REQUEST)
    await _refused(PublisherService(admin_database).get(name), Reason.NOT_FOUND)


@pytest.mark.parametrize(
    ("domain", "issuer", "identity"),
    [
        ("", "i", "x"),
        ("dev", "", "x"),
        ("dev", "i", ""),
        ("dev", "i", "*"),
        ("dev", "i", "https://x/*"),
        ("dev", "i", " x"),
        ("dev", "i", "x\n"),
        ("dev", "i", "x" * 501),
        ("Dev", "i", "x"),
        ("dev", "i", "x\u202e"),
    ],
)
async def test_signer__not_exact__is_refused(admin_database: Database, domain: str, issuer: str, identity: str) -> None:
    await PublisherService(admin_database).create("acme", "op")
    signer = AllowedSigner(trust_domain=domain, issuer=issuer, identity=identity)
    await _refused(PublisherService(admin_database).add_signer("acme", signer, "op"), Reason.INVALID_REQUEST)


async def test_signers__one_more_than_allowed__is_refused(admin_database: Database) -> None:
    service = PublisherService(admin_database)
    await service.create("acme", "op")
    for number in range(32):
        await service.add_signer("acme", AllowedSigner(trust_domain="dev", issuer="i", identity=f"x{number}"), "op")
    await service.add_signer("acme", AllowedSigner(trust_domain="dev", issuer="i", identity="x0"), "op")
    await _refused(service.add_signer("acme", AllowedSigner(trust_domain="dev", issuer="i", identity="y"), "op"), Reason.INVALID_REQUEST)
    await _refused(service.add_signer("nobody", SIGNER, "op"), Reason.NOT_FOUND)


async def test_revocation__once__is_audited_and_listed(admin_database: Database, database_urls: Mapping[str, str]) -> None:
    service = RevocationService(admin_database)
    hashes = ["sha256:" + digit * 64 for digit in "abc"]
    for content_hash in hashes:
        assert await service.deny(content_hash, "bad", "op")
        assert not await service.deny(content_hash, "again", "op")
    page, cursor = await service.list(limit=2)
    rest, end = await service.list(limit=2, cursor=cursor)
    assert [revocation.content_hash for revocation in (*page, *rest)] == hashes[::-1]
    assert end is None
    assert [row[1] for row in _audit(database_urls)] == ["content.deny"] * 3


@pytest.mark.parametrize(
    ("content_hash", "reason"),
    [("", "r"), ("sha256:" + "A" * 64, "r"), ("sha256:" + "a" * 63, "r"), ("sha256:" + "a" * 64, " "), ("sha256:" + "a" * 64, "r" * 501)],
)
async def test_revocation__malformed__is_refused(admin_database: Database, content_hash: str, reason: str) -> None:
    await _refused(RevocationService(admin_database).deny(content_hash, reason, "op"), Reason.INVALID_REQUEST)


async def test_set_limits__are_what_the_next_call_resolves_to__and_audited(
    admin_database: Database, runner_database: Database, database_urls: Mapping[str, str]
) -> None:
    await publish(admin_database)
    view = await install(admin_database)
    service, limits = InstallService(admin_database), LimitWishes(storage_bytes=1_000, storage_namespaces=128)
    assert (await service.set_limits(TENANT, view.install_id, limits=limits, actor="bob")).limits == limits
    assert (await Resolver(runner_database, ttl_seconds=0).resolve(TENANT, "com.acme.notes")).limits == limits
    assert _audit(database_urls)[-1] == (TENANT, "install.limit", "bob")
    with pytest.raises(RefusalError) as caught:
        await service.set_limits(OTHER_TENANT, view.install_id, limits=LimitWishes(), actor="eve")
    assert caught.value.reason is Reason.EXTENSION_NOT_INSTALLED
    with pytest.raises(RefusalError) as caught:
        await service.set_limits(TENANT, view.install_id, limits=LimitWishes(storage_bytes=OPERATOR_CEILING.storage_bytes + 1), actor="bob")
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert (await service.get(TENANT, view.install_id)).limits == limits
