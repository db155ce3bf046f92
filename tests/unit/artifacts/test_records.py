from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.records import (
    MAX_ARTIFACT_RECORD_BYTES,
    ArtifactStatement,
    InterfaceStatement,
    verify_artifact_record,
    verify_interface_record,
    write_artifact_record,
    write_interface_record,
)

SIGNER = ArtifactSigner.generate()
VERIFIER = ArtifactVerifier(SIGNER.public_key())
A, B = content_hash(b"a"), content_hash(b"b")
STATEMENT = ArtifactStatement(
    content_hash=A,
    component_sha256="c" * 64,
    bridge_version="0",
    bridge_applied=False,
    engine_fingerprint="f" * 64,
    artifact_sha256="d" * 64,
    artifact_bytes=1234,
    memories=2,
)
INTERFACE = InterfaceStatement(content_hash=A, entry="index.html", files={"index.html": ("e" * 64, 10), "ä/b.js": ("f" * 64, 0)})


def _verify(record: bytes) -> ArtifactStatement:
    return verify_artifact_record(record, VERIFIER, content_hash=A, engine_fingerprint="f" * 64)


def _refused(record: bytes) -> str:
    with pytest.raises(RefusalError) as caught:
        _verify(record)
    assert caught.value.reason is Reason.ARTIFACT_REJECTED
    return caught.value.metadata["why"]


def _altered(record: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(record) | changes).encode()


def test_a_record_says_what_was_signed() -> None:
    assert _verify(write_artifact_record(STATEMENT, SIGNER)) == STATEMENT


def test_a_record_of_another_bundle_is_refused() -> None:
    assert _refused(write_artifact_record(replace(STATEMENT, content_hash=B), SIGNER)) == "the record belongs to another bundle"


def test_a_record_of_another_engine_is_refused() -> None:
    assert (
        _refused(write_artifact_record(replace(STATEMENT, engine_fingerprint="0" * 64), SIGNER)) == "the record belongs to another engine"
    )


def test_a_record_of_another_installation_is_refused() -> None:
    assert "not signed" in _refused(write_artifact_record(STATEMENT, ArtifactSigner.generate()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content_hash", str(B)),
        ("component_sha256", "0" * 64),
        ("bridge_version", "1"),
        ("bridge_applied", True),
        ("engine_fingerprint", "0" * 64),
        ("artifact_sha256", "0" * 64),
        ("artifact_bytes", 1235),
        ("memories", 1),
    ],
)
def test_every_field_is_signed(field: str, value: object) -> None:
    record = json.loads(write_artifact_record(STATEMENT, SIGNER))
    record["body"][field] = value
    assert "not signed" in _refused(json.dumps(record).encode())


def test_a_record_is_refused_when_a_byte_of_it_is_flipped() -> None:
    record = write_artifact_record(STATEMENT, SIGNER)
    for place in range(len(record)):
        altered = bytearray(record)
        altered[place] ^= 1
        with pytest.raises(RefusalError):
            _verify(bytes(altered))


@given(st.binary(max_size=200))
def test_whatever_is_read_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    _refused(data)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 4000,
        b" " * (MAX_ARTIFACT_RECORD_BYTES + 1),
        _altered(write_artifact_record(STATEMENT, SIGNER), version=2),
        _altered(write_artifact_record(STATEMENT, SIGNER), kind="extrunner.interface"),
        _altered(write_artifact_record(STATEMENT, SIGNER), key_id=1),
        _altered(write_artifact_record(STATEMENT, SIGNER), signature="%%%"),
        _altered(write_artifact_record(STATEMENT, SIGNER), signature=base64.b64encode(b"short").decode()),
        _altered(write_artifact_record(STATEMENT, SIGNER), body=[]),
        _altered(write_artifact_record(STATEMENT, SIGNER), further=1),
    ],
)
def test_a_malformed_record_is_refused(record: bytes) -> None:
    _refused(record)


@pytest.mark.parametrize("memories", [5, -1, True])
def test_even_a_signed_record_has_plausible_fields(memories: int) -> None:
    assert "malformed" in _refused(write_artifact_record(replace(STATEMENT, memories=memories), SIGNER))


def test_an_interface_says_what_was_signed() -> None:
    record = write_interface_record(INTERFACE, SIGNER)
    assert verify_interface_record(record, VERIFIER, content_hash=A) == INTERFACE


def test_an_interface_of_another_bundle_is_refused() -> None:
    record = write_interface_record(INTERFACE, SIGNER)
    with pytest.raises(RefusalError, match="ARTIFACT_REJECTED"):
        verify_interface_record(record, VERIFIER, content_hash=B)


def test_a_path_cannot_be_given_another_file() -> None:
    record = json.loads(write_interface_record(INTERFACE, SIGNER))
    record["body"]["files"]["index.html"] = record["body"]["files"]["ä/b.js"]
    with pytest.raises(RefusalError, match="ARTIFACT_REJECTED"):
        verify_interface_record(json.dumps(record).encode(), VERIFIER, content_hash=A)


def test_one_kind_of_record_is_not_accepted_as_the_other() -> None:
    with pytest.raises(RefusalError):
        verify_interface_record(write_artifact_record(STATEMENT, SIGNER), VERIFIER, content_hash=A)
    _refused(write_interface_record(INTERFACE, SIGNER))


@pytest.mark.parametrize("file", [["e" * 64], ["e" * 63, 1], ["e" * 64, -1], ["e" * 64, True], "e" * 64, None])
def test_even_a_signed_interface_has_plausible_files(file: Any) -> None:
    statement = replace(INTERFACE, files={"index.html": file})
    with pytest.raises((RefusalError, TypeError)):
        verify_interface_record(write_interface_record(statement, SIGNER), VERIFIER, content_hash=A)
