"""The runner as the gateway sees it: the only module that knows the wire types.

Attacks this stops: a service credential that is good for more than the one tenant of the call, or for long (T7, T8: the user's own
token goes along and the daemon believes that one); a proxy from the environment between gateway and daemon; a retried call that runs
an extension twice; the text of a transport error shown to the public.

    RefusalError            what the daemon refused, with its reason; outcomes of the guest that are no HTTP response (GUEST_…)
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from extrunner.runner.v1 import execution_pb2, limits_pb2, runner_service_pb2, runner_service_pb2_grpc
from registry.domain.errors import ERROR_DOMAIN, Reason, RefusalError
from registry.domain.limits import MIB
from registry.tokens import ANY_TENANT, TokenMinter

MESSAGE_BYTES: Final = 33 * MIB
"""The hard ceiling of a body and a mebibyte for the rest (N30); gRPC's own default would cut replies at 4 MiB."""

_STATUS_TRAILER = "grpc-status-details-bin"
_RENEW_BEFORE_SECONDS = 60
_REMEMBERED_TENANTS = 1024
_MAX_DETAIL_CHARACTERS = 512
_MAX_METADATA = 16
_MAX_METADATA_CHARACTERS = 256
_WARM_TIMEOUT_SECONDS = 180.0

_WITHOUT_ERROR_INFO: Final = {
    # Beyond the daemon's message cap gRPC itself answers, without a reason.
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Reason.PAYLOAD_TOO_LARGE, "The request or the answer is larger than the runner takes."),
    grpc.StatusCode.UNAVAILABLE: (Reason.OVERLOADED, "The runner cannot be reached; try again."),
    grpc.StatusCode.DEADLINE_EXCEEDED: (Reason.DEADLINE_EXCEEDED, "The runner did not answer in time."),
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerTarget:
    """Where the daemon is and how the gateway names itself to it."""

    address: str
    """A gRPC target; "dns:///name:port" spreads calls over all its addresses."""
    tls_root_certificates: bytes | None
    """PEM; None speaks plaintext, which the settings allow on loopback only."""
    service_name: str
    token_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionCall:
    """One request for an extension, checked and narrowed."""

    request_id: str
    tenant_id: str
    extension_id: str
    content_hash: str | None
    """Pin of the client; None leaves the version to the daemon."""
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    subject_token: str = field(repr=False)
    """The user's own token; the daemon takes tenant, user and roles from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResponse:
    """What the extension answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    execution_id: str
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmResult:
    """How the daemon made a bundle ready."""

    state: str
    """"cached", "compiled" or "ui_only"."""
    compile_seconds: float


class RunnerClient:
    """Calls RunnerService over one channel. Made and used within one event loop.

    Args:
        target: where, and under which name.
        minter: of service tokens for the daemon's audience.
    """

    def __init__(self, target: RunnerTarget, minter: TokenMinter) -> None:
        self._target = target
        self._minter = minter
        self._tokens: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._channel = _open_channel(target)
        self._stub = runner_service_pb2_grpc.RunnerServiceStub(self._channel)

    async def execute(self, call: ExtensionCall, *, timeout_seconds: float) -> GuestResponse:
        """Run `call`. Cancelling this coroutine cancels the call in the daemon.

        Raises:
            RefusalError: the daemon's refusal; GUEST_TRAPPED, GUEST_LIMIT_EXCEEDED or GUEST_INVALID_RESPONSE where the guest gave
                no response. Metadata `execution_id` names the row of the execution log where there is one.
        """
        # SECURITY: one tenant, one scope; what this process could be made to ask for is what its user may ask for.
        token = self._token(call.tenant_id, "execute")
        metadata = (("authorization", f"Bearer {token}"), ("x-extrunner-subject-token", call.subject_token))
        try:
            response = await self._stub.Execute(_to_request(call), timeout=timeout_seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _to_refusal(error) from error
        return _from_response(response)

    async def warm(self, content_hash: str) -> WarmResult:
        """Have the daemon verify and compile a bundle, so that no user waits for it. May take as long as a compiler does.

        Raises:
            RefusalError: the daemon's refusal.
        """
        metadata = (("authorization", f"Bearer {self._token(ANY_TENANT, 'warm')}"),)
        request = runner_service_pb2.WarmRequest(content_hash=content_hash)
        try:
            response = await self._stub.Warm(request, timeout=_WARM_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _to_refusal(error) from error
        state = _enum_name(runner_service_pb2.WarmState, response.state, "WARM_STATE_").lower()
        return WarmResult(state=state, compile_seconds=response.compile_duration.ToNanoseconds() / 1e9)

    async def is_reachable(self) -> bool:
        """Tell whether the channel is, or could not yet be told not to be, connected. Also begins to connect."""
        return self._channel.get_state(try_to_connect=True) in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE}

    async def aclose(self) -> None:
        """Close the channel; running calls are cancelled."""
        await self._channel.close()

    def _token(self, tenant_id: str, scope: str) -> str:
        key = (tenant_id, scope)
        now = time.monotonic()
        known = self._tokens.get(key)
        if known is not None and now < known[1]:
            self._tokens.move_to_end(key)
            return known[0]
        seconds = self._target.token_seconds
        token = self._minter.mint(self._target.service_name, ttl_seconds=seconds, tenants=[tenant_id], scope=scope)
        self._tokens[key] = (token, now + max(0, seconds - _RENEW_BEFORE_SECONDS))
        self._tokens.move_to_end(key)
        while len(self._tokens) > _REMEMBERED_TENANTS:
            self._tokens.popitem(last=False)
        return token


def _open_channel(target: RunnerTarget) -> grpc.aio.Channel:
    options: Sequence[tuple[str, Any]] = (
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        # SECURITY: an http_proxy of the environment would see every token.
        ("grpc.enable_http_proxy", 0),
        # A call that may have begun is never repeated: an extension is not idempotent.
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    )
    if target.tls_root_certificates is None:
        return grpc.aio.insecure_channel(target.address, options=options)
    credentials = grpc.ssl_channel_credentials(root_certificates=target.tls_root_certificates)
    return grpc.aio.secure_channel(target.address, credentials, options=options)


def _to_request(call: ExtensionCall) -> execution_pb2.ExecuteRequest:
    return execution_pb2.ExecuteRequest(
        context=execution_pb2.Context(
            request_id=call.request_id,
            tenant_id=call.tenant_id,
            extension_id=call.extension_id,
            content_hash=call.content_hash or "",
        ),
        http=execution_pb2.HttpRequest(
            method=call.method,
            path=call.path,
            query=call.query,
            headers=[execution_pb2.Header(name=name, value=value) for name, value in call.headers],
            body=call.body,
        ),
        trigger=execution_pb2.TRIGGER_HTTP,
    )


def _from_response(response: execution_pb2.ExecuteResponse) -> GuestResponse:
    metadata = {"execution_id": response.execution_id} if response.execution_id else {}
    match response.WhichOneof("outcome"):
        case "completed":
            completed = response.completed
            return GuestResponse(
                status=completed.status,
                headers=tuple((header.name, header.value) for header in completed.headers),
                body=completed.body,
                execution_id=response.execution_id,
                content_hash=response.content_hash,
            )
        case "trapped":
            kind = _enum_name(execution_pb2.TrapKind, response.trapped.kind, "TRAP_KIND_")
            raise RefusalError(
                Reason.GUEST_TRAPPED, "The extension failed; its author finds why by the execution id.", metadata=metadata | {"trap": kind}
            )
        case "limit_exceeded":
            exceeded = response.limit_exceeded
            limit = _enum_name(limits_pb2.LimitKind, exceeded.limit, "LIMIT_KIND_")
            facts = {"limit": limit, "used": str(exceeded.used), "allowed": str(exceeded.allowed)}
            raise RefusalError(Reason.GUEST_LIMIT_EXCEEDED, f"The extension exceeded its limit {limit}.", metadata=metadata | facts)
        case "guest_error":
            raise RefusalError(Reason.GUEST_INVALID_RESPONSE, "The extension's answer is not a valid HTTP response.", metadata=metadata)
        case _:
            _log.error("runner_answered_no_outcome", **metadata)
            raise RefusalError(Reason.INTERNAL, "The runner gave no outcome; give the request id to the operator.", metadata=metadata)


def _enum_name(enum: Any, value: int, prefix: str) -> str:
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:  # a newer daemon knows more kinds
        return "OTHER"


def _to_refusal(error: grpc.aio.AioRpcError) -> RefusalError:
    status = _rich_status(error)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after: int | None = None
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = max(0, retry.retry_delay.seconds + (1 if retry.retry_delay.nanos else 0))
    if status is None or info.domain != ERROR_DOMAIN or info.reason not in Reason.__members__:
        return _bare_refusal(error)
    reason = Reason(info.reason)
    metadata = {key: value[:_MAX_METADATA_CHARACTERS] for key, value in list(info.metadata.items())[:_MAX_METADATA]}
    if _is_about_our_credential(reason, metadata):
        _log.error("runner_refused_our_credential", reason=reason, detail=status.message)
        return RefusalError(Reason.INTERNAL, "The gateway is not set up to call the runner; give the request id to the operator.")
    return RefusalError(reason, status.message[:_MAX_DETAIL_CHARACTERS], metadata=metadata, retry_after_seconds=retry_after)


def _bare_refusal(error: grpc.aio.AioRpcError) -> RefusalError:
    """Translate a status that gRPC itself made: the connection, a deadline, a message cap. Its text is for the log."""
    reason, sentence = _WITHOUT_ERROR_INFO.get(error.code(), (Reason.INTERNAL, "The runner failed; give the request id to the operator."))
    _log.warning("runner_call_failed", code=error.code().name, detail=error.details(), reason=reason)
    return RefusalError(reason, sentence)


def _is_about_our_credential(reason: Reason, metadata: dict[str, str]) -> bool:
    """Tell whether the daemon refused the gateway's credential: the user would look for the mistake in vain."""
    if reason is Reason.UNAUTHENTICATED:
        # The gateway has verified the user's token a moment ago, against the same keys.
        return metadata.get("credential") != "subject"
    return reason is Reason.PERMISSION_MISSING and "scope" in metadata


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_TRAILER and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
