"""The supervisor of several cells: starts them, starts again what died, passes orders on, and is the one address that operators ask.

It runs no foreign code, opens no secret and no database, and reads nothing from outside but its operations listener. A cell is
the daemon of `runnerd.app`, with its share of every limit. Cells die with the supervisor (parent-death signal), and everything of a
cell with it, so nothing is left whatever is killed.

The first cell starts alone: what exists once on a machine (key file, cache folders) is there when the others come. It is also the one
that serves the interface files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from runnerd.cells.channel import Channel
from runnerd.cells.commands import Commands
from runnerd.cells.exposition import LABEL, Merged
from runnerd.cells.ports import reserve
from runnerd.config import Cell, RunnerdSettings, host_of, port_of
from runnerd.http.ops import OpsApp, OpsServer

BACKOFF_FIRST_SECONDS: Final = 0.2
BACKOFF_LAST_SECONDS: Final = 30.0
STABLE_SECONDS: Final = 60.0
"""A cell that served this long was healthy: the next restart is quick again."""
ASK_SECONDS: Final = 2.0
"""Of one question to a cell: what a scrape or a probe waits for at most."""
WATCH_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 30.0
"""A cell whose loop answers nothing for this long is replaced."""
GONE_SECONDS: Final = 10.0
"""A cell that has closed its end of the channel is about to exit; one that still runs after this is replaced."""
STOP_MARGIN_SECONDS: Final = 15.0
"""Beyond the drain: until workers, children and listeners of a cell have ended."""

EXIT_NOT_STARTED: Final = 1

_log = structlog.get_logger(__name__)


class CellStartError(Exception):
    """A cell ended before it had ever served.

    Args:
        status: its exit status; its own log lines say why.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"a cell could not start (exit status {status})")
        self.status = status


@dataclass(slots=True, eq=False)
class _Member:
    """One cell, through all its processes."""

    cell: Cell
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    serving: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Ports of the first process that served."""
    is_serving: bool = False


class Supervisor:
    """Several cells of one daemon. Belongs to one event loop, on the main thread: the cells die with the thread that started them.

    Args:
        settings: of the whole daemon.
        cells: how many.
        command: of a cell; tests give another one. What a cell needs to know is appended.
    """

    def __init__(self, settings: RunnerdSettings, cells: int, *, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._command = [*(command or (sys.executable, "-I", "-m", "runnerd"))]
        self._members = [_Member(Cell(index=index, count=cells)) for index in range(cells)]
        self._held: socket.socket | None = None
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._registry = CollectorRegistry(auto_describe=True)
        self._cells = Gauge("extrunner_cells", "Cells that serve.", registry=self._registry)
        self._wanted = Gauge("extrunner_cells_configured", "Cells that there should be.", registry=self._registry)
        self._restarts = Counter("extrunner_cell_restarts", "Cells that died and were started again.", (LABEL,), registry=self._registry)
        self._wanted.set(cells)
        for member in self._members:
            self._restarts.labels(str(member.cell.index))

    async def run(self) -> None:
        """Run the cells until the process is told to stop, and until all of them have ended.

        Raises:
            CellStartError: one of them cannot start; the others have ended, too.
            OSError: an address cannot be had.
        """
        commands = Commands()
        with commands.from_signals():
            try:
                await self._run(commands)
            except asyncio.CancelledError:
                if not commands.interrupted:
                    raise
            finally:
                await self._end()
            _log.info("stopped")

    async def _run(self, commands: Commands) -> None:
        settings = self._settings
        self._held = reserve(host_of(settings.grpc.address), port_of(settings.grpc.address))
        ops = OpsServer(
            OpsApp(render_metrics=self._render, is_ready=self._is_ready, tokens=settings.ops.read_tokens()),
            host=host_of(settings.ops.address),
            port=port_of(settings.ops.address),
        )
        ops_port = await ops.start()
        try:
            ports = await self._start()
            _log.info("serving", grpc_port=self._port, ops_port=ops_port, assets_port=ports["assets_port"], cells=len(self._members))
            commands.serving()
            renewing = asyncio.ensure_future(self._pass_on(commands))
            await commands.stops.get()
            renewing.cancel()
            _log.info("draining", seconds=settings.drain_seconds)
            await self._drain(commands)
        finally:
            await self._end()
            # Last: until here it says that the daemon is not ready, and how the drain goes.
            await ops.aclose()

    @property
    def _port(self) -> int:
        return 0 if self._held is None else int(self._held.getsockname()[1])

    async def _start(self) -> dict[str, Any]:
        """Start the first cell, then the others; return the first one's ports."""
        first, *others = self._members
        ports = await self._begin(first)
        await asyncio.gather(*(self._begin(member) for member in others))
        return ports

    async def _begin(self, member: _Member) -> dict[str, Any]:
        task = asyncio.get_running_loop().create_task(self._keep(member))
        self._tasks.append(task)
        either: set[asyncio.Future[Any]] = {task, member.serving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not member.serving.done():
            # It has ended; say why.
            await task
        return await member.serving

    async def _keep(self, member: _Member) -> None:
        """Keep one cell running until told otherwise.

        Raises:
            CellStartError: its first process never served.
        """
        failures = 0
        while True:
            began = time.monotonic()
            try:
                status = await self._live(member)
            except OSError as error:
                # No process, or no descriptor, left: for now.
                _log.error("cell_not_started", cell=member.cell.index, detail=str(error))
                status = EXIT_NOT_STARTED
            if self._stopping:
                return
            if not member.serving.done():
                raise CellStartError(status)
            failures = 1 if time.monotonic() - began > STABLE_SECONDS else failures + 1
            pause = min(BACKOFF_FIRST_SECONDS * 2 ** min(failures - 1, 16), BACKOFF_LAST_SECONDS)
            self._restarts.labels(str(member.cell.index)).inc()
            _log.error("cell_died", cell=member.cell.index, status=status, again_in=pause)
            await asyncio.sleep(pause)

    async def _live(self, member: _Member) -> int:
        """Run one process of a cell to its end; return its exit status, negative for a signal.

        Raises:
            OSError: there is none.
        """
        ours, theirs = socket.socketpair()
        arguments = ["--cell", f"{member.cell.index}/{member.cell.count}", "--supervisor", str(os.getpid())]
        arguments += ["--grpc-port", str(self._port), "--control-fd", str(theirs.fileno())]
        try:
            with theirs:
                # Its own session: what the terminal sends reaches the supervisor alone.
                process = await asyncio.create_subprocess_exec(
                    *self._command, *arguments, pass_fds=[theirs.fileno()], start_new_session=True
                )
        except BaseException:
            ours.close()
            raise
        member.process = process
        tasks: list[asyncio.Task[None]] = []
        try:
            member.channel = channel = await Channel.open(ours, lambda what, value: self._told(member, what, value))
            tasks.append(asyncio.ensure_future(channel.run()))
            tasks.append(asyncio.ensure_future(self._watch(channel, tasks[0], process)))
            return await process.wait()
        finally:
            member.is_serving = False
            self._count()
            if process.returncode is None:
                _kill(process)
                await process.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _told(self, member: _Member, what: str, value: Any) -> None:
        if what == "serving":
            member.is_serving = True
            self._count()
            _log.info("cell_serving", cell=member.cell.index)
            if not member.serving.done():
                member.serving.set_result(value)

    def _count(self) -> None:
        self._cells.set(sum(member.is_serving for member in self._members))

    @staticmethod
    async def _watch(channel: Channel, reading: asyncio.Task[None], process: asyncio.subprocess.Process) -> None:
        """Kill a cell whose loop does not turn any more, or that no order reaches: nobody else would notice.

        Cancelled when the process ends.
        """
        trouble = ""
        while not trouble:
            await asyncio.wait({reading}, timeout=WATCH_SECONDS)
            try:
                await channel.ask("ready", seconds=SILENT_SECONDS)
            except TimeoutError:
                trouble = "cell_silent"
            except ConnectionError:
                await asyncio.sleep(GONE_SECONDS)
                trouble = "cell_unreachable"
        _log.error(trouble, pid=process.pid)
        _kill(process)

    async def _pass_on(self, commands: Commands) -> None:
        while True:
            await commands.hangup.wait()
            commands.hangup.clear()
            self._tell("renew")

    def _tell(self, what: str) -> None:
        for member in self._members:
            if member.channel is not None:
                member.channel.tell(what)

    async def _drain(self, commands: Commands) -> None:
        """Stop every cell, and wait until they have ended; a second order does not wait."""
        self._stopping = True
        self._tell("stop")
        for member in self._members:
            # One that has just been started has not heard yet; it holds no call either.
            if not member.is_serving and member.process is not None and member.process.returncode is None:
                _kill(member.process)
        ending = asyncio.gather(*self._tasks, return_exceptions=True)
        again = asyncio.ensure_future(commands.stops.get())
        either: set[asyncio.Future[Any]] = {ending, again}
        try:
            async with asyncio.timeout(self._settings.drain_seconds + STOP_MARGIN_SECONDS):
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not ending.done():
                    self._tell("stop")
                await asyncio.wait({ending}, timeout=STOP_MARGIN_SECONDS)
        except TimeoutError:
            _log.error("cells_do_not_stop")
        finally:
            again.cancel()

    async def _end(self) -> None:
        """End whatever still runs."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._held is not None:
            self._held.close()
            self._held = None

    # --- what operators ask ----------------------------------------------------------------------------------------------------

    async def _is_ready(self) -> bool:
        """Every cell serves, and has a worker."""
        if self._stopping:
            return False
        return all(await asyncio.gather(*(self._ask(member, "ready") for member in self._members)))

    async def _render(self) -> bytes:
        """All cells' metrics, and the supervisor's own. A cell that does not answer is missing, which `extrunner_cells` may explain."""
        pages = await asyncio.gather(*(self._ask(member, "metrics") for member in self._members))
        merged = CollectorRegistry()
        merged.register(Merged({member.cell.index: page for member, page in zip(self._members, pages, strict=True) if page is not None}))
        return generate_latest(self._registry) + generate_latest(merged)

    @staticmethod
    async def _ask(member: _Member, what: str) -> Any:
        if member.channel is None:
            return None
        try:
            return await member.channel.ask(what, seconds=ASK_SECONDS)
        except (ConnectionError, TimeoutError):
            return None


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a cell's process, which may have ended in this moment."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def supervise(settings: RunnerdSettings, cells: int) -> None:
    """Run a daemon of several cells; see `Supervisor.run`."""
    await Supervisor(settings, cells).run()
