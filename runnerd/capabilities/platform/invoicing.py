"""alga:extension/invoicing: creates draft invoices at the host platform (cap:invoice.manual.create).

Accidents it stops: an invoice that is created twice because an answer was lost (`runnerd/capabilities/writes.py`); words of the platform's
database that reach an extension's author.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from runnerd.capabilities.catalog import CREATE_MANUAL_INVOICE_RESULT
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.platform.client import PlatformAnswer, PlatformError
from runnerd.capabilities.platform.documents import Document, DocumentError, parse_object
from runnerd.capabilities.platform.identity import explain_refusal
from runnerd.capabilities.platform.internal import CONFLICT, NOT_FOUND, TOO_MANY, InternalApi, is_refused, is_rejected, log_failure
from runnerd.capabilities.platform.invoices import MOST_FIELD_ERRORS, invoice_of
from runnerd.capabilities.results import HostResult, succeeded

INVALID: Final = "the invoice is not valid; field-errors says where"
NOT_ALLOWED: Final = "the platform does not allow it"
REJECTED: Final = "the platform did not accept the invoice"
CONFLICTING: Final = "the platform is at work on this invoice, or has made another one in this invocation's place"
BUSY: Final = "the platform takes no more invoices now; try again later"
UNKNOWN: Final = "it is not known whether the invoice was created; asking for the same again in this invocation creates no second one"
NOT_DONE: Final = "the platform could not do it"
_MOST_ERROR_CHARACTERS: Final = 200
_FIELD_PATH = re.compile(r"[A-Za-z0-9_.\[\]]{1,100}\Z")


def invoicing_handlers(api: InternalApi) -> Mapping[int, Handler]:
    """Return the handler, by number of the function."""

    async def create(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        fields, errors = invoice_of(cast("Mapping[str, Any]", arguments[0]))
        if errors:
            return _unsuccessful(INVALID, errors)
        key = grant.writes.key_for(b"invoice", json.dumps(fields, sort_keys=True).encode())
        try:
            answer = await api.ask(grant, "invoicing", "createManualInvoice", fields, idempotency_key=key)
            result = _result(grant, answer)
        except (PlatformError, DocumentError) as error:
            log_failure(grant, "invoicing.createManualInvoice", str(error))
            return _unsuccessful(UNKNOWN)
        if answer.is_final:
            grant.writes.settle(key)
        return result

    return {function_named("alga:extension/invoicing", "create-manual-invoice").number: create}


def _result(grant: InvocationGrant, answer: PlatformAnswer) -> HostResult:
    """Say in the guest's words what came of it.

    Raises:
        DocumentError: success, in words that nobody understands.
    """
    if answer.is_success:
        return _created(parse_object(answer.body))
    if is_refused(answer):
        return explain_refusal(grant, _unsuccessful(NOT_ALLOWED))
    if is_rejected(answer):
        return _unsuccessful(REJECTED, _field_errors(answer))
    words = {NOT_FOUND: NOT_DONE, CONFLICT: CONFLICTING, TOO_MANY: BUSY}
    return _unsuccessful(words.get(answer.status, UNKNOWN))


def _created(answer: Document) -> HostResult:
    if "success" in answer and not answer.boolean("success"):
        return _unsuccessful(REJECTED, _pairs(answer))
    invoice = answer.nested("invoice") if "invoice" in answer else answer
    return succeeded(
        {
            "success": True,
            "invoice_id": invoice.text("invoiceId"),
            "invoice_number": invoice.optional_text("invoiceNumber"),
            "status": invoice.optional_text("status"),
            "subtotal": invoice.optional_number("subtotal"),
            "tax": invoice.optional_number("tax"),
            "total": invoice.optional_number("total"),
            "error": None,
            "field_errors": None,
        }
    )


def _field_errors(answer: PlatformAnswer) -> Mapping[str, str]:
    try:
        return _pairs(parse_object(answer.body))
    except DocumentError:
        return {}


def _pairs(answer: Document) -> dict[str, str]:
    """Return what the platform says about single fields, which its contract calls words for the author; the rest of its words stay here."""
    pairs = {name: text for name, text in answer.mapping("fieldErrors").items() if _FIELD_PATH.match(name) and isinstance(text, str)}
    return {name: text[:_MOST_ERROR_CHARACTERS] for name, text in list(pairs.items())[:MOST_FIELD_ERRORS]}


def _unsuccessful(error: str, field_errors: Mapping[str, str] | None = None) -> HostResult:
    # ensure_ascii: whatever the platform's words hold, the guest gets a string.
    errors = json.dumps(field_errors, ensure_ascii=True) if field_errors else None
    return succeeded(dict.fromkeys(CREATE_MANUAL_INVOICE_RESULT.keys) | {"success": False, "error": error, "field_errors": errors})
