"""One port for several cells: found free, chosen once, and held while cells come and go (SO_REUSEPORT).

Cells share the port because the kernel lets processes of one user do that when all of them ask for it. It would let a second daemon of
this user join just as silently, so the supervisor first makes sure that nobody is there.
"""

from __future__ import annotations

import socket


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port without listening: connections go to the cells alone.

    Args:
        host: numeric address or name.
        port: 0 picks one.

    Raises:
        OSError: the address cannot be had; somebody else listens there.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        # Only listening tells: two sockets may be bound to one address as long as neither does.
        alone.listen(1)
        chosen = alone.getsockname()
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(chosen)
    except OSError:
        held.close()
        raise
    return held
