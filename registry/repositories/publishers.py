"""Publishers and who may sign for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from registry.database import Session
from registry.domain.ids import PublisherId, new_id
from registry.domain.records import AllowedSigner
from registry.models import ExtensionPublisher, ExtensionPublisherIdentity
from registry.repositories.searchable import text_or_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherView:
    """One publisher with its signers."""

    publisher_id: PublisherId
    name: str
    created_at: datetime
    signers: tuple[AllowedSigner, ...]


class PublisherRepository:
    """Global tables `extension_publisher`, `extension_publisher_identity`. Writing needs role ext_admin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def add(self, name: str, *, actor: str) -> bool:
        """Create a publisher. Tell whether the name was free."""
        statement = insert(ExtensionPublisher).values(id=new_id(), name=name, created_by=actor)
        added = await self._session.execute(statement.on_conflict_do_nothing().returning(col(ExtensionPublisher.id)))
        return added.first() is not None

    async def add_signer(self, publisher_id: PublisherId, signer: AllowedSigner, *, actor: str) -> bool:
        """Allow an identity to sign. Tell whether it was not allowed before."""
        statement = insert(ExtensionPublisherIdentity).values(
            id=new_id(),
            publisher_id=publisher_id,
            trust_domain=signer.trust_domain,
            issuer=signer.issuer,
            identity=signer.identity,
            created_by=actor,
        )
        added = await self._session.execute(statement.on_conflict_do_nothing().returning(col(ExtensionPublisherIdentity.id)))
        return added.first() is not None

    async def find(self, name: str) -> PublisherView | None:
        """Return the publisher of that name."""
        table = ExtensionPublisher
        statement = select(col(table.id), col(table.name), col(table.created_at)).where(col(table.name) == text_or_nothing(name))
        row = (await self._session.execute(statement)).first()
        if row is None:
            return None
        signers = await self._signers([row[0]])
        return PublisherView(publisher_id=PublisherId(row[0]), name=row[1], created_at=row[2], signers=signers.get(row[0], ()))

    async def list_publishers(self, *, limit: int, after: str | None) -> tuple[PublisherView, ...]:
        """Return publishers by name, beginning after `after`."""
        table = ExtensionPublisher
        statement = select(col(table.id), col(table.name), col(table.created_at)).order_by(col(table.name)).limit(limit)
        if after is not None:
            statement = statement.where(col(table.name) > text_or_nothing(after))
        rows = (await self._session.execute(statement)).all()
        signers = await self._signers([row[0] for row in rows])
        return tuple(
            PublisherView(publisher_id=PublisherId(row[0]), name=row[1], created_at=row[2], signers=signers.get(row[0], ())) for row in rows
        )

    async def _signers(self, publisher_ids: list[str]) -> dict[str, tuple[AllowedSigner, ...]]:
        table = ExtensionPublisherIdentity
        statement = (
            select(col(table.publisher_id), col(table.trust_domain), col(table.issuer), col(table.identity))
            .where(col(table.publisher_id).in_(publisher_ids))
            .order_by(col(table.created_at), col(table.id))
        )
        found: dict[str, tuple[AllowedSigner, ...]] = {}
        for publisher_id, trust_domain, issuer, identity in await self._session.execute(statement):
            signer = AllowedSigner(trust_domain=trust_domain, issuer=issuer, identity=identity)
            found[publisher_id] = (*found.get(publisher_id, ()), signer)
        return found
