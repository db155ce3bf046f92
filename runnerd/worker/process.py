"""The birth of a worker: what a freshly forked process does until it reads its first frame."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from extrunner.worker.v1 import worker_pb2
from runnerd.engine.engine import build_engine
from runnerd.engine.invocation import prepare_process
from runnerd.engine.profile import EngineProfile, PoolSizes, engine_fingerprint
from runnerd.worker import hardening
from runnerd.worker.frames import PROTOCOL_VERSION, FrameReader, FrameWriter
from runnerd.worker.hardening import HardeningError, HardeningReport
from runnerd.worker.loop import Worker
from runnerd.worker.priority import stand_back
from runnerd.worker.settings import EXIT_HARDENING, WorkerConfig
from runnerd.worker.slots import STACK_BYTES

EXIT_FAILED = 72


def run_worker(connection: socket.socket, config: WorkerConfig, *, parent: int, build: str, inherited: HardeningReport) -> NoReturn:
    """Become a worker and never return.

    1. die with the parent, and first where memory runs out; 2. go to the processor, behind the daemon; 3. give up privileges and
    descriptors; 4. build the engine, which needs to read the machine; 5. close down; 6. serve.

    Args:
        connection: the worker's end of its socketpair; the only descriptor it keeps.
        config: as the daemon gave it.
        parent: process id of the zygote; the worker ends at once where that one is no more.
        build: version of the package, for Hello.
        inherited: what the zygote has already done (namespaces).
    """
    status = EXIT_FAILED
    try:
        hardening.die_with_parent(parent)  # (1)
        _be_killed_first()
        status = _run(connection, config, build, inherited)
    finally:
        # Not sys.exit: guests may still run on other threads, and nothing is left to be flushed.
        os._exit(status)


def _run(connection: socket.socket, config: WorkerConfig, build: str, inherited: HardeningReport) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if config.cpu is not None:  # (2)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {config.cpu})
    stand_back()
    profile = replace(hardening.WORKER, keep_descriptors=frozenset({connection.fileno()}), user=config.user, data_bytes=config.data_bytes)
    report = inherited.joined(hardening.give_up_privileges(profile))  # (3)
    engine_profile = EngineProfile(fuel=config.fuel, bridge=config.bridge)
    engine = build_engine(engine_profile, PoolSizes.for_slots(config.slots))  # (4)
    prepare_process()
    fingerprint = engine_fingerprint(engine_profile)
    report = _close_down(profile, report, require=config.require_hardening)  # (5)
    threading.stack_size(STACK_BYTES)
    worker = Worker(FrameReader(connection), FrameWriter(connection), engine, config, may_open=report.holds(hardening.Step.LANDLOCK))
    hello = worker_pb2.Hello(
        protocol_version=PROTOCOL_VERSION,
        build=build,
        engine_fingerprint=fingerprint,
        hardening_applied=[str(step) for step in report.applied],
        hardening_missing={str(step): why for step, why in report.missing.items()},
        pid=os.getpid(),
        slots=config.slots,
    )
    return worker.run(hello)  # (6)


def _be_killed_first() -> None:
    """Ask the kernel to end workers first when memory runs out, and never the daemon for what a guest took (T38)."""
    # Anybody may make himself more likely; a kernel without /proc would not have come here.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(b"1000")


def _close_down(profile: hardening.HardeningProfile, report: HardeningReport, *, require: bool) -> HardeningReport:
    """Close down; keep standard error until it has succeeded, so that a failure is heard."""
    complaint = os.dup(2)
    hardening.silence_standard_error()
    try:
        report = hardening.close_down(profile, report, require=require)
    except HardeningError as exc:
        # Where standard error is a file, RLIMIT_FSIZE may already forbid this; the exit status says it as well.
        with contextlib.suppress(OSError):
            os.write(complaint, f"worker: not hardened: {exc}\n".encode())
        os._exit(EXIT_HARDENING)
    # SECURITY: the daemon's standard error is not the worker's to write to.
    os.close(complaint)
    return report
