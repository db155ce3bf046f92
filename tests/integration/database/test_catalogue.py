"""What the live database says about itself, compared with what is committed and with T18."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from registry import migrations
from registry.embedded_postgres import EmbeddedPostgres
from registry.migrations.roles import APPLICATION_ROLES, GATEWAY, MAINTENANCE, ROLES, libpq_conninfo

_MATRIX: Mapping[str, Any] = json.loads((Path(migrations.__file__).parent / "privileges.json").read_text())
_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
_BY_COLUMN = ("SELECT", "INSERT", "UPDATE", "REFERENCES")
_RELATIONS = "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')"


@pytest.fixture
def catalogue(postgres_cluster: EmbeddedPostgres, module_database_urls: Mapping[str, str]) -> Iterator[psycopg.Connection]:
    name = module_database_urls[GATEWAY].split("/")[3].split("?")[0]
    with psycopg.connect(libpq_conninfo(postgres_cluster.superuser_url(database=name))) as connection:
        yield connection


def _all(connection: psycopg.Connection, query: str, *parameters: object) -> list[Any]:
    rows = connection.execute(query, parameters).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def _live_privileges(connection: psycopg.Connection, role: str, relation: str) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for privilege in _PRIVILEGES:
        if _all(connection, "select has_table_privilege(%s, 'public.' || %s, %s)", role, relation, privilege) == [True]:
            held[privilege] = "*"
        elif privilege in _BY_COLUMN:
            columns = _all(
                connection,
                """select attname from pg_attribute where attrelid = ('public.' || %s)::regclass and attnum > 0 and not attisdropped
                   and has_column_privilege(%s, attrelid, attnum, %s) order by attname""",
                relation,
                role,
                privilege,
            )
            if columns:
                held[privilege] = columns
    return held


def test_privileges__live__are_exactly_the_committed_matrix(catalogue: psycopg.Connection) -> None:
    live: dict[str, dict[str, Any]] = {}
    for relation in _all(catalogue, _RELATIONS + " order by 1"):
        for role in APPLICATION_ROLES:
            if held := _live_privileges(catalogue, role, relation):
                live.setdefault(relation, {})[role] = held
    assert live == _MATRIX["tables"]


def test_functions__live__are_exactly_the_committed_ones(catalogue: psycopg.Connection) -> None:
    functions = _all(
        catalogue,
        """select p.proname || '(' || oidvectortypes(p.proargtypes) || ')', p.prosecdef, p.proconfig,
                  p.proowner::regrole::text, p.oid
             from pg_proc p where p.pronamespace = 'public'::regnamespace order by 1""",
    )
    granted = {
        name: [
            role
            for role in APPLICATION_ROLES
            if _all(catalogue, "select has_function_privilege(%s, %s::oid, 'execute')", role, oid) == [True]
        ]
        for name, _, _, _, oid in functions
    }
    assert granted == _MATRIX["functions"]
    assert [name for name, definer, *_ in functions if definer] == _MATRIX["security_definer"]
    for name, _, config, owner, _ in functions:
        assert config == ["search_path=pg_catalog, pg_temp"], name
        assert owner == "ext_owner"


def test_security_definer_functions__are_listed_in_the_decision_record() -> None:
    record = (Path(__file__).parents[3] / "docs/adr/0003-database-roles.md").read_text()
    for name in _MATRIX["security_definer"]:
        assert name.split("(")[0] in record


def test_roles__none__is_dangerous_or_owns_what_it_uses(catalogue: psycopg.Connection) -> None:
    rows = _all(
        catalogue,
        """select rolname from pg_roles
            where rolname = any(%s) and not (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication) order by 1""",
        list(ROLES),
    )
    assert rows == sorted(ROLES)
    owners = _all(catalogue, "select distinct relowner::regrole::text from pg_class where relnamespace = 'public'::regnamespace")
    assert owners == ["ext_owner"]
    assert _all(catalogue, "select 1 from pg_auth_members m where m.member = any(%s::regrole[])", list(ROLES)) == []


def test_public__has_nothing(catalogue: psycopg.Connection) -> None:
    for role in APPLICATION_ROLES:
        assert _all(catalogue, "select has_schema_privilege(%s, 'public', 'create')", role) == [False]
        assert _all(catalogue, "select has_database_privilege(%s, current_database(), 'temp')", role) == [False]
        assert _all(catalogue, "select has_database_privilege(%s, current_database(), 'create')", role) == [False]
    grants = _all(
        catalogue,
        """select c.relname from pg_class c, aclexplode(c.relacl) a where a.grantee = 0 and c.relnamespace = 'public'::regnamespace
           union all
           select p.proname from pg_proc p, aclexplode(p.proacl) a where a.grantee = 0 and p.pronamespace = 'public'::regnamespace""",
    )
    assert grants == []
    assert _all(catalogue, "select proname from pg_proc where pronamespace = 'public'::regnamespace and proacl is null") == []


def test_default_privileges__there_are_none(catalogue: psycopg.Connection) -> None:
    assert _all(catalogue, "select defaclrole::regrole::text from pg_default_acl") == []


def test_tenant_tables__all__have_forced_row_level_security(catalogue: psycopg.Connection) -> None:
    rows = _all(
        catalogue,
        """select c.relname, c.relrowsecurity, c.relforcerowsecurity,
                  exists (select from pg_policy p where p.polrelid = c.oid and p.polroles @> array['ext_owner'::regrole::oid])
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')""",
    )
    assert len(rows) >= 13
    assert [row for row in rows if row[1:] != (True, True, True)] == []


def test_policies__none__is_for_everybody_or_always_true_for_a_tenants_role(catalogue: psycopg.Connection) -> None:
    policies = _all(
        catalogue,
        """select p.polrelid::regclass::text, p.polname, p.polpermissive, p.polroles::regrole[]::text[], pg_get_expr(p.polqual, p.polrelid),
                  pg_get_expr(p.polwithcheck, p.polrelid) from pg_policy p""",
    )
    tenant_roles = {"ext_gateway", "ext_runner", "ext_admin"}
    for relation, name, _, roles, using, check in policies:
        assert "-" not in roles, (relation, name)
        if set(roles) & tenant_roles:
            assert set(roles) <= tenant_roles
            assert using == check
            assert "SELECT" in using, "read in a sub-select, once for each statement"
            assert "tenant_id = ( SELECT" in using
        else:
            assert set(roles) <= {"ext_owner", "ext_maintenance"}


def test_tenant_tables__empty_tenant__cannot_be_stored(catalogue: psycopg.Connection) -> None:
    tables = _all(
        catalogue,
        """select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
              and not exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'c'
                               and pg_get_constraintdef(k.oid) ~ 'tenant_id <> ''''')""",
    )
    assert tables == []


def test_tenant_tables__every_key__begins_with_the_tenant(catalogue: psycopg.Connection) -> None:
    keys = _all(
        catalogue,
        """select c.relname, k.conname, k.contype, (select attname from pg_attribute where attrelid = k.conrelid and attnum = k.conkey[1]),
                  k.confrelid::regclass::text,
                  exists (select from pg_attribute f where f.attrelid = k.confrelid and f.attname = 'tenant_id')
             from pg_constraint k join pg_class c on c.oid = k.conrelid
             join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
            where c.relnamespace = 'public'::regnamespace and k.contype in ('p', 'u', 'f', 'x')""",
    )
    assert keys
    wrong = [key for key in keys if key[3] != "tenant_id" and not (key[2] == "f" and not key[5])]
    assert wrong == []
    unique_indexes = _all(
        catalogue,
        """select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indrelid
             join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
            where i.indisunique and c.relnamespace = 'public'::regnamespace
              and (select attname from pg_attribute where attrelid = c.oid and attnum = i.indkey[0]) <> 'tenant_id'""",
    )
    assert unique_indexes == []


def test_partitions__have_no_grant_but_policies(catalogue: psycopg.Connection) -> None:
    partitions = _all(catalogue, "select c.relname, c.relacl::text from pg_class c where c.relispartition and c.relkind = 'r'")
    assert len(partitions) >= migrations.MONTHS_AHEAD + 2
    for name, acl in partitions:
        assert acl is None or set(re.findall(r"(\w*)=", acl)) <= {"ext_owner"}, name
        for role in APPLICATION_ROLES:
            assert _live_privileges(catalogue, role, name) == {}


def test_views__there_is_none_that_runs_as_its_owner(catalogue: psycopg.Connection) -> None:
    views = _all(
        catalogue,
        """select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'm')
            and not coalesce('security_invoker=true' = any(c.reloptions), false)""",
    )
    assert views == []


def test_sequences__there_are_none(catalogue: psycopg.Connection) -> None:
    assert _all(catalogue, "select relname from pg_class where relkind = 'S' and relnamespace = 'public'::regnamespace") == []


@pytest.mark.parametrize(
    "statement",
    [
        "update tenant_extension_install set granted_caps = '[\"http.fetch\"]'",
        "insert into extension_publisher (id, name, created_by) values (gen_random_uuid(), 'evil', 'evil')",
        "insert into extension_publisher_identity select gen_random_uuid(), id, 'd', 'i', 'evil', 'evil' from extension_publisher",
        "delete from extension_denylist",
        "select content_hash from extension_denylist",
        "select config from tenant_extension_install_config",
        "select granted_caps from tenant_extension_install",
        "select * from ext_storage_record",
        "select manifest from extension_version",
        "insert into extension_audit_log (tenant_id, id, actor, action, subject) values ('a', gen_random_uuid(), 'a', 'b', 'c')",
        "select * from extension_execution_log",
        "truncate extension_denylist",
        "create table evil (id int)",
        "create temporary table evil (id int)",
        "set role ext_owner",
        "set session authorization ext_admin",
        "select extrunner_is_interface_served('a.b', 'c')",
        "select extrunner_create_execution_log_partitions(24)",
        "alter table tenant_extension_install disable row level security",
        "copy tenant_extension_install to program 'id'",
    ],
)
def test_gateway__taken_over__can_neither_grant_nor_read_beyond_routing(module_database_urls: Mapping[str, str], statement: str) -> None:
    with psycopg.connect(libpq_conninfo(module_database_urls[GATEWAY])) as connection:
        connection.execute("select set_config('app.tenant_id', 'tenant-a', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("ext_runner", "update tenant_extension_install set granted_caps = '[]'"),
        ("ext_runner", "insert into extension_denylist (content_hash, reason, created_by) values ('x', 'x', 'x')"),
        ("ext_runner", "update extension_version set state = 'published'"),
        ("ext_runner", "update extension_execution_log set status = 'completed'"),
        ("ext_runner", "delete from extension_execution_log"),
        ("ext_runner", "delete from extension_quota_usage"),
        ("ext_runner", "select log from extension_execution_log"),
        ("ext_admin", "update extension_bundle set content_hash = 'x'"),
        ("ext_admin", "delete from extension_bundle"),
        ("ext_admin", "update extension_version set manifest = '{}'"),
        ("ext_admin", "delete from extension_denylist"),
        ("ext_admin", "update extension_publisher_identity set identity = 'evil'"),
        ("ext_admin", "update extension_registry set publisher = 'evil'"),
        ("ext_admin", "select * from extension_audit_log"),
        ("ext_admin", "update extension_audit_log set actor = 'somebody else'"),
        ("ext_admin", "delete from extension_audit_log"),
        ("ext_admin", "select * from ext_storage_record"),
        ("ext_admin", "insert into extension_execution_log select * from extension_execution_log"),
        ("ext_maintenance", "select value from ext_storage_record"),
        ("ext_maintenance", "update extension_execution_log set status = 'completed'"),
        ("ext_maintenance", "select * from tenant_extension_install"),
        ("ext_maintenance", "insert into extension_denylist (content_hash, reason, created_by) values ('x', 'x', 'x')"),
    ],
)
def test_role__beyond_its_task__is_refused(module_database_urls: Mapping[str, str], role: str, statement: str) -> None:
    with psycopg.connect(libpq_conninfo(module_database_urls[role])) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_maintenance__makes_partitions_under_row_level_security(
    module_database_urls: Mapping[str, str], catalogue: psycopg.Connection
) -> None:
    assert migrations.ensure_partitions(module_database_urls[MAINTENANCE], 6) == 3
    assert migrations.ensure_partitions(module_database_urls[MAINTENANCE], 6) == 0
    rows = _all(
        catalogue,
        """select relrowsecurity, relforcerowsecurity, relacl from pg_class
            where relname like 'extension\\_execution\\_log\\_2%%' and relkind = 'r'""",
    )
    assert rows == [(True, True, None)] * 7


@pytest.mark.parametrize("months", [-1, 25])
def test_maintenance__absurd_number_of_partitions__is_refused(module_database_urls: Mapping[str, str], months: int) -> None:
    with pytest.raises(migrations.MigrationError, match="months_ahead"):
        migrations.ensure_partitions(module_database_urls[MAINTENANCE], months)
