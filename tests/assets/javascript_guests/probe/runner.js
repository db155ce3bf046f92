// Every interface of the world alga:extension/runner.
import * as clients from 'alga:extension/clients';
import * as context from 'alga:extension/context';
import * as http from 'alga:extension/http';
import * as invoicing from 'alga:extension/invoicing';
import * as logging from 'alga:extension/logging';
import * as scheduler from 'alga:extension/scheduler';
import * as secrets from 'alga:extension/secrets';
import * as services from 'alga:extension/services';
import * as storage from 'alga:extension/storage';
import * as uiProxy from 'alga:extension/ui-proxy';
import * as userV2 from 'alga:extension/user-v2';
import * as user from 'alga:extension/user';

export const INTERFACES = {
  'alga:extension/clients': clients,
  'alga:extension/context': context,
  'alga:extension/http': http,
  'alga:extension/invoicing': invoicing,
  'alga:extension/logging': logging,
  'alga:extension/scheduler': scheduler,
  'alga:extension/secrets': secrets,
  'alga:extension/services': services,
  'alga:extension/storage': storage,
  'alga:extension/ui-proxy': uiProxy,
  'alga:extension/user': user,
  'alga:extension/user-v2': userV2,
};
