from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.cli.building import (
    DEFAULT_WORLD,
    Language,
    Toolchain,
    build,
    find_componentize_js,
    find_wit,
    language_of,
    pack,
)
from registry.cli.output import UnavailableError, UsageError
from registry.domain.errors import Reason, RefusalError

MANIFEST = {
    "name": "com.example.page",
    "publisher": "example",
    "version": "1.0.0",
    "runtime": "ui-only@1",
    "ui": {"type": "iframe", "entry": "ui/index.html"},
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    project = tmp_path / "my project"
    (project / "ui").mkdir(parents=True)
    (project / "manifest.json").write_text(json.dumps(MANIFEST))
    (project / "ui" / "index.html").write_text("<p>hello</p>")
    return project


@pytest.fixture
def tools() -> Toolchain:
    return Toolchain(wit=find_wit())


def test_find_wit__holds_the_default_world() -> None:
    assert any(f"package {DEFAULT_WORLD.partition('/')[0]}" in file.read_text() for file in find_wit().glob("*.wit"))


@pytest.mark.parametrize(("entry", "language"), [("app.py", Language.PYTHON), ("app.js", Language.JAVASCRIPT), (None, Language.NONE)])
def test_language_of__is_told_by_the_entry(page: Path, entry: str | None, language: Language) -> None:
    (page / "src").mkdir()
    if entry:
        (page / "src" / entry).touch()
    assert language_of(page) is language


def test_language_of__two_entries_or_no_manifest__is_a_usage_error(page: Path, tmp_path: Path) -> None:
    (page / "src").mkdir()
    (page / "src" / "app.py").touch()
    (page / "src" / "app.js").touch()
    with pytest.raises(UsageError, match="both"):
        language_of(page)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        language_of(tmp_path)


def test_build__interface_only__lays_out_what_is_packed_and_nothing_else(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    (page / "notes.txt").write_text("mine")
    built = build(page, tmp_path / "out", tools)
    assert sorted(str(file.relative_to(built.folder)) for file in built.folder.rglob("*") if file.is_file()) == [
        "manifest.json",
        "ui/index.html",
    ]
    assert (built.language, built.component_bytes) == (Language.NONE, 0)
    assert pack(built.folder, tmp_path / "bundle.tar.zst").contents.manifest.name == "com.example.page"


def test_build__again__replaces_what_it_built(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    build(page, tmp_path / "out", tools)
    (page / "ui" / "index.html").rename(page / "ui" / "other.html")
    build(page, tmp_path / "out", tools)
    assert [file.name for file in (tmp_path / "out" / "ui").iterdir()] == ["other.html"]


def test_build__output_that_holds_something_else__is_left_alone(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build(page, tmp_path / "precious", tools)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


@pytest.mark.parametrize("where", [".", ".."])
def test_build__output_that_would_replace_the_project__is_refused(page: Path, tools: Toolchain, where: str) -> None:
    with pytest.raises(UsageError, match="replace the project"):
        build(page, page / where, tools)
    assert (page / "manifest.json").is_file()


def test_build__invalid_manifest__is_refused_before_any_tool_runs(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    (page / "manifest.json").write_text(json.dumps(MANIFEST | {"surprise": 1}))
    with pytest.raises(RefusalError) as refused:
        build(page, tmp_path / "out", tools)
    assert refused.value.reason is Reason.INVALID_MANIFEST
    assert not (tmp_path / "out").exists()


def test_build__world_that_is_not_defined__is_refused(page: Path, tmp_path: Path) -> None:
    (page / "src").mkdir()
    (page / "src" / "app.py").touch()
    with pytest.raises(UsageError, match="does not define"):
        build(page, tmp_path / "out", Toolchain(wit=find_wit(), world="no:such/world"))


def test_find_componentize_js__nowhere__says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="npm install"):
        find_componentize_js(tmp_path, tmp_path)


def test_find_componentize_js__folder_above_the_project__is_found(tmp_path: Path) -> None:
    tool = tmp_path / "node_modules/@bytecodealliance/componentize-js/src/componentize.js"
    tool.parent.mkdir(parents=True)
    tool.touch()
    (tmp_path / "a/b").mkdir(parents=True)
    assert find_componentize_js(tmp_path / "a/b", None) == tool.resolve()


def test_pack__from_the_cache__is_the_same_archive(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    folder = build(page, tmp_path / "out", tools).folder
    plain = pack(folder, tmp_path / "plain.tar.zst")
    first = pack(folder, tmp_path / "first.tar.zst", cache=tmp_path / "cache")
    second = pack(folder, tmp_path / "second.tar.zst", cache=tmp_path / "cache")
    assert plain.content_hash == first.content_hash == second.content_hash
    assert (tmp_path / "second.tar.zst").read_bytes() == (tmp_path / "plain.tar.zst").read_bytes()


def test_pack__altered_cache__is_refused(page: Path, tools: Toolchain, tmp_path: Path) -> None:
    folder = build(page, tmp_path / "out", tools).folder
    pack(folder, tmp_path / "first.tar.zst", cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").rglob("bundle.tar.zst")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(RefusalError):
        pack(folder, tmp_path / "second.tar.zst", cache=tmp_path / "cache")
