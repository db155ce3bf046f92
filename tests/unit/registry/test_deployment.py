from __future__ import annotations

import pytest

from registry.deployment import EMBEDDED_SOCKET_PREFIX, is_embedded_database, is_loopback, refuse_unknown_settings


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("LOCALHOST.", False),
        ("127.1", False),
        ("0x7f000001", False),
        ("127.0.0.1.nip.io", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("url", "embedded"),
    [
        (f"postgresql+psycopg://u:p@/db?host=/tmp/{EMBEDDED_SOCKET_PREFIX}abcd1234", True),
        ("postgresql+psycopg://u:p@/db?host=%2Ftmp%2Fextpg-abcd1234", True),
        ("postgresql+psycopg://u:p@/db?host=/tmp/%65xtpg%2Dx", True),
        ("postgresql+psycopg://u:p@%2Ftmp%2Fextpg-x/db", True),
        ("postgresql+psycopg://u:p@/db?host=/run/postgresql,/tmp/extpg-x", True),
        ("postgresql+psycopg://u:p@/db?host=/run/postgresql", False),
        ("postgresql+psycopg://u:extpg-@db.example/db", False),
        ("postgresql+psycopg://u:p@extpg.example/db", False),
    ],
)
def test_embedded_server__is_known_by_its_socket_folder(url: str, embedded: bool) -> None:
    assert is_embedded_database(url) is embedded


def test_embedded_server__no_url__is_said() -> None:
    with pytest.raises(ValueError, match="IPv6"):
        is_embedded_database("postgresql://[::1/db")


@pytest.mark.parametrize("name", ["GATEWAY_PORT", "gateway_port", "GATEWAY_LIMITS__ANYTHING", "GATEWAYS", "OTHER", "PORT"])
def test_known_setting__passes(name: str) -> None:
    refuse_unknown_settings([name], prefix="GATEWAY_", fields=["port", "limits"])


@pytest.mark.parametrize("name", ["GATEWAY_PROT", "gateway_prot", "GATEWAY_LIMIT__BYTES", "GATEWAY_", "GATEWAY_PORT_"])
def test_misspelt_setting__is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        refuse_unknown_settings(["PATH", name], prefix="GATEWAY_", fields=["port", "limits"])
