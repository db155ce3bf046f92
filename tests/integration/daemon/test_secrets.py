"""Secrets from the writer to the guest, through the daemon as it is started in earnest; and nothing of them in what is kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg

from registry.database import Database
from registry.migrations.roles import OWNER, libpq_conninfo
from registry.repositories.executions import ExecutionRepository
from registry.services.secrets import SecretWriter
from tests.fakes.daemon_process import Machine, add_extension, started
from tests.fakes.dispatch_kit import TENANT
from tests.fakes.guests import component
from tests.fakes.sealing import make_pair, sealer_of

VALUE = "s3cr3t-value-for-the-guest"
MISSING, DENIED, EXPIRED, INTERNAL = 500, 501, 502, 503


async def test_guest__gets_its_secret_and_the_log_does_not(machine: Machine, admin_database: Database) -> None:
    granted = await add_extension(machine, admin_database, "granted", component("tell_secret"), capabilities=["secrets.get"])
    denied = await add_extension(machine, admin_database, "denied", component("tell_secret"), capabilities=["secrets.get"], granted=[])
    pair = make_pair(machine.folder, "secrets", development=True)
    writer = SecretWriter(admin_database, sealer_of(pair))
    settings = {
        "RUNNERD_SECRETS__LOCAL__PRIVATE_KEY_FILES": json.dumps([str(pair.private_file)]),
        "RUNNERD_LOG_LEVEL": "DEBUG",
    }
    async with started(machine, **settings) as daemon:
        assert (await daemon.execute("granted")).completed.status == MISSING
        for install in (granted, denied):
            await writer.put(TENANT, install.install_id, "api_key", value=VALUE, actor="alice")
        told = await daemon.execute("granted")
        assert (told.completed.status, told.completed.body) == (200, VALUE.encode())
        assert (await daemon.execute("denied")).completed.status == DENIED
        with psycopg.connect(libpq_conninfo(machine.urls[OWNER]), autocommit=True) as owner:
            owner.execute("update tenant_extension_install_secrets set version = 2")
            assert (await daemon.execute("granted")).completed.status == INTERNAL
            owner.execute("update tenant_extension_install_secrets set version = 1")
            assert (await daemon.execute("granted")).completed.status == 200
            expires = datetime.now(UTC) + timedelta(hours=1)
            await writer.put(TENANT, granted.install_id, "api_key", value=VALUE, expires_at=expires, actor="alice")
            assert (await daemon.execute("granted")).completed.status == 200
            owner.execute("update tenant_extension_install_secrets set expires_at = now()")
            assert (await daemon.execute("granted")).completed.status == EXPIRED
            refused = owner.execute("select subject from extension_audit_log where action = 'secret.refuse'").fetchall()
        assert refused == [(granted.install_id,)]
        metrics = await daemon.get("/metrics")
    assert daemon.process.returncode == 0
    async with admin_database.tenant_session(TENANT) as session:
        record = await ExecutionRepository(session, TENANT).find(told.execution_id)
    assert record is not None
    assert [line["message"] for line in record.log] == ["api_key", "[redacted]"]
    said = json.dumps(daemon.lines)
    assert "no secret given" in said
    assert "secret envelope refused" in said
    assert VALUE not in said
    assert VALUE not in metrics


async def test_without_a_key__denied_and_explained(machine: Machine, admin_database: Database) -> None:
    await add_extension(machine, admin_database, "granted", component("tell_secret"), capabilities=["secrets.get"])
    async with started(machine) as daemon:
        answer = await daemon.execute("granted")
    assert answer.completed.status == DENIED
    async with admin_database.tenant_session(TENANT) as session:
        record = await ExecutionRepository(session, TENANT).find(answer.execution_id)
    assert record is not None
    assert [(denial["capability"], denial["why"]) for denial in record.denials] == [("cap:secrets.get", "not_available")]
