from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extrunner.worker.v1 import worker_pb2
from registry.domain import capabilities
from runnerd.capabilities.catalog import BY_NAME, BY_NUMBER, FUNCTIONS, INTERFACES
from runnerd.capabilities.shapes import BOOL, FLOAT, TEXT, U16, U64, Data, Enum, ListOf, Option, Record, Text, TupleOf, Unsigned
from runnerd.capabilities.values import (
    ValueMismatchError,
    arguments_from_wire,
    arguments_to_wire,
    from_wire,
    reply_from_wire,
    reply_to_wire,
    to_wire,
)
from runnerd.worker.frames import parse_message
from tests.fakes.guests import WIT_FILES
from tests.fakes.shape_values import values_of

NONE = getattr(worker_pb2, "None")()
V = worker_pb2.Value
POINT = Record("point", (("x-axis", U16), ("label", Option(TEXT))))
COLOUR = Enum("colour", ("red", "dark-blue"))


@given(st.data())
def test_call_and_reply__of_every_function__survive_the_wire(data: st.DataObject) -> None:
    function = data.draw(st.sampled_from(FUNCTIONS))
    arguments = [data.draw(values_of(shape)) for _, shape in function.params]
    sent = worker_pb2.HostCall(function=function.number, arguments=arguments_to_wire(function, arguments))
    received = parse_message(worker_pb2.HostCall, sent.SerializeToString())

    assert list(arguments_from_wire(BY_NUMBER[received.function], received.arguments)) == arguments

    value = None if function.result is None else data.draw(values_of(function.result))
    reply = worker_pb2.HostReply.FromString(reply_to_wire(function, value).SerializeToString())
    assert reply_from_wire(function, reply) == (value, None)
    for case in function.error.cases if function.error is not None else ():
        assert reply_from_wire(function, reply_to_wire(function, error=case)) == (None, case)


@pytest.mark.parametrize(
    ("shape", "wire"),
    [
        (TEXT, V()),
        (TEXT, V(data=b"x")),
        (TEXT, V(none=NONE)),
        (Text(2), V(text="abc")),
        (Text(2), V(text="éé")),
        (Data(2), V(data=b"abc")),
        (Data(), V(text="abc")),
        (U16, V(unsigned=65_536)),
        (U16, V(signed=1)),
        (U16, V(boolean=True)),
        (BOOL, V(unsigned=1)),
        (FLOAT, V(unsigned=1)),
        (COLOUR, V(text="green")),
        (COLOUR, V(text="")),
        (Option(U16), V(unsigned=70_000)),
        (Option(U16), V()),
        (ListOf(U16, 2), V(list=worker_pb2.ValueList(items=[V(unsigned=1)] * 3))),
        (ListOf(U16), V(record=worker_pb2.ValueList())),
        (ListOf(U16), V(list=worker_pb2.ValueList(items=[V(text="x")]))),
        (TupleOf((U16, U16)), V(list=worker_pb2.ValueList(items=[V(unsigned=1)]))),
        (POINT, V(record=worker_pb2.ValueList(items=[V(unsigned=1)]))),
        (POINT, V(list=worker_pb2.ValueList(items=[V(unsigned=1), V(none=NONE)]))),
        (POINT, V(record=worker_pb2.ValueList(items=[V(unsigned=1), V(none=NONE), V(none=NONE)]))),
    ],
)
def test_from_wire__another_shape__is_refused(shape: Any, wire: worker_pb2.Value) -> None:
    with pytest.raises(ValueMismatchError):
        from_wire(shape, wire)


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (TEXT, b"x"),
        (TEXT, None),
        (TEXT, "\ud800"),
        (Text(2), "abc"),
        (Data(), "x"),
        (Data(), bytearray(b"x")),
        (Data(1), b"xx"),
        (U16, -1),
        (U16, 65_536),
        (U16, True),
        (U16, 1.0),
        (U64, 1 << 64),
        (BOOL, 1),
        (FLOAT, 1),
        (COLOUR, "green"),
        (ListOf(U16, 1), [1, 2]),
        (ListOf(U16), "12"),
        (TupleOf((U16, U16)), (1,)),
        (POINT, {"x_axis": 1}),
        (POINT, {"x_axis": 1, "label": None, "more": 1}),
        (POINT, {"x-axis": 1, "label": None}),
        (POINT, [1, None]),
    ],
)
def test_to_wire__another_shape__is_refused(shape: Any, value: object) -> None:
    with pytest.raises(ValueMismatchError):
        to_wire(shape, value)


@pytest.mark.parametrize(("bits", "value"), [(16, 0), (16, 65_535), (32, 2**32 - 1), (64, 2**64 - 1)])
def test_unsigned__bounds__pass(bits: int, value: int) -> None:
    assert from_wire(Unsigned(bits), to_wire(Unsigned(bits), value)) == value


def test_arguments__wrong_number__are_refused() -> None:
    function = BY_NAME["alga:extension/storage", "get"]
    with pytest.raises(ValueMismatchError):
        arguments_from_wire(function, [V(text="a")])
    with pytest.raises(ValueMismatchError):
        arguments_to_wire(function, ["a", "b", "c"])


def test_reply__that_does_not_fit__is_refused() -> None:
    get = BY_NAME["alga:extension/storage", "get"]
    delete = BY_NAME["alga:extension/storage", "delete"]
    keys = BY_NAME["alga:extension/secrets", "list-keys"]
    for build in (
        lambda: reply_to_wire(get, error="nonsense"),
        lambda: reply_to_wire(keys, error="denied"),
        lambda: reply_to_wire(delete, 1),
        lambda: reply_from_wire(get, worker_pb2.HostReply()),
        lambda: reply_from_wire(get, worker_pb2.HostReply(error="nonsense")),
        lambda: reply_from_wire(keys, worker_pb2.HostReply(error="denied")),
        lambda: reply_from_wire(delete, worker_pb2.HostReply(ok=V(text="x"))),
        lambda: reply_from_wire(get, worker_pb2.HostReply(ok=V(none=NONE))),
    ):
        with pytest.raises(ValueMismatchError):
            build()


# --- the catalog -----------------------------------------------------------------------------------------------------------------------


def test_catalog__numbers_and_names__are_unique_and_stay() -> None:
    assert [function.number for function in FUNCTIONS] == list(range(1, len(FUNCTIONS) + 1))
    assert len(BY_NAME) == len(FUNCTIONS)
    # The wire's numbers: append, never reuse.
    assert BY_NUMBER[5].qualified_name == "alga:extension/storage.get"
    assert BY_NUMBER[36].qualified_name == "extrunner:host/events.publish"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.qualified_name)
def test_catalog__each_function__is_whole(function: Any) -> None:
    assert function.capability in capabilities.KNOWN
    assert function.interface in INTERFACES
    if function.error is not None:
        assert function.denied in function.error.cases
        assert function.unacceptable in function.error.cases
    elif function.result is not None and not function.local:
        to_wire(function.result, function.denied)
        to_wire(function.result, function.unacceptable)
    assert not (function.local and function.effectful)


def test_catalog__functions_of_the_wit_texts__are_exactly_these() -> None:
    declared = set()
    for path in WIT_FILES:
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        package = re.search(r"package ([\w:-]+)", text)
        assert package is not None
        for name, body in re.findall(r"interface ([\w-]+) \{(.*?)\n\}", text, re.DOTALL):
            for function, parameters in re.findall(r"^\s*%?([\w-]+): func\(([^)]*)\)", body, re.MULTILINE):
                names = tuple(part.split(":")[0].strip() for part in parameters.split(", ") if part)
                declared.add((f"{package.group(1)}/{name}", function, names))

    assert declared == {(function.interface, function.name, tuple(name for name, _ in function.params)) for function in FUNCTIONS}
