"""Steps 1 and 2 of a load: may this content run or be served, as of now?

Attack it stops (T31): a daemon that starts with a warm cache maps what it verified yesterday, although the content was denied, its
signer lost the right to sign, or the trust root was replaced meanwhile. The registry is asked at every load; the stored signature
is verified again whenever who may sign, the trust root, or a day has changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry.bundles.store import BundleStore, ObjectNotFoundError, object_keys
from registry.domain.digests import ContentHash, is_content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MAX_SIGNATURE_BYTES
from registry.domain.records import AllowedSigner, LoadableBundle
from registry.flights import SingleFlight
from runnerd.artifacts.observations import VERIFIED, LoaderMetrics

_MAX_REMEMBERED = 4096


class LoadableResolver(Protocol):
    """What is asked of the registry."""

    async def loadable(self, content_hash: ContentHash) -> LoadableBundle:
        """Return who may have signed this content, or refuse it: HASH_DENIED, VERSION_NOT_FOUND, REGISTRY_UNAVAILABLE."""
        ...


class ProvenSignature(Protocol):
    """What is known about who signed what (`registry.provenance.verifier.VerifiedSignature`)."""

    @property
    def content_hash(self) -> ContentHash:
        """What was signed."""
        ...

    @property
    def identity(self) -> str:
        """Identity in the signing certificate."""
        ...


class SignatureVerifier(Protocol):
    """What is asked of `registry.provenance`."""

    def verify(self, *, content_hash: ContentHash, bundle_json: bytes, signers: Sequence[AllowedSigner]) -> ProvenSignature:
        """Verify a stored sigstore bundle against the current root and these signers, or refuse: SIGNATURE_REJECTED."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Proof that steps 1 and 2 passed a moment ago."""

    bundle: LoadableBundle
    signer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    grounds: tuple[object, ...]
    """What the verification rested on; other grounds need another verification."""
    signer: str
    until: float


class LoadAuthority:
    """Admits content hashes. Belongs to one event loop.

    Args:
        resolver: the registry; caches by itself.
        store: where the signatures lie.
        verifier: verifies them; called in a thread.
        metrics: told every verification.
        trust_generation: changes whenever the trust root or the policy of the verifier changes.
        reverify_seconds: after which a signature is verified again, whatever else.
    """

    def __init__(  # noqa: PLR0913 - the loader hands over its parts once
        self,
        *,
        resolver: LoadableResolver,
        store: BundleStore,
        verifier: SignatureVerifier,
        metrics: LoaderMetrics,
        trust_generation: Callable[[], object],
        reverify_seconds: float,
    ) -> None:
        self._resolver = resolver
        self._store = store
        self._verifier = verifier
        self._metrics = metrics
        self._trust_generation = trust_generation
        self._reverify_seconds = reverify_seconds
        self._known: OrderedDict[ContentHash, _Verified] = OrderedDict()
        self._flights: SingleFlight[tuple[object, ...], str] = SingleFlight()

    async def admit(self, content_hash: ContentHash) -> Admission:
        """Run both steps.

        1. The registry knows the content and has not revoked it.
        2. The stored signature verifies for it, against the current root, by a signer that its publisher has now.

        Raises:
            RefusalError: whatever the registry refuses; SIGNATURE_REJECTED; BUNDLE_UNAVAILABLE where the signature cannot be read.
        """
        if not is_content_hash(content_hash):
            raise RefusalError(Reason.INVALID_REQUEST, "Name the content by sha256: and 64 lower-case hexadecimal digits.")
        bundle = await self._resolver.loadable(content_hash)  # (1)
        grounds = (content_hash, bundle.publisher_id, frozenset(bundle.signers), self._trust_generation())
        known = self._known.get(content_hash)
        # SECURITY: a verification counts only on the very grounds it was made on.
        if known is not None and known.grounds == grounds and time.monotonic() < known.until:
            return Admission(bundle=bundle, signer=known.signer)
        self._known.pop(content_hash, None)
        signer = await self._flights.run(grounds, lambda: self._verify(bundle))  # (2)
        self._known[content_hash] = _Verified(grounds=grounds, signer=signer, until=time.monotonic() + self._reverify_seconds)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return Admission(bundle=bundle, signer=signer)

    async def aclose(self) -> None:
        """Stop what is being verified."""
        await self._flights.aclose()

    async def _verify(self, bundle: LoadableBundle) -> str:
        key = object_keys(bundle.content_hash).signature
        try:
            signature = await self._store.read(key, MAX_SIGNATURE_BYTES)
            proven = await asyncio.to_thread(
                self._verifier.verify, content_hash=bundle.content_hash, bundle_json=signature, signers=bundle.signers
            )
        except ObjectNotFoundError as error:
            self._metrics.verification(Reason.BUNDLE_UNAVAILABLE)
            raise RefusalError(Reason.BUNDLE_UNAVAILABLE, "The bundle's signature is missing from the store; publish it again.") from error
        except RefusalError as refusal:
            self._metrics.verification(refusal.reason)
            raise
        if proven.content_hash != bundle.content_hash:
            # SECURITY: a proof about other content is none about this.
            self._metrics.verification(Reason.SIGNATURE_REJECTED)
            raise RefusalError(Reason.SIGNATURE_REJECTED, "The signature belongs to another archive; publish the bundle again.")
        self._metrics.verification(VERIFIED)
        return proven.identity
