"""What the demonstration found: printed for people while it runs, and as one JSON object at the end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from registry.cli.invocation import Answer
from registry.cli.rendering import visible_block

_SHOWN_BODY_CHARACTERS = 160


class CheckFailedError(Exception):
    """A fact that the demonstration would show does not hold. The rest is not worth showing."""


@dataclass(slots=True)
class Report:
    """Facts, in the order in which they were found."""

    started: float = field(default_factory=time.monotonic)
    verified_signer: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    invocations: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _step: int = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self._step += 1
        print(f"\n{self._step}. {title}", flush=True)

    def show(self, text: str) -> None:
        """Show a fact that has been checked."""
        print(f"   {text}", flush=True)

    def miss(self, what: str) -> None:
        """Note what this machine could not show."""
        self.missing.append(what)
        print(f"   not here: {what}", flush=True)

    def check(self, *, holds: bool, otherwise: str) -> None:
        """Go on if a fact holds.

        Raises:
            CheckFailedError: it does not.
        """
        if not holds:
            raise CheckFailedError(otherwise)

    def fail(self, what: str) -> None:
        """Note what went wrong."""
        self.failures.append(what)
        print(f"   FAILED: {visible_block(what)}", file=sys.stderr, flush=True)

    def invocation(self, call: Invocation, answer: Answer) -> None:
        """Note and show one call of an extension."""
        body = _text(answer.body)
        self.invocations.append(
            {
                "extension": call.extension,
                "language": call.language,
                "tenant": call.tenant,
                "via": answer.via,
                "method": call.method,
                "path": call.path,
                "status": answer.status,
                "body": body,
                "outcome": answer.outcome,
                "reason": answer.problem.reason if answer.problem else None,
                "execution_id": answer.execution_id,
                "wall_ms": round(answer.wall_ms, 1),
            }
        )
        said, text = (f"{answer.status}", body) if answer.problem is None else (answer.problem.reason, answer.problem.detail)
        shown = visible_block(text, limit=_SHOWN_BODY_CHARACTERS).replace("\n", " ")
        self.show(f"{answer.via:<4} {call.tenant:<7} {call.method:<6} {call.path:<24} {said}  {answer.wall_ms:5.1f} ms  {shown}")

    @property
    def is_ok(self) -> bool:
        """Whether every shown fact held, and something was shown."""
        return not self.failures and bool(self.invocations) and self.facts.get("tampered_bundle_refused") is True

    def document(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        return {
            "ok": self.is_ok,
            "elapsed_seconds": round(time.monotonic() - self.started, 2),
            "verified_signer": self.verified_signer,
            "tampered_bundle_refused": self.facts.get("tampered_bundle_refused", False),
            "invocations": self.invocations,
            "missing": self.missing,
            "failures": self.failures,
            **{name: value for name, value in self.facts.items() if name != "tampered_bundle_refused"},
        }

    def print_json(self) -> None:
        """Print the document on one line, the last one."""
        print(json.dumps(self.document(), ensure_ascii=True), flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """Which call."""

    extension: str
    language: str
    tenant: str
    method: str
    path: str


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")
