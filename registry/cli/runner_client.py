"""The daemon's gRPC as `extctl` sees it: calls of extensions by another internal service. Imports generated code; nothing below does.

ProblemError            the daemon refused, with its reason
UnavailableError        it does not answer
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from extrunner.runner.v1 import execution_pb2, limits_pb2, runner_service_pb2_grpc
from registry.cli.invocation import Answer, ExtensionCall
from registry.cli.output import ProblemError, UnavailableError, UsageError
from registry.deployment import is_loopback
from registry.domain.errors import ERROR_DOMAIN
from registry.domain.ids import new_id

MESSAGE_BYTES: Final = 33 * 1024 * 1024
_TIMEOUT_SECONDS: Final = 35
_STATUS_TRAILER: Final = "grpc-status-details-bin"
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def execute(target: str, token: str, call: ExtensionCall) -> Answer:
    """Execute one call over gRPC. Refusals are answers too.

    Args:
        target: host:port of the daemon, on this machine.
        token: a service token with the scope `execute`.
        call: what to call.

    Raises:
        UnavailableError: no answer.
        UsageError: the token would travel unprotected.
    """
    # SECURITY: plaintext gRPC is for this machine only.
    if not is_loopback(target.rpartition(":")[0].strip("[]")):
        message = f"{target} is not on this machine; a token would travel unprotected."
        raise UsageError(message)
    request_id = new_id()
    request = execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(request_id=request_id, tenant_id=call.tenant_id, extension_id=call.extension_id),
        http=execution_pb2.HttpRequest(
            method=call.method,
            path=call.path,
            query=call.query,
            headers=[execution_pb2.Header(name=name, value=value) for name, value in call.headers],
            body=call.body,
        ),
    )
    metadata: tuple[tuple[str, str | bytes], ...] = (("authorization", f"Bearer {token}"),)
    if call.subject_token is not None:
        metadata += (("x-extrunner-subject-token", call.subject_token),)
    started = time.perf_counter()
    options: Sequence[tuple[str, Any]] = (
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    )
    with grpc.insecure_channel(target, options=options) as channel:
        stub = runner_service_pb2_grpc.RunnerServiceStub(channel)
        try:
            response = stub.Execute(request, timeout=_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            problem = _problem(error, target, request_id)
            return _refused(problem, request_id, (time.perf_counter() - started) * 1000)
    return _answer(response, request_id, (time.perf_counter() - started) * 1000)


def _answer(response: execution_pb2.ExecuteResponse, request_id: str, wall_ms: float) -> Answer:
    outcome = response.WhichOneof("outcome") or "guest_error"
    problem = None
    if outcome == "trapped":
        kind = execution_pb2.TrapKind.Name(response.trapped.kind).removeprefix("TRAP_KIND_")
        problem = _outcome_problem("GUEST_TRAPPED", f"{kind}: {response.trapped.message}", response, request_id)
    elif outcome == "limit_exceeded":
        limit = limits_pb2.LimitKind.Name(response.limit_exceeded.limit).removeprefix("LIMIT_KIND_")
        detail = f"{limit}: used {response.limit_exceeded.used} of {response.limit_exceeded.allowed}"
        problem = _outcome_problem("GUEST_LIMIT_EXCEEDED", detail, response, request_id)
    elif outcome == "guest_error":
        problem = _outcome_problem("GUEST_INVALID_RESPONSE", response.guest_error.message or "no outcome", response, request_id)
    return Answer(
        via="grpc",
        outcome=outcome,
        status=response.completed.status if outcome == "completed" else None,
        headers=tuple((header.name, header.value) for header in response.completed.headers),
        body=response.completed.body,
        execution_id=response.execution_id,
        request_id=request_id,
        content_hash=response.content_hash,
        wall_ms=wall_ms,
        problem=problem,
    )


def _outcome_problem(reason: str, detail: str, response: execution_pb2.ExecuteResponse, request_id: str) -> ProblemError:
    return ProblemError(reason=reason, detail=detail, status="OK", request_id=request_id, execution_id=response.execution_id)


def _refused(problem: ProblemError, request_id: str, wall_ms: float) -> Answer:
    return Answer(
        via="grpc",
        outcome="refused",
        status=None,
        headers=(),
        body=b"",
        execution_id=problem.execution_id,
        request_id=request_id,
        content_hash="",
        wall_ms=wall_ms,
        problem=problem,
    )


def _problem(error: Any, target: str, request_id: str) -> ProblemError:
    """Read a failed call; what grpc raises is an error and a call at once, which its types cannot say."""
    info = _error_info(error)
    if info is None:
        if error.code() in _AWAY:
            message = f"The daemon at {target} cannot be reached; is it running (`extctl up`)?"
            raise UnavailableError(message) from error
        return ProblemError(reason="INTERNAL", detail=error.details() or "no detail", status=error.code().name, request_id=request_id)
    return ProblemError(
        reason=info.reason,
        detail=error.details() or "no detail",
        status=error.code().name,
        request_id=request_id,
        execution_id=info.metadata.get("execution_id", ""),
    )


def _error_info(error: Any) -> error_details_pb2.ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key != _STATUS_TRAILER or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                return info
    return None
