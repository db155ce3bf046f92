from __future__ import annotations

import logging

import pytest

from registry.services.events import DepthExceededError, EventCase, EventContent, EventRefusalError, Publisher
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.events import events_handlers
from tests.fakes.capabilities import INSTALL, grant_of, make_broker

PUBLISH = BY_NAME["extrunner:host/events", "publish"]
EVENT = {"topic": "note.added", "content_type": "text/plain", "data": b"MARKER", "key": None}


class MemoryOutbox:
    """Keeps what was published, or refuses it."""

    def __init__(self, refusal: EventRefusalError | None = None) -> None:
        self.published: list[tuple[Publisher, EventContent]] = []
        self.refusal = refusal

    async def publish(self, publisher: Publisher, content: EventContent) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.published.append((publisher, content))
        return f"event-{len(self.published)}"


async def test_the_publisher_is_who_the_daemon_resolved() -> None:
    outbox = MemoryOutbox()
    grant = grant_of("events.emit", follows_event=True, event_id="e0")
    result = await make_broker(events_handlers(outbox)).call(grant, PUBLISH, (EVENT | {"key": "k"},))
    assert (result.value, result.error) == ("event-1", None)
    ((publisher, content),) = outbox.published
    assert publisher == Publisher(
        tenant_id=grant.tenant_id,
        install_id=INSTALL,
        extension_id=grant.extension_id,
        extension_name="com.example.notes",
        request_id="r1",
        follows_event=True,
        event_id="e0",
    )
    assert content == EventContent(topic="note.added", content_type="text/plain", data=b"MARKER", key="k")


async def test_one_invocation_publishes_only_so_many_refused_ones_included() -> None:
    outbox = MemoryOutbox(EventRefusalError(EventCase.INVALID, "a rule"))
    broker, grant = make_broker(events_handlers(outbox, per_invocation=3)), grant_of("events.emit")
    assert [(await broker.call(grant, PUBLISH, (EVENT,))).error for _ in range(2)] == ["invalid"] * 2
    outbox.refusal = None
    assert (await broker.call(grant, PUBLISH, (EVENT,))).value == "event-1"
    assert [(await broker.call(grant, PUBLISH, (EVENT,))).error for _ in range(5)] == ["quota-exceeded"] * 5
    # The next invocation begins anew.
    assert (await broker.call(grant_of("events.emit"), PUBLISH, (EVENT,))).value == "event-2"
    assert len(outbox.published) == 2


@pytest.mark.parametrize("case", EventCase)
async def test_a_refusal_is_the_guests_case_and_repeats_nothing_of_the_guests(case: EventCase, caplog: pytest.LogCaptureFixture) -> None:
    broker = make_broker(events_handlers(MemoryOutbox(EventRefusalError(case, "a rule"))))
    with caplog.at_level(logging.DEBUG):
        result = await broker.call(grant_of("events.emit"), PUBLISH, (EVENT | {"topic": "MARKER", "key": "MARKER"},))
    assert (result.error, result.denial) == (case, None)
    assert "MARKER" not in caplog.text


async def test_too_deep_an_event_is_explained_in_the_record() -> None:
    result = await make_broker(events_handlers(MemoryOutbox(DepthExceededError()))).call(grant_of("events.emit"), PUBLISH, (EVENT,))
    assert result.error == "denied"
    assert result.denial is not None
    assert (result.denial["capability"], result.denial["why"]) == ("cap:events.emit", "event_depth")
