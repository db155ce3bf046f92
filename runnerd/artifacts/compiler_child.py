"""The compiler process: one component in, one artifact out, then gone. `python -I -m runnerd.artifacts.compiler_child`.

Attack it stops (T16): hostile bytes take the compiler over. It then finds no file, no network, no key, no variable and no other
program to start: everything was imported, and the hardening is in force, before the first foreign byte is read. What it writes is
sealed, compared and signed by the daemon, for the hash the daemon asked for.

Exit status: 0 compiled, 3 the component is rejected, 4 anything else. One line of JSON (`compile_report`) on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys

from runnerd.artifacts.compile_report import EXIT_COMPILED, EXIT_FAILED, EXIT_REJECTED, CompileReport, CompileVerdict, printable
from runnerd.artifacts.sealed import read_all, write_all
from runnerd.engine.compilation import CompileRejectedError, compile_component
from runnerd.engine.profile import EngineProfile, engine_fingerprint
from runnerd.worker.hardening import harden
from runnerd.worker.priority import be_nicer

_STDIN, _STDOUT = 0, 1
NICENESS = 10
"""A third of a worker's weight: guests come first; but a compiler that got only idle time would never end on a busy machine."""


def main(arguments: list[str]) -> int:
    """Compile one component; return the exit status.

    1. Everything is imported (above), and what needs files is read.
    2. The daemon has set the resource limits.
    3. The process is hardened.
    4. The component is read, and from here on nothing in this process is trusted.
    """
    options = _parse(arguments)
    profile = EngineProfile(fuel=options.fuel, bridge=options.bridge)
    fingerprint = engine_fingerprint(profile)  # (1)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # It leads a session of its own: the daemon started it so.
    be_nicer(NICENESS)
    if not os.read(_STDIN, 1):  # (2)
        return EXIT_FAILED
    harden("compiler", require=options.require_hardening)  # (3)
    # SECURITY: (4) no foreign byte is read above this line.
    report = _compile(options.component, options.artifact, profile, fingerprint)
    write_all(_STDOUT, report.to_json())
    return {CompileVerdict.COMPILED: EXIT_COMPILED, CompileVerdict.REJECTED: EXIT_REJECTED}.get(report.verdict, EXIT_FAILED)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compiler_child", description="Compile one component. Started by the daemon.")
    parser.add_argument("--require-hardening", action="store_true", help="end where a mandatory step of the hardening fails")
    parser.add_argument("--no-fuel", dest="fuel", action="store_false", help="compile for engines that do not count fuel")
    parser.add_argument("--no-bridge", dest="bridge", action="store_false", help="compile for the ordinary call path only")
    parser.add_argument("component", type=int, help="descriptor to read the component from")
    parser.add_argument("artifact", type=int, help="descriptor to write the artifact to")
    return parser.parse_args(arguments)


def _compile(component: int, output: int, profile: EngineProfile, fingerprint: str) -> CompileReport:
    wasm = read_all(component, size=os.fstat(component).st_size)
    digest = hashlib.sha256(wasm).hexdigest()
    try:
        compiled = compile_component(wasm, profile)
    except CompileRejectedError as error:
        return CompileReport(verdict=CompileVerdict.REJECTED, message=printable(str(error)), component_sha256=digest)
    except MemoryError:
        return CompileReport(
            verdict=CompileVerdict.REJECTED, message="compiling needs more memory than is allowed", component_sha256=digest
        )
    write_all(output, compiled.artifact)
    return CompileReport(
        verdict=CompileVerdict.COMPILED,
        component_sha256=digest,
        engine_fingerprint=fingerprint,
        bridge_applied=compiled.bridged,
        message=printable(compiled.unbridged_because),
        memories=compiled.memories,
        artifact_bytes=len(compiled.artifact),
    )


if __name__ == "__main__":
    # Not sys.exit: a pool of compiler threads need not be waited for, and nothing is left to be flushed.
    os._exit(main(sys.argv[1:]))
