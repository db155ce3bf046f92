"""T16: a compiler that was taken over is refused and reaped, nothing of it is signed, and others are not affected."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.artifacts.compiler import Compiler, CompilerSettings
from runnerd.artifacts.sealed import seal_bytes
from tests.fakes.hostile_compilers import HONEST, children, memory_files, open_descriptors, program
from tests.fakes.loading import FINGERPRINT, WASM, Installation, artifact_for, compile_sealed, make_bundle, read, until

SETTINGS = CompilerSettings(wall_seconds=30, cpu_seconds=5, memory_bytes=512 << 20, max_artifact_bytes=1 << 20, require_hardening=False)


async def refused(folder: Path, body: str, settings: CompilerSettings = SETTINGS) -> RefusalError:
    compiler = Compiler(settings, engine_fingerprint=FINGERPRINT, command=program(folder, body))
    descriptors, before_children = open_descriptors(), children()
    component = seal_bytes("component", WASM)
    with pytest.raises(RefusalError) as caught:
        await compile_sealed(compiler, component)
    component.close()
    assert children() <= before_children
    assert open_descriptors() <= descriptors
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("artifact(os.urandom(1000)); report()", id="writes garbage"),
        pytest.param("report()", id="writes nothing"),
        pytest.param("artifact(); report(artifact_bytes=5)", id="lies about the length"),
        pytest.param("artifact(); report(artifact_bytes=0)", id="says it is empty"),
        pytest.param('artifact(); report(component_sha256="0" * 64)', id="answers for another component"),
        pytest.param('artifact(); report(component_sha256="")', id="answers for no component"),
        pytest.param('artifact(); report(engine_fingerprint="0" * 64)', id="answers for another engine"),
        pytest.param("artifact(); report(memories=5)", id="counts too many memories"),
        pytest.param("artifact(); report(memories=0)", id="counts no memory"),
        pytest.param("artifact(); report(); report()", id="reports twice"),
        pytest.param("artifact(); report(extra=1)", id="reports more than asked"),
        pytest.param("artifact()", id="says nothing"),
        pytest.param('artifact(); os.write(1, b"\\xff\\xfe" * 100)', id="reports garbage"),
        pytest.param('artifact(); report(verdict="failed")', id="says it failed and exits 0"),
        pytest.param("artifact(); report(); sys.exit(3)", id="says compiled and exits 3"),
        pytest.param("artifact(); report(); sys.exit(4)", id="exits with a failure"),
        pytest.param("artifact(); report(); os.kill(os.getpid(), signal.SIGSEGV)", id="crashes"),
        pytest.param("artifact(); report(); os.abort()", id="aborts"),
        pytest.param('artifact(); os.write(1, b"x" * 1_000_000); report()', id="floods its output"),
        pytest.param('artifact(); os.write(2, b"x" * 1_000_000); report()', id="floods its error output"),
        pytest.param("\nwhile True: os.write(1, b'x' * 65536)", id="floods for ever"),
        pytest.param("os.ftruncate(target, 2 << 20); report(artifact_bytes=2 << 20)", id="makes too large an artifact"),
        pytest.param("\nfor _ in range(100): artifact(bytes(1 << 20))", id="writes without end"),
        pytest.param("artifact(); mapped = mmap.mmap(target, 0); mapped[0] = 0; report()", id="writes through a mapping"),
        pytest.param("memory = bytearray(2 << 30); artifact(); report()", id="uses too much memory"),
        pytest.param("os.close(target); report(artifact_bytes=1)", id="closes its output"),
    ],
)
async def test_a_misbehaving_compiler_is_refused_and_reaped(tmp_path: Path, body: str) -> None:
    refusal = await refused(tmp_path, body)
    assert refusal.reason is Reason.INTERNAL
    assert refusal.public_detail == "The component could not be compiled."


async def test_a_compiler_that_outlives_its_time_is_killed(tmp_path: Path) -> None:
    settings = CompilerSettings(wall_seconds=0.5, require_hardening=False)
    refusal = await refused(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); artifact(); report(); time.sleep(600)", settings)
    assert refusal.reason is Reason.COMPILE_REJECTED
    assert "longer than 0.5 seconds" in refusal.public_detail


async def test_a_compiler_that_stops_itself_is_killed(tmp_path: Path) -> None:
    settings = CompilerSettings(wall_seconds=0.5, require_hardening=False)
    assert (await refused(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)", settings)).reason is Reason.COMPILE_REJECTED


async def test_a_compiler_that_uses_too_much_processor_time_is_killed(tmp_path: Path) -> None:
    settings = CompilerSettings(wall_seconds=60, cpu_seconds=1, require_hardening=False)
    refusal = await refused(tmp_path, "\nwhile True: pass", settings)
    assert refusal.reason is Reason.COMPILE_REJECTED
    assert "more than 1 seconds of CPU time" in refusal.public_detail


async def test_what_a_compiler_forked_dies_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f"""
child = os.fork()
if child == 0:
    time.sleep(600)
open("{pid_file}", "w").write(str(child))
artifact(); report()
"""
    compiler = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))
    # The grandchild keeps every pipe open; neither the answer nor the end waits for it.
    made = await compile_sealed(compiler, seal_bytes("component", WASM))
    assert read(made.artifact) == artifact_for(WASM)
    await _gone(int(pid_file.read_text()))


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while _is_alive(pid):  # noqa: ASYNC110 - the kernel does not signal it
            await asyncio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in {"Z", "X"}


@pytest.mark.parametrize("holds", ["descriptor", "mapping"])
async def test_what_escapes_from_the_group_cannot_change_the_artifact(tmp_path: Path, holds: str) -> None:
    """Seccomp keeps a real compiler from forking at all; should one escape, it holds a file that is sealed, or gets no artifact."""
    pid_file, result = tmp_path / "pid", tmp_path / "result"
    body = f"""
artifact()
ready, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    if {holds!r} == "mapping":
        mapped = mmap.mmap(target, 0)
    open("{pid_file}", "w").write(str(os.getpid()))
    os.write(told, b"x")
    for _ in range(2000):
        try:
            os.pwrite(target, b"forged", 0)
        except PermissionError:
            open("{result}", "w").write("sealed")
            break
        os.pwrite(target, b"\\x7fELF" + wasm, 0)
        time.sleep(0.01)
    time.sleep(600)
os.read(ready, 1)
report()
"""
    compiler = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))
    try:
        if holds == "mapping":
            with pytest.raises(RefusalError) as caught:
                await compile_sealed(compiler, seal_bytes("component", WASM))
            assert caught.value.reason is Reason.INTERNAL
        else:
            made = await compile_sealed(compiler, seal_bytes("component", WASM))
            async with asyncio.timeout(30):
                while not result.exists():  # noqa: ASYNC110 - another process makes it
                    await asyncio.sleep(0.01)
            before = made.artifact.sha256
            assert os.pread(made.artifact.fileno(), made.artifact.size, 0) in {artifact_for(WASM), b"forged" + artifact_for(WASM)[6:]}
            assert seal_bytes("again", read(made.artifact)).sha256 == before
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def test_nothing_is_kept_of_what_a_taken_over_compiler_made(tmp_path: Path) -> None:
    installation = Installation(folder=tmp_path / "home")
    bundle = await installation.publish(make_bundle())
    evil = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, 'artifact(); report(component_sha256="0" * 64)'))
    with pytest.raises(RefusalError) as caught:
        await installation.loader(compiler=evil).load(bundle.hash)
    assert caught.value.reason is Reason.INTERNAL
    assert not installation.artifact_path(bundle).exists()
    assert not installation.artifact_path(bundle, ".record").exists()
    honest = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, HONEST))
    extension = await installation.loader(compiler=honest).load(bundle.hash)
    assert read(extension.artifact) == artifact_for(WASM)


async def test_others_compile_while_one_hangs_and_after_one_crashed(tmp_path: Path) -> None:
    body = f"""
if wasm.endswith(b"hang"): time.sleep(600)
if wasm.endswith(b"crash"): os.kill(os.getpid(), signal.SIGSEGV)
{HONEST}
"""
    settings = CompilerSettings(concurrency=2, wall_seconds=3, require_hardening=False)
    compiler = Compiler(settings, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))

    async def compile_(tail: bytes, publisher: str) -> bytes | Reason:
        try:
            return read((await compile_sealed(compiler, seal_bytes("component", WASM + tail), publisher=publisher)).artifact)
        except RefusalError as refusal:
            return refusal.reason

    results = await asyncio.gather(
        compile_(b"hang", "evil"), compile_(b"crash", "evil"), *(compile_(f"{number}".encode(), "good") for number in range(3))
    )
    assert results == [Reason.COMPILE_REJECTED, Reason.INTERNAL, *(artifact_for(WASM + f"{number}".encode()) for number in range(3))]


async def test_a_hundred_publishes_of_one_publisher_delay_another_by_two_compilations_at_most(tmp_path: Path) -> None:
    installation = Installation(folder=tmp_path / "home")
    order = tmp_path / "order"
    body = f"""
with open({str(order)!r}, "ab") as file: file.write(wasm[8:] + b" ")
{HONEST}
"""
    compiler = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))
    flood = [
        await installation.publish(make_bundle(f"com.flood.n{number}", wasm=WASM + f"flood-{number}".encode(), publisher="flood"))
        for number in range(100)
    ]
    other = await installation.publish(make_bundle("com.example.other", wasm=WASM + b"other", publisher="other"))
    loader = installation.loader(compiler=compiler)
    flooding = [asyncio.create_task(loader.load(bundle.hash)) for bundle in flood]
    await until(order.exists)
    waiting = asyncio.create_task(loader.load(other.hash))
    await until(lambda: loader._board.describe(other.hash).get("stage") == "waiting")
    begun = len(order.read_bytes().split())
    await waiting
    assert order.read_bytes().split().index(b"other") - begun <= 2
    # Those that found no place to wait were told so; nobody was forgotten.
    answers = await asyncio.gather(*flooding, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, RefusalError)]
    assert {answer.reason for answer in refused} == {Reason.OVERLOADED}
    assert len(order.read_bytes().split()) == 1 + len(flood) - len(refused)
    await loader.aclose()


async def test_those_who_wait_for_a_compiler_hold_no_component(tmp_path: Path) -> None:
    installation = Installation(folder=tmp_path / "home")
    gate = tmp_path / "gate"
    body = f"""
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
{HONEST}
"""
    compiler = Compiler(SETTINGS, engine_fingerprint=FINGERPRINT, command=program(tmp_path, body))
    bundles = [await installation.publish(make_bundle(f"com.example.n{number}", wasm=WASM + bytes([number]))) for number in range(20)]
    loader = installation.loader(compiler=compiler)
    loading = [asyncio.create_task(loader.load(bundle.hash)) for bundle in bundles]
    await until(lambda: (19, 1, True) in installation.metrics.stages)
    assert memory_files("component") == 1
    gate.touch()
    assert len(await asyncio.gather(*loading)) == 20
    await loader.aclose()
