// The same answer as guests/hello, as a component for `wasmtime serve`.
addEventListener('fetch', (event) => {
  const body = JSON.stringify({ ok: true, path: new URL(event.request.url).pathname });
  event.respondWith(new Response(body, { headers: { 'content-type': 'application/json' } }));
});
