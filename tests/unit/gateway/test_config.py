"""What the settings refuse before anything listens."""

from __future__ import annotations

import json

import pytest

from gateway import config
from gateway.__main__ import EXIT_BAD_SETTINGS, main

MINIMUM = {
    "GATEWAY_SERVICE__PRIVATE_JWK_FILE": "/keys/services.private.jwk",
    "GATEWAY_SERVICE__ISSUER": "https://services.dev.invalid",
    "GATEWAY_USERS__JWKS_FILE": "/keys/users.jwks.json",
    "GATEWAY_USERS__ISSUER": "https://users.dev.invalid",
}
ADMIN = {
    "GATEWAY_ADMIN__DATABASE_URL_FILE": "/keys/admin.url",
    "GATEWAY_ADMIN__BUNDLE_STORE": "/bundles",
    "GATEWAY_ADMIN__TRUST_DOMAINS_FILE": "/trust/trust_domains.json",
    "GATEWAY_ADMIN__WORK_DIR": "/tmp/work",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415

    for name in list(os.environ):
        if name.upper().startswith("GATEWAY_") or name == "ENV":
            monkeypatch.delenv(name)
    for name, value in MINIMUM.items():
        monkeypatch.setenv(name, value)


def set_all(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_defaults__are_the_careful_ones() -> None:
    settings = config.load()
    assert settings.is_production
    assert settings.serve is config.Serve.INVOKE
    assert settings.host == "127.0.0.1"
    assert settings.cors_origins == ()
    assert settings.admin is None
    assert settings.limits.request_bytes == 10 * 1024 * 1024


@pytest.mark.parametrize("name", ["ENV", "GATEWAY_ENVIRONMENT"])
def test_environment__read_from_either_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "development")
    assert not config.load().is_production


@pytest.mark.parametrize("missing", sorted(MINIMUM))
def test_missing__refused(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=r".+"):
        config.load()


@pytest.mark.parametrize(
    "setting",
    [
        {"GATEWAY_LIMIT__REQUEST_BYTES": "1"},
        {"GATEWAY_LIMITS__REQUESTBYTES": "1"},
        {"GATEWAY_CORS_ORIGIN": "[]"},
        {"GATEWAY_RUNNER__TLS": "x"},
        {"GATEWAY_LIMITS__REQUEST_BYTES": str(32 * 1024 * 1024 + 1)},
        {"GATEWAY_LIMITS__REQUEST_BYTES": "-1"},
        {"GATEWAY_LIMITS__EXECUTE_TIMEOUT_SECONDS": "0"},
        {"GATEWAY_LIMITS__EXECUTE_TIMEOUT_SECONDS": "nan"},
        {"GATEWAY_LIMITS__EXECUTE_TIMEOUT_SECONDS": "61"},
        {"GATEWAY_PORT": "65536"},
        {"GATEWAY_SERVICE__TOKEN_SECONDS": "301"},
        {"GATEWAY_CORS_ORIGINS": '["*"]'},
        {"GATEWAY_CORS_ORIGINS": '["https://app.example.com/"]'},
        {"GATEWAY_CORS_ORIGINS": '["null"]'},
        {"GATEWAY_PUBLIC_ORIGIN": "api.example.com"},
        {"GATEWAY_SERVE": "everything"},
        {"ENV": "staging"},
    ],
)
def test_unknown_or_out_of_bounds__refused(monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]) -> None:
    set_all(monkeypatch, setting)
    with pytest.raises(ValueError, match=r".+"):
        config.load()


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("unix:/run/runnerd.sock", True),
        ("10.0.0.1:50051", False),
        ("runnerd.internal:50051", False),
        ("dns:///runnerd.internal:50051", False),
        ("127.0.0.1.evil.example:50051", False),
        ("localhost.evil.example:50051", False),
        ("0.0.0.0:50051", False),
    ],
)
def test_plaintext__on_loopback_only(monkeypatch: pytest.MonkeyPatch, target: str, accepted: bool) -> None:
    monkeypatch.setenv("GATEWAY_RUNNER__TARGET", target)
    monkeypatch.setenv("ENV", "development")
    if accepted:
        assert config.load().runner.target == target
        return
    with pytest.raises(ValueError, match="TLS_ROOT_FILE"):
        config.load()
    monkeypatch.setenv("GATEWAY_RUNNER__TLS_ROOT_FILE", "/keys/ca.pem")
    assert config.load().runner.target == target


class TestFaces:
    def test_invoke__must_not_hold_what_admin_needs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_all(monkeypatch, ADMIN)
        with pytest.raises(ValueError, match="must not be given"):
            config.load()

    @pytest.mark.parametrize("serve", [config.Serve.ADMIN, config.Serve.ALL])
    def test_admin__needs_its_settings(self, serve: config.Serve) -> None:
        with pytest.raises(ValueError, match="GATEWAY_ADMIN__"):
            config.load(serve=serve)

    def test_admin__in_production(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_all(monkeypatch, ADMIN)
        settings = config.load(serve=config.Serve.ADMIN)
        assert settings.serve.admin
        assert not settings.serve.invoke

    @pytest.mark.parametrize("part", ["VAULT__ADDRESS", "KMS__ENDPOINT"])
    def test_secrets__key_service_without_tls__for_development_only(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        kind = part.split("__", 1)[0]
        key = "k" if kind == "VAULT" else "projects/p/locations/l/keyRings/r/cryptoKeys/k"
        values = {f"{kind}__KEY": key, part: "http://127.0.0.1:8200"} | ({"VAULT__TOKEN_FILE": "t"} if kind == "VAULT" else {})
        set_all(monkeypatch, ADMIN | {f"GATEWAY_ADMIN__SECRETS__{name}": value for name, value in values.items()})
        with pytest.raises(ValueError, match="without TLS"):
            config.load(serve=config.Serve.ADMIN)
        monkeypatch.setenv("ENV", "development")
        admin = config.load(serve=config.Serve.ADMIN).admin
        assert admin is not None
        assert admin.secrets is not None

    def test_secrets__two_keys_to_seal_with__refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kms = {"GATEWAY_ADMIN__SECRETS__KMS__KEY": "projects/p/locations/l/keyRings/r/cryptoKeys/k"}
        set_all(monkeypatch, ADMIN | kms | {"GATEWAY_ADMIN__SECRETS__LOCAL__PUBLIC_KEY_FILE": "k"})
        with pytest.raises(ValueError, match="exactly one"):
            config.load(serve=config.Serve.ADMIN)

    def test_all__in_production_only_if_said_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_all(monkeypatch, ADMIN)
        with pytest.raises(ValueError, match="ONE_PROCESS_IN_PRODUCTION"):
            config.load(serve=config.Serve.ALL)
        monkeypatch.setenv("GATEWAY_ONE_PROCESS_IN_PRODUCTION", "true")
        assert config.load(serve=config.Serve.ALL).serve.invoke

    def test_all__in_development(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_all(monkeypatch, ADMIN)
        monkeypatch.setenv("ENV", "development")
        assert config.load(serve=config.Serve.ALL).serve.admin


class TestCommand:
    def test_print_config(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--print-config", "--port", "0"]) == 0
        assert json.loads(capsys.readouterr().out)["port"] == 0

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            main(["--help"])
        assert end.value.code == 0
        assert "GATEWAY_" in capsys.readouterr().out

    def test_bad_settings__one_line_and_status_2(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("GATEWAY_PORT", "secret-looking-value")
        with pytest.raises(SystemExit) as end:
            main([])
        assert end.value.code == EXIT_BAD_SETTINGS
        said = capsys.readouterr().err
        assert "port" in said
        assert "secret-looking-value" not in said
