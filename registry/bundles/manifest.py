"""The manifest of a bundle (version 2, CONTRACT §5): what an extension is, serves, and asks for.

Attack: a person consents to one reading of a manifest and the runner acts on another (T32), or a label rewrites the screen on which
consent is given (T44). So there is one strict reader (`registry.bundles.strict_json`), every field has a grammar, unknown fields are
errors, and the RFC 8785 form of what was read is what gets stored and what a consent names by its digest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from registry.bundles.strict_json import MAX_INTEGER, StrictJsonError, place_of, read_json
from registry.bundles.text import is_unshowable
from registry.domain.capabilities import KNOWN, PREFIX, normalise
from registry.domain.digests import content_hash
from registry.domain.egress import HOST_PATTERN, MAX_HOST_CHARACTERS
from registry.domain.errors import Reason, RefusalError
from registry.domain.headers import HOP_BY_HOP
from registry.domain.ids import EXTENSION_NAME_PATTERN, MAX_EXTENSION_NAME_CHARACTERS, PUBLISHER_NAME_PATTERN, is_publisher_name
from registry.domain.limits import OPERATOR_CEILING, LimitWishes
from registry.domain.records import Endpoint

MAX_MANIFEST_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_ENDPOINTS = 256
MAX_LIST = 64
"""Entries of the other lists."""

_SEMVER = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$"
)
_PATH_SEGMENT = r"(:[A-Za-z_][A-Za-z0-9_]*|[A-Za-z0-9_~-][A-Za-z0-9._~-]*)"
_PATH = rf"^/({_PATH_SEGMENT}(/{_PATH_SEGMENT})*)?$"

_PROBLEMS = {
    "missing": "it is missing",
    "extra_forbidden": "the field is unknown; remove it",
    "model_type": "it must be an object",
    "dict_type": "it must be an object",
    "tuple_type": "it must be an array",
    "string_type": "it must be a string",
    "int_type": "it must be a whole number",
    "bool_type": "it must be true or false",
}
"""Words of JSON for what pydantic says in words of Python; by type of error."""

_NEVER_PASSED = HOP_BY_HOP | {"host", "content-length", "authorization", "cookie", "set-cookie", "forwarded", "accept-encoding"}
_RESERVED_PREFIXES = ("proxy-", "x-forwarded-", "x-alga-", "sec-")


def _showable(text: str) -> str:
    if any(is_unshowable(character) for character in text):
        message = "holds control, bidirectional or other format characters"
        raise ValueError(message)
    return text


def _shown_well(text: str) -> str:
    if text != text.strip():
        message = "begins or ends with white space"
        raise ValueError(message)
    return _showable(text)


def _publisher_name(text: str) -> str:
    if not is_publisher_name(text):
        message = "must not look like an id"
        raise ValueError(message)
    return text


def _capability(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return normalise(value)
    except ValueError as exc:
        message = "is not a known capability"
        raise ValueError(message) from exc


def _passable_header(name: str) -> str:
    if name in _NEVER_PASSED or name.startswith(_RESERVED_PREFIXES):
        message = "is a header that is never passed on"
        raise ValueError(message)
    return name


def _inside_ui(path: str) -> str:
    if any(segment in {"", ".", ".."} or segment.startswith(".") for segment in path.split("/")):
        message = "is not a plain path below ui/"
        raise ValueError(message)
    return _showable(path)


Label = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_shown_well)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_shown_well)]
UiPath = Annotated[str, StringConstraints(pattern=r"^ui/[^\\:*?\"<>|#%]+$", max_length=255), AfterValidator(_inside_ui)]
Name = Annotated[str, StringConstraints(pattern=EXTENSION_NAME_PATTERN, max_length=MAX_EXTENSION_NAME_CHARACTERS)]
Publisher = Annotated[str, StringConstraints(pattern=PUBLISHER_NAME_PATTERN), AfterValidator(_publisher_name)]
Version = Annotated[str, StringConstraints(pattern=_SEMVER, max_length=64)]
Capability = Annotated[
    str,
    BeforeValidator(_capability),
    WithJsonSchema({"type": "string", "enum": sorted(KNOWN | {PREFIX + name for name in KNOWN})}),
]
Template = Annotated[str, StringConstraints(pattern=_PATH, max_length=512)]
Role = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]{0,63}$")]
Header = Annotated[str, StringConstraints(pattern=r"^[a-z0-9!#$&'*+.^_`|~-]{1,64}$"), AfterValidator(_passable_header)]
Topic = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*(\.\*)?$", max_length=128)]
HookName = Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9]{0,63}$")]
Host = Annotated[str, StringConstraints(pattern=HOST_PATTERN, max_length=MAX_HOST_CHARACTERS)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Wish = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


class _Part(BaseModel):
    """What all parts of a manifest share: unknown fields are errors, nothing is converted, nothing changes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class ManifestEndpoint(_Part):
    """One endpoint of the server code. `path` may hold `:param` segments."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    path: Template
    handler: Text
    timeout_ms: Annotated[int, Field(ge=1, le=OPERATOR_CEILING.wall_time_ms)] | None = None
    roles: Annotated[tuple[Role, ...], Field(max_length=MAX_LIST)] = ()
    """Roles of which a caller needs one; an extension that names any is always `enforce` (DESIGN §6)."""
    request_headers: Annotated[tuple[Header, ...], Field(max_length=MAX_LIST)] = ()
    """Headers that the gateway passes to the guest besides the usual ones."""
    response_headers: Annotated[tuple[Header, ...], Field(max_length=MAX_LIST)] = ()
    schedulable: bool = False

    @model_validator(mode="after")
    def _parameters_differ(self) -> Self:
        names = [segment for segment in self.path.split("/") if segment.startswith(":")]
        if len(names) != len(set(names)):
            message = "path names a parameter twice"
            raise ValueError(message)
        return self

    @property
    def shape(self) -> tuple[str, str]:
        """What must be unique: the method, and the path with its parameters nameless."""
        return self.method, "/".join(":" if segment.startswith(":") else segment for segment in self.path.split("/"))


class ManifestApi(_Part):
    """The server code's HTTP face."""

    endpoints: Annotated[tuple[ManifestEndpoint, ...], Field(max_length=MAX_ENDPOINTS)] = ()

    @model_validator(mode="after")
    def _endpoints_differ(self) -> Self:
        shapes = [endpoint.shape for endpoint in self.endpoints]
        for index, shape in enumerate(shapes):
            if shape in shapes[:index]:
                message = f"endpoints[{index}] has the method and path of an earlier one"
                raise ValueError(message)
        return self


class ManifestHook(_Part):
    """A place of the host where the interface appears."""

    label: Label


class ManifestRoute(_Part):
    """A path of the host that shows one page of the interface."""

    model_config = ConfigDict(alias_generator=_camel)

    path: Template
    iframe_path: UiPath


class ManifestUi(_Part):
    """The interface: static files below `ui/`, shown in an iframe."""

    type: Literal["iframe"]
    entry: UiPath
    hooks: Annotated[dict[HookName, ManifestHook], Field(max_length=MAX_LIST)] = Field(default_factory=dict)
    routes: Annotated[tuple[ManifestRoute, ...], Field(max_length=MAX_LIST)] = ()


class ManifestEvent(_Part):
    """A subscription."""

    topic: Topic
    handler: Text
    filter: dict[str, Any] | None = None


class ManifestEgress(_Part):
    """A host that the extension wants to reach; `*.` stands for one or more labels in front."""

    host: Host
    ports: Annotated[tuple[Port, ...], Field(min_length=1, max_length=16)] = (443,)
    schemes: Annotated[tuple[Literal["https", "http"], ...], Field(min_length=1, max_length=2)] = ("https",)


class ManifestLimits(_Part):
    """Limits that the extension would like; grants and ceilings decide (DESIGN §7)."""

    wall_time_ms: Wish | None = None
    cpu_time_ms: Wish | None = None
    fuel: Wish | None = None
    memory_bytes: Wish | None = None
    request_bytes: Wish | None = None
    response_bytes: Wish | None = None
    host_calls: Wish | None = None
    log_lines: Wish | None = None
    log_bytes: Wish | None = None

    def to_wishes(self) -> LimitWishes:
        """Return the same as a domain record."""
        return LimitWishes(**self.model_dump())


class Manifest(_Part):
    """A manifest that was read by `parse_manifest`, the only maker of objects with a canonical form."""

    name: Name
    publisher: Publisher
    version: Version
    runtime: Literal["wasm-js@1", "wasm-component@1", "ui-only@1"]
    capabilities: Annotated[tuple[Capability, ...], Field(max_length=MAX_LIST)] = ()
    """Without their optional prefix."""
    api: ManifestApi = ManifestApi()
    ui: ManifestUi | None = None
    events: Annotated[tuple[ManifestEvent, ...], Field(max_length=MAX_LIST)] = ()
    egress: Annotated[tuple[ManifestEgress, ...], Field(max_length=MAX_LIST)] = ()
    limits: ManifestLimits = ManifestLimits()
    precompiled: dict[str, Any] = Field(default_factory=dict)
    """Accepted and ignored: native code from a bundle never runs (DESIGN §6, decision 7)."""
    assets: Annotated[tuple[Text, ...], Field(max_length=MAX_LIST)] = ()
    sbom: Literal["sbom.spdx.json"] | None = None

    _canonical: bytes | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(set(self.capabilities)) != len(self.capabilities):
            message = "capabilities names one twice"
            raise ValueError(message)
        if self.runtime == "ui-only@1":
            if self.ui is None:
                message = "runtime ui-only@1 needs ui"
                raise ValueError(message)
            if self.api.endpoints or self.events:
                message = "runtime ui-only@1 has no server code, so neither api.endpoints nor events"
                raise ValueError(message)
        return self

    @property
    def canonical_json(self) -> bytes:
        """The RFC 8785 form of the document, which is what gets stored and shown.

        Raises:
            ValueError: this manifest was not read by `parse_manifest`.
        """
        if self._canonical is None:
            message = "only parse_manifest makes manifests with a canonical form"
            raise ValueError(message)
        return self._canonical

    @property
    def digest(self) -> str:
        """Content hash of the canonical form; what a consent names."""
        return content_hash(self.canonical_json)

    def to_endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints as domain records, in the order of the manifest."""
        return tuple(
            Endpoint(
                method=endpoint.method,
                path=endpoint.path,
                handler=endpoint.handler,
                timeout_ms=endpoint.timeout_ms,
                roles=endpoint.roles,
                request_headers=endpoint.request_headers,
                response_headers=endpoint.response_headers,
                schedulable=endpoint.schedulable,
            )
            for endpoint in self.api.endpoints
        )


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        RefusalError: INVALID_MANIFEST; the detail and `metadata["place"]` name the place and what is wrong there.
    """
    try:
        document = read_json(data, max_bytes=MAX_MANIFEST_BYTES, max_depth=MAX_DEPTH)
    except StrictJsonError as exc:
        raise _refusal(exc.place, exc.problem) from exc
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = place_of(tuple(step for step in first["loc"] if step != "[key]"))
        raise _refusal(place, _PROBLEMS.get(first["type"]) or first["msg"].removeprefix("Value error, ")) from exc
    manifest._canonical = rfc8785.dumps(document)  # noqa: SLF001 (the one maker)
    return manifest


def _refusal(place: str, problem: str) -> RefusalError:
    return RefusalError(Reason.INVALID_MANIFEST, f"manifest.json is refused at {place}: {problem}.", metadata={"place": place})
