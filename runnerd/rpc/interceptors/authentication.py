"""Who calls: the service token, and the user's own token where the service brings it along (T8, T21).

The attack it stops: grpc.aio reads a whole message before it asks a unary handler, so refused calls of 30 MiB cost a gigabyte. A call
without a valid credential or scope is answered by a stream-unary handler, which ends it before a byte of the message is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc

from registry.domain.errors import Reason, RefusalError
from registry.tokens import ClaimNames, TokenVerifier, UserToken, parse_service, parse_user
from runnerd.dispatch.request import Caller

SUBJECT_TOKEN = "x-extrunner-subject-token"  # noqa: S105 - the name of a metadata key.
_AUTHORIZATION = "authorization"
_BEARER = "bearer "
_OF_SUBJECT = {"credential": "subject"}
_DEFAULT_CLAIMS = ClaimNames()

caller_of_call: ContextVar[Caller] = ContextVar("caller_of_call")
"""The verified caller; set in the task of each authenticated call."""


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Verifies who calls and whether the credential has the method's scope, before the message is read.

    Args:
        services: verifies service tokens.
        users: verifies users' own tokens; None refuses every call that brings one.
        scopes: full method name → scope that it needs. What is not named here needs `default_scope`.
        open_methods: full method name → handler that answers without a credential and without reading the message.
        default_scope: for methods without a row.
        claims: names of the claims in users' tokens.
    """

    def __init__(  # noqa: PLR0913 - all are keywords, each one fact of the operator's policy
        self,
        *,
        services: TokenVerifier,
        users: TokenVerifier | None,
        scopes: Mapping[str, str],
        open_methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        default_scope: str = "info",
        claims: ClaimNames = _DEFAULT_CLAIMS,
    ) -> None:
        self._services = services
        self._users = users
        self._scopes = dict(scopes)
        self._open = dict(open_methods)
        self._default_scope = default_scope
        self._parse_user = partial(parse_user, names=claims)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Let an authenticated call pass, or return a handler that refuses it unread."""
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()
        if method in self._open and not any(key == _AUTHORIZATION for key, _ in metadata):
            return self._open[method]
        try:
            caller_of_call.set(self._authenticate(metadata, self._scopes.get(method, self._default_scope)))
        except RefusalError as refusal:
            return _deny(refusal)
        return await continuation(handler_call_details)

    def _authenticate(self, metadata: Any, scope: str) -> Caller:
        token = _single(metadata, _AUTHORIZATION)
        if token is None or not token[: len(_BEARER)].lower() == _BEARER:
            raise RefusalError(Reason.UNAUTHENTICATED, "Send a service token: metadata authorization: Bearer <token>.")
        service = self._services.verify_as(token[len(_BEARER) :].strip(), parse_service)
        if scope not in service.scopes:
            raise RefusalError(Reason.PERMISSION_MISSING, f"The service token lacks the scope {scope}.", metadata={"scope": scope})
        subject = _single(metadata, SUBJECT_TOKEN)
        if subject is None:
            return Caller(service=service)
        return Caller(service=service, subject=self._subject(subject))

    def _subject(self, token: str) -> UserToken:
        if self._users is None:
            detail = "This runner verifies no user tokens; leave the subject token out."
            raise RefusalError(Reason.UNAUTHENTICATED, detail, metadata=_OF_SUBJECT)
        try:
            return self._users.verify_as(token, self._parse_user)
        except RefusalError as refusal:
            # Which of the two credentials it was: a gateway tells its user about the one and its operator about the other.
            raise RefusalError(refusal.reason, refusal.public_detail, metadata=_OF_SUBJECT) from refusal


def _single(metadata: Any, wanted: str) -> str | None:
    """Return the value of a metadata key that may be there once.

    Raises:
        RefusalError: UNAUTHENTICATED where it is there twice: which one counts must not be a matter of who reads.
    """
    found: Any = None
    for key, value in metadata:
        if key == wanted:
            if found is not None:
                raise RefusalError(Reason.UNAUTHENTICATED, f"Send {wanted} once.")
            found = value
    return found.decode("ascii", "replace") if isinstance(found, bytes) else found


def _deny(refusal: RefusalError) -> grpc.RpcMethodHandler[Any, Any]:
    async def deny(_messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        # SECURITY: the iterator is not touched, so nothing of the message is read.
        raise refusal

    return grpc.stream_unary_rpc_method_handler(deny)
