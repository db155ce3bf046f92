"""What a guest's `route` becomes on the wire, and which routes there are not.

The attack it stops: the daemon stands where the platform's internal routes answer, and a guest chooses path and query. So a route is
taken as it is or refused, never repaired, and no spelling of `/api/internal` passes: not with dots, slashes, escapes (once or twice),
path parameters, other letter cases, or characters that some reader folds into those letters.

    RouteError              the route is not acceptable
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Final

from registry.domain.ids import ExtensionId
from registry.domain.paths import PathError, check_normal_form, segments_of

MOST_CHARACTERS: Final = 8192
_DIRECT: Final = "/api/"
_INTERNAL: Final = ("api", "internal")
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*\Z")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SEPARATORS: Final = frozenset("/\\%;?#.")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp", "Mn"})
"""Categories of characters that readers drop or trim."""


class RouteError(ValueError):
    """A route is not acceptable. The text says why and repeats nothing of the route."""


def target_of(route: str, extension_id: ExtensionId) -> str:
    """Return path and query of a guest's route: those under `/api/` as they are, others under the extension's own id.

    A slash at the beginning may be left out. A query is allowed: it is all that a GET carries.

    Raises:
        RouteError: it is empty, too long, not in normal form, has a scheme, host or fragment, or leads to the internal routes.
    """
    if len(route) > MOST_CHARACTERS:
        message = f"longer than {MOST_CHARACTERS} characters"
        raise RouteError(message)
    path, question, query = route.partition("?")
    if not path.strip("/"):
        message = "empty"
        raise RouteError(message)
    if not path.startswith(_DIRECT):
        path = f"/{extension_id}/{path.removeprefix('/')}"
    try:
        check_normal_form(path)
    except PathError as error:
        # The text of a PathError names at most an escape.
        raise RouteError(str(error)) from error
    _check_readings(path)
    if _QUERY.match(query) is None:
        message = "the query holds a character that must be percent-encoded, or an incomplete escape"
        raise RouteError(message)
    return f"{path}{question}{query}" if query else path


def _check_readings(path: str) -> None:
    """Refuse a path that is in normal form and that some reader behind us could still take for another one."""
    readings = []
    for segment in segments_of(path):
        if _ESCAPE.search(segment):
            message = "an escape is escaped once more"
            raise RouteError(message)
        plain = unicodedata.normalize("NFKD", segment)
        if _SEPARATORS & (set(plain) - set(segment)):
            message = "a character that some readers take for a separator"
            raise RouteError(message)
        name = _folded(plain)
        if segment and name in {"", ".", ".."}:
            message = "a segment disappears when its parameters or blanks are dropped"
            raise RouteError(message)
        readings.append(name)
    # SECURITY: wherever they stand, because a proxy may take off what comes before.
    if _INTERNAL in pairwise(readings):
        message = "leads to the internal routes"
        raise RouteError(message)


def _folded(plain: str) -> str:
    """Return how the most lenient reader spells a segment (NFKD): no parameters, no unseen characters or accents, one letter case."""
    seen = "".join(character for character in plain.partition(";")[0] if unicodedata.category(character) not in _UNSEEN)
    stripped = seen.casefold().rstrip(".")
    # Dots are stripped as some file systems do, but a name of dots alone must stay recognisable.
    return stripped or seen
