"""What the daemon accepts as settings, and what production refuses before it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.deployment import is_loopback
from registry.domain.limits import MIB, OPERATOR_CEILING, OPERATOR_DEFAULTS
from runnerd.__main__ import EXIT_BAD_SETTINGS, _run
from runnerd.capabilities.platform.assembly import PlatformSettingsError
from runnerd.config import Cell, SettingsError, host_of, load, port_of
from tests.fakes.daemon_settings import SECRET, smallest_environment

EMBEDDED = "postgresql+psycopg://ext_runner:x@/extrunner?host=%2Ftmp%2Fextpg-abcd1234"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The smallest environment that starts, in force."""
    (tmp_path / "url").write_text(SECRET + "\n")
    values = smallest_environment(tmp_path)
    for name in ("ENV", "RUNNER_PUBLIC_BASE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def test_smallest_environment__has_the_careful_defaults(environment: dict[str, str], tmp_path: Path) -> None:
    settings = load()
    assert settings.is_production
    assert settings.require_hardening
    assert not settings.grpc.reflection
    for address in (settings.grpc.address, settings.ops.address, settings.assets.address):
        assert is_loopback(host_of(address))
    assert settings.users is None
    assert settings.object_store_folder == tmp_path / "bundles here"
    assert settings.read_database_url() == SECRET
    assert settings.limits.effective_defaults == OPERATOR_DEFAULTS
    assert settings.limits.effective_ceiling == OPERATOR_CEILING


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RUNNERD_GRPC__ADDRESS", "0.0.0.0:50051", "plaintext"),
        ("RUNNERD_GRPC__ADDRESS", "runner.internal:50051", "plaintext"),
        ("RUNNERD_GRPC__ADDRESS", "50051", "host:port"),
        ("RUNNERD_GRPC__ADDRESS", "127.0.0.1:99999", "host:port"),
        ("RUNNERD_OPS__ADDRESS", "0.0.0.0:9464", "token"),
        ("RUNNERD_OPS__ADDRESS", "[::]:9464", "token"),
        ("RUNNERD_OPS__ADDRESS", "ops.internal:9464", "token"),
        # Nobody needs guests where what trusts the machine listens, or where its identity is handed out.
        *[
            ("RUNNERD_EGRESS__ALLOWED_RANGES", f'["{network}"]', "no part of a private network")
            for network in ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "169.254.169.254/32", "fe80::/10", "0.0.0.0/0", "::/0", "8.0.0.0/7")
        ],
        ("RUNNERD_EGRESS__ALLOWED_RANGES", '["10.0.0.1/8"]', "host bits"),
        ("RUNNERD_EGRESS__DENIED_RANGES", '["x"]', "egress"),
        ("RUNNERD_EGRESS__HOSTS", '["*example.com"]', "hosts"),
        ("RUNNERD_EGRESS__HOSTS", '["Example.com"]', "hosts"),
        ("RUNNERD_EGRESS__PORTS", "[0]", "ports"),
        ("RUNNERD_EGRESS__SCHEMES", '["ftp"]', "schemes"),
        ("RUNNERD_EGRESS__NAME_SERVERS", '["resolver.example"]', "egress"),
        ("RUNNERD_EGRESS__REQUEST_SECONDS", "31", "request_seconds"),
        ("RUNNERD_EVENTS__PER_INVOCATION", "-1", "per_invocation"),
        ("RUNNERD_EVENTS__DATA_BYTES", str(MIB + 1), "data_bytes"),
        ("RUNNERD_GRPC__TLS_KEY_FILE", "/key.pem", "belong together"),
        ("RUNNERD_REQUIRE_HARDENING", "false", "development"),
        ("RUNNERD_DATABASE__URL", SECRET, "either"),
        ("RUNNERD_LIMITS__CEILING__WALL_TIME_MS", "30001", "wall_time_ms"),
        ("RUNNERD_LIMITS__CEILING__MEMORY_BYTES", str(1025 * MIB), "memory_bytes"),
        ("RUNNERD_LIMITS__DEFAULTS__FUEL", "0", "fuel"),
        ("RUNNERD_WORKERS__SLOTS", "0", "slots"),
        ("RUNNERD_WORKERS__ISOLATION", "none", "isolation"),
        ("RUNNERD_WORKER__SLOTS", "4", "unknown setting"),
        ("RUNNERD_WORKERS__SLOT", "4", "slot"),
        ("RUNNERD_OBJECT_STORE_URL", "gs://bucket", "object_store_url"),
        ("RUNNERD_CAPABILITY_CEILING", '["root"]', "unknown capability"),
        ("RUNNERD_ENVIRONMENT", "staging", "environment"),
        ("RUNNERD_LOG_LEVEL", "TRACE", "log_level"),
        ("RUNNERD_PLATFORM__BASE_URL", "https://platform.example.com", "belong together"),
        ("RUNNERD_PLATFORM__TOKEN_FILE", "/token", "belong together"),
        ("RUNNERD_PLATFORM__PROXY_TOKEN_FILE", "/token", "needs"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "http://platform.example.com", "plaintext"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "http://127.0.0.1.example.com", "plaintext"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "http://10.0.0.1:8080", "plaintext"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "https://hunter2@platform.example.com", "https://host"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "http://localhost\\@example.com", "https://host"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "https://platform.example.com/?a=b", "https://host"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "https://platform.example.com/a/../b", "segment"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "https://platform.example.com:99999", "port"),
        ("RUNNERD_PLATFORM__PROXY_BASE_URL", "file:///platform", "https://host"),
        ("RUNNERD_PLATFORM__CALL_SECONDS", "5", "call_seconds"),
        ("RUNNERD_PLATFORM__CALLS_PER_INSTALL", "0", "calls_per_install"),
    ],
)
def test_bad_setting__is_refused_by_name(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load()
    assert complaint.lower() in str(refused.value).lower()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("missing", ["RUNNERD_SERVICES__ISSUER", "RUNNERD_TRUST_DOMAINS_FILE", "RUNNERD_DATABASE__URL_FILE"])
def test_missing_setting__is_named(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(SettingsError) as refused:
        load()
    assert missing.removeprefix("RUNNERD_").split("__")[0].lower() in str(refused.value)


def test_limits__one_can_be_named_alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERD_LIMITS__CEILING__WALL_TIME_MS", "2000")
    limits = load().limits
    assert limits.effective_ceiling.wall_time_ms == 2000
    assert limits.effective_defaults.wall_time_ms == 2000, "a default is never above the ceiling"
    assert limits.effective_ceiling.memory_bytes == OPERATOR_CEILING.memory_bytes


def test_public_base__has_its_old_name_too(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_PUBLIC_BASE", "https://ext.example.com")
    assert load().public_base == "https://ext.example.com"


def test_development__allows_what_production_refuses(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV", "development")
    monkeypatch.setenv("RUNNERD_REQUIRE_HARDENING", "false")
    Path(environment["RUNNERD_DATABASE__URL_FILE"]).write_text(EMBEDDED)
    settings = load()
    assert not settings.is_production
    assert settings.read_database_url() == EMBEDDED


def test_embedded_database__is_refused_in_production(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path(environment["RUNNERD_DATABASE__URL_FILE"]).write_text(EMBEDDED)
    with pytest.raises(SettingsError, match="embedded"):
        load().read_database_url()
    monkeypatch.delenv("RUNNERD_DATABASE__URL_FILE")
    monkeypatch.setenv("RUNNERD_DATABASE__URL", EMBEDDED)
    with pytest.raises(SettingsError, match="embedded"):
        load()


@pytest.mark.parametrize("mode", ["development", "production"])
def test_operations__open_to_a_network__needs_a_token_or_a_decision(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    monkeypatch.setenv("ENV", mode)
    monkeypatch.setenv("RUNNERD_OPS__ADDRESS", "0.0.0.0:9464")
    with pytest.raises(SettingsError, match="token_file"):
        load()
    monkeypatch.setenv("RUNNERD_OPS__IS_OPEN", "true")
    assert load().ops.read_tokens() == ()
    monkeypatch.delenv("RUNNERD_OPS__IS_OPEN")
    monkeypatch.setenv("RUNNERD_OPS__TOKEN_FILE", str(tmp_path / "token"))
    settings = load()
    for content in (None, "", "short", "x" * 31, "x" * 1024, ("x" * 32 + "\n") * 5, "ä" * 32):
        if content is not None:
            (tmp_path / "token").write_text(content)
        with pytest.raises(SettingsError) as refused:
            settings.ops.read_tokens()
        assert "xxxx" not in str(refused.value)
    (tmp_path / "token").write_text("x" * 32 + "\n" + "y" * 40 + "\n")
    assert settings.ops.read_tokens() == (b"x" * 32, b"y" * 40)


def test_address__is_taken_apart() -> None:
    assert (host_of("[::1]:80"), port_of("[::1]:80")) == ("::1", 80)


def test_settings__are_frozen_and_hide_the_password(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNERD_DATABASE__URL_FILE")
    monkeypatch.setenv("RUNNERD_DATABASE__URL", SECRET)
    settings = load()
    assert "hunter2" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "DEBUG"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://platform.example.com/", "https://platform.example.com"),
        ("https://platform.example.com:8443/psa/", "https://platform.example.com:8443/psa"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_platform__address_is_kept_without_its_last_slash(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, url: str, base: str
) -> None:
    monkeypatch.setenv("RUNNERD_PLATFORM__BASE_URL", url)
    monkeypatch.setenv("RUNNERD_PLATFORM__TOKEN_FILE", "/token")
    settings = load()
    assert settings.platform.base_url == base
    assert settings.share_of(Cell(index=1, count=4), grpc_port=1).platform.calls == settings.platform.calls // 4


def test_platform__a_file_that_cannot_be_used_is_a_bad_setting() -> None:
    async def refused() -> None:
        message = "platform.ca_file /ca.pem cannot be read as certificates"
        raise PlatformSettingsError(message)

    assert _run(refused()) == EXIT_BAD_SETTINGS


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("VAULT", {"ADDRESS": "http://127.0.0.1:8200", "TOKEN_FILE": "t", "KEY": "k"}),
        ("KMS", {"ENDPOINT": "http://127.0.0.1:9", "KEY": "projects/p/locations/l/keyRings/r/cryptoKeys/k"}),
    ],
)
def test_secrets__key_service_without_tls__for_development_only(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str, values: dict[str, str]
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"RUNNERD_SECRETS__{kind}__{name}", value)
    with pytest.raises(SettingsError, match="without TLS"):
        load()
    monkeypatch.setenv("ENV", "development")
    assert load().secrets is not None


@pytest.mark.parametrize(("name", "value"), [("MEMORY_SECONDS", "31"), ("MEMORY_ENTRIES", "0"), ("MEMORY_SECONDS", "5")])
def test_secrets__out_of_bounds_or_without_any_key__refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"RUNNERD_SECRETS__{name}", value)
    with pytest.raises(SettingsError):
        load()
