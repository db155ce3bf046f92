from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runnerd.artifacts.keys import MAX_PUBLIC_KEYS, ArtifactKeyError, ArtifactSigner, ArtifactVerifier, read_public_key


def _pem(key: object) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())  # type: ignore[attr-defined, no-any-return]


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "artifacts.ed25519"
    first = ArtifactSigner.from_file(path)
    assert ArtifactSigner.from_file(path).key_id == first.key_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_two_installations_have_different_keys(tmp_path: Path) -> None:
    assert ArtifactSigner.from_file(tmp_path / "a").key_id != ArtifactSigner.from_file(tmp_path / "b").key_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    ArtifactSigner.from_file(path)
    path.chmod(mode)
    with pytest.raises(ArtifactKeyError, match="chmod 600"):
        ArtifactSigner.from_file(path)


def test_a_link_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    ArtifactSigner.from_file(tmp_path / "other")
    (tmp_path / "key").symlink_to(tmp_path / "other")
    with pytest.raises(ArtifactKeyError, match="cannot be used"):
        ArtifactSigner.from_file(tmp_path / "key")


def test_a_dangling_link_is_not_followed_to_make_a_key(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactKeyError):
        ArtifactSigner.from_file(tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(ArtifactKeyError, match="regular file"):
        ArtifactSigner.from_file(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"not a key", b"x" * 10_000, _pem(generate_private_key(SECP256R1()))])
def test_what_is_no_ed25519_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ArtifactKeyError):
        ArtifactSigner.from_file(path)


def test_a_signature_counts_for_its_message_and_a_known_key_only() -> None:
    signer, stranger = ArtifactSigner.generate(), ArtifactSigner.generate()
    verifier = ArtifactVerifier(signer.public_key())
    signature = signer.sign(b"message")
    assert verifier.is_valid(key_id=signer.key_id, message=b"message", signature=signature)
    assert not verifier.is_valid(key_id=signer.key_id, message=b"other", signature=signature)
    assert not verifier.is_valid(key_id=stranger.key_id, message=b"message", signature=stranger.sign(b"message"))
    assert not verifier.is_valid(key_id=signer.key_id, message=b"message", signature=stranger.sign(b"message"))


def test_a_predecessor_is_accepted_during_a_rotation(tmp_path: Path) -> None:
    old, new = (ArtifactSigner.generate() for _ in range(2))
    path = tmp_path / "old.pub"
    path.write_bytes(old.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    verifier = ArtifactVerifier(new.public_key(), read_public_key(path))
    for signer in (old, new):
        assert verifier.is_valid(key_id=signer.key_id, message=b"m", signature=signer.sign(b"m"))


@pytest.mark.parametrize("count", [0, MAX_PUBLIC_KEYS + 1])
def test_a_verifier_holds_at_least_one_key_and_not_any_number(count: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and {MAX_PUBLIC_KEYS}"):
        ArtifactVerifier(*(ArtifactSigner.generate().public_key() for _ in range(count)))


def test_what_is_no_public_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    for content in (b"", _pem(Ed25519PrivateKey.generate())):
        path.write_bytes(content)
        with pytest.raises(ArtifactKeyError):
            read_public_key(path)
    path.write_bytes(
        generate_private_key(SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ArtifactKeyError, match="not Ed25519"):
        read_public_key(path)
