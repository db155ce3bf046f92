"""A real Python guest in a real worker."""

from __future__ import annotations

from typing import Any

import pytest
from wasmtime import component as wasm_component

from runnerd.capabilities.catalog import HostFunction
from runnerd.capabilities.shapes import DATA_BYTES
from runnerd.engine import wasi
from runnerd.engine.compilation import inspect_component, unknown_imports
from runnerd.engine.linker import interface_of
from tests.fakes.engine_kit import EngineKit
from tests.fakes.guests import ROOT, build_python_guest, compiled_of
from tests.fakes.worker_driver import ALWAYS, MIB, Ended, ErrorCase, WorkerDriver

SOURCE = ROOT / "tests" / "assets" / "python_guests" / "everything"
pytestmark = pytest.mark.timeout(300)


class Python:
    def __init__(self, worker: WorkerDriver, number: int) -> None:
        self.worker = worker
        self.number = number

    async def get(self, url: str, **changes: Any) -> Ended:
        return await self.worker.call(self.number, url=url, method="GET", **{"memory_bytes": 128 * MIB} | changes)

    async def text(self, url: str, **changes: Any) -> str:
        ended = await self.get(url, **changes)
        assert ended.kind == "completed", (ended.done, [line.message for line in ended.lines])
        assert ended.body is not None
        return ended.body.decode()


@pytest.fixture
async def python(worker: WorkerDriver) -> Python:
    return Python(worker, await worker.load_compiled(compiled_of(build_python_guest(SOURCE), bridge=worker.bridge)))


async def test_request__reaches_the_guest_whole(python: Python) -> None:
    said = await python.text("/describe?a=b", headers=[("accept", "text/plain"), ("x-two", "a"), ("x-two", "b")])

    assert said == "GET /describe?a=b [accept=text/plain,x-two=a,x-two=b] body none tenant-1 install-1"


async def test_response__headers_are_lowered(python: Python) -> None:
    ended = await python.get("/describe")

    assert [(header.name, header.value) for header in ended.done.completed.headers] == [("content-type", "text/plain; charset=utf-8")]


@pytest.mark.parametrize("size", [0, 1, 100_000, 10 * MIB])
async def test_body__of_any_size__is_echoed(python: Python, size: int) -> None:
    body = bytes(index & 0xFF for index in range(256)) * (size // 256 + 1)
    ended = await python.get("/echo", body=body[:size], wall_time_us=30_000_000, response_bytes=10 * MIB)

    assert ended.body == body[:size]


async def test_storage__through_host_calls(python: Python) -> None:
    store: dict[tuple[object, object], dict[str, object]] = {}

    def answer(function: HostFunction, arguments: tuple[Any, ...]) -> Any:
        if function.name == "put":
            (entry,) = arguments
            store[entry["namespace"], entry["key"]] = entry | {"revision": 7}
            return store[entry["namespace"], entry["key"]]
        return store.get(arguments) or ErrorCase("missing")

    said = await python.text("/notes", capabilities=[*ALWAYS, "storage.kv"], answer=answer)

    assert said == "7 b'\\x00\\xffvalue' err <StorageError.MISSING: 0>"


async def test_ungranted__each_answers_its_typed_denial_without_a_frame(python: Python) -> None:
    ended = await python.get("/ungranted")

    assert ended.body is not None
    assert ended.body.decode() == (
        "err <SecretError.DENIED: 1> ok [] err <HttpError.NOT_ALLOWED: 1> "
        "err <ClientReadError.NOT_ALLOWED: 0> err <UserError.NOT_ALLOWED: 1>"
    )
    assert ended.host_calls == []
    assert sorted(ended.denied) == ["client.read", "http.fetch", "secrets.get", "user.read"]


async def test_config__get_and_list(python: Python) -> None:
    def answer(function: HostFunction, arguments: tuple[Any, ...]) -> Any:
        settings = {"colour": "blue", "size": "7"}
        if function.name == "get":
            return settings.get(arguments[0])
        return [{"key": key, "value": value} for key, value in settings.items()]

    assert await python.text("/setting", answer=answer) == "blue None {'colour': 'blue', 'size': '7'}"


async def test_output__of_all_kinds__is_logged(python: Python) -> None:
    ended = await python.get("/talk")

    # Python keeps its standard output back until the end.
    said = {(line.level, line.message) for line in ended.lines}
    assert said == {("warn", "a warning"), ("stdout", "to stdout"), ("stderr", "to stderr")}


async def test_network__everything__is_refused(python: Python) -> None:
    said = await python.text("/network")

    assert said.count("exception") == 3, said
    assert " ok " not in said


async def test_files_and_environment__there_are_none(python: Python) -> None:
    said = await python.text("/files")

    assert "root:" not in said
    assert said.startswith("exception FileNotFoundError exception ")
    assert said.endswith("{} []")


async def test_sleep__within_the_deadline__sleeps(python: Python) -> None:
    assert await python.text("/nap") == "slept True"


async def test_clocks__show_tenths_of_a_millisecond_and_no_more(python: Python) -> None:
    readings = [tuple(map(int, pair.split("/"))) for pair in (await python.text("/clocks")).split()]

    assert len(readings) > 5
    assert {value % wasi.CLOCK_RESOLUTION_NS for pair in readings for value in pair} == {0}


async def test_sleep__beyond_the_deadline__ends_there_and_the_worker_lives(python: Python) -> None:
    ended = await python.get("/sleep", wall_time_us=300_000)

    assert (ended.kind, ended.limit, ended.done.limit.allowed) == ("limit", "wall_time", 300)
    assert (await python.text("/describe")).startswith("GET")


async def test_sleep__cancelled__ends(python: Python) -> None:
    call = await python.worker.begin(python.number, url="/sleep", wall_time_us=30_000_000, memory_bytes=128 * MIB)
    await python.worker.cancel(call)

    assert (await python.worker.end_of(call)).done.internal_error == "cancelled"


@pytest.mark.parametrize("url", ["/exit", "/exit-hard"])
async def test_exit__is_a_trap(python: Python, url: str) -> None:
    ended = await python.get(url)

    assert (ended.kind, ended.trap) == ("trapped", "exit")
    assert (await python.text("/describe")).startswith("GET")


async def test_exception__is_a_trap_with_its_traceback_in_the_log(python: Python) -> None:
    ended = await python.get("/raise")

    assert (ended.kind, ended.trap) == ("trapped", "unreachable")
    assert any("ZeroDivisionError" in line.message for line in ended.lines)


async def test_randomness__is_there(python: Python) -> None:
    assert await python.text("/chance") == "100000 True 50"


async def test_stdin__is_at_its_end(python: Python) -> None:
    assert await python.text("/stdin") == "''"


async def test_value_above_ten_mebibytes__is_refused_typed(python: Python) -> None:
    ended = await python.get(f"/big-value?{DATA_BYTES + 1}", capabilities=[*ALWAYS, "storage.kv"])

    assert ended.body == b"err <KvError.INVALID: 2>"
    assert ended.host_calls == []


async def test_value_of_ten_mebibytes__reaches_the_host_whole(python: Python) -> None:
    ended = await python.get(f"/big-value?{DATA_BYTES}", capabilities=[*ALWAYS, "storage.kv"], answer=lambda _f, _a: 7)

    assert ended.body == b"ok 7"
    ((name, arguments),) = ended.host_calls
    assert (name, arguments[2]) == ("extrunner:host/kv.put", bytes(range(256)) * (DATA_BYTES // 256))


async def test_hoarding__memory__is_the_memory_limit(python: Python) -> None:
    ended = await python.get("/hoard", wall_time_us=30_000_000)

    assert (ended.kind, ended.limit, ended.done.limit.allowed) == ("limit", "memory", 128 * MIB)


async def test_recursion__without_end__ends_in_the_guest(python: Python) -> None:
    ended = await python.get("/recurse", wall_time_us=30_000_000)

    assert ended.kind in {"trapped", "limit"}
    assert (await python.text("/describe")).startswith("GET")


def test_imports__of_the_python_toolchain__are_all_our_own_or_act_on_nothing() -> None:
    """Every WASI function that a Python guest imports: ours, or one that needs a file, a socket or a name lookup, which no guest has."""
    kit = EngineKit()
    compiled = wasm_component.Component.deserialize(kit.engine, compiled_of(build_python_guest(SOURCE)).artifact)
    needs_what_nobody_has = tuple(
        f"[method]{resource}."
        for resource in (
            "descriptor",
            "directory-entry-stream",
            "udp-socket",
            "tcp-socket",
            "incoming-datagram-stream",
            "outgoing-datagram-stream",
            "resolve-address-stream",
        )
    )
    left = []
    for name, imported in compiled.type.imports(kit.engine).items():
        item = imported.ty
        if not name.startswith("wasi:") or not isinstance(item, wasm_component.ComponentInstanceType):
            continue
        for function, exported in item.exports(kit.engine).items():
            if isinstance(exported.ty, wasm_component.FuncType) and (interface_of(name), function) not in wasi.FUNCTIONS:
                left.append(function)

    assert [function for function in left if not function.startswith(needs_what_nobody_has)] == []
    assert unknown_imports(inspect_component(build_python_guest(SOURCE).read_bytes())) == ()
