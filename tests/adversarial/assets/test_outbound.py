"""The process that reads what strangers send is taken over: its listening socket, made in the host's network, must not lead out of it."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

_TAKEN_OVER = """
import socket, sys
from runnerd.worker.hardening import harden

harden("assets", require=True)
listening, target = socket.socket(fileno=int(sys.argv[1])), ("127.0.0.1", int(sys.argv[2]))
if sys.argv[3] == "shut":
    listening.shutdown(socket.SHUT_RDWR)
attempts = {
    "sendmsg": lambda: listening.sendmsg([b"out"], [], 0, target),
    "sendmsg-fastopen": lambda: listening.sendmsg([b"out"], [], socket.MSG_FASTOPEN, target),
    "sendto": lambda: listening.sendto(b"out", target),
    "sendto-fastopen": lambda: listening.sendto(b"out", socket.MSG_FASTOPEN, target),
    "connect": lambda: listening.connect(target),
    "new-socket": lambda: socket.socket(),
}
try:
    attempts[sys.argv[4]]()
except OSError as error:
    print(type(error).__name__)
else:
    print("out")
"""


@pytest.mark.parametrize("attempt", ["sendmsg", "sendmsg-fastopen", "sendto", "sendto-fastopen", "connect", "new-socket"])
@pytest.mark.parametrize("state", ["listening", "shut"])
def test_the_listening_socket_leads_nowhere(attempt: str, state: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target, socket.create_server(("127.0.0.1", 0)) as listening:
        ended = subprocess.run(
            [sys.executable, "-c", _TAKEN_OVER, str(listening.fileno()), str(target.getsockname()[1]), state, attempt],
            pass_fds=[listening.fileno()],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        target.setblocking(False)
        with pytest.raises(BlockingIOError):
            target.accept()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in {"PermissionError", "BrokenPipeError", "OSError"}
