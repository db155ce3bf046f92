"""`extctl invoke`: call an extension through the gateway, or the daemon directly as another internal service would."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from registry.cli.connect import gateway_address
from registry.cli.credentials import Credentials
from registry.cli.gateway_client import GatewayClient
from registry.cli.invocation import Answer, ExtensionCall
from registry.cli.options import DEFAULT_STATE_FOLDER, GatewayOption, JsonOption, StateOption, TenantOption, TokenFileOption
from registry.cli.output import ExitCode, Progress, UnavailableError, UsageError, endings, file_errors, say, warn
from registry.cli.rendering import visible, visible_block, visible_json
from registry.cli.runner_client import execute
from registry.cli.state import MachineState, state_at

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_MAX_BODY_BYTES: Final = 32 * 1024 * 1024
_HTTP_ERROR: Final = 400


def invoke(  # noqa: PLR0913 - options
    extension: Annotated[str, typer.Argument(metavar="EXTENSION", help="Name or id of the extension.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Path within the extension, with its query if any.")] = "/",
    *,
    tenant: TenantOption,
    method: Annotated[str | None, typer.Option("--method", "-X", help=f"One of {', '.join(METHODS)}; GET, or POST with data.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Body to send.")] = None,
    data_file: Annotated[Path | None, typer.Option("--data-file", help="File to send as the body; - is standard input.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE", help="A header; may be repeated.")] = None,
    use_grpc: Annotated[bool, typer.Option("--grpc", help="Call the daemon of this machine directly, as a service.")] = False,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 where the extension answers 400 or more.")] = False,
    subject: Annotated[str, typer.Option(help="User id of a minted token.")] = "alice",
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Call an extension and print status, headers, body and the id of the execution.

    Exit code 0 where the extension answered, whatever it answered (see --fail); 1 where the call was refused or the extension failed.
    """
    with endings(as_json=as_json), file_errors():
        body = _body(data, data_file)
        call = ExtensionCall(
            tenant_id=tenant,
            extension_id=_checked_extension(extension),
            method=_checked_method(method or ("GET" if body is None else "POST")),
            path=_checked_path(path).partition("?")[0],
            query=path.partition("?")[2],
            headers=_headers_of(header or []),
            body=body,
        )
        machine = state_at(state)
        credentials = Credentials(machine, token_file)
        with Progress(f"calling {extension}"):
            if use_grpc:
                token = credentials.service_token(tenants=[tenant], scopes=["execute"])
                answer = execute(_grpc_target(machine), token, call)
            else:
                token = credentials.user_token(tenant=tenant, roles=["ext:invoke"], subject=subject)
                with GatewayClient(gateway_address(gateway, machine), token) as client:
                    answer = client.call(call)
        _show(answer, as_json=as_json)
        if answer.problem is not None:
            if as_json:
                raise typer.Exit(answer.problem.exit_code)
            raise answer.problem
        if fail and (answer.status or 0) >= _HTTP_ERROR:
            raise typer.Exit(ExitCode.REFUSED)


def answer_document(answer: Answer) -> dict[str, Any]:
    """Return an answer as a JSON object; a body that is no text is in base64."""
    document: dict[str, Any] = {
        "via": answer.via,
        "outcome": answer.outcome,
        "status": answer.status,
        "headers": [list(header) for header in answer.headers],
        "execution_id": answer.execution_id,
        "request_id": answer.request_id,
        "wall_ms": round(answer.wall_ms, 1),
    }
    try:
        document["body"] = answer.body.decode("utf-8")
    except UnicodeDecodeError:
        document["body_base64"] = base64.b64encode(answer.body).decode()
    if answer.problem is not None:
        document["error"] = {"reason": answer.problem.reason, "detail": answer.problem.detail, "status": answer.problem.status}
    return document


def _show(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        say(visible_json(answer_document(answer)))
        return
    if answer.problem is not None:
        return
    say(f"{answer.status}  via {answer.via}, {answer.wall_ms:.1f} ms")
    for name, value in answer.headers:
        say(f"{visible(name)}: {visible(value)}")
    say()
    # SECURITY: a terminal gets what can be shown; a pipe gets the extension's bytes as they are.
    if sys.stdout.isatty():
        say(visible_block(answer.body.decode("utf-8", "replace")))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(answer.body + b"\n")
        sys.stdout.flush()
    if answer.execution_id:
        warn(f"execution {visible(answer.execution_id)}")


def _checked_extension(extension: str) -> str:
    if not extension or not extension.isascii() or not all(character.isalnum() or character in ".-" for character in extension):
        message = f"{extension!a} is no name or id of an extension."
        raise UsageError(message)
    return extension


def _checked_method(method: str) -> str:
    if method.upper() not in METHODS:
        message = f"{method!a} is no method; the methods are {', '.join(METHODS)}."
        raise UsageError(message)
    return method.upper()


def _checked_path(path: str) -> str:
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path or "#" in path:
        message = "The path begins with / and is percent-encoded already."
        raise UsageError(message)
    return path


def _headers_of(lines: list[str]) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for line in lines:
        name, sign, value = line.partition(":")
        if not sign or not name.strip() or not line.isprintable() or not line.isascii():
            message = f"{line!a} is not NAME: VALUE."
            raise UsageError(message)
        pairs.append((name.strip().lower(), value.strip()))
    return tuple(pairs)


def _body(data: str | None, data_file: Path | None) -> bytes | None:
    if data is not None and data_file is not None:
        message = "--data and --data-file contradict each other."
        raise UsageError(message)
    if data_file is None:
        return None if data is None else data.encode()
    if str(data_file) == "-":
        body = sys.stdin.buffer.read(_MAX_BODY_BYTES + 1)
    else:
        with data_file.open("rb") as stream:
            body = stream.read(_MAX_BODY_BYTES + 1)
    if len(body) > _MAX_BODY_BYTES:
        message = f"The body is longer than {_MAX_BODY_BYTES} bytes."
        raise UsageError(message)
    return body


def _grpc_target(state: MachineState) -> str:
    addresses = state.addresses()
    if addresses is None:
        message = f"No machine runs on {state.root}; start one with `extctl up`."
        raise UnavailableError(message)
    return addresses.grpc
