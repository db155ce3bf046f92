"""The events that extensions of one tenant publish, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from registry.database import Session
from registry.domain.ids import ExtensionId, InstallId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class EventUsage:
    """What an install has published, as of the transaction's time: in this minute, on this day (UTC), and ever."""

    last_sequence: int
    minute_events: int
    day_events: int
    day_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event, as it is stored."""

    event_id: str
    install_id: InstallId
    extension_id: ExtensionId
    source: str
    topic: str
    ordering_key: str | None
    content_type: str
    data: bytes
    depth: int
    cause_id: str | None
    request_id: str


_MAKE_USAGE: Final = text(
    "insert into extension_event_usage (tenant_id, install_id) values (:tenant_id, cast(:install_id as uuid)) on conflict do nothing"
)
_LOCK_USAGE: Final = text(
    """select u.last_sequence,
              case when u.minute = date_trunc('minute', now()) then u.minute_events else 0 end as minute_events,
              case when u.day = date_trunc('day', now(), 'UTC') then u.day_events else 0 end as day_events,
              case when u.day = date_trunc('day', now(), 'UTC') then u.day_bytes else 0 end as day_bytes
         from extension_event_usage u where u.tenant_id = :tenant_id and u.install_id = cast(:install_id as uuid) for update"""
)
_DEPTH: Final = text("select e.depth from extension_event e where e.tenant_id = :tenant_id and e.id = cast(:event_id as uuid)")
_OWNED: Final = text("select 1 from extension_registry r where r.name = any(cast(:names as text[])) limit 1")
_ADD: Final = text(
    """
with used as (
    update extension_event_usage u
       set last_sequence = :sequence, minute = date_trunc('minute', now()), minute_events = :minute_events,
           day = date_trunc('day', now(), 'UTC'), day_events = :day_events, day_bytes = :day_bytes
     where u.tenant_id = :tenant_id and u.install_id = cast(:install_id as uuid)
)
insert into extension_event (tenant_id, id, install_id, registry_id, sequence, source, topic, ordering_key, content_type, data, depth,
                             cause_id, request_id)
values (:tenant_id, cast(:event_id as uuid), cast(:install_id as uuid), cast(:extension_id as uuid), :sequence, :source, :topic,
        :ordering_key, :content_type, :data, :depth, cast(:cause_id as uuid), :request_id)
"""
)


class EventRepository:
    """Tables `extension_event` and `extension_event_usage` of one tenant. Role ext_runner.

    Who publishes locks the install's usage row first (`lock_usage`): events of one install are committed in the order of their sequence.
    """

    def __init__(self, session: Session, tenant_id: TenantId | str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def lock_usage(self, install_id: InstallId) -> EventUsage | None:
        """Lock and return an install's usage until the end of the transaction. None if the tenant has no such install."""
        usage = await self._usage(install_id)
        if usage is None:
            try:
                async with self._session.begin_nested():
                    await self._session.execute(_MAKE_USAGE, {"tenant_id": self._tenant_id, "install_id": install_id})
            except IntegrityError:
                return None  # The foreign key: this tenant has no such install.
            usage = await self._usage(install_id)
        return usage

    async def find_depth(self, event_id: str) -> int | None:
        """Return the depth of an event of the tenant."""
        depth = (await self._session.execute(_DEPTH, {"tenant_id": self._tenant_id, "event_id": event_id})).scalar_one_or_none()
        return None if depth is None else int(depth)

    async def is_any_registered(self, extension_names: Sequence[str]) -> bool:
        """Tell whether there is an extension of any of these names, whoever installed it."""
        return (await self._session.execute(_OWNED, {"names": list(extension_names)})).first() is not None

    async def add(self, event: NewEvent, usage: EventUsage) -> None:
        """Write an event and the usage that then holds. Only after `lock_usage`."""
        parameters: dict[str, Any] = asdict(usage)
        parameters["sequence"] = parameters.pop("last_sequence")
        await self._session.execute(_ADD, {"tenant_id": self._tenant_id} | parameters | asdict(event))

    async def _usage(self, install_id: InstallId) -> EventUsage | None:
        rows = await self._session.execute(_LOCK_USAGE, {"tenant_id": self._tenant_id, "install_id": install_id})
        row = rows.mappings().first()
        return None if row is None else EventUsage(**row)
