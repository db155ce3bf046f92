"""docs/operations.md names every setting that exists, and none that does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from gateway.config import GatewaySettings
from runnerd.config import RunnerdSettings
from runnerd.worker.hardening import MANDATORY, Step

TEXT = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()


def names_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        sections = [
            part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if sections:
            yield from names_of(sections[0], f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}"


def is_limit(name: str) -> bool:
    return name.startswith(("RUNNERD_LIMITS__DEFAULTS__", "RUNNERD_LIMITS__CEILING__"))


@pytest.mark.parametrize(("model", "prefix"), [(RunnerdSettings, "RUNNERD_"), (GatewaySettings, "GATEWAY_")])
def test_settings__all_are_named_and_no_others(model: type[BaseModel], prefix: str) -> None:
    existing = set(names_of(model, prefix))
    named = set(re.findall(rf"`({prefix}[A-Z_]*[A-Z])`", TEXT))
    assert {name for name in existing if not is_limit(name)} - named == set()
    assert named - existing == set()


def test_settings__every_limit_is_named() -> None:
    limits = {name.rsplit("__", 1)[1] for name in names_of(RunnerdSettings, "RUNNERD_") if is_limit(name)}
    assert limits
    assert all(f"`{limit}`" in TEXT for limit in limits)


def test_hardening__table_has_the_mandatory_steps_as_such() -> None:
    assert {step.value for step in MANDATORY} == {
        Step.ENVIRONMENT,
        Step.DESCRIPTORS,
        Step.NO_NEW_PRIVS,
        Step.NOT_DUMPABLE,
        Step.PARENT_DEATH,
        Step.RLIMITS,
        Step.SECCOMP,
    }
    mandatory = [line for line in TEXT.splitlines() if line.endswith("|") and "| yes |" in line]
    assert len(mandatory) == 4
    assert "seccomp" in mandatory[3]


def test_security_document__every_test_it_names_exists() -> None:
    root = Path(__file__).resolve().parents[3]
    named = set(re.findall(r"`((?:tests|scripts|docs|registry|runnerd)/[A-Za-z0-9_./]+)`", (root / "SECURITY.md").read_text() + TEXT))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (root / name).exists()] == []
