"""What a verb says: results on standard output, progress and warnings on standard error, and how each ending becomes an exit code."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, NoReturn, Self, TextIO

import typer

from registry.cli.rendering import visible, visible_block, visible_json
from registry.domain.errors import CATALOG, Reason, RefusalError

_QUIET_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.2
_RETRYABLE_CODES: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


class ExitCode(IntEnum):
    """What a script can tell apart."""

    OK = 0
    REFUSED = 1
    """Somebody said no, and the reason was printed."""
    USAGE = 2
    """The command line is wrong; the same as typer's own."""
    UNAVAILABLE = 3
    """Something that is needed does not answer; trying again may help."""


class UnavailableError(Exception):
    """Something that the verb needs does not answer. The message says what, and what to do."""


class UsageError(Exception):
    """The command line or a file it names cannot be used. The message says what to change."""


class ProblemError(Exception):
    """A service answered with a problem of the catalog.

    Args:
        reason: the reason as it came over the wire; maybe one that this program does not know.
        detail: the service's sentence.
        status: HTTP status or gRPC code.
        request_id: the correlation id to look for in the logs.
    """

    def __init__(self, *, reason: str, detail: str, status: str, request_id: str = "", execution_id: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.status = status
        self.request_id = request_id
        self.execution_id = execution_id

    def saying(self, detail: str) -> ProblemError:
        """Return the same problem with another sentence."""
        return ProblemError(
            reason=self.reason, detail=detail, status=self.status, request_id=self.request_id, execution_id=self.execution_id
        )

    @property
    def exit_code(self) -> ExitCode:
        """UNAVAILABLE where the catalog says that trying again may help because a service is away, else REFUSED."""
        known = self.reason in Reason.__members__
        return ExitCode.UNAVAILABLE if known and CATALOG[Reason(self.reason)].grpc_code in _RETRYABLE_CODES else ExitCode.REFUSED


def say(text: str = "") -> None:
    """Print a line of our own making (foreign parts already shown by `rendering`)."""
    typer.echo(text)


def warn(text: str) -> None:
    """Print a line to standard error."""
    typer.echo(text, err=True)


def result(document: Mapping[str, object], *, as_json: bool, text: str) -> None:
    """Print a verb's result: the document for scripts, the text for people."""
    say(visible_json(document) if as_json else text)


def end_with(error: Exception, *, as_json: bool) -> NoReturn:
    """Print what went wrong and leave with the code that fits it."""
    code, document = _describe(error)
    if as_json:
        say(visible_json({"error": document}))
    label = {ExitCode.REFUSED: "refused", ExitCode.USAGE: "error", ExitCode.UNAVAILABLE: "unavailable"}[code]
    # What services say stays on one line; our own messages may hold the end of a log, whose foreign parts are shown safely as well.
    show = visible if isinstance(error, ProblemError | RefusalError) else visible_block
    sentence = f"{label}: {show(document['detail'])}"
    if document["reason"]:
        sentence += f" [{visible(document['reason'])}]"
    for name in ("request_id", "execution_id"):
        if document.get(name):
            sentence += f" ({name.replace('_', ' ')} {visible(document[name])})"
    warn(sentence)
    raise typer.Exit(code)


def _describe(error: Exception) -> tuple[ExitCode, dict[str, str]]:
    match error:
        case ProblemError():
            described = {"reason": error.reason, "detail": error.detail, "status": error.status}
            return error.exit_code, described | {"request_id": error.request_id, "execution_id": error.execution_id}
        case RefusalError():
            code = ExitCode.UNAVAILABLE if error.row.grpc_code in _RETRYABLE_CODES else ExitCode.REFUSED
            return code, {"reason": str(error.reason), "detail": error.public_detail, "status": str(error.row.http_status)}
        case UnavailableError():
            return ExitCode.UNAVAILABLE, {"reason": "", "detail": str(error), "status": ""}
        case _:
            return ExitCode.USAGE, {"reason": "", "detail": str(error), "status": ""}


@contextmanager
def endings(*, as_json: bool) -> Iterator[None]:
    """Turn the errors that a verb expects into a sentence and an exit code; anything else is a bug and shows its traceback."""
    try:
        yield
    except (RefusalError, ProblemError, UnavailableError, UsageError) as error:
        end_with(error, as_json=as_json)


class Progress:
    """One line on standard error for work that takes longer than a second; silent when it does not.

    On a terminal the line is redrawn; elsewhere it is printed once, when the work ends.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = visible(label, limit=200)
        self._stream = sys.stderr if stream is None else stream
        self._done = 0
        self._total = 0
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._drawn = False
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def update(self, done: int, total: int) -> None:
        """Say how far the work is; units are the caller's."""
        self._done, self._total = done, total

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if time.monotonic() - self._started >= _QUIET_SECONDS:
            self._stream.write(("\r\x1b[K" if self._drawn else "") + self._line() + "\n")
            self._stream.flush()

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            if time.monotonic() - self._started >= _QUIET_SECONDS:
                self._drawn = True
                self._stream.write("\r\x1b[K" + self._line())
                self._stream.flush()

    def _line(self) -> str:
        share = f" {100 * self._done // self._total} %" if self._total else ""
        return f"{self._label}{share} ({time.monotonic() - self._started:.1f} s)"


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn a file that cannot be read or written into a usage error that names it."""
    try:
        yield
    except OSError as exc:
        message = f"{visible(str(exc.filename))}: {exc.strerror}." if exc.filename else f"{exc.strerror or exc}."
        raise UsageError(message) from exc
