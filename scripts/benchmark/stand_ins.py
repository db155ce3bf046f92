"""Who answers extensions outside of the daemon while it is measured: a web server with its name server, and a host platform.

They are those of the tests, in a process of their own: `python -m scripts.benchmark.stand_ins FOLDER` says where they are and ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.demonstration.samples import ROOT


@contextmanager
def stand_ins(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Start them; return the address of the web server as guests write it, and the settings of a daemon that reaches all of them."""
    command = [sys.executable, "-m", "scripts.benchmark.stand_ins", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            web, settings = json.loads(process.stdout.readline() if process.stdout is not None else "")
            yield web, settings
        finally:
            process.kill()


async def _serve(folder: Path) -> None:
    # Here, and not for whoever only starts them.
    from tests.fakes.probe_servers import probe_servers  # noqa: PLC0415

    async with probe_servers(folder) as served:
        print(json.dumps(served), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
