"""Secrets that a guest uses without having them: it writes a placeholder, the daemon puts the value in, for one header and one host.

The attack it stops (T33): a guest that gets a value out to where nobody wanted it. A placeholder means something in the value of the bound
header only, over https, to the bound host and port exactly; anywhere else (URL, body, another header, another host) it goes out as it was
written. What comes back is searched for the value and the forms in which servers repeat what they were sent.

That search is best effort, and no more: *a bound host can always reveal its secret*, reversed, split, or in parts. A host that stores or
shows what it is sent must not be bound.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from registry.domain.egress import SecretBinding, host_matches
from runnerd.capabilities.grants import InvocationGrant
from runnerd.capabilities.outgoing import IncomingResponse
from runnerd.capabilities.redaction import HIDDEN, written_forms
from runnerd.capabilities.secrets import SecretRefusalError
from runnerd.capabilities.urls import Target

LEAST_CHARACTERS: Final = 8
"""A shorter value cannot be told from what happens to look like it."""
MOST_CHARACTERS: Final = 4_096
_PLACEHOLDER = re.compile(r"\{\{secret:([A-Za-z0-9_.-]{1,128})\}\}")
_USABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?\Z")
"""Printable ASCII: what a header can hold in one reading."""
_PLAIN_ENCODINGS: Final = frozenset({"", "identity"})

Headers = tuple[tuple[str, str], ...]


class SecretOpener(Protocol):
    """Opens secrets of an install (`runnerd.capabilities.secrets.InstallSecrets`)."""

    async def reveal(self, grant: InvocationGrant, name: str) -> str:
        """Return a value, or raise SecretRefusalError."""
        ...


class UnusableSecretError(Exception):
    """A bound secret cannot be put in; the text says why and repeats nothing of it."""


class UnreadableAnswerError(Exception):
    """An answer to a request with a secret cannot be searched for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Headers as they are sent, and the values that were put in."""

    headers: Headers
    values: tuple[str, ...] = ()


async def fill(opener: SecretOpener | None, grant: InvocationGrant, target: Target, headers: Headers) -> Filled:
    """Put the values of bound secrets where the guest wrote their placeholders.

    Raises:
        UnusableSecretError: one of them cannot be had, or is no text that a header holds.
    """
    bindings = [
        binding
        for binding in grant.egress.secrets
        # SECURITY: exactly this host and port, and never in the clear. What may be bound is checked where bindings are written, and here
        # once more: `count` mode lets requests out to hosts that no manifest names, and whoever writes bindings cannot write manifests.
        if target.scheme == "https"
        and (binding.host, binding.port) == (target.host, target.port)
        and any(host_matches(rule.host, target.host) and rule.admits("https", target.port) for rule in grant.egress.rules)
    ]
    wanted = {name: None for header, value in headers for name in _PLACEHOLDER.findall(value) if _is_bound(bindings, header, name)}
    values = {name: await _open(opener, grant, name) for name in wanted}
    if not values:
        return Filled(headers=headers)

    def put_in(header: str, value: str) -> str:
        def replacement(match: re.Match[str]) -> str:
            return values[match[1]] if _is_bound(bindings, header, match[1]) else match[0]

        return _PLACEHOLDER.sub(replacement, value)

    filled = [(name, put_in(name, value)) for name, value in headers if name != "accept-encoding"]
    # What comes back is to be read.
    return Filled(headers=(*filled, ("accept-encoding", "identity")), values=tuple(values.values()))


async def scrub(answer: IncomingResponse, values: Sequence[str]) -> IncomingResponse:
    """Return the answer without the values; others have their turn between two searches.

    Raises:
        UnreadableAnswerError: it is compressed although that was not asked for.
    """
    if not values:
        return answer
    if any(name == "content-encoding" and value.strip().lower() not in _PLAIN_ENCODINGS for name, value in answer.headers):
        message = "the answer is compressed"
        raise UnreadableAnswerError(message)
    hidden = HIDDEN.encode()
    body, said = answer.body, [value.encode() for _, value in answer.headers]
    for form in _forms(values):
        # SECURITY: one form after the other. A search for one costs as much as the body is long, whatever body and value are made of; a
        # pattern of them all costs their product, and a tenant that chose both would stop the daemon for minutes.
        body, said = body.replace(form, hidden), [value.replace(form, hidden) for value in said]
        await asyncio.sleep(0)
    headers = tuple((name, value.decode()) for (name, _), value in zip(answer.headers, said, strict=True))
    return IncomingResponse(status=answer.status, headers=headers, body=body)


def _is_bound(bindings: Sequence[SecretBinding], header: str, name: str) -> bool:
    return any((binding.header, binding.secret) == (header, name) for binding in bindings)


async def _open(opener: SecretOpener | None, grant: InvocationGrant, name: str) -> str:
    if opener is None:
        message = "this runner opens no secrets"
        raise UnusableSecretError(message)
    try:
        value = await opener.reveal(grant, name)
    except SecretRefusalError as error:
        message = f"it was not opened ({error.case})"
        raise UnusableSecretError(message) from error
    if not LEAST_CHARACTERS <= len(value) <= MOST_CHARACTERS or _USABLE.match(value) is None:
        message = f"it is not {LEAST_CHARACTERS} to {MOST_CHARACTERS} printable characters"
        raise UnusableSecretError(message)
    return value


def _forms(values: Sequence[str]) -> list[bytes]:
    """Return what is searched for, the longest first, so that no shorter form leaves a rest of a longer one."""
    forms = {form.encode() for value in values for form in _written(value)}
    return sorted((form for form in forms if len(form) >= LEAST_CHARACTERS), key=lambda form: (-len(form), form))


def _written(value: str) -> Iterator[str]:
    """Yield what logs are searched for, and what only servers write."""
    for form in written_forms(value):
        yield form
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), form)
    yield json.dumps(value)[1:-1].replace("/", "\\/")
    yield html.escape(value)
    yield value.encode().hex()
    yield value.encode().hex().upper()
