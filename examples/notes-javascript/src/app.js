// A notes service as an extension: the host calls `handler` once per request, always in a fresh instance.
// Nothing survives in memory between two calls, so everything that must is kept in storage.
import { get as setting } from 'extrunner:host/config@0.1.0';
import { logError, logInfo } from 'alga:extension/logging';
import { getUser } from 'alga:extension/user';
import * as store from './store.js';

const DEFAULT_GREETING = 'Your notes';
const DEFAULT_MAX_NOTES = 50;
const HARD_MAX_NOTES = 500;

const ROUTES = new Map([
  ['GET /', about],
  ['GET /notes', listNotes],
  ['POST /notes', createNote],
  ['GET /whoami', whoami],
]);

// The one export of the world.
export function handler(request) {
  const { method, url, body } = request.http;
  const path = url.split(/[?#]/, 1)[0].replace(/\/+$/, '') || '/';
  try {
    const one = /^\/notes\/([^/]+)$/.exec(path);
    if (one) return oneNote(method, one[1]);
    const route = ROUTES.get(`${method} ${path}`);
    if (route) return route(body);
    const known = [...ROUTES.keys()].some((key) => key.split(' ')[1] === path);
    return known ? json(405, { error: 'method_not_allowed' }) : json(404, { error: 'no_such_path' });
  } catch (error) {
    if (!(error instanceof store.StoreError)) throw error;
    if (error.kind === 'denied') return notAllowed('storage.kv');
    logError(`storage failed: ${error.kind}`);
    return json(503, { error: 'storage_failed', detail: 'The notes cannot be reached now; try again.' });
  }
}

function about() {
  return json(200, { service: 'notes', language: 'javascript', greeting: greeting(), max_notes: maxNotes() });
}

function listNotes() {
  return json(200, { greeting: greeting(), notes: store.listAll(HARD_MAX_NOTES) });
}

function createNote(body) {
  const asked = parse(body);
  const title = asked?.title;
  const text = asked?.text ?? '';
  if (typeof title !== 'string' || typeof text !== 'string' || title.trim() === '') {
    return json(400, { error: 'invalid_note', detail: 'Send {"title": "…", "text": "…"} as JSON.' });
  }
  if (title.length > store.MAX_TITLE_CHARACTERS || text.length > store.MAX_TEXT_CHARACTERS) {
    return json(413, { error: 'note_too_long', detail: `${store.MAX_TITLE_CHARACTERS} and ${store.MAX_TEXT_CHARACTERS} characters.` });
  }
  const allowed = maxNotes();
  if (store.listAll(allowed).length >= allowed) {
    return json(409, { error: 'too_many_notes', detail: `Delete one first: ${allowed} are allowed (setting max_notes).` });
  }
  const note = store.create(title.trim(), text);
  logInfo(`note ${note.id} created`);
  return json(201, note, [{ name: 'location', value: `notes/${note.id}` }]);
}

function oneNote(method, id) {
  if (!/^[A-Za-z0-9]{1,32}$/.test(id)) return json(404, { error: 'no_such_note' });
  if (method === 'GET') {
    const note = store.find(id);
    return note === undefined ? json(404, { error: 'no_such_note' }) : json(200, note);
  }
  if (method === 'DELETE') {
    return store.destroy(id) ? { status: 204, headers: [], body: undefined } : json(404, { error: 'no_such_note' });
  }
  return json(405, { error: 'method_not_allowed' });
}

// Says who asks; works only where the tenant granted user.read, and says so where it did not.
function whoami() {
  try {
    const who = getUser();
    return json(200, { user: { id: who.userId, name: who.userName, email: who.userEmail } });
  } catch (error) {
    return error.payload === 'not-allowed' ? notAllowed('user.read') : json(200, { user: null });
  }
}

function greeting() {
  return setting('greeting') || DEFAULT_GREETING;
}

function maxNotes() {
  const asked = setting('max_notes') ?? '';
  return /^[0-9]{1,6}$/.test(asked) ? Math.min(Math.max(Number(asked), 1), HARD_MAX_NOTES) : DEFAULT_MAX_NOTES;
}

function parse(body) {
  try {
    return JSON.parse(new TextDecoder().decode(body ?? new Uint8Array()));
  } catch {
    return undefined;
  }
}

function notAllowed(capability) {
  return json(403, { error: 'not_allowed', capability, detail: `Your administrator has not granted ${capability}.` });
}

function json(status, document, headers = []) {
  return {
    status,
    headers: [{ name: 'content-type', value: 'application/json' }, ...headers],
    body: new TextEncoder().encode(JSON.stringify(document)),
  };
}
