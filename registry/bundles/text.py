"""Foreign text: which characters it may hold, and how it is shown in messages (T44).

Attack: a control or right-to-left character in a name rewrites an operator's terminal or makes a capability look harmless.
"""

from __future__ import annotations

import unicodedata

_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Cc controls; Cf format characters, among them every bidirectional control, zero-width characters and tags; Cs and Co what no
reader shows; Cn what this Unicode version does not know, so that normal forms are stable; Zl and Zp line breaks."""


def is_unshowable(character: str) -> bool:
    """Tell whether a character has no place in a name or a label: controls, bidirectional and other format characters."""
    return unicodedata.category(character) in _UNSHOWABLE


def show(text: str, *, limit: int = 80) -> str:
    """Return foreign text so that it can stand in a message: quoted ASCII with escapes, cut to `limit` characters."""
    return ascii(text[:limit]) + ("…" if len(text) > limit else "")
