// A guest that looks at its clocks. Built by tests/fakes/guests.py with every feature of the toolchain, WASI's included.
const encoder = new TextEncoder();

// Until there are enough, however little of the processor there is for it.
function clocks() {
  const [monotonic, wall] = [new Set(), new Set()];
  while (monotonic.size < 20) {
    wall.add(Date.now());
    monotonic.add(performance.now());
  }
  return { monotonic: [...monotonic], wall: [...wall] };
}

const ROUTES = {
  '/clocks': clocks,
  '/random': () => crypto.getRandomValues(new Uint8Array(16)).length,
  '/log': () => console.log('said') ?? 'logged',
  '/fetch': () => fetch('http://127.0.0.1:9/'),
};

export function handler(request) {
  const body = encoder.encode(JSON.stringify(ROUTES[request.http.url]()));
  return { status: 200, headers: [], body };
}
