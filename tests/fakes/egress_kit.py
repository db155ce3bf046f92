"""What stands around the egress process in tests: a name server and servers that a test writes, certificates, and a fetcher.

Everything is on loopback, at ports of the kernel's choice; the names that the name server knows lead there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runnerd.capabilities.outgoing import EgressError, IncomingResponse, OutgoingRequest
from runnerd.capabilities.urls import parse_url
from runnerd.egress.child import ChildSettings
from runnerd.egress.client import ClientSettings, EgressClient
from runnerd.telemetry.metrics import Metrics

LOOPBACK = ("127.0.0.0/8", "::1/128")

Answering = Callable[[dns.message.Message], dns.message.Message]
Reply = Callable[[dns.message.Message], dns.message.Message | bytes | None]


def says(*records: str, ttl: int = 0) -> Answering:
    """Answer with these addresses (and "name=CNAME target" links), each where its type was asked for."""

    def reply(query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        asked = query.question[0]
        owner = asked.name
        for record in records:
            if record.startswith("cname:"):
                target = dns.name.from_text(record.removeprefix("cname:"))
                answer.answer.append(dns.rrset.from_text(owner, ttl, "IN", "CNAME", target.to_text()))
                owner = target
            elif (":" in record) == (asked.rdtype == dns.rdatatype.AAAA):
                kind = "AAAA" if ":" in record else "A"
                found = answer.get_rrset(answer.answer, owner, asked.rdclass, dns.rdatatype.from_text(kind))
                new = dns.rrset.from_text(owner, ttl, "IN", kind, record)
                if found is None:
                    answer.answer.append(new)
                else:
                    found.add(new[0], ttl)
        return answer

    return reply


def refuses(code: dns.rcode.Rcode) -> Answering:
    def reply(query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.set_rcode(code)
        return answer

    return reply


def silent(query: dns.message.Message) -> None:
    return None


@dataclass
class FakeNameServer(asyncio.DatagramProtocol):
    """Answers as it is told; counts what it is asked."""

    zone: dict[str, Reply] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    over_tcp: Counter[str] = field(default_factory=Counter)
    port: int = 0
    transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._answer(data, self.asked)
        if reply is not None and self.transport is not None:
            self.transport.sendto(reply, addr)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            length = int.from_bytes(await reader.readexactly(2), "big")
            reply = self._answer(await reader.readexactly(length), self.over_tcp, tcp=True)
            if reply is not None:
                writer.write(len(reply).to_bytes(2, "big") + reply)
                await writer.drain()
        writer.close()

    def _answer(self, data: bytes, counter: Counter[str], *, tcp: bool = False) -> bytes | None:
        query = dns.message.from_wire(data)
        name = str(query.question[0].name).removesuffix(".")
        counter[name] += 1
        made = self.zone.get(f"tcp:{name}" if tcp else name, refuses(dns.rcode.NXDOMAIN))(query)
        return made if made is None or isinstance(made, bytes) else made.to_wire()


@asynccontextmanager
async def name_server(zone: Mapping[str, Reply] | None = None) -> AsyncIterator[FakeNameServer]:
    fake = FakeNameServer(zone=dict(zone or {}))
    loop = asyncio.get_running_loop()
    tcp = await asyncio.start_server(fake.serve_tcp, "127.0.0.1", 0)
    fake.port = tcp.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: fake, local_addr=("127.0.0.1", fake.port))
    try:
        yield fake
    finally:
        transport.close()
        tcp.close()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RawServer:
    """A TCP server of a test's own; keeps the sockets' far ends that it accepted."""

    port: int
    accepted: list[tuple[str, int]] = field(default_factory=list)
    closed: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def raw_server(handler: Handler | bytes, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[RawServer]:
    """Serve: bytes are the answer to every request of a connection; a handler has the connection for itself."""
    tasks: set[asyncio.Task[Any]] = set()
    server = RawServer(port=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = writer.get_extra_info("peername")
        server.accepted.append(peer)
        try:
            if isinstance(handler, bytes):
                while (request := await read_request(reader)) is not None:
                    server.requests.append(request)
                    writer.write(handler)
                    await writer.drain()
            else:
                await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            server.closed.append(peer)
            tasks.discard(task)
            writer.close()

    listening = await asyncio.start_server(serve, host, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(set(tasks))


async def read_request(reader: asyncio.StreamReader) -> bytes | None:
    """Read one request with its body; None where the connection ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


def ok(body: bytes = b"hello", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a test's own."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str = "test authority") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key.public_key(), issuer=name, signer=key, ca=True)
        made = cls(folder, key, certificate)
        made.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def file(self) -> Path:
        return self.folder / f"{self.certificate.serial_number}.pem"

    def server(self, *names: str, days: tuple[int, int] = (-1, 1)) -> ssl.SSLContext:
        """Return the context of a server with a certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = _certificate("server", key.public_key(), issuer=str(issuer), signer=self.key, names=names, days=days)
        file = self.folder / f"{certificate.serial_number}.pem"
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _certificate(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    ca: bool = False,
    names: Iterable[str] = (),
    days: tuple[int, int] = (-1, 1),
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if ca:
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    alternatives = [_alternative(text) for text in names]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def make_request(url: str, **changes: Any) -> OutgoingRequest:
    facts: dict[str, Any] = {
        "tenant_id": "tenant-a",
        "install_id": "install-a",
        "generation": "g1",
        "method": "GET",
        "target": parse_url(url),
        "headers": (),
        "body": None,
        "seconds": 20.0,
        "response_bytes": 1024 * 1024,
        "received": lambda size: None,
    }
    return OutgoingRequest(**facts | changes)


@dataclass
class EgressKit:
    """A running egress process and the name server that it asks."""

    client: EgressClient
    names: FakeNameServer
    metrics: Metrics

    async def get(self, url: str, **changes: Any) -> IncomingResponse:
        return await self.client.fetch(make_request(url, **changes))

    async def failure(self, url: str, **changes: Any) -> str:
        """Fetch what gets no answer, and return the word that says why."""
        try:
            answer = await self.get(url, **changes)
        except EgressError as error:
            return error.failure.value
        return f"answered {answer.status}"


@asynccontextmanager
async def egress(
    zone: Mapping[str, Reply] | None = None, *, settings: ClientSettings | None = None, **child: Any
) -> AsyncIterator[EgressKit]:
    """Start an egress process that asks a name server with this zone. Loopback is refused unless `allowed_ranges` says otherwise."""
    metrics = Metrics()
    async with name_server(zone) as names:
        facts: dict[str, Any] = {"require_hardening": True, "name_servers": (f"127.0.0.1:{names.port}",)}
        client = EgressClient(ChildSettings(**facts | child), settings or ClientSettings(), metrics)
        await client.start()
        try:
            yield EgressKit(client, names, metrics)
        finally:
            await client.aclose()


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)
