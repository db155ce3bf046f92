"""Secrets over a real database: set, read, replaced, expired, moved about by a hostile writer, wrapped anew under load."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from registry.cli.__main__ import app
from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.migrations.roles import ADMIN, MAINTENANCE, OWNER, RUNNER, libpq_conninfo
from registry.repositories.installs import InstallView
from registry.secrets.binding import MAX_SECRETS, MAX_VALUE_BYTES, Binding
from registry.secrets.envelope import KeyServiceError, WrappedKey
from registry.secrets.local_keys import GeneratedKeyPair
from registry.secrets.sealing import Sealer
from registry.services.installing import InstallService
from registry.services.secret_reading import SecretCase, SecretMemory, SecretReader, SecretRefusalError
from registry.services.secret_rotation import rewrap_all
from registry.services.secrets import SecretWriter
from tests.fakes.dispatch_kit import eventually
from tests.fakes.registry_rows import OTHER_TENANT, TENANT, UNKNOWN_ID, install, new_version, publish
from tests.fakes.sealing import make_pair, opener_of, sealer_of

VALUE = "s3cr3t-value-of-tenant-a"
_SEALED = ("kek_id", "wrapped_key", "ciphertext")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    writer: SecretWriter
    reader: SecretReader
    pair: GeneratedKeyPair
    mine: InstallView
    urls: Mapping[str, str]
    admin: Database
    runner: Database

    async def put(self, name: str = "api_key", value: str = VALUE, *, of: InstallView | None = None, **changes: Any) -> None:
        view = self.mine if of is None else of
        await self.writer.put(view.tenant_id, view.install_id, name, value=value, actor="alice", **changes)

    async def read(self, name: str = "api_key", *, of: InstallView | None = None) -> str:
        view = self.mine if of is None else of
        return await self.reader.read(view.tenant_id, view.install_id, name)

    async def refused(self, name: str = "api_key", *, of: InstallView | None = None) -> SecretCase:
        with pytest.raises(SecretRefusalError) as caught:
            await self.read(name, of=of)
        assert VALUE not in str(caught.value)
        return caught.value.case

    def owner(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with psycopg.connect(libpq_conninfo(self.urls[OWNER])) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description is not None else []

    def audited(self, action: str) -> list[Any]:
        return self.owner(
            "select tenant_id, subject, actor, detail from extension_audit_log where action = %s order by created_at, id", (action,)
        )


@pytest.fixture
async def kit(admin_database: Database, runner_database: Database, database_urls: Mapping[str, str], tmp_path: Path) -> AsyncIterator[Kit]:
    await publish(admin_database)
    pair = make_pair(tmp_path)
    reader = SecretReader(runner_database, opener_of(pair))
    yield Kit(
        writer=SecretWriter(admin_database, sealer_of(pair)),
        reader=reader,
        pair=pair,
        mine=await install(admin_database),
        urls=database_urls,
        admin=admin_database,
        runner=runner_database,
    )
    await reader.aclose()


class TestWriting:
    async def test_put__is_read_and_named_and_grows(self, kit: Kit) -> None:
        await kit.put()
        assert await kit.read() == VALUE
        await kit.put(value="another")
        assert await kit.read() == "another"
        await kit.put("other", "x")
        found = await kit.writer.list(TENANT, kit.mine.install_id)
        assert [(view.name, view.version, view.updated_by) for view in found] == [("api_key", 2, "alice"), ("other", 1, "alice")]
        assert await kit.reader.names(TENANT, kit.mine.install_id) == ("api_key", "other")
        rows = kit.audited("secret.set")
        assert [(row[0], row[1], row[2], row[3]["name"], row[3]["version"]) for row in rows] == [
            (TENANT, kit.mine.install_id, "alice", "api_key", 1),
            (TENANT, kit.mine.install_id, "alice", "api_key", 2),
            (TENANT, kit.mine.install_id, "alice", "other", 1),
        ]

    async def test_delete__missing_at_once_and_a_new_one_is_not_the_old_one(self, kit: Kit) -> None:
        await kit.put()
        assert await kit.read() == VALUE
        await kit.writer.delete(TENANT, kit.mine.install_id, "api_key", actor="alice")
        assert await kit.refused() is SecretCase.MISSING
        # The same version again: what the reader remembers of the old one must not answer.
        await kit.put(value="the new one")
        assert await kit.read() == "the new one"
        assert [row[3] for row in kit.audited("secret.delete")] == [{"name": "api_key", "version": 1}]
        with pytest.raises(RefusalError) as caught:
            await kit.writer.delete(TENANT, kit.mine.install_id, "never", actor="alice")
        assert caught.value.reason is Reason.NOT_FOUND

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "-x", "a/b", "a b", "a\0", "ä", "a\n", "x" * 129, "%2e", "api_key\u202e", "'; drop table x; --"]
    )
    async def test_hostile_names__refused_by_writer_and_missing_for_reader(self, kit: Kit, name: str) -> None:
        for act in (kit.put(name), kit.writer.delete(TENANT, kit.mine.install_id, name, actor="a")):
            with pytest.raises(RefusalError) as caught:
                await act
            assert caught.value.reason is Reason.INVALID_REQUEST
        assert await kit.refused(name) is SecretCase.MISSING

    @pytest.mark.parametrize("value", ["", "x" * (MAX_VALUE_BYTES + 1), "ä" * (MAX_VALUE_BYTES // 2 + 1), "\ud800"])
    async def test_hostile_values__refused_without_repeating_them(self, kit: Kit, value: str) -> None:
        with pytest.raises(RefusalError) as caught:
            await kit.put(value=value)
        assert caught.value.reason is Reason.INVALID_REQUEST
        assert caught.value.__cause__ is None
        assert await kit.refused() is SecretCase.MISSING

    async def test_largest_value_and_any_text__come_back_whole(self, kit: Kit) -> None:
        for value in ("x" * MAX_VALUE_BYTES, "\0\n\r\t\u202e😀", " "):
            await kit.put(value=value)
            assert await kit.read() == value

    async def test_sixty_fifth__refused_also_when_many_try_at_once(self, kit: Kit) -> None:
        kit.owner(
            """insert into tenant_extension_install_secrets
                      (tenant_id, install_id, name, version, kek_id, wrapped_key, ciphertext, updated_by)
               select %s, %s::uuid, 'n' || i, 1, 'local:x', '\\x00', '\\x00', 't' from generate_series(1, %s) i""",
            (TENANT, kit.mine.install_id, MAX_SECRETS - 1),
        )
        done = await asyncio.gather(*(kit.put(f"more{number}") for number in range(4)), return_exceptions=True)
        refusals = [one for one in done if one is not None]
        assert [one.reason for one in refusals if isinstance(one, RefusalError)] == [Reason.QUOTA_EXCEEDED] * 3
        assert len(await kit.writer.list(TENANT, kit.mine.install_id)) == MAX_SECRETS

    async def test_writers_at_once__every_version_is_somebodys(self, kit: Kit) -> None:
        values = [f"value {number}" for number in range(4)]
        done = await asyncio.gather(*(kit.put(value=value) for value in values), return_exceptions=True)
        assert all(one is None or (isinstance(one, RefusalError) and one.reason is Reason.REGISTRY_UNAVAILABLE) for one in done)
        (found,) = await kit.writer.list(TENANT, kit.mine.install_id)
        assert found.version == done.count(None)
        assert await kit.read() in values

    async def test_others_installs__are_not_there(self, kit: Kit) -> None:
        await kit.put()
        for tenant, install_id in ((OTHER_TENANT, kit.mine.install_id), (TENANT, UNKNOWN_ID), (TENANT, "no id")):
            for act in (
                kit.writer.put(tenant, install_id, "api_key", value="x", actor="eve"),
                kit.writer.list(tenant, install_id),
                kit.writer.delete(tenant, install_id, "api_key", actor="eve"),
            ):
                with pytest.raises(RefusalError) as caught:
                    await act
                assert caught.value.reason is Reason.EXTENSION_NOT_INSTALLED
        with pytest.raises(SecretRefusalError) as missing:
            await kit.reader.read(OTHER_TENANT, kit.mine.install_id, "api_key")
        assert missing.value.case is SecretCase.MISSING
        assert await kit.reader.names(OTHER_TENANT, kit.mine.install_id) == ()

    async def test_key_service_away__nothing_is_stored_and_nothing_weaker_is_tried(self, kit: Kit) -> None:
        class Away:
            async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
                message = "away"
                raise KeyServiceError(message)

            async def aclose(self) -> None: ...

        for sealer, reason in ((Sealer(Away()), Reason.REGISTRY_UNAVAILABLE), (None, Reason.NOT_FOUND)):
            with pytest.raises(RefusalError) as caught:
                await SecretWriter(kit.admin, sealer).put(TENANT, kit.mine.install_id, "api_key", value=VALUE, actor="alice")
            assert caught.value.reason is reason
        assert await kit.writer.list(TENANT, kit.mine.install_id) == ()
        assert kit.audited("secret.set") == []

    async def test_uninstalled__kept_for_the_next_install_and_gone_with_purge(self, kit: Kit) -> None:
        await kit.put()
        installs = InstallService(kit.admin)
        await installs.uninstall(TENANT, kit.mine.install_id, actor="alice")
        with pytest.raises(RefusalError):
            await kit.put()
        again = await install(kit.admin)
        assert again.install_id == kit.mine.install_id
        assert await kit.read() == VALUE
        await installs.uninstall(TENANT, kit.mine.install_id, purge=True, actor="alice")
        assert kit.owner("select count(*) from tenant_extension_install_secrets") == [(0,)]


class TestRoles:
    async def test_admin__writes_and_cannot_read_what_it_wrote(self, kit: Kit) -> None:
        await kit.put()
        with psycopg.connect(libpq_conninfo(kit.urls[ADMIN]), autocommit=True) as connection:
            connection.execute("select set_config('app.tenant_id', %s, false)", (TENANT,))
            assert connection.execute("select name from tenant_extension_install_secrets").fetchall() == [("api_key",)]
            for statement in (
                "select ciphertext from tenant_extension_install_secrets",
                "select wrapped_key from tenant_extension_install_secrets",
                "update tenant_extension_install_secrets set version = version returning ciphertext",
                "update tenant_extension_install_secrets set kek_id = encode(ciphertext, 'hex')",
                "copy tenant_extension_install_secrets to stdout",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)

    async def test_runner__reads_and_writes_nothing_but_its_one_note(self, kit: Kit) -> None:
        await kit.put()
        with psycopg.connect(libpq_conninfo(kit.urls[RUNNER]), autocommit=True) as connection:
            connection.execute("select set_config('app.tenant_id', %s, false)", (TENANT,))
            for statement in ("delete from tenant_extension_install_secrets", "update tenant_extension_install_secrets set version = 9"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
            insert = "insert into extension_audit_log (tenant_id, id, actor, action, subject) values (%s, gen_random_uuid(), %s, %s, '')"
            for row in ((TENANT, "alice", "secret.refuse"), (TENANT, "runnerd", "install.grant"), ("*", "runnerd", "secret.refuse")):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(insert, row)
            connection.execute(insert, (TENANT, "runnerd", "secret.refuse"))

    async def test_maintenance__replaces_wrappings_and_sees_no_value(self, kit: Kit) -> None:
        await kit.put()
        with psycopg.connect(libpq_conninfo(kit.urls[MAINTENANCE]), autocommit=True) as connection:
            assert connection.execute("select name from tenant_extension_install_secrets").fetchall() == [("api_key",)]
            for statement in (
                "select ciphertext from tenant_extension_install_secrets",
                "update tenant_extension_install_secrets set ciphertext = '\\x00'",
                "update tenant_extension_install_secrets set tenant_id = 'tenant-b'",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)


class TestHostileWriter:
    """Whoever has the table moves sealed columns about with a raw connection (T6)."""

    async def _places(self, kit: Kit) -> dict[str, InstallView]:
        await publish(kit.admin, new_version(name="com.acme.other"))
        return {
            "other tenant": await install(kit.admin, OTHER_TENANT),
            "other install": await install(kit.admin, TENANT, name="com.acme.other"),
        }

    def _copy(self, kit: Kit, source: tuple[str, str, str], target: tuple[str, str, str]) -> None:
        sets = ", ".join(f"{column} = a.{column}" for column in _SEALED)
        kit.owner(
            f"""update tenant_extension_install_secrets b set {sets} from tenant_extension_install_secrets a
                where (a.tenant_id, a.install_id, a.name) = (%s, %s::uuid, %s)
                  and (b.tenant_id, b.install_id, b.name) = (%s, %s::uuid, %s)""",
            (*source, *target),
        )

    async def test_swapped__between_tenants_installs_and_names__refused_and_audited(self, kit: Kit) -> None:
        places = await self._places(kit)
        source = (TENANT, kit.mine.install_id, "api_key")
        await kit.put()
        for view in places.values():
            await kit.put(value="harmless", of=view)
            assert await kit.read(of=view) == "harmless"
        await kit.put("other_name", "harmless")
        targets = [(view, "api_key") for view in places.values()] + [(kit.mine, "other_name")]
        for view, name in targets:
            self._copy(kit, source, (view.tenant_id, view.install_id, name))
            assert await kit.refused(name, of=view) is SecretCase.INTERNAL
        rows = kit.audited("secret.refuse")
        assert [(row[0], row[1], row[2], row[3]["name"]) for row in rows] == [
            (view.tenant_id, view.install_id, "runnerd", name) for view, name in targets
        ]
        # The one that was copied from still opens: a bad envelope fails the call that asks for it, and no other.
        assert await kit.read() == VALUE

    async def test_swapped__between_versions__refused_and_audited(self, kit: Kit) -> None:
        await kit.put(value="the first, since revoked")
        (old,) = kit.owner(f"select {', '.join(_SEALED)} from tenant_extension_install_secrets")
        await kit.put(value="the second")
        kit.owner("update tenant_extension_install_secrets set kek_id = %s, wrapped_key = %s, ciphertext = %s", old)
        assert await kit.refused() is SecretCase.INTERNAL
        assert len(kit.audited("secret.refuse")) == 1

    @pytest.mark.parametrize("column", ["wrapped_key", "ciphertext"])
    @pytest.mark.parametrize("change", ["set_byte({0}, 20, get_byte({0}, 20) # 1)", "substr({0}, 1, 20)", "'\\x00'::bytea"])
    async def test_changed__refused(self, kit: Kit, column: str, change: str) -> None:
        await kit.put()
        assert await kit.read() == VALUE
        kit.owner(f"update tenant_extension_install_secrets set {column} = {change.format(column)}")
        assert await kit.refused() is SecretCase.INTERNAL

    async def test_unknown_key__refused_and_its_name_shown_safely(self, kit: Kit) -> None:
        await kit.put()
        kit.owner("update tenant_extension_install_secrets set kek_id = %s", ("local:\u202e\x1b[2J" + "x" * 200,))
        assert await kit.refused() is SecretCase.INTERNAL
        ((*_, detail),) = kit.audited("secret.refuse")
        assert detail["why"].isascii()
        assert "\x1b" not in detail["why"]
        assert len(detail["why"]) < 300

    async def test_asked_in_a_loop__written_down_once(self, kit: Kit) -> None:
        await kit.put()
        kit.owner("update tenant_extension_install_secrets set version = 7")
        assert {await kit.refused() for _ in range(20)} == {SecretCase.INTERNAL}
        assert len(kit.audited("secret.refuse")) == 1


class TestReading:
    async def test_expiry__told_apart_from_missing_and_by_the_databases_clock(self, kit: Kit) -> None:
        with pytest.raises(RefusalError) as caught:
            await kit.put(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert caught.value.reason is Reason.INVALID_REQUEST
        await kit.put(expires_at=datetime.now(UTC) + timedelta(hours=1))
        assert await kit.read() == VALUE
        # Remembered as it is: the next reading still meets the expiry.
        kit.owner("update tenant_extension_install_secrets set expires_at = now()")
        assert await kit.refused() is SecretCase.EXPIRED
        assert [view.is_expired for view in await kit.writer.list(TENANT, kit.mine.install_id)] == [True]
        assert await kit.refused("never") is SecretCase.MISSING
        await kit.put(value="again")
        assert await kit.read() == "again"

    async def test_memory__bounded_short_and_empty_after_close(self, kit: Kit, tmp_path: Path) -> None:
        class Counting:
            def __init__(self) -> None:
                self.inner = opener_of(kit.pair)
                self.opened = 0

            async def open(self, *arguments: Any) -> bytes:
                self.opened += 1
                return await self.inner.open(*arguments)

            async def aclose(self) -> None:
                await self.inner.aclose()

        opener: Any = Counting()
        now = [0.0]
        reader = SecretReader(kit.runner, opener, memory=SecretMemory(seconds=30, entries=3), clock=lambda: now[0])
        for number in range(5):
            await kit.put(f"n{number}", f"value {number}")
        try:
            for number in range(5):
                assert await reader.read(TENANT, kit.mine.install_id, f"n{number}") == f"value {number}"
            assert len(reader._opened) == 3
            assert opener.opened == 5
            await reader.read(TENANT, kit.mine.install_id, "n4")
            assert opener.opened == 5
            await reader.read(TENANT, kit.mine.install_id, "n0")
            assert opener.opened == 6
            now[0] = 31.0
            await reader.read(TENANT, kit.mine.install_id, "n0")
            assert opener.opened == 7
            # However many ask at once: one opens.
            now[0] = 62.0
            assert set(await asyncio.gather(*(reader.read(TENANT, kit.mine.install_id, "n1") for _ in range(8)))) == {"value 1"}
            assert opener.opened == 8
        finally:
            await reader.aclose()
        assert len(reader._opened) == 0

    async def test_memory__never_beyond_expiry(self, kit: Kit) -> None:
        await kit.put(expires_at=datetime.now(UTC) + timedelta(hours=1))
        kit.owner("update tenant_extension_install_secrets set expires_at = now() + interval '1 second'")
        with suppress(SecretRefusalError):  # On a machine that takes a second for it.
            await kit.read()
        await eventually(lambda: len(kit.reader._opened) == 0)
        with pytest.raises(ValueError, match="30"):
            SecretReader(kit.runner, opener_of(kit.pair), memory=SecretMemory(seconds=31))

    async def test_dying_database__internal_and_nothing_from_memory(self, kit: Kit) -> None:
        await kit.put()
        assert await kit.read() == VALUE
        broken = await Database.connect(kit.urls[RUNNER], expected_role=RUNNER)
        reader = SecretReader(broken, opener_of(kit.pair))
        assert await reader.read(TENANT, kit.mine.install_id, "api_key") == VALUE
        await broken.aclose()
        broken._engine = (await _unreachable())._engine
        for act in (reader.read(TENANT, kit.mine.install_id, "api_key"), reader.names(TENANT, kit.mine.install_id)):
            with pytest.raises(SecretRefusalError) as caught:
                await act
            assert caught.value.case is SecretCase.INTERNAL
        await reader.aclose()

    async def test_logs__of_everything_hold_no_value(self, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        await kit.put()
        assert await kit.read() == VALUE
        kit.owner("update tenant_extension_install_secrets set version = 7")
        await kit.refused()
        with pytest.raises(RefusalError):
            await kit.put(value=VALUE + "\ud800")
        assert "secret envelope refused" in caplog.text
        assert VALUE not in caplog.text
        said = str(kit.owner("select row_to_json(a) from extension_audit_log a"))
        assert "secret.set" in said
        assert VALUE not in said


class TestRotation:
    async def test_rewrapped_under_load__no_reading_fails_and_the_old_key_can_go(self, kit: Kit, tmp_path: Path) -> None:
        new = make_pair(tmp_path, "new")
        names = [f"n{number}" for number in range(30)]
        for name in names:
            await kit.put(name, f"value of {name}")
        reader = SecretReader(kit.runner, opener_of(kit.pair, new), memory=SecretMemory(seconds=0))
        maintenance = await Database.connect(kit.urls[MAINTENANCE], expected_role=MAINTENANCE)
        done = asyncio.Event()
        readings = 0

        async def read_on() -> None:
            nonlocal readings
            while not done.is_set() or readings < len(names):
                name = names[readings % len(names)]
                assert await reader.read(TENANT, kit.mine.install_id, name) == f"value of {name}"
                readings += 1

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read_on())
                report = await rewrap_all(maintenance, opener_of(kit.pair, new), sealer_of(new), actor="bob")
                done.set()
            assert (report.rewrapped, report.overtaken, report.refused) == (30, 0, 0)
            assert report.kek_id == new.kek_id
            again = await rewrap_all(maintenance, opener_of(new), sealer_of(new), actor="bob")
            assert (again.rewrapped, again.refused) == (0, 0)
        finally:
            await maintenance.aclose()
            await reader.aclose()
        only_new = SecretReader(kit.runner, opener_of(new))
        for name in names:
            assert await only_new.read(TENANT, kit.mine.install_id, name) == f"value of {name}"
        await only_new.aclose()
        assert await kit.refused("n0") is SecretCase.INTERNAL
        ((tenant, subject, actor, detail),) = kit.audited("secret.rewrap")
        assert (tenant, subject, actor, detail) == ("*", new.kek_id, "bob", {"secrets": 30, "from": [kit.pair.kek_id]})

    async def test_verb__by_its_file_of_keys__as_maintenance_only(self, kit: Kit, tmp_path: Path) -> None:
        new = make_pair(tmp_path, "new")
        await kit.put()
        await kit.put("moved")
        kit.owner("update tenant_extension_install_secrets set version = 5 where name = 'moved'")
        keys, url = tmp_path / "keys.json", tmp_path / "url"
        old_and_new = {"private_key_files": [str(kit.pair.private_file), str(new.private_file)]}
        keys.write_text(json.dumps({"opening": {"local": old_and_new}, "sealing": {"local": {"public_key_file": str(new.public_file)}}}))

        async def run(role: str) -> Any:
            url.write_text(kit.urls[role])
            arguments = ["db", "rewrap-secrets", "--keys", str(keys), "--url-file", str(url), "--json"]
            return await asyncio.to_thread(CliRunner().invoke, app, arguments)

        assert (await run(ADMIN)).exit_code == 2
        done = await run(MAINTENANCE)
        # One envelope does not open: said, and left as it is.
        assert done.exit_code == 1, done.output
        assert json.loads(done.stdout) == {"kek_id": new.kek_id, "rewrapped": 1, "overtaken": 0, "refused": 1}
        assert kit.owner("select name, kek_id from tenant_extension_install_secrets order by name") == [
            ("api_key", new.kek_id),
            ("moved", kit.pair.kek_id),
        ]
        ((tenant, _, actor, _),) = kit.audited("secret.rewrap")
        assert tenant == "*"
        assert actor.startswith("extctl:")

    async def test_rewrap__leaves_what_does_not_open_and_what_was_written_meanwhile(self, kit: Kit, tmp_path: Path) -> None:
        new = make_pair(tmp_path, "new")
        for name in ("good", "moved", "written"):
            await kit.put(name)
        kit.owner("update tenant_extension_install_secrets set version = 5 where name = 'moved'")
        inner = sealer_of(new)

        class Meanwhile(Sealer):
            async def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
                if binding.name == "written":
                    await kit.put("written", "a newer value")
                return await inner.wrap(data_key, binding)

        maintenance = await Database.connect(kit.urls[MAINTENANCE], expected_role=MAINTENANCE)
        try:
            report = await rewrap_all(maintenance, opener_of(kit.pair), Meanwhile(inner._wrapper), actor="bob")
        finally:
            await maintenance.aclose()
        assert (report.rewrapped, report.overtaken, report.refused) == (1, 1, 1)
        assert await kit.read("written") == "a newer value"


async def _unreachable() -> Database:
    from registry.database import _build_engine  # noqa: PLC0415

    return Database(_build_engine("postgresql+psycopg://ext_runner@127.0.0.1:1/none", 1))
