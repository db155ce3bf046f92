from __future__ import annotations

import base64
import hashlib
import json
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from registry.domain.digests import ContentHash, content_hash
from registry.provenance.dev_log import DevLog
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import BundleVerifier, TrustConfigurationError, load_trust_domains
from tests.fakes.signing import ALICE, now

HASH = content_hash(b"archive")

_SIGNING_PROGRAM = """
import sys
from pathlib import Path
from registry.domain.digests import content_hash
from registry.provenance.dev_trust import DevTrust
trust = DevTrust.init(Path(sys.argv[1]))
for _ in range(5):
    sys.stdout.buffer.write(trust.sign(content_hash(b"archive"), "https://dev.invalid/people/alice") + b"\\0")
"""


def verifier_of(trust: DevTrust) -> BundleVerifier:
    return BundleVerifier(load_trust_domains(trust.trust_domains_path, environment="development"))


def test_what_it_signs_is_verified(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    verifier = verifier_of(trust)
    for _ in range(9):
        proof = verifier.verify(content_hash=HASH, bundle_json=trust.sign(HASH, ALICE), signers=[trust.signer(ALICE)])
        assert (proof.identity, proof.production) == (ALICE, False)


def test_an_archive_is_signed_by_its_path(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    archive = tmp_path / "a.tar.zst"
    archive.write_bytes(b"archive")
    proof = verifier_of(trust).verify(content_hash=HASH, bundle_json=trust.sign(archive, ALICE), signers=[trust.signer(ALICE)])
    assert proof.content_hash == HASH


def test_the_folder_and_its_keys_are_private_and_labelled(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    assert stat.S_IMODE(trust.folder.stat().st_mode) == 0o700
    keys = sorted(path.name for path in trust.folder.glob("*.key.pem"))
    assert keys == ["ca.key.pem", "certificate-log.key.pem", "log.key.pem"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in trust.folder.iterdir())
    assert b"NON-PRODUCTION" in trust.trusted_root_path.read_bytes()
    assert not [path for path in trust.folder.iterdir() if path.name.startswith(".")]


def test_names_are_under_invalid(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    root = json.loads(trust.trusted_root_path.read_text())
    urls = [log["baseUrl"] for log in root["tlogs"] + root["ctlogs"]] + [root["certificateAuthorities"][0]["uri"]]
    assert all(url.endswith(".dev.invalid") for url in urls)


def test_init_keeps_what_there_is(tmp_path: Path) -> None:
    first = DevTrust.init(tmp_path / "trust")
    signature = first.sign(HASH, ALICE)
    second = DevTrust.init(tmp_path / "trust")
    verifier_of(second).verify(content_hash=HASH, bundle_json=signature, signers=[second.signer(ALICE)])
    assert second.log.leaves.stat().st_size == 32


def test_init_finishes_what_was_interrupted(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    trust.trust_domains_path.unlink()
    again = DevTrust.init(tmp_path / "trust")
    verifier_of(again).verify(content_hash=HASH, bundle_json=again.sign(HASH, ALICE), signers=[again.signer(ALICE)])


def test_two_machines_have_different_keys(tmp_path: Path) -> None:
    one, other = DevTrust.init(tmp_path / "one"), DevTrust.init(tmp_path / "other")
    assert one.trusted_root_path.read_bytes() != other.trusted_root_path.read_bytes()


def test_a_folder_without_a_domain_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(TrustConfigurationError, match="dev-trust init"):
        DevTrust.open(tmp_path)


@pytest.mark.parametrize("name", ["", "ca.key.pem", "log.key.pem", "certificate-log.key.pem"])
def test_a_folder_or_key_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    place = trust.folder / name
    place.chmod(place.stat().st_mode | 0o040)
    with pytest.raises(TrustConfigurationError, match="chmod go-rwx"):
        DevTrust.open(trust.folder)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    DevTrust.init(tmp_path / "trust")
    (tmp_path / "link").symlink_to(tmp_path / "trust")
    with pytest.raises(TrustConfigurationError):
        DevTrust.open(tmp_path / "link")


def test_a_key_that_is_a_link_or_no_key_is_refused(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    key = trust.folder / "log.key.pem"
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustConfigurationError):
        DevTrust.open(trust.folder)
    key.unlink()
    with pytest.raises(TrustConfigurationError, match="cannot be read"):
        DevTrust.open(trust.folder)
    key.write_bytes(b"no key")
    key.chmod(0o600)
    with pytest.raises(TrustConfigurationError, match="cannot be read"):
        DevTrust.open(trust.folder)


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "alice",
        "https://github.com/o/r/.github/workflows/release.yml@refs/heads/main",
        "alice@example.com",
        "https://dev.invalid.example.com/x",
        "https://invalid/x",
        "http://dev.invalid/x",
        "https://dev.invalid",
        "https://dev.invalid/a b",
        "https://dev.invalid/x\n",
        "https://dev.invalid/" + "x" * 257,
        "https://dev.invalid@github.com/x",
    ],
)
def test_it_signs_as_nobody_who_could_exist(tmp_path: Path, identity: str) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    with pytest.raises(ValueError, match="development identity"):
        trust.sign(HASH, identity)
    assert trust.log.leaves.stat().st_size == 0


def test_only_a_hash_is_signed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a content hash"):
        DevTrust.init(tmp_path / "trust").sign(ContentHash("sha256:x"), ALICE)


def test_a_torn_last_entry_is_overwritten(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    trust.sign(HASH, ALICE)
    with trust.log.leaves.open("ab") as leaves:
        leaves.write(b"torn")
    signature = trust.sign(HASH, ALICE)
    assert trust.log.leaves.stat().st_size == 64
    verifier_of(trust).verify(content_hash=HASH, bundle_json=signature, signers=[trust.signer(ALICE)])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17])
def test_every_entry_of_a_tree_has_a_proof(tmp_path: Path, size: int) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    entries = [trust.log.append(b"%d" % number, kind="k", version="v", at=now()) for number in range(size)]
    assert [entry["logIndex"] for entry in entries] == [str(number) for number in range(size)]
    for number, entry in enumerate(entries):
        proof = entry["inclusionProof"]
        assert proof["treeSize"] == str(number + 1)
        assert len(proof["hashes"]) <= number.bit_length()


def _indexes(trust: DevTrust, count: int) -> list[str]:
    documents = [json.loads(trust.sign(HASH, ALICE)) for _ in range(count)]
    return [document["verificationMaterial"]["tlogEntries"][0]["logIndex"] for document in documents]


def test_threads_do_not_fork_the_log(tmp_path: Path) -> None:
    trust = DevTrust.init(tmp_path / "trust")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(_indexes(trust, 6))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(int, found)) == list(range(24))


def test_processes_do_not_fork_the_log_even_when_they_begin_together(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _SIGNING_PROGRAM, str(tmp_path / "trust")],
            stdout=subprocess.PIPE,
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        )
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    signatures = [raw for output in outputs for raw in output.split(b"\0") if raw]
    trust = DevTrust.open(tmp_path / "trust")
    verifier = verifier_of(trust)
    for raw in signatures:
        verifier.verify(content_hash=HASH, bundle_json=raw, signers=[trust.signer(ALICE)])
    indexes = [json.loads(raw)["verificationMaterial"]["tlogEntries"][0]["logIndex"] for raw in signatures]
    assert sorted(map(int, indexes)) == list(range(10))


def test_the_log_is_the_tree_of_rfc_6962(tmp_path: Path) -> None:
    # Three leaves: root = H(1 | H(1 | a | b) | c), and the proof of c is H(1 | a | b).
    trust = DevTrust.init(tmp_path / "trust")
    log = DevLog(leaves=tmp_path / "leaves", lock=tmp_path / "lock", key=trust.log.key)
    entries = [log.append(body, kind="k", version="v", at=now()) for body in (b"a", b"b", b"c")]
    a, b, c = (hashlib.sha256(b"\0" + body).digest() for body in (b"a", b"b", b"c"))
    pair = hashlib.sha256(b"\1" + a + b).digest()
    proof = entries[2]["inclusionProof"]
    assert proof["rootHash"] == _b64(hashlib.sha256(b"\1" + pair + c).digest())
    assert proof["hashes"] == [_b64(pair)]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
