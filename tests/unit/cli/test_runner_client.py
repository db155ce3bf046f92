from __future__ import annotations

import grpc
import pytest

from registry.cli import runner_client
from registry.cli.invocation import ExtensionCall
from registry.cli.output import UsageError

CALL = ExtensionCall(tenant_id="tenant-a", extension_id="com.example.notes")


class DialledError(Exception):
    """The token would be sent now."""


@pytest.fixture(autouse=True)
def _nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def dial(*_arguments: object, **_options: object) -> object:
        raise DialledError

    monkeypatch.setattr(grpc, "insecure_channel", dial)


@pytest.mark.parametrize("target", ["127.0.0.1:50051", "[::1]:50051", "localhost:50051"])
def test_execute__this_machine__is_dialled(target: str) -> None:
    with pytest.raises(DialledError):
        runner_client.execute(target, "token", CALL)


@pytest.mark.parametrize(
    "target",
    ["10.0.0.1:50051", "0.0.0.0:50051", "[::]:50051", "runner.example:50051", "localhost.example:50051", "127.0.0.1", ":50051", ""],
)
def test_execute__token_would_travel_unprotected__is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="unprotected"):
        runner_client.execute(target, "token", CALL)
