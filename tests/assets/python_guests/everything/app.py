"""A guest that does what its path says. Built by tests/fakes/guests.py."""

import os
import random
import socket
import sys
import time
from pathlib import Path

import wit_world
from componentize_py_types import Err
from wit_world.imports import clients, config, context, http, kv, logging, secrets, storage, user_v2
from wit_world.imports.types import ExecuteResponse, HttpHeader, HttpRequest, StorageEntry


def respond(status, text):
    return ExecuteResponse(status, [HttpHeader("Content-Type", "text/plain; charset=utf-8")], text.encode())


def attempt(action):
    try:
        return f"ok {action()!r}"
    except Err as error:
        return f"err {error.value!r}"
    except Exception as error:  # noqa: BLE001 - whatever it is, its name is the answer
        return f"exception {type(error).__name__}"


def describe(request):
    names = ",".join(f"{header.name}={header.value}" for header in request.http.headers)
    asked = context.get_context()
    size = "none" if request.http.body is None else str(len(request.http.body))
    return f"{request.http.method} {request.http.url} [{names}] body {size} {asked.tenant_id} {request.context.install_id}"


def notes(_request):
    stored = storage.put(StorageEntry("notes", "one", b"\x00\xffvalue", None))
    read = storage.get("notes", "one")
    missing = attempt(lambda: storage.get("notes", "two"))
    return f"{stored.revision} {read.value!r} {missing}"


def ungranted(_request):
    return " ".join(
        [
            attempt(lambda: secrets.get("key")),
            attempt(secrets.list_keys),
            attempt(lambda: http.fetch(HttpRequest("GET", "http://169.254.169.254/", [], None))),
            attempt(lambda: clients.get_client("c")),
            attempt(user_v2.get_user),
        ]
    )


def talk(_request):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.log_warn("a warning")
    return "said"


def network(_request):
    tcp = attempt(lambda: socket.create_connection(("127.0.0.1", 80), timeout=1))
    udp = attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53)))
    name = attempt(lambda: socket.getaddrinfo("localhost", 80))
    return f"tcp {tcp} udp {udp} name {name}"


def files(_request):
    reading = attempt(Path("/etc/passwd").read_text)
    listing = attempt(lambda: list(Path("/").iterdir()))
    return f"{reading} {listing} {dict(os.environ)!r} {sys.argv[1:]!r}"


def setting(_request):
    listed = {item.key: item.value for item in config.list()}
    return f"{config.get('colour')} {config.get('none')} {listed}"


def nap(_request):
    started = time.monotonic()
    time.sleep(0.05)
    return f"slept {time.monotonic() - started >= 0.05}"


def clocks(_request):
    # Until there are enough, however little of the processor there is for it.
    seen = {}
    while len(seen) < 20:
        seen[f"{time.monotonic_ns()}/{time.time_ns()}"] = None
    return " ".join(seen)


def chance(_request):
    return f"{len(os.urandom(100_000))} {random.random() < 1} {len({os.urandom(8) for _ in range(50)})}"


def big_value(request):
    size = int(request.http.url.partition("?")[2])
    return attempt(
        lambda: kv.put("n", "k", bytes(range(256)) * (size // 256) + b"x" * (size % 256), kv.PutOptions(None, False, None, None))
    )


def hoard(_request):
    kept = []
    while True:
        kept.append(bytearray(1024 * 1024))


def recurse(_request):
    def deeper(n):
        return deeper(n + 1) + 1

    sys.setrecursionlimit(10**9)
    return str(deeper(0))


ROUTES = {
    "/describe": describe,
    "/notes": notes,
    "/ungranted": ungranted,
    "/talk": talk,
    "/network": network,
    "/files": files,
    "/setting": setting,
    "/nap": nap,
    "/clocks": clocks,
    "/chance": chance,
    "/big-value": big_value,
    "/hoard": hoard,
    "/recurse": recurse,
    "/sleep": lambda _request: time.sleep(60),
    "/exit": lambda _request: sys.exit(3),
    "/exit-hard": lambda _request: os._exit(3),
    "/raise": lambda _request: 1 / 0,
    "/stdin": lambda _request: repr(sys.stdin.read()),
}


class WitWorld(wit_world.WitWorld):
    def handler(self, request):
        if request.http.url == "/echo":
            return ExecuteResponse(200, [], request.http.body)
        return respond(200, ROUTES[request.http.url.partition("?")[0]](request))
