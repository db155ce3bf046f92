from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import BY_NAME, FUNCTIONS, HostFunction
from runnerd.capabilities.results import HostResult
from runnerd.capabilities.settings import settings_handlers
from runnerd.capabilities.storage import storage_handlers
from runnerd.capabilities.values import reply_to_wire
from tests.fakes.capabilities import INSTALL, OTHER_INSTALL, MemoryStorage, grant_of, make_broker, make_grant, sample

BROKERED = [function for function in FUNCTIONS if not function.local]


def named(interface: str, name: str) -> HostFunction:
    return BY_NAME[interface, name]


GET = named("alga:extension/storage", "get")
PUT = named("alga:extension/storage", "put")
DELETE = named("alga:extension/storage", "delete")
LIST = named("alga:extension/storage", "list-entries")


def arguments_of(function: HostFunction) -> tuple[Any, ...]:
    return tuple(sample(shape) for _, shape in function.params)


def check_shape(function: HostFunction, result: HostResult) -> None:
    """The worker lowers exactly this; an answer of another shape raises here."""
    reply_to_wire(function, result.value, error=result.error)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def broker(storage: MemoryStorage) -> CapabilityBroker:
    return make_broker(storage_handlers(storage))


@pytest.mark.parametrize("function", BROKERED, ids=lambda function: function.qualified_name)
async def test_granted__every_function_answers_in_its_shape(broker: CapabilityBroker, function: HostFunction) -> None:
    check_shape(function, await broker.call(make_grant(), function, arguments_of(function)))


@pytest.mark.parametrize("function", BROKERED, ids=lambda function: function.qualified_name)
async def test_not_granted__every_function_answers_its_denial(
    broker: CapabilityBroker, storage: MemoryStorage, function: HostFunction
) -> None:
    grant = make_grant(capabilities=frozenset(), granted=frozenset())
    result = await broker.call(grant, function, arguments_of(function))
    check_shape(function, result)
    assert (result.error or result.value) == (function.denied if function.error is None else str(function.denied))
    assert result.denial is not None
    assert result.denial["capability"] == f"cap:{function.capability}"
    assert storage.records == {}


@pytest.mark.parametrize("function", BROKERED, ids=lambda function: function.qualified_name)
async def test_every_other_capability_is_not_enough(broker: CapabilityBroker, function: HostFunction) -> None:
    grant = make_grant(capabilities=make_grant().capabilities - {function.capability})
    result = await broker.call(grant, function, arguments_of(function))
    assert result.denial is not None


@pytest.mark.parametrize("function", BROKERED, ids=lambda function: function.qualified_name)
async def test_after_the_deadline__every_function_fails_in_its_shape(
    broker: CapabilityBroker, storage: MemoryStorage, function: HostFunction
) -> None:
    result = await broker.call(make_grant(deadline=time.monotonic() - 1), function, arguments_of(function))
    check_shape(function, result)
    assert storage.records == {}


@pytest.mark.parametrize("function", [function for function in FUNCTIONS if function.local], ids=lambda function: function.qualified_name)
async def test_what_the_worker_answers_itself_is_not_answered_here(broker: CapabilityBroker, function: HostFunction) -> None:
    result = await broker.call(make_grant(), function, arguments_of(function))
    assert result.denial is not None


async def test_one_answer_is_not_shared_with_the_next(broker: CapabilityBroker) -> None:
    function = named("alga:extension/secrets", "list-keys")
    first = await broker.call(make_grant(capabilities=frozenset()), function, ())
    assert isinstance(first.value, list)
    first.value.append("planted")
    assert (await broker.call(make_grant(capabilities=frozenset()), function, ())).value == []


async def test_a_call_that_takes_too_long_is_ended(storage: MemoryStorage) -> None:
    ended = asyncio.Event()

    async def stuck(*_: object) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    storage.get = stuck  # type: ignore[method-assign, assignment]
    broker = make_broker(storage_handlers(storage), call_seconds=0.01)
    assert (await broker.call(make_grant(), GET, ("n", "k"))).error == "internal"
    assert ended.is_set()
    ended.clear()
    short = make_grant(deadline=time.monotonic() + 0.01)
    assert (await make_broker(storage_handlers(storage)).call(short, GET, ("n", "k"))).error == "internal"
    assert ended.is_set()


@pytest.mark.parametrize("error", [ZeroDivisionError("secret-in-text"), RefusalError(Reason.REGISTRY_UNAVAILABLE, "secret-in-text")])
async def test_a_failure_of_ours_is_internal_and_says_nothing(
    broker: CapabilityBroker, storage: MemoryStorage, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = error
    with caplog.at_level(logging.WARNING):
        result = await broker.call(make_grant(), GET, ("n", "k"))
    assert (result.error, result.value, result.denial) == ("internal", None, None)
    assert "host call failed" in caplog.text


async def test_arguments_that_the_catalog_does_not_allow_end_in_an_internal_error(broker: CapabilityBroker) -> None:
    for arguments in ((), ("only one",), ("a", "b", "c")):
        assert (await broker.call(make_grant(), GET, arguments)).error == "internal"
    assert (await broker.call(make_grant(), PUT, ("no record",))).error == "internal"


async def test_a_cancelled_call_stays_cancelled(broker: CapabilityBroker, storage: MemoryStorage) -> None:
    storage.error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await broker.call(make_grant(), GET, ("n", "k"))


async def test_storage_keeps_bytes_and_revisions(broker: CapabilityBroker) -> None:
    grant, value = grant_of("storage.kv"), bytes(range(256))
    entry = {"namespace": "notes", "key": "k", "value": value, "revision": None}
    stored = await broker.call(grant, PUT, (entry,))
    assert stored.value == {"namespace": "notes", "key": "k", "value": value, "revision": 1}
    assert (await broker.call(grant, GET, ("notes", "k"))).value == stored.value
    assert (await broker.call(grant, PUT, (entry | {"revision": 7},))).error == "conflict"
    assert (await broker.call(grant, PUT, (entry | {"revision": 1},))).value == stored.value | {"revision": 2}
    assert (await broker.call(grant, DELETE, ("notes", "k"))).error is None
    assert (await broker.call(grant, DELETE, ("notes", "k"))).error == "missing"
    assert (await broker.call(grant, GET, ("notes", "k"))).error == "missing"


async def test_a_guest_pages_by_the_last_key_it_has_seen_and_loses_nothing(broker: CapabilityBroker) -> None:
    grant = grant_of("storage.kv")
    keys = [f"key-{number:03}" for number in range(60)]
    for key in keys:
        await broker.call(grant, PUT, ({"namespace": "n", "key": key, "value": b"", "revision": None},))
    seen: list[str] = []
    cursor: str | None = None
    while page := (await broker.call(grant, LIST, ("n", cursor))).value:
        assert isinstance(page, list)
        seen += [entry["key"] for entry in page]
        cursor = seen[-1]
    assert seen == keys


@pytest.mark.parametrize("other", [{"tenant_id": "tenant-b"}, {"install_id": OTHER_INSTALL}])
async def test_another_tenant_or_install_sees_nothing(broker: CapabilityBroker, other: dict[str, Any]) -> None:
    mine, theirs = grant_of("storage.kv"), grant_of("storage.kv", **other)
    await broker.call(mine, PUT, ({"namespace": "n", "key": "k", "value": b"mine", "revision": None},))
    # Whatever a guest puts into its arguments: they hold no place for a tenant or an install.
    assert (await broker.call(theirs, GET, ("n", "k"))).error == "missing"
    assert (await broker.call(theirs, GET, (f"tenant-a/{INSTALL}/n", "k"))).error == "missing"
    assert (await broker.call(theirs, LIST, ("n", None))).value == []
    assert (await broker.call(theirs, DELETE, ("n", "k"))).error == "missing"
    assert (await broker.call(mine, GET, ("n", "k"))).error is None


async def test_settings_are_those_of_the_install(broker: CapabilityBroker) -> None:
    get, list_all = named("extrunner:host/config", "get"), named("extrunner:host/config", "list")
    assert (await broker.call(grant_of(), get, ("greeting",))).value == "hello"
    assert (await broker.call(grant_of(), get, ("absent",))).value is None
    assert (await broker.call(grant_of(), list_all, ())).value == [
        {"key": "colour", "value": "blue"},
        {"key": "greeting", "value": "hello"},
    ]
    assert (await broker.call(grant_of(config={}), list_all, ())).value == []


async def test_a_user_is_told_only_with_the_capability_and_only_if_there_is_one(broker: CapabilityBroker) -> None:
    first, second = named("alga:extension/user", "get-user"), named("alga:extension/user-v2", "get-user")
    known = {
        "tenant_id": "tenant-a",
        "client_name": "Example",
        "user_id": "u1",
        "user_email": "ada@example.com",
        "user_name": "Ada",
        "user_type": "internal",
    }
    allowed = grant_of("user.read")
    assert (await broker.call(allowed, first, ())).value == known
    assert (await broker.call(allowed, second, ())).value == known | {"client_id": "c1", "additional_fields": [("a", "1"), ("b", "2")]}
    for function in (first, second):
        assert (await broker.call(grant_of(), function, ())).error == "not-allowed"
        assert (await broker.call(grant_of("user.read", user=None), function, ())).error == "not-available"


@pytest.mark.parametrize(
    ("interface", "name", "answer"),
    [
        ("alga:extension/http", "fetch", "not-allowed"),
        ("alga:extension/secrets", "get", "denied"),
        ("alga:extension/secrets", "list-keys", []),
        ("alga:extension/ui-proxy", "call-route", "route-not-found"),
        ("alga:extension/clients", "list-clients", "internal"),
        ("alga:extension/services", "get-service", "internal"),
        ("extrunner:host/kv", "get", "denied"),
    ],
)
async def test_what_this_runner_does_not_offer_says_so(broker: CapabilityBroker, interface: str, name: str, answer: object) -> None:
    function = named(interface, name)
    result = await broker.call(make_grant(), function, arguments_of(function))
    assert (result.value if result.error is None else result.error) == answer
    assert result.denial is not None
    assert result.denial["why"] == "not_available"


async def test_a_result_record_says_why_in_words(broker: CapabilityBroker) -> None:
    function = named("alga:extension/invoicing", "create-manual-invoice")
    result = await broker.call(make_grant(), function, arguments_of(function))
    assert isinstance(result.value, dict)
    assert (result.value["success"], result.value["error"]) == (False, "this runner does not offer it")


def test_a_function_without_a_handler_is_found_at_start() -> None:
    with pytest.raises(ValueError, match="nobody answers"):
        CapabilityBroker([settings_handlers()])


def test_a_function_with_two_handlers_is_found_at_start() -> None:
    with pytest.raises(ValueError, match="two capabilities"):
        CapabilityBroker([settings_handlers(), settings_handlers()])
