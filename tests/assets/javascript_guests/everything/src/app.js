// A guest that looks at its clocks. Built by tests/fakes/guests.py with every feature of the toolchain, WASI's included.
const encoder = new TextEncoder();

function spread(read) {
  const seen = [];
  const until = performance.now() + 5;
  while (performance.now() < until) seen.push(read());
  return [...new Set(seen)];
}

const ROUTES = {
  '/clocks': () => ({ monotonic: spread(() => performance.now()), wall: spread(() => Date.now()) }),
  '/random': () => crypto.getRandomValues(new Uint8Array(16)).length,
  '/log': () => console.log('said') ?? 'logged',
  '/fetch': () => fetch('http://127.0.0.1:9/'),
};

export function handler(request) {
  const body = encoder.encode(JSON.stringify(ROUTES[request.http.url]()));
  return { status: 200, headers: [], body };
}
