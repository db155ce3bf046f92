"""Structured logs of every process: one JSON object a line on standard error (DESIGN §10).

The attack it stops (T42, T44): personal data and secrets that wander into a log vendor's hands, and control or bidirectional characters of
foreign text that rewrite an operator's terminal. Fields whose names say that they hold such data are dropped wherever they come from,
non-ASCII leaves as escapes, and long values are cut.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO

import structlog

MAX_VALUE_CHARACTERS = 2048
_NEVER = frozenset(
    {
        "additional_fields",
        "authorization",
        "body",
        "client_name",
        "cookie",
        "email",
        "headers",
        "name_of_user",
        "password",
        "query",
        "secret",
        "token",
        "url",
        "user",
        "user_email",
        "user_name",
    }
)
CORRELATION = ("request_id", "tenant_id", "extension_id", "install_id", "version_id", "version", "content_hash", "execution_id")
"""The fields that tie lines of several processes together."""
_CORRELATION = frozenset(CORRELATION)


_correlation: ContextVar[Mapping[str, str]] = ContextVar("correlation", default=MappingProxyType({}))
"""One mapping for each context, replaced and never changed: reading it costs nothing for each field."""


def drop_private(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove fields that may hold personal data or secrets, and cut long ones."""
    for key, value in event.items():
        # SECURITY: by name, as the last step before the line is written: whoever logs such a field has made a mistake.
        if key in _NEVER or (not key.islower() and key.lower() in _NEVER):
            event[key] = "[not logged]"
        elif isinstance(value, str) and len(value) > MAX_VALUE_CHARACTERS and key != "exception":
            event[key] = value[:MAX_VALUE_CHARACTERS] + "…"
    return event


def configure_logs(service: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Set up structlog, and the standard library's logging in the same form. Call once, at start.

    Our own lines do not pass through the standard library: its record, caller search and formatter cost more than the line.

    Args:
        service: written into every line.
        level: the least level written.
        stream: instead of standard error.
    """

    def add_service(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    rendering: list[structlog.types.Processor] = [add_service, structlog.processors.format_exc_info, drop_private, _render]
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                _merge_correlation,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                stamp,
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[_merge_correlation, structlog.stdlib.add_log_level, _add_name, stamp, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        logger_factory=lambda name="": _LineLogger(name, handler),
        cache_logger_on_first_use=True,
    )


class _LineLogger:
    """Writes finished lines where the standard library's handler writes its own, never into the middle of one."""

    def __init__(self, name: str, handler: logging.StreamHandler[TextIO]) -> None:
        self.name = name
        self._handler = handler

    def msg(self, line: str) -> None:
        """Write one line. A log that takes nothing must not fail what is logged."""
        handler = self._handler
        with suppress(OSError, ValueError):
            handler.acquire()
            try:
                handler.stream.write(line + "\n")
                handler.flush()
            finally:
                handler.release()

    debug = info = warning = error = critical = exception = msg


def _merge_correlation(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in _correlation.get().items():
        event.setdefault(key, value)
    return event


def _add_name(logger: _LineLogger, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["logger"] = logger.name
    return event


# NOTE: ensure_ascii writes control and bidirectional characters as escapes.
_encode = json.JSONEncoder(ensure_ascii=True, sort_keys=True, default=str).encode


def _render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return _encode(event)


def correlate(**fields: str) -> None:
    """Add correlation fields to every line logged from now on in this context: for a task that serves one request to its end."""
    _check_correlation(fields)
    _correlation.set({**_correlation.get(), **fields})


@contextmanager
def correlated(**fields: str) -> Iterator[None]:
    """Add correlation fields to every line logged in this context (task) while the block runs."""
    _check_correlation(fields)
    token = _correlation.set({**_correlation.get(), **fields})
    try:
        yield
    finally:
        _correlation.reset(token)


def _check_correlation(fields: Mapping[str, str]) -> None:
    if not fields.keys() <= _CORRELATION:
        message = f"not correlation fields: {sorted(fields.keys() - _CORRELATION)}"
        raise ValueError(message)
