"""The daemon's side of compilation: one confined process per artifact, and no trust in what it says.

Attack it stops (T16): the compiler reads hostile bytes; taken over once, a long-lived one would emit correctly signed native code
for every later bundle. Here it lives for one artifact, holds no key, no path and no socket, gets the component as a sealed memory
file and fills a memory file of the daemon. The daemon seals that file before it looks at it, compares what the child claims with
what it asked for, and signs the record itself, for the hash it asked for.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeAlias

from registry.domain.errors import Reason, RefusalError
from registry.domain.limits import MIB
from runnerd.artifacts.child_process import ChildLimits, ChildResult, Ending, run_child
from runnerd.artifacts.compile_report import (
    EXIT_COMPILED,
    EXIT_REJECTED,
    MAX_MESSAGE_CHARACTERS,
    MAX_REPORT_BYTES,
    CompileReport,
    CompileReportError,
    CompileVerdict,
    printable,
    read_report,
)
from runnerd.artifacts.progress import Preparation
from runnerd.artifacts.sealed import SealedFile, new_memory_file, seal
from runnerd.artifacts.slots import CompileSlots
from runnerd.engine.profile import DEFAULT_PROFILE, MAX_MEMORIES, EngineProfile

_LOG = logging.getLogger(__name__)
_ELF = b"\x7fELF"
_MAX_DESCRIPTORS = 64
_SEAL_ATTEMPTS = 50
_SEAL_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerSettings:
    """How compilers are run."""

    concurrency: int = 1
    """Compilers at once; each uses every CPU it finds idle."""
    wall_seconds: float = 180.0
    cpu_seconds: int = 240
    """Of all threads of one compiler together."""
    memory_bytes: int = 4096 * MIB
    """Private memory of one compiler. The engine's stacks reserve 2 GiB of it without using them; a component of 12 MB takes 460 MiB."""
    max_artifact_bytes: int = 512 * MIB
    waiting_per_publisher: int = 32
    waiting: int = 256
    require_hardening: bool = True
    """False only in development: a compiler whose mandatory hardening failed then runs all the same."""
    profile: EngineProfile = DEFAULT_PROFILE
    """Of the workers' engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """One artifact, fresh from the compiler."""

    artifact: SealedFile
    component_sha256: str
    """Of what was given to the compiler, as the daemon hashed it."""
    bridge_applied: bool
    memories: int
    seconds: float
    """Time in the compiler, without waiting for a slot."""


FetchComponent: TypeAlias = Callable[[], Awaitable[SealedFile]]
"""Brings a component into memory."""


class ArtifactCompiler(Protocol):
    """What the loader asks of a compiler."""

    async def compile(self, fetch: FetchComponent, *, publisher: str, preparation: Preparation) -> Compilation:
        """Compile one component, or refuse: COMPILE_REJECTED, OVERLOADED, INTERNAL."""
        ...


class Compiler:
    """Runs compiler children. Belongs to one event loop, in the thread that lives as long as the daemon.

    Args:
        settings: caps.
        engine_fingerprint: of the engine that workers run; a child of another build is refused.
        command: program and arguments before the two descriptor numbers; by default `runnerd.artifacts.compiler_child`.
    """

    def __init__(self, settings: CompilerSettings, *, engine_fingerprint: str, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._fingerprint = engine_fingerprint
        self._command = tuple(command) if command is not None else default_command(settings)
        self._slots = CompileSlots(
            slots=settings.concurrency, waiting_per_publisher=settings.waiting_per_publisher, waiting=settings.waiting
        )

    async def compile(self, fetch: FetchComponent, *, publisher: str, preparation: Preparation) -> Compilation:
        """Compile one component, in turn with the other publishers'.

        Args:
            fetch: brings the component: called when its turn has come, so that those who wait hold no memory.
            publisher: whose turn it takes.
            preparation: of the bundle; told when it waits, fetches and begins.

        Raises:
            RefusalError: COMPILE_REJECTED where the component is at fault, OVERLOADED where too many wait, INTERNAL otherwise; and
                whatever fetching it refuses.
        """
        async with self._slots.slot(publisher, on_wait=preparation.waiting):
            preparation.fetching()
            component = await fetch()
            preparation.compiling()
            started = time.monotonic()
            output = new_memory_file("artifact")
            owned = True
            try:
                result = await self._run(component, output)
                report = self._judge(result, component)
                await _settle(output)
                owned = False
                artifact = await asyncio.to_thread(SealedFile, output)
                self._check_artifact(artifact, report)
            finally:
                if owned:
                    os.close(output)
            if self._settings.profile.bridge and not report.bridge_applied:
                _LOG.info("compiled_without_bridge", extra={"content_hash": preparation.content_hash, "reason": report.message})
            return Compilation(
                artifact=artifact,
                component_sha256=component.sha256,
                bridge_applied=report.bridge_applied,
                memories=report.memories,
                seconds=time.monotonic() - started,
            )

    async def _run(self, component: SealedFile, output: int) -> ChildResult:
        settings = self._settings
        limits = ChildLimits(
            wall_seconds=settings.wall_seconds,
            output_bytes=MAX_REPORT_BYTES,
            resources={
                # SECURITY: RLIMIT_DATA, never RLIMIT_AS: the engine reserves address space far beyond what it uses.
                resource.RLIMIT_DATA: (settings.memory_bytes, settings.memory_bytes),
                # The soft limit's signal says what it was about; the hard limit's does not.
                resource.RLIMIT_CPU: (settings.cpu_seconds, settings.cpu_seconds + 1),
                resource.RLIMIT_FSIZE: (settings.max_artifact_bytes, settings.max_artifact_bytes),
                resource.RLIMIT_CORE: (0, 0),
                resource.RLIMIT_NOFILE: (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS),
            },
        )
        descriptors = (component.fileno(), output)
        try:
            return await run_child([*self._command, *map(str, descriptors)], pass_fds=descriptors, limits=limits)
        except OSError as error:
            _fail(f"it cannot be started: {error}")

    def _judge(self, result: ChildResult, component: SealedFile) -> CompileReport:
        """Return the report of a successful child.

        1. It ended by itself, in time, without flooding, with an exit status that it has.
        2. Its output is a report that agrees with the status.
        3. It speaks of the component it was given, and of this engine.
        """
        self._check_ending(result)  # (1)
        try:
            report = read_report(result.stdout)  # (2)
        except CompileReportError as error:
            _fail(str(error))
        if result.returncode == EXIT_REJECTED and report.verdict is CompileVerdict.REJECTED:
            _refuse(report.message or "the engine does not accept it")
        if result.returncode != EXIT_COMPILED or report.verdict is not CompileVerdict.COMPILED:
            _fail("its exit status and its report disagree")
        # SECURITY: (3) an answer for other bytes must not be signed for these.
        if report.component_sha256 != component.sha256:
            _fail("it answered for another component")
        if report.engine_fingerprint != self._fingerprint:
            _fail("it runs another engine than the workers")
        if not 1 <= report.memories <= MAX_MEMORIES:
            _fail("it counted an impossible number of memories")
        return report

    def _check_ending(self, result: ChildResult) -> None:
        if result.ending is Ending.OUT_OF_TIME:
            _refuse(f"it takes longer than {self._settings.wall_seconds:g} seconds to compile")
        if result.ending is Ending.FLOODED:
            _fail("it flooded its output")
        if result.returncode == -signal.SIGXCPU:
            _refuse(f"it takes more than {self._settings.cpu_seconds} seconds of CPU time to compile")
        if result.returncode not in {EXIT_COMPILED, EXIT_REJECTED}:
            last_words = result.stderr[-MAX_MESSAGE_CHARACTERS:].decode("utf-8", "replace")
            _fail(f"it ended with {result.returncode}: {printable(last_words)}")

    def _check_artifact(self, artifact: SealedFile, report: CompileReport) -> None:
        plausible = 0 < artifact.size <= self._settings.max_artifact_bytes and artifact.size == report.artifact_bytes
        if not plausible or os.pread(artifact.fileno(), len(_ELF), 0) != _ELF:
            artifact.close()
            _fail("what it wrote is no artifact")


def default_command(settings: CompilerSettings) -> tuple[str, ...]:
    """Return the command line of a compiler child, without its descriptors.

    `-I` keeps the working folder, PYTHON… variables and the user's site folder out of the module path.
    """
    required = ("--require-hardening",) if settings.require_hardening else ()
    fuel = () if settings.profile.fuel else ("--no-fuel",)
    bridge = () if settings.profile.bridge else ("--no-bridge",)
    return (sys.executable, "-I", "-B", "-m", "runnerd.artifacts.compiler_child", *required, *fuel, *bridge)


async def _settle(output: int) -> None:
    """Seal what a child wrote.

    A killed process gives its mappings back a moment after it is gone, and until then the file cannot be sealed.
    """
    for _ in range(_SEAL_ATTEMPTS):
        try:
            seal(output)
        except OSError as error:
            if error.errno != errno.EBUSY:
                _fail("its output cannot be sealed")
            await asyncio.sleep(_SEAL_PAUSE_SECONDS)
        else:
            return
    _fail("its output is still held by another process")


def _refuse(why: str) -> NoReturn:
    raise RefusalError(Reason.COMPILE_REJECTED, f"The component was rejected: {why}.")


def _fail(why: str) -> NoReturn:
    # The cause is for operators: it may quote what a taken-over child wrote.
    _LOG.error("compiler child refused: %s", why)
    raise RefusalError(Reason.INTERNAL, "The component could not be compiled.", metadata={"stage": "compile"})
