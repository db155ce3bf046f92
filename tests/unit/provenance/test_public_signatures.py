"""Real signatures of the public sigstore instance, verified offline under the root that the sigstore wheel ships, and refused altered.

The files are test assets of a source distribution that `scripts/fetch_fixtures` keeps in .cache. They are attestations (DSSE), which the
product does not accept as signatures of a bundle; so they exercise its domains, windows and policy, and sigstore itself, not step 1.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.resources
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sigstore.errors import CertValidationError, VerificationError
from sigstore.models import Bundle

from registry.domain.digests import content_hash
from registry.domain.errors import RefusalError
from registry.domain.records import AllowedSigner
from registry.provenance.domains import TrustDomain, load_trust_domains
from registry.provenance.policy import AllowedSignersPolicy, SignerNotAllowedError
from registry.provenance.verifier import BundleVerifier

ASSETS = Path(__file__).parents[3] / ".cache/fixtures/pypi_attestations-0.0.30/test/assets"
STORE = "_store/https%3A%2F%2Ftuf-repo-cdn.{}/trusted_root.json"

PRODUCTION = [
    (
        "pypi_attestations-0.0.19.tar.gz",
        "pypi_attestations-0.0.19.tar.gz.publish.attestation",
        "https://token.actions.githubusercontent.com",
    ),
    ("pypi_attestations-0.0.19.tar.gz", "pypi_attestations-0.0.19.tar.gz.slsa.attestation", "https://token.actions.githubusercontent.com"),
    ("pypi_attestations-0.0.19.tar.gz", "pypi_attestations-0.0.19.tar.gz.provenance", "https://token.actions.githubusercontent.com"),
    (
        "pypi_attestation_models-0.0.4a2.tar.gz",
        "pypi_attestation_models-0.0.4a2.tar.gz.attestation",
        "https://token.actions.githubusercontent.com",
    ),
    (
        "pypi_attestation_models-0.0.4a2.tar.gz",
        "pypi_attestation_models-0.0.4a2.tar.gz.sigstore",
        "https://token.actions.githubusercontent.com",
    ),
    ("gitlab_oidc_project-0.0.3.tar.gz", "gitlab_oidc_project-0.0.3.tar.gz.publish.attestation", "https://gitlab.com"),
    ("gcb_attestation_test-0.0.0.tar.gz", "gcb_attestation_test-0.0.0.tar.gz.provenance", "https://accounts.google.com"),
    (
        "circleci_sign_publish_example-0.0.1.dev137-py3-none-any.whl",
        "circleci_sign_publish_example-0.0.1.dev137-py3-none-any.whl.publish.attestation",
        None,
    ),
]
STAGING = [("rfc8785-0.1.2-py3-none-any.whl", "rfc8785-0.1.2-py3-none-any.whl.sigstore")]

pytestmark = pytest.mark.usefixtures("assets")


@pytest.fixture(scope="module")
def assets() -> Path:
    if not ASSETS.is_dir():
        if os.environ.get("REQUIRE_FIXTURES") == "1":
            pytest.fail("the public signatures are required (REQUIRE_FIXTURES=1) and were not fetched: run scripts/fetch_fixtures")
        pytest.skip("public signatures were not fetched: run scripts/fetch_fixtures with a network")
    return ASSETS


def root_of(instance: str) -> bytes:
    return importlib.resources.files("sigstore").joinpath(STORE.format(instance)).read_bytes()


@pytest.fixture(scope="module")
def production() -> TrustDomain:
    return TrustDomain(name="production", production=True, root=root_of("sigstore.dev"))


@pytest.fixture(scope="module")
def staging() -> TrustDomain:
    return TrustDomain(name="staging", production=False, root=root_of("sigstage.dev"))


def documents(name: str) -> Iterator[dict[str, Any]]:
    """Sigstore bundles from a file: as they are, from an attestation (PEP 740), or from a provenance that holds several."""
    document = json.loads((ASSETS / name).read_text())
    if "mediaType" in document:
        yield document
    elif "attestation_bundles" in document:
        for group in document["attestation_bundles"]:
            yield from map(_bundle, group["attestations"])
    else:
        yield _bundle(document)


def _bundle(attestation: dict[str, Any]) -> dict[str, Any]:
    material, envelope = attestation["verification_material"], attestation["envelope"]
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "certificate": {"rawBytes": material["certificate"]},
            "tlogEntries": material["transparency_entries"],
        },
        "dsseEnvelope": {
            "payload": envelope["statement"],
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": envelope["signature"]}],
        },
    }


def who(bundle: Bundle, domain: TrustDomain) -> AllowedSigner:
    """The signer that the certificate names, taken from the raw extensions."""
    certificate = bundle.signing_certificate
    (name,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    issuer = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")).value
    assert isinstance(issuer, x509.UnrecognizedExtension)
    return AllowedSigner(trust_domain=domain.name, issuer=issuer.value.decode(), identity=str(name.value))


def verify(document: dict[str, Any], domain: TrustDomain, *signers: AllowedSigner) -> tuple[AllowedSigner, bytes]:
    """Steps 3 to 5 of the product's procedure, for an attestation."""
    bundle = Bundle.from_json(json.dumps(document))
    policy = AllowedSignersPolicy(signers or [who(bundle, domain)])
    _, payload = domain.verifier.verify_dsse(bundle, policy)
    narrowed = domain.verifier_at(bundle.signing_certificate.not_valid_before_utc)
    assert narrowed is not None
    assert narrowed.verify_dsse(bundle, policy)[1] == payload
    assert policy.matched is not None
    return policy.matched, payload


@pytest.mark.parametrize(("artifact", "signature", "issuer"), PRODUCTION)
def test_public_signatures_are_good_under_the_production_root(
    artifact: str, signature: str, issuer: str | None, production: TrustDomain
) -> None:
    digest = hashlib.sha256((ASSETS / artifact).read_bytes()).hexdigest()
    for document in documents(signature):
        signer, payload = verify(document, production)
        assert issuer in {None, signer.issuer}
        assert digest in {subject["digest"]["sha256"] for subject in json.loads(payload)["subject"]}


@pytest.mark.parametrize(("artifact", "signature", "issuer"), PRODUCTION)
def test_altered_they_are_not(artifact: str, signature: str, issuer: str | None, production: TrustDomain) -> None:
    document = next(documents(signature))
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    digest = hashlib.sha256((ASSETS / artifact).read_bytes()).hexdigest().encode()
    assert digest in payload
    forged = copy.deepcopy(document)
    forged["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(digest, b"0" * 64)).decode()
    with pytest.raises(VerificationError):
        verify(forged, production)


@pytest.mark.parametrize(("artifact", "signature", "issuer"), PRODUCTION)
def test_somebody_else_did_not_sign_them(artifact: str, signature: str, issuer: str | None, production: TrustDomain) -> None:
    somebody = AllowedSigner(trust_domain="production", issuer=issuer or "https://x", identity="https://github.com/somebody/else")
    with pytest.raises(SignerNotAllowedError):
        verify(next(documents(signature)), production, somebody)


@pytest.mark.parametrize(("artifact", "signature"), STAGING)
def test_signatures_of_the_staging_instance_are_not_those_of_production(
    artifact: str, signature: str, production: TrustDomain, staging: TrustDomain
) -> None:
    document = next(documents(signature))
    with pytest.raises(CertValidationError):
        verify(document, production)
    assert verify(document, staging)[0].trust_domain == "staging"


def test_an_attestation_is_no_signature_of_a_bundle(production: TrustDomain) -> None:
    artifact, signature, _ = PRODUCTION[4]
    document = next(documents(signature))
    signer = who(Bundle.from_json(json.dumps(document)), production)
    with pytest.raises(RefusalError) as caught:
        BundleVerifier([production]).verify(
            content_hash=content_hash((ASSETS / artifact).read_bytes()), bundle_json=json.dumps(document).encode(), signers=[signer]
        )
    assert caught.value.metadata["stage"] == "unsupported"


def test_the_production_root_is_loaded_in_production(tmp_path: Path) -> None:
    root = root_of("sigstore.dev")
    (tmp_path / "root.json").write_bytes(root)
    row = {"name": "production", "trusted_root": "root.json", "trusted_root_sha256": hashlib.sha256(root).hexdigest(), "production": True}
    (tmp_path / "domains.json").write_text(json.dumps([row]))
    (domain,) = load_trust_domains(tmp_path / "domains.json", environment="production")
    assert (domain.name, domain.production) == ("production", True)
