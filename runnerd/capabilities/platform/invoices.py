"""What a manual invoice may be: checked here, so that the guest hears field by field what is wrong, and nothing doubtful is sent.

Defects it stops: a quantity that is not a number and silently becomes 0; a date, an amount or a text that the platform cuts or rounds into
another invoice than the extension meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from runnerd.capabilities.platform.internal import is_id

MOST_DESCRIPTION_CHARACTERS: Final = 500
MOST_PO_NUMBER_CHARACTERS: Final = 128
MOST_AMOUNT: Final = float((1 << 53) - 1)
"""Beyond it a JSON number is no longer exact for every reader."""
MOST_FIELD_ERRORS: Final = 32
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PERCENT: Final = 100
_DISCOUNTED: Final = ("discount_type", "applies_to_item_id", "applies_to_service_id")


def invoice_of(given: Mapping[str, Any]) -> tuple[dict[str, object], dict[str, str]]:
    """Turn a `create-manual-invoice-input` into the platform's fields.

    Args:
        given: of exactly the catalog's shape.

    Returns:
        the fields, and what is wrong by path of the field, for example "items[0].quantity"; at most `MOST_FIELD_ERRORS`. The fields may
        be sent where nothing is wrong.
    """
    errors: dict[str, str] = {}
    _check_id(errors, "clientId", given["client_id"])
    if not given["items"]:
        errors["items"] = "must hold at least one item"
    for name, value in (("invoiceDate", given["invoice_date"]), ("dueDate", given["due_date"])):
        if value is not None and not _is_date(value):
            errors[name] = "must be a date of the calendar, YYYY-MM-DD"
    po_number = given["po_number"]
    if po_number is not None:
        _check_text(errors, "poNumber", po_number, MOST_PO_NUMBER_CHARACTERS)
    fields = {
        "clientId": given["client_id"].lower(),
        "items": [_item_of(item, f"items[{index}]", errors) for index, item in enumerate(given["items"])],
        "invoiceDate": given["invoice_date"],
        "dueDate": given["due_date"],
        "poNumber": po_number,
    }
    return _present(fields), dict(list(errors.items())[:MOST_FIELD_ERRORS])


def _item_of(item: Mapping[str, Any], path: str, errors: dict[str, str]) -> dict[str, object]:
    _check_id(errors, f"{path}.serviceId", item["service_id"])
    _check_text(errors, f"{path}.description", item["description"], MOST_DESCRIPTION_CHARACTERS)
    _check_amount(errors, f"{path}.quantity", item["quantity"], above_zero=True)
    _check_amount(errors, f"{path}.rate", item["rate"])
    if item["is_discount"]:
        _check_discount(item, path, errors)
    elif any(item[name] is not None for name in _DISCOUNTED):
        errors[path] = "discountType, appliesToItemId and appliesToServiceId need isDiscount"
    return _present(
        {
            "serviceId": item["service_id"].lower(),
            "quantity": item["quantity"],
            "description": item["description"],
            "rate": item["rate"],
            "isDiscount": item["is_discount"],
            "discountType": item["discount_type"],
            "appliesToItemId": _lower(item["applies_to_item_id"]),
            "appliesToServiceId": _lower(item["applies_to_service_id"]),
        }
    )


def _check_discount(item: Mapping[str, Any], path: str, errors: dict[str, str]) -> None:
    if item["discount_type"] is None:
        errors[f"{path}.discountType"] = "must be given where isDiscount is true"
    elif item["discount_type"] == "percentage" and item["rate"] > _PERCENT:
        errors.setdefault(f"{path}.rate", f"must be at most {_PERCENT} where discountType is percentage")
    for name, value in (("appliesToItemId", item["applies_to_item_id"]), ("appliesToServiceId", item["applies_to_service_id"])):
        if value is not None:
            _check_id(errors, f"{path}.{name}", value)
    if item["applies_to_item_id"] is not None and item["applies_to_service_id"] is not None:
        errors[path] = "must name either appliesToItemId or appliesToServiceId, not both"


def _check_id(errors: dict[str, str], name: str, value: str) -> None:
    if not is_id(value):
        errors[name] = "must be a UUID"


def _check_text(errors: dict[str, str], name: str, value: str, most: int) -> None:
    if not value.strip() or len(value) > most or _CONTROLS.search(value) is not None:
        errors[name] = f"must be 1 to {most} characters, not blanks alone and no control characters"


def _check_amount(errors: dict[str, str], name: str, value: float, *, above_zero: bool = False) -> None:
    if not math.isfinite(value) or not 0 <= value <= MOST_AMOUNT or (above_zero and value == 0):
        errors[name] = f"must be a number {'above' if above_zero else 'of at least'} 0 and at most {MOST_AMOUNT:.0f}"


def _is_date(value: str) -> bool:
    if _DATE.match(value) is None:
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _lower(value: str | None) -> str | None:
    return None if value is None else value.lower()


def _present(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
