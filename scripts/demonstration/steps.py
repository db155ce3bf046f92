"""The steps of the demonstration. Each does something through the product's front doors, checks what came back, and only then shows it."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from registry.cli.authoring import DEFAULT_IDENTITY
from registry.cli.connect import items_of
from registry.cli.credentials import mint_service_token, mint_user_token
from registry.cli.development import DevelopmentMachine
from registry.cli.gateway_client import GatewayClient
from registry.cli.installing import install_or_update
from registry.cli.invocation import Answer, ExtensionCall
from registry.cli.output import ProblemError, Progress
from registry.cli.rendering import visible
from registry.cli.runner_client import execute
from registry.provenance.dev_trust import DOMAIN, ISSUER, DevTrust
from registry.tokens import ANY_TENANT
from scripts.demonstration.report import Invocation, Report
from scripts.demonstration.samples import JAVASCRIPT, PYTHON, Sample, build_sample, javascript_is_available
from scripts.demonstration.tampering import flipped_copy, flipped_in_store, set_aside

ACME: Final = "acme"
GLOBEX: Final = "globex"
GRANTS: Final[Mapping[str, tuple[str, ...]]] = {ACME: ("storage.kv", "user.read"), GLOBEX: ("storage.kv",)}
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {ACME: {"greeting": "Welcome to Acme"}, GLOBEX: {"greeting": "Globex keeps notes"}}
_REFUSED_AT_PUBLISH: Final = frozenset({"SIGNATURE_REJECTED", "INVALID_BUNDLE"})
_MAX_BUMPS: Final = 50
_EXECUTIONS: Final = "extrunner_executions_total{"
_RECORD_TRIES: Final = 40
_RECORD_PAUSE_SECONDS: Final = 0.25


@dataclass(slots=True)
class Demonstration:
    """One run against a started machine."""

    machine: DevelopmentMachine
    report: Report
    samples: list[Sample]
    work: Path

    def run(self) -> None:
        """Show everything.

        Raises:
            CheckFailedError: a fact did not hold.
            ProblemError, UnavailableError: a service refused what it must accept, or is gone.
        """
        self.publish()
        self.install()
        self.tamper_at_publish()
        # Before the calls: it starts the daemon anew, whose metrics then count them all.
        self.tamper_at_load()
        for sample in self.samples:
            self.call(sample)
        self.fetch_interface()
        self.read_metrics()
        self.read_record()

    def publish(self) -> None:
        """Sign and publish every sample."""
        self.report.step("sign and publish")
        trust = DevTrust.open(self.machine.state.trust)
        with self._operator() as client:
            _accepting(client, "ALREADY_EXISTS", "/publishers", {"name": self.samples[0].publisher})
            signer = {"trust_domain": DOMAIN, "issuer": ISSUER, "identity": DEFAULT_IDENTITY}
            client.admin("POST", f"/publishers/{self.samples[0].publisher}/signers", json=signer)
            for index, sample in enumerate(self.samples):
                self.samples[index] = self._publish(client, trust, sample)

    def _publish(self, client: GatewayClient, trust: DevTrust, sample: Sample) -> Sample:
        """Publish a sample; where this state has its version with other content (it was built anew), as the next version."""
        for _ in range(_MAX_BUMPS):
            signature = trust.sign(sample.archive, DEFAULT_IDENTITY)
            try:
                with Progress(f"   publishing {sample.name}") as progress:
                    published = client.publish(sample.archive, signature, progress.update)
            except ProblemError as problem:
                if problem.reason != "VERSION_EXISTS":
                    raise
                sample = self._next_version(sample)
                continue
            signer = published.get("signer") or {}
            self.report.check(holds=published.get("content_hash") == sample.content_hash, otherwise="the registry published another hash")
            self.report.check(holds=signer.get("identity") == DEFAULT_IDENTITY, otherwise=f"the registry verified another signer: {signer}")
            self.report.verified_signer = signer["identity"]
            news = "published" if published.get("created", True) else "was published already"
            self.report.show(f"{sample.name} {sample.version} {news}: {sample.content_hash}")
            self.report.show(
                f"signer verified by the registry: {visible(signer['identity'])} (issuer {visible(str(signer.get('issuer')))})"
            )
            return sample
        raise ProblemError(reason="VERSION_EXISTS", detail=f"too many versions of {sample.name} in this state folder", status="409")

    def _next_version(self, sample: Sample) -> Sample:
        manifest = json.loads((sample.folder / "manifest.json").read_bytes())
        major, minor, patch = manifest["version"].split(".")
        manifest["version"] = f"{major}.{minor}.{int(patch) + 1}"
        return build_sample(sample.example, self.work, manifest=json.dumps(manifest, indent=2).encode())

    def install(self) -> None:
        """Install every sample for two tenants with different grants."""
        self.report.step("install for two tenants with different grants")
        for tenant, grants in GRANTS.items():
            with self._administrator(tenant) as client:
                for sample in self.samples:
                    wanted: dict[str, Any] = {
                        "extension": sample.name,
                        "version": sample.version,
                        "granted": list(grants),
                        "config": dict(SETTINGS[tenant]),
                        "endpoint_policy": "enforce",
                    }
                    with Progress(f"   installing {sample.name}"):
                        made = install_or_update(client, wanted, tenant=tenant, update=True)
                    self.report.check(
                        holds=set(made.get("granted", ())) == set(grants), otherwise=f"{tenant} was granted {made.get('granted')}"
                    )
                    self.report.show(f"{tenant:<7} {sample.name} {sample.version}: {', '.join(grants)}")

    def call(self, sample: Sample) -> None:
        """Call one sample over both ways, for both tenants."""
        self.report.step(f"call {sample.name} over HTTP and gRPC")
        about = self._json(self._http(sample, ACME, "GET", "/"), 200)
        self.report.check(holds=about.get("greeting") == SETTINGS[ACME]["greeting"], otherwise=f"another tenant's setting: {about}")
        title = f"Note {secrets.token_hex(4)}"
        note = self._json(self._http(sample, ACME, "POST", "/notes", {"title": title, "text": "Grüße"}), 201)
        theirs = self._http(sample, ACME, "GET", "/notes")
        self.report.check(holds=title.encode() in theirs.body, otherwise="the note was not kept")
        others = self._http(sample, GLOBEX, "GET", "/notes")
        self.report.check(
            holds=self._json(others, 200).get("greeting") == SETTINGS[GLOBEX]["greeting"], otherwise="another tenant's setting"
        )
        # The note of one tenant, asked for by its id in the name of the other; an id may be in use there too, for another note.
        by_id = self._grpc(sample, GLOBEX, "GET", f"/notes/{note['id']}")
        self.report.check(holds=title.encode() not in others.body + by_id.body, otherwise="one tenant reads another's notes")
        again = self._json(self._grpc(sample, ACME, "GET", f"/notes/{note['id']}"), 200)
        self.report.check(holds=again == note, otherwise=f"gRPC read another note: {again}")
        self.report.show(f"{GLOBEX} cannot see the note of {ACME}; gRPC reads what HTTP wrote")
        who = self._json(self._http(sample, ACME, "GET", "/whoami"), 200)
        self.report.check(holds=(who.get("user") or {}).get("id") == "alice", otherwise=f"the extension sees another user: {who}")
        refused = self._json(self._http(sample, GLOBEX, "GET", "/whoami"), 403)
        self.report.check(holds=refused.get("capability") == "user.read", otherwise=f"not refused for its capability: {refused}")
        self.report.show(f"{GLOBEX} was refused user.read, which it did not grant")
        self.report.facts["ungranted_capability_refused"] = True
        removed = self._http(sample, ACME, "DELETE", f"/notes/{note['id']}")
        self.report.check(holds=removed.status == httpx.codes.NO_CONTENT, otherwise="the note was not deleted")

    def tamper_at_publish(self) -> None:
        """Publish an archive with one flipped byte and its good signature."""
        self.report.step("one flipped byte is refused at publish")
        sample = self.samples[0]
        trust = DevTrust.open(self.machine.state.trust)
        altered = flipped_copy(sample.archive, self.work / "altered.tar.zst")
        with self._operator() as client:
            try:
                client.publish(altered, trust.sign(sample.archive, DEFAULT_IDENTITY), lambda _sent, _size: None)
            except ProblemError as problem:
                self.report.check(holds=problem.reason in _REFUSED_AT_PUBLISH, otherwise=f"refused for another reason: {problem}")
                self.report.show(f"{problem.reason}: {visible(problem.detail)}")
                self.report.facts["refused_at_publish"] = problem.reason
                return
        self.report.check(holds=False, otherwise="an altered archive was published")

    def tamper_at_load(self) -> None:
        """Flip a byte of a stored archive that the daemon has not loaded, call it, and put the byte right."""
        self.report.step("one flipped byte is refused at load")
        sample, state = self.samples[-1], self.machine.state
        self.machine.stop_runnerd()
        with set_aside(state, sample.content_hash), flipped_in_store(state, sample.content_hash):
            self.machine.start_runnerd()
            answer = self._grpc(sample, ACME, "GET", "/")
            self.machine.stop_runnerd()
        # Anew, because a daemon remembers for a while what it could not load.
        self.machine.start_runnerd()
        reason = answer.problem.reason if answer.problem else f"status {answer.status}"
        self.report.check(holds=reason == "BUNDLE_CORRUPT", otherwise=f"an altered stored archive gave {reason}")
        self.report.facts["refused_at_load"] = reason
        self._json(self._grpc(sample, ACME, "GET", "/"), 200)
        self.report.show("with the byte put right it runs again")
        self.report.facts["tampered_bundle_refused"] = True
        self.machine.wait_for_gateway()

    def fetch_interface(self) -> None:
        """Fetch the page of a sample from where an iframe would load it, twice."""
        self.report.step("fetch the interface")
        sample = self.samples[0]
        url = f"{self.machine.addresses.assets}/ext-ui/{sample.name}/{sample.content_hash}/index.html"
        page = httpx.get(url, timeout=10, trust_env=False)
        self.report.check(holds=page.status_code == httpx.codes.OK, otherwise=f"{url} answered {page.status_code}")
        self.report.check(
            holds=page.content == (sample.folder / "ui" / "index.html").read_bytes(), otherwise="another page than the one that was packed"
        )
        policy, etag = page.headers.get("content-security-policy", ""), page.headers.get("etag", "")
        self.report.check(
            holds=bool(policy) and page.headers.get("x-content-type-options") == "nosniff", otherwise="the page is unprotected"
        )
        again = httpx.get(url, timeout=10, trust_env=False, headers={"if-none-match": etag})
        self.report.check(holds=again.status_code == httpx.codes.NOT_MODIFIED, otherwise=f"not 304 but {again.status_code}")
        self.report.show(f"{url}")
        self.report.show(f"200, {len(page.content)} bytes, etag {visible(etag)}, then 304; CSP {visible(policy, limit=90)}")
        self.report.facts["interface"] = {
            "url": url,
            "status": page.status_code,
            "bytes": len(page.content),
            "revalidated": again.status_code,
        }

    def read_metrics(self) -> None:
        """Read the daemon's metrics."""
        self.report.step("read the metrics")
        url = f"{self.machine.addresses.operations}/metrics"
        text = httpx.get(url, timeout=10, trust_env=False).text
        counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(_EXECUTIONS)}
        completed = sum(row["outcome"] == "completed" for row in self.report.invocations)
        told = sum(value for line, value in counted.items() if 'outcome="completed"' in line)
        # The daemon was started anew before the first call that completed, so it has counted them all and nothing else.
        self.report.check(holds=told == completed, otherwise=f"{completed} calls completed and {told} were counted")
        for line, value in counted.items():
            if value:
                self.report.show(f"{visible(line)} {value:.0f}")
        self.report.facts["metrics"] = {"url": url, "lines": len(text.splitlines()), "completed": completed}

    def read_record(self) -> None:
        """Read the record of who ran what, and what the refused call was denied."""
        self.report.step("read the record of executions")
        for tenant in GRANTS:
            with self._administrator(tenant) as client:
                expected = {row["execution_id"] for row in self.report.invocations if row["tenant"] == tenant and row["execution_id"]}
                known = _until(partial(_are_recorded, client, expected))
                self.report.check(holds=known, otherwise=f"executions of {tenant} are missing in the record")
                self.report.show(f"{tenant:<7} {len(expected)} executions, all on record")
        refused = [row for row in self.report.invocations if row["tenant"] == GLOBEX and row["path"] == "/whoami"]
        with self._administrator(GLOBEX) as client:
            for row in refused:
                denials = client.admin("GET", f"/executions/{row['execution_id']}").get("denials") or []
                self.report.check(holds="user.read" in json.dumps(denials), otherwise=f"the denial is not on record: {denials}")
                denial = denials[0]
                self.report.show(f"{GLOBEX:<7} was denied {visible(str(denial.get('capability')))}: {visible(str(denial.get('change')))}")
        self.report.facts["executions_recorded"] = True

    def _http(self, sample: Sample, tenant: str, method: str, path: str, body: Mapping[str, str] | None = None) -> Answer:
        token = mint_user_token(
            self.machine.state, tenant=tenant, roles=["ext:invoke"], subject="alice", name="Alice", email=f"alice@{tenant}.invalid"
        )
        with GatewayClient(self.machine.addresses.gateway, token) as client:
            return self._noted(sample, client.call(_call(sample, tenant, method, path, body)), tenant, method, path)

    def _grpc(self, sample: Sample, tenant: str, method: str, path: str) -> Answer:
        token = mint_service_token(self.machine.state, tenants=[tenant], scopes=["execute"], subject="demo")
        answer = execute(self.machine.addresses.grpc, token, _call(sample, tenant, method, path, None))
        return self._noted(sample, answer, tenant, method, path)

    def _noted(self, sample: Sample, answer: Answer, tenant: str, method: str, path: str) -> Answer:
        call = Invocation(extension=sample.name, language=sample.language, tenant=tenant, method=method, path=path)
        self.report.invocation(call, answer)
        return answer

    def _json(self, answer: Answer, status: int) -> dict[str, Any]:
        said = answer.problem or answer.status
        self.report.check(holds=answer.status == status and answer.problem is None, otherwise=f"expected {status}, got {said}")
        document = json.loads(answer.body)
        self.report.check(holds=isinstance(document, dict) and bool(answer.execution_id), otherwise="no JSON object or no execution id")
        return dict(document)

    def _operator(self) -> GatewayClient:
        token = mint_user_token(self.machine.state, tenant=ANY_TENANT, roles=["ext:operate", "ext:publish"], subject="operator")
        return GatewayClient(self.machine.addresses.gateway, token)

    def _administrator(self, tenant: str) -> GatewayClient:
        token = mint_user_token(self.machine.state, tenant=tenant, roles=["ext:manage"], subject="administrator")
        return GatewayClient(self.machine.addresses.gateway, token)


def build_samples(report: Report, work: Path) -> list[Sample]:
    """Build what can be built here; say what cannot."""
    report.step("build the example extensions from source")
    shutil.rmtree(work, ignore_errors=True)
    samples: list[Sample] = []
    for example in (PYTHON, JAVASCRIPT):
        if example == JAVASCRIPT and not javascript_is_available():
            report.miss("the JavaScript extension: Node.js or componentize-js is not installed")
            continue
        with Progress(f"   building and packing {example}"):
            sample = build_sample(example, work)
        samples.append(sample)
        how = "from the cache" if sample.cached else "from source"
        packed = sample.packed.contents.packed_bytes / 1024
        report.show(f"{sample.name} ({sample.language}, {how}): {packed:,.0f} KiB packed, {sample.content_hash}")
    return samples


def _accepting(client: GatewayClient, reason: str, path: str, document: Mapping[str, str]) -> None:
    """Create something that may be there already."""
    try:
        client.admin("POST", path, json=document)
    except ProblemError as problem:
        if problem.reason != reason:
            raise


def _are_recorded(client: GatewayClient, executions: set[str]) -> bool:
    """Tell whether these are among the newest executions of a tenant."""
    page = client.admin("GET", "/executions", params={"limit": 100})
    return executions <= {str(item["execution_id"]) for item in items_of(page)}


def _until(holds: Callable[[], bool]) -> bool:
    """Ask a few times: the record is written in batches."""
    for _ in range(_RECORD_TRIES):
        if holds():
            return True
        time.sleep(_RECORD_PAUSE_SECONDS)
    return False


def _call(sample: Sample, tenant: str, method: str, path: str, body: Mapping[str, str] | None) -> ExtensionCall:
    content = None if body is None else json.dumps(body).encode()
    headers = () if body is None else (("content-type", "application/json"),)
    return ExtensionCall(tenant_id=tenant, extension_id=sample.name, method=method, path=path, headers=headers, body=content)
