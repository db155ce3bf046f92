"""Loading with real sigstore verification under a development trust domain, a real store and the real compiler."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from registry.bundles.store import object_keys
from registry.domain.errors import Reason, RefusalError
from registry.domain.records import AllowedSigner
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import BundleVerifier, load_trust_domains
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.loader import ExtensionLoader, LoaderSettings
from runnerd.engine.profile import engine_fingerprint
from runnerd.telemetry.metrics import Metrics
from tests.fakes.loading import Installation, SampleBundle, make_bundle
from tests.fakes.marker_guests import marker_guest, run_marker

ALICE, BOB = (f"https://dev.invalid/people/{name}" for name in ("alice", "bob"))
PAGES = {"index.html": b"<p>"}


@dataclass(kw_only=True)
class SignedInstallation:
    """A machine with its own trust domain."""

    machine: Installation
    trust: DevTrust

    async def publish(self, *, signed_as: str = ALICE, signers: tuple[AllowedSigner, ...] = (DevTrust.signer(ALICE),)) -> SampleBundle:
        bundle = make_bundle(wasm=marker_guest("genuine"), ui=PAGES, signers=signers)
        keys = object_keys(bundle.hash)
        await self.machine.store.put_if_absent(keys.archive, bundle.archive, content_type="application/zstd")
        signature = self.trust.sign(bundle.hash, signed_as)
        await self.machine.store.put_if_absent(keys.signature, signature, content_type="application/json")
        self.machine.resolver.bundles[bundle.hash] = bundle.loadable
        return bundle

    def signature(self, bundle: SampleBundle) -> Path:
        return self.machine.object_path(object_keys(bundle.hash).signature)

    def loader(self, trust: DevTrust | None = None) -> ExtensionLoader:
        domains = load_trust_domains((trust or self.trust).trust_domains_path, environment="development")
        signer = ArtifactSigner.from_file(self.machine.folder / "keys" / "artifacts.ed25519")
        return ExtensionLoader(
            LoaderSettings(cache_folder=self.machine.cache, engine_fingerprint=engine_fingerprint()),
            resolver=self.machine.resolver,
            store=self.machine.store,
            verifier=BundleVerifier(domains),
            compiler=Compiler(CompilerSettings(), engine_fingerprint=engine_fingerprint()),
            signer=signer,
            records=ArtifactVerifier(signer.public_key()),
            metrics=Metrics(),
        )


@pytest.fixture
def installation(tmp_path: Path) -> SignedInstallation:
    return SignedInstallation(machine=Installation(folder=tmp_path), trust=DevTrust.init(tmp_path / "trust"))


async def refused(loader: ExtensionLoader, bundle: SampleBundle) -> Reason:
    with pytest.raises(RefusalError) as caught:
        await loader.load(bundle.hash)
    with pytest.raises(RefusalError) as again:
        await loader.interface(bundle.hash)
    assert caught.value.reason is again.value.reason
    return caught.value.reason


async def test_a_signed_bundle_loads_and_runs_and_again_after_a_restart(installation: SignedInstallation) -> None:
    bundle = await installation.publish()
    first = installation.loader()
    assert (await first.warm(bundle.hash)).state == "compiled"
    await first.aclose()
    second = installation.loader()
    extension = await second.load(bundle.hash)
    assert (extension.signer, run_marker(extension.artifact.fileno())) == (ALICE, "genuine")
    assert (await second.warm(bundle.hash)).state == "cached"
    assert set((await second.interface(bundle.hash)).files) == set(PAGES)


async def test_another_signer_is_refused(installation: SignedInstallation) -> None:
    assert await refused(installation.loader(), await installation.publish(signed_as=BOB)) is Reason.SIGNATURE_REJECTED


async def test_one_altered_character_of_the_signature_is_refused(installation: SignedInstallation) -> None:
    bundle = await installation.publish()
    document = json.loads(installation.signature(bundle).read_bytes())
    signature = document["messageSignature"]["signature"]
    document["messageSignature"]["signature"] = ("A" if signature[10] != "A" else "B").join((signature[:10], signature[11:]))
    installation.signature(bundle).write_text(json.dumps(document))
    assert await refused(installation.loader(), bundle) is Reason.SIGNATURE_REJECTED


async def test_a_narrowed_policy_counts_for_a_warm_cache(installation: SignedInstallation) -> None:
    bundle = await installation.publish(signers=(DevTrust.signer(ALICE), DevTrust.signer(BOB)))
    await installation.loader().warm(bundle.hash)
    installation.machine.resolver.bundles[bundle.hash] = replace(bundle.loadable, signers=(DevTrust.signer(BOB),))
    assert await refused(installation.loader(), bundle) is Reason.SIGNATURE_REJECTED


async def test_another_root_counts_for_a_warm_cache(installation: SignedInstallation) -> None:
    bundle = await installation.publish()
    await installation.loader().warm(bundle.hash)
    other = DevTrust.init(installation.machine.folder / "other-trust")
    assert await refused(installation.loader(other), bundle) is Reason.SIGNATURE_REJECTED


async def test_what_was_loaded_shows_in_the_metrics(installation: SignedInstallation) -> None:
    bundle = await installation.publish()
    loader = installation.loader()
    await loader.load(bundle.hash)
    await loader.load(bundle.hash)
    assert isinstance(loader._metrics, Metrics)
    text = loader._metrics.render().decode()
    assert 'extrunner_artifact_loads_total{source="compiler"} 1.0' in text
    assert 'extrunner_artifact_loads_total{source="memory"} 1.0' in text
    assert 'extrunner_bundle_verifications_total{result="ok"} 2.0' in text
    assert "extrunner_compile_duration_seconds_count 1.0" in text
