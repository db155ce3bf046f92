"""Stand-ins for Vault's transit engine and for Cloud KMS: real HTTP servers on loopback that speak their wire, and can misbehave.

Each keeps data keys under keys of its own, checks associated data, and knows credentials that may encrypt only or decrypt only.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.secrets.kms import crc32c

WRITER, OPENER = "hvs.writer", "hvs.opener"
KMS_KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
Answer = tuple[int, dict[str, str], bytes]


@dataclass(slots=True)
class KeyService:
    """One stand-in. Change its fields while it runs."""

    answer: Callable[[KeyService, str, dict[str, str], Any], Answer]
    keys: list[bytes] = field(default_factory=lambda: [AESGCM.generate_key(256)])
    """By version; the last one encrypts."""
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers and document of each request."""
    instead: Callable[[], Answer] | None = None
    """Answers in place of the service."""
    hold: threading.Event = field(default_factory=threading.Event)
    """Cleared: requests wait for it."""
    drip: bytes = b""
    """Sent again and again after an answer's headers, as long as anybody reads."""
    address: str = ""

    def rotate(self) -> None:
        self.keys.append(AESGCM.generate_key(256))

    def seal(self, plaintext: bytes, associated: bytes) -> tuple[int, bytes]:
        nonce = b"n" * 12
        return len(self.keys), nonce + AESGCM(self.keys[-1]).encrypt(nonce, plaintext, associated)

    def open(self, version: int, sealed: bytes, associated: bytes) -> bytes | None:
        try:
            return AESGCM(self.keys[version - 1]).decrypt(sealed[:12], sealed[12:], associated)
        except (InvalidTag, IndexError, ValueError):
            return None


def _vault(service: KeyService, path: str, headers: dict[str, str], document: Any) -> Answer:
    match = re.fullmatch(r"/v1/transit/(encrypt|decrypt)/tenants", path)
    allowed = {"encrypt": WRITER, "decrypt": OPENER}.get(match[1]) if match else None
    if allowed is None or headers.get("x-vault-token") != allowed:
        return _json(403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})
    assert match is not None
    associated = b64decode(document["associated_data"], validate=True) + b64decode(document["context"], validate=True)
    if match[1] == "encrypt":
        version, sealed = service.seal(b64decode(document["plaintext"], validate=True), associated)
        return _json(200, {"data": {"ciphertext": f"vault:v{version}:{b64encode(sealed).decode()}", "key_version": version}})
    _, version_text, body = document["ciphertext"].split(":")
    plaintext = service.open(int(version_text[1:]), b64decode(body), associated)
    if plaintext is None:
        return _json(400, {"errors": ["cipher: message authentication failed"]})
    return _json(200, {"data": {"plaintext": b64encode(plaintext).decode()}})


def _kms(service: KeyService, path: str, headers: dict[str, str], document: Any) -> Answer:
    match = re.fullmatch(rf"/v1/{KMS_KEY}:(encrypt|decrypt)", path.split("?", maxsplit=1)[0])
    if match is None:
        return _google_error(404, "NOT_FOUND")
    place = b64decode(document["additionalAuthenticatedData"])
    assert int(document["additionalAuthenticatedDataCrc32c"]) == crc32c(place)
    if match[1] == "encrypt":
        plaintext = b64decode(document["plaintext"])
        assert int(document["plaintextCrc32c"]) == crc32c(plaintext)
        version, sealed = service.seal(plaintext, place)
        sealed = bytes([version]) + sealed
        return _json(
            200,
            {
                "name": f"{KMS_KEY}/cryptoKeyVersions/{version}",
                "ciphertext": b64encode(sealed).decode(),
                "ciphertextCrc32c": str(crc32c(sealed)),
                "verifiedPlaintextCrc32c": True,
                "verifiedAdditionalAuthenticatedDataCrc32c": True,
            },
        )
    sealed = b64decode(document["ciphertext"])
    assert int(document["ciphertextCrc32c"]) == crc32c(sealed)
    opened = service.open(sealed[0], sealed[1:], place)
    if opened is None:
        return _google_error(400, "INVALID_ARGUMENT")
    return _json(200, {"plaintext": b64encode(opened).decode(), "plaintextCrc32c": str(crc32c(opened)), "usedPrimary": True})


@contextmanager
def vault_server(tls: ssl.SSLContext | None = None) -> Iterator[KeyService]:
    with _serving(KeyService(_vault), tls) as service:
        yield service


@contextmanager
def kms_server() -> Iterator[KeyService]:
    with _serving(KeyService(_kms), None) as service:
        yield service


def json_answer(status: int, document: Any) -> Answer:
    return _json(status, document)


def google_error(status: int, code: str) -> Answer:
    return _google_error(status, code)


def _json(status: int, document: Any) -> Answer:
    return status, {"content-type": "application/json"}, json.dumps(document).encode()


def _google_error(status: int, code: str) -> Answer:
    return _json(status, {"error": {"code": status, "message": "said by the stand-in", "status": code}})


@contextmanager
def _serving(service: KeyService, tls: ssl.SSLContext | None) -> Iterator[KeyService]:
    service.hold.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))) or b"null")
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.seen.append((self.path, headers, document))
            service.hold.wait(20)
            instead = service.instead
            status, answer_headers, body = service.answer(service, self.path, headers, document) if instead is None else instead()
            self.send_response(status)
            for name, value in answer_headers.items():
                self.send_header(name, value)
            if service.drip:
                self.send_header("connection", "close")
            else:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            try:
                while service.drip:
                    self.wfile.write(service.drip)
            except OSError:
                self.close_connection = True

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *arguments: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    service.address = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.hold.set()
        service.drip = b""
        server.shutdown()
        server.server_close()
        thread.join()
