"""A guest that redirects its caller: whoever follows within one origin sends the bearer token along, and after 307 method and body too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fake_runner import completed
from tests.fakes.gateway_kit import EXTENSION, gateway_kit

ORIGIN = "http://gateway.test"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 201])
@pytest.mark.parametrize(
    "target",
    [
        "/api/admin/v1/denylist",
        "/%61pi/admin/v1/denylist",
        f"{ORIGIN}/api/admin/v1/denylist",
        "../../../admin/v1/denylist",
        "/api/ext/com.example.victim/delete-everything",
        f"/api/ext/{EXTENSION}/%2e%2e/com.example.victim/delete-everything",
        "../../com.example.victim/delete-everything",
    ],
)
async def test_redirect_of_a_users_call_to_somebody_else__leads_nowhere(tmp_path: Path, status: int, target: str) -> None:
    async with gateway_kit(tmp_path, own_origin=ORIGIN) as kit, kit.client() as client:
        kit.runner.answer = completed(status, headers=(("location", target),))
        answer = await client.post(f"/api/ext/{EXTENSION}/a/b", headers=kit.bearer(), content=b"chosen by the extension's page")
        assert answer.status_code == status
        assert "location" not in answer.headers


async def test_redirect_within_the_extension__followed_with_the_token(tmp_path: Path) -> None:
    async with gateway_kit(tmp_path) as kit, kit.client() as client:
        kit.runner.answer = completed(303, headers=(("location", "../done?id=7"),))
        answer = await client.post(f"/api/ext/{EXTENSION}/a/b", headers=kit.bearer())
        assert answer.headers["location"] == "../done?id=7"
        kit.runner.answer = completed(body=b"done")
        assert answer.next_request is not None
        assert (await client.send(answer.next_request)).content == b"done"
        assert kit.runner.requests[-1].http.path == "/done"
