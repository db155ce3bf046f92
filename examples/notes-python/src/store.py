"""Notes in the key-value storage that the host keeps for this install: one entry a note.

A tenant's notes are out of reach of every other tenant: the host adds tenant and install to each key, this code never sees them.
"""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from componentize_py_types import Err
from wit_world.imports import storage
from wit_world.imports.types import StorageEntry, StorageError

NAMESPACE = "notes"
MAX_TITLE_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 10_000
_MAX_PAGES = 20

Note = dict[str, Any]


class StoreError(Exception):
    """The host refused or failed; `kind` is the host's own word for it."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def create(title: str, text: str) -> Note:
    note = {"id": secrets.token_hex(8), "title": title, "text": text, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        storage.put(StorageEntry(namespace=NAMESPACE, key=note["id"], value=json.dumps(note).encode(), revision=None))
    except Err as refused:
        raise StoreError(refused.value.name.lower()) from refused
    return note


def find(note_id: str) -> Note | None:
    try:
        return _note(storage.get(NAMESPACE, note_id))
    except Err as refused:
        if refused.value is StorageError.MISSING:
            return None
        raise StoreError(refused.value.name.lower()) from refused


def delete(note_id: str) -> bool:
    try:
        storage.delete(NAMESPACE, note_id)
    except Err as refused:
        if refused.value is StorageError.MISSING:
            return False
        raise StoreError(refused.value.name.lower()) from refused
    return True


def list_all(limit: int) -> list[Note]:
    """Return at most `limit` notes. The host hands them out in pages; the last key of a page is the cursor to the next."""
    notes: list[Note] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        try:
            page = storage.list_entries(NAMESPACE, cursor)
        except Err as refused:
            raise StoreError(refused.value.name.lower()) from refused
        notes.extend(_note(entry) for entry in page)
        if not page or len(notes) >= limit:
            break
        cursor = page[-1].key
    return notes[:limit]


def _note(entry: StorageEntry) -> Note:
    note: Note = json.loads(entry.value)
    return note
