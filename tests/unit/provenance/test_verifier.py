"""What is accepted, what is rejected, and at which stage. The matrix is also the gate for a new release of sigstore."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.records import AllowedSigner
from registry.provenance import dev_log
from registry.provenance.dev_authority import make_root
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.provenance.domains import TrustConfigurationError, TrustDomain
from registry.provenance.verifier import _DETAILS, MAX_BUNDLE_BYTES, BundleVerifier, Stage, VerifiedSignature
from tests.fakes.signing import ALICE, ARTIFACT, BOB, SigningLab, now

Document = dict[str, Any]
ALICE_SIGNER = DevTrust.signer(ALICE)
PAST, EARLY, FUTURE = "2021-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> SigningLab:
    return SigningLab(tmp_path_factory.mktemp("lab") / "trust")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SigningLab:
    return SigningLab(tmp_path_factory.mktemp("other") / "trust")


@pytest.fixture(scope="module")
def good(lab: SigningLab) -> bytes:
    return json.dumps(lab.craft()).encode()


def verify(
    bundle: Document | bytes,
    *domains: TrustDomain,
    artifact: bytes = ARTIFACT,
    signers: list[AllowedSigner] | None = None,
) -> VerifiedSignature:
    raw = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    return BundleVerifier(domains).verify(
        content_hash=content_hash(artifact), bundle_json=raw, signers=[ALICE_SIGNER] if signers is None else signers
    )


def stage_of(bundle: Document | bytes, *domains: TrustDomain, **options: Any) -> Stage:
    with pytest.raises(RefusalError) as caught:
        verify(bundle, *domains, **options)
    assert caught.value.reason is Reason.SIGNATURE_REJECTED
    assert ALICE not in caught.value.public_detail
    assert BOB not in caught.value.public_detail
    return Stage(caught.value.metadata["stage"])


def entry(bundle: Document) -> Document:
    found: Document = bundle["verificationMaterial"]["tlogEntries"][0]
    return found


def altered(bundle: Document, change: Callable[[Document], object]) -> Document:
    copied = copy.deepcopy(bundle)
    change(copied)
    return copied


def flip(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[len(raw) // 2] ^= 1
    return base64.b64encode(raw).decode()


# --- accepted ---


def test_a_good_signature_gives_a_proof_that_says_who_and_when(lab: SigningLab) -> None:
    before = now() - timedelta(seconds=2)
    domain = lab.domain()
    proof = verify(lab.craft(), domain)
    assert proof.content_hash == content_hash(ARTIFACT)
    assert (proof.trust_domain, proof.production, proof.issuer, proof.identity) == (DOMAIN, False, ISSUER, ALICE)
    assert before <= proof.signed_at <= now()
    assert proof.root_sha256 == domain.root_sha256 == hashlib.sha256(json.dumps(lab.root()).encode()).hexdigest()
    assert proof.signer == ALICE_SIGNER


def test_any_of_several_signers_may_have_signed(lab: SigningLab) -> None:
    signers = [DevTrust.signer(BOB), AllowedSigner(trust_domain="elsewhere", issuer=ISSUER, identity=ALICE), ALICE_SIGNER]
    assert verify(lab.craft(), lab.domain(), signers=signers).identity == ALICE


def test_an_address_is_an_identity(lab: SigningLab) -> None:
    signer = DevTrust.signer("alice@dev.invalid")
    assert verify(lab.craft(identity="alice@dev.invalid"), lab.domain(), signers=[signer]).signer == signer


def test_the_signed_digest_may_be_left_out(lab: SigningLab) -> None:
    bundle = altered(lab.craft(), lambda document: document["messageSignature"].pop("messageDigest"))
    assert verify(bundle, lab.domain()).identity == ALICE
    assert stage_of(bundle, lab.domain(), artifact=ARTIFACT + b"!") is Stage.SIGNATURE_INVALID


def test_a_certificate_that_has_ended_since_is_good(lab: SigningLab) -> None:
    then = now() - timedelta(minutes=3)
    bundle = lab.craft(at=then, window=(then - timedelta(seconds=30), then + timedelta(seconds=30)))
    assert verify(bundle, lab.domain()).signed_at == then - timedelta(seconds=30)


def test_p_384_is_accepted(lab: SigningLab) -> None:
    assert verify(lab.craft(key=ec.generate_private_key(ec.SECP384R1())), lab.domain()).identity == ALICE


def test_the_domain_that_is_meant_is_found_among_several(lab: SigningLab, other: SigningLab) -> None:
    signers = [replace(ALICE_SIGNER, trust_domain="other"), ALICE_SIGNER]
    domains = (other.domain(name="other"), lab.domain())
    assert verify(lab.craft(), *domains, signers=signers).trust_domain == DOMAIN
    assert verify(other.craft(), *domains, signers=signers).trust_domain == "other"


# --- input ---


@pytest.mark.parametrize(("size", "fits"), [(MAX_BUNDLE_BYTES - 1, True), (MAX_BUNDLE_BYTES, True), (MAX_BUNDLE_BYTES + 1, False)])
def test_a_bundle_is_bounded(lab: SigningLab, size: int, fits: bool) -> None:
    raw = json.dumps(lab.craft()).encode()
    raw += b" " * (size - len(raw))
    if fits:
        assert verify(raw, lab.domain()).identity == ALICE
    else:
        assert stage_of(raw, lab.domain()) is Stage.BUNDLE_TOO_LARGE


@pytest.mark.parametrize("hash_text", ["", "sha256:", "a" * 64, "sha256:" + "A" * 64, "sha512:" + "a" * 128, "sha256:" + "a" * 63])
def test_only_a_content_hash_is_verified(lab: SigningLab, hash_text: str) -> None:
    with pytest.raises(ValueError, match="not a content hash"):
        BundleVerifier([lab.domain()]).verify(
            content_hash=ContentHash(hash_text), bundle_json=json.dumps(lab.craft()).encode(), signers=[ALICE_SIGNER]
        )


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 60_000, b'{"a":' * 10_000, b"\0", b"1e999"])
def test_what_is_no_bundle_is_malformed(lab: SigningLab, raw: bytes) -> None:
    assert stage_of(raw, lab.domain()) is Stage.MALFORMED


MALFORMED: dict[str, Callable[[Document], object]] = {
    "unknown field": lambda d: d.update(newThing=1),
    "unknown media type": lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v0.9+json"),
    "no material": lambda d: d.pop("verificationMaterial"),
    "no signature": lambda d: d.pop("messageSignature"),
    "no certificate": lambda d: d["verificationMaterial"].pop("certificate"),
    "certificate that is no DER": lambda d: d["verificationMaterial"]["certificate"].update(rawBytes=base64.b64encode(b"nope").decode()),
    "certificate cut short": lambda d: d["verificationMaterial"]["certificate"].update(
        rawBytes=d["verificationMaterial"]["certificate"]["rawBytes"][:400]
    ),
    "certificate that is no base64": lambda d: d["verificationMaterial"]["certificate"].update(rawBytes="%%%"),
    "no log entry": lambda d: d["verificationMaterial"].update(tlogEntries=[]),
    "log entries null": lambda d: d["verificationMaterial"].update(tlogEntries=None),
    "two log entries": lambda d: d["verificationMaterial"]["tlogEntries"].append(entry(d)),
    "no inclusion proof": lambda d: entry(d).pop("inclusionProof"),
    "no checkpoint": lambda d: entry(d)["inclusionProof"].pop("checkpoint"),
    "no time": lambda d: entry(d).pop("inclusionPromise"),
    "index that is no number": lambda d: entry(d).update(logIndex="x"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_missing_or_unreadable_is_malformed(lab: SigningLab, case: str) -> None:
    assert stage_of(altered(lab.craft(), MALFORMED[case]), lab.domain()) is Stage.MALFORMED


UNSUPPORTED: dict[str, Callable[[Document], object]] = {
    "entry of version 0.0.3": lambda d: entry(d)["kindVersion"].update(version="0.0.3"),
    "public key": lambda d: d.update(
        verificationMaterial={"publicKey": {"hint": "k1"}, "tlogEntries": d["verificationMaterial"]["tlogEntries"]}
    ),
    "attestation": lambda d: (
        d.pop("messageSignature"),
        d.update(dsseEnvelope={"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": "AA=="}]}),
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_other_kinds_of_signatures_are_unsupported(lab: SigningLab, case: str) -> None:
    assert stage_of(altered(lab.craft(), UNSUPPORTED[case]), lab.domain()) is Stage.UNSUPPORTED


# --- signers ---


@pytest.mark.parametrize(
    "signer",
    [
        DevTrust.signer(BOB),
        DevTrust.signer("https://dev.invalid/people/"),
        DevTrust.signer(ALICE + "/"),
        DevTrust.signer(ALICE.upper()),
        DevTrust.signer(""),
        DevTrust.signer("*"),
        AllowedSigner(trust_domain=DOMAIN, issuer="https://accounts.example.com", identity=ALICE),
        AllowedSigner(trust_domain=DOMAIN, issuer=ISSUER + "/", identity=ALICE),
        AllowedSigner(trust_domain=DOMAIN, issuer="", identity=ALICE),
    ],
)
def test_issuer_and_identity_are_exact(lab: SigningLab, signer: AllowedSigner) -> None:
    assert stage_of(lab.craft(), lab.domain(), signers=[signer]) is Stage.SIGNER_NOT_ALLOWED


def test_a_signer_of_two_halves_does_not_count(lab: SigningLab) -> None:
    halves = [replace(ALICE_SIGNER, issuer="https://x.invalid"), DevTrust.signer(BOB)]
    assert stage_of(lab.craft(), lab.domain(), signers=halves) is Stage.SIGNER_NOT_ALLOWED


def test_nobody_is_not_everybody(lab: SigningLab) -> None:
    assert stage_of(lab.craft(), lab.domain(), signers=[]) is Stage.SIGNER_NOT_ALLOWED


def test_without_a_trust_domain_nothing_is_accepted(lab: SigningLab) -> None:
    assert stage_of(lab.craft()) is Stage.UNKNOWN_TRUST_DOMAIN
    assert stage_of(lab.craft(), lab.domain(), signers=[replace(ALICE_SIGNER, trust_domain="x")]) is Stage.UNKNOWN_TRUST_DOMAIN


def test_a_signer_of_one_domain_does_not_count_in_another(lab: SigningLab, other: SigningLab) -> None:
    signers = [replace(ALICE_SIGNER, trust_domain="other")]
    assert stage_of(lab.craft(), lab.domain(), other.domain(name="other"), signers=signers) is Stage.CERTIFICATE_UNTRUSTED


def test_the_domain_that_got_furthest_is_told(lab: SigningLab, other: SigningLab) -> None:
    signers = [replace(ALICE_SIGNER, trust_domain="other"), DevTrust.signer(BOB)]
    for domains in ((lab.domain(), other.domain(name="other")), (other.domain(name="other"), lab.domain())):
        assert stage_of(lab.craft(), *domains, signers=signers) is Stage.SIGNER_NOT_ALLOWED


# --- certificate ---


def test_an_authority_of_another_instance_is_untrusted(lab: SigningLab, other: SigningLab) -> None:
    assert stage_of(other.craft(), lab.domain()) is Stage.CERTIFICATE_UNTRUSTED


def test_a_foreign_authority_with_our_logs_is_untrusted(lab: SigningLab, other: SigningLab) -> None:
    foreign = lab.with_foreign(other, log_key=False)
    assert stage_of(lab.craft(authority=foreign), lab.domain()) is Stage.CERTIFICATE_UNTRUSTED


def test_a_foreign_authority_of_the_same_name_is_untrusted(lab: SigningLab) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    same_name = make_root(key, (now() - timedelta(days=1), now() + timedelta(days=1)))
    assert same_name.subject == lab.authority.certificate.subject
    foreign = replace(lab.authority, key=key, certificate=same_name)
    assert stage_of(lab.craft(authority=foreign), lab.domain()) is Stage.CERTIFICATE_UNTRUSTED


@pytest.mark.parametrize("minutes", [-30, 20])
def test_a_certificate_is_valid_at_the_time_of_the_log(lab: SigningLab, minutes: int) -> None:
    start = now() + timedelta(minutes=minutes)
    bundle = lab.craft(window=(start, start + timedelta(minutes=10)), at=now())
    assert stage_of(bundle, lab.domain()) is Stage.CERTIFICATE_UNTRUSTED


def test_an_authority_that_had_ended_is_untrusted(lab: SigningLab) -> None:
    late = now() + timedelta(days=3650)
    bundle = lab.craft(at=late, window=(late - timedelta(days=1), late + timedelta(days=1)))
    assert stage_of(bundle, lab.domain()) is Stage.CERTIFICATE_UNTRUSTED


def test_a_certificate_without_the_promise_of_a_certificate_log_is_refused(lab: SigningLab) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert stage_of(lab.craft(key=key, certificate=lab.without_promise(key)), lab.domain()) is Stage.SIGNATURE_INVALID


def test_a_promise_by_another_certificate_log_is_refused(lab: SigningLab, other: SigningLab) -> None:
    bundle = lab.craft(authority=lab.with_foreign(other, log_key=True))
    assert stage_of(bundle, lab.domain()) is Stage.SIGNATURE_INVALID


def test_a_certificate_for_another_purpose_is_refused(lab: SigningLab) -> None:
    assert stage_of(lab.craft(purpose=ExtendedKeyUsageOID.CLIENT_AUTH), lab.domain()) is Stage.SIGNATURE_INVALID


def test_an_authority_is_no_signer(lab: SigningLab) -> None:
    bundle = lab.craft(key=lab.authority.key, certificate=lab.authority.certificate)
    assert stage_of(bundle, lab.domain()) in {Stage.CERTIFICATE_UNTRUSTED, Stage.SIGNATURE_INVALID}


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()])
def test_other_keys_are_refused_and_leak_nothing(lab: SigningLab, key: Any) -> None:
    assert stage_of(lab.craft(key=key), lab.domain()) in {Stage.SIGNATURE_INVALID, Stage.CERTIFICATE_UNTRUSTED}


# --- signature and log ---


def test_an_altered_artifact_is_refused(lab: SigningLab) -> None:
    assert stage_of(lab.craft(), lab.domain(), artifact=ARTIFACT + b"!") is Stage.SIGNATURE_INVALID


ALTERED: dict[str, Callable[[Document], object]] = {
    "signature": lambda d: d["messageSignature"].update(signature=flip(d["messageSignature"]["signature"])),
    "signature empty": lambda d: d["messageSignature"].update(signature=""),
    "digest": lambda d: d["messageSignature"]["messageDigest"].update(digest=flip(d["messageSignature"]["messageDigest"]["digest"])),
    "proof hash": lambda d: entry(d)["inclusionProof"]["hashes"].__setitem__(0, flip(entry(d)["inclusionProof"]["hashes"][0])),
    "proof hash dropped": lambda d: entry(d)["inclusionProof"]["hashes"].pop(),
    "proof hash added": lambda d: entry(d)["inclusionProof"]["hashes"].append(entry(d)["inclusionProof"]["hashes"][0]),
    "proof root": lambda d: entry(d)["inclusionProof"].update(rootHash=flip(entry(d)["inclusionProof"]["rootHash"])),
    "proof index": lambda d: entry(d)["inclusionProof"].update(logIndex="0"),
    "proof size": lambda d: entry(d)["inclusionProof"].update(treeSize="4096"),
    "proof size negative": lambda d: entry(d)["inclusionProof"].update(treeSize="-1"),
    "index": lambda d: entry(d).update(logIndex="99"),
    "index huge": lambda d: entry(d).update(logIndex=str(2**63)),
    "checkpoint": lambda d: entry(d)["inclusionProof"]["checkpoint"].update(
        envelope=entry(d)["inclusionProof"]["checkpoint"]["envelope"].replace("rekor.dev", "rekor.evl", 1)
    ),
    "checkpoint that is no base64": lambda d: entry(d)["inclusionProof"]["checkpoint"].update(
        envelope="x - 1\n1\nAAAA\n\n\N{EM DASH} x %%%\n"
    ),
    "checkpoint empty": lambda d: entry(d)["inclusionProof"]["checkpoint"].update(envelope="x"),
    "promise": lambda d: entry(d)["inclusionPromise"].update(
        signedEntryTimestamp=flip(entry(d)["inclusionPromise"]["signedEntryTimestamp"])
    ),
    "time": lambda d: entry(d).update(integratedTime=str(int(entry(d)["integratedTime"]) + 1)),
    "time removed": lambda d: entry(d).pop("integratedTime"),
    "time huge": lambda d: entry(d).update(integratedTime=str(2**63)),
    "log id": lambda d: entry(d)["logId"].update(keyId=flip(entry(d)["logId"]["keyId"])),
    "entry of a kind that is not ours": lambda d: entry(d)["kindVersion"].update(kind="intoto"),
    "entry of version 0.0.2": lambda d: entry(d)["kindVersion"].update(version="0.0.2"),
    "body that is no JSON": lambda d: entry(d).update(canonicalizedBody=base64.b64encode(b"junk").decode()),
}


@pytest.mark.parametrize("case", ALTERED)
def test_whatever_is_altered_in_a_bundle_is_refused(lab: SigningLab, case: str) -> None:
    assert stage_of(altered(lab.craft(), ALTERED[case]), lab.domain()) in {Stage.SIGNATURE_INVALID, Stage.MALFORMED}


def test_the_entry_of_another_artifact_is_refused(lab: SigningLab) -> None:
    bundle, another = lab.craft(), lab.craft(b"another artifact")
    swapped = altered(bundle, lambda d: d["verificationMaterial"].update(tlogEntries=another["verificationMaterial"]["tlogEntries"]))
    assert stage_of(swapped, lab.domain()) is Stage.SIGNATURE_INVALID


def test_the_certificate_of_another_bundle_is_refused(lab: SigningLab) -> None:
    bundle, another = lab.craft(), lab.craft(b"another artifact")
    swapped = altered(bundle, lambda d: d["verificationMaterial"].update(certificate=another["verificationMaterial"]["certificate"]))
    assert stage_of(swapped, lab.domain()) is Stage.SIGNATURE_INVALID


def test_an_entry_of_another_log_is_refused(lab: SigningLab, other: SigningLab) -> None:
    assert stage_of(lab.craft(log=other.log), lab.domain()) is Stage.SIGNATURE_INVALID


def test_a_logged_body_that_is_no_entry_is_refused(lab: SigningLab) -> None:
    junk = lab.log.append(b"junk", kind="hashedrekord", version="0.0.1", at=now())
    bundle = altered(lab.craft(), lambda d: d["verificationMaterial"].update(tlogEntries=[junk]))
    assert stage_of(bundle, lab.domain()) is Stage.SIGNATURE_INVALID


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutant_is_accepted_for_another_artifact_and_nothing_leaks(lab: SigningLab, good: bytes, data: st.DataObject) -> None:
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 1_000_000)) % len(raw)
        raw[at] = data.draw(st.integers(0, 255))
    with pytest.raises(RefusalError):
        verify(bytes(raw), lab.domain(), artifact=b"another artifact")
    try:
        proof = verify(bytes(raw), lab.domain())
    except RefusalError:
        return
    assert (proof.identity, proof.content_hash) == (ALICE, content_hash(ARTIFACT))


def test_an_exception_nobody_thought_of_is_a_rejection(lab: SigningLab, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = lab.domain()
    for error in (RuntimeError("x"), KeyError("x"), RecursionError(), MemoryError(), AssertionError()):

        def surprise(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(domain._verifier, "verify_artifact", surprise)
        assert stage_of(lab.craft(), domain) is Stage.SIGNATURE_INVALID


def test_a_verification_that_never_asked_the_policy_is_a_rejection(lab: SigningLab, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = lab.domain()
    monkeypatch.setattr(domain._verifier, "verify_artifact", lambda *_: None)
    assert stage_of(lab.craft(), domain) is Stage.SIGNER_NOT_ALLOWED


# --- trust windows: what sigstore-python ignores ---


def changed(root: Document, *path: str | int, value: Any) -> Document:
    place: Any = root
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return root


@pytest.mark.parametrize(
    "path",
    [("certificateAuthorities", 0, "validFor"), ("tlogs", 0, "publicKey", "validFor"), ("ctlogs", 0, "publicKey", "validFor")],
)
def test_what_had_ended_when_it_was_signed_does_not_count(lab: SigningLab, path: tuple[str | int, ...]) -> None:
    domain = lab.domain(changed(lab.root(), *path, value={"start": EARLY, "end": PAST}))
    assert stage_of(lab.craft(), domain) is Stage.OUTSIDE_TRUST_WINDOW


@pytest.mark.parametrize("path", [("tlogs", 0, "publicKey", "validFor"), ("ctlogs", 0, "publicKey", "validFor")])
def test_what_begins_later_does_not_count(lab: SigningLab, path: tuple[str | int, ...]) -> None:
    domain = lab.domain(changed(lab.root(), *path, value={"start": FUTURE}))
    assert stage_of(lab.craft(), domain) in {Stage.SIGNATURE_INVALID, Stage.OUTSIDE_TRUST_WINDOW}


def test_windows_include_both_ends(lab: SigningLab) -> None:
    bundle = lab.craft()
    signed = verify(bundle, lab.domain()).signed_at
    at = signed.strftime("%Y-%m-%dT%H:%M:%SZ")
    just = changed(lab.root(), "tlogs", 0, "publicKey", "validFor", value={"start": at, "end": at})
    assert verify(bundle, lab.domain(just)).identity == ALICE
    before = (signed - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = changed(lab.root(), "tlogs", 0, "publicKey", "validFor", value={"start": EARLY, "end": before})
    assert stage_of(bundle, lab.domain(ended)) is Stage.OUTSIDE_TRUST_WINDOW


def test_a_retired_log_key_cannot_hide_behind_the_name_of_a_current_one(
    lab: SigningLab, other: SigningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where an entry names a log whose key sigstore does not find under that name, it tries every key of the root. So whoever holds a
    # retired key signs, and names a current log whose id is not the hash of its key, as those of Rekor v2 are not.
    current_id = hashlib.sha256(b"the id of a current log").digest()
    root = lab.root()
    retired, current = root["tlogs"][0], other.root()["tlogs"][0]
    retired["publicKey"]["validFor"] = {"start": EARLY, "end": PAST}
    current["logId"] = {"keyId": base64.b64encode(current_id).decode()}
    root["tlogs"] = [retired, current]
    monkeypatch.setattr(dev_log, "key_id", lambda key: current_id)
    bundle = lab.craft()
    domain = lab.domain(root)
    assert stage_of(bundle, domain) is Stage.OUTSIDE_TRUST_WINDOW


def test_parts_of_two_roots_do_not_combine(lab: SigningLab, other: SigningLab) -> None:
    # The authority of one instance and the logs of another: accepted by a merged root, so roots are never merged.
    foreign = lab.with_foreign(other, log_key=False)
    bundle = lab.craft(authority=foreign)
    signers = [ALICE_SIGNER, replace(ALICE_SIGNER, trust_domain="other")]
    merged = lab.root()
    for part in ("tlogs", "ctlogs", "certificateAuthorities"):
        merged[part] += other.root()[part]
    assert verify(bundle, lab.domain(merged)).identity == ALICE
    assert stage_of(bundle, lab.domain(), other.domain(name="other"), signers=signers) in {
        Stage.CERTIFICATE_UNTRUSTED,
        Stage.SIGNATURE_INVALID,
    }


# --- the proof ---


def test_nobody_else_makes_a_proof(lab: SigningLab) -> None:
    proof = verify(lab.craft(), lab.domain())
    with pytest.raises(TypeError, match="only BundleVerifier"):
        replace(proof, identity=BOB)
    with pytest.raises(TypeError, match="only BundleVerifier"):
        VerifiedSignature(
            content_hash=proof.content_hash,
            trust_domain=DOMAIN,
            production=True,
            issuer=ISSUER,
            identity=ALICE,
            signed_at=proof.signed_at,
            root_sha256=proof.root_sha256,
        )


def test_two_domains_of_one_name_are_no_verifier(lab: SigningLab, other: SigningLab) -> None:
    with pytest.raises(TrustConfigurationError, match="one name"):
        BundleVerifier([lab.domain(), other.domain()])


def test_a_verifier_is_used_by_many_threads(lab: SigningLab) -> None:
    verifier = BundleVerifier([lab.domain(changed(lab.root(), "tlogs", 0, "publicKey", "validFor", value={"start": EARLY, "end": FUTURE}))])
    good, bad = json.dumps(lab.craft()).encode(), json.dumps(lab.craft(identity=BOB)).encode()
    answers: list[bool] = []

    def run(raw: bytes, expected: bool) -> None:
        for _ in range(15):
            try:
                verifier.verify(content_hash=content_hash(ARTIFACT), bundle_json=raw, signers=[ALICE_SIGNER])
            except RefusalError:
                answers.append(not expected)
            else:
                answers.append(expected)

    threads = [threading.Thread(target=run, args=(raw, expected)) for raw, expected in ((good, True), (bad, False)) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [True] * 90


def test_every_stage_tells_what_to_change() -> None:
    assert set(_DETAILS) == set(Stage)
    assert all(detail.endswith(".") for detail in _DETAILS.values())
