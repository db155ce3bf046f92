"""Host resources of a call: what a guest holds as a handle and the host as an object.

Representations are numbers of the call's own, so a handle of one call means nothing in another.
"""

from __future__ import annotations

from typing import Any

from runnerd.engine import bindings, calls
from runnerd.engine.component_values import GuestTypeError
from runnerd.engine.outcomes import LimitExceeded, LimitKind

MAX_RESOURCES = 1_024
"""Handles that a guest may hold at once. They are the host's memory, not the guest's."""


class TypeIds:
    """Numbers of the resource types of one linker. A type is known by its name: `pollable` is the same everywhere it is re-exported."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def of(self, name: str) -> int:
        """Return the number of a type."""
        return self._ids.setdefault(name, len(self._ids) + 1)


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
