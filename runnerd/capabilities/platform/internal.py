"""The platform's internal routes for extensions: `POST {base}/api/internal/ext-<interface>/install/<install id>`, JSON in and out.

The install id stands in the path, because that is where platforms of this shape look for it, and in `x-ext-install-id`. It is a UUID that
the registry made, taken from the daemon's own grant, and escaped all the same. Nothing that a guest says is part of the path.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.platform.client import PlatformAnswer, PlatformClient, PlatformError, PlatformRequest
from runnerd.capabilities.platform.documents import DocumentError, parse_object
from runnerd.capabilities.platform.identity import headers_of, user_object_of
from runnerd.capabilities.platform.tokens import TokenFile, TokenFileError

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
TOO_MANY: Final = 429
_INVALID: Final = frozenset({400, 422})
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_LOG = logging.getLogger(__name__)


def is_id(text: str) -> bool:
    """Tell whether `text` is a UUID as the platform spells its ids, in either letter case."""
    return _UUID.match(text) is not None


def is_refused(answer: PlatformAnswer) -> bool:
    """Tell whether the platform refused for want of a right."""
    return answer.status in {UNAUTHORIZED, FORBIDDEN}


def is_rejected(answer: PlatformAnswer) -> bool:
    """Tell whether the platform found the input wanting."""
    return answer.status in _INVALID


def level_of(answer: PlatformAnswer) -> int:
    """Return how much an operator wants to know of an answer that is no success: little, where a guest can bring it about at will."""
    if answer.status == UNAUTHORIZED:
        return logging.ERROR
    return logging.DEBUG if is_rejected(answer) or answer.status in {FORBIDDEN, CONFLICT} else logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalApi:
    """The internal routes of one platform."""

    client: PlatformClient
    token: TokenFile
    answer_bytes: int

    async def ask(
        self, grant: InvocationGrant, interface: str, operation: str, content: Mapping[str, object], *, idempotency_key: str | None = None
    ) -> PlatformAnswer:
        """Send one operation. Whatever does not succeed is logged here, without anything that guest, user or platform said.

        Args:
            grant: of the invocation.
            interface: the <interface> of the route.
            operation: what to do.
            content: further fields of the JSON object.
            idempotency_key: of a write.

        Raises:
            PlatformError: no usable answer.
        """
        fields: dict[str, object] = {"operation": operation, **content}
        user = user_object_of(grant)
        if user is not None:
            fields["user"] = user
        headers = [
            *headers_of(grant),
            ("accept", "application/json"),
            ("content-type", "application/json"),
            ("x-runner-auth", self._token()),
        ]
        if idempotency_key is not None:
            fields["idempotencyKey"] = idempotency_key
            headers.append(("idempotency-key", idempotency_key))
        answer = await self.client.send(
            PlatformRequest(
                install_id=grant.install_id,
                method="POST",
                target=f"/api/internal/ext-{interface}/install/{quote(grant.install_id, safe='')}",
                headers=tuple(headers),
                body=json.dumps(fields, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii"),
                most_answer_bytes=self.answer_bytes,
                deadline=grant.deadline,
            )
        )
        if not answer.is_success:
            log_failure(grant, f"{interface}.{operation}", "not done", level=level_of(answer), status=answer.status, code=_code_of(answer))
        return answer

    def _token(self) -> str:
        try:
            return self.token.read()
        except TokenFileError as error:
            raise PlatformError(str(error)) from error


def log_failure(grant: InvocationGrant, operation: str, why: str, *, level: int = logging.WARNING, **further: object) -> None:
    """Tell the operator why a call of the platform did not succeed."""
    _LOG.log(level, "platform call failed: %s", why, extra={**grant.log_fields, "operation": operation, **further})


def _code_of(answer: PlatformAnswer) -> str:
    """Return the machine-readable `code` of an error. Its text may be about a tenant's customers and stays where it was written."""
    try:
        code = parse_object(answer.body).optional_text("code") or ""
    except DocumentError:
        return ""
    return code if _CODE.match(code) else ""
