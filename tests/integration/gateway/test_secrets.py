"""Secrets through the admin REST: written and named, never read back, by a process that has nothing to open them with."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from registry.database import Database
from registry.domain.ids import InstallId, TenantId
from registry.secrets.binding import MAX_VALUE_BYTES
from registry.services.secret_reading import SecretReader
from tests.fakes.sealing import opener_of
from tests.integration.gateway.conftest import AdminKit
from tests.integration.gateway.test_admin import installed, published, reason

VALUE = "s3cr3t-value-of-t1"


async def address_of(admin: AdminKit) -> str:
    await published(admin)
    return f"/installs/{(await installed(admin))['install_id']}/secrets"


async def test_set__named_replaced_deleted_and_opened_by_the_daemon_alone(admin: AdminKit, runner_database: Database) -> None:
    address = await address_of(admin)
    expires = datetime.now(UTC) + timedelta(days=1)
    first = await admin.ask("PUT", f"{address}/api_key", "ext:manage", json={"value": VALUE, "expires_at": expires.isoformat()})
    assert first.status_code == 200, first.text
    assert (first.json()["name"], first.json()["version"], first.json()["is_expired"]) == ("api_key", 1, False)
    assert datetime.fromisoformat(first.json()["expires_at"]) == expires
    second = await admin.ask("PUT", f"{address}/api_key", "ext:manage", json={"value": VALUE + "2"})
    assert (second.json()["version"], second.json()["expires_at"]) == (2, None)
    listed = await admin.ask("GET", address, "ext:read")
    assert [(item["name"], item["version"]) for item in listed.json()["items"]] == [("api_key", 2)]
    assert "value" not in listed.text
    assert not [answer for answer in (first, second, listed) if VALUE in answer.text]
    reader = SecretReader(runner_database, opener_of(admin.secrets))
    assert await reader.read(TenantId("t1"), InstallId(address.split("/")[2]), "api_key") == VALUE + "2"
    await reader.aclose()
    assert (await admin.ask("DELETE", f"{address}/api_key", "ext:manage")).status_code == 204
    assert reason(await admin.ask("DELETE", f"{address}/api_key", "ext:manage")) == (404, "NOT_FOUND")
    assert reason(await admin.ask("GET", f"{address}/api_key", "ext:manage")) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "body",
    [
        {"value": VALUE, "valeu": VALUE},
        {"value": VALUE, "expires_at": "soon " + VALUE},
        {"value": VALUE, "expires_at": "2099-01-01T00:00:00"},
        {"value": VALUE, "expires_at": "2001-01-01T00:00:00Z"},
        {"value": [VALUE]},
        {"value": {VALUE: VALUE}},
        {"value": ""},
        {"value": VALUE * (MAX_VALUE_BYTES // len(VALUE) + 1)},
        {"value": VALUE + "ä" * (MAX_VALUE_BYTES // 2)},
        [VALUE],
    ],
)
async def test_malformed__refused_without_repeating_it(admin: AdminKit, body: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = await address_of(admin)
    answer = await admin.ask("PUT", f"{address}/api_key", "ext:manage", json=body)
    assert reason(answer) == (400, "INVALID_REQUEST")
    assert VALUE not in answer.text
    assert VALUE not in caplog.text
    assert (await admin.ask("GET", address, "ext:manage")).json()["items"] == []


async def test_hostile_names__refused(admin: AdminKit) -> None:
    address = await address_of(admin)
    for name in ("-x", "a%20b", "a%0ab", "%E2%80%AE", "x" * 129, "..%2f"):
        answer = await admin.ask("PUT", f"{address}/{name}", "ext:manage", json={"value": VALUE})
        assert answer.status_code in {400, 404}
        assert VALUE not in answer.text


async def test_foreign_install__is_not_there(admin: AdminKit) -> None:
    address = await address_of(admin)
    answer = await admin.ask("PUT", f"{address}/api_key", "ext:manage", tenant="t2", json={"value": VALUE})
    assert reason(answer) == (404, "EXTENSION_NOT_INSTALLED")


async def test_logs__of_a_setting_hold_no_value(
    admin: AdminKit, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    address = await address_of(admin)
    assert (await admin.ask("PUT", f"{address}/api_key", "ext:manage", json={"value": VALUE})).status_code == 200
    assert VALUE not in caplog.text
    assert VALUE not in "".join(capfd.readouterr())


def test_admin_process__loads_nothing_that_opens() -> None:
    code = (
        "import json, sys, gateway.admin_face; print(json.dumps([name for name in sys.modules if name.startswith(('registry', 'google'))]))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert "registry.secrets.sealing" in loaded
    assert not {"registry.secrets.opening", "registry.services.secret_reading", "registry.secrets.kms"} & set(loaded)
