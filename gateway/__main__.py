"""`ext-gateway`: reads the settings, serves until it is told to stop, then finishes what has begun."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop

from gateway import config
from gateway.app import open_gateway
from gateway.config import GatewaySettings, Serve, StartError
from gateway.http_protocol import ConnectionLimits, bounded_protocol
from registry.domain.errors import RefusalError
from registry.key_sets import KeySetError
from registry.logs import configure_logs

EXIT_CANNOT_START = 1
EXIT_BAD_SETTINGS = 2

_log = structlog.get_logger("gateway")


class _Server(uvicorn.Server):
    """uvicorn, but it says where it listens, and a signal ends the process with status 0 instead of being raised again."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=sockets)
        addresses = [str(listener.getsockname()) for server in self.servers for listener in server.sockets]
        _log.info("listening", addresses=addresses)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT; a second one does not wait for what runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway. Returns the exit status: 0 after a signal, 1 if it could not start, 2 for bad settings."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = config.load(serve=options.serve, host=options.host, port=options.port)
    except ValueError as error:
        parser.exit(EXIT_BAD_SETTINGS, f"ext-gateway: {_readable(error)}\n")
    if options.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    configure_logs("gateway", level=settings.log_level)
    if not settings.is_production:
        _log.warning("development_mode", hint="development keys, embedded databases and one process for everything are accepted")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings))
    except (StartError, KeySetError, RefusalError, OSError) as error:
        _log.error("cannot_start", error=str(error))
        return EXIT_CANNOT_START


async def _serve(settings: GatewaySettings) -> int:
    async with open_gateway(settings) as app:
        server = _Server(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=bounded_protocol(ConnectionLimits(header_timeout_seconds=settings.limits.header_timeout_seconds)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # SECURITY: X-Forwarded-* of a caller must not become a client address or a scheme.
                proxy_headers=False,
                limit_concurrency=settings.limits.connections,
                timeout_keep_alive=settings.limits.keep_alive_seconds,
                timeout_graceful_shutdown=settings.limits.drain_seconds,
            )
        )
        await server.serve()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ext-gateway",
        description="The HTTP face of the extension runner. Settings come from GATEWAY_… variables; --print-config shows them all.",
    )
    parser.add_argument("--serve", type=Serve, choices=list(Serve), help="which faces to show (default: GATEWAY_SERVE, or invoke)")
    parser.add_argument("--host", help="address to listen on (default: GATEWAY_HOST, or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: GATEWAY_PORT, or 8080)")
    parser.add_argument("--print-config", action="store_true", help="print the effective settings as JSON and exit")
    return parser


def _readable(error: ValueError) -> str:
    """Say what is wrong with the settings, without their values."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    places = [f"{'.'.join(str(part) for part in entry['loc']) or 'settings'}: {entry['msg']}" for entry in errors(include_url=False)]
    return "; ".join(places) or json.dumps(str(error))


if __name__ == "__main__":
    sys.exit(main())
