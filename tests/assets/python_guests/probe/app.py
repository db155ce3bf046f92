"""Calls the host functions that its request names and answers what each of them said. Built by tests/fakes/probe_guests.py, which puts the
interfaces of a world beside it.
"""

import base64
import dataclasses
import json
import math
from enum import Enum

import wit_world
from componentize_py_types import Err
from interfaces import INTERFACES
from wit_world.imports import types
from wit_world.imports.types import ExecuteResponse, HttpHeader


class WitWorld(wit_world.WitWorld):
    """POST /echo answers with the request's body. Everything else: a JSON list of calls in, a JSON list of what came of them out."""

    def handler(self, request):
        if request.http.url == "/echo":
            return ExecuteResponse(200, [], request.http.body)
        told_of = [call(asked) for asked in json.loads(request.http.body)]
        return ExecuteResponse(200, [HttpHeader("content-type", "application/json")], json.dumps(told_of, allow_nan=False).encode())


def call(asked):
    """Call one function, `times` over where the call says so, and tell of the last."""
    module = INTERFACES[asked["interface"]]
    function = getattr(module, asked["function"].replace("-", "_"))
    given = [taken(written, module) for written in asked["arguments"]]
    answer = failure = None
    for _ in range(asked.get("times", 1)):
        try:
            answer, failure = function(*given), None
        except Exception as error:  # noqa: BLE001 - whatever it is, its name is the answer
            failure = error
    if failure is None:
        return {"ok": told(answer)}
    return {"error": case_of(failure.value)} if isinstance(failure, Err) else {"threw": type(failure).__name__}


def taken(written, module):
    if isinstance(written, list):
        return [taken(item, module) for item in written]
    if not isinstance(written, dict):
        return written
    if "bytes" in written:
        unit = base64.b64decode(written["bytes"])
        return (unit * (written["size"] // max(len(unit), 1) + 1))[: written["size"]]
    if "u64" in written:
        return int(written["u64"])
    if "float" in written:
        return float(written["float"])
    if "case" in written:
        return named(written["enum"], module)[written["case"].replace("-", "_").upper()]
    fields = {name: taken(value, module) for name, value in written["fields"].items()}
    return named(written["record"], module)(**fields)


def told(value):
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Enum):
        return case_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, list | tuple):
        return [told(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: told(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def named(name, module):
    """Return the class of a WIT type, which lies in its interface's module or in that of the shared types."""
    wanted = name.title().replace("-", "")
    return getattr(module, wanted, None) or getattr(types, wanted)


def case_of(value):
    return value.name.lower().replace("_", "-")
