from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLCHAIN = ROOT / "scripts" / "toolchain"
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/manifest.json"))


def test_lock__pins_every_package_by_its_hash_and_names_no_address() -> None:
    lock = json.loads((TOOLCHAIN / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert [name for name, entry in packages.items() if not entry.get("integrity", "").startswith("sha512-")] == []
    assert [name for name, entry in packages.items() if "resolved" in entry or "link" in entry] == []


def test_lock__is_of_this_package_and_pins_it_exactly() -> None:
    wanted = json.loads((TOOLCHAIN / "package.json").read_text())["dependencies"]
    locked = json.loads((TOOLCHAIN / "package-lock.json").read_text())["packages"]
    assert locked[""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version


def test_npmrc__runs_no_install_script() -> None:
    lines = (ROOT / ".npmrc").read_text().split()
    assert {"ignore-scripts=true", "omit-lockfile-registry-resolved=true"} <= set(lines)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example__page__has_relative_addresses_and_no_inline_script(example: Path) -> None:
    page = (example / "ui" / "index.html").read_text()
    assert "<script>" not in page
    assert " on" + "click" not in page
    assert 'style="' not in page
    for attribute in ('src="', 'href="'):
        for part in page.split(attribute)[1:]:
            assert not part.startswith(("/", "http", "//", "javascript:", "data:"))
    assert "innerHTML =" not in (example / "ui" / "app.js").read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example__readme__names_every_endpoint_and_capability(example: Path) -> None:
    manifest = json.loads((example / "manifest.json").read_text())
    readme = (example / "README.md").read_text()
    for endpoint in manifest["api"]["endpoints"]:
        assert f"`{endpoint['method']} {endpoint['path']}`" in readme
    assert manifest["name"] in readme
