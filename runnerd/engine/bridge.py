"""The host's end of the bridge: images of memory for `run`, the image that comes back, and the host calls in between.

An image crosses as a string of hexadecimal digits, a body that is all ASCII as it is (`bridge.wat`). What comes back was written by the
engine's own copies into the bridge's memory, but it holds what a guest chose: every address and length is checked
(`memory_images.GuestImage`).
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import wasmtime
from wasmtime import component

from registry.domain.headers import MAX_HEADER_BYTES, MAX_HEADERS
from runnerd.capabilities.catalog import BY_NUMBER, HostFunction
from runnerd.capabilities.shapes import DATA_BYTES, Enum
from runnerd.engine import bindings as b
from runnerd.engine import calls
from runnerd.engine.answers import GuestAnswer
from runnerd.engine.component_values import GuestTypeError, clear, refuse_size
from runnerd.engine.host_functions import answer_guest
from runnerd.engine.memory_images import GuestImage, align_up, flat_of, lift_flat, result_image
from runnerd.engine.outcomes import InternalError, LimitExceeded, LimitKind

HOST = "extrunner:bridge/host"
"""Import of every composed component: `refuse`, and `call` where it carries host calls."""
RUN = "extrunner-bridge-run"
"""Export of every composed component."""
BASE = 1024
"""Where every image from the host lands (`bridge.wat`)."""
MAX_QUESTION_BYTES = DATA_BYTES + 512 * 1024
"""What a guest may hand to one host call, all its arguments together: the largest value, and texts beside it."""
MAX_ANSWER_HEAD_BYTES = 1024 * 1024
"""What a response may have beside the body: headers, and what the engine's copies leave between."""

_HEAD = struct.Struct("<IIIII")
"""Address of the request · whether the body is in digits · allowed: bytes of the response's body, its headers, bytes beside the body."""
_REQUEST_WORDS = 22
"""Words of a lowered execute-request: five strings of the context, three with a presence word; method, url, headers, body."""
_HEADER_WORDS = 4
_RESPONSE = struct.Struct("<iI H2x II B3x II")
"""Pages, whether the body is in digits; status, headers (address, count), body (presence, address, length)."""
_HEADER = struct.Struct("<IIII")
_SLOT_BYTES = 8
_SLACK_BYTES = 128 * 1024
"""What the bridge's memory needs beside a request before it can call its author: the page it begins with, and rounding."""
_PAGE_BYTES = 64 * 1024


def count_memories(engine: wasmtime.Engine, composed: component.Component) -> int:
    """Return how many linear memories the bridge has in a component: around the handler, and around host calls where it has any."""
    imported = composed.type.imports(engine).get(HOST)
    if imported is None or not isinstance(imported.ty, component.ComponentInstanceType):
        message = "the component was not composed with the bridge"
        raise GuestTypeError(message)
    return len(imported.ty.exports(engine))


# --- run -------------------------------------------------------------------------------------------------------------------------------


def write_request(call: calls.Call, request: calls.GuestRequest, head: Any, body: Any, *, memory_cap: int) -> int:
    """Write the arguments of `run`; return the base of the image that comes back.

    Args:
        call: its context and limits.
        request: for the guest.
        head: cleared value, written.
        body: cleared value, written.
        memory_cap: of one linear memory.

    Raises:
        StopCallError: the request does not fit into the memory that the call may have.
    """
    content = request.body or b""
    is_text = content.isascii()
    sent = content if is_text else content.hex().encode()
    image = _request_image(call, request, is_text=is_text)
    needed = BASE + 2 * len(image) + len(sent) + _SLACK_BYTES
    if needed > memory_cap:
        call.end(LimitExceeded(limit=LimitKind.MEMORY, used=max(needed, call.limits.memory_bytes + 1), allowed=call.limits.memory_bytes))
    _write_text(head, image.hex().encode())
    _write_text(body, sent)
    return align_up(BASE + 2 * len(image) + len(content), 8)


def _request_image(call: calls.Call, request: calls.GuestRequest, *, is_text: bool) -> bytes:
    """Return the head: words for the bridge, the lowered execute-request, headers, strings. The body comes behind its digits."""
    context, headers = call.context, request.headers
    fixed = _HEAD.size + 4 * (_REQUEST_WORDS + _HEADER_WORDS * len(headers))
    strings: list[bytes] = []
    address = BASE + fixed

    def text(value: str) -> tuple[int, int]:
        nonlocal address
        data = value.encode()
        strings.append(data)
        start = address
        address += len(data)
        return start, len(data)

    def optional(value: str) -> tuple[int, int, int]:
        return (1, *text(value)) if value else (0, 0, 0)

    lowered = BASE + _HEAD.size
    words = [
        *optional(context.request_id),
        *text(context.tenant_id),
        *text(context.extension_id),
        *optional(context.install_id),
        *optional(context.version_id),
        *text(request.method),
        *text(request.url),
        lowered + 4 * _REQUEST_WORDS,
        len(headers),
    ]
    pairs = [word for name, value in headers for word in (*text(name), *text(value))]
    behind = BASE + 2 * (address - BASE)
    words += (0, 0, 0) if request.body is None else (1, behind, len(request.body))
    head = _HEAD.pack(lowered, not is_text, call.limits.response_bytes, MAX_HEADERS, MAX_ANSWER_HEAD_BYTES)
    return b"".join((head, struct.pack(f"<{len(words) + len(pairs)}I", *words, *pairs), *strings))


def read_answer(result: Any, base: int) -> tuple[GuestAnswer, int | None]:
    """Read what `run` returned.

    Args:
        result: a pair of strings.
        base: of the image in the first.

    Returns:
        The answer, and the bytes of memory of the author's component at the end, which is its peak: memory never shrinks. None where it
        has not exactly one memory.

    Raises:
        GuestTypeError: it is not the image of an execute-response.
    """
    if result.kind != b.KIND_TUPLE or result.of.tuple.size != 2:  # noqa: PLR2004 - a pair
        message = "the bridge returned something else than a pair"
        raise GuestTypeError(message)
    image = _read_digits(result.of.tuple.data[0])
    memory = GuestImage(image, base)
    pages, in_digits, status, listed, count, has_body, _, length = memory.unpack(_RESPONSE, base)
    if count > MAX_HEADERS:
        message = f"{count} headers passed the bridge"
        raise GuestTypeError(message)
    headers = []
    for index in range(count):
        name, name_length, value, value_length = memory.unpack(_HEADER, listed + index * _HEADER.size)
        try:
            headers.append((memory.take(name, name_length).decode(), memory.take(value, value_length).decode()))
        except UnicodeDecodeError as exc:
            message = "a header that is not UTF-8 passed the bridge"
            raise GuestTypeError(message) from exc
    body = None
    if has_body:
        read = _read_digits if in_digits else _read_text
        body = read(result.of.tuple.data[1])
        if len(body) != length:
            message = "the bridge returned another body than it said"
            raise GuestTypeError(message)
    return GuestAnswer(status, headers, body), pages * _PAGE_BYTES if pages >= 0 else None


def _write_text(value: Any, text: bytes) -> None:
    b.set_name(value.of.string, text)
    value.kind = b.KIND_STRING


def _read_text(value: Any) -> bytes:
    if value.kind != b.KIND_STRING:
        message = "the bridge handed over something that is no string"
        raise GuestTypeError(message)
    return b.get_name(value.of.string)


def _read_digits(value: Any) -> bytes:
    try:
        return binascii.unhexlify(_read_text(value))
    except binascii.Error as exc:
        message = "the bridge handed over a string that is no image"
        raise GuestTypeError(message) from exc


# --- host calls ------------------------------------------------------------------------------------------------------------------------

_CARRIED: Mapping[int, tuple[HostFunction, Enum]] = {
    number: (function, function.error) for number, function in BY_NUMBER.items() if function.carries_bytes and function.error is not None
}
"""With the error that each answers with: the composer carries no function without one."""
_SLOTS: Mapping[int, struct.Struct] = {
    number: struct.Struct(f"<{sum(len(flat_of(shape)) for _, shape in function.params)}Q") for number, (function, _) in _CARRIED.items()
}
"""The parameters of each, in slots of eight bytes."""


def host_call(_context: Any, arguments: Any, _argument_count: int, results: Any, _result_count: int) -> None:
    """Answer the bridge's import `call`: an image with the parameters of one host function, its number last."""
    call = calls.current()
    try:
        image = _read_digits(arguments[0])
        function, errors = _CARRIED[int.from_bytes(image[-_SLOT_BYTES:], "little")]
    except (GuestTypeError, KeyError):
        # The bridge writes both, not its guest.
        call.end(InternalError(message="the bridge asked for something that it does not carry"))

    def read() -> list[object]:
        parameters = _SLOTS[function.number]
        if len(image) == _SLOT_BYTES and parameters.size:
            refuse_size(MAX_QUESTION_BYTES + 1, MAX_QUESTION_BYTES)
        memory = GuestImage(image, BASE)
        slots = iter(memory.unpack(parameters, BASE + len(image) - parameters.size - _SLOT_BYTES))
        return [lift_flat(shape, memory, slots) for _, shape in function.params]

    def write(value: object, error: str | None) -> None:
        answer = result_image(BASE, function.result, errors, value, error)
        _write_text(results[0], answer.hex().encode())

    clear(results[0])
    answer_guest(call, function, read, write)


def refuse(_context: Any, arguments: Any, _argument_count: int, _results: Any, _result_count: int) -> None:
    """Answer the bridge's import `refuse`: end the guest for what does not fit."""
    call = calls.current()
    what, size = arguments[0].of.u32, arguments[1].of.u32
    limits = call.limits
    if what == 1:
        call.end(LimitExceeded(limit=LimitKind.RESPONSE_SIZE, used=size, allowed=limits.response_bytes))
    if what == 2:  # noqa: PLR2004 - the numbers are those of bridge.wat
        call.end(LimitExceeded(limit=LimitKind.HEADERS, used=size, allowed=MAX_HEADERS))
    call.end(LimitExceeded(limit=LimitKind.HEADERS, used=size, allowed=MAX_HEADER_BYTES))


FUNCTIONS: Mapping[str, b.HostCallback] = MappingProxyType({"call": host_call, "refuse": refuse})
"""What HOST holds."""
