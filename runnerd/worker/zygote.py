"""The zygote: a process that has imported everything and made nothing, so that a worker is a fork away. `python -m runnerd.worker.zygote`.

It holds one thread, no engine (a fork after anything was compiled hangs, RUNTIME §4.6), no key and no socket but its control channel. The
daemon sends a worker's end of a socketpair with its configuration; the zygote forks, answers with the process id and a pidfd, reaps, and
reports exits. It ends with the daemon, and its workers with it.

Control messages are JSON, one a packet (SOCK_SEQPACKET):
    daemon → zygote  {"op": "fork", "id": 1, "config": {…}} + [the worker's socket]
    zygote → daemon  {"op": "ready", "pid": 2} · {"op": "forked", "id": 1, "pid": 3} + [pidfd] · {"op": "failed", "id": 1, "why": "…"}
                     {"op": "exited", "pid": 3, "status": -9}    (negative: by that signal)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import metadata
from typing import Any

from runnerd.engine.profile import engine_fingerprint
from runnerd.worker import hardening
from runnerd.worker.hardening import HardeningReport
from runnerd.worker.process import run_worker
from runnerd.worker.settings import WorkerConfig

MAX_MESSAGE_BYTES = 16 * 1024
MAX_DESCRIPTORS = 1
EXIT_STILLBORN = 73
"""Of a worker that failed before it could say anything itself."""
_READ_ALL = select.POLLIN | select.POLLHUP | select.POLLERR


class Zygote:
    """Forks workers on demand until the control channel closes."""

    def __init__(self, control: socket.socket, *, build: str, inherited: HardeningReport) -> None:
        self._control = control
        self._build = build
        self._inherited = inherited
        self._children: dict[int, int] = {}
        """pidfd → pid."""
        self._poll = select.poll()

    def serve(self) -> None:
        """Answer requests and reap until the daemon is gone."""
        self._poll.register(self._control.fileno(), _READ_ALL)
        self._send({"op": "ready", "pid": os.getpid()})
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._serve_request():
                    return

    def _serve_request(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        if not data:
            return False
        request = json.loads(data)
        if len(descriptors) != 1:
            self._send({"op": "failed", "id": request["id"], "why": "no socket came with the request"})
            return True
        try:
            self._fork(request, descriptors[0])
        except (OSError, ValueError) as exc:
            self._send({"op": "failed", "id": request["id"], "why": f"{type(exc).__name__}: {exc}"[:200]})
        finally:
            os.close(descriptors[0])
        return True

    def _fork(self, request: dict[str, Any], descriptor: int) -> None:
        config = WorkerConfig.from_json(request["config"])
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            # SECURITY: from here on this is the worker; it must never return into the zygote's loop.
            try:
                # Whoever holds the channel keeps the daemon from hearing that the zygote is gone.
                self._control.close()
                run_worker(socket.socket(fileno=descriptor), config, parent=parent, build=self._build, inherited=self._inherited)
            finally:
                os._exit(EXIT_STILLBORN)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._send({"op": "forked", "id": request["id"], "pid": pid}, [pidfd])

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send({"op": "exited", "pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], descriptors or [])


def main(arguments: list[str] | None = None) -> int:
    """Run a zygote on the control channel that it inherited."""
    parser = argparse.ArgumentParser(prog="runnerd.worker.zygote", description="Forks workers. Started by runnerd.")
    parser.add_argument("--control-fd", type=int, required=True, help="descriptor of the control channel")
    options = parser.parse_args(arguments)
    control = socket.socket(fileno=options.control_fd)
    return serve(control)


def serve(control: socket.socket) -> int:
    """Be a zygote until the daemon closes `control` or dies."""
    # A service manager may send its signals to every process of the group; workers end when the daemon has let their calls end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hardening.die_with_parent()
    if os.getppid() == 1:
        # The daemon died before the line above could be heard. (As process 1 of a container it has not: then end of file says so.)
        control.setblocking(False)
        try:
            if not control.recv(1, socket.MSG_PEEK):
                return 0
        except BlockingIOError:
            pass
        control.setblocking(True)
    # What workers cannot read any more: the processor's features, the package's metadata.
    engine_fingerprint()
    build = metadata.version("extrunner")
    inherited = hardening.enter_namespaces()
    # Nothing here is garbage; without this the first collection in each worker would copy every page.
    gc.collect()
    gc.freeze()
    try:
        Zygote(control, build=build, inherited=inherited).serve()
    except ConnectionError:
        # The daemon ended between two packets.
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
