"""ui-proxy, invoicing, clients and services against a platform over real HTTP: what is sent, and what becomes of each answer."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from registry.domain.ids import InstallId, TenantId
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.grants import GuestUser, InvocationGrant
from runnerd.capabilities.platform import connections, invoicing
from runnerd.capabilities.platform.api_keys import SecretApiKeys
from runnerd.capabilities.platform.assembly import Platform, PlatformSettingsError
from runnerd.capabilities.results import HostResult
from runnerd.capabilities.secrets import InstallSecrets, SecretCase, SecretRefusalError
from runnerd.capabilities.values import reply_to_wire
from runnerd.capabilities.writes import WriteLedger
from tests.fakes.capabilities import INSTALL, USER, grant_of, make_broker, make_grant
from tests.fakes.dispatch_kit import eventually
from tests.fakes.platform_kit import (
    CALL_ROUTE,
    CLIENT,
    CLIENT_DOCUMENT,
    CREATE,
    GET_CLIENT,
    GET_SERVICE,
    LIST_CLIENTS,
    LIST_SERVICES,
    SERVICE,
    SERVICE_DOCUMENT,
    TOKEN,
    invoice,
    item,
    options_for,
    page,
    platform_broker,
    services_page,
    write_token,
)
from tests.fakes.platform_server import FakePlatform, document, fake_platform, saying

CLIENT_VALUE = {
    "client_id": CLIENT,
    "client_name": "Example Ltd",
    "client_type": "company",
    "is_inactive": False,
    "default_currency_code": "EUR",
    "account_manager_id": None,
    "account_manager_name": None,
    "billing_email": "bills@example.com",
}
SERVICE_VALUE = {
    "service_id": SERVICE,
    "service_name": "Consulting",
    "item_kind": "service",
    "billing_method": "hourly",
    "service_type_id": None,
    "service_type_name": None,
    "default_rate": 12000.0,
    "unit_of_measure": "hour",
    "is_active": True,
    "sku": None,
}
CREATED = {"success": True, "invoice": {"invoiceId": "i-1", "invoiceNumber": "INV-1", "status": "draft", "subtotal": 250, "total": 297.5}}
READS: list[tuple[HostFunction, Any]] = [
    (LIST_CLIENTS, page()),
    (GET_CLIENT, CLIENT),
    (LIST_SERVICES, services_page()),
    (GET_SERVICE, SERVICE),
]
READ_IDS = [function.qualified_name for function, _ in READS]


async def asked(broker: CapabilityBroker, function: HostFunction, *arguments: Any, grant: InvocationGrant | None = None) -> HostResult:
    result = await broker.call(grant or make_grant(), function, arguments)
    reply_to_wire(function, result.value, error=result.error)
    return result


def fields_of(result: HostResult) -> dict[str, Any]:
    assert isinstance(result.value, dict)
    return result.value


# --- what is sent ----------------------------------------------------------------------------------------------------------------------


async def test_an_internal_call_has_the_shape_that_platforms_know(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = document(200, {"item": CLIENT_DOCUMENT})
    grant = make_grant()
    assert (await asked(broker, GET_CLIENT, CLIENT.upper(), grant=grant)).value == CLIENT_VALUE
    assert (platform.last.method, platform.last.target) == ("POST", f"/api/internal/ext-clients/install/{INSTALL}")
    assert platform.last.json == {
        "operation": "get",
        "input": {"clientId": CLIENT},
        "user": {"userId": "u1", "userType": "internal", "proof": "service"},
    }
    headers = platform.last.headers
    assert {name: headers.pop(name) for name in ("host", "content-length")} == {
        "host": f"127.0.0.1:{platform.port}",
        "content-length": str(len(platform.last.body)),
    }
    assert headers == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "extrunner",
        "x-alga-extension": grant.extension_id,
        "x-alga-tenant": "tenant-a",
        "x-ext-actor": "user",
        "x-ext-install-id": INSTALL,
        "x-ext-version-id": grant.version_id,
        "x-request-id": "r1",
        "x-runner-auth": TOKEN,
    }


@pytest.mark.parametrize(
    ("function", "given", "sent"),
    [
        (LIST_CLIENTS, page(), {"page": 1, "pageSize": 25}),
        (
            LIST_CLIENTS,
            page(search="müller", include_inactive=True, page=3, page_size=100),
            {"search": "müller", "includeInactive": True, "page": 3, "pageSize": 100},
        ),
        (
            LIST_SERVICES,
            services_page(item_kind="product", is_active=False, billing_method="usage", search="x" * 200),
            {"search": "x" * 200, "itemKind": "product", "isActive": False, "billingMethod": "usage", "page": 1, "pageSize": 25},
        ),
    ],
)
async def test_a_list_sends_every_filter(
    platform: FakePlatform, broker: CapabilityBroker, function: HostFunction, given: Any, sent: dict[str, Any]
) -> None:
    document_of = {LIST_CLIENTS: CLIENT_DOCUMENT, LIST_SERVICES: SERVICE_DOCUMENT}
    value_of = {LIST_CLIENTS: CLIENT_VALUE, LIST_SERVICES: SERVICE_VALUE}
    platform.answer = document(200, {"items": [document_of[function]], "totalCount": 1, "page": 1, "pageSize": 25})
    result = await asked(broker, function, given)
    assert platform.last.json["operation"] == "list"
    assert platform.last.json["input"] == sent
    assert result.value == {"items": [value_of[function]], "total_count": 1, "page": 1, "page_size": 25}


@pytest.mark.parametrize(
    "given",
    [page(page=0), page(page=10_001), page(page_size=0), page(page_size=101), page(search="x" * 201), page(search="a\0b")],
)
async def test_a_list_that_no_platform_would_take_is_not_sent(platform: FakePlatform, broker: CapabilityBroker, given: Any) -> None:
    assert (await asked(broker, LIST_CLIENTS, given)).error == "invalid-input"
    assert platform.received == []


@pytest.mark.parametrize("given", ["", "1", CLIENT + "x", CLIENT[:-1], "../" + CLIENT, CLIENT.replace("-", ""), CLIENT + "\n"])
async def test_an_id_that_is_none_is_not_sent(platform: FakePlatform, broker: CapabilityBroker, given: str) -> None:
    assert (await asked(broker, GET_CLIENT, given)).error == "invalid-input"
    assert (await asked(broker, GET_SERVICE, given)).error == "invalid-input"
    assert platform.received == []


async def test_an_invoice_sends_every_field(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = document(201, CREATED)
    discount = item(is_discount=True, discount_type="percentage", rate=10.0, applies_to_service_id=SERVICE.upper())
    given = invoice(items=[item(), discount], invoice_date="2026-02-28", due_date="2026-03-31", po_number="PO 7")
    result = await asked(broker, CREATE, given)
    sent = platform.last.json
    key = sent.pop("idempotencyKey")
    assert key == platform.last.headers["idempotency-key"]
    assert platform.last.target == f"/api/internal/ext-invoicing/install/{INSTALL}"
    plain = {"serviceId": SERVICE, "quantity": 2.5, "description": "Work", "rate": 100.0}
    assert sent == {
        "operation": "createManualInvoice",
        "clientId": CLIENT,
        "items": [plain, plain | {"rate": 10.0, "isDiscount": True, "discountType": "percentage", "appliesToServiceId": SERVICE}],
        "invoiceDate": "2026-02-28",
        "dueDate": "2026-03-31",
        "poNumber": "PO 7",
        "user": {"userId": "u1", "userType": "internal", "proof": "service"},
    }
    assert fields_of(result) == {
        "success": True,
        "invoice_id": "i-1",
        "invoice_number": "INV-1",
        "status": "draft",
        "subtotal": 250.0,
        "tax": None,
        "total": 297.5,
        "error": None,
        "field_errors": None,
    }


@pytest.mark.parametrize(
    "content",
    [
        {"success": True, "invoiceId": "i-1", "total": 1},
        {"invoice_id": "i-1", "total": 1.0},
        {"success": True, "invoice": {"invoice_id": "i-1", "total": 1}},
    ],
)
async def test_the_spellings_of_a_created_invoice(platform: FakePlatform, broker: CapabilityBroker, content: object) -> None:
    platform.answer = document(200, content)
    value = fields_of(await asked(broker, CREATE, invoice()))
    assert (value["success"], value["invoice_id"], value["total"]) == (True, "i-1", 1.0)


async def test_a_route_without_payload_is_a_get_and_with_one_a_post(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = saying(200, b"\x00any bytes\xff")
    grant = make_grant()
    assert (await asked(broker, CALL_ROUTE, "/api/v1/tickets?limit=5&q=a%20b", None, grant=grant)).value == b"\x00any bytes\xff"
    assert (platform.last.method, platform.last.target, platform.last.body) == ("GET", "/api/v1/tickets?limit=5&q=a%20b", b"")
    assert "content-length" not in platform.last.headers
    assert (await asked(broker, CALL_ROUTE, "summary", b'{"a":1}', grant=grant)).error is None
    assert (platform.last.method, platform.last.target) == ("POST", f"/{grant.extension_id}/summary")
    assert platform.last.body == b'{"a":1}'
    headers = platform.last.headers
    assert headers["content-type"] == "application/json"
    assert (headers["x-user-id"], headers["x-user-email"], headers["x-ext-actor"]) == ("u1", "ada@example.com", "user")
    assert (headers["x-alga-tenant"], headers["x-ext-install-id"], headers["x-ext-version-id"]) == ("tenant-a", INSTALL, grant.version_id)
    assert "x-runner-auth" not in headers, "the token that opens internal routes"
    assert "x-api-key" not in headers


async def test_an_answer_without_content_is_empty_bytes(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = saying(204)
    assert (await asked(broker, CALL_ROUTE, "x", None)).value == b""
    assert (await asked(broker, CALL_ROUTE, "x", b"")).value == b""
    assert platform.last.method == "POST"


# --- what becomes of each answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "proxied", "read"),
    [
        (301, "internal", "internal"),
        (400, "bad-request", "invalid-input"),
        (401, "denied", "not-allowed"),
        (403, "denied", "not-allowed"),
        (404, "route-not-found", "internal"),
        (409, "bad-request", "internal"),
        (413, "bad-request", "internal"),
        (422, "bad-request", "invalid-input"),
        (429, "denied", "internal"),
        (500, "internal", "internal"),
        (503, "internal", "internal"),
    ],
)
async def test_each_status_is_a_case(platform: FakePlatform, broker: CapabilityBroker, status: int, proxied: str, read: str) -> None:
    platform.answer = saying(status, b'{"error":"relation \\"clients\\" does not exist"}')
    assert (await asked(broker, CALL_ROUTE, "x", None)).error == proxied
    for function, argument in READS:
        assert (await asked(broker, function, argument)).error == read


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (301, invoicing.UNKNOWN),
        (400, invoicing.REJECTED),
        (401, invoicing.NOT_ALLOWED),
        (403, invoicing.NOT_ALLOWED),
        (404, invoicing.NOT_DONE),
        (409, invoicing.CONFLICTING),
        (422, invoicing.REJECTED),
        (429, invoicing.BUSY),
        (500, invoicing.UNKNOWN),
    ],
)
async def test_each_status_of_an_invoice_is_in_our_own_words(
    platform: FakePlatform, broker: CapabilityBroker, status: int, words: str
) -> None:
    platform.answer = document(status, {"success": False, "error": 'duplicate key in "invoices"', "detail": "secret"})
    value = fields_of(await asked(broker, CREATE, invoice()))
    assert (value["success"], value["error"], value["field_errors"]) == (False, words, None)


@pytest.mark.parametrize("status", [200, 400, 422])
async def test_what_the_platform_says_about_fields_reaches_the_author_and_nothing_else(
    platform: FakePlatform, broker: CapabilityBroker, status: int
) -> None:
    errors = {"clientId": "Client not found", "items[0].rate": "x" * 1000, "<script>": "no name", "quantity": {"a": 1}}
    platform.answer = document(status, {"success": False, "error": "at line 7", "fieldErrors": errors})
    value = fields_of(await asked(broker, CREATE, invoice()))
    assert json.loads(value["field_errors"]) == {"clientId": "Client not found", "items[0].rate": "x" * 200}
    assert value["error"] == invoicing.REJECTED


async def test_nothing_there_is_not_a_failure(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = document(200, {"item": None})
    for function, argument in ((GET_CLIENT, CLIENT), (GET_SERVICE, SERVICE)):
        assert await asked(broker, function, argument) == HostResult()


async def test_snake_case_is_understood(platform: FakePlatform, broker: CapabilityBroker) -> None:
    snake = {"client_id": CLIENT, "client_name": "A", "is_inactive": True}
    platform.answer = document(200, {"items": [snake], "total_count": 1, "page": 1, "page_size": 1})
    assert fields_of(await asked(broker, LIST_CLIENTS, page()))["items"][0]["is_inactive"] is True


# --- who it is for ---------------------------------------------------------------------------------------------------------------------


async def test_a_user_whom_the_token_proved_is_marked_so(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = document(200, {"item": None})
    await asked(broker, GET_CLIENT, CLIENT, grant=make_grant(user=GuestUser(user_id="u2", proven=True)))
    assert platform.last.json["user"] == {"userId": "u2", "userType": "unspecified", "proof": "token"}


async def test_without_user_read_the_user_is_withheld_and_is_nobody_whom_a_platform_could_know(
    platform: FakePlatform, broker: CapabilityBroker
) -> None:
    platform.answer = saying(403)
    grant = grant_of("client.read", "ui.proxy")
    result = await asked(broker, GET_CLIENT, CLIENT, grant=grant)
    assert platform.last.json["user"] == {"userId": "withheld", "userType": "withheld"}
    assert platform.last.headers["x-ext-actor"] == "withheld"
    assert result.error == "not-allowed"
    assert result.denial is not None
    assert (result.denial["capability"], result.denial["why"]) == ("cap:user.read", "not_declared")
    await asked(broker, CALL_ROUTE, "x", None, grant=grant)
    assert platform.last.headers["x-ext-actor"] == "withheld"
    assert not [name for name in platform.last.headers if name.startswith("x-user")]
    assert all(b"ada@example.com" not in received.body and b"u1" not in received.body for received in platform.received)


async def test_a_call_without_user_is_the_system_s(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = saying(403)
    grant = make_grant(user=None)
    result = await asked(broker, GET_CLIENT, CLIENT, grant=grant)
    assert "user" not in platform.last.json
    assert platform.last.headers["x-ext-actor"] == "system"
    assert result.denial is None
    await asked(broker, CALL_ROUTE, "x", None, grant=grant)
    assert not [name for name in platform.last.headers if name.startswith("x-user")]


@pytest.mark.parametrize("user_id", ["a\r\nx-runner-auth: stolen", "ü", "", " "])
async def test_a_user_whom_no_header_can_name_ends_the_proxied_call(platform: FakePlatform, broker: CapabilityBroker, user_id: str) -> None:
    assert (await asked(broker, CALL_ROUTE, "x", None, grant=make_grant(user=GuestUser(user_id=user_id)))).error == "internal"
    assert platform.received == []


async def test_an_address_that_no_header_can_hold_is_left_out(platform: FakePlatform, broker: CapabilityBroker) -> None:
    await asked(broker, CALL_ROUTE, "x", None, grant=make_grant(user=GuestUser(user_id="u1", email="ä@example.com\r\nx: y")))
    assert platform.last.headers["x-user-id"] == "u1"
    assert not {"x-user-email", "x"} & platform.last.headers.keys()


class Sealed:
    """The secrets of one install."""

    def __init__(self) -> None:
        self.key: str | SecretCase = SecretCase.MISSING
        self.asked: list[tuple[str, str, str]] = []

    async def read(self, tenant_id: TenantId, install_id: InstallId, name: str) -> str:
        self.asked.append((tenant_id, install_id, name))
        if isinstance(self.key, SecretCase):
            raise SecretRefusalError(self.key, "why, for the log")
        return self.key

    async def names(self, tenant_id: TenantId, install_id: InstallId) -> tuple[str, ...]:
        return ("api_key",)


async def test_the_extension_s_key_goes_along_only_where_it_may_read_its_secrets(platform: FakePlatform, tmp_path: Path) -> None:
    sealed = Sealed()
    async with platform_broker(platform, tmp_path, api_keys=SecretApiKeys(InstallSecrets(sealed))) as broker:
        assert (await asked(broker, CALL_ROUTE, "x", None)).error is None
        assert "x-api-key" not in platform.last.headers, "there is none"
        sealed.key, grant = "the-key-of-the-extension", make_grant()
        await asked(broker, CALL_ROUTE, "x", None, grant=grant)
        assert platform.last.headers["x-api-key"] == "the-key-of-the-extension"
        assert "the-key-of-the-extension" not in grant.revealed.hide("so the-key-of-the-extension"), (
            "what is kept about the invocation is rid of it"
        )
        assert sealed.asked == [("tenant-a", INSTALL, "api_key")] * 2
        await asked(broker, CALL_ROUTE, "x", None, grant=grant_of("ui.proxy", "user.read"))
        assert "x-api-key" not in platform.last.headers
        assert len(sealed.asked) == 2
        # Never without the key where there is one.
        for sealed.key in (SecretCase.EXPIRED, SecretCase.INTERNAL, "with\r\nx-runner-auth: break", "ü", ""):
            assert (await asked(broker, CALL_ROUTE, "x", None)).error == "internal"
        assert len(platform.received) == 3
        await asked(broker, GET_CLIENT, CLIENT)
        assert "x-api-key" not in platform.last.headers
        assert len(sealed.asked) == 7, "internal routes have no use for it"


# --- writes ----------------------------------------------------------------------------------------------------------------------------


async def test_a_repeated_invocation_sends_the_same_keys(platform: FakePlatform, broker: CapabilityBroker) -> None:
    platform.answer = document(201, CREATED)
    for origin in ("execution-1", "execution-1", "execution-2"):
        grant = make_grant(writes=WriteLedger(origin))
        for number in ("1", "2"):
            await asked(broker, CREATE, invoice(po_number=number), grant=grant)
    keys = [received.headers["idempotency-key"] for received in platform.received]
    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("lost", [saying(500), saying(409), saying(429), saying(201, b"no JSON"), document(201, {"success": True})])
async def test_a_write_whose_end_is_not_known_keeps_its_key(platform: FakePlatform, broker: CapabilityBroker, lost: Any) -> None:
    grant = make_grant()
    platform.answer = lost
    assert fields_of(await asked(broker, CREATE, invoice(), grant=grant))["success"] is False
    platform.answer = document(201, CREATED)
    await asked(broker, CREATE, invoice(po_number="other"), grant=grant)
    await asked(broker, CREATE, invoice(), grant=grant)
    await asked(broker, CREATE, invoice(), grant=grant)
    first, other, again, second = (received.headers["idempotency-key"] for received in platform.received)
    assert first == again
    assert len({first, other, second}) == 3


async def test_a_posted_route_has_a_key_and_a_get_has_none(platform: FakePlatform, broker: CapabilityBroker) -> None:
    grant = make_grant()
    for answer, route, payload in (
        (saying(409), "x", b"1"),
        (saying(200), "x", b"1"),
        (saying(200), "x", b"1"),
        (saying(200), "x", b"2"),
        (saying(200), "x", None),
    ):
        platform.answer = answer
        await asked(broker, CALL_ROUTE, route, payload, grant=grant)
    keys = [received.headers.get("idempotency-key") for received in platform.received]
    assert keys[0] == keys[1]
    assert len(set(keys[1:4])) == 3
    assert keys[4] is None


# --- without a platform, and its token -------------------------------------------------------------------------------------------------


async def test_without_an_address_the_typed_answers_stay(tmp_path: Path) -> None:
    daemon = Platform(options_for(tmp_path, None))
    broker = make_broker(*daemon.handlers())
    result = await asked(broker, CALL_ROUTE, "x", None)
    assert (result.error, result.denial is not None) == ("route-not-found", True)
    for function, argument in READS:
        assert (await asked(broker, function, argument)).error == "internal"
    assert fields_of(await asked(broker, CREATE, invoice()))["error"] == "this runner does not offer it"
    await daemon.aclose()


async def test_the_proxy_alone_can_have_an_address(platform: FakePlatform, tmp_path: Path) -> None:
    daemon = Platform(options_for(tmp_path, None, proxy_base_url=platform.base_url + "/public"))
    broker = make_broker(*daemon.handlers())
    assert (await asked(broker, CALL_ROUTE, "/api/x", None)).error is None
    assert platform.last.target == "/public/api/x"
    assert (await asked(broker, GET_CLIENT, CLIENT)).error == "internal"
    assert len(platform.received) == 1
    await daemon.aclose()


async def test_a_rotated_token_is_used_at_once_and_a_withdrawn_one_no_more(
    platform: FakePlatform, broker: CapabilityBroker, tmp_path: Path
) -> None:
    platform.answer = document(200, {"item": None})
    await asked(broker, GET_CLIENT, CLIENT)
    write_token(tmp_path, "service-token-of-the-daemon-2")
    await asked(broker, GET_CLIENT, CLIENT)
    assert [received.headers["x-runner-auth"] for received in platform.received] == [TOKEN, "service-token-of-the-daemon-2"]
    for bad in ("", "changeme", "two words and more of them"):
        write_token(tmp_path, bad)
        assert (await asked(broker, GET_CLIENT, CLIENT)).error == "internal"
    (tmp_path / "token").unlink()
    assert (await asked(broker, GET_CLIENT, CLIENT)).error == "internal"
    assert len(platform.received) == 2
    write_token(tmp_path)
    assert (await asked(broker, GET_CLIENT, CLIENT)).error is None


async def test_the_proxy_s_own_token_goes_along_and_is_never_the_internal_one(platform: FakePlatform, tmp_path: Path) -> None:
    own = write_token(tmp_path, "token-of-the-proxy-alone", name="proxy")
    async with platform_broker(platform, tmp_path, proxy_token_file=own) as broker:
        await asked(broker, CALL_ROUTE, "x", None)
        assert platform.last.headers["x-runner-auth"] == "token-of-the-proxy-alone"
        write_token(tmp_path, "token-of-the-proxy-alone")
        assert (await asked(broker, CALL_ROUTE, "x", None)).error == "internal"
        assert len(platform.received) == 1
    daemon = Platform(options_for(tmp_path, platform.base_url, proxy_token_file=write_token(tmp_path, TOKEN, name="same")))
    with pytest.raises(PlatformSettingsError, match="opens the internal routes"):
        list(daemon.handlers())
    await daemon.aclose()


def test_user_of_the_fixtures_is_asserted() -> None:
    """What the tests above take for granted."""
    assert not USER.proven


# --- whom the daemon believes ----------------------------------------------------------------------------------------------------------


def make_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make an authority, and a server that it vouches for."""
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]

    def certificate(subject: int, *further: tuple[x509.ExtensionType, bool]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[subject])
            .issuer_name(names[0])
            .public_key(keys[subject].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[subject].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        for extension, critical in further:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate(0, (x509.BasicConstraints(ca=True, path_length=None), True)))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    (folder / "server.pem").write_bytes(
        certificate(1, (address, False)) + keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "ca.pem", context


async def test_only_the_authority_that_was_given_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca_file, context = make_authority(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    other_ca, _ = make_authority(other)
    async with fake_platform(context) as platform:
        platform.answer = document(200, {"item": None})
        async with platform_broker(platform, tmp_path, ca_file=ca_file) as broker:
            assert (await asked(broker, GET_CLIENT, CLIENT)).error is None
        # What the environment says about certificates is not asked for either.
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        for wrong in (other_ca, None):
            async with platform_broker(platform, tmp_path, ca_file=wrong) as broker:
                assert (await asked(broker, GET_CLIENT, CLIENT)).error == "internal"
        assert len(platform.received) == 1


def test_a_file_without_certificates_is_found_at_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for file in ("ca.pem", "absent.pem"):
        with pytest.raises(PlatformSettingsError, match="certificates"):
            Platform(options_for(tmp_path, "https://127.0.0.1:1", ca_file=tmp_path / file))


async def test_connections_of_an_install_that_rests_are_closed(
    platform: FakePlatform, broker: CapabilityBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(connections, "MOST_IDLE_INSTALLS", 2)
    grants = [make_grant(install_id=f"0197a000-0000-7000-8000-{number:012}") for number in range(5)]
    for grant in grants:
        await asked(broker, CALL_ROUTE, "x", None, grant=grant)
    await eventually(lambda: platform.connected == 0)
    assert len(platform.connections) == 5
    await asked(broker, CALL_ROUTE, "x", None, grant=grants[0])
    assert len(platform.connections) == 6
