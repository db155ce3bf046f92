"""alga:extension/http: requests of guests to the hosts of their list (cap:http.fetch).

Attacks it stops: a header or method that makes one request two (CR, LF, NUL), a Host or Transfer-Encoding of the guest's, a request to what
is on nobody's list, and more requests or bytes than one invocation may have. The request itself leaves from another process
(`runnerd.egress`), which resolves the name and judges the addresses (T11).
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from registry.domain.headers import HOP_BY_HOP, MAX_HEADER_BYTES, MAX_HEADERS
from registry.domain.limits import MIB
from runnerd.capabilities.arguments import record_of
from runnerd.capabilities.bound_secrets import SecretOpener, UnreadableAnswerError, UnusableSecretError, fill, scrub
from runnerd.capabilities.egress_policy import EgressCeiling, decide, explain, generation_of
from runnerd.capabilities.grants import REQUEST_BYTES, RESPONSE_BYTES, InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named
from runnerd.capabilities.outgoing import Egress, EgressError, Failure, OutgoingRequest
from runnerd.capabilities.results import HostResult, failed
from runnerd.capabilities.urls import Target, UrlError, parse_url
from runnerd.telemetry.metrics import Metrics

_LOG = logging.getLogger(__name__)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUESTS: Final = "egress_requests"
"""Word of `InvocationGrant.used`."""
_OURS: Final = HOP_BY_HOP | {"host", "content-length", "expect", "http2-settings"}
"""Request headers that a guest's request does not decide about: dropped, since toolchains add some of them by themselves."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}\Z")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*\Z")
_INVALID, _NOT_ALLOWED, _TRANSPORT, _INTERNAL = "invalid-url", "not-allowed", "transport", "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What one invocation may have (DESIGN §7)."""

    requests: int = 32
    request_bytes: int = 10 * MIB
    response_bytes: int = 10 * MIB
    seconds: float = 10.0
    """Of one request, where the invocation has more time left."""


class RefusedRequestError(ValueError):
    """A method or header that is not sent; the text says why and repeats nothing of it."""


def http_handlers(
    egress: Egress, *, ceiling: EgressCeiling, limits: FetchLimits, metrics: Metrics, secrets: SecretOpener | None = None
) -> Mapping[int, Handler]:
    """Return the handler, by number of the function. Without `secrets`, requests that use a bound one are refused."""
    fetcher = _Fetcher(egress, ceiling, limits, metrics, secrets)
    return {function_named("alga:extension/http", "fetch").number: fetcher.fetch}


class _Fetcher:
    def __init__(self, egress: Egress, ceiling: EgressCeiling, limits: FetchLimits, metrics: Metrics, secrets: SecretOpener | None) -> None:
        self._secrets = secrets
        self._egress = egress
        self._ceiling = ceiling
        self._limits = limits
        self._metrics = metrics

    async def fetch(self, grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        """Answer one call.

        1. The request is one in every reading.
        2. The host is on the lists, by name; nothing was looked up so far.
        3. Bound secrets are put in; what comes of it is still a request as in 1.
        4. There are requests and bytes left for it, and it leaves from the egress process.
        5. What it used is counted, whatever came of it; what was put in is taken out of the answer.
        """
        method, url, headers, body = _parts(arguments)
        try:
            target = parse_url(url)  # (1)
            method = checked_method(method)
            sent = checked_headers(headers)
        except (UrlError, RefusedRequestError) as error:
            return self._invalid(grant, error)
        decision = decide(target, grant.egress, self._ceiling, datetime.now(UTC))  # (2)
        if not decision.allowed:
            self._metrics.egress_request(decision.result)
            return HostResult(error=_NOT_ALLOWED, denial=decision.denial)
        try:
            filled = await fill(self._secrets, grant, target, sent)  # (3)
            # SECURITY: a placeholder is short and may be written a thousand times; the values are bounded as what a guest writes itself.
            checked_headers(filled.headers)
        except RefusedRequestError as error:
            return self._invalid(grant, error)
        except UnusableSecretError as error:
            self._metrics.egress_request("secret")
            self._log(grant, f"a bound secret cannot be used: {error}")
            change = f"An administrator of the tenant sets the secret that is bound to {target.host}, or ends the binding."
            return HostResult(error=_NOT_ALLOWED, denial=explain("secret_unusable", change))
        over = self._take(grant, size=_size(filled.headers) + len(target.path) + len(body or b""))  # (4)
        if over is not None:
            return over
        request = OutgoingRequest(
            tenant_id=grant.tenant_id,
            install_id=grant.install_id,
            generation=generation_of(grant.egress, grant.version_id, self._ceiling),
            method=method,
            target=target,
            headers=filled.headers,
            body=body,
            seconds=min(self._limits.seconds, grant.deadline - time.monotonic()),
            response_bytes=self._limits.response_bytes - grant.used[RESPONSE_BYTES],
            received=functools.partial(_count, grant),  # (5)
        )
        try:
            answer = await self._egress.fetch(request)
        except EgressError as error:
            return self._failed(grant, target, error)
        try:
            answer = await scrub(answer, filled.values)
        except UnreadableAnswerError as error:
            return self._end(Failure.PROTOCOL, _TRANSPORT, grant, str(error))
        self._metrics.egress_request(decision.result)
        fields = [{"name": name, "value": value} for name, value in answer.headers]
        return HostResult(value={"status": answer.status, "headers": fields, "body": answer.body}, denial=decision.denial)

    def _take(self, grant: InvocationGrant, *, size: int) -> HostResult | None:
        """Count a request that is about to leave, or say which limit stands in its way."""
        used, limits = grant.used, self._limits
        for limit, most, wanted in (
            ("requests", limits.requests, used[REQUESTS] + 1),
            ("request bytes", limits.request_bytes, used[REQUEST_BYTES] + size),
            ("response bytes", limits.response_bytes, used[RESPONSE_BYTES] + 1),
        ):
            if wanted > most:
                return self._over(limit, most)
        used[REQUESTS] += 1
        used[REQUEST_BYTES] += size
        return None

    def _over(self, limit: str, most: int) -> HostResult:
        self._metrics.egress_request("limit")
        change = f"One invocation may have {most} {limit}: the author spreads the work over several, or the operator allows more."
        return HostResult(error=_NOT_ALLOWED, denial=explain("egress_limit", change))

    def _failed(self, grant: InvocationGrant, target: Target, error: EgressError) -> HostResult:
        match error.failure:
            case Failure.RESPONSE_SIZE:
                return self._over("response bytes", self._limits.response_bytes)
            case Failure.ADDRESS:
                # The address is for the operator's log: a tenant must not map the network with it.
                self._log(grant, str(error))
                self._metrics.egress_request(error.failure)
                change = f"Nothing a tenant can change: {target.host} leads to an address that this runner does not connect to."
                return HostResult(error=_NOT_ALLOWED, denial=explain("address_refused", change))
            case Failure.INTERNAL:
                return self._end(error.failure, _INTERNAL, grant, str(error))
            case _:
                return self._end(error.failure, _TRANSPORT, grant, str(error))

    def _invalid(self, grant: InvocationGrant, error: ValueError) -> HostResult:
        self._metrics.egress_request("invalid")
        # A guest brings it about as often as it makes host calls.
        self._log(grant, str(error), level=logging.DEBUG)
        return failed(_INVALID)

    def _end(self, result: str, case: str, grant: InvocationGrant, detail: str) -> HostResult:
        self._metrics.egress_request(result)
        self._log(grant, detail)
        return failed(case)

    def _log(self, grant: InvocationGrant, detail: str, *, level: int = logging.INFO) -> None:
        # SECURITY: what a server sent may stand in it, and a bound host was sent a value (T33).
        _LOG.log(level, "fetch failed: %s", grant.revealed.hide(detail), extra=grant.log_fields)


def _count(grant: InvocationGrant, received: int) -> None:
    grant.used[RESPONSE_BYTES] += received


def checked_method(method: str) -> str:
    """Return the method in upper case.

    Raises:
        RefusedRequestError: it is none that is sent.
    """
    name = method.upper()
    if name not in METHODS or not method.isascii():
        message = "the method is not sent"
        raise RefusedRequestError(message)
    return name


def checked_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers that are sent, names in lower case and values without blanks around them, in order.

    Raises:
        RefusedRequestError: one of them could end the headers or be read in two ways, or they are too many or too long.
    """
    sent: list[tuple[str, str]] = []
    for name, value in headers:
        if _TOKEN.match(name) is None:
            message = "a header's name is none"
            raise RefusedRequestError(message)
        # SECURITY: CR, LF and NUL would end the header where the guest likes.
        if _VALUE.match(value) is None:
            message = "a header's value holds a control character"
            raise RefusedRequestError(message)
        lower = name.lower()
        if lower not in _OURS and not lower.startswith("proxy-"):
            sent.append((lower, value.strip(" \t")))
    if len(sent) > MAX_HEADERS or _size(sent) > MAX_HEADER_BYTES:
        message = f"there are more than {MAX_HEADERS} headers, or {MAX_HEADER_BYTES} bytes of them"
        raise RefusedRequestError(message)
    return tuple(sent)


def _size(headers: Iterable[tuple[str, str]]) -> int:
    return sum(len(name) + len(value.encode()) for name, value in headers)


def _parts(arguments: tuple[object, ...]) -> tuple[str, str, list[tuple[str, str]], bytes | None]:
    request = record_of(*arguments)
    headers = [(str(header["name"]), str(header["value"])) for header in request["headers"]]
    body = request["body"]
    return str(request["method"]), str(request["url"]), headers, None if body is None else bytes(body)
