"""`extctl publish`: send a signed bundle to the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.cli.authoring import SIGNATURE
from registry.cli.connect import connected
from registry.cli.options import DEFAULT_STATE_FOLDER, GatewayOption, JsonOption, StateOption, TokenFileOption
from registry.cli.output import Progress, UsageError, endings, file_errors, result
from registry.cli.rendering import visible
from registry.provenance.verifier import MAX_BUNDLE_BYTES
from registry.tokens import ANY_TENANT


def publish(  # noqa: PLR0913 - options
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The packed bundle.")],
    *,
    signature: Annotated[Path | None, typer.Option(help=f"The signature; {SIGNATURE} beside the archive if absent.")] = None,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Publish a signed bundle: it is verified and compiled there before anybody can see it. Needs the role ext:publish.

    A refused or interrupted publish leaves nothing behind; sending the same again is safe.
    """
    with endings(as_json=as_json), file_errors():
        signed = read_signature(archive.with_name(SIGNATURE) if signature is None else signature)
        with (
            connected(gateway, state, token_file, tenant=ANY_TENANT, roles=["ext:publish"]) as client,
            Progress(f"publishing {archive.name}") as progress,
        ):
            published = client.publish(archive, signed, progress.update)
        what = f"{published.get('extension_name')} {published.get('version')}"
        news = "published" if published.get("created") else "was published already:"
        signer = (published.get("signer") or {}).get("identity")
        text = f"{news} {visible(what)} as {visible(str(published.get('content_hash')))}, signed by {visible(str(signer))}"
        result(published, as_json=as_json, text=text)


def read_signature(file: Path) -> bytes:
    """Read a sigstore bundle.

    Raises:
        UsageError: the file is empty or too long for one.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        signature = stream.read(MAX_BUNDLE_BYTES + 1)
    if not signature or len(signature) > MAX_BUNDLE_BYTES:
        message = f"{file} is no signature: it is empty or longer than {MAX_BUNDLE_BYTES} bytes."
        raise UsageError(message)
    return signature
