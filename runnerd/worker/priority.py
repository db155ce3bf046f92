"""How a worker shares its processor: weighed as one whatever its threads, and behind the daemon (T23).

The attack it stops: the kernel shares a processor out by thread, so the tenant whose worker has sixteen guests in endless loops gets
sixteen parts where another's worker gets one, and the daemon, which everybody needs, waits behind them all.

Where the kernel groups threads by session (autogroup; machines whose processors no cgroup shares out), a worker is a session of its own and
gets one part. Elsewhere only the niceness counts, and admission alone bounds how many guests of one tenant compute at once. Neither
needs a privilege, and neither can be undone from inside.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 5
"""A third of the daemon's weight: it goes first, and a daemon in distress does not stop guests."""
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_TRIES: Final = 8
_PAUSE_SECONDS: Final = 0.05


def stand_back() -> None:
    """Become a session of its own and nicer than the daemon. Once, in a freshly forked process with one thread that may still open files.

    Raises:
        OSError: this process already leads a session or a group.
    """
    os.setsid()
    be_nicer(NICENESS)


def be_nicer(niceness: int) -> None:
    """Step behind who is less nice: as a process, and where the kernel groups by session, as the session that this process leads.

    Both, because niceness counts among the threads of one group only. Needs files: call it before the hardening.
    """
    os.nice(niceness)
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:
            # For users other than root the kernel takes ten changes a second, from all processes together.
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            # This kernel does not group.
            return
        else:
            return
