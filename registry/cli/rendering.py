"""Showing text that others wrote: names, messages, bodies, log lines.

Attack this stops (T44): an extension's author puts escape sequences into a name and rewrites what an operator reads on the terminal,
or bidirectional controls that make one capability look like another. Everything that did not come from this program goes through
`visible` or `visible_block` before it reaches a terminal; JSON output is ASCII and therefore harmless.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from registry.bundles.text import is_unshowable

MAX_VISIBLE_CHARACTERS: Final = 2_000
MAX_BLOCK_CHARACTERS: Final = 20_000
_CUT: Final = "… (cut)"
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_LAST_ONE_BYTE: Final = 0xFF
_LAST_TWO_BYTES: Final = 0xFFFF


def visible(text: str, *, limit: int = MAX_VISIBLE_CHARACTERS) -> str:
    """Return `text` on one line, every character that does not show itself written as an escape, cut after `limit` characters.

    Guarantee: the result holds no control, format, surrogate, private or separator character.
    """
    shown = "".join(_escape(character) for character in text[:limit])
    return shown + _CUT if len(text) > limit else shown


def visible_block(text: str, *, limit: int = MAX_BLOCK_CHARACTERS) -> str:
    """Like `visible`, but keep line feeds, tabs and backslashes: for bodies and logs that are shown as they are."""
    shown = "".join(character if character in "\n\t\\" else _escape(character) for character in text[:limit])
    return shown + _CUT if len(text) > limit else shown


def visible_json(document: object) -> str:
    """Return `document` as ASCII-only JSON on one line: what a script reads, and safe on a terminal."""
    return json.dumps(document, ensure_ascii=True, separators=(", ", ": "), default=str)


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return `rows` as aligned text; each cell is shown by `visible`."""
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str), limit=100)


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if not is_unshowable(character):
        return character
    code = ord(character)
    if code <= _LAST_ONE_BYTE:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _LAST_TWO_BYTES else f"\\U{code:08x}"
