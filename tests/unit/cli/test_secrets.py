"""`extctl secrets` and `extctl db rewrap-secrets`: values from standard input or a file, and nothing of them on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from registry.cli.__main__ import app
from registry.cli.rewrapping import read_rewrap_settings
from registry.cli.state import MachineState
from registry.secrets.local_keys import LocalUnwrapper, LocalWrapper
from tests.unit.cli.test_verbs import answering, installed, state

__all__ = ["state"]
VALUE = "s3cr3t-value"
WRITTEN = {"name": "api_key", "version": 1}


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def put(monkeypatch: pytest.MonkeyPatch, *options: str, stdin: bytes = b"") -> tuple[Result, list[httpx.Request]]:
    seen = answering(monkeypatch, installed(), httpx.Response(200, json=WRITTEN))
    return run("secrets", "set", "com.example.notes", "api_key", "--tenant", "acme", *options, stdin=stdin), seen


@pytest.mark.parametrize(
    ("stdin", "options", "value"),
    [
        (VALUE.encode(), (), VALUE),
        (VALUE.encode() + b"\n", (), VALUE),
        (VALUE.encode() + b"\r\n", (), VALUE),
        (VALUE.encode() + b"\n\n", (), VALUE + "\n"),
        (VALUE.encode() + b"\n", ("--exact",), VALUE + "\n"),
    ],
)
def test_set__from_standard_input(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, stdin: bytes, options: tuple[str, ...], value: str
) -> None:
    result, seen = put(monkeypatch, *options, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert VALUE not in result.output
    assert (seen[1].method, seen[1].url.raw_path.split(b"?")[0]) == ("PUT", b"/api/admin/v1/installs/i%2F1/secrets/api_key")
    assert json.loads(seen[1].content) == {"value": value}


def test_set__from_a_file_with_expiry(state: MachineState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text(VALUE)
    result, seen = put(monkeypatch, "--file", str(file), "--expires-at", "2099-01-01T00:00:00Z", "--json")
    assert result.exit_code == 0, result.output
    assert VALUE not in result.output
    assert json.loads(seen[1].content) == {"value": VALUE, "expires_at": "2099-01-01T00:00:00Z"}


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\xff", b"x" * 70_000])
def test_set__no_value__is_a_usage_error_and_nothing_is_sent(state: MachineState, monkeypatch: pytest.MonkeyPatch, stdin: bytes) -> None:
    result, seen = put(monkeypatch, stdin=stdin)
    assert result.exit_code == 2
    assert seen == []


def test_list_and_remove(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, installed(), httpx.Response(200, json={"items": [WRITTEN]}), installed(), httpx.Response(204))
    shown = run("secrets", "list", "com.example.notes", "--tenant", "acme")
    assert shown.exit_code == 0
    assert "api_key" in shown.output
    assert run("secrets", "remove", "com.example.notes", "api_key", "--tenant", "acme").exit_code == 0
    assert [request.method for request in seen] == ["GET", "GET", "GET", "DELETE"]


def test_keygen__a_pair_that_production_takes_and_never_twice(tmp_path: Path) -> None:
    made = run("secrets", "keygen", str(tmp_path), "--json")
    assert made.exit_code == 0, made.output
    document = json.loads(made.output)
    LocalWrapper(Path(document["public"]), refuse_development_keys=True)
    assert LocalUnwrapper([Path(document["private"])], refuse_development_keys=True).knows(document["key"])
    private = json.loads(Path(document["private"]).read_text())["d"]
    assert private not in made.output
    assert run("secrets", "keygen", str(tmp_path)).exit_code == 2


def test_rewrap__keys_file__complains_about_names_not_values(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"opening": {"local": {"private_key_files": [VALUE], "other": VALUE}}, "sealing": {}}))
    (tmp_path / "url").write_text("postgresql+psycopg://ext_maintenance:hunter2@127.0.0.1:1/none")
    result = run("db", "rewrap-secrets", "--keys", str(file), "--url-file", str(tmp_path / "url"))
    assert result.exit_code == 2
    assert "opening.local.other" in result.output
    assert VALUE not in result.output
    file.write_text(json.dumps({"opening": {"local": {"private_key_files": ["a", "b"]}}, "sealing": {"local": {"public_key_file": "c"}}}))
    assert len(read_rewrap_settings(file).opening.model_dump(exclude_none=True)["local"]["private_key_files"]) == 2
    gone = run("db", "rewrap-secrets", "--keys", str(file), "--url-file", str(tmp_path / "url"))
    assert gone.exit_code == 2
    assert "hunter2" not in gone.output
