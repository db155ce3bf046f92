// The least that an extension can do: no host call, a small JSON answer made from the request. `/busy` takes a while, so that somebody
// can look at calls in flight.
const encoder = new TextEncoder();

function spin(rounds) {
  let sum = 0;
  for (let round = 0; round < rounds; round += 1) sum = (sum * 31 + round) % 1000003;
  return sum;
}

export function handler(request) {
  const path = request.http.url;
  const answer = path === '/busy' ? { ok: true, path, sum: spin(3000000) } : { ok: true, path };
  return { status: 200, headers: [{ name: 'content-type', value: 'application/json' }], body: encoder.encode(JSON.stringify(answer)) };
}
