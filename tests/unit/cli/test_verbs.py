from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result

from registry.cli.__main__ import app
from registry.cli.gateway_client import GatewayClient
from registry.cli.state import MachineState
from registry.key_sets import generate_key_set

HASH = "sha256:" + "0" * 64


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))


ALL_VERBS = sorted(verbs(get_command(app)))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineState:
    for name in ("EXTCTL_TOKEN", "EXTCTL_GATEWAY", "EXTCTL_TENANT", "EXTCTL_DATABASE_URL", "ENV"):
        monkeypatch.delenv(name, raising=False)
    state = MachineState(tmp_path / "state")
    state.keys.mkdir(parents=True)
    for name in ("users", "services"):
        generate_key_set(state.keys, name)
    monkeypatch.setenv("EXTCTL_STATE", str(state.root))
    return state


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answering(monkeypatch: pytest.MonkeyPatch, *responses: httpx.Response) -> list[httpx.Request]:
    """Let the gateway give these answers; return what it was asked."""
    seen: list[httpx.Request] = []
    left = iter(responses)

    def handler(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        return next(left)

    def make(base: str, token: str) -> GatewayClient:
        return GatewayClient(base, token, transport=httpx.MockTransport(handler))

    monkeypatch.setattr("registry.cli.connect.GatewayClient", make)
    monkeypatch.setattr("registry.cli.invoking.GatewayClient", make)
    return seen


def refusal(reason: str, status: int, detail: str = "no") -> httpx.Response:
    body = json.dumps({"reason": reason, "detail": detail, "request_id": "r-1"}).encode()
    return httpx.Response(status, headers={"content-type": "application/problem+json"}, content=body)


@pytest.mark.parametrize("verb", ALL_VERBS, ids=" ".join)
def test_help__every_verb__explains_itself(verb: tuple[str, ...]) -> None:
    result = run(*verb, "--help")
    assert result.exit_code == 0
    assert "Usage: extctl" in result.output or "Usage: root" in result.output or "Usage:" in result.output
    # Beyond the usage line there is a sentence.
    assert re.search(r"[a-z] [a-z]", result.output)


@pytest.mark.parametrize("verb", [verb for verb in ALL_VERBS if not getattr(verb, "commands", None)], ids=" ".join)
def test_options__every_verb__takes_no_secret_on_the_command_line(verb: tuple[str, ...]) -> None:
    command = get_command(app)
    for name in verb:
        command = command.commands[name]  # type: ignore[attr-defined]
    names = {option for parameter in command.params for option in parameter.opts}
    assert not names & {"--token", "--password", "--secret", "--database-url", "--url", "--key"}


def test_unknown_verb_or_option__is_a_usage_error() -> None:
    assert run("frobnicate").exit_code == 2
    assert run("pack", "--frobnicate").exit_code == 2


def test_token_user__json__can_be_read_by_a_script(state: MachineState) -> None:
    result = run("token", "user", "--tenant", "acme", "--role", "ext:manage", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["token"].count(".") == 2
    assert document["production"] is False
    assert "NON-PRODUCTION" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "user", "--tenant", "*"),
        ("token", "user", "--tenant", "a b"),
        ("token", "user", "--tenant", "acme", "--role", "root"),
        ("token", "user", "--tenant", "acme", "--ttl", "0"),
        ("token", "user", "--tenant", "acme", "--ttl", "86401"),
        ("token", "service", "--scope", "everything"),
        ("token", "service", "--scope", "execute", "--ttl", "601"),
        ("token", "service", "--scope", "execute", "--tenant", ""),
        ("install", "com.example.notes", "--tenant", "acme", "--grant", "root"),
        ("install", "com.example.notes", "--tenant", "acme", "--config", "novalue"),
        ("install", "com.example.notes", "--tenant", "acme", "--config", "a=1", "--config", "a=2"),
        ("install", "com.example.notes", "--tenant", "acme", "--grant", "storage.kv", "--grant-nothing"),
        ("install", "com.example.notes"),
        ("invoke", "com.example.notes", "no-slash", "--tenant", "acme"),
        ("invoke", "com.example.notes", "/a b", "--tenant", "acme"),
        ("invoke", "com.example.notes", "/a\nb", "--tenant", "acme"),
        ("invoke", "com.example/../x", "/", "--tenant", "acme"),
        ("invoke", "", "/", "--tenant", "acme"),
        ("invoke", "com.example.notes", "/", "--tenant", "acme", "--method", "TRACE"),
        ("invoke", "com.example.notes", "/", "--tenant", "acme", "-H", "no colon"),
        ("invoke", "com.example.notes", "/", "--tenant", "acme", "-H", "a: b\r\nevil: 1"),
        ("invoke", "com.example.notes", "/", "--tenant", "acme", "-d", "x", "--data-file", "y"),
        ("publisher", "add-signer", "..", "--identity", "https://dev.invalid/people/alice"),
        ("installs", "set", "", "--enable", "--tenant", "acme"),
        ("schedules", "disable", "i-1", "", "--tenant", "acme"),
        ("publish", "no-such-file"),
        ("pack", "no-such-folder-at-all", "-o", "/no/such/folder/x"),
        ("sign", "no-such-file"),
        ("verify", "no-such-file", "--identity", "x"),
        ("build", "/"),
        ("db", "create-roles", "--passwords", "no-such-file"),
    ],
    ids=" ".join,
)
def test_usage__what_cannot_be_meant__is_refused_here_and_nothing_is_sent(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    seen = answering(monkeypatch)
    result = run(*arguments)
    assert result.exit_code in {1, 2}, result.output
    assert result.exit_code == 2 or arguments[0] == "pack"
    assert seen == []


def test_token_user__default_lifetime_limits__are_accepted(state: MachineState) -> None:
    assert run("token", "user", "--tenant", "acme", "--ttl", "86400").exit_code == 0
    assert run("token", "service", "--scope", "execute", "--ttl", "600").exit_code == 0


def test_install__sends_what_was_decided(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, httpx.Response(201, json={"version": "1.0.0", "granted": ["storage.kv"]}))
    arguments = ("--grant", "cap:storage.kv", "--config", "greeting=a=b", "--endpoint-policy", "enforce", "--json")
    result = run("install", "com.example.notes", "--tenant", "acme", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(seen[0].content) == {
        "extension": "com.example.notes",
        "granted": ["storage.kv"],
        "config": {"greeting": "a=b"},
        "endpoint_policy": "enforce",
    }
    assert seen[0].url.params["tenant_id"] == "acme"
    assert json.loads(result.stdout)["granted"] == ["storage.kv"]


@pytest.mark.parametrize(("flags", "granted"), [((), None), (("--grant-nothing",), [])])
def test_install__nobody_decided_and_decided_for_nothing__are_told_apart(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], granted: list[str] | None
) -> None:
    seen = answering(monkeypatch, httpx.Response(201, json={}))
    run("install", "com.example.notes", "--tenant", "acme", *flags)
    assert json.loads(seen[0].content).get("granted") == granted


def test_install__installed_already__is_refused_without_update_and_changed_with_it(
    state: MachineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, refusal("ALREADY_INSTALLED", 409))
    assert run("install", "com.example.notes", "--tenant", "acme", "--grant", "storage.kv").exit_code == 1
    seen = answering(
        monkeypatch,
        refusal("ALREADY_INSTALLED", 409),
        installed(),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"version": "1.0.0"}),
    )
    arguments = ("--grant", "storage.kv", "--config", "greeting=hi", "--update")
    assert run("install", "com.example.notes", "--tenant", "acme", *arguments).exit_code == 0
    assert [request.method for request in seen] == ["POST", "GET", "PATCH", "PATCH"]
    assert seen[2].url.raw_path.startswith(b"/api/admin/v1/installs/i%2F1?")
    assert [json.loads(request.content) for request in seen[2:]] == [{"granted": ["storage.kv"]}, {"config": {"greeting": "hi"}}]


def installed() -> httpx.Response:
    kept = {"granted": ["storage.kv"], "endpoint_policy": "enforce", "limits": {"storage_bytes": 1_000, "fuel": None}}
    item = {"extension_name": "com.example.notes", "install_id": "i/1", "version": "1.0.0", **kept}
    return httpx.Response(200, json={"items": [item]})


def test_update__what_is_not_named__stays(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, refusal("ALREADY_INSTALLED", 409), installed(), httpx.Response(200, json={}))
    assert run("install", "com.example.notes", "--tenant", "acme", "--grant", "user.read", "--update").exit_code == 0
    assert [json.loads(request.content) for request in seen if request.method == "PATCH"] == [{"granted": ["user.read"]}]


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("--version", "1.1.0"), {"version": "1.1.0", "endpoint_policy": "enforce", "granted": ["storage.kv"]}),
        (("--endpoint-policy", "advisory"), {"version": "1.0.0", "endpoint_policy": "advisory", "granted": ["storage.kv"]}),
        (("--version", "1.1.0", "--grant-nothing"), {"version": "1.1.0", "endpoint_policy": "enforce", "granted": []}),
    ],
)
def test_update__to_another_version_or_policy__keeps_the_rest(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sent: dict[str, object]
) -> None:
    gone, made = httpx.Response(204), httpx.Response(201, json={"version": "1.1.0"})
    seen = answering(monkeypatch, refusal("ALREADY_INSTALLED", 409), installed(), gone, made)
    assert run("install", "com.example.notes", "--tenant", "acme", *arguments, "--update").exit_code == 0
    assert [request.method for request in seen] == ["POST", "GET", "DELETE", "POST"]
    assert json.loads(seen[3].content) == {"extension": "com.example.notes", "limits": {"storage_bytes": 1_000, "fuel": None}} | sent


def test_limits__are_named_anew_or_left_to_the_operator(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, *(httpx.Response(200, json={}) for _ in range(2)))
    given = ("--limit", "storage_bytes=1000", "--limit", "fuel=5")
    assert run("installs", "limits", "i/1", "--tenant", "acme", *given).exit_code == 0
    assert run("installs", "limits", "i/1", "--tenant", "acme", "--default").exit_code == 0
    assert [json.loads(request.content) for request in seen] == [{"limits": {"storage_bytes": 1_000, "fuel": 5}}, {"limits": {}}]
    for wrong in ((), (*given, "--default"), ("--limit", "fuel"), ("--limit", "fuel=-1"), ("--limit", "fuel=1e3"), ("--limit", "fuel=")):
        assert run("installs", "limits", "i/1", "--tenant", "acme", *wrong).exit_code == 2
    assert len(seen) == 2


def test_update__that_ends_halfway__says_so(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, refusal("ALREADY_INSTALLED", 409), installed(), httpx.Response(204), refusal("VERSION_NOT_FOUND", 404))
    result = run("install", "com.example.notes", "--tenant", "acme", "--version", "9.9.9", "--update")
    assert result.exit_code == 1
    assert "was removed and 9.9.9 was not installed" in result.stderr


def test_token_of_another_tenant__is_refused_before_anything_is_sent(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    token = json.loads(run("token", "user", "--tenant", "acme", "--json").stdout)["token"]
    monkeypatch.setenv("EXTCTL_TOKEN", token)
    seen = answering(monkeypatch, httpx.Response(200, json={"items": []}))
    result = run("executions", "--tenant", "globex")
    assert result.exit_code == 2
    assert "tenant acme" in result.stderr
    assert seen == []
    assert run("executions", "--tenant", "acme").exit_code == 0


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [("HASH_DENIED", 403, 1), ("CONSENT_REQUIRED", 409, 1), ("REGISTRY_UNAVAILABLE", 503, 3), ("UNHEARD_OF", 400, 1)],
)
def test_refusal__exit_code_and_reason__reach_the_script(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, reason: str, status: int, code: int
) -> None:
    answering(monkeypatch, refusal(reason, status))
    result = run("deny", HASH, "--reason", "bad", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["error"]["reason"] == reason
    assert "r-1" in result.stderr


def test_gateway_away__is_unavailable(state: MachineState) -> None:
    result = run("executions", "--tenant", "acme", "--gateway", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "extctl up" in result.stderr


def test_metrics__shown_and_forgotten(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    series = {"name": "orders", "kind": "counter", "labels": {"place": "a"}, "value": 3.0, "count": None, "observed_at": "now"}
    seen = answering(monkeypatch, httpx.Response(200, json={"items": [series]}), httpx.Response(204))
    shown = run("metrics", "i-1", "--tenant", "acme")
    assert shown.exit_code == 0
    assert re.search(r"orders +counter +{\"place\": \"a\"} +3.0", shown.output)
    assert run("metrics", "i-1", "--tenant", "acme", "--forget").exit_code == 0
    assert [(request.method, request.url.path) for request in seen] == [
        ("GET", "/api/admin/v1/installs/i-1/metrics"),
        ("DELETE", "/api/admin/v1/installs/i-1/metrics"),
    ]


def test_schedules__shown_stopped_let_go_and_removed(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"name": "nightly", "endpoint": "POST /report", "cron": "0 3 * * *", "is_active": True, "schedule_id": "s-1"}
    answers = [httpx.Response(200, json={"items": [shown]}), *(httpx.Response(200, json=shown) for _ in range(2)), httpx.Response(204)]
    seen = answering(monkeypatch, *answers)
    listed = run("schedules", "list", "i/1", "--tenant", "acme")
    assert listed.exit_code == 0, listed.output
    assert re.search(r"nightly +POST /report .*0 3 \* \* \*.* s-1", listed.output)
    for verb in ("disable", "enable", "remove"):
        result = run("schedules", verb, "i/1", "s-1", "--tenant", "acme")
        assert (result.exit_code, f"s-1 {verb}d" in result.output) == (0, True), result.output
    assert [(request.method, request.url.raw_path, request.content) for request in seen] == [
        ("GET", b"/api/admin/v1/installs/i%2F1/schedules?tenant_id=acme", b""),
        ("PATCH", b"/api/admin/v1/installs/i%2F1/schedules/s-1?tenant_id=acme", b'{"enabled":false}'),
        ("PATCH", b"/api/admin/v1/installs/i%2F1/schedules/s-1?tenant_id=acme", b'{"enabled":true}'),
        ("DELETE", b"/api/admin/v1/installs/i%2F1/schedules/s-1?tenant_id=acme", b""),
    ]


def test_execution__shows_its_log_and_its_denials(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    denial = {"capability": "cap:http.fetch", "why": "not_granted", "change": "Grant it."}
    log = [{"level": "info", "stream": "stdout", "message": "last words", "offset_us": "12", "truncated": "true"}]
    answering(monkeypatch, httpx.Response(200, json={"execution_id": "e-1", "log": log, "denials": [denial]}))
    output = run("executions", "e-1", "--tenant", "acme").output
    assert "denied  cap:http.fetch: not_granted. Grant it." in output
    assert "log     +12 µs  stdout info  last words (cut)" in output


HOSTILE = "\x1b[2J\x07evil\u202eko\u2066\nforged: line\u200b"


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (("publisher", "create", "x"), {"name": HOSTILE}),
        (("publisher", "list"), {"items": [{"name": HOSTILE, "signers": [{"identity": HOSTILE, "issuer": HOSTILE}]}]}),
        (("install", "com.example.notes", "--tenant", "acme"), {"version": HOSTILE, "granted": [HOSTILE]}),
        (("installs", "list", "--tenant", "acme"), {"items": [{"extension_name": HOSTILE, "granted": [HOSTILE], "version": HOSTILE}]}),
        (("executions", "--tenant", "acme"), {"items": [{"endpoint": HOSTILE, "reason": HOSTILE, "outcome": HOSTILE}]}),
        (
            ("executions", "e-1", "--tenant", "acme"),
            {"endpoint": HOSTILE, "log": [{"message": HOSTILE}], "denials": [{"capability": HOSTILE, "why": HOSTILE, "change": HOSTILE}]},
        ),
        (("metrics", "i-1", "--tenant", "acme"), {"items": [{"name": HOSTILE, "kind": HOSTILE, "labels": {HOSTILE: HOSTILE}}]}),
        (("schedules", "list", "i-1", "--tenant", "acme"), {"items": [{"name": HOSTILE, "endpoint": HOSTILE, "stopped_by": HOSTILE}]}),
        (("deny", HASH, "--reason", "r"), {"added": True, "content_hash": HOSTILE}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("as_json", [False, True])
def test_hostile_text__through_every_verb__never_reaches_the_terminal(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], document: dict[str, object], as_json: bool
) -> None:
    answering(monkeypatch, httpx.Response(200, json=document))
    result = run(*arguments, *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    assert not set("\x1b\x07\u202e\u2066\u200b") & set(result.output)
    assert not any(line.startswith("forged") for line in result.output.splitlines())


def test_hostile_refusal__never_reaches_the_terminal(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, refusal(HOSTILE, 400, HOSTILE))
    result = run("deny", HASH, "--reason", "r")
    assert result.exit_code == 1
    assert not set("\x1b\x07\u202e\u2066\u200b") & set(result.output)


def test_publish__hostile_answer__never_reaches_the_terminal(state: MachineState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bundle.tar.zst").write_bytes(b"archive")
    (tmp_path / "bundle.sigstore.json").write_bytes(b"{}")
    document = {"extension_name": HOSTILE, "version": HOSTILE, "content_hash": HOSTILE, "signer": {"identity": HOSTILE}, "created": True}
    answering(monkeypatch, httpx.Response(201, json=document))
    result = run("publish", str(tmp_path / "bundle.tar.zst"))
    assert result.exit_code == 0, result.output
    assert not set("\x1b\x07\u202e\u2066\u200b") & set(result.output)


@pytest.mark.parametrize("size", [0, 64 * 1024 + 1])
def test_publish__signature_of_no_possible_size__is_a_usage_error(state: MachineState, tmp_path: Path, size: int) -> None:
    (tmp_path / "bundle.tar.zst").write_bytes(b"archive")
    (tmp_path / "bundle.sigstore.json").write_bytes(b"x" * size)
    assert run("publish", str(tmp_path / "bundle.tar.zst")).exit_code == 2


def test_invoke__json__tells_everything_and_body_that_is_no_text_is_base64(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"x-ext-execution-id": "e-1", "x-request-id": "r-1", "x-ext-note": "a"}
    answering(
        monkeypatch, httpx.Response(201, headers=headers, content=b'{"a": 1}'), httpx.Response(200, headers=headers, content=b"\xff\x00")
    )
    first = json.loads(run("invoke", "com.example.notes", "/notes", "--tenant", "acme", "-d", "{}", "--json").stdout)
    assert (first["status"], first["outcome"], first["via"], first["execution_id"], first["body"]) == (
        201,
        "completed",
        "http",
        "e-1",
        '{"a": 1}',
    )
    second = json.loads(run("invoke", "com.example.notes", "/notes", "--tenant", "acme", "--json").stdout)
    assert second["body_base64"] == "/wA="


def test_invoke__data__makes_it_a_post(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [httpx.Response(200, headers={"x-ext-execution-id": "e"}) for _ in range(3)]
    seen = answering(monkeypatch, *answers)
    run("invoke", "com.example.notes", "/", "--tenant", "acme", "-d", "x", "-H", "Accept: text/plain")
    run("invoke", "com.example.notes", "/", "--tenant", "acme")
    run("invoke", "com.example.notes", "/", "--tenant", "acme", "-d", "x", "-X", "put")
    assert [request.method for request in seen] == ["POST", "GET", "PUT"]
    assert seen[0].headers["accept"].startswith("text/plain")


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--fail",), 1)])
def test_invoke__guest_answers_an_error__is_an_answer(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], code: int
) -> None:
    answering(monkeypatch, httpx.Response(404, headers={"x-ext-execution-id": "e-1"}, content=b"no"))
    result = run("invoke", "com.example.notes", "/", "--tenant", "acme", *flags)
    assert result.exit_code == code
    assert "404" in result.stdout


@pytest.mark.parametrize(("reason", "code"), [("GUEST_TRAPPED", 1), ("EXTENSION_NOT_INSTALLED", 1), ("OVERLOADED", 3)])
@pytest.mark.parametrize("as_json", [False, True])
def test_invoke__refused_or_failed__ends_with_the_reason(
    state: MachineState, monkeypatch: pytest.MonkeyPatch, reason: str, code: int, as_json: bool
) -> None:
    answering(monkeypatch, refusal(reason, 502))
    result = run("invoke", "com.example.notes", "/", "--tenant", "acme", *(["--json"] if as_json else []))
    assert result.exit_code == code
    if as_json:
        assert json.loads(result.stdout)["error"]["reason"] == reason
    else:
        assert reason in result.stderr


def test_invoke_grpc__no_machine__is_unavailable(state: MachineState) -> None:
    assert run("invoke", "com.example.notes", "/", "--tenant", "acme", "--grpc").exit_code == 3


def test_author_s_way__init_pack_sign_verify__ends_with_proof(state: MachineState, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "ui").mkdir(parents=True)
    (folder / "ui" / "index.html").write_text("<p>hello</p>")
    manifest = {"name": "com.example.page", "publisher": "example", "version": "1.0.0", "runtime": "ui-only@1"}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"ui": {"type": "iframe", "entry": "ui/index.html"}}))
    archive, alice = str(tmp_path / "page.tar.zst"), "https://dev.invalid/people/alice"
    assert run("sign", archive).exit_code == 2, "there is no trust domain yet"
    assert run("dev-trust", "init", "--json").exit_code == 0
    assert run("dev-trust", "init").exit_code == 0, "a second time changes nothing"
    packed = json.loads(run("pack", str(folder), "-o", archive, "--json").stdout)
    signed = run("sign", archive, "--identity", alice)
    assert signed.exit_code == 0
    assert alice in signed.stdout
    assert "NON-PRODUCTION" in signed.stderr
    proof = json.loads(run("verify", archive, "--identity", alice, "--json").stdout)
    assert (proof["content_hash"], proof["identity"], proof["production"]) == (packed["content_hash"], alice, False)
    other = run("verify", archive, "--identity", "https://dev.invalid/people/bob")
    assert (other.exit_code, "SIGNATURE_REJECTED" in other.stderr) == (1, True)
    data = bytearray(Path(archive).read_bytes())
    data[len(data) // 2] ^= 1
    Path(archive).write_bytes(data)
    assert run("verify", archive, "--identity", alice).exit_code == 1


def test_sign__production__is_refused(state: MachineState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("dev-trust", "init")
    (tmp_path / "a").write_bytes(b"archive")
    monkeypatch.setenv("ENV", "production")
    assert run("sign", str(tmp_path / "a")).exit_code == 1
    assert not (tmp_path / "bundle.sigstore.json").exists()


@pytest.mark.parametrize("identity", ["bob@example.com", "https://github.com/o/r", "https://dev.invalid/a\x1b[2J", ""])
def test_sign__identity_that_could_be_somebody_s__is_refused(state: MachineState, tmp_path: Path, identity: str) -> None:
    run("dev-trust", "init")
    (tmp_path / "a").write_bytes(b"archive")
    result = run("sign", str(tmp_path / "a"), "--identity", identity)
    assert result.exit_code == 2
    assert "\x1b" not in result.output


def test_verify__development_domain_where_env_says_nothing__is_refused(state: MachineState, tmp_path: Path) -> None:
    run("dev-trust", "init")
    (tmp_path / "a").write_bytes(b"archive")
    run("sign", str(tmp_path / "a"))
    result = run(
        "verify", str(tmp_path / "a"), "--identity", "https://dev.invalid/people/alice", "--trust-domains", str(state.trust_domains)
    )
    assert result.exit_code == 2
    assert "not for production" in result.stderr


def test_app__is_a_typer_app_without_markup() -> None:
    assert isinstance(app, typer.Typer)
    assert app.rich_markup_mode is None
