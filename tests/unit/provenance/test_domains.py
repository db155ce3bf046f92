from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from registry.provenance.dev_trust import DevTrust
from registry.provenance.domains import MAX_DOMAINS_FILE_BYTES, MAX_ROOT_BYTES, TrustConfigurationError, TrustDomain, load_trust_domains
from tests.fakes.signing import SigningLab


@pytest.fixture
def trust(tmp_path: Path) -> DevTrust:
    return DevTrust.init(tmp_path / "trust")


def write(trust: DevTrust, *rows: dict[str, Any]) -> Path:
    path = trust.folder / "domains.json"
    path.write_text(json.dumps(rows))
    return path


def row(trust: DevTrust, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(trust.trust_domains_path.read_text())[0]
    return {**found, **changes}


def problem_of(path: Path, environment: str = "development") -> str:
    with pytest.raises(TrustConfigurationError) as caught:
        load_trust_domains(path, environment=environment)
    return str(caught.value)


def test_what_the_development_domain_wrote_is_loaded_in_development(trust: DevTrust) -> None:
    (domain,) = load_trust_domains(trust.trust_domains_path, environment="development")
    assert (domain.name, domain.production) == ("development", False)
    assert domain.root_sha256 == hashlib.sha256(trust.trusted_root_path.read_bytes()).hexdigest()


@pytest.mark.parametrize("environment", ["production", "", "Development", "staging", "development "])
def test_a_development_domain_is_refused_everywhere_else(trust: DevTrust, environment: str) -> None:
    assert "not for production" in problem_of(trust.trust_domains_path, environment)


def test_a_development_root_cannot_claim_to_be_a_production_one(trust: DevTrust) -> None:
    assert "NON-PRODUCTION" in problem_of(write(trust, row(trust, production=True)), "production")


def test_an_altered_root_is_refused(trust: DevTrust) -> None:
    trust.trusted_root_path.write_bytes(trust.trusted_root_path.read_bytes() + b" ")
    assert "is pinned" in problem_of(trust.trust_domains_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "A b"},
        {"name": 1},
        {"trusted_root": ""},
        {"trusted_root_sha256": "abc"},
        {"trusted_root_sha256": "A" * 64},
        {"production": "false"},
        {"production": 0},
        {"extra": True},
    ],
)
def test_a_row_that_is_not_understood_is_refused(trust: DevTrust, changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in problem_of(write(trust, row(trust, **changes)))


def test_a_row_without_a_pin_is_refused(trust: DevTrust) -> None:
    unpinned = row(trust)
    del unpinned["trusted_root_sha256"]
    assert "trusted_root_sha256" in problem_of(write(trust, unpinned))


def test_two_domains_of_one_name_are_refused(trust: DevTrust) -> None:
    assert "one name" in problem_of(write(trust, row(trust), row(trust)))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"nonsense", b"[1]", b"\xff"])
def test_a_file_that_lists_nothing_is_refused(trust: DevTrust, content: bytes) -> None:
    path = trust.folder / "domains.json"
    path.write_bytes(content)
    assert str(path) in problem_of(path)


def test_files_that_are_missing_or_too_long_are_refused(trust: DevTrust) -> None:
    assert "cannot be read" in problem_of(trust.folder / "missing.json")
    assert "cannot be read" in problem_of(write(trust, row(trust, trusted_root="missing.json")))
    long = trust.folder / "long.json"
    long.write_bytes(b" " * (MAX_DOMAINS_FILE_BYTES + 1))
    assert "longer than" in problem_of(long)
    (trust.folder / "root.json").write_bytes(b" " * (MAX_ROOT_BYTES + 1))
    assert "longer than" in problem_of(write(trust, row(trust, trusted_root="root.json")))


@pytest.mark.parametrize("part", ["tlogs", "ctlogs", "certificateAuthorities"])
def test_a_root_that_lacks_a_part_is_refused(tmp_path: Path, part: str) -> None:
    lab = SigningLab(tmp_path / "trust")
    root = lab.root()
    root[part] = []
    with pytest.raises(TrustConfigurationError):
        lab.domain(root)


@pytest.mark.parametrize(
    "root",
    [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, json.dumps({"mediaType": "application/vnd.dev.sigstore.trustedroot.v0.2+json"}).encode()],
)
def test_what_is_no_trusted_root_is_refused(root: bytes) -> None:
    with pytest.raises(TrustConfigurationError, match="cannot be used"):
        TrustDomain(name="x", production=False, root=root)


def test_an_unknown_field_of_a_root_is_refused(tmp_path: Path) -> None:
    lab = SigningLab(tmp_path / "trust")
    with pytest.raises(TrustConfigurationError, match="cannot be used"):
        lab.domain(lab.root() | {"newThing": 1})


def test_narrowing_is_by_what_was_valid_and_is_remembered(tmp_path: Path) -> None:
    lab = SigningLab(tmp_path / "trust")
    start = lab.authority.certificate.not_valid_before_utc
    root = lab.root()
    retired = json.loads(json.dumps(root["tlogs"][0]))
    retired["publicKey"]["validFor"] = {"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"}
    root["tlogs"].append(retired)
    domain = lab.domain(root)
    narrowed = domain.verifier_at(start)
    assert narrowed is not None
    assert narrowed is not domain.verifier
    assert domain.verifier_at(start) is narrowed
    whole = lab.domain()
    assert whole.verifier_at(start) is whole.verifier
    assert whole.verifier_at(start.replace(year=2020)) is None
