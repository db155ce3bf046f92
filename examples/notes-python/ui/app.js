// The interface of the notes service. It runs in an iframe without any credential of its own: it asks the page around it to call the
// extension's endpoints ("apiproxy" messages), and that page decides whether the signed-in user may.
// A classic script, not a module: in a sandboxed frame of no origin a module would have to be fetched across origins.
(() => {
  'use strict';

  const PROTOCOL = { alga: true, version: '1' };
  const ANSWER_TIMEOUT_MS = 15_000;

  // The host names its own origin in the address of the iframe; messages go to it and are taken from it, nobody else.
  const parentOrigin = new URLSearchParams(location.search).get('parentOrigin') ?? location.origin;
  const pending = new Map();

  const status = document.getElementById('status');
  const form = document.getElementById('new-note');
  const list = document.getElementById('notes');

  addEventListener('message', (event) => {
    if (event.source !== parent || event.origin !== parentOrigin || event.data?.alga !== true) return;
    const { type, request_id: requestId, payload } = event.data;
    if (type === 'bootstrap') refresh();
    if (type === 'apiproxy_response' && pending.has(requestId)) {
      const { resolve, reject } = pending.get(requestId);
      pending.delete(requestId);
      if (payload.error) reject(new Error(payload.error));
      else resolve(payload.body ? JSON.parse(fromBase64(payload.body)) : undefined);
    }
  });

  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const fields = new FormData(form);
    await attempt(() => call('POST', '/notes', { title: fields.get('title'), text: fields.get('text') }));
    form.reset();
    await refresh();
  });

  if (parent === window) {
    status.textContent = 'This page belongs inside the host application, which lends it the right to call the notes service.';
  } else {
    send('ready', {});
  }

  async function refresh() {
    const answer = await attempt(() => call('GET', '/notes'));
    if (!answer) return;
    document.getElementById('greeting').textContent = answer.greeting;
    status.textContent = answer.notes.length === 0 ? 'No notes yet.' : `${answer.notes.length} notes`;
    form.hidden = false;
    list.replaceChildren(...answer.notes.map(show));
    send('resize', { height: document.documentElement.scrollHeight });
  }

  // textContent, never innerHTML: a note is what somebody typed.
  function show(note) {
    const item = document.createElement('li');
    const title = document.createElement('strong');
    const text = document.createElement('p');
    const remove = document.createElement('button');
    title.textContent = note.title;
    text.textContent = note.text;
    remove.textContent = 'Delete';
    remove.addEventListener('click', async () => {
      await attempt(() => call('DELETE', `/notes/${encodeURIComponent(note.id)}`));
      await refresh();
    });
    item.append(title, text, remove);
    return item;
  }

  async function attempt(action) {
    try {
      return await action();
    } catch (error) {
      status.textContent = `That did not work: ${error.message}`;
      return undefined;
    }
  }

  function call(method, route, body) {
    const requestId = crypto.randomUUID();
    return new Promise((resolve, reject) => {
      pending.set(requestId, { resolve, reject });
      setTimeout(() => {
        if (pending.delete(requestId)) reject(new Error('the host application did not answer'));
      }, ANSWER_TIMEOUT_MS);
      const encoded = body === undefined ? {} : { body: toBase64(JSON.stringify(body)) };
      send('apiproxy', { method, route, ...encoded }, requestId);
    });
  }

  function send(type, payload, requestId) {
    parent.postMessage({ ...PROTOCOL, type, payload, ...(requestId && { request_id: requestId }) }, parentOrigin);
  }

  function toBase64(text) {
    return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
  }

  function fromBase64(text) {
    return new TextDecoder().decode(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)));
  }
})();
