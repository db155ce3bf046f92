"""`scripts/demo`, as the README tells a newcomer to run it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from scripts.demonstration.samples import javascript_is_available
from tests.e2e.conftest import DEMO, EXTCTL, Run, Running, clean_environment, processes_of, run

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("demo")]

PYTHON = "com.example.notes-python"
LANGUAGES = {"python", "javascript"} if javascript_is_available() else {"python"}
TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.")


def test_once__everything_holds__and_the_last_line_says_so(first_run: Run) -> None:
    assert first_run.returncode == 0, first_run.stdout[-3000:] + first_run.stderr[-3000:]
    document = first_run.last_json
    assert document["ok"] is True
    assert document["failures"] == []
    assert document["verified_signer"] == "https://dev.invalid/people/alice"
    assert document["tampered_bundle_refused"] is True
    assert (document["refused_at_publish"], document["refused_at_load"]) == ("INVALID_BUNDLE", "BUNDLE_CORRUPT")
    assert document["ungranted_capability_refused"] is True
    assert document["elapsed_seconds"] > 0
    assert bool(document["missing"]) == ("javascript" not in LANGUAGES)


def test_once__every_guest_is_called_over_both_ways_for_both_tenants(first_run: Run) -> None:
    invocations = first_run.last_json["invocations"]
    completed = [row for row in invocations if row["outcome"] == "completed"]
    seen = {(row["language"], row["tenant"], row["via"]) for row in completed}
    assert seen >= {(language, tenant, via) for language in LANGUAGES for tenant in ("acme", "globex") for via in ("http", "grpc")}
    assert all({"extension", "method", "path", "status", "body", "execution_id", "wall_ms"} <= row.keys() for row in invocations)
    assert len({row["execution_id"] for row in completed}) == len(completed)
    assert all(row["wall_ms"] > 0 for row in invocations)


def test_once__capability_that_one_tenant_granted__is_refused_to_the_other_alone(first_run: Run) -> None:
    for language in LANGUAGES:
        rows = [row for row in first_run.last_json["invocations"] if row["path"] == "/whoami" and row["language"] == language]
        assert {row["tenant"]: row["status"] for row in rows} == {"acme": 200, "globex": 403}
        refused = next(row for row in rows if row["tenant"] == "globex")
        assert json.loads(refused["body"])["capability"] == "user.read"


def test_once__leaves_no_process_and_no_open_folder(first_run: Run, demo_state: Path) -> None:
    if not (demo_state / "machine.json").exists():  # else the demonstration that keeps running has it
        assert processes_of(demo_state) == []
    assert demo_state.stat().st_mode & 0o077 == 0
    open_files = [file for file in [*(demo_state / "keys").iterdir(), *(demo_state / "secrets").iterdir()] if file.stat().st_mode & 0o077]
    assert [file.name for file in open_files if "private" in file.name or file.suffix in {".url", ".ed25519"}] == []


def test_once__says_no_secret(first_run: Run, demo_state: Path) -> None:
    said = first_run.stdout + first_run.stderr
    logs = "".join(file.read_text() for file in (demo_state / "logs").iterdir())
    password = re.search(r"://ext_admin:([^@]+)@", (demo_state / "secrets" / "ext_admin.url").read_text())
    assert password is not None
    for text in (said, logs):
        assert TOKEN.search(text) is None
        assert password[1] not in text


def test_help__explains_and_starts_nothing(tmp_path: Path) -> None:
    result = run([DEMO, "--help"])
    assert result.returncode == 0
    assert "--once" in result.stdout


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--state"]])
def test_wrong_usage__is_told_by_the_exit_code(arguments: list[str]) -> None:
    assert run([DEMO, *arguments]).returncode == 2


def test_second_run__keeps_running__on_what_the_first_left(demo: Running) -> None:
    said = "\n".join(demo.lines)
    assert "was published already" in said
    assert "FAILED" not in said
    assert "extctl invoke" in said


def test_machine_runs__second_one_on_its_state__is_refused_and_says_where_it_is(demo: Running) -> None:
    result = demo.extctl("up")
    assert result.returncode == 1
    assert "already runs" in result.stderr
    assert "http://127.0.0.1:" in result.stderr
    assert demo.process.poll() is None


def test_machine_runs__no_secret_in_any_command_line(demo: Running) -> None:
    commands = "\n".join(processes_of(demo.state))
    assert "runnerd" in commands
    assert TOKEN.search(commands) is None
    assert "://ext_" not in commands


@pytest.mark.parametrize("way", [[], ["--grpc"]])
def test_invoke__json__tells_what_a_script_needs(demo: Running, way: list[str]) -> None:
    result = demo.extctl("invoke", PYTHON, "/?x=1", "--tenant", "acme", "--json", *way)
    assert result.returncode == 0, result.stderr
    answer = result.last_json
    assert (answer["status"], answer["outcome"]) == (200, "completed")
    assert json.loads(answer["body"])["greeting"] == "Welcome to Acme"
    recorded = demo.extctl("executions", answer["execution_id"], "--tenant", "acme", "--json")
    assert recorded.returncode in {0, 1}, "the record is written in batches"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("invoke", PYTHON, "/", "--tenant", "initech"), "EXTENSION_NOT_INSTALLED"),
        (("invoke", "com.example.unheard-of", "/", "--tenant", "acme"), "EXTENSION_NOT_INSTALLED"),
        (("invoke", PYTHON, "/undeclared", "--tenant", "acme"), "ENDPOINT_NOT_FOUND"),
        (("invoke", PYTHON, "/", "--tenant", "initech", "--grpc"), "EXTENSION_NOT_INSTALLED"),
        (("install", PYTHON, "--tenant", "acme", "--grant", "storage.kv"), "ALREADY_INSTALLED"),
        (("install", PYTHON, "--tenant", "initech"), "CONSENT_REQUIRED"),
        (("install", PYTHON, "--tenant", "initech", "--version", "9.9.9", "--grant-nothing"), "VERSION_NOT_FOUND"),
        (("publisher", "create", "example"), "ALREADY_EXISTS"),
        (("publisher", "add-signer", "nobody", "--identity", "https://dev.invalid/people/eve"), "NOT_FOUND"),
        (("deny", "sha256:00", "--reason", "x"), "INVALID_REQUEST"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_refusal__of_a_real_service__reaches_the_script(demo: Running, arguments: tuple[str, ...], reason: str) -> None:
    result = demo.extctl(*arguments, "--json")
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.last_json["error"]["reason"] == reason


def test_publish__altered_archive_and_other_signer__are_refused(demo: Running, tmp_path: Path) -> None:
    archive, signature = tmp_path / "a.tar.zst", tmp_path / "a.sigstore.json"
    data = bytearray((demo.state / "demo" / "notes-python.tar.zst").read_bytes())
    archive.write_bytes(data)
    signed = demo.extctl("sign", str(archive), "-o", str(signature), "--identity", "https://dev.invalid/people/eve")
    assert signed.returncode == 0
    other = demo.extctl("publish", str(archive), "--signature", str(signature), "--json")
    assert (other.returncode, other.last_json["error"]["reason"]) == (1, "SIGNATURE_REJECTED")
    data[-10] ^= 1
    archive.write_bytes(data)
    altered = demo.extctl("publish", str(archive), "--signature", str(signature), "--json")
    assert altered.returncode == 1
    assert altered.last_json["error"]["reason"] in {"INVALID_BUNDLE", "SIGNATURE_REJECTED"}


def test_invoke__on_a_terminal__hostile_body_cannot_write_to_it(demo: Running) -> None:
    title = "\x1b[2J\u202egnp.exe\u2066"
    made = demo.extctl("invoke", PYTHON, "/notes", "--tenant", "acme", "--json", "-d", json.dumps({"title": title}))
    note = json.loads(made.last_json["body"])
    assert note["title"] == title, "the extension gives back what it was given"
    master, slave = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [str(EXTCTL), "invoke", PYTHON, f"/notes/{note['id']}", "--tenant", "acme", "--state", str(demo.state)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as program:
        os.close(slave)
        try:
            while chunk := os.read(master, 4096):
                shown += chunk
        except OSError:
            pass  # how a terminal says that nobody writes to it any more
        finally:
            os.close(master)
        assert program.wait(60) == 0
    text = shown.decode()
    assert "gnp.exe" in text
    assert not {"\u202e", "\u2066"} & set(text)
    assert "\x1b[2J" not in text
    assert demo.extctl("invoke", PYTHON, f"/notes/{note['id']}", "-X", "DELETE", "--tenant", "acme").returncode == 0
