"""Publishers: made by operators, with the exact identities that may sign for them."""

from __future__ import annotations

import re
from typing import Final

from registry.database import Database
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import is_publisher_name
from registry.domain.records import AllowedSigner
from registry.repositories.audit import AuditRepository
from registry.repositories.publishers import PublisherRepository, PublisherView
from registry.services.pages import checked_limit, decode_cursor, encode_cursor

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_MAX_SIGNER_CHARACTERS: Final = 500
_MAX_SIGNERS: Final = 32


class PublisherService:
    """Creates publishers and their signers; every act leaves an audit row. Needs role ext_admin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, actor: str) -> PublisherView:
        """Create a publisher without signers.

        Args:
            name: see `registry.domain.ids.is_publisher_name`.
            actor: who asks, for the audit log.

        Raises:
            RefusalError: INVALID_REQUEST, ALREADY_EXISTS, REGISTRY_UNAVAILABLE.
        """
        if not is_publisher_name(name):
            detail = 'The publisher name must be 1 to 64 of a-z, 0-9, "." and "-", with a letter or digit at both ends, and not an id.'
            raise RefusalError(Reason.INVALID_REQUEST, detail)
        async with self._database.session() as session:
            publishers = PublisherRepository(session)
            if not await publishers.add(name, actor=actor):
                raise RefusalError(Reason.ALREADY_EXISTS, "There is a publisher of that name; choose another.")
            await AuditRepository(session).record(actor=actor, action="publisher.create", subject=name)
            return await _get(publishers, name)

    async def add_signer(self, publisher_name: str, signer: AllowedSigner, actor: str) -> PublisherView:
        """Allow one exact identity to sign for a publisher. Allowing it again changes nothing.

        Raises:
            RefusalError: NOT_FOUND (publisher), INVALID_REQUEST, REGISTRY_UNAVAILABLE.
        """
        _check_signer(signer)
        async with self._database.session() as session:
            publishers = PublisherRepository(session)
            publisher = await _get(publishers, publisher_name)
            if signer not in publisher.signers and len(publisher.signers) >= _MAX_SIGNERS:
                raise RefusalError(Reason.INVALID_REQUEST, f"A publisher has at most {_MAX_SIGNERS} signers.")
            if await publishers.add_signer(publisher.publisher_id, signer, actor=actor):
                detail = {"trust_domain": signer.trust_domain, "issuer": signer.issuer, "identity": signer.identity}
                await AuditRepository(session).record(actor=actor, action="publisher.add_signer", subject=publisher_name, detail=detail)
            return await _get(publishers, publisher_name)

    async def get(self, name: str) -> PublisherView:
        """Return a publisher.

        Raises:
            RefusalError: NOT_FOUND, REGISTRY_UNAVAILABLE.
        """
        async with self._database.session() as session:
            return await _get(PublisherRepository(session), name)

    async def list(self, *, limit: int = 50, cursor: str | None = None) -> tuple[tuple[PublisherView, ...], str | None]:
        """Return a page of publishers by name, and the cursor of the next one.

        Raises:
            RefusalError: INVALID_REQUEST (cursor, limit), REGISTRY_UNAVAILABLE.
        """
        after = None if cursor is None else decode_cursor(cursor, 1)[0]
        async with self._database.session() as session:
            found = await PublisherRepository(session).list_publishers(limit=checked_limit(limit) + 1, after=after)
        return found[:limit], encode_cursor(found[limit - 1].name) if len(found) > limit else None


async def _get(publishers: PublisherRepository, name: str) -> PublisherView:
    publisher = await publishers.find(name)
    if publisher is None:
        raise RefusalError(Reason.NOT_FOUND, "There is no such publisher; check the name.")
    return publisher


def _check_signer(signer: AllowedSigner) -> None:
    # SECURITY: exact identities only. A pattern or an empty issuer would let others sign.
    for name, value in (("issuer", signer.issuer), ("identity", signer.identity)):
        if not value or len(value) > _MAX_SIGNER_CHARACTERS or not value.isprintable() or value != value.strip() or "*" in value:
            raise RefusalError(Reason.INVALID_REQUEST, f"The signer's {name} must be exact: printable, no wildcard, no space around it.")
    if _TRUST_DOMAIN.match(signer.trust_domain) is None:
        raise RefusalError(Reason.INVALID_REQUEST, "The trust domain must be the name of a configured one, such as production.")
