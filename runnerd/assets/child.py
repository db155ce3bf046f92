"""The child as a whole: what it is made of, in the order that hardening demands."""

from __future__ import annotations

import asyncio
import codecs
import logging
import resource
import socket
from dataclasses import dataclass

from runnerd.assets import headers
from runnerd.assets.app import AssetsApp
from runnerd.assets.channel import Channel, ChannelClosedError
from runnerd.assets.content import MAX_OPEN_FILES, OpenFiles
from runnerd.assets.lookup import Asker, Lookup
from runnerd.assets.paths import AssetPath
from runnerd.assets.protocol import ACCEPTS_AT_ONCE, Listener
from runnerd.worker.hardening import Step, harden

MAX_CONNECTIONS = 512
SPARE_DESCRIPTORS = 64
"""For standard streams, event loop, control channel and answers that hold a descriptor for a moment."""
GRACE_SECONDS = 5.0
LATE_CODECS = ("ascii", "latin-1", "utf-8")
"""Python imports a codec when it is first used; hardened, this process imports nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What the daemon tells its child on the command line. None of it is secret."""

    control_fd: int
    listen_fd: int
    frame_ancestors: tuple[str, ...]
    require_hardening: bool


async def serve(settings: ChildSettings) -> None:
    """Serve until the daemon closes the control channel or dies.

    1. take over the inherited descriptors; 2. make everything that needs more than the hardened process may do; 3. harden;
    4. tell the daemon; 5. accept connections.
    """
    # Step 1.
    control = socket.socket(fileno=settings.control_fd)
    listening = socket.socket(fileno=settings.listen_fd)
    # Step 2.
    logging.getLogger("uvicorn").disabled = True
    logging.getLogger("uvicorn.error").disabled = True  # What strangers send must not write the operator's log.
    ancestors = headers.frame_ancestors(settings.frame_ancestors)
    closed = asyncio.Event()
    asker = Asker()
    channel = Channel(control, on_frame=asker.answered, on_closed=closed.set)
    asker.connect(channel.send)
    open_files, connections = _shares()
    app = AssetsApp(
        lookup=Lookup(asker),
        files=OpenFiles(limit=open_files),
        frame_ancestors=ancestors,
        report_corrupt=lambda asset: _report_corrupt(channel, asset),
    )
    listener = Listener(listening, app, max_connections=connections, frame_ancestors=ancestors)
    # Step 3.
    steps = harden_child(require=settings.require_hardening)
    # Step 4.
    channel.send({"op": "ready", "hardening": steps})
    # Step 5.
    listener.start()
    await closed.wait()
    await listener.aclose(grace_seconds=GRACE_SECONDS)


def harden_child(*, require: bool) -> dict[str, bool]:
    """Give up everything that serving does not need; return each step and whether it is in force.

    Afterwards no path opens: files arrive as descriptors.

    Raises:
        HardeningError: a mandatory step failed and `require` says that this is fatal.
    """
    for name in LATE_CODECS:
        codecs.lookup(name)
    report = harden("assets", require=require)
    return {step.value: report.holds(step) for step in Step}


def _shares() -> tuple[int, int]:
    """Divide the descriptors that this process may have among open files and connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = max(8, soft - SPARE_DESCRIPTORS - ACCEPTS_AT_ONCE)
    files = min(MAX_OPEN_FILES, available // 4)
    return files, min(MAX_CONNECTIONS, available - files)


def _report_corrupt(channel: Channel, asset: AssetPath) -> None:
    try:
        channel.send({"op": "corrupt", "extension": asset.extension_id, "hash": asset.content_hash, "path": asset.path})
    except ChannelClosedError:
        _log.warning("a file is not what was verified, and the daemon does not listen")
