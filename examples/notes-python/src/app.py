"""A notes service as an extension: the host calls `handler` once per request, always in a fresh instance.

Nothing survives in memory between two calls, so everything that must is kept in storage.
"""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import store
import wit_world
from componentize_py_types import Err
from wit_world.imports import config, logging, user
from wit_world.imports.types import ExecuteRequest, ExecuteResponse, HttpHeader, UserError

DEFAULT_GREETING = "Your notes"
DEFAULT_MAX_NOTES = 50
HARD_MAX_NOTES = 500
NOTE_PATH = re.compile(r"/notes/([A-Za-z0-9]{1,32})")
NUMBER = re.compile(r"[0-9]{1,6}")


class WitWorld(wit_world.WitWorld):
    """The exports of the world `extrunner:host/extension`."""

    def handler(self, request: ExecuteRequest) -> ExecuteResponse:
        path = urlsplit(request.http.url).path.rstrip("/") or "/"
        try:
            return _route(request.http.method, path, request.http.body or b"")
        except store.StoreError as error:
            if error.kind == "denied":
                return _not_allowed("storage.kv")
            logging.log_error(f"storage failed: {error.kind}")
            return _json(503, {"error": "storage_failed", "detail": "The notes cannot be reached now; try again."})


def _route(method: str, path: str, body: bytes) -> ExecuteResponse:
    one_note = NOTE_PATH.fullmatch(path)
    if one_note:
        return _one_note(method, one_note[1])
    handlers: dict[tuple[str, str], Callable[[], ExecuteResponse]] = {
        ("GET", "/"): _about,
        ("GET", "/notes"): _list_notes,
        ("POST", "/notes"): lambda: _create_note(body),
        ("GET", "/whoami"): _whoami,
    }
    handle = handlers.get((method, path))
    if handle is None:
        known = {at for _, at in handlers}
        return _json(405, {"error": "method_not_allowed"}) if path in known else _json(404, {"error": "no_such_path"})
    return handle()


def _about() -> ExecuteResponse:
    return _json(200, {"service": "notes", "language": "python", "greeting": _greeting(), "max_notes": _max_notes()})


def _list_notes() -> ExecuteResponse:
    notes = store.list_all(HARD_MAX_NOTES)
    return _json(200, {"greeting": _greeting(), "notes": sorted(notes, key=lambda note: (note["created_at"], note["id"]))})


def _create_note(body: bytes) -> ExecuteResponse:
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    title = asked.get("title") if isinstance(asked, dict) else None
    text = asked.get("text", "") if isinstance(asked, dict) else None
    if not isinstance(title, str) or not isinstance(text, str) or not title.strip():
        return _json(400, {"error": "invalid_note", "detail": 'Send {"title": "…", "text": "…"} as JSON.'})
    if len(title) > store.MAX_TITLE_CHARACTERS or len(text) > store.MAX_TEXT_CHARACTERS:
        return _json(413, {"error": "note_too_long", "detail": f"{store.MAX_TITLE_CHARACTERS} and {store.MAX_TEXT_CHARACTERS} characters."})
    if len(store.list_all(_max_notes())) >= _max_notes():
        return _json(409, {"error": "too_many_notes", "detail": f"Delete one first: {_max_notes()} are allowed (setting max_notes)."})
    note = store.create(title.strip(), text)
    logging.log_info(f"note {note['id']} created")
    return _json(201, note, [HttpHeader("location", f"notes/{note['id']}")])


def _one_note(method: str, note_id: str) -> ExecuteResponse:
    missing = _json(404, {"error": "no_such_note"})
    if method == "GET":
        note = store.find(note_id)
        return missing if note is None else _json(200, note)
    if method == "DELETE":
        return ExecuteResponse(204, [], None) if store.delete(note_id) else missing
    return _json(405, {"error": "method_not_allowed"})


def _whoami() -> ExecuteResponse:
    """Say who asks; works only where the tenant granted user.read, and says so where it did not."""
    try:
        who = user.get_user()
    except Err as refused:
        if refused.value is UserError.NOT_ALLOWED:
            return _not_allowed("user.read")
        return _json(200, {"user": None})
    return _json(200, {"user": {"id": who.user_id, "name": who.user_name, "email": who.user_email}})


def _greeting() -> str:
    return config.get("greeting") or DEFAULT_GREETING


def _max_notes() -> int:
    asked = config.get("max_notes") or ""
    return min(max(int(asked), 1), HARD_MAX_NOTES) if NUMBER.fullmatch(asked) else DEFAULT_MAX_NOTES


def _not_allowed(capability: str) -> ExecuteResponse:
    return _json(403, {"error": "not_allowed", "capability": capability, "detail": f"Your administrator has not granted {capability}."})


def _json(status: int, document: dict[str, Any], headers: list[HttpHeader] | None = None) -> ExecuteResponse:
    body = json.dumps(document, ensure_ascii=False).encode()
    return ExecuteResponse(status, [HttpHeader("content-type", "application/json"), *(headers or [])], body)
