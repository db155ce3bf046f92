"""The example extensions as built guests, shared by every test that wants a real one. Built once into .cache, then copied from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.demonstration.samples import JAVASCRIPT, PYTHON, Sample, build_sample, javascript_is_available

__all__ = ["JAVASCRIPT", "PYTHON", "Sample", "build_example", "component_of"]


def build_example(example: str, work: Path, *, manifest: bytes | None = None) -> Sample:
    """Return an example of examples/, packed below `work`. Skips the test where its toolchain is not installed."""
    if example == JAVASCRIPT and not javascript_is_available():
        pytest.skip("no JavaScript toolchain: install Node.js and run scripts/build_guest_toolchain")
    return build_sample(example, work, manifest=manifest)


def component_of(sample: Sample) -> bytes:
    """Return the component of a built example."""
    return (sample.folder / "dist" / "main.wasm").read_bytes()
