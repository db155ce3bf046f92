"""The wire pre-scan of public requests (T20, T22): what a caller may send at all, before a message object exists.

Everything that is not the body is at most 128 KiB, headers are at most 64, unknown fields and repeated singular fields are
refused. The body is cut out in place and enters no message object, unless the whole request is small (`canonical`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from extrunner.runner.v1 import execution_pb2, runner_service_pb2
from registry.domain.errors import Reason, RefusalError
from registry.domain.headers import MAX_HEADERS
from registry.domain.limits import OPERATOR_CEILING
from runnerd.rpc.wire import MessageRule, WireError, WireLimits, WireProblem, build_rule, scan
from runnerd.worker.small_messages import parse_canonical

MAX_HEAD_BYTES = 128 * 1024
MAX_USER_FIELDS = 32
_PACKAGE = "extrunner.runner.v1"
_HEADERS = f"{_PACKAGE}.HttpRequest.headers"
_USER_FIELDS = f"{_PACKAGE}.User.additional_fields"
_BODY = f"{_PACKAGE}.HttpRequest.body"

LIMITS = WireLimits(head_bytes=MAX_HEAD_BYTES, opaque_bytes=OPERATOR_CEILING.request_bytes, fields=512, depth=5)
"""64 headers are 192 fields, 32 user fields 96, all others together fewer than 40; the deepest is context.user.additional_fields."""

_SMALL = WireLimits(head_bytes=4096, opaque_bytes=0, fields=8, depth=2)

_EXECUTE = build_rule(
    execution_pb2.ExecuteRequest.DESCRIPTOR, max_repeats={_HEADERS: MAX_HEADERS, _USER_FIELDS: MAX_USER_FIELDS}, opaque=_BODY
)
_WARM = build_rule(runner_service_pb2.WarmRequest.DESCRIPTOR)
_INFO = build_rule(runner_service_pb2.GetRunnerInfoRequest.DESCRIPTOR)

_SENTENCES = {
    WireProblem.TRUNCATED: "The message ends within a field.",
    WireProblem.UNKNOWN_FIELD: "The message holds a field that this version does not know; remove it.",
    WireProblem.DUPLICATE_FIELD: "A field that may occur once occurs twice; send it once.",
    WireProblem.TOO_MANY_REPEATS: "A repeated field occurs too often; send fewer.",
    WireProblem.TOO_MANY_FIELDS: "The message holds too many fields; send fewer.",
    WireProblem.TOO_DEEP: "The message is nested too deeply.",
    WireProblem.TOO_LARGE: "The message is larger than 128 KiB without its body; send less.",
    WireProblem.BAD_VARINT: "The message holds a number that is not in its shortest form.",
}

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedExecute:
    """An accepted ExecuteRequest whose body was cut out."""

    message: execution_pb2.ExecuteRequest
    body: memoryview | None


class PrescanRefusedError(RefusalError):
    """A refusal by the pre-scan; `problem` is the label of the metric."""

    def __init__(self, reason: Reason, public_detail: str, *, problem: str, place: str) -> None:
        super().__init__(reason, public_detail, metadata={"field": place})
        self.problem = problem


def execute_request(raw: bytes) -> ScannedExecute:
    """Scan and parse an ExecuteRequest.

    Raises:
        RefusalError: INVALID_REQUEST, HEADERS_TOO_LARGE or PAYLOAD_TOO_LARGE.
    """
    return _small_execute(raw) or _scanned_execute(raw)


def _small_execute(raw: bytes) -> ScannedExecute | None:
    """Accept the usual small request without a walk over its fields; None leaves the decision, and the words of a refusal, to the scan."""
    message = parse_canonical(execution_pb2.ExecuteRequest, raw)
    if message is None:
        return None
    http = message.http
    # What else the scan bounds follows from the schema: its depth, and the number of fields once those that repeat are bounded.
    if len(http.headers) > MAX_HEADERS:
        return None
    context = message.context
    if context.HasField("user") and len(context.user.additional_fields) > MAX_USER_FIELDS:
        return None
    body = None
    if http.HasField("body"):
        # Wherever these bytes stand in the request, they are the body's.
        start, size = raw.find(http.body), len(http.body)
        body = memoryview(raw)[start : start + size]
        http.ClearField("body")
    return ScannedExecute(message=message, body=body)


def _scanned_execute(raw: bytes) -> ScannedExecute:
    try:
        scanned = scan(raw, _EXECUTE, LIMITS)
    except WireError as error:
        raise _refusal(error, len(raw)) from error
    return ScannedExecute(message=_parse(execution_pb2.ExecuteRequest, scanned.head), body=scanned.opaque)


def warm_request(raw: bytes) -> runner_service_pb2.WarmRequest:
    """Scan and parse a WarmRequest.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    return _small(runner_service_pb2.WarmRequest, _WARM, raw)


def info_request(raw: bytes) -> runner_service_pb2.GetRunnerInfoRequest:
    """Scan and parse a GetRunnerInfoRequest.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    return _small(runner_service_pb2.GetRunnerInfoRequest, _INFO, raw)


def _small(kind: type[M], rule: MessageRule, raw: bytes) -> M:
    try:
        scanned = scan(raw, rule, _SMALL)
    except WireError as error:
        raise PrescanRefusedError(Reason.INVALID_REQUEST, _SENTENCES[error.problem], problem=error.problem, place=error.place) from error
    return _parse(kind, scanned.head)


def _parse(kind: type[M], head: bytes) -> M:
    try:
        return kind.FromString(head)
    except DecodeError as error:
        detail = "The message cannot be parsed; every string must be valid UTF-8."
        raise PrescanRefusedError(Reason.INVALID_REQUEST, detail, problem="undecodable", place=kind.DESCRIPTOR.full_name) from error


def _refusal(error: WireError, size: int) -> PrescanRefusedError:
    reason, sentence = Reason.INVALID_REQUEST, _SENTENCES[error.problem]
    if error.problem is WireProblem.TOO_MANY_REPEATS and error.place == _HEADERS:
        reason, sentence = Reason.HEADERS_TOO_LARGE, f"At most {MAX_HEADERS} headers are accepted; send fewer."
    elif error.problem is WireProblem.TOO_LARGE and size > LIMITS.opaque_bytes:
        reason = Reason.PAYLOAD_TOO_LARGE
        sentence = f"The message is larger than the ceiling of {LIMITS.opaque_bytes} bytes; send a smaller body."
    return PrescanRefusedError(reason, sentence, problem=error.problem, place=error.place)
