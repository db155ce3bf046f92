"""`extctl publisher`: who may publish, and who may sign for them. For the platform's operators."""

from __future__ import annotations

from typing import Annotated

import typer

from registry.cli.connect import connected, items_of, path_segment
from registry.cli.options import DEFAULT_STATE_FOLDER, GatewayOption, JsonOption, StateOption, TokenFileOption
from registry.cli.output import endings, result
from registry.cli.rendering import table, visible
from registry.provenance.dev_trust import DOMAIN, ISSUER
from registry.tokens import ANY_TENANT

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The publisher's name.")]

publisher = typer.Typer(no_args_is_help=True, help="Publishers and the identities that may sign for them.")


@publisher.command("create")
def create(
    name: NameArgument,
    *,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Create a publisher. Nobody may sign for it yet. Needs the role ext:operate."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=ANY_TENANT, roles=["ext:operate"]) as client:
        made = client.admin("POST", "/publishers", json={"name": name})
        result(made, as_json=as_json, text=f"publisher {visible(name)} created")


@publisher.command("add-signer")
def add_signer(  # noqa: PLR0913 - options
    name: NameArgument,
    *,
    identity: Annotated[str, typer.Option(help="The identity in the signing certificate, exactly.")],
    issuer: Annotated[str, typer.Option(help="Who vouches for that identity, exactly.")] = ISSUER,
    trust_domain: Annotated[str, typer.Option("--trust-domain", help="Name of the trust domain.")] = DOMAIN,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Allow one identity to sign for a publisher. Needs the role ext:operate: a signer's code runs for every tenant that installs it."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=ANY_TENANT, roles=["ext:operate"]) as client:
        signer = {"trust_domain": trust_domain, "issuer": issuer, "identity": identity}
        changed = client.admin("POST", f"/publishers/{path_segment(name)}/signers", json=signer)
        result(changed, as_json=as_json, text=f"{visible(identity)} (issuer {visible(issuer)}) may sign for {visible(name)}")


@publisher.command("list")
def list_publishers(
    *,
    gateway: GatewayOption = None,
    token_file: TokenFileOption = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List the publishers and who may sign for each (the first hundred)."""
    with endings(as_json=as_json), connected(gateway, state, token_file, tenant=ANY_TENANT, roles=["ext:operate"]) as client:
        page = client.admin("GET", "/publishers", params={"limit": 100})
        rows = [{"publisher": item.get("name"), **signer} for item in items_of(page) for signer in item.get("signers") or [{}]]
        result(page, as_json=as_json, text=table(rows, ["publisher", "trust_domain", "issuer", "identity"]))
