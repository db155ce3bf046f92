"""RFC 9457 problem documents: the one shape in which the gateway says no.

A problem has `type`, `title`, `status`, `detail`, `reason` (of the catalog in registry/domain/errors.py), `request_id`, and
`metadata` where there is more to say. Nothing but a RefusalError's own sentence reaches a caller: what any other exception says
stays in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from registry.domain.errors import CATALOG, Reason, RefusalError

MEDIA_TYPE: Final = "application/problem+json"
_TIME_LIMITS = frozenset({"WALL_TIME", "CPU_TIME", "FUEL"})
_GATEWAY_TIMEOUT = 504
_BAD_GATEWAY = 502
_MAX_PLACES = 8
_MAX_PLACE_CHARACTERS = 120


def http_status(refusal: RefusalError, *, at_load: bool = False) -> int:
    """Return the HTTP status of a refusal.

    Args:
        refusal: the refusal.
        at_load: the refusal happened while a published version was loaded for a call, so that it is not the caller's doing.
    """
    if refusal.reason is Reason.GUEST_LIMIT_EXCEEDED and refusal.metadata.get("limit") in _TIME_LIMITS:
        return _GATEWAY_TIMEOUT
    if refusal.reason is Reason.COMPILE_REJECTED and at_load:
        return _BAD_GATEWAY
    return refusal.row.http_status


def problem_document(refusal: RefusalError, *, request_id: str, status: int) -> dict[str, Any]:
    """Return the members of the problem document."""
    document: dict[str, Any] = {
        "type": f"https://extrunner.dev/problems/{refusal.reason.lower().replace('_', '-')}",
        "title": refusal.row.title,
        "status": status,
        "detail": refusal.public_detail,
        "reason": refusal.reason.value,
        "request_id": request_id,
    }
    if refusal.metadata:
        document["metadata"] = refusal.metadata
    return document


def problem_headers(refusal: RefusalError) -> dict[str, str]:
    """Return the headers that go with the problem: what to do next, and that it is not to be kept."""
    headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store", "x-content-type-options": "nosniff"}
    if refusal.retry_after_seconds is not None:
        headers["retry-after"] = str(refusal.retry_after_seconds)
    if refusal.reason is Reason.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="extrunner"'
    return headers


def problem_response(
    refusal: RefusalError, *, request_id: str, at_load: bool = False, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that says `refusal`."""
    status = http_status(refusal, at_load=at_load)
    body = json.dumps(problem_document(refusal, request_id=request_id, status=status), ensure_ascii=False).encode()
    return Response(body, status_code=status, headers={**problem_headers(refusal), **(headers or {})})


def install(app: FastAPI) -> None:
    """Make every refusal and every built-in error of `app` a problem."""
    app.add_exception_handler(RefusalError, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    # Starlette raises it again after the answer; MetricsMiddleware logs it.
    app.add_exception_handler(Exception, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return problem_response(as_refusal(error), request_id=request.scope.get("request_id", ""), headers=headers)


def as_refusal(error: Exception) -> RefusalError:
    """Translate an exception of the web framework; whatever is not known here is INTERNAL and says nothing."""
    match error:
        case RefusalError():
            return error
        case RequestValidationError():
            return RefusalError(Reason.INVALID_REQUEST, f"The request does not fit the schema: {_places(error)}.")
        case HTTPException(__cause__=RefusalError() as cause):
            # FastAPI wraps what reading a body raises: the size and the time that a body may take.
            return cause
        case HTTPException(status_code=404):
            return RefusalError(Reason.NOT_FOUND, "There is nothing at this address.")
        case HTTPException(status_code=405):
            return RefusalError(Reason.METHOD_NOT_ALLOWED, "This address does not take this method.")
        case HTTPException(status_code=400):
            return RefusalError(Reason.INVALID_REQUEST, "The request is malformed.")
        case _:
            return RefusalError(Reason.INTERNAL, "An internal error; give the request id to the operator.")


def _places(error: RequestValidationError) -> str:
    """Name what is wrong and where, and never repeat the value: it may be a secret."""
    places = [
        (".".join(str(part) for part in entry.get("loc", ())) + ": " + str(entry.get("msg", "invalid")))[:_MAX_PLACE_CHARACTERS]
        for entry in error.errors()[:_MAX_PLACES]
    ]
    return "; ".join(places)


def documented(*reasons: Reason) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for OpenAPI: one entry for each status, naming its reasons."""
    by_status: dict[int, list[Reason]] = {}
    for reason in reasons:
        by_status.setdefault(CATALOG[reason].http_status, []).append(reason)
    return {
        status: {"description": ", ".join(row), "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        for status, row in sorted(by_status.items())
    }
