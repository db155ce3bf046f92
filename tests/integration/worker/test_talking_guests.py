"""What guests say on every channel becomes lines of their call: whole, in order, within the limits, also where they are cut off."""

from __future__ import annotations

import asyncio
import struct

import pytest

from runnerd.engine.limits import MAX_LINE_BYTES
from tests.fakes.worker_driver import WorkerDriver

SPIN, TRAP = b"\x04\0\0", b"\x05\0\0"


def say(kind: int, text: bytes) -> bytes:
    return struct.pack("<BH", kind, len(text)) + text


def out(text: bytes) -> bytes:
    return say(1, text)


def err(text: bytes) -> bytes:
    return say(2, text)


def warn(text: bytes) -> bytes:
    return say(3, text)


async def said(worker: WorkerDriver, body: bytes, **limits: int) -> list[tuple[str, str]]:
    ended = await worker.call("talk", body=body, **limits)
    return [(line.level, line.message) for line in ended.lines]


async def test_channels__interleaved__keep_their_order(worker: WorkerDriver) -> None:
    body = out(b"one\n") + warn(b"two") + err(b"three\n") + out(b"four\nfi") + err(b"si") + out(b"ve\n") + err(b"x\n") + warn(b"seven")
    assert await said(worker, body) == [
        ("stdout", "one"),
        ("warn", "two"),
        ("stderr", "three"),
        ("stdout", "four"),
        ("stdout", "five"),
        ("stderr", "six"),
        ("warn", "seven"),
    ]


@pytest.mark.parametrize("end", [b"", TRAP])
async def test_output__without_a_line_break__is_a_line_at_the_end(worker: WorkerDriver, end: bytes) -> None:
    assert await said(worker, out(b"out") + err(b"err") + end) == [("stdout", "out"), ("stderr", "err")]


async def test_output__without_a_line_break__leaves_while_the_guest_runs(worker: WorkerDriver) -> None:
    """Whoever kills this worker now has the last words already."""
    call = await worker.begin("talk", body=out(b"last words") + SPIN, wall_time_us=30_000_000, cpu_time_us=30_000_000)
    await asyncio.wait_for(worker.line_arrived.wait(), 30)
    await worker.cancel(call)
    assert [(line.level, line.message) for line in (await worker.end_of(call)).lines] == [("stdout", "last words")]


async def test_output__that_is_no_utf8_or_rewrites_terminals__is_text(worker: WorkerDriver) -> None:
    body = out(b"\xff\xfe\x80\n") + err(b"a\0b\x1b[2J\r\n") + out("ä€😀\n".encode()) + out(b"\xf0\x9f\n")
    assert await said(worker, body) == [
        ("stdout", "\ufffd" * 3),
        ("stderr", "a\0b\x1b[2J"),
        ("stdout", "ä€😀"),
        ("stdout", "\ufffd"),
    ]


async def test_line__that_never_ends__is_cut_between_characters(worker: WorkerDriver) -> None:
    text = "x" + "€" * (2 * MAX_LINE_BYTES // 3)
    raw = text.encode()
    body = b"".join(out(raw[at : at + 4096]) for at in range(0, len(raw), 4096))
    lines = await said(worker, body)
    assert "".join(message for _, message in lines) == text
    assert max(len(message.encode()) for _, message in lines) <= MAX_LINE_BYTES


async def test_limits__count_every_channel_and_say_what_is_missing(worker: WorkerDriver) -> None:
    body = (out(b"a\n") + err(b"b\n") + warn(b"c")) * 10
    ended = await worker.call("talk", body=body, log_lines=5)
    assert [line.message for line in ended.lines] == ["a", "b", "c", "a", "b"]
    assert ended.done.log_lines_dropped == 25
    ended = await worker.call("talk", body=out(b"12345") + out(b"6789\n") + warn("€€".encode()), log_bytes=13)
    assert [(line.message, line.truncated) for line in ended.lines] == [("123456789", False), ("€", True)]
