"""Artifacts that a daemon finds already compiled: its own compiler gives way to everything else on the machine, and takes its time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from registry.domain.digests import ContentHash
from registry.domain.limits import MIB
from runnerd.artifacts.cache import ArtifactCache
from runnerd.artifacts.keys import ArtifactSigner
from runnerd.artifacts.records import ArtifactStatement, write_artifact_record
from runnerd.artifacts.sealed import seal_bytes
from runnerd.engine.profile import BRIDGE_VERSION, engine_fingerprint
from tests.fakes.guests import compiled_of


def place_artifact(cache: Path, key_file: Path, digest: ContentHash, component: Path) -> None:
    """Leave a compiled component where a daemon of default settings looks first, signed with its key. Compiled once into .cache.

    Args:
        cache: the daemon's folder.
        key_file: of its artifacts.
        digest: of the bundle.
        component: of the bundle.
    """
    compiled, fingerprint = compiled_of(component), engine_fingerprint()
    artifact = seal_bytes("placed", compiled.artifact)
    try:
        statement = ArtifactStatement(
            content_hash=digest,
            component_sha256=hashlib.sha256(component.read_bytes()).hexdigest(),
            bridge_version=BRIDGE_VERSION,
            bridge_applied=compiled.bridged,
            engine_fingerprint=fingerprint,
            artifact_sha256=artifact.sha256,
            artifact_bytes=artifact.size,
            memories=compiled.memories,
        )
        record = write_artifact_record(statement, ArtifactSigner.from_file(key_file))
        cache.mkdir(mode=0o700, exist_ok=True)
        kept = ArtifactCache(cache / "artifacts", fingerprint=fingerprint, max_bytes=8192 * MIB, max_artifact_bytes=256 * MIB)
        assert kept.store(digest, artifact, record)
    finally:
        artifact.close()
