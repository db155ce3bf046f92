"""Endpoint match, policy and roles, in the daemon, for every trigger (DESIGN decision 3, T5).

The attack it stops: roles decided by a match that only one face makes, or that "advisory" lets a caller walk around. An extension
that names roles on any endpoint is always enforced; what matches nothing is then not found, whatever the guest's router would do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from registry.domain.errors import Reason, RefusalError
from registry.domain.paths import segments_of
from registry.domain.records import Endpoint

UNDECLARED = "(undeclared)"
"""What the execution log says where no endpoint matched."""


@dataclass(frozen=True, slots=True)
class _Template:
    endpoint: Endpoint
    segments: tuple[str, ...]
    parameters: tuple[bool, ...]

    def matches(self, segments: tuple[str, ...]) -> bool:
        if len(segments) != len(self.segments):
            return False
        return all(
            bool(given) if is_parameter else given == wanted
            for given, wanted, is_parameter in zip(segments, self.segments, self.parameters, strict=True)
        )


_MAX_COMPILED = 512
_compiled: OrderedDict[int, tuple[Sequence[Endpoint], tuple[_Template, ...]]] = OrderedDict()
"""By identity, together with the list, which keeps its identity taken: installs are cached, and hashing a long list costs too much."""


def _templates(endpoints: Sequence[Endpoint]) -> tuple[_Template, ...]:
    known = _compiled.get(id(endpoints))
    if known is not None and known[0] is endpoints:
        return known[1]
    templates = _compile(endpoints)
    # SECURITY: only what cannot change is remembered.
    if isinstance(endpoints, tuple):
        _compiled[id(endpoints)] = (endpoints, templates)
        if len(_compiled) > _MAX_COMPILED:
            _compiled.popitem(last=False)
    return templates


def _compile(endpoints: Sequence[Endpoint]) -> tuple[_Template, ...]:
    compiled = []
    for endpoint in endpoints:
        segments = segments_of(endpoint.path)
        compiled.append(_Template(endpoint, segments, tuple(segment.startswith(":") for segment in segments)))
    # A literal segment is more specific than a parameter, the earlier the more; False sorts before True.
    return tuple(sorted(compiled, key=lambda template: template.parameters))


def find_endpoint(endpoints: Sequence[Endpoint], method: str, path: str) -> Endpoint | None:
    """Return the most specific endpoint that matches, or None. HEAD is answered by GET where no HEAD is declared."""
    segments = segments_of(path)
    candidates = [template.endpoint for template in _templates(endpoints) if template.matches(segments)]
    for wanted in (method, "GET") if method == "HEAD" else (method,):
        for endpoint in candidates:
            if endpoint.method == wanted:
                return endpoint
    return None


def is_enforced(endpoints: Sequence[Endpoint], policy: str) -> bool:
    """Tell whether undeclared paths are refused."""
    # SECURITY: whatever the install's policy says; anything but the word "advisory" enforces.
    return policy != "advisory" or any(endpoint.roles for endpoint in endpoints)


def admit(endpoints: Sequence[Endpoint], policy: str, *, method: str, path: str, roles: frozenset[str]) -> Endpoint | None:
    """Return the endpoint of a call, or None where it is undeclared and that is allowed.

    Args:
        endpoints: of the manifest.
        policy: of the install.
        method: upper case.
        path: in normal form.
        roles: of the user, proven.

    Raises:
        RefusalError: ENDPOINT_NOT_FOUND, PERMISSION_MISSING, or INVALID_REQUEST for a slash at the end that nobody declared.
    """
    endpoint = find_endpoint(endpoints, method, path)
    if endpoint is None:
        if path.endswith("/") and path != "/":
            detail = "The path ends in a slash that the extension does not declare; leave it out."
            raise RefusalError(Reason.INVALID_REQUEST, detail, metadata={"field": "http.path"})
        if is_enforced(endpoints, policy):
            raise RefusalError(Reason.ENDPOINT_NOT_FOUND, "The extension declares no such endpoint; check method and path.")
        return None
    if endpoint.roles and not roles & frozenset(endpoint.roles):
        raise RefusalError(
            Reason.PERMISSION_MISSING,
            "This endpoint needs a role that the user's own token does not hold.",
            metadata={"roles": ",".join(sorted(endpoint.roles))[:200]},
        )
    return endpoint
