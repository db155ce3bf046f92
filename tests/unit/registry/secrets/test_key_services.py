"""Data keys wrapped by Vault and by Cloud KMS, over HTTP to stand-ins: the wire, least privilege, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import logging
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from registry.secrets.envelope import EnvelopeRejectedError, KeyServiceError, WrappedKey
from registry.secrets.kms import CloudKms, crc32c
from registry.secrets.opening import Opener, build_opener
from registry.secrets.sealing import Sealer, build_sealer
from registry.secrets.settings import KmsSettings, OpeningSettings, SealingSettings, VaultSettings
from registry.secrets.vault import VaultTransit
from tests.fakes.key_services import KMS_KEY, OPENER, WRITER, Answer, KeyService, google_error, json_answer, kms_server, vault_server
from tests.fakes.sealing import PLACE

VALUE = b"the value that no key service meets"
ELSEWHERE = replace(PLACE, name="other")


@dataclass(slots=True, kw_only=True)
class Kit:
    """One kind of key service, with both halves."""

    service: KeyService
    sealer: Sealer
    opener: Opener
    token_file: Path
    kek: str

    async def sealed(self) -> Any:
        return await self.sealer.seal(VALUE, PLACE)


def vault_settings(service: KeyService, folder: Path, token: str, **changes: Any) -> VaultSettings:
    file = folder / f"{token}.token"
    file.write_text(token + "\n")
    return VaultSettings(
        address=service.address, token_file=file, key="tenants", timeout_seconds=changes.pop("timeout_seconds", 4), **changes
    )


@pytest.fixture(params=["vault", "kms"])
async def kit(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    with vault_server() if request.param == "vault" else kms_server() as service:
        if request.param == "vault":
            writer = vault_settings(service, tmp_path, WRITER, namespace="team/a")
            reader = vault_settings(service, tmp_path, OPENER)
            sealing, opening = SealingSettings(vault=writer), OpeningSettings(vault=reader)
            kek = "vault:transit/tenants:v1"
        else:
            settings = KmsSettings(key=KMS_KEY, endpoint=service.address, timeout_seconds=4)
            sealing, opening = SealingSettings(kms=settings), OpeningSettings(kms=settings)
            kek = f"kms:{KMS_KEY}/cryptoKeyVersions/1"
        sealer, opener = build_sealer(sealing, refuse_development_keys=True), build_opener(opening, refuse_development_keys=True)
        yield Kit(service=service, sealer=sealer, opener=opener, token_file=tmp_path / f"{OPENER}.token", kek=kek)
        service.hold.set()
        await sealer.aclose()
        await opener.aclose()


async def test_sealed__opens_in_its_place_and_the_service_meets_no_value(kit: Kit) -> None:
    envelope = await kit.sealed()
    assert envelope.key.kek_id == kit.kek
    assert await kit.opener.open(envelope, PLACE) == VALUE
    with pytest.raises(EnvelopeRejectedError):
        await kit.opener.open(envelope, ELSEWHERE)
    assert len(kit.service.seen) == 3
    assert b64encode(VALUE).decode() not in json.dumps(kit.service.seen)
    assert VALUE.decode() not in json.dumps(kit.service.seen)


async def test_rotated_in_the_service__old_envelopes_open_and_new_ones_say_the_version(kit: Kit) -> None:
    old = await kit.sealed()
    kit.service.rotate()
    new = await kit.sealed()
    assert new.key.kek_id == kit.kek.removesuffix("1") + "2"
    assert [await kit.opener.open(envelope, PLACE) for envelope in (old, new)] == [VALUE, VALUE]


BROKEN: dict[str, Callable[[], Answer]] = {
    "error": lambda: google_error(500, "INTERNAL"),
    "forbidden": lambda: google_error(403, "PERMISSION_DENIED"),
    "no such key": lambda: google_error(404, "NOT_FOUND"),
    "busy": lambda: google_error(429, "RESOURCE_EXHAUSTED"),
    "garbage": lambda: (200, {"content-type": "application/json"}, b"\xff\x00{"),
    "page": lambda: (200, {"content-type": "text/html"}, b"<html>"),
    "nothing": lambda: (200, {}, b""),
    "empty": lambda: json_answer(200, {}),
    "null": lambda: json_answer(200, {"data": None}),
    "wrong kinds": lambda: json_answer(200, {"data": {"ciphertext": 7, "plaintext": ["x"]}, "ciphertext": 7, "plaintext": {}}),
    "no base64": lambda: json_answer(200, {"data": {"ciphertext": "vault:v1:\n", "plaintext": "!"}, "plaintext": "!", "ciphertext": "!"}),
    "deep": lambda: (200, {"content-type": "application/json"}, b"[" * 60_000),
    "endless": lambda: (200, {"content-type": "application/json"}, b'{"data": "' + b"x" * 200_000),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_answers__nothing_is_sealed_opened_or_leaked(kit: Kit, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    envelope = await kit.sealed()
    kit.service.instead = BROKEN[kind]
    for act in (kit.sealer.seal(VALUE, PLACE), kit.opener.open(envelope, PLACE)):
        with pytest.raises(KeyServiceError) as caught:
            await act
        assert caught.value.__cause__ is None
        assert "hvs." not in str(caught.value)
    kit.service.instead = None
    assert await kit.opener.open(envelope, PLACE) == VALUE
    said = json.dumps(kit.service.seen)
    for plaintext in {document.get("plaintext") for _, _, document in kit.service.seen if document} - {None}:
        assert plaintext in said
        assert plaintext not in caplog.text
    assert "hvs." not in caplog.text


async def test_redirect__not_followed(kit: Kit) -> None:
    envelope = await kit.sealed()
    with vault_server() as elsewhere:
        for status in (301, 302, 307, 308):
            kit.service.instead = lambda status=status: (status, {"location": f"{elsewhere.address}/v1/transit/decrypt/tenants"}, b"")
            for act in (kit.sealer.seal(VALUE, PLACE), kit.opener.open(envelope, PLACE)):
                with pytest.raises(KeyServiceError):
                    await act
        assert elsewhere.seen == []


async def test_proxy_of_the_environment__not_used(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault_server() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.address)
        assert await kit.opener.open(await kit.sealed(), PLACE) == VALUE
        assert proxy.seen == []


async def test_silent_service__given_up_and_the_loop_goes_on(tmp_path: Path) -> None:
    with vault_server() as vault, kms_server() as kms:
        transit = VaultTransit(vault_settings(vault, tmp_path, WRITER, timeout_seconds=0.2))
        cloud = CloudKms(KmsSettings(key=KMS_KEY, endpoint=kms.address, timeout_seconds=0.2))
        for service, wrapper in ((vault, transit), (kms, cloud)):
            service.hold.clear()
            beats = 0

            async def beat() -> None:
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0.005)

            heart = asyncio.create_task(beat())
            with pytest.raises(KeyServiceError, match="does not answer"):
                await wrapper.wrap(bytes(32), PLACE)
            heart.cancel()
            assert beats > 3
            # One that sends a byte now and then for ever is given up as well.
            service.hold.set()
            service.drip = b" " * 1024
            with pytest.raises(KeyServiceError):
                await wrapper.wrap(bytes(32), PLACE)
            service.drip = b""
            await wrapper.aclose()


async def test_nobody_there__said(tmp_path: Path) -> None:
    with vault_server() as service:
        address = service.address
    gone = KeyService(lambda *_: json_answer(500, {}), address=address)
    transit = VaultTransit(vault_settings(gone, tmp_path, WRITER))
    cloud = CloudKms(KmsSettings(key=KMS_KEY, endpoint=address, timeout_seconds=2))
    for wrapper in (transit, cloud):
        with pytest.raises(KeyServiceError, match="does not answer"):
            await wrapper.wrap(bytes(32), PLACE)
        await wrapper.aclose()


class TestVault:
    @pytest.fixture
    def service(self) -> Iterator[KeyService]:
        with vault_server() as service:
            yield service

    async def test_wire(self, service: KeyService, tmp_path: Path) -> None:
        transit = VaultTransit(vault_settings(service, tmp_path, WRITER, namespace="team/a"))
        key = await transit.wrap(b"k" * 32, PLACE)
        await transit.aclose()
        ((path, headers, document),) = service.seen
        assert path == "/v1/transit/encrypt/tenants"
        assert (headers["x-vault-token"], headers["x-vault-namespace"], headers["x-vault-request"]) == (WRITER, "team/a", "true")
        assert b64decode(document["plaintext"]) == b"k" * 32
        assert b64decode(document["associated_data"]) == PLACE.associated_data()
        assert b64decode(document["context"]) == PLACE.derivation_context()
        assert key.wrapped.startswith(b"vault:v1:")

    async def test_least_privilege__the_writers_token_opens_nothing(self, service: KeyService, tmp_path: Path) -> None:
        writer = VaultTransit(vault_settings(service, tmp_path, WRITER))
        reader = VaultTransit(vault_settings(service, tmp_path, OPENER))
        key = await writer.wrap(b"k" * 32, PLACE)
        with pytest.raises(KeyServiceError, match="403"):
            await writer.unwrap(key, PLACE)
        with pytest.raises(KeyServiceError, match="403"):
            await reader.wrap(b"k" * 32, PLACE)
        assert await reader.unwrap(key, PLACE) == b"k" * 32
        await writer.aclose()
        await reader.aclose()

    async def test_token__read_again_when_it_changes(self, service: KeyService, tmp_path: Path) -> None:
        settings = vault_settings(service, tmp_path, WRITER)
        transit = VaultTransit(settings)
        await transit.wrap(bytes(32), PLACE)
        settings.token_file.write_text("hvs.revoked")
        with pytest.raises(KeyServiceError, match="403"):
            await transit.wrap(bytes(32), PLACE)
        settings.token_file.write_text(WRITER)
        await transit.wrap(bytes(32), PLACE)
        for bad in ("", "two words", "a\nb", "\u00e4"):
            settings.token_file.write_text(bad)
            with pytest.raises(KeyServiceError, match="token") as caught:
                await transit.wrap(bytes(32), PLACE)
            assert not bad or bad not in str(caught.value).replace(str(settings.token_file), "")
        settings.token_file.unlink()
        with pytest.raises(KeyServiceError, match="cannot be read"):
            await transit.wrap(bytes(32), PLACE)
        await transit.aclose()

    @pytest.mark.parametrize("wrapped", [b"", b"x", b"vault:v1:", b"vault:v0:AAAA", b'vault:v1:AA"}', b"vault:v1:AA\n", b"\xff" * 40])
    async def test_made_up_ciphertexts__never_reach_it(self, service: KeyService, tmp_path: Path, wrapped: bytes) -> None:
        transit = VaultTransit(vault_settings(service, tmp_path, OPENER))
        with pytest.raises(EnvelopeRejectedError):
            await transit.unwrap(WrappedKey(kek_id="vault:transit/tenants:v1", wrapped=wrapped), PLACE)
        assert service.seen == []
        await transit.aclose()

    async def test_certificate__of_the_named_authority_or_nothing(self, tmp_path: Path) -> None:
        server_tls, ca_file = make_certificate(tmp_path)
        with vault_server(server_tls) as service:
            trusting = VaultTransit(vault_settings(service, tmp_path, WRITER, ca_file=ca_file))
            assert (await trusting.wrap(bytes(32), PLACE)).wrapped
            await trusting.aclose()
            strict = VaultTransit(vault_settings(service, tmp_path, WRITER))
            with pytest.raises(KeyServiceError, match="does not answer"):
                await strict.wrap(bytes(32), PLACE)
            await strict.aclose()
            assert len(service.seen) == 1
            with pytest.raises(KeyServiceError, match="cannot be read"):
                VaultTransit(vault_settings(service, tmp_path, WRITER, ca_file=tmp_path / "missing.pem"))


class TestKms:
    @pytest.fixture
    async def cloud(self) -> AsyncIterator[tuple[KeyService, CloudKms]]:
        with kms_server() as service:
            cloud = CloudKms(KmsSettings(key=KMS_KEY, endpoint=service.address, timeout_seconds=4))
            yield service, cloud
            await cloud.aclose()

    async def test_wire(self, cloud: tuple[KeyService, CloudKms]) -> None:
        service, kms = cloud
        key = await kms.wrap(b"k" * 32, PLACE)
        assert await kms.unwrap(key, PLACE) == b"k" * 32
        (encrypt, _, asked), (decrypt, _, _) = service.seen
        assert encrypt.split("?")[0] == f"/v1/{KMS_KEY}:encrypt"
        assert decrypt.split("?")[0] == f"/v1/{KMS_KEY}:decrypt"
        assert b64decode(asked["additionalAuthenticatedData"]) == PLACE.associated_data()

    async def test_another_key_than_ours__not_its_to_unwrap(self, cloud: tuple[KeyService, CloudKms]) -> None:
        _, kms = cloud
        assert not kms.knows(f"kms:{KMS_KEY}2/cryptoKeyVersions/1")
        assert not kms.knows("local:x")

    @pytest.mark.parametrize(
        "change",
        [
            {"ciphertextCrc32c": "1"},
            {"verifiedPlaintextCrc32c": False},
            {"verifiedAdditionalAuthenticatedDataCrc32c": False},
            {"name": f"{KMS_KEY}2/cryptoKeyVersions/1"},
        ],
    )
    async def test_encrypted_but_not_whole__refused(self, cloud: tuple[KeyService, CloudKms], change: dict[str, Any]) -> None:
        service, kms = cloud
        answer = {
            "name": f"{KMS_KEY}/cryptoKeyVersions/1",
            "ciphertext": b64encode(b"sealed").decode(),
            "ciphertextCrc32c": str(crc32c(b"sealed")),
            "verifiedPlaintextCrc32c": True,
            "verifiedAdditionalAuthenticatedDataCrc32c": True,
        }
        service.instead = lambda: json_answer(200, answer)
        assert (await kms.wrap(bytes(32), PLACE)).wrapped == b"sealed"
        service.instead = lambda: json_answer(200, answer | change)
        with pytest.raises(KeyServiceError):
            await kms.wrap(bytes(32), PLACE)

    async def test_decrypted_but_not_whole__refused(self, cloud: tuple[KeyService, CloudKms]) -> None:
        service, kms = cloud
        key = await kms.wrap(bytes(32), PLACE)
        service.instead = lambda: json_answer(200, {"plaintext": b64encode(bytes(32)).decode(), "plaintextCrc32c": "1"})
        with pytest.raises(KeyServiceError, match="whole"):
            await kms.unwrap(key, PLACE)

    async def test_least_privilege__forbidden_is_no_verdict_on_the_envelope(self, cloud: tuple[KeyService, CloudKms]) -> None:
        service, kms = cloud
        key = await kms.wrap(bytes(32), PLACE)
        service.instead = lambda: google_error(403, "PERMISSION_DENIED")
        with pytest.raises(KeyServiceError, match="does not answer"):
            await kms.unwrap(key, PLACE)

    async def test_crowd_before_a_silent_service__refused_beyond_a_bound(self, cloud: tuple[KeyService, CloudKms]) -> None:
        service, kms = cloud
        service.hold.clear()
        asked = [asyncio.create_task(kms.wrap(bytes(32), PLACE)) for _ in range(80)]
        done, _ = await asyncio.wait(asked, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        assert done
        assert all("too many" in str(task.exception()) for task in done)
        service.hold.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(result, WrappedKey) for result in results) >= 60

    def test_crc32c__of_the_standard(self) -> None:
        assert crc32c(b"123456789") == 0xE3069283
        assert crc32c(b"") == 0


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault.test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context, folder / "ca.pem"
