from __future__ import annotations

import io
import json
import time

import pytest
import typer

from registry.cli.output import ExitCode, ProblemError, Progress, UnavailableError, UsageError, end_with, endings, file_errors
from registry.domain.errors import CATALOG, Reason, RefusalError

AWAY = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("reason", list(Reason))
def test_exit_code__every_reason__is_unavailable_only_where_a_service_is_away(reason: Reason) -> None:
    expected = ExitCode.UNAVAILABLE if CATALOG[reason].grpc_code in AWAY else ExitCode.REFUSED
    assert ProblemError(reason=reason, detail="d", status="x").exit_code is expected
    with pytest.raises(typer.Exit) as ended:
        end_with(RefusalError(reason, "d"), as_json=False)
    assert ended.value.exit_code == expected


def test_exit_code__reason_of_a_newer_service__is_refused() -> None:
    assert ProblemError(reason="BRAND_NEW", detail="d", status="418").exit_code is ExitCode.REFUSED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("name a file"), 2),
        (UnavailableError("not there"), 3),
        (ProblemError(reason="HASH_DENIED", detail="no", status="403"), 1),
    ],
)
def test_endings__json__prints_one_object_and_the_sentence_apart(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, endings(as_json=True):
        raise error
    assert ended.value.exit_code == code
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["error"]["detail"] in said.err
    assert said.out.count("\n") == 1


def test_endings__hostile_detail_of_a_service__is_shown_safely(capsys: pytest.CaptureFixture[str]) -> None:
    problem = ProblemError(reason="X\x1b[2J", detail="a\nforged: line\u202e", status="400", request_id="\x07")
    with pytest.raises(typer.Exit), endings(as_json=False):
        raise problem
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_endings__bug__is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), endings(as_json=False):
        raise ZeroDivisionError


def test_file_errors__missing_file__is_a_usage_error_that_names_it() -> None:
    with pytest.raises(UsageError, match=r"no such thing.*No such file"), file_errors():
        open("/no such thing")  # noqa: SIM115, PTH123


def test_progress__short_work__says_nothing() -> None:
    stream = io.StringIO()
    with Progress("work", stream) as progress:
        progress.update(1, 2)
    assert stream.getvalue() == ""


def test_progress__long_work__says_how_far_it_came_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    now = time.monotonic()
    with Progress("work\x1b[2J", stream) as progress:
        progress.update(1, 4)
        monkeypatch.setattr("registry.cli.output.time.monotonic", lambda: now + 5)
    assert stream.getvalue().startswith("work\\x1b[2J 25 % (5.")
