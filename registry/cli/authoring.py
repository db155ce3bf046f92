"""`extctl build`, `pack`, `sign`, `verify` and `dev-trust init`: from sources to a signed bundle, offline."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from registry.cli.building import DEFAULT_WORLD, Toolchain, build, find_wit, language_of, pack
from registry.cli.options import DEFAULT_STATE_FOLDER, JsonOption, StateOption
from registry.cli.output import Progress, UsageError, endings, file_errors, result, warn
from registry.cli.rendering import visible
from registry.cli.state import state_at
from registry.domain.digests import ContentHash, from_hex
from registry.domain.errors import Reason, RefusalError
from registry.domain.records import AllowedSigner
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.provenance.verifier import MAX_BUNDLE_BYTES, BundleVerifier, TrustConfigurationError, load_trust_domains

DEFAULT_IDENTITY: Final = "https://dev.invalid/people/alice"
ARCHIVE: Final = "bundle.tar.zst"
SIGNATURE: Final = "bundle.sigstore.json"
_KIB: Final = 1024

dev_trust = typer.Typer(no_args_is_help=True, help="The signing authority of a development machine (NON-PRODUCTION).")


@dev_trust.command("init")
def init_dev_trust(state: StateOption = DEFAULT_STATE_FOLDER, *, as_json: JsonOption = False) -> None:
    """Make the development trust domain, if there is none yet.

    Its keys are made on this machine, lie in STATE/trust (0700) and are good for this machine only: whoever holds them signs as anyone.
    """
    with endings(as_json=as_json):
        trust = _development_trust(state, create=True)
        warn("NON-PRODUCTION: what is signed under this domain is refused by every installation that is not set to development.")
        document = {"domain": DOMAIN, "issuer": ISSUER, "trust_domains": str(trust.trust_domains_path), "production": False}
        result(document, as_json=as_json, text=f"trust domain {DOMAIN} in {visible(str(trust.folder))}")


def build_project(  # noqa: PLR0913 - options
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder with manifest.json, src/app.py or src/app.js, and ui/.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; PROJECT/build if absent.")] = None,
    wit: Annotated[Path | None, typer.Option(help="Folder with the definition of the world; the installed one if absent.")] = None,
    world: Annotated[str, typer.Option(help="World that the component is built against.")] = DEFAULT_WORLD,
    toolchain: Annotated[
        Path | None, typer.Option(help="Folder whose node_modules holds componentize-js; the project and the folders above it if absent.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps finished components by the content of their sources.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build an extension's component and lay it out with manifest and interface, ready for `extctl pack`."""
    with endings(as_json=as_json):
        tools = Toolchain(wit=find_wit() if wit is None else wit, world=world, node_modules=toolchain, cache=cache)
        with Progress(f"building the {language_of(project)} component of {project.name}"):
            built = build(project, project / "build" if output is None else output, tools)
        document = {
            "folder": str(built.folder),
            "language": built.language,
            "component_bytes": built.component_bytes,
            "cached": built.cached,
            "seconds": round(built.seconds, 3),
        }
        size = f"{built.component_bytes / _KIB:,.0f} KiB" + (", from the cache" if built.cached else "")
        result(document, as_json=as_json, text=f"{visible(str(built.folder))} ({built.language}, component {size})")


def pack_bundle(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with manifest.json, dist/main.wasm and ui/: what `build` makes.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Archive to write.")] = Path(ARCHIVE),
    as_json: JsonOption = False,
) -> None:
    """Pack a folder into a bundle: the same files give the same bytes on any machine. Prints the content hash."""
    with endings(as_json=as_json), file_errors():
        with Progress(f"packing {folder.name}"):
            packed = pack(folder, output)
        manifest = packed.contents.manifest
        document = {
            "archive": str(output),
            "content_hash": packed.content_hash,
            "packed_bytes": packed.contents.packed_bytes,
            "files": len(packed.contents.files),
            "name": manifest.name,
            "publisher": manifest.publisher,
            "version": manifest.version,
        }
        result(
            document, as_json=as_json, text=f"{packed.content_hash}  {visible(str(output))}  {visible(manifest.name)} {manifest.version}"
        )


def sign_bundle(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The packed bundle.")],
    *,
    identity: Annotated[str, typer.Option(help="Who signs, under .invalid.")] = DEFAULT_IDENTITY,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Signature to write; {SIGNATURE} beside the archive if absent.")
    ] = None,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle with the development authority of this machine (NON-PRODUCTION).

    For production, sign the archive with any sigstore client: `sigstore sign bundle.tar.zst`.
    """
    with endings(as_json=as_json), file_errors():
        if os.environ.get("ENV") == "production":
            message = "The development authority does not sign where ENV=production; sign with a sigstore client."
            raise RefusalError(Reason.SIGNATURE_REJECTED, message)
        trust = _development_trust(state, create=False)
        try:
            signature = trust.sign(archive, identity)
        except ValueError as exc:
            message = f"The identity is refused: {exc}."
            raise UsageError(message) from exc
        target = archive.with_name(SIGNATURE) if output is None else output
        target.write_bytes(signature)
        warn("NON-PRODUCTION: signed with this machine's development authority.")
        document = {"signature": str(target), "trust_domain": DOMAIN, "issuer": ISSUER, "identity": identity, "production": False}
        result(document, as_json=as_json, text=f"signed by {identity} (issuer {ISSUER}, trust domain {DOMAIN}): {visible(str(target))}")


def verify_bundle(  # noqa: PLR0913 - options
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The packed bundle.")],
    *,
    identity: Annotated[str, typer.Option(help="Who must have signed, exactly.")],
    issuer: Annotated[str, typer.Option(help="Who must have vouched for that identity, exactly.")] = ISSUER,
    signature: Annotated[Path | None, typer.Option(help=f"The signature; {SIGNATURE} beside the archive if absent.")] = None,
    trust_domains: Annotated[
        Path | None, typer.Option("--trust-domains", help="File that lists the trust domains; that of the development machine if absent.")
    ] = None,
    trust_domain: Annotated[str, typer.Option("--trust-domain", help="Name of the trust domain.")] = DOMAIN,
    state: StateOption = DEFAULT_STATE_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Verify, offline, that an archive was signed by exactly this signer. There is no way to verify "by anybody"."""
    with endings(as_json=as_json), file_errors():
        file = state_at(state).trust_domains if trust_domains is None else trust_domains
        # What a development machine trusts is accepted only from where such a machine keeps it, or where ENV says so.
        environment = "development" if trust_domains is None else os.environ.get("ENV", "production")
        try:
            verifier = BundleVerifier(load_trust_domains(file, environment=environment))
        except TrustConfigurationError as exc:
            raise UsageError(str(exc)) from exc
        with (archive.with_name(SIGNATURE) if signature is None else signature).open("rb") as stream:
            signed = stream.read(MAX_BUNDLE_BYTES + 1)
        signer = AllowedSigner(trust_domain=trust_domain, issuer=issuer, identity=identity)
        proof = verifier.verify(content_hash=_hash_file(archive), bundle_json=signed, signers=[signer])
        document = {
            "content_hash": proof.content_hash,
            "trust_domain": proof.trust_domain,
            "production": proof.production,
            "issuer": proof.issuer,
            "identity": proof.identity,
            "signed_at": proof.signed_at.isoformat(),
        }
        label = "" if proof.production else "  NON-PRODUCTION"
        text = f"good: {proof.content_hash} signed by {visible(proof.identity)} (issuer {visible(proof.issuer)}){label}"
        result(document, as_json=as_json, text=text)


def _development_trust(state: Path, *, create: bool) -> DevTrust:
    folder = state_at(state).trust
    try:
        if not create:
            return DevTrust.open(folder)
        state_at(state).root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return DevTrust.init(folder)
    except TrustConfigurationError as exc:
        raise UsageError(str(exc)) from exc


def _hash_file(file: Path) -> ContentHash:
    with file.open("rb") as stream:
        return from_hex(hashlib.file_digest(stream, "sha256").hexdigest())
