"""Reads archives, each in a child whose address space may grow by 128 MiB only. A program of its own, run by the tests beside it.

python limited_reader.py ARCHIVE…      prints {path: {"outcome", "detail", "begun"}}
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from registry.bundles.unpacking import BundleFile, read_bundle
from registry.domain.errors import RefusalError

_ROOM = 128 * 1024 * 1024
_CPU_SECONDS = 60


class Sink:
    def __init__(self) -> None:
        self.begun: list[str] = []

    def begin(self, path: str, size: int) -> Callable[[bytes], object]:
        self.begun.append(path)
        return len

    def end(self, file: BundleFile) -> None:
        pass


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> dict[str, object]:
    limit = _address_space() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    sink = Sink()
    outcome, detail = "accepted", ""
    try:
        with Path(path).open("rb") as archive:
            read_bundle(archive, sink)
    except RefusalError as refusal:
        outcome, detail = refusal.reason.value, refusal.public_detail
    except BaseException as error:  # noqa: BLE001 (whatever it is, the test must hear of it)
        outcome, detail = type(error).__name__, str(error)
    return {"outcome": outcome, "detail": detail, "begun": sink.begun[:4]}


def _in_child(path: str) -> dict[str, object]:
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        os.write(sending, json.dumps(_read(path)).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer and not status else {"outcome": f"died: {status}", "detail": "", "begun": []}


if __name__ == "__main__":
    print(json.dumps({path: _in_child(path) for path in sys.argv[1:]}))
