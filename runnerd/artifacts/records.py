"""Signed records: what ties native code, and the files of an interface, to the bundle they were made from.

Attack it stops (T1): deserialising an artifact is executing it. A digest or an HMAC over the bytes alone accepts one extension's
genuine artifact under another's name, and that extension's code then runs with the other's storage and grants. A record is
therefore signed over the bundle, the component, the bridge, the engine *and* the artifact, and is checked for the bundle that was
asked for. The index of an interface is signed for the same reason: path names are not in the digests of the files.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.keys import ArtifactSigner, ArtifactVerifier
from runnerd.artifacts.sealed import SealedFile
from runnerd.engine.profile import MAX_MEMORIES

RECORD_VERSION = 1
MAX_ARTIFACT_RECORD_BYTES = 4096
MAX_INTERFACE_RECORD_BYTES = 16 * 1024 * 1024
"""10,000 files with long names fit."""

_ARTIFACT_KIND = "extrunner.artifact"
_INTERFACE_KIND = "extrunner.interface"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactStatement:
    """Where an artifact comes from and what it is. All of it is signed."""

    content_hash: ContentHash
    """The bundle."""
    component_sha256: str
    """The author's component, as it lies in the bundle."""
    bridge_version: str
    """Version of the bridge that this build composes around components; "0" where there is none."""
    bridge_applied: bool
    engine_fingerprint: str
    artifact_sha256: str
    artifact_bytes: int
    memories: int
    """Linear memories of one instance, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatement:
    """The files of one bundle's interface. All of it is signed."""

    content_hash: ContentHash
    entry: str | None
    files: Mapping[str, tuple[str, int]]
    """Path below `ui/` → SHA-256 and bytes."""


def write_artifact_record(statement: ArtifactStatement, signer: ArtifactSigner) -> bytes:
    """Sign `statement`; the result is what lies beside the artifact."""
    return _write(_ARTIFACT_KIND, asdict(statement), signer)


def verify_artifact_record(
    record: bytes, verifier: ArtifactVerifier, *, content_hash: ContentHash, engine_fingerprint: str
) -> ArtifactStatement:
    """Verify a record for the bundle and the engine that are wanted.

    1. It is a record of this version, with exactly its fields.
    2. A key of this installation signed it.
    3. It speaks of this bundle.
    4. It speaks of this engine.

    The caller gives the artifact to `require_artifact` before it maps anything.

    Raises:
        RefusalError: ARTIFACT_REJECTED.
    """
    fields_read = _read(_ARTIFACT_KIND, record, verifier, limit=MAX_ARTIFACT_RECORD_BYTES)  # (1), (2)
    statement = _artifact_statement(fields_read)
    if statement.content_hash != content_hash:  # (3)
        reject("the record belongs to another bundle")
    if statement.engine_fingerprint != engine_fingerprint:  # (4)
        reject("the record belongs to another engine")
    return statement


def require_artifact(statement: ArtifactStatement, artifact: SealedFile) -> None:
    """Require that these are the bytes that the statement is about.

    Raises:
        RefusalError: ARTIFACT_REJECTED.
    """
    # SECURITY: the digest is of the sealed copy, not of the file or the object that it was read from.
    if (artifact.sha256, artifact.size) != (statement.artifact_sha256, statement.artifact_bytes):
        reject("the artifact is not the one of the record")


def write_interface_record(statement: InterfaceStatement, signer: ArtifactSigner) -> bytes:
    """Sign `statement`; the result is the index of the bundle's interface."""
    body = {
        "content_hash": statement.content_hash,
        "entry": statement.entry,
        "files": {path: list(file) for path, file in statement.files.items()},
    }
    return _write(_INTERFACE_KIND, body, signer)


def verify_interface_record(record: bytes, verifier: ArtifactVerifier, *, content_hash: ContentHash) -> InterfaceStatement:
    """Verify an index for the bundle that is wanted.

    Raises:
        RefusalError: ARTIFACT_REJECTED.
    """
    body = _read(_INTERFACE_KIND, record, verifier, limit=MAX_INTERFACE_RECORD_BYTES)
    if set(body) != {"content_hash", "entry", "files"} or body["content_hash"] != content_hash:
        reject("the index belongs to another bundle")
    entry, listed = body["entry"], body["files"]
    if not (entry is None or isinstance(entry, str)) or not isinstance(listed, dict):
        reject("the index is malformed")
    files: dict[str, tuple[str, int]] = {}
    for path, file in listed.items():
        if not (isinstance(file, list) and len(file) == 2 and _is_digest(file[0]) and _is_size(file[1])):  # noqa: PLR2004 - a pair
            reject("the index is malformed")
        files[path] = (file[0], file[1])
    return InterfaceStatement(content_hash=content_hash, entry=entry, files=files)


def reject(why: str) -> NoReturn:
    """Refuse a cached file. The refusal stays inside: who catches it counts it, logs `why` and makes the file again.

    Raises:
        RefusalError: ARTIFACT_REJECTED, always.
    """
    raise RefusalError(Reason.ARTIFACT_REJECTED, "A compiled artifact was rejected; try again.", metadata={"why": why})


def _artifact_statement(body: Mapping[str, Any]) -> ArtifactStatement:
    if set(body) != {field.name for field in fields(ArtifactStatement)}:
        reject("the record has other fields")
    checks = (
        isinstance(body["content_hash"], str) and is_content_hash(body["content_hash"]),
        _is_digest(body["component_sha256"]),
        isinstance(body["bridge_version"], str),
        isinstance(body["bridge_applied"], bool),
        isinstance(body["engine_fingerprint"], str),
        _is_digest(body["artifact_sha256"]),
        _is_size(body["artifact_bytes"]),
        _is_size(body["memories"]) and 1 <= body["memories"] <= MAX_MEMORIES,
    )
    if not all(checks):
        reject("a field of the record is malformed")
    return ArtifactStatement(**body)


def _canonical(kind: str, body: Mapping[str, Any]) -> bytes:
    # One spelling: sorted keys, no blanks, ASCII; the values are strings, booleans, integers and lists and objects of them.
    envelope = {"body": body, "kind": kind, "version": RECORD_VERSION}
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _write(kind: str, body: Mapping[str, Any], signer: ArtifactSigner) -> bytes:
    # The kind is part of what is signed, so that no record can be passed off as one of the other kind.
    signature = base64.b64encode(signer.sign(_canonical(kind, body))).decode("ascii")
    record = {"version": RECORD_VERSION, "kind": kind, "key_id": signer.key_id, "signature": signature, "body": body}
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read(kind: str, record: bytes, verifier: ArtifactVerifier, *, limit: int) -> dict[str, Any]:
    if len(record) > limit:
        reject("the record is too long")
    try:
        parsed = json.loads(record)
    except (ValueError, RecursionError):
        reject("the record is not JSON")
    if not isinstance(parsed, dict) or set(parsed) != {"version", "kind", "key_id", "signature", "body"}:
        reject("the record is malformed")
    key_id, encoded, body = parsed["key_id"], parsed["signature"], parsed["body"]
    if parsed["version"] != RECORD_VERSION or parsed["kind"] != kind:
        reject("the record is of another kind or version")
    if not (isinstance(key_id, str) and isinstance(encoded, str) and isinstance(body, dict)):
        reject("the record is malformed")
    try:
        signature = base64.b64decode(encoded, validate=True)
        message = _canonical(kind, body)
    except (binascii.Error, ValueError, RecursionError):
        reject("the record is malformed")
    # SECURITY: nothing of the body is used before this line.
    if len(signature) != _SIGNATURE_BYTES or not verifier.is_valid(key_id=key_id, message=message, signature=signature):
        reject("the record is not signed by this installation")
    return body


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.match(value) is not None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
