// Every interface of the world extrunner:host/extension.
import * as config from 'extrunner:host/config@0.1.0';
import * as events from 'extrunner:host/events@0.1.0';
import * as kv from 'extrunner:host/kv@0.1.0';
import * as metrics from 'extrunner:host/metrics@0.1.0';
import { INTERFACES as OF_RUNNER } from './runner.js';

export const INTERFACES = {
  ...OF_RUNNER,
  'extrunner:host/config': config,
  'extrunner:host/events': events,
  'extrunner:host/kv': kv,
  'extrunner:host/metrics': metrics,
};
