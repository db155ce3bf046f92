// Calls the host functions that its request names and answers what each of them said. Built by tests/fakes/probe_guests.py, which puts the
// interfaces of a world beside it.
import { INTERFACES } from './interfaces.js';

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const CHUNK = 32 * 1024;

// POST /echo answers with the request's body. Everything else: a JSON list of calls in, a JSON list of what came of them out.
export function handler(request) {
  const { url, body } = request.http;
  if (url === '/echo') return { status: 200, headers: [], body };
  const told = JSON.parse(decoder.decode(body)).map(call);
  return { status: 200, headers: [{ name: 'content-type', value: 'application/json' }], body: encoder.encode(JSON.stringify(told)) };
}

// Calls one function, `times` over where the call says so, and tells of the last.
function call({ interface: name, function: wanted, arguments: written, times = 1 }) {
  const asked = INTERFACES[name][camel(wanted)];
  const given = written.map(taken);
  let [answer, failure] = [undefined, undefined];
  for (let done = 0; done < times; done += 1) {
    try {
      [answer, failure] = [asked(...given), undefined];
    } catch (error) {
      failure = error;
    }
  }
  if (failure === undefined) return { ok: told(answer) };
  return failure.payload === undefined ? { threw: failure.name } : { error: failure.payload };
}

function taken(written) {
  if (written === null) return undefined;
  if (Array.isArray(written)) return written.map(taken);
  if (typeof written !== 'object') return written;
  if ('bytes' in written) return repeated(Uint8Array.from(atob(written.bytes), (character) => character.charCodeAt(0)), written.size);
  if ('u64' in written) return BigInt(written.u64);
  if ('float' in written) return Number(written.float);
  if ('case' in written) return written.case;
  return Object.fromEntries(Object.entries(written.fields).map(([name, value]) => [camel(name), taken(value)]));
}

function told(value) {
  if (value === undefined || value === null) return null;
  if (typeof value === 'bigint') return { u64: value.toString() };
  if (typeof value === 'number' && !Number.isFinite(value)) return { float: String(value) };
  // Not `instanceof`: what the host hands out was not made with the constructor that this code sees.
  if (ArrayBuffer.isView(value)) return value.BYTES_PER_ELEMENT === 1 ? { bytes: base64(value) } : Array.from(value, told);
  if (Array.isArray(value)) return value.map(told);
  if (typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [snake(name), told(field)]));
}

function repeated(unit, size) {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += unit.length) bytes.set(unit.subarray(0, size - at), at);
  return bytes;
}

function base64(bytes) {
  let text = '';
  for (let at = 0; at < bytes.length; at += CHUNK) text += String.fromCharCode.apply(null, bytes.subarray(at, at + CHUNK));
  return btoa(text);
}

function camel(name) {
  return name.replace(/[-_](.)/g, (_, letter) => letter.toUpperCase());
}

function snake(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
