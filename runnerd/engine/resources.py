"""Host resources of a call: what a guest holds as a handle and the host as an object.

Representations are numbers of the call's own, so a handle of one call means nothing in another.
"""

from __future__ import annotations

from typing import Any

from wasmtime import component

from runnerd.engine import bindings, calls
from runnerd.engine.component_values import GuestTypeError
from runnerd.engine.outcomes import LimitExceeded, LimitKind

MAX_RESOURCES = 1_024
"""Handles that a guest may hold at once. They are the host's memory, not the guest's."""


class TypeIds:
    """Numbers of the resource types of one linker.

    What is one type in the component is one here, whatever its names: `fields`, `headers` and `trailers` of wasi:http are one, and so is
    `pollable` wherever it is used again.
    """

    def __init__(self) -> None:
        self._declared: list[component.ResourceType] = []
        self._named: dict[str, int] = {}

    def declare(self, name: str, declared: component.ResourceType, *, ours: bool) -> int:
        """Return the number of a type that a component imports.

        Args:
            name: in its interface.
            declared: by the component.
            ours: whether the interface is one of our WASI, whose functions look types up by name.
        """
        known = next((number for number, one in enumerate(self._declared, 1) if one == declared), None)
        if known is None:
            self._declared.append(declared)
            known = len(self._declared)
        if ours:
            self._named.setdefault(name, known)
        return known

    def of(self, name: str) -> int:
        """Return the number of a type of our WASI; 0, which no type has, where the component does not import it."""
        return self._named.get(name, 0)


def new_resource(call: calls.Call, thing: object) -> int:
    """Keep an object for the guest; return its representation."""
    if len(call.resources) >= MAX_RESOURCES:
        call.end(LimitExceeded(limit=LimitKind.HANDLES, used=MAX_RESOURCES + 1, allowed=MAX_RESOURCES))
    representation = call.next_resource
    call.next_resource += 1
    call.resources[representation] = thing
    return representation


def drop_resource(representation: int) -> None:
    """Forget an object that the guest of this thread has dropped."""
    calls.current().resources.pop(representation, None)


def own(context: Any, types: TypeIds, name: str, representation: int, value: Any) -> None:
    """Write an owned handle into a cleared value."""
    value.of.resource = bindings.own_resource(context, representation, types.of(name))
    value.kind = bindings.KIND_RESOURCE


def take(call: calls.Call, context: Any, types: TypeIds, value: Any, name: str) -> object:
    """Return the object behind a handle that the guest lends, and end the loan.

    Raises:
        GuestTypeError: it is no handle of this type, or of an object that is gone.
    """
    if value.kind != bindings.KIND_RESOURCE:
        message = f"expected a {name}"
        raise GuestTypeError(message)
    type_id, representation = bindings.take_resource(context, value.of.resource)
    if type_id != types.of(name) or representation not in call.resources:
        message = f"expected a {name}"
        raise GuestTypeError(message)
    return call.resources[representation]
