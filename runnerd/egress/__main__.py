"""Entry of the child: `python -m runnerd.egress --control-fd N --settings JSON`. Started by `client`, never by hand."""

from __future__ import annotations

import argparse
import asyncio
import sys

from runnerd.egress.child import ChildSettings, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until the control channel ends."""
    parser = argparse.ArgumentParser(prog="python -m runnerd.egress", description="Sends requests of extensions; started by runnerd.")
    parser.add_argument("--control-fd", type=int, required=True, help="this end of the control channel")
    parser.add_argument("--settings", type=ChildSettings.from_argument, required=True, help="JSON; nothing of it is secret")
    options = parser.parse_args(arguments)
    asyncio.run(serve(options.settings, options.control_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
