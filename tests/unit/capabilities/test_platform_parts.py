"""Parts of the platform's capabilities, each alone: keys of writes, tokens, documents, what an invoice may be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.capabilities.catalog import CREATE_MANUAL_INVOICE_INPUT
from runnerd.capabilities.platform.client import is_field_value
from runnerd.capabilities.platform.documents import Document, DocumentError, parse_object
from runnerd.capabilities.platform.invoices import MOST_AMOUNT, MOST_FIELD_ERRORS, invoice_of
from runnerd.capabilities.platform.tokens import TokenFile, TokenFileError
from runnerd.capabilities.values import to_wire
from runnerd.capabilities.writes import WriteLedger
from tests.fakes.platform_kit import CLIENT, SERVICE, invoice, item, write_token

# --- keys of writes --------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), max_size=12))
def test_keys__two_writes_that_ended_never_had_the_same_one(writes: list[tuple[bytes, bool]]) -> None:
    ledger, again = WriteLedger("origin"), WriteLedger("origin")
    ended: list[str] = []
    for content, ends in writes:
        key = ledger.key_for(content)
        assert key not in ended
        assert key == again.key_for(content), "the same invocation repeated"
        if ends:
            ledger.settle(key)
            again.settle(key)
            ended.append(key)
        else:
            assert ledger.key_for(content) == key, "asked for again while its end is not known"
            again.key_for(content)


def test_keys__parts_do_not_run_together_and_origins_differ() -> None:
    ledger = WriteLedger("o")
    assert ledger.key_for(b"ab", b"c") != ledger.key_for(b"a", b"bc")
    assert WriteLedger("o").key_for(b"a") != WriteLedger("p").key_for(b"a")
    assert is_field_value(ledger.key_for(b"ab"))


# --- tokens ----------------------------------------------------------------------------------------------------------------------------

GOOD = "a-token-of-sixteen-or-more"


def test_token__blanks_around_it_are_not_part_of_it(tmp_path: Path) -> None:
    assert TokenFile(write_token(tmp_path, f"  {GOOD}\r"), production=True).read() == GOOD


@pytest.mark.parametrize("token", ["", " ", "a b" * 10, "x" * 4097, "tökentökentöken1", "a\nb" * 10, "a\0" * 16])
@pytest.mark.parametrize("production", [True, False])
def test_token__malformed_is_refused_everywhere(tmp_path: Path, token: str, production: bool) -> None:
    with pytest.raises(TokenFileError) as refused:
        TokenFile(write_token(tmp_path, token), production=production).read()
    assert not token.strip() or token not in str(refused.value)


@pytest.mark.parametrize("token", ["changeme", "Change-Me", "local-runner-key", "secret", "dev-0123456789abcdef", "x" * 15])
def test_token__known_or_short_is_for_development_only(tmp_path: Path, token: str) -> None:
    file = write_token(tmp_path, token)
    assert TokenFile(file, production=False).read() == token
    with pytest.raises(TokenFileError) as refused:
        TokenFile(file, production=True).read()
    assert token not in str(refused.value).replace(str(file), "")


def test_token__that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="chmod"):
        TokenFile(write_token(tmp_path, GOOD, mode=0o644), production=False).read()
    assert TokenFile(write_token(tmp_path, GOOD, mode=0o640), production=True).read() == GOOD


# --- documents -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"\xff{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"1" * 10_000 + b"}",
        "{}".encode("utf-16"),
    ],
)
def test_document__what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(DocumentError):
        parse_object(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(JSON)
def test_document__every_reader_returns_its_type_or_refuses(value: Any) -> None:
    document = Document({"someField": value})
    readers: list[tuple[Any, Any]] = [
        (document.text, lambda found: isinstance(found, str) and found.encode() is not None),
        (document.optional_text, lambda found: found is None or isinstance(found, str)),
        (document.boolean, lambda found: isinstance(found, bool)),
        (document.u32, lambda found: type(found) is int and 0 <= found < 1 << 32),
        (document.number, lambda found: isinstance(found, float) and math.isfinite(found)),
        (document.optional_number, lambda found: found is None or math.isfinite(found)),
        (document.nested, lambda found: isinstance(found, Document)),
        (document.optional_nested, lambda found: found is None or isinstance(found, Document)),
        (lambda name: document.nested_list(name, most=2), lambda found: len(found) <= 2),
    ]
    for read, is_right in readers:
        try:
            found = read("someField")
        except DocumentError:
            continue
        assert is_right(found)


def test_document__the_camel_case_name_wins() -> None:
    document = Document({"clientId": "a", "client_id": "b"})
    assert document.text("clientId") == "a"
    assert Document({"client_id": "b"}).text("clientId") == "b"
    with pytest.raises(DocumentError):
        Document({}).optional_nested("item")


# --- invoices --------------------------------------------------------------------------------------------------------------------------

OTHER = SERVICE.replace("9", "1")
DISCOUNT: dict[str, Any] = {"is_discount": True, "discount_type": "fixed"}


@pytest.mark.parametrize(
    ("given_", "place"),
    [
        (invoice(client_id="x"), "clientId"),
        (invoice(client_id=CLIENT + "\n"), "clientId"),
        (invoice(items=[]), "items"),
        (invoice(invoice_date="2026-02-29"), "invoiceDate"),
        (invoice(invoice_date="20260228"), "invoiceDate"),
        (invoice(due_date="2026-W01-1"), "dueDate"),
        (invoice(due_date=""), "dueDate"),
        (invoice(po_number="x" * 129), "poNumber"),
        (invoice(po_number=" "), "poNumber"),
        (invoice(items=[item(service_id="")]), "items[0].serviceId"),
        (invoice(items=[item(), item(description="x" * 501)]), "items[1].description"),
        (invoice(items=[item(description="")]), "items[0].description"),
        (invoice(items=[item(description="a\0b")]), "items[0].description"),
        *((invoice(items=[item(quantity=value)]), "items[0].quantity") for value in (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e16)),
        *((invoice(items=[item(rate=value)]), "items[0].rate") for value in (math.nan, math.inf, -0.01, 1e16)),
        (invoice(items=[item(discount_type="fixed")]), "items[0]"),
        (invoice(items=[item(is_discount=False, applies_to_service_id=SERVICE)]), "items[0]"),
        (invoice(items=[item(applies_to_item_id=SERVICE)]), "items[0]"),
        (invoice(items=[item(is_discount=True)]), "items[0].discountType"),
        (invoice(items=[item(is_discount=True, discount_type="percentage", rate=100.01)]), "items[0].rate"),
        (invoice(items=[item(**DISCOUNT, applies_to_item_id="x")]), "items[0].appliesToItemId"),
        (invoice(items=[item(**DISCOUNT, applies_to_service_id="x")]), "items[0].appliesToServiceId"),
        (invoice(items=[item(**DISCOUNT, applies_to_item_id=OTHER, applies_to_service_id=SERVICE)]), "items[0]"),
    ],
)
def test_invoice__what_is_wrong_is_named(given_: dict[str, Any], place: str) -> None:
    assert list(invoice_of(given_)[1]) == [place]


@pytest.mark.parametrize(
    "given_",
    [
        invoice(po_number="x" * 128, invoice_date="2024-02-29"),
        invoice(items=[item(description="x" * 500, quantity=MOST_AMOUNT, rate=0.0)] * 256),
        invoice(items=[item(description="two\nlines", **DISCOUNT, applies_to_item_id=OTHER)]),
        invoice(items=[item(is_discount=True, discount_type="percentage", rate=100.0)]),
    ],
)
def test_invoice__what_is_just_right_goes(given_: dict[str, Any]) -> None:
    to_wire(CREATE_MANUAL_INVOICE_INPUT, given_)
    fields, errors = invoice_of(given_)
    assert errors == {}
    json.dumps(fields, allow_nan=False)


def test_invoice__errors_are_not_without_end() -> None:
    assert len(invoice_of(invoice(items=[item(rate=-1.0)] * 256))[1]) == MOST_FIELD_ERRORS
