from __future__ import annotations

from pathlib import Path

import jwt
import pytest

from registry.cli.credentials import Credentials, check_destination, mint_service_token, mint_user_token
from registry.cli.output import UsageError
from registry.cli.state import SERVICE_ISSUER, USER_ISSUER, MachineState
from registry.key_sets import generate_key_set
from registry.tokens import GATEWAY_AUDIENCE, MAX_TOKEN_CHARACTERS, RUNNER_AUDIENCE, TokenVerifier, parse_service, parse_user


@pytest.fixture(autouse=True)
def _no_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXTCTL_TOKEN", raising=False)


@pytest.fixture
def state(tmp_path: Path) -> MachineState:
    state = MachineState(tmp_path)
    state.keys.mkdir()
    for name in ("users", "services"):
        generate_key_set(state.keys, name)
    return state


def test_mint_user_token__is_what_the_gateway_accepts(state: MachineState) -> None:
    token = mint_user_token(state, tenant="acme", roles=["ext:invoke"], subject="alice", email="a@acme.invalid")
    verifier = TokenVerifier(state.keys / "users.jwks.json", audience=GATEWAY_AUDIENCE, issuer=USER_ISSUER)
    user = parse_user(verifier.verify(token))
    assert (user.tenant, user.subject, user.roles, user.email) == ("acme", "alice", frozenset({"ext:invoke"}), "a@acme.invalid")


def test_mint_service_token__is_what_the_daemon_accepts(state: MachineState) -> None:
    token = mint_service_token(state, tenants=["acme"], scopes=["warm", "execute"])
    verifier = TokenVerifier(state.keys / "services.jwks.json", audience=RUNNER_AUDIENCE, issuer=SERVICE_ISSUER)
    service = parse_service(verifier.verify(token))
    assert (service.tenants, service.scopes) == (frozenset({"acme"}), frozenset({"warm", "execute"}))


def test_user_token__nothing_given__is_minted_and_says_so(state: MachineState, capsys: pytest.CaptureFixture[str]) -> None:
    token = Credentials(state).user_token(tenant="acme", roles=["ext:read"])
    assert jwt.decode(token, options={"verify_signature": False})["roles"] == ["ext:read"]
    said = capsys.readouterr()
    assert "NON-PRODUCTION" in said.err
    assert token not in said.out + said.err


def test_user_token__environment__takes_precedence_over_minting(state: MachineState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTCTL_TOKEN", "given.by.environment\n")
    assert Credentials(state).user_token(tenant="acme", roles=[]) == "given.by.environment"


def test_user_token__file__takes_precedence_over_the_environment(
    state: MachineState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXTCTL_TOKEN", "environment")
    file = tmp_path / "token"
    file.write_text("given.by.file\n")
    assert Credentials(state, file).user_token(tenant="acme", roles=[]) == "given.by.file"


@pytest.mark.parametrize("content", ["", " \n", "two words", "line\nline", "tok\x1ben", "tökn", "x" * (MAX_TOKEN_CHARACTERS + 1)])
def test_user_token__file_without_a_token__is_refused(state: MachineState, tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UsageError):
        Credentials(state, file).user_token(tenant="acme", roles=[])


def test_user_token__no_token_and_no_machine__says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EXTCTL_TOKEN"):
        Credentials(MachineState(tmp_path)).user_token(tenant="acme", roles=[])


def test_user_token__key_that_everybody_can_read__is_refused(state: MachineState) -> None:
    (state.keys / "users.private.jwk").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        Credentials(state).user_token(tenant="acme", roles=[])


@pytest.mark.parametrize("url", ["https://gateway.example.com", "http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:8080/"])
def test_check_destination__protected__passes(url: str) -> None:
    assert check_destination(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "ftp://127.0.0.1",
        "https://user:password@host",
        "https://host?token=x",
        "127.0.0.1:8080",
        "",
    ],
)
def test_check_destination__token_would_travel_unprotected__is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_destination(url)
