from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.artifacts.compile_report import (
    MAX_MESSAGE_CHARACTERS,
    CompileReport,
    CompileReportError,
    CompileVerdict,
    printable,
    read_report,
)

REPORT = CompileReport(
    verdict=CompileVerdict.COMPILED, component_sha256="a" * 64, engine_fingerprint="f" * 64, memories=1, artifact_bytes=100
)


def test_a_report_survives_the_pipe() -> None:
    assert read_report(REPORT.to_json()) == REPORT
    rejected = CompileReport(verdict=CompileVerdict.REJECTED, message="too large")
    assert read_report(rejected.to_json()) == rejected


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "signed"},
        {"verdict": None},
        {"message": 1},
        {"component_sha256": "A" * 64},
        {"component_sha256": None},
        {"engine_fingerprint": "f" * 129},
        {"bridge_applied": 1},
        {"memories": -1},
        {"memories": 1.0},
        {"memories": True},
        {"artifact_bytes": 1 << 41},
        {"further": 1},
    ],
)
def test_what_is_no_report_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CompileReportError):
        read_report(json.dumps(json.loads(REPORT.to_json()) | changes).encode())


@given(st.one_of(st.binary(max_size=100), st.sampled_from([b"[" * 5000, b"null", b"{}", b"[]", b'"x"', b"NaN"])))
def test_garbage_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(CompileReportError):
        read_report(data)


def test_a_missing_field_is_refused() -> None:
    parsed = json.loads(REPORT.to_json())
    del parsed["memories"]
    with pytest.raises(CompileReportError):
        read_report(json.dumps(parsed).encode())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand  more", "two lines and more"),
        ("\x1b[31mred\x1b[0m\x00", "[31mred[0m"),
        ("\u202eevil\u2066", "evil"),
        ("lone \ud800 half", "lone half"),
        ("x" * 10_000, "x" * MAX_MESSAGE_CHARACTERS),
    ],
)
def test_a_message_is_shown_as_one_safe_line(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_no_message_keeps_a_control_character(text: str) -> None:
    assert all(character.isprintable() for character in printable(text).replace("\u00a0", " "))
