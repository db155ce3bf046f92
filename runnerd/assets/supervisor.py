"""The daemon's handle on the assets child: starts it, answers it, starts it again when it dies, stops it.

The listening socket belongs to the daemon, so connections wait in the kernel while a child is replaced; the daemon itself never
accepts one. The child gets two descriptors, an empty environment and no argument that is a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from registry.domain.digests import ContentHash
from registry.domain.errors import Reason, RefusalError
from runnerd.assets import headers
from runnerd.assets.catalogue import Catalogue, Resolve
from runnerd.assets.channel import MAX_OUTSTANDING, Channel, ChannelClosedError, Frame
from runnerd.children.budget import Budget
from runnerd.children.keeper import Child, ChildStartError, Keeper, steps_of
from runnerd.children.process import ChildProcess

BACKLOG = 1_024
MAX_DETAIL_CHARACTERS = 400
MAX_ANSWERS_RUNNING = 4 * MAX_OUTSTANDING
"""The child may have stopped waiting for some of them."""
FRAMES_PER_SECOND = 1_000.0
FRAMES_BURST = 4_000
"""Several times what the child's own bounds let through."""

_log = structlog.get_logger(__name__)


class AssetsStartError(ChildStartError):
    """The server did not come up; the text says why."""


@dataclass(slots=True, kw_only=True)
class _Child(Child):
    channel: Channel
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    frames: Budget = field(default_factory=lambda: Budget(per_second=FRAMES_PER_SECOND, burst=FRAMES_BURST))

    async def stop(self) -> None:
        # Answers under way end by themselves where the child has died: cancelled, they could leave a descriptor open.
        for task in self.tasks:
            task.cancel()
        await super(_Child, self).stop()


class AssetsServer:
    """Serves interface files from a process of its own.

    Args:
        host: numeric address to listen on.
        port: 0 picks one; see `port`.
        root: folder of the files, each at `<first two digits>/<sha256>`.
        resolve: tells whether a version is served now, and its files; called at most at a bounded rate.
        require_hardening: refuse to run a child in which a mandatory step of hardening failed.
        frame_ancestors: origins that may embed interfaces; without any, nobody may.
        reuse_port: several cells listen on one port.
        discard: told of a content hash of which a file is missing or altered on disk, at a bounded rate; makes the next `resolve` write
            its files again.
    """

    def __init__(  # noqa: PLR0913 - what a listener, a policy and a source need
        self,
        *,
        host: str,
        port: int,
        root: Path,
        resolve: Resolve,
        require_hardening: bool,
        frame_ancestors: tuple[str, ...] = (),
        reuse_port: bool = False,
        discard: Callable[[ContentHash], Awaitable[None]] | None = None,
    ) -> None:
        headers.frame_ancestors(frame_ancestors)
        self._address = (host, port)
        self._reuse_port = reuse_port
        self._require_hardening = require_hardening
        self._frame_ancestors = frame_ancestors
        # Links above the folder are the operator's; below it none is followed.
        self._catalogue = Catalogue(resolve=resolve, root=root.resolve(), discard=discard)
        self._corrupt_logs = Budget(per_second=1, burst=20)
        self._listening: socket.socket | None = None
        self._keeper = Keeper("assets", self._spawn)
        self.corrupt_files = 0
        """Files that were found altered and not served."""
        self.hardening: dict[str, bool] = {}
        """Step of hardening → whether it holds in the child."""

    @property
    def port(self) -> int:
        """The port that is listened on.

        Raises:
            AssetsStartError: before `start()`.
        """
        if self._listening is None:
            message = "the assets server is not started"
            raise AssetsStartError(message)
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._keeper.child is None else self._keeper.child.process.pid

    @property
    def restarts(self) -> int:
        """Children that died and were replaced."""
        return self._keeper.restarts

    @property
    def is_serving(self) -> bool:
        """Whether a child is up and accepts connections."""
        return self._keeper.is_up

    async def start(self) -> None:
        """Listen, start the child and wait until it accepts connections.

        Raises:
            AssetsStartError: the address cannot be listened on, or the child did not come up.
        """
        try:
            self._listening = _listen(*self._address, reuse_port=self._reuse_port)
        except OSError as exc:
            message = f"cannot listen on {self._address[0]} port {self._address[1]}: {exc.strerror}"
            raise AssetsStartError(message) from exc
        try:
            await self._keeper.start()
        except BaseException as exc:
            self._listening.close()
            if isinstance(exc, ChildStartError):
                raise AssetsStartError(str(exc)) from exc
            raise

    async def aclose(self) -> None:
        """Stop listening; let running answers end; leave no process behind."""
        await self._keeper.aclose()
        if self._listening is not None:
            self._listening.close()

    async def _spawn(self) -> _Child:
        listening = self._listening
        if listening is None:
            message = "the assets server is not started"
            raise AssetsStartError(message)
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            with theirs:
                descriptors = (theirs.fileno(), listening.fileno())
                process = ChildProcess(self._command(*descriptors), descriptors=descriptors, on_line=_say)
            stack.pop_all()
        ready: asyncio.Future[Frame] = loop.create_future()
        channel = Channel(
            ours,
            on_frame=lambda frame, descriptor: self._received(child, frame, descriptor),
            on_closed=lambda: child.gone(),  # noqa: PLW0108 - there is no child yet
        )
        child = _Child(process=process, channel=channel, ready=ready)
        frame = await child.wait_ready("assets")
        self.hardening = steps_of(frame.get("hardening"))
        return child

    def _command(self, control_fd: int, listen_fd: int) -> list[str]:
        command = [sys.executable, "-I", "-B", "-X", "utf8", "-m", "runnerd.assets"]
        command += ["--control-fd", str(control_fd), "--listen-fd", str(listen_fd)]
        for origin in self._frame_ancestors:
            command += ["--frame-ancestor", origin]
        return [*command, "--require-hardening"] if self._require_hardening else command

    def _received(self, child: _Child, frame: Frame, descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)  # The child has nothing to give.
        if not child.frames.take():
            # SECURITY: our child bounds itself far below this rate; this one is not our child any more.
            _log.error("assets child broke the protocol")
            child.gone()
            return
        if frame.get("op") == "ready":
            if not child.ready.done():
                child.ready.set_result(frame)
            return
        if len(child.tasks) >= MAX_ANSWERS_RUNNING:
            return  # The child says OVERLOADED to its reader when no answer comes.
        answering = self._corrupt(frame) if frame.get("op") == "corrupt" else self._answer(child, frame)
        task = asyncio.get_running_loop().create_task(answering)
        child.tasks.add(task)
        task.add_done_callback(child.tasks.discard)

    async def _answer(self, child: _Child, frame: Frame) -> None:
        number = frame.get("id") if type(frame.get("id")) is int else 0
        descriptor: int | None = None
        try:
            descriptor = await self._find(frame)
            answer: Frame = {"id": number}
        except RefusalError as refusal:
            answer = {"id": number, "reason": refusal.reason.value, "detail": refusal.public_detail[:MAX_DETAIL_CHARACTERS]}
        except Exception:  # noqa: BLE001 - one broken answer must not end the channel
            _log.exception("assets question failed")
            answer = {"id": number, "reason": Reason.INTERNAL.value, "detail": "The file cannot be served."}
        try:
            with contextlib.suppress(ChannelClosedError):
                child.channel.send(answer, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _corrupt(self, frame: Frame) -> None:
        self.corrupt_files += 1
        named = {key: str(frame.get(key))[:300] for key in ("extension", "hash", "path")}
        if self._corrupt_logs.take():
            _log.error("interface file is not what was verified", **named)
        try:
            await self._catalogue.discard(named["extension"], named["hash"])
        except Exception:  # noqa: BLE001 - the file stays refused; that it could not be written again is the operator's to see
            _log.exception("interface could not be discarded")

    async def _find(self, frame: Frame) -> int | None:
        extension, content_hash = str(frame.get("extension")), str(frame.get("hash"))
        match frame.get("op"):
            case "resolve" if frame.get("known") is True:
                await self._catalogue.find(extension, content_hash)
                return None
            case "resolve":
                return await self._catalogue.index(extension, content_hash)
            case "open":
                return await self._catalogue.open(extension, content_hash, str(frame.get("path")))
            case _:
                raise RefusalError(Reason.INVALID_REQUEST, "Unknown question.")


def _say(line: str) -> None:
    _log.warning("assets child says", line=line)


def _listen(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port)
    listening.setblocking(False)
    return listening
