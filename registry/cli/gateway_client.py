"""The gateway as `extctl` sees it: the admin REST, and calls of extensions over HTTP.

ProblemError            the gateway refused, with its reason
UnavailableError        it does not answer, or not as a gateway would
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from registry.cli.credentials import check_destination
from registry.cli.invocation import Answer, ExtensionCall
from registry.cli.output import ProblemError, UnavailableError

ADMIN: Final = "/api/admin/v1"
_PROBLEM_TYPE: Final = "application/problem+json"
_MAX_ANSWER_BYTES: Final = 48 * 1024 * 1024
"""A response body's hard ceiling and room to spare."""
_TIMEOUT: Final = httpx.Timeout(connect=5, read=90, write=90, pool=5)
_PUBLISH_TIMEOUT: Final = httpx.Timeout(connect=5, read=600, write=90, pool=5)
_SIGNED_BUNDLE_TYPE: Final = "application/vnd.extrunner.signed-bundle"
_CHUNK_BYTES: Final = 256 * 1024
_OUTCOMES: Final = {"GUEST_TRAPPED": "trapped", "GUEST_LIMIT_EXCEEDED": "limit_exceeded", "GUEST_INVALID_RESPONSE": "guest_error"}


class GatewayClient(AbstractContextManager["GatewayClient"]):
    """One connection to a gateway, as one caller.

    Args:
        base: address of the gateway.
        token: bearer token.
        transport: how requests travel; the network by default.

    Raises:
        UsageError: the token would travel unprotected.
    """

    def __init__(self, base: str, token: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._base = check_destination(base)
        # SECURITY: no proxy of the environment and no redirect sees the token.
        self._client = httpx.Client(
            base_url=self._base,
            headers={"authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def admin(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Make one request of the admin REST and return its JSON object; empty where there is no body.

        Raises:
            ProblemError: refused.
            UnavailableError: no answer.
        """
        response = self._send(method, f"{ADMIN}{path}", arguments)
        problem = problem_of(response)
        if problem is not None:
            raise problem
        if not response.content:
            return {}
        return _object(response)

    def publish(self, archive: Path, signature: bytes, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Publish a signed bundle, streaming it from disk, and return what was published.

        Args:
            archive: the packed bundle.
            signature: its sigstore bundle.
            on_progress: told the bytes sent and those to send.

        Raises:
            ProblemError: refused; nothing was published.
            UnavailableError: no answer; publishing the same again is safe.
            OSError: the archive cannot be read.
        """
        size = archive.stat().st_size

        def content() -> Iterator[bytes]:
            yield signature
            sent = 0
            with archive.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
                    sent += len(chunk)
                    on_progress(sent, size)

        headers = {
            "content-type": _SIGNED_BUNDLE_TYPE,
            "content-length": str(len(signature) + size),
            "x-extrunner-signature-length": str(len(signature)),
        }
        return self.admin("POST", "/bundles", headers=headers, content=content(), timeout=_PUBLISH_TIMEOUT)

    def call(self, call: ExtensionCall) -> Answer:
        """Call an extension, for the tenant of the token. Refusals are answers too.

        Raises:
            UnavailableError: no answer.
        """
        started = time.perf_counter()
        url = f"/api/ext/{call.extension_id}{call.path}" + (f"?{call.query}" if call.query else "")
        response = self._send(call.method, url, {"headers": list(call.headers), "content": call.body})
        wall_ms = (time.perf_counter() - started) * 1000
        problem = problem_of(response)
        return Answer(
            via="http",
            outcome="completed" if problem is None else _OUTCOMES.get(problem.reason, "refused"),
            status=response.status_code,
            headers=tuple(response.headers.multi_items()),
            body=response.content,
            execution_id=response.headers.get("x-ext-execution-id", ""),
            request_id=response.headers.get("x-request-id", ""),
            content_hash="",
            wall_ms=wall_ms,
            problem=problem,
        )

    def _send(self, method: str, url: str, arguments: Mapping[str, Any]) -> httpx.Response:
        request = self._client.build_request(method, url, **arguments)
        try:
            response = self._client.send(request, stream=True)
            try:
                _read_bounded(response)
            finally:
                response.close()
        except httpx.TimeoutException as exc:
            message = f"The gateway at {self._base} did not answer in time."
            raise UnavailableError(message) from exc
        except httpx.TransportError as exc:
            message = f"The gateway at {self._base} cannot be reached; is it running (`extctl up`)?"
            raise UnavailableError(message) from exc
        return response


def problem_of(response: httpx.Response) -> ProblemError | None:
    """Return the problem that a response tells, None where it tells none.

    Raises:
        UnavailableError: an error that no gateway of ours would give (a proxy's page, for example).
    """
    if response.headers.get("content-type", "").partition(";")[0].strip() != _PROBLEM_TYPE:
        if response.is_success or "x-ext-execution-id" in response.headers:
            return None
        message = f"{response.url.host} answered {response.status_code}, which is no answer of a gateway."
        raise UnavailableError(message)
    document = _object(response)
    return ProblemError(
        reason=str(document.get("reason", "")),
        detail=str(document.get("detail") or document.get("title") or "no detail"),
        status=str(response.status_code),
        request_id=str(document.get("request_id", "")),
        execution_id=response.headers.get("x-ext-execution-id", ""),
    )


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except (ValueError, RecursionError) as exc:
        message = "The gateway's answer is not JSON."
        raise UnavailableError(message) from exc
    return document if isinstance(document, dict) else {"items": document}


def _read_bounded(response: httpx.Response) -> None:
    """Read the body into the response. A service that never ends must not fill this machine's memory."""
    chunks: list[bytes] = []
    total = 0
    for chunk in response.iter_bytes():
        total += len(chunk)
        if total > _MAX_ANSWER_BYTES:
            message = f"The answer is longer than {_MAX_ANSWER_BYTES} bytes."
            raise UnavailableError(message)
        chunks.append(chunk)
    response._content = b"".join(chunks)  # noqa: SLF001 - what Response.read() does, with a bound
