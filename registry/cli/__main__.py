"""Entry of `extctl`."""

from __future__ import annotations

import typer

from registry.cli import authoring, installing, invoking, operating, publishing, up
from registry.cli.database import db
from registry.cli.publishers import publisher
from registry.cli.schedules import schedules
from registry.cli.secrets import secrets
from registry.cli.token import token

app = typer.Typer(
    name="extctl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Build, sign, publish, install, call and operate extensions; `extctl up` runs everything on this machine.",
    epilog="Exit codes: 0 done, 1 refused (the reason is printed), 2 wrong usage, 3 something needed is not available.",
)
app.command("build")(authoring.build_project)
app.command("pack")(authoring.pack_bundle)
app.command("sign")(authoring.sign_bundle)
app.command("verify")(authoring.verify_bundle)
app.command("publish")(publishing.publish)
app.command("install")(installing.install)
app.command("invoke")(invoking.invoke)
app.command("executions")(operating.executions)
app.command("metrics")(operating.metrics)
app.command("deny")(operating.deny)
app.command("up")(up.up)
app.add_typer(installing.installs, name="installs")
app.add_typer(secrets, name="secrets")
app.add_typer(schedules, name="schedules")
app.add_typer(publisher, name="publisher")
app.add_typer(token, name="token")
app.add_typer(authoring.dev_trust, name="dev-trust")
app.add_typer(db, name="db")


def main() -> None:
    """Run `extctl`."""
    app()


if __name__ == "__main__":
    main()
