from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.engine.journal import BATCH_BYTES, UNFINISHED_SECONDS, Journal, LogLine, cut_utf8
from runnerd.engine.limits import MAX_LINE_BYTES


class Collected:
    def __init__(self, *, max_lines: int = 256, max_bytes: int = 64 * 1024) -> None:
        self.batches: list[list[LogLine]] = []
        self.journal = Journal(self.batches.append, max_lines=max_lines, max_bytes=max_bytes)

    @property
    def messages(self) -> list[str]:
        return [line.message for batch in self.batches for line in batch]


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [
        (b"", 0, ("", False)),
        (b"abc", 3, ("abc", False)),
        (b"abcd", 3, ("abc", True)),
        ("aé".encode(), 3, ("aé", False)),
        ("aéb".encode(), 2, ("a", True)),
        ("€€".encode(), 4, ("€", True)),
        ("😀😀".encode(), 7, ("😀", True)),
        (b"\xff", 3, ("\ufffd", False)),
        (b"\xff\xff", 3, ("\ufffd", True)),
        (b"\x80" * 50, 8, ("\ufffd\ufffd", True)),
    ],
)
def test_cut__on_a_character(data: bytes, limit: int, expected: tuple[str, bool]) -> None:
    assert cut_utf8(data, limit) == expected


@given(st.binary(max_size=200), st.integers(0, 120))
def test_cut__any_bytes__is_valid_and_within_the_limit(data: bytes, limit: int) -> None:
    text, truncated = cut_utf8(data, limit)

    assert len(text.encode()) <= limit
    assert truncated or text == data.decode("utf-8", errors="replace")


@given(st.text(max_size=100), st.integers(0, 400))
def test_cut__valid_text__is_a_prefix_of_it(text: str, limit: int) -> None:
    assert text.startswith(cut_utf8(text.encode(), limit)[0])


@pytest.mark.parametrize(("count", "dropped"), [(3, 0), (4, 0), (5, 1)])
def test_lines__beyond_the_limit__are_counted(count: int, dropped: int) -> None:
    collected = Collected(max_lines=4)
    for index in range(count):
        collected.journal.write("info", str(index).encode())
    collected.journal.close()

    assert len(collected.messages) == min(count, 4)
    assert collected.journal.dropped == dropped


def test_bytes__beyond_the_limit__cut_the_last_line() -> None:
    collected = Collected(max_bytes=5)
    for text in (b"abc", b"defg", b"h"):
        collected.journal.write("info", text)
    collected.journal.close()

    assert collected.messages == ["abc", "de"]
    assert collected.journal.dropped == 1


@pytest.mark.parametrize(("size", "truncated"), [(MAX_LINE_BYTES - 1, False), (MAX_LINE_BYTES, False), (MAX_LINE_BYTES + 1, True)])
def test_line__length_limit(size: int, truncated: bool) -> None:
    collected = Collected()
    collected.journal.write("info", b"x" * size)
    collected.journal.close()

    (line,) = collected.batches[0]
    assert line.truncated is truncated
    assert len(line.message) == min(size, MAX_LINE_BYTES)


def test_batch__reaching_four_kibibytes__leaves_at_once() -> None:
    collected = Collected()
    collected.journal.write("info", b"x" * (BATCH_BYTES - 1))
    assert collected.batches == []
    collected.journal.write("info", b"x")
    assert len(collected.batches) == 1


def test_batch__waiting__is_overdue_after_fifty_milliseconds() -> None:
    collected = Collected()
    assert not collected.journal.overdue(time.monotonic() + 100)
    collected.journal.write("info", b"x")

    assert not collected.journal.overdue(time.monotonic())
    assert collected.journal.overdue(time.monotonic() + 0.06)
    collected.journal.flush(time.monotonic())
    assert not collected.journal.overdue(time.monotonic() + 0.06)


def test_stream__pieces__become_lines() -> None:
    collected = Collected()
    for piece in (b"on", b"e\r\ntwo\nth", b"ree"):
        collected.journal.stream("stdout", piece)
    collected.journal.stream("stderr", b"other")
    collected.journal.close()

    assert collected.messages == ["one", "two", "three", "other"]
    assert [line.level for batch in collected.batches for line in batch] == ["stdout", "stdout", "stdout", "stderr"]


def test_stream__unfinished_line__goes_on_after_a_second_of_silence() -> None:
    collected = Collected()
    collected.journal.stream("stdout", b"last ")
    collected.journal.flush(time.monotonic())
    assert collected.batches == []
    collected.journal.stream("stdout", b"words")
    later = time.monotonic() + UNFINISHED_SECONDS
    assert collected.journal.overdue(later)
    collected.journal.flush(later)
    assert collected.messages == ["last words"]
    assert not collected.journal.overdue(later + 100)
    collected.journal.stream("stdout", b" and more\n")
    collected.journal.close()
    assert collected.messages == ["last words", " and more"]


@given(st.text(min_size=1, max_size=30), st.integers(1, 5_000))
def test_stream__long_text_in_any_pieces__loses_and_breaks_no_character(text: str, size: int) -> None:
    text = (text.replace("\n", "").replace("\r", "") or "x") * 2_000
    text = text.encode("utf-8", "replace")[: 3 * MAX_LINE_BYTES].decode("utf-8", "ignore")
    raw = text.encode()
    collected = Collected()
    for at in range(0, len(raw), size):
        collected.journal.stream("stdout", raw[at : at + size])
    collected.journal.close()
    assert "".join(collected.messages) == text
    assert all(len(message.encode()) <= MAX_LINE_BYTES for message in collected.messages)


def test_stream__line_that_never_ends__is_cut_into_pieces() -> None:
    collected = Collected()
    for _ in range(5):
        collected.journal.stream("stdout", b"x" * MAX_LINE_BYTES)
    collected.journal.close()

    assert sum(map(len, collected.messages)) == 5 * MAX_LINE_BYTES
    assert max(map(len, collected.messages)) <= MAX_LINE_BYTES


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_stream__anything__stays_within_the_limits(pieces: list[bytes]) -> None:
    collected = Collected(max_lines=10, max_bytes=4_000)
    for piece in pieces:
        collected.journal.stream("stdout", piece)
    collected.journal.close()

    assert len(collected.messages) <= 10
    assert sum(len(message.encode()) for message in collected.messages) <= 4_000
