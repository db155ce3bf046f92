"""The daemon's side of compilation, with honest programs in the child's place; and the real child."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.compiler import Compiler, CompilerSettings, default_command
from runnerd.artifacts.compiler_child import NICENESS
from runnerd.artifacts.sealed import SealedFile, seal_bytes
from runnerd.engine.profile import EngineProfile, engine_fingerprint
from tests.fakes.hostile_compilers import HONEST, children, open_descriptors, program
from tests.fakes.loading import FINGERPRINT, WASM, artifact_for, compile_sealed, make_bundle, read
from tests.fakes.marker_guests import marker_guest, run_marker

DEVELOPMENT = CompilerSettings(require_hardening=False)


def make_compiler(folder: Path, body: str, settings: CompilerSettings = DEVELOPMENT) -> Compiler:
    return Compiler(settings, engine_fingerprint=FINGERPRINT, command=program(folder, body))


def component(data: bytes = WASM) -> SealedFile:
    return seal_bytes("component", data)


def real_compiler(settings: CompilerSettings = DEVELOPMENT) -> Compiler:
    return Compiler(settings, engine_fingerprint=engine_fingerprint(settings.profile))


async def test_an_artifact_comes_back_sealed(tmp_path: Path) -> None:
    made = await compile_sealed(make_compiler(tmp_path, HONEST), component())
    assert read(made.artifact) == artifact_for(WASM)
    assert (made.memories, made.bridge_applied) == (1, False)
    with pytest.raises(PermissionError):
        os.pwrite(made.artifact.fileno(), b"x", 0)


async def test_a_child_inherits_nothing(tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    body = """
artifact()
names = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, source, target}
open_ones = [name for name in names if os.path.exists(f"/proc/self/fd/{name}")]
facts = {"descriptors": len(open_ones), "environment": sorted(set(os.environ) - {"LC_CTYPE"}), "folder": os.getcwd(), "path": sys.path[0],
         "leader": os.getsid(0) == os.getpid()}
report(message=json.dumps(facts), verdict="rejected")
sys.exit(3)
"""
    try:
        with pytest.raises(RefusalError) as caught:
            await compile_sealed(make_compiler(tmp_path, body), component())
    finally:
        os.close(secret)
    facts = json.loads(caught.value.public_detail.removeprefix("The component was rejected: ").removesuffix("."))
    assert facts["descriptors"] == 0
    assert (facts["environment"], facts["folder"], facts["leader"]) == ([], "/", True)
    assert facts["path"] not in {"", str(tmp_path), "/"}


async def test_the_limits_are_in_force_before_the_first_foreign_byte(tmp_path: Path) -> None:
    body = """
import resource
names = ("RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE")
report(message=json.dumps([resource.getrlimit(getattr(resource, name)) for name in names]), verdict="rejected")
sys.exit(3)
"""
    settings = CompilerSettings(memory_bytes=1 << 30, cpu_seconds=7, max_artifact_bytes=1 << 20)
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(make_compiler(tmp_path, body, settings), component())
    assert "[[1073741824, 1073741824], [7, 8], [1048576, 1048576], [0, 0], [64, 64]]" in caught.value.public_detail


async def test_a_rejection_carries_the_compilers_words_and_no_control_characters(tmp_path: Path) -> None:
    body = """report(verdict="rejected", message="it has\\nfive \\x1b[31mmemories\\u202e"); sys.exit(3)"""
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(make_compiler(tmp_path, body), component())
    assert caught.value.reason is Reason.COMPILE_REJECTED
    assert caught.value.public_detail == "The component was rejected: it has five [31mmemories."


async def test_operators_read_why_an_artifact_has_no_bridge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = 'artifact(); report(bridge_applied=wasm.endswith(b"bridged"), message="it imports\\x1b[31m\\nsomething\\u202e else")'
    compiler = make_compiler(tmp_path, body)
    with caplog.at_level(logging.INFO):
        await compile_sealed(compiler, component(WASM + b"bridged"))
        assert "compiled_without_bridge" not in caplog.text
        await compile_sealed(compiler, component())
    (line,) = [record for record in caplog.records if record.message == "compiled_without_bridge"]
    assert (line.__dict__["content_hash"], line.__dict__["reason"]) == (make_bundle().hash, "it imports[31m something else")
    caplog.clear()
    # Where no bridge is wanted, there is nothing to say.
    settings = CompilerSettings(require_hardening=False, profile=EngineProfile(bridge=False))
    with caplog.at_level(logging.INFO):
        await compile_sealed(make_compiler(tmp_path, body, settings), component())
    assert not [record for record in caplog.records if record.message == "compiled_without_bridge"]


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 2)])
async def test_no_more_compilers_run_than_allowed(tmp_path: Path, concurrency: int, most: int) -> None:
    folder = tmp_path / "running"
    folder.mkdir()
    body = f"""
mine = "{folder}/" + str(os.getpid())
open(mine, "x").close()
time.sleep(0.05)
count = len(os.listdir("{folder}"))
os.unlink(mine)
artifact(); report(memories=count)
"""
    compiler = make_compiler(tmp_path, body, CompilerSettings(require_hardening=False, concurrency=concurrency))
    made = await asyncio.gather(
        *(compile_sealed(compiler, component(WASM + bytes([number])), publisher=f"p{number}") for number in range(4))
    )
    assert max(one.memories for one in made) <= most


async def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f'open("{pid_file}.part", "w").write(str(os.getpid())); os.rename("{pid_file}.part", "{pid_file}"); time.sleep(600)'
    call = asyncio.create_task(compile_sealed(make_compiler(tmp_path, body), component()))
    async with asyncio.timeout(30):
        while not pid_file.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_program_that_cannot_be_started_is_an_error_of_ours() -> None:
    compiler = Compiler(DEVELOPMENT, engine_fingerprint=FINGERPRINT, command=("/nonexistent/compiler",))
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(compiler, component())
    assert caught.value.reason is Reason.INTERNAL
    assert "nonexistent" not in caught.value.public_detail


async def test_no_descriptor_and_no_child_is_left(tmp_path: Path) -> None:
    compiler = make_compiler(tmp_path, HONEST)
    before, before_children = open_descriptors(), children()
    for _ in range(3):
        (await compile_sealed(compiler, component())).artifact.close()
    assert open_descriptors() <= before
    assert children() <= before_children


async def test_the_real_child_compiles_what_then_runs() -> None:
    made = await compile_sealed(real_compiler(), component(marker_guest("I am A")))
    assert run_marker(made.artifact.fileno()) == "I am A"
    assert made.memories == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a WebAssembly component"),
        (b"\0asm\x01\0\0\0", "core module"),
        (b"\0asm\x0d\0\1\0", "handler"),
        (b"\x7fELF" * 100, "not a"),
    ],
)
async def test_the_real_child_rejects_what_is_no_component(data: bytes, words: str) -> None:
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(real_compiler(), component(data))
    assert caught.value.reason is Reason.COMPILE_REJECTED
    assert words in caught.value.public_detail


async def test_the_real_child_of_another_profile_is_refused() -> None:
    compiler = Compiler(
        CompilerSettings(require_hardening=False, profile=EngineProfile(fuel=False)), engine_fingerprint=engine_fingerprint()
    )
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(compiler, component(marker_guest("A")))
    assert caught.value.reason is Reason.INTERNAL


async def test_the_real_child_works_under_uvloop_too() -> None:
    program = (
        "import asyncio, uvloop\n"
        "from runnerd.artifacts.compiler import Compiler, CompilerSettings\n"
        "from runnerd.artifacts.progress import Preparation\n"
        "from runnerd.artifacts.sealed import seal_bytes\n"
        "from runnerd.engine.profile import engine_fingerprint\n"
        "import sys, types\n"
        "async def main():\n"
        "    compiler = Compiler(CompilerSettings(require_hardening=False), engine_fingerprint=engine_fingerprint())\n"
        "    component = seal_bytes('component', sys.stdin.buffer.read())\n"
        "    preparation = Preparation(types.SimpleNamespace(content_hash='h', publisher='p'), lambda: None)\n"
        "    made = await compiler.compile(lambda: asyncio.sleep(0, component), publisher='p', preparation=preparation)\n"
        "    print(made.memories)\n"
        "uvloop.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate(marker_guest("A"))
    assert output == b"1\n"


def test_the_command_line_keeps_foreign_modules_out() -> None:
    command = default_command(CompilerSettings())
    assert command[:2] == (sys.executable, "-I")
    assert "--require-hardening" in command
    assert "--require-hardening" not in default_command(DEVELOPMENT)
    assert {"--no-fuel", "--no-bridge"} <= set(default_command(CompilerSettings(profile=EngineProfile(fuel=False, bridge=False))))


async def test_a_compiler_gives_way_to_the_guests_in_its_group_and_as_a_group() -> None:
    wasm = marker_guest("compiled behind the others")
    compiling = asyncio.create_task(compile_sealed(real_compiler(), component(wasm)))
    seen: set[tuple[int, int, str]] = set()
    before = children()
    while not compiling.done():
        for child in children() - before:
            with contextlib.suppress(OSError, ProcessLookupError):
                seen.add((os.sched_getscheduler(child), os.getpriority(os.PRIO_PROCESS, child), group_niceness(child)))
        await asyncio.sleep(0.001)
    assert run_marker((await compiling).artifact.fileno()) == "compiled behind the others"
    own = os.getpriority(os.PRIO_PROCESS, 0)
    expected = (os.SCHED_BATCH, min(19, own + NICENESS))
    assert {(*expected, str(NICENESS)), (*expected, "none")} & seen


def group_niceness(pid: int) -> str:
    """Return the niceness of a process's scheduling group, "none" where this kernel does not group."""
    file = Path(f"/proc/{pid}/autogroup")
    return file.read_text(encoding="ascii").split()[-1] if file.exists() else "none"
