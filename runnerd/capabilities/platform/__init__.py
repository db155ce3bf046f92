"""The host platform's interfaces (ui-proxy, invoicing, clients, services), forwarded over HTTP: `docs/platform-api.md` is the contract."""
