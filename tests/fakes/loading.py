"""Fakes around the loader: a registry, a signature verifier, a compiler, metrics; and small bundles."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from registry.bundles.local import LocalBundleStore
from registry.bundles.manifest import parse_manifest
from registry.bundles.packing import pack_files
from registry.bundles.store import BundleStore, object_keys
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import ExtensionId, PublisherId, VersionId
from registry.domain.records import AllowedSigner, LoadableBundle
from runnerd.artifacts.compiler import ArtifactCompiler, Compilation, FetchComponent
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.loader import ExtensionLoader, LoaderSettings
from runnerd.artifacts.progress import Preparation
from runnerd.artifacts.sealed import SealedFile, seal_bytes

FINGERPRINT = hashlib.sha256(b"the engine of the tests").hexdigest()
ALICE = AllowedSigner(trust_domain="development", issuer="https://oidc.dev.invalid", identity="https://dev.invalid/people/alice")
BOB = replace(ALICE, identity="https://dev.invalid/people/bob")
WASM = b"\0asm\x0d\0\1\0"


@dataclass(frozen=True, kw_only=True)
class SampleBundle:
    """A packed bundle and what the registry says about it."""

    archive: bytes
    loadable: LoadableBundle

    @property
    def hash(self) -> ContentHash:
        return self.loadable.content_hash


def make_bundle(
    name: str = "com.example.notes",
    *,
    wasm: bytes | None = WASM,
    ui: Mapping[str, bytes] | None = None,
    publisher: str = "example",
    signers: tuple[AllowedSigner, ...] = (ALICE,),
) -> SampleBundle:
    pages = dict(ui or {})
    manifest: dict[str, object] = {
        "name": name,
        "publisher": publisher,
        "version": "1.0.0",
        "runtime": "ui-only@1" if wasm is None else "wasm-component@1",
    }
    if pages:
        manifest["ui"] = {"type": "iframe", "entry": f"ui/{min(pages)}"}
    manifest_json = json.dumps(manifest).encode()
    files = {"manifest.json": manifest_json} | {f"ui/{path}": data for path, data in pages.items()}
    if wasm is not None:
        files["dist/main.wasm"] = wasm
    archive = pack_files(files)
    loadable = LoadableBundle(
        content_hash=content_hash(archive),
        extension_id=ExtensionId("0197a000-0000-7000-8000-000000000001"),
        extension_name=name,
        version_id=VersionId("0197a000-0000-7000-8000-000000000002"),
        version="1.0.0",
        runtime=str(manifest["runtime"]),
        publisher_id=PublisherId(f"publisher-{publisher}"),
        publisher=publisher,
        manifest_digest=parse_manifest(manifest_json).digest,
        signers=signers,
    )
    return SampleBundle(archive=archive, loadable=loadable)


class FakeResolver:
    """A registry in a dictionary."""

    def __init__(self) -> None:
        self.bundles: dict[str, LoadableBundle] = {}
        self.denied: set[str] = set()

    async def loadable(self, content_hash: ContentHash) -> LoadableBundle:
        if content_hash in self.denied:
            raise RefusalError(Reason.HASH_DENIED, "This content was revoked.")
        if content_hash not in self.bundles:
            raise RefusalError(Reason.VERSION_NOT_FOUND, "No such version.")
        return self.bundles[content_hash]


@dataclass(frozen=True, kw_only=True)
class FakeProof:
    content_hash: ContentHash
    identity: str


class FakeVerifier:
    """Accepts the JSON that `sign` writes, by one of the signers asked for, under the root it has now."""

    def __init__(self) -> None:
        self.root = "root-1"
        self.calls = 0

    def sign(self, content_hash: ContentHash, signer: AllowedSigner = ALICE) -> bytes:
        return json.dumps({"hash": content_hash, "identity": signer.identity, "root": self.root}).encode()

    def verify(self, *, content_hash: ContentHash, bundle_json: bytes, signers: Sequence[AllowedSigner]) -> FakeProof:
        self.calls += 1
        try:
            signature = json.loads(bundle_json)
        except ValueError:
            signature = {}
        identity = signature.get("identity")
        allowed = identity in {signer.identity for signer in signers}
        if not allowed or signature.get("hash") != content_hash or signature.get("root") != self.root:
            raise RefusalError(Reason.SIGNATURE_REJECTED, "Not signed.")
        return FakeProof(content_hash=content_hash, identity=identity)


class RecordingMetrics:
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.stages: list[tuple[int, int, bool]] = []
        """Waiting for a compiler, in one, and whether the oldest of these has a start."""
        self.fetching: list[int] = []
        """Fetched for a compiler, at the same moments."""
        self.compile_seconds: list[float] = []

    def verification(self, result: str) -> None:
        self.seen[f"verification:{result}"] += 1

    def compiled(self, seconds: float) -> None:
        self.compile_seconds.append(seconds)
        self.seen["compiled"] += 1

    def artifact_loaded(self, source: str) -> None:
        self.seen[f"loaded:{source}"] += 1

    def shared_artifact(self, result: str) -> None:
        self.seen[f"shared:{result}"] += 1

    def preparing(self, *, waiting: int, fetching: int, compiling: int, oldest_start: float) -> None:
        self.stages.append((waiting, compiling, oldest_start > 0))
        self.fetching.append(fetching)


class FakeCompiler:
    """Makes an artifact in this process: an ELF magic, and the component's bytes behind it."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.publishers: list[str] = []
        self.gate: asyncio.Event | None = None
        self.refusal: RefusalError | None = None

    async def compile(self, fetch: FetchComponent, *, publisher: str, preparation: Preparation) -> Compilation:
        preparation.fetching()
        component = await fetch()
        preparation.compiling()
        self.compiled.append(component.sha256)
        self.publishers.append(publisher)
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return Compilation(
            artifact=seal_bytes("artifact", artifact_for(read(component))),
            component_sha256=component.sha256,
            bridge_applied=False,
            memories=1,
            seconds=0.25,
        )


async def compile_sealed(compiler: ArtifactCompiler, component: SealedFile, *, publisher: str = "p") -> Compilation:
    """Compile what is in memory already."""

    async def fetch() -> SealedFile:
        return component

    return await compiler.compile(fetch, publisher=publisher, preparation=Preparation(make_bundle().loadable, lambda: None))


async def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait for what nobody signals."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def artifact_for(component: bytes) -> bytes:
    return b"\x7fELF" + component


def read(file: SealedFile) -> bytes:
    return os.pread(file.fileno(), file.size, 0)


@dataclass(kw_only=True)
class Installation:
    """One machine: a store, a registry, a cache folder and a key, which outlive the loaders made on it."""

    folder: Path
    resolver: FakeResolver = field(default_factory=FakeResolver)
    verifier: FakeVerifier = field(default_factory=FakeVerifier)
    compiler: FakeCompiler = field(default_factory=FakeCompiler)
    metrics: RecordingMetrics = field(default_factory=RecordingMetrics)
    signer: ArtifactSigner = field(default_factory=ArtifactSigner.generate)
    trusted: list[ArtifactSigner] = field(default_factory=list)
    """Further keys whose artifact records count: a predecessor, other daemons of the fleet."""
    objects: Path | None = None
    """The object store, where it is another machine's."""

    def neighbour(self, folder: Path) -> Installation:
        """Another daemon of the same fleet: one registry, one object store, its own cache and key; the two trust each other."""
        other = Installation(folder=folder, resolver=self.resolver, verifier=self.verifier, objects=self.object_path(""))
        other.trusted.append(self.signer)
        self.trusted.append(other.signer)
        return other

    @property
    def store(self) -> LocalBundleStore:
        return LocalBundleStore(self.object_path(""))

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def object_path(self, key: str) -> Path:
        return (self.objects or self.folder / "bundles") / key

    def artifact_path(self, bundle: SampleBundle, suffix: str = ".cwasm", fingerprint: str = FINGERPRINT) -> Path:
        return self.cache / "artifacts" / fingerprint / (bundle.hash.removeprefix("sha256:") + suffix)

    async def publish(self, bundle: SampleBundle) -> SampleBundle:
        keys = object_keys(bundle.hash)
        await self.store.put_if_absent(keys.archive, bundle.archive, content_type="application/zstd")
        await self.store.put_if_absent(keys.signature, self.verifier.sign(bundle.hash), content_type="application/json")
        self.resolver.bundles[bundle.hash] = bundle.loadable
        return bundle

    def loader(
        self,
        *,
        compiler: ArtifactCompiler | None = None,
        fingerprint: str = FINGERPRINT,
        store: BundleStore | None = None,
        **settings: object,
    ) -> ExtensionLoader:
        """A daemon that starts now on this machine."""
        return ExtensionLoader(
            LoaderSettings(**{"cache_folder": self.cache, "engine_fingerprint": fingerprint} | settings),  # type: ignore[arg-type]
            resolver=self.resolver,
            store=store or self.store,
            verifier=self.verifier,
            compiler=compiler or self.compiler,
            signer=self.signer,
            records=ArtifactVerifier(self.signer.public_key(), *(other.public_key() for other in self.trusted)),
            metrics=self.metrics,
            trust_generation=lambda: self.verifier.root,
        )
