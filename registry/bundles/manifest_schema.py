"""Writes the JSON Schema of manifests, which editors and authors use; made from the model, shipped, and checked for drift by a test.

The model stays the judge: a schema cannot say everything (equal keys, characters that may not be shown, which parts must agree).

    python -m registry.bundles.manifest_schema      rewrites manifest.schema.json
"""

from __future__ import annotations

import json
from pathlib import Path

from registry.bundles.manifest import Manifest

PATH = Path(__file__).with_name("manifest.schema.json")


def render() -> str:
    """Return the schema as the file holds it."""
    schema = Manifest.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:extrunner:manifest:v2", "title": "extrunner manifest v2"}
    return json.dumps(head | {key: value for key, value in schema.items() if key != "title"}, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
