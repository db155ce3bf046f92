"""What every section of the benchmark measures on: one development machine, its extensions and the tenants that have them.

Extensions are built, published and installed when a section first asks for them, so that `--only` costs what it needs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from registry.cli.building import COMPONENT
from registry.cli.credentials import mint_service_token, mint_user_token
from registry.cli.development import DevelopmentMachine
from registry.cli.gateway_client import GatewayClient
from registry.cli.installing import find_install, install_or_update
from registry.domain.capabilities import KNOWN
from scripts.demonstration.report import Report
from scripts.demonstration.samples import Sample, build_sample, javascript_is_available
from scripts.demonstration.steps import ACME, Demonstration, build_samples
from tests.fakes.placed_artifacts import place_artifact
from tests.fakes.probe_guests import JAVASCRIPT as PROBE_GUEST
from tests.fakes.probe_guests import write_project
from tests.fakes.probe_servers import WEB_NAME, WEB_PORTS

GUESTS: Final = Path(__file__).parent / "guests"
NOTES_TENANT: Final = ACME
"""The tenant that has the notes examples, with every capability they ask for."""
HELLO_TENANTS: Final = ("bench-a", "bench-b", "bench-c", "bench-d")
"""The tenants that have the hello guest: four, because one tenant may hold a quarter of the slots."""

PROBE_TENANT: Final = "bench-probe"
"""The tenant that has the probe guest."""

Figures = dict[str, Any]
"""What a section found: name of the figure → number, or a dict of numbers by size, connections or case."""


@dataclass(kw_only=True)
class Bench:
    """The running machine and what was asked for.

    Args:
        machine: started.
        work: folder of this run; removed after it.
        quick: fewer rounds; all sections together stay under a minute.
        web: address of a web server that the probe guest may reach.
    """

    machine: DevelopmentMachine
    work: Path
    quick: bool
    web: str
    report: Report = field(default_factory=Report)

    @cached_property
    def notes(self) -> Sequence[Sample]:
        """The notes examples, published, and installed for `NOTES_TENANT`; those whose toolchain is missing are left out."""
        samples = build_samples(self.report, self.work / "samples")
        demonstration = Demonstration(machine=self.machine, report=self.report, samples=samples, work=self.work / "samples")
        demonstration.publish()
        demonstration.install()
        return tuple(demonstration.samples)

    @cached_property
    def hello(self) -> Sample | None:
        """The JavaScript guest that makes no host call, installed for every one of `HELLO_TENANTS`; None without its toolchain."""
        if not javascript_is_available():
            return None
        sample = self._publish_compiled(GUESTS / "hello")
        for tenant in HELLO_TENANTS:
            self.install(sample, tenant)
        return sample

    @cached_property
    def probe(self) -> Sample:
        """The JavaScript guest of the tests that echoes bodies and makes any host call, installed for `PROBE_TENANT` with everything."""
        capabilities = sorted(KNOWN)
        manifest = {
            "capabilities": capabilities,
            "api": {"endpoints": [{"method": "POST", "path": "/probe", "handler": "probe", "schedulable": True}]},
            "egress": [{"host": WEB_NAME, "ports": WEB_PORTS, "schemes": ["http"]}],
        }
        project = self.work / "projects" / "probe"
        write_project(PROBE_GUEST, manifest, project)
        sample = self._publish_compiled(project)
        self.install(sample, PROBE_TENANT, granted=capabilities, config={"greeting": "hello"}, secrets={"api_key": "k"})
        return sample

    def _publish_compiled(self, project: Path) -> Sample:
        """Publish a project whose component an earlier run has compiled already, so that a run waits for what it measures."""
        sample = build_sample(project.name, self.work / "guests", projects=project.parent)
        component, state = sample.folder / COMPONENT, self.machine.state
        # In a process of its own: an engine that has compiled keeps its threads.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(place_artifact, (state.cache, state.keys / "artifacts.ed25519", sample.content_hash, component))
        return self.publish_packed(sample)

    def publish(self, project: Path, *, manifest: bytes | None = None) -> Sample:
        """Build, sign and publish the project of an extension; with another manifest as another version."""
        return self.publish_packed(build_sample(project.name, self.work / "guests", projects=project.parent, manifest=manifest))

    def publish_packed(self, sample: Sample) -> Sample:
        """Sign and publish what is packed already."""
        demonstration = Demonstration(machine=self.machine, report=self.report, samples=[sample], work=self.work / "guests")
        demonstration.publish()
        return demonstration.samples[0]

    def install(
        self,
        sample: Sample,
        tenant: str,
        *,
        granted: Sequence[str] = (),
        config: dict[str, str] | None = None,
        secrets: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Install a published extension for a tenant."""
        token = mint_user_token(self.machine.state, tenant=tenant, roles=["ext:manage"], subject="benchmark")
        with GatewayClient(self.machine.addresses.gateway, token) as client:
            wanted = {"extension": sample.name, "version": sample.version, "granted": list(granted), "config": config}
            install_or_update(client, wanted, tenant=tenant, update=True)
            for name, value in secrets.items():
                install = find_install(client, sample.name, tenant=tenant)
                address = f"/installs/{install['install_id']}/secrets/{name}"
                client.admin("PUT", address, params={"tenant_id": tenant}, json={"value": value})

    def token(self, *tenants: str, scope: str = "execute") -> str:
        """Mint a service token for some tenants."""
        return mint_service_token(self.machine.state, tenants=tenants, scopes=[scope], subject="benchmark")

    def step(self, title: str) -> None:
        """Say that a section begins."""
        self.report.step(title)

    def say(self, text: str) -> None:
        """Say what was found."""
        self.report.show(text)

    def miss(self, what: str) -> None:
        """Note what this machine cannot measure; its figures are left out."""
        self.report.miss(what)
