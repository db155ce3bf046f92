"""Publishing an event: into an outbox, in one transaction, with the order, depth and quota that the deliveries after it rely on.

Attack it stops (T26): what an event says about itself beyond its content (source, id, time, tenant, depth) is set here and never by the
guest; its depth comes from the row of the event that led to it, so that neither guest nor caller can lower it.

    EventRefusalError   one of the cases that the guest's world knows, with a sentence for the log

invalid         topic, content type or key break a rule
denied          it would be deeper than events may be, or the topic or the install is not (or no longer) the extension's
too-large       the data is larger than an event's may be
quota-exceeded  the install published as much as it may in this minute or on this day
internal        the registry did not answer; nothing was published, or nobody knows
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from registry.database import Database
from registry.domain.errors import RefusalError
from registry.domain.events import (
    DEFAULT_EVENT_LIMITS,
    MAX_DEPTH,
    EventError,
    EventLimits,
    checked_content_type,
    checked_key,
    other_owners,
    topic_of,
)
from registry.domain.ids import ExtensionId, InstallId, TenantId, new_id
from registry.repositories.events import EventRepository, EventUsage, NewEvent
from registry.services.turns import InstallTurns


class EventCase(StrEnum):
    """The cases of the guest's `event-error`."""

    INVALID = "invalid"
    DENIED = "denied"
    TOO_LARGE = "too-large"
    QUOTA_EXCEEDED = "quota-exceeded"
    INTERNAL = "internal"


class EventRefusalError(Exception):
    """A typed refusal. `case` goes to the guest, `detail` to the log."""

    def __init__(self, case: EventCase, detail: str) -> None:
        super().__init__(f"{case}: {detail}")
        self.case = case
        self.detail = detail


class DepthExceededError(EventRefusalError):
    """Too many events led to this one, or nobody knows how many."""

    def __init__(self) -> None:
        super().__init__(EventCase.DENIED, f"an event is at most {MAX_DEPTH} deep, and what it follows from must be known")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Who publishes, as the daemon resolved it."""

    tenant_id: TenantId
    install_id: InstallId
    extension_id: ExtensionId
    extension_name: str
    request_id: str
    follows_event: bool
    """Whether an event led to the invocation."""
    event_id: str | None
    """Which one, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventContent:
    """What the guest says."""

    topic: str
    content_type: str
    data: bytes
    key: str | None = None


class EventOutbox:
    """Takes events. Role ext_runner."""

    def __init__(self, database: Database, limits: EventLimits = DEFAULT_EVENT_LIMITS) -> None:
        self._database = database
        self._limits = limits
        self._turns = InstallTurns()

    async def publish(self, publisher: Publisher, content: EventContent) -> str:
        """Store an event and return its id. Once it returns, the event is stored and will not be stored again.

        Raises:
            EventRefusalError: see the module.
        """
        try:
            topic = topic_of(publisher.extension_name, content.topic)
            content_type, key = checked_content_type(content.content_type), checked_key(content.key)
        except EventError as error:
            raise EventRefusalError(EventCase.INVALID, str(error)) from error
        if len(content.data) > self._limits.data_bytes:
            detail = f"the data has {len(content.data)} bytes, {self._limits.data_bytes} are allowed"
            raise EventRefusalError(EventCase.TOO_LARGE, detail)
        event_id = new_id()
        turn = self._turns.of(publisher.tenant_id, publisher.install_id)
        try:
            async with turn, self._database.tenant_session(publisher.tenant_id) as session:
                events = EventRepository(session, publisher.tenant_id)
                depth = await _depth(events, publisher)
                if await events.is_any_registered(other_owners(publisher.extension_name, topic)):
                    raise EventRefusalError(EventCase.DENIED, "the topic belongs to an extension with a longer name")
                usage = await events.lock_usage(publisher.install_id)
                if usage is None:
                    raise EventRefusalError(EventCase.DENIED, "the install is gone")
                event = NewEvent(
                    event_id=event_id,
                    install_id=publisher.install_id,
                    extension_id=publisher.extension_id,
                    source=f"/extensions/{publisher.extension_name}/installs/{publisher.install_id}",
                    topic=topic,
                    ordering_key=key,
                    content_type=content_type,
                    data=content.data,
                    depth=depth,
                    cause_id=publisher.event_id,
                    request_id=publisher.request_id,
                )
                await events.add(event, self._used(usage, len(content.data)))
        except RefusalError as refusal:
            raise EventRefusalError(EventCase.INTERNAL, str(refusal)) from refusal
        return event_id

    def _used(self, usage: EventUsage, size: int) -> EventUsage:
        """Return the usage after one more event of `size` bytes.

        Raises:
            EventRefusalError: quota-exceeded.
        """
        after = EventUsage(
            last_sequence=usage.last_sequence + 1,
            minute_events=usage.minute_events + 1,
            day_events=usage.day_events + 1,
            day_bytes=usage.day_bytes + size,
        )
        limits = self._limits
        if after.minute_events > limits.per_minute:
            raise EventRefusalError(EventCase.QUOTA_EXCEEDED, f"{limits.per_minute} events a minute are allowed")
        if after.day_events > limits.per_day or after.day_bytes > limits.bytes_per_day:
            detail = f"{limits.per_day} events and {limits.bytes_per_day} bytes a day are allowed"
            raise EventRefusalError(EventCase.QUOTA_EXCEEDED, detail)
        return after


async def _depth(events: EventRepository, publisher: Publisher) -> int:
    """Return the depth of an event that is published now: one more than that of the event that led to it."""
    if not publisher.follows_event:
        return 1
    cause = None if publisher.event_id is None else await events.find_depth(publisher.event_id)
    # SECURITY: where nobody knows what led to it, it counts as the deepest; otherwise forgetting the cause would start a loop anew.
    if cause is None or cause >= MAX_DEPTH:
        raise DepthExceededError
    return cause + 1
