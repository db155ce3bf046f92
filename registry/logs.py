"""Structured logs of every process: one JSON object a line on standard error (DESIGN §10).

The attack it stops (T42, T44): personal data and secrets that wander into a log vendor's hands, and control or bidirectional characters of
foreign text that rewrite an operator's terminal. Fields whose names say that they hold such data are dropped wherever they come from,
non-ASCII leaves as escapes, and long values are cut.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
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


def drop_private(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove fields that may hold personal data or secrets, and cut long ones."""
    for key in list(event):
        # SECURITY: by name, as the last step before the line is written: whoever logs such a field has made a mistake.
        if key.lower() in _NEVER:
            event[key] = "[not logged]"
        elif isinstance(event[key], str) and len(event[key]) > MAX_VALUE_CHARACTERS and key != "exception":
            event[key] = event[key][:MAX_VALUE_CHARACTERS] + "…"
    return event


def configure_logs(service: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Set up structlog, and the standard library's logging through it. Call once, at start.

    Args:
        service: written into every line.
        level: the least level written.
        stream: instead of standard error.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.stdlib.ExtraAdder(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )

    def add_service(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                add_service,
                structlog.processors.format_exc_info,
                drop_private,
                # NOTE: ensure_ascii writes control and bidirectional characters as escapes.
                structlog.processors.JSONRenderer(ensure_ascii=True, sort_keys=True, default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def correlate(**fields: str) -> None:
    """Add correlation fields to every line logged from now on in this context: for a task that serves one request to its end."""
    _check_correlation(fields)
    structlog.contextvars.bind_contextvars(**fields)


@contextmanager
def correlated(**fields: str) -> Iterator[None]:
    """Add correlation fields to every line logged in this context (task) while the block runs."""
    _check_correlation(fields)
    with structlog.contextvars.bound_contextvars(**fields):
        yield


def _check_correlation(fields: Mapping[str, str]) -> None:
    unknown = fields.keys() - set(CORRELATION)
    if unknown:
        message = f"not correlation fields: {sorted(unknown)}"
        raise ValueError(message)
