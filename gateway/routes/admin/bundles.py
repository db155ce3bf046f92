"""Publishing: `POST /api/admin/v1/bundles`, one request that carries the signature and the archive, streamed.

    content-type: application/vnd.extrunner.signed-bundle
    x-extrunner-signature-length: 9876
    body: 9876 bytes of the sigstore bundle (JSON), then the archive (bundle.tar.zst) to the end

The signature goes first and in the body: it is 10 KiB and may be 64 KiB, too large for a header field that proxies pass, and multipart
would need a parser that buffers. With curl: `cat bundle.sigstore.json bundle.tar.zst | curl --data-binary @- …`.

Attacks this stops: an archive held in memory (T24: it streams into the publishing service, which counts bytes, time and publications);
a signature length that lies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Final, Protocol

from fastapi import APIRouter, Header, Request
from starlette.requests import ClientDisconnect

from gateway.auth import PUBLISH
from gateway.problems import documented
from gateway.routes.admin.access import CallerOf
from gateway.routes.admin.models import PublishedBundle
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MAX_SIGNATURE_BYTES
from registry.services.publishing import PublishedVersion

MEDIA_TYPE: Final = "application/vnd.extrunner.signed-bundle"

_PROBLEMS = (
    Reason.UNAUTHENTICATED,
    Reason.PERMISSION_MISSING,
    Reason.INVALID_REQUEST,
    Reason.INVALID_BUNDLE,
    Reason.INVALID_MANIFEST,
    Reason.COMPILE_REJECTED,
    Reason.SIGNATURE_REJECTED,
    Reason.PUBLISHER_MISMATCH,
    Reason.HASH_DENIED,
    Reason.NOT_FOUND,
    Reason.VERSION_EXISTS,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.DEADLINE_EXCEEDED,
    Reason.OVERLOADED,
    Reason.BUNDLE_CORRUPT,
    Reason.BUNDLE_UNAVAILABLE,
    Reason.REGISTRY_UNAVAILABLE,
    Reason.INTERNAL,
)
_SCHEMA = {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}


class Publishes(Protocol):
    """The publishing service."""

    async def publish(self, archive: AsyncIterator[bytes], signature: bytes, *, actor: str) -> PublishedVersion:
        """Verify and publish; nothing is visible before everything holds.

        Raises:
            RefusalError: see the service.
        """


def build_router(publishing: Publishes) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/bundles", tags=["bundles"])

    @router.post("", status_code=201, responses=documented(*_PROBLEMS), openapi_extra=_SCHEMA)
    async def publish_bundle(
        caller: CallerOf,
        request: Request,
        signature_length: Annotated[
            int, Header(alias="x-extrunner-signature-length", ge=1, le=MAX_SIGNATURE_BYTES, description="Bytes of the signature.")
        ],
    ) -> PublishedBundle:
        """Publish a signed bundle: the signature, then the archive. Role ext:publish."""
        caller.require(PUBLISH)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise RefusalError(Reason.INVALID_REQUEST, f"Send the signature and the archive as {MEDIA_TYPE}.")
        body = _parts(request)
        signature, rest = await _split(body, signature_length)
        published = await publishing.publish(_archive(rest, body), signature, actor=caller.actor)
        return PublishedBundle.model_validate(published)

    return router


async def _parts(request: Request) -> AsyncIterator[bytes]:
    try:
        async for part in request.stream():
            if part:
                yield part
    except ClientDisconnect as error:
        raise RefusalError(Reason.INVALID_REQUEST, "The connection ended before the bundle did.") from error


async def _split(body: AsyncIterator[bytes], length: int) -> tuple[bytes, bytes]:
    """Return the first `length` bytes, and what came along behind them."""
    head = bytearray()
    async for part in body:
        head += part
        if len(head) >= length:
            return bytes(head[:length]), bytes(head[length:])
    raise RefusalError(Reason.INVALID_REQUEST, "The body is shorter than x-extrunner-signature-length says.")


async def _archive(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for part in rest:
        yield part
