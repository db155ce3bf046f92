"""extrunner:host/events: events for other extensions of the tenant and for the platform (cap:events.emit).

Attack it stops (T26): forged topics, loops of extensions that answer each other, floods. Topic, source, id, time, tenant and depth are the
runner's; an invocation and an install publish only so many.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from registry.domain.events import MAX_DEPTH
from registry.services.events import DepthExceededError, EventCase, EventContent, EventRefusalError, Publisher
from runnerd.capabilities.arguments import optional_text, record_of
from runnerd.capabilities.denials import explain_event_depth
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.handlers import Handler, function_named, log_refusal
from runnerd.capabilities.results import HostResult, failed, succeeded

_LOG = logging.getLogger(__name__)
_PUBLISHED = "events.published"
PER_INVOCATION = 32


class Outbox(Protocol):
    """What is asked of `registry.services.events.EventOutbox`; it raises EventRefusalError."""

    async def publish(self, publisher: Publisher, content: EventContent) -> str:
        """Store an event and return its id."""
        ...


def events_handlers(outbox: Outbox, *, per_invocation: int = PER_INVOCATION) -> Mapping[int, Handler]:
    """Return the handlers, by number of the function.

    Args:
        outbox: stores events.
        per_invocation: events that one invocation may publish, those that were refused included.
    """

    async def publish(grant: InvocationGrant, arguments: tuple[object, ...]) -> HostResult:
        (event,) = arguments
        grant.used[_PUBLISHED] += 1
        if grant.used[_PUBLISHED] > per_invocation:
            return failed(EventCase.QUOTA_EXCEEDED)
        try:
            return succeeded(await outbox.publish(_publisher(grant), _content(event)))
        except DepthExceededError as refusal:
            return HostResult(error=refusal.case, denial=explain_event_depth(MAX_DEPTH))
        except EventRefusalError as refusal:
            log_refusal(_LOG, "event refused: %s", refusal, grant)
            return failed(refusal.case)

    return {function_named("extrunner:host/events", "publish").number: publish}


def _publisher(grant: InvocationGrant) -> Publisher:
    return Publisher(
        tenant_id=grant.tenant_id,
        install_id=grant.install_id,
        extension_id=grant.extension_id,
        extension_name=grant.extension_name,
        request_id=grant.request_id,
        follows_event=grant.follows_event,
        event_id=grant.event_id,
    )


def _content(argument: object) -> EventContent:
    event = record_of(argument)
    return EventContent(
        topic=str(event["topic"]),
        content_type=str(event["content_type"]),
        data=bytes(event["data"]),
        key=optional_text(event["key"]),
    )
