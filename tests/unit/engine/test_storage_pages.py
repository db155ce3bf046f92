"""A page of the storage that is as large as one can be reaches its guest, with the bridge and on the ordinary call path (N4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from registry.domain.limits import OPERATOR_CEILING
from registry.services.storage import KEY_CHARACTERS, METADATA_BYTES, PAGE_BYTES
from runnerd.capabilities.catalog import BY_NAME, HostFunction
from runnerd.engine.outcomes import Completed
from tests.fakes.asking_guests import asking_guest
from tests.fakes.engine_kit import EngineKit

VALUE = bytes(OPERATOR_CEILING.storage_value_bytes)
KEY = "\U0001f600" * KEY_CHARACTERS
ENTRIES = PAGE_BYTES // (len(VALUE) + METADATA_BYTES + len(KEY.encode()))


def plain() -> object:
    return [{"namespace": "n" * 128, "key": KEY, "value": VALUE, "revision": 2**63 - 1}] * ENTRIES


def rich() -> object:
    entry = {"key": KEY, "value": VALUE, "metadata": "m" * METADATA_BYTES, "revision": 1, "expires_at": 2**40}
    return {"entries": [entry] * ENTRIES, "next_cursor": "c" * 8_192}


@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "ordinary"])
@pytest.mark.parametrize(
    ("function", "page"),
    [(BY_NAME["alga:extension/storage", "list-entries"], plain), (BY_NAME["extrunner:host/kv", "list"], rich)],
    ids=["storage", "kv"],
)
def test_full_page__reaches_its_guest(function: HostFunction, page: Callable[[], object], *, bridge: bool) -> None:
    answer: Any = page()
    kit = EngineKit(bridge=bridge)
    ran = kit.run(kit.load_wasm(asking_guest(function)), answer=lambda *_: (answer, None), grants=frozenset({function.capability}))
    assert isinstance(ran.outcome, Completed), ran.outcome
    assert len(ran.port.calls) == 1
