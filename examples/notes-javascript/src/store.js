// Notes in the key-value storage that the host keeps for this install: one entry a note, and a counter for their ids.
// A tenant's notes are out of reach of every other tenant: the host adds tenant and install to each key, this code never sees them.
import { get, put, delete as remove, listEntries } from 'alga:extension/storage';

const NOTES = 'notes';
const META = 'meta';
const COUNTER = 'last-id';
const MAX_PAGES = 20;
const MAX_TRIES = 8;

export const MAX_TITLE_CHARACTERS = 200;
export const MAX_TEXT_CHARACTERS = 10_000;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

// The host refused or failed; `kind` is its own word for it.
export class StoreError extends Error {
  constructor(kind) {
    super(kind);
    this.kind = kind;
  }
}

export function create(title, text) {
  const note = { id: nextId(), title, text };
  asking(() => put({ namespace: NOTES, key: note.id, value: encode(note), revision: undefined }));
  return note;
}

export function find(id) {
  const entry = askingFor(() => get(NOTES, id));
  return entry === undefined ? undefined : decode(entry);
}

export function destroy(id) {
  return askingFor(() => (remove(NOTES, id), true)) ?? false;
}

// Returns at most `limit` notes. The host hands them out in pages; the last key of a page is the cursor to the next.
export function listAll(limit) {
  const notes = [];
  let cursor;
  for (let page = 0; page < MAX_PAGES && notes.length < limit; page++) {
    const entries = asking(() => listEntries(NOTES, cursor));
    if (entries.length === 0) break;
    notes.push(...entries.map(decode));
    cursor = entries[entries.length - 1].key;
  }
  return notes.slice(0, limit);
}

// Two calls may count at the same moment: the write names the revision that was read, and the slower one tries again.
function nextId() {
  for (let attempt = 0; attempt < MAX_TRIES; attempt++) {
    const entry = askingFor(() => get(META, COUNTER));
    const next = (entry === undefined ? 0 : decode(entry).last) + 1;
    try {
      asking(() => put({ namespace: META, key: COUNTER, value: encode({ last: next }), revision: entry?.revision ?? 0n }));
      return `n${next}`;
    } catch (error) {
      if (error.kind !== 'conflict') throw error;
    }
  }
  throw new StoreError('conflict');
}

function asking(call) {
  try {
    return call();
  } catch (error) {
    throw new StoreError(error.payload ?? 'internal');
  }
}

function askingFor(call) {
  try {
    return asking(call);
  } catch (error) {
    if (error.kind === 'missing') return undefined;
    throw error;
  }
}

function encode(document) {
  return encoder.encode(JSON.stringify(document));
}

function decode(entry) {
  return JSON.parse(decoder.decode(entry.value));
}
