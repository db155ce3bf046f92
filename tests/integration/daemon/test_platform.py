"""The host platform, called by guests through the daemon as it is started in earnest."""

from __future__ import annotations

import json

from registry.database import Database
from registry.domain.ids import new_id
from registry.repositories.executions import ExecutionRepository
from tests.fakes.asking_guests import asking_guest
from tests.fakes.daemon_process import Machine, add_extension, started
from tests.fakes.dispatch_kit import TENANT
from tests.fakes.platform_kit import CALL_ROUTE, LIST_CLIENTS, TOKEN, write_token
from tests.fakes.platform_server import document, fake_platform, saying


async def test_guests__reach_the_platform_as_the_contract_says(machine: Machine, admin_database: Database) -> None:
    wanted = ["client.read", "user.read"]
    reader = await add_extension(
        machine, admin_database, "reader", asking_guest(LIST_CLIENTS), capabilities=wanted, granted=["client.read"]
    )
    caller = await add_extension(machine, admin_database, "caller", asking_guest(CALL_ROUTE), capabilities=["ui.proxy", "user.read"])
    async with fake_platform() as platform:
        settings = {
            "RUNNERD_PLATFORM__BASE_URL": platform.base_url + "/psa/",
            "RUNNERD_PLATFORM__TOKEN_FILE": str(write_token(machine.folder, name="platform-token")),
            "RUNNERD_LOG_LEVEL": "DEBUG",
        }
        async with started(machine, **settings) as daemon:
            platform.answer = document(200, {"items": [], "totalCount": 0, "page": 1, "pageSize": 1})
            assert (await daemon.execute("reader")).completed.status == 200
            assert platform.last.target == f"/psa/api/internal/ext-clients/install/{reader.install_id}"
            assert platform.last.json == {
                "operation": "list",
                "input": {"search": "xy", "includeInactive": True, "page": 1, "pageSize": 1},
            }
            headers = platform.last.headers
            assert (headers["x-runner-auth"], headers["x-alga-tenant"], headers["x-ext-actor"]) == (TOKEN, TENANT, "system")

            platform.answer = saying(403)
            withheld = await daemon.execute("reader", user="u-1")
            assert platform.last.json["user"] == {"userId": "withheld", "userType": "withheld"}

            # An event that is delivered again leads to the same write again; anything else is a write of its own.
            platform.answer = saying(200, b"done")
            event, first = new_id(), len(platform.received)
            for follows in (event, event, new_id(), None, None):
                assert (await daemon.execute("caller", follows=follows)).completed.status == 200
            posted = platform.received[first:]
            assert {(received.method, received.target, received.body) for received in posted} == {
                ("POST", f"/psa/{caller.extension_id}/xy", b"xy")
            }
            keys = [received.headers["idempotency-key"] for received in posted]
            assert keys[0] == keys[1]
            assert len(set(keys)) == 4
            assert not any("x-runner-auth" in received.headers for received in posted)

            await daemon.execute("caller", user="u-1")
            assert (platform.last.headers["x-user-id"], platform.last.headers["x-ext-actor"]) == ("u-1", "user")
        assert daemon.process.returncode == 0
    assert TOKEN not in json.dumps(daemon.lines)
    async with admin_database.tenant_session(TENANT) as session:
        record = await ExecutionRepository(session, TENANT).find(withheld.execution_id)
    assert record is not None
    assert [(denial["capability"], denial["why"]) for denial in record.denials] == [("cap:user.read", "not_granted")]
