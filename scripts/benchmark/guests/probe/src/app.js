// What the benchmark measures piece by piece: `/echo` answers with the request's body, `/call/NAME/TIMES` calls one host function so often.
import { getContext } from 'alga:extension/context';
import { get as getRecord, put as putRecord } from 'alga:extension/storage';
import { get as getSetting } from 'extrunner:host/config@0.1.0';

const value = new Uint8Array(32 * 1024).map((_, index) => index);
const record = (key) => ({ namespace: 'bench', key, value, revision: undefined });

const CALLS = {
  'context.get-context': () => getContext(),
  'config.get': () => getSetting('greeting'),
  'storage.put': () => putRecord(record('one')),
  'storage.get': () => getRecord('bench', 'one'),
};

export function handler(request) {
  const { url, body } = request.http;
  if (url === '/echo') return { status: 200, headers: [], body };
  const [, , name, times] = url.split('/');
  for (let done = 0; done < Number(times); done += 1) CALLS[name]();
  return { status: 204, headers: [], body: undefined };
}
