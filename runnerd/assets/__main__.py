"""Entry of the child: `python -m runnerd.assets --control-fd N --listen-fd M`. Started by `supervisor`, never by hand."""

from __future__ import annotations

import argparse
import asyncio
import sys

from runnerd.assets.child import ChildSettings, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until the control channel ends."""
    parser = argparse.ArgumentParser(prog="python -m runnerd.assets", description="Serves interface files; started by runnerd.")
    parser.add_argument("--control-fd", type=int, required=True, help="this end of the control channel")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--frame-ancestor", action="append", default=[], help="origin that may embed interfaces; may be repeated")
    parser.add_argument("--require-hardening", action="store_true", help="stop where a mandatory step of hardening fails")
    options = parser.parse_args(arguments)
    settings = ChildSettings(
        control_fd=options.control_fd,
        listen_fd=options.listen_fd,
        frame_ancestors=tuple(options.frame_ancestor),
        require_hardening=options.require_hardening,
    )
    asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
